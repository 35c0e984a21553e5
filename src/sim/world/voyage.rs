//! What happens by itself: shipments move through their milestones as the clock goes on, and bookings that were asked
//! to change are changed.
//!
//! The world has a time of its own, which goes on exactly as far as the simulator's clock goes forward; a clock that
//! is set back moves nothing back. A milestone's date inside an object is that of the shipment's course, which the
//! seed cast; stamps (`updated_at`, those of events) are the clock's. Nothing of the seeded world happens within the
//! first [`QUIET`], so that whoever does not touch the clock has a world that stands still.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::super::seed::{self, Course, DAY, HOUR};
use super::events::Happening;
use super::{Kind, World};

/// The time from the start in which nothing of the seeded world happens, in seconds.
const QUIET: i64 = 6 * HOUR;
/// How long a booking amendment waits, in milliseconds.
const AMENDMENT: i64 = DAY * 1000;

/// What is to happen, and when in the world's own time.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// How far the world's time has gone, in milliseconds.
    progress: i64,
    due: BinaryHeap<Reverse<(i64, Due)>>,
    voyages: HashMap<u64, Voyage>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Voyage { shipment: u64 },
    Amendment { id: u64 },
}

/// A shipment on its way.
#[derive(Debug)]
pub(in crate::sim) struct Voyage {
    pub(in crate::sim) shipment: u64,
    pub(in crate::sim) booking: u64,
    pub(in crate::sim) course: Course,
    /// Empty until the booking is confirmed.
    pub(in crate::sim) legs: Vec<u64>,
    pub(in crate::sim) containers: Vec<u64>,
    /// With the place of the leg that each belongs to.
    pub(in crate::sim) container_legs: Vec<(u64, usize)>,
    /// The place in [`STEPS`] of what comes next.
    next: usize,
    /// What is to be taken from a course's seconds to get the world's time.
    shift: i64,
}

/// What happens to a shipment, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Confirmed,
    PickedUp,
    AtPort,
    Departed,
    Delayed,
    Arrived,
    Held,
    Released,
    OnTheRoad,
    Delivered,
    Emptied,
}

const STEPS: [Step; 11] = [
    Step::Confirmed,
    Step::PickedUp,
    Step::AtPort,
    Step::Departed,
    Step::Delayed,
    Step::Arrived,
    Step::Held,
    Step::Released,
    Step::OnTheRoad,
    Step::Delivered,
    Step::Emptied,
];

// === impl Step ===

impl Step {
    /// When it happens on a course.
    fn second(self, course: &Course) -> i64 {
        let [ready, picked_up, departed, arrived, delivered] = course.times;
        match self {
            Self::Confirmed => ready - 3 * DAY,
            Self::PickedUp => picked_up,
            Self::AtPort => i64::midpoint(picked_up, departed),
            Self::Departed => departed,
            Self::Delayed => i64::midpoint(departed, arrived),
            Self::Arrived => arrived,
            Self::Held => arrived + (delivered - arrived) / 6,
            Self::Released => arrived + (delivered - arrived) / 3,
            Self::OnTheRoad => i64::midpoint(arrived, delivered),
            Self::Delivered => delivered,
            Self::Emptied => delivered + 2 * DAY,
        }
    }

    /// Whether it happens to a shipment at all.
    fn concerns(self, voyage: &Voyage) -> bool {
        match self {
            Self::Delayed => voyage.shipment.is_multiple_of(3),
            Self::Held => voyage.shipment.is_multiple_of(7),
            Self::Emptied => !voyage.containers.is_empty(),
            _ => true,
        }
    }

    /// The stage in which it leaves the shipment.
    fn stage(self) -> Option<usize> {
        match self {
            Self::PickedUp => Some(1),
            Self::AtPort => Some(2),
            Self::Departed => Some(3),
            Self::Arrived => Some(4),
            Self::OnTheRoad => Some(5),
            Self::Delivered => Some(6),
            _ => None,
        }
    }
}

// === impl Voyage ===

