//! The simulator over real sockets.

use std::io::ErrorKind;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::world::{Kind, World};
use super::{Options, Simulator, seed};

/// No answer within this is a hang.
const PATIENCE: Duration = Duration::from_secs(10);

struct Got {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }
}

/// A small world, which is quickly made.
async fn start() -> Simulator {
    start_with(20).await
}

async fn start_with(shipments: usize) -> Simulator {
    Simulator::start(Options { shipments, ..Options::default() }).await.expect("the simulator starts")
}

fn request(method: &str, base: &str, path: &str, extra: &[(&str, &str)], body: &str) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(format!("{base}{path}"));
    request = request.header("host", base.trim_start_matches("http://"));
    if !extra.iter().any(|(name, _)| *name == "authorization") {
        request = request.header("authorization", "Bearer key");
    }
    for (name, value) in extra {
        request = request.header(*name, *value);
    }
    request.body(Full::from(body.to_owned())).expect("a valid request")
}

async fn send(
    base: &str,
    method: &str,
    path: &str,
    extra: &[(&str, &str)],
    body: &str,
) -> Result<Got, Box<dyn std::error::Error + Send + Sync>> {
    let mut request = request(method, base, path, extra, body);
    *request.uri_mut() = path.parse()?;
    let stream = TcpStream::connect(base.trim_start_matches("http://")).await?;
    let (mut sender, conn) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(conn);
    let answer = timeout(PATIENCE, async {
        let response = sender.send_request(request).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok::<_, hyper::Error>(Got { status: parts.status, headers: parts.headers, body })
    })
    .await?;
    driver.abort();
    Ok(answer?)
}

async fn get(simulator: &Simulator, path: &str) -> Got {
    send(&simulator.url(), "GET", path, &[], "").await.expect("an answer")
}

async fn data(simulator: &Simulator, path: &str) -> Value {
    let got = get(simulator, path).await;
    assert_eq!(got.status, StatusCode::OK, "{path}: {:?}", got.body);
    got.json()["data"].clone()
}

async fn post(simulator: &Simulator, method: &str, path: &str, body: &Value) -> Got {
    send(&simulator.url(), method, path, &[], &body.to_string()).await.expect("an answer")
}

async fn control(simulator: &Simulator, method: &str, path: &str, body: &Value) -> Got {
    send(&simulator.control_url(), method, path, &[], &body.to_string()).await.expect("an answer")
}

fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<ErrorKind> {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return Some(error.kind());
        }
        at = error.source();
    }
    None
}

// --- the world ---

#[tokio::test]
async fn a_page_has_the_envelope_in_its_order_and_links_that_keep_the_filters() {
    let simulator = start_with(120).await;
    let path = "/shipments?f.transportation_mode=ocean&per=7&page=2&sort=updated_at&direction=asc";
    let got = get(&simulator, path).await;
    assert_eq!(got.headers["content-type"], "application/json");
    assert!(!got.headers.contains_key("etag") && !got.headers.contains_key("cache-control"));
    let body = got.json();
    let keys: Vec<&String> = body.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["_object", "self", "version", "data", "error"]);
    assert_eq!(body["self"], format!("https://api.flexport.com{path}"));
    assert_eq!(body["version"], 2);
    let page = &body["data"];
    let keys: Vec<&String> = page.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["_object", "prev", "next", "total_count", "data"]);
    let link = |page| {
        let kept = "f.transportation_mode=ocean&sort=updated_at&direction=asc";
        format!("https://api.flexport.com/shipments?{kept}&page={page}&per=7")
    };
    assert_eq!((&page["prev"], &page["next"]), (&json!(link(1)), &json!(link(3))));
    let rows = page["data"].as_array().unwrap();
    assert_eq!(rows.len(), 7);
    assert!(rows.iter().all(|row| row["transportation_mode"] == "ocean"));
    assert!(rows.windows(2).all(|pair| pair[0]["updated_at"].as_str() <= pair[1]["updated_at"].as_str()));
    simulator.shutdown().await;
}

