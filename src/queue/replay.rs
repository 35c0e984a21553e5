//! Sends records when Flexport is well again: in their orders, paced, with today's credential and the same key.
//!
//! The replayer is one task that picks heads and starts a task for each. It wakes with every change of the book, with
//! every transition of a breaker, and when something falls due. It asks no breaker itself: it calls the upstream in
//! the lane `Replay` and learns from the refusal, which costs microseconds and neither a sync nor an attempt, since
//! `sending` is made durable by `before_send`, behind every admission.
//!
//! A record's order is free again only when its outcome is on disk: otherwise a crash would replay it over the next.

use super::admit::{self, Case, Peers, Rest, Verdict};
use super::book::bucket;
use super::buffer::Read;
use super::hub::{self, Answer, Queue, Trace};
use super::journal::{self, CommitError, Journal, LoadError, With};
use super::pace::doubled;
use super::record::{AnswerHead, CredentialRef, Reason, Record, header_map, kept_answer_fields};
use super::state::{self, Input, State};
use crate::clock;
use crate::config::Snapshot;
use crate::context::{BoxFuture, Call, Credential, Lane};
use crate::error::ProxyError;
use crate::http::{Body, retry_after};
use http::{HeaderValue, Method, Request, header};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long nothing is sent after the store failed or could not be read.
const STORE_REST: Duration = Duration::from_secs(5);
/// How often a reload is looked for while a credential is not accepted.
const RELOAD_CHECK: Duration = Duration::from_secs(2);
/// How long a record rests that got 403 while nothing proves its credential: longer than its group does.
const FORBIDDEN: Duration = super::pace::UNAUTHORIZED.saturating_add(Duration::from_secs(2));
/// How long a passed credential may be refused before its records are given up: nobody can change it.
const PASSED_REFUSED: Duration = Duration::from_secs(3600);

/// The rest before a further attempt: full jitter over `first × 2ⁿ`, but not nothing.
pub(super) fn backoff(config: &Snapshot, attempts: u32) -> Duration {
    let settings = &config.settings.queue;
    let longest = doubled(settings.backoff.0, attempts.saturating_sub(1), settings.backoff_max.0);
    let millis = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX).max(1);
    Duration::from_millis(fastrand::u64(millis / 4..=millis))
}

// === impl Queue ===

