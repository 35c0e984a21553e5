//! What once went wrong.

use super::*;

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
