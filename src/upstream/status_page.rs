//! Flexport's status page, looked at from time to time: shown to operators and told as an event when it changes.
//!
//! It informs and gates nothing. A page is written by people, late and kindly; what the calls themselves show is what
//! breakers act on. So nothing here is asked by any layer of a request's way, and a page that is down, slow or
//! nonsense costs nobody anything but the line that says so.
//!
//! The page is in the form of Atlassian's Statuspage (`status.json` or `summary.json`). It is asked without any
//! credential and without our client certificate, through the same egress proxy and with the same trust as Flexport.
//! What it says is foreign text: held to a length, without control characters, before it reaches a terminal.

use super::client::Client;
use super::connect::Source;
use crate::clock::Clock;
use crate::config::raw::Protocol;
use crate::config::{Snapshot, UpstreamTls};
use crate::event::{self, Kind as EventKind};
use crate::http::Body;
use crate::telemetry::{Metrics, ResultLabels};
use http::{HeaderValue, Request, StatusCode, Uri, header};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What is known of the page. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct StatusPage(Arc<Mutex<Option<PageStatus>>>);

/// What an operator sees of the page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PageStatus {
    /// Where it was read.
    pub url: String,
    /// `none`, `minor`, `major`, `critical` or `maintenance`; `null` until it has been read.
    pub indicator: Option<Indicator>,
    /// In the page's words.
    pub description: String,
    /// What is not resolved, where the page says it.
    pub incidents: Vec<String>,
    /// Since when it says so, as far as we have seen.
    pub since: Option<Timestamp>,
    /// When it was last read.
    pub read_at: Option<Timestamp>,
    /// Why it could not be read at the last look; what it said before stands above.
    pub error: Option<String>,
}

/// How bad the page says that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Indicator {
    /// All is well.
    None,
    /// Some of it is impaired.
    Minor,
    /// Much of it is.
    Major,
    /// It is down.
    Critical,
    /// It is down on purpose.
    Maintenance,
}

/// What one reading found.
#[derive(Debug, PartialEq, Eq)]
struct Reading {
    indicator: Indicator,
    description: String,
    incidents: Vec<String>,
}

/// The way to the page, kept for as long as the configuration is the same.
struct Way {
    generation: u64,
    url: String,
    client: Client,
}

/// How often the settings are looked at.
const LOOK: Duration = Duration::from_millis(250);
/// The most time that one reading takes.
const LIMIT: Duration = Duration::from_secs(10);
/// The longest page.
const LONGEST: u64 = 1 << 20;
/// Characters of a text of the page.
const TEXT_MOST: usize = 200;
const INCIDENTS_MOST: usize = 10;

// === impl StatusPage ===

