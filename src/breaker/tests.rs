//! Behaviour, in paused time: each test is a sentence of the contract.

use super::*;
use crate::clock::Clock;
use crate::config::{Settings, Snapshot, raw};
use crate::context::{AttemptObserver, AttemptOutcome, BodyEnd, Call, Credential, Lane, UpstreamRequest};
use crate::error::ProxyError;
use crate::event::{Bus, Event, Kind};
use crate::http::Body;
use crate::http::delivery::{self, Delivery, Doubt, Unsent};
use crate::telemetry::{Metrics, ScopeLabels};
use crate::tests::until_async;
use http::{Method, Request, Response, StatusCode};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::{Instant, advance};
use tower::{Layer as _, Service, ServiceExt};

mod contract;
mod model;

const READ: &str = "shipments:read";
const WRITE: &str = "shipments:write";

struct World {
    breakers: Arc<Breakers>,
    metrics: Arc<Metrics>,
    bus: Bus,
    config: Arc<Snapshot>,
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

// === impl World ===

impl World {
    fn new() -> Self {
        Self::with(None, &raw::Breaker::default())
    }

    fn at(path: PathBuf) -> Self {
        Self::with(Some(path), &raw::Breaker::default())
    }

    fn with(path: Option<PathBuf>, settings: &raw::Breaker) -> Self {
        Self::on(Clock::anchored("2026-01-02T03:04:05Z".parse().unwrap()), path, settings)
    }

    /// With few calls of Flexport at once.
    fn narrow(most: u32) -> Self {
        Self::whole(
            Clock::anchored("2026-01-02T03:04:05Z".parse().unwrap()),
            None,
            &raw::Breaker::default(),
            most,
        )
    }

    fn on(clock: Clock, path: Option<PathBuf>, settings: &raw::Breaker) -> Self {
        Self::whole(clock, path, settings, 128)
    }

    fn whole(clock: Clock, path: Option<PathBuf>, settings: &raw::Breaker, most: u32) -> Self {
        let metrics = Metrics::new();
        let bus = Bus::new(clock);
        let config = Arc::new(Snapshot {
            public_url: Arc::from("http://localhost:8080"),
            ..Snapshot::of(Settings::default()).unwrap()
        });
        let groups = config.routes.groups();
        let breakers = Breakers::new(settings, most, secs(30), &groups, path, clock, &metrics, bus.clone());
        Self { breakers, metrics, bus, config }
    }

    fn call(&self, method: &Method, path: &str) -> Call {
        let is_read = crate::context::is_safe(method);
        Call {
            lane: if is_read { Lane::LiveRead } else { Lane::LiveWrite },
            route: self.config.routes.find(method, path).clone(),
            is_read,
            config: self.config.clone(),
            credential: Credential::None,
            deadline: Instant::now() + secs(60),
            is_hurried: false,
            whole_until: None,
            before_send: None,
            observer: None,
            slot: None,
            resends_unsent: false,
        }
    }

    fn ask(&self, method: &Method, path: &str) -> Result<CallPermits, ProxyError> {
        self.breakers.admit(&self.call(method, path))
    }

    fn read(&self) -> Result<CallPermits, ProxyError> {
        self.ask(&Method::GET, "/shipments")
    }

    /// Class R.
    fn set(&self) -> Result<CallPermits, ProxyError> {
        self.ask(&Method::PATCH, "/shipments/1")
    }

    fn probe(&self) -> Result<CallPermits, ProxyError> {
        let mut call = self.call(&Method::GET, "/shipments");
        call.lane = Lane::Probe;
        self.breakers.admit(&call)
    }

    fn status(&self, scope: &str) -> ScopeStatus {
        self.breakers.get(scope).unwrap()
    }

    fn state(&self, scope: &str) -> State {
        self.status(scope).state
    }

    fn tick(&self) {
        self.breakers.tick(Instant::now());
    }

    /// Opens the group's reads by twenty failures at once.
    fn open_reads(&self) {
        for _ in 0..20 {
            fail(self.read().unwrap());
        }
        assert_eq!(self.state(READ), State::Open);
    }

    fn open_writes(&self) {
        for _ in 0..20 {
            fail(self.set().unwrap());
        }
        assert_eq!(self.state(WRITE), State::Open);
    }

    async fn after_open_wait(&self) {
        advance(Duration::from_millis(6501)).await;
    }

    fn close_by_reads(&self) {
        for _ in 0..5 {
            ok(self.read().unwrap());
        }
        assert_eq!(self.state(READ), State::Ramping);
    }

    async fn force(&self, scope: &str, mode: Mode) {
        self.breakers.set_override(scope, mode, "a test", None, "ada", false).await.unwrap();
    }

