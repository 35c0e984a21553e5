//! Side by side: what a request costs in Seawall, as a ratio to a plain proxy or server that does the same job.
//!
//! ```text
//! cargo bench --bench peers -- [--short] [--report-only] [--self-check]
//! ```
//!
//! | row | measured | beside it | limit |
//! |---|---|---|---|
//! | forward 4 KB, 28 KB | Seawall, each request a new shipment | hyper server + client, streaming, no logic | 1.8 |
//! | hit 4 KB, 28 KB | Seawall, one fresh shipment | hyper server, the same bytes from memory | 2.0 |
//! | – | the same | Varnish, from memory | 1.0 |
//! | – | the same | nginx `proxy_cache` | – |
//! | refusal 4 KB | Seawall, each request a new shipment, its breaker forced open | Seawall that forwards it | 0.6 |
//! | idle memory | Seawall after its start, no traffic | – | 40 MiB |
//!
//! How: each program is a process with one worker thread, the same allocator, profile and link-time optimisation, no
//! TLS, pinned to a core of its own; origin and load share the other core. Rounds alternate, the order within them
//! too; a row is the median of five ratios of CPU time per request. Before the first round Seawall's cache is filled:
//! its growth costs page faults that a running proxy no longer has. Ratios hold on any machine, times do not. Every
//! answer is checked (status, length with rewritten links, `Cache-Status`; a refusal by its status and
//! `Seawall-Breaker`), so that errors are never measured as speed. The exit code is 1 when a limit is exceeded, unless `--report-only`.
//!
//! Varnish and nginx are Debian's, where they are installed (`ci/tools.sh` does); else their lines say that they were
//! not run, and a limit that was not looked at is not kept. They are spared what Seawall is spared: no access log, and of
//! Varnish's own log what is told of each request. nginx is one process with one thread; Varnish has as many threads as
//! it likes on that one core.
//!
//! `--self-check` measures the peers against themselves: the ratio must be 1, give or take the noise, and says
//! whether this machine is quiet enough for the rest.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the table is what this program is for")]

mod body;
mod caches;
mod load;
mod measure;
mod peers;
mod process;

use anyhow::{Context as _, Result, bail};
use body::{LINK_BASE, Sample, Size};
use caches::Product;
use http::StatusCode;
use load::{Expected, Load, Paths};
use measure::{Cores, Cpu, median};
use process::{Running, Target};
use std::process::ExitCode;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 5;
const FORWARD_LIMIT: f64 = 1.8;
const HIT_LIMIT: f64 = 2.0;
const REFUSAL_LIMIT: f64 = 0.6;
const IDLE_LIMIT: u64 = 40 << 20;
/// What Seawall keeps in memory by default, and some more.
const CACHE_BYTES: usize = 160 << 20;
/// How far from 1 a program may be from itself.
const SELF_NOISE: f64 = 0.15;

#[derive(Clone, Copy, Debug, Default)]
struct Options {
    is_short: bool,
    is_report_only: bool,
    is_self_check: bool,
}

/// One row of ratios.
#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    size: Size,
    work: Work,
    /// Requests of a full round: about a second of CPU time and more.
    requests: u64,
    limit: f64,
}

/// A program in a row, and what its right answers look like.
struct Side {
    running: Running,
    expected: Expected,
}

/// What Seawall does, and what stands beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// Beside a plain proxy.
    Forward,
    /// Beside a plain server.
    Hit,
    /// Beside a Seawall that forwards.
    Refuse,
}

const CASES: [Case; 5] = [
    Case {
        name: "forward 4 KB",
        size: Size::Shipment,
        work: Work::Forward,
        requests: 40_000,
        limit: FORWARD_LIMIT,
    },
    Case {
        name: "forward 28 KB",
        size: Size::Page,
        work: Work::Forward,
        requests: 25_000,
        limit: FORWARD_LIMIT,
    },
    Case { name: "hit 4 KB", size: Size::Shipment, work: Work::Hit, requests: 100_000, limit: HIT_LIMIT },
    Case { name: "hit 28 KB", size: Size::Page, work: Work::Hit, requests: 60_000, limit: HIT_LIMIT },
    Case {
        name: "refusal 4 KB",
        size: Size::Shipment,
        work: Work::Refuse,
        requests: 40_000,
        limit: REFUSAL_LIMIT,
    },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("peers: {error}");
            return ExitCode::FAILURE;
        }
    };
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["role", role, argument] => runtime.block_on(play(role, argument)).map(|()| true),
        // Test runners ask for a list of tests; there are none.
        _ if words.contains(&"--list") => Ok(true),
        _ => match options(&words) {
            Ok(options) => runtime.block_on(run(options)),
            Err(error) => {
                eprintln!("peers: {error}");
                return ExitCode::from(2);
            }
        },
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("peers: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn options(words: &[&str]) -> Result<Options> {
    let mut options = Options::default();
    for word in words {
        match *word {
            "--short" => options.is_short = true,
            "--report-only" => options.is_report_only = true,
            "--self-check" => options.is_self_check = true,
            // Cargo says this to every benchmark.
            "--bench" => {}
            other => bail!("{other} is not one of --short, --report-only, --self-check"),
        }
    }
    Ok(options)
}

