//! The HTTP/2 connection to one upstream (RFC 9113), by ALPN under https, with prior knowledge under http.
//!
//! One connection carries everything; how many streams at once is the server's word, and further requests wait in it.
//! It counts as made when the server's SETTINGS have come, which are its first frame (§3.4): until then nothing is
//! sent, so that a server that is dead or speaks something else, and a handshake that the server ends over our
//! certificate, are failures of connecting and not cut requests. All who wait for a connection share its making, and
//! nobody who leaves ends it. When it fails that is one failure of connecting, of who began it; for the others nothing
//! was sent, and they may try again at once. But where the whole time limit has passed all have waited in vain, and it
//! is the failure of each: there are few such attempts, and the breaker is to see them.
//!
//! A PING goes out at an interval, used or not; without its answer in time the connection is cut, and with it all that
//! is under way. A connection past its age, or from which nothing was asked for too long, takes no request; it ends
//! when its streams have ended.
//!
//! What the server says about a request that it did not process is believed (§8.7): a stream that it refused
//! (`REFUSED_STREAM`), or that is beyond the last one its GOAWAY names, was not sent as far as delivery goes. Not so
//! of a write without a body: hyper gives a connection's GOAWAY as the error of a stream that it does not speak of, too,
//! when it comes just as the stream begins, and such a write is whole with its first frame.
//!
//! A request that waits because the server allows no further stream counts as sent, in hyper it is: when its time is up
//! its outcome is not known, and it is a late head for those who judge its group.

use super::client::{Taken, failed, is_goaway};
use super::connect::{Connector, Failure, Stage, Stream};
use super::h1::retirement;
use crate::context::is_safe;
use crate::error::ProxyError;
use crate::http::body::chain;
use crate::http::{Body, BodyError};
use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderMap, Request, Response, Uri, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(super) struct Pool(Arc<Shared>);

struct Shared {
    connector: Connector,
    idle_timeout: Duration,
    state: Mutex<State>,
}

enum State {
    None,
    /// Being made; what comes of it.
    Connecting(watch::Receiver<Option<Result<Sender, Failure>>>),
    Open(Connection),
}

struct Connection {
    sender: Sender,
    /// From when on it takes no request.
    retires_at: Instant,
    used_at: Instant,
    /// Tells it from the ones after it.
    number: u64,
}

type Sender = http2::SendRequest<Body>;

/// A stream whose first frame is looked at.
struct FirstFrame<S> {
    stream: S,
    head: [u8; FRAME_HEAD],
    read: usize,
    /// Told whether it was SETTINGS.
    tell: Option<oneshot::Sender<bool>>,
}

/// A request's body, that remembers why it broke: the stream's error does not say.
struct Remembered {
    inner: Body,
    error: Arc<OnceLock<BodyError>>,
}

/// Length, type, flags and stream of a frame (RFC 9113 §4.1).
const FRAME_HEAD: usize = 9;
/// What a slow reader of ours lets come in ahead of it. The connection's window has room for one of each slot of the
/// limiter, so that no stream waits for another's reader.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 128 * STREAM_WINDOW;
/// Longest list of fields of an answer, in bytes.
const MAX_HEAD: u32 = 1 << 20;

// === impl Pool ===

impl Pool {
    pub(super) fn new(connector: Connector) -> Self {
        let idle_timeout = *connector.config().settings.upstream.idle_timeout;
        Self(Arc::new(Shared { connector, idle_timeout, state: Mutex::new(State::None) }))
    }

    /// Sends one request.
    pub(super) async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, ProxyError> {
        let mut sender = self.sender().await?;
        if let Some(taken) = request.extensions().get::<Taken>() {
            taken.set();
        }
        let (mut parts, body) = request.into_parts();
        authority_from_host(&mut parts.uri, &mut parts.headers);
        // Its fields are the whole of it.
        let is_whole_write = body.is_end_stream() && !is_safe(&parts.method);
        let (body, body_error) = remembered(body);
        match sender.try_send_request(Request::from_parts(parts, body)).await {
            Ok(response) => Ok(response),
            Err(mut error) => {
                if let Some(error) = body_error.and_then(|error| error.get().cloned()) {
                    return Err(ProxyError::RequestBody(error));
                }
                Err(match error.take_message() {
                    Some(_) => ProxyError::Unsent(chain(error.error())),
                    None if is_whole_write && is_goaway(error.error()) => {
                        ProxyError::Cut(chain(error.error()))
                    }
                    None => failed(&error.into_error(), false),
                })
            }
        }
    }

