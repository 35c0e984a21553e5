//! `proxy.toml`: what can be set, how it is read, and what the layers see of it.
//!
//! [`load`] lays defaults, file, environment and `--set` over each other (`overlay`), holds each value to the
//! table of keys (`schema`), checks what goes across fields (`validate`), reads the secrets and makes a
//! [`Snapshot`] (`resolve`). It names every problem, each with its place. [`Live`] holds the snapshot in use and
//! replaces it, all or nothing. `describe`, `show` and `json_schema` tell others what there is and what is in force.

mod describe;
mod diagnose;
mod json_schema;
mod load;
mod overlay;
mod policy;
pub mod raw;
mod reload;
mod resolve;
mod schema;
mod secret;
mod show;
mod snapshot;
#[cfg(test)]
mod tests;
mod tls;
mod validate;

pub use diagnose::{Diagnostics, Origin, Origins, Problem};
pub use json_schema::{json_schema, reference};
pub use load::{LoadArgs, load};
pub use raw::Settings;
pub use reload::{LastReload, Live, NEEDS_RESTART, ReloadReport, Trigger};
pub use secret::Secret;
pub use show::Shown;
pub use snapshot::{Caller, Snapshot};
pub use tls::UpstreamTls;
pub use validate::log_filter;
