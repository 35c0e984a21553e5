//! Pure. What is to be warmed: the lines of a list, and what a page of shipments leads to.
//!
//! A target is a path with its query, in the octets in which a client would ask for it, since that is what its copy is
//! found by. Flexport's bodies name the lists of a shipment (legs, documents, containers and so on) by links, and clients
//! follow them as they stand, so these links are the targets, and nothing is made up.

use super::super::objects::page::id_of;
use http::uri::PathAndQuery;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::HashSet;

/// What is wrong with a line of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineError {
    /// From 1.
    pub line: usize,
    /// What is wrong, and what is expected.
    pub what: String,
}

/// A page of shipments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Page {
    /// The next one.
    pub(crate) next: Option<String>,
    /// How many shipments stand on it.
    pub(crate) shipments: u64,
    /// How many of them are active.
    pub(crate) active: u64,
    /// The active ones themselves, and the lists that belong to them.
    pub(crate) targets: Vec<String>,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    data: Collection<'a>,
}

#[derive(Deserialize)]
struct Collection<'a> {
    #[serde(default)]
    next: Option<String>,
    #[serde(borrow)]
    data: Vec<&'a RawValue>,
}

/// The first page: as large as Flexport makes them.
pub(crate) const FIRST: &str = "/shipments?page=1&per=100";
/// The longest target.
const LONGEST: usize = 8 * 1024;
/// How deep in a shipment its lists are looked for.
const DEPTH: usize = 4;

/// The targets of a list, each once, in its order. Empty lines and those that begin with `#` are none. `bases`: what may
/// stand before a path.
pub(crate) fn parse(lines: &[String], bases: &[&str]) -> Result<Vec<String>, LineError> {
    let mut targets = Vec::new();
    let mut known = HashSet::new();
    for (number, line) in lines.iter().enumerate() {
        let text = line.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let target = target(text, bases).map_err(|what| LineError { line: number + 1, what })?;
        if known.insert(target.clone()) {
            targets.push(target);
        }
    }
    Ok(targets)
}

fn target(text: &str, bases: &[&str]) -> Result<String, String> {
    let shown = || text.chars().take(80).collect::<String>();
    let path = match under(text, bases) {
        Some(path) => path,
        None if text.starts_with('/') => text,
        None => {
            let bases = bases.join(" or ");
            return Err(format!(
                "{:?} is neither a path that begins with `/` nor a URL under {bases}",
                shown()
            ));
        }
    };
    if path.starts_with("//") {
        return Err(format!("{:?} begins with two slashes, which names another host", shown()));
    }
    if path.contains('#') {
        return Err(format!("{:?} has a fragment (`#…`), which is not sent", shown()));
    }
    if path.len() > LONGEST {
        return Err(format!("{:?}… is longer than {LONGEST} bytes", shown()));
    }
    match path.parse::<PathAndQuery>() {
        Ok(target) if target.as_str() == path && path.is_ascii() => Ok(path.to_owned()),
        _ => Err(format!("{:?} holds characters that a URL cannot; encode them", shown())),
    }
}

/// The path of a URL under one of these bases.
fn under<'a>(text: &'a str, bases: &[&str]) -> Option<&'a str> {
    let rest = bases.iter().find_map(|base| text.strip_prefix(base.trim_end_matches('/')))?;
    rest.starts_with('/').then_some(rest)
}

/// What a page of shipments leads to. `None`: it is none.
pub(crate) fn page(body: &[u8], bases: &[&str]) -> Option<Page> {
    let Envelope { data: Collection { next, data } } = serde_json::from_slice(body).ok()?;
    let linked = |link: &str| under(link, bases).and_then(|path| target(path, bases).ok());
    let mut page = Page { next: next.as_deref().and_then(linked), ..Page::default() };
    for raw in data {
        let Some(id) = id_of(raw.get()) else { continue };
        page.shipments += 1;
        let Ok(shipment) = serde_json::from_str::<Value>(raw.get()) else { continue };
        if !is_active(&shipment) {
            continue;
        }
        page.active += 1;
        page.targets.push(format!("/shipments/{id}"));
        let mut links = Vec::new();
        collections(&shipment, DEPTH, &mut links);
        page.targets.extend(links.into_iter().filter_map(linked));
    }
    Some(page)
}

