//! Pure. Whether what is stored holds together: every value unsealed, every record read, every body and answer held to
//! the length and digest that its record names, every credential there that is needed.
//!
//! It is given a way to visit the trees and knows no store, so that a running queue, a folder that nobody uses and a
//! backup are held to the same. Memory: some hundred bytes a record; bodies are passed by chunk.

use super::journal::{TOKEN, split};
use super::record::{AuditRow, Blob, CredentialRef, Record};
use super::state::State;
use crate::ids::WriteId;
use crate::store::inspect::Problem;
use crate::store::{Found, ROLLED_BACK, StoreError, Tree};
use aws_lc_rs::digest::{Context, SHA256};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;

/// Visits all values of a tree in the order of their keys.
pub type Visit<'a> =
    dyn FnMut(Tree, &mut dyn FnMut(&[u8], Found) -> ControlFlow<()>) -> Result<(), StoreError> + 'a;

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct Verification {
    /// Records by state.
    pub records: BTreeMap<&'static str, u64>,
    /// Records that an operator holds.
    pub held: u64,
    /// Values of each tree.
    pub values: BTreeMap<&'static str, u64>,
    /// Values that belong to no record. They take space and do no harm.
    pub orphans: u64,
    /// Whether it is older than what happened, and nobody looked at its records since.
    pub is_rolled_back: bool,
    /// What is wrong; at most [`MAX_PROBLEMS`].
    #[serde(skip)]
    pub problems: Vec<Problem>,
    /// How many more there are.
    pub more_problems: u64,
}

/// Problems that are kept.
pub const MAX_PROBLEMS: usize = 1000;

/// What the record says about what lies beside it.
struct Expected {
    body: Option<Blob>,
    /// Whether the body must be there.
    needs_body: bool,
    needs_token: bool,
    answer: Option<Blob>,
}

/// Holds the chunks of one blob to it, as they come.
struct Chunks {
    id: WriteId,
    next: u32,
    bytes: u64,
    digest: Context,
}

// === impl Verification ===

impl Verification {
    /// Reads everything.
    pub fn of(visit: &mut Visit<'_>) -> Result<Verification, StoreError> {
        let mut this = Verification::default();
        let expected = this.records(visit)?;
        this.blobs(Tree::Body, &expected, visit)?;
        this.blobs(Tree::Resp, &expected, visit)?;
        for tree in [Tree::Audit, Tree::Meta, Tree::Order, Tree::Due, Tree::Idem] {
            this.rest(tree, &expected, visit)?;
        }
        Ok(this)
    }

