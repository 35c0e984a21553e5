//! The cache's second tier over `kill -9`: a proxy that starts in the middle of an outage serves what it knew.

use crate::assert_eventually;
use crate::process::{Server, Setup};
use crate::shipments;
use crate::support::scripted::{self, Scripted};
use crate::support::{Answer, PATIENCE, patch, simulator};
use http::Method;
use seawall::sim::Simulator;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// Links are rewritten to it, so it is part of what a copy is: it must be the same after the restart.
const PUBLIC: &str = "server.public_url=http://seawall.test";
const MIB: u64 = 1 << 20;

fn setup(simulator: &Simulator) -> Setup {
    Setup::new(&simulator.url(), &[PUBLIC, "telemetry.log=info"])
}

async fn cache(server: &Server) -> Value {
    server.admin(Method::GET, "/api/v1/cache", None).await.json()
}

/// Until all that was kept is on disk.
async fn written(server: &Server, entries: u64) {
    assert_eventually!({
        let disk = cache(server).await["disk"].clone();
        disk["waiting"] == 0 && disk["entries"].as_u64() >= Some(entries)
    });
}

async fn get_as(server: &Server, path: &str, token: &str) -> Answer {
    server.send(Method::GET, path, &[("authorization", token)], "").await
}

fn outage(simulator: &Simulator) {
    simulator.set_faults(json!([{"kind": "refuse"}])).unwrap();
}

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Full counts (`make soak`): 50,000 copies, and ready in 2 s as measured, in 20 s as a limit. Else 1,500.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_in_an_outage_serves_what_was_known() {
    let count: usize = if std::env::var_os("SEAWALL_SOAK").is_some() { 50_000 } else { 1500 };
    let simulator = simulator().await;
    let setup = setup(&simulator);
    let server = setup.start().await;
    let ids = shipments(&server).await;
    let path = |n: usize| format!("/shipments/{}?n={n}", ids[n % ids.len()]);
    for n in 0..count {
        let answer = server.get(&path(n)).await;
        assert_eq!((answer.status.as_u16(), answer.source()), (200, "upstream"), "{n}: {answer:?}");
        // No faster than the disk is given them.
        if n % 500 == 0 {
            assert_eventually!(cache(&server).await["disk"]["waiting"].as_u64() < Some(3000));
        }
    }
    // And the list of shipments.
    written(&server, count as u64 + 1).await;
    outage(&simulator);
    let known = Instant::now();
    server.kill();

    let began = Instant::now();
    let server = setup.start().await;
    let ready = began.elapsed();
    assert!(ready < Duration::from_secs(20), "ready after {ready:?}");
    // At once, while the disk may still be being opened.
    let answer = server.get(&path(7)).await;
    assert_eq!((answer.status.as_u16(), answer.source()), (200, "stale"), "{answer:?}\n{}", server.log());
    let sample = if count > 10_000 { 97 } else { 7 };
    for n in (0..count).step_by(sample) {
        let answer = server.get(&path(n)).await;
        assert_eq!((answer.status.as_u16(), answer.source()), (200, "stale"), "{n}: {answer:?}");
        let age: u64 = answer.field("age").parse().unwrap();
        assert!(age >= known.elapsed().as_secs(), "{n}: {answer:?}");
        assert!(answer.field("seawall-data-as-of").starts_with("20"), "{answer:?}");
        assert!(answer.json()["data"]["id"].to_string().contains(ids[n % ids.len()].trim_matches('"')));
    }
    let disk = cache(&server).await["disk"].clone();
    assert_eq!(
        (disk["entries"].as_u64(), disk["state"].as_str()),
        (Some(count as u64 + 1), Some("on")),
        "{disk}"
    );
    let resident = resident(server.pid());
    eprintln!("{count} copies: ready after {ready:?}, {} MiB resident", resident / MIB);
    assert!(resident < (128 + 60) * MIB, "{} MiB", resident / MIB);

    // And with Flexport back nothing of it is taken for fresh.
    simulator.clear_faults();
    assert_eventually!(server.get(&path(1)).await.source() == "upstream");
    server.stop().await;
}

