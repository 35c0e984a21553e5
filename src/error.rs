//! Every way in which a request can end without an answer of Flexport's.
//!
//! Layers below `front::rescue` return these; `rescue` alone turns one into a response, through the catalogue in
//! `flexport::problem`. The enum is closed so that both that catalogue and `http::delivery` are total.
//! No variant carries a secret: texts come from our own code, or from an error of the network.

use crate::ids::WriteId;
use std::time::Duration;

/// Why there is no answer of the upstream's.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProxyError {
    /// A breaker keeps the request back.
    #[error("the breaker of {scope} is open")]
    BreakerOpen {
        /// `global`, `<group>:read` or `<group>:write`.
        scope: String,
        /// When asking again makes sense.
        retry_after: Duration,
    },
    /// No slot of ours was free in time.
    #[error("too many requests are in flight ({what})")]
    Overloaded {
        /// The limit that was full.
        what: &'static str,
    },
    /// A rate gate is shut.
    #[error("the upstream's rate limit is used up")]
    RateLimited {
        /// When it opens.
        retry_after: Duration,
    },
    /// The caller's time was up before anything was sent.
    #[error("the time limit passed before the request could be sent")]
    DeadlineBeforeSending,
    /// DNS, TCP, TLS or the handshake failed.
    #[error("the upstream cannot be reached: {0}")]
    Connect(String),
    /// The connection took nothing of the request.
    #[error("the request was not sent: {0}")]
    Unsent(String),
    /// No head within the attempt's time limit.
    #[error("the upstream did not answer in time")]
    HeadTimeout,
    /// The connection broke after bytes had left.
    #[error("the upstream's answer was cut short: {0}")]
    Cut(String),
    /// The request's own body could not be read to its end.
    #[error("the request's body could not be read: {0}")]
    RequestBody(crate::http::BodyError),
    /// The request's body is too long.
    #[error("the request's body is longer than {limit} bytes")]
    BodyTooLarge {
        /// In bytes.
        limit: u64,
    },
    /// The caller is not known.
    #[error("{reason}")]
    Unauthorized {
        /// What to do about it; no token.
        reason: &'static str,
    },
    /// A field of the request is malformed.
    #[error("{field}: {message}")]
    BadRequest {
        /// The field or part that is wrong.
        field: &'static str,
        /// What is wrong, and what to send instead.
        message: String,
    },
    /// The write queue has no room.
    #[error("the write queue is full: {what}")]
    QueueFull {
        /// The limit that was reached.
        what: String,
        /// When asking again makes sense.
        retry_after: Duration,
    },
    /// Nothing durable can be had.
    #[error("the write could not be stored: {0}")]
    StoreFailed(String),
    /// The write was sent and its outcome is not known.
    #[error(
        "the write was sent and its outcome is not known; look at its ticket, and do not repeat it under another key"
    )]
    OutcomeUnknown {
        /// Its ticket.
        write_id: WriteId,
        /// The key that went with it.
        key: Option<Box<str>>,
        /// Whether it was on disk before it was sent.
        is_durable: bool,
    },
    /// A write that cannot be queued stands behind an unsettled one.
    #[error("an older write of the same resource is not settled")]
    OrderConflict {
        /// The oldest of them.
        write_id: WriteId,
        /// When asking again makes sense.
        retry_after: Duration,
    },
    /// The same idempotency key came with another request.
    #[error("this Idempotency-Key was used for a different request")]
    KeyReused,
    /// The request with this idempotency key is still under way.
    #[error("the request with this Idempotency-Key is still under way")]
    KeyInFlight {
        /// Its ticket, when it has one.
        write_id: Option<WriteId>,
    },
    /// A resource of ours does not exist.
    #[error("{0}")]
    NotFound(String),
    /// A resource of ours is not in a state for this.
    #[error("{message}")]
    Conflict {
        /// In which state it is, and what can be done.
        message: String,
    },
    /// Seawall is shutting down.
    #[error("Seawall is shutting down")]
    Draining,
    /// A bug of ours.
    #[error("internal error: {0}")]
    Internal(String),
}
