//! The callers: they read and write through the front, lose patience, and remember what they were told.

use crate::proxy::{Front, Proxy};
use crate::world::{Stage, World};
use http::{HeaderMap, Method, Request, StatusCode, header};
use seawall::event::Kind;
use seawall::http::Body;
use seawall::queue::{Filter, State, TicketView};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tower::ServiceExt;

/// What was asked and what was said.
#[derive(Default)]
pub(crate) struct Ledger {
    next: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) stale: AtomicU64,
    writes: Mutex<Vec<Written>>,
}

struct Written {
    name: String,
    creates: bool,
    told: Told,
}

/// What its caller knows of a write.
#[derive(Clone, Debug, PartialEq)]
enum Told {
    /// It left, or Seawall died, before an answer.
    Nothing,
    Done,
    Queued(String),
    Unknown,
    /// It was refused, as a promise that nothing is done.
    Refused(u16),
}

/// One call.
struct Asked {
    who: &'static str,
    path: String,
    /// `Seawall-Timeout`, in seconds.
    limit: Option<u64>,
    patience: Option<Duration>,
}

const WHO: [&str; 2] = ["Bearer one", "Bearer two"];
const READS: [&str; 8] = [
    "/shipments/0",
    "/shipments/1",
    "/shipments/2",
    "/shipments/3",
    "/shipments?page=1",
    "/bookings?page=1",
    "/bookings/9",
    "/shipments?page=2",
];
/// The time limit of the routes.
const LIMIT: Duration = Duration::from_secs(60);
/// What may come on top of a limit: the grain of the timers.
const GRAIN: Duration = Duration::from_millis(300);
/// An answer's head may come at the limit, and its body stand still for as long as the default says.
const BODY: Duration = Duration::from_secs(40);
const LOOK: Duration = Duration::from_millis(500);
/// The store of memory keeps all; so long after the last call nothing may be under way.
const REST: Duration = Duration::from_secs(150);

/// The host's software.
pub(crate) async fn host(world: Arc<World>) -> turmoil::Result {
    let proxy = Arc::new(Proxy::start(&world).await);
    // Read aloud by the driver.
    tokio::spawn(report(world.clone(), proxy.clone()));
    sleep(Duration::from_secs(1)).await;
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    loop {
        match world.stage() {
            Stage::Traffic(rate) => {
                sleep(Duration::from_secs_f64(0.001 + fastrand::f64() * 2.0 / rate)).await;
                call(&world, &proxy.front);
                proxy.holds_probes_to_their_number(&world);
            }
            Stage::Quiet => sleep(LOOK).await,
            Stage::Verdict => break,
        }
    }
    verdict(&world, &proxy, tasks).await;
    world.report.lock().unwrap().is_over = true;
    std::future::pending().await
}

/// Tells the driver how it is.
async fn report(world: Arc<World>, proxy: Arc<Proxy>) {
    let mut events = proxy.bus.watch();
    loop {
        sleep(LOOK).await;
        let mut opened = 0;
        loop {
            match events.try_recv() {
                Ok(event) => {
                    if let Kind::Breaker { to, .. } = event.kind {
                        opened += u64::from(to == "open");
                    }
                }
                Err(tokio::sync::broadcast::error::TryRecvError::Lagged(_)) => {}
                Err(_) => break,
            }
        }
        // It takes a look at everything, so only when somebody asks.
        let looks = world.is_healing.load(Ordering::Relaxed);
        let seen = looks.then(|| (proxy.not_closed(), owed(&proxy)));
        let mut report = world.report.lock().unwrap();
        report.openings += opened;
        if let Some((not_closed, owed)) = seen {
            (report.not_closed, report.owed) = (not_closed, owed);
            report.looks += 1;
        }
    }
}

fn tickets(proxy: &Proxy) -> Vec<TicketView> {
    proxy.queue.list(&Filter { limit: usize::MAX, ..Filter::default() }).writes
}

