//! The client against servers that are spoken by hand.

use super::attempt::send_twice;
use super::client::{Client, failed};
use crate::config::{Settings, Snapshot, raw};
use crate::error::ProxyError;
use crate::http::Body;
use crate::http::delivery::{Delivery, Doubt, Unsent, of_error};
use crate::telemetry::{Metrics, ResultLabels};
use crate::tests::{PATIENCE, until_async};
use bytes::Bytes;
use chaos::Chaos;
use http::{Method, Request};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};

#[allow(dead_code, unreachable_pub, reason = "each suite uses its part of what they share")]
#[path = "../../tests/it/support/chaos.rs"]
mod chaos;

const CONNECT: Delivery = Delivery::NotSent(Unsent::Connect);
const UNSENT: Delivery = Delivery::NotSent(Unsent::Connection);
const CUT: Delivery = Delivery::Ambiguous(Doubt::Cut);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

fn client(base: &str, change: impl FnOnce(&mut raw::Upstream)) -> (Client, Arc<Metrics>) {
    let mut settings = Settings::default();
    settings.upstream.base_url = base.to_owned();
    change(&mut settings.upstream);
    let snapshot = Arc::new(Snapshot::of(settings).unwrap());
    let metrics = Metrics::new();
    (Client::new(Arc::new(move || snapshot.clone()), &metrics).unwrap(), metrics)
}

fn h2(upstream: &mut raw::Upstream) {
    upstream.protocol = raw::Protocol::H2;
}

fn millis(millis: u64) -> raw::Span {
    raw::Span(Duration::from_millis(millis))
}

fn request(base: &str) -> Request<Body> {
    let mut request = Request::new(Body::from(Bytes::from_static(b"{}")));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = format!("{base}/bookings").parse().unwrap();
    request.headers_mut().insert("host", base.trim_start_matches("http://").parse().unwrap());
    request
}

/// The answer's body.
async fn ask(client: &Client, base: &str) -> Result<Bytes, ProxyError> {
    let response = tokio::time::timeout(PATIENCE, client.send(request(base))).await.expect("it ends")?;
    let body = Body::from(response.into_body()).collect(1 << 20);
    Ok(tokio::time::timeout(PATIENCE, body).await.expect("the body ends").unwrap())
}

/// Waits for a text on a channel.
async fn told<T>(receiver: &mut mpsc::UnboundedReceiver<T>) -> T {
    tokio::time::timeout(PATIENCE, receiver.recv()).await.expect("it comes").expect("somebody tells")
}

/// One HTTP/1.1 request: its head and two bytes. Whether there was one.
async fn h1_request(stream: &mut TcpStream) -> bool {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n{}") {
        match stream.read_u8().await {
            Ok(byte) => read.push(byte),
            Err(_) => return false,
        }
    }
    true
}

/// One frame: its type and stream.
async fn frame(stream: &mut TcpStream) -> Option<(u8, u32)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let mut body = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    stream.read_exact(&mut body).await.ok()?;
    Some((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]])))
}

/// The beginning of an HTTP/2 connection, and one request's fields.
async fn h2_request(stream: &mut TcpStream) -> bool {
    let mut preface = [0; PREFACE.len()];
    if stream.read_exact(&mut preface).await.is_err() || preface != PREFACE {
        return false;
    }
    stream.write_all(SETTINGS).await.unwrap();
    loop {
        match frame(stream).await {
            // HEADERS
            Some((1, _)) => return true,
            Some(_) => {}
            None => return false,
        }
    }
}

/// A server that answers the request of each HTTP/2 connection with these frames, and closes it.
async fn framed(frames: Vec<u8>) -> Chaos {
    let frames = Arc::new(frames);
    Chaos::start(move |mut stream, _| {
        let frames = frames.clone();
        async move {
            if h2_request(&mut stream).await {
                let _ = stream.write_all(&frames).await;
            }
        }
    })
    .await
}

