//! Pure. The faults that a test asks for, and which of them strike a request.
//!
//! A list of faults is read as a whole: one wrong field refuses all of it. For a request the first live latency
//! and the first live fault of another kind are taken; each counts down its own `times`. A `share` that does not
//! strike passes on to the next fault, so that shares can stand one behind the other. `refuse` acts on the
//! listener, not on requests, and so takes neither `match`, `times` nor `share`.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

const KINDS: &str = "status, latency, hang, refuse, reset, truncate, apply_then_hang, apply_then_status";

/// All faults in force, with the dice for `share` and for latencies.
#[derive(Debug)]
pub(super) struct Faults {
    list: Vec<Fault>,
    rng: fastrand::Rng,
    /// Grows whenever the list is replaced; what hangs is released then.
    generation: u64,
}

/// One fault of the list.
#[derive(Debug)]
pub(super) struct Fault {
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
pub(super) struct Refusal {
    pub(super) until: Option<Timestamp>,
}

/// What strikes one request.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Verdict {
    pub(super) latency: Option<Duration>,
    pub(super) effect: Option<Effect>,
    pub(super) generation: u64,
}

/// What a fault does to a request, besides waiting.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Effect {
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
    /// The request is carried out; no answer.
    ApplyThenHang,
    /// The request is carried out; the answer lies.
    ApplyThenStatus(Canned),
}

/// An answer given in a fault.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Canned {
    pub(super) status: u16,
    pub(super) retry_after: Option<String>,
    pub(super) body: Option<Value>,
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Latency { min: Duration, max: Duration },
    Refuse,
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
    pub(super) fn new(seed: u64) -> Self {
        Self { list: Vec::new(), rng: fastrand::Rng::with_seed(seed), generation: 0 }
    }

    /// Replaces the list; the new generation is returned.
    pub(super) fn replace(&mut self, list: Vec<Fault>) -> u64 {
        self.list = list;
        self.generation += 1;
        self.generation
    }

    /// The list as it was given, with what is left of it.
    pub(super) fn describe(&self) -> Value {
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
    pub(super) fn refusal(&self, now: Timestamp) -> Option<Refusal> {
        self.list
            .iter()
            .find(|fault| fault.kind == Kind::Refuse && fault.is_live(now))
            .map(|fault| Refusal { until: fault.until })
    }

    /// What strikes a request that arrives now. Counts down.
    pub(super) fn strike(&mut self, now: Timestamp, method: &str, path: &str) -> Verdict {
        let mut verdict = Verdict { generation: self.generation, ..Verdict::default() };
        for fault in &mut self.list {
            let is_taken = match fault.kind {
                Kind::Latency { .. } => verdict.latency.is_some(),
                Kind::Request(_) => verdict.effect.is_some(),
                Kind::Refuse => true,
            };
            if is_taken || !fault.is_live(now) || !fault.matches(method, path) {
                continue;
            }
            if fault.share.is_some_and(|share| self.rng.f64() >= share) {
                continue;
            }
            fault.applied += 1;
            if let Some(left) = &mut fault.left {
                *left -= 1;
            }
            match &fault.kind {
                Kind::Latency { min, max } => {
                    let spread = max.saturating_sub(*min);
                    verdict.latency = Some(*min + spread.mul_f64(self.rng.f64()));
                }
                Kind::Request(effect) => verdict.effect = Some(effect.clone()),
                Kind::Refuse => {}
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
            None => Self::Template(text.split('/').map(str::to_owned).collect()),
        }
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Prefix(prefix) => path.starts_with(prefix),
            Self::Template(parts) => {
                let mut segments = path.split('/');
                parts.iter().all(|part| {
                    segments.next().is_some_and(|segment| {
                        part == segment || (part.starts_with(':') && !segment.is_empty())
                    })
                }) && segments.next().is_none()
            }
        }
    }
}

