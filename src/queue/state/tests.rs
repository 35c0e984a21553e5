use super::*;
use proptest::prelude::*;

const R: Rules =
    Rules { replayable: true, blocks_behind_unknown: false, blocks_behind_dead: false, max_server_errors: 8 };
const X: Rules =
    Rules { replayable: false, blocks_behind_unknown: true, blocks_behind_dead: true, max_server_errors: 8 };

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn go(rules: Rules, inputs: &[Input]) -> Progress {
    inputs.iter().fold(Progress::new(), |progress, input| step(&progress, rules, *input, NOW).unwrap().0)
}

const DOUBT: Input = Input::Doubt { reason: Reason::Timeout, status: None, others_succeed: false };
const UNSENT: Input = Input::Unsent { reason: Reason::BreakerOpen, status: None };

#[test]
fn an_attempt_that_was_not_sent_is_not_counted() {
    let progress = go(R, &[Input::Send, UNSENT]);
    assert_eq!((progress.state, progress.attempts), (State::Pending, 0));
    let progress = go(R, &[Input::Send, DOUBT, Input::Send, UNSENT]);
    assert_eq!((progress.state, progress.attempts), (State::Waiting, 1));
}

#[test]
fn doubt_is_sent_again_only_where_that_changes_nothing() {
    assert_eq!(go(R, &[Input::Send, DOUBT]).state, State::Waiting);
    let unknown = go(X, &[Input::Send, DOUBT]);
    assert_eq!(unknown.state, State::Unknown);
    assert!(unknown.blocks && unknown.has_place());
    assert_eq!(go(R, &[Input::Send, Input::Crash]).state, State::Waiting);
    assert_eq!(go(X, &[Input::Send, Input::Crash]).state, State::Unknown);
}

#[test]
fn what_may_have_been_applied_is_not_cancelled() {
    assert_eq!(go(R, &[Input::Cancel]).state, State::Cancelled);
    let waiting = go(R, &[Input::Send, DOUBT]);
    assert!(step(&waiting, R, Input::Cancel, NOW).is_err());
    assert!(step(&go(R, &[Input::Send]), R, Input::Cancel, NOW).is_err());
    let expired = go(R, &[Input::Send, DOUBT, Input::Expire]);
    assert_eq!((expired.state, expired.maybe_applied), (State::Expired, true));
}

#[test]
fn poison_dies_only_while_others_succeed() {
    let error =
        |others_succeed| Input::Doubt { reason: Reason::ServerError, status: Some(500), others_succeed };
    let mut progress = Progress::new();
    for _ in 0..20 {
        progress = step(&progress, R, Input::Send, NOW).unwrap().0;
        progress = step(&progress, R, error(false), NOW).unwrap().0;
    }
    assert_eq!((progress.state, progress.server_errors), (State::Waiting, 0));
    for _ in 0..8 {
        assert_eq!(progress.state, State::Waiting, "those of an outage do not count");
        progress = step(&progress, R, Input::Send, NOW).unwrap().0;
        progress = step(&progress, R, error(true), NOW).unwrap().0;
    }
    assert_eq!((progress.state, progress.reason), (State::Dead, Some(Reason::Poison)));
}

#[test]
fn an_operator_resolves() {
    let unknown = [Input::Send, DOUBT];
    let resolved = |verdict| go(X, &[unknown[0], unknown[1], Input::Resolve(verdict)]);
    assert_eq!(resolved(Verdict::Applied).state, State::Done);
    let again = resolved(Verdict::NotApplied);
    assert_eq!((again.state, again.maybe_applied, again.blocks), (State::Pending, false, false));
    let dropped = resolved(Verdict::Drop);
    assert_eq!((dropped.state, dropped.maybe_applied), (State::Dead, true));
    assert!(step(&dropped, X, Input::Retry, NOW).is_err());
    assert!(step(&Progress::new(), X, Input::Resolve(Verdict::Applied), NOW).is_err());
}

#[test]
fn an_operator_resolves_what_a_restore_holds_back() {
    let held = go(R, &[Input::RollBack]);
    assert!(held.held && step(&held, R, Input::Cancel, NOW).is_err());
    for (verdict, state) in
        [(Verdict::Applied, State::Done), (Verdict::NotApplied, State::Pending), (Verdict::Drop, State::Dead)]
    {
        let resolved = step(&held, R, Input::Resolve(verdict), NOW).unwrap().0;
        assert_eq!((resolved.state, resolved.held), (state, false));
    }
    // One that goes on by itself tells by its outcome, and one that was never sent is cancelled.
    for inputs in [&[Input::RollBack, Input::Release][..], &[Input::Hold]] {
        assert!(step(&go(R, inputs), R, Input::Resolve(Verdict::Drop), NOW).is_err());
    }
}

fn inputs() -> impl Strategy<Value = Input> {
    prop_oneof![
        4 => Just(Input::Send),
        2 => Just(UNSENT),
        2 => Just(DOUBT),
        1 => any::<bool>().prop_map(|others_succeed| Input::Doubt {
            reason: Reason::ServerError, status: Some(500), others_succeed }),
        1 => Just(Input::Success { status: 200 }),
        1 => Just(Input::Rejected { reason: Reason::Rejected, status: 422 }),
        1 => Just(Input::Later { status: 425 }),
        1 => Just(Input::Lost { reason: Reason::Undecryptable }),
        1 => Just(Input::Crash),
        1 => Just(Input::RollBack),
        1 => Just(Input::Expire),
        1 => Just(Input::Cancel),
        1 => Just(Input::Hold),
        1 => Just(Input::Release),
        1 => Just(Input::Retry),
        1 => Just(Input::Resolve(Verdict::Applied)),
        1 => Just(Input::Resolve(Verdict::NotApplied)),
        1 => Just(Input::Resolve(Verdict::Drop)),
    ]
}

proptest! {
    #[test]
    fn nothing_that_could_take_effect_twice_is_sent_again(
        replayable in any::<bool>(), inputs in proptest::collection::vec(inputs(), 0..60)
    ) {
        let rules = Rules { replayable, ..X };
        let mut progress = Progress::new();
        // Whether Flexport may hold this write, by all that was said about it.
        let mut in_doubt = false;
        let mut done = false;
        for input in inputs {
            let Ok((next, effects)) = step(&progress, rules, input, NOW) else { continue };
            if input == Input::Send {
                prop_assert!(!done, "sent after it was done");
                prop_assert!(replayable || !in_doubt, "sent again in doubt");
                prop_assert!(next.attempts == progress.attempts + 1);
            }
            match input {
                Input::Doubt { .. } | Input::Crash | Input::RollBack => { in_doubt = true; prop_assert!(effects.touches); }
                Input::Success { .. } => { done = true; prop_assert!(effects.touches); }
                Input::Resolve(Verdict::Applied) => done = true,
                Input::Resolve(Verdict::NotApplied) => in_doubt = false,
                _ => {}
            }
            if done { prop_assert_eq!(next.state, State::Done); }
            prop_assert_eq!(next.settled_at.is_some(), !next.state.is_unsettled());
            prop_assert!(next.state != State::Cancelled || !in_doubt);
            if next.blocks { prop_assert!(matches!(next.state, State::Dead | State::Unknown)); }
            prop_assert!(!next.held || matches!(next.state, State::Pending | State::Waiting));
            progress = next;
        }
    }
}
