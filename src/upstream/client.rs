//! The pooled client and its connector.

use super::tls;
use crate::config::raw;
use crate::error::ProxyError;
use crate::http::{Body, BodyError, body::chain};
use http::{Request, Response, Uri};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::ServerName;
use std::error::Error as _;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower::Service;

/// Sends requests with absolute URIs over pooled connections.
#[derive(Clone)]
pub struct Client(legacy::Client<Connector, Body>);

/// A request on its way.
pub struct Sent(legacy::ResponseFuture);

/// The client cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No usable trust store.
    #[error(
        "TLS cannot be set up: {0}; install the system's CA certificates, or name a bundle in SSL_CERT_FILE"
    )]
    Tls(#[from] rustls::Error),
}

/// Plain TCP or TLS, by the URI's scheme.
#[derive(Clone)]
struct Connector {
    tcp: HttpConnector,
    tls: Option<TlsConnector>,
    limit: Duration,
}

enum Stream {
    Plain(TokioIo<TcpStream>),
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

// === impl Client ===

impl Client {
    /// A client for the configured upstream.
    pub fn new(settings: &raw::Upstream) -> Result<Self, ClientError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(*settings.tcp_keepalive));
        // One limit for DNS, TCP and TLS together stands in `Connector`; this one makes happy eyeballs move on.
        tcp.set_connect_timeout(Some(*settings.connect_timeout));
        let tls = if settings.base_url.to_ascii_lowercase().starts_with("https:") {
            Some(TlsConnector::from(tls::config()?))
        } else {
            None
        };
        let connector = Connector { tcp, tls, limit: *settings.connect_timeout };
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(*settings.idle_timeout)
            .pool_max_idle_per_host(settings.max_idle as usize)
            .retry_canceled_requests(false)
            .set_host(false)
            .http1_max_buf_size(1 << 20)
            .build(connector);
        Ok(Self(client))
    }

    /// Sends one request. The error's kind tells whether bytes can have left.
    pub fn send(&self, request: Request<Body>) -> Sent {
        Sent(self.0.request(request))
    }
}

// === impl Sent ===

impl Future for Sent {
    type Output = Result<Response<hyper::body::Incoming>, ProxyError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map_err(|error| classify(&error))
    }
}

/// What an error of the client's says about delivery.
///
/// `Canceled` and `ChannelClosed` are raised by hyper-util only while it still holds the whole request (dead pooled
/// connection, connection gone before it was ready). The kind is private; its `Display` is the documented
/// `client error (<kind>)`. Should that text ever change, the error counts as cut, which is the careful side.
fn classify(error: &legacy::Error) -> ProxyError {
    let detail = error.source().map_or_else(|| error.to_string(), chain);
    if error.is_connect() {
        return ProxyError::Connect(detail);
    }
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(body) = inner.downcast_ref::<BodyError>() {
            return ProxyError::RequestBody(body.clone());
        }
        if inner.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled) {
            return ProxyError::Unsent(detail);
        }
        cause = inner.source();
    }
    match error.to_string().as_str() {
        "client error (Canceled)" | "client error (ChannelClosed)" => ProxyError::Unsent(detail),
        _ => ProxyError::Cut(detail),
    }
}

// === impl Connector ===

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let mut tcp = self.tcp.clone();
        let tls = self.tls.clone();
        let limit = self.limit;
        Box::pin(async move {
            let connect = async {
                let is_https = uri.scheme_str() == Some("https");
                let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
                std::future::poll_fn(|cx| tcp.poll_ready(cx)).await.map_err(io::Error::other)?;
                let stream = tcp.call(uri).await.map_err(|error| io::Error::other(chain(&error)))?;
                if !is_https {
                    return Ok(Stream::Plain(stream));
                }
                let tls = tls.ok_or_else(|| io::Error::other("TLS is not set up for this upstream"))?;
                let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
                let stream = tls.connect(name, stream.into_inner()).await.map_err(|error| {
                    io::Error::new(error.kind(), format!("TLS handshake with {host} failed: {error}"))
                })?;
                Ok(Stream::Tls(Box::new(TokioIo::new(stream))))
            };
            tokio::time::timeout(limit, connect).await.unwrap_or_else(|_| {
                Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {limit:?}")))
            })
        })
    }
}

// === impl Stream ===

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}
