use super::*;
use http::HeaderValue;
use proptest::prelude::*;

fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
    fields
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
        .collect()
}

fn response(lines: &[&str]) -> ResponseDirectives {
    let fields: Vec<_> = lines.iter().map(|line| ("cache-control", *line)).collect();
    ResponseDirectives::parse(&map(&fields))
}

fn request(lines: &[&str]) -> RequestDirectives {
    let fields: Vec<_> = lines.iter().map(|line| ("cache-control", *line)).collect();
    RequestDirectives::parse(&map(&fields))
}

fn fields(names: &[&'static str]) -> Restriction {
    Restriction::Fields(names.iter().map(|name| HeaderName::from_static(name)).collect())
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[test]
fn every_response_directive_is_read() {
    let all = response(&[
        "max-age=1, s-maxage=2, stale-while-revalidate=3, stale-if-error=4",
        "no-cache, private, no-store, must-revalidate, proxy-revalidate",
        "PUBLIC, Immutable, must-understand, no-transform",
    ]);
    let expected = ResponseDirectives {
        max_age: Some(seconds(1)),
        s_maxage: Some(seconds(2)),
        stale_while_revalidate: Some(seconds(3)),
        stale_if_error: Some(seconds(4)),
        no_cache: Restriction::Whole,
        private: Restriction::Whole,
        no_store: true,
        must_revalidate: true,
        proxy_revalidate: true,
        public: true,
        immutable: true,
        must_understand: true,
        no_transform: true,
    };
    assert_eq!(all, expected);
    assert_eq!(response(&[]), ResponseDirectives::default());
    assert_eq!(
        response(&["", " , ,", "foo, bar=baz, x=\"no-store, max-age=5\""]),
        ResponseDirectives::default()
    );
}

#[test]
fn max_age_has_its_traps() {
    let cases: &[(&[&str], Option<u64>)] = &[
        (&["max-age=60"], Some(60)),
        (&["MAX-AGE=60"], Some(60)),
        (&["max-age=\"60\""], Some(60)),
        (&["max-age=\"6\\0\""], Some(60)),
        (&["max-age=0060"], Some(60)),
        (&["  max-age=60  ,public"], Some(60)),
        (&["public", "max-age=60"], Some(60)),
        (&["foo=\"a, b\\\", c\", max-age=60"], Some(60)),
        (&["max-age=2147483648"], Some(1 << 31)),
        (&["max-age=2147483649"], Some(1 << 31)),
        (&["max-age=99999999999999999999999"], Some(1 << 31)),
        // The smaller counts.
        (&["max-age=60, max-age=5"], Some(5)),
        (&["max-age=5", "max-age=60"], Some(5)),
        (&["max-age=60, max-age=x"], Some(0)),
        // No number is no time.
        (&["max-age"], Some(0)),
        (&["max-age="], Some(0)),
        (&["max-age=-1"], Some(0)),
        (&["max-age=+60"], Some(0)),
        (&["max-age=60.5"], Some(0)),
        (&["max-age=60a"], Some(0)),
        (&["max-age='60'"], Some(0)),
        (&["max-age=\"60"], Some(0)),
        (&["max-age=\"60\"x"], Some(0)),
        (&["max-age =60"], Some(0)),
        (&["max-age= 60"], Some(0)),
        (&["max-age=60 60"], Some(0)),
        (&["max-age=60;public"], Some(0)),
        // Another name.
        (&["x-max-age=60"], None),
        (&["max-age2=60"], None),
        (&["max_age=60"], None),
        (&["this-is-a-name-longer-than-any-we-know=60"], None),
        (&["x=\"max-age=60\""], None),
    ];
    for (lines, expected) in cases {
        assert_eq!(response(lines).max_age, expected.map(seconds), "{lines:?}");
    }
}

#[test]
fn restrictions_may_name_fields() {
    for (line, expected) in [
        ("no-cache", Restriction::Whole),
        ("no-cache=\"Set-Cookie\"", fields(&["set-cookie"])),
        ("no-cache=\"set-cookie, X-A\"", fields(&["set-cookie", "x-a"])),
        ("no-cache=set-cookie", fields(&["set-cookie"])),
        ("no-cache=\"a\", no-cache=\"b\"", fields(&["a", "b"])),
        ("no-cache=\"a\", no-cache", Restriction::Whole),
        ("no-cache, no-cache=\"a\"", Restriction::Whole),
        ("no-cache=\"\"", Restriction::Whole),
        ("no-cache=\"a b\"", Restriction::Whole),
        ("no-cache=\"a", Restriction::Whole),
        ("no-cache =a", Restriction::Whole),
        ("private=\"no-cache\"", Restriction::Absent),
    ] {
        assert_eq!(response(&[line]).no_cache, expected, "{line}");
    }
    assert_eq!(response(&["private=\"x\""]).private, fields(&["x"]));
    assert!(fields(&["a"]).is_present() && !Restriction::Absent.is_present());
}

#[test]
fn stale_is_forbidden_by_some() {
    for (line, private, shared) in [
        ("max-age=1", false, false),
        ("must-revalidate", true, true),
        ("no-cache", true, true),
        ("no-cache=\"a\"", false, false),
        ("proxy-revalidate", false, true),
        ("s-maxage=1", false, true),
    ] {
        let directives = response(&[line]);
        assert_eq!(
            (directives.forbids_stale(false), directives.forbids_stale(true)),
            (private, shared),
            "{line}"
        );
    }
}

#[test]
fn every_request_directive_is_read() {
    let all = request(&[
        "max-age=1, max-stale=2, min-fresh=3, stale-if-error=4",
        "no-cache, no-store, only-if-cached, no-transform",
    ]);
    let expected = RequestDirectives {
        max_age: Some(seconds(1)),
        max_stale: Some(seconds(2)),
        min_fresh: Some(seconds(3)),
        stale_if_error: Some(seconds(4)),
        no_cache: true,
        no_store: true,
        only_if_cached: true,
        no_transform: true,
    };
    assert_eq!(all, expected);
    for (line, expected) in [
        ("max-stale", Some(Duration::MAX)),
        ("max-stale, max-stale=5", Some(seconds(5))),
        ("max-stale=x", Some(Duration::ZERO)),
        ("min-fresh=5", None),
    ] {
        assert_eq!(request(&[line]).max_stale, expected, "{line}");
    }
    for (line, expected) in [("min-fresh=5, min-fresh=9", Some(seconds(9))), ("min-fresh=x", Some(MOST))] {
        assert_eq!(request(&[line]).min_fresh, expected, "{line}");
    }
    assert_eq!(request(&["max-age=x"]).max_age, Some(Duration::ZERO));
}

#[test]
fn pragma_counts_only_alone() {
    for (fields, expected) in [
        (&[("pragma", "no-cache")][..], true),
        (&[("pragma", "x, No-Cache")], true),
        (&[("pragma", "no-cache"), ("cache-control", "max-age=5")], false),
        (&[("pragma", "no-cache"), ("cache-control", "")], false),
        (&[("pragma", "cache")], false),
    ] {
        assert_eq!(RequestDirectives::parse(&map(fields)).no_cache, expected, "{fields:?}");
    }
    assert_eq!(ResponseDirectives::parse(&map(&[("pragma", "no-cache")])), ResponseDirectives::default());
}

#[test]
fn targeted_fields_are_apart() {
    let cdn = HeaderName::from_static("cdn-cache-control");
    let headers = map(&[("cdn-cache-control", "max-age=5"), ("cache-control", "no-store")]);
    let targeted = ResponseDirectives::parse_targeted(&headers, &cdn).unwrap();
    assert_eq!((targeted.max_age, targeted.no_store), (Some(seconds(5)), false));
    assert_eq!(ResponseDirectives::parse_targeted(&map(&[("cdn-cache-control", " ")]), &cdn), None);
    assert_eq!(ResponseDirectives::parse_targeted(&map(&[]), &cdn), None);
}

#[test]
fn freshness_is_computed() {
    let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
    let later = ("expires", "Sun, 06 Nov 1994 08:50:37 GMT");
    // What we hold by our own clock, a minute before the origin's.
    let arrived = at("1994-11-06T08:48:37Z");
    type Fields<'a> = &'a [(&'static str, &'a str)];
    let cases: &[(Fields<'_>, Option<u64>, Option<u64>)] = &[
        (&[], None, None),
        (&[date], None, None),
        (&[("cache-control", "max-age=5")], Some(5), Some(5)),
        (&[("cache-control", "max-age=5, s-maxage=9")], Some(5), Some(9)),
        (&[("cache-control", "s-maxage=9")], None, Some(9)),
        (&[("cache-control", "s-maxage=9"), date, later], Some(60), Some(9)),
        (&[("cache-control", "max-age=5"), date, later], Some(5), Some(5)),
        (&[("cache-control", "max-age=x"), date, later], Some(0), Some(0)),
        (&[("cache-control", "public"), date, later], Some(60), Some(60)),
        (&[later], Some(120), Some(120)),
        (&[("date", "nonsense"), later], Some(120), Some(120)),
        (&[date, ("expires", "0")], Some(0), Some(0)),
        (&[date, ("expires", "Sun, 06 Nov 1994 08:49:00 GMT")], Some(0), Some(0)),
        (&[date, later, later], Some(60), Some(60)),
        (&[date, later, ("expires", "Sun, 06 Nov 1994 08:55:37 GMT")], Some(0), Some(0)),
        (&[date, ("expires", "Sun, 06 Nov 1994 08:50:37 UTC")], Some(0), Some(0)),
    ];
    for (fields, private, shared) in cases {
        let headers = map(fields);
        assert_eq!(freshness_lifetime(&headers, false, arrived), private.map(seconds), "{fields:?}");
        assert_eq!(freshness_lifetime(&headers, true, arrived), shared.map(seconds), "{fields:?}");
    }
}

#[test]
fn ages_are_read() {
    for (lines, expected) in [
        (&[][..], None),
        (&["0"], Some(0)),
        (&["7200"], Some(7200)),
        (&["7200, 0"], Some(7200)),
        (&["0", "7200"], Some(0)),
        (&["99999999999999"], Some(1 << 31)),
        (&["-5"], None),
        (&["1.5"], None),
        (&["5s"], None),
        (&["5;a=b"], None),
        (&["\"5\""], None),
    ] {
        let fields: Vec<_> = lines.iter().map(|line| ("age", *line)).collect();
        assert_eq!(age_of(&map(&fields)), expected.map(seconds), "{lines:?}");
    }
}

#[test]
fn ages_add_up() {
    let sent = at("1994-11-06T08:49:37Z");
    let arrived = at("1994-11-06T08:49:40Z");
    for (fields, expected) in [
        (&[][..], 3),
        (&[("age", "10")], 13),
        (&[("date", "Sun, 06 Nov 1994 08:49:37 GMT")], 3),
        (&[("date", "Sun, 06 Nov 1994 08:48:40 GMT")], 60),
        (&[("date", "Sun, 06 Nov 1994 08:48:40 GMT"), ("age", "100")], 103),
        // A clock ahead of ours makes nothing younger.
        (&[("date", "Sun, 06 Nov 1994 08:59:37 GMT"), ("age", "10")], 13),
        (&[("date", "nonsense"), ("age", "nonsense")], 3),
    ] {
        assert_eq!(initial_age(&map(fields), sent, arrived), seconds(expected), "{fields:?}");
    }
    // Our own clock went back while we waited.
    assert_eq!(initial_age(&map(&[("age", "10")]), arrived, sent), seconds(10));
    assert_eq!(current_age(seconds(13), arrived, at("1994-11-06T08:50:00Z")), Some(seconds(33)));
    assert_eq!(current_age(seconds(13), arrived, arrived), Some(seconds(13)));
    assert_eq!(current_age(seconds(13), arrived, sent), None);
}

proptest! {
    #[test]
    fn nothing_makes_it_panic(
        line in "[ -~\t]{0,40}",
        directives in "((max-age|no-cache|private|s-maxage)(=|=\"|)[0-9a-z\\\\\" ,]{0,6},?){0,6}",
    ) {
        let now = Timestamp::UNIX_EPOCH;
        for text in [line, directives] {
            let headers = map(&[("cache-control", &text), ("expires", &text), ("age", &text), ("date", &text)]);
            let _ = RequestDirectives::parse(&headers);
            let _ = freshness_lifetime(&headers, true, now);
            let _ = initial_age(&headers, now, now);
        }
    }
}
