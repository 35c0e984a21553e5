//! The disk fails.

use super::*;

#[tokio::test(start_paused = true)]
async fn without_a_durable_record_there_is_never_a_202() {
    let rig = Rig::new().await;
    rig.store.set_failed(true);
    rig.world.next(Act::Refuse(open()));
    rig.world.next(Act::Fail(ProxyError::HeadTimeout));
    let sent = rig.post("/bookings", "{}", &[]).await;
    assert_eq!(sent.status, 507);
    let sent = rig.patch("/shipments/1", "{}", &[]).await;
    assert_eq!(sent.status, 507);
    assert!(rig.queue.list(&Filter::default()).writes.is_empty());
    // What is live goes on, and says so.
    let sent = rig.post("/bookings", "{\"b\":1}", &[]).await;
    assert_eq!((sent.status, sent.field("seawall-durability")), (200, Some("none")));
    // A doubt is a doubt even then, and its twin is known.
    rig.world.next(Act::Fail(ProxyError::HeadTimeout));
    let doubt = rig.post("/bookings", "{\"c\":1}", &[]).await;
    assert_eq!(doubt.status, 504);
    assert_eq!(rig.post("/bookings", "{\"c\":1}", &[]).await.id(), doubt.id());
    let arrivals = rig.world.arrivals().len();
    rig.store.set_failed(false);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(rig.world.arrivals().len(), arrivals, "what was answered 507 is not sent later");
    let rig = rig.restart().await;
    assert_eq!(rig.state(doubt.id()), Some(State::Unknown), "it reached the disk when that was well again");
    assert_eq!(rig.world.arrivals().len(), arrivals);
}

#[tokio::test(start_paused = true)]
async fn a_repeat_is_told_of_no_ticket_that_is_not_on_disk() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    rig.store.hold();
    let with = [("idempotency-key", "k")];
    let first = rig.start(rig.request(Method::POST, "/bookings", "{}", &with));
    rig.settle().await;
    let twin = rig.start(rig.request(Method::POST, "/bookings", "{}", &[]));
    rig.settle().await;
    let same = rig.post("/bookings", "{}", &with).await;
    assert!(matches!(same.error, Some(ProxyError::KeyInFlight { .. })), "{same:?}");
    assert!(!twin.is_finished() && !first.is_finished());
    rig.store.release();
    let (first, twin) = (first.await.unwrap(), twin.await.unwrap());
    assert_eq!((first.status, twin.status), (202, 202));
    assert_eq!(first.id(), twin.id());
    // What could not be stored is no ticket of its twin's either.
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    rig.store.hold();
    let first = rig.start(rig.request(Method::POST, "/bookings", "{}", &[]));
    rig.settle().await;
    let twin = rig.start(rig.request(Method::POST, "/bookings", "{}", &[]));
    rig.settle().await;
    rig.store.fail_next(1);
    rig.store.release();
    assert_eq!(first.await.unwrap().status, 507);
    let twin = twin.await.unwrap();
    assert_eq!(twin.status, 202);
    assert_eq!(rig.state(twin.id()), Some(State::Pending));
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses() {
    let mut settings = Settings::default();
    settings.queue.max_records = 2;
    settings.queue.max_per_key = 1;
    let rig = Rig::with(settings).await;
    rig.world.always(Some(Act::Refuse(open())));
    assert_eq!(rig.patch("/shipments/1", "1", &[]).await.status, 202);
    let sent = rig.patch("/shipments/1", "2", &[]).await;
    assert!(matches!(sent.error, Some(ProxyError::QueueFull { .. })));
    assert_eq!(sent.status, 503);
    assert_eq!(rig.patch("/shipments/2", "1", &[]).await.status, 202);
    assert_eq!(rig.patch("/shipments/3", "1", &[]).await.status, 503);
}

