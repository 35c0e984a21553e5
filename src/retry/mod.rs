//! One further attempt where it helps and cannot harm.
//!
//! A read that met a passing failure, and a write of which provably nothing was sent, are tried once more: after a
//! short wait with jitter, within the call's deadline, only while the breakers let traffic flow (`closed` or
//! `ramping`), and only as long as the budget lasts: a tenth of the first attempts of the last ten seconds, and one a
//! second. The budget is spent when the retry is decided, not when it ends, so that a slow failure cannot let more of
//! them start. There is no second retry, none of what we refused ourselves, and no hedging.
//!
//! It stands outside the limiter: the first attempt's slot is free while the second waits, and the second passes gate
//! and lane like any other call. An answer of the upstream is kept over the wait: when the second attempt is refused by
//! ourselves, or has no answer, the caller gets what the upstream said.

pub mod budget;
mod layer;
pub mod policy;
mod service;

pub use layer::{IsFlowing, RetryLayer};
pub use service::Retry;

#[cfg(test)]
mod tests;