/// A child's part.
async fn play(role: &str, argument: &str) -> Result<()> {
    let sample = || Size::named(argument).map(Sample::new).context("no such size");
    match role {
        "origin" => peers::memory_server(sample()?, false).await,
        "fresh-origin" | "minimal-server" => peers::memory_server(sample()?, true).await,
        "minimal-proxy" => peers::minimal_proxy(argument.to_owned()).await,
        other => bail!("no such role: {other}"),
    }
}

/// All rows. Whether each is within its limit.
async fn run(options: Options) -> Result<bool> {
    let cores = Cores::pick()?;
    Cores::pin(cores.load)?;
    if cores.load == cores.measured {
        eprintln!("peers: one core only: load and measured process share it");
    }
    println!(
        "{:<14} {:>11} {:>11} {:>7} {:>15} {:>7}",
        if options.is_self_check { "self-check" } else { "CPU / request" },
        if options.is_self_check { "peer" } else { "seawall" },
        "peer",
        "ratio",
        "(min … max)",
        "limit"
    );
    let mut is_within = true;
    for case in CASES {
        // There is no peer that refuses.
        if options.is_self_check && case.work == Work::Refuse {
            continue;
        }
        is_within &= compare(case, options, cores).await?;
    }
    if !options.is_self_check {
        is_within &= idle(cores).await?;
    }
    if !is_within && options.is_report_only {
        println!("over a limit; not a failure, since --report-only was given");
    }
    Ok(is_within || options.is_report_only)
}

/// One row of ratios.
async fn compare(case: Case, options: Options, cores: Cores) -> Result<bool> {
    let sample = Sample::new(case.size);
    let is_hit = case.work == Work::Hit;
    let paths = if is_hit { Paths::One } else { Paths::New };
    let origin_role = if is_hit { "fresh-origin" } else { "origin" };
    let origin = Running::peer(origin_role, case.size.name(), cores.load, cores).await?;
    let peer = || async {
        if is_hit {
            Running::peer("minimal-server", case.size.name(), cores.measured, cores).await
        } else {
            Running::peer("minimal-proxy", &origin.target.url(), cores.measured, cores).await
        }
    };
    let seawall = || Running::seawall(&origin.target, cores);
    let beside = match case.work {
        Work::Forward | Work::Hit => peer().await?,
        Work::Refuse => seawall().await?,
    };
    let measured = if options.is_self_check { peer().await? } else { seawall().await? };
    let answer = |running: &Running| {
        let status = StatusCode::OK;
        match &running.target {
            Target::Peer(_) => Expected { status, len: Some(sample.bytes.len()), field: None },
            Target::Cache(product, _) => Expected {
                status,
                len: Some(sample.bytes.len()),
                field: Some(("cache-status", product.hit())),
            },
            Target::Seawall(_) => Expected {
                status,
                len: Some(sample.len_with_links_to(&running.target.url())),
                field: Some(("cache-status", if is_hit { "hit" } else { "fwd=" })),
            },
        }
    };

    let requests = if options.is_short { case.requests / 4 } else { case.requests };
    let load = Load::new();
    let mut sides = Vec::new();
    for running in [measured, beside] {
        sides.push(Side { expected: answer(&running), running });
    }
    let (mut products, mut is_within) = (Vec::new(), true);
    if is_hit && !options.is_self_check {
        for product in Product::ALL {
            let Some(running) = Running::cache(product, &origin.target, cores).await? else {
                println!("{:<14} not run: {} is missing", product.name(), product.program());
                is_within &= product.limit().is_none();
                continue;
            };
            products.push(product);
            sides.push(Side { expected: answer(&running), running });
        }
    }
    for Side { running, expected } in &sides {
        let expected = *expected;
        // The first answer of a row of hits is the miss that fills the cache.
        let first = Expected { field: None, ..expected };
        load.run(running.target.address(), paths, 1, first).await?;
        let warm_up = if is_hit { requests / 10 } else { (CACHE_BYTES / sample.bytes.len()) as u64 };
        load.run(running.target.address(), paths, warm_up, expected).await?;
        running.check_links(&sample).await?;
    }
    if case.work == Work::Refuse {
        // Its cache is full, but of other shipments.
        sides[0].running.force_open("shipments:read")?;
        let field = Some(("seawall-breaker", "open; scope=shipments:read"));
        sides[0].expected = Expected { status: StatusCode::SERVICE_UNAVAILABLE, len: None, field };
    }
    let mut costs = vec![Vec::with_capacity(ROUNDS); sides.len()];
    for round in 0..ROUNDS {
        for turn in 0..sides.len() {
            let side = (round + turn) % sides.len();
            let Side { running, expected } = &sides[side];
            let before = Cpu::of(running.pid())?;
            load.run(running.target.address(), paths, requests, *expected).await?;
            let spent = Cpu::of(running.pid())?.since(&before);
            anyhow::ensure!(spent > Duration::from_millis(10), "{} cost nothing: {spent:?}", running.target);
            costs[side].push(spent.as_secs_f64() * 1e6 / requests as f64);
        }
    }

    let limit = if options.is_self_check { 1.0 + SELF_NOISE } else { case.limit };
    let ratio = line(case.name, &costs[0], &costs[1], Some(limit));
    is_within &= ratio <= limit && (!options.is_self_check || ratio >= 1.0 - SELF_NOISE);
    for (product, cost) in products.iter().zip(&costs[2..]) {
        let ratio = line(&format!("  to {}", product.name()), &costs[0], cost, product.limit());
        is_within &= product.limit().is_none_or(|limit| ratio <= limit);
    }
    Ok(is_within)
}

