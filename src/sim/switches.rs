//! Pure. Behaviour of which nobody knows whether the real API has it: off until switched on.

use std::collections::HashMap;

use aws_lc_rs::digest;
use http::HeaderValue;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::faults::Quota;
use super::hex;

/// The documented budget.
const TOKENS_A_DAY: u32 = 10;
pub(super) const FIELDS: &str = "validators, cache_control, rate_limit_headers, token_budget";

/// The switches as they stand.
#[derive(Debug, Clone)]
pub(super) struct Switches {
    pub(super) validators: Validators,
    /// Sent with every 200 to a read.
    pub(super) cache_control: Option<HeaderValue>,
    /// `X-RateLimit-*` on every answer, without a limit behind them.
    pub(super) rate_limit_headers: Option<Window>,
    /// How many tokens a client may ask for in a day.
    pub(super) token_budget: Option<u32>,
}

/// A window of a rate limit that is told and not enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) limit: u64,
    pub(super) seconds: u64,
}

/// Whether reads carry an `ETag` and answer `If-None-Match` with 304.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Validators {
    #[default]
    Off,
    /// As a Rails application sends them.
    Weak,
    Strong,
}

// === impl Switches ===

impl Default for Switches {
    fn default() -> Self {
        Self {
            validators: Validators::Off,
            cache_control: None,
            rate_limit_headers: None,
            token_budget: Some(TOKENS_A_DAY),
        }
    }
}

impl Switches {
    /// Turns the named switches and leaves the others. The error names the field; then nothing is turned.
    pub(super) fn set(&mut self, spec: &Value) -> Result<(), String> {
        let Value::Object(fields) = spec else {
            return Err(format!("switches: must be an object with one or more of {FIELDS}"));
        };
        let mut turned = self.clone();
        for (field, value) in fields {
            match (field.as_str(), value) {
                ("validators", Value::Bool(false) | Value::Null) => turned.validators = Validators::Off,
                ("validators", Value::Bool(true)) => turned.validators = Validators::Weak,
                ("validators", Value::String(text)) if text == "weak" => turned.validators = Validators::Weak,
                ("validators", Value::String(text)) if text == "strong" => {
                    turned.validators = Validators::Strong;
                }
                ("validators", _) => {
                    return Err("switches.validators: must be true, false, \"weak\" or \"strong\"".to_owned());
                }
                ("cache_control", Value::Null | Value::Bool(false)) => turned.cache_control = None,
                ("cache_control", Value::String(text)) => {
                    let value = HeaderValue::from_str(text)
                        .map_err(|_| "switches.cache_control: is no valid header value".to_owned())?;
                    turned.cache_control = Some(value);
                }
                ("cache_control", _) => {
                    return Err(
                        "switches.cache_control: must be a string such as \"max-age=60\", or null".to_owned()
                    );
                }
                ("rate_limit_headers", value) => turned.rate_limit_headers = window(value)?,
                ("token_budget", Value::Null | Value::Bool(false)) => turned.token_budget = None,
                ("token_budget", value) => {
                    let budget = value.as_u64().and_then(|budget| u32::try_from(budget).ok());
                    turned.token_budget = Some(budget.ok_or_else(|| {
                        format!("switches.token_budget: must be a number of tokens a day, or null for any number, not {value}")
                    })?);
                }
                _ => return Err(format!("switches.{field}: unknown switch; known: {FIELDS}")),
            }
        }
        *self = turned;
        Ok(())
    }

    pub(super) fn describe(&self) -> Value {
        json!({
            "validators": match self.validators {
                Validators::Off => json!(false),
                Validators::Weak => json!("weak"),
                Validators::Strong => json!("strong"),
            },
            "rate_limit_headers": self.rate_limit_headers.map(|window| json!({
                "limit": window.limit, "window_s": window.seconds,
            })),
            "token_budget": self.token_budget,
            "cache_control": self.cache_control.as_ref().map(|value| String::from_utf8_lossy(value.as_bytes())),
        })
    }
}

// === impl Validators ===

impl Validators {
    /// The entity tag of a body.
    pub(super) fn tag(self, body: &[u8]) -> Option<String> {
        let prefix = match self {
            Self::Off => return None,
            Self::Weak => "W/",
            Self::Strong => "",
        };
        let digest = digest::digest(&digest::SHA256, body);
        Some(format!("{prefix}\"{}\"", hex(&digest.as_ref()[..16])))
    }
}

/// Who has asked how often in the window that is told.
#[derive(Debug, Default)]
pub(super) struct Told {
    seen: HashMap<String, (i64, u64)>,
}

impl Told {
    /// Counts a request; what its caller is told.
    pub(super) fn count(&mut self, window: Window, token: Option<&str>, now: Timestamp) -> Quota {
        let seconds = i64::try_from(window.seconds).unwrap_or(i64::MAX).max(1);
        let number = now.as_second() / seconds;
        // Nobody is remembered beyond the window.
        if !self.seen.values().any(|(of, _)| *of == number) {
            self.seen.clear();
        }
        let seen = self.seen.entry(token.unwrap_or_default().to_owned()).or_insert((number, 0));
        if seen.0 != number {
            *seen = (number, 0);
        }
        seen.1 += 1;
        let reset = (number + 1) * seconds - now.as_second();
        Quota {
            limit: window.limit,
            remaining: window.limit.saturating_sub(seen.1),
            reset: reset.unsigned_abs(),
        }
    }
}

fn window(value: &Value) -> Result<Option<Window>, String> {
    let wrong = || {
        format!(
            "switches.rate_limit_headers: must be true, false, or such as {{\"limit\":100,\"window_s\":60}}, not {value}"
        )
    };
    match value {
        Value::Null | Value::Bool(false) => Ok(None),
        Value::Bool(true) => Ok(Some(Window { limit: 1000, seconds: 60 })),
        Value::Object(fields) => {
            if let Some(field) = fields.keys().find(|field| !["limit", "window_s"].contains(&field.as_str()))
            {
                return Err(format!(
                    "switches.rate_limit_headers.{field}: unknown field; known: limit, window_s"
                ));
            }
            let read = |field: &str| fields.get(field).and_then(Value::as_u64).filter(|n| *n > 0);
            let (limit, seconds) = read("limit").zip(read("window_s")).ok_or_else(wrong)?;
            Ok(Some(Window { limit, seconds }))
        }
        _ => Err(wrong()),
    }
}

/// Whether `If-None-Match` names a tag, by the weak comparison that RFC 9110, 13.1.2 asks for.
pub(super) fn names(if_none_match: &str, tag: &str) -> bool {
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    if_none_match.trim() == "*" || if_none_match.split(',').any(|one| opaque(one) == opaque(tag))
}
