//! Integration tests: the whole proxy in process, and the shape of the code.

mod architecture;