/// Keeps the connection and says nothing more.
async fn freeze(stream: TcpStream) {
    std::future::pending::<()>().await;
    drop(stream);
}

fn goaway(last: u8) -> Vec<u8> {
    [&[0, 0, 8, 7, 0, 0, 0, 0, 0], &[0, 0, 0, last][..], &[0, 0, 0, 0]].concat()
}

fn reset(reason: u8) -> Vec<u8> {
    vec![0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, reason]
}

/// What the failure of a request is, and what it says.
async fn failure(base: &str, change: impl FnOnce(&mut raw::Upstream)) -> (Delivery, String, Arc<Metrics>) {
    let (client, metrics) = client(base, change);
    let error = ask(&client, base).await.expect_err("it fails");
    (of_error(&error), error.to_string(), metrics)
}

fn connects(metrics: &Metrics, result: &'static str) -> u64 {
    metrics.upstream_connects.get_or_create(&ResultLabels { result }).get()
}

#[tokio::test]
async fn without_a_connection_nothing_was_sent_and_the_reason_is_told_and_counted() {
    // Bound, so that nobody else has the port, and not listening.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let gone = format!("http://{}", socket.local_addr().unwrap().as_socket().unwrap());
    let (delivery, text, metrics) = failure(&gone, |_| {}).await;
    assert_eq!((delivery, connects(&metrics, "tcp")), (CONNECT, 1), "{text}");
    assert!(text.contains("refused"), "{text}");

    let silent = Chaos::start(|stream, _| freeze(stream)).await;
    let (delivery, text, metrics) = failure(&silent.url, |upstream| {
        upstream.proxy.clone_from(&silent.url);
        upstream.connect_timeout = millis(200);
    })
    .await;
    assert_eq!((delivery, connects(&metrics, "timeout")), (CONNECT, 1), "{text}");
    assert!(text.contains("it waited for an answer of the egress proxy to CONNECT"), "{text}");

    let https = silent.url.replace("http:", "https:");
    let (delivery, text, metrics) = failure(&https, |upstream| upstream.connect_timeout = millis(200)).await;
    assert_eq!((delivery, connects(&metrics, "timeout")), (CONNECT, 1), "{text}");
    assert!(text.contains("within 200ms: it waited for the TLS handshake"), "{text}");

    let (delivery, text, metrics) = failure(&silent.url, |upstream| {
        h2(upstream);
        upstream.connect_timeout = millis(200);
    })
    .await;
    assert_eq!((delivery, connects(&metrics, "timeout")), (CONNECT, 1), "{text}");
    assert!(text.contains("it waited for the server's first frame"), "{text}");

    let plain = Chaos::start(|mut stream, _| async move {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        freeze(stream).await;
    })
    .await;
    let https = plain.url.replace("http:", "https:");
    let (delivery, text, metrics) = failure(&https, |_| {}).await;
    assert_eq!((delivery, connects(&metrics, "tls")), (CONNECT, 1), "{text}");
    let (delivery, text, metrics) = failure(&plain.url, h2).await;
    assert_eq!((delivery, connects(&metrics, "protocol")), (CONNECT, 1), "{text}");
    assert!(text.contains("does not speak HTTP/2"), "{text}");

    let closing = Chaos::start(|stream, _| async move { drop(stream) }).await;
    let (delivery, text, metrics) = failure(&closing.url, h2).await;
    assert_eq!((delivery, connects(&metrics, "protocol")), (CONNECT, 1), "{text}");
    assert_eq!(metrics.upstream_connections.get(), 0);
}

