//! Reads: fresh, stale, collapsed; never an answer of Flexport's replaced by one of ours but by a copy.

use crate::assert_eventually;
use crate::support::chaos::{self, Chaos};
use crate::support::scripted::{Scripted, json};
use crate::support::{Answer, PATIENCE, Proxy, TOKEN, arrivals, client, send, simulator};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use jiff::Timestamp;
use serde_json::json;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore};

/// A breaker that opens soon and stays open.
const OPENS_SOON: [&str; 5] = [
    "breaker.consecutive_failures=3",
    "breaker.consecutive_span=50ms",
    "breaker.open_wait=30s",
    "breaker.open_wait_max=60s",
    "probe.enabled=false",
];

/// The `ttl` of `Cache-Status`.
fn ttl(answer: &Answer) -> i64 {
    let said = answer.field("cache-status");
    let ttl = said.split("; ").find_map(|part| part.strip_prefix("ttl="));
    ttl.unwrap_or_else(|| panic!("no ttl in {said}")).parse().unwrap()
}

fn says(answer: &Answer, parts: &[&str]) {
    let said = answer.field("cache-status");
    assert!(said.starts_with("seawall; "), "{said}");
    let found: Vec<&str> = said.split("; ").collect();
    for part in parts {
        assert!(found.contains(part), "{part} is not in {said}");
    }
}

#[tokio::test]
async fn the_first_failing_read_of_an_outage_is_answered_from_the_last_good_copy() {
    let simulator = simulator().await;
    let proxy = Proxy::start(&simulator.url(), &OPENS_SOON).await;
    let before = Timestamp::now();
    let fresh = proxy.get("/shipments?per=3").await;
    assert_eq!((fresh.status.as_u16(), fresh.source()), (200, "upstream"));
    assert_eq!(fresh.field("etag"), "", "the simulator sends no validators");
    says(&fresh, &["fwd=uri-miss", "fwd-status=200", "stored"]);
    assert_eq!(fresh.field("seawall-data-as-of"), "");

    simulator.set_faults(json!([{"kind": "status", "status": 503}])).unwrap();
    let stale = proxy.get("/shipments?per=3").await;
    assert_eq!((stale.status.as_u16(), stale.source()), (200, "stale"));
    assert_eq!(stale.body, fresh.body);
    assert_eq!(stale.field("seawall-stale-reason"), "upstream-error");
    says(&stale, &["fwd=stale", "fwd-status=503", "detail=stale-if-error"]);
    assert!(ttl(&stale) <= -1, "{}", stale.field("cache-status"));
    assert_eq!(stale.field("cache-control"), "max-age=0");
    assert!(stale.field("age").parse::<u64>().unwrap() < 30);
    let as_of: Timestamp = stale.field("seawall-data-as-of").parse().unwrap();
    assert!(as_of.as_second() >= before.as_second() && as_of <= Timestamp::now(), "{as_of}");
    assert!(stale.field("seawall-data-as-of").ends_with('Z'));

    // Never seen: Flexport's own answer, as long as it is asked.
    let unseen = proxy.get("/shipments?per=4").await;
    assert_eq!((unseen.status.as_u16(), unseen.source()), (503, "upstream"));
    assert_eq!(unseen.json()["error"]["_object"], "/api/error");
    assert!(!unseen.json()["error"]["code"].as_str().unwrap_or_default().starts_with("seawall"));
    says(&unseen, &["fwd=uri-miss", "fwd-status=503"]);

    // Then the breaker opens, and the refusal is ours, in Flexport's envelope.
    assert_eventually!(proxy.get("/shipments?per=4").await.source() == "seawall");
    let asked = simulator.journal().len();
    let refused = proxy.send(Method::GET, "/shipments?per=4", &[("flexport-version", "3")], "").await;
    assert_eq!(refused.status, 503);
    let retry_after: u64 = refused.field("retry-after").parse().unwrap();
    assert!((1..=60).contains(&retry_after));
    assert_eq!(
        refused.field("seawall-breaker"),
        format!("open; scope=shipments:read; retry-after={retry_after}")
    );
    let body = refused.json();
    assert_eq!(body["_object"], "/api/response");
    assert_eq!(body["self"], format!("{}/shipments?per=4", proxy.url));
    assert_eq!(body["version"], 3);
    assert_eq!(body["data"], json!(null));
    assert_eq!(body["error"]["_object"], "/api/error");
    assert_eq!(body["error"]["code"], "seawall_breaker_open");
    assert_eq!(body["error"]["status"], 503);
    assert_eq!(proxy.get("/shipments?per=4").await.json()["version"], 2);

    // The same as RFC 9457 for who asks for it.
    let accept = [("accept", "application/problem+json")];
    let problem = proxy.send(Method::GET, "/shipments?per=4", &accept, "").await;
    assert_eq!(problem.status, 503);
    assert_eq!(problem.field("content-type"), "application/problem+json");
    let body = problem.json();
    assert_eq!(body["status"], 503);
    assert_eq!(body["code"], "seawall_breaker_open");
    assert!(body["type"].is_string() && body["title"].is_string() && body["detail"].is_string());

    // What was seen stays there, and says that nobody was asked.
    let stale = proxy.get("/shipments?per=3").await;
    assert_eq!((stale.status.as_u16(), stale.source()), (200, "stale"));
    assert_eq!(stale.field("seawall-stale-reason"), "breaker-open");
    says(&stale, &["hit", "detail=breaker-open"]);
    assert!(ttl(&stale) <= -1);
    assert!(!stale.field("cache-status").contains("fwd"));
    // Who wants no copy gets none.
    let refused = proxy.send(Method::GET, "/shipments?per=3", &[("seawall-stale", "never")], "").await;
    assert_eq!((refused.status.as_u16(), refused.source()), (503, "seawall"));
    assert_eq!(simulator.journal().len(), asked, "an open breaker sends nothing");
}

