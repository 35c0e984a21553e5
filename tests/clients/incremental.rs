//! A Python client in the manner of Airbyte's Flexport source (`fixtures/clients/incremental.py`) syncs through an
//! outage: it is told that there is one, is never given old data, and has missed nothing at the end.

use crate::npm::{PATIENCE, fixture, had};
use crate::process::Setup;
use crate::{Simulated, call};
use http::Method;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

const API_KEY: &str = "test-api-key-0001";
/// EX_TEMPFAIL: the client gave up for now.
const TRY_LATER: i32 = 75;

/// How a sync reads: shipments a page, and how long it tries.
struct Client {
    base: String,
    state: PathBuf,
}

/// One run of it.
struct Run {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    told: Vec<Value>,
}

/// A run that has ended.
struct Ended {
    code: Option<i32>,
    told: Vec<Value>,
}

// === impl Client ===

impl Client {
    fn run(&self, attempts: u32, is_stepped: bool) -> Run {
        let mut process = Command::new("python3")
            .arg(fixture("clients/incremental.py"))
            .args([&self.base, API_KEY])
            .arg(&self.state)
            .args(["--per", "10", "--attempts", &attempts.to_string(), "--longest-wait", "0.2"])
            .args(is_stepped.then_some("--step"))
            .env("NO_PROXY", "127.0.0.1")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Run { process, lines, told: Vec::new() }
    }

    fn state(&self) -> Value {
        serde_json::from_slice(&std::fs::read(&self.state).unwrap()).unwrap()
    }
}

// === impl Run ===

impl Run {
    async fn next(&mut self) -> Option<&Value> {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await;
        let line =
            line.unwrap_or_else(|_| panic!("the client says nothing more: {:#?}", self.told)).unwrap()?;
        self.told.push(serde_json::from_str(&line).unwrap());
        self.told.last()
    }

    /// Reads on until it tells this.
    async fn until(&mut self, is_it: impl Fn(&Value) -> bool) {
        while !is_it(self.next().await.expect("it ended before")) {}
    }

    async fn go_on(&mut self) {
        self.process.stdin.as_mut().unwrap().write_all(b"\n").await.unwrap();
    }

    /// Lets it run to its end, without a stop.
    async fn end(mut self) -> Ended {
        drop(self.process.stdin.take());
        while self.next().await.is_some() {}
        let status = tokio::time::timeout(PATIENCE, self.process.wait()).await;
        Ended { code: status.expect("the client does not end").unwrap().code(), told: self.told }
    }
}

// === impl Ended ===

impl Ended {
    /// All statuses that it was answered.
    fn statuses(&self) -> Vec<u64> {
        self.told.iter().filter_map(|told| told["status"].as_u64()).collect()
    }

    /// It came to its end, with what was new.
    fn is_done(&self) -> &Self {
        assert_eq!(self.code, Some(0), "{:#?}", self.told);
        self.saw_nothing_old()
    }

    /// It gave up, after answers of these statuses and none else.
    fn gave_up(&self, pages: usize, statuses: &[u64]) -> &Self {
        assert_eq!(self.code, Some(TRY_LATER), "{:#?}", self.told);
        let told = self.statuses();
        assert!(told[..pages].iter().all(|status| *status == 200), "{told:?}");
        assert!(told.len() > pages, "{:#?}", self.told);
        assert!(told[pages..].iter().all(|status| statuses.contains(status)), "{:#?}", self.told);
        self.saw_nothing_old()
    }

    fn saw_nothing_old(&self) -> &Self {
        for answer in self.told.iter().filter(|told| told["status"] == 200) {
            assert_eq!(answer["source"], "upstream", "{answer}");
        }
        // What is only pushed away is told when to come again.
        for answer in self.told.iter().filter(|told| told["status"] == 503) {
            assert!(answer["retry_after"].is_string(), "{answer}");
        }
        self
    }
}

/// All shipments as Flexport has them, by id, with their `updated_at`.
async fn truth(flexport: &str) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for page in 1.. {
        let url = format!("{flexport}/shipments?per=100&page={page}");
        let told = call(Method::GET, &url, "").await.json();
        let shipments = told["data"]["data"].as_array().unwrap();
        all.extend(shipments.iter().map(|shipment| {
            (shipment["id"].to_string(), shipment["updated_at"].as_str().unwrap().to_owned())
        }));
        if shipments.len() < 100 {
            break;
        }
    }
    all
}

