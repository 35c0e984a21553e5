//! Bookings whose outcome nobody can know: one arrival, a ticket that says so, and no second attempt, come what may.

use crate::process::{Server, Setup};
use crate::support::{arrivals, booking, patch, simulator};
use crate::{applied, assert_eventually, shipments, ticket_of};
use http::Method;
use rustix::process::Signal;
use seawall::sim::Simulator;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

const KEY: &[(&str, &str)] = &[("idempotency-key", "key-of-the-caller")];
const TIMES: [&str; 2] = ["upstream.timeout=2s", "upstream.connect_timeout=2s"];

/// The only booking that the queue knows.
async fn only_booking(server: &Server) -> Value {
    let all: Vec<Value> =
        server.writes().await.into_iter().filter(|write| write["route"] == "POST /bookings").collect();
    assert_eq!(all.len(), 1, "{all:#?}");
    all.into_iter().next().unwrap()
}

/// Others go through, live and from the queue, so that what would be sent again had its chance; then the booking has
/// arrived once.
async fn check_once(simulator: &Simulator, server: &Server, what: &str) {
    for scope in ["global", "bookings:write", "bookings:read"] {
        assert_eventually!(server.is_well(scope).await);
    }
    let path = format!("/shipments/{}", shipments(server).await[0]);
    let switch = "/api/v1/breakers/shipments:write/override";
    for round in ["one", "two", "three"] {
        let hold = json!({"mode": "forced_open", "reason": "a test"});
        assert_eq!(server.admin(Method::PUT, switch, Some(hold)).await.status, 200);
        let queued = server.send(Method::PATCH, &path, &[], &patch(round)).await.ticket();
        assert_eq!(server.admin(Method::DELETE, switch, None).await.status, 200);
        assert_eventually!(server.state(&queued).await == "done");
        let before = simulator.journal().len();
        server.get("/bookings").await;
        assert!(simulator.journal().len() > before);
    }
    assert_eq!(arrivals(simulator, "POST", "/bookings"), 1, "{what}");
    assert_eq!(only_booking(server).await["state"], "unknown", "{what}");
}

