//! The contract of the store, on real sled in temporary folders.

use std::{
    collections::BTreeMap,
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, SystemTime},
};

use super::inspect::{Inspection, Rows, Scratch};
use super::*;
use crate::tests::{PATIENCE, until};

type Act = Arc<dyn Fn(Step, &Path) -> io::Result<()> + Send + Sync>;

/// Records the steps, and does at each what the test wants.
struct Probe {
    steps: Mutex<Vec<Step>>,
    act: Mutex<Act>,
    free: AtomicU64,
}

impl Probe {
    fn new() -> Arc<Probe> {
        Arc::new(Probe {
            steps: Mutex::default(),
            act: Mutex::new(Arc::new(|_, _| Ok(()))),
            free: AtomicU64::new(u64::MAX / 4),
        })
    }

    fn act(&self, act: impl Fn(Step, &Path) -> io::Result<()> + Send + Sync + 'static) {
        *self.act.lock().unwrap() = Arc::new(act);
    }

    /// The next `count` times of a step fail.
    fn fail(&self, step: Step, count: usize) {
        let left = AtomicUsize::new(count);
        self.act(move |at, _| {
            let is_hit = at == step && left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
            if is_hit { Err(io::Error::other("injected")) } else { Ok(()) }
        });
    }

    fn calm(&self) {
        self.act(|_, _| Ok(()));
    }

    fn take(&self) -> Vec<Step> {
        std::mem::take(&mut self.steps.lock().unwrap())
    }
}

impl Io for Probe {
    fn at(&self, step: Step, path: &Path) -> io::Result<()> {
        self.steps.lock().unwrap().push(step);
        let act = self.act.lock().unwrap().clone();
        act(step, path)
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(self.free.load(SeqCst))
    }
}

fn options(probe: &Arc<Probe>) -> Options {
    Options {
        io: probe.clone(),
        lock_wait: PATIENCE,
        heartbeat: Duration::from_secs(3600),
        retry_after: Duration::ZERO,
        ..Options::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000))
    }
}

fn keys() -> Keys {
    Keys::from_bytes([7; 32], [8; 32])
}

fn open(dir: &Path) -> (SledStore, OpenReport, Arc<Probe>) {
    let probe = Probe::new();
    let (store, report) = SledStore::open(dir, &keys(), options(&probe)).unwrap();
    probe.take();
    (store, report, probe)
}

fn put(key: &str, value: &str) -> Batch {
    let mut batch = Batch::new();
    batch.put(Tree::Rec, key, value);
    batch
}

fn all(store: &dyn Store, tree: Tree) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    store
        .scan(tree, b"", None, &mut |key, value| {
            found.insert(
                String::from_utf8_lossy(key).into_owned(),
                String::from_utf8(value.unwrap()).unwrap(),
            );
            ControlFlow::Continue(())
        })
        .unwrap();
    found
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let to = to.join(file.file_name());
        if file.file_type().unwrap().is_dir() {
            copy_dir(&file.path(), &to);
        } else if let Err(error) = std::fs::copy(file.path(), &to) {
            // sled renames its snapshots from its own threads.
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{}", file.path().display());
        }
    }
}

fn epochs(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.contains('-')).collect();
    names.sort();
    names
}

// --- durability

#[tokio::test]
async fn no_answer_before_the_sync_and_no_sync_before_the_write() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, probe) = open(dir.path());
    store.commit(put("a", "1")).await.unwrap();
    assert_eq!(probe.take(), [Step::Write, Step::Flush, Step::Sync, Step::Answer]);
    // While the sync hangs there is no answer.
    let (enter, entered) = std::sync::mpsc::channel();
    let (leave, left) = std::sync::mpsc::channel::<()>();
    let left = Mutex::new(left);
    probe.act(move |step, _| {
        if step == Step::Sync {
            let _ = enter.send(());
            let _ = left.lock().unwrap().recv();
        }
        Ok(())
    });
    let mut commit = store.commit(put("b", "2"));
    entered.recv_timeout(PATIENCE).unwrap();
    assert!(futures_poll(&mut commit).is_none(), "answered before the sync");
    drop(leave);
    commit.await.unwrap();
    store.close().await;
}

fn futures_poll<T>(future: &mut BoxFuture<T>) -> Option<T> {
    match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}

