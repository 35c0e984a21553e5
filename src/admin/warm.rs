//! Warming the cache: one job at a time, whose progress can be looked at.

use super::Admin;
use super::partitions::Names;
use super::problem::Problem;
use super::writes::read;
use crate::cache::{
    MAX_WARM_CONCURRENCY, MAX_WARM_TARGETS, WARM_CONCURRENCY, WarmError, WarmOrder, WarmStatus, WarmWhat,
    warm_targets,
};
use crate::config::Snapshot;
use crate::config::raw::CredentialMode;
use crate::context::Identity;
use crate::http::headers::FLEXPORT_VERSION;
use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use http::header::{ACCEPT, ACCEPT_LANGUAGE};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// Lines of a list.
    #[serde(default)]
    urls: Option<Vec<String>>,
    /// `"active"`.
    #[serde(default)]
    shipments: Option<String>,
    /// With `inject`: an alias.
    #[serde(default)]
    credential: Option<String>,
    /// With `passthrough`: the token of a service.
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    flexport_version: Option<String>,
    #[serde(default)]
    accept: Option<String>,
    #[serde(default)]
    accept_language: Option<String>,
    #[serde(default)]
    concurrency: Option<usize>,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    actor: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Cancelled {
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    actor: Option<String>,
}

/// The longest list.
pub(super) const MAX_BODY: usize = 16 << 20;

pub(super) async fn get(State(admin): State<Admin>) -> Json<Value> {
    Json(told_last(&admin))
}

/// How it goes, or how the last job went.
pub(super) fn told_last(admin: &Admin) -> Value {
    match admin.warmer.status() {
        Some(status) => told(admin, &status),
        None => json!({
            "state": "idle",
            "why": "nothing was warmed since the start; a restart forgets earlier jobs",
            "is_lost_on_restart": true,
        }),
    }
}

