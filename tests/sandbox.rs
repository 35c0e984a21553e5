//! Real input: bodies that a real Flexport account returned, recorded by npm `@distributeaid/flexport-api-sandbox`.
//!
//! The package is AGPL, so nothing of it is committed: it is installed when the test runs, into `target/npm/`, where it
//! stays. Without node, npm or the registry the tests are reported as NOT RUN; with `CI=true` they fail.

#![expect(clippy::unwrap_used, reason = "helpers of tests stand outside of test functions")]

#[allow(
    dead_code,
    unreachable_pub,
    clippy::print_stderr,
    reason = "each suite uses its part of what they share"
)]
#[path = "npm/mod.rs"]
mod npm;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use npm::{API_KEY, PATIENCE, Sandbox};
use seawall::app::App;
use seawall::clock::Clock;
use seawall::config::{Live, LoadArgs};
use seawall::flexport::routes::{OTHER, RoutePolicy, RouteTable, built_in};
use seawall::http::Body;
use serde_json::Value;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;

/// Recorded bodies in this version of the package.
const BODIES: usize = 1585;
/// Links in them.
const LINKS: usize = 6417;
/// The base that Flexport itself writes into links.
const FLEXPORT: &str = "https://api.flexport.com";
/// How many reads are under way at once.
const READERS: usize = 8;

type Http = Client<HttpConnector, Body>;

/// An answer with its whole body.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    fields: HeaderMap,
    body: Bytes,
}

// === Reading ===

async fn get(http: &Http, url: &str, token: &str) -> Answer {
    let request = Request::get(url).header("authorization", format!("Bearer {token}"));
    let response = http
        .request(request.body(Body::empty()).unwrap())
        .await
        .unwrap_or_else(|error| panic!("{url}: {error:?}"));
    let (parts, body) = response.into_parts();
    let body = Body::from(body).collect(1 << 20).await.unwrap();
    Answer { status: parts.status, fields: parts.headers, body }
}

/// Reads all these paths from one base, a few at a time; the answers are in the order of the paths.
async fn get_all(http: &Http, base: &str, paths: &Arc<Vec<String>>) -> Vec<Answer> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..READERS {
        let (http, base, paths, next) = (http.clone(), base.to_owned(), paths.clone(), next.clone());
        readers.spawn(async move {
            let mut answers = Vec::new();
            while let Some((index, path)) = {
                let index = next.fetch_add(1, Ordering::Relaxed);
                paths.get(index).map(|path| (index, path))
            } {
                answers.push((index, get(&http, &format!("{base}{path}"), API_KEY).await));
            }
            answers
        });
    }
    let mut answers: Vec<_> = readers.join_all().await.into_iter().flatten().collect();
    answers.sort_unstable_by_key(|(index, _)| *index);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

// === Comparing ===

/// The values of all links in a body.
fn links(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                match value {
                    Value::String(link)
                        if ["self", "prev", "next", "link", "file_link"].contains(&&**name) =>
                    {
                        found.push(link.clone());
                    }
                    value => links(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| links(value, found)),
        _ => {}
    }
}

/// Puts back, at each place of `base`, the one of `originals` that `original` has there. Equal to `original` only if
/// nothing else was changed.
fn put_back(body: &str, base: &str, original: &str, originals: &[&str]) -> String {
    let mut back = String::with_capacity(original.len());
    for (index, part) in body.split(base).enumerate() {
        if index > 0 {
            let rest = original.get(back.len()..).unwrap_or_default();
            back.push_str(originals.iter().find(|original| rest.starts_with(**original)).unwrap_or(&base));
        }
        back.push_str(part);
    }
    back
}