#[tokio::test]
async fn recovery_is_found_without_traffic_and_reads_are_fresh_again() {
    let simulator = simulator().await;
    let sets =
        ["breaker.consecutive_failures=3", "breaker.consecutive_span=50ms", "breaker.half_open_successes=2"];
    let proxy = Proxy::start(&simulator.url(), &sets).await;
    proxy.get("/shipments?per=3").await;
    simulator.set_faults(json!([{"kind": "status", "status": 500}])).unwrap();
    assert_eventually!(proxy.get("/shipments?per=3").await.field("seawall-stale-reason") == "breaker-open");
    simulator.clear_faults();
    // No reads from here on: the probes do it.
    assert_eventually!(matches!(
        proxy.breaker("shipments:read").await["state"].as_str(),
        Some("closed" | "ramping")
    ));
    let answer = proxy.get("/shipments?per=3").await;
    assert_eq!((answer.status.as_u16(), answer.source()), (200, "upstream"));
}

#[tokio::test]
async fn refused_connections_open_the_global_breaker_and_blame_no_group() {
    let simulator = simulator().await;
    let proxy = Proxy::start(&simulator.url(), &OPENS_SOON).await;
    let fresh = proxy.get("/bookings").await;
    simulator.set_faults(json!([{"kind": "refuse"}])).unwrap();

    let stale = proxy.get("/bookings").await;
    assert_eq!((stale.status.as_u16(), stale.source()), (200, "stale"));
    assert_eq!(stale.body, fresh.body);
    assert_eq!(stale.field("seawall-stale-reason"), "upstream-error");
    says(&stale, &["fwd=stale", "detail=stale-if-error"]);
    assert!(!stale.field("cache-status").contains("fwd-status"), "there was no answer");

    let unseen = proxy.get("/ports").await;
    assert_eq!(unseen.status, 502);
    assert_eq!(unseen.json()["error"]["code"], "seawall_upstream_unreachable");

    assert_eventually!(proxy.get("/ports").await.status == 503);
    assert!(proxy.get("/ports").await.field("seawall-breaker").starts_with("open; scope=global; "));
    assert_eq!(proxy.breaker("ports:read").await["window"]["failures"], 0);
    assert_eq!(proxy.breaker("bookings:read").await["state"], "closed");
    assert_eq!(proxy.get("/bookings").await.field("seawall-stale-reason"), "breaker-open");
}

#[tokio::test]
async fn a_read_that_hangs_is_answered_stale_in_time_and_sooner_when_the_group_fails() {
    let simulator = simulator().await;
    let hang = json!([{"kind": "hang"}]);
    // The limits stand so far apart that a slow machine does not mistake one for the other.
    let sets = ["breaker.slow=2s", "breaker.stale_deadline=200ms", "upstream.timeout=1h"];
    let proxy = Proxy::start(&simulator.url(), &sets).await;
    proxy.get("/shipments?per=3").await;
    simulator.set_faults(hang.clone()).unwrap();

    // A healthy group: slow is not down, so up to `slow`.
    let began = tokio::time::Instant::now();
    let stale = proxy.get("/shipments?per=3").await;
    let took = began.elapsed();
    assert_eq!((stale.status.as_u16(), stale.source()), (200, "stale"));
    assert_eq!(stale.field("seawall-stale-reason"), "upstream-timeout");
    says(&stale, &["fwd=stale", "detail=upstream-timeout"]);
    assert!(took >= Duration::from_millis(1900), "{took:?}");

    // Never seen: the attempt's own limit, which is a failure.
    let proxy = Proxy::start(&simulator.url(), &["upstream.timeout=1s", "upstream.connect_timeout=1s"]).await;
    let unseen = proxy.get("/shipments?per=4").await;
    assert_eq!(unseen.status, 504);
    assert_eq!(unseen.json()["error"]["code"], "seawall_upstream_timeout");

    assert_eventually!(proxy.breaker("shipments:read").await["window"]["failures"] != 0);

    // A group that shows failures: nobody waits for `slow`.
    simulator.clear_faults();
    let sets =
        ["breaker.slow=1h", "breaker.stale_deadline=200ms", "upstream.timeout=1h", "breaker.window=60s"];
    let proxy = Proxy::start(&simulator.url(), &sets).await;
    proxy.get("/shipments?per=3").await;
    simulator.set_faults(json!([{"kind": "status", "status": 500}])).unwrap();
    assert_eq!(proxy.get("/shipments?per=4").await.status, 500);
    assert_eq!(proxy.breaker("shipments:read").await["window"]["failures"], 1);
    simulator.set_faults(hang).unwrap();
    let began = tokio::time::Instant::now();
    let stale = proxy.get("/shipments?per=3").await;
    assert_eq!(stale.field("seawall-stale-reason"), "upstream-timeout");
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(180), "{took:?}");
}

