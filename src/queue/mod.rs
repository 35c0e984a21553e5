//! (module queue)
