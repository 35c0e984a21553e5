//! Pure. `Idempotency-Key`: the name under which a write is done once.
//!
//! The IETF draft (draft-ietf-httpapi-idempotency-key-header) makes it a structured string, in quotes; most clients
//! send it bare. Both spellings are the same key. What cannot be read for sure is refused, never ignored: a caller
//! who sends a key relies on it.

use super::headers::IDEMPOTENCY_KEY;
use crate::error::ProxyError;
use http::HeaderMap;

/// The longest key, in bytes, without quotes.
const LONGEST: usize = 255;

/// Why a key cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// There is nothing in it.
    #[error("is empty; send 1 to 255 printable ASCII characters, such as a UUID, or leave the field out")]
    Empty,
    /// Above 255 bytes.
    #[error("is longer than 255 bytes; send 1 to 255 printable ASCII characters, such as a UUID")]
    TooLong,
    /// Other than printable ASCII.
    #[error("has characters that are not printable ASCII; send 1 to 255 of these, such as a UUID")]
    NotPrintable,
    /// Begins with a quote and is no structured string (RFC 8941 §3.3.3).
    #[error(
        "begins with a quote but is not a quoted string; close the quotes, and write \\\" and \\\\ inside"
    )]
    Quotes,
    /// The field came more than once.
    #[error("came more than once; send one key")]
    Repeated,
}

// === impl Malformed ===

impl From<Malformed> for ProxyError {
    fn from(malformed: Malformed) -> Self {
        Self::BadRequest { field: "Idempotency-Key", message: malformed.to_string() }
    }
}

/// The key of a request, without quotes. `None` when there is no such field.
pub fn parse(headers: &HeaderMap) -> Result<Option<String>, Malformed> {
    let mut lines = headers.get_all(IDEMPOTENCY_KEY).into_iter();
    let Some(line) = lines.next() else { return Ok(None) };
    if lines.next().is_some() {
        return Err(Malformed::Repeated);
    }
    let written = line.as_bytes().trim_ascii();
    let Some(written) = std::str::from_utf8(written).ok().filter(|text| text.bytes().all(is_printable))
    else {
        return Err(Malformed::NotPrintable);
    };
    let key = match written.strip_prefix('"') {
        Some(quoted) => unescaped(quoted).ok_or(Malformed::Quotes)?,
        None => written.to_owned(),
    };
    match key.len() {
        0 => Err(Malformed::Empty),
        1..=LONGEST => Ok(Some(key)),
        _ => Err(Malformed::TooLong),
    }
}

fn is_printable(byte: u8) -> bool {
    matches!(byte, b' '..=b'~')
}

/// A structured string behind its first quote, up to its last.
fn unescaped(quoted: &str) -> Option<String> {
    let mut key = String::with_capacity(quoted.len());
    let mut rest = quoted.chars();
    loop {
        match rest.next()? {
            '"' => return rest.as_str().is_empty().then_some(key),
            '\\' => key.push(rest.next().filter(|escaped| matches!(escaped, '"' | '\\'))?),
            other => key.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn parse_lines(lines: &[&[u8]]) -> Result<Option<String>, Malformed> {
        parse(&lines.iter().map(|line| (IDEMPOTENCY_KEY, HeaderValue::from_bytes(line).unwrap())).collect())
    }

    #[test]
    fn keys_are_read() {
        let (longest, quoted) = ("k".repeat(255), format!("\"{}\"", "k".repeat(255)));
        for (line, expected) in [
            ("abc", "abc"),
            ("\"abc\"", "abc"),
            ("  abc ", "abc"),
            ("a b,c;d", "a b,c;d"),
            ("ab\"c", "ab\"c"),
            (r#""a\"b\\c""#, r#"a"b\c"#),
            (r"a\b", r"a\b"),
            ("\" \"", " "),
            (&longest, &longest),
            (&quoted, &longest),
        ] {
            assert_eq!(parse_lines(&[line.as_bytes()]), Ok(Some(expected.to_owned())), "{line}");
        }
        assert_eq!(parse_lines(&[]), Ok(None));
    }

    #[test]
    fn malformed_keys_are_refused() {
        let long = "k".repeat(256);
        let cases: &[(&[&[u8]], Malformed)] = &[
            (&[b""], Malformed::Empty),
            (&[b"  "], Malformed::Empty),
            (&[b"\"\""], Malformed::Empty),
            (&[long.as_bytes()], Malformed::TooLong),
            (&[b"caf\xc3\xa9"], Malformed::NotPrintable),
            (&[b"a\tb"], Malformed::NotPrintable),
            (&[b"\xff"], Malformed::NotPrintable),
            (&[b"\""], Malformed::Quotes),
            (&[b"\"abc"], Malformed::Quotes),
            (&[b"\"abc\\\""], Malformed::Quotes),
            (&[b"\"a\\bc\""], Malformed::Quotes),
            (&[b"\"a\"b"], Malformed::Quotes),
            (&[b"\"a\";x=1"], Malformed::Quotes),
            (&[b"a", b"a"], Malformed::Repeated),
        ];
        for (lines, expected) in cases {
            assert_eq!(parse_lines(lines), Err(*expected), "{lines:?}");
        }
        let error = ProxyError::from(Malformed::Empty);
        assert!(matches!(error, ProxyError::BadRequest { field: "Idempotency-Key", .. }));
    }
}
