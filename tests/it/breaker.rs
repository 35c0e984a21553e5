//! The switch: operators' overrides by the admin API, and who may use it.

use crate::assert_eventually;
use crate::support::scripted::{self, Scripted};
use crate::support::{Answer, Proxy, TOKEN, arrivals, chaos, client, send, simulator, writes};
use http::Method;
use serde_json::{Value, json};

async fn force(proxy: &Proxy, scope: &str, mode: &str) -> Answer {
    let body = json!({"mode": mode, "reason": "test", "ttl": "10m", "actor": "tester"});
    proxy.admin(Method::PUT, &format!("/api/v1/breakers/{scope}/override"), Some(body)).await
}

async fn auto(proxy: &Proxy, scope: &str) -> Answer {
    proxy.admin(Method::DELETE, &format!("/api/v1/breakers/{scope}/override"), None).await
}

#[tokio::test]
async fn force_open_stops_all_traffic_of_its_scope_at_once_and_of_no_other() {
    let simulator = simulator().await;
    // Probes would be traffic, too.
    let proxy = Proxy::start(&simulator.url(), &["probe.interval=50ms"]).await;
    let fresh = proxy.get("/shipments?per=3").await;
    assert_eq!(fresh.source(), "upstream");
    let set = force(&proxy, "shipments:read", "forced_open").await;
    assert_eq!(set.status, 200, "{set:?}");

    let before = arrivals(&simulator, "GET", "/shipments");
    let stale = proxy.get("/shipments?per=3").await;
    assert_eq!((stale.status.as_u16(), stale.source()), (200, "stale"));
    assert_eq!(stale.field("seawall-stale-reason"), "breaker-open");
    let refused = proxy.get("/shipments?per=4").await;
    assert_eq!((refused.status.as_u16(), refused.source()), (503, "seawall"));
    assert!(refused.field("seawall-breaker").starts_with("open; scope=shipments:read; "), "{refused:?}");
    for _ in 0..20 {
        proxy.get("/shipments?per=3").await;
        proxy.get("/shipments/unseen").await;
    }
    // Other scopes go on: other groups, and the group's replayable writes.
    assert_eq!(proxy.get("/bookings").await.source(), "upstream");
    assert_eq!(proxy.get("/ports").await.source(), "upstream");
    assert_eq!(arrivals(&simulator, "GET", "/shipments"), before);
    assert!(simulator.journal().iter().all(|entry| entry["path"] != "/shipments/unseen"));

    let status = proxy.breaker("shipments:read").await;
    assert_eq!(status["override"]["mode"], "forced_open");
    assert_eq!(status["override"]["reason"], "test");
    assert_eq!(status["override"]["actor"], "tester");
    assert_eq!(status["state"], "closed", "the automatic state is another thing");
}

#[tokio::test]
async fn force_open_stays_over_a_restart_and_auto_probes_before_it_closes() {
    let simulator = simulator().await;
    let sets = ["breaker.half_open_probes=1", "breaker.half_open_successes=4", "probe.enabled=false"];
    let mut proxy = Proxy::start(&simulator.url(), &sets).await;
    proxy.get("/shipments?per=3").await;
    assert_eq!(force(&proxy, "shipments:read", "forced_open").await.status, 200);
    proxy.restart().await;
    let status = proxy.breaker("shipments:read").await;
    assert_eq!(status["override"]["mode"], "forced_open", "{status}");
    assert_eq!(status["override"]["reason"], "test");
    let before = arrivals(&simulator, "GET", "/shipments");
    assert_eq!(proxy.get("/shipments?per=3").await.source(), "seawall");
    assert_eq!(arrivals(&simulator, "GET", "/shipments"), before);

    // Back to auto: not closed, but tried.
    assert_eq!(auto(&proxy, "shipments:read").await.status, 200);
    let status = proxy.breaker("shipments:read").await;
    assert_eq!(status["override"], Value::Null);
    assert_eq!(status["state"], "half_open", "{status}");
    for probe in 1..=4 {
        assert_eq!(proxy.breaker("shipments:read").await["state"], "half_open", "before probe {probe}");
        assert_eq!(proxy.get("/shipments?per=3").await.source(), "upstream", "probe {probe}");
    }
    let state = proxy.breaker("shipments:read").await["state"].clone();
    assert!(state == "ramping" || state == "closed", "{state}");
    proxy.restart().await;
    assert_eq!(proxy.breaker("shipments:read").await["override"], Value::Null);
}

