//! Reloading the configuration.

use super::Admin;
use super::problem::Problem;
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde_json::{Value, json};

pub(super) async fn reload(State(admin): State<Admin>) -> Result<Json<Value>, Problem> {
    let report =
        crate::app::reload(&admin.config, &admin.breakers, &admin.metrics).await.map_err(|problems| {
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, format!("the old configuration stays: {problems}"))
        })?;
    Ok(Json(json!({ "generation": report.generation, "needs_restart": report.needs_restart })))
}