impl Answer {
    fn field(&self, name: &str) -> &str {
        self.fields.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

// === The tests ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_bodies_pass_but_for_their_links_and_are_all_served_stale_when_flexport_is_gone() {
    let Some(mut sandbox) = Sandbox::start().await else { return };
    let paths = Arc::new(sandbox.paths());
    assert_eq!(paths.len(), BODIES);
    let table = RouteTable::new(built_in(), RoutePolicy::other());
    for path in paths.iter() {
        let route = table.find(&http::Method::GET, path.split('?').next().unwrap());
        assert_ne!(&*route.group, OTHER, "{path} is in no row of the table");
        assert!(route.cache.is_some(), "{path} is not kept");
    }

    let folder = TempDir::new().unwrap();
    let nothing = folder.path().join("proxy.toml");
    fs::write(&nothing, "").unwrap();
    let sets = vec![
        "server.listen=127.0.0.1:0".to_owned(),
        "admin.listen=127.0.0.1:0".to_owned(),
        "telemetry.log=off".to_owned(),
        format!("upstream.base_url={}", sandbox.url),
        format!("data_dir={}", folder.path().join("data").display()),
    ];
    let live = Live::load(LoadArgs::new(Some(nothing), sets, std::iter::empty())).unwrap();
    let app = App::start(live).await.unwrap_or_else(|error| panic!("{error}"));
    let seawall = format!("http://{}", app.data);
    let http: Http = Client::builder(TokioExecutor::new()).build_http();

    // Through Seawall and directly.
    let clock = Clock::system();
    let started = clock.now().as_second();
    let direct = get_all(&http, &sandbox.url, &paths).await;
    let through = get_all(&http, &seawall, &paths).await;
    let (mut rewritten, mut bytes, mut with_both_bases) = (0, 0, 0);
    for ((path, direct), through) in paths.iter().zip(&direct).zip(&through) {
        assert_eq!(direct.status, StatusCode::OK, "{path}: {direct:?}");
        assert_eq!(through.status, StatusCode::OK, "{path}: {through:?}");
        assert_eq!(through.field("seawall-source"), "upstream", "{path}");
        assert_eq!(through.field("content-type"), direct.field("content-type"), "{path}");

        let mut found = Vec::new();
        links(&serde_json::from_slice(&through.body).unwrap(), &mut found);
        for link in &found {
            let rest =
                link.strip_prefix(&seawall).unwrap_or_else(|| panic!("{path}: {link} leads past the proxy"));
            assert!(rest.starts_with('/'), "{path}: {link}");
        }
        assert_eq!(found[0], format!("{seawall}{path}"), "`self` is as it was asked");
        // There are no such URLs outside of links in these bodies.
        assert!(!through.text().contains(FLEXPORT) && !through.text().contains(&sandbox.url), "{path}");
        assert_eq!(found.len(), through.text().matches(&seawall).count(), "{path}");
        let back = put_back(through.text(), &seawall, direct.text(), &[FLEXPORT, &sandbox.url]);
        assert_eq!(back, direct.text(), "{path}");

        rewritten += found.len();
        bytes += direct.body.len();
        with_both_bases +=
            usize::from(direct.text().contains(FLEXPORT) && direct.text().contains(&sandbox.url));
    }
    println!("{} bodies, {bytes} bytes, {rewritten} links, {with_both_bases} with two bases", paths.len());
    assert_eq!(rewritten, LINKS);
    assert_eq!(with_both_bases, 13, "the pages of shipments mix both bases");

    // Its oddities: an unknown path redirects, a bad key is refused outside of the envelope.
    let unknown = get(&http, &format!("{seawall}/shipments/1"), API_KEY).await;
    assert_eq!((unknown.status, unknown.field("location")), (StatusCode::FOUND, &*format!("{seawall}/")));
    let refused = get(&http, &format!("{seawall}{}", paths[0]), "another-key").await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert_eq!(refused.text(), r#"{"errors":[{"code":"bad_token","message":"Bad Token"}]}"#);

    // Flexport is gone.
    sandbox.kill().await;
    let killed = clock.now().as_second();
    let stale = get_all(&http, &seawall, &paths).await;
    let ended = clock.now().as_second();
    for ((path, before), stale) in paths.iter().zip(&through).zip(&stale) {
        assert_eq!(stale.status, StatusCode::OK, "{path}: {stale:?}");
        assert_eq!(stale.field("seawall-source"), "stale", "{path}: {stale:?}");
        assert_eq!(stale.body, before.body, "{path}");
        assert_eq!(stale.field("content-type"), before.field("content-type"), "{path}");
        assert!(stale.field("cache-status").contains("ttl=-"), "{path}: {}", stale.field("cache-status"));
        assert!(!stale.field("seawall-stale-reason").is_empty(), "{path}: {stale:?}");
        let as_of: jiff::Timestamp = stale.field("seawall-data-as-of").parse().unwrap();
        assert!((started..=killed).contains(&as_of.as_second()), "{path}: {as_of}");
        let age: i64 = stale.field("age").parse().unwrap();
        // Both are cut to whole seconds, each for itself.
        assert!(
            (killed - as_of.as_second() - 1..=ended - as_of.as_second() + 1).contains(&age),
            "{path}: {age} s"
        );
    }
    assert_eq!(stale.len(), BODIES);

    // What was not kept is not made up, and a key that read nothing gets nothing.
    for (path, key) in [("/shipments/1", API_KEY), (&*paths[0], "another-key")] {
        let answer = get(&http, &format!("{seawall}{path}"), key).await;
        assert!(answer.status.is_server_error(), "{path}: {answer:?}");
    }
    assert!(app.stop().await);
}

#[tokio::test]
async fn the_demo_plays_its_reads_against_another_upstream() {
    let Some(sandbox) = Sandbox::start().await else { return };
    let (url, elsewhere) = (sandbox.url.clone(), TempDir::new().unwrap());
    // A configuration that lies about is not the demo's.
    fs::write(elsewhere.path().join("proxy.toml"), "upstream = 1").unwrap();
    let output = tokio::task::spawn_blocking(move || {
        assert_cmd::Command::new(env!("CARGO_BIN_EXE_seawall"))
            .args(["demo", "--upstream", &url])
            .env("SEAWALL_DEMO_TOKEN", API_KEY)
            .current_dir(elsewhere.path())
            .timeout(PATIENCE)
            .output()
            .unwrap()
    })
    .await
    .unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{told}\n{complaint}");
    let mut rest = &*told;
    for step in [
        "seawall-source: upstream",
        "seawall-source: stale",
        "seawall-stale-reason: ",
        "age: ",
        "seawall-stale-reason: breaker-open",
        "< 503",
        "seawall-breaker: open",
        "seawall-source: upstream",
    ] {
        let at =
            rest.find(step).unwrap_or_else(|| panic!("no {step:?} after what came before it in\n{told}"));
        rest = &rest[at + step.len()..];
    }
    assert!(!told.contains(API_KEY) && !complaint.contains(API_KEY), "the key is shown");
}
