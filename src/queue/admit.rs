//! Pure. What an outcome means for a write: the table "what is queued" for live writes, and the one for replays.
//!
//! Both rest on `http::delivery`, which alone decides what may have been applied. A 202 is never decided here alone:
//! it also needs a durable record, and without one the outcome becomes 503 or 507.

use super::record::Reason;
use super::state::Input;
use crate::error::ProxyError;
use crate::flexport::routes::WriteClass;
use crate::http::delivery::{self, Class, Delivery, Doubt, Refusal, Unsent};
use http::{HeaderMap, StatusCode};
use std::time::Duration;

/// An outcome of one call of the upstream, with its body whole.
pub type Outcome<'a> = Result<(StatusCode, &'a HeaderMap), &'a ProxyError>;

/// What a live write's outcome depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// The class of its route.
    pub class: WriteClass,
    /// Whether 503 with `Retry-After` proves that nothing was done.
    pub trusts_503: bool,
    /// Whether it may become a record: not with `Seawall-Queue: never`, nor with a credential that cannot be kept.
    pub may_queue: bool,
}

/// What becomes of a live write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The caller gets the answer or the error as it is.
    Pass,
    /// It becomes a record after this step; the caller gets 202.
    Queue(Input),
    /// It may have been applied, and must not be sent again: a ticket that says so.
    Unknown(Input),
}

/// What becomes of a replayed write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Its step.
    pub input: Input,
    /// What has to rest besides this record.
    pub rest: Rest,
}

/// What rests after a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Nothing else.
    None,
    /// All of its group, for this long or the pace's own measure.
    Group(Option<Duration>),
    /// All of its credential.
    Credential(Option<Duration>),
    /// All of its credential, until a person acts: 401.
    Unauthorized,
    /// All of its credential in its group, until a person acts: 403 although nothing else of it succeeds.
    Forbidden,
    /// Everything: the store does not take writes, or we are shutting down.
    All,
}

/// How others fare meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peers {
    /// Whether writes of its group succeeded since its own last 5xx.
    pub others_succeed: bool,
    /// Whether a write of its credential succeeded lately.
    pub is_proven: bool,
}

/// The table for live writes.
pub fn live(outcome: Outcome<'_>, case: Case) -> Decision {
    let replayable = case.class.is_replayable();
    let status = outcome.ok().map(|(status, _)| status.as_u16());
    let queue = |input| if case.may_queue { Decision::Queue(input) } else { Decision::Pass };
    let doubt = |reason| {
        let input = Input::Doubt { reason, status, others_succeed: false };
        if replayable { queue(input) } else { Decision::Unknown(input) }
    };
    match delivery::of(outcome) {
        Delivery::NotSent(Unsent::Connect | Unsent::Connection) => {
            queue(Input::Unsent { reason: Reason::Unreachable, status: None })
        }
        Delivery::NotSent(Unsent::Ours) => match outcome.err().and_then(own_refusal) {
            Some(reason) => queue(Input::Unsent { reason, status: None }),
            None => Decision::Pass,
        },
        Delivery::Refused(Refusal::TooManyRequests) => {
            queue(Input::Unsent { reason: Reason::RateLimited, status })
        }
        Delivery::Refused(Refusal::Unavailable) if replayable || case.trusts_503 => {
            queue(Input::Unsent { reason: Reason::Unavailable, status })
        }
        // A gateway may say so after the application acted.
        Delivery::Refused(Refusal::Unavailable) => doubt(Reason::Unavailable),
        Delivery::Ambiguous(Doubt::HeadTimeout) => doubt(Reason::Timeout),
        Delivery::Ambiguous(Doubt::Cut) => doubt(Reason::Cut),
        Delivery::Ambiguous(Doubt::ServerError(_)) => doubt(Reason::ServerError),
        Delivery::Answered(
            Class::Success
            | Class::Unauthorized
            | Class::Forbidden
            | Class::RequestTimeout
            | Class::TryAgain
            | Class::Client
            | Class::Unsupported,
        ) => Decision::Pass,
    }
}

