//! The way of a request through the cache.
//!
//! What is not for the cache goes to the inner service. A read of a cacheable route is answered at once from a fresh
//! copy, without a future being boxed; else it leads, joins or goes alone (see `flight`), waits as long as it makes
//! sense, and ends with the answer, a stale copy, or the error.

use super::Cache;
use super::answer::Why;
use super::disk::OnDisk;
use super::entry::{Asked, Confirmed, Entry};
use super::fetch::{Errand, Hold};
use super::flight::{Answer, Fill, Flight, FlightKey, Led, Outcome, Role};
use super::invalidate::Names;
use super::key::{self, Key};
use super::policy::{self, Ask, Terms, Use};
use super::tier::Unread;
use crate::config::raw::Profile;
use crate::context::{BoxFuture, Credential, Lane, RequestContext, Upstream, is_safe};
use crate::error::ProxyError;
use crate::flexport::incremental::is_incremental;
use crate::http::cache_status::{Forward, Member};
use crate::http::delivery::{self, Class, Delivery};
use crate::http::headers::{self, FLEXPORT_VERSION, SEAWALL_SOURCE, TRACEPARENT, X_REQUEST_ID};
use crate::http::interim::Interim;
use crate::http::range::{self, Part};
use crate::http::reference;
use crate::http::{Body, Present};
use crate::ids::PartitionId;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, AUTHORIZATION, CONTENT_LENGTH, CONTENT_LOCATION, CONTENT_TYPE,
    IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LOCATION, RANGE, RETRY_AFTER,
    TRANSFER_ENCODING, USER_AGENT,
};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use jiff::Timestamp;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use tokio::time::{Instant, timeout_at};
use tower::{Service, ServiceExt};

/// What one caller asks of a representation, by the copy that it has.
static CALLERS_OWN: [HeaderName; 4] = [IF_NONE_MATCH, IF_MODIFIED_SINCE, RANGE, IF_RANGE];

/// The request fields that go upstream on a cacheable route; all of them are in the key.
static KEYED: [HeaderName; 3] = [FLEXPORT_VERSION, ACCEPT, ACCEPT_LANGUAGE];
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const AGENT: HeaderValue = HeaderValue::from_static(concat!("Seawall/", env!("CARGO_PKG_VERSION")));

/// The cache before an inner service.
#[derive(Clone)]
pub struct CacheService<S> {
    inner: S,
    cache: Arc<Cache>,
    upstream: Upstream,
}

/// An answer that is there, or is being made.
pub enum CacheFuture {
    /// A fresh copy; taken when it is polled.
    Ready(Option<Response<Body>>),
    /// All else.
    Boxed(BoxFuture<Result<Response<Body>, ProxyError>>),
}

/// A read that is for the cache.
pub(crate) struct Read {
    pub(crate) context: Arc<RequestContext>,
    pub(crate) partition: PartitionId,
    pub(crate) terms: Terms,
    pub(crate) ask: Ask,
    pub(crate) key: Key,
    pub(crate) is_head: bool,
    /// Whether the caller can tell a body without a length that was cut from one that ended: not in HTTP/1.0.
    pub(crate) knows_chunks: bool,
    pub(crate) uri: Uri,
    /// The caller's own.
    pub(crate) headers: HeaderMap,
    /// Whether all end-to-end fields are forwarded, and `Vary` tells which of them matter.
    is_strict: bool,
    /// Where interim responses go: only to the one caller that a fill has in the strict profile.
    interim: Option<Interim>,
}

/// What the cache has for a read that has to be forwarded.
#[derive(Clone)]
pub(crate) struct Found {
    pub(crate) entry: Option<Arc<Entry>>,
    pub(crate) forward: Forward,
    /// How often copies had been deleted by hand before it was looked for.
    purges: u64,
    /// Whether the upstream refused this token: then nothing of others is shared with it.
    is_refused: bool,
}

/// A call that may change something. One whose caller left before its end may have acted.
struct Unsafe {
    cache: Arc<Cache>,
    context: Arc<RequestContext>,
    partition: PartitionId,
    path: String,
    has_ended: bool,
}

