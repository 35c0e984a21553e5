//! Pure. Structured dictionaries (RFC 9651 §3.2), as far as a cache needs them: the keys that are asked for, with the kind
//! of their value; a field that is malformed anywhere gives nothing.
//!
//! Parameters are read and passed over; of a key that comes twice the last value counts. Strings are given as they
//! stand between their quotes, since what we look for in them holds nothing that is escaped.

use http::{HeaderMap, HeaderName};

/// A value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Item<'a> {
    /// An integer.
    Integer(i64),
    /// True, also when it is only implied; or false.
    Boolean(bool),
    /// A string or a token.
    Text(&'a [u8]),
    /// What no directive of ours has: a decimal, bytes, a date, a display string, a list.
    Other,
}

/// What is left of a line.
struct Rest<'a>(&'a [u8]);

/// All lines of a field as one dictionary: those of its members that are known. `None`: it is absent, empty, or malformed
/// in any place. A field may have a hundred thousand members, so what nobody asks for is not kept.
pub(crate) fn dictionary<'a>(
    headers: &'a HeaderMap,
    field: &HeaderName,
    is_known: impl Fn(&[u8]) -> bool,
) -> Option<Vec<(&'a [u8], Item<'a>)>> {
    let mut all: Vec<(&[u8], Item<'_>)> = Vec::new();
    let mut is_empty = true;
    for line in headers.get_all(field) {
        let mut rest = Rest(line.as_bytes().trim_ascii());
        while !rest.0.is_empty() {
            let key = rest.key()?;
            let value = if rest.takes(b'=') { rest.value()? } else { Item::Boolean(true) };
            rest.parameters()?;
            is_empty = false;
            if is_known(key) {
                all.retain(|(known, _)| *known != key);
                all.push((key, value));
            }
            rest.skip(b" \t");
            if rest.0.is_empty() {
                break;
            }
            if !rest.takes(b',') {
                return None;
            }
            rest.skip(b" \t");
            if rest.0.is_empty() {
                return None;
            }
        }
    }
    (!is_empty).then_some(all)
}

// === impl Rest ===

impl<'a> Rest<'a> {
    fn takes(&mut self, byte: u8) -> bool {
        match self.0.split_first() {
            Some((first, rest)) if *first == byte => {
                self.0 = rest;
                true
            }
            _ => false,
        }
    }

    fn skip(&mut self, bytes: &[u8]) {
        self.run(|byte| bytes.contains(&byte));
    }

    /// The longest beginning of such bytes.
    fn run(&mut self, is_one: impl Fn(u8) -> bool) -> &'a [u8] {
        let end = self.0.iter().position(|byte| !is_one(*byte)).unwrap_or(self.0.len());
        let (run, rest) = self.0.split_at(end);
        self.0 = rest;
        run
    }

    fn key(&mut self) -> Option<&'a [u8]> {
        let first = *self.0.first()?;
        (first.is_ascii_lowercase() || first == b'*').then(|| {
            self.run(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.*".contains(&byte))
        })
    }

    fn value(&mut self) -> Option<Item<'a>> {
        if !self.takes(b'(') {
            return self.item();
        }
        loop {
            self.skip(b" ");
            if self.takes(b')') {
                return Some(Item::Other);
            }
            self.item()?;
            self.parameters()?;
            if !matches!(self.0.first(), Some(b' ' | b')')) {
                return None;
            }
        }
    }

    fn parameters(&mut self) -> Option<()> {
        while self.takes(b';') {
            self.skip(b" ");
            self.key()?;
            if self.takes(b'=') {
                self.item()?;
            }
        }
        Some(())
    }

    fn item(&mut self) -> Option<Item<'a>> {
        match *self.0.first()? {
            b'-' | b'0'..=b'9' => self.number(),
            b'"' => self.string(),
            b'?' => {
                self.takes(b'?');
                let is_true = self.takes(b'1');
                (is_true || self.takes(b'0')).then_some(Item::Boolean(is_true))
            }
            b':' => {
                self.takes(b':');
                self.run(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte));
                self.takes(b':').then_some(Item::Other)
            }
            b'@' => {
                self.takes(b'@');
                matches!(self.number()?, Item::Integer(_)).then_some(Item::Other)
            }
            b'%' => {
                self.takes(b'%');
                self.string().map(|_| Item::Other)
            }
            first if first.is_ascii_alphabetic() || first == b'*' => Some(Item::Text(
                self.run(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte)),
            )),
            _ => None,
        }
    }

    fn number(&mut self) -> Option<Item<'a>> {
        let is_negative = self.takes(b'-');
        let whole = self.run(|byte| byte.is_ascii_digit());
        if self.takes(b'.') {
            let part = self.run(|byte| byte.is_ascii_digit());
            let fits = (1..=12).contains(&whole.len()) && (1..=3).contains(&part.len());
            return fits.then_some(Item::Other);
        }
        if !(1..=15).contains(&whole.len()) {
            return None;
        }
        let number = whole.iter().fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'));
        Some(Item::Integer(if is_negative { -number } else { number }))
    }

    fn string(&mut self) -> Option<Item<'a>> {
        self.takes(b'"');
        let whole = self.0;
        loop {
            self.run(|byte| matches!(byte, b' ' | b'!' | b'#'..=b'[' | b']'..=b'~'));
            let read = whole.len() - self.0.len();
            if self.takes(b'"') {
                return Some(Item::Text(&whole[..read]));
            }
            if !self.takes(b'\\') || !(self.takes(b'"') || self.takes(b'\\')) {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    const FIELD: HeaderName = HeaderName::from_static("cdn-cache-control");

    fn lines(lines: &[&[u8]]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(FIELD, HeaderValue::from_bytes(line).unwrap());
        }
        headers
    }

    #[test]
    fn dictionaries_are_read() {
        let text = |text: &'static str| Item::Text(text.as_bytes());
        type Case<'a> = (&'a [&'a [u8]], &'a [(&'a str, Item<'a>)]);
        let cases: [Case<'_>; 12] = [
            (&[b"max-age=60"], &[("max-age", Item::Integer(60))]),
            (&[b" max-age=60 , public"], &[("max-age", Item::Integer(60)), ("public", Item::Boolean(true))]),
            (&[b"max-age=1", b"public"], &[("max-age", Item::Integer(1)), ("public", Item::Boolean(true))]),
            (
                &[b"max-age=1, public, max-age=2"],
                &[("public", Item::Boolean(true)), ("max-age", Item::Integer(2))],
            ),
            (&[b"a=-5"], &[("a", Item::Integer(-5))]),
            (&[b"a=?0, b=?1"], &[("a", Item::Boolean(false)), ("b", Item::Boolean(true))]),
            (&[b"private=\"a, b\""], &[("private", text("a, b"))]),
            (&[b"a=token/x;p=1;q;r=\"s\""], &[("a", text("token/x"))]),
            (
                &[b"a=1.5, b=:aGk=:, c=(1 \"x\";p y), d=@5"],
                &[("a", Item::Other), ("b", Item::Other), ("c", Item::Other), ("d", Item::Other)],
            ),
            (&[b"a=()"], &[("a", Item::Other)]),
            (&[b"*a_-.*"], &[("*a_-.*", Item::Boolean(true))]),
            (&[b"max-age=999999999999999"], &[("max-age", Item::Integer(999_999_999_999_999))]),
        ];
        for (given, expected) in cases {
            let headers = lines(given);
            let read = dictionary(&headers, &FIELD, |_| true);
            let expected: Vec<_> = expected.iter().map(|(key, item)| (key.as_bytes(), *item)).collect();
            assert_eq!(read, Some(expected), "{given:?}");
        }
    }

    #[test]
    fn what_is_none_is_none() {
        for text in [
            "",
            ",",
            "a,",
            ",a",
            "a,,b",
            "A=1",
            "Max-age=1",
            "a =1",
            "a= 1",
            "a=",
            "a=1 b",
            "a=1.",
            "a=1.2345",
            "a=-",
            "a=1234567890123456",
            "a=\"x",
            "a=\"x\\y\"",
            "a=?2",
            "a=(1",
            "a=(1,2)",
            "a=:x",
            "a;",
            "a;P",
            "&&&&&",
            "1",
            "a=\u{e9}",
        ] {
            assert_eq!(dictionary(&lines(&[text.as_bytes()]), &FIELD, |_| true), None, "{text:?}");
        }
        assert_eq!(dictionary(&HeaderMap::new(), &FIELD, |_| true), None);
        let strange = lines(&[b"a=1, b, a=2"]);
        assert_eq!(
            dictionary(&strange, &FIELD, |_| false),
            Some(Vec::new()),
            "present, and says nothing to us"
        );
        assert_eq!(
            dictionary(&strange, &FIELD, |key| key == b"a"),
            Some(vec![(&b"a"[..], Item::Integer(2))])
        );
        assert_eq!(
            dictionary(&lines(&[b"max-age=60", b"&"]), &FIELD, |_| true),
            None,
            "one bad line spoils all"
        );
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(value) = HeaderValue::from_bytes(&text) {
                let mut headers = HeaderMap::new();
                headers.insert(FIELD, value);
                let _ = dictionary(&headers, &FIELD, |_| true);
            }
        }
    }
}
