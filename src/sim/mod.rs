//! The Flexport simulator: an upstream with a seeded world, faults on demand and a journal, for tests, the demo and
//! people who want to see an outage without one.
//!
//! It speaks HTTP/1.1 and h2c on a main listener and behaves there like Flexport's v2 API as far as that is known;
//! `/_sim/…` drives it. A second listener serves `/_sim/…` only and is touched by no fault, so that a simulator that
//! refuses connections can be told to stop. The same seed makes the same bytes; only the stamps of writes are of
//! real time. Nothing here is used by the proxy itself, and nothing here uses the proxy's capabilities: a shared
//! mistake would hide.
//!
//! A request is carried out wholly or not at all: between the arrival of its body and its effect nothing waits that
//! a lost connection could cancel.

mod conn;
mod control;
mod faults;
mod journal;
mod query;
mod routes;
mod seed;
mod switches;
mod tokens;
mod world;

#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_NONE_MATCH, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};

use conn::{Body, Conn, End, Gate, Io};
use faults::{Canned, Effect, Faults};
use journal::{Answered, Journal, Outcome};
use routes::{Access, Answer, Applied};
use switches::Switches;
use tokens::Tokens;
use world::{Refusal, World};

/// The base of the links in the real API's bodies.
pub const LINK_BASE: &str = "https://api.flexport.com";

/// After an error of `accept` (mostly: no file descriptors left) the listener rests this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a connection that carries a call of the control API outlives the beginning of a refusal.
const FAREWELL: Duration = Duration::from_millis(200);

/// How a simulator is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it listens; port 0 takes any.
    pub listen: SocketAddr,
    /// Where the control API listens that no fault touches; by default on the next port, or on any when `listen`
    /// has port 0.
    pub control: Option<SocketAddr>,
    /// What the world is made from: the same seed makes the same bytes.
    pub seed: u64,
    /// How many shipments the world begins with.
    pub shipments: usize,
    /// What the links in the bodies begin with.
    pub link_base: String,
}

/// A running simulator. Dropping it stops it at once.
#[derive(Debug)]
pub struct Simulator {
    shared: Arc<Shared>,
    control: SocketAddr,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

/// What all connections share.
struct Shared {
    world: RwLock<World>,
    journal: Mutex<Journal>,
    applied: Mutex<Vec<AppliedWrite>>,
    faults: Mutex<Faults>,
    tokens: Mutex<Arc<Tokens>>,
    switches: Mutex<Switches>,
    gate: Arc<Gate>,
    /// The generation of the faults; what hangs waits for the next one.
    generation: watch::Sender<u64>,
    /// Counts refusals; each ends the open connections.
    refusals: watch::Sender<u64>,
    /// Opens the gate when the `until` of a refusal passes.
    reopen: Mutex<Option<AbortHandle>>,
    /// For timers that are set by callers outside the runtime.
    runtime: tokio::runtime::Handle,
}

/// A write that took effect.
#[derive(Debug)]
struct AppliedWrite {
    seq: u64,
    method: Method,
    path: String,
    id: Value,
    body: Bytes,
}

/// Which listener a connection came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Main,
    Control,
}

/// What becomes of a request once it was carried out, or not.
enum Fate {
    Respond(Answer),
    Cut(Answer, End),
    Reset,
    Hang { generation: u64 },
}

// === impl Options ===

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            control: None,
            seed: 1,
            shipments: 120,
            link_base: LINK_BASE.to_owned(),
        }
    }
}

impl Options {
    fn control(&self, main: SocketAddr) -> io::Result<SocketAddr> {
        if let Some(control) = self.control {
            return Ok(control);
        }
        if self.listen.port() == 0 {
            return Ok(SocketAddr::new(main.ip(), 0));
        }
        let port = main.port().checked_add(1).ok_or_else(|| {
            io::Error::other("there is no port after 65535 for the control API; choose one with `control`")
        })?;
        Ok(SocketAddr::new(main.ip(), port))
    }
}

// === impl Simulator ===

