//! The cache and its second tier: what goes to disk, what comes back, what is remembered of tokens.
//!
//! A copy that memory has lost is asked for on disk before the request goes upstream, so that its validators are not
//! lost: that costs nothing when there is none, since what is there is known from memory. While the disk is being
//! opened nobody waits for it but who would get an error otherwise.

use super::Cache;
use super::disk::{Disk, DiskOptions, OnDisk, Restored, Which};
use super::entry::{About, Asked, Confirmed, Entry};
use super::invalidate::{Marks, resource};
use super::key::{self, Key};
use super::ledger::{Found, Ledger};
use super::refusals::Refusals;
use super::service::Read;
use crate::clock::Clock;
use crate::ids::PartitionId;
use crate::task::Tasks;
use crate::telemetry::Metrics;
use http::StatusCode;
use serde::Serialize;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// What outlives the process: the copies on disk, and who may see them.
pub struct Tier {
    disk: DiskOptions,
    ledger: Option<(Ledger, Found)>,
    seed: [u64; 2],
}

/// What a purge did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Purged {
    /// Copies in memory.
    pub memory: usize,
    /// Copies on disk.
    pub disk: usize,
}

/// The parts of a cache that a tier gives.
pub(crate) struct Opened {
    pub(crate) disk: Option<Arc<Disk>>,
    pub(crate) ledger: Option<Ledger>,
    pub(crate) marks: Marks,
    pub(crate) refusals: Refusals,
}

/// It is not known what the disk has: it takes too long to answer, or copies were deleted meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unread;

/// How long a request that would fail waits for the disk to be opened.
const OPENING: Duration = Duration::from_secs(5);

/// How long a purge waits for the disk.
const PURGING: Duration = Duration::from_secs(30);
/// How long a request that may well be answered without it waits for the disk to be read.
const PATIENCE: Duration = Duration::from_millis(250);

/// Begins to open the disk.
pub(crate) fn start(tier: Option<Tier>, clock: Clock, metrics: &Metrics, tasks: &Tasks) -> Opened {
    let Some(Tier { disk, ledger, seed }) = tier else {
        let seed = [fastrand::u64(..), fastrand::u64(..)];
        return Opened {
            disk: None,
            ledger: None,
            marks: Marks::new(seed, None),
            refusals: Refusals::new(seed),
        };
    };
    let (ledger, found) = match ledger {
        Some((ledger, found)) => (Some(ledger), found),
        None => (None, Found::default()),
    };
    let marks = Marks::new(seed, ledger.clone());
    let now = u64::try_from(clock.now().as_microsecond()).unwrap_or_default();
    marks.restore(&found.facts, found.is_intact, now);
    let refusals = Refusals::new(seed);
    refusals.restore(&found.facts, found.is_intact, Instant::now());
    Opened { disk: Some(Disk::start(disk, ledger.clone(), clock, metrics, tasks)), ledger, marks, refusals }
}

// === impl Tier ===

impl Tier {
    /// Reads what is remembered of tokens and invalidations; the copies are opened later, in the background. Whatever
    /// goes wrong costs what is on disk and nothing else. Blocks.
    pub fn open(disk: DiskOptions) -> Self {
        let secret = disk.keys.hmac("cache names", b"");
        let half = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&secret[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let ledger = match Ledger::open(&disk.dir.join("ledger"), &disk.keys) {
            Ok(opened) => Some(opened),
            Err(error) => {
                tracing::warn!(error, "what is known of tokens will not outlive the process; all else works");
                None
            }
        };
        Self { ledger, seed: [half(0), half(8)], disk }
    }
}

impl std::fmt::Debug for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tier").finish_non_exhaustive()
    }
}

// === impl Cache ===

impl Cache {
    /// Keeps what is remembered on disk.
    pub(crate) fn run_ledger(self: &Arc<Self>) {
        let Some(ledger) = self.ledger.clone() else { return };
        let this = Arc::downgrade(self);
        let snapshot = move || {
            this.upgrade().map_or_else(Vec::new, |cache| {
                let mut facts = cache.refusals.facts();
                facts.extend(cache.marks.facts());
                facts
            })
        };
        self.tasks.spawn("cache-ledger", ledger.run(snapshot, self.tasks.cancelled()));
    }

    /// A copy is in memory and is to be on disk.
    pub(crate) fn persist(&self, key: Key, entry: &Arc<Entry>) {
        if let Some(disk) = &self.disk {
            disk.keep(key, entry);
        }
    }