#[tokio::test]
async fn all_that_was_acknowledged_is_there_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    let (store, report, _) = open(&live);
    assert!(report.is_new && report.alarms.is_empty(), "{report:?}");
    let store = Arc::new(store);
    let mut tasks = Vec::new();
    for task in 0..16 {
        let store = store.clone();
        tasks.push(tokio::spawn(async move {
            for n in 0..16 {
                let mut batch = put(&format!("{task:02}-{n:02}"), &"x".repeat(n * 50));
                batch.put(Tree::Body, format!("{task:02}-{n:02}"), vec![b'y'; 3000]);
                batch.put(Tree::Due, format!("{task:02}-{n:02}"), "");
                if n > 0 {
                    batch.delete(Tree::Due, format!("{task:02}-{:02}", n - 1));
                }
                store.commit(batch).await.unwrap();
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let health = store.health();
    assert!(health.writable && health.batches == 256, "{health:?}");
    assert!(health.group_size.counts.iter().sum::<u64>() < 256, "whoever waits is batched: {health:?}");
    // The files as a killed process leaves them.
    let left = dir.path().join("left");
    copy_dir(&live, &left);
    let (again, report, _) = open(&left);
    assert!(!report.is_new && report.alarms.is_empty(), "{report:?}");
    assert_eq!(all(&again, Tree::Rec), all(&*store, Tree::Rec));
    assert_eq!(all(&again, Tree::Rec).len(), 256);
    assert_eq!(all(&again, Tree::Body).len(), 256);
    assert_eq!(all(&again, Tree::Due).len(), 16);
    assert_eq!(report.live_bytes, health.live_bytes, "counted along the way and counted anew");
    again.close().await;
    store.close().await;
}

#[tokio::test]
async fn a_document_of_sixteen_mebibytes_is_one_batch() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, _) = open(dir.path());
    let body: Vec<u8> = (0..16 << 20).map(|n: u32| (n % 251) as u8).collect();
    let mut batch = put("doc", "record");
    for (n, chunk) in chunks(&body).enumerate() {
        batch.put(Tree::Body, (n as u32).to_be_bytes(), chunk);
    }
    store.commit(batch).await.unwrap();
    assert!(!store.health().blobs, "values stay inline");
    store.close().await;
    drop(store);
    let (store, _, _) = open(dir.path());
    let mut read = Vec::new();
    store
        .scan(Tree::Body, b"", None, &mut |_, chunk| {
            read.extend(chunk.unwrap());
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(read == body);
    store.close().await;
}

#[tokio::test]
async fn what_is_too_large_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, probe) = open(dir.path());
    let mut fits = Batch::new();
    fits.put(Tree::Body, vec![0; MAX_KEY], vec![0; MAX_CHUNK]);
    store.commit(fits).await.unwrap();
    probe.take();
    let mut value = Batch::new();
    value.put(Tree::Body, "k", vec![0; MAX_CHUNK + 1]);
    let mut key = Batch::new();
    key.delete(Tree::Body, vec![0; MAX_KEY + 1]);
    let mut whole = Batch::new();
    for n in 0..=MAX_BATCH / MAX_CHUNK {
        whole.put(Tree::Body, n.to_be_bytes(), vec![0; MAX_CHUNK]);
    }
    for (batch, named) in [(value, "value"), (key, "key"), (whole, "batch")] {
        let error = store.commit(batch).await.unwrap_err();
        assert!(matches!(error, StoreError::TooLarge { what, .. } if what == named), "{error}");
    }
    assert!(probe.take().is_empty());
    store.close().await;
}

#[tokio::test]
async fn scans_go_by_prefix_and_after_a_key_and_stop_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let (sled, _, _) = open(dir.path());
    let stores: [&dyn Store; 2] = [&sled, &MemStore::new()];
    for store in stores {
        let mut batch = Batch::new();
        for key in ["a1", "a2", "a3", "b1"] {
            batch.put(Tree::Order, key, key).put(Tree::Due, key, "");
        }
        batch.delete(Tree::Order, "a9").put(Tree::Order, "a2", "later wins");
        store.commit(batch).await.unwrap();
        let scan = |prefix: &str, after: Option<&str>, most: usize| {
            let mut keys = Vec::new();
            let visit = &mut |key: &[u8], _: Found| {
                keys.push(String::from_utf8(key.to_vec()).unwrap());
                if keys.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            store.scan(Tree::Order, prefix.as_bytes(), after.map(str::as_bytes), visit).unwrap();
            keys.join(" ")
        };
        assert_eq!(scan("a", None, 9), "a1 a2 a3");
        assert_eq!(scan("a", Some("a1"), 9), "a2 a3");
        assert_eq!(scan("b", Some("a1"), 9), "b1");
        assert_eq!(scan("", None, 2), "a1 a2");
        assert_eq!(scan("c", None, 9), "");
        assert_eq!(store.get(Tree::Order, b"a2").unwrap().unwrap(), b"later wins");
        assert_eq!(store.get(Tree::Rec, b"a2").unwrap(), None);
        store.close().await;
        assert!(matches!(store.get(Tree::Rec, b"a2"), Err(StoreError::Closed { .. })));
        assert!(matches!(store.commit(Batch::new()).await, Err(StoreError::Closed { .. })));
        store.close().await;
    }
}

#[tokio::test]
async fn a_full_channel_makes_callers_wait_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let probe = Probe::new();
    let (store, _) = SledStore::open(dir.path(), &keys(), Options { channel: 2, ..options(&probe) }).unwrap();
    let commits: Vec<_> = (0..20).map(|n| store.commit(put(&n.to_string(), "v"))).collect();
    for commit in commits {
        tokio::time::timeout(PATIENCE, commit).await.unwrap().unwrap();
    }
    assert_eq!(all(&store, Tree::Rec).len(), 20);
    // Dropping a future that was handed over takes nothing back.
    drop(store.commit(put("dropped", "v")));
    store.commit(Batch::new()).await.unwrap();
    assert!(store.get(Tree::Rec, b"dropped").unwrap().is_some());
    store.close().await;
}

// --- failure

#[tokio::test]
async fn a_write_or_sync_error_finishes_the_epoch_and_the_batch_is_durable_in_the_next() {
    for step in [Step::Write, Step::Flush, Step::Sync] {
        let dir = tempfile::tempdir().unwrap();
        let (store, _, probe) = open(dir.path());
        store.commit(put("a", "1")).await.unwrap();
        probe.fail(step, 1);
        let mut batch = put("b", "2");
        batch.delete(Tree::Rec, "a");
        store.commit(batch).await.unwrap();
        let health = store.health();
        assert_eq!(
            (health.epoch, health.epochs_finished_by_error, health.writable),
            (2, 1, true),
            "{step:?}"
        );
        assert_eq!(epochs(dir.path()), ["epoch-2"], "{step:?}");
        store.close().await;
        drop(store);
        let (store, report, _) = open(dir.path());
        assert!(report.alarms.is_empty() && report.epoch == 2, "{report:?}");
        assert_eq!(all(&store, Tree::Rec), BTreeMap::from([("b".into(), "2".into())]));
        store.close().await;
    }
}

#[tokio::test]
async fn a_panic_of_the_database_is_an_error_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, probe) = open(dir.path());
    let has_panicked = AtomicUsize::new(0);
    probe.act(move |step, _| {
        assert!(step != Step::Flush || has_panicked.fetch_add(1, SeqCst) > 0, "sled panics");
        Ok(())
    });
    store.commit(put("a", "1")).await.unwrap();
    assert_eq!(store.health().epoch, 2);
    assert_eq!(all(&store, Tree::Rec).len(), 1);
    store.close().await;
}

