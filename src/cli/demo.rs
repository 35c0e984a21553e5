//! `seawall demo`: an outage, played with real HTTP against the built-in simulator, told step by step.
//!
//! Nothing here is special to the demo: the proxy is the one that `serve` runs, with shorter waits. Each step shows
//! the real answer and checks that it is what the story says; the first that is not ends the demo with exit code 1.
//! With `--upstream` only the reads are played, against a server that the demo can neither stop nor inspect, so the
//! outage there is a port that it closes itself. Such a server may want a key of its own: `SEAWALL_DEMO_TOKEN`.

use super::args::Demo;
use super::{Exit, output};
use crate::app::App;
use crate::config::{Live, LoadArgs};
use crate::http::Body;
use crate::sim::{self, Simulator};
use anyhow::{Context, bail, ensure};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;

/// The API key that the demo calls with, and the variable with another one for `--upstream`.
const API_KEY: &str = "demo-api-key";
const API_KEY_VARIABLE: &str = "SEAWALL_DEMO_TOKEN";
/// What Flexport's own links begin with.
const FLEXPORT: &str = "https://api.flexport.com";
/// Of the breaker that an operator forces open in the story.
const OVERRIDE: &str = "/api/v1/breakers/shipments:read/override";
const LIMIT: Duration = Duration::from_secs(45);

pub(super) fn run(args: &Demo) -> Exit {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Exit::Failed(error.into()),
    };
    runtime.block_on(async {
        let result: anyhow::Result<()> = match &args.upstream {
            Some(upstream) => limited(reads_only(upstream.trim_end_matches('/'))).await,
            None => whole(args.keep).await,
        };
        result.into()
    })
}

async fn limited<T>(story: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::time::timeout(LIMIT, story).await.context("the demo did not end within 45 s")?
}

/// The proxy of the demo, its folder, and a client.
struct Stage {
    app: App,
    folder: PathBuf,
    http: Client<HttpConnector, Body>,
    data: String,
    admin: String,
    authorization: HeaderValue,
    step: u32,
}

/// An answer with its whole body.
struct Answer {
    status: StatusCode,
    fields: HeaderMap,
    body: Vec<u8>,
}

/// Fields that the story is told by, in this order.
const SHOWN: &[&str] = &[
    "seawall-source",
    "seawall-data-as-of",
    "seawall-stale-reason",
    "age",
    "cache-status",
    "seawall-pending-writes",
    "seawall-write-id",
    "seawall-breaker",
    "retry-after",
    "location",
];

// === the whole story ===

async fn whole(keep: bool) -> anyhow::Result<()> {
    let simulator = Simulator::start(sim::Options::default()).await.context("the simulator cannot start")?;
    let mut stage = Stage::set(&simulator.url(), API_KEY, Vec::new()).await?;
    let result = limited(play(&mut stage, &simulator)).await;
    if result.is_ok() && keep {
        output::say(&format!(
            "\nStill running until Ctrl-C:\n  Seawall         {}\n  its admin API   {}\n  Flexport (sim)  {}\n  its fault API   {}/_sim/faults",
            stage.data,
            stage.admin,
            simulator.url(),
            simulator.control_url()
        ));
        super::serve::until_told_to_stop().await;
    }
    stage.strike().await;
    simulator.shutdown().await;
    result
}

