//! The lists of copies.

use super::*;

const FRESH: [(&str, &str); 1] = [("cache-control", "max-age=600")];

fn query() -> Query {
    Query { which: Vec::new(), freshness: None, after: None, limit: 100 }
}

async fn listed(world: &World, query: Query) -> Vec<Copy> {
    world.cache.list(query).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_copy_is_listed_with_its_age_hits_and_freshness() {
    let world = world();
    world.plan([ok(&FRESH, "one"), ok(&[("cache-control", "no-cache, max-age=600")], "two")]);
    for _ in 0..4 {
        world.get("/shipments").send().await;
    }
    world.get("/bookings").send().await;
    secs(100).await;
    let all = listed(&world, query()).await;
    assert_eq!(all.len(), 2);
    let of = |path: &str| all.iter().find(|copy| copy.path == path).unwrap();
    let (fresh, guarded) = (of("/shipments"), of("/bookings"));
    assert_eq!((fresh.hits, fresh.freshness, fresh.ttl_seconds), (Some(3), Freshness::Fresh, 500));
    assert_eq!((fresh.age_seconds, fresh.tier, fresh.status), (100, "memory", 200));
    assert_eq!((guarded.hits, guarded.freshness, guarded.ttl_seconds), (Some(0), Freshness::Revalidate, -1));

    // What a write made out of date, and what its time has.
    world.settle("/shipments", &Method::PATCH, "/shipments/1");
    let outdated = listed(&world, Query { freshness: Some(Freshness::Revalidate), ..query() }).await;
    assert_eq!(outdated.len(), 2);
    assert_eq!(outdated.iter().map(|copy| copy.ttl_seconds).collect::<Vec<_>>(), [-1, -1]);
    // A stale read counts, and what comes in its place goes on with the count.
    world.plan([breaker_open(), ok(&FRESH, "three")]);
    assert_eq!(world.get("/shipments").send().await.header("seawall-source"), "stale");
    world.get("/shipments").send().await;
    secs(601).await;
    let which = vec![Which::Tag("shipments".to_owned()), Which::Partition(A)];
    let stale = listed(&world, Query { which, freshness: Some(Freshness::Stale), ..query() }).await;
    assert_eq!((stale[0].hits, stale[0].ttl_seconds, stale.len()), (Some(4), -1, 1));
    let other = listed(&world, Query { which: vec![Which::Partition(B)], ..query() }).await;
    assert!(other.is_empty() && !world.cache.partitions().contains_key(&B));
    assert_eq!(world.cache.partitions()[&A], 2);
}

#[tokio::test(start_paused = true)]
async fn the_pages_of_a_list_hold_both_tiers_and_each_copy_once() {
    let dir = tempfile::tempdir().unwrap();
    let world = world_on(dir.path()).await;
    let paths: Vec<String> = (0..20).map(|number| format!("/shipments/{number}")).collect();
    for (number, path) in paths.iter().enumerate() {
        if number == 10 {
            world.cache.flush().await;
            world.cache.memory.clear();
        }
        world.plan([ok(&FRESH, "x")]);
        world.get(path).send().await;
    }
    world.cache.flush().await;
    // Only in memory: what is no success is not for the disk.
    world.plan([answer(404, &FRESH, "no")]);
    world.get("/bookings/1").send().await;
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = listed(&world, Query { after: after.take(), limit: 3, ..query() }).await;
        after = page.last().map(|last| last.id.clone());
        let is_last = page.len() < 3;
        found.extend(page);
        if is_last {
            break;
        }
    }
    assert!(found.is_sorted_by(|a, b| a.id < b.id));
    let mut seen: Vec<&str> = found.iter().map(|copy| &*copy.path).collect();
    seen.sort_unstable();
    let mut all: Vec<&str> = paths.iter().map(String::as_str).chain(["/bookings/1"]).collect();
    all.sort_unstable();
    assert_eq!(seen, all);
    let of = |tier: &str| found.iter().filter(|copy| copy.tier == tier).count();
    assert_eq!((of("disk"), of("memory and disk"), of("memory")), (10, 10, 1));
    assert!(found.iter().all(|copy| copy.hits.is_none() == (copy.tier == "disk")));
    assert!(found.iter().all(|copy| copy.freshness == Freshness::Fresh));
    world.cache.purge(&Which::All, true, false).await.unwrap();
    let outdated = listed(&world, Query { freshness: Some(Freshness::Revalidate), ..query() }).await;
    assert_eq!(outdated.len(), 21);
    assert!(world.tasks.stop(Duration::from_secs(60)).await);
}
