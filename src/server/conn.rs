//! One connection's stream, with the time limits that depend on what the connection is doing.

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
    read_timer: Option<Pin<Box<Sleep>>>,
    read_deadline: Option<Instant>,
    write_timer: Option<Pin<Box<Sleep>>>,
    is_write_waiting: bool,
}

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
        read_timer: None,
        read_deadline: None,
        write_timer: None,
        is_write_waiting: false,
    })
}

// === impl Stream ===

impl Stream {
    pub(crate) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// When waiting for the client must end. `None` while requests are under way: their bodies have limits of
    /// their own.
    fn read_limit(&mut self) -> Option<(Instant, bool)> {
        if self.busy.load(Ordering::Relaxed) > 0 {
            self.was_busy = true;
            self.head_since = None;
            self.read_deadline = None;
            return None;
        }
        if self.was_busy {
            self.was_busy = false;
            self.head_since = None;
        }
        match (self.protocol, self.head_since) {
            (Protocol::Http1, Some(since)) => Some((since + self.timeouts.head, true)),
            (Protocol::Http1, None) | (Protocol::Http2, _) => {
                let deadline = *self.read_deadline.get_or_insert_with(|| Instant::now() + self.timeouts.idle);
                Some((deadline, false))
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
                // On HTTP/2 a read proves nothing: a peer that only answers pings is idle all the same.
                if this.protocol == Protocol::Http1 {
                    this.read_deadline = None;
                }
                if this.busy.load(Ordering::Relaxed) == 0 && (this.head_since.is_none() || this.was_busy) {
                    this.was_busy = false;
                    this.head_since = Some(Instant::now());
                }
                Poll::Ready(result)
            }
            Poll::Pending => {
                let Some((deadline, is_head)) = this.read_limit() else { return Poll::Pending };
                let timer =
                    this.read_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
                if timer.deadline() != deadline {
                    timer.as_mut().reset(deadline);
                }
                std::task::ready!(timer.as_mut().poll(cx));
                if is_head {
                    let message = "the request's head did not come in time";
                    Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)))
                } else {
                    // An idle connection ends as if the client had closed it: hyper then closes in good order.
                    Poll::Ready(Ok(()))
                }
            }
        }
    }
}

impl Stream {
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
        let poll = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.watch_write(cx, poll)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.watch_write(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.inner).poll_flush(cx);
        this.watch_write(cx, poll)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
