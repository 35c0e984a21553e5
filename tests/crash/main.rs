//! The real binary, killed with SIGKILL and started again on the same folder, in front of a simulator that lives on.
//!
//! What was acknowledged must hold, and nothing may be sent again that could take effect twice.

#![expect(clippy::unwrap_used, reason = "a failure of a test's own means ends the test")]

#[allow(dead_code, unreachable_pub, reason = "each suite uses its part of what they share")]
#[path = "../it/support/mod.rs"]
mod support;

#[allow(dead_code, unreachable_pub, reason = "each suite uses its part of what they share")]
#[path = "../process/mod.rs"]
mod process;

mod cache;
mod outage;
mod random;
mod store;
mod unknown;

use support::Answer;

/// The ids of the simulated shipments.
async fn shipments(server: &process::Server) -> Vec<String> {
    let page = server.get("/shipments?per=12").await.json();
    page["data"]["data"].as_array().unwrap().iter().map(|shipment| shipment["id"].to_string()).collect()
}

/// The ticket that any answer names.
fn ticket_of(answer: &Answer) -> String {
    let id = answer.field("seawall-write-id");
    assert!(!id.is_empty(), "no ticket: {answer:?}");
    id.to_owned()
}

/// What took effect, in order: `METHOD path body`.
fn applied(simulator: &seawall::sim::Simulator) -> Vec<String> {
    simulator.state()["applied"].as_array().unwrap().iter().map(support::line).collect()
}
