//! Warming: what is asked for before anybody asks, so that an outage finds it.
//!
//! A list of targets, or all active shipments: the pages of `/shipments`, then each shipment that is neither delivered
//! in full nor archived, and the lists that its body links to. Everything goes the way of a refresh: in the refresh lane
//! behind all callers, through the lock of its key (so a target that is being fetched is not fetched twice, and a caller
//! who comes meanwhile joins), with the validators of the copy that is there.
//!
//! **Whose data it is**: a copy is found under the partition of the credential that fetched it, and by the octets of
//! path, version, `Accept` and `Accept-Language`. So a job has one [`Identity`], made as for a caller of that
//! credential, and asks with the fields that the callers will ask with; a copy that was warmed in another form is found
//! by nobody.
//!
//! It is polite: a breaker that is open, a rate gate, a full limiter or a failing upstream pauses it, nothing is sent meanwhile, and after a
//! pause it begins with one request at a time. What met a passing failure is tried again later, [`TRIES`] times in all. A
//! 401 ends it, since every other target would get the same.
//!
//! One job at a time. Nothing of it is on disk: a restart forgets it, and says so in [`WarmStatus::is_lost_on_restart`];
//! what it fetched stays. At the end of the process, and when it is cancelled, it begins nothing new and what is on its
//! way comes to its end.

pub(crate) mod plan;

use super::Cache;
use super::entry::Entry;
use super::fetch::{self, Errand, Hold};
use super::flight::{Answer, FlightKey, Led, Outcome, Role};
use super::policy::Use;
use super::service::Read;
use crate::config::Snapshot;
use crate::context::{Identity, Lane, RequestContext, Upstream};
use crate::error::ProxyError;
use crate::flexport::problem::Asked;
use crate::http::{Body, Present, delivery, retry_after, traceparent};
use crate::ids::{self, PartitionId};
use crate::telemetry::{Metrics, ResultLabels};
use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderMap, Method, Request, StatusCode};
pub use plan::LineError;
use plan::Page;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use serde::Serialize;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What is to be warmed, and how.
#[derive(Clone, Debug)]
pub struct WarmOrder {
    /// What.
    pub what: WarmWhat,
    /// Whose data it is, and what goes to Flexport.
    pub identity: Identity,
    /// `Flexport-Version`, `Accept` and `Accept-Language`, as the callers send them.
    pub headers: HeaderMap,
    /// Requests at once, at most.
    pub concurrency: usize,
    /// Who asked for it.
    pub actor: String,
    /// Why.
    pub reason: String,
}

/// What is to be warmed.
#[derive(Clone, Debug)]
pub enum WarmWhat {
    /// These paths, with their queries.
    Targets(Vec<String>),
    /// The active shipments.
    Shipments,
}

/// How warming goes, or went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WarmStatus {
    /// Counts the jobs of this process, from 1.
    pub id: u64,
    /// `running`, `paused`, `ending`, `done`, `cancelled`, `stopped` (by the end of the process), `failed`.
    pub state: &'static str,
    /// What the state has to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// `urls` or `shipments`.
    pub what: &'static str,
    /// Whose data it is.
    pub partition: PartitionId,
    /// Who asked for it.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// When it began.
    pub started_at: String,
    /// When it ended.
    pub ended_at: Option<String>,
    /// Requests at once, at most.
    pub concurrency: usize,
    /// Targets that are known.
    pub total: u64,
    /// Whether there can be no more.
    pub is_total_final: bool,
    /// Targets that are over: the sum of the next five.
    pub done: u64,
    /// New copies.
    pub stored: u64,
    /// Copies that a 304 confirmed.
    pub confirmed: u64,
    /// Copies that were fresh, so that nothing was asked.
    pub fresh: u64,
    /// Targets of which a copy would be no use, or cannot be kept, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// Targets that got no good answer, by reason.
    pub failed: BTreeMap<String, u64>,
    /// On their way.
    pub in_flight: u64,
    /// Not begun.
    pub left: u64,
    /// While it pauses.
    pub pause: Option<WarmPause>,
    /// How often it paused, by reason.
    pub pauses: BTreeMap<&'static str, u64>,
    /// Shipments on the pages so far.
    pub shipments_listed: u64,
    /// The active ones of them.
    pub shipments_active: u64,
    /// The first failures.
    pub failures: Vec<WarmFailure>,
    /// It lives in memory only.
    pub is_lost_on_restart: bool,
}

