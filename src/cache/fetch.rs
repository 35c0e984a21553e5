//! One fill: ask upstream, read the answer, keep it if it may be kept, tell those who wait.
//!
//! When the head goes to the caller is a choice between two goods. Once it has, a body that breaks can only be cut;
//! before, a stale copy can stand in for it, or an error with a code. So the beginning of a body, [`BEGINNING`], is
//! held back:
//!
//! - while a copy could stand in, until the beginning is there: an answer that breaks within it is an outage like any
//!   other, and the copy is served;
//! - with no copy, for [`BRIEFLY`] at most, and not at all when the body is known to be longer. Small answers are
//!   whole then in all but name, so they go out in one piece, with a length;
//! - a refresh has no caller, and HTTP/1.0 cannot tell a body without a length that was cut from one that ended: both
//!   read all of it.
//!
//! What is longer flows (see `flow`): a task of its own reads on, and what it read is stored at the clean end and not
//! before. It has the time of the call for that, like a body that is held back: what drips must not hold the key,
//! those who wait and a slot of the upstream. An error's body is never passed on early: a copy may stand for it, and
//! those who wait share it.

use super::Cache;
use super::disk::OnDisk;
use super::entry::{Confirmed, Entry};
use super::flight::{Answer, FlightKey, Flowing, Landing, Led, Outcome, Passed};
use super::flow::{self, Feed};
use super::invalidate::{Moment, Names};
use super::policy::{self, Facts, Unkept};
use super::service::Read;
use crate::context::{Call, Lane, Upstream, UpstreamRequest, WholeUntil};
use crate::error::ProxyError;
use crate::http::{Body, BodyError, headers};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, ETAG, LAST_MODIFIED};
use http::{HeaderMap, Response, StatusCode, response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tower::{Service, ServiceExt};

/// What a fill has to do.
pub(crate) struct Errand {
    pub(crate) read: Arc<Read>,
    /// The copy that is to be confirmed or replaced.
    pub(crate) base: Option<Arc<Entry>>,
    /// The order of invalidations when it began.
    pub(crate) began: Moment,
    pub(crate) names: Names,
    pub(crate) key: FlightKey,
    /// Whether others may wait for it.
    pub(crate) is_led: bool,
    /// Not for a request that says `no-store`.
    pub(crate) may_keep: bool,
    /// How often copies had been deleted by hand when it began.
    pub(crate) purges: u64,
    pub(crate) hold: Hold,
    pub(crate) lane: Lane,
}

/// What has to be there of an answer before its head goes to the caller.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    /// All of it, as far as it may be kept.
    All,
    /// Its beginning: there is a copy that could stand in if that breaks.
    Beginning,
    /// Its beginning, unless that takes long.
    Briefly,
}

/// Who else may have an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sharing {
    /// Those who wait, and it is worth waiting for the next one.
    Yes,
    /// Those who wait, but the next one need not be waited for: it will not be kept either.
    ThisOnce,
    /// Nobody but who asked.
    No,
}

/// What came of asking.
enum Asked {
    Over(Led, Sharing),
    /// The leader has it as it came, the others as it was kept.
    Kept(Box<Flowing>, Answer),
    /// The caller has its answer; this is to be done yet.
    UnderWay(Led, Box<Rest>),
}

/// An answer whose head goes to the caller before its body has ended.
struct Departure {
    parts: response::Parts,
    reading: Reading,
    asked_at: Confirmed,
    /// When its head had come.
    came_at: Confirmed,
    /// When it must be over.
    last: Instant,
    whole_until: Arc<WholeUntil>,
}

/// What is left of a fill when its answer is on its way to the caller.
struct Rest {
    answer: Departure,
    facts: Facts,
    feed: Feed,
}

/// How an answer goes to its caller before its end.
enum Way {
    /// It flows to the caller, and is kept at its end.
    Flow(Facts),
    /// It goes to the caller, who does not want it kept.
    Past(Facts),
    /// It goes to the caller alone: it must not be kept.
    Alone(Unkept),
}

/// A body, as far as it has been read.
struct Reading {
    body: Body,
    pieces: Vec<Bytes>,
    total: u64,
    /// Its length, when that is known.
    length: Option<u64>,
    /// Longer ones are not kept.
    limit: u64,
}

