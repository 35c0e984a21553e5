//! `proxy.toml`: what can be set, how it is read, and what the layers see of it.

pub mod raw;
mod secret;
mod snapshot;

pub use raw::Settings;
pub use secret::Secret;
pub use snapshot::{Caller, Snapshot};
