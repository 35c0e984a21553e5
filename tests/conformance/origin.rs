//! The origin: for each case it answers what the step that is under way says, and remembers what it was asked.

use super::case::Message;
use super::wire::{self, Received};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub(crate) struct Origin {
    pub(crate) url: String,
    cases: Mutex<HashMap<String, State>>,
    /// How often it was asked at all.
    asked: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    plan: Option<Plan>,
    seen: Vec<Received>,
}

/// An answer, with all that was to be filled in.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) status: u16,
    pub(crate) message: Message,
    pub(crate) body: String,
}

// === impl Origin ===

impl Origin {
    pub(crate) async fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let origin = Arc::new(Self { url, cases: Mutex::default(), asked: watch::Sender::new(0) });
        let this = origin.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(this.clone().serve(stream));
            }
        });
        origin
    }

    /// What the case is answered from now on. `None`: it must not ask.
    pub(crate) fn plan(&self, case: &str, plan: Option<Plan>) {
        let mut cases = self.cases.lock().unwrap();
        let state = cases.entry(case.to_owned()).or_default();
        state.plan = plan;
        state.seen.clear();
    }

    /// What it was asked since.
    pub(crate) fn seen(&self, case: &str) -> Vec<Received> {
        self.cases.lock().unwrap().get(case).map(|state| state.seen.clone()).unwrap_or_default()
    }

    /// Waits until the case has asked.
    pub(crate) async fn was_asked(&self, case: &str, patience: Duration) -> bool {
        let mut asked = self.asked.subscribe();
        let was = async {
            while self.seen(case).is_empty() {
                asked.changed().await.unwrap();
            }
        };
        tokio::time::timeout(patience, was).await.is_ok()
    }

    async fn serve(self: Arc<Self>, mut stream: TcpStream) {
        let mut buffer = Vec::new();
        while let Some(request) = wire::request(&mut stream, &mut buffer).await {
            let path = request.start.split(' ').nth(1).unwrap_or_default();
            let case = path.trim_start_matches('/').split(['/', '?']).next().unwrap_or_default().to_owned();
            let is_head = request.start.starts_with("HEAD ");
            let plan = {
                let mut cases = self.cases.lock().unwrap();
                let state = cases.entry(case).or_default();
                state.seen.push(request);
                state.plan.clone()
            };
            self.asked.send_modify(|asked| *asked += 1);
            let plan = plan.unwrap_or_else(|| Plan {
                status: 599,
                message: Message::default(),
                body: "it must not ask".to_owned(),
            });
            if !plan.answer(&mut stream, is_head).await {
                return;
            }
        }
    }
}

// === impl Plan ===

impl Plan {
    /// Whether the connection goes on.
    async fn answer(&self, stream: &mut TcpStream, is_head: bool) -> bool {
        if let Some(seconds) = self.message.direction("delay") {
            tokio::time::sleep(Duration::from_secs_f64(seconds.parse().unwrap())).await;
        }
        if self.message.direction("drop").is_some() {
            return false;
        }
        let mut text = String::new();
        for (_, interim) in self.message.directions.iter().filter(|(name, _)| name == "interim") {
            let (status, field) = interim.split_once(' ').unwrap_or((interim, ""));
            text.push_str("HTTP/1.1 ");
            text.push_str(status);
            text.push_str(" Interim\r\n");
            if !field.is_empty() {
                text.push_str(field);
                text.push_str("\r\n");
            }
            text.push_str("\r\n");
        }
        text.push_str("HTTP/1.1 ");
        text.push_str(&self.status.to_string());
        text.push_str(" Planned\r\n");
        for (name, value) in &self.message.fields {
            text.push_str(name);
            text.push_str(": ");
            text.push_str(value);
            text.push_str("\r\n");
        }
        let has_no_body = is_head || matches!(self.status, 204 | 304);
        let is_chunked = self.message.direction("chunked").is_some();
        if is_chunked {
            text.push_str("Transfer-Encoding: chunked\r\n");
        } else if !self.message.has("content-length") && !matches!(self.status, 204 | 304) {
            text.push_str("Content-Length: ");
            text.push_str(&wire::bytes(&self.body).len().to_string());
            text.push_str("\r\n");
        }
        text.push_str("\r\n");
        let cut = self.message.direction("cut").map(|sent| sent.parse::<usize>().unwrap());
        let body = &self.body[..cut.unwrap_or(self.body.len())];
        if !has_no_body {
            if is_chunked {
                if !body.is_empty() {
                    write!(text, "{:x}\r\n{body}\r\n", wire::bytes(body).len()).unwrap();
                }
                if cut.is_none() {
                    text.push_str("0\r\n\r\n");
                }
            } else {
                text.push_str(body);
            }
        }
        stream.write_all(&wire::bytes(&text)).await.is_ok() && cut.is_none()
    }
}