#[tokio::test]
async fn a_body_that_is_cut_short_is_an_error_or_a_copy_but_never_half_an_answer() {
    for fault in [json!([{"kind": "truncate"}]), json!([{"kind": "reset", "at": "mid_body"}])] {
        let simulator = simulator().await;
        let proxy = Proxy::start(&simulator.url(), &[]).await;
        let fresh = proxy.get("/shipments?per=3").await;
        simulator.set_faults(fault).unwrap();
        let unseen = proxy.get("/shipments?per=4").await;
        assert_eq!(unseen.status, 502, "{unseen:?}");
        assert_eq!(unseen.json()["error"]["code"], "seawall_upstream_unreachable");
        let stale = proxy.get("/shipments?per=3").await;
        assert_eq!((stale.status.as_u16(), stale.source()), (200, "stale"));
        assert_eq!(stale.field("seawall-stale-reason"), "upstream-error");
        assert_eq!(stale.body, fresh.body);
        assert_eq!(proxy.breaker("shipments:read").await["window"]["failures"], 2);
    }
}

#[tokio::test]
async fn a_429_passes_through_and_is_no_failure() {
    let simulator = simulator().await;
    let proxy = Proxy::start(&simulator.url(), &[]).await;
    proxy.get("/shipments?per=3").await;
    simulator.set_faults(json!([{"kind": "status", "status": 429, "retry_after": 7}])).unwrap();
    let unseen = proxy.get("/shipments?per=4").await;
    assert_eq!((unseen.status.as_u16(), unseen.source()), (429, "upstream"));
    assert_eq!(unseen.field("retry-after"), "7");
    let stale = proxy.get("/shipments?per=3").await;
    assert_eq!((stale.status.as_u16(), stale.source()), (200, "stale"));
    assert_eq!(stale.field("seawall-stale-reason"), "rate-limited");
    assert_eq!(proxy.breaker("shipments:read").await["window"]["failures"], 0);
}

#[tokio::test]
async fn a_route_where_every_read_takes_four_seconds_stays_fresh_and_records_no_failure() {
    let simulator = simulator().await;
    let proxy = Arc::new(Proxy::start(&simulator.url(), &[]).await);
    let paths = ["/shipments?per=1", "/shipments?per=2", "/shipments?per=3"];
    for path in paths {
        proxy.get(path).await;
    }
    simulator.set_faults(json!([{"match": {"path": "/shipments"}, "kind": "latency", "ms": 4000}])).unwrap();
    let mut reads = tokio::task::JoinSet::new();
    for path in paths {
        let proxy = proxy.clone();
        reads.spawn(async move { proxy.get(path).await });
    }
    for answer in reads.join_all().await {
        assert_eq!((answer.status.as_u16(), answer.source()), (200, "upstream"), "{answer:?}");
    }
    let window = proxy.breaker("shipments:read").await["window"].clone();
    assert_eq!(window["failures"], 0, "{window}");
    assert_eq!(window["slow"], 0, "{window}");
}

#[tokio::test]
async fn what_has_an_etag_is_revalidated_and_not_sent_again() {
    let simulator = simulator().await;
    simulator.set_switches(json!({"validators": "weak"})).unwrap();
    let proxy = Proxy::start(&simulator.url(), &[]).await;
    let first = proxy.get("/shipments?per=3").await;
    assert!(first.field("etag").starts_with("W/"), "{first:?}");
    let second = proxy.get("/shipments?per=3").await;
    assert_eq!((second.status.as_u16(), second.source()), (200, "cache"));
    assert_eq!(second.body, first.body);
    assert_eq!(second.field("etag"), first.field("etag"));
    assert_ne!(second.field("seawall-data-as-of"), "");
    says(&second, &["fwd=stale", "fwd-status=304", "stored"]);
    let journal = simulator.journal();
    assert_eq!(journal[1]["headers"]["if-none-match"], first.field("etag"));
    assert_eq!(journal[1]["answered"], 304);
    // The caller's own copy is as good.
    let own =
        proxy.send(Method::GET, "/shipments?per=3", &[("if-none-match", first.field("etag"))], "").await;
    assert_eq!(own.status, 304);
    assert!(own.body.is_empty());
    assert_eq!(own.field("etag"), first.field("etag"));
}

