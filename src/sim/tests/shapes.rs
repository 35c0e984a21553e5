//! Bodies held to the recorded shapes: each object's fields, their order, types and whether they may be null
//! (`tests/fixtures/shapes.txt`).

use std::collections::BTreeMap;

use super::super::world::{Holds, Kind, NULLABLE};
use super::*;

/// Fields in their order: name and type.
type Shapes = BTreeMap<&'static str, Vec<(&'static str, &'static str)>>;

fn shapes() -> Shapes {
    let lines = include_str!("../../../tests/fixtures/shapes.txt").lines();
    lines
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let mut words = line.split(' ');
            let object = words.next().expect("a line begins with an object");
            let fields = words.map(|word| word.split_once(':').unwrap_or(("_object", "@")));
            (object, fields.collect())
        })
        .collect()
}

/// Holds an object to its shape, and all that is in it; each type that was met is counted.
fn check(
    shapes: &Shapes,
    object: &str,
    value: &Value,
    met: &mut BTreeMap<String, usize>,
) -> Result<(), String> {
    let shape = shapes.get(object).ok_or_else(|| format!("there is no shape {object}"))?;
    let Some(fields) = value.as_object() else {
        return Err(format!("{object}: is {value}"));
    };
    if !shape.iter().map(|(name, _)| *name).eq(fields.keys().map(String::as_str)) {
        return Err(format!("{object}: fields are {:?}", fields.keys().collect::<Vec<_>>()));
    }
    *met.entry(object.to_owned()).or_default() += 1;
    for (name, types) in shape {
        let value = &fields[*name];
        if *types == "@" {
            if value != object {
                return Err(format!("{object}: _object is {value}"));
            }
            continue;
        }
        let (types, may_be_null) = types.strip_suffix('?').map_or((*types, false), |types| (types, true));
        if value.is_null() && may_be_null {
            continue;
        }
        let mut why = String::new();
        let fits = types.split('|').any(|one| fits(shapes, one, value, met, &mut why));
        if !fits {
            return Err(format!("{object}.{name}: {value} is no {types}; {why}"));
        }
    }
    Ok(())
}

fn fits(
    shapes: &Shapes,
    one: &str,
    value: &Value,
    met: &mut BTreeMap<String, usize>,
    why: &mut String,
) -> bool {
    match one {
        "any" => true,
        "0" => value.is_null(),
        "s" => value.is_string(),
        "i" => value.is_i64() || value.is_u64(),
        "n" => value.is_number(),
        "b" => value.is_boolean(),
        "m" => value.is_object(),
        "[]" => value.as_array().is_some_and(Vec::is_empty),
        _ if one.starts_with('[') => {
            let may_be_empty = one.ends_with('*');
            let inner = one.trim_start_matches('[').trim_end_matches(['*', '+', ']']);
            value.as_array().is_some_and(|list| {
                (may_be_empty || !list.is_empty())
                    && list.iter().all(|value| inner.split(',').any(|one| fits(shapes, one, value, met, why)))
            })
        }
        _ => match check(shapes, one, value, met) {
            Ok(()) => true,
            Err(error) => {
                *why = error;
                false
            }
        },
    }
}

#[tokio::test]
async fn every_object_has_the_shape_of_the_real_one() {
    let simulator = start_with(120).await;
    let (shapes, mut met) = (shapes(), BTreeMap::new());
    for round in 0..3 {
        for kind in Kind::ALL.into_iter().filter(|kind| kind.is_listed()) {
            let mut page = 1;
            loop {
                let got = get(&simulator, &format!("{}?per=100&page={page}", kind.path())).await.json();
                check(&shapes, "/api/response", &got, &mut met).unwrap();
                check(&shapes, "/api/collections/paginated", &got["data"], &mut met).unwrap();
                for row in got["data"]["data"].as_array().unwrap() {
                    check(&shapes, kind.object(), row, &mut met)
                        .unwrap_or_else(|error| panic!("round {round}: {error}"));
                }
                if got["data"]["next"].is_null() {
                    break;
                }
                page += 1;
            }
        }
        // Half way, and when all has arrived.
        simulator.advance(Duration::from_secs(3600 * (24 * if round == 0 { 15 } else { 120 })));
    }
    // Those that only a write makes are looked at where they are made.
    let rare = [
        "/api/error",
        "/booking_amendment",
        "/carbon_calculation",
        "/commercial_invoice_line_item",
        "/company_entity/vat_number",
        "/ocean/railport",
        "/rail/shipment_leg",
        "/trucking/booking",
    ];
    for object in shapes.keys().filter(|object| !rare.contains(object)) {
        assert!(met.contains_key(*object), "no {object} was met: the test is blind to it");
    }
}

