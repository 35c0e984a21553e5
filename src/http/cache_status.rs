//! Pure. `Cache-Status` (RFC 9211): what our cache did with a request.
//!
//! Caches add themselves at the end, so that the list reads from the origin to the caller; what the upstream's caches
//! said stays before ours. Text that is no token is written as a string, so that the field is always well formed.

use super::headers::CACHE_STATUS;
use http::{HeaderMap, HeaderValue, StatusCode};

/// Enough for what we usually say, so that the value is built without growing.
const USUAL_LEN: usize = 96;

/// Our member of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    forward: Option<Forward>,
    forward_status: Option<StatusCode>,
    ttl: Option<i64>,
    is_stored: bool,
    is_collapsed: bool,
    detail: Option<&'a str>,
}

/// Why a request went forward (RFC 9211 §2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Forward {
    /// The cache was told not to handle it.
    Bypass,
    /// The method asks for it.
    Method,
    /// Nothing is kept for this URI.
    UriMiss,
    /// What is kept for this URI is for other field values.
    VaryMiss,
    /// Nothing that fits is kept, for either reason.
    Miss,
    /// What is kept is fresh, but the request did not want it.
    Request,
    /// What is kept is stale.
    Stale,
    /// What is kept is a part only.
    Partial,
}

// === impl Forward ===

impl Forward {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Miss => "miss",
            Self::Request => "request",
            Self::Stale => "stale",
            Self::Partial => "partial",
        }
    }
}

// === impl Member ===

impl<'a> Member<'a> {
    /// Answered without going forward.
    pub const fn hit() -> Self {
        Self {
            forward: None,
            forward_status: None,
            ttl: None,
            is_stored: false,
            is_collapsed: false,
            detail: None,
        }
    }

    /// Went forward.
    pub const fn forwarded(why: Forward) -> Self {
        Self { forward: Some(why), ..Self::hit() }
    }

    /// The status that came back; without meaning on a hit.
    pub const fn forward_status(mut self, status: StatusCode) -> Self {
        self.forward_status = Some(status);
        self
    }

    /// Whether the answer was stored.
    pub const fn stored(mut self, is_stored: bool) -> Self {
        self.is_stored = is_stored;
        self
    }

    /// Whether the request shared another's way forward.
    pub const fn collapsed(mut self, is_collapsed: bool) -> Self {
        self.is_collapsed = is_collapsed;
        self
    }

    /// Seconds of freshness left; negative when stale.
    pub const fn ttl(mut self, seconds: i64) -> Self {
        self.ttl = Some(seconds);
        self
    }

    /// What else there is to say, such as `breaker-open`.
    pub const fn detail(mut self, detail: &'a str) -> Self {
        self.detail = Some(detail);
        self
    }

    /// Adds this to what the caches before us said.
    pub fn append_to(&self, headers: &mut HeaderMap) {
        let mut text = Vec::with_capacity(USUAL_LEN);
        for line in headers.get_all(CACHE_STATUS) {
            text.extend_from_slice(line.as_bytes());
            text.extend_from_slice(b", ");
        }
        self.write(&mut text);
        headers.insert(CACHE_STATUS, value(text));
    }

    /// This alone, as a field value.
    pub fn to_value(&self) -> HeaderValue {
        let mut text = Vec::with_capacity(USUAL_LEN);
        self.write(&mut text);
        value(text)
    }

    fn write(&self, text: &mut Vec<u8>) {
        text.extend_from_slice(b"seawall; ");
        match self.forward {
            None => text.extend_from_slice(b"hit"),
            Some(why) => {
                text.extend_from_slice(b"fwd=");
                text.extend_from_slice(why.as_str().as_bytes());
            }
        }
        if let Some(status) = self.forward_status {
            text.extend_from_slice(b"; fwd-status=");
            text.extend_from_slice(status.as_str().as_bytes());
        }
        if self.is_stored {
            text.extend_from_slice(b"; stored");
        }
        if self.is_collapsed {
            text.extend_from_slice(b"; collapsed");
        }
        if let Some(seconds) = self.ttl {
            text.extend_from_slice(b"; ttl=");
            text.extend_from_slice(itoa::Buffer::new().format(seconds).as_bytes());
        }
        if let Some(detail) = self.detail {
            text.extend_from_slice(b"; detail=");
            write_token_or_string(detail, text);
        }
    }
}

