//! What one breaker costs a call that it admits, as ratios: to two looks at the clock, and to other breakers.
//!
//! ```text
//! cargo bench --bench breaker -- [--short] [--report-only]
//! cargo bench --bench breaker -- --only seawall 200000
//! ```
//!
//! The second makes so many calls of one row and nothing else, for a tool that counts instructions: what one call takes
//! is the difference of two runs by the difference of their calls.
//!
//! | row | measured | limit |
//! |---|---|---|
//! | clock | two `Instant::now()`, the least that a measured call needs | the measure of the others |
//! | seawall | admission, begin, head and end of an attempt, permits back: `global` alone | 3 × clock, ¼ × tower-resilience, no allocation |
//! | seawall, two | the same with the breaker of a group, as a real call has it | – |
//! | tower-resilience | `tower-resilience-circuitbreaker`, a service that is ready at once, its defaults | – |
//! | failsafe, recloser | `call` of a function that returns `Ok`, their defaults | – |
//! | memory | a breaker with its name | 2 KiB |
//!
//! How: all are healthy, all in one process, each on one thread and then shared by two threads on a core each. A round
//! runs each for the same few milliseconds; every other round in the reverse order; a row is the median over the
//! rounds of the ratio to the clock (to tower-resilience) in the same round. Time is CPU time of the threads, so that
//! what else runs here takes none of it; a thread that sleeps because of a lock is not charged for that, which favours
//! those that have locks. Allocations are counted by the global allocator, whose counters are the thread's own. The
//! exit code is 1 when a limit is exceeded, unless `--report-only`.
//!
//! What the peers are spared: tower-resilience counts without a window of time here, since its window walks through
//! all calls in it at each of them; none of the others measures how long a call took.

#![expect(clippy::unit_arg, reason = "what the breakers guard is to cost nothing")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the table is what this program is for")]

#[path = "peers/measure.rs"]
#[expect(dead_code, reason = "its other half measures other processes")]
mod measure;
#[path = "peers/thread.rs"]
mod thread;

use alloc_counter::{AllocCounter, count_alloc};
use anyhow::{Context as _, Result, bail, ensure};
use failsafe::CircuitBreaker as _;
use http::{Method, StatusCode};
use measure::{Cores, median};
use recloser::Recloser;
use seawall::breaker::Breakers;
use seawall::clock::Clock;
use seawall::config::{Settings, Snapshot};
use seawall::context::{AttemptObserver as _, AttemptOutcome, BodyEnd, Call, Credential, Lane};
use seawall::event::Bus;
use seawall::http::delivery::of_answer;
use seawall::telemetry::Metrics;
use std::convert::Infallible;
use std::future::ready;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::{Arc, Barrier};
use std::time::Duration;
use thread::cpu_time;
use tokio::time::Instant;
use tower::{Layer as _, Service, ServiceExt as _};
use tower_resilience_circuitbreaker::CircuitBreakerLayer;

#[global_allocator]
static ALLOCATOR: AllocCounter<mimalloc::MiMalloc> = AllocCounter(mimalloc::MiMalloc);

const CLOCK_LIMIT: f64 = 3.0;
const PEER_LIMIT: f64 = 0.25;
const MEMORY_LIMIT: u64 = 2 << 10;
const ROUNDS: usize = 101;
const SHORT_ROUNDS: usize = 21;
/// CPU time of a turn within a round, about.
const TURN: Duration = Duration::from_millis(4);
/// Calls whose allocations are counted.
const COUNTED: u64 = 10_000;
const GROUPS: usize = 2000;

#[derive(Clone, Debug, Default)]
struct Options {
    is_short: bool,
    is_report_only: bool,
    /// One row, and how many calls of it.
    only: Option<(String, u64)>,
}

