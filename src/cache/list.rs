//! The copies as operators see them, of both tiers: a page of them in the order of their names.
//!
//! Nothing here is on the way of a request: memory is walked piece by piece, and the disk's index where it may block.
//! Memory's word counts where both tiers have a copy, since it is never the older one. Hits are counted for as long as
//! memory holds the key; what comes in the place of a copy goes on with its count, so with `ttl` 0, where each read
//! brings a new copy, the number is that of the resource.

use super::Cache;
use super::disk::record::Id;
use super::disk::{Listed, Which};
use super::entry::{Confirmed, Entry};
use super::key::Key;
use super::policy::{Ask, Facts, Use};
use crate::clock;
use crate::ids::PartitionId;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// Which copies, and from where on.
#[derive(Clone, Debug)]
pub struct Query {
    /// Only those that all of these mean.
    pub which: Vec<Which>,
    /// Only those in this state.
    pub freshness: Option<Freshness>,
    /// Only what comes after this name: 48 hexadecimal digits.
    pub after: Option<String>,
    /// At most so many.
    pub limit: usize,
}

/// What a read does with a copy while all is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Freshness {
    /// It is the answer.
    Fresh,
    /// Its time is over.
    Stale,
    /// It may be used only after the upstream was asked, whatever its time: a write or a purge made it out of date, or
    /// it says so itself (`no-cache`).
    Revalidate,
}

/// A copy in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Copy {
    /// Its name: for a purge by key, and for what comes after it.
    pub id: String,
    /// Path and query.
    pub path: String,
    /// The tag of its route.
    pub tag: String,
    /// Whose it is.
    pub partition: PartitionId,
    /// The status of the answer.
    pub status: u16,
    /// When the upstream last confirmed it.
    pub confirmed_at: String,
    /// Seconds since then.
    pub age_seconds: u64,
    /// Its state.
    pub freshness: Freshness,
    /// Seconds of freshness left; below zero, since when it has none.
    pub ttl_seconds: i64,
    /// How often it answered since memory has it. `None`: only the disk has it.
    pub hits: Option<u64>,
    /// Bytes on disk, or in memory when only that has it.
    pub bytes: u64,
    /// `memory`, `disk`, or `memory and disk`.
    pub tier: &'static str,
}

/// How long a list waits for the disk.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// What is said then.
pub(super) const SILENT: &str = "the cache's disk does not answer";

// === impl Freshness ===

impl Freshness {
    fn of(facts: &Facts, age: Duration, is_outdated: bool) -> Self {
        match facts.judge(age, is_outdated, &Ask::default()) {
            Use::Fresh => Self::Fresh,
            Use::Revalidate(_) if is_outdated || facts.no_cache => Self::Revalidate,
            Use::Revalidate(_) | Use::Tolerated | Use::WhileRevalidating => Self::Stale,
        }
    }
}

impl std::str::FromStr for Freshness {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fresh" => Ok(Self::Fresh),
            "stale" => Ok(Self::Stale),
            "revalidate" => Ok(Self::Revalidate),
            other => Err(format!("{other:?} is not one of fresh, stale, revalidate")),
        }
    }
}

// === impl Cache ===

impl Cache {
    /// Copies in the order of their names. An error is the disk's.
    pub async fn list(self: &Arc<Self>, query: Query) -> Result<Vec<Copy>, String> {
        let after = match query.after.as_deref().map(str::parse::<Id>) {
            None => None,
            Some(Ok(id)) => Some(id),
            Some(Err(())) => return Err("a name is 48 hexadecimal digits".to_owned()),
        };
        let now = self.now();
        let (this, wanted) = (self.clone(), query.clone());
        // Each copy costs a digest: not on a thread that answers callers.
        let look = move || {
            let in_memory = Arc::new(this.in_memory_after(after));
            let found: BTreeMap<Id, Copy> = in_memory
                .iter()
                .filter(|(_, (key, entry))| wanted.which.iter().all(|which| which.means_entry(key, entry)))
                .map(|(id, (_, entry))| (*id, this.copy_in_memory(*id, entry, &now)))
                .filter(|(_, copy)| wanted.freshness.is_none_or(|freshness| copy.freshness == freshness))
                .take(wanted.limit)
                .collect();
            (in_memory, found)
        };
        let looked = tokio::task::spawn_blocking(look).await;
        let (in_memory, mut found) = looked.map_err(|error| error.to_string())?;
        if let Some(disk) = &self.disk {
            let (this, known, wanted) = (self.clone(), in_memory.clone(), query.clone());
            let look = move |seen: &mut Vec<(Id, Copy)>, listed: &Listed, _: &dyn Fn() -> Option<Vec<u8>>| {
                let Ok(id) = listed.id.parse::<Id>() else { return true };
                let is_meant =
                    !known.contains_key(&id) && wanted.which.iter().all(|which| which.means(listed));
                if is_meant {
                    let copy = this.copy_on_disk(listed);
                    if wanted.freshness.is_none_or(|freshness| copy.freshness == freshness) {
                        seen.push((id, copy));
                    }
                }
                seen.len() < wanted.limit
            };
            let walked = timeout(PATIENCE, disk.walk(after, Vec::new(), look)).await;
            found.extend(walked.map_err(|_| SILENT.to_owned())?.unwrap_or_default());
        }
        Ok(found.into_values().take(query.limit).collect())
    }

