//! Pure. How lists are selected: which objects pass the filters, in which order, and which page of them.
//!
//! A page costs what it shows: orders and what filters select are kept until something changes, so that the pages of
//! a list are cut from one selection. With a filter by a referring field only the objects that refer are looked at.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::super::lock;
use super::super::query::{Filter, Needle, Op, Query, SortKey};
use super::{Item, Kind, Selection, World, id_text};

/// Selections that are kept.
const SELECTIONS_KEPT: usize = 64;

/// A page of a list.
#[derive(Debug)]
pub(in crate::sim) struct Page {
    pub(in crate::sim) total: u64,
    pub(in crate::sim) items: Vec<Arc<Item>>,
}

/// A filter as it applies to a kind: what to compare, and the paths to it.
type Resolved<'q> = (Cow<'q, Filter>, Vec<Vec<&'q str>>);

impl World {
    /// The page of a list that a query asks for. The error is a sentence that names the parameter.
    pub(in crate::sim) fn select(&self, kind: Kind, query: &Query) -> Result<Page, String> {
        let items = self.all(kind);
        let mut filters = Vec::with_capacity(query.filters.len());
        for filter in &query.filters {
            filters.push(self.resolve(kind, filter)?);
        }
        let order = query.sort.as_deref().map(|field| self.order(kind, field)).transpose()?;
        let offset = usize::try_from(query.offset()).unwrap_or(usize::MAX);
        let per = query.per as usize;
        if filters.is_empty() {
            let total = items.len();
            let place = |position: usize| {
                let position = if query.is_descending { total - 1 - position } else { position };
                order.as_ref().map_or(position, |order| order[position])
            };
            let items = (offset..total).take(per).map(|position| Arc::clone(&items[place(position)]));
            return Ok(Page { total: total as u64, items: items.collect() });
        }
        let places = self.selection(kind, query, &filters, order.as_deref());
        let page = places.iter().skip(offset).take(per);
        let items = page.map(|place| Arc::clone(&items[*place])).collect();
        Ok(Page { total: places.len() as u64, items })
    }

