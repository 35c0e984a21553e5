//! The cache: what it holds, and taking some of it away.

use super::Admin;
use super::partitions::Names;
use super::problem::Problem;
use super::writes::read;
use crate::cache::{self, Which};
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// `?tag=…&prefix=…&path=…&partition=…&freshness=…&after=…&limit=…`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    tag: Option<String>,
    prefix: Option<String>,
    path: Option<String>,
    partition: Option<String>,
    freshness: Option<String>,
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
    if page.after.as_deref().is_some_and(|after| !is_id(after)) {
        return Err(Problem::bad("after: expected the `next` of an earlier page"));
    }
    let names = Names::of(&admin);
    let partition = page.partition.as_deref().map(|text| names.find(&admin, text).map(Which::Partition));
    let which = [
        page.tag.map(|tag| known_tag(&admin, tag)),
        page.prefix.map(|prefix| rooted("prefix", prefix).map(Which::Prefix)),
        page.path.map(|path| rooted("path", path).map(Which::Path)),
        partition,
    ];
    let freshness = page.freshness.as_deref().map(str::parse).transpose();
    let query = cache::Query {
        which: which.into_iter().flatten().collect::<Result<_, _>>()?,
        freshness: freshness.map_err(|what| Problem::bad(format!("freshness: {what}")))?,
        after: page.after,
        limit: page.limit.unwrap_or(100).clamp(1, MAX_LIMIT),
    };
    let limit = query.limit;
    let listed =
        admin.cache.list(query).await.map_err(|what| Problem::new(StatusCode::SERVICE_UNAVAILABLE, what))?;
    let next = if listed.len() == limit { listed.last().map(|last| last.id.clone()) } else { None };
    let entries: Vec<Value> = listed
        .into_iter()
        .map(|copy| {
            let mut entry = json!(copy);
            names.tell(&mut entry, copy.partition);
            entry
        })
        .collect();
    Ok(Json(json!({ "entries": entries, "next": next })))
}

/// `?partition=…`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Of {
    partition: Option<String>,
}

/// What an outage now would be served.
pub(super) async fn coverage(
    State(admin): State<Admin>,
    of: Result<Query<Of>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(of) = of.map_err(|error| Problem::bad(error.body_text()))?;
    let names = Names::of(&admin);
    let partition = of.partition.as_deref().map(|text| names.find(&admin, text)).transpose()?;
    let coverage = admin
        .cache
        .coverage(admin.config.current(), partition)
        .await
        .map_err(|what| Problem::new(StatusCode::SERVICE_UNAVAILABLE, what))?;
    let mut told = json!(coverage);
    told["at"] = json!(admin.clock.now().to_string());
    if let Some(partitions) = told["partitions"].as_array_mut() {
        for (told, of) in partitions.iter_mut().zip(&coverage.partitions) {
            names.tell(told, of.partition);
        }
    }
    Ok(Json(told))
}

pub(super) async fn purge(State(admin): State<Admin>, body: Bytes) -> Result<Json<Value>, Problem> {
    let wanted: Wanted = read(&body, r#"{"tag": "shipments", "soft": true, "reason": "…"}"#)?;
    let names = Names::of(&admin);
    let which = which(&admin, &names, &wanted)?;
    let told = match &which {
        Which::Partition(partition) => format!("partition {}", names.name(*partition)),
        other => format!("{other:?}"),
    };
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

fn which(admin: &Admin, names: &Names, wanted: &Wanted) -> Result<Which, Problem> {
    let named = [
        wanted.key.as_ref().map(|key| {
            if is_id(key) {
                return Ok(Which::Id(key.to_ascii_lowercase()));
            }
            Err(Problem::bad("key: expected the id of an entry, which is 48 hexadecimal digits"))
        }),
        wanted.path.clone().map(|path| rooted("path", path).map(Which::Path)),
        wanted.tag.clone().map(|tag| known_tag(admin, tag)),
        wanted.prefix.clone().map(|prefix| rooted("prefix", prefix).map(Which::Prefix)),
        wanted.partition.as_deref().map(|text| names.find(admin, text).map(Which::Partition)),
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

fn is_id(text: &str) -> bool {
    text.len() == 48 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn rooted(field: &str, path: String) -> Result<String, Problem> {
    if path.starts_with('/') {
        return Ok(path);
    }
    Err(Problem::bad(format!("{field}: {path:?} does not begin with `/`, so it is the path of nothing")))
}

/// One of the tags of the routes.
fn known_tag(admin: &Admin, tag: String) -> Result<Which, Problem> {
    let config = admin.config.current();
    let known: BTreeSet<&str> =
        config.routes.rows().filter_map(|route| route.cache.as_ref()).map(|policy| &*policy.tag).collect();
    if known.contains(&*tag) {
        return Ok(Which::Tag(tag));
    }
    let known: Vec<&str> = known.into_iter().collect();
    Err(Problem::new(
        StatusCode::NOT_FOUND,
        format!("tag: there is none called {tag:?}; there are: {}", known.join(", ")),
    ))
}
