//! Signed deliveries: on time, late, doubled, lost, and again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use aws_lc_rs::hmac;
use hyper::body::Incoming;
use hyper::service::service_fn;
use tokio::net::TcpListener;

use super::*;

const SECRET: &str = "top secret";

/// Somebody's webhook endpoint.
struct Receiver {
    url: String,
    got: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Receiver {
    /// Answers with the statuses, then with 200.
    async fn start(statuses: &[u16]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hooks", listener.local_addr().unwrap());
        let got = Arc::new(Mutex::new(Vec::new()));
        let statuses = Arc::new(Mutex::new(statuses.iter().copied().collect::<VecDeque<u16>>()));
        let seen = Arc::clone(&got);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (seen, statuses) = (Arc::clone(&seen), Arc::clone(&statuses));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (seen, statuses) = (Arc::clone(&seen), Arc::clone(&statuses));
                    async move {
                        let (parts, body) = request.into_parts();
                        let body = body.collect().await?.to_bytes();
                        seen.lock().unwrap().push((parts.headers, body));
                        let status = statuses.lock().unwrap().pop_front().unwrap_or(200);
                        let mut response = http::Response::new(Full::new(Bytes::new()));
                        *response.status_mut() = StatusCode::from_u16(status).unwrap();
                        Ok::<_, hyper::Error>(response)
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { url, got, task }
    }

    fn settings(&self, more: Value) -> Value {
        let mut settings = json!({"url": self.url, "secret": SECRET, "retry_ms": 1, "timeout_ms": 600_000});
        if let (Value::Object(settings), Value::Object(more)) = (&mut settings, more) {
            settings.extend(more);
        }
        settings
    }

    fn ids(&self) -> Vec<u64> {
        let got = self.got.lock().unwrap();
        got.iter()
            .map(|(_, body)| serde_json::from_slice::<Value>(body).unwrap()["id"].as_u64().unwrap())
            .collect()
    }

    async fn wait_for(&self, count: usize) -> Vec<u64> {
        until(|| self.got.lock().unwrap().len() >= count).await;
        self.ids()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn until(mut is_so: impl FnMut() -> bool) {
    timeout(PATIENCE, async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .expect("it comes about");
}

fn signature(algorithm: hmac::Algorithm, secret: &str, body: &[u8]) -> String {
    let tag = hmac::sign(&hmac::Key::new(algorithm, secret.as_bytes()), body);
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap();
    tag.as_ref().iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[tokio::test]
async fn an_event_is_delivered_signed_over_its_raw_bytes_and_listed_as_delivered() {
    let (simulator, receiver) = (start().await, Receiver::start(&[]).await);
    let set = control(&simulator, "PUT", "/_sim/webhooks", &receiver.settings(json!({}))).await;
    assert_eq!(set.status, StatusCode::OK);
    assert!(!String::from_utf8_lossy(&set.body).contains(SECRET), "the secret is never shown");
    post(&simulator, "POST", "/bookings", &json!({"name": "Mugs"})).await;
    let ids = receiver.wait_for(1).await;
    let (headers, body) = receiver.got.lock().unwrap()[0].clone();
    assert_eq!(headers["content-type"], "application/json");
    let sha256 = format!("sha256={}", signature(hmac::HMAC_SHA256, SECRET, &body));
    let sha1 = format!("sha1={}", signature(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, SECRET, &body));
    assert_eq!(headers["x-hub-signature-256"].to_str().unwrap(), sha256);
    assert_eq!(headers["x-hub-signature"].to_str().unwrap(), sha1);
    let event: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&event["_object"], &event["type"]), (&json!("/event"), &json!("/shipment#created")));
    assert_eq!(data(&simulator, &format!("/events/{}", ids[0])).await, event);
    until(|| simulator.webhooks()["counts"]["delivered"] == 1).await;
    assert_eq!(simulator.webhooks()["deliveries"][0]["status"], 200);
}

#[tokio::test]
async fn milestones_are_delivered_in_their_order() {
    let (simulator, receiver) = (start().await, Receiver::start(&[]).await);
    simulator.set_webhooks(receiver.settings(json!({"signatures": ["sha256"]}))).unwrap();
    simulator.advance(Duration::from_secs(3600 * (24 * 20)));
    let listed = data(&simulator, "/events?per=1").await["data"][0]["id"].as_u64().unwrap();
    until(|| receiver.ids().last() == Some(&listed)).await;
    let ids = receiver.ids();
    assert!(ids.len() > 20 && ids.is_sorted_by(|a, b| a < b));
    assert!(!receiver.got.lock().unwrap()[0].0.contains_key("x-hub-signature"));
}

#[tokio::test]
async fn anything_but_exactly_200_is_tried_again_as_often_as_set() {
    let (simulator, receiver) = (start().await, Receiver::start(&[500, 202, 204]).await);
    simulator.set_webhooks(receiver.settings(json!({"attempts": 4}))).unwrap();
    let ids = simulator.emit(json!({"type": "/shipment#created"})).unwrap();
    assert_eq!(receiver.wait_for(4).await, [ids[0]; 4]);
    until(|| simulator.webhooks()["counts"]["delivered"] == 1).await;
    drop(receiver);
    // Nobody listens: it gives up, and says so.
    simulator
        .set_webhooks(json!({"url": "http://127.0.0.1:9/", "secret": "s", "attempts": 2, "retry_ms": 1}))
        .unwrap();
    simulator.emit(json!({"type": "/shipment#created"})).unwrap();
    until(|| simulator.webhooks()["counts"]["failed"] == 1).await;
}

#[tokio::test]
async fn deliveries_can_be_late_doubled_lost_and_badly_signed() {
    let (simulator, receiver) = (start().await, Receiver::start(&[]).await);
    simulator.set_webhooks(receiver.settings(json!({"drop": 1}))).unwrap();
    let lost = simulator.emit(json!({"type": "/shipment_leg#departed"})).unwrap();
    assert_eq!(data(&simulator, &format!("/events/{}", lost[0])).await["id"], lost[0], "the list knows it");
    simulator.set_webhooks(receiver.settings(json!({"duplicate": 1}))).unwrap();
    let doubled = simulator.emit(json!({"type": "/shipment#created"})).unwrap();
    assert_eq!(receiver.wait_for(2).await, [doubled[0]; 2]);
    simulator
        .set_webhooks(receiver.settings(json!({"late": {"share": 1, "ms_min": 80, "ms_max": 120}})))
        .unwrap();
    let late = simulator.emit(json!({"type": "/shipment#created"})).unwrap();
    simulator.set_webhooks(receiver.settings(json!({"bad_signature": 1}))).unwrap();
    let bad = simulator.emit(json!({"type": "/shipment#created"})).unwrap();
    let ids = receiver.wait_for(4).await;
    assert!(ids.contains(&late[0]) && ids.contains(&bad[0]));
    let place = ids.iter().position(|id| *id == bad[0]).unwrap();
    let (headers, body) = receiver.got.lock().unwrap()[place].clone();
    let right = format!("sha256={}", signature(hmac::HMAC_SHA256, SECRET, &body));
    assert_ne!(headers["x-hub-signature-256"], right);
    let counts = simulator.webhooks()["counts"].clone();
    assert_eq!(
        (&counts["dropped"], &counts["duplicated"], &counts["late"]),
        (&json!(1), &json!(1), &json!(1))
    );
    // One by one, too; and once more by its id, as no call of the real API can.
    simulator.set_webhooks(receiver.settings(json!({}))).unwrap();
    simulator.emit(json!({"type": "/shipment#created", "drop": true})).unwrap();
    simulator.emit(json!({"type": "/shipment#created", "copies": 3, "delay_ms": 1})).unwrap();
    simulator.emit(json!({"event_id": lost[0]})).unwrap();
    let ids = receiver.wait_for(8).await;
    assert!(ids.contains(&lost[0]));
    assert_eq!(simulator.webhooks()["counts"]["dropped"], 2);
}

#[tokio::test]
async fn a_pause_keeps_or_drops_what_happens_meanwhile() {
    let (simulator, receiver) = (start().await, Receiver::start(&[]).await);
    simulator.set_webhooks(receiver.settings(json!({}))).unwrap();
    control(&simulator, "POST", "/_sim/webhooks/pause", &json!({"events": "drop"})).await;
    simulator.emit(json!({"type": "/shipment#created"})).unwrap();
    let paused = control(&simulator, "POST", "/_sim/webhooks/pause", &json!({})).await;
    assert_eq!(paused.json()["paused"], "keep");
    let emitted = json!({"type": "/shipment#created", "count": 3});
    let kept = control(&simulator, "POST", "/_sim/webhooks/emit", &emitted).await.json()["events"].clone();
    assert_eq!(simulator.webhooks()["held"], 3);
    assert!(receiver.ids().is_empty());
    let resumed =
        send(&simulator.control_url(), "POST", "/_sim/webhooks/resume", &[], "").await.unwrap().json();
    assert_eq!(resumed["released"], 3);
    assert_eq!(json!(receiver.wait_for(3).await), kept);
    let wrong = control(&simulator, "POST", "/_sim/webhooks/pause", &json!({"events": "lose"})).await;
    assert!(wrong.json()["error"].as_str().unwrap().starts_with("pause.events"));
}

#[tokio::test]
async fn a_wrong_emission_is_named() {
    let simulator = start().await;
    for (spec, name) in [
        (json!({}), "emit.type"),
        (json!({"type": "/nothing#happened"}), "emit.type"),
        (json!({"type": "/shipment#x", "shipment_id": 1}), "emit.shipment_id"),
        (json!({"type": "/shipment#x", "shipment_id": "1"}), "emit.shipment_id"),
        (json!({"type": "/shipment#x", "count": 0}), "emit.count"),
        (json!({"type": "/shipment#x", "copies": 0}), "emit.copies"),
        (json!({"type": "/shipment#x", "occurred_at": "now"}), "emit.occurred_at"),
        (json!({"type": "/shipment#x", "drop": "yes"}), "emit.drop"),
        (json!({"type": "/shipment#x", "typ": 1}), "emit.typ"),
        (json!({"event_id": 1}), "emit.event_id"),
    ] {
        let got = control(&simulator, "POST", "/_sim/webhooks/emit", &spec).await;
        assert_eq!(got.status, StatusCode::BAD_REQUEST, "{spec}");
        assert!(got.json()["error"].as_str().unwrap().starts_with(name), "{spec}: {}", got.json());
    }
}

#[tokio::test]
async fn an_emission_is_of_what_it_names() {
    let simulator = start().await;
    let invoice = data(&simulator, "/invoices?per=1").await["data"][0].clone();
    let shipment = &invoice["shipments"][0]["id"];
    let occurred = "2026-05-01T00:00:00Z";
    let spec = json!({"type": "/invoice#invoice_shared", "shipment_id": shipment, "occurred_at": occurred});
    let ids = simulator.emit(spec).unwrap();
    let event = data(&simulator, &format!("/events/{}", ids[0])).await;
    assert_eq!(
        (&event["occurred_at"], &event["data"]["shipment"]["id"]),
        (&json!("2026-05-01T00:00:00.000Z"), shipment)
    );
    assert_eq!(event["data"]["resource"]["_object"], "/invoice");
}
