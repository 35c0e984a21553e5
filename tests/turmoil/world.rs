//! What a run's hosts share beside the network: the far end's books, the store's disk, what callers were told, and
//! what went wrong.

use crate::callers::Ledger;
use crate::flexport::Flexport;
use crate::proxy::Witness;
use seawall::store::MemStore;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

/// See the module.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) is_h2: bool,
    pub(crate) flexport: Arc<Flexport>,
    pub(crate) store: Mutex<MemStore>,
    pub(crate) ledger: Ledger,
    pub(crate) witness: Witness,
    /// Connecting gets no answer at all.
    pub(crate) is_dark: AtomicBool,
    pub(crate) stage: Mutex<Stage>,
    /// All is to be well again: Seawall reports in full.
    pub(crate) is_healing: AtomicBool,
    /// What Seawall reports from its host.
    pub(crate) report: Mutex<Report>,
    wrong: Mutex<Vec<String>>,
}

/// What the callers do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stage {
    /// They call so many times a second.
    Traffic(f64),
    /// They are done.
    Quiet,
    /// All is looked at, with the network well.
    Verdict,
}

/// See [`World::report`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// Scopes that are not closed, with why.
    pub(crate) not_closed: Vec<String>,
    /// Writes that are to be sent yet.
    pub(crate) owed: Vec<String>,
    /// How often it looked for the above.
    pub(crate) looks: u64,
    pub(crate) openings: u64,
    pub(crate) is_over: bool,
}

// === impl World ===

impl World {
    pub(crate) const UPSTREAM: &str = "upstream";
    pub(crate) const SEAWALL: &str = "seawall";

    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            seed,
            is_h2: seed % 2 == 1,
            flexport: Flexport::new(seed),
            store: Mutex::default(),
            ledger: Ledger::default(),
            witness: Witness::default(),
            is_dark: AtomicBool::new(false),
            stage: Mutex::new(Stage::Quiet),
            is_healing: AtomicBool::new(false),
            report: Mutex::default(),
            wrong: Mutex::default(),
        })
    }

    /// Something that must not be.
    pub(crate) fn wrong(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
    }

    pub(crate) fn stage(&self) -> Stage {
        *self.stage.lock().unwrap()
    }

    pub(crate) fn set(&self, stage: Stage) {
        *self.stage.lock().unwrap() = stage;
    }

    pub(crate) fn holds(&self) {
        let wrong = self.wrong.lock().unwrap();
        assert!(wrong.is_empty(), "seed {}:\n{}", self.seed, wrong.join("\n"));
    }
}