impl Voyage {
    /// A seeded shipment; the fraction says where it is between its last milestone and its next.
    pub(in crate::sim) fn underway(
        [shipment, booking]: [u64; 2],
        course: Course,
        legs: Vec<u64>,
        containers: Vec<u64>,
        container_legs: Vec<(u64, usize)>,
        fraction: f64,
    ) -> Self {
        let next = [0, 2, 3, 4, 6, 9, STEPS.len()][course.stage];
        let mut voyage = Self { shipment, booking, course, legs, containers, container_legs, next, shift: 0 };
        voyage.skip();
        if let Some(due) = voyage.second() {
            let since =
                if voyage.next == 0 { due - 2 * DAY } else { STEPS[voyage.next - 1].second(&voyage.course) };
            let present = since + ((due - since) as f64 * fraction) as i64;
            voyage.shift = present.min(due - QUIET);
        }
        voyage
    }

    /// The shipment of a booking that was just made.
    fn booked([shipment, booking]: [u64; 2], course: Course, shift: i64) -> Self {
        let (legs, containers, container_legs) = (Vec::new(), Vec::new(), Vec::new());
        Self { shipment, booking, course, legs, containers, container_legs, next: 0, shift }
    }

    /// When the next thing happens, in the course's seconds; none when all is done.
    fn second(&self) -> Option<i64> {
        STEPS.get(self.next).map(|step| step.second(&self.course))
    }

    fn due(&self) -> Option<i64> {
        self.second().map(|second| (second - self.shift) * 1000)
    }

    /// Passes over what does not concern this shipment.
    fn skip(&mut self) {
        while STEPS.get(self.next).is_some_and(|step| !step.concerns(self)) {
            self.next += 1;
        }
    }
}

impl World {
    /// Puts a shipment on its way.
    pub(in crate::sim) fn depart(&mut self, voyage: Voyage) {
        if let Some(due) = voyage.due() {
            let shipment = voyage.shipment;
            self.schedule.due.push(Reverse((due, Due::Voyage { shipment })));
            self.schedule.voyages.insert(shipment, voyage);
        }
    }

    /// The shipment of a booking that was just made goes its way, and its first event is told.
    pub(in crate::sim) fn depart_booked(&mut self, ids: [u64; 2], course: Course, now: Timestamp) {
        let shift = now.as_second() - self.schedule.progress / 1000;
        self.depart(Voyage::booked(ids, course, shift));
        self.tell("/shipment#created", Kind::Shipment, ids[0], ids[0], now, now);
    }

    /// A booking is to be changed, later.
    pub(in crate::sim) fn amend_later(&mut self, id: u64) {
        let due = self.schedule.progress + AMENDMENT;
        self.schedule.due.push(Reverse((due, Due::Amendment { id })));
    }

    /// The clock went on: everything happens that was due until then, in its order.
    pub(in crate::sim) fn advance(&mut self, from: Timestamp, to: Timestamp) {
        let start = self.schedule.progress;
        let span = i64::try_from(to.duration_since(from).as_millis()).unwrap_or(i64::MAX);
        let end = start.saturating_add(span.max(0));
        while let Some(Reverse((due, what))) =
            self.schedule.due.peek().copied().filter(|next| next.0.0 <= end)
        {
            self.schedule.due.pop();
            self.schedule.progress = due.max(start);
            let at = from.saturating_add(SignedDuration::from_millis((due - start).max(0))).unwrap_or(to);
            match what {
                Due::Amendment { id } => self.amend(id),
                Due::Voyage { shipment } => {
                    if let Some(mut voyage) = self.schedule.voyages.remove(&shipment) {
                        self.step(&mut voyage, at);
                        voyage.next += 1;
                        voyage.skip();
                        self.depart(voyage);
                    }
                }
            }
        }
        self.schedule.progress = end;
    }

