//! The configuration in use, and its replacement: all or nothing.
//!
//! A reload reads every source again, secrets too. When anything is wrong the old snapshot stays in use and the
//! problems are returned. What cannot change while the process runs ([`NEEDS_RESTART`]) keeps its running value in
//! the new snapshot, so that no layer ever sees a value that is not in force, and is named in the report, at each
//! reload until the restart. The mixture of kept and new values is checked like any other: a file that would be
//! safe after a restart may be an open relay before it.

use super::diagnose::{Diagnostics, Origin, Origins, Problem};
use super::load::{self, LoadArgs};
use super::resolve::{self, Raw, StoreKey};
use super::{Settings, Snapshot};
use crate::clock::Clock;
use arc_swap::ArcSwap;
use jiff::Timestamp;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// The settings that a reload cannot change. The one list; sections stand for all that is in them.
pub const NEEDS_RESTART: &[&str] = &[
    // Folders, files and keys are opened once.
    "profile",
    "data_dir",
    "store.key_file",
    "store.key_env",
    "store.previous_key_file",
    "store.previous_key_env",
    "store.min_free",
    "store.lock_wait",
    // Sockets and connections are set up once.
    "server.listen",
    "server.max_head",
    "server.first_byte_timeout",
    "server.head_timeout",
    "server.write_idle_timeout",
    "server.idle_timeout",
    "server.max_connections",
    "server.h2_max_streams",
    "server.h2_max_resets",
    "admin.listen",
    // Kept answers and tickets hold rewritten links.
    "server.public_url",
    "upstream.base_url",
    "upstream.link_bases",
    // The client's pool is made once; how a connection is made is looked up for each.
    "upstream.protocol",
    "upstream.idle_timeout",
    "upstream.max_idle",
    // Memory and slots are divided once.
    "limiter.max",
    "limiter.start",
    "limiter.min",
    "cache.memory",
    "cache.disk",
    "cache.disk_max",
    "queue.enabled",
    "queue.buffer_total",
    "telemetry.format",
];

/// The configuration in use. Shared by `Arc`.
pub struct Live {
    /// `None`: made in code, so there is nothing to read again.
    args: Option<LoadArgs>,
    current: ArcSwap<Snapshot>,
    /// One reload at a time.
    turn: Mutex<Watched>,
    last: Mutex<Option<LastReload>>,
    /// What is logged instead of `telemetry.log`, by an operator's word.
    log: Mutex<Option<String>>,
}

/// What made a reload happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// SIGHUP.
    Signal,
    /// `POST /api/v1/config/reload`.
    Api,
    /// A file that was read has changed.
    File,
}

/// The last reload, good or bad.
#[derive(Debug, Clone)]
pub struct LastReload {
    /// When.
    pub at: Timestamp,
    /// Why.
    pub trigger: Trigger,
    /// What came of it.
    pub result: Result<ReloadReport, Diagnostics>,
}

/// What the files looked like.
struct Watched {
    /// When they were last read.
    read: Stamps,
    /// When they were last looked at, if that was different.
    looked: Option<Stamps>,
}

type Stamps = Vec<(PathBuf, Option<Stamp>)>;

/// What a reload did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReloadReport {
    /// The generation that is in use now.
    pub generation: u64,
    /// The settings that have another value, or another secret, than before, and are in force.
    pub changed: Vec<String>,
    /// The settings whose running value is another one than is configured: they need a restart.
    pub needs_restart: Vec<String>,
    /// What works but is hardly meant.
    pub warnings: Vec<String>,
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    modified: Option<std::time::SystemTime>,
    length: u64,
    /// Follows links, so that a swapped link, as Kubernetes does it, is another file.
    inode: u64,
}

// === impl Live ===

impl Live {
    /// Loads for the first time.
    pub fn load(args: LoadArgs) -> Result<Arc<Self>, Diagnostics> {
        let snapshot = load::load(&args)?;
        Ok(Self::new(Some(args), snapshot))
    }

    /// A configuration that was made in code and cannot be reloaded.
    pub fn fixed(snapshot: Snapshot) -> Arc<Self> {
        Self::new(None, snapshot)
    }

