//! The bodies that travel: JSON of Flexport's shape and size, with its absolute links.

use bytes::Bytes;
use std::fmt::Write as _;

/// What Flexport's links begin with, whatever host the answer came from.
pub(crate) const LINK_BASE: &str = "https://api.flexport.com";

/// How much is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// One shipment: about 4 KB.
    Shipment,
    /// A page of ten: about 28 KB.
    Page,
}

/// A body.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// Its bytes.
    pub(crate) bytes: Bytes,
    /// How many links a proxy of Flexport's has to rewrite.
    pub(crate) links: usize,
}

// === impl Size ===

impl Size {
    /// As an argument and in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Shipment => "4 KB",
            Self::Page => "28 KB",
        }
    }

    /// The reverse of [`Size::name`].
    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Shipment, Self::Page].into_iter().find(|size| size.name() == name)
    }

    fn target(self) -> usize {
        match self {
            Self::Shipment => 4 * 1024,
            Self::Page => 28 * 1024,
        }
    }
}

// === impl Sample ===

impl Sample {
    /// As many shipments as fill the size. Each has seven links, as real ones do.
    pub(crate) fn new(size: Size) -> Self {
        let (shipments, head, tail) = match size {
            Size::Shipment => (1, "", ""),
            Size::Page => (
                10,
                r#"{"_object":"/api/collections/paginated","prev":null,"next":"https://api.flexport.com/shipments?page=2&per=10","total_count":4711,"data":["#,
                "]}",
            ),
        };
        let mut body = format!(
            r#"{{"_object":"/api/response","self":"{LINK_BASE}/shipments","version":2,"data":{head}"#
        );
        let end = format!("{tail},\"error\":null}}");
        for n in 0..shipments {
            if n > 0 {
                body.push(',');
            }
            let room = (size.target() - end.len() - body.len()) / (shipments - n);
            push_shipment(&mut body, 4_000_000 + n, room);
        }
        body.push_str(&end);
        Self { links: body.matches(LINK_BASE).count(), bytes: Bytes::from(body) }
    }

    /// How long it is once its links point to `base`.
    pub(crate) fn len_with_links_to(&self, base: &str) -> usize {
        self.bytes.len() - self.links * LINK_BASE.len() + self.links * base.len()
    }
}

/// One shipment of about `room` bytes.
fn push_shipment(body: &mut String, id: usize, room: usize) {
    let start = body.len();
    let _ = write!(
        body,
        r#"{{"_object":"/shipment","id":{id},"name":"Spring range, part {id}","transportation_mode":"Ocean","freight_type":"port_to_door","incoterm":"FOB","calculated_weight":{{"_object":"/quantity/weight","value":1250,"unit":"kg"}},"status":"in_transit_to_arrival_port","priority":"standard","cargo_ready_date":"2026-02-28","created_at":"2026-02-09T20:24:07.794Z","updated_at":"2026-03-12T12:00:00.000+08:00","metadata":{{"order":["#
    );
    let mut rest = String::new();
    for (key, kind) in [
        ("legs", "/shipment_leg"),
        ("containers", "/ocean/shipment_container"),
        ("documents", "/document"),
        ("customs_entries", "/customs_entry"),
        ("commercial_invoices", "/commercial_invoice"),
    ] {
        let _ = write!(
            rest,
            r#","{key}":{{"_object":"/api/refs/collection","ref_type":"{kind}","link":"{LINK_BASE}{kind}s?f.shipment.id={id}"}}"#
        );
    }
    for (key, kind, path) in
        [("shipper", "/company_entity", "/network/company_entities"), ("booking", "/booking", "/bookings")]
    {
        let _ = write!(
            rest,
            r#","{key}":{{"_object":"/api/refs/object","ref_type":"{kind}","link":"{LINK_BASE}{path}/{id}","id":{id}}}"#
        );
    }
    rest.push('}');
    // The customer's own metadata fills the room, in whole values.
    let mut is_first = true;
    let mut order = 70_000;
    while body.len() - start + rest.len() + 24 < room {
        let _ = write!(body, "{}\"PO-{order}-{id}\"", if is_first { "" } else { "," });
        is_first = false;
        order += 7;
    }
    body.push_str("]}");
    body.push_str(&rest);
}
