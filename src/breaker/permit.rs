//! The right to make a call, and the observer that carries it through the layers.
//!
//! A permit belongs to one breaker and one of its generations. It is not `Clone`: dropping it is what frees a probe's
//! slot and the place in a ramp, whatever ended the call. A call that was refused by something behind the breaker
//! drops its permits without an outcome, which counts as nothing.

use super::classify::{self, Verdict};
use super::load::Place;
use super::registry;
use super::scope::Scope;
use super::state;
use super::word::{Probe, Tally};
use crate::context::{AttemptObserver, AttemptOutcome, BodyEnd};
use crate::error::ProxyError;
use crate::http::delivery::{Delivery, Doubt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// One breaker's part in a call.
pub(super) struct Permit {
    pub(super) scope: &'static Scope,
    pub(super) generation: u32,
    /// Where it is counted as in flight.
    pub(super) place: Place,
    pub(super) kind: Kind,
}

/// What a permit's outcomes do.
pub(super) enum Kind {
    /// They are counted.
    Normal,
    /// They decide whether the breaker closes.
    Probe(Probe),
    /// Nothing: an active probe of a group that carries traffic, or a call that an override let through.
    Silent,
}

/// The permits of one call, told of its attempts. They are given back when it is dropped.
pub struct CallPermits {
    global: Permit,
    group: Option<Permit>,
    /// When the present attempt began, in milliseconds plus one; or one of the two below.
    attempt: AtomicU64,
}

/// A healthy body is not waited for longer than this: what has answered and goes on for so long is a success.
const HEALTHY_BODY: u64 = 5000;

/// A bucket of the window, in milliseconds, in which a tick more or less is no matter.
const LONG_BUCKET: u64 = 1000;

/// No attempt has begun.
const NONE: u64 = 0;
/// The last attempt has ended.
const ENDED: u64 = u64::MAX;

// === impl Permit ===

impl Permit {
    /// A probe's deadline runs from the start of its attempt.
    fn began(&self, now: u64) {
        if let Kind::Probe(probe) = &self.kind {
            let due = now.saturating_add(self.scope.tuning().probe_limit);
            self.scope.cell.renew(probe, due, Tally::Failure);
        }
    }

    /// The head is there: if the body goes on well, what the head says counts after a while.
    fn answered(&self, now: u64, verdict: Verdict) {
        let Kind::Probe(probe) = &self.kind else { return };
        let tally = match verdict {
            Verdict::Success => Tally::Success,
            Verdict::Answer => Tally::Neutral,
            // The end of the attempt, or its deadline, tells.
            Verdict::Slow | Verdict::Hung | Verdict::Failure { .. } | Verdict::Neutral => return,
        };
        self.scope.cell.renew(probe, now.saturating_add(HEALTHY_BODY), tally);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.scope.give_back(self);
    }
}

// === impl CallPermits ===

impl CallPermits {
    pub(super) fn new(global: Permit, group: Option<Permit>) -> Self {
        Self { global, group, attempt: AtomicU64::new(NONE) }
    }

    fn has_probe(&self) -> bool {
        let is_probe = |permit: &Permit| matches!(permit.kind, Kind::Probe(_));
        is_probe(&self.global) || self.group.as_ref().is_some_and(is_probe)
    }

    fn has_long_buckets(&self) -> bool {
        let is_long = |permit: &Permit| permit.scope.hot.bucket() >= LONG_BUCKET;
        is_long(&self.global) && self.group.as_ref().is_none_or(is_long)
    }

    /// What is slow is the group's to say: `global` judges no answers.
    fn slow(&self) -> Duration {
        self.group.as_ref().unwrap_or(&self.global).scope.hot.slow()
    }

    /// Counts the attempt that began then; nought when nobody said when. A healthy one is counted at the last tick, or
    /// at its own beginning when that was later, where the window's buckets are longer than ticks are apart: a look at
    /// the clock would be the most expensive part of it. What may move the machine is counted at its very moment.
    fn record(&self, began: u64, outcome: &AttemptOutcome) {
        let shared = &self.global.scope.shared;
        let slow = self.slow();
        let patience = self.group.as_ref().map_or(slow, |group| group.scope.patience.0.limit(slow));
        let verdicts = classify::judge(outcome, slow, patience);
        let is_routine = began > 0 && verdicts.are_healthy() && !self.has_probe() && self.has_long_buckets();
        let now = if is_routine { began.max(shared.ticked()) } else { shared.now() };
        self.global.scope.record(&self.global, verdicts.global, None, now);
        if let Some(group) = &self.group {
            if matches!(verdicts.group, Verdict::Success | Verdict::Slow) {
                group.scope.patience.0.learn(outcome.head_after);
            }
            group.scope.record(group, verdicts.group, outcome.retry_after, now);
        }
    }
}

impl AttemptObserver for CallPermits {
    #[inline]
    fn began_at(&self, at: Instant) {
        let shared = &self.global.scope.shared;
        let now = shared.at(at);
        self.attempt.store(now.saturating_add(1), Ordering::Release);
        if !self.has_probe() {
            return;
        }
        self.global.began(now);
        if let Some(group) = &self.group {
            group.began(now);
        }
    }

    fn answered(&self, delivery: Delivery, head_after: Duration) {
        // Only probes wait for it.
        if !self.has_probe() {
            return;
        }
        let shared = &self.global.scope.shared;
        let now = shared.now();
        let head = AttemptOutcome { delivery, head_after, body: BodyEnd::Complete, retry_after: None };
        let slow = self.slow();
        let verdicts = classify::judge(&head, slow, slow);
        self.global.answered(now, verdicts.global);
        if let Some(group) = &self.group {
            group.answered(now, verdicts.group);
        }
    }

    fn may_go_on(&self) -> Result<(), ProxyError> {
        let now = self.global.scope.shared.now();
        for permit in std::iter::once(&self.global).chain(&self.group) {
            permit
                .scope
                .still_admits(permit, now)
                .map_err(|refused| registry::refusal(permit.scope, refused))?;
        }
        Ok(())
    }

    #[inline]
    fn ended(&self, outcome: AttemptOutcome) {
        // Once per attempt; only whoever makes the attempt says so, so it need not be one step.
        let began = self.attempt.load(Ordering::Acquire);
        if began != ENDED {
            self.attempt.store(ENDED, Ordering::Release);
            self.record(began.saturating_sub(1), &outcome);
        }
    }
}

impl Drop for CallPermits {
    fn drop(&mut self) {
        let began = *self.attempt.get_mut();
        if began == NONE || began == ENDED {
            return;
        }
        // Nobody waited for the end of this attempt: the same as a caller that leaves.
        let now = self.global.scope.shared.now();
        let began = began.saturating_sub(1);
        self.record(
            began,
            &AttemptOutcome {
                delivery: Delivery::Ambiguous(Doubt::Cut),
                head_after: Duration::from_millis(state::elapsed(now, began)),
                body: BodyEnd::Abandoned,
                retry_after: None,
            },
        );
    }
}

impl std::fmt::Debug for CallPermits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CallPermits")
            .field("global", &self.global.scope.name)
            .field("group", &self.group.as_ref().map(|permit| &permit.scope.name))
            .finish_non_exhaustive()
    }
}
