//! How much of the upstream is used: a rate gate for each credential, and a limited number of calls at once.
//!
//! A call first passes the gate of its credential (`gate`: shut by a 429 until `Retry-After`), then takes a slot
//! (`lanes`, as many as `adaptive` thinks the upstream bears). Not the other way round: who waits at a gate would hold
//! slots that other credentials could use. Right before the first byte leaves the attempt asks the gate again through
//! its slot, so that nothing leaves inside a gate that was shut meanwhile.
//!
//! A slot is held until the upstream's body has ended, not until its head has come: a hundred half-read bodies load
//! the upstream as much as a hundred waiting heads.
//!
//! Both waits together are bounded by `limiter.max_wait` and by the call's own deadline. Who cannot wait gets
//! `RateLimited` or `Overloaded`, which a cached copy or the write queue absorbs; neither is an outcome for a breaker.
//! After any wait the breaker is asked again.
//!
//! What is well costs a look at an atomic for the gate and one uncontended lock for the slot; no clock is read.

pub mod adaptive;
pub mod gate;
pub mod gates;
pub mod lanes;
mod layer;
pub mod lesson;
pub mod pacing;
mod service;

pub use layer::LimitLayer;
pub use service::Limit;

use crate::context::Lane;

/// A span since the limiter was made.
pub type Moment = std::time::Duration;

/// How many lanes there are.
const LANES: usize = 5;

/// Whose turn it is first. A probe is asked for by nobody, but is rare and tells whether the rest makes sense.
const IN_TURN: [Lane; LANES] = [Lane::Probe, Lane::LiveRead, Lane::LiveWrite, Lane::Refresh, Lane::Replay];

/// The place of a lane in [`IN_TURN`].
fn index(lane: Lane) -> usize {
    match lane {
        Lane::Probe => 0,
        Lane::LiveRead => 1,
        Lane::LiveWrite => 2,
        Lane::Refresh => 3,
        Lane::Replay => 4,
    }
}