enum Look {
    Done(Response<Body>),
    /// Answer with this, and refresh; so often had copies been deleted by hand.
    Refresh(Response<Body>, Arc<Entry>, u64),
    /// What the disk has of it is not known yet.
    Restore(Found, OnDisk),
    Forward(Found),
}

enum Waited<T> {
    Done(T),
    /// There is a copy, and the upstream takes too long.
    Impatient,
    /// Another's fill takes too long.
    Lock,
    /// The caller's time is over.
    Over,
}

// === impl CacheService ===

impl<S> CacheService<S> {
    pub(crate) fn new(inner: S, cache: Arc<Cache>, upstream: Upstream) -> Self {
        Self { inner, cache, upstream }
    }
}

impl<S> Service<Request<Body>> for CacheService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = ProxyError> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = ProxyError;
    type Future = CacheFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        // A hit needs nothing of the inner service; what does need it asks when it has to.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> CacheFuture {
        let read = match self.cache.read(request) {
            Ok(read) => read,
            Err((request, forward)) => {
                let inner = self.inner.clone();
                return CacheFuture::Boxed(Box::pin(pass(self.cache.clone(), inner, request, forward)));
            }
        };
        match self.cache.look(&read) {
            Look::Done(response) => CacheFuture::Ready(Some(response)),
            Look::Refresh(response, entry, purges) => {
                self.cache.refresh(&self.upstream, read, entry, purges);
                CacheFuture::Ready(Some(response))
            }
            Look::Restore(found, on_disk) => CacheFuture::Boxed(Box::pin(restore(
                self.cache.clone(),
                self.upstream.clone(),
                Arc::new(read),
                found,
                on_disk,
            ))),
            Look::Forward(found) => CacheFuture::Boxed(Box::pin(fetch(
                self.cache.clone(),
                self.upstream.clone(),
                Arc::new(read),
                found,
            ))),
        }
    }
}

impl Future for CacheFuture {
    type Output = Result<Response<Body>, ProxyError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Ready(response) => {
                Poll::Ready(Ok(response.take().expect("a future is not polled after its end")))
            }
            Self::Boxed(future) => future.as_mut().poll(cx),
        }
    }
}

// === impl Read ===

impl Read {
    /// The request fields that can select a variant.
    pub(crate) fn asked(&self) -> Asked<'_> {
        Asked { headers: &self.headers, forwarded: (!self.is_strict).then_some(&KEYED[..]) }
    }

    /// Whether the caller's copy is still the one it would get.
    pub(crate) fn is_unchanged<'a>(
        &self,
        stored: impl Fn(&HeaderName) -> Option<&'a HeaderValue>,
        now: Timestamp,
    ) -> bool {
        self.context.present.has(Present::CONDITIONAL) && policy::is_unchanged(&self.headers, stored, now)
    }

    /// Which part of a copy the caller asks for. Where links are rewritten it gets the whole: its offsets are those of
    /// other bytes.
    pub(crate) fn part_of(&self, entry: &Entry, now: Timestamp) -> Part {
        let may_be_part = self.context.present.has(Present::CONDITIONAL)
            && !self.is_head
            && entry.status == StatusCode::OK
            && self.headers.contains_key(RANGE)
            && (self.is_strict || !headers::is_json(entry.head.get(&CONTENT_TYPE)));
        if !may_be_part {
            return Part::Whole;
        }
        range::asked(&self.headers, |name| entry.head.get(name), entry.body.len(), now)
    }

    /// The key of another target that is asked for with the same fields.
    pub(crate) fn key_of(&self, target: &str) -> Key {
        key_of(&self.context, self.partition, target, &self.headers, self.is_strict)
    }

    pub(crate) fn has_credential(&self) -> bool {
        !matches!(self.context.identity().credential, Credential::None)
            || self.headers.contains_key(AUTHORIZATION)
    }

    /// The request that goes upstream, made anew: nothing gets through that is not meant to.
    pub(crate) fn outgoing(&self, base: Option<&Entry>) -> Request<Body> {
        let mut headers = if self.is_strict {
            let mut headers = self.headers.clone();
            headers::strip_for_upstream(&mut headers);
            // With a copy at hand it is the whole of that which is asked about; without one, the caller's own question
            // goes forward.
            if base.is_some() {
                for name in &CALLERS_OWN {
                    headers.remove(name);
                }
            }
            headers
        } else {
            let mut headers = HeaderMap::with_capacity(12);
            let trace = self.context.present.has(Present::TRACE).then_some(&TRACESTATE);
            for name in KEYED.iter().chain(trace) {
                for value in self.headers.get_all(name) {
                    headers.append(name.clone(), value.clone());
                }
            }
            headers.insert(USER_AGENT, AGENT);
            // What comes is rewritten, and kept for callers of any coding.
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            headers
        };
        headers.insert(X_REQUEST_ID, self.context.request_id.clone());
        headers.insert(TRACEPARENT, self.context.traceparent.clone());
        if let Some(entry) = base {
            entry.ask_if_changed(&mut headers);
        }
        let mut request = Request::new(Body::empty());
        *request.method_mut() = if self.is_head { Method::HEAD } else { Method::GET };
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = headers;
        if let Some(interim) = &self.interim {
            request.extensions_mut().insert(interim.clone());
        }
        request
    }
}

