//! A write with a caller waiting: from its key to its answer, in a task of its own.
//!
//! 1. Under the book's lock: is it a repeat? Else it draws its place and joins its order.
//! 2. Its turn: at once, after older live ones, or never, because an older one is a record: then it is one too.
//! 3. What creates is `sending` on disk before its first byte leaves (`before_send`). Where the store does not take
//!    it, the write goes on all the same, is counted, and its answer says `Seawall-Durability: none`.
//! 4. The outcome by the table in [`admit`]: the answer first to the book, then to the caller, then to the disk.
//!
//! The caller may leave at any point; only the answer is lost to it then, and its key or an equal write finds it.

use super::admit::{self, Case, Decision};
use super::book::{Entry, bucket, order_key};
use super::buffer::Read;
use super::dedupe::{self, Repeat};
use super::hub::{self, Answer, PIECE, Queue, Trace};
use super::journal::{self, CommitError, Journal, With};
use super::order::Turn;
use super::record::{
    self, AnswerHead, AuditRow, Blob, CredentialRef, Digest, Reason, Record, kept_answer_fields,
};
use super::state::{self, Effects, Input, Progress, Rules, State};
use crate::clock;
use crate::config::raw::{OnUnknown, PassthroughWrites};
use crate::context::{BoxFuture, Call, Credential, RequestContext, Upstream};
use crate::error::ProxyError;
use crate::flexport::routes::WriteClass;
use crate::http::headers::{IDEMPOTENCY_KEY, SEAWALL_DURABILITY, SEAWALL_WRITE_ID};
use crate::http::{Body, retry_after};
use crate::ids::{OwnerId, PartitionId, WriteId};
use crate::store::Batch;
use crate::telemetry::RouteLabels;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot, watch};

/// How long the durable intent may take before the write goes on without.
const INTENT_LIMIT: Duration = Duration::from_secs(5);

/// A write as it came, with its body in memory.
pub(super) struct Draft {
    pub(super) ctx: Arc<RequestContext>,
    pub(super) upstream: Upstream,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) room: Option<Arc<OwnedSemaphorePermit>>,
    pub(super) partition: PartitionId,
    pub(super) owner: OwnerId,
    pub(super) class: WriteClass,
    pub(super) key: Option<String>,
    pub(super) order: Option<String>,
    pub(super) allows_twin: bool,
    pub(super) may_queue: bool,
    pub(super) max_age: Option<Duration>,
    pub(super) blob: Blob,
    pub(super) fingerprint: Digest,
    pub(super) twin: Digest,
}

/// What the caller gets.
pub(super) enum Reply {
    /// Flexport's answer.
    Answer(Response<Body>),
    /// A ticket: it is durable.
    Ticket(WriteId),
}

/// What a draft is.
pub(super) enum Entered {
    /// A new write: it has its place.
    New(Box<Live>),
    /// A repeat of an earlier one.
    Repeat(Repeat, WriteId, Option<watch::Receiver<()>>),
    /// A new request under a used key.
    Reused,
}

/// A new write in its place.
pub(super) struct Live {
    queue: Arc<Queue>,
    ctx: Arc<RequestContext>,
    upstream: Upstream,
    headers: HeaderMap,
    body: Bytes,
    _room: Option<Arc<OwnedSemaphorePermit>>,
    credential: Credential,
    record: Record,
    turn: Arc<Notify>,
    case: Case,
}

/// What is left to do on disk when the caller has its answer.
enum Rest {
    Nothing,
    /// This batch; `must`: until it is there.
    Store {
        id: WriteId,
        batch: Batch,
        must: bool,
        is_removal: bool,
        /// Something of it may be on disk already.
        has_intent: bool,
    },
}

/// Ends a live write in the book whose task ended without an outcome, which only a second bug behind the first can
/// bring about: otherwise its order would wait for ever.
struct Guard {
    queue: Arc<Queue>,
    id: WriteId,
    trace: Arc<Trace>,
}

/// What is left of a live write when its task panics.
struct Spare {
    queue: Arc<Queue>,
    ctx: Arc<RequestContext>,
    upstream: Upstream,
    body: Bytes,
    credential: Credential,
    turn: Arc<Notify>,
    case: Case,
    id: WriteId,
}

