//! What each path answers, like Flexport: envelope, pages and links, the odd 401 and the odd 302.
//!
//! `answer` is synchronous and changes the world at most once, so that a request is carried out wholly or not at
//! all, whatever becomes of its connection.

use std::sync::Mutex;

use bytes::Bytes;
use http::header::{CONTENT_DISPOSITION, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::lock;
use super::oauth::Oauth;
use super::query::Query;
use super::tokens::{Standing, Tokens, bearer};
use super::world::{Item, Kind, Refusal, World};

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// An answer, before the faults and the connection have their way with it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) content_type: Option<HeaderValue>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) body: Bytes,
    /// The write that took effect.
    pub(super) applied: Option<Applied>,
}

/// A write that took effect.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Applied {
    /// The object made or changed; null when there is none.
    pub(super) id: Value,
}

/// What a request asks of which object.
#[derive(Debug, PartialEq)]
enum Route {
    Root,
    List(Kind),
    Item(Kind, String),
    Download(String),
    MyCompany,
    Create(Kind),
    Patch(Kind, String),
    PatchCommercialInvoice,
    Carbon,
    Token,
}

// === impl Answer ===

impl Answer {
    /// An answer in JSON.
    pub(super) fn json(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self { status, content_type: Some(JSON), headers: Vec::new(), body: body.into(), applied: None }
    }

    /// The envelope around an error.
    pub(super) fn error(link_base: &str, uri: &Uri, version: &Value, refusal: &Refusal) -> Self {
        error(link_base, uri, version, (refusal.status, refusal.code, &refusal.message))
    }

    /// What an unknown path gets: a redirect to the site.
    pub(super) fn redirect(target: &str) -> Self {
        let body = format!("<html><body>You are being <a href=\"{target}\">redirected</a>.</body></html>");
        let location = HeaderValue::from_str(target).ok().map(|value| (LOCATION, value));
        Self {
            status: StatusCode::FOUND,
            content_type: Some(HeaderValue::from_static("text/html; charset=utf-8")),
            headers: location.into_iter().collect(),
            body: body.into(),
            applied: None,
        }
    }

    pub(super) fn bad_token() -> Self {
        let body = r#"{"errors":[{"code":"bad_token","message":"Bad Token"}]}"#;
        Self::json(StatusCode::UNAUTHORIZED, body)
    }
}

// === impl Route ===

impl Route {
    fn of(method: &Method, path: &str) -> Option<Self> {
        let path = if path == "/" { path } else { path.strip_suffix('/').unwrap_or(path) };
        let is_read = method == Method::GET || method == Method::HEAD;
        match path {
            "/" => return Some(Self::Root),
            "/network/me/companies" => return is_read.then_some(Self::MyCompany),
            "/carbon_calculation" => return (method == Method::POST).then_some(Self::Carbon),
            "/oauth/token" => return (method == Method::POST).then_some(Self::Token),
            "/commercial_invoices" if method == Method::PATCH => return Some(Self::PatchCommercialInvoice),
            _ => {}
        }
        for kind in Kind::ALL {
            let Some(rest) = path.strip_prefix(kind.path()) else { continue };
            if rest.is_empty() {
                return if is_read && kind.is_listed() {
                    Some(Self::List(kind))
                } else {
                    (method == Method::POST && kind.is_created()).then_some(Self::Create(kind))
                };
            }
            let Some(id) = rest.strip_prefix('/') else { continue };
            if kind == Kind::Document
                && is_read
                && let Some(id) = id.strip_suffix("/download").filter(|id| !id.contains('/'))
            {
                return Some(Self::Download(decoded(id)));
            }
            if id.is_empty() || id.contains('/') {
                continue;
            }
            return if is_read && kind.is_readable() {
                Some(Self::Item(kind, decoded(id)))
            } else {
                (method == Method::PATCH && kind.is_patched()).then(|| Self::Patch(kind, decoded(id)))
            };
        }
        None
    }

    fn is_write(&self) -> bool {
        matches!(
            self,
            Self::Create(_) | Self::Patch(..) | Self::PatchCommercialInvoice | Self::Carbon | Self::Token
        )
    }
}

/// The world behind its lock: reads share it, writes have it alone.
pub(super) trait Access {
    fn read<T>(&self, with: impl FnOnce(&World) -> T) -> T;
    fn write<T>(&self, with: impl FnOnce(&mut World) -> T) -> T;
}

/// Who decides whether a request is let in.
#[derive(Clone, Copy)]
pub(super) struct Gatekeeper<'a> {
    pub(super) tokens: &'a Tokens,
    pub(super) oauth: &'a Mutex<Oauth>,
    /// Tokens that a client may ask for in a day.
    pub(super) budget: Option<u32>,
    pub(super) link_base: &'a str,
}