// === impl Cache ===

impl Cache {
    /// Takes a request as a read, or tells why it is none.
    #[expect(clippy::result_large_err, reason = "the request goes on, it is not an error that travels")]
    pub(crate) fn read(&self, request: Request<Body>) -> Result<Read, (Request<Body>, Forward)> {
        let is_head = *request.method() == Method::HEAD;
        if !is_head && *request.method() != Method::GET {
            return Err((request, Forward::Method));
        }
        let context = RequestContext::of(&request);
        let settings = &context.config.settings;
        let terms = match (&context.route.cache, self.is_strict) {
            (_, true) => Terms::strict(&settings.cache),
            (Some(route), false) if settings.profile == Profile::Flexport => {
                Terms::of_route(route, &settings.cache)
            }
            _ => return Err((request, Forward::Bypass)),
        };
        let Some(partition) = self.partition(context.identity().partition) else {
            return Err((request, Forward::Bypass));
        };
        let headers = request.headers();
        let present = context.present;
        let names_content = present.has(Present::FRAMING)
            && (headers.contains_key(TRANSFER_ENCODING)
                || headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0"));
        let is_about_a_change = present.has(Present::CONDITIONAL)
            && (headers.contains_key(IF_MATCH) || headers.contains_key(IF_UNMODIFIED_SINCE));
        if names_content || is_about_a_change || !request.body().is_end_stream() {
            return Err((request, Forward::Bypass));
        }
        let context = context.clone();
        let (mut parts, _) = request.into_parts();
        let target = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let key = key_of(&context, partition, target.as_str(), &parts.headers, self.is_strict);
        let mut ask = if present.has(Present::CACHE) || present.has(Present::OURS) {
            Ask::of(&parts.headers, context.config.settings.cache.honour_request_cc)
        } else {
            Ask::default()
        };
        ask.is_incremental = !self.is_strict && is_incremental(target.query());
        Ok(Read {
            context,
            partition,
            terms,
            ask,
            key,
            is_head,
            knows_chunks: parts.version > Version::HTTP_10,
            uri: Uri::from(target),
            headers: parts.headers,
            is_strict: self.is_strict,
            interim: parts.extensions.remove().filter(|_| self.is_strict),
        })
    }

    /// Answers from a copy, or tells what there is.
    fn look(&self, read: &Read) -> Look {
        // Before a copy is found: what is deleted from now on is not renewed.
        let purges = self.purges.load(Ordering::Acquire);
        let found = |entry, forward| Look::Forward(Found { entry, forward, purges, is_refused: false });
        let looked = if self.is_refused(read) {
            Look::Forward(Found { entry: None, forward: Forward::Bypass, purges, is_refused: true })
        } else if let Some(variants) = self.memory.get(&read.key) {
            let asked = read.asked();
            match variants.selected(asked) {
                None => found(None, Forward::VaryMiss),
                Some(entry) => {
                    let now = self.now();
                    match self.use_of(read, entry, &now) {
                        Use::Fresh => return Look::Done(self.fresh(read, entry, &now)),
                        Use::Tolerated if self.may_stand_in(read, entry, Why::TOLERATED, &now).is_ok() => {
                            return Look::Done(self.stale(read, entry, Why::TOLERATED, &now));
                        }
                        Use::WhileRevalidating
                            if !read.ask.directives.only_if_cached && self.is_proven(read) =>
                        {
                            let response = self.stale(read, entry, Why::REVALIDATING, &now);
                            return Look::Refresh(response, entry.clone(), purges);
                        }
                        Use::Tolerated | Use::WhileRevalidating => found(Some(entry.clone()), Forward::Stale),
                        Use::Revalidate(forward) => found(Some(entry.clone()), forward),
                    }
                }
            }
        } else {
            found(None, Forward::UriMiss)
        };
        let Look::Forward(found) = looked else { return looked };
        let on_disk =
            if found.entry.is_some() || found.is_refused { OnDisk::No } else { self.on_disk(&read.key) };
        match on_disk {
            // What is on disk may be what it allows.
            OnDisk::Maybe => Look::Restore(found, on_disk),
            _ if read.ask.directives.only_if_cached => Look::Done(self.not_cached(read)),
            OnDisk::Unknown => Look::Restore(found, on_disk),
            OnDisk::No => Look::Forward(found),
        }
    }

    /// Whether the upstream refused this token. Asked again whenever a copy is about to be served after a wait: the
    /// refusal may have come meanwhile.
    pub(crate) fn is_refused(&self, read: &Read) -> bool {
        let token = || self.refusals.token(&read.context.identity().credential);
        self.refusals.is_refused(read.partition, token, &read.key)
    }

    /// What is done with a copy.
    pub(crate) fn use_of(&self, read: &Read, entry: &Entry, now: &Confirmed) -> Use {
        let age = entry.facts.age(entry.confirmed.since(now));
        let is_outdated =
            entry.confirmed.is_ahead_of(now) || self.marks.is_outdated(entry.names, entry.began);
        entry.facts.judge(age, is_outdated, &read.ask)
    }

    pub(crate) fn names(&self, read: &Read) -> Names {
        let tag = read.context.route.cache.as_ref().map_or("", |policy| policy.tag.as_str());
        self.marks.names(read.partition, read.uri.path(), tag)
    }

    /// The copy that was found, if it still may be served: not to a token that was refused meanwhile, nor when it was
    /// deleted by hand.
    pub(crate) fn still<'a>(&self, read: &Read, found: &'a Found) -> Option<&'a Arc<Entry>> {
        let entry = found.entry.as_ref().filter(|_| !self.is_refused(read))?;
        let is_there = || {
            let variants = self.memory.peek(&read.key);
            variants.is_some_and(|variants| variants.iter().any(|one| Arc::ptr_eq(one, entry)))
        };
        (self.purges.load(Ordering::Acquire) == found.purges || is_there()).then_some(entry)
    }

    /// Refreshes a copy in the background, unless it is being refreshed, or too many are.
    fn refresh(self: &Arc<Self>, upstream: &Upstream, mut read: Read, entry: Arc<Entry>, purges: u64) {
        let Ok(permit) = self.refreshes.clone().try_acquire_owned() else { return };
        let key =
            FlightKey { key: read.key, token: self.refusals.token(&read.context.identity().credential) };
        if self.rests.is_resting(&key, Instant::now()) {
            return;
        }
        read.is_head = false;
        read.interim = None;
        // What one caller asked of the whole is no matter of all others.
        for name in &CALLERS_OWN {
            read.headers.remove(name);
        }
        let names = self.names(&read);
        let began = self.marks.moment();
        let is_cut_off = |moment| self.marks.is_cut_off(names, moment);
        if let Role::Lead(landing) = self.flights.enter(key, Instant::now(), began, is_cut_off) {
            let errand = Errand {
                read: Arc::new(read),
                base: entry.has_validator().then_some(entry),
                began,
                names,
                key,
                is_led: true,
                may_keep: true,
                purges,
                hold: Hold::All,
                lane: Lane::Refresh,
            };
            let run = super::fetch::run(self.clone(), upstream.clone(), errand, Some(landing));
            let this = self.clone();
            self.tasks.spawn("cache-refresh", async move {
                let has_failed = match run.await {
                    Led::Shared(Outcome::Failed(_)) => true,
                    Led::Shared(Outcome::Answer(Answer::Passed(passed))) => {
                        let names_wait = passed.headers.contains_key(RETRY_AFTER);
                        delivery::of_answer(passed.status, names_wait).is_outage()
                    }
                    Led::Shared(Outcome::Answer(Answer::Entry { .. }) | Outcome::Alone)
                    | Led::Streamed(_)
                    | Led::Flowing(_) => false,
                };
                this.rests.ended(key, has_failed, Instant::now());
                drop(permit);
            });
        }
    }

    /// Waits for what is being fetched, as long as it makes sense.
    async fn wait<F: Future + Unpin>(
        &self,
        future: &mut F,
        read: &Read,
        has_copy: bool,
        began: Instant,
        is_joined: bool,
    ) -> Waited<F::Output> {
        let settings = &read.context.config.settings;
        let deadline = read.context.deadline;
        let soon = began + *settings.breaker.stale_deadline;
        let slow = settings.breaker.slow_of_reads(&read.context.route.group);
        let late = began + slow.max(*settings.breaker.stale_deadline);
        let lock = began + *settings.cache.lock_wait;
        let mut is_soon_over = false;
        loop {
            let mut until = deadline;
            if has_copy {
                until = until.min(if is_soon_over { late } else { soon });
            }
            if is_joined {
                until = until.min(lock);
            }
            if let Ok(done) = timeout_at(until, &mut *future).await {
                return Waited::Done(done);
            }
            // Which of them it was; with a copy at hand that is better than an error.
            if has_copy && until >= late.min(deadline) {
                return Waited::Impatient;
            }
            if has_copy && !is_soon_over && until >= soon {
                if self.health.shows_failures(&read.context.route.group) {
                    return Waited::Impatient;
                }
                is_soon_over = true;
                if until < lock || !is_joined {
                    continue;
                }
            }
            return if until >= deadline { Waited::Over } else { Waited::Lock };
        }
    }
}