// === impl Draft ===

impl Queue {
    /// Looks for an earlier one; a new one joins its order under the same lock.
    pub(super) fn enter(self: &Arc<Self>, draft: Draft) -> Result<Entered, Box<Draft>> {
        let now = self.clock.now();
        let mut fresh = record_of(&draft, now);
        // In JSON a letter takes up at most two bytes, whatever fields may hold.
        let header = fresh.size() - fresh.body.len;
        if header > (record::MAX_HEADER / 3) as u64 && fresh.encode().len() > record::MAX_HEADER {
            return Err(Box::new(draft));
        }
        let turn = Arc::new(Notify::new());
        let earlier = self.with(|book| {
            if let Some((repeat, id)) = find(book, &draft, now) {
                let changes = (repeat == Some(Repeat::Wait)).then(|| book.watch(id)).flatten();
                return Some((repeat, id, changes));
            }
            fresh.seq = book.draw();
            book.join(Arc::new(fresh.clone()), turn.clone());
            None
        });
        Ok(match earlier {
            Some((Some(repeat), id, changes)) => Entered::Repeat(repeat, id, changes),
            Some((None, ..)) => Entered::Reused,
            None => Entered::New(Box::new(Live {
                queue: self.clone(),
                case: Case {
                    class: draft.class,
                    trusts_503: draft.ctx.route.queue.trusts_503,
                    may_queue: draft.may_queue,
                },
                credential: draft.ctx.identity().credential.clone(),
                ctx: draft.ctx,
                upstream: draft.upstream,
                headers: draft.headers,
                body: draft.body,
                _room: draft.room,
                record: fresh,
                turn,
            })),
        })
    }
}

/// The record of a draft, without its place.
fn record_of(draft: &Draft, now: jiff::Timestamp) -> Record {
    let ctx = &draft.ctx;
    let id = WriteId::random();
    let path = record::path_of(&ctx.asked.target);
    let order = match &draft.order {
        Some(name) => Arc::from(name.as_str()),
        None => super::order::name(&ctx.route.queue.order, path, &draft.body, id),
    };
    let longest = ctx.config.settings.queue.max_age.0;
    let max_age = draft.max_age.map_or(longest, |asked| asked.min(longest));
    let identity = ctx.identity();
    Record {
        write_id: id,
        seq: 0,
        order,
        partition: draft.partition,
        owner: draft.owner,
        caller: identity.caller.clone(),
        credential: match &identity.credential {
            Credential::Alias(name) => CredentialRef::Alias(name.clone()),
            Credential::Passed(_) | Credential::None => CredentialRef::Passed,
        },
        method: ctx.method.as_str().to_owned(),
        target: ctx.asked.target.clone(),
        fields: record::kept_request_fields(&draft.headers),
        route: ctx.route.label().into(),
        group: ctx.route.group.clone(),
        class: draft.class,
        key: draft.key.clone().unwrap_or_else(crate::ids::idempotency_key),
        key_is_callers: draft.key.is_some(),
        fingerprint: draft.fingerprint,
        twin: draft.twin,
        body: draft.blob,
        is_ticket: false,
        progress: Progress::new(),
        accepted_at: now,
        expires_at: clock::after(now, max_age),
        next_at: None,
        keep_until: None,
        answer: None,
        audited: 0,
    }
}

/// The earlier write that a draft repeats; without a `Repeat` where its key belongs to another request.
fn find(book: &super::book::Book, draft: &Draft, now: jiff::Timestamp) -> Option<(Option<Repeat>, WriteId)> {
    if let Some(key) = &draft.key {
        let id = book.index.by_key(&dedupe::key_digest(draft.partition, draft.owner, key))?;
        let entry = book.get(id)?;
        if entry.record.fingerprint != draft.fingerprint {
            return Some((None, id));
        }
        let repeat = dedupe::by_key(entry.earlier(now));
        return (repeat != Repeat::Fresh).then_some((Some(repeat), id));
    }
    if !draft.class.creates() || draft.allows_twin {
        return None;
    }
    let window = draft.ctx.config.settings.queue.duplicate_window.0;
    let answers_settled = draft.ctx.route.queue.answers_settled_twins;
    book.index.twins(&draft.twin).iter().rev().find_map(|id| {
        let entry = book.get(*id)?;
        let repeat = dedupe::by_twin(entry.earlier(now), window, answers_settled);
        (repeat != Repeat::Fresh).then_some((Some(repeat), *id))
    })
}

