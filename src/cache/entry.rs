//! One kept answer.
//!
//! Immutable and shared. It holds the origin's fields; ours (`Age`, `Cache-Status`, `Seawall-Source`,
//! `Seawall-Data-As-Of`) and the length are put into each answer that is made of it, since most copies are replaced
//! before they are ever served.

use super::invalidate::{Moment, Names};
use super::policy::{self, Facts};
use super::selection;
use crate::clock;
use crate::flexport::routes::RoutePolicy;
use crate::http::headers::{self, CACHE_STATUS, SEAWALL_SOURCE};
use crate::http::{Fields, date};
use crate::ids::PartitionId;
use bytes::Bytes;
use http::header::{
    AGE, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG, HeaderValue, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, LAST_MODIFIED, SET_COOKIE,
};
use http::{HeaderMap, HeaderName, StatusCode};
use jiff::Timestamp;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// A kept answer.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Entry {
    /// How often it answered. It comes first, beside the counts of its `Arc`, which an answer writes anyway.
    hits: AtomicU64,
    pub(crate) status: StatusCode,
    /// The origin's fields, without what each answer gets anew.
    pub(crate) head: Fields,
    pub(crate) body: Bytes,
    pub(crate) facts: Facts,
    /// When the upstream last confirmed it.
    pub(crate) confirmed: Confirmed,
    /// When it was asked for.
    pub(crate) asked_at: Instant,
    /// The order of invalidations when its fill began.
    pub(crate) began: Moment,
    /// The names by which it is invalidated.
    pub(crate) names: Names,
    /// What it is a copy of.
    pub(crate) about: Arc<About>,
    /// The request fields that `Vary` names, with the values that selected it.
    selecting: Vec<(HeaderName, Vec<HeaderValue>)>,
    weight: usize,
}

/// What a copy is of: for those who look for copies, and for the disk.
#[derive(Debug)]
pub(crate) struct About {
    pub(crate) partition: PartitionId,
    /// Path and query.
    pub(crate) path: Box<str>,
    pub(crate) route: Arc<RoutePolicy>,
    /// What it was kept under (see [`super::key::base`]). Zero: that is not known.
    pub(crate) base: u64,
}

/// A moment, by both clocks: the wall's may jump, the monotonic one stands still in a suspended machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Confirmed {
    pub(crate) at: Timestamp,
    pub(crate) monotonic: Instant,
}

/// A request's fields as far as they are forwarded; all others count as absent, for all requests alike.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) headers: &'a HeaderMap,
    /// `None`: all of them.
    pub(crate) forwarded: Option<&'static [HeaderName]>,
}

/// What a field takes in its list besides its own bytes.
const FIELD: usize = size_of::<(HeaderName, HeaderValue)>();
/// How many fields an answer gets from us.
const OURS: usize = 6;

// === impl About ===

impl About {
    /// The tag by which it is invalidated.
    pub(crate) fn tag(&self) -> &str {
        self.route.cache.as_ref().map_or("", |policy| policy.tag.as_str())
    }
}

// === impl Confirmed ===

impl Confirmed {
    /// How long ago; by whichever clock says more, so that no jump makes a copy younger.
    pub(crate) fn since(&self, now: &Self) -> Duration {
        clock::since(now.at, self.at).max(now.monotonic.saturating_duration_since(self.monotonic))
    }

    /// Whether the wall clock went back since: then nothing it says of freshness holds.
    pub(crate) fn is_ahead_of(&self, now: &Self) -> bool {
        self.at > now.at
    }
}

// === impl Asked ===

impl Asked<'_> {
    fn values(&self, name: &HeaderName) -> impl Iterator<Item = &HeaderValue> {
        let is_seen = self.forwarded.is_none_or(|forwarded| forwarded.contains(name));
        is_seen.then(|| self.headers.get_all(name).iter()).into_iter().flatten()
    }
}

// === impl Entry ===

