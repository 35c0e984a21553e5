//! `seawall status`

use super::Exit;
use super::args::{Operator, StatusArgs};
use super::{client, output};
use http::Method;
use serde_json::Value;
use std::fmt::Write as _;

pub(super) fn run(operator: &Operator, args: &StatusArgs) -> Exit {
    loop {
        let exit =
            client::each(operator, async |admin| admin.send(Method::GET, "/api/v1/status", None).await, show);
        if !args.watch || !matches!(exit, Exit::Done) {
            return exit;
        }
        output::pause();
    }
}

fn show(status: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let mut page = String::new();
    let uptime = output::seconds(status["uptime_seconds"].as_f64().unwrap_or(0.0));
    let _ = writeln!(
        page,
        "Seawall {}, up {uptime}, in front of {}",
        text(&status["version"]),
        text(&status["upstream"])
    );
    if let Some(alarm) = status["breakers_alarm"].as_str() {
        let _ = writeln!(page, "ALARM {alarm}");
    }
    let breakers = status["breakers"].as_array().cloned().unwrap_or_default();
    let notable: Vec<Vec<String>> = breakers
        .iter()
        .filter(|breaker| breaker["state"] != "closed" || !breaker["override"].is_null())
        .map(|breaker| {
            vec![
                text(&breaker["scope"]),
                text(&breaker["state"]),
                text(&breaker["override"]["mode"]),
                text(&breaker["why"]),
            ]
        })
        .collect();
    if notable.is_empty() {
        let _ = writeln!(page, "breakers  all {} closed", breakers.len());
    } else {
        page.push_str(&output::table(&["SCOPE", "STATE", "OVERRIDE", "WHY"], &notable));
    }
    if let Some(line) = status_page(&status["status_page"]) {
        let _ = writeln!(page, "flexport  {line}");
    }
    let _ = writeln!(page, "cache     {}", facts(&status["cache"]));
    let queue = &status["queue"];
    if queue.is_null() {
        let _ = writeln!(page, "queue     off");
    } else {
        let depth = &queue["depth"];
        let _ = writeln!(
            page,
            "queue     {} unsettled, oldest {}; unknown {}, dead {}",
            queue["unsettled"],
            output::seconds(queue["oldest_seconds"].as_f64().unwrap_or(0.0)),
            depth["unknown"],
            depth["dead"]
        );
        for paused in queue["paused"].as_array().into_iter().flatten() {
            let _ =
                writeln!(page, "          paused: {} ({})", text(&paused["name"]), text(&paused["reason"]));
        }
    }
    let store = &status["store"];
    if !store.is_null() {
        let state = if store["writable"] == true {
            "writable".to_owned()
        } else {
            format!("NOT WRITABLE: {}", store["failed"])
        };
        let _ = writeln!(
            page,
            "store     {state}, {} bytes live of {} on disk",
            store["live_bytes"], store["disk_bytes"]
        );
    }
    page
}

/// What Flexport's status page says, where one is looked at.
fn status_page(page: &Value) -> Option<String> {
    page["url"].as_str()?;
    let mut line = match page["indicator"].as_str() {
        Some(indicator) => {
            format!("says {indicator} on its status page: {}", page["description"].as_str().unwrap_or("-"))
        }
        None => "status page not read".to_owned(),
    };
    for incident in page["incidents"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let _ = write!(line, "; {incident}");
    }
    if let Some(error) = page["error"].as_str() {
        let _ = write!(line, " (cannot be read now: {error})");
    }
    Some(line)
}

/// `name value` of each number of an object.
fn facts(value: &Value) -> String {
    value
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, value)| value.is_number())
        .map(|(name, value)| format!("{} {value}", name.replace('_', " ")))
        .collect::<Vec<_>>()
        .join(", ")
}
