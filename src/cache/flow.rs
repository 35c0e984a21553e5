//! A body on its way to its caller while it is kept.
//!
//! Two ends share what has come: the [`Feed`], held by the fill, which reads the upstream in a task of its own, and
//! the [`Flow`], the body that the caller gets. A piece is shared, not copied. Neither waits for the other: what comes
//! is kept in memory anyway, up to `cache.max_object`, so a slow caller stalls neither the fill nor those who wait for
//! it, and a caller that leaves ends nothing.
//!
//! - The end is seen by the caller only when the fill has told it: whole, and then the entry is stored already, or
//!   broken. A `Feed` that is dropped without a word counts as broken, so nothing cut short ever looks whole.
//! - When the body turns out to be longer than what is kept, what the caller has read is freed at once, and the caller
//!   reads on from the upstream itself: from there on it sets the pace.

use crate::http::{Body, BodyError};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

/// The fill's end.
pub(crate) struct Feed(Arc<Shared>);

/// The caller's end.
pub(crate) struct Flow {
    shared: Arc<Shared>,
    /// Bytes that are still to come, when the upstream named a length.
    left: Option<u64>,
    source: Source,
}

/// Where the caller reads from.
enum Source {
    /// What the fill feeds.
    Fed,
    /// The rest, by itself.
    Own { unread: VecDeque<Bytes>, rest: Body },
    /// Nothing more comes.
    Over,
}

struct Shared(Mutex<State>);

struct State {
    /// All that has come; taken by the end.
    pieces: Vec<Bytes>,
    /// How many pieces, and how many bytes, the caller has read.
    read: usize,
    sent: usize,
    stage: Stage,
    waker: Option<Waker>,
    has_caller: bool,
}

enum Stage {
    Filling,
    /// Stored, or at least whole.
    Whole(Bytes),
    /// Too long: the caller reads the rest itself. Taken by it.
    HandedOver(Option<Body>),
    Broken(BodyError),
}

/// Both ends of a body of which these pieces have come; `left` bytes are to come when the upstream named a length.
pub(crate) fn pair(pieces: Vec<Bytes>, left: Option<u64>) -> (Feed, Flow) {
    let come: usize = pieces.iter().map(Bytes::len).sum();
    let shared = Arc::new(Shared(Mutex::new(State {
        pieces,
        read: 0,
        sent: 0,
        stage: Stage::Filling,
        waker: None,
        has_caller: true,
    })));
    let left = left.map(|left| left + come as u64);
    (Feed(shared.clone()), Flow { shared, left, source: Source::Fed })
}

// === impl Shared ===

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no code panics with this lock held")
    }
}

// === impl Feed ===

impl Feed {
    /// One more piece.
    pub(crate) fn push(&self, piece: Bytes) {
        let mut state = self.0.lock();
        state.pieces.push(piece);
        wake(state);
    }

    /// All that has come, for the entry. The caller is told the end next, and reads on in that.
    pub(crate) fn pieces(&self) -> Vec<Bytes> {
        self.0.lock().pieces.clone()
    }

    /// The end, as it was kept.
    pub(crate) fn whole(self, body: Bytes) {
        self.end(Stage::Whole(body));
    }

    /// Too long to be kept. Without a caller nobody needs the rest.
    pub(crate) fn hand_over(self, rest: Body) {
        let mut state = self.0.lock();
        if state.has_caller {
            let read = state.read;
            state.pieces.drain(..read);
            state.read = 0;
            state.stage = Stage::HandedOver(Some(rest));
            wake(state);
        }
    }

    /// It will not become whole.
    pub(crate) fn broken(self, error: BodyError) {
        self.end(Stage::Broken(error));
    }

    fn end(&self, stage: Stage) {
        let mut state = self.0.lock();
        if let Stage::Whole(_) = stage {
            state.pieces = Vec::new();
        }
        state.stage = stage;
        wake(state);
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        let is_silent = matches!(self.0.lock().stage, Stage::Filling);
        if is_silent {
            self.end(Stage::Broken(BodyError::Stopped));
        }
    }
}

