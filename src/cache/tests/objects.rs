//! Objects out of pages.

use super::*;

const SHIPMENT: &str = r#"{"zeta":1, "_object":"/shipment","id":12,"note":"say \"id\":77, {\"_object\":\"/shipment\",\"id\":78}","leg":{"_object":"/shipment_leg","id":5},"alpha":[1,2]}"#;

fn page(objects: &[&str]) -> String {
    let objects = objects.join(", ");
    format!(
        r#"{{"_object":"/api/response","self":"http://127.0.0.1:8460/shipments?per=2","version":3,"data":{{"_object":"/api/collections/paginated","prev":null,"next":null,"total_count":9,"data":[{objects}]}},"error":null}}"#
    )
}

fn named(id: u64, name: &str) -> String {
    format!(r#"{{"_object":"/shipment","id":{id},"name":"{name}"}}"#)
}

fn listed(objects: &[&str]) -> Step {
    ok(&[("content-type", "application/json; charset=utf-8"), ("etag", "\"e\"")], &page(objects))
}

/// Asks, and the upstream answers so.
async fn told(step: Step, ask: Ask<'_>) -> StatusCode {
    ask.world.plan([step]);
    ask.send().await.status
}

/// Asks while the breaker is open.
async fn outage(ask: Ask<'_>) -> Option<Got> {
    ask.world.plan([breaker_open()]);
    match ask.try_send().await {
        Ok(got) => Some(got),
        Err(ProxyError::BreakerOpen { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

#[track_caller]
fn name_of(got: Option<Got>) -> String {
    let got: serde_json::Value = serde_json::from_slice(&got.expect("it is served").body).unwrap();
    got["data"]["name"].as_str().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn what_was_only_seen_in_a_list_is_an_object_in_an_outage() {
    let world = world();
    world.plan([listed(&[SHIPMENT, &named(123, "longer")])]);
    world.get("/shipments?per=2").send().await;
    secs(812).await;
    let got = outage(world.get("/shipments/12")).await.unwrap();
    assert_eq!(got.status, 200);
    let whole = format!(
        r#"{{"_object":"/api/response","self":"http://127.0.0.1:8460/shipments/12","version":3,"data":{SHIPMENT},"error":null}}"#
    );
    assert_eq!(got.body, whole, "byte for byte, in the order of its keys");
    got.says("stale", "seawall; hit; ttl=-812; detail=from-collection");
    for (name, value) in [
        ("age", "812"),
        ("seawall-data-as-of", START),
        ("seawall-stale-reason", "breaker-open"),
        ("content-type", "application/json"),
        ("cache-control", "max-age=0"),
        ("etag", ""),
        ("last-modified", ""),
        ("content-length", &whole.len().to_string()),
    ] {
        assert_eq!(got.header(name), value, "{name}");
    }
    let head = outage(world.ask(Method::HEAD, "/shipments/12")).await.unwrap();
    assert!(head.body.is_empty());
    assert_eq!(head.header("content-length"), whole.len().to_string());
    for (name, value) in [("if-none-match", "\"e\""), ("if-modified-since", "Mon, 24 Nov 2030 08:00:00 GMT")]
    {
        let got = outage(world.get("/shipments/12").with(name, value)).await.unwrap();
        assert_eq!((got.status.as_u16(), got.body), (200, Bytes::from(whole.clone())), "{name}");
    }
    // However the outage shows.
    world.plan([answer(503, &[], "down"), Step::Fail(ProxyError::HeadTimeout), Step::Cut]);
    let failed = "seawall; fwd=uri-miss; fwd-status=503; ttl=-812; detail=from-collection";
    world.get("/shipments/12").send().await.says("stale", failed);
    for reason in ["upstream-timeout", "upstream-error"] {
        let got = world.get("/shipments/12").send().await;
        got.says("stale", "seawall; fwd=uri-miss; ttl=-812; detail=from-collection");
        assert_eq!(got.header("seawall-stale-reason"), reason);
    }
    let stats = world.cache.stats();
    assert_eq!((stats.from_collection, stats.stale_served), (7, 7));
    // A copy of its own is better.
    world.plan([ok(&[], "own")]);
    world.get("/shipments/12").send().await;
    assert_eq!(outage(world.get("/shipments/12")).await.unwrap().body, "own");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_that_object_is_never_served_for_it() {
    let world = world();
    world.plan([
        listed(&[SHIPMENT, r#"{"_object":"/api/refs/object","ref_type":"/shipment","id":6}"#]),
        listed(&[&named(31, "expanded")]),
        listed(&[&named(32, "expanded")]),
        ok(&[("content-type", "text/html")], &page(&[&named(33, "text")])),
        ok(&[("content-type", "application/json")], &page(&[&named(34, "cut")])[..150]),
        listed(&[r#"{"_object":"/booking","id":35}"#]),
        listed(&[&named(36, "x")]),
    ]);
    for path in [
        "/shipments?per=2",
        "/shipments?expand=legs",
        "/shipments?per=1&e%78pand%5B%5D=legs",
        "/shipments?per=3",
        "/shipments?per=4",
        "/bookings",
        "/network/me/companies",
    ] {
        assert_eq!(world.get(path).send().await.status, 200);
    }
    for path in [
        // Parts of ids, ids in nested objects and texts, references.
        "/shipments/1",
        "/shipments/2",
        "/shipments/122",
        "/shipments/012",
        "/shipments/5",
        "/shipments/77",
        "/shipments/78",
        "/shipments/6",
        // Pages that are none, or other ones.
        "/shipments/31",
        "/shipments/32",
        "/shipments/33",
        "/shipments/34",
        "/shipments/35",
        "/shipment_legs/5",
        "/network/companies/36",
        // Other things.
        "/shipments/12?expand=legs",
        "/shipments/12?x=y",
        "/shipments/12/legs",
        "/shipments",
        "/shipments?per=5",
    ] {
        let inner = world.script.inner_seen.lock().unwrap().len();
        if path == "/shipments/12/legs" {
            world.get(path).send().await;
            assert_eq!(world.script.inner_seen.lock().unwrap().len(), inner + 1);
        } else {
            assert!(outage(world.get(path)).await.is_none(), "{path}");
        }
    }
    assert!(outage(world.get("/shipments/12").by(identity(B, "token"))).await.is_none(), "other tenant");
    assert!(outage(world.get("/shipments/12").with("flexport-version", "3")).await.is_none());
    assert!(outage(world.get("/shipments/12").with("flexport-version", "")).await.is_none());
    assert!(outage(world.get("/shipments/12").with("accept-language", "de")).await.is_none());
    assert!(outage(world.get("/shipments/12").with("seawall-stale", "never")).await.is_none());
    // Not asked of the upstream for, so it is not an outage.
    let got = world.get("/shipments/12").with("cache-control", "only-if-cached").send().await;
    assert_eq!(got.status, 504);
    assert!(outage(world.get("/shipments/12")).await.is_some());
    assert!(outage(world.get("/shipments/12/")).await.is_some());
    assert!(outage(world.get("/bookings/35").with("accept", "*/*")).await.is_some());
    assert_eq!(world.cache.stats().from_collection, 3);
}

#[tokio::test(start_paused = true)]
async fn the_newest_page_counts() {
    let world = world();
    let (old, new) = (named(1, "old"), named(1, "new"));
    world.plan([listed(&[&new]), listed(&[&old])]);
    world.get("/shipments?page=1").send().await;
    secs(1).await;
    world.get("/shipments?page=2").send().await;
    assert_eq!(name_of(outage(world.get("/shipments/1")).await), "old");
    // Confirmed again, and read again.
    secs(1).await;
    told(answer(304, &[], ""), world.get("/shipments?page=1")).await;
    assert_eq!(name_of(outage(world.get("/shipments/1")).await), "new");
    secs(1).await;
    told(listed(&[&named(2, "two")]), world.get("/shipments?page=1")).await;
    assert_eq!(name_of(outage(world.get("/shipments/1")).await), "old");
    assert_eq!(name_of(outage(world.get("/shipments/2")).await), "two");
    let which = Which::Path("/shipments/2".to_owned());
    for (is_soft, is_dry) in [(true, false), (false, true)] {
        world.cache.purge(&which, is_soft, is_dry).await.unwrap();
        assert!(outage(world.get("/shipments/2")).await.is_some(), "nothing was deleted");
    }
    world.cache.purge(&which, false, false).await.unwrap();
    assert!(outage(world.get("/shipments/2")).await.is_none(), "deleted as an object");
    assert!(outage(world.get("/shipments?page=1")).await.is_some(), "and not as a part of the list");
    secs(1).await;
    told(listed(&[&named(2, "anew")]), world.get("/shipments?page=1")).await;
    assert_eq!(name_of(outage(world.get("/shipments/2")).await), "anew");
    world.cache.purge(&Which::Path("/shipments".to_owned()), false, false).await.unwrap();
    assert!(outage(world.get("/shipments/1")).await.is_none(), "deleted");
}

#[tokio::test(start_paused = true)]
async fn the_rules_of_stale_copies_hold() {
    let world = world();
    told(listed(&[&named(1, "one"), &named(2, "two")]), world.get("/shipments")).await;
    // Another token of the partition, proven or not.
    let other = || identity(A, "other");
    assert!(outage(world.get("/shipments/1").by(other())).await.is_none(), "not proven");
    told(ok(&[], "port"), world.get("/ports").by(other())).await;
    assert!(outage(world.get("/shipments/1").by(other())).await.is_some());
    told(answer(401, &[], ""), world.get("/ports").by(other())).await;
    assert!(outage(world.get("/shipments/1").by(other())).await.is_none(), "refused altogether");
    told(ok(&[], "port"), world.get("/ports").by(other())).await;
    told(answer(403, &[], ""), world.get("/shipments/1").by(other())).await;
    assert!(outage(world.get("/shipments/1").by(other())).await.is_none(), "the object is refused");
    assert!(outage(world.get("/shipments/2").by(other())).await.is_some());
    told(answer(403, &[], ""), world.get("/shipments").by(other())).await;
    assert!(outage(world.get("/shipments/2").by(other())).await.is_none(), "the page is refused");
    assert!(outage(world.get("/shipments/1")).await.is_some());

    // What a write touched says so, and so does what waits.
    *world.facts.pending.lock().unwrap() = Some(Pending { count: 1, oldest: Duration::from_secs(4) });
    world.settle("/shipments/1", &Method::PATCH, "/shipments/1");
    let got = outage(world.get("/shipments/1")).await.unwrap();
    got.says("stale", "seawall; hit; ttl=-1; detail=invalidated");
    assert_eq!(got.header("seawall-pending-writes"), "1; oldest=4");
    // 429: our limiter, or Flexport's. The shorter window.
    secs(59).await;
    let busy = || answer(429, &[("retry-after", "5")], "");
    assert_eq!(told(busy(), world.get("/shipments/1")).await, 200);
    secs(2).await;
    assert_eq!(told(busy(), world.get("/shipments/1")).await, 429);
    secs(24 * 3600).await;
    told(ok(&[], "port"), world.get("/ports")).await;
    assert!(outage(world.get("/shipments/1")).await.is_none(), "too old");
    assert_eq!(world.cache.stats().refused, 2 + 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_upstream_said_not_to_be_there_is_not_served_out_of_an_older_page() {
    for status in [404, 410] {
        let world = world();
        world.plan([listed(&[&named(1, "one"), &named(2, "two")]), answer(status, &[], "")]);
        world.get("/shipments").send().await;
        secs(1).await;
        assert_eq!(world.get("/shipments/1?expand=legs").send().await.status, status);
        assert!(outage(world.get("/shipments/1")).await.is_none());
        assert!(outage(world.get("/shipments/2")).await.is_some());
        secs(1).await;
        world.plan([listed(&[&named(1, "again")])]);
        world.get("/shipments?page=2").send().await;
        assert_eq!(name_of(outage(world.get("/shipments/1")).await), "again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_is_too_old_gives_way_to_a_newer_page() {
    let world = world();
    world.plan([ok(&[], "own")]);
    world.get("/shipments/1").send().await;
    secs(20 * 3600).await;
    world.plan([listed(&[&named(1, "one")])]);
    world.get("/shipments").send().await;
    assert_eq!(outage(world.get("/shipments/1")).await.unwrap().body, "own");
    secs(5 * 3600).await;
    assert_eq!(name_of(outage(world.get("/shipments/1")).await), "one");
    assert_eq!(world.cache.stats().refused, 0);
}

#[tokio::test(start_paused = true)]
async fn directives_of_the_page_hold_unless_the_objects_route_overrides_them() {
    for is_overridden in [true, false] {
        let world = world_with(
            |_| {},
            |row| {
                if let Some(cache) = &mut row.cache {
                    cache.overrides_revalidation = is_overridden;
                }
            },
        );
        let head = [("content-type", "application/json"), ("cache-control", "private, must-revalidate")];
        world.plan([ok(&head, &page(&[&named(1, "one")]))]);
        world.get("/shipments").send().await;
        let got = outage(world.get("/shipments/1")).await;
        assert_eq!(got.is_some(), is_overridden);
        if let Some(got) = got {
            assert_eq!(got.header("cache-control"), "max-age=0, private");
        }
        assert_eq!(world.cache.stats().refused, u64::from(!is_overridden));
    }
}

#[tokio::test(start_paused = true)]
async fn a_route_can_be_without_it() {
    let world = world_with(
        |_| {},
        |row| {
            if row.template == "/shipments/:id"
                && let Some(cache) = &mut row.cache
            {
                cache.object_fallback = false;
            }
        },
    );
    world.plan([listed(&[&named(1, "one")]), listed(&[r#"{"_object":"/booking","id":1}"#])]);
    world.get("/shipments").send().await;
    world.get("/bookings").send().await;
    assert!(outage(world.get("/shipments/1")).await.is_none());
    assert!(outage(world.get("/bookings/1")).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn every_route_of_one_object_but_ports_has_it() {
    let rows = built_in();
    let mut objects = 0;
    for row in &rows {
        let Some(cache) = &row.cache else { continue };
        let is_object = row.template.ends_with("/:id");
        assert_eq!(cache.object_fallback, is_object && row.template != "/ports/:id", "{}", row.template);
        objects += usize::from(is_object);
        let item = format!("{}/:id", row.template);
        assert_eq!(cache.holds_objects, rows.iter().any(|row| row.template == item && row.cache.is_some()));
    }
    assert!(objects > 15, "{objects}");
    let world = world();
    for (index, row) in rows.iter().enumerate() {
        let Some(cache) = &row.cache else { continue };
        if cache.holds_objects && row.template != "/ports" {
            let object = format!(r#"{{"_object":"/x/y","id":"a-{index}"}}"#);
            world.plan([listed(&[&object])]);
            world.get(&row.template).send().await;
            let got = outage(world.get(&format!("{}/a-{index}", row.template))).await;
            assert!(got.is_some(), "{}", row.template);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn many_long_pages_are_read_once_and_within_bounds() {
    let world = world();
    let long = "x".repeat(1 << 20);
    for number in 0..20_u64 {
        world.plan([listed(&[&named(number, &long)])]);
        world.get(&format!("/shipments?page={number}")).send().await;
        secs(1).await;
    }
    // The newest, as many as are read at all.
    let mut served = 0;
    for number in 0..20 {
        let got = outage(world.get(&format!("/shipments/{number}"))).await;
        assert_eq!(got.is_some(), number >= 5, "{number}");
        served += u64::from(got.is_some());
    }
    assert_eq!(world.cache.stats().from_collection, served);
    for number in 1000..1100 {
        assert!(outage(world.get(&format!("/shipments/{number}"))).await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn pages_and_collections_are_bounded_and_what_is_read_over_and_over_takes_one_place() {
    let world = world();
    for number in 0..300_u64 {
        world.plan([listed(&[&named(number, "page")]), listed(&[&named(9999, "hot")])]);
        world.get(&format!("/shipments?page={number}")).send().await;
        world.get("/shipments").send().await;
    }
    assert!(outage(world.get("/shipments/44")).await.is_none());
    assert!(outage(world.get("/shipments/45")).await.is_some());
    assert!(outage(world.get("/shipments/9999")).await.is_some());
    // Others cannot push out more than their share.
    for number in 0..3000_u64 {
        let mut whose = [7; 16];
        whose[..8].copy_from_slice(&number.to_le_bytes());
        world.plan([answer(404, &[], "")]);
        world.get("/shipments/1").by(identity(PartitionId(whose), "random")).send().await;
    }
    assert!(outage(world.get("/shipments/45")).await.is_some(), "what has pages stays");
}