    fn step(&mut self, voyage: &mut Voyage, at: Timestamp) {
        let Some(step) = STEPS.get(voyage.next).copied() else { return };
        if let Some(stage) = step.stage() {
            voyage.course.stage = stage;
        }
        let shipment = voyage.shipment;
        let mut rng = seed::dice(self.seed, 8, shipment ^ (voyage.next as u64) << 40);
        // Business time lies up to most of a day before the telling.
        let occurred = at.saturating_sub(SignedDuration::from_secs(rng.i64(0..20 * HOUR))).unwrap_or(at);
        match step {
            Step::Confirmed => {
                if voyage.legs.is_empty() {
                    seed::route(self, voyage);
                }
                self.change(Kind::Booking, voyage.booking, |booking| booking["status"] = json!("booked"));
            }
            Step::AtPort => seed::bill(self, voyage, at),
            Step::Departed => seed::declare(self, voyage),
            Step::Delayed => {
                voyage.course.times[3] += 2 * DAY;
                voyage.course.times[4] += 2 * DAY;
            }
            Step::Held | Step::Released => self.clear_customs(voyage, step == Step::Released, at),
            _ => {}
        }
        self.refresh(voyage, step, at);
        self.tell_step(voyage, step, occurred, at);
    }

    /// Brings a shipment and its parts in line with its course.
    fn refresh(&mut self, voyage: &Voyage, step: Step, at: Timestamp) {
        let course = &voyage.course;
        self.change(Kind::Shipment, voyage.shipment, |value| {
            value["status"] = json!(course.status());
            for (milestone, name) in
                [(1, "picked_up_in_full"), (2, "departure"), (3, "arrival"), (4, "delivered_in_full")]
            {
                let actual = course.actual(milestone);
                if step == Step::Delayed && milestone >= 3 {
                    value[format!("estimated_{name}_date")] = course.date(milestone);
                    value[format!("{name}_date")] = course.date(milestone);
                }
                if !actual.is_null() {
                    value[format!("{name}_date")] = actual.clone();
                }
                value[format!("actual_{name}_date")] = actual;
            }
            value["updated_at"] = json!(seed::stamp(at));
        });
        for (position, leg) in voyage.legs.iter().enumerate() {
            self.change(Kind::ShipmentLeg, *leg, |value| {
                value["estimated_departure_date"] = course.date(position + 1);
                value["actual_departure_date"] = course.actual(position + 1);
                value["estimated_arrival_date"] = course.date(position + 2);
                value["actual_arrival_date"] = course.actual(position + 2);
            });
        }
        for container in &voyage.containers {
            self.change(Kind::Container, *container, |value| {
                for (milestone, name) in [(1, "pickup"), (2, "departure"), (3, "arrival"), (4, "delivery")] {
                    value[format!("estimated_{name}_date")] = course.date(milestone);
                    value[format!("actual_{name}_date")] = course.actual(milestone);
                }
                if step == Step::Emptied {
                    value["empty_returned_date"] = json!(seed::plain(course.times[4] + 2 * DAY));
                }
            });
        }
        for (id, position) in &voyage.container_legs {
            self.change(Kind::ContainerLeg, *id, |value| value["dates"] = course.leg_dates(*position));
        }
        if step == Step::Delivered {
            let invoices = self.children(Kind::Invoice, "shipments", voyage.shipment).to_vec();
            for place in invoices {
                let item = self.at(Kind::Invoice, place).clone();
                let mut value = item.value.clone();
                value["status"] = json!("paid");
                value["balance"]["amount"] = json!("0.00");
                value["last_updated_at"] = json!(seed::stamp(at));
                self.replace(Kind::Invoice, &item.id, value);
            }
        }
    }

