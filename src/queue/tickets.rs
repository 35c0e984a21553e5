//! What callers and operators see of writes, and what they may ask of them.

use super::book::{Entry, order_key};
use super::hub::{Queue, not_found};
use super::pace::Payer;
use super::record::{AuditRow, Reason, Record, header_map};
use super::state::{Input, State, Verdict};
use crate::clock;
use crate::context::Identity;
use crate::error::ProxyError;
use crate::flexport::problem::{self, Asked};
use crate::flexport::routes::WriteClass;
use crate::http::Body;
use crate::http::headers::SEAWALL_SOURCE;
use crate::ids::{OwnerId, WriteId};
use http::{HeaderValue, Response, StatusCode};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// A write as its owner and operators see it. No secrets.
#[derive(Clone, Debug, Serialize)]
pub struct TicketView {
    /// Its ticket.
    pub write_id: WriteId,
    /// Where it is.
    pub state: State,
    /// Why it is there.
    pub reason: Option<Reason>,
    /// Its method.
    pub method: String,
    /// Its path and query.
    pub path: String,
    /// Its route, such as `POST /bookings`.
    pub route: Arc<str>,
    /// R, N, P or X.
    pub class: WriteClass,
    /// What it keeps its order with.
    pub order_key: Arc<str>,
    /// How many of its order stand before it.
    pub ahead: usize,
    /// Whether it waits for an older one of its order.
    pub is_blocked: bool,
    /// Whether an operator holds it.
    pub is_held: bool,
    /// Whether it keeps those behind it waiting although it will not be sent by itself.
    pub blocks: bool,
    /// Who may read it.
    pub owner: OwnerId,
    /// The declared caller.
    pub caller: Option<Arc<str>>,
    /// As whom it goes: an alias, or `passed:<partition>`.
    pub credential: String,
    /// Attempts whose bytes may have left.
    pub attempts: u32,
    /// Whether it may have been applied.
    pub maybe_applied: bool,
    /// When it came.
    pub accepted_at: Timestamp,
    /// When it is tried next, where that is known.
    pub next_attempt_at: Option<Timestamp>,
    /// When it is given up.
    pub expires_at: Timestamp,
    /// When it was settled.
    pub settled_at: Option<Timestamp>,
    /// The status of Flexport's answer, final or the last that stands behind the state.
    pub answer: Option<AnswerView>,
    /// The key that goes with every attempt.
    pub idempotency_key: String,
    /// Bytes of its body.
    pub body_bytes: u64,
    /// Its steps, oldest first; only on a single ticket.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<AuditRow>,
}

/// Flexport's answer, in short.
#[derive(Clone, Debug, Serialize)]
pub struct AnswerView {
    /// Its status.
    pub status: u16,
    /// Whether it is the final one, and kept under `/result`.
    pub is_final: bool,
}

/// Which writes to list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// In this state.
    pub state: Option<State>,
    /// Of this route, such as `POST /bookings`.
    pub route: Option<String>,
    /// Of this order.
    pub order_key: Option<String>,
    /// Accepted at least this long ago.
    pub older_than: Option<Duration>,
    /// Behind this place; see [`Page::next`].
    pub after: Option<u64>,
    /// At most so many; 0 is 100.
    pub limit: usize,
}

/// A page of writes, by their places.
#[derive(Clone, Debug, Serialize)]
pub struct Page {
    /// The writes.
    pub writes: Vec<TicketView>,
    /// Where the next page begins.
    pub next: Option<u64>,
}

/// How the queue is.
#[derive(Clone, Debug, Serialize)]
pub struct Stats {
    /// Writes by state.
    pub depth: std::collections::BTreeMap<&'static str, usize>,
    /// Unsettled ones.
    pub unsettled: usize,
    /// Their bytes.
    pub unsettled_bytes: u64,
    /// Age of the oldest unsettled one, in seconds.
    pub oldest_seconds: u64,
    /// Writes whose callers wait now.
    pub live: usize,
    /// Replays in flight.
    pub replaying: usize,
    /// Credentials that rest.
    pub paused: Vec<PausedView>,
    /// Groups that rest.
    pub resting: Vec<PausedView>,
}

/// Something that rests.
#[derive(Clone, Debug, Serialize)]
pub struct PausedView {
    /// The credential or the group.
    pub name: String,
    /// `unauthorized`, `forbidden`, `rate_limited` or `refused`.
    pub reason: &'static str,
    /// Seconds until it is tried again.
    pub seconds: u64,
}

