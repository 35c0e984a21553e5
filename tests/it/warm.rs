//! The operator's side of the cache: warming, and what an outage now would be served.

use crate::assert_eventually;
use crate::support::{Proxy, TOKEN, arrivals, simulator};
use http::Method;
use serde_json::{Value, json};

const WARM: &str = "/api/v1/cache/warm";
const ALIASES: &str = "[credentials]\nmode = \"inject\"\n\
    [credentials.alias.default]\ntoken_file = \"{dir}/default\"\n\
    [credentials.alias.second]\ntoken_file = \"{dir}/second\"\n";

fn secrets(dir: &std::path::Path) {
    std::fs::write(dir.join("default"), "flexport-default\n").unwrap();
    std::fs::write(dir.join("second"), "flexport-second\n").unwrap();
}

async fn status(proxy: &Proxy) -> Value {
    proxy.admin(Method::GET, WARM, None).await.json()
}

/// Begins, and waits for the end.
async fn warmed(proxy: &Proxy, order: Value) -> Value {
    let begun = proxy.admin(Method::POST, WARM, Some(order)).await;
    assert_eq!(begun.status, 202, "{begun:?}");
    let id = begun.json()["id"].clone();
    assert_eventually!(!status(proxy).await["ended_at"].is_null());
    let status = status(proxy).await;
    assert_eq!(status["id"], id);
    status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_active_shipments_are_there_in_an_outage_also_after_a_restart() {
    let simulator = simulator().await;
    let public = ["server.public_url=http://seawall.example"];
    let mut proxy = Proxy::start(&simulator.url(), &public).await;
    assert_eq!(status(&proxy).await["state"], "idle");
    let order = json!({"shipments": "active", "token": TOKEN, "reason": "a test", "actor": "me"});
    let told = warmed(&proxy, order).await;
    assert_eq!(told["state"], "done", "{told}");
    assert_eq!(told["failed"], json!({}), "{told}");
    assert_eq!(told["shipments_listed"], 12, "{told}");
    let active = told["shipments_active"].as_u64().unwrap();
    assert!(active > 0, "{told}");
    assert!(told["stored"].as_u64().unwrap() > 2 * active, "their lists too: {told}");
    assert!(told["partition"].as_str().unwrap().starts_with("p-"), "{told}");
    assert!(proxy.metric("seawall_cache_warm_state").await.abs() < f64::EPSILON);

    let covered = async |proxy: &Proxy| proxy.admin(Method::GET, "/api/v1/cache/coverage", None).await.json();
    let coverage = covered(&proxy).await;
    assert_eq!(
        (&coverage["shipments"]["served"], &coverage["shipments"]["listed"]),
        (&json!(12), &json!(12))
    );
    assert_eq!(coverage["partitions"][0]["partition"], told["partition"]);
    assert_eq!(coverage["partitions"][0]["credential"], "proven");
    let entries = coverage["partitions"][0]["copies"].as_u64().unwrap();
    assert_eventually!(
        proxy.admin(Method::GET, "/api/v1/cache", None).await.json()["disk"]["entries"] == entries
    );

    proxy.restart().await;
    assert_eq!(status(&proxy).await["state"], "idle", "a restart forgets the job");
    assert_eventually!(covered(&proxy).await["disk"] == "on");
    assert_eq!(covered(&proxy).await["shipments"]["served"], 12);
    assert_eq!(covered(&proxy).await["partitions"][0]["copies"], entries);
    proxy.hold("all").await;
    let list = proxy.get("/shipments?page=1&per=100").await;
    assert_eq!(list.source(), "stale", "{list:?}");
    for shipment in list.json()["data"]["data"].as_array().unwrap() {
        let object = proxy.get(&format!("/shipments/{}", shipment["id"])).await;
        assert_eq!((object.status.as_u16(), object.source()), (200, "stale"), "{object:?}");
        if shipment["actual_delivered_in_full_date"].is_null() {
            // As a client follows it.
            let link = shipment["documents"]["link"].as_str().unwrap();
            let path = link.split_once("/documents").unwrap().1;
            let documents = proxy.get(&format!("/documents{path}")).await;
            assert_eq!(
                (documents.status.as_u16(), documents.source()),
                (200, "stale"),
                "{link}: {documents:?}"
            );
        }
    }
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_under_another_name_of_ours_do_not_count() {
    let simulator = simulator().await;
    let named = |name: &str| format!("[server]\npublic_url = \"http://{name}.example\"\n");
    let mut proxy = Proxy::configured(&simulator.url(), &[], &named("old"), |_| {}).await;
    assert_eq!(proxy.get("/shipments").await.status, 200);
    assert_eventually!(proxy.admin(Method::GET, "/api/v1/cache", None).await.json()["disk"]["entries"] == 1);
    std::fs::write(proxy.dir.path().join("proxy.toml"), named("new")).unwrap();
    proxy.restart().await;
    let covered = async |proxy: &Proxy| proxy.admin(Method::GET, "/api/v1/cache/coverage", None).await.json();
    assert_eventually!(covered(&proxy).await["disk"] == "on");
    let coverage = covered(&proxy).await;
    assert_eq!(coverage["shipments"]["served"], 0, "{coverage}");
    assert_eq!(coverage["refused"], json!({"other-base": 1}), "{coverage}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alias_is_warmed_for_itself_alone() {
    let simulator = simulator().await;
    let proxy = Proxy::configured(&simulator.url(), &[], ALIASES, secrets).await;
    let told = warmed(&proxy, json!({"urls": ["/ports"], "credential": "second"})).await;
    assert_eq!(
        (&told["state"], &told["partition"], &told["stored"]),
        (&json!("done"), &json!("second"), &json!(1))
    );
    let of = async |partition: &str| {
        let path = format!("/api/v1/cache/entries?partition={partition}");
        proxy.admin(Method::GET, &path, None).await
    };
    let listed = of("second").await.json();
    assert_eq!(listed["entries"][0]["path"], "/ports", "{listed}");
    assert_eq!(listed["entries"][0]["partition"], "second");
    assert_eq!(of("default").await.json()["entries"], json!([]));
    assert_eq!(of("third").await.status, 404);
    let told = warmed(&proxy, json!({"urls": ["/ports", "", "# no", "/ports"]})).await;
    assert_eq!((&told["partition"], &told["total"]), (&json!("default"), &json!(1)), "{told}");
    assert_eq!(arrivals(&simulator, "GET", "/ports"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_breaker_pauses_it_and_there_is_one_job_at_a_time() {
    let simulator = simulator().await;
    let mut proxy = Proxy::configured(&simulator.url(), &[], ALIASES, secrets).await;
    proxy.hold("ports:read").await;
    let order = json!({"urls": ["/ports"]});
    assert_eq!(proxy.admin(Method::POST, WARM, Some(order.clone())).await.status, 202);
    assert_eventually!(status(&proxy).await["state"] == "paused");
    assert_eq!(status(&proxy).await["pause"]["why"], "breaker-open");
    assert!((proxy.metric("seawall_cache_warm_state").await - 2.0).abs() < f64::EPSILON);
    assert!((proxy.metric("seawall_cache_warm_left").await - 1.0).abs() < f64::EPSILON);
    let second = proxy.admin(Method::POST, WARM, Some(order.clone())).await;
    assert_eq!(second.status, 409, "{second:?}");
    assert_eq!(second.json()["running"]["id"], 1, "{second:?}");
    proxy.lift("ports:read").await;
    assert_eventually!(status(&proxy).await["state"] == "done");
    assert_eq!(status(&proxy).await["stored"], 1);

    proxy.hold("ports:read").await;
    assert_eq!(proxy.admin(Method::POST, WARM, Some(order.clone())).await.status, 202);
    assert_eq!(proxy.admin(Method::DELETE, WARM, None).await.status, 200);
    assert_eventually!(status(&proxy).await["state"] == "cancelled");
    let idle = proxy.admin(Method::DELETE, WARM, None).await;
    assert_eq!(idle.status, 404, "{idle:?}");
    // One that pauses does not hold up the end of the process.
    assert_eq!(proxy.admin(Method::POST, WARM, Some(order)).await.status, 202);
    assert!(proxy.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_orders_are_refused_with_what_to_do() {
    let simulator = simulator().await;
    let inject = Proxy::configured(&simulator.url(), &[], ALIASES, secrets).await;
    let passed = Proxy::start(&simulator.url(), &[]).await;
    let strict = Proxy::start(&simulator.url(), &["profile=strict"]).await;
    let many: Vec<String> = (0..100_001).map(|number| format!("/shipments/{number}")).collect();
    for (proxy, order, code, words) in [
        (&inject, json!({}), 400, "one of urls and shipments"),
        (&inject, json!({"urls": ["/a"], "shipments": "active"}), 400, "one of urls and shipments"),
        (&inject, json!({"shipments": "all"}), 400, "active"),
        (&inject, json!({"urls": ["/a", "b"]}), 400, "line 2"),
        (&inject, json!({"urls": ["", "#"]}), 400, "no URL"),
        (&inject, json!({"urls": many}), 400, "100000"),
        (&inject, json!({"urls": ["/a"], "concurrency": 17}), 400, "concurrency"),
        (&inject, json!({"urls": ["/a"], "concurrency": 0}), 400, "concurrency"),
        (&inject, json!({"urls": ["/a"], "accept": "a\nb"}), 400, "accept"),
        (&inject, json!({"urls": ["/a"], "credential": "third"}), 404, "default, second"),
        (&inject, json!({"urls": ["/a"], "token": "hidden-token"}), 400, "alias"),
        (&inject, json!({"urls": ["/a"], "colour": 1}), 400, "colour"),
        (&passed, json!({"urls": ["/a"]}), 422, "token"),
        (&passed, json!({"urls": ["/a"], "token": "  "}), 422, "token"),
        (&passed, json!({"urls": ["/a"], "token": "hidden\ntoken"}), 400, "token"),
        (&passed, json!({"urls": ["/a"], "credential": "default"}), 400, "passthrough"),
        (&strict, json!({"urls": ["/a"], "token": "x"}), 422, "strict"),
    ] {
        let answer = proxy.admin(Method::POST, WARM, Some(order)).await;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!(answer.status, code, "{text}");
        assert!(text.contains(words), "no {words:?} in {text}");
        assert!(!text.contains("hidden"), "{text}");
        assert_eq!(answer.field("content-type"), "application/problem+json");
    }
    assert_eq!(status(&inject).await["state"], "idle");
    let coverage = inject.admin(Method::GET, "/api/v1/cache/coverage?partition=x", None).await;
    assert_eq!(coverage.status, 404, "{coverage:?}");
    let coverage = inject.admin(Method::GET, "/api/v1/cache/coverage?of=x", None).await;
    assert_eq!(coverage.status, 400, "{coverage:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_serve_no_outage_is_counted_while_all_is_well() {
    let simulator = simulator().await;
    let file = "[[route]]\nmethod = \"GET\"\npath = \"/ports\"\noverride_revalidation = false\n";
    let proxy = Proxy::configured(&simulator.url(), &[], file, |_| {}).await;
    simulator.set_switches(json!({"cache_control": "max-age=0, must-revalidate"})).unwrap();
    for path in ["/ports", "/shipments?f.updated_at.gt=2020-01-01T00:00:00Z"] {
        assert_eq!(proxy.get(path).await.status, 200);
    }
    let metrics = proxy.admin(Method::GET, "/metrics", None).await;
    let metrics = std::str::from_utf8(&metrics.body).unwrap();
    for reason in ["must-revalidate", "incremental"] {
        let line = format!("seawall_cache_unservable_total{{result=\"{reason}\"}} 1\n");
        assert!(metrics.contains(&line), "no {line} in {metrics}");
    }
    let coverage = proxy.admin(Method::GET, "/api/v1/cache/coverage", None).await.json();
    let of = |label: &str| {
        let routes = coverage["routes"].as_array().unwrap();
        routes.iter().find(|route| route["route"] == label).unwrap().clone()
    };
    assert_eq!(of("GET /ports")["why_not"], "must-revalidate", "{coverage}");
    assert_eq!(of("GET /shipments")["why_not"], "incremental", "{coverage}");
    assert_eq!(coverage["refused"], json!({"incremental": 1, "must-revalidate": 1}));
}
