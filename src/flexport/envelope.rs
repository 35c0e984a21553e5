//! Pure. The error that a 200 may hold: Flexport's envelope has `error` as its last member, so the end of the body
//! tells.
//!
//! A body of any length streams through while its last [`TAIL`] bytes are kept. Nearly every body ends with `null}`,
//! which is not looked at any further. What cannot be read as an error for certain is none: the answer is passed on
//! as it is in any case.

use bytes::Bytes;
use http::{HeaderMap, header};
use memchr::memmem;
use serde::Deserialize;

/// The last bytes of a body.
#[derive(Debug, Default)]
pub struct Tail(Bytes);

/// How much of the end is kept.
pub const TAIL: usize = 4096;

#[derive(Deserialize)]
struct Fault {
    #[serde(default)]
    status: Option<serde_json::Value>,
}

// === impl Tail ===

impl Tail {
    /// For an answer with these fields; `None` where no envelope can be.
    pub fn of(fields: &HeaderMap) -> Option<Self> {
        let value = fields.get(header::CONTENT_TYPE)?.as_bytes();
        value.get(..16).unwrap_or(value).eq_ignore_ascii_case(b"application/json").then(Self::default)
    }

    /// Takes the next piece. One that is long enough alone is shared and not copied.
    pub fn push(&mut self, piece: &Bytes) {
        if piece.len() >= TAIL || self.0.is_empty() {
            self.0 = piece.clone();
            return;
        }
        let kept = self.0.len().min(TAIL - piece.len());
        self.0 = [&self.0[self.0.len() - kept..], piece].concat().into();
    }

    /// The status of the error at the end of the body; one without a status of its own has 500.
    pub fn status(&self) -> Option<u16> {
        let body = self.0.trim_ascii_end();
        // An object, and the end of the envelope.
        let inner = body.strip_suffix(b"}")?.trim_ascii_end();
        if !inner.ends_with(b"}") {
            return None;
        }
        let tail = &inner[inner.len().saturating_sub(TAIL)..];
        memmem::find_iter(tail, b"\"error\"").find_map(|at| {
            let value = tail[at + 7..].trim_ascii_start().strip_prefix(b":")?;
            // Only what reaches to the end is the envelope's; a member of the data is followed by more.
            let fault: Fault = serde_json::from_slice(value).ok()?;
            match fault.status {
                Some(serde_json::Value::Number(number)) => number.as_u64()?.try_into().ok(),
                Some(serde_json::Value::String(text)) => text.parse().ok(),
                _ => Some(500),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pieces: &[&str]) -> Option<u16> {
        let mut tail = Tail::default();
        for piece in pieces {
            tail.push(&Bytes::from((*piece).to_owned()));
        }
        tail.status()
    }

    const ERROR: &str = r#"{"_object":"/api/response","data":null,"error":{"_object":"/api/error","status":503,"message":"}"}}"#;

    #[test]
    fn the_error_of_an_envelope_is_found_however_the_body_is_cut() {
        assert_eq!(status(&[ERROR]), Some(503));
        let (first, second) = ERROR.split_at(60);
        assert_eq!(status(&[first, second]), Some(503));
        let single: Vec<String> = ERROR.chars().map(String::from).collect();
        assert_eq!(status(&single.iter().map(String::as_str).collect::<Vec<_>>()), Some(503));
        let long = "x".repeat(100_000);
        assert_eq!(status(&[&long, &long, ERROR, "\n"]), Some(503));
        assert_eq!(status(&[r#"{"data":null,"error":{"status":"502"}}"#]), Some(502));
        assert_eq!(status(&[r#"{"data":null,"error":{}}"#]), Some(500));
    }

    #[test]
    fn what_is_no_error_of_the_envelope_is_none() {
        for body in [
            "",
            "}}",
            r#"{"data":{"a":1},"error":null}"#,
            r#"{"error":{"status":503},"data":{"a":1}}"#,
            r#"{"data":{"error":{"status":503},"b":{}}}"#,
            r#"{"data":{"text":"\"error\":{"}}"#,
        ] {
            assert_eq!(status(&[body]), None, "{body}");
        }
    }

    #[test]
    fn only_json_has_an_envelope() {
        let of = |text: &'static str| {
            Tail::of(&HeaderMap::from_iter([(header::CONTENT_TYPE, text.parse().unwrap())])).is_some()
        };
        assert!(of("application/json") && of("Application/JSON; charset=utf-8"));
        assert!(!of("application/pdf") && !of("text/html"));
        assert!(Tail::of(&HeaderMap::new()).is_none());
    }
}
