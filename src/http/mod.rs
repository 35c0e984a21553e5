//! The vocabulary of HTTP: bodies, fields, and the rules of the RFCs as pure functions.

pub mod body;
pub mod delivery;

pub use body::{Body, BodyError};
pub use delivery::Delivery;
