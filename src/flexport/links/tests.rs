use super::*;

/// The keys whose values are links.
const KEYS: [&[u8]; 5] = [b"self", b"prev", b"next", b"link", b"file_link"];
use proptest::prelude::*;
use serde_json::{Value, json};

const OURS: &str = "http://127.0.0.1:8460";
const FLEXPORT: &str = "https://api.flexport.com";

fn bases() -> Arc<Bases> {
    Arc::new(Bases::new(FLEXPORT, &[], OURS))
}

fn several() -> Arc<Bases> {
    let more =
        ["http://sim.test:9/v".to_owned(), "https://api.flexport.com/v2".to_owned(), "https://a".to_owned()];
    Arc::new(Bases::new(FLEXPORT, &more, OURS))
}

fn rewrite(bases: &Arc<Bases>, chunks: &[&[u8]]) -> Vec<u8> {
    let mut rewriter = Rewriter::new(Arc::clone(bases));
    let mut whole = Vec::new();
    let mut out = |data: Bytes| {
        assert!(!data.is_empty());
        whole.extend_from_slice(&data);
    };
    for chunk in chunks {
        rewriter.push(Bytes::copy_from_slice(chunk), &mut out);
        assert!(rewriter.held.len() <= rewriter.bases.longest + LOOK_AHEAD);
    }
    rewriter.finish(&mut out);
    whole
}

/// The rules once more, without search, streaming or look back.
fn reference(body: &[u8], bases: &[&str], ours: &str) -> Vec<u8> {
    let mut all: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for base in bases {
        all.push((base.as_bytes().to_vec(), ours.as_bytes().to_vec()));
        all.push((base.replace('/', "\\/").into_bytes(), ours.replace('/', "\\/").into_bytes()));
    }
    all.sort_by_key(|(base, _)| std::cmp::Reverse(base.len()));
    let mut out = Vec::new();
    let mut at = 0;
    'body: while at < body.len() {
        for (base, ours) in &all {
            let Some(rest) = body[at..].strip_prefix(&base[..]) else { continue };
            let bounded = [&b"/"[..], b"?", b"#", b"\"", b"\\/"].iter().any(|end| rest.starts_with(end));
            if bounded && is_value_of_link(&body[..at]) {
                out.extend_from_slice(ours);
                at += base.len();
                continue 'body;
            }
        }
        out.push(body[at]);
        at += 1;
    }
    out
}

fn is_value_of_link(before: &[u8]) -> bool {
    for key in ["self", "prev", "next", "link", "file_link"] {
        for left in 0..=64 {
            let head = format!("\"{key}\"");
            let Some(start) = before.iter().rposition(|byte| *byte == b':') else { return false };
            let (name, value) = before.split_at(start);
            let spaces = value.len().saturating_sub(2);
            let is_space = |text: &[u8]| text.iter().all(|byte| b" \t\r\n".contains(byte));
            if value.last() != Some(&b'"')
                || value.len() < 2
                || !is_space(&value[1..=spaces])
                || left + spaces > 64
            {
                continue;
            }
            let Some((name, space)) = name.split_at_checked(name.len().wrapping_sub(left)) else { continue };
            if is_space(space)
                && name.ends_with(head.as_bytes())
                && !name[..name.len() - head.len()].ends_with(b"\\")
            {
                return true;
            }
        }
    }
    false
}

fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

fn cut<'a>(body: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = cuts.iter().map(|at| at % (body.len() + 1)).collect();
    places.sort_unstable();
    let mut chunks = Vec::new();
    let mut from = 0;
    for at in places {
        chunks.push(&body[from..at]);
        from = at;
    }
    chunks.push(&body[from..]);
    chunks
}

