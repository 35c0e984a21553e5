//! Pure. What became of one attempt, as one total table.
//!
//! Breaker, limiter, retry, stale policy and queue all have to answer "what does this outcome mean?". They match on
//! [`Delivery`], so that there is one table and not five, and a new status or error cannot be forgotten in one of
//! them: [`of`] is a `match` over every [`ProxyError`] and every status class.
//!
//! The distinction that matters most is between *not sent* and *ambiguous*: the first may be sent again without a
//! thought, the second may already have taken effect.

use crate::error::ProxyError;
use http::{StatusCode, header};

/// What became of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// No byte of the request can have reached the application.
    NotSent(Unsent),
    /// The application said that it did not act.
    Refused(Refusal),
    /// It may have acted or not.
    Ambiguous(Doubt),
    /// It gave its answer.
    Answered(Class),
}

/// Why nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsent {
    /// DNS, TCP, TLS or the handshake failed: the path to the upstream is broken.
    Connect,
    /// The connection refused the stream (`REFUSED_STREAM`, `GOAWAY`), or a pooled one was dead before any byte.
    Connection,
    /// We ourselves refused: breaker, limiter, gate, drain.
    Ours,
}

/// How the upstream refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 429.
    TooManyRequests,
    /// 503 with `Retry-After`.
    Unavailable,
}

/// What makes it doubtful.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// No answer's head came in time.
    HeadTimeout,
    /// The connection ended, or the answer was not HTTP, after bytes had left.
    Cut,
    /// A 5xx, other than those that say "I do not do this", and other than 503 with `Retry-After`.
    ServerError(StatusCode),
}

/// The kind of answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// 2xx, 3xx, and those 4xx that only a working application gives: 404, 409, 410, 412, 422.
    Success,
    /// 401.
    Unauthorized,
    /// 403.
    Forbidden,
    /// 408: the upstream gave up waiting for us.
    RequestTimeout,
    /// 421 or 425: nothing was done, another time it may be.
    TryAgain,
    /// Another 4xx.
    Client,
    /// 501, 505, 511.
    Unsupported,
}

/// The table. `answer` is the final answer's status and fields.
pub fn of(result: Result<(StatusCode, &http::HeaderMap), &ProxyError>) -> Delivery {
    match result {
        Ok((status, headers)) => of_answer(status, headers.contains_key(header::RETRY_AFTER)),
        Err(error) => of_error(error),
    }
}

/// The part of the table for answers.
pub fn of_answer(status: StatusCode, has_retry_after: bool) -> Delivery {
    match status.as_u16() {
        429 => Delivery::Refused(Refusal::TooManyRequests),
        503 if has_retry_after => Delivery::Refused(Refusal::Unavailable),
        501 | 505 | 511 => Delivery::Answered(Class::Unsupported),
        401 => Delivery::Answered(Class::Unauthorized),
        403 => Delivery::Answered(Class::Forbidden),
        408 => Delivery::Answered(Class::RequestTimeout),
        421 | 425 => Delivery::Answered(Class::TryAgain),
        200..=399 | 404 | 409 | 410 | 412 | 422 => Delivery::Answered(Class::Success),
        400..=499 => Delivery::Answered(Class::Client),
        _ => Delivery::Ambiguous(Doubt::ServerError(status)),
    }
}

/// The part of the table for errors.
pub fn of_error(error: &ProxyError) -> Delivery {
    match error {
        ProxyError::Connect(_) => Delivery::NotSent(Unsent::Connect),
        ProxyError::Unsent(_) => Delivery::NotSent(Unsent::Connection),
        ProxyError::BreakerOpen { .. }
        | ProxyError::Overloaded { .. }
        | ProxyError::RateLimited { .. }
        | ProxyError::DeadlineBeforeSending
        | ProxyError::Unauthorized { .. }
        | ProxyError::BadRequest { .. }
        | ProxyError::BodyTooLarge { .. }
        | ProxyError::RequestBody(_)
        | ProxyError::QueueFull { .. }
        | ProxyError::StoreFailed(_)
        | ProxyError::OrderConflict { .. }
        | ProxyError::KeyReused
        | ProxyError::KeyInFlight { .. }
        | ProxyError::NotFound(_)
        | ProxyError::Conflict { .. }
        | ProxyError::Draining => Delivery::NotSent(Unsent::Ours),
        ProxyError::HeadTimeout => Delivery::Ambiguous(Doubt::HeadTimeout),
        ProxyError::Cut(_) | ProxyError::OutcomeUnknown { .. } | ProxyError::Internal(_) => {
            Delivery::Ambiguous(Doubt::Cut)
        }
    }
}

// === impl Delivery ===

impl Delivery {
    /// Whether a cached copy may stand for this outcome of a read: the upstream is unreachable, silent, broken or
    /// pushing back. Not for any other 4xx, not for 3xx.
    pub fn is_outage(self) -> bool {
        match self {
            Self::NotSent(_)
            | Self::Refused(_)
            | Self::Ambiguous(_)
            | Self::Answered(Class::RequestTimeout) => true,
            Self::Answered(
                Class::Success
                | Class::Unauthorized
                | Class::Forbidden
                | Class::TryAgain
                | Class::Client
                | Class::Unsupported,
            ) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_for_answers() {
        let of = |status: u16, retry_after| of_answer(StatusCode::from_u16(status).unwrap(), retry_after);
        for status in [200, 201, 204, 301, 302, 304, 404, 409, 410, 412, 422] {
            assert_eq!(of(status, false), Delivery::Answered(Class::Success), "{status}");
        }
        assert_eq!(of(400, false), Delivery::Answered(Class::Client));
        assert_eq!(of(401, false), Delivery::Answered(Class::Unauthorized));
        assert_eq!(of(429, false), Delivery::Refused(Refusal::TooManyRequests));
        assert_eq!(of(503, true), Delivery::Refused(Refusal::Unavailable));
        for status in [500u16, 502, 503, 504, 599] {
            let code = StatusCode::from_u16(status).unwrap();
            assert_eq!(of(status, false), Delivery::Ambiguous(Doubt::ServerError(code)));
        }
        for status in [501, 505, 511] {
            assert_eq!(of(status, true), Delivery::Answered(Class::Unsupported));
        }
        // A switch of protocols that nobody asked for is a broken answer.
        assert!(matches!(of(101, false), Delivery::Ambiguous(_)));
    }

    #[test]
    fn our_own_refusals_are_never_ambiguous() {
        let error = ProxyError::Draining;
        assert_eq!(of(Err(&error)), Delivery::NotSent(Unsent::Ours));
        assert_eq!(of(Err(&ProxyError::HeadTimeout)), Delivery::Ambiguous(Doubt::HeadTimeout));
    }
}