#[tokio::test]
async fn auto_against_an_upstream_that_is_down_opens_again_and_lets_no_flood_through() {
    let simulator = simulator().await;
    let sets = ["probe.enabled=false", "breaker.open_wait=30s", "breaker.open_wait_max=60s"];
    let proxy = Proxy::start(&simulator.url(), &sets).await;
    force(&proxy, "shipments:read", "forced_open").await;
    simulator.set_faults(json!([{"kind": "status", "status": 500}])).unwrap();
    auto(&proxy, "shipments:read").await;
    for _ in 0..20 {
        proxy.get("/shipments").await;
    }
    assert_eq!(proxy.breaker("shipments:read").await["state"], "open");
    assert_eq!(arrivals(&simulator, "GET", "/shipments"), 2, "two failed probes are enough");
}

#[tokio::test]
async fn forced_open_writes_are_queued_and_sent_when_they_may() {
    let simulator = simulator().await;
    let proxy = Proxy::start(&simulator.url(), &[]).await;
    let shipment =
        proxy.get("/shipments?per=1").await.json()["data"]["data"][0]["id"].to_string().replace('"', "");
    let path = format!("/shipments/{shipment}");
    force(&proxy, "shipments:write", "forced_open").await;
    let body = r#"{"metadata":{"when":["later"]}}"#;
    let id = proxy.send(Method::PATCH, &path, &[], body).await.ticket();
    assert_eq!(proxy.get("/shipments?per=1").await.source(), "upstream", "reads go on");
    assert!(writes(&simulator).is_empty());
    assert_eq!(proxy.ticket(&id).await["state"], "pending");
    auto(&proxy, "shipments:write").await;
    assert_eventually!(proxy.ticket(&id).await["state"] == "done");
    assert_eq!(writes(&simulator), [format!("PATCH {path} {body}")]);
}

#[tokio::test]
async fn forced_closed_lets_everything_through_and_observe_opens_nothing() {
    let simulator = simulator().await;
    let sets = [
        "breaker.consecutive_failures=3",
        "breaker.consecutive_span=1ms",
        "breaker.min_calls=5",
        // What opens stays open, with all that it counted.
        "breaker.open_wait=1h",
        "breaker.open_wait_max=1h",
        "breaker.window=60s",
        // Arrivals are counted.
        "retry.budget=0.0",
        "retry.per_second=0",
    ];
    for mode in ["forced_closed", "observe"] {
        let proxy = Proxy::start(&simulator.url(), &sets).await;
        assert_eq!(force(&proxy, "shipments:read", mode).await.status, 200);
        simulator.set_faults(json!([{"kind": "status", "status": 500}])).unwrap();
        let before = arrivals(&simulator, "GET", "/shipments");
        for _ in 0..15 {
            let answer = proxy.get("/shipments").await;
            assert_eq!((answer.status.as_u16(), answer.source()), (500, "upstream"), "{mode}");
        }
        assert_eq!(arrivals(&simulator, "GET", "/shipments"), before + 15, "{mode}");
        let status = proxy.breaker("shipments:read").await;
        // Recorded all the same: the automatic state would have opened, or did beneath the override.
        let expected = if mode == "observe" { "closed" } else { "open" };
        assert_eq!(status["state"], expected, "{mode}: {status}");
        assert!(status["window"]["failures"].as_u64().unwrap() >= 3, "{mode}: {status}");
        simulator.clear_faults();
    }
}

