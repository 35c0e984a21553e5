//! Writes, purges and invalidations.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_settled_write_makes_path_and_tags_out_of_date() {
    let world = world();
    let fresh = || ok(&[("cache-control", "max-age=600")], "old");
    world.plan([fresh(), fresh(), fresh(), fresh()]);
    for target in ["/bookings/1?a=b", "/bookings?page=1", "/ports", "/bookings/2"] {
        world.get(target).send().await;
    }
    let other = identity(B, "b");
    world.plan([fresh()]);
    world.get("/bookings?page=1").by(other.clone()).send().await;
    world.settle("/bookings", &Method::POST, "/bookings");
    world.get("/ports").send().await.says("cache", "seawall; hit; ttl=600");
    world.get("/bookings?page=1").by(other).send().await.says("cache", "seawall; hit; ttl=600");
    world.plan([answer(503, &[], "no"), ok(&[("cache-control", "max-age=600")], "new")]);
    let got = world.get("/bookings?page=1").send().await;
    got.says("stale", "seawall; fwd=stale; fwd-status=503; ttl=-1; detail=invalidated");
    let got = world.get("/bookings?page=1").send().await;
    got.says("upstream", "seawall; fwd=stale; fwd-status=200; stored; ttl=600");
    world.get("/bookings?page=1").send().await.says("cache", "seawall; hit; ttl=600");
}

#[tokio::test(start_paused = true)]
async fn a_fill_from_before_a_write_is_neither_joined_nor_kept() {
    let world = world();
    let slow = |body: &str, seconds| {
        Step::After(Duration::from_secs(seconds), Box::new(ok(&[("cache-control", "max-age=600")], body)))
    };
    world.plan([slow("before", 3), slow("after", 4)]);
    let spawn = || tokio::spawn(world.service.clone().oneshot(world.get("/bookings/1").request()));
    let first = spawn();
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.settle("/bookings/1", &Method::PATCH, "/bookings/1");
    let second = spawn();
    tokio::task::yield_now().await;
    let third = spawn();
    let first = first.await.unwrap().unwrap();
    assert_eq!(first.headers()["cache-status"], "seawall; fwd=uri-miss; fwd-status=200; ttl=597");
    assert_eq!(first.into_body().collect(10).await.unwrap(), "before");
    assert_eq!(world.cache.stats().entries, 0);
    for ask in [second, third] {
        assert_eq!(ask.await.unwrap().unwrap().into_body().collect(10).await.unwrap(), "after");
    }
    assert_eq!(world.asked(), 2);
    assert_eq!(world.get("/bookings/1").send().await.body, "after");
}

