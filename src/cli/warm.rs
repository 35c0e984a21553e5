//! `seawall cache warm`: begins a job, follows it, shows how it went.
//!
//! Progress goes to standard error: a bar that is drawn over where that is a terminal, else a line now and then. What
//! became of it goes to standard output. The exit code is 0 only when the job came to its end and nothing
//! failed.

use super::Exit;
use super::args::{Operator, Output, WarmArgs};
use super::breaker::actor;
use super::cache::text;
use super::{client, output};
use anyhow::Context;
use http::Method;
use serde_json::{Value, json};
use std::cell::Cell;
use std::fmt::Write as _;
use std::io::{IsTerminal, Read, Write};
use std::time::Duration;
use tokio::time::{Instant, sleep};

const PATH: &str = "/api/v1/cache/warm";
/// How often the job is looked at.
const LOOK: Duration = Duration::from_millis(300);
/// How often a line is written where there is no terminal, unless something else than the count has changed.
const LINE: Duration = Duration::from_secs(5);
/// How long a job is followed at most.
const FOLLOWED: Duration = Duration::from_secs(7 * 86_400);
const WIDTH: u64 = 30;

/// What is shown of the progress.
struct Progress {
    is_terminal: bool,
    last: String,
    said: Option<Instant>,
    state: String,
}

pub(super) fn run(operator: &Operator, args: &WarmArgs) -> Exit {
    if args.status {
        return client::each(operator, async |admin| admin.send(Method::GET, PATH, None).await, table);
    }
    if args.cancel {
        let body = json!({ "actor": actor(), "reason": args.reason });
        return client::each(
            operator,
            async |admin| admin.send(Method::DELETE, PATH, Some(body.clone())).await,
            table,
        );
    }
    let body = match order(args) {
        Ok(body) => body,
        Err(error) => return Exit::Failed(error),
    };
    let is_quiet = operator.output == Output::Json && !std::io::stderr().is_terminal();
    let is_whole = Cell::new(true);
    let exit = client::each_within(
        FOLLOWED,
        operator,
        async |admin| {
            let mut status = admin.send(Method::POST, PATH, Some(body.clone())).await?;
            if args.detach {
                return Ok(status);
            }
            let id = status["id"].clone();
            let mut progress = Progress::new();
            while status["ended_at"].is_null() && status["id"] == id {
                if !is_quiet {
                    progress.show(&status);
                }
                sleep(LOOK).await;
                status = admin.send(Method::GET, PATH, None).await?;
            }
            progress.end();
            if status["id"] != id {
                anyhow::bail!("another job has begun, or Seawall was restarted, which forgets jobs");
            }
            let has_failed = status["failed"].as_object().is_some_and(|failed| !failed.is_empty());
            is_whole.set(is_whole.get() && status["state"] == "done" && !has_failed);
            Ok(status)
        },
        table,
    );
    match exit {
        Exit::Done if !is_whole.get() => {
            Exit::Failed(anyhow::anyhow!("not everything was warmed; the table above says what and why"))
        }
        other => other,
    }
}

fn order(args: &WarmArgs) -> anyhow::Result<Value> {
    let mut body = json!({ "actor": actor(), "reason": args.reason });
    if args.shipments {
        body["shipments"] = json!("active");
    } else {
        let lines = match &args.file {
            Some(path) => lines(path)?,
            None => args.urls.clone(),
        };
        body["urls"] = json!(lines);
    }
    let token = match &args.flexport_token_file {
        Some(path) => Some(
            std::fs::read_to_string(path)
                .with_context(|| format!("--flexport-token-file {}: cannot be read", path.display()))?,
        ),
        None => std::env::var("SEAWALL_WARM_TOKEN").ok().filter(|_| args.credential.is_none()),
    };
    for (name, value) in [
        ("credential", &args.credential),
        ("token", &token),
        ("flexport_version", &args.flexport_version),
        ("accept", &args.accept),
        ("accept_language", &args.accept_language),
    ] {
        if let Some(value) = value {
            body[name] = json!(value);
        }
    }
    if let Some(concurrency) = args.concurrency {
        body["concurrency"] = json!(concurrency);
    }
    Ok(body)
}

