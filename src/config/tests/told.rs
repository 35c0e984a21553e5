//! What is told: reloads and what made them, values with their origins, the JSON Schema, the reference.

use super::*;

#[test]
fn files_are_watched_through_renames_swapped_links_and_mistakes() {
    let folder = Folder::new();
    let outdated = |live: &Live| {
        let first = live.is_outdated();
        assert!(!first, "one look is not enough");
        live.is_outdated()
    };
    let live = Live::load(folder.args("cache.max_stale = \"1h\"", &[], &[])).unwrap();
    assert!(!outdated(&live));

    // An editor's atomic rename, with a file of the same length.
    folder.write("new", "cache.max_stale = \"2h\"");
    std::fs::rename(folder.path("new"), folder.path("proxy.toml")).unwrap();
    assert!(outdated(&live));
    reload(&live, Trigger::File).unwrap();
    assert_eq!(live.current().settings.cache.max_stale.to_string(), "2h");

    // Kubernetes: the file is a link into a folder that is a link, which is swapped.
    for (version, text) in [("..v1", "cache.max_stale = \"3h\""), ("..v2", "cache.max_stale = \"4h\"")] {
        std::fs::create_dir(folder.path(version)).unwrap();
        folder.write(&format!("{version}/proxy.toml"), text);
    }
    std::os::unix::fs::symlink("..v1", folder.path("..data")).unwrap();
    std::fs::remove_file(folder.path("proxy.toml")).unwrap();
    std::os::unix::fs::symlink("..data/proxy.toml", folder.path("proxy.toml")).unwrap();
    assert!(outdated(&live));
    reload(&live, Trigger::File).unwrap();
    std::os::unix::fs::symlink("..v2", folder.path("..data_tmp")).unwrap();
    std::fs::rename(folder.path("..data_tmp"), folder.path("..data")).unwrap();
    assert!(outdated(&live));
    reload(&live, Trigger::File).unwrap();
    assert_eq!(live.current().settings.cache.max_stale.to_string(), "4h");

    // A secret that is not there yet: the file that mends it is watched, too.
    folder.args("[admin]\ntoken_file = \"DIR/token\"", &[], &[]);
    assert!(outdated(&live));
    assert!(reload(&live, Trigger::File).is_err());
    assert!(!outdated(&live));
    folder.write("token", "token-of-an-administrator");
    assert!(outdated(&live));
    assert_eq!(reload(&live, Trigger::File).unwrap().changed, ["admin.token_file", "cache.max_stale"]);
    let last = live.last_reload().unwrap();
    assert_eq!((last.trigger, last.result.is_ok()), (Trigger::File, true));
}

#[test]
fn an_operators_log_level_holds_until_the_configured_one_changes() {
    let folder = Folder::new();
    let live = Live::load(folder.args("telemetry.log = \"info\"", &[], &[])).unwrap();
    assert_eq!(live.log_filter(), ("info".to_owned(), false));
    live.set_log_filter(Some("debug".to_owned()));
    folder.args("telemetry.log = \"info\"\nlimiter.max_wait = \"1s\"", &[], &[]);
    reload(&live, Trigger::Api).unwrap();
    assert_eq!(live.log_filter(), ("debug".to_owned(), true));
    folder.args("telemetry.log = \"warn\"", &[], &[]);
    reload(&live, Trigger::Api).unwrap();
    assert_eq!(live.log_filter(), ("warn".to_owned(), false));
}

#[test]
fn a_row_that_comes_or_goes_is_named() {
    let folder = Folder::new();
    let env = [("ONE", "token-of-the-first-caller"), ("TWO", "token-of-the-second-caller")];
    let row =
        |name: &str, variable: &str| format!("[[caller]]\nname = \"{name}\"\ntoken_env = \"{variable}\"\n");
    let live = Live::load(folder.args(&row("a", "ONE"), &env, &[])).unwrap();
    folder.args(&format!("{}{}", row("a", "ONE"), row("b", "TWO")), &env, &[]);
    assert_eq!(reload(&live, Trigger::Api).unwrap().changed, ["caller[1]"]);
    folder.args(&row("b", "TWO"), &env, &[]);
    assert_eq!(reload(&live, Trigger::Api).unwrap().changed, ["caller[0]", "caller[1]"]);
}

#[test]
fn every_value_in_force_is_shown_with_its_origin() {
    let folder = Folder::new();
    let text = format!(
        "cache.max_stale = \"1h\"\n[[caller]]\nname = \"a\"\ntoken_sha256 = \"{HASH}\"\n\
         [[route]]\nmethod = \"GET\"\npath = \"/ports\"\nttl = \"5s\"\n"
    );
    let args = folder.args(&text, &[("SEAWALL__LIMITER__MAX", "7")], &["telemetry.access_log=false"]);
    let shown = load(&args).unwrap().shown();
    let of = |key: &str| {
        let found = shown.iter().find(|shown| shown.key == key).unwrap_or_else(|| panic!("no {key}"));
        (found.value.to_string(), found.origin.replace(folder.0.path().to_str().unwrap(), "DIR"))
    };
    let is = |value: &str, origin: &str| (value.to_owned(), origin.to_owned());
    assert_eq!(of("cache.max_stale"), is("\"1h\"", "DIR/proxy.toml:1:19"));
    assert_eq!(of("limiter.max"), is("7", "environment variable SEAWALL__LIMITER__MAX"));
    assert_eq!(of("telemetry.access_log"), is("false", "--set telemetry.access_log"));
    assert_eq!(of("queue.max_records"), is("100000", "default"));
    assert_eq!(of("caller[0].token_sha256"), is("\"6ca13d52…\"", "DIR/proxy.toml:4:16"));
    assert_eq!(of("caller[0].credential"), is("\"\"", "default"));
    assert_eq!(of("route[0].ttl"), is("\"5s\"", "DIR/proxy.toml:8:7"));
    assert!(!shown.iter().any(|shown| shown.key == "route[0].cache"), "what a route leaves out is not shown");
    let fixed = schema::paths();
    let leaves =
        fixed.iter().filter(|key| matches!(schema::find(key.split('.')), Some(schema::Shape::Leaf(_))));
    for key in leaves {
        of(key);
    }
    assert!(shown.iter().find(|shown| shown.key == "limiter.max").unwrap().needs_restart);
}

