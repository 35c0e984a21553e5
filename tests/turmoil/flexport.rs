//! Flexport at the far end of the simulated network: what it holds outlives its crashes, as a database does.
//!
//! It answers honestly, fails as its weather says, and keeps account of what was applied and in which order.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Sleep, sleep};

/// What becomes of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// This status and `Retry-After`, and nothing is done.
    Refused(u16, Option<u32>),
    /// Nothing is done and nothing is said.
    Hangs,
    /// It is done, and nothing is said.
    ActsAndHangs,
    /// It is done, and 502 is said.
    ActsAndFails,
    /// The connection, or the stream, ends at once.
    Ends,
    /// It is done, and the connection ends without an answer.
    ActsAndEnds,
    /// The answer ends in the middle.
    CutsTheAnswer,
    /// The answer stands still in the middle.
    StallsTheAnswer,
}

/// How it is at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    /// From the request to the answer.
    pub(crate) latency: Duration,
    /// What befalls requests; none when empty.
    pub(crate) fates: &'static [Fate],
    /// Of a hundred requests so many are befallen.
    pub(crate) percent: u8,
}

/// See the module.
pub(crate) struct Flexport {
    weather: Mutex<Weather>,
    random: Mutex<fastrand::Rng>,
    books: Mutex<Books>,
    in_flight: AtomicI64,
}

/// What it holds.
#[derive(Default)]
pub(crate) struct Books {
    /// How often each write was applied, by its name.
    pub(crate) applied: HashMap<String, u32>,
    /// The numbers of the writes of each order, as applied.
    pub(crate) orders: BTreeMap<String, Vec<u64>>,
    /// The state of each resource: the number of the last write.
    state: HashMap<String, u64>,
}

/// A request under way.
struct Flying(Arc<Flexport>);

/// An answer in pieces.
struct Pieces {
    left: VecDeque<Bytes>,
    length: Option<u64>,
    end: End,
    pause: Option<Pin<Box<Sleep>>>,
    _flying: Flying,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Whole,
    Cut,
    Stalled,
}

pub(crate) const WELL: Weather = Weather { latency: Duration::from_millis(40), fates: &[], percent: 0 };
pub(crate) const PORT: u16 = 80;
/// Between two pieces of an answer.
const GAP: Duration = Duration::from_millis(3);
const FOREVER: Duration = Duration::from_secs(100_000);

// === impl Flexport ===

