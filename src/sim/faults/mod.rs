//! Pure. The faults that a test asks for, and which of them strike a request.
//!
//! A list of faults is read as a whole: one wrong field refuses all of it. For a request the first live latency
//! and the first live fault of another kind are taken; each counts down its own `times`. A `share` that does not
//! strike passes on to the next fault, so that shares can stand one behind the other. `refuse` acts on the
//! listener, not on requests, and so takes neither `match`, `times` nor `share`. A `rate_limit` strikes only when
//! its bucket is empty; else the faults behind it have their turn.

mod bucket;
mod latency;
mod parse;

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use bucket::{Buckets, Take};
use latency::Latency;

pub(in crate::sim) use bucket::Quota;
#[cfg(test)]
pub(in crate::sim) use parse::KINDS;
pub(in crate::sim) use parse::parse;

/// All faults in force, with the dice for `share` and for latencies.
#[derive(Debug)]
pub(in crate::sim) struct Faults {
    list: Vec<Fault>,
    rng: fastrand::Rng,
    /// Grows whenever the list is replaced; what hangs is released then.
    generation: u64,
}

/// One fault of the list.
#[derive(Debug)]
pub(in crate::sim) struct Fault {
    method: Option<String>,
    path: Option<Pattern>,
    kind: Kind,
    left: Option<u64>,
    until: Option<Timestamp>,
    share: Option<f64>,
    applied: u64,
    spec: Value,
}

/// A listener that does not listen, and until when if that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sim) struct Refusal {
    pub(in crate::sim) until: Option<Timestamp>,
}

/// What strikes one request.
#[derive(Debug, Default, PartialEq)]
pub(in crate::sim) struct Verdict {
    pub(in crate::sim) latency: Option<Duration>,
    pub(in crate::sim) effect: Option<Effect>,
    pub(in crate::sim) generation: u64,
    /// What a bucket tells a caller who is let through.
    pub(in crate::sim) quota: Option<Quota>,
}

/// What a fault does to a request, besides waiting.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::sim) enum Effect {
    /// This answer instead; the request is not carried out.
    Status(Canned),
    /// No answer; the request is not carried out.
    Hang,
    /// The connection is reset before an answer; the request is not carried out.
    ResetBeforeHeaders,
    /// The request is carried out; the connection is reset in the middle of its answer.
    ResetMidBody,
    /// The request is carried out; the connection is closed in the middle of its answer.
    Truncate,
    /// The request is carried out; its answer comes in drops.
    Drip { bytes: usize, every: Duration },
    /// The request is carried out; instead of the answer's body come random bytes.
    GarbageBody,
    /// The request is carried out; what comes is not HTTP.
    GarbageHead,
    /// 200, and the envelope says that it was an error; the request is not carried out.
    EnvelopeError { status: u16, code: String, message: String },
    /// The 401 of a bad token, whatever the token; the request is not carried out.
    BadToken,
    /// The redirect to the site that unknown paths get; the request is not carried out.
    Redirect { location: Option<String> },
    /// 429; the request is not carried out.
    Limited { status: u16, told: Option<(Quota, u64)> },
    /// The request is carried out; no answer.
    ApplyThenHang,
    /// The request is carried out; the answer lies.
    ApplyThenStatus(Canned),
}

/// An answer given in a fault.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::sim) struct Canned {
    pub(in crate::sim) status: u16,
    pub(in crate::sim) retry_after: Option<String>,
    pub(in crate::sim) body: Option<Value>,
}

#[derive(Debug, PartialEq)]
enum Kind {
    Latency(Latency),
    Refuse,
    RateLimit { buckets: Buckets, status: u16, has_headers: bool },
    Request(Effect),
}

#[derive(Debug, PartialEq)]
enum Pattern {
    Prefix(String),
    /// The parts between the slashes; one that begins with `:` matches any.
    Template(Vec<String>),
}

// === impl Faults ===

impl Faults {
    pub(in crate::sim) fn new(seed: u64) -> Self {
        Self { list: Vec::new(), rng: fastrand::Rng::with_seed(seed), generation: 0 }
    }

    /// Replaces the list; the new generation is returned.
    pub(in crate::sim) fn replace(&mut self, list: Vec<Fault>) -> u64 {
        self.list = list;
        self.generation += 1;
        self.generation
    }

    /// The list as it was given, with what is left of it.
    pub(in crate::sim) fn describe(&self) -> Value {
        let describe = |fault: &Fault| {
            let mut spec = fault.spec.clone();
            if let Value::Object(fields) = &mut spec {
                if let Some(left) = fault.left {
                    fields.insert("times_left".to_owned(), json!(left));
                }
                fields.insert("struck".to_owned(), json!(fault.applied));
            }
            spec
        };
        Value::Array(self.list.iter().map(describe).collect())
    }

