//! What is counted and logged.

mod encode;
mod metrics;

pub use encode::{CONTENT_TYPE, encode};
pub use metrics::*;