async fn play(stage: &mut Stage, simulator: &Simulator) -> anyhow::Result<()> {
    output::data(&format!(
        "Seawall {} listens on {}; behind it, a simulated Flexport on {}.",
        env!("CARGO_PKG_VERSION"),
        stage.data,
        simulator.url()
    ));
    simulator.set_switches(json!({ "validators": true })).map_err(anyhow::Error::msg)?;

    let list = stage.get("/shipments?per=2&direction=asc").await?;
    let first = list.json()?["data"]["data"][0]["id"].as_i64().context("the simulator has no shipment")?;
    let only_listed =
        list.json()?["data"]["data"][1]["id"].as_i64().context("the simulator has one shipment only")?;
    let shipment = format!("/shipments/{first}");

    stage.tell("A read. Flexport answers, Seawall passes it on and keeps a copy.");
    let answer = stage.show(Method::GET, &shipment, None).await?;
    answer.expect(StatusCode::OK, "upstream")?;
    let own_link = answer.json()?["self"].as_str().unwrap_or_default().to_owned();
    ensure!(own_link.starts_with(&stage.data), "a link leads past the proxy: {own_link}");
    output::data(&format!("    its links lead through Seawall: \"self\": \"{own_link}\""));

    stage.tell("The same read again. The copy is confirmed with Flexport, which sends no body (304).");
    let answer = stage.show(Method::GET, &shipment, None).await?;
    answer.expect(StatusCode::OK, "cache")?;
    ensure!(answer.text("cache-status").contains("fwd-status=304"), "it was not revalidated");

    stage.tell("The outage begins: Flexport refuses every connection.");
    simulator.set_faults(json!([{ "match": {}, "kind": "refuse" }])).map_err(anyhow::Error::msg)?;
    let before_outage = simulator.journal().len();

    tokio::time::sleep(Duration::from_secs(2)).await;
    stage.tell("The same read, two seconds later. The copy is served, and says how old it is and why.");
    let answer = stage.show(Method::GET, &shipment, None).await?;
    answer.expect(StatusCode::OK, "stale")?;
    ensure!(
        answer.fields.contains_key("age") && answer.fields.contains_key("seawall-stale-reason"),
        "no age or reason"
    );

    stage.tell("Three writes. They are on disk before they are acknowledged, each with a ticket.");
    let mut tickets = Vec::new();
    for note in ["first", "second"] {
        let body = json!({ "metadata": { "note": [note] } });
        let answer = stage.show(Method::PATCH, &shipment, Some(body)).await?;
        tickets.push(answer.ticket()?);
    }
    let booking = json!({ "name": "Demo booking" });
    let answer = stage.show(Method::POST, "/bookings", Some(booking)).await?;
    tickets.push(answer.ticket()?);

    stage.tell("An operator forces the breaker of shipment reads open: not even a probe goes out.");
    stage.force_open().await?;
    let answer = stage.show(Method::GET, &shipment, None).await?;
    answer.expect(StatusCode::OK, "stale")?;
    ensure!(answer.text("seawall-stale-reason") == "breaker-open", "the reason is not the breaker");

    stage.tell("A shipment that only the list has shown: it is served out of the list, and says so.");
    let answer = stage.show(Method::GET, &format!("/shipments/{only_listed}"), None).await?;
    answer.expect(StatusCode::OK, "stale")?;
    ensure!(answer.text("cache-status").ends_with("detail=from-collection"), "it is not out of the list");

    stage.tell("Something that was never read: nothing to serve, so a 503 in Flexport's own envelope.");
    let answer = stage.show(Method::GET, "/shipments?page=999999", None).await?;
    answer.expect(StatusCode::SERVICE_UNAVAILABLE, "seawall")?;
    ensure!(answer.json()?["error"]["code"] == "seawall_breaker_open", "not our own refusal");
    ensure!(simulator.journal().len() == before_outage, "something reached Flexport in the outage");

    stage.tell("Flexport is back, and the override is taken back. Seawall probes, then replays in order.");
    simulator.clear_faults();
    stage.back_to_automatic().await?;
    for id in &tickets {
        let ticket = stage.until_settled(id).await?;
        ensure!(ticket["state"] == "done", "the ticket {id} ended as {}", ticket["state"]);
        let answer = stage.get(&format!("/_seawall/writes/{id}/result")).await?;
        ensure!(answer.status == StatusCode::OK, "the answer of {id} has status {}", answer.status);
        let object = answer.json()?["data"]["_object"].as_str().unwrap_or("?").to_owned();
        output::data(&format!(
            "    ticket {id} done: Flexport answered {} with a {object}",
            answer.status.as_u16()
        ));
    }

    stage.tell("The proof is the simulator's own journal: each write arrived once, in order.");
    let arrived = writes_in(&simulator.journal());
    for line in &arrived {
        output::data(&format!("    {line}"));
    }
    let patches: Vec<&String> = arrived.iter().filter(|line| line.contains("PATCH")).collect();
    ensure!(arrived.len() == 3, "{} writes arrived, not 3", arrived.len());
    ensure!(
        patches.len() == 2 && patches[0].contains("first") && patches[1].contains("second"),
        "the order is wrong"
    );

    stage.tell("And a read shows the newest value.");
    let answer = stage.show_until(&shipment, "upstream").await?;
    ensure!(
        answer.json()?["data"]["metadata"]["note"] == json!(["second"]),
        "the newest value does not stand"
    );
    output::data("\nThat was the whole story. Nothing was lost, nothing was sent twice.");
    Ok(())
}

