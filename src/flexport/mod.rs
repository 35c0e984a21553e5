//! (module flexport)