/// The step of a live write that was answered. `envelope_error`: as for [`replayed`].
pub fn answered(status: StatusCode, envelope_error: Option<u16>) -> Input {
    let status_code = status.as_u16();
    if status.is_success() {
        match envelope_error {
            None => Input::Success { status: status_code },
            Some(500..) => {
                Input::Doubt { reason: Reason::ServerError, status: Some(status_code), others_succeed: false }
            }
            Some(_) => Input::Rejected { reason: Reason::Rejected, status: status_code },
        }
    } else {
        let reason = match status_code {
            300..=399 => Reason::Redirected,
            401 => Reason::Unauthorized,
            403 => Reason::Forbidden,
            _ => Reason::Rejected,
        };
        Input::Rejected { reason, status: status_code }
    }
}

/// Whether an answer may stand for a later request with the same key. Not those that say "not now" or "not you":
/// what they speak of can change while the request stays the same. Nor a redirect: it is no outcome, and the write could
/// never be sent under its key.
pub fn is_remembered(status: StatusCode) -> bool {
    !status.is_redirection()
        && matches!(delivery::of_answer(status, false), Delivery::Answered(Class::Success | Class::Client))
}

/// The table for replays. `envelope_error` is the status of an error inside a 2xx answer's envelope.
pub fn replayed(
    outcome: Outcome<'_>,
    envelope_error: Option<u16>,
    case: Case,
    retry_after: Option<Duration>,
    peers: Peers,
) -> Verdict {
    let replayable = case.class.is_replayable();
    let status = outcome.ok().map(|(status, _)| status.as_u16());
    let only = |input| Verdict { input, rest: Rest::None };
    let unsent = |reason, rest| Verdict { input: Input::Unsent { reason, status }, rest };
    let doubt = |reason| Verdict {
        input: Input::Doubt { reason, status, others_succeed: peers.others_succeed },
        rest: match (reason, replayable) {
            (Reason::Unavailable, _) => Rest::Group(retry_after),
            _ => Rest::None,
        },
    };
    match delivery::of(outcome) {
        Delivery::NotSent(Unsent::Connect | Unsent::Connection) => {
            unsent(Reason::Unreachable, Rest::Group(None))
        }
        Delivery::NotSent(Unsent::Ours) => match outcome.err() {
            Some(ProxyError::BreakerOpen { retry_after, .. }) => {
                unsent(Reason::BreakerOpen, Rest::Group(Some(*retry_after)))
            }
            Some(ProxyError::RateLimited { retry_after }) => {
                unsent(Reason::RateLimited, Rest::Credential(Some(*retry_after)))
            }
            Some(ProxyError::Overloaded { .. }) => unsent(Reason::Overloaded, Rest::Group(None)),
            Some(ProxyError::StoreFailed(_)) => unsent(Reason::StoreFailed, Rest::All),
            Some(ProxyError::Draining) => unsent(Reason::Draining, Rest::All),
            // The alias has no secret at present, or the request cannot be built: a person has to act.
            Some(ProxyError::Unauthorized { .. }) => unsent(Reason::Unauthorized, Rest::Unauthorized),
            _ => unsent(Reason::Deadline, Rest::Group(None)),
        },
        Delivery::Refused(Refusal::TooManyRequests) => {
            unsent(Reason::RateLimited, Rest::Credential(retry_after))
        }
        Delivery::Refused(Refusal::Unavailable) if replayable || case.trusts_503 => {
            unsent(Reason::Unavailable, Rest::Group(retry_after))
        }
        Delivery::Refused(Refusal::Unavailable) => doubt(Reason::Unavailable),
        Delivery::Ambiguous(Doubt::HeadTimeout) => doubt(Reason::Timeout),
        Delivery::Ambiguous(Doubt::Cut) => doubt(Reason::Cut),
        Delivery::Ambiguous(Doubt::ServerError(_)) => doubt(Reason::ServerError),
        Delivery::Answered(class) => {
            let status = status.unwrap_or_default();
            match class {
                Class::Unauthorized => unsent(Reason::Unauthorized, Rest::Unauthorized),
                Class::Forbidden if !peers.is_proven => unsent(Reason::Forbidden, Rest::Forbidden),
                Class::Forbidden => only(Input::Rejected { reason: Reason::Forbidden, status }),
                Class::RequestTimeout | Class::TryAgain => only(Input::Later { status }),
                Class::Client | Class::Unsupported => {
                    only(Input::Rejected { reason: Reason::Rejected, status })
                }
                Class::Success => match (status, envelope_error) {
                    (200..=299, None) => only(Input::Success { status }),
                    (200..=299, Some(500..)) => doubt(Reason::ServerError),
                    (300..=399, _) => only(Input::Rejected { reason: Reason::Redirected, status }),
                    _ => only(Input::Rejected { reason: Reason::Rejected, status }),
                },
            }
        }
    }
}