/// Holds a value to a schema, as far as ours go.
fn fits(schema: &serde_json::Value, value: &serde_json::Value, at: &str) -> Result<(), String> {
    let refused = |what: &str| Err(format!("{at}: {what}: {value}"));
    match schema["type"].as_str() {
        Some("object") => {
            let Some(object) = value.as_object() else { return refused("no object") };
            for name in schema["required"].as_array().into_iter().flatten() {
                if !object.contains_key(name.as_str().unwrap()) {
                    return refused(&format!("lacks {name}"));
                }
            }
            for (name, value) in object {
                let at = format!("{at}/{name}");
                match (schema["properties"].get(name), &schema["additionalProperties"]) {
                    (None, serde_json::Value::Bool(false)) => return refused(&format!("unknown {name}")),
                    (Some(inner), _) | (None, inner) => fits(inner, value, &at)?,
                }
            }
        }
        Some("array") => {
            let Some(values) = value.as_array() else { return refused("no list") };
            for value in values {
                fits(&schema["items"], value, at)?;
            }
        }
        Some("string") => {
            let Some(text) = value.as_str() else { return refused("no string") };
            if let Some(words) = schema["enum"].as_array()
                && !words.iter().any(|word| word == text)
            {
                return refused("none of the words");
            }
            if let Some(pattern) = schema["pattern"].as_str()
                && !regex::Regex::new(pattern).unwrap().is_match(text)
            {
                return refused(pattern);
            }
        }
        Some("boolean") if !value.is_boolean() => return refused("neither true nor false"),
        Some("integer") if value.as_u64().is_none_or(|number| number > u64::from(u32::MAX)) => {
            return refused("no whole number");
        }
        Some("number") if value.as_f64().is_none_or(|number| number <= 0.0 || number > 1.0) => {
            return refused("no share");
        }
        Some("boolean" | "integer" | "number") => {}
        other => panic!("{at}: {other:?}"),
    }
    Ok(())
}

#[test]
fn the_json_schema_takes_what_load_takes_and_has_a_text_for_each_key() {
    fn texts(schema: &serde_json::Value, at: &str, missing: &mut Vec<String>) {
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            let at = format!("{at}/{name}");
            let is_table = inner["type"] == "object" || inner["items"]["type"] == "object";
            if inner["description"].as_str().is_none_or(str::is_empty)
                && !(is_table && at.matches('/').count() > 1)
            {
                missing.push(at.clone());
            }
            for inner in [inner, &inner["items"], &inner["additionalProperties"]] {
                texts(inner, &at, missing);
            }
        }
    }
    let schema = json_schema();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    let mut missing = Vec::new();
    texts(&schema, "", &mut missing);
    assert_eq!(missing, Vec::<String>::new(), "proxy.toml has no comment for these");

    let toml = |text: &str| serde_json::to_value(toml::from_str::<toml::Table>(text).unwrap()).unwrap();
    fits(&schema, &toml(SHIPPED), "").unwrap();
    let examples: Vec<_> = SHIPPED
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .filter(|line| !line.is_empty() && !line.starts_with(' '))
        .collect();
    fits(&schema, &toml(&examples.join("\n")), "").unwrap();
    // Defaults that the schema names are taken by the schema itself.
    let defaults = serde_json::to_value(toml::Table::try_from(Settings::default()).unwrap()).unwrap();
    fits(&schema, &defaults, "").unwrap();
    for good in ["1m30s", " 2 d ", "72h", "0s"] {
        fits(&schema, &toml(&format!("cache.max_stale = {good:?}")), "").unwrap();
        good.parse::<raw::Span>().unwrap();
    }
    for good in ["[fe80::1%1]:80", "[::]:0", "0.0.0.0:8460"] {
        fits(&schema, &toml(&format!("server.listen = {good:?}")), "").unwrap();
        good.parse::<std::net::SocketAddr>().unwrap();
    }
    for bad in [
        "cache.max_stale = 30",
        "cache.max_stale = \"30\"",
        "cache.memory = \"64MB\"",
        "cache.max_stal = \"1h\"",
        "profile = \"flexprot\"",
        "limiter.max = -1",
        "breaker.failure_share = 1.5",
        "[[caller]]\ntoken_env = \"A\"",
        "[[route]]\nmethod = \"GET\"",
        "admin.token_env = \"a token\"",
    ] {
        assert!(fits(&schema, &toml(bad), "").is_err(), "{bad}");
        assert!(!problems(bad).is_empty(), "{bad}");
    }
}

#[test]
fn the_reference_is_up_to_date() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/CONFIGURATION.md");
    if std::env::var_os("SEAWALL_BLESS").is_some_and(|value| value == "1") {
        std::fs::write(&path, reference()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == reference(),
        "docs/CONFIGURATION.md is not what the table of keys and proxy.toml say; run this test with SEAWALL_BLESS=1"
    );
}
