//! Pure. What an attempt's outcome says about Flexport: the one table, for the group's breaker and for `global`.
//!
//! `global` judges the way to Flexport (DNS, TCP, TLS, handshake), a group's breakers judge its answers. So a refused
//! connection blames no group, and a 500 is good news for `global`. The caller's own mistakes (most 4xx), pushing
//! back (429) and local causes blame nobody.
//!
//! The match has no wildcard: a new kind of outcome does not compile until it has been judged.

use crate::context::{AttemptOutcome, BodyEnd};
use crate::http::delivery::{Class, Delivery, Doubt, Refusal, Unsent};
use std::time::Duration;

/// What one breaker makes of an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It works.
    Success,
    /// It works, but the head took too long.
    Slow,
    /// The head had not come when our caller left, after too long a time.
    Hung,
    /// It does not work.
    Failure {
        /// In which way.
        fault: Fault,
        /// Whether it also took too long to find out.
        is_slow: bool,
    },
    /// It says nothing about health, but Flexport itself answered in time.
    Answer,
    /// It says nothing.
    Neutral,
}

/// In which way it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// DNS, TCP, TLS or the handshake.
    Connect,
    /// No head in time.
    HeadTimeout,
    /// The connection ended before the head.
    Cut,
    /// The body did not come whole.
    Body,
    /// This status.
    Status(u16),
    /// A probe did not end in time.
    Overdue,
}

/// What the two breakers of a call make of an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdicts {
    /// For the group's breaker.
    pub(super) group: Verdict,
    /// For `global`.
    pub(super) global: Verdict,
}

/// The table. A head after `slow` is slow; `patience` is what a caller that left before the head must have waited for
/// its leaving to mean anything.
pub(super) fn judge(outcome: &AttemptOutcome, slow: Duration, patience: Duration) -> Verdicts {
    let is_slow = outcome.head_after > slow;
    let failure = |fault| Verdict::Failure { fault, is_slow };
    let success = if is_slow { Verdict::Slow } else { Verdict::Success };
    let neutral = if is_slow { Verdict::Neutral } else { Verdict::Answer };
    let verdicts = |group, global| Verdicts { group, global };
    match outcome.delivery {
        Delivery::NotSent(Unsent::Connect) => {
            // That the path is broken is known also of a caller that left.
            verdicts(Verdict::Neutral, failure(Fault::Connect).without_slow())
        }
        Delivery::NotSent(Unsent::Connection | Unsent::Ours) => verdicts(Verdict::Neutral, Verdict::Neutral),
        Delivery::Ambiguous(Doubt::HeadTimeout) => {
            verdicts(Verdict::Failure { fault: Fault::HeadTimeout, is_slow: true }, Verdict::Neutral)
        }
        Delivery::Ambiguous(Doubt::Cut) => match outcome.body {
            BodyEnd::Complete | BodyEnd::Broken => verdicts(failure(Fault::Cut), Verdict::Neutral),
            // We cut it ourselves, before there was a head.
            BodyEnd::Abandoned => {
                let is_hung = outcome.head_after > patience;
                verdicts(if is_hung { Verdict::Hung } else { Verdict::Neutral }, Verdict::Neutral)
            }
        },
        // What failed by its status has failed, whatever became of its body: nobody reads the body of an error that
        // a stale copy stands for.
        Delivery::Ambiguous(Doubt::ServerError(status)) => {
            verdicts(failure(Fault::Status(status.as_u16())), Verdict::Success)
        }
        Delivery::Refused(Refusal::Unavailable) => verdicts(failure(Fault::Status(503)), Verdict::Success),
        Delivery::Answered(Class::RequestTimeout) => verdicts(failure(Fault::Status(408)), Verdict::Success),
        Delivery::Refused(Refusal::TooManyRequests)
        | Delivery::Answered(
            Class::Unauthorized | Class::Forbidden | Class::TryAgain | Class::Client | Class::Unsupported,
        ) => match outcome.body {
            BodyEnd::Complete | BodyEnd::Abandoned => verdicts(neutral, Verdict::Success),
            BodyEnd::Broken => verdicts(failure(Fault::Body), Verdict::Neutral),
        },
        Delivery::Answered(Class::Success) => match outcome.body {
            BodyEnd::Complete => verdicts(success, Verdict::Success),
            BodyEnd::Broken => verdicts(failure(Fault::Body), Verdict::Neutral),
            BodyEnd::Abandoned => {
                verdicts(if is_slow { Verdict::Slow } else { Verdict::Neutral }, Verdict::Success)
            }
        },
    }
}

// === impl Verdicts ===

impl Verdicts {
    /// Neither of them speaks for a transition.
    pub(super) fn are_healthy(self) -> bool {
        self.group.is_healthy() && self.global.is_healthy()
    }
}

// === impl Verdict ===

impl Verdict {
    fn is_healthy(self) -> bool {
        match self {
            Self::Success | Self::Answer | Self::Neutral => true,
            Self::Slow | Self::Hung | Self::Failure { .. } => false,
        }
    }

    fn without_slow(self) -> Self {
        match self {
            Self::Failure { fault, is_slow: _ } => Self::Failure { fault, is_slow: false },
            Self::Success | Self::Slow | Self::Hung | Self::Answer | Self::Neutral => self,
        }
    }
}

