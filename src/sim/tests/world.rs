//! The clock, and what happens as it goes on.

use super::*;

const DAY: Duration = Duration::from_secs(3600 * 24);

async fn events(simulator: &Simulator, query: &str) -> Vec<Value> {
    let mut list = Vec::new();
    for page in 1.. {
        let got = data(simulator, &format!("/events?{query}&direction=asc&per=100&page={page}")).await;
        list.extend(got["data"].as_array().unwrap().iter().cloned());
        if got["next"].is_null() {
            break;
        }
    }
    list
}

#[tokio::test]
async fn a_world_whose_clock_nobody_touches_stands_still() {
    let simulator = start_with(120).await;
    let before = get(&simulator, "/shipments?per=100").await.body;
    simulator.advance(Duration::from_secs(3600 * 5));
    assert_eq!(get(&simulator, "/shipments?per=100").await.body, before);
    simulator.advance(2 * DAY);
    assert_ne!(get(&simulator, "/shipments?per=100").await.body, before);
}

#[tokio::test]
async fn a_booking_becomes_a_shipment_that_arrives() {
    let simulator = start().await;
    let body = json!({"name": "Mugs", "ocean_booking": {"container_counts": {"forty_ft": 2}}});
    let booking = post(&simulator, "POST", "/bookings", &body).await.json()["data"].clone();
    let shipment = booking["shipment"]["id"].clone();
    let (booking, shipment_path) = (format!("/bookings/{}", booking["id"]), format!("/shipments/{shipment}"));
    assert_eq!(data(&simulator, &booking).await["status"], "submitted");
    assert_eq!(data(&simulator, &format!("/shipment_legs?f.shipment.id={shipment}")).await["total_count"], 0);
    let mut seen = Vec::new();
    let mut stamp = String::new();
    for _ in 0..120 {
        simulator.advance(DAY);
        let now = data(&simulator, &shipment_path).await;
        let status = now["status"].as_str().unwrap().to_owned();
        if seen.last() != Some(&status) {
            let updated = now["updated_at"].as_str().unwrap().to_owned();
            assert!(updated > stamp, "each milestone moves the stamp");
            stamp = updated;
            seen.push(status);
        }
    }
    let all = [
        "seller_location",
        "in_transit_to_departure_port",
        "departure_port",
        "in_transit_to_arrival_port",
        "arrival_port",
        "in_transit_to_final_destination",
        "final_destination",
    ];
    assert_eq!(seen, all);
    assert_eq!(data(&simulator, &booking).await["status"], "booked");
    let done = data(&simulator, &shipment_path).await;
    let dates = ["picked_up_in_full", "departure", "arrival", "delivered_in_full"].map(|name| {
        assert_eq!(done[format!("{name}_date")], done[format!("actual_{name}_date")]);
        done[format!("actual_{name}_date")].as_str().unwrap().parse::<jiff::Timestamp>().unwrap()
    });
    assert!(dates.is_sorted(), "{dates:?}");
    let containers = data(&simulator, &format!("/ocean/shipment_containers?f.shipment.id={shipment}")).await;
    assert_eq!(containers["total_count"], 2);
    assert!(containers["data"].as_array().unwrap().iter().all(|one| one["empty_returned_date"].is_string()));
    let entries = data(&simulator, &format!("/customs_entries?f.shipment.id={shipment}")).await;
    assert_eq!(entries["data"][0]["release_status"], "cleared");
    let invoices = data(&simulator, &format!("/invoices?f.shipment.id={shipment}&f.status=paid")).await;
    assert_eq!(invoices["total_count"], 1);

    let told = events(&simulator, &format!("f.data.shipment.id={shipment}")).await;
    let names: Vec<&str> = told.iter().map(|event| event["type"].as_str().unwrap()).collect();
    for name in [
        "/shipment#created",
        "/shipment#booking_confirmed",
        "/shipment_leg#departed",
        "/ocean/shipment_container_leg#loaded_on_board",
        "/shipment_leg#arrived",
        "/invoice#invoice_shared",
        "/shipment#customs_entry_release_status_released",
        "/shipment#delivered_in_full",
        "/ocean/shipment_container#empty_returned",
    ] {
        assert!(names.contains(&name), "{name} is not among {names:?}");
    }
    let instant =
        |event: &Value, field: &str| event[field].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert!(told.windows(2).all(|pair| pair[0]["id"].as_u64() < pair[1]["id"].as_u64()));
    assert!(told.windows(2).all(|pair| instant(&pair[0], "created_at") <= instant(&pair[1], "created_at")));
    for event in &told {
        let lag = instant(event, "created_at").duration_since(instant(event, "occurred_at"));
        assert!((0..24).contains(&lag.as_hours()) && !lag.is_negative(), "{lag}");
        assert_eq!(event["data"]["shipment"]["id"], shipment);
        assert_eq!(&data(&simulator, &format!("/events/{}", event["id"])).await, event);
    }
    // The last one shows the shipment as it now is.
    assert_eq!(told.last().unwrap()["data"]["shipment"], done);
    let invoices =
        events(&simulator, &format!("f.data.resource._object=/invoice&f.data.shipment.id={shipment}")).await;
    assert_eq!(invoices.len(), 1);
    let since = told[3]["occurred_at"].as_str().unwrap();
    let later = events(&simulator, &format!("f.data.shipment.id={shipment}&f.occurred_at.gte={since}")).await;
    assert!(later.len() < told.len() && later.contains(&told[3]));
}

