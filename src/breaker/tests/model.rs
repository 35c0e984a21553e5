//! The breaker against a reference that is written to be read: lists, no atomics, no packing, one thread.
//!
//! Both are driven by the same random course of calls, outcomes, waits and overrides; after each step they must agree
//! on what was admitted and on everything that an operator can see. Only the roll of the die is taken over from the
//! breaker, after a look at its limits.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Wait(u64),
    Tick,
    Admit,
    Began(prop::sample::Index),
    End(prop::sample::Index, What),
    Drop(prop::sample::Index),
    ForceOpen,
    Lift,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    Success,
    Failure,
    Slow,
    Answer,
    Local,
}

struct Held {
    permits: CallPermits,
    round: u32,
    probe: Option<ProbeModel>,
    began_at: Option<u64>,
}

#[derive(Clone, Copy)]
struct ProbeModel {
    due: u64,
    began: bool,
    open: bool,
}

/// As a probe or not.
struct Admitted(Option<ProbeModel>);

struct Model {
    now: u64,
    ticked: u64,
    state: State,
    forced_open: bool,
    round: u32,
    until: u64,
    level: u32,
    healthy_since: Option<u64>,
    calls: Vec<(u64, bool, bool)>,
    row: (u32, u64),
    last_failure: Option<u64>,
    successes: u32,
    failures: u32,
    answers: u32,
    run_since: Option<u64>,
    ramp: (u64, u32, u32),
}

// === impl Model ===

impl Model {
    fn new() -> Self {
        Self {
            now: 1,
            ticked: 0,
            state: State::Closed,
            forced_open: false,
            round: 0,
            until: 0,
            level: 0,
            healthy_since: Some(1),
            calls: Vec::new(),
            row: (0, 0),
            last_failure: None,
            successes: 0,
            failures: 0,
            answers: 0,
            run_since: None,
            ramp: (0, 0, 0),
        }
    }

    fn window(&self) -> WindowStatus {
        let inside = || self.calls.iter().filter(|(bucket, ..)| self.now / 1000 - bucket < 10);
        WindowStatus {
            calls: inside().count() as u32,
            failures: inside().filter(|(_, is_failure, _)| *is_failure).count() as u32,
            slow: inside().filter(|(_, _, is_slow)| *is_slow).count() as u32,
        }
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.round += 1;
        (self.successes, self.failures, self.answers, self.run_since) = (0, 0, 0, None);
    }

    fn forget(&mut self) {
        self.calls.clear();
        self.row = (0, 0);
        self.last_failure = None;
    }

    fn recovered(&self) -> u32 {
        let minutes = self.healthy_since.map_or(0, |since| (self.now - since) / 60_000);
        self.level.saturating_sub(minutes as u32)
    }

    /// `until` is the breaker's own.
    fn open(&mut self, until: u64) {
        self.level = (self.recovered() + 1).min(5);
        self.healthy_since = None;
        let wait = (5000u64 << (self.level - 1)).min(60_000);
        let found = until - self.now;
        assert!(found >= wait && found <= wait + wait * 3 / 10, "waits {found} on level {}", self.level);
        self.until = until;
        self.enter(State::Open);
    }

    fn half_open(&mut self) {
        self.forget();
        self.enter(State::HalfOpen);
    }

    /// Whether it is admitted, and as what.
    fn admit(&mut self, held: &mut [Held], until: impl Fn() -> u64) -> Option<Admitted> {
        if self.forced_open {
            return None;
        }
        if self.state == State::Open && self.now >= self.until {
            self.half_open();
        }
        match self.state {
            State::Closed => Some(Admitted(None)),
            State::Ramping => {
                let part = ((self.now - self.ramp.0) as f64 / 30_000.0).min(1.0);
                let cap = ((0.1 + 0.9 * part) * 128.0) as usize;
                (held.len() < cap).then_some(Admitted(None))
            }
            State::Open => None,
            State::HalfOpen => {
                if self.out(held) >= 3 {
                    self.expire(held, until);
                }
                let may = self.state == State::HalfOpen && self.out(held) < 3;
                may.then_some(Admitted(Some(ProbeModel { due: self.now + 35_000, began: false, open: true })))
            }
        }
    }

    fn out(&self, held: &[Held]) -> usize {
        let is_out = |held: &&Held| held.round == self.round && held.probe.is_some_and(|probe| probe.open);
        held.iter().filter(is_out).count()
    }