fn key_of(
    context: &RequestContext,
    partition: PartitionId,
    target: &str,
    headers: &HeaderMap,
    is_strict: bool,
) -> Key {
    let parts = key::Parts {
        partition,
        upstream: &context.config.settings.upstream.base_url,
        public_url: &context.config.public_url,
        target,
    };
    key::of(&parts, headers, if is_strict { &[] } else { &KEYED })
}

/// Forwards a read, with what the disk has of it.
async fn restore(
    cache: Arc<Cache>,
    upstream: Upstream,
    read: Arc<Read>,
    mut found: Found,
    on_disk: OnDisk,
) -> Result<Response<Body>, ProxyError> {
    found.purges = cache.purges.load(Ordering::Acquire);
    let restored = if on_disk == OnDisk::Maybe {
        timeout_at(read.context.deadline, cache.restore(&read)).await.unwrap_or(Err(Unread))
    } else {
        Ok(None)
    };
    if cache.is_refused(&read) {
        // The refusal came while the disk was read.
        found = Found { entry: None, forward: Forward::Bypass, is_refused: true, ..found };
    } else if let Ok(Some(entry)) = &restored {
        let now = cache.now();
        match cache.use_of(&read, entry, &now) {
            Use::Fresh => return Ok(cache.fresh(&read, entry, &now)),
            Use::Tolerated if cache.may_stand_in(&read, entry, Why::TOLERATED, &now).is_ok() => {
                return Ok(cache.stale(&read, entry, Why::TOLERATED, &now));
            }
            Use::Tolerated | Use::WhileRevalidating => found.forward = Forward::Stale,
            Use::Revalidate(forward) => found.forward = forward,
        }
        found.entry = Some(entry.clone());
    }
    if read.ask.directives.only_if_cached {
        return Ok(cache.not_cached(&read));
    }
    let result = fetch(cache.clone(), upstream, read.clone(), found.clone()).await;
    if !(on_disk == OnDisk::Unknown || restored.is_err()) || !is_outage(&result) {
        return result;
    }
    // The start of the process: what it knew is better than an error, and there in a moment.
    cache.opened(read.context.deadline).await;
    found.purges = cache.purges.load(Ordering::Acquire);
    found.entry = cache.restore(&read).await.unwrap_or_default();
    let why = Why::of(&result);
    Ok(match cache.stand_in(&read, &found, why, &cache.now()).await {
        Some(response) => response,
        None => return result,
    })
}

