//! Objects out of pages: what was only ever seen in a list is served as an object in an outage.
//!
//! While all is well nothing is parsed: of a page that is kept, its key is put at the end of a short list of its
//! collection. When an outage asks for an object of which there is no copy, the pages of its collection are read, each
//! once, off the runtime's threads when they are long; what is remembered is which ids stand on which page. So however
//! many unknown ids an outage asks for, a page costs its reading once, and an id a search among numbers.
//!
//! After a start the pages of the process before are on disk only, and what is known of them does not tell which version
//! they were asked for in. So they are surveyed once, in the first outage that needs them, and one belongs to who would
//! have got the same key for its path: to who asks with the same `Flexport-Version`, `Accept` and `Accept-Language`.
//!
//! Invariants:
//! - A page is used for its own partition, version, language and base (`server.public_url`, upstream), and not when it
//!   was asked for with `expand`. All of them are compared, or in the name that is: a keyed hash of 64 bits, but for the
//!   partition, which is compared itself.
//! - All rules of stale copies hold for the page as if it were a copy of the object, refusals of either among them.
//! - What the upstream said not to be there (404, 410) after it had been asked for the page is not served out of it, nor
//!   what was deleted by hand by its path or id since. The former is not known any more after a restart.
//! - Bounded: [`PAGES`] of a collection, [`COLLECTIONS`], [`BYTES`] read of a collection, [`LEFT`] on disk.

pub(crate) mod page;

use super::Cache;
use super::answer::Why;
use super::disk::Listed;
use super::entry::{About, Confirmed, Entry};
use super::key::{Key, Places};
use super::policy::Refused;
use super::service::Read;
use super::tier::Unread;
use crate::flexport::routes::RouteTable;
use crate::http::headers::{FLEXPORT_VERSION, is_json};
use crate::ids::PartitionId;
use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_LANGUAGE, CONTENT_ENCODING, CONTENT_TYPE};
use http::{Method, StatusCode};
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// The pages that objects can be taken from.
pub(crate) struct Objects {
    shards: [Mutex<HashMap<u64, Collection, Places>>; SHARDS],
    uses: AtomicU64,
    /// Of each collection, what the process before left on disk. Empty until it was surveyed.
    left: Arc<Mutex<HashMap<u64, Left, Places>>>,
    /// Set with the first survey; closed at its end.
    surveyed: OnceLock<watch::Receiver<()>>,
    /// By collection, held by who reads pages: the next one finds them read.
    reading: [tokio::sync::Mutex<()>; SHARDS],
    hasher: RandomState,
}

/// An object that is asked for.
pub(crate) struct Wanted<'a> {
    collection: u64,
    variant: u64,
    id: &'a str,
    id_hash: u64,
    /// The path of its collection.
    template: &'a str,
}

/// An object on a page.
pub(crate) struct Found {
    pub(crate) page: Arc<Entry>,
    /// The page's `version`.
    pub(crate) version: Box<str>,
    /// The object, as it stands there.
    pub(crate) object: Bytes,
}

/// The pages of one collection of one partition, newest last.
#[derive(Default)]
struct Collection {
    pages: Vec<Page>,
    /// What the upstream said not to be there, and when.
    gone: HashMap<u64, Instant, Places>,
    /// Before that, something may have been said that is forgotten.
    gone_before: Option<Instant>,
    used: u64,
}

/// A page that was kept.
#[derive(Clone)]
struct Page {
    key: Key,
    variant: u64,
    about: Arc<About>,
    /// What stands on it, once that was needed.
    contents: Option<Arc<Contents>>,
}

/// Pages on disk, the newest first.
#[derive(Default)]
struct Left {
    pages: Arc<Vec<LeftPage>>,
    /// Those who looked for theirs.
    claimants: Vec<u64>,
}

struct LeftPage {
    key: Key,
    about: Arc<About>,
    age: u64,
}

/// What stands on a page.
struct Contents {
    of: Weak<Entry>,
    version: Box<str>,
    confirmed: Option<Confirmed>,
    bytes: usize,
    /// Hashes of ids, ascending, with where the object stands.
    objects: Vec<(u64, u32, u32)>,
}