/// Whether somebody still waits for a shipment: it is neither delivered in full nor archived.
fn is_active(shipment: &Value) -> bool {
    ["archived_at", "actual_delivered_in_full_date"].iter().all(|field| shipment[*field].is_null())
}

/// The links of references to collections.
fn collections<'a>(value: &'a Value, depth: usize, links: &mut Vec<&'a str>) {
    match value {
        Value::Object(members) => {
            if value["_object"] == "/api/refs/collection" {
                links.extend(value["link"].as_str());
            } else if depth > 0 {
                for member in members.values() {
                    collections(member, depth - 1, links);
                }
            }
        }
        Value::Array(items) if depth > 0 => {
            for item in items {
                collections(item, depth - 1, links);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASES: &[&str] = &["http://127.0.0.1:8460", "https://api.flexport.com/"];

    fn lines(text: &str) -> Vec<String> {
        text.split('\n').map(str::to_owned).collect()
    }

    #[test]
    fn a_list_holds_paths_and_urls_of_ours_each_once() {
        let text = "# what the planners look at\n/shipments?per=10\r\n\n http://127.0.0.1:8460/shipments/1 \n\
                    https://api.flexport.com/shipments?per=10\nhttps://api.flexport.com/a?b=%20c";
        assert_eq!(parse(&lines(text), BASES).unwrap(), ["/shipments?per=10", "/shipments/1", "/a?b=%20c"]);
        assert!(parse(&lines("\n# no\n"), BASES).unwrap().is_empty());
    }

    #[test]
    fn a_malformed_line_is_named() {
        let long = format!("/{}", "x".repeat(9000));
        for bad in [
            "shipments",
            "https://example.com/shipments",
            "https://api.flexport.com.example.com/x",
            "https://api.flexport.com",
            "//example.com/x",
            "/a b",
            "/a#b",
            "/ä",
            "ftp://127.0.0.1:8460/x",
            &long,
        ] {
            let error = parse(&lines(&format!("/ok\n\n{bad}\n/ok")), BASES).unwrap_err();
            assert_eq!(error.line, 3, "{bad}");
            assert!(error.what.contains(&bad[..bad.len().min(6)]), "{error:?}");
        }
    }

    #[test]
    fn a_page_leads_to_its_active_shipments_their_lists_and_the_next_page() {
        let collection = |path: &str| {
            format!(
                r#"{{"_object":"/api/refs/collection","ref_type":"x","link":"http://127.0.0.1:8460{path}"}}"#
            )
        };
        let shipment = |id: u32, delivered: &str, archived: &str| {
            format!(
                r#"{{"_object":"/shipment","id":{id},"archived_at":{archived},"actual_delivered_in_full_date":{delivered},
                "booking":{{"_object":"/api/refs/object","link":"http://127.0.0.1:8460/bookings/1","id":1}},
                "ocean_shipment":{{"_object":"/ocean/shipment","containers":{}}},"legs":{},"elsewhere":{{
                "_object":"/api/refs/collection","link":"https://example.com/x"}}}}"#,
                collection(&format!("/ocean/shipment_containers?f.shipment.id={id}")),
                collection(&format!("/shipment_legs?f.shipment.id={id}")),
            )
        };
        let all = [
            shipment(1, "null", "null"),
            shipment(2, "\"2026-01-01\"", "null"),
            shipment(3, "null", "\"2026-01-01\""),
        ];
        let body = format!(
            r#"{{"_object":"/api/response","version":2,"data":{{"next":"http://127.0.0.1:8460/shipments?page=2&per=100","data":[{}]}},"error":null}}"#,
            all.join(",")
        );
        let found = page(body.as_bytes(), BASES).unwrap();
        assert_eq!((found.shipments, found.active), (3, 1));
        assert_eq!(found.next.as_deref(), Some("/shipments?page=2&per=100"));
        assert_eq!(
            found.targets,
            ["/shipments/1", "/ocean/shipment_containers?f.shipment.id=1", "/shipment_legs?f.shipment.id=1"]
        );
        for none in ["", "{}", "[]", r#"{"data":null}"#, r#"{"data":{"data":7}}"#] {
            assert_eq!(page(none.as_bytes(), BASES), None, "{none}");
        }
        let last = br#"{"data":{"next":null,"data":[]}}"#;
        assert_eq!(page(last, BASES), Some(Page::default()));
    }
}
