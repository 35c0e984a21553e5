//! Pure. What may be kept, what is fresh, and what may stand in for an answer in an outage.
//!
//! A partition serves one user of the API, so by RFC 9111 this is a private cache: `private` answers and answers to
//! requests with credentials may be kept. `is_shared` applies the rules of a shared one.
//!
//! Two deliberate readings:
//! - **A successful answer that names no freshness is kept and never fresh** (unless the route has a `ttl`): there
//!   is no guessing by heuristic, every read asks, and the copy is there for the outage.
//! - **Stale in an outage against `must-revalidate`, `no-cache`, `proxy-revalidate`, `s-maxage`** is what RFC 9111
//!   §4.2.4 forbids; it happens only where the route says `override_revalidation`, and never for `no-store`, which
//!   is not kept at all.

use crate::config::raw;
use crate::flexport::routes::CachePolicy;
use crate::http::cache_control::{RequestDirectives, ResponseDirectives};
use crate::http::date;
use crate::http::headers::{delta_seconds, members};
use http::header::{
    AGE, CACHE_CONTROL, CONTENT_TYPE, DATE, ETAG, EXPIRES, IF_MODIFIED_SINCE, IF_NONE_MATCH,
    LAST_MODIFIED, PRAGMA, SET_COOKIE, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use jiff::Timestamp;
use std::time::Duration;

/// What applies to one request: the route's policy, or that of the profile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// How long an answer that names no freshness is fresh.
    pub(crate) ttl: Duration,
    /// How long after it was last confirmed a copy may be served in an outage.
    pub(crate) max_stale: Duration,
    /// The same when the upstream only pushes back.
    pub(crate) max_stale_429: Duration,
    /// Whether an outage overrides `must-revalidate` and the like.
    pub(crate) overrides_revalidation: bool,
    /// Whether the rules of a shared cache apply.
    pub(crate) is_shared: bool,
    /// Whether any status with explicit freshness is kept.
    pub(crate) keeps_any_status: bool,
}

/// What the request asks of the cache.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ask {
    /// Its `Cache-Control`, when that is honoured.
    pub(crate) directives: RequestDirectives,
    /// `Seawall-Stale: never`.
    pub(crate) refuses_stale: bool,
}

/// What was read from an answer when it was kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// How long it is fresh, from its origin.
    pub(crate) lifetime: Duration,
    /// Whether the answer itself names that.
    pub(crate) is_explicit: bool,
    /// Its age when it arrived (RFC 9111 §4.2.3).
    pub(crate) initial_age: Duration,
    /// `no-cache` without a list of fields.
    pub(crate) no_cache: bool,
    /// The first directive found that forbids serving it stale.
    pub(crate) forbids_stale: Option<&'static str>,
    /// Whether it came with an `Age`, out of a cache on the way.
    pub(crate) came_with_age: bool,
    /// `private`.
    pub(crate) is_private: bool,
    /// `stale-if-error` (RFC 5861).
    pub(crate) stale_if_error: Option<Duration>,
    /// `stale-while-revalidate` (RFC 5861).
    pub(crate) stale_while_revalidate: Option<Duration>,
}

/// Why an answer is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unkept {
    /// `no-store`. An older copy goes too.
    NoStore,
    /// `private`, or to a request with credentials, under the rules of a shared cache.
    Private,
    /// `Set-Cookie`.
    SetCookie,
    /// `Vary: *`.
    VaryAny,
    /// A status that is not kept, or not without explicit freshness.
    Status,
    /// 200 with an error in Flexport's envelope.
    EnvelopeError,
}

/// What is done with a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Answer with it.
    Fresh,
    /// Answer with it, though stale: the request allows that (`max-stale`).
    Tolerated,
    /// Answer with it and refresh it in the background (RFC 5861 §3).
    WhileRevalidating,
    /// Ask upstream.
    Revalidate(Forward),
}

/// Why a request is forwarded: RFC 9211 §2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forward {
    /// Not for the cache at all.
    Bypass,
    /// By its method.
    Method,
    /// Nothing of this URI.
    UriMiss,
    /// Nothing of this URI for these request fields.
    VaryMiss,
    /// A copy, not fresh.
    Stale,
    /// A fresh copy, but the request wants it confirmed.
    Request,
}

/// Why a copy cannot stand in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// By `Seawall-Stale: never`.
    Asked,
    /// Confirmed too long ago.
    TooOld,
    /// By this directive of the answer.
    Directive(&'static str),
}

