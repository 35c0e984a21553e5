//! What is forwarded and kept.

use super::*;

#[tokio::test(start_paused = true)]
async fn an_answer_without_freshness_is_kept_but_each_read_asks() {
    let world = world();
    world.plan([ok(&[], "one"), ok(&[], "two"), breaker_open()]);
    let got = world.get("/shipments?page=1").send().await;
    got.says("upstream", "seawall; fwd=uri-miss; fwd-status=200; stored; ttl=-1");
    assert!(got.headers.get("age").is_none() && got.headers.get("seawall-data-as-of").is_none());
    assert_eq!(got.body, "one");
    let got = world.get("/shipments?page=1").send().await;
    got.says("upstream", "seawall; fwd=stale; fwd-status=200; stored; ttl=-1");
    assert_eq!(got.body, "two");
    secs(812).await;
    let got = world.get("/shipments?page=1").send().await;
    got.says("stale", "seawall; hit; ttl=-812; detail=breaker-open");
    assert_eq!((got.status, &got.body[..]), (StatusCode::OK, &b"two"[..]));
    assert_eq!(got.header("age"), "812");
    assert_eq!(got.header("seawall-data-as-of"), START);
    assert_eq!(got.header("seawall-stale-reason"), "breaker-open");
    assert_eq!(got.header("cache-control"), "max-age=0");
    assert_eq!(got.header("content-length"), "3");
    let stats = world.cache.stats();
    assert_eq!((stats.entries, stats.misses, stats.stale_served), (1, 2, 1));
    assert_eq!(stats.newest_confirmed_age_seconds, Some(812));
}

#[tokio::test(start_paused = true)]
async fn a_fresh_copy_is_served_without_asking() {
    let world = world();
    world.plan([ok(&[("cache-control", "max-age=10"), ("etag", "\"a\"")], "one"), ok(&[], "two")]);
    world
        .get("/shipments")
        .send()
        .await
        .says("upstream", "seawall; fwd=uri-miss; fwd-status=200; stored; ttl=10");
    secs(4).await;
    let got = world.get("/shipments").send().await;
    got.says("cache", "seawall; hit; ttl=6");
    assert_eq!((got.header("age"), got.header("etag"), &got.body[..]), ("4", "\"a\"", &b"one"[..]));
    assert_eq!(got.header("cache-control"), "max-age=10");
    assert_eq!(world.asked(), 1);
    secs(6).await;
    assert_eq!(world.get("/shipments").send().await.body, "two");
}

#[tokio::test(start_paused = true)]
async fn a_routes_ttl_is_for_answers_that_name_no_freshness() {
    let world = world_with(
        |_| {},
        |route| {
            if let Some(cache) = &mut route.cache {
                cache.ttl = Duration::from_secs(5);
            }
        },
    );
    world.plan([ok(&[], "one"), ok(&[("cache-control", "max-age=0")], "two"), ok(&[], "three")]);
    world.get("/shipments").send().await;
    world.get("/shipments").send().await.says("cache", "seawall; hit; ttl=5");
    world.get("/ports").send().await;
    assert_eq!(world.get("/ports").send().await.body, "three");
}

#[tokio::test(start_paused = true)]
async fn only_what_is_in_the_key_goes_upstream() {
    let world = world();
    world.plan([ok(&[], "one")]);
    let ask = world
        .get("/shipments?f=%2F..&x=%20")
        .with("authorization", "Bearer token")
        .with("flexport-version", "3")
        .with("accept", "application/json")
        .with("accept-encoding", "gzip")
        .with("cookie", "a=b")
        .with("x-forwarded-host", "evil")
        .with("if-none-match", "\"theirs\"")
        .with("range", "bytes=0-1")
        .with("connection", "accept")
        .with("seawall-stale", "never");
    ask.send().await;
    let seen = world.last();
    assert_eq!(
        (seen.method, seen.target.as_str(), seen.lane),
        (Method::GET, "/shipments?f=%2F..&x=%20", Lane::LiveRead)
    );
    let mut names: Vec<_> = seen.headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["accept", "accept-encoding", "flexport-version", "traceparent", "user-agent", "x-request-id"]
    );
    assert_eq!(seen.headers["user-agent"], concat!("Seawall/", env!("CARGO_PKG_VERSION")));
    assert_eq!(seen.headers["accept-encoding"], "identity");
}

