//! What the integration tests stand on: a proxy in process, an upstream, a client.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use seawall::app::App;
use seawall::config::{Live, LoadArgs};
use seawall::http::Body;
use seawall::sim::{Options, Simulator};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

pub mod chaos;
pub mod egress;
pub mod scripted;

/// The most time that a test gives to what must come. It bounds a hang only: machines may be slow and loaded.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Polls until a condition holds; panics with its text when [`PATIENCE`] ends.
#[macro_export]
macro_rules! assert_eventually {
    ($condition:expr) => {{
        let deadline = tokio::time::Instant::now() + $crate::support::PATIENCE;
        loop {
            if $condition {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "never came true: {}", stringify!($condition));
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }};
}

/// A token for requests that do not care which.
pub const TOKEN: &str = "Bearer test-api-key-0001";

/// A proxy with its folder.
pub struct Proxy {
    /// Running; `None` after a stop.
    pub app: Option<App>,
    /// Of the data listener.
    pub url: String,
    /// Of the admin listener.
    pub admin: String,
    /// Outlives restarts.
    pub dir: std::sync::Arc<TempDir>,
    sets: Vec<String>,
    config: Option<std::path::PathBuf>,
    http: Client<HttpConnector, Body>,
}

/// An answer with its whole body.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub fields: HeaderMap,
    pub body: Bytes,
}

/// A small simulated Flexport.
pub async fn simulator() -> Simulator {
    Simulator::start(Options { shipments: 12, ..Options::default() }).await.unwrap()
}

/// A client of its own pool.
pub fn client() -> Client<HttpConnector, Body> {
    Client::builder(TokioExecutor::new()).build_http()
}

/// Settings in front of `upstream`, with everything in `dir` and waits that suit a test; later ones win.
pub fn settings(upstream: &str, dir: &Path, log: &str, more: &[&str]) -> Vec<String> {
    let mut all: Vec<String> = [
        "server.listen=127.0.0.1:0",
        "admin.listen=127.0.0.1:0",
        "breaker.open_wait=300ms",
        "breaker.open_wait_max=600ms",
        "probe.interval=200ms",
        "queue.backoff=100ms",
        "queue.backoff_max=500ms",
        "server.drain.grace=2s",
        "store.lock_wait=2s",
    ]
    .iter()
    .map(ToString::to_string)
    .collect();
    all.push(format!("telemetry.log={log}"));
    all.push(format!("upstream.base_url={upstream}"));
    all.push(format!("data_dir={}", dir.join("data").display()));
    all.extend(more.iter().map(ToString::to_string));
    all
}