impl Entry {
    /// From an answer. `head` holds the origin's end-to-end fields.
    #[expect(clippy::too_many_arguments, reason = "each of these is a different thing")]
    pub(crate) fn new(
        status: StatusCode,
        head: &HeaderMap,
        body: Bytes,
        facts: Facts,
        confirmed: Confirmed,
        asked_at: Instant,
        began: Moment,
        names: Names,
        about: Arc<About>,
        asked: Asked<'_>,
    ) -> Self {
        let selecting = policy::varying(head)
            .into_iter()
            .map(|name| {
                let values = asked.values(&name).map(headers::detached_value).collect();
                (name, values)
            })
            .collect();
        let date = (!head.contains_key(DATE)).then(|| (DATE, date::http_date(confirmed.at)));
        let is_made_anew = |name: &HeaderName| matches!(*name, AGE | CONTENT_LENGTH) || *name == CACHE_STATUS;
        let head = Fields::of(head, is_made_anew, date);
        let weight = body.len()
            + about.path.len()
            + head.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD).sum::<usize>();
        let hits = AtomicU64::new(0);
        Self { hits, status, head, body, facts, confirmed, asked_at, began, names, about, selecting, weight }
    }

    /// The same answer, confirmed by a 304 (RFC 9111 §3.2): the fields of the 304 replace those of the same name,
    /// but for those that describe the content it did not bring. A `Set-Cookie` is for one caller, unless the rules say
    /// that it is kept like any other field.
    pub(crate) fn renewed(&self, mut fresh: HeaderMap, now: Timestamp, keeps_cookies: bool) -> HeaderMap {
        let mut head = self.head.to_map(4);
        for name in [CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_RANGE] {
            fresh.remove(name);
        }
        if !keeps_cookies {
            fresh.remove(SET_COOKIE);
        }
        if !fresh.contains_key(DATE) {
            fresh.insert(DATE, date::http_date(now));
        }
        for name in fresh.keys() {
            head.remove(name);
        }
        head.extend(fresh);
        head
    }

    /// Whether it is an answer to a request with these fields.
    pub(crate) fn is_selected_by(&self, asked: Asked<'_>) -> bool {
        let is_same = |name: &HeaderName, values: &[HeaderValue]| {
            asked.values(name).eq(values.iter()) || selection::is_same(name, asked.values(name), values)
        };
        self.selecting.iter().all(|(name, values)| is_same(name, values))
    }

    /// Whether the upstream can be asked if it has changed.
    pub(crate) fn has_validator(&self) -> bool {
        self.status == StatusCode::OK
            && (self.head.get(&ETAG).is_some() || self.head.get(&LAST_MODIFIED).is_some())
    }

    /// Puts the question into a request.
    pub(crate) fn ask_if_changed(&self, headers: &mut HeaderMap) {
        if let Some(tag) = self.head.get(&ETAG) {
            headers.insert(IF_NONE_MATCH, tag.clone());
        }
        if let Some(modified) = self.head.get(&LAST_MODIFIED) {
            headers.insert(IF_MODIFIED_SINCE, modified.clone());
        }
    }

    /// Whether a 304 with these fields speaks of another copy than this one (RFC 9111 §4.3.4). By the weak comparison: a
    /// proxy on the way may have made a strong tag weak, or left it.
    pub(crate) fn is_contradicted_by(&self, fresh: &HeaderMap) -> bool {
        match (self.head.get(&ETAG), fresh.get(ETAG)) {
            (Some(ours), Some(theirs)) => !policy::is_same_tag(ours.as_bytes(), theirs.as_bytes()),
            _ => false,
        }
    }

    /// Whether the 200 to a HEAD may speak of this copy (RFC 9111 §4.3.5): its validators and its length are ours.
    pub(crate) fn is_described_by(&self, head: &HeaderMap) -> bool {
        let has_same =
            |name: &HeaderName| head.get(name).is_none_or(|theirs| self.head.get(name) == Some(theirs));
        let length =
            head.get(CONTENT_LENGTH).map(|length| length.to_str().ok().and_then(|text| text.parse().ok()));
        self.status == StatusCode::OK
            && has_same(&ETAG)
            && has_same(&LAST_MODIFIED)
            && length.is_none_or(|length| length == Some(self.body.len()))
    }

    /// The request fields that `Vary` names, with the values that selected it.
    pub(crate) fn selecting(&self) -> &[(HeaderName, Vec<HeaderValue>)] {
        &self.selecting
    }

    /// The head of an answer that is made of it.
    pub(crate) fn head_from(&self, source: &'static str) -> HeaderMap {
        let mut head = self.head.to_map(OURS);
        if self.status != StatusCode::NO_CONTENT {
            head.insert(CONTENT_LENGTH, HeaderValue::from(self.body.len()));
        }
        head.insert(SEAWALL_SOURCE, HeaderValue::from_static(source));
        head
    }

    /// When the upstream last confirmed it, as answers say it.
    pub(crate) fn as_of(&self) -> HeaderValue {
        date::as_of(self.confirmed.at)
    }

    /// It answered.
    pub(crate) fn hit(&self) {
        self.hits.fetch_add(1, Ordering::Relaxed);
    }

    /// How often it, and those in whose place it came, answered.
    pub(crate) fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    /// It comes in the place of another, and goes on with its count.
    pub(crate) fn inherit(&self, old: &Self) {
        self.hits.fetch_add(old.hits(), Ordering::Relaxed);
    }

    /// The bytes it takes.
    pub(crate) fn weight(&self) -> usize {
        self.weight
    }
}