#[tokio::test]
async fn a_route_with_a_ttl_is_answered_from_the_cache_while_it_is_fresh() {
    let simulator = simulator().await;
    let file = "[[route]]\nmethod = \"GET\"\npath = \"/ports\"\nttl = \"60s\"\n";
    let proxy = Proxy::configured(&simulator.url(), &[], file, |_| {}).await;
    let first = proxy.get("/ports").await;
    assert_eq!(first.source(), "upstream");
    let second = proxy.get("/ports").await;
    assert_eq!((second.status.as_u16(), second.source()), (200, "cache"));
    assert_eq!(second.body, first.body);
    says(&second, &["hit"]);
    assert!((1..=60).contains(&ttl(&second)), "{}", second.field("cache-status"));
    assert_ne!(second.field("age"), "");
    assert_ne!(second.field("seawall-data-as-of"), "");
    assert_eq!(arrivals(&simulator, "GET", "/ports"), 1);
    // Another query, another version, another resource.
    proxy.get("/ports?per=2").await;
    proxy.send(Method::GET, "/ports", &[("flexport-version", "3")], "").await;
    assert_eq!(arrivals(&simulator, "GET", "/ports"), 3);
    // The request may ask for more.
    let asked = proxy.send(Method::GET, "/ports", &[("cache-control", "no-cache")], "").await;
    assert_eq!(asked.source(), "upstream");
    says(&asked, &["fwd=request"]);
}

