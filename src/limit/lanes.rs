//! Pure. Who gets a slot: at once while there is room, else in the order of the lanes.
//!
//! Rules, each of which gives way to none below it:
//! 1. never more in flight than the limit (`adaptive`); a single active probe more is allowed, since it tells whether
//!    the limit makes sense at all;
//! 2. replay has at most 30 % of the limit, and at least one: it is the next when it has none in flight;
//! 3. a group that has half of the slots waits while another group has not: one slow endpoint must not hold all;
//! 4. live reads, live writes, refreshes, replay, each first come, first served.
//!
//! Waiting calls are kept by lane and group, so a release looks at as many queues as there are groups, however many
//! wait. The limits of time are the callers': who gives up says so.

use super::adaptive::Adaptive;
use super::{IN_TURN, LANES, index};
use crate::context::Lane;
use std::collections::VecDeque;

/// Slots and who waits for them; `W` wakes one.
#[derive(Debug)]
pub struct Lanes<W> {
    adaptive: Adaptive,
    in_flight: u32,
    by_lane: [u32; LANES],
    by_group: Vec<u32>,
    waiting: Vec<[VecDeque<(u64, W)>; LANES]>,
    waiters: usize,
    next: u64,
}

/// Replay's share of the limit, in percent.
const REPLAY_SHARE: u32 = 30;

// === impl Lanes ===

impl<W> Lanes<W> {
    /// No call in flight.
    pub fn new(adaptive: Adaptive, groups: usize) -> Self {
        Self {
            adaptive,
            in_flight: 0,
            by_lane: [0; LANES],
            by_group: vec![0; groups.max(1)],
            waiting: (0..groups.max(1)).map(|_| Default::default()).collect(),
            waiters: 0,
            next: 0,
        }
    }

    /// Takes a slot if there is one. Returns the epoch in which the call begins.
    pub fn enter(&mut self, lane: Lane, group: usize) -> Option<u32> {
        // While there is room, those that wait do so for their own lane's share, which is not that of others.
        let is_free = match lane {
            Lane::Probe => self.by_lane[index(lane)] == 0 || self.has_room(),
            Lane::Replay => self.has_room() && self.replay_may(),
            Lane::LiveRead | Lane::LiveWrite | Lane::Refresh => self.has_room(),
        };
        is_free.then(|| self.take(lane, group))
    }

    /// Waits for a slot. Returns the call's number.
    pub fn wait(&mut self, lane: Lane, group: usize, wake: W) -> u64 {
        self.next += 1;
        self.waiters += 1;
        self.waiting[group][index(lane)].push_back((self.next, wake));
        self.next
    }

    /// Does not wait any more. Whether it had still been waiting: if not, it has a slot.
    pub fn withdraw(&mut self, lane: Lane, group: usize, id: u64) -> bool {
        let queue = &mut self.waiting[group][index(lane)];
        let Ok(place) = queue.binary_search_by_key(&id, |(id, _)| *id) else { return false };
        queue.remove(place);
        self.waiters -= 1;
        true
    }

    /// A slot is given back.
    pub fn leave(&mut self, lane: Lane, group: usize) {
        self.in_flight -= 1;
        self.by_lane[index(lane)] -= 1;
        self.by_group[group] -= 1;
    }

    /// The next of those that wait, which has its slot from now on. To be called until there is none.
    pub fn grant(&mut self) -> Option<(W, u32)> {
        if self.waiters == 0 || !self.has_room() {
            return None;
        }
        let (group, lane) = self.next_up()?;
        let (_, wake) = self.waiting[group][index(lane)].pop_front()?;
        self.waiters -= 1;
        Some((wake, self.take(lane, group)))
    }

    /// A call succeeded.
    pub fn succeeded(&mut self) {
        self.adaptive.succeeded(self.in_flight);
    }

    /// A call that began in `epoch` met congestion.
    pub fn congested(&mut self, epoch: u32) {
        self.adaptive.congested(epoch);
    }

    /// Whether a success would be of interest.
    pub fn wants_samples(&self) -> bool {
        self.adaptive.grows_at(self.in_flight)
    }

    /// How many calls at once.
    pub fn limit(&self) -> u32 {
        self.adaptive.limit()
    }

    /// How many calls are in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// How many calls wait.
    pub fn waiters(&self) -> usize {
        self.waiters
    }

    fn has_room(&self) -> bool {
        self.in_flight < self.adaptive.limit()
    }

    fn replay_may(&self) -> bool {
        self.by_lane[index(Lane::Replay)] < (self.adaptive.limit() * REPLAY_SHARE / 100).max(1)
    }

    fn take(&mut self, lane: Lane, group: usize) -> u32 {
        self.in_flight += 1;
        self.by_lane[index(lane)] += 1;
        self.by_group[group] += 1;
        self.adaptive.epoch()
    }

    fn next_up(&self) -> Option<(usize, Lane)> {
        if self.by_lane[index(Lane::Replay)] == 0
            && let Some(group) = self.oldest(Lane::Replay, u32::MAX)
        {
            return Some((group, Lane::Replay));
        }
        let half = (self.adaptive.limit() / 2).max(1);
        let lanes = || IN_TURN.into_iter().filter(|lane| *lane != Lane::Replay || self.replay_may());
        let below = |most| lanes().find_map(|lane| Some((self.oldest(lane, most)?, lane)));
        below(half).or_else(|| below(u32::MAX))
    }

