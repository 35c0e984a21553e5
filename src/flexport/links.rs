//! Pure. Flexport's links, rewritten to lead back to Seawall.
//!
//! Flexport's bodies carry absolute URLs. A JSON string that is the value of `self`, `prev`, `next`, `link` or
//! `file_link`, and begins with the upstream's base, gets ours instead, so that a caller who follows it stays behind
//! the proxy. There is no JSON tokenizer: a quote and what all bases begin with is searched for, and what stands around
//! it is looked at. A string's inside cannot be taken for a link, since a quote in it carries a backslash.
//!
//! A base counts when
//! - it begins its string, and the string is the value of one of those keys; there may be white space around the
//!   colon, 64 bytes at most;
//! - it is followed by `/`, `?`, `#` or the closing quote. `\/` is as good as `/`, and the base itself may be written
//!   so throughout (`https:\/\/api.flexport.com`); ours is then written in the same way;
//! - no longer base fits.
//!
//! [`Rewriter`] streams. What it gives out does not depend on how the body is cut into chunks. It holds back only a
//! base that is not complete yet, never more than the longest base and two bytes, and remembers the last 78 bytes
//! for the look back. A chunk without links is passed on, not copied. The rewriting is a pure function of the bytes
//! and the two URLs, so that an `ETag` stays true.

use bytes::Bytes;
use http::HeaderValue;
use memchr::memmem::Finder;
use std::sync::Arc;

/// The most white space between a key and its value.
const MOST_SPACE: usize = 64;
/// How far back from a value its key can begin: a byte that must not be a backslash, the quoted key, white space
/// and the colon, the value's quote.
const LOOK_BACK: usize = 1 + "\"file_link\"".len() + MOST_SPACE + 1 + 1;
/// How often a link comes, where Flexport's objects have many.
const BYTES_PER_LINK: usize = 256;
/// What is looked at behind a base: `\/`.
const LOOK_AHEAD: usize = 2;

/// What is rewritten to what. Built once for a configuration.
#[derive(Debug, Default)]
pub struct Bases {
    /// Longest first: the first that fits counts.
    spellings: Vec<Spelling>,
    /// Finds a quote and what all spellings begin with.
    opening: Option<Finder<'static>>,
    /// The length of the longest spelling.
    longest: usize,
    public_url: String,
}

/// One base in one way of writing it.
#[derive(Debug)]
struct Spelling {
    text: Vec<u8>,
    /// `None`: this base is our own URL already.
    replacement: Option<Bytes>,
    /// Where the path begins; before it, letters are compared without regard to case in `Location`.
    path_at: usize,
    is_escaped: bool,
}

/// Rewrites one body.
#[derive(Debug)]
pub struct Rewriter {
    bases: Arc<Bases>,
    /// The end of what came before, for the look back.
    behind: Behind,
    /// What came and was not given out: the beginning of a base behind a key and a quote.
    held: Vec<u8>,
}

/// The last [`LOOK_BACK`] bytes of the body so far.
#[derive(Debug)]
struct Behind {
    bytes: [u8; LOOK_BACK],
    len: usize,
}

/// What stands at a place where a base may begin.
#[derive(Clone, Copy)]
enum Decision {
    /// This spelling.
    Base(usize),
    /// No base.
    Other,
    /// More bytes are needed.
    Undecided,
}

// === impl Bases ===

