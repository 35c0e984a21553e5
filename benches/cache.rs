//! What a hit costs in the cache's own layer, by the size of the body: CPU beside the least that any cache does, and
//! what it allocates.
//!
//! ```text
//! cargo bench --bench cache -- [--short] [--report-only]
//! ```
//!
//! | row | measured | limit |
//! |---|---|---|
//! | floor | a request with its context, a look into a `HashMap` by its target, an answer with the same head and shared bytes | the measure of the others |
//! | hit | the same request through the cache: key, freshness, who may see it, `Age`, `Cache-Status`, `Seawall-*` | – |
//! | not modified | the same with the copy's `ETag` in `If-None-Match` | – |
//! | allocated | bytes of a hit at 700 KB less those at 4 KB | 0 |
//!
//! How: one thread, all rows in each round, every other round in the reverse order, median of the ratios to the floor of
//! the same round; CPU time of the thread. What a hit costs with its connection, its parsing and its writing, beside
//! other programs, is in `benches/peers`; this one shows which part of it is ours, and that no body is ever copied:
//! the allocator counts. The exit code is 1 when a limit is exceeded, unless `--report-only`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the table is what this program is for")]

#[path = "peers/measure.rs"]
#[expect(dead_code, reason = "its other half measures other processes")]
mod measure;
#[path = "peers/thread.rs"]
mod thread;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use measure::{Cores, median};
use seawall::cache::{Cache, CacheLayer};
use seawall::clock::Clock;
use seawall::config::{Settings, Snapshot};
use seawall::context::{
    Credential, GroupHealth, Identity, Pending, PendingWrites, RequestContext, Upstream, UpstreamRequest,
};
use seawall::error::ProxyError;
use seawall::flexport::problem::Asked;
use seawall::flexport::routes::RoutePolicy;
use seawall::http::{Body, Present};
use seawall::ids::PartitionId;
use seawall::task::Tasks;
use seawall::telemetry::Metrics;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::collections::HashMap;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use thread::cpu_time;
use tokio::runtime::Runtime;
use tokio::time::Instant;
use tower::{Layer as _, Service as _, service_fn};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const ROUNDS: usize = 51;
const SHORT_ROUNDS: usize = 11;
/// Requests of a turn within a round.
const TURN: usize = 2000;
const ETAG: &str = "\"of-this-copy\"";

/// Nobody fails, nothing waits.
struct Quiet;

struct World {
    runtime: Runtime,
    config: Arc<Snapshot>,
    route: Arc<RoutePolicy>,
    cache: seawall::cache::CacheService<Inner>,
    floor: HashMap<String, (HeaderMap, Bytes)>,
}

type Inner = tower::util::BoxCloneSyncService<Request<Body>, Response<Body>, ProxyError>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    Floor,
    Hit,
    NotModified,
}

const SIZES: [(&str, usize); 3] = [("4 KB", 4 << 10), ("28 KB", 28 << 10), ("700 KB", 700 << 10)];
const ROWS: [Row; 3] = [Row::Floor, Row::Hit, Row::NotModified];

fn main() -> ExitCode {
    let (mut is_short, mut is_report_only) = (false, false);
    for word in std::env::args().skip(1) {
        match &*word {
            "--short" => is_short = true,
            "--report-only" => is_report_only = true,
            // Cargo says this to every benchmark.
            "--bench" => {}
            // Test runners ask for a list of tests; there are none.
            "--list" => return ExitCode::SUCCESS,
            other => {
                eprintln!("cache: {other} is not one of --short, --report-only");
                return ExitCode::from(2);
            }
        }
    }
    match run(if is_short { SHORT_ROUNDS } else { ROUNDS }) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) if is_report_only => {
            println!("over a limit; not a failure, since --report-only was given");
            ExitCode::SUCCESS
        }
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cache: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// All rows. Whether the limit is kept.
fn run(rounds: usize) -> Result<bool> {
    Cores::pin(Cores::pick()?.measured)?;
    let mut world = World::new()?;
    for (name, _) in SIZES {
        world.check(name)?;
    }
    println!(
        "{:<22} {:>9} {:>8} {:>15} {:>12} {:>9}",
        "a request", "CPU", "x floor", "(min … max)", "allocations", "bytes"
    );
    let mut bytes_of_hits = Vec::new();
    for (name, _) in SIZES {
        let target = target(name);
        let mut costs = ROWS.map(|_| Vec::with_capacity(rounds));
        for round in 0..=rounds {
            for turn in 0..ROWS.len() {
                let index = if round % 2 == 0 { turn } else { ROWS.len() - 1 - turn };
                let before = cpu_time();
                for _ in 0..TURN {
                    black_box(world.ask(ROWS[index], &target)?);
                }
                let spent = cpu_time().saturating_sub(before);
                // The first round warms up.
                if round > 0 {
                    costs[index].push(spent.as_secs_f64() * 1e9 / TURN as f64);
                }
            }
        }
        for (row, cost) in ROWS.into_iter().zip(&costs) {
            let ratios: Vec<f64> = cost.iter().zip(&costs[0]).map(|(cost, floor)| cost / floor).collect();
            let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
            let most = ratios.iter().copied().fold(0.0, f64::max);
            let region = Region::new(ALLOCATOR);
            for _ in 0..TURN {
                black_box(world.ask(row, &target)?);
            }
            let stats = region.change();
            let each = |count: usize| count as f64 / TURN as f64;
            let bytes = each(stats.bytes_allocated);
            if row == Row::Hit {
                bytes_of_hits.push(bytes);
            }
            println!(
                "{:<22} {:>6.0} ns {:>8.2} {:>15} {:>12.1} {bytes:>9.0}",
                format!("{} {name}", row.name()),
                median(cost),
                median(&ratios),
                format!("({least:.2} … {most:.2})"),
                each(stats.allocations),
            );
        }
    }
    let (Some(least), Some(most)) = (bytes_of_hits.first(), bytes_of_hits.last()) else { bail!("no rows") };
    // Less than one byte a request is the noise of what grows once in a while; `Content-Length` has two digits more.
    let more = most - least;
    let is_within = more.abs() < 16.0;
    println!(
        "bytes that a hit at 700 KB allocates more than one at 4 KB: {more:.0}, limit 0  {}",
        if is_within { "ok" } else { "OVER" }
    );
    Ok(is_within)
}

