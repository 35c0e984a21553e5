use super::*;

fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
    fields
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
        .collect()
}

fn terms() -> Terms {
    Terms {
        ttl: Duration::ZERO,
        max_stale: Duration::from_secs(3600),
        max_stale_429: Duration::from_secs(60),
        overrides_revalidation: false,
        is_shared: false,
        keeps_any_status: false,
        keeps_cookies: false,
        guesses_freshness: false,
    }
}

fn facts(fields: &[(&'static str, &str)], terms: &Terms) -> Facts {
    Facts::of(StatusCode::OK, &headers(fields), Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH, terms)
}

fn ask(cache_control: &str) -> Ask {
    Ask::of(&headers(&[("cache-control", cache_control)]), true)
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn an_answers_own_freshness_wins_over_the_routes() {
    let route = Terms { ttl: secs(7), ..terms() };
    assert_eq!(facts(&[], &route).lifetime, secs(7));
    assert_eq!(facts(&[("cache-control", "max-age=3")], &route).lifetime, secs(3));
    assert_eq!(facts(&[("cache-control", "no-cache")], &route).lifetime, secs(0));
    assert_eq!(facts(&[("expires", "0")], &route).lifetime, secs(0));
    assert_eq!(facts(&[("expires", "Thu, 01 Jan 1970 00:00:09 GMT")], &route).lifetime, secs(9));
    assert_eq!(facts(&[("cache-control", "s-maxage=9")], &route).lifetime, secs(7));
    let shared = Terms { is_shared: true, ..terms() };
    assert_eq!(facts(&[("cache-control", "s-maxage=9, max-age=1")], &shared).lifetime, secs(9));
    let targeted = [("cdn-cache-control", "max-age=5"), ("cache-control", "no-cache, max-age=1")];
    let facts = facts(&targeted, &route);
    assert_eq!((facts.lifetime, facts.no_cache), (secs(5), false));
}

#[test]
fn a_ttl_is_negative_and_rounded_away_from_zero_when_stale() {
    let facts = facts(&[("cache-control", "max-age=10")], &terms());
    for (millis, ttl) in [(0, 10), (9_500, 0), (10_000, -1), (10_001, -1), (11_001, -2), (822_000, -812)] {
        assert_eq!(facts.ttl(Duration::from_millis(millis)), ttl, "{millis}");
    }
}

#[test]
fn what_is_out_of_date_or_no_cache_is_always_asked_for() {
    let fresh = facts(&[("cache-control", "max-age=10")], &terms());
    assert_eq!(fresh.judge(secs(1), false, &Ask::default()), Use::Fresh);
    assert_eq!(fresh.judge(secs(1), true, &Ask::default()), Use::Revalidate(Forward::Stale));
    assert_eq!(fresh.judge(secs(1), true, &ask("max-stale")), Use::Revalidate(Forward::Stale));
    let asked = facts(&[("cache-control", "no-cache, max-age=10")], &terms());
    assert_eq!(asked.judge(secs(1), false, &Ask::default()), Use::Revalidate(Forward::Stale));
}

#[test]
fn max_stale_does_not_beat_must_revalidate() {
    let stale = facts(&[("cache-control", "max-age=1, must-revalidate, stale-while-revalidate=9")], &terms());
    assert_eq!(stale.judge(secs(5), false, &ask("max-stale")), Use::Revalidate(Forward::Stale));
    let stale = facts(&[("cache-control", "max-age=1, stale-while-revalidate=9")], &terms());
    assert_eq!(stale.judge(secs(5), false, &ask("max-stale")), Use::Tolerated);
    assert_eq!(stale.judge(secs(5), false, &ask("max-stale=3")), Use::WhileRevalidating);
    assert_eq!(stale.judge(secs(5), false, &ask("max-age=2")), Use::Revalidate(Forward::Stale));
    assert_eq!(stale.judge(secs(11), false, &Ask::default()), Use::Revalidate(Forward::Stale));
}

#[test]
fn the_windows_of_an_outage() {
    let plain = facts(&[], &terms());
    let may =
        |age, is_push_back, ask: &Ask| plain.may_stand_in(secs(age), secs(age), is_push_back, &terms(), ask);
    assert_eq!(may(3600, false, &Ask::default()), Ok(()));
    assert_eq!(may(3601, false, &Ask::default()), Err(Refused::TooOld));
    assert_eq!(may(60, true, &Ask::default()), Ok(()));
    assert_eq!(may(61, true, &Ask::default()), Err(Refused::TooOld));
    let never = Ask::of(&headers(&[("seawall-stale", "never")]), true);
    assert_eq!(may(1, false, &never), Err(Refused::Asked));
    let incremental = Ask { is_incremental: true, ..Ask::default() };
    assert_eq!(may(1, false, &incremental), Err(Refused::Incremental));
    let bound = facts(&[("cache-control", "max-age=0, must-revalidate")], &terms());
    let refused = Err(Refused::Directive("must-revalidate"));
    assert_eq!(bound.may_stand_in(secs(1), secs(1), false, &terms(), &Ask::default()), refused);
    assert_eq!(bound.would_be_refused(&terms()), Some("must-revalidate"));
    let overriding = Terms { overrides_revalidation: true, ..terms() };
    assert_eq!(bound.may_stand_in(secs(1), secs(1), false, &overriding, &Ask::default()), Ok(()));
    assert_eq!(bound.would_be_refused(&overriding), None);
}

#[test]
fn the_envelopes_error_is_found_at_its_end_only() {
    let json = headers(&[("content-type", "application/json; charset=utf-8")]);
    let long = format!(r#"{{"data":"{}","error":{{"status":500}}}}"#, "x".repeat(9000));
    for (body, is_error) in [
        (r#"{"data":null,"error":{"status":503,"a":{"b":"}"}}}"#, true),
        ("{\"data\":null,\"error\" : {}\n}\n", true),
        (long.as_str(), true),
        (r#"{"data":null,"error":{"error":"x","status":500}}"#, true),
        (r#"{"data":null,"error":{"status":500,"error":{"a":null},"b":1}}"#, true),
        (r#"{"data":{"error":null},"error":{"errors":[{"error":1}]}}"#, true),
        (r#"{"data":{"a":"\"error\":{}}"},"error":null}"#, false),
        (r#"{"data":{},"error":null}"#, false),
        (r#"{"data":{"error":{"a":1}}}"#, false),
        (r#"{"data":{"error":{"a":1}},"error":null}"#, false),
        (r#"{"data":{"error":{"a":1},"b":1}}"#, false),
        (r#"{"data":{"error":{"a":1}"#, false),
        (r#"{"data":1}"#, false),
        ("", false),
    ] {
        assert_eq!(holds_error(&json, body.as_bytes()), is_error, "{body}");
    }
    let html = headers(&[("content-type", "text/html")]);
    assert!(!holds_error(&html, br#"{"data":null,"error":{}}"#));
}

/// The rows of the tables under a heading of docs/CACHE.md.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let document = include_str!("../../../docs/CACHE.md");
    let (_, section) = document.split_once(&format!("\n## {heading}\n")).expect("the heading is there");
    let section = section.split("\n## ").next().unwrap_or(section);
    let cells = |line: &str| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
    let is_row =
        |line: &&str| line.starts_with("| ") && !line.starts_with("| status") && !line.starts_with("| the ");
    section.lines().filter(is_row).map(cells).collect()
}

fn said(cell: &str) -> HeaderMap {
    let Some((name, value)) = cell.trim_matches('`').split_once(": ") else {
        assert_eq!(cell, "nothing");
        return HeaderMap::new();
    };
    let mut fields = HeaderMap::new();
    fields.insert(HeaderName::try_from(name).unwrap(), HeaderValue::from_str(value).unwrap());
    fields
}

fn span(cell: &str) -> Duration {
    let (number, unit) = cell.split_once(' ').unwrap();
    secs(number.parse::<u64>().unwrap() * if unit == "h" { 3600 } else { 1 })
}

#[test]
fn the_tables_of_the_document_hold() {
    let now = Timestamp::from_second(1_000_000).unwrap();
    let strict = Terms {
        is_shared: true,
        keeps_any_status: true,
        keeps_cookies: true,
        guesses_freshness: true,
        ..terms()
    };
    let table = rows("Storing");
    assert!(table.len() > 20);
    for row in &table {
        let status = StatusCode::from_bytes(&row[0].as_bytes()[..3]).unwrap();
        let has_credential = row[0].ends_with("with credentials");
        for (terms, expected) in [(terms(), &row[2]), (strict, &row[3])] {
            let is_kept = keep(status, &said(&row[1]), has_credential, now, now, &terms).is_ok();
            assert_eq!(is_kept, expected == "stored", "{row:?}");
        }
    }
    let table = rows("Freshness");
    assert!(table.len() > 15);
    for row in &table {
        let asked = if row[2] == "nothing" { Ask::default() } else { ask(row[2].trim_matches('`')) };
        let facts = Facts::of(StatusCode::OK, &said(&row[0]), now, now, &terms());
        let done = match facts.judge(span(&row[1]), false, &asked) {
            Use::Fresh => "use",
            Use::Tolerated => "use, stale",
            Use::WhileRevalidating => "use, refresh",
            Use::Revalidate(_) => "ask",
        };
        assert_eq!(done, row[3], "{row:?}");
    }
    let table = rows("Stale in an outage");
    assert!(table.len() > 8);
    for row in &table {
        for (overrides_revalidation, expected) in [(false, &row[2]), (true, &row[3])] {
            let terms = Terms { overrides_revalidation, ..terms() };
            let facts = Facts::of(StatusCode::OK, &said(&row[0]), now, now, &terms);
            let since = span(&row[1]);
            let done = facts.may_stand_in(since, since, false, &terms, &Ask::default());
            let done = done.map_or_else(Refused::as_str, |()| "stands in");
            assert_eq!(done, expected, "{row:?}");
        }
    }
}