impl Queue {
    /// The replayer.
    pub(super) async fn replay(self: Arc<Self>, mut changes: watch::Receiver<u64>) {
        let mut generation = (self.config)().generation;
        let mut is_watched = true;
        loop {
            if self.stop.is_cancelled() {
                return;
            }
            let config = (self.config)();
            let now = self.moment();
            if config.generation != generation {
                generation = config.generation;
                self.with(|book| book.forgive(now));
            }
            let max = config.settings.queue.max_parallel as usize;
            while let Some(record) = self.with(|book| book.pick(now, max)) {
                let queue = self.clone();
                self.writes.spawn(async move { queue.replay_one(record).await });
            }
            let (next, is_refused) = self.with(|book| {
                let is_refused = book.pace.paused(now).any(|(_, pause)| pause.is_unauthorized)
                    || book.pace.forbidden().next().is_some();
                (book.pace.next(max), is_refused)
            });
            let mut until = next.map(|moment| self.instant(moment));
            if is_refused {
                let check = Instant::now() + RELOAD_CHECK;
                until = Some(until.map_or(check, |at| at.min(check)));
            }
            let timer = async {
                match until {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.wake.notified() => {}
                changed = changes.changed(), if is_watched => {
                    is_watched = changed.is_ok();
                    let now = self.moment();
                    self.with(|book| book.pace.stir(now));
                }
                () = timer => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    async fn replay_one(self: Arc<Self>, record: Arc<Record>) {
        // A bug in here must not keep the order for ever, nor send twice: the place stays taken, the record as it is
        // on disk, and the next start decides.
        let queue = self.clone();
        let taken = record.clone();
        let run = tokio::spawn(async move { queue.replay_taken(&taken).await });
        if run.await.is_err() {
            self.alarm(format!(
                "the replay of {} ({}) ended by a bug; it and its order rest until a restart",
                record.route, record.write_id
            ));
            self.with(|book| {
                book.pace.ended(&record.group);
                book.has_changed = true;
            });
        }
    }

    async fn replay_taken(self: &Arc<Self>, record: &Arc<Record>) {
        let config = (self.config)();
        let lost = |reason| Verdict { input: Input::Lost { reason }, rest: Rest::None };
        let rests =
            Verdict { input: Input::Unsent { reason: Reason::StoreFailed, status: None }, rest: Rest::All };
        let trace = Arc::new(Trace::default());
        let now = self.clock.now();
        if record.expires_at <= now && self.may_expire(now) {
            let verdict = Verdict { input: Input::Expire, rest: Rest::None };
            return self.settle(record, verdict, None, &trace, &config).await;
        }
        let body = match self.journal.body(record.write_id, record.body).await {
            Ok(body) => body,
            Err(LoadError::Lost(why)) => {
                self.alarm(format!("the body of {} ({}) is lost: {why}", record.route, record.write_id));
                return self.settle(record, lost(Reason::Undecryptable), None, &trace, &config).await;
            }
            Err(LoadError::Unreadable(why)) => {
                tracing::error!(why, write_id = %record.write_id, "a queued body cannot be read at present");
                return self.settle(record, rests, None, &trace, &config).await;
            }
        };
        let newer = self.newer_token(record);
        let credential = match self.credential_of(record, newer.as_ref()).await {
            Ok(credential) => credential,
            Err(LoadError::Lost(why)) => {
                self.alarm(format!(
                    "the credential of {} ({}) is lost: {why}",
                    record.route, record.write_id
                ));
                return self.settle(record, lost(Reason::Credential), None, &trace, &config).await;
            }
            Err(LoadError::Unreadable(why)) => {
                tracing::error!(why, write_id = %record.write_id, "a credential cannot be read at present");
                return self.settle(record, rests, None, &trace, &config).await;
            }
        };
        let route = hub::policy_of(&config, record);
        let mut request = Request::new(Body::from(body));
        *request.method_mut() = record.method.parse().unwrap_or(Method::POST);
        *request.uri_mut() = record.target.parse().unwrap_or_default();
        *request.headers_mut() = header_map(&record.fields);
        super::live::set_key(request.headers_mut(), &record.key);
        let call = Call {
            lane: Lane::Replay,
            deadline: Instant::now() + route.timeout,
            is_hurried: false,
            whole_until: None,
            route: route.clone(),
            is_read: false,
            config: config.clone(),
            credential,
            before_send: Some(self.before_replay(record, &trace, &config)),
            observer: None,
            slot: None,
            resends_unsent: false,
        };
        let outcome = self.attempt(self.upstream.clone(), request, call, &trace).await;
        let wait = outcome.as_ref().ok().and_then(|answer| {
            retry_after::parse(answer.parts.headers.get(header::RETRY_AFTER)?, self.clock.now())
        });
        let envelope = match &outcome {
            Ok(Answer { parts, body: Read::Whole(bytes) }) if parts.status.is_success() => {
                admit::envelope_error(bytes)
            }
            _ => None,
        };
        let case = Case { class: record.class, trusts_503: route.queue.trusts_503, may_queue: true };
        let peers = self.peers(record, &outcome);
        let mut verdict = match &outcome {
            Ok(answer) => {
                admit::replayed(Ok((answer.parts.status, &answer.parts.headers)), envelope, case, wait, peers)
            }
            Err(error) => admit::replayed(Err(error), None, case, wait, peers),
        };
        if verdict.rest == Rest::Unauthorized
            && let Some(newer) = newer
        {
            // Another token of the same identity: its own, which lies with it, may still be good.
            let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
            if tokens.get(&record.partition) == Some(&newer) {
                tokens.remove(&record.partition);
            }
            drop(tokens);
            verdict.rest = Rest::None;
        }
        self.settle(record, verdict, outcome.ok(), &trace, &config).await;
    }

    /// Today's credential: the alias' secret is put in at the moment of sending, below.
    async fn credential_of(
        &self,
        record: &Record,
        newer: Option<&HeaderValue>,
    ) -> Result<Credential, LoadError> {
        match (&record.credential, newer) {
            (CredentialRef::Alias(name), _) => Ok(Credential::Alias(name.clone())),
            (CredentialRef::Passed, Some(value)) => Ok(Credential::Passed(value.clone())),
            (CredentialRef::Passed, None) => {
                self.journal.token(record.write_id).await.map(Credential::Passed)
            }
        }
    }

    /// The passed credential of its partition that last got a 2xx.
    fn newer_token(&self, record: &Record) -> Option<HeaderValue> {
        if record.credential != CredentialRef::Passed {
            return None;
        }
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(&record.partition).cloned()
    }

    /// `sending`, with the attempt counted, is on disk before the first byte leaves; else nothing is sent.
    fn before_replay(
        self: &Arc<Self>,
        record: &Arc<Record>,
        trace: &Arc<Trace>,
        config: &Arc<Snapshot>,
    ) -> crate::context::BeforeSend {
        let (queue, before, trace, config) = (self.clone(), record.clone(), trace.clone(), config.clone());
        Box::new(move || -> BoxFuture<Result<(), ProxyError>> {
            Box::pin(async move {
                let now = queue.clock.now();
                let rules = hub::rules_of(&config, &before, &hub::policy_of(&config, &before));
                let (progress, _) = state::step(&before.progress, rules, Input::Send, now)
                    .map_err(|why| ProxyError::Overloaded { what: why.0 })?;
                let mut record = (*before).clone();
                let row = hub::row_of(&record, &progress, now, "replayer", "sent", None);
                record.progress = progress;
                record.audited += 1;
                let mut batch = Journal::batch(&record, &With { audit: &[row], ..With::default() });
                batch.settling();
                trace.intended.store(true, Ordering::Release);
                let stored = queue.journal.commit(batch).await;
                stored.map_err(|error| ProxyError::StoreFailed(error.to_string()))?;
                let record = Arc::new(record);
                queue.with(|book| book.change(record.write_id, |entry| entry.record = record.clone()));
                trace.durable.store(true, Ordering::Release);
                trace.sent.store(true, Ordering::Release);
                Ok(())
            })
        })
    }

    /// Whether others of its group succeeded since its own last 5xx, and whether its credential is well.
    fn peers(&self, record: &Record, outcome: &Result<Answer, ProxyError>) -> Peers {
        let is_error = outcome.as_ref().is_ok_and(|answer| answer.parts.status.is_server_error());
        let now = self.moment();
        self.with(|book| {
            let successes = book.pace.successes(&record.group);
            let mark = is_error
                .then(|| book.change(record.write_id, |entry| entry.mark.replace(successes)))
                .flatten()
                .flatten();
            Peers {
                others_succeed: mark.is_some_and(|mark| successes > mark),
                is_proven: book.pace.is_proven(&bucket(record).0, now),
            }
        })
    }

    /// Writes the outcome down, durable before the order goes on, and tells who has to know.
    async fn settle(
        self: &Arc<Self>,
        taken: &Arc<Record>,
        verdict: Verdict,
        answer: Option<Answer>,
        trace: &Trace,
        config: &Snapshot,
    ) {
        let id = taken.write_id;
        let now = self.clock.now();
        let policy = hub::policy_of(config, taken);
        let rules = hub::rules_of(config, taken, &policy);
        // As `before_replay` left it, or as it was taken up.
        let mut record = self
            .with(|book| book.get(id).map(|entry| entry.record.clone()))
            .map_or_else(|| (**taken).clone(), |record| (*record).clone());
        let mut progress = record.progress.clone();
        let needs_attempt =
            !matches!(verdict.input, Input::Unsent { .. } | Input::Lost { .. } | Input::Expire);
        if needs_attempt && progress.state != State::Sending {
            // The layers below always run `before_send`; should one not, what was answered was sent all the same.
            progress = state::step(&progress, rules, Input::Send, now).map_or(progress, |(next, _)| next);
        }
        let (mut progress, effects) = match state::step(&progress, rules, verdict.input, now) {
            Ok(stepped) => stepped,
            Err(why) => {
                self.alarm(format!("a step of {} ({id}) was refused: {why}", record.route));
                self.with(|book| {
                    book.change(id, |entry| entry.busy = false);
                    book.end_replay(&record);
                });
                return;
            }
        };
        let moment = self.moment();
        let payer = bucket(&record);
        // What rests, before the order goes on.
        let mut is_given_up = false;
        self.with(|book| match verdict.rest {
            Rest::None => {}
            Rest::Group(wait) => {
                book.pace.rest_group(&payer.1, moment, wait);
            }
            Rest::Credential(wait) => book.pace.rest_payer(&payer.0, &payer.1, moment, wait.map(jittered)),
            Rest::Unauthorized => {
                let (is_new, since) = book.pace.refuse_payer(&payer.0, moment);
                if is_new {
                    let who = &payer.0;
                    self.alarm(format!(
                        "Flexport does not accept the credential {who}: its writes wait; change it and reload"
                    ));
                }
                is_given_up = record.credential == CredentialRef::Passed
                    && moment.saturating_sub(since) > PASSED_REFUSED;
            }
            Rest::Forbidden => {
                if book.pace.forbid(&payer, moment) {
                    let (who, group) = &payer;
                    self.alarm(format!(
                        "Flexport forbids the credential {who} what `{group}` does: these writes wait; change its \
                         rights and reload, or cancel them"
                    ));
                }
            }
            Rest::All => book.pace.rest_all(moment + STORE_REST),
        });
        if is_given_up {
            let input = Input::Lost { reason: Reason::Credential };
            progress = state::step(&progress, rules, input, now).map_or(progress, |(next, _)| next);
            self.alarm(format!("{} ({id}) is given up: its passed credential is not accepted", record.route));
        }
        let rest = if effects.backs_off {
            backoff(config, progress.attempts)
        } else if verdict.rest == Rest::Forbidden {
            // The next try is another's: should that succeed, this one is forbidden for its own sake.
            FORBIDDEN
        } else {
            Duration::ZERO
        };
        let is_settled = !progress.state.is_unsettled() || progress.state == State::Unknown;
        let must_store = is_settled || trace.intended.load(Ordering::Acquire) || needs_attempt;
        let headers = answer.as_ref().map(|answer| answer.parts.headers.clone());
        let kept = answer.filter(|_| matches!(progress.state, State::Done | State::Dead)).map(|answer| {
            let body = match answer.body {
                Read::Whole(bytes) => Some(bytes),
                Read::Long(_) => None,
            };
            let head = AnswerHead {
                status: answer.parts.status.as_u16(),
                fields: kept_answer_fields(&answer.parts.headers),
                body: body.as_ref().map(|bytes| journal::blob(bytes)),
            };
            (head, body)
        });
        let row = hub::row_of(&record, &progress, now, "replayer", what(&progress), None);
        let was_success = matches!(verdict.input, Input::Success { .. });
        record.progress = progress;
        record.next_at = effects.backs_off.then(|| clock::after(now, rest));
        record.keep_until = hub::keep_until(config, &record, now);
        let body = kept.and_then(|(head, body)| {
            record.answer = Some(head);
            body
        });
        let mut is_stored = true;
        if must_store {
            record.audited += 1;
            let forgets_body = matches!(record.progress.state, State::Done);
            let with = With {
                answer: body.as_deref(),
                forgets_body,
                audit: std::slice::from_ref(&row),
                ..With::default()
            };
            let mut batch = Journal::batch(&record, &with);
            batch.settling();
            let mut stored = self.persist(batch, true).await;
            if let Err(CommitError::TooLarge(_)) = stored {
                // The outcome counts more than the answer's words.
                record.answer = None;
                let mut batch =
                    Journal::batch(&record, &With { forgets_body, audit: &[row], ..With::default() });
                batch.settling();
                stored = self.persist(batch, true).await;
            }
            is_stored = stored.is_ok();
        }
        if effects.touches {
            self.tell_settled(&record, &policy, headers.as_ref());
        }
        if !is_stored {
            // The process is about to end, and the next start finds it as it is on disk, perhaps `sending`, and may send
            // it again: until then its place stays taken, or a newer one would be overwritten.
            self.with(|book| {
                book.pace.ended(&record.group);
                book.has_changed = true;
            });
            return;
        }
        let record = Arc::new(record);
        let due = self.moment() + rest;
        self.with(|book| {
            if was_success {
                book.pace.succeeded(&payer, moment, config.settings.queue.max_parallel as usize);
            }
            book.change(id, |entry| {
                entry.record = record.clone();
                entry.busy = false;
                entry.due = due;
            });
            book.end_replay(&record);
        });
        if is_settled || must_store {
            self.tell(&record);
        }
        if record.progress.state == State::Unknown {
            self.alarm(format!(
                "the outcome of {} ({id}) is not known: find out at Flexport and resolve it",
                record.route
            ));
        }
    }

    /// The credential of the oldest record of a group, for a probe of it.
    pub async fn oldest_credential(&self, group: &str) -> Option<Credential> {
        let record = self.with(|book| {
            book.iter()
                .filter(|entry| !entry.live && &*entry.record.group == group)
                .filter(|entry| matches!(entry.state(), State::Pending | State::Waiting | State::Sending))
                .map(|entry| entry.record.clone())
                .min_by_key(|record| record.seq)
        })?;
        let newer = self.newer_token(&record);
        self.credential_of(&record, newer.as_ref()).await.ok()
    }
}

/// Up to a fifth longer, so that those who were told the same do not wake together.
fn jittered(wait: Duration) -> Duration {
    wait + wait.mul_f64(fastrand::f64() / 5.0)
}

fn what(progress: &state::Progress) -> &'static str {
    match progress.state {
        State::Pending => "not sent",
        State::Waiting => "to be sent again",
        State::Sending => "sent",
        State::Done | State::Dead => "answered",
        State::Unknown => "unknown",
        State::Expired => "expired",
        State::Cancelled => "cancelled",
    }
}
