//! What could have lost a write or sent one twice.

use super::*;
use crate::clock::after;

const DAY: Duration = Duration::from_secs(24 * 3600);

#[tokio::test(start_paused = true)]
async fn a_bug_in_a_writes_own_task_forgets_nothing_that_may_have_been_sent() {
    let rig = Rig::new().await;
    let with = [("idempotency-key", "k")];
    rig.world.panic_once();
    let first = rig.post("/bookings", "{}", &with).await;
    assert_eq!(first.status, 504);
    let again = rig.post("/bookings", "{}", &with).await;
    assert_eq!((again.status, again.id()), (504, first.id()));
    assert_eq!(rig.post("/bookings", "{}", &[]).await.id(), first.id());
    assert_eq!(rig.world.arrivals().len(), 1);
    // What may be sent again is, in its order.
    rig.world.panic_once();
    let patch = rig.patch("/shipments/1", "1", &[]).await;
    assert_eq!(patch.status, 202);
    rig.until(patch.id(), State::Done).await;
    assert_eq!(rig.patch("/shipments/1", "2", &[]).await.status, 200);
    assert_eq!(rig.world.bodies(), ["{}", "1", "1", "2"]);
    let rig = rig.restart().await;
    assert_eq!(rig.state(first.id()), Some(State::Unknown));
}

#[tokio::test(start_paused = true)]
async fn what_was_answered_507_keeps_its_key_and_place_until_it_is_off_the_disk() {
    let rig = Rig::new().await;
    rig.world.next(Act::Refuse(open()));
    rig.world.next(Act::Refuse(open()));
    rig.store.hold();
    let with = [("idempotency-key", "k")];
    let booking = rig.start(rig.request(Method::POST, "/bookings", "{}", &with));
    let patch = rig.start(rig.request(Method::PATCH, "/shipments/1", "old", &[]));
    let (booking, patch) = (booking.await.unwrap(), patch.await.unwrap());
    assert_eq!((booking.status, patch.status), (507, 507));
    // The disk hangs still: the records may be there at the next start.
    assert!(rig.queue.list(&Filter::default()).writes.is_empty());
    let again = rig.post("/bookings", "{}", &with).await;
    assert_eq!(again.status, 409, "{again:?}");
    let newer = rig.start(rig.request(Method::PATCH, "/shipments/1", "new", &[]));
    rig.settle().await;
    assert!(rig.world.arrivals().is_empty(), "the older one may be sent after it");
    rig.store.release();
    assert!(matches!(newer.await.unwrap().status, 200 | 202));
    rig.eventually("the newer one", || rig.world.bodies() == ["new"]).await;
    assert_eq!(rig.post("/bookings", "{}", &with).await.status, 200, "now it is free");
    let rig = rig.restart().await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(rig.world.bodies(), ["new", "{}"]);
}

#[tokio::test(start_paused = true)]
async fn many_that_were_answered_507_are_taken_back_by_and_by() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    rig.store.set_failed(true);
    for number in 0..20 {
        let sent = rig.patch(&format!("/shipments/{number}"), "{}", &[]).await;
        assert_eq!(sent.status, 507);
    }
    assert_eq!(rig.queue.with(|book| book.iter().count()), 20);
    rig.store.set_failed(false);
    rig.eventually("all are forgotten", || rig.queue.with(|book| book.iter().count()) == 0).await;
    assert_eq!(rig.patch("/shipments/1", "{}", &[]).await.status, 202);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_far_ahead_at_a_start_gives_up_and_forgets_nothing_at_once() {
    let rig = Rig::new().await;
    let with = [("idempotency-key", "k")];
    assert_eq!(rig.post("/bookings", "{}", &with).await.status, 200);
    rig.world.always(Some(Act::Refuse(open())));
    let id = rig.patch("/shipments/1", "{}", &[]).await.id();
    rig.settle().await;
    let ahead = Clock::anchored(after(rig.clock.now(), 7 * DAY));
    let world = rig.world.clone();
    let rig = Rig::on(rig.store.crash(), world, Settings::default(), ahead).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(rig.state(id), Some(State::Pending));
    let again = rig.post("/bookings", "{}", &with).await;
    assert_eq!((again.status, again.field("idempotent-replayed")), (200, Some("true")));
    // Should it be right after all, what is old is given up a little later.
    rig.until(id, State::Expired).await;
}

#[tokio::test(start_paused = true)]
async fn a_redirect_is_not_remembered_under_a_key() {
    let rig = Rig::new().await;
    let with = [("idempotency-key", "k")];
    rig.world.next(Act::Answer(302, &[("location", "/maintenance")], ""));
    assert_eq!(rig.post("/bookings", "{}", &with).await.status, 302);
    assert_eq!(rig.post("/bookings", "{}", &with).await.status, 200);
    assert_eq!(rig.world.arrivals().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_live_200_with_a_server_error_inside_is_no_success() {
    const ERROR: Act = Act::Answer(200, &[], r#"{"data":null,"error":{"status":500}}"#);
    let rig = Rig::new().await;
    let with = [("idempotency-key", "k")];
    rig.world.next(ERROR);
    let first = rig.post("/bookings", "{}", &with).await;
    assert_eq!(first.status, 200, "the answer is passed on as it is");
    let id = first.id();
    assert_eq!(rig.state(id), Some(State::Unknown));
    let again = rig.post("/bookings", "{}", &with).await;
    assert_eq!((again.status, again.id()), (504, id));
    assert_eq!(rig.post("/bookings", "{}", &[]).await.id(), id);
    assert_eq!(rig.world.arrivals().len(), 1);
    let rig = rig.restart().await;
    assert_eq!(rig.state(id), Some(State::Unknown));
    // It can be sent: a person says so.
    rig.queue.resolve(id, Verdict::NotApplied, None, "ann", "looked it up").await.unwrap();
    rig.until(id, State::Done).await;
    let again = rig.post("/bookings", "{}", &with).await;
    assert_eq!((again.status, again.field("idempotent-replayed")), (200, Some("true")));
    // What may be sent again is sent again under its key.
    rig.world.next(ERROR);
    assert_eq!(rig.patch("/shipments/1", "{}", &with).await.status, 422, "the key is taken");
    let with = [("idempotency-key", "l")];
    assert_eq!(rig.patch("/shipments/1", "{}", &with).await.status, 200);
    let again = rig.patch("/shipments/1", "{}", &with).await;
    assert_eq!((again.status, again.field("idempotent-replayed")), (200, None));
}

#[tokio::test(start_paused = true)]
async fn an_order_does_not_go_on_where_an_outcome_cannot_be_stored_at_the_end() {
    let rig = Rig::new().await;
    rig.world.next(Act::Refuse(open()));
    let gate = Arc::new(Notify::new());
    let first = rig.patch("/shipments/1", "1", &[]).await.id();
    rig.world.next(Act::Hold(gate.clone()));
    rig.changes.send(1).unwrap();
    rig.eventually("it is sent", || rig.world.arrivals().len() == 1).await;
    rig.store.set_failed(true);
    gate.notify_one();
    rig.settle().await;
    rig.queue.finish().await;
    // It is `sending` on disk, and will be sent again at the next start: nothing may go in between.
    let newer = rig.patch("/shipments/1", "2", &[("seawall-queue", "never")]).await;
    assert_eq!((newer.status, newer.id()), (409, first));
    assert_eq!(rig.world.bodies(), ["1"]);
}
