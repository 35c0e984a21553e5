//! Accepting connections and serving them, until told to drain.

use super::conn::{self, Protocol, Timeouts};
use super::drain::Drain;
use super::pump;
use crate::front::Peer;
use crate::http::interim::Interims;
use crate::http::{Body, BodyError};
use bytes::Bytes;
use http::{Request, Response, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower::util::BoxCloneSyncService;

/// What a listener hands its requests to.
pub(super) type App = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// A listener's limits.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    timeouts: Timeouts,
    max_head: usize,
    max_connections: usize,
    h2_max_streams: u32,
    h2_max_resets: usize,
}

/// A bound listener.
pub struct Listener {
    socket: TcpListener,
    limits: Limits,
    connections: Gauge,
    refused: Counter,
    passes_interims: bool,
}

/// Opens a listening socket.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM.nonblocking().cloexec(),
        Some(socket2::Protocol::TCP),
    )?;
    // So that a restart does not wait for old connections to time out. Two processes still cannot share the port.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

// === impl Limits ===

impl Limits {
    /// As configured in `[server]`.
    pub fn new(server: &crate::config::raw::Server) -> Self {
        Self {
            timeouts: Timeouts {
                first_byte: *server.first_byte_timeout,
                head: *server.head_timeout,
                idle: *server.idle_timeout,
                write_idle: *server.write_idle_timeout,
            },
            // hyper wants room for at least one full read.
            max_head: usize::try_from(server.max_head.0).unwrap_or(usize::MAX).max(8192),
            max_connections: server.max_connections as usize,
            h2_max_streams: server.h2_max_streams,
            h2_max_resets: server.h2_max_resets as usize,
        }
    }
}

// === impl Listener ===

impl Listener {
    /// Takes a bound socket.
    pub fn new(socket: TcpListener, limits: Limits, connections: Gauge, refused: Counter) -> Self {
        Self { socket, limits, connections, refused, passes_interims: false }
    }

    /// Whether interim responses of the upstream (102, 103) are passed on to callers of HTTP/1.1.
    pub fn passing_interims(self, is_so: bool) -> Self {
        Self { passes_interims: is_so, ..self }
    }

    /// Serves until `drain` begins; connections are counted in `drain` and end in good order.
    pub async fn serve(self, app: App, drain: Drain) {
        let slots = Arc::new(Semaphore::new(self.limits.max_connections));
        loop {
            let stream = tokio::select! {
                () = drain.began() => return,
                accepted = self.socket.accept() => match accepted {
                    Ok((stream, peer)) => (stream, peer),
                    // A connection that was reset before it was taken is none of ours.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                    Err(error) => {
                        // Out of descriptors or memory: must not spin until some are free again.
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
            };
            let Ok(slot) = slots.clone().try_acquire_owned() else {
                self.refused.inc();
                continue;
            };
            let (stream, peer) = stream;
            let served =
                serve_connection(stream, peer, self.limits, self.passes_interims, app.clone(), drain.clone());
            let open = Open::new(&self.connections);
            drain.track(async move {
                served.await;
                drop((open, slot));
            });
        }
    }
}

async fn serve_connection(
    stream: TcpStream,
    peer: SocketAddr,
    limits: Limits,
    passes_interims: bool,
    app: App,
    drain: Drain,
) {
    let _ = stream.set_nodelay(true);
    let busy = Arc::new(AtomicU32::new(0));
    let sniffed = tokio::select! {
        () = drain.began() => return,
        sniffed = conn::sniff(stream, limits.timeouts, busy.clone()) => sniffed,
    };
    let Some(mut stream) = sniffed else { return };
    let protocol = stream.protocol();
    let interims = (passes_interims && protocol == Protocol::Http1).then(|| stream.pass_interims());
    let pace = (protocol == Protocol::Http2).then_some(limits.timeouts.write_idle);
    let service = Service { app: Mutex::new(app), peer, busy, pace, interims };
    let result = match protocol {
        Protocol::Http1 => {
            let mut builder = hyper::server::conn::http1::Builder::new();
            // Not `pipeline_flush`: with it hyper buffers an answer without end for a client that reads nothing.
            builder.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(limits.max_head);
            let connection = builder.serve_connection(stream, service);
            tokio::pin!(connection);
            tokio::select! {
                result = connection.as_mut() => result,
                () = drain.began() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
        Protocol::Http2 => {
            let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .max_concurrent_streams(limits.h2_max_streams)
                .max_pending_accept_reset_streams(limits.h2_max_resets)
                .max_local_error_reset_streams(limits.h2_max_resets)
                .max_header_list_size(u32::try_from(limits.max_head).unwrap_or(u32::MAX))
                .keep_alive_interval(Duration::from_secs(20))
                .keep_alive_timeout(Duration::from_secs(20));
            let connection = builder.serve_connection(stream, service);
            tokio::pin!(connection);
            tokio::select! {
                result = connection.as_mut() => result,
                () = drain.began() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, error = crate::http::body::chain(&error), "a connection ended with an error");
    }
}

/// Counts a connection while it lives.
struct Open(Gauge);

// === impl Open ===

impl Open {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Counts requests under way and hands them to the application.
struct Service {
    /// One for the connection: a clone for each request would copy the whole stack. Held only while a request is
    /// handed over.
    app: Mutex<App>,
    peer: SocketAddr,
    busy: conn::Busy,
    /// How long a stream may take nothing of its answer, where the socket does not tell.
    pace: Option<Duration>,
    /// Where interim responses are passed on.
    interims: Option<Interims>,
}

/// One request under way.
struct Under(conn::Busy);

/// An answer's body that keeps its request counted until it has ended.
struct Counted {
    inner: Body,
    under: Option<Under>,
}

// === impl Service ===

impl hyper::service::Service<Request<Incoming>> for Service {
    type Response = Response<Counted>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        let under = Under::new(&self.busy);
        let mut request = request.map(Body::from);
        request.extensions_mut().insert(Peer(self.peer));
        let interims = self.interims.clone().filter(|_| request.version() == Version::HTTP_11);
        if let Some(interims) = &interims {
            request.extensions_mut().insert(interims.begin());
        }
        let mut app = self.app.lock().unwrap_or_else(PoisonError::into_inner);
        Answer {
            inner: tower::Service::call(&mut *app, request),
            under: Some(under),
            pace: self.pace,
            interims,
        }
    }
}

/// The application's answer.
struct Answer {
    inner: Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>,
    under: Option<Under>,
    pace: Option<Duration>,
    interims: Option<Interims>,
}

impl Future for Answer {
    type Output = Result<Response<Counted>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = std::task::ready!(self.inner.as_mut().poll(cx))?;
        if let Some(interims) = &self.interims {
            interims.end();
        }
        let under = self.under.take();
        let pace = self.pace;
        Poll::Ready(Ok(response.map(|inner| {
            let inner = match pace {
                Some(limit) => pump::paced(inner, limit),
                None => inner,
            };
            Counted { inner, under }
        })))
    }
}

// === impl Under ===

impl Under {
    fn new(busy: &conn::Busy) -> Self {
        busy.fetch_add(1, Ordering::Relaxed);
        Self(busy.clone())
    }
}

impl Drop for Under {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Counted ===

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let frame = std::task::ready!(Pin::new(&mut this.inner).poll_frame(cx));
        if frame.is_none() {
            this.under = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
