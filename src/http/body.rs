//! The body that travels through the layers.
//!
//! One concrete type with one concrete error: with a boxed error, generic async layers fail to compile, and an
//! error's kind (cut, idle, too large, the caller's) could not be matched on. Bytes are shared, never copied.

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use std::pin::Pin;
use std::task::{Context, Poll};

/// A request's or a response's content, streamed.
#[derive(Default)]
pub struct Body(Kind);

#[derive(Default)]
enum Kind {
    #[default]
    Empty,
    Full(Bytes),
    Incoming(hyper::body::Incoming),
    Boxed(UnsyncBoxBody<Bytes, BodyError>),
}

/// Why a body did not come to its end.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BodyError {
    /// The peer closed or reset the connection before the end, or sent what is not HTTP.
    #[error("the body was cut short: {0}")]
    Cut(String),
    /// Nothing came for the named time.
    #[error("the body stood still for {0:?}")]
    Idle(std::time::Duration),
    /// Longer than we take.
    #[error("the body is longer than {0} bytes")]
    TooLarge(u64),
    /// We stopped it (shutdown, or nobody reads it any more).
    #[error("the transfer was stopped by Seawall")]
    Stopped,
}

// === impl Body ===

impl Body {
    /// No content.
    pub fn empty() -> Self {
        Self(Kind::Empty)
    }

    /// Content of another type.
    pub fn new<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes, Error = BodyError> + Send + 'static,
    {
        Self(Kind::Boxed(UnsyncBoxBody::new(body)))
    }

    /// The whole content, when it is in memory already; sharing, not copying.
    pub fn as_bytes(&self) -> Option<Bytes> {
        match &self.0 {
            Kind::Empty => Some(Bytes::new()),
            Kind::Full(bytes) => Some(bytes.clone()),
            Kind::Incoming(_) | Kind::Boxed(_) => None,
        }
    }

    /// Reads all of it, at most `limit` bytes. Trailers are dropped.
    pub async fn collect(mut self, limit: u64) -> Result<Bytes, BodyError> {
        if let Some(bytes) = self.as_bytes() {
            return if bytes.len() as u64 > limit { Err(BodyError::TooLarge(limit)) } else { Ok(bytes) };
        }
        let mut first: Option<Bytes> = None;
        let mut rest = bytes::BytesMut::new();
        let mut total = 0u64;
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut self).poll_frame(cx)).await {
            let Ok(data) = frame?.into_data() else { continue };
            total += data.len() as u64;
            if total > limit {
                return Err(BodyError::TooLarge(limit));
            }
            match (&first, rest.is_empty()) {
                (None, true) => first = Some(data),
                (Some(head), true) => {
                    let hint = usize::try_from(self.size_hint().lower()).unwrap_or(0);
                    rest.reserve(head.len() + data.len() + hint.min(1 << 20));
                    rest.extend_from_slice(head);
                    rest.extend_from_slice(&data);
                }
                _ => rest.extend_from_slice(&data),
            }
        }
        Ok(if rest.is_empty() { first.unwrap_or_default() } else { rest.freeze() })
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self(if bytes.is_empty() { Kind::Empty } else { Kind::Full(bytes) })
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self::from(Bytes::from(text))
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Self::from(Bytes::from_static(text.as_bytes()))
    }
}

impl From<hyper::body::Incoming> for Body {
    fn from(incoming: hyper::body::Incoming) -> Self {
        if incoming.is_end_stream() { Self::empty() } else { Self(Kind::Incoming(incoming)) }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            Kind::Empty => "Body(empty)",
            Kind::Full(_) => "Body(in memory)",
            Kind::Incoming(_) | Kind::Boxed(_) => "Body(streamed)",
        })
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.0 {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = Kind::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Incoming(incoming) => {
                Pin::new(incoming).poll_frame(cx).map_err(|error| BodyError::Cut(chain(&error)))
            }
            Kind::Boxed(boxed) => Pin::new(boxed).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Full(_) => false,
            Kind::Incoming(incoming) => incoming.is_end_stream(),
            Kind::Boxed(boxed) => boxed.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Incoming(incoming) => incoming.size_hint(),
            Kind::Boxed(boxed) => boxed.size_hint(),
        }
    }
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_is_collected_up_to_its_limit() {
        assert_eq!(Body::from("abc").collect(3).await.unwrap(), "abc");
        assert!(matches!(Body::from("abcd").collect(3).await, Err(BodyError::TooLarge(3))));
        let parts = futures_body(vec![Bytes::from_static(b"ab"), Bytes::from_static(b"cd")]);
        assert_eq!(parts.collect(4).await.unwrap(), "abcd");
    }

    fn futures_body(mut parts: Vec<Bytes>) -> Body {
        struct Parts(Vec<Bytes>);
        impl HttpBody for Parts {
            type Data = Bytes;
            type Error = BodyError;
            fn poll_frame(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
                Poll::Ready(self.0.pop().map(|part| Ok(Frame::data(part))))
            }
        }
        parts.reverse();
        Body::new(Parts(parts))
    }
}
