//! `/_sim`, but for faults, the clock and webhooks.

use super::*;

#[tokio::test]
async fn tokens_can_be_bad_expired_or_without_a_scope() {
    let simulator = start().await;
    let spec = json!({"bad": ["b"], "expired": ["e"], "forbidden": {"f": ["/bookings"]}});
    assert_eq!(control(&simulator, "PUT", "/_sim/tokens", &spec).await.status, StatusCode::OK);
    for (token, path, status) in [
        ("b", "/shipments", 401),
        ("e", "/shipments", 401),
        ("f", "/bookings", 403),
        ("f", "/bookings/1", 403),
        ("f", "/booking_line_items", 200),
        ("g", "/bookings", 200),
    ] {
        let authorization = format!("Bearer {token}");
        let got =
            send(&simulator.url(), "GET", path, &[("authorization", &authorization)], "").await.unwrap();
        assert_eq!(got.status, status, "{token} {path}");
    }
    let wrong = control(&simulator, "PUT", "/_sim/tokens", &json!({"good": []})).await;
    assert_eq!(wrong.status, StatusCode::BAD_REQUEST);
    assert!(wrong.json()["error"].as_str().unwrap().starts_with("tokens.good"));
}

#[tokio::test]
async fn switches_bring_validators() {
    let simulator = start().await;
    let spec = json!({"validators": true, "cache_control": "max-age=60"});
    assert_eq!(control(&simulator, "PUT", "/_sim/switches", &spec).await.status, StatusCode::OK);
    let got = get(&simulator, "/shipments?per=1").await;
    assert_eq!(got.headers["cache-control"], "max-age=60");
    let tag = got.headers["etag"].to_str().unwrap();
    assert!(tag.starts_with("W/\""));
    let again =
        send(&simulator.url(), "GET", "/shipments?per=1", &[("if-none-match", tag)], "").await.unwrap();
    assert_eq!((again.status, again.body.len()), (StatusCode::NOT_MODIFIED, 0));
    assert_eq!(again.headers["etag"], got.headers["etag"]);
}

