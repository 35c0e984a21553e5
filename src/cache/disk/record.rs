//! Pure. What a record of the log is: a fixed header in the clear, a sealed head, a sealed body.
//!
//! ```text
//! "SWC1" · kind (1) · id (24) · partition (16) · stamp (8) · at (8) · head length (4) · body length (4) · check (4)
//! head: format (1) · JSON          body: the answer's bytes
//! ```
//! The header holds what the index needs, so that a start reads no secret and unseals nothing; it says nothing that
//! the ids do not say (both are digests), and it is the associated data of the head, so a header that was changed
//! opens no head. The body's associated data are id and stamp: it belongs to the heads that name this stamp, and to no
//! others. A *renewal* is a head without a body: the body is that of the copy before it with the same stamp.
//!
//! The head is JSON behind a format byte: fields can be added, and a newer format is a miss and nothing worse. The
//! golden bytes of each format are in `tests/fixtures`.

use super::super::key;
use super::super::policy::Facts;
use crate::http::Fields;
use crate::http::headers::is_json;
use crate::ids::PartitionId;
use aws_lc_rs::digest;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The bytes of a header.
pub(crate) const HEADER: usize = 4 + 1 + 24 + 16 + 8 + 8 + 4 + 4 + 4;
/// The longest head, as stored. A longer one is not kept.
pub(crate) const MAX_HEAD: usize = 64 * 1024;

const MAGIC: [u8; 4] = *b"SWC1";
const FORMAT: u8 = 1;

/// The name of a copy on disk: the first half of its key, then eight bytes of what `Vary` selected it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id(pub(crate) [u8; 24]);

/// What a record does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A copy, with its body.
    Put,
    /// A copy whose body lies elsewhere.
    Renew,
    /// No copy any more.
    Delete,
}

/// What the index needs of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) id: Id,
    pub(crate) partition: PartitionId,
    /// Names the body; the same in all renewals.
    pub(crate) stamp: u64,
    /// When the upstream last confirmed it, in microseconds.
    pub(crate) at: i64,
    /// As stored.
    pub(crate) head: u32,
    /// As stored.
    pub(crate) body: u32,
}

/// Where something lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) length: u32,
}

/// All that is known of a copy but its body.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// The whole key, in hexadecimal digits.
    pub(crate) key: String,
    /// Path and query.
    pub(crate) path: String,
    /// The tag of the route.
    pub(crate) tag: String,
    status: u16,
    /// Number of the invalidation before it was asked for.
    pub(crate) began: u64,
    /// The process that wrote it.
    pub(crate) run: u64,
    facts: Row,
    /// The origin's fields. A value's bytes are its characters' numbers.
    fields: Vec<(String, String)>,
    selecting: Vec<(String, Vec<String>)>,
    /// What it was kept under. Zero: that is not known.
    #[serde(default, skip_serializing_if = "is_unknown")]
    pub(crate) base: u64,
}

/// [`Facts`], in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Row {
    lifetime: u64,
    explicit: bool,
    initial_age: u64,
    no_cache: bool,
    #[serde(default)]
    forbids_stale: Option<String>,
    with_age: bool,
    private: bool,
    #[serde(default)]
    if_error: Option<u64>,
    #[serde(default)]
    while_revalidate: Option<u64>,
}

/// What a head is made of.
pub(crate) struct Source<'a> {
    pub(crate) key: &'a [u8; 32],
    pub(crate) path: &'a str,
    pub(crate) tag: &'a str,
    pub(crate) base: u64,
    pub(crate) status: StatusCode,
    pub(crate) began: u64,
    pub(crate) run: u64,
    pub(crate) facts: &'a Facts,
    pub(crate) fields: &'a Fields,
    pub(crate) selecting: &'a [(HeaderName, Vec<HeaderValue>)],
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_unknown(base: &u64) -> bool {
    *base == 0
}

// === impl Id ===

impl Id {
    /// The id of a variant of a key.
    pub(crate) fn of(key: &[u8; 32], selecting: &[(HeaderName, Vec<HeaderValue>)]) -> Self {
        let mut id = Self::first(key);
        if !selecting.is_empty() {
            let mut context = digest::Context::new(&digest::SHA256);
            for (name, values) in selecting {
                context.update(&(name.as_str().len() as u32).to_le_bytes());
                context.update(name.as_str().as_bytes());
                context.update(&(values.len() as u32).to_le_bytes());
                for value in values {
                    context.update(&(value.len() as u32).to_le_bytes());
                    context.update(value.as_bytes());
                }
            }
            id.0[16..].copy_from_slice(&context.finish().as_ref()[..8]);
        }
        id
    }

