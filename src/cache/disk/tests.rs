use super::super::entry::{Asked, Confirmed};
use super::super::invalidate::{Marks, Moment};
use super::*;
use crate::flexport::routes::{RoutePolicy, built_in};
use crate::store::{DataLock, Step};
use http::HeaderValue;
use http::header::{ACCEPT_LANGUAGE, CONTENT_TYPE, ETAG, HeaderName, VARY};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicBool;

const KIB: usize = 1024;
static KEYED: [HeaderName; 1] = [ACCEPT_LANGUAGE];

/// A volume whose free space and writes a test decides on.
#[derive(Default)]
struct Volume {
    free: AtomicU64,
    is_failing: AtomicBool,
}

impl Io for Volume {
    fn at(&self, step: Step, _: &Path) -> io::Result<()> {
        if step == Step::Write && self.is_failing.load(Ordering::Relaxed) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        Ok(())
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        fs::metadata(path)?;
        Ok(self.free.load(Ordering::Relaxed))
    }
}

struct World {
    dir: tempfile::TempDir,
    volume: Arc<Volume>,
    max: u64,
    secret: u8,
    clock: Clock,
}

struct Tier {
    disk: Arc<Disk>,
    tasks: Tasks,
    clock: Clock,
}

fn world(max: u64) -> World {
    let volume = Arc::new(Volume::default());
    volume.free.store(1 << 40, Ordering::Relaxed);
    let clock = Clock::anchored(Timestamp::from_second(1_800_000_000).unwrap());
    World { dir: tempfile::tempdir().unwrap(), volume, max, secret: 1, clock }
}

impl World {
    fn options(&self) -> DiskOptions {
        DiskOptions {
            dir: self.dir.path().join("cache"),
            max: self.max,
            reserve: 1 << 30,
            keys: Arc::new(Keys::from_bytes([self.secret; 32], [2; 32])),
            io: self.volume.clone(),
        }
    }

    async fn start(&self) -> Tier {
        let tasks = Tasks::new();
        let disk = Disk::start(self.options(), None, self.clock, &Metrics::new(), &tasks);
        disk.loaded().await;
        Tier { disk, tasks, clock: self.clock }
    }

    fn files(&self) -> Vec<std::path::PathBuf> {
        let mut files: Vec<_> = fs::read_dir(self.dir.path().join("cache"))
            .unwrap()
            .map(|file| file.unwrap().path())
            .filter(|path| path.extension().is_some_and(|end| end == "log"))
            .collect();
        files.sort();
        files
    }

    fn bytes(&self) -> u64 {
        self.files().iter().map(|path| fs::metadata(path).unwrap().len()).sum()
    }
}

fn route(tag: &str) -> Arc<RoutePolicy> {
    let has_tag =
        |row: &RoutePolicy| row.cache.as_ref().is_some_and(|cache| format!("/{}", cache.tag) == tag);
    Arc::new(built_in().into_iter().find(has_tag).unwrap())
}

fn key(number: u32) -> Key {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &number.to_le_bytes());
    Key(digest.as_ref().try_into().unwrap())
}

fn body(number: u32, length: usize) -> Vec<u8> {
    let mut body = vec![0; length];
    fastrand::Rng::with_seed(u64::from(number)).fill(&mut body);
    body
}

