//! How much of the upstream is used at once: a plain limit on concurrent calls.
//!
//! A slot is held until the upstream's body has ended, not until its head has come: a hundred half-read bodies load
//! the upstream as much as a hundred waiting heads. Waiting is bounded by `limiter.max_wait` and by the call's own
//! deadline; who cannot wait gets `Overloaded`, which a cached copy or the write queue absorbs.

mod layer;
mod service;

pub use layer::LimitLayer;
pub use service::Limit;
