//! Who may see what.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_refused_token_sees_no_copy_until_its_own_success() {
    let world = world();
    let fresh = || ok(&[("cache-control", "max-age=600")], "good");
    let revoked = || identity(A, "revoked");
    world.plan([fresh(), ok(&[], "good"), answer(401, &[], "who")]);
    world.get("/shipments").send().await;
    world.get("/ports").send().await;
    assert_eq!(world.get("/shipments").by(revoked()).send().await.body, "good");
    assert_eq!(world.get("/ports").by(revoked()).send().await.status, 401);
    world.plan([breaker_open(), answer(401, &[], "who")]);
    let got = world.get("/shipments").by(revoked()).try_send().await;
    assert!(matches!(got, Err(ProxyError::BreakerOpen { .. })), "neither hit nor stale");
    assert_eq!(world.get("/shipments").by(revoked()).send().await.status, 401);
    assert_eq!(world.get("/shipments").send().await.header("seawall-source"), "cache", "others do");
    world.plan([fresh()]);
    world
        .get("/shipments")
        .by(revoked())
        .send()
        .await
        .says("upstream", "seawall; fwd=bypass; fwd-status=200; stored; ttl=600");
    world.get("/shipments").by(revoked()).send().await.says("cache", "seawall; hit; ttl=600");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_comes_during_a_wait_holds_for_it() {
    for step in [breaker_open(), answer(503, &[], ""), ok(&[], "too late")] {
        let world = world();
        world.plan([
            ok(&[], "good"),
            Step::After(Duration::from_secs(4), Box::new(step.clone())),
            answer(401, &[], "who"),
            breaker_open(),
        ]);
        world.get("/shipments").send().await;
        let request = world.get("/shipments").request();
        let waiting = tokio::spawn(world.service.clone().oneshot(request));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(world.get("/ports").send().await.status, 401);
        if let Ok(got) = waiting.await.unwrap() {
            assert_eq!(got.headers()["seawall-source"], "upstream");
        }
        // Nor does a success that was asked for before the refusal end it.
        assert!(world.get("/shipments").try_send().await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn a_403_refuses_one_entry() {
    let world = world();
    let fresh = || ok(&[("cache-control", "max-age=1")], "good");
    world.plan([fresh(), fresh()]);
    world.get("/shipments").send().await;
    world.get("/ports").send().await;
    secs(2).await;
    world.plan([answer(403, &[], "no"), breaker_open(), breaker_open()]);
    assert_eq!(world.get("/shipments").send().await.status, 403);
    assert!(world.get("/shipments").try_send().await.is_err());
    assert_eq!(world.get("/ports").send().await.header("seawall-source"), "stale");
}

#[tokio::test(start_paused = true)]
async fn what_is_gone_is_dropped_by_a_healthy_group_only() {
    for (fails, left) in [(false, 0), (true, 1)] {
        let world = world();
        world.plan([ok(&[], "good"), answer(404, &[("cache-control", "max-age=9")], "gone")]);
        world.get("/shipments/1").send().await;
        world.facts.fails.store(fails, Ordering::Relaxed);
        assert_eq!(world.get("/shipments/1").send().await.status, 404);
        world.plan([breaker_open()]);
        let got = world.get("/shipments/1").send().await;
        // Healthy: the 404 with freshness of its own is what is known now.
        assert_eq!(got.status, if left == 0 { 404 } else { 200 });
        assert_eq!(got.header("cache-status").contains("detail=invalidated"), left == 1);
    }
    let world = world();
    world.plan([ok(&[], "good"), answer(410, &[], "gone"), breaker_open()]);
    world.get("/shipments/1").send().await;
    assert_eq!(world.get("/shipments/1").send().await.status, 410);
    assert!(world.get("/shipments/1").try_send().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn pending_writes_are_told() {
    let world = world();
    world.plan([ok(&[("cache-control", "max-age=9")], "x")]);
    *world.facts.pending.lock().unwrap() = Some(Pending { count: 2, oldest: Duration::from_secs(40) });
    for _ in 0..2 {
        assert_eq!(world.get("/bookings/1").send().await.header("seawall-pending-writes"), "2; oldest=40");
    }
}
