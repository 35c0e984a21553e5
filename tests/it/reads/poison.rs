//! A request that changes what others get: none does. The attempts are data, `tests/fixtures/poison.txt`.
//!
//! The upstream puts everything that it sees of a request into its answer, fresh for ten minutes. After each attempt a
//! clean request must get what it gets from a proxy that nobody has tried anything with.

use super::*;
use crate::support::scripted::Arrived;
use http::{HeaderMap, Response};
use http_body_util::Full;
use std::collections::HashMap;
use std::sync::atomic::AtomicBool;

const CORPUS: &str = include_str!("../../fixtures/poison.txt");
const ANNA: &str = "Bearer token-of-anna";
const BERT: &str = "Bearer token-of-bert";
/// What goes upstream on a cacheable route.
const ALLOWED: [&str; 12] = [
    "host",
    "authorization",
    "accept",
    "accept-language",
    "flexport-version",
    "user-agent",
    "accept-encoding",
    "x-request-id",
    "traceparent",
    "tracestate",
    "if-none-match",
    "via",
];
/// What is in the key, so that it is nobody else's; and what names one request, for logs and traces.
const TAKEN: [&str; 5] = ["accept", "accept-language", "flexport-version", "x-request-id", "tracestate"];

struct Attempt {
    name: String,
    flags: Vec<String>,
    /// The victim's target.
    path: String,
    bytes: Vec<u8>,
    /// What the request line names.
    target: String,
}

/// What a client of raw bytes got.
#[derive(Debug)]
struct Raw {
    status: u16,
    text: String,
}

// === impl Attempt ===

impl Attempt {
    fn all(host: &str) -> Vec<Self> {
        let text = &CORPUS[CORPUS.find("\n== ").unwrap() + 1..];
        let sections = text.strip_prefix("== ").unwrap().split("\n== ");
        sections.enumerate().map(|(number, section)| Self::of(number, section, host)).collect()
    }

    fn of(number: usize, section: &str, host: &str) -> Self {
        let (title, request) = section.split_once('\n').unwrap();
        let (name, flags) = title.split_once(" | ").unwrap_or((title, ""));
        let flags: Vec<String> = flags.split_whitespace().map(str::to_owned).collect();
        let kind = flags.iter().find_map(|flag| flag.strip_prefix("first:"));
        let query = kind.map_or(format!("n={number}"), |kind| format!("n={number}&first={kind}"));
        let path = format!("/ports?{query}");
        let has = |flag: &str| flags.iter().any(|one| one == flag);
        let (head, body) = request.split_once("\n\n").unwrap_or((request, ""));
        let mut lines: Vec<&str> = head.lines().collect();
        let own = [format!("Host: {host}"), format!("Authorization: {ANNA}")];
        if !has("no-token") {
            lines.insert(1, &own[1]);
        }
        if !has("no-host") {
            lines.insert(1, &own[0]);
        }
        let body = body.strip_suffix('\n').unwrap_or(body).replace('\n', "\r\n");
        let whole = lines.join("\r\n") + "\r\n\r\n" + &body;
        let bytes =
            octets(&whole.replace("{path}", &path).replace("{query}", &query).replace("{host}", host));
        let line = bytes.split(|byte| *byte == b'\r').next().unwrap();
        let target = String::from_utf8_lossy(line).split(' ').nth(1).unwrap_or_default().to_owned();
        Self { name: name.to_owned(), flags, path, bytes, target }
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|one| one == flag)
    }

    /// The octets that may go upstream: a fragment and an authority are no part of them.
    fn targets(&self) -> [String; 2] {
        let origin = match self.target.split_once("://") {
            Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
            None => &self.target,
        };
        [origin.split('#').next().unwrap().to_owned(), self.path.clone()]
    }
}

