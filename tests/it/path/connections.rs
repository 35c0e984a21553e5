//! Connections: how long they live, and their end.

use super::*;

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
