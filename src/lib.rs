//! Seawall: a resilience proxy for the Flexport freight API.
//!
//! The modules stand in rows; a module may use its own row and the rows above it. `tests/it/architecture.rs`
//! holds the code to that, and `docs/ARCHITECTURE.md` tells the whole story.

// Row 0: vocabulary. No I/O, no configuration.
pub mod clock;
pub mod error;
pub mod event;
pub mod flexport;
pub mod http;
pub mod ids;

// Row 1: ground. No HTTP service of ours.
pub mod config;
pub mod context;
pub mod store;
pub mod task;
pub mod telemetry;

// Row 2: capabilities. They never import each other.
pub mod breaker;
pub mod cache;
pub mod front;
pub mod limit;
pub mod queue;
pub mod retry;
pub mod upstream;

// Row 3: assembly.
pub mod admin;
pub mod server;
pub mod stack;

// Row 4: programs.
pub mod app;
pub mod cli;
#[cfg(feature = "simulator")]
pub mod sim;

#[cfg(test)]
mod tests;
