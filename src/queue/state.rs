//! Pure. The life of a write, as one total function.
//!
//! ```text
//! pending → sending → done | dead | unknown | waiting | pending (provably not sent: no attempt used)
//! pending, waiting → expired | cancelled        unknown → (operator) done | pending | dead
//! dead, expired → (operator) pending            `held` and `blocks` are marks beside the state
//! ```
//!
//! Invariants, held by the property test: what may have been applied and creates is never `pending`, `waiting` or
//! `sending` again without an operator's word; a settled write moves only by an operator; a write that may have been
//! applied cannot be cancelled; an attempt is counted exactly when bytes may have left.

use super::record::Reason;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Where a write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Provably not sent yet.
    Pending,
    /// On its way; after a crash: perhaps sent.
    Sending,
    /// To be sent again, after an outcome that is not known or that asks for it.
    Waiting,
    /// Flexport took it.
    Done,
    /// Flexport refused it for good, or it cannot be sent.
    Dead,
    /// It may have been applied, and sending it again could apply it twice.
    Unknown,
    /// It waited for too long.
    Expired,
    /// Its owner or an operator took it back before it was sent.
    Cancelled,
}

/// A write's state with what its next steps depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Where it is.
    pub state: State,
    /// Attempts whose bytes may have left.
    #[serde(default)]
    pub attempts: u32,
    /// Those of them that were answered with a 5xx while others of its group succeeded.
    #[serde(default)]
    pub server_errors: u32,
    /// Whether an attempt may have been applied without our knowing.
    #[serde(default)]
    pub maybe_applied: bool,
    /// An operator keeps it back.
    #[serde(default)]
    pub held: bool,
    /// It keeps those behind it in its order waiting although it is dead or unknown.
    #[serde(default)]
    pub blocks: bool,
    /// Why it is where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The status of Flexport's answer that led here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// When it reached a state that it does not leave by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled_at: Option<Timestamp>,
}

/// What the steps of a write depend on besides its progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Whether it may be sent again after an outcome that is not known.
    pub replayable: bool,
    /// Whether it blocks its order when unknown.
    pub blocks_behind_unknown: bool,
    /// Whether it blocks its order when dead.
    pub blocks_behind_dead: bool,
    /// Answered 5xx after which it is dead, each while others succeed.
    pub max_server_errors: u32,
}

/// What happened to a write, or is asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Its bytes are about to leave.
    Send,
    /// Provably nothing left, or the application said that it did not act.
    Unsent {
        /// What kept it.
        reason: Reason,
        /// The refusing answer.
        status: Option<u16>,
    },
    /// It may have been applied.
    Doubt {
        /// What makes it doubtful.
        reason: Reason,
        /// The answer that says nothing for certain.
        status: Option<u16>,
        /// Whether others of its group succeeded since its last 5xx.
        others_succeed: bool,
    },
    /// Flexport took it.
    Success {
        /// The answer's status.
        status: u16,
    },
    /// Flexport refused it for good.
    Rejected {
        /// How.
        reason: Reason,
        /// The answer's status.
        status: u16,
    },
    /// Flexport asks to send it another time, and did nothing.
    Later {
        /// The answer's status.
        status: u16,
    },
    /// It cannot be sent: its body or its credential is lost.
    Lost {
        /// What is lost.
        reason: Reason,
    },
    /// The process ended meanwhile.
    Crash,
    /// The store came back older than it was acknowledged to be: this may have been sent and settled since.
    RollBack,
    /// Its time is up.
    Expire,
    /// Its owner or an operator takes it back.
    Cancel,
    /// An operator keeps it back.
    Hold,
    /// An operator lets it go on.
    Release,
    /// An operator wants a dead or expired one sent after all.
    Retry,
    /// An operator knows what became of an unknown one, or decides about a dead one, or about one that is held and may
    /// have been applied.
    Resolve(Verdict),
}

/// What an operator knows of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Flexport has it.
    Applied,
    /// Flexport does not have it: send it.
    NotApplied,
    /// Give it up.
    Drop,
}

/// What has to be done after a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// It has an outcome or may have been applied: tell who holds copies of what it touches.
    pub touches: bool,
    /// It should rest before its next attempt.
    pub backs_off: bool,
}

/// Why a step is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub &'static str);

// === impl State ===