/// What is to be sent yet. What stands behind a write of unknown outcome is a person's.
fn owed(proxy: &Proxy) -> Vec<String> {
    if proxy.queue.stats().unsettled == 0 {
        return Vec::new();
    }
    let tickets = tickets(proxy);
    let is_stuck = |ticket: &TicketView| {
        ticket.is_blocked
            && tickets
                .iter()
                .any(|other| other.order_key == ticket.order_key && other.state == State::Unknown)
    };
    tickets
        .iter()
        .filter(|ticket| matches!(ticket.state, State::Pending | State::Sending | State::Waiting))
        .filter(|ticket| !is_stuck(ticket))
        .map(|ticket| format!("{} {} {:?} {:?}", ticket.write_id, ticket.route, ticket.state, ticket.reason))
        .collect()
}

/// One call of somebody's.
fn call(world: &Arc<World>, front: &Front) {
    let lot = fastrand::u8(0..100);
    let patience = (fastrand::u8(0..100) < 12).then(|| Duration::from_millis(fastrand::u64(1..8000)));
    // Not below what the network may take: an attempt that is given up arrives later, and nobody can help that.
    let limit = (fastrand::u8(0..100) < 15).then(|| fastrand::u64(8..20));
    let asked = |who: usize, path: String| Asked { who: WHO[who], path, limit, patience };
    match lot {
        0..60 => {
            let path = READS[fastrand::usize(0..READS.len())];
            let asked = asked(fastrand::usize(0..2), path.to_owned());
            tokio::spawn(read(world.clone(), front.clone(), asked));
        }
        60..80 => {
            let shipment = fastrand::usize(0..4);
            let asked = asked(shipment % 2, format!("/shipments/{shipment}"));
            write(world, front, asked, Method::PATCH, Some(&shipment.to_string()));
        }
        80..92 => write(world, front, asked(fastrand::usize(0..2), "/bookings".into()), Method::POST, None),
        _ => {
            let booking = fastrand::usize(0..2);
            let asked = asked(booking, "/booking_line_items".into());
            write(world, front, asked, Method::POST, Some(&format!("b{booking}")));
        }
    }
}

/// Within its limit and its patience; `None`: it has left. The whole answer, or that it did not come to its end.
async fn ask(
    world: &World,
    front: Front,
    asked: &Asked,
    mut request: Request<Body>,
) -> Option<(StatusCode, HeaderMap, Option<bytes::Bytes>)> {
    let fields = request.headers_mut();
    fields.insert(header::HOST, "seawall".parse().unwrap());
    fields.insert(header::AUTHORIZATION, asked.who.parse().unwrap());
    if let Some(limit) = asked.limit {
        fields.insert("seawall-timeout", limit.into());
    }
    let limit = asked.limit.map_or(LIMIT, Duration::from_secs);
    let began = Instant::now();
    let whole = async {
        let method = request.method().clone();
        let (head, body) = front.oneshot(request).await.unwrap().into_parts();
        let took = began.elapsed();
        if took > limit + GRAIN {
            world.wrong(format!("{method} {} waited for {took:?}, not {limit:?}: {head:?}", asked.path));
        }
        (head.status, head.headers, body.collect(1 << 24).await.ok())
    };
    if let Some(patience) = asked.patience {
        return timeout(patience, whole).await.ok();
    }
    let answer = timeout(limit + BODY, whole).await.ok();
    if answer.is_none() {
        world.wrong(format!("{} had no answer after {:?}", asked.path, limit + BODY));
    }
    answer
}

