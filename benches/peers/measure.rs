//! What a process has cost: CPU time and memory from `/proc`, and on which core it runs.
//!
//! CPU time is the sum over all threads of `/proc/<pid>/task/*/schedstat`, in nanoseconds. Where the kernel does not
//! keep it, `utime + stime` of `/proc/<pid>/stat` serve, in clock ticks: these need rounds of a second and more.

use anyhow::{Context as _, Result, bail};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

/// The two cores: one for what is measured, one for all else.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    /// Load generator and origin.
    pub(crate) load: usize,
    /// The measured process.
    pub(crate) measured: usize,
}

/// CPU time of a process at one moment.
#[derive(Debug)]
pub(crate) enum Cpu {
    /// By thread, so that a thread that ended in between cannot make the sum fall.
    Threads(BTreeMap<u32, Duration>),
    /// The whole process, ended threads and all.
    Process(Duration),
}

// === impl Cores ===

impl Cores {
    /// The first and the last core that we may use; the same one twice on a machine with one.
    pub(crate) fn pick() -> Result<Self> {
        let allowed = sched_getaffinity(None).context("which cores may be used?")?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let load = cores.next().context("no core may be used")?;
        Ok(Self { load, measured: cores.next_back().unwrap_or(load) })
    }

    /// Puts this thread, and what it spawns from now on, on one core.
    pub(crate) fn pin(core: usize) -> Result<()> {
        let mut set = CpuSet::new();
        set.set(core);
        sched_setaffinity(None, &set).with_context(|| format!("pinning to core {core}"))
    }
}

// === impl Cpu ===

impl Cpu {
    /// Now.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let mut threads = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task")).context("the measured process is gone")? {
            let entry = entry?;
            let Ok(tid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            // A thread may end while we look.
            let Ok(line) = fs::read_to_string(entry.path().join("schedstat")) else { continue };
            let nanos = line.split_ascii_whitespace().next().and_then(|field| field.parse().ok());
            threads.insert(tid, Duration::from_nanos(nanos.unwrap_or(0)));
        }
        if threads.values().any(|time| !time.is_zero()) {
            return Ok(Self::Threads(threads));
        }
        Self::by_ticks(pid)
    }

    fn by_ticks(pid: u32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the measured process is gone")?;
        // The name in parentheses may hold spaces; `utime` and `stime` are fields 14 and 15, the first after it is 3.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
        let (Some(user), Some(system)) = (ticks(11), ticks(12)) else { bail!("/proc/{pid}/stat: {stat}") };
        let per_second = rustix::param::clock_ticks_per_second().max(1);
        Ok(Self::Process(Duration::from_nanos((user + system) * 1_000_000_000 / per_second)))
    }

    /// What was spent since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Duration {
        match (self, earlier) {
            (Self::Threads(now), Self::Threads(then)) => now
                .iter()
                .map(|(tid, time)| time.saturating_sub(then.get(tid).copied().unwrap_or_default()))
                .sum(),
            (Self::Process(now), Self::Process(then)) => now.saturating_sub(*then),
            // The kernel does not change its mind between two looks.
            _ => Duration::ZERO,
        }
    }
}

/// A process that this one has started, if there is one.
pub(crate) fn first_child(pid: u32) -> Result<Option<u32>> {
    let children =
        fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).context("the process is gone")?;
    Ok(children.split_ascii_whitespace().next().and_then(|child| child.parse().ok()))
}

/// Resident memory of a process, in bytes.
pub(crate) fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the measured process is gone")?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|number| number.trim().parse::<u64>().ok())
        .context("no VmRSS in /proc/<pid>/status")?;
    Ok(kib * 1024)
}

/// The middle one.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}
