//! What the unit tests share.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

/// The most real time that a test gives to threads and disks. It bounds a hang only: machines may be slow and loaded.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const BEAT: Duration = Duration::from_millis(2);

/// Waits in real time, at most [`PATIENCE`], for what other threads do.
#[track_caller]
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..PATIENCE.as_millis() / BEAT.as_millis() {
        if is_so() {
            return;
        }
        thread::park_timeout(BEAT);
    }
    assert!(is_so(), "never: {what}");
}

/// [`until`] for a test that owns a runtime, whose tasks go on meanwhile. Paused time stands still by itself while
/// this waits (tokio does so for blocking work), so `is_so` moves it where something waits for it.
pub(crate) async fn until_async(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    for _ in 0..PATIENCE.as_millis() / BEAT.as_millis() {
        if is_so().await {
            return;
        }
        tokio::task::spawn_blocking(|| thread::park_timeout(BEAT)).await.expect("it only waits");
    }
    assert!(is_so().await, "never: {what}");
}

/// Polls a future once; its output, if it has one already.
pub(crate) fn poll_once<F: Future + ?Sized>(future: Pin<&mut F>) -> Option<F::Output> {
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}
