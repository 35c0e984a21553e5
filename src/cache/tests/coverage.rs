//! What an outage now would be served.

use super::*;
use std::collections::BTreeMap;

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

fn page(ids: &[u32], total: u32) -> String {
    let objects: Vec<String> =
        ids.iter().map(|id| format!(r#"{{"_object":"/shipment","id":{id},"name":"x"}}"#)).collect();
    let objects = objects.join(",");
    format!(
        r#"{{"_object":"/api/response","self":"x","version":2,"data":{{"_object":"/api/collections/paginated","prev":null,"next":null,"total_count":{total},"data":[{objects}]}},"error":null}}"#
    )
}

async fn covered(world: &World, partition: Option<PartitionId>) -> Coverage {
    world.cache.coverage(world.snapshot.clone(), partition).await.unwrap()
}

fn route<'a>(coverage: &'a Coverage, label: &str) -> &'a RouteCoverage {
    coverage.routes.iter().find(|route| route.route == label).unwrap()
}

#[tokio::test(start_paused = true)]
async fn it_tells_what_would_be_served_and_how_old() {
    let world = world();
    let empty = covered(&world, None).await;
    assert_eq!(empty.shipments, ShipmentCoverage::default());
    assert!(empty.partitions.is_empty() && empty.disk.is_none() && !empty.is_partial);
    for route in &empty.routes {
        let why = if route.route == "other" { "not-cacheable" } else { "never-seen" };
        assert_eq!((route.copies, route.why_not), (0, Some(why)), "{}", route.route);
    }

    // Two with copies of their own, one of them on the page too; three on the page alone.
    world.plan([ok(&[], OK_ENVELOPE), ok(&[], OK_ENVELOPE)]);
    world.get("/shipments/1").send().await;
    world.get("/shipments/9").send().await;
    secs(100).await;
    world.plan([ok(&JSON, &page(&[1, 2, 3, 4], 5))]);
    world.get("/shipments?page=1").send().await;
    secs(10).await;
    let coverage = covered(&world, None).await;
    let shipments = &coverage.shipments;
    assert_eq!((shipments.served, shipments.from_lists, shipments.listed), (5, 3, Some(5)));
    assert_eq!((shipments.ages.age_p50_seconds, shipments.ages.age_max_seconds), (Some(10), Some(110)));
    let list = route(&coverage, "GET /shipments");
    assert_eq!((list.copies, list.served, list.from_lists, list.why_not), (1, 1, 0, None));
    let objects = route(&coverage, "GET /shipments/:id");
    assert_eq!((objects.copies, objects.served, objects.from_lists), (2, 5, 3));
    let [partition] = &coverage.partitions[..] else { panic!("{coverage:?}") };
    assert_eq!((partition.partition, partition.credential), (A, "proven"));
    assert_eq!((partition.copies, partition.served, partition.shipments), (3, 6, 5));
    assert_eq!(covered(&world, Some(B)).await.shipments.served, 0);

    // What it says is what happens.
    for id in [1, 2, 3, 4, 9] {
        world.plan([breaker_open()]);
        let target = format!("/shipments/{id}");
        assert_eq!(world.get(&target).send().await.header("seawall-source"), "stale", "{id}");
    }
    world.plan([breaker_open()]);
    assert!(world.get("/shipments/5").try_send().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn it_tells_what_would_be_refused_and_why() {
    let world = world_with(
        |_| {},
        |route| {
            if let Some(policy) = &mut route.cache {
                policy.overrides_revalidation = policy.tag != "bookings";
                if policy.tag == "documents" {
                    policy.max_stale = Duration::from_secs(60);
                }
            }
        },
    );
    world.plan([
        ok(&[("cache-control", "max-age=0, must-revalidate")], OK_ENVELOPE),
        ok(&[], OK_ENVELOPE),
        ok(&[("cache-control", "no-store")], OK_ENVELOPE),
        ok(&[("set-cookie", "a=b")], OK_ENVELOPE),
        ok(&JSON, &page(&[7], 1)),
    ]);
    for target in
        ["/bookings/1", "/documents", "/products", "/invoices", "/shipments?f.updated_at.gt=2020-01-01"]
    {
        world.get(target).send().await;
    }
    secs(61).await;
    let coverage = covered(&world, None).await;
    let why = |label: &str| route(&coverage, label).why_not;
    assert_eq!(why("GET /bookings/:id"), Some("must-revalidate"));
    assert_eq!(why("GET /documents"), Some("too-old"));
    assert_eq!(why("GET /products"), Some("no-store"));
    assert_eq!(why("GET /invoices"), Some("set-cookie"));
    assert_eq!(why("GET /shipments"), Some("incremental"));
    assert_eq!(why("GET /ports"), Some("never-seen"));
    assert_eq!(route(&coverage, "GET /products").unservable, BTreeMap::from([("no-store", 1)]));
    assert_eq!(route(&coverage, "GET /bookings/:id").unservable, BTreeMap::from([("must-revalidate", 1)]));
    assert_eq!(
        coverage.refused,
        BTreeMap::from([("incremental", 1), ("must-revalidate", 1), ("too-old", 1)])
    );
    assert_eq!((coverage.shipments.served, coverage.shipments.listed), (0, None));
    // A page that is no JSON holds nothing for an outage.
    world.plan([ok(&[], &page(&[7], 1))]);
    world.get("/shipments").send().await;
    let coverage = covered(&world, None).await;
    assert_eq!((coverage.shipments.served, route(&coverage, "GET /shipments").served), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_credential_that_is_refused_or_not_proven_is_served_nothing() {
    let world = world();
    world.plan([ok(&[], OK_ENVELOPE), ok(&[], OK_ENVELOPE), answer(403, &[], "no"), ok(&[], OK_ENVELOPE)]);
    world.get("/shipments/1").send().await;
    world.get("/shipments/2").send().await;
    world.get("/shipments/2").send().await;
    world.get("/bookings/1").by(identity(B, "other")).send().await;
    // One of its two copies is refused to its only token.
    let coverage = covered(&world, Some(A)).await;
    let objects = route(&coverage, "GET /shipments/:id");
    assert_eq!((objects.served, objects.why_not), (1, None));
    assert_eq!(objects.refused, BTreeMap::from([("credential-refused", 1)]));
    world.plan([answer(401, &[], "no")]);
    world.get("/shipments").send().await;
    let coverage = covered(&world, None).await;
    let of = |partition| coverage.partitions.iter().find(|one| one.partition == partition).unwrap();
    assert_eq!((of(A).credential, of(A).served), ("refused", 0));
    assert_eq!((of(B).credential, of(B).served), ("proven", 1));
    assert_eq!(route(&coverage, "GET /shipments/:id").why_not, Some("credential-refused"));
    // Nobody asked for longer than `stale_auth_window`, and than `max_stale`: the window counts as soon as it is over.
    secs(25 * 3600).await;
    assert_eq!(covered(&world, Some(B)).await.partitions[0].credential, "unproven");
}

#[tokio::test(start_paused = true)]
async fn the_disk_counts_too_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let world = world_on(dir.path()).await;
    world.plan([ok(&JSON, &page(&[1, 2, 3], 3)), ok(&[], OK_ENVELOPE)]);
    world.get("/shipments").send().await;
    world.get("/shipments/1").send().await;
    world.cache.flush().await;
    let before = covered(&world, None).await;
    world.cache.memory.clear();
    assert_eq!(covered(&world, None).await, before);
    assert_eq!((before.shipments.served, before.shipments.from_lists), (3, 2));
    assert_eq!(before.disk.as_deref(), Some("on"));
    assert!(world.tasks.stop(Duration::from_secs(60)).await);
    drop(world);
    let again = world_on(dir.path()).await;
    let after = covered(&again, None).await;
    assert_eq!((after.shipments.served, &after.partitions[0].credential), (3, &"proven"));
    // What was deleted by hand is not on any page either.
    again.cache.purge(&Which::Path("/shipments/2".to_owned()), false, false).await.unwrap();
    assert_eq!(covered(&again, None).await.shipments.served, 2);
    assert!(again.tasks.stop(Duration::from_secs(60)).await);
}