    /// The places of the objects that pass, in the order that is asked for; kept for the other pages.
    fn selection(
        &self,
        kind: Kind,
        query: &Query,
        filters: &[Resolved<'_>],
        order: Option<&[usize]>,
    ) -> Arc<[usize]> {
        let key = (kind as usize, query.selection().to_owned());
        if let Some(known) = lock(&self.selections).get(&key).filter(|known| known.changes == self.changes) {
            return Arc::clone(&known.places);
        }
        let items = self.all(kind);
        let passes = |place: &usize| {
            filters.iter().all(|(filter, paths)| self.passes(filter, paths, &items[*place].value))
        };
        let mut chosen: Vec<usize> = match (self.candidates(kind, filters), order) {
            (Some(places), None) => places.iter().copied().filter(passes).collect(),
            (Some(places), Some(_)) => {
                let mut few: Vec<usize> = places.iter().copied().filter(passes).collect();
                if let Some(field) = &query.sort {
                    few.sort_by(|a, b| self.key(kind, field, *a).compare(&self.key(kind, field, *b)));
                }
                few
            }
            (None, None) => (0..items.len()).filter(passes).collect(),
            (None, Some(order)) => order.iter().copied().filter(passes).collect(),
        };
        if query.is_descending {
            chosen.reverse();
        }
        let places: Arc<[usize]> = chosen.into();
        let mut selections = lock(&self.selections);
        if selections.len() >= SELECTIONS_KEPT {
            selections.clear();
        }
        selections.insert(key, Selection { changes: self.changes, places: Arc::clone(&places) });
        places
    }

    /// The places of all objects in the order of a field, smallest first; equal ones by age.
    fn order(&self, kind: Kind, field: &str) -> Result<Arc<[usize]>, String> {
        let collection = &self.collections[kind as usize];
        if let Some(order) = lock(&collection.orders).get(field) {
            return Ok(Arc::clone(order));
        }
        if kind.sort_path(field).is_none()
            && collection.items.first().is_some_and(|item| item.value.get(field).is_none())
        {
            return Err(format!("sort: objects of this list have no field {field:?}"));
        }
        let places = 0..collection.items.len();
        let mut keyed: Vec<(SortKey<'_>, usize)> =
            places.map(|place| (self.key(kind, field, place), place)).collect();
        // Stable, and the items stand by age.
        keyed.sort_by(|(a, _), (b, _)| a.compare(b));
        let order: Arc<[usize]> = keyed.into_iter().map(|(_, place)| place).collect();
        lock(&collection.orders).insert(field.to_owned(), Arc::clone(&order));
        Ok(order)
    }

    fn key(&self, kind: Kind, field: &str, place: usize) -> SortKey<'_> {
        let own = [field];
        let mut found = Vec::new();
        self.find(&self.at(kind, place).value, kind.sort_path(field).unwrap_or(&own), &mut found);
        SortKey::of(found.first().copied().unwrap_or(&Value::Null))
    }

    /// The places that a filter by a referring field leaves; none when there is no such filter.
    fn candidates(&self, kind: Kind, filters: &[Resolved<'_>]) -> Option<&[usize]> {
        filters.iter().find_map(|(filter, paths)| {
            let [path] = paths.as_slice() else { return None };
            let [field, "id"] = path.as_slice() else { return None };
            let [needle] = filter.needles.as_slice() else { return None };
            let parent: u64 = needle.text().parse().ok().filter(|_| filter.op == Op::Is)?;
            kind.parents().contains(field).then(|| self.children(kind, field, parent))
        })
    }

    /// The condition and the paths inside an object that it looks at.
    fn resolve<'q>(&self, kind: Kind, filter: &'q Filter) -> Result<Resolved<'q>, String> {
        if !kind.has_filter(&filter.path) {
            let (name, known) = (filter.path.join("."), kind.filters().join(", "));
            return Err(format!("f.{name}: this list has no such filter; known: {known}"));
        }
        let field = filter.path[0].as_str();
        if let Some(ids) = self.joined(kind, filter, field) {
            let needles = ids.iter().map(|id| Needle::new(id)).collect();
            let by_id = Filter { path: Vec::new(), op: Op::Any, needles };
            return Ok((Cow::Owned(by_id), vec![vec!["id"]]));
        }
        if kind == Kind::Port && field == "port_type" {
            let objects = filter.needles.iter().map(|needle| {
                Needle::new(match needle.text() {
                    "airport" => "/air/port",
                    "railport" => "/ocean/railport",
                    "roadport" => "/trucking/port",
                    _ => "/ocean/port",
                })
            });
            let by_object = Filter { path: Vec::new(), op: filter.op, needles: objects.collect() };
            return Ok((Cow::Owned(by_object), vec![vec!["details", "_object"]]));
        }
        let rest = || filter.path[1..].iter().map(String::as_str);
        let paths = match kind.filter_paths(field) {
            Some(paths) => paths.iter().map(|path| path.iter().copied().chain(rest()).collect()).collect(),
            None => vec![filter.path.iter().map(String::as_str).collect()],
        };
        Ok((Cow::Borrowed(filter), paths))
    }