impl StatusPage {
    /// What is known; `None` when no page is configured.
    pub fn get(&self) -> Option<PageStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the page until cancelled, whenever one is configured.
    pub async fn run(
        self,
        source: Source,
        clock: Clock,
        metrics: Arc<Metrics>,
        bus: event::Bus,
        cancel: CancellationToken,
    ) {
        metrics.status_page_indicator.set(UNKNOWN);
        let mut way: Option<Way> = None;
        let mut last: Option<Instant> = None;
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = looks.tick() => {}
            }
            let config = source();
            let settings = &config.settings.status_page;
            if settings.url.is_empty() {
                if way.take().is_some() {
                    self.set(None);
                    metrics.status_page_indicator.set(UNKNOWN);
                }
                continue;
            }
            let is_other = way.as_ref().is_none_or(|way| way.url != settings.url);
            if !is_other && last.is_some_and(|at| at.elapsed() < *settings.interval) {
                continue;
            }
            last = Some(Instant::now());
            if is_other || way.as_ref().is_none_or(|way| way.generation != config.generation) {
                match client(&config, &settings.url) {
                    Ok(client) => {
                        let (generation, url) = (config.generation, settings.url.clone());
                        way = Some(Way { generation, url, client });
                    }
                    Err(problem) => {
                        self.tell(&settings.url, Err(problem), clock, &metrics, &bus);
                        continue;
                    }
                }
            }
            let Some(way) = &way else { continue };
            let read = tokio::select! {
                () = cancel.cancelled() => return,
                read = tokio::time::timeout(LIMIT, read(&way.client, &way.url)) => read,
            };
            let read = read.unwrap_or_else(|_| Err(format!("no answer within {LIMIT:?}")));
            self.tell(&way.url, read, clock, &metrics, &bus);
        }
    }

    fn set(&self, status: Option<PageStatus>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }

    fn tell(
        &self,
        url: &str,
        read: Result<Reading, String>,
        clock: Clock,
        metrics: &Metrics,
        bus: &event::Bus,
    ) {
        let now = clock.now();
        let before = self.get().filter(|before| before.url == url);
        let result = if read.is_ok() { "ok" } else { "failed" };
        metrics.status_page_reads.get_or_create(&ResultLabels { result }).inc();
        let next = merge(url, before.clone(), read, now);
        metrics.status_page_indicator.set(next.indicator.map_or(UNKNOWN, |indicator| indicator as i64));
        if let Some(error) = next.error.as_deref()
            && before.as_ref().is_none_or(|before| before.error.is_none())
        {
            tracing::warn!(url, error, "the status page cannot be read");
        }
        let said = before.as_ref().and_then(|before| before.indicator);
        if let Some(indicator) = next.indicator.filter(|indicator| said != Some(*indicator)) {
            // That all is well is no news at the first look.
            if said.is_some() || indicator != Indicator::None {
                let (from, to) = (said.map_or("unknown", Indicator::as_str), indicator.as_str());
                tracing::warn!(
                    from,
                    to,
                    description = next.description,
                    "the status page says otherwise now"
                );
                bus.tell(EventKind::StatusPage {
                    from: from.to_owned(),
                    to: to.to_owned(),
                    description: next.description.clone(),
                });
            }
        }
        self.set(Some(next));
    }
}

/// The gauge before anything was read.
const UNKNOWN: i64 = -1;

/// What is known after a look.
fn merge(url: &str, before: Option<PageStatus>, read: Result<Reading, String>, now: Timestamp) -> PageStatus {
    match read {
        Ok(Reading { indicator, description, incidents }) => {
            let since = before.filter(|before| before.indicator == Some(indicator)).and_then(|it| it.since);
            PageStatus {
                url: url.to_owned(),
                indicator: Some(indicator),
                description,
                incidents,
                since: since.or(Some(now)),
                read_at: Some(now),
                error: None,
            }
        }
        Err(error) => {
            let nothing = || PageStatus {
                url: url.to_owned(),
                indicator: None,
                description: String::new(),
                incidents: Vec::new(),
                since: None,
                read_at: None,
                error: None,
            };
            PageStatus { error: Some(error), ..before.unwrap_or_else(nothing) }
        }
    }
}

/// A client for the page's host: as for Flexport, but as nobody.
fn client(config: &Snapshot, url: &str) -> Result<Client, String> {
    let mut page = config.clone();
    url.clone_into(&mut page.settings.upstream.base_url);
    page.settings.upstream.protocol = Protocol::H1;
    page.upstream_tls = Arc::new(UpstreamTls { identity: None, ..(*page.upstream_tls).clone() });
    let page = Arc::new(page);
    // Its connections are not those to Flexport, and not counted among them.
    Client::new(Arc::new(move || page.clone()), &Metrics::new()).map_err(|error| error.to_string())
}