/// Why nothing is sent at present.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WarmPause {
    /// `breaker-open`, `rate-limited`, `overloaded`, `upstream-failing`.
    pub why: &'static str,
    /// Seconds until the next try.
    pub next_try_seconds: u64,
}

/// A target that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WarmFailure {
    /// Which.
    pub target: String,
    /// Why.
    pub why: String,
}

/// Why a job does not begin, or end.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    /// One is under way.
    #[error("the cache is being warmed; wait for its end, or cancel it")]
    Busy(Box<WarmStatus>),
    /// None is under way.
    #[error("nothing is being warmed")]
    Idle,
    /// The process ends.
    #[error("Seawall is shutting down")]
    Stopping,
    /// The strict profile has no outage to prepare for.
    #[error("with profile = \"strict\" no copy is served in an outage, so there is nothing to warm")]
    Strict,
}

/// Warms a cache. One for the process.
pub struct Warmer {
    cache: Arc<Cache>,
    upstream: Upstream,
    config: Arc<dyn Fn() -> Arc<Snapshot> + Send + Sync>,
    job: Mutex<Option<Arc<Job>>>,
    jobs: AtomicU64,
    is_stopping: AtomicBool,
    counters: Counters,
}

struct Counters {
    state: Gauge,
    left: Gauge,
    warmed: Family<ResultLabels, Counter>,
}

/// What is known of a job, also after its end. The order is not: its credential and its list end with it.
struct Job {
    /// Nothing more is begun.
    end: CancellationToken,
    status: Mutex<WarmStatus>,
    /// Until when it pauses.
    until: Mutex<Option<Instant>>,
}

/// One target.
#[derive(Clone)]
struct Item {
    target: String,
    is_page: bool,
    tries: u32,
}

