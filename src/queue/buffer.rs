//! Bodies that are kept in memory as far as they may be, and stream on where they may not.

use crate::http::{Body, BodyError};
use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame, SizeHint};
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

/// A body that was read.
pub(super) enum Read {
    /// All of it.
    Whole(Bytes),
    /// It was longer than allowed: what was read, and the rest behind it. Nothing is lost.
    Long(Body),
}

/// Reads at most `cap` bytes, as long as `has_room` agrees to the total. Trailers of a whole body are dropped.
pub(super) async fn read(
    mut body: Body,
    cap: u64,
    mut has_room: impl FnMut(u64) -> bool,
) -> Result<Read, BodyError> {
    if let Some(bytes) = body.as_bytes() {
        let len = bytes.len() as u64;
        return Ok(if len <= cap && has_room(len) { Read::Whole(bytes) } else { Read::Long(body) });
    }
    let announced = body.size_hint().lower();
    if announced > cap || !has_room(announced) {
        return Ok(Read::Long(body));
    }
    let mut parts = VecDeque::new();
    let mut total = 0u64;
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let Ok(data) = frame?.into_data() else { continue };
        total += data.len() as u64;
        parts.push_back(data);
        if total > cap || (total > announced && !has_room(total)) {
            return Ok(Read::Long(Body::new(Joined { parts, rest: body })));
        }
    }
    if parts.len() == 1 {
        return Ok(Read::Whole(parts.pop_front().unwrap_or_default()));
    }
    let mut whole = BytesMut::with_capacity(usize::try_from(total).unwrap_or_default());
    for part in &parts {
        whole.extend_from_slice(part);
    }
    Ok(Read::Whole(whole.freeze()))
}

/// What was read already, and the rest.
struct Joined {
    parts: VecDeque<Bytes>,
    rest: Body,
}

// === impl Joined ===

impl http_body::Body for Joined {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.parts.pop_front() {
            Some(part) => Poll::Ready(Some(Ok(Frame::data(part)))),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let read: u64 = self.parts.iter().map(|part| part.len() as u64).sum();
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + read);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + read);
        }
        hint
    }
}