/// Prints a line of the table: what the first cost, what the second cost, and the median of the ratios by round.
fn line(name: &str, cost: &[f64], beside: &[f64], limit: Option<f64>) -> f64 {
    let ratios: Vec<f64> = cost.iter().zip(beside).map(|(cost, beside)| cost / beside).collect();
    let ratio = median(&ratios);
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let most = ratios.iter().copied().fold(0.0, f64::max);
    println!(
        "{name:<14} {:>8.1} µs {:>8.1} µs {ratio:>7.2} {:>15} {:>7}  {}",
        median(cost),
        median(beside),
        format!("({least:.2} … {most:.2})"),
        limit.map_or(String::new(), |limit| format!("{limit:.2}")),
        limit.map_or("", |limit| verdict(ratio <= limit)),
    );
    ratio
}

/// Memory of a Seawall that nobody has asked anything.
async fn idle(cores: Cores) -> Result<bool> {
    let origin = Running::peer("origin", Size::Shipment.name(), cores.load, cores).await?;
    let seawall = Running::seawall(&origin.target, cores).await?;
    // What starts behind the listeners (committer, probes, watchers) is there by then.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let bytes = measure::resident(seawall.pid())?;
    let is_within = bytes <= IDLE_LIMIT;
    println!(
        "{:<14} {:>7.1} MiB {:>43.0}  {}",
        "idle memory",
        bytes as f64 / f64::from(1 << 20),
        IDLE_LIMIT as f64 / f64::from(1 << 20),
        verdict(is_within)
    );
    Ok(is_within)
}

fn verdict(is_within: bool) -> &'static str {
    if is_within { "ok" } else { "OVER" }
}

impl Running {
    /// One answer in full: links point to the proxy, and to nowhere else.
    async fn check_links(&self, sample: &Sample) -> Result<()> {
        let Target::Seawall(_) = self.target else { return Ok(()) };
        let mut connection = load::connect(self.target.address()).await?;
        let answer = load::ask(&mut connection, self.target.address(), "/shipments/1").await?;
        let body = http_body_util::BodyExt::collect(answer.into_body()).await?.to_bytes();
        let expected = String::from_utf8_lossy(&sample.bytes).replace(LINK_BASE, &self.target.url());
        anyhow::ensure!(body == expected.as_bytes(), "the links of {} were not rewritten", self.target);
        Ok(())
    }
}