#[tokio::test]
async fn an_answer_that_breaks_off_leaves_doubt() {
    for (answer, what) in [
        (&b""[..], "nothing"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "half a head"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "no HTTP"),
        (b"\x00\x00\x00\x04\x00\x00\x00\x00\x00", "a frame"),
    ] {
        let server = Chaos::start(move |mut stream, _| async move {
            if h1_request(&mut stream).await {
                let _ = stream.write_all(answer).await;
            }
        })
        .await;
        let (delivery, text, _) = failure(&server.url, |_| {}).await;
        assert_eq!(delivery, CUT, "{what}: {text}");
        assert_eq!(server.connections(), 1, "{what}: nothing is sent twice");
    }
}

#[tokio::test]
async fn over_h2_only_what_the_server_says_it_did_not_process_was_not_sent() {
    for (frames, delivery, what) in [
        (reset(7), UNSENT, "REFUSED_STREAM"),
        (goaway(0), UNSENT, "GOAWAY before our stream"),
        ([goaway(0), reset(7)].concat(), UNSENT, "both"),
        (reset(2), CUT, "INTERNAL_ERROR"),
        (reset(8), CUT, "CANCEL"),
        (goaway(1), CUT, "GOAWAY that names our stream, and the end"),
        (Vec::new(), CUT, "the end"),
        (b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), CUT, "no frame"),
    ] {
        let server = framed(frames).await;
        let (found, text, _) = failure(&server.url, h2).await;
        assert_eq!(found, delivery, "{what}: {text}");
        assert_eq!(server.connections(), 1, "{what}: nothing is sent twice");
    }
}

#[tokio::test]
async fn a_frozen_h2_connection_is_found_by_ping_and_cut_and_the_next_request_makes_another() {
    let server = Chaos::start(|mut stream, number| async move {
        if h2_request(&mut stream).await {
            if number > 0 {
                // :status 200, end of the stream.
                stream.write_all(&[0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88]).await.unwrap();
            }
            freeze(stream).await;
        }
    })
    .await;
    let (client, metrics) = client(&server.url, |upstream| {
        h2(upstream);
        upstream.h2_ping_interval = millis(100);
        upstream.h2_ping_timeout = millis(100);
    });
    let all = (0..3).map(|_| ask(&client, &server.url));
    for result in futures_all(all).await {
        let error = result.expect_err("it is cut");
        assert!(matches!(of_error(&error), CUT | UNSENT), "{error}");
    }
    // This server answers no PING, so that a slow machine may need more than one.
    until_async("a connection is made", async || ask(&client, &server.url).await.is_ok()).await;
    assert!(server.connections() > 1 && connects(&metrics, "ok") > 1);
}

/// All outputs, of futures that run side by side.
async fn futures_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut pinned: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|cx| {
        let mut is_done = true;
        for (future, output) in &mut pinned {
            if output.is_none() {
                match future.as_mut().poll(cx) {
                    std::task::Poll::Ready(ready) => *output = Some(ready),
                    std::task::Poll::Pending => is_done = false,
                }
            }
        }
        if is_done { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    pinned.into_iter().map(|(_, output)| output.expect("all are done")).collect()
}

/// A server that answers each request with its connection's number, and tells of each connection's end.
async fn numbered() -> (Chaos, mpsc::UnboundedReceiver<usize>) {
    let (tell, ends) = mpsc::unbounded_channel();
    let server = Chaos::start(move |mut stream, number| {
        let tell = tell.clone();
        async move {
            while h1_request(&mut stream).await {
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{number}");
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    break;
                }
            }
            let _ = tell.send(number);
        }
    })
    .await;
    (server, ends)
}

#[tokio::test]
async fn a_connection_is_used_again_and_closed_when_it_was_unused_for_too_long() {
    let (server, mut ends) = numbered().await;
    let (client, metrics) = client(&server.url, |upstream| upstream.idle_timeout = millis(400));
    assert_eq!(ask(&client, &server.url).await.unwrap(), "0");
    assert_eq!(metrics.upstream_connections.get(), 1);
    assert_eq!(told(&mut ends).await, 0);
    assert_eq!(ask(&client, &server.url).await.unwrap(), "1");
    assert_eq!(told(&mut ends).await, 1);
}

