//! The sentences of the contract that take more than one transition, in simulated time.

use super::*;
use std::collections::VecDeque;
use std::sync::atomic::AtomicI64;

const STEP: Duration = Duration::from_millis(25);

/// A caller that left before there was a head.
fn left(permits: &CallPermits, after: Duration) {
    permits.began();
    permits.ended(AttemptOutcome {
        body: BodyEnd::Abandoned,
        ..outcome(Delivery::Ambiguous(Doubt::Cut), after)
    });
}

fn timed_out(permits: CallPermits) {
    end(permits, outcome(Delivery::Ambiguous(Doubt::HeadTimeout), secs(30)));
}

async fn half_open_reads(world: &World) {
    world.open_reads();
    world.after_open_wait().await;
    world.tick();
    assert_eq!(world.state(READ), State::HalfOpen);
}

// === half-open never wedges ===

#[tokio::test(start_paused = true)]
async fn a_thousand_cancelled_probes_wedge_nothing_and_count_nothing() {
    let world = World::new();
    half_open_reads(&world).await;
    for round in 0..1000 {
        let permits = world.read().unwrap();
        if round % 2 == 0 {
            permits.began();
        }
        drop(permits);
    }
    let status = world.status(READ);
    assert_eq!((status.state, status.probes), (State::HalfOpen, Probes::default()));
    world.close_by_reads();
}

#[tokio::test(start_paused = true)]
async fn a_429_to_every_probe_closes_since_flexport_answers() {
    let world = World::new();
    half_open_reads(&world).await;
    for _ in 0..10 {
        assert_eq!(world.state(READ), State::HalfOpen);
        answer(world.read().unwrap(), 429);
    }
    assert_eq!(world.state(READ), State::Ramping);
}

#[tokio::test(start_paused = true)]
async fn without_any_traffic_it_stays_half_open_and_active_probes_close_it() {
    let world = World::new();
    half_open_reads(&world).await;
    for _ in 0..1000 {
        advance(secs(10)).await;
        world.tick();
    }
    assert_eq!(world.state(READ), State::HalfOpen);
    assert!(world.breakers.needs_probe("shipments"));
    for _ in 0..5 {
        ok(world.probe().unwrap());
        advance(secs(5)).await;
    }
    assert_eq!(world.state(READ), State::Ramping);
}

// === floods ===

#[tokio::test(start_paused = true)]
async fn never_more_than_three_read_probes_or_one_write_probe_whatever_arrives_in_the_same_millisecond() {
    let world = World::new();
    world.open_reads();
    world.open_writes();
    world.after_open_wait().await;
    world.tick();
    let mut reads: Vec<_> = (0..1000).filter_map(|_| world.read().ok()).collect();
    assert_eq!(reads.len(), 3);
    assert!((0..1000).all(|_| world.set().is_err()), "the reads are not well yet");
    // Two that succeed let the writes be tried; their slots go to others at once.
    reads.drain(..2).for_each(ok);
    reads.extend((0..1000).filter_map(|_| world.read().ok()));
    assert_eq!(reads.len(), 3);
    let writes: Vec<_> = (0..1000)
        .filter_map(|index| {
            let (method, path) = [(Method::PATCH, "/shipments/1"), (Method::POST, "/bookings")]
                [usize::from(index % 2 == 1)]
            .clone();
            world.ask(&method, path).ok().filter(|_| method == Method::PATCH)
        })
        .collect();
    assert_eq!(writes.len(), 1);
}

#[test]
fn under_threads_no_more_than_one_write_probe_is_out() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let world = World::with(None, &raw::Breaker { half_open_failures: 31, ..raw::Breaker::default() });
    runtime.block_on(async {
        world.force(WRITE, Mode::ForcedOpen).await;
        world.lift(WRITE).await;
    });
    let out = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5000 {
                    let Ok(permits) = world.set() else { continue };
                    assert_eq!(out.fetch_add(1, Ordering::SeqCst), 0);
                    permits.began();
                    permits.ended(outcome(Delivery::NotSent(Unsent::Ours), secs(0)));
                    out.fetch_sub(1, Ordering::SeqCst);
                    drop(permits);
                }
            });
        }
    });
    assert_eq!(world.status(WRITE).probes, Probes::default());
}

// === bursts, outages, trickles ===