#[tokio::test(start_paused = true)]
async fn a_replay_is_not_sent_while_its_sending_cannot_be_stored() {
    let rig = Rig::new().await;
    rig.world.next(Act::Refuse(open()));
    let id = rig.post("/bookings", "{}", &[]).await.id();
    rig.store.set_failed(true);
    rig.changes.send(1).unwrap();
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(rig.world.arrivals().is_empty());
    rig.store.set_failed(false);
    rig.until(id, State::Done).await;
    assert_eq!(rig.world.arrivals().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_order_waits_until_the_outcome_of_a_replay_is_on_disk() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let gate = Arc::new(Notify::new());
    let first = rig.patch("/shipments/1", "1", &[]).await.id();
    let second = rig.patch("/shipments/1", "2", &[]).await.id();
    rig.world.next(Act::Hold(gate.clone()));
    rig.world.always(None);
    rig.changes.send(1).unwrap();
    rig.eventually("the first is sent", || rig.world.arrivals().len() == 1).await;
    rig.store.set_failed(true);
    gate.notify_one();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(rig.world.bodies(), ["1"]);
    rig.store.set_failed(false);
    rig.until(second, State::Done).await;
    assert_eq!(rig.state(first), Some(State::Done));
    assert_eq!(rig.world.bodies(), ["1", "2"]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_body_is_dead_and_the_rest_goes_on() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let lost = rig.patch("/shipments/1", "1", &[]).await.id();
    let well = rig.patch("/shipments/1", "2", &[]).await.id();
    let mut key = lost.as_bytes().to_vec();
    key.extend_from_slice(&0u32.to_be_bytes());
    rig.store.make_unreadable(Tree::Body, &key);
    rig.world.always(None);
    rig.changes.send(1).unwrap();
    rig.until(well, State::Done).await;
    let ticket = rig.queue.get(lost).await.unwrap();
    assert_eq!((ticket.state, ticket.reason), (State::Dead, Some(record::Reason::Undecryptable)));
    assert_eq!(rig.world.bodies(), ["2"]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_for_long_holds_no_tasks_and_no_answers_in_memory() {
    let rig = Rig::new().await;
    rig.store.set_failed(true);
    for number in 0..20 {
        let sent = rig.post("/bookings", &format!("{{\"n\":{number}}}"), &[]).await;
        assert_eq!((sent.status, sent.field("seawall-durability")), (200, Some("none")));
    }
    rig.settle().await;
    assert!(rig.queue.writes.is_empty(), "no task waits for the store");
    // A repeat within a minute still finds its answer.
    let twin = rig.post("/bookings", "{\"n\":19}", &[]).await;
    assert_eq!((twin.status, twin.field("idempotent-replayed")), (200, Some("true")));
    assert_eq!(rig.queue.with(|book| book.iter().count()), 20);
    tokio::time::sleep(Duration::from_secs(70)).await;
    assert_eq!(rig.queue.with(|book| book.iter().count()), 0);
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_takes_what_settles_and_nothing_new() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let id = rig.post("/bookings", "{}", &[]).await.id();
    let other = rig.patch("/shipments/1", "{}", &[]).await.id();
    rig.store.set_full(true);
    assert_eq!(rig.patch("/shipments/2", "{}", &[]).await.status, 507);
    rig.queue.cancel(other, "ann", "not wanted").await.unwrap();
    rig.world.always(None);
    rig.changes.send(1).unwrap();
    rig.until(id, State::Done).await;
    let rig = rig.restart().await;
    assert_eq!((rig.state(id), rig.state(other)), (Some(State::Done), Some(State::Cancelled)));
}

#[tokio::test(start_paused = true)]
async fn a_step_that_the_store_did_not_answer_is_taken_when_it_does() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let id = rig.post("/bookings", "{}", &[]).await.id();
    rig.store.hold();
    let cancelled = rig.queue.cancel(id, "ann", "not wanted").await;
    assert!(matches!(cancelled, Err(ProxyError::StoreFailed(_))), "{cancelled:?}");
    rig.world.always(None);
    rig.changes.send(1).unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(rig.world.arrivals().is_empty(), "it may be cancelled on disk");
    rig.store.release();
    rig.until(id, State::Cancelled).await;
    let rig = rig.restart().await;
    assert_eq!(rig.state(id), Some(State::Cancelled));
    assert!(rig.world.arrivals().is_empty());
}

#[tokio::test(start_paused = true)]
async fn answers_of_live_writes_are_no_tickets() {
    let rig = Rig::new().await;
    rig.world.next(Act::Answer(422, &[], "no"));
    let with = [("idempotency-key", "k")];
    assert_eq!(rig.post("/bookings", "{}", &with).await.status, 422);
    assert_eq!(rig.post("/bookings", "{\"b\":1}", &[]).await.status, 200);
    rig.settle().await;
    assert!(rig.queue.list(&Filter::default()).writes.is_empty());
    assert!(rig.queue.stats().depth.values().all(|depth| *depth == 0));
    let id = rig.post("/bookings", "{}", &with).await.id();
    let refused = rig.queue.resolve(id, Verdict::NotApplied, None, "ann", "again").await;
    assert!(matches!(refused, Err(ProxyError::Conflict { .. })), "{refused:?}");
    assert!(rig.queue.retry(id, "ann", "again").await.is_err());
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(rig.world.arrivals().len(), 2);
}