    /// The group whose first waiter of the lane came first, of those with fewer than `most` in flight.
    fn oldest(&self, lane: Lane, most: u32) -> Option<usize> {
        let first = |group: usize| self.waiting[group][index(lane)].front().map(|(id, _)| (*id, group));
        let groups = 0..self.waiting.len();
        groups.filter(|group| self.by_group[*group] < most).filter_map(first).min().map(|(_, group)| group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(limit: u32, groups: usize) -> Lanes<&'static str> {
        Lanes::new(Adaptive::new(limit, 1, limit), groups)
    }

    fn granted(lanes: &mut Lanes<&'static str>) -> Vec<&'static str> {
        std::iter::from_fn(|| lanes.grant().map(|(wake, _)| wake)).collect()
    }

    #[test]
    fn slots_go_to_lanes_in_their_order_and_within_one_to_who_came_first() {
        let mut lanes = lanes(1, 1);
        assert!(lanes.enter(Lane::LiveRead, 0).is_some());
        assert!(lanes.enter(Lane::LiveRead, 0).is_none());
        for (lane, name) in [
            (Lane::Refresh, "refresh"),
            (Lane::LiveWrite, "write"),
            (Lane::LiveRead, "read 1"),
            (Lane::LiveRead, "read 2"),
        ] {
            lanes.wait(lane, 0, name);
        }
        let mut order = Vec::new();
        for lane in [Lane::LiveRead, Lane::LiveRead, Lane::LiveRead, Lane::LiveWrite] {
            lanes.leave(lane, 0);
            order.extend(granted(&mut lanes));
        }
        assert_eq!(order, ["read 1", "read 2", "write", "refresh"]);
        assert_eq!((lanes.in_flight(), lanes.waiters()), (1, 0));
    }

    #[test]
    fn replay_has_at_most_thirty_percent_of_the_limit_even_when_nobody_else_comes() {
        let mut lanes = lanes(20, 1);
        let taken = (0..20).filter(|_| lanes.enter(Lane::Replay, 0).is_some()).count();
        assert_eq!(taken, 6);
        lanes.wait(Lane::Replay, 0, "replay");
        assert_eq!(granted(&mut lanes), [""; 0]);
        assert!(lanes.enter(Lane::LiveRead, 0).is_some(), "its wait holds up nobody");
    }

    #[test]
    fn replay_is_the_next_when_it_has_nothing_in_flight() {
        let mut lanes = lanes(2, 1);
        lanes.enter(Lane::LiveRead, 0);
        lanes.enter(Lane::LiveRead, 0);
        lanes.wait(Lane::LiveRead, 0, "read");
        lanes.wait(Lane::Replay, 0, "replay 1");
        lanes.wait(Lane::Replay, 0, "replay 2");
        lanes.leave(Lane::LiveRead, 0);
        assert_eq!(granted(&mut lanes), ["replay 1"]);
        lanes.leave(Lane::LiveRead, 0);
        assert_eq!(granted(&mut lanes), ["read"], "one is enough");
    }

    #[test]
    fn a_group_has_at_most_half_of_the_slots_while_another_waits() {
        let mut lanes = lanes(8, 2);
        for _ in 0..8 {
            assert!(lanes.enter(Lane::LiveRead, 0).is_some(), "all of them while nobody else wants any");
        }
        for _ in 0..8 {
            lanes.wait(Lane::LiveRead, 0, "greedy");
        }
        for _ in 0..8 {
            lanes.wait(Lane::Refresh, 1, "modest");
        }
        let mut order = Vec::new();
        for _ in 0..6 {
            lanes.leave(Lane::LiveRead, 0);
            order.extend(granted(&mut lanes));
        }
        // Once both have half, each gets back what it gives.
        assert_eq!(order[..4], ["modest"; 4], "{order:?}");
        assert_eq!(order[4..], ["greedy"; 2]);
    }

    #[test]
    fn who_withdraws_either_waited_or_has_a_slot_and_nothing_leaks() {
        let mut lanes = lanes(1, 1);
        lanes.enter(Lane::LiveRead, 0);
        let first = lanes.wait(Lane::LiveRead, 0, "first");
        let second = lanes.wait(Lane::LiveRead, 0, "second");
        assert!(lanes.withdraw(Lane::LiveRead, 0, first));
        lanes.leave(Lane::LiveRead, 0);
        assert_eq!(granted(&mut lanes), ["second"]);
        assert!(!lanes.withdraw(Lane::LiveRead, 0, second), "it has a slot, which it must give back");
        lanes.leave(Lane::LiveRead, 0);
        assert_eq!((lanes.in_flight(), lanes.waiters()), (0, 0));
    }

    #[test]
    fn one_active_probe_is_let_through_a_full_house() {
        let mut lanes = lanes(1, 1);
        lanes.enter(Lane::LiveRead, 0);
        assert!(lanes.enter(Lane::Probe, 0).is_some());
        assert!(lanes.enter(Lane::Probe, 0).is_none());
    }
}
