//! What must outlive the process besides the copies: who was refused, who succeeded last, and what is out of date.
//!
//! Without it a restart would serve a revoked key. So a refusal is on disk before it is answered, and a purge too
//! ([`Ledger::written`]); all else is written behind ([`Ledger::note`]), within a second, and before any copy is
//! that was kept after it ([`Ledger::caught_up`]): a copy never lies on disk without the success that lets it be served.
//!
//! One file, `<data_dir>/cache/ledger/log`, of small facts, each sealed and bound to its number, so that none can be
//! changed, moved or taken out of the middle. It is written anew from what is in memory when it has grown, and at each
//! start.
//!
//! Failure: a last fact that is incomplete was never said to be on disk, and means nothing. A file that is damaged is
//! read as far as it can be; then nobody's success counts any more ([`Found::is_intact`]), so nobody is served from
//! copies before Flexport has answered him again. A file of a newer version is left alone. A disk that cannot be written
//! costs the memory over a restart: it is said in the log, and nobody waits longer than [`PATIENCE`] for it.

use super::key::Key;
use crate::ids::PartitionId;
use crate::store::{Keys, Seals, fs};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Something to remember.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fact {
    /// This token was refused: a key, or altogether.
    Refused { partition: PartitionId, token: u64, key: Option<Key> },
    /// And is not any more.
    Cleared { partition: PartitionId, token: u64, key: Option<Key> },
    /// This token succeeded last then, in Unix seconds.
    Succeeded { partition: PartitionId, token: u64, at: i64 },
    /// Copies of this name that began before are out of date.
    Mark { name: u64, number: u64 },
    /// All that began before are.
    Floor { number: u64 },
    /// Of all that began before, something may have been deleted by hand.
    PurgedFloor { number: u64 },
}

/// What a start found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) facts: Vec<Fact>,
    /// Whether nothing that was recorded can be missing.
    pub(crate) is_intact: bool,
}

/// The ledger. Clones share it.
#[derive(Clone)]
pub(crate) struct Ledger(Arc<Shared>);

struct Shared {
    dir: PathBuf,
    seals: Seals,
    waiting: Mutex<Waiting>,
    has_some: Notify,
    is_urgent: Notify,
    /// How many facts are on disk, of those that were handed in.
    done: watch::Sender<Done>,
}

