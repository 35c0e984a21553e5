//! The plain programs that Seawall is compared with, each a process of its own (this binary, by argument): one
//! thread, the same allocator and profile, and nothing that the work does not need.

use crate::body::Sample;
use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::Future;
use std::io::Write as _;
use tokio::net::TcpListener;

/// Never go further than one hop (RFC 9110 §7.6.1).
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Answers every path with the sample, from memory. It is the origin, and the peer of a cache hit.
pub(crate) async fn memory_server(sample: Sample, is_fresh: bool) -> Result<()> {
    let body = sample.bytes;
    serve(move |_request: Request<Incoming>| {
        let mut response = Response::new(Full::new(body.clone()));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if is_fresh {
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=600"));
        }
        async move { response }
    })
    .await
}

/// Forwards every request and streams both ways.
pub(crate) async fn minimal_proxy(upstream: String) -> Result<()> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).build::<_, Incoming>(connector);
    serve(move |mut request: Request<Incoming>| {
        let (client, upstream) = (client.clone(), upstream.clone());
        async move {
            let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
            let Ok(uri) = format!("{upstream}{path}").parse::<Uri>() else {
                return status(StatusCode::BAD_REQUEST);
            };
            *request.uri_mut() = uri;
            strip_hop_by_hop(request.headers_mut());
            request.headers_mut().remove(header::HOST);
            let Ok(mut response) = client.request(request).await else {
                return status(StatusCode::BAD_GATEWAY);
            };
            strip_hop_by_hop(response.headers_mut());
            response.map(Either::Left)
        }
    })
    .await
}

fn status(status: StatusCode) -> Response<Either<Incoming, Full<Bytes>>> {
    let mut response = Response::new(Either::Right(Full::default()));
    *response.status_mut() = status;
    response
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if let Some(nominated) = headers.get(header::CONNECTION).cloned() {
        for name in nominated.to_str().unwrap_or_default().split(',') {
            headers.remove(name.trim());
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Says `listening <port>` on stdout, then answers for ever.
async fn serve<F, R, B>(answer: F) -> Result<()>
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<B>> + Send,
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.context("binding to loopback")?;
    let mut out = std::io::stdout();
    writeln!(out, "listening {}", listener.local_addr()?.port())?;
    out.flush()?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let answer = answer.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answer = answer(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            // A connection that ends in an error shows in the load generator's own checks.
            let _ended = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}
