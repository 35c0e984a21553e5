//! The sockets: a listener that can really go away, and connections that can really be cut.
//!
//! `refuse` drops the listening socket, at once and within the call that asks for it, so that a connect after it
//! gets ECONNREFUSED; a socket that is bound but does not listen keeps the port meanwhile. A cut waits until what
//! was already answered has left for the peer, then resets (`SO_LINGER` 0) or closes. Over h2 a cut ends the whole
//! connection, as it does over HTTP/1.1: it is the connection that breaks.

use std::future::Future as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

use super::lock;

/// Between the last byte that was sent and a reset: a reset discards what the peer has not read yet.
pub(super) const GRACE: Duration = Duration::from_millis(25);

const BACKLOG: i32 = 1024;

/// What a server says that speaks something else.
const GARBAGE: &[u8] = b"\x00\x01\xfe\xffSSH-2.0-no http here\r\n\x7f\r\n\r\n";

/// A listener that can be closed and opened again on the same port.
#[derive(Debug)]
pub(super) struct Gate {
    addr: SocketAddr,
    state: Mutex<GateState>,
}

#[derive(Debug)]
struct GateState {
    socket: Listening,
    /// Who waits for connections; woken when the gate opens.
    waker: Option<Waker>,
}

#[derive(Debug)]
enum Listening {
    Open(TcpListener),
    /// Bound without listening, so that nobody takes the port; `None` when that did not succeed.
    Closed(Option<Socket>),
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum End {
    Close = 1,
    Reset = 2,
}

/// What the requests of a connection can do to it.
#[derive(Debug, Default)]
pub(super) struct Conn {
    /// How the socket is to be dropped; 0 is as usual.
    end: AtomicU8,
    /// An end that waits for the next flush.
    armed: AtomicU8,
    ended: Notify,
    /// The control API was called by it; a refusal lets such calls finish.
    is_controlled: AtomicBool,
    /// What is written next is replaced by [`GARBAGE`], and the connection ends.
    is_garbled: AtomicBool,
}

/// A connection's socket, which obeys its [`Conn`].
#[derive(Debug)]
pub(super) struct Io {
    stream: TcpStream,
    conn: Arc<Conn>,
    /// [`GARBAGE`] was written; whatever else is, is swallowed.
    has_babbled: bool,
}

/// An answer's body: whole, in drops, or cut after its first part.
#[derive(Debug)]
pub(super) enum Body {
    Whole(Option<Bytes>),
    Drip { rest: Bytes, size: usize, every: Duration, next: Pin<Box<Sleep>> },
    Cut { first: Option<Bytes>, end: End, conn: Arc<Conn> },
}

// === impl Gate ===

impl Gate {
    /// Opens a listener; port 0 takes any.
    pub(super) fn bind(addr: SocketAddr) -> io::Result<Self> {
        let listener = listen(bind(addr)?)?;
        let addr = listener.local_addr()?;
        Ok(Self { addr, state: Mutex::new(GateState { socket: Listening::Open(listener), waker: None }) })
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The next connection; waits while the gate is closed.
    pub(super) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<TcpStream>> {
        let mut state = self.lock();
        if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            state.waker = Some(cx.waker().clone());
        }
        match &state.socket {
            Listening::Open(listener) => listener.poll_accept(cx).map_ok(|(stream, _)| stream),
            Listening::Closed(_) => Poll::Pending,
        }
    }

    /// Stops listening; whether it was listening.
    pub(super) fn close(&self) -> bool {
        let mut state = self.lock();
        if matches!(state.socket, Listening::Closed(_)) {
            return false;
        }
        // First gone, then bound anew: two sockets cannot have the port while one listens.
        state.socket = Listening::Closed(None);
        state.socket = Listening::Closed(bind(self.addr).ok());
        true
    }

    /// Listens again.
    pub(super) fn open(&self) -> io::Result<()> {
        let mut state = self.lock();
        let Listening::Closed(kept) = &mut state.socket else {
            return Ok(());
        };
        let socket = match kept.take() {
            Some(socket) => socket,
            None => bind(self.addr)?,
        };
        state.socket = Listening::Open(listen(socket)?);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        lock(&self.state)
    }
}

fn bind(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

fn listen(socket: Socket) -> io::Result<TcpListener> {
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

// === impl Conn ===

impl Conn {
    /// Ends the connection now.
    pub(super) fn end(&self, end: End) {
        self.end.store(end as u8, Ordering::Release);
        self.ended.notify_one();
    }

    /// Ends the connection once what was written has left.
    fn arm(&self, end: End) {
        self.armed.store(end as u8, Ordering::Release);
    }

    /// Waits until the connection is to end.
    pub(super) async fn ended(&self) {
        self.ended.notified().await;
        if self.armed.load(Ordering::Acquire) == End::Reset as u8 {
            tokio::time::sleep(GRACE).await;
        }
    }

    /// The next answer is no HTTP, after which the connection ends.
    pub(super) fn garble(&self) {
        self.is_garbled.store(true, Ordering::Release);
        self.arm(End::Close);
    }

    pub(super) fn is_controlled(&self) -> bool {
        self.is_controlled.load(Ordering::Acquire)
    }

    pub(super) fn mark_controlled(&self) {
        self.is_controlled.store(true, Ordering::Release);
    }
}

// === impl Io ===

impl Io {
    pub(super) fn new(stream: TcpStream, conn: Arc<Conn>) -> Self {
        Self { stream, conn, has_babbled: false }
    }

    /// Writes the garbage, once.
    fn babble(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.has_babbled {
            // That not all of it may fit does no harm: it is garbage.
            ready!(Pin::new(&mut self.stream).poll_write(cx, GARBAGE))?;
            self.has_babbled = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        if self.conn.end.load(Ordering::Acquire) == End::Reset as u8 {
            // An error means that the peer has already gone.
            let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.conn.is_garbled.load(Ordering::Acquire) {
            return self.babble(cx).map_ok(|()| bytes.len());
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.conn.is_garbled.load(Ordering::Acquire) {
            let length = slices.iter().map(|slice| slice.len()).sum();
            return self.babble(cx).map_ok(|()| length);
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        match self.conn.armed.load(Ordering::Acquire) {
            0 => {}
            end if end == End::Reset as u8 => self.conn.end(End::Reset),
            _ => self.conn.end(End::Close),
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

// === impl Body ===

impl Body {
    /// A body that comes in drops of a size, the first at once.
    pub(super) fn drip(rest: Bytes, size: usize, every: Duration) -> Self {
        Self::Drip { rest, size, every, next: Box::pin(tokio::time::sleep(Duration::ZERO)) }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Drip { rest, .. } if rest.is_empty() => Poll::Ready(None),
            Self::Drip { rest, size, every, next } => {
                ready!(next.as_mut().poll(cx));
                next.as_mut().reset(Instant::now() + *every);
                let drop = rest.split_to((*size).min(rest.len()));
                Poll::Ready(Some(Ok(Frame::data(drop))))
            }
            Self::Cut { first, end, conn } => {
                if let Some(bytes) = first.take() {
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                // Nobody wakes this body again: the flush that follows ends the connection.
                conn.arm(*end);
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Drip { rest, .. } => SizeHint::with_exact(rest.len() as u64),
            Self::Cut { .. } => SizeHint::default(),
        }
    }
}