#[derive(Default)]
struct Waiting {
    facts: Vec<Fact>,
    /// All that were handed in so far.
    count: u64,
    /// The last refusal among them.
    refused: u64,
    /// Some were not taken: all is to be written anew.
    has_overflowed: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Done {
    count: u64,
    has_failed: bool,
    /// Nothing more is written.
    has_ended: bool,
}

/// The file, and how far it is written.
struct Writer {
    file: Option<File>,
    number: u64,
    bytes: u64,
    /// Its size when it was written anew.
    fresh: u64,
}

const MAGIC: &[u8; 4] = b"SWL1";
const TREE: u8 = b'l';
/// The lengths that a fact can have.
const LENGTHS: [usize; 5] = [9, 17, 25, 33, 57];
/// Facts that wait to be written, at most.
const MOST: usize = 65_536;
/// How long facts that nobody waits for are gathered.
const GATHER: Duration = Duration::from_millis(500);
/// How long an answer waits for its refusal to be on disk.
const PATIENCE: Duration = Duration::from_secs(5);
/// Below this size it is not written anew.
const SMALL: u64 = 1 << 20;
/// How long a disk that could not be written is left alone.
const REST: Duration = Duration::from_secs(5);

// === impl Fact ===

impl Fact {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        let mut whose = |kind: u8, partition: &PartitionId, token: u64| {
            bytes.push(kind);
            bytes.extend_from_slice(&partition.0);
            bytes.extend_from_slice(&token.to_le_bytes());
        };
        match self {
            Self::Refused { partition, token, key } => {
                whose(1, partition, *token);
                bytes.extend(key.iter().flat_map(|key| key.0));
            }
            Self::Cleared { partition, token, key } => {
                whose(2, partition, *token);
                bytes.extend(key.iter().flat_map(|key| key.0));
            }
            Self::Succeeded { partition, token, at } => {
                whose(3, partition, *token);
                bytes.extend_from_slice(&at.to_le_bytes());
            }
            Self::Mark { name, number } => {
                bytes.push(4);
                bytes.extend_from_slice(&name.to_le_bytes());
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            Self::Floor { number } => {
                bytes.push(5);
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            Self::PurgedFloor { number } => {
                bytes.push(6);
                bytes.extend_from_slice(&number.to_le_bytes());
            }
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        if matches!(kind, 4..=6) {
            let (first, rest) = rest.split_first_chunk::<8>()?;
            let first = u64::from_le_bytes(*first);
            return Some(match (kind, rest) {
                (5, []) => Self::Floor { number: first },
                (6, []) => Self::PurgedFloor { number: first },
                (4, rest) => Self::Mark { name: first, number: u64::from_le_bytes(rest.try_into().ok()?) },
                _ => return None,
            });
        }
        let (partition, rest) = rest.split_first_chunk::<16>()?;
        let (token, rest) = rest.split_first_chunk::<8>()?;
        let (partition, token) = (PartitionId(*partition), u64::from_le_bytes(*token));
        let key = || if rest.is_empty() { Some(None) } else { Some(Some(Key(rest.try_into().ok()?))) };
        Some(match kind {
            1 => Self::Refused { partition, token, key: key()? },
            2 => Self::Cleared { partition, token, key: key()? },
            3 => Self::Succeeded { partition, token, at: i64::from_le_bytes(rest.try_into().ok()?) },
            _ => return None,
        })
    }
}

// === impl Ledger ===

impl Ledger {
    /// Opens the ledger in `dir` and reads it. Blocks. An error: there is none, for this reason.
    pub(crate) fn open(dir: &Path, keys: &Keys) -> Result<(Self, Found), String> {
        let path = dir.join("log");
        let text = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        std::fs::create_dir_all(dir).map_err(|error| text(&error))?;
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(text(&error)),
        };
        if let Some([b'S', b'W', b'L', version, ..]) = bytes.as_deref()
            && *version > MAGIC[3]
            && version.is_ascii_digit()
        {
            return Err(text(&"it is of a newer version, and is left alone"));
        }
        let seals = Seals::open(dir, keys).map_err(|error| text(&error))?;
        let found = bytes.map_or_else(Found::default, |bytes| read(&bytes, &seals));
        let ledger = Self(Arc::new(Shared {
            dir: dir.to_owned(),
            seals,
            waiting: Mutex::default(),
            has_some: Notify::new(),
            is_urgent: Notify::new(),
            done: watch::Sender::default(),
        }));
        Ok((ledger, found))
    }

    /// To be remembered soon. Never waits. Its number is what to wait for.
    pub(crate) fn note(&self, fact: Fact) -> u64 {
        let number = self.push(fact);
        self.0.has_some.notify_one();
        number
    }

    /// Waits until what has this number, and all before it, is on disk; or cannot be, which it tells.
    pub(crate) async fn written(&self, number: u64) -> bool {
        let is_written = self.on_disk(number).await;
        if !is_written {
            tracing::error!("a refusal or a purge could not be put on disk: a restart would not know of it");
        }
        is_written
    }

    async fn on_disk(&self, number: u64) -> bool {
        let mut done = self.0.done.subscribe();
        let is_over = |done: &Done| done.count >= number || done.has_ended;
        let is_well = |done: &Done| done.count >= number && !done.has_failed;
        if is_over(&done.borrow()) {
            return is_well(&done.borrow());
        }
        self.0.is_urgent.notify_one();
        self.0.has_some.notify_one();
        matches!(timeout(PATIENCE, done.wait_for(is_over)).await, Ok(Ok(done)) if is_well(&done))
    }

    /// Waits until all that was noted so far is on disk. When it cannot be, whoever waits goes on: what lacks its fact
    /// after a restart is not served.
    pub(crate) async fn caught_up(&self) {
        let number = self.waiting().count;
        self.on_disk(number).await;
    }

    /// Takes a fact; its number is what to wait for.
    pub(crate) fn push(&self, fact: Fact) -> u64 {
        let mut waiting = self.waiting();
        if waiting.facts.len() < MOST {
            waiting.facts.push(fact);
        } else {
            waiting.has_overflowed = true;
        }
        waiting.count += 1;
        if matches!(fact, Fact::Refused { .. }) {
            waiting.refused = waiting.count;
        }
        waiting.count
    }

    /// The number of the last refusal.
    pub(crate) fn refused(&self) -> u64 {
        self.waiting().refused
    }

    /// Writes what is handed in, until it is cancelled. `snapshot` gives all that is to be remembered.
    pub(crate) async fn run<S>(self, snapshot: S, cancel: CancellationToken)
    where
        S: Fn() -> Vec<Fact> + Send + Sync + 'static,
    {
        self.write(snapshot, cancel).await;
        self.0.done.send_modify(|done| done.has_ended = true);
    }

    async fn write<S>(&self, snapshot: S, cancel: CancellationToken)
    where
        S: Fn() -> Vec<Fact> + Send + Sync + 'static,
    {
        let snapshot = Arc::new(snapshot);
        let mut writer = Writer { file: None, number: 0, bytes: 0, fresh: 0 };
        let mut must_renew = true;
        loop {
            let is_last = cancel.is_cancelled();
            let (facts, count, has_overflowed) = {
                let mut waiting = self.waiting();
                let Waiting { facts, count, has_overflowed, .. } = &mut *waiting;
                (std::mem::take(facts), *count, std::mem::take(has_overflowed))
            };
            must_renew |= has_overflowed || writer.bytes > SMALL.max(2 * writer.fresh);
            if must_renew || !facts.is_empty() {
                let (this, snapshot) = (self.clone(), snapshot.clone());
                let work = move || {
                    let mut writer = writer;
                    let result = if must_renew {
                        this.renew(&mut writer, &snapshot())
                    } else {
                        this.append(&mut writer, &facts)
                    };
                    (writer, result)
                };
                let Ok((back, result)) = tokio::task::spawn_blocking(work).await else { return };
                writer = back;
                // What was not written is in memory: the next time all of it is written.
                must_renew = result.is_err();
                self.0.done.send_replace(Done { count, has_failed: must_renew, has_ended: false });
                if let Err(error) = result {
                    tracing::error!(
                        path = %self.0.dir.display(), %error,
                        "refusals and purges cannot be put on disk: a restart would not know of them"
                    );
                    if !is_last {
                        tokio::select! { () = cancel.cancelled() => {}, () = sleep(REST) => {} }
                    }
                }
            }
            if is_last {
                return;
            }
            if must_renew {
                continue;
            }
            tokio::select! { () = cancel.cancelled() => continue, () = self.0.has_some.notified() => {} }
            tokio::select! {
                () = cancel.cancelled() => {},
                () = self.0.is_urgent.notified() => {},
                () = sleep(GATHER) => {},
            }
        }
    }

    fn append(&self, writer: &mut Writer, facts: &[Fact]) -> io::Result<()> {
        let bytes = self.sealed(facts, &mut writer.number)?;
        let file = writer.file.as_mut().ok_or_else(|| io::Error::other("it is not open"))?;
        if let Err(error) = file.write_all(&bytes).and_then(|()| file.sync_data()) {
            // Nobody was told that it is there.
            let _ = file.set_len(writer.bytes);
            return Err(error);
        }
        writer.bytes += bytes.len() as u64;
        Ok(())
    }

    /// All of it, in place of what is there.
    fn renew(&self, writer: &mut Writer, facts: &[Fact]) -> io::Result<()> {
        let path = self.0.dir.join("log");
        let mut number = 0;
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.sealed(facts, &mut number)?);
        std::fs::create_dir_all(&self.0.dir)?;
        fs::durable_write_private(&path, &bytes)?;
        let file = File::options().append(true).open(&path)?;
        *writer = Writer { file: Some(file), number, bytes: bytes.len() as u64, fresh: bytes.len() as u64 };
        Ok(())
    }

