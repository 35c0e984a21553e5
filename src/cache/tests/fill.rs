//! One fill.

use super::*;

type Asking = tokio::task::JoinHandle<Result<Response<Body>, ProxyError>>;

/// Readers of one key at the same instant, each in a task.
fn asks(world: &World, count: usize) -> Vec<Asking> {
    (0..count)
        .map(|_| tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request())))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_thousand_readers_make_one_request() {
    let world = world();
    world.plan([Step::After(Duration::from_secs(1), Box::new(ok(&[], "one")))]);
    let asks: Vec<_> = (0..1000)
        .map(|_| tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request())))
        .collect();
    let mut collapsed = 0;
    for ask in asks {
        let response = ask.await.unwrap().unwrap();
        let status = response.headers()["cache-status"].to_str().unwrap().to_owned();
        collapsed +=
            usize::from(status == "seawall; fwd=uri-miss; fwd-status=200; stored; collapsed; ttl=-1");
        assert_eq!(response.into_body().collect(10).await.unwrap(), "one");
    }
    assert_eq!((world.asked(), collapsed, world.cache.stats().collapsed), (1, 999, 999));
}

#[tokio::test(start_paused = true)]
async fn a_leaders_failure_is_its_waiters_failure() {
    for failure in [
        answer(503, &[], "no"),
        answer(429, &[], "no"),
        Step::Fail(ProxyError::Connect("refused".into())),
        Step::Fail(ProxyError::HeadTimeout),
        Step::Cut,
        breaker_open(),
    ] {
        let world = world();
        world.plan([Step::After(Duration::from_secs(1), Box::new(failure.clone()))]);
        let start = Instant::now();
        for ask in asks(&world, 1000) {
            let status = ask.await.unwrap().map(|got| got.status().as_u16());
            let expected = match &failure {
                Step::Answer { status, .. } => Some(*status),
                _ => None,
            };
            assert_eq!(status.ok(), expected);
        }
        assert_eq!((world.asked(), start.elapsed().as_secs()), (1, 1));
        world.plan([ok(&[], "well")]);
        assert_eq!(world.get("/shipments").send().await.body, "well");
    }
}

/// The same whether the leader is waiting for a head or for the rest of a body when it leaves.
#[tokio::test(start_paused = true)]
async fn a_thousand_readers_whose_leader_leaves_make_one_request() {
    let after = |span, step| Step::After(Duration::from_secs(span), Box::new(step));
    let (feeder, flowing) = fed(&[], None);
    feeder.send(Ok(Bytes::from_static(b"o"))).unwrap();
    for (step, feeder) in [(after(2, ok(&[], "one")), None), (flowing, Some(feeder))] {
        let world = world();
        world.plan([step]);
        let mut asks = asks(&world, 1000);
        tokio::time::sleep(Duration::from_millis(500)).await;
        let leader = asks.remove(0);
        leader.abort();
        assert!(leader.await.unwrap_err().is_cancelled());
        if let Some(feeder) = feeder {
            tokio::time::sleep(Duration::from_secs(1)).await;
            feeder.send(Ok(Bytes::from_static(b"ne"))).unwrap();
        }
        for ask in asks {
            let response = ask.await.unwrap().unwrap();
            assert!(response.headers()["cache-status"].to_str().unwrap().contains("; collapsed"));
            assert_eq!(response.into_body().collect(10).await.unwrap(), "one");
        }
        assert_eq!(world.asked(), 1);
        world.plan([breaker_open()]);
        assert_eq!(world.get("/shipments").send().await.body, "one", "it is kept");
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_leaves_does_not_take_the_fill_along() {
    let world = world();
    world.plan([Step::After(Duration::from_secs(2), Box::new(ok(&[("cache-control", "max-age=9")], "one")))]);
    let leader = tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let waiter = tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request()));
    tokio::task::yield_now().await;
    leader.abort();
    let response = waiter.await.unwrap().unwrap();
    assert_eq!(response.into_body().collect(10).await.unwrap(), "one");
    world.get("/shipments").send().await.says("cache", "seawall; hit; ttl=7");
    assert_eq!(world.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_fill_that_nobody_finishes_fails_its_waiters() {
    let flights = Flights::new();
    let marks = Marks::new([1, 2], None);
    let key = flight::FlightKey { key: key::Key([0; 32]), token: 0 };
    let flight::Role::Lead(landing) = flights.enter(key, Instant::now(), marks.moment(), |_| false) else {
        panic!("nobody else is there");
    };
    let flight::Role::Join(flight) = flights.enter(key, Instant::now(), marks.moment(), |_| false) else {
        panic!("somebody leads");
    };
    drop(landing);
    assert!(matches!(flight.landed().await, flight::Outcome::Failed(ProxyError::Internal(_))));
    assert!(matches!(flights.enter(key, Instant::now(), marks.moment(), |_| false), flight::Role::Lead(_)));
}

#[tokio::test(start_paused = true)]
async fn waiters_lose_patience_two_at_a_time() {
    let world = world();
    world.plan([Step::After(Duration::from_secs(30), Box::new(ok(&[], "slow")))]);
    world.plan([ok(&[], "own"), ok(&[], "own")]);
    let asks: Vec<_> = (0..10)
        .map(|_| tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request())))
        .collect();
    let mut bodies = Vec::new();
    for ask in asks {
        bodies.push(ask.await.unwrap().unwrap().into_body().collect(10).await.unwrap());
    }
    assert_eq!(bodies.iter().filter(|body| *body == "own").count(), 2);
    assert_eq!(world.asked(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_with_a_copy_gets_it_when_the_fill_takes_long() {
    let world = world();
    world.plan([ok(&[], "old"), Step::After(Duration::from_secs(8), Box::new(ok(&[], "new")))]);
    world.get("/shipments").send().await;
    let leader = tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request()));
    tokio::task::yield_now().await;
    let start = Instant::now();
    let got = world.get("/shipments").send().await;
    assert_eq!((start.elapsed().as_secs(), got.header("seawall-stale-reason")), (5, "revalidating"));
    assert_eq!(leader.await.unwrap().unwrap().into_body().collect(9).await.unwrap(), "new");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_kept_is_not_waited_for_again() {
    let world = world();
    let private =
        || Step::After(Duration::from_secs(1), Box::new(ok(&[("cache-control", "no-store")], "mine")));
    world.plan([private()]);
    world.get("/shipments").send().await;
    for (wait, requests) in [(0, 5), (60, 1 + 4)] {
        secs(wait).await;
        world.plan((0..5).map(|_| private()));
        let before = world.asked();
        let start = Instant::now();
        let asks: Vec<_> = (0..5)
            .map(|_| tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request())))
            .collect();
        for ask in asks {
            ask.await.unwrap().unwrap();
        }
        assert_eq!(world.asked() - before, requests, "no answer of one caller's goes to another");
        // Marked: all at once. After the mark has ended they wait for the first, which is not to be shared.
        assert_eq!(start.elapsed().as_secs(), if wait == 0 { 1 } else { 2 });
    }
}

