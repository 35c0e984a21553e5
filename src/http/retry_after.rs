//! Pure. `Retry-After` (RFC 9110 §10.2.3): how long the upstream asks us to wait.
//!
//! Seconds or an HTTP date; a date that has passed is no wait at all. What is neither is no `Retry-After`: a guess
//! would be worse than our own back-off.

use super::{date, headers};
use http::HeaderValue;
use jiff::Timestamp;
use std::time::Duration;

/// The longest wait that is told. Who waits is expected to have a limit of its own; this one only keeps sums with
/// instants from overflowing.
const LONGEST: u64 = 1 << 31;

/// Reads the field. `now` is what a date is held against.
pub fn parse(value: &HeaderValue, now: Timestamp) -> Option<Duration> {
    let text = value.as_bytes().trim_ascii();
    let wait = match headers::delta_seconds(text) {
        Some(seconds) => Duration::from_secs(seconds),
        None => Duration::try_from(date::parse(text, now)?.duration_since(now)).unwrap_or_default(),
    };
    Some(wait.min(Duration::from_secs(LONGEST)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_is_read() {
        let now: Timestamp = "1994-11-06T08:49:37Z".parse().unwrap();
        let cases: &[(&str, Option<u64>)] = &[
            ("0", Some(0)),
            ("7", Some(7)),
            (" 120 ", Some(120)),
            ("0030", Some(30)),
            ("99999999999999999999999", Some(LONGEST)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some(30)),
            ("Sunday, 06-Nov-94 08:50:07 GMT", Some(30)),
            ("Sun Nov  6 08:50:07 1994", Some(30)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
            ("Fri, 31 Dec 9999 00:00:00 GMT", Some(LONGEST)),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("7s", None),
            ("7, 9", None),
            ("soon", None),
            ("1994-11-06T08:50:07Z", None),
        ];
        for (text, expected) in cases {
            let value = HeaderValue::from_str(text).unwrap();
            assert_eq!(parse(&value, now), expected.map(Duration::from_secs), "{text:?}");
        }
        assert_eq!(parse(&HeaderValue::from_bytes(b"\xff7").unwrap(), now), None);
    }
}