    /// The live `refuse` of the list.
    pub(in crate::sim) fn refusal(&self, now: Timestamp) -> Option<Refusal> {
        self.list
            .iter()
            .find(|fault| fault.kind == Kind::Refuse && fault.is_live(now))
            .map(|fault| Refusal { until: fault.until })
    }

    /// What strikes a request that arrives now. Counts down.
    pub(in crate::sim) fn strike(
        &mut self,
        now: Timestamp,
        (method, path, token): (&str, &str, Option<&str>),
    ) -> Verdict {
        let mut verdict = Verdict { generation: self.generation, ..Verdict::default() };
        for fault in &mut self.list {
            let is_taken = match fault.kind {
                Kind::Latency(_) => verdict.latency.is_some(),
                Kind::Request(_) | Kind::RateLimit { .. } => verdict.effect.is_some(),
                Kind::Refuse => true,
            };
            if is_taken || !fault.is_live(now) || !fault.matches(method, path) {
                continue;
            }
            if fault.share.is_some_and(|share| self.rng.f64() >= share) {
                continue;
            }
            match &mut fault.kind {
                Kind::Latency(latency) => verdict.latency = Some(latency.draw(&mut self.rng)),
                Kind::Request(effect) => verdict.effect = Some(effect.clone()),
                Kind::RateLimit { buckets, status, has_headers } => match buckets.take(now, token) {
                    Take::Taken(quota) => {
                        verdict.quota = has_headers.then_some(quota);
                        continue;
                    }
                    Take::Empty { quota, retry_after } => {
                        let told = has_headers.then_some((quota, retry_after));
                        verdict.effect = Some(Effect::Limited { status: *status, told });
                    }
                },
                Kind::Refuse => {}
            }
            fault.applied += 1;
            if let Some(left) = &mut fault.left {
                *left -= 1;
            }
        }
        verdict
    }
}

// === impl Fault ===

impl Fault {
    fn is_live(&self, now: Timestamp) -> bool {
        self.left != Some(0) && self.until.is_none_or(|until| now < until)
    }

    fn matches(&self, method: &str, path: &str) -> bool {
        self.method.as_deref().is_none_or(|wanted| wanted == method)
            && self.path.as_ref().is_none_or(|pattern| pattern.matches(path))
    }
}

// === impl Pattern ===

impl Pattern {
    fn parse(text: &str) -> Self {
        match text.strip_suffix('*') {
            Some(prefix) => Self::Prefix(prefix.to_owned()),
            None => Self::Template(without_slash(text).split('/').map(str::to_owned).collect()),
        }
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Prefix(prefix) => path.starts_with(prefix),
            Self::Template(parts) => {
                // `/invoices/?per=1` is the list, too: the real API's own links have this form.
                let mut segments = without_slash(path).split('/');
                parts.iter().all(|part| {
                    segments.next().is_some_and(|segment| {
                        part == segment || (part.starts_with(':') && !segment.is_empty())
                    })
                }) && segments.next().is_none()
            }
        }
    }
}