fn writes_in(journal: &[Value]) -> Vec<String> {
    journal
        .iter()
        .filter(|entry| entry["method"] != "GET" && entry["method"] != "HEAD")
        .map(|entry| {
            format!(
                "#{} {} {} {} applied={}",
                entry["seq"],
                entry["method"].as_str().unwrap_or("?"),
                entry["path"].as_str().unwrap_or("?"),
                entry["body"].as_str().unwrap_or("?"),
                entry["applied"]
            )
        })
        .collect()
}

// === reads against another upstream ===

async fn reads_only(upstream: &str) -> anyhow::Result<()> {
    let key = match std::env::var(API_KEY_VARIABLE) {
        Ok(key) => key,
        Err(std::env::VarError::NotPresent) => API_KEY.to_owned(),
        Err(std::env::VarError::NotUnicode(_)) => bail!("{API_KEY_VARIABLE} is not UTF-8"),
    };
    // A door that can be shut: the demo cannot stop a server that is not its own.
    let mut door = Door::open(upstream).await?;
    // The upstream does not know of the door, so its links may begin with its own URL.
    let links = format!("upstream.link_bases=[\"{FLEXPORT}\", \"{upstream}\"]");
    let mut stage = Stage::set(&door.url, &key, vec![links]).await?;
    let result = play_reads(&mut stage, upstream, &mut door).await;
    stage.strike().await;
    result
}

async fn play_reads(stage: &mut Stage, upstream: &str, door: &mut Door) -> anyhow::Result<()> {
    output::data(&format!("Seawall listens on {}; behind it, {upstream}.", stage.data));
    let path = "/shipments";

    stage.tell("A read. The upstream answers, Seawall passes it on and keeps a copy.");
    let answer = stage.show(Method::GET, path, None).await?;
    ensure!(
        answer.status != StatusCode::UNAUTHORIZED,
        "GET {path} answered 401: put the upstream's API key into {API_KEY_VARIABLE}"
    );
    ensure!(
        answer.status == StatusCode::OK,
        "GET {path} answered {}: is this a Flexport API?",
        answer.status
    );
    answer.expect(StatusCode::OK, "upstream")?;
    let own_link = answer.json()?["self"].as_str().unwrap_or_default().to_owned();
    ensure!(own_link.starts_with(&stage.data), "a link leads past the proxy: {own_link}");
    output::data(&format!("    its links lead through Seawall: \"self\": \"{own_link}\""));

    stage.tell("The same read again. Seawall asks again, since the upstream names no freshness, or repeats its copy.");
    stage.show(Method::GET, path, None).await?.ok()?;

    stage.tell("The outage begins: the way to the upstream is shut.");
    door.shut().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    stage.tell("The same read, two seconds later. The copy is served, and says how old it is and why.");
    let answer = stage.show(Method::GET, path, None).await?;
    answer.expect(StatusCode::OK, "stale")?;
    ensure!(
        answer.fields.contains_key("age") && answer.fields.contains_key("seawall-stale-reason"),
        "no age or reason"
    );

    stage.tell("An operator forces the breaker of shipment reads open: not even a probe goes out.");
    stage.force_open().await?;
    let answer = stage.show(Method::GET, path, None).await?;
    answer.expect(StatusCode::OK, "stale")?;
    ensure!(answer.text("seawall-stale-reason") == "breaker-open", "the reason is not the breaker");

    stage.tell("Something that was never read: nothing to serve, so a 503 in Flexport's own envelope.");
    let answer = stage.show(Method::GET, "/shipments?page=999999", None).await?;
    answer.expect(StatusCode::SERVICE_UNAVAILABLE, "seawall")?;
    ensure!(answer.json()?["error"]["code"] == "seawall_breaker_open", "not our own refusal");

    stage.tell(
        "The way is open again, and the override is taken back. Seawall probes, and reads are fresh again.",
    );
    door.reopen().await?;
    stage.back_to_automatic().await?;
    stage.show_until(path, "upstream").await?.ok()?;
    output::data("\nThat was the read half of the story.");
    Ok(())
}

