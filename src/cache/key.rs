//! Pure. The name under which an answer is kept.
//!
//! SHA-256 over parts with their lengths before them, so that no two lists of parts can give the same bytes. What
//! goes in is exactly what can change the answer: whose data it is, which upstream, which `public_url` its links
//! were rewritten to, path and query in the octets that are forwarded, and the request fields that are forwarded.
//! A raw token never goes in. What `Vary` names beyond that is compared per variant ([`super::entry`]).
//!
//! The parts are gathered in a buffer on the stack and hashed in blocks: no allocation, one context.

use crate::ids::PartitionId;
use aws_lc_rs::digest;
use http::{HeaderMap, HeaderName};
use std::hash::BuildHasher;

/// The digest of an answer's key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Key(pub(crate) [u8; 32]);

/// What a key is made of, besides the keyed request fields.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts<'a> {
    /// Whose data it is.
    pub(crate) partition: PartitionId,
    /// `upstream.base_url`.
    pub(crate) upstream: &'a str,
    /// What links are rewritten to.
    pub(crate) public_url: &'a str,
    /// Path and query as they are forwarded.
    pub(crate) target: &'a str,
}

/// The format of the key: changed when the parts change, so that a persisted entry is never read under new rules.
const VERSION: u8 = 1;

/// Places keys in maps. A digest is spread evenly already, so a quarter of it, folded with a seed that nobody outside
/// knows, does for what SipHash would take ten times as long over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places(u64);

/// See [`Places`].
#[derive(Debug)]
pub(crate) struct Place(u64);

struct Hasher {
    context: digest::Context,
    buffer: [u8; 256],
    filled: usize,
}

/// Names the upstream and what links are rewritten to: a copy that was kept under another is found by no request. Not
/// zero, and the same in all processes.
pub(crate) fn base(upstream: &str, public_url: &str) -> u64 {
    fnv(upstream.bytes().chain([0]).chain(public_url.bytes())).max(1)
}

/// FNV-1a: tells apart what differs by chance, not what somebody makes equal.
pub(super) fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    let mix = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.fold(0xcbf2_9ce4_8422_2325, mix)
}

/// The key of a read: of GET and HEAD alike, since a HEAD is answered from a stored GET.
pub(crate) fn of(parts: &Parts<'_>, headers: &HeaderMap, keyed: &[HeaderName]) -> Key {
    let mut hasher = Hasher { context: digest::Context::new(&digest::SHA256), buffer: [0; 256], filled: 0 };
    hasher.raw(&[VERSION]);
    hasher.raw(&parts.partition.0);
    hasher.part(parts.upstream.as_bytes());
    hasher.part(parts.public_url.as_bytes());
    hasher.part(parts.target.as_bytes());
    for name in keyed {
        // The number of lines stands before them: absence is zero lines, which an empty line is not.
        let lines = headers.get_all(name);
        hasher.raw(&(lines.iter().count() as u32).to_le_bytes());
        for line in lines {
            hasher.part(line.as_bytes());
        }
    }
    hasher.finish()
}

// === impl Places ===

impl Default for Places {
    fn default() -> Self {
        Self(fastrand::u64(..))
    }
}

impl BuildHasher for Places {
    type Hasher = Place;

    fn build_hasher(&self) -> Place {
        Place(self.0)
    }
}

// === impl Place ===

impl std::hash::Hasher for Place {
    fn write(&mut self, bytes: &[u8]) {
        let mut start = [0; 8];
        let length = bytes.len().min(8);
        start[..length].copy_from_slice(&bytes[..length]);
        self.write_u64(u64::from_le_bytes(start));
    }

    fn write_u64(&mut self, value: u64) {
        let wide = u128::from(self.0 ^ value) * u128::from(0x9e37_79b9_7f4a_7c15_u64);
        self.0 = (wide as u64) ^ ((wide >> 64) as u64);
    }

    /// The length of an array that always has the same.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

// === impl Hasher ===

impl Hasher {
    fn part(&mut self, bytes: &[u8]) {
        self.raw(&(bytes.len() as u32).to_le_bytes());
        self.raw(bytes);
    }

    fn raw(&mut self, bytes: &[u8]) {
        if self.filled + bytes.len() > self.buffer.len() {
            self.context.update(&self.buffer[..self.filled]);
            self.filled = 0;
            if bytes.len() > self.buffer.len() {
                self.context.update(bytes);
                return;
            }
        }
        self.buffer[self.filled..self.filled + bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
    }

    fn finish(mut self) -> Key {
        self.context.update(&self.buffer[..self.filled]);
        let digest = self.context.finish();
        let mut key = [0; 32];
        key.copy_from_slice(digest.as_ref());
        Key(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use http::header::{ACCEPT, ACCEPT_LANGUAGE};

    const KEYED: &[HeaderName] = &[ACCEPT, ACCEPT_LANGUAGE];

    fn parts(target: &str) -> Parts<'_> {
        Parts { partition: PartitionId([1; 16]), upstream: "https://a", public_url: "http://b", target }
    }

    #[test]
    fn no_two_different_requests_share_a_key() {
        let none = HeaderMap::new();
        let mut empty = HeaderMap::new();
        empty.insert(ACCEPT, HeaderValue::from_static(""));
        let mut other = HeaderMap::new();
        other.insert(ACCEPT_LANGUAGE, HeaderValue::from_static(""));
        let long = format!("/{}", "x".repeat(1000));
        let keys = [
            of(&parts("/a"), &none, KEYED),
            of(&parts("/a?"), &none, KEYED),
            of(&parts("/a"), &empty, KEYED),
            of(&parts("/a"), &other, KEYED),
            of(&Parts { partition: PartitionId([2; 16]), ..parts("/a") }, &none, KEYED),
            of(&Parts { upstream: "https://ah", public_url: "ttp://b", ..parts("/a") }, &none, KEYED),
            of(&parts(&long), &none, KEYED),
            of(&parts(&long[..1000]), &none, KEYED),
        ];
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[index + 1..].contains(key), "{index}");
        }
        assert_eq!(keys[0], of(&parts("/a"), &none, KEYED));
    }
}
