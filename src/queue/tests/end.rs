//! The end of the process.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_write_that_comes_within_the_drains_grace_is_served() {
    let rig = Rig::new().await;
    let before = Instant::now();
    rig.queue.drain(before + Duration::from_secs(30)).await;
    assert!(before.elapsed() < Duration::from_secs(1), "nothing is in flight");
    assert_eq!(rig.post("/bookings", "{}", &[]).await.status, 200);
    rig.world.always(Some(Act::Hold(Arc::new(Notify::new()))));
    let late = rig.start(rig.request(Method::PATCH, "/shipments/1", "{}", &[]));
    rig.settle().await;
    rig.queue.finish().await;
    assert_eq!(late.await.unwrap().status, 202);
}

#[tokio::test(start_paused = true)]
async fn the_drain_makes_what_is_in_flight_durable() {
    let mut settings = Settings::default();
    settings.server.drain.grace = Span(Duration::from_secs(1));
    let rig = Rig::with(settings).await;
    rig.world.always(Some(Act::Hold(Arc::new(Notify::new()))));
    let patch = rig.start(rig.request(Method::PATCH, "/shipments/1", "{}", &[]));
    let booking = rig.start(rig.request(Method::POST, "/bookings", "{}", &[]));
    rig.settle().await;
    let behind = rig.start(rig.request(Method::PATCH, "/shipments/1", "2", &[]));
    rig.settle().await;
    rig.queue.drain(Instant::now() + Duration::from_secs(1)).await;
    let (patch, booking, behind) = (patch.await.unwrap(), booking.await.unwrap(), behind.await.unwrap());
    assert_eq!((patch.status, booking.status, behind.status), (202, 504, 202));
    assert!(booking.field("idempotency-key").is_some());
    let rig = rig.restart().await;
    rig.world.always(None);
    assert_eq!(rig.state(booking.id()), Some(State::Unknown));
    rig.until(behind.id(), State::Done).await;
    assert_eq!(rig.world.bodies()[2..], ["{}", "2"]);
    rig.tasks.stop(Duration::from_secs(1)).await;
}
