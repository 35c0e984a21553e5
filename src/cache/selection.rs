//! Pure. Whether the values of a request field select the same variant (RFC 9111 §4.1).
//!
//! Equal lines always do. Else a field counts as the list that it is: lines joined, blanks around the commas gone, and
//! for the `Accept` family also order, and outside of quotes case and blanks, none of which mean anything there. Fields that
//! are no lists are compared as they are: a comma may be part of what they say. A field that is absent matches one that is
//! absent and no empty one.

use crate::http::headers::members;
use http::header::{
    ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE, AUTHORIZATION, COOKIE, HeaderName, HeaderValue,
    REFERER, USER_AGENT,
};

/// Whether two lists of lines mean the same.
pub(super) fn is_same<'a>(
    name: &HeaderName,
    asked: impl Iterator<Item = &'a HeaderValue>,
    stored: &[HeaderValue],
) -> bool {
    if matches!(*name, AUTHORIZATION | COOKIE | REFERER | USER_AGENT) {
        return false;
    }
    let mut asked = asked.peekable();
    if asked.peek().is_none() != stored.is_empty() {
        return false;
    }
    let asked = asked.flat_map(|line| members(line.as_bytes()));
    let stored = stored.iter().flat_map(|line| members(line.as_bytes()));
    if !matches!(*name, ACCEPT | ACCEPT_CHARSET | ACCEPT_ENCODING | ACCEPT_LANGUAGE) {
        return asked.eq(stored);
    }
    let mut asked: Vec<Vec<u8>> = asked.map(without_blanks).collect();
    let mut stored: Vec<Vec<u8>> = stored.map(without_blanks).collect();
    asked.sort_unstable();
    stored.sort_unstable();
    asked == stored
}

/// Outside of quotes: in small letters, without blanks.
fn without_blanks(member: &[u8]) -> Vec<u8> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let mut plain = Vec::with_capacity(member.len());
    for byte in member {
        is_quoted ^= *byte == b'"' && !is_escaped;
        is_escaped = is_quoted && *byte == b'\\' && !is_escaped;
        match byte {
            _ if is_quoted => plain.push(*byte),
            b' ' | b'\t' => {}
            byte => plain.push(byte.to_ascii_lowercase()),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_compared_by_what_they_mean() {
        let cases: [(&str, &[&str], &[&str], bool); 21] = [
            ("accept", &["a/b;c=\"X y\""], &["A/b; c=\"X y\""], true),
            ("accept", &["a/b;c=\"X\""], &["a/b;c=\"x\""], false),
            ("accept", &[r#"a/b;c="\"x""#], &[r#"a/b;c="\" x""#], false),
            ("x-kind", &["a,b"], &["a, b"], true),
            ("x-kind", &["a", "b"], &["a, b"], true),
            ("x-kind", &["a,, b,"], &["a, b"], true),
            ("x-kind", &["b, a"], &["a, b"], false),
            ("x-kind", &["A"], &["a"], false),
            ("x-kind", &["\"a, b\""], &["\"a,b\""], false),
            ("x-kind", &["a"], &["a, b"], false),
            ("x-kind", &[""], &[], false),
            ("accept", &[], &[" , "], false),
            ("cookie", &["a=1, 2"], &["a=1,2"], false),
            ("user-agent", &["x (a,b)"], &["x (a, b)"], false),
            ("accept-language", &["de, en"], &["en,DE"], true),
            ("accept-language", &["de;q=0.5, en"], &["en, de; q=0.5"], true),
            ("accept-language", &["de;q=0.5, en"], &["en, de"], false),
            ("accept-language", &["de", "en"], &["en, de"], true),
            ("accept-encoding", &["gzip, br"], &["br, gzip"], true),
            ("accept", &["text/html;a=\"x y\""], &["text/html; a=\"x y\""], true),
            ("accept", &["text/html;a=\"x y\""], &["text/html;a=\"xy\""], false),
        ];
        for (name, asked, stored, expected) in cases {
            let [asked, stored] = [asked, stored].map(|lines| {
                lines.iter().map(|line| HeaderValue::from_str(line).unwrap()).collect::<Vec<_>>()
            });
            let is_same = is_same(&HeaderName::from_static(name), asked.iter(), &stored);
            assert_eq!(is_same, expected, "{name} {asked:?} {stored:?}");
        }
    }
}