fn value(text: Vec<u8>) -> HeaderValue {
    HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).expect("tokens, digits and printable strings")
}

/// A token when it is one, else a string with what cannot be in one replaced (RFC 8941 §3.3).
fn write_token_or_string(detail: &str, text: &mut Vec<u8>) {
    let is_first = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'*';
    let is_further = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte);
    if detail.as_bytes().first().is_some_and(is_first) && detail.bytes().all(is_further) {
        text.extend_from_slice(detail.as_bytes());
        return;
    }
    text.push(b'"');
    for character in detail.chars() {
        match character {
            '"' | '\\' => text.extend_from_slice(&[b'\\', character as u8]),
            ' '..='~' => text.push(character as u8),
            _ => text.push(b'?'),
        }
    }
    text.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_written() {
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        for (member, expected) in [
            (Member::hit(), "seawall; hit"),
            (Member::hit().ttl(30), "seawall; hit; ttl=30"),
            (Member::hit().ttl(-812).detail("breaker-open"), "seawall; hit; ttl=-812; detail=breaker-open"),
            (
                Member::forwarded(Forward::Stale)
                    .forward_status(unavailable)
                    .ttl(-812)
                    .detail("stale-if-error"),
                "seawall; fwd=stale; fwd-status=503; ttl=-812; detail=stale-if-error",
            ),
            (
                Member::forwarded(Forward::UriMiss)
                    .forward_status(StatusCode::OK)
                    .stored(true)
                    .collapsed(true),
                "seawall; fwd=uri-miss; fwd-status=200; stored; collapsed",
            ),
            (Member::forwarded(Forward::VaryMiss).stored(false), "seawall; fwd=vary-miss"),
            (Member::forwarded(Forward::Miss), "seawall; fwd=miss"),
            (Member::forwarded(Forward::Bypass), "seawall; fwd=bypass"),
            (Member::forwarded(Forward::Method), "seawall; fwd=method"),
            (Member::forwarded(Forward::Request), "seawall; fwd=request"),
            (Member::forwarded(Forward::Partial), "seawall; fwd=partial"),
            (Member::hit().ttl(i64::MIN), "seawall; hit; ttl=-9223372036854775808"),
            (Member::hit().detail("two words"), "seawall; hit; detail=\"two words\""),
            (Member::hit().detail("a\"b\\c"), "seawall; hit; detail=\"a\\\"b\\\\c\""),
            (Member::hit().detail("é\r\n"), "seawall; hit; detail=\"???\""),
            (Member::hit().detail("4xx"), "seawall; hit; detail=\"4xx\""),
            (Member::hit().detail(""), "seawall; hit; detail=\"\""),
        ] {
            assert_eq!(member.to_value(), expected);
        }
    }

    #[test]
    fn ours_comes_last() {
        let mut headers = HeaderMap::new();
        Member::hit().append_to(&mut headers);
        assert_eq!(headers[CACHE_STATUS], "seawall; hit");

        let mut headers = HeaderMap::new();
        headers.append(CACHE_STATUS, HeaderValue::from_static("origin; hit"));
        headers.append(CACHE_STATUS, HeaderValue::from_static("edge; fwd=miss"));
        Member::forwarded(Forward::Miss).append_to(&mut headers);
        let lines: Vec<_> = headers.get_all(CACHE_STATUS).iter().collect();
        assert_eq!(lines, ["origin; hit, edge; fwd=miss, seawall; fwd=miss"]);
    }
}
