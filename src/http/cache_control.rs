//! Pure. `Cache-Control`, `Expires` and `Age`: what the two sides say about keeping an answer, and the arithmetic of
//! freshness (RFC 9111, RFC 5861, RFC 8246).
//!
//! Where a field is unclear, the reading that keeps less is taken: a number that is none is 0, of two that conflict
//! the smaller counts, an argument that cannot be read restricts everything. Names are compared without regard to
//! case, an argument may be a token or a string, more than 2^31 seconds are 2^31, unknown directives are skipped.
//! Freshness is guessed only by who asks for a guess ([`guessed_lifetime`]).
//!
//! A targeted field (RFC 9213) is a structured dictionary (RFC 9651): one that is none, or in which a directive that
//! we know has a value of the wrong kind, counts as absent as a whole.

use super::structured::{self, Item};
use super::{date, headers};
use crate::clock;
use http::header::{AGE, CACHE_CONTROL, DATE, EXPIRES, HeaderMap, HeaderName, LAST_MODIFIED, PRAGMA};
use jiff::Timestamp;
use std::borrow::Cow;
use std::time::Duration;

/// Stands for a number that was meant to demand something and cannot be read.
const MOST: Duration = Duration::from_secs(1 << 31);

/// What a response says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResponseDirectives {
    /// `max-age`.
    pub max_age: Option<Duration>,
    /// `s-maxage`: for shared caches, before all else.
    pub s_maxage: Option<Duration>,
    /// `stale-while-revalidate`.
    pub stale_while_revalidate: Option<Duration>,
    /// `stale-if-error`.
    pub stale_if_error: Option<Duration>,
    /// `no-cache`: not without asking again.
    pub no_cache: Restriction,
    /// `private`: not in a shared cache.
    pub private: Restriction,
    /// `no-store`.
    pub no_store: bool,
    /// `must-revalidate`.
    pub must_revalidate: bool,
    /// `proxy-revalidate`: as `must-revalidate`, for shared caches.
    pub proxy_revalidate: bool,
    /// `public`.
    pub public: bool,
    /// `immutable`.
    pub immutable: bool,
    /// `must-understand`: who knows the status may pass over `no-store`.
    pub must_understand: bool,
    /// `no-transform`.
    pub no_transform: bool,
}

/// What a request says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestDirectives {
    /// `max-age`: not older than this.
    pub max_age: Option<Duration>,
    /// `max-stale`: stale by this much is fine; without an argument [`Duration::MAX`].
    pub max_stale: Option<Duration>,
    /// `min-fresh`: fresh for this much longer.
    pub min_fresh: Option<Duration>,
    /// `stale-if-error`.
    pub stale_if_error: Option<Duration>,
    /// `no-cache`, or `Pragma: no-cache` when there is no `Cache-Control`.
    pub no_cache: bool,
    /// `no-store`.
    pub no_store: bool,
    /// `only-if-cached`.
    pub only_if_cached: bool,
    /// `no-transform`.
    pub no_transform: bool,
}

/// What `no-cache` or `private` is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Restriction {
    /// The directive is not there.
    #[default]
    Absent,
    /// These fields only.
    Fields(Vec<HeaderName>),
    /// The whole response.
    Whole,
}

/// One directive.
struct Directive<'a> {
    name: &'a [u8],
    argument: Argument<'a>,
}

enum Argument<'a> {
    Absent,
    Unreadable,
    Text(Cow<'a, [u8]>),
}

// === impl ResponseDirectives ===

impl ResponseDirectives {
    /// What `Cache-Control` says.
    pub fn parse(headers: &HeaderMap) -> Self {
        Self::parse_field(headers, &CACHE_CONTROL)
    }

