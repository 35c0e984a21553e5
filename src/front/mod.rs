//! (module front)
