//! Plays a case and compares.

use super::case::{Case, Exchange, Expect, Message, Reach, Step};
use super::origin::{Origin, Plan};
use super::support::PATIENCE;
use super::wire::{self, Received};
use jiff::Timestamp;
use seawall::clock::Clock;
use seawall::http::date;
use std::fmt::Write as _;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// What came of the exchanges so far.
#[derive(Default)]
struct Past {
    /// What the client got.
    received: Vec<Received>,
    /// The origin's answers, where it was asked.
    answered: Vec<Option<Answered>>,
}

#[derive(Clone)]
struct Answered {
    status: u16,
    body: String,
    suffix: String,
    /// Whether it is what a later GET may get: it came to GET, with its body.
    is_whole: bool,
}

struct Place<'a> {
    /// The first segment of the case's path.
    id: String,
    base: &'a str,
}

/// Plays a case. The error tells what was expected and what came.
pub(crate) async fn run(case: &Case, number: usize, origin: &Origin, base: &str) -> Result<(), String> {
    let place = Place { id: format!("case-{number}"), base };
    let mut past = Past::default();
    for step in &case.steps {
        match step {
            Step::Wait(time) => tokio::time::sleep(*time).await,
            Step::Exchange(exchange) => {
                let count = past.received.len() + 1;
                let outcome = tokio::time::timeout(PATIENCE, play(exchange, &place, origin, &mut past)).await;
                outcome.unwrap_or_else(|late| Err(format!("nothing came: {late}"))).map_err(|failure| {
                    let got = past.received.get(count - 1).map(shown).unwrap_or_default();
                    format!("line {} (exchange {count}): {failure}{got}", exchange.line)
                })?;
            }
        }
    }
    Ok(())
}

async fn play(
    exchange: &Exchange,
    place: &Place<'_>,
    origin: &Origin,
    past: &mut Past,
) -> Result<(), String> {
    let count = past.received.len() + 1;
    let now = Clock::system().now();
    let plan = exchange.answer.as_ref().map(|(status, message)| {
        let mut message = place.filled(message, now);
        if !message.has("date") && message.direction("no-date").is_none() {
            message.fields.push(("Date".to_owned(), date::http_date(now).to_str().unwrap().to_owned()));
        }
        let own = || format!("answer {count}");
        let body = message.direction("body").map_or_else(own, str::to_owned);
        let body = match message.direction("repeat") {
            Some(times) => body.repeat(times.parse().unwrap()),
            None => body,
        };
        Plan { status: *status, message, body }
    });
    origin.plan(&place.id, plan.clone());
    let received = send(exchange, place, now).await;
    // Before all checks, so that a failure can show it.
    past.received.push(received.clone().unwrap_or_default());
    if exchange.reach == Reach::Behind {
        origin.was_asked(&place.id, PATIENCE).await;
    }
    let seen = origin.seen(&place.id);
    let answered = plan.filter(|_| !seen.is_empty()).map(|plan| Answered {
        status: plan.status,
        body: plan.body,
        suffix: exchange.suffix.clone(),
        is_whole: exchange.method == "GET" && plan.status != 304,
    });
    let is_asked = answered.is_some() && exchange.reach != Reach::Behind;
    past.answered.push(answered.clone());
    match (exchange.reach, seen.first()) {
        (Reach::Never, Some(request)) => {
            return Err(format!(
                "answered without asking was expected, and the origin saw `{}`",
                request.start
            ));
        }
        (Reach::Must | Reach::Behind, None) => {
            return Err("a request to the origin was expected, and there was none".to_owned());
        }
        _ => {}
    }
    if exchange.reach == Reach::Behind {
        place.is_fresh_again(exchange).await?;
    }
    for expected in &exchange.seen {
        let Some(request) = seen.first() else { break };
        held(expected, request, place, past, now, exchange)
            .map_err(|text| format!("the origin saw: {text}"))?;
    }
    let is_broken = |expected: &Expect| matches!(expected, Expect::Direction(name, _) if name == "broken");
    let expects_break = exchange.expected.iter().any(is_broken);
    let Some(received) = received else {
        return if expects_break { Ok(()) } else { Err("the connection ended without an answer".to_owned()) };
    };
    if received.is_cut != expects_break {
        return Err(if received.is_cut { "the body was cut" } else { "a cut body was expected" }.to_owned());
    }
    let has = |is_one: fn(&Expect) -> bool| exchange.expected.iter().any(is_one);
    let is_any = |expected: &Expect| matches!(expected, Expect::Direction(name, _) if name == "any");
    if !has(|expected| matches!(expected, Expect::Status(_))) && !has(is_any) {
        let status = match &answered {
            Some(own) if is_asked && own.status != 304 => own.status,
            _ => past.before(exchange).map_or(200, |answered| answered.status),
        };
        held(&Expect::Status(status), &received, place, past, now, exchange)?;
    }
    let is_about_body = |expected: &Expect| {
        matches!(expected, Expect::From(_))
            || matches!(expected, Expect::Direction(name, _) if name == "body" || name == "any")
    };
    let is_empty = exchange.method == "HEAD" || matches!(received.status(), Some(204 | 304));
    if is_empty {
        if !received.body.is_empty() {
            return Err(format!("no body was expected, and there is {:?}", received.body));
        }
    } else if !exchange.expected.iter().any(is_about_body) && !expects_break {
        let body = match &answered {
            Some(own) if is_asked && own.status != 304 => Some(own.body.clone()),
            _ => past.before(exchange).map(|answered| answered.body.clone()),
        };
        if let Some(body) = body.filter(|body| *body != received.body) {
            return Err(format!("the body {body:?} was expected, and it is {:?}", received.body));
        }
    }
    for expected in &exchange.expected {
        held(expected, &received, place, past, now, exchange)?;
    }
    Ok(())
}