impl Tier {
    fn kept(&self, number: u32, body: Vec<u8>, fields: &[(HeaderName, &'static str)]) -> Kept {
        self.kept_at(number, body, fields, 1)
    }

    fn kept_at(&self, number: u32, body: Vec<u8>, fields: &[(HeaderName, &'static str)], began: u64) -> Kept {
        let mut head = HeaderMap::new();
        head.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (name, value) in fields {
            head.insert(name.clone(), HeaderValue::from_static(value));
        }
        let facts = Facts { lifetime: Duration::from_secs(60), is_explicit: true, ..Facts::default() };
        let mut asked = HeaderMap::new();
        asked.insert(ACCEPT_LANGUAGE, HeaderValue::from_static("de"));
        let marks = Marks::new([1, 2], None);
        let path = if number.is_multiple_of(3) { "/bookings" } else { "/shipments" };
        let about = About {
            base: 0,
            partition: PartitionId([u8::try_from(number % 2).unwrap(); 16]),
            path: format!("/shipments/{number}?page=1").into(),
            route: route(path),
        };
        let entry = Entry::new(
            StatusCode::OK,
            &head,
            Bytes::from(body),
            facts,
            Confirmed { at: self.clock.now(), monotonic: Instant::now() },
            Instant::now(),
            Moment::of(began),
            marks.names(PartitionId([1; 16]), "/", ""),
            Arc::new(about),
            Asked { headers: &asked, forwarded: Some(&KEYED) },
        );
        Kept { key: key(number), entry: Arc::new(entry) }
    }

    fn put(&self, kept: &Kept) {
        self.disk.keep(kept.key, &kept.entry);
    }

    fn keep(&self, number: u32, body: Vec<u8>) {
        self.put(&self.kept(number, body, &[]));
    }

    async fn one(&self, number: u32) -> Option<Restored> {
        let found = self.disk.find(&key(number)).await;
        assert!(found.len() <= 1);
        found.first().cloned()
    }

    /// As the end of the process does: what waits is written.
    async fn stop(self) {
        assert!(self.tasks.stop(Duration::from_secs(60)).await);
    }

    fn dropped(&self, reason: &str) -> u64 {
        self.disk.stats().dropped[reason]
    }
}

#[tokio::test]
async fn what_was_kept_is_there_after_a_start_as_it_was_and_not_fresh() {
    let world = world(64 << 20);
    let tier = world.start().await;
    let fields = [(ETAG, "\"1\""), (VARY, "accept-language, x-other")];
    tier.put(&tier.kept(1, body(1, 40 * KIB), &fields));
    tier.disk.flush().await;
    let own = tier.one(1).await.unwrap();
    assert_eq!(own.facts.lifetime.as_secs(), 60, "this process wrote it");
    let at = own.at;
    tier.stop().await;

    let tier = world.start().await;
    assert!(tier.disk.has(&key(1)) == OnDisk::Maybe && tier.disk.has(&key(2)) == OnDisk::No);
    let restored = tier.one(1).await.unwrap();
    assert_eq!((restored.status, &restored.body[..]), (StatusCode::OK, &body(1, 40 * KIB)[..]));
    assert_eq!((restored.at, restored.began), (at, Moment::of(1)));
    assert_eq!(restored.facts.lifetime, Duration::ZERO);
    assert_eq!(restored.fields["etag"], "\"1\"");
    assert!(!restored.fields.contains_key("seawall-source") && !restored.fields.contains_key("age"));
    assert_eq!(restored.selecting[ACCEPT_LANGUAGE], "de");
    assert_eq!(tier.disk.stats().hits, 1);
    assert!(tier.one(2).await.is_none());
    tier.disk.forget(&key(1), &tier.kept(1, Vec::new(), &fields).entry);
    tier.disk.flush().await;
    assert!(tier.one(1).await.is_none());
    tier.stop().await;
    assert!(world.start().await.disk.has(&key(1)) == OnDisk::No, "a deletion outlives a start");
}

#[tokio::test]
async fn variants_of_a_key_are_kept_apart() {
    let world = world(64 << 20);
    let tier = world.start().await;
    tier.put(&tier.kept(1, b"plain".to_vec(), &[]));
    tier.put(&tier.kept(1, b"german".to_vec(), &[(VARY, "accept-language")]));
    tier.disk.flush().await;
    let mut bodies: Vec<_> = tier.disk.find(&key(1)).await.iter().map(|found| found.body.clone()).collect();
    bodies.sort();
    assert_eq!(bodies, ["german", "plain"]);
    tier.stop().await;
}

#[tokio::test]
async fn a_key_is_read_once_however_many_ask() {
    let world = world(64 << 20);
    let tier = world.start().await;
    tier.keep(1, body(1, 40 * KIB));
    tier.disk.flush().await;
    let stalled = tier.disk.stall();
    let asking: Vec<_> = (0..100)
        .map(|_| {
            let disk = tier.disk.clone();
            tokio::spawn(async move { disk.find(&key(1)).await.len() })
        })
        .collect();
    let waiting = || lock(&tier.disk.finds).get(&key(1)).map_or(0, Weak::strong_count);
    while waiting() < 100 {
        tokio::task::yield_now().await;
    }
    // Those who leave end nothing for the others.
    asking[0].abort();
    drop(stalled);
    for (number, asking) in asking.into_iter().enumerate() {
        assert!(number == 0 || asking.await.unwrap() == 1);
    }
    assert_eq!(tier.disk.stats().hits, 1);
    assert!(lock(&tier.disk.finds).is_empty());
    tier.stop().await;
}

#[tokio::test]
async fn what_was_forgotten_is_not_given_any_more_before_that_is_written() {
    let world = world(64 << 20);
    let tier = world.start().await;
    let first = tier.kept(1, body(1, 100), &[]);
    tier.put(&first);
    tier.disk.flush().await;
    let read = tier.one(1).await.unwrap();
    assert!(tier.disk.holds(&read));
    tier.disk.forget(&key(1), &first.entry);
    assert!(tier.disk.has(&key(1)) == OnDisk::No && tier.one(1).await.is_none());
    assert!(!tier.disk.holds(&read), "nor what was read before");
    tier.disk.flush().await;
    // What waits to be written is given in place of what is on disk.
    tier.put(&first);
    tier.disk.flush().await;
    tier.keep(1, body(2, 100));
    assert_eq!(tier.one(1).await.unwrap().body, body(2, 100));
    tier.disk.forget_all(&key(1));
    assert!(tier.disk.has(&key(1)) == OnDisk::No && tier.one(1).await.is_none());
    // The same again, before the deletion was written.
    tier.keep(1, body(2, 100));
    tier.disk.flush().await;
    assert_eq!(tier.one(1).await.unwrap().body, body(2, 100));
    // One that never got to the disk.
    tier.keep(2, body(2, 100));
    tier.disk.forget_all(&key(2));
    tier.disk.flush().await;
    assert!(tier.one(2).await.is_none());
    tier.stop().await;
    assert!(world.start().await.one(1).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_waits_and_is_replaced_does_not_hold_any_more() {
    let world = world(64 << 20);
    let tier = world.start().await;
    tier.keep(1, body(2, 100));
    let waiting = tier.one(1).await.unwrap();
    assert!(waiting.body == body(2, 100) && tier.disk.holds(&waiting));
    tokio::time::advance(Duration::from_millis(1)).await;
    tier.keep(1, body(3, 100));
    assert!(!tier.disk.holds(&waiting));
    tier.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_first_write_of_a_copy_is_on_disk_within_a_second() {
    let world = world(64 << 20);
    let tier = world.start().await;
    tokio::time::sleep(Duration::from_millis(750)).await;
    tier.keep(1, body(1, 100));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(tier.disk.stats().written, 1);
    tier.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_equal_body_only_renews_its_time_and_seldom() {
    let world = world(64 << 20);
    let tier = world.start().await;
    let mut sizes = Vec::new();
    for _ in 0..10 {
        tier.keep(1, body(1, 40 * KIB));
        tokio::time::sleep(Duration::from_secs(10)).await;
        sizes.push(world.bytes());
    }
    let stats = tier.disk.stats();
    assert_eq!((stats.written, stats.renewed), (1, 3));
    assert!(sizes[9] - sizes[0] < 3 * KIB as u64, "{sizes:?}");
    assert!(sizes[0] > 40 * KIB as u64);
    // Another body is written at once, and so is what an invalidation came before.
    tier.keep(1, body(2, 40 * KIB));
    tokio::time::sleep(Duration::from_secs(1)).await;
    tier.put(&tier.kept_at(1, body(2, 40 * KIB), &[], 2));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let stats = tier.disk.stats();
    assert_eq!((stats.written, stats.renewed), (2, 4));
    assert_eq!(tier.one(1).await.unwrap().body, body(2, 40 * KIB));
    let newest = tier.one(1).await.unwrap().at;
    tier.stop().await;
    let tier = world.start().await;
    let found = tier.one(1).await.unwrap();
    assert_eq!((found.at, found.began, &found.body[..]), (newest, Moment::of(2), &body(2, 40 * KIB)[..]));
    tier.stop().await;
}

#[tokio::test(start_paused = true)]
async fn writes_are_paced_coalesced_and_dropped_when_there_are_too_many() {
    let world = world(256 << 20);
    let tier = world.start().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    for number in 0..6000 {
        tier.keep(number, body(number, 10));
        tier.keep(number.min(100), body(number, 11));
    }
    assert_eq!(tier.disk.stats().waiting, 4096);
    // Each that found no room.
    assert_eq!(tier.dropped("full"), 6000 - 4096);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let written = tier.disk.stats().written;
    assert!((1000..=3200).contains(&written), "{written} in a good second");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(tier.disk.stats().written, 4096);
    tier.stop().await;
}

#[tokio::test]
async fn rounds_of_overwriting_stay_within_the_bound_at_every_moment() {
    let world = world(16 << 20);
    let tier = world.start().await;
    let mut largest = 0;
    for round in 0..20 {
        for number in 0..100 {
            tier.keep(number, body(round * 1000 + number, 40 * KIB));
            if number % 50 == 0 {
                tier.disk.flush().await;
                largest = largest.max(world.bytes());
            }
        }
        tier.disk.flush().await;
        largest = largest.max(world.bytes());
        for number in 0..100 {
            let found = tier.one(number).await.unwrap();
            assert_eq!(found.body, body(round * 1000 + number, 40 * KIB), "round {round}, {number}");
        }
    }
    assert!(largest <= 16 << 20, "{largest}");
    let stats = tier.disk.stats();
    assert_eq!((stats.entries, stats.disk_bytes), (100, world.bytes()));
    assert!(stats.live_bytes >= 4_000_000 && stats.live_bytes < stats.disk_bytes);
    tier.stop().await;
    let tier = world.start().await;
    assert_eq!(tier.disk.stats().entries, 100);
    tier.stop().await;
}

#[tokio::test]
async fn what_does_not_fit_goes_and_what_is_used_stays() {
    let world = world(8 << 20);
    let tier = world.start().await;
    for number in 0..1000 {
        tier.keep(number, body(number, 40 * KIB));
        if number % 20 == 0 {
            tier.disk.flush().await;
            assert!(tier.one(0).await.is_some(), "{number}");
        }
    }
    tier.disk.flush().await;
    assert!(world.bytes() <= 8 << 20);
    assert!(tier.one(999).await.is_some() && tier.one(500).await.is_none());
    // What is kept over and over is used, though it is never read from disk.
    for number in 2000..3000 {
        if number % 50 == 0 {
            tier.disk.flush().await;
            assert!(number == 2000 || tier.disk.has(&key(1)) == OnDisk::Maybe, "{number}");
            tier.keep(1, body(1, 100));
            tier.disk.flush().await;
        }
        tier.keep(number, body(number, 10 * KIB));
    }
    tier.disk.flush().await;
    assert!(tier.disk.has(&key(0)) == OnDisk::No);
    tier.stop().await;
    // A bound that is lowered holds from the start on.
    let small = World { max: 2 << 20, ..world };
    let tier = small.start().await;
    assert!(small.bytes() <= 2 << 20);
    assert!(tier.one(2999).await.is_some());
    tier.stop().await;
}

#[tokio::test]
async fn what_is_too_large_for_such_a_log_is_not_kept() {
    let world = world(8 << 20);
    let tier = world.start().await;
    tier.keep(1, vec![1; 2 << 20]);
    tier.disk.flush().await;
    assert_eq!((tier.dropped("too-large"), tier.disk.stats().entries), (1, 0));
    tier.stop().await;
}

#[tokio::test]
async fn damage_costs_what_is_damaged_and_nothing_else() {
    let world = world(64 << 20);
    let tier = world.start().await;
    for number in 0..50 {
        tier.keep(number, body(number, 1000));
    }
    tier.disk.flush().await;
    tier.stop().await;
    let file = world.files().pop().unwrap();
    let whole = fs::read(&file).unwrap();
    for seed in 0..60 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut bytes = whole.clone();
        if seed % 3 == 0 {
            bytes.truncate(rng.usize(..whole.len()));
        } else {
            for _ in 0..rng.usize(1..20) {
                let at = rng.usize(..whole.len());
                bytes[at] ^= 1 << rng.u8(..8);
            }
        }
        fs::write(&file, bytes).unwrap();
        let tier = world.start().await;
        assert_eq!(tier.disk.loaded().await, Phase::On);
        let mut left = 0;
        for number in 0..50 {
            if let Some(found) = tier.one(number).await {
                assert_eq!(found.body, body(number, 1000), "seed {seed}, {number}");
                left += 1;
            }
        }
        assert!(left < 50, "seed {seed}");
        // It works on.
        tier.keep(999, body(999, 1000));
        tier.disk.flush().await;
        assert!(tier.one(999).await.is_some(), "seed {seed}");
        tier.stop().await;
        for file in world.files() {
            fs::remove_file(file).unwrap();
        }
    }
}

#[tokio::test]
async fn a_lost_key_makes_misses_that_are_forgotten() {
    let mut world = world(64 << 20);
    let tier = world.start().await;
    tier.keep(1, body(1, 100));
    tier.stop().await;
    world.secret = 9;
    let tier = world.start().await;
    assert!(tier.disk.has(&key(1)) == OnDisk::Maybe);
    assert!(tier.one(1).await.is_none());
    tier.disk.flush().await;
    assert!(tier.disk.has(&key(1)) == OnDisk::No);
    assert_eq!(tier.dropped("undecodable"), 1);
    tier.keep(2, body(2, 100));
    tier.stop().await;
    let tier = world.start().await;
    assert!(tier.one(2).await.is_some());
    tier.stop().await;
}

#[tokio::test]
async fn a_folder_of_a_newer_version_or_of_another_process_is_left_alone() {
    let world = world(64 << 20);
    let tier = world.start().await;
    tier.keep(1, body(1, 100));
    tier.stop().await;
    let dir = world.dir.path().join("cache");
    let held = DataLock::acquire(&dir, Duration::ZERO).unwrap();
    let tier = world.start().await;
    assert!(tier.disk.stats().state.contains("locked by"), "{:?}", tier.disk.stats());
    tier.keep(2, body(2, 100));
    assert_eq!((tier.dropped("off"), tier.one(1).await.is_some()), (1, false));
    assert!(tier.disk.purge(Which::All, false).await.is_err());
    tier.stop().await;
    drop(held);

    let before = fs::read(&world.files()[0]).unwrap();
    fs::write(dir.join("VERSION"), "2\n").unwrap();
    let tier = world.start().await;
    assert!(tier.disk.stats().state.contains("version 2"), "{:?}", tier.disk.stats());
    tier.keep(2, body(2, 100));
    tier.disk.flush().await;
    tier.stop().await;
    assert_eq!(fs::read_to_string(dir.join("VERSION")).unwrap(), "2\n");
    assert_eq!(fs::read(&world.files()[0]).unwrap(), before);
    fs::write(dir.join("VERSION"), "what?").unwrap();
    let tier = world.start().await;
    assert!(tier.one(1).await.is_some());
    tier.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_folder_that_cannot_be_used_is_tried_again() {
    let world = world(64 << 20);
    let dir = world.dir.path().join("cache");
    fs::write(&dir, "a file").unwrap();
    let tier = world.start().await;
    assert!(matches!(tier.disk.loaded().await, Phase::Off(_)));
    fs::remove_file(&dir).unwrap();
    tokio::time::sleep(REOPEN + 2 * LOOK).await;
    assert_eq!(tier.disk.stats().state, "on");
    tier.keep(1, body(1, 100));
    tier.disk.flush().await;
    assert!(tier.one(1).await.is_some());
    tier.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_forgotten_while_there_is_no_log_does_not_come_back() {
    let world = world(64 << 20);
    let tier = world.start().await;
    let kept: Vec<_> = (0..3).map(|number| tier.kept(number, body(number, 100), &[])).collect();
    for kept in &kept {
        tier.put(kept);
    }
    tier.stop().await;
    let held = DataLock::acquire(&world.dir.path().join("cache"), Duration::ZERO).unwrap();
    // Once while it is opened, once while it cannot be.
    let tasks = Tasks::new();
    let disk = Disk::start(world.options(), None, world.clock, &Metrics::new(), &tasks);
    disk.forget(&key(0), &kept[0].entry);
    disk.loaded().await;
    disk.forget_all(&key(1));
    for _ in 0..2 {
        assert!(matches!(&*lock(&disk.reading), Reading::Nothing(forgotten) if forgotten.len() == 2));
        tokio::time::sleep(REOPEN + 2 * LOOK).await;
    }
    drop(held);
    tokio::time::sleep(REOPEN + 2 * LOOK).await;
    assert_eq!(disk.stats().state, "on");
    assert!(
        disk.has(&key(0)) == OnDisk::No
            && disk.has(&key(1)) == OnDisk::No
            && disk.has(&key(2)) == OnDisk::Maybe
    );
    disk.flush().await;
    assert!(tasks.stop(Duration::from_secs(60)).await);
    let tier = world.start().await;
    assert_eq!(tier.disk.stats().entries, 1);
    tier.stop().await;
}

#[tokio::test(start_paused = true)]
async fn where_space_is_short_a_log_that_cannot_be_opened_goes_too() {
    let world = world(64 << 20);
    let tier = world.start().await;
    tier.keep(1, body(1, 100));
    tier.stop().await;
    let dir = world.dir.path().join("cache");
    world.volume.free.store(1 << 30, Ordering::Relaxed);
    fs::write(dir.join("VERSION"), "2\n").unwrap();
    let tier = world.start().await;
    tokio::time::sleep(2 * LOOK).await;
    assert!(tier.disk.stats().state.contains("space is short"), "{:?}", tier.disk.stats());
    assert!(world.bytes() > 0, "what a newer version wrote is left alone");
    tier.stop().await;
    // Its keys cannot be read.
    fs::write(dir.join("VERSION"), "1\n").unwrap();
    fs::remove_file(dir.join("key")).unwrap();
    fs::create_dir(dir.join("key")).unwrap();
    let tier = world.start().await;
    assert!(matches!(tier.disk.loaded().await, Phase::Off(_)));
    tokio::time::sleep(2 * LOOK).await;
    assert_eq!(world.bytes(), 0);
    tier.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_folder_that_goes_while_it_is_used_harms_nobody() {
    let world = world(8 << 20);
    let tier = world.start().await;
    tier.keep(1, body(1, 100));
    tier.disk.flush().await;
    fs::remove_dir_all(world.dir.path().join("cache")).unwrap();
    assert!(tier.one(1).await.is_some(), "the file is open");
    tokio::time::sleep(2 * LOOK).await;
    for number in 2..100 {
        tier.keep(number, body(number, 40 * KIB));
    }
    tier.disk.flush().await;
    assert!(tier.one(99).await.is_some());
    assert!(!world.files().is_empty(), "made anew with the next segment");
    tier.stop().await;
}

#[tokio::test(start_paused = true)]
async fn where_space_is_short_nothing_is_written_and_then_files_go() {
    let world = world(64 << 20);
    let tier = world.start().await;
    for number in 0..100 {
        tier.keep(number, body(number, 40 * KIB));
    }
    tier.disk.flush().await;
    let before = world.bytes();
    assert!(before > 4_000_000);
    // Above what the queue needs, and near it: no more is taken.
    world.volume.free.store((1 << 30) + (1 << 30) / 3, Ordering::Relaxed);
    tokio::time::sleep(2 * LOOK).await;
    tier.keep(1000, body(1000, 100));
    tokio::time::sleep(2 * LOOK).await;
    assert_eq!((world.bytes(), tier.dropped("space")), (before, 1));
    assert!(tier.one(5).await.is_some(), "and what is there is served");
    // What the queue needs is in danger.
    world.volume.free.store(1 << 30, Ordering::Relaxed);
    tokio::time::sleep(2 * LOOK).await;
    assert_eq!(world.bytes(), 0);
    assert!(tier.one(5).await.is_none());
    world.volume.free.store(1 << 40, Ordering::Relaxed);
    tokio::time::sleep(2 * LOOK).await;
    tier.keep(1, body(1, 100));
    tokio::time::sleep(2 * LOOK).await;
    assert!(tier.one(1).await.is_some());
    tier.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_cannot_be_written_is_left_alone_for_a_while() {
    let world = world(64 << 20);
    let tier = world.start().await;
    tier.keep(1, body(1, 100));
    tokio::time::sleep(LOOK).await;
    world.volume.is_failing.store(true, Ordering::Relaxed);
    tier.keep(2, body(2, 100));
    tokio::time::sleep(LOOK).await;
    tier.keep(3, body(3, 100));
    tokio::time::sleep(LOOK).await;
    world.volume.is_failing.store(false, Ordering::Relaxed);
    assert_eq!(tier.dropped("failed"), 2);
    assert!(tier.one(1).await.is_some() && tier.one(2).await.is_none());
    tokio::time::sleep(REST).await;
    tier.keep(4, body(4, 100));
    tokio::time::sleep(LOOK).await;
    assert!(tier.one(4).await.is_some());
    tier.stop().await;
    let tier = world.start().await;
    assert!(tier.one(1).await.is_some() && tier.one(4).await.is_some());
    tier.stop().await;
}

#[tokio::test]
async fn a_purge_is_on_disk_when_it_is_answered() {
    let world = world(64 << 20);
    let tier = world.start().await;
    for number in 0..12 {
        tier.keep(number, body(number, 100));
    }
    tier.disk.flush().await;
    let listed = tier.disk.list(None, 5).await;
    let rest = tier.disk.list(Some(&listed[4].id), 100).await;
    assert_eq!((listed.len(), rest.len()), (5, 7));
    assert!(listed.iter().chain(&rest).any(|one| one.path == "/shipments/3?page=1" && one.tag == "bookings"));
    let count = async |which, is_dry| tier.disk.purge(which, is_dry).await.unwrap().len();
    assert_eq!(count(Which::Tag("bookings".into()), true).await, 4);
    assert_eq!(tier.disk.stats().entries, 12);
    // One of them waits to be written anew.
    tier.keep(3, body(33, 100));
    assert_eq!(count(Which::Tag("bookings".into()), false).await, 4);
    assert_eq!(count(Which::Path("/shipments/1".into()), false).await, 1);
    assert_eq!(count(Which::Prefix("/shipments/1".into()), false).await, 2);
    assert_eq!(count(Which::Partition(PartitionId([0; 16])), false).await, 3);
    // Killed now: nothing more is written.
    std::mem::forget(tier);
    for file in fs::read_dir(world.dir.path().join("cache")).unwrap() {
        let file = file.unwrap().path();
        fs::create_dir_all(world.dir.path().join("copy")).unwrap();
        fs::copy(&file, world.dir.path().join("copy").join(file.file_name().unwrap())).unwrap();
    }
    let options = DiskOptions { dir: world.dir.path().join("copy"), ..world.options() };
    let tasks = Tasks::new();
    let disk = Disk::start(options, None, world.clock, &Metrics::new(), &tasks);
    disk.loaded().await;
    let left: Vec<_> = disk.list(None, 100).await.into_iter().map(|one| one.path).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(
        left.contains(&"/shipments/5?page=1".to_owned()) && left.contains(&"/shipments/7?page=1".to_owned())
    );
    disk.purge(Which::All, false).await.unwrap();
    assert_eq!((disk.stats().entries, disk.stats().disk_bytes), (0, 0));
    assert!(tasks.stop(Duration::from_secs(60)).await);
}

#[tokio::test]
async fn what_cannot_be_deleted_is_emptied_or_the_purge_says_so() {
    let world = world(64 << 20);
    let tier = world.start().await;
    tier.keep(1, body(1, 40 * KIB));
    tier.disk.flush().await;
    // The file is open, and its name cannot be deleted.
    let file = world.files().pop().unwrap();
    let hidden = world.dir.path().join("hidden");
    fs::rename(&file, &hidden).unwrap();
    fs::create_dir(&file).unwrap();
    assert_eq!(tier.disk.purge(Which::All, false).await.unwrap().len(), 1);
    assert_eq!(fs::metadata(&hidden).unwrap().len(), 0);
    assert_eq!(tier.disk.stats().disk_bytes, 0);
    tier.stop().await;
    // A part that cannot be opened may hold what is to be deleted.
    let tier = world.start().await;
    tier.keep(2, body(2, 40 * KIB));
    tier.disk.flush().await;
    assert!(tier.disk.purge(Which::All, false).await.unwrap_err().contains("could not be changed"));
    assert!(tier.one(2).await.is_none() && tier.disk.stats().entries == 0);
    fs::remove_dir(&file).unwrap();
    tier.disk.purge(Which::All, false).await.unwrap();
    assert_eq!((tier.disk.stats().disk_bytes, world.bytes()), (0, 0));
    tier.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_went_back_makes_nothing_younger() {
    let mut world = world(64 << 20);
    let tier = world.start().await;
    tier.keep(1, body(1, 100));
    tokio::time::sleep(Duration::from_secs(100)).await;
    tier.keep(2, body(2, 100));
    tier.stop().await;
    world.clock = Clock::anchored(Timestamp::from_second(1000).unwrap());
    let tier = world.start().await;
    let now = world.clock.now();
    assert!(crate::clock::since(now, tier.one(1).await.unwrap().at) >= Duration::from_secs(100));
    assert!(tier.one(2).await.unwrap().at <= now);
    tier.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_could_not_be_written_is_written_later() {
    let world = world(64 << 20);
    let tier = world.start().await;
    let kept: Vec<_> = (0..4).map(|number| tier.kept(number, body(number, 100), &[])).collect();
    for kept in &kept {
        tier.put(kept);
    }
    tokio::time::sleep(LOOK).await;
    world.volume.is_failing.store(true, Ordering::Relaxed);
    for number in 0..3 {
        tier.disk.forget(&key(number), &kept[number as usize].entry);
    }
    tokio::time::sleep(LOOK).await;
    // In place of a deletion that waits, and cannot be written either: the disk rests.
    tier.keep(1, body(11, 100));
    tokio::time::sleep(LOOK).await;
    assert!(tier.dropped("failed") > 0);
    assert_eq!(tier.disk.list(None, 100).await.len(), 1, "what was forgotten is not listed");
    world.volume.is_failing.store(false, Ordering::Relaxed);
    tokio::time::sleep(REST).await;
    // Nor does one that is too large, or finds no space.
    tier.disk.forget(&key(3), &kept[3].entry);
    tier.keep(3, vec![1; 9 << 20]);
    tokio::time::sleep(LOOK).await;
    assert_eq!((tier.disk.stats().waiting, tier.disk.stats().entries), (0, 0));
    tier.keep(4, body(4, 100));
    tokio::time::sleep(LOOK).await;
    world.volume.free.store((1 << 30) + (1 << 30) / 3, Ordering::Relaxed);
    tokio::time::sleep(2 * LOOK).await;
    tier.disk.forget_all(&key(4));
    tier.keep(4, body(44, 100));
    tokio::time::sleep(2 * LOOK).await;
    assert_eq!((tier.dropped("space"), tier.disk.stats().entries), (1, 0));
    tier.stop().await;
    let tier = world.start().await;
    assert_eq!(tier.disk.stats().entries, 0);
    tier.stop().await;
}

#[tokio::test]
async fn a_purge_means_every_spelling_of_a_path_and_what_cannot_be_read() {
    let world = world(64 << 20);
    let tier = world.start().await;
    for number in 0..4 {
        tier.keep(number, body(number, 100));
    }
    tier.disk.flush().await;
    for (path, count) in [("/shipments/1/", 1), ("/shipments/2/?per=1", 1), ("/shipments", 0)] {
        assert_eq!(tier.disk.purge(Which::Path(path.into()), false).await.unwrap().len(), count, "{path}");
    }
    // What the disk does not give at this moment.
    let file = world.files().pop().unwrap();
    let whole = fs::read(&file).unwrap();
    fs::write(&file, vec![0; whole.len()]).unwrap();
    for which in [Which::Id("00".into()), Which::Partition(PartitionId([7; 16]))] {
        tier.disk.purge(which, false).await.unwrap();
        assert_eq!(tier.disk.stats().entries, 2);
    }
    tier.disk.purge(Which::Tag("bookings".into()), true).await.unwrap();
    assert_eq!(tier.disk.stats().entries, 2, "it was only counted");
    tier.disk.purge(Which::Tag("bookings".into()), false).await.unwrap();
    assert_eq!(tier.disk.stats().entries, 0);
    tier.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_ahead_for_a_while_makes_nothing_old() {
    let world = world(64 << 20);
    let mut tier = world.start().await;
    tier.keep(1, body(1, 100));
    tier.clock = Clock::anchored(Timestamp::from_second(2_000_000_000).unwrap());
    tier.keep(2, body(2, 100));
    tier.disk.flush().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    for number in [1, 2] {
        let age = crate::clock::since(world.clock.now(), tier.one(number).await.unwrap().at);
        assert!((60..62).contains(&age.as_secs()), "{number}: {age:?}");
    }
    tier.stop().await;
}

#[tokio::test]
async fn starts_go_on_in_the_file_of_the_last_one() {
    let world = world(64 << 20);
    for number in 0..10 {
        let tier = world.start().await;
        tier.keep(number, body(number, 100));
        tier.stop().await;
    }
    let tier = world.start().await;
    assert_eq!((world.files().len(), tier.disk.stats().entries), (1, 10));
    tier.stop().await;
    // Not behind what makes no sense.
    let file = world.files().pop().unwrap();
    let whole = fs::metadata(&file).unwrap().len();
    fs::File::options().write(true).open(&file).unwrap().set_len(whole + 10).unwrap();
    let tier = world.start().await;
    tier.keep(10, body(10, 100));
    tier.stop().await;
    assert_eq!((world.files().len(), fs::metadata(&file).unwrap().len()), (2, whole + 10));
    let tier = world.start().await;
    assert_eq!(tier.disk.stats().entries, 11);
    tier.stop().await;
}

#[tokio::test]
async fn opening_reads_headers_and_nothing_else() {
    let world = world(64 << 20);
    let tier = world.start().await;
    for number in 0..1000 {
        tier.keep(number, body(number, 2000));
    }
    tier.stop().await;
    // All but the headers is wiped out.
    let mut wiped = 0;
    for file in world.files() {
        let mut bytes = fs::read(&file).unwrap();
        let mut rest = bytes.as_mut_slice();
        while let Some((header, after)) = rest.split_first_chunk_mut() {
            let header = record::Header::decode(header).unwrap();
            let (content, next) = after.split_at_mut((header.head + header.body) as usize);
            content.fill(0);
            wiped += content.len();
            rest = next;
        }
        fs::write(&file, bytes).unwrap();
    }
    assert!(wiped > 2_000_000);
    let tier = world.start().await;
    assert_eq!(tier.disk.stats().entries, 1000);
    assert!((0..1000).all(|number| tier.disk.has(&key(number)) == OnDisk::Maybe));
    assert!(tier.one(999).await.is_none());
    tier.stop().await;
}
