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
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// See the module.
pub(crate) struct UpstreamBody {
    incoming: Incoming,
    idle: Duration,
    whole_until: Option<Arc<WholeUntil>>,
    timer: Option<Pin<Box<Sleep>>>,
    is_waiting: bool,
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
            Self { incoming, idle, whole_until, timer: None, is_waiting: false, tail, watch: Some(watch) };
        if body.incoming.is_end_stream() {
            body.end(BodyEnd::Complete);
        }
        body
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
                this.is_waiting = false;
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
            Poll::Pending => {
                let whole_until = this.whole_until.as_ref().and_then(|until| until.get());
                if !this.is_waiting {
                    let idle_at = Instant::now() + this.idle;
                    let until = whole_until.map_or(idle_at, |whole| whole.min(idle_at));
                    match &mut this.timer {
                        Some(timer) => timer.as_mut().reset(until),
                        None => this.timer = Some(Box::pin(tokio::time::sleep_until(until))),
                    }
                    this.is_waiting = true;
                }
                let timer = this.timer.as_mut().expect("it was made when the waiting began");
                if timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                this.end(BodyEnd::Broken);
                Poll::Ready(Some(Err(match whole_until {
                    Some(until) if until <= Instant::now() => {
                        BodyError::Cut("it was not whole within the time of the call".to_owned())
                    }
                    _ => BodyError::Idle(this.idle),
                })))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
