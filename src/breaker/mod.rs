//! The breaker: whether Flexport is asked at all.
//!
//! One breaker for the connection (`global`) and two for each group of the route table (`<group>:read`,
//! `<group>:write`), so their number is bounded and a group that fails stops nothing but itself. A call takes at most
//! two permits, `global` first, once; each of its attempts records its outcome through the call's observer; the
//! permits are given back when the upstream's body has ended.
//!
//! What must never happen, and what prevents it:
//! * *a half-open breaker that stays half-open*: each probe has a deadline after which its slot is free and it counts
//!   as a failure; a permit that is dropped frees its slot (`word`);
//! * *a half-open breaker that lets a flood through*: one compare-and-swap takes a slot, of which there are three,
//!   and what follows is a ramp;
//! * *an outcome that counts for a state it does not belong to*: each transition and each override begins a
//!   generation, and what carries an older one touches nothing;
//! * *a wrong verdict*: one table (`classify`), a `match` over all of `Delivery`;
//! * *a forced state that vanishes*: overrides are on the disk before they are acknowledged (`overrides`).
//!
//! On the hot path there is no lock and no allocation per breaker. Transitions are rare and take a lock. A refusal
//! costs microseconds and is never recorded as an outcome.

mod classify;
mod layer;
mod load;
mod overrides;
mod patience;
mod permit;
mod registry;
mod scope;
mod service;
mod state;
mod window;
mod word;

/// The atomics of the state word. The package in `loom/` has the same file with loom's in their place, and runs every
/// order of its steps: `cargo run --release --manifest-path loom/Cargo.toml`.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicU64, Ordering};
}

pub use layer::Layer;
pub use overrides::{Override, OverrideError};
pub use permit::CallPermits;
pub use registry::{ALL, Breakers};
pub use scope::{DecidingOutcome, Probes, ScopeStatus, Trip, WindowStatus};
pub use service::{Admission, Admitted};
pub use word::{Mode, State};

#[cfg(test)]
mod tests;