/// What came of a target.
enum Ended {
    /// There is a copy that an outage can be served from.
    Warm(Warm, Bytes),
    /// There can be none, for this reason.
    Skipped(&'static str, Bytes),
    Failed(String),
    /// It may go well later.
    Later(&'static str, Duration),
    /// The credential is refused.
    Refused,
}

#[derive(Clone, Copy)]
enum Warm {
    Stored,
    Confirmed,
    Fresh,
}

/// Requests at once when nothing is said.
pub const WARM_CONCURRENCY: usize = 4;
/// Requests at once, at most: half of what refreshes may take.
pub const MAX_WARM_CONCURRENCY: usize = 16;
/// Targets of a job, at most.
pub const MAX_WARM_TARGETS: usize = 100_000;
/// How often a target is tried that meets passing failures.
const TRIES: u32 = 3;
/// Failures that are told one by one.
const TOLD: usize = 20;
/// The shortest and the longest pause: the cause is looked at again then.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// The longest pause for a breaker: a look at it costs nothing, and an override may have been taken back.
const BREAKER_PAUSE: Duration = Duration::from_secs(5);

// === impl Warmer ===

impl Warmer {
    /// Over a cache and the way to Flexport.
    pub fn new(
        cache: Arc<Cache>,
        upstream: Upstream,
        config: Arc<dyn Fn() -> Arc<Snapshot> + Send + Sync>,
        metrics: &Metrics,
    ) -> Arc<Self> {
        let counters = Counters {
            state: metrics.cache_warm_state.clone(),
            left: metrics.cache_warm_left.clone(),
            warmed: metrics.cache_warmed.clone(),
        };
        Arc::new(Self {
            cache,
            upstream,
            config,
            job: Mutex::new(None),
            jobs: AtomicU64::new(0),
            is_stopping: AtomicBool::new(false),
            counters,
        })
    }

    /// Begins.
    pub fn start(self: &Arc<Self>, order: WarmOrder) -> Result<WarmStatus, WarmError> {
        if self.cache.is_strict {
            return Err(WarmError::Strict);
        }
        let mut current = self.current();
        if self.is_stopping.load(Ordering::Acquire) {
            return Err(WarmError::Stopping);
        }
        if let Some(job) = current.as_ref().filter(|job| job.is_under_way()) {
            return Err(WarmError::Busy(Box::new(job.told())));
        }
        let queue: VecDeque<Item> = match &order.what {
            WarmWhat::Targets(targets) => targets.iter().map(|target| Item::of(target)).collect(),
            WarmWhat::Shipments => VecDeque::from([Item { is_page: true, ..Item::of(plan::FIRST) }]),
        };
        let is_list = matches!(order.what, WarmWhat::Targets(_));
        let status = WarmStatus {
            id: self.jobs.fetch_add(1, Ordering::Relaxed) + 1,
            state: "running",
            why: None,
            what: if is_list { "urls" } else { "shipments" },
            partition: order.identity.partition.unwrap_or(super::EVERYBODY),
            actor: order.actor.clone(),
            reason: order.reason.clone(),
            started_at: self.cache.clock.now().to_string(),
            ended_at: None,
            concurrency: order.concurrency,
            total: queue.len() as u64,
            is_total_final: is_list,
            done: 0,
            stored: 0,
            confirmed: 0,
            fresh: 0,
            skipped: BTreeMap::new(),
            failed: BTreeMap::new(),
            in_flight: 0,
            left: queue.len() as u64,
            pause: None,
            pauses: BTreeMap::new(),
            shipments_listed: 0,
            shipments_active: 0,
            failures: Vec::new(),
            is_lost_on_restart: true,
        };
        let job = Arc::new(Job {
            end: CancellationToken::new(),
            status: Mutex::new(status),
            until: Mutex::new(None),
        });
        let told = job.told();
        *current = Some(job.clone());
        drop(current);
        self.counters.state.set(1);
        let (this, stopped) = (self.clone(), self.cache.tasks.cancelled());
        self.cache.tasks.spawn("cache-warm", async move {
            // At the stop of the process, which comes after its drain, nobody waits for it any more.
            let ended = stopped.run_until_cancelled(this.run(&job, Arc::new(order), queue)).await;
            this.ended(&job, ended.unwrap_or_default());
        });
        Ok(told)
    }

    /// How it goes, or how the last one went. `None`: none since the start of the process.
    pub fn status(&self) -> Option<WarmStatus> {
        self.current().as_ref().map(|job| job.told())
    }

    /// Begins nothing more. What is on its way comes to its end.
    pub fn cancel(&self, actor: &str) -> Result<WarmStatus, WarmError> {
        let current = self.current();
        let Some(job) = current.as_ref() else { return Err(WarmError::Idle) };
        {
            let mut status = job.status();
            if status.ended_at.is_some() {
                return Err(WarmError::Idle);
            }
            status.state = "ending";
            status.why.get_or_insert_with(|| format!("cancelled by {actor}"));
        }
        job.end.cancel();
        Ok(job.told())
    }

    /// The process is about to end: nothing more begins.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Release);
        if let Some(job) = &*self.current() {
            job.end.cancel();
        }
    }

    fn current(&self) -> MutexGuard<'_, Option<Arc<Job>>> {
        self.job.lock().expect("no code panics with this lock held")
    }