    /// How many copies there are of each partition; what both tiers have counts once or twice.
    pub fn partitions(&self) -> HashMap<PartitionId, usize> {
        let mut found = self.disk.as_ref().map_or_else(HashMap::new, |disk| disk.partitions());
        for (_, entry) in self.memory.entries() {
            *found.entry(entry.about.partition).or_default() += 1;
        }
        found
    }

    /// What memory holds, by name.
    pub(super) fn in_memory_after(&self, after: Option<Id>) -> BTreeMap<Id, (Key, Arc<Entry>)> {
        self.memory
            .entries()
            .map(|(key, entry)| (Id::of(&key.0, entry.selecting()), (key, entry)))
            .filter(|(id, _)| after.is_none_or(|after| *id > after))
            .collect()
    }

    fn copy_in_memory(&self, id: Id, entry: &Entry, now: &Confirmed) -> Copy {
        let since = entry.confirmed.since(now);
        let age = entry.facts.age(since);
        let is_outdated =
            entry.confirmed.is_ahead_of(now) || self.marks.is_outdated(entry.names, entry.began);
        let freshness = Freshness::of(&entry.facts, age, is_outdated);
        let is_on_disk = self.disk.as_ref().is_some_and(|disk| disk.has_id(&id));
        Copy {
            id: id.to_string(),
            path: entry.about.path.to_string(),
            tag: entry.about.tag().to_owned(),
            partition: entry.about.partition,
            status: entry.status.as_u16(),
            confirmed_at: entry.confirmed.at.to_string(),
            age_seconds: since.as_secs(),
            freshness,
            ttl_seconds: ttl(&entry.facts, age, freshness),
            hits: Some(entry.hits()),
            bytes: entry.weight() as u64,
            tier: if is_on_disk { "memory and disk" } else { "memory" },
        }
    }

    fn copy_on_disk(&self, listed: &Listed) -> Copy {
        let since = clock::since(self.clock.now(), listed.at);
        let age = listed.facts.age(since);
        let freshness = Freshness::of(&listed.facts, age, self.is_listed_outdated(listed));
        Copy {
            id: listed.id.clone(),
            path: listed.path.clone(),
            tag: listed.tag.clone(),
            partition: listed.partition,
            status: listed.status,
            confirmed_at: listed.at.to_string(),
            age_seconds: since.as_secs(),
            freshness,
            ttl_seconds: ttl(&listed.facts, age, freshness),
            hits: None,
            bytes: listed.bytes,
            tier: "disk",
        }
    }

    /// Whether a copy on disk is out of date.
    pub(super) fn is_listed_outdated(&self, listed: &Listed) -> bool {
        let began = if listed.is_own { listed.began } else { self.marks.foreign(listed.began) };
        let names = self.marks.names(listed.partition, &listed.path, &listed.tag);
        listed.at > self.clock.now() || self.marks.is_outdated(names, began)
    }
}

/// As answers say it: what must be asked for first has no freshness left, whatever the clock says.
fn ttl(facts: &Facts, age: Duration, freshness: Freshness) -> i64 {
    let ttl = facts.ttl(age);
    if freshness == Freshness::Revalidate { ttl.min(-1) } else { ttl }
}
