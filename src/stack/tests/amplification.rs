//! What retries add to an outage, and what they never touch.

use super::*;
use crate::event::Kind;
use crate::http::delivery::{Class, Delivery, Doubt, Refusal, Unsent};
use std::collections::{BTreeSet, HashSet};

/// What arrived: when, of which call, and whether it was a further attempt.
#[derive(Default)]
struct Log {
    calls: Vec<Instant>,
    arrived: Vec<(Instant, bool)>,
    seen: HashSet<String>,
}

/// How an upstream fails, and how long that takes.
#[derive(Clone, Copy, Debug)]
struct Failing {
    how: fn() -> Said,
    after: Duration,
}

const WINDOW: Duration = Duration::from_secs(10);
const CALLS_PER_SECOND: u32 = 200;

// === impl Log ===

impl Log {
    fn note(&mut self, call: String) {
        let is_further = !self.seen.insert(call);
        self.arrived.push((Instant::now(), is_further));
    }

    /// Attempts and calls of the ten seconds that end at `end`.
    fn of_window(&self, end: Instant) -> (usize, usize) {
        let is_in = |at: &Instant| *at <= end && *at + WINDOW > end;
        let attempts = self.arrived.iter().filter(|(at, _)| is_in(at)).count();
        (attempts, self.calls.iter().filter(|at| is_in(at)).count())
    }
}

/// 200 reads a second, of an upstream that is well for some time and then fails for good.
async fn failing(world: &World, failing: Failing, well_for: Duration, ill_for: Duration) -> Log {
    world.tick();
    let began = Instant::now();
    let log = Arc::new(Mutex::new(Log::default()));
    let upstream = world.stack({
        let log = log.clone();
        move |request| {
            let log = log.clone();
            let call = request.request.uri().to_string();
            attempt(request, async move {
                log.lock().unwrap().note(call);
                if Instant::now() - began < well_for {
                    sleep(50 * MS).await;
                    return said(StatusCode::OK);
                }
                sleep(failing.after).await;
                (failing.how)()
            })
        }
    });
    let mut callers = JoinSet::new();
    let count = (well_for + ill_for).as_millis() as u32 * CALLS_PER_SECOND / 1000;
    for call in 0..count {
        sleep_until(began + SECOND * call / CALLS_PER_SECOND).await;
        log.lock().unwrap().calls.push(Instant::now());
        let mut upstream = upstream.clone();
        let request = world.call(&Method::GET, &format!("/shipments?call={call}"), Lane::LiveRead);
        callers.spawn(async move { upstream.call(request).await });
    }
    while callers.join_next().await.is_some() {}
    std::mem::take(&mut log.lock().unwrap())
}

/// When a breaker first opened.
fn watch_opening(world: &World) -> tokio::task::JoinHandle<Instant> {
    let mut events = world.bus.watch();
    tokio::spawn(async move {
        loop {
            if let Ok(event) = events.recv().await
                && let Kind::Breaker { to, .. } = event.kind
                && to == "open"
            {
                return Instant::now();
            }
        }
    })
}

#[tokio::test(start_paused = true)]
async fn in_an_outage_at_200_a_second_attempts_per_call_stay_below_1_12_and_none_is_repeated_once_it_is_open()
{
    fastrand::seed(11);
    let kinds: [fn() -> Said; 4] = [
        || said(StatusCode::INTERNAL_SERVER_ERROR),
        || said(StatusCode::BAD_GATEWAY),
        || Err(ProxyError::Connect("nobody listens".into())),
        || Err(ProxyError::Cut("in the middle".into())),
    ];
    let mut retries = 0;
    for how in kinds {
        for after in [Duration::ZERO, 400 * MS, 2 * SECOND] {
            for well_for in [Duration::ZERO, 12 * SECOND] {
                let world = World::new();
                let opening = watch_opening(&world);
                let log = failing(&world, Failing { how, after }, well_for, 8 * SECOND).await;
                assert!(opening.is_finished(), "it never opened");
                let opened = opening.await.unwrap();
                let (attempts, calls) = log.of_window(opened);
                let what = format!("{:?}, after {after:?}, {well_for:?} well", delivery_of(&how()));
                assert!(attempts * 100 <= calls * 112, "{attempts} attempts of {calls} calls: {what}");
                let late = log.arrived.iter().filter(|(at, is_further)| *is_further && *at > opened).count();
                assert_eq!(late, 0, "further attempts after the opening: {what}");
                retries += log.arrived.iter().filter(|(_, is_further)| *is_further).count();
            }
        }
    }
    assert!(retries > 200, "there were retries at all: {retries}");
}