impl Simulator {
    /// Makes the world and begins to listen. Must be called inside a tokio runtime.
    pub async fn start(options: Options) -> io::Result<Self> {
        let (seed, shipments, link_base) = (options.seed, options.shipments, options.link_base.clone());
        let world = tokio::task::spawn_blocking(move || World::new(seed, shipments, &link_base))
            .await
            .map_err(io::Error::other)?;
        let gate = Gate::bind(options.listen)
            .map_err(|error| named(&error, &format!("simulator: cannot listen on {}", options.listen)))?;
        let control = options.control(gate.addr())?;
        let control = Gate::bind(control)
            .map_err(|error| named(&error, &format!("simulator: cannot listen on {control} for control")))?;
        let control_addr = control.addr();
        let shared = Arc::new(Shared {
            world: RwLock::new(world),
            journal: Mutex::default(),
            applied: Mutex::default(),
            faults: Mutex::new(Faults::new(seed)),
            tokens: Mutex::default(),
            switches: Mutex::default(),
            gate: Arc::new(gate),
            generation: watch::Sender::new(0),
            refusals: watch::Sender::new(0),
            reopen: Mutex::new(None),
            runtime: tokio::runtime::Handle::current(),
        });
        let stop = watch::Sender::new(false);
        let tasks = vec![
            tokio::spawn(listen(Arc::clone(&shared), None, stop.subscribe())),
            tokio::spawn(listen(Arc::clone(&shared), Some(control), stop.subscribe())),
        ];
        Ok(Self { shared, control: control_addr, stop, tasks })
    }

    /// The address of the main listener.
    pub fn addr(&self) -> SocketAddr {
        self.shared.gate.addr()
    }

    /// The base URL of the main listener, such as `http://127.0.0.1:8470`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// The base URL of the listener that serves `/_sim` only and that no fault touches.
    pub fn control_url(&self) -> String {
        format!("http://{}", self.control)
    }

    /// The journal, like `GET /_sim/requests`.
    pub fn journal(&self) -> Vec<Value> {
        self.shared.journal().list(None, None)
    }

    /// What took effect, like `GET /_sim/state`.
    pub fn state(&self) -> Value {
        self.shared.state()
    }

    /// Replaces the faults, like `PUT /_sim/faults`. The error names the field.
    #[expect(clippy::needless_pass_by_value, reason = "callers write `set_faults(json!([…]))`")]
    pub fn set_faults(&self, faults: Value) -> Result<(), String> {
        self.shared.set_faults(&faults)
    }

    /// Ends all faults, like `DELETE /_sim/faults`.
    pub fn clear_faults(&self) {
        if let Err(error) = self.shared.clear_faults() {
            tracing::error!(%error, "simulator: cannot listen again");
        }
    }

    /// Turns switches, like `PUT /_sim/switches`. The error names the field.
    #[expect(clippy::needless_pass_by_value, reason = "callers write `set_switches(json!({…}))`")]
    pub fn set_switches(&self, switches: Value) -> Result<(), String> {
        self.shared.switches().set(&switches)
    }

    /// Sets which tokens are bad, expired or without a scope, like `PUT /_sim/tokens`. The error names the field.
    #[expect(clippy::needless_pass_by_value, reason = "callers write `set_tokens(json!({…}))`")]
    pub fn set_tokens(&self, tokens: Value) -> Result<(), String> {
        self.shared.set_tokens(Tokens::parse(&tokens)?);
        Ok(())
    }

    /// Stops listening, breaks off open connections, and waits until both are done.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        for task in std::mem::take(&mut self.tasks) {
            if let Err(error) = task.await {
                tracing::error!(%error, "simulator: a listener ended badly");
            }
        }
        self.shared.gate.close();
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        if let Some(timer) = lock(&self.shared.reopen).take() {
            timer.abort();
        }
    }
}

// === impl Shared ===

