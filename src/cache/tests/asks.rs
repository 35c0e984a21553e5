//! What the request asks.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_requests_cache_control_is_honoured() {
    let world = world();
    let fresh = || ok(&[("cache-control", "max-age=10")], "x");
    world.plan([fresh()]);
    world.get("/shipments").send().await;
    secs(4).await;
    let ask = |directive: &'static str| world.get("/shipments").with("cache-control", directive);
    ask("max-age=4").send().await.says("cache", "seawall; hit; ttl=6");
    ask("min-fresh=5").send().await.says("cache", "seawall; hit; ttl=6");
    ask("only-if-cached").send().await.says("cache", "seawall; hit; ttl=6");
    for directive in ["no-cache", "max-age=0", "max-age=3", "min-fresh=7"] {
        world.plan([fresh()]);
        let got = ask(directive).send().await;
        got.says("upstream", "seawall; fwd=request; fwd-status=200; stored; ttl=10");
        secs(4).await;
    }
    secs(10).await;
    let got = ask("max-stale=4").send().await;
    got.says("stale", "seawall; hit; ttl=-4; detail=max-stale");
    let asked = world.asked();
    let got = ask("only-if-cached").send().await;
    assert_eq!((got.status, world.asked()), (StatusCode::GATEWAY_TIMEOUT, asked));
    assert!(std::str::from_utf8(&got.body).unwrap().contains("seawall_not_cached"));
    world.plan([fresh()]);
    assert_eq!(ask("max-stale=3").send().await.header("seawall-source"), "upstream");
    world.plan([ok(&[("cache-control", "max-age=10")], "other")]);
    let got = ask("no-store").send().await;
    assert_eq!((got.header("cache-status").contains("stored"), &got.body[..]), (false, &b"other"[..]));
    assert_eq!(world.get("/shipments").send().await.body, "x");
}

#[tokio::test(start_paused = true)]
async fn a_requests_cache_control_can_be_ignored() {
    let world = world_with(|settings| settings.cache.honour_request_cc = false, |_| {});
    world.plan([ok(&[("cache-control", "max-age=10")], "x")]);
    world.get("/shipments").with("cache-control", "no-store").send().await;
    world
        .get("/shipments")
        .with("cache-control", "no-cache")
        .send()
        .await
        .says("cache", "seawall; hit; ttl=10");
}

#[tokio::test(start_paused = true)]
async fn a_stale_copy_that_has_changed_is_revalidated_and_replaced() {
    let world = world();
    world.plan([
        ok(
            &[
                ("etag", "W/\"a\""),
                ("last-modified", "Mon, 24 Nov 2025 07:00:00 GMT"),
                ("x-kept", "1"),
                ("x-old", "1"),
                ("content-type", "text/plain"),
            ],
            "one",
        ),
        answer(
            304,
            &[("etag", "\"a\""), ("x-old", "2"), ("cache-control", "max-age=5"), ("content-length", "99")],
            "",
        ),
        ok(&[("etag", "\"b\"")], "two"),
    ]);
    world.get("/shipments").send().await;
    secs(30).await;
    let got = world.get("/shipments").send().await;
    got.says("cache", "seawall; fwd=stale; fwd-status=304; stored; ttl=5");
    assert_eq!(world.last().headers["if-none-match"], "W/\"a\"");
    assert_eq!(world.last().headers["if-modified-since"], "Mon, 24 Nov 2025 07:00:00 GMT");
    assert_eq!((got.header("x-kept"), got.header("x-old"), got.header("content-length")), ("1", "2", "3"));
    assert_eq!((got.header("age"), got.header("content-type")), ("0", "text/plain"));
    assert_eq!(got.header("seawall-data-as-of"), "2025-11-24T08:00:30Z");
    assert_eq!(got.body, "one");
    world.get("/shipments").send().await.says("cache", "seawall; hit; ttl=5");
    secs(5).await;
    let got = world.get("/shipments").send().await;
    got.says("upstream", "seawall; fwd=stale; fwd-status=200; stored; ttl=-1");
    assert_eq!(got.body, "two");
    assert_eq!(world.cache.stats().revalidated, 1);
}

