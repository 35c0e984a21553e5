//! Companies, their entities, contacts and locations.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::super::super::seed;
use super::super::{Item, Kind, Refusal, World};
use super::fields::{address, list, merge, metadata, optional_text, required_text};

impl World {
    pub(super) fn company(&mut self, fields: &Map<String, Value>) -> Result<Value, Refusal> {
        let name = required_text(fields, "name")?;
        let id = self.text_id();
        let mut value = seed::company(&self.links, &id, name, optional_text(fields, "ref")?, &[]);
        value["metadata"] = metadata(fields)?;
        Ok(value)
    }

    /// A legal entity, which also appears inside its company.
    pub(super) fn company_entity(&mut self, fields: &Map<String, Value>) -> Result<Arc<Item>, Refusal> {
        let name = required_text(fields, "name")?;
        let company = match (optional_text(fields, "company_id")?, optional_text(fields, "company_ref")?) {
            (Some(id), _) => self.get(Kind::Company, id).cloned(),
            (None, Some(reference)) => {
                self.all(Kind::Company).iter().find(|item| item.value["ref"] == reference).cloned()
            }
            (None, None) => None,
        };
        let id = self.next_id(Kind::CompanyEntity);
        let mut value = json!({
            "_object": Kind::CompanyEntity.object(),
            "id": id,
            "name": name,
            "mailing_address": null,
            "ref": format!("entity-{id}"),
            "vat_numbers": [],
        });
        self.change_company_entity(&mut value, fields)?;
        let item = self.insert(Kind::CompanyEntity, value);
        if let Some(company) = company {
            let mut value = company.value.clone();
            if let Some(entities) = value["entities"].as_array_mut() {
                entities.push(item.value.clone());
            }
            self.replace(Kind::Company, &company.id, value);
        }
        Ok(item)
    }

    #[expect(clippy::unused_self, reason = "one of a family that the caller chooses from")]
    pub(super) fn change_company_entity(
        &self,
        value: &mut Value,
        fields: &Map<String, Value>,
    ) -> Result<(), Refusal> {
        merge(value, fields, &["name", "ref"])?;
        if let Some(given) = fields.get("mailing_address").filter(|given| !given.is_null()) {
            value["mailing_address"] = address(given, "mailing_address")?;
        }
        if let Some(given) = fields.get("vat_numbers").filter(|given| !given.is_null()) {
            let template = json!({"_object": "/company_entity/vat_number", "country_code": "", "number": ""});
            value["vat_numbers"] = list(given, &template, "vat_numbers")?;
        }
        Ok(())
    }

    /// The company that holds an entity shows it as it now is.
    pub(super) fn renew_entity(&mut self, entity: &Item) {
        let holds = |item: &&Arc<Item>| {
            item.value["entities"].as_array().into_iter().flatten().any(|one| one["id"] == entity.value["id"])
        };
        let Some(company) = self.all(Kind::Company).iter().find(holds).cloned() else { return };
        let mut value = company.value.clone();
        for held in value["entities"].as_array_mut().into_iter().flatten() {
            if held["id"] == entity.value["id"] {
                *held = entity.value.clone();
            }
        }
        self.replace(Kind::Company, &company.id, value);
    }

    pub(super) fn contact(&mut self, fields: &Map<String, Value>) -> Result<Value, Refusal> {
        let name = required_text(fields, "name")?;
        let company = self.company_of(fields)?;
        let id = self.text_id();
        let mut value = seed::contact(&self.links, &id, name, &company);
        merge(&mut value, fields, &["email", "phone_number"])?;
        Ok(value)
    }

    pub(super) fn location(&mut self, fields: &Map<String, Value>) -> Result<Arc<Item>, Refusal> {
        let name = required_text(fields, "name")?;
        let company = self.company_of(fields)?;
        let metadata = metadata(fields)?;
        let id = self.text_id();
        let mut value = seed::location(&self.links, &id, name, &company, &Value::Null);
        value["metadata"] = metadata;
        self.change_location(&mut value, fields, &id)?;
        Ok(self.insert(Kind::Location, value))
    }

    pub(super) fn change_location(
        &mut self,
        value: &mut Value,
        fields: &Map<String, Value>,
        id: &str,
    ) -> Result<(), Refusal> {
        merge(value, fields, &["name", "ref"])?;
        if let Some(given) = fields.get("address").filter(|given| !given.is_null()) {
            value["address"] = address(given, "address")?;
        }
        match fields.get("contact_ids") {
            None | Some(Value::Null) => {}
            Some(Value::Array(contacts)) if contacts.iter().all(Value::is_string) => {
                self.changes += 1;
                self.places.retain(|(location, _)| location != id);
                for contact in contacts.iter().filter_map(Value::as_str) {
                    self.place(id, contact);
                }
            }
            Some(_) => return Err(Refusal::bad("contact_ids must be a list of ids")),
        }
        Ok(())
    }

    fn company_of(&self, fields: &Map<String, Value>) -> Result<Value, Refusal> {
        let id = optional_text(fields, "company_id")?;
        Ok(id.map_or(Value::Null, |id| self.links.object(Kind::Company, &json!(id))))
    }
}
