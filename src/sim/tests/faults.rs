//! Every kind of fault, over real sockets.

use std::sync::Arc;

use super::*;

#[tokio::test]
async fn a_status_is_answered_and_nothing_applied_as_often_as_asked() {
    let simulator = start().await;
    let fault = json!([{
        "match": {"method": "POST", "path": "/bookings"},
        "kind": "status", "status": 503, "retry_after": 7, "times": 2,
    }]);
    assert_eq!(control(&simulator, "PUT", "/_sim/faults", &fault).await.status, StatusCode::OK);
    let booking = json!({"name": "x"});
    for _ in 0..2 {
        let got = post(&simulator, "POST", "/bookings", &booking).await;
        assert_eq!((got.status.as_u16(), &got.headers["retry-after"]), (503, &"7".parse().unwrap()));
        assert_eq!(got.json()["error"]["status"], 503);
    }
    assert_eq!(get(&simulator, "/bookings").await.status, StatusCode::OK);
    assert_eq!(post(&simulator, "POST", "/bookings", &booking).await.status, StatusCode::OK);
    let applied: Vec<Value> =
        simulator.journal().iter().filter(|e| e["method"] == "POST").map(|e| e["applied"].clone()).collect();
    assert_eq!(applied, [false, false, true]);
    let left = control(&simulator, "GET", "/_sim/faults", &json!(null)).await.json();
    assert_eq!((&left[0]["times_left"], &left[0]["struck"]), (&json!(0), &json!(2)));
}