    /// The least id that a variant of this key can have.
    pub(crate) fn first(key: &[u8; 32]) -> Self {
        let mut id = [0; 24];
        id[..16].copy_from_slice(&key[..16]);
        Self(id)
    }

    /// The greatest.
    pub(crate) fn last(key: &[u8; 32]) -> Self {
        let mut id = [0xff; 24];
        id[..16].copy_from_slice(&key[..16]);
        Self(id)
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl std::str::FromStr for Id {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        unhex(text).map(Self).ok_or(())
    }
}

// === impl Header ===

impl Header {
    /// As it is stored.
    pub(crate) fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut at = 0;
        let mut put = |part: &[u8]| {
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        };
        put(&MAGIC);
        put(&[match self.kind {
            Kind::Put => 1,
            Kind::Renew => 2,
            Kind::Delete => 3,
        }]);
        put(&self.id.0);
        put(&self.partition.0);
        put(&self.stamp.to_le_bytes());
        put(&self.at.to_le_bytes());
        put(&self.head.to_le_bytes());
        put(&self.body.to_le_bytes());
        let check = check(&bytes[..HEADER - 4]);
        bytes[HEADER - 4..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// From what is stored; `None` when it is none.
    pub(crate) fn decode(bytes: &[u8; HEADER]) -> Option<Self> {
        let (rest, said) = bytes.split_last_chunk::<4>()?;
        if rest[..4] != MAGIC || u32::from_le_bytes(*said) != check(rest) {
            return None;
        }
        let kind = match rest[4] {
            1 => Kind::Put,
            2 => Kind::Renew,
            3 => Kind::Delete,
            _ => return None,
        };
        let number = |at: usize| Some(u64::from_le_bytes(rest.get(at..at + 8)?.try_into().ok()?));
        let length = |at: usize| Some(u32::from_le_bytes(rest.get(at..at + 4)?.try_into().ok()?));
        Some(Self {
            kind,
            id: Id(rest[5..29].try_into().ok()?),
            partition: PartitionId(rest[29..45].try_into().ok()?),
            stamp: number(45)?,
            at: number(53)?.cast_signed(),
            head: length(61)?,
            body: length(65)?,
        })
    }

    /// The bytes of the whole record.
    pub(crate) fn whole(&self) -> u64 {
        HEADER as u64 + u64::from(self.head) + u64::from(self.body)
    }

    /// What the body is bound to.
    pub(crate) fn body_key(&self) -> [u8; 32] {
        let mut key = [0; 32];
        key[..24].copy_from_slice(&self.id.0);
        key[24..].copy_from_slice(&self.stamp.to_le_bytes());
        key
    }
}

/// Notices flipped bits; against changes on purpose the header is the head's associated data.
fn check(bytes: &[u8]) -> u32 {
    let hash = key::fnv(bytes.iter().copied());
    (hash ^ (hash >> 32)) as u32
}

// === impl Head ===

impl Head {
    /// From a copy.
    pub(crate) fn of(source: &Source<'_>) -> Self {
        let facts = source.facts;
        Self {
            key: hex(source.key),
            path: source.path.to_owned(),
            tag: source.tag.to_owned(),
            status: source.status.as_u16(),
            began: source.began,
            run: source.run,
            facts: Row {
                lifetime: millis(facts.lifetime),
                explicit: facts.is_explicit,
                initial_age: millis(facts.initial_age),
                no_cache: facts.no_cache,
                forbids_stale: facts.forbids_stale.map(str::to_owned),
                with_age: facts.came_with_age,
                private: facts.is_private,
                if_error: facts.stale_if_error.map(millis),
                while_revalidate: facts.stale_while_revalidate.map(millis),
            },
            fields: source
                .fields
                .iter()
                .map(|(name, value)| (name.as_str().to_owned(), text(value)))
                .collect(),
            selecting: source
                .selecting
                .iter()
                .map(|(name, values)| (name.as_str().to_owned(), values.iter().map(text).collect()))
                .collect(),
            base: source.base,
        }
    }

