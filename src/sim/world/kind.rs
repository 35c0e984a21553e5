//! Pure. The kinds of objects: where they live, what they are called, what may be done with them.

/// The kinds of objects, each with a collection of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sim) enum Kind {
    Shipment,
    ShipmentLeg,
    Container,
    ContainerLeg,
    Booking,
    BookingLineItem,
    BookingAmendment,
    Document,
    CommercialInvoice,
    CustomsEntry,
    Invoice,
    Product,
    PurchaseOrder,
    PurchaseOrderLineItem,
    Port,
    Company,
    CompanyEntity,
    Contact,
    Location,
    Event,
}

// === impl Kind ===

impl Kind {
    pub(in crate::sim) const ALL: [Self; 20] = [
        Self::Shipment,
        Self::ShipmentLeg,
        Self::Container,
        Self::ContainerLeg,
        Self::Booking,
        Self::BookingLineItem,
        Self::BookingAmendment,
        Self::Document,
        Self::CommercialInvoice,
        Self::CustomsEntry,
        Self::Invoice,
        Self::Product,
        Self::PurchaseOrder,
        Self::PurchaseOrderLineItem,
        Self::Port,
        Self::Company,
        Self::CompanyEntity,
        Self::Contact,
        Self::Location,
        Self::Event,
    ];