    /// Gives why it failed, if it did.
    async fn run(
        self: &Arc<Self>,
        job: &Arc<Job>,
        order: Arc<WarmOrder>,
        mut queue: VecDeque<Item>,
    ) -> Option<String> {
        let mut known: HashSet<String> = queue.iter().map(|item| item.target.clone()).collect();
        let mut under_way: JoinSet<(Item, Ended)> = JoinSet::new();
        let mut pages = 0;
        // After a pause it begins with one at a time.
        let mut width = order.concurrency;
        let mut failed = None;
        loop {
            let is_ending = job.end.is_cancelled() || failed.is_some();
            let until = *job.until();
            while !is_ending && until.is_none() && under_way.len() < width {
                let Some(item) = queue.pop_front() else { break };
                pages += usize::from(item.is_page);
                under_way.spawn(self.clone().one(order.clone(), item));
            }
            // A long list is not looked through for each of its targets.
            let has_pages =
                pages > 0 || !job.status().is_total_final && queue.iter().any(|item| item.is_page);
            self.tell(job, queue.len(), under_way.len(), has_pages);
            if under_way.is_empty() && (is_ending || queue.is_empty()) {
                return failed;
            }
            tokio::select! {
                biased;
                Some(joined) = under_way.join_next() => {
                    let Ok((item, ended)) = joined else {
                        job.failed("a target".to_owned(), "internal".to_owned());
                        self.count("failed");
                        continue;
                    };
                    pages -= usize::from(item.is_page);
                    let ended = self.discover(job, &item, ended, &mut queue, &mut known);
                    match ended {
                        Ended::Later(why, wait) if item.tries + 1 < TRIES || why != "upstream-failing" => {
                            job.pause(why, wait);
                            width = 1;
                            // What only waits for its turn has not been tried.
                            let tries = item.tries + u32::from(why == "upstream-failing");
                            queue.push_front(Item { tries, ..item });
                        }
                        // A write or a purge came in between: what is there now is what is wanted.
                        Ended::Skipped("overtaken", _) if item.tries + 1 < TRIES => {
                            queue.push_front(Item { tries: item.tries + 1, ..item });
                        }
                        Ended::Later(why, _) => {
                            self.count("failed");
                            job.failed(item.target, why.to_owned());
                        }
                        Ended::Refused => {
                            self.count("failed");
                            job.failed(item.target, "status-401".to_owned());
                            failed = Some("Flexport refuses this credential (401)".to_owned());
                        }
                        Ended::Failed(why) => {
                            self.count("failed");
                            job.failed(item.target, why);
                            width = (width * 2).min(order.concurrency);
                        }
                        Ended::Skipped(why, _) => {
                            self.count("skipped");
                            job.status().skipped.entry(why.to_owned()).and_modify(|count| *count += 1).or_insert(1);
                            width = (width * 2).min(order.concurrency);
                        }
                        Ended::Warm(warm, _) => {
                            self.count(warm.as_str());
                            {
                                let mut status = job.status();
                                match warm {
                                    Warm::Stored => status.stored += 1,
                                    Warm::Confirmed => status.confirmed += 1,
                                    Warm::Fresh => status.fresh += 1,
                                }
                            }
                            width = (width * 2).min(order.concurrency);
                        }
                    }
                }
                () = rested(until), if !is_ending => {
                    *job.until() = None;
                }
                () = job.end.cancelled(), if !is_ending => {}
            }
        }
    }

    /// A page leads on; what should be one and is not has failed.
    fn discover(
        &self,
        job: &Job,
        item: &Item,
        ended: Ended,
        queue: &mut VecDeque<Item>,
        known: &mut HashSet<String>,
    ) -> Ended {
        let body = match &ended {
            // It is asked for again, and read then.
            Ended::Skipped("overtaken", _) if item.tries + 1 < TRIES => return ended,
            // Nobody has read what stands there, so its shipments are not known.
            Ended::Skipped(why, body) if item.is_page && body.is_empty() => {
                return Ended::Failed((*why).to_owned());
            }
            Ended::Warm(_, body) | Ended::Skipped(_, body) if item.is_page => body,
            _ => return ended,
        };
        let config = (self.config)();
        let Some(Page { next, shipments, active, targets }) = plan::page(body, &bases(&config)) else {
            return Ended::Failed("not-a-page".to_owned());
        };
        {
            let mut status = job.status();
            status.shipments_listed += shipments;
            status.shipments_active += active;
        }
        let mut add = |target: String, is_page: bool| {
            if known.len() >= MAX_WARM_TARGETS {
                self.count("skipped");
                *job.status().skipped.entry("too-many".to_owned()).or_default() += 1;
            } else if known.insert(target.clone()) {
                let item = Item { target, is_page, tries: 0 };
                // Pages first, so that it is soon known how much there is.
                if is_page { queue.push_front(item) } else { queue.push_back(item) }
            }
        };
        for target in targets {
            add(target, false);
        }
        if let Some(next) = next {
            add(next, true);
        }
        ended
    }

