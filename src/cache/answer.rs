//! What the caller gets: a copy or an answer, with the fields that say which.
//!
//! | | `Seawall-Source` | `Cache-Status` |
//! |---|---|---|
//! | fresh copy | `cache` | `hit; ttl=5` |
//! | copy that a 304 confirmed | `cache` | `fwd=stale; fwd-status=304; stored; ttl=5` |
//! | answer | `upstream` | `fwd=uri-miss; fwd-status=200; stored; ttl=5` |
//! | copy, not forwarded | `stale` | `hit; ttl=-812; detail=breaker-open` |
//! | copy, after a failed refresh | `stale` | `fwd=stale; fwd-status=503; ttl=-812; detail=stale-if-error` |
//! | object out of a page of its collection | `stale` | `hit; ttl=-812; detail=from-collection` |
//!
//! A stale copy says `Cache-Control: max-age=0` and loses `Expires`, so that nobody downstream stretches it.

use super::Cache;
use super::entry::{Confirmed, Entry};
use super::flight::{Answer, Flowing, Outcome};
use super::objects::Found as OnPage;
use super::policy::{CDN_CACHE_CONTROL, Refused};
use super::service::{Found, Read};
use crate::error::ProxyError;
use crate::flexport::problem;
use crate::http::Body;
use crate::http::cache_status::{Forward, Member};
use crate::http::date;
use crate::http::delivery::{self, Delivery, Refusal};
use crate::http::headers::{
    CACHE_STATUS, SEAWALL_DATA_AS_OF, SEAWALL_PENDING_WRITES, SEAWALL_SOURCE, SEAWALL_STALE_REASON,
};
use crate::http::range::Part;
use bytes::Bytes;
use http::header::{
    AGE, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    DATE, ETAG, EXPIRES, HeaderName, LAST_MODIFIED, RETRY_AFTER, SET_COOKIE, VARY,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde_json::{Value, json};
use std::ops::Range;
use std::time::Duration;

/// Why a stale copy is served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Why {
    /// `Seawall-Stale-Reason`. `None`: the request itself allows it.
    reason: Option<&'static str>,
    detail: &'static str,
    way: Way,
    /// Whether the upstream only pushes back, so that the shorter window applies.
    is_push_back: bool,
}

/// How far the request got.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// Nothing was sent.
    Here,
    /// It was sent, and no answer came.
    Forwarded,
    /// This came back.
    Answered(StatusCode),
}

// === impl Why ===

impl Why {
    /// The time that a caller with a copy waits is over; the attempt goes on.
    pub(crate) const TOO_SLOW: Self = Self {
        reason: Some("upstream-timeout"),
        detail: "upstream-timeout",
        way: Way::Forwarded,
        is_push_back: false,
    };
    /// It is being refreshed.
    pub(crate) const REVALIDATING: Self =
        Self { reason: Some("revalidating"), detail: "revalidating", way: Way::Here, is_push_back: false };
    /// `max-stale` of the request.
    pub(crate) const TOLERATED: Self =
        Self { reason: None, detail: "max-stale", way: Way::Here, is_push_back: false };

    fn of_error(error: &ProxyError) -> Self {
        let refused = |reason| Self {
            reason: Some(reason),
            detail: reason,
            way: Way::Here,
            is_push_back: reason == "rate-limited",
        };
        let failed = |reason| Self {
            reason: Some(reason),
            detail: "stale-if-error",
            way: Way::Forwarded,
            is_push_back: false,
        };
        match error {
            ProxyError::BreakerOpen { .. } => refused("breaker-open"),
            ProxyError::RateLimited { .. } => refused("rate-limited"),
            ProxyError::Overloaded { .. } | ProxyError::DeadlineBeforeSending | ProxyError::Draining => {
                refused("overloaded")
            }
            ProxyError::HeadTimeout => failed("upstream-timeout"),
            _ => failed("upstream-error"),
        }
    }