    async fn lift(&self, scope: &str) {
        self.breakers.clear_override(scope, None, "ada", false).await.unwrap();
    }
}

fn outcome(delivery: Delivery, head_after: Duration) -> AttemptOutcome {
    AttemptOutcome { delivery, head_after, body: BodyEnd::Complete, retry_after: None }
}

fn status(code: u16) -> Delivery {
    delivery::of_answer(StatusCode::from_u16(code).unwrap(), false)
}

fn end(permits: CallPermits, outcome: AttemptOutcome) {
    permits.began();
    permits.ended(outcome);
    drop(permits);
}

fn ok(permits: CallPermits) {
    end(permits, outcome(status(200), secs(4)));
}

fn fail(permits: CallPermits) {
    end(permits, outcome(status(500), secs(1)));
}

fn answer(permits: CallPermits, code: u16) {
    end(permits, outcome(status(code), secs(1)));
}

fn refused(result: Result<CallPermits, ProxyError>) -> (String, Duration) {
    match result.map(drop) {
        Err(ProxyError::BreakerOpen { scope, retry_after }) => (scope, retry_after),
        other => panic!("not refused by a breaker: {other:?}"),
    }
}

fn refused_by(result: Result<CallPermits, ProxyError>) -> String {
    refused(result).0
}

// === trip ===

#[tokio::test(start_paused = true)]
async fn half_of_twenty_failing_open_the_group_and_no_other() {
    let world = World::new();
    for _ in 0..10 {
        ok(world.read().unwrap());
    }
    for _ in 0..9 {
        fail(world.read().unwrap());
    }
    assert_eq!(world.state(READ), State::Closed);
    fail(world.read().unwrap());
    assert_eq!(world.state(READ), State::Open);
    let (scope, retry_after) = refused(world.read());
    assert_eq!(scope, READ);
    assert!(retry_after >= secs(5) && retry_after <= Duration::from_millis(6500), "{retry_after:?}");
    assert_eq!(world.state("global"), State::Closed);
    assert_eq!(world.state(WRITE), State::Closed);
    ok(world.ask(&Method::GET, "/ports").unwrap());
    let status = world.status(READ);
    assert_eq!(status.window, WindowStatus { calls: 20, failures: 10, slow: 0 });
    assert_eq!(status.last.len(), 10);
    assert_eq!(status.last[0].outcome, "status_500");
    assert_eq!(status.why, "10 of 20 calls failed in the window");
    assert!(status.until.unwrap() > status.since);
}

#[tokio::test(start_paused = true)]
async fn a_success_may_be_the_twentieth_call_that_shows_the_share() {
    let world = World::new();
    for _ in 0..10 {
        ok(world.read().unwrap());
        fail(world.read().unwrap());
    }
    // The last was a failure; the same with the success last:
    assert_eq!(world.state(READ), State::Open);
    let world = World::new();
    for _ in 0..10 {
        fail(world.read().unwrap());
        ok(world.read().unwrap());
    }
    assert_eq!(world.state(READ), State::Open);
}

#[tokio::test(start_paused = true)]
async fn in_a_short_window_a_healthy_call_is_counted_at_its_very_moment() {
    let world = World::with(None, &raw::Breaker { window: raw::Span(secs(1)), ..raw::Breaker::default() });
    let permits = world.read().unwrap();
    permits.began();
    advance(Duration::from_millis(950)).await;
    permits.ended(outcome(status(200), Duration::from_millis(900)));
    advance(Duration::from_millis(500)).await;
    assert_eq!(world.status(READ).window.calls, 1, "its beginning is out of the window, its end is not");
}

#[tokio::test(start_paused = true)]
async fn failures_older_than_the_window_do_not_count() {
    let world = World::new();
    for _ in 0..15 {
        fail(world.read().unwrap());
    }
    ok(world.read().unwrap());
    advance(secs(10)).await;
    for _ in 0..19 {
        fail(world.read().unwrap());
    }
    ok(world.read().unwrap());
    // 19 of 20 now; before it was 15 of 16 and gone.
    assert_eq!(world.state(READ), State::Open);
    let world = World::new();
    for _ in 0..15 {
        fail(world.read().unwrap());
    }
    ok(world.read().unwrap());
    advance(secs(10)).await;
    for _ in 0..6 {
        fail(world.read().unwrap());
    }
    assert_eq!(world.state(READ), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn eight_failures_in_a_row_open_when_they_span_two_seconds() {
    let world = World::new();
    for _ in 0..8 {
        fail(world.read().unwrap());
    }
    assert_eq!(world.state(READ), State::Closed, "a burst is one event");
    advance(Duration::from_millis(1900)).await;
    fail(world.read().unwrap());
    assert_eq!(world.state(READ), State::Closed);
    advance(Duration::from_millis(100)).await;
    fail(world.read().unwrap());
    assert_eq!(world.state(READ), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_trickle_of_failures_opens_and_ten_idle_minutes_forget_the_row() {
    let world = World::new();
    for _ in 0..7 {
        fail(world.read().unwrap());
        advance(secs(600)).await;
    }
    assert_eq!(world.status(READ).consecutive_failures, 7);
    fail(world.read().unwrap());
    assert_eq!(world.state(READ), State::Open);

    let world = World::new();
    for _ in 0..7 {
        fail(world.read().unwrap());
        advance(secs(10)).await;
    }
    advance(secs(601)).await;
    fail(world.read().unwrap());
    assert_eq!(world.status(READ).consecutive_failures, 1);
    assert_eq!(world.state(READ), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn neutral_answers_do_not_end_a_row_and_successes_do() {
    let world = World::new();
    for _ in 0..7 {
        fail(world.read().unwrap());
        answer(world.read().unwrap(), 401);
        answer(world.read().unwrap(), 429);
        advance(secs(11)).await;
    }
    assert_eq!(world.status(READ).consecutive_failures, 7);
    assert_eq!(world.status(READ).window.calls, 0);
    ok(world.read().unwrap());
    assert_eq!(world.status(READ).consecutive_failures, 0);
}

#[tokio::test(start_paused = true)]
async fn a_route_where_every_read_takes_four_seconds_records_no_failure() {
    let world = World::new();
    for _ in 0..100 {
        end(world.read().unwrap(), outcome(status(200), secs(4)));
    }
    let status = world.status(READ);
    assert_eq!(status.window, WindowStatus { calls: 100, failures: 0, slow: 0 });
    assert!(!world.breakers.shows_failures("shipments"));
    assert_eq!(status.state, State::Closed);
}

#[tokio::test(start_paused = true)]
async fn four_fifths_slow_open_the_group() {
    let world = World::new();
    for _ in 0..4 {
        ok(world.read().unwrap());
    }
    for _ in 0..16 {
        assert_eq!(world.state(READ), State::Closed);
        end(world.read().unwrap(), outcome(status(200), secs(11)));
    }
    assert_eq!(world.state(READ), State::Open);
    assert_eq!(world.status(READ).window.failures, 0);
}

#[tokio::test(start_paused = true)]
async fn connect_errors_open_global_and_blame_no_group() {
    let world = World::new();
    for _ in 0..20 {
        end(world.read().unwrap(), outcome(Delivery::NotSent(Unsent::Connect), secs(3)));
    }
    assert_eq!(world.state("global"), State::Open);
    assert_eq!(world.state(READ), State::Closed);
    assert_eq!(world.status(READ).window.calls, 0);
    assert_eq!(refused_by(world.ask(&Method::GET, "/ports")), "global");
}

#[tokio::test(start_paused = true)]
async fn head_timeouts_open_the_group_and_say_nothing_of_global() {
    let world = World::new();
    for _ in 0..20 {
        end(world.read().unwrap(), outcome(Delivery::Ambiguous(Doubt::HeadTimeout), secs(30)));
    }
    assert_eq!(world.state(READ), State::Open);
    assert_eq!(world.status("global").window.calls, 0);
}

#[tokio::test(start_paused = true)]
async fn most_calls_failing_in_two_groups_open_global() {
    let world = World::new();
    let paths = ["/ports", "/shipments", "/bookings"];
    for path in paths {
        for _ in 0..19 {
            fail(world.ask(&Method::GET, path).unwrap());
        }
    }
    assert_eq!(world.state("global"), State::Closed);
    world.tick();
    assert_eq!(world.state("global"), State::Open);
    assert_eq!(world.status("global").why, "57 of 57 calls failed, in 3 groups at once");
}

#[tokio::test(start_paused = true)]
async fn a_503_with_retry_after_lengthens_the_wait() {
    let world = World::new();
    let with_retry_after = |seconds| AttemptOutcome {
        delivery: delivery::of_answer(StatusCode::SERVICE_UNAVAILABLE, true),
        head_after: secs(1),
        body: BodyEnd::Complete,
        retry_after: Some(secs(seconds)),
    };
    for _ in 0..20 {
        end(world.read().unwrap(), with_retry_after(120));
    }
    assert_eq!(refused(world.read()).1, secs(120));
    advance(secs(119)).await;
    refused(world.read());
    advance(secs(1)).await;
    end(world.read().unwrap(), with_retry_after(3600));
    end(world.read().unwrap(), with_retry_after(3600));
    assert_eq!(refused(world.read()).1, secs(300), "five minutes at most");
}

// === refusal ===

#[tokio::test(start_paused = true)]
async fn a_refusal_is_counted_and_never_recorded_as_an_outcome() {
    let world = World::new();
    world.open_reads();
    let before = world.status(READ).window;
    for _ in 0..5 {
        refused(world.read());
    }
    assert_eq!(world.status(READ).window, before);
    assert_eq!(world.status("global").in_flight, 0);
    let labels = ScopeLabels { scope: READ.to_owned() };
    assert_eq!(world.metrics.breaker_refused.get_or_create(&labels).get(), 5);
    assert_eq!(world.metrics.breaker_state.get_or_create(&labels).get(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_later_refusal_gives_the_first_permit_back_as_neutral() {
    let world = World::new();
    world.open_reads();
    world.force("global", Mode::ForcedOpen).await;
    world.lift("global").await;
    assert_eq!(world.state("global"), State::HalfOpen);
    for _ in 0..10 {
        assert_eq!(refused_by(world.read()), READ);
    }
    let probes = world.status("global").probes;
    assert_eq!(probes, Probes { in_flight: 0, successes: 0, failures: 0 });
}

// === half-open ===

#[tokio::test(start_paused = true)]
async fn three_probes_at_once_and_five_successes_close() {
    let world = World::new();
    world.open_reads();
    world.after_open_wait().await;
    let probes: Vec<_> = (0..3).map(|_| world.read().unwrap()).collect();
    assert_eq!(world.state(READ), State::HalfOpen);
    assert_eq!(refused_by(world.read()), READ);
    assert_eq!(world.status(READ).probes.in_flight, 3);
    probes.into_iter().for_each(ok);
    ok(world.read().unwrap());
    assert_eq!(world.state(READ), State::HalfOpen);
    ok(world.read().unwrap());
    assert_eq!(world.state(READ), State::Ramping);
    assert_eq!(world.status(READ).probes.in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn two_failures_open_again_for_twice_as_long() {
    let world = World::new();
    world.open_reads();
    world.after_open_wait().await;
    ok(world.read().unwrap());
    fail(world.read().unwrap());
    assert_eq!(world.state(READ), State::HalfOpen);
    fail(world.read().unwrap());
    let (_, retry_after) = refused(world.read());
    assert!(retry_after >= secs(10) && retry_after <= secs(13), "{retry_after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_hangs_is_a_failure_after_its_deadline_and_its_slot_is_free() {
    let world = World::new();
    world.open_reads();
    world.after_open_wait().await;
    let hung = world.read().unwrap();
    advance(secs(20)).await;
    hung.began();
    advance(secs(34)).await;
    world.tick();
    assert_eq!(world.status(READ).probes.in_flight, 1, "it runs from the start of the attempt");
    advance(secs(1)).await;
    world.tick();
    let status = world.status(READ);
    assert_eq!(status.probes, Probes { in_flight: 0, successes: 0, failures: 1 });
    assert_eq!(status.last[0].outcome, "probe_overdue");
    hung.ended(outcome(Delivery::Answered(delivery::Class::Success), secs(36)));
    drop(hung);
    assert_eq!(world.status(READ).probes, Probes { in_flight: 0, successes: 0, failures: 1 });
}

#[tokio::test(start_paused = true)]
async fn hung_probes_wedge_nothing_even_when_nobody_ticks() {
    let world = World::new();
    world.open_reads();
    world.after_open_wait().await;
    let hung: Vec<_> = (0..3).map(|_| world.read().unwrap()).collect();
    for permits in &hung {
        permits.began();
    }
    advance(secs(35)).await;
    // Asking finds them overdue: three failures, open again.
    refused(world.read());
    assert_eq!(world.state(READ), State::Open);
    advance(secs(14)).await;
    world.close_by_reads();
    drop(hung);
    assert_eq!(world.status(READ).in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_never_comes_to_its_attempt_frees_its_slot_and_counts_nothing() {
    let world = World::new();
    world.open_reads();
    world.after_open_wait().await;
    let waiting: Vec<_> = (0..3).map(|_| world.read().unwrap()).collect();
    advance(secs(35)).await;
    ok(world.read().unwrap());
    assert_eq!(world.status(READ).probes, Probes { in_flight: 0, successes: 1, failures: 0 });
    drop(waiting);
    assert_eq!(world.status(READ).probes, Probes { in_flight: 0, successes: 1, failures: 0 });
}

#[tokio::test(start_paused = true)]
async fn permits_given_back_for_local_causes_count_nothing() {
    let world = World::new();
    world.open_reads();
    world.after_open_wait().await;
    for _ in 0..100 {
        drop(world.read().unwrap());
        end(world.read().unwrap(), outcome(Delivery::NotSent(Unsent::Ours), secs(0)));
    }
    assert_eq!(world.status(READ).probes, Probes { in_flight: 0, successes: 0, failures: 0 });
    assert_eq!(world.state(READ), State::HalfOpen);
}

#[tokio::test(start_paused = true)]
async fn one_healthy_request_a_minute_closes_within_three() {
    let world = World::new();
    world.open_reads();
    let mut requests = 0;
    while world.state(READ) != State::Ramping {
        advance(secs(60)).await;
        world.tick();
        ok(world.read().unwrap());
        requests += 1;
        assert!(requests <= 3);
    }
    assert_eq!(requests, 2);
}

#[tokio::test(start_paused = true)]
async fn two_lucky_calls_close_nothing() {
    let world = World::new();
    world.open_reads();
    world.after_open_wait().await;
    ok(world.read().unwrap());
    advance(secs(20)).await;
    ok(world.read().unwrap());
    advance(secs(15)).await;
    answer(world.read().unwrap(), 401);
    assert_eq!(world.state(READ), State::HalfOpen);
}

#[tokio::test(start_paused = true)]
async fn a_quiet_route_that_only_succeeds_stays_half_open_and_then_closes() {
    let world = World::new();
    world.open_reads();
    advance(secs(30)).await;
    ok(world.read().unwrap());
    advance(secs(6 * 3600)).await;
    world.tick();
    assert_eq!(world.state(READ), State::HalfOpen);
    ok(world.read().unwrap());
    assert_eq!(world.state(READ), State::Ramping);
}

#[tokio::test(start_paused = true)]
async fn ten_timely_neutral_answers_close() {
    let world = World::new();
    world.open_reads();
    world.after_open_wait().await;
    end(world.read().unwrap(), outcome(status(401), secs(11)));
    for _ in 0..10 {
        assert_eq!(world.state(READ), State::HalfOpen);
        answer(world.read().unwrap(), 401);
    }
    assert_eq!(world.state(READ), State::Ramping);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_healthy_for_five_seconds_makes_a_probe_a_success() {
    let world = World::new();
    world.open_reads();
    world.after_open_wait().await;
    let long = world.read().unwrap();
    long.began();
    long.answered(status(200), secs(1));
    advance(secs(5)).await;
    world.tick();
    assert_eq!(world.status(READ).probes, Probes { in_flight: 0, successes: 1, failures: 0 });
    long.ended(AttemptOutcome { body: BodyEnd::Broken, ..outcome(status(200), secs(1)) });
    assert_eq!(world.status(READ).probes.failures, 0);
}

#[tokio::test(start_paused = true)]
async fn what_began_before_a_transition_touches_nothing() {
    let world = World::new();
    let early: Vec<_> = (0..30).map(|_| world.read().unwrap()).collect();
    let probes_of_an_older_round = {
        world.open_reads();
        world.after_open_wait().await;
        let probes: Vec<_> = (0..3).map(|_| world.read().unwrap()).collect();
        world.force(READ, Mode::ForcedOpen).await;
        world.lift(READ).await;
        probes
    };
    let present = world.read().unwrap();
    early.into_iter().for_each(fail);
    probes_of_an_older_round.into_iter().for_each(fail);
    let status = world.status(READ);
    assert_eq!(status.state, State::HalfOpen);
    assert_eq!(status.probes, Probes { in_flight: 1, successes: 0, failures: 0 });
    ok(present);
    assert_eq!(world.status(READ).in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_nobody_ends_is_a_caller_that_left() {
    let world = World::new();
    let left = world.read().unwrap();
    left.began();
    advance(secs(4)).await;
    drop(left);
    assert_eq!(world.status(READ).window.calls, 0);
    let left = world.read().unwrap();
    left.began();
    advance(secs(11)).await;
    drop(left);
    assert_eq!(world.status(READ).window, WindowStatus { calls: 1, failures: 0, slow: 1 });
}

#[tokio::test(start_paused = true)]
async fn each_attempt_is_recorded_once() {
    let world = World::new();
    let permits = world.read().unwrap();
    permits.began();
    permits.ended(outcome(status(500), secs(1)));
    permits.ended(outcome(status(500), secs(1)));
    permits.began();
    permits.ended(outcome(status(200), secs(1)));
    drop(permits);
    assert_eq!(world.status(READ).window, WindowStatus { calls: 2, failures: 1, slow: 0 });
}

// === writes ===

#[tokio::test(start_paused = true)]
async fn creates_are_kept_back_while_the_reads_are_out_and_other_writes_are_not() {
    let world = World::new();
    let create = || world.ask(&Method::POST, "/bookings");
    for _ in 0..20 {
        fail(world.ask(&Method::GET, "/bookings").unwrap());
    }
    assert_eq!(refused_by(create()), "bookings:read");
    assert!(world.breakers.would_admit("bookings", false, true).is_err());
    world.open_reads();
    ok(world.set().unwrap());
    advance(secs(7)).await;
    world.tick();
    assert_eq!(world.state("bookings:read"), State::HalfOpen);
    assert_eq!(refused_by(create()), "bookings:read");
    for _ in 0..5 {
        ok(world.ask(&Method::GET, "/bookings").unwrap());
    }
    ok(create().unwrap());
}

#[tokio::test(start_paused = true)]
async fn creates_are_kept_back_while_global_is_out() {
    let world = World::new();
    world.force("global", Mode::ForcedOpen).await;
    world.lift("global").await;
    assert_eq!(world.state("global"), State::HalfOpen);
    assert_eq!(refused_by(world.ask(&Method::POST, "/bookings")), "global");
    ok(world.set().unwrap());
}

#[tokio::test(start_paused = true)]
async fn creates_never_try_the_way_to_flexport_even_when_their_own_breaker_is_out() {
    let world = World::new();
    let create = || world.ask(&Method::POST, "/bookings");
    for _ in 0..20 {
        fail(create().unwrap());
    }
    assert_eq!(world.state("bookings:write"), State::Open);
    world.force("global", Mode::ForcedOpen).await;
    world.lift("global").await;
    advance(secs(7)).await;
    assert_eq!(refused_by(create()), "global");
    assert!(world.breakers.would_admit("bookings", false, true).is_err());
    // An active probe or a read shows that the way is there; creates wait for no write.
    assert!(world.breakers.needs_probe("bookings"));
    for _ in 0..5 {
        ok(world.probe().unwrap());
    }
    assert_eq!(world.state("global"), State::Ramping);
    world.tick();
    advance(secs(3)).await;
    ok(create().unwrap());
}

#[tokio::test(start_paused = true)]
async fn half_open_writes_are_tried_by_what_makes_nothing_new() {
    let world = World::new();
    let create = || world.ask(&Method::POST, "/products");
    let amend = || world.ask(&Method::PATCH, "/products/1");
    for _ in 0..20 {
        fail(create().unwrap());
    }
    advance(secs(7)).await;
    assert_eq!(refused(create()), ("products:write".to_owned(), secs(3)));
    assert_eq!(world.breakers.would_admit("products", false, true), Err(secs(3)));
    advance(secs(2)).await;
    // As long as there is one, it is the canary.
    answer(amend().unwrap(), 400);
    advance(secs(2)).await;
    assert_eq!(refused_by(create()), "products:write");
    ok(amend().unwrap());
    ok(create().unwrap());
    assert_eq!(world.state("products:write"), State::Ramping);
}

#[tokio::test(start_paused = true)]
async fn what_waited_is_refused_when_its_breaker_opened_meanwhile() {
    let world = World::new();
    let waiting = world.read().unwrap();
    assert!(waiting.may_go_on().is_ok());
    world.open_reads();
    let (scope, wait) = refused(waiting.may_go_on().map(|()| world.set().unwrap()));
    assert_eq!(scope, READ);
    assert!(wait >= secs(5));
    world.after_open_wait().await;
    let probe = world.read().unwrap();
    assert!(probe.may_go_on().is_ok());
    assert!(waiting.may_go_on().is_err());
    world.close_by_reads();
    assert!(probe.may_go_on().is_ok(), "more traffic than before is no reason");
}

#[tokio::test(start_paused = true)]
async fn callers_that_leave_before_there_is_a_head_do_not_end_a_row_of_failures() {
    let world = World::new();
    for _ in 0..4 {
        fail(world.read().unwrap());
        let gone =
            AttemptOutcome { body: BodyEnd::Abandoned, ..outcome(Delivery::Ambiguous(Doubt::Cut), secs(11)) };
        end(world.read().unwrap(), gone);
        fail(world.read().unwrap());
        advance(secs(1)).await;
    }
    assert_eq!(world.state(READ), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_write_breaker_leaves_open_only_when_its_reads_are_well() {
    let world = World::new();
    world.open_writes();
    world.open_reads();
    advance(secs(7)).await;
    assert_eq!(refused_by(world.set()), WRITE);
    world.tick();
    assert_eq!(world.state(WRITE), State::Open);
    assert_eq!(world.state(READ), State::HalfOpen);
    ok(world.read().unwrap());
    refused(world.set());
    ok(world.read().unwrap());
    // Its last two reads succeeded.
    ok(world.set().unwrap());
    assert_eq!(world.state(WRITE), State::HalfOpen);
}

#[tokio::test(start_paused = true)]
async fn the_reads_own_state_counts_and_not_their_override() {
    let world = World::new();
    world.open_writes();
    world.force(READ, Mode::ForcedOpen).await;
    advance(secs(7)).await;
    assert_eq!(world.state(READ), State::Closed);
    ok(world.set().unwrap());
}

#[tokio::test(start_paused = true)]
async fn writes_are_probed_one_at_a_time_and_two_successes_close() {
    let world = World::new();
    world.open_writes();
    world.after_open_wait().await;
    let first = world.set().unwrap();
    assert_eq!(refused_by(world.set()), WRITE);
    ok(first);
    assert_eq!(world.state(WRITE), State::HalfOpen);
    ok(world.set().unwrap());
    assert_eq!(world.state(WRITE), State::Ramping);
}

#[tokio::test(start_paused = true)]
async fn a_scope_with_nothing_but_creates_still_closes_after_its_reads_have() {
    let world = World::new();
    let create = || world.ask(&Method::POST, "/bookings");
    for _ in 0..20 {
        fail(create().unwrap());
    }
    for _ in 0..20 {
        fail(world.ask(&Method::GET, "/bookings").unwrap());
    }
    advance(secs(7)).await;
    assert_eq!(refused_by(create()), "bookings:write");
    ok(world.ask(&Method::GET, "/bookings").unwrap());
    assert_eq!(refused_by(create()), "bookings:write");
    for _ in 0..4 {
        ok(world.ask(&Method::GET, "/bookings").unwrap());
    }
    assert_eq!(refused_by(create()), "bookings:write");
    advance(secs(3)).await;
    ok(create().unwrap());
    ok(create().unwrap());
    assert_eq!(world.state("bookings:write"), State::Ramping);
}

// === ramp ===

#[tokio::test(start_paused = true)]
async fn a_ramp_caps_the_calls_in_flight_and_its_excess_is_overload() {
    let world = World::new();
    world.open_reads();
    world.after_open_wait().await;
    world.close_by_reads();
    let mut held: Vec<_> = (0..12).map(|_| world.read().unwrap()).collect();
    assert!(matches!(world.read().map(drop), Err(ProxyError::Overloaded { what: "ramp" })));
    assert!(world.breakers.would_admit("shipments", true, false).is_err());
    held.pop();
    held.push(world.read().unwrap());
    advance(secs(15)).await;
    held.extend((0..58).map(|_| world.read().unwrap()));
    assert!(matches!(world.read().map(drop), Err(ProxyError::Overloaded { what: "ramp" })));
    drop(held);
    assert_eq!(world.status(READ).in_flight, 0);
    assert_eq!(world.status("global").in_flight, 0);
    assert_eq!(world.state(READ), State::Ramping);
}

#[tokio::test(start_paused = true)]
async fn a_ramp_ends_by_time_and_twenty_successes_or_by_five_quiet_minutes() {
    let world = World::new();
    world.open_reads();
    world.after_open_wait().await;
    world.close_by_reads();
    for _ in 0..20 {
        ok(world.read().unwrap());
    }
    advance(secs(29)).await;
    world.tick();
    assert_eq!(world.state(READ), State::Ramping);
    advance(secs(1)).await;
    world.tick();
    assert_eq!(world.state(READ), State::Closed);

    let world = World::new();
    world.open_reads();
    world.after_open_wait().await;
    world.close_by_reads();
    advance(secs(299)).await;
    world.tick();
    assert_eq!(world.state(READ), State::Ramping);
    advance(secs(1)).await;
    world.tick();
    assert_eq!(world.state(READ), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn ten_failing_calls_in_a_ramp_open_again() {
    let world = World::new();
    world.open_reads();
    world.after_open_wait().await;
    world.close_by_reads();
    for _ in 0..9 {
        fail(world.read().unwrap());
    }
    assert_eq!(world.state(READ), State::Ramping);
    fail(world.read().unwrap());
    assert_eq!(world.state(READ), State::Open);
    assert!(refused(world.read()).1 >= secs(10), "closing alone heals nothing");
}

// === overrides ===

#[tokio::test(start_paused = true)]
async fn forced_open_refuses_at_once_and_its_end_is_half_open() {
    let world = World::new();
    world.force(READ, Mode::ForcedOpen).await;
    assert_eq!(refused_by(world.read()), READ);
    assert_eq!(refused_by(world.probe()), READ);
    assert!(!world.breakers.needs_probe("shipments"));
    assert!(world.breakers.shows_failures("shipments"));
    let status = world.status(READ);
    assert_eq!((status.state, status.forced.unwrap().mode), (State::Closed, Mode::ForcedOpen));
    ok(world.set().unwrap());
    advance(secs(3600)).await;
    world.tick();
    refused(world.read());
    world.lift(READ).await;
    assert_eq!(world.state(READ), State::HalfOpen);
    assert!(world.status(READ).forced.is_none());
    world.close_by_reads();
}

#[tokio::test(start_paused = true)]
async fn forced_closed_lets_all_through_and_is_still_recorded() {
    let world = World::new();
    world.force(READ, Mode::ForcedClosed).await;
    for _ in 0..100 {
        fail(world.read().unwrap());
    }
    let status = world.status(READ);
    assert_eq!(status.state, State::Open);
    assert_eq!(status.window.failures, 20);
    world.lift(READ).await;
    refused(world.read());
}

#[tokio::test(start_paused = true)]
async fn observe_refuses_nothing_and_tells_what_would_have_opened() {
    let world = World::new();
    world.force(READ, Mode::Observe).await;
    let mut events = world.bus.watch();
    for _ in 0..100 {
        fail(world.read().unwrap());
    }
    assert_eq!(world.state(READ), State::Closed);
    let Event { kind: Kind::Breaker { scope, to, reason, .. }, .. } = events.try_recv().unwrap() else {
        panic!("not a breaker's event");
    };
    assert_eq!((&*scope, &*to, &*reason), (READ, "would_open", "20 of 20 calls failed in the window"));
    assert!(events.try_recv().is_err(), "once a window");
    advance(secs(10)).await;
    for _ in 0..20 {
        fail(world.read().unwrap());
    }
    assert!(events.try_recv().is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_same_override_again_only_renews_reason_and_time() {
    let world = World::new();
    world.force(READ, Mode::ForcedOpen).await;
    let first = world.status(READ).forced.unwrap();
    let changes = *world.breakers.changes().borrow();
    advance(secs(60)).await;
    let status = world
        .breakers
        .set_override(READ, Mode::ForcedOpen, "still", Some(secs(600)), "bob", false)
        .await
        .unwrap();
    let second = status[0].forced.clone().unwrap();
    assert_eq!(second.since, first.since);
    assert_eq!((&*second.reason, &*second.actor), ("still", "bob"));
    assert_eq!(crate::clock::since(second.until.unwrap(), second.since), secs(660));
    assert_eq!(*world.breakers.changes().borrow(), changes);
    refused(world.read());
}

#[tokio::test(start_paused = true)]
async fn an_override_ends_by_its_time_with_or_without_a_tick() {
    for is_ticked in [true, false] {
        let world = World::new();
        let ttl = Some(secs(600));
        world.breakers.set_override(READ, Mode::ForcedOpen, "a while", ttl, "ada", false).await.unwrap();
        advance(secs(599)).await;
        world.tick();
        assert_eq!(refused(world.read()).1, secs(1));
        advance(secs(1)).await;
        if is_ticked {
            world.tick();
            assert_eq!(world.state(READ), State::HalfOpen);
        }
        ok(world.read().unwrap());
        let status = world.status(READ);
        assert_eq!((status.state, status.forced), (State::HalfOpen, None));
    }
}

#[tokio::test(start_paused = true)]
async fn overrides_outlive_a_restart_and_those_that_are_over_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("overrides.json");
    {
        let world = World::at(path.clone());
        world.force(READ, Mode::ForcedOpen).await;
        world.force("ports:read", Mode::ForcedClosed).await;
        let ttl = Some(secs(0));
        let short = world.breakers.set_override("network:read", Mode::ForcedOpen, "x", ttl, "ada", false);
        short.await.unwrap();
    }
    let world = World::at(path.clone());
    assert_eq!(refused_by(world.read()), READ);
    let forced = world.status(READ).forced.unwrap();
    assert_eq!((forced.mode, &*forced.reason, &*forced.actor), (Mode::ForcedOpen, "a test", "ada"));
    assert_eq!(world.status("ports:read").forced.unwrap().mode, Mode::ForcedClosed);
    let over = world.status("network:read");
    assert_eq!((over.state, over.forced), (State::HalfOpen, None), "forced open ends in half-open");
    let labels = ScopeLabels { scope: READ.to_owned() };
    assert_eq!(world.metrics.breaker_override.get_or_create(&labels).get(), 3);
    for _ in 0..5 {
        ok(world.ask(&Method::GET, "/network/me/companies").unwrap());
    }
    world.lift(READ).await;
    world.close_by_reads();
    world.force("ports:read", Mode::Observe).await;
    drop(world);
    let world = World::at(path);
    assert!(world.status(READ).forced.is_none());
    assert_eq!(world.state("network:read"), State::Closed, "the file was tidied");
}

#[tokio::test(start_paused = true)]
async fn an_override_that_a_request_found_over_is_no_outage_of_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("overrides.json");
    let world = World::at(path.clone());
    world.breakers.set_override(READ, Mode::ForcedOpen, "x", Some(secs(10)), "ada", false).await.unwrap();
    assert!(!overrides::load(&path).unwrap().overrides.is_empty());
    advance(secs(11)).await;
    world.close_by_reads();
    // The first attempt to tidy the file fails.
    let aside = folder.path().join("aside");
    std::fs::rename(&path, &aside).unwrap();
    std::fs::create_dir_all(path.join("in the way")).unwrap();
    world.tick();
    // What an operator sets next waits for its turn behind that attempt, and meets the same disk.
    let next = world.breakers.set_override("ports:read", Mode::ForcedOpen, "x", None, "ada", false).await;
    assert!(matches!(next, Err(OverrideError::NotDurable(_))), "{next:?}");
    std::fs::remove_dir_all(&path).unwrap();
    std::fs::rename(&aside, &path).unwrap();
    until_async("the file is tidied by a later attempt", async || {
        advance(Duration::from_millis(250)).await;
        world.tick();
        overrides::load(&path).unwrap() == overrides::Kept::default()
    })
    .await;
    drop(world);
    assert_eq!(World::at(path).state(READ), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn unreadable_overrides_mean_auto_and_an_alarm() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("overrides.json");
    std::fs::write(&path, b"not json").unwrap();
    let world = World::at(path.clone());
    assert!(world.breakers.alarm().unwrap().contains("every breaker is on auto"));
    ok(world.read().unwrap());
    world.force(READ, Mode::ForcedOpen).await;
    assert!(World::at(path).breakers.alarm().is_none());
}

#[tokio::test(start_paused = true)]
async fn what_is_not_durable_is_not_in_force() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::at(folder.path().join("absent").join("overrides.json"));
    let result = world.breakers.set_override(READ, Mode::ForcedOpen, "x", None, "ada", false).await;
    assert!(matches!(result, Err(OverrideError::NotDurable(_))), "{result:?}");
    ok(world.read().unwrap());
    assert!(world.status(READ).forced.is_none());
}

#[tokio::test(start_paused = true)]
async fn unknown_scopes_are_refused_and_never_made() {
    let world = World::new();
    let count = world.breakers.list().len();
    for scope in ["shipment:read", "shipments", "", "ALL", "global:read"] {
        let result = world.breakers.set_override(scope, Mode::ForcedOpen, "x", None, "ada", false).await;
        assert_eq!(result.unwrap_err(), OverrideError::UnknownScope(scope.to_owned()));
        assert!(world.breakers.get(scope).is_none());
    }
    assert_eq!(world.breakers.list().len(), count);
    let no_reason = world.breakers.set_override(READ, Mode::ForcedOpen, " ", None, "ada", false).await;
    assert_eq!(no_reason.unwrap_err(), OverrideError::Reason);
}

#[tokio::test(start_paused = true)]
async fn all_means_every_scope_and_a_dry_run_changes_nothing() {
    let world = World::new();
    let dry = world.breakers.set_override(ALL, Mode::ForcedOpen, "x", None, "ada", true).await.unwrap();
    assert_eq!(dry.len(), world.breakers.list().len());
    assert!(dry.iter().all(|status| status.forced.as_ref().unwrap().mode == Mode::ForcedOpen));
    ok(world.read().unwrap());
    world.force(ALL, Mode::ForcedOpen).await;
    assert_eq!(refused_by(world.read()), "global");
    let dry = world.breakers.clear_override(ALL, None, "ada", true).await.unwrap();
    assert!(dry.iter().all(|status| status.state == State::HalfOpen && status.forced.is_none()));
    assert_eq!(refused_by(world.read()), "global");
    world.lift(ALL).await;
    assert!(world.breakers.list().iter().all(|status| status.state == State::HalfOpen));
}

#[tokio::test(start_paused = true)]
async fn an_override_is_made_even_when_its_caller_hangs_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("overrides.json");
    let world = World::at(path.clone());
    let mut changes = world.breakers.changes();
    {
        let set = world.breakers.set_override(READ, Mode::ForcedOpen, "x", None, "ada", false);
        let mut set = Box::pin(set);
        assert!(crate::tests::poll_once(set.as_mut()).is_none());
    }
    changes.changed().await.unwrap();
    assert_eq!(refused_by(world.read()), READ);
    assert!(World::at(path).status(READ).forced.is_some());
}

#[tokio::test(start_paused = true)]
async fn status_is_json_as_the_contract_names_it() {
    let world = World::new();
    world.force(READ, Mode::ForcedOpen).await;
    let json = serde_json::to_value(world.status(READ)).unwrap();
    assert_eq!(json["scope"], READ);
    assert_eq!(json["state"], "closed");
    assert_eq!(json["override"]["mode"], "forced_open");
    assert_eq!(json["override"]["since"], "2026-01-02T03:04:05Z");
    assert!(json["override"]["until"].is_null());
    assert!(json["until"].is_null());
    assert_eq!(json["window"]["calls"], 0);
    assert_eq!(json["consecutive_failures"], 0);
    assert!(serde_json::to_value(world.status(WRITE)).unwrap()["override"].is_null());
    let mode: Mode = serde_json::from_str("\"forced_closed\"").unwrap();
    assert_eq!(mode, Mode::ForcedClosed);
}

// === questions ===

#[tokio::test(start_paused = true)]
async fn peeking_takes_no_permit() {
    let world = World::new();
    assert_eq!(world.breakers.would_admit("shipments", true, false), Ok(()));
    world.open_reads();
    let wait = world.breakers.would_admit("shipments", true, false).unwrap_err();
    assert_eq!(wait, refused(world.read()).1);
    advance(wait).await;
    for _ in 0..10 {
        assert_eq!(world.breakers.would_admit("shipments", true, false), Ok(()));
    }
    assert_eq!(world.state(READ), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_group_shows_failures_for_as_long_as_they_are_in_the_window() {
    let world = World::new();
    assert!(!world.breakers.shows_failures("shipments"));
    fail(world.read().unwrap());
    assert!(world.breakers.shows_failures("shipments"));
    assert!(!world.breakers.shows_failures("ports"));
    advance(secs(10)).await;
    assert!(!world.breakers.shows_failures("shipments"));
    ok(world.read().unwrap());
    advance(secs(10)).await;
    world.open_reads();
    advance(secs(3600)).await;
    assert!(world.breakers.shows_failures("shipments"));
}

#[tokio::test(start_paused = true)]
async fn probes_are_wanted_when_the_wait_is_over_and_never_decide_against_traffic() {
    let world = World::new();
    for _ in 0..100 {
        fail(world.probe().unwrap());
    }
    assert_eq!(world.status(READ).window.calls, 0);
    assert!(!world.breakers.needs_probe("shipments"));
    world.open_reads();
    assert!(!world.breakers.needs_probe("shipments"));
    world.after_open_wait().await;
    assert!(world.breakers.needs_probe("shipments"));
    for _ in 0..5 {
        ok(world.probe().unwrap());
    }
    assert_eq!(world.state(READ), State::Ramping);
    assert!(!world.breakers.needs_probe("shipments"));
}

#[tokio::test(start_paused = true)]
async fn every_transition_is_told_on_the_bus_and_to_those_who_wait() {
    let world = World::new();
    let mut events = world.bus.watch();
    let changes = world.breakers.changes();
    world.open_reads();
    world.after_open_wait().await;
    world.tick();
    world.close_by_reads();
    let told: Vec<_> = std::iter::from_fn(|| events.try_recv().ok())
        .map(|event| match event.kind {
            Kind::Breaker { scope, from, to, .. } => format!("{scope} {from} {to}"),
            kind => panic!("{kind:?}"),
        })
        .collect();
    assert_eq!(
        told,
        ["shipments:read closed open", "shipments:read open half_open", "shipments:read half_open ramping"]
    );
    assert_eq!(*changes.borrow(), 3);
}

#[tokio::test(start_paused = true)]
async fn other_settings_take_effect_and_states_stay() {
    let world = World::new();
    world.open_reads();
    let settings = raw::Breaker { min_calls: 5, slow: raw::Span(secs(1)), ..raw::Breaker::default() };
    world.breakers.reconfigure(&settings, 128, secs(30));
    assert_eq!(world.state(READ), State::Open);
    for _ in 0..5 {
        end(world.ask(&Method::GET, "/ports").unwrap(), outcome(status(200), secs(2)));
    }
    assert_eq!(world.state("ports:read"), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_with_thresholds_of_its_own_opens_by_them_and_the_others_do_not() {
    let row = |name: &str| raw::BreakerScope { name: name.to_owned(), ..raw::BreakerScope::default() };
    let slow = raw::BreakerScope { slow: Some(raw::Span(secs(1))), min_calls: Some(5), ..row("ports:read") };
    let early = raw::BreakerScope {
        min_calls: Some(4),
        failure_share: Some(0.25),
        open_wait: Some(raw::Span(secs(1))),
        ..row(READ)
    };
    let settings = raw::Breaker { scopes: vec![early, slow], ..raw::Breaker::default() };
    let world = World::with(None, &settings);
    for _ in 0..3 {
        ok(world.read().unwrap());
        ok(world.set().unwrap());
        ok(world.ask(&Method::GET, "/events").unwrap());
    }
    fail(world.set().unwrap());
    fail(world.ask(&Method::GET, "/events").unwrap());
    assert_eq!(world.state(READ), State::Closed);
    fail(world.read().unwrap());
    let opened = world.status(READ);
    assert_eq!(
        (opened.state, world.state(WRITE), world.state("events:read")),
        (State::Open, State::Closed, State::Closed)
    );
    // Its own wait too, with a jitter of three tenths at most.
    let wait = opened.until.unwrap().duration_since(opened.since);
    assert!((1000..=1300).contains(&wait.as_millis()), "{wait:?}");
    for path in ["/ports", "/events"] {
        for _ in 0..5 {
            if let Ok(permits) = world.ask(&Method::GET, path) {
                end(permits, outcome(status(200), secs(2)));
            }
        }
    }
    assert_eq!((world.state("ports:read"), world.state("events:read")), (State::Open, State::Closed));
}

#[tokio::test(start_paused = true)]
async fn a_reload_changes_the_thresholds_of_one_breaker_while_it_is_open_and_takes_nothing_from_the_others() {
    let world = World::new();
    world.open_reads();
    let until = world.status(READ).until;
    for _ in 0..9 {
        fail(world.ask(&Method::GET, "/events").unwrap());
    }
    let row = raw::BreakerScope {
        name: READ.to_owned(),
        window: Some(raw::Span(secs(60))),
        half_open_successes: Some(1),
        half_open_probes: Some(1),
        ..raw::BreakerScope::default()
    };
    let settings = raw::Breaker { scopes: vec![row], ..raw::Breaker::default() };
    world.breakers.reconfigure(&settings, 128, secs(30));
    assert_eq!((world.state(READ), world.status(READ).until), (State::Open, until), "the wait goes on");
    assert_eq!(world.status("events:read").window.failures, 9, "counts of the others stay");
    world.after_open_wait().await;
    let probe = world.read().unwrap();
    assert!(world.read().is_err(), "one probe at a time now");
    ok(probe);
    assert_eq!(world.state(READ), State::Ramping, "one success is enough now");
    // And back.
    world.breakers.reconfigure(&raw::Breaker::default(), 128, secs(30));
    assert_eq!(world.state(READ), State::Ramping);
    for _ in 0..20 {
        if let Ok(permits) = world.read() {
            fail(permits);
        }
    }
    world.after_open_wait().await;
    world.after_open_wait().await;
    let probes: Vec<_> = std::iter::from_fn(|| world.read().ok()).collect();
    assert_eq!(probes.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn writes_close_by_two_successes_unless_their_own_row_says_another_number() {
    let row = raw::BreakerScope {
        name: WRITE.to_owned(),
        half_open_successes: Some(3),
        ..raw::BreakerScope::default()
    };
    for (scopes, successes) in [(vec![], 2), (vec![row], 3)] {
        let settings = raw::Breaker { half_open_successes: 5, scopes, ..raw::Breaker::default() };
        let world = World::with(None, &settings);
        world.open_writes();
        world.after_open_wait().await;
        for _ in 1..successes {
            ok(world.set().unwrap());
            assert_eq!(world.state(WRITE), State::HalfOpen);
        }
        ok(world.set().unwrap());
        assert_eq!(world.state(WRITE), State::Ramping);
    }
}

// === service ===

type Handler = fn(UpstreamRequest) -> Result<Response<Body>, ProxyError>;

fn service(
    world: &World,
    handler: Handler,
) -> (impl Service<UpstreamRequest, Response = Response<Body>, Error = ProxyError> + Clone, Arc<AtomicUsize>)
{
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let inner = tower::service_fn(move |request: UpstreamRequest| {
        let counted = counted.clone();
        async move {
            counted.fetch_add(1, Ordering::Relaxed);
            handler(request)
        }
    });
    (Layer::new(world.breakers.clone()).layer(inner), calls)
}

fn upstream_request(world: &World) -> UpstreamRequest {
    UpstreamRequest {
        request: Request::builder().uri("/shipments").body(Body::empty()).unwrap(),
        call: world.call(&Method::GET, "/shipments"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_admitted_call_carries_its_permits_and_a_refused_one_reaches_nothing() {
    let world = World::new();
    let (service, calls) = service(&world, |request| {
        let observer = request.call.observer.expect("the breaker sets it");
        observer.began();
        observer.ended(outcome(status(500), secs(1)));
        Ok(Response::new(Body::empty()))
    });
    for _ in 0..20 {
        service.clone().oneshot(upstream_request(&world)).await.unwrap();
    }
    assert_eq!(calls.load(Ordering::Relaxed), 20);
    let error = service.clone().oneshot(upstream_request(&world)).await.unwrap_err();
    assert!(matches!(error, ProxyError::BreakerOpen { scope, .. } if scope == READ));
    assert_eq!(calls.load(Ordering::Relaxed), 20);
    assert_eq!(world.status(READ).in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn what_something_behind_the_breaker_refuses_counts_nothing() {
    let world = World::new();
    let (service, _) = service(&world, |_| Err(ProxyError::Overloaded { what: "slots" }));
    world.open_reads();
    world.after_open_wait().await;
    for _ in 0..10 {
        service.clone().oneshot(upstream_request(&world)).await.unwrap_err();
    }
    assert_eq!(world.status(READ).probes, Probes::default());
    assert_eq!(world.state(READ), State::HalfOpen);
    assert_eq!(world.status(READ).in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_before_it_runs_gives_its_permits_back() {
    let world = World::new();
    let (mut service, calls) = service(&world, |_| Ok(Response::new(Body::empty())));
    let call = service.call(upstream_request(&world));
    assert_eq!(world.status(READ).in_flight, 1);
    drop(call);
    assert_eq!(world.status(READ).in_flight, 0);
    assert_eq!(calls.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn admission_is_ready_even_when_what_is_behind_is_not() {
    let world = World::new();
    let (inner, _handle) = tower_test::mock::pair::<UpstreamRequest, Response<Body>>();
    let inner = inner.map_err(|error| ProxyError::Internal(error.to_string()));
    let mut service = Layer::new(world.breakers.clone()).layer(inner);
    assert!(crate::tests::poll_once(Box::pin(service.ready()).as_mut()).is_some());
}

// === threads ===

#[test]
fn under_threads_no_more_probes_than_allowed_are_out_and_all_come_back() {
    const THREADS: usize = 4;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let settings = raw::Breaker {
        // Failures never open again and successes never close, so that the round lasts.
        half_open_failures: 31,
        half_open_successes: 31,
        quiet_span: raw::Span(secs(3600)),
        ..raw::Breaker::default()
    };
    let world = World::with(None, &settings);
    runtime.block_on(async {
        world.force(READ, Mode::ForcedOpen).await;
        world.lift(READ).await;
    });
    let out = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (world, out) = (&world, &out);
            scope.spawn(move || {
                for round in 0..5000 {
                    let Ok(permits) = world.read() else { continue };
                    assert!(out.fetch_add(1, Ordering::SeqCst) < 3);
                    permits.began();
                    if (round + thread) % 3 == 0 {
                        permits.ended(outcome(Delivery::NotSent(Unsent::Ours), secs(0)));
                    }
                    out.fetch_sub(1, Ordering::SeqCst);
                    drop(permits);
                }
            });
        }
    });
    let status = world.status(READ);
    assert_eq!(status.state, State::HalfOpen);
    assert_eq!(status.probes, Probes::default());
    assert_eq!((status.in_flight, world.status("global").in_flight), (0, 0));
}

#[test]
fn under_threads_and_overrides_nothing_stays_behind() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let world = World::new();
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let world = &world;
            scope.spawn(move || {
                for round in 0..5000 {
                    match world.read() {
                        Ok(permits) if (round + thread) % 3 == 0 => fail(permits),
                        Ok(permits) if (round + thread) % 3 == 1 => ok(permits),
                        Ok(permits) => drop(permits),
                        Err(_) => {}
                    }
                }
            });
        }
        for _ in 0..100 {
            runtime.block_on(async {
                world.force(READ, Mode::ForcedOpen).await;
                world.lift(READ).await;
                world.tick();
            });
        }
    });
    let status = world.status(READ);
    assert_eq!((status.in_flight, status.probes.in_flight), (0, 0));
    assert_eq!(world.status("global").in_flight, 0);
    // And it still works.
    runtime.block_on(async {
        world.force(READ, Mode::ForcedOpen).await;
        world.lift(READ).await;
    });
    world.close_by_reads();
}

#[test]
fn a_breaker_is_small() {
    assert!(size_of::<scope::Scope>() <= 2048, "{}", size_of::<scope::Scope>());
}