async fn read(client: &Client, url: &str) -> Result<Reading, String> {
    let uri: Uri = url.parse().map_err(|_| "it is not a URL".to_owned())?;
    let host = uri.authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default();
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = uri;
    let fields = request.headers_mut();
    fields.insert(header::HOST, HeaderValue::from_str(&host).map_err(|error| error.to_string())?);
    fields.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    fields.insert(
        header::USER_AGENT,
        HeaderValue::from_static(concat!("Seawall/", env!("CARGO_PKG_VERSION"), " (status page)")),
    );
    let response = client.send(request).await.map_err(|error| error.to_string())?;
    if response.status() != StatusCode::OK {
        return Err(format!("it answered {}", response.status()));
    }
    let body = Body::new(http_body_util::BodyExt::map_err(response.into_body(), |error| {
        crate::http::BodyError::Cut(crate::http::body::chain(&error))
    }));
    parse(&body.collect(LONGEST).await.map_err(|error| error.to_string())?)
}

fn parse(body: &[u8]) -> Result<Reading, String> {
    let page: Value =
        serde_json::from_slice(body).map_err(|_| "it is not JSON; name its `status.json`".to_owned())?;
    let indicator = page["status"]["indicator"].as_str().ok_or("it has no `status.indicator`")?;
    let indicator = Indicator::of(indicator).ok_or("its `status.indicator` is none that is known")?;
    let is_open =
        |one: &&Value| !matches!(one["status"].as_str(), Some("resolved" | "postmortem" | "completed"));
    let incidents = page["incidents"].as_array().into_iter().flatten().filter(is_open);
    Ok(Reading {
        indicator,
        description: text(&page["status"]["description"]),
        incidents: incidents.take(INCIDENTS_MOST).map(|one| text(&one["name"])).collect(),
    })
}

fn text(value: &Value) -> String {
    let is_plain = |c: &char| !c.is_control();
    value.as_str().unwrap_or_default().chars().filter(is_plain).take(TEXT_MOST).collect()
}

// === impl Indicator ===

impl Indicator {
    fn of(word: &str) -> Option<Self> {
        [Self::None, Self::Minor, Self::Major, Self::Critical, Self::Maintenance]
            .into_iter()
            .find(|indicator| indicator.as_str() == word)
    }

    /// The page's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Minor => "minor",
            Self::Major => "major",
            Self::Critical => "critical",
            Self::Maintenance => "maintenance",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parsed(page: &Value) -> Result<Reading, String> {
        parse(page.to_string().as_bytes())
    }

    #[test]
    fn a_page_is_read_and_its_text_is_made_harmless() {
        let long = "x".repeat(1000);
        let page = json!({
            "status": {"indicator": "major", "description": format!("red \u{1b}[31m{long}")},
            "incidents": [{"name": "API errors", "status": "investigating"}, {"name": "old", "status": "resolved"}],
        });
        let reading = parsed(&page).unwrap();
        assert_eq!((reading.indicator, reading.incidents), (Indicator::Major, vec!["API errors".to_owned()]));
        assert_eq!(reading.description.chars().count(), TEXT_MOST);
        assert!(!reading.description.contains('\u{1b}'));
    }

    #[test]
    fn what_is_no_page_is_an_error_that_says_so() {
        assert!(parse(b"<html>").unwrap_err().contains("status.json"));
        assert!(parsed(&json!({})).unwrap_err().contains("status.indicator"));
        assert!(parsed(&json!({"status": {"indicator": "\u{1b}purple"}})).is_err());
    }

    #[test]
    fn what_it_said_stands_while_it_cannot_be_read() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let reading =
            || Reading { indicator: Indicator::Minor, description: "d".to_owned(), incidents: vec![] };
        let first = merge("u", None, Ok(reading()), at(1));
        let second = merge("u", Some(first.clone()), Err("gone".to_owned()), at(2));
        assert_eq!(second.error.as_deref(), Some("gone"));
        assert_eq!((second.indicator, second.read_at), (Some(Indicator::Minor), Some(at(1))));
        let third = merge("u", Some(second), Ok(reading()), at(3));
        assert_eq!((third.since, third.read_at, third.error), (Some(at(1)), Some(at(3)), None));
    }
}
