//! Pure. Reads faults as they are written. Errors name the field and say what it may be.

use std::time::Duration;

use serde_json::{Map, Value};

use super::bucket::Buckets;
use super::latency::{Latency, P99, Shape};
use super::{Canned, Effect, Fault, Kind, Pattern};

/// The kinds of faults, as they are named in errors and in `docs/SIMULATOR.md`.
pub(in crate::sim) const KINDS: &str = "status, latency, hang, refuse, reset, truncate, drip, garbage, rate_limit, \
    envelope_error, bad_token, html_302, apply_then_hang, apply_then_status";

/// Reads a list of faults. The error names the field and says what it may be.
pub(in crate::sim) fn parse(spec: &Value) -> Result<Vec<Fault>, String> {
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
        "latency" => latency(at, fields)?,
        "hang" => (Kind::Request(Effect::Hang), &[]),
        "apply_then_hang" => (Kind::Request(Effect::ApplyThenHang), &[]),
        "refuse" => (Kind::Refuse, &[]),
        "reset" => (reset(at, fields)?, &["at"]),
        "truncate" => (Kind::Request(Effect::Truncate), &[]),
        "drip" => (drip(at, fields)?, &["bytes", "every_ms"]),
        "garbage" => (garbage(at, fields)?, &["at"]),
        "rate_limit" => (rate_limit(at, fields)?, &["per_second", "burst", "per", "status", "headers"]),
        "envelope_error" => (envelope_error(at, fields)?, &["status", "code", "message"]),
        "bad_token" => (Kind::Request(Effect::BadToken), &[]),
        "html_302" => {
            let location = text(at, fields, "location")?;
            (Kind::Request(Effect::Redirect { location }), &["location"])
        }
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
    let status = status(at, fields)?;
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

/// The waits, and the fields that their distribution may have.
fn latency(at: &str, fields: &Map<String, Value>) -> Result<(Kind, &'static [&'static str]), String> {
    let read = |name: &str| {
        let millis = optional(at, fields, name, "a number of milliseconds", Value::as_u64)?;
        Ok::<_, String>(millis.map(Duration::from_millis))
    };
    let need = |name: &str| {
        read(name)?.ok_or_else(|| format!("{at}.{name}: is missing; must be a number of milliseconds"))
    };
    let distribution = text(at, fields, "distribution")?;
    let (shape, own): (Shape, &[&str]) = match distribution.as_deref() {
        None | Some("uniform") => {
            let (min, max) = match (read("ms")?, read("ms_min")?, read("ms_max")?) {
                (Some(ms), None, None) => (ms, ms),
                (None, Some(min), Some(max)) if min <= max => (min, max),
                (None, Some(_), Some(_)) => return Err(format!("{at}.ms_max: must not be below ms_min")),
                _ => {
                    return Err(format!(
                        "{at}.ms: latency needs ms, or ms_min and ms_max, or a distribution"
                    ));
                }
            };
            (Shape::Uniform { min, max }, &["distribution", "ms", "ms_min", "ms_max"])
        }
        Some("exponential") => {
            (Shape::Exponential { mean: need("mean_ms")? }, &["distribution", "mean_ms", "max_ms"])
        }
        Some("normal") => (
            Shape::Normal { mean: need("mean_ms")?, deviation: need("sd_ms")? },
            &["distribution", "mean_ms", "sd_ms", "max_ms"],
        ),
        Some("lognormal") => {
            let (median, p99) = (need("median_ms")?, need("p99_ms")?);
            if median.is_zero() || p99 < median {
                return Err(format!("{at}.p99_ms: must not be below median_ms, which must be above 0"));
            }
            let sigma = (p99.as_secs_f64() / median.as_secs_f64()).ln() / P99;
            (Shape::LogNormal { median, sigma }, &["distribution", "median_ms", "p99_ms", "max_ms"])
        }
        Some(other) => {
            return Err(format!(
                "{at}.distribution: must be uniform, exponential, normal or lognormal, not {other:?}"
            ));
        }
    };
    Ok((Kind::Latency(Latency { shape, max: read("max_ms")? }), own))
}

fn drip(at: &str, fields: &Map<String, Value>) -> Result<Kind, String> {
    let bytes = optional(at, fields, "bytes", "a number of bytes from 1", |value| {
        value.as_u64().filter(|bytes| *bytes > 0)
    })?;
    let every = optional(at, fields, "every_ms", "a number of milliseconds", Value::as_u64)?;
    Ok(Kind::Request(Effect::Drip {
        bytes: usize::try_from(bytes.unwrap_or(64)).unwrap_or(usize::MAX),
        every: Duration::from_millis(every.unwrap_or(100)),
    }))
}

fn garbage(at: &str, fields: &Map<String, Value>) -> Result<Kind, String> {
    let effect = match fields.get("at").map(|value| value.as_str().unwrap_or_default()) {
        None | Some("body") => Effect::GarbageBody,
        Some("head") => Effect::GarbageHead,
        Some(_) => return Err(format!("{at}.at: must be \"body\" or \"head\"")),
    };
    Ok(Kind::Request(effect))
}

fn rate_limit(at: &str, fields: &Map<String, Value>) -> Result<Kind, String> {
    let wanted = "a number of requests above 0";
    let per_second = optional(at, fields, "per_second", wanted, |value| {
        value.as_f64().filter(|rate| (1e-6..=1e9).contains(rate))
    })?;
    let per_second = per_second.ok_or_else(|| format!("{at}.per_second: is missing; must be {wanted}"))?;
    let burst = optional(at, fields, "burst", "a number from 1", |value| value.as_u64().filter(|n| *n > 0))?;
    let is_per_token = match fields.get("per").map(|value| value.as_str().unwrap_or_default()) {
        None | Some("all") => false,
        Some("token") => true,
        Some(_) => return Err(format!("{at}.per: must be \"all\" or \"token\"")),
    };
    let has_headers = optional(at, fields, "headers", "true or false", Value::as_bool)?.unwrap_or(true);
    let buckets = Buckets::new(per_second, burst.unwrap_or((per_second.ceil() as u64).max(1)), is_per_token);
    Ok(Kind::RateLimit { buckets, status: status(at, fields)?.unwrap_or(429), has_headers })
}

fn envelope_error(at: &str, fields: &Map<String, Value>) -> Result<Kind, String> {
    Ok(Kind::Request(Effect::EnvelopeError {
        status: status(at, fields)?.unwrap_or(422),
        code: text(at, fields, "code")?.unwrap_or_else(|| "simulated_fault".to_owned()),
        message: text(at, fields, "message")?
            .unwrap_or_else(|| "the simulator was told to answer so".to_owned()),
    }))
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

fn status(at: &str, fields: &Map<String, Value>) -> Result<Option<u16>, String> {
    optional(at, fields, "status", "an HTTP status from 200 to 599", |value| {
        value
            .as_u64()
            .and_then(|status| u16::try_from(status).ok())
            .filter(|status| (200..600).contains(status))
    })
}

fn text(at: &str, fields: &Map<String, Value>, name: &str) -> Result<Option<String>, String> {
    optional(at, fields, name, "a string that fits into a header", |value| {
        value.as_str().filter(|text| http::HeaderValue::from_str(text).is_ok()).map(str::to_owned)
    })
}