/// What a 202 says of a ticket.
pub(super) struct Facts {
    pub(super) state: State,
    pub(super) order_key: Arc<str>,
    pub(super) ahead: usize,
    pub(super) accepted_at: Timestamp,
    pub(super) expires_at: Timestamp,
    pub(super) retry_after: Duration,
}

// === impl Queue ===

impl Queue {
    /// The writes that a filter lets through, oldest first.
    pub fn list(&self, filter: &Filter) -> Page {
        let limit = if filter.limit == 0 { 100 } else { filter.limit.min(1000) };
        let now = self.clock.now();
        let moment = self.moment();
        self.with(|book| {
            let mut found: Vec<_> = book
                .iter()
                .filter(|entry| !entry.live && !entry.withdrawn && !entry.is_answer_only())
                .filter(|entry| filter.state.is_none_or(|state| entry.state() == state))
                .filter(|entry| filter.route.as_deref().is_none_or(|route| &*entry.record.route == route))
                .filter(|entry| filter.order_key.as_deref().is_none_or(|key| &*entry.record.order == key))
                .filter(|entry| {
                    let age = clock::since(now, entry.record.accepted_at);
                    filter.older_than.is_none_or(|span| age >= span)
                })
                .filter(|entry| filter.after.is_none_or(|after| entry.record.seq > after))
                .map(|entry| (entry.record.seq, entry.record.write_id))
                .collect();
            found.sort_unstable();
            let next = (found.len() > limit).then(|| found[limit - 1].0);
            found.truncate(limit);
            let view = |(_, id): &(u64, WriteId)| Some(view(book, book.get(*id)?, now, moment));
            Page { writes: found.iter().filter_map(view).collect(), next }
        })
    }

    /// A write with its history.
    pub async fn get(&self, id: WriteId) -> Option<TicketView> {
        let (now, moment) = (self.clock.now(), self.moment());
        let shown = |book: &mut super::book::Book| {
            let entry = book.get(id).filter(|entry| !entry.withdrawn)?;
            Some(view(book, entry, now, moment))
        };
        let mut ticket = self.with(shown)?;
        ticket.history = self.journal.history(id).await.unwrap_or_default();
        Some(ticket)
    }

    /// A ticket for its owner; to everybody else it does not exist.
    pub async fn ticket_json(&self, id: WriteId, viewer: &Identity) -> Result<Value, ProxyError> {
        self.check_owner(id, viewer)?;
        let ticket = self.get(id).await.ok_or_else(|| not_found(id))?;
        let mut json = serde_json::json!({ "_object": "/seawall/write" });
        let facts = serde_json::to_value(ticket).map_err(|error| ProxyError::Internal(error.to_string()))?;
        if let (Some(json), Value::Object(facts)) = (json.as_object_mut(), facts) {
            json.extend(facts);
        }
        Ok(json)
    }

    /// Whether this identity may see the ticket: its owner, or the same partition.
    pub fn check_owner(&self, id: WriteId, viewer: &Identity) -> Result<(), ProxyError> {
        self.with(|book| {
            let entry = book.get(id).filter(|entry| !entry.withdrawn).ok_or_else(|| not_found(id))?;
            let record = &entry.record;
            let is_owner = viewer.owner == Some(record.owner);
            // Where the caller is declared, the partition alone is not enough: others may share the credential.
            let is_partition = record.caller.is_none() && viewer.partition == Some(record.partition);
            if is_owner || is_partition { Ok(()) } else { Err(not_found(id)) }
        })
    }

    /// Flexport's final answer.
    pub async fn result(&self, id: WriteId, asked: &Asked) -> Result<Response<Body>, ProxyError> {
        self.stored_answer(id, asked).await
    }