#[tokio::test]
async fn following_next_meets_every_object_once() {
    let simulator = start_with(120).await;
    let mut ids = Vec::new();
    let mut path = "/shipments?per=50".to_owned();
    loop {
        let page = data(&simulator, &path).await;
        ids.extend(page["data"].as_array().unwrap().iter().map(|row| row["id"].as_u64().unwrap()));
        assert_eq!(page["total_count"], 120);
        match page["next"].as_str() {
            Some(next) => next.strip_prefix("https://api.flexport.com").unwrap().clone_into(&mut path),
            None => break,
        }
    }
    assert_eq!(ids.len(), 120);
    assert!(ids.is_sorted_by(|a, b| a > b), "newest first");
    assert_eq!(data(&simulator, "/shipments/?page=99").await["data"], json!([]));
}

#[tokio::test]
async fn filters_select() {
    let simulator = start_with(120).await;
    let all = data(&simulator, "/shipments?per=100&sort=updated_at&direction=asc").await["data"].clone();
    let middle = all[50]["updated_at"].as_str().unwrap();
    let later = data(&simulator, &format!("/shipments?f.updated_at.gt={middle}&per=100")).await;
    let others = data(&simulator, &format!("/shipments?f.updated_at.lte={middle}&per=100")).await;
    assert_eq!((later["total_count"].as_u64(), others["total_count"].as_u64()), (Some(69), Some(51)));
    let some = data(&simulator, "/shipments?f.statuses.any=arrival_port,final_destination").await;
    assert!(some["total_count"].as_u64().unwrap() > 0);
    for row in some["data"].as_array().unwrap() {
        assert!(["arrival_port", "final_destination"].contains(&row["status"].as_str().unwrap()));
    }
    let id = &all[0]["id"];
    let legs = data(&simulator, &format!("/shipment_legs?f.shipment.id={id}")).await;
    assert_eq!(legs["total_count"], 3);
    let containers = data(&simulator, "/ocean/shipment_containers?per=1").await["data"][0].clone();
    let number = containers["container_number"].as_str().unwrap();
    let of_number = data(&simulator, &format!("/shipments?f.container_number={number}")).await;
    assert_eq!(of_number["data"][0]["id"], containers["shipment"]["id"]);
    // Through a reference.
    let path = format!("/ocean/shipment_container_legs?f.shipment_container.container_number={number}");
    assert_eq!(data(&simulator, &path).await["total_count"], 3);
    assert_eq!(data(&simulator, "/shipments?f.archived_at.exists=true").await["total_count"], 0);
    assert!(data(&simulator, "/ports?f.port_type=airport").await["total_count"].as_u64().unwrap() > 3);
    let got = get(&simulator, "/shipments?f.nonsense=1").await;
    assert_eq!(got.status, StatusCode::BAD_REQUEST);
    assert!(got.json()["error"]["message"].as_str().unwrap().contains("f.nonsense"));
    assert_eq!(get(&simulator, "/shipments?per=101").await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn every_list_and_every_object_of_it_answers() {
    let simulator = start().await;
    for kind in Kind::ALL.into_iter().filter(|kind| kind.is_listed()) {
        let page = data(&simulator, kind.path()).await;
        for row in page["data"].as_array().unwrap().iter().take(2).filter(|_| kind.is_readable()) {
            let id = super::world::id_text(&row["id"]);
            assert_eq!(&data(&simulator, &format!("{}/{id}", kind.path())).await, row);
        }
    }
    assert_eq!(data(&simulator, "/network/me/companies").await["_object"], "/network/company");
}

#[tokio::test]
async fn documents_download_and_one_has_700_kib() {
    let simulator = start().await;
    let document = data(&simulator, "/documents?per=1&direction=asc").await["data"][0].clone();
    assert_eq!(document["file_metadata"]["size"], seed::LARGEST_FILE);
    let link = document["file_link"].as_str().unwrap().strip_prefix("https://api.flexport.com").unwrap();
    let got = get(&simulator, link).await;
    assert_eq!(got.body.len(), 716_800);
    assert!(["application/pdf", "image/png"].contains(&got.headers["content-type"].to_str().unwrap()));
    assert_eq!(got.body, get(&simulator, link).await.body);
}

#[tokio::test]
async fn the_odd_answers_are_flexports() {
    let simulator = start().await;
    let base = simulator.url();
    let odd = json!({"errors": [{"code": "bad_token", "message": "Bad Token"}]});
    for token in ["", "Bearer ", "Basic eDp5"] {
        let got = send(&base, "GET", "/shipments", &[("authorization", token)], "").await.unwrap();
        assert_eq!((got.status, got.json()), (StatusCode::UNAUTHORIZED, odd.clone()), "{token:?}");
    }
    for (method, path) in
        [("GET", "/nowhere"), ("DELETE", "/shipments"), ("PUT", "/shipments/1"), ("GET", "/a/b")]
    {
        let got = send(&base, method, path, &[], "").await.unwrap();
        assert_eq!(
            (got.status, &got.headers["location"]),
            (StatusCode::FOUND, &"https://api.flexport.com/".parse().unwrap())
        );
        assert_eq!(got.headers["content-type"], "text/html; charset=utf-8");
    }
    let root = get(&simulator, "/").await;
    assert_eq!((root.status, root.body.len()), (StatusCode::NOT_FOUND, 0));
    let missing = get(&simulator, "/shipments/1").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    assert_eq!(missing.json()["error"]["_object"], "/api/error");
    let third = send(&base, "GET", "/shipments?per=1", &[("flexport-version", "3")], "").await.unwrap();
    assert_eq!(third.json()["version"], 3);
    let head = send(&base, "HEAD", "/shipments?per=1", &[], "").await.unwrap();
    let full = get(&simulator, "/shipments?per=1").await;
    assert_eq!(head.headers["content-length"], full.headers["content-length"]);
    assert!(head.body.is_empty());
}

#[tokio::test]
async fn tokens_can_be_bad_expired_or_without_a_scope() {
    let simulator = start().await;
    let spec = json!({"bad": ["b"], "expired": ["e"], "forbidden": {"f": ["/bookings"]}});
    assert_eq!(control(&simulator, "PUT", "/_sim/tokens", &spec).await.status, StatusCode::OK);
    for (token, path, status) in [
        ("b", "/shipments", 401),
        ("e", "/shipments", 401),
        ("f", "/bookings", 403),
        ("f", "/bookings/1", 403),
        ("f", "/booking_line_items", 200),
        ("g", "/bookings", 200),
    ] {
        let authorization = format!("Bearer {token}");
        let got =
            send(&simulator.url(), "GET", path, &[("authorization", &authorization)], "").await.unwrap();
        assert_eq!(got.status, status, "{token} {path}");
    }
    let wrong = control(&simulator, "PUT", "/_sim/tokens", &json!({"good": []})).await;
    assert_eq!(wrong.status, StatusCode::BAD_REQUEST);
    assert!(wrong.json()["error"].as_str().unwrap().starts_with("tokens.good"));
}

#[tokio::test]
async fn switches_bring_validators() {
    let simulator = start().await;
    let spec = json!({"validators": true, "cache_control": "max-age=60"});
    assert_eq!(control(&simulator, "PUT", "/_sim/switches", &spec).await.status, StatusCode::OK);
    let got = get(&simulator, "/shipments?per=1").await;
    assert_eq!(got.headers["cache-control"], "max-age=60");
    let tag = got.headers["etag"].to_str().unwrap();
    assert!(tag.starts_with("W/\""));
    let again =
        send(&simulator.url(), "GET", "/shipments?per=1", &[("if-none-match", tag)], "").await.unwrap();
    assert_eq!((again.status, again.body.len()), (StatusCode::NOT_MODIFIED, 0));
    assert_eq!(again.headers["etag"], got.headers["etag"]);
}

#[tokio::test]
async fn it_speaks_h2c() {
    let simulator = start_with(120).await;
    let stream = TcpStream::connect(simulator.addr()).await.unwrap();
    let (mut sender, conn) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(conn);
    let response =
        sender.send_request(request("GET", &simulator.url(), "/shipments?per=100", &[], "")).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.into_body().collect().await.unwrap().to_bytes().len() > 200_000);
    driver.abort();
}

#[test]
fn the_same_seed_makes_the_same_bytes_and_another_does_not() {
    let all = |seed| {
        let world = World::new(seed, 30, "https://api.flexport.com");
        let items =
            Kind::ALL.into_iter().flat_map(|kind| world.all(kind).iter().map(|item| item.json().clone()));
        items.collect::<Vec<_>>()
    };
    assert_eq!(all(7), all(7));
    assert_ne!(all(7), all(8));
}

#[test]
fn shipments_have_the_size_of_real_ones() {
    let world = World::new(1, 120, "https://api.flexport.com");
    let mean = |kind: Kind| {
        let items = world.all(kind);
        items.iter().map(|item| item.json().len()).sum::<usize>() / items.len()
    };
    let shipment = mean(Kind::Shipment);
    assert!((2_700..3_200).contains(&shipment), "a shipment has {shipment} bytes");
    let booking = mean(Kind::Booking);
    assert!((3_200..5_000).contains(&booking), "a booking has {booking} bytes");
}

// --- shapes ---

/// The shapes of real bodies: `_object` to keys, in order, to types.
fn shapes() -> Map<String, Value> {
    serde_json::from_str(include_str!("../../tests/fixtures/shapes.json")).expect("a JSON object")
}

fn check(shapes: &Map<String, Value>, object: &str, value: &Value) -> Result<(), String> {
    let shape = shapes[object].as_object().unwrap();
    let Some(fields) = value.as_object() else {
        return Err(format!("{object}: is {value}"));
    };
    if !shape.keys().eq(fields.keys()) {
        return Err(format!("{object}: keys are {:?}", fields.keys().collect::<Vec<_>>()));
    }
    if value["_object"] != object {
        return Err(format!("{object}: _object is {}", value["_object"]));
    }
    for (field, types) in shape {
        let types = types.as_str().unwrap();
        let is_one = types.split(" | ").any(|one| fits(shapes, one, &fields[field]));
        if !is_one {
            return Err(format!(
                "{object}.{field}: {} is none of {types}{}",
                fields[field],
                why(shapes, types, &fields[field])
            ));
        }
    }
    Ok(())
}

fn why(shapes: &Map<String, Value>, types: &str, value: &Value) -> String {
    let inner = types.split(" | ").find(|one| one.starts_with('/') && value.is_object());
    inner
        .and_then(|one| check(shapes, one, value).err())
        .map(|error| format!(": {error}"))
        .unwrap_or_default()
}

fn fits(shapes: &Map<String, Value>, one: &str, value: &Value) -> bool {
    match one {
        "null" => value.is_null(),
        "const" | "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_f64(),
        "boolean" => value.is_boolean(),
        "map" => value.is_object(),
        "[]" => value.as_array().is_some_and(Vec::is_empty),
        _ => match one.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(inner) => value.as_array().is_some_and(|list| {
                !list.is_empty()
                    && list.iter().all(|value| inner.split('|').any(|one| fits(shapes, one, value)))
            }),
            None => shapes.contains_key(one) && check(shapes, one, value).is_ok(),
        },
    }
}