    fn sealed(&self, facts: &[Fact], number: &mut u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(facts.len() * 100);
        for fact in facts {
            let sealed = self.0.seals.seal(TREE, &number.to_le_bytes(), &fact.encode());
            let sealed = sealed.ok_or_else(|| io::Error::other("the system gives no random numbers"))?;
            bytes.push(u8::try_from(sealed.len()).expect("a fact is short"));
            bytes.extend_from_slice(&sealed);
            *number += 1;
        }
        Ok(bytes)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(bytes: &[u8], seals: &Seals) -> Found {
    let mut found = Found::default();
    let Some(mut rest) = bytes.strip_prefix(MAGIC) else { return found };
    while let Some((length, after)) = rest.split_first() {
        let plain = usize::from(*length).checked_sub(Seals::OVERHEAD);
        if after.len() < usize::from(*length) && plain.is_some_and(|plain| LENGTHS.contains(&plain)) {
            // A kill while it was written: nobody was told that it is there.
            break;
        }
        let number = found.facts.len() as u64;
        let fact = after
            .split_at_checked(usize::from(*length))
            .and_then(|(sealed, after)| Some((seals.unseal(TREE, &number.to_le_bytes(), sealed)?, after)))
            .and_then(|(plain, after)| Some((Fact::decode(&plain)?, after)));
        let Some((fact, after)) = fact else { return found };
        found.facts.push(fact);
        rest = after;
    }
    found.is_intact = true;
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PartitionId = PartitionId([1; 16]);

    fn facts() -> Vec<Fact> {
        vec![
            Fact::Refused { partition: A, token: 7, key: None },
            Fact::Refused { partition: A, token: 8, key: Some(Key([9; 32])) },
            Fact::Cleared { partition: A, token: 7, key: None },
            Fact::Succeeded { partition: A, token: 7, at: -5 },
            Fact::Mark { name: 3, number: u64::MAX },
            Fact::Floor { number: 2 },
            Fact::PurgedFloor { number: 1 },
        ]
    }

    fn keys() -> Keys {
        Keys::from_bytes([1; 32], [2; 32])
    }

    #[tokio::test]
    async fn what_was_recorded_is_there_when_it_was_answered() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, found) = Ledger::open(dir.path(), &keys()).unwrap();
        assert!(!found.is_intact && found.facts.is_empty(), "a new one knows nothing");
        let cancel = CancellationToken::new();
        let task = tokio::spawn(ledger.clone().run(Vec::new, cancel.clone()));
        for fact in facts() {
            assert!(ledger.written(ledger.push(fact)).await);
        }
        // As a kill would leave it.
        let found = Ledger::open(dir.path(), &keys()).unwrap().1;
        // The first may have been written by the renewal at the start, which asks for all that is remembered.
        assert!(found.is_intact && facts().ends_with(&found.facts) && found.facts.len() >= 6, "{found:?}");
        ledger.note(Fact::Floor { number: 5 });
        cancel.cancel();
        task.await.unwrap();
        let found = Ledger::open(dir.path(), &keys()).unwrap().1;
        assert_eq!(found.facts.last(), Some(&Fact::Floor { number: 5 }));
    }