fn lines(path: &std::path::Path) -> anyhow::Result<Vec<String>> {
    let mut whole = Vec::new();
    if path.as_os_str() == "-" {
        std::io::stdin().lock().read_to_end(&mut whole).context("--file -: cannot be read")?;
    } else {
        whole = std::fs::read(path).with_context(|| format!("--file {}: cannot be read", path.display()))?;
    }
    let text = String::from_utf8(whole)
        .with_context(|| format!("--file {}: it is not text in UTF-8", path.display()))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// `[#####……] 12/40`, what failed, and why it pauses.
fn line(status: &Value) -> String {
    let number = |name: &str| status[name].as_u64().unwrap_or_default();
    let (done, total) = (number("done"), number("total").max(1));
    let filled = usize::try_from(WIDTH * done.min(total) / total).unwrap_or_default();
    let mut line = format!("[{}{}] {done}/{total}", "#".repeat(filled), "-".repeat(WIDTH as usize - filled));
    if status["is_total_final"] == false {
        line.push('+');
    }
    let failed: u64 =
        status["failed"].as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum();
    if failed > 0 {
        let _ = write!(line, ", {failed} failed");
    }
    if let Some(why) = status["pause"]["why"].as_str() {
        let _ = write!(line, ", pauses: {why}, next try in {} s", status["pause"]["next_try_seconds"]);
    } else if status["state"] == "ending" {
        line.push_str(", ending");
    }
    line
}

fn table(status: &Value) -> String {
    let mut rows = Vec::new();
    for name in [
        "state",
        "why",
        "what",
        "partition",
        "started_at",
        "ended_at",
        "total",
        "done",
        "stored",
        "confirmed",
        "fresh",
        "in_flight",
        "left",
    ] {
        if !status[name].is_null() {
            rows.push(vec![name.to_owned(), text(&status[name])]);
        }
    }
    if status["what"] == "shipments" {
        for name in ["shipments_listed", "shipments_active"] {
            rows.push(vec![name.to_owned(), text(&status[name])]);
        }
    }
    for (prefix, name) in [("skipped", "skipped"), ("failed", "failed"), ("paused", "pauses")] {
        for (reason, count) in status[name].as_object().into_iter().flatten() {
            rows.push(vec![format!("{prefix}: {reason}"), text(count)]);
        }
    }
    if let Some(why) = status["pause"]["why"].as_str() {
        rows.push(vec!["pauses now".to_owned(), why.to_owned()]);
    }
    for failure in status["failures"].as_array().into_iter().flatten() {
        rows.push(vec![format!("failed: {}", text(&failure["target"])), text(&failure["why"])]);
    }
    output::table(&["WHAT", "VALUE"], &rows)
}

// === impl Progress ===

impl Progress {
    fn new() -> Self {
        Self {
            is_terminal: std::io::stderr().is_terminal(),
            last: String::new(),
            said: None,
            state: String::new(),
        }
    }

    fn show(&mut self, status: &Value) {
        let line = line(status);
        if self.is_terminal {
            let spaces = " ".repeat(self.last.chars().count().saturating_sub(line.chars().count()));
            let mut err = std::io::stderr().lock();
            let _ = write!(err, "\r{line}{spaces}");
            let _ = err.flush();
        } else {
            let state = format!("{} {}", status["state"], status["pause"]["why"]);
            let is_due = self.said.is_none_or(|said| said.elapsed() >= LINE);
            if line == self.last || !is_due && state == self.state {
                return;
            }
            output::say(&line);
            self.said = Some(Instant::now());
            self.state = state;
        }
        self.last = line;
    }

    /// The bar goes.
    fn end(&self) {
        if self.is_terminal && !self.last.is_empty() {
            let mut err = std::io::stderr().lock();
            let _ = write!(err, "\r{}\r", " ".repeat(self.last.chars().count()));
            let _ = err.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_tells_how_far_it_is_and_why_it_stands() {
        let status = json!({
            "state": "paused", "done": 3, "total": 9, "is_total_final": false, "failed": {"status-404": 1},
            "pause": {"why": "breaker-open", "next_try_seconds": 5}
        });
        let told = line(&status);
        assert_eq!(
            told,
            "[##########--------------------] 3/9+, 1 failed, pauses: breaker-open, next try in 5 s"
        );
        let done = json!({"state": "done", "done": 2, "total": 2, "is_total_final": true, "failed": {}});
        assert_eq!(line(&done), format!("[{}] 2/2", "#".repeat(30)));
        assert_eq!(line(&json!({})), format!("[{}] 0/1", "-".repeat(30)));
    }
}