/// Forwards TCP to the upstream while it is open; shut, its port refuses connections.
struct Door {
    url: String,
    at: std::net::SocketAddr,
    host: String,
    port: u16,
    cancel: tokio_util::sync::CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

// === impl Door ===

impl Door {
    async fn open(upstream: &str) -> anyhow::Result<Self> {
        let uri: http::Uri = upstream.parse().context("--upstream is not a URL")?;
        ensure!(uri.scheme_str() == Some("http"), "--upstream takes an http:// URL here");
        let host = uri.host().context("--upstream has no host")?.trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(80);
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let at = listener.local_addr()?;
        let url = format!("http://{at}{}", uri.path().trim_end_matches('/'));
        let cancel = tokio_util::sync::CancellationToken::new();
        let task = tokio::spawn(forward(listener, host.clone(), port, cancel.clone()));
        Ok(Self { url, at, host, port, cancel, task })
    }

    /// Ends all connections and lets no new one in. When it returns, the port is closed.
    async fn shut(&mut self) {
        self.cancel.cancel();
        // It only ends; there is nothing to learn from how.
        let _ = (&mut self.task).await;
    }

    async fn reopen(&mut self) -> anyhow::Result<()> {
        let listener = tokio::net::TcpListener::bind(self.at).await?;
        self.cancel = tokio_util::sync::CancellationToken::new();
        self.task = tokio::spawn(forward(listener, self.host.clone(), self.port, self.cancel.clone()));
        Ok(())
    }
}

async fn forward(
    listener: tokio::net::TcpListener,
    host: String,
    port: u16,
    shut: tokio_util::sync::CancellationToken,
) {
    // Dropped at the end, and every connection with it.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let mut near = tokio::select! {
            () = shut.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((near, _)) => near,
                Err(_) => return,
            },
        };
        let host = host.clone();
        connections.spawn(async move {
            let Ok(mut far) = tokio::net::TcpStream::connect((host.as_str(), port)).await else { return };
            // However it ends, both sides are closed.
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        });
    }
}

// === impl Stage ===