impl Flexport {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            weather: Mutex::new(WELL),
            random: Mutex::new(fastrand::Rng::with_seed(!seed)),
            books: Mutex::default(),
            in_flight: AtomicI64::new(0),
        })
    }

    pub(crate) fn set(&self, weather: Weather) {
        *self.weather.lock().unwrap() = weather;
    }

    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap()
    }

    /// Requests that it works on.
    pub(crate) fn in_flight(&self) -> i64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// What a read of this resource would show.
    pub(crate) fn state(&self, path: &str) -> u64 {
        self.books().state.get(path).copied().unwrap_or(0)
    }

    /// The host's software.
    pub(crate) async fn serve(self: Arc<Self>, is_h2: bool) -> turmoil::Result {
        let listener = turmoil::net::TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, PORT)).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            let this = self.clone();
            let service = service_fn(move |request| this.clone().answer(request));
            tokio::spawn(async move {
                // How a connection ends is none of its business.
                let io = TokioIo::new(stream);
                if is_h2 {
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(io, service).await;
                } else {
                    let server = hyper::server::conn::http1::Builder::new();
                    let _ = server.serve_connection(io, service).await;
                }
            });
        }
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> io::Result<Response<Pieces>> {
        let (head, body) = request.into_parts();
        let flying = Flying::new(&self);
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let weather = *self.weather.lock().unwrap();
        let (fate, factor) = {
            let mut random = self.random.lock().unwrap();
            let is_befallen = random.u8(0..100) < weather.percent && !weather.fates.is_empty();
            let fate = is_befallen.then(|| weather.fates[random.usize(0..weather.fates.len())]);
            (fate, random.f64())
        };
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let is_read = head.method == Method::GET;
        // What it does it does as the request comes: later, its order would be nobody's to keep.
        let acts = matches!(
            fate,
            None | Some(
                Fate::ActsAndHangs
                    | Fate::ActsAndFails
                    | Fate::ActsAndEnds
                    | Fate::CutsTheAnswer
                    | Fate::StallsTheAnswer
            )
        );
        let said = match (is_read, acts) {
            (true, _) => self.read(&path, &head.headers),
            (false, true) => self.write(&path, &body),
            (false, false) => Value::Null,
        };
        sleep(weather.latency.mul_f64(0.5 + factor)).await;
        match fate {
            None => {}
            Some(Fate::Refused(status, retry_after)) => {
                let mut response = Response::new(Pieces::of(&Value::Null, End::Whole, flying));
                *response.status_mut() = StatusCode::from_u16(status).unwrap();
                if let Some(seconds) = retry_after {
                    response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
                }
                return Ok(response);
            }
            Some(Fate::Hangs | Fate::ActsAndHangs) => sleep(FOREVER).await,
            Some(Fate::Ends | Fate::ActsAndEnds) => return Err(io::ErrorKind::ConnectionReset.into()),
            Some(Fate::ActsAndFails) => {
                let mut response = Response::new(Pieces::of(&Value::Null, End::Whole, flying));
                *response.status_mut() = StatusCode::BAD_GATEWAY;
                return Ok(response);
            }
            Some(Fate::CutsTheAnswer) => return Ok(Response::new(Pieces::of(&said, End::Cut, flying))),
            Some(Fate::StallsTheAnswer) => {
                return Ok(Response::new(Pieces::of(&said, End::Stalled, flying)));
            }
        }
        let tag = format!("\"{}\"", said["data"]["state"]);
        if is_read && head.headers.get(header::IF_NONE_MATCH).is_some_and(|asked| asked == tag.as_str()) {
            let mut response = Response::new(Pieces::of(&Value::Null, End::Whole, flying));
            response.body_mut().left.clear();
            response.body_mut().length = Some(0);
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response.headers_mut().insert(header::ETAG, tag.parse().unwrap());
            return Ok(response);
        }
        let mut response = Response::new(Pieces::of(&said, End::Whole, flying));
        if is_read {
            response.headers_mut().insert(header::ETAG, tag.parse().unwrap());
        } else if head.method == Method::POST {
            *response.status_mut() = StatusCode::CREATED;
        }
        Ok(response)
    }

    /// A document that tells whose it is and what it is of, so that no other can be taken for it.
    fn read(&self, path: &str, headers: &HeaderMap) -> Value {
        let who =
            headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or("nobody");
        let size = path.bytes().fold(7_usize, |sum, byte| sum * 31 % 1499 + usize::from(byte));
        json!({
            "_object": "/api/response", "self": path, "error": null,
            "data": {
                "who": who, "path": path, "state": self.state(path),
                "size": size, "pad": "x".repeat(size), "end": true,
            },
        })
    }

    fn write(&self, path: &str, body: &[u8]) -> Value {
        let body: Value = serde_json::from_slice(body).expect("Seawall sends what it was given");
        let name = body["name"].as_str().expect("each has one").to_owned();
        let mut books = self.books();
        *books.applied.entry(name.clone()).or_default() += 1;
        if let (Some(order), Some(number)) = (body["order"].as_str(), body["number"].as_u64()) {
            books.orders.entry(order.to_owned()).or_default().push(number);
            books.state.insert(path.to_owned(), number);
        }
        json!({ "_object": "/api/response", "self": path, "error": null, "data": { "name": name, "end": true } })
    }
}

// === impl Flying ===

impl Flying {
    fn new(flexport: &Arc<Flexport>) -> Self {
        flexport.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(flexport.clone())
    }
}

impl Drop for Flying {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Pieces ===

impl Pieces {
    /// In four pieces. Some have a length and some have none, by their size.
    fn of(said: &Value, end: End, flying: Flying) -> Self {
        let whole = Bytes::from(said.to_string());
        let length = (whole.len() % 3 != 0).then_some(whole.len() as u64);
        let step = whole.len().div_ceil(4).max(1);
        let mut left: VecDeque<Bytes> =
            (0..whole.len()).step_by(step).map(|at| whole.slice(at..(at + step).min(whole.len()))).collect();
        if end != End::Whole {
            left.pop_back();
        }
        Self { left, length, end, pause: None, _flying: flying }
    }
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(pause) = &mut self.pause {
            std::task::ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        match (self.left.pop_front(), self.end) {
            (Some(piece), _) => {
                self.pause = Some(Box::pin(sleep(GAP)));
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
            (None, End::Whole) => Poll::Ready(None),
            (None, End::Cut) => Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into()))),
            (None, End::Stalled) => {
                let mut pause = Box::pin(sleep(FOREVER));
                let _ = pause.as_mut().poll(cx);
                self.pause = Some(pause);
                Poll::Pending
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        let sent_all = self.left.is_empty() && self.end == End::Whole;
        match self.length {
            Some(0) => SizeHint::with_exact(0),
            Some(length) if !sent_all => SizeHint::with_exact(length),
            _ => SizeHint::default(),
        }
    }
}
