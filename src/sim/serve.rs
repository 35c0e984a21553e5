//! Connections and requests: each is carried out as far as its fault lets it, and answered, or not.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_NONE_MATCH, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use super::conn::{Body, Conn, End, Gate, Io};
use super::control;
use super::faults::{Canned, Effect, Quota};
use super::journal::{Answered, Outcome};
use super::lock;
use super::routes::{self, Answer, Applied};
use super::shared::{AppliedWrite, Shared, now};
use super::switches::{self, Switches};
use super::tokens::bearer;
use super::world::Refusal;

/// After an error of `accept` (mostly: no file descriptors left) the listener rests this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a connection that carries a call of the control API outlives the beginning of a refusal.
const FAREWELL: Duration = Duration::from_millis(200);

/// The bytes of an answer that is garbage and would have had no body.
const GARBAGE: usize = 256;

/// Which listener a connection came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Main,
    Control,
}

/// What becomes of a request once it was carried out, or not.
enum Fate {
    Respond(Answer),
    Drip { answer: Answer, bytes: usize, every: Duration },
    Babble(Answer),
    Cut(Answer, End),
    Reset,
    Hang { generation: u64 },
}

/// Accepts until told to stop. Without a gate of its own it serves the main one.
pub(super) async fn listen(shared: Arc<Shared>, control: Option<Gate>, mut stop: watch::Receiver<bool>) {
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
    if let Some(name) = control::status_page(parts.uri.path(), door == Door::Control) {
        let host = parts.headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
        return match control::status_page_answer(&shared, name, host) {
            Some(answer) => Ok(whole(answer, &parts.method)),
            None => std::future::pending().await,
        };
    }
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
    let asked = (parts.method.as_str(), parts.uri.path(), bearer(&parts.headers));
    let verdict = shared.faults().strike(now(), asked);
    let carry_out = {
        let shared = Arc::clone(&shared);
        move || decide(&shared, seq, &parts, &body, verdict.effect, verdict.generation, verdict.quota)
    };
    let fate = match verdict.latency {
        None => carry_out(),
        // In a task of its own: a caller that gives up while it waits does not stop what it asked for.
        Some(latency) => {
            let (decided, fate) = oneshot::channel();
            shared.later(async move {
                tokio::time::sleep(latency).await;
                // An error means that the caller has gone.
                let _ = decided.send(carry_out());
            });
            fate.await.unwrap_or(Fate::Reset)
        }
    };
    match fate {
        Fate::Respond(answer) => Ok(whole(answer, &method)),
        Fate::Drip { answer, .. } if method == Method::HEAD || answer.body.is_empty() => {
            Ok(whole(answer, &method))
        }
        Fate::Drip { answer, bytes, every } => {
            let body = Body::drip(answer.body.clone(), bytes, every);
            Ok(respond(answer, body))
        }
        Fate::Babble(answer) => {
            conn.garble();
            Ok(whole(answer, &method))
        }
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
    quota: Option<Quota>,
) -> Fate {
    let canned = |canned: &Canned| canned_answer(canned, &shared.link_base, parts);
    let carry_out = || carry_out(shared, seq, parts, body, quota);
    let (applied, answered, fate) = match effect {
        None => {
            let answer = carry_out();
            (answer.applied.clone(), Answered::Status(answer.status.as_u16()), Fate::Respond(answer))
        }
        Some(Effect::Status(wanted)) => {
            (None, Answered::Status(wanted.status), Fate::Respond(canned(&wanted)))
        }
        Some(Effect::Limited { status, told }) => {
            let code = "rate_limited";
            let refusal = Refusal { status, code, message: "too many requests".to_owned() };
            let mut answer = refused(&shared.link_base, parts, &refusal);
            if let Some((quota, retry_after)) = told {
                tell_quota(&mut answer, Some(quota), Some(retry_after));
            }
            (None, Answered::Status(status), Fate::Respond(answer))
        }
        Some(Effect::EnvelopeError { status, code, message }) => {
            let mut answer =
                routes::error(&shared.link_base, &parts.uri, &version(parts), (status, &code, &message));
            answer.status = StatusCode::OK;
            (None, Answered::Status(200), Fate::Respond(answer))
        }
        Some(Effect::BadToken) => (None, Answered::Status(401), Fate::Respond(Answer::bad_token())),
        Some(Effect::Redirect { location }) => {
            let target = location.unwrap_or_else(|| format!("{}/", shared.link_base));
            (None, Answered::Status(302), Fate::Respond(Answer::redirect(&target)))
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
        Some(Effect::Drip { bytes, every }) => {
            let answer = carry_out();
            let status = Answered::Status(answer.status.as_u16());
            (answer.applied.clone(), status, Fate::Drip { answer, bytes, every })
        }
        Some(Effect::GarbageBody) => {
            let mut answer = carry_out();
            // Who has the answer already gets its garbage all the same.
            if answer.status == StatusCode::NOT_MODIFIED {
                answer.status = StatusCode::OK;
                answer.content_type = Some(HeaderValue::from_static("application/json"));
            }
            let mut garbage = vec![0; answer.body.len().max(GARBAGE)];
            fastrand::Rng::with_seed(shared.seed ^ seq).fill(&mut garbage);
            answer.body = garbage.into();
            (answer.applied.clone(), Answered::Garbage, Fate::Respond(answer))
        }
        Some(Effect::GarbageHead) => {
            let answer = carry_out();
            (answer.applied.clone(), Answered::Garbage, Fate::Babble(answer))
        }
        Some(Effect::ApplyThenHang) => (carry_out().applied, Answered::Hang, Fate::Hang { generation }),
        Some(Effect::ApplyThenStatus(wanted)) => {
            let applied = carry_out().applied;
            (applied, Answered::Status(wanted.status), Fate::Respond(canned(&wanted)))
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

/// Does what a request asks for; the answer has all fields that it would have if nothing broke.
fn carry_out(
    shared: &Shared,
    seq: u64,
    parts: &http::request::Parts,
    body: &Bytes,
    quota: Option<Quota>,
) -> Answer {
    let answer = apply(shared, seq, parts, body);
    let mut answer = validated(answer, &shared.switches().clone(), &parts.method, &parts.headers);
    tell_quota(&mut answer, quota.or_else(|| told(shared, parts)), None);
    answer
}

fn apply(shared: &Shared, seq: u64, parts: &http::request::Parts, body: &Bytes) -> Answer {
    let tokens = shared.tokens();
    let world = shared.account(&tokens, bearer(&parts.headers));
    let gatekeeper = routes::Gatekeeper {
        tokens: &tokens,
        oauth: &shared.oauth,
        budget: shared.switches().token_budget,
        link_base: &shared.link_base,
    };
    let request = (&parts.method, &parts.uri, &parts.headers, body);
    if parts.method == Method::GET || parts.method == Method::HEAD {
        return routes::answer(&world, &gatekeeper, shared.now(), request);
    }
    // Held while the write takes effect, so that the log has the order of the effects.
    let mut log = lock(&shared.applied);
    let answer = routes::answer(&world, &gatekeeper, shared.now(), request);
    if let Some(Applied { id }) = &answer.applied {
        log.push(AppliedWrite {
            seq,
            method: parts.method.clone(),
            path: parts.uri.path().to_owned(),
            id: id.clone(),
            body: body.clone(),
            account: world.name().map(str::to_owned),
        });
        drop(log);
        shared.deliver_events();
    }
    answer
}

/// What the switch for rate-limit headers tells a caller.
fn told(shared: &Shared, parts: &http::request::Parts) -> Option<Quota> {
    let window = shared.switches().rate_limit_headers?;
    Some(shared.told().count(window, bearer(&parts.headers), now()))
}

fn tell_quota(answer: &mut Answer, quota: Option<Quota>, retry_after: Option<u64>) {
    if let Some(Quota { limit, remaining, reset }) = quota {
        for (name, value) in
            [("x-ratelimit-limit", limit), ("x-ratelimit-remaining", remaining), ("x-ratelimit-reset", reset)]
        {
            answer.headers.push((HeaderName::from_static(name), HeaderValue::from(value)));
        }
    }
    if let Some(seconds) = retry_after {
        answer.headers.push((RETRY_AFTER, HeaderValue::from(seconds)));
    }
}

fn version(parts: &http::request::Parts) -> Value {
    routes::version(&parts.headers).unwrap_or_else(|_| json!(2))
}

fn refused(link_base: &str, parts: &http::request::Parts, refusal: &Refusal) -> Answer {
    Answer::error(link_base, &parts.uri, &version(parts), refusal)
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
            let refusal = Refusal {
                status: canned.status,
                code: "simulated_fault",
                message: "the simulator was told to answer so".to_owned(),
            };
            refused(link_base, parts, &refusal)
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