    /// The ids that a filter selects which looks at other objects than those of the list.
    fn joined(&self, kind: Kind, filter: &Filter, field: &str) -> Option<Vec<String>> {
        let texts = || filter.needles.iter().map(Needle::text);
        let is = |text: &str| texts().any(|one| one == text);
        let mine = |wanted: &dyn Fn(&Value) -> bool| {
            let items = self.all(kind).iter().filter(|item| wanted(&item.value));
            Some(items.map(|item| item.id.clone()).collect())
        };
        match (kind, field) {
            (Kind::Shipment, "container_number") => {
                Some(self.across(Kind::Container, filter, &["container_number"], &["shipment", "id"]))
            }
            (Kind::CompanyEntity, "company_id") => {
                Some(self.across(Kind::Company, filter, &["id"], &["entities", "id"]))
            }
            (Kind::CompanyEntity, "company_ref") => {
                Some(self.across(Kind::Company, filter, &["ref"], &["entities", "id"]))
            }
            (Kind::Shipment, "sku") => {
                let orders = self.across(
                    Kind::PurchaseOrderLineItem,
                    filter,
                    &["product", "sku"],
                    &["purchase_order", "name"],
                );
                mine(&|value| names_order(value, &orders))
            }
            (Kind::PurchaseOrder, "shipment") => {
                let shipments = texts().filter_map(|id| self.get(Kind::Shipment, id));
                let shipments: Vec<&Value> = shipments.map(|item| &item.value).collect();
                mine(&|order| {
                    let name = [id_text(&order["name"])];
                    shipments.iter().any(|shipment| names_order(shipment, &name))
                })
            }
            (Kind::PurchaseOrder, "role") => {
                let own = self.all(Kind::Company).first().map(|item| &item.value["id"]);
                mine(&|order| {
                    ["buyer", "seller"].iter().any(|role| is(role) && Some(&order[*role]["id"]) == own)
                })
            }
            (Kind::Shipment, "wants_import_customs_service") => mine(&|value| {
                let id = value["id"].as_u64().unwrap_or_default();
                is(word(!self.children(Kind::CustomsEntry, "shipment", id).is_empty()))
            }),
            // Everything here is Flexport's own freight, and nothing of it is a beneficial owner's contract.
            (Kind::Shipment, "wants_flexport_freight") => mine(&|_| is("true")),
            (Kind::Shipment, "wants_freight_management_bco") => mine(&|_| is("false")),
            (Kind::Invoice, "billed_directly_to_client") => {
                mine(&|value| is(word(value["type"] == "Client")))
            }
            (Kind::Invoice, "client_id") => {
                mine(&|value| value["type"] == "Client" && is(&id_text(&value["recipient"]["id"])))
            }
            (Kind::CommercialInvoice, "involved_party_seller_id" | "involved_party_seller_ref") => {
                let by = if field.ends_with("id") { "id" } else { "ref" };
                mine(&|value| {
                    let parties = value["involved_parties"].as_array().into_iter().flatten();
                    parties.filter(|party| party["type"] == "seller").any(|party| {
                        let mut found = Vec::new();
                        self.find(&party["company_entity"], &[by], &mut found);
                        found.iter().any(|value| is(&id_text(value)))
                    })
                })
            }
            (Kind::Location, "contact") => Some(
                self.places
                    .iter()
                    .filter(|(_, contact)| is(contact))
                    .map(|(location, _)| location.clone())
                    .collect(),
            ),
            (Kind::Contact, "location") => Some(
                self.places
                    .iter()
                    .filter(|(location, _)| is(location))
                    .map(|(_, contact)| contact.clone())
                    .collect(),
            ),
            _ => None,
        }
    }

    /// What stands at a path in the objects of another kind that pass.
    fn across(&self, other: Kind, filter: &Filter, path: &[&str], wanted: &[&str]) -> Vec<String> {
        let paths = [path.to_vec()];
        let mut ids = Vec::new();
        for item in self.all(other) {
            if self.passes(filter, &paths, &item.value) {
                let mut found = Vec::new();
                self.find(&item.value, wanted, &mut found);
                ids.extend(found.into_iter().map(id_text));
            }
        }
        ids
    }

    fn passes(&self, filter: &Filter, paths: &[Vec<&str>], value: &Value) -> bool {
        let mut found = Vec::new();
        for path in paths {
            self.find(value, path, &mut found);
        }
        filter.passes(&found)
    }

    /// Collects the values at a path, through lists, and through references where the reference lacks the field.
    fn find<'a>(&'a self, value: &'a Value, path: &[&str], found: &mut Vec<&'a Value>) {
        match (value, path.split_first()) {
            (Value::Array(list), _) => {
                for value in list {
                    self.find(value, path, found);
                }
            }
            (_, None) => found.push(value),
            (Value::Object(fields), Some((field, rest))) => {
                if let Some(value) = fields.get(*field) {
                    self.find(value, rest, found);
                } else if rest.is_empty() && fields.get("type").is_some_and(|name| name == *field) {
                    // A property, whose name is the value of `type`.
                    found.extend(fields.get("value"));
                } else if let Some(target) = self.follow(fields) {
                    self.find(target, path, found);
                }
            }
            _ => {}
        }
    }

    fn follow(&self, reference: &Map<String, Value>) -> Option<&Value> {
        let kind = Kind::of_object(reference.get("ref_type")?.as_str()?)?;
        self.get(kind, &id_text(reference.get("id")?)).map(|item| &item.value)
    }
}

/// Whether a shipment's metadata names one of the purchase orders.
fn names_order(shipment: &Value, orders: &[String]) -> bool {
    let named = shipment["metadata"]["purchase_order"].as_array().into_iter().flatten();
    named.filter_map(Value::as_str).any(|name| orders.iter().any(|order| order == name))
}

fn word(is: bool) -> &'static str {
    if is { "true" } else { "false" }
}
