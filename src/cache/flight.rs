//! One fill per key at a time.
//!
//! The first request of a key leads: it holds the fill as a [`Fill`], a future that it drives itself, so that the
//! common case costs no task and no switch of threads. When it leaves early (the caller hung up, or was served a
//! stale copy meanwhile), dropping the `Fill` moves the future into a task of its own, where it goes on to its end:
//! **a caller that leaves never kills a fill**. Requests that come meanwhile wait for the [`Flight`]'s outcome. A
//! long answer goes to the leader while it comes (see `fetch` and `flow`); the rest of its fill is a task from there on,
//! and those who wait get it whole.
//!
//! - A flight carries the [`Moment`] it began at. A request that finds a flight from before an invalidation of its
//!   names does not join it and starts its own, which takes the place in the map: read your writes.
//! - Whatever becomes of the fill (success, error, panic, shutdown), its [`Landing`] tells the waiters when it is
//!   dropped, and takes the flight out of the map if it is still the one there.
//! - What cannot be kept marks the key *hit-for-miss* for a while: then nobody waits for an answer that could not be
//!   shared anyway.

use super::entry::{Confirmed, Entry};
use super::invalidate::Moment;
use super::key::{Key, Places};
use super::policy::Facts;
use crate::error::ProxyError;
use crate::http::Body;
use crate::task::Tasks;
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

const SHARDS: usize = 32;
/// Keys of one shard that are marked hit-for-miss at once; above it, new ones are not marked.
const MISSES_PER_SHARD: usize = 2048;
/// How long a key stays marked.
const HIT_FOR_MISS: Duration = Duration::from_secs(60);
/// Waiters of one flight that may go on their own when it takes too long.
const IMPATIENT: u8 = 2;

/// What one fill is for: a key, asked with one credential. Another credential's refusal must not be shared.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct FlightKey {
    pub(crate) key: Key,
    pub(crate) token: u64,
}

/// What came of a fill, for all who waited.
#[derive(Clone)]
pub(crate) enum Outcome {
    /// A whole answer.
    Answer(Answer),
    /// No answer.
    Failed(ProxyError),
    /// An answer that only the leader can have: too long to be kept, or forbidden to be.
    Alone,
}

/// A whole answer of the upstream's.
#[derive(Clone)]
pub(crate) enum Answer {
    /// One that can be kept. `is_kept`: it is in the cache now; `is_confirmed`: a 304 renewed the copy we had.
    Entry { entry: Arc<Entry>, is_kept: bool, is_confirmed: bool },
    /// One that cannot.
    Passed(Arc<Passed>),
}