    /// What a field for one kind of cache says, such as `CDN-Cache-Control` (RFC 9213): where it is present, it stands
    /// in for `Cache-Control` and `Expires`. `None` when it is absent, empty or malformed.
    pub fn parse_targeted(headers: &HeaderMap, field: &HeaderName) -> Option<Self> {
        let mut all = Self::default();
        for (key, value) in structured::dictionary(headers, field, |key| TARGETED.contains(&key))? {
            let seconds = |known: &mut Option<Duration>| match value {
                // More than 2^31 seconds are 2^31; what is below zero is no time at all.
                Item::Integer(number) => {
                    *known = Some(Duration::from_secs(number.max(0) as u64).min(MOST));
                    Some(())
                }
                _ => None,
            };
            let flag = |known: &mut bool| match value {
                Item::Boolean(is_set) => {
                    *known = is_set;
                    Some(())
                }
                _ => None,
            };
            let restriction = |known: &mut Restriction| {
                *known = match &value {
                    Item::Boolean(true) => Restriction::Whole,
                    Item::Boolean(false) => Restriction::Absent,
                    Item::Text(names) => Restriction::of(names),
                    Item::Integer(_) | Item::Other => return None,
                };
                Some(())
            };
            match key {
                b"max-age" => seconds(&mut all.max_age)?,
                b"s-maxage" => seconds(&mut all.s_maxage)?,
                b"stale-while-revalidate" => seconds(&mut all.stale_while_revalidate)?,
                b"stale-if-error" => seconds(&mut all.stale_if_error)?,
                b"no-cache" => restriction(&mut all.no_cache)?,
                b"private" => restriction(&mut all.private)?,
                b"no-store" => flag(&mut all.no_store)?,
                b"must-revalidate" => flag(&mut all.must_revalidate)?,
                b"proxy-revalidate" => flag(&mut all.proxy_revalidate)?,
                b"public" => flag(&mut all.public)?,
                b"immutable" => flag(&mut all.immutable)?,
                b"must-understand" => flag(&mut all.must_understand)?,
                b"no-transform" => flag(&mut all.no_transform)?,
                _ => {}
            }
        }
        Some(all)
    }

    fn parse_field(headers: &HeaderMap, field: &HeaderName) -> Self {
        let mut all = Self::default();
        for directive in directives(headers, field) {
            match directive.lowercase_name(&mut [0; LONGEST_NAME]) {
                b"max-age" => least(&mut all.max_age, directive.seconds()),
                b"s-maxage" => least(&mut all.s_maxage, directive.seconds()),
                b"stale-while-revalidate" => least(&mut all.stale_while_revalidate, directive.seconds()),
                b"stale-if-error" => least(&mut all.stale_if_error, directive.seconds()),
                b"no-cache" => all.no_cache.restrict(directive.restriction()),
                b"private" => all.private.restrict(directive.restriction()),
                b"no-store" => all.no_store = true,
                b"must-revalidate" => all.must_revalidate = true,
                b"proxy-revalidate" => all.proxy_revalidate = true,
                b"public" => all.public = true,
                b"immutable" => all.immutable = true,
                b"must-understand" => all.must_understand = true,
                b"no-transform" => all.no_transform = true,
                _ => {}
            }
        }
        all
    }

    /// Whether a stale copy may not be served without asking (RFC 9111 §4.2.4), whatever the reason.
    pub fn forbids_stale(&self, shared: bool) -> bool {
        self.must_revalidate
            || self.no_cache == Restriction::Whole
            || (shared && (self.proxy_revalidate || self.s_maxage.is_some()))
    }
}

// === impl RequestDirectives ===

impl RequestDirectives {
    /// What `Cache-Control` says, or `Pragma` when there is none.
    pub fn parse(headers: &HeaderMap) -> Self {
        let mut all = Self::default();
        if !headers.contains_key(CACHE_CONTROL) {
            all.no_cache = directives(headers, &PRAGMA)
                .any(|directive| directive.name.eq_ignore_ascii_case(b"no-cache"));
            return all;
        }
        for directive in directives(headers, &CACHE_CONTROL) {
            match directive.lowercase_name(&mut [0; LONGEST_NAME]) {
                b"max-age" => least(&mut all.max_age, directive.seconds()),
                b"max-stale" => {
                    let is_any = matches!(directive.argument, Argument::Absent);
                    least(&mut all.max_stale, if is_any { Duration::MAX } else { directive.seconds() });
                }
                b"min-fresh" => {
                    all.min_fresh = all.min_fresh.max(Some(directive.readable_seconds().unwrap_or(MOST)));
                }
                b"stale-if-error" => least(&mut all.stale_if_error, directive.seconds()),
                b"no-cache" => all.no_cache = true,
                b"no-store" => all.no_store = true,
                b"only-if-cached" => all.only_if_cached = true,
                b"no-transform" => all.no_transform = true,
                _ => {}
            }
        }
        all
    }
}

