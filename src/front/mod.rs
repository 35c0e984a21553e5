//! What every request meets first: its context, its log line, its limits, and who it is.
//!
//! The order stands in `stack.rs`. Two of the layers split the stack in two: below [`rescue`](Rescue) there are only
//! errors, above it only responses; and `Authorization` is looked at in [`auth`](Auth) and nowhere else, so that a
//! request reaches the cache only with an identity.

mod auth;
mod context;
mod identity;
mod limits;
mod rescue;
mod trace;

pub use auth::{Auth, AuthLayer};
pub use context::{ContextLayer, Contextual, Peer};
pub use identity::Identifier;
pub use limits::{Limits, LimitsLayer};
pub use rescue::{Rescue, RescueLayer};
pub use trace::{Trace, TraceLayer};
