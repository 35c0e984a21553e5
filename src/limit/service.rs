//! The service: a call passes its gate, takes its slot, and its result teaches both.

use super::Moment;
use super::adaptive::Adaptive;
use super::gate::{Input, Rules, Verdict};
use super::gates::{Gates, Key, Place};
use super::lanes::Lanes;
use super::lesson::{self, Lesson};
use crate::clock::Clock;
use crate::config::raw;
use crate::context::{BoxFuture, Credential, Lane, Slot, SlotOwner, Tenancy, UpstreamRequest};
use crate::error::ProxyError;
use crate::flexport::routes::ByGroup;
use crate::http::delivery;
use crate::http::{Body, retry_after};
use crate::telemetry::{Metrics, ResultLabels};
use http::{HeaderMap, HeaderName, Response, StatusCode, header};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// Takes a slot for each call, behind the gate of its credential.
#[derive(Clone, Debug)]
pub struct Limit<S> {
    inner: S,
    shared: Arc<Shared>,
}

pin_project_lite::pin_project! {
    /// A call with its slot, or on its way to one. What need not wait is not boxed.
    #[project = Projected]
    pub enum Limited<F> {
        /// The gate was open and there was a slot.
        AtOnce { #[pin] inner: F, seen: Seen },
        /// One of them was not.
        Waiting { inner: BoxFuture<Result<Response<Body>, ProxyError>> },
    }
}

/// What the result of a call is held against.
#[derive(Debug)]
pub struct Seen {
    shared: Arc<Shared>,
    key: Key,
    /// Of the limiter, when it began.
    epoch: u32,
    /// Of the gates, when it began.
    episode: u64,
    is_hurried: bool,
    /// Whether the limiter would grow by its success.
    is_sample: bool,
}

/// What all calls share.
pub(super) struct Shared {
    origin: Instant,
    clock: Clock,
    hasher: RandomState,
    groups: ByGroup<usize>,
    lanes: Mutex<Lanes<oneshot::Sender<(u32, bool)>>>,
    /// Whether any gate has something to say.
    is_gated: AtomicBool,
    /// Counts the 429 that began something new.
    episodes: AtomicU64,
    gates: Mutex<Waits>,
    /// Credentials that are known to be proven, so that a success need not say so again.
    proven: [AtomicU64; PROVEN],
    counters: Counters,
}

#[derive(Default)]
struct Waits {
    gates: Gates,
    wakers: HashMap<u64, Arc<Notify>>,
    next: u64,
    swept: Moment,
}

struct Counters {
    limit: Gauge,
    waiting: Gauge,
    rate_waiting: Gauge,
    rate_limited: Counter,
    refused: [Counter; super::LANES],
    rate_refused: [Counter; super::LANES],
}

/// A call that waits for a slot. Dropped, it gives up its place, or the slot that it got just then.
struct PlaceForSlot<'a> {
    shared: &'a Shared,
    lane: Lane,
    group: usize,
    id: u64,
    is_done: bool,
}

/// A call that waits at a gate. Dropped, it gives up its place.
struct PlaceAtGate<'a> {
    shared: &'a Shared,
    place: Place,
    rules: Rules,
    lane: Lane,
    id: u64,
    is_done: bool,
}

const PROVEN: usize = 64;
/// How often gates that have nothing to say are forgotten.
const SWEEP: Duration = Duration::from_secs(1);
/// What a refused call is told at least.
const LEAST_RETRY: Duration = Duration::from_secs(1);

const REMAINING: [HeaderName; 2] =
    [HeaderName::from_static("ratelimit-remaining"), HeaderName::from_static("x-ratelimit-remaining")];
const RESET: [HeaderName; 2] =
    [HeaderName::from_static("ratelimit-reset"), HeaderName::from_static("x-ratelimit-reset")];

// === impl Limit ===

impl<S> Limit<S> {
    pub(super) fn new(inner: S, shared: Arc<Shared>) -> Self {
        Self { inner, shared }
    }
}