/// Reads a list of faults. The error names the field and says what it may be.
pub(super) fn parse(spec: &Value) -> Result<Vec<Fault>, String> {
    let Value::Array(list) = spec else {
        return Err(
            "faults: must be a list of faults such as [{\"match\":{},\"kind\":\"status\",\"status\":503}]"
                .to_owned(),
        );
    };
    list.iter().enumerate().map(|(index, fault)| one(&format!("faults[{index}]"), fault)).collect()
}

fn one(at: &str, spec: &Value) -> Result<Fault, String> {
    let Value::Object(fields) = spec else {
        return Err(format!("{at}: must be an object"));
    };
    let Some(kind) = fields.get("kind") else {
        return Err(format!("{at}.kind: is missing; known kinds: {KINDS}"));
    };
    let (kind, own): (Kind, &[&str]) = match kind.as_str().unwrap_or_default() {
        "status" => (Kind::Request(Effect::Status(canned(at, fields)?)), &["status", "retry_after", "body"]),
        "apply_then_status" => {
            (Kind::Request(Effect::ApplyThenStatus(canned(at, fields)?)), &["status", "retry_after", "body"])
        }
        "latency" => (latency(at, fields)?, &["ms", "ms_min", "ms_max"]),
        "hang" => (Kind::Request(Effect::Hang), &[]),
        "apply_then_hang" => (Kind::Request(Effect::ApplyThenHang), &[]),
        "refuse" => (Kind::Refuse, &[]),
        "reset" => (reset(at, fields)?, &["at"]),
        "truncate" => (Kind::Request(Effect::Truncate), &[]),
        _ => return Err(format!("{at}.kind: unknown kind {kind}; known kinds: {KINDS}")),
    };
    let is_refusal = kind == Kind::Refuse;
    for field in fields.keys().map(String::as_str) {
        let is_common = matches!(field, "match" | "kind" | "times" | "until" | "share");
        if !is_common && !own.contains(&field) {
            return Err(format!(
                "{at}.{field}: unknown field for this kind; it may have match, times, until, share{}{}",
                if own.is_empty() { "" } else { ", " },
                own.join(", ")
            ));
        }
        if is_refusal && matches!(field, "times" | "share") {
            return Err(format!(
                "{at}.{field}: refuse has no requests to count; use until, or DELETE /_sim/faults"
            ));
        }
    }
    let (method, path) = matcher(at, fields.get("match"))?;
    if is_refusal && (method.is_some() || path.is_some()) {
        return Err(format!("{at}.match: refuse stops the whole listener; leave match empty"));
    }
    Ok(Fault {
        method,
        path,
        kind,
        left: optional(at, fields, "times", "a number from 1", |value| value.as_u64().filter(|n| *n > 0))?,
        until: optional(at, fields, "until", "an RFC 3339 instant", |value| value.as_str()?.parse().ok())?,
        share: optional(at, fields, "share", "a number from 0 to 1", |value| {
            value.as_f64().filter(|share| (0.0..=1.0).contains(share))
        })?,
        applied: 0,
        spec: spec.clone(),
    })
}

fn matcher(at: &str, spec: Option<&Value>) -> Result<(Option<String>, Option<Pattern>), String> {
    let fields = match spec {
        None => return Ok((None, None)),
        Some(Value::Object(fields)) => fields,
        Some(_) => return Err(format!("{at}.match: must be an object with method and path, or empty")),
    };
    if let Some(field) = fields.keys().find(|field| !matches!(field.as_str(), "method" | "path")) {
        return Err(format!("{at}.match.{field}: unknown field; match may have method and path"));
    }
    let at = format!("{at}.match");
    let method = optional(&at, fields, "method", "an HTTP method such as \"POST\"", |value| {
        value.as_str().filter(|text| !text.is_empty()).map(str::to_ascii_uppercase)
    })?;
    let path = optional(
        &at,
        fields,
        "path",
        "a template such as \"/shipments/:id\", or a prefix ending in *",
        |value| value.as_str().filter(|text| text.starts_with('/') || *text == "*").map(Pattern::parse),
    )?;
    Ok((method, path))
}

