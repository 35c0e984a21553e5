//! (module sim)
