//! All breakers: `global`, and `<group>:read` and `<group>:write` of each group of the route table. None is ever
//! added, so an unknown name is an answer and not a new breaker; and none is taken away before the process ends, so that
//! permits point to them without counting.
//!
//! Admission takes `global` first and then the group's, once per call. What makes something new is kept back in a
//! known outage of the reads or of `global`, although its own breaker may still be closed: the first bookings of an
//! outage would otherwise be those whose outcome nobody knows.
//!
//! Overrides are changed one at a time, in a task of their own: made durable, then entered in the book, then put into
//! force. An operator who hangs up in between leaves no half of that.

use super::overrides::{self, Book, Kept, Override, OverrideError, REASON_MOST};
use super::permit::CallPermits;
use super::scope::{Ask, Refusal, Scope, ScopeStatus, Shared};
use super::state::{self, Role, Tuning};
use super::window::Counts;
use super::word::{At, Mode, State};
use crate::clock::{self, Clock};
use crate::config::raw;
use crate::context::{Call, GroupHealth, Lane};
use crate::error::ProxyError;
use crate::event::{self, Kind as EventKind};
use crate::flexport::routes::ByGroup;
use crate::flexport::routes::WriteClass;
use crate::telemetry::Metrics;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// The breakers of a process.
pub struct Breakers {
    shared: Arc<Shared>,
    global: &'static Scope,
    groups: ByGroup<Group>,
    /// In the order in which they are listed.
    all: Vec<&'static Scope>,
    path: Option<PathBuf>,
    book: Mutex<Book>,
    /// Which scopes are out, as the file has it.
    written_open: Mutex<BTreeSet<String>>,
    /// Overrides are changed one at a time.
    turn: tokio::sync::Mutex<()>,
    /// Why the overrides of an earlier run are not in force.
    alarm: Option<String>,
    /// Whether replays that make something new wait for the end of the start.
    holds_replayed_creates: AtomicBool,
}

struct Group {
    read: &'static Scope,
    write: &'static Scope,
}

/// A change of overrides.
struct Change {
    scopes: Vec<&'static Scope>,
    /// `None`: back to auto.
    set: Option<Setting>,
    reason: String,
    actor: String,
}

#[derive(Clone, Copy)]
struct Setting {
    mode: Mode,
    ttl: Option<Duration>,
}

/// All scopes, where overrides are changed.
pub const ALL: &str = "all";
const GLOBAL: &str = "global";
/// How long a replay waits that came before the end of the start.
const STARTING: Duration = Duration::from_millis(100);
/// The least time between two questions of a call that waits for room in a ramp.
const ASK_AGAIN: Duration = Duration::from_millis(5);
/// After how long the file is tidied again when that failed.
const TIDY_AGAIN: Duration = Duration::from_secs(5);

// === impl Breakers ===