#[tokio::test]
async fn a_wrong_fault_is_refused_by_field_and_leaves_the_others() {
    let simulator = start().await;
    simulator.set_faults(json!([{"kind": "status", "status": 500}])).unwrap();
    let got = control(&simulator, "PUT", "/_sim/faults", &json!([{"kind": "status", "stauts": 1}])).await;
    assert_eq!(got.status, StatusCode::BAD_REQUEST);
    assert!(got.json()["error"].as_str().unwrap().starts_with("faults[0].status"));
    assert_eq!(get(&simulator, "/shipments").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    simulator.clear_faults();
    assert_eq!(get(&simulator, "/shipments").await.status, StatusCode::OK);
}

/// Until a request is there, whatever becomes of it.
async fn arrived(simulator: &Simulator) {
    timeout(PATIENCE, async {
        while simulator.journal().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the request arrives");
}

#[tokio::test]
async fn a_late_write_takes_effect_though_its_caller_has_gone() {
    let simulator = start().await;
    simulator.set_faults(json!([{"kind": "latency", "ms": 300}])).unwrap();
    let base = simulator.url();
    let call = tokio::spawn(async move {
        let _ = send(&base, "POST", "/bookings", &[], r#"{"name":"late"}"#).await;
    });
    arrived(&simulator).await;
    call.abort();
    assert!(call.await.is_err(), "nobody waits for the answer any more");
    timeout(PATIENCE, async {
        while simulator.state()["applied"].as_array().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the write takes effect");
}

#[tokio::test]
async fn a_late_write_ends_with_the_simulator() {
    let simulator = start().await;
    simulator.set_faults(json!([{"kind": "latency", "ms": 3_600_000}])).unwrap();
    let base = simulator.url();
    let call = tokio::spawn(async move {
        let _ = send(&base, "POST", "/bookings", &[], r#"{"name":"late"}"#).await;
    });
    arrived(&simulator).await;
    let left = Arc::downgrade(&simulator.shared);
    simulator.shutdown().await;
    timeout(PATIENCE, async {
        while left.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("nothing of it is left");
    call.await.unwrap();
}

#[tokio::test]
async fn what_hangs_is_cut_when_the_fault_is_cleared() {
    for (kind, applied) in [("hang", 0), ("apply_then_hang", 1)] {
        let simulator = start().await;
        simulator.set_faults(json!([{"kind": kind}])).unwrap();
        let base = simulator.url();
        let call =
            tokio::spawn(
                async move { send(&base, "POST", "/bookings", &[], r#"{"name":"x"}"#).await.is_err() },
            );
        timeout(PATIENCE, async {
            while simulator.journal().first().is_none_or(|entry| entry["answered"] != "hang") {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the request arrives");
        assert!(!call.is_finished());
        simulator.clear_faults();
        assert!(timeout(PATIENCE, call).await.unwrap().unwrap(), "no answer, but an end");
        assert_eq!(simulator.state()["applied"].as_array().unwrap().len(), applied);
    }
}

#[tokio::test]
async fn the_answer_after_a_write_can_lie() {
    let simulator = start().await;
    simulator
        .set_faults(json!([{"kind": "apply_then_status", "status": 502, "body": "bad gateway"}]))
        .unwrap();
    let got = post(&simulator, "POST", "/bookings", &json!({"name": "x"})).await;
    assert_eq!((got.status.as_u16(), &got.body[..]), (502, &b"bad gateway"[..]));
    let entry = &simulator.journal()[0];
    assert_eq!((&entry["applied"], &entry["answered"]), (&json!(true), &json!(502)));
}

#[tokio::test]
async fn refuse_ends_connections_and_refuses_new_ones_until_it_is_cleared() {
    let simulator = start().await;
    let mut open = TcpStream::connect(simulator.addr()).await.unwrap();
    // Once it was served, it is surely accepted.
    open.write_all(b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut buffer = [0; 1024];
    assert!(open.read(&mut buffer).await.unwrap() > 0);
    // By the main listener: its own answer still comes.
    let got = send(&simulator.url(), "PUT", "/_sim/faults", &[], r#"[{"kind":"refuse"}]"#).await.unwrap();
    assert_eq!(got.status, StatusCode::OK);
    for _ in 0..3 {
        let error = TcpStream::connect(simulator.addr()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
    let ended = timeout(PATIENCE, open.read(&mut buffer)).await.expect("the open connection ends");
    assert!(matches!(ended, Ok(0) | Err(_)));
    assert_eq!(control(&simulator, "DELETE", "/_sim/faults", &json!(null)).await.status, StatusCode::OK);
    assert_eq!(get(&simulator, "/shipments?per=1").await.status, StatusCode::OK);
    // In-process, too, and again and again.
    for _ in 0..20 {
        simulator.set_faults(json!([{"kind": "refuse"}])).unwrap();
        assert!(TcpStream::connect(simulator.addr()).await.is_err());
        simulator.clear_faults();
        assert_eq!(get(&simulator, "/shipments?per=1").await.status, StatusCode::OK);
    }
    simulator.shutdown().await;
}

#[tokio::test]
async fn refuse_ends_by_itself_at_its_instant() {
    let simulator = start().await;
    let until = super::super::shared::now() + Duration::from_millis(80);
    simulator.set_faults(json!([{"kind": "refuse", "until": until.to_string()}])).unwrap();
    if TcpStream::connect(simulator.addr()).await.is_ok() {
        assert!(super::super::shared::now() >= until, "it listens again, but too early");
    }
    timeout(PATIENCE, async {
        while TcpStream::connect(simulator.addr()).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it listens again");
}

#[tokio::test]
async fn a_reset_before_the_headers_is_a_reset() {
    let simulator = start().await;
    simulator.set_faults(json!([{"kind": "reset"}])).unwrap();
    let error = send(&simulator.url(), "POST", "/bookings", &[], r#"{"name":"x"}"#).await.err().unwrap();
    assert_eq!(io_kind(&*error), Some(ErrorKind::ConnectionReset), "{error:?}");
    let entry = &simulator.journal()[0];
    assert_eq!((&entry["applied"], &entry["answered"]), (&json!(false), &json!("reset")));
}

/// Reads a raw answer until the connection ends: the bytes, and the error if it was no clean end.
async fn raw(simulator: &Simulator, path: &str) -> (Vec<u8>, Option<ErrorKind>) {
    raw_with(simulator, path, "").await
}

async fn raw_with(simulator: &Simulator, path: &str, fields: &str) -> (Vec<u8>, Option<ErrorKind>) {
    let mut stream = TcpStream::connect(simulator.addr()).await.unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer key\r\n{fields}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let end = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the connection ends");
    (bytes, end.err().map(|error| error.kind()))
}

#[tokio::test]
async fn a_cut_answer_has_its_whole_head_and_half_its_body() {
    let simulator = start_with(120).await;
    let full = get(&simulator, "/shipments?per=100").await.body;
    for (fault, end) in [
        (json!([{"kind": "truncate"}]), None),
        (json!([{"kind": "reset", "at": "mid_body"}]), Some(ErrorKind::ConnectionReset)),
    ] {
        simulator.set_faults(fault).unwrap();
        let (bytes, error) = raw(&simulator, "/shipments?per=100").await;
        assert_eq!(error, end);
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", full.len())), "{head}");
        assert_eq!(body.as_bytes(), &full[..full.len() / 2]);
        // Without a body there is no middle to cut at.
        let (bytes, error) = raw(&simulator, "/").await;
        assert!(bytes.is_empty());
        assert_eq!(error, end);
    }
}

#[tokio::test]
async fn a_broken_answer_has_the_fields_of_a_whole_one() {
    let simulator = start().await;
    simulator
        .set_switches(json!({"validators": true, "cache_control": "max-age=60", "rate_limit_headers": true}))
        .unwrap();
    let whole = get(&simulator, "/shipments?per=3").await;
    let tag = whole.header("etag").to_owned();
    for fault in [
        json!([{"kind": "truncate"}]),
        json!([{"kind": "reset", "at": "mid_body"}]),
        json!([{"kind": "drip", "bytes": 1 << 20, "every_ms": 1}]),
        json!([{"kind": "garbage"}]),
    ] {
        simulator.set_faults(fault.clone()).unwrap();
        let (bytes, _) = raw_with(&simulator, "/shipments?per=3", "connection: close\r\n").await;
        let head = String::from_utf8_lossy(&bytes).split_once("\r\n\r\n").unwrap().0.to_owned();
        assert!(head.starts_with("HTTP/1.1 200"), "{fault}: {head}");
        for field in [&format!("etag: {tag}"), "cache-control: max-age=60", "x-ratelimit-limit: "] {
            assert!(head.contains(field), "{fault}: {head}");
        }
    }
    // Garbage is garbage, also for who has the answer already.
    let known = [("if-none-match", &*tag)];
    let got = send(&simulator.url(), "GET", "/shipments?per=3", &known, "").await.unwrap();
    assert_eq!((got.status, got.header("content-type")), (StatusCode::OK, "application/json"));
    assert!(!got.body.is_empty() && serde_json::from_slice::<Value>(&got.body).is_err());
    // A bucket that is not empty tells its own numbers, of answers that break, too.
    let bucket = json!({"kind": "rate_limit", "per_second": 0.001, "burst": 7});
    simulator.set_faults(json!([bucket, {"kind": "garbage"}])).unwrap();
    assert_eq!(get(&simulator, "/shipments?per=3").await.header("x-ratelimit-remaining"), "6");
}

#[tokio::test]
async fn a_cut_breaks_h2_too() {
    let simulator = start().await;
    simulator.set_faults(json!([{"kind": "truncate"}])).unwrap();
    let stream = TcpStream::connect(simulator.addr()).await.unwrap();
    let (mut sender, conn) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(conn);
    let response =
        sender.send_request(request("GET", &simulator.url(), "/shipments?per=3", &[], "")).await.unwrap();
    assert!(timeout(PATIENCE, response.into_body().collect()).await.unwrap().is_err());
    driver.abort();
}

#[tokio::test]
async fn a_bucket_refuses_what_it_has_no_token_for_and_says_when_to_come_again() {
    let simulator = start().await;
    simulator
        .set_faults(json!([{"kind": "rate_limit", "per_second": 0.001, "burst": 2, "per": "token"}]))
        .unwrap();
    for remaining in ["1", "0"] {
        let got = get(&simulator, "/shipments?per=1").await;
        assert_eq!(got.status, StatusCode::OK);
        assert_eq!((got.header("x-ratelimit-limit"), got.header("x-ratelimit-remaining")), ("2", remaining));
        assert!(got.headers.contains_key("x-ratelimit-reset") && !got.headers.contains_key("retry-after"));
    }
    let got = post(&simulator, "POST", "/bookings", &json!({"name": "x"})).await;
    assert_eq!(
        (got.status, &got.json()["error"]["code"]),
        (StatusCode::TOO_MANY_REQUESTS, &json!("rate_limited"))
    );
    assert!(got.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 500);
    assert_eq!(simulator.journal().last().unwrap()["applied"], false);
    let other = [("authorization", "Bearer other")];
    let got = send(&simulator.url(), "GET", "/shipments?per=1", &other, "").await.unwrap();
    assert_eq!(got.status, StatusCode::OK, "another token has a bucket of its own");
    let silent =
        json!([{"kind": "rate_limit", "per_second": 0.001, "burst": 1, "status": 503, "headers": false}]);
    simulator.set_faults(silent).unwrap();
    let (first, second) =
        (get(&simulator, "/shipments?per=1").await, get(&simulator, "/shipments?per=1").await);
    assert_eq!((first.status.as_u16(), second.status.as_u16()), (200, 503));
    let told = |got: &Got| {
        got.headers.keys().any(|name| name.as_str().starts_with("x-ratelimit") || name == "retry-after")
    };
    assert!(!told(&first) && !told(&second));
}

#[tokio::test]
async fn answers_that_lie_about_what_they_are() {
    let simulator = start().await;
    let booking = json!({"name": "x"});
    simulator
        .set_faults(json!([{"kind": "envelope_error", "code": "invalid", "message": "no such port"}]))
        .unwrap();
    let got = post(&simulator, "POST", "/bookings", &booking).await;
    let body = got.json();
    assert_eq!((got.status, &body["data"]), (StatusCode::OK, &json!(null)));
    assert_eq!(
        body["error"],
        json!({"_object": "/api/error", "status": 422, "code": "invalid", "message": "no such port"})
    );
    simulator.set_faults(json!([{"kind": "bad_token"}])).unwrap();
    let got = post(&simulator, "POST", "/bookings", &booking).await;
    assert_eq!(
        (got.status, &got.json()["errors"][0]["code"]),
        (StatusCode::UNAUTHORIZED, &json!("bad_token"))
    );
    for (fault, location) in [
        (json!({"kind": "html_302"}), "https://api.flexport.com/"),
        (json!({"kind": "html_302", "location": "https://login.example/"}), "https://login.example/"),
    ] {
        simulator.set_faults(json!([fault])).unwrap();
        let got = post(&simulator, "POST", "/bookings", &booking).await;
        assert_eq!((got.status, got.header("location")), (StatusCode::FOUND, location));
        assert_eq!(got.headers["content-type"], "text/html; charset=utf-8");
    }
    assert_eq!(simulator.state()["applied"], json!([]), "none of these is carried out");
}

#[tokio::test]
async fn a_dripping_answer_is_whole_but_takes_its_time() {
    let simulator = start().await;
    let full = get(&simulator, "/shipments?per=1").await.body;
    let every = 5;
    let drops = full.len().div_ceil(500) as u64;
    simulator.set_faults(json!([{"kind": "drip", "bytes": 500, "every_ms": every}])).unwrap();
    let before = tokio::time::Instant::now();
    let got = get(&simulator, "/shipments?per=1").await;
    assert_eq!(
        (got.body, got.headers["content-length"].to_str().unwrap()),
        (full.clone(), &*full.len().to_string())
    );
    assert!(before.elapsed() >= Duration::from_millis(every * (drops - 1)));
    let got = post(&simulator, "POST", "/bookings", &json!({"name": "x"})).await;
    assert_eq!(got.status, StatusCode::OK);
    assert_eq!(simulator.state()["applied"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn garbage_in_the_body_and_instead_of_http() {
    let simulator = start().await;
    let full = get(&simulator, "/shipments?per=1").await.body;
    simulator.set_faults(json!([{"kind": "garbage"}])).unwrap();
    let got = get(&simulator, "/shipments?per=1").await;
    assert_eq!(
        (got.status, got.headers["content-type"].to_str().unwrap()),
        (StatusCode::OK, "application/json")
    );
    assert!(serde_json::from_slice::<Value>(&got.body).is_err());
    assert_eq!(got.body.len(), full.len());
    simulator.set_faults(json!([{"kind": "garbage", "at": "head"}])).unwrap();
    let (bytes, error) = raw(&simulator, "/shipments?per=1").await;
    assert_eq!(error, None);
    assert!(!bytes.is_empty() && !bytes.starts_with(b"HTTP/"), "{bytes:?}");
    assert!(send(&simulator.url(), "POST", "/bookings", &[], r#"{"name":"x"}"#).await.is_err());
    let entry = simulator.journal().pop().unwrap();
    assert_eq!((&entry["applied"], &entry["answered"]), (&json!(true), &json!("garbage")));
}
