//! The strict profile.

use super::*;

#[tokio::test(start_paused = true)]
async fn strict_tells_variants_apart_by_vary() {
    let world = world_with(|settings| settings.profile = Profile::Strict, |_| {});
    let varied = [("cache-control", "public, max-age=60"), ("vary", "X-Kind, accept")];
    world.plan([ok(&varied, "a"), ok(&varied, "b"), ok(&varied, "none")]);
    let kind = |kind: &str| world.get("/anything").with("x-kind", kind).with("x-other", kind);
    for _ in 0..2 {
        assert_eq!(kind("a").send().await.body, "a");
        assert_eq!(kind("b").send().await.body, "b");
        assert_eq!(world.get("/anything").send().await.body, "none");
    }
    assert_eq!(world.script.seen.lock().unwrap()[1].headers["x-other"], "b");
    world.plan([ok(&varied, "c")]);
    kind("c").send().await.says("upstream", "seawall; fwd=vary-miss; fwd-status=200; stored; ttl=60");
}

#[tokio::test(start_paused = true)]
async fn strict_is_a_shared_cache() {
    for (cache_control, is_kept) in
        [("max-age=9", false), ("private", false), ("public, max-age=9", true), ("s-maxage=9", true)]
    {
        let world = world_with(|settings| settings.profile = Profile::Strict, |_| {});
        world.plan([ok(&[("cache-control", cache_control)], "x")]);
        world.get("/anything").send().await;
        assert_eq!(world.cache.stats().entries, u64::from(is_kept), "{cache_control}");
    }
}

#[tokio::test(start_paused = true)]
async fn strict_shares_what_one_token_was_refused() {
    let world = world_with(|settings| settings.profile = Profile::Strict, |_| {});
    world.plan([ok(&[("cache-control", "public, max-age=9")], "x"), answer(401, &[], "no")]);
    world.get("/anything").send().await;
    assert_eq!(world.get("/other").send().await.status, 401);
    world.get("/anything").send().await.says("cache", "seawall; hit; ttl=9");
}

#[tokio::test(start_paused = true)]
async fn strict_prefers_what_vary_selects() {
    let world = world_with(|settings| settings.profile = Profile::Strict, |_| {});
    let varied = [("cache-control", "public, max-age=60"), ("vary", "x-kind")];
    world.plan([ok(&varied, "a"), ok(&[("cache-control", "public, max-age=60")], "any")]);
    assert_eq!(world.get("/anything").with("x-kind", "a").send().await.body, "a");
    assert_eq!(world.get("/anything").with("x-kind", "b").send().await.body, "any");
    assert_eq!(world.get("/anything").with("x-kind", "a").send().await.body, "a");
    assert_eq!(world.get("/anything").with("x-kind", "c").send().await.body, "any");
}