    /// The same while the store is written to: what is there only at one of two looks is no problem.
    pub fn of_running(visit: &mut Visit<'_>) -> Result<Verification, StoreError> {
        let first = Verification::of(visit)?;
        if first.is_sound() {
            return Ok(first);
        }
        let mut second = Verification::of(visit)?;
        second.problems.retain(|problem| first.problems.contains(problem));
        Ok(second)
    }

    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }

    fn wrong(&mut self, tree: Tree, key: &[u8], what: impl Into<String>) {
        if self.problems.len() >= MAX_PROBLEMS {
            self.more_problems += 1;
            return;
        }
        self.problems.push(Problem { place: place(tree, key), what: what.into() });
    }

    fn count(&mut self, tree: Tree) {
        *self.values.entry(name(tree)).or_default() += 1;
    }

    fn records(&mut self, visit: &mut Visit<'_>) -> Result<HashMap<WriteId, Expected>, StoreError> {
        let mut all = HashMap::new();
        let mut places = HashMap::new();
        visit(Tree::Rec, &mut |key, found| {
            self.count(Tree::Rec);
            let record = found
                .map_err(|_| "it cannot be unsealed".to_owned())
                .and_then(|bytes| Record::decode(&bytes).map_err(|error| error.to_string()));
            let record = match record {
                Ok(record) => record,
                Err(what) => {
                    self.wrong(Tree::Rec, key, what);
                    return ControlFlow::Continue(());
                }
            };
            if record.write_id.as_bytes().as_slice() != key {
                self.wrong(Tree::Rec, key, format!("it is the record of {}", record.write_id));
                return ControlFlow::Continue(());
            }
            let state = record.progress.state;
            *self.records.entry(state.as_str()).or_default() += 1;
            self.held += u64::from(record.progress.held);
            if state.is_unsettled() {
                let place = (record.partition, record.order.clone(), record.seq);
                if let Some(other) = places.insert(place, record.write_id) {
                    self.wrong(Tree::Rec, key, format!("it has the same place in its order as {other}"));
                }
            }
            if record.expires_at < record.accepted_at {
                self.wrong(Tree::Rec, key, "it expires before it was accepted");
            }
            let expected = Expected {
                body: (record.body.len > 0).then_some(record.body),
                needs_body: state.is_unsettled(),
                needs_token: needs_token(&record),
                answer: record.answer.and_then(|answer| answer.body).filter(|body| body.len > 0),
            };
            all.insert(record.write_id, expected);
            ControlFlow::Continue(())
        })?;
        Ok(all)
    }

    fn blobs(
        &mut self,
        tree: Tree,
        expected: &HashMap<WriteId, Expected>,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        let wanted = |one: &Expected| if tree == Tree::Body { one.body } else { one.answer };
        let mut missing: HashMap<WriteId, Blob> = expected
            .iter()
            .filter(|(_, one)| tree != Tree::Body || one.needs_body)
            .filter_map(|(id, one)| Some((*id, wanted(one)?)))
            .collect();
        let mut tokens: HashSet<WriteId> = expected
            .iter()
            .filter(|(_, one)| tree == Tree::Body && one.needs_token)
            .map(|(id, _)| *id)
            .collect();
        let mut chunks: Option<Chunks> = None;
        let finish = |this: &mut Self, chunks: Option<Chunks>, missing: &mut HashMap<WriteId, Blob>| {
            let Some(chunks) = chunks else { return };
            missing.remove(&chunks.id);
            let Some(blob) = expected.get(&chunks.id).and_then(wanted) else { return };
            let is_same = chunks.next == blob.chunks
                && chunks.bytes == blob.len
                && chunks.digest.finish().as_ref() == blob.sha256.0;
            if !is_same {
                this.wrong(tree, chunks.id.as_bytes(), "its bytes are not those that its record names");
            }
        };
        visit(tree, &mut |key, found| {
            self.count(tree);
            let Some((id, number)) = split(key) else {
                self.wrong(tree, key, "it does not lie under a ticket and a number");
                return ControlFlow::Continue(());
            };
            let Ok(bytes) = found else {
                self.wrong(tree, key, "it cannot be unsealed");
                missing.remove(&id);
                tokens.remove(&id);
                return ControlFlow::Continue(());
            };
            if !expected.contains_key(&id) {
                self.orphans += 1;
                return ControlFlow::Continue(());
            }
            if tree == Tree::Body && number == TOKEN {
                tokens.remove(&id);
                return ControlFlow::Continue(());
            }
            if chunks.as_ref().is_none_or(|chunks| chunks.id != id) {
                let done = chunks.replace(Chunks { id, next: 0, bytes: 0, digest: Context::new(&SHA256) });
                finish(self, done, &mut missing);
            }
            if let Some(chunks) = &mut chunks {
                if chunks.next != number {
                    self.wrong(tree, key, format!("chunk {} before it is missing", chunks.next));
                }
                chunks.next = number.saturating_add(1);
                chunks.bytes += bytes.len() as u64;
                chunks.digest.update(&bytes);
            }
            ControlFlow::Continue(())
        })?;
        finish(self, chunks.take(), &mut missing);
        for id in missing.into_keys() {
            self.wrong(tree, id.as_bytes(), "its bytes are missing");
        }
        for id in tokens {
            self.wrong(tree, id.as_bytes(), "its credential is missing");
        }
        Ok(())
    }

    fn rest(
        &mut self,
        tree: Tree,
        expected: &HashMap<WriteId, Expected>,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        visit(tree, &mut |key, found| {
            self.count(tree);
            let Ok(bytes) = found else {
                self.wrong(tree, key, "it cannot be unsealed");
                return ControlFlow::Continue(());
            };
            match tree {
                Tree::Meta if key == ROLLED_BACK => self.is_rolled_back = true,
                Tree::Audit => match split(key) {
                    None => self.wrong(tree, key, "it does not lie under a ticket and a number"),
                    Some((id, _)) if !expected.contains_key(&id) => self.orphans += 1,
                    Some(_) => {
                        if let Err(error) = serde_json::from_slice::<AuditRow>(&bytes) {
                            self.wrong(tree, key, format!("it is no row of an audit trail: {error}"));
                        }
                    }
                },
                _ => {}
            }
            ControlFlow::Continue(())
        })
    }

    /// Records that a person must decide about, once this is restored.
    pub fn unsettled(&self) -> u64 {
        State::ALL
            .iter()
            .filter(|state| state.is_unsettled())
            .filter_map(|state| self.records.get(state.as_str()))
            .sum()
    }
}