impl Shared {
    fn faults(&self) -> MutexGuard<'_, Faults> {
        lock(&self.faults)
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        lock(&self.journal)
    }

    fn switches(&self) -> MutexGuard<'_, Switches> {
        lock(&self.switches)
    }

    fn tokens(&self) -> Arc<Tokens> {
        Arc::clone(&lock(&self.tokens))
    }

    fn set_tokens(&self, tokens: Tokens) {
        *lock(&self.tokens) = Arc::new(tokens);
    }

    fn set_faults(&self, spec: &Value) -> Result<(), String> {
        let list = faults::parse(spec)?;
        self.replace_faults(list)
            .map_err(|error| format!("faults: the simulator cannot listen again: {error}"))
    }

    fn clear_faults(&self) -> io::Result<()> {
        self.replace_faults(Vec::new())
    }

    fn replace_faults(&self, list: Vec<faults::Fault>) -> io::Result<()> {
        // Held throughout, so that of two callers the later one has the gate, too.
        let mut faults = self.faults();
        let generation = faults.replace(list);
        let refusal = faults.refusal(now());
        if let Some(timer) = lock(&self.reopen).take() {
            timer.abort();
        }
        let _inside = self.runtime.enter();
        let opened = match refusal {
            None => self.gate.open(),
            Some(faults::Refusal { until }) => {
                self.gate.close();
                self.refusals.send_modify(|count| *count += 1);
                if let Some(until) = until {
                    self.reopen_at(until, generation);
                }
                Ok(())
            }
        };
        drop(faults);
        self.generation.send_replace(generation);
        opened
    }

    fn state(&self) -> Value {
        let applied: Vec<Value> = lock(&self.applied).iter().map(AppliedWrite::describe).collect();
        let world = self.world.read().unwrap_or_else(PoisonError::into_inner);
        json!({"applied": applied, "counts": world.counts()})
    }

    /// Sets the timer that ends a refusal.
    fn reopen_at(&self, until: Timestamp, generation: u64) {
        let wait = Duration::try_from(until.duration_since(now())).unwrap_or_default();
        let mut replaced = self.generation.subscribe();
        let gate = Arc::clone(&self.gate);
        let timer = self.runtime.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = replaced.wait_for(|now| *now > generation) => return,
            }
            if let Err(error) = gate.open() {
                tracing::error!(%error, "simulator: cannot listen again");
            }
        });
        *lock(&self.reopen) = Some(timer.abort_handle());
    }
}