impl<S> tower::Service<UpstreamRequest> for Limit<S>
where
    S: tower::Service<UpstreamRequest, Response = Response<Body>, Error = ProxyError>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = ProxyError;
    type Future = Limited<S::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: UpstreamRequest) -> Self::Future {
        let shared = &self.shared;
        let call = &request.call;
        let key = shared.key(&call.credential);
        let rules = Rules::of(&call.config.settings.rate);
        let group = shared.groups.get(&call.route.group).copied().unwrap_or_default();
        if shared.may_pass(&rules)
            && let Some((slot, seen)) = shared.enter(call.lane, group, key, call.is_hurried)
        {
            request.call.slot = Some(slot);
            return Limited::AtOnce { inner: self.inner.call(request), seen };
        }
        let waited = wait(shared.clone(), self.inner.clone(), request, key, group, rules);
        Limited::Waiting { inner: Box::pin(waited) }
    }
}

/// Passes the gate and takes a slot, in time, and makes the call.
async fn wait<S>(
    shared: Arc<Shared>,
    mut inner: S,
    mut request: UpstreamRequest,
    key: Key,
    group: usize,
    rules: Rules,
) -> Result<Response<Body>, ProxyError>
where
    S: tower::Service<UpstreamRequest, Response = Response<Body>, Error = ProxyError>,
{
    let call = &mut request.call;
    let until = call.deadline.min(Instant::now() + *call.config.settings.limiter.max_wait);
    let (slot, seen) = loop {
        shared.pass(key, call.lane, &rules, until).await?;
        let taken = match shared.enter(call.lane, group, key, call.is_hurried) {
            Some(taken) => taken,
            None => shared.slot(call.lane, group, key, call.is_hurried, until).await?,
        };
        // The gate may have been shut while it waited for the slot.
        if shared.shut_for(key).is_none() {
            break taken;
        }
    };
    // The breaker may have opened meanwhile: what waited must not be a flood on what is ill.
    if let Some(observer) = &call.observer {
        observer.may_go_on()?;
    }
    call.slot = Some(slot);
    let result = inner.call(request).await;
    seen.note(&result);
    result
}

// === impl Limited ===

impl<F> Future for Limited<F>
where
    F: Future<Output = Result<Response<Body>, ProxyError>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        match self.project() {
            Projected::AtOnce { inner, seen } => {
                let result = std::task::ready!(inner.poll(cx));
                seen.note(&result);
                Poll::Ready(result)
            }
            Projected::Waiting { inner } => inner.as_mut().poll(cx),
        }
    }
}

// === impl Seen ===

impl Seen {
    /// What the result says to gate and limiter.
    fn note(&self, result: &Result<Response<Body>, ProxyError>) {
        let shared = &*self.shared;
        let of = result.as_ref().map(|response| (response.status(), response.headers()));
        match lesson::of(delivery::of(of), self.is_hurried) {
            Lesson::Limited => {
                if let Ok(response) = result {
                    shared.limited(self.key, self.episode, response.headers());
                }
                shared.congested(self.epoch);
            }
            Lesson::Congested => shared.congested(self.epoch),
            Lesson::Success => {
                if let Ok(response) = result {
                    shared.answered(self.key, self.episode, response);
                }
                if self.is_sample {
                    shared.succeeded();
                }
            }
            Lesson::Nothing => {}
        }
    }
}

// === impl Shared ===

impl Shared {
    pub(super) fn new(
        settings: &raw::Limiter,
        groups: &[Arc<str>],
        clock: Clock,
        metrics: &Metrics,
    ) -> Arc<Self> {
        let adaptive = Adaptive::new(settings.start, settings.min, settings.max);
        let places = |group: &Arc<str>| groups.iter().position(|other| other == group).unwrap_or_default();
        let counters = Counters::new(metrics);
        counters.limit.set(i64::from(adaptive.limit()));
        Arc::new(Self {
            origin: Instant::now(),
            clock,
            hasher: RandomState::new(),
            groups: ByGroup::new(groups, places),
            lanes: Mutex::new(Lanes::new(adaptive, groups.len())),
            is_gated: AtomicBool::new(false),
            episodes: AtomicU64::new(0),
            gates: Mutex::default(),
            proven: [const { AtomicU64::new(0) }; PROVEN],
            counters,
        })
    }

    fn now(&self) -> Moment {
        self.origin.elapsed()
    }