/// Why we ourselves kept a write back, where waiting helps. `None`: the request is wrong, and stays so.
fn own_refusal(error: &ProxyError) -> Option<Reason> {
    match error {
        ProxyError::BreakerOpen { .. } => Some(Reason::BreakerOpen),
        ProxyError::Overloaded { .. } => Some(Reason::Overloaded),
        ProxyError::RateLimited { .. } => Some(Reason::RateLimited),
        ProxyError::DeadlineBeforeSending => Some(Reason::Deadline),
        ProxyError::Draining => Some(Reason::Draining),
        ProxyError::Connect(_)
        | ProxyError::Unsent(_)
        | ProxyError::HeadTimeout
        | ProxyError::Cut(_)
        | ProxyError::RequestBody(_)
        | ProxyError::BodyTooLarge { .. }
        | ProxyError::Unauthorized { .. }
        | ProxyError::BadRequest { .. }
        | ProxyError::QueueFull { .. }
        | ProxyError::StoreFailed(_)
        | ProxyError::OutcomeUnknown { .. }
        | ProxyError::OrderConflict { .. }
        | ProxyError::KeyReused
        | ProxyError::KeyInFlight { .. }
        | ProxyError::NotFound(_)
        | ProxyError::Conflict { .. }
        | ProxyError::Internal(_) => None,
    }
}

/// The status of an error inside an answer's envelope; `None` where there is none. An error without a status of its
/// own counts as 500: it says nothing for certain.
pub fn envelope_error(body: &[u8]) -> Option<u16> {
    #[derive(serde::Deserialize)]
    struct Envelope {
        #[serde(default)]
        error: Option<serde_json::Value>,
    }
    let error = serde_json::from_slice::<Envelope>(body).ok()?.error?;
    let status = error.get("status").and_then(|status| match status {
        serde_json::Value::Number(number) => number.as_u64(),
        serde_json::Value::String(text) => text.parse().ok(),
        _ => None,
    });
    Some(status.and_then(|status| u16::try_from(status).ok()).unwrap_or(500))
}

#[cfg(test)]
mod tests {
    use super::*;
    use WriteClass::{N, P, R, X};

    const WELL: Peers = Peers { others_succeed: false, is_proven: true };

    fn case(class: WriteClass) -> Case {
        Case { class, trusts_503: false, may_queue: true }
    }

    fn answer(status: u16, retry_after: bool, case: Case) -> Decision {
        let mut headers = HeaderMap::new();
        if retry_after {
            headers.insert("retry-after", 3.into());
        }
        live(Ok((StatusCode::from_u16(status).unwrap(), &headers)), case)
    }