#[test]
fn what_writes_take_null_for_may_be_null() {
    let shapes = shapes();
    for (object, fields) in NULLABLE {
        let nullable =
            shapes[object].iter().filter_map(|(name, types)| Some((*name, types.strip_suffix('?')?)));
        let expected: Vec<(&str, Holds)> = nullable
            .map(|(name, types)| {
                let known = fields.iter().find(|(known, _)| *known == name).map(|(_, holds)| *holds);
                let holds = match types {
                    _ if known == Some(Holds::Other) => Holds::Other,
                    "s" => Holds::Text,
                    "b" => Holds::Flag,
                    "i" => Holds::Whole,
                    "/money" => Holds::Money,
                    "/address" => Holds::Address,
                    other => panic!("{object}.{name}: {other}"),
                };
                (name, holds)
            })
            .collect();
        assert_eq!(fields, expected, "{object}");
    }
}

#[tokio::test]
async fn a_field_keeps_its_type_and_is_null_only_where_it_may_be() {
    let simulator = start().await;
    let (shapes, mut met) = (shapes(), BTreeMap::new());
    let product = data(&simulator, "/products?per=1").await["data"][0]["id"].clone();
    let contact = data(&simulator, "/network/contacts?per=1").await["data"][0]["id"].clone();
    let (product, contact) =
        (format!("/products/{product}"), format!("/network/contacts/{}", contact.as_str().unwrap()));
    let line = |line: Value| json!({"invoice_number": "I-7", "line_items": [line]});
    let cargo = |cargo: Value| json!({"name": "B", "cargo": cargo});
    for (method, path, body, object) in [
        ("PATCH", &*product, json!({"description": null, "name": "Mug"}), "/product"),
        ("PATCH", &*contact, json!({"email": null, "phone_number": "1"}), "/network/contact"),
        (
            "POST",
            "/commercial_invoices",
            line(json!({
                "document_line_number": 3, "net_value": {"amount": "1.00"}, "container_number": "C",
                "manufacturer_address": {"city": "Ulm"}, "manufacturer_name": null, "product": {"id": 1},
            })),
            "/commercial_invoice",
        ),
        (
            "POST",
            "/bookings",
            cargo(json!({
                "marks_and_numbers": "M", "contains_non_li_ion_battery": null, "weight": {"value": 2.5},
                "shipping_units": [{"name": null, "atomic_count": 4}],
            })),
            "/booking",
        ),
    ] {
        let got = post(&simulator, method, path, &body).await;
        assert_eq!(got.status, StatusCode::OK, "{path} {body}: {:?}", got.body);
        check(&shapes, object, &got.json()["data"], &mut met).unwrap();
    }
    for (method, path, body, field) in [
        ("PATCH", &*product, json!({"name": null}), "name"),
        ("PATCH", &*product, json!({"description": {"no": "string"}}), "description"),
        ("PATCH", &*product, json!({"description": ["x"]}), "description"),
        ("PATCH", &*product, json!({"classifications": [{"codes": [1]}]}), "classifications[0].codes"),
        ("PATCH", &*contact, json!({"email": 3}), "email"),
        ("PATCH", &*contact, json!({"name": null}), "name"),
        (
            "POST",
            "/commercial_invoices",
            line(json!({"container_number": {}})),
            "line_items[0].container_number",
        ),
        (
            "POST",
            "/commercial_invoices",
            line(json!({"document_line_number": "3"})),
            "line_items[0].document_line_number",
        ),
        ("POST", "/commercial_invoices", line(json!({"net_value": 3})), "line_items[0].net_value"),
        (
            "POST",
            "/commercial_invoices",
            line(json!({"value": {"amount": null}})),
            "line_items[0].value.amount",
        ),
        ("POST", "/bookings", cargo(json!({"weight": null})), "cargo.weight"),
        ("POST", "/bookings", cargo(json!({"contains_hazmat": null})), "cargo.contains_hazmat"),
        (
            "POST",
            "/bookings",
            cargo(json!({"shipping_units": [{"count": 1.5}]})),
            "cargo.shipping_units[0].count",
        ),
        (
            "POST",
            "/bookings",
            json!({"name": "B", "ocean_booking": {"product_descriptions": [{"hs_code": 3}]}}),
            "ocean_booking.product_descriptions[0].hs_code",
        ),
    ] {
        let got = post(&simulator, method, path, &body).await;
        assert_eq!(got.status, StatusCode::BAD_REQUEST, "{path} {body}: {:?}", got.body);
        let told = got.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(told.starts_with(field), "{path} {body}: {told}");
    }
}

