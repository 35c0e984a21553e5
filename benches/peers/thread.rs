//! What a piece of code has cost: the CPU time of the thread that runs it, so that what else runs takes none of it.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Of this thread, until now.
pub(crate) fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}