#[tokio::test]
async fn a_group_that_opens_opens_no_other() {
    let simulator = simulator().await;
    let sets = [
        "breaker.consecutive_failures=3",
        "breaker.consecutive_span=1ms",
        "breaker.open_wait=30s",
        "breaker.open_wait_max=60s",
    ];
    let proxy = Proxy::start(&simulator.url(), &sets).await;
    simulator
        .set_faults(json!([{"match": {"path": "/shipments*"}, "kind": "status", "status": 500}]))
        .unwrap();
    assert_eventually!(proxy.get("/shipments").await.source() == "seawall");
    let all = proxy.admin(Method::GET, "/api/v1/breakers", None).await.json();
    for status in all["breakers"].as_array().unwrap() {
        let expected = if status["scope"] == "shipments:read" { "open" } else { "closed" };
        assert_eq!(status["state"], expected, "{status}");
    }
    for path in ["/bookings", "/ports", "/documents", "/shipment_legs"] {
        assert_eq!(proxy.get(path).await.source(), "upstream", "{path}");
    }
}

#[tokio::test]
async fn an_override_ends_with_its_ttl() {
    let simulator = simulator().await;
    let proxy = Proxy::start(&simulator.url(), &["breaker.half_open_successes=1"]).await;
    let body = json!({"mode": "forced_open", "reason": "short", "ttl": "3s"});
    let began = tokio::time::Instant::now();
    let set = proxy.admin(Method::PUT, "/api/v1/breakers/shipments:read/override", Some(body)).await;
    assert_eq!(set.status, 200, "{set:?}");
    assert_eq!(proxy.get("/shipments").await.source(), "seawall");
    assert_eventually!(proxy.get("/shipments").await.source() == "upstream");
    assert!(began.elapsed().as_millis() >= 2900, "{:?}", began.elapsed());
    assert_eq!(proxy.breaker("shipments:read").await["override"], Value::Null);
}

#[tokio::test]
async fn a_bad_override_is_refused_with_a_reason_and_changes_nothing() {
    let simulator = simulator().await;
    let proxy = Proxy::start(&simulator.url(), &[]).await;
    let put = async |scope: &str, body: Value| {
        proxy.admin(Method::PUT, &format!("/api/v1/breakers/{scope}/override"), Some(body)).await
    };
    let good = json!({"mode": "forced_open", "reason": "test"});
    for unknown in ["nothing:read", "shipments", "shipments:delete", "SHIPMENTS:READ"] {
        let answer = put(unknown, good.clone()).await;
        assert_eq!(answer.status, 404, "{unknown}");
        assert!(
            answer.json()["detail"].as_str().unwrap().contains("shipments:read"),
            "what there is is named"
        );
        assert_eq!(proxy.admin(Method::GET, &format!("/api/v1/breakers/{unknown}"), None).await.status, 404);
        assert_eq!(auto(&proxy, unknown).await.status, 404);
    }
    for (field, body) in [
        ("reason", json!({"mode": "forced_open"})),
        ("reason", json!({"mode": "forced_open", "reason": "  "})),
        ("mode", json!({"mode": "auto", "reason": "x"})),
        ("mode", json!({"reason": "x"})),
        ("ttl", json!({"mode": "forced_open", "reason": "x", "ttl": "soon"})),
        ("ttl", json!({"mode": "forced_open", "reason": "x", "ttl": "0s"})),
        ("ttl", json!({"mode": "forced_open", "reason": "x", "ttl": "10ms"})),
        ("ttl", json!({"mode": "forced_open", "reason": "x", "ttl": "366d"})),
        ("until", json!({"mode": "forced_open", "reason": "x", "until": "tomorrow"})),
    ] {
        let answer = put("shipments:read", body).await;
        assert_eq!(answer.status, 400, "{answer:?}");
        assert_eq!(answer.field("content-type"), "application/problem+json");
        assert!(answer.json()["detail"].as_str().unwrap().contains(field), "{field}: {answer:?}");
    }
    // Tried, not done.
    let path = "/api/v1/breakers/shipments:read/override?dry_run=1";
    let dry = proxy.admin(Method::PUT, path, Some(good)).await;
    assert_eq!(dry.status, 200);
    assert_eq!(dry.json()["dry_run"], true);
    assert_eq!(dry.json()["breakers"].as_array().unwrap().len(), 1);
    let all = proxy.admin(Method::GET, "/api/v1/breakers", None).await.json();
    let all = all["breakers"].as_array().unwrap();
    assert!(all.iter().all(|status| status["override"].is_null()), "{all:?}");
    assert!(all.iter().all(|status| !status["scope"].as_str().unwrap().contains("nothing")));
    assert_eq!(proxy.get("/shipments").await.source(), "upstream");
}

