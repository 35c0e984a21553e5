//! One fill: ask upstream, read the answer, keep it if it may be kept, tell those who wait.

use super::Cache;
use super::entry::{self, Confirmed, Entry};
use super::flight::{Answer, FlightKey, Landing, Led, Outcome, Passed};
use super::invalidate::{Moment, Names};
use super::policy::{self, Unkept};
use super::service::Read;
use crate::context::{Call, Lane, Upstream, UpstreamRequest, WholeUntil};
use crate::error::ProxyError;
use crate::http::{Body, BodyError};
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Response, StatusCode, response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tower::{Service, ServiceExt};

/// What a fill has to do.
pub(crate) struct Errand {
    pub(crate) read: Arc<Read>,
    /// The copy that is to be confirmed or replaced.
    pub(crate) base: Option<Arc<Entry>>,
    /// The order of invalidations when it began.
    pub(crate) began: Moment,
    pub(crate) names: Names,
    pub(crate) key: FlightKey,
    /// Those who wait.
    pub(crate) landing: Option<Landing>,
    /// Not for a request that says `no-store`.
    pub(crate) may_keep: bool,
    pub(crate) lane: Lane,
}

/// Who else may have an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sharing {
    /// Those who wait, and it is worth waiting for the next one.
    Yes,
    /// Those who wait, but the next one need not be waited for: it will not be kept either.
    ThisOnce,
    /// Nobody but who asked.
    No,
}

/// A body, read up to a limit.
enum Gathered {
    Whole(Bytes),
    Longer(Body),
}

/// What has been read of a body, then the rest of it.
struct Resumed {
    read: Bytes,
    rest: Body,
}

/// A body that is not whole in time is ended by the upstream's own side, which tells the breaker; only what that
/// misses is ended here.
const GRACE: Duration = Duration::from_secs(1);

/// Runs an errand to its end.
pub(crate) async fn run(cache: Arc<Cache>, mut upstream: Upstream, mut errand: Errand) -> Led {
    let landing = errand.landing.take();
    let (led, sharing) = cache.ask(&mut upstream, &errand).await;
    if let Some(landing) = landing {
        landing.land(match &led {
            Led::Shared(outcome) if sharing != Sharing::No => outcome.clone(),
            Led::Shared(_) | Led::Streamed(_) => Outcome::Alone,
        });
    }
    if sharing != Sharing::Yes && !errand.read.is_head {
        cache.flights.mark_hit_for_miss(errand.key, Instant::now());
    }
    led
}

async fn send(upstream: &mut Upstream, request: UpstreamRequest) -> Result<Response<Body>, ProxyError> {
    upstream.ready().await?.call(request).await
}

impl Cache {
    /// The answer, and who else may have it.
    async fn ask(&self, upstream: &mut Upstream, errand: &Errand) -> (Led, Sharing) {
        let failed = |error| (Led::Shared(Outcome::Failed(error)), Sharing::Yes);
        let read = &*errand.read;
        let mut base = errand.base.as_ref();
        let mut was_unsent = false;
        loop {
            let mut call = Call::live(&read.context);
            call.lane = errand.lane;
            // A fill is for all who wait and for the copy: one caller's impatience does not end it.
            let asked_at = self.now();
            let own = asked_at.monotonic + read.context.route.timeout;
            if own > call.deadline {
                call.deadline = own;
                call.is_hurried = false;
            }
            // A body that drips must not hold the key, its waiters and a slot of the upstream.
            let whole_until = WholeUntil::new(call.deadline);
            call.whole_until = Some(whole_until.clone());
            let last = call.deadline + GRACE;
            let request = read.outgoing(base.map(|entry| &**entry));
            call.resends_unsent = !was_unsent;
            let response = match send(upstream, UpstreamRequest { request, call }).await {
                Ok(response) => response,
                // A pooled connection that the upstream had closed took nothing of it: once more, at once.
                Err(ProxyError::Unsent(_)) if !was_unsent => {
                    was_unsent = true;
                    continue;
                }
                Err(error) => return failed(error),
            };
            let (mut parts, body) = response.into_parts();
            let limit = read.context.config.settings.cache.max_object.0;
            // What answers a HEAD, and a 304, names the length of a content that does not come.
            let length = if read.is_head || parts.status == StatusCode::NOT_MODIFIED {
                None
            } else {
                named_length(&parts.headers)
            };
            let body = match timeout_at(last, gather(body, length, limit)).await {
                Err(_) => return failed(ProxyError::Cut("its body did not come to an end".to_owned())),
                Ok(Ok(Gathered::Whole(body))) => body,
                Ok(Ok(Gathered::Longer(body))) => {
                    whole_until.lift();
                    entry::clean(&mut parts.headers);
                    self.note(read, errand.key.token, parts.status, asked_at.monotonic);
                    return (Led::Streamed(Response::from_parts(parts, body)), Sharing::No);
                }
                Ok(Err(error)) => return failed(ProxyError::Cut(error.to_string())),
            };
            let now = self.now();
            entry::clean(&mut parts.headers);
            self.note(read, errand.key.token, parts.status, asked_at.monotonic);
            if parts.status == StatusCode::NOT_MODIFIED
                && let Some(entry) = base
            {
                if entry.is_contradicted_by(&parts.headers) {
                    // It confirms a copy that we do not have: ask again, for the whole.
                    base = None;
                    continue;
                }
                return (
                    Led::Shared(self.confirm(errand, entry, parts.headers, asked_at, now)),
                    Sharing::Yes,
                );
            }
            let (answer, sharing) = self.keep(errand, parts, body, asked_at, now);
            return (Led::Shared(Outcome::Answer(answer)), sharing);
        }
    }