// === impl Live ===

impl Live {
    /// Its ticket.
    pub(super) fn id(&self) -> WriteId {
        self.record.write_id
    }

    /// The key that its answer names.
    pub(super) fn key(&self) -> &str {
        &self.record.key
    }

    /// Runs it to its end; what the caller gets comes through the channel.
    pub(super) fn spawn(self) -> oneshot::Receiver<Result<Reply, ProxyError>> {
        let (sender, receiver) = oneshot::channel();
        let queue = self.queue.clone();
        let writes = queue.writes.clone();
        writes.spawn(async move {
            let trace = Arc::new(Trace::default());
            let guard = Guard { queue: queue.clone(), id: self.id(), trace: trace.clone() };
            let spare = self.spare();
            let (reply, rest) = match uncaught(self.run(trace.clone())).await {
                Some(ended) => ended,
                None => spare.rescue(&trace).await,
            };
            // The caller may be gone: then the book and the disk alone know.
            let _ = sender.send(reply);
            if let Rest::Store { id, batch, must, is_removal, has_intent } = rest {
                // Bounded: with the store broken for long, not every write can wait for it in memory.
                let pieces = u32::try_from(batch.bytes() as u64 / PIECE + 1).unwrap_or(u32::MAX);
                let waits = must.then(|| queue.overdue.clone().try_acquire_many_owned(pieces).ok()).flatten();
                let result = queue.persist(batch, waits.is_some()).await;
                if must && waits.is_none() && result.is_err() {
                    tracing::error!(write_id = %id, "too much waits for the store: a write's outcome is not stored");
                }
                if is_removal {
                    // Nobody else takes it up from here: it is still there where it had to keep its place.
                    queue.with(|book| if result.is_ok() { book.taken_back(id) } else { book.owe(id) });
                } else {
                    queue.with(|book| {
                        book.change(id, |entry| {
                            if result.is_ok() {
                                entry.stored();
                                entry.answer = None;
                            }
                            entry.busy = false;
                            entry.volatile = result.is_err() && !has_intent;
                        })
                    });
                }
            }
            drop(guard);
        });
        receiver
    }

    fn spare(&self) -> Spare {
        Spare {
            queue: self.queue.clone(),
            ctx: self.ctx.clone(),
            upstream: self.upstream.clone(),
            body: self.body.clone(),
            credential: self.credential.clone(),
            turn: self.turn.clone(),
            case: self.case,
            id: self.record.write_id,
        }
    }

    async fn run(self, trace: Arc<Trace>) -> (Result<Reply, ProxyError>, Rest) {
        match self.turn().await {
            Turn::Go => {}
            Turn::Queue | Turn::Wait if self.case.may_queue => {
                let input = Input::Unsent { reason: Reason::Behind, status: None };
                return self.accept(input, &trace).await;
            }
            Turn::Queue => {
                let key = order_key(&self.record);
                let oldest = self.queue.with(|book| book.lanes.oldest(&key));
                let write_id = oldest.unwrap_or(self.record.write_id);
                let retry_after = Duration::from_secs(5);
                return (Err(ProxyError::OrderConflict { write_id, retry_after }), self.leave(&trace));
            }
            Turn::Wait => {
                let error = if self.queue.give_up.is_cancelled() {
                    ProxyError::Draining
                } else {
                    ProxyError::DeadlineBeforeSending
                };
                return (Err(error), self.leave(&trace));
            }
        }
        let mut call = Call::live(&self.ctx);
        call.before_send = Some(self.before_send(&trace));
        let request = self.request();
        let outcome = self.queue.attempt(self.upstream.clone(), request, call, &trace).await;
        self.pace(outcome.as_ref());
        let decision = match &outcome {
            Ok(answer) => admit::live(Ok((answer.parts.status, &answer.parts.headers)), self.case),
            Err(error) => admit::live(Err(error), self.case),
        };
        match decision {
            Decision::Pass => self.pass(outcome, &trace),
            Decision::Queue(input) => self.accept(input, &trace).await,
            Decision::Unknown(input) => self.unknown(input, &trace).await,
        }
    }