/// Changes a shipment, as somebody else does who works with Flexport itself.
async fn change(flexport: &str, id: &str) {
    let url = format!("{flexport}/shipments/{id}");
    let answer = call(Method::PATCH, &url, r#"{"metadata":{"note":["changed"]}}"#).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

async fn python() -> Option<()> {
    let version = Command::new("python3").arg("--version").output().await;
    had(version.map(|_| ()).map_err(|error| format!("python3 cannot be run: {error}")))
}

fn client(base: &str, folder: &Path) -> Client {
    Client { base: base.to_owned(), state: folder.join("state.json") }
}

#[tokio::test]
async fn an_incremental_sync_is_told_of_an_outage_and_misses_nothing() {
    let Some(()) = python().await else { return };
    let flexport = Simulated::start(57).await;
    let url = flexport.url.as_str();
    let seawall = Setup::new(url, &[]).start().await;
    let folder = TempDir::new().unwrap();
    let client = client(&seawall.url, folder.path());

    client.run(1000, false).end().await.is_done();
    let all = truth(url).await;
    assert_eq!(client.state()["shipments"], json!(all));
    assert_eq!(all.len(), 57);
    let ids: Vec<_> = all.keys().map(String::as_str).collect();
    for id in &ids[..25] {
        change(url, id).await;
    }
    let look = "/shipments?sort=updated_at&direction=asc&per=10";
    assert_eq!(seawall.get(look).await.status, 200);

    // An outage begins in the middle of a sync. Those change meanwhile that it has read, those that it would read
    // next, and those that it would not.
    let before = client.state();
    let mut run = client.run(4, true);
    run.until(|told| told["page"] == 1).await;
    let outage = r#"[{"kind":"status","status":503,"retry_after":1,"match":{"method":"GET"}}]"#;
    flexport.set_faults(outage).await;
    for id in [ids[0], ids[20], ids[40]] {
        change(url, id).await;
    }
    run.go_on().await;
    let ended = run.end().await;
    ended.gave_up(1, &[503]);
    assert_eq!(client.state(), before);

    // A sync that begins in it; and one that asks for what there is a copy of, as a retry does.
    client.run(2, false).end().await.gave_up(0, &[503]);
    let known = ended.told[0]["target"].as_str().unwrap();
    let as_it_asks = [("accept", "application/json")];
    let answer = seawall.send(Method::GET, known, &as_it_asks, "").await;
    assert_eq!(answer.status, 503, "{known}: {answer:?}");
    let metrics = seawall.admin(Method::GET, "/metrics", None).await;
    let kept_back = "seawall_cache_stale_refused_total{result=\"incremental\"} 1\n";
    assert!(std::str::from_utf8(&metrics.body).unwrap().contains(kept_back), "there was no copy of {known}");
    // Who just looks at the same list is served.
    let answer = seawall.get(look).await;
    assert_eq!((answer.status.as_u16(), answer.field("seawall-source")), (200, "stale"), "{answer:?}");

    // Nothing listens any more. Before the breaker is open this is a 502.
    flexport.set_faults(r#"[{"kind":"refuse"}]"#).await;
    client.run(4, false).end().await.gave_up(0, &[502, 503]);
    assert_eq!(client.state(), before);

    // Flexport comes back while a sync tries; more changes while that reads.
    flexport.set_faults(outage).await;
    let mut run = client.run(1000, true);
    run.until(|told| told["status"] == 503).await;
    flexport.set_faults("[]").await;
    run.until(|told| told["page"] == 1).await;
    for id in [ids[1], ids[21], ids[41]] {
        change(url, id).await;
    }
    run.go_on().await;
    run.until(|told| told["moved"] == true).await;
    run.end().await.is_done();
    client.run(1000, false).end().await.is_done();

    let state = client.state();
    assert_eq!(state["shipments"], json!(truth(url).await));
    assert_ne!(state["shipments"], before["shipments"]);

    // Nothing was left to do, so nothing is done.
    let last = client.run(1000, false).end().await;
    assert_eq!(last.is_done().told.last().unwrap()["done"], 0, "{:#?}", last.told);
    seawall.stop().await;
}
