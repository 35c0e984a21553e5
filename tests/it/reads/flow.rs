//! Answers that flow.

use super::*;

/// What is not held back, by far.
const HALF: usize = 350_000;

/// An upstream of long answers: each is a head, a first half, and, when the test says so, what `rest` says of it. Tells
/// how many it was asked for.
async fn in_halves(
    head: &'static str,
    half: Vec<u8>,
    go: Arc<Semaphore>,
    rest: impl Fn(usize) -> Option<Vec<u8>> + Clone + Send + Sync + 'static,
) -> (Chaos, Arc<AtomicUsize>) {
    let asked: Arc<AtomicUsize> = Arc::default();
    let count = asked.clone();
    let upstream = Chaos::start(move |mut stream, _| {
        let (half, go, rest, count) = (half.clone(), go.clone(), rest.clone(), count.clone());
        async move {
            while !chaos::head(&mut stream).await.is_empty() {
                let number = count.fetch_add(1, Ordering::SeqCst);
                if stream.write_all(head.as_bytes()).await.is_err() || stream.write_all(&half).await.is_err()
                {
                    return;
                }
                go.acquire().await.unwrap().forget();
                match rest(number) {
                    Some(rest) if stream.write_all(&rest).await.is_ok() => {}
                    _ => return,
                }
            }
        }
    })
    .await;
    (upstream, asked)
}

