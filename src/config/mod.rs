//! `proxy.toml`: what can be set, how it is read, and what the layers see of it.
//!
//! [`load`] lays defaults, file, environment and `--set` over each other (`overlay`), holds each value to the
//! table of keys (`schema`), checks what goes across fields (`validate`), reads the secrets and makes a
//! [`Snapshot`] (`resolve`). It names every problem, each with its place. [`Live`] holds the snapshot in use and
//! replaces it, all or nothing.

mod diagnose;
mod load;
mod overlay;
mod policy;
pub mod raw;
mod reload;
mod resolve;
mod schema;
mod secret;
mod snapshot;
#[cfg(test)]
mod tests;
mod tls;
mod validate;

pub use diagnose::{Diagnostics, Origin, Origins, Problem};
pub use load::{LoadArgs, load};
pub use raw::Settings;
pub use reload::{Live, NEEDS_RESTART, ReloadReport};
pub use secret::Secret;
pub use snapshot::{Caller, Snapshot};
pub use tls::UpstreamTls;
