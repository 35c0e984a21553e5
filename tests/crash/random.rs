//! Kills at random instants, under load, with faults in between. CI: 10 rounds; `SEAWALL_SOAK=1`: 100.
//!
//! `SEAWALL_SEED=N` plays the kills and faults of a seed again; the machine's own timing stays free.

use crate::process::Setup;
use crate::support::{booking, client, patch, simulator, try_send};
use crate::{assert_eventually, shipments};
use http::Method;
use seawall::sim::Simulator;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

const CI_ROUNDS: usize = 10;
const SOAK_ROUNDS: usize = 100;

/// What a caller was told of one write.
#[derive(Debug, Clone)]
struct Told {
    body: String,
    /// The status; 0: the connection ended without an answer.
    status: u16,
    ticket: String,
    source: String,
}

/// Where the proxy is at present, and whether the callers go on.
#[derive(Clone)]
struct Callers {
    url: watch::Receiver<String>,
    is_over: Arc<AtomicBool>,
    told: Arc<Mutex<HashMap<String, Vec<Told>>>>,
}

// === impl Callers ===

impl Callers {
    async fn send(&mut self, method: Method, path: &str, key: Option<&str>, body: &str) -> Told {
        let url = self.url.borrow_and_update().clone();
        let fields: Vec<(&str, &str)> = key.map(|key| ("idempotency-key", key)).into_iter().collect();
        // A client of its own: a pool would hold connections to processes that are gone.
        let told = match try_send(&client(), method, &format!("{url}{path}"), &fields, body, true).await {
            Ok(answer) => Told {
                body: body.to_owned(),
                status: answer.status.as_u16(),
                ticket: answer.field("seawall-write-id").to_owned(),
                source: answer.source().to_owned(),
            },
            Err(_) => Told { body: body.to_owned(), status: 0, ticket: String::new(), source: String::new() },
        };
        self.told.lock().unwrap().entry(path.to_owned()).or_default().push(told.clone());
        if told.status == 0 {
            // Until the next process is there.
            let _ = tokio::time::timeout(Duration::from_millis(500), self.url.changed()).await;
        } else if told.status == 202 && fastrand::bool() {
            // Else everything would for ever stand behind the first that was queued.
            let path = format!("{url}/_seawall/writes/{}?wait=1", told.ticket);
            let _ = try_send(&client(), Method::GET, &path, &[], "", true).await;
        }
        told
    }

    /// How many answers they got so far, of this status or at all.
    fn answers(&self, status: Option<u16>) -> usize {
        let told = self.told.lock().unwrap();
        let counts = |told: &&Told| status.map_or(told.status != 0, |status| told.status == status);
        told.values().flatten().filter(counts).count()
    }

    /// New values for one shipment, one after the other.
    async fn patch(mut self, path: String) {
        let mut n = 0;
        while !self.is_over.load(Ordering::Relaxed) {
            n += 1;
            self.send(Method::PATCH, &path, None, &patch(&n.to_string())).await;
        }
    }