    /// Waits until a write is settled, or unknown, at most so long. Tells whether it is.
    pub async fn wait(&self, id: WriteId, up_to: Duration) -> bool {
        let until = tokio::time::Instant::now() + up_to;
        loop {
            let changes = self.with(|book| {
                let entry = book.get(id)?;
                let is_settled =
                    !entry.live && (!entry.state().is_unsettled() || entry.state() == State::Unknown);
                if is_settled { None } else { book.watch(id) }
            });
            let Some(mut changes) = changes else { return true };
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(until) => return false,
                () = self.give_up.cancelled() => return false,
            }
        }
    }

    /// Takes a write back that was certainly not applied.
    pub async fn cancel(
        self: &Arc<Self>,
        id: WriteId,
        actor: &str,
        why: &str,
    ) -> Result<TicketView, ProxyError> {
        self.operate(id, Input::Cancel, actor, "cancelled", Some(why.to_owned())).await
    }

    /// Says what became of an unknown write, or decides about a dead one. Not applied: it is sent from its own place
    /// by number, so before whatever of its order still waits.
    pub async fn resolve(
        self: &Arc<Self>,
        id: WriteId,
        verdict: Verdict,
        flexport_id: Option<&str>,
        actor: &str,
        reason: &str,
    ) -> Result<TicketView, ProxyError> {
        let why = match flexport_id {
            Some(found) => format!("{reason} (Flexport's id: {found})"),
            None => reason.to_owned(),
        };
        let what = match verdict {
            Verdict::Applied => "resolved: applied",
            Verdict::NotApplied => "resolved: not applied",
            Verdict::Drop => "resolved: dropped",
        };
        self.operate(id, Input::Resolve(verdict), actor, what, Some(why)).await
    }

    /// Has a dead or expired write sent after all.
    pub async fn retry(
        self: &Arc<Self>,
        id: WriteId,
        actor: &str,
        why: &str,
    ) -> Result<TicketView, ProxyError> {
        self.operate(id, Input::Retry, actor, "retried", Some(why.to_owned())).await
    }

    /// Keeps a write back.
    pub async fn hold(
        self: &Arc<Self>,
        id: WriteId,
        actor: &str,
        why: &str,
    ) -> Result<TicketView, ProxyError> {
        self.operate(id, Input::Hold, actor, "held", Some(why.to_owned())).await
    }

    /// Lets a held write go on, or those behind a dead or unknown one.
    pub async fn release(
        self: &Arc<Self>,
        id: WriteId,
        actor: &str,
        why: &str,
    ) -> Result<TicketView, ProxyError> {
        self.operate(id, Input::Release, actor, "released", Some(why.to_owned())).await
    }

    async fn operate(
        self: &Arc<Self>,
        id: WriteId,
        input: Input,
        actor: &str,
        what: &'static str,
        why: Option<String>,
    ) -> Result<TicketView, ProxyError> {
        self.transition(id, input, actor, what, why).await?;
        self.get(id).await.ok_or_else(|| not_found(id))
    }

    /// Numbers for dashboards.
    pub fn stats(&self) -> Stats {
        let (now, moment) = (self.clock.now(), self.moment());
        let seconds = |until: Duration| problem::whole_seconds(until.saturating_sub(moment));
        self.with(|book| Stats {
            depth: State::ALL.iter().map(|state| (state.as_str(), book.depth(*state))).collect(),
            unsettled: book.unsettled,
            unsettled_bytes: book.unsettled_bytes,
            oldest_seconds: book.oldest().map_or(0, |at| clock::since(now, at).as_secs()),
            live: book.iter().filter(|entry| entry.live).count(),
            replaying: book.pace.in_flight(),
            paused: (book.pace.paused(moment))
                .map(|(payer, pause)| PausedView {
                    name: payer.to_string(),
                    reason: if pause.is_unauthorized { "unauthorized" } else { "rate_limited" },
                    seconds: seconds(pause.until),
                })
                .chain(book.pace.forbidden().map(|((payer, group), until)| PausedView {
                    name: format!("{payer} in {group}"),
                    reason: "forbidden",
                    seconds: seconds(until),
                }))
                .collect(),
            resting: book
                .pace
                .resting(moment)
                .map(|(group, until)| PausedView {
                    name: group.to_string(),
                    reason: "refused",
                    seconds: seconds(until),
                })
                .collect(),
        })
    }

    /// The answer that is kept of a write.
    pub(super) async fn stored_answer(
        &self,
        id: WriteId,
        asked: &Asked,
    ) -> Result<Response<Body>, ProxyError> {
        let (record, in_memory) = self.with(|book| {
            let entry = book.get(id).ok_or_else(|| not_found(id))?;
            let state = entry.state();
            if entry.live || state.is_unsettled() {
                let state = if entry.live { "being sent" } else { state.as_str() };
                let message = format!("the write {id} is {state}: there is no final answer yet");
                return Err(ProxyError::Conflict { message });
            }
            Ok((entry.record.clone(), entry.answer.clone()))
        })?;
        let Some(head) = &record.answer else {
            let state = record.progress.state.as_str();
            let message = format!("the write {id} is {state}, and Flexport gave no answer to it");
            return Err(ProxyError::Conflict { message });
        };
        let body = match (head.body, in_memory) {
            (_, Some(bytes)) => Some(bytes),
            (Some(blob), None) => self.journal.answer(id, blob).await.ok(),
            (None, None) => None,
        };
        let status = StatusCode::from_u16(head.status).unwrap_or(StatusCode::OK);
        let mut response = if let Some(bytes) = body {
            let mut response = Response::new(Body::from(bytes));
            *response.headers_mut() = header_map(&head.fields);
            *response.status_mut() = status;
            response
        } else {
            // Too long to keep, or lost: its status and what it names are all that is left.
            let body = problem::envelope(asked, &Value::Null, &Value::Null);
            let mut response = problem::json_response(status, "application/json", &body);
            let mut fields = header_map(&head.fields);
            fields.remove(http::header::CONTENT_TYPE);
            fields.remove(http::header::CONTENT_ENCODING);
            response.headers_mut().extend(fields);
            response
        };
        response.headers_mut().insert(SEAWALL_SOURCE, HeaderValue::from_static("queue"));
        Ok(response)
    }

    /// The groups in which something waits that makes something new.
    pub fn waiting_creates(&self) -> Vec<Arc<str>> {
        self.with(|book| {
            let waits = |entry: &&Entry| {
                entry.record.class.creates() && matches!(entry.state(), State::Pending | State::Waiting)
            };
            let mut groups: Vec<_> =
                book.iter().filter(waits).map(|entry| Arc::from(&*entry.record.group)).collect();
            groups.sort_unstable();
            groups.dedup();
            groups
        })
    }

    /// Whether it stands for a record that cannot be read.
    pub(super) fn is_unread(&self, id: WriteId) -> bool {
        self.with(|book| book.get(id).is_some_and(|entry| entry.unread))
    }

    pub(super) fn key_of(&self, id: WriteId) -> Option<String> {
        self.with(|book| book.get(id).map(|entry| entry.record.key.clone()))
    }

    pub(super) fn ticket_facts(&self, id: WriteId) -> Option<Facts> {
        let moment = self.moment();
        self.with(|book| {
            let entry = book.get(id)?;
            let record = &entry.record;
            let group = book.pace.resting(moment).find(|(group, _)| **group == record.group);
            let until = group.map_or(Duration::ZERO, |(_, until)| until).max(entry.due);
            let retry_after =
                until.saturating_sub(moment).clamp(Duration::from_secs(2), Duration::from_secs(60));
            Some(Facts {
                state: shown(entry),
                order_key: record.order.clone(),
                ahead: book.lanes.ahead(&order_key(record), record.seq),
                accepted_at: record.accepted_at,
                expires_at: record.expires_at,
                retry_after,
            })
        })
    }
}

