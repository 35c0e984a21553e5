//! Overrides and queued writes over `kill -9`.

use crate::process::Setup;
use crate::support::{arrivals, simulator, writes};
use crate::support::{booking, patch};
use crate::{applied, assert_eventually, shipments};
use http::Method;
use seawall::sim::Simulator;
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forced_open_breaker_survives_a_kill_and_probes_before_it_closes() {
    let simulator = simulator().await;
    // Without what is on disk the refusal shows after the restart.
    let setup = Setup::new(&simulator.url(), &["cache.disk=false"]);
    let server = setup.start().await;
    let path = format!("/shipments/{}", shipments(&server).await[0]);
    assert_eq!(server.get(&path).await.source(), "upstream");
    let wanted = json!({"mode": "forced_open", "reason": "test", "ttl": "10m", "actor": "me"});
    let set = server.admin(Method::PUT, "/api/v1/breakers/shipments:read/override", Some(wanted)).await;
    assert_eq!(set.status, 200, "{set:?}");
    let before = simulator.journal().len();
    for _ in 0..20 {
        let answer = server.get(&path).await;
        assert_eq!((answer.status.as_u16(), answer.source()), (200, "stale"), "{answer:?}");
    }
    server.kill();

    let server = setup.start().await;
    let status = server.breaker("shipments:read").await;
    assert_eq!(status["override"]["mode"], "forced_open", "{status}");
    assert_eq!(status["override"]["reason"], "test", "{status}");
    assert!(!status["override"]["until"].is_null(), "{status}");
    for _ in 0..20 {
        let answer = server.get(&path).await;
        // The copies were in memory: without one the refusal is ours.
        assert_eq!(answer.status, 503, "{answer:?}");
        assert_eq!(answer.json()["error"]["code"], "seawall_breaker_open");
        assert!(answer.field("seawall-breaker").contains("scope=shipments:read"), "{answer:?}");
    }
    assert_eq!(simulator.journal().len(), before, "traffic through a breaker that is forced open");

    let cleared = server.admin(Method::DELETE, "/api/v1/breakers/shipments:read/override", None).await;
    assert_eq!(cleared.status, 200, "{cleared:?}");
    assert_eq!(cleared.json()["breakers"][0]["state"], "half_open", "it must probe first: {cleared:?}");
    assert_eventually!(server.is_well("shipments:read").await);
    assert!(simulator.journal().len() > before, "closed without a probe");
    assert_eq!(server.get(&path).await.source(), "upstream");
    server.stop().await;
}

/// Ten changes of three shipments and two bookings; their tickets and the changes by shipment.
async fn write_in_outage(server: &crate::process::Server, ids: &[String]) -> (Vec<String>, Vec<Vec<String>>) {
    let mut tickets = Vec::new();
    let mut wanted = vec![Vec::new(); 3];
    for n in 0..10 {
        let (path, body) = (format!("/shipments/{}", ids[n % 3]), patch(&format!("n{n}")));
        tickets.push(server.send(Method::PATCH, &path, &[], &body).await.ticket());
        wanted[n % 3].push(format!("PATCH {path} {body}"));
    }
    for name in ["first", "second"] {
        tickets.push(server.send(Method::POST, "/bookings", &[], &booking(name)).await.ticket());
    }
    (tickets, wanted)
}

