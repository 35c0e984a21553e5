//! The control API under `/_sim`, by which tests and operators drive the simulator, and the status page.
//!
//! It answers in plain JSON; a refusal is `{"error": "<field>: <what is wrong and what to do>"}`.

use std::sync::MutexGuard;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, Uri};
use serde_json::{Map, Value, json};

use super::query::decode;
use super::routes::Answer;
use super::shared::Shared;
use super::status_page::{Behaviour, StatusPage};
use super::tokens::Tokens;
use super::webhooks::{Pause, Settings};

/// The paths and what they answer to, as `docs/SIMULATOR.md` lists them.
pub(super) const CALLS: [(&str, &str); 11] = [
    ("/_sim/faults", "GET, PUT, DELETE"),
    ("/_sim/requests", "GET, DELETE"),
    ("/_sim/state", "GET"),
    ("/_sim/switches", "GET, PUT"),
    ("/_sim/tokens", "GET, PUT"),
    ("/_sim/clock", "GET, PUT, DELETE"),
    ("/_sim/status_page", "GET, PUT, DELETE"),
    ("/_sim/webhooks", "GET, PUT, DELETE"),
    ("/_sim/webhooks/pause", "POST"),
    ("/_sim/webhooks/resume", "POST"),
    ("/_sim/webhooks/emit", "POST"),
];

type Refused = (StatusCode, String);

/// Whether a path belongs to the control API.
pub(super) fn is_control(path: &str) -> bool {
    path.strip_prefix("/_sim").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The document of the status page that a path asks for; on the control listener the page is at the root.
pub(super) fn status_page(path: &str, is_control_listener: bool) -> Option<&str> {
    let below = path.strip_prefix("/_sim/status_page");
    below.or_else(|| is_control_listener.then_some(path))?.strip_prefix("/api/v2/")
}

/// What the status page answers; none is never.
pub(super) fn status_page_answer(shared: &Shared, name: &str, host: Option<&str>) -> Option<Answer> {
    let page: MutexGuard<'_, StatusPage> = shared.status_page();
    let url = format!("http://{}", host.unwrap_or("localhost"));
    Some(match page.answer {
        Behaviour::Hang => return None,
        Behaviour::Error => Answer::json(StatusCode::SERVICE_UNAVAILABLE, "{}"),
        Behaviour::Garbage => {
            let mut answer = Answer::json(StatusCode::OK, "<html><body>We will be back</body></html>");
            answer.content_type = Some(HeaderValue::from_static("text/html; charset=utf-8"));
            answer
        }
        Behaviour::Ok => {
            if let Some(document) = page.document(name, &url) {
                return Some(Answer::json(StatusCode::OK, document.to_string()));
            }
            let known =
                "status, summary, components, incidents, incidents/unresolved, scheduled-maintenances";
            let error =
                json!({"error": format!("{name}: no such document; known, each with .json: {known}")});
            Answer::json(StatusCode::NOT_FOUND, error.to_string())
        }
    })
}

/// Answers a call of the control API.
pub(super) fn answer(shared: &Shared, method: &Method, uri: &Uri, body: &Bytes) -> Answer {
    match respond(shared, method, uri, body) {
        Ok(value) => Answer::json(StatusCode::OK, value.to_string()),
        Err((status, message)) => Answer::json(status, json!({"error": message}).to_string()),
    }
}

fn respond(shared: &Shared, method: &Method, uri: &Uri, body: &Bytes) -> Result<Value, Refused> {
    let parse =
        || serde_json::from_slice::<Value>(body).map_err(|error| bad(format!("body: must be JSON: {error}")));
    let parse_or_empty = || if body.is_empty() { Ok(json!({})) } else { parse() };
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
            let [method, path] = filters(uri, ["method", "path"])?;
            Ok(Value::Array(shared.journal().list(method.as_deref(), path.as_deref())))
        }
        ("DELETE", "/_sim/requests") => {
            shared.journal().clear();
            Ok(json!([]))
        }
        ("GET", "/_sim/state") => {
            let [name] = filters(uri, ["account"])?;
            let account = shared.account_named(name.as_deref());
            let account = account.ok_or_else(|| {
                bad("account: no token is set to belong to it; see /_sim/tokens".to_owned())
            })?;
            Ok(shared.state(&account))
        }
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
        ("GET", "/_sim/clock") => Ok(shared.describe_clock()),
        ("PUT", "/_sim/clock") => shared.set_clock(&parse()?).map_err(bad),
        ("DELETE", "/_sim/clock") => Ok(shared.reset_clock()),
        ("GET", "/_sim/status_page") => Ok(page(&shared.status_page())),
        ("PUT", "/_sim/status_page") => {
            let told = StatusPage::parse(&parse()?, shared.now()).map_err(bad)?;
            let described = page(&told);
            *shared.status_page() = told;
            Ok(described)
        }
        ("DELETE", "/_sim/status_page") => {
            let told = StatusPage::new(shared.now());
            let described = page(&told);
            *shared.status_page() = told;
            Ok(described)
        }
        ("GET", "/_sim/webhooks") => Ok(shared.webhooks().describe()),
        ("PUT", "/_sim/webhooks") => {
            let settings = Settings::parse(&parse()?).map_err(bad)?;
            let mut webhooks = shared.webhooks();
            webhooks.set(Some(settings));
            Ok(webhooks.describe())
        }
        ("DELETE", "/_sim/webhooks") => {
            let mut webhooks = shared.webhooks();
            webhooks.set(None);
            Ok(webhooks.describe())
        }
        ("POST", "/_sim/webhooks/pause") => {
            let spec = parse_or_empty()?;
            let fields = object("pause", &spec, &["events"])?;
            let how = match fields.get("events").map(|value| value.as_str().unwrap_or_default()) {
                None | Some("keep") => Pause::Keep,
                Some("drop") => Pause::Drop,
                Some(_) => return Err(bad("pause.events: must be \"keep\" or \"drop\"".to_owned())),
            };
            shared.webhooks().pause(how);
            Ok(json!({"paused": if how == Pause::Keep { "keep" } else { "drop" }}))
        }
        ("POST", "/_sim/webhooks/resume") => {
            object("resume", &parse_or_empty()?, &[])?;
            Ok(json!({"paused": null, "released": shared.resume_webhooks()}))
        }
        ("POST", "/_sim/webhooks/emit") => shared.emit(&parse()?).map_err(bad),
        (_, path) => Err(unknown(method, path)),
    }
}

