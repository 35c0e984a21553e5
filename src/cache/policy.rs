//! Pure. What may be kept, what is fresh, and what may stand in for an answer in an outage.
//!
//! A partition serves one user of the API, so by RFC 9111 this is a private cache: `private` answers and answers to
//! requests with credentials may be kept. `is_shared` applies the rules of a shared one.
//!
//! Two deliberate readings:
//! - **A successful answer that names no freshness is kept and never fresh** (unless the route has a `ttl`): there
//!   is no guessing by heuristic, every read asks, and the copy is there for the outage. Only the strict profile
//!   guesses, a tenth of the time since the last change, as RFC 9111 §4.2.2 proposes.
//! - **Stale in an outage against `must-revalidate`, `no-cache`, `proxy-revalidate`, `s-maxage`** is what RFC 9111
//!   §4.2.4 forbids; it happens only where the route says `override_revalidation`, and never for `no-store`, which
//!   is not kept at all.

use crate::config::raw;
use crate::flexport::routes::CachePolicy;
use crate::http::cache_control::{self, RequestDirectives, ResponseDirectives};
use crate::http::cache_status::Forward;
use crate::http::date;
use crate::http::headers::{SEAWALL_STALE, is_json, members};
use http::header::{
    AGE, CACHE_CONTROL, CONTENT_TYPE, DATE, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED, PRAGMA,
    SET_COOKIE, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use jiff::Timestamp;
use std::time::Duration;

pub(crate) const CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");

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
    /// Whether answers with `Set-Cookie` are kept, as RFC 9111 §7.3 has it.
    pub(crate) keeps_cookies: bool,
    /// Whether freshness is guessed where nothing names it (RFC 9111 §4.2.2).
    pub(crate) guesses_freshness: bool,
}

/// What the request asks of the cache.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ask {
    /// Its `Cache-Control`, when that is honoured.
    pub(crate) directives: RequestDirectives,
    /// `Seawall-Stale: never`.
    pub(crate) refuses_stale: bool,
    /// Whether a cursor stands behind it, which old data would move too far.
    pub(crate) is_incremental: bool,
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
    /// `no-cache`, with a list of fields or without.
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

/// What an answer says: `CDN-Cache-Control` stands in for `Cache-Control` and `Expires` (RFC 9213).
struct Said {
    directives: ResponseDirectives,
    is_targeted: bool,
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

/// Why a copy cannot stand in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// By `Seawall-Stale: never`.
    Asked,
    /// The request asks for a window of time.
    Incremental,
    /// Confirmed too long ago.
    TooOld,
    /// By this directive of the answer.
    Directive(&'static str),
    /// The token's last success is too long ago, or not known.
    Unproven,
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
            keeps_cookies: false,
            guesses_freshness: false,
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
            keeps_cookies: true,
            guesses_freshness: true,
        }
    }
}

// === impl Ask ===

impl Ask {
    /// From a request's fields. Nothing is parsed when nothing is asked.
    pub(crate) fn of(headers: &HeaderMap, honours: bool) -> Self {
        let mut ask = Self::default();
        if honours && (headers.contains_key(CACHE_CONTROL) || headers.contains_key(PRAGMA)) {
            ask.directives = RequestDirectives::parse(headers);
        }
        ask.refuses_stale =
            headers.get(SEAWALL_STALE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"never"));
        ask
    }

    /// Why no copy that is not fresh may answer it.
    fn refused(&self) -> Option<Refused> {
        let refused = [(self.refuses_stale, Refused::Asked), (self.is_incremental, Refused::Incremental)];
        refused.into_iter().find_map(|(is_so, why)| is_so.then_some(why))
    }
}

// === impl Facts ===

impl Facts {
    /// Reads an answer that was asked for at `asked_at` and came at `now`.
    pub(crate) fn of(
        status: StatusCode,
        headers: &HeaderMap,
        asked_at: Timestamp,
        now: Timestamp,
        terms: &Terms,
    ) -> Self {
        Said::of(headers).facts(status, headers, asked_at, now, terms)
    }

    /// What another process kept is never fresh.
    pub(crate) fn not_of_this_process(&mut self) {
        self.lifetime = Duration::ZERO;
        self.stale_while_revalidate = None;
    }

    /// How old it is, this long after it arrived.
    pub(crate) fn age(&self, resident: Duration) -> Duration {
        self.initial_age.saturating_add(resident)
    }

