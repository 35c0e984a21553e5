//! Writes through the whole proxy: what is queued, what passes, what is a repeat, and what its caller sees of it.

use crate::assert_eventually;
use crate::support::scripted::{self, Scripted};
use crate::support::{Answer, Proxy, arrivals, booking, patch, simulator, writes};
use http::Method;
use seawall::sim::Simulator;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

const OTHER: (&str, &str) = ("authorization", "Bearer test-api-key-0002");

/// The path of one of the simulated shipments.
async fn shipment(proxy: &Proxy) -> String {
    let page = proxy.get("/shipments?per=1").await.json();
    format!("/shipments/{}", page["data"]["data"][0]["id"])
}

fn code(answer: &Answer) -> String {
    answer.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
}

/// The ticket, once its outcome is known.
async fn settled(proxy: &Proxy, id: &str) -> Value {
    let path = format!("/_seawall/writes/{id}?wait=20");
    assert_eventually!({
        let ticket = proxy.get(&path).await.json()["data"].clone();
        !["pending", "waiting", "sending"].iter().any(|state| ticket["state"] == *state)
    });
    proxy.ticket(id).await
}

/// The keys under which requests arrived.
fn keys(simulator: &Simulator) -> Vec<Value> {
    simulator
        .journal()
        .iter()
        .filter(|entry| entry["method"] != "GET")
        .map(|entry| entry["headers"]["idempotency-key"].clone())
        .collect()
}

async fn start(sets: &[&str]) -> (Simulator, Proxy) {
    let simulator = simulator().await;
    let proxy = Proxy::start(&simulator.url(), sets).await;
    (simulator, proxy)
}