/// Whether what a read ended with tells of an outage.
fn is_outage(result: &Result<Response<Body>, ProxyError>) -> bool {
    match result {
        Ok(response) => {
            let names_wait = response.headers().contains_key(RETRY_AFTER);
            delivery::of_answer(response.status(), names_wait).is_outage()
        }
        Err(error) => delivery::of_error(error).is_outage(),
    }
}

/// Forwards a read and waits for its end.
async fn fetch(
    cache: Arc<Cache>,
    upstream: Upstream,
    read: Arc<Read>,
    found: Found,
) -> Result<Response<Body>, ProxyError> {
    let arrived = Instant::now();
    let key = FlightKey { key: read.key, token: cache.refusals.token(&read.context.identity().credential) };
    let names = cache.names(&read);
    let began = cache.marks.moment();
    let may_keep = !read.ask.directives.no_store;
    // A HEAD is not kept, `no-store` is for one caller, a refused token shares nothing, and what the strict profile
    // forwards is not all in the key.
    let is_for_one = read.is_head || !may_keep || found.is_refused || read.is_strict;
    let role = if is_for_one {
        Role::Alone
    } else {
        let role = cache.flights.enter(key, arrived, began, |moment| cache.marks.is_cut_off(names, moment));
        if matches!(role, Role::Alone) {
            cache.counters.hit_for_miss.inc();
        }
        role
    };
    let may_stand_in = |entry| cache.may_stand_in(&read, entry, Why::TOO_SLOW, &cache.now()).is_ok();
    let has_copy = found.entry.as_deref().is_some_and(may_stand_in);
    let hold = if has_copy { Hold::Beginning } else { Hold::Briefly };
    let errand = |is_led| Errand {
        read: read.clone(),
        base: found.entry.clone().filter(|entry| entry.has_validator() && !read.is_head),
        began: if is_led { began } else { cache.marks.moment() },
        names,
        key,
        is_led,
        may_keep,
        purges: found.purges,
        hold,
        lane: Lane::LiveRead,
    };
    let landing = match role {
        Role::Lead(landing) => Some(landing),
        Role::Alone => None,
        Role::Join(flight) => match join(&cache, &read, &found, has_copy, &flight, arrived).await {
            Some(end) => return end,
            None => None,
        },
    };
    let run = super::fetch::run(cache.clone(), upstream, errand(landing.is_some()), landing);
    let mut fill = Fill::new(run, &cache.tasks);
    match cache.wait(&mut fill, &read, has_copy, arrived, false).await {
        Waited::Done(Led::Shared(outcome)) => cache.conclude(&read, &found, outcome, false).await,
        Waited::Done(Led::Streamed(response)) => Ok(cache.streamed(&read, &found, response).await),
        Waited::Done(Led::Flowing(flowing)) => Ok(cache.flowing(&read, &found, *flowing)),
        Waited::Impatient | Waited::Lock | Waited::Over => {
            match cache.still(&read, &found).filter(|_| has_copy) {
                Some(entry) => Ok(cache.stale(&read, entry, Why::TOO_SLOW, &cache.now())),
                None => cache.conclude(&read, &found, Outcome::Failed(ProxyError::HeadTimeout), false).await,
            }
        }
    }
}

