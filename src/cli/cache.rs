//! `seawall cache …`

use super::Exit;
use super::args::{CacheCommand, Operator, PurgeArgs};
use super::breaker::actor;
use super::{client, output};
use http::Method;
use serde_json::{Value, json};
use std::fmt::Write;

pub(super) fn run(operator: &Operator, command: &CacheCommand) -> Exit {
    match command {
        CacheCommand::Stats => {
            client::each(operator, async |admin| admin.send(Method::GET, "/api/v1/cache", None).await, stats)
        }
        CacheCommand::List(args) => {
            let limit = args.limit.to_string();
            let path = query(
                "/api/v1/cache/entries",
                &[
                    ("limit", Some(&limit)),
                    ("tag", args.tag.as_ref()),
                    ("prefix", args.prefix.as_ref()),
                    ("path", args.path.as_ref()),
                    ("partition", args.partition.as_ref()),
                    ("freshness", args.freshness.as_ref()),
                    ("after", args.after.as_ref()),
                ],
            );
            client::each(operator, async |admin| admin.send(Method::GET, &path, None).await, list)
        }
        CacheCommand::Warm(args) => super::warm::run(operator, args),
        CacheCommand::Coverage { partition } => {
            let path = query("/api/v1/cache/coverage", &[("partition", partition.as_ref())]);
            client::each(operator, async |admin| admin.send(Method::GET, &path, None).await, coverage)
        }
        CacheCommand::Purge(args) => purge(operator, args),
    }
}

fn purge(operator: &Operator, args: &PurgeArgs) -> Exit {
    let is_soft = !args.hard;
    let question = "Delete these copies? An outage could not be served from them any more.";
    if args.hard && !args.dry_run && !operator.yes && !output::confirm(question) {
        return Exit::Failed(anyhow::anyhow!("nothing was changed"));
    }
    let mut body = json!({
        "soft": is_soft, "dry_run": args.dry_run, "reason": args.reason, "actor": actor(), "all": args.which.all
    });
    for (name, value) in [
        ("key", &args.which.key),
        ("path", &args.which.path),
        ("prefix", &args.which.prefix),
        ("tag", &args.which.tag),
        ("partition", &args.which.partition),
    ] {
        if let Some(value) = value {
            body[name] = json!(value);
        }
    }
    client::each(
        operator,
        async |admin| admin.send(Method::POST, "/api/v1/cache/purge", Some(body.clone())).await,
        |value| {
            let verb = match (args.dry_run, is_soft) {
                (true, _) => "would be purged",
                (false, true) => "marked out of date",
                (false, false) => "deleted",
            };
            let purged = &value["purged"];
            format!("{} in memory, {} on disk {verb}", purged["memory"], purged["disk"])
        },
    )
}

fn stats(value: &Value) -> String {
    let mut rows = Vec::new();
    let mut add = |prefix: &str, value: &Value| {
        for (name, value) in value.as_object().into_iter().flatten() {
            match value {
                Value::Object(_) => {}
                Value::String(text) => rows.push(vec![format!("{prefix}{name}"), text.clone()]),
                other => rows.push(vec![format!("{prefix}{name}"), other.to_string()]),
            }
        }
    };
    add("", value);
    add("disk.", &value["disk"]);
    add("disk.dropped.", &value["disk"]["dropped"]);
    output::table(&["WHAT", "VALUE"], &rows)
}

fn list(value: &Value) -> String {
    let rows: Vec<Vec<String>> = value["entries"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| {
            vec![
                text(&entry["id"]),
                text(&entry["path"]),
                text(&entry["tag"]),
                output::seconds(entry["age_seconds"].as_f64().unwrap_or(0.0)),
                text(&entry["freshness"]),
                text(&entry["ttl_seconds"]),
                text(&entry["hits"]),
                text(&entry["bytes"]),
                text(&entry["tier"]),
                text(&entry["partition"]),
            ]
        })
        .collect();
    let header = ["KEY", "PATH", "TAG", "AGE", "STATE", "TTL", "HITS", "BYTES", "TIER", "PARTITION"];
    let mut page = output::table(&header, &rows);
    if let Some(next) = value["next"].as_str() {
        page.extend(["more: --after ", next, "\n"]);
    }
    page
}

fn coverage(value: &Value) -> String {
    let age = |value: &Value| value.as_f64().map_or_else(|| "-".to_owned(), output::seconds);
    let shipments = &value["shipments"];
    let mut page = match shipments["listed"].as_u64() {
        Some(listed) => format!("{} of {listed} shipments would be served", shipments["served"]),
        None => format!("{} shipments would be served", shipments["served"]),
    };
    if shipments["served"] != 0 {
        let _ = write!(
            page,
            ", {} of them out of lists; half are no older than {}, the oldest {}",
            shipments["from_lists"],
            age(&shipments["age_p50_seconds"]),
            age(&shipments["age_max_seconds"]),
        );
    }
    page.push_str("\n\n");
    let reasons = |value: &Value| -> Vec<String> {
        value.as_object().into_iter().flatten().map(|(reason, count)| format!("{reason} {count}")).collect()
    };
    let rows: Vec<Vec<String>> = value["routes"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|route| {
            let mut not = reasons(&route["refused"]);
            not.extend(reasons(&route["unservable"]).into_iter().map(|one| format!("{one} since the start")));
            if not.is_empty() && !route["why_not"].is_null() {
                not.push(text(&route["why_not"]));
            }
            vec![
                text(&route["route"]),
                text(&route["served"]),
                text(&route["from_lists"]),
                age(&route["age_p50_seconds"]),
                age(&route["age_max_seconds"]),
                text(&route["copies"]),
                not.join(", "),
            ]
        })
        .collect();
    let header = ["ROUTE", "SERVED", "FROM LISTS", "AGE P50", "AGE MAX", "COPIES", "NOT SERVED"];
    page.push_str(&output::table(&header, &rows));
    let rows: Vec<Vec<String>> = value["partitions"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| {
            ["partition", "credential", "served", "shipments", "copies"].map(|name| text(&one[name])).to_vec()
        })
        .collect();
    if !rows.is_empty() {
        page.push('\n');
        let header = ["PARTITION", "CREDENTIAL", "SERVED", "SHIPMENTS", "COPIES"];
        page.push_str(&output::table(&header, &rows));
    }
    if value["is_partial"] == true {
        page.push_str("\nNot all copies were looked at, so more may be served than this says.\n");
    }
    page
}

pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

/// A path with those parameters that have a value.
fn query(path: &str, parameters: &[(&str, Option<&String>)]) -> String {
    let mut whole = path.to_owned();
    for (name, value) in parameters {
        if let Some(value) = value {
            whole.push(if whole.contains('?') { '&' } else { '?' });
            whole.extend([name, "="]);
            whole.extend(percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC));
        }
    }
    whole
}