    fn confirm(
        &self,
        errand: &Errand,
        old: &Arc<Entry>,
        fresh: HeaderMap,
        asked_at: Confirmed,
        now: Confirmed,
    ) -> Outcome {
        let read = &*errand.read;
        let head = old.renewed(fresh, now.at);
        let verdict =
            policy::keep(old.status, &head, read.has_credential(), asked_at.at, now.at, &read.terms);
        let (facts, may_keep) = match verdict {
            Ok(facts) => (facts, true),
            Err(_) => (policy::Facts::of(&head, asked_at.at, now.at, &read.terms), false),
        };
        if !may_keep {
            self.memory.remove(&read.key, old);
        }
        let entry = Entry::new(
            old.status,
            &head,
            old.body.clone(),
            facts,
            now,
            asked_at.monotonic,
            errand.began,
            errand.names,
            read.asked(),
        );
        let entry = Arc::new(entry);
        let is_kept = may_keep && self.put(errand, &entry);
        Outcome::Answer(Answer::Entry { entry, is_kept, is_confirmed: true })
    }

    fn keep(
        &self,
        errand: &Errand,
        parts: response::Parts,
        body: Bytes,
        asked_at: Confirmed,
        now: Confirmed,
    ) -> (Answer, Sharing) {
        let read = &*errand.read;
        let status = parts.status;
        let is_gone = matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE);
        let verdict = if status == StatusCode::OK && policy::holds_error(&parts.headers, &body) {
            Err(Unkept::EnvelopeError)
        } else if is_gone && self.health.shows_failures(&read.context.route.group) {
            // A failing upstream may well say "not found": the copy stays.
            Err(Unkept::Status)
        } else {
            policy::keep(status, &parts.headers, read.has_credential(), asked_at.at, now.at, &read.terms)
        };
        match verdict {
            Ok(facts) if !read.is_head => {
                if status == StatusCode::OK
                    && let Some(directive) = facts.would_be_refused(&read.terms)
                {
                    self.counters.stale_refused(directive);
                }
                let entry = Entry::new(
                    status,
                    &parts.headers,
                    body,
                    facts,
                    now,
                    asked_at.monotonic,
                    errand.began,
                    errand.names,
                    read.asked(),
                );
                let entry = Arc::new(entry);
                let is_kept = self.put(errand, &entry);
                (Answer::Entry { entry, is_kept, is_confirmed: false }, Sharing::Yes)
            }
            verdict => {
                let has_left = is_gone && !self.health.shows_failures(&read.context.route.group);
                if (has_left || matches!(verdict, Err(Unkept::NoStore) if status.is_success()))
                    && !read.is_head
                    && let Some(variants) = self.memory.get(&read.key)
                    && let Some(old) = variants.iter().find(|old| old.is_selected_by(read.asked()))
                    && old.asked_at <= asked_at.monotonic
                {
                    self.memory.remove(&read.key, old);
                }
                self.counters.unkept();
                let sharing = match verdict {
                    Err(Unkept::NoStore | Unkept::SetCookie | Unkept::VaryAny | Unkept::Private) => {
                        Sharing::No
                    }
                    Err(Unkept::Status) if status.is_success() || status.is_redirection() => {
                        Sharing::ThisOnce
                    }
                    Ok(_) | Err(Unkept::Status | Unkept::EnvelopeError) => Sharing::Yes,
                };
                (Answer::Passed(Arc::new(Passed { status, headers: parts.headers, body })), sharing)
            }
        }
    }

    /// Keeps an entry unless something forbids it. Tells whether it is kept.
    fn put(&self, errand: &Errand, entry: &Arc<Entry>) -> bool {
        let read = &*errand.read;
        self.newest.fetch_max(entry.confirmed.at.as_second(), Ordering::Relaxed);
        if !errand.may_keep
            || entry.body.len() as u64 > read.context.config.settings.cache.max_object.0
            || self.marks.is_outdated(errand.names, errand.began)
        {
            return false;
        }
        self.refusals.keeps(read.partition);
        if !self.memory.put(read.key, entry.clone(), read.asked()) {
            return false;
        }
        if errand.landing.is_none() {
            self.flights.unmark_hit_for_miss(&errand.key);
        }
        true
    }

    /// Remembers what the upstream thinks of this token.
    fn note(&self, read: &Read, token: u64, status: StatusCode, asked_at: Instant) {
        match status.as_u16() {
            401 => self.refusals.refuse(read.partition, token, None, Instant::now()),
            403 => self.refusals.refuse(read.partition, token, Some(&read.key), Instant::now()),
            200..=299 | 304 => self.refusals.clear(read.partition, || token, Some(&read.key), asked_at),
            _ => {}
        }
    }
}