// === impl Restriction ===

impl Restriction {
    /// Whether the directive is there at all.
    pub fn is_present(&self) -> bool {
        *self != Self::Absent
    }

    /// Of a list of field names; of what is none, the whole response.
    fn of(names: &[u8]) -> Self {
        let names: Option<Vec<HeaderName>> = names
            .split(|byte| *byte == b',')
            .map(<[u8]>::trim_ascii)
            .filter(|name| !name.is_empty())
            .map(|name| HeaderName::from_bytes(name).ok())
            .collect();
        names.filter(|names| !names.is_empty()).map_or(Self::Whole, Self::Fields)
    }

    fn restrict(&mut self, more: Self) {
        *self = match (std::mem::take(self), more) {
            (Self::Fields(mut fields), Self::Fields(more)) => {
                fields.extend(more);
                Self::Fields(fields)
            }
            (Self::Absent, other) | (other, Self::Absent) => other,
            (Self::Whole, _) | (_, Self::Whole) => Self::Whole,
        };
    }
}

// === impl Directive ===

/// What a targeted field can say to us.
const TARGETED: [&[u8]; 13] = [
    b"max-age",
    b"s-maxage",
    b"stale-while-revalidate",
    b"stale-if-error",
    b"no-cache",
    b"private",
    b"no-store",
    b"must-revalidate",
    b"proxy-revalidate",
    b"public",
    b"immutable",
    b"must-understand",
    b"no-transform",
];

/// `stale-while-revalidate`, the longest name we know.
const LONGEST_NAME: usize = 22;

impl<'a> Directive<'a> {
    fn parse(member: &'a [u8]) -> Self {
        let Some(equals) = member.iter().position(|byte| *byte == b'=') else {
            return Self { name: member, argument: Argument::Absent };
        };
        let (name, argument) = (&member[..equals], &member[equals + 1..]);
        let argument = match argument {
            _ if name.trim_ascii_end().len() < name.len() => Argument::Unreadable,
            [b'"', quoted @ ..] => unquoted(quoted).map_or(Argument::Unreadable, Argument::Text),
            token => Argument::Text(Cow::Borrowed(token)),
        };
        Self { name: name.trim_ascii_end(), argument }
    }

    /// The name in small letters; of a longer one than we know, nothing.
    fn lowercase_name<'b>(&self, buffer: &'b mut [u8; LONGEST_NAME]) -> &'b [u8] {
        let Some(name) = buffer.get_mut(..self.name.len()) else { return b"" };
        name.copy_from_slice(self.name);
        name.make_ascii_lowercase();
        name
    }

    fn readable_seconds(&self) -> Option<Duration> {
        match &self.argument {
            Argument::Text(text) => headers::delta_seconds(text).map(Duration::from_secs),
            Argument::Absent | Argument::Unreadable => None,
        }
    }

    /// What cannot be read allows nothing.
    fn seconds(&self) -> Duration {
        self.readable_seconds().unwrap_or_default()
    }

    fn restriction(&self) -> Restriction {
        let Argument::Text(text) = &self.argument else { return Restriction::Whole };
        Restriction::of(text)
    }
}

fn directives<'a>(headers: &'a HeaderMap, field: &HeaderName) -> impl Iterator<Item = Directive<'a>> {
    headers
        .get_all(field)
        .into_iter()
        .flat_map(|line| headers::members(line.as_bytes()))
        .map(Directive::parse)
}

