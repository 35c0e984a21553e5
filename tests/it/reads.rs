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
use seawall::clock::Clock;
use serde_json::json;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore};

mod flow;
mod isolation;
mod objects;
mod poison;

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
    let before = Clock::system().now();
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
    assert!(as_of.as_second() >= before.as_second() && as_of <= Clock::system().now(), "{as_of}");
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
    let sets = [
        "breaker.slow=1h",
        "breaker.stale_deadline=200ms",
        "upstream.timeout=1h",
        "breaker.window=60s",
        "retry.budget=0.0",
        "retry.per_second=0",
    ];
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

/// By what it names and by its tag, from the moment it is settled; and no read that was under way puts back what was
/// before it.
#[tokio::test]
async fn a_replayed_write_invalidates_like_a_live_one() {
    let gate = Arc::new(Semaphore::new(1000));
    let upstream = gated(gate.clone()).await;
    let file = ["/bookings", "/bookings/:id", "/shipments/:id", "/ports"]
        .map(|path| format!("[[route]]\nmethod = \"GET\"\npath = \"{path}\"\nttl = \"1h\"\n"))
        .concat();
    let proxy = Arc::new(Proxy::configured(&upstream.url, &[], &file, |_| {}).await);
    for (method, path, scope, invalidated) in [
        (Method::PATCH, "/shipments/1", "shipments:write", ["/shipments/1?x", "/shipments/1"]),
        (Method::POST, "/bookings", "bookings:write", ["/bookings?page=1", "/bookings/2"]),
    ] {
        let reads = invalidated.into_iter().chain(["/ports"]);
        for read in reads.clone() {
            let first = proxy.get(read).await;
            let second = proxy.get(read).await;
            assert_eq!((second.source(), &second.body), ("cache", &first.body), "{read}");
        }
        let before = proxy.get(invalidated[0]).await.json()["data"]["written"].clone();
        proxy.hold(scope).await;
        let body = format!(r#"{{"name":"{method}"}}"#);
        let id = proxy.send(method.clone(), path, &[], &body).await.ticket();
        // A read that is under way while the write is replayed: of another query, so that there is no copy.
        gate.forget_permits(1000);
        let older = proxy.clone();
        let count = upstream.arrived().len();
        let slow = format!("{path}?slow");
        let asked = slow.clone();
        let older = tokio::spawn(async move { older.get(&asked).await });
        assert_eventually!(upstream.arrived().len() == count + 1);
        proxy.lift(scope).await;
        assert_eventually!(proxy.ticket(&id).await["state"] == "done");
        let newer = proxy.clone();
        let asked = slow.clone();
        let newer = tokio::spawn(async move { newer.get(&asked).await });
        assert_eventually!(upstream.arrived().len() == count + 3);
        gate.add_permits(1000);
        let written = before.as_u64().unwrap() + 1;
        assert_eq!(older.await.unwrap().json()["data"]["written"], before);
        assert_eq!(newer.await.unwrap().json()["data"]["written"], written);
        let kept = proxy.get(&slow).await;
        assert_eq!((kept.source(), &kept.json()["data"]["written"]), ("cache", &json!(written)), "{kept:?}");
        for read in invalidated {
            let answer = proxy.get(read).await;
            assert_eq!(answer.source(), "upstream", "{method} {read}: {answer:?}");
            assert_eq!(answer.json()["data"]["written"], written, "{method} {read}");
        }
        assert_eq!(proxy.get("/ports").await.source(), "cache", "nothing of it was written");
    }
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
async fn a_writes_answer_that_drips_for_ever_is_the_upstreams_failure_and_frees_its_slot() {
    let upstream = dripping().await;
    let route = SHORT_ROUTE.replace("\"GET\"", "\"PATCH\"");
    let proxy = Proxy::configured(&upstream.url, &TWO_FAILURES, &route, |_| {}).await;
    let answer = proxy.send(Method::PATCH, "/shipments/1", &[], r#"{"metadata":{"a":["b"]}}"#).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eventually!(proxy.breaker("shipments:write").await["state"] == "open");
    assert_eq!(proxy.breaker("shipments:write").await["last"][0]["outcome"], "body_broken");
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
