//! Queued writes.

use super::Admin;
use super::problem::Problem;
use crate::config::raw::Span;
use crate::error::ProxyError;
use crate::flexport::problem::code;
use crate::ids::WriteId;
use crate::queue::{Filter, Queue, State as WriteState, Verdict};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// `?state=…&route=…&order_key=…&age=…&after=…&limit=…`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    state: Option<String>,
    route: Option<String>,
    order_key: Option<String>,
    age: Option<String>,
    after: Option<u64>,
    limit: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Act {
    reason: String,
    #[serde(default)]
    actor: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resolve {
    verdict: String,
    #[serde(default)]
    id: Option<String>,
    reason: String,
    #[serde(default)]
    actor: Option<String>,
}

/// What a person asks of a write, with nothing but a reason.
#[derive(Clone, Copy)]
pub(super) enum Deed {
    Cancel,
    Hold,
    Release,
    Retry,
}

/// The longest page.
const MAX_LIMIT: usize = 1000;

pub(super) async fn list(
    State(admin): State<Admin>,
    wanted: Result<Query<Wanted>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(wanted) = wanted.map_err(|error| Problem::bad(error.body_text()))?;
    let state = match wanted.state.as_deref() {
        Some(text) => Some(text.parse::<WriteState>().map_err(Problem::bad)?),
        None => None,
    };
    let older_than = match wanted.age.as_deref() {
        Some(text) => Some(*text.parse::<Span>().map_err(|error| Problem::bad(format!("age: {error}")))?),
        None => None,
    };
    let filter = Filter {
        state,
        route: wanted.route,
        order_key: wanted.order_key,
        older_than,
        after: wanted.after,
        limit: wanted.limit.unwrap_or(100).clamp(1, MAX_LIMIT),
    };
    Ok(Json(json!(queue(&admin)?.list(&filter))))
}

pub(super) async fn get(State(admin): State<Admin>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    let ticket = queue(&admin)?.get(parse(&id)?).await.ok_or_else(|| unknown(&id))?;
    Ok(Json(json!(ticket)))
}

/// Does what a person asks of a write.
pub(super) async fn act(
    deed: Deed,
    State(admin): State<Admin>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<Value>, Problem> {
    let act: Act = read(&body, r#"{"reason": "…", "actor": "…"}"#)?;
    demand_reason(&act.reason)?;
    let (queue, id) = (queue(&admin)?, parse(&id)?);
    let (actor, reason) = (act.actor.as_deref().unwrap_or("api"), act.reason.as_str());
    let (ticket, what) = match deed {
        Deed::Cancel => (queue.cancel(id, actor, reason).await, "write cancelled"),
        Deed::Hold => (queue.hold(id, actor, reason).await, "write held"),
        Deed::Release => (queue.release(id, actor, reason).await, "write released"),
        Deed::Retry => (queue.retry(id, actor, reason).await, "write sent again"),
    };
    let ticket = ticket.map_err(|error| problem(&error))?;
    tracing::warn!(target: "seawall::audit", write_id = %id, actor, reason, "{what}");
    Ok(Json(json!(ticket)))
}

pub(super) async fn resolve(
    State(admin): State<Admin>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<Value>, Problem> {
    let wanted: Resolve = read(&body, r#"{"verdict": "applied|not_applied|drop", "reason": "…"}"#)?;
    demand_reason(&wanted.reason)?;
    let verdict = match wanted.verdict.as_str() {
        "applied" => Verdict::Applied,
        "not_applied" => Verdict::NotApplied,
        "drop" => Verdict::Drop,
        other => {
            return Err(Problem::bad(format!("verdict: {other:?} is not one of applied, not_applied, drop")));
        }
    };
    let actor = wanted.actor.unwrap_or_else(|| "api".to_owned());
    let ticket = queue(&admin)?
        .resolve(parse(&id)?, verdict, wanted.id.as_deref(), &actor, &wanted.reason)
        .await
        .map_err(|error| problem(&error))?;
    tracing::warn!(
        target: "seawall::audit",
        write_id = id, verdict = wanted.verdict, actor, reason = wanted.reason,
        "write resolved"
    );
    Ok(Json(json!(ticket)))
}

pub(super) async fn rotate(State(admin): State<Admin>) -> Result<Json<Value>, Problem> {
    let store = admin.store.as_ref().ok_or_else(no_queue)?;
    let before = store.health();
    store
        .rotate()
        .await
        .map_err(|error| Problem::new(StatusCode::INSUFFICIENT_STORAGE, error.to_string()))?;
    let after = store.health();
    tracing::warn!(target: "seawall::audit", from = before.epoch, to = after.epoch, "store rotated");
    Ok(Json(json!({
        "epoch": after.epoch,
        "disk_bytes_before": before.disk_bytes,
        "disk_bytes": after.disk_bytes,
        "live_bytes": after.live_bytes,
    })))
}

fn queue(admin: &Admin) -> Result<&Arc<Queue>, Problem> {
    admin.queue.as_ref().ok_or_else(no_queue)
}

pub(super) fn no_queue() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "this Seawall queues no writes (queue.enabled, or profile = \"strict\")",
    )
}

fn parse(id: &str) -> Result<WriteId, Problem> {
    id.parse().map_err(|_| Problem::bad(format!("{id:?} is not the id of a ticket, which is a UUID")))
}

fn unknown(id: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("there is no ticket {id}"))
}

pub(super) fn read<T: for<'de> Deserialize<'de>>(body: &[u8], example: &str) -> Result<T, Problem> {
    serde_json::from_slice(body)
        .map_err(|error| Problem::bad(format!("the body must be JSON such as {example}: {error}")))
}

fn demand_reason(reason: &str) -> Result<(), Problem> {
    if reason.trim().is_empty() {
        return Err(Problem::bad("reason: say why; it is kept with the ticket"));
    }
    Ok(())
}

fn problem(error: &ProxyError) -> Problem {
    Problem::new(code(error).status, error.to_string())
}
