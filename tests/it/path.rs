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
async fn a_reader_that_stops_makes_the_upstream_stop() {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {FLOOD}\r\n\r\n");
    let (upstream, taken) = chaos::flood(head, 0).await;
    let proxy = Proxy::start(&upstream.url, &[]).await;
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    let request = format!("GET /endless HTTP/1.1\r\nhost: seawall\r\nauthorization: {TOKEN}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    assert!(chaos::head(&mut stream).await.starts_with("HTTP/1.1 200"));
    let taken = tokio::time::timeout(PATIENCE, taken).await.expect("it stops").unwrap();
    assert!(taken < BOUND, "{taken} bytes were taken for a reader that reads none");
}

#[tokio::test]
async fn a_reader_that_stops_is_cut_off_and_the_upstream_is_not_blamed() {
    let is_over = Arc::new(AtomicBool::new(false));
    let tell = is_over.clone();
    let upstream = Chaos::start(move |mut stream, _| {
        let tell = tell.clone();
        async move {
            chaos::head(&mut stream).await;
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {FLOOD}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            while stream.write_all(&[b'x'; 8192]).await.is_ok() {}
            tell.store(true, Ordering::SeqCst);
        }
    })
    .await;
    let proxy = Proxy::start(&upstream.url, &["server.write_idle_timeout=300ms"]).await;
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    stream.write_all(b"GET /endless HTTP/1.1\r\nhost: seawall\r\n\r\n").await.unwrap();
    assert!(chaos::head(&mut stream).await.starts_with("HTTP/1.1 200"));
    assert_eventually!(is_over.load(Ordering::SeqCst));
    assert_eventually!(proxy.breaker("other:read").await["in_flight"] == 0);
    assert_eq!(proxy.breaker("other:read").await["window"]["failures"], 0);
}

#[tokio::test]
async fn connections_above_the_limit_are_not_served() {
    let (upstream, _) = listening().await;
    let proxy = Proxy::start(&upstream.url, &["server.max_connections=2"]).await;
    let request = b"GET /elsewhere HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut kept = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        stream.write_all(request).await.unwrap();
        assert!(chaos::head(&mut stream).await.starts_with("HTTP/1.1 200"));
        kept.push(stream);
    }
    assert_eq!(chaos::exchange(proxy.addr(), request).await, "");
    drop(kept);
    assert_eventually!(chaos::exchange(proxy.addr(), request).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_stop_does_not_wait_for_idle_clients_that_never_close() {
    let (upstream, _) = listening().await;
    let mut proxy = Proxy::start(&upstream.url, &["server.drain.grace=1h"]).await;
    let mut idle = TcpStream::connect(proxy.addr()).await.unwrap();
    idle.write_all(b"GET /elsewhere HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(chaos::head(&mut idle).await.starts_with("HTTP/1.1 200"));
    let silent = TcpStream::connect(proxy.addr()).await.unwrap();
    let stopped = tokio::time::timeout(PATIENCE, proxy.stop()).await;
    assert!(stopped.expect("nobody waits for the grace to end"));
    drop((idle, silent));
}

#[tokio::test]
async fn an_upstream_that_takes_nothing_makes_the_caller_stop() {
    let upstream = Chaos::start(|mut stream, _| async move {
        chaos::head(&mut stream).await;
        std::future::pending::<()>().await;
    })
    .await;
    let proxy = Proxy::start(&upstream.url, &["server.max_body=1GiB"]).await;
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    let request = format!(
        "POST /upload HTTP/1.1\r\nhost: seawall\r\nauthorization: {TOKEN}\r\ncontent-length: {FLOOD}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let taken = chaos::pour(&mut stream, &[b'x'; 8192], FLOOD).await;
    assert!(taken < BOUND, "{taken} bytes were taken for an upstream that reads none");
    upstream.reached(1).await;
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
async fn what_belongs_to_a_connection_goes_no_further_in_both_directions() {
    let answer = "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Nominated\r\nX-Nominated: 1\r\n\
        Keep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nProxy-Connection: x\r\nUpgrade: h2c\r\n\
        Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\nSeawall-Source: cache\r\nSeawall-Write-Id: forged\r\n\
        Seawall-Anything: forged\r\nIdempotent-Replayed: true\r\nX-End-To-End: kept\r\n\r\n\
        2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n";
    let (upstream, heads) = listening_with(answer.as_bytes()).await;
    let proxy = Proxy::start(&upstream.url, &[]).await;
    for (index, line) in
        ["GET /elsewhere", "GET /shipments", "POST /elsewhere", "POST /bookings"].iter().enumerate()
    {
        let request = format!(
            "{line} HTTP/1.1\r\nHost: seawall\r\nAuthorization: {TOKEN}\r\nConnection: close, x-secret\r\n\
             X-Secret: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authorization: Basic x\r\nProxy-Connection: keep-alive\r\n\
             TE: trailers\r\nUpgrade: websocket\r\nTrailer: X-Sum\r\nSeawall-Timeout: 30\r\nSeawall-Unknown: 1\r\n\
             X-End-To-End: kept\r\n\r\n"
        );
        let answer = chaos::exchange(proxy.addr(), request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{line}: {answer}");
        for gone in [
            "x-nominated",
            "keep-alive",
            "proxy-authenticate",
            "proxy-connection",
            "upgrade",
            "seawall-anything",
            "idempotent-replayed",
        ] {
            assert_eq!(chaos::field(&answer, gone), None, "{line}: {answer}");
        }
        assert_eq!(chaos::field(&answer, "seawall-source"), Some("upstream"), "{line}: {answer}");
        assert!(!answer.contains("forged"), "{line}: {answer}");
        assert_eq!(chaos::field(&answer, "x-end-to-end"), Some("kept"), "{line}: {answer}");

        let head = heads.lock().unwrap()[index].clone();
        for gone in [
            "x-secret",
            "keep-alive",
            "proxy-authorization",
            "proxy-connection",
            "te",
            "upgrade",
            "trailer",
            "seawall-timeout",
            "seawall-unknown",
            "connection",
            "transfer-encoding",
        ] {
            assert_eq!(chaos::field(&head, gone), None, "{head}");
        }
        // On cacheable routes only what is in the key goes on.
        let kept = if *line == "GET /shipments" { None } else { Some("kept") };
        assert_eq!(chaos::field(&head, "x-end-to-end"), kept, "{head}");
        assert_eq!(chaos::field(&head, "authorization"), Some(TOKEN), "{head}");
        assert_eq!(chaos::field(&head, "host"), Some(upstream.url.trim_start_matches("http://")), "{head}");
    }
}

#[tokio::test]
async fn framing_is_ours_and_never_copied() {
    let body = r#"{"data":{"self":"https://api.flexport.com/bookings/1"}}"#;
    let upstream = Scripted::start(move |_| async move { json(200, body) }).await;
    let proxy = Proxy::start(&upstream.url, &[]).await;
    for path in ["/bookings", "/elsewhere"] {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: seawall\r\nAuthorization: {TOKEN}\r\nConnection: close\r\n\
             Transfer-Encoding: chunked\r\n\r\n3;extension=1\r\none\r\n5\r\n-five\r\n0\r\nX-Trailer: 1\r\n\r\n"
        );
        let answer = chaos::exchange(proxy.addr(), request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let rewritten = body.replace(LINK_BASE, &proxy.url);
        assert!(answer.contains(&rewritten), "{answer}");
        if let Some(length) = chaos::field(&answer, "content-length") {
            assert_eq!(length, rewritten.len().to_string());
        }
        let arrived = upstream.arrived().pop().unwrap();
        assert_eq!(arrived.body, "one-five");
        let framing = ["content-length", "transfer-encoding"]
            .map(|name| arrived.head.headers.get_all(name).iter().count());
        assert_eq!(framing.iter().sum::<usize>(), 1, "{:?}", arrived.head.headers);
    }
}

#[tokio::test]
async fn expect_100_continue_is_answered_by_us_and_not_forwarded() {
    let upstream = Scripted::start(|_| async { json(200, "{}") }).await;
    let proxy = Proxy::start(&upstream.url, &["server.max_body=1KiB"]).await;
    for path in ["/bookings", "/elsewhere"] {
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: seawall\r\nAuthorization: {TOKEN}\r\nExpect: 100-continue\r\n\
             Connection: close\r\nContent-Length: 4\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let interim = chaos::head(&mut stream).await;
        assert!(interim.starts_with("HTTP/1.1 100"), "{interim}");
        stream.write_all(b"body").await.unwrap();
        let answer = chaos::closed(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let arrived = upstream.arrived().pop().unwrap();
        assert_eq!(arrived.body, "body");
        assert!(!arrived.head.headers.contains_key("expect"));
    }
    // What is refused by its length is refused before it is sent.
    let head = format!(
        "POST /bookings HTTP/1.1\r\nHost: seawall\r\nAuthorization: {TOKEN}\r\nExpect: 100-continue\r\n\
         Content-Length: 4096\r\n\r\n"
    );
    let answer = chaos::exchange(proxy.addr(), head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let head = "GET /bookings HTTP/1.1\r\nHost: seawall\r\nExpect: the-unexpected\r\n\r\n";
    let answer = chaos::exchange(proxy.addr(), head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
}

#[tokio::test]
async fn what_two_parties_could_read_differently_is_refused_with_400_and_goes_nowhere() {
    let (upstream, heads) = listening().await;
    let proxy = Proxy::start(&upstream.url, &[]).await;
    for (what, head) in [
        ("two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        ("no host", "GET / HTTP/1.1\r\n\r\n"),
        ("a host that is two", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n"),
        ("a host with user info", "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n"),
        (
            "framing by an unknown coding",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
        ),
        (
            "chunked twice",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "chunked and more",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        ),
        ("a coding in HTTP/1.0", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("a length with a sign", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +2\r\n\r\nok"),
        ("a length that is none", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: two\r\n\r\nok"),
        ("two lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok"),
        ("a list of lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2, 3\r\n\r\nok"),
        ("a folded field", "GET / HTTP/1.1\r\nHost: a\r\nX-Folded: 1\r\n 2\r\n\r\n"),
        ("a space before the colon", "GET / HTTP/1.1\r\nHost: a\r\nContent-Length : 0\r\n\r\n"),
        ("a field without a colon", "GET / HTTP/1.1\r\nHost: a\r\nNothing\r\n\r\n"),
        ("a bare CR", "GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\rX-B: 2\r\n\r\n"),
        ("a target that is no path", "GET nowhere HTTP/1.1\r\nHost: a\r\n\r\n"),
    ] {
        let answer = chaos::exchange(proxy.addr(), head.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400") || answer.starts_with("HTTP/1.0 400"), "{what}: {answer}");
        assert_eq!(answer.matches(" 400 Bad Request\r\n").count(), 1, "{what}: {answer}");
        assert!(heads.lock().unwrap().is_empty(), "{what} reached the upstream: {heads:?}");
    }
    assert_eq!(upstream.connections(), 0);
}

/// RFC 9112 §6.3: refused, or read by `Transfer-Encoding` alone and the connection closed. hyper does the latter and
/// takes the `Content-Length` out before we could see it.
#[tokio::test]
async fn both_framings_at_once_are_read_as_one_and_nothing_after_them_is_a_request() {
    let (upstream, heads) = listening().await;
    let proxy = Proxy::start(&upstream.url, &[]).await;
    for framing in
        ["Content-Length: 5\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 5"]
    {
        heads.lock().unwrap().clear();
        let request = format!(
            "POST /elsewhere HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
        );
        let answer = chaos::exchange(proxy.addr(), request.as_bytes()).await;
        assert_eq!(answer.matches("content-type: ").count(), 1, "{answer}");
        let heads = heads.lock().unwrap();
        assert!(heads.iter().all(|head| !head.contains("smuggled")), "{heads:?}");
        for head in heads.iter() {
            let lower = head.to_lowercase();
            assert!(!(lower.contains("content-length:") && lower.contains("transfer-encoding:")), "{head}");
        }
    }
}

#[tokio::test]
async fn connect_and_trace_are_refused() {
    let (upstream, _) = listening().await;
    let proxy = Proxy::start(&upstream.url, &[]).await;
    for head in [
        "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
        "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
        "TRACE /shipments HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n",
    ] {
        let answer = chaos::exchange(proxy.addr(), head.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{head}: {answer}");
    }
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn a_101_that_nobody_asked_for_is_a_502() {
    let upstream = Chaos::start(|mut stream, _| async move {
        chaos::head(&mut stream).await;
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        chaos::head(&mut stream).await;
    })
    .await;
    let proxy = Proxy::start(&upstream.url, &[]).await;
    for path in ["/shipments", "/elsewhere"] {
        let answer =
            proxy.send(Method::GET, path, &[("connection", "upgrade"), ("upgrade", "websocket")], "").await;
        assert_eq!(answer.status, 502, "{path}");
        assert_eq!(answer.json()["error"]["code"], "seawall_upstream_unreachable");
    }
}

#[tokio::test]
async fn head_keeps_the_content_length() {
    let upstream = Chaos::start(|mut stream, _| async move {
        while !chaos::head(&mut stream).await.is_empty() {
            let answer =
                b"HTTP/1.1 200 OK\r\nContent-Type: application/pdf\r\nContent-Length: 700000\r\n\r\n";
            stream.write_all(answer).await.unwrap();
        }
    })
    .await;
    let proxy = Proxy::start(&upstream.url, &[]).await;
    for path in ["/documents/d1/download", "/elsewhere"] {
        let request =
            format!("HEAD {path} HTTP/1.1\r\nHost: a\r\nAuthorization: {TOKEN}\r\nConnection: close\r\n\r\n");
        let answer = chaos::exchange(proxy.addr(), request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(chaos::field(&answer, "content-length"), Some("700000"), "{path}: {answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    }
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
async fn a_connection_that_says_nothing_or_never_ends_its_head_is_closed() {
    let (upstream, _) = listening().await;
    // One limit at a time, so that none meets who is only slow.
    let proxy = Proxy::start(&upstream.url, &["server.first_byte_timeout=200ms"]).await;
    let mut silent = TcpStream::connect(proxy.addr()).await.unwrap();
    assert_eq!(chaos::closed(&mut silent).await, "");

    // One byte now and then does not help.
    let proxy = Proxy::start(&upstream.url, &["server.head_timeout=300ms"]).await;
    let began = tokio::time::Instant::now();
    let mut slow = TcpStream::connect(proxy.addr()).await.unwrap();
    let head = b"GET /shipments HTTP/1.1\r\nHost: a\r\nX-Endless: ";
    slow.write_all(head).await.unwrap();
    loop {
        let mut byte = [0; 1];
        let read = tokio::time::timeout(Duration::from_millis(50), slow.read(&mut byte)).await;
        match read {
            Ok(Ok(0) | Err(_)) => break,
            Ok(Ok(_)) => continue,
            Err(_) => {
                let _ = slow.write_all(b"x").await;
            }
        }
        assert!(began.elapsed() < PATIENCE, "an endless head is not cut");
    }

    // An idle connection is closed in good order, after its answer.
    let proxy = Proxy::start(&upstream.url, &["server.idle_timeout=400ms"]).await;
    let mut idle = TcpStream::connect(proxy.addr()).await.unwrap();
    idle.write_all(b"GET /elsewhere HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let answer = chaos::closed(&mut idle).await;
    assert!(answer.ends_with("ok"), "{answer}");
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
async fn connections_are_kept_on_both_sides() {
    let (upstream, heads) = listening().await;
    let proxy = Proxy::start(&upstream.url, &[]).await;
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    for index in 0..5 {
        let request = format!("GET /elsewhere/{index} HTTP/1.1\r\nHost: a\r\nAuthorization: {TOKEN}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = chaos::head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let mut body = [0; 2];
        stream.read_exact(&mut body).await.unwrap();
    }
    assert_eq!(heads.lock().unwrap().len(), 5);
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn an_idle_connection_that_the_upstream_closed_costs_nothing() {
    let closed = Arc::new(AtomicUsize::new(0));
    let count = closed.clone();
    let upstream = Chaos::start(move |mut stream, _| {
        let count = count.clone();
        async move {
            let head = chaos::head(&mut stream).await;
            let length = chaos::field(&head, "content-length").map_or(0, |length| length.parse().unwrap());
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.unwrap();
            stream.write_all(OK).await.unwrap();
            drop(stream);
            count.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let proxy = Proxy::start(&upstream.url, &[]).await;
    for index in 1..=20 {
        let body = format!("{{\"n\":{index}}}");
        let (method, path) =
            if index % 2 == 0 { (Method::PATCH, "/shipments/1") } else { (Method::POST, "/bookings") };
        let answer = proxy.send(method, path, &[], &body).await;
        assert_eq!(answer.status, 200, "write {index}: {answer:?}");
        assert_eq!(answer.source(), "upstream");
        assert_eventually!(closed.load(Ordering::SeqCst) == index);
        // A turn of the reactor, so that the end has reached the pool as it would have after an idle minute.
        assert_eq!(proxy.admin(Method::GET, "/livez", None).await.status, 200);
    }
    assert_eq!(upstream.connections(), 20);
}

#[tokio::test]
async fn a_stop_finishes_what_is_under_way_and_takes_nothing_new() {
    let go = Arc::new(Notify::new());
    let wait = go.clone();
    let upstream = Scripted::start(move |arrived| {
        let wait = wait.clone();
        async move {
            if arrived.head.uri.path() == "/slow" {
                wait.notified().await;
            }
            json(200, r#"{"slow":true}"#)
        }
    })
    .await;
    let mut proxy = Proxy::start(&upstream.url, &["server.drain.grace=1h"]).await;
    let url = format!("{}/slow", proxy.url);
    // An idle connection must not hold up the end.
    assert_eq!(proxy.get("/elsewhere").await.status, 200);
    let slow = tokio::spawn(async move { send(&client(), Method::GET, &url, &[], "", true).await });
    assert_eventually!(upstream.arrived().len() == 2);
    let addr = proxy.addr().to_owned();
    let stopping = proxy.stopping();
    assert_eventually!(TcpStream::connect(&addr).await.is_err());
    let ready = proxy.admin(Method::GET, "/readyz", None).await;
    assert_eq!(ready.status, 503);
    assert!(std::str::from_utf8(&ready.body).unwrap().contains("shutting down"));
    assert!(!stopping.is_finished());
    go.notify_one();
    let answer = slow.await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["slow"], true);
    assert!(stopping.await.unwrap(), "everything came to its end");
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
async fn an_answer_that_is_cut_short_is_never_passed_off_as_whole() {
    let upstream = Chaos::start(|mut stream, _| async move {
        // By its length, or by its last chunk.
        let answer: &[u8] = match chaos::head(&mut stream).await.split(' ').nth(1) {
            Some(target) if target.ends_with("?length") => {
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"data\":"
            }
            Some(target) if target.ends_with("?chunks") => {
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n{\"data\":\r\n"
            }
            _ => return,
        };
        stream.write_all(answer).await.unwrap();
    })
    .await;
    let proxy = Proxy::start(&upstream.url, &[]).await;
    for framing in ["length", "chunks"] {
        let request =
            format!("GET /elsewhere?{framing} HTTP/1.1\r\nHost: a\r\nAuthorization: {TOKEN}\r\n\r\n");
        let answer = chaos::exchange(proxy.addr(), request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{framing}: {answer}");
        assert!(!chaos::is_whole(answer.as_bytes()), "{framing}: {answer}");
        // What has no head yet when it breaks is an error with a name.
        let answer = proxy.get(&format!("/shipments?{framing}")).await;
        assert_eq!(answer.status, 502, "{framing}: {answer:?}");
        assert_eq!(answer.json()["error"]["code"], "seawall_upstream_unreachable", "{framing}");
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

#[tokio::test]
async fn no_target_leads_to_another_server_and_none_is_changed_on_the_way() {
    let (upstream, heads) = listening().await;
    let proxy = Proxy::start(&upstream.url, &[]).await;
    let long = format!("/x?{}", "y".repeat(20_000));
    for (target, expected) in [
        ("http://evil.example/shipments?x=1", "/shipments?x=1"),
        ("https://user@evil.example:1/elsewhere", "/elsewhere"),
        ("//evil.example/x", "//evil.example/x"),
        ("/shipments/../bookings", "/shipments/../bookings"),
        ("/shipments/%2e%2e/bookings", "/shipments/%2e%2e/bookings"),
        ("/shipments/1%2f2", "/shipments/1%2f2"),
        ("/Shipments//?", "/Shipments//?"),
        ("/shipments;v=1?a=b&&=?", "/shipments;v=1?a=b&&=?"),
        (&long, &long),
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
        let answer = chaos::exchange(proxy.addr(), request.as_bytes()).await;

        assert!(answer.starts_with("HTTP/1.1 200"), "{target}: {answer}");
        let head = heads.lock().unwrap().pop().unwrap();
        assert!(head.starts_with(&format!("GET {expected} HTTP/1.1\r\n")), "{target}: {head}");
        assert_eq!(chaos::field(&head, "host"), Some(upstream.url.trim_start_matches("http://")), "{head}");
    }
}

#[tokio::test]
async fn options_of_the_whole_server_is_forwarded_as_it_is() {
    let (upstream, heads) = listening().await;
    let proxy = Proxy::start(&upstream.url, &[]).await;
    let request = "OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let answer = chaos::exchange(proxy.addr(), request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let heads = heads.lock().unwrap();
    assert!(heads.len() == 1 && heads[0].starts_with("OPTIONS * HTTP/1.1\r\n"), "{heads:?}");
}

#[tokio::test]
async fn an_http_1_0_client_gets_no_chunks() {
    let simulator = simulator().await;
    let proxy = Proxy::start(&simulator.url(), &[]).await;
    let straight = direct(&simulator, &proxy, Method::GET, "/ports").await;
    for path in ["/ports", "/nowhere"] {
        let request = format!("GET {path} HTTP/1.0\r\nHost: a\r\nAuthorization: {TOKEN}\r\n\r\n");
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = chaos::closed(&mut stream).await;
        assert_eq!(chaos::field(&answer, "transfer-encoding"), None, "{answer}");
        if path == "/ports" {
            assert!(answer.ends_with(std::str::from_utf8(&straight.body).unwrap()), "{answer}");
        }
    }
}

#[tokio::test]
async fn answers_without_content_stay_without_content() {
    let upstream = Chaos::start(|mut stream, _| async move {
        loop {
            let head = chaos::head(&mut stream).await;
            let answer: &[u8] = match head.split(' ').nth(1) {
                None => return,
                Some("/empty") => b"HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n",
                Some("/same") => b"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 100\r\n\r\n",
                Some("/nothing") => b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 0\r\n\r\n",
                // Interim answers go before; the last one counts.
                Some(_) => b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            };
            stream.write_all(answer).await.unwrap();
        }
    })
    .await;
    let proxy = Proxy::start(&upstream.url, &[]).await;
    for (path, status, body) in
        [("/empty", 204, ""), ("/same", 304, ""), ("/nothing", 200, ""), ("/hints", 200, "ok")]
    {
        let answer = proxy.send(Method::GET, path, &[("if-none-match", "\"x\"")], "").await;
        assert_eq!((answer.status.as_u16(), &answer.body[..]), (status, body.as_bytes()), "{path}");
    }
    assert_eq!(upstream.connections(), 1, "framing was never in doubt");
}
