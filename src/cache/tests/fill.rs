//! One fill.

use super::*;

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
    let world = world();
    world.plan([Step::After(Duration::from_secs(1), Box::new(answer(503, &[], "no")))]);
    let asks: Vec<_> = (0..10)
        .map(|_| tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request())))
        .collect();
    for ask in asks {
        assert_eq!(ask.await.unwrap().unwrap().status(), 503);
    }
    assert_eq!(world.asked(), 1);
    world.plan([ok(&[], "well")]);
    assert_eq!(world.get("/shipments").send().await.body, "well");
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