    /// Waits for its turn. `Wait`: the time was up first.
    async fn turn(&self) -> Turn {
        let key = order_key(&self.record);
        loop {
            match self.queue.with(|book| book.turn(&key, self.record.seq)) {
                Turn::Wait => {}
                turn => return turn,
            }
            tokio::select! {
                biased;
                () = self.turn.notified() => {}
                () = tokio::time::sleep_until(self.ctx.deadline) => return Turn::Wait,
                () = self.queue.give_up.cancelled() => return Turn::Wait,
            }
        }
    }

    fn request(&self) -> Request<Body> {
        let mut request = Request::new(Body::from(self.body.clone()));
        *request.method_mut() = self.ctx.method.clone();
        *request.uri_mut() = self.ctx.asked.target.parse().unwrap_or_default();
        *request.headers_mut() = self.headers.clone();
        set_key(request.headers_mut(), &self.record.key);
        request.extensions_mut().insert(self.ctx.clone());
        request
    }

    /// What must be on disk before the first byte: for what creates, that it is being sent.
    fn before_send(&self, trace: &Arc<Trace>) -> crate::context::BeforeSend {
        let trace = trace.clone();
        if !self.record.class.creates() {
            return Box::new(move || {
                Box::pin(async move {
                    trace.sent.store(true, Ordering::Release);
                    Ok(())
                })
            });
        }
        let (queue, body, token) = (self.queue.clone(), self.body.clone(), self.token());
        let mut record = self.record.clone();
        Box::new(move || -> BoxFuture<Result<(), ProxyError>> {
            Box::pin(async move {
                let now = queue.clock.now();
                let rules = Rules {
                    replayable: false,
                    blocks_behind_unknown: false,
                    blocks_behind_dead: false,
                    max_server_errors: u32::MAX,
                };
                if let Ok((progress, _)) = state::step(&record.progress, rules, Input::Send, now) {
                    let row = hub::row_of(&record, &progress, now, "caller", "sent", None);
                    record.progress = progress;
                    record.audited = 1;
                    let with =
                        With { body: Some(&body), token: token.as_ref(), audit: &[row], ..With::default() };
                    let batch = Journal::batch(&record, &with);
                    trace.intended.store(true, Ordering::Release);
                    match queue.journal.commit_within(batch, INTENT_LIMIT).await {
                        Ok(()) => trace.durable.store(true, Ordering::Release),
                        Err(error) => {
                            tracing::error!(%error, write_id = %record.write_id, "sent without a durable intent");
                            queue.metrics.queue_not_durable.inc();
                            trace.undurable.store(true, Ordering::Release);
                            if !matches!(error, CommitError::Unanswered(_)) {
                                // Nothing is there that would have to be settled.
                                trace.intended.store(false, Ordering::Release);
                            }
                        }
                    }
                }
                trace.sent.store(true, Ordering::Release);
                Ok(())
            })
        })
    }

    /// The passed credential, which is kept with the record, where that is allowed.
    fn token(&self) -> Option<HeaderValue> {
        match &self.credential {
            Credential::Passed(value)
                if self.ctx.config.settings.queue.passthrough == PassthroughWrites::Sealed =>
            {
                Some(value.clone())
            }
            Credential::Passed(_) | Credential::Alias(_) | Credential::None => None,
        }
    }