    fn tell(&self, job: &Job, left: usize, in_flight: usize, has_pages: bool) {
        let is_paused = job.until().is_some();
        let mut status = job.status();
        if !is_paused {
            status.pause = None;
        }
        if status.state != "ending" {
            status.state = match (job.end.is_cancelled(), is_paused) {
                (true, _) => "ending",
                (false, true) => "paused",
                (false, false) => "running",
            };
        }
        status.left = left as u64;
        status.in_flight = in_flight as u64;
        status.is_total_final |= !has_pages;
        status.count();
        self.counters.state.set(if is_paused { 2 } else { 1 });
        self.counters.left.set(i64::try_from(left).unwrap_or(i64::MAX));
    }

    fn ended(&self, job: &Job, failed: Option<String>) {
        let mut status = job.status();
        let is_whole = status.left == 0 && status.in_flight == 0 && failed.is_none();
        status.state = if is_whole {
            "done"
        } else if failed.is_some() {
            "failed"
        } else if self.is_stopping.load(Ordering::Acquire) || self.cache.tasks.cancelled().is_cancelled() {
            "stopped"
        } else {
            "cancelled"
        };
        status.why = failed.or_else(|| status.why.take().filter(|_| !is_whole));
        status.pause = None;
        status.ended_at = Some(self.cache.clock.now().to_string());
        status.count();
        self.counters.state.set(0);
        self.counters.left.set(0);
        tracing::info!(
            id = status.id,
            state = status.state,
            why = status.why.as_deref().unwrap_or_default(),
            done = status.done,
            stored = status.stored,
            confirmed = status.confirmed,
            failed = status.failed.values().sum::<u64>(),
            "warming ended"
        );
    }

    fn count(&self, result: &'static str) {
        self.counters.warmed.get_or_create(&ResultLabels { result }).inc();
    }

    async fn one(self: Arc<Self>, order: Arc<WarmOrder>, item: Item) -> (Item, Ended) {
        let request = request(&(self.config)(), &item.target, &order);
        let Some(request) = request else { return (item, Ended::Failed("malformed".to_owned())) };
        let ended = match self.cache.read(request) {
            Err(_) => Ended::Skipped("not-cacheable", Bytes::new()),
            Ok(read) if read.ask.is_incremental => Ended::Skipped("incremental", Bytes::new()),
            Ok(read) => self.warm(Arc::new(read)).await,
        };
        (item, ended)
    }