/// An answer that is passed on and not kept.
pub(crate) struct Passed {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// What the leader gets.
pub(crate) enum Led {
    Shared(Outcome),
    /// Not to be kept: what has come, then the rest.
    Streamed(Response<Body>),
    /// Its end has not come yet.
    Flowing(Box<Flowing>),
}

/// An answer that is on its way to the caller while the rest of it comes.
pub(crate) struct Flowing {
    pub(crate) response: Response<Body>,
    pub(crate) facts: Facts,
    /// When its head had come.
    pub(crate) came_at: Confirmed,
    /// Whether it will be kept, by all that is known before its end.
    pub(crate) is_kept: bool,
}

/// A fill under way.
pub(crate) struct Flight {
    began: Moment,
    outcome: OnceLock<Outcome>,
    landed: Notify,
    impatient: AtomicU8,
}

/// All fills under way.
pub(crate) struct Flights {
    shards: [Mutex<HashMap<FlightKey, Slot, Places>>; SHARDS],
}

enum Slot {
    Flying(Arc<Flight>),
    HitForMiss { until: Instant },
}

/// What a request has to do.
pub(crate) enum Role {
    /// Fetch, and tell.
    Lead(Landing),
    /// Wait.
    Join(Arc<Flight>),
    /// Fetch for itself.
    Alone,
}

/// The leader's duty to tell; done at the latest when it is dropped.
pub(crate) struct Landing {
    flights: Arc<Flights>,
    key: FlightKey,
    flight: Arc<Flight>,
}

/// A fill that outlives its driver.
pub(crate) struct Fill {
    future: Option<Pin<Box<dyn Future<Output = Led> + Send>>>,
    tasks: Tasks,
}

// === impl Flights ===

impl Flights {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { shards: std::array::from_fn(|_| Mutex::default()) })
    }

    /// Leads, joins or goes alone. `began` is now; `is_cut_off` tells whether a fill that began then may not
    /// be joined.
    pub(crate) fn enter(
        self: &Arc<Self>,
        key: FlightKey,
        now: Instant,
        began: Moment,
        is_cut_off: impl FnOnce(Moment) -> bool,
    ) -> Role {
        let mut shard = self.shard(&key);
        match shard.get(&key) {
            Some(Slot::Flying(flight)) if !is_cut_off(flight.began) => return Role::Join(flight.clone()),
            Some(Slot::HitForMiss { until }) if now < *until => return Role::Alone,
            _ => {}
        }
        let flight = Arc::new(Flight {
            began,
            outcome: OnceLock::new(),
            landed: Notify::new(),
            impatient: AtomicU8::new(0),
        });
        shard.insert(key, Slot::Flying(flight.clone()));
        Role::Lead(Landing { flights: self.clone(), key, flight })
    }

    /// Nobody waits for this key for a while.
    pub(crate) fn mark_hit_for_miss(&self, key: FlightKey, now: Instant) {
        let mut shard = self.shard(&key);
        if shard.len() >= MISSES_PER_SHARD {
            shard.retain(|_, slot| match slot {
                Slot::Flying(_) => true,
                Slot::HitForMiss { until } => now < *until,
            });
            if shard.len() >= MISSES_PER_SHARD {
                return;
            }
        }
        // A flight that took the place meanwhile keeps it.
        if !matches!(shard.get(&key), Some(Slot::Flying(_))) {
            shard.insert(key, Slot::HitForMiss { until: now + HIT_FOR_MISS });
        }
    }

    /// The key's answers can be kept again.
    pub(crate) fn unmark_hit_for_miss(&self, key: &FlightKey) {
        let mut shard = self.shard(key);
        if matches!(shard.get(key), Some(Slot::HitForMiss { .. })) {
            shard.remove(key);
        }
    }

    fn shard(&self, key: &FlightKey) -> MutexGuard<'_, HashMap<FlightKey, Slot, Places>> {
        self.shards[usize::from(key.key.0[1]) % SHARDS].lock().expect("no code panics with this lock held")
    }
}

// === impl Flight ===

impl Flight {
    /// Waits for the outcome.
    pub(crate) async fn landed(&self) -> Outcome {
        loop {
            let mut landed = std::pin::pin!(self.landed.notified());
            // Registered before the outcome is looked at, or its coming could be missed.
            landed.as_mut().enable();
            if let Some(outcome) = self.outcome.get() {
                return outcome.clone();
            }
            landed.await;
        }
    }

    /// Whether one more of the waiters may go on its own.
    pub(crate) fn may_leave(&self) -> bool {
        self.impatient
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| (left < IMPATIENT).then_some(left + 1))
            .is_ok()
    }
}

// === impl Landing ===

impl Landing {
    /// Tells the outcome.
    pub(crate) fn land(self, outcome: Outcome) {
        let _ = self.flight.outcome.set(outcome);
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        {
            let mut shard = self.flights.shard(&self.key);
            if let Some(Slot::Flying(flight)) = shard.get(&self.key)
                && Arc::ptr_eq(flight, &self.flight)
            {
                shard.remove(&self.key);
            }
        }
        self.flight.outcome.get_or_init(|| {
            let what = "the fetch that this request waited for did not come to its end";
            Outcome::Failed(ProxyError::Internal(what.to_owned()))
        });
        self.flight.landed.notify_waiters();
    }
}

// === impl Fill ===

impl Fill {
    pub(crate) fn new(future: impl Future<Output = Led> + Send + 'static, tasks: &Tasks) -> Self {
        Self { future: Some(Box::pin(future)), tasks: tasks.clone() }
    }
}

impl Future for Fill {
    type Output = Led;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Led> {
        // Taken out while it runs: one that panicked must not be driven again.
        let mut future = self.future.take().expect("a fill is not polled after its end");
        match future.as_mut().poll(cx) {
            Poll::Ready(led) => Poll::Ready(led),
            Poll::Pending => {
                self.future = Some(future);
                Poll::Pending
            }
        }
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        // Outside of a runtime (it is being torn down) the fill ends here, and its landing says so.
        if let Some(future) = self.future.take()
            && tokio::runtime::Handle::try_current().is_ok()
        {
            let stopped = self.tasks.cancelled();
            self.tasks.spawn("cache-fill", async move {
                drop(stopped.run_until_cancelled(future).await);
            });
        }
    }
}