    /// What the replayer learns from a live outcome.
    fn pace(&self, outcome: Result<&Answer, &ProxyError>) {
        let bucket = bucket(&self.record);
        let now = self.queue.moment();
        let wait = |answer: &Answer| {
            let value = answer.parts.headers.get(header::RETRY_AFTER)?;
            retry_after::parse(value, self.queue.clock.now())
        };
        match outcome {
            Ok(answer) if answer.parts.status.is_success() => {
                let width = self.ctx.config.settings.queue.max_parallel as usize;
                self.queue.with(|book| book.pace.succeeded(&bucket, now, width));
                if let Credential::Passed(value) = &self.credential {
                    self.queue.remember_token(self.record.partition, value);
                }
            }
            Ok(answer) if answer.parts.status == http::StatusCode::TOO_MANY_REQUESTS => {
                let wait = wait(answer);
                self.queue.with(|book| book.pace.rest_payer(&bucket.0, &bucket.1, now, wait));
            }
            Ok(answer) if answer.parts.status == http::StatusCode::SERVICE_UNAVAILABLE => {
                if let Some(wait) = wait(answer) {
                    self.queue.with(|book| book.pace.rest_group(&bucket.1, now, Some(wait)));
                }
            }
            Err(ProxyError::BreakerOpen { retry_after, .. }) => {
                self.queue.with(|book| book.pace.rest_group(&bucket.1, now, Some(*retry_after)));
            }
            Err(ProxyError::RateLimited { retry_after }) => {
                self.queue.with(|book| book.pace.rest_payer(&bucket.0, &bucket.1, now, Some(*retry_after)));
            }
            Err(ProxyError::Connect(_)) => {
                self.queue.with(|book| book.pace.rest_group(&bucket.1, now, None));
            }
            Ok(_) | Err(_) => {}
        }
    }

    /// Its progress after the outcome: as if `sending` had been recorded, where bytes may have left.
    fn advance(&self, input: Input, trace: &Trace) -> (Progress, Effects) {
        let rules = hub::rules_of(&self.ctx.config, &self.record, &self.ctx.route);
        let now = self.queue.clock.now();
        let is_unsent = matches!(input, Input::Unsent { .. });
        let mut progress = self.record.progress.clone();
        if trace.sent.load(Ordering::Acquire) || !is_unsent {
            progress = state::step(&progress, rules, Input::Send, now).map_or(progress, |(next, _)| next);
        }
        state::step(&progress, rules, input, now).unwrap_or((progress, Effects::default()))
    }

    /// Writes down the step in the record, and gives its audit row.
    fn take_step(&mut self, progress: Progress, what: &'static str, trace: &Trace) -> AuditRow {
        let now = self.queue.clock.now();
        let mut row = hub::row_of(&self.record, &progress, now, "caller", what, None);
        row.from = trace.intended.load(Ordering::Acquire).then_some(State::Sending);
        self.record.progress = progress;
        // The row of the intent, where there was one, has the first number.
        self.record.audited = u32::from(trace.intended.load(Ordering::Acquire)) + 1;
        self.record.keep_until = hub::keep_until(&self.ctx.config, &self.record, now);
        row
    }

    /// The answer or error goes to the caller as it is.
    fn pass(
        mut self,
        outcome: Result<Answer, ProxyError>,
        trace: &Trace,
    ) -> (Result<Reply, ProxyError>, Rest) {
        let answer = match outcome {
            Ok(answer) => answer,
            Err(error) => {
                let delivery = crate::http::delivery::of_error(&error);
                if matches!(delivery, crate::http::Delivery::Ambiguous(_)) {
                    self.queue.tell_settled(&self.record, &self.ctx.route, None);
                }
                return (Err(error), self.leave(trace));
            }
        };
        let (status, headers) = (answer.parts.status, &answer.parts.headers);
        if status.is_success() || status.is_server_error() {
            self.queue.tell_settled(&self.record, &self.ctx.route, Some(headers));
        }
        let whole = match &answer.body {
            Read::Whole(bytes) => Some(bytes.clone()),
            Read::Long(_) => None,
        };
        let may_remember =
            admit::is_remembered(status) && (self.record.key_is_callers || self.record.class.creates());
        let envelope = whole.as_deref().filter(|_| may_remember && status.is_success());
        let input = admit::answered(status, envelope.and_then(admit::envelope_error));
        let mut is_doubtful = false;
        let rest = if may_remember && matches!(input, Input::Doubt { .. }) {
            // The caller has its answer, which says nothing for certain: no later one may stand for this, nor go past it.
            if self.record.class.creates() {
                is_doubtful = true;
                self.doubt(input, trace)
            } else {
                self.leave(trace)
            }
        } else if may_remember {
            let (mut progress, _) = self.advance(input, trace);
            progress.blocks = false; // The caller knows: nothing has to wait for a person.
            self.record.answer = Some(AnswerHead {
                status: status.as_u16(),
                fields: kept_answer_fields(headers),
                body: whole.as_ref().map(|bytes| journal::blob(bytes)),
            });
            let row = self.take_step(progress, "answered", trace);
            let with =
                With { answer: whole.as_deref(), forgets_body: true, audit: &[row], ..With::default() };
            let mut batch = Journal::batch(&self.record, &with);
            if trace.durable.load(Ordering::Acquire) {
                batch.settling();
            }
            let record = Arc::new(self.record.clone());
            self.queue.with(|book| {
                book.change(record.write_id, |entry| {
                    entry.record = record.clone();
                    entry.live = false;
                    entry.busy = true;
                    entry.answer = whole;
                })
            });
            let must = trace.intended.load(Ordering::Acquire);
            Rest::Store { id: self.record.write_id, batch, must, is_removal: false, has_intent: must }
        } else {
            self.leave(trace)
        };
        let body = match answer.body {
            Read::Whole(bytes) => Body::from(bytes),
            Read::Long(body) => body,
        };
        let mut response = Response::from_parts(answer.parts, body);
        set_key(response.headers_mut(), &self.record.key);
        if is_doubtful && let Ok(value) = HeaderValue::from_str(&self.record.write_id.to_string()) {
            response.headers_mut().insert(SEAWALL_WRITE_ID, value);
        }
        if trace.undurable.load(Ordering::Acquire) {
            response.headers_mut().insert(SEAWALL_DURABILITY, HeaderValue::from_static("none"));
        }
        (Ok(Reply::Answer(response)), rest)
    }

