//! Flexport is well, or refuses before anything is sent; and what passes by.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_live_write_passes_with_its_key_and_leaves_a_stored_answer_for_what_creates() {
    let rig = Rig::new().await;
    let sent = rig.post("/bookings", "{\"a\":1}", &[]).await;
    assert_eq!(sent.status, 200);
    let key = sent.field("idempotency-key").unwrap().to_owned();
    assert!(key.starts_with("seawall-"));
    assert_eq!(rig.world.arrivals()[0].key, key);
    rig.settle().await;
    assert_eq!(*rig.world.settled.lock().unwrap(), ["/bookings"]);
    // The same key gets the same answer; nothing is sent.
    let again = rig.post("/bookings", "{\"a\":1}", &[("idempotency-key", &key)]).await;
    assert_eq!((again.status, again.field("idempotent-replayed")), (200, Some("true")));
    assert_eq!(again.body, sent.body);
    // Its twin too, for a minute.
    let twin = rig.post("/bookings", "{\"a\":1}", &[]).await;
    assert_eq!((twin.status, twin.field("idempotent-replayed")), (200, Some("true")));
    assert_eq!(rig.world.arrivals().len(), 1);
    let single = rig.post("/bookings", "{\"a\":1}", &[("seawall-duplicate", "allow")]).await;
    assert_eq!((single.status, single.field("idempotent-replayed")), (200, None));
    tokio::time::sleep(Duration::from_secs(61)).await;
    rig.post("/bookings", "{\"a\":1}", &[]).await;
    assert_eq!(rig.world.arrivals().len(), 3);
    // The stored answer survives a restart, byte for byte.
    let rig = rig.restart().await;
    let after = rig.post("/bookings", "{\"a\":1}", &[("idempotency-key", &key)]).await;
    assert_eq!((after.status, after.body), (200, sent.body));
    assert_eq!(rig.world.arrivals().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_live_replayable_write_leaves_nothing_behind() {
    let rig = Rig::new().await;
    assert_eq!(rig.patch("/shipments/1", "{}", &[]).await.status, 200);
    rig.settle().await;
    assert_eq!(rig.store.commits(), 0);
    assert!(rig.queue.list(&Filter::default()).writes.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_creates_is_on_disk_before_its_first_byte() {
    let rig = Rig::new().await;
    let gate = Arc::new(Notify::new());
    rig.world.next(Act::Hold(gate.clone()));
    rig.store.hold();
    let caller = rig.start(rig.request(Method::POST, "/bookings", "{}", &[]));
    rig.settle().await;
    assert!(rig.world.arrivals().is_empty(), "its intent is not synced yet");
    rig.store.release();
    rig.settle().await;
    assert_eq!(rig.world.arrivals().len(), 1);
    gate.notify_one();
    assert_eq!(caller.await.unwrap().status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_refused_write_is_stored_and_sent_once_when_flexport_is_well() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let sent = rig.post("/bookings", "{\"a\":1}", &[]).await;
    assert_eq!(sent.status, 202);
    let id = sent.id();
    assert_eq!(sent.field("location"), Some(&*format!("http://seawall/_seawall/writes/{id}")));
    assert_eq!(sent.field("seawall-source"), Some("queue"));
    assert!(sent.field("retry-after").is_some());
    let key = sent.field("idempotency-key").unwrap().to_owned();
    let json = sent.json();
    assert_eq!(json["_object"], "/api/response");
    assert_eq!(json["data"]["_object"], "/seawall/write");
    assert_eq!(json["data"]["state"], "pending");
    assert!(json["data"].get("id").is_none());
    // Its twin gets the same ticket.
    let twin = rig.post("/bookings", "{\"a\":1}", &[]).await;
    assert_eq!((twin.status, twin.id()), (202, id));
    assert!(rig.queue.pending(PARTITION, "/bookings").is_some_and(|pending| pending.count == 1));
    assert!(rig.queue.result(id, &rig.context(&Method::GET, "/", Credential::None).asked).await.is_err());
    // Refusals use no attempt, however long they last.
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(rig.world.arrivals().is_empty());
    assert_eq!(rig.queue.get(id).await.unwrap().attempts, 0);
    rig.world.always(None);
    rig.changes.send(1).unwrap();
    rig.until(id, State::Done).await;
    let arrivals = rig.world.arrivals();
    assert_eq!(arrivals.len(), 1);
    assert_eq!((arrivals[0].key.as_str(), arrivals[0].lane), (key.as_str(), Lane::Replay));
    assert_eq!(arrivals[0].body, "{\"a\":1}");
    let ticket = rig.queue.get(id).await.unwrap();
    assert_eq!((ticket.attempts, ticket.answer.unwrap().status), (1, 200));
    let steps: Vec<_> = ticket.history.iter().map(|row| row.what.as_str()).collect();
    assert_eq!(steps, ["accepted", "sent", "answered"]);
    assert!(rig.queue.pending(PARTITION, "/bookings").is_none());
    let asked = &rig.context(&Method::GET, "/", Credential::None).asked;
    let result = Sent::of(rig.queue.result(id, asked).await).await;
    assert_eq!((result.status, &*result.body), (200, &br#"{"data":{"id":"1"},"error":null}"#[..]));
}

#[tokio::test(start_paused = true)]
async fn a_pending_write_survives_a_restart_and_goes_out_once() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let body = format!("{{\"a\":\"{}\"}}", "x".repeat(100_000));
    let id = rig.post("/bookings", &body, &[]).await.id();
    let rig = rig.restart().await;
    assert_eq!(rig.state(id), Some(State::Pending));
    rig.world.always(None);
    rig.changes.send(1).unwrap();
    rig.until(id, State::Done).await;
    assert_eq!(rig.world.bodies(), [body]);
    let rig = rig.restart().await;
    rig.settle().await;
    assert_eq!(rig.state(id), Some(State::Done));
    assert_eq!(rig.world.arrivals().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn prefer_wait_gets_the_answer_of_the_replay() {
    let rig = Rig::new().await;
    rig.world.next(Act::Refuse(ProxyError::Overloaded { what: "slots" }));
    let sent = rig.post("/bookings", "{}", &[("prefer", "wait=30")]).await;
    assert_eq!((sent.status, sent.field("preference-applied")), (200, Some("wait=30")));
    rig.world.always(Some(Act::Refuse(open())));
    let sent = rig.post("/bookings", "{\"b\":1}", &[("prefer", "wait=5")]).await;
    assert_eq!((sent.status, sent.field("preference-applied")), (202, Some("wait=5")));
}

#[tokio::test(start_paused = true)]
async fn reads_and_unqueued_routes_pass() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    for (method, target) in
        [(Method::GET, "/bookings"), (Method::POST, "/oauth/token"), (Method::DELETE, "/x")]
    {
        let sent = Sent::of(rig.send(rig.request(method, target, "{}", &[])).await).await;
        assert!(matches!(sent.error, Some(ProxyError::BreakerOpen { .. })));
    }
    rig.world.always(None);
    let sent = rig.post("/oauth/token", "{}", &[]).await;
    assert_eq!((sent.status, sent.field("idempotency-key")), (200, None));
    assert_eq!(rig.store.commits(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_above_the_cap_streams_through_and_is_not_queued() {
    let rig = Rig::new().await;
    let body = "x".repeat((1 << 20) + 1);
    assert_eq!(rig.post("/bookings", &body, &[]).await.status, 200);
    assert_eq!(rig.world.bodies()[0].len(), body.len());
    rig.world.next(Act::Refuse(open()));
    assert!(matches!(rig.post("/bookings", &body, &[]).await.error, Some(ProxyError::BreakerOpen { .. })));
    assert_eq!(rig.queue.free_buffer(), 256 << 20);
    assert_eq!(rig.post("/bookings", "{}", &[]).await.status, 200);
    rig.settle().await;
    assert_eq!(rig.queue.free_buffer(), 256 << 20, "room is given back");
}