async fn send(exchange: &Exchange, place: &Place<'_>, now: Timestamp) -> Option<Received> {
    let message = place.filled(&exchange.request, now);
    let address = place.base.trim_start_matches("http://");
    let version = message.direction("version").unwrap_or("1.1");
    let mut text = format!("{} /{}{} HTTP/{version}\r\n", exchange.method, place.id, exchange.suffix);
    if !message.has("host") {
        write!(text, "Host: {address}\r\n").unwrap();
    }
    if !message.has("connection") {
        text.push_str("Connection: close\r\n");
    }
    for (name, value) in &message.fields {
        write!(text, "{name}: {value}\r\n").unwrap();
    }
    let body = message.direction("body").unwrap_or_default();
    if !body.is_empty() {
        write!(text, "Content-Length: {}\r\n", body.len()).unwrap();
    }
    text.push_str("\r\n");
    text.push_str(body);
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&wire::bytes(&text)).await.unwrap();
    wire::response(&mut stream, exchange.method == "HEAD").await
}

/// Whether an expectation holds.
fn held(
    expected: &Expect,
    message: &Received,
    place: &Place<'_>,
    past: &Past,
    now: Timestamp,
    exchange: &Exchange,
) -> Result<(), String> {
    let differs = |what: &str, expected: &str, came: &str| {
        Err(format!("{what} {expected} was expected, and it is {came}"))
    };
    match expected {
        Expect::Status(status) if message.status() != Some(*status) => {
            differs("status", &status.to_string(), &message.start)
        }
        Expect::Method(method) if !message.start.starts_with(&format!("{method} ")) => {
            differs("method", method, &message.start)
        }
        Expect::Present(name) if message.field(name).is_none() => {
            Err(format!("{name} was expected, and is not there"))
        }
        Expect::Absent(name) => match message.field(name) {
            Some(value) => Err(format!("no {name} was expected, and it is {value:?}")),
            None => Ok(()),
        },
        Expect::Is(name, value) => {
            let value = place.fill(value, now);
            let Some(came) = message.field(name) else {
                return Err(format!("{name}: {value} was expected, and it is not there"));
            };
            let holds = if let Some((least, most)) = range(&value) {
                came.parse().is_ok_and(|number: i64| (least..=most).contains(&number))
            } else if let Some(text) = value.strip_prefix("!~") {
                !came.contains(text)
            } else if let Some(text) = value.strip_prefix('~') {
                came.contains(text)
            } else if let Some(number) =
                value.strip_prefix("as ").and_then(|number| number.parse::<usize>().ok())
            {
                past.received[number - 1].field(name).as_deref() == Some(came.as_str())
            } else {
                came == value
            };
            if holds { Ok(()) } else { differs(name, &value, &came) }
        }
        Expect::From(number) => {
            let body = past.answered.get(number - 1).and_then(Option::as_ref).map(|answered| &answered.body);
            let body = body.ok_or_else(|| format!("exchange {number} was never answered by the origin"))?;
            if *body == message.body { Ok(()) } else { differs("body", body, &message.body) }
        }
        Expect::Direction(name, argument) => match name.as_str() {
            "body" if *argument != message.body => differs("body", argument, &message.body),
            "empty" if !message.body.is_empty() => {
                Err(format!("no body was expected, and there is {:?}", message.body))
            }
            "no-interim" if !message.interim.is_empty() => {
                Err(format!("no interim response was expected, and there were {:?}", message.interim))
            }
            "body" | "any" | "broken" | "empty" | "no-interim" => Ok(()),
            "interim" => {
                if message
                    .interim
                    .iter()
                    .any(|interim| interim.to_lowercase().contains(&argument.to_lowercase()))
                {
                    Ok(())
                } else {
                    Err(format!("interim {argument} was expected, and there were {:?}", message.interim))
                }
            }
            "path" => {
                let path = format!("/{}{argument}", place.id);
                if message.start.split(' ').nth(1) == Some(&path) {
                    Ok(())
                } else {
                    differs("target", &path, &message.start)
                }
            }
            other => Err(format!("@{other} is unknown in line {}", exchange.line)),
        },
        Expect::Status(_) | Expect::Method(_) | Expect::Present(_) => Ok(()),
    }
}