/// What is measured: makes this many calls, on the thread that it is called on.
struct Contender {
    name: &'static str,
    /// The clock, ourselves, whom we are held to, or somebody to look at.
    part: Part,
    run: Box<dyn Fn(u64) + Sync>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Clock,
    Held,
    Peer,
    Shown,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    // Test runners ask for a list of tests; there are none.
    if words.contains(&"--list") {
        return ExitCode::SUCCESS;
    }
    let options = match options(&words) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("breaker: {error}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("breaker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn options(words: &[&str]) -> Result<Options> {
    let mut options = Options::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match *word {
            "--short" => options.is_short = true,
            "--report-only" => options.is_report_only = true,
            "--only" => {
                let (name, calls) = (words.next(), words.next().and_then(|calls| calls.parse().ok()));
                let (Some(name), Some(calls)) = (name, calls) else {
                    bail!("--only takes the name of a row and a number of calls");
                };
                options.only = Some(((*name).to_owned(), calls));
            }
            // Cargo says this to every benchmark.
            "--bench" => {}
            other => bail!("{other} is not one of --short, --report-only, --only"),
        }
    }
    Ok(options)
}

/// All rows. Whether each is within its limit.
fn run(options: &Options) -> Result<bool> {
    if let Some((name, calls)) = &options.only {
        let contenders = contenders()?;
        let found = contenders.iter().find(|contender| contender.name == name);
        (found.with_context(|| format!("no row is named {name}"))?.run)(*calls);
        return Ok(true);
    }
    // First, while nothing has been given back that could be used again.
    let mut is_within = memory()?;
    let cores = Cores::pick()?;
    let contenders = contenders()?;
    println!(
        "{:<18} {:>7} {:>9} {:>8} {:>15} {:>6} {:>8} {:>6} {:>9}",
        "admit + record",
        "threads",
        "CPU",
        "x clock",
        "(min … max)",
        "limit",
        "x tower",
        "limit",
        "allocated"
    );
    for threads in [1, 2] {
        if threads == 2 && cores.load == cores.measured {
            println!("two threads: not run, there is one core only");
            continue;
        }
        is_within &= compare(&contenders, threads, options, cores)?;
    }
    if !is_within && options.is_report_only {
        println!("over a limit; not a failure, since --report-only was given");
    }
    Ok(is_within || options.is_report_only)
}

/// All contenders on so many threads.
fn compare(contenders: &[Contender], threads: usize, options: &Options, cores: Cores) -> Result<bool> {
    let cores = &[cores.measured, cores.load][..threads];
    let mut calls = Vec::new();
    for contender in contenders {
        // Also warms up: what a thread or a breaker makes once is made by now.
        let mut count = 1000;
        while time(contender, count, cores)? < TURN / 4 {
            count *= 2;
        }
        let spent = time(contender, count, cores)?.as_secs_f64() / count as f64;
        calls.push((TURN.as_secs_f64() / spent) as u64 + 1);
    }
    let rounds = if options.is_short { SHORT_ROUNDS } else { ROUNDS };
    let mut costs = vec![Vec::with_capacity(rounds); contenders.len()];
    for round in 0..rounds {
        for turn in 0..contenders.len() {
            let index = if round % 2 == 0 { turn } else { contenders.len() - 1 - turn };
            let spent = time(&contenders[index], calls[index], cores)?;
            costs[index].push(spent.as_secs_f64() * 1e9 / calls[index] as f64);
        }
    }

    let base = |part| contenders.iter().position(|contender| contender.part == part);
    let (clock, peer) = (base(Part::Clock).context("no clock")?, base(Part::Peer).context("no peer")?);
    let mut is_within = true;
    for (contender, cost) in contenders.iter().zip(&costs) {
        let ratios = |base: usize| -> Vec<f64> {
            cost.iter().zip(&costs[base]).map(|(cost, base)| cost / base).collect()
        };
        let (to_clock, to_peer) = (ratios(clock), ratios(peer));
        let least = to_clock.iter().copied().fold(f64::INFINITY, f64::min);
        let most = to_clock.iter().copied().fold(0.0, f64::max);
        let allocations = count_alloc(|| (contender.run)(COUNTED)).0.0 as f64 / COUNTED as f64;
        let is_held = contender.part == Part::Held;
        let is_well = !is_held
            || median(&to_clock) <= CLOCK_LIMIT && median(&to_peer) <= PEER_LIMIT && allocations == 0.0;
        is_within &= is_well;
        let limit = |limit: f64| if is_held { format!("{limit:.2}") } else { String::new() };
        println!(
            "{:<18} {threads:>7} {:>6.1} ns {:>8.2} {:>15} {:>6} {:>8.2} {:>6} {allocations:>9.2}  {}",
            contender.name,
            median(cost),
            median(&to_clock),
            format!("({least:.2} … {most:.2})"),
            limit(CLOCK_LIMIT),
            median(&to_peer),
            limit(PEER_LIMIT),
            if is_held { verdict(is_well) } else { "" },
        );
    }
    Ok(is_within)
}

/// CPU time of a thread for `calls` calls, when one runs on each of these cores.
fn time(contender: &Contender, calls: u64, cores: &[usize]) -> Result<Duration> {
    let barrier = Barrier::new(cores.len());
    let run = |core: usize| -> Result<Duration> {
        let pinned = Cores::pin(core);
        // Whoever cannot go on lets the others go on all the same.
        barrier.wait();
        pinned?;
        let before = cpu_time();
        (contender.run)(calls);
        Ok(cpu_time().saturating_sub(before))
    };
    let spent = std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = cores.iter().map(|core| scope.spawn(move || run(*core))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("{} panicked", contender.name))?)
            .sum::<Result<Duration>>()
    })?;
    Ok(spent / cores.len() as u32)
}

fn verdict(is_within: bool) -> &'static str {
    if is_within { "ok" } else { "OVER" }
}

// === the contenders ===

fn contenders() -> Result<Vec<Contender>> {
    let contender = |name, part, run: Box<dyn Fn(u64) + Sync>| -> Contender { Contender { name, part, run } };
    Ok(vec![
        contender("clock", Part::Clock, Box::new(look_at_the_clock)),
        contender("seawall", Part::Held, seawall(&[])?),
        contender("seawall, two", Part::Shown, seawall(&["shipments"])?),
        contender("tower-resilience", Part::Peer, tower_resilience()?),
        contender("failsafe", Part::Shown, failsafe()),
        contender("recloser", Part::Shown, recloser()),
    ])
}