const SHARDS: usize = 16;
/// Pages of one collection; the one that was kept the longest time ago goes first.
const PAGES: usize = 256;
/// Collections; the one that was not used for the longest time goes first.
const COLLECTIONS: usize = 1024;
/// Objects of a collection that are known not to be there.
const GONE: usize = 4096;
/// Pages on disk that are known.
const LEFT: usize = 16_384;
/// Kinds of requests that look for theirs among them, of one collection.
const CLAIMANTS: usize = 16;
/// Bytes that are read of a collection's pages.
const BYTES: usize = 16 << 20;
/// Keys that are made without a break for others.
const CHUNK: usize = 64;
/// How long an outage's request waits for pages to be found on disk and read.
const PATIENCE: Duration = Duration::from_secs(1);
/// What is read without leaving the thread.
const SHORT: usize = 256 << 10;

// === impl Objects ===

impl Objects {
    pub(crate) fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            uses: AtomicU64::new(0),
            left: Arc::default(),
            surveyed: OnceLock::new(),
            reading: std::array::from_fn(|_| tokio::sync::Mutex::default()),
            hasher: RandomState::new(),
        }
    }

    /// A page was kept. Called for every answer that is, so it is quick about those that are none.
    pub(crate) fn keep(&self, read: &Read, about: &Arc<About>) {
        let is_page = about.route.cache.as_ref().is_some_and(|policy| policy.holds_objects);
        if !is_page || read.uri.query().is_some_and(page::expands) {
            return;
        }
        let variant = self.variant(read);
        self.with(self.collection(about.partition, &about.route.template), |collection| {
            collection.keep(Page { key: read.key, variant, about: about.clone(), contents: None });
        });
    }

    /// The upstream said that something is not there. Of no use but for objects.
    pub(crate) fn lacks(&self, read: &Read, now: Instant) {
        let Some((template, id)) = object_of(read) else { return };
        let id_hash = self.hasher.hash_one(id);
        self.with(self.collection(read.partition, template), |collection| {
            if collection.gone.len() >= GONE {
                collection.gone.clear();
                collection.gone_before = Some(now);
            }
            collection.gone.insert(id_hash, now);
        });
    }

    /// The object that a read asks for, if it is one.
    fn wanted<'a>(&self, read: &'a Read) -> Option<Wanted<'a>> {
        let (template, id) = object_of(read)?;
        // What else it asks for is not known of the page.
        if read.uri.query().is_some_and(|query| !query.is_empty()) {
            return None;
        }
        Some(Wanted {
            collection: self.collection(read.partition, template),
            variant: self.variant(read),
            id,
            id_hash: self.hasher.hash_one(id),
            template,
        })
    }

    /// The pages on which it may stand, and up to when it was said not to be there.
    fn pages(&self, wanted: &Wanted<'_>) -> (Vec<Page>, Option<Instant>) {
        let shard = self.shard(wanted.collection);
        let Some(collection) = shard.get(&wanted.collection) else { return (Vec::new(), None) };
        let pages = collection.pages.iter().rev().filter(|page| page.variant == wanted.variant).cloned();
        let gone = collection.gone.get(&wanted.id_hash).copied().max(collection.gone_before);
        (pages.collect(), gone)
    }

    /// The pages on disk among which who asks as this read does has not looked for his yet, with the name of who asks.
    fn unclaimed(&self, read: &Read, wanted: &Wanted<'_>) -> Option<(u64, Arc<Vec<LeftPage>>)> {
        let left = self.left();
        let left = left.get(&wanted.collection)?;
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u64(wanted.variant);
        for line in read.headers.get_all(ACCEPT) {
            hasher.write(line.as_bytes());
            hasher.write_u8(0xff);
        }
        let claimant = hasher.finish();
        let is_over = left.claimants.contains(&claimant) || left.claimants.len() >= CLAIMANTS;
        (!is_over).then(|| (claimant, left.pages.clone()))
    }

    /// Takes over those that were asked for as this read asks. That makes the key of each, so it is done by one at a
    /// time, and in pieces.
    async fn claim(&self, read: &Read, wanted: &Wanted<'_>) {
        let Some((claimant, pages)) = self.unclaimed(read, wanted) else { return };
        let mut own = Vec::new();
        for some in pages.chunks(CHUNK) {
            own.extend(some.iter().filter(|page| read.key_of(&page.about.path) == page.key));
            tokio::task::yield_now().await;
        }
        self.with(wanted.collection, |collection| {
            // The newest first, so that they stand last.
            for LeftPage { key, about, .. } in own {
                if collection.pages.len() < PAGES && collection.pages.iter().all(|known| known.key != *key) {
                    let about = about.clone();
                    let page = Page { key: *key, variant: wanted.variant, about, contents: None };
                    collection.pages.insert(0, page);
                }
            }
        });
        if let Some(left) = self.left().get_mut(&wanted.collection) {
            left.claimants.push(claimant);
        }
    }

    fn learn(&self, wanted: &Wanted<'_>, pages: &[Page]) {
        let mut shard = self.shard(wanted.collection);
        let Some(collection) = shard.get_mut(&wanted.collection) else { return };
        for page in &mut collection.pages {
            if let Some(known) = pages.iter().find(|known| known.key == page.key) {
                page.contents.clone_from(&known.contents);
            }
        }
    }

    fn with(&self, name: u64, change: impl FnOnce(&mut Collection)) {
        let used = self.uses.fetch_add(1, Ordering::Relaxed);
        let mut shard = self.shard(name);
        if shard.len() >= COLLECTIONS / SHARDS && !shard.contains_key(&name) {
            let oldest = shard.iter().min_by_key(|(_, kept)| (!kept.pages.is_empty(), kept.used));
            if let Some(oldest) = oldest.map(|(name, _)| *name) {
                shard.remove(&oldest);
            }
        }
        let collection = shard.entry(name).or_default();
        collection.used = used;
        change(collection);
    }

    fn collection(&self, partition: PartitionId, template: &str) -> u64 {
        name_of(&self.hasher, partition, template)
    }

    /// What tells pages of the same URL apart.
    fn variant(&self, read: &Read) -> u64 {
        let config = &read.context.config;
        let mut hasher = self.hasher.build_hasher();
        for text in [config.settings.upstream.base_url.as_str(), &config.public_url] {
            hasher.write(text.as_bytes());
            hasher.write_u8(0xff);
        }
        for name in [FLEXPORT_VERSION, ACCEPT_LANGUAGE] {
            for line in read.headers.get_all(name) {
                hasher.write(line.as_bytes());
                hasher.write_u8(0xff);
            }
            hasher.write_u8(0xfe);
        }
        hasher.finish()
    }

    fn shard(&self, name: u64) -> MutexGuard<'_, HashMap<u64, Collection, Places>> {
        self.shards[shard_of(name)].lock().expect("no code panics with this lock held")
    }

    fn left(&self) -> MutexGuard<'_, HashMap<u64, Left, Places>> {
        self.left.lock().expect("no code panics with this lock held")
    }
}