#[tokio::test]
async fn without_a_fresh_epoch_reads_show_what_was_acknowledged_and_it_heals_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, probe) = open(dir.path());
    let mut batch = put("changed", "old");
    batch.put(Tree::Rec, "deleted", "old").put(Tree::Rec, "kept", "old");
    store.commit(batch).await.unwrap();
    // The first sync fails, and so does every copy.
    probe.act(|step, _| match step {
        Step::Sync | Step::CopySynced => Err(io::Error::other("injected")),
        _ => Ok(()),
    });
    let acknowledged = all(&store, Tree::Rec);
    for _ in 0..3 {
        let mut batch = put("changed", "new");
        batch.put(Tree::Rec, "added", "new").delete(Tree::Rec, "deleted");
        let error = store.commit(batch).await.unwrap_err();
        assert!(matches!(error, StoreError::Failed { .. }), "{error}");
        assert!(error.to_string().contains(&*dir.path().to_string_lossy()), "{error}");
        assert_eq!(all(&store, Tree::Rec), acknowledged);
        assert_eq!(store.get(Tree::Rec, b"changed").unwrap().unwrap(), b"old");
        assert_eq!(store.get(Tree::Rec, b"added").unwrap(), None);
    }
    let health = store.health();
    assert!(!health.writable && health.failed.is_some() && health.refused == 3, "{health:?}");
    assert_eq!(health.epochs_finished_by_error, 1);
    assert_eq!(epochs(dir.path()), ["epoch-1"], "copies that never counted are gone");
    probe.calm();
    store.commit(put("later", "yes")).await.unwrap();
    let health = store.health();
    assert!(health.writable && health.failed.is_none(), "{health:?}");
    let mut expected = acknowledged;
    expected.insert("later".into(), "yes".into());
    assert_eq!(all(&store, Tree::Rec), expected);
    store.close().await;
    drop(store);
    let (store, _, _) = open(dir.path());
    assert_eq!(all(&store, Tree::Rec), expected, "what was refused does not come back");
    store.close().await;
}

#[tokio::test]
async fn a_failed_store_is_tried_again_only_now_and_then() {
    let dir = tempfile::tempdir().unwrap();
    let probe = Probe::new();
    let slow = Options { retry_after: Duration::from_secs(600), ..options(&probe) };
    let (store, _) = SledStore::open(dir.path(), &keys(), slow).unwrap();
    probe.act(|step, _| match step {
        Step::Sync | Step::CopyWritten => Err(io::Error::other("injected")),
        _ => Ok(()),
    });
    store.commit(put("a", "1")).await.unwrap_err();
    probe.calm();
    probe.take();
    store.commit(put("a", "1")).await.unwrap_err();
    assert_eq!(probe.take(), [Step::Answer], "sled is left alone");
    store.close().await;
}

#[tokio::test]
async fn without_space_sled_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, probe) = open(dir.path());
    probe.free.store(1000, SeqCst);
    let error = store.commit(put("a", "1")).await.unwrap_err();
    assert!(matches!(error, StoreError::NoSpace { free: 1000, .. }), "{error}");
    assert_eq!(probe.take(), [Step::Answer]);
    assert!(store.health().low_space && !store.health().writable);
    probe.free.store(u64::MAX / 4, SeqCst);
    store.commit(put("a", "1")).await.unwrap();
    assert!(store.health().writable);
    store.close().await;
}

