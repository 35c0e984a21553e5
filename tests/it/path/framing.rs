//! What belongs to a connection, framing, targets, and answers without content.

use super::*;

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