#[tokio::test(start_paused = true)]
async fn unsafe_requests_that_go_by_make_their_path_out_of_date() {
    for (method, step, asks_again) in [
        (Method::DELETE, answer(204, &[], ""), true),
        (Method::from_bytes(b"MERGE").unwrap(), ok(&[], ""), true),
        (Method::DELETE, answer(500, &[], ""), true),
        (Method::DELETE, answer(404, &[], ""), false),
        (Method::DELETE, breaker_open(), false),
        (Method::OPTIONS, answer(204, &[], ""), false),
        (Method::POST, answer(201, &[("location", "http://127.0.0.1:8460/shipments/1?x")], ""), true),
    ] {
        let world = world();
        world.plan([ok(&[("cache-control", "max-age=600")], "old"), ok(&[], "new")]);
        world.get("/shipments/1").send().await;
        world.script.inner_steps.lock().unwrap().push_back(step);
        let target = if method == Method::POST { "/elsewhere" } else { "/shipments/1" };
        let _ = world.ask(method.clone(), target).try_send().await;
        let body = world.get("/shipments/1").send().await.body;
        assert_eq!(body == "new", asks_again, "{method}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_unsafe_request_whose_caller_left_may_have_acted() {
    let world = world();
    world.plan([ok(&[("cache-control", "max-age=600")], "old"), ok(&[], "new")]);
    world.get("/shipments/1").send().await;
    let slow = Step::After(Duration::from_secs(10), Box::new(answer(204, &[], "")));
    world.script.inner_steps.lock().unwrap().push_back(slow);
    let request = world.ask(Method::DELETE, "/shipments/1").request();
    let call = tokio::spawn(world.service.clone().oneshot(request));
    tokio::time::sleep(Duration::from_secs(1)).await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    assert_eq!(world.get("/shipments/1").send().await.body, "new");
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_for_earlier_never_replaces_what_was_asked_for_later() {
    for step in [ok(&[], "older"), answer(304, &[("etag", "\"a\"")], ""), answer(404, &[], "")] {
        let world = world();
        world.plan([
            ok(&[("etag", "\"a\"")], "first"),
            Step::After(Duration::from_secs(3), Box::new(step)),
            ok(&[("etag", "\"b\"")], "newer"),
            breaker_open(),
        ]);
        world.get("/shipments").send().await;
        let slow = tokio::spawn(world.service.clone().oneshot(world.get("/shipments").request()));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let other = identity(A, "of the same partition");
        assert_eq!(world.get("/shipments").by(other).send().await.body, "newer");
        let slow = slow.await.unwrap().unwrap();
        assert!(!slow.headers()["cache-status"].to_str().unwrap().contains("stored"));
        let got = world.get("/shipments").send().await;
        assert_eq!((got.header("seawall-source"), &got.body[..]), ("stale", &b"newer"[..]));
    }
}

#[tokio::test(start_paused = true)]
async fn clearing_forgets_and_invalidating_keeps() {
    let world = world();
    let fresh = || ok(&[("cache-control", "max-age=600")], "x");
    world.plan([fresh(), breaker_open(), breaker_open()]);
    world.get("/shipments").send().await;
    world.cache.purge(&Which::All, true, false).await.unwrap();
    let got = world.get("/shipments").send().await;
    got.says("stale", "seawall; hit; ttl=-1; detail=invalidated");
    let purged = world.cache.purge(&Which::All, false, false).await.unwrap();
    assert_eq!(purged, Purged { memory: 1, disk: 0 });
    assert!(world.get("/shipments").try_send().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_token_whose_last_success_is_too_long_ago_is_served_nothing_stale() {
    let window = crate::config::raw::Span(Duration::from_secs(3600));
    let world = world_with(|settings| settings.cache.stale_auth_window = window, |_| {});
    world.plan([ok(&[], "x"), breaker_open(), breaker_open(), ok(&[], "y"), breaker_open()]);
    world.get("/shipments").send().await;
    tokio::time::advance(Duration::from_secs(3590)).await;
    assert_eq!(world.get("/shipments").send().await.body, "x");
    tokio::time::advance(Duration::from_secs(20)).await;
    assert!(world.get("/shipments").try_send().await.is_err());
    world.get("/shipments").send().await;
    assert_eq!(world.get("/shipments").send().await.body, "y");
}

#[tokio::test(start_paused = true)]
async fn a_purge_takes_what_it_names_and_what_is_under_way() {
    let world = world();
    world.plan([ok(&[], "list"), ok(&[], "one"), ok(&[], "bookings")]);
    for path in ["/shipments?page=2", "/shipments/1", "/bookings"] {
        world.get(path).send().await;
    }
    let purge = async |which: Which, is_dry| world.cache.purge(&which, false, is_dry).await.unwrap().memory;
    assert_eq!(purge(Which::Prefix("/shipments".to_owned()), true).await, 2);
    assert_eq!(purge(Which::Path("/shipments".to_owned()), false).await, 1);
    assert_eq!(purge(Which::Tag("bookings".to_owned()), false).await, 1);
    world.plan([breaker_open(), breaker_open(), breaker_open()]);
    assert!(world.get("/shipments?page=2").try_send().await.is_err());
    assert!(world.get("/bookings").try_send().await.is_err());
    assert_eq!(world.get("/shipments/1").send().await.body, "one");

    let slow = Step::After(Duration::from_secs(1), Box::new(ok(&[], "late")));
    world.plan([slow, breaker_open()]);
    let asking = tokio::spawn(world.service.clone().oneshot(world.get("/bookings").request()));
    tokio::task::yield_now().await;
    assert_eq!(purge(Which::Tag("bookings".to_owned()), false).await, 0);
    assert_eq!(asking.await.unwrap().unwrap().status(), StatusCode::OK);
    assert!(world.get("/bookings").try_send().await.is_err(), "what was under way is not kept");

    let soft = world.cache.purge(&Which::Path("/shipments/1".to_owned()), true, false).await.unwrap();
    assert_eq!(soft, Purged { memory: 1, disk: 0 });
    world.plan([breaker_open()]);
    let got = world.get("/shipments/1").send().await;
    got.says("stale", "seawall; hit; ttl=-1; detail=invalidated");
}

/// What a purge means is told by what copies are; of a fill under way nobody knows that yet.
#[tokio::test(start_paused = true)]
async fn a_fill_from_before_a_purge_is_neither_joined_nor_kept() {
    let whiches = [
        Which::Path("/bookings/1".to_owned()),
        Which::Prefix("/book".to_owned()),
        Which::Tag("bookings".to_owned()),
        Which::Partition(A),
        Which::All,
    ];
    for (which, is_soft) in whiches.iter().flat_map(|which| [(which, false), (which, true)]) {
        for has_copy in [false, true] {
            let world = world();
            let slow = |body: &str, seconds| {
                let fresh = [("cache-control", "max-age=600")];
                Step::After(Duration::from_secs(seconds), Box::new(ok(&fresh, body)))
            };
            if has_copy {
                world.plan([ok(&[], "oldest")]);
                world.get("/bookings/1").send().await;
            }
            world.plan([slow("before", 3), slow("after", 3)]);
            let spawn = || tokio::spawn(world.service.clone().oneshot(world.get("/bookings/1").request()));
            let first = spawn();
            tokio::time::sleep(Duration::from_secs(1)).await;
            let dry = world.cache.purge(which, is_soft, true).await.unwrap();
            assert_eq!(dry.memory, usize::from(has_copy));
            let joins = spawn();
            tokio::task::yield_now().await;
            world.cache.purge(which, is_soft, false).await.unwrap();
            let later = [spawn(), spawn()];
            let what = format!("{which:?}, soft: {is_soft}, copy: {has_copy}");
            for ask in [first, joins] {
                let first = ask.await.unwrap().unwrap();
                assert!(!first.headers()["cache-status"].to_str().unwrap().contains("stored"), "{what}");
                assert_eq!(first.into_body().collect(10).await.unwrap(), "before", "{what}");
            }
            for ask in later {
                let body = ask.await.unwrap().unwrap().into_body().collect(10).await.unwrap();
                assert_eq!(body, "after", "{what}");
            }
            assert_eq!(world.asked(), 2 + usize::from(has_copy), "{what}");
            let kept = world.get("/bookings/1").send().await;
            assert_eq!((kept.header("seawall-source"), &kept.body[..]), ("cache", &b"after"[..]), "{what}");
        }
    }
}

/// An older body is not put back from disk either, by a read of it that a purge or a write overtook.
#[tokio::test(start_paused = true)]
async fn a_fill_from_before_a_write_is_not_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let world = world_on(dir.path()).await;
    for is_purge in [false, true] {
        let slow = Step::After(Duration::from_secs(3), Box::new(ok(&[], "before")));
        world.plan([slow, breaker_open()]);
        let first = tokio::spawn(world.service.clone().oneshot(world.get("/bookings/1").request()));
        tokio::time::sleep(Duration::from_secs(1)).await;
        if is_purge {
            world.cache.purge(&Which::Path("/bookings/1".to_owned()), true, false).await.unwrap();
        } else {
            world.settle("/bookings/1", &Method::PATCH, "/bookings/1");
        }
        assert_eq!(first.await.unwrap().unwrap().into_body().collect(10).await.unwrap(), "before");
        world.cache.flush().await;
        world.cache.memory.clear();
        assert!(world.get("/bookings/1").try_send().await.is_err());
    }
    assert!(world.tasks.stop(Duration::from_secs(60)).await);
}