/// A quoted string behind its first quote, which must end with the other one.
fn unquoted(quoted: &[u8]) -> Option<Cow<'_, [u8]>> {
    let text = quoted.strip_suffix(b"\"")?;
    if !text.iter().any(|byte| matches!(byte, b'"' | b'\\')) {
        return Some(Cow::Borrowed(text));
    }
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        match byte {
            b'"' => return None,
            b'\\' => plain.push(*rest.next()?),
            other => plain.push(*other),
        }
    }
    Some(Cow::Owned(plain))
}

fn least(known: &mut Option<Duration>, seconds: Duration) {
    *known = Some(known.map_or(seconds, |known| known.min(seconds)));
}

/// For how long a response is fresh (RFC 9111 §4.2.1). `None`: it does not say. `response_time` stands in for a
/// `Date` that is missing.
pub fn freshness_lifetime(headers: &HeaderMap, shared: bool, response_time: Timestamp) -> Option<Duration> {
    lifetime(&ResponseDirectives::parse(headers), headers, shared, response_time)
}

/// As [`freshness_lifetime`], when the directives are known already.
pub fn lifetime(
    directives: &ResponseDirectives,
    headers: &HeaderMap,
    shared: bool,
    response_time: Timestamp,
) -> Option<Duration> {
    let of_shared = directives.s_maxage.filter(|_| shared);
    of_shared.or(directives.max_age).or_else(|| expires_in(headers, response_time))
}

/// `Expires` minus `Date`. One that is no date, such as `0`, is in the past; so are two that differ.
fn expires_in(headers: &HeaderMap, response_time: Timestamp) -> Option<Duration> {
    let mut lines = headers.get_all(EXPIRES).into_iter();
    let first = lines.next()?;
    if lines.any(|line| line != first) {
        return Some(Duration::ZERO);
    }
    let from = date_of(headers, response_time).unwrap_or(response_time);
    Some(
        date::parse(first.as_bytes(), response_time)
            .map_or(Duration::ZERO, |until| clock::since(until, from)),
    )
}

/// The longest time that is guessed.
const LONGEST_GUESS: Duration = Duration::from_secs(24 * 3600);

/// A guess at how long a response stays fresh that does not say it (RFC 9111 §4.2.2): a tenth of the time for which it
/// had not changed when it was sent, at most a day. `None` when it does not tell when it changed.
pub fn guessed_lifetime(headers: &HeaderMap, response_time: Timestamp) -> Option<Duration> {
    let modified = date::parse(headers.get(LAST_MODIFIED)?.as_bytes(), response_time)?;
    let sent = date_of(headers, response_time).unwrap_or(response_time);
    Some((clock::since(sent, modified) / 10).min(LONGEST_GUESS))
}

/// `Date`, when it is one.
pub fn date_of(headers: &HeaderMap, response_time: Timestamp) -> Option<Timestamp> {
    headers.get(DATE).and_then(|value| date::parse(value.as_bytes(), response_time))
}

/// `Age` (RFC 9111 §5.1): of several the first counts; one that is no number is none.
pub fn age_of(headers: &HeaderMap) -> Option<Duration> {
    let first = headers.get_all(AGE).into_iter().flat_map(|line| headers::members(line.as_bytes())).next()?;
    headers::delta_seconds(first).map(Duration::from_secs)
}

/// How old a response was when it arrived: `corrected_initial_age` of RFC 9111 §4.2.3, by the greater of what the
/// caches on the way counted and what the clocks say.
pub fn initial_age(headers: &HeaderMap, request_time: Timestamp, response_time: Timestamp) -> Duration {
    let apparent =
        date_of(headers, response_time).map_or(Duration::ZERO, |date| clock::since(response_time, date));
    let delay = clock::since(response_time, request_time);
    let counted = age_of(headers).unwrap_or_default().saturating_add(delay);
    apparent.max(counted)
}

/// How old it is now (RFC 9111 §4.2.3). `None` when the clock went back behind `response_time`: then nobody knows,
/// and it must count as stale.
pub fn current_age(initial_age: Duration, response_time: Timestamp, now: Timestamp) -> Option<Duration> {
    let resident = Duration::try_from(now.duration_since(response_time)).ok()?;
    Some(initial_age.saturating_add(resident))
}

#[cfg(test)]
mod tests;
