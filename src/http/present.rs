//! Pure. Which of the fields that layers ask for a request has.
//!
//! A request has some six fields, and the layers ask for twenty that it hardly ever has. One look over its names tells
//! that of all of them; a look-up in the map for each would cost more than most of what the layers do. A group that is
//! present says nothing of which of its fields it is: then the map is asked.

use http::HeaderMap;

/// Groups of fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Present(u8);

// === impl Present ===

impl Present {
    /// About the connection, whether or not `Connection` says so.
    pub const HOP_BY_HOP: Self = Self(1);
    /// Where the content ends.
    pub const FRAMING: Self = Self(1 << 1);
    /// `If-*` and `Range`.
    pub const CONDITIONAL: Self = Self(1 << 2);
    /// `Cache-Control` and `Pragma`.
    pub const CACHE: Self = Self(1 << 3);
    /// Seawall's own.
    pub const OURS: Self = Self(1 << 4);
    /// `X-Request-Id`.
    pub const REQUEST_ID: Self = Self(1 << 5);
    /// `traceparent` and `tracestate`.
    pub const TRACE: Self = Self(1 << 6);
    /// `Expect`.
    pub const EXPECT: Self = Self(1 << 7);

    /// Looks at all names.
    pub fn of(headers: &HeaderMap) -> Self {
        headers.keys().fold(Self::default(), |present, name| {
            let group = match name.as_str() {
                "content-length" => Self::FRAMING,
                "transfer-encoding" | "trailer" => Self(Self::FRAMING.0 | Self::HOP_BY_HOP.0),
                "if-match"
                | "if-none-match"
                | "if-modified-since"
                | "if-unmodified-since"
                | "if-range"
                | "range" => Self::CONDITIONAL,
                "cache-control" | "pragma" => Self::CACHE,
                "x-request-id" => Self::REQUEST_ID,
                "traceparent" | "tracestate" => Self::TRACE,
                "expect" => Self::EXPECT,
                _ if super::headers::is_ours(name) => Self::OURS,
                _ if super::headers::is_hop_by_hop(name) => Self::HOP_BY_HOP,
                _ => return present,
            };
            Self(present.0 | group.0)
        })
    }

    /// Whether the request has a field of this group.
    pub const fn has(self, group: Self) -> bool {
        self.0 & group.0 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    #[test]
    fn each_field_is_of_its_group() {
        let groups = [
            (Present::HOP_BY_HOP, &["connection", "keep-alive", "te", "upgrade", "proxy-connection"][..]),
            (Present::FRAMING, &["content-length", "transfer-encoding"]),
            (
                Present::CONDITIONAL,
                &["if-match", "if-none-match", "if-range", "range", "if-unmodified-since"],
            ),
            (Present::CACHE, &["cache-control", "pragma"]),
            (Present::OURS, &["seawall-token", "seawall-timeout", "seawall-anything"]),
            (Present::REQUEST_ID, &["x-request-id"]),
            (Present::TRACE, &["traceparent", "tracestate"]),
            (Present::EXPECT, &["expect"]),
        ];
        for (group, names) in groups {
            for name in names {
                let mut headers = HeaderMap::new();
                for name in ["host", "accept", "authorization", "flexport-version", "seawallish", name] {
                    headers.insert(HeaderName::from_static(name), HeaderValue::from_static("1"));
                }
                let present = Present::of(&headers);
                assert!(present.has(group), "{name}");
                headers.remove(*name);
                assert_eq!(Present::of(&headers), Present::default(), "{name}");
            }
        }
    }
}