    /// Of the connection there is, or of the one that is being made, or of one that begins now.
    async fn sender(&self) -> Result<Sender, ProxyError> {
        let (mut result, is_ours) = {
            let mut state = self.state();
            let now = Instant::now();
            match &mut *state {
                State::Open(connection) if connection.is_usable(now) => {
                    connection.used_at = now;
                    return Ok(connection.sender.clone());
                }
                State::Connecting(result) if result.has_changed().is_ok() => (result.clone(), false),
                _ => {
                    let (tell, result) = watch::channel(None);
                    *state = State::Connecting(result.clone());
                    let pool = self.clone();
                    tokio::spawn(async move {
                        let result = pool.connect().await;
                        pool.0.connector.count(&result);
                        if result.is_err() {
                            *pool.state() = State::None;
                        }
                        tell.send_replace(Some(result));
                    });
                    (result, true)
                }
            }
        };
        let result = result.wait_for(Option::is_some).await.map(|result| result.clone());
        match result {
            Ok(Some(Ok(sender))) => Ok(sender),
            Ok(Some(Err(failure))) if is_ours || failure.is_timeout() => {
                Err(ProxyError::Connect(failure.into_message()))
            }
            Ok(Some(Err(failure))) => Err(ProxyError::Unsent(failure.into_message())),
            // Its task cannot end without a word but when the runtime does.
            Ok(None) | Err(_) => Err(ProxyError::Connect("Seawall is ending".to_owned())),
        }
    }

