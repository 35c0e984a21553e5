//! The store under the queue: is it sound, and a backup of it.

use super::Admin;
use super::problem::Problem;
use super::writes::{no_queue, read};
use crate::queue::verify::Verification;
use crate::store::{BackupError, BackupOrder, SECRET_FILE};
use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    path: PathBuf,
    #[serde(default)]
    with_secret: bool,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    actor: Option<String>,
}

/// Reads everything; the queue works on meanwhile.
pub(super) async fn verify(State(admin): State<Admin>) -> Result<Json<Value>, Problem> {
    let store = admin.store.clone().ok_or_else(no_queue)?;
    let epoch = store.health().epoch;
    let work = move || {
        Verification::of_running(&mut |tree, visit| store.scan(tree, &[], None, visit))
            .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
    };
    let found = tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))??;
    let mut told = json!({ "is_sound": found.is_sound(), "epoch": epoch });
    if let (Some(told), Value::Object(found)) = (told.as_object_mut(), json!(found)) {
        told.extend(found);
    }
    told["problems"] = found
        .problems
        .iter()
        .map(|problem| json!({ "place": problem.place, "what": problem.what }))
        .collect();
    Ok(Json(told))
}

/// Writes a backup into a folder as this process sees it.
pub(super) async fn backup(State(admin): State<Admin>, body: Bytes) -> Result<Json<Value>, Problem> {
    let wanted: Wanted = read(&body, r#"{"path": "/backups/2026-11-24", "with_secret": false}"#)?;
    let store = admin.store.as_ref().ok_or_else(no_queue)?;
    let snapshot = admin.config.current();
    let secret = wanted.with_secret.then(|| snapshot.settings.data_dir.join(SECRET_FILE));
    let order = BackupOrder { to: wanted.path.clone(), secret, now: admin.clock.now() };
    let manifest = store.backup(order).await.map_err(|error| {
        let status = match &error {
            BackupError::Place { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            BackupError::Busy => StatusCode::CONFLICT,
            BackupError::Unsupported => StatusCode::NOT_IMPLEMENTED,
            BackupError::NoSpace { .. } | BackupError::Io(_) => StatusCode::INSUFFICIENT_STORAGE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Problem::new(status, error.to_string())
    })?;
    tracing::warn!(
        target: "seawall::audit",
        path = %wanted.path.display(),
        with_secret = wanted.with_secret,
        actor = wanted.actor.as_deref().unwrap_or("api"),
        reason = wanted.reason.as_deref().unwrap_or_default(),
        "store backed up"
    );
    Ok(Json(json!({
        "path": wanted.path,
        "manifest": manifest,
        "has_secret": wanted.with_secret,
        "key_is_configured": snapshot.store_key.is_some(),
    })))
}