// === impl Collection ===

impl Collection {
    fn keep(&mut self, page: Page) {
        // What is read over and over stands near the end.
        let last = self.pages.iter().rposition(|known| known.key == page.key);
        if let Some(at) = last {
            self.pages.remove(at);
        } else if self.pages.len() >= PAGES {
            self.pages.remove(0);
        }
        self.pages.push(page);
    }
}

// === impl Contents ===

impl Contents {
    /// Reads a page. Takes its time.
    fn of(page: &Arc<Entry>, hasher: &RandomState) -> Self {
        let mut contents = Self::none(Arc::downgrade(page));
        let is_plain = page.head.get(&CONTENT_ENCODING).is_none_or(|coding| coding == "identity");
        let is_whole = page.status == StatusCode::OK && is_plain && is_json(page.head.get(&CONTENT_TYPE));
        if let Some(read) = is_whole.then(|| page::read(&page.body)).flatten() {
            contents.version = read.version.into();
            contents.confirmed = Some(page.confirmed);
            contents.bytes = page.body.len();
            contents.objects = read
                .objects
                .into_iter()
                .filter_map(|(id, at)| {
                    let (start, end) = (u32::try_from(at.start).ok()?, u32::try_from(at.end).ok()?);
                    Some((hasher.hash_one(id), start, end))
                })
                .collect();
            contents.objects.sort_unstable();
        }
        contents
    }

    /// Of a page that is not looked at.
    fn none(of: Weak<Entry>) -> Self {
        Self { of, version: Box::default(), confirmed: None, bytes: 0, objects: Vec::new() }
    }

    fn is_of(&self, page: &Arc<Entry>) -> bool {
        std::ptr::eq(self.of.as_ptr(), Arc::as_ptr(page))
    }

    fn has(&self, id_hash: u64) -> bool {
        self.objects.binary_search_by_key(&id_hash, |object| object.0).is_ok()
    }

