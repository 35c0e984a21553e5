//! Reads: envelope, pages, links, filters, orders, expansion.

use super::super::seed;
use super::super::world::{Kind, World, id_text};
use std::collections::{BTreeMap, BTreeSet};

use super::*;

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
    assert_eq!(data(&simulator, "/documents?f.archived_at.exists=true").await["total_count"], 0);
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
            let id = id_text(&row["id"]);
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

/// What a list can be ordered and filtered by: path, orders, filters.
type Parameters = (&'static str, Vec<&'static str>, Vec<(&'static str, &'static str)>);

fn parameters() -> Vec<Parameters> {
    let lines = include_str!("../../../tests/fixtures/parameters.txt").lines();
    let line = |line: &'static str| {
        let mut words = line.split(' ');
        let path = words.next().unwrap();
        let orders = words.next().unwrap().split(',').filter(|order| *order != "-").collect();
        (path, orders, words.map(|word| word.split_once('=').unwrap()).collect())
    };
    lines.filter(|line| !line.starts_with('#')).map(line).collect()
}

/// All rows of a list, page by page.
async fn rows(simulator: &Simulator, path: &str) -> Vec<Value> {
    let mut rows = Vec::new();
    for page in 1.. {
        let got = data(simulator, &format!("{path}&per=100&page={page}")).await;
        rows.extend(got["data"].as_array().unwrap().iter().cloned());
        if got["next"].is_null() {
            break;
        }
    }
    rows
}

#[tokio::test]
async fn every_documented_order_and_filter_is_understood() {
    let simulator = start_with(60).await;
    for (path, orders, filters) in parameters() {
        let all = data(&simulator, &format!("{path}?per=100")).await;
        assert!(all["total_count"].as_u64().unwrap() > 0, "{path} is empty");
        for order in orders {
            let up = rows(&simulator, &format!("{path}?sort={order}&direction=asc")).await;
            let mut down = rows(&simulator, &format!("{path}?sort={order}&direction=desc")).await;
            assert_eq!(up.len() as u64, all["total_count"].as_u64().unwrap(), "{path} {order}");
            down.reverse();
            assert!(up == down, "{path} {order}: down is not up the other way round");
            // Where the field is one of the objects themselves, its values rise: stamps and dates as text, too.
            let values: Vec<&Value> =
                up.iter().map(|row| &row[order]).filter(|value| !value.is_null()).collect();
            let numbers: Vec<u64> = values.iter().filter_map(|value| value.as_u64()).collect();
            let texts: Vec<&str> = values.iter().filter_map(|value| value.as_str()).collect();
            assert!(numbers.is_sorted() && texts.is_sorted(), "{path} {order}");
            assert_eq!(numbers.len() + texts.len(), values.len(), "{path} {order}");
        }
        for (name, value) in filters {
            let value = match value {
                "@" => "none-such",
                "#" => "1",
                "T" => "2026-06-01T00:00:00.000Z",
                "B" => "true",
                given => given,
            };
            let got = get(&simulator, &format!("{path}?f.{name}={value}&per=100")).await;
            assert_eq!(got.status, StatusCode::OK, "{path} f.{name}: {:?}", got.body);
            let count = got.json()["data"]["total_count"].as_u64();
            if value == "none-such" || value == "1" && name != "line_item_number" {
                assert_eq!(count, Some(0), "{path} f.{name}");
            }
            if let Some(field) = name.strip_suffix(".gt") {
                // What is later and what is not are all that there is.
                let of = async |filter: String| {
                    data(&simulator, &format!("{path}?f.{field}.{filter}&per=1")).await["total_count"]
                        .as_u64()
                        .unwrap()
                };
                let sum = count.unwrap() + of(format!("lte={value}")).await;
                assert_eq!(sum, of("exists=true".to_owned()).await, "{path} f.{name}");
            }
        }
    }
}