    /// As it is sealed.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![FORMAT];
        serde_json::to_writer(&mut bytes, self)
            .expect("strings and numbers become JSON, and a vector takes all of it");
        bytes
    }

    /// From what was sealed; `None` when it is of a format that is not known.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (format, json) = bytes.split_first()?;
        if *format != FORMAT {
            return None;
        }
        serde_json::from_slice(json).ok()
    }

    pub(crate) fn is_of(&self, key: &[u8; 32]) -> bool {
        unhex::<32>(&self.key).is_some_and(|own| own == *key)
    }

    pub(crate) fn status(&self) -> Option<StatusCode> {
        StatusCode::from_u16(self.status).ok()
    }

    /// The origin's fields.
    pub(crate) fn fields(&self) -> Option<HeaderMap> {
        let mut map = HeaderMap::with_capacity(self.fields.len() + 6);
        for (name, value) in &self.fields {
            map.append(HeaderName::from_bytes(name.as_bytes()).ok()?, value_of(value)?);
        }
        Some(map)
    }

    /// Whether its body is JSON, without a coding.
    pub(crate) fn is_json(&self) -> bool {
        let of = |wanted: &str| {
            let value = self.fields.iter().find(|(name, _)| name == wanted).map(|(_, value)| value);
            value.and_then(|value| value_of(value))
        };
        is_json(of("content-type").as_ref())
            && of("content-encoding").is_none_or(|coding| coding == "identity")
    }

    /// The request fields that selected it.
    pub(crate) fn selecting(&self) -> Option<HeaderMap> {
        let mut map = HeaderMap::new();
        for (name, values) in &self.selecting {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            for value in values {
                map.append(name.clone(), value_of(value)?);
            }
        }
        Some(map)
    }

    pub(crate) fn facts(&self) -> Facts {
        const FORBIDDING: [&str; 4] = ["must-revalidate", "no-cache", "proxy-revalidate", "s-maxage"];
        let row = &self.facts;
        Facts {
            lifetime: Duration::from_millis(row.lifetime),
            is_explicit: row.explicit,
            initial_age: Duration::from_millis(row.initial_age),
            no_cache: row.no_cache,
            // One that a later version knows forbids too.
            forbids_stale: row
                .forbids_stale
                .as_deref()
                .map(|said| FORBIDDING.into_iter().find(|known| *known == said).unwrap_or("must-revalidate")),
            came_with_age: row.with_age,
            is_private: row.private,
            stale_if_error: row.if_error.map(Duration::from_millis),
            stale_while_revalidate: row.while_revalidate.map(Duration::from_millis),
        }
    }
}

/// When a copy of another process was confirmed.
///
/// A wall clock that went back since would make it younger than it is, or of the future. `newest` is what the clock
/// would show by the newest time in the log and the time since: by that, it is at least so much older than now.
pub(crate) fn confirmed(at: i64, newest: i64, now: Timestamp) -> Timestamp {
    let at_least =
        if newest > now.as_microsecond() { now.as_microsecond() - (newest - at).max(0) } else { at };
    self::at(at_least.min(at))
}