    fn expire(&mut self, held: &mut [Held], until: impl Fn() -> u64) {
        let round = self.round;
        for held in held.iter_mut().filter(|held| held.round == round) {
            let Some(probe) = held.probe.as_mut().filter(|probe| probe.open && self.now >= probe.due) else {
                continue;
            };
            probe.open = false;
            if probe.began {
                self.failures += 1;
                self.run_since = None;
            }
        }
        if self.failures >= 2 {
            self.open(until());
        }
    }

    fn tick(&mut self, held: &mut [Held], until: impl Fn() -> u64) {
        self.ticked = self.now;
        if self.forced_open {
            return;
        }
        match self.state {
            State::Open if self.now >= self.until => self.half_open(),
            State::HalfOpen => self.expire(held, until),
            State::Ramping => self.judge_ramp(),
            State::Open | State::Closed => {}
        }
    }

    fn judge_ramp(&mut self) {
        let (since, ok, bad) = self.ramp;
        let quiet = self.now - self.last_failure.unwrap_or(since).max(since);
        if self.now - since >= 30_000 && ((ok >= 20 && bad * 3 < ok) || quiet >= 300_000) {
            self.enter(State::Closed);
        }
    }

    fn end(&mut self, held: &mut Held, what: What, until: impl Fn() -> u64) {
        if held.round != self.round {
            return;
        }
        match self.state {
            State::Closed | State::Ramping => {
                // The time of a success that moves nothing need not be looked at.
                let about = held.began_at.map_or(self.now, |began| began.max(self.ticked));
                self.sample(what, if what == What::Success { about } else { self.now }, until);
            }
            State::HalfOpen => {
                let Some(probe) = held.probe.as_mut().filter(|probe| probe.open) else { return };
                match what {
                    What::Local => return,
                    What::Success => {
                        self.successes += 1;
                        let since = *self.run_since.get_or_insert(self.now);
                        let run = (self.now / 250 - since / 250) * 250;
                        probe.open = false;
                        if self.successes >= 5 || (self.successes >= 2 && run >= 30_000) {
                            self.pass();
                        }
                        return;
                    }
                    What::Failure | What::Slow => {
                        self.failures += 1;
                        self.run_since = None;
                    }
                    What::Answer => self.answers += 1,
                }
                probe.open = false;
                if self.failures >= 2 {
                    self.open(until());
                } else if self.answers >= 10 {
                    self.pass();
                }
            }
            State::Open => {}
        }
    }

    fn pass(&mut self) {
        self.forget();
        self.ramp = (self.now, 0, 0);
        self.healthy_since = Some(self.now);
        self.enter(State::Ramping);
    }

    fn sample(&mut self, what: What, at: u64, until: impl Fn() -> u64) {
        let mut is_row = false;
        match what {
            What::Answer | What::Local => return,
            What::Success | What::Slow => {
                self.row = (0, 0);
                self.calls.push((at / 1000, false, what == What::Slow));
                self.ramp.1 += u32::from(what == What::Success);
            }
            What::Failure => {
                if self.row.0 == 0 || self.last_failure.is_some_and(|last| self.now - last > 600_000) {
                    self.row = (0, self.now);
                }
                self.row.0 += 1;
                self.last_failure = Some(self.now);
                self.calls.push((at / 1000, true, false));
                self.ramp.2 += 1;
                is_row = self.row.0 >= 8 && self.now - self.row.1 >= 2000;
            }
        }
        let WindowStatus { calls, failures, slow } = self.window();
        let is_share = calls >= 20 && (failures * 2 >= calls || slow * 5 >= calls * 4);
        let (_, ok, bad) = self.ramp;
        let is_relapse = self.state == State::Ramping && bad >= 10 && bad * 3 >= ok;
        if is_row || is_share || is_relapse {
            self.open(until());
        } else if self.state == State::Ramping {
            self.judge_ramp();
        }
    }
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let what = prop_oneof![
        4 => Just(What::Success),
        4 => Just(What::Failure),
        1 => Just(What::Slow),
        1 => Just(What::Answer),
        1 => Just(What::Local),
    ];
    let op = prop_oneof![
        3 => (0u64..3000).prop_map(Op::Wait),
        1 => (3000u64..100_000).prop_map(Op::Wait),
        2 => Just(Op::Tick),
        12 => Just(Op::Admit),
        3 => any::<prop::sample::Index>().prop_map(Op::Began),
        12 => (any::<prop::sample::Index>(), what).prop_map(|(index, what)| Op::End(index, what)),
        1 => any::<prop::sample::Index>().prop_map(Op::Drop),
    ];
    let forced = prop_oneof![30 => op, 1 => Just(Op::ForceOpen), 1 => Just(Op::Lift)];
    prop::collection::vec(forced, 1..400)
}