    /// Bookings, each repeated until there is an answer; every other one with a key.
    async fn book(mut self, caller: usize) {
        let mut n = 0;
        while !self.is_over.load(Ordering::Relaxed) {
            n += 1;
            let name = format!("{caller}-{n}");
            let key = (n % 2 == 0).then(|| format!("key-{name}"));
            while !self.is_over.load(Ordering::Relaxed) {
                let told = self.send(Method::POST, "/bookings", key.as_deref(), &booking(&name)).await;
                // 409: the first is still in flight, in a process whose caller has left.
                if told.status != 0 && told.status != 409 && told.status != 503 {
                    break;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_points_10_times_in_ci_and_100_times_in_a_soak() {
    let rounds = if std::env::var_os("SEAWALL_SOAK").is_some() { SOAK_ROUNDS } else { CI_ROUNDS };
    let seed = std::env::var("SEAWALL_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("SEAWALL_SEED={seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    let simulator = simulator().await;
    let setup = Setup::new(
        &simulator.url(),
        &[
            "upstream.timeout=1s",
            "upstream.connect_timeout=500ms",
            "telemetry.log=info",
            "telemetry.access_log=false",
        ],
    );
    let mut server = setup.start().await;
    let ids = shipments(&server).await;
    let url = watch::Sender::new(server.url.clone());
    let callers = Callers { url: url.subscribe(), is_over: Arc::default(), told: Arc::default() };
    let mut tasks = Vec::new();
    for id in &ids[..3] {
        tasks.push(tokio::spawn(callers.clone().patch(format!("/shipments/{id}"))));
    }
    for caller in 0..2 {
        tasks.push(tokio::spawn(callers.clone().book(caller)));
    }
    for round in 0..rounds {
        // Each once, so that there is every kind of load; then as it comes.
        let is_first = round < 7;
        let kind = if is_first { round } else { dice.usize(0..7) };
        let fault = match kind {
            0 => json!([{"kind": "refuse"}]),
            1 => json!([{"kind": "status", "status": 503, "share": 0.3}]),
            2 => json!([{"kind": "latency", "ms_min": 1, "ms_max": 60}]),
            3 => json!([{"kind": "apply_then_hang", "match": {"method": "PATCH"}, "share": 0.2}]),
            4 => json!([{"kind": "apply_then_hang", "match": {"method": "POST"}, "share": 0.3}]),
            _ => json!([]),
        };
        simulator.set_faults(fault).unwrap();
        // What a slow machine must have got through first, so that there is a load to be cut. Later kills may well come
        // into a recovery.
        let (all, live, queued) =
            (callers.answers(None), callers.answers(Some(200)), callers.answers(Some(202)));
        assert_eventually!(match kind {
            0 if is_first => callers.answers(Some(202)) > queued,
            2 | 5.. if is_first => callers.answers(Some(200)) > live,
            _ => !is_first || callers.answers(None) > all,
        });
        // This is the random instant of the kill, not a wait for anything.
        tokio::time::sleep(Duration::from_millis(dice.u64(20..900))).await;
        server.kill();
        server = setup.start().await;
        assert!(!server.log().contains("corrupt-"), "seed {seed}, round {round}: {}", server.log());
        url.send_replace(server.url.clone());
    }
    simulator.clear_faults();
    callers.is_over.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    let is_open =
        |write: &Value| ["sending", "pending", "waiting"].iter().any(|state| write["state"] == *state);
    assert_eventually!(!server.writes().await.iter().any(is_open));
    let known: HashMap<String, Value> = server
        .writes()
        .await
        .into_iter()
        .map(|write| (write["write_id"].as_str().unwrap().to_owned(), write))
        .collect();
    let told = callers.told.lock().unwrap().clone();
    let failures = check(&simulator, &told, &known);
    let count = |status: u16| told.values().flatten().filter(|told| told.status == status).count();
    println!("200: {}, 202: {}, 504: {}, cut: {}", count(200), count(202), count(504), count(0));
    assert!(
        failures.is_empty(),
        "SEAWALL_SEED={seed}, {} failures:\n{}",
        failures.len(),
        failures.join("\n")
    );
    assert!(count(200) >= 3 && count(202) > 0 && count(0) > 0, "SEAWALL_SEED={seed}: there was no load");
    server.stop().await;
}

fn check(
    simulator: &Simulator,
    told: &HashMap<String, Vec<Told>>,
    known: &HashMap<String, Value>,
) -> Vec<String> {
    let mut failures = Vec::new();
    let mut arrived: HashMap<(String, String), Vec<u64>> = HashMap::new();
    for entry in simulator.journal().iter().filter(|entry| entry["method"] != "GET") {
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        arrived.entry((text("path"), text("body"))).or_default().push(entry["seq"].as_u64().unwrap());
    }
    for ((path, body), seqs) in &arrived {
        if path == "/bookings" && seqs.len() > 1 {
            failures.push(format!("a booking arrived {} times: {body}", seqs.len()));
        }
    }
    for (path, told) in told {
        let mut last = (0, String::new());
        for told in told {
            let seqs = arrived.get(&(path.clone(), told.body.clone())).cloned().unwrap_or_default();
            let state = known.get(&told.ticket).and_then(|ticket| ticket["state"].as_str()).unwrap_or("lost");
            match told.status {
                200 if told.source == "upstream" && seqs.len() != 1 => {
                    failures
                        .push(format!("{path}: answered 200 live, arrived {} times: {told:?}", seqs.len()));
                }
                202 if !["done", "unknown"].contains(&state) => {
                    failures.push(format!("{path}: acknowledged, but the ticket is {state}: {told:?}"));
                }
                202 if state == "done" && seqs.is_empty() => {
                    failures.push(format!("{path}: done, but never arrived: {told:?}"));
                }
                504 if path == "/bookings" && state == "lost" => {
                    failures.push(format!("{path}: unknown, but its ticket is lost: {told:?}"));
                }
                0 | 200 | 202 | 409 | 503 | 504 => {}
                other => failures.push(format!("{path}: {other}: {told:?}")),
            }
            let is_acknowledged = matches!(told.status, 200 | 202);
            if path != "/bookings" && is_acknowledged {
                let at = seqs.iter().max().copied().unwrap_or(0);
                if at <= last.0 {
                    failures.push(format!(
                        "{path}: {} (at {at}) came before {} (at {})",
                        told.body, last.1, last.0
                    ));
                }
                last = (at, told.body.clone());
            }
        }
    }
    failures
}
