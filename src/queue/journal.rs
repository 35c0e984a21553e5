//! Records on the store: what lies where, and what changes together.
//!
//! ```text
//! rec    write_id                → the record (see `record`)
//! body   write_id, chunk         → the request's body; chunk u32::MAX: the passed credential
//! resp   write_id, chunk         → the answer's body
//! audit  write_id, number        → one row for each step
//! idem   mark                    → nothing; the key is the mark (see `mark`), written with the record's first batch
//! meta   "unread/", write_id     → why: the record could not be read, and others may have gone past it since
//! ```
//! The record alone is the truth; all indexes are rebuilt from it at start. One change is one batch: record, audit
//! row, and what it needs or no longer needs. A commit that is not answered in time counts as failed; whatever
//! follows it is applied behind it, so a removal that follows takes it back.

use super::mark::Mark;
use super::record::{AuditRow, Blob, DecodeError, Record};
use crate::ids::WriteId;
use crate::store::{Batch, MAX_CHUNK, ROLLED_BACK, Store, StoreError, Tree, chunks};
use bytes::{Bytes, BytesMut};
use http::HeaderValue;
use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

/// The number under which a passed credential lies.
pub(super) const TOKEN: u32 = u32::MAX;

/// What the keys of passed records begin with, in [`Tree::Meta`].
pub(super) const PASSED: &[u8] = b"unread/";

/// What the reason begins with where a person released it.
pub(super) const RELEASED: &[u8] = b"released";

/// How long a commit may take before it counts as failed.
pub(super) const COMMIT_LIMIT: Duration = Duration::from_secs(20);

/// Reads and writes records.
#[derive(Clone)]
pub(super) struct Journal {
    store: Arc<dyn Store>,
}

/// What a batch holds besides the record.
#[derive(Default)]
pub(super) struct With<'a> {
    /// The request's body, when it is stored now.
    pub(super) body: Option<&'a [u8]>,
    /// The passed credential, when it is stored now.
    pub(super) token: Option<&'a HeaderValue>,
    /// The answer's body.
    pub(super) answer: Option<&'a [u8]>,
    /// Whether body and credential are not needed any more.
    pub(super) forgets_body: bool,
    /// The rows of this change; the record counts them already.
    pub(super) audit: &'a [AuditRow],
}

/// Why something cannot be read.
#[derive(Debug)]
pub(super) enum LoadError {
    /// It is gone, damaged or cannot be unsealed: trying again will not help.
    Lost(String),
    /// The store cannot be read at present.
    Unreadable(String),
}

/// Why a batch is not known to be durable.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum CommitError {
    /// It is not there, and will not be.
    #[error("{0}")]
    Refused(String),
    /// It failed on its way; in this process it is not there, but a crash may bring it back.
    #[error("{0}")]
    Failed(String),
    /// It is longer than the store takes: trying again will not help.
    #[error("{0}")]
    TooLarge(String),
    /// It may be there, or be there a moment later.
    #[error("{0}")]
    Unanswered(String),
}

/// What was found at start.
#[derive(Default)]
pub(super) struct Loaded {
    pub(super) records: Vec<Record>,
    /// Records that cannot be read, with the reason.
    pub(super) unreadable: Vec<(Vec<u8>, String)>,
    /// Their marks, as far as they have any.
    pub(super) marks: Vec<Mark>,
    /// Those that are not sent by themselves once they can be read, since others may have gone past them; and whether a
    /// person released them.
    pub(super) passed: HashMap<WriteId, bool>,
    /// The store came back older at this or an earlier start, and not all records were looked at since.
    pub(super) is_rolled_back: bool,
}

// === impl CommitError ===

impl From<StoreError> for CommitError {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::TooLarge { .. } => Self::TooLarge(message),
            StoreError::Unanswered { .. } => Self::Unanswered(message),
            StoreError::NoSpace { .. } | StoreError::Closed { .. } => Self::Refused(message),
            StoreError::Failed { .. } | StoreError::Undecryptable { .. } | StoreError::Read { .. } => {
                Self::Failed(message)
            }
        }
    }
}

// === impl Journal ===

