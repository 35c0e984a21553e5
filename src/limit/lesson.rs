//! Pure. What a call's outcome teaches the limiter and its gate: one total table over [`Delivery`], as the breaker's.
//!
//! Congestion is what Flexport shows when it has too much: 429, 503, 504, 408, no connection, no head in time. Other
//! failures are no reason to send less, and what breaks off on its way says nothing of capacity. The match has no
//! wildcard: a new kind of outcome does not compile until it has been judged.

use crate::http::delivery::{Class, Delivery, Doubt, Refusal, Unsent};
use http::StatusCode;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lesson {
    /// The credential is too fast: its gate shuts. It is congestion, too.
    Limited,
    /// There is too much under way.
    Congested,
    /// It went well.
    Success,
    /// Nothing.
    Nothing,
}

/// The table. Who was hurried waited for less than the route allows: that no head came says nothing then.
pub fn of(delivery: Delivery, is_hurried: bool) -> Lesson {
    match delivery {
        Delivery::Refused(Refusal::TooManyRequests) => Lesson::Limited,
        Delivery::Refused(Refusal::Unavailable)
        | Delivery::Ambiguous(Doubt::ServerError(
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT,
        ))
        | Delivery::Answered(Class::RequestTimeout)
        | Delivery::NotSent(Unsent::Connect) => Lesson::Congested,
        Delivery::Ambiguous(Doubt::HeadTimeout) if !is_hurried => Lesson::Congested,
        Delivery::Answered(
            Class::Success
            | Class::Unauthorized
            | Class::Forbidden
            | Class::TryAgain
            | Class::Client
            | Class::Unsupported,
        ) => Lesson::Success,
        Delivery::Ambiguous(Doubt::HeadTimeout | Doubt::Cut | Doubt::ServerError(_))
        | Delivery::NotSent(Unsent::Connection | Unsent::Ours) => Lesson::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::delivery;

    #[test]
    fn too_much_is_told_by_429_503_504_408_and_by_silence_and_by_no_other_failure() {
        let answered = |status: u16, names_a_wait| {
            of(delivery::of_answer(StatusCode::from_u16(status).unwrap(), names_a_wait), false)
        };
        for status in [200, 204, 301, 304, 400, 401, 403, 404, 409, 410, 412, 422, 425, 501, 505, 511] {
            assert_eq!(answered(status, false), Lesson::Success, "{status}");
        }
        for (status, names_a_wait) in [(408, false), (503, false), (503, true), (504, false)] {
            assert_eq!(answered(status, names_a_wait), Lesson::Congested, "{status}");
        }
        for status in [101, 500, 502, 507, 599] {
            assert_eq!(answered(status, false), Lesson::Nothing, "{status}");
        }
        assert_eq!(answered(429, false), Lesson::Limited);
        assert_eq!(of(Delivery::NotSent(Unsent::Connect), false), Lesson::Congested);
        assert_eq!(of(Delivery::Ambiguous(Doubt::HeadTimeout), false), Lesson::Congested);
        for delivery in [
            Delivery::Ambiguous(Doubt::Cut),
            Delivery::NotSent(Unsent::Connection),
            Delivery::NotSent(Unsent::Ours),
        ] {
            assert_eq!(of(delivery, false), Lesson::Nothing, "{delivery:?}");
        }
    }

    #[test]
    fn our_callers_impatience_is_no_congestion() {
        assert_eq!(of(Delivery::Ambiguous(Doubt::HeadTimeout), true), Lesson::Nothing);
        assert_eq!(of(Delivery::NotSent(Unsent::Connect), true), Lesson::Congested);
    }
}