/// No queue: the first is waited for, since nobody knew; then all ask at once. After that nobody waits.
#[tokio::test(start_paused = true)]
async fn a_thousand_readers_of_what_cannot_be_kept_are_no_queue() {
    for headers in [[("cache-control", "no-store")], [("set-cookie", "a=b")], [("vary", "*")]] {
        let world = world();
        for seconds in [2, 1] {
            world.plan((0..1000).map(|n| {
                Step::After(Duration::from_secs(1), Box::new(ok(&headers, &format!("of caller {n}"))))
            }));
            let (start, before) = (Instant::now(), world.asked());
            let mut bodies = std::collections::HashSet::new();
            for ask in asks(&world, 1000) {
                let response = ask.await.unwrap().unwrap();
                assert!(!response.headers()["cache-status"].to_str().unwrap().contains("collapsed"));
                bodies.insert(response.into_body().collect(100).await.unwrap());
            }
            assert_eq!(start.elapsed().as_secs(), seconds, "{headers:?}");
            assert_eq!((world.asked() - before, bodies.len()), (1000, 1000), "each has its own");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn long_answers_stream_through() {
    let limit = crate::config::raw::Size(10);
    let world = world_with(|settings| settings.cache.max_object = limit, |_| {});
    let piece = || Bytes::from_static(b"12345678");
    world.plan([
        Step::Pieces(vec![piece(), piece(), piece()]),
        ok(&[], "a body longer than that"),
        Step::Pieces(vec![piece()]),
    ]);
    let got = world.get("/shipments").send().await;
    got.says("upstream", "seawall; fwd=uri-miss; fwd-status=200");
    assert_eq!(got.body, "123456781234567812345678");
    assert_eq!(world.get("/shipments").send().await.body, "a body longer than that");
    assert_eq!(world.cache.stats().entries, 0);
    assert_eq!(world.get("/shipments").send().await.body, "12345678");
    assert_eq!(world.cache.stats().entries, 1);
    world
        .plan([answer(503, &[], "an outage, told at length"), answer(503, &[], "an outage, told at length")]);
    let got = world.get("/shipments").send().await;
    got.says("stale", "seawall; fwd=stale; fwd-status=503; ttl=-1; detail=stale-if-error");
    assert_eq!(got.body, "12345678");
    assert_eq!(world.get("/ports").send().await.body, "an outage, told at length");
}

#[tokio::test(start_paused = true)]
async fn waiters_of_a_long_answer_ask_for_themselves() {
    let limit = crate::config::raw::Size(10);
    let world = world_with(|settings| settings.cache.max_object = limit, |_| {});
    let long = || Step::After(Duration::from_secs(1), Box::new(ok(&[], "a body longer than that")));
    world.plan((0..3).map(|_| long()));
    let asks: Vec<_> = (0..3)
        .map(|_| tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request())))
        .collect();
    for ask in asks {
        let body = ask.await.unwrap().unwrap().into_body().collect(100).await.unwrap();
        assert_eq!(body, "a body longer than that");
    }
    assert_eq!(world.asked(), 3);
}