/// A body that sets one value.
pub fn patch(value: &str) -> String {
    format!(r#"{{"metadata":{{"v":["{value}"]}}}}"#)
}

/// A booking of this name.
pub fn booking(name: &str) -> String {
    format!(r#"{{"name":"{name}"}}"#)
}

// === impl Proxy ===

impl Proxy {
    /// In front of `upstream`, with waits that suit a test, and these settings.
    pub async fn start(upstream: &str, sets: &[&str]) -> Self {
        Self::configured(upstream, sets, "", |_| {}).await
    }

    /// The same with a configuration file; `{dir}` in it is the proxy's folder, which `prepare` may fill before.
    pub async fn configured(upstream: &str, sets: &[&str], file: &str, prepare: impl FnOnce(&Path)) -> Self {
        let dir = std::sync::Arc::new(TempDir::new().unwrap());
        prepare(dir.path());
        let config = (!file.is_empty()).then(|| dir.path().join("proxy.toml"));
        if let Some(config) = &config {
            std::fs::write(config, file.replace("{dir}", &dir.path().display().to_string())).unwrap();
        }
        let sets = settings(upstream, dir.path(), "warn", sets);
        Self::start_in(dir, config, sets).await
    }

    async fn start_in(
        dir: std::sync::Arc<TempDir>,
        config: Option<std::path::PathBuf>,
        sets: Vec<String>,
    ) -> Self {
        let live = Live::load(LoadArgs::new(config.clone(), sets.clone(), std::iter::empty()))
            .unwrap_or_else(|problems| panic!("{problems}"));
        let app = App::start(live).await.unwrap_or_else(|error| panic!("{error}"));
        let (url, admin) = (format!("http://{}", app.data), format!("http://{}", app.admin));
        Self { app: Some(app), url, admin, dir, sets, config, http: client() }
    }

    /// Stops in good order.
    pub async fn stop(&mut self) -> bool {
        match self.app.take() {
            Some(app) => app.stop().await,
            None => true,
        }
    }

    /// Begins to stop; the task tells whether everything under way came to its end.
    pub fn stopping(&mut self) -> tokio::task::JoinHandle<bool> {
        let app = self.app.take().expect("it runs");
        tokio::spawn(app.stop())
    }

    /// `name:port` of the data listener.
    pub fn addr(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// The value of a metric without labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.admin(Method::GET, "/metrics", None).await.body;
        let text = std::str::from_utf8(&text).unwrap();
        let line = text.lines().find(|line| line.split(' ').next() == Some(name));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Stops, and starts again in the same folder.
    pub async fn restart(&mut self) {
        self.stop().await;
        let again = Self::start_in(self.dir.clone(), self.config.clone(), self.sets.clone()).await;
        *self = again;
    }

    /// `GET` with [`TOKEN`].
    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    /// A request with [`TOKEN`] unless `fields` has an `authorization` of its own.
    pub async fn send(&self, method: Method, path: &str, fields: &[(&str, &str)], body: &str) -> Answer {
        send(&self.http, method, &format!("{}{path}", self.url), fields, body, true).await
    }

    /// A request with these fields and no token besides them.
    pub async fn bare(&self, method: Method, path: &str, fields: &[(&str, &str)], body: &str) -> Answer {
        send(&self.http, method, &format!("{}{path}", self.url), fields, body, false).await
    }

    /// A request to the admin API.
    pub async fn admin(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let body = body.map_or_else(String::new, |body| body.to_string());
        send(&self.http, method, &format!("{}{path}", self.admin), &[], &body, false).await
    }

    /// The ticket's state.
    pub async fn ticket(&self, id: &str) -> Value {
        self.get(&format!("/_seawall/writes/{id}")).await.json()["data"].clone()
    }

    /// Lets no call of this scope go upstream, so that its writes are queued and rest there, until [`Self::lift`].
    pub async fn hold(&self, scope: &str) {
        let body = serde_json::json!({"mode": "forced_open", "reason": "held by a test"});
        let set = self.admin(Method::PUT, &format!("/api/v1/breakers/{scope}/override"), Some(body)).await;
        assert_eq!(set.status, 200, "{set:?}");
    }

    /// Ends [`Self::hold`].
    pub async fn lift(&self, scope: &str) {
        let set = self.admin(Method::DELETE, &format!("/api/v1/breakers/{scope}/override"), None).await;
        assert_eq!(set.status, 200, "{set:?}");
    }

    /// A breaker's status.
    pub async fn breaker(&self, scope: &str) -> Value {
        self.admin(Method::GET, &format!("/api/v1/breakers/{scope}"), None).await.json()
    }
}

/// Sends one request and reads the whole answer, which must come.
pub async fn send(
    http: &Client<HttpConnector, Body>,
    method: Method,
    url: &str,
    fields: &[(&str, &str)],
    body: &str,
    with_token: bool,
) -> Answer {
    let answer = try_send(http, method, url, fields, body, with_token).await;
    answer.unwrap_or_else(|error| panic!("{url}: {error}"))
}

/// The same, when there may be no answer. [`TOKEN`] is added if wanted and no other is given.
pub async fn try_send(
    http: &Client<HttpConnector, Body>,
    method: Method,
    url: &str,
    fields: &[(&str, &str)],
    body: &str,
    with_token: bool,
) -> Result<Answer, String> {
    let mut request = Request::builder().method(method).uri(url);
    if with_token && !fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization")) {
        request = request.header("authorization", TOKEN);
    }
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    if !body.is_empty() && !fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
        request = request.header("content-type", "application/json");
    }
    let request = request.body(Body::from(body.to_owned())).map_err(|error| error.to_string())?;
    let response = tokio::time::timeout(PATIENCE, http.request(request))
        .await
        .map_err(|_| "no answer within a minute".to_owned())?
        .map_err(|error| format!("{error:?}"))?;
    let (parts, body) = response.into_parts();
    let body = Body::from(body).collect(64 << 20).await.map_err(|error| error.to_string())?;
    Ok(Answer { status: parts.status, fields: parts.headers, body })
}

// === impl Answer ===

impl Answer {
    /// A field's text, or nothing.
    pub fn field(&self, name: &str) -> &str {
        self.fields.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// `Seawall-Source`.
    pub fn source(&self) -> &str {
        self.field("seawall-source")
    }

    /// The ticket's id; the answer must be a 202.
    pub fn ticket(&self) -> String {
        assert_eq!(self.status, 202, "{self:?}");
        self.field("seawall-write-id").to_owned()
    }
}

/// What the simulator's journal has of writes: `METHOD path body`.
pub fn writes(simulator: &Simulator) -> Vec<String> {
    simulator
        .journal()
        .iter()
        .filter(|entry| entry["method"] != "GET" && entry["method"] != "HEAD")
        .map(line)
        .collect()
}

/// `METHOD path body` of a write.
pub fn line(entry: &Value) -> String {
    let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
    format!("{} {} {}", text("method"), text("path"), text("body"))
}

/// How many requests of this method reached this path.
pub fn arrivals(simulator: &Simulator, method: &str, path: &str) -> usize {
    simulator.journal().iter().filter(|entry| entry["method"] == method && entry["path"] == path).count()
}
