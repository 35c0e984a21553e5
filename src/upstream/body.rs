//! The upstream's body on its way to us.
//!
//! It watches three things: that something comes within the idle limit (the timer runs only while our own poll of it
//! is pending, so a slow reader of ours is never blamed on the upstream), that the end is a whole one, and that the
//! observer is told exactly once. What the call holds (permits, slot) is freed when this body ends or is dropped.
//! The end of a 200 is looked at for an error in Flexport's envelope: it is passed on as it came, and judged as the
//! failure that it is.
//! A body that is read into memory has a limit in all besides: one that drips is never idle.

use crate::context::{AttemptObserver, AttemptOutcome, BodyEnd, Slot, WholeUntil};
use crate::flexport::envelope::Tail;
use crate::http::BodyError;
use crate::http::delivery::{Delivery, Doubt};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use prometheus_client::metrics::gauge::Gauge;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// See the module.
pub(crate) struct UpstreamBody {
    incoming: Incoming,
    idle: Duration,
    whole_until: Option<Arc<WholeUntil>>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Since when our poll of it is pending.
    waiting_since: Option<Instant>,
    /// The end of a body that may hold an error.
    tail: Option<Tail>,
    /// Taken when the end is known.
    watch: Option<Watch>,
}

/// What is told and freed at the end.
pub(crate) struct Watch {
    pub(crate) outcome: AttemptOutcome,
    pub(crate) observer: Option<Arc<dyn AttemptObserver>>,
    pub(crate) slot: Option<Slot>,
    pub(crate) in_flight: InFlight,
}

/// Counts a call of the upstream while it lives.
pub(crate) struct InFlight(Gauge);

// === impl InFlight ===

impl InFlight {
    pub(crate) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

// === impl Watch ===

impl Watch {
    /// Tells how the body ended, and frees what was held.
    fn end(self, body: BodyEnd) {
        let Self { outcome, observer, slot, in_flight } = self;
        if let Some(observer) = observer {
            observer.ended(AttemptOutcome { body, ..outcome });
        }
        drop((slot, in_flight));
    }
}

// === impl UpstreamBody ===

impl UpstreamBody {
    pub(crate) fn new(
        incoming: Incoming,
        idle: Duration,
        whole_until: Option<Arc<WholeUntil>>,
        tail: Option<Tail>,
        watch: Watch,
    ) -> Self {
        let mut body =
            Self { incoming, idle, whole_until, timer: None, waiting_since: None, tail, watch: Some(watch) };
        if body.incoming.is_end_stream() {
            body.end(BodyEnd::Complete);
        }
        body
    }

    /// Ready when nothing came within a limit.
    fn poll_limits(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let is_new = self.waiting_since.is_none();
        let idle_at = *self.waiting_since.get_or_insert_with(Instant::now) + self.idle;
        if is_new {
            self.arm(idle_at);
        }
        loop {
            let timer = self.timer.as_mut().expect("it was made when the waiting began");
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            match self.whole_until.as_ref().and_then(|until| until.get()) {
                Some(until) if until <= now => {
                    let what = "it was not whole within the time of the call";
                    return Poll::Ready(BodyError::Cut(what.to_owned()));
                }
                _ if idle_at <= now => return Poll::Ready(BodyError::Idle(self.idle)),
                // The timer ran for a limit that was lifted meanwhile.
                _ => self.arm(idle_at),
            }
        }
    }

    /// Sets the timer to that moment, or to the limit of the whole, where that is sooner.
    fn arm(&mut self, idle_at: Instant) {
        let whole_until = self.whole_until.as_ref().and_then(|until| until.get());
        let until = whole_until.map_or(idle_at, |whole| whole.min(idle_at));
        match &mut self.timer {
            Some(timer) => timer.as_mut().reset(until),
            None => self.timer = Some(Box::pin(tokio::time::sleep_until(until))),
        }
    }

    fn end(&mut self, how: BodyEnd) {
        if let Some(mut watch) = self.watch.take() {
            if how == BodyEnd::Complete
                && let Some(status) = self.tail.take().and_then(|tail| tail.status())
                && let Some(status) = http::StatusCode::from_u16(status).ok().filter(|it| it.as_u16() >= 500)
            {
                watch.outcome.delivery = Delivery::Ambiguous(Doubt::ServerError(status));
            }
            watch.end(how);
        }
    }
}

impl Drop for UpstreamBody {
    fn drop(&mut self) {
        self.end(BodyEnd::Abandoned);
    }
}

impl HttpBody for UpstreamBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        match Pin::new(&mut this.incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.waiting_since = None;
                if let (Some(tail), Some(data)) = (&mut this.tail, frame.data_ref()) {
                    tail.push(data);
                }
                if this.incoming.is_end_stream() {
                    this.end(BodyEnd::Complete);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.end(BodyEnd::Broken);
                Poll::Ready(Some(Err(BodyError::Cut(crate::http::body::chain(&error)))))
            }
            Poll::Ready(None) => {
                this.end(BodyEnd::Complete);
                Poll::Ready(None)
            }
            Poll::Pending => this.poll_limits(cx).map(|error| {
                this.end(BodyEnd::Broken);
                Some(Err(error))
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Body;
    use crate::http::delivery::{Class, Delivery};
    use http::Request;
    use http_body_util::BodyExt as _;
    use hyper::client::conn::http1;
    use hyper_util::rt::TokioIo;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    const IDLE: Duration = Duration::from_secs(60);

    /// A body of which two bytes are to come, and who sends them.
    async fn body(whole_until: &Arc<WholeUntil>) -> (UpstreamBody, DuplexStream) {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let (mut sender, connection) = http1::handshake::<_, Body>(TokioIo::new(ours)).await.unwrap();
        tokio::spawn(connection);
        let answer = async {
            let _ = theirs.read(&mut [0; 1024]).await.unwrap();
            theirs.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n").await.unwrap();
        };
        let (response, ()) = tokio::join!(sender.send_request(Request::new(Body::empty())), answer);
        let watch = Watch {
            outcome: AttemptOutcome {
                delivery: Delivery::Answered(Class::Success),
                head_after: Duration::ZERO,
                body: BodyEnd::Complete,
                retry_after: None,
            },
            observer: None,
            slot: None,
            in_flight: InFlight::new(&Gauge::default()),
        };
        (
            UpstreamBody::new(response.unwrap().into_body(), IDLE, Some(whole_until.clone()), None, watch),
            theirs,
        )
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_is_lifted_while_nothing_comes_cuts_nothing() {
        let whole_until = WholeUntil::new(Instant::now() + Duration::from_secs(5));
        let (mut body, mut theirs) = body(&whole_until).await;
        assert!(tokio::time::timeout(Duration::from_secs(1), body.frame()).await.is_err());
        whole_until.lift();
        assert!(tokio::time::timeout(Duration::from_secs(30), body.frame()).await.is_err());
        theirs.write_all(b"a").await.unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
        // From the last byte on it is idle, and no longer.
        let began = Instant::now();
        assert!(matches!(body.frame().await, Some(Err(BodyError::Idle(IDLE)))));
        assert_eq!(began.elapsed().as_secs(), IDLE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_holds_cuts_what_is_not_whole() {
        let whole_until = WholeUntil::new(Instant::now() + Duration::from_secs(5));
        let (mut body, _theirs) = body(&whole_until).await;
        assert!(matches!(body.frame().await, Some(Err(BodyError::Cut(_)))));
    }
}