    /// The object of that id.
    fn object(&self, page: &Entry, wanted: &Wanted<'_>) -> Option<Bytes> {
        let first = self.objects.partition_point(|object| object.0 < wanted.id_hash);
        let same = self.objects[first..].iter().take_while(|object| object.0 == wanted.id_hash);
        same.map(|(_, start, end)| page.body.slice(*start as usize..*end as usize)).find(|object| {
            std::str::from_utf8(object).ok().and_then(page::id_of).is_some_and(|id| id == wanted.id)
        })
    }
}

// === impl Cache ===

impl Cache {
    /// The object that is asked for, on the newest page that holds it and may stand in. `Err`: none, or what forbade it.
    pub(crate) async fn on_a_page(&self, read: &Read, why: Why) -> Result<Found, Option<Refused>> {
        let is_on = read.context.route.cache.as_ref().is_some_and(|policy| policy.object_fallback);
        if !is_on || self.is_strict || read.ask.refuses_stale || self.is_refused(read) {
            return Err(None);
        }
        let wanted = self.objects.wanted(read).ok_or(None)?;
        let until = Instant::now() + PATIENCE;
        // What is not found or read in time is there for the next one.
        self.survey(read, until).await;
        let (mut pages, gone) = self.objects.pages(&wanted);
        if pages.iter().any(|page| !self.is_read(read, page))
            || self.objects.unclaimed(read, &wanted).is_some()
        {
            let reading = &self.objects.reading[shard_of(wanted.collection)];
            if let Ok(_one) = timeout_at(until, reading.lock()).await {
                self.objects.claim(read, &wanted).await;
                pages = self.objects.pages(&wanted).0;
                self.read_pages(read, &mut pages, until).await;
                self.objects.learn(&wanted, &pages);
            }
        }
        pages.retain(|page| page.contents.as_ref().is_some_and(|contents| contents.has(wanted.id_hash)));
        pages.sort_by_key(|page| {
            std::cmp::Reverse(
                page.contents.as_ref().and_then(|contents| contents.confirmed).map(|when| when.at),
            )
        });
        let token = || self.refusals.token(&read.context.identity().credential);
        let mut refused = None;
        for page in pages {
            let entry = match self.in_memory(read, &page) {
                Some(entry) => entry,
                None => match self.restore_of(&page.key, &page.about, read.asked(), until).await {
                    Ok(Some(entry)) => entry,
                    Ok(None) | Err(Unread) => continue,
                },
            };
            let is_same = entry.about.partition == read.partition
                && entry.about.route.template == wanted.template
                && gone.is_none_or(|gone| entry.asked_at > gone)
                && !self.marks.is_purged(read.partition, read.uri.path(), entry.began);
            // Again after the waits: a refusal may have come meanwhile.
            if !is_same || self.refusals.is_refused(read.partition, token, &page.key) || self.is_refused(read)
            {
                continue;
            }
            let contents = match page.contents {
                Some(contents) if contents.is_of(&entry) => contents,
                _ => Arc::new(Contents::of(&entry, &self.objects.hasher)),
            };
            let Some(object) = contents.object(&entry, &wanted) else { continue };
            match self.may_stand_in(read, &entry, why, &self.now()) {
                Ok(()) => return Ok(Found { page: entry, version: contents.version.clone(), object }),
                Err(reason) => refused = refused.or(Some(reason)),
            }
        }
        Err(refused)
    }

    /// Looks once for the pages that the process before left on disk. All copies on it are looked at, so that goes on
    /// whoever waits for it.
    async fn survey(&self, read: &Read, until: Instant) {
        let Some(disk) = self.disk.as_ref().filter(|disk| disk.is_on()) else { return };
        let start = || {
            let (at_end, end) = watch::channel(());
            let (disk, config) = (disk.clone(), read.context.config.clone());
            let (left, hasher) = (self.objects.left.clone(), self.objects.hasher.clone());
            self.tasks.spawn("cache-survey", async move {
                let found = disk.survey(move |pages, listed| look(&config.routes, pages, listed)).await;
                let found = by_collection(found, &hasher);
                *left.lock().expect("no code panics with this lock held") = found;
                drop(at_end);
            });
            end
        };
        let mut end = self.objects.surveyed.get_or_init(start).clone();
        // It ends with the sender.
        let _ = timeout_at(until, end.changed()).await;
    }