#[tokio::test(start_paused = true)]
async fn a_burst_of_100_ms_in_500_calls_a_second_does_not_open_and_a_real_outage_opens_in_2_to_3_s() {
    let world = World::new();
    let second = async |is_failing: &dyn Fn(u32) -> bool| {
        for index in 0..500 {
            let Ok(permits) = world.read() else { return true };
            end(
                permits,
                outcome(status(if is_failing(index) { 500 } else { 200 }), Duration::from_millis(50)),
            );
            advance(Duration::from_millis(2)).await;
        }
        false
    };
    for _ in 0..10 {
        assert!(!second(&|_| false).await);
    }
    assert!(!second(&|index| (200..250).contains(&index)).await, "a burst");
    assert_eq!(world.state(READ), State::Closed);
    for _ in 0..10 {
        assert!(!second(&|_| false).await);
    }
    let began = Instant::now();
    while !second(&|_| true).await {}
    let after = began.elapsed();
    assert!(after >= secs(2) && after <= secs(3), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn one_request_a_minute_that_always_times_out_opens_on_the_eighth() {
    let world = World::new();
    for request in 1..=8 {
        assert_eq!(world.state(READ), State::Closed, "before request {request}");
        timed_out(world.read().unwrap());
        advance(secs(60)).await;
    }
    assert_eq!(world.state(READ), State::Open);
}

// === impatience ===

#[tokio::test(start_paused = true)]
async fn callers_with_a_limit_of_5_s_cannot_hide_a_hung_upstream() {
    let world = World::new();
    for _ in 0..200 {
        end(world.read().unwrap(), outcome(status(200), Duration::from_millis(800)));
    }
    advance(secs(10)).await;
    for _ in 0..20 {
        assert_eq!(world.state(READ), State::Closed);
        left(&world.read().unwrap(), secs(5));
    }
    assert_eq!(world.state(READ), State::Open);
}

#[tokio::test(start_paused = true)]
async fn impatient_callers_of_a_healthy_upstream_cannot_open_it() {
    let world = World::new();
    // Reads take four seconds here, and most callers leave after two, or after five.
    for round in 0..400 {
        end(world.read().unwrap(), outcome(status(200), secs(4)));
        for _ in 0..20 {
            left(&world.read().unwrap(), secs(if round % 2 == 0 { 2 } else { 5 }));
        }
        advance(Duration::from_millis(50)).await;
    }
    assert_eq!((world.state(READ), world.status(READ).window.slow), (State::Closed, 0));
}

// === flapping ===

#[tokio::test(start_paused = true)]
async fn flapping_grows_the_waits_and_never_grants_full_concurrency_within_30_s() {
    let world = World::new();
    let began = Instant::now();
    let is_well = || began.elapsed().as_millis() % 14_000 < 4000;
    let (mut waits, mut opened, mut calls) = (Vec::new(), 0, VecDeque::new());
    // Five minutes at 40 a second; a call takes 50 ms.
    while began.elapsed() < secs(300) {
        while calls.front().is_some_and(|(due, _)| *due <= Instant::now()) {
            let (_, permits): (_, CallPermits) = calls.pop_front().unwrap();
            if is_well() { ok(permits) } else { fail(permits) }
        }
        let status = world.status(READ);
        if status.state == State::Open && opened != status.since.as_millisecond() {
            opened = status.since.as_millisecond();
            waits.push(crate::clock::since(status.until.unwrap(), status.since));
        }
        let is_fourth = began.elapsed().as_millis().is_multiple_of(100);
        if !waits.is_empty() && is_fourth {
            assert_ne!(status.state, State::Closed, "four seconds are no recovery");
            let flood: Vec<_> = (0..256).filter_map(|_| world.read().ok()).collect();
            assert!(flood.len() + calls.len() < 40, "{} more at once in {:?}", flood.len(), status.state);
        }
        if let Ok(permits) = world.read() {
            calls.push_back((Instant::now() + Duration::from_millis(50), permits));
        }
        if began.elapsed().as_millis().is_multiple_of(250) {
            world.tick();
        }
        advance(STEP).await;
    }
    assert!(waits.len() >= 5, "{waits:?}");
    for (index, wait) in waits.iter().enumerate() {
        let least = [5, 10, 20, 40, 60][index.min(4)];
        assert!(*wait >= secs(least), "{waits:?}");
    }
}

// === the clock ===

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_moves_no_deadline_and_loses_no_override() {
    static WALL: AtomicI64 = AtomicI64::new(1_800_000_000);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("overrides.json");
    let world = World::on(Clock::hand(&WALL), Some(path), &raw::Breaker::default());
    world.open_reads();
    let ttl = Some(secs(3600));
    world.breakers.set_override(WRITE, Mode::ForcedOpen, "a test", ttl, "ada", false).await.unwrap();
    for jump in [86_400, -172_800] {
        WALL.fetch_add(jump, Ordering::Relaxed);
        world.tick();
        assert_eq!(world.state(READ), State::Open);
        // A change of another one writes the file anew.
        world.force("bookings:read", Mode::Observe).await;
        assert_eq!(world.status(WRITE).forced.unwrap().mode, Mode::ForcedOpen, "after {jump} s");
        assert!(world.set().is_err());
    }
    world.after_open_wait().await;
    ok(world.read().unwrap());
    assert_eq!(world.state(READ), State::HalfOpen);
    advance(secs(3600)).await;
    world.tick();
    assert!(world.status(WRITE).forced.is_none(), "its hour is over, whatever the wall shows");
}

// === restarts, reasons, ends ===

#[tokio::test(start_paused = true)]
async fn what_had_opened_by_itself_is_tried_first_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("overrides.json");
    let world = World::at(path.clone());
    world.open_reads();
    until_async("the opening is written behind", async || {
        advance(Duration::from_millis(250)).await;
        world.tick();
        overrides::load(&path).unwrap().open.contains(READ)
    })
    .await;
    drop(world);
    let world = World::at(path.clone());
    let status = world.status(READ);
    assert_eq!((status.state, status.forced), (State::HalfOpen, None));
    assert!(status.why.contains("earlier run"), "{}", status.why);
    world.close_by_reads();
    until_async("its end is written behind", async || {
        advance(Duration::from_millis(250)).await;
        world.tick();
        overrides::load(&path).unwrap().open.is_empty()
    })
    .await;
    drop(world);
    assert_eq!(World::at(path).state(READ), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn the_reason_of_the_last_opening_and_the_last_ten_outcomes_stay_to_be_seen() {
    let world = World::new();
    assert_eq!(world.status(READ).trip, None);
    world.open_reads();
    world.after_open_wait().await;
    world.close_by_reads();
    let status = world.status(READ);
    assert_eq!(status.trip.unwrap().reason, "20 of 20 calls failed in the window");
    assert_eq!(status.why, "5 probes succeeded");
    let last: Vec<_> = status.last.iter().map(|one| one.outcome.as_str()).collect();
    assert_eq!(last, [["success"; 5], ["status_500"; 5]].concat());
}

#[tokio::test(start_paused = true)]
async fn the_end_of_an_override_is_told_ten_minutes_before_once_and_again_when_it_is_renewed() {
    let world = World::new();
    let mut events = world.bus.watch();
    let mut told = || {
        std::iter::from_fn(|| events.try_recv().ok())
            .filter_map(|event| match event.kind {
                Kind::OverrideEnds { scope, mode, reason, .. } => Some(format!("{scope} {mode} {reason}")),
                _ => None,
            })
            .collect::<Vec<_>>()
    };
    let set = async |minutes: u64| {
        let ttl = Some(secs(60 * minutes));
        world.breakers.set_override(READ, Mode::ForcedOpen, "INC-1", ttl, "ada", false).await.unwrap();
    };
    set(30).await;
    advance(secs(60 * 19)).await;
    world.tick();
    assert!(told().is_empty());
    advance(secs(60)).await;
    world.tick();
    world.tick();
    assert_eq!(told(), ["shipments:read forced_open INC-1 (by ada)"]);
    set(30).await;
    advance(secs(60 * 21)).await;
    world.tick();
    assert_eq!(told().len(), 1, "renewed, so told again");
    set(5).await;
    world.tick();
    assert!(told().is_empty(), "who sets a short one knows it");
}

// === the ramp ===

#[tokio::test(start_paused = true)]
async fn what_is_more_than_a_ramp_takes_waits_for_its_turn_and_no_longer_than_for_a_slot() {
    // A tenth of ten is less than the least; it is still so after some seconds.
    let world = World::narrow(10);
    half_open_reads(&world).await;
    world.close_by_reads();
    let mut held: Vec<_> = std::iter::from_fn(|| world.read().ok()).collect();
    assert_eq!(held.len(), 2);
    let call = world.call(&Method::GET, "/shipments");
    // Room that comes is given to who waits, and not to who comes.
    let mut first = Box::pin(world.breakers.admit_in_turn(&call));
    assert!(crate::tests::poll_once(first.as_mut()).is_none());
    drop(held.pop());
    assert!(world.read().is_err(), "nobody overtakes");
    ok(first.await.unwrap());
    held.extend(world.read().ok());
    // Without room it is over after two seconds.
    let began = Instant::now();
    let result = world.breakers.admit_in_turn(&call).await;
    assert!(matches!(result, Err(ProxyError::Overloaded { .. })), "{result:?}");
    assert!(began.elapsed() >= secs(2) && began.elapsed() < secs(3), "{:?}", began.elapsed());
    // And who leaves leaves nothing behind.
    drop(held);
    world.read().unwrap();
}
