//! What once went wrong.

use super::*;
use std::future::Future as _;
use tower::Service as _;

const LISTED: &str = r#"{"_object":"/api/response","self":"x","version":2,"data":{"_object":"/api/collections/paginated","data":[{"_object":"/shipment","id":1}]},"error":null}"#;

/// A page with the shipment 1 on it.
fn a_page() -> Step {
    ok(&[("content-type", "application/json")], LISTED)
}

/// As [`world`], with an upstream that answers a 401 whose body is cut.
fn refusing(mut world: World) -> World {
    let upstream = Upstream::new(service_fn(|_: UpstreamRequest| async {
        let left = VecDeque::from([Bytes::from_static(b"{\"_ob")]);
        let mut response = Response::new(Body::new(Pieces { left, is_cut: true }));
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        Ok(response)
    }));
    let inner = service_fn(|_: Request<Body>| async { Ok(Response::new(Body::empty())) });
    world.service = BoxCloneSyncService::new(CacheLayer::new(world.cache.clone(), upstream).layer(inner));
    world
}

#[tokio::test(start_paused = true)]
async fn a_refusal_whose_body_is_cut_counts() {
    let world = world();
    world.plan([ok(&[], "one")]);
    world.get("/shipments").send().await;
    let world = refusing(world);
    for _ in 0..2 {
        let got = world.get("/shipments").try_send().await;
        assert!(matches!(got, Err(ProxyError::Cut(_))), "no copy stands in for it");
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_does_not_wait_long_for_what_is_on_disk_to_be_found() {
    let dir = tempfile::tempdir().unwrap();
    let world = world_on(dir.path()).await;
    world.plan([a_page()]);
    world.get("/shipments?per=1").send().await;
    assert!(world.tasks.stop(Duration::from_secs(60)).await);
    drop(world);

    let world = world_on(dir.path()).await;
    let stalled = world.cache.disk.as_ref().unwrap().stall();
    world.plan([breaker_open(), breaker_open()]);
    let began = Instant::now();
    let (one, other) =
        tokio::join!(world.get("/shipments/1").try_send(), world.get("/shipments/1").try_send());
    assert!(one.is_err() && other.is_err());
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    drop(stalled);
    world.plan([breaker_open()]);
    let got = world.get("/shipments/1").send().await;
    assert!(got.header("cache-status").ends_with("detail=from-collection"));
    assert!(world.tasks.stop(Duration::from_secs(60)).await);
}

#[tokio::test(start_paused = true)]
async fn a_304_renews_nothing_that_was_deleted_since_it_was_found() {
    let world = world();
    world.plan([ok(&[("etag", "\"1\"")], "one"), answer(304, &[], ""), breaker_open()]);
    world.get("/shipments").send().await;
    // It is found when it is called for, and asked about when it is polled.
    let asking = world.service.clone().call(world.get("/shipments").request());
    world.cache.purge(&Which::Path("/shipments".to_owned()), false, false).await.unwrap();
    assert_eq!(asking.await.unwrap().headers()["cache-status"], "seawall; fwd=stale; fwd-status=304; ttl=-1");
    assert!(world.get("/shipments").try_send().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_not_served_what_was_deleted_meanwhile() {
    let second = Duration::from_secs(1);
    for is_meant in [true, false] {
        for step in [breaker_open(), Step::After(Duration::from_secs(50), Box::new(ok(&[], "late")))] {
            let world = world();
            // Who loses patience asks for himself.
            world.plan([ok(&[], "one"), Step::After(second, Box::new(step)), breaker_open()]);
            world.get("/shipments").send().await;
            let ask = async || world.get("/shipments").try_send().await.map(|got| got.body);
            let purge = async {
                tokio::time::sleep(second / 2).await;
                let path = if is_meant { "/shipments/" } else { "/bookings" };
                world.cache.purge(&Which::Path(path.to_owned()), false, false).await.unwrap();
            };
            // One leads, one joins.
            let (led, joined, ()) = tokio::join!(ask(), ask(), purge);
            for got in [led, joined] {
                assert_eq!(got.ok().as_deref(), (!is_meant).then_some(&b"one"[..]));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_404_of_a_failing_upstream_hides_no_object_of_a_page() {
    for fails in [true, false] {
        let world = world();
        world.plan([a_page(), answer(404, &[], ""), breaker_open()]);
        world.get("/shipments?per=1").send().await;
        world.facts.fails.store(fails, Ordering::Relaxed);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(world.get("/shipments/1").send().await.status, 404);
        assert_eq!(world.get("/shipments/1").try_send().await.is_ok(), fails);
    }
}

#[tokio::test(start_paused = true)]
async fn every_answer_to_a_refused_token_waits_for_its_refusal_to_be_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let world = world_on(dir.path()).await;
    world.plan([ok(&[], "one")]);
    world.get("/shipments").send().await;
    let token = world.cache.refusals.token(&identity(A, "token").credential);
    let note = || Box::pin(world.cache.note(A, token, None, StatusCode::UNAUTHORIZED, Instant::now()));
    let (mut first, mut second) = (note(), note());
    for noted in [&mut first, &mut second] {
        assert!(std::future::poll_fn(|cx| Poll::Ready(noted.as_mut().poll(cx).is_pending())).await);
    }
    tokio::join!(first, second);
    assert!(world.tasks.stop(Duration::from_secs(60)).await);
}

#[tokio::test(start_paused = true)]
async fn a_soft_purge_says_when_the_disk_was_not_reached() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("cache"), "a file").unwrap();
    let world = world_on(dir.path()).await;
    let fresh = || ok(&[("cache-control", "max-age=600")], "one");
    for (which, is_whole) in [
        (Which::Path("/shipments/".to_owned()), false),
        (Which::Tag("shipments".to_owned()), false),
        (Which::All, true),
    ] {
        world.plan([fresh(), breaker_open()]);
        world.get("/shipments?a=1").send().await;
        assert_eq!(world.get("/shipments?a=1").send().await.header("seawall-source"), "cache");
        assert_eq!(world.cache.purge(&which, true, false).await.is_ok(), is_whole, "{which:?}");
        let got = world.get("/shipments?a=1").send().await;
        got.says("stale", "seawall; hit; ttl=-1; detail=invalidated");
        world.cache.memory.clear();
    }
    assert!(world.tasks.stop(Duration::from_secs(60)).await);
}

#[tokio::test(start_paused = true)]
async fn a_soft_purge_leaves_one_mark_for_what_is_one() {
    let world = world();
    for query in 0..10 {
        world.plan([ok(&[], "one")]);
        world.get(&format!("/shipments?page={query}")).send().await;
    }
    for which in [Which::Path("/shipments".to_owned()), Which::Tag("shipments".to_owned())] {
        let before = world.cache.marks.moment().number();
        assert_eq!(world.cache.purge(&which, true, false).await.unwrap().memory, 10);
        // And the number at which fills under way were cut off.
        assert_eq!(world.cache.marks.moment().number(), before + 2, "{which:?}");
    }
}
