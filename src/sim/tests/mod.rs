//! The simulator over real sockets.

mod api;
mod control;
mod docs;
mod faults;
mod shapes;
mod webhooks;
mod world;
mod writes;

use std::io::ErrorKind;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Options, Simulator};

/// No answer within this is a hang.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Got {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Got {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }
}

/// A small world, which is quickly made.
pub(super) async fn start() -> Simulator {
    start_with(20).await
}

pub(super) async fn start_with(shipments: usize) -> Simulator {
    Simulator::start(Options { shipments, ..Options::default() }).await.expect("the simulator starts")
}

pub(super) fn request(
    method: &str,
    base: &str,
    path: &str,
    extra: &[(&str, &str)],
    body: &str,
) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(format!("{base}{path}"));
    request = request.header("host", base.trim_start_matches("http://"));
    if !extra.iter().any(|(name, _)| *name == "authorization") {
        request = request.header("authorization", "Bearer key");
    }
    for (name, value) in extra {
        request = request.header(*name, *value);
    }
    request.body(Full::from(body.to_owned())).expect("a valid request")
}

pub(super) async fn send(
    base: &str,
    method: &str,
    path: &str,
    extra: &[(&str, &str)],
    body: &str,
) -> Result<Got, Box<dyn std::error::Error + Send + Sync>> {
    let mut request = request(method, base, path, extra, body);
    *request.uri_mut() = path.parse()?;
    let stream = TcpStream::connect(base.trim_start_matches("http://")).await?;
    let (mut sender, conn) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(conn);
    let answer = timeout(PATIENCE, async {
        let response = sender.send_request(request).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok::<_, hyper::Error>(Got { status: parts.status, headers: parts.headers, body })
    })
    .await?;
    driver.abort();
    Ok(answer?)
}

pub(super) async fn get(simulator: &Simulator, path: &str) -> Got {
    send(&simulator.url(), "GET", path, &[], "").await.expect("an answer")
}

pub(super) async fn data(simulator: &Simulator, path: &str) -> Value {
    let got = get(simulator, path).await;
    assert_eq!(got.status, StatusCode::OK, "{path}: {:?}", got.body);
    got.json()["data"].clone()
}

pub(super) async fn post(simulator: &Simulator, method: &str, path: &str, body: &Value) -> Got {
    send(&simulator.url(), method, path, &[], &body.to_string()).await.expect("an answer")
}

pub(super) async fn control(simulator: &Simulator, method: &str, path: &str, body: &Value) -> Got {
    send(&simulator.control_url(), method, path, &[], &body.to_string()).await.expect("an answer")
}

pub(super) fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<ErrorKind> {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return Some(error.kind());
        }
        at = error.source();
    }
    None
}
