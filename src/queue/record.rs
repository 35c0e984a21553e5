//! Pure. What is kept of a write, and its bytes.
//!
//! A record is an envelope: the byte of its version, then a JSON header. JSON, so that fields can be added; the
//! body and the answer lie beside it in raw chunks, and the header holds their number, length and digest, so that
//! nothing can be swapped or cut unseen. Members that a later version adds are ignored by this one; a version byte
//! that is not known is an error, and the record is left alone.

use super::state::{Progress, State};
use crate::flexport::routes::WriteClass;
use crate::ids::{OwnerId, PartitionId, WriteId};
use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The version that this build writes.
pub const VERSION: u8 = 1;

/// The longest header that a write may begin with: one value of the store, with room for what later steps add.
pub const MAX_HEADER: usize = 10 * 1024;

/// The longest answer whose body is kept.
pub const MAX_ANSWER: usize = 256 * 1024;

/// All about a write but its body, its answer's body and its credential.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its ticket.
    pub write_id: WriteId,
    /// Its place in its order.
    pub seq: u64,
    /// What it keeps its order with, inside the partition.
    pub order: Arc<str>,
    /// Whose data it touches.
    pub partition: PartitionId,
    /// Who may read its ticket.
    pub owner: OwnerId,
    /// The declared caller's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<Arc<str>>,
    /// As whom it goes to Flexport.
    pub credential: CredentialRef,
    /// Its method.
    pub method: String,
    /// Its path and query.
    pub target: String,
    /// Its fields, but those of the connection, of ours, and credentials; values as Latin-1, which loses nothing.
    #[serde(default)]
    pub fields: Vec<(String, String)>,
    /// Its route, such as `POST /bookings`.
    pub route: Arc<str>,
    /// The route's group.
    pub group: Arc<str>,
    /// What may be done after an outcome that is not known.
    pub class: WriteClass,
    /// Sent with every attempt.
    pub key: String,
    /// Whether the caller chose the key.
    #[serde(default)]
    pub key_is_callers: bool,
    /// Digest of all that the request says.
    pub fingerprint: Digest,
    /// Digest of what makes two writes equal.
    pub twin: Digest,
    /// Its body.
    pub body: Blob,
    /// Whether a ticket was handed out for it: it was queued, or its outcome is unknown.
    #[serde(default)]
    pub is_ticket: bool,
    /// Where it is.
    pub progress: Progress,
    /// When it came.
    pub accepted_at: Timestamp,
    /// When it is given up.
    pub expires_at: Timestamp,
    /// When it is due, where it rests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_at: Option<Timestamp>,
    /// Until when a settled one is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_until: Option<Timestamp>,
    /// Flexport's answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<AnswerHead>,
    /// Rows of its audit trail so far.
    #[serde(default)]
    pub audited: u32,
}

/// As whom a write goes to Flexport.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CredentialRef {
    /// The secret that the configuration has under this name at the moment of sending.
    Alias(Arc<str>),
    /// The caller's own, which lies sealed beside the record.
    Passed,
}

/// Bytes that lie in chunks beside the record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Chunks.
    pub chunks: u32,
    /// Bytes.
    pub len: u64,
    /// SHA-256 of all of them.
    pub sha256: Digest,
}

/// What is kept of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnswerHead {
    /// Its status.
    pub status: u16,
    /// Its content fields, and `Location`.
    pub fields: Vec<(String, String)>,
    /// Its body; `None` when it was too long to keep.
    pub body: Option<Blob>,
}

/// SHA-256.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