#[tokio::test]
async fn with_little_space_only_what_settles_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, probe) = open(dir.path());
    store.commit(put("a", "1")).await.unwrap();
    let watermark = options(&probe).min_free_bytes;
    probe.free.store(watermark / 2, SeqCst);
    let settling = || {
        let mut batch = put("a", "2");
        batch.settling();
        batch
    };
    let (new, old) = tokio::join!(store.commit(put("b", "1")), store.commit(settling()));
    assert!(matches!(new, Err(StoreError::NoSpace { .. })));
    old.unwrap();
    assert_eq!(store.get(Tree::Rec, b"a").unwrap().as_deref(), Some(&b"2"[..]));
    assert!(store.health().low_space);
    // A copy gives space back.
    store.rotate().await.unwrap();
    probe.free.store(watermark / 8, SeqCst);
    assert!(matches!(store.commit(settling()).await, Err(StoreError::NoSpace { .. })));
    store.close().await;
}

#[tokio::test]
async fn blob_files_are_an_alarm() {
    let dir = tempfile::tempdir().unwrap();
    let probe = Probe::new();
    let quick = Options { heartbeat: Duration::from_millis(10), ..options(&probe) };
    let (store, _) = SledStore::open(dir.path(), &keys(), quick).unwrap();
    std::fs::write(dir.path().join("epoch-1/blobs/1"), b"").unwrap();
    until("the alarm", || store.health().blobs);
    store.close().await;
    drop(store);
    let (store, report, _) = open(dir.path());
    assert!(matches!(report.alarms[..], [Alarm::Blobs { .. }]), "{report:?}");
    store.close().await;
}

#[tokio::test]
async fn an_idle_store_is_written_to_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let probe = Probe::new();
    let quick = Options { heartbeat: Duration::from_millis(10), ..options(&probe) };
    let (store, _) = SledStore::open(dir.path(), &keys(), quick).unwrap();
    probe.fail(Step::Sync, 1);
    until("a heartbeat that meets the error, and the rescue", || {
        let health = store.health();
        health.epoch == 2 && health.writable
    });
    store.close().await;
}

// --- rotation

#[tokio::test]
async fn a_kill_at_each_step_of_a_rotation_loses_nothing() {
    let steps =
        [Step::CopyWritten, Step::CopySynced, Step::CurrentWritten, Step::CurrentRenamed, Step::OldDeleted];
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    let (store, _, probe) = open(&live);
    for n in 0..30 {
        store.commit(put(&format!("{n:02}"), &"v".repeat(n * 100))).await.unwrap();
    }
    let expected = all(&store, Tree::Rec);
    let states: PathBuf = dir.path().join("states");
    let (from, to) = (live.clone(), states.clone());
    probe.act(move |step, _| {
        if steps.contains(&step) {
            copy_dir(&from, &to.join(format!("{step:?}")));
        }
        Ok(())
    });
    let rotation = store.rotate().await.unwrap();
    assert_eq!((rotation.from, rotation.to), (1, 2));
    assert_eq!(all(&store, Tree::Rec), expected);
    store.commit(put("after", "1")).await.unwrap();
    store.close().await;
    for step in steps {
        let state = states.join(format!("{step:?}"));
        let (again, report, _) = open(&state);
        assert!(report.alarms.is_empty(), "{step:?}: {report:?}");
        let is_switched = matches!(step, Step::CurrentRenamed | Step::OldDeleted);
        assert_eq!(report.epoch, if is_switched { 2 } else { 1 }, "{step:?}");
        assert_eq!(all(&again, Tree::Rec), expected, "{step:?}");
        assert_eq!(epochs(&state), [format!("epoch-{}", report.epoch)], "{step:?}: the rest is deleted");
        again.commit(put("goes on", "1")).await.unwrap();
        again.rotate().await.unwrap();
        again.close().await;
    }
}

#[tokio::test]
async fn a_rotation_that_fails_before_the_switch_leaves_the_old_epoch_at_work() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, probe) = open(dir.path());
    store.commit(put("a", "1")).await.unwrap();
    for step in [Step::CopyWritten, Step::CopySynced, Step::CurrentWritten] {
        probe.fail(step, 1);
        store.rotate().await.unwrap_err();
        let health = store.health();
        assert!(health.writable && health.epoch == 1, "{step:?}: {health:?}");
        assert_eq!(epochs(dir.path()), ["epoch-1"]);
        store.commit(put("b", "2")).await.unwrap();
    }
    store.close().await;
}

#[tokio::test]
async fn after_a_switch_in_doubt_the_old_epoch_takes_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, probe) = open(dir.path());
    store.commit(put("a", "1")).await.unwrap();
    probe.fail(Step::CurrentRenamed, 1);
    store.rotate().await.unwrap_err();
    assert!(!store.health().writable);
    store.commit(put("b", "2")).await.unwrap();
    assert_eq!(store.health().epoch, 3, "neither of the two in doubt");
    store.close().await;
    drop(store);
    let (store, report, _) = open(dir.path());
    assert_eq!((report.epoch, all(&store, Tree::Rec).len()), (3, 2));
    assert_eq!(epochs(dir.path()), ["epoch-3"]);
    store.close().await;
}

