//! (module breaker)