impl Access for Shared {
    fn read<T>(&self, with: impl FnOnce(&World) -> T) -> T {
        with(&self.world.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, with: impl FnOnce(&mut World) -> T) -> T {
        with(&mut self.world.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("gate", &self.gate).finish_non_exhaustive()
    }
}

// === impl AppliedWrite ===

impl AppliedWrite {
    fn describe(&self) -> Value {
        json!({
            "seq": self.seq,
            "method": self.method.as_str(),
            "path": self.path,
            "id": self.id,
            "body": journal::text(&self.body),
        })
    }
}

/// Accepts until told to stop. Without a gate of its own it serves the main one.
async fn listen(shared: Arc<Shared>, control: Option<Gate>, mut stop: watch::Receiver<bool>) {
    let door = if control.is_some() { Door::Control } else { Door::Main };
    let mut connections = JoinSet::new();
    loop {
        let gate = control.as_ref().unwrap_or(&shared.gate);
        tokio::select! {
            accepted = poll_fn(|cx| gate.poll_accept(cx)) => match accepted {
                Ok(stream) => {
                    // Subscribed here, so that a refusal right after the accept still ends it.
                    let refusals = shared.refusals.subscribe();
                    connections.spawn(serve(Arc::clone(&shared), stream, door, refusals));
                }
                Err(error) => {
                    tracing::warn!(%error, "simulator: cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            _ = stop.changed() => break,
        }
    }
    connections.shutdown().await;
}

/// Serves a connection until it ends, by itself or by a fault.
async fn serve(
    shared: Arc<Shared>,
    stream: tokio::net::TcpStream,
    door: Door,
    mut refusals: watch::Receiver<u64>,
) {
    // An error means that the peer has already gone, which the first read tells.
    let _ = stream.set_nodelay(true);
    let conn = Arc::new(Conn::default());
    let io = TokioIo::new(Io::new(stream, Arc::clone(&conn)));
    let service = service_fn(|request| handle(Arc::clone(&shared), Arc::clone(&conn), door, request));
    let builder = auto::Builder::new(TokioExecutor::new());
    let mut serving = pin!(builder.serve_connection(io, service));
    tokio::select! {
        _ = serving.as_mut() => {}
        () = conn.ended() => {}
        Ok(()) = refusals.changed(), if door == Door::Main => {
            // The caller who asked for the refusal by this connection gets its answer.
            if conn.is_controlled() {
                serving.as_mut().graceful_shutdown();
                // Whether it ended in time or not, it ends now.
                let _ = tokio::time::timeout(FAREWELL, serving.as_mut()).await;
            }
        }
    }
}

/// Answers a request, or does to its connection what a fault asks for.
async fn handle(
    shared: Arc<Shared>,
    conn: Arc<Conn>,
    door: Door,
    request: Request<Incoming>,
) -> Result<Response<Body>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let is_control = control::is_control(parts.uri.path());
    if is_control {
        conn.mark_controlled();
    }
    let body = body.collect().await?.to_bytes();
    if is_control {
        let answer = control::answer(&shared, &parts.method, &parts.uri, &body);
        return Ok(whole(answer, &parts.method));
    }
    if door == Door::Control {
        let error = json!({"error": "this listener serves /_sim only; the API is on the main listener"});
        return Ok(whole(Answer::json(StatusCode::NOT_FOUND, error.to_string()), &parts.method));
    }
    if shared.faults().refusal(now()).is_some() {
        // It came by a connection whose end is on its way: to a server that is gone, nothing arrives.
        conn.end(End::Reset);
        return std::future::pending().await;
    }
    let method = parts.method.clone();
    let seq = shared.journal().arrive(now(), &parts.method, &parts.uri, &parts.headers, &body);
    let verdict = shared.faults().strike(now(), parts.method.as_str(), parts.uri.path());
    let carry_out = {
        let shared = Arc::clone(&shared);
        move || decide(&shared, seq, &parts, &body, verdict.effect, verdict.generation)
    };
    let fate = match verdict.latency {
        None => carry_out(),
        // In a task of its own: a caller that gives up while it waits does not stop what it asked for.
        Some(latency) => {
            let late = tokio::spawn(async move {
                tokio::time::sleep(latency).await;
                carry_out()
            });
            late.await.unwrap_or_else(|_| Fate::Reset)
        }
    };
    match fate {
        Fate::Respond(answer) => Ok(whole(answer, &method)),
        // Without a body there is no middle: then nothing of the answer comes.
        Fate::Cut(answer, end) if method == Method::HEAD || answer.body.len() < 2 => {
            conn.end(end);
            std::future::pending().await
        }
        Fate::Cut(answer, end) => Ok(cut(answer, end, &conn)),
        Fate::Reset => {
            conn.end(End::Reset);
            std::future::pending().await
        }
        Fate::Hang { generation } => {
            let mut replaced = shared.generation.subscribe();
            // An error means that the simulator is gone; then this connection ends, too.
            let _ = replaced.wait_for(|now| *now > generation).await;
            conn.end(End::Close);
            std::future::pending().await
        }
    }
}

/// Carries a request out as far as its fault lets it, and notes what became of it.
fn decide(
    shared: &Shared,
    seq: u64,
    parts: &http::request::Parts,
    body: &Bytes,
    effect: Option<Effect>,
    generation: u64,
) -> Fate {
    let link_base = |shared: &Shared| shared.read(|world| world.links.clone());
    let canned = |canned: &Canned| canned_answer(canned, link_base(shared).base(), parts);
    let carry_out = || {
        let tokens = shared.tokens();
        let request = (&parts.method, &parts.uri, &parts.headers, body);
        if parts.method == Method::GET || parts.method == Method::HEAD {
            return routes::answer(shared, &tokens, now(), request);
        }
        // Held while the write takes effect, so that the log has the order of the effects.
        let mut log = lock(&shared.applied);
        let answer = routes::answer(shared, &tokens, now(), request);
        if let Some(Applied { id }) = &answer.applied {
            // A write's body is kept but for the token endpoint, whose body is nothing but secrets.
            let is_secret = parts.uri.path().starts_with("/oauth/");
            log.push(AppliedWrite {
                seq,
                method: parts.method.clone(),
                path: parts.uri.path().to_owned(),
                id: id.clone(),
                body: if is_secret { Bytes::new() } else { body.clone() },
            });
        }
        answer
    };
    let (applied, answered, fate) = match effect {
        None => {
            let answer = validated(carry_out(), &shared.switches().clone(), &parts.method, &parts.headers);
            (answer.applied.clone(), Answered::Status(answer.status.as_u16()), Fate::Respond(answer))
        }
        Some(Effect::Status(wanted)) => {
            (None, Answered::Status(wanted.status), Fate::Respond(canned(&wanted)))
        }
        Some(Effect::Hang) => (None, Answered::Hang, Fate::Hang { generation }),
        Some(Effect::ResetBeforeHeaders) => (None, Answered::Reset, Fate::Reset),
        Some(Effect::ResetMidBody) => {
            let answer = carry_out();
            (answer.applied.clone(), Answered::Reset, Fate::Cut(answer, End::Reset))
        }
        Some(Effect::Truncate) => {
            let answer = carry_out();
            (answer.applied.clone(), Answered::Truncated, Fate::Cut(answer, End::Close))
        }
        Some(Effect::ApplyThenHang) => (carry_out().applied, Answered::Hang, Fate::Hang { generation }),
        Some(Effect::ApplyThenStatus(wanted)) => {
            (carry_out().applied, Answered::Status(wanted.status), Fate::Respond(canned(&wanted)))
        }
    };
    let outcome = Outcome {
        is_applied: applied.is_some(),
        answered: Some(answered),
        result_id: applied.map(|applied| applied.id).filter(|id| !id.is_null()),
    };
    shared.journal().settle(seq, &parts.method, outcome);
    fate
}

/// The answer that a fault gives.
fn canned_answer(canned: &Canned, link_base: &str, parts: &http::request::Parts) -> Answer {
    let status = StatusCode::from_u16(canned.status).expect("faults::parse lets only 200 to 599 through");
    let mut answer = match &canned.body {
        Some(Value::String(text)) => {
            let is_json = serde_json::from_str::<Value>(text).is_ok();
            let mut answer = Answer::json(status, text.clone());
            if !is_json {
                answer.content_type = Some(HeaderValue::from_static("text/plain; charset=utf-8"));
            }
            answer
        }
        Some(body) => Answer::json(status, body.to_string()),
        None => {
            let version = routes::version(&parts.headers).unwrap_or_else(|_| json!(2));
            let refusal = Refusal {
                status: canned.status,
                code: "simulated_fault",
                message: "the simulator was told to answer so".to_owned(),
            };
            Answer::error(link_base, &parts.uri, &version, &refusal)
        }
    };
    if let Some(value) = canned.retry_after.as_ref().and_then(|text| HeaderValue::from_str(text).ok()) {
        answer.headers.push((RETRY_AFTER, value));
    }
    answer
}

/// Adds what the switches ask for; may make a 304 of a 200.
fn validated(mut answer: Answer, switches: &Switches, method: &Method, headers: &HeaderMap) -> Answer {
    let is_read = method == Method::GET || method == Method::HEAD;
    if !is_read || answer.status != StatusCode::OK {
        return answer;
    }
    if let Some(value) = &switches.cache_control {
        answer.headers.push((CACHE_CONTROL, value.clone()));
    }
    if let Some(tag) = switches.validators.tag(&answer.body) {
        let is_known = headers
            .get_all(IF_NONE_MATCH)
            .iter()
            .any(|value| value.to_str().is_ok_and(|value| switches::names(value, &tag)));
        if let Ok(value) = HeaderValue::from_str(&tag) {
            answer.headers.push((ETAG, value));
        }
        if is_known {
            answer.status = StatusCode::NOT_MODIFIED;
            answer.content_type = None;
            answer.body = Bytes::new();
        }
    }
    answer
}

fn whole(answer: Answer, method: &Method) -> Response<Body> {
    let is_bodiless = method == Method::HEAD || answer.body.is_empty();
    let body = Body::Whole((!is_bodiless).then(|| answer.body.clone()));
    respond(answer, body)
}

/// Half of an answer, after which the connection ends.
fn cut(answer: Answer, end: End, conn: &Arc<Conn>) -> Response<Body> {
    let first = Some(answer.body.slice(..answer.body.len() / 2));
    respond(answer, Body::Cut { first, end, conn: Arc::clone(conn) })
}

fn respond(answer: Answer, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    if let Some(value) = answer.content_type {
        headers.insert(CONTENT_TYPE, value);
    }
    if answer.status != StatusCode::NOT_MODIFIED && answer.status != StatusCode::NO_CONTENT {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(answer.body.len()));
    }
    for (name, value) in answer.headers {
        headers.append(name, value);
    }
    response
}

/// The simulator's wall clock, read here only: arrivals, ends of faults, and the stamps of writes.
fn now() -> Timestamp {
    Timestamp::now()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn named(error: &io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