    /// It was answered, but by something that says nothing for certain: a ticket that says so.
    fn doubt(&mut self, input: Input, trace: &Trace) -> Rest {
        let batch = self.mark_unknown(input, false, trace);
        let has_intent = trace.intended.load(Ordering::Acquire);
        Rest::Store { id: self.record.write_id, batch, must: true, is_removal: false, has_intent }
    }

    /// It becomes a record, in its place; 202 only when it is on disk.
    async fn accept(mut self, input: Input, trace: &Trace) -> (Result<Reply, ProxyError>, Rest) {
        let (progress, effects) = self.advance(input, trace);
        self.record.is_ticket = true;
        let rest = if effects.backs_off {
            super::replay::backoff(&self.ctx.config, progress.attempts)
        } else {
            Duration::ZERO
        };
        let row = self.take_step(progress, "accepted", trace);
        self.record.next_at = effects.backs_off.then(|| clock::after(row.at, rest));
        if effects.touches {
            self.queue.tell_settled(&self.record, &self.ctx.route, None);
        }
        let record = Arc::new(self.record.clone());
        let id = record.write_id;
        let due = self.queue.moment() + rest;
        let settings = &self.ctx.config.settings.queue;
        let mut owes_much = false;
        let full = self.queue.with(|book| {
            let full = if book.has_many_owed() {
                None
            } else if book.unsettled >= settings.max_records as usize {
                Some(format!("it holds {} writes", book.unsettled))
            } else if book.unsettled_bytes + record.size() > settings.max_bytes.0 {
                Some(format!("it holds {} bytes", book.unsettled_bytes))
            } else if book.lanes.len(&order_key(&record)) > settings.max_per_key as usize {
                Some(format!("{} writes wait for `{}`", settings.max_per_key, record.order))
            } else {
                None
            };
            owes_much = book.has_many_owed();
            if full.is_none() && !owes_much {
                // From here on all behind it become records too; `busy`: not replayed before it is on disk.
                book.change(id, |entry| {
                    entry.record = record.clone();
                    entry.live = false;
                    entry.busy = true;
                    entry.unstored = true;
                    entry.due = due;
                });
            }
            full
        });
        if let Some(what) = full {
            let error = ProxyError::QueueFull { what, retry_after: Duration::from_secs(30) };
            return (Err(error), self.leave(trace));
        }
        if owes_much {
            let why = "the store still has to forget writes that it could not take".to_owned();
            return (Err(ProxyError::StoreFailed(why)), self.leave(trace));
        }
        let is_stored = trace.intended.load(Ordering::Acquire) && trace.durable.load(Ordering::Acquire);
        let token = self.token();
        let with = With {
            body: (!is_stored).then_some(&*self.body),
            token: token.as_ref().filter(|_| !is_stored),
            audit: &[row],
            ..With::default()
        };
        let mut batch = Journal::batch(&record, &with);
        if is_stored {
            batch.settling();
        }
        match self.queue.journal.commit(batch).await {
            Ok(()) => {
                self.queue.with(|book| book.change(id, Entry::stored));
                let route = RouteLabels { route: record.route.to_string() };
                self.queue.metrics.queue_accepted.get_or_create(&route).inc();
                self.queue.tell(&record);
                (Ok(Reply::Ticket(id)), Rest::Nothing)
            }
            Err(error) => {
                tracing::error!(%error, write_id = %id, "a write could not be stored; its caller is told so");
                let rest = match error {
                    // Perhaps it was written after all.
                    CommitError::Failed(_) | CommitError::Unanswered(_) => self.take_back(),
                    CommitError::Refused(_) | CommitError::TooLarge(_) => self.leave(trace),
                };
                (Err(ProxyError::StoreFailed(error.to_string())), rest)
            }
        }
    }