// === impl Terms ===

impl Terms {
    /// Those of a route in the Flexport profile.
    pub(crate) fn of_route(route: &CachePolicy, settings: &raw::Cache) -> Self {
        Self {
            ttl: route.ttl,
            max_stale: route.max_stale,
            max_stale_429: *settings.max_stale_429,
            overrides_revalidation: route.overrides_revalidation,
            is_shared: false,
            keeps_any_status: false,
        }
    }

    /// Those of the strict profile: plain HTTP, shared, nothing overridden.
    pub(crate) fn strict(settings: &raw::Cache) -> Self {
        Self {
            ttl: Duration::ZERO,
            max_stale: *settings.max_stale,
            max_stale_429: *settings.max_stale_429,
            overrides_revalidation: false,
            is_shared: true,
            keeps_any_status: true,
        }
    }
}

// === impl Ask ===

impl Ask {
    /// From a request's fields. Nothing is parsed when nothing is asked.
    pub(crate) fn of(headers: &HeaderMap, honours: bool) -> Self {
        let mut ask = Self::default();
        if honours {
            if headers.contains_key(CACHE_CONTROL) {
                ask.directives = RequestDirectives::of(headers);
            } else if let Some(pragma) = headers.get(PRAGMA) {
                // RFC 9111 §5.4: only without `Cache-Control`.
                ask.directives.no_cache = pragma.as_bytes().eq_ignore_ascii_case(b"no-cache");
            }
        }
        ask.refuses_stale =
            headers.get("seawall-stale").is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"never"));
        ask
    }
}

// === impl Facts ===

impl Facts {
    /// Reads an answer that arrived at `now`, `delay` after its request left.
    pub(crate) fn of(headers: &HeaderMap, now: Timestamp, delay: Duration, terms: &Terms) -> Self {
        let directives = ResponseDirectives::of(headers);
        Self::with(&directives, headers, now, delay, terms)
    }

    fn with(
        directives: &ResponseDirectives,
        headers: &HeaderMap,
        now: Timestamp,
        delay: Duration,
        terms: &Terms,
    ) -> Self {
        let stated = headers
            .get(DATE)
            .and_then(|value| date::parse(value.as_bytes().trim_ascii(), now))
            .unwrap_or(now);
        let explicit = directives
            .s_maxage
            .filter(|_| terms.is_shared)
            .or(directives.max_age)
            .or_else(|| expires_in(headers, stated, now));
        Self {
            lifetime: explicit.unwrap_or(if directives.no_cache { Duration::ZERO } else { terms.ttl }),
            is_explicit: explicit.is_some(),
            initial_age: initial_age(headers, stated, now, delay),
            came_with_age: headers.contains_key(AGE),
            no_cache: directives.no_cache,
            forbids_stale: [
                (directives.must_revalidate, "must-revalidate"),
                (directives.no_cache, "no-cache"),
                (directives.proxy_revalidate, "proxy-revalidate"),
                (directives.s_maxage.is_some(), "s-maxage"),
            ]
            .into_iter()
            .find_map(|(is_set, name)| is_set.then_some(name)),
            is_private: directives.private,
            stale_if_error: directives.stale_if_error,
            stale_while_revalidate: directives.stale_while_revalidate,
        }
    }

    /// How old it is, this long after it arrived.
    pub(crate) fn age(&self, resident: Duration) -> Duration {
        self.initial_age.saturating_add(resident)
    }

    /// Seconds of freshness left; when there are none, at most −1, the age rounded up.
    pub(crate) fn ttl(&self, age: Duration) -> i64 {
        if age < self.lifetime {
            i64::try_from((self.lifetime - age).as_secs()).unwrap_or(i64::MAX)
        } else {
            overdue(age.saturating_sub(self.lifetime))
        }
    }