    #[test]
    fn what_was_not_sent_is_queued_for_every_class() {
        for class in [R, N, P, X] {
            for error in [
                ProxyError::BreakerOpen { scope: "a".to_owned(), retry_after: Duration::ZERO },
                ProxyError::Connect(String::new()),
                ProxyError::Unsent(String::new()),
                ProxyError::RateLimited { retry_after: Duration::ZERO },
                ProxyError::Overloaded { what: "slots" },
                ProxyError::DeadlineBeforeSending,
                ProxyError::Draining,
            ] {
                let decision = live(Err(&error), case(class));
                assert!(matches!(decision, Decision::Queue(Input::Unsent { .. })), "{error}");
                let never = Case { may_queue: false, ..case(class) };
                assert_eq!(live(Err(&error), never), Decision::Pass);
            }
            assert!(matches!(answer(429, false, case(class)), Decision::Queue(Input::Unsent { .. })));
            let wrong = ProxyError::BodyTooLarge { limit: 1 };
            assert_eq!(live(Err(&wrong), case(class)), Decision::Pass);
        }
    }

    #[test]
    fn doubt_is_queued_for_r_and_unknown_for_what_creates() {
        for error in
            [ProxyError::HeadTimeout, ProxyError::Cut(String::new()), ProxyError::Internal(String::new())]
        {
            assert!(matches!(live(Err(&error), case(R)), Decision::Queue(Input::Doubt { .. })));
            for class in [N, P, X] {
                assert!(matches!(live(Err(&error), case(class)), Decision::Unknown(Input::Doubt { .. })));
            }
        }
        for status in [500, 502, 503, 504, 520] {
            assert!(matches!(answer(status, false, case(R)), Decision::Queue(Input::Doubt { .. })));
            assert!(matches!(answer(status, false, case(P)), Decision::Unknown(_)));
        }
        assert!(matches!(answer(503, true, case(R)), Decision::Queue(Input::Unsent { .. })));
        assert!(matches!(answer(503, true, case(P)), Decision::Unknown(_)));
        let trusted = Case { trusts_503: true, ..case(P) };
        assert!(matches!(answer(503, true, trusted), Decision::Queue(Input::Unsent { .. })));
    }

    #[test]
    fn answers_pass() {
        for status in [200, 201, 302, 400, 401, 403, 404, 408, 409, 412, 421, 422, 425, 501, 505, 511] {
            assert_eq!(answer(status, false, case(R)), Decision::Pass, "{status}");
            assert_eq!(answer(status, false, case(P)), Decision::Pass, "{status}");
        }
    }

    fn again(status: u16, envelope: Option<u16>, class: WriteClass) -> Verdict {
        let headers = HeaderMap::new();
        let status = StatusCode::from_u16(status).unwrap();
        replayed(Ok((status, &headers)), envelope, case(class), Some(Duration::from_secs(7)), WELL)
    }

    #[test]
    fn the_table_for_replays() {
        assert_eq!(again(200, None, R).input, Input::Success { status: 200 });
        assert!(matches!(again(200, Some(500), R).input, Input::Doubt { .. }));
        assert!(matches!(again(200, Some(422), R).input, Input::Rejected { .. }));
        for (status, reason) in [(403, Reason::Forbidden), (302, Reason::Redirected), (412, Reason::Rejected)]
        {
            assert_eq!(again(status, None, R).input, Input::Rejected { reason, status });
        }
        for status in [408, 421, 425] {
            assert_eq!(again(status, None, P).input, Input::Later { status });
        }
        let limited = again(429, None, P);
        assert!(matches!(limited.input, Input::Unsent { .. }));
        assert_eq!(limited.rest, Rest::Credential(Some(Duration::from_secs(7))));
        let refused = again(401, None, R);
        assert!(matches!(refused.input, Input::Unsent { .. }));
        assert_eq!(refused.rest, Rest::Unauthorized);
        assert!(matches!(again(502, None, P).input, Input::Doubt { .. }));
    }

    #[test]
    fn an_error_in_an_envelope_is_found() {
        assert_eq!(envelope_error(br#"{"data":{},"error":null}"#), None);
        assert_eq!(envelope_error(br#"{"data":{}}"#), None);
        assert_eq!(envelope_error(br#"{"error":{"status":422}}"#), Some(422));
        assert_eq!(envelope_error(br#"{"error":{"status":"503"}}"#), Some(503));
        assert_eq!(envelope_error(br#"{"error":"no"}"#), Some(500));
        assert_eq!(envelope_error(b"<html>"), None);
    }
}
