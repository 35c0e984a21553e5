//! Pure. Field names of our own, and what may not travel from one side of the proxy to the other.
//!
//! Hop-by-hop fields go by RFC 9110 §7.6.1: those that `Connection` names, and those that are known to be about the
//! connection although older senders do not name them. Our own fields are never forwarded: not from a caller to
//! Flexport, where they mean nothing, and not from an upstream to a caller, where they would lie. Framing is checked
//! again although hyper checks it: a request that two parties can read differently is how requests are smuggled
//! (RFC 9112 §6.3, §11.2), and a refusal should name the field. Nothing allocates when there is nothing to do.

use crate::error::ProxyError;
use http::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Uri, Version};

/// Who gave the answer: `upstream`, `cache`, `stale`, `queue` or `seawall`.
pub const SEAWALL_SOURCE: HeaderName = HeaderName::from_static("seawall-source");
/// When Flexport last confirmed what is served (see [`super::date::as_of`]).
pub const SEAWALL_DATA_AS_OF: HeaderName = HeaderName::from_static("seawall-data-as-of");
/// Why a stale copy is served.
pub const SEAWALL_STALE_REASON: HeaderName = HeaderName::from_static("seawall-stale-reason");
/// How many writes to what was read are not settled: `n; oldest=<seconds>`.
pub const SEAWALL_PENDING_WRITES: HeaderName = HeaderName::from_static("seawall-pending-writes");
/// The ticket of a write.
pub const SEAWALL_WRITE_ID: HeaderName = HeaderName::from_static("seawall-write-id");
/// `none` on a write that could not be made durable before it was sent.
pub const SEAWALL_DURABILITY: HeaderName = HeaderName::from_static("seawall-durability");
/// On a refusal of the breaker's: `open; scope=<scope>; retry-after=<s>`.
pub const SEAWALL_BREAKER: HeaderName = HeaderName::from_static("seawall-breaker");
/// Request: the caller's token.
pub const SEAWALL_TOKEN: HeaderName = HeaderName::from_static("seawall-token");
/// Request: `never` for a caller that cannot cope with a `202`.
pub const SEAWALL_QUEUE: HeaderName = HeaderName::from_static("seawall-queue");
/// Request: which writes keep their order, instead of the route's rule.
pub const SEAWALL_ORDER_KEY: HeaderName = HeaderName::from_static("seawall-order-key");
/// Request: seconds after which a queued write is worth nothing any more.
pub const SEAWALL_QUEUE_MAX_AGE: HeaderName = HeaderName::from_static("seawall-queue-max-age");
/// Request: the time limit of the whole call.
pub const SEAWALL_TIMEOUT: HeaderName = HeaderName::from_static("seawall-timeout");
/// Request: `never` for a caller that wants no stale copy.
pub const SEAWALL_STALE: HeaderName = HeaderName::from_static("seawall-stale");
/// Request: `allow` for a create that is meant to be equal to another.
pub const SEAWALL_DUPLICATE: HeaderName = HeaderName::from_static("seawall-duplicate");
/// The key under which a write is done once; ours and forwarded.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// On an answer that is that of an earlier request with the same key.
pub const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// Which preference was followed (RFC 7240 §3).
pub const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
/// The id of a request, taken when well formed, else made.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// W3C Trace Context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What the caches on the way did (RFC 9211).
pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// The version of Flexport's API that is asked for.
pub const FLEXPORT_VERSION: HeaderName = HeaderName::from_static("flexport-version");

const OURS: &str = "seawall-";

/// What is about one connection, whether or not `Connection` says so.
pub(super) fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-authentication-info"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

fn is_framing(name: &HeaderName) -> bool {
    matches!(name.as_str(), "content-length" | "transfer-encoding" | "trailer")
}

pub(super) fn is_ours(name: &HeaderName) -> bool {
    name.as_str().starts_with(OURS)
}

fn is_only_ours_to_say(name: &HeaderName) -> bool {
    is_ours(name) || matches!(name.as_str(), "idempotent-replayed" | "preference-applied")
}

/// Removes the fields whose names are meant. One look over the names: to ask the map for each name that hardly ever
/// comes would cost more than all else that is done with a small one.
fn strip(headers: &mut HeaderMap, is_meant: impl Fn(&HeaderName) -> bool) {
    // Collecting nothing allocates nothing.
    let meant: Vec<HeaderName> = headers.keys().filter(|name| is_meant(name)).cloned().collect();
    for name in meant {
        headers.remove(name);
    }
}

