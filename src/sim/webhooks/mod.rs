//! Pure. The account's webhook: where it goes, how it is signed, and which deliveries are late, doubled or lost.
//!
//! What Flexport promises is little (at least once, in no order, exactly 200 or again), so all of it can be asked
//! for here. The dice are of the seed; a delivery that nothing is asked for leaves at once and in order.
//! `deliver` is what sends.

pub(super) mod deliver;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use bytes::Bytes;
use http::Uri;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::hex;
use super::world::Item;

/// Deliveries that are remembered.
const LOG_KEPT: usize = 10_000;
const FIELDS: &str = "url, secret, signatures, late, duplicate, drop, bad_signature, attempts, retry_ms, timeout_ms, concurrency";

/// The webhook and what became of its deliveries.
#[derive(Debug)]
pub(super) struct Webhooks {
    settings: Option<Arc<Settings>>,
    pause: Option<Pause>,
    held: Vec<Planned>,
    log: VecDeque<Value>,
    counts: Counts,
    rng: fastrand::Rng,
}

/// What is set by hand in the account's settings, and how badly the deliveries go.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) url: Uri,
    secret: String,
    signs_sha256: bool,
    signs_sha1: bool,
    late: Option<Late>,
    duplicate: f64,
    drop: f64,
    bad_signature: f64,
    pub(super) attempts: u32,
    pub(super) retry: Duration,
    pub(super) timeout: Duration,
    pub(super) concurrency: usize,
}

#[derive(Debug, Clone, Copy)]
struct Late {
    share: f64,
    min: Duration,
    max: Duration,
}

/// What becomes of events while the webhook is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pause {
    /// They are delivered when it goes on.
    Keep,
    /// They are never delivered; `GET /events` knows them.
    Drop,
}

/// How one event's delivery departs from the settings.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wish {
    pub(super) delay: Option<Duration>,
    pub(super) copies: Option<u32>,
    pub(super) is_dropped: bool,
}

/// A delivery that is to be made.
#[derive(Debug, Clone)]
pub(super) struct Planned {
    pub(super) event: u64,
    pub(super) name: String,
    pub(super) body: Bytes,
    pub(super) delay: Duration,
    pub(super) is_badly_signed: bool,
    pub(super) settings: Arc<Settings>,
}

#[derive(Debug, Default)]
struct Counts {
    delivered: u64,
    failed: u64,
    late: u64,
    duplicated: u64,
    dropped: u64,
}

// === impl Webhooks ===

impl Webhooks {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            settings: None,
            pause: None,
            held: Vec::new(),
            log: VecDeque::new(),
            counts: Counts::default(),
            rng: fastrand::Rng::with_seed(seed ^ 0xb00c),
        }
    }

    /// Replaces the settings; `None` is no webhook.
    pub(super) fn set(&mut self, settings: Option<Settings>) {
        self.settings = settings.map(Arc::new);
    }

    pub(super) fn pause(&mut self, how: Pause) {
        self.pause = Some(how);
    }

    /// Goes on; what was held is to be delivered now.
    pub(super) fn resume(&mut self) -> Vec<Planned> {
        self.pause = None;
        std::mem::take(&mut self.held)
    }

    /// The deliveries that an event leads to.
    pub(super) fn plan(&mut self, item: &Item, wish: Wish, now: Timestamp) -> Vec<Planned> {
        let Some(settings) = self.settings.clone() else {
            return Vec::new();
        };
        let event = item.value["id"].as_u64().unwrap_or_default();
        let name = item.value["type"].as_str().unwrap_or_default().to_owned();
        // Each die is cast whatever the others say, so that one setting does not change what another one strikes.
        let dice = [(); 4].map(|()| self.rng.f64());
        if wish.is_dropped || dice[0] < settings.drop || self.pause == Some(Pause::Drop) {
            self.counts.dropped += 1;
            self.note(event, &name, now, json!({"dropped": true}));
            return Vec::new();
        }
        let copies = wish.copies.unwrap_or(if dice[1] < settings.duplicate { 2 } else { 1 });
        self.counts.duplicated += u64::from(copies.saturating_sub(1));
        let drawn = settings
            .late
            .filter(|late| dice[2] < late.share)
            .map(|late| late.min + late.max.saturating_sub(late.min).mul_f64(self.rng.f64()));
        let delay = wish.delay.or(drawn).unwrap_or_default();
        if !delay.is_zero() {
            self.counts.late += 1;
        }
        let is_badly_signed = dice[3] < settings.bad_signature;
        let planned = Planned { event, name, body: item.json().clone(), delay, is_badly_signed, settings };
        let planned = vec![planned; copies as usize];
        if self.pause.is_some() {
            self.held.extend(planned);
            return Vec::new();
        }
        planned
    }

    /// Writes down how an attempt ended.
    pub(super) fn attempted(
        &mut self,
        planned: &Planned,
        attempt: u32,
        outcome: Result<u16, String>,
        now: Timestamp,
    ) {
        match &outcome {
            Ok(200) => self.counts.delivered += 1,
            _ if attempt >= planned.settings.attempts => self.counts.failed += 1,
            _ => {}
        }
        let mut fate = json!({"attempt": attempt});
        match outcome {
            Ok(status) => fate["status"] = json!(status),
            Err(error) => fate["error"] = json!(error),
        }
        self.note(planned.event, &planned.name, now, fate);
    }

    fn note(&mut self, event: u64, name: &str, now: Timestamp, fate: Value) {
        if self.log.len() == LOG_KEPT {
            self.log.pop_front();
        }
        let mut entry = json!({"event_id": event, "type": name, "at": format!("{now:.3}")});
        if let (Value::Object(entry), Value::Object(fate)) = (&mut entry, fate) {
            entry.extend(fate);
        }
        self.log.push_back(entry);
    }

    pub(super) fn describe(&self) -> Value {
        json!({
            "settings": self.settings.as_ref().map(|settings| settings.describe()),
            "paused": self.pause.map(|pause| if pause == Pause::Keep { "keep" } else { "drop" }),
            "held": self.held.len(),
            "counts": {
                "delivered": self.counts.delivered,
                "failed": self.counts.failed,
                "late": self.counts.late,
                "duplicated": self.counts.duplicated,
                "dropped": self.counts.dropped,
            },
            "deliveries": self.log,
        })
    }
}