    fn key(&self, credential: &Credential) -> Key {
        match credential {
            Credential::None => Key { hash: 0, is_ours: true },
            Credential::Alias(name) => Key { hash: self.hasher.hash_one(name), is_ours: true },
            Credential::Passed(value) => Key { hash: self.hasher.hash_one(value.as_bytes()), is_ours: false },
        }
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes<oneshot::Sender<(u32, bool)>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // --- slots ---

    /// A slot, if there is one.
    fn enter(self: &Arc<Self>, lane: Lane, group: usize, key: Key, is_hurried: bool) -> Option<(Slot, Seen)> {
        let mut lanes = self.lanes();
        let epoch = lanes.enter(lane, group)?;
        let is_sample = lanes.wants_samples();
        drop(lanes);
        Some(self.taken(lane, group, key, is_hurried, epoch, is_sample))
    }

    fn taken(
        self: &Arc<Self>,
        lane: Lane,
        group: usize,
        key: Key,
        is_hurried: bool,
        epoch: u32,
        is_sample: bool,
    ) -> (Slot, Seen) {
        let tenancy = Tenancy { lane, group, key: key.hash, is_known: key.is_ours };
        let episode = self.episodes.load(Ordering::Acquire);
        let seen = Seen { shared: self.clone(), key, epoch, episode, is_hurried, is_sample };
        (Slot::new(self.clone(), tenancy), seen)
    }

    /// Waits for a slot.
    async fn slot(
        self: &Arc<Self>,
        lane: Lane,
        group: usize,
        key: Key,
        is_hurried: bool,
        until: Instant,
    ) -> Result<(Slot, Seen), ProxyError> {
        let (wake, woken) = oneshot::channel();
        let id = {
            let mut lanes = self.lanes();
            let id = lanes.wait(lane, group, wake);
            // Since the call asked, one may have become free.
            self.hand_out(&mut lanes);
            id
        };
        let mut place = PlaceForSlot { shared: self, lane, group, id, is_done: false };
        let Ok(Ok((epoch, is_sample))) = tokio::time::timeout_at(until, woken).await else {
            self.counters.refused[super::index(lane)].inc();
            return Err(ProxyError::Overloaded { what: "limiter.max" });
        };
        place.is_done = true;
        Ok(self.taken(lane, group, key, is_hurried, epoch, is_sample))
    }

    /// Gives what is free to those that wait.
    fn hand_out(&self, lanes: &mut Lanes<oneshot::Sender<(u32, bool)>>) {
        while let Some((wake, epoch)) = lanes.grant() {
            // Whoever gave up in this moment gives the slot back itself.
            let _ = wake.send((epoch, lanes.wants_samples()));
        }
        let waiting = i64::try_from(lanes.waiters()).unwrap_or(i64::MAX);
        self.counters.waiting.set(waiting);
    }

    fn leave(&self, lane: Lane, group: usize) {
        let mut lanes = self.lanes();
        lanes.leave(lane, group);
        if lanes.waiters() > 0 {
            self.hand_out(&mut lanes);
        }
    }

    fn succeeded(&self) {
        let mut lanes = self.lanes();
        lanes.succeeded();
        self.counters.limit.set(i64::from(lanes.limit()));
        if lanes.waiters() > 0 {
            self.hand_out(&mut lanes);
        }
    }

    fn congested(&self, epoch: u32) {
        let mut lanes = self.lanes();
        lanes.congested(epoch);
        self.counters.limit.set(i64::from(lanes.limit()));
    }

    // --- gates ---

    /// Whether there is nothing to ask: no gate was shut lately, and no rate is configured.
    fn may_pass(&self, rules: &Rules) -> bool {
        rules.interval.is_zero() && !self.is_gated.load(Ordering::Acquire)
    }

    /// How long the credential's gate is shut.
    fn shut_for(&self, key: Key) -> Option<Duration> {
        if !self.is_gated.load(Ordering::Acquire) {
            return None;
        }
        let now = self.now();
        self.waits().gates.shut_for(now, key)
    }

    /// Waits until the credential's gate lets the call through.
    async fn pass(&self, key: Key, lane: Lane, rules: &Rules, until: Instant) -> Result<(), ProxyError> {
        if self.may_pass(rules) {
            return Ok(());
        }
        let (place, id, mut verdict, notify) = self.arrive(key, lane, rules, until);
        let Some(notify) = notify else {
            return match verdict {
                Verdict::Refused(wait) => Err(self.refused(lane, wait)),
                Verdict::Go | Verdict::Noted | Verdict::Wait(_) => Ok(()),
            };
        };
        let mut place = PlaceAtGate { shared: self, place, rules: *rules, lane, id, is_done: false };
        loop {
            match verdict {
                Verdict::Go => {
                    place.is_done = true;
                    self.waits().wakers.remove(&id);
                    return Ok(());
                }
                Verdict::Refused(wait) => return Err(self.refused(lane, wait)),
                Verdict::Wait(at) => {
                    let at = at.map_or(until, |at| (self.origin + at).min(until));
                    let _ = tokio::time::timeout_at(at, notify.notified()).await;
                }
                Verdict::Noted => {}
            }
            verdict = self.step(place.place, rules, Input::Looks { id, lane });
            if verdict != Verdict::Go && Instant::now() >= until {
                let wait = self.shut_for(key).unwrap_or(LEAST_RETRY);
                return Err(self.refused(lane, wait));
            }
        }
    }

    fn arrive(
        &self,
        key: Key,
        lane: Lane,
        rules: &Rules,
        until: Instant,
    ) -> (Place, u64, Verdict, Option<Arc<Notify>>) {
        let now = self.now();
        let mut waits = self.waits();
        waits.next += 1;
        let id = waits.next;
        self.sweep(&mut waits, now);
        let place = waits.gates.place(now, key);
        if !rules.interval.is_zero() {
            self.is_gated.store(true, Ordering::Release);
        }
        let input = Input::Arrived { id, lane, until: until.saturating_duration_since(self.origin) };
        let verdict = self.step_in(&mut waits, now, place, rules, input);
        // Under the same lock, so that no call to look again is missed.
        let notify = matches!(verdict, Verdict::Wait(_)).then(|| waits.wakers.entry(id).or_default().clone());
        (place, id, verdict, notify)
    }

    fn step(&self, place: Place, rules: &Rules, input: Input) -> Verdict {
        let now = self.now();
        self.step_in(&mut self.waits(), now, place, rules, input)
    }

    fn step_in(&self, waits: &mut Waits, now: Moment, place: Place, rules: &Rules, input: Input) -> Verdict {
        let output = waits.gates.step(now, rules, place, input);
        if let Some(next) = output.wake.and_then(|id| waits.wakers.get(&id)) {
            next.notify_one();
        }
        let waiting = i64::try_from(waits.gates.waiting()).unwrap_or(i64::MAX);
        self.counters.rate_waiting.set(waiting);
        output.verdict
    }

    fn sweep(&self, waits: &mut Waits, now: Moment) {
        if now < waits.swept + SWEEP {
            return;
        }
        waits.swept = now;
        if waits.gates.sweep(now) == 0 {
            self.is_gated.store(false, Ordering::Release);
        }
    }

    fn refused(&self, lane: Lane, wait: Duration) -> ProxyError {
        self.counters.rate_refused[super::index(lane)].inc();
        ProxyError::RateLimited { retry_after: wait.max(LEAST_RETRY) }
    }

    /// A 429 came.
    fn limited(&self, key: Key, episode: u64, fields: &HeaderMap) {
        self.counters.rate_limited.inc();
        let wait =
            fields.get(header::RETRY_AFTER).and_then(|value| retry_after::parse(value, self.clock.now()));
        let now = self.now();
        let mut waits = self.waits();
        let place = waits.gates.place(now, key);
        let next = self.episodes.load(Ordering::Acquire) + 1;
        let input = Input::Limited { began: episode, next, wait, jitter: fastrand::f64() };
        waits.gates.step(now, &Rules::default(), place, input);
        self.episodes.store(next, Ordering::Release);
        self.is_gated.store(true, Ordering::Release);
    }

    /// An answer came that was not a 429.
    fn answered(&self, key: Key, episode: u64, response: &Response<Body>) {
        if !key.is_ours && (response.status().is_success() || response.status() == StatusCode::NOT_MODIFIED) {
            self.prove(key);
        }
        let told = told(response.headers(), self.clock);
        if told.is_none() && !self.is_gated.load(Ordering::Acquire) {
            return;
        }
        let now = self.now();
        let mut waits = self.waits();
        let place = waits.gates.place(now, key);
        if let Some((remaining, reset)) = told {
            let input = Input::Told { remaining, reset };
            self.step_in(&mut waits, now, place, &Rules::default(), input);
            self.is_gated.store(true, Ordering::Release);
        }
        self.step_in(&mut waits, now, place, &Rules::default(), Input::Answered { began: episode });
    }

    /// The upstream accepted the credential.
    fn prove(&self, key: Key) {
        let place = &self.proven[place_of(key.hash)];
        if place.load(Ordering::Relaxed) == key.hash {
            return;
        }
        let now = self.now();
        let others_are_forgotten = self.waits().gates.proven(now, key);
        if others_are_forgotten {
            self.proven.iter().for_each(|place| place.store(0, Ordering::Relaxed));
        }
        place.store(key.hash, Ordering::Relaxed);
    }
}

impl SlotOwner for Shared {
    fn may_leave(&self, tenancy: &Tenancy) -> Result<(), ProxyError> {
        match self.shut_for(Key { hash: tenancy.key, is_ours: tenancy.is_known }) {
            None => Ok(()),
            Some(wait) => Err(self.refused(tenancy.lane, wait)),
        }
    }

