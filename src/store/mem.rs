//! The store in memory, for tests and simulated runs: sled has threads of its own, which no simulator can move.
//!
//! It keeps the contract and nothing else: what was answered `Ok` is *durable*, and [`MemStore::crash`] gives a store
//! with exactly that. Reads see durable values only. Faults are set by hand.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    ops::{Bound, ControlFlow},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use super::{Batch, BoxFuture, Found, Health, Rotation, Store, StoreError, Tree};

/// The store in memory. Clones share it.
#[derive(Clone, Default)]
pub struct MemStore {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    durable: BTreeMap<(Tree, Vec<u8>), Vec<u8>>,
    /// Handed in and not synced: lost in a crash.
    held: VecDeque<(Batch, oneshot::Sender<Result<(), StoreError>>)>,
    is_holding: bool,
    fail_next: usize,
    is_failed: bool,
    is_full: bool,
    is_closed: bool,
    unreadable: BTreeSet<(Tree, Vec<u8>)>,
    commits: u64,
    refused: u64,
    rotations: u64,
}

// === impl MemStore ===

impl MemStore {
    /// An empty store.
    pub fn new() -> MemStore {
        MemStore::default()
    }

    /// Lets the next `count` commits fail.
    pub fn fail_next(&self, count: usize) {
        self.lock().fail_next = count;
    }

    /// Lets every commit fail, or no longer.
    pub fn set_failed(&self, is_failed: bool) {
        self.lock().is_failed = is_failed;
    }

    /// Lets the volume be full for all but what settles, or no longer.
    pub fn set_full(&self, is_full: bool) {
        self.lock().is_full = is_full;
    }

    /// Keeps commits from being synced, and so from being answered.
    pub fn hold(&self) {
        self.lock().is_holding = true;
    }

    /// Syncs and answers what was held, in order, and holds no more.
    pub fn release(&self) {
        let mut inner = self.lock();
        inner.is_holding = false;
        while let Some((batch, answer)) = inner.held.pop_front() {
            let _ = answer.send(inner.apply(batch));
        }
    }

    /// Makes the value under a key impossible to unseal.
    pub fn make_unreadable(&self, tree: Tree, key: &[u8]) {
        self.lock().unreadable.insert((tree, key.to_vec()));
    }

    /// All can be unsealed again.
    pub fn make_readable(&self) {
        self.lock().unreadable.clear();
    }

    /// The power goes: what was not answered is lost, this store is closed, and the new one has the rest.
    pub fn crash(&self) -> MemStore {
        let mut inner = self.lock();
        inner.is_closed = true;
        inner.held.clear();
        let durable = std::mem::take(&mut inner.durable);
        let unreadable = std::mem::take(&mut inner.unreadable);
        MemStore { inner: Arc::new(Mutex::new(Inner { durable, unreadable, ..Inner::default() })) }
    }

    /// Batches made durable.
    pub fn commits(&self) -> u64 {
        self.lock().commits
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MemStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemStore").field("values", &self.lock().durable.len()).finish_non_exhaustive()
    }
}

impl Inner {
    fn apply(&mut self, batch: Batch) -> Result<(), StoreError> {
        if let Err(error) = self.may_write(batch.is_settling) {
            self.refused += 1;
            return Err(error);
        }
        for change in batch.changes {
            let key = (change.tree, change.key);
            match change.value {
                Some(value) => self.durable.insert(key, value),
                None => self.durable.remove(&key),
            };
        }
        self.commits += 1;
        Ok(())
    }

    fn may_write(&mut self, is_settling: bool) -> Result<(), StoreError> {
        if self.is_closed {
            return Err(StoreError::Closed { path: path() });
        }
        if self.is_full && !is_settling {
            return Err(StoreError::NoSpace { path: path(), free: 0, needed: 1 });
        }
        if self.is_failed || self.fail_next > 0 {
            self.fail_next = self.fail_next.saturating_sub(1);
            return Err(StoreError::Failed { path: path(), reason: "a fault was set".into() });
        }
        Ok(())
    }

    fn found(&self, tree: Tree, key: &[u8], value: &[u8]) -> Found {
        if !self.unreadable.is_empty() && self.unreadable.contains(&(tree, key.to_vec())) {
            return Err(StoreError::Undecryptable { path: path(), tree, key: key.to_vec() });
        }
        Ok(value.to_vec())
    }
}

fn path() -> Arc<Path> {
    Arc::from(Path::new("memory"))
}

impl Store for MemStore {
    fn commit(&self, batch: Batch) -> BoxFuture<Result<(), StoreError>> {
        let mut inner = self.lock();
        let result = match batch.check() {
            Ok(()) if inner.is_holding && !inner.is_closed => {
                let (answer, answered) = oneshot::channel();
                inner.held.push_back((batch, answer));
                return Box::pin(async move {
                    answered.await.unwrap_or_else(|_| Err(StoreError::Unanswered { path: path() }))
                });
            }
            Ok(()) => inner.apply(batch),
            Err(error) => Err(error),
        };
        Box::pin(std::future::ready(result))
    }

    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let inner = self.lock();
        if inner.is_closed {
            return Err(StoreError::Closed { path: path() });
        }
        inner.durable.get(&(tree, key.to_vec())).map(|value| inner.found(tree, key, value)).transpose()
    }

    fn scan(
        &self,
        tree: Tree,
        prefix: &[u8],
        after: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], Found) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded((tree, after.to_vec())),
            _ => Bound::Included((tree, prefix.to_vec())),
        };
        let found: Vec<(Vec<u8>, Found)> = {
            let inner = self.lock();
            if inner.is_closed {
                return Err(StoreError::Closed { path: path() });
            }
            inner
                .durable
                .range((start, Bound::Unbounded))
                .take_while(|((found_in, key), _)| *found_in == tree && key.starts_with(prefix))
                .map(|((_, key), value)| (key.clone(), inner.found(tree, key, value)))
                .collect()
        };
        // Not under the lock: the visitor may use the store.
        for (key, value) in found {
            if visit(&key, value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn health(&self) -> Health {
        let inner = self.lock();
        let live_bytes = inner.durable.iter().map(|((_, key), value)| (key.len() + value.len()) as u64).sum();
        Health {
            writable: !(inner.is_failed || inner.is_full || inner.is_closed),
            failed: inner.is_failed.then(|| "a fault was set".to_owned()),
            low_space: inner.is_full,
            live_bytes,
            disk_bytes: live_bytes,
            epoch: 1 + inner.rotations,
            rotations: inner.rotations,
            batches: inner.commits,
            refused: inner.refused,
            waiting: inner.held.len() as u64,
            ..Health::default()
        }
    }

    fn rotate(&self) -> BoxFuture<Result<Rotation, StoreError>> {
        let mut inner = self.lock();
        let result = inner.may_write(true).map(|()| {
            inner.rotations += 1;
            Rotation { from: inner.rotations, to: inner.rotations + 1, disk_before: 0, disk_after: 0 }
        });
        Box::pin(std::future::ready(result))
    }

    fn close(&self) -> BoxFuture<()> {
        self.release();
        self.lock().is_closed = true;
        Box::pin(std::future::ready(()))
    }
}
