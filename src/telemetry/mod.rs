//! What is counted and logged.

mod encode;
mod logs;
mod metrics;

pub use encode::{CONTENT_TYPE, encode};
pub use logs::init as init_logs;
pub use metrics::*;