    fn new(args: Option<LoadArgs>, snapshot: Snapshot) -> Arc<Self> {
        let stamps = stamps(&snapshot.files);
        Arc::new(Self {
            args,
            current: ArcSwap::from_pointee(snapshot),
            turn: Mutex::new(Watched { read: stamps, looked: None }),
            last: Mutex::new(None),
            log: Mutex::new(None),
        })
    }

    /// The snapshot in use. A request takes it once.
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Tells where the data listener is, when `server.listen` has port 0: links must name the real port. To be
    /// called before the first request.
    pub fn set_bound(&self, address: SocketAddr) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.current();
        if current.settings.server.public_url.is_empty() && current.settings.server.listen.port() == 0 {
            let public_url = Arc::from(format!("http://{address}"));
            self.current.store(Arc::new(Snapshot { public_url, ..Snapshot::clone(&current) }));
        }
    }

    /// Reads all sources again. When anything is wrong, nothing changes. Reads files and blocks for as long.
    ///
    /// `then` sees what came of it and the snapshot that is in use now, before another reload can begin: what is given
    /// on there is never older than the snapshot.
    pub fn reload(
        &self,
        trigger: Trigger,
        then: impl FnOnce(&Result<ReloadReport, Diagnostics>, &Snapshot),
    ) -> Result<ReloadReport, Diagnostics> {
        let mut watched = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let result = self.replace(&mut watched);
        let last = LastReload { at: Clock::system().now(), trigger, result: result.clone() };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
        then(&result, &self.current());
        result
    }

    /// The last reload; `None` before the first.
    pub fn last_reload(&self) -> Option<LastReload> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is logged: an operator's word, else `telemetry.log`; and whether it is an operator's.
    pub fn log_filter(&self) -> (String, bool) {
        match &*self.log.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(filter) => (filter.clone(), true),
            None => (self.current().settings.telemetry.log.clone(), false),
        }
    }

    /// Notes what an operator wants to be logged until `telemetry.log` changes; `None`: as configured.
    pub fn set_log_filter(&self, filter: Option<String>) {
        *self.log.lock().unwrap_or_else(PoisonError::into_inner) = filter;
    }

    fn replace(&self, watched: &mut Watched) -> Result<ReloadReport, Diagnostics> {
        let Some(args) = &self.args else {
            let message = "this configuration was made in code; there is no file to reload".to_owned();
            return Err(Diagnostics::new(vec![Problem::at(Origin::Default, "", message)]));
        };
        let old = self.current();
        // Stamped before they are read: a change in between is seen as one.
        watched.read = stamps(watched.read.iter().map(|(path, _)| path));
        watched.looked = None;
        // A file that was found must be there again: without it the defaults would take its place in silence.
        let args = &LoadArgs { config: old.source.clone().or_else(|| args.config.clone()), ..args.clone() };
        let raw = load::gather(args);
        // Those of a configuration that is refused, too: what mends it may be a change of one of them.
        let named = stamps(resolve::files(&raw));
        for (path, stamp) in named {
            if !watched.read.iter().any(|(known, _)| *known == path) {
                watched.read.push((path, stamp));
            }
        }
        let loaded = resolve::build(raw, &args.env)?;
        let files = loaded.files.clone();
        let (next, needs_restart) = keep_running(loaded, &old, args)?;
        watched.read.retain(|(path, _)| files.contains(path));
        let changed = old.changed(&next);
        if old.settings.telemetry.log != next.settings.telemetry.log {
            self.set_log_filter(None);
        }
        let report = ReloadReport {
            generation: next.generation,
            changed,
            needs_restart,
            warnings: next.warnings.clone(),
        };
        self.current.store(Arc::new(next));
        Ok(report)
    }

    /// Whether a file that was read has changed since the last reload, good or bad, and looks as it did when this was
    /// last asked: a file is not read while it is being written. Cheap: looks at each file once.
    pub fn is_outdated(&self) -> bool {
        if self.args.is_none() {
            return false;
        }
        let mut watched = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamps(watched.read.iter().map(|(path, _)| path));
        if now == watched.read {
            watched.looked = None;
            return false;
        }
        let is_still = watched.looked.as_ref() == Some(&now);
        watched.looked = Some(now);
        is_still
    }
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("generation", &self.current.load().generation).finish_non_exhaustive()
    }
}

