//! `seawall config`: what is configured, and what there is to configure.

use super::args::{ConfigArgs, ConfigCommand, Operator, Output};
use super::{Exit, client, output, serve};
use crate::config::{self, load};
use http::Method;
use serde_json::{Value, json};

pub(super) fn run(operator: &Operator, command: &ConfigCommand) -> Exit {
    match command {
        ConfigCommand::Show { source, running: false } => show(operator, source),
        ConfigCommand::Show { running: true, .. } => client::each(
            operator,
            async |admin| admin.send(Method::GET, "/api/v1/config", None).await,
            |config| table(&config["settings"]),
        ),
        ConfigCommand::Schema => {
            output::data(&serde_json::to_string_pretty(&config::json_schema()).unwrap_or_default());
            Exit::Done
        }
        ConfigCommand::Reload => client::each(
            operator,
            async |admin| admin.send(Method::POST, "/api/v1/config/reload", None).await,
            told,
        ),
    }
}

/// What `serve` would run with.
fn show(operator: &Operator, source: &ConfigArgs) -> Exit {
    let snapshot = match load(&serve::load_args(source)) {
        Ok(snapshot) => snapshot,
        Err(problems) => return Exit::Config(problems.to_string()),
    };
    for warning in &snapshot.warnings {
        output::say(&format!("warning: {warning}"));
    }
    let settings = json!(snapshot.shown());
    output::data(&match operator.output {
        Output::Table => table(&settings),
        Output::Json => {
            let shown = json!({ "source": snapshot.source, "files": snapshot.files, "settings": settings });
            serde_json::to_string_pretty(&shown).unwrap_or_default()
        }
    });
    Exit::Done
}

fn table(settings: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let rows: Vec<Vec<String>> = settings
        .as_array()
        .into_iter()
        .flatten()
        .map(|setting| vec![text(&setting["key"]), setting["value"].to_string(), text(&setting["origin"])])
        .collect();
    output::table(&["KEY", "VALUE", "ORIGIN"], &rows)
}

fn told(report: &Value) -> String {
    let list = |name: &str| {
        let keys: Vec<&str> =
            report[name].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") }
    };
    let mut text = format!(
        "generation {}\nchanged: {}\nneeds a restart: {}\n",
        report["generation"],
        list("changed"),
        list("needs_restart")
    );
    for warning in report["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        text.push_str("warning: ");
        text.push_str(warning);
        text.push('\n');
    }
    text
}