#[tokio::test]
async fn an_epoch_that_is_mostly_dead_is_left_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let probe = Probe::new();
    let quick =
        Options { heartbeat: Duration::from_millis(20), rotate_above_bytes: 6 << 20, ..options(&probe) };
    let (store, _) = SledStore::open(dir.path(), &keys(), quick).unwrap();
    for round in 0..10 {
        let mut batch = put("kept", "value");
        for n in 0..100_u32 {
            batch.put(Tree::Body, n.to_be_bytes(), vec![round; MAX_CHUNK]);
        }
        store.commit(batch).await.unwrap();
    }
    let mut batch = Batch::new();
    for n in 0..100_u32 {
        batch.delete(Tree::Body, n.to_be_bytes());
    }
    store.commit(batch).await.unwrap();
    assert!(store.health().live_bytes < 4096, "{:?}", store.health());
    // There may have been one between the rounds already.
    until("the rotation", || {
        let health = store.health();
        health.rotations > 0 && health.disk_bytes < 6 << 20
    });
    assert_eq!(all(&store, Tree::Rec).len(), 1);
    assert!(all(&store, Tree::Body).is_empty());
    store.close().await;
}

#[tokio::test]
async fn a_scan_goes_on_over_a_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, _) = open(dir.path());
    for key in ["a", "b", "c"] {
        store.commit(put(key, "1")).await.unwrap();
    }
    let store = Arc::new(store);
    let (mut seen, mut rotated) = (0, None);
    store
        .scan(Tree::Rec, b"", None, &mut |_, value| {
            value.unwrap();
            seen += 1;
            let (done, is_done) = std::sync::mpsc::channel();
            let store = store.clone();
            if rotated.is_none() {
                rotated = Some(thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                    runtime.block_on(store.rotate()).unwrap();
                    done.send(()).unwrap();
                }));
                is_done.recv_timeout(PATIENCE).unwrap();
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((seen, store.health().epoch), (3, 2));
    store.close().await;
}

// --- opening

async fn made(dir: &Path) {
    let (store, _, _) = open(dir);
    store.commit(put("a", "1")).await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn a_damaged_snapshot_is_moved_aside_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path()).await;
    let epoch = dir.path().join("epoch-1");
    std::fs::write(epoch.join("snap.FFFFFFFFFFFFFFF0"), b"broken").unwrap();
    let (store, report, _) = open(dir.path());
    assert!(matches!(report.alarms[..], [Alarm::SnapshotsMoved { .. }]), "{report:?}");
    assert_eq!(all(&store, Tree::Rec).len(), 1);
    store.close().await;
}

#[tokio::test]
async fn a_database_that_cannot_be_read_is_kept_and_a_fresh_one_counts() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 3] = [
        ("cut to nothing", |epoch| {
            std::fs::write(epoch.join("db"), b"").unwrap();
            super::epoch::move_snapshots(epoch).unwrap();
        }),
        ("gone", |epoch| std::fs::remove_file(epoch.join("db")).unwrap()),
        ("overwritten", |epoch| {
            std::fs::write(epoch.join("db"), vec![0xa5; 4 << 20]).unwrap();
        }),
    ];
    for (name, damage) in damages {
        let dir = tempfile::tempdir().unwrap();
        made(dir.path()).await;
        damage(&dir.path().join("epoch-1"));
        let (store, report, _) = open(dir.path());
        let [Alarm::SetAside { to, .. }] = &report.alarms[..] else { panic!("{name}: {report:?}") };
        assert!(to.is_dir() && to.ends_with("corrupt-20231114T221320Z-1"), "{name}: {}", to.display());
        assert!(all(&store, Tree::Rec).is_empty());
        store.commit(put("b", "2")).await.unwrap();
        store.close().await;
        drop(store);
        let (store, report, _) = open(dir.path());
        assert!(report.alarms.is_empty() && !report.is_new && report.epoch == 2, "{name}: {report:?}");
        assert_eq!(all(&store, Tree::Rec).len(), 1);
        assert!(to.is_dir(), "never deleted");
        store.close().await;
    }
}

#[tokio::test]
async fn without_current_the_epoch_that_is_there_is_used_and_told() {
    for content in [None, Some("nonsense"), Some("epoch-9\n")] {
        let dir = tempfile::tempdir().unwrap();
        made(dir.path()).await;
        let current = dir.path().join("CURRENT");
        match content {
            None => std::fs::remove_file(&current).unwrap(),
            Some(text) => std::fs::write(&current, text).unwrap(),
        }
        let (store, report, _) = open(dir.path());
        assert!(matches!(report.alarms[..], [Alarm::CurrentLost { used: Some(1), .. }]), "{report:?}");
        assert_eq!(all(&store, Tree::Rec).len(), 1);
        store.close().await;
        assert_eq!(std::fs::read_to_string(&current).unwrap(), "epoch-1\n");
    }
}