    fn tell_step(&mut self, voyage: &Voyage, step: Step, occurred: Timestamp, at: Timestamp) {
        let shipment = voyage.shipment;
        let leg = |position: usize| voyage.legs.get(position).copied().unwrap_or_default();
        let mut tell = |name: &str, kind: Kind, id: u64| self.tell(name, kind, id, shipment, occurred, at);
        match step {
            Step::Confirmed => tell("/shipment#booking_confirmed", Kind::Shipment, shipment),
            Step::PickedUp => tell("/shipment_leg#departed", Kind::ShipmentLeg, leg(0)),
            Step::Departed => {
                tell("/shipment_leg#arrived", Kind::ShipmentLeg, leg(0));
                for (id, _) in voyage.container_legs.iter().filter(|(_, position)| *position == 1) {
                    tell("/ocean/shipment_container_leg#loaded_on_board", Kind::ContainerLeg, *id);
                }
                tell("/shipment_leg#departed", Kind::ShipmentLeg, leg(1));
            }
            Step::Delayed => {
                tell("/shipment_leg#updated_estimated_time_of_arrival", Kind::ShipmentLeg, leg(1));
            }
            Step::Arrived => {
                tell("/shipment_leg#arrived", Kind::ShipmentLeg, leg(1));
                tell("/shipment_leg#departed", Kind::ShipmentLeg, leg(2));
            }
            Step::Held => tell("/shipment#customs_agriculture_hold", Kind::Shipment, shipment),
            Step::Released => {
                tell("/shipment#customs_entry_release_status_released", Kind::Shipment, shipment);
            }
            Step::Delivered => {
                tell("/shipment_leg#arrived", Kind::ShipmentLeg, leg(2));
                tell("/shipment#delivered_in_full", Kind::Shipment, shipment);
            }
            Step::Emptied => {
                for container in &voyage.containers {
                    tell("/ocean/shipment_container#empty_returned", Kind::Container, *container);
                }
            }
            Step::AtPort => {
                let invoices = self.children(Kind::Invoice, "shipments", shipment);
                let Some(place) = invoices.last() else { return };
                let id = self.at(Kind::Invoice, *place).id.clone();
                let (name, kind) = ("/invoice#invoice_shared", Kind::Invoice);
                self.emit(Happening { name, kind, id: &id, shipment, occurred, created: at });
            }
            // Told by nobody: who wants to know has to look at `updated_at`.
            Step::OnTheRoad => {}
        }
    }

    fn tell(
        &mut self,
        name: &str,
        kind: Kind,
        id: u64,
        shipment: u64,
        occurred: Timestamp,
        created: Timestamp,
    ) {
        self.emit(Happening { name, kind, id: &id.to_string(), shipment, occurred, created });
    }

    fn clear_customs(&mut self, voyage: &Voyage, is_released: bool, at: Timestamp) {
        let entries = self.children(Kind::CustomsEntry, "shipment", voyage.shipment).to_vec();
        for place in entries {
            let item = self.at(Kind::CustomsEntry, place).clone();
            let mut value = item.value.clone();
            value["release_status"] = json!(if is_released { "cleared" } else { "customs_hold" });
            value["release_date"] = if is_released { json!(seed::stamp(at)) } else { Value::Null };
            self.replace(Kind::CustomsEntry, &item.id, value);
        }
    }

    /// A booking gets what its amendment asks for.
    fn amend(&mut self, id: u64) {
        let Some(item) = self.get(Kind::BookingAmendment, &id.to_string()).cloned() else { return };
        let booking = item.value["booking_id"].as_u64().unwrap_or_default();
        self.change(Kind::BookingAmendment, id, |value| value["is_pending"] = json!(false));
        self.change(Kind::Booking, booking, |value| {
            let wanted = &item.value;
            for (from, to) in [
                ("new_name", "name"),
                ("new_origin_address", "origin_address"),
                ("new_cargo_ready_date", "cargo_ready_date"),
                ("new_cargo", "cargo"),
            ] {
                if !wanted[from].is_null() {
                    value[to] = wanted[from].clone();
                }
            }
            if wanted["new_metadata"].as_object().is_some_and(|map| !map.is_empty()) {
                value["metadata"] = wanted["new_metadata"].clone();
            }
            for (from, to) in [
                ("new_container_counts", "container_counts"),
                ("new_wants_pickup_service", "wants_pickup_service"),
                ("new_port_of_loading", "origin_port"),
                ("new_port_of_unloading", "destination_port"),
                ("new_product_descriptions", "product_descriptions"),
            ] {
                let is_wanted = !wanted[from].is_null() && wanted[from] != json!([]);
                for part in ["ocean_booking", "air_booking"] {
                    if is_wanted && value[part].get(to).is_some() {
                        value[part][to] = wanted[from].clone();
                    }
                }
            }
        });
    }

    /// Changes an object that is known by number; one that does not exist is passed over.
    fn change(&mut self, kind: Kind, id: u64, with: impl FnOnce(&mut Value)) {
        let id = id.to_string();
        if let Some(item) = self.get(kind, &id) {
            let mut value = item.value.clone();
            with(&mut value);
            self.replace(kind, &id, value);
        }
    }
}
