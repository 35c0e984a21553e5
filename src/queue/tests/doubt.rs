//! What was perhaps applied.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_replayable_write_in_doubt_is_sent_again() {
    let rig = Rig::new().await;
    rig.world.next(Act::Fail(ProxyError::HeadTimeout));
    rig.world.next(Act::Answer(502, &[], ""));
    let sent = rig.patch("/shipments/1", "{\"v\":1}", &[]).await;
    assert_eq!((sent.status, sent.json()["data"]["state"].as_str()), (202, Some("waiting")));
    rig.until(sent.id(), State::Done).await;
    assert_eq!(rig.world.bodies(), ["{\"v\":1}"; 3]);
    let keys: std::collections::HashSet<_> = rig.world.arrivals().into_iter().map(|one| one.key).collect();
    assert_eq!(keys.len(), 1);
    assert!(rig.queue.cancel(sent.id(), "x", "y").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_create_in_doubt_is_unknown_and_its_twin_is_not_sent() {
    for act in [
        Act::Fail(ProxyError::HeadTimeout),
        Act::Answer(500, &[], ""),
        Act::Panic,
        Act::Answer(503, &[("retry-after", "1")], ""),
    ] {
        let rig = Rig::new().await;
        rig.world.next(act);
        let sent = rig.post("/bookings", "{}", &[]).await;
        assert_eq!(sent.status, 504);
        let id = sent.id();
        assert!(matches!(sent.error, Some(ProxyError::OutcomeUnknown { .. })));
        assert_eq!(rig.state(id), Some(State::Unknown));
        let twin = rig.post("/bookings", "{}", &[]).await;
        assert_eq!((twin.status, twin.id()), (504, id));
        let rig = rig.restart().await;
        assert_eq!(rig.state(id), Some(State::Unknown));
        assert_eq!(rig.post("/bookings", "{}", &[]).await.status, 504);
        tokio::time::sleep(Duration::from_secs(73 * 3600)).await;
        assert_eq!(rig.state(id), Some(State::Unknown), "it does not expire");
        assert_eq!(rig.world.arrivals().len(), 1);
        // Another booking is not held up.
        assert_eq!(rig.post("/bookings", "{\"b\":1}", &[]).await.status, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_while_sending_is_doubt() {
    let rig = Rig::new().await;
    rig.world.next(Act::Hold(Arc::new(Notify::new())));
    let caller = rig.start(rig.request(Method::POST, "/bookings", "{}", &[]));
    rig.settle().await;
    let store = rig.store.crash();
    let after = Rig::on(store, Arc::default(), Settings::default(), rig.clock).await;
    let writes = after.queue.list(&Filter::default()).writes;
    assert_eq!((writes.len(), writes[0].state), (1, State::Unknown));
    assert_eq!(after.post("/bookings", "{}", &[]).await.id(), writes[0].write_id);
    assert!(after.world.arrivals().is_empty());
    // It stays so over a further restart, and the trail tells it.
    let after = after.restart().await;
    let ticket = after.queue.get(writes[0].write_id).await.unwrap();
    assert_eq!(ticket.history.last().unwrap().what, "restart");
    caller.abort();
}

#[tokio::test(start_paused = true)]
async fn a_crash_while_replaying_sends_a_replayable_write_again_and_a_create_never() {
    for (method, target, expected) in
        [(Method::PATCH, "/shipments/1", State::Waiting), (Method::POST, "/bookings", State::Unknown)]
    {
        let rig = Rig::new().await;
        rig.world.next(Act::Refuse(open()));
        rig.world.always(Some(Act::Hold(Arc::new(Notify::new()))));
        let id = Sent::of(rig.send(rig.request(method, target, "{}", &[])).await).await.id();
        rig.eventually("it is being sent", || rig.world.arrivals().len() == 1).await;
        let world: Arc<World> = Arc::default();
        world.always(Some(Act::Refuse(open())));
        let after = Rig::on(rig.store.crash(), world, Settings::default(), rig.clock).await;
        assert_eq!(after.state(id), Some(expected));
        let ticket = after.queue.get(id).await.unwrap();
        assert_eq!((ticket.attempts, ticket.maybe_applied), (1, true));
        after.world.always(None);
        after.changes.send(1).unwrap();
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(after.world.arrivals().len(), usize::from(expected == State::Waiting));
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_from_a_store_that_came_back_older() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let booking = rig.post("/bookings", "{}", &[]).await.id();
    let patch = rig.patch("/shipments/1", "{}", &[]).await.id();
    let rig = Rig::open(rig.store.crash(), Arc::default(), Settings::default(), rig.clock, true).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(rig.world.arrivals().is_empty());
    assert_eq!((rig.state(booking), rig.state(patch)), (Some(State::Unknown), Some(State::Waiting)));
    assert!(rig.queue.get(patch).await.unwrap().is_held);
    rig.queue.release(patch, "ann", "nothing newer").await.unwrap();
    rig.until(patch, State::Done).await;
    assert_eq!(rig.world.arrivals().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_came_back_older_is_looked_at_until_that_is_stored() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let patch = rig.patch("/shipments/1", "{}", &[]).await.id();
    let store = rig.store.crash();
    let mut mark = crate::store::Batch::new();
    mark.put(Tree::Meta, crate::store::ROLLED_BACK, [1]);
    store.commit(mark).await.unwrap();
    store.set_failed(true);
    let rig = Rig::open(store, Arc::default(), Settings::default(), rig.clock, true).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(matches!(rig.queue.release(patch, "ann", "go").await, Err(ProxyError::Conflict { .. })));
    // The next start does not see it in the numbers, but in the mark.
    let rig = Rig::open(rig.store.crash(), Arc::default(), Settings::default(), rig.clock, false).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(rig.world.arrivals().is_empty());
    assert!(rig.queue.get(patch).await.unwrap().is_held);
    assert_eq!(rig.store.get(Tree::Meta, crate::store::ROLLED_BACK).unwrap(), None);
    rig.queue.release(patch, "ann", "nothing newer").await.unwrap();
    rig.until(patch, State::Done).await;
}