#[tokio::test]
async fn the_journal_tells_what_arrived_and_what_became_of_it() {
    let simulator = start().await;
    let extra = [("x-twice", "1"), ("x-twice", "2")];
    send(&simulator.url(), "POST", "/bookings?a=b", &extra, r#"{"name":"n"}"#).await.unwrap();
    send(&simulator.url(), "GET", "/_sim/state", &[], "").await.unwrap();
    get(&simulator, "/shipments?per=1").await;
    let entries = control(&simulator, "GET", "/_sim/requests", &json!(null)).await.json();
    assert_eq!(entries.as_array().unwrap().len(), 2, "the calls of /_sim are not in it");
    let entry = &entries[0];
    assert_eq!(
        (&entry["seq"], &entry["method"], &entry["path"]),
        (&json!(1), &json!("POST"), &json!("/bookings"))
    );
    assert_eq!((&entry["query"], &entry["body"]), (&json!("a=b"), &json!(r#"{"name":"n"}"#)));
    assert_eq!(entry["headers"]["x-twice"], json!(["1", "2"]));
    assert_eq!(entry["headers"]["authorization"], "Bearer key");
    assert_eq!((&entry["applied"], &entry["answered"]), (&json!(true), &json!(200)));
    assert!(entry["result_id"].is_u64());
    assert_eq!((&entries[1]["applied"], &entries[1]["answered"]), (&json!(false), &json!(200)));
    let reads =
        control(&simulator, "GET", "/_sim/requests?method=GET&path=/shipments", &json!(null)).await.json();
    assert_eq!(reads.as_array().unwrap().len(), 1);
    control(&simulator, "DELETE", "/_sim/requests", &json!(null)).await;
    assert!(simulator.journal().is_empty());
}

#[tokio::test]
async fn a_call_that_is_not_there_names_those_that_are() {
    let simulator = start().await;
    let unknown = control(&simulator, "GET", "/_sim/nothing", &json!(null)).await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    let error = unknown.json()["error"].as_str().unwrap().to_owned();
    for (path, methods) in super::super::control::CALLS {
        assert!(error.contains(path), "{error}");
        let wrong = control(&simulator, "PATCH", path, &json!({})).await;
        assert_eq!(wrong.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        assert!(wrong.json()["error"].as_str().unwrap().contains(methods));
        // Whatever takes a body refuses one that is no object, and says what it wants.
        for method in methods.split(", ").filter(|method| ["PUT", "POST"].contains(method)) {
            let got = control(&simulator, method, path, &json!("x")).await;
            assert_eq!(got.status, StatusCode::BAD_REQUEST, "{method} {path}");
            assert!(got.json()["error"].as_str().unwrap().contains(": must be"), "{}", got.json());
        }
    }
    assert_eq!(control(&simulator, "GET", "/shipments", &json!(null)).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn another_account_sees_another_world() {
    let simulator = start().await;
    let booking = r#"{"name":"theirs"}"#;
    let spec = json!({"accounts": {"other": "b", "client": "b"}});
    assert_eq!(control(&simulator, "PUT", "/_sim/tokens", &spec).await.status, StatusCode::OK);
    let theirs = [("authorization", "Bearer other")];
    let page = send(&simulator.url(), "GET", "/shipments", &theirs, "").await.unwrap().json();
    assert_eq!(page["data"]["total_count"], 20);
    assert_ne!(page["data"]["data"], data(&simulator, "/shipments").await["data"]);
    let made = send(&simulator.url(), "POST", "/bookings", &theirs, booking).await.unwrap();
    assert_eq!(made.status, StatusCode::OK);
    // A token that a client of theirs was given sees the same.
    let asked = json!({"client_id": "client", "client_secret": "s", "audience": "https://api.flexport.com", "grant_type": "client_credentials"});
    let token = post(&simulator, "POST", "/oauth/token", &asked).await.json()["access_token"]
        .as_str()
        .unwrap()
        .to_owned();
    let token = format!("Bearer {token}");
    let list =
        send(&simulator.url(), "GET", "/bookings", &[("authorization", &token)], "").await.unwrap().json();
    assert_eq!(
        (&list["data"]["total_count"], &list["data"]["data"][0]["name"]),
        (&json!(21), &json!("theirs"))
    );
    assert_eq!(data(&simulator, "/bookings").await["total_count"], 20);
    let state = control(&simulator, "GET", "/_sim/state?account=b", &json!(null)).await.json();
    assert_eq!(
        (&state["counts"]["bookings"], &simulator.state()["counts"]["bookings"]),
        (&json!(21), &json!(20))
    );
    // Each account has its own writes.
    assert_eq!((&state["applied"][0]["path"], &state["applied"][1]), (&json!("/bookings"), &json!(null)));
    let own = simulator.state()["applied"].clone();
    assert_eq!((&own[0]["path"], &own[1]), (&json!("/oauth/token"), &json!(null)));
    assert_eq!(own[0]["body"], asked.to_string(), "as it came, like everything here");
    let unknown = control(&simulator, "GET", "/_sim/state?account=c", &json!(null)).await;
    assert!(unknown.json()["error"].as_str().unwrap().starts_with("account:"));
}

#[tokio::test]
async fn tokens_are_issued_ten_times_a_day_and_expire_with_the_clock() {
    let simulator = start().await;
    simulator.set_tokens(json!({"clients": {"id": "secret"}})).unwrap();
    let ask = |secret: &'static str| {
        let body = json!({"client_id": "id", "client_secret": secret, "audience": "https://api.flexport.com", "grant_type": "client_credentials"});
        let simulator = &simulator;
        async move { post(simulator, "POST", "/oauth/token", &body).await }
    };
    let token = ask("secret").await.json();
    assert_eq!((&token["expires_in"], &token["token_type"]), (&json!(86_400), &json!("Bearer")));
    let bearer = format!("Bearer {}", token["access_token"].as_str().unwrap());
    let read = || send_read(&simulator, &bearer);
    assert_eq!(read().await, StatusCode::OK);
    assert_eq!(ask("wrong").await.status, StatusCode::UNAUTHORIZED);
    for _ in 2..10 {
        assert_eq!(ask("secret").await.status, StatusCode::OK);
    }
    let eleventh = ask("secret").await;
    assert_eq!(eleventh.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(eleventh.json()["error_description"].as_str().unwrap().starts_with("at most 10 token requests"));
    simulator.set_switches(json!({"token_budget": 3})).unwrap();
    let told = ask("secret").await.json()["error_description"].as_str().unwrap().to_owned();
    assert!(told.starts_with("at most 3 token requests"), "{told}");
    assert_eq!(simulator.state()["applied"].as_array().unwrap().len(), 9);
    simulator.set_switches(json!({"token_budget": null})).unwrap();
    assert_eq!(ask("secret").await.status, StatusCode::OK);
    simulator.advance(Duration::from_secs(3600 * 25));
    assert_eq!(read().await, StatusCode::UNAUTHORIZED);
}

async fn send_read(simulator: &Simulator, bearer: &str) -> StatusCode {
    send(&simulator.url(), "GET", "/shipments?per=1", &[("authorization", bearer)], "").await.unwrap().status
}

#[tokio::test]
async fn the_status_page_says_what_it_is_told_and_no_fault_touches_it() {
    let simulator = start().await;
    simulator.set_faults(json!([{"kind": "refuse"}])).unwrap();
    let base = simulator.control_url();
    let path = simulator.status_page_url().strip_prefix(&base).unwrap().to_owned();
    let page = || send(&base, "GET", &path, &[], "");
    assert_eq!(page().await.unwrap().json()["status"]["indicator"], "none");
    let spec = json!({"indicator": "critical", "components": [{"name": "API", "status": "major_outage"}]});
    assert_eq!(control(&simulator, "PUT", "/_sim/status_page", &spec).await.status, StatusCode::OK);
    let status = page().await.unwrap().json();
    assert_eq!(status["status"], json!({"indicator": "critical", "description": "Major Service Outage"}));
    assert_eq!(status["page"]["url"], base);
    let summary = send(&base, "GET", "/_sim/status_page/api/v2/summary.json", &[], "").await.unwrap().json();
    assert_eq!(summary["components"][0]["status"], "major_outage");
    simulator.set_status_page(json!({"answer": "error"})).unwrap();
    assert_eq!(page().await.unwrap().status, StatusCode::SERVICE_UNAVAILABLE);
    simulator.set_status_page(json!({"answer": "garbage"})).unwrap();
    assert!(serde_json::from_slice::<Value>(&page().await.unwrap().body).is_err());
    simulator.set_status_page(json!({"answer": "hang"})).unwrap();
    assert!(timeout(Duration::from_millis(50), page()).await.is_err());
    control(&simulator, "DELETE", "/_sim/status_page", &json!(null)).await;
    assert_eq!(page().await.unwrap().json()["status"]["indicator"], "none");
}

#[tokio::test]
async fn rate_limit_headers_can_be_told_without_a_limit() {
    let simulator = start().await;
    assert!(!get(&simulator, "/shipments?per=1").await.headers.contains_key("x-ratelimit-limit"));
    simulator.set_switches(json!({"rate_limit_headers": {"limit": 1, "window_s": 86_400}})).unwrap();
    for _ in 0..3 {
        let got = get(&simulator, "/shipments?per=1").await;
        assert_eq!((got.status, got.header("x-ratelimit-limit")), (StatusCode::OK, "1"));
        assert_eq!(got.headers["x-ratelimit-remaining"], "0");
    }
    for wrong in
        [json!({"rate_limit_headers": {"limit": 1}}), json!({"token_budget": -1}), json!({"validator": 1})]
    {
        let error = simulator.set_switches(wrong.clone()).unwrap_err();
        assert!(error.starts_with("switches."), "{wrong}: {error}");
    }
}
