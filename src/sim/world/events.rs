//! Events: what happened to a shipment, as the account's webhooks and `GET /events` tell it.
//!
//! An event carries its resource and its whole shipment as they were when it happened. It is kept as the bytes that
//! are delivered; only what filters and orders look at is kept as a value, too.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::seed;
use super::{Item, Kind, World, id_text};

/// The id of the first event.
const FIRST_ID: u64 = 354_001;
/// The event version that the bodies carry.
const VERSION: u64 = 2;

/// What an event says.
#[derive(Debug, Clone, Copy)]
pub(in crate::sim) struct Happening<'a> {
    /// Such as `/shipment_leg#departed`; the part before `#` is the resource's `_object`.
    pub(in crate::sim) name: &'a str,
    pub(in crate::sim) kind: Kind,
    pub(in crate::sim) id: &'a str,
    pub(in crate::sim) shipment: u64,
    /// When it happened, as far as the business is concerned.
    pub(in crate::sim) occurred: Timestamp,
    /// When it was told.
    pub(in crate::sim) created: Timestamp,
}

impl World {
    /// Makes an event and lays it out for delivery; none when its resource does not exist.
    pub(in crate::sim) fn emit(&mut self, what: Happening<'_>) -> Option<Arc<Item>> {
        let shipment = Arc::clone(self.get(Kind::Shipment, &what.shipment.to_string())?);
        let resource = Arc::clone(self.get(what.kind, what.id)?);
        let id = self.next_id(Kind::Event).max(FIRST_ID);
        let location = match what.kind {
            Kind::ShipmentLeg if what.name.ends_with("#arrived") => resource.value["destination"].clone(),
            Kind::ShipmentLeg => resource.value["origin"].clone(),
            _ => Value::Null,
        };
        let containers = self.involved(what, &resource);
        let head = json!({
            "_object": Kind::Event.object(),
            "id": id,
            "version": VERSION,
            "created_at": seed::stamp(what.created),
            "occurred_at": seed::stamp(what.occurred),
            "type": what.name,
        });
        let mut body = head.to_string().into_bytes();
        body.pop();
        body.extend_from_slice(br#","data":{"_object":"/shipment_event_data","resource":"#);
        body.extend_from_slice(resource.json());
        body.extend_from_slice(br#","shipment":"#);
        body.extend_from_slice(shipment.json());
        body.extend_from_slice(br#","location":"#);
        body.extend_from_slice(location.to_string().as_bytes());
        body.extend_from_slice(br#","containers":["#);
        for (index, container) in containers.iter().enumerate() {
            if index > 0 {
                body.push(b',');
            }
            body.extend_from_slice(container.json());
        }
        body.extend_from_slice(b"]}}");
        let mut value = head;
        value["data"] = json!({
            "resource": {"_object": what.kind.object(), "id": resource.value["id"]},
            "shipment": {"id": what.shipment},
        });
        self.changes += 1;
        let collection = &mut self.collections[Kind::Event as usize];
        collection.last_id = id;
        let item = collection.add(Arc::new(Item::written(value, body.into())));
        self.outbox.push(Arc::clone(&item));
        Some(item)
    }

    /// The containers that an event concerns; none for one of the whole shipment.
    fn involved(&self, what: Happening<'_>, resource: &Item) -> Vec<Arc<Item>> {
        match what.kind {
            Kind::Container => self.get(Kind::Container, what.id).cloned().into_iter().collect(),
            Kind::ContainerLeg => {
                let id = id_text(&resource.value["shipment_container"]["id"]);
                self.get(Kind::Container, &id).cloned().into_iter().collect()
            }
            Kind::ShipmentLeg => self
                .children(Kind::Container, "shipment", what.shipment)
                .iter()
                .map(|place| Arc::clone(self.at(Kind::Container, *place)))
                .collect(),
            _ => Vec::new(),
        }
    }
}
