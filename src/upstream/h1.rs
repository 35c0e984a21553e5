//! The pool of HTTP/1.1 connections to one upstream.
//!
//! A request takes the connection that was used last. When none is free it begins one and takes whichever comes
//! first, that or another request's that has become free: where connecting is slow, work goes on over what there is.
//! There are never fewer attempts under way than requests that wait, and a request that leaves costs no other one its
//! connection: an attempt's connection goes to who waits longest, and its failure only to one for whom no other attempt
//! is under way.
//!
//! A connection past its age, or unused for too long, takes no request. It is closed when it comes back, or, when it
//! lies in the pool, at the next look there, which is at the latest an `idle_timeout` away. The age has some chance in
//! it, so that connections made together do not end together.
//!
//! Nothing is ever sent twice here. That a connection took nothing of a request (it had died in the pool; hyper hands
//! the request back) is told as `ProxyError::Unsent`.

use super::client::{Fresh, Taken, failed};
use super::connect::{Connector, Failure, Stage, Stream};
use crate::error::ProxyError;
use crate::http::Body;
use crate::http::body::chain;
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(super) struct Pool(Arc<Shared>);

struct Shared {
    connector: Connector,
    idle_timeout: Duration,
    max_idle: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Used last at the end.
    idle: Vec<Idle>,
    /// Waiting longest at the front.
    waiting: VecDeque<oneshot::Sender<Result<Connection, String>>>,
    /// Attempts under way.
    connecting: usize,
    is_swept: bool,
}

struct Connection {
    sender: http1::SendRequest<Body>,
    /// From when on it takes no request.
    retires_at: Instant,
    /// Whether a request was answered over it.
    has_answered: bool,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

/// Longest head of an answer, in bytes.
const MAX_HEAD: usize = 1 << 20;

// === impl Pool ===

impl Pool {
    pub(super) fn new(connector: Connector) -> Self {
        let snapshot = connector.config();
        let settings = &snapshot.settings.upstream;
        Self(Arc::new(Shared {
            connector,
            idle_timeout: *settings.idle_timeout,
            max_idle: settings.max_idle as usize,
            state: Mutex::default(),
        }))
    }

    /// Sends one request.
    pub(super) async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, ProxyError> {
        let is_fresh = request.extensions().get::<Fresh>().is_some();
        let taken = if is_fresh { None } else { self.state().take(self.0.idle_timeout) };
        let mut connection = match taken {
            Some(connection) => connection,
            None => self.wait(is_fresh).await?,
        };
        if let Some(taken) = request.extensions().get::<Taken>() {
            taken.set();
        }
        // The target as an origin has it (RFC 9112 §3.2.1); `Host` is set already.
        let target = request.uri_mut();
        *target = target.path_and_query().cloned().map_or_else(Uri::default, Uri::from);
        match connection.sender.try_send_request(request).await {
            Ok(response) => {
                connection.has_answered = true;
                self.give_back(connection);
                Ok(response)
            }
            Err(mut error) => Err(match error.take_message() {
                Some(_) => ProxyError::Unsent(chain(error.error())),
                None => failed(&error.into_error(), !connection.has_answered),
            }),
        }
    }