/// Why a write is where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// A breaker is open.
    BreakerOpen,
    /// Too much was in flight.
    Overloaded,
    /// 429, or our own rate gate.
    RateLimited,
    /// 503 with `Retry-After`.
    Unavailable,
    /// The upstream could not be reached.
    Unreachable,
    /// The caller's time was up before it was sent.
    Deadline,
    /// Seawall was shutting down.
    Draining,
    /// An older write of the same order is not settled.
    Behind,
    /// No answer came in time.
    Timeout,
    /// The connection ended before the answer did.
    Cut,
    /// A 5xx that says nothing for certain, or a 200 with such an error in its envelope.
    ServerError,
    /// The process ended while it was sent.
    Crashed,
    /// The store came back older than it was: it may have been sent since.
    RolledBack,
    /// 408, 421 or 425.
    AskedToWait,
    /// 401: the credential is paused.
    Unauthorized,
    /// 403.
    Forbidden,
    /// Another final 4xx, or 501, 505, 511.
    Rejected,
    /// 3xx: never followed.
    Redirected,
    /// Flexport answers it with 5xx again and again while it takes others.
    Poison,
    /// It waited for too long.
    MaxAge,
    /// A person decided.
    Operator,
    /// Its body or credential cannot be read any more.
    Undecryptable,
    /// Its credential was passed through and is not accepted any more.
    Credential,
    /// The store could not take it.
    StoreFailed,
    /// A reason that another version knows.
    #[serde(other)]
    Other,
}

/// Why bytes are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Written by another version.
    #[error("record version {0} is not known to this build, which knows {VERSION}")]
    Version(u8),
    /// Not a record.
    #[error("not a record: {0}")]
    Malformed(String),
}

/// A row of the audit trail.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditRow {
    /// When.
    pub at: Timestamp,
    /// Who: `caller`, `replayer`, `seawall`, or an operator's name.
    pub actor: String,
    /// What was done.
    pub what: String,
    /// The state before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<State>,
    /// The state after.
    pub to: State,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The status of the answer behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
}

// === impl Record ===

impl Record {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        serde_json::to_writer(&mut bytes, self).expect("a record has only keys that are strings");
        bytes
    }

    /// From its bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        match bytes.split_first() {
            Some((&VERSION, json)) => {
                serde_json::from_slice(json).map_err(|error| DecodeError::Malformed(error.to_string()))
            }
            Some((&version, _)) => Err(DecodeError::Version(version)),
            None => Err(DecodeError::Malformed("no bytes".to_owned())),
        }
    }

    /// Its path, without the query.
    pub fn path(&self) -> &str {
        path_of(&self.target)
    }

    /// Bytes that it takes up.
    pub fn size(&self) -> u64 {
        let answer = self.answer.as_ref().and_then(|answer| answer.body).map_or(0, |body| body.len);
        let fields: usize = self.fields.iter().map(|(name, value)| name.len() + value.len() + 6).sum();
        600 + fields as u64 + self.target.len() as u64 + self.body.len + answer
    }
}

/// The path of a target.
pub fn path_of(target: &str) -> &str {
    target.split_once('?').map_or(target, |(path, _)| path)
}

// === impl Digest ===