/// Each took effect once, and those of one shipment in their order.
fn check_effects(simulator: &Simulator, ids: &[String], wanted: &[Vec<String>]) {
    let all = applied(simulator);
    assert_eq!(all.len(), 12, "{all:#?}");
    for (id, wanted) in ids.iter().zip(wanted) {
        let of_it: Vec<&String> =
            all.iter().filter(|line| line.contains(&format!("/shipments/{id} "))).collect();
        assert_eq!(of_it, wanted.iter().collect::<Vec<_>>());
    }
    for name in ["first", "second"] {
        let line = format!("POST /bookings {}", booking(name));
        assert_eq!(all.iter().filter(|other| **other == line).count(), 1, "{all:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_of_an_outage_survive_a_kill_and_arrive_once_each_with_no_other_traffic() {
    let simulator = simulator().await;
    let setup = Setup::new(&simulator.url(), &[]);
    let server = setup.start().await;
    let ids = shipments(&server).await;
    simulator.set_faults(json!([{"kind": "refuse"}])).unwrap();
    let (tickets, wanted) = write_in_outage(&server, &ids).await;
    server.kill();

    let server = setup.start().await;
    for id in &tickets {
        let state = server.state(id).await;
        assert!(["pending", "waiting", "sending"].contains(&state.as_str()), "{id} is {state}");
    }
    // Long enough for replays that fail, and for a second crash in the middle of them.
    assert_eventually!({
        let all = server.admin(Method::GET, "/api/v1/breakers", None).await.json();
        let breakers = all["breakers"].as_array().unwrap();
        breakers
            .iter()
            .any(|breaker| breaker["window"]["failures"].as_u64() > Some(0) || breaker["state"] != "closed")
    });
    server.kill();
    let server = setup.start().await;
    assert_eq!(writes(&simulator), Vec::<String>::new());
    simulator.clear_faults();
    for id in &tickets {
        assert_eventually!(server.state(id).await == "done");
    }
    assert_eq!(writes(&simulator).len(), 12, "{:#?}", writes(&simulator));
    check_effects(&simulator, &ids, &wanted);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_while_flexport_answers_503_survive_a_kill_and_take_effect_once_each() {
    let simulator = simulator().await;
    // The breaker stays open for as long as the writes take.
    let slow = ["breaker.open_wait=1h", "breaker.open_wait_max=1h"];
    let setup = Setup::new(&simulator.url(), &slow);
    let server = setup.start().await;
    let ids = shipments(&server).await;
    simulator.set_faults(json!([{"kind": "status", "status": 503}])).unwrap();
    assert_eventually!({
        let answer = server.get("/bookings").await;
        assert_eq!(answer.status, 503, "{answer:?}");
        answer.field("seawall-breaker").contains("scope=") && answer.source() == "seawall"
    });
    let (tickets, wanted) = write_in_outage(&server, &ids).await;
    server.kill();

    // The outage goes on: what creates must not be tried on an upstream that nobody has seen well since the start.
    let setup = setup.set("breaker.open_wait=300ms").set("breaker.open_wait_max=600ms");
    let server = setup.start().await;
    for id in &tickets {
        let state = server.state(id).await;
        assert!(["pending", "waiting", "sending"].contains(&state.as_str()), "{id} is {state}");
    }
    // The replayer has found out that the outage goes on.
    assert_eventually!(arrivals(&simulator, "PATCH", &format!("/shipments/{}", ids[0])) > 1);
    for id in &tickets[10..] {
        assert_eq!(server.state(id).await, "pending", "{}", server.ticket(id).await);
    }
    simulator.clear_faults();
    for id in &tickets {
        assert_eventually!(server.state(id).await == "done");
    }
    check_effects(&simulator, &ids, &wanted);
    assert_eq!(arrivals(&simulator, "POST", "/bookings"), 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newer_of_two_live_changes_stands_when_the_first_times_out() {
    for fault in ["apply_then_hang", "hang"] {
        let simulator = simulator().await;
        let setup = Setup::new(&simulator.url(), &["upstream.timeout=3s"]);
        let server = setup.start().await;
        let path = format!("/shipments/{}", shipments(&server).await[0]);
        simulator.set_faults(json!([{"kind": fault, "match": {"method": "PATCH"}, "times": 1}])).unwrap();
        let (older, newer) = (patch("older"), patch("newer"));
        let first = server.send(Method::PATCH, &path, &[], &older);
        let second = async {
            assert_eventually!(arrivals(&simulator, "PATCH", &path) == 1);
            server.send(Method::PATCH, &path, &[], &newer).await
        };
        let (first, second) = tokio::join!(first, second);
        let (first, second) = (first.ticket(), second.ticket());
        for id in [&first, &second] {
            assert_eventually!(server.state(id).await == "done");
        }
        let now = server.get(&path).await.json();
        assert_eq!(now["data"]["metadata"], json!({"v": ["newer"]}), "{fault}: {:#?}", writes(&simulator));
        server.stop().await;
    }
}
