//! Integration tests: the whole proxy in process, and the shape of the code.

#![expect(unreachable_pub, reason = "the support modules are a small library to the tests beside them")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod architecture;
mod breaker;
mod config;
mod deploy;
mod docs;
mod identity;
mod path;
mod reads;
mod support;
mod upstream;
mod warm;
mod writes;
