//! Pure. A status page in the form of Atlassian's Statuspage, which says what it is told to.
//!
//! It is served under `/_sim/status_page/api/v2/…` and, on the control listener, under `/api/v2/…`; no fault touches
//! it, but it can be told to be out of order itself.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

const INDICATORS: [&str; 5] = ["none", "minor", "major", "critical", "maintenance"];
const COMPONENT_STATUSES: [&str; 5] =
    ["operational", "degraded_performance", "partial_outage", "major_outage", "under_maintenance"];
const INCIDENT_STATUSES: [&str; 5] = ["investigating", "identified", "monitoring", "resolved", "postmortem"];
const FIELDS: &str = "indicator, description, components, incidents, scheduled_maintenances, answer";

/// What the page says.
#[derive(Debug, Clone)]
pub(super) struct StatusPage {
    indicator: &'static str,
    description: String,
    components: Vec<Value>,
    incidents: Vec<Value>,
    maintenances: Vec<Value>,
    updated: Timestamp,
    pub(super) answer: Behaviour,
}

/// Whether the page answers at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Behaviour {
    Ok,
    /// 503 without a usable body.
    Error,
    /// 200 with something that is no JSON.
    Garbage,
    Hang,
}

// === impl StatusPage ===

impl StatusPage {
    pub(super) fn new(now: Timestamp) -> Self {
        Self {
            indicator: "none",
            description: describe("none").to_owned(),
            components: vec![
                component("API", "operational", 0, now),
                component("Webhooks", "operational", 1, now),
            ],
            incidents: Vec::new(),
            maintenances: Vec::new(),
            updated: now,
            answer: Behaviour::Ok,
        }
    }

    /// Reads what the page is to say; what is not given is as on a good day. The error names the field.
    pub(super) fn parse(spec: &Value, now: Timestamp) -> Result<Self, String> {
        let Value::Object(fields) = spec else {
            return Err(format!("status_page: must be an object with one or more of {FIELDS}"));
        };
        let mut page = Self::new(now);
        if let Some(value) = fields.get("indicator") {
            page.indicator = one_of("status_page.indicator", value, &INDICATORS)?;
            describe(page.indicator).clone_into(&mut page.description);
        }
        for (field, value) in fields {
            match field.as_str() {
                "indicator" => {}
                "description" => page.description = text("status_page.description", value)?,
                "components" => {
                    page.components = list("status_page.components", value, |at, index, fields| {
                        known(at, fields, &["name", "status"])?;
                        let name = text(&format!("{at}.name"), &fields["name"])?;
                        let status = one_of(
                            &format!("{at}.status"),
                            fields.get("status").unwrap_or(&Value::Null),
                            &COMPONENT_STATUSES,
                        )?;
                        Ok(component(&name, status, index, now))
                    })?;
                }
                "incidents" => {
                    page.incidents = list("status_page.incidents", value, |at, index, fields| {
                        incident(at, index, fields, now)
                    })?;
                }
                "scheduled_maintenances" => {
                    page.maintenances =
                        list("status_page.scheduled_maintenances", value, |at, index, fields| {
                            maintenance(at, index, fields, now)
                        })?;
                }
                "answer" => {
                    page.answer =
                        match one_of("status_page.answer", value, &["ok", "error", "garbage", "hang"])? {
                            "error" => Behaviour::Error,
                            "garbage" => Behaviour::Garbage,
                            "hang" => Behaviour::Hang,
                            _ => Behaviour::Ok,
                        };
                }
                _ => return Err(format!("status_page.{field}: unknown field; known: {FIELDS}")),
            }
        }
        Ok(page)
    }

    /// The document at a path below `/api/v2/`.
    pub(super) fn document(&self, name: &str, url: &str) -> Option<Value> {
        let page = json!({
            "id": "seawall-simulator",
            "name": "Flexport (simulated)",
            "url": url,
            "time_zone": "Etc/UTC",
            "updated_at": format!("{:.3}", self.updated),
        });
        let status = json!({"indicator": self.indicator, "description": self.description});
        let unresolved = || {
            let is_open = |one: &&Value| !matches!(one["status"].as_str(), Some("resolved" | "postmortem"));
            self.incidents.iter().filter(is_open).cloned().collect::<Vec<_>>()
        };
        Some(match name {
            "status.json" => json!({"page": page, "status": status}),
            "summary.json" => json!({
                "page": page,
                "components": self.components,
                "incidents": unresolved(),
                "scheduled_maintenances": self.maintenances,
                "status": status,
            }),
            "components.json" => json!({"page": page, "components": self.components}),
            "incidents.json" => json!({"page": page, "incidents": self.incidents}),
            "incidents/unresolved.json" => json!({"page": page, "incidents": unresolved()}),
            "scheduled-maintenances.json" => {
                json!({"page": page, "scheduled_maintenances": self.maintenances})
            }
            _ => return None,
        })
    }
}

fn describe(indicator: &str) -> &'static str {
    match indicator {
        "minor" => "Partially Degraded Service",
        "major" => "Partial System Outage",
        "critical" => "Major Service Outage",
        "maintenance" => "Service Under Maintenance",
        _ => "All Systems Operational",
    }
}

fn component(name: &str, status: &str, index: usize, now: Timestamp) -> Value {
    json!({
        "id": format!("component-{index}"),
        "name": name,
        "status": status,
        "created_at": format!("{now:.3}"),
        "updated_at": format!("{now:.3}"),
        "position": index + 1,
        "description": null,
        "showcase": true,
        "start_date": null,
        "group_id": null,
        "page_id": "seawall-simulator",
        "group": false,
        "only_show_if_degraded": false,
    })
}

