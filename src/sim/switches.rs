//! Pure. Behaviour of which nobody knows whether the real API has it: off until switched on.

use aws_lc_rs::digest;
use http::HeaderValue;
use serde_json::{Value, json};

/// The switches as they stand.
#[derive(Debug, Clone, Default)]
pub(super) struct Switches {
    pub(super) validators: Validators,
    /// Sent with every 200 to a read.
    pub(super) cache_control: Option<HeaderValue>,
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

impl Switches {
    /// Turns the named switches and leaves the others. The error names the field; then nothing is turned.
    pub(super) fn set(&mut self, spec: &Value) -> Result<(), String> {
        let Value::Object(fields) = spec else {
            return Err("switches: must be an object with validators, cache_control".to_owned());
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
                _ => {
                    return Err(format!(
                        "switches.{field}: unknown switch; known: validators, cache_control"
                    ));
                }
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
        let mut tag = format!("{prefix}\"");
        for byte in &digest.as_ref()[..16] {
            tag.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
            tag.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
        }
        tag.push('"');
        Some(tag)
    }
}

/// Whether `If-None-Match` names a tag, by the weak comparison that RFC 9110, 13.1.2 asks for.
pub(super) fn names(if_none_match: &str, tag: &str) -> bool {
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    if_none_match.trim() == "*" || if_none_match.split(',').any(|one| opaque(one) == opaque(tag))
}
