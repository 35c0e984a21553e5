//! What is counted and logged.

mod encode;
mod logs;
mod metrics;

pub use encode::{CONTENT_TYPE, encode};
pub use logs::{init as init_logs, set_filter as set_log_filter};
pub use metrics::*;
