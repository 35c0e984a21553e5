//! What operators do, what owners see, and what time ends.

use super::*;

#[tokio::test(start_paused = true)]
async fn what_an_operator_has_sent_again_gets_its_time_anew() {
    let rig = Rig::new().await;
    rig.world.next(Act::Fail(ProxyError::HeadTimeout));
    let id = rig.post("/bookings", "{}", &[]).await.id();
    tokio::time::sleep(Duration::from_secs(80 * 3600)).await;
    rig.world.always(Some(Act::Refuse(open())));
    rig.queue.resolve(id, Verdict::NotApplied, None, "ann", "looked it up").await.unwrap();
    tokio::time::sleep(Duration::from_secs(71 * 3600)).await;
    assert_eq!(rig.state(id), Some(State::Pending));
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    assert_eq!(rig.state(id), Some(State::Expired));
    rig.queue.retry(id, "ann", "still wanted").await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    rig.world.always(None);
    rig.until(id, State::Done).await;
}

#[tokio::test(start_paused = true)]
async fn what_waits_too_long_expires() {
    let mut settings = Settings::default();
    settings.queue.dead_retention = Span(Duration::from_secs(80 * 3600));
    let rig = Rig::with(settings).await;
    rig.world.always(Some(Act::Refuse(open())));
    let short = rig.post("/bookings", "{\"a\":1}", &[("seawall-queue-max-age", "60")]).await.id();
    let long = rig.post("/bookings", "{\"a\":2}", &[]).await.id();
    tokio::time::sleep(Duration::from_secs(70)).await;
    assert_eq!(rig.state(short), Some(State::Expired));
    assert_eq!(rig.state(long), Some(State::Pending));
    tokio::time::sleep(Duration::from_secs(72 * 3600)).await;
    assert_eq!(rig.state(long), Some(State::Expired));
    assert!(!rig.queue.get(long).await.unwrap().maybe_applied);
    // Kept for its time, then forgotten, on disk too.
    tokio::time::sleep(Duration::from_secs(81 * 3600)).await;
    assert_eq!(rig.state(short), None);
    assert_eq!(rig.state(long), None);
    let rig = rig.restart().await;
    assert!(rig.queue.list(&Filter::default()).writes.is_empty());
    assert!(rig.world.arrivals().is_empty());
    let bad = rig.post("/bookings", "{}", &[("seawall-queue-max-age", "soon")]).await;
    assert_eq!(bad.status, 400);
}

#[tokio::test(start_paused = true)]
async fn what_was_not_sent_can_be_cancelled_and_held() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let id = rig.post("/bookings", "{\"a\":1}", &[]).await.id();
    let held = rig.post("/bookings", "{\"a\":2}", &[]).await.id();
    rig.queue.hold(held, "ann", "check first").await.unwrap();
    assert_eq!(rig.queue.cancel(id, "caller", "changed my mind").await.unwrap().state, State::Cancelled);
    assert!(matches!(
        rig.queue.cancel(id, "caller", "changed my mind").await,
        Err(ProxyError::Conflict { .. })
    ));
    rig.world.always(None);
    rig.changes.send(1).unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(rig.world.arrivals().is_empty());
    rig.queue.release(held, "ann", "fine").await.unwrap();
    rig.until(held, State::Done).await;
    assert_eq!(rig.world.bodies(), ["{\"a\":2}"]);
    let rig = rig.restart().await;
    assert_eq!(rig.state(id), Some(State::Cancelled));
}

#[tokio::test(start_paused = true)]
async fn only_the_owner_sees_a_ticket() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let id = rig.post("/bookings", "{}", &[]).await.id();
    let mut viewer = rig.context(&Method::GET, "/", Credential::Alias("main".into())).identity().clone();
    let ticket = rig.queue.ticket_json(id, &viewer).await.unwrap();
    assert_eq!(ticket["_object"], "/seawall/write");
    assert_eq!(ticket["state"], "pending");
    assert_eq!(ticket["history"][0]["what"], "accepted");
    assert!(!ticket.to_string().contains("Bearer"));
    viewer.owner = Some(OwnerId([8; 16]));
    viewer.partition = Some(PartitionId([8; 16]));
    assert!(matches!(rig.queue.ticket_json(id, &viewer).await, Err(ProxyError::NotFound(_))));
}
