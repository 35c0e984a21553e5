//! The vocabulary of HTTP: bodies, fields, and the rules of the RFCs as pure functions.

pub mod body;
pub mod cache_control;
pub mod cache_status;
pub mod date;
pub mod decided;
pub mod delivery;
pub mod fields;
pub mod headers;
pub mod idempotency;
pub(crate) mod interim;
pub mod origin;
pub mod prefer;
pub mod present;
pub(crate) mod range;
pub(crate) mod reference;
pub mod retry_after;
pub(crate) mod structured;
pub mod traceparent;

pub use body::{Body, BodyError};
pub use delivery::Delivery;
pub use fields::Fields;
pub use present::Present;