impl Stage {
    /// In front of `upstream`, called with this API key, with these settings besides.
    async fn set(upstream: &str, key: &str, more: Vec<String>) -> anyhow::Result<Self> {
        let mut authorization = HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| {
            anyhow::anyhow!("{API_KEY_VARIABLE} has characters that no API key has, such as a line break")
        })?;
        authorization.set_sensitive(true);
        let folder = std::env::temp_dir().join(format!("seawall-demo-{}", crate::ids::WriteId::random()));
        let mut sets = vec![
            "server.listen=127.0.0.1:0".to_owned(),
            "admin.listen=127.0.0.1:0".to_owned(),
            format!("upstream.base_url={upstream}"),
            format!("data_dir={}", folder.join("data").display()),
            "telemetry.log=off".to_owned(),
            // A demo that waited as long as one should in earnest would bore.
            "breaker.open_wait=1s".to_owned(),
            "breaker.open_wait_max=2s".to_owned(),
            "probe.interval=1s".to_owned(),
            "queue.backoff=500ms".to_owned(),
        ];
        sets.extend(more);
        // The environment of the process is left out, and so is any `proxy.toml`: a configured Seawall next door must
        // not change the story.
        let nothing = folder.join("proxy.toml");
        std::fs::create_dir_all(&folder)
            .and_then(|()| std::fs::write(&nothing, ""))
            .with_context(|| format!("the folder {} cannot be made", folder.display()))?;
        let live = Live::load(LoadArgs::new(Some(nothing), sets, std::iter::empty()))?;
        let app = App::start(live).await?;
        Ok(Self {
            data: format!("http://{}", app.data),
            admin: format!("http://{}", app.admin),
            app,
            folder,
            http: Client::builder(TokioExecutor::new()).build_http(),
            authorization,
            step: 0,
        })
    }

    /// Takes everything down again.
    async fn strike(self) {
        self.app.stop().await;
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            output::say(&format!("{} could not be removed: {error}", self.folder.display()));
        }
    }

    fn tell(&mut self, text: &str) {
        self.step += 1;
        output::data(&format!("\n{}. {text}", self.step));
    }

    async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.send(Method::GET, &format!("{}{path}", self.data), None).await
    }

    /// Sends, shows the exchange.
    async fn show(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<Answer> {
        let shown = body.as_ref().map_or_else(String::new, |body| format!("  {body}"));
        output::data(&format!("  > {method} {path}{shown}"));
        let answer = self.send(method, &format!("{}{path}", self.data), body).await?;
        answer.print();
        Ok(answer)
    }

    /// Reads until the answer is fresh from the upstream again.
    async fn show_until(&self, path: &str, source: &str) -> anyhow::Result<Answer> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if self.get(path).await?.text("seawall-source") == source {
                return self.show(Method::GET, path, None).await;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        bail!("{path} was not answered by {source} again")
    }

    async fn admin(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<Answer> {
        output::data(&format!("  > {method} (admin) {path}"));
        let answer = self.send(method, &format!("{}{path}", self.admin), body).await?;
        answer.ok()?;
        let breaker = &answer.json()?["breakers"][0];
        output::data(&format!(
            "  < {} state={} override={}",
            answer.status, breaker["state"], breaker["override"]["mode"]
        ));
        Ok(answer)
    }

    async fn force_open(&self) -> anyhow::Result<Answer> {
        let order = json!({ "mode": "forced_open", "reason": "demo", "ttl": "10m", "actor": "demo" });
        self.admin(Method::PUT, OVERRIDE, Some(order)).await
    }

    async fn back_to_automatic(&self) -> anyhow::Result<Answer> {
        self.admin(Method::DELETE, OVERRIDE, Some(json!({ "reason": "demo over", "actor": "demo" }))).await
    }

    /// The ticket once Flexport's own answer is known.
    async fn until_settled(&self, id: &str) -> anyhow::Result<Value> {
        loop {
            let answer = self.get(&format!("/_seawall/writes/{id}?wait=10")).await?;
            let ticket = answer.ok()?.json()?["data"].clone();
            let state = ticket["state"].as_str().unwrap_or_default();
            if !matches!(state, "pending" | "waiting" | "sending") {
                return Ok(ticket);
            }
        }
    }

    async fn send(&self, method: Method, url: &str, body: Option<Value>) -> anyhow::Result<Answer> {
        let mut request = Request::builder().method(method).uri(url);
        if url.starts_with(&self.data) {
            request = request.header("authorization", self.authorization.clone());
        }
        let body = match body {
            Some(body) => {
                request = request.header("content-type", "application/json");
                Body::from(body.to_string())
            }
            None => Body::empty(),
        };
        let response = self.http.request(request.body(body)?).await?;
        let (parts, body) = response.into_parts();
        let body = Body::from(body).collect(16 << 20).await?.to_vec();
        Ok(Answer { status: parts.status, fields: parts.headers, body })
    }
}

// === impl Answer ===

impl Answer {
    fn text(&self, field: &str) -> &str {
        self.fields.get(field).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body).context("the answer is not JSON")
    }

    fn ok(&self) -> anyhow::Result<&Self> {
        ensure!(self.status.is_success(), "{}: {}", self.status, String::from_utf8_lossy(&self.body));
        Ok(self)
    }

    fn expect(&self, status: StatusCode, source: &str) -> anyhow::Result<()> {
        ensure!(
            self.status == status && self.text("seawall-source") == source,
            "expected {status} from {source}, got {} from {:?}",
            self.status,
            self.text("seawall-source")
        );
        Ok(())
    }

    fn ticket(&self) -> anyhow::Result<String> {
        self.expect(StatusCode::ACCEPTED, "queue")?;
        Ok(self.text("seawall-write-id").to_owned())
    }

    fn print(&self) {
        output::data(&format!("  < {}", self.status));
        for name in SHOWN {
            if let Some(value) = self.fields.get(*name) {
                output::data(&format!("  < {name}: {}", value.to_str().unwrap_or("?")));
            }
        }
        let text = String::from_utf8_lossy(&self.body);
        let start: String = text.chars().take(110).collect();
        let more = if text.chars().count() > 110 {
            format!("… ({} bytes)", self.body.len())
        } else {
            String::new()
        };
        output::data(&format!("    {start}{more}"));
    }
}
