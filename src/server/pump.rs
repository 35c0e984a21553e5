//! Keeps a stalled HTTP/2 stream from holding what its answer stands for.
//!
//! On HTTP/1.1 a client that takes nothing blocks its socket, which the connection's stream sees. On HTTP/2 it only
//! closes its window: hyper then waits for capacity without a limit and does not poll the body, so a timer inside the
//! body would never run, and the upstream's body behind it would keep its slot for ever. So a task reads the body and
//! hands it over frame by frame; when a frame is not taken in time, the task drops the body and the stream ends with
//! an error.

use crate::http::{Body, BodyError};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

/// What the task hands over.
enum Piece {
    Frame(Frame<Bytes>),
    End(Result<(), BodyError>),
}

struct Pumped {
    pieces: mpsc::Receiver<Piece>,
    hint: SizeHint,
    is_over: bool,
}

/// The same body, whose frames must be taken within `limit` each. What is in memory is left as it is.
pub(super) fn paced(body: Body, limit: Duration) -> Body {
    if body.as_bytes().is_some() {
        return body;
    }
    let (sender, pieces) = mpsc::channel(1);
    let hint = body.size_hint();
    // Ends with the body, or one limit after the stream is gone: nobody else waits for it.
    tokio::spawn(pump(body, sender, limit));
    Body::new(Pumped { pieces, hint, is_over: false })
}

async fn pump(mut body: Body, pieces: mpsc::Sender<Piece>, limit: Duration) {
    loop {
        let frame = tokio::select! {
            frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)) => frame,
            () = pieces.closed() => return,
        };
        let piece = match frame {
            Some(Ok(frame)) => Piece::Frame(frame),
            Some(Err(error)) => Piece::End(Err(error)),
            None => Piece::End(Ok(())),
        };
        let is_end = matches!(piece, Piece::End(_));
        match tokio::time::timeout(limit, pieces.send(piece)).await {
            Ok(Ok(())) if !is_end => {}
            Ok(_) => return,
            Err(_) => {
                tracing::debug!(?limit, "a client takes nothing of its answer; its stream is ended");
                return;
            }
        }
    }
}

// === impl Pumped ===

impl HttpBody for Pumped {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        match std::task::ready!(self.pieces.poll_recv(cx)) {
            Some(Piece::Frame(frame)) => Poll::Ready(Some(Ok(frame))),
            Some(Piece::End(Ok(()))) => {
                self.is_over = true;
                Poll::Ready(None)
            }
            Some(Piece::End(Err(error))) => {
                self.is_over = true;
                Poll::Ready(Some(Err(error)))
            }
            // The task gave up: what came so far must not look whole.
            None => {
                self.is_over = true;
                Poll::Ready(Some(Err(BodyError::Stopped)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Endless {
        _held: std::sync::Arc<()>,
    }

    impl HttpBody for Endless {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"more")))))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_not_taken_frees_its_body_and_ends_with_an_error() {
        let held = std::sync::Arc::new(());
        let mut body = paced(Body::new(Endless { _held: held.clone() }), Duration::from_secs(30));
        tokio::time::sleep(Duration::from_secs(31)).await;
        assert_eq!(std::sync::Arc::strong_count(&held), 1, "the body was dropped");
        let mut last = None;
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            last = Some(frame);
        }
        assert!(matches!(last, Some(Err(BodyError::Stopped))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_taken_comes_whole() {
        struct Two(u8);
        impl HttpBody for Two {
            type Data = Bytes;
            type Error = BodyError;
            fn poll_frame(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
                self.0 += 1;
                Poll::Ready((self.0 <= 2).then(|| Ok(Frame::data(Bytes::from_static(b"ab")))))
            }
        }
        let body = paced(Body::new(Two(0)), Duration::from_secs(30));
        assert_eq!(body.collect(10).await.unwrap(), "abab");
    }
}