impl Journal {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// The batch of a change.
    pub(super) fn batch(record: &Record, with: &With<'_>) -> Batch {
        let id = record.write_id;
        let mut batch = Batch::new();
        batch.put(Tree::Rec, id.as_bytes().to_vec(), record.encode());
        if let Some(body) = with.body {
            for (number, chunk) in chunks(body).enumerate() {
                batch.put(Tree::Body, key(id, number as u32), chunk);
            }
        }
        if let Some(token) = with.token {
            batch.put(Tree::Body, key(id, TOKEN), token.as_bytes());
        }
        if with.forgets_body {
            forget_body(&mut batch, record);
        }
        if let Some(answer) = with.answer {
            for (number, chunk) in chunks(answer).enumerate() {
                batch.put(Tree::Resp, key(id, number as u32), chunk);
            }
        }
        let first = record.audited.saturating_sub(with.audit.len() as u32);
        if first == 0 || with.body.is_some() {
            batch.put(Tree::Idem, Mark::of(record).encode(), Vec::new());
        }
        for (number, row) in (first..).zip(with.audit) {
            let row = serde_json::to_vec(row).expect("an audit row has only keys that are strings");
            batch.put(Tree::Audit, key(id, number), row);
        }
        batch
    }

    /// The batch after which the records count as looked at.
    pub(super) fn looked_at() -> Batch {
        let mut batch = Batch::new();
        batch.settling().delete(Tree::Meta, ROLLED_BACK);
        batch
    }

    /// The batch that says that others may go past a record that cannot be read.
    pub(super) fn pass(id: WriteId, why: &[u8]) -> Batch {
        let mut batch = Batch::new();
        batch.settling().put(Tree::Meta, passed_key(id), why);
        batch
    }

    /// The batch after which a record that can be read again counts as looked at.
    pub(super) fn forget_passed(id: WriteId) -> Batch {
        let mut batch = Batch::new();
        batch.settling().delete(Tree::Meta, passed_key(id));
        batch
    }

    /// The batch that leaves nothing of a record.
    pub(super) fn removal(record: &Record) -> Batch {
        let id = record.write_id;
        let mut batch = Batch::new();
        batch.settling().delete(Tree::Rec, id.as_bytes().to_vec());
        batch.delete(Tree::Idem, Mark::of(record).encode());
        forget_body(&mut batch, record);
        batch.append(Self::forget_answer(record));
        // One more: a step that was begun and dropped may have left its row.
        for number in 0..=record.audited {
            batch.delete(Tree::Audit, key(id, number));
        }
        batch
    }

    /// The batch that leaves nothing of a record's answer.
    pub(super) fn forget_answer(record: &Record) -> Batch {
        let mut batch = Batch::new();
        let answer = record.answer.as_ref().and_then(|answer| answer.body).unwrap_or_default();
        for number in 0..answer.chunks {
            batch.delete(Tree::Resp, key(record.write_id, number));
        }
        batch
    }

    /// Makes a batch durable, within [`COMMIT_LIMIT`].
    pub(super) async fn commit(&self, batch: Batch) -> Result<(), CommitError> {
        self.commit_within(batch, COMMIT_LIMIT).await
    }

    /// Makes a batch durable, within a time of its own.
    pub(super) async fn commit_within(&self, batch: Batch, limit: Duration) -> Result<(), CommitError> {
        let late =
            |_| CommitError::Unanswered(format!("the store did not answer within {} s", limit.as_secs()));
        let answered = tokio::time::timeout(limit, self.store.commit(batch)).await.map_err(late)?;
        answered.map_err(CommitError::from)
    }

    /// The request's body.
    pub(super) async fn body(&self, id: WriteId, blob: Blob) -> Result<Bytes, LoadError> {
        self.blob(Tree::Body, id, blob).await
    }

    /// The answer's body.
    pub(super) async fn answer(&self, id: WriteId, blob: Blob) -> Result<Bytes, LoadError> {
        self.blob(Tree::Resp, id, blob).await
    }

    /// The passed credential.
    pub(super) async fn token(&self, id: WriteId) -> Result<HeaderValue, LoadError> {
        let bytes = self
            .blocking(move |store| store.get(Tree::Body, &key(id, TOKEN)).map_err(|error| load_error(&error)))
            .await?
            .ok_or_else(|| LoadError::Lost("its credential is not there".to_owned()))?;
        let mut value = HeaderValue::from_bytes(&bytes)
            .map_err(|_| LoadError::Lost("its credential is not a field's value".to_owned()))?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// The audit trail of a write, oldest first.
    pub(super) async fn history(&self, id: WriteId) -> Result<Vec<AuditRow>, LoadError> {
        self.blocking(move |store| {
            let mut rows = Vec::new();
            store
                .scan(Tree::Audit, id.as_bytes(), None, &mut |_, found| {
                    if let Some(row) = found.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
                        rows.push(row);
                    }
                    ControlFlow::Continue(())
                })
                .map_err(|error| load_error(&error))?;
            Ok(rows)
        })
        .await
    }