#[tokio::test]
async fn connections_are_used_again() {
    let (server, _ends) = numbered().await;
    let (client, _) = client(&server.url, |_| {});
    let mut used = 0;
    for _ in 0..200 {
        // One that comes before it is seen that the body has ended makes another.
        used += u32::from(ask(&client, &server.url).await.unwrap() == "0");
    }
    assert!(used > 1, "it is never used again");
    assert!(server.connections() < 200);
}

#[tokio::test]
async fn a_connection_past_its_age_is_closed_while_it_lies_there() {
    let (server, mut ends) = numbered().await;
    let (client, _) = client(&server.url, |upstream| upstream.connection_max_age = millis(400));
    assert_eq!(ask(&client, &server.url).await.unwrap(), "0");
    assert_eq!(told(&mut ends).await, 0);
    assert_eq!(ask(&client, &server.url).await.unwrap(), "1");
}

#[tokio::test]
async fn what_is_under_way_outlives_the_age_of_its_connection() {
    let go = Arc::new(Notify::new());
    let (tell, mut ends) = mpsc::unbounded_channel();
    let held = go.clone();
    let server = Chaos::start(move |mut stream, number| {
        let (go, tell) = (held.clone(), tell.clone());
        async move {
            while h1_request(&mut stream).await {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na").await.unwrap();
                if number == 0 {
                    go.notified().await;
                }
                stream.write_all(b"b").await.unwrap();
            }
            let _ = tell.send(number);
        }
    })
    .await;
    let (client, _) = client(&server.url, |upstream| upstream.connection_max_age = millis(200));
    let response = client.send(request(&server.url)).await.unwrap();
    // A younger one has ended by its age: then that of the first has passed, too.
    assert_eq!(ask(&client, &server.url).await.unwrap(), "ab");
    assert_eq!((told(&mut ends).await, server.connections()), (1, 2));
    assert!(ends.try_recv().is_err(), "it is under way");
    go.notify_one();
    let body = Body::from(response.into_body()).collect(10).await.unwrap();
    assert_eq!(body, "ab");
    assert_eq!(told(&mut ends).await, 0, "it takes no further request");
}

#[tokio::test]
async fn over_h2_all_share_a_connection_until_its_age() {
    let (tell, mut ends) = mpsc::unbounded_channel();
    let (tell_held, mut held_ones) = mpsc::unbounded_channel();
    let go = Arc::new(Notify::new());
    let held = go.clone();
    let server = Chaos::start(move |stream, number| {
        let (tell, tell_held, go) = (tell.clone(), tell_held.clone(), held.clone());
        async move {
            let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                let (go, tell_held) = (go.clone(), tell_held.clone());
                async move {
                    assert!(!request.headers().contains_key("host"), "`:authority` says it");
                    if request.uri().query() == Some("wait") {
                        let _ = tell_held.send(number);
                        go.notified().await;
                    }
                    Ok::<_, std::convert::Infallible>(http::Response::new(Body::from(number.to_string())))
                }
            });
            let _ = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
                .max_concurrent_streams(4)
                .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
                .await;
            let _ = tell.send(number);
        }
    })
    .await;
    let (client, metrics) = client(&server.url, |upstream| {
        h2(upstream);
        upstream.connection_max_age = millis(800);
    });
    // More at once than the server allows.
    for result in futures_all((0..16).map(|_| ask(&client, &server.url))).await {
        result.unwrap();
    }
    assert!(server.connections() < 16);
    let mut slow = request(&server.url);
    *slow.uri_mut() = format!("{}/slow?wait", server.url).parse().unwrap();
    let slow = tokio::spawn({
        let client = client.clone();
        async move { client.send(slow).await }
    });
    let first = told(&mut held_ones).await;
    // Until a request finds that the slow one's connection is too old.
    let is_another = async || ask(&client, &server.url).await.unwrap() != first.to_string();
    until_async("the age comes", is_another).await;
    go.notify_one();
    let response = slow.await.unwrap().unwrap();
    assert_eq!(Body::from(response.into_body()).collect(10).await.unwrap(), first.to_string());
    drop(client);
    let mut ended = vec![false; server.connections()];
    while ended.iter().any(|is_ended| !is_ended) {
        ended[told(&mut ends).await] = true;
    }
    assert_eq!(connects(&metrics, "ok"), server.connections() as u64);
}

