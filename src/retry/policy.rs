//! Pure. What may be tried once more: one total table over [`Delivery`].

use crate::context::Lane;
use crate::http::delivery::{Class, Delivery, Doubt, Refusal, Unsent};
use std::time::Duration;

/// The shortest wait.
const BASE: Duration = Duration::from_millis(100);
/// The longest.
const CAP: Duration = Duration::from_secs(2);

/// Whether an attempt that ended so may be repeated.
pub fn may_repeat(delivery: Delivery, is_read: bool) -> bool {
    match delivery {
        // No connection, so nothing was sent.
        Delivery::NotSent(Unsent::Connect) => true,
        Delivery::Ambiguous(Doubt::Cut | Doubt::ServerError(_))
        | Delivery::Answered(Class::RequestTimeout) => is_read,
        Delivery::NotSent(
            // Repeated at once, once, by whoever sends.
            Unsent::Connection
            // We had a reason.
            | Unsent::Ours,
        )
        // It told when to come again, or how much is too much.
        | Delivery::Refused(Refusal::TooManyRequests | Refusal::Unavailable)
        // Twice thirty seconds help nobody.
        | Delivery::Ambiguous(Doubt::HeadTimeout)
        | Delivery::Answered(
            Class::Success
            | Class::Unauthorized
            | Class::Forbidden
            | Class::TryAgain
            | Class::Client
            | Class::Unsupported,
        ) => false,
    }
}

/// Whether calls of this lane are tried again at all: those behind which somebody waits. The replayer has its own
/// back-off, a refresh comes again, a probe is one.
pub fn is_for(lane: Lane) -> bool {
    match lane {
        Lane::LiveRead | Lane::LiveWrite => true,
        Lane::Refresh | Lane::Replay | Lane::Probe => false,
    }
}

/// How long to wait (decorrelated jitter: from the least to three times the last wait). `random` is from 0 to 1.
pub fn wait(random: f64) -> Duration {
    (BASE + BASE.mul_f64(2.0 * random.clamp(0.0, 1.0))).min(CAP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;

    #[test]
    fn a_write_is_repeated_only_when_nothing_was_sent() {
        let deliveries = [
            Delivery::NotSent(Unsent::Connection),
            Delivery::NotSent(Unsent::Ours),
            Delivery::Refused(Refusal::TooManyRequests),
            Delivery::Refused(Refusal::Unavailable),
            Delivery::Ambiguous(Doubt::HeadTimeout),
            Delivery::Ambiguous(Doubt::Cut),
            Delivery::Ambiguous(Doubt::ServerError(StatusCode::BAD_GATEWAY)),
            Delivery::Answered(Class::RequestTimeout),
            Delivery::Answered(Class::Success),
            Delivery::Answered(Class::Client),
        ];
        for delivery in deliveries {
            assert!(!may_repeat(delivery, false), "{delivery:?}");
        }
        assert!(may_repeat(Delivery::NotSent(Unsent::Connect), false));
    }

    #[test]
    fn a_read_is_repeated_after_a_passing_failure_and_never_after_an_answer_or_a_timeout() {
        for status in [500u16, 502, 503, 504] {
            let status = StatusCode::from_u16(status).unwrap();
            assert!(may_repeat(Delivery::Ambiguous(Doubt::ServerError(status)), true));
        }
        assert!(may_repeat(Delivery::Answered(Class::RequestTimeout), true));
        for delivery in [
            Delivery::Ambiguous(Doubt::HeadTimeout),
            Delivery::Refused(Refusal::TooManyRequests),
            Delivery::NotSent(Unsent::Ours),
            Delivery::Answered(Class::Unsupported),
            Delivery::Answered(Class::Unauthorized),
        ] {
            assert!(!may_repeat(delivery, true), "{delivery:?}");
        }
    }

    #[test]
    fn waits_are_short_and_never_none() {
        assert_eq!(wait(0.0), BASE);
        assert_eq!(wait(1.0), BASE * 3);
        assert_eq!(wait(9.0), BASE * 3);
    }
}