    /// What is done with a copy of this age. `is_outdated`: a write invalidated it, or the clock cannot be trusted.
    pub(crate) fn judge(&self, age: Duration, is_outdated: bool, ask: &Ask) -> Use {
        let asked = &ask.directives;
        if is_outdated || self.no_cache {
            return Use::Revalidate(Forward::Stale);
        }
        if asked.no_cache || asked.no_store {
            return Use::Revalidate(if age < self.lifetime { Forward::Request } else { Forward::Stale });
        }
        if age < self.lifetime {
            let is_too_old = asked.max_age.is_some_and(|limit| age > limit || limit.is_zero());
            let ends_too_soon = asked.min_fresh.is_some_and(|least| self.lifetime - age < least);
            return if is_too_old || ends_too_soon { Use::Revalidate(Forward::Request) } else { Use::Fresh };
        }
        let overdue = age - self.lifetime;
        if self.forbids_stale.is_none() && asked.max_age.is_none_or(|limit| age <= limit) {
            if asked.max_stale.is_some_and(|limit| limit.is_none_or(|limit| overdue <= limit)) {
                return Use::Tolerated;
            }
            if self.stale_while_revalidate.is_some_and(|window| overdue <= window)
                && asked.min_fresh.is_none()
                && !ask.refuses_stale
            {
                return Use::WhileRevalidating;
            }
        }
        Use::Revalidate(Forward::Stale)
    }

    /// Whether a copy of this age, confirmed this long ago, may stand in for a failure.
    pub(crate) fn may_stand_in(
        &self,
        age: Duration,
        since_confirmed: Duration,
        is_push_back: bool,
        terms: &Terms,
        ask: &Ask,
    ) -> Result<(), Refused> {
        if ask.refuses_stale {
            return Err(Refused::Asked);
        }
        let limit = if is_push_back { terms.max_stale.min(terms.max_stale_429) } else { terms.max_stale };
        if since_confirmed > limit {
            return Err(Refused::TooOld);
        }
        if terms.overrides_revalidation {
            return Ok(());
        }
        if let Some(directive) = self.forbids_stale {
            return Err(Refused::Directive(directive));
        }
        if self.stale_if_error.is_some_and(|window| age.saturating_sub(self.lifetime) > window) {
            return Err(Refused::TooOld);
        }
        Ok(())
    }

    /// The directive for which a copy could not stand in: told while all is well, so that it is found before the
    /// outage.
    pub(crate) fn would_be_refused(&self, terms: &Terms) -> Option<&'static str> {
        self.forbids_stale.filter(|_| !terms.overrides_revalidation)
    }
}

// === impl Forward ===

impl Forward {
    /// Its name in `Cache-Status`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Stale => "stale",
            Self::Request => "request",
        }
    }
}

// === impl Refused ===

impl Refused {
    /// The label of the metric.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::TooOld => "too-old",
            Self::Directive(name) => name,
        }
    }
}

/// Whether an answer is kept, and what is known of it then. The envelope is looked at by [`holds_error`].
pub(crate) fn keep(
    status: StatusCode,
    headers: &HeaderMap,
    has_credential: bool,
    now: Timestamp,
    delay: Duration,
    terms: &Terms,
) -> Result<Facts, Unkept> {
    let directives = ResponseDirectives::of(headers);
    if directives.no_store {
        return Err(Unkept::NoStore);
    }
    if headers.contains_key(SET_COOKIE) {
        return Err(Unkept::SetCookie);
    }
    if terms.is_shared {
        let is_opened = directives.public || directives.must_revalidate || directives.s_maxage.is_some();
        if directives.private || (has_credential && !is_opened) {
            return Err(Unkept::Private);
        }
    }
    if names_any(headers) {
        return Err(Unkept::VaryAny);
    }
    let facts = Facts::with(&directives, headers, now, delay, terms);
    let is_kept = match status.as_u16() {
        200 => true,
        206 | 304 | 0..=199 => false,
        203 | 204 | 300 | 301 | 308 | 404 | 410 => facts.is_explicit,
        _ => terms.keeps_any_status && facts.is_explicit,
    };
    if is_kept { Ok(facts) } else { Err(Unkept::Status) }
}

/// How long a stale copy is overdue, as `ttl` says it: rounded up, at most −1.
fn overdue(span: Duration) -> i64 {
    let seconds = span.as_secs() + u64::from(span.subsec_nanos() > 0);
    -i64::try_from(seconds.max(1)).unwrap_or(i64::MAX)
}

/// `Expires` (RFC 9111 §5.3): what is not a date, or stands twice, has expired.
fn expires_in(headers: &HeaderMap, stated: Timestamp, now: Timestamp) -> Option<Duration> {
    let mut values = headers.get_all(EXPIRES).iter();
    let first = values.next()?;
    if values.next().is_some() {
        return Some(Duration::ZERO);
    }
    let until = date::parse(first.as_bytes().trim_ascii(), now);
    Some(until.map_or(Duration::ZERO, |until| crate::clock::since(until, stated)))
}