/// A tunnel that answers the first CONNECT, and the others when it is told.
async fn slow_tunnels(answer: &'static str) -> (Chaos, Arc<Notify>) {
    let go = Arc::new(Notify::new());
    let held = go.clone();
    let server = Chaos::start(move |mut stream, number| {
        let go = held.clone();
        async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let target = String::from_utf8(head).unwrap().split(' ').nth(1).unwrap().to_owned();
            let mut answer = answer;
            if number == 0 {
                answer = "HTTP/1.1 200 OK\r\n\r\n";
            } else {
                go.notified().await;
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            let mut to = TcpStream::connect(target).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut to).await;
        }
    })
    .await;
    (server, go)
}

#[tokio::test]
async fn who_waits_for_a_connection_takes_the_first_that_is_free() {
    let (server, _ends) = numbered().await;
    let (tunnels, _go) = slow_tunnels("").await;
    let (client, _) = client(&server.url, |upstream| {
        upstream.proxy.clone_from(&tunnels.url);
        upstream.connect_timeout = raw::Span(Duration::from_secs(25));
    });
    // The only tunnel that is ever made serves all.
    for result in futures_all((0..8).map(|_| ask(&client, &server.url))).await {
        assert_eq!(result.unwrap(), "0");
    }
}

#[tokio::test]
async fn who_leaves_costs_no_other_one_its_connection() {
    for refused in 0..=2 {
        let finish = Arc::new(Notify::new());
        let held = finish.clone();
        let server = Chaos::start(move |mut stream, _| {
            let finish = held.clone();
            async move {
                while h1_request(&mut stream).await {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na").await.unwrap();
                    finish.notified().await;
                    stream.write_all(b"b").await.unwrap();
                }
            }
        })
        .await;
        let (tunnels, go) = slow_tunnels("HTTP/1.1 503 Busy\r\n\r\n").await;
        let (client, metrics) = client(&server.url, |upstream| {
            upstream.proxy.clone_from(&tunnels.url);
            upstream.connect_timeout = raw::Span(Duration::from_secs(25));
        });
        // Takes the good tunnel and keeps it busy.
        let first = client.send(request(&server.url)).await.unwrap();
        let begin = || {
            let (client, base) = (client.clone(), server.url.clone());
            tokio::spawn(async move { ask(&client, &base).await })
        };
        let leaver = begin();
        tunnels.reached(2).await;
        let stayer = begin();
        tunnels.reached(3).await;
        leaver.abort();
        let _ = leaver.await;
        for number in 1..=refused {
            go.notify_one();
            until_async("it is refused", async || connects(&metrics, "proxy") >= number).await;
        }
        // The failure of one attempt, begun by the one who has left, is nobody's while the other is under way.
        if refused == 2 {
            let error = stayer.await.unwrap().unwrap_err();
            assert_eq!(of_error(&error), CONNECT);
            let expected = format!(
                "the upstream cannot be reached: the egress proxy {} refused a tunnel to {} with 503 Service Unavailable",
                tunnels.url,
                server.url.trim_start_matches("http://")
            );
            assert_eq!(error.to_string(), expected);
        } else {
            finish.notify_one();
            assert_eq!(Body::from(first.into_body()).collect(10).await.unwrap(), "ab");
            finish.notify_one();
            assert_eq!(stayer.await.unwrap().unwrap(), "ab");
        }
        assert_eq!(connects(&metrics, "ok"), 1);
    }
}

