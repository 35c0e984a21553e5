//! `seawall breaker …`

use super::Exit;
use super::args::{AutoArgs, BreakerCommand, Operator, OverrideArgs};
use super::{client, output};
use http::Method;
use serde_json::{Value, json};

pub(super) fn run(operator: &Operator, command: &BreakerCommand) -> Exit {
    match command {
        BreakerCommand::List => client::each(
            operator,
            async |admin| admin.send(Method::GET, "/api/v1/breakers", None).await,
            show,
        ),
        BreakerCommand::ForceOpen(args) => set(operator, "forced_open", args),
        BreakerCommand::ForceClosed(args) => set(operator, "forced_closed", args),
        BreakerCommand::Observe(args) => set(operator, "observe", args),
        BreakerCommand::Auto(args) => clear(operator, args),
    }
}

fn set(operator: &Operator, mode: &str, args: &OverrideArgs) -> Exit {
    if args.reason.trim().is_empty() {
        return Exit::Usage("--reason must say why: it is kept with the override".to_owned());
    }
    let path =
        format!("/api/v1/breakers/{}/override{}", args.scope, if args.dry_run { "?dry_run=1" } else { "" });
    let body = json!({ "mode": mode, "reason": args.reason, "ttl": args.ttl, "actor": actor() });
    client::each(operator, async |admin| admin.send(Method::PUT, &path, Some(body.clone())).await, show)
}

fn clear(operator: &Operator, args: &AutoArgs) -> Exit {
    let path = format!("/api/v1/breakers/{}/override", args.scope);
    let body = json!({ "reason": args.reason, "actor": actor() });
    client::each(operator, async |admin| admin.send(Method::DELETE, &path, Some(body.clone())).await, show)
}

/// Who acts, for the audit trail.
pub(super) fn actor() -> String {
    std::env::var("SEAWALL_ACTOR").or_else(|_| std::env::var("USER")).unwrap_or_else(|_| "cli".to_owned())
}

fn show(value: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let rows: Vec<Vec<String>> = value["breakers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|breaker| {
            let window = &breaker["window"];
            vec![
                text(&breaker["scope"]),
                text(&breaker["state"]),
                text(&breaker["override"]["mode"]),
                output::moment(&breaker["override"]["until"]),
                format!("{}/{}", window["failures"], window["calls"]),
                output::moment(&breaker["since"]),
                last(&breaker["last"]),
                why(breaker),
            ]
        })
        .collect();
    output::table(&["SCOPE", "STATE", "OVERRIDE", "UNTIL", "FAILURES", "SINCE", "LAST", "WHY"], &rows)
}

/// The operator's reason or the breaker's own; and while it is not closed, what had opened it.
fn why(breaker: &Value) -> String {
    let why = breaker["override"]["reason"].as_str().or(breaker["why"].as_str()).unwrap_or("-");
    match breaker["trip"]["reason"].as_str() {
        Some(trip) if breaker["state"] != "closed" && trip != why => format!("{why}; it had opened: {trip}"),
        _ => why.to_owned(),
    }
}

/// The last deciding outcomes, newest first, equal ones together: `status_500 x9, cut`.
fn last(outcomes: &Value) -> String {
    let mut runs: Vec<(&str, usize)> = Vec::new();
    for outcome in outcomes.as_array().into_iter().flatten().filter_map(|one| one["outcome"].as_str()) {
        match runs.last_mut() {
            Some((same, count)) if *same == outcome => *count += 1,
            _ => runs.push((outcome, 1)),
        }
    }
    let text = |(outcome, count): (&str, usize)| {
        if count == 1 { outcome.to_owned() } else { format!("{outcome} x{count}") }
    };
    if runs.is_empty() { "-".to_owned() } else { runs.into_iter().map(text).collect::<Vec<_>>().join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_and_reasons_are_told_in_a_line() {
        let outcomes = json!([{"outcome": "status_500"}, {"outcome": "status_500"}, {"outcome": "cut"}]);
        assert_eq!(last(&outcomes), "status_500 x2, cut");
        assert_eq!(last(&json!([])), "-");
        let breaker =
            json!({"state": "half_open", "why": "the wait is over", "trip": {"reason": "2 of 2 failed"}});
        assert_eq!(why(&breaker), "the wait is over; it had opened: 2 of 2 failed");
        let breaker = json!({"state": "closed", "why": "well", "trip": {"reason": "2 of 2 failed"}});
        assert_eq!(why(&breaker), "well");
    }
}