impl Breakers {
    /// Breakers for these groups. The overrides of an earlier run are read from the path, and without one are kept
    /// in memory only.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a different part of the world; called in one place"
    )]
    pub fn new(
        settings: &raw::Breaker,
        limiter_max: u32,
        attempt_limit: Duration,
        groups: &[Arc<str>],
        overrides_path: Option<PathBuf>,
        clock: Clock,
        metrics: &Metrics,
        bus: event::Bus,
    ) -> Arc<Self> {
        let shared = Arc::new(Shared::new(clock, bus));
        let scope = |name: String, role, reads| {
            let tuning = Tuning::of(&name, role, settings, limiter_max, attempt_limit);
            // Never given back: a permit points to it, and to count who does would be two atomic steps more for each
            // call, on a line that all threads want.
            &*Box::leak(Box::new(Scope::new(Arc::from(name), role, tuning, reads, shared.clone(), metrics)))
        };
        let global = scope(GLOBAL.to_owned(), Role::Global, None);
        let mut all = vec![global];
        let groups = ByGroup::new(groups, |group| {
            let read = scope(format!("{group}:read"), Role::Read, None);
            let write = scope(format!("{group}:write"), Role::Write, Some(read));
            Group { read, write }
        });
        all.extend(groups.values().flat_map(|group| [group.read, group.write]));
        let (Kept { overrides: book, open }, alarm) = match overrides_path.as_deref().map(overrides::load) {
            Some(Ok(kept)) => (kept, None),
            Some(Err(problem)) => (Kept::default(), Some(problem)),
            None => (Kept::default(), None),
        };
        let breakers = Self {
            shared,
            global,
            groups,
            all,
            path: overrides_path,
            book: Mutex::new(book),
            written_open: Mutex::new(open.clone()),
            turn: tokio::sync::Mutex::new(()),
            alarm: alarm.map(|problem| {
                format!("the overrides file cannot be read, so every breaker is on auto: {problem}")
            }),
            holds_replayed_creates: AtomicBool::new(false),
        };
        let now = breakers.shared.now();
        for scope in open.iter().filter_map(|name| breakers.get_scope(name)) {
            scope.begin_half_open(now);
            tracing::info!(scope = %scope.name, "it was out when the last run ended: it is tried first");
        }
        breakers.enforce_book();
        if let Some(message) = &breakers.alarm {
            tracing::error!(%message, "breaker overrides are lost");
            let what = "breaker_overrides".to_owned();
            breakers.shared.bus.tell(EventKind::Alarm { what, message: message.clone() });
        }
        Arc::new(breakers)
    }

    /// Puts the overrides of an earlier run into force.
    fn enforce_book(&self) {
        let (now, wall) = (self.shared.now(), self.shared.clock.now());
        for (name, forced) in &*self.book() {
            let Some(scope) = self.get_scope(name) else {
                tracing::warn!(scope = %name, "an override of a breaker that does not exist is kept, without effect");
                continue;
            };
            if forced.is_over(wall) {
                self.shared.is_untidy.store(true, Ordering::Release);
                if forced.mode == Mode::ForcedOpen {
                    scope.begin_half_open(now);
                }
            } else {
                let until = forced.until.map(|until| now + state::millis(clock::since(until, wall)));
                scope.force(forced.mode, until, now, &forced.told());
            }
        }
    }

    /// Why the overrides of an earlier run are not in force, if they are not.
    pub fn alarm(&self) -> Option<&str> {
        self.alarm.as_deref()
    }

    /// Keeps back all replays that make something new, until [`Breakers::release_replayed_creates`].
    pub fn hold_replayed_creates(&self) {
        self.holds_replayed_creates.store(true, Ordering::Release);
    }

    /// Lets them go on, but in these groups only when reads have succeeded: their reads begin half-open, because
    /// what waits there says that an outage was known when the last run ended. A first booking on an upstream that
    /// is still ill would be one whose outcome nobody knows.
    pub fn release_replayed_creates(&self, in_doubt: &[Arc<str>]) {
        let now = self.shared.now();
        for scope in in_doubt.iter().filter_map(|group| Some(&self.groups.get(group)?.read)) {
            if scope.mode() == Mode::Auto && scope.state() == State::Closed {
                scope.begin_half_open(now);
                tracing::info!(scope = %scope.name, "creates wait from an earlier run: reads are tried first");
            }
        }
        self.holds_replayed_creates.store(false, Ordering::Release);
        self.shared.changes.send_modify(|count| *count += 1);
    }

    // --- the hot path ---

    /// Asks for the permits of a call.
    #[inline]
    pub fn admit(&self, call: &Call) -> Result<CallPermits, ProxyError> {
        self.admit_as(call, false)
    }

    // What comes out of it is large enough for its moves to be seen.
    #[inline]
    fn admit_as(&self, call: &Call, has_queued: bool) -> Result<CallPermits, ProxyError> {
        let ask = Ask {
            creates: !call.is_read && call.route.queue.class.is_some_and(WriteClass::creates),
            is_active_probe: call.lane == Lane::Probe,
            has_queued,
        };
        let group = self.groups.get(&call.route.group);
        if ask.creates && call.lane == Lane::Replay && self.holds_replayed_creates.load(Ordering::Acquire) {
            return Err(refusal(self.global, Refusal::Open(STARTING)));
        }
        if let Some(scope) = group.and_then(|group| self.keeps_creates(group, ask)) {
            scope.count_refusal();
            return Err(refusal(scope, Refusal::Open(scope.retry_hint(self.shared.now()))));
        }
        let global = self.global.admit(ask).map_err(|refused| refusal(self.global, refused))?;
        let permit = group.map(|group| {
            let scope = if call.is_read { group.read } else { group.write };
            // On a refusal the permit of `global` is dropped: neutral.
            scope.admit(ask).map_err(|refused| refusal(scope, refused))
        });
        Ok(CallPermits::new(global, permit.transpose()?))
    }

    /// The same for a call that a ramp had no room for: waits, in the order of arrival, until there is some, for as
    /// long as a call may wait for a slot and within its deadline.
    pub(super) async fn admit_in_turn(&self, call: &Call) -> Result<CallPermits, ProxyError> {
        let until = call.deadline.min(Instant::now() + *call.config.settings.limiter.max_wait);
        let group = self.groups.get(&call.route.group);
        let scope = group.map_or(self.global, |group| if call.is_read { group.read } else { group.write });
        let full = if self.global.state() == State::Ramping { self.global } else { scope };
        let place = full.queue_up();
        loop {
            let woken = place.room();
            let mut woken = std::pin::pin!(woken);
            woken.as_mut().enable();
            match self.admit_as(call, true) {
                Err(ProxyError::Overloaded { .. }) if Instant::now() < until => {}
                result => return result,
            }
            let _ = tokio::time::timeout_at(until, woken).await;
            // Two breakers may have no room in turn, each giving back what the other refuses: never in a circle.
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// The breaker whose outage keeps back what makes something new; none when an operator keeps the writes closed.
    /// As a probe of its own breaker it is judged by that one, which asks the reads itself; but never is it the one
    /// that tries the way to Flexport: reads and active probes do that.
    fn keeps_creates(&self, group: &Group, ask: Ask) -> Option<&'static Scope> {
        if !ask.creates || group.write.mode() != Mode::Auto {
            return None;
        }
        if self.global.is_out() {
            return Some(self.global);
        }
        (!group.write.is_out() && group.read.is_out()).then_some(group.read)
    }

    /// Whether a call would be admitted now, without taking a permit; if not, when to ask again.
    pub fn would_admit(&self, group: &str, is_read: bool, creates: bool) -> Result<(), Duration> {
        let now = self.shared.now();
        let ask = Ask { creates: creates && !is_read, is_active_probe: false, has_queued: false };
        let group = self.groups.get(group);
        if let Some(scope) = group.and_then(|group| self.keeps_creates(group, ask)) {
            return Err(scope.retry_hint(now));
        }
        self.global.peek(now, ask)?;
        group.map_or(Ok(()), |group| {
            let scope = if is_read { group.read } else { group.write };
            scope.peek(now, ask)
        })
    }

    /// Whether traffic of this call's scope flows: both its breakers are closed, or ramping.
    pub fn is_flowing(&self, call: &Call) -> bool {
        let flows = |scope: &Scope| match scope.state() {
            State::Closed | State::Ramping => scope.mode() != Mode::ForcedOpen,
            State::Open | State::HalfOpen => false,
        };
        let group = self.groups.get(&call.route.group);
        flows(self.global)
            && group.is_none_or(|group| flows(if call.is_read { group.read } else { group.write }))
    }

    /// Whether reads of the group have failed just now or are held back: who has a stale copy should not wait long.
    pub fn shows_failures(&self, group: &str) -> bool {
        let now = self.shared.now();
        self.global.state() != State::Closed
            || self.global.mode() == Mode::ForcedOpen
            || self.groups.get(group).is_some_and(|group| group.read.shows_failures(now))
    }

    /// Whether a probe read of the group would help a breaker to close. It would not where an operator forced one of
    /// them open, nor where only the writes are not well: what these still need is a write.
    pub fn needs_probe(&self, group: &str) -> bool {
        let now = self.shared.now();
        let Some(group) = self.groups.get(group) else { return false };
        let is_forced_open = |scope: &Scope| scope.mode() == Mode::ForcedOpen;
        !is_forced_open(self.global)
            && !is_forced_open(group.read)
            && (self.global.wants_probe(now) || group.read.wants_probe(now))
    }

    /// Counts transitions and changes of overrides: who waits for a breaker waits for this.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    // --- housekeeping ---

    /// What happens by time alone: overrides end, waits end, probes are overdue, ramps end. To be called about every
    /// 250 ms; admission does the same for itself in between.
    pub fn tick(self: &Arc<Self>, now: Instant) {
        let now = self.shared.at(now);
        self.shared.tick(now);
        self.all.iter().for_each(|scope| scope.tick(now));
        for scope in self.all.iter().filter(|scope| scope.ends_soon(now)) {
            self.tell_end(scope);
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current()
            && self.shared.is_untidy.swap(false, Ordering::AcqRel)
        {
            let this = self.clone();
            // What was forced open and is over would be taken for an outage by the next start.
            runtime.spawn(async move {
                if let Err(error) = this.commit(Change::nothing()).await {
                    tracing::warn!(%error, "the overrides file is not up to date");
                    tokio::time::sleep(TIDY_AGAIN).await;
                    this.shared.is_untidy.store(true, Ordering::Release);
                }
            });
        }
        self.look_everywhere(now);
    }

    fn tell_end(&self, scope: &Scope) {
        let Some(forced) = self.book().get(&*scope.name).cloned() else { return };
        let Some(until) = forced.until else { return };
        tracing::warn!(
            scope = %scope.name, mode = forced.mode.as_str(), %until, reason = forced.reason, actor = forced.actor,
            "breaker override ends soon; set it again to keep it"
        );
        self.shared.bus.tell(EventKind::OverrideEnds {
            scope: scope.name.to_string(),
            mode: forced.mode.as_str().to_owned(),
            until,
            reason: forced.told(),
        });
    }

    /// Opens `global` when most calls of several groups fail: then it is not one group that is ill.
    fn look_everywhere(&self, now: At) {
        let word = self.global.word();
        if word.state() != State::Closed || word.mode() == Mode::ForcedOpen {
            return;
        }
        let (mut failing, mut sum) = (0, Counts::default());
        for group in self.groups.values() {
            let mut failures = 0;
            for scope in [group.read, group.write] {
                let counts = scope.counts(now);
                sum.calls = sum.calls.saturating_add(counts.calls);
                failures += counts.failures;
            }
            sum.failures += failures;
            failing += u32::from(failures > 0);
        }
        let Some(cause) = state::trips_everywhere(failing, sum) else { return };
        // What had been counted before `global` closed has had its effect.
        let since = self.global.since();
        let longest = self.all.iter().map(|scope| scope.tuning().window()).max().unwrap_or_default();
        if since <= 1 || state::elapsed(now, since) >= longest {
            self.global.trip(word, now, cause);
        }
    }

    /// Puts other settings into force; states and overrides stay as they are.
    pub fn reconfigure(&self, settings: &raw::Breaker, limiter_max: u32, attempt_limit: Duration) {
        self.all.iter().for_each(|scope| scope.tune(settings, limiter_max, attempt_limit));
    }

    // --- operators ---

    /// All breakers, `global` first.
    pub fn list(&self) -> Vec<ScopeStatus> {
        let book = self.book().clone();
        self.all.iter().map(|scope| self.status(scope, &book)).collect()
    }

    /// One breaker; `None` when there is none of this name.
    pub fn get(&self, scope: &str) -> Option<ScopeStatus> {
        let book = self.book().clone();
        self.get_scope(scope).map(|scope| self.status(scope, &book))
    }

    fn status(&self, scope: &Scope, book: &Book) -> ScopeStatus {
        let mode = scope.mode();
        // An override that is over is off before it is out of the book.
        let forced = book.get(&*scope.name).filter(|forced| forced.mode == mode).cloned();
        scope.status(self.shared.now(), forced)
    }

    fn get_scope(&self, name: &str) -> Option<&'static Scope> {
        self.all.iter().copied().find(|scope| &*scope.name == name)
    }

    /// Sets the override of a scope or of `all`; durable when it returns. `ttl: None` is for ever. `auto` clears.
    /// The status of each scope that it is for, as it is after it, or with `dry_run` as it would be.
    pub async fn set_override(
        self: &Arc<Self>,
        scope: &str,
        mode: Mode,
        reason: &str,
        ttl: Option<Duration>,
        actor: &str,
        dry_run: bool,
    ) -> Result<Vec<ScopeStatus>, OverrideError> {
        let reason = reason.trim();
        if reason.is_empty() || reason.chars().count() > REASON_MOST {
            return Err(OverrideError::Reason);
        }
        let set = match mode {
            Mode::Auto => None,
            mode @ (Mode::Observe | Mode::ForcedClosed | Mode::ForcedOpen) => Some(Setting { mode, ttl }),
        };
        self.change(scope, set, reason, actor, dry_run).await
    }

    /// Takes the override of a scope or of `all` away; durable when it returns. What was forced open is probed first.
    pub async fn clear_override(
        self: &Arc<Self>,
        scope: &str,
        reason: Option<&str>,
        actor: &str,
        dry_run: bool,
    ) -> Result<Vec<ScopeStatus>, OverrideError> {
        let reason = reason.unwrap_or_default().trim();
        if reason.chars().count() > REASON_MOST {
            return Err(OverrideError::Reason);
        }
        self.change(scope, None, reason, actor, dry_run).await
    }

    async fn change(
        self: &Arc<Self>,
        scope: &str,
        set: Option<Setting>,
        reason: &str,
        actor: &str,
        dry_run: bool,
    ) -> Result<Vec<ScopeStatus>, OverrideError> {
        let scopes = if scope == ALL {
            self.all.clone()
        } else {
            let scope = self.get_scope(scope).ok_or_else(|| OverrideError::UnknownScope(scope.to_owned()))?;
            vec![scope]
        };
        let change = Change { scopes, set, reason: reason.to_owned(), actor: actor.to_owned() };
        if dry_run {
            let mut book = self.book().clone();
            change.enter(&mut book, self.shared.clock.now());
            let now = self.shared.now();
            let after = |scope: &Scope| scope.status_after(now, book.get(&*scope.name).cloned());
            return Ok(change.scopes.iter().copied().map(after).collect());
        }
        // A task of its own: it comes to its end whoever still waits for it.
        let this = self.clone();
        tokio::spawn(async move { this.commit(change).await })
            .await
            .map_err(|error| OverrideError::NotDurable(error.to_string()))?
    }

    async fn commit(&self, change: Change) -> Result<Vec<ScopeStatus>, OverrideError> {
        let _turn = self.turn.lock().await;
        let before = self.book().clone();
        let mut book = before.clone();
        let wall = self.shared.clock.now();
        // By name: their time is over on the clock that lifted them, and perhaps not yet on the wall's.
        let lifted: Vec<_> = self.all.iter().filter(|scope| scope.take_lifted()).collect();
        for scope in &lifted {
            book.remove(&*scope.name);
        }
        // What is in force stays, although the wall clock may have jumped beyond its end: times of a process are those
        // of its own clock.
        book.retain(|name, forced| {
            !forced.is_over(wall) || self.get_scope(name).is_some_and(|scope| scope.mode() == forced.mode)
        });
        change.enter(&mut book, wall);
        let open: BTreeSet<String> =
            self.all.iter().filter(|scope| scope.is_out()).map(|scope| scope.name.to_string()).collect();
        let is_other = book != before || open != *self.written_open();
        if let Some(path) = self.path.clone().filter(|_| is_other) {
            let kept = Kept { overrides: book.clone(), open: open.clone() };
            let saved = tokio::task::spawn_blocking(move || overrides::save(&path, kept)).await;
            let saved = saved.map_err(|error| error.to_string());
            if let Err(error) = saved.and_then(|saved| saved.map_err(|error| error.to_string())) {
                for scope in &lifted {
                    scope.put_lifted_back();
                }
                return Err(OverrideError::NotDurable(error));
            }
        }
        *self.book() = book.clone();
        *self.written_open() = open;
        let now = self.shared.now();
        let told = change.told();
        for scope in &change.scopes {
            match change.set {
                None => scope.force(Mode::Auto, None, now, &told),
                Some(Setting { mode, ttl }) => {
                    let until = ttl.map(|ttl| now.saturating_add(state::millis(ttl)));
                    scope.force(mode, until, now, &told);
                }
            }
        }
        Ok(change.scopes.iter().map(|scope| self.status(scope, &book)).collect())
    }

    fn written_open(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.written_open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GroupHealth for Breakers {
    fn shows_failures(&self, group: &str) -> bool {
        Self::shows_failures(self, group)
    }
}

impl std::fmt::Debug for Breakers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Breakers").field("scopes", &self.all.len()).finish_non_exhaustive()
    }
}