/// How far a body has been read.
#[derive(Debug, PartialEq, Eq)]
enum Come {
    /// To its end.
    Whole,
    /// As far as was asked for.
    Beginning,
    /// Farther than what is kept.
    TooFar,
}

/// What has been read of a body, then the rest of it.
struct Resumed {
    read: Bytes,
    rest: Body,
}

/// What is held back of a body.
const BEGINNING: u64 = 64 * 1024;
/// How long, when no copy could stand in. Small answers are there far sooner; one that comes more slowly than that is
/// passed on as it comes.
const BRIEFLY: Duration = Duration::from_secs(1);
/// A body that is not whole in time is ended by the upstream's own side, which tells the breaker; only what that
/// misses is ended here.
const GRACE: Duration = Duration::from_secs(1);

/// Runs an errand until its answer can go to the caller; what is left to do then goes on in a task.
pub(crate) async fn run(
    cache: Arc<Cache>,
    mut upstream: Upstream,
    errand: Errand,
    landing: Option<Landing>,
) -> Led {
    match cache.ask(&mut upstream, &errand).await {
        Asked::Over(led, sharing) => {
            let outcome = match &led {
                Led::Shared(outcome) => outcome.clone(),
                Led::Streamed(_) | Led::Flowing(_) => Outcome::Alone,
            };
            cache.land(&errand, landing, outcome, sharing);
            led
        }
        Asked::Kept(own, answer) => {
            cache.land(&errand, landing, Outcome::Answer(answer), Sharing::Yes);
            Led::Flowing(own)
        }
        Asked::UnderWay(led, rest) => {
            let tasks = cache.tasks.clone();
            let stopped = tasks.cancelled();
            tasks.spawn("cache-fill", async move {
                // At the stop of the process, which comes after its drain, nobody waits for it any more.
                stopped.run_until_cancelled(cache.fill(errand, landing, *rest)).await;
            });
            led
        }
    }
}

async fn send(upstream: &mut Upstream, request: UpstreamRequest) -> Result<Response<Body>, ProxyError> {
    upstream.ready().await?.call(request).await
}

impl Cache {
    /// Tells those who wait.
    fn land(&self, errand: &Errand, landing: Option<Landing>, outcome: Outcome, sharing: Sharing) {
        if let Some(landing) = landing {
            landing.land(if sharing == Sharing::No { Outcome::Alone } else { outcome });
        }
        if sharing != Sharing::Yes && !errand.read.is_head {
            self.flights.mark_hit_for_miss(errand.key, Instant::now());
        }
    }