// === impl Fault ===

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect => f.write_str("connect"),
            Self::HeadTimeout => f.write_str("head_timeout"),
            Self::Cut => f.write_str("cut"),
            Self::Body => f.write_str("body_broken"),
            Self::Status(status) => write!(f, "status_{status}"),
            Self::Overdue => f.write_str("probe_overdue"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::delivery;
    use http::StatusCode;

    const SLOW: Duration = Duration::from_secs(10);
    const PATIENCE: Duration = Duration::from_secs(5);

    fn judged(delivery: Delivery, head_after: u64, body: BodyEnd) -> (Verdict, Verdict) {
        let head_after = Duration::from_secs(head_after);
        let Verdicts { group, global } =
            judge(&AttemptOutcome { delivery, head_after, body, retry_after: None }, SLOW, PATIENCE);
        (group, global)
    }

    fn answered(status: u16, head_after: u64, body: BodyEnd) -> (Verdict, Verdict) {
        judged(delivery::of_answer(StatusCode::from_u16(status).unwrap(), status == 503), head_after, body)
    }

    fn failure(fault: Fault) -> Verdict {
        Verdict::Failure { fault, is_slow: false }
    }

    #[test]
    fn answers() {
        for status in [200, 201, 204, 301, 304, 404, 409, 410, 412, 422] {
            assert_eq!(
                answered(status, 1, BodyEnd::Complete),
                (Verdict::Success, Verdict::Success),
                "{status}"
            );
        }
        for status in [400, 401, 403, 405, 413, 421, 425, 429, 501, 505, 511] {
            assert_eq!(
                answered(status, 1, BodyEnd::Complete),
                (Verdict::Answer, Verdict::Success),
                "{status}"
            );
        }
        for status in [408, 500, 502, 503, 504, 507, 599] {
            let expected = (failure(Fault::Status(status)), Verdict::Success);
            assert_eq!(answered(status, 1, BodyEnd::Complete), expected, "{status}");
            assert_eq!(answered(status, 1, BodyEnd::Abandoned), expected, "{status}, body not read");
        }
    }

    #[test]
    fn the_way_to_flexport_is_the_matter_of_global_alone() {
        let connect = judged(Delivery::NotSent(Unsent::Connect), 3, BodyEnd::Complete);
        assert_eq!(connect, (Verdict::Neutral, failure(Fault::Connect)));
    }

    #[test]
    fn causes_of_our_own_blame_nobody() {
        for unsent in [Unsent::Connection, Unsent::Ours] {
            let own = judged(Delivery::NotSent(unsent), 60, BodyEnd::Complete);
            assert_eq!(own, (Verdict::Neutral, Verdict::Neutral));
        }
    }

    #[test]
    fn a_head_that_does_not_come_is_a_failure_and_slow_and_nothing_for_global() {
        let timeout = judged(Delivery::Ambiguous(Doubt::HeadTimeout), 5, BodyEnd::Complete);
        assert_eq!(
            timeout,
            (Verdict::Failure { fault: Fault::HeadTimeout, is_slow: true }, Verdict::Neutral)
        );
    }

    #[test]
    fn a_body_that_breaks_is_a_failure_whatever_its_head_said() {
        assert_eq!(answered(200, 1, BodyEnd::Broken), (failure(Fault::Body), Verdict::Neutral));
        assert_eq!(answered(401, 1, BodyEnd::Broken), (failure(Fault::Body), Verdict::Neutral));
        let cut = judged(Delivery::Ambiguous(Doubt::Cut), 1, BodyEnd::Complete);
        assert_eq!(cut, (failure(Fault::Cut), Verdict::Neutral));
    }

    #[test]
    fn a_caller_that_leaves_says_nothing_unless_it_waited_too_long() {
        assert_eq!(answered(200, 4, BodyEnd::Abandoned), (Verdict::Neutral, Verdict::Success));
        assert_eq!(answered(200, 11, BodyEnd::Abandoned), (Verdict::Slow, Verdict::Success));
        let before_head = |after| judged(Delivery::Ambiguous(Doubt::Cut), after, BodyEnd::Abandoned);
        assert_eq!(before_head(4), (Verdict::Neutral, Verdict::Neutral));
        assert_eq!(before_head(5), (Verdict::Neutral, Verdict::Neutral));
        assert_eq!(before_head(6), (Verdict::Hung, Verdict::Neutral));
    }

    #[test]
    fn four_seconds_are_not_slow_and_eleven_are() {
        assert_eq!(answered(200, 4, BodyEnd::Complete).0, Verdict::Success);
        assert_eq!(answered(200, 10, BodyEnd::Complete).0, Verdict::Success);
        assert_eq!(answered(200, 11, BodyEnd::Complete), (Verdict::Slow, Verdict::Success));
        let slow_failure = Verdict::Failure { fault: Fault::Status(500), is_slow: true };
        assert_eq!(answered(500, 11, BodyEnd::Complete).0, slow_failure);
        assert_eq!(answered(401, 11, BodyEnd::Complete).0, Verdict::Neutral);
    }
}