#[tokio::test(start_paused = true)]
async fn a_304_that_speaks_of_another_copy_is_asked_again() {
    let world = world();
    world.plan([
        ok(&[("etag", "\"a\"")], "one"),
        answer(304, &[("etag", "\"b\"")], ""),
        ok(&[("etag", "\"b\"")], "two"),
    ]);
    world.get("/shipments").send().await;
    assert_eq!(world.get("/shipments").send().await.body, "two");
    assert!(world.last().headers.get("if-none-match").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_callers_conditions_are_answered_from_the_copy() {
    let world = world();
    let tagged = [
        ("etag", "\"a,b\""),
        ("cache-control", "max-age=10"),
        ("last-modified", "Mon, 24 Nov 2025 07:00:00 GMT"),
        ("content-type", "text/plain"),
    ];
    world.plan([ok(&tagged, "one"), answer(304, &[], "")]);
    // On a miss the whole is fetched, and the condition is judged here.
    let got = world.get("/shipments").with("if-none-match", "\"a,b\"").send().await;
    assert_eq!((got.status, got.body.len()), (StatusCode::NOT_MODIFIED, 0));
    for (name, value, status) in [
        ("if-none-match", "\"x\", W/\"a,b\"", 304),
        ("if-none-match", "*", 304),
        ("if-none-match", "\"a\", \"b\"", 200),
        ("if-modified-since", "Mon, 24 Nov 2025 07:00:00 GMT", 304),
        ("if-modified-since", "Mon, 24 Nov 2025 06:59:59 GMT", 200),
        ("if-modified-since", "yesterday", 200),
    ] {
        let got = world.get("/shipments").with(name, value).send().await;
        assert_eq!(got.status, status, "{name}: {value}");
        got.says("cache", "seawall; hit; ttl=10");
        assert_eq!(got.headers.contains_key("content-type"), status == 200);
        assert_eq!(got.header("etag"), "\"a,b\"");
    }
    secs(11).await;
    let got = world.get("/shipments").with("if-none-match", "\"a,b\"").send().await;
    assert_eq!(got.status, StatusCode::NOT_MODIFIED);
    assert_eq!(world.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_head_is_answered_from_a_fresh_get_and_otherwise_forwarded() {
    let world = world();
    world.plan([
        ok(&[("content-length", "3"), ("cache-control", "max-age=60")], ""),
        ok(&[("cache-control", "max-age=60")], "one"),
    ]);
    let got = world.ask(Method::HEAD, "/shipments").send().await;
    assert_eq!((world.last().method, got.header("content-length")), (Method::HEAD, "3"));
    assert_eq!(world.cache.stats().entries, 0, "the answer to a HEAD is not kept");
    assert_eq!(world.get("/shipments").send().await.body, "one");
    let got = world.ask(Method::HEAD, "/shipments").send().await;
    got.says("cache", "seawall; hit; ttl=60");
    assert_eq!((got.header("content-length"), got.body.len()), ("3", 0));
    secs(60).await;
    world.plan([breaker_open()]);
    let got = world.ask(Method::HEAD, "/shipments").send().await;
    got.says("stale", "seawall; hit; ttl=-1; detail=breaker-open");
    assert_eq!((got.header("content-length"), got.body.len()), ("3", 0));
}

#[tokio::test(start_paused = true)]
async fn the_clock_going_back_makes_a_copy_stale() {
    let world = world();
    world.plan([ok(&[("cache-control", "max-age=60")], "one"), ok(&[], "two")]);
    world.get("/shipments").send().await;
    let key = key_of(&world, "/shipments");
    let mut entry = world.cache.memory.get(&key).unwrap().newest.clone();
    world.cache.memory.clear();
    // As if the wall clock had gone back by nine seconds since.
    Arc::get_mut(&mut entry).expect("nobody else holds it").confirmed.at +=
        jiff::SignedDuration::from_secs(9);
    assert!(entry.confirmed.is_ahead_of(&world.cache.now()));
    assert_eq!(entry.confirmed.since(&world.cache.now()), Duration::ZERO);
    let asked = entry::Asked { headers: &HeaderMap::new(), forwarded: None };
    assert!(world.cache.memory.put(key, entry, asked, || ()));
    let got = world.get("/shipments").send().await;
    assert_eq!((&got.body[..], world.asked()), (&b"two"[..], 2));
}

#[tokio::test(start_paused = true)]
async fn a_part_is_served_of_what_nobody_rewrites() {
    let world = world();
    let plain = [("content-type", "text/csv"), ("cache-control", "max-age=9"), ("etag", "\"a\"")];
    world.plan([ok(&plain, "0123456789")]);
    world.get("/shipments").send().await;
    let range = |range: &str| world.get("/shipments").with("range", range);
    let got = range("bytes=2-4").send().await;
    assert_eq!(got.status, 206);
    assert_eq!(got.body, "234");
    assert_eq!(got.headers["content-range"], "bytes 2-4/10");
    assert_eq!(got.headers["content-length"], "3");
    let got = range("bytes=10-").send().await;
    assert_eq!(got.status, 416);
    assert_eq!(got.body, "");
    assert_eq!(got.headers["content-range"], "bytes */10");
    let got = range("bytes=2-4").with("if-none-match", "\"a\"").send().await;
    assert_eq!(got.status, 304);

    let json = [("content-type", "application/json"), ("cache-control", "max-age=9")];
    world.plan([ok(&json, "{\"data\":1}")]);
    world.get("/bookings").send().await;
    let got = world.get("/bookings").with("range", "bytes=2-4").send().await;
    assert_eq!(got.status, 200);
    assert_eq!(got.body, "{\"data\":1}");
}
