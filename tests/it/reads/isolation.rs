//! Nobody is served another's data, whatever comes in whatever order: random callers, outages, purges and restarts.
//!
//! The upstream says in each body whom it is for: the token, the version, what was accepted, the URL. So each answer
//! can be judged by itself. Some answers are kept in memory only as long as others leave them room, and come back from
//! disk.

use super::*;
use crate::support::scripted::Arrived;
use http::{HeaderMap, Response};
use http_body_util::Full;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::sync::atomic::AtomicBool;

const VERSIONS: [Option<&str>; 4] = [None, Some("2"), Some("3"), Some("")];
const ACCEPTS: [Option<&str>; 4] = [None, Some("application/json"), Some("*/*"), Some("application/xml")];
const LANGUAGES: [Option<&str>; 3] = [None, Some("en"), Some("de, en;q=0.5")];
const PATHS: [&str; 5] = ["/ports?p=1", "/ports?p=2", "/shipments/1", "/shipments/1?x", "/bookings"];
/// What answers say of the fields that selected them; by the URL.
const VARIES: [Option<&str>; 4] =
    [None, Some("Accept, Accept-Language"), Some("Authorization, X-Other"), Some("flexport-version")];

/// The token of who has none.
const NOBODY: u8 = 3;

/// Who asks for what.
#[derive(Clone, Debug, PartialEq)]
struct Reader {
    token: u8,
    version: u8,
    accept: u8,
    language: u8,
    path: u8,
    other: u8,
}

#[derive(Clone, Debug)]
enum Act {
    /// One after the other.
    Read(Vec<Reader>),
    /// At the same instant.
    Burst(Vec<Reader>),
    /// The upstream answers 503 from now on, or is well again.
    Outage(bool),
    Restart,
    /// Everything, softly.
    Invalidate,
    /// Pushes out of memory what is there.
    Flood,
}

fn reader(tokens: u8) -> impl Strategy<Value = Reader> {
    (0..tokens, 0..4u8, 0..4u8, 0..3u8, 0..5u8, 0..2u8).prop_map(
        |(token, version, accept, language, path, other)| Reader {
            token,
            version,
            accept,
            language,
            path,
            other,
        },
    )
}

fn act(tokens: u8) -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => prop::collection::vec(reader(tokens), 1..12).prop_map(Act::Read),
        4 => prop::collection::vec(reader(tokens), 2..24).prop_map(Act::Burst),
        3 => any::<bool>().prop_map(Act::Outage),
        1 => Just(Act::Restart),
        1 => Just(Act::Invalidate),
        1 => Just(Act::Flood),
    ]
}

// === impl Reader ===

impl Reader {
    fn token(&self) -> String {
        format!("Bearer token-of-{}", self.token)
    }

    fn target(&self) -> &'static str {
        PATHS[usize::from(self.path)]
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        let mut fields = vec![("authorization", self.token())];
        for (name, value) in [
            ("flexport-version", VERSIONS[usize::from(self.version)]),
            ("accept", ACCEPTS[usize::from(self.accept)]),
            ("accept-language", LANGUAGES[usize::from(self.language)]),
        ] {
            fields.extend(value.map(|value| (name, value.to_owned())));
        }
        // Is not forwarded, so nothing can depend on it.
        fields.push(("x-other", self.other.to_string()));
        fields
    }

    /// What the upstream says of a request like this.
    fn named(&self) -> serde_json::Value {
        let value = |value: Option<&str>| value.map(str::to_owned);
        json!({
            "token": self.token(),
            "version": value(VERSIONS[usize::from(self.version)]),
            "accept": value(ACCEPTS[usize::from(self.accept)]),
            "language": value(LANGUAGES[usize::from(self.language)]),
            "url": self.target(),
        })
    }
}

/// What the strict profile keeps apart: by `Vary`, and by credentials.
const STRICT_VARIES: [&[&str]; 4] =
    [&["accept"], &["accept-language", "x-other"], &["flexport-version", "accept"], &["x-other"]];

fn kind(url: &str) -> usize {
    url.len() + url.bytes().last().map_or(0, usize::from)
}

