//! Integration tests: the whole proxy in process, and the shape of the code.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod architecture;
mod docs;