/// Asks on a connection of its own.
async fn ask(proxy: &Proxy, path: &str, version: &str) -> TcpStream {
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    let request = format!(
        "GET {path} {version}\r\nhost: seawall\r\nauthorization: {TOKEN}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// The head of an answer, whose body is read as the test reads it.
async fn begun(proxy: &Proxy, path: &str) -> http::Response<hyper::body::Incoming> {
    let request = Request::builder()
        .uri(format!("{}{path}", proxy.url))
        .header("authorization", TOKEN)
        .body(seawall::http::Body::empty())
        .unwrap();
    let response = client().request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    response
}

const DOCUMENT: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/pdf\r\ncontent-length: 700000\r\n\
    cache-control: max-age=600\r\n\r\n";

#[tokio::test]
async fn a_700_kb_document_reaches_its_caller_while_the_upstream_sends_and_is_kept() {
    let go = Arc::new(Semaphore::new(0));
    let (upstream, asked) =
        in_halves(DOCUMENT, vec![b'a'; HALF], go.clone(), |_| Some(vec![b'b'; HALF])).await;
    let proxy = Proxy::start(&upstream.url, &[]).await;
    let mut stream = ask(&proxy, "/documents/d1/download", "HTTP/1.1").await;
    let head = chaos::head(&mut stream).await;
    assert_eq!(chaos::field(&head, "content-length"), Some("700000"), "{head}");
    assert_eq!(chaos::field(&head, "seawall-source"), Some("upstream"));
    assert!(chaos::field(&head, "cache-status").unwrap().contains("; stored; "), "{head}");
    let mut half = vec![0; HALF];
    stream.read_exact(&mut half).await.unwrap();
    assert!(half.iter().all(|byte| *byte == b'a'));
    go.add_permits(1);
    let rest = chaos::closed(&mut stream).await;
    assert!(rest.len() == HALF && rest.bytes().all(|byte| byte == b'b'));
    let again = proxy.get("/documents/d1/download").await;
    assert_eq!((again.source(), again.field("content-length")), ("cache", "700000"));
    assert!(again.body[..HALF] == half && again.body[HALF..] == *rest.as_bytes());
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_long_page_reaches_its_caller_rewritten_while_the_upstream_sends() {
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len()).into_bytes();
    let first = format!("{{\"data\":[\"{}\",", "x".repeat(200_000));
    let last = r#"{"self":"https://api.flexport.com/shipments/1"}],"error":null}"#;
    let end = [chunk(last), b"0\r\n\r\n".to_vec()].concat();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let go = Arc::new(Semaphore::new(0));
    let (upstream, _) = in_halves(head, chunk(&first), go.clone(), move |_| Some(end.clone())).await;
    let proxy = Proxy::start(&upstream.url, &[]).await;
    let mut response = begun(&proxy, "/shipments?page=1").await;
    let mut all = Vec::new();
    while all.len() < first.len() {
        all.extend_from_slice(&response.frame().await.unwrap().unwrap().into_data().unwrap());
    }
    go.add_permits(1);
    all.extend_from_slice(&response.into_body().collect().await.unwrap().to_bytes());
    let whole = format!("{first}{last}").replace("https://api.flexport.com", &proxy.url);
    assert!(all == whole.as_bytes());
    drop(upstream);
    assert_eventually!(proxy.get("/shipments?page=1").await.source() == "stale");
    assert!(proxy.get("/shipments?page=1").await.body == whole);
}

#[tokio::test]
async fn a_document_that_is_cut_on_its_way_is_cut_for_the_caller_and_the_older_copy_stays() {
    let document = "HTTP/1.1 200 OK\r\ncontent-type: application/pdf\r\ncontent-length: 700000\r\n\r\n";
    let chunked = "HTTP/1.1 200 OK\r\ncontent-type: application/pdf\r\ntransfer-encoding: chunked\r\n\r\n";
    for (head, is_chunked) in [(document, false), (chunked, true)] {
        let go = Arc::new(Semaphore::new(1));
        let (half, last) = if is_chunked {
            (
                [format!("{HALF:x}\r\n").into_bytes(), vec![b'a'; HALF], b"\r\n".to_vec()].concat(),
                b"0\r\n\r\n".to_vec(),
            )
        } else {
            (vec![b'a'; HALF], vec![b'b'; HALF])
        };
        // The second ends half way.
        let (upstream, asked) =
            in_halves(head, half, go.clone(), move |number| (number == 0).then(|| last.clone())).await;
        let proxy = Proxy::start(&upstream.url, &["probe.enabled=false"]).await;
        let good = proxy.get("/documents/d1/download").await;
        assert_eq!((good.status.as_u16(), good.source()), (200, "upstream"));
        let mut stream = ask(&proxy, "/documents/d1/download", "HTTP/1.1").await;
        assert!(chaos::head(&mut stream).await.starts_with("HTTP/1.1 200"));
        let mut begin = vec![0; HALF];
        stream.read_exact(&mut begin).await.unwrap();
        go.add_permits(1);
        let rest = chaos::closed(&mut stream).await;
        assert!(rest.len() < 1000 && !rest.ends_with("0\r\n\r\n"), "{rest}");
        assert_eventually!(proxy.breaker("documents:read").await["in_flight"] == 0);
        assert_eq!(proxy.breaker("documents:read").await["window"]["failures"], 1);
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        drop(upstream);
        assert_eventually!(proxy.get("/documents/d1/download").await.source() == "stale");
        assert!(proxy.get("/documents/d1/download").await.body == good.body);
    }
}

#[tokio::test]
async fn a_document_whose_caller_leaves_is_fetched_to_its_end_and_kept() {
    let go = Arc::new(Semaphore::new(0));
    let (upstream, asked) =
        in_halves(DOCUMENT, vec![b'a'; HALF], go.clone(), |_| Some(vec![b'b'; HALF])).await;
    let proxy = Proxy::start(&upstream.url, &[]).await;
    let mut stream = ask(&proxy, "/documents/d1/download", "HTTP/1.1").await;
    assert!(chaos::head(&mut stream).await.starts_with("HTTP/1.1 200"));
    stream.read_exact(&mut [0; 1000]).await.unwrap();
    drop(stream);
    assert_eventually!(proxy.metric("seawall_connections{listener=\"data\"}").await < 1.0);
    go.add_permits(1);
    assert_eventually!(proxy.get("/documents/d1/download").await.source() == "cache");
    assert_eq!(proxy.get("/documents/d1/download").await.body.len(), 2 * HALF);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_reader_of_a_document_without_end_sets_its_pace() {
    /// More than `cache.max_object` by less than any buffer: so much is taken without a reader, as it may yet be kept.
    const KEPT: usize = (2 << 20) + 1;
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/pdf\r\n\r\n";
    let (upstream, taken) = chaos::flood(head.to_owned(), KEPT).await;
    let proxy = Proxy::start(&upstream.url, &[]).await;
    let response = begun(&proxy, "/documents/d1/download").await;
    let sent = tokio::time::timeout(PATIENCE, taken).await.expect("it stops").unwrap();
    assert!(sent < chaos::BOUND, "{sent} bytes were taken for a reader that reads none");
    // All that was sent arrives; it is not kept.
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), sent);
    let status = proxy.admin(Method::GET, "/api/v1/status", None).await.json();
    assert_eq!(status["cache"]["entries"], 0, "{status}");
}

#[tokio::test]
async fn http_1_0_gets_a_long_page_whole_or_an_error() {
    let half = format!("{{\"data\":\"{}", "x".repeat(200_000));
    // It ends by closing, or in the middle of a chunk.
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n";
    let chunked =
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n7a120\r\n";
    for (head, status) in [(head, "HTTP/1.0 200"), (chunked, "HTTP/1.0 502")] {
        let go = Arc::new(Semaphore::new(1));
        let (upstream, _) = in_halves(head, half.clone().into_bytes(), go, |_| None).await;
        let proxy = Proxy::start(&upstream.url, &[]).await;
        let mut stream = ask(&proxy, "/shipments", "HTTP/1.0").await;
        let head = chaos::head(&mut stream).await;
        assert!(head.starts_with(status), "{head}");
        let length: usize = chaos::field(&head, "content-length").expect("it has a length").parse().unwrap();
        assert_eq!(chaos::closed(&mut stream).await.len(), length);
        assert_eq!(length == half.len(), status.ends_with("200"));
    }
}
