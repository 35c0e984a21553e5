//! The way of a request through the second tier.

use super::*;

const FRESH: [(&str, &str); 1] = [("cache-control", "max-age=600")];

/// One copy, fresh, on disk and not in memory.
async fn on_disk(world: &World) {
    world.plan([ok(&FRESH, "one")]);
    world.get("/shipments").send().await;
    world.cache.flush().await;
    world.cache.memory.clear();
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_stands_still_keeps_nobody_from_the_upstream() {
    let dir = tempfile::tempdir().unwrap();
    let world = world_on(dir.path()).await;
    on_disk(&world).await;
    world.get("/shipments").send().await.says("cache", "seawall; hit; ttl=600");
    world.cache.memory.clear();
    let stalled = world.cache.disk.as_ref().unwrap().stall();
    world.plan([ok(&[], "two"), breaker_open()]);
    let began = Instant::now();
    assert_eq!(world.get("/shipments").send().await.body, "two");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    // An outage asks it once more, and not for long.
    world.cache.memory.clear();
    let began = Instant::now();
    assert!(world.get("/shipments").try_send().await.is_err());
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    drop(stalled);
    world.plan([breaker_open()]);
    assert_eq!(world.get("/shipments").send().await.header("seawall-source"), "stale");
    assert!(world.tasks.stop(Duration::from_secs(60)).await);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_comes_while_the_disk_is_read_counts() {
    let dir = tempfile::tempdir().unwrap();
    let world = world_on(dir.path()).await;
    on_disk(&world).await;
    let stalled = world.cache.disk.as_ref().unwrap().stall();
    world.plan([answer(401, &[], "no")]);
    let token = world.cache.refusals.token(&identity(A, "token").credential);
    let refuse = async {
        tokio::task::yield_now().await;
        let now = Instant::now();
        world.cache.note(A, token, None, StatusCode::UNAUTHORIZED, now).await;
        drop(stalled);
    };
    let (got, ()) = tokio::join!(world.get("/shipments").send(), refuse);
    assert_eq!((got.status.as_u16(), &got.body[..]), (401, &b"no"[..]));
    assert!(world.tasks.stop(Duration::from_secs(60)).await);
}

#[tokio::test(start_paused = true)]
async fn what_an_answer_took_away_does_not_come_back_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let world = world_on(dir.path()).await;
    let taken_away = [
        ok(&[("cache-control", "no-store")], "private"),
        answer(404, &[], "gone"),
        answer(404, &[("cache-control", "max-age=1")], "gone"),
    ];
    for (number, step) in taken_away.into_iter().enumerate() {
        on_disk(&world).await;
        world.plan([step, ok(&[], "asked")]);
        world.get("/shipments").with("cache-control", "no-cache").send().await;
        world.cache.memory.clear();
        assert_eq!(world.get("/shipments").send().await.body, "asked", "{number}");
        world.cache.purge(&Which::All, false, false).await.unwrap();
    }
    assert!(world.tasks.stop(Duration::from_secs(60)).await);
}

#[tokio::test(start_paused = true)]
async fn a_purge_holds_in_memory_whatever_becomes_of_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("cache"), "a file").unwrap();
    let world = world_on(dir.path()).await;
    for which in [Which::All, Which::Path("/shipments".to_owned())] {
        world.plan([ok(&FRESH, "one"), ok(&FRESH, "two")]);
        world.get("/shipments").send().await;
        assert!(world.cache.purge(&which, false, false).await.is_err(), "it may still be on disk");
        assert_eq!(world.get("/shipments").send().await.body, "two");
        world.cache.memory.clear();
    }
    assert!(world.tasks.stop(Duration::from_secs(60)).await);
}
