//! Who is who: callers, credentials, partitions. Nobody sees another's data.

use crate::assert_eventually;
use crate::support::scripted::{Arrived, Scripted, json};
use crate::support::{Proxy, simulator, writes};
use aws_lc_rs::digest;
use bytes::Bytes;
use http::{Method, Response};
use http_body_util::Full;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Semaphore;

const ANNA: (&str, &str) = ("authorization", "Bearer token-of-anna");
const BERT: (&str, &str) = ("authorization", "Bearer token-of-bert");
/// Fresh for a while, so that hits can be told from misses.
const PORTS_TTL: &str = "[[route]]\nmethod = \"GET\"\npath = \"/ports\"\nttl = \"60s\"\n";

fn sha256(text: &str) -> String {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    digest.as_ref().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// The credential that arrived.
fn token(arrived: &Arrived) -> String {
    arrived.head.headers.get("authorization").map_or("none", |value| value.to_str().unwrap()).to_owned()
}

/// Answers with the credential that came.
fn mirror(arrived: &Arrived) -> Response<Full<Bytes>> {
    json(200, &json!({"data": token(arrived), "error": null}).to_string())
}

async fn mirrors() -> Scripted {
    Scripted::start(|arrived| async move { mirror(&arrived) }).await
}

#[tokio::test]
async fn two_tokens_never_share_a_fresh_copy() {
    let upstream = mirrors().await;
    let proxy = Proxy::configured(&upstream.url, &[], PORTS_TTL, |_| {}).await;
    for source in ["upstream", "cache", "cache"] {
        for who in [ANNA, BERT] {
            let answer = proxy.send(Method::GET, "/ports", &[who], "").await;
            assert_eq!(answer.source(), source);
            assert_eq!(answer.json()["data"], who.1);
        }
    }
    assert_eq!(upstream.arrived().len(), 2);
}

#[tokio::test]
async fn two_tokens_never_share_a_stale_copy() {
    let is_down = Arc::new(AtomicBool::new(false));
    let down = is_down.clone();
    let upstream = Scripted::start(move |arrived| {
        let down = down.clone();
        async move { if down.load(Ordering::SeqCst) { json(503, "{}") } else { mirror(&arrived) } }
    })
    .await;
    let proxy = Proxy::start(&upstream.url, &[]).await;
    assert_eq!(proxy.send(Method::GET, "/shipments/1", &[ANNA], "").await.status, 200);
    is_down.store(true, Ordering::SeqCst);
    for _ in 0..10 {
        let own = proxy.send(Method::GET, "/shipments/1", &[ANNA], "").await;
        assert_eq!((own.source(), &own.json()["data"]), ("stale", &json!(ANNA.1)));
        let other = proxy.send(Method::GET, "/shipments/1", &[BERT], "").await;
        assert_eq!(other.status, 503);
        assert!(!String::from_utf8_lossy(&other.body).contains("anna"));
    }
}

#[tokio::test]
async fn two_tokens_are_never_collapsed_into_one_request() {
    let gate = Arc::new(Semaphore::new(0));
    let wait = gate.clone();
    let upstream = Scripted::start(move |arrived| {
        let wait = wait.clone();
        async move {
            wait.acquire().await.unwrap().forget();
            mirror(&arrived)
        }
    })
    .await;
    // Slow machines: nobody shall go alone while the others still come.
    let proxy = Arc::new(Proxy::start(&upstream.url, &["cache.lock_wait=60s"]).await);
    let mut reads = tokio::task::JoinSet::new();
    for index in 0..20 {
        let proxy = proxy.clone();
        let who = if index % 2 == 0 { ANNA } else { BERT };
        reads.spawn(async move { (who.1, proxy.send(Method::GET, "/shipments/1", &[who], "").await) });
    }
    assert_eventually!(proxy.metric("seawall_requests_in_flight").await >= 20.0);
    gate.add_permits(100);
    for (who, answer) in reads.join_all().await {
        assert_eq!(answer.json()["data"], who);
    }
    assert_eq!(upstream.arrived().len(), 2);
}

#[tokio::test]
async fn a_ticket_is_only_for_its_owner() {
    let simulator = simulator().await;
    let proxy = Proxy::start(&simulator.url(), &[]).await;
    proxy.hold("shipments:write").await;
    let accepted = proxy.send(Method::PATCH, "/shipments/1", &[ANNA], r#"{"name":"secret of anna"}"#).await;
    let id = accepted.ticket();
    assert!(accepted.field("location").ends_with(&format!("/_seawall/writes/{id}")));
    let path = format!("/_seawall/writes/{id}");
    for (method, path) in [
        (Method::GET, path.clone()),
        (Method::GET, format!("{path}/result")),
        (Method::GET, format!("{path}?wait=30")),
        (Method::DELETE, path.clone()),
    ] {
        let other = proxy.send(method.clone(), &path, &[BERT], "").await;
        assert_eq!(other.status, 404, "{method} {path}: {other:?}");
        assert!(!String::from_utf8_lossy(&other.body).contains("anna"));
        // As if it did not exist.
        let unknown = path.replace(&id, "00000000-0000-4000-8000-000000000000");
        let unknown = proxy.send(method.clone(), &unknown, &[BERT], "").await;
        assert_eq!(unknown.status, 404);
        assert_eq!(unknown.json()["error"]["code"], other.json()["error"]["code"]);
    }
    let own = proxy.send(Method::GET, &path, &[ANNA], "").await;
    assert_eq!(own.status, 200);
    assert_eq!(own.json()["data"]["write_id"], id);
    // The same write of another token is no repeat of it.
    let other = proxy.send(Method::PATCH, "/shipments/1", &[BERT], r#"{"name":"secret of anna"}"#).await;
    assert_ne!(other.ticket(), id);
    let cancelled = proxy.send(Method::DELETE, &path, &[ANNA], "").await;
    assert_eq!(cancelled.status, 200);
    assert_eq!(cancelled.json()["data"]["state"], "cancelled");
}

#[tokio::test]
async fn tokens_of_one_declared_identity_share_copies_and_tickets_and_others_do_not() {
    let upstream = mirrors().await;
    let file = format!(
        "[[credentials.identity]]\nname = \"logistics\"\ntoken_sha256 = [\"{}\", \"{}\"]\n{PORTS_TTL}",
        sha256("token-of-anna"),
        sha256("token-of-bert"),
    );
    let proxy = Proxy::configured(&upstream.url, &[], &file, |_| {}).await;
    let first = proxy.send(Method::GET, "/ports", &[ANNA], "").await;
    assert_eq!(first.source(), "upstream");
    let second = proxy.send(Method::GET, "/ports", &[BERT], "").await;
    assert_eq!(second.source(), "cache");
    assert_eq!(second.json()["data"], ANNA.1);
    let stranger = proxy.send(Method::GET, "/ports", &[("authorization", "Bearer another")], "").await;
    assert_eq!(stranger.source(), "upstream");
    // Each still goes as itself.
    let write = proxy.send(Method::PATCH, "/shipments/1", &[BERT], r#"{"x":1}"#).await;
    assert_eq!(write.json()["data"], BERT.1);
}

#[tokio::test]
async fn without_a_credential_a_request_is_forwarded_and_neither_kept_nor_queued() {
    let simulator = simulator().await;
    let upstream = mirrors().await;
    let proxy = Proxy::configured(&upstream.url, &[], PORTS_TTL, |_| {}).await;
    for index in 1..=2 {
        let answer = proxy.bare(Method::GET, "/ports", &[], "").await;
        assert_eq!((answer.status.as_u16(), answer.source()), (200, "upstream"));
        assert!(answer.field("cache-status").contains("fwd=bypass"), "{answer:?}");
        assert_eq!(answer.json()["data"], "none");
        assert_eq!(upstream.arrived().len(), index);
    }
    let write = proxy.bare(Method::POST, "/bookings", &[], r#"{"name":"x"}"#).await;
    assert_eq!((write.status.as_u16(), write.source()), (200, "upstream"));

    // In an outage nobody could send it later.
    let proxy = Proxy::start(&simulator.url(), &[]).await;
    simulator.set_faults(json!([{"kind": "refuse"}])).unwrap();
    for (method, path) in
        [(Method::PATCH, "/shipments/1"), (Method::POST, "/bookings"), (Method::GET, "/ports")]
    {
        let answer = proxy.bare(method.clone(), path, &[], r#"{"name":"x"}"#).await;
        assert!(answer.status.is_server_error(), "{method} {path}: {answer:?}");
        assert_eq!(answer.source(), "seawall");
        assert_eq!(answer.field("seawall-write-id"), "");
    }
    let all = proxy.admin(Method::GET, "/api/v1/writes", None).await.json();
    assert_eq!(all["writes"].as_array().map(Vec::len), Some(0), "{all}");
    simulator.clear_faults();
    assert!(writes(&simulator).is_empty());
}

/// Two callers with an alias each, and one with the default.
fn callers() -> String {
    format!(
        "[credentials]\nmode = \"inject\"\n\
         [credentials.alias.default]\ntoken_file = \"{{dir}}/default\"\n\
         [credentials.alias.second]\ntoken_file = \"{{dir}}/second\"\n\
         [[caller]]\nname = \"anna\"\ntoken_file = \"{{dir}}/anna\"\n\
         [[caller]]\nname = \"bert\"\ntoken_sha256 = \"{}\"\ncredential = \"second\"\n\
         [[caller]]\nname = \"carl\"\ntoken_sha256 = \"{}\"\n{PORTS_TTL}",
        sha256("token-of-bert"),
        sha256("token-of-carl"),
    )
}

fn secrets(dir: &std::path::Path) {
    std::fs::write(dir.join("default"), "flexport-default\n").unwrap();
    std::fs::write(dir.join("second"), "flexport-second\n").unwrap();
    std::fs::write(dir.join("anna"), "token-of-anna\n").unwrap();
}

#[tokio::test]
async fn an_injected_credential_goes_out_and_a_callers_token_never_does() {
    let upstream = mirrors().await;
    let proxy = Proxy::configured(&upstream.url, &[], &callers(), secrets).await;
    for (fields, expected) in [
        (vec![("seawall-token", "token-of-anna")], "Bearer flexport-default"),
        (vec![ANNA], "Bearer flexport-default"),
        (vec![("authorization", "bearer token-of-bert")], "Bearer flexport-second"),
        (vec![("seawall-token", "token-of-bert")], "Bearer flexport-second"),
        (vec![BERT, ("seawall-token", "token-of-bert")], "Bearer flexport-second"),
    ] {
        for (method, path) in [
            (Method::GET, "/shipments/1"),
            (Method::GET, "/elsewhere"),
            (Method::PATCH, "/shipments/1"),
            (Method::POST, "/bookings"),
            (Method::DELETE, "/elsewhere"),
        ] {
            // A body of its own each time, so that nothing is taken for a repeat.
            let body = if method == Method::GET {
                String::new()
            } else {
                format!("{{\"n\":{}}}", upstream.arrived().len())
            };
            let answer = proxy.bare(method.clone(), path, &fields, &body).await;
            assert_eq!(answer.status, 200, "{method} {path}: {answer:?}");
            assert_eq!(answer.json()["data"], expected, "{method} {path}");
        }
    }
    for arrived in upstream.arrived() {
        let all = format!("{:?}", arrived.head.headers);
        assert!(!all.contains("token-of"), "{all}");
        assert!(!arrived.head.headers.contains_key("seawall-token"));
    }
}

#[tokio::test]
async fn callers_of_one_alias_share_its_data_and_callers_of_another_do_not() {
    let upstream = mirrors().await;
    let proxy = Proxy::configured(&upstream.url, &[], &callers(), secrets).await;
    let read = async |who: &str| proxy.bare(Method::GET, "/ports", &[("seawall-token", who)], "").await;
    assert_eq!(read("token-of-anna").await.source(), "upstream");
    assert_eq!(read("token-of-carl").await.source(), "cache");
    let other = read("token-of-bert").await;
    assert_eq!(other.source(), "upstream");
    assert_eq!(other.json()["data"], "Bearer flexport-second");
}

#[tokio::test]
async fn who_is_not_known_gets_401_in_the_envelope_and_reaches_nothing() {
    let upstream = mirrors().await;
    let proxy = Proxy::configured(&upstream.url, &[], &callers(), secrets).await;
    for fields in [
        vec![("seawall-token", "unknown")],
        vec![("authorization", "Bearer unknown")],
        // Two callers at once.
        vec![ANNA, ("seawall-token", "token-of-bert")],
        vec![("authorization", "Bearer unknown"), ("seawall-token", "token-of-bert")],
    ] {
        for (method, path) in
            [(Method::GET, "/ports"), (Method::POST, "/bookings"), (Method::GET, "/_seawall/status")]
        {
            let answer = proxy.bare(method, path, &fields, "").await;
            assert_eq!((answer.status.as_u16(), answer.source()), (401, "seawall"), "{fields:?}");
            let body = answer.json();
            assert_eq!(body["_object"], "/api/response");
            assert_eq!(body["error"]["code"], "seawall_unauthorized");
            assert!(answer.field("www-authenticate").starts_with("Bearer"));
            assert!(!String::from_utf8_lossy(&answer.body).contains("token-of"));
        }
    }
    assert!(upstream.arrived().is_empty());
    // Twice the same field is no way around it.
    let twice = [("seawall-token", "token-of-anna"), ("seawall-token", "token-of-bert")];
    assert_eq!(proxy.bare(Method::GET, "/ports", &twice, "").await.status, 400);
}

#[tokio::test]
async fn a_ticket_of_a_declared_caller_is_not_for_another_one_with_the_same_alias() {
    let simulator = simulator().await;
    let proxy = Proxy::configured(&simulator.url(), &[], &callers(), secrets).await;
    simulator.set_faults(json!([{"kind": "refuse"}])).unwrap();
    let anna = [("seawall-token", "token-of-anna")];
    let id = proxy.bare(Method::PATCH, "/shipments/1", &anna, r#"{"name":"x"}"#).await.ticket();
    let path = format!("/_seawall/writes/{id}");
    assert_eq!(proxy.bare(Method::GET, &path, &anna, "").await.status, 200);
    for who in ["token-of-carl", "token-of-bert"] {
        let other = proxy.bare(Method::GET, &path, &[("seawall-token", who)], "").await;
        assert_eq!(other.status, 404, "{who}");
    }
}

#[tokio::test]
async fn a_reload_reads_the_credentials_again_and_a_bad_file_keeps_the_old_ones() {
    let upstream = mirrors().await;
    let proxy = Proxy::configured(&upstream.url, &[], &callers(), secrets).await;
    let anna = [("seawall-token", "token-of-anna")];
    let sent = || async { proxy.bare(Method::GET, "/shipments/1", &anna, "").await.json()["data"].clone() };
    assert_eq!(sent().await, "Bearer flexport-default");
    let file = proxy.dir.path().join("default");

    std::fs::write(&file, "rotated\n").unwrap();
    let report = proxy.admin(Method::POST, "/api/v1/config/reload", None).await;
    assert_eq!(report.status, 200, "{report:?}");
    assert_eq!(sent().await, "Bearer rotated");

    std::fs::remove_file(&file).unwrap();
    let refused = proxy.admin(Method::POST, "/api/v1/config/reload", None).await;
    assert_eq!(refused.status, 422, "{refused:?}");
    assert!(refused.json()["detail"].as_str().unwrap().contains("credentials.alias.default"), "{refused:?}");
    assert_eq!(sent().await, "Bearer rotated");
}

#[tokio::test]
async fn a_caller_token_beside_a_passed_credential_names_the_owner_and_goes_no_further() {
    let upstream = mirrors().await;
    let file = format!("[[caller]]\nname = \"anna\"\ntoken_sha256 = \"{}\"\n", sha256("caller-anna"));
    let proxy = Proxy::configured(&upstream.url, &[], &file, |_| {}).await;
    let answer = proxy.send(Method::GET, "/ports", &[BERT, ("seawall-token", "caller-anna")], "").await;
    assert_eq!(answer.json()["data"], BERT.1);
    let answer = proxy.send(Method::GET, "/ports", &[BERT, ("seawall-token", "unknown")], "").await;
    assert_eq!(answer.status, 401);
    assert!(upstream.arrived().iter().all(|arrived| !arrived.head.headers.contains_key("seawall-token")));
    assert_eq!(upstream.arrived().len(), 1);
}
