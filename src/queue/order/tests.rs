use super::*;
use proptest::prelude::*;

fn key() -> Key {
    (PartitionId([0; 16]), Arc::from("shipments/1"))
}

fn id(seq: u64) -> WriteId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&seq.to_be_bytes());
    WriteId::from_bytes(bytes)
}

#[test]
fn one_is_in_flight_and_the_others_wait_their_turn() {
    let mut lanes = Lanes::new();
    for seq in 1..=3 {
        lanes.join(key(), seq, id(seq), seq);
    }
    assert_eq!(lanes.turn(&key(), 2), Turn::Wait);
    assert_eq!(lanes.turn(&key(), 1), Turn::Go);
    assert_eq!(lanes.turn(&key(), 2), Turn::Wait);
    assert_eq!(lanes.leave(&key(), 1), Some(2));
    assert_eq!(lanes.turn(&key(), 3), Turn::Wait);
    assert_eq!(lanes.turn(&key(), 2), Turn::Go);
}

#[test]
fn behind_a_record_all_become_records() {
    let mut lanes = Lanes::new();
    for seq in 1..=3 {
        lanes.join(key(), seq, id(seq), seq);
    }
    assert_eq!(lanes.turn(&key(), 1), Turn::Go);
    assert_eq!(lanes.put_record(key(), 1, id(1), false), vec![2, 3]);
    assert_eq!(lanes.turn(&key(), 2), Turn::Queue);
    assert_eq!(lanes.turn(&key(), 3), Turn::Queue);
    assert_eq!(lanes.head(&key()), None, "its live attempt is not over");
    lanes.release(&key(), 1);
    assert_eq!(lanes.head(&key()), Some((1, id(1))));
    assert!(lanes.claim(&key(), 1));
    assert!(!lanes.claim(&key(), 1));
    lanes.put_record(key(), 2, id(2), false);
    assert!(!lanes.claim(&key(), 2));
    assert_eq!(lanes.ahead(&key(), 2), 1);
    assert_eq!(lanes.leave(&key(), 1), None);
    assert!(lanes.claim(&key(), 2));
}

#[test]
fn a_blocker_keeps_those_behind_it() {
    let mut lanes = Lanes::<u64>::new();
    lanes.put_record(key(), 1, id(1), true);
    lanes.put_record(key(), 2, id(2), false);
    assert_eq!(lanes.head(&key()), None);
    assert!(!lanes.claim(&key(), 2));
    lanes.join(key(), 3, id(3), 3);
    assert_eq!(lanes.turn(&key(), 3), Turn::Queue);
    lanes.leave(&key(), 1);
    assert_eq!(lanes.head(&key()), Some((2, id(2))));
}

#[test]
fn names_follow_the_rule() {
    let own = id(9);
    let of = |rule: &OrderRule, body: &str| name(rule, "/shipments/12", body.as_bytes(), own).to_string();
    assert_eq!(of(&OrderRule::Path, ""), "shipments/12");
    assert_eq!(of(&OrderRule::Collection, ""), "shipments/12/*");
    assert_eq!(of(&OrderRule::None, ""), format!("write/{own}"));
    let rule = OrderRule::Body { collection: "bookings", member: "booking_id" };
    assert_eq!(of(&rule, r#"{"booking_id": 55}"#), "bookings/55");
    assert_eq!(of(&rule, r#"{"booking_id": "55"}"#), "bookings/55");
    for body in ["", "[]", "{}", r#"{"booking_id": null}"#, r#"{"booking_id": ""}"#] {
        assert_eq!(of(&rule, body), format!("write/{own}"), "{body}");
    }
}

proptest! {
    /// Whatever happens, places are sent in the order in which they were drawn, and one at a time.
    #[test]
    fn order_holds_over_live_and_queued(steps in proptest::collection::vec((0..6u8, 0..8usize), 0..200)) {
        let mut lanes = Lanes::new();
        let mut next = 1u64;
        // (seq, is a record), in the order of joining.
        let mut model: Vec<(u64, bool)> = Vec::new();
        let mut in_flight: Option<u64> = None;
        for (what, which) in steps {
            let chosen = model.get(which % model.len().max(1)).copied();
            match (what, chosen) {
                (0, _) => {
                    lanes.join(key(), next, id(next), next);
                    model.push((next, false));
                    next += 1;
                }
                (1, Some((seq, false))) if in_flight != Some(seq) => {
                    let record_before = model.iter().any(|(other, record)| *other < seq && *record);
                    let turn = lanes.turn(&key(), seq);
                    if record_before {
                        prop_assert_eq!(turn, Turn::Queue);
                    } else if model[0].0 == seq && in_flight.is_none() {
                        prop_assert_eq!(turn, Turn::Go);
                        in_flight = Some(seq);
                    } else {
                        prop_assert_eq!(turn, Turn::Wait);
                    }
                }
                (2, Some((seq, true))) => {
                    let may = model[0].0 == seq && in_flight.is_none();
                    prop_assert_eq!(lanes.claim(&key(), seq), may);
                    if may { in_flight = Some(seq); }
                }
                (3, Some((seq, _))) => {
                    lanes.put_record(key(), seq, id(seq), false);
                    model.iter_mut().find(|(other, _)| *other == seq).unwrap().1 = true;
                }
                (4, Some((seq, record))) if in_flight == Some(seq) && record => {
                    lanes.release(&key(), seq);
                    in_flight = None;
                }
                (5, Some((seq, _))) => {
                    lanes.leave(&key(), seq);
                    model.retain(|(other, _)| *other != seq);
                    if in_flight == Some(seq) { in_flight = None; }
                }
                _ => {}
            }
            let head = match model.first() {
                Some((seq, true)) if in_flight.is_none() => Some((*seq, id(*seq))),
                _ => None,
            };
            prop_assert_eq!(lanes.head(&key()), head);
        }
    }
}
