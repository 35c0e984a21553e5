//! What arrived, and what became of it.
//!
//! Every request is written down when its head and body are complete, before anything is decided, and completed
//! when its answer is. Writes are kept until the journal is cleared, so that a test can prove "once, in order,
//! nothing lost"; of the reads only the latest [`READS_KEPT`] are, so that a load test does not fill the memory.
//! The `/_sim` calls themselves never appear. Bodies and credentials appear as they came: the simulator holds no
//! real secret.

use std::collections::VecDeque;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// Reads kept; the oldest go first.
const READS_KEPT: usize = 20_000;

/// The journal.
#[derive(Debug, Default)]
pub(super) struct Journal {
    last_seq: u64,
    writes: VecDeque<Entry>,
    reads: VecDeque<Entry>,
}

/// A request as it arrived.
#[derive(Debug)]
pub(super) struct Entry {
    seq: u64,
    at: Timestamp,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
    outcome: Outcome,
}

/// What became of a request.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome {
    /// The write took effect.
    pub(super) is_applied: bool,
    /// The status, or the word for an answer that never came.
    pub(super) answered: Option<Answered>,
    /// The id of the object that was made or changed.
    pub(super) result_id: Option<Value>,
}

/// How a request was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answered {
    Status(u16),
    Reset,
    Hang,
    Truncated,
    Garbage,
}

// === impl Journal ===

impl Journal {
    /// Writes a request down; the number names it from then on.
    pub(super) fn arrive(
        &mut self,
        at: Timestamp,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> u64 {
        self.last_seq += 1;
        let entry = Entry {
            seq: self.last_seq,
            at,
            method: method.clone(),
            uri: uri.clone(),
            headers: headers.clone(),
            body: body.clone(),
            outcome: Outcome::default(),
        };
        if is_read(method) {
            if self.reads.len() == READS_KEPT {
                self.reads.pop_front();
            }
            self.reads.push_back(entry);
        } else {
            self.writes.push_back(entry);
        }
        self.last_seq
    }

    /// Notes what became of a request; one that was cleared meanwhile is passed over.
    pub(super) fn settle(&mut self, seq: u64, method: &Method, outcome: Outcome) {
        let list = if is_read(method) { &mut self.reads } else { &mut self.writes };
        if let Ok(index) = list.binary_search_by_key(&seq, |entry| entry.seq) {
            list[index].outcome = outcome;
        }
    }

    /// Forgets everything; the numbers go on.
    pub(super) fn clear(&mut self) {
        self.writes.clear();
        self.reads.clear();
    }

    /// The entries of a method and a path, or all, in the order of arrival.
    pub(super) fn list(&self, method: Option<&str>, path: Option<&str>) -> Vec<Value> {
        let mut entries: Vec<&Entry> = self
            .writes
            .iter()
            .chain(&self.reads)
            .filter(|entry| method.is_none_or(|method| entry.method.as_str().eq_ignore_ascii_case(method)))
            .filter(|entry| path.is_none_or(|path| entry.uri.path() == path))
            .collect();
        entries.sort_unstable_by_key(|entry| entry.seq);
        entries.into_iter().map(Entry::describe).collect()
    }
}

// === impl Entry ===

impl Entry {
    fn describe(&self) -> Value {
        let mut described = json!({
            "seq": self.seq,
            "at": format!("{:.3}", self.at),
            "method": self.method.as_str(),
            "path": self.uri.path(),
            "query": self.uri.query(),
            "headers": headers(&self.headers),
            "body": text(&self.body),
            "applied": self.outcome.is_applied,
            "answered": self.outcome.answered.map(Answered::describe),
        });
        if let (Some(id), Value::Object(fields)) = (&self.outcome.result_id, &mut described) {
            fields.insert("result_id".to_owned(), id.clone());
        }
        described
    }
}

// === impl Answered ===

impl Answered {
    fn describe(self) -> Value {
        match self {
            Self::Status(status) => json!(status),
            Self::Reset => json!("reset"),
            Self::Hang => json!("hang"),
            Self::Truncated => json!("truncate"),
            Self::Garbage => json!("garbage"),
        }
    }
}

/// A body as text, or as base64 when it is not UTF-8.
pub(super) fn text(body: &Bytes) -> String {
    std::str::from_utf8(body).map_or_else(|_| BASE64_STANDARD.encode(body), str::to_owned)
}

fn is_read(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

fn headers(map: &HeaderMap) -> Map<String, Value> {
    let mut described = Map::with_capacity(map.keys_len());
    for name in map.keys() {
        let mut values: Vec<Value> =
            map.get_all(name).iter().map(|value| json!(String::from_utf8_lossy(value.as_bytes()))).collect();
        let value = if values.len() == 1 { values.remove(0) } else { Value::Array(values) };
        described.insert(name.as_str().to_owned(), value);
    }
    described
}