    /// The answer, and who else may have it.
    async fn ask(&self, upstream: &mut Upstream, errand: &Errand) -> Asked {
        let failed = |error| Asked::Over(Led::Shared(Outcome::Failed(error)), Sharing::Yes);
        let read = &*errand.read;
        let mut base = errand.base.as_ref();
        let mut was_unsent = false;
        loop {
            let mut call = Call::live(&read.context);
            call.lane = errand.lane;
            // A fill is for all who wait and for the copy: one caller's impatience does not end it.
            let asked_at = self.now();
            let own = asked_at.monotonic + read.context.route.timeout;
            if own > call.deadline {
                call.deadline = own;
                call.is_hurried = false;
            }
            // A body that drips must not hold the key, its waiters and a slot of the upstream.
            let whole_until = WholeUntil::new(call.deadline);
            call.whole_until = Some(whole_until.clone());
            let last = call.deadline + GRACE;
            let request = read.outgoing(base.map(|entry| &**entry));
            call.resends_unsent = !was_unsent;
            let response = match send(upstream, UpstreamRequest { request, call }).await {
                Ok(response) => response,
                // A pooled connection that the upstream had closed took nothing of it: once more, at once.
                Err(ProxyError::Unsent(_)) if !was_unsent => {
                    was_unsent = true;
                    continue;
                }
                Err(error) => return failed(error),
            };
            let (mut parts, body) = response.into_parts();
            // Its own `Cache-Status` stays: RFC 9211 lists the caches on the way, and ours is added at the end.
            headers::strip_for_caller(&mut parts.headers, false);
            // By its head: a refusal whose body breaks is one all the same.
            self.note(read.partition, errand.key.token, Some(&read.key), parts.status, asked_at.monotonic)
                .await;
            if self.has_left(read, parts.status) && !self.is_strict {
                self.objects.lacks(read, Instant::now());
            }
            if read.is_head && self.is_strict && parts.status == StatusCode::OK {
                self.freshen(errand, &parts.headers, asked_at);
            }
            let limit = read.context.config.settings.cache.max_object.0;
            // What answers a HEAD, and a 304, names the length of a content that does not come.
            let length = if read.is_head || parts.status == StatusCode::NOT_MODIFIED {
                None
            } else {
                named_length(&parts.headers)
            };
            let mut reading = Reading::new(body, length, limit);
            // HTTP/1.0 ends a body without a length by closing, cut or not.
            let hold = if read.knows_chunks || reading.length.is_some() { errand.hold } else { Hold::All };
            let mut come = reading.hold(hold, last).await;
            if matches!(come, Ok(Come::Beginning)) {
                let came_at = self.now();
                if let Some(way) = way(errand, &parts, asked_at, came_at) {
                    let answer = Departure { parts, reading, asked_at, came_at, last, whole_until };
                    return self.pass_on(errand, way, answer);
                }
                come = reading.hold(Hold::All, last).await;
            }
            match come {
                Ok(Come::Whole) => {}
                Ok(Come::Beginning | Come::TooFar) => {
                    whole_until.lift();
                    self.too_large(read, parts.status);
                    let response = Response::from_parts(parts, reading.resumed());
                    return Asked::Over(Led::Streamed(response), Sharing::No);
                }
                Err(error) => return failed(ProxyError::Cut(error.to_string())),
            }
            let body = reading.take();
            let now = self.now();
            if parts.status == StatusCode::NOT_MODIFIED
                && let Some(entry) = base
            {
                if entry.is_contradicted_by(&parts.headers) {
                    // It confirms a copy that we do not have: ask again, for the whole.
                    base = None;
                    continue;
                }
                let outcome = self.confirm(errand, entry, parts.headers, asked_at, now);
                return Asked::Over(Led::Shared(outcome), Sharing::Yes);
            }
            return match self.judge(read, &parts, &body, asked_at, now) {
                Ok(facts) if !read.is_head => {
                    let (answer, is_kept) =
                        self.keep(errand, &parts, body.clone(), facts.clone(), asked_at, now);
                    let response = Response::from_parts(parts, Body::from(body));
                    Asked::Kept(Box::new(Flowing { response, facts, came_at: now, is_kept }), answer)
                }
                verdict => {
                    let (answer, sharing) = self.settle(errand, parts, body, verdict, asked_at, now);
                    Asked::Over(Led::Shared(Outcome::Answer(answer)), sharing)
                }
            };
        }
    }

    /// Gives the answer to the caller, whose body it reads by itself or gets from what is kept.
    fn pass_on(&self, errand: &Errand, way: Way, mut answer: Departure) -> Asked {
        let response = |parts: &response::Parts, body| {
            let mut response = Response::new(body);
            *response.status_mut() = parts.status;
            *response.headers_mut() = parts.headers.clone();
            response
        };
        match way {
            Way::Flow(facts) => {
                let (feed, flow) = answer.reading.feed();
                let led = Led::Flowing(Box::new(Flowing {
                    response: response(&answer.parts, Body::new(flow)),
                    facts: facts.clone(),
                    came_at: answer.came_at,
                    is_kept: !self.marks.is_cut_off(errand.names, errand.began),
                }));
                Asked::UnderWay(led, Box::new(Rest { answer, facts, feed }))
            }
            Way::Past(facts) => {
                answer.whole_until.lift();
                let led = Led::Flowing(Box::new(Flowing {
                    response: response(&answer.parts, answer.reading.resumed()),
                    facts,
                    came_at: answer.came_at,
                    is_kept: false,
                }));
                Asked::Over(led, Sharing::Yes)
            }
            Way::Alone(unkept) => {
                answer.whole_until.lift();
                self.unkept(errand, answer.parts.status, Some(unkept), answer.asked_at);
                let response = response(&answer.parts, answer.reading.resumed());
                Asked::Over(Led::Streamed(response), Sharing::No)
            }
        }
    }