pub(super) async fn start(
    State(admin): State<Admin>,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let body = body.map_err(|error| {
        Problem::new(error.status(), format!("{}; a list may have 16 MiB", error.body_text()))
    })?;
    let wanted: Wanted = read(&body, r#"{"shipments": "active"} or {"urls": ["/shipments?per=10"]}"#)?;
    let config = admin.config.current();
    let what = match (&wanted.urls, wanted.shipments.as_deref()) {
        (Some(lines), None) => {
            if lines.len() > MAX_WARM_TARGETS {
                return Err(Problem::bad(format!(
                    "urls: {} are more than the {MAX_WARM_TARGETS} of one job",
                    lines.len()
                )));
            }
            let targets = warm_targets(lines, &config)
                .map_err(|error| Problem::bad(format!("urls: line {}: {}", error.line, error.what)))?;
            if targets.is_empty() {
                return Err(Problem::bad("urls: there is no URL in the list"));
            }
            WarmWhat::Targets(targets)
        }
        (None, Some("active")) => WarmWhat::Shipments,
        (None, Some(other)) => {
            return Err(Problem::bad(format!("shipments: {other:?} is not known; it can be \"active\"")));
        }
        _ => return Err(Problem::bad("say what to warm, by one of urls and shipments")),
    };
    let concurrency = wanted.concurrency.unwrap_or(WARM_CONCURRENCY);
    if !(1..=MAX_WARM_CONCURRENCY).contains(&concurrency) {
        return Err(Problem::bad(format!("concurrency: it must be from 1 to {MAX_WARM_CONCURRENCY}")));
    }
    let mut headers = HeaderMap::new();
    for (field, name, value) in [
        ("flexport_version", FLEXPORT_VERSION, &wanted.flexport_version),
        ("accept", ACCEPT, &wanted.accept),
        ("accept_language", ACCEPT_LANGUAGE, &wanted.accept_language),
    ] {
        if let Some(value) = value {
            if value.trim().is_empty() {
                // A key of its own, which no service would ask by.
                return Err(Problem::bad(format!("{field}: it is empty; leave it out")));
            }
            let value = HeaderValue::from_str(value.trim()).map_err(|_| {
                Problem::bad(format!("{field}: it holds characters that a header field cannot"))
            })?;
            headers.insert(name, value);
        }
    }
    let identity = identity(&admin, &config, &wanted)?;
    let actor = wanted.actor.unwrap_or_else(|| "api".to_owned());
    let reason = wanted.reason.unwrap_or_default();
    let order =
        WarmOrder { what, identity, headers, concurrency, actor: actor.clone(), reason: reason.clone() };
    let status = admin.warmer.start(order).map_err(|error| refused(&admin, &error))?;
    let told = told(&admin, &status);
    tracing::warn!(
        target: "seawall::audit",
        id = status.id,
        what = status.what,
        targets = status.total,
        partition = told["partition"].as_str().unwrap_or_default(),
        actor,
        reason,
        "cache warming begun"
    );
    Ok((StatusCode::ACCEPTED, Json(told)))
}

/// Begins nothing more.
pub(super) async fn cancel(State(admin): State<Admin>, body: Bytes) -> Result<Json<Value>, Problem> {
    let cancelled: Cancelled = if body.trim_ascii().is_empty() {
        Cancelled::default()
    } else {
        read(&body, r#"{"reason": "…", "actor": "…"}, or it must be empty"#)?
    };
    let actor = cancelled.actor.unwrap_or_else(|| "api".to_owned());
    let status = admin.warmer.cancel(&actor).map_err(|error| refused(&admin, &error))?;
    let reason = cancelled.reason.unwrap_or_default();
    tracing::warn!(target: "seawall::audit", id = status.id, actor, reason, "cache warming cancelled");
    Ok(Json(told(&admin, &status)))
}

/// Whose data is warmed: of an alias of ours, or of the service whose token is given.
fn identity(admin: &Admin, config: &Snapshot, wanted: &Wanted) -> Result<Identity, Problem> {
    match config.settings.credentials.mode {
        CredentialMode::Inject => {
            if wanted.token.is_some() {
                return Err(Problem::bad(
                    "token: with credentials.mode = \"inject\" the token is one of ours; name its alias in credential",
                ));
            }
            let alias = wanted.credential.as_deref().unwrap_or(&config.settings.credentials.default);
            admin.identifier.of_alias(alias, config).ok_or_else(|| {
                let mut known: Vec<&str> = config.credentials.keys().map(|name| &**name).collect();
                known.sort_unstable();
                Problem::new(
                    StatusCode::NOT_FOUND,
                    format!("credential: there is no alias {alias:?}; there are: {}", known.join(", ")),
                )
            })
        }
        CredentialMode::Passthrough => {
            if wanted.credential.is_some() {
                return Err(Problem::bad(
                    "credential: with credentials.mode = \"passthrough\" there are no aliases; give the token of the \
                     service whose data it is",
                ));
            }
            let Some(token) = wanted.token.as_deref().map(str::trim).filter(|token| !token.is_empty()) else {
                return Err(Problem::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "token: with credentials.mode = \"passthrough\" Seawall has no Flexport token of its own; give \
                     that of the service that is to find the copies",
                ));
            };
            let has_scheme = token.len() > 7 && token.as_bytes()[..7].eq_ignore_ascii_case(b"bearer ");
            let value = if has_scheme { token.to_owned() } else { format!("Bearer {token}") };
            let mut value = HeaderValue::from_str(&value)
                .map_err(|_| Problem::bad("token: it holds characters that a header field cannot"))?;
            value.set_sensitive(true);
            admin
                .identifier
                .of_authorization(&value, config)
                .map_err(|error| Problem::bad(format!("token: {error}")))
        }
    }
}

fn told(admin: &Admin, status: &WarmStatus) -> Value {
    let mut told = json!(status);
    Names::of(admin).tell(&mut told, status.partition);
    told
}

fn refused(admin: &Admin, error: &WarmError) -> Problem {
    let status = match error {
        WarmError::Busy(_) => StatusCode::CONFLICT,
        WarmError::Idle => StatusCode::NOT_FOUND,
        WarmError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        WarmError::Strict => StatusCode::UNPROCESSABLE_ENTITY,
    };
    let problem = Problem::new(status, error.to_string());
    match error {
        WarmError::Busy(busy) => problem.with("running", told(admin, busy)),
        _ => problem,
    }
}