#[tokio::test]
async fn all_sets_and_clears_every_scope() {
    let simulator = simulator().await;
    let proxy = Proxy::start(&simulator.url(), &[]).await;
    let set = force(&proxy, "all", "forced_open").await;
    assert_eq!(set.status, 200, "{set:?}");
    let before = simulator.journal().len();
    for path in ["/shipments", "/bookings", "/ports", "/elsewhere"] {
        assert_eq!(proxy.get(path).await.status, 503, "{path}");
    }
    proxy.send(Method::POST, "/bookings", &[], r#"{"name":"x"}"#).await.ticket();
    assert_eq!(simulator.journal().len(), before);
    // Without a deadline of an operator's, four hours.
    let body = json!({"mode": "forced_open", "reason": "renewed"});
    proxy.admin(Method::PUT, "/api/v1/breakers/global/override", Some(body)).await;
    let status = proxy.breaker("global").await;
    assert_eq!(status["override"]["reason"], "renewed");
    let until: jiff::Timestamp = status["override"]["until"].as_str().unwrap().parse().unwrap();
    let left = until.as_second() - seawall::clock::Clock::system().now().as_second();
    assert!((4 * 3600 - 60..=4 * 3600).contains(&left), "{left}");
    assert_eq!(auto(&proxy, "all").await.status, 200);
    assert_eventually!(proxy.get("/shipments").await.source() == "upstream");
}

#[tokio::test]
async fn the_admin_api_asks_for_its_token_and_health_does_not() {
    let simulator = simulator().await;
    let file = "[admin]\ntoken_file = \"{dir}/admin\"\n";
    let proxy = Proxy::configured(&simulator.url(), &[], file, |dir| {
        std::fs::write(dir.join("admin"), "the-admin-token\n").unwrap();
    })
    .await;
    let ask = async |method: Method, path: &str, fields: &[(&str, &str)], body: &str| {
        send(&client(), method, &format!("{}{path}", proxy.admin), fields, body, false).await
    };
    let body = r#"{"mode":"forced_open","reason":"x"}"#;
    let path = "/api/v1/breakers/global/override";
    for fields in [
        vec![],
        vec![("authorization", "Bearer wrong")],
        vec![("authorization", "Basic the-admin-token")],
        vec![("authorization", "the-admin-token")],
        vec![("authorization", "Bearer ")],
    ] {
        for (method, path) in [
            (Method::GET, "/api/v1/status"),
            (Method::GET, "/api/v1/breakers"),
            (Method::PUT, path),
            (Method::DELETE, path),
            (Method::GET, "/api/v1/writes"),
            (Method::POST, "/api/v1/config/reload"),
            (Method::GET, "/api/v1/unknown"),
        ] {
            let answer = ask(method.clone(), path, &fields, body).await;
            assert_eq!(answer.status, 401, "{method} {path} {fields:?}");
            assert!(answer.field("www-authenticate").starts_with("Bearer"), "{answer:?}");
            assert!(!String::from_utf8_lossy(&answer.body).contains("the-admin-token"));
        }
    }
    for path in ["/livez", "/readyz", "/healthz", "/metrics"] {
        assert_eq!(ask(Method::GET, path, &[], "").await.status, 200, "{path}");
    }
    let right = [("authorization", "Bearer the-admin-token")];
    assert_eq!(ask(Method::GET, "/api/v1/breakers", &right, "").await.status, 200);
    assert_eq!(ask(Method::PUT, path, &right, body).await.status, 200);
    assert_eq!(proxy.get("/shipments").await.source(), "seawall");
    // And closed when it is configured so.
    let sets = ["admin.open_health=false"];
    let proxy = Proxy::configured(&simulator.url(), &sets, file, |dir| {
        std::fs::write(dir.join("admin"), "the-admin-token\n").unwrap();
    })
    .await;
    for path in ["/livez", "/readyz", "/healthz", "/metrics"] {
        let url = format!("{}{path}", proxy.admin);
        assert_eq!(send(&client(), Method::GET, &url, &[], "", false).await.status, 401, "{path}");
        assert_eq!(send(&client(), Method::GET, &url, &right, "", false).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn a_page_of_another_site_turns_no_switch() {
    let simulator = simulator().await;
    let proxy = Proxy::start(&simulator.url(), &[]).await;
    let path = format!("{}/api/v1/breakers/global/override", proxy.admin);
    let body = r#"{"mode":"forced_open","reason":"x"}"#;
    for fields in [
        [("sec-fetch-site", "cross-site"), ("x", "x")],
        [("sec-fetch-site", "same-site"), ("x", "x")],
        [("origin", "https://evil.example"), ("x", "x")],
        [("origin", "null"), ("content-type", "text/plain")],
    ] {
        for method in [Method::PUT, Method::DELETE, Method::POST] {
            let answer = send(&client(), method.clone(), &path, &fields, body, false).await;
            assert_eq!(answer.status, 403, "{method} {fields:?}");
        }
    }
    assert_eq!(proxy.breaker("global").await["override"], Value::Null);
    // The dashboard's own page, and tools that say nothing of it.
    for fields in [vec![("sec-fetch-site", "same-origin")], vec![("origin", proxy.admin.as_str())], vec![]] {
        assert_eq!(send(&client(), Method::PUT, &path, &fields, body, false).await.status, 200, "{fields:?}");
    }
}

#[tokio::test]
async fn a_caller_that_sends_slowly_makes_no_upstream_slow() {
    use tokio::io::AsyncWriteExt;
    let upstream = Scripted::start(|_| async { scripted::json(200, "{}") }).await;
    let sets = ["breaker.slow=2s", "breaker.stale_deadline=100ms"];
    let proxy = Proxy::start(&upstream.url, &sets).await;
    // No write of a known kind: it streams.
    let head = format!(
        "POST /elsewhere HTTP/1.1\r\nHost: seawall\r\nAuthorization: {TOKEN}\r\nConnection: close\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    );
    let mut stream = tokio::net::TcpStream::connect(proxy.addr()).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    // The pace is what is played: longer in all than `slow`.
    let mut pace = tokio::time::interval(std::time::Duration::from_millis(400));
    for _ in 0..8 {
        pace.tick().await;
        stream.write_all(b"1\r\nx\r\n").await.unwrap();
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let answer = chaos::closed(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eventually!(proxy.breaker("other:write").await["window"]["calls"] == 1);
    assert_eq!(proxy.breaker("other:write").await["window"]["slow"], 0);
}

// === recovery ===

/// Opens soon, and tries again soon.
const OPENS_SOON: [&str; 2] = ["breaker.consecutive_failures=3", "breaker.consecutive_span=1ms"];

fn is_well(status: &Value) -> bool {
    matches!(status["state"].as_str(), Some("closed" | "ramping"))
}

#[tokio::test]
async fn an_outage_that_leaves_only_ten_queued_patches_and_no_other_traffic_drains() {
    let simulator = simulator().await;
    let proxy = Proxy::start(&simulator.url(), &OPENS_SOON).await;
    let page = proxy.get("/shipments?per=10").await.json();
    let ids: Vec<String> =
        (0..10).map(|index| page["data"]["data"][index]["id"].to_string().replace('"', "")).collect();
    simulator.set_faults(json!([{"kind": "status", "status": 500}])).unwrap();
    let mut tickets = Vec::new();
    for id in &ids {
        let body = r#"{"metadata":{"when":["later"]}}"#;
        tickets.push(proxy.send(Method::PATCH, &format!("/shipments/{id}"), &[], body).await.ticket());
    }
    assert_eventually!(proxy.breaker("shipments:write").await["state"] == "open");
    simulator.clear_faults();
    for ticket in &tickets {
        assert_eventually!(proxy.ticket(ticket).await["state"] == "done");
    }
    assert_eventually!(is_well(&proxy.breaker("shipments:write").await));
}

#[tokio::test]
async fn a_queue_of_bookings_alone_drains_and_none_goes_before_its_reads_have_recovered() {
    let simulator = simulator().await;
    let proxy = Proxy::start(&simulator.url(), &OPENS_SOON).await;
    simulator.set_faults(json!([{"kind": "status", "status": 500}])).unwrap();
    assert_eventually!(proxy.get("/bookings").await.source() == "seawall");
    let mut tickets = Vec::new();
    for index in 0..5 {
        let body = format!(r#"{{"name":"in the outage {index}"}}"#);
        tickets.push(proxy.send(Method::POST, "/bookings", &[], &body).await.ticket());
    }
    assert!(writes(&simulator).is_empty(), "in a known outage none is sent");
    let before = simulator.journal().len();
    simulator.clear_faults();
    for ticket in &tickets {
        assert_eventually!(proxy.ticket(ticket).await["state"] == "done");
    }
    assert!(is_well(&proxy.breaker("bookings:read").await));
    let journal = simulator.journal();
    let since = &journal[before..];
    let first = since.iter().position(|entry| entry["method"] == "POST").unwrap();
    let good =
        since[..first].iter().filter(|entry| entry["method"] == "GET" && entry["answered"] != 500).count();
    assert!(good >= 2, "{since:?}");
}

#[tokio::test]
async fn sixteen_stalled_readers_of_700_kb_documents_stop_nobody_else() {
    use tokio::io::AsyncWriteExt;
    let upstream = Scripted::start(|arrived| async move {
        let is_document = arrived.head.uri.path().starts_with("/documents");
        let body = if is_document { vec![b'x'; 700_000] } else { b"{}".to_vec() };
        http::Response::builder()
            .header("content-type", if is_document { "application/pdf" } else { "application/json" })
            .body(http_body_util::Full::new(body.into()))
            .unwrap()
    })
    .await;
    // As many slots as there are readers.
    let proxy = Proxy::start(&upstream.url, &["limiter.max=16", "limiter.max_wait=30s"]).await;
    let mut stalled = Vec::new();
    for index in 0..16 {
        let mut stream = tokio::net::TcpStream::connect(proxy.addr()).await.unwrap();
        let request = format!(
            "GET /documents/{index}/download HTTP/1.1\r\nhost: seawall\r\nauthorization: {TOKEN}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        assert!(chaos::head(&mut stream).await.starts_with("HTTP/1.1 200"));
        // And reads no further.
        stalled.push(stream);
    }
    for _ in 0..20 {
        assert_eq!(proxy.get("/shipments").await.source(), "upstream");
    }
    assert_eventually!(proxy.breaker("global").await["in_flight"] == 0);
    assert_eq!(proxy.breaker("documents:read").await["window"]["slow"], 0);
}

#[tokio::test]
async fn forced_states_stay_over_a_reload() {
    let simulator = simulator().await;
    let proxy = Proxy::start(&simulator.url(), &[]).await;
    force(&proxy, "shipments:read", "forced_open").await;
    let reload = proxy.admin(Method::POST, "/api/v1/config/reload", None).await;
    assert_eq!(reload.status, 200, "{reload:?}");
    assert_eq!(proxy.breaker("shipments:read").await["override"]["mode"], "forced_open");
    assert_eq!(proxy.get("/shipments").await.source(), "seawall");
}

// === the status page ===

#[tokio::test]
async fn the_status_page_is_shown_and_opens_nothing() {
    let simulator = simulator().await;
    let url = format!("status_page.url={}", simulator.status_page_url());
    let proxy = Proxy::start(&simulator.url(), &[&url, "status_page.interval=1s"]).await;
    let page = async || proxy.admin(Method::GET, "/api/v1/status", None).await.json()["status_page"].clone();
    assert_eventually!(page().await["indicator"] == "none");
    assert_eq!(page().await["error"], Value::Null);

    simulator.set_status_page(json!({"indicator": "critical", "description": "All is lost"})).unwrap();
    assert_eventually!(page().await["indicator"] == "critical");
    assert_eq!(page().await["description"], "All is lost");
    assert_eventually!(proxy.metric("seawall_status_page_indicator").await > 2.5);
    // Informed, and no more.
    assert_eq!(proxy.get("/shipments").await.source(), "upstream");
    let all = proxy.admin(Method::GET, "/api/v1/breakers", None).await.json();
    assert!(all["breakers"].as_array().unwrap().iter().all(|status| status["state"] == "closed"), "{all}");

    // And a page that says all is well closes nothing, and one that is broken is told as that.
    force(&proxy, "shipments:read", "forced_open").await;
    for answer in ["error", "garbage"] {
        simulator.set_status_page(json!({"answer": answer})).unwrap();
        assert_eventually!(page().await["error"].is_string());
        assert_eq!(page().await["indicator"], "critical", "what it said last");
        simulator.set_status_page(json!({"indicator": "critical"})).unwrap();
        assert_eventually!(page().await["error"].is_null());
    }
    simulator.set_status_page(json!({"indicator": "none"})).unwrap();
    assert_eventually!(page().await["indicator"] == "none");
    assert_eq!(proxy.get("/shipments?per=1").await.source(), "seawall");
}

#[tokio::test]
async fn without_a_status_page_nobody_is_asked() {
    let simulator = simulator().await;
    let proxy = Proxy::start(&simulator.url(), &[]).await;
    let status = proxy.admin(Method::GET, "/api/v1/status", None).await.json();
    assert_eq!(status["status_page"], Value::Null);
}

#[tokio::test]
async fn an_error_in_a_200s_envelope_is_passed_on_and_counts_as_the_failure_that_it_is() {
    let simulator = simulator().await;
    let sets = [
        "breaker.consecutive_failures=3",
        "breaker.consecutive_span=1ms",
        "breaker.open_wait=30s",
        "breaker.open_wait_max=60s",
    ];
    let proxy = Proxy::start(&simulator.url(), &sets).await;
    simulator.set_faults(json!([{"kind": "envelope_error", "status": 503}])).unwrap();
    let answer = proxy.get("/shipments?per=3").await;
    assert_eq!((answer.status.as_u16(), answer.source()), (200, "upstream"));
    assert!(answer.json()["error"].is_object(), "{answer:?}");
    assert_eventually!(proxy.breaker("shipments:read").await["window"]["failures"] == 1);
    assert_eventually!(proxy.get("/shipments?per=3").await.source() == "seawall");
    let status = proxy.breaker("shipments:read").await;
    assert_eq!((&status["state"], &status["last"][0]["outcome"]), (&json!("open"), &json!("status_503")));
}
