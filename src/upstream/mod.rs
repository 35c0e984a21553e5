//! The way to Flexport: link rewriting, one attempt with its time limits, the client with its pool.
//!
//! `stack.rs` puts breaker and limiter between [`LinksLayer`] and [`Attempt`]. Credentials are attached in
//! [`Attempt`], after everything that stores or keys a request, so that no secret can end up in either.
//!
//! Failure behaviour: [`Attempt`] returns an answer's head, or a `ProxyError` whose `Delivery` says whether bytes can
//! have left. It tells the call's observer exactly once how the attempt went: at the end of the body, or at once when
//! there was no head. The pools (`h1`, `h2`) never resend; what no connection took comes back as `Unsent`.

mod attempt;
mod body;
mod client;
mod connect;
mod h1;
mod h2;
mod links;
mod probe;
mod proxy;
mod status_page;
#[cfg(test)]
mod tests;
mod tls;

pub use attempt::Attempt;
pub use client::{Client, ClientError};
pub use connect::{Dial, Source, Wire};
pub use links::{Links, LinksLayer};
pub use probe::{Target, run as run_probes};
pub use status_page::{Indicator, PageStatus, StatusPage};