/// Whether it is to be sent with a credential that lies beside it. One whose caller waited for the first attempt need
/// not have one: it is never sent again by itself.
fn needs_token(record: &Record) -> bool {
    let is_to_be_sent = match record.progress.state {
        State::Pending | State::Waiting => true,
        State::Sending => record.is_ticket,
        State::Unknown | State::Done | State::Dead | State::Expired | State::Cancelled => false,
    };
    is_to_be_sent && record.credential == CredentialRef::Passed
}

fn place(tree: Tree, key: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = name(tree).to_owned();
    match (key.split_first_chunk::<16>(), split(key)) {
        (Some((id, [])), _) => {
            let _ = write!(text, " {}", WriteId::from_bytes(*id));
        }
        (_, Some((id, number))) => {
            let _ = write!(text, " {id} #{number}");
        }
        _ => {
            text.push(' ');
            for byte in key {
                let _ = write!(text, "{byte:02x}");
            }
        }
    }
    text
}

fn name(tree: Tree) -> &'static str {
    match tree {
        Tree::Meta => "meta",
        Tree::Rec => "rec",
        Tree::Body => "body",
        Tree::Order => "order",
        Tree::Due => "due",
        Tree::Resp => "resp",
        Tree::Idem => "idem",
        Tree::Audit => "audit",
    }
}

#[cfg(test)]
mod tests {
    use super::super::journal::{self, Journal, With};
    use super::super::record::{AnswerHead, tests::sample};
    use super::*;
    use crate::store::{Batch, MAX_CHUNK, MemStore, Store as _};

    async fn stored(records: &[(Record, Vec<u8>)]) -> MemStore {
        let store = MemStore::new();
        for (record, body) in records {
            let with = With { body: Some(body), ..With::default() };
            store.commit(Journal::batch(record, &with)).await.unwrap();
        }
        store
    }

    fn pending(byte: u8, body: &[u8]) -> (Record, Vec<u8>) {
        let mut record = sample();
        record.write_id = WriteId::from_bytes([byte; 16]);
        record.seq = u64::from(byte);
        record.progress.state = State::Pending;
        record.body = journal::blob(body);
        record.answer = None;
        record.audited = 0;
        (record, body.to_vec())
    }

    fn found(store: &MemStore) -> Verification {
        Verification::of(&mut |tree, visit| store.scan(tree, &[], None, visit)).unwrap()
    }

    fn told(store: &MemStore) -> Vec<String> {
        found(store)
            .problems
            .into_iter()
            .map(|problem| format!("{}: {}", problem.place, problem.what))
            .collect()
    }

    fn chunk(byte: u8, number: u32) -> Vec<u8> {
        [&[byte; 16][..], &number.to_be_bytes()].concat()
    }