async fn read(world: Arc<World>, front: Front, asked: Asked) {
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = asked.path.parse().unwrap();
    let Some((status, fields, Some(body))) = ask(&world, front, &asked, request).await else { return };
    if status != StatusCode::OK {
        return;
    }
    world.ledger.reads.fetch_add(1, Ordering::Relaxed);
    let cache = fields.get("cache-status").and_then(|value| value.to_str().ok()).unwrap_or_default();
    if cache.contains("hit") || fields.contains_key(header::AGE) {
        world.ledger.stale.fetch_add(1, Ordering::Relaxed);
    }
    if let Err(what) = is_of(&body, &asked) {
        world.wrong(format!("{} of {}: {what} ({cache})", asked.path, asked.who));
    }
}

/// Whether a document is whole, and the one that was asked for, of the one who asked.
fn is_of(body: &[u8], asked: &Asked) -> Result<Value, String> {
    let text = || String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
    let body: Value = serde_json::from_slice(body).map_err(|error| format!("{error}: {}", text()))?;
    let data = &body["data"];
    let pad = data["pad"].as_str().unwrap_or_default().len() as u64;
    if data["who"] != asked.who || data["path"] != asked.path.as_str() {
        return Err(format!("it is {} of {}", data["path"], data["who"]));
    }
    if data["end"] != true || data["size"] != pad {
        return Err(format!("{pad} bytes of {}", data["size"]));
    }
    Ok(body)
}

/// Its place in its order is that of this call; some do it a second time under the same key.
fn write(world: &Arc<World>, front: &Front, asked: Asked, method: Method, order: Option<&str>) {
    let number = world.ledger.next.fetch_add(1, Ordering::Relaxed) + 1;
    let creates = method == Method::POST;
    let name = format!("w{number}");
    let mut body = json!({ "name": name, "creates": creates });
    if let Some(order) = order {
        body["order"] = order.into();
        body["number"] = number.into();
        if creates {
            body["booking_id"] = order.into();
        }
    }
    let entry = {
        let mut writes = world.ledger.writes.lock().unwrap();
        writes.push(Written { name: name.clone(), creates, told: Told::Nothing });
        writes.len() - 1
    };
    let (has_key, repeats) = (fastrand::bool(), fastrand::u8(0..100) < 10);
    let (world, front, body) = (world.clone(), front.clone(), body.to_string());
    tokio::spawn(async move {
        for again in 0..=u8::from(has_key && repeats) {
            let mut request = Request::new(Body::from(body.clone()));
            *request.method_mut() = method.clone();
            *request.uri_mut() = asked.path.parse().unwrap();
            request.headers_mut().insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
            if has_key {
                request.headers_mut().insert("idempotency-key", format!("key-{name}").parse().unwrap());
            }
            let answer = ask(&world, front.clone(), &asked, request).await;
            if again == 0 {
                let told = answer.map_or(Told::Nothing, |(status, fields, _)| told(status, &fields));
                let applied = world.flexport.books().applied.get(&name).copied().unwrap_or(0);
                if told == Told::Done && applied == 0 {
                    world.wrong(format!("{name} is said to be done, and is not"));
                }
                world.ledger.writes.lock().unwrap()[entry].told = told;
            }
            sleep(Duration::from_millis(fastrand::u64(0..3000))).await;
        }
    });
}