    /// Reads what is left of an answer that is on its way, keeps it, and tells: first those who wait, then the caller,
    /// who so never sees the end of what is not kept yet.
    async fn fill(&self, errand: Errand, landing: Option<Landing>, rest: Rest) {
        let Rest {
            answer: Departure { parts, mut reading, asked_at, came_at, last, whole_until },
            facts,
            feed,
        } = rest;
        let failed = match timeout_at(last, reading.read_into(&feed)).await {
            Ok(Ok(Some(body))) => {
                let verdict = if parts.status == StatusCode::OK && policy::holds_error(&parts.headers, &body)
                {
                    Err(Unkept::EnvelopeError)
                } else {
                    Ok(facts)
                };
                let (answer, sharing) = self.settle(&errand, parts, body.clone(), verdict, asked_at, came_at);
                self.land(&errand, landing, Outcome::Answer(answer), sharing);
                feed.whole(body);
                return;
            }
            Ok(Ok(None)) => {
                whole_until.lift();
                self.too_large(&errand.read, parts.status);
                self.land(&errand, landing, Outcome::Alone, Sharing::No);
                feed.hand_over(reading.body);
                return;
            }
            Ok(Err(error)) => error,
            Err(_) => endless(),
        };
        let outcome = Outcome::Failed(ProxyError::Cut(failed.to_string()));
        self.land(&errand, landing, outcome, Sharing::Yes);
        feed.broken(failed);
    }

    fn confirm(
        &self,
        errand: &Errand,
        old: &Arc<Entry>,
        fresh: HeaderMap,
        asked_at: Confirmed,
        now: Confirmed,
    ) -> Outcome {
        let read = &*errand.read;
        let head = old.renewed(fresh, now.at, read.terms.keeps_cookies);
        let verdict =
            policy::keep(old.status, &head, read.has_credential(), asked_at.at, now.at, &read.terms);
        let (facts, may_keep) = match verdict {
            Ok(facts) => (facts, true),
            Err(_) => (policy::Facts::of(old.status, &head, asked_at.at, now.at, &read.terms), false),
        };
        if !may_keep {
            self.forget(&read.key, Some(old));
        }
        let entry = Entry::new(
            old.status,
            &head,
            old.body.clone(),
            facts,
            now,
            asked_at.monotonic,
            errand.began,
            errand.names,
            old.about.clone(),
            read.asked(),
        );
        let entry = Arc::new(entry);
        let is_kept = may_keep && self.put(errand, &entry);
        Outcome::Answer(Answer::Entry { entry, is_kept, is_confirmed: true })
    }

    /// Renews the stored answer to GET by what a HEAD got, or asks for it anew when that speaks of another one (RFC 9111
    /// §4.3.5). Only where nothing is rewritten: else neither length nor digest would tell.
    fn freshen(&self, errand: &Errand, head: &HeaderMap, asked_at: Confirmed) {
        let read = &*errand.read;
        if !errand.may_keep {
            return;
        }
        let Some(variants) = self.memory.peek(&read.key) else { return };
        let Some(old) = variants.selected(read.asked()) else { return };
        let now = self.now();
        // Without a validator it says nothing of what a write has done in between.
        let is_vouched_for = [ETAG, LAST_MODIFIED].iter().any(|name| head.contains_key(name));
        let (head, facts, confirmed, began, asked_at) = if old.is_described_by(head) {
            let head = old.renewed(head.clone(), now.at, read.terms.keeps_cookies);
            let verdict =
                policy::keep(old.status, &head, read.has_credential(), asked_at.at, now.at, &read.terms);
            let Ok(mut facts) = verdict else { return self.forget(&read.key, Some(old)) };
            facts.no_cache |= old.facts.no_cache && !is_vouched_for;
            let (began, asked_at) =
                if is_vouched_for { (errand.began, asked_at.monotonic) } else { (old.began, old.asked_at) };
            (head, facts, now, began, asked_at)
        } else {
            let facts = Facts { no_cache: true, ..old.facts.clone() };
            (old.head.to_map(0), facts, old.confirmed, old.began, old.asked_at)
        };
        let entry = Entry::new(
            old.status,
            &head,
            old.body.clone(),
            facts,
            confirmed,
            asked_at,
            began,
            errand.names,
            old.about.clone(),
            read.asked(),
        );
        self.put(errand, &Arc::new(entry));
    }