    async fn warm(&self, read: Arc<Read>) -> Ended {
        let cache = &self.cache;
        let Ok(_permit) = cache.refreshes.clone().acquire_owned().await else {
            return Ended::Failed("internal".to_owned());
        };
        let purges = cache.purges.load(Ordering::Acquire);
        let base = self.present(&read).await;
        if let Some(entry) = &base
            && cache.use_of(&read, entry, &cache.now()) == Use::Fresh
        {
            return Ended::Warm(Warm::Fresh, entry.body.clone());
        }
        let key =
            FlightKey { key: read.key, token: cache.refusals.token(&read.context.identity().credential) };
        let names = cache.names(&read);
        let began = cache.marks.moment();
        let is_cut_off = |moment| cache.marks.is_cut_off(names, moment);
        let landing = match cache.flights.enter(key, Instant::now(), began, is_cut_off) {
            Role::Lead(landing) => Some(landing),
            Role::Join(flight) => {
                // Its own time: the wait for a turn took none of it.
                return match tokio::time::timeout(read.context.route.timeout, flight.landed()).await {
                    Ok(outcome) => self.judge(outcome),
                    Err(_) => Ended::Later("upstream-failing", Duration::ZERO),
                };
            }
            // What came last could not be kept; this may be another answer.
            Role::Alone => None,
        };
        let errand = Errand {
            read: read.clone(),
            base: base.filter(|entry| entry.has_validator()),
            began,
            names,
            key,
            is_led: landing.is_some(),
            may_keep: true,
            purges,
            hold: Hold::All,
            lane: Lane::Refresh,
        };
        match fetch::run(cache.clone(), self.upstream.clone(), errand, landing).await {
            Led::Shared(outcome) => self.judge(outcome),
            // It is longer than what is kept: nobody reads the rest.
            Led::Streamed(response) => judge_status(
                response.status(),
                response.headers(),
                "too-large",
                Bytes::new,
                cache.clock.now(),
            ),
            Led::Flowing(flowing) => {
                let limit = read.context.config.settings.cache.max_object.0;
                match flowing.response.into_body().collect(limit).await {
                    Ok(body) if flowing.is_kept => Ended::Warm(Warm::Stored, body),
                    Ok(body) => Ended::Skipped("overtaken", body),
                    Err(_) => Ended::Later("upstream-failing", Duration::ZERO),
                }
            }
        }
    }

    /// The copy that there is, in either tier.
    async fn present(&self, read: &Read) -> Option<Arc<Entry>> {
        if self.cache.is_refused(read) {
            return None;
        }
        let in_memory = self.cache.memory.peek(&read.key);
        let selected = in_memory.and_then(|variants| variants.selected(read.asked()).cloned());
        match selected {
            Some(entry) => Some(entry),
            None => self.cache.restore(read).await.ok().flatten(),
        }
    }

    fn judge(&self, outcome: Outcome) -> Ended {
        match outcome {
            Outcome::Answer(Answer::Entry { entry, is_kept, is_confirmed }) => {
                let body = entry.body.clone();
                match (is_kept, is_confirmed) {
                    (true, true) => Ended::Warm(Warm::Confirmed, body),
                    (true, false) => Ended::Warm(Warm::Stored, body),
                    (false, _) => Ended::Skipped("overtaken", body),
                }
            }
            Outcome::Answer(Answer::Passed(passed)) => judge_status(
                passed.status,
                &passed.headers,
                "not-kept",
                || passed.body.clone(),
                self.cache.clock.now(),
            ),
            Outcome::Failed(error) => judge_error(&error),
            Outcome::Alone => Ended::Skipped("not-kept", Bytes::new()),
        }
    }
}

impl std::fmt::Debug for Warmer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Warmer")
    }
}

fn judge_status(
    status: StatusCode,
    headers: &HeaderMap,
    unkept: &'static str,
    body: impl FnOnce() -> Bytes,
    now: jiff::Timestamp,
) -> Ended {
    let wait =
        || headers.get(RETRY_AFTER).and_then(|value| retry_after::parse(value, now)).unwrap_or(PAUSE.0);
    match status {
        StatusCode::UNAUTHORIZED => Ended::Refused,
        StatusCode::TOO_MANY_REQUESTS => Ended::Later("rate-limited", wait()),
        status if status.is_success() => Ended::Skipped(unkept, body()),
        status if delivery::of_answer(status, false).is_outage() => Ended::Later("upstream-failing", wait()),
        status => Ended::Failed(format!("status-{}", status.as_u16())),
    }
}

fn judge_error(error: &ProxyError) -> Ended {
    match error {
        ProxyError::BreakerOpen { retry_after, .. } => Ended::Later("breaker-open", *retry_after),
        ProxyError::RateLimited { retry_after } => Ended::Later("rate-limited", *retry_after),
        ProxyError::Overloaded { .. } | ProxyError::DeadlineBeforeSending => {
            Ended::Later("overloaded", Duration::from_secs(1))
        }
        ProxyError::HeadTimeout | ProxyError::Connect(_) | ProxyError::Unsent(_) | ProxyError::Cut(_) => {
            Ended::Later("upstream-failing", Duration::from_secs(1))
        }
        _ => Ended::Failed("internal".to_owned()),
    }
}

