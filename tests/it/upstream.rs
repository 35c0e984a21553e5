//! The ways to the upstream: through an egress proxy, with a private authority, with a client certificate, over h2.
//! The same walk passes in each.

use crate::assert_eventually;
use crate::support::chaos::{self, Chaos};
use crate::support::egress::{Egress, Pki, TlsFront};
use crate::support::{Proxy, client, send, simulator, writes};
use http::Method;
use seawall::config::{LoadArgs, load};
use seawall::sim::{LINK_BASE, Options, Simulator};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// Trusts the authority that [`Pki::write`] has written, and nobody else.
const PRIVATE_CA: &str = "[upstream.tls]\nca_file = \"{dir}/ca.pem\"\nplatform_roots = false\n";
/// The same, with a client certificate.
const CLIENT_CERTIFICATE: &str = "[upstream.tls]\nca_file = \"{dir}/ca.pem\"\ncert_file = \"{dir}/client.pem\"\n\
                                  key_file = \"{dir}/client.key\"\nmin_version = \"1.3\"\n";

/// What every way to the upstream must carry: reads, revalidation, links, writes, an outage, replay, long bodies.
async fn smoke(simulator: &Simulator, proxy: &Proxy) {
    simulator.set_switches(json!({"validators": "weak"})).unwrap();
    let first = proxy.get("/shipments?per=3").await;
    assert_eq!((first.status.as_u16(), first.source()), (200, "upstream"), "{first:?}");
    let text = std::str::from_utf8(&first.body).unwrap();
    assert!(text.contains(&proxy.url) && !text.contains(LINK_BASE), "links are rewritten: {text}");
    let second = proxy.get("/shipments?per=3").await;
    assert_eq!((second.status.as_u16(), second.source()), (200, "cache"), "{second:?}");
    assert!(second.field("cache-status").contains("fwd-status=304"), "{second:?}");
    assert_eq!(second.body, first.body);

    let made = proxy.send(Method::POST, "/bookings", &[], r#"{"name":"smoke"}"#).await;
    assert_eq!((made.status.as_u16(), made.source()), (200, "upstream"), "{made:?}");
    assert_eq!(writes(simulator), [r#"POST /bookings {"name":"smoke"}"#]);

    let page = proxy.get("/shipments?per=100").await;
    assert_eq!(page.status, 200);
    assert!(page.body.len() > 200_000, "{}", page.body.len());
    assert_eq!(page.json()["data"]["data"].as_array().unwrap().len(), 100);
    let document = proxy.get("/documents?per=1&direction=asc").await.json()["data"]["data"][0]["id"].clone();
    let file = proxy.get(&format!("/documents/{}/download", document.as_str().unwrap())).await;
    assert_eq!(file.status, 200);
    assert!(file.body.len() > 600_000, "{}", file.body.len());
    // Longer than any window of HTTP/2, and refused by the simulator only when it has come whole.
    let long = format!(r#"{{"name":"{}"}}"#, "x".repeat(700_000));
    let answer = proxy.send(Method::PATCH, "/shipments/0", &[], &long).await;
    assert_eq!((answer.status.as_u16(), answer.source()), (404, "upstream"), "{answer:?}");
    assert_eq!(writes(simulator).last().unwrap().len(), "PATCH /shipments/0 ".len() + long.len());

    let mut many = tokio::task::JoinSet::new();
    for page in 1..=24 {
        let url = format!("{}/shipments?per=1&page={page}", proxy.url);
        many.spawn(async move { send(&client(), Method::GET, &url, &[], "", true).await });
    }
    assert!(many.join_all().await.iter().all(|answer| answer.status == 200));

    let path = format!("/shipments/{}", first.json()["data"]["data"][0]["id"]);
    let before = proxy.get(&path).await;
    assert_eq!(before.status, 200);
    simulator.set_faults(json!([{"kind": "refuse"}])).unwrap();
    let stale = proxy.get("/shipments?per=3").await;
    assert_eq!((stale.status.as_u16(), stale.source()), (200, "stale"), "{stale:?}");
    assert_eq!(stale.body, first.body);
    let queued = proxy.send(Method::PATCH, &path, &[], r#"{"metadata":{"v":["smoke"]}}"#).await;
    let ticket = queued.ticket();
    simulator.clear_faults();
    assert_eventually!(proxy.ticket(&ticket).await["state"] == "done");
    let result = proxy.get(&format!("/_seawall/writes/{ticket}/result")).await;
    assert_eq!(result.json()["data"]["metadata"], json!({"v": ["smoke"]}));
    assert_eventually!(proxy.get("/shipments?per=3").await.source() != "stale");
}

async fn large() -> Simulator {
    Simulator::start(Options { shipments: 120, ..Options::default() }).await.unwrap()
}

/// A proxy whose folder has the certificates of `pki`.
async fn with(upstream: &str, sets: &[&str], file: &str, pki: &Pki) -> Proxy {
    Proxy::configured(upstream, sets, file, |dir| pki.write(dir)).await
}

async fn connects(proxy: &Proxy, result: &str) -> u64 {
    let text = proxy.admin(Method::GET, "/metrics", None).await.body;
    let name = format!("seawall_upstream_connects_total{{result=\"{result}\"}} ");
    let text = std::str::from_utf8(&text).unwrap().to_owned();
    text.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().unwrap())
}

// --- the ways ---

#[tokio::test]
async fn through_an_egress_proxy() {
    let simulator = large().await;
    let egress = Egress::start(Some("Basic cmVhZGVyOnMzY3JldA==")).await;
    let file = format!(
        "[upstream]\nproxy = \"{}\"\nproxy_authorization_file = \"{{dir}}/proxy-secret\"\n",
        egress.url
    );
    let secret = |dir: &Path| std::fs::write(dir.join("proxy-secret"), "reader:s3cret\n").unwrap();
    let proxy = Proxy::configured(&simulator.url(), &[], &file, secret).await;
    smoke(&simulator, &proxy).await;
    let asked = egress.asked();
    assert!(!asked.is_empty());
    assert!(asked.iter().all(|target| *target == simulator.addr().to_string()), "{asked:?}");
}

#[tokio::test]
async fn with_a_private_authority() {
    let (simulator, pki) = (large().await, Pki::new());
    let front = TlsFront::start(simulator.addr(), &pki, b"http/1.1", false).await;
    let proxy = with(&front.url, &[], PRIVATE_CA, &pki).await;
    smoke(&simulator, &proxy).await;
}

#[tokio::test]
async fn with_a_client_certificate() {
    let (simulator, pki) = (large().await, Pki::new());
    let front = TlsFront::start(simulator.addr(), &pki, b"http/1.1", true).await;
    let proxy = with(&front.url, &[], CLIENT_CERTIFICATE, &pki).await;
    smoke(&simulator, &proxy).await;
}

#[tokio::test]
async fn over_h2_with_tls_through_an_egress_proxy_with_a_client_certificate() {
    let (simulator, pki) = (large().await, Pki::new());
    let front = TlsFront::start(simulator.addr(), &pki, b"h2", true).await;
    let egress = Egress::start(None).await;
    let proxied = format!("upstream.proxy={}", egress.url);
    let proxy = with(&front.url, &["upstream.protocol=h2", &proxied], CLIENT_CERTIFICATE, &pki).await;
    smoke(&simulator, &proxy).await;
    assert!(!egress.asked().is_empty());
}

#[tokio::test]
async fn over_h2_with_prior_knowledge() {
    let simulator = large().await;
    let proxy = Proxy::start(&simulator.url(), &["upstream.protocol=h2"]).await;
    smoke(&simulator, &proxy).await;
    // One connection before the outage; those after it came one after another.
    assert!(connects(&proxy, "ok").await < 20, "{}", connects(&proxy, "ok").await);
}

// --- what is refused, and how it is told ---

/// What a read is answered with when there is no way to the upstream, and what a create: its ticket.
async fn refused(proxy: &Proxy, result: &str, parts: &[&str]) {
    let answer = proxy.get("/shipments").await;
    assert_eq!((answer.status.as_u16(), answer.source()), (502, "seawall"), "{answer:?}");
    let text = answer.json().to_string();
    for part in parts {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(connects(proxy, result).await > 0, "seawall_upstream_connects_total{{result={result}}}");
    // Nothing was sent: a create is queued, not in doubt.
    let made = proxy.send(Method::POST, "/bookings", &[], r#"{"name":"later"}"#).await;
    made.ticket();
}

#[tokio::test]
async fn an_egress_proxy_that_refuses_is_an_outage_that_names_it() {
    let simulator = simulator().await;
    let egress = Egress::start(Some("Basic another")).await;
    let set = format!("upstream.proxy={}", egress.url);
    let proxy = Proxy::start(&simulator.url(), &[&set]).await;
    refused(&proxy, "proxy", &[&egress.url, "407 Proxy Authentication Required", "proxy_authorization_file"])
        .await;
    assert_eq!(simulator.journal(), Vec::<Value>::new());
}

#[tokio::test]
async fn an_egress_proxy_that_hangs_or_speaks_nonsense_is_an_outage_that_says_so() {
    let simulator = simulator().await;
    let silent = Chaos::start(|mut stream, _| async move {
        chaos::head(&mut stream).await;
        std::future::pending::<()>().await;
    })
    .await;
    let set = format!("upstream.proxy={}", silent.url);
    let proxy = Proxy::start(&simulator.url(), &[&set, "upstream.connect_timeout=300ms"]).await;
    refused(&proxy, "timeout", &["no connection within 300ms", "answer of the egress proxy to CONNECT"])
        .await;

    let garbage = Chaos::start(|mut stream, _| async move {
        chaos::head(&mut stream).await;
        let _ = stream.write_all(b"220 mail.internal ESMTP\r\n\r\n").await;
    })
    .await;
    let set = format!("upstream.proxy={}", garbage.url);
    let proxy = Proxy::start(&simulator.url(), &[&set]).await;
    refused(&proxy, "proxy", &[&garbage.url, "did not answer CONNECT in HTTP/1.1"]).await;
}

#[tokio::test]
async fn an_authority_that_is_not_trusted_is_named_as_the_reason() {
    let (simulator, pki, other) = (simulator().await, Pki::new(), Pki::new());
    let front = TlsFront::start(simulator.addr(), &pki, b"http/1.1", false).await;
    let proxy = with(&front.url, &[], PRIVATE_CA, &other).await;
    refused(&proxy, "tls", &["UnknownIssuer", "upstream.tls.ca_file"]).await;
    assert_eq!(simulator.journal(), Vec::<Value>::new());
}

#[tokio::test]
async fn a_client_certificate_that_is_missing_over_h2_is_a_failure_to_connect() {
    let (simulator, pki) = (simulator().await, Pki::new());
    let front = TlsFront::start(simulator.addr(), &pki, b"h2", true).await;
    let proxy = with(&front.url, &["upstream.protocol=h2"], PRIVATE_CA, &pki).await;
    let answer = proxy.get("/shipments").await;
    assert_eq!((answer.status.as_u16(), answer.source()), (502, "seawall"), "{answer:?}");
    proxy.send(Method::POST, "/bookings", &[], r#"{"name":"later"}"#).await.ticket();
    assert_eq!(simulator.journal(), Vec::<Value>::new());
}

#[tokio::test]
async fn an_upstream_without_h2_is_told_as_one() {
    let (simulator, pki) = (simulator().await, Pki::new());
    let front = TlsFront::start(simulator.addr(), &pki, b"http/1.1", false).await;
    let proxy = with(&front.url, &["upstream.protocol=h2"], PRIVATE_CA, &pki).await;
    let answer = proxy.get("/shipments").await;
    assert_eq!((answer.status.as_u16(), answer.source()), (502, "seawall"), "{answer:?}");
    proxy.send(Method::POST, "/bookings", &[], r#"{"name":"later"}"#).await.ticket();
}

#[tokio::test]
async fn certificates_are_read_again_at_a_reload() {
    let (simulator, old, new) = (simulator().await, Pki::new(), Pki::new());
    let front = TlsFront::start(simulator.addr(), &new, b"http/1.1", false).await;
    // The folder has those of an authority that the upstream no longer uses.
    let mut proxy = with(&front.url, &["probe.enabled=false"], PRIVATE_CA, &old).await;
    assert_eq!(proxy.get("/shipments").await.status, 502);
    new.write(proxy.dir.path());
    let app = proxy.app.take().unwrap();
    let report = app.reload().await.unwrap();
    proxy.app = Some(app);
    assert_eq!(report.needs_restart, Vec::<String>::new());
    assert_eventually!(proxy.get("/shipments").await.status == 200);

    // A bad file changes nothing, and is named.
    std::fs::write(proxy.dir.path().join("ca.pem"), "nothing of use").unwrap();
    let app = proxy.app.take().unwrap();
    let error = app.reload().await.unwrap_err().to_string();
    proxy.app = Some(app);
    assert!(error.contains("upstream.tls.ca_file") && error.contains("holds no certificate"), "{error}");
    assert_eq!(proxy.get("/shipments?page=2").await.status, 200);
}

// --- connections ---

#[tokio::test]
async fn connections_end_at_their_age_and_when_unused_and_are_counted() {
    for protocol in ["h1", "h2"] {
        let simulator = simulator().await;
        let protocol = format!("upstream.protocol={protocol}");
        let sets = [protocol.as_str(), "upstream.idle_timeout=400ms"];
        let proxy = Proxy::start(&simulator.url(), &sets).await;
        assert_eq!(proxy.get("/shipments").await.status, 200);
        assert_eventually!(proxy.metric("seawall_upstream_connections").await == 0.0);
        let sets = [protocol.as_str(), "upstream.connection_max_age=400ms"];
        let proxy = Proxy::start(&simulator.url(), &sets).await;
        assert_eq!(proxy.get("/shipments").await.status, 200);
        assert_eventually!(proxy.metric("seawall_upstream_connections").await == 0.0);
        assert_eq!(proxy.get("/shipments?page=2").await.status, 200);
        assert!(connects(&proxy, "ok").await > 1);
    }
}

#[tokio::test]
async fn a_frozen_h2_connection_is_cut_and_not_waited_for() {
    // Relays until one connection is told to fall silent, and stays open. Later ones are not touched.
    let simulator = simulator().await;
    let (silence, silenced) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (to, when, tell) = (simulator.addr(), silence.clone(), silenced.clone());
    let middle = Chaos::start(move |mut stream, _| {
        let (when, tell) = (when.clone(), tell.clone());
        async move {
            let mut to = TcpStream::connect(to).await.unwrap();
            let relay = tokio::io::copy_bidirectional(&mut stream, &mut to);
            tokio::select! {
                _ = relay => return,
                () = when.notified() => tell.notify_one(),
            }
            std::future::pending::<()>().await;
        }
    })
    .await;
    // Patience by far longer than the test's, so that nothing but the PING can end it.
    let sets = [
        "upstream.protocol=h2",
        "upstream.h2_ping_interval=300ms",
        "upstream.h2_ping_timeout=2s",
        "upstream.timeout=200s",
        "breaker.stale_deadline=200s",
        // The next connection would answer.
        "retry.budget=0.0",
        "retry.per_second=0",
    ];
    let proxy = Proxy::start(&middle.url, &sets).await;
    let fresh = proxy.get("/shipments?per=3").await;
    assert_eq!(fresh.status, 200);
    silence.notify_one();
    // A slow machine may have lost its connection meanwhile; then the next one takes the word.
    let _ = tokio::time::timeout(Duration::from_secs(5), silenced.notified()).await;
    let stale = proxy.get("/shipments?per=3").await;
    assert_eq!((stale.status.as_u16(), stale.source()), (200, "stale"), "{stale:?}");
    assert_eq!(stale.body, fresh.body);
    assert_eventually!(proxy.get("/shipments?per=2").await.source() == "upstream");
    assert!(middle.connections() > 1);
}

// --- the start ---

#[test]
fn what_cannot_be_used_is_refused_before_the_start_and_names_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let (pki, other) = (Pki::new(), Pki::new());
    pki.write(dir.path());
    std::fs::write(dir.path().join("other.key"), &other.client.1).unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    for (sets, parts) in [
        (
            vec![format!("upstream.tls.ca_file={}", dir.path().display())],
            vec!["upstream.tls.ca_file", "is a folder"],
        ),
        (
            vec![
                format!("upstream.tls.cert_file={}", at("client.pem")),
                format!("upstream.tls.key_file={}", at("other.key")),
            ],
            vec!["upstream.tls.key_file", "is not the key of the first certificate"],
        ),
        (
            vec![format!("upstream.tls.cert_file={}", at("client.pem"))],
            vec!["upstream.tls.key_file", "is required"],
        ),
    ] {
        let error = load(&LoadArgs::new(None, sets, std::iter::empty())).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{part} is not in {error}");
        }
    }
}