/// Waits for another's fill. `None`: go on alone.
async fn join(
    cache: &Cache,
    read: &Read,
    found: &Found,
    has_copy: bool,
    flight: &Flight,
    arrived: Instant,
) -> Option<Result<Response<Body>, ProxyError>> {
    let mut landed = std::pin::pin!(flight.landed());
    let mut is_joined = true;
    loop {
        let end = match cache.wait(&mut landed, read, has_copy, arrived, is_joined).await {
            Waited::Done(Outcome::Alone) => return None,
            Waited::Done(outcome) => cache.conclude(read, found, outcome, true).await,
            Waited::Lock => match cache.still(read, found).filter(|_| has_copy) {
                Some(entry) => Ok(cache.stale(read, entry, Why::REVALIDATING, &cache.now())),
                None if flight.may_leave() => return None,
                None => {
                    is_joined = false;
                    continue;
                }
            },
            Waited::Impatient | Waited::Over => match cache.still(read, found).filter(|_| has_copy) {
                Some(entry) => Ok(cache.stale(read, entry, Why::TOO_SLOW, &cache.now())),
                None => cache.conclude(read, found, Outcome::Failed(ProxyError::HeadTimeout), true).await,
            },
        };
        return Some(end);
    }
}

/// Lets a request go by that is not for the cache, and looks at what it may have changed.
async fn pass<S>(
    cache: Arc<Cache>,
    inner: S,
    request: Request<Body>,
    forward: Forward,
) -> Result<Response<Body>, ProxyError>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = ProxyError>,
{
    cache.counters.bypass.inc();
    let context = RequestContext::of(&request).clone();
    let partition = cache.partition(context.identity().partition);
    let asked_at = Instant::now();
    let mut unsafe_call = match partition {
        Some(partition) if !is_safe(request.method()) => Some(Unsafe {
            cache: cache.clone(),
            context: context.clone(),
            partition,
            path: request.uri().path().to_owned(),
            has_ended: false,
        }),
        _ => None,
    };
    let mut result = inner.oneshot(request).await;
    if let Some(call) = &mut unsafe_call {
        call.has_ended = true;
    }
    let is_ours = result.as_ref().is_ok_and(|response| response.headers().contains_key(SEAWALL_SOURCE));
    let Some(partition) = partition else {
        return result.map(|response| tell_passed(response, forward, is_ours));
    };
    if let Some(call) = &unsafe_call
        && !is_ours
        && may_have_acted(&result, cache.is_strict)
    {
        call.invalidate();
        if let Ok(response) = &result {
            for name in [LOCATION, CONTENT_LOCATION] {
                let named = response.headers().get(name).and_then(|value| value.to_str().ok());
                // The upstream's own name stands in it where links are not rewritten.
                let config = &context.config;
                let path = [&*config.public_url, config.settings.upstream.base_url.trim_end_matches('/')]
                    .into_iter()
                    .find_map(|base| reference::own_path(named?, base, &call.path));
                if let Some(path) = path {
                    cache.marks.path(partition, &path);
                }
            }
        }
    }
    if let Ok(response) = &mut result
        && !is_ours
    {
        let token = cache.refusals.token(&context.identity().credential);
        cache.note(partition, token, None, response.status(), asked_at).await;
    }
    result.map(|response| tell_passed(response, forward, is_ours))
}