#[tokio::test]
async fn a_list_has_the_documented_filters_and_those_of_links_and_no_others() {
    // What no document lists, but links inside objects use.
    let of_links =
        [(Kind::BookingLineItem, "booking.id"), (Kind::BookingLineItem, "purchase_order_line_item.id")];
    let mut documented: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (path, _, filters) in parameters() {
        let known = documented.entry(path).or_default();
        for (name, _) in filters {
            let ops = [".gt", ".gte", ".lt", ".lte", ".exists", ".any"];
            let field = ops.iter().find_map(|op| name.strip_suffix(op)).unwrap_or(name);
            let any = ["metadata", "product_properties"].iter().find(|map| field.starts_with(*map));
            known.insert(any.map_or_else(|| field.to_owned(), |map| format!("{map}.*")));
        }
    }
    for (kind, name) in of_links {
        assert!(documented.get_mut(kind.path()).unwrap().insert(name.to_owned()));
    }
    let simulator = start().await;
    for kind in Kind::ALL.into_iter().filter(|kind| kind.is_listed()) {
        let known: BTreeSet<String> = kind.filters().iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(documented.remove(kind.path()).unwrap(), known, "{}", kind.path());
        for wrong in ["nonsense", "shipment.nonsense", "_object", "id.x"] {
            let got = get(&simulator, &format!("{}?f.{wrong}=1", kind.path())).await;
            assert_eq!(got.status, StatusCode::BAD_REQUEST, "{} f.{wrong}", kind.path());
        }
        // Links that objects give are understood.
        let row = data(&simulator, &format!("{}?per=1", kind.path())).await["data"][0].clone();
        for link in lists(&row) {
            let path = link.strip_prefix("https://api.flexport.com").unwrap();
            assert_eq!(get(&simulator, path).await.status, StatusCode::OK, "{path}");
        }
    }
    assert!(documented.is_empty(), "{documented:?}");
    let got = get(&simulator, "/events?f.created_at.gte=2026-01-01T00:00:00Z").await;
    let told = got.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(got.status == StatusCode::BAD_REQUEST && told.contains("type, occurred_at"), "{told}");
}

/// The links to lists that an object has.
fn lists(value: &Value) -> Vec<String> {
    match value {
        Value::Object(fields) if fields.get("_object") == Some(&json!("/api/refs/collection")) => {
            vec![fields["link"].as_str().unwrap().to_owned()]
        }
        Value::Object(fields) => fields.values().flat_map(lists).collect(),
        Value::Array(list) => list.iter().flat_map(lists).collect(),
        _ => Vec::new(),
    }
}

#[tokio::test]
async fn filters_that_look_elsewhere_find_what_belongs_together() {
    let simulator = start_with(120).await;
    let first = |path: &str| {
        let path = path.to_owned();
        let simulator = &simulator;
        async move { data(simulator, &path).await["data"][0].clone() }
    };
    let invoice = first("/commercial_invoices?per=1").await;
    let parties = invoice["involved_parties"].as_array().unwrap();
    let seller = parties.iter().find(|party| party["type"] == "seller").unwrap();
    let seller = seller["company_entity"]["id"].as_u64().unwrap();
    let found =
        data(&simulator, &format!("/commercial_invoices?f.involved_party_seller_id={seller}&per=100")).await;
    assert!(found["data"].as_array().unwrap().contains(&invoice));
    assert!(
        found["total_count"].as_u64()
            < data(&simulator, "/commercial_invoices").await["total_count"].as_u64()
    );

    let line = first("/purchase_order_line_items?per=1").await;
    let order = data(&simulator, &format!("/purchase_orders/{}", line["purchase_order"]["id"])).await;
    let (name, sku) = (order["name"].as_str().unwrap(), line["product"]["sku"].as_str().unwrap());
    let by_order = data(&simulator, &format!("/shipments?f.purchase_order={name}&per=100")).await;
    let by_sku = data(&simulator, &format!("/shipments?f.sku={sku}&per=100")).await;
    for row in by_order["data"].as_array().unwrap() {
        assert!(by_sku["data"].as_array().unwrap().contains(row));
        let orders = data(&simulator, &format!("/purchase_orders?f.shipment.id={}", row["id"])).await;
        assert_eq!(orders["data"][0]["name"], name);
    }
    let location = first("/network/locations?per=1").await["id"].as_str().unwrap().to_owned();
    let contact = first(&format!("/network/contacts?f.location.id={location}")).await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(first(&format!("/network/locations?f.contact.id={contact}")).await["id"], location);
    let client = data(&simulator, "/invoices?f.billed_directly_to_client=true").await;
    assert!(
        client["data"]
            .as_array()
            .unwrap()
            .iter()
            .all(|row| row["type"] == "Client" && row["shipments"] == json!([]))
    );
    assert!(client["total_count"].as_u64() > Some(0));
    let oak = data(&simulator, "/products?f.product_properties.color=oak&per=100").await;
    assert!(oak["total_count"].as_u64() > Some(0));
    for row in oak["data"].as_array().unwrap() {
        assert_eq!(row["product_properties"][0]["value"], "oak");
    }
    let lines = data(&simulator, "/booking_line_items?sort=created_at&direction=asc&per=100").await;
    assert!(lines["total_count"].as_u64() > Some(0));
    let mut created = Vec::new();
    for row in lines["data"].as_array().unwrap() {
        created.push(
            data(&simulator, &format!("/bookings/{}", row["booking"]["id"])).await["created_at"].clone(),
        );
    }
    assert!(created.is_sorted_by_key(|stamp| stamp.as_str().unwrap().to_owned()));
}

