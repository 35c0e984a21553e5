//! npm `@distributeaid/flexport-sdk` walks shipments, legs, containers, papers and pages by their links (see
//! `fixtures/clients/sdk.mjs`): what it is given through Seawall is what it is given without, all of it comes through
//! Seawall, and in an outage nothing changes but fields that it does not look at.

use crate::npm::{API_KEY, PATIENCE, Sandbox, fixture, installed};
use crate::process::Setup;
use crate::{Simulated, call};
use http::Method;
use serde_json::Value;
use std::path::PathBuf;
use std::process::Stdio;
use tokio::process::Command;

/// How many links a walk follows at most: all of the simulator's.
const MOST: usize = 700;
const VERSION: &str = "2.6.6";
/// What a walk logs is read by nobody.
const QUIET: &[&str] = &["telemetry.log=info", "telemetry.access_log=false"];
const FLEXPORT: &str = "https://api.flexport.com";

/// What the SDK returned for each path, and what it asked for.
struct Walk {
    steps: Vec<Step>,
    requests: Vec<Value>,
}

struct Step {
    target: String,
    /// With all links as they came.
    told: String,
    is_error: bool,
}

async fn sdk() -> Option<PathBuf> {
    let package = format!("@distributeaid/flexport-sdk@{VERSION}");
    installed(&format!("sdk-{VERSION}"), &[&package]).await
}

// === impl Walk ===

impl Walk {
    async fn of(sdk: &PathBuf, endpoint: &str, is_direct: bool) -> Self {
        let walk = Command::new("node")
            .arg(fixture("clients/sdk.mjs"))
            .arg(sdk)
            .args([endpoint, API_KEY, &MOST.to_string()])
            .args(is_direct.then_some("--direct"))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(PATIENCE, walk).await.expect("the walk does not end").unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut told: Value = serde_json::from_slice(&output.stdout).unwrap();
        let mut list = |name: &str| std::mem::take(told[name].as_array_mut().unwrap());
        let steps = list("walk").into_iter().map(|step| Step {
            target: step["target"].as_str().unwrap().to_owned(),
            told: step.to_string(),
            is_error: !step["error"].is_null(),
        });
        Self { steps: steps.collect(), requests: list("requests") }
    }

    fn targets(&self) -> Vec<&str> {
        self.requests.iter().map(|request| request["target"].as_str().unwrap()).collect()
    }

    /// How many of the answers were not errors and came from there.
    fn from(&self, source: &str) -> usize {
        let is_one = |request: &&Value| request["source"] == source && request["status"] == 200;
        self.requests.iter().filter(is_one).count()
    }

    fn errors(&self) -> usize {
        self.steps.iter().filter(|step| step.is_error).count()
    }

    /// It went through Seawall, is what `direct` is but for the links, and these all lead to Seawall.
    fn equals(&self, direct: &Self, seawall: &str, upstream: &str) {
        assert_eq!(self.targets(), direct.targets());
        for (step, expected) in self.steps.iter().zip(&direct.steps) {
            assert_eq!(step.target, expected.target);
            assert!(!step.told.contains(FLEXPORT) && !step.told.contains(upstream), "{}", step.told);
            let expected = expected.told.replace(FLEXPORT, seawall).replace(upstream, seawall);
            assert_eq!(step.told, expected);
        }
        assert_eq!(self.steps.len(), direct.steps.len());
        assert_eq!(self.from("upstream"), self.requests.len() - self.errors());
    }

    /// It is what it was before the outage, and says in each field of Seawall's how old it is. What was an error then
    /// is one still, if another, unless a list has that object.
    fn is_served_stale(&self, before: &Self) {
        let others: Vec<_> = self.requests.iter().filter(|request| request["source"] != "stale").collect();
        assert!(self.targets() == before.targets(), "a link was lost with one of these: {others:#?}");
        for (step, expected) in self.steps.iter().zip(&before.steps) {
            assert_eq!(step.target, expected.target);
            if expected.is_error {
                let from_collection = |request: &Value| {
                    let cache = request["cache"].as_str().unwrap_or_default();
                    request["target"] == *step.target && cache.contains("detail=from-collection")
                };
                assert!(step.is_error || self.requests.iter().any(from_collection), "{}", step.told);
            } else {
                assert_eq!(step.told, expected.told);
            }
        }
        assert_eq!(self.steps.len(), before.steps.len());
        assert_eq!(self.from("stale"), self.requests.len() - self.errors());
        for request in self.requests.iter().filter(|request| request["status"] == 200) {
            let age = request["age"].as_str().and_then(|age| age.parse::<u64>().ok());
            assert!(age.is_some() && !request["reason"].is_null(), "{request}");
        }
    }