/// A path without the one slash at its end, if it has one.
fn without_slash(path: &str) -> &str {
    path.strip_suffix('/').unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: (&str, &str, Option<&str>) = ("GET", "/", None);

    fn now() -> Timestamp {
        "2026-05-01T00:00:00Z".parse().unwrap()
    }

    fn faults(spec: &Value) -> Faults {
        let mut faults = Faults::new(1);
        faults.replace(parse(spec).unwrap());
        faults
    }

    #[test]
    fn a_wrong_field_is_named() {
        for (spec, name) in [
            (json!({}), "faults:"),
            (json!([1]), "faults[0]"),
            (json!([{"kind": "explode"}]), "faults[0].kind"),
            (json!([{}]), "faults[0].kind"),
            (json!([{"kind": "status"}]), "faults[0].status"),
            (json!([{"kind": "status", "status": 99}]), "faults[0].status"),
            (json!([{"kind": "hang"}, {"kind": "hang", "ms": 3}]), "faults[1].ms"),
            (json!([{"kind": "latency"}]), "faults[0].ms"),
            (json!([{"kind": "latency", "ms_min": 3, "ms_max": 2}]), "faults[0].ms_max"),
            (json!([{"kind": "reset", "at": "once"}]), "faults[0].at"),
            (json!([{"kind": "hang", "times": 0}]), "faults[0].times"),
            (json!([{"kind": "hang", "until": "soon"}]), "faults[0].until"),
            (json!([{"kind": "hang", "share": 2}]), "faults[0].share"),
            (json!([{"kind": "hang", "match": {"paht": "/"}}]), "faults[0].match.paht"),
            (json!([{"kind": "hang", "match": {"path": "shipments"}}]), "faults[0].match.path"),
            (json!([{"kind": "latency", "distribution": "normal", "mean_ms": 3}]), "faults[0].sd_ms"),
            (json!([{"kind": "latency", "distribution": "flat"}]), "faults[0].distribution"),
            (
                json!([{"kind": "latency", "distribution": "lognormal", "median_ms": 3, "p99_ms": 1}]),
                "faults[0].p99_ms",
            ),
            (json!([{"kind": "latency", "ms": 1, "mean_ms": 3}]), "faults[0].mean_ms"),
            (json!([{"kind": "drip", "bytes": 0}]), "faults[0].bytes"),
            (json!([{"kind": "drip", "every_ms": "x"}]), "faults[0].every_ms"),
            (json!([{"kind": "garbage", "at": "once"}]), "faults[0].at"),
            (json!([{"kind": "rate_limit"}]), "faults[0].per_second"),
            (json!([{"kind": "rate_limit", "per_second": 1, "burst": 0}]), "faults[0].burst"),
            (json!([{"kind": "rate_limit", "per_second": 1, "per": "ip"}]), "faults[0].per"),
            (json!([{"kind": "rate_limit", "per_second": 1, "headers": 1}]), "faults[0].headers"),
            (json!([{"kind": "envelope_error", "code": 3}]), "faults[0].code"),
            (json!([{"kind": "html_302", "location": 3}]), "faults[0].location"),
            (json!([{"kind": "bad_token", "status": 3}]), "faults[0].status"),
            (json!([{"kind": "refuse", "times": 2}]), "faults[0].times"),
            (json!([{"kind": "refuse", "match": {"path": "/x"}}]), "faults[0].match"),
        ] {
            let error = parse(&spec).unwrap_err();
            assert!(error.starts_with(name), "{spec}: {error}");
        }
    }

    #[test]
    fn templates_match_part_by_part_and_prefixes_the_beginning() {
        let template = Pattern::parse("/shipments/:id");
        assert!(template.matches("/shipments/12"));
        assert!(!template.matches("/shipments"));
        assert!(!template.matches("/shipments/"));
        assert!(!template.matches("/shipments/12/x"));
        assert!(template.matches("/shipments/12/") && !template.matches("/shipments/12//"));
        let list = Pattern::parse("/invoices");
        assert!(list.matches("/invoices") && list.matches("/invoices/"));
        assert!(!list.matches("/invoices//") && !list.matches("/invoices/1"));
        // However it was written.
        assert!(Pattern::parse("/invoices/").matches("/invoices") && Pattern::parse("/").matches("/"));
        assert!(Pattern::parse("/ship*").matches("/shipment_legs/3"));
        assert!(Pattern::parse("*").matches("/anything"));
    }

    #[test]
    fn times_count_down_and_until_ends() {
        let mut faults = faults(&json!([
            {"kind": "status", "status": 503, "times": 1},
            {"kind": "hang", "until": "2026-05-01T00:00:01Z"},
        ]));
        let mut effect = |now| faults.strike(now, GET).effect;
        assert!(matches!(effect(now()), Some(Effect::Status(_))));
        assert_eq!(effect(now()), Some(Effect::Hang));
        assert_eq!(effect(now() + Duration::from_secs(1)), None);
    }

    #[test]
    fn latency_joins_the_first_other_fault() {
        let mut faults = faults(&json!([
            {"kind": "status", "status": 500},
            {"kind": "latency", "ms": 5},
            {"kind": "latency", "ms": 9},
            {"kind": "hang"},
        ]));
        let verdict = faults.strike(now(), GET);
        assert_eq!(verdict.latency, Some(Duration::from_millis(5)));
        assert!(matches!(verdict.effect, Some(Effect::Status(_))));
    }

    #[test]
    fn a_bucket_lets_the_others_have_their_turn_until_it_is_empty() {
        let mut faults = faults(&json!([
            {"kind": "rate_limit", "per_second": 0.5, "burst": 2, "status": 429},
            {"kind": "hang"},
        ]));
        let mut strike = || faults.strike(now(), GET);
        let first = strike();
        assert_eq!((first.effect, first.quota.map(|quota| quota.remaining)), (Some(Effect::Hang), Some(1)));
        assert_eq!(strike().effect, Some(Effect::Hang));
        let third = strike();
        let Some(Effect::Limited { status: 429, told: Some((_, 2)) }) = third.effect else {
            panic!("{third:?}");
        };
        assert_eq!(faults.describe()[0]["struck"], 1);
    }

    #[test]
    fn a_share_strikes_about_that_often_and_the_same_again_with_the_same_seed() {
        let strikes = || {
            let mut faults = faults(&json!([{"kind": "hang", "share": 0.3}]));
            (0..1000).map(|_| faults.strike(now(), GET).effect.is_some()).collect::<Vec<_>>()
        };
        let count = strikes().iter().filter(|struck| **struck).count();
        assert!((250..350).contains(&count), "{count}");
        assert_eq!(strikes(), strikes());
    }
}
