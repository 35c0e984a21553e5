//! The write queue: a write that cannot be sent now is kept on disk and sent later, in order, once.
//!
//! **The promise of a 202**: this write is on disk, synced, and will be sent to Flexport, in order, so that it takes
//! effect once, or somebody will be told that it did not. Nothing is acknowledged that does not hold after a power
//! cut, and nothing is sent again that could take effect twice.
//!
//! | file | holds |
//! |---|---|
//! | [`admit`] | pure: what an outcome means for a write, live and replayed |
//! | [`state`] | pure: the life of a write |
//! | [`order`] | pure: one queue of places per order key, over live writes and records |
//! | [`dedupe`] | pure: keys, fingerprints, twins |
//! | [`pace`] | pure: which record is sent next |
//! | [`record`] | pure: what is kept of a write, and its bytes |
//! | `book` | all writes in memory, with every index |
//! | `journal` | records on the store |
//! | `hub` | the queue itself: start, steps, end; where callers leave, processes die and disks fail |
//! | `live` | a write with a caller waiting |
//! | `replay` | records, when Flexport is well again |
//! | `tickets` | what callers and operators see and ask |
//! | `verify` | whether what is stored holds together |
//! | `layer`, `service`, `buffer` | the place in the stack |

pub mod admit;
mod book;
mod buffer;
pub mod dedupe;
mod hub;
mod journal;
mod jump;
mod layer;
mod live;
mod mark;
pub mod order;
pub mod pace;
pub mod record;
mod replay;
mod service;
pub mod state;
mod tickets;
pub mod verify;

#[cfg(test)]
mod tests;

pub use hub::{Config, LAST_WRITES, OpenError, Parts, Queue};
pub use layer::QueueLayer;
pub use service::QueueService;
pub use state::{State, Verdict};
pub use tickets::{AnswerView, Filter, Page, PausedView, Stats, TicketView};
