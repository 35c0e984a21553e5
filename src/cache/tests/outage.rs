//! Outages.

use super::*;

#[tokio::test(start_paused = true)]
async fn the_first_failing_request_of_any_outage_is_answered_stale() {
    let cases = [
        (breaker_open(), "hit; ttl=-30; detail=breaker-open", "breaker-open"),
        (
            Step::Fail(ProxyError::Overloaded { what: "upstream" }),
            "hit; ttl=-30; detail=overloaded",
            "overloaded",
        ),
        (Step::Fail(ProxyError::DeadlineBeforeSending), "hit; ttl=-30; detail=overloaded", "overloaded"),
        (
            Step::Fail(ProxyError::RateLimited { retry_after: Duration::from_secs(1) }),
            "hit; ttl=-30; detail=rate-limited",
            "rate-limited",
        ),
        (
            Step::Fail(ProxyError::Connect("refused".into())),
            "fwd=stale; ttl=-30; detail=stale-if-error",
            "upstream-error",
        ),
        (
            Step::Fail(ProxyError::HeadTimeout),
            "fwd=stale; ttl=-30; detail=stale-if-error",
            "upstream-timeout",
        ),
        (
            Step::Fail(ProxyError::Cut("reset".into())),
            "fwd=stale; ttl=-30; detail=stale-if-error",
            "upstream-error",
        ),
        (Step::Cut, "fwd=stale; ttl=-30; detail=stale-if-error", "upstream-error"),
        (
            answer(503, &[("retry-after", "9")], "no"),
            "fwd=stale; fwd-status=503; ttl=-30; detail=stale-if-error",
            "upstream-error",
        ),
        (
            answer(500, &[], "no"),
            "fwd=stale; fwd-status=500; ttl=-30; detail=stale-if-error",
            "upstream-error",
        ),
        (
            answer(408, &[], "no"),
            "fwd=stale; fwd-status=408; ttl=-30; detail=stale-if-error",
            "upstream-error",
        ),
        (
            answer(429, &[("retry-after", "9")], "no"),
            "fwd=stale; fwd-status=429; ttl=-30; detail=stale-if-error",
            "rate-limited",
        ),
    ];
    for (step, status, reason) in cases {
        let world = world();
        world.plan([ok(&[("cache-control", "private, max-age=0"), ("expires", "0")], "good"), step.clone()]);
        world.get("/shipments").send().await;
        secs(30).await;
        let got = world.get("/shipments").send().await;
        got.says("stale", &format!("seawall; {status}"));
        assert_eq!((got.status, &got.body[..]), (StatusCode::OK, &b"good"[..]));
        assert_eq!((got.header("seawall-stale-reason"), got.header("age")), (reason, "30"));
        assert_eq!((got.header("cache-control"), got.header("expires")), ("max-age=0, private", ""));
        // The copy is still the good one.
        world.plan([breaker_open()]);
        assert_eq!(world.get("/shipments").send().await.body, "good");

        // Without a copy, or for who does not want it: what came, as it came.
        for ask in [world.get("/ports"), world.get("/shipments").with("seawall-stale", "never")] {
            world.plan([step.clone()]);
            match (ask.try_send().await, &step) {
                (Ok(got), Step::Answer { status, body, .. }) => {
                    assert_eq!((got.status.as_u16(), &got.body), (*status, body));
                    assert_eq!(got.header("seawall-source"), "upstream");
                    assert!(got.header("cache-status").contains(&format!("; fwd-status={status}")));
                }
                (Err(ProxyError::Cut(_)), Step::Cut) => {}
                (Err(got), Step::Fail(error)) => assert_eq!(got.to_string(), error.to_string()),
                (got, _) => panic!("{:?}", got.map(|got| got.status)),
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn answers_that_are_no_outage_pass_through() {
    for status in [400, 401, 403, 404, 409, 302, 501] {
        let world = world();
        world.plan([ok(&[], "good"), answer(status, &[], "told")]);
        world.get("/shipments").send().await;
        let got = world.get("/shipments").send().await;
        got.says("upstream", &format!("seawall; fwd=stale; fwd-status={status}"));
        assert_eq!((got.status.as_u16(), &got.body[..]), (status, &b"told"[..]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_too_old_does_not_stand_in() {
    let world = world();
    world.plan([ok(&[], "good")]);
    world.get("/shipments").send().await;
    secs(60).await;
    let limited = || answer(429, &[], "slow down");
    world.plan([limited(), limited(), breaker_open(), breaker_open()]);
    assert_eq!(world.get("/shipments").send().await.header("seawall-source"), "stale");
    secs(1).await;
    assert_eq!(world.get("/shipments").send().await.status, 429, "the window of 429 is its own");
    secs(24 * 3600 - 61).await;
    assert_eq!(world.get("/shipments").send().await.header("seawall-source"), "stale");
    secs(1).await;
    assert!(matches!(world.get("/shipments").try_send().await, Err(ProxyError::BreakerOpen { .. })));
    assert_eq!(world.cache.stats().refused, 2);
}

#[tokio::test(start_paused = true)]
async fn an_incremental_sync_is_never_answered_with_old_data() {
    let sync = "/shipments?sort=updated_at&f.updated_at.gt=2026-05-01T00:00:00Z";
    let stretched = [("cache-control", "max-age=1, stale-while-revalidate=60")];
    for (case, (copy, step)) in [
        (ok(&[], "old"), breaker_open()),
        (ok(&[], "old"), Step::Fail(ProxyError::Connect("refused".into()))),
        (ok(&[], "old"), Step::Cut),
        (ok(&[], "old"), answer(503, &[("retry-after", "9")], "no")),
        (ok(&[], "old"), answer(429, &[], "no")),
        (ok(&stretched, "old"), breaker_open()),
    ]
    .into_iter()
    .enumerate()
    {
        let world = world();
        world.plan([copy.clone(), step.clone(), copy, step]);
        world.get(sync).send().await;
        secs(5).await;
        let got = world.get(sync).with("cache-control", "max-stale").try_send().await;
        assert!(got.is_err() || got.is_ok_and(|got| got.status.as_u16() >= 429), "case {case}");
        assert_eq!((world.asked(), world.cache.stats().stale_served), (2, 0), "case {case}");
        // Beside it, who just looks is served.
        world.get("/shipments?sort=updated_at").send().await;
        secs(5).await;
        assert_eq!(world.get("/shipments?sort=updated_at").send().await.header("seawall-source"), "stale");
    }
    // What is fresh is not old.
    let world = world();
    world.plan([ok(&[("cache-control", "max-age=60")], "new")]);
    world.get(sync).send().await;
    assert_eq!(world.get(sync).send().await.header("seawall-source"), "cache");
}

#[tokio::test(start_paused = true)]
async fn directives_against_stale_hold_unless_the_route_overrides_them() {
    for (cache_control, without) in [
        ("max-age=0, private, must-revalidate", false),
        ("no-cache", false),
        ("proxy-revalidate", false),
        ("s-maxage=0", false),
        ("stale-if-error=60", true),
        ("stale-if-error=5", false),
        ("max-age=1", true),
    ] {
        for overrides in [true, false] {
            let world = world_with(
                |_| {},
                |route| {
                    if let Some(cache) = &mut route.cache {
                        cache.overrides_revalidation = overrides;
                    }
                },
            );
            world.plan([ok(&[("cache-control", cache_control)], "good"), answer(503, &[], "no")]);
            world.get("/shipments").send().await;
            secs(30).await;
            let source = if overrides || without { "stale" } else { "upstream" };
            assert_eq!(
                world.get("/shipments").send().await.header("seawall-source"),
                source,
                "{cache_control}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_with_a_copy_waits_shortly_while_the_group_fails() {
    for (fails, waited) in [(true, 2), (false, 10)] {
        let world = world();
        world.facts.fails.store(fails, Ordering::Relaxed);
        let slow = Step::After(Duration::from_secs(20), Box::new(ok(&[], "new")));
        world.plan([ok(&[], "good"), slow, breaker_open()]);
        world.get("/shipments").send().await;
        let start = Instant::now();
        let got = world.get("/shipments").send().await;
        assert_eq!(start.elapsed().as_secs(), waited);
        got.says("stale", &format!("seawall; fwd=stale; ttl=-{waited}; detail=upstream-timeout"));
        assert_eq!(got.header("seawall-stale-reason"), "upstream-timeout");
        assert_eq!(world.tasks.count(), 1, "the attempt goes on");
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(world.tasks.count(), 0);
        assert_eq!(world.get("/shipments").send().await.body, "new", "and refreshes the copy");
    }
}

#[tokio::test(start_paused = true)]
async fn a_callers_own_time_limit_does_not_end_the_fill() {
    let world = world();
    world
        .plan([Step::After(Duration::from_secs(3), Box::new(ok(&[("cache-control", "max-age=60")], "new")))]);
    let got = world.get("/shipments").within(Duration::from_secs(1)).try_send().await;
    assert!(matches!(got, Err(ProxyError::HeadTimeout)));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(world.get("/shipments").send().await.header("seawall-source"), "cache");
}

#[tokio::test(start_paused = true)]
async fn stale_while_revalidate_answers_at_once_and_refreshes_once() {
    let world = world();
    let slow = Step::After(Duration::from_secs(1), Box::new(ok(&[("cache-control", "max-age=60")], "new")));
    world.plan([ok(&[("cache-control", "max-age=1, stale-while-revalidate=30")], "old"), slow]);
    world.get("/shipments").send().await;
    secs(5).await;
    for _ in 0..3 {
        let got = world.get("/shipments").send().await;
        got.says("stale", "seawall; hit; ttl=-4; detail=revalidating");
        assert_eq!(got.header("seawall-stale-reason"), "revalidating");
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((world.asked(), world.last().lane), (2, Lane::Refresh));
    assert_eq!(world.get("/shipments").send().await.body, "new");
}

#[tokio::test(start_paused = true)]
async fn a_key_whose_refresh_failed_is_left_alone_for_longer_each_time() {
    let world = world();
    world.plan([ok(&[("cache-control", "max-age=1, stale-while-revalidate=600")], "old")]);
    world.get("/shipments").send().await;
    secs(2).await;
    let mut asked = 1;
    for span in [1000, 2000, 4000, 8000] {
        world.plan([answer(503, &[], "")]);
        for _ in 0..3 {
            assert_eq!(world.get("/shipments").send().await.body, "old");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        asked += 1;
        assert_eq!(world.asked(), asked);
        // Up to shortly before its end the rest holds: that it ends shortly after is the next round.
        tokio::time::sleep(Duration::from_millis(span - 10)).await;
        assert_eq!(world.get("/shipments").send().await.body, "old");
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(world.asked(), asked, "a rest of {span} ms");
        tokio::time::sleep(Duration::from_millis(9)).await;
    }
}

/// In memory and on disk. A wrong 304 is one that speaks of another copy, or that nobody asked for.
#[tokio::test(start_paused = true)]
async fn a_failed_refresh_never_replaces_the_last_good_copy() {
    let dir = tempfile::tempdir().unwrap();
    let world = world_on(dir.path()).await;
    let (feeder, broken) = fed(&[("content-type", "application/json")], None);
    feeder.send(Ok(Bytes::from(vec![b'x'; 100_000]))).unwrap();
    feeder.send(Err(BodyError::Cut("reset".to_owned()))).unwrap();
    let slow = |step| Step::After(Duration::from_secs(2), Box::new(step));
    let tagged = [("etag", "\"a\"")];
    let other_304 = || answer(304, &[("etag", "\"b\"")], "");
    let error = r#"{"_object":"/api/response","data":null,"error":{"code":"x"}}"#;
    type Case<'a> = (&'a str, &'a [(&'static str, &'a str)], Vec<Step>);
    let cases: Vec<Case<'_>> = vec![
        ("500", &[], vec![answer(500, &[], "no")]),
        ("503 that says it may be kept", &[], vec![answer(503, &[("cache-control", "max-age=600")], "no")]),
        ("429", &[], vec![answer(429, &[("retry-after", "9"), ("cache-control", "max-age=60")], "no")]),
        ("cut", &[], vec![Step::Cut]),
        ("cut on its way", &[], vec![broken]),
        ("timeout", &[], vec![slow(Step::Fail(ProxyError::HeadTimeout))]),
        ("connect", &[], vec![Step::Fail(ProxyError::Connect("refused".into()))]),
        ("open", &[], vec![breaker_open()]),
        ("an error in the envelope", &[], vec![ok(&[("content-type", "application/json")], error)]),
        ("304 of another copy, then nothing", &tagged, vec![other_304(), breaker_open()]),
        ("304 of another copy, then 503", &tagged, vec![other_304(), answer(503, &[], "no")]),
        ("304 of another copy, twice", &tagged, vec![other_304(), other_304()]),
        ("304 that nobody asked for", &[], vec![answer(304, &[("cache-control", "max-age=600")], "")]),
        ("206 that nobody asked for", &[], vec![answer(206, &[("content-range", "bytes 0-1/4")], "go")]),
        ("400", &[], vec![answer(400, &[("cache-control", "max-age=600")], "no")]),
        ("redirect", &[], vec![answer(302, &[("location", "/x"), ("cache-control", "max-age=9")], "")]),
    ];
    for (name, headers, steps) in cases {
        world.plan([ok(headers, "good")]);
        assert_eq!(world.get("/shipments").send().await.body, "good", "{name}");
        world.cache.flush().await;
        for is_in_memory in [true, false] {
            if is_in_memory {
                world.plan(steps.clone());
                if let Ok(got) = world.service.clone().oneshot(world.get("/shipments").request()).await {
                    // To its end, cut or not.
                    let _ = got.into_body().collect(1 << 20).await;
                }
                world.cache.flush().await;
            } else {
                world.cache.memory.clear();
            }
            world.plan([breaker_open()]);
            let got = world.get("/shipments").send().await;
            let what = format!("{name}, in memory: {is_in_memory}");
            assert_eq!((got.header("seawall-source"), &got.body[..]), ("stale", &b"good"[..]), "{what}");
        }
        assert_eq!(world.script.steps.lock().unwrap().len(), 0, "{name}");
        world.cache.purge(&Which::All, false, false).await.unwrap();
    }
    assert!(world.tasks.stop(Duration::from_secs(60)).await);
}