fn target(size: &str) -> String {
    format!("/shipments/{}", size.trim_end_matches(" KB"))
}

/// What Flexport answers, fresh for a while.
fn answer(target: &str) -> Response<Bytes> {
    let size = SIZES.iter().find(|(name, _)| target == self::target(name)).map_or(0, |(_, size)| *size);
    let body = format!("{{\"_object\":\"/api/response\",\"data\":\"{}\"}}", "x".repeat(size - 42));
    let mut response = Response::new(Bytes::from(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=86400"));
    headers.insert(header::ETAG, HeaderValue::from_static(ETAG));
    response
}

// === impl Row ===

impl Row {
    fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Hit => "hit",
            Self::NotModified => "not modified",
        }
    }
}

// === impl Quiet ===

impl GroupHealth for Quiet {
    fn shows_failures(&self, _: &str) -> bool {
        false
    }
}

impl PendingWrites for Quiet {
    fn pending(&self, _: PartitionId, _: &str) -> Option<Pending> {
        None
    }
}

// === impl World ===

impl World {
    fn new() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let inside = runtime.enter();
        let config =
            Arc::new(Snapshot::of(Settings::default()).map_err(|problems| anyhow::anyhow!("{problems}"))?);
        let quiet = Arc::new(Quiet);
        let cache = Cache::new(
            &config.settings,
            Clock::system(),
            &Metrics::new(),
            Tasks::new(),
            quiet.clone(),
            quiet,
            None,
        );
        let upstream = Upstream::new(service_fn(|asked: UpstreamRequest| async move {
            Ok::<_, ProxyError>(answer(asked.request.uri().path()).map(Body::from))
        }));
        let inner =
            Inner::new(service_fn(|_| async { Err(ProxyError::Cut("not for the cache".to_owned())) }));
        let cache = CacheLayer::new(cache, upstream).layer(inner);
        let floor = SIZES
            .iter()
            .map(|(name, _)| {
                let (parts, body) = answer(&target(name)).into_parts();
                (target(name), (parts.headers, body))
            })
            .collect();
        let route = config.routes.find(&Method::GET, "/shipments/1").clone();
        drop(inside);
        Ok(Self { runtime, config, route, cache, floor })
    }

    fn request(&self, row: Row, target: &str) -> Result<Request<Body>> {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = target.parse()?;
        let headers = request.headers_mut();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert("flexport-version", HeaderValue::from_static("2"));
        if row == Row::NotModified {
            headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static(ETAG));
        }
        let now = Instant::now();
        let context = RequestContext {
            config: self.config.clone(),
            route: self.route.clone(),
            request_id: HeaderValue::from_static("req-1"),
            traceparent: HeaderValue::from_static("00-1-1-01"),
            peer: ([127, 0, 0, 1], 1).into(),
            arrived: now,
            deadline: now + Duration::from_secs(60),
            method: Method::GET,
            present: Present::of(request.headers()),
            asked: Asked {
                public_url: self.config.public_url.clone(),
                target: target.to_owned(),
                version: serde_json::json!(2),
                wants_problem: false,
            },
            identity: OnceLock::from(Identity {
                caller: None,
                credential: Credential::Passed(HeaderValue::from_static("Bearer x")),
                partition: Some(PartitionId([1; 16])),
                owner: None,
            }),
        };
        request.extensions_mut().insert(Arc::new(context));
        Ok(request)
    }

    fn ask(&mut self, row: Row, target: &str) -> Result<Response<Body>> {
        let request = self.request(row, target)?;
        if row == Row::Floor {
            let (headers, body) = self.floor.get(request.uri().path()).context("it is there")?;
            let mut response = Response::new(Body::from(body.clone()));
            *response.headers_mut() = headers.clone();
            return Ok(response);
        }
        let call = self.cache.call(request);
        Ok(self.runtime.block_on(tokio::task::unconstrained(call))?)
    }

    /// Fills the cache, and looks that it answers as the rows say.
    fn check(&mut self, size: &str) -> Result<()> {
        let target = target(size);
        let first = self.ask(Row::Hit, &target)?;
        let whole = answer(&target).into_body();
        let body = self.runtime.block_on(first.into_body().collect(u64::MAX))?;
        ensure!(body == whole, "the first answer at {size} is another");
        let second = self.ask(Row::Hit, &target)?;
        let says =
            second.headers().get("cache-status").and_then(|value| value.to_str().ok()).unwrap_or_default();
        ensure!(says.contains("hit"), "the second answer at {size} says {says:?}");
        let body = self.runtime.block_on(second.into_body().collect(u64::MAX))?;
        ensure!(body == whole, "the copy at {size} is another");
        let third = self.ask(Row::NotModified, &target)?;
        ensure!(third.status() == StatusCode::NOT_MODIFIED, "a condition at {size} gets {}", third.status());
        Ok(())
    }
}