    /// Whether an answer says that something is not there any more. A failing upstream may well say so of what is: then
    /// the copy stays (see [`Self::unkept`]).
    fn has_left(&self, read: &Read, status: StatusCode) -> bool {
        says_gone(status) && !self.health.shows_failures(&read.context.route.group)
    }

    /// Whether a whole answer is kept.
    fn judge(
        &self,
        read: &Read,
        parts: &response::Parts,
        body: &[u8],
        asked_at: Confirmed,
        now: Confirmed,
    ) -> Result<Facts, Unkept> {
        let status = parts.status;
        if status == StatusCode::OK && policy::holds_error(&parts.headers, body) {
            Err(Unkept::EnvelopeError)
        } else if says_gone(status) && !self.has_left(read, status) {
            Err(Unkept::Status)
        } else {
            policy::keep(status, &parts.headers, read.has_credential(), asked_at.at, now.at, &read.terms)
        }
    }

    /// Does what was decided of a whole answer.
    fn settle(
        &self,
        errand: &Errand,
        parts: response::Parts,
        body: Bytes,
        verdict: Result<Facts, Unkept>,
        asked_at: Confirmed,
        now: Confirmed,
    ) -> (Answer, Sharing) {
        let read = &*errand.read;
        let status = parts.status;
        match verdict {
            Ok(facts) if !read.is_head => {
                (self.keep(errand, &parts, body, facts, asked_at, now).0, Sharing::Yes)
            }
            verdict => {
                let unkept = verdict.err();
                self.unkept(errand, status, unkept, asked_at);
                let sharing = unkept.map_or(Sharing::Yes, |unkept| sharing(unkept, status));
                (Answer::Passed(Arc::new(Passed { status, headers: parts.headers, body })), sharing)
            }
        }
    }

    /// Makes an entry of a whole answer. It is kept unless something has come in between; tells whether it is.
    fn keep(
        &self,
        errand: &Errand,
        parts: &response::Parts,
        body: Bytes,
        facts: Facts,
        asked_at: Confirmed,
        now: Confirmed,
    ) -> (Answer, bool) {
        let read = &*errand.read;
        let is_incremental = read.ask.is_incremental.then_some("incremental");
        if parts.status == StatusCode::OK
            && let Some(reason) = is_incremental.or_else(|| facts.would_be_refused(&read.terms))
        {
            self.counters.unservable(&read.context.route, reason);
        }
        let entry = Entry::new(
            parts.status,
            &parts.headers,
            body,
            facts,
            now,
            asked_at.monotonic,
            errand.began,
            errand.names,
            Arc::new(read.about()),
            read.asked(),
        );
        let entry = Arc::new(entry);
        let is_kept = self.put(errand, &entry);
        (Answer::Entry { entry, is_kept, is_confirmed: false }, is_kept)
    }

    /// An answer is not kept, and may tell that the older copy must go, or is out of date.
    fn unkept(&self, errand: &Errand, status: StatusCode, unkept: Option<Unkept>, asked_at: Confirmed) {
        let read = &*errand.read;
        let selected = || {
            let variants = self.memory.peek(&read.key)?;
            variants.selected(read.asked()).cloned()
        };
        let is_newer = |old: &Arc<Entry>| old.asked_at > asked_at.monotonic;
        let has_left = self.has_left(read, status);
        if says_gone(status) && !has_left && !read.is_head && !self.is_strict {
            // The copy stays, and says from now on that it was denied. One page of a list says nothing of the others.
            let is_to_mark =
                |old: Arc<Entry>| !is_newer(&old) && !self.marks.is_outdated(errand.names, old.began);
            if read.uri.query().is_none()
                && selected().map_or_else(|| self.on_disk(&read.key) == OnDisk::Maybe, is_to_mark)
            {
                self.marks.path(read.partition, read.uri.path());
            }
        }
        if (has_left || unkept == Some(Unkept::NoStore) && status.is_success()) && !read.is_head {
            match selected() {
                Some(old) if is_newer(&old) => {}
                Some(old) => self.forget(&read.key, Some(&old)),
                None => {
                    self.forget(&read.key, None);
                    // What came back from disk between the two looks.
                    if let Some(old) = selected().filter(|old| !is_newer(old)) {
                        self.forget(&read.key, Some(&old));
                    }
                }
            }
        }
        self.counters.unkept();
        if let Some(reason) = unkept.filter(|_| status.is_success()).and_then(Unkept::as_str) {
            self.counters.unservable(&read.context.route, reason);
        }
    }