pub(super) fn refusal(scope: &Scope, refused: Refusal) -> ProxyError {
    match refused {
        Refusal::Open(retry_after) => ProxyError::BreakerOpen { scope: scope.name.to_string(), retry_after },
        Refusal::Ramp => ProxyError::Overloaded { what: "ramp" },
    }
}

// === impl Override ===

impl Override {
    fn told(&self) -> String {
        told(&self.reason, &self.actor)
    }
}

fn told(reason: &str, actor: &str) -> String {
    if reason.is_empty() { format!("by {actor}") } else { format!("{reason} (by {actor})") }
}

// === impl Change ===

impl Change {
    /// Only takes out what is over.
    fn nothing() -> Self {
        Self { scopes: Vec::new(), set: None, reason: String::new(), actor: String::new() }
    }

    fn told(&self) -> String {
        told(&self.reason, &self.actor)
    }

    fn enter(&self, book: &mut Book, now: jiff::Timestamp) {
        for scope in &self.scopes {
            let Some(Setting { mode, ttl }) = self.set else {
                book.remove(&*scope.name);
                continue;
            };
            let before = book.get(&*scope.name).filter(|forced| forced.mode == mode);
            let forced = Override {
                mode,
                reason: self.reason.clone(),
                actor: self.actor.clone(),
                since: before.map_or(now, |forced| forced.since),
                until: ttl.map(|ttl| clock::after(now, ttl)),
            };
            book.insert(scope.name.to_string(), forced);
        }
    }
}
