//! `seawall queue …`

use super::Exit;
use super::args::{Operator, QueueCommand, Verdict};
use super::breaker::actor;
use super::{client, output};
use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

pub(super) fn run(operator: &Operator, command: &QueueCommand) -> Exit {
    match command {
        QueueCommand::List { state, route, limit, after } => {
            let mut path = format!("/api/v1/writes?limit={limit}");
            if let Some(after) = after {
                path.extend(["&after=", &after.to_string()]);
            }
            for (name, value) in [("state", state), ("route", route)] {
                if let Some(value) = value {
                    path.extend(["&", name, "="]);
                    path.extend(utf8_percent_encode(value, NON_ALPHANUMERIC));
                }
            }
            client::each(operator, async |admin| admin.send(Method::GET, &path, None).await, list)
        }
        QueueCommand::Show { id } => {
            let path = format!("/api/v1/writes/{id}");
            client::each(operator, async |admin| admin.send(Method::GET, &path, None).await, pretty)
        }
        QueueCommand::Cancel { id, reason } => {
            let body = json!({ "reason": reason, "actor": actor() });
            post(operator, id, "cancel", &body, "Cancel this write?")
        }
        QueueCommand::Hold { id, reason } => {
            let body = json!({ "reason": reason, "actor": actor() });
            post(operator, id, "hold", &body, "Keep this write back?")
        }
        QueueCommand::Release { id, reason } => {
            let body = json!({ "reason": reason, "actor": actor() });
            post(
                operator,
                id,
                "release",
                &body,
                "Let this write go on? If Flexport holds a newer value, it is overwritten.",
            )
        }
        QueueCommand::Retry { id, reason } => {
            let body = json!({ "reason": reason, "actor": actor() });
            post(operator, id, "retry", &body, "Send this write again?")
        }
        QueueCommand::Resolve { id, verdict, result_id, reason } => {
            if result_id.is_some() && *verdict != Verdict::Applied {
                return Exit::Usage("--result-id goes with --as applied".to_owned());
            }
            let body =
                json!({ "verdict": verdict.as_str(), "id": result_id, "reason": reason, "actor": actor() });
            let question = match verdict {
                Verdict::Applied => "Mark this write as done?",
                Verdict::NotApplied => {
                    "Send this write again? If it did take effect, it will take effect twice."
                }
                Verdict::Drop => "Give this write up?",
            };
            post(operator, id, "resolve", &body, question)
        }
    }
}

fn post(operator: &Operator, id: &str, action: &str, body: &Value, question: &str) -> Exit {
    if !operator.yes && !output::confirm(question) {
        return Exit::Failed(anyhow::anyhow!("nothing was changed"));
    }
    let path = format!("/api/v1/writes/{id}/{action}");
    client::each(operator, async |admin| admin.send(Method::POST, &path, Some(body.clone())).await, pretty)
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

fn list(value: &Value) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let rows: Vec<Vec<String>> = value["writes"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|write| {
            vec![
                text(&write["write_id"]),
                if write["is_held"] == true {
                    format!("{} (held)", text(&write["state"]))
                } else {
                    text(&write["state"])
                },
                text(&write["route"]),
                text(&write["path"]),
                text(&write["attempts"]),
                output::moment(&write["accepted_at"]),
                text(&write["reason"]),
            ]
        })
        .collect();
    let mut page =
        output::table(&["WRITE", "STATE", "ROUTE", "PATH", "ATTEMPTS", "ACCEPTED", "REASON"], &rows);
    if let Some(next) = value["next"].as_u64() {
        page.extend(["more: --after ", &next.to_string(), "\n"]);
    }
    page
}
