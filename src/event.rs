//! What happens, told to whoever watches.
//!
//! The bus is bounded and lossy: it is for watching (logs, the operators' event stream). What must happen is a direct
//! call, and what must be counted is a metric or a durable row. Events carry no bodies and no secrets.

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::broadcast;

/// Something that happened.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub kind: Kind,
}

/// The kinds of events.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Kind {
    /// A breaker's automatic state or override changed.
    Breaker {
        /// Which.
        scope: String,
        /// The state before.
        from: String,
        /// The state now.
        to: String,
        /// Why.
        reason: String,
    },
    /// A write was accepted, moved or settled.
    Write {
        /// Its ticket.
        write_id: String,
        /// Its state now.
        state: String,
        /// Such as `POST /bookings`.
        route: String,
    },
    /// A breaker's override ends within ten minutes.
    OverrideEnds {
        /// Which breaker.
        scope: String,
        /// What is set.
        mode: String,
        /// When it ends.
        until: Timestamp,
        /// Why it was set, and by whom.
        reason: String,
    },
    /// Flexport's status page says something else.
    StatusPage {
        /// Its indicator before, or `unknown`.
        from: String,
        /// Its indicator now.
        to: String,
        /// In the page's words.
        description: String,
    },
    /// A part of Seawall needs a person.
    Alarm {
        /// Which part.
        what: String,
        /// What is wrong and what to do.
        message: String,
    },
}

/// Where events are told. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Bus {
    sender: broadcast::Sender<Event>,
    clock: crate::clock::Clock,
}

// === impl Bus ===

impl Bus {
    /// A bus that keeps the last 1,024 events for slow watchers.
    pub fn new(clock: crate::clock::Clock) -> Self {
        Self { sender: broadcast::Sender::new(1024), clock }
    }

    /// Tells an event; nobody has to listen.
    pub fn tell(&self, kind: Kind) {
        let _ = self.sender.send(Event { at: self.clock.now(), kind });
    }

    /// Listens from now on; who falls behind is told how many it missed.
    pub fn watch(&self) -> broadcast::Receiver<Event> {
        self.sender.subscribe()
    }
}
