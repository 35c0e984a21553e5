use super::*;

fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
    fields
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
        .collect()
}

#[test]
fn hop_by_hop_fields_are_removed() {
    let kept = &[("host", "seawall"), ("content-length", "3"), ("accept", "*/*"), ("x-other", "1")][..];
    let cases: &[&[(&str, &str)]] = &[
        &[],
        &[("connection", "keep-alive"), ("keep-alive", "timeout=5")],
        &[("connection", "close, X-Private"), ("x-private", "a")],
        &[
            ("connection", "close"),
            ("connection", " ,x-private ,\tX-SECOND"),
            ("x-private", "a"),
            ("x-second", "b"),
        ],
        &[("connection", "not a name, x-private"), ("x-private", "a"), ("x-private", "b")],
        &[("connection", "host, content-length")],
        &[
            ("proxy-connection", "keep-alive"),
            ("proxy-authenticate", "Basic"),
            ("proxy-authorization", "Basic Zm9v"),
            ("proxy-authentication-info", "x"),
            ("te", "trailers"),
            ("trailer", "digest"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
        ],
    ];
    for case in cases {
        let mut headers = map(kept);
        headers.extend(map(case));
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers, map(kept), "{case:?}");
    }
}

#[test]
fn what_goes_to_the_other_side_is_end_to_end_and_not_for_us() {
    let mut headers = map(&[
        ("connection", "x-private"),
        ("x-private", "a"),
        ("te", "trailers"),
        ("content-length", "3"),
        ("host", "seawall"),
        ("expect", "100-continue"),
        ("authorization", "Bearer t"),
        ("seawall-token", "secret"),
        ("prefer", "wait=3, respond-async"),
        ("accept", "*/*"),
    ]);
    strip_for_upstream(&mut headers);
    assert_eq!(headers, map(&[("prefer", "respond-async"), ("accept", "*/*")]));

    for (is_framed_anew, length) in [(true, None), (false, Some("3"))] {
        let mut headers = map(&[
            ("connection", "x-private"),
            ("x-private", "a"),
            ("content-length", "3"),
            ("seawall-source", "cache"),
            ("idempotent-replayed", "true"),
            ("etag", "\"1\""),
        ]);
        strip_for_caller(&mut headers, is_framed_anew);
        assert_eq!(
            headers.remove("content-length").as_ref().map(HeaderValue::as_bytes),
            length.map(str::as_bytes)
        );
        assert_eq!(headers, map(&[("etag", "\"1\"")]));
    }
}

#[test]
fn what_describes_the_old_content_is_removed_with_it() {
    let mut headers = map(&[
        ("content-length", "3"),
        ("content-digest", "sha-256=:x:"),
        ("repr-digest", "sha-256=:x:"),
        ("digest", "x"),
        ("content-md5", "x"),
        ("accept-ranges", "bytes"),
        ("etag", "\"1\""),
    ]);
    strip_for_changed_content(&mut headers);
    assert_eq!(headers, map(&[("etag", "\"1\"")]));
}

#[test]
fn framing_is_removed() {
    let mut headers = map(&[
        ("content-length", "3"),
        ("transfer-encoding", "chunked"),
        ("trailer", "x"),
        ("etag", "\"1\""),
    ]);
    strip_framing(&mut headers);
    assert_eq!(headers, map(&[("etag", "\"1\"")]));
}

#[test]
fn fields_of_ours_do_not_pass() {
    let mut headers = map(&[
        ("seawall-token", "secret"),
        ("seawall-anything", "1"),
        ("seawall-anything", "2"),
        ("prefer", "wait=3, respond-async"),
        ("idempotency-key", "k"),
        ("authorization", "Bearer t"),
    ]);
    strip_seawall_request(&mut headers);
    assert_eq!(
        headers,
        map(&[("prefer", "respond-async"), ("idempotency-key", "k"), ("authorization", "Bearer t")])
    );

    let mut headers = map(&[
        ("seawall-source", "cache"),
        ("idempotent-replayed", "true"),
        ("preference-applied", "wait=3"),
        ("seawallish", "1"),
        ("cache-status", "edge; hit"),
    ]);
    strip_for_caller(&mut headers, false);
    assert_eq!(headers, map(&[("seawallish", "1"), ("cache-status", "edge; hit")]));
}

#[test]
fn request_ids_are_checked() {
    for (id, is_valid) in [
        (&b"a"[..], true),
        (b"3f2b-77.x:~!", true),
        (&[b'x'; 128], true),
        (&[b'x'; 129], false),
        (b"", false),
        (b"a b", false),
        (b"a\tb", false),
        (b"a\x7f", false),
        (b"caf\xc3\xa9", false),
    ] {
        assert_eq!(is_valid_request_id(id), is_valid, "{id:?}");
    }
}

