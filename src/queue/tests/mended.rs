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
