//! Warming.

use super::*;

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

struct Kitchen {
    world: World,
    warmer: Arc<Warmer>,
}

fn kitchen() -> Kitchen {
    let world = world();
    let script = world.script.clone();
    let upstream = Upstream::new(service_fn(move |asked: UpstreamRequest| {
        let (parts, _) = asked.request.into_parts();
        script.seen.lock().unwrap().push(Seen {
            method: parts.method,
            target: parts.uri.to_string(),
            headers: parts.headers,
            lane: asked.call.lane,
        });
        play(script.steps.lock().unwrap().pop_front().expect("nothing more is asked of the upstream"))
    }));
    let snapshot = world.snapshot.clone();
    let config = Arc::new(move || snapshot.clone());
    let warmer = Warmer::new(world.cache.clone(), upstream, config, &Metrics::new());
    Kitchen { world, warmer }
}

fn order(targets: &[&str]) -> WarmOrder {
    WarmOrder {
        what: WarmWhat::Targets(targets.iter().map(ToString::to_string).collect()),
        identity: identity(A, "token"),
        headers: HeaderMap::new(),
        concurrency: 1,
        actor: "me".to_owned(),
        reason: "a test".to_owned(),
    }
}

impl Kitchen {
    async fn until(&self, is_so: impl Fn(&WarmStatus) -> bool) -> WarmStatus {
        for _ in 0..100_000 {
            let status = self.warmer.status().unwrap();
            if is_so(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never: {:?}", self.warmer.status());
    }

    async fn ended(&self) -> WarmStatus {
        self.until(|status| status.ended_at.is_some()).await
    }

    fn targets(&self) -> Vec<String> {
        self.world.script.seen.lock().unwrap().iter().map(|seen| seen.target.clone()).collect()
    }
}

fn counts(of: &[(&str, u64)]) -> std::collections::BTreeMap<String, u64> {
    of.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect()
}

#[tokio::test(start_paused = true)]
async fn what_was_warmed_is_there_in_an_outage_for_who_asks_in_the_same_form() {
    let kitchen = kitchen();
    let world = &kitchen.world;
    assert!(kitchen.warmer.status().is_none());
    world.plan([ok(&[], "old"), ok(&[("cache-control", "max-age=600")], "fresh")]);
    world.get("/bookings/1").with("flexport-version", "3").send().await;
    world.get("/bookings/2").with("flexport-version", "3").send().await;
    world.plan([
        ok(&[], "one"),
        answer(404, &[], "none"),
        ok(&[("cache-control", "no-store")], "secret"),
        ok(&[("etag", "\"a\"")], "two"),
    ]);
    let mut order = order(&[
        "/shipments/1",
        "/bookings/2",
        "/shipments/404",
        "/documents/9",
        "/shipments?f.updated_at.gt=2020-01-01",
        "/oauth/token",
        "/bookings/1",
    ]);
    order.headers.insert("flexport-version", HeaderValue::from_static("3"));
    let begun = kitchen.warmer.start(order).unwrap();
    assert_eq!((begun.id, begun.state, begun.total, begun.is_lost_on_restart), (1, "running", 7, true));
    let status = kitchen.ended().await;
    assert_eq!((status.state, status.total, status.done, status.left), ("done", 7, 7, 0), "{status:?}");
    assert_eq!((status.stored, status.confirmed, status.fresh), (2, 0, 1), "{status:?}");
    assert_eq!(status.skipped, counts(&[("incremental", 1), ("not-cacheable", 1), ("not-kept", 1)]));
    assert_eq!(status.failed, counts(&[("status-404", 1)]));
    assert_eq!(status.failures[0].target, "/shipments/404");
    assert!(status.is_total_final && status.pause.is_none() && status.pauses.is_empty());
    {
        let seen = world.script.seen.lock().unwrap();
        let warmed = &seen[2..];
        assert!(warmed.iter().all(|seen| seen.lane == Lane::Refresh && seen.method == Method::GET));
        assert!(warmed.iter().all(|seen| seen.headers["flexport-version"] == "3"));
    }
    // Again: what has a validator is only confirmed.
    world.plan([answer(304, &[("etag", "\"a\"")], "")]);
    let mut again = self::order(&["/bookings/1"]);
    again.headers.insert("flexport-version", HeaderValue::from_static("3"));
    assert_eq!(kitchen.warmer.start(again).unwrap().id, 2);
    assert_eq!(kitchen.ended().await.confirmed, 1);
    assert_eq!(world.last().headers["if-none-match"], "\"a\"");

    world.plan([breaker_open(), breaker_open(), breaker_open()]);
    let got = world.get("/shipments/1").with("flexport-version", "3").send().await;
    assert_eq!((got.header("seawall-source"), &got.body[..]), ("stale", &b"one"[..]));
    assert!(world.get("/shipments/1").try_send().await.is_err(), "it was asked for in another form");
    let other = world.get("/shipments/1").with("flexport-version", "3").by(identity(B, "other"));
    assert!(other.try_send().await.is_err(), "it is another's");
}

#[tokio::test(start_paused = true)]
async fn it_shares_the_lock_with_callers() {
    let kitchen = kitchen();
    let world = &kitchen.world;
    world.plan([Step::After(Duration::from_secs(1), Box::new(ok(&[], "one")))]);
    kitchen.warmer.start(order(&["/shipments/1"])).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(world.get("/shipments/1").send().await.body, "one");
    assert_eq!((kitchen.ended().await.stored, world.asked()), (1, 1));
    world.plan([Step::After(Duration::from_secs(1), Box::new(ok(&[], "two")))]);
    let asks = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        kitchen.warmer.start(order(&["/shipments/2"])).unwrap();
        kitchen.ended().await
    };
    let (got, status) = tokio::join!(world.get("/shipments/2").send(), asks);
    assert_eq!((&got.body[..], status.stored, world.asked()), (&b"two"[..], 1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_breaker_or_a_rate_limit_pauses_it_and_failures_are_tried_again() {
    let kitchen = kitchen();
    let world = &kitchen.world;
    world.plan([
        breaker_open(),
        breaker_open(),
        ok(&[], "one"),
        answer(429, &[("retry-after", "7")], ""),
        Step::Fail(ProxyError::RateLimited { retry_after: Duration::from_secs(2) }),
        Step::Fail(ProxyError::Overloaded { what: "x" }),
        ok(&[], "two"),
        answer(500, &[], ""),
        Step::Fail(ProxyError::HeadTimeout),
        ok(&[], "three"),
        answer(502, &[], ""),
        answer(502, &[], ""),
        answer(502, &[], ""),
    ]);
    let began = Instant::now();
    kitchen.warmer.start(order(&["/shipments/1", "/shipments/2", "/shipments/3", "/shipments/4"])).unwrap();
    let paused = kitchen.until(|status| status.state == "paused").await;
    let pause = paused.pause.unwrap();
    assert_eq!(pause.why, "breaker-open");
    assert!((1..=5).contains(&pause.next_try_seconds), "{pause:?}");
    assert_eq!((paused.left, paused.in_flight, paused.done, world.asked()), (4, 0, 0, 1));
    let limited = kitchen.until(|status| status.pauses.contains_key("rate-limited")).await;
    assert!(began.elapsed() >= Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!((limited.stored, limited.done), (1, 1));
    let status = kitchen.ended().await;
    assert!(began.elapsed() >= Duration::from_secs(10 + 7 + 2 + 1), "{:?}", began.elapsed());
    assert_eq!((status.state, status.stored, world.asked()), ("done", 3, 13), "{status:?}");
    assert_eq!(status.failed, counts(&[("upstream-failing", 1)]));
    let pauses = [("breaker-open", 2), ("overloaded", 1), ("rate-limited", 2), ("upstream-failing", 4)];
    assert_eq!(status.pauses.into_iter().collect::<Vec<_>>(), pauses);
}

#[tokio::test(start_paused = true)]
async fn a_refused_credential_ends_it() {
    let kitchen = kitchen();
    kitchen.world.plan([ok(&[], "one"), answer(401, &[], "no")]);
    kitchen.warmer.start(order(&["/shipments/1", "/shipments/2", "/shipments/3"])).unwrap();
    let status = kitchen.ended().await;
    assert_eq!((status.state, status.stored, status.left), ("failed", 1, 1), "{status:?}");
    assert!(status.why.as_ref().unwrap().contains("401"), "{status:?}");
    assert_eq!(status.failed, counts(&[("status-401", 1)]));
}

#[tokio::test(start_paused = true)]
async fn one_job_at_a_time_that_can_be_cancelled_and_ends_with_the_process() {
    let kitchen = kitchen();
    let slow = || Step::After(Duration::from_secs(5), Box::new(ok(&[], "x")));
    kitchen.world.plan([slow(), slow()]);
    assert!(matches!(kitchen.warmer.cancel("me"), Err(WarmError::Idle)));
    kitchen.warmer.start(order(&["/shipments/1", "/shipments/2"])).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let Err(WarmError::Busy(busy)) = kitchen.warmer.start(order(&["/shipments/3"])) else { panic!() };
    assert_eq!((busy.id, busy.in_flight), (1, 1));
    assert_eq!(kitchen.warmer.cancel("you").unwrap().state, "ending");
    // What is on its way comes to its end.
    let status = kitchen.ended().await;
    assert_eq!((status.state, status.stored, status.left), ("cancelled", 1, 1), "{status:?}");
    assert_eq!(status.why.as_deref(), Some("cancelled by you"));
    assert_eq!(kitchen.targets(), ["/shipments/1"]);

    kitchen.warmer.start(order(&["/shipments/2", "/shipments/3"])).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    kitchen.warmer.stop();
    let status = kitchen.ended().await;
    assert_eq!((status.state, status.stored, status.left), ("stopped", 1, 1), "{status:?}");
    assert!(matches!(kitchen.warmer.start(order(&["/shipments/3"])), Err(WarmError::Stopping)));
    assert!(kitchen.world.tasks.stop(Duration::from_secs(60)).await);
}

#[tokio::test(start_paused = true)]
async fn a_pause_ends_with_a_cancel() {
    let kitchen = kitchen();
    kitchen.world.plan([answer(429, &[("retry-after", "30")], "")]);
    kitchen.warmer.start(order(&["/shipments/1"])).unwrap();
    kitchen.until(|status| status.state == "paused").await;
    let now = Instant::now();
    kitchen.warmer.cancel("me").unwrap();
    let status = kitchen.ended().await;
    assert!(now.elapsed() < Duration::from_secs(1));
    assert_eq!((status.state, status.left, status.pause), ("cancelled", 1, None));
}

#[tokio::test(start_paused = true)]
async fn active_shipments_are_walked_page_by_page() {
    let shipment = |id: u32, delivered: &str| {
        format!(
            r#"{{"_object":"/shipment","id":{id},"archived_at":null,"actual_delivered_in_full_date":{delivered},"legs":{{"_object":"/api/refs/collection","link":"http://127.0.0.1:8460/shipment_legs?f.shipment.id={id}"}}}}"#
        )
    };
    let page = |next: &str, shipments: &[String]| {
        let all = shipments.join(",");
        format!(
            r#"{{"_object":"/api/response","self":"x","version":2,"data":{{"_object":"/api/collections/paginated","prev":null,"next":{next},"total_count":3,"data":[{all}]}},"error":null}}"#
        )
    };
    let kitchen = kitchen();
    let next = r#""http://127.0.0.1:8460/shipments?page=2&per=100""#;
    kitchen.world.plan([
        ok(&JSON, &page(next, &[shipment(1, "null"), shipment(2, "\"2025-01-01\"")])),
        ok(&JSON, &page("null", &[shipment(3, "null")])),
    ]);
    kitchen.world.plan((0..4).map(|_| ok(&JSON, OK_ENVELOPE)));
    let order = WarmOrder { what: WarmWhat::Shipments, ..order(&[]) };
    let begun = kitchen.warmer.start(order.clone()).unwrap();
    assert_eq!((begun.what, begun.total, begun.is_total_final), ("shipments", 1, false));
    let status = kitchen.ended().await;
    assert_eq!((status.shipments_listed, status.shipments_active), (3, 2));
    assert_eq!((status.state, status.stored, status.is_total_final), ("done", 6, true), "{status:?}");
    assert_eq!(
        kitchen.targets(),
        [
            "/shipments?page=1&per=100",
            "/shipments?page=2&per=100",
            "/shipments/1",
            "/shipment_legs?f.shipment.id=1",
            "/shipments/3",
            "/shipment_legs?f.shipment.id=3"
        ]
    );
    let coverage = kitchen.world.cache.coverage(kitchen.world.snapshot.clone(), None).await.unwrap();
    assert_eq!((coverage.shipments.served, coverage.shipments.from_lists), (3, 1));
    // Not a page: said, and the end.
    kitchen.world.plan([ok(&JSON, OK_ENVELOPE)]);
    kitchen.warmer.start(order).unwrap();
    let status = kitchen.ended().await;
    assert_eq!(status.failed, counts(&[("not-a-page", 1)]), "{status:?}");
    assert_eq!((status.stored, status.total), (0, 1));
}
