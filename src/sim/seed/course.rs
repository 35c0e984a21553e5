//! Pure. A shipment's course: where it goes, and when it passes which milestone.

use serde_json::{Value, json};

use super::towns::{DESTINATION_AIRPORTS, ORIGIN_AIRPORTS, ORIGINS, TOWNS, Town};
use super::{DAY, transit};

/// A shipment's course, from which all its dates and those of its parts come.
#[derive(Debug, Clone)]
pub(in crate::sim) struct Course {
    pub(in crate::sim) is_air: bool,
    pub(in crate::sim) is_lcl: bool,
    pub(in crate::sim) origin: Town,
    pub(in crate::sim) destination: Town,
    /// Index into [`STATUSES`].
    pub(in crate::sim) stage: usize,
    /// Ready, picked up, departed, arrived, delivered: seconds.
    pub(in crate::sim) times: [i64; 5],
}

// === impl Course ===

impl Course {
    pub(in crate::sim) fn cast(rng: &mut fastrand::Rng, created: i64, stage: usize) -> Self {
        let is_air = rng.u8(..100) < 20;
        let (origin, destination) = if is_air {
            (rng.usize(ORIGIN_AIRPORTS..ORIGINS), rng.usize(DESTINATION_AIRPORTS..TOWNS.len()))
        } else {
            (rng.usize(..ORIGIN_AIRPORTS), rng.usize(ORIGINS..DESTINATION_AIRPORTS))
        };
        let ready = created + rng.i64(5..12) * DAY;
        let picked_up = ready + rng.i64(1..3) * DAY;
        let departed = picked_up + rng.i64(2..6) * DAY;
        let arrived = departed + if is_air { rng.i64(1..3) } else { rng.i64(14..35) } * DAY;
        let delivered = arrived + rng.i64(2..9) * DAY;
        Self {
            is_air,
            is_lcl: !is_air && rng.u8(..100) < 25,
            origin: Town::at(origin),
            destination: Town::at(destination),
            stage,
            times: [ready, picked_up, departed, arrived, delivered],
        }
    }

    /// A milestone's date once it was passed: 1 picked up, 2 departed, 3 arrived, 4 delivered.
    pub(in crate::sim) fn actual(&self, milestone: usize) -> Value {
        // The stage at which each milestone is behind the shipment.
        let passed_at = [0, 1, 3, 4, 6][milestone];
        if self.stage >= passed_at { self.date(milestone) } else { Value::Null }
    }

    pub(in crate::sim) fn status(&self) -> &'static str {
        super::STATUSES[self.stage]
    }

    /// The `dates` of a container on one leg.
    pub(in crate::sim) fn leg_dates(&self, position: usize) -> Value {
        json!({
            "estimated_departure_date": self.date(position + 1),
            "actual_departure_date": self.actual(position + 1),
            "estimated_arrival_date": self.date(position + 2),
            "actual_arrival_date": self.actual(position + 2),
        })
    }

    pub(in crate::sim) fn date(&self, milestone: usize) -> Value {
        let town = if milestone < 3 { &self.origin } else { &self.destination };
        json!(transit(self.times[milestone], town.offset))
    }
}
