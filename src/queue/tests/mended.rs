//! What a review found wrong.

use super::*;
use crate::clock::after;

const DAY: Duration = Duration::from_secs(24 * 3600);

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_forward_forgets_no_answer() {
    let rig = Rig::new().await;
    let with = [("idempotency-key", "k")];
    let first = rig.post("/bookings", "{}", &with).await;
    rig.settle().await;
    rig.queue.sweep(after(rig.clock.now(), 30 * DAY)).await;
    let again = rig.post("/bookings", "{}", &with).await;
    assert_eq!((again.status, again.field("idempotent-replayed")), (first.status, Some("true")));
    assert_eq!(rig.world.arrivals().len(), 1);
    // What is old in truth is forgotten.
    tokio::time::sleep(2 * DAY).await;
    rig.post("/bookings", "{}", &with).await;
    assert_eq!(rig.world.arrivals().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_no_record_keeps_its_order_when_its_caller_leaves() {
    let rig = Rig::new().await;
    let gate = Arc::new(Notify::new());
    rig.world.next(Act::Hold(gate.clone()));
    // It has no class, and waits behind others by the caller's wish alone.
    let with = [("seawall-order-key", "one")];
    let caller = rig.start(rig.request(Method::POST, "/oauth/token", "1", &with));
    rig.settle().await;
    assert_eq!(rig.world.bodies(), ["1"]);
    caller.abort();
    rig.settle().await;
    let behind = rig.start(rig.request(Method::POST, "/oauth/token", "2", &with));
    rig.settle().await;
    assert_eq!(rig.world.bodies(), ["1"], "the first may be taking effect");
    gate.notify_one();
    assert_eq!(behind.await.unwrap().status, 200);
    assert_eq!(rig.world.bodies(), ["1", "2"]);
}