#[tokio::test]
async fn a_second_process_is_told_and_damages_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, _) = open(dir.path());
    let hasty = Options { lock_wait: Duration::from_millis(50), ..options(&Probe::new()) };
    let error = SledStore::open(dir.path(), &keys(), hasty).err().unwrap();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    assert!(error.to_string().contains("epoch-1"), "{error}");
    store.commit(put("a", "1")).await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path()).await;
    std::fs::write(dir.path().join("VERSION"), "2\n").unwrap();
    let error = SledStore::open(dir.path(), &keys(), options(&Probe::new())).err().unwrap();
    assert!(matches!(error, OpenError::NewerSchema { found: 2, supported: 1, .. }), "{error}");
    std::fs::write(dir.path().join("VERSION"), "?").unwrap();
    let (store, report, _) = open(dir.path());
    assert!(matches!(report.alarms[..], [Alarm::VersionUnreadable { .. }]), "{report:?}");
    assert_eq!(all(&store, Tree::Rec).len(), 1);
    store.close().await;
}

#[tokio::test]
async fn a_folder_that_cannot_be_used_is_named_and_a_full_disk_is_not_damage() {
    let error = SledStore::open(Path::new("/proc/seawall"), &keys(), options(&Probe::new())).err().unwrap();
    assert!(error.to_string().contains("/proc/seawall"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    made(dir.path()).await;
    let probe = Probe::new();
    probe.act(|step, _| match step {
        Step::Open => Err(io::ErrorKind::StorageFull.into()),
        _ => Ok(()),
    });
    let error = SledStore::open(dir.path(), &keys(), options(&probe)).err().unwrap();
    assert!(matches!(error, OpenError::Io { .. }), "{error}");
    assert_eq!(epochs(dir.path()), ["epoch-1"]);
}

#[tokio::test]
async fn a_log_that_was_cut_by_damage_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, _) = open(dir.path());
    for n in 0..60 {
        let mut batch = put(&n.to_string(), "v");
        batch.put(Tree::Body, n.to_string(), vec![1; MAX_CHUNK]);
        store.commit(batch).await.unwrap();
    }
    let db = dir.path().join("epoch-1/db");
    // As a killed process leaves it, but for one bit in what was written last.
    let killed = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), killed.path());
    let (again, report, _) = open(killed.path());
    assert!(report.alarms.is_empty(), "{report:?}");
    again.close().await;
    let mut bytes = std::fs::read(&db).unwrap();
    let last = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[last / 2] ^= 1;
    let killed = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), killed.path());
    std::fs::write(killed.path().join("epoch-1/db"), bytes).unwrap();
    let (again, report, _) = open(killed.path());
    assert!(report.is_rolled_back(), "{} left, {report:?}", all(&again, Tree::Rec).len());
    again.commit(put("goes on", "v")).await.unwrap();
    again.close().await;
    drop(again);
    let (again, report, _) = open(killed.path());
    assert!(report.alarms.is_empty(), "told once: {report:?}");
    assert!(again.get(Tree::Meta, ROLLED_BACK).unwrap().is_some(), "and marked until it is settled");
    let mut batch = Batch::new();
    batch.delete(Tree::Meta, ROLLED_BACK);
    again.commit(batch).await.unwrap();
    again.close().await;
    drop(again);
    let (again, ..) = open(killed.path());
    assert!(again.get(Tree::Meta, ROLLED_BACK).unwrap().is_none());
    again.close().await;
    store.close().await;
}

// --- sealing

#[tokio::test]
async fn nothing_readable_is_on_disk() {
    const SECRET: &str = "a very private shipment reference";
    let dir = tempfile::tempdir().unwrap();
    let (store, _, _) = open(dir.path());
    let mut batch = Batch::new();
    for tree in Tree::ALL {
        batch.put(tree, "k", SECRET);
    }
    store.commit(batch).await.unwrap();
    store.rotate().await.unwrap();
    store.close().await;
    let db = std::fs::read(dir.path().join("epoch-2/db")).unwrap();
    assert!(memchr::memmem::find(&db, SECRET.as_bytes()).is_none());
    let key = std::fs::read(dir.path().join("key")).unwrap();
    assert!(memchr::memmem::find(&key, &[7; 32]).is_none());
}

#[tokio::test]
async fn with_the_key_lost_the_store_starts_and_tells_each_value_and_takes_new_ones() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path()).await;
    let other = Keys::from_bytes([9; 32], [8; 32]);
    let (store, report) = SledStore::open(dir.path(), &other, options(&Probe::new())).unwrap();
    assert!(matches!(report.alarms[..], [Alarm::KeyLost { .. }]), "{report:?}");
    store.commit(put("b", "2")).await.unwrap();
    let mut seen = Vec::new();
    store
        .scan(Tree::Rec, b"", None, &mut |key, value| {
            seen.push((key.to_vec(), value.is_ok()));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(seen, [(b"a".to_vec(), false), (b"b".to_vec(), true)]);
    let error = store.get(Tree::Rec, b"a").unwrap_err();
    assert!(
        matches!(&error, StoreError::Undecryptable { tree: Tree::Rec, key, .. } if key == b"a"),
        "{error}"
    );
    assert_eq!(store.health().undecryptable, 2);
    store.close().await;
}

#[tokio::test]
async fn a_rotated_wrapping_key_opens_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, _) = open(dir.path());
    store.commit(put("a", "1")).await.unwrap();
    let other = Keys::from_bytes([9; 32], [8; 32]);
    store.rotate_wrapping(&other).unwrap();
    store.commit(put("b", "2")).await.unwrap();
    store.close().await;
    drop(store);
    let (store, report) = SledStore::open(dir.path(), &other, options(&Probe::new())).unwrap();
    assert!(report.alarms.is_empty(), "{report:?}");
    assert_eq!(all(&store, Tree::Rec).len(), 2);
    store.close().await;
}