    /// Makes a connection, and puts it in place.
    async fn connect(&self) -> Result<Sender, Failure> {
        let connector = &self.0.connector;
        let snapshot = connector.config();
        let settings = &snapshot.settings.upstream;
        let limit = Connector::limit(&snapshot);
        let stream = connector.connect(&snapshot, limit).await?;
        let (tell, first) = oneshot::channel();
        let stream = FirstFrame { stream, head: [0; FRAME_HEAD], read: 0, tell: Some(tell) };
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(*settings.h2_ping_interval)
            .keep_alive_timeout(*settings.h2_ping_timeout)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEAD)
            .handshake::<FirstFrame<Stream>, Body>(stream)
            .await
            .map_err(|error| Failure::new(Stage::Protocol, chain(&error)))?;
        let mut connection = Box::pin(connection);
        let is_settings = limit.hold("the server's first frame", async {
            tokio::select! {
                biased;
                Ok(is_settings) = first => Ok(is_settings),
                ended = &mut connection => Err(ended.err()),
            }
        });
        match is_settings.await? {
            Ok(true) => {}
            Ok(false) => return Err(not_http2()),
            Err(error) => {
                let text = error.map_or_else(|| "it was closed".to_owned(), |error| chain(&error));
                // In TLS 1.3 the server looks at our certificate when the handshake is done for us.
                let (stage, hint) = if text.contains("received fatal alert") {
                    (Stage::Tls, "; look at `upstream.tls.cert_file`")
                } else {
                    (Stage::Protocol, "")
                };
                let text = format!("the connection ended before the server's first frame: {text}{hint}");
                return Err(Failure::new(stage, text));
            }
        }
        let number = fastrand::u64(..);
        let now = Instant::now();
        *self.state() = State::Open(Connection {
            sender: sender.clone(),
            retires_at: retirement(*settings.connection_max_age),
            used_at: now,
            number,
        });
        let pool = self.clone();
        tokio::spawn(async move { pool.drive(connection, number).await });
        Ok(sender)
    }

    /// Drives a connection to its end, and takes it out of use when its time has come.
    async fn drive(self, connection: impl Future<Output = hyper::Result<()>>, number: u64) {
        let idle_timeout = self.0.idle_timeout;
        let weak = Arc::downgrade(&self.0);
        // Not held by what it drives: when all others have dropped the pool, the sender in it goes, and this ends.
        drop(self);
        let retire = async {
            while let Some(at) = weak.upgrade().and_then(|shared| Pool(shared).retire(number, idle_timeout)) {
                tokio::time::sleep_until(at).await;
            }
        };
        let mut connection = pin!(connection);
        let result = tokio::select! {
            result = &mut connection => result,
            () = retire => connection.await,
        };
        if let Err(error) = result {
            tracing::debug!("a connection to the upstream ended: {}", chain(&error));
        }
        if let Some(shared) = weak.upgrade() {
            Pool(shared).retire(number, Duration::ZERO);
        }
    }

    /// Takes a connection out of use when it is too old, or unused for so long: with the last sender it closes by
    /// itself, when its streams have ended. When to look again, unless it is out of use.
    fn retire(&self, number: u64, idle_timeout: Duration) -> Option<Instant> {
        let mut state = self.state();
        let State::Open(current) = &*state else { return None };
        if current.number != number {
            return None;
        }
        let at = current.retires_at.min(current.used_at + idle_timeout);
        if at > Instant::now() {
            return Some(at);
        }
        *state = State::None;
        None
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_http2() -> Failure {
    let what = "the upstream does not speak HTTP/2: its first frame is no SETTINGS; set `upstream.protocol` to \"h1\"";
    Failure::new(Stage::Protocol, what.to_owned())
}

/// `:authority` takes the place of `Host` (RFC 9113 §8.3.1), and says the same.
fn authority_from_host(target: &mut Uri, fields: &mut HeaderMap) {
    let Some(host) = fields.remove(header::HOST) else { return };
    if target.authority().is_some_and(|authority| authority.as_str().as_bytes() == host.as_bytes()) {
        return;
    }
    let Ok(authority) = Authority::try_from(host.as_bytes()) else { return };
    let mut parts = std::mem::take(target).into_parts();
    parts.authority = Some(authority);
    *target = Uri::from_parts(parts).unwrap_or_default();
}

/// A body that comes piece by piece, with a place for its error.
fn remembered(body: Body) -> (Body, Option<Arc<OnceLock<BodyError>>>) {
    if body.as_bytes().is_some() {
        return (body, None);
    }
    let error = Arc::new(OnceLock::new());
    (Body::new(Remembered { inner: body, error: error.clone() }), Some(error))
}

// === impl Connection ===

impl Connection {
    fn is_usable(&self, now: Instant) -> bool {
        now < self.retires_at && !self.sender.is_closed()
    }
}

// === impl Remembered ===

impl HttpBody for Remembered {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(Err(error)) = &frame {
            let _ = self.error.set(error.clone());
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

// === impl FirstFrame ===

impl<S: Read + Unpin> Read for FirstFrame<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.read == FRAME_HEAD {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        let mut space = [0; FRAME_HEAD];
        let most = (FRAME_HEAD - this.read).min(buf.remaining());
        let mut piece = ReadBuf::new(&mut space[..most]);
        ready!(Pin::new(&mut this.stream).poll_read(cx, piece.unfilled()))?;
        let piece = piece.filled();
        this.head[this.read..this.read + piece.len()].copy_from_slice(piece);
        this.read += piece.len();
        if this.read == FRAME_HEAD {
            // Type SETTINGS, no ACK, stream 0 (RFC 9113 §6.5).
            let is_settings = matches!(this.head, [_, _, _, 4, flags, 0, 0, 0, 0] if flags & 1 == 0);
            if let Some(tell) = this.tell.take() {
                let _ = tell.send(is_settings);
            }
        }
        buf.put_slice(piece);
        Poll::Ready(Ok(()))
    }
}

impl<S: Write + Unpin> Write for FirstFrame<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
