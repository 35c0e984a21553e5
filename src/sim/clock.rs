//! Pure. The simulator's clock: real time, until somebody moves it, stops it or lets it run faster.
//!
//! It stamps what happens (writes, events, tokens) and moves the shipments. It has nothing to do with how long a
//! fault lasts or a delivery waits: those are real time, as the caller's patience is.

use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};
use serde_json::{Value, json};

const FIELDS: &str = "now, advance, rate";

/// The clock.
#[derive(Debug)]
pub(super) struct Clock {
    /// None is real time.
    anchor: Option<Anchor>,
    /// How far the world has been moved.
    moved_to: Timestamp,
}

/// From when on the clock goes its own way.
#[derive(Debug, Clone, Copy)]
struct Anchor {
    shown: Timestamp,
    real: Timestamp,
    /// Seconds of this clock in a real one.
    rate: f64,
}

// === impl Clock ===

impl Clock {
    pub(super) fn new(real: Timestamp) -> Self {
        Self { anchor: None, moved_to: real }
    }

    /// What the clock shows.
    pub(super) fn now(&self, real: Timestamp) -> Timestamp {
        let Some(Anchor { shown, real: since, rate }) = self.anchor else {
            return real;
        };
        let elapsed = real.duration_since(since).as_secs_f64().max(0.0) * rate;
        SignedDuration::try_from_secs_f64(elapsed)
            .ok()
            .and_then(|elapsed| shown.checked_add(elapsed).ok())
            .unwrap_or(Timestamp::MAX)
    }

    /// Reads `{"now": instant}` or `{"advance": "1d 6h"}`, and `rate`. The error names the field.
    pub(super) fn set(&mut self, spec: &Value, real: Timestamp) -> Result<(), String> {
        let Value::Object(fields) = spec else {
            return Err(format!("clock: must be an object with one or more of {FIELDS}"));
        };
        if let Some(field) = fields.keys().find(|field| !FIELDS.split(", ").any(|known| known == *field)) {
            return Err(format!("clock.{field}: unknown field; known: {FIELDS}"));
        }
        let before = self.now(real);
        let shown = match (fields.get("now"), fields.get("advance")) {
            (None, None) => before,
            (Some(value), None) => value.as_str().and_then(|text| text.parse().ok()).ok_or_else(|| {
                format!("clock.now: must be an RFC 3339 instant such as \"2026-06-01T08:00:00Z\", not {value}")
            })?,
            (None, Some(value)) => duration(value)
                .and_then(|span| before.checked_add(span).ok())
                .ok_or_else(|| {
                    format!("clock.advance: must be seconds or a duration such as \"3d 6h\", and not negative, not {value}")
                })?,
            (Some(_), Some(_)) => return Err("clock.advance: give either now or advance".to_owned()),
        };
        let rate = match fields.get("rate") {
            None => self.anchor.map_or(1.0, |anchor| anchor.rate),
            Some(value) => value.as_f64().filter(|rate| (0.0..=1e7).contains(rate)).ok_or_else(|| {
                format!("clock.rate: must be a number from 0 (stands still) to 10000000, not {value}")
            })?,
        };
        self.anchor = Some(Anchor { shown, real, rate });
        // Set back, it moves nothing until it has gone forward from there.
        self.moved_to = self.moved_to.min(shown);
        Ok(())
    }

    /// Follows real time again.
    pub(super) fn reset(&mut self, real: Timestamp) {
        self.anchor = None;
        self.moved_to = self.moved_to.min(real);
    }

    /// From when to when the world is to be moved now, if at all.
    pub(super) fn take(&mut self, real: Timestamp) -> Option<(Timestamp, Timestamp)> {
        let (from, to) = (self.moved_to, self.now(real));
        self.moved_to = to;
        (from < to).then_some((from, to))
    }

    pub(super) fn describe(&self, real: Timestamp) -> Value {
        json!({
            "now": format!("{:.3}", self.now(real)),
            "rate": self.anchor.map_or(1.0, |anchor| anchor.rate),
            "is_real": self.anchor.is_none(),
        })
    }
}

fn duration(value: &Value) -> Option<SignedDuration> {
    let span = match value {
        Value::Number(seconds) => SignedDuration::try_from_secs_f64(seconds.as_f64()?).ok()?,
        Value::String(text) => {
            let span: Span = text.parse().ok()?;
            span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?
        }
        _ => return None,
    };
    (!span.is_negative()).then_some(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn it_follows_real_time_until_it_is_moved() {
        let start = at("2026-05-01T00:00:00Z");
        let mut clock = Clock::new(start);
        let later = at("2026-05-01T00:00:10Z");
        assert_eq!(clock.take(later), Some((start, later)));
        assert_eq!(clock.take(later), None);
        clock.set(&json!({"advance": "2d 1h"}), later).unwrap();
        assert_eq!(clock.now(later), at("2026-05-03T01:00:10Z"));
        assert_eq!(clock.take(later), Some((later, at("2026-05-03T01:00:10Z"))));
        clock.set(&json!({"rate": 60}), later).unwrap();
        assert_eq!(clock.now(at("2026-05-01T00:00:11Z")), at("2026-05-03T01:01:10Z"));
        clock.set(&json!({"rate": 0}), later).unwrap();
        assert_eq!(clock.now(at("2026-05-09T00:00:00Z")), at("2026-05-03T01:00:10Z"));
    }

    #[test]
    fn set_back_it_moves_nothing_until_it_goes_on() {
        let real = at("2026-05-01T00:00:00Z");
        let mut clock = Clock::new(real);
        let back = at("2026-03-01T00:00:00Z");
        clock.set(&json!({"now": "2026-03-01T00:00:00Z", "rate": 0}), real).unwrap();
        assert_eq!(clock.take(real), None);
        clock.set(&json!({"advance": 60}), real).unwrap();
        assert_eq!(clock.take(real), Some((back, at("2026-03-01T00:01:00Z"))));
    }

    #[test]
    fn a_wrong_field_is_named() {
        let real = at("2026-05-01T00:00:00Z");
        for (spec, name) in [
            (json!([]), "clock:"),
            (json!({"noww": 1}), "clock.noww"),
            (json!({"now": "soon"}), "clock.now"),
            (json!({"advance": "-3h"}), "clock.advance"),
            (json!({"advance": "3 moons"}), "clock.advance"),
            (json!({"advance": 1, "now": "2026-05-01T00:00:00Z"}), "clock.advance"),
            (json!({"rate": -1}), "clock.rate"),
        ] {
            let error = Clock::new(real).set(&spec, real).unwrap_err();
            assert!(error.starts_with(name), "{spec}: {error}");
        }
    }
}
