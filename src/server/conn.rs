//! One connection's stream, with the time limits that depend on what the connection is doing.
//!
//! hyper does not poll a read again that it knows to be pending, so the moment in which a connection becomes idle is
//! not seen here. The timer therefore always runs: one that comes too early looks again, and is set anew.
//!
//! The end lingers: a socket that is closed with something unread in it is reset, and the reset overtakes the answer
//! that says why (RFC 9112 §9.6).

use crate::http::interim::Interims;
use hyper::rt::ReadBufCursor;
use hyper_util::rt::TokioIo;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// The limits of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    pub(crate) first_byte: Duration,
    pub(crate) head: Duration,
    pub(crate) idle: Duration,
    pub(crate) write_idle: Duration,
}

/// How many requests of the connection are under way: shared with the service.
pub(crate) type Busy = Arc<AtomicU32>;

/// Which protocol the client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// See the module.
pub(crate) struct Stream {
    inner: TokioIo<TcpStream>,
    /// What was read to tell the protocol.
    prefix: Vec<u8>,
    prefix_at: usize,
    timeouts: Timeouts,
    busy: Busy,
    protocol: Protocol,
    /// When a head began that is not complete yet.
    head_since: Option<Instant>,
    was_busy: bool,
    /// When it was last of use.
    active_at: Instant,
    read_timer: Option<Pin<Box<Sleep>>>,
    write_timer: Option<Pin<Box<Sleep>>>,
    is_write_waiting: bool,
    /// Interim responses, where they are passed on.
    interims: Option<Interims>,
    /// Those that are being written.
    early: Vec<u8>,
    /// Whether hyper has given all of a message: only then may something of ours come before the next one.
    is_between: bool,
    /// Set when our side has ended.
    linger: Option<Pin<Box<Sleep>>>,
}

/// What is waited for while nothing comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// Requests are under way: their bodies have limits of their own.
    Busy,
    /// The rest of a head.
    Head,
    /// The next request.
    Idle,
}

/// How long what a client still sends is read and thrown away after our last word.
const LINGER: Duration = Duration::from_secs(1);

/// Reads until it is clear which protocol the client speaks. `None`: it left, or said nothing in time.
pub(crate) async fn sniff(mut stream: TcpStream, timeouts: Timeouts, busy: Busy) -> Option<Stream> {
    let mut prefix = Vec::new();
    let mut deadline = Instant::now() + timeouts.first_byte;
    let mut chunk = [0u8; PREFACE.len()];
    let protocol = loop {
        let left = PREFACE.len() - prefix.len();
        let count = tokio::time::timeout_at(deadline, stream.read(&mut chunk[..left])).await.ok()?.ok()?;
        if count == 0 {
            return None;
        }
        if prefix.is_empty() {
            deadline = Instant::now() + timeouts.head;
        }
        prefix.extend_from_slice(&chunk[..count]);
        if !PREFACE.starts_with(&prefix) {
            break Protocol::Http1;
        }
        if prefix.len() == PREFACE.len() {
            break Protocol::Http2;
        }
    };
    Some(Stream {
        inner: TokioIo::new(stream),
        prefix,
        prefix_at: 0,
        timeouts,
        busy,
        protocol,
        head_since: Some(Instant::now()),
        was_busy: false,
        active_at: Instant::now(),
        read_timer: None,
        write_timer: None,
        is_write_waiting: false,
        interims: None,
        early: Vec::new(),
        is_between: true,
        linger: None,
    })
}

// === impl Stream ===

impl Stream {
    pub(crate) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Passes on interim responses, which hyper's server cannot send: HTTP/1.1 only.
    pub(crate) fn pass_interims(&mut self) -> Interims {
        self.interims.get_or_insert_default().clone()
    }

    /// Writes interim responses, when nothing of another message is under way.
    fn poll_interims(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(interims) = &self.interims else { return Poll::Ready(Ok(())) };
        loop {
            // Not more than is being written: what nobody reads is not kept without end.
            if self.is_between && self.early.is_empty() {
                interims.take(&mut self.early, cx.waker());
            }
            if self.early.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let count =
                std::task::ready!(hyper::rt::Write::poll_write(Pin::new(&mut self.inner), cx, &self.early))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.early.drain(..count);
        }
    }

