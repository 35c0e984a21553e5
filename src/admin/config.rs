//! The configuration in force, its reload, and what is logged.

use super::Admin;
use super::problem::Problem;
use super::writes::read;
use crate::config::{self, Diagnostics, LastReload, Trigger};
use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// `null`: as `telemetry.log` says. Must be there.
    #[serde(deserialize_with = "Option::deserialize")]
    level: Option<String>,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    actor: Option<String>,
}

/// Every value in force with its origin, masked, and how the last reload went.
pub(super) async fn get(State(admin): State<Admin>) -> Json<Value> {
    let snapshot = admin.config.current();
    let last = admin.config.last_reload();
    let (log, is_overridden) = admin.config.log_filter();
    Json(json!({
        "generation": snapshot.generation,
        "source": snapshot.source,
        "files": snapshot.files,
        "log_level": { "level": log, "is_overridden": is_overridden },
        "last_reload": last.as_ref().map(told),
        "settings": snapshot.shown(),
    }))
}

fn told(last: &LastReload) -> Value {
    let mut told = json!({
        "at": last.at.to_string(),
        "trigger": last.trigger.to_string(),
        "is_successful": last.result.is_ok(),
    });
    match &last.result {
        Ok(report) => {
            told["changed"] = json!(report.changed);
            told["needs_restart"] = json!(report.needs_restart);
        }
        Err(diagnostics) => told["problems"] = problems(diagnostics),
    }
    told
}

fn problems(diagnostics: &Diagnostics) -> Value {
    let all = diagnostics.problems().iter().map(|problem| {
        json!({ "origin": problem.origin.to_string(), "key": problem.key, "message": problem.message })
    });
    all.collect()
}

pub(super) async fn reload(State(admin): State<Admin>) -> Result<Json<Value>, Problem> {
    let reloaded = crate::app::reload(&admin.config, &admin.breakers, &admin.metrics, Trigger::Api).await;
    let report = reloaded.map_err(|diagnostics| {
        let detail = format!("the old configuration stays: {diagnostics}");
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail).with("problems", problems(&diagnostics))
    })?;
    Ok(Json(json!({
        "generation": report.generation,
        "changed": report.changed,
        "needs_restart": report.needs_restart,
        "warnings": report.warnings,
    })))
}

/// Changes what is logged, until `telemetry.log` changes or the process ends.
pub(super) async fn log_level(State(admin): State<Admin>, body: Bytes) -> Result<Json<Value>, Problem> {
    let wanted: Wanted = read(
        &body,
        r#"{"level": "info,seawall::queue=debug"}, or {"level": null} for what telemetry.log says"#,
    )?;
    let (before, _) = admin.config.log_filter();
    if let Some(level) = &wanted.level {
        config::log_filter(level).map_err(|what| Problem::bad(format!("level: {what}")))?;
    }
    let configured = admin.config.current().settings.telemetry.log.clone();
    let is_overridden = wanted.level.is_some();
    let level = wanted.level.unwrap_or(configured);
    crate::telemetry::set_log_filter(&level).map_err(|what| Problem::bad(format!("level: {what}")))?;
    admin.config.set_log_filter(is_overridden.then(|| level.clone()));
    let actor = wanted.actor.as_deref().unwrap_or("api");
    let reason = wanted.reason.as_deref().unwrap_or_default();
    tracing::warn!(target: "seawall::audit", level, before, actor, reason, "log level changed");
    Ok(Json(json!({ "level": level, "is_overridden": is_overridden })))
}