#[tokio::test]
async fn what_writes_make_has_the_shape_of_the_real_one() {
    let simulator = start().await;
    let (shapes, mut met) = (shapes(), BTreeMap::new());
    let company = data(&simulator, "/network/companies?per=1").await["data"][0]["id"].clone();
    let contact = data(&simulator, "/network/contacts?per=1").await["data"][0]["id"].clone();
    let booking = data(&simulator, "/bookings?per=1").await["data"][0]["id"].clone();
    let order_line = data(&simulator, "/purchase_order_line_items?per=1").await["data"][0]["id"].clone();
    let shipment = data(&simulator, "/shipments?per=1").await["data"][0]["id"].clone();
    let product = data(&simulator, "/products?per=1").await["data"][0].clone();
    let address = json!({"street_address": "1 Dock St", "city": "Oakland", "state": "CA", "country_code": "US", "zip": "94607"});
    let line = json!({
        "product_sku": product["sku"],
        "quantity": {"value": 12, "unit": "pcs"},
        "value": {"amount": "120.00", "currency_code": "USD"},
        "price_per_unit": {"amount": "10.00", "currency_code": "USD"},
        "gross_weight": {"value": 3.5, "unit": "kg"},
    });
    let goods = json!([{"description": "Watches", "hs_code": "9101.00"}]);
    let writes: Vec<(&str, String, &str, Value)> = vec![
        ("POST", "/bookings".into(), "/booking", json!({"name": "A"})),
        (
            "POST",
            "/bookings".into(),
            "/booking",
            json!({"name": "B", "air_booking": {"incoterm": "EXW", "origin_port_iata_code": "HKG", "product_descriptions": goods}, "destination_address_ref": "x"}),
        ),
        (
            "POST",
            "/bookings".into(),
            "/booking",
            json!({
                "name": "C",
                "shipper_entity_ref": "nobody-known",
                "consignee_entity_ref": "self",
                "trucking_booking": {"payment_terms": "collect"},
                "ocean_booking": {
                    "is_lcl": false,
                    "container_counts": {"twenty_ft": 2, "forty_five_ft_hc": 1},
                    "incoterm": "FOB",
                    "product_descriptions": goods,
                    "wants_pickup_service": false,
                    "origin_port_loc_code": "CNSZP",
                    "destination_port_us_cbp_port_code": "2704",
                },
                "cargo": {
                    "weight": {"value": 23.5, "unit": "kg"},
                    "shipping_units": [{"name": "Box", "count": 3, "unit_type": "carton"}],
                    "lithium_batteries_packing_types": ["packed_loose"],
                },
                "metadata": {"k": ["v"]},
            }),
        ),
        (
            "POST",
            "/booking_amendments".into(),
            "/booking_amendment",
            json!({
                "booking_id": booking,
                "new_name": "D",
                "new_container_counts": {"forty_ft": 2},
                "new_wants_pickup_service": false,
                "new_origin_address_ref": "warehouse",
                "new_origin_port_loc_code": "CNNGB",
                "new_product_descriptions": goods,
                "new_cargo": {"weight": {"value": 7, "unit": "kg"}},
                "new_metadata": {"k": ["w"]},
            }),
        ),
        (
            "POST",
            "/booking_line_items".into(),
            "/purchase_orders/booking_line_item",
            json!({"booking_id": booking, "purchase_order_line_item_id": order_line, "units": 4}),
        ),
        (
            "POST",
            "/documents".into(),
            "/document",
            json!({"document": "aGk=", "file_name": "a.txt", "shipment_id": shipment}),
        ),
        (
            "POST",
            "/products".into(),
            "/product",
            json!({
                "name": "Mug", "sku": "mug", "product_category": "Kitchen", "country_of_origin": "China",
                "product_properties": [{"type": "color", "value": "red"}],
                "classifications": [{"codes": ["6912.00"], "region": "US"}],
                "suppliers": [{"ref": "x", "country_of_origin": "China"}],
            }),
        ),
        (
            "PATCH",
            format!("/products/{}", product["id"]),
            "/product",
            json!({"description": "better", "product_properties": [{"type": "size", "value": "L"}]}),
        ),
        (
            "POST",
            "/commercial_invoices".into(),
            "/commercial_invoice",
            json!({"invoice_number": "I-1", "shipment_id": shipment, "currency_code": "EUR", "line_items": [line]}),
        ),
        (
            "PATCH",
            "/commercial_invoices".into(),
            "/commercial_invoice",
            json!({"invoice_number": "I-1", "is_related_parties": true, "line_items": [line, line]}),
        ),
        ("POST", "/network/companies".into(), "/network/company", json!({"name": "C", "ref": "c"})),
        (
            "PATCH",
            format!("/network/companies/{}", company.as_str().unwrap()),
            "/network/company",
            json!({"name": "D"}),
        ),
        (
            "POST",
            "/network/company_entities".into(),
            "/company_entity",
            json!({"name": "E", "company_id": company, "mailing_address": address, "vat_numbers": [{"country_code": "DE", "number": "1"}]}),
        ),
        (
            "POST",
            "/network/contacts".into(),
            "/network/contact",
            json!({"name": "P", "email": "p@x.example", "phone_number": "1", "company_id": company}),
        ),
        (
            "PATCH",
            format!("/network/contacts/{}", contact.as_str().unwrap()),
            "/network/contact",
            json!({"phone_number": "2"}),
        ),
        (
            "POST",
            "/network/locations".into(),
            "/network/location",
            json!({"name": "L", "company_id": company, "address": address, "contact_ids": [contact], "ref": "l", "metadata": {"a": ["b"]}}),
        ),
        (
            "POST",
            "/purchase_orders".into(),
            "/purchase_order",
            json!({"name": "PO-X", "memo": "soon", "line_items": [{"product_sku": product["sku"], "units": 5}]}),
        ),
        ("PATCH", format!("/shipments/{shipment}"), "/shipment", json!({"metadata": {"k": ["v"]}})),
        ("POST", "/carbon_calculation".into(), "/carbon_calculation", json!({"transportation_mode": "air"})),
    ];
    for (method, path, object, body) in &writes {
        let got = post(&simulator, method, path, body).await;
        assert_eq!(got.status, StatusCode::OK, "{method} {path}: {:?}", got.body);
        let made = got.json();
        check(&shapes, "/api/response", &made, &mut met).unwrap();
        check(&shapes, object, &made["data"], &mut met)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        if *object == "/booking" {
            let shipment = data(&simulator, &format!("/shipments/{}", made["data"]["shipment"]["id"])).await;
            check(&shapes, "/shipment", &shipment, &mut met).unwrap();
        }
        // What is of the wrong type is refused and named, whichever field it is.
        let field = body.as_object().unwrap().iter().find(|(_, value)| value.is_string());
        if let Some((field, _)) = field.filter(|_| *method == "POST") {
            let mut wrong = body.clone();
            wrong[field] = json!({"no": "string"});
            let got = post(&simulator, method, path, &wrong).await;
            assert_eq!(got.status, StatusCode::BAD_REQUEST, "{path} {field}: {:?}", got.body);
            check(&shapes, "/api/error", &got.json()["error"], &mut met).unwrap();
            assert!(got.json()["error"]["message"].as_str().unwrap().contains(field.as_str()), "{path}");
        }
    }
    for object in ["/trucking/booking", "/company_entity/vat_number", "/commercial_invoice_line_item"] {
        assert!(met.contains_key(object), "no {object}");
    }
    // Confirmed bookings get legs and containers, amended ones what was asked for.
    simulator.advance(Duration::from_secs(3600 * (24 * 90)));
    for kind in
        [Kind::Shipment, Kind::ShipmentLeg, Kind::Container, Kind::ContainerLeg, Kind::Booking, Kind::Event]
    {
        for row in data(&simulator, &format!("{}?per=100", kind.path())).await["data"].as_array().unwrap() {
            check(&shapes, kind.object(), row, &mut met).unwrap();
        }
    }
}