    fn give_back(&self, tenancy: &Tenancy) {
        self.leave(tenancy.lane, tenancy.group);
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

#[expect(clippy::cast_possible_truncation, reason = "its lowest bits")]
fn place_of(hash: u64) -> usize {
    hash as usize % PROVEN
}

/// What `RateLimit-Remaining` and `RateLimit-Reset` say, with and without `X-`. A reset above a day of seconds is a
/// moment in seconds since 1970, as some gateways send it.
fn told(fields: &HeaderMap, clock: Clock) -> Option<(u32, Duration)> {
    let number = |name: &HeaderName| fields.get(name)?.to_str().ok()?.trim().parse::<u64>().ok();
    let which = REMAINING.iter().position(|name| fields.contains_key(name))?;
    let remaining = number(&REMAINING[which])?;
    let mut reset = number(&RESET[which])?;
    if reset > 24 * 60 * 60 {
        reset = reset.saturating_sub(u64::try_from(clock.now().as_second()).ok()?);
    }
    Some((u32::try_from(remaining).unwrap_or(u32::MAX), Duration::from_secs(reset.min(24 * 60 * 60))))
}

// === impl Rules ===

impl Rules {
    fn of(settings: &raw::Rate) -> Self {
        if settings.per_second == 0 {
            return Self::default();
        }
        Self { interval: Duration::from_secs(1) / settings.per_second, burst: settings.burst }
    }
}

// === impl PlaceForSlot ===

impl Drop for PlaceForSlot<'_> {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        let mut lanes = self.shared.lanes();
        if !lanes.withdraw(self.lane, self.group, self.id) {
            lanes.leave(self.lane, self.group);
        }
        self.shared.hand_out(&mut lanes);
    }
}

// === impl PlaceAtGate ===

impl Drop for PlaceAtGate<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.shared.step(self.place, &self.rules, Input::Left { id: self.id, lane: self.lane });
            self.shared.waits().wakers.remove(&self.id);
        }
    }
}

// === impl Counters ===

impl Counters {
    fn new(metrics: &Metrics) -> Self {
        const NAMES: [&str; super::LANES] = ["probe", "live_read", "live_write", "refresh", "replay"];
        let of = |family: &prometheus_client::metrics::family::Family<ResultLabels, Counter>| {
            NAMES.map(|result| family.get_or_create(&ResultLabels { result }).clone())
        };
        Self {
            limit: metrics.limiter_limit.clone(),
            waiting: metrics.limiter_waiting.clone(),
            rate_waiting: metrics.rate_waiting.clone(),
            rate_limited: metrics.rate_limited.clone(),
            refused: of(&metrics.limiter_refused),
            rate_refused: of(&metrics.rate_refused),
        }
    }
}
