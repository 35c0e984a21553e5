//! The way through: bytes, links, fields, framing, limits, the end.

use crate::assert_eventually;
use crate::support::chaos::{self, BOUND, Chaos, FLOOD};
use crate::support::scripted::{Scripted, json};
use crate::support::{Answer, PATIENCE, Proxy, TOKEN, arrivals, client, send, simulator, writes};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use seawall::sim::{LINK_BASE, Options, Simulator};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

mod connections;
mod framing;
mod pace;

/// What a raw upstream answers when nothing else is asked of it.
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok";

/// The heads that an upstream has read.
type Heads = Arc<std::sync::Mutex<Vec<String>>>;

/// An upstream that answers [`OK`] to heads without a body, and keeps the heads.
async fn listening() -> (Chaos, Heads) {
    listening_with(OK).await
}

/// The same with another answer.
async fn listening_with(answer: &'static [u8]) -> (Chaos, Heads) {
    let heads = Heads::default();
    let log = heads.clone();
    let upstream = Chaos::start(move |mut stream, _| {
        let log = log.clone();
        async move {
            loop {
                let head = chaos::head(&mut stream).await;
                if head.is_empty() {
                    return;
                }
                log.lock().unwrap().push(head);
                if stream.write_all(answer).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (upstream, heads)
}

/// Straight from the simulator, with its links turned to the proxy's.
async fn direct(simulator: &Simulator, proxy: &Proxy, method: Method, path: &str) -> Answer {
    let mut answer = send(&client(), method, &format!("{}{path}", simulator.url()), &[], "", true).await;
    let text = String::from_utf8(answer.body.to_vec());
    if let Ok(text) = text {
        answer.body = text.replace(LINK_BASE, &proxy.url).into();
    }
    answer
}

fn ids(page: &Value) -> Vec<String> {
    page["data"]["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["id"].to_string().replace('"', ""))
        .collect()
}

fn strings<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => found.push(text),
        Value::Array(items) => items.iter().for_each(|item| strings(item, found)),
        Value::Object(fields) => fields.values().for_each(|item| strings(item, found)),
        _ => {}
    }
}

#[tokio::test]
async fn reads_pass_through_byte_for_byte_apart_from_links() {
    let simulator = simulator().await;
    let proxy = Proxy::start(&simulator.url(), &[]).await;
    let shipment = ids(&proxy.get("/shipments?per=1").await.json())[0].clone();
    for path in [
        "/shipments?per=5&page=2",
        "/shipment_legs?per=3",
        "/bookings?sort=id&direction=desc",
        "/documents?per=2",
        "/network/me/companies",
        "/network/companies",
        "/shipments/nothing",
        "/shipments?per=nonsense",
        &format!("/shipments/{shipment}"),
        &format!("/shipments/{shipment}?include=x%20y&f.a=%C3%A9"),
    ] {
        let straight = direct(&simulator, &proxy, Method::GET, path).await;
        let through = proxy.get(path).await;
        assert_eq!(through.status, straight.status, "{path}");
        assert_eq!(String::from_utf8_lossy(&through.body), String::from_utf8_lossy(&straight.body), "{path}");
        assert_eq!(through.field("content-type"), straight.field("content-type"), "{path}");
        assert_eq!(through.source(), "upstream", "{path}");
    }
    // The same target arrives, octet for octet.
    let queries: Vec<_> = simulator.journal().iter().map(|entry| entry["query"].clone()).collect();
    assert!(queries.contains(&json!("include=x%20y&f.a=%C3%A9")), "{queries:?}");
}

#[tokio::test]
async fn writes_pass_through_byte_for_byte() {
    let answer: &[u8] = b"\x00\xff not text at all \xfe";
    let upstream = Scripted::start(move |_| async move {
        Response::builder()
            .status(201)
            .header("content-type", "application/octet-stream")
            .header("x-flexport", "as it came")
            .body(Full::new(Bytes::from_static(answer)))
            .unwrap()
    })
    .await;
    let proxy = Proxy::start(&upstream.url, &[]).await;
    let body: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    for (method, path) in [
        (Method::POST, "/documents"),
        (Method::PATCH, "/shipments/1"),
        (Method::POST, "/carbon_calculation"),
        (Method::PUT, "/something/else?x=%2F"),
        (Method::DELETE, "/something"),
    ] {
        let request = Request::builder()
            .method(method.clone())
            .uri(format!("{}{path}", proxy.url))
            .header("authorization", TOKEN)
            .header("content-type", "application/octet-stream")
            .body(seawall::http::Body::from(Bytes::from(body.clone())))
            .unwrap();
        let response = client().request(request).await.unwrap();
        assert_eq!(response.status(), 201, "{method} {path}");
        assert_eq!(response.headers()["x-flexport"], "as it came");
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), answer);
        let arrived = upstream.arrived().pop().unwrap();
        assert_eq!(arrived.head.method, method);
        assert_eq!(arrived.head.uri, path);
        assert_eq!(arrived.body, body, "{method} {path}");
    }
}

#[tokio::test]
async fn a_700_kb_document_comes_whole() {
    let document: Bytes = (0..700_000u32).map(|index| (index * 7 % 251) as u8).collect::<Vec<u8>>().into();
    let sent = document.clone();
    let upstream =
        Scripted::start(move |_| {
            let body = sent.clone();
            async move {
                Response::builder().header("content-type", "application/pdf").body(Full::new(body)).unwrap()
            }
        })
        .await;
    let proxy = Proxy::start(&upstream.url, &[]).await;
    let answer = proxy.get("/documents/d1/download").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.field("content-length"), "700000");
    assert!(answer.body == document);
}