#[tokio::test(start_paused = true)]
async fn where_a_breaker_only_observes_the_budget_alone_keeps_any_ten_seconds_below_1_12() {
    fastrand::seed(12);
    let world = World::new();
    let observe = crate::breaker::Mode::Observe;
    world.breakers.set_override(crate::breaker::ALL, observe, "a test", None, "a test", false).await.unwrap();
    let how = Failing { how: || said(StatusCode::BAD_GATEWAY), after: 20 * MS };
    let log = failing(&world, how, Duration::ZERO, 60 * SECOND).await;
    let began = log.calls[0];
    for tenth in 100..600 {
        let (attempts, calls) = log.of_window(began + 100 * MS * tenth);
        assert!(attempts * 100 <= calls * 112, "{attempts} attempts of {calls} calls, {tenth}");
        assert!(attempts * 100 >= calls * 105, "what is there is used: {attempts} of {calls}");
    }
}

/// Every way in which an attempt can end.
fn ends() -> Vec<fn() -> Said> {
    vec![
        || said(StatusCode::OK),
        || said(StatusCode::CREATED),
        || said(StatusCode::FOUND),
        || said(StatusCode::NOT_FOUND),
        || said(StatusCode::CONFLICT),
        || said(StatusCode::BAD_REQUEST),
        || said(StatusCode::UNAUTHORIZED),
        || said(StatusCode::FORBIDDEN),
        || said(StatusCode::REQUEST_TIMEOUT),
        || said(StatusCode::MISDIRECTED_REQUEST),
        || said(StatusCode::TOO_EARLY),
        || said(StatusCode::TOO_MANY_REQUESTS),
        || said(StatusCode::INTERNAL_SERVER_ERROR),
        || said(StatusCode::NOT_IMPLEMENTED),
        || said(StatusCode::BAD_GATEWAY),
        || said(StatusCode::SERVICE_UNAVAILABLE),
        || {
            let mut said = said(StatusCode::SERVICE_UNAVAILABLE)?;
            said.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            Ok(said)
        },
        || said(StatusCode::GATEWAY_TIMEOUT),
        || said(StatusCode::from_u16(599).unwrap()),
        || said(StatusCode::SWITCHING_PROTOCOLS),
        || Err(ProxyError::Connect("nobody listens".into())),
        || Err(ProxyError::Unsent("the connection was dead".into())),
        || Err(ProxyError::HeadTimeout),
        || Err(ProxyError::Cut("in the middle".into())),
        || Err(ProxyError::Internal("a bug".into())),
        || Err(ProxyError::Draining),
    ]
}

/// A name for each kind of delivery, and how many there are.
fn kind(delivery: Delivery) -> &'static str {
    match delivery {
        Delivery::NotSent(Unsent::Connect) => "connect",
        Delivery::NotSent(Unsent::Connection) => "connection",
        Delivery::NotSent(Unsent::Ours) => "ours",
        Delivery::Refused(Refusal::TooManyRequests) => "too many",
        Delivery::Refused(Refusal::Unavailable) => "unavailable",
        Delivery::Ambiguous(Doubt::HeadTimeout) => "timeout",
        Delivery::Ambiguous(Doubt::Cut) => "cut",
        Delivery::Ambiguous(Doubt::ServerError(_)) => "server error",
        Delivery::Answered(Class::Success) => "success",
        Delivery::Answered(Class::Unauthorized) => "unauthorized",
        Delivery::Answered(Class::Forbidden) => "forbidden",
        Delivery::Answered(Class::RequestTimeout) => "request timeout",
        Delivery::Answered(Class::TryAgain) => "try again",
        Delivery::Answered(Class::Client) => "client",
        Delivery::Answered(Class::Unsupported) => "unsupported",
    }
}
const KINDS: usize = 15;