/// The state as it is shown: a live write is on its way.
fn shown(entry: &Entry) -> State {
    if entry.live { State::Sending } else { entry.state() }
}

fn view(book: &super::book::Book, entry: &Entry, now: Timestamp, moment: Duration) -> TicketView {
    let record: &Record = &entry.record;
    let progress = &record.progress;
    let ahead = book.lanes.ahead(&order_key(record), record.seq);
    let is_sendable = matches!(progress.state, State::Pending | State::Waiting);
    let status = record.answer.as_ref().map(|answer| (answer.status, true));
    let status = status.or(progress.status.map(|status| (status, false)));
    TicketView {
        write_id: record.write_id,
        state: shown(entry),
        reason: progress.reason,
        method: record.method.clone(),
        path: record.target.clone(),
        route: record.route.clone(),
        class: record.class,
        order_key: record.order.clone(),
        ahead,
        is_blocked: is_sendable && ahead > 0,
        is_held: progress.held,
        blocks: progress.blocks,
        owner: record.owner,
        caller: record.caller.clone(),
        credential: Payer::of(&record.credential, record.partition).to_string(),
        attempts: progress.attempts,
        maybe_applied: progress.maybe_applied,
        accepted_at: record.accepted_at,
        next_attempt_at: (is_sendable && ahead == 0)
            .then(|| clock::after(now, entry.due.saturating_sub(moment))),
        expires_at: record.expires_at,
        settled_at: progress.settled_at,
        answer: status.map(|(status, is_final)| AnswerView { status, is_final }),
        idempotency_key: record.key.clone(),
        body_bytes: record.body.len,
        history: Vec::new(),
    }
}
