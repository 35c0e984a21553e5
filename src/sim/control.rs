//! The control API under `/_sim`, by which tests and operators drive the simulator.
//!
//! It answers in plain JSON; a refusal is `{"error": "<field>: <what is wrong and what to do>"}`. What is not built
//! is refused with 501 rather than ignored.

use bytes::Bytes;
use http::{Method, StatusCode, Uri};
use serde_json::{Value, json};

use super::Shared;
use super::query::decode;
use super::routes::Answer;
use super::tokens::Tokens;

/// Whether a path belongs to the control API.
pub(super) fn is_control(path: &str) -> bool {
    path.strip_prefix("/_sim").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Answers a call of the control API.
pub(super) fn answer(shared: &Shared, method: &Method, uri: &Uri, body: &Bytes) -> Answer {
    match respond(shared, method, uri, body) {
        Ok(value) => Answer::json(StatusCode::OK, value.to_string()),
        Err((status, message)) => Answer::json(status, json!({"error": message}).to_string()),
    }
}

fn respond(shared: &Shared, method: &Method, uri: &Uri, body: &Bytes) -> Result<Value, (StatusCode, String)> {
    let bad = |message: String| (StatusCode::BAD_REQUEST, message);
    let parse =
        || serde_json::from_slice::<Value>(body).map_err(|error| bad(format!("body: must be JSON: {error}")));
    match (method.as_str(), uri.path()) {
        ("GET", "/_sim/faults") => Ok(shared.faults().describe()),
        ("PUT", "/_sim/faults") => {
            shared.set_faults(&parse()?).map_err(bad)?;
            Ok(shared.faults().describe())
        }
        ("DELETE", "/_sim/faults") => {
            shared.clear_faults().map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
            Ok(json!([]))
        }
        ("GET", "/_sim/requests") => {
            let (mut wanted_method, mut wanted_path) = (None, None);
            for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                match name {
                    "method" => wanted_method = Some(decode(value)),
                    "path" => wanted_path = Some(decode(value)),
                    _ => return Err(bad(format!("{name}: unknown filter; known: method, path"))),
                }
            }
            Ok(Value::Array(shared.journal().list(wanted_method.as_deref(), wanted_path.as_deref())))
        }
        ("DELETE", "/_sim/requests") => {
            shared.journal().clear();
            Ok(json!([]))
        }
        ("GET", "/_sim/state") => Ok(shared.state()),
        ("GET", "/_sim/switches") => Ok(shared.switches().describe()),
        ("PUT", "/_sim/switches") => {
            let spec = parse()?;
            let mut switches = shared.switches();
            switches.set(&spec).map_err(bad)?;
            Ok(switches.describe())
        }
        ("GET", "/_sim/tokens") => Ok(shared.tokens().describe()),
        ("PUT", "/_sim/tokens") => {
            let tokens = Tokens::parse(&parse()?).map_err(bad)?;
            let described = tokens.describe();
            shared.set_tokens(tokens);
            Ok(described)
        }
        (_, path @ ("/_sim/clock" | "/_sim/status_page")) => {
            Err((StatusCode::NOT_IMPLEMENTED, format!("{path}: not yet; the simulator's time is real time")))
        }
        (_, path) if path.starts_with("/_sim/webhooks") => {
            Err((StatusCode::NOT_IMPLEMENTED, format!("{path}: not yet; the simulator sends no webhooks")))
        }
        (
            _,
            path @ ("/_sim/faults" | "/_sim/requests" | "/_sim/state" | "/_sim/switches" | "/_sim/tokens"),
        ) => Err((StatusCode::METHOD_NOT_ALLOWED, format!("{path}: does not answer to {method}"))),
        (_, path) => Err((
            StatusCode::NOT_FOUND,
            format!(
                "{path}: unknown; known: /_sim/faults, /_sim/requests, /_sim/state, /_sim/switches, /_sim/tokens"
            ),
        )),
    }
}