fn field(fields: &HeaderMap, name: &str) -> Option<String> {
    fields.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// The upstream's answer: whom it is for.
fn named(arrived: &Arrived) -> Response<Full<Bytes>> {
    let (fields, url) = (&arrived.head.headers, arrived.head.uri.to_string());
    let body = json!({
        "data": {
            "token": field(fields, "authorization"),
            "version": field(fields, "flexport-version"),
            "accept": field(fields, "accept"),
            "language": field(fields, "accept-language"),
            "url": url,
        },
        "error": null,
        // So that a few fill the memory.
        "padding": "x".repeat(30_000),
    });
    let mut response = json(200, &body.to_string());
    let kind = kind(&url);
    if let Some(vary) = VARIES[kind % VARIES.len()] {
        response.headers_mut().insert("vary", vary.parse().unwrap());
    }
    // Fresh, to be validated, or neither.
    match kind % 3 {
        0 => drop(response.headers_mut().insert("cache-control", "max-age=600".parse().unwrap())),
        1 => drop(response.headers_mut().insert("etag", "\"the same for all\"".parse().unwrap())),
        _ => {}
    }
    response
}

/// The same of an upstream that only tells `Vary` by which fields it chose, and says of what has a token that it is for
/// one alone by saying nothing.
fn varied(arrived: &Arrived) -> Response<Full<Bytes>> {
    let (fields, url) = (&arrived.head.headers, arrived.head.uri.to_string());
    let varies = STRICT_VARIES[kind(&url) % STRICT_VARIES.len()];
    let chosen: BTreeMap<&str, Option<String>> =
        varies.iter().map(|name| (*name, field(fields, name))).collect();
    let body = json!({"data": {"token": field(fields, "authorization"), "chosen": chosen, "url": url}});
    let mut response = json(200, &body.to_string());
    response.headers_mut().insert("vary", varies.join(", ").parse().unwrap());
    response.headers_mut().insert("cache-control", "max-age=600, stale-if-error=600".parse().unwrap());
    response
}

/// What came of one history.
#[derive(Debug, Default)]
struct Seen {
    sources: BTreeMap<String, usize>,
    collapsed: usize,
}

async fn ask(proxy: &Proxy, reader: Reader) -> (Reader, Answer) {
    let fields = reader.fields();
    let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
    // The last of the tokens stands for none.
    let fields = if reader.token == NOBODY { &fields[1..] } else { &fields[..] };
    let answer = proxy.bare(Method::GET, reader.target(), fields, "").await;
    (reader, answer)
}

/// Whether an answer of the strict profile is for whoever sends this.
fn is_for(reader: &Reader, got: &serde_json::Value) -> bool {
    let fields: HeaderMap = reader
        .fields()
        .into_iter()
        .skip(1)
        .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()))
        .collect();
    // What was for nobody in particular is for everybody.
    let is_own = got["token"].is_null() || reader.token != NOBODY && got["token"] == reader.token();
    let chosen = got["chosen"].as_object().unwrap();
    is_own
        && got["url"] == reader.target()
        && chosen.iter().all(|(name, value)| *value == json!(field(&fields, name)))
}

fn judge(
    seen: &mut Seen,
    reader: &Reader,
    answer: &Answer,
    is_down: bool,
    is_strict: bool,
) -> Result<(), String> {
    *seen.sources.entry(answer.source().to_owned()).or_default() += 1;
    seen.collapsed += usize::from(answer.field("cache-status").contains("collapsed"));
    if answer.status != 200 {
        let is_expected = is_down && answer.status.is_server_error();
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let names_none = !text.contains("token-of");
        return (is_expected && names_none).then_some(()).ok_or(format!("{reader:?} got {answer:?}"));
    }
    let got = answer.json()["data"].clone();
    let is_own = if is_strict { is_for(reader, &got) } else { got == reader.named() };
    is_own.then_some(()).ok_or(format!("{reader:?} got what is for {got}: {}", answer.field("cache-status")))
}