// === impl Trigger ===

impl std::fmt::Display for Trigger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Signal => "SIGHUP",
            Self::Api => "API",
            Self::File => "file change",
        })
    }
}

fn stamps(paths: impl IntoIterator<Item = impl AsRef<std::path::Path>>) -> Stamps {
    use std::os::unix::fs::MetadataExt as _;
    paths
        .into_iter()
        .map(|path| {
            let path = path.as_ref();
            let stamp = std::fs::metadata(path).ok().map(|metadata| Stamp {
                modified: metadata.modified().ok(),
                length: metadata.len(),
                inode: metadata.ino(),
            });
            (path.to_owned(), stamp)
        })
        .collect()
}

/// The new snapshot with the running values of what needs a restart, and which those are.
fn keep_running(
    loaded: Snapshot,
    old: &Snapshot,
    args: &LoadArgs,
) -> Result<(Snapshot, Vec<String>), Diagnostics> {
    let mut origins = Origins::clone(&loaded.origins);
    let (settings, mut kept) = pin(&loaded.settings, old, &mut origins);
    let is_key_another = loaded.store_key != old.store_key;
    let mut next = if kept.is_empty() {
        loaded
    } else {
        let raw = Raw {
            settings,
            origins: Arc::new(origins),
            source: loaded.source.clone(),
            warnings: Vec::new(),
            problems: Vec::new(),
        };
        resolve::build_with(raw, &args.env, StoreKey::InUse(old.store_key.as_ref()))
            .map_err(|diagnostics| explain(&diagnostics, &kept))?
    };
    next.store_key.clone_from(&old.store_key);
    if is_key_another && !kept.iter().any(|key| key.starts_with("store.key_")) {
        let is_file = old.settings.store.key_env.is_empty();
        kept.push(if is_file { "store.key_file" } else { "store.key_env" }.to_owned());
    }
    // The bound port, too.
    next.public_url = old.public_url.clone();
    next.generation = old.generation + 1;
    Ok((next, kept))
}

fn pin(settings: &Settings, old: &Snapshot, origins: &mut Origins) -> (Settings, Vec<String>) {
    let written = |settings: &Settings| {
        toml::Table::try_from(settings).expect("settings are read from text, so they can be written as text")
    };
    let (mut table, running) = (written(settings), written(&old.settings));
    let mut kept = Vec::new();
    for key in NEEDS_RESTART {
        let (Some(new), Some(old_value)) = (value_of(&mut table, key), find(&running, key)) else { continue };
        if new == old_value {
            continue;
        }
        *new = old_value.clone();
        match old.origins.get(*key) {
            Some(origin) => origins.insert((*key).to_owned(), origin.clone()),
            None => origins.remove(*key),
        };
        kept.push((*key).to_owned());
    }
    let settings = table.try_into().expect("what was written from settings is settings");
    (settings, kept)
}

fn find<'a>(table: &'a toml::Table, key: &str) -> Option<&'a toml::Value> {
    match key.split_once('.') {
        Some((section, rest)) => find(table.get(section)?.as_table()?, rest),
        None => table.get(key),
    }
}

fn value_of<'a>(table: &'a mut toml::Table, key: &str) -> Option<&'a mut toml::Value> {
    match key.split_once('.') {
        Some((section, rest)) => value_of(table.get_mut(section)?.as_table_mut()?, rest),
        None => table.get_mut(key),
    }
}

fn explain(diagnostics: &Diagnostics, kept: &[String]) -> Diagnostics {
    let kept: Vec<_> = kept.iter().map(|key| format!("`{key}`")).collect();
    let kept = kept.join(", ");
    let problems = diagnostics.problems().iter().cloned().map(|problem| Problem {
        message: format!("{} (until a restart {kept} stay as they are; restart instead)", problem.message),
        ..problem
    });
    Diagnostics::new(problems.collect())
}