/// An upstream whose reads wait for permits and tell how often the resource was written.
async fn gated(gate: Arc<Semaphore>) -> Scripted {
    let written = Arc::new(AtomicUsize::new(0));
    Scripted::start(move |arrived| {
        let (gate, written) = (gate.clone(), written.clone());
        async move {
            if arrived.head.method == Method::GET {
                let seen = written.load(Ordering::SeqCst);
                gate.acquire().await.unwrap().forget();
                json(200, &format!("{{\"data\":{{\"written\":{seen}}},\"error\":null}}"))
            } else {
                written.fetch_add(1, Ordering::SeqCst);
                json(200, r#"{"data":null,"error":null}"#)
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_thousand_concurrent_callers_make_one_upstream_request() {
    let gate = Arc::new(Semaphore::new(0));
    let upstream = gated(gate.clone()).await;
    // Slow machines: nobody shall go alone while the others still come.
    let proxy = Proxy::start(&upstream.url, &["cache.lock_wait=60s"]).await;
    let addr = proxy.addr().to_owned();
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let stream = tokio::net::TcpStream::connect(&addr).await.unwrap();
        let io = TokioIo::new(stream);
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        for _ in 0..100 {
            let mut sender = sender.clone();
            let request = Request::builder()
                .uri(format!("{}/shipments/1", proxy.url))
                .header("authorization", TOKEN)
                .body(Empty::<Bytes>::new())
                .unwrap();
            callers.spawn(async move {
                let response = sender.send_request(request).await.unwrap();
                let (parts, body) = response.into_parts();
                (parts, body.collect().await.unwrap().to_bytes())
            });
        }
    }
    assert_eventually!(proxy.metric("seawall_requests_in_flight").await >= 1000.0);
    gate.add_permits(10);
    let mut collapsed = 0;
    for (parts, body) in callers.join_all().await {
        assert_eq!(parts.status, 200);
        assert_eq!(body, r#"{"data":{"written":0},"error":null}"#);
        collapsed += usize::from(parts.headers["cache-status"].to_str().unwrap().contains("collapsed"));
    }
    assert_eq!(collapsed, 999);
    assert_eq!(upstream.arrived().len(), 1);
}

#[tokio::test]
async fn who_waits_for_another_callers_fetch_is_answered_although_that_caller_left() {
    let gate = Arc::new(Semaphore::new(0));
    let upstream = gated(gate.clone()).await;
    let proxy = Arc::new(Proxy::start(&upstream.url, &["cache.lock_wait=60s"]).await);
    let url = format!("{}/shipments/1", proxy.url);
    // A client of its own, so that leaving closes the connection.
    let leader = tokio::spawn(async move { send(&client(), Method::GET, &url, &[], "", true).await });
    assert_eventually!(upstream.arrived().len() == 1);
    let follower = proxy.clone();
    let follower = tokio::spawn(async move { follower.get("/shipments/1").await });
    assert_eventually!(proxy.metric("seawall_requests_in_flight").await >= 2.0);
    leader.abort();
    assert_eventually!(proxy.metric("seawall_callers_left_total").await >= 1.0);
    gate.add_permits(10);
    let answer = follower.await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.source()), (200, "upstream"));
    says(&answer, &["collapsed"]);
    assert_eq!(upstream.arrived().len(), 1);
}

#[tokio::test]
async fn a_caller_sees_its_own_write_although_an_older_read_is_under_way() {
    let gate = Arc::new(Semaphore::new(0));
    let upstream = gated(gate.clone()).await;
    let proxy = Arc::new(Proxy::start(&upstream.url, &[]).await);
    let older = proxy.clone();
    let older = tokio::spawn(async move { older.get("/shipments/1").await });
    assert_eventually!(upstream.arrived().len() == 1);
    let write = proxy.send(Method::PATCH, "/shipments/1", &[], r#"{"name":"new"}"#).await;
    assert_eq!(write.status, 200);
    let newer = proxy.clone();
    let newer = tokio::spawn(async move { newer.get("/shipments/1").await });
    assert_eventually!(upstream.arrived().len() == 3);
    gate.add_permits(10);
    assert_eq!(newer.await.unwrap().json()["data"]["written"], 1);
    assert_eq!(older.await.unwrap().json()["data"]["written"], 0);
    // What began before the write is not what an outage shows.
    let url = upstream.url.clone();
    drop(upstream);
    assert_eventually!(proxy.get("/shipments/1").await.source() == "stale");
    assert_eq!(proxy.get("/shipments/1").await.json()["data"]["written"], 1, "{url}");
}

#[tokio::test]
async fn an_older_read_that_ends_after_the_newer_one_does_not_take_its_place() {
    // Each read waits for its own release.
    let releases: Arc<Mutex<Vec<Arc<Notify>>>> = Arc::default();
    let list = releases.clone();
    let written = Arc::new(AtomicUsize::new(0));
    let upstream = Scripted::start(move |arrived| {
        let (list, written) = (list.clone(), written.clone());
        async move {
            if arrived.head.method != Method::GET {
                written.fetch_add(1, Ordering::SeqCst);
                return json(200, "{}");
            }
            let seen = written.load(Ordering::SeqCst);
            let release = Arc::new(Notify::new());
            list.lock().unwrap().push(release.clone());
            release.notified().await;
            json(200, &format!("{{\"written\":{seen}}}"))
        }
    })
    .await;
    let proxy = Arc::new(Proxy::start(&upstream.url, &[]).await);
    let spawn = || {
        let proxy = proxy.clone();
        tokio::spawn(async move { proxy.get("/shipments/1").await })
    };
    let older = spawn();
    assert_eventually!(releases.lock().unwrap().len() == 1);
    assert_eq!(proxy.send(Method::PATCH, "/shipments/1", &[], r#"{"x":1}"#).await.status, 200);
    let newer = spawn();
    assert_eventually!(releases.lock().unwrap().len() == 2);
    releases.lock().unwrap()[1].notify_one();
    assert_eq!(newer.await.unwrap().json()["written"], 1);
    releases.lock().unwrap()[0].notify_one();
    assert_eq!(older.await.unwrap().json()["written"], 0);
    drop(upstream);
    assert_eventually!(proxy.get("/shipments/1").await.source() == "stale");
    assert_eq!(proxy.get("/shipments/1").await.json()["written"], 1);
}

/// An upstream that answers with a head and then lets the body drip, faster than any idle limit, for ever.
async fn dripping() -> Chaos {
    Chaos::start(|mut stream, _| async move {
        chaos::head(&mut stream).await;
        let answer =
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
        let mut is_open = stream.write_all(answer.as_bytes()).await.is_ok();
        // The pace of the drip is what is played.
        let mut pace = tokio::time::interval(Duration::from_millis(20));
        while is_open {
            pace.tick().await;
            is_open = stream.write_all(b"1\r\n \r\n").await.is_ok();
        }
    })
    .await
}

/// A breaker that opens by two failures, and a route with less time than the breaker calls slow.
const SHORT_ROUTE: &str = "[[route]]\nmethod = \"GET\"\npath = \"/shipments/:id\"\ntimeout = \"500ms\"\n";
const TWO_FAILURES: [&str; 5] = [
    "breaker.consecutive_failures=2",
    "breaker.consecutive_span=1ms",
    "breaker.open_wait=30s",
    "breaker.open_wait_max=60s",
    "probe.enabled=false",
];

#[tokio::test]
async fn a_body_that_drips_for_ever_frees_its_key_and_its_slot_and_opens_the_breaker() {
    let upstream = dripping().await;
    let proxy = Proxy::configured(&upstream.url, &TWO_FAILURES, SHORT_ROUTE, |_| {}).await;
    assert_eq!(proxy.get("/shipments/1").await.source(), "seawall");
    assert_eventually!(proxy.metric("seawall_upstream_in_flight").await < 0.5);
    // Not one that waits for the first: its key is free.
    assert_eventually!({
        proxy.get("/shipments/1").await;
        proxy.breaker("shipments:read").await["state"] == "open"
    });
    assert_eventually!(proxy.metric("seawall_upstream_in_flight").await < 0.5);
}

#[tokio::test]
async fn a_hung_upstream_opens_the_breaker_although_the_route_has_less_time_than_slow() {
    let gate = Arc::new(Semaphore::new(0));
    let upstream = gated(gate).await;
    let proxy = Proxy::configured(&upstream.url, &TWO_FAILURES, SHORT_ROUTE, |_| {}).await;
    assert_eq!(proxy.get("/shipments/1").await.status, 504);
    // A read whose time ends before it is sent, on a slow machine, says nothing of the upstream.
    assert_eventually!({
        let status = proxy.get("/shipments/1").await.status.as_u16();
        assert!(status == 504 || status == 503, "{status}");
        proxy.breaker("shipments:read").await["state"] == "open"
    });
}

// === answers that flow ===

/// What is not held back, by far.
const HALF: usize = 350_000;

/// An upstream of long answers: each is a head, a first half, and, when the test says so, what `rest` says of it. Tells
/// how many it was asked for.
async fn in_halves(
    head: &'static str,
    half: Vec<u8>,
    go: Arc<Semaphore>,
    rest: impl Fn(usize) -> Option<Vec<u8>> + Clone + Send + Sync + 'static,
) -> (Chaos, Arc<AtomicUsize>) {
    let asked: Arc<AtomicUsize> = Arc::default();
    let count = asked.clone();
    let upstream = Chaos::start(move |mut stream, _| {
        let (half, go, rest, count) = (half.clone(), go.clone(), rest.clone(), count.clone());
        async move {
            while !chaos::head(&mut stream).await.is_empty() {
                let number = count.fetch_add(1, Ordering::SeqCst);
                if stream.write_all(head.as_bytes()).await.is_err() || stream.write_all(&half).await.is_err()
                {
                    return;
                }
                go.acquire().await.unwrap().forget();
                match rest(number) {
                    Some(rest) if stream.write_all(&rest).await.is_ok() => {}
                    _ => return,
                }
            }
        }
    })
    .await;
    (upstream, asked)
}

/// Asks on a connection of its own.
async fn ask(proxy: &Proxy, path: &str, version: &str) -> TcpStream {
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    let request = format!(
        "GET {path} {version}\r\nhost: seawall\r\nauthorization: {TOKEN}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// The head of an answer, whose body is read as the test reads it.
async fn begun(proxy: &Proxy, path: &str) -> http::Response<hyper::body::Incoming> {
    let request = Request::builder()
        .uri(format!("{}{path}", proxy.url))
        .header("authorization", TOKEN)
        .body(seawall::http::Body::empty())
        .unwrap();
    let response = client().request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    response
}

const DOCUMENT: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/pdf\r\ncontent-length: 700000\r\n\
    cache-control: max-age=600\r\n\r\n";

#[tokio::test]
async fn a_700_kb_document_reaches_its_caller_while_the_upstream_sends_and_is_kept() {
    let go = Arc::new(Semaphore::new(0));
    let (upstream, asked) =
        in_halves(DOCUMENT, vec![b'a'; HALF], go.clone(), |_| Some(vec![b'b'; HALF])).await;
    let proxy = Proxy::start(&upstream.url, &[]).await;
    let mut stream = ask(&proxy, "/documents/d1/download", "HTTP/1.1").await;
    let head = chaos::head(&mut stream).await;
    assert_eq!(chaos::field(&head, "content-length"), Some("700000"), "{head}");
    assert_eq!(chaos::field(&head, "seawall-source"), Some("upstream"));
    assert!(chaos::field(&head, "cache-status").unwrap().contains("; stored; "), "{head}");
    let mut half = vec![0; HALF];
    stream.read_exact(&mut half).await.unwrap();
    assert!(half.iter().all(|byte| *byte == b'a'));
    go.add_permits(1);
    let rest = chaos::closed(&mut stream).await;
    assert!(rest.len() == HALF && rest.bytes().all(|byte| byte == b'b'));
    let again = proxy.get("/documents/d1/download").await;
    assert_eq!((again.source(), again.field("content-length")), ("cache", "700000"));
    assert!(again.body[..HALF] == half && again.body[HALF..] == *rest.as_bytes());
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_long_page_reaches_its_caller_rewritten_while_the_upstream_sends() {
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len()).into_bytes();
    let first = format!("{{\"data\":[\"{}\",", "x".repeat(200_000));
    let last = r#"{"self":"https://api.flexport.com/shipments/1"}],"error":null}"#;
    let end = [chunk(last), b"0\r\n\r\n".to_vec()].concat();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let go = Arc::new(Semaphore::new(0));
    let (upstream, _) = in_halves(head, chunk(&first), go.clone(), move |_| Some(end.clone())).await;
    let proxy = Proxy::start(&upstream.url, &[]).await;
    let mut response = begun(&proxy, "/shipments?page=1").await;
    let mut all = Vec::new();
    while all.len() < first.len() {
        all.extend_from_slice(&response.frame().await.unwrap().unwrap().into_data().unwrap());
    }
    go.add_permits(1);
    all.extend_from_slice(&response.into_body().collect().await.unwrap().to_bytes());
    let whole = format!("{first}{last}").replace("https://api.flexport.com", &proxy.url);
    assert!(all == whole.as_bytes());
    drop(upstream);
    assert_eventually!(proxy.get("/shipments?page=1").await.source() == "stale");
    assert!(proxy.get("/shipments?page=1").await.body == whole);
}

#[tokio::test]
async fn a_document_that_is_cut_on_its_way_is_cut_for_the_caller_and_the_older_copy_stays() {
    let document = "HTTP/1.1 200 OK\r\ncontent-type: application/pdf\r\ncontent-length: 700000\r\n\r\n";
    let chunked = "HTTP/1.1 200 OK\r\ncontent-type: application/pdf\r\ntransfer-encoding: chunked\r\n\r\n";
    for (head, is_chunked) in [(document, false), (chunked, true)] {
        let go = Arc::new(Semaphore::new(1));
        let (half, last) = if is_chunked {
            (
                [format!("{HALF:x}\r\n").into_bytes(), vec![b'a'; HALF], b"\r\n".to_vec()].concat(),
                b"0\r\n\r\n".to_vec(),
            )
        } else {
            (vec![b'a'; HALF], vec![b'b'; HALF])
        };
        // The second ends half way.
        let (upstream, asked) =
            in_halves(head, half, go.clone(), move |number| (number == 0).then(|| last.clone())).await;
        let proxy = Proxy::start(&upstream.url, &["probe.enabled=false"]).await;
        let good = proxy.get("/documents/d1/download").await;
        assert_eq!((good.status.as_u16(), good.source()), (200, "upstream"));
        let mut stream = ask(&proxy, "/documents/d1/download", "HTTP/1.1").await;
        assert!(chaos::head(&mut stream).await.starts_with("HTTP/1.1 200"));
        let mut begin = vec![0; HALF];
        stream.read_exact(&mut begin).await.unwrap();
        go.add_permits(1);
        let rest = chaos::closed(&mut stream).await;
        assert!(rest.len() < 1000 && !rest.ends_with("0\r\n\r\n"), "{rest}");
        assert_eventually!(proxy.breaker("documents:read").await["in_flight"] == 0);
        assert_eq!(proxy.breaker("documents:read").await["window"]["failures"], 1);
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        drop(upstream);
        assert_eventually!(proxy.get("/documents/d1/download").await.source() == "stale");
        assert!(proxy.get("/documents/d1/download").await.body == good.body);
    }
}

#[tokio::test]
async fn a_document_whose_caller_leaves_is_fetched_to_its_end_and_kept() {
    let go = Arc::new(Semaphore::new(0));
    let (upstream, asked) =
        in_halves(DOCUMENT, vec![b'a'; HALF], go.clone(), |_| Some(vec![b'b'; HALF])).await;
    let proxy = Proxy::start(&upstream.url, &[]).await;
    let mut stream = ask(&proxy, "/documents/d1/download", "HTTP/1.1").await;
    assert!(chaos::head(&mut stream).await.starts_with("HTTP/1.1 200"));
    stream.read_exact(&mut [0; 1000]).await.unwrap();
    drop(stream);
    assert_eventually!(proxy.metric("seawall_connections{listener=\"data\"}").await < 1.0);
    go.add_permits(1);
    assert_eventually!(proxy.get("/documents/d1/download").await.source() == "cache");
    assert_eq!(proxy.get("/documents/d1/download").await.body.len(), 2 * HALF);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_reader_of_a_document_without_end_sets_its_pace() {
    /// More than `cache.max_object` by less than any buffer: so much is taken without a reader, as it may yet be kept.
    const KEPT: usize = (2 << 20) + 1;
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/pdf\r\n\r\n";
    let (upstream, taken) = chaos::flood(head.to_owned(), KEPT).await;
    let proxy = Proxy::start(&upstream.url, &[]).await;
    let response = begun(&proxy, "/documents/d1/download").await;
    let sent = tokio::time::timeout(PATIENCE, taken).await.expect("it stops").unwrap();
    assert!(sent < chaos::BOUND, "{sent} bytes were taken for a reader that reads none");
    // All that was sent arrives; it is not kept.
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), sent);
    let status = proxy.admin(Method::GET, "/api/v1/status", None).await.json();
    assert_eq!(status["cache"]["entries"], 0, "{status}");
}

#[tokio::test]
async fn http_1_0_gets_a_long_page_whole_or_an_error() {
    let half = format!("{{\"data\":\"{}", "x".repeat(200_000));
    // It ends by closing, or in the middle of a chunk.
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n";
    let chunked =
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n7a120\r\n";
    for (head, status) in [(head, "HTTP/1.0 200"), (chunked, "HTTP/1.0 502")] {
        let go = Arc::new(Semaphore::new(1));
        let (upstream, _) = in_halves(head, half.clone().into_bytes(), go, |_| None).await;
        let proxy = Proxy::start(&upstream.url, &[]).await;
        let mut stream = ask(&proxy, "/shipments", "HTTP/1.0").await;
        let head = chaos::head(&mut stream).await;
        assert!(head.starts_with(status), "{head}");
        let length: usize = chaos::field(&head, "content-length").expect("it has a length").parse().unwrap();
        assert_eq!(chaos::closed(&mut stream).await.len(), length);
        assert_eq!(length == half.len(), status.ends_with("200"));
    }
}

/// The objects of a page, as they stand there.
fn listed(page: &[u8]) -> Vec<&str> {
    type Members<'a> = BTreeMap<&'a str, &'a RawValue>;
    let envelope: Members<'_> = serde_json::from_slice(page).unwrap();
    let collection: Members<'_> = serde_json::from_str(envelope["data"].get()).unwrap();
    let objects: Vec<&RawValue> = serde_json::from_str(collection["data"].get()).unwrap();
    objects.into_iter().map(RawValue::get).collect()
}

#[tokio::test]
async fn what_was_only_seen_in_a_list_is_served_as_an_object_in_an_outage() {
    let simulator = simulator().await;
    let sets = ["probe.enabled=false"];
    let proxy = Proxy::start(&simulator.url(), &sets).await;
    let pages =
        [("/shipments?per=3", "/shipments"), ("/ocean/shipment_containers", "/ocean/shipment_containers")];
    let mut seen = Vec::new();
    for (page, collection) in pages {
        let answer = proxy.get(page).await;
        assert_eq!((answer.status.as_u16(), answer.source()), (200, "upstream"));
        for text in listed(&answer.body) {
            let object: serde_json::Value = serde_json::from_str(text).unwrap();
            seen.push((format!("{collection}/{}", object["id"]), text.to_owned()));
        }
    }
    assert!(seen.len() > 5, "{}", seen.len());
    let expanded = proxy.get("/bookings?expand=shipment").await.json()["data"]["data"][0]["id"].clone();

    simulator.set_faults(json!([{"kind": "refuse"}])).unwrap();
    for (path, object) in &seen {
        let got = proxy.get(path).await;
        assert_eq!((got.status.as_u16(), got.source()), (200, "stale"), "{path}");
        let whole = format!(
            "{{\"_object\":\"/api/response\",\"self\":\"{}{path}\",\"version\":2,\"data\":{object},\"error\":null}}",
            proxy.url
        );
        assert_eq!(String::from_utf8(got.body.to_vec()).unwrap(), whole);
        says(&got, &["detail=from-collection"]);
        assert!(ttl(&got) <= -1);
        assert!(got.field("age").parse::<u64>().is_ok());
        assert_ne!(got.field("seawall-data-as-of"), "");
        assert!(["upstream-error", "breaker-open"].contains(&got.field("seawall-stale-reason")));
        assert_eq!((got.field("etag"), got.field("content-type")), ("", "application/json"));
    }
    let (path, _) = &seen[0];
    let head = proxy.send(Method::HEAD, path, &[], "").await;
    assert_eq!((head.status.as_u16(), head.source(), head.body.len()), (200, "stale", 0));
    for (path, fields) in [
        (path.clone(), [("flexport-version", "3")]),
        (path.clone(), [("seawall-stale", "never")]),
        (path.clone(), [("authorization", "Bearer another-key-of-another-tenant")]),
        (format!("{path}?expand=legs"), [("accept", "*/*")]),
        (format!("{path}0"), [("accept", "*/*")]),
        (format!("/bookings/{expanded}"), [("accept", "*/*")]),
    ] {
        let refused = proxy.send(Method::GET, &path, &fields, "").await;
        assert!(refused.status.is_server_error(), "{path} {fields:?}: {refused:?}");
        assert_eq!(refused.source(), "seawall");
    }
    let counted = proxy.metric("seawall_cache_from_collection_total").await;
    assert!((counted - (seen.len() as f64 + 1.0)).abs() < 0.5, "{counted}");
}

#[tokio::test]
async fn serving_objects_out_of_lists_switches_off_and_on_in_a_running_proxy() {
    let simulator = simulator().await;
    let proxy =
        Proxy::configured(&simulator.url(), &["probe.enabled=false"], "# nothing set\n", |_| {}).await;
    let id = proxy.get("/shipments?per=1").await.json()["data"]["data"][0]["id"].clone();
    let path = format!("/shipments/{id}");
    simulator.set_faults(json!([{"kind": "refuse"}])).unwrap();
    assert_eq!(proxy.get(&path).await.source(), "stale");
    let off = "[[route]]\nmethod = \"GET\"\npath = \"/shipments/:id\"\nobject_fallback = false\n";
    for (file, source) in [
        ("cache.object_fallback = false\n", "seawall"),
        ("# nothing set\n", "stale"),
        (off, "seawall"),
        (&format!("cache.object_fallback = false\n{}", off.replace("false", "true")), "stale"),
    ] {
        std::fs::write(proxy.dir.path().join("proxy.toml"), file).unwrap();
        assert_eq!(proxy.admin(Method::POST, "/api/v1/config/reload", None).await.status, 200);
        let got = proxy.get(&path).await;
        assert_eq!(got.source(), source, "{file}");
        assert_eq!(got.status.is_success(), source == "stale");
    }
}

#[tokio::test]
async fn what_was_only_seen_in_a_list_outlives_a_restart_in_an_outage() {
    let simulator = simulator().await;
    // Copies are bound to it, and the port is another after the restart.
    let sets = ["probe.enabled=false", "server.public_url=http://seawall.example"];
    let mut proxy = Proxy::start(&simulator.url(), &sets).await;
    let page = proxy.get("/shipments?per=3").await;
    let in_version = [("flexport-version", "3")];
    for path in ["/shipments?per=3&page=2", "/shipments?per=3&page=3&expand=legs"] {
        assert_eq!(proxy.send(Method::GET, path, &in_version, "").await.status, 200);
    }
    let ids = async |path: &str| proxy.get(path).await.json()["data"]["data"].clone();
    let (other, expanded) = (ids("/shipments?per=3&page=2").await, ids("/shipments?per=3&page=3").await);
    simulator.set_faults(json!([{"kind": "refuse"}])).unwrap();
    proxy.restart().await;
    for text in listed(&page.body) {
        let object: serde_json::Value = serde_json::from_str(text).unwrap();
        let path = format!("/shipments/{}", object["id"]);
        let got = proxy.get(&path).await;
        assert_eq!((got.status.as_u16(), got.source()), (200, "stale"), "{path}: {got:?}");
        assert_eq!(got.json()["data"], object);
        says(&got, &["detail=from-collection"]);
        let refused = proxy.send(Method::GET, &path, &in_version, "").await;
        assert_eq!(refused.source(), "seawall");
    }
    let path = |page: &serde_json::Value| format!("/shipments/{}", page[0]["id"]);
    assert_eq!(proxy.send(Method::GET, &path(&other), &in_version, "").await.source(), "stale");
    assert_eq!(proxy.send(Method::GET, &path(&expanded), &in_version, "").await.source(), "seawall");
}