#[tokio::test]
async fn references_are_expanded_as_far_as_asked() {
    let simulator = start().await;
    let plain = data(&simulator, "/shipments?per=1&f.transportation_mode=ocean").await["data"][0].clone();
    let id = &plain["id"];
    let path = format!("/shipments/{id}?expand=booking,legs");
    let got = get(&simulator, &path).await.json();
    assert_eq!(got["self"], format!("https://api.flexport.com{path}"));
    let wide = &got["data"];
    assert!(plain.as_object().unwrap().keys().eq(wide.as_object().unwrap().keys()), "the order stays");
    assert_eq!(wide["booking"], data(&simulator, &format!("/bookings/{}", plain["booking"]["id"])).await);
    assert_eq!(wide["legs"]["_object"], "/api/collections/paginated");
    let legs = data(&simulator, &format!("/shipment_legs?f.shipment.id={id}")).await;
    assert_eq!((&wide["legs"]["data"], &wide["legs"]["total_count"]), (&legs["data"], &json!(3)));
    let deep =
        data(&simulator, &format!("/shipment_legs?f.shipment.id={id}&expand=shipment.booking&per=1")).await;
    assert_eq!(deep["data"][0]["shipment"]["booking"], wide["booking"]);
    let containers = data(&simulator, "/ocean/shipment_containers?per=1&expand=container_legs.leg").await;
    assert_eq!(containers["data"][0]["container_legs"]["data"][0]["leg"]["_object"], "/shipment_leg");
    let wrong = get(&simulator, &format!("/shipments/{id}?expand=nothing")).await;
    assert_eq!(wrong.status, StatusCode::BAD_REQUEST);
    assert!(wrong.json()["error"]["message"].as_str().unwrap().contains("nothing"));
}

#[test]
fn an_order_is_made_once_and_again_only_after_a_change() {
    let mut world = World::new(1, 300, "https://api.flexport.com");
    let query =
        super::super::query::Query::parse(Some("sort=updated_at&direction=asc&per=100&page=2")).unwrap();
    let before = world.select(Kind::Shipment, &query).unwrap();
    assert_eq!((before.total, before.items.len()), (300, 100));
    let stamps: Vec<&str> =
        before.items.iter().map(|item| item.value["updated_at"].as_str().unwrap()).collect();
    assert!(stamps.is_sorted());
    // The first of the second page becomes the last of all.
    let first = before.items[0].id.clone();
    let body = json!({"metadata": {}});
    world.patch(Kind::Shipment, &first, &body, "2030-01-01T00:00:00Z".parse().unwrap()).unwrap();
    let after = world.select(Kind::Shipment, &query).unwrap();
    assert_eq!(
        after.items[..99].iter().map(|item| &item.id).collect::<Vec<_>>(),
        before.items[1..].iter().map(|item| &item.id).collect::<Vec<_>>()
    );
}