fn incident(at: &str, index: usize, fields: &Map<String, Value>, now: Timestamp) -> Result<Value, String> {
    known(at, fields, &["name", "status", "impact", "body"])?;
    let name = text(&format!("{at}.name"), &fields["name"])?;
    let given = |field: &str, known: &'static [&'static str], default: &'static str| {
        fields.get(field).map_or(Ok(default), |value| one_of(&format!("{at}.{field}"), value, known))
    };
    let status = given("status", &INCIDENT_STATUSES, "investigating")?;
    let impact = given("impact", &INDICATORS, "major")?;
    let body = fields.get("body").map_or(Ok(String::new()), |value| text(&format!("{at}.body"), value))?;
    let stamp = format!("{now:.3}");
    let id = format!("incident-{index}");
    Ok(json!({
        "id": id,
        "name": name,
        "status": status,
        "created_at": stamp,
        "updated_at": stamp,
        "monitoring_at": null,
        "resolved_at": (status == "resolved").then_some(&stamp),
        "impact": impact,
        "shortlink": null,
        "started_at": stamp,
        "page_id": "seawall-simulator",
        "incident_updates": [{
            "id": format!("{id}-update-0"),
            "status": status,
            "body": body,
            "incident_id": id,
            "created_at": stamp,
            "updated_at": stamp,
            "display_at": stamp,
        }],
    }))
}

fn maintenance(at: &str, index: usize, fields: &Map<String, Value>, now: Timestamp) -> Result<Value, String> {
    known(at, fields, &["name", "scheduled_for", "scheduled_until"])?;
    let name = text(&format!("{at}.name"), &fields["name"])?;
    let instant = |field: &str| {
        let instant =
            fields.get(field).and_then(Value::as_str).and_then(|text| text.parse::<Timestamp>().ok());
        instant.ok_or_else(|| format!("{at}.{field}: must be an RFC 3339 instant"))
    };
    let (from, until) = (instant("scheduled_for")?, instant("scheduled_until")?);
    Ok(json!({
        "id": format!("maintenance-{index}"),
        "name": name,
        "status": if now < from { "scheduled" } else if now < until { "in_progress" } else { "completed" },
        "impact": "maintenance",
        "scheduled_for": format!("{from:.3}"),
        "scheduled_until": format!("{until:.3}"),
        "page_id": "seawall-simulator",
        "incident_updates": [],
    }))
}

fn list(
    at: &str,
    value: &Value,
    read: impl Fn(&str, usize, &Map<String, Value>) -> Result<Value, String>,
) -> Result<Vec<Value>, String> {
    let list = value.as_array().ok_or_else(|| format!("{at}: must be a list of objects"))?;
    let one = |(index, value): (usize, &Value)| {
        let at = format!("{at}[{index}]");
        let mut fields = value.as_object().ok_or_else(|| format!("{at}: must be an object"))?.clone();
        // So that a missing field is read, and refused, like a wrong one.
        fields.entry("name").or_insert(Value::Null);
        read(&at, index, &fields)
    };
    list.iter().enumerate().map(one).collect()
}

fn known(at: &str, fields: &Map<String, Value>, names: &[&str]) -> Result<(), String> {
    match fields.keys().find(|field| !names.contains(&field.as_str())) {
        Some(field) => Err(format!("{at}.{field}: unknown field; known: {}", names.join(", "))),
        None => Ok(()),
    }
}

fn text(at: &str, value: &Value) -> Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| format!("{at}: must be a string"))
}

fn one_of(at: &str, value: &Value, known: &[&'static str]) -> Result<&'static str, String> {
    let found = known.iter().find(|name| value == **name).copied();
    found.ok_or_else(|| format!("{at}: must be one of {}, not {value}", known.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-05-01T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn a_good_day_and_a_bad_one() {
        let page = StatusPage::new(now());
        let status = page.document("status.json", "http://x").unwrap();
        assert_eq!(status["status"], json!({"indicator": "none", "description": "All Systems Operational"}));
        let keys: Vec<&String> = status["page"].as_object().unwrap().keys().collect();
        assert_eq!(keys, ["id", "name", "url", "time_zone", "updated_at"]);
        let spec = json!({
            "indicator": "major",
            "components": [{"name": "API", "status": "major_outage"}],
            "incidents": [{"name": "API errors"}, {"name": "Old", "status": "resolved"}],
        });
        let page = StatusPage::parse(&spec, now()).unwrap();
        let summary = page.document("summary.json", "http://x").unwrap();
        assert_eq!(summary["status"]["indicator"], "major");
        assert_eq!(summary["components"][0]["status"], "major_outage");
        assert_eq!(summary["incidents"].as_array().unwrap().len(), 1);
        assert!(page.document("nothing.json", "http://x").is_none());
    }

    #[test]
    fn a_wrong_field_is_named() {
        for (spec, name) in [
            (json!(1), "status_page:"),
            (json!({"indicator": "red"}), "status_page.indicator"),
            (json!({"componets": []}), "status_page.componets"),
            (json!({"components": [{"name": "API", "status": "down"}]}), "status_page.components[0].status"),
            (json!({"components": [{"status": "operational"}]}), "status_page.components[0].name"),
            (json!({"incidents": [{"name": "x", "impact": "huge"}]}), "status_page.incidents[0].impact"),
            (
                json!({"scheduled_maintenances": [{"name": "x"}]}),
                "status_page.scheduled_maintenances[0].scheduled_for",
            ),
            (json!({"answer": "maybe"}), "status_page.answer"),
        ] {
            let error = StatusPage::parse(&spec, now()).unwrap_err();
            assert!(error.starts_with(name), "{spec}: {error}");
        }
    }
}