impl Bases {
    /// Links that begin with `upstream_base` or one of `link_bases` are to begin with `public_url`. Trailing slashes
    /// do not matter, nor do default ports. A base that is no absolute URL cannot begin a link and is left out.
    pub fn new(upstream_base: &str, link_bases: &[String], public_url: &str) -> Self {
        let public_url =
            normalized(public_url).unwrap_or_else(|| public_url.trim_end_matches('/').to_owned());
        let mut bases: Vec<String> = std::iter::once(upstream_base)
            .chain(link_bases.iter().map(String::as_str))
            .filter_map(normalized)
            .collect();
        bases.sort_unstable_by(|one, other| other.len().cmp(&one.len()).then_with(|| one.cmp(other)));
        bases.dedup();
        if bases.iter().all(|base| *base == public_url) {
            return Self { public_url, ..Self::default() };
        }

        let mut spellings = Vec::new();
        for base in &bases {
            let (_, path_at) = authority(base).expect("normalized bases have one");
            for is_escaped in [false, true] {
                let write = |url: &str| if is_escaped { url.replace('/', "\\/") } else { url.to_owned() };
                spellings.push(Spelling {
                    text: write(base).into_bytes(),
                    replacement: (*base != public_url).then(|| Bytes::from(write(&public_url))),
                    path_at: write(&base[..path_at]).len(),
                    is_escaped,
                });
            }
        }
        spellings.sort_by_key(|spelling| std::cmp::Reverse(spelling.text.len()));
        let opening = spellings.first().map(|first| {
            let common = spellings.iter().fold(&first.text[..], |common, spelling| {
                let same = common.iter().zip(&spelling.text).take_while(|(one, other)| one == other);
                &common[..same.count()]
            });
            Finder::new(&[b"\"", common].concat()).into_owned()
        });
        let longest = spellings.first().map_or(0, |spelling| spelling.text.len());
        Self { spellings, opening, longest, public_url }
    }

    /// Whether every body stays as it is: the upstream's URL is ours.
    pub fn is_noop(&self) -> bool {
        self.spellings.is_empty()
    }

    /// A `Location` that leads to the upstream, leading to us. `None`: it stays as it is, which is right for relative
    /// ones too.
    pub fn rewrite_location(&self, location: &HeaderValue) -> Option<HeaderValue> {
        let url = location.as_bytes();
        let spelling = self.spellings.iter().filter(|spelling| !spelling.is_escaped).find(|spelling| {
            let Some((base, rest)) = url.split_at_checked(spelling.text.len()) else { return false };
            let (name, path) = base.split_at(spelling.path_at);
            let (base_name, base_path) = spelling.text.split_at(spelling.path_at);
            name.eq_ignore_ascii_case(base_name)
                && path == base_path
                && matches!(rest.first(), None | Some(b'/' | b'?' | b'#'))
        })?;
        spelling.replacement.as_ref()?;
        let rest = &url[spelling.text.len()..];
        HeaderValue::from_bytes(&[self.public_url.as_bytes(), rest].concat()).ok()
    }

    /// What `text` begins with. When it is the end of the body (`is_last`), nothing is undecided.
    fn decide(&self, text: &[u8], is_last: bool) -> Decision {
        for (index, spelling) in self.spellings.iter().enumerate() {
            let length = spelling.text.len();
            // Most of what is no base differs there: no need to compare all.
            if text.len() >= length && text[length - 1] != spelling.text[length - 1] {
                continue;
            }
            match text.strip_prefix(&spelling.text[..]) {
                Some([b'/' | b'?' | b'#' | b'"', ..] | [b'\\', b'/', ..]) => return Decision::Base(index),
                Some([] | [b'\\']) if !is_last => return Decision::Undecided,
                None if !is_last && spelling.text.starts_with(text) => return Decision::Undecided,
                Some(_) | None => {}
            }
        }
        Decision::Other
    }
}

/// A base as links begin with it: scheme and host in small letters, no default port, no trailing slash.
fn normalized(url: &str) -> Option<String> {
    let url = url.trim().trim_end_matches('/');
    let (begins, path_at) = authority(url)?;
    let scheme = url[..begins].to_ascii_lowercase();
    let mut name = url[begins..path_at].to_ascii_lowercase();
    for (of, port) in [("https://", ":443"), ("http://", ":80")] {
        if scheme == of && name.ends_with(port) {
            name.truncate(name.len() - port.len());
        }
    }
    let cannot_be_in_a_link = |byte: u8| matches!(byte, b'"' | b'\\') || !byte.is_ascii_graphic();
    (!name.is_empty() && !url.bytes().any(cannot_be_in_a_link)).then(|| scheme + &name + &url[path_at..])
}

/// Where the authority of an absolute URL begins and ends.
fn authority(url: &str) -> Option<(usize, usize)> {
    let begins = url.find("://")? + 3;
    let ends = url[begins..].find('/').map_or(url.len(), |slash| begins + slash);
    Some((begins, ends))
}

// === impl Rewriter ===

