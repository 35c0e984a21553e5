//! Objects that were only seen in lists.

use super::*;

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