    /// A copy is not to be served any more.
    pub(crate) fn forget(&self, key: &Key, entry: Option<&Arc<Entry>>) {
        if let Some(entry) = entry {
            self.memory.remove(key, entry);
        }
        if let Some(disk) = &self.disk {
            match entry {
                Some(entry) => disk.forget(key, entry),
                None => disk.forget_all(key),
            }
        }
    }

    /// Whether the disk has what memory has not.
    pub(crate) fn on_disk(&self, key: &Key) -> OnDisk {
        self.disk.as_ref().map_or(OnDisk::No, |disk| disk.has(key))
    }

    /// Waits until the disk is open, not longer than the request has.
    pub(crate) async fn opened(&self, deadline: Instant) {
        if let Some(disk) = &self.disk {
            let _ = timeout_at(deadline.min(Instant::now() + OPENING), disk.loaded()).await;
        }
    }

    /// Brings the variants of a read's key back to memory; gives the one that this request selects.
    pub(crate) async fn restore(&self, read: &Read) -> Result<Option<Arc<Entry>>, Unread> {
        let until = Instant::now() + PATIENCE;
        self.restore_of(&read.key, &Arc::new(read.about()), read.asked(), until).await
    }

    /// Brings the variants of a key back to memory; gives the one that a request with these fields selects.
    pub(crate) async fn restore_of(
        &self,
        key: &Key,
        about: &Arc<About>,
        asked: Asked<'_>,
        until: Instant,
    ) -> Result<Option<Arc<Entry>>, Unread> {
        let Some(disk) = self.disk.as_ref().filter(|disk| disk.has(key) == OnDisk::Maybe) else {
            return Ok(None);
        };
        let purges = self.purges.load(Ordering::Acquire);
        let found = timeout_at(until, disk.find(key)).await.map_err(|_| Unread)?;
        let present = || {
            let variants = self.memory.peek(key)?;
            variants.selected(asked).cloned()
        };
        // Another who waited for the same, or the upstream, was quicker.
        let mut selected = present();
        if selected.is_some() {
            return Ok(selected);
        }
        for restored in found.iter() {
            let entry = Arc::new(self.revived(about, restored));
            let selecting = Asked { headers: &restored.selecting, forwarded: None };
            self.refusals.keeps(about.partition);
            if !self.memory.put(*key, entry.clone(), selecting, || ()) {
                // What came from upstream meanwhile is newer.
                selected = present().or(selected);
                continue;
            }
            // Asked when it is there: who forgets it from now on finds it.
            let was_purged = self.purges.load(Ordering::Acquire) != purges;
            if was_purged || !disk.holds(restored) {
                self.memory.remove(key, &entry);
                if was_purged {
                    return Err(Unread);
                }
                continue;
            }
            if entry.is_selected_by(asked) {
                selected = Some(entry);
            }
        }
        let (keys, bytes) = self.memory.size();
        self.counters.size(keys, bytes);
        Ok(selected)
    }

    fn revived(&self, about: &Arc<About>, restored: &Restored) -> Entry {
        let now = Instant::now();
        self.newest.fetch_max(restored.at.as_second(), Ordering::Relaxed);
        Entry::new(
            restored.status,
            &restored.fields,
            restored.body.clone(),
            restored.facts.clone(),
            Confirmed { at: restored.at, monotonic: now },
            self.started,
            if restored.is_own { restored.began } else { self.marks.foreign(restored.began) },
            self.marks.names(about.partition, &about.path, about.tag()),
            about.clone(),
            Asked { headers: &restored.selecting, forwarded: None },
        )
    }

    /// Whether this token may be served what is not fresh: its own last success is not too long ago.
    pub(crate) fn is_proven(&self, read: &Read) -> bool {
        if self.is_strict {
            return true;
        }
        let token = self.refusals.token(&read.context.identity().credential);
        let window = *read.context.config.settings.cache.stale_auth_window;
        self.refusals.is_proven(read.partition, token, self.clock.now().as_second(), window)
    }

    /// Remembers what the upstream thinks of a token: a refusal is on disk when this ends.
    pub(crate) async fn note(
        &self,
        partition: PartitionId,
        token: u64,
        key: Option<&Key>,
        status: StatusCode,
        asked_at: Instant,
    ) {
        // What all callers share is theirs by the word of the origin (RFC 9111 §3.5), whatever became of one token.
        if self.is_strict {
            return;
        }
        match status.as_u16() {
            401 | 403 => {
                let key = key.filter(|_| status == StatusCode::FORBIDDEN);
                if status == StatusCode::FORBIDDEN && key.is_none() {
                    return;
                }
                let tell = |fact| self.ledger.as_ref().map(|ledger| ledger.push(fact));
                let number = self.refusals.refuse(partition, token, key, Instant::now(), tell).flatten();
                if let Some(ledger) = &self.ledger {
                    // What is known already may be on its way to the disk yet.
                    let known = || self.refusals.may_keep(partition).then(|| ledger.refused());
                    if let Some(number) = number.or_else(known) {
                        ledger.written(number).await;
                    }
                }
            }
            200..=299 | 304 => {
                let note = |fact| {
                    if let Some(ledger) = &self.ledger {
                        ledger.note(fact);
                    }
                };
                self.refusals.clear(partition, || token, key, asked_at, note);
                let fact = if self.refusals.is_shut_out(partition, token) {
                    None
                } else {
                    self.refusals.succeeded(partition, token, self.clock.now().as_second())
                };
                if let Some(fact) = fact {
                    note(fact);
                }
            }
            _ => {}
        }
    }