#[tokio::test]
async fn a_closed_connection_keeps_no_good_one_out_of_the_pool() {
    let close = Arc::new(Notify::new());
    let (tell, mut asked) = mpsc::unbounded_channel();
    let (go, held) = (Arc::new(Notify::new()), close.clone());
    let answer = go.clone();
    let server = Chaos::start(move |mut stream, number| {
        let (tell, go, close) = (tell.clone(), answer.clone(), held.clone());
        async move {
            while h1_request(&mut stream).await {
                let _ = tell.send(number);
                if number == 0 {
                    go.notified().await;
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na").await.unwrap();
                if number > 0 {
                    close.notified().await;
                    return;
                }
            }
        }
    })
    .await;
    let (client, metrics) = client(&server.url, |upstream| upstream.max_idle = 1);
    let slow = tokio::spawn({
        let (client, base) = (client.clone(), server.url.clone());
        async move { ask(&client, &base).await }
    });
    assert_eq!(told(&mut asked).await, 0);
    ask(&client, &server.url).await.unwrap();
    until_async("one is idle", async || client.idle() == 1).await;
    close.notify_one();
    let is_gone = async || client.idle() == 0 && metrics.upstream_connections.get() == 1;
    until_async("it is closed", is_gone).await;
    go.notify_one();
    slow.await.unwrap().unwrap();
    until_async("the slow one is idle", async || client.idle() == 1).await;
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn the_second_try_takes_none_of_the_connections_that_died_with_the_first_ones() {
    const CONNECTIONS: usize = 200;
    let (tell, mut streams) = mpsc::unbounded_channel();
    let all = Arc::new(tokio::sync::Barrier::new(CONNECTIONS));
    let server = Chaos::start(move |mut stream, number| {
        let (tell, all) = (tell.clone(), all.clone());
        async move {
            h1_request(&mut stream).await;
            if number < CONNECTIONS {
                all.wait().await;
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na").await.unwrap();
            let _ = tell.send(stream);
        }
    })
    .await;
    let (client, _) = client(&server.url, |upstream| upstream.max_idle = CONNECTIONS as u32);
    for result in futures_all((0..CONNECTIONS).map(|_| ask(&client, &server.url))).await {
        result.unwrap();
    }
    let mut held = Vec::new();
    while held.len() < CONNECTIONS {
        held.push(told(&mut streams).await);
    }
    until_async("they come back", async || client.idle() == CONNECTIONS).await;
    drop(held);
    // The runtime hears of all the ends, and this goes on before the connections do.
    tokio::task::yield_now().await;
    let sent = send_twice(client, request(&server.url), Bytes::from_static(b"{}"));
    // One whose end came too late to be heard of would be cut.
    if let Err(error) = tokio::time::timeout(PATIENCE, sent).await.expect("it ends") {
        assert_eq!(of_error(&error), CUT, "{error}");
    }
}

#[tokio::test]
async fn over_h2_a_write_without_a_body_leaves_doubt_when_the_connection_ends_as_it_begins() {
    for (method, frames, delivery) in
        [(Method::POST, goaway(0), CUT), (Method::POST, reset(7), UNSENT), (Method::GET, goaway(0), UNSENT)]
    {
        let server = framed(frames).await;
        let (client, _) = client(&server.url, h2);
        let mut request = request(&server.url).map(|_| Body::empty());
        *request.method_mut() = method;
        let error = client.send(request).await.expect_err("it fails");
        assert_eq!(of_error(&error), delivery, "{error}");
    }
}

#[tokio::test]
async fn over_h2_a_failed_attempt_is_one_failure_of_connecting() {
    let go = Arc::new(Notify::new());
    let held = go.clone();
    let server = Chaos::start(move |stream, _| {
        let go = held.clone();
        async move {
            go.notified().await;
            drop(stream);
        }
    })
    .await;
    let (client, metrics) = client(&server.url, |upstream| {
        h2(upstream);
        upstream.connect_timeout = raw::Span(Duration::from_secs(25));
    });
    let end = async {
        server.reached(1).await;
        go.notify_one();
        Vec::new()
    };
    let all = async { futures_all((0..25).map(|_| ask(&client, &server.url))).await };
    let (results, _): (_, Vec<()>) = tokio::join!(all, end);
    let found: Vec<_> = results.into_iter().map(|result| of_error(&result.unwrap_err())).collect();
    assert_eq!(found.iter().filter(|delivery| **delivery == CONNECT).count(), 1, "{found:?}");
    assert_eq!(found.iter().filter(|delivery| **delivery == UNSENT).count(), 24, "{found:?}");
    assert_eq!(connects(&metrics, "protocol"), 1);

    // Silence all have waited out.
    let silent = Chaos::start(|stream, _| freeze(stream)).await;
    let (client, metrics) = self::client(&silent.url, |upstream| {
        h2(upstream);
        upstream.connect_timeout = millis(200);
    });
    for result in futures_all((0..5).map(|_| ask(&client, &silent.url))).await {
        assert_eq!(of_error(&result.unwrap_err()), CONNECT);
    }
    assert_eq!(connects(&metrics, "timeout"), 1);
}

/// A stream that fails with an alert of the peer's.
struct Alert;

impl hyper::rt::Read for Alert {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: hyper::rt::ReadBufCursor<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateExpired);
        std::task::Poll::Ready(Err(std::io::Error::new(std::io::ErrorKind::InvalidData, alert)))
    }
}

impl hyper::rt::Write for Alert {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::task::Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn an_alert_about_our_certificate_is_believed_on_a_new_connection_only() {
    let (_sender, connection) =
        hyper::client::conn::http1::handshake::<_, Body>(Alert).await.expect("nothing is read yet");
    let error = connection.await.expect_err("it fails");
    assert_eq!(of_error(&failed(&error, true)), CONNECT);
    assert_eq!(of_error(&failed(&error, false)), CUT);
}

#[tokio::test]
async fn a_hurried_caller_that_gets_no_connection_in_time_blames_nobody() {
    use crate::context::{Call, Credential, Lane, UpstreamRequest};
    use tower::Service as _;
    let silent = Chaos::start(|stream, _| freeze(stream)).await;
    let mut settings = Settings::default();
    settings.upstream.base_url = silent.url.replace("http:", "https:");
    settings.upstream.connect_timeout = raw::Span(Duration::from_secs(25));
    let config = Arc::new(Snapshot::of(settings).unwrap());
    let current = config.clone();
    let metrics = Metrics::new();
    let client = Client::new(Arc::new(move || current.clone()), &metrics).unwrap();
    let base = config.settings.upstream.base_url.parse().unwrap();
    let clock = crate::clock::Clock::system();
    let attempt = super::Attempt::new(client, &base, &config.routes.groups(), clock, metrics).unwrap();
    let call = |is_hurried| Call {
        lane: Lane::LiveWrite,
        route: config.routes.find(&Method::POST, "/bookings").clone(),
        is_read: false,
        config: config.clone(),
        credential: Credential::None,
        deadline: tokio::time::Instant::now() + Duration::from_millis(100),
        is_hurried,
        whole_until: None,
        before_send: None,
        observer: None,
        slot: None,
        resends_unsent: false,
    };
    // The second has waited for something else before, most of its route's time.
    for is_hurried in [true, false] {
        let sent =
            attempt.clone().call(UpstreamRequest { request: request(&silent.url), call: call(is_hurried) });
        let error = tokio::time::timeout(PATIENCE, sent).await.expect("it ends").expect_err("no connection");
        assert_eq!(of_error(&error), Delivery::NotSent(Unsent::Ours), "{error}");
    }
}