#[test]
fn framing_is_checked() {
    use http::Version as V;
    let h = ("host", "seawall:8460");
    type Fields<'a> = &'a [(&'static str, &'a str)];
    let cases: &[(V, Fields<'_>, &str, Option<&str>)] = &[
        (V::HTTP_11, &[h], "/a", None),
        (V::HTTP_11, &[h, ("content-length", "3")], "/a", None),
        (V::HTTP_11, &[h, ("content-length", "3"), ("content-length", "3")], "/a", None),
        (V::HTTP_11, &[h, ("transfer-encoding", "Chunked")], "/a", None),
        (
            V::HTTP_11,
            &[h, ("transfer-encoding", "chunked"), ("content-length", "3")],
            "/a",
            Some("Transfer-Encoding"),
        ),
        (V::HTTP_11, &[h, ("transfer-encoding", "gzip, chunked")], "/a", Some("Transfer-Encoding")),
        (V::HTTP_11, &[h, ("transfer-encoding", "chunked, chunked")], "/a", Some("Transfer-Encoding")),
        (V::HTTP_11, &[h, ("transfer-encoding", "xchunked")], "/a", Some("Transfer-Encoding")),
        (V::HTTP_11, &[h, ("transfer-encoding", "")], "/a", Some("Transfer-Encoding")),
        (
            V::HTTP_11,
            &[h, ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            "/a",
            Some("Transfer-Encoding"),
        ),
        (V::HTTP_10, &[h, ("transfer-encoding", "chunked")], "/a", Some("Transfer-Encoding")),
        (V::HTTP_2, &[h, ("transfer-encoding", "chunked")], "/a", Some("Transfer-Encoding")),
        (V::HTTP_11, &[h, ("content-length", "3"), ("content-length", "4")], "/a", Some("Content-Length")),
        (V::HTTP_11, &[h, ("content-length", "3, 3")], "/a", Some("Content-Length")),
        (V::HTTP_11, &[h, ("content-length", "+3")], "/a", Some("Content-Length")),
        (V::HTTP_11, &[h, ("content-length", "-3")], "/a", Some("Content-Length")),
        (V::HTTP_11, &[h, ("content-length", "")], "/a", Some("Content-Length")),
        (V::HTTP_11, &[h, ("content-length", "0x3")], "/a", Some("Content-Length")),
        (V::HTTP_11, &[h, ("content-length", "99999999999999999999")], "/a", Some("Content-Length")),
        (V::HTTP_11, &[], "/a", Some("Host")),
        (V::HTTP_11, &[h, h], "/a", Some("Host")),
        (V::HTTP_11, &[h, ("host", "other")], "/a", Some("Host")),
        (V::HTTP_11, &[("host", "")], "/a", Some("Host")),
        (V::HTTP_11, &[h], "http://other/a", None),
        (V::HTTP_10, &[], "/a", None),
        (V::HTTP_2, &[], "/a", Some("Host")),
        (V::HTTP_2, &[], "http://seawall:8460/a", None),
        (V::HTTP_2, &[h], "/a", None),
        (V::HTTP_2, &[h], "http://SEAWALL:8460/a", None),
        (V::HTTP_2, &[h], "http://other/a", Some("Host")),
    ];
    for (version, fields, uri, expected) in cases {
        let result = validate_request(*version, &map(fields), &uri.parse().unwrap());
        assert_eq!(result.err().map(|error| error.field), *expected, "{version:?} {fields:?} {uri}");
    }
}

#[test]
fn hosts_are_checked() {
    for (host, fits) in [
        ("seawall", true),
        ("a.b-c_d~.example:80", true),
        ("127.0.0.1:8460", true),
        ("[::1]", true),
        ("[::ffff:1.2.3.4]:8460", true),
        ("name:", true),
        ("xn--bcher-kva.example", true),
        ("a b", false),
        ("a,b", false),
        ("user@host", false),
        ("host/path", false),
        ("host?x", false),
        ("host#x", false),
        ("host\\x", false),
        ("host:80:80", false),
        ("host:8a", false),
        ("host:123456", false),
        (":80", false),
        ("[::1", false),
        ("[]", false),
        ("[g]", false),
        ("[::1]x", false),
        ("<host>", false),
    ] {
        assert_eq!(is_host(host.as_bytes()), fits, "{host}");
    }
    assert!(!is_host(b"caf\xc3\xa9"));
}

#[test]
fn a_framing_error_names_its_field() {
    let error = FramingError { field: "Host", message: "came more than once; send one" };
    assert_eq!(error.to_string(), "Host: came more than once; send one");
    assert!(matches!(ProxyError::from(error), ProxyError::BadRequest { field: "Host", .. }));
}

#[test]
fn lists_are_split_at_commas_outside_quotes() {
    let split = |line: &'static str| {
        members(line.as_bytes()).map(|part| std::str::from_utf8(part).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(split("a, b ,,c"), ["a", "b", "c"]);
    assert_eq!(split(r#"a="x,y", b="\",", c"#), [r#"a="x,y""#, r#"b="\",""#, "c"]);
    assert_eq!(split(r#"a="x, y"#), [r#"a="x, y"#]);
    assert_eq!(split(" , "), [""; 0]);
}

#[test]
fn seconds_are_whole_and_bounded() {
    for (text, expected) in [
        ("0", Some(0)),
        ("60", Some(60)),
        ("2147483648", Some(1 << 31)),
        ("99999999999999999999999", Some(1 << 31)),
    ] {
        assert_eq!(delta_seconds(text.as_bytes()), expected, "{text}");
    }
    for text in ["", "-1", "+1", "1.0", " 1", "1s", "\"1\""] {
        assert_eq!(delta_seconds(text.as_bytes()), None, "{text}");
    }
}

#[test]
fn json_is_told_by_its_media_type() {
    for (text, is) in [
        ("application/json", true),
        ("application/JSON; charset=utf-8", true),
        ("application/problem+json", true),
        ("application/jsonl", false),
        ("text/html", false),
        ("+json", false),
    ] {
        assert_eq!(is_json(Some(&HeaderValue::from_static(text))), is, "{text}");
    }
    assert!(!is_json(None));
}