// === impl Settings ===

impl Settings {
    /// Reads the settings. The error names the field.
    pub(super) fn parse(spec: &Value) -> Result<Self, String> {
        let Value::Object(fields) = spec else {
            return Err(format!("webhooks: must be an object with url, secret and perhaps more of {FIELDS}"));
        };
        if let Some(field) = fields.keys().find(|field| !FIELDS.split(", ").any(|known| known == *field)) {
            return Err(format!("webhooks.{field}: unknown field; known: {FIELDS}"));
        }
        let text = |field: &str| fields.get(field).and_then(Value::as_str);
        let url = text("url")
            .and_then(|url| url.parse::<Uri>().ok())
            .filter(|url| url.scheme_str() == Some("http") && url.host().is_some());
        let url = url.ok_or("webhooks.url: must be an http:// URL such as \"http://127.0.0.1:8462/\"")?;
        let secret = text("secret").filter(|secret| !secret.is_empty());
        let secret =
            secret.ok_or("webhooks.secret: must be a string, with which the deliveries are signed")?;
        let signatures = match fields.get("signatures") {
            None => vec!["sha256", "sha1"],
            Some(value) => {
                let list =
                    value.as_array().map(|list| list.iter().filter_map(Value::as_str).collect::<Vec<_>>());
                list.filter(|list| list.iter().all(|one| ["sha256", "sha1"].contains(one)))
                    .ok_or("webhooks.signatures: must be a list with \"sha256\", \"sha1\", both or nothing")?
            }
        };
        Ok(Self {
            url,
            secret: secret.to_owned(),
            signs_sha256: signatures.contains(&"sha256"),
            signs_sha1: signatures.contains(&"sha1"),
            late: late(fields)?,
            duplicate: share(fields, "duplicate")?,
            drop: share(fields, "drop")?,
            bad_signature: share(fields, "bad_signature")?,
            attempts: whole(fields, "attempts", 5, 1..=100)? as u32,
            retry: Duration::from_millis(whole(fields, "retry_ms", 1000, 0..=86_400_000)?),
            timeout: Duration::from_millis(whole(fields, "timeout_ms", 5000, 1..=600_000)?),
            concurrency: whole(fields, "concurrency", 1, 1..=64)? as usize,
        })
    }

    /// The signature fields of a body: name and value.
    pub(super) fn signatures(&self, body: &[u8], is_bad: bool) -> Vec<(&'static str, String)> {
        let secret = if is_bad { b"not the secret".as_slice() } else { self.secret.as_bytes() };
        let sign = |algorithm| hex(hmac::sign(&hmac::Key::new(algorithm, secret), body).as_ref());
        let mut list = Vec::with_capacity(2);
        if self.signs_sha256 {
            list.push(("x-hub-signature-256", format!("sha256={}", sign(hmac::HMAC_SHA256))));
        }
        if self.signs_sha1 {
            list.push(("x-hub-signature", format!("sha1={}", sign(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY))));
        }
        list
    }