    #[tokio::test]
    async fn what_holds_together_is_sound_and_counted() {
        let long = vec![7; 3 * MAX_CHUNK + 5];
        let store = stored(&[pending(1, &long), pending(2, b"short"), pending(3, b"")]).await;
        let found = found(&store);
        assert!(found.is_sound(), "{:?}", found.problems);
        assert_eq!(found.records["pending"], 3);
        assert_eq!((found.values["rec"], found.values["body"]), (3, 5));
        assert_eq!(found.unsettled(), 3);
    }

    #[tokio::test]
    async fn a_body_that_is_missing_cut_swapped_or_longer_is_named_with_its_ticket() {
        let long = vec![7; 2 * MAX_CHUNK];
        let id = WriteId::from_bytes([1; 16]).to_string();
        for (change, what) in [
            (vec![(chunk(1, 0), None), (chunk(1, 1), None)], "its bytes are missing"),
            (vec![(chunk(1, 1), None)], "not those that its record names"),
            (vec![(chunk(1, 0), None)], "chunk 0 before it is missing"),
            (vec![(chunk(1, 1), Some(vec![8; MAX_CHUNK]))], "not those that its record names"),
            (vec![(chunk(1, 2), Some(vec![7]))], "not those that its record names"),
        ] {
            let store = stored(&[pending(1, &long), pending(2, b"other")]).await;
            let mut batch = Batch::new();
            for (key, value) in change {
                match value {
                    Some(value) => batch.put(Tree::Body, key, value),
                    None => batch.delete(Tree::Body, key),
                };
            }
            store.commit(batch).await.unwrap();
            let told = told(&store);
            assert!(told.iter().any(|line| line.contains(what) && line.contains(&id)), "{what}: {told:?}");
            assert!(told.iter().all(|line| !line.contains("0202")), "{told:?}");
        }
    }

    #[tokio::test]
    async fn records_that_cannot_be_read_or_stand_in_anothers_place_are_named() {
        let store = stored(&[pending(1, b"a"), pending(2, b"b")]).await;
        let mut batch = Batch::new();
        let mut twin = pending(3, b"").0;
        twin.seq = 1;
        batch.put(Tree::Rec, [3; 16], twin.encode());
        batch.put(Tree::Rec, [4; 16], pending(5, b"").0.encode());
        batch.put(Tree::Rec, [6; 16], b"\x09{}".to_vec());
        store.commit(batch).await.unwrap();
        let told = told(&store).join("\n");
        for what in ["same place in its order", "it is the record of", "record version 9"] {
            assert!(told.contains(what), "{what}: {told}");
        }
    }

    #[tokio::test]
    async fn a_missing_credential_and_a_missing_answer_are_named_and_leftovers_are_only_counted() {
        let mut passed = pending(1, b"a");
        passed.0.credential = CredentialRef::Passed;
        // With `queue.passthrough = "refuse"` what creates leaves its intent, and no credential.
        let mut live = [pending(3, b"c"), pending(4, b"d")];
        for (one, state) in live.iter_mut().zip([State::Sending, State::Unknown]) {
            one.0.credential = CredentialRef::Passed;
            one.0.is_ticket = false;
            one.0.progress.state = state;
        }
        let [sending, unknown] = live;
        let mut done = pending(2, b"b");
        done.0.progress.state = State::Done;
        done.0.answer =
            Some(AnswerHead { status: 200, fields: Vec::new(), body: Some(journal::blob(b"the answer")) });
        let store = stored(&[passed, done, sending, unknown]).await;
        let mut batch = Batch::new();
        batch.delete(Tree::Body, chunk(2, 0)).put(Tree::Body, chunk(9, 0), b"left".to_vec());
        store.commit(batch).await.unwrap();
        let found = found(&store);
        let whats: Vec<&str> = found.problems.iter().map(|problem| problem.what.as_str()).collect();
        assert_eq!(whats, ["its credential is missing", "its bytes are missing"], "{:?}", found.problems);
        assert_eq!(found.orphans, 1);
    }
}
