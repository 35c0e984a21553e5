//! `docs/SIMULATOR.md` held to the code.

use super::super::control::CALLS;
use super::super::faults::{KINDS, parse};
use super::super::switches::FIELDS;
use super::*;

const DOCUMENT: &str = include_str!("../../../docs/SIMULATOR.md");

#[test]
fn every_kind_call_and_switch_stands_in_the_document() {
    for kind in KINDS.split(", ") {
        assert!(DOCUMENT.contains(&format!("| `{kind}` |")), "docs/SIMULATOR.md has no row for fault {kind}");
    }
    for (path, methods) in CALLS {
        assert!(
            DOCUMENT.contains(&format!("| `{path}` | {methods} |")),
            "docs/SIMULATOR.md has no row for {path}"
        );
    }
    for switch in FIELDS.split(", ") {
        assert!(
            DOCUMENT.contains(&format!("| `{switch}` |")),
            "docs/SIMULATOR.md has no row for switch {switch}"
        );
    }
}

#[test]
fn every_fault_in_the_document_can_be_set() {
    let mut kinds: Vec<&str> = KINDS.split(", ").collect();
    for example in DOCUMENT.lines().filter_map(|line| line.split("`{\"kind\"").nth(1)) {
        let text = format!("{{\"kind\"{}", example.split('`').next().unwrap());
        let fault: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        parse(&json!([fault])).unwrap_or_else(|error| panic!("{text}: {error}"));
        kinds.retain(|kind| fault["kind"] != **kind);
    }
    assert!(kinds.is_empty(), "docs/SIMULATOR.md has no example of {kinds:?}");
}