impl Rewriter {
    /// For the content of one response.
    pub fn new(bases: Arc<Bases>) -> Self {
        Self { bases, behind: Behind { bytes: [0; LOOK_BACK], len: 0 }, held: Vec::new() }
    }

    /// Takes the next chunk and gives out what is certain by now, in order, nothing empty.
    pub fn push(&mut self, data: Bytes, out: &mut dyn FnMut(Bytes)) {
        if self.bases.is_noop() {
            give(data, out);
            return;
        }
        let from = if self.held.is_empty() {
            0
        } else {
            let Some(from) = self.settle_held(&data, out) else {
                self.behind.push(&data);
                return;
            };
            from
        };
        self.rewrite(&data, from, out);
        self.behind.push(&data);
    }

    /// The body ended (or was cut): gives out the rest.
    pub fn finish(&mut self, out: &mut dyn FnMut(Bytes)) {
        if self.held.is_empty() {
            return;
        }
        let held = std::mem::take(&mut self.held);
        match self.bases.decide(&held, true) {
            Decision::Base(index) => self.replace(index, &held, out),
            Decision::Other | Decision::Undecided => out(Bytes::from(held)),
        }
    }

    /// Decides about what was held back, with the beginning of the next chunk. Returns how much of the chunk is
    /// done; `None` when all of it went into what is held.
    fn settle_held(&mut self, data: &Bytes, out: &mut dyn FnMut(Bytes)) -> Option<usize> {
        let before = self.held.len();
        let wanted = (self.bases.longest + LOOK_AHEAD).saturating_sub(before).min(data.len());
        self.held.extend_from_slice(&data[..wanted]);
        let decision = self.bases.decide(&self.held, false);
        let done = match decision {
            // With all that is wanted, everything is decided.
            Decision::Undecided => return None,
            Decision::Other => 0,
            Decision::Base(index) => self.bases.spellings[index].text.len().saturating_sub(before),
        };
        let mut held = std::mem::take(&mut self.held);
        held.truncate(before + done);
        match decision {
            Decision::Base(index) => self.replace(index, &held, out),
            Decision::Other | Decision::Undecided => out(Bytes::from(held)),
        }
        Some(done)
    }

    /// Gives out `text`, which begins with a base, with ours in its place.
    fn replace(&self, index: usize, text: &[u8], out: &mut dyn FnMut(Bytes)) {
        let spelling = &self.bases.spellings[index];
        let (base, rest) = text.split_at(spelling.text.len());
        out(spelling.replacement.clone().unwrap_or_else(|| Bytes::copy_from_slice(base)));
        give(Bytes::copy_from_slice(rest), out);
    }

    /// Rewrites `chunk` from `from` on, and holds back what may be the beginning of a base.
    fn rewrite(&mut self, chunk: &Bytes, from: usize, out: &mut dyn FnMut(Bytes)) {
        let Self { bases, behind, held } = self;
        let mut rewritten: Vec<u8> = Vec::new();
        // Up to here the chunk is in `rewritten`; up to `settled`, no other base can begin.
        let mut copied = from;
        let mut settled = from;
        // The quote before the first place may be the last byte of what came before.
        let first = (from == 0 && behind.opens_a_string(chunk, 0)).then_some(0);
        let further = bases.opening.iter().flat_map(|opening| opening.find_iter(&chunk[from..]));
        for begins in first.into_iter().chain(further.map(|quote| from + quote + 1)) {
            // What is undecided is at the end, and found again below.
            let Decision::Base(base) = bases.decide(&chunk[begins..], false) else { continue };
            if !behind.has_a_link_key(chunk, begins) {
                continue;
            }
            let spelling = &bases.spellings[base];
            settled = begins + spelling.text.len();
            let Some(replacement) = &spelling.replacement else { continue };
            if rewritten.is_empty() {
                // As much as it will be, since what is kept is kept without room to spare.
                let left = chunk.len() - from;
                let growth = replacement.len().saturating_sub(spelling.text.len());
                rewritten.reserve(left + growth * (left / BYTES_PER_LINK + 1));
            }
            rewritten.extend_from_slice(&chunk[copied..begins]);
            rewritten.extend_from_slice(replacement);
            copied = settled;
        }

        let end = bases.unfinished(behind, chunk, settled);
        held.extend_from_slice(&chunk[end..]);
        if rewritten.is_empty() {
            give(chunk.slice(from..end), out);
        } else {
            rewritten.extend_from_slice(&chunk[copied..end]);
            out(Bytes::from(rewritten));
        }
    }
}