    #[tokio::test]
    async fn damage_is_noticed_and_a_newer_version_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _) = Ledger::open(dir.path(), &keys()).unwrap();
        let cancel = CancellationToken::new();
        cancel.cancel();
        ledger.run(facts, cancel).await;
        let path = dir.path().join("log");
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(Ledger::open(dir.path(), &keys()).unwrap().1.facts, facts());
        for at in 4..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            std::fs::write(&path, &bytes).unwrap();
            let found = Ledger::open(dir.path(), &keys()).unwrap().1;
            assert!(!found.is_intact && facts().starts_with(&found.facts), "byte {at}");
        }
        // A kill in the middle of a write takes nothing from anybody.
        for left in 1..20 {
            std::fs::write(&path, &whole[..whole.len() - left]).unwrap();
            let found = Ledger::open(dir.path(), &keys()).unwrap().1;
            assert!(found.is_intact && found.facts == facts()[..6], "{left}");
        }
        assert!(facts().iter().all(|fact| LENGTHS.contains(&fact.encode().len())));
        std::fs::write(&path, b"SWL2 and more").unwrap();
        assert!(Ledger::open(dir.path(), &keys()).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"SWL2 and more");
    }

    #[tokio::test]
    async fn it_does_not_grow_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _) = Ledger::open(dir.path(), &keys()).unwrap();
        let cancel = CancellationToken::new();
        let task = tokio::spawn(ledger.clone().run(facts, cancel.clone()));
        for round in 0..5u64 {
            for number in 0..20_000 {
                ledger.note(Fact::Mark { name: number, number: round });
            }
            assert!(ledger.written(ledger.push(Fact::Floor { number: round })).await);
        }
        cancel.cancel();
        task.await.unwrap();
        let bytes = std::fs::metadata(dir.path().join("log")).unwrap().len();
        assert!(bytes < 3 * SMALL, "{bytes}");
    }
}