fn range(value: &str) -> Option<(i64, i64)> {
    let (least, most) = value.split_once("..")?;
    Some((least.parse().ok()?, most.parse().ok()?))
}

/// What came, for a failure.
fn shown(message: &Received) -> String {
    let fields: Vec<String> = message.fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    format!("\n    it came: {} | {} | {:?}", message.start, fields.join(" | "), message.body)
}

// === impl Past ===

impl Past {
    /// The latest answer of the origin, before this exchange, that brought a body for this target.
    fn before(&self, exchange: &Exchange) -> Option<&Answered> {
        let mut answered = self.answered[..self.answered.len() - 1].iter().rev().flatten();
        answered.find(|answered| answered.is_whole && answered.suffix == exchange.suffix)
    }
}

// === impl Place ===

impl Place<'_> {
    /// Waits until what was asked for behind an answer is stored: then it can be had without asking.
    async fn is_fresh_again(&self, exchange: &Exchange) -> Result<(), String> {
        let only_if_cached = Exchange {
            line: exchange.line,
            method: "HEAD".to_owned(),
            suffix: exchange.suffix.clone(),
            request: Message {
                fields: vec![("Cache-Control".to_owned(), "only-if-cached".to_owned())],
                ..Message::default()
            },
            reach: Reach::Never,
            answer: None,
            seen: Vec::new(),
            expected: Vec::new(),
        };
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while tokio::time::Instant::now() < deadline {
            let received = send(&only_if_cached, self, Clock::system().now()).await;
            if received.is_some_and(|received| received.status() == Some(200)) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err("what was asked for behind the answer was never stored".to_owned())
    }

    fn filled(&self, message: &Message, now: Timestamp) -> Message {
        let fill = |(name, value): &(String, String)| (name.clone(), self.fill(value, now));
        Message {
            fields: message.fields.iter().map(fill).collect(),
            directions: message.directions.iter().map(fill).collect(),
        }
    }

    /// Replaces `{path}`, `{base}`, `{now}`, `{now-60}`, `{rfc850:now+60}`, `{asctime:now}`.
    fn fill(&self, text: &str, now: Timestamp) -> String {
        let mut filled = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            filled.push_str(before);
            let Some((name, after)) = after.split_once('}') else {
                filled.push('{');
                rest = after;
                continue;
            };
            rest = after;
            match name {
                "path" => filled.extend(["/", self.id.as_str()]),
                "base" => filled.push_str(self.base),
                _ => {
                    let date = dated(name, now).unwrap_or_else(|| panic!("{{{name}}} is unknown"));
                    filled.push_str(&date);
                }
            }
        }
        filled.push_str(rest);
        filled
    }
}

fn dated(name: &str, now: Timestamp) -> Option<String> {
    let (form, moment) = name.split_once(':').unwrap_or(("", name));
    let offset = moment.strip_prefix("now")?;
    let seconds: i64 = if offset.is_empty() { 0 } else { offset.parse().ok()? };
    let at = Timestamp::from_second(now.as_second() + seconds).ok()?.to_zoned(jiff::tz::TimeZone::UTC);
    Some(match form {
        "" => at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string(),
        "rfc850" => at.strftime("%A, %d-%b-%y %H:%M:%S GMT").to_string(),
        "asctime" => at.strftime("%a %b %e %H:%M:%S %Y").to_string(),
        "lower" => at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string().to_lowercase(),
        _ => return None,
    })
}