impl Digest {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
        Self(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let wrong = || serde::de::Error::custom("a digest is 64 hexadecimal digits");
        if text.len() != 64 || !text.is_ascii() {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[index * 2..index * 2 + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

// === impl Blob ===

impl Blob {
    /// Of these bytes, in chunks of at most `chunk`.
    pub fn of(bytes: &[u8], chunk: usize) -> Self {
        Self {
            chunks: bytes.len().div_ceil(chunk) as u32,
            len: bytes.len() as u64,
            sha256: Digest::of(bytes),
        }
    }

    /// Whether these are its bytes.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        self.len == bytes.len() as u64 && self.sha256 == Digest::of(bytes)
    }
}

// === impl Reason ===

impl Reason {
    /// As tickets name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BreakerOpen => "breaker_open",
            Self::Overloaded => "overloaded",
            Self::RateLimited => "rate_limited",
            Self::Unavailable => "unavailable",
            Self::Unreachable => "unreachable",
            Self::Deadline => "deadline",
            Self::Draining => "draining",
            Self::Behind => "behind",
            Self::Timeout => "timeout",
            Self::Cut => "cut",
            Self::ServerError => "server_error",
            Self::Crashed => "crashed",
            Self::RolledBack => "rolled_back",
            Self::AskedToWait => "asked_to_wait",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::Rejected => "rejected",
            Self::Redirected => "redirected",
            Self::Poison => "poison",
            Self::MaxAge => "max_age",
            Self::Operator => "operator",
            Self::Undecryptable => "undecryptable",
            Self::Credential => "credential",
            Self::StoreFailed => "store_failed",
            Self::Other => "other",
        }
    }
}

/// A request's fields that are stored and sent again.
///
/// Left out: what belongs to one connection (RFC 9110 §7.6.1), what is ours, credentials (the record names its own),
/// what the client states anew for each message, and the key (the record holds it).
pub fn kept_request_fields(headers: &HeaderMap) -> Vec<(String, String)> {
    headers
        .iter()
        .filter(|(name, _)| !is_dropped(name))
        .map(|(name, value)| (name.as_str().to_owned(), latin1(value.as_bytes())))
        .collect()
}

/// Whether a request's field is not stored.
fn is_dropped(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with("seawall-")
        || name.starts_with("proxy-")
        || matches!(
            name,
            "authorization"
                | "cookie"
                | "host"
                | "content-length"
                | "transfer-encoding"
                | "connection"
                | "keep-alive"
                | "te"
                | "trailer"
                | "upgrade"
                | "expect"
                | "prefer"
                | "idempotency-key"
        )
}

/// The most bytes of an answer's fields that are kept: a record is one value of the store.
const MAX_ANSWER_FIELDS: usize = 2 * 1024;

/// An answer's fields that are kept: what describes its content, and where the thing is.
pub fn kept_answer_fields(headers: &HeaderMap) -> Vec<(String, String)> {
    let mut room = MAX_ANSWER_FIELDS;
    headers
        .iter()
        .filter(|(name, _)| {
            matches!(
                name.as_str(),
                "content-type"
                    | "content-language"
                    | "content-encoding"
                    | "content-location"
                    | "location"
                    | "etag"
                    | "last-modified"
                    | "retry-after"
                    | "x-request-id"
            )
        })
        // What a stranger sends must not make the record long.
        .filter(|(name, value)| {
            let size = name.as_str().len() + 2 * value.len() + 6;
            let fits = value.len() <= 512 && size <= room;
            if fits {
                room -= size;
            }
            fits
        })
        .map(|(name, value)| (name.as_str().to_owned(), latin1(value.as_bytes())))
        .collect()
}

/// Fields from their stored form.
pub fn header_map(fields: &[(String, String)]) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(fields.len());
    for (name, value) in fields {
        let name = HeaderName::from_bytes(name.as_bytes());
        let value: Vec<u8> = value.chars().map(|letter| u8::try_from(letter).unwrap_or(b'?')).collect();
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(&value)) {
            headers.append(name, value);
        }
    }
    headers
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::queue) fn sample() -> Record {
        Record {
            write_id: WriteId::from_bytes([7; 16]),
            seq: 42,
            order: "shipments/12".into(),
            partition: PartitionId([1; 16]),
            owner: OwnerId([2; 16]),
            caller: Some("erp".into()),
            credential: CredentialRef::Alias("main".into()),
            method: "PATCH".to_owned(),
            target: "/shipments/12?x=1".to_owned(),
            fields: vec![("content-type".to_owned(), "application/json".to_owned())],
            route: "PATCH /shipments/:id".into(),
            group: "shipments".into(),
            class: WriteClass::R,
            key: "k-1".to_owned(),
            key_is_callers: true,
            fingerprint: Digest([3; 32]),
            twin: Digest([4; 32]),
            body: Blob { chunks: 1, len: 2, sha256: Digest([5; 32]) },
            is_ticket: true,
            progress: Progress::new(),
            accepted_at: Timestamp::UNIX_EPOCH,
            expires_at: Timestamp::from_second(3600).unwrap(),
            next_at: None,
            keep_until: None,
            answer: None,
            audited: 1,
        }
    }

    /// These bytes lie on disks. A change here needs a new version, and this one must stay readable.
    const GOLDEN: &str = concat!(
        "\u{1}",
        r#"{"write_id":"07070707-0707-0707-0707-070707070707","seq":42,"order":"shipments/12","#,
        r#""partition":"01010101010101010101010101010101","owner":"02020202020202020202020202020202","#,
        r#""caller":"erp","credential":{"alias":"main"},"method":"PATCH","target":"/shipments/12?x=1","#,
        r#""fields":[["content-type","application/json"]],"route":"PATCH /shipments/:id","group":"shipments","#,
        r#""class":"R","key":"k-1","key_is_callers":true,"#,
        r#""fingerprint":"0303030303030303030303030303030303030303030303030303030303030303","#,
        r#""twin":"0404040404040404040404040404040404040404040404040404040404040404","#,
        r#""body":{"chunks":1,"len":2,"#,
        r#""sha256":"0505050505050505050505050505050505050505050505050505050505050505"},"#,
        r#""is_ticket":true,"progress":{"state":"pending","attempts":0,"server_errors":0,"#,
        r#""maybe_applied":false,"held":false,"blocks":false},"accepted_at":"1970-01-01T00:00:00Z","#,
        r#""expires_at":"1970-01-01T01:00:00Z","audited":1}"#,
    );

    #[test]
    fn golden_bytes() {
        assert_eq!(String::from_utf8(sample().encode()).unwrap(), GOLDEN);
        assert_eq!(Record::decode(GOLDEN.as_bytes()).unwrap(), sample());
    }

    #[test]
    fn later_members_are_ignored_and_a_later_version_is_refused() {
        let mut later = GOLDEN.trim_end_matches('}').to_owned();
        later.push_str(r#","new_member":[1]}"#);
        assert_eq!(Record::decode(later.as_bytes()).unwrap(), sample());
        let reason = GOLDEN.replace(r#""blocks":false"#, r#""blocks":false,"reason":"from_the_future""#);
        assert_eq!(Record::decode(reason.as_bytes()).unwrap().progress.reason, Some(Reason::Other));
        assert_eq!(Record::decode(b"\x02{}"), Err(DecodeError::Version(2)));
        assert!(matches!(Record::decode(b""), Err(DecodeError::Malformed(_))));
        assert!(matches!(Record::decode(b"\x01{"), Err(DecodeError::Malformed(_))));
    }

    #[test]
    fn an_answers_fields_never_make_a_record_long() {
        let mut headers = HeaderMap::new();
        headers.insert("location", HeaderValue::from_static("/bookings/1"));
        for _ in 0..40 {
            headers.append("content-language", HeaderValue::from_bytes(&[0xe9; 500]).unwrap());
        }
        headers.insert("etag", HeaderValue::from_static("\"v1\""));
        let kept = kept_answer_fields(&headers);
        let size = serde_json::to_vec(&kept).unwrap().len();
        assert!(size <= MAX_ANSWER_FIELDS + 16, "{size}");
        assert_eq!(header_map(&kept)["etag"], "\"v1\"");
        const { assert!(MAX_HEADER + MAX_ANSWER_FIELDS + 1024 < crate::store::MAX_CHUNK) };
    }

    #[test]
    fn credentials_and_fields_of_the_connection_are_not_stored() {
        let mut headers = HeaderMap::new();
        for name in ["authorization", "cookie", "proxy-authorization", "seawall-token", "connection", "host"]
        {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("secret"));
        }
        headers.insert("if-match", HeaderValue::from_static("\"v1\""));
        headers.insert("x-note", HeaderValue::from_bytes(b"caf\xe9").unwrap());
        let kept = kept_request_fields(&headers);
        assert_eq!(kept.len(), 2);
        let back = header_map(&kept);
        assert_eq!(back["x-note"].as_bytes(), b"caf\xe9");
        assert_eq!(back["if-match"], "\"v1\"");
    }
}