/// `killed_after`: the caller had its 504. `first`, `again`: the key of the request and of its repeat, or none.
async fn hang(killed_after: bool, first: &[(&str, &str)], again: &[(&str, &str)]) {
    let what = format!("killed after the answer: {killed_after}, key {first:?}, repeated with {again:?}");
    let simulator = simulator().await;
    let setup = Setup::new(&simulator.url(), &TIMES);
    let server = setup.start().await;
    simulator.set_faults(json!([{"kind": "apply_then_hang", "match": {"method": "POST"}}])).unwrap();
    let body = booking("once");
    let mut ticket = None;
    if killed_after {
        let answer = server.send(Method::POST, "/bookings", first, &body).await;
        assert_eq!(answer.status, 504, "{what}: {answer:?}");
        assert_eq!(answer.json()["error"]["code"], "seawall_outcome_unknown", "{what}");
        ticket = Some(ticket_of(&answer));
        assert!(answer.field("location").ends_with(&format!("/_seawall/writes/{}", ticket_of(&answer))));
        // The repeat before the crash.
        let repeat = server.send(Method::POST, "/bookings", again, &body).await;
        assert_eq!(repeat.status, 504, "{what}: {repeat:?}");
        assert_eq!(Some(ticket_of(&repeat)), ticket, "{what}");
        server.kill();
    } else {
        let call = server.try_send(Method::POST, "/bookings", first, &body);
        let arrived = async { assert_eventually!(arrivals(&simulator, "POST", "/bookings") == 1) };
        tokio::select! {
            answer = call => panic!("{what}: answered before the kill: {answer:?}"),
            () = arrived => {}
        }
        server.kill();
    }

    let server = setup.start().await;
    let known = only_booking(&server).await;
    assert_eq!(known["state"], "unknown", "{what}: {known}");
    let id = known["write_id"].as_str().unwrap().to_owned();
    assert!(ticket.is_none_or(|ticket| ticket == id), "{what}");
    simulator.clear_faults();
    for _ in 0..2 {
        let repeat = server.send(Method::POST, "/bookings", again, &body).await;
        assert_eq!(repeat.status, 504, "{what}: {repeat:?}");
        assert_eq!(ticket_of(&repeat), id, "{what}");
    }
    check_once(&simulator, &server, &what).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_before_the_answer_repeated_with_the_same_key() {
    hang(false, KEY, KEY).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_before_the_answer_repeated_without_any_key() {
    hang(false, &[], &[]).await;
    hang(false, KEY, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_after_the_answer_repeated_with_the_same_key() {
    hang(true, KEY, KEY).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_after_the_answer_repeated_without_any_key() {
    hang(true, &[], &[]).await;
    hang(true, KEY, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_term_in_the_middle_of_a_booking_answers_504_and_the_ticket_says_unknown() {
    let simulator = simulator().await;
    let setup = Setup::new(&simulator.url(), &["server.drain.grace=700ms"]);
    let mut server = setup.start().await;
    simulator.set_faults(json!([{"kind": "hang", "match": {"method": "POST"}}])).unwrap();
    let body = booking("cut by the end");
    let call = server.send(Method::POST, "/bookings", &[], &body);
    let term = async {
        assert_eventually!(arrivals(&simulator, "POST", "/bookings") == 1);
        server.signal(Signal::TERM);
    };
    let (answer, ()) = tokio::join!(call, term);
    assert_eq!(answer.status, 504, "{answer:?}");
    assert_eq!(answer.json()["error"]["code"], "seawall_outcome_unknown");
    let id = ticket_of(&answer);
    assert_eq!(server.exit().await, Some(0), "{}", server.log());

    simulator.clear_faults();
    let server = setup.start().await;
    assert_eq!(server.state(&id).await, "unknown");
    check_once(&simulator, &server, "after SIGTERM").await;
    server.stop().await;
}

/// Sends a booking over a connection of its own, and leaves when `until` has come about.
async fn send_and_leave(server: &Server, body: &str, until: impl Future<Output = ()>) {
    let address = server.url.strip_prefix("http://").unwrap();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!(
        "POST /bookings HTTP/1.1\r\nhost: {address}\r\nauthorization: {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        crate::support::TOKEN,
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    until.await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_who_leaves_changes_nothing() {
    for (fault, state) in [
        (json!([{"kind": "latency", "ms": 300}]), "done"),
        (json!([{"kind": "apply_then_hang", "match": {"method": "POST"}}]), "unknown"),
        (json!([{"kind": "refuse"}]), "pending"),
    ] {
        let simulator = simulator().await;
        let setup = Setup::new(&simulator.url(), &TIMES);
        let server = setup.start().await;
        simulator.set_faults(fault.clone()).unwrap();
        let body = booking("from one who left");
        // Not before it was read: by Flexport, or where nothing gets there, by the queue.
        let is_refused = state == "pending";
        send_and_leave(&server, &body, async {
            assert_eventually!(if is_refused {
                !server.writes().await.is_empty()
            } else {
                arrivals(&simulator, "POST", "/bookings") == 1
            });
        })
        .await;
        // An answer of a live write is kept for its repeats, but is no ticket.
        let before = if state == "done" {
            assert_eventually!(applied(&simulator).len() == 1);
            None
        } else {
            assert_eventually!({
                let all = server.writes().await;
                all.len() == 1 && all[0]["state"] == state
            });
            Some(only_booking(&server).await)
        };
        simulator.clear_faults();
        if state == "pending" {
            assert_eventually!(only_booking(&server).await["state"] == "done");
        }
        assert_eq!(applied(&simulator), [format!("POST /bookings {body}")], "{fault}");
        assert_eq!(arrivals(&simulator, "POST", "/bookings"), 1, "{fault}");
        // Whoever comes back finds it.
        let repeat = server.send(Method::POST, "/bookings", &[], &body).await;
        assert_eq!(repeat.status, if state == "unknown" { 504 } else { 200 }, "{fault}: {repeat:?}");
        match before {
            Some(before) => assert_eq!(ticket_of(&repeat), before["write_id"].as_str().unwrap(), "{fault}"),
            None => assert!(server.writes().await.is_empty(), "{fault}"),
        }
        assert_eq!(arrivals(&simulator, "POST", "/bookings"), 1, "{fault}");
        server.stop().await;
    }
}