#[tokio::test]
async fn every_object_has_the_shape_of_the_real_one() {
    let simulator = start_with(120).await;
    let shapes = shapes();
    let mut seen = 0;
    for kind in Kind::ALL.into_iter().filter(|kind| kind.is_listed()) {
        let got = get(&simulator, &format!("{}?per=100", kind.path())).await.json();
        if !shapes.contains_key(kind.object()) {
            continue;
        }
        for row in got["data"]["data"].as_array().unwrap() {
            check(&shapes, kind.object(), row).unwrap();
            seen += 1;
        }
        if shapes["/api/collections/paginated"]["data"].as_str().unwrap().contains(kind.object()) {
            check(&shapes, "/api/collections/paginated", &got["data"]).unwrap();
            check(&shapes, "/api/response", &got).unwrap();
        }
    }
    assert!(seen > 500, "{seen}");
    for body in [
        json!({"name": "A"}),
        json!({"name": "B", "air_booking": {"incoterm": "EXW"}, "destination_address_ref": "x"}),
    ] {
        let made = post(&simulator, "POST", "/bookings", &body).await.json();
        check(&shapes, "/booking", &made["data"]).unwrap();
        let shipment = data(&simulator, &format!("/shipments/{}", made["data"]["shipment"]["id"])).await;
        check(&shapes, "/shipment", &shipment).unwrap();
    }
}