/// Wakes the caller, without the lock.
fn wake(mut state: MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

// === impl Flow ===

impl Flow {
    /// What is to be read, if the fill tells it.
    fn poll_fed(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut state = self.shared.lock();
        let state = &mut *state;
        if let Stage::Whole(body) = &state.stage {
            let rest = body.slice(state.sent..);
            self.source = Source::Over;
            return Poll::Ready((!rest.is_empty()).then(|| Ok(Frame::data(rest))));
        }
        if let Stage::HandedOver(rest) = &mut state.stage {
            let rest = rest.take().unwrap_or_default();
            let unread = VecDeque::from(std::mem::take(&mut state.pieces));
            self.source = Source::Own { unread, rest };
            return self.source.poll_own(cx);
        }
        if let Some(piece) = state.pieces.get(state.read) {
            state.read += 1;
            state.sent += piece.len();
            return Poll::Ready(Some(Ok(Frame::data(piece.clone()))));
        }
        if let Stage::Broken(error) = &state.stage {
            let error = error.clone();
            self.source = Source::Over;
            return Poll::Ready(Some(Err(error)));
        }
        if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            state.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

// === impl Source ===

impl Source {
    fn poll_own(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Own { unread, rest } => match unread.pop_front() {
                Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
                None => Pin::new(rest).poll_frame(cx),
            },
            Self::Fed | Self::Over => Poll::Ready(None),
        }
    }
}

impl HttpBody for Flow {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let poll = match &mut this.source {
            Source::Fed => this.poll_fed(cx),
            source => source.poll_own(cx),
        };
        if let (Poll::Ready(Some(Ok(frame))), Some(left)) = (&poll, &mut this.left) {
            *left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len() as u64));
        }
        poll
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Fed => false,
            Source::Own { unread, rest } => unread.is_empty() && rest.is_end_stream(),
            Source::Over => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.has_caller = false;
        state.waker = None;
        // A rest that was meant for this caller ends with it.
        if let Stage::HandedOver(rest) = &mut state.stage {
            let rest = rest.take();
            drop(state);
            drop(rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::task::Poll::Ready;

    async fn next(flow: &mut Flow) -> Option<Result<Bytes, BodyError>> {
        let frame = poll_fn(|cx| Pin::new(&mut *flow).poll_frame(cx)).await?;
        Some(frame.map(|frame| frame.into_data().expect("only data")))
    }

    async fn is_pending(flow: &mut Flow) -> bool {
        poll_fn(|cx| Ready(Pin::new(&mut *flow).poll_frame(cx).is_pending())).await
    }

    fn piece(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[tokio::test]
    async fn the_caller_reads_what_has_come_and_the_rest_out_of_what_is_kept() {
        let (feed, mut flow) = pair(vec![piece("ab")], Some(6));
        assert_eq!(flow.size_hint().exact(), Some(8));
        assert_eq!(next(&mut flow).await.unwrap().unwrap(), "ab");
        assert!(is_pending(&mut flow).await);
        feed.push(piece("cd"));
        feed.push(piece("ef"));
        assert_eq!(next(&mut flow).await.unwrap().unwrap(), "cd");
        let kept = piece("abcdefgh");
        feed.whole(kept.clone());
        assert_eq!(flow.size_hint().exact(), Some(4));
        let rest = next(&mut flow).await.unwrap().unwrap();
        assert_eq!(rest, "efgh");
        assert_eq!(rest.as_ptr(), kept[4..].as_ptr(), "not a copy");
        assert!(next(&mut flow).await.is_none() && next(&mut flow).await.is_none());
        assert!(flow.is_end_stream());
    }

    #[tokio::test]
    async fn what_does_not_become_whole_never_looks_so() {
        for is_told in [true, false] {
            let (feed, mut flow) = pair(vec![piece("ab")], None);
            if is_told {
                feed.broken(BodyError::Cut("reset".to_owned()));
            } else {
                drop(feed);
            }
            assert_eq!(next(&mut flow).await.unwrap().unwrap(), "ab");
            assert!(!flow.is_end_stream());
            assert!(next(&mut flow).await.unwrap().is_err());
            assert!(next(&mut flow).await.is_none());
        }
    }

    #[tokio::test]
    async fn what_is_too_long_is_freed_and_read_by_the_caller_itself() {
        let (feed, mut flow) = pair(vec![piece("ab"), piece("cd")], None);
        assert_eq!(next(&mut flow).await.unwrap().unwrap(), "ab");
        feed.hand_over(Body::from("ef"));
        assert_eq!(flow.shared.lock().pieces, [piece("cd")]);
        for text in ["cd", "ef"] {
            assert_eq!(next(&mut flow).await.unwrap().unwrap(), text);
        }
        assert!(next(&mut flow).await.is_none());
        // Without a caller the rest is not read: it is dropped.
        struct Held(#[expect(dead_code, reason = "held")] Arc<()>);
        impl HttpBody for Held {
            type Data = Bytes;
            type Error = BodyError;
            fn poll_frame(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
                Poll::Pending
            }
        }
        let held = Arc::new(());
        let rest = || Body::new(Held(held.clone()));
        let (feed, flow) = pair(Vec::new(), None);
        drop(flow);
        feed.hand_over(rest());
        let (feed, flow) = pair(Vec::new(), None);
        feed.hand_over(rest());
        drop(flow);
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[tokio::test]
    async fn a_caller_that_waits_is_woken_by_each_word() {
        let (feed, mut flow) = pair(Vec::new(), None);
        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            while let Some(piece) = next(&mut flow).await {
                all.extend_from_slice(&piece.unwrap());
            }
            all
        });
        for text in ["ab", "cd"] {
            tokio::task::yield_now().await;
            feed.push(piece(text));
        }
        tokio::task::yield_now().await;
        feed.whole(piece("abcd"));
        assert_eq!(reader.await.unwrap(), b"abcd");
    }
}