/// Carries out a request.
pub(super) fn answer(
    world: &impl Access,
    gatekeeper: &Gatekeeper<'_>,
    now: Timestamp,
    (method, uri, headers, body): (&Method, &Uri, &HeaderMap, &Bytes),
) -> Answer {
    let link_base = gatekeeper.link_base;
    let Some(route) = Route::of(method, uri.path()) else {
        return Answer::redirect(&format!("{link_base}/"));
    };
    if route == Route::Root {
        return Answer {
            status: StatusCode::NOT_FOUND,
            content_type: None,
            headers: Vec::new(),
            body: Bytes::new(),
            applied: None,
        };
    }
    let version = match version(headers) {
        Ok(version) => version,
        Err(refusal) => return Answer::error(link_base, uri, &json!(2), &refusal),
    };
    if route != Route::Token {
        let token = bearer(headers);
        let is_expired = token.is_some_and(|token| lock(gatekeeper.oauth).is_expired(token, now));
        match gatekeeper.tokens.standing(token, uri.path()) {
            Standing::Good if !is_expired => {}
            Standing::Good | Standing::Bad => return Answer::bad_token(),
            Standing::Forbidden => {
                let message = "this token has no access to this resource".to_owned();
                let refusal = Refusal { status: 403, code: "forbidden", message };
                return Answer::error(link_base, uri, &version, &refusal);
            }
        }
    }
    let outcome = if route == Route::Token {
        parsed(body).map(|body| {
            let reply = lock(gatekeeper.oauth).issue(&body, gatekeeper.tokens, gatekeeper.budget, now);
            let mut answer = Answer::json(reply.status, reply.body.to_string());
            answer.applied = (reply.status == StatusCode::OK).then_some(Applied { id: Value::Null });
            answer
        })
    } else if route.is_write() {
        write(world, &route, uri, &version, body, now)
    } else {
        world.read(|world| read(world, &route, uri, &version))
    };
    outcome.unwrap_or_else(|refusal| Answer::error(link_base, uri, &version, &refusal))
}

fn read(world: &World, route: &Route, uri: &Uri, version: &Value) -> Result<Answer, Refusal> {
    match route {
        Route::List(kind) => list(world, *kind, uri, version),
        Route::Item(kind, id) => {
            let item = world.get(*kind, id).ok_or_else(|| missing(id))?;
            Ok(enveloped(world, uri, version, &expanded(world, item, &Query::expand(uri.query()))?))
        }
        Route::MyCompany => {
            let own = world.all(Kind::Company).first().ok_or_else(|| missing("me"))?;
            Ok(enveloped(world, uri, version, &expanded(world, own, &Query::expand(uri.query()))?))
        }
        Route::Download(id) => {
            let file = world.file(id).ok_or_else(|| missing(id))?;
            let name: String = file
                .name
                .chars()
                .filter(|letter| letter.is_ascii_graphic() && !matches!(letter, '"' | '\\'))
                .collect();
            let disposition = HeaderValue::from_str(&format!("attachment; filename=\"{name}\""));
            Ok(Answer {
                status: StatusCode::OK,
                content_type: HeaderValue::from_str(&file.mime_type).ok(),
                headers: disposition.ok().map(|value| (CONTENT_DISPOSITION, value)).into_iter().collect(),
                body: file.bytes(),
                applied: None,
            })
        }
        _ => Err(missing(uri.path())),
    }
}