    /// By what a read ended with.
    pub(crate) fn of(result: &Result<Response<Body>, ProxyError>) -> Self {
        match result {
            Ok(response) => {
                let status = response.status();
                let names_wait = response.headers().contains_key(RETRY_AFTER);
                Self::of_status(status, delivery::of_answer(status, names_wait))
            }
            Err(error) => Self::of_error(error),
        }
    }

    fn of_status(status: StatusCode, delivery: Delivery) -> Self {
        let is_push_back = delivery == Delivery::Refused(Refusal::TooManyRequests);
        Self {
            reason: Some(if is_push_back { "rate-limited" } else { "upstream-error" }),
            detail: "stale-if-error",
            way: Way::Answered(status),
            is_push_back,
        }
    }
}

impl Cache {
    /// The answer from a fresh copy.
    pub(crate) fn fresh(&self, read: &Read, entry: &Entry, now: &Confirmed) -> Response<Body> {
        self.counters.hit.inc();
        entry.hit();
        let age = entry.facts.age(entry.confirmed.since(now));
        let mut response = self.copy(read, entry, "cache", now);
        let headers = response.headers_mut();
        headers.insert(SEAWALL_DATA_AS_OF, entry.as_of());
        headers.insert(AGE, HeaderValue::from(age.as_secs()));
        headers.insert(CACHE_STATUS, Member::hit().ttl(entry.facts.ttl(age)).to_value());
        response
    }

    /// The answer from a copy that is not fresh.
    pub(crate) fn stale(&self, read: &Read, entry: &Entry, why: Why, now: &Confirmed) -> Response<Body> {
        let body = if read.is_head { Body::empty() } else { Body::from(entry.body.clone()) };
        let mut response = Response::new(body);
        *response.status_mut() = entry.status;
        *response.headers_mut() = entry.head_from("stale");
        let is_outdated = self.marks.is_outdated(entry.names, entry.began);
        let detail = if is_outdated { "invalidated" } else { why.detail };
        self.mark_stale(read, entry, why, (Forward::Stale, detail), now, response.headers_mut());
        response
    }

