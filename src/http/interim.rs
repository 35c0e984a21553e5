//! Interim responses on their way past hyper (RFC 9110 §15.2): its client tells of them, its server cannot send them.
//!
//! A connection has one [`Interims`]; each of its requests gets an [`Interim`] for the time in which it has no answer
//! yet. What the upstream sends in that time is written between two messages by who owns the connection's stream; what
//! comes later, for another request, or for a caller that does not know them, is dropped: a 1xx is a hint that nobody
//! may count on.

use super::headers;
use http::{HeaderMap, StatusCode};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

/// Those of one connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interims(Arc<Mutex<State>>);

/// The way back for one request's. In its extensions.
#[derive(Clone, Debug)]
pub(crate) struct Interim {
    all: Interims,
    request: u64,
}

#[derive(Debug, Default)]
struct State {
    /// How many requests there were.
    count: u64,
    /// Which one has no answer yet; 0: none.
    open: u64,
    /// What is to be written.
    bytes: Vec<u8>,
    /// Whose turn it is to write it.
    waker: Option<Waker>,
}

/// More than that is not kept for a connection that does not write.
const MOST: usize = 64 * 1024;

// === impl Interims ===

impl Interims {
    /// A request begins.
    pub(crate) fn begin(&self) -> Interim {
        let mut state = self.state();
        state.count += 1;
        state.open = state.count;
        state.bytes.clear();
        Interim { all: self.clone(), request: state.count }
    }

    /// The request has its answer.
    pub(crate) fn end(&self) {
        self.state().open = 0;
    }

    /// Takes what is to be written; who does so is woken when there is more.
    pub(crate) fn take(&self, bytes: &mut Vec<u8>, waker: &Waker) {
        let mut state = self.state();
        bytes.append(&mut state.bytes);
        if state.waker.as_ref().is_none_or(|known| !known.will_wake(waker)) {
            state.waker = Some(waker.clone());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Interim ===

impl Interim {
    /// The upstream sent one. `100` is about what we sent ourselves, `101` about a connection.
    pub(crate) fn push(&self, status: StatusCode, fields: &HeaderMap) {
        if status.as_u16() < 102 {
            return;
        }
        let mut fields = fields.clone();
        headers::strip_for_caller(&mut fields, true);
        let mut state = self.all.state();
        if state.open != self.request || state.bytes.len() > MOST {
            return;
        }
        let reason = status.canonical_reason().unwrap_or_default();
        state.bytes.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).as_bytes());
        for (name, value) in &fields {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                state.bytes.extend_from_slice(part);
            }
        }
        state.bytes.extend_from_slice(b"\r\n");
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(interims: &Interims) -> String {
        let mut bytes = Vec::new();
        interims.take(&mut bytes, Waker::noop());
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn only_an_open_request_gets_its_own() {
        let interims = Interims::default();
        let mut fields = HeaderMap::new();
        for (name, value) in
            [("link", "</a>"), ("connection", "x-hop"), ("x-hop", "1"), ("seawall-source", "x")]
        {
            fields.insert(name, value.parse().unwrap());
        }
        let first = interims.begin();
        first.push(StatusCode::CONTINUE, &fields);
        first.push(StatusCode::SWITCHING_PROTOCOLS, &fields);
        assert_eq!(taken(&interims), "");
        first.push(StatusCode::EARLY_HINTS, &fields);
        first.push(StatusCode::PROCESSING, &HeaderMap::new());
        let expected = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n";
        assert_eq!(taken(&interims), expected);
        assert_eq!(taken(&interims), "");
        interims.end();
        first.push(StatusCode::EARLY_HINTS, &fields);
        assert_eq!(taken(&interims), "");
        let second = interims.begin();
        first.push(StatusCode::EARLY_HINTS, &fields);
        assert_eq!(taken(&interims), "");
        second.push(StatusCode::PROCESSING, &HeaderMap::new());
        assert_eq!(taken(&interims), "HTTP/1.1 102 Processing\r\n\r\n");
    }
}