fn list(world: &World, kind: Kind, uri: &Uri, version: &Value) -> Result<Answer, Refusal> {
    let query = Query::parse(uri.query()).map_err(Refusal::bad)?;
    let page = world.select(kind, &query).map_err(Refusal::bad)?;
    let base = world.links.base();
    let link = |page: u64| json!(format!("{base}{}", query.page_link(uri.path(), page))).to_string();
    let null = || "null".to_owned();
    let has_next = query.offset() + (page.items.len() as u64) < page.total && !page.items.is_empty();
    let next = if has_next { link(query.page + 1) } else { null() };
    let prev = if query.page > 1 { link(query.page - 1) } else { null() };
    let expand = Query::expand(uri.query());
    let rows = page.items.iter().map(|item| expanded(world, item, &expand));
    let rows = rows.collect::<Result<Vec<Bytes>, Refusal>>()?;
    let size: usize = rows.iter().map(|row| row.len() + 1).sum();
    let mut body = head(base, uri, version, size + prev.len() + next.len() + 128);
    body.extend_from_slice(br#","data":{"_object":"/api/collections/paginated","prev":"#);
    body.extend_from_slice(prev.as_bytes());
    body.extend_from_slice(br#","next":"#);
    body.extend_from_slice(next.as_bytes());
    body.extend_from_slice(br#","total_count":"#);
    body.extend_from_slice(page.total.to_string().as_bytes());
    body.extend_from_slice(br#","data":["#);
    for (index, row) in rows.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        body.extend_from_slice(row);
    }
    body.extend_from_slice(br#"]},"error":null}"#);
    Ok(Answer::json(StatusCode::OK, body))
}

fn write(
    world: &impl Access,
    route: &Route,
    uri: &Uri,
    version: &Value,
    body: &Bytes,
    now: Timestamp,
) -> Result<Answer, Refusal> {
    let body = parsed(body)?;
    if *route == Route::Carbon {
        return world.read(|world| carbon(world, uri, version, &body));
    }
    world.write(|world| {
        let item = match route {
            Route::Create(kind) => world.create(*kind, &body, now)?,
            Route::Patch(kind, id) => world.patch(*kind, id, &body, now)?,
            _ => world.patch_commercial_invoice(&body, now)?,
        };
        let mut answer = enveloped(world, uri, version, item.json());
        answer.applied = Some(Applied { id: item.value["id"].clone() });
        Ok(answer)
    })
}

fn carbon(world: &World, uri: &Uri, version: &Value, body: &Value) -> Result<Answer, Refusal> {
    if !matches!(body["transportation_mode"].as_str(), Some("air" | "ocean" | "truck" | "rail")) {
        return Err(Refusal::bad("transportation_mode must be air, ocean, truck or rail"));
    }
    let weight = body["weight"]["value"].as_f64().unwrap_or(1000.0);
    let factor = if body["transportation_mode"] == "air" { 4.1 } else { 0.13 };
    let result = json!({
        "_object": "/carbon_calculation",
        "co2e_emissions": {
            "value": (weight * factor * 100.0).round() / 100.0,
            "unit": "kg",
            "_object": "/quantity/weight",
        },
    });
    Ok(enveloped(world, uri, version, result.to_string().as_bytes()))
}

/// An object's bytes, with what the caller wants expanded.
fn expanded(world: &World, item: &Item, expand: &[String]) -> Result<Bytes, Refusal> {
    if expand.is_empty() {
        return Ok(item.json().clone());
    }
    // An event is kept as bytes, of which the value is but a part.
    let mut value: Value = serde_json::from_slice(item.json()).unwrap_or_default();
    for path in expand {
        world.expand(&mut value, path).map_err(Refusal::bad)?;
    }
    Ok(value.to_string().into())
}

fn parsed(body: &Bytes) -> Result<Value, Refusal> {
    let body: Value = serde_json::from_slice(body)
        .map_err(|error| Refusal::bad(format!("the body must be a JSON object: {error}")))?;
    if body.is_object() { Ok(body) } else { Err(Refusal::bad("the body must be a JSON object")) }
}

/// The envelope around an error: status, code, message.
pub(super) fn error(
    link_base: &str,
    uri: &Uri,
    version: &Value,
    (status, code, message): (u16, &str, &str),
) -> Answer {
    let error = json!({"_object": "/api/error", "status": status, "code": code, "message": message});
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut body = head(link_base, uri, version, 256);
    body.extend_from_slice(br#","data":null,"error":"#);
    body.extend_from_slice(error.to_string().as_bytes());
    body.push(b'}');
    Answer::json(status, body)
}

fn enveloped(world: &World, uri: &Uri, version: &Value, data: &[u8]) -> Answer {
    let mut body = head(world.links.base(), uri, version, data.len() + 32);
    body.extend_from_slice(br#","data":"#);
    body.extend_from_slice(data);
    body.extend_from_slice(br#","error":null}"#);
    Answer::json(StatusCode::OK, body)
}

/// The envelope up to its data; `self` is the request exactly as asked.
fn head(link_base: &str, uri: &Uri, version: &Value, room: usize) -> Vec<u8> {
    let asked = uri.path_and_query().map_or("/", |asked| asked.as_str());
    let mut body = Vec::with_capacity(room + link_base.len() + asked.len() + 96);
    body.extend_from_slice(br#"{"_object":"/api/response","self":"#);
    body.extend_from_slice(json!(format!("{link_base}{asked}")).to_string().as_bytes());
    body.extend_from_slice(br#","version":"#);
    body.extend_from_slice(version.to_string().as_bytes());
    body
}

/// The version that the caller asked for, as the envelope repeats it.
pub(super) fn version(headers: &HeaderMap) -> Result<Value, Refusal> {
    let Some(asked) = headers.get("flexport-version") else {
        return Ok(json!(2));
    };
    let asked = asked.to_str().unwrap_or_default();
    match asked.parse::<u32>() {
        Ok(number @ 2..=3) => Ok(json!(number)),
        _ if asked.parse::<jiff::civil::Date>().is_ok() => Ok(json!(asked)),
        _ => Err(Refusal::bad(format!("Flexport-Version must be 2, 3 or a date, not {asked:?}"))),
    }
}

fn missing(id: &str) -> Refusal {
    Refusal { status: 404, code: "not_found", message: format!("nothing with id {id:?}") }
}

fn decoded(id: &str) -> String {
    percent_decode_str(id).decode_utf8_lossy().into_owned()
}
