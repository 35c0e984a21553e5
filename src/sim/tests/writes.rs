//! Writes, and what they leave behind.

use super::*;

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
    let applied = simulator.state()["applied"].clone();
    let applied: Vec<&Value> = applied.as_array().unwrap().iter().map(|write| &write["path"]).collect();
    // A calculation changes nothing.
    let changed = writes.iter().map(|(_, path, _)| path).filter(|path| *path != "/carbon_calculation");
    assert_eq!(applied, changed.collect::<Vec<_>>());
    let document = data(&simulator, "/documents?per=1").await["data"][0].clone();
    let got = get(&simulator, &format!("/documents/{}/download", document["id"].as_str().unwrap())).await;
    assert_eq!((&got.body[..], &got.headers["content-type"]), (&b"hi"[..], &"text/plain".parse().unwrap()));
    assert!(got.headers["content-disposition"].to_str().unwrap().contains("a.txt"));
    assert_eq!(data(&simulator, "/purchase_orders?f.name=PO-X").await["total_count"], 1);
    assert_eq!(data(&simulator, "/network/companies?f.ref=c").await["total_count"], 1);
}
