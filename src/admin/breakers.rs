//! Breakers and their overrides.

use super::Admin;
use super::problem::Problem;
use crate::breaker::{Mode, OverrideError};
use crate::config::raw::Span;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    mode: String,
    reason: String,
    #[serde(default)]
    ttl: Option<String>,
    #[serde(default)]
    actor: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Cleared {
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    actor: Option<String>,
}

/// `?dry_run=1`
#[derive(Deserialize)]
pub(super) struct Options {
    dry_run: Option<String>,
}

/// How long an override holds when nothing is said.
const DEFAULT_TTL: Duration = Duration::from_secs(4 * 3600);
const TTL_LEAST: Duration = Duration::from_secs(1);
const TTL_MOST: Duration = Duration::from_secs(365 * 86_400);

pub(super) async fn list(State(admin): State<Admin>) -> Json<Value> {
    Json(json!({ "breakers": admin.breakers.list() }))
}

pub(super) async fn get(
    State(admin): State<Admin>,
    Path(scope): Path<String>,
) -> Result<Json<Value>, Problem> {
    match admin.breakers.get(&scope) {
        Some(status) => Ok(Json(json!(status))),
        None => Err(unknown(&admin, &scope)),
    }
}

pub(super) async fn set(
    State(admin): State<Admin>,
    Path(scope): Path<String>,
    Query(options): Query<Options>,
    body: Bytes,
) -> Result<Json<Value>, Problem> {
    let wanted: Wanted = serde_json::from_slice(&body).map_err(|error| {
        Problem::bad(format!(
            "the body must be JSON such as {{\"mode\": \"forced_open\", \"reason\": \"…\", \"ttl\": \"10m\"}}: {error}"
        ))
    })?;
    let mode = match wanted.mode.as_str() {
        "forced_open" => Mode::ForcedOpen,
        "forced_closed" => Mode::ForcedClosed,
        "observe" => Mode::Observe,
        other => {
            return Err(Problem::bad(format!(
                "mode: {other:?} is not one of forced_open, forced_closed, observe; DELETE the override for auto"
            )));
        }
    };
    if wanted.reason.trim().is_empty() {
        return Err(Problem::bad("reason: say why; it is kept with the override"));
    }
    let ttl = match wanted.ttl.as_deref() {
        None => Some(DEFAULT_TTL),
        Some("never") => None,
        Some(text) => {
            let ttl: Span =
                text.parse().map_err(|error| Problem::bad(format!("ttl: {error}, or \"never\"")))?;
            if *ttl < TTL_LEAST || *ttl > TTL_MOST {
                return Err(Problem::bad(
                    "ttl: it must be from \"1s\" to \"365d\", or \"never\" until it is taken back",
                ));
            }
            Some(*ttl)
        }
    };
    let is_dry_run = options.dry_run.as_deref().is_some_and(|value| !matches!(value, "0" | "false"));
    let actor = wanted.actor.unwrap_or_else(|| "api".to_owned());
    let before = states(&admin, &scope);
    let changed = admin
        .breakers
        .set_override(&scope, mode, &wanted.reason, ttl, &actor, is_dry_run)
        .await
        .map_err(|error| refused(&admin, &scope, &error))?;
    if !is_dry_run {
        tracing::warn!(
            target: "seawall::audit",
            scope, mode = wanted.mode, reason = wanted.reason, ttl = wanted.ttl.as_deref().unwrap_or("4h"), actor, before,
            "breaker override set"
        );
    }
    Ok(Json(json!({ "breakers": changed, "dry_run": is_dry_run })))
}

pub(super) async fn clear(
    State(admin): State<Admin>,
    Path(scope): Path<String>,
    Query(options): Query<Options>,
    body: Bytes,
) -> Result<Json<Value>, Problem> {
    let cleared: Cleared = if body.trim_ascii().is_empty() {
        Cleared::default()
    } else {
        serde_json::from_slice(&body).map_err(|error| {
            Problem::bad(format!("the body must be empty, or JSON with reason and actor: {error}"))
        })?
    };
    let is_dry_run = options.dry_run.as_deref().is_some_and(|value| !matches!(value, "0" | "false"));
    let actor = cleared.actor.unwrap_or_else(|| "api".to_owned());
    let reason = cleared.reason.unwrap_or_default();
    let before = states(&admin, &scope);
    let changed = admin
        .breakers
        .clear_override(&scope, Some(&reason), &actor, is_dry_run)
        .await
        .map_err(|error| refused(&admin, &scope, &error))?;
    if !is_dry_run {
        tracing::warn!(target: "seawall::audit", scope, reason, actor, before, "breaker override cleared");
    }
    Ok(Json(json!({ "breakers": changed, "dry_run": is_dry_run })))
}

/// Mode and state of what is about to change, for the audit log.
fn states(admin: &Admin, scope: &str) -> String {
    let all = json!(admin.breakers.list());
    all.as_array()
        .into_iter()
        .flatten()
        .filter(|status| scope == "all" || status["scope"] == scope)
        .filter(|status| scope != "all" || !status["override"].is_null())
        .map(|status| {
            let mode = status["override"]["mode"].as_str().unwrap_or("auto");
            format!(
                "{}={}/{mode}",
                status["scope"].as_str().unwrap_or("?"),
                status["state"].as_str().unwrap_or("?")
            )
        })
        .collect::<Vec<_>>()
        .join(" ")
}

fn refused(admin: &Admin, scope: &str, error: &OverrideError) -> Problem {
    match error {
        OverrideError::UnknownScope(_) => unknown(admin, scope),
        OverrideError::Reason => Problem::bad(error.to_string()),
        OverrideError::NotDurable(_) => Problem::new(StatusCode::INSUFFICIENT_STORAGE, error.to_string()),
    }
}

fn unknown(admin: &Admin, scope: &str) -> Problem {
    let all = json!(admin.breakers.list());
    let names: Vec<&str> =
        all.as_array().into_iter().flatten().filter_map(|status| status["scope"].as_str()).collect();
    Problem::new(
        StatusCode::NOT_FOUND,
        format!(
            "there is no breaker {scope:?}; there are: {} (and \"all\", for overrides)",
            names.join(", ")
        ),
    )
}
