//! The listeners: accepting, the connection's own limits, the protocol, the end.
//!
//! hyper has no limit before a connection's first byte, and its limit for the head also ends idle connections. So the
//! connection's own stream ([`conn`]) knows the three states (nothing yet, a head in progress, idle between requests)
//! and watches each with its own limit; it also cuts a client that takes nothing of its answer.

mod conn;
mod drain;
mod listener;
mod local;
mod pump;

pub use drain::Drain;
pub use listener::{Limits, Listener, bind};
pub use local::{Local, LocalLayer};