/// A call that is not there: its path, or only its method.
fn unknown(method: &Method, path: &str) -> Refused {
    if let Some((_, methods)) = CALLS.iter().find(|(known, _)| *known == path) {
        let message = format!("{path}: does not answer to {method}, but to {methods}");
        return (StatusCode::METHOD_NOT_ALLOWED, message);
    }
    let known = CALLS.map(|(path, _)| path).join(", ");
    (StatusCode::NOT_FOUND, format!("{path}: unknown; known: {known}"))
}

fn bad(message: String) -> Refused {
    (StatusCode::BAD_REQUEST, message)
}

fn page(page: &StatusPage) -> Value {
    page.document("summary.json", "").unwrap_or_default()
}

/// The values of the query parameters that a call knows.
fn filters<const N: usize>(uri: &Uri, known: [&str; N]) -> Result<[Option<String>; N], Refused> {
    let mut found = [const { None }; N];
    for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match known.iter().position(|known| *known == name) {
            Some(index) => found[index] = Some(decode(value)),
            None => return Err(bad(format!("{name}: unknown filter; known: {}", known.join(", ")))),
        }
    }
    Ok(found)
}

fn object<'a>(at: &str, spec: &'a Value, known: &[&str]) -> Result<&'a Map<String, Value>, Refused> {
    let fields =
        spec.as_object().ok_or_else(|| bad(format!("{at}: must be an object, or no body at all")))?;
    match fields.keys().find(|field| !known.contains(&field.as_str())) {
        Some(field) if known.is_empty() => {
            Err(bad(format!("{at}.{field}: unknown field; there is none to give")))
        }
        Some(field) => Err(bad(format!("{at}.{field}: unknown field; known: {}", known.join(", ")))),
        None => Ok(fields),
    }
}