/// The longest request id that is taken over.
const LONGEST_REQUEST_ID: usize = 128;
/// Above this a number of seconds is read as this (RFC 9111 §1.2.2).
const MOST_SECONDS: u64 = 1 << 31;

/// A request whose extent or target could be read in two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct FramingError {
    /// The field that is wrong.
    pub field: &'static str,
    /// What is wrong with it, and what to send instead.
    pub message: &'static str,
}

// === impl FramingError ===

impl From<FramingError> for ProxyError {
    fn from(FramingError { field, message }: FramingError) -> Self {
        Self::BadRequest { field, message: message.to_owned() }
    }
}

/// Removes what belongs to one connection only: `Connection`, the fields it names, and the known ones.
///
/// `Host` and `Content-Length` stay even when `Connection` names them: they say where a message goes and where it
/// ends, and no sender may nominate them.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    strip_nominated(headers);
    strip(headers, is_hop_by_hop);
}

/// Removes from a request all that does not go to the upstream, and what is made anew for it: hop-by-hop fields, those
/// of the framing, ours, `Expect`, `Host` and the caller's `Authorization`.
pub fn strip_for_upstream(headers: &mut HeaderMap) {
    strip_nominated(headers);
    strip(headers, |name| {
        is_hop_by_hop(name)
            || is_framing(name)
            || is_ours(name)
            || matches!(*name, AUTHORIZATION | EXPECT | HOST)
    });
    super::prefer::remove_wait(headers);
}

/// Removes from an upstream's answer what does not go to a caller: hop-by-hop fields, what only we may say, and those
/// of the framing where the content is sent anew.
pub fn strip_for_caller(headers: &mut HeaderMap, is_framed_anew: bool) {
    strip_nominated(headers);
    strip(headers, |name| {
        is_hop_by_hop(name) || is_only_ours_to_say(name) || (is_framed_anew && is_framing(name))
    });
}

fn strip_nominated(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let nominated: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .into_iter()
            .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            .filter(|option| !option.eq_ignore_ascii_case(b"close") && !option.is_empty())
            .filter_map(|option| HeaderName::from_bytes(option).ok())
            .filter(|name| *name != HOST && *name != CONTENT_LENGTH && headers.contains_key(name))
            .collect();
        for name in &nominated {
            headers.remove(name);
        }
    }
}

/// Removes what says where the content ends, for a message whose content is another one now.
pub fn strip_framing(headers: &mut HeaderMap) {
    strip(headers, is_framing);
}

/// Removes from an answer what holds no more once its content was changed: its length, digests of it, and the offer to
/// send parts of it.
pub fn strip_for_changed_content(headers: &mut HeaderMap) {
    strip(headers, |name| {
        matches!(
            name.as_str(),
            "content-length" | "content-digest" | "repr-digest" | "digest" | "content-md5" | "accept-ranges"
        )
    });
}

/// Removes from a request what is for us: every `Seawall-*` field and the `wait` preference.
pub fn strip_seawall_request(headers: &mut HeaderMap) {
    strip(headers, is_ours);
    super::prefer::remove_wait(headers);
}

/// The same value in memory of its own; see [`Fields`](super::Fields).
pub fn detached_value(value: &HeaderValue) -> HeaderValue {
    let mut copy = HeaderValue::from_bytes(value.as_bytes()).expect("the bytes of a valid value");
    copy.set_sensitive(value.is_sensitive());
    copy
}

/// Whether a `Content-Type` is `application/json` or `application/<something>+json`, with or without parameters.
pub fn is_json(content_type: Option<&HeaderValue>) -> bool {
    let essence = content_type.and_then(|value| value.as_bytes().split(|byte| *byte == b';').next());
    essence.map(<[u8]>::trim_ascii).is_some_and(|essence| {
        essence.eq_ignore_ascii_case(b"application/json")
            || essence.len() > 5 && essence[essence.len() - 5..].eq_ignore_ascii_case(b"+json")
    })
}

