//! The rules of HTTP caching as data, held against the real binary in the `strict` profile.
//!
//! The cases are in `cases/*.cases`, one file a subject; `cases/README.md` tells how they are written. Each case has a
//! URL of its own, and all run at once, so that the whole takes as long as the longest wait in it. A case is required,
//! or optional where the RFC says MAY. To run some of them:
//! `SEAWALL_CASES="part of a file, name or section" cargo nextest run -E 'binary(conformance)' --no-capture`.

#![expect(clippy::unwrap_used, reason = "a failure of a test's own means ends the test")]

#[allow(dead_code, unreachable_pub, reason = "each suite uses its part of what they share")]
#[path = "../it/support/mod.rs"]
mod support;

#[allow(dead_code, unreachable_pub, reason = "each suite uses its part of what they share")]
#[path = "../process/mod.rs"]
mod process;

mod case;
mod origin;
mod run;
mod wire;

use case::Case;
use origin::Origin;
use process::{Server, Setup};
use std::collections::HashSet;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Cases that run at once.
const AT_ONCE: usize = 100;

/// An origin, and the proxy before it.
struct World {
    origin: Arc<Origin>,
    server: Server,
}

impl World {
    async fn start() -> Self {
        let origin = Origin::start().await;
        let server = Setup::new(&origin.url, &["profile=strict"]).start().await;
        Self { origin, server }
    }

    /// Runs cases. The failures, in the order of the files.
    async fn run(&self, cases: Vec<Case>) -> Vec<(Case, String)> {
        let permits = Arc::new(Semaphore::new(AT_ONCE));
        let mut running = JoinSet::new();
        for (number, case) in cases.into_iter().enumerate() {
            let (permits, origin, base) = (permits.clone(), self.origin.clone(), self.server.url.clone());
            running.spawn(async move {
                let _permit = permits.acquire().await.unwrap();
                let failure = run::run(&case, number, &origin, &base).await.err();
                (number, case, failure)
            });
        }
        let mut failed = Vec::new();
        while let Some(ended) = running.join_next().await {
            let (number, case, failure) = ended.unwrap();
            failed.extend(failure.map(|failure| (number, case, failure)));
        }
        failed.sort_by_key(|(number, ..)| *number);
        failed.into_iter().map(|(_, case, failure)| (case, failure)).collect()
    }
}

/// All cases of all files.
fn corpus() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/cases");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cases"))
        .collect();
    files.sort();
    files
        .iter()
        .flat_map(|path| {
            let name = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().display().to_string();
            case::parse(&name, &std::fs::read_to_string(path).unwrap())
                .unwrap_or_else(|error| panic!("{error}"))
        })
        .collect()
}

fn told(failed: &[(Case, String)]) -> String {
    let mut text = String::new();
    for (case, failure) in failed {
        write!(text, "\n{}:{}: {} [{}]\n    {failure}\n", case.file, case.line, case.name, case.section)
            .unwrap();
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_required_case_holds() {
    let mut cases = corpus();
    if let Ok(part) = std::env::var("SEAWALL_CASES") {
        cases.retain(|case| [&case.file, &case.name, &case.section].iter().any(|text| text.contains(&part)));
    }
    let (all, required) = (cases.len(), cases.iter().filter(|case| case.is_required).count());
    let world = World::start().await;
    let (failed, missed): (Vec<_>, Vec<_>) =
        world.run(cases).await.into_iter().partition(|(case, _)| case.is_required);
    let summary = format!(
        "{} of {required} required and {} of {} optional cases hold",
        required - failed.len(),
        all - required - missed.len(),
        all - required,
    );
    println!("{summary}");
    if !missed.is_empty() {
        println!("optional, and not so here:{}", told(&missed));
    }
    assert!(failed.is_empty(), "{summary}{}", told(&failed));
}

#[test]
fn the_corpus_covers_the_rules() {
    let cases = corpus();
    assert!(cases.len() > 500, "{} cases", cases.len());
    let mut names = HashSet::new();
    for case in &cases {
        assert!(names.insert(&case.name), "{}:{}: its name is there twice", case.file, case.line);
    }
    for rfc in ["RFC 9111", "RFC 9110", "RFC 9211", "RFC 9213", "RFC 5861", "RFC 8246"] {
        assert!(cases.iter().any(|case| case.section.starts_with(rfc)), "no case for {rfc}");
    }
}

/// A runner that passes everything would pass the corpus too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_expectation_fails() {
    let text = include_str!("wrong.cases");
    let cases = case::parse("wrong.cases", text).unwrap();
    let expected: Vec<String> =
        text.lines().filter_map(|line| line.strip_prefix("# fails with: ")).map(str::to_owned).collect();
    assert_eq!(expected.len(), cases.len());
    let count = cases.len();
    let world = World::start().await;
    let failed = world.run(cases).await;
    assert_eq!(failed.len(), count, "a case held that must not:{}", told(&failed));
    for ((case, failure), expected) in failed.iter().zip(&expected) {
        assert!(failure.contains(expected), "{}: {failure:?} does not say {expected:?}", case.name);
    }
}
