//! The fields of a message at rest.

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue};

/// Fields in the order in which they came, in memory of their own.
///
/// A field that came over the wire is a slice of the connection's read buffer. To keep it would keep the whole buffer,
/// several times the size of the answer, and make the connection take a new one for each message. And a list takes half
/// the room of a map: most of what is kept is never looked at again.
#[derive(Clone, Debug)]
pub struct Fields(Box<[(HeaderName, HeaderValue)]>);

// === impl Fields ===

impl Fields {
    /// Those of `headers`, but for what `is_left_out` names, and one more.
    pub fn of(
        headers: &HeaderMap,
        is_left_out: impl Fn(&HeaderName) -> bool,
        more: Option<(HeaderName, HeaderValue)>,
    ) -> Self {
        let kept = || headers.iter().filter(|(name, _)| !is_left_out(name));
        let (count, bytes) =
            kept().fold((0, 0), |(count, bytes), (_, value)| (count + 1, bytes + value.len()));
        let mut buffer = BytesMut::with_capacity(bytes);
        kept().for_each(|(_, value)| buffer.extend_from_slice(value.as_bytes()));
        let mut buffer = buffer.freeze();
        let mut own = Vec::with_capacity(count + usize::from(more.is_some()));
        for (name, value) in kept() {
            let bytes = buffer.split_to(value.len());
            let mut copy = HeaderValue::from_maybe_shared(bytes).expect("the bytes of a valid value");
            copy.set_sensitive(value.is_sensitive());
            own.push((name.clone(), copy));
        }
        own.extend(more);
        Self(own.into())
    }

    /// The first of this name.
    pub fn get(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.get_all(name).next()
    }

    /// All of this name.
    pub fn get_all(&self, name: &HeaderName) -> impl Iterator<Item = &HeaderValue> {
        self.iter().filter(move |(own, _)| *own == *name).map(|(_, value)| value)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.0.iter().map(|(name, value)| (name, value))
    }

    /// As a map, with room for some more.
    pub fn to_map(&self, more: usize) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.0.len() + more);
        for (name, value) in &self.0 {
            map.append(name, value.clone());
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::{AGE, DATE, ETAG, SET_COOKIE, VARY};

    #[test]
    fn what_is_kept_is_all_there_but_what_was_left_out() {
        let mut headers = HeaderMap::new();
        for (name, value) in [(VARY, "accept"), (AGE, "3"), (VARY, "accept-language"), (ETAG, "\"1\"")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let mut cookie = HeaderValue::from_static("a=b");
        cookie.set_sensitive(true);
        headers.insert(SET_COOKIE, cookie);
        let date = HeaderValue::from_static("Sat, 26 Sep 2026 12:00:00 GMT");
        let fields = Fields::of(&headers, |name| *name == AGE, Some((DATE, date.clone())));
        headers.remove(AGE);
        headers.insert(DATE, date.clone());
        assert_eq!(fields.to_map(4), headers);
        assert_eq!(fields.get_all(&VARY).collect::<Vec<_>>(), ["accept", "accept-language"]);
        assert!(fields.get(&AGE).is_none() && fields.get(&SET_COOKIE).is_some_and(HeaderValue::is_sensitive));
    }
}