fn named_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads a body as far as it may be kept. The bytes are copied: a piece of a connection's read buffer would keep all
/// of that buffer alive for as long as the copy lives.
async fn gather(mut body: Body, length: Option<u64>, limit: u64) -> Result<Gathered, BodyError> {
    let hint = body.size_hint();
    let known = hint.exact().or(length);
    if known.is_some_and(|length| length > limit) || hint.lower() > limit {
        return Ok(Gathered::Longer(body));
    }
    let mut pieces = Vec::with_capacity(4);
    let mut total = 0;
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let Ok(data) = frame?.into_data() else { continue };
        total += data.len();
        pieces.push(data);
        if total as u64 > limit {
            return Ok(Gathered::Longer(Body::new(Resumed { read: joined(&pieces, total), rest: body })));
        }
    }
    Ok(Gathered::Whole(match pieces.as_mut_slice() {
        [whole] => alone(std::mem::take(whole)),
        pieces => joined(pieces, total),
    }))
}

/// The same bytes, with nothing else kept for their sake. What was rewritten is in memory of its own already; all
/// else is a slice of the connection's read buffer.
fn alone(piece: Bytes) -> Bytes {
    match piece.try_into_mut() {
        Ok(own) if own.capacity() <= own.len() + own.len() / 8 + 64 => own.freeze(),
        Ok(roomy) => Bytes::copy_from_slice(&roomy),
        Err(shared) => Bytes::copy_from_slice(&shared),
    }
}

/// All pieces in memory of exactly their length.
fn joined(pieces: &[Bytes], total: usize) -> Bytes {
    let mut whole = Vec::with_capacity(total);
    for piece in pieces {
        whole.extend_from_slice(piece);
    }
    Bytes::from(whole)
}

// === impl Resumed ===

impl HttpBody for Resumed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.read.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.read)))));
        }
        Pin::new(&mut self.rest).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let read = self.read.len() as u64;
        let mut hint = self.rest.size_hint();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + read);
        }
        hint.set_lower(hint.lower() + read);
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    struct Pieces(VecDeque<Bytes>);

    impl HttpBody for Pieces {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
        }
    }

    #[tokio::test]
    async fn a_body_takes_no_more_room_than_it_needs() {
        for pieces in [1, 2, 3, 5, 9, 17] {
            let body = Body::new(Pieces((0..pieces).map(|_| Bytes::from(vec![b'x'; 4096])).collect()));
            let Ok(Gathered::Whole(read)) = gather(body, None, 1 << 20).await else {
                panic!("it is whole and short enough")
            };
            assert_eq!(read.len(), pieces * 4096);
            let capacity = read.try_into_mut().expect("nobody else holds it").capacity();
            assert!(capacity <= pieces * 4096 * 9 / 8 + 64, "{capacity} for {pieces} pieces");
        }
    }
}