#[expect(clippy::disallowed_methods, reason = "the plain clock is the measure")]
fn look_at_the_clock(calls: u64) {
    for _ in 0..calls {
        black_box(std::time::Instant::now());
        black_box(std::time::Instant::now());
    }
}

/// The breakers of these groups beside `global`; a read of shipments asks for its group's if there is one.
fn breakers(groups: &[Arc<str>], metrics: &Metrics) -> Result<(Arc<Breakers>, Arc<Snapshot>)> {
    let config =
        Arc::new(Snapshot::of(Settings::default()).map_err(|problems| anyhow::anyhow!("{problems}"))?);
    let settings = &config.settings;
    let clock = Clock::system();
    let breakers = Breakers::new(
        &settings.breaker,
        settings.limiter.max,
        *settings.upstream.timeout,
        groups,
        None,
        clock,
        metrics,
        Bus::new(clock),
    );
    Ok((breakers, config))
}

fn seawall(groups: &[&str]) -> Result<Box<dyn Fn(u64) + Sync>> {
    let (breakers, config) =
        breakers(&groups.iter().map(|group| Arc::from(*group)).collect::<Vec<_>>(), &Metrics::new())?;
    let call = Call {
        lane: Lane::LiveRead,
        route: config.routes.find(&Method::GET, "/shipments").clone(),
        is_read: true,
        config,
        credential: Credential::None,
        deadline: Instant::now() + Duration::from_secs(3600),
        is_hurried: false,
        whole_until: None,
        before_send: None,
        observer: None,
        slot: None,
        resends_unsent: false,
    };
    let outcome = AttemptOutcome {
        delivery: of_answer(StatusCode::OK, false),
        head_after: Duration::from_millis(20),
        body: BodyEnd::Complete,
        retry_after: None,
    };
    let began = Instant::now();
    let asked = breakers.list().len();
    ensure!(asked == 1 + 2 * groups.len(), "{asked} breakers");
    Ok(Box::new(move |calls| {
        for _ in 0..calls {
            let permits = breakers.admit(black_box(&call)).expect("a healthy breaker admits");
            // Whoever makes the attempt knows when it began: it measures the time to the head.
            permits.began_at(black_box(began));
            permits.answered(outcome.delivery, outcome.head_after);
            permits.ended(black_box(outcome));
        }
    }))
}

fn tower_resilience() -> Result<Box<dyn Fn(u64) + Sync>> {
    let layer = CircuitBreakerLayer::builder().build().map_err(|error| anyhow::anyhow!("{error}"))?;
    let service = layer.layer(tower::service_fn(|()| ready(Ok::<(), Infallible>(()))));
    Ok(Box::new(move |calls| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without I/O");
        let mut service = service.clone();
        runtime.block_on(tokio::task::unconstrained(async {
            for _ in 0..calls {
                let service = service.ready().await.expect("a healthy breaker is ready");
                service.call(black_box(())).await.expect("a healthy breaker admits");
            }
        }));
    }))
}

fn failsafe() -> Box<dyn Fn(u64) + Sync> {
    let breaker = failsafe::Config::new().build();
    Box::new(move |calls| {
        for _ in 0..calls {
            breaker.call(|| Ok::<(), Infallible>(black_box(()))).expect("a healthy breaker admits");
        }
    })
}

fn recloser() -> Box<dyn Fn(u64) + Sync> {
    let breaker = Recloser::custom().build();
    Box::new(move |calls| {
        for _ in 0..calls {
            breaker.call(|| Ok::<(), Infallible>(black_box(()))).expect("a healthy breaker admits");
        }
    })
}

/// What a breaker adds to this process, pages and all. With its metrics it is told, but not held: what is counted in
/// the registry is that of a scope, and its tables are as large as they happen to be.
fn memory() -> Result<bool> {
    let groups: Vec<Arc<str>> = (0..GROUPS).map(|index| Arc::from(format!("group-{index}"))).collect();
    let me = std::process::id();
    let metrics = Metrics::new();
    let start = measure::resident(me)?;
    let first = breakers(&groups, &metrics)?;
    let between = measure::resident(me)?;
    // The same scopes again: their metrics are there. The second fill what those gave back while they grew.
    let second = breakers(&groups, &metrics)?;
    let before = measure::resident(me)?;
    let third = breakers(&groups, &metrics)?;
    let end = measure::resident(me)?;
    drop((first, second, third));
    let each = |bytes: u64| bytes / (1 + 2 * GROUPS as u64);
    let (with_metrics, bytes) = (each(between.saturating_sub(start)), each(end.saturating_sub(before)));
    let is_within = bytes <= MEMORY_LIMIT;
    println!(
        "a breaker in memory: {bytes} bytes, limit {MEMORY_LIMIT}  {} ({with_metrics} with its metrics)",
        verdict(is_within)
    );
    Ok(is_within)
}