// --- in memory

#[tokio::test]
async fn in_memory_committed_means_durable_and_held_means_lost() {
    let store = MemStore::new();
    store.commit(put("a", "1")).await.unwrap();
    store.hold();
    let mut held = store.commit(put("b", "2"));
    assert!(futures_poll(&mut held).is_none());
    assert_eq!(store.get(Tree::Rec, b"b").unwrap(), None);
    let after = store.crash();
    assert!(matches!(held.await, Err(StoreError::Unanswered { .. })));
    assert_eq!(all(&after, Tree::Rec), BTreeMap::from([("a".into(), "1".into())]));
    assert!(matches!(store.commit(put("c", "3")).await, Err(StoreError::Closed { .. })));

    after.hold();
    let held = after.commit(put("b", "2"));
    after.release();
    held.await.unwrap();
    assert_eq!(all(&after, Tree::Rec).len(), 2);
}

#[tokio::test]
async fn faults_in_memory_are_those_of_the_disk() {
    let store = MemStore::new();
    store.commit(put("a", "1")).await.unwrap();
    store.fail_next(1);
    assert!(matches!(store.commit(put("a", "2")).await, Err(StoreError::Failed { .. })));
    store.set_full(true);
    assert!(matches!(store.commit(put("a", "2")).await, Err(StoreError::NoSpace { .. })));
    assert!(!store.health().writable);
    store.set_full(false);
    assert_eq!(store.get(Tree::Rec, b"a").unwrap().unwrap(), b"1");
    store.make_unreadable(Tree::Rec, b"a");
    assert!(matches!(store.get(Tree::Rec, b"a"), Err(StoreError::Undecryptable { .. })));
    assert_eq!(store.rotate().await.unwrap().to, 2);
}

// --- backups

fn order(to: PathBuf) -> BackupOrder {
    BackupOrder { to, secret: None, now: jiff::Timestamp::UNIX_EPOCH }
}

/// Restores a backup into a fresh folder and opens it.
fn restored(backup: &Path, into: &Path) -> (SledStore, OpenReport, Arc<Probe>) {
    let backup = Backup::open(backup).unwrap();
    let place = into.join("queue");
    let rows = Rows::of_backup(&backup, &keys(), Scratch::beside(&place).unwrap()).unwrap();
    rows.install(&place, false, jiff::Timestamp::UNIX_EPOCH).unwrap();
    assert_eq!(std::fs::read_dir(into).unwrap().count(), 1, "nothing is left beside it");
    open(&place)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_taken_amid_writes_is_the_state_of_one_moment() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, probe) = open(&dir.path().join("queue"));
    let store = Arc::new(store);
    for n in 0..200 {
        store.commit(put(&format!("{n:03}"), "before")).await.unwrap();
    }
    // Each batch changes a key at the front and one at the end, adds one and deletes one, while the rows are read; one
    // rotation and one failed sync come between.
    let (ask, asked) = std::sync::mpsc::channel::<std::sync::mpsc::Sender<()>>();
    let rows = AtomicUsize::new(0);
    let ask = Mutex::new(ask);
    probe.act(move |step, _| {
        if step == Step::BackupRow && rows.fetch_add(1, SeqCst) % 20 == 10 {
            let (done, is_done) = std::sync::mpsc::channel();
            if ask.lock().unwrap().send(done).is_ok() {
                let _ = is_done.recv();
            }
        }
        Ok(())
    });
    let backup = dir.path().join("backup");
    let making = tokio::spawn(store.backup(order(backup.clone())));
    let writer = store.clone();
    let rounds = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Handle::current();
        let mut round = 0;
        while let Ok(done) = asked.recv_timeout(PATIENCE) {
            round += 1;
            let mut batch = put("000", &round.to_string());
            batch.put(Tree::Rec, "199", round.to_string());
            batch.put(Tree::Rec, format!("new-{round}"), "new");
            batch.delete(Tree::Rec, format!("{:03}", 100 + round));
            runtime.block_on(writer.commit(batch)).unwrap();
            if round == 3 {
                runtime.block_on(writer.rotate()).unwrap();
            }
            let _ = done.send(());
            if round == 8 {
                break;
            }
        }
        round
    });
    let round = rounds.await.unwrap();
    assert_eq!(round, 8);
    let manifest = making.await.unwrap().unwrap();
    assert_eq!(manifest.unreadable, 0);
    let expected = all(&*store, Tree::Rec);
    store.commit(put("after", "the backup")).await.unwrap();
    store.close().await;

    let other = tempfile::tempdir().unwrap();
    let (again, report, _) = restored(&backup, other.path());
    assert!(report.alarms.is_empty(), "{report:?}");
    let found = all(&again, Tree::Rec);
    assert_eq!(found["000"], found["199"], "both or neither");
    assert_eq!(found, expected);
    assert!(again.get(Tree::Meta, ROLLED_BACK).unwrap().is_some(), "what is restored is old");
    again.commit(put("goes on", "v")).await.unwrap();
    again.close().await;
}