impl Bases {
    /// Where a base begins that `chunk` does not complete; its length when there is none.
    fn unfinished(&self, behind: &Behind, chunk: &[u8], settled: usize) -> usize {
        let window = settled.max(chunk.len().saturating_sub(self.longest + LOOK_AHEAD));
        // No base has a quote in it, so only the last quote can stand before an unfinished one.
        let begins = match memchr::memrchr(b'"', &chunk[window..]) {
            Some(quote) => window + quote + 1,
            None if window == 0 && behind.opens_a_string(chunk, 0) => 0,
            None => return chunk.len(),
        };
        let is_unfinished = begins < chunk.len()
            && matches!(self.decide(&chunk[begins..], false), Decision::Undecided)
            && behind.has_a_link_key(chunk, begins);
        if is_unfinished { begins } else { chunk.len() }
    }
}

fn give(data: Bytes, out: &mut dyn FnMut(Bytes)) {
    if !data.is_empty() {
        out(data);
    }
}

// === impl Behind ===

impl Behind {
    /// The body went on with `data`.
    fn push(&mut self, data: &[u8]) {
        let new = &data[data.len().saturating_sub(LOOK_BACK)..];
        let kept = self.len.min(LOOK_BACK - new.len());
        self.bytes.copy_within(self.len - kept..self.len, 0);
        self.bytes[kept..kept + new.len()].copy_from_slice(new);
        self.len = kept + new.len();
    }

    /// Whether a quote stands right before `at` in the chunk.
    fn opens_a_string(&self, chunk: &[u8], at: usize) -> bool {
        let before = match at.checked_sub(1) {
            Some(before) => Some(chunk[before]),
            None => self.bytes[..self.len].last().copied(),
        };
        before == Some(b'"')
    }

    /// Whether the string that begins at `at` in the chunk is the value of a key that is a link's.
    fn has_a_link_key(&self, chunk: &[u8], at: usize) -> bool {
        if at >= LOOK_BACK {
            return ends_with_a_link_key(&chunk[at - LOOK_BACK..at]);
        }
        let kept = self.len.min(LOOK_BACK - at);
        let mut before = [0; LOOK_BACK];
        before[..kept].copy_from_slice(&self.bytes[self.len - kept..self.len]);
        before[kept..kept + at].copy_from_slice(&chunk[..at]);
        ends_with_a_link_key(&before[..kept + at])
    }
}

/// Whether `before` ends with a key, a colon and a quote.
fn ends_with_a_link_key(before: &[u8]) -> bool {
    // As nearly all of it is written.
    if let Some(before) = before.strip_suffix(b"\":\"") {
        return is_link_key(before);
    }
    let Some(before) = before.strip_suffix(b"\"") else { return false };
    let (before, space) = without_space(before);
    let Some(before) = before.strip_suffix(b":") else { return false };
    let (before, more_space) = without_space(before);
    let Some(before) = before.strip_suffix(b"\"") else { return false };
    space + more_space <= MOST_SPACE && is_link_key(before)
}

/// Whether `before` ends with a quote, not one inside a string, and the name of a key whose values are links. As
/// patterns, since calls that compare a few bytes would cost more than the comparison.
fn is_link_key(before: &[u8]) -> bool {
    let before = match before.last_chunk::<5>() {
        Some(b"\"self" | b"\"prev" | b"\"next" | b"\"link") => &before[..before.len() - 5],
        Some(b"_link") => match before.strip_suffix(b"\"file_link") {
            Some(before) => before,
            None => return false,
        },
        _ => return false,
    };
    before.last() != Some(&b'\\')
}

/// Without the JSON white space at the end, and how much that was.
fn without_space(text: &[u8]) -> (&[u8], usize) {
    let space = text.iter().rev().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count();
    (&text[..text.len() - space], space)
}

#[cfg(test)]
mod tests;
