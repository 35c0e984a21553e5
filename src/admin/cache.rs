//! The cache: what it holds, and taking some of it away.

use super::Admin;
use super::problem::Problem;
use super::writes::read;
use crate::cache::Which;
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

/// `?after=…&limit=…`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    after: Option<String>,
    limit: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    #[serde(default)]
    key: Option<String>,
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    tag: Option<String>,
    #[serde(default)]
    prefix: Option<String>,
    #[serde(default)]
    partition: Option<String>,
    #[serde(default)]
    all: bool,
    /// Left out: it is marked out of date, and is still there for an outage.
    #[serde(default = "yes")]
    soft: bool,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    actor: Option<String>,
}

/// The longest page.
const MAX_LIMIT: usize = 1000;

fn yes() -> bool {
    true
}

pub(super) async fn stats(State(admin): State<Admin>) -> Json<Value> {
    Json(json!(admin.cache.stats()))
}

pub(super) async fn entries(
    State(admin): State<Admin>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(page) = page.map_err(|error| Problem::bad(error.body_text()))?;
    if let Some(after) = &page.after
        && (after.len() != 48 || !after.bytes().all(|byte| byte.is_ascii_hexdigit()))
    {
        return Err(Problem::bad("after: expected the `next` of an earlier page"));
    }
    let limit = page.limit.unwrap_or(100).clamp(1, MAX_LIMIT);
    let listed = admin.cache.list(page.after.as_deref(), limit).await;
    let next = if listed.len() == limit { listed.last().map(|(last, _)| last.id.clone()) } else { None };
    let entries: Vec<Value> = listed
        .into_iter()
        .map(|(listed, is_in_memory)| {
            let mut entry = json!(listed);
            entry["tier"] = json!(if is_in_memory { "memory and disk" } else { "disk" });
            entry
        })
        .collect();
    Ok(Json(json!({ "entries": entries, "next": next })))
}

pub(super) async fn purge(State(admin): State<Admin>, body: Bytes) -> Result<Json<Value>, Problem> {
    let wanted: Wanted = read(&body, r#"{"tag": "shipments", "soft": true, "reason": "…"}"#)?;
    let which = which(&wanted)?;
    let told = format!("{which:?}");
    let actor = wanted.actor.unwrap_or_else(|| "api".to_owned());
    let purged = admin
        .cache
        .purge(&which, wanted.soft, wanted.dry_run)
        .await
        .map_err(|error| Problem::new(StatusCode::INSUFFICIENT_STORAGE, error))?;
    if !wanted.dry_run {
        tracing::warn!(
            target: "seawall::audit",
            which = told, soft = wanted.soft, memory = purged.memory, disk = purged.disk,
            reason = wanted.reason.as_deref().unwrap_or(""), actor, "cache purged"
        );
    }
    Ok(Json(json!({ "purged": purged, "soft": wanted.soft, "dry_run": wanted.dry_run })))
}

fn which(wanted: &Wanted) -> Result<Which, Problem> {
    let named = [
        wanted.key.clone().map(|key| Ok(Which::Id(key))),
        wanted.path.clone().map(|path| Ok(Which::Path(path))),
        wanted.tag.clone().map(|tag| Ok(Which::Tag(tag))),
        wanted.prefix.clone().map(|prefix| Ok(Which::Prefix(prefix))),
        wanted.partition.clone().map(|text| {
            serde_json::from_value(Value::String(text))
                .map(Which::Partition)
                .map_err(|error| Problem::bad(format!("partition: {error}")))
        }),
        wanted.all.then_some(Ok(Which::All)),
    ];
    let mut named = named.into_iter().flatten();
    match (named.next(), named.next()) {
        (Some(which), None) => which,
        _ => Err(Problem::bad(
            "say what to purge by exactly one of key (an entry's id), path, prefix, tag, partition, or all: true",
        )),
    }
}