#[tokio::test]
async fn the_head_and_the_first_bytes_arrive_before_the_upstream_has_sent_all() {
    for path in ["/somewhere", "/documents/d1/download"] {
        let go = Arc::new(Notify::new());
        let wait = go.clone();
        let upstream = Chaos::start(move |mut stream, _| {
            let wait = wait.clone();
            async move {
                chaos::head(&mut stream).await;
                // Longer than what is kept, so that it is not read whole first.
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/pdf\r\ncontent-length: 3000000\r\n\r\nfirst";
                stream.write_all(head.as_bytes()).await.unwrap();
                wait.notified().await;
                stream.write_all(&vec![b'x'; 3_000_000 - 5]).await.unwrap();
                chaos::head(&mut stream).await;
            }
        })
        .await;
        let proxy = Proxy::start(&upstream.url, &[]).await;
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: seawall\r\nauthorization: {TOKEN}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = chaos::head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert_eq!(chaos::field(&head, "content-length"), Some("3000000"));
        let mut first = [0; 5];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"first");
        go.notify_one();
        let rest = chaos::closed(&mut stream).await;
        assert_eq!(rest.len(), 3_000_000 - 5);
    }
}

#[tokio::test]
async fn no_link_of_a_large_page_leads_past_the_proxy() {
    let simulator = Simulator::start(Options { shipments: 120, ..Options::default() }).await.unwrap();
    let proxy = Proxy::start(&simulator.url(), &[]).await;
    let page = proxy.get("/shipments?per=100").await;
    assert!(page.body.len() > 285_000, "{}", page.body.len());
    let page = page.json();
    let mut all = Vec::new();
    strings(&page, &mut all);
    let links: Vec<&str> = all.iter().copied().filter(|text| text.contains("://")).collect();
    assert!(links.len() > 100, "{}", links.len());
    for link in &links {
        assert!(link.starts_with(&format!("{}/", proxy.url)), "{link} leads past the proxy");
    }
    // And they lead somewhere.
    let next = page["data"]["next"].as_str().unwrap();
    let answer = proxy.get(next.strip_prefix(&proxy.url).unwrap()).await;
    assert_eq!(answer.status, 200);
    assert_eq!(ids(&answer.json()).len(), 20);
}