impl State {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Pending,
        Self::Sending,
        Self::Waiting,
        Self::Done,
        Self::Dead,
        Self::Unknown,
        Self::Expired,
        Self::Cancelled,
    ];

    /// Whether its outcome is still open.
    pub fn is_unsettled(self) -> bool {
        match self {
            Self::Pending | Self::Sending | Self::Waiting | Self::Unknown => true,
            Self::Done | Self::Dead | Self::Expired | Self::Cancelled => false,
        }
    }

    /// As tickets and metrics name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Sending => "sending",
            Self::Waiting => "waiting",
            Self::Done => "done",
            Self::Dead => "dead",
            Self::Unknown => "unknown",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }
}

impl std::str::FromStr for State {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|state| state.as_str()).collect();
            format!("state: `{text}` is none of {}", names.join(", "))
        })
    }
}

// === impl Progress ===

impl Progress {
    /// A write that nobody has tried to send.
    pub fn new() -> Self {
        Self {
            state: State::Pending,
            attempts: 0,
            server_errors: 0,
            maybe_applied: false,
            held: false,
            blocks: false,
            reason: None,
            status: None,
            settled_at: None,
        }
    }

    /// Whether it has a place in its order: it will be sent, or nothing behind it may.
    pub fn has_place(&self) -> bool {
        self.blocks || matches!(self.state, State::Pending | State::Sending | State::Waiting)
    }

    /// Whether a replay may take it up.
    pub fn is_sendable(&self) -> bool {
        !self.held && matches!(self.state, State::Pending | State::Waiting)
    }

