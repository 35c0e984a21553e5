//! Pure. `Range` and `If-Range` (RFC 9110 §14.2, §13.1.5): which part of a whole representation a request asks for.
//!
//! One range of bytes is served. Of several, of another unit, and of what is malformed the whole is sent, which RFC 9110
//! §14.2 allows always: a field that cannot be honoured is passed over, not refused.

use super::date;
use http::header::{DATE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_RANGE, LAST_MODIFIED, RANGE};
use jiff::Timestamp;
use std::ops::Range;
use std::time::Duration;

/// What is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it.
    Whole,
    /// These bytes.
    Bytes(Range<usize>),
    /// Nothing of it lies in the range.
    Unsatisfiable,
}

/// What a request asks for of a representation that is this long and has these fields.
pub(crate) fn asked<'a>(
    request: &HeaderMap,
    stored: impl Fn(&HeaderName) -> Option<&'a HeaderValue>,
    length: usize,
    now: Timestamp,
) -> Part {
    let mut lines = request.get_all(RANGE).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return Part::Whole };
    if !is_still_the_same(request, stored, now) {
        return Part::Whole;
    }
    part(line.as_bytes(), length)
}

fn part(range: &[u8], length: usize) -> Part {
    let Some(equals) = range.iter().position(|byte| *byte == b'=') else { return Part::Whole };
    let (unit, set) = (range[..equals].trim_ascii(), range[equals + 1..].trim_ascii());
    if !unit.eq_ignore_ascii_case(b"bytes") {
        return Part::Whole;
    }
    let Some(dash) = set.iter().position(|byte| *byte == b'-') else { return Part::Whole };
    match (&set[..dash], &set[dash + 1..]) {
        ([], suffix) => match number(suffix) {
            None => Part::Whole,
            Some(0) => Part::Unsatisfiable,
            Some(_) if length == 0 => Part::Unsatisfiable,
            Some(suffix) => Part::Bytes(length.saturating_sub(suffix)..length),
        },
        (first, last) => {
            let Some(first) = number(first) else { return Part::Whole };
            let last = match last {
                [] => usize::MAX,
                last => match number(last) {
                    Some(last) if last >= first => last,
                    _ => return Part::Whole,
                },
            };
            if first >= length {
                Part::Unsatisfiable
            } else {
                Part::Bytes(first..last.saturating_add(1).min(length))
            }
        }
    }
}

/// Digits only; what is too large for us is the largest that we know.
fn number(digits: &[u8]) -> Option<usize> {
    let are_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    are_digits.then(|| {
        let add = |sum: usize, digit: &u8| sum.saturating_mul(10).saturating_add(usize::from(digit - b'0'));
        digits.iter().fold(0, add)
    })
}

/// `If-Range`: a strong entity tag that is equal, or a `Last-Modified` that is equal and can be taken for strong, which
/// it can when it lies a second or more before `Date` (RFC 9110 §8.8.2.2).
fn is_still_the_same<'a>(
    request: &HeaderMap,
    stored: impl Fn(&HeaderName) -> Option<&'a HeaderValue>,
    now: Timestamp,
) -> bool {
    let Some(condition) = request.get(IF_RANGE) else { return true };
    let condition = condition.as_bytes().trim_ascii();
    if condition.ends_with(b"\"") {
        return condition.starts_with(b"\"")
            && stored(&ETAG).is_some_and(|tag| tag.as_bytes().trim_ascii() == condition);
    }
    let date_of = |value: &HeaderValue| date::parse(value.as_bytes(), now);
    let (Some(asked), Some(modified)) =
        (date::parse(condition, now), stored(&LAST_MODIFIED).and_then(date_of))
    else {
        return false;
    };
    asked == modified
        && stored(&DATE)
            .and_then(date_of)
            .is_some_and(|sent| crate::clock::since(sent, modified) >= Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        use Part::{Bytes, Unsatisfiable, Whole};
        for (range, length, expected) in [
            ("bytes=0-0", 10, Bytes(0..1)),
            ("bytes=2-4", 10, Bytes(2..5)),
            ("Bytes = 2-4", 10, Bytes(2..5)),
            ("bytes=2-", 10, Bytes(2..10)),
            ("bytes=9-", 10, Bytes(9..10)),
            ("bytes=2-99", 10, Bytes(2..10)),
            ("bytes=2-99999999999999999999999", 10, Bytes(2..10)),
            ("bytes=-3", 10, Bytes(7..10)),
            ("bytes=-99", 10, Bytes(0..10)),
            ("bytes=10-", 10, Unsatisfiable),
            ("bytes=10-20", 10, Unsatisfiable),
            ("bytes=-0", 10, Unsatisfiable),
            ("bytes=0-", 0, Unsatisfiable),
            ("bytes=-1", 0, Unsatisfiable),
            ("bytes=4-2", 10, Whole),
            ("bytes=-", 10, Whole),
            ("bytes=", 10, Whole),
            ("bytes", 10, Whole),
            ("bytes=a-b", 10, Whole),
            ("bytes=1-b", 10, Whole),
            ("bytes=--1", 10, Whole),
            ("bytes=0-1, 3-4", 10, Whole),
            ("items=0-1", 10, Whole),
            ("", 10, Whole),
        ] {
            assert_eq!(part(range.as_bytes(), length), expected, "{range}");
        }
    }

    #[test]
    fn if_range_must_be_strong_and_equal() {
        let now: Timestamp = "1994-11-15T12:00:00Z".parse().unwrap();
        let changed = "Tue, 15 Nov 1994 08:12:31 GMT";
        for (condition, tag, date, expected) in [
            ("\"a\"", "\"a\"", changed, true),
            ("\"a\"", "\"b\"", changed, false),
            ("\"a\"", "W/\"a\"", changed, false),
            ("W/\"a\"", "W/\"a\"", changed, false),
            (changed, "\"a\"", "Tue, 15 Nov 1994 08:12:32 GMT", true),
            (changed, "\"a\"", changed, false),
            ("Tue, 15 Nov 1994 08:12:32 GMT", "\"a\"", "Tue, 15 Nov 1994 09:00:00 GMT", false),
            ("a", "\"a\"", changed, false),
        ] {
            let mut request = HeaderMap::new();
            request.insert(RANGE, HeaderValue::from_static("bytes=0-0"));
            request.insert(IF_RANGE, HeaderValue::try_from(condition).unwrap());
            let [tag, date, changed] = [tag, date, changed].map(|text| HeaderValue::try_from(text).unwrap());
            let stored = |name: &HeaderName| match *name {
                ETAG => Some(&tag),
                DATE => Some(&date),
                LAST_MODIFIED => Some(&changed),
                _ => None,
            };
            let expected = if expected { Part::Bytes(0..1) } else { Part::Whole };
            assert_eq!(asked(&request, stored, 5, now), expected, "{condition} {tag:?}");
        }
    }
}