    /// It has seen objects of these kinds, and more than one page.
    fn reaches(&self, kinds: &[&str]) {
        for kind in kinds {
            let kind = format!(r#""_object":"{kind}""#);
            assert!(self.steps.iter().any(|step| step.told.contains(&kind)), "no {kind}");
        }
        let is_page = |step: &&Step| {
            !step.is_error && step.target.starts_with("/shipments?") && step.target.contains("page=")
        };
        assert!(self.steps.iter().filter(is_page).count() > 1, "one page");
    }
}

/// What arrived there since `from` was asked for by Seawall, and is this.
fn all_came_from_seawall(journal: &[(String, Option<String>)], targets: &[&str]) {
    for (target, via) in journal {
        assert_eq!(via.as_deref(), Some("1.1 seawall"), "{target} went past the proxy");
    }
    let arrived: Vec<_> = journal.iter().map(|(target, _)| target.as_str()).collect();
    assert_eq!(arrived, targets);
}

#[tokio::test]
async fn the_sdk_walks_the_simulator_through_seawall_as_without_it_and_in_an_outage() {
    let Some(sdk) = sdk().await else { return };
    let flexport = Simulated::start(32).await;
    let journal = async || -> Vec<(String, Option<String>)> {
        let entries = flexport.control(Method::GET, "requests", "").await;
        flexport.control(Method::DELETE, "requests", "").await;
        let told = |entry: &Value| {
            let (path, query) =
                (entry["path"].as_str().unwrap(), entry["query"].as_str().unwrap_or_default());
            let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
            (target, entry["headers"]["via"].as_str().map(str::to_owned))
        };
        entries.as_array().unwrap().iter().map(told).collect()
    };
    let direct = Walk::of(&sdk, &flexport.url, true).await;
    direct.reaches(&[
        "/shipment",
        "/ocean/shipment",
        "/ocean/shipment_leg",
        "/ocean/shipment_container",
        "/ocean/shipment_container_leg",
        "/booking",
        "/document",
        "/commercial_invoice",
        "/customs_entry",
    ]);
    assert_eq!(direct.errors(), 0);
    assert!(direct.steps.len() < MOST, "the walk has no end");
    assert!(journal().await.iter().all(|(_, via)| via.is_none()), "there is no proxy");

    let seawall = Setup::new(&flexport.url, QUIET).start().await;
    let through = Walk::of(&sdk, &seawall.url, false).await;
    through.equals(&direct, &seawall.url, &flexport.url);
    all_came_from_seawall(&journal().await, &through.targets());

    for faults in [r#"[{"kind":"status","status":503,"retry_after":5}]"#, r#"[{"kind":"refuse"}]"#] {
        flexport.set_faults(faults).await;
        let stale = Walk::of(&sdk, &seawall.url, false).await;
        stale.is_served_stale(&through);
    }
    let seen = journal().await;
    assert!(seen.iter().all(|(_, via)| via.as_deref() == Some("1.1 seawall")), "{seen:?}");
    seawall.stop().await;
}

#[tokio::test]
async fn the_sdk_walks_recorded_bodies_through_seawall_as_without_it_and_when_flexport_is_gone() {
    let Some(sdk) = sdk().await else { return };
    let Some(mut flexport) = Sandbox::start().await else { return };
    let journal = async |from: usize| -> Vec<(String, Option<String>)> {
        let entries = call(Method::GET, &format!("{}/_journal", flexport.url), "").await.json();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let told = |entry: &Value| (text(&entry["target"]).unwrap(), text(&entry["via"]));
        entries.as_array().unwrap()[from..].iter().map(told).collect()
    };
    let direct = Walk::of(&sdk, &flexport.url, true).await;
    direct.reaches(&[
        "/shipment",
        "/ocean/shipment_leg",
        "/ocean/shipment_container",
        "/booking",
        "/document",
    ]);
    let before = journal(0).await;
    assert!(before.iter().all(|(_, via)| via.is_none()), "there is no proxy");

    let seawall = Setup::new(&flexport.url, QUIET).start().await;
    let through = Walk::of(&sdk, &seawall.url, false).await;
    through.equals(&direct, &seawall.url, &flexport.url);
    // A path that was not recorded redirects to the root, which is followed, and is empty.
    let (roots, arrived): (Vec<_>, Vec<_>) =
        journal(before.len()).await.into_iter().partition(|(target, _)| target == "/");
    all_came_from_seawall(&arrived, &through.targets());
    all_came_from_seawall(&roots, &vec!["/"; through.errors()]);

    flexport.kill().await;
    let stale = Walk::of(&sdk, &seawall.url, false).await;
    stale.is_served_stale(&through);
    seawall.stop().await;
}
