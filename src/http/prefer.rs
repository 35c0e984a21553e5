//! Pure. `Prefer: wait=N` (RFC 7240): for how long a caller would rather wait for a live answer than get a `202`.
//!
//! `wait` is for us and is taken out; every other preference is the upstream's and stays as it was written. As the
//! RFC says, only the first instance of a preference counts; one that is not whole seconds is no preference.

use super::headers;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use std::time::Duration;

/// The field. `http` has no constant for it.
pub const PREFER: HeaderName = HeaderName::from_static("prefer");

/// The time the caller would wait.
pub fn wait(headers: &HeaderMap) -> Option<Duration> {
    let first = headers
        .get_all(PREFER)
        .into_iter()
        .flat_map(|line| headers::members(line.as_bytes()))
        .find(|member| is_wait(member))?;
    let written = preference(first);
    let value = written.iter().position(|byte| *byte == b'=').map(|at| written[at + 1..].trim_ascii())?;
    let digits = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value);
    headers::delta_seconds(digits).map(Duration::from_secs)
}

/// Takes the `wait` preference out, and leaves all else.
pub fn remove_wait(headers: &mut HeaderMap) {
    let holds_wait = |line: &HeaderValue| headers::members(line.as_bytes()).any(is_wait);
    if !headers.get_all(PREFER).into_iter().any(holds_wait) {
        return;
    }
    let lines: Vec<HeaderValue> = headers.get_all(PREFER).into_iter().cloned().collect();
    headers.remove(PREFER);
    for line in lines {
        let line = if holds_wait(&line) {
            let others: Vec<&[u8]> =
                headers::members(line.as_bytes()).filter(|member| !is_wait(member)).collect();
            if others.is_empty() {
                continue;
            }
            HeaderValue::from_bytes(&others.join(&b", "[..])).expect("parts of a valid value")
        } else {
            line
        };
        headers.append(PREFER, line);
    }
}

/// The preference itself, without its parameters. A `;` inside quotes is not looked for: no `wait` has one.
fn preference(member: &[u8]) -> &[u8] {
    member.split(|byte| *byte == b';').next().unwrap_or_default()
}

fn is_wait(member: &[u8]) -> bool {
    let name = preference(member).split(|byte| *byte == b'=').next().unwrap_or_default();
    name.trim_ascii().eq_ignore_ascii_case(b"wait")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (PREFER, HeaderValue::from_str(line).unwrap())).collect()
    }

    #[test]
    fn wait_is_read_and_taken_out() {
        let cases: &[(&[&str], Option<u64>, &[&str])] = &[
            (&[], None, &[]),
            (&["wait=10"], Some(10), &[]),
            (&["Wait = 10"], Some(10), &[]),
            (&["wait=\"10\""], Some(10), &[]),
            (&["wait=10; foo=bar"], Some(10), &[]),
            (&["respond-async, wait=10"], Some(10), &["respond-async"]),
            (&["respond-async,wait=10 , handling=lenient"], Some(10), &["respond-async, handling=lenient"]),
            (
                &["respond-async", "wait=10", "a=\"x, wait=3\""],
                Some(10),
                &["respond-async", "a=\"x, wait=3\""],
            ),
            (&["a=\"x, wait=3\""], None, &["a=\"x, wait=3\""]),
            (&["a=\"x\\\", wait=3\""], None, &["a=\"x\\\", wait=3\""]),
            (&["wait=5, wait=9"], Some(5), &[]),
            (&["wait=soon, wait=9"], None, &[]),
            (&["wait"], None, &[]),
            (&["wait=-1"], None, &[]),
            (&["waiting=4"], None, &["waiting=4"]),
            (&["wait=99999999999999999999"], Some(1 << 31), &[]),
            (&[",, ,wait=2,"], Some(2), &[]),
        ];
        for (lines, expected, kept) in cases {
            let mut headers = map(lines);
            assert_eq!(wait(&headers), expected.map(Duration::from_secs), "{lines:?}");
            remove_wait(&mut headers);
            assert_eq!(headers, map(kept), "{lines:?}");
        }
    }
}
