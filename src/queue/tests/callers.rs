//! Callers that leave, and callers that come again.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_changes_nothing() {
    let rig = Rig::new().await;
    let gate = Arc::new(Notify::new());
    rig.world.next(Act::Hold(gate.clone()));
    let caller = rig.start(rig.request(Method::POST, "/bookings", "{}", &[("idempotency-key", "k")]));
    rig.settle().await;
    caller.abort();
    let busy = rig.post("/bookings", "{}", &[("idempotency-key", "k")]).await;
    assert!(matches!(busy.error, Some(ProxyError::KeyInFlight { .. })));
    gate.notify_one();
    rig.settle().await;
    let again = rig.post("/bookings", "{}", &[("idempotency-key", "k")]).await;
    assert_eq!((again.status, again.field("idempotent-replayed")), (200, Some("true")));
    assert_eq!(rig.world.arrivals().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_twin_waits_for_the_one_in_flight() {
    let rig = Rig::new().await;
    let gate = Arc::new(Notify::new());
    rig.world.next(Act::Hold(gate.clone()));
    let first = rig.start(rig.request(Method::POST, "/bookings", "{}", &[]));
    rig.settle().await;
    let twin = rig.start(rig.request(Method::POST, "/bookings", "{}", &[]));
    rig.settle().await;
    assert_eq!(rig.world.arrivals().len(), 1);
    gate.notify_one();
    let (first, twin) = (first.await.unwrap(), twin.await.unwrap());
    assert_eq!((first.status, twin.status, twin.field("idempotent-replayed")), (200, 200, Some("true")));
    assert_eq!(rig.world.arrivals().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_key_is_one_request() {
    let rig = Rig::new().await;
    let with = [("idempotency-key", "k")];
    assert_eq!(rig.patch("/shipments/1", "1", &with).await.status, 200);
    rig.settle().await;
    let same = rig.patch("/shipments/1", "1", &[("idempotency-key", "\"k\"")]).await;
    assert_eq!((same.status, same.field("idempotent-replayed")), (200, Some("true")));
    let other = rig.patch("/shipments/1", "2", &with).await;
    assert!(matches!(other.error, Some(ProxyError::KeyReused)));
    let bad = rig.patch("/shipments/1", "1", &[("idempotency-key", "")]).await;
    assert_eq!(bad.status, 400);
    assert_eq!(rig.world.arrivals().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn answers_that_say_not_now_are_not_remembered() {
    let rig = Rig::new().await;
    let with = [("idempotency-key", "k")];
    rig.world.next(Act::Answer(401, &[], ""));
    rig.world.next(Act::Answer(422, &[], "no"));
    assert_eq!(rig.post("/bookings", "{}", &with).await.status, 401);
    rig.settle().await;
    assert_eq!(rig.post("/bookings", "{}", &with).await.status, 422);
    rig.settle().await;
    let again = rig.post("/bookings", "{}", &with).await;
    assert_eq!((again.status, &*again.body), (422, &b"no"[..]));
    // Without a key, a rejected one may be sent again.
    assert_eq!(rig.post("/bookings", "{}", &[]).await.status, 200);
    assert_eq!(rig.world.arrivals().len(), 3);
    // Of the first nothing is left on disk.
    let rig = rig.restart().await;
    assert_eq!(rig.queue.with(|book| book.iter().count()), 2);
}

/// Found by `tests/turmoil`, seed 12.
#[tokio::test(start_paused = true)]
async fn a_caller_with_a_limit_of_its_own_is_answered_within_it_though_the_answer_stands_still() {
    let rig = Rig::new().await;
    let limit = Duration::from_secs(15);
    for (method, target, status) in [(Method::PATCH, "/shipments/1", 202), (Method::POST, "/bookings", 504)] {
        rig.world.next(Act::Stall);
        let mut request = rig.request(method, target, "{}", &[]);
        let mut context = request.extensions_mut().remove::<Arc<RequestContext>>().unwrap();
        Arc::get_mut(&mut context).unwrap().deadline = Instant::now() + limit;
        request.extensions_mut().insert(context);
        let began = Instant::now();
        let sent = Sent::of(rig.send(request).await).await;
        assert_eq!(sent.status, status, "{target}");
        assert!(began.elapsed() < limit + Duration::from_millis(100), "{target}: {:?}", began.elapsed());
    }
}