    fn in_memory(&self, read: &Read, page: &Page) -> Option<Arc<Entry>> {
        let variants = self.memory.peek(&page.key)?;
        variants.selected(read.asked()).cloned()
    }

    /// Whether it is known what stands on a page. What memory has lost since is still what it was.
    fn is_read(&self, read: &Read, page: &Page) -> bool {
        let Some(contents) = &page.contents else { return false };
        self.in_memory(read, page).is_none_or(|entry| contents.is_of(&entry))
    }

    /// Reads those that are not, the newest first, up to [`BYTES`] of all.
    async fn read_pages(&self, read: &Read, pages: &mut [Page], until: Instant) {
        let mut left = BYTES;
        let mut unread = Vec::new();
        let mut unread_bytes = 0;
        for (at, page) in pages.iter_mut().enumerate() {
            if self.is_read(read, page) {
                left = left.saturating_sub(page.contents.as_ref().map_or(0, |contents| contents.bytes));
                continue;
            }
            let entry = match self.in_memory(read, page) {
                Some(entry) => Some(entry),
                None if left == 0 => None,
                None => match self.restore_of(&page.key, &page.about, read.asked(), until).await {
                    Ok(entry) => entry,
                    // It is not known yet what stands on it.
                    Err(Unread) => continue,
                },
            };
            match entry {
                Some(entry) if entry.body.len() <= left => {
                    left -= entry.body.len();
                    unread_bytes += entry.body.len();
                    unread.push((at, entry));
                }
                entry => {
                    left = if entry.is_some() { 0 } else { left };
                    let of = entry.map_or_else(Weak::new, |entry| Arc::downgrade(&entry));
                    page.contents = Some(Arc::new(Contents::none(of)));
                }
            }
        }
        let hasher = self.objects.hasher.clone();
        let work = move || -> Vec<(usize, Contents)> {
            unread.iter().map(|(at, entry)| (*at, Contents::of(entry, &hasher))).collect()
        };
        let found = if unread_bytes <= SHORT {
            work()
        } else {
            tokio::task::spawn_blocking(work).await.unwrap_or_default()
        };
        for (at, contents) in found {
            pages[at].contents = Some(Arc::new(contents));
        }
    }
}

fn shard_of(name: u64) -> usize {
    (name >> 60) as usize % SHARDS
}

fn name_of(hasher: &RandomState, partition: PartitionId, template: &str) -> u64 {
    hasher.hash_one((partition.0, template))
}

/// Takes a copy on disk for a page, if it is one.
fn look(routes: &RouteTable, pages: &mut Vec<LeftPage>, listed: &Listed) {
    let (path, query) = listed.path.split_once('?').unwrap_or((&listed.path, ""));
    let route = routes.find(&Method::GET, path);
    let is_page = route.cache.as_ref().is_some_and(|policy| policy.holds_objects);
    if !is_page || page::expands(query) || listed.status != 200 {
        return;
    }
    pages.push(LeftPage {
        key: Key(listed.key),
        about: Arc::new(About {
            partition: listed.partition,
            path: listed.path.as_str().into(),
            route: route.clone(),
            base: listed.base,
        }),
        age: listed.age_seconds,
    });
    if pages.len() >= 2 * LEFT {
        newest(pages);
    }
}

fn by_collection(mut pages: Vec<LeftPage>, hasher: &RandomState) -> HashMap<u64, Left, Places> {
    newest(&mut pages);
    let mut found: HashMap<u64, Vec<LeftPage>> = HashMap::new();
    for page in pages {
        let name = name_of(hasher, page.about.partition, &page.about.route.template);
        found.entry(name).or_default().push(page);
    }
    let left = |pages| Left { pages: Arc::new(pages), claimants: Vec::new() };
    found.into_iter().map(|(name, pages)| (name, left(pages))).collect()
}

fn newest(pages: &mut Vec<LeftPage>) {
    pages.sort_by_key(|page| page.age);
    pages.truncate(LEFT);
}

/// Collection and id, when a read is one of an object.
fn object_of(read: &Read) -> Option<(&str, &str)> {
    let template = read.context.route.template.strip_suffix("/:id")?;
    let path = read.uri.path();
    let path = path.strip_suffix('/').unwrap_or(path);
    Some((template, path.strip_prefix(template)?.strip_prefix('/')?))
}