/// The bytes that the text stands for.
fn octets(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['\\', '{']) {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at..];
        if let Some(long) = rest.strip_prefix("{long:") {
            let (count, after) = long.split_once('}').unwrap();
            bytes.resize(bytes.len() + count.parse::<usize>().unwrap(), b'l');
            rest = after;
            continue;
        }
        let (byte, length) = match rest.as_bytes().get(1) {
            Some(b'r') => (b'\r', 2),
            Some(b'n') => (b'\n', 2),
            Some(b't') => (b'\t', 2),
            Some(b'0') => (0, 2),
            Some(b'x') => (u8::from_str_radix(&rest[2..4], 16).unwrap(), 4),
            _ => panic!("not an escape: {rest}"),
        };
        bytes.push(byte);
        rest = &rest[length..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

/// Sends bytes and reads the first whole answer, or all that comes when the peer closes.
async fn raw(addr: &str, attempt: &Attempt) -> Raw {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    // Refused before all of it was read.
    let _ = stream.write_all(&attempt.bytes).await;
    let mut all = Vec::new();
    let is_head = attempt.has("head");
    let reading = async {
        loop {
            if !attempt.has("more") && is_whole(&all, is_head) {
                return;
            }
            match stream.read_buf(&mut all).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    };
    // What is read on may never end: nothing has to come.
    let patience = if attempt.has("more") { Duration::from_millis(500) } else { PATIENCE };
    let is_over = tokio::time::timeout(patience, reading).await.is_ok();
    assert!(is_over || attempt.has("more"), "{}: {}", attempt.name, String::from_utf8_lossy(&all));
    let status = all.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    Raw { status: status.unwrap_or(0), text: String::from_utf8_lossy(&all).into_owned() }
}

fn is_whole(all: &[u8], is_head: bool) -> bool {
    let Some(at) = all.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&all[..at]).into_owned();
    let body = &all[at + 4..];
    let is_empty = is_head || head.contains(" 304 ") || head.contains(" 204 ");
    is_empty
        || match (chaos::field(&head, "content-length"), chaos::field(&head, "transfer-encoding")) {
            (Some(length), _) => body.len() >= length.parse::<usize>().unwrap(),
            (None, Some(_)) => body.ends_with(b"0\r\n\r\n"),
            (None, None) => false,
        }
}

/// Everything that it sees, but for what each request has of its own.
fn reflection(arrived: &Arrived) -> String {
    let head = &arrived.head;
    let mut fields: Vec<String> = head
        .headers
        .iter()
        .filter(|(name, _)| !["x-request-id", "traceparent", "tracestate"].contains(&name.as_str()))
        .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
        .collect();
    fields.sort();
    json!({
        "data": {
            "method": head.method.as_str(),
            "target": head.uri.to_string(),
            "fields": fields,
            "body": String::from_utf8_lossy(&arrived.body),
        },
        "error": null,
    })
    .to_string()
}

fn answer(status: u16, fields: &[(&str, &str)], body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::builder().status(status).header("content-type", "application/json");
    for (name, value) in fields {
        response = response.header(*name, *value);
    }
    response.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap()
}

/// An answer that must not be kept, or not for long.
fn odd(kind: &str) -> Response<Full<Bytes>> {
    let fresh = ("cache-control", "max-age=600");
    let evil = r#"{"data":"evil","error":null}"#;
    match kind {
        "cookie" => answer(200, &[fresh, ("set-cookie", "evil=1")], evil),
        "vary" => answer(200, &[fresh, ("vary", "accept, *")], evil),
        "no-store" => answer(200, &[("cache-control", "max-age=600, No-Store")], evil),
        "part" => answer(206, &[fresh, ("content-range", "bytes 0-3/100")], "evil"),
        "unchanged" => answer(304, &[fresh, ("etag", "\"evil\"")], ""),
        "error" => answer(500, &[fresh], evil),
        "bad" => answer(400, &[fresh], evil),
        "too-long" => answer(431, &[fresh], evil),
        "envelope" => {
            answer(200, &[fresh], r#"{"_object":"/api/response","data":null,"error":{"code":"evil"}}"#)
        }
        "redirect" => answer(302, &[fresh, ("location", "https://evil.example/")], ""),
        "spoofed" => answer(
            200,
            &[
                fresh,
                ("age", "9999"),
                ("cache-status", "seawall; hit; ttl=9999"),
                ("seawall-source", "cache"),
                ("seawall-data-as-of", "2099-01-01T00:00:00Z"),
                ("seawall-pending-writes", "9"),
            ],
            evil,
        ),
        "hidden" => answer(
            200,
            &[fresh, ("connection", "cache-control, content-type"), ("cache-control", "no-store")],
            evil,
        ),
        _ => panic!("no kind {kind}"),
    }
}

/// What of an answer's head is the upstream's.
fn told(answer: &Answer) -> HeaderMap {
    let mut fields = answer.fields.clone();
    let own: Vec<_> = fields
        .keys()
        .filter(|name| {
            name.as_str().starts_with("seawall-")
                || ["age", "date", "cache-status", "x-request-id", "traceparent"].contains(&name.as_str())
        })
        .cloned()
        .collect();
    for name in own {
        fields.remove(name);
    }
    fields
}

/// What reached the upstream and may not.
fn check(attempt: &Attempt, arrived: &[Arrived], host: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for one in arrived {
        let head = &one.head;
        let target = head.uri.to_string();
        if !attempt.targets().contains(&target) || target.contains("smuggled") {
            wrong.push(format!("the target {target}"));
        }
        if head.headers.get_all("host").iter().count() != 1 || head.headers["host"] != host {
            wrong.push(format!("the host {:?}", head.headers.get("host")));
        }
        // What is not for the cache goes as it is, and is nobody else's.
        if attempt.has("passes") || !target.starts_with("/ports?") {
            continue;
        }
        if !one.body.is_empty() || head.method != Method::GET && head.method != Method::HEAD {
            wrong.push(format!("{} with {} bytes", head.method, one.body.len()));
        }
        for (field, value) in &head.headers {
            let value = String::from_utf8_lossy(value.as_bytes()).to_lowercase();
            let is_meant = match field.as_str() {
                "user-agent" => value.starts_with("seawall/"),
                "accept-encoding" => value == "identity",
                "via" => value == "1.1 seawall",
                name => ALLOWED.contains(&name) && (TAKEN.contains(&name) || !value.contains("evil")),
            };
            if !is_meant {
                wrong.push(format!("the field {field}: {value}"));
            }
        }
    }
    wrong
}

#[tokio::test]
async fn no_attempt_changes_what_others_get() {
    let is_down = Arc::new(AtomicBool::new(false));
    let seen: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
    let down = is_down.clone();
    let upstream = Scripted::start(move |arrived| {
        let (down, seen) = (down.clone(), seen.clone());
        async move {
            if down.load(Ordering::SeqCst) {
                return json(503, "{}");
            }
            let target = arrived.head.uri.to_string();
            let before = {
                let mut seen = seen.lock().unwrap();
                let count = seen.entry(target.clone()).or_default();
                *count += 1;
                *count - 1
            };
            match target.split_once("&first=") {
                Some((_, kind)) if before == 0 => odd(kind),
                _ => answer(
                    200,
                    &[
                        ("cache-control", "max-age=600"),
                        ("vary", "origin, x-forwarded-host, accept-encoding"),
                    ],
                    &reflection(&arrived),
                ),
            }
        }
    })
    .await;
    let sets = ["server.public_url=http://seawall.example", "probe.enabled=false"];
    let proxy = Proxy::start(&upstream.url, &sets).await;
    let clean = Proxy::start(&upstream.url, &sets).await;
    let host = upstream.url.trim_start_matches("http://");
    let attempts = Attempt::all(proxy.addr());
    assert!(attempts.len() >= 100, "{}", attempts.len());
    let get = async |proxy: &Proxy, path: &str, token: &str| {
        proxy.send(Method::GET, path, &[("authorization", token)], "").await
    };
    let (mut expected, mut problems) = (Vec::new(), Vec::new());
    for attempt in &attempts {
        let before = upstream.arrived().len();
        let got = raw(proxy.addr(), attempt).await;
        let has_reached = upstream.arrived().len() > before;
        let victim = get(&proxy, &attempt.path, ANNA).await;
        let other = get(&proxy, &attempt.path, BERT).await;
        let control = get(&clean, &attempt.path, ANNA).await;
        let mut wrong = check(attempt, &upstream.arrived()[before..], host);
        let is_odd = attempt.flags.iter().any(|flag| flag.starts_with("first:")) || attempt.has("elsewhere");
        if attempt.has("refused") {
            if !(400..500).contains(&got.status) || has_reached {
                wrong.push(format!("not refused: {}", got.text));
            }
        } else if !(got.status < 400 || is_odd || got.status == 504) {
            wrong.push(format!("refused: {}", got.text));
        }
        if (victim.status, &victim.body, told(&victim)) != (control.status, &control.body, told(&control)) {
            wrong.push(format!("the victim got {victim:?} and not {control:?}"));
        }
        // Another tenant sees nothing of either.
        for (answer, own, others) in [(&victim, ANNA, "bert"), (&other, BERT, "anna")] {
            let fields = answer.json()["data"]["fields"].to_string();
            if !fields.contains(own) || fields.contains(others) {
                wrong.push(format!("{own} got {answer:?}"));
            }
        }
        problems.extend(wrong.iter().map(|wrong| format!("{} ({}): {wrong}", attempt.name, got.status)));
        expected.push(control.body);
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    // What is kept is clean too.
    is_down.store(true, Ordering::SeqCst);
    for (attempt, expected) in attempts.iter().zip(expected) {
        let fields = [("authorization", ANNA), ("cache-control", "no-cache")];
        let stale = proxy.send(Method::GET, &attempt.path, &fields, "").await;
        assert_eq!((stale.source(), &stale.body), ("stale", &expected), "{}", attempt.name);
    }
}