    /// It may have been applied and must not be sent again: a ticket that says so.
    async fn unknown(mut self, input: Input, trace: &Trace) -> (Result<Reply, ProxyError>, Rest) {
        let accepts = self.ctx.config.settings.queue.on_unknown == OnUnknown::Accept && self.case.may_queue;
        self.queue.tell_settled(&self.record, &self.ctx.route, None);
        let batch = self.mark_unknown(input, accepts, trace);
        let id = self.record.write_id;
        let is_stored = trace.durable.load(Ordering::Acquire);
        // Where `sending` is on disk, a restart comes to the same: then the caller need not wait.
        let is_durable = !trace.undurable.load(Ordering::Acquire);
        let key = Some(self.record.key.as_str().into());
        let error = ProxyError::OutcomeUnknown { write_id: id, key, is_durable };
        if accepts || !is_stored {
            let limit = if accepts { journal::COMMIT_LIMIT } else { INTENT_LIMIT };
            if self.queue.journal.commit_within(batch.clone(), limit).await.is_ok() {
                self.queue.with(|book| book.change(id, Entry::stored));
                return (if accepts { Ok(Reply::Ticket(id)) } else { Err(error) }, Rest::Nothing);
            }
        }
        let has_intent = trace.intended.load(Ordering::Acquire);
        (Err(error), Rest::Store { id, batch, must: true, is_removal: false, has_intent })
    }

    /// It is unknown in the book; gives the batch that makes it so on disk. `accepts`: its ticket is a promise.
    fn mark_unknown(&mut self, input: Input, accepts: bool, trace: &Trace) -> Batch {
        let (progress, _) = self.advance(input, trace);
        self.record.is_ticket = true;
        let row = self.take_step(progress, "unknown", trace);
        let record = Arc::new(self.record.clone());
        let id = record.write_id;
        let is_stored = trace.durable.load(Ordering::Acquire);
        self.queue.with(|book| {
            book.change(id, |entry| {
                entry.record = record.clone();
                entry.live = false;
                entry.busy = true;
                // A repeat is told 504, which promises nothing; a 202 only when it is on disk.
                entry.unstored = accepts && !is_stored;
            })
        });
        self.queue.tell(&record);
        self.queue.alarm(format!(
            "the outcome of {} ({id}) is not known: find out at Flexport and resolve it",
            record.route
        ));
        let token = self.token();
        let with = With {
            body: (!is_stored).then_some(&*self.body),
            token: token.as_ref().filter(|_| !is_stored),
            audit: &[row],
            ..With::default()
        };
        let mut batch = Journal::batch(&record, &with);
        if is_stored {
            batch.settling();
        }
        batch
    }

    /// It leaves no trace: not in the book, and (where something may be there) not on disk.
    fn leave(&self, trace: &Trace) -> Rest {
        let id = self.record.write_id;
        self.queue.with(|book| book.remove(id));
        if !trace.intended.load(Ordering::Acquire) {
            return Rest::Nothing;
        }
        self.removal()
    }