    /// An answer is longer than what is kept.
    fn too_large(&self, read: &Read, status: StatusCode) {
        if status.is_success() && !read.is_head {
            self.counters.unservable(&read.context.route, "too-large");
        }
    }

    /// Keeps an entry unless something forbids it. Tells whether it is kept.
    fn put(&self, errand: &Errand, entry: &Arc<Entry>) -> bool {
        let read = &*errand.read;
        self.newest.fetch_max(entry.confirmed.at.as_second(), Ordering::Relaxed);
        if !errand.may_keep
            || entry.body.len() as u64 > read.context.config.settings.cache.max_object.0
            || self.marks.is_cut_off(errand.names, errand.began)
            || self.purges.load(Ordering::Acquire) != errand.purges
        {
            return false;
        }
        self.refusals.keeps(read.partition);
        let persist = || self.persist(read.key, entry);
        if !self.memory.put(read.key, entry.clone(), read.asked(), persist) {
            return false;
        }
        // Asked when it is there: a purge from now on finds it.
        if self.purges.load(Ordering::Acquire) != errand.purges {
            self.forget(&read.key, Some(entry));
            return false;
        }
        if self.marks.is_cut_off(errand.names, errand.began) {
            // Just now, by one who may have looked for copies before this one was there.
            self.marks.path(read.partition, read.uri.path());
        }
        self.objects.keep(read, &entry.about);
        // Who leads has taken the mark's place.
        if !errand.is_led {
            self.flights.unmark_hit_for_miss(&errand.key);
        }
        true
    }
}

fn says_gone(status: StatusCode) -> bool {
    matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE)
}

fn named_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// How an answer whose beginning is there goes to its caller, by its head. `None`: it is read to its end first.
fn way(errand: &Errand, parts: &response::Parts, asked_at: Confirmed, now: Confirmed) -> Option<Way> {
    let read = &*errand.read;
    if !parts.status.is_success() || read.is_head {
        return None;
    }
    let has_credential = read.has_credential();
    match policy::keep(parts.status, &parts.headers, has_credential, asked_at.at, now.at, &read.terms) {
        Ok(facts) if errand.may_keep => Some(Way::Flow(facts)),
        Ok(facts) => Some(Way::Past(facts)),
        Err(unkept) if sharing(unkept, parts.status) == Sharing::No => Some(Way::Alone(unkept)),
        Err(_) => None,
    }
}

/// Who may have an answer that is not kept.
fn sharing(unkept: Unkept, status: StatusCode) -> Sharing {
    match unkept {
        Unkept::NoStore | Unkept::SetCookie | Unkept::VaryAny | Unkept::Private => Sharing::No,
        Unkept::Status if status.is_success() || status.is_redirection() => Sharing::ThisOnce,
        Unkept::Status | Unkept::EnvelopeError => Sharing::Yes,
    }
}

fn endless() -> BodyError {
    BodyError::Cut("it did not come to an end".to_owned())
}

// === impl Reading ===

impl Reading {
    fn new(body: Body, named: Option<u64>, limit: u64) -> Self {
        let length = body.size_hint().exact().or(named);
        Self { body, pieces: Vec::with_capacity(4), total: 0, length, limit }
    }

    /// Reads what is held back.
    async fn hold(&mut self, hold: Hold, last: Instant) -> Result<Come, BodyError> {
        if self.length.is_some_and(|length| length > self.limit) || self.body.size_hint().lower() > self.limit
        {
            return Ok(Come::TooFar);
        }
        let (most, until) = match hold {
            Hold::All => (self.limit, last),
            Hold::Beginning => (BEGINNING, last),
            Hold::Briefly if self.length.is_some_and(|length| length > BEGINNING) => {
                return Ok(Come::Beginning);
            }
            Hold::Briefly => (BEGINNING, last.min(Instant::now() + BRIEFLY)),
        };
        match timeout_at(until, self.read(most)).await {
            Ok(come) => come,
            Err(_) if until < last => Ok(Come::Beginning),
            Err(_) => Err(endless()),
        }
    }