async fn play(acts: Vec<Act>, is_strict: bool) -> Result<Seen, String> {
    let is_down = Arc::new(AtomicBool::new(false));
    let down = is_down.clone();
    let upstream = Scripted::start(move |arrived: Arrived| {
        let down = down.clone();
        async move {
            if down.load(Ordering::SeqCst) {
                return json(503, "{}");
            }
            // So that those who come at the same instant find one another.
            tokio::task::yield_now().await;
            if arrived.head.headers.contains_key("if-none-match") {
                let mut response = json(304, "");
                response.headers_mut().insert("etag", "\"the same for all\"".parse().unwrap());
                return response;
            }
            if is_strict { varied(&arrived) } else { named(&arrived) }
        }
    })
    .await;
    let sets = [
        "server.public_url=http://seawall.example",
        "cache.memory=1MiB",
        "cache.max_object=256KiB",
        "probe.enabled=false",
        "breaker.open_wait=1ms",
        "breaker.open_wait_max=2ms",
        "server.drain.grace=100ms",
        if is_strict { "profile=strict" } else { "profile=flexport" },
    ];
    let mut proxy = Arc::new(Proxy::start(&upstream.url, &sets).await);
    let mut seen = Seen::default();
    let mut has_been_down = false;
    for act in acts {
        match act {
            Act::Read(readers) => {
                for reader in readers {
                    let (reader, answer) = ask(&proxy, reader).await;
                    judge(&mut seen, &reader, &answer, has_been_down, is_strict)?;
                }
            }
            Act::Burst(readers) => {
                let mut asking = tokio::task::JoinSet::new();
                for reader in readers {
                    // Each with a twin, so that something is to be collapsed.
                    for reader in [reader.clone(), reader] {
                        let proxy = proxy.clone();
                        asking.spawn(async move { ask(&proxy, reader).await });
                    }
                }
                for (reader, answer) in asking.join_all().await {
                    judge(&mut seen, &reader, &answer, has_been_down, is_strict)?;
                }
            }
            Act::Outage(begins) => {
                // The breaker takes a while to find that it is over.
                has_been_down |= begins;
                is_down.store(begins, Ordering::SeqCst);
            }
            Act::Restart => {
                let stopped = Arc::get_mut(&mut proxy).expect("nobody asks any more");
                stopped.restart().await;
            }
            Act::Invalidate => {
                let body = json!({"all": true, "soft": true, "reason": "test"});
                let purged = proxy.admin(Method::POST, "/api/v1/cache/purge", Some(body)).await;
                assert_eq!(purged.status, 200, "{purged:?}");
            }
            Act::Flood => {
                let fields = [("authorization", "Bearer somebody else")];
                for n in 0..50 {
                    proxy.send(Method::GET, &format!("/ports?flood={n}"), &fields, "").await;
                }
            }
        }
    }
    proxy_stop(proxy).await;
    Ok(seen)
}

async fn proxy_stop(proxy: Arc<Proxy>) {
    if let Ok(mut proxy) = Arc::try_unwrap(proxy) {
        proxy.stop().await;
    }
}

fn run(is_strict: bool) -> Seen {
    // Each way to be answered comes up whatever else does.
    let everybody: Vec<Reader> = (0..PATHS.len() as u8)
        .flat_map(|path| (0..=NOBODY).map(move |token| (path, token)))
        .filter(|(_, token)| is_strict || *token != NOBODY)
        .map(|(path, token)| Reader { token, version: token, accept: path % 4, language: 0, path, other: 0 })
        .collect();
    let tokens = if is_strict { NOBODY + 1 } else { NOBODY };
    let acts = prop::collection::vec(act(tokens), 4..14).prop_map(move |mut acts| {
        acts.insert(0, Act::Burst(everybody.clone()));
        acts.insert(1, Act::Read(everybody.clone()));
        acts.extend([Act::Outage(false), Act::Flood, Act::Outage(true), Act::Restart]);
        acts.push(Act::Read(everybody.clone()));
        acts
    });
    let cases = if std::env::var_os("SEAWALL_SOAK").is_some() { 400 } else { 5 };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let all: Mutex<Seen> = Mutex::default();
    let config = Config { cases, max_shrink_iters: 40, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&acts, |acts| {
            let seen = runtime.block_on(play(acts, is_strict)).map_err(TestCaseError::fail)?;
            let mut all = all.lock().unwrap();
            for (source, count) in seen.sources {
                *all.sources.entry(source).or_default() += count;
            }
            all.collapsed += seen.collapsed;
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    all.into_inner().unwrap()
}

#[test]
fn nobody_is_served_what_is_for_another() {
    let seen = run(false);
    eprintln!("{seen:?}");
    for source in ["upstream", "cache", "stale"] {
        assert!(seen.sources.get(source).is_some_and(|count| *count > 20), "{seen:?}");
    }
    assert!(seen.collapsed > 5, "{seen:?}");
}

#[test]
fn nobody_is_served_what_vary_or_a_credential_keeps_apart_in_the_strict_profile() {
    let seen = run(true);
    eprintln!("{seen:?}");
    for source in ["upstream", "cache"] {
        assert!(seen.sources.get(source).is_some_and(|count| *count > 20), "{seen:?}");
    }
}