fn told(status: StatusCode, fields: &HeaderMap) -> Told {
    let id = fields.get("seawall-write-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
    match status.as_u16() {
        202 => Told::Queued(id.to_owned()),
        200..=299 => Told::Done,
        504 => Told::Unknown,
        status => Told::Refused(status),
    }
}

/// With everything well and everybody gone: what is owed is paid, and what was taken is given back.
async fn verdict(world: &Arc<World>, proxy: &Arc<Proxy>, tasks_at_first: usize) {
    let wrong = |what: String| world.wrong(what);
    sleep(REST).await;
    for status in proxy.breakers.list() {
        if (status.in_flight, status.probes.in_flight) != (0, 0) {
            wrong(format!("{}: {} calls in flight, {:?}", status.scope, status.in_flight, status.probes));
        }
    }
    let metrics = &proxy.metrics;
    for (what, gauge) in [
        ("requests in flight", &metrics.requests_in_flight),
        ("upstream calls in flight", &metrics.upstream_in_flight),
        ("calls that wait for a slot", &metrics.limiter_waiting),
        ("calls that wait for a gate", &metrics.rate_waiting),
        ("connections", &metrics.upstream_connections),
    ] {
        if gauge.get() != 0 {
            wrong(format!("{} {what}", gauge.get()));
        }
    }
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    if tasks > tasks_at_first {
        wrong(format!("{tasks} tasks, {tasks_at_first} in the beginning"));
    }
    writes_are_what_was_said(world, proxy);

    // No gate is left, and what is read is what is there.
    for who in WHO {
        for path in READS {
            let asked = Asked { who, path: path.to_owned(), limit: None, patience: None };
            let mut request = Request::new(Body::empty());
            *request.uri_mut() = path.parse().unwrap();
            let began = Instant::now();
            let answer = ask(world, proxy.front.clone(), &asked, request).await;
            let Some((StatusCode::OK, _, Some(body))) = answer else {
                wrong(format!("{path} of {who} when all is well: {answer:?}"));
                continue;
            };
            if began.elapsed() > Duration::from_secs(2) {
                wrong(format!("{path} took {:?} when all is well", began.elapsed()));
            }
            match is_of(&body, &asked) {
                Ok(body) if body["data"]["state"] == world.flexport.state(path) => {}
                Ok(body) => {
                    wrong(format!("{path}: {}, not {}", body["data"]["state"], world.flexport.state(path)));
                }
                Err(what) => wrong(format!("{path} of {who}: {what}")),
            }
        }
    }

    // Every slot is free.
    let limit = metrics.limiter_limit.get();
    // It may work for ever on what came over a connection whose end it never heard of.
    let left_over = world.flexport.in_flight();
    world.flexport.set(crate::flexport::Weather { latency: Duration::from_secs(4), ..crate::flexport::WELL });
    for page in 0..=limit {
        let path = format!("/shipments?page={}", 100 + page);
        let asked = Asked { who: WHO[0], path, limit: None, patience: None };
        tokio::spawn(read(world.clone(), proxy.front.clone(), asked));
    }
    sleep(Duration::from_secs(1)).await;
    let working = world.flexport.in_flight() - left_over;
    if working != limit {
        wrong(format!("{working} calls at once, with {limit} slots"));
    }
}

/// Each write against the books.
fn writes_are_what_was_said(world: &World, proxy: &Proxy) {
    let tickets: HashMap<String, TicketView> =
        tickets(proxy).into_iter().map(|ticket| (ticket.write_id.to_string(), ticket)).collect();
    let books = world.flexport.books();
    for Written { name, creates, told } in world.ledger.writes.lock().unwrap().iter() {
        let applied = books.applied.get(name).copied().unwrap_or(0);
        let ticket = match told {
            Told::Queued(id) => tickets.get(id),
            _ => None,
        };
        let state = ticket.map(|ticket| ticket.state);
        let is_right = match told {
            _ if *creates && applied > 1 => false,
            Told::Nothing | Told::Unknown => true,
            Told::Done => applied > 0,
            Told::Refused(_) => applied == 0,
            Told::Queued(_) => match state {
                Some(State::Done) => applied > 0,
                Some(State::Unknown) => true,
                // Behind one of unknown outcome, or refused by Flexport for good: and then somebody is told.
                Some(State::Pending | State::Waiting) => applied == 0,
                Some(State::Dead) => applied == 0 || ticket.is_some_and(|ticket| ticket.maybe_applied),
                _ => false,
            },
        };
        if !is_right {
            world.wrong(format!(
                "{name} (creates: {creates}): told {told:?}, {state:?}, applied {applied} times"
            ));
        }
    }
    for (order, numbers) in &books.orders {
        if !numbers.is_sorted() {
            world.wrong(format!("{order}: applied in the order {numbers:?}"));
        }
    }
}