// === impl Unsafe ===

impl Unsafe {
    /// What it names is out of date.
    fn invalidate(&self) {
        self.cache.marks.path(self.partition, &self.path);
        for tag in &self.context.route.queue.invalidates {
            self.cache.marks.tag(self.partition, tag);
        }
    }
}

impl Drop for Unsafe {
    fn drop(&mut self) {
        if !self.has_ended {
            self.invalidate();
        }
    }
}

fn tell_passed(mut response: Response<Body>, forward: Forward, is_ours: bool) -> Response<Body> {
    if !is_ours {
        Member::forwarded(forward).append_to(response.headers_mut());
        response.headers_mut().insert(SEAWALL_SOURCE, HeaderValue::from_static("upstream"));
    }
    response
}

/// Whether an unsafe request may have changed anything: RFC 9111 §4.4 asks for it on a success; what is not known
/// counts as one. So does an error of the server, which may have come after the act; only the strict profile takes the
/// RFC by the letter there.
fn may_have_acted(result: &Result<Response<Body>, ProxyError>, is_strict: bool) -> bool {
    if is_strict && result.as_ref().is_ok_and(|response| response.status().is_server_error()) {
        return false;
    }
    let delivery = delivery::of(match result {
        Ok(response) => Ok((response.status(), response.headers())),
        Err(error) => Err(error),
    });
    match delivery {
        Delivery::Answered(Class::Success) => {
            result.as_ref().is_ok_and(|response| !response.status().is_client_error())
        }
        Delivery::Ambiguous(_) => true,
        Delivery::NotSent(_) | Delivery::Refused(_) | Delivery::Answered(_) => false,
    }
}