// --- what is queued ---

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_doubtful_change_is_acknowledged_and_sent_again_under_the_same_key() {
    for fault in [
        json!([{"kind": "status", "status": 500, "match": {"method": "PATCH"}}]),
        json!([{"kind": "reset", "match": {"method": "PATCH"}}]),
        json!([{"kind": "apply_then_status", "status": 502, "match": {"method": "PATCH"}}]),
    ] {
        let (simulator, mut proxy) = start(&["queue.max_attempts=1000000"]).await;
        let path = shipment(&proxy).await;
        simulator.set_faults(fault.clone()).unwrap();
        let answer = proxy.send(Method::PATCH, &path, &[], &patch("a")).await;
        let id = answer.ticket();
        assert_eq!(answer.source(), "queue");
        assert!(!answer.field("retry-after").is_empty(), "{answer:?}");
        assert_eq!(answer.field("location"), format!("{}/_seawall/writes/{id}", proxy.url));
        let body = answer.json();
        assert_eq!(body["_object"], "/api/response");
        assert_eq!(body["data"]["_object"], "/seawall/write");
        assert_eq!(body["data"]["state"], "waiting", "{fault}: {body}");
        assert!(body["data"].get("id").is_none(), "nobody must take a ticket for a shipment");
        // No answer yet.
        let result = proxy.get(&format!("/_seawall/writes/{id}/result")).await;
        assert_eq!(
            (result.status.as_u16(), code(&result)),
            (409, "seawall_conflict".to_owned()),
            "{result:?}"
        );

        simulator.clear_faults();
        let ticket = settled(&proxy, &id).await;
        assert_eq!(ticket["state"], "done", "{ticket}");
        let result = proxy.get(&format!("/_seawall/writes/{id}/result")).await;
        assert_eq!(result.status, 200);
        assert_eq!(result.json()["data"]["metadata"], json!({"v": ["a"]}));
        let keys = keys(&simulator);
        assert!(keys.len() >= 2 && ticket["attempts"] == keys.len(), "{keys:?}, {ticket}");
        assert!(keys[0].is_string() && keys.iter().all(|key| *key == keys[0]), "{keys:?}");
        assert_eq!(keys[0], *answer.field("idempotency-key"), "and the caller knows it");
        assert!(proxy.stop().await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_is_limited_waits_as_long_as_flexport_asks() {
    let (simulator, mut proxy) = start(&[]).await;
    let path = shipment(&proxy).await;
    let limit = json!([{"kind": "status", "status": 429, "retry_after": 5, "match": {"method": "PATCH"}, "times": 1}]);
    simulator.set_faults(limit).unwrap();
    let started = tokio::time::Instant::now();
    let answer = proxy.send(Method::PATCH, &path, &[], &patch("a")).await;
    let id = answer.ticket();
    let wait: u64 = answer.field("retry-after").parse().unwrap();
    assert!(wait >= 2, "{answer:?}");
    let ticket = proxy.ticket(&id).await;
    assert_eq!(
        (&ticket["state"], &ticket["reason"]),
        (&json!("pending"), &json!("rate_limited")),
        "{ticket}"
    );
    assert_eq!(ticket["answer"], json!({"status": 429, "is_final": false}), "{ticket}");
    assert_eq!(settled(&proxy, &id).await["state"], "done");
    assert!(started.elapsed() >= Duration::from_millis(4900), "sent again after {:?}", started.elapsed());
    assert_eq!(arrivals(&simulator, "PATCH", &path), 2);
    assert!(proxy.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_flexports_passes_and_leaves_no_ticket() {
    let (simulator, mut proxy) = start(&[]).await;
    let path = shipment(&proxy).await;
    let body = json!({"data": null, "error": {"message": "no"}});
    simulator
        .set_faults(json!([{"kind": "status", "status": 422, "body": body, "match": {"method": "PATCH"}, "times": 1}]))
        .unwrap();
    let answer = proxy.send(Method::PATCH, &path, &[], &patch("a")).await;
    assert_eq!((answer.status.as_u16(), answer.source(), answer.json()), (422, "upstream", body));
    for (method, path, body, status) in [
        (Method::PATCH, path.as_str(), patch("b"), 200),
        (Method::PATCH, "/shipments/1", patch("b"), 404),
        (Method::PATCH, path.as_str(), r#"{"metadata":{"v":"not a list"}}"#.to_owned(), 400),
    ] {
        let answer = proxy.send(method, path, &[], &body).await;
        assert_eq!((answer.status.as_u16(), answer.source()), (status, "upstream"), "{answer:?}");
    }
    let all = proxy.admin(Method::GET, "/api/v1/writes", None).await.json();
    assert_eq!(all["writes"], json!([]));
    assert!(proxy.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_booking_in_doubt_is_unknown_even_when_a_gateway_says_to_come_back() {
    let (simulator, mut proxy) = start(&[]).await;
    simulator
        .set_faults(json!([{"kind": "status", "status": 503, "retry_after": 1, "match": {"method": "POST"}}]))
        .unwrap();
    let answer = proxy.send(Method::POST, "/bookings", &[], &booking("a")).await;
    assert_eq!(
        (answer.status.as_u16(), code(&answer)),
        (504, "seawall_outcome_unknown".to_owned()),
        "{answer:?}"
    );
    let ticket = proxy.ticket(answer.field("seawall-write-id")).await;
    assert_eq!((&ticket["state"], &ticket["answer"]["status"]), (&json!("unknown"), &json!(503)), "{ticket}");
    assert!(proxy.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_wants_no_queue_gets_an_error_and_overtakes_nobody() {
    let (simulator, mut proxy) = start(&[]).await;
    let path = shipment(&proxy).await;
    simulator.set_faults(json!([{"kind": "refuse"}])).unwrap();
    let never = [("seawall-queue", "never")];
    let answer = proxy.send(Method::PATCH, &path, &never, &patch("a")).await;
    assert!([502, 503].contains(&answer.status.as_u16()), "{answer:?}");
    assert_eq!(answer.source(), "seawall");
    let oldest = proxy.send(Method::PATCH, &path, &[], &patch("b")).await.ticket();
    let behind = proxy.send(Method::PATCH, &path, &[], &patch("c")).await;
    assert_eq!(behind.json()["data"]["ahead"], 1, "{behind:?}");
    let last = behind.ticket();
    let answer = proxy.send(Method::PATCH, &path, &never, &patch("d")).await;
    assert_eq!(
        (answer.status.as_u16(), code(&answer)),
        (409, "seawall_order_conflict".to_owned()),
        "{answer:?}"
    );
    assert_eq!(answer.field("location"), format!("{}/_seawall/writes/{oldest}", proxy.url));
    assert!(!answer.field("retry-after").is_empty(), "{answer:?}");
    simulator.clear_faults();
    assert_eq!(settled(&proxy, &last).await["state"], "done");
    let expected = [format!("PATCH {path} {}", patch("b")), format!("PATCH {path} {}", patch("c"))];
    assert_eq!(writes(&simulator), expected);
    assert_eq!(proxy.send(Method::PATCH, &path, &never, &patch("e")).await.status, 200);
    assert!(proxy.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_would_rather_wait_gets_the_answer_when_it_comes_in_time() {
    let (simulator, mut proxy) = start(&[]).await;
    let path = shipment(&proxy).await;
    simulator.set_faults(json!([{"kind": "refuse"}])).unwrap();
    let answer = proxy.send(Method::PATCH, &path, &[("prefer", "wait=1")], &patch("a")).await;
    assert_eq!((answer.status.as_u16(), answer.field("preference-applied")), (202, "wait=1"), "{answer:?}");
    let body = patch("b");
    let call = proxy.send(Method::PATCH, &path, &[("prefer", "respond-async, wait=60")], &body);
    let recovery = async {
        assert_eventually!(
            proxy.admin(Method::GET, "/api/v1/status", None).await.json()["queue"]["unsettled"] == 2
        );
        simulator.clear_faults();
    };
    let (answer, ()) = tokio::join!(call, recovery);
    assert_eq!((answer.status.as_u16(), answer.field("preference-applied")), (200, "wait=60"), "{answer:?}");
    assert_eq!(answer.json()["data"]["metadata"], json!({"v": ["b"]}));
    assert!(!answer.field("seawall-write-id").is_empty());
    assert!(proxy.stop().await);
}

// --- repeats ---

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_key_is_the_same_write() {
    let (simulator, mut proxy) = start(&[]).await;
    let key = [("idempotency-key", "order-77")];
    let first = proxy.send(Method::POST, "/bookings", &key, &booking("a")).await;
    assert_eq!((first.status.as_u16(), first.field("idempotency-key")), (200, "order-77"), "{first:?}");
    for same in ["order-77", "\"order-77\""] {
        let again = proxy.send(Method::POST, "/bookings", &[("idempotency-key", same)], &booking("a")).await;
        assert_eq!((again.status.as_u16(), again.field("idempotent-replayed")), (200, "true"), "{again:?}");
        assert_eq!(again.body, first.body);
    }
    let other = proxy.send(Method::POST, "/bookings", &key, &booking("b")).await;
    assert_eq!((other.status.as_u16(), code(&other)), (422, "seawall_key_reused".to_owned()), "{other:?}");
    assert_eq!(arrivals(&simulator, "POST", "/bookings"), 1);
    assert_eq!(keys(&simulator), ["order-77"]);
    // Another owner's key is another key.
    let other = proxy.send(Method::POST, "/bookings", &[key[0], OTHER], &booking("b")).await;
    assert_eq!((other.status.as_u16(), other.field("idempotent-replayed")), (200, ""), "{other:?}");
    // It outlives a restart.
    proxy.restart().await;
    let again = proxy.send(Method::POST, "/bookings", &key, &booking("a")).await;
    assert_eq!((again.status.as_u16(), again.field("idempotent-replayed")), (200, "true"), "{again:?}");
    assert_eq!(arrivals(&simulator, "POST", "/bookings"), 2);
    // And in an outage it is the ticket.
    simulator.set_faults(json!([{"kind": "refuse"}])).unwrap();
    let key = [("idempotency-key", "order-78")];
    let id = proxy.send(Method::POST, "/bookings", &key, &booking("c")).await.ticket();
    let again = proxy.send(Method::POST, "/bookings", &key, &booking("c")).await;
    assert_eq!((again.field("idempotent-replayed"), again.ticket()), ("true", id), "{again:?}");
    assert!(proxy.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_key_in_flight_is_a_conflict_and_an_equal_write_waits() {
    // Each write stays in flight until it is let go.
    let gate = Arc::new(Semaphore::new(0));
    let shut = gate.clone();
    let upstream = Scripted::start(move |arrived| {
        let gate = shut.clone();
        async move {
            if arrived.head.method == Method::POST {
                gate.acquire().await.unwrap().forget();
            }
            scripted::json(200, r#"{"data":{"id":"1"},"error":null}"#)
        }
    })
    .await;
    let mut proxy = Proxy::start(&upstream.url, &["upstream.timeout=120s"]).await;
    let posts = || upstream.arrived().iter().filter(|arrived| arrived.head.method == Method::POST).count();
    let key = [("idempotency-key", "one")];
    let body = booking("a");
    let first = proxy.send(Method::POST, "/bookings", &key, &body);
    let second = async {
        assert_eventually!(posts() == 1);
        let second = proxy.send(Method::POST, "/bookings", &key, &body).await;
        gate.add_permits(1);
        second
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!(first.status, 200, "{first:?}");
    assert_eq!(
        (second.status.as_u16(), code(&second)),
        (409, "seawall_key_in_flight".to_owned()),
        "{second:?}"
    );

    let body = booking("b");
    let first = proxy.send(Method::POST, "/bookings", &[], &body);
    let second = async {
        assert_eventually!(posts() == 2);
        proxy.send(Method::POST, "/bookings", &[], &body).await
    };
    let release = async {
        assert_eventually!(proxy.metric("seawall_requests_in_flight").await >= 2.0);
        gate.add_permits(1);
    };
    let (first, second, ()) = tokio::join!(first, second, release);
    assert_eq!((first.status.as_u16(), second.status.as_u16()), (200, 200), "{second:?}");
    assert_eq!(first.body, second.body);
    assert_eq!(second.field("idempotent-replayed"), "true", "{second:?}");
    assert_eq!(posts(), 2);
    assert!(proxy.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_equal_create_without_a_key_is_a_repeat_for_a_while_unless_it_says_otherwise() {
    let (simulator, mut proxy) = start(&["queue.duplicate_window=1h"]).await;
    let first = proxy.send(Method::POST, "/bookings", &[], &booking("a")).await;
    let again = proxy.send(Method::POST, "/bookings", &[], &booking("a")).await;
    assert_eq!(again.body, first.body);
    assert_eq!(again.field("idempotent-replayed"), "true", "{again:?}");
    assert!(!again.field("seawall-write-id").is_empty(), "{again:?}");
    assert_eq!(arrivals(&simulator, "POST", "/bookings"), 1);
    let meant = [("seawall-duplicate", "allow")];
    let second = proxy.send(Method::POST, "/bookings", &meant, &booking("a")).await;
    assert_ne!(second.json()["data"]["id"], first.json()["data"]["id"]);
    assert_eq!(arrivals(&simulator, "POST", "/bookings"), 2);
    // Another token, another body, another query: no repeat.
    proxy.send(Method::POST, "/bookings", &[OTHER], &booking("a")).await;
    proxy.send(Method::POST, "/bookings", &[], &booking("b")).await;
    assert_eq!(arrivals(&simulator, "POST", "/bookings"), 4);
    assert!(proxy.stop().await);

    // The window passes.
    let (simulator, mut proxy) = start(&["queue.duplicate_window=500ms"]).await;
    proxy.send(Method::POST, "/bookings", &[], &booking("b")).await;
    assert_eventually!({
        let answer = proxy.send(Method::POST, "/bookings", &[], &booking("b")).await;
        assert_eq!(answer.status, 200);
        answer.field("idempotent-replayed").is_empty()
    });
    assert_eq!(arrivals(&simulator, "POST", "/bookings"), 2);
    // While the first is not settled there is no end to it; a change of a shipment is never one.
    simulator.set_faults(json!([{"kind": "refuse"}])).unwrap();
    let id = proxy.send(Method::POST, "/bookings", &[], &booking("c")).await.ticket();
    assert_eq!(proxy.send(Method::POST, "/bookings", &[], &booking("c")).await.ticket(), id);
    assert_ne!(proxy.send(Method::POST, "/bookings", &meant, &booking("c")).await.ticket(), id);
    assert!(proxy.stop().await);
}

// --- tickets ---

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_is_its_owners_and_can_be_taken_back_until_it_is_sent() {
    let (simulator, mut proxy) = start(&[]).await;
    proxy.hold("bookings:write").await;
    let (gone, kept) = (booking("gone"), booking("kept"));
    let gone = proxy.send(Method::POST, "/bookings", &[], &gone).await.ticket();
    let kept = proxy.send(Method::POST, "/bookings", &[], &kept).await.ticket();
    let path = format!("/_seawall/writes/{gone}");
    for (method, path) in
        [(Method::GET, path.clone()), (Method::DELETE, path.clone()), (Method::GET, format!("{path}/result"))]
    {
        for stranger in [OTHER, ("authorization", "Bearer ")] {
            let answer = proxy.send(method.clone(), &path, &[stranger], "").await;
            assert_eq!(
                (answer.status.as_u16(), code(&answer)),
                (404, "seawall_not_found".to_owned()),
                "{answer:?}"
            );
        }
    }
    let ticket = proxy.ticket(&gone).await;
    assert_eq!((&ticket["state"], &ticket["attempts"]), (&json!("pending"), &json!(0)), "{ticket}");
    assert_eq!(ticket["links"]["self"], format!("{}{path}", proxy.url));
    let answer = proxy.send(Method::DELETE, &path, &[], "").await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["data"]["state"]),
        (200, &json!("cancelled")),
        "{answer:?}"
    );
    assert_eq!(proxy.send(Method::DELETE, &path, &[], "").await.status, 409);
    proxy.lift("bookings:write").await;
    assert_eq!(settled(&proxy, &kept).await["state"], "done");
    assert_eq!(writes(&simulator), [format!("POST /bookings {}", booking("kept"))]);
    assert_eq!(proxy.send(Method::DELETE, &format!("/_seawall/writes/{kept}"), &[], "").await.status, 409);
    assert_eq!(proxy.get(&format!("{path}/result")).await.status, 409, "there never was an answer");
    for odd in ["/_seawall/writes/7", "/_seawall/nothing", "/_seawall/writes"] {
        assert_eq!(proxy.get(odd).await.status, 404, "{odd}");
    }
    assert_eq!(proxy.get(&format!("{path}?wait=soon")).await.status, 400);
    assert!(proxy.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_see_how_it_stands_without_anybodys_secrets() {
    let (simulator, mut proxy) = start(&[]).await;
    let path = shipment(&proxy).await;
    assert_eq!(proxy.get(&path).await.status, 200);
    simulator.set_faults(json!([{"kind": "refuse"}])).unwrap();
    proxy.send(Method::PATCH, &path, &[], &patch("very private")).await.ticket();
    let wanted = json!({"mode": "forced_open", "reason": "INC-1 at Big Customer", "ttl": "10m"});
    let set = proxy.admin(Method::PUT, "/api/v1/breakers/invoices:read/override", Some(wanted)).await;
    assert_eq!(set.status, 200, "{set:?}");
    let status = proxy.get("/_seawall/status").await;
    assert_eq!((status.status.as_u16(), status.source()), (200, "seawall"));
    assert_eq!(status.field("cache-control"), "no-store");
    let text = String::from_utf8(status.body.to_vec()).unwrap();
    let data = status.json()["data"].clone();
    assert_eq!(data["queue"]["unsettled"], 1, "{data}");
    let breakers = data["breakers"].as_array().unwrap();
    let forced = breakers.iter().find(|breaker| breaker["scope"] == "invoices:read").unwrap();
    assert_eq!(forced["mode"], "forced_open");
    for secret in ["INC-1", "very private", "test-api-key", path.as_str()] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    // A read of what has unsettled writes says so.
    let read = proxy.get(&path).await;
    assert_eq!(read.source(), "stale", "{read:?}");
    assert!(read.field("seawall-pending-writes").starts_with("1; oldest="), "{read:?}");
    assert!(proxy.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_is_refused_with_its_field() {
    let (simulator, mut proxy) = start(&[]).await;
    for (name, value) in [
        ("Seawall-Queue-Max-Age", "soon"),
        ("Seawall-Queue-Max-Age", "0"),
        ("Seawall-Order-Key", " "),
        ("Seawall-Timeout", "soon"),
        ("Idempotency-Key", ""),
    ] {
        let answer = proxy.send(Method::POST, "/bookings", &[(name, value)], &booking("a")).await;
        assert_eq!(
            (answer.status.as_u16(), code(&answer)),
            (400, "seawall_bad_request".to_owned()),
            "{name}: {answer:?}"
        );
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains(name), "{answer:?}");
    }
    assert_eq!(writes(&simulator), Vec::<String>::new());
    assert!(proxy.stop().await);
}

// --- limits ---

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_long_to_wait_and_what_never_waits_passes_or_fails() {
    let simulator = simulator().await;
    let text = r#"
[[route]]
method = "POST"
path = "/bookings"
queue_max_body = "1KiB"

[[route]]
method = "PATCH"
path = "/shipments/:id"
queue = "never"
"#;
    let mut proxy = Proxy::configured(&simulator.url(), &[], text, |_| {}).await;
    let page = proxy.get("/shipments?per=1").await.json();
    let path = format!("/shipments/{}", page["data"]["data"][0]["id"]);
    let long = booking(&"x".repeat(5000));
    assert_eq!(proxy.send(Method::POST, "/bookings", &[], &long).await.status, 200);
    assert_eq!(proxy.send(Method::PATCH, &path, &[], &patch("a")).await.status, 200);
    let arrived = writes(&simulator);
    assert_eq!(arrived, [format!("POST /bookings {long}"), format!("PATCH {path} {}", patch("a"))]);

    simulator.set_faults(json!([{"kind": "refuse"}])).unwrap();
    let answer = proxy.send(Method::POST, "/bookings", &[], &long).await;
    assert!([502, 503].contains(&answer.status.as_u16()), "{answer:?}");
    let answer = proxy.send(Method::PATCH, &path, &[], &patch("b")).await;
    assert!([502, 503].contains(&answer.status.as_u16()), "{answer:?}");
    assert!(!answer.field("seawall-source").is_empty());
    proxy.send(Method::POST, "/bookings", &[], &booking("short")).await.ticket();
    assert_eq!(writes(&simulator), arrived);
    assert!(proxy.stop().await);
}

/// Root may write anywhere, so the disk is made too small instead of read-only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_disk_nothing_is_acknowledged_and_creates_say_so() {
    let (simulator, mut proxy) = start(&["store.min_free=1000000GiB"]).await;
    let path = shipment(&proxy).await;
    let answer = proxy.send(Method::POST, "/bookings", &[], &booking("live")).await;
    assert_eq!((answer.status.as_u16(), answer.field("seawall-durability")), (200, "none"), "{answer:?}");
    assert_eq!(proxy.send(Method::PATCH, &path, &[], &patch("live")).await.status, 200);
    simulator.set_faults(json!([{"kind": "refuse"}])).unwrap();
    for (method, path, body) in
        [(Method::PATCH, path.as_str(), patch("lost")), (Method::POST, "/bookings", booking("lost"))]
    {
        let answer = proxy.send(method, path, &[], &body).await;
        assert_eq!(
            (answer.status.as_u16(), code(&answer)),
            (507, "seawall_store_failed".to_owned()),
            "{answer:?}"
        );
    }
    let ready = proxy.admin(Method::GET, "/readyz", None).await;
    assert_eq!(ready.status, 503, "{ready:?}");
    assert_eq!(proxy.get(&path).await.source(), "stale", "out of the list that was read");
    let refused = proxy.send(Method::GET, "/shipments/1", &[], "").await;
    assert_eq!(refused.source(), "seawall", "never read, so nothing to serve");
    assert_eq!(proxy.get("/shipments?per=1").await.source(), "stale");
    simulator.clear_faults();
    assert_eventually!(proxy.get(&path).await.source() == "upstream");
    assert_eq!(writes(&simulator).len(), 2, "{:?}", writes(&simulator));
    proxy.stop().await;
}