    /// All records. Blocks.
    pub(super) fn load(&self) -> Result<Loaded, StoreError> {
        let is_rolled_back = match self.store.get(Tree::Meta, ROLLED_BACK) {
            Ok(found) => found.is_some(),
            Err(StoreError::Undecryptable { .. }) => true,
            Err(error) => return Err(error),
        };
        let mut loaded = Loaded { is_rolled_back, ..Loaded::default() };
        self.store.scan(Tree::Rec, &[], None, &mut |key, found| {
            let record = found
                .map_err(|error| error.to_string())
                .and_then(|bytes| Record::decode(&bytes).map_err(|error: DecodeError| error.to_string()));
            match record {
                Ok(record) if record.write_id.as_bytes().as_slice() == key => loaded.records.push(record),
                Ok(_) => loaded.unreadable.push((key.to_vec(), "it lies under another's key".to_owned())),
                Err(reason) => loaded.unreadable.push((key.to_vec(), reason)),
            }
            ControlFlow::Continue(())
        })?;
        self.store.scan(Tree::Meta, PASSED, None, &mut |key, found| {
            let id = key.strip_prefix(PASSED).and_then(|id| <[u8; 16]>::try_from(id).ok());
            let is_released = found.is_ok_and(|why| why.starts_with(RELEASED));
            loaded.passed.extend(id.map(|id| (WriteId::from_bytes(id), is_released)));
            ControlFlow::Continue(())
        })?;
        if !loaded.unreadable.is_empty() {
            let unreadable: HashSet<&[u8]> =
                loaded.unreadable.iter().map(|(key, _)| key.as_slice()).collect();
            let mut marks = Vec::new();
            self.store.scan(Tree::Idem, &[], None, &mut |key, _| {
                let mark =
                    Mark::decode(key).filter(|mark| unreadable.contains(mark.write_id.as_bytes().as_slice()));
                marks.extend(mark);
                ControlFlow::Continue(())
            })?;
            loaded.marks = marks;
        }
        Ok(loaded)
    }

    async fn blob(&self, tree: Tree, id: WriteId, blob: Blob) -> Result<Bytes, LoadError> {
        self.blocking(move |store| {
            let mut bytes = BytesMut::with_capacity(usize::try_from(blob.len).unwrap_or(0).min(32 << 20));
            for number in 0..blob.chunks {
                let chunk = store
                    .get(tree, &key(id, number))
                    .map_err(|error| load_error(&error))?
                    .ok_or_else(|| LoadError::Lost(format!("chunk {number} is not there")))?;
                bytes.extend_from_slice(&chunk);
            }
            if !blob.matches(&bytes) {
                return Err(LoadError::Lost("its bytes are not those that were stored".to_owned()));
            }
            Ok(bytes.freeze())
        })
        .await
    }

    /// Reads off the runtime's workers: a read may wait for the disk.
    async fn blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn Store) -> Result<T, LoadError> + Send + 'static,
    ) -> Result<T, LoadError> {
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || read(&*store))
            .await
            .unwrap_or_else(|error| Err(LoadError::Unreadable(error.to_string())))
    }
}

fn forget_body(batch: &mut Batch, record: &Record) {
    for number in 0..record.body.chunks {
        batch.delete(Tree::Body, key(record.write_id, number));
    }
    batch.delete(Tree::Body, key(record.write_id, TOKEN));
}

fn key(id: WriteId, number: u32) -> Vec<u8> {
    let mut key = Vec::with_capacity(20);
    key.extend_from_slice(id.as_bytes());
    key.extend_from_slice(&number.to_be_bytes());
    key
}

fn passed_key(id: WriteId) -> Vec<u8> {
    [PASSED, id.as_bytes().as_slice()].concat()
}

/// The ticket and the number in a key.
pub(super) fn split(key: &[u8]) -> Option<(WriteId, u32)> {
    let (id, number) = key.split_first_chunk::<16>()?;
    Some((WriteId::from_bytes(*id), u32::from_be_bytes(number.try_into().ok()?)))
}

fn load_error(error: &StoreError) -> LoadError {
    match error {
        StoreError::Undecryptable { .. } => LoadError::Lost(error.to_string()),
        _ => LoadError::Unreadable(error.to_string()),
    }
}

/// A body's blob as this journal cuts it.
pub(super) fn blob(bytes: &[u8]) -> Blob {
    Blob::of(bytes, MAX_CHUNK)
}
