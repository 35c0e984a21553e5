//! Answers that flow.

use super::*;

const KIB: usize = 1024;

fn bytes(kib: usize) -> Bytes {
    Bytes::from(vec![b'x'; kib * KIB])
}

/// The answer to this request, whose body is still to come.
async fn started(ask: Ask<'_>) -> Response<Body> {
    let service = ask.world.service.clone();
    service.oneshot(ask.request()).await.unwrap()
}

async fn next(body: &mut Body) -> Option<Result<Bytes, BodyError>> {
    let frame = std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut *body), cx)).await?;
    Some(frame.map(|frame| frame.into_data().unwrap()))
}

fn status_of(response: &Response<Body>) -> &str {
    response.headers()["cache-status"].to_str().unwrap()
}

/// Until no fill goes on in a task.
async fn no_fill(world: &World) {
    let none = async {
        while world.tasks.count() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(3600), none).await.expect("every fill ends");
}

#[tokio::test(start_paused = true)]
async fn a_long_answer_reaches_its_caller_while_it_comes_and_is_kept_at_its_end() {
    // With a length the head goes out at once, without one when the beginning is there.
    for length in [Some(300 * KIB as u64), None] {
        let world = world();
        let (feeder, step) = fed(&[("cache-control", "max-age=60"), ("age", "3")], length);
        world.plan([step]);
        if length.is_none() {
            feeder.send(Ok(bytes(65))).unwrap();
        }
        let response = started(world.get("/shipments")).await;
        assert_eq!(status_of(&response), "seawall; fwd=uri-miss; fwd-status=200; stored; ttl=57");
        assert_eq!(response.headers()["seawall-source"], "upstream");
        assert_eq!(
            (&response.headers()["age"], response.headers().contains_key("date")),
            (&"3".parse().unwrap(), true)
        );
        let mut body = response.into_body();
        assert_eq!(http_body::Body::size_hint(&body).exact(), length);
        if length.is_some() {
            feeder.send(Ok(bytes(65))).unwrap();
        }
        assert_eq!(next(&mut body).await.unwrap().unwrap(), bytes(65));
        assert_eq!(world.cache.stats().entries, 0);
        feeder.send(Ok(bytes(100))).unwrap();
        assert_eq!(next(&mut body).await.unwrap().unwrap(), bytes(100));
        feeder.send(Ok(bytes(135))).unwrap();
        drop(feeder);
        // All of it is there: then it is kept, before any other word of the fill's.
        assert_eq!(body.collect(1 << 20).await.unwrap(), bytes(135));
        assert_eq!(world.cache.stats().entries, 1);
        let got = world.get("/shipments").send().await;
        got.says("cache", "seawall; hit; ttl=57");
        assert_eq!((got.body, got.headers["content-length"].to_str().unwrap()), (bytes(300), "307200"));
        assert_eq!((world.asked(), world.cache.stats().misses), (1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_slowly_is_passed_on_as_it_comes() {
    let world = world();
    let (feeder, step) = fed(&[], None);
    world.plan([step]);
    feeder.send(Ok(Bytes::from_static(b"first"))).unwrap();
    let start = Instant::now();
    let response = started(world.get("/shipments")).await;
    assert_eq!(start.elapsed().as_secs(), 1);
    let mut body = response.into_body();
    assert_eq!(next(&mut body).await.unwrap().unwrap(), "first");
    feeder.send(Ok(Bytes::from_static(b", last"))).unwrap();
    drop(feeder);
    assert_eq!(body.collect(10).await.unwrap(), ", last");
    world.plan([breaker_open()]);
    assert_eq!(world.get("/shipments").send().await.body, "first, last");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_cut_on_its_way_is_cut_for_its_caller_and_not_kept() {
    let broken = || Some(Err(BodyError::Cut("reset".to_owned())));
    for (length, last) in [
        (None, broken()),
        (Some(200), broken()),
        // Shorter, and longer, than it says.
        (Some(200), None),
        (Some(200), Some(Ok(bytes(101)))),
    ] {
        let world = world();
        let (feeder, step) = fed(&[], length.map(|kib: usize| (kib * KIB) as u64));
        world.plan([ok(&[], "good"), step, breaker_open()]);
        world.get("/shipments").send().await;
        feeder.send(Ok(bytes(100))).unwrap();
        let response = started(world.get("/shipments")).await;
        assert_eq!(
            (response.status(), &response.headers()["seawall-source"]),
            (StatusCode::OK, &"upstream".parse().unwrap())
        );
        let mut body = response.into_body();
        assert_eq!(next(&mut body).await.unwrap().unwrap(), bytes(100));
        if let Some(last) = last {
            feeder.send(last).unwrap();
        }
        drop(feeder);
        assert!(matches!(next(&mut body).await, Some(Err(BodyError::Cut(_)))));
        assert!(next(&mut body).await.is_none());
        // The last good copy is still the one there is.
        let got = world.get("/shipments").send().await;
        got.says("stale", "seawall; hit; ttl=-1; detail=breaker-open");
        assert_eq!(got.body, "good");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_whose_beginning_breaks_is_an_outage_for_who_has_a_copy() {
    // Also when it says that it is a long one, and however long the beginning takes.
    for length in [None, Some(300 * KIB as u64)] {
        let world = world();
        let (feeder, step) = fed(&[], length);
        world.plan([ok(&[], "good"), step]);
        world.get("/shipments").send().await;
        feeder.send(Ok(bytes(64))).unwrap();
        let asking = tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request()));
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(!asking.is_finished());
        feeder.send(Err(BodyError::Cut("reset".to_owned()))).unwrap();
        let response = asking.await.unwrap().unwrap();
        assert_eq!(status_of(&response), "seawall; fwd=stale; ttl=-3; detail=stale-if-error");
        assert_eq!(response.into_body().collect(10).await.unwrap(), "good");
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_in_mid_body_ends_no_fill() {
    let world = world();
    let (feeder, step) = fed(&[("cache-control", "max-age=60")], Some(200 * KIB as u64));
    world.plan([step]);
    let response = started(world.get("/shipments")).await;
    feeder.send(Ok(bytes(100))).unwrap();
    let mut body = response.into_body();
    next(&mut body).await.unwrap().unwrap();
    let waiter = tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request()));
    tokio::task::yield_now().await;
    drop(body);
    feeder.send(Ok(bytes(100))).unwrap();
    drop(feeder);
    let response = waiter.await.unwrap().unwrap();
    assert_eq!(status_of(&response), "seawall; fwd=uri-miss; fwd-status=200; stored; collapsed; ttl=60");
    assert_eq!(response.into_body().collect(1 << 20).await.unwrap(), bytes(200));
    world.get("/shipments").send().await.says("cache", "seawall; hit; ttl=60");
    assert_eq!(world.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_slow_caller_stalls_neither_the_fill_nor_who_waits_for_it() {
    let world = world();
    let (feeder, step) = fed(&[("cache-control", "max-age=60")], None);
    world.plan([step]);
    feeder.send(Ok(bytes(65))).unwrap();
    let slow = started(world.get("/shipments")).await;
    let waiters: Vec<_> = (0..100)
        .map(|_| tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request())))
        .collect();
    tokio::task::yield_now().await;
    for _ in 0..10 {
        feeder.send(Ok(bytes(100))).unwrap();
    }
    drop(feeder);
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap().unwrap().into_body().collect(2 << 20).await.unwrap(), bytes(1065));
    }
    // What it has not read, it reads out of the copy.
    let mut body = slow.into_body();
    let rest = next(&mut body).await.unwrap().unwrap();
    assert_eq!(rest, bytes(1065));
    let copy = world.cache.memory.get(&key_of(&world, "/shipments")).unwrap().newest.body.clone();
    assert_eq!(rest.as_ptr(), copy.as_ptr());
    assert_eq!(world.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_an_answer_that_breaks_shares_the_failure() {
    let world = world();
    let (feeder, step) = fed(&[], Some(200 * KIB as u64));
    world.plan([step]);
    let mut body = started(world.get("/shipments")).await.into_body();
    let waiters: Vec<_> = (0..10)
        .map(|_| tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request())))
        .collect();
    tokio::task::yield_now().await;
    feeder.send(Err(BodyError::Cut("reset".to_owned()))).unwrap();
    assert!(next(&mut body).await.unwrap().is_err());
    for waiter in waiters {
        assert!(matches!(waiter.await.unwrap(), Err(ProxyError::Cut(_))));
    }
    assert_eq!(world.asked(), 1);
    world.plan([ok(&[], "well")]);
    assert_eq!(world.get("/shipments").send().await.body, "well");
}

#[tokio::test(start_paused = true)]
async fn what_turns_out_to_be_too_long_goes_on_at_its_callers_pace_and_is_not_kept() {
    let limit = crate::config::raw::Size(200 * KIB as u64);
    let world = world_with(|settings| settings.cache.max_object = limit, |_| {});
    let (feeder, step) = fed(&[("cache-control", "max-age=60")], None);
    world.plan([step]);
    feeder.send(Ok(bytes(100))).unwrap();
    let mut body = started(world.get("/shipments")).await.into_body();
    let waiter = tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request()));
    tokio::task::yield_now().await;
    world.plan([ok(&[("cache-control", "max-age=60")], "short")]);
    for _ in 0..10 {
        feeder.send(Ok(bytes(100))).unwrap();
    }
    // Who waited asks for itself; nothing more is read than what the caller takes.
    let response = waiter.await.unwrap().unwrap();
    assert!(!status_of(&response).contains("collapsed"));
    assert_eq!(world.tasks.count(), 0);
    for _ in 0..11 {
        assert_eq!(next(&mut body).await.unwrap().unwrap(), bytes(100));
    }
    // Nor is it over when the time of the call is: it is the caller's from here on.
    tokio::time::sleep(Duration::from_secs(600)).await;
    feeder.send(Ok(bytes(1))).unwrap();
    drop(feeder);
    assert_eq!(body.collect(1 << 20).await.unwrap(), bytes(1));
    // It was asked for earlier than the short one, and is no longer anywhere.
    let entry = world.cache.memory.get(&key_of(&world, "/shipments")).unwrap().newest.clone();
    assert_eq!(entry.body, "short");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_end_in_time_is_cut_and_frees_its_key() {
    let world = world();
    let (feeder, step) = fed(&[("cache-control", "max-age=60")], Some(200 * KIB as u64));
    world.plan([step]);
    let start = Instant::now();
    let mut body = started(world.get("/shipments")).await.into_body();
    let timeout = world.snapshot.routes.find(&Method::GET, "/shipments").timeout;
    let dripping = tokio::spawn(async move {
        while feeder.send(Ok(Bytes::from_static(b" "))).is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let error = loop {
        match next(&mut body).await.expect("it does not end well") {
            Ok(piece) => assert_eq!(piece, " "),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, BodyError::Cut(_)));
    assert_eq!(start.elapsed().as_secs(), timeout.as_secs() + 1);
    dripping.await.unwrap();
    assert_eq!((world.tasks.count(), world.cache.stats().entries), (0, 0));
    world.plan([ok(&[], "well")]);
    assert_eq!(world.get("/shipments").send().await.body, "well");
}

#[tokio::test(start_paused = true)]
async fn an_answer_on_its_way_during_a_write_is_passed_on_and_not_kept() {
    let world = world();
    let (feeder, step) = fed(&[("cache-control", "max-age=60")], Some(100 * KIB as u64));
    world.plan([step, ok(&[], "after")]);
    let body = started(world.get("/bookings/1")).await.into_body();
    world.settle("/bookings/1", &Method::PATCH, "/bookings/1");
    feeder.send(Ok(bytes(100))).unwrap();
    drop(feeder);
    assert_eq!(body.collect(1 << 20).await.unwrap(), bytes(100));
    assert_eq!(world.cache.stats().entries, 0);
    assert_eq!(world.get("/bookings/1").send().await.body, "after");
}

#[tokio::test(start_paused = true)]
async fn a_long_answer_that_must_not_be_kept_goes_to_its_caller_alone() {
    let limits: [&[_]; 2] = [&[("cache-control", "no-store")], &[("set-cookie", "a=b")]];
    for headers in limits {
        let world = world();
        let (feeder, step) = fed(headers, Some(200 * KIB as u64));
        world.plan([ok(&[("cache-control", "max-age=1")], "old"), step]);
        world.get("/shipments").send().await;
        secs(2).await;
        feeder.send(Ok(bytes(100))).unwrap();
        let response = started(world.get("/shipments")).await;
        assert_eq!(status_of(&response), "seawall; fwd=stale; fwd-status=200");
        feeder.send(Ok(bytes(100))).unwrap();
        drop(feeder);
        assert_eq!(response.into_body().collect(1 << 20).await.unwrap(), bytes(200));
        assert_eq!(world.cache.stats().entries, u64::from(headers[0].0 == "set-cookie"));
    }
    // Nor one to a request that does not want it kept.
    let world = world();
    let (feeder, step) = fed(&[("cache-control", "max-age=60")], Some(100 * KIB as u64));
    world.plan([step]);
    let response = started(world.get("/shipments").with("cache-control", "no-store")).await;
    assert_eq!(status_of(&response), "seawall; fwd=uri-miss; fwd-status=200; ttl=60");
    feeder.send(Ok(bytes(100))).unwrap();
    drop(feeder);
    assert_eq!(response.into_body().collect(1 << 20).await.unwrap(), bytes(100));
    assert_eq!(world.cache.stats().entries, 0);
}

#[tokio::test(start_paused = true)]
async fn a_long_answer_that_the_caller_has_already_is_kept_without_being_sent() {
    let world = world();
    let (feeder, step) = fed(&[("etag", "\"a\""), ("cache-control", "max-age=60")], Some(100 * KIB as u64));
    world.plan([step]);
    let response = started(world.get("/shipments").with("if-none-match", "\"a\"")).await;
    assert_eq!(response.status(), StatusCode::NOT_MODIFIED);
    assert!(response.into_body().collect(0).await.unwrap().is_empty());
    feeder.send(Ok(bytes(100))).unwrap();
    drop(feeder);
    no_fill(&world).await;
    assert_eq!(world.get("/shipments").send().await.body, bytes(100));
}

#[tokio::test(start_paused = true)]
async fn who_cannot_see_a_cut_gets_an_answer_without_a_length_only_whole() {
    let world = world();
    let (feeder, step) = fed(&[], None);
    world.plan([step]);
    feeder.send(Ok(bytes(100))).unwrap();
    let mut request = world.get("/shipments").request();
    *request.version_mut() = http::Version::HTTP_10;
    let asking = tokio::spawn(world.service.clone().oneshot(request));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!asking.is_finished());
    feeder.send(Err(BodyError::Cut("reset".to_owned()))).unwrap();
    assert!(matches!(asking.await.unwrap(), Err(ProxyError::Cut(_))));
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_fills() {
    let world = world();
    let (_feeder, step) = fed(&[], Some(100 * KIB as u64));
    world.plan([step, Step::After(Duration::from_secs(20), Box::new(ok(&[], "late")))]);
    let mut body = started(world.get("/shipments")).await.into_body();
    let left = tokio::spawn(world.service.clone().oneshot(world.get("/ports").request()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    left.abort();
    assert!(left.await.unwrap_err().is_cancelled());
    assert_eq!(world.tasks.count(), 2);
    assert!(world.tasks.stop(Duration::from_secs(1)).await);
    assert!(matches!(next(&mut body).await, Some(Err(BodyError::Stopped))));
}

#[tokio::test(start_paused = true)]
async fn a_refresh_reads_all_of_an_answer() {
    let world = world();
    let (feeder, step) = fed(&[("cache-control", "max-age=60")], Some(100 * KIB as u64));
    world.plan([ok(&[("cache-control", "max-age=1, stale-while-revalidate=60")], "old"), step]);
    world.get("/shipments").send().await;
    secs(2).await;
    assert_eq!(world.get("/shipments").send().await.body, "old");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(world.tasks.count(), 1);
    feeder.send(Ok(bytes(100))).unwrap();
    drop(feeder);
    no_fill(&world).await;
    assert_eq!(world.get("/shipments").send().await.body, bytes(100));
}
