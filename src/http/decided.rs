//! The future of a layer that either refuses at once or passes on.
//!
//! Most layers of the front decide in `call` and have nothing to do afterwards. To box such a future would cost an
//! allocation and a copy of all that is inside it, once per layer and request.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

pin_project_lite::pin_project! {
    /// See the module.
    #[expect(missing_docs, reason = "pin-project-lite takes no comments on fields")]
    #[project = Projected]
    pub enum Decided<F: Future> {
        /// The answer is there.
        Now {
            output: Option<F::Output>,
        },
        /// It comes from further in.
        Later {
            #[pin]
            inner: F,
        },
    }
}

// === impl Decided ===

impl<F: Future> Decided<F> {
    /// The answer.
    pub fn now(output: F::Output) -> Self {
        Self::Now { output: Some(output) }
    }

    /// The answer of this future.
    pub fn later(inner: F) -> Self {
        Self::Later { inner }
    }
}

impl<F: Future> Future for Decided<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        match self.project() {
            Projected::Now { output } => Poll::Ready(output.take().expect("not polled after its end")),
            Projected::Later { inner } => inner.poll(cx),
        }
    }
}