#[test]
fn links_are_rewritten_and_nothing_else() {
    let space = " ".repeat(64);
    let cases: Vec<(String, String)> = [
        (
            r#"{"self":"https://api.flexport.com/bookings/1"}"#,
            r#"{"self":"http://127.0.0.1:8460/bookings/1"}"#,
        ),
        (r#"{"prev":"https://api.flexport.com"}"#, r#"{"prev":"http://127.0.0.1:8460"}"#),
        (r#"{"next":"https://api.flexport.com?page=2"}"#, r#"{"next":"http://127.0.0.1:8460?page=2"}"#),
        (r#"{"link":"https://api.flexport.com#x"}"#, r#"{"link":"http://127.0.0.1:8460#x"}"#),
        (r#"{"file_link":"https://api.flexport.com/"}"#, r#"{"file_link":"http://127.0.0.1:8460/"}"#),
        (
            "{\"self\" \t\r\n:\n \"https://api.flexport.com/a\"}",
            "{\"self\" \t\r\n:\n \"http://127.0.0.1:8460/a\"}",
        ),
        (r#"{"self":"https:\/\/api.flexport.com\/a"}"#, r#"{"self":"http:\/\/127.0.0.1:8460\/a"}"#),
        (r#"{"self":"https:\/\/api.flexport.com"}"#, r#"{"self":"http:\/\/127.0.0.1:8460"}"#),
        (r#"{"self":"https://api.flexport.com\/a"}"#, r#"{"self":"http://127.0.0.1:8460\/a"}"#),
        (
            r#"[{"link":"https://api.flexport.com/a"},{"link":"https://api.flexport.com/b"}]"#,
            r#"[{"link":"http://127.0.0.1:8460/a"},{"link":"http://127.0.0.1:8460/b"}]"#,
        ),
        (r#""self":"https://api.flexport.com/a""#, r#""self":"http://127.0.0.1:8460/a""#),
    ]
    .map(|(body, expected)| (body.to_owned(), expected.to_owned()))
    .into_iter()
    .chain([(
        format!(r#"{{"self"{space}:"https://api.flexport.com/a"}}"#),
        format!(r#"{{"self"{space}:"http://127.0.0.1:8460/a"}}"#),
    )])
    .chain(
        [
            // Another host, another scheme, a longer port.
            r#"{"self":"https://api.flexport.com.evil.test/a"}"#,
            r#"{"self":"https://api.flexport.community/a"}"#,
            r#"{"self":"http://api.flexport.com/a"}"#,
            r#"{"self":"https://api.flexport.com:8443/a"}"#,
            r#"{"self":"https://api.flexport.com@evil.test/a"}"#,
            r#"{"self":"https://api.flexport.com\u002fa"}"#,
            // Not at the beginning of its string, or half escaped.
            r#"{"self":" https://api.flexport.com/a"}"#,
            r#"{"self":"/x?u=https://api.flexport.com/a"}"#,
            r#"{"self":"https:/\/api.flexport.com/a"}"#,
            // Another key, or no value of a key.
            r#"{"url":"https://api.flexport.com/a"}"#,
            r#"{"itself":"https://api.flexport.com/a"}"#,
            r#"{"Self":"https://api.flexport.com/a"}"#,
            r#"{"download_link":"https://api.flexport.com/a"}"#,
            r#"{"x\"self":"https://api.flexport.com/a"}"#,
            r#"{"self":["https://api.flexport.com/a"]}"#,
            r#"["self","https://api.flexport.com/a"]"#,
            r#"{"https://api.flexport.com/a":"self"}"#,
            r#"{"note":"\"self\":\"https://api.flexport.com/a\""}"#,
            r#"{"note":"self: https://api.flexport.com/a"}"#,
            r#""https://api.flexport.com/a""#,
            // Cut short.
            r#"{"self":"https://api.flexport.com"#,
            r#"{"self":"https://api.flexport.com\"#,
            r#"{"self":"https://api.flex"#,
            r#"{"self":""#,
            "",
        ]
        .map(|body| (body.to_owned(), body.to_owned())),
    )
    .chain([format!(r#"{{"self" {space}:"https://api.flexport.com/a"}}"#)].map(|body| (body.clone(), body)))
    .collect();
    for (body, expected) in cases {
        let whole = rewrite(&bases(), &[body.as_bytes()]);
        assert_eq!(String::from_utf8(whole).unwrap(), expected, "{body}");
        assert_eq!(reference(body.as_bytes(), &[FLEXPORT], OURS), expected.as_bytes(), "reference: {body}");
        for at in 0..=body.len() {
            let (one, two) = body.as_bytes().split_at(at);
            assert_eq!(rewrite(&bases(), &[one, two]), expected.as_bytes(), "{body} cut at {at}");
        }
        let bytes: Vec<&[u8]> = body.as_bytes().chunks(1).collect();
        assert_eq!(rewrite(&bases(), &bytes), expected.as_bytes(), "{body} byte by byte");
    }
}

#[test]
fn bases_are_normalized() {
    let body = r#"{"self":"https://api.flexport.com/up/a"}"#;
    for (base, ours, expected) in [
        ("https://api.flexport.com/", "http://s/", r#"{"self":"http://s/up/a"}"#),
        ("HTTPS://API.flexport.com:443//", "http://s", r#"{"self":"http://s/up/a"}"#),
        ("https://api.flexport.com/up", "http://s", r#"{"self":"http://s/a"}"#),
        ("https://api.flexport.com/up/", "http://s/pre/", r#"{"self":"http://s/pre/a"}"#),
        ("https://api.flexport.com/u", "http://s", body),
        ("https://api.flexport.com", "https://api.flexport.com/", body),
        ("api.flexport.com", "http://s", body),
        ("https://", "http://s", body),
        ("", "http://s", body),
    ] {
        let bases = Arc::new(Bases::new(base, &[], ours));
        assert_eq!(String::from_utf8(rewrite(&bases, &[body.as_bytes()])).unwrap(), expected, "{base}");
    }
    assert!(Bases::new(FLEXPORT, &["https://api.flexport.com/".to_owned()], FLEXPORT).is_noop());
}

#[test]
fn the_longest_base_counts() {
    let prefix = ["https://api.flexport.com/v2".to_owned()];
    // Our own URL is the longer one: what begins with it is right already.
    let bases = Arc::new(Bases::new(FLEXPORT, &prefix, "https://api.flexport.com/v2"));
    let body = br#"{"self":"https://api.flexport.com/v2/a","next":"https://api.flexport.com/b"}"#;
    let expected = br#"{"self":"https://api.flexport.com/v2/a","next":"https://api.flexport.com/v2/b"}"#;
    for at in 0..=body.len() {
        let (one, two) = body.split_at(at);
        assert_eq!(rewrite(&bases, &[one, two]), expected, "{at}");
    }
    let body = br#"{"self":"https://api.flexport.com/v2/a","next":"https://api.flexport.com/v21","link":"https://a"}"#;
    let expected =
        br#"{"self":"http://127.0.0.1:8460/a","next":"http://127.0.0.1:8460/v21","link":"http://127.0.0.1:8460"}"#;
    for at in 0..=body.len() {
        let (one, two) = body.split_at(at);
        assert_eq!(rewrite(&several(), &[one, two]), expected, "{at}");
    }
}

#[test]
fn what_has_no_link_is_not_copied() {
    let body = Bytes::from(r#"{"id":1,"text":"https://api.flexport.com/a"}"#);
    let mut parts = Vec::new();
    let mut rewriter = Rewriter::new(bases());
    rewriter.push(body.clone(), &mut |data| parts.push(data));
    rewriter.finish(&mut |data| parts.push(data));
    assert_eq!(parts, std::slice::from_ref(&body));
    assert_eq!(parts[0].as_ptr(), body.as_ptr());
}

#[test]
fn locations_are_rewritten() {
    let several = several();
    for (location, expected) in [
        ("https://api.flexport.com/bookings/1?x#y", Some("http://127.0.0.1:8460/bookings/1?x#y")),
        ("https://api.flexport.com", Some("http://127.0.0.1:8460")),
        ("https://api.flexport.com?x", Some("http://127.0.0.1:8460?x")),
        ("HTTPS://Api.Flexport.com/A", Some("http://127.0.0.1:8460/A")),
        ("https://api.flexport.com/v2/a", Some("http://127.0.0.1:8460/a")),
        ("https://api.flexport.com/V2/a", Some("http://127.0.0.1:8460/V2/a")),
        ("https://api.flexport.com.evil.test/a", None),
        ("https://api.flexport.com:8443/a", None),
        ("http://api.flexport.com/a", None),
        ("/bookings/1", None),
        ("//api.flexport.com/a", None),
        ("", None),
    ] {
        let location = HeaderValue::from_static(location);
        let expected = expected.map(HeaderValue::from_static);
        assert_eq!(several.rewrite_location(&location), expected, "{location:?}");
    }
    let identity = Bases::new(FLEXPORT, &[], FLEXPORT);
    assert_eq!(identity.rewrite_location(&HeaderValue::from_static("https://api.flexport.com/a")), None);
}

/// Bodies made of pieces that nearly are links.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(vec![
        "\"self\":\"",
        "\"file_link\" : \"",
        "\"next\":",
        "\"link\"",
        "\"url\":\"",
        "\"",
        "\\",
        "/",
        "\\/",
        ":",
        " ",
        "\n                                ",
        "?",
        "#",
        "x",
        "https:",
        "https://",
        "https:\\/\\/",
        "api.flexport.com",
        "api.flex",
        "port.com",
        "https://api.flexport.com",
        "https:\\/\\/api.flexport.com",
        "https:\\/\\/api.flexport.com\\/v2",
        "/v2",
        "http://sim.test:9/v",
        "https://a",
        "self",
        ",",
        "{",
        "}",
    ]);
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat().into_bytes())
}

/// Whole links with noise between them.
fn link_bodies() -> impl Strategy<Value = Vec<u8>> {
    let link = (
        prop::sample::select(vec!["self", "prev", "next", "link", "file_link", "url", "x\\\"self"]),
        prop::sample::select(vec!["", " ", "\n\t", "                                  "]),
        prop::sample::select(vec![
            FLEXPORT,
            "https:\\/\\/api.flexport.com",
            "https://api.flexport.com/v2",
            "http://sim.test:9/v",
            "https://a",
            "https://b",
        ]),
        prop::sample::select(vec!["", "/a/1", "?q=\\\"", "#f", "\\/x", ".evil", "\\\\/", ":1"]),
    )
        .prop_map(|(key, space, base, rest)| format!("\"{key}\"{space}:{space}\"{base}{rest}\""));
    prop::collection::vec(link, 0..12).prop_map(|links| format!("{{{}}}", links.join(",")).into_bytes())
}

fn json_values() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        "[a-z\"\\\\/ é]{0,12}",
        (prop::sample::select(vec![FLEXPORT, "https://other.test"]), "[/?#.a][a-z\"\\\\/é]{0,8}")
            .prop_map(|(base, rest)| format!("{base}{rest}")),
        Just(FLEXPORT.to_owned()),
        Just(r#""self":"https://api.flexport.com/a""#.to_owned()),
    ];
    let key = prop::sample::select(vec!["self", "next", "file_link", "data", "a\"self", "link\\"]);
    let leaf = prop_oneof![Just(Value::Null), any::<i32>().prop_map(Value::from), text.prop_map(Value::from)];
    leaf.prop_recursive(4, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..6)
                .prop_map(|fields| fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ]
    })
}

/// The rules as they are meant, on the tree.
fn rewrite_tree(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(rewrite_tree),
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(text) if KEYS.contains(&key.as_bytes()) => {
                        if let Some(rest) = text.strip_prefix(FLEXPORT)
                            && (rest.is_empty() || rest.starts_with(['/', '?', '#']))
                        {
                            *text = format!("{OURS}{rest}");
                        }
                    }
                    _ => rewrite_tree(value),
                }
            }
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn chunking_does_not_matter(
        body in prop_oneof![pieces(), link_bodies()],
        cuts in prop::collection::vec(any::<usize>(), 0..12),
        is_bytewise in any::<bool>(),
    ) {
        let names = [FLEXPORT, "http://sim.test:9/v", "https://api.flexport.com/v2", "https://a"];
        for (bases, names) in [(bases(), &names[..1]), (several(), &names[..])] {
            let expected = reference(&body, names, OURS);
            let chunks = if is_bytewise { body.chunks(1).collect() } else { cut(&body, &cuts) };
            prop_assert_eq!(lossy(&rewrite(&bases, &chunks)), lossy(&expected));
            prop_assert_eq!(lossy(&rewrite(&bases, &[&body])), lossy(&expected));
        }
    }

    #[test]
    fn json_is_rewritten_as_its_tree(
        value in json_values(),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
        is_pretty in any::<bool>(),
        is_escaped in any::<bool>(),
    ) {
        let mut text = if is_pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
        if is_escaped {
            text = text.replace('/', "\\/");
        }
        let mut expected = value;
        rewrite_tree(&mut expected);
        let rewritten = rewrite(&bases(), &cut(text.as_bytes(), &cuts));
        prop_assert_eq!(serde_json::from_slice::<Value>(&rewritten).unwrap(), expected);
    }
}

#[test]
fn a_whole_page_is_rewritten() {
    let rows: Vec<Value> = (0..500)
        .map(|id| json!({"id": id, "self": format!("{FLEXPORT}/shipments/{id}"), "legs": {"link": format!("{FLEXPORT}/legs?f.shipment.id={id}")}}))
        .collect();
    let mut page =
        json!({"_object": "/api/response", "self": format!("{FLEXPORT}/shipments?page=1"), "data": rows});
    let body = page.to_string();
    rewrite_tree(&mut page);
    for size in [1, 7, 1_000, 16_384, body.len()] {
        let chunks: Vec<&[u8]> = body.as_bytes().chunks(size).collect();
        assert_eq!(serde_json::from_slice::<Value>(&rewrite(&bases(), &chunks)).unwrap(), page, "{size}");
    }
}