#[tokio::test]
async fn request_id_and_trace_are_taken_when_well_formed_else_made_and_passed_on() {
    let upstream = Scripted::start(|_| async { json(200, "{}") }).await;
    let proxy = Proxy::start(&upstream.url, &[]).await;
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for (method, path) in [
        (Method::GET, "/shipments"),
        (Method::GET, "/elsewhere"),
        (Method::POST, "/bookings"),
        (Method::PATCH, "/shipments/1"),
        (Method::POST, "/elsewhere"),
    ] {
        let taken = [("x-request-id", "from-the-caller-1"), ("traceparent", PARENT)];
        let answer = proxy.send(method.clone(), path, &taken, "").await;
        let there = upstream.arrived().pop().unwrap().head.headers.clone();
        assert_eq!(answer.field("x-request-id"), "from-the-caller-1", "{method} {path}");
        assert_eq!(there["x-request-id"], "from-the-caller-1", "{method} {path}");
        let trace = there["traceparent"].to_str().unwrap();
        assert!(trace.starts_with("00-0af7651916cd43dd8448eb211c80319c-"), "{trace}");
        assert_eq!(there.get_all("traceparent").iter().count(), 1);

        let malformed = [("x-request-id", "two words"), ("traceparent", "00-nonsense")];
        let answer = proxy.send(method.clone(), path, &malformed, r#"{"another":1}"#).await;
        let there = upstream.arrived().pop().unwrap().head.headers.clone();
        let id = answer.field("x-request-id");
        assert_eq!(id.len(), 32, "{id}");
        assert_eq!(there["x-request-id"], id, "{method} {path}");
        assert_eq!(there["traceparent"].len(), PARENT.len(), "{method} {path}");
    }
}

#[tokio::test]
async fn http2_with_prior_knowledge_works() {
    let simulator = simulator().await;
    let proxy = Proxy::start(&simulator.url(), &[]).await;
    let stream = TcpStream::connect(proxy.addr()).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let straight = direct(&simulator, &proxy, Method::GET, "/shipments?per=5").await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let mut sender = sender.clone();
        let request = Request::builder()
            .uri(format!("{}/shipments?per=5", proxy.url))
            .header("authorization", TOKEN)
            .body(Full::<Bytes>::default())
            .unwrap();
        calls.spawn(async move { sender.send_request(request).await });
    }
    for result in calls.join_all().await {
        let response = result.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.version(), http::Version::HTTP_2);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), straight.body);
    }
    let mut sender = sender;
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("{}/bookings", proxy.url))
        .header("authorization", TOKEN)
        .body(Full::new(Bytes::from(r#"{"name":"over h2"}"#)))
        .unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
    assert_eq!(writes(&simulator), [r#"POST /bookings {"name":"over h2"}"#]);
}

#[tokio::test]
async fn a_head_that_is_too_large_gets_431() {
    let (upstream, _) = listening().await;
    let proxy = Proxy::start(&upstream.url, &["server.max_head=8KiB"]).await;
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Long: {}\r\n\r\n", "x".repeat(20_000));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(1_000));
    for head in [long, many] {
        let answer = chaos::exchange(proxy.addr(), head.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn a_body_above_the_cap_gets_413_however_it_is_framed() {
    let upstream = Scripted::start(|_| async { json(200, "{}") }).await;
    let proxy = Proxy::start(&upstream.url, &["server.max_body=1KiB"]).await;
    for path in ["/elsewhere", "/bookings", "/shipments/1"] {
        let method = if path == "/shipments/1" { "PATCH" } else { "POST" };
        let named = format!(
            "{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: {TOKEN}\r\nContent-Length: 2000\r\n\r\n{}",
            "x".repeat(2000)
        );
        let chunk = format!("200\r\n{}\r\n", "x".repeat(0x200));
        let chunked = format!(
            "{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: {TOKEN}\r\nTransfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n",
            chunk.repeat(5)
        );
        for (how, request) in [("named", named), ("chunked", chunked)] {
            let answer = chaos::exchange(proxy.addr(), request.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 413"), "{how} {path}: {answer}");
            assert!(answer.contains("seawall_body_too_large"), "{answer}");
        }
        let fits = proxy.send(method.parse().unwrap(), path, &[], &"x".repeat(1024)).await;
        assert_eq!(fits.status, 200, "{path}");
    }
    let whole = upstream.arrived().iter().filter(|arrived| arrived.body.len() >= 1024).count();
    assert_eq!(whole, 3, "only what fits arrives whole");
}

#[tokio::test]
async fn a_body_that_stands_still_is_given_up() {
    let upstream = Scripted::start(|_| async { json(200, "{}") }).await;
    let proxy = Proxy::start(&upstream.url, &["server.body_idle_timeout=200ms"]).await;
    for path in ["/bookings", "/elsewhere"] {
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: {TOKEN}\r\nContent-Length: 100\r\n\r\nsome"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let answer = chaos::closed(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{path}: {answer}");
        assert!(answer.contains("stood still"), "{path}: {answer}");
    }
    // The breaker does not blame the upstream for it.
    for scope in ["bookings:write", "other:write", "global"] {
        assert_eq!(proxy.breaker(scope).await["window"]["failures"], 0, "{scope}");
    }
}

#[tokio::test]
async fn seawall_timeout_limits_the_whole_call() {
    let upstream = Scripted::start(|_| async { std::future::pending().await }).await;
    let sets = ["upstream.timeout=1h", "breaker.slow=1h", "upstream.body_idle_timeout=1h"];
    let proxy = Proxy::start(&upstream.url, &sets).await;
    for path in ["/shipments", "/elsewhere"] {
        for wish in ["300ms", "1"] {
            let answer = proxy.send(Method::GET, path, &[("seawall-timeout", wish)], "").await;
            assert_eq!(answer.status, 504, "{path}");
            assert_eq!(answer.json()["error"]["code"], "seawall_upstream_timeout", "{path}");
        }
    }
    for wish in ["soon", "-1", "0", ""] {
        let answer = proxy.send(Method::GET, "/shipments", &[("seawall-timeout", wish)], "").await;
        assert_eq!(answer.status, 400, "{wish}");
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains("Seawall-Timeout"));
    }
    for arrived in upstream.arrived() {
        assert!(!arrived.head.headers.contains_key("seawall-timeout"));
    }
}

#[tokio::test]
async fn a_redirects_location_is_rewritten() {
    let simulator = simulator().await;
    let proxy = Proxy::start(&simulator.url(), &[]).await;
    let answer = proxy.get("/nowhere/at/all").await;
    assert_eq!(answer.status, 302);
    assert_eq!(answer.field("location"), format!("{}/", proxy.url));
    assert_eq!(arrivals(&simulator, "GET", "/nowhere/at/all"), 1);
}

#[tokio::test]
async fn compressed_answers_are_never_asked_for_where_links_are_rewritten() {
    let upstream = Scripted::start(|_| async { json(200, "{}") }).await;
    let proxy = Proxy::start(&upstream.url, &[]).await;
    for (method, path) in [
        (Method::GET, "/shipments"),
        (Method::GET, "/elsewhere"),
        (Method::POST, "/bookings"),
        (Method::PATCH, "/shipments/1"),
        (Method::POST, "/elsewhere"),
    ] {
        let fields = [("accept-encoding", "gzip, br, zstd"), ("range", "bytes=0-10"), ("if-range", "\"x\"")];
        let answer = proxy.send(method.clone(), path, &fields, r#"{"x":1}"#).await;
        assert_eq!(answer.status, 200);
        let arrived = upstream.arrived().pop().unwrap();
        let codings: Vec<_> = arrived.head.headers.get_all("accept-encoding").iter().collect();
        assert!(codings.iter().all(|coding| *coding == "identity"), "{method} {path}: {codings:?}");
        assert!(!arrived.head.headers.contains_key("range"), "{method} {path}");
    }
}

#[tokio::test]
async fn a_base_path_of_the_upstream_is_put_before_and_taken_off_again() {
    let base: Arc<std::sync::OnceLock<String>> = Arc::default();
    let own = base.clone();
    let upstream = Scripted::start(move |arrived| {
        let own = own.clone();
        async move {
            let own = own.get().unwrap();
            let body = json!({"self": format!("{own}{}", arrived.head.uri), "next": format!("{own}/flexport"), "link": format!("{own}/other"), "file_link": "https://api.flexport.com/documents/1"});
            json(200, &body.to_string())
        }
    })
    .await;
    base.set(upstream.url.clone()).unwrap();
    let proxy = Proxy::start(&format!("{}/flexport/", upstream.url), &[]).await;
    for path in ["/shipments?page=2", "/elsewhere/x?y=1"] {
        let answer = proxy.get(path).await.json();
        assert_eq!(upstream.arrived().pop().unwrap().head.uri.to_string(), format!("/flexport{path}"));
        assert_eq!(answer["self"], format!("{}{path}", proxy.url));
        assert_eq!(answer["next"], proxy.url);
        assert_eq!(answer["link"], format!("{}/other", upstream.url), "that is outside of the base");
        assert_eq!(answer["file_link"], format!("{}/documents/1", proxy.url));
    }
}