    /// The settings but the secret.
    fn describe(&self) -> Value {
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let signatures = [("sha256", self.signs_sha256), ("sha1", self.signs_sha1)];
        json!({
            "url": self.url.to_string(),
            "signatures": signatures.iter().filter(|one| one.1).map(|one| one.0).collect::<Vec<_>>(),
            "late": self.late.map(|late| json!({
                "share": late.share, "ms_min": millis(late.min), "ms_max": millis(late.max),
            })),
            "duplicate": self.duplicate,
            "drop": self.drop,
            "bad_signature": self.bad_signature,
            "attempts": self.attempts,
            "retry_ms": millis(self.retry),
            "timeout_ms": millis(self.timeout),
            "concurrency": self.concurrency,
        })
    }
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("url", &self.url).finish_non_exhaustive()
    }
}

fn late(fields: &Map<String, Value>) -> Result<Option<Late>, String> {
    let given = match fields.get("late") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(given)) => given,
        Some(_) => {
            return Err(
                "webhooks.late: must be an object such as {\"share\":0.2,\"ms_min\":100,\"ms_max\":5000}"
                    .to_owned(),
            );
        }
    };
    if let Some(field) = given.keys().find(|field| !["share", "ms_min", "ms_max"].contains(&field.as_str())) {
        return Err(format!("webhooks.late.{field}: unknown field; known: share, ms_min, ms_max"));
    }
    let millis = |field: &str| {
        let value = given.get(field).and_then(Value::as_u64);
        value.ok_or_else(|| format!("webhooks.late.{field}: must be a number of milliseconds"))
    };
    let (min, max) = (millis("ms_min")?, millis("ms_max")?);
    if max < min {
        return Err("webhooks.late.ms_max: must not be below ms_min".to_owned());
    }
    let share = given
        .get("share")
        .map_or(Some(1.0), |value| value.as_f64().filter(|share| (0.0..=1.0).contains(share)));
    let share = share.ok_or("webhooks.late.share: must be a number from 0 to 1")?;
    Ok(Some(Late { share, min: Duration::from_millis(min), max: Duration::from_millis(max) }))
}

fn share(fields: &Map<String, Value>, field: &str) -> Result<f64, String> {
    let value = fields.get(field).map_or(Some(0.0), Value::as_f64);
    value
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| format!("webhooks.{field}: must be a share from 0 to 1"))
}

fn whole(
    fields: &Map<String, Value>,
    field: &str,
    default: u64,
    range: std::ops::RangeInclusive<u64>,
) -> Result<u64, String> {
    let value = fields.get(field).map_or(Some(default), Value::as_u64);
    value.filter(|value| range.contains(value)).ok_or_else(|| {
        format!("webhooks.{field}: must be a number from {} to {}", range.start(), range.end())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_field_is_named() {
        let with = |field: &str, value: Value| {
            let mut spec = json!({"url": "http://127.0.0.1:1/", "secret": "s"});
            spec[field] = value;
            Settings::parse(&spec).map(|_| ())
        };
        assert_eq!(with("duplicate", json!(0.5)), Ok(()));
        for (field, value) in [
            ("url", json!("ftp://x")),
            ("url", json!("https://x")),
            ("secret", json!("")),
            ("signatures", json!(["md5"])),
            ("late", json!({"ms_min": 5, "ms_max": 1})),
            ("late", json!({"ms": 5})),
            ("drop", json!(2)),
            ("attempts", json!(0)),
            ("colour", json!(1)),
        ] {
            let error = with(field, value.clone()).unwrap_err();
            assert!(error.starts_with(&format!("webhooks.{field}")), "{field} {value}: {error}");
        }
    }

    /// RFC 4231, test case 2, and RFC 2202's like it.
    #[test]
    fn signatures_are_those_of_the_standards() {
        let spec = json!({"url": "http://127.0.0.1:1/", "secret": "Jefe"});
        let signed = Settings::parse(&spec).unwrap().signatures(b"what do ya want for nothing?", false);
        assert_eq!(
            signed,
            [
                (
                    "x-hub-signature-256",
                    "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843".to_owned()
                ),
                ("x-hub-signature", "sha1=effcdf6ae5eb2fa2d27416d5f184df9c259a7c79".to_owned()),
            ]
        );
    }
}