/// Whether a request id may be taken over: 1 to 128 visible ASCII characters.
pub fn is_valid_request_id(id: &[u8]) -> bool {
    (1..=LONGEST_REQUEST_ID).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

/// Refuses a request whose end or target two parties could read differently.
pub fn validate_request(version: Version, headers: &HeaderMap, uri: &Uri) -> Result<(), FramingError> {
    validate_length(version, headers)?;
    validate_host(version, headers, uri)
}

fn validate_length(version: Version, headers: &HeaderMap) -> Result<(), FramingError> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).into_iter();
    if let Some(coding) = codings.next() {
        let refuse = |message| Err(FramingError { field: "Transfer-Encoding", message });
        if version != Version::HTTP_11 {
            return refuse("is for HTTP/1.1 only; send the content without it");
        }
        if codings.next().is_some() || !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
            return refuse("must be exactly `chunked`; send the content chunked or with Content-Length");
        }
        if headers.contains_key(CONTENT_LENGTH) {
            return refuse("came together with Content-Length; send one of them");
        }
    }
    let mut known = None;
    for length in headers.get_all(CONTENT_LENGTH) {
        let refuse = |message| Err(FramingError { field: "Content-Length", message });
        let Some(length) = content_length(length) else {
            return refuse("is not a whole number of bytes; send digits only");
        };
        if known.is_some_and(|known| known != length) {
            return refuse("came with several values; send one");
        }
        known = Some(length);
    }
    Ok(())
}

fn content_length(value: &HeaderValue) -> Option<u64> {
    let digits = value.as_bytes();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The part of [`validate_request`] that is about the target; enough for a request without fields of the framing.
pub fn validate_host(version: Version, headers: &HeaderMap, uri: &Uri) -> Result<(), FramingError> {
    let refuse = |message| Err(FramingError { field: "Host", message });
    let mut hosts = headers.get_all(HOST).into_iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return refuse("came more than once; send one");
    }
    let Some(host) = host else {
        return match version {
            Version::HTTP_11 => refuse("is missing; HTTP/1.1 requires it"),
            _ if version >= Version::HTTP_2 && uri.authority().is_none() => {
                refuse("is missing; send `:authority` or Host")
            }
            _ => Ok(()),
        };
    };
    if !is_host(host.as_bytes()) {
        return refuse("is not `name` or `name:port`; send the name of this server");
    }
    // For HTTP/1.1 the target wins (RFC 9112 §3.2.2); for HTTP/2 the request is malformed (RFC 9113 §8.3.1).
    let differs =
        |other: &http::uri::Authority| !host.as_bytes().eq_ignore_ascii_case(other.as_str().as_bytes());
    if version >= Version::HTTP_2 && uri.authority().is_some_and(differs) {
        return refuse("differs from `:authority`; send the same, or only `:authority`");
    }
    Ok(())
}

/// A name or address, perhaps with a port; nothing that could end a name for somebody, no user info. Commas would be
/// lawful and are refused: they come from two fields that somebody joined.
fn is_host(host: &[u8]) -> bool {
    let (name, rest) = if host.first() == Some(&b'[') {
        let Some(end) = host.iter().position(|byte| *byte == b']') else { return false };
        let address = &host[1..end];
        if !address.iter().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.')) {
            return false;
        }
        (address, &host[end + 1..])
    } else {
        let end = host.iter().position(|byte| *byte == b':').unwrap_or(host.len());
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(byte);
        if !host[..end].iter().all(allowed) {
            return false;
        }
        host.split_at(end)
    };
    let port_fits = match rest {
        [] => true,
        [b':', port @ ..] => port.len() <= 5 && port.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    !name.is_empty() && port_fits
}

/// The members of a list field's line: what stands between commas that are not inside quotes, trimmed, without the
/// empty ones (RFC 9110 §5.6.1). What follows an unclosed quote is one member.
pub(crate) fn members(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        let text = rest?;
        let end = end_of_member(text);
        rest = text.get(end + 1..);
        Some(text[..end].trim_ascii())
    })
    .filter(|member| !member.is_empty())
}

fn end_of_member(text: &[u8]) -> usize {
    let (mut in_quotes, mut is_escaped) = (false, false);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_quotes => is_escaped = true,
            b'"' => in_quotes = !in_quotes,
            b',' if !in_quotes => return at,
            _ => {}
        }
    }
    text.len()
}

/// Whole seconds, digits only; more than 2^31 is 2^31 (RFC 9111 §1.2.2). `None` when it is not that.
pub(crate) fn delta_seconds(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |sum, digit| {
        digit.is_ascii_digit().then(|| (sum * 10 + u64::from(digit - b'0')).min(MOST_SECONDS))
    })
}

#[cfg(test)]
mod tests;