/// A copy and the success of its token that lets it be served are there together: as soon as one is on disk, a kill
/// takes neither.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tokens_first_success_is_on_disk_with_its_first_copy() {
    let simulator = simulator().await;
    let setup = setup(&simulator);
    for round in 0..4 {
        simulator.clear_faults();
        let server = setup.start().await;
        assert_eventually!(cache(&server).await["disk"]["state"] == "on");
        let token = format!("Bearer first-seen-key-{round}");
        let answer = get_as(&server, "/bookings", &token).await;
        assert_eq!((answer.status.as_u16(), answer.source()), (200, "upstream"), "{answer:?}");
        let deadline = Instant::now() + PATIENCE;
        // As closely as can be.
        while cache(&server).await["disk"]["entries"].as_u64() != Some(round + 1) {
            assert!(Instant::now() < deadline, "{}", server.log());
        }
        outage(&simulator);
        server.kill();

        let server = setup.start().await;
        let answer = get_as(&server, "/bookings", &token).await;
        assert_eq!((answer.status.as_u16(), answer.source()), (200, "stale"), "{round}: {answer:?}");
        let other = get_as(&server, "/bookings", "Bearer never-seen-key-1").await;
        assert!(other.status.is_server_error(), "{other:?}");
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_was_revoked_is_refused_after_a_restart_and_others_are_served() {
    let simulator = simulator().await;
    let setup = setup(&simulator);
    let server = setup.start().await;
    let path = format!("/shipments/{}", shipments(&server).await[0]);
    let (revoked, good) = ("Bearer revoked-key-00001", "Bearer another-key-00001");
    for token in [revoked, good] {
        assert_eq!(get_as(&server, &path, token).await.status, 200);
        assert_eq!(get_as(&server, "/bookings", token).await.status, 200);
    }
    written(&server, 4).await;
    let spec = json!({"bad": ["revoked-key-00001"], "forbidden": {"another-key-00001": ["/bookings"]}});
    simulator.set_tokens(spec).unwrap();
    assert_eq!(get_as(&server, &path, revoked).await.status, 401);
    assert_eq!(get_as(&server, "/bookings", good).await.status, 403);
    // What it was answered is on disk.
    server.kill();
    outage(&simulator);

    let server = setup.start().await;
    let answer = get_as(&server, &path, good).await;
    assert_eq!((answer.status.as_u16(), answer.source()), (200, "stale"), "{answer:?}");
    for (path, token) in [(path.as_str(), revoked), ("/bookings", revoked), ("/bookings", good)] {
        let answer = get_as(&server, path, token).await;
        assert!(answer.status.is_server_error(), "{path}: {answer:?}");
    }
    // Its own success ends it.
    simulator.clear_faults();
    simulator.set_tokens(json!({})).unwrap();
    assert_eventually!(get_as(&server, &path, revoked).await.status == 200);
    server.stop().await;
}

/// 404 and 410 of a Flexport that is well take the copy away, on disk too; those of one that fails do not, and mark it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_flexport_denied_when_it_was_well_is_not_served_after_a_restart() {
    let told: Arc<Mutex<HashMap<String, u16>>> = Arc::default();
    let tell = told.clone();
    let upstream = Scripted::start(move |arrived| {
        let path = arrived.head.uri.path().to_owned();
        let told = tell.lock().unwrap();
        let status = told.get(&path).or_else(|| told.get("*")).copied().unwrap_or(200);
        drop(told);
        async move { scripted::json(status, r#"{"data":{"a":1},"error":null}"#) }
    })
    .await;
    let tells = |path: &str, status: u16| {
        told.lock().unwrap().insert(path.to_owned(), status);
    };
    let setup = Setup::new(&upstream.url, &[PUBLIC, "telemetry.log=info", "probe.enabled=false"]);
    let server = setup.start().await;
    let paths = ["/shipments/1", "/shipments/2", "/bookings/1", "/bookings/2", "/invoices/1", "/invoices/2"];
    for path in paths {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    written(&server, paths.len() as u64).await;
    tells("/shipments/1", 404);
    tells("/bookings/1", 410);
    assert_eq!(server.get("/shipments/1").await.status, 404);
    assert_eq!(server.get("/bookings/1").await.status, 410);
    // One failure is enough for a group to show some.
    tells("/invoices/2", 503);
    assert_eq!(server.get("/invoices/2").await.source(), "stale");
    tells("/invoices/1", 404);
    let answer = server.get("/invoices/1").await;
    assert_eq!((answer.status.as_u16(), answer.source()), (404, "upstream"), "it passes through: {answer:?}");
    assert_eventually!({
        let disk = cache(&server).await["disk"].clone();
        disk["waiting"] == 0 && disk["entries"] == paths.len() - 2
    });
    server.kill();
    told.lock().unwrap().clear();
    tells("*", 503);

    let server = setup.start().await;
    for (path, is_there) in [
        ("/shipments/1", false),
        ("/bookings/1", false),
        ("/shipments/2", true),
        ("/bookings/2", true),
        ("/invoices/1", true),
        ("/invoices/2", true),
    ] {
        let answer = server.get(path).await;
        let expected = if is_there { (200, "stale") } else { (503, "upstream") };
        assert!(
            (answer.status.as_u16(), answer.source()) == expected
                || !is_there && answer.source() == "seawall",
            "{path}: {answer:?}"
        );
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_purged_or_invalidated_is_so_after_a_restart() {
    let simulator = simulator().await;
    let setup = setup(&simulator);
    let server = setup.start().await;
    let ids = shipments(&server).await;
    let (first, second) = (&ids[0], &ids[1]);
    for id in [first, second] {
        assert_eq!(server.get(&format!("/shipments/{id}")).await.status, 200);
    }
    assert_eq!(server.get("/bookings").await.status, 200);
    written(&server, 4).await;
    let body = json!({"path": format!("/shipments/{first}"), "soft": false, "reason": "test"});
    let purged = server.admin(Method::POST, "/api/v1/cache/purge", Some(body)).await;
    assert_eq!(purged.json()["purged"], json!({"memory": 1, "disk": 1}), "{purged:?}");
    let changed = server.send(Method::PATCH, &format!("/shipments/{second}"), &[], &patch("new")).await;
    assert_eq!(changed.status, 200, "{changed:?}");
    let listed = server.admin(Method::GET, "/api/v1/cache/entries?limit=2", None).await.json();
    assert_eq!(listed["entries"].as_array().unwrap().len(), 2, "{listed}");
    let next = format!("/api/v1/cache/entries?limit=2&after={}", listed["next"].as_str().unwrap());
    let rest = server.admin(Method::GET, &next, None).await.json();
    assert_eq!((rest["entries"].as_array().unwrap().len(), &rest["next"]), (1, &Value::Null), "{rest}");
    // Marks are written behind, into one log in its order; but a refusal is answered once its own record is on disk.
    let token = "Bearer sync-key-000001";
    assert_eq!(get_as(&server, "/ports", token).await.status, 200);
    simulator.set_tokens(json!({"bad": ["sync-key-000001"]})).unwrap();
    assert_eq!(get_as(&server, "/ports", token).await.status, 401);
    server.kill();
    outage(&simulator);

    let server = setup.start().await;
    let answer = server.get(&format!("/shipments/{first}")).await;
    assert!(answer.status.is_server_error(), "{answer:?}");
    let answer = server.get(&format!("/shipments/{second}")).await;
    assert!(answer.field("cache-status").contains("detail=invalidated"), "{answer:?}");
    let answer = server.get("/bookings").await;
    assert_eq!(answer.source(), "stale");
    assert!(!answer.field("cache-status").contains("invalidated"), "{answer:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_wrong_with_the_folder_the_proxy_works() {
    let simulator = simulator().await;
    let setup = setup(&simulator);
    let server = setup.start().await;
    let path = format!("/shipments/{}", shipments(&server).await[0]);
    server.get(&path).await;
    written(&server, 2).await;
    server.stop().await;
    let dir = setup.data().join("cache");
    type Spoil = fn(&std::path::Path);
    let ways: [(&str, Spoil); 5] = [
        ("bits", |dir| {
            for file in std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()) {
                if let Ok(mut bytes) = std::fs::read(&file)
                    && file.extension().is_some()
                {
                    bytes.iter_mut().step_by(50).for_each(|byte| *byte ^= 0x10);
                    std::fs::write(&file, bytes).unwrap();
                }
            }
        }),
        ("cut", |dir| {
            for file in ["key", "ledger/key", "ledger/log"] {
                let bytes = std::fs::read(dir.join(file)).unwrap();
                std::fs::write(dir.join(file), &bytes[..bytes.len() / 2]).unwrap();
            }
        }),
        ("newer", |dir| std::fs::write(dir.join("VERSION"), "99\n").unwrap()),
        ("gone", |dir| std::fs::remove_dir_all(dir).unwrap()),
        ("a file", |dir| {
            std::fs::remove_dir_all(dir).unwrap();
            std::fs::write(dir, "what").unwrap();
        }),
    ];
    for (name, spoil) in ways {
        spoil(&dir);
        let server = setup.start().await;
        let answer = server.get(&path).await;
        assert_eq!((answer.status.as_u16(), answer.source()), (200, "upstream"), "{name}: {answer:?}");
        assert_eventually!(cache(&server).await["disk"]["state"] != "loading");
        let state = cache(&server).await["disk"]["state"].as_str().unwrap().to_owned();
        let metrics = server.admin(Method::GET, "/metrics", None).await;
        let text = String::from_utf8_lossy(&metrics.body).into_owned();
        let is_on = !matches!(name, "newer" | "a file");
        assert_eq!(state == "on", is_on, "{name}: {state}");
        assert!(text.contains(&format!("\nseawall_cache_disk_up {}", u8::from(is_on))), "{name}");
        assert_eq!(server.log().contains("there is no cache on disk"), !is_on, "{name}");
        outage(&simulator);
        assert_eq!(server.get(&path).await.source(), "stale", "{name}: from memory");
        simulator.clear_faults();
        server.stop().await;
    }
}
