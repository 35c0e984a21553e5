//! The vocabulary of HTTP: bodies, fields, and the rules of the RFCs as pure functions.

pub mod body;
pub mod date;
pub mod delivery;
pub mod headers;
pub mod prefer;
pub mod retry_after;

pub use body::{Body, BodyError};
pub use delivery::Delivery;