async fn run(ops: Vec<Op>) {
    let world = World::new();
    let base = Instant::now();
    let (mut model, mut held) = (Model::new(), Vec::<Held>::new());
    for op in ops {
        let found_until = || {
            let status = world.status(READ);
            let wait = crate::clock::since(status.until.unwrap(), status.since);
            (base.elapsed() + wait).as_millis() as u64 + 1
        };
        match op {
            Op::Wait(millis) => {
                advance(Duration::from_millis(millis)).await;
                model.now += millis;
            }
            Op::Tick => {
                world.tick();
                model.tick(&mut held, found_until);
            }
            Op::Admit => {
                let found = world.read();
                let expected = model.admit(&mut held, found_until);
                assert_eq!(found.is_ok(), expected.is_some(), "admission at {}", model.now);
                if let (Ok(permits), Some(Admitted(probe))) = (found, expected) {
                    held.push(Held { permits, round: model.round, probe, began_at: None });
                }
            }
            Op::Began(index) if !held.is_empty() => {
                let now = model.now;
                let held = index.get_mut(&mut held);
                held.permits.began();
                held.began_at = Some(now);
                if let Some(probe) = held.probe.as_mut().filter(|probe| probe.open) {
                    (probe.due, probe.began) = (now + 35_000, true);
                }
            }
            Op::End(index, what) if !held.is_empty() => {
                let mut held = held.swap_remove(index.index(held.len()));
                held.permits.ended(match what {
                    What::Success => outcome(status(200), secs(1)),
                    What::Failure => outcome(status(500), secs(1)),
                    What::Slow => outcome(status(200), secs(11)),
                    What::Answer => outcome(status(401), secs(1)),
                    What::Local => outcome(Delivery::NotSent(Unsent::Ours), secs(1)),
                });
                model.end(&mut held, what, found_until);
            }
            Op::Drop(index) if !held.is_empty() => {
                let held = held.swap_remove(index.index(held.len()));
                held.permits.ended(outcome(Delivery::NotSent(Unsent::Ours), secs(0)));
            }
            Op::ForceOpen => {
                world.force(READ, Mode::ForcedOpen).await;
                if !model.forced_open {
                    model.forced_open = true;
                    model.enter(model.state);
                }
            }
            Op::Lift => {
                world.lift(READ).await;
                if model.forced_open {
                    model.forced_open = false;
                    if model.state == State::HalfOpen {
                        model.half_open();
                    } else {
                        model.level = model.recovered();
                        model.healthy_since = None;
                        model.half_open();
                    }
                }
            }
            Op::Began(_) | Op::End(..) | Op::Drop(_) => {}
        }
        let found = world.status(READ);
        assert_eq!(found.state, model.state, "after {op:?} at {}", model.now);
        assert_eq!(found.window, model.window(), "after {op:?} at {}", model.now);
        assert_eq!(found.consecutive_failures, model.row.0);
        assert_eq!(found.in_flight as usize, held.len());
        if model.state == State::HalfOpen {
            let expected = Probes {
                in_flight: model.out(&held) as u32,
                successes: model.successes,
                failures: model.failures,
            };
            assert_eq!(found.probes, expected, "after {op:?} at {}", model.now);
        }
    }
    // Whatever happened, it comes back.
    for held in held.drain(..) {
        held.permits.ended(outcome(Delivery::NotSent(Unsent::Ours), secs(0)));
    }
    world.lift(READ).await;
    assert_eq!(world.status(READ).probes.in_flight, 0);
    for _ in 0..50 {
        advance(secs(20)).await;
        world.tick();
        if let Ok(permits) = world.read() {
            ok(permits);
        }
    }
    assert_eq!(world.state(READ), State::Closed);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_breaker_does_what_a_simple_reference_does(ops in ops()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(run(ops));
    }
}