    /// When waiting for the client must end, or be looked at again.
    fn read_limit(&mut self) -> (Instant, Waiting) {
        if self.busy.load(Ordering::Relaxed) > 0 {
            self.was_busy = true;
            self.head_since = None;
            self.active_at = Instant::now();
            return (self.active_at + self.timeouts.idle, Waiting::Busy);
        }
        if self.was_busy {
            self.was_busy = false;
            self.head_since = None;
        }
        match (self.protocol, self.head_since) {
            (Protocol::Http1, Some(since)) => (since + self.timeouts.head, Waiting::Head),
            _ => (self.active_at + self.timeouts.idle, Waiting::Idle),
        }
    }

    /// Something was read or written. On HTTP/2 that proves nothing while no request is under way: a peer that only
    /// answers pings is idle all the same.
    fn touch(&mut self, now: Instant) {
        if self.protocol == Protocol::Http1 || self.busy.load(Ordering::Relaxed) > 0 {
            self.active_at = now;
        }
    }

    fn poll_read_limit(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A timer that runs wakes this task in any case; it is set anew when it comes too early.
        if self.busy.load(Ordering::Relaxed) > 0
            && self.read_timer.as_ref().is_some_and(|timer| !timer.is_elapsed())
        {
            self.was_busy = true;
            self.head_since = None;
            return Poll::Pending;
        }
        loop {
            let (deadline, waiting) = self.read_limit();
            let timer = self.read_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            if timer.is_elapsed() || timer.deadline() > deadline {
                timer.as_mut().reset(deadline);
            }
            std::task::ready!(timer.as_mut().poll(cx));
            match waiting {
                _ if Instant::now() < deadline => {}
                Waiting::Busy => {}
                Waiting::Head => {
                    let message = "the request's head did not come in time";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)));
                }
                // An idle connection ends as if the client had closed it: hyper then closes in good order.
                Waiting::Idle => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.prefix_at < this.prefix.len() {
            let rest = &this.prefix[this.prefix_at..];
            let count = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..count]);
            this.prefix_at += count;
            if this.prefix_at == this.prefix.len() {
                this.prefix = Vec::new();
                this.prefix_at = 0;
            }
            return Poll::Ready(Ok(()));
        }
        match Pin::new(&mut this.inner).poll_read(cx, buf) {
            Poll::Ready(result) => {
                let now = Instant::now();
                this.touch(now);
                if this.busy.load(Ordering::Relaxed) == 0 && (this.head_since.is_none() || this.was_busy) {
                    this.was_busy = false;
                    this.head_since = Some(now);
                }
                Poll::Ready(result)
            }
            Poll::Pending => this.poll_read_limit(cx),
        }
    }
}

impl Stream {
    /// Who is answered has sent its head.
    fn answered<T>(&mut self, poll: &Poll<T>) {
        if poll.is_ready() {
            self.touch(Instant::now());
            self.head_since = None;
        }
    }

    fn watch_write<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.is_write_waiting = false;
            return poll;
        }
        let deadline = Instant::now() + self.timeouts.write_idle;
        let timer = self.write_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if !self.is_write_waiting {
            timer.as_mut().reset(deadline);
            self.is_write_waiting = true;
        }
        std::task::ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing of its answer")))
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.interims.is_some() {
            let poll = this.poll_interims(cx);
            std::task::ready!(this.watch_write(cx, poll))?;
            this.is_between = false;
        }
        let poll = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.answered(&poll);
        this.watch_write(cx, poll)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.interims.is_some() {
            let poll = this.poll_interims(cx);
            std::task::ready!(this.watch_write(cx, poll))?;
            this.is_between = false;
        }
        let poll = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.answered(&poll);
        this.watch_write(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.interims.is_some() {
            // hyper flushes when it has given all that it has.
            this.is_between = true;
            let poll = this.poll_interims(cx);
            std::task::ready!(this.watch_write(cx, poll))?;
        }
        let poll = Pin::new(&mut this.inner).poll_flush(cx);
        this.watch_write(cx, poll)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            std::task::ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
        }
        let timer = this.linger.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        let mut scratch = [0u8; 4096];
        loop {
            let mut scratch = hyper::rt::ReadBuf::new(&mut scratch);
            match hyper::rt::Read::poll_read(Pin::new(&mut this.inner), cx, scratch.unfilled()) {
                Poll::Ready(Ok(())) if !scratch.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return timer.as_mut().poll(cx).map(Ok),
            }
            if timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}