    /// The answer from an object on a page: an envelope around its own bytes, with the page's age. It has no validator,
    /// since the upstream never gave one for it.
    fn object(&self, read: &Read, found: &Found, on_page: &OnPage, why: Why) -> Response<Body> {
        self.counters.from_collection.inc();
        let OnPage { page, version, object } = on_page;
        let url = Value::from(read.context.asked.url()).to_string();
        let mut whole = Vec::with_capacity(object.len() + url.len() + version.len() + 80);
        for part in [
            br#"{"_object":"/api/response","self":"#.as_slice(),
            url.as_bytes(),
            br#","version":"#,
            version.as_bytes(),
            br#","data":"#,
            object,
            br#","error":null}"#,
        ] {
            whole.extend_from_slice(part);
        }
        let mut headers = HeaderMap::with_capacity(12);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(whole.len()));
        for name in [DATE, VARY] {
            for value in page.head.get_all(&name) {
                headers.append(name.clone(), value.clone());
            }
        }
        let is_outdated = self.marks.is_outdated(page.names, page.began)
            || self.marks.is_outdated(self.names(read), page.began);
        let detail = if is_outdated { "invalidated" } else { "from-collection" };
        self.mark_stale(read, page, why, (found.forward, detail), &self.now(), &mut headers);
        let mut response =
            Response::new(if read.is_head { Body::empty() } else { Body::from(Bytes::from(whole)) });
        *response.headers_mut() = headers;
        response
    }

    /// Counts what is served stale, and says of it how old it is and why.
    fn mark_stale(
        &self,
        read: &Read,
        entry: &Entry,
        why: Why,
        (forward, detail): (Forward, &str),
        now: &Confirmed,
        headers: &mut HeaderMap,
    ) {
        let age = entry.facts.age(entry.confirmed.since(now));
        entry.hit();
        self.counters.served_stale(age);
        headers.insert(SEAWALL_SOURCE, HeaderValue::from_static("stale"));
        headers.insert(SEAWALL_DATA_AS_OF, entry.as_of());
        headers.insert(AGE, HeaderValue::from(age.as_secs()));
        headers.remove(EXPIRES);
        headers.insert(
            CACHE_CONTROL,
            HeaderValue::from_static(if entry.facts.is_private { "max-age=0, private" } else { "max-age=0" }),
        );
        if let Some(reason) = why.reason {
            headers.insert(SEAWALL_STALE_REASON, HeaderValue::from_static(reason));
        }
        let said = match why.way {
            Way::Here => Member::hit(),
            Way::Forwarded => Member::forwarded(forward),
            Way::Answered(status) => Member::forwarded(forward).forward_status(status),
        };
        // A copy that a write made stale may have freshness left by the clock; it says that it has none.
        let said = said.ttl(entry.facts.ttl(age).min(-1)).detail(detail);
        headers.insert(CACHE_STATUS, said.to_value());
        self.tell_pending(read, headers);
    }

    /// The end of a read that was forwarded.
    pub(crate) async fn conclude(
        &self,
        read: &Read,
        found: &Found,
        outcome: Outcome,
        is_collapsed: bool,
    ) -> Result<Response<Body>, ProxyError> {
        if is_collapsed {
            self.counters.collapsed.inc();
        }
        let now = self.now();
        let mut said = Member::forwarded(found.forward);
        match outcome {
            Outcome::Answer(Answer::Entry { entry, is_kept, is_confirmed }) => {
                let status = if is_confirmed { StatusCode::NOT_MODIFIED } else { entry.status };
                let age = entry.facts.age(entry.confirmed.since(&now));
                said = said
                    .forward_status(status)
                    .ttl(entry.facts.ttl(age))
                    .stored(is_kept)
                    .collapsed(is_collapsed);
                let source = if is_confirmed { "cache" } else { "upstream" };
                let mut response = self.copy(read, &entry, source, &now);
                let headers = response.headers_mut();
                headers.insert(CACHE_STATUS, said.to_value());
                if is_confirmed {
                    self.counters.revalidated.inc();
                    entry.hit();
                    headers.insert(SEAWALL_DATA_AS_OF, entry.as_of());
                } else {
                    self.counters.miss.inc();
                }
                if is_confirmed || entry.facts.came_with_age {
                    headers.insert(AGE, HeaderValue::from(age.as_secs()));
                }
                Ok(response)
            }
            Outcome::Answer(Answer::Passed(passed)) => {
                let delivery = delivery::of_answer(passed.status, passed.headers.contains_key(RETRY_AFTER));
                if delivery.is_outage()
                    && let Some(response) =
                        self.stand_in(read, found, Why::of_status(passed.status, delivery), &now).await
                {
                    return Ok(response);
                }
                let is_unchanged = passed.status == StatusCode::OK
                    && read.is_unchanged(|name| passed.headers.get(name), now.at);
                let body = if is_unchanged { Body::empty() } else { Body::from(passed.body.clone()) };
                let mut response = Response::new(body);
                *response.status_mut() = passed.status;
                *response.headers_mut() = passed.headers.clone();
                if is_unchanged {
                    shorten(&mut response);
                }
                said = said.forward_status(passed.status).collapsed(is_collapsed);
                Ok(self.passed(read, response, said))
            }
            Outcome::Failed(error) => {
                if delivery::of_error(&error).is_outage()
                    && let Some(response) = self.stand_in(read, found, Why::of_error(&error), &now).await
                {
                    return Ok(response);
                }
                self.counters.miss.inc();
                Err(error)
            }
            Outcome::Alone => Err(ProxyError::Internal("an answer for one caller was shared".to_owned())),
        }
    }

    /// A long answer, on its way; or the copy, when it tells of an outage at length.
    pub(crate) async fn streamed(
        &self,
        read: &Read,
        found: &Found,
        response: Response<Body>,
    ) -> Response<Body> {
        let status = response.status();
        let delivery = delivery::of_answer(status, response.headers().contains_key(RETRY_AFTER));
        if delivery.is_outage()
            && let Some(copy) =
                self.stand_in(read, found, Why::of_status(status, delivery), &self.now()).await
        {
            return copy;
        }
        let response = unless_unchanged(read, response, &self.now());
        self.passed(read, response, Member::forwarded(found.forward).forward_status(status))
    }

    /// An answer that is on its way. It says `stored` when it will be at its end; nothing that is sent before can know
    /// whether that comes.
    pub(crate) fn flowing(&self, read: &Read, found: &Found, flowing: Flowing) -> Response<Body> {
        let Flowing { response, facts, came_at, is_kept } = flowing;
        // It goes out as it comes: no time has passed.
        let age = facts.age(Duration::ZERO);
        let said = Member::forwarded(found.forward)
            .forward_status(response.status())
            .ttl(facts.ttl(age))
            .stored(is_kept);
        let mut response = unless_unchanged(read, response, &came_at);
        let headers = response.headers_mut();
        if facts.came_with_age {
            headers.insert(AGE, HeaderValue::from(age.as_secs()));
        }
        if !headers.contains_key(DATE) {
            headers.insert(DATE, date::http_date(came_at.at));
        }
        self.passed(read, response, said)
    }

    /// Refuses a read that may only be answered from a copy (RFC 9111 §5.2.1.7).
    pub(crate) fn not_cached(&self, read: &Read) -> Response<Body> {
        self.counters.refused.inc();
        let asked = &read.context.asked;
        let status = StatusCode::GATEWAY_TIMEOUT;
        let message = "there is no fresh copy, and the request allows nothing else (only-if-cached)";
        let mut response = if asked.wants_problem {
            let body = json!({
                "type": "urn:seawall:seawall_not_cached",
                "title": "Gateway Timeout",
                "status": status.as_u16(),
                "detail": message,
                "instance": asked.url(),
                "code": "seawall_not_cached",
            });
            problem::json_response(status, "application/problem+json", &body)
        } else {
            let error = json!({
                "_object": "/api/error",
                "status": status.as_u16(),
                "code": "seawall_not_cached",
                "message": message,
            });
            problem::json_response(
                status,
                "application/json",
                &problem::envelope(asked, &Value::Null, &error),
            )
        };
        let headers = response.headers_mut();
        headers.insert(SEAWALL_SOURCE, HeaderValue::from_static("seawall"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(CACHE_STATUS, HeaderValue::from_static("seawall; detail=only-if-cached"));
        response
    }

    /// The copy in place of a failure; where there is none, or only one that is too old, the object on a page.
    pub(crate) async fn stand_in(
        &self,
        read: &Read,
        found: &Found,
        why: Why,
        now: &Confirmed,
    ) -> Option<Response<Body>> {
        let mut refused = None;
        if let Some(entry) = self.still(read, found) {
            match self.may_stand_in(read, entry, why, now) {
                Ok(()) => return Some(self.stale(read, entry, why, now)),
                Err(reason) => refused = Some(reason),
            }
        }
        if refused.is_none_or(|reason| reason == Refused::TooOld) {
            match Box::pin(self.on_a_page(read, why)).await {
                Ok(on_page) => return Some(self.object(read, found, &on_page, why)),
                Err(reason) => refused = refused.or(reason),
            }
        }
        if let Some(reason) = refused {
            self.counters.refused.inc();
            self.counters.stale_refused(reason.as_str());
        }
        None
    }

    /// Whether a copy may stand in for a failure at this time.
    pub(crate) fn may_stand_in(
        &self,
        read: &Read,
        entry: &Entry,
        why: Why,
        now: &Confirmed,
    ) -> Result<(), Refused> {
        let since = entry.confirmed.since(now);
        entry.facts.may_stand_in(entry.facts.age(since), since, why.is_push_back, &read.terms, &read.ask)?;
        if self.is_proven(read) { Ok(()) } else { Err(Refused::Unproven) }
    }

    fn passed(&self, read: &Read, mut response: Response<Body>, said: Member<'_>) -> Response<Body> {
        self.counters.miss.inc();
        let headers = response.headers_mut();
        headers.insert(SEAWALL_SOURCE, HeaderValue::from_static("upstream"));
        // Other caches on the way said theirs before us.
        said.append_to(headers);
        self.tell_pending(read, headers);
        response
    }

    /// A copy as it is sent, but for `Age` and `Cache-Status`: whole, without its content, or as a 304.
    fn copy(&self, read: &Read, entry: &Entry, source: &'static str, now: &Confirmed) -> Response<Body> {
        let is_unchanged =
            entry.status == StatusCode::OK && read.is_unchanged(|name| entry.head.get(name), now.at);
        let body = if is_unchanged || read.is_head { Body::empty() } else { Body::from(entry.body.clone()) };
        let mut response = Response::new(body);
        *response.status_mut() = entry.status;
        *response.headers_mut() = entry.head_from(source);
        if is_unchanged {
            shorten(&mut response);
        } else {
            match read.part_of(entry, now.at) {
                Part::Whole => {}
                Part::Bytes(range) => cut(&mut response, &entry.body, range),
                Part::Unsatisfiable => refuse_range(&mut response, entry.body.len()),
            }
        }
        self.tell_pending(read, response.headers_mut());
        response
    }

    fn tell_pending(&self, read: &Read, headers: &mut HeaderMap) {
        if let Some(pending) = self.pending.pending(read.partition, read.uri.path()) {
            let text = format!("{}; oldest={}", pending.count, pending.oldest.as_secs());
            headers.insert(SEAWALL_PENDING_WRITES, HeaderValue::try_from(text).expect("digits and letters"));
        }
    }
}

/// The answer, or a 304 when the caller's own copy is as good.
fn unless_unchanged(read: &Read, response: Response<Body>, now: &Confirmed) -> Response<Body> {
    if response.status() != StatusCode::OK || !read.is_unchanged(|name| response.headers().get(name), now.at)
    {
        return response;
    }
    let mut response = response.map(|_| Body::empty());
    shorten(&mut response);
    response
}

const CONTENT_DIGESTS: [HeaderName; 2] =
    [HeaderName::from_static("content-digest"), HeaderName::from_static("content-md5")];

/// Makes a 206 of it (RFC 9110 §15.3.7).
fn cut(response: &mut Response<Body>, whole: &Bytes, range: Range<usize>) {
    let said = format!("bytes {}-{}/{}", range.start, range.end - 1, whole.len());
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    let headers = response.headers_mut();
    headers.insert(CONTENT_RANGE, HeaderValue::try_from(said).expect("letters and digits"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(range.len()));
    // They are of the content of the whole.
    for name in CONTENT_DIGESTS {
        headers.remove(name);
    }
    *response.body_mut() = Body::from(whole.slice(range));
}

/// Makes a 416 of it (RFC 9110 §15.5.17).
fn refuse_range(response: &mut Response<Body>, length: usize) {
    *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
    let headers = response.headers_mut();
    // Nothing of what describes the whole, or says how long it may be kept, is true of this answer.
    let described = [
        CONTENT_TYPE,
        CONTENT_ENCODING,
        CONTENT_LANGUAGE,
        ETAG,
        LAST_MODIFIED,
        EXPIRES,
        SET_COOKIE,
        CDN_CACHE_CONTROL,
    ];
    for name in described.into_iter().chain(CONTENT_DIGESTS) {
        headers.remove(name);
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        CONTENT_RANGE,
        HeaderValue::try_from(format!("bytes */{length}")).expect("letters and digits"),
    );
    headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
    *response.body_mut() = Body::empty();
}

/// Makes a 304 of it (RFC 9110 §15.4.5): without what describes a content that is not sent.
fn shorten(response: &mut Response<Body>) {
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    for name in [CONTENT_LENGTH, CONTENT_TYPE, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_RANGE] {
        response.headers_mut().remove(name);
    }
}