    /// Deletes copies, or marks them out of date (`is_soft`). What is deleted is off the disk when this ends; a fill
    /// that was under way is neither kept nor joined. With `is_dry` nothing happens but the count. An error is the
    /// disk's: what is in memory is deleted, or marked, all the same.
    pub async fn purge(&self, which: &Which, is_soft: bool, is_dry: bool) -> Result<Purged, String> {
        let is_hard = !is_dry && !is_soft;
        // First of all: what is being fetched or read must not bring back what is being deleted.
        if is_hard {
            self.purges.fetch_add(1, Ordering::AcqRel);
        }
        if !is_dry {
            self.marks.cut();
        }
        let meant = self.meant(which, is_hard);
        let on_disk = match &self.disk {
            Some(disk) => match timeout(PURGING, disk.purge(which.clone(), is_dry || is_soft)).await {
                Ok(listed) => listed,
                Err(_) => {
                    Err("the cache's disk does not answer; all is done but what is only there".to_owned())
                }
            },
            None => Ok(Vec::new()),
        };
        let (on_disk, mut failed) = match on_disk {
            Ok(listed) => (listed, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        let purged = Purged { memory: meant.len(), disk: on_disk.len() };
        let in_memory = meant.iter().map(|(_, entry)| &*entry.about);
        let in_memory = in_memory.map(|about| (about.partition, &*about.path));
        let all = in_memory.chain(on_disk.iter().map(|listed| (listed.partition, &*listed.path)));
        if is_hard {
            // What came back from disk between the two looks.
            self.meant(which, true);
            let is_recorded = match which {
                Which::Path(path) => self.marks.purged(None, path).await,
                Which::Id(_) => match all.last() {
                    Some((partition, path)) => self.marks.purged(Some(partition), path).await,
                    None => true,
                },
                // Pages go along with these, or are not what is meant.
                Which::Tag(_) | Which::Partition(_) | Which::All | Which::Prefix(_) => true,
            };
            if !is_recorded {
                let why =
                    "it is deleted, and after a restart may be served out of an older page of its collection";
                failed.get_or_insert_with(|| why.to_owned());
            }
        } else if is_soft && !is_dry {
            match which {
                Which::All => {
                    self.marks.all();
                    // That is known of all there is on disk too.
                    failed = None;
                }
                Which::Tag(tag) => {
                    for partition in all.map(|(partition, _)| partition).collect::<HashSet<_>>() {
                        self.marks.tag(partition, tag);
                    }
                }
                _ => {
                    let resources = all.map(|(partition, path)| (partition, resource(path)));
                    for (partition, path) in resources.collect::<HashSet<_>>() {
                        self.marks.path(partition, path);
                    }
                }
            }
        }
        failed.map_or(Ok(purged), Err)
    }

    /// The copies in memory that are meant; with `is_hard` they are deleted.
    fn meant(&self, which: &Which, is_hard: bool) -> Vec<(Key, Arc<Entry>)> {
        let entries = self.memory.entries();
        let meant: Vec<_> = entries.filter(|(key, entry)| which.means_entry(key, entry)).collect();
        if is_hard && *which == Which::All {
            self.memory.clear();
        } else if is_hard {
            for (key, entry) in &meant {
                self.memory.remove(key, entry);
            }
        }
        meant
    }

    /// Waits until what was kept so far is on disk.
    #[cfg(test)]
    pub(crate) async fn flush(&self) {
        if let Some(disk) = &self.disk {
            disk.flush().await;
        }
    }
}

// === impl Read ===

impl Read {
    /// What its answer is a copy of.
    pub(crate) fn about(&self) -> About {
        let target = self.uri.path_and_query().map_or("/", |target| target.as_str());
        let config = &self.context.config;
        About {
            partition: self.partition,
            path: target.into(),
            route: self.context.route.clone(),
            base: key::base(&config.settings.upstream.base_url, &config.public_url),
        }
    }
}