    /// Whether a person may say what became of it.
    fn is_resolvable(&self) -> bool {
        match self.state {
            State::Unknown | State::Dead => true,
            State::Pending | State::Waiting => self.held && self.maybe_applied,
            State::Sending | State::Done | State::Expired | State::Cancelled => false,
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

/// One step. `now` stamps what settles.
pub fn step(
    from: &Progress,
    rules: Rules,
    input: Input,
    now: Timestamp,
) -> Result<(Progress, Effects), Refused> {
    use State::{Cancelled, Dead, Done, Expired, Pending, Sending, Unknown, Waiting};
    let mut to = from.clone();
    let mut effects = Effects::default();
    let unsent_state = if from.maybe_applied { Waiting } else { Pending };
    match (input, from.state) {
        (Input::Send, Pending | Waiting) if from.held => return Err(Refused("an operator holds it")),
        (Input::Send, Pending | Waiting) => {
            to.state = Sending;
            to.attempts += 1;
            to.reason = None;
            to.status = None;
        }
        // The intent may not have been taken when the refusal came: then there is no attempt to take back.
        (Input::Unsent { reason, status }, Pending | Waiting | Sending) => {
            if from.state == Sending {
                to.attempts = to.attempts.saturating_sub(1);
            }
            to.state = unsent_state;
            to.reason = Some(reason);
            to.status = status;
        }
        (Input::Doubt { reason, status, others_succeed }, Sending) => {
            to.maybe_applied = true;
            to.reason = Some(reason);
            to.status = status;
            effects.touches = true;
            // In an outage every write is answered so: only what fails while others succeed tells against it.
            if status.is_some() && others_succeed {
                to.server_errors += 1;
            }
            if !rules.replayable {
                settle(&mut to, Unknown, rules, None);
            } else if others_succeed && to.server_errors >= rules.max_server_errors {
                to.reason = Some(Reason::Poison);
                settle(&mut to, Dead, rules, Some(now));
            } else {
                to.state = Waiting;
                effects.backs_off = true;
            }
        }
        (Input::Crash, Sending) => {
            to.maybe_applied = true;
            to.reason = Some(Reason::Crashed);
            effects.touches = true;
            if rules.replayable {
                to.state = Waiting;
            } else {
                settle(&mut to, Unknown, rules, None);
            }
        }
        (Input::RollBack, Pending | Waiting | Sending) => {
            to.maybe_applied = true;
            to.reason = Some(Reason::RolledBack);
            effects.touches = true;
            if rules.replayable {
                // Its value may be older than what Flexport holds now: a person lets it go on, or resolves it.
                to.state = Waiting;
                to.held = true;
            } else {
                settle(&mut to, Unknown, rules, None);
            }
        }
        (Input::Success { status }, Sending) => {
            to.reason = None;
            to.status = Some(status);
            to.maybe_applied = false;
            effects.touches = true;
            settle(&mut to, Done, rules, Some(now));
        }
        (Input::Rejected { reason, status }, Sending) => {
            to.reason = Some(reason);
            to.status = Some(status);
            effects.touches = from.maybe_applied;
            settle(&mut to, Dead, rules, Some(now));
        }
        (Input::Later { status }, Sending) => {
            to.reason = Some(Reason::AskedToWait);
            to.status = Some(status);
            to.state = Waiting;
            effects.backs_off = true;
        }
        (Input::Lost { reason }, Pending | Waiting) => {
            to.reason = Some(reason);
            settle(&mut to, Dead, rules, Some(now));
        }
        (Input::Expire, Pending | Waiting) => {
            to.reason = Some(Reason::MaxAge);
            settle(&mut to, Expired, rules, Some(now));
        }
        (Input::Cancel, Pending | Waiting) if from.maybe_applied => {
            return Err(Refused(
                "it may have been applied already, so it cannot be cancelled: its outcome tells, or hold it and resolve it",
            ));
        }
        (Input::Cancel, Pending | Waiting) => {
            to.reason = Some(Reason::Operator);
            settle(&mut to, Cancelled, rules, Some(now));
        }
        (Input::Hold, Pending | Waiting) => to.held = true,
        (Input::Release, _) if from.held => to.held = false,
        // A dead or unknown head that blocks: those behind it may go on, its own state stays.
        (Input::Release, Dead | Unknown) if from.blocks => to.blocks = false,
        (Input::Retry, Dead | Expired) if from.maybe_applied && !rules.replayable => {
            return Err(Refused("it may have been applied: resolve it as not applied to have it sent"));
        }
        (Input::Retry, Dead | Expired) => reopen(&mut to, if from.maybe_applied { Waiting } else { Pending }),
        (Input::Resolve(_), _) if !from.is_resolvable() => {
            return Err(Refused(
                "only an unknown or a dead write can be resolved, or one that is held and may have been applied",
            ));
        }
        (Input::Resolve(Verdict::Applied), _) => {
            to.reason = Some(Reason::Operator);
            to.maybe_applied = false;
            to.held = false;
            to.blocks = false;
            to.state = Done;
            to.settled_at = Some(now);
            effects.touches = true;
        }
        (Input::Resolve(Verdict::NotApplied), _) => {
            to.maybe_applied = false;
            reopen(&mut to, Pending);
        }
        (Input::Resolve(Verdict::Drop), _) => {
            to.reason = Some(Reason::Operator);
            to.held = false;
            to.blocks = false;
            to.state = Dead;
            to.settled_at = Some(now);
        }
        (Input::Send, Sending) => return Err(Refused("it is being sent already")),
        (Input::Cancel | Input::Hold, Sending) => return Err(Refused("it is being sent")),
        (Input::Cancel | Input::Hold | Input::Expire, Unknown) => {
            return Err(Refused("it may have been applied: an operator has to resolve it"));
        }
        (Input::Retry, _) => return Err(Refused("only a dead or an expired write can be sent again")),
        (Input::Release, _) => return Err(Refused("nothing holds it")),
        (Input::Cancel | Input::Hold, Done | Dead | Expired | Cancelled) => {
            return Err(Refused("it is settled"));
        }
        (
            Input::Send
            | Input::Unsent { .. }
            | Input::Doubt { .. }
            | Input::Success { .. }
            | Input::Rejected { .. }
            | Input::Later { .. }
            | Input::Lost { .. }
            | Input::Crash
            | Input::RollBack
            | Input::Expire,
            _,
        ) => return Err(Refused("it is not in a state for this")),
    }
    Ok((to, effects))
}

fn settle(to: &mut Progress, state: State, rules: Rules, at: Option<Timestamp>) {
    to.state = state;
    to.settled_at = at;
    to.held = false;
    to.blocks = match state {
        State::Unknown => rules.blocks_behind_unknown,
        State::Dead => rules.blocks_behind_dead,
        State::Pending
        | State::Sending
        | State::Waiting
        | State::Done
        | State::Expired
        | State::Cancelled => false,
    };
}

fn reopen(to: &mut Progress, state: State) {
    to.state = state;
    to.reason = Some(Reason::Operator);
    to.settled_at = None;
    to.held = false;
    to.blocks = false;
    to.server_errors = 0;
}

#[cfg(test)]
mod tests;