    /// Reads until more than that is there. Nothing is lost when it is dropped before its end.
    async fn read(&mut self, most: u64) -> Result<Come, BodyError> {
        loop {
            if self.total > self.limit {
                return Ok(Come::TooFar);
            }
            // What has all its bytes is about to end.
            if self.total > most && self.length != Some(self.total) && !self.body.is_end_stream() {
                return Ok(Come::Beginning);
            }
            match self.next().await? {
                Some(piece) => self.pieces.push(piece),
                None => return Ok(Come::Whole),
            }
        }
    }

    /// Reads to the end, and tells the caller's end of each piece on the way. `None`: it is longer than what is kept.
    async fn read_into(&mut self, feed: &Feed) -> Result<Option<Bytes>, BodyError> {
        // A caller that knows the length takes the last byte for the end: it comes when all is done.
        let mut last = None;
        while let Some(piece) = self.next().await? {
            if self.length == Some(self.total) {
                last = Some(piece);
                continue;
            }
            feed.push(piece);
            if self.total > self.limit {
                return Ok(None);
            }
        }
        self.pieces = feed.pieces();
        self.pieces.extend(last);
        Ok(Some(self.take()))
    }

    /// The next piece. `None`: the end, and all has come.
    async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await {
            let Ok(data) = frame?.into_data() else { continue };
            if data.is_empty() {
                continue;
            }
            self.total += data.len() as u64;
            if self.length.is_some_and(|length| self.total > length) {
                return Err(BodyError::Cut("it is longer than it says".to_owned()));
            }
            return Ok(Some(data));
        }
        if self.length.is_some_and(|length| self.total != length) {
            return Err(BodyError::Cut("it is shorter than it says".to_owned()));
        }
        Ok(None)
    }

    /// What has come, in one piece. The bytes are copied: a piece of a connection's read buffer would keep all of that
    /// buffer alive for as long as the copy lives.
    fn take(&mut self) -> Bytes {
        match self.pieces.as_mut_slice() {
            [whole] => alone(std::mem::take(whole)),
            pieces => joined(pieces),
        }
    }

    /// What has come goes to who reads the flow.
    fn feed(&mut self) -> (Feed, flow::Flow) {
        let left = self.length.map(|length| length.saturating_sub(self.total));
        flow::pair(std::mem::take(&mut self.pieces), left)
    }

    /// What has come, then the rest.
    fn resumed(self) -> Body {
        match self.pieces.as_slice() {
            [] => self.body,
            pieces => Body::new(Resumed { read: joined(pieces), rest: self.body }),
        }
    }
}

/// The same bytes, with nothing else kept for their sake. What was rewritten is in memory of its own already; all
/// else is a slice of the connection's read buffer.
fn alone(piece: Bytes) -> Bytes {
    match piece.try_into_mut() {
        Ok(own) if own.capacity() <= own.len() + own.len() / 8 + 64 => own.freeze(),
        Ok(roomy) => Bytes::copy_from_slice(&roomy),
        Err(shared) => Bytes::copy_from_slice(&shared),
    }
}

/// All pieces in memory of exactly their length.
fn joined(pieces: &[Bytes]) -> Bytes {
    let mut whole = Vec::with_capacity(pieces.iter().map(Bytes::len).sum());
    for piece in pieces {
        whole.extend_from_slice(piece);
    }
    Bytes::from(whole)
}

// === impl Resumed ===

impl HttpBody for Resumed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.read.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.read)))));
        }
        Pin::new(&mut self.rest).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let read = self.read.len() as u64;
        let mut hint = self.rest.size_hint();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + read);
        }
        hint.set_lower(hint.lower() + read);
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    struct Pieces(VecDeque<Bytes>);

    impl HttpBody for Pieces {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
        }
    }

    #[tokio::test]
    async fn a_body_takes_no_more_room_than_it_needs() {
        for pieces in [1, 2, 3, 5, 9, 17] {
            let body = Body::new(Pieces((0..pieces).map(|_| Bytes::from(vec![b'x'; 4096])).collect()));
            let mut reading = Reading::new(body, None, 1 << 20);
            assert_eq!(reading.read(1 << 20).await.unwrap(), Come::Whole);
            let read = reading.take();
            assert_eq!(read.len(), pieces * 4096);
            let capacity = read.try_into_mut().expect("nobody else holds it").capacity();
            assert!(capacity <= pieces * 4096 * 9 / 8 + 64, "{capacity} for {pieces} pieces");
        }
    }
}