/// Makes one call whose attempts end like these, one after the other, the last again and again. How many attempts
/// there were, and what the caller got.
async fn one_call(method: &Method, path: &str, ends: Vec<fn() -> Said>) -> (usize, Said) {
    let world = World::new();
    let arrived = Arc::new(Mutex::new(0));
    let mut upstream = world.stack({
        let arrived = arrived.clone();
        move |request| {
            let mut arrived = arrived.lock().unwrap();
            let end = ends[(*arrived).min(ends.len() - 1)];
            *arrived += 1;
            attempt(request, async move { end() })
        }
    });
    let lane = if crate::context::is_safe(method) { Lane::LiveRead } else { Lane::LiveWrite };
    let got = upstream.call(world.call(method, path, lane)).await;
    let count = *arrived.lock().unwrap();
    (count, got)
}

const WRITES: [(Method, &str); 4] = [
    (Method::PATCH, "/shipments/1"),
    (Method::POST, "/bookings"),
    (Method::POST, "/documents"),
    (Method::DELETE, "/nowhere"),
];

#[tokio::test(start_paused = true)]
async fn a_write_that_may_have_been_applied_is_never_repeated_whatever_became_of_it() {
    let kinds: BTreeSet<_> = ends().iter().map(|end| kind(delivery_of(&end()))).collect();
    assert_eq!(kinds.len(), KINDS, "every kind is tried");
    for (method, path) in &WRITES {
        for end in ends() {
            let delivery = delivery_of(&end());
            let (attempts, got) = one_call(method, path, vec![end]).await;
            let expected = if delivery == Delivery::NotSent(Unsent::Connect) { 2 } else { 1 };
            assert_eq!(attempts, expected, "{method} {path}: {delivery:?}");
            assert_eq!(delivery_of(&got), delivery, "{method} {path}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_became_of_the_second_attempt_of_a_write_is_what_counts_unless_it_was_not_sent_either() {
    for (method, path) in &WRITES {
        for end in ends() {
            let delivery = delivery_of(&end());
            let ends = vec![|| Err(ProxyError::Connect("nobody listens".into())), end];
            let (attempts, got) = one_call(method, path, ends).await;
            assert_eq!(attempts, 2, "never a third: {method} {path}: {delivery:?}");
            let got = delivery_of(&got);
            match delivery {
                Delivery::NotSent(_) => assert!(matches!(got, Delivery::NotSent(_)), "{delivery:?}: {got:?}"),
                _ => assert_eq!(got, delivery, "{method} {path}"),
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_is_repeated_once_after_a_passing_failure_and_never_after_an_answer() {
    for end in ends() {
        let delivery = delivery_of(&end());
        let (attempts, _) = one_call(&Method::GET, "/shipments", vec![end]).await;
        let helps = matches!(
            delivery,
            Delivery::NotSent(Unsent::Connect)
                | Delivery::Ambiguous(Doubt::Cut | Doubt::ServerError(_))
                | Delivery::Answered(Class::RequestTimeout)
        );
        assert_eq!(attempts, 1 + usize::from(helps), "{delivery:?}");
        let (attempts, got) = one_call(&Method::GET, "/shipments", vec![end, || said(StatusCode::OK)]).await;
        assert_eq!(attempts, 1 + usize::from(helps), "{delivery:?}");
        if helps {
            assert_eq!(got.unwrap().status(), StatusCode::OK);
        }
    }
}
