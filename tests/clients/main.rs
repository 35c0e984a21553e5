//! Clients that were not written for Seawall: they are pointed at it, and nothing else about them changes.
//!
//! Without node, npm, its registry or Python the tests are reported as NOT RUN; with `CI=true` they fail.

#![expect(clippy::unwrap_used, reason = "helpers of tests stand outside of test functions")]

#[allow(dead_code, unreachable_pub, reason = "each suite uses its part of what they share")]
#[path = "../it/support/mod.rs"]
mod support;

#[allow(dead_code, unreachable_pub, reason = "each suite uses its part of what they share")]
#[path = "../process/mod.rs"]
mod process;

#[allow(
    dead_code,
    unreachable_pub,
    clippy::print_stderr,
    reason = "each suite uses its part of what they share"
)]
#[path = "../npm/mod.rs"]
mod npm;

mod incremental;
mod sdk;

use http::Method;
use npm::PATIENCE;
use serde_json::Value;
use std::process::Stdio;
use support::{Answer, client, try_send};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// A running `seawall simulate`. Killed when dropped.
struct Simulated {
    _process: Child,
    /// Flexport's base URL.
    url: String,
    /// Of the API that no fault touches, with `/_sim`.
    control: String,
}

// === impl Simulated ===

impl Simulated {
    async fn start(shipments: usize) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_seawall"))
            .args(["simulate", "--listen", "127.0.0.1:0", "--seed", "7"])
            .args(["--shipments", &shipments.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut url = async || {
            let line = tokio::time::timeout(PATIENCE, lines.next_line()).await;
            let line = line.expect("the simulator does not start").unwrap().expect("it ended at once");
            line.split_whitespace().last().unwrap().to_owned()
        };
        let (url, control) = (url().await, url().await);
        // It never waits for us to read.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { _process: process, url, control }
    }

    /// A call of the control API: its path below `/_sim/`.
    async fn control(&self, method: Method, path: &str, body: &str) -> Value {
        let answer = call(method, &format!("{}/{path}", self.control), body).await;
        assert_eq!(answer.status, 200, "{path} {body}: {answer:?}");
        answer.json()
    }

    async fn set_faults(&self, faults: &str) {
        self.control(Method::PUT, "faults", faults).await;
    }
}

/// One request past Seawall.
async fn call(method: Method, url: &str, body: &str) -> Answer {
    try_send(&client(), method, url, &[], body, true).await.unwrap_or_else(|error| panic!("{url}: {error}"))
}
