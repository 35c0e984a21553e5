//! Integration tests: the whole proxy in process, and the shape of the code.

#![expect(unreachable_pub, reason = "the support modules are a small library to the tests beside them")]

mod architecture;
mod support;
mod writes;