/// RFC 9111 §4.2.3, with the apparent age in whole seconds, since `Date` has no finer.
fn initial_age(headers: &HeaderMap, stated: Timestamp, now: Timestamp, delay: Duration) -> Duration {
    let apparent = now.as_second().saturating_sub(stated.as_second());
    let apparent = Duration::from_secs(u64::try_from(apparent).unwrap_or(0));
    let named = headers
        .get(AGE)
        .and_then(|age| delta_seconds(members(age.as_bytes()).next()?))
        .map_or(Duration::ZERO, |seconds| Duration::from_secs(seconds) + delay);
    apparent.max(named)
}

/// The fields that `Vary` names. `*` and what is no field name are told by [`names_any`].
pub(crate) fn varying(headers: &HeaderMap) -> Vec<HeaderName> {
    let mut names = Vec::new();
    for name in headers.get_all(VARY).iter().flat_map(|line| members(line.as_bytes())) {
        if let Ok(name) = HeaderName::from_bytes(name)
            && !names.contains(&name)
        {
            names.push(name);
        }
    }
    names
}

fn names_any(headers: &HeaderMap) -> bool {
    headers
        .get_all(VARY)
        .iter()
        .flat_map(|line| members(line.as_bytes()))
        // `*` is a field name by its letters.
        .any(|name| name == b"*" || HeaderName::from_bytes(name).is_err())
}

/// Whether the caller's copy is still the one it would get (RFC 9110 §13.2.2, for GET and HEAD).
pub(crate) fn is_unchanged(asked: &HeaderMap, stored: &HeaderMap, now: Timestamp) -> bool {
    if asked.contains_key(IF_NONE_MATCH) {
        let tag = stored.get(ETAG).map(HeaderValue::as_bytes);
        return asked.get_all(IF_NONE_MATCH).iter().flat_map(|line| members(line.as_bytes())).any(|member| {
            member == b"*" || tag.is_some_and(|tag| is_same_tag(member, tag))
        });
    }
    let date_of = |value: &HeaderValue| date::parse(value.as_bytes().trim_ascii(), now);
    let Some(since) = asked.get(IF_MODIFIED_SINCE).and_then(date_of) else { return false };
    stored.get(LAST_MODIFIED).or_else(|| stored.get(DATE)).and_then(date_of).is_some_and(|at| at <= since)
}

/// Whether two entity tags are equal by the weak comparison.
pub(crate) fn is_same_tag(a: &[u8], b: &[u8]) -> bool {
    opaque(a) == opaque(b)
}

fn opaque(tag: &[u8]) -> &[u8] {
    let tag = tag.trim_ascii();
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// Whether a 200 is an error in Flexport's envelope. `error` is the envelope's last member, so the end of the body
/// is enough: a read of the tail, no JSON tokenizer.
pub(crate) fn holds_error(headers: &HeaderMap, body: &[u8]) -> bool {
    const TAIL: usize = 4096;
    let is_json = headers.get(CONTENT_TYPE).is_some_and(|value| {
        let essence = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        essence.eq_ignore_ascii_case(b"application/json")
            || essence.len() > 5 && essence[essence.len() - 5..].eq_ignore_ascii_case(b"+json")
    });
    if !is_json {
        return false;
    }
    let body = body.trim_ascii();
    let tail = &body[body.len().saturating_sub(TAIL)..];
    let Some(value) = memchr::memmem::rfind(tail, b"\"error\"")
        .map(|at| tail[at + 7..].trim_ascii_start())
        .and_then(|rest| rest.strip_prefix(b":"))
        .map(<[u8]>::trim_ascii_start)
    else {
        return false;
    };
    // `"error":{…}}` with nothing of the envelope after it; a nested one of the data is followed by more.
    value.first() == Some(&b'{') && {
        let mut depth = 0usize;
        let mut is_text = false;
        let mut is_escaped = false;
        for (index, byte) in value.iter().enumerate() {
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' if is_text => is_escaped = true,
                b'"' => is_text = !is_text,
                b'{' if !is_text => depth += 1,
                b'}' if !is_text => {
                    depth -= 1;
                    if depth == 0 {
                        return value[index + 1..].trim_ascii() == b"}";
                    }
                }
                _ => {}
            }
        }
        false
    }
}

#[cfg(test)]
mod tests;