    /// The collection's path.
    pub(in crate::sim) fn path(self) -> &'static str {
        match self {
            Self::Shipment => "/shipments",
            Self::ShipmentLeg => "/shipment_legs",
            Self::Container => "/ocean/shipment_containers",
            Self::ContainerLeg => "/ocean/shipment_container_legs",
            Self::Booking => "/bookings",
            Self::BookingLineItem => "/booking_line_items",
            Self::BookingAmendment => "/booking_amendments",
            Self::Document => "/documents",
            Self::CommercialInvoice => "/commercial_invoices",
            Self::CustomsEntry => "/customs_entries",
            Self::Invoice => "/invoices",
            Self::Product => "/products",
            Self::PurchaseOrder => "/purchase_orders",
            Self::PurchaseOrderLineItem => "/purchase_order_line_items",
            Self::Port => "/ports",
            Self::Company => "/network/companies",
            Self::CompanyEntity => "/network/company_entities",
            Self::Contact => "/network/contacts",
            Self::Location => "/network/locations",
            Self::Event => "/events",
        }
    }

    /// The `_object` of its objects.
    pub(in crate::sim) fn object(self) -> &'static str {
        match self {
            Self::Shipment => "/shipment",
            Self::ShipmentLeg => "/shipment_leg",
            Self::Container => "/ocean/shipment_container",
            Self::ContainerLeg => "/ocean/shipment_container_leg",
            Self::Booking => "/booking",
            Self::BookingLineItem => "/purchase_orders/booking_line_item",
            Self::BookingAmendment => "/booking_amendment",
            Self::Document => "/document",
            Self::CommercialInvoice => "/commercial_invoice",
            Self::CustomsEntry => "/customs_entry",
            Self::Invoice => "/invoice",
            Self::Product => "/product",
            Self::PurchaseOrder => "/purchase_order",
            Self::PurchaseOrderLineItem => "/purchase_orders/line_item",
            Self::Port => "/place",
            Self::Company => "/network/company",
            Self::CompanyEntity => "/company_entity",
            Self::Contact => "/network/contact",
            Self::Location => "/network/location",
            Self::Event => "/event",
        }
    }

    pub(in crate::sim) fn of_object(object: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.object() == object)
    }

    /// Whether `GET` answers for its collection.
    pub(in crate::sim) fn is_listed(self) -> bool {
        self != Self::BookingAmendment
    }

    /// Whether `GET` answers for one of its objects.
    pub(in crate::sim) fn is_readable(self) -> bool {
        !matches!(self, Self::BookingAmendment | Self::Port)
    }

    pub(in crate::sim) fn is_created(self) -> bool {
        matches!(
            self,
            Self::Booking
                | Self::BookingLineItem
                | Self::BookingAmendment
                | Self::Document
                | Self::CommercialInvoice
                | Self::Product
                | Self::PurchaseOrder
        ) || self.is_network()
    }

    pub(in crate::sim) fn is_patched(self) -> bool {
        matches!(self, Self::Shipment | Self::Product) || self.is_network()
    }

    pub(in crate::sim) fn is_network(self) -> bool {
        matches!(self, Self::Company | Self::CompanyEntity | Self::Contact | Self::Location)
    }

    /// The fields by which its objects refer to others with integer ids, for which an index is kept.
    pub(in crate::sim) fn parents(self) -> &'static [&'static str] {
        match self {
            Self::ShipmentLeg
            | Self::Container
            | Self::Booking
            | Self::Document
            | Self::CommercialInvoice
            | Self::CustomsEntry => &["shipment"],
            Self::Invoice => &["shipments"],
            Self::ContainerLeg => &["shipment_container", "leg"],
            Self::BookingLineItem => &["booking", "purchase_order_line_item"],
            Self::PurchaseOrderLineItem => &["purchase_order"],
            _ => &[],
        }
    }

    /// What its list can be filtered by: what is documented, and what the objects' own links to lists use. A part `*`
    /// stands for any name.
    pub(in crate::sim) fn filters(self) -> &'static [&'static str] {
        match self {
            Self::Shipment => &[
                "transportation_mode",
                "status",
                "statuses",
                "container_number",
                "purchase_order",
                "sku",
                "updated_at",
                "master_bill_number",
                "house_bill_number",
                "consignee_external_ref",
                "metadata.*",
                "wants_freight_management_bco",
                "wants_flexport_freight",
                "wants_import_customs_service",
                "wants_export_customs_service",
            ],
            Self::ShipmentLeg => &["shipment.id", "transportation_mode"],
            Self::Container => &["shipment.id", "container_number", "metadata.*"],
            Self::ContainerLeg => &["leg.id", "shipment_container.id", "shipment_container.container_number"],
            Self::Booking => &[
                "status",
                "shipment.id",
                "consignee_entity_ref",
                "shipper_entity_ref",
                "cargo_ready_date",
                "created_at",
                "metadata.*",
            ],
            Self::BookingLineItem => &["purchase_order.id", "booking.id", "purchase_order_line_item.id"],
            Self::BookingAmendment => &[],
            Self::Document => &["shipment.id", "document_type", "archived_at", "uploaded_at"],
            Self::CommercialInvoice => {
                &["shipment.id", "invoice_number", "involved_party_seller_id", "involved_party_seller_ref"]
            }
            Self::CustomsEntry => &["shipment.id"],
            Self::Invoice => &[
                "status",
                "shipment.id",
                "billed_directly_to_client",
                "entity.id",
                "entity.ref",
                "name",
                "issued_at",
                "last_updated_at",
                "client_id",
                "shipment_id",
            ],
            Self::Product => &["sku", "archived_at", "product_properties.*"],
            Self::PurchaseOrder => {
                &["archived_at", "status", "buyer_ref", "seller_ref", "role", "shipment.id", "name"]
            }
            Self::PurchaseOrderLineItem => &["purchase_order.id", "line_item_number", "item_key"],
            Self::Port => &["port_type", "unlocode"],
            Self::Company => &["ref", "metadata.*"],
            Self::CompanyEntity => &["ref", "company_id", "company_ref"],
            Self::Contact => &["company_ref", "company.id", "location.id"],
            Self::Location => &["ref", "company_ref", "company.id", "contact.id", "metadata.*"],
            Self::Event => &["type", "occurred_at", "data.shipment.id", "data.resource._object"],
        }
    }

    /// Whether its list can be filtered by a path.
    pub(in crate::sim) fn has_filter(self, path: &[String]) -> bool {
        self.filters().iter().any(|known| {
            let mut parts = known.split('.');
            let is_same =
                path.iter().all(|part| parts.next().is_some_and(|known| known == "*" || known == part));
            is_same && parts.next().is_none()
        })
    }

    /// The paths inside an object that a documented filter name stands for.
    pub(in crate::sim) fn filter_paths(self, field: &str) -> Option<&'static [&'static [&'static str]]> {
        Some(match (self, field) {
            (Self::Shipment, "statuses") => &[&["status"]],
            (Self::Shipment, "house_bill_number") => {
                &[&["ocean_shipment", "house_bill_number"], &["air_shipment", "house_airway_bill"]]
            }
            (Self::Shipment, "master_bill_number") => {
                &[&["ocean_shipment", "master_bill_number"], &["air_shipment", "master_airway_bill"]]
            }
            (Self::Shipment, "consignee_external_ref") => &[&["consignees", "ref"]],
            (Self::Shipment, "purchase_order") => &[&["metadata", "purchase_order"]],
            (Self::Shipment, "wants_export_customs_service") => {
                &[&["booking", "wants_export_customs_service"]]
            }
            (Self::Booking, "consignee_entity_ref") => &[&["consignee_entity", "ref"]],
            (Self::Booking, "shipper_entity_ref") => &[&["shipper_entity", "ref"]],
            (Self::Document, "uploaded_at") => &[&["file_metadata", "uploaded_at"]],
            (Self::Invoice, "shipment_id") => &[&["shipments", "id"]],
            (Self::Invoice, "shipment") => &[&["shipments"]],
            (Self::Invoice, "entity") => &[&["recipient"]],
            (Self::Port, "unlocode") => &[&["address", "unlocode"]],
            (Self::PurchaseOrder, "buyer_ref") => &[&["buyer", "ref"]],
            (Self::PurchaseOrder, "seller_ref") => &[&["seller", "ref"]],
            (Self::BookingLineItem, "purchase_order") => &[&["purchase_order_line_item", "purchase_order"]],
            (Self::Contact | Self::Location, "company_ref") => &[&["company", "ref"]],
            _ => return None,
        })
    }

    /// Where the value of a documented order lies that is no field of the objects themselves.
    pub(in crate::sim) fn sort_path(self, field: &str) -> Option<&'static [&'static str]> {
        Some(match (self, field) {
            (Self::BookingLineItem, "cargo_ready_date") => &["booking", "cargo_ready_date"],
            (Self::BookingLineItem, "created_at") => &["booking", "created_at"],
            (Self::PurchaseOrderLineItem, "cargo_ready_date") => &["purchase_order", "cargo_ready_date"],
            (Self::PurchaseOrderLineItem, "created_at") => &["purchase_order", "created_at"],
            _ => return None,
        })
    }
}
