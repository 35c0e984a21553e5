//! Who is slow, who stops, and how much is taken for them.

use super::*;

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
