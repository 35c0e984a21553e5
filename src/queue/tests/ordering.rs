//! The order of writes.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_now_keeps_its_place_before_newer_ones() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let old = rig.patch("/shipments/1", "1", &[]).await.id();
    let seq = |rig: &Rig, id| rig.queue.with(|book| book.get(id).map(|entry| entry.record.seq));
    let placed = seq(&rig, old).unwrap();
    let store = rig.store.crash();
    store.make_unreadable(Tree::Rec, old.as_bytes());
    tokio::time::advance(Duration::from_millis(1)).await;
    let rig = Rig::on(store, rig.world.clone(), Settings::default(), rig.clock).await;
    assert_eq!(rig.state(old), Some(State::Dead));
    let new = rig.patch("/shipments/1", "2", &[]).await.id();
    // Places follow the wall clock over restarts, so they are above all that may lie there unread.
    assert!(seq(&rig, new).unwrap() > placed);
}

#[tokio::test(start_paused = true)]
async fn a_newer_write_is_not_overtaken_by_an_older_one_that_timed_out() {
    let rig = Rig::new().await;
    let gate = Arc::new(Notify::new());
    rig.world.next(Act::Fail(ProxyError::HeadTimeout));
    rig.world.next(Act::Hold(gate.clone()));
    let first = rig.start(rig.request(Method::PATCH, "/shipments/1", "old", &[]));
    let second = rig.start(rig.request(Method::PATCH, "/shipments/1", "new", &[]));
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    assert_eq!((first.status, second.status), (202, 202));
    assert_eq!(second.json()["data"]["ahead"], 1);
    gate.notify_one();
    rig.until(second.id(), State::Done).await;
    assert_eq!(rig.world.bodies(), ["old", "old", "new"]);
}

#[tokio::test(start_paused = true)]
async fn one_write_of_a_key_is_in_flight_and_other_keys_go_on() {
    let rig = Rig::new().await;
    let gate = Arc::new(Notify::new());
    rig.world.next(Act::Hold(gate.clone()));
    let first = rig.start(rig.request(Method::PATCH, "/shipments/1", "1", &[]));
    rig.settle().await;
    let second = rig.start(rig.request(Method::PATCH, "/shipments/1", "2", &[]));
    let third = rig.start(rig.request(Method::PATCH, "/shipments/1", "3", &[]));
    assert_eq!(rig.patch("/shipments/2", "other", &[]).await.status, 200);
    assert_eq!(rig.world.bodies(), ["1", "other"]);
    gate.notify_one();
    for caller in [first, second, third] {
        assert_eq!(caller.await.unwrap().status, 200);
    }
    assert_eq!(rig.world.bodies(), ["1", "other", "2", "3"]);
}

#[tokio::test(start_paused = true)]
async fn order_holds_over_records_restarts_and_live_writes() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    for number in 0..5 {
        assert_eq!(rig.patch("/shipments/1", &number.to_string(), &[]).await.status, 202);
    }
    let rig = rig.restart().await;
    rig.world.always(None);
    // Flexport is well again, but nothing overtakes what waits.
    let sent = rig.patch("/shipments/1", "5", &[]).await;
    assert_eq!(sent.status, 202);
    rig.until(sent.id(), State::Done).await;
    assert_eq!(rig.world.bodies(), ["0", "1", "2", "3", "4", "5"]);
    // And when all is settled, writes are live again.
    assert_eq!(rig.patch("/shipments/1", "6", &[]).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn what_must_not_be_queued_does_not_overtake_either() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let id = rig.patch("/shipments/1", "1", &[]).await.id();
    let never = rig.patch("/shipments/1", "2", &[("seawall-queue", "never")]).await;
    assert_eq!((never.status, never.id()), (409, id));
    assert!(matches!(never.error, Some(ProxyError::OrderConflict { .. })));
    let request = rig.request(Method::DELETE, "/x", "", &[("seawall-order-key", "shipments/1")]);
    let other = Sent::of(rig.send(request).await).await;
    assert_eq!((other.status, other.id()), (409, id));
    let alone = rig.patch("/shipments/2", "2", &[("seawall-queue", "never")]).await;
    assert!(matches!(alone.error, Some(ProxyError::BreakerOpen { .. })));
    assert_eq!(rig.queue.list(&Filter::default()).writes.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_line_item_blocks_its_booking_until_resolved() {
    let rig = Rig::new().await;
    rig.world.next(Act::Fail(ProxyError::HeadTimeout));
    let first = rig.post("/booking_line_items", r#"{"booking_id":5,"n":1}"#, &[]).await;
    assert_eq!(first.status, 504);
    let second = rig.post("/booking_line_items", r#"{"booking_id":5,"n":2}"#, &[]).await;
    assert_eq!((second.status, second.json()["data"]["order_key"].as_str()), (202, Some("bookings/5")));
    assert_eq!(rig.post("/booking_line_items", r#"{"booking_id":6,"n":1}"#, &[]).await.status, 200);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(rig.state(second.id()), Some(State::Pending));
    assert!(rig.queue.get(second.id()).await.unwrap().is_blocked);
    let id = first.id();
    rig.queue.resolve(id, Verdict::NotApplied, None, "ann", "looked it up").await.unwrap();
    rig.until(second.id(), State::Done).await;
    let bodies = rig.world.bodies();
    assert_eq!(bodies[2..], [r#"{"booking_id":5,"n":1}"#, r#"{"booking_id":5,"n":2}"#]);
    let ticket = rig.queue.get(id).await.unwrap();
    assert_eq!(ticket.state, State::Done);
    assert!(ticket.history.iter().any(|row| row.actor == "ann" && row.to == State::Pending));
    // Equal line items are legitimate.
    assert_eq!(rig.post("/booking_line_items", r#"{"booking_id":6,"n":1}"#, &[]).await.status, 200);
    assert_eq!(rig.world.bodies().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn what_is_too_long_for_a_record_does_not_overtake_its_order() {
    let rig = Rig::new().await;
    rig.world.next(Act::Refuse(open()));
    rig.world.always(Some(Act::Hold(Arc::new(Notify::new()))));
    let first = rig.post("/booking_line_items", r#"{"booking_id":5,"n":1}"#, &[]).await;
    assert_eq!(first.status, 202);
    // Its fields are too long: the parent is known.
    let long = "x".repeat(11 * 1024);
    let with = [("x-long", long.as_str())];
    let same = rig.post("/booking_line_items", r#"{"booking_id":5,"n":2}"#, &with).await;
    assert_eq!((same.status, same.id()), (409, first.id()));
    // Its body is too long: it may be the parent.
    let body = format!("{{\"x\":\"{}\"}}", "x".repeat(1 << 20));
    assert_eq!(rig.post("/booking_line_items", &body, &[]).await.status, 409);
    rig.world.always(None);
    rig.world.acts.lock().unwrap().clear();
    let other = rig.post("/booking_line_items", r#"{"booking_id":6,"n":2}"#, &with).await;
    assert_eq!((other.status, other.field("seawall-durability")), (200, Some("none")));
    let patch = rig.patch("/shipments/1", "{}", &with).await;
    assert_eq!((patch.status, patch.field("seawall-durability")), (200, None));
}

#[tokio::test(start_paused = true)]
async fn who_wants_no_ticket_gets_none_for_a_repeat() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let id = rig.post("/bookings", "{}", &[]).await.id();
    let never = rig.post("/bookings", "{}", &[("seawall-queue", "never")]).await;
    assert_eq!((never.status, never.id()), (409, id));
}