    /// Begins a connection, and waits for any. A fresh one is not to come out of the pool.
    async fn wait(&self, is_fresh: bool) -> Result<Connection, ProxyError> {
        let (give, given) = oneshot::channel();
        {
            let mut state = self.state();
            // One may have come back since the last look, when nobody waited yet.
            if !is_fresh && let Some(connection) = state.take(self.0.idle_timeout) {
                return Ok(connection);
            }
            state.waiting.push_back(give);
            state.connecting += 1;
        }
        let pool = self.clone();
        tokio::spawn(async move {
            let made = pool.connect().await;
            pool.attempted(made);
        });
        match given.await {
            Ok(result) => result.map_err(ProxyError::Connect),
            // Nobody drops the sender of one who waits but the end of the runtime.
            Err(_) => Err(ProxyError::Connect("Seawall is ending".to_owned())),
        }
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        let connector = &self.0.connector;
        let snapshot = connector.config();
        let limit = Connector::limit(&snapshot);
        let result = async {
            let stream = connector.connect(&snapshot, limit).await?;
            let shake = |error: &hyper::Error| Failure::new(Stage::Protocol, chain(error));
            let (mut sender, connection) = http1::Builder::new()
                .max_buf_size(MAX_HEAD)
                .handshake::<Stream, Body>(stream)
                .await
                .map_err(|error| shake(&error))?;
            // Ends when the sender is dropped and nothing is under way, or the peer closes.
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!("a connection to the upstream ended: {}", chain(&error));
                }
            });
            limit.hold("the connection", sender.ready()).await?.map_err(|error| shake(&error))?;
            let retires_at = retirement(*snapshot.settings.upstream.connection_max_age);
            Ok(Connection { sender, retires_at, has_answered: false })
        };
        let result = result.await;
        connector.count(&result);
        result
    }

    /// After an answer's head: the connection is free when the body has been read to its end.
    fn give_back(&self, mut connection: Connection) {
        if connection.sender.is_ready() {
            self.put(&mut self.state(), connection);
            return;
        }
        if connection.sender.is_closed() {
            return;
        }
        let pool = self.clone();
        tokio::spawn(async move {
            if connection.sender.ready().await.is_ok() {
                pool.put(&mut pool.state(), connection);
            }
        });
    }

    /// An attempt is over. Its failure is told to who waits longest of those for whom no other one is under way.
    fn attempted(&self, made: Result<Connection, Failure>) {
        let mut state = self.state();
        state.connecting -= 1;
        let message = match made {
            Ok(connection) => {
                if self.put(&mut state, connection) {
                    return;
                }
                "the connection was closed as soon as it was made".to_owned()
            }
            Err(failure) => failure.into_message(),
        };
        // Those who have left.
        state.waiting.retain(|waiting| !waiting.is_closed());
        while state.waiting.len() > state.connecting
            && let Some(waiting) = state.waiting.pop_front()
        {
            let _ = waiting.send(Err(message.clone()));
        }
    }

    /// To who waits longest, else into the pool. Whether it can be used.
    fn put(&self, state: &mut State, mut connection: Connection) -> bool {
        let now = Instant::now();
        if !connection.is_usable(now) {
            return false;
        }
        while let Some(waiting) = state.waiting.pop_front() {
            match waiting.send(Ok(connection)) {
                // That one has left.
                Err(Ok(back)) => connection = back,
                _ => return true,
            }
        }
        if state.idle.len() >= self.0.max_idle {
            // A closed one keeps nobody out.
            state.idle.retain(|idle| idle.connection.is_usable(now));
        }
        if state.idle.len() < self.0.max_idle {
            state.idle.push(Idle { connection, since: now });
            self.sweep(state);
        }
        true
    }

    /// Sees to it that what lies in the pool is closed in time. The task lives while there is something in it.
    fn sweep(&self, state: &mut State) {
        if std::mem::replace(&mut state.is_swept, true) {
            return;
        }
        let weak = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            let mut at = Instant::now();
            loop {
                tokio::time::sleep_until(at).await;
                let Some(shared) = weak.upgrade() else { return };
                match Pool(shared).clear() {
                    Some(next) => at = next,
                    None => return,
                }
            }
        });
    }

    /// Drops what is too old. When to look again, unless nothing is left.
    fn clear(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut state = self.state();
        let idle_timeout = self.0.idle_timeout;
        state.idle.retain(|idle| idle.connection.is_usable(now) && idle.ends_at(idle_timeout) > now);
        let next = state.idle.iter().map(|idle| idle.ends_at(idle_timeout)).min();
        state.is_swept = next.is_some();
        next
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many connections lie in the pool that seem to be good.
    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        let now = Instant::now();
        self.state().idle.iter().filter(|idle| idle.connection.is_usable(now)).count()
    }
}

/// When a connection that is made now takes no request any more: up to a tenth before its age.
pub(super) fn retirement(max_age: Duration) -> Instant {
    Instant::now() + max_age.mul_f64(1.0 - fastrand::f64() / 10.0)
}

// === impl State ===

impl State {
    /// The free connection that was used last.
    fn take(&mut self, idle_timeout: Duration) -> Option<Connection> {
        // Without a look at the clock when there is none.
        let mut now = None;
        while let Some(Idle { connection, since }) = self.idle.pop() {
            let now = *now.get_or_insert_with(Instant::now);
            if connection.is_usable(now) && now.saturating_duration_since(since) < idle_timeout {
                return Some(connection);
            }
        }
        None
    }
}

// === impl Connection ===

impl Connection {
    fn is_usable(&self, now: Instant) -> bool {
        now < self.retires_at && self.sender.is_ready()
    }
}

// === impl Idle ===

impl Idle {
    fn ends_at(&self, idle_timeout: Duration) -> Instant {
        self.connection.retires_at.min(self.since + idle_timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Settings, Snapshot};
    use crate::telemetry::Metrics;
    use hyper_util::rt::TokioIo;

    /// A connection whose other end is gone.
    async fn dead() -> Connection {
        let (ours, theirs) = tokio::io::duplex(64);
        let (mut sender, connection) =
            http1::handshake::<_, Body>(TokioIo::new(ours)).await.expect("nothing is sent yet");
        let task = tokio::spawn(connection);
        sender.ready().await.expect("it is alive");
        drop(theirs);
        let _ = task.await;
        Connection { sender, retires_at: Instant::now() + Duration::from_secs(3600), has_answered: false }
    }

    #[tokio::test]
    async fn who_waits_is_told_of_a_connection_that_dies_as_it_is_handed_over() {
        let snapshot = Arc::new(Snapshot::of(Settings::default()).unwrap());
        let source: super::super::connect::Source = Arc::new(move || snapshot.clone());
        let pool = Pool::new(Connector::new(source, &Metrics::new()).unwrap());
        let (give, mut given) = oneshot::channel();
        {
            let mut state = pool.state();
            state.waiting.push_back(give);
            state.connecting = 1;
        }
        // What `connect` gave was good when it looked.
        pool.attempted(Ok(dead().await));
        let told = given.try_recv().expect("nobody else would tell").err();
        assert!(told.is_some_and(|told| told.contains("as soon as it was made")));
        assert_eq!(pool.idle(), 0);
    }
}