    /// How long it is fresh yet, or for how long it has not been.
    fn left(&self, age: Duration) -> Result<Duration, Duration> {
        match self.lifetime.checked_sub(age) {
            Some(left) if !left.is_zero() => Ok(left),
            _ => Err(age.saturating_sub(self.lifetime)),
        }
    }

    /// Seconds of freshness left; when there are none, at most −1, the age rounded up.
    pub(crate) fn ttl(&self, age: Duration) -> i64 {
        match self.left(age) {
            Ok(left) => i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            Err(span) => overdue(span),
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
        let overdue = match self.left(age) {
            Ok(left) => {
                let is_too_old = asked.max_age.is_some_and(|limit| age > limit || limit.is_zero());
                let ends_too_soon = asked.min_fresh.is_some_and(|least| left < least);
                return if is_too_old || ends_too_soon {
                    Use::Revalidate(Forward::Request)
                } else {
                    Use::Fresh
                };
            }
            Err(overdue) => overdue,
        };
        if self.forbids_stale.is_none() && asked.max_age.is_none_or(|limit| age <= limit) {
            if asked.max_stale.is_some_and(|limit| overdue <= limit) {
                return Use::Tolerated;
            }
            if self.stale_while_revalidate.is_some_and(|window| overdue <= window)
                && asked.min_fresh.is_none()
                && ask.refused().is_none()
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
        if let Some(refused) = ask.refused() {
            return Err(refused);
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

// === impl Said ===

impl Said {
    fn of(headers: &HeaderMap) -> Self {
        match ResponseDirectives::parse_targeted(headers, &CDN_CACHE_CONTROL) {
            Some(directives) => Self { directives, is_targeted: true },
            None => Self { directives: ResponseDirectives::parse(headers), is_targeted: false },
        }
    }

    fn facts(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        asked_at: Timestamp,
        now: Timestamp,
        terms: &Terms,
    ) -> Facts {
        let directives = &self.directives;
        let explicit = if self.is_targeted {
            directives.s_maxage.filter(|_| terms.is_shared).or(directives.max_age)
        } else {
            cache_control::lifetime(directives, headers, terms.is_shared, now)
        };
        // Those that name fields count for the whole: what is served without them would be another answer.
        let no_cache = directives.no_cache.is_present();
        let guessed = || {
            let may_guess = terms.guesses_freshness && (directives.public || is_guessable(status));
            may_guess.then(|| cache_control::guessed_lifetime(headers, now)).flatten()
        };
        Facts {
            lifetime: explicit
                .or_else(|| if no_cache { Some(Duration::ZERO) } else { guessed() })
                .unwrap_or(terms.ttl),
            is_explicit: explicit.is_some(),
            initial_age: cache_control::initial_age(headers, asked_at, now),
            came_with_age: headers.contains_key(AGE),
            no_cache,
            forbids_stale: [
                (directives.must_revalidate, "must-revalidate"),
                (no_cache, "no-cache"),
                (directives.proxy_revalidate, "proxy-revalidate"),
                (directives.s_maxage.is_some(), "s-maxage"),
            ]
            .into_iter()
            .find_map(|(is_set, name)| is_set.then_some(name)),
            is_private: directives.private.is_present(),
            stale_if_error: directives.stale_if_error,
            stale_while_revalidate: directives.stale_while_revalidate,
        }
    }
}

// === impl Unkept ===

impl Unkept {
    /// The label of the metric. `None`: it is no good answer.
    pub(crate) fn as_str(self) -> Option<&'static str> {
        match self {
            Self::NoStore => Some("no-store"),
            Self::Private => Some("private"),
            Self::SetCookie => Some("set-cookie"),
            Self::VaryAny => Some("vary"),
            Self::Status => Some("status"),
            Self::EnvelopeError => None,
        }
    }
}

// === impl Refused ===

impl Refused {
    /// The label of the metric.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Incremental => "incremental",
            Self::TooOld => "too-old",
            Self::Directive(name) => name,
            Self::Unproven => "unproven",
        }
    }
}

/// Whether an answer is kept, and what is known of it then. The envelope is looked at by [`holds_error`].
pub(crate) fn keep(
    status: StatusCode,
    headers: &HeaderMap,
    has_credential: bool,
    asked_at: Timestamp,
    now: Timestamp,
    terms: &Terms,
) -> Result<Facts, Unkept> {
    let said = Said::of(headers);
    let directives = &said.directives;
    // RFC 9111 §5.2.2.3: who knows the status may pass over the `no-store` that is there for others.
    let is_understood = directives.must_understand && is_known(status);
    if directives.no_store && !(terms.keeps_any_status && is_understood) {
        return Err(Unkept::NoStore);
    }
    if directives.must_understand && !is_understood {
        return Err(Unkept::Status);
    }
    if headers.contains_key(SET_COOKIE) && !terms.keeps_cookies {
        return Err(Unkept::SetCookie);
    }
    if terms.is_shared {
        let is_opened = directives.public || directives.must_revalidate || directives.s_maxage.is_some();
        if directives.private.is_present() || (has_credential && !is_opened) {
            return Err(Unkept::Private);
        }
    }
    if names_any(headers) {
        return Err(Unkept::VaryAny);
    }
    let facts = said.facts(status, headers, asked_at, now, terms);
    let has_freshness = facts.is_explicit || terms.guesses_freshness && !facts.lifetime.is_zero();
    let is_kept = match status.as_u16() {
        200 => true,
        // Parts, and what tells of a part only.
        206 | 304 | 416 | 0..=199 => false,
        203 | 204 | 300 | 301 | 308 | 404 | 410 => has_freshness,
        _ => terms.keeps_any_status && has_freshness,
    };
    if is_kept { Ok(facts) } else { Err(Unkept::Status) }
}

/// Whether we know what a status means, so that `must-understand` is satisfied: all that are registered for a final
/// answer with a meaning of its own.
fn is_known(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200..=205 | 207 | 208 | 226 | 300..=303 | 307 | 308 | 400..=417 | 421..=426 | 428 | 429 | 431 | 451
            | 500..=508 | 511
    )
}

/// The statuses for which freshness may be guessed without a word of the origin (RFC 9110 §15.1).
fn is_guessable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// How long a stale copy is overdue, as `ttl` says it: rounded up, at most −1.
fn overdue(span: Duration) -> i64 {
    let seconds = span.as_secs() + u64::from(span.subsec_nanos() > 0);
    -i64::try_from(seconds.max(1)).unwrap_or(i64::MAX)
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
pub(crate) fn is_unchanged<'a>(
    asked: &HeaderMap,
    stored: impl Fn(&HeaderName) -> Option<&'a HeaderValue>,
    now: Timestamp,
) -> bool {
    if asked.contains_key(IF_NONE_MATCH) {
        let tag = stored(&ETAG).map(HeaderValue::as_bytes);
        return asked
            .get_all(IF_NONE_MATCH)
            .iter()
            .flat_map(|line| members(line.as_bytes()))
            .any(|member| member == b"*" || tag.is_some_and(|tag| is_same_tag(member, tag)));
    }
    let date_of = |value: &HeaderValue| date::parse(value.as_bytes(), now);
    // A date that came twice, or is none, is no condition (RFC 9110 §13.1.3).
    let mut dates = asked.get_all(IF_MODIFIED_SINCE).iter();
    let (Some(since), None) = (dates.next().and_then(date_of), dates.next()) else { return false };
    stored(&LAST_MODIFIED).or_else(|| stored(&DATE)).and_then(date_of).is_some_and(|at| at <= since)
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
    if !is_json(headers.get(CONTENT_TYPE)) {
        return false;
    }
    let body = body.trim_ascii();
    // An object and the end of the envelope; nearly every body ends with `null}`, and is not searched.
    if body.strip_suffix(b"}").is_none_or(|inner| !inner.trim_ascii_end().ends_with(b"}")) {
        return false;
    }
    let tail = &body[body.len().saturating_sub(TAIL)..];
    // Nested members of that name may stand before it, after it inside its own value, or both.
    memchr::memmem::find_iter(tail, b"\"error\"").any(|at| {
        let rest = tail[at + 7..].trim_ascii_start();
        rest.strip_prefix(b":").is_some_and(|value| is_last_object(value.trim_ascii_start()))
    })
}

/// Whether an object stands here, and nothing but the end of one other after it: `{…}}`. A nested member of the data
/// is followed by more.
fn is_last_object(text: &[u8]) -> bool {
    if text.first() != Some(&b'{') {
        return false;
    }
    let mut depth = 0usize;
    let mut is_text = false;
    let mut is_escaped = false;
    for (index, byte) in text.iter().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => is_text = !is_text,
            b'{' if !is_text => depth += 1,
            b'}' if !is_text => {
                depth -= 1;
                if depth == 0 {
                    return text[index + 1..].trim_ascii() == b"}";
                }
            }
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests;
