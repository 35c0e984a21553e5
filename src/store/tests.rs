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
use crate::tests::{PATIENCE, poll_once, until};

mod backups;
mod durability;
mod failure;
mod inspection;
mod memory;
mod opening;
mod rotation;
mod sealing;

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

/// A store that has taken sixty records, the last of them not long ago.
async fn filled(dir: &Path) -> SledStore {
    let (store, _, _) = open(dir);
    for n in 0..60 {
        let mut batch = put(&n.to_string(), "v");
        batch.put(Tree::Body, n.to_string(), vec![1; MAX_CHUNK]);
        store.commit(batch).await.unwrap();
    }
    store
}

/// The files as a killed process leaves them, but for one bit in what was written last.
fn cut(dir: &Path) -> tempfile::TempDir {
    let killed = tempfile::tempdir().unwrap();
    copy_dir(dir, killed.path());
    let db = killed.path().join("epoch-1/db");
    let mut bytes = std::fs::read(&db).unwrap();
    let last = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[last / 2] ^= 1;
    std::fs::write(&db, bytes).unwrap();
    killed
}

async fn made(dir: &Path) {
    let (store, _, _) = open(dir);
    store.commit(put("a", "1")).await.unwrap();
    store.close().await;
}
