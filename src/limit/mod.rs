//! (module limit)