/// What may stand before a path of ours.
fn bases(config: &Snapshot) -> Vec<&str> {
    let upstream = &config.settings.upstream;
    [&*config.public_url, &upstream.base_url]
        .into_iter()
        .chain(upstream.link_bases.iter().map(String::as_str))
        .collect()
}

/// The targets of a list, by the configuration in force.
pub fn targets(lines: &[String], config: &Snapshot) -> Result<Vec<String>, LineError> {
    plan::parse(lines, &bases(config))
}

/// A request as a caller of that credential would make it. `None`: the target is no path.
fn request(config: &Arc<Snapshot>, target: &str, order: &WarmOrder) -> Option<Request<Body>> {
    let uri: http::Uri = target.parse().ok()?;
    let route = config.routes.find(&Method::GET, uri.path()).clone();
    let random = (fastrand::u64(..), fastrand::u64(..), fastrand::u64(..));
    let now = Instant::now();
    let context = RequestContext {
        request_id: ids::request_id(),
        traceparent: traceparent::child(None, random),
        peer: std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
        arrived: now,
        deadline: now + route.timeout,
        method: Method::GET,
        present: Present::of(&order.headers),
        asked: Asked {
            public_url: config.public_url.clone(),
            target: target.to_owned(),
            version: serde_json::Value::from(2),
            wants_problem: false,
        },
        identity: OnceLock::from(order.identity.clone()),
        route,
        config: config.clone(),
    };
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = uri;
    *request.headers_mut() = order.headers.clone();
    request.extensions_mut().insert(Arc::new(context));
    Some(request)
}

async fn rested(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

// === impl Job ===

impl Job {
    fn status(&self) -> MutexGuard<'_, WarmStatus> {
        self.status.lock().expect("no code panics with this lock held")
    }

    fn until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.until.lock().expect("no code panics with this lock held")
    }

    fn pause(&self, why: &'static str, wait: Duration) {
        let longest = if why == "breaker-open" { BREAKER_PAUSE } else { PAUSE.1 };
        let until = Instant::now() + wait.clamp(PAUSE.0, longest);
        {
            let mut held = self.until();
            let is_first = held.is_none();
            *held = Some(held.map_or(until, |held| held.max(until)));
            drop(held);
            let mut status = self.status();
            status.pause = Some(WarmPause { why, next_try_seconds: 0 });
            if is_first {
                *status.pauses.entry(why).or_default() += 1;
            }
        }
        tracing::debug!(why, ?wait, "warming pauses");
    }

    fn is_under_way(&self) -> bool {
        self.status().ended_at.is_none()
    }

    fn told(&self) -> WarmStatus {
        let left = self.until().map(|until| until.saturating_duration_since(Instant::now()));
        let mut status = self.status().clone();
        if let (Some(pause), Some(left)) = (&mut status.pause, left) {
            pause.next_try_seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
        }
        status
    }

    fn failed(&self, target: String, why: String) {
        let mut status = self.status();
        *status.failed.entry(why.clone()).or_default() += 1;
        if status.failures.len() < TOLD {
            status.failures.push(WarmFailure { target, why });
        }
    }
}

// === impl WarmStatus ===

impl WarmStatus {
    /// Adds up.
    fn count(&mut self) {
        let by_reason = |reasons: &BTreeMap<String, u64>| reasons.values().sum::<u64>();
        self.done =
            self.stored + self.confirmed + self.fresh + by_reason(&self.skipped) + by_reason(&self.failed);
        self.total = self.done + self.in_flight + self.left;
    }
}

// === impl Item ===

impl Item {
    fn of(target: &str) -> Self {
        Self { target: target.to_owned(), is_page: false, tries: 0 }
    }
}

// === impl Warm ===

impl Warm {
    fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Confirmed => "confirmed",
            Self::Fresh => "fresh",
        }
    }
}