/// From microseconds.
pub(crate) fn at(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn text(value: &HeaderValue) -> String {
    value.as_bytes().iter().map(|byte| char::from(*byte)).collect()
}

fn value_of(text: &str) -> Option<HeaderValue> {
    if text.is_ascii() {
        return HeaderValue::from_str(text).ok();
    }
    let bytes: Option<Vec<u8>> = text.chars().map(|char| u8::try_from(u32::from(char)).ok()).collect();
    HeaderValue::from_bytes(&bytes?).ok()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let pairs = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    pairs.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

pub(crate) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::{ACCEPT_LANGUAGE, CONTENT_TYPE, ETAG, VARY};

    fn head() -> Head {
        let mut fields = HeaderMap::new();
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        fields.insert(ETAG, HeaderValue::from_static("W/\"1\""));
        fields.insert(VARY, HeaderValue::from_static("accept-language"));
        fields.insert("x-name", HeaderValue::from_bytes(b"caf\xe9").unwrap());
        let facts = Facts {
            lifetime: Duration::from_secs(5),
            is_explicit: true,
            forbids_stale: Some("must-revalidate"),
            stale_if_error: Some(Duration::from_secs(60)),
            ..Facts::default()
        };
        Head::of(&Source {
            key: &[7; 32],
            path: "/shipments/1?expand=x",
            base: 0,
            tag: "shipments",
            status: StatusCode::OK,
            began: 3,
            run: 9,
            facts: &facts,
            fields: &Fields::of(&fields, |_| false, None),
            selecting: &[(ACCEPT_LANGUAGE, vec![HeaderValue::from_static("de")])],
        })
    }

    fn header() -> Header {
        Header {
            kind: Kind::Put,
            id: Id::of(&[7; 32], &[]),
            partition: PartitionId([5; 16]),
            stamp: 0x0123_4567_89ab_cdef,
            at: 1_700_000_000_000_000,
            head: 321,
            body: 4096,
        }
    }

    #[test]
    fn the_golden_bytes_of_the_format_are_read_and_written() {
        const HEAD: &[u8] = include_bytes!("../../../tests/fixtures/cache-head-1.bin");
        const HEADER: &[u8; super::HEADER] = include_bytes!("../../../tests/fixtures/cache-header-1.bin");
        assert_eq!(String::from_utf8_lossy(&head().encode()), String::from_utf8_lossy(HEAD));
        assert_eq!(Head::decode(HEAD), Some(head()));
        assert_eq!(&header().encode(), HEADER);
        assert_eq!(Header::decode(HEADER), Some(header()));
    }

    #[test]
    fn a_head_gives_back_what_it_was_made_of() {
        let head = Head::decode(&head().encode()).unwrap();
        assert!(head.is_of(&[7; 32]) && !head.is_of(&[8; 32]));
        let fields = head.fields().unwrap();
        assert_eq!((fields["x-name"].as_bytes(), fields.len()), (&b"caf\xe9"[..], 4));
        assert_eq!(head.selecting().unwrap()[ACCEPT_LANGUAGE], "de");
        assert_eq!(head.status(), Some(StatusCode::OK));
        let facts = head.facts();
        assert_eq!((facts.lifetime.as_secs(), facts.forbids_stale), (5, Some("must-revalidate")));
        assert_eq!(facts.stale_if_error, Some(Duration::from_secs(60)));
    }

    #[test]
    fn nothing_that_was_changed_is_taken_for_a_header() {
        let whole = header().encode();
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut bytes = whole;
                bytes[at] ^= 1 << bit;
                assert_eq!(Header::decode(&bytes), None, "byte {at}, bit {bit}");
            }
        }
        assert_eq!(Header::decode(&[0; HEADER]), None);
    }

    #[test]
    fn a_head_of_a_newer_format_or_none_at_all_is_none() {
        let mut bytes = head().encode();
        bytes[0] = 2;
        assert_eq!(Head::decode(&bytes), None);
        for bytes in [&b""[..], b"\x01", b"\x01{}", b"\x01[1", b"\x01null"] {
            assert_eq!(Head::decode(bytes), None);
        }
    }

    #[test]
    fn variants_of_one_key_lie_together_and_apart_from_others() {
        let de = [(ACCEPT_LANGUAGE, vec![HeaderValue::from_static("de")])];
        let en = [(ACCEPT_LANGUAGE, vec![HeaderValue::from_static("en")])];
        let (key, ids) = ([1; 32], [Id::of(&[1; 32], &[]), Id::of(&[1; 32], &de), Id::of(&[1; 32], &en)]);
        assert!(ids[0] != ids[1] && ids[1] != ids[2]);
        assert!(ids.iter().all(|id| (Id::first(&key)..=Id::last(&key)).contains(id)));
        assert!(!(Id::first(&key)..=Id::last(&key)).contains(&Id::of(&[2; 32], &de)));
        assert_eq!(ids[1].to_string().parse(), Ok(ids[1]));
    }

    #[test]
    fn a_clock_that_went_back_makes_no_copy_younger() {
        let second = 1_000_000;
        let now = Timestamp::from_second(1000).unwrap();
        let at = |at: i64, newest: i64| confirmed(at * second, newest * second, now).as_second();
        assert_eq!(at(900, 990), 900);
        // The clock showed 5000 once; this was confirmed 100 s before that.
        assert_eq!(at(4900, 5000), 900);
        assert_eq!(at(5000, 5000), 1000);
        // It showed 5000 once; this is older than even today's clock says.
        assert_eq!(at(100, 5000), -3900);
    }
}