#[tokio::test]
async fn an_amendment_changes_its_booking_after_a_day() {
    let simulator = start().await;
    let id = data(&simulator, "/bookings?per=1").await["data"][0]["id"].clone();
    let goods = json!([{"description": "Watches", "hs_code": "9101.00"}]);
    let body = json!({
        "booking_id": id, "new_name": "Other", "new_metadata": {"k": ["v"]}, "new_product_descriptions": goods,
    });
    let made = post(&simulator, "POST", "/booking_amendments", &body).await.json();
    assert_eq!(made["data"]["is_pending"], true);
    assert_ne!(data(&simulator, &format!("/bookings/{id}")).await["name"], "Other");
    simulator.advance(DAY + Duration::from_secs(1));
    let booking = data(&simulator, &format!("/bookings/{id}")).await;
    assert_eq!((&booking["name"], &booking["metadata"]), (&json!("Other"), &json!({"k": ["v"]})));
    let part = if booking["air_booking"].is_null() { "ocean_booking" } else { "air_booking" };
    assert_eq!(booking[part]["product_descriptions"], made["data"]["new_product_descriptions"]);
    assert_eq!(booking[part]["product_descriptions"][0]["description"], "Watches");
    // What an amendment does not name stays as it is.
    let body = json!({"booking_id": id, "new_name": "Third"});
    assert_eq!(post(&simulator, "POST", "/booking_amendments", &body).await.status, StatusCode::OK);
    simulator.advance(DAY + Duration::from_secs(1));
    let third = data(&simulator, &format!("/bookings/{id}")).await;
    assert_eq!((&third["name"], &third[part]), (&json!("Third"), &booking[part]));
}

#[tokio::test]
async fn the_same_seed_and_the_same_jumps_make_the_same_world() {
    let world = || async {
        let simulator = start_with(40).await;
        let clock = json!({"now": "2027-01-01T00:00:00Z", "rate": 0});
        assert_eq!(control(&simulator, "PUT", "/_sim/clock", &clock).await.status, StatusCode::OK);
        simulator.set_clock(json!({"advance": "30d"})).unwrap();
        simulator.set_clock(json!({"advance": "30d"})).unwrap();
        let events = get(&simulator, "/events?per=100").await.body;
        (get(&simulator, "/shipments?per=100").await.body, events, simulator)
    };
    let ((first, events, one), (second, others, other)) = (world().await, world().await);
    let real = |simulator: &Simulator| format!("{:.3}", simulator.now());
    assert_eq!([real(&one), real(&other)], ["2027-03-02T00:00:00.000Z"; 2]);
    // What happened when the clock was first set depends on real time; statuses and types do not.
    let names = |body: &Bytes| {
        let page: Value = serde_json::from_slice(body).unwrap();
        let rows = page["data"]["data"].as_array().unwrap().clone();
        rows.into_iter()
            .map(|row| (row["id"].clone(), row["status"].clone(), row["type"].clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&first), names(&second));
    assert_eq!(names(&events), names(&others));
}

#[tokio::test]
async fn the_clock_can_run_fast_stand_still_and_follow_real_time_again() {
    let simulator = start().await;
    let clock = control(&simulator, "GET", "/_sim/clock", &json!(null)).await.json();
    assert_eq!((&clock["rate"], &clock["is_real"]), (&json!(1.0), &json!(true)));
    let before = simulator.now();
    simulator.set_clock(json!({"rate": 864_000})).unwrap();
    // By itself, without a call that moves it.
    timeout(PATIENCE, async {
        while simulator.now().duration_since(before).as_hours() < 24 * 3
            || data(&simulator, "/shipments?sort=updated_at&per=1").await["data"][0]["updated_at"].as_str()
                < Some(before.to_string().as_str())
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the world moves with its clock");
    let stopped = control(&simulator, "PUT", "/_sim/clock", &json!({"rate": 0})).await.json();
    assert_eq!(control(&simulator, "GET", "/_sim/clock", &json!(null)).await.json()["now"], stopped["now"]);
    let real = control(&simulator, "DELETE", "/_sim/clock", &json!(null)).await.json();
    assert_eq!(real["is_real"], true);
}