#[tokio::test]
async fn a_backup_that_fails_leaves_nothing_and_one_that_was_killed_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, probe) = open(&dir.path().join("queue"));
    store.commit(put("k", "v")).await.unwrap();
    let to = dir.path().join("backup");
    for step in [Step::BackupRow, Step::BackupWritten] {
        probe.fail(step, 1);
        store.backup(order(to.clone())).await.unwrap_err();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "after {step:?}");
    }
    // As a kill leaves it.
    let killed = tempfile::tempdir().unwrap();
    let (from, at) = (dir.path().join("backup.partial"), killed.path().join("backup.partial"));
    let copy = at.clone();
    probe.act(move |step, _| {
        if step == Step::BackupWritten {
            copy_dir(&from, &copy);
        }
        Ok(())
    });
    store.backup(order(to.clone())).await.unwrap();
    probe.calm();
    assert!(backup::is_backup(&to) && !backup::is_backup(&at));
    assert!(matches!(Backup::open(&at), Err(BackupError::Place { .. })));
    store.backup(order(killed.path().join("backup"))).await.unwrap();
    assert!(!at.exists());
    Backup::open(&killed.path().join("backup")).unwrap();
    // What is no leftover of ours stays.
    std::fs::create_dir(&at).unwrap();
    std::fs::write(at.join("thesis.txt"), "mine").unwrap();
    std::fs::remove_dir_all(killed.path().join("backup")).unwrap();
    store.backup(order(killed.path().join("backup"))).await.unwrap_err();
    assert!(at.join("thesis.txt").exists());
    store.close().await;
}

#[tokio::test]
async fn a_backup_goes_only_where_nothing_is_and_never_takes_the_space_of_the_queue() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, probe) = open(&dir.path().join("queue"));
    store.commit(put("k", "v")).await.unwrap();
    let there = dir.path().join("there");
    std::fs::create_dir(&there).unwrap();
    for to in [there.clone(), PathBuf::from("relative"), dir.path().join("queue/inside"), PathBuf::from("/")]
    {
        let error = store.backup(order(to.clone())).await.unwrap_err();
        assert!(matches!(error, BackupError::Place { .. }), "{to:?}: {error}");
    }
    probe.free.store(1 << 20, SeqCst);
    let error = store.backup(order(dir.path().join("backup"))).await.unwrap_err();
    assert!(matches!(error, BackupError::NoSpace { .. }), "{error}");
    store.close().await;
    assert!(matches!(
        store.backup(order(dir.path().join("backup"))).await,
        Err(BackupError::Store(StoreError::Closed { .. }))
    ));
}

#[tokio::test]
async fn an_inspection_changes_nothing_and_names_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path()).await;
    let look = |keys: &Keys| {
        let scratch = Scratch::inside(&std::env::temp_dir()).unwrap();
        Inspection::of_store(dir.path(), keys, scratch).unwrap()
    };
    let found = look(&keys());
    assert!(found.problems.is_empty(), "{found:?}");
    let mut count = 0;
    let rows = found.rows.unwrap();
    rows.scan(Tree::Rec, &mut |_, value| {
        count += usize::from(value.is_ok());
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(count > 0);
    let own = look(&Keys::from_bytes([9; 32], [9; 32]));
    assert!(own.problems.iter().any(|problem| problem.place.ends_with("key")), "{own:?}");
    std::fs::create_dir(dir.path().join("corrupt-20260101T000000Z-1")).unwrap();
    std::fs::write(dir.path().join("VERSION"), "?").unwrap();
    let found = look(&keys());
    assert!(found.problems.iter().any(|problem| problem.place.ends_with("VERSION")), "{found:?}");
    assert!(found.notes.iter().any(|note| note.contains("corrupt-")), "{found:?}");
    assert_eq!(std::fs::read(dir.path().join("VERSION")).unwrap(), b"?");
    std::fs::write(dir.path().join("VERSION"), "2\n").unwrap();
    let scratch = Scratch::inside(&std::env::temp_dir()).unwrap();
    let error = Inspection::of_store(dir.path(), &keys(), scratch).unwrap_err();
    assert!(matches!(error, BackupError::Open(OpenError::NewerSchema { .. })), "{error}");
}

#[tokio::test]
async fn an_inspection_notices_a_log_that_was_cut_by_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, _) = open(dir.path());
    for n in 0..60 {
        let mut batch = put(&n.to_string(), "v");
        batch.put(Tree::Body, n.to_string(), vec![1; MAX_CHUNK]);
        store.commit(batch).await.unwrap();
    }
    let killed = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), killed.path());
    let db = killed.path().join("epoch-1/db");
    let mut bytes = std::fs::read(&db).unwrap();
    let last = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[last / 2] ^= 1;
    std::fs::write(&db, &bytes).unwrap();
    let scratch = Scratch::inside(&std::env::temp_dir()).unwrap();
    let found = Inspection::of_store(killed.path(), &keys(), scratch).unwrap();
    assert!(found.problems.iter().any(|problem| problem.what.contains("acknowledged commits")), "{found:?}");
    assert_eq!(std::fs::read(&db).unwrap(), bytes, "the evidence stays");
    store.close().await;
}
