//! The replay.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_newer_token_that_is_refused_gives_way_to_the_records_own() {
    let rig = Rig::new().await;
    let post = |token: &'static str, body| {
        let passed = Credential::Passed(HeaderValue::from_static(token));
        rig.request_as(passed, Method::POST, "/bookings", body, &[])
    };
    rig.world.next(Act::Refuse(open()));
    let id = Sent::of(rig.send(post("Bearer mine", "{}")).await).await.id();
    // Another token of the same identity, which may do less.
    let partition = PARTITION;
    rig.queue.tokens.lock().unwrap().insert(partition, HeaderValue::from_static("Bearer other"));
    rig.world.next(Act::Answer(401, &[], ""));
    rig.changes.send(1).unwrap();
    rig.until(id, State::Done).await;
    let tokens: Vec<_> = rig.world.arrivals().into_iter().map(|one| one.token.unwrap()).collect();
    assert_eq!(tokens, ["Bearer other", "Bearer mine"]);
    assert!(rig.queue.stats().paused.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_429_pauses_the_credential_and_uses_no_attempt() {
    let rig = Rig::new().await;
    rig.world.next(Act::Answer(429, &[("retry-after", "60")], ""));
    rig.world.next(Act::Answer(429, &[("retry-after", "120")], ""));
    let id = rig.post("/bookings", "{}", &[]).await.id();
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(rig.world.arrivals().len(), 1);
    rig.eventually("the second", || rig.world.arrivals().len() == 2).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(rig.world.arrivals().len(), 2);
    assert_eq!(rig.queue.stats().paused[0].reason, "rate_limited");
    assert_eq!(rig.queue.get(id).await.unwrap().attempts, 0);
    rig.until(id, State::Done).await;
    assert_eq!(rig.world.arrivals().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_401_pauses_the_credential_until_the_secret_is_changed() {
    let rig = Rig::new().await;
    rig.world.next(Act::Refuse(open()));
    rig.world.always(Some(Act::Answer(401, &[], "")));
    let id = rig.post("/bookings", "{}", &[]).await.id();
    rig.changes.send(1).unwrap();
    rig.eventually("it was tried", || rig.world.arrivals().len() == 1).await;
    rig.settle().await;
    assert_eq!(rig.queue.stats().paused[0].reason, "unauthorized");
    assert_eq!(rig.state(id), Some(State::Pending));
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    assert_eq!(rig.state(id), Some(State::Pending), "nothing dies");
    let tried = rig.world.arrivals().len();
    assert!(tried > 100, "{tried}");
    rig.world.always(None);
    let next = snapshot(Settings::default(), 2);
    *rig.snapshot.lock().unwrap() = next;
    let before = rig.clock.now();
    rig.until(id, State::Done).await;
    assert!(crate::clock::since(rig.clock.now(), before) < Duration::from_secs(30));
    assert_eq!(rig.queue.get(id).await.unwrap().attempts, 1);
}

#[tokio::test(start_paused = true)]
async fn a_passed_credential_is_sealed_with_its_record_and_a_newer_one_replaces_it() {
    let rig = Rig::new().await;
    rig.world.next(Act::Refuse(open()));
    let passed = || Credential::Passed(HeaderValue::from_static("Bearer mine"));
    let id =
        Sent::of(rig.send(rig.request_as(passed(), Method::POST, "/bookings", "{}", &[])).await).await.id();
    let rig = rig.restart().await;
    rig.until(id, State::Done).await;
    assert_eq!(rig.world.arrivals()[0].token.as_deref(), Some("Bearer mine"));
    let mut settings = Settings::default();
    settings.queue.passthrough = crate::config::raw::PassthroughWrites::Refuse;
    let rig = Rig::with(settings).await;
    rig.world.next(Act::Refuse(open()));
    let sent = Sent::of(rig.send(rig.request_as(passed(), Method::POST, "/bookings", "{}", &[])).await).await;
    assert!(matches!(sent.error, Some(ProxyError::BreakerOpen { .. })));
    // Not even a create in doubt leaves the token on disk.
    rig.world.next(Act::Fail(ProxyError::HeadTimeout));
    let request = rig.request_as(passed(), Method::POST, "/bookings", "{\"b\":1}", &[]);
    let id = Sent::of(rig.send(request).await).await.id();
    rig.settle().await;
    let mut key = id.as_bytes().to_vec();
    key.extend_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(rig.store.get(Tree::Body, &key).unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn final_refusals_are_dead_and_keep_flexports_answer() {
    for (status, reason) in [
        (422, record::Reason::Rejected),
        (403, record::Reason::Forbidden),
        (302, record::Reason::Redirected),
        (501, record::Reason::Rejected),
    ] {
        let rig = Rig::new().await;
        // The credential is well.
        assert_eq!(rig.patch("/shipments/1", "{}", &[]).await.status, 200);
        rig.world.next(Act::Refuse(open()));
        rig.world.next(Act::Answer(status, &[("content-type", "text/plain")], "why"));
        let id = rig.post("/bookings", "{}", &[]).await.id();
        rig.until(id, State::Dead).await;
        let ticket = rig.queue.get(id).await.unwrap();
        assert_eq!(ticket.reason, Some(reason));
        let asked = &rig.context(&Method::GET, "/", Credential::None).asked;
        let result = Sent::of(rig.queue.result(id, asked).await).await;
        assert_eq!((result.status, &*result.body), (status, &b"why"[..]));
        rig.queue.retry(id, "ann", "fixed").await.unwrap();
        rig.until(id, State::Done).await;
        assert_eq!(rig.world.arrivals().len(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_403_of_a_credential_that_nothing_proves_pauses_its_group() {
    let rig = Rig::new().await;
    rig.world.next(Act::Refuse(open()));
    rig.world.always(Some(Act::Answer(403, &[], "")));
    let id = rig.post("/bookings", "{}", &[]).await.id();
    rig.changes.send(1).unwrap();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let ticket = rig.queue.get(id).await.unwrap();
    assert_eq!((ticket.state, ticket.attempts), (State::Pending, 0), "nothing dies");
    assert_eq!(rig.queue.stats().paused[0].reason, "forbidden");
    let tried = rig.world.arrivals().len();
    assert!((50..70).contains(&tried), "{tried}");
    rig.world.always(None);
    *rig.snapshot.lock().unwrap() = snapshot(Settings::default(), 2);
    let before = rig.clock.now();
    rig.until(id, State::Done).await;
    assert!(crate::clock::since(rig.clock.now(), before) < Duration::from_secs(30));
    assert!(rig.queue.stats().paused.is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_write_that_is_forbidden_does_not_hold_up_the_others() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let bad = rig.patch("/shipments/1", "bad", &[]).await.id();
    let good = rig.patch("/shipments/2", "good", &[]).await.id();
    for act in [Act::Answer(403, &[], ""), Act::Answer(200, &[], "{}"), Act::Answer(403, &[], "")] {
        rig.world.next(act);
    }
    rig.changes.send(1).unwrap();
    rig.until(bad, State::Dead).await;
    assert_eq!(rig.state(good), Some(State::Done));
    assert_eq!(rig.world.bodies(), ["bad", "good", "bad"]);
}

#[tokio::test(start_paused = true)]
async fn an_error_in_a_200s_envelope_is_no_success_in_a_replay() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let booking = rig.post("/bookings", "{}", &[]).await.id();
    let patch = rig.patch("/shipments/1", "{}", &[]).await.id();
    rig.world.always(Some(Act::Answer(200, &[], r#"{"data":null,"error":{"status":500}}"#)));
    rig.changes.send(1).unwrap();
    rig.until(booking, State::Unknown).await;
    rig.until(patch, State::Waiting).await;
    rig.world.always(None);
    rig.until(patch, State::Done).await;
}

#[tokio::test(start_paused = true)]
async fn poison_dies_while_others_succeed_and_keeps_waiting_in_an_outage() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Answer(500, &[], "")));
    let id = rig.patch("/shipments/1", "bad", &[]).await.id();
    tokio::time::sleep(Duration::from_secs(6 * 3600)).await;
    assert_eq!(rig.state(id), Some(State::Waiting));
    assert!(rig.queue.get(id).await.unwrap().attempts > 8);
    // Another shipment succeeds between the attempts of this one: one such success says little.
    let succeed = || async {
        rig.world.next(Act::Answer(200, &[], "{}"));
        assert_eq!(rig.patch("/shipments/2", "good", &[]).await.status, 200);
    };
    succeed().await;
    tokio::time::sleep(Duration::from_secs(6 * 3600)).await;
    assert_eq!(rig.state(id), Some(State::Waiting));
    for _ in 0..7 {
        succeed().await;
        tokio::time::sleep(Duration::from_secs(1800)).await;
    }
    rig.until(id, State::Dead).await;
    assert_eq!(rig.queue.get(id).await.unwrap().reason, Some(record::Reason::Poison));
}
