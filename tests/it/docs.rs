//! Holds documents to the code that they speak of.

use seawall::error::ProxyError;
use seawall::flexport::problem;
use seawall::ids::WriteId;
use std::time::Duration;

/// A list of errors. The match is exhaustive, so that the compiler asks for each new variant.
macro_rules! one_of_each {
    ($($name:ident $(($($place:tt)*))? $({$($field:tt)*})?,)*) => {{
        let all = vec![$(ProxyError::$name $(($($place)*))? $({$($field)*})?),*];
        for error in &all {
            match error {
                $(ProxyError::$name { .. } => {})*
            }
        }
        all
    }};
}

fn all() -> Vec<ProxyError> {
    let (retry_after, write_id) = (Duration::from_secs(1), WriteId::random());
    let text = String::new;
    one_of_each! {
        BreakerOpen { scope: text(), retry_after },
        Overloaded { what: "x" },
        RateLimited { retry_after },
        DeadlineBeforeSending,
        Connect(text()),
        Unsent(text()),
        HeadTimeout,
        Cut(text()),
        RequestBody(seawall::http::BodyError::Stopped),
        BodyTooLarge { limit: 1 },
        Unauthorized { reason: "x" },
        BadRequest { field: "x", message: text() },
        QueueFull { what: text(), retry_after },
        StoreFailed(text()),
        OutcomeUnknown { write_id, key: None, is_durable: true },
        OrderConflict { write_id, retry_after },
        KeyReused,
        KeyInFlight { write_id: None },
        NotFound(text()),
        Conflict { message: text() },
        Draining,
        Internal(text()),
    }
}

#[test]
fn every_code_of_ours_stands_in_the_catalogue_with_its_status() {
    let catalogue = include_str!("../../docs/ERRORS.md");
    let mut codes: Vec<String> = Vec::new();
    for error in all() {
        let code = problem::code(&error);
        let row = format!("| `{}` | {} |", code.name, code.status.as_u16());
        assert!(catalogue.contains(&row), "docs/ERRORS.md has no row {row}");
        codes.push(code.name.to_owned());
    }
    // Made in the cache, which alone knows `only-if-cached`.
    codes.push("seawall_not_cached".to_owned());
    for row in catalogue.lines().filter(|line| line.starts_with("| `seawall_")) {
        let name = row.split('`').nth(1).unwrap();
        assert!(
            codes.iter().any(|code| code == name),
            "docs/ERRORS.md speaks of {name}, which nothing answers"
        );
    }
}

#[test]
fn every_metric_stands_in_its_document() {
    let document = include_str!("../../docs/METRICS.md");
    // From the source, since a family without children is not shown.
    let source = include_str!("../../src/telemetry/metrics.rs");
    let names: Vec<String> = source
        .split("metric!(")
        .skip(1)
        .filter_map(|part| part.trim_start().strip_prefix('"')?.split('"').next())
        .map(|name| format!("seawall_{name}"))
        .collect();
    assert!(names.len() > 20, "only {} metrics were found: is the macro still `metric!`?", names.len());
    for name in &names {
        let is_there =
            document.contains(&format!("| `{name}` |")) || document.contains(&format!("| `{name}_total` |"));
        assert!(is_there, "docs/METRICS.md lacks {name}");
    }
    for row in document.lines().filter(|line| line.starts_with("| `seawall_")) {
        let name = row.split('`').nth(1).unwrap().trim_end_matches("_total");
        assert!(
            names.iter().any(|known| known == name),
            "docs/METRICS.md speaks of {name}, which is not there"
        );
    }
}