#[tokio::test(start_paused = true)]
async fn partitions_versions_and_urls_never_mix() {
    let world = world();
    let long = "max-age=100";
    world.plan((0..5).map(|number| ok(&[("cache-control", long)], &number.to_string())));
    let body = async |ask: Ask<'_>| String::from_utf8(ask.send().await.body.to_vec()).unwrap();
    for _ in 0..2 {
        assert_eq!(body(world.get("/shipments")).await, "0");
        assert_eq!(body(world.get("/shipments").by(identity(B, "other"))).await, "1");
        assert_eq!(body(world.get("/shipments").with("flexport-version", "3")).await, "2");
        assert_eq!(body(world.get("/shipments").with("accept", "text/html")).await, "3");
        assert_eq!(body(world.get("/shipments?a")).await, "4");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_for_the_cache_goes_to_the_inner_service() {
    let world = world();
    let got = world.ask(Method::POST, "/bookings").body("{}").send().await;
    got.says("upstream", "seawall; fwd=method");
    world.get("/unknown").send().await.says("upstream", "seawall; fwd=bypass");
    world.get("/shipments").body("content").send().await.says("upstream", "seawall; fwd=bypass");
    let nobody = Identity { caller: None, credential: Credential::None, partition: None, owner: None };
    world.get("/shipments").by(nobody).send().await.says("upstream", "seawall; fwd=bypass");
    let queued = answer(202, &[("seawall-source", "queue")], "");
    world.script.inner_steps.lock().unwrap().push_back(queued);
    world.ask(Method::POST, "/bookings").send().await.says("queue", "");
    assert_eq!(world.script.inner_seen.lock().unwrap().len(), 5);
    assert_eq!((world.asked(), world.cache.stats().bypassed), (0, 5));
}

#[tokio::test(start_paused = true)]
async fn what_must_not_be_kept_is_not() {
    let envelope_error = r#"{"_object":"/api/response","data":{"error":null},"error":{"_object":"/api/error","status":503,"message":"a \"}}\" b"}}"#;
    let json = ("content-type", "application/json");
    for step in [
        ok(&[("cache-control", "max-age=60, no-store")], "x"),
        ok(&[("cache-control", "max-age=60"), ("set-cookie", "a=b")], "x"),
        ok(&[("cache-control", "max-age=60"), ("vary", "Accept, *")], "x"),
        ok(&[("cache-control", "max-age=60"), json], envelope_error),
        answer(206, &[("cache-control", "max-age=60")], "x"),
        answer(302, &[("cache-control", "max-age=60"), ("location", "/")], "x"),
        answer(301, &[], "x"),
        answer(404, &[], "x"),
        answer(500, &[("cache-control", "max-age=60")], "x"),
        answer(401, &[("cache-control", "max-age=60")], "x"),
    ] {
        let world = world();
        world.plan([step, ok(&[], "second"), ok(&[], "third")]);
        let got = world.get("/shipments").send().await;
        assert_eq!(got.header("seawall-source"), "upstream");
        assert!(!got.header("cache-status").contains("stored"), "{}", got.header("cache-status"));
        assert_eq!(world.cache.stats().entries, 0);
        assert_eq!(world.get("/shipments").send().await.body, "second");
        assert_eq!(world.asked(), 2);
    }
    for step in [
        ok(&[json], OK_ENVELOPE),
        ok(&[json], r#"{"_object":"/api/response","data":{"error":{"a":1}},"error":null}"#),
        answer(404, &[("cache-control", "max-age=60")], "x"),
        answer(301, &[("cache-control", "max-age=60")], "x"),
    ] {
        let world = world();
        world.plan([step]);
        world.get("/shipments").send().await;
        assert_eq!(world.cache.stats().entries, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn upstreams_own_fields_of_ours_are_not_believed() {
    let world = world();
    let lies = [
        ("seawall-source", "queue"),
        ("seawall-write-id", "x"),
        ("cache-status", "cdn; hit"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
    ];
    world.plan([ok(&lies, "x"), answer(500, &lies, "x")]);
    let got = world.get("/shipments").send().await;
    assert!(got.headers.get("seawall-write-id").is_none() && got.headers.get("x-hop").is_none());
    got.says("upstream", "cdn; hit, seawall; fwd=uri-miss; fwd-status=200; stored; ttl=-1");
    let got = world.get("/ports").send().await;
    let said: Vec<_> = got.headers.get_all("cache-status").iter().collect();
    assert_eq!(said, ["cdn; hit, seawall; fwd=uri-miss; fwd-status=500"]);
}