fn canned(at: &str, fields: &Map<String, Value>) -> Result<Canned, String> {
    let status = optional(at, fields, "status", "an HTTP status from 200 to 599", |value| {
        value
            .as_u64()
            .and_then(|status| u16::try_from(status).ok())
            .filter(|status| (200..600).contains(status))
    })?;
    let retry_after = optional(at, fields, "retry_after", "seconds, or an HTTP date", |value| match value {
        Value::Number(seconds) => seconds.as_u64().map(|seconds| seconds.to_string()),
        Value::String(text) => http::HeaderValue::from_str(text).is_ok().then(|| text.clone()),
        _ => None,
    })?;
    Ok(Canned {
        status: status
            .ok_or_else(|| format!("{at}.status: is missing; must be an HTTP status from 200 to 599"))?,
        retry_after,
        body: fields.get("body").cloned(),
    })
}

fn latency(at: &str, fields: &Map<String, Value>) -> Result<Kind, String> {
    let read = |name: &str| optional(at, fields, name, "a number of milliseconds", Value::as_u64);
    let (min, max) = match (read("ms")?, read("ms_min")?, read("ms_max")?) {
        (Some(ms), None, None) => (ms, ms),
        (None, Some(min), Some(max)) if min <= max => (min, max),
        (None, Some(_), Some(_)) => return Err(format!("{at}.ms_max: must not be below ms_min")),
        _ => return Err(format!("{at}.ms: latency needs ms, or ms_min and ms_max")),
    };
    Ok(Kind::Latency { min: Duration::from_millis(min), max: Duration::from_millis(max) })
}

fn reset(at: &str, fields: &Map<String, Value>) -> Result<Kind, String> {
    let effect = match fields.get("at").map(|value| value.as_str().unwrap_or_default()) {
        None | Some("before_headers") => Effect::ResetBeforeHeaders,
        Some("mid_body") => Effect::ResetMidBody,
        Some(_) => return Err(format!("{at}.at: must be \"before_headers\" or \"mid_body\"")),
    };
    Ok(Kind::Request(effect))
}

fn optional<T>(
    at: &str,
    fields: &Map<String, Value>,
    name: &str,
    wanted: &str,
    read: impl FnOnce(&Value) -> Option<T>,
) -> Result<Option<T>, String> {
    match fields.get(name) {
        None => Ok(None),
        Some(value) => {
            read(value).map(Some).ok_or_else(|| format!("{at}.{name}: must be {wanted}, not {value}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(Pattern::parse("/ship*").matches("/shipment_legs/3"));
        assert!(Pattern::parse("*").matches("/anything"));
    }

    #[test]
    fn times_count_down_and_until_ends() {
        let mut faults = faults(&json!([
            {"kind": "status", "status": 503, "times": 1},
            {"kind": "hang", "until": "2026-05-01T00:00:01Z"},
        ]));
        let mut effect = |now| faults.strike(now, "GET", "/").effect;
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
        let verdict = faults.strike(now(), "GET", "/");
        assert_eq!(verdict.latency, Some(Duration::from_millis(5)));
        assert!(matches!(verdict.effect, Some(Effect::Status(_))));
    }

    #[test]
    fn a_share_strikes_about_that_often_and_the_same_again_with_the_same_seed() {
        let strikes = || {
            let mut faults = faults(&json!([{"kind": "hang", "share": 0.3}]));
            (0..1000).map(|_| faults.strike(now(), "GET", "/").effect.is_some()).collect::<Vec<_>>()
        };
        let count = strikes().iter().filter(|struck| **struck).count();
        assert!((250..350).contains(&count), "{count}");
        assert_eq!(strikes(), strikes());
    }
}