// --- writes ---

#[tokio::test]
async fn a_booking_appears_in_the_list_and_wrong_ones_are_refused() {
    let simulator = start().await;
    let got =
        post(&simulator, "POST", "/bookings", &json!({"name": "Mugs", "metadata": {"po": ["7"]}})).await;
    assert_eq!(got.status, StatusCode::OK);
    let made = got.json()["data"].clone();
    let list = data(&simulator, "/bookings?f.metadata.po=7").await;
    assert_eq!(list["data"][0], made);
    let created = made["created_at"].as_str().unwrap();
    let found = data(&simulator, &format!("/bookings?f.created_at.gte={created}")).await;
    assert_eq!((&found["total_count"], &found["data"][0]["id"]), (&json!(1), &made["id"]));
    for (body, field) in [("[]", "object"), ("{", "object"), ("{}", "name"), (r#"{"name":3}"#, "name")] {
        let got = send(&simulator.url(), "POST", "/bookings", &[], body).await.unwrap();
        assert_eq!(got.status, StatusCode::BAD_REQUEST);
        assert!(got.json()["error"]["message"].as_str().unwrap().contains(field));
    }
    let state = simulator.state();
    assert_eq!(state["applied"].as_array().unwrap().len(), 1);
    assert_eq!(state["applied"][0]["id"], made["id"]);
    assert_eq!(state["counts"]["bookings"], 21);
}

#[tokio::test]
async fn a_shipments_metadata_is_replaced_and_its_stamp_moves() {
    let simulator = start().await;
    let before = data(&simulator, "/shipments?per=1").await["data"][0].clone();
    let path = format!("/shipments/{}", before["id"]);
    let got = post(&simulator, "PATCH", &path, &json!({"metadata": {"k": ["v", "w"]}})).await;
    assert_eq!(got.status, StatusCode::OK);
    let after = data(&simulator, &path).await;
    assert_eq!(after["metadata"], json!({"k": ["v", "w"]}));
    assert!(after["updated_at"].as_str() > before["updated_at"].as_str());
    assert_eq!(post(&simulator, "PATCH", &path, &json!({"metadata": {"k": "v"}})).await.status, 400);
    assert_eq!(post(&simulator, "PATCH", "/shipments/1", &json!({"metadata": {}})).await.status, 404);
}

#[tokio::test]
async fn every_documented_write_answers_200() {
    let simulator = start().await;
    let company = data(&simulator, "/network/companies?per=1").await["data"][0]["id"].clone();
    let shipment = data(&simulator, "/shipments?per=1").await["data"][0]["id"].clone();
    let product = data(&simulator, "/products?per=1").await["data"][0]["id"].clone();
    let writes = [
        (
            "POST",
            "/booking_line_items".to_owned(),
            json!({"purchase_order_line_item_id": 1, "booking_id": 2, "units": 3}),
        ),
        ("POST", "/booking_amendments".to_owned(), json!({"booking_id": 2, "new_name": "x"})),
        (
            "POST",
            "/documents".to_owned(),
            json!({"document": "aGk=", "file_name": "a.txt", "mime_type": "text/plain", "document_type": "other", "shipment_id": shipment}),
        ),
        ("POST", "/products".to_owned(), json!({"name": "Mug", "sku": "new"})),
        ("PATCH", format!("/products/{product}"), json!({"description": "better"})),
        (
            "POST",
            "/commercial_invoices".to_owned(),
            json!({"invoice_number": "I-1", "shipment_id": shipment}),
        ),
        ("PATCH", "/commercial_invoices".to_owned(), json!({"invoice_number": "I-1", "metadata": {"a": []}})),
        ("POST", "/network/companies".to_owned(), json!({"name": "C", "ref": "c"})),
        ("POST", "/network/company_entities".to_owned(), json!({"name": "E"})),
        (
            "POST",
            "/network/contacts".to_owned(),
            json!({"name": "P", "email": "p@x.example", "company_id": company}),
        ),
        ("POST", "/network/locations".to_owned(), json!({"name": "L", "company_id": company})),
        ("PATCH", format!("/network/companies/{}", company.as_str().unwrap()), json!({"name": "D"})),
        ("POST", "/purchase_orders".to_owned(), json!({"name": "PO-X"})),
        ("POST", "/carbon_calculation".to_owned(), json!({"transportation_mode": "air"})),
        (
            "POST",
            "/oauth/token".to_owned(),
            json!({"client_id": "a", "client_secret": "b", "audience": "https://api.flexport.com", "grant_type": "client_credentials"}),
        ),
    ];
    for (method, path, body) in &writes {
        let got = post(&simulator, method, path, body).await;
        assert_eq!(got.status, StatusCode::OK, "{method} {path}: {:?}", got.body);
    }
    let again = post(&simulator, "POST", "/products", &json!({"name": "Mug", "sku": "new"})).await;
    assert_eq!(again.status, StatusCode::UNPROCESSABLE_ENTITY);
    let applied = simulator.state()["applied"].as_array().unwrap().len();
    assert_eq!(applied, writes.len());
    let document = data(&simulator, "/documents?per=1").await["data"][0].clone();
    let got = get(&simulator, &format!("/documents/{}/download", document["id"].as_str().unwrap())).await;
    assert_eq!((&got.body[..], &got.headers["content-type"]), (&b"hi"[..], &"text/plain".parse().unwrap()));
    assert!(got.headers["content-disposition"].to_str().unwrap().contains("a.txt"));
    assert_eq!(data(&simulator, "/purchase_orders?f.name=PO-X").await["total_count"], 1);
    assert_eq!(data(&simulator, "/network/companies?f.ref=c").await["total_count"], 1);
}

// --- the journal ---

#[tokio::test]
async fn the_journal_tells_what_arrived_and_what_became_of_it() {
    let simulator = start().await;
    let extra = [("x-twice", "1"), ("x-twice", "2")];
    send(&simulator.url(), "POST", "/bookings?a=b", &extra, r#"{"name":"n"}"#).await.unwrap();
    send(&simulator.url(), "GET", "/_sim/state", &[], "").await.unwrap();
    get(&simulator, "/shipments?per=1").await;
    let entries = control(&simulator, "GET", "/_sim/requests", &json!(null)).await.json();
    assert_eq!(entries.as_array().unwrap().len(), 2, "the calls of /_sim are not in it");
    let entry = &entries[0];
    assert_eq!(
        (&entry["seq"], &entry["method"], &entry["path"]),
        (&json!(1), &json!("POST"), &json!("/bookings"))
    );
    assert_eq!((&entry["query"], &entry["body"]), (&json!("a=b"), &json!(r#"{"name":"n"}"#)));
    assert_eq!(entry["headers"]["x-twice"], json!(["1", "2"]));
    assert_eq!(entry["headers"]["authorization"], "Bearer key");
    assert_eq!((&entry["applied"], &entry["answered"]), (&json!(true), &json!(200)));
    assert!(entry["result_id"].is_u64());
    assert_eq!((&entries[1]["applied"], &entries[1]["answered"]), (&json!(false), &json!(200)));
    let reads =
        control(&simulator, "GET", "/_sim/requests?method=GET&path=/shipments", &json!(null)).await.json();
    assert_eq!(reads.as_array().unwrap().len(), 1);
    control(&simulator, "DELETE", "/_sim/requests", &json!(null)).await;
    assert!(simulator.journal().is_empty());
}

#[tokio::test]
async fn a_call_that_is_not_there_names_those_that_are() {
    let simulator = start().await;
    let unknown = control(&simulator, "GET", "/_sim/nothing", &json!(null)).await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    let error = unknown.json()["error"].as_str().unwrap().to_owned();
    for (path, methods) in super::control::CALLS {
        assert!(error.contains(path), "{error}");
        let wrong = control(&simulator, "PATCH", path, &json!({})).await;
        assert_eq!(wrong.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        assert!(wrong.json()["error"].as_str().unwrap().contains(methods));
        // Whatever takes a body refuses one that is no object, and says what it wants.
        for method in methods.split(", ").filter(|method| ["PUT", "POST"].contains(method)) {
            let got = control(&simulator, method, path, &json!("x")).await;
            assert_eq!(got.status, StatusCode::BAD_REQUEST, "{method} {path}");
            assert!(got.json()["error"].as_str().unwrap().contains(": must be"), "{}", got.json());
        }
    }
    assert_eq!(control(&simulator, "GET", "/shipments", &json!(null)).await.status, StatusCode::NOT_FOUND);
}

// --- faults ---

#[tokio::test]
async fn a_status_is_answered_and_nothing_applied_as_often_as_asked() {
    let simulator = start().await;
    let fault = json!([{
        "match": {"method": "POST", "path": "/bookings"},
        "kind": "status", "status": 503, "retry_after": 7, "times": 2,
    }]);
    assert_eq!(control(&simulator, "PUT", "/_sim/faults", &fault).await.status, StatusCode::OK);
    let booking = json!({"name": "x"});
    for _ in 0..2 {
        let got = post(&simulator, "POST", "/bookings", &booking).await;
        assert_eq!((got.status.as_u16(), &got.headers["retry-after"]), (503, &"7".parse().unwrap()));
        assert_eq!(got.json()["error"]["status"], 503);
    }
    assert_eq!(get(&simulator, "/bookings").await.status, StatusCode::OK);
    assert_eq!(post(&simulator, "POST", "/bookings", &booking).await.status, StatusCode::OK);
    let applied: Vec<Value> =
        simulator.journal().iter().filter(|e| e["method"] == "POST").map(|e| e["applied"].clone()).collect();
    assert_eq!(applied, [false, false, true]);
    let left = control(&simulator, "GET", "/_sim/faults", &json!(null)).await.json();
    assert_eq!((&left[0]["times_left"], &left[0]["struck"]), (&json!(0), &json!(2)));
}

#[tokio::test]
async fn a_wrong_fault_is_refused_by_field_and_leaves_the_others() {
    let simulator = start().await;
    simulator.set_faults(json!([{"kind": "status", "status": 500}])).unwrap();
    let got = control(&simulator, "PUT", "/_sim/faults", &json!([{"kind": "status", "stauts": 1}])).await;
    assert_eq!(got.status, StatusCode::BAD_REQUEST);
    assert!(got.json()["error"].as_str().unwrap().starts_with("faults[0].status"));
    assert_eq!(get(&simulator, "/shipments").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    simulator.clear_faults();
    assert_eq!(get(&simulator, "/shipments").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_late_write_takes_effect_though_its_caller_has_gone() {
    let simulator = start().await;
    simulator.set_faults(json!([{"kind": "latency", "ms": 60}])).unwrap();
    let base = simulator.url();
    let call = send(&base, "POST", "/bookings", &[], r#"{"name":"late"}"#);
    assert!(timeout(Duration::from_millis(15), call).await.is_err());
    timeout(PATIENCE, async {
        while simulator.state()["applied"].as_array().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the write takes effect");
}

#[tokio::test]
async fn what_hangs_is_cut_when_the_fault_is_cleared() {
    for (kind, applied) in [("hang", 0), ("apply_then_hang", 1)] {
        let simulator = start().await;
        simulator.set_faults(json!([{"kind": kind}])).unwrap();
        let base = simulator.url();
        let call =
            tokio::spawn(
                async move { send(&base, "POST", "/bookings", &[], r#"{"name":"x"}"#).await.is_err() },
            );
        timeout(PATIENCE, async {
            while simulator.journal().first().is_none_or(|entry| entry["answered"] != "hang") {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the request arrives");
        assert!(!call.is_finished());
        simulator.clear_faults();
        assert!(timeout(PATIENCE, call).await.unwrap().unwrap(), "no answer, but an end");
        assert_eq!(simulator.state()["applied"].as_array().unwrap().len(), applied);
    }
}

#[tokio::test]
async fn the_answer_after_a_write_can_lie() {
    let simulator = start().await;
    simulator
        .set_faults(json!([{"kind": "apply_then_status", "status": 502, "body": "bad gateway"}]))
        .unwrap();
    let got = post(&simulator, "POST", "/bookings", &json!({"name": "x"})).await;
    assert_eq!((got.status.as_u16(), &got.body[..]), (502, &b"bad gateway"[..]));
    let entry = &simulator.journal()[0];
    assert_eq!((&entry["applied"], &entry["answered"]), (&json!(true), &json!(502)));
}

#[tokio::test]
async fn refuse_ends_connections_and_refuses_new_ones_until_it_is_cleared() {
    let simulator = start().await;
    let mut open = TcpStream::connect(simulator.addr()).await.unwrap();
    // Once it was served, it is surely accepted.
    open.write_all(b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut buffer = [0; 1024];
    assert!(open.read(&mut buffer).await.unwrap() > 0);
    // By the main listener: its own answer still comes.
    let got = send(&simulator.url(), "PUT", "/_sim/faults", &[], r#"[{"kind":"refuse"}]"#).await.unwrap();
    assert_eq!(got.status, StatusCode::OK);
    for _ in 0..3 {
        let error = TcpStream::connect(simulator.addr()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
    let ended = timeout(PATIENCE, open.read(&mut buffer)).await.expect("the open connection ends");
    assert!(matches!(ended, Ok(0) | Err(_)));
    assert_eq!(control(&simulator, "DELETE", "/_sim/faults", &json!(null)).await.status, StatusCode::OK);
    assert_eq!(get(&simulator, "/shipments?per=1").await.status, StatusCode::OK);
    // In-process, too, and again and again.
    for _ in 0..20 {
        simulator.set_faults(json!([{"kind": "refuse"}])).unwrap();
        assert!(TcpStream::connect(simulator.addr()).await.is_err());
        simulator.clear_faults();
        assert_eq!(get(&simulator, "/shipments?per=1").await.status, StatusCode::OK);
    }
    simulator.shutdown().await;
}

#[tokio::test]
async fn refuse_ends_by_itself_at_its_instant() {
    let simulator = start().await;
    let until = super::shared::now() + Duration::from_millis(80);
    simulator.set_faults(json!([{"kind": "refuse", "until": until.to_string()}])).unwrap();
    assert!(TcpStream::connect(simulator.addr()).await.is_err());
    timeout(PATIENCE, async {
        while TcpStream::connect(simulator.addr()).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it listens again");
}

#[tokio::test]
async fn a_reset_before_the_headers_is_a_reset() {
    let simulator = start().await;
    simulator.set_faults(json!([{"kind": "reset"}])).unwrap();
    let error = send(&simulator.url(), "POST", "/bookings", &[], r#"{"name":"x"}"#).await.err().unwrap();
    assert_eq!(io_kind(&*error), Some(ErrorKind::ConnectionReset), "{error:?}");
    let entry = &simulator.journal()[0];
    assert_eq!((&entry["applied"], &entry["answered"]), (&json!(false), &json!("reset")));
}

/// Reads a raw answer until the connection ends: the bytes, and the error if it was no clean end.
async fn raw(simulator: &Simulator, path: &str) -> (Vec<u8>, Option<ErrorKind>) {
    let mut stream = TcpStream::connect(simulator.addr()).await.unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer key\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let end = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the connection ends");
    (bytes, end.err().map(|error| error.kind()))
}

#[tokio::test]
async fn a_cut_answer_has_its_whole_head_and_half_its_body() {
    let simulator = start_with(120).await;
    let full = get(&simulator, "/shipments?per=100").await.body;
    for (fault, end) in [
        (json!([{"kind": "truncate"}]), None),
        (json!([{"kind": "reset", "at": "mid_body"}]), Some(ErrorKind::ConnectionReset)),
    ] {
        simulator.set_faults(fault).unwrap();
        let (bytes, error) = raw(&simulator, "/shipments?per=100").await;
        assert_eq!(error, end);
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", full.len())), "{head}");
        assert_eq!(body.as_bytes(), &full[..full.len() / 2]);
        // Without a body there is no middle to cut at.
        let (bytes, error) = raw(&simulator, "/").await;
        assert!(bytes.is_empty());
        assert_eq!(error, end);
    }
}

#[tokio::test]
async fn a_cut_breaks_h2_too() {
    let simulator = start().await;
    simulator.set_faults(json!([{"kind": "truncate"}])).unwrap();
    let stream = TcpStream::connect(simulator.addr()).await.unwrap();
    let (mut sender, conn) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(conn);
    let response =
        sender.send_request(request("GET", &simulator.url(), "/shipments?per=3", &[], "")).await.unwrap();
    assert!(timeout(PATIENCE, response.into_body().collect()).await.unwrap().is_err());
    driver.abort();
}