    /// It is no write of ours any more, but a start may find it on disk until its removal is there: so long it keeps its
    /// key, its twin and its place. Else a repeat goes out, and after a crash so does this.
    fn take_back(&self) -> Rest {
        let id = self.record.write_id;
        self.queue.with(|book| {
            book.owed += 1;
            book.change(id, |entry| {
                entry.live = false;
                entry.busy = true;
                entry.unstored = true;
                entry.withdrawn = true;
            })
        });
        self.removal()
    }

    fn removal(&self) -> Rest {
        let mut record = self.record.clone();
        record.audited = 2;
        let (id, batch) = (record.write_id, Journal::removal(&record));
        Rest::Store { id, batch, must: true, is_removal: true, has_intent: true }
    }
}

impl Queue {
    /// A newer passed credential of a partition with records replaces theirs.
    fn remember_token(&self, partition: PartitionId, value: &HeaderValue) {
        if !self.with(|book| book.unsettled > 0) {
            return;
        }
        let mut value = value.clone();
        value.set_sensitive(true);
        let mut tokens = self.tokens.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if tokens.get(&partition) != Some(&value) {
            tokens.insert(partition, value);
            drop(tokens);
            let payer = super::pace::Payer::Partition(partition);
            self.with(|book| {
                book.pace.forgive_payer(&payer);
                book.has_changed = true;
            });
        }
    }
}

// === impl Spare ===

impl Spare {
    /// The write's task panicked: what may have been sent is in doubt, and what was not is told to its caller.
    async fn rescue(self, trace: &Trace) -> (Result<Reply, ProxyError>, Rest) {
        tracing::error!(write_id = %self.id, "a write's task panicked; this is a bug");
        let error = ProxyError::Internal("the write's task panicked".to_owned());
        let found = self.queue.with(|book| book.get(self.id).map(|entry| entry.record.clone()));
        let Some(found) = found else { return (Err(error), Rest::Nothing) };
        let mut record = (*found).clone();
        record.progress = Progress::new();
        record.answer = None;
        record.is_ticket = false;
        let live = Live {
            queue: self.queue,
            ctx: self.ctx,
            upstream: self.upstream,
            headers: HeaderMap::new(),
            body: self.body,
            _room: None,
            credential: self.credential,
            record,
            turn: self.turn,
            case: self.case,
        };
        if !trace.sent.load(Ordering::Acquire) && !trace.intended.load(Ordering::Acquire) {
            // Something of it may be on its way to the disk all the same.
            return (Err(error), live.take_back());
        }
        match admit::live(Err(&error), live.case) {
            Decision::Queue(input) => live.accept(input, trace).await,
            Decision::Unknown(input) => live.unknown(input, trace).await,
            Decision::Pass => (Err(error), live.leave(trace)),
        }
    }
}

/// `None` where it panicked.
async fn uncaught<F: Future>(work: F) -> Option<F::Output> {
    let mut work = std::pin::pin!(work);
    std::future::poll_fn(|context| {
        let polled = std::panic::AssertUnwindSafe(|| work.as_mut().poll(context));
        match std::panic::catch_unwind(polled) {
            Ok(polled) => polled.map(Some),
            Err(_) => std::task::Poll::Ready(None),
        }
    })
    .await
}

// === impl Guard ===

impl Drop for Guard {
    fn drop(&mut self) {
        let (id, trace) = (self.id, &self.trace);
        self.queue.with(|book| {
            if !book.get(id).is_some_and(|entry| entry.live) {
                return;
            }
            tracing::error!(write_id = %id, "a write's task ended without an outcome; this is a bug");
            if !trace.sent.load(Ordering::Acquire) && !trace.intended.load(Ordering::Acquire) {
                book.remove(id);
                return;
            }
            // Its key and its twin stay taken until the next start, which finds what is on disk.
            book.change(id, |entry| {
                let mut record = (*entry.record).clone();
                record.progress.state = State::Unknown;
                record.progress.maybe_applied = true;
                record.progress.reason = Some(Reason::Crashed);
                record.is_ticket = true;
                entry.record = Arc::new(record);
                entry.live = false;
                entry.busy = true;
            });
        });
    }
}

/// Sets the key of a request or an answer.
pub(super) fn set_key(headers: &mut HeaderMap, key: &str) {
    if let Ok(value) = HeaderValue::from_str(key) {
        headers.insert(IDEMPOTENCY_KEY, value);
    }
}
