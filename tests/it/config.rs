//! The configuration of a running Seawall: every setting takes effect at a reload or is named as waiting for a restart;
//! a bad file changes nothing; and no request notices a reload.

use crate::assert_eventually;
use crate::support::{Answer, Proxy, client, send, simulator};
use http::{Method, StatusCode};
use seawall::app::App;
use seawall::config::raw::{Size, Span};
use seawall::config::{Live, LoadArgs, NEEDS_RESTART, json_schema};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const HASH: &str = "6ca13d52ca70c883e0f0bb101e425a89e8624de51db2d2392593af6a84118090";
const OTHER_HASH: &str = "7ca13d52ca70c883e0f0bb101e425a89e8624de51db2d2392593af6a84118090";
/// What `secret-file` holds: sent with every call, so that it does not matter whether the admin API asks for it.
const SECRET: &str = "a-secret:with-more-than-thirty-two-characters";

/// A key of the schema with what it says.
struct Leaf {
    /// Such as `cache.max_stale`, `caller[].name`, `credentials.alias.*.token_env`.
    path: String,
    schema: Value,
}

fn leaves() -> Vec<Leaf> {
    fn walk(prefix: &str, schema: &Value, leaves: &mut Vec<Leaf>) {
        for (name, inner) in schema["properties"].as_object().unwrap() {
            let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            if inner["properties"].is_object() {
                walk(&path, inner, leaves);
            } else if inner["items"]["properties"].is_object() {
                walk(&format!("{path}[]"), &inner["items"], leaves);
            } else if inner["additionalProperties"]["properties"].is_object() {
                walk(&format!("{path}.*"), &inner["additionalProperties"], leaves);
            } else {
                leaves.push(Leaf { path, schema: inner.clone() });
            }
        }
    }
    let mut leaves = Vec::new();
    walk("", &json_schema(), &mut leaves);
    leaves
}

/// A value that differs from the default and is good by itself.
fn another(leaf: &Leaf, dir: &Path) -> toml::Value {
    let (path, default) = (leaf.path.as_str(), &leaf.schema["default"]);
    let text = |text: &str| toml::Value::String(text.to_owned());
    match path {
        "data_dir" => return text(dir.join("elsewhere").to_str().unwrap()),
        "server.listen" => return text("127.0.0.1:1"),
        "admin.listen" => return text("127.0.0.1:2"),
        "server.public_url" => return text("http://seawall.example"),
        "upstream.base_url" => return text("http://127.0.0.1:3"),
        "upstream.link_bases" => return toml::Value::Array(vec![text("https://links.example")]),
        "credentials.default" => return text("other"),
        "telemetry.log" => return text("error"),
        "status_page.url" => return text("http://127.0.0.1:4/status.json"),
        "upstream.proxy" => return text("http://127.0.0.1:3128"),
        "upstream.tls.ca_file" | "upstream.tls.cert_file" => {
            return text(dir.join("cert.pem").to_str().unwrap());
        }
        "upstream.tls.key_file" => return text(dir.join("key.pem").to_str().unwrap()),
        _ => {}
    }
    if path.ends_with("_file") {
        return text(dir.join("secret-file").to_str().unwrap());
    }
    if path.ends_with("_env") {
        return text("WALK_OTHER");
    }
    if let Some(words) = leaf.schema["enum"].as_array() {
        return text(words.iter().find(|word| *word != default).unwrap().as_str().unwrap());
    }
    match default {
        Value::Bool(is_set) => toml::Value::Boolean(!is_set),
        Value::Number(number) if number.is_u64() => toml::Value::Integer(number.as_i64().unwrap() + 1),
        Value::Number(number) => toml::Value::Float(number.as_f64().unwrap() / 2.0),
        Value::String(written) => {
            if let Ok(span) = written.parse::<Span>() {
                return text(&Span(*span + Duration::from_secs(1)).to_string());
            }
            let size: Result<Size, _> = written.parse();
            match size.unwrap_or_else(|_| panic!("{path}: tell this test of another good value")) {
                Size(0) => text("64MiB"),
                Size(bytes) => text(&Size(bytes * 2).to_string()),
            }
        }
        _ => panic!("{path}: tell this test of another good value"),
    }
}

/// What must be set besides, for a changed value to be good.
fn companions(path: &str, dir: &Path) -> Vec<(&'static str, toml::Value)> {
    let file = |name: &str| toml::Value::String(dir.join(name).to_str().unwrap().to_owned());
    match path {
        "upstream.proxy_authorization_file" | "upstream.proxy_authorization_env" => {
            vec![("upstream.proxy", "http://127.0.0.1:3128".into())]
        }
        "upstream.tls.cert_file" => vec![("upstream.tls.key_file", file("key.pem"))],
        "upstream.tls.key_file" => vec![("upstream.tls.cert_file", file("cert.pem"))],
        "upstream.tls.platform_roots" => vec![("upstream.tls.ca_file", file("cert.pem"))],
        _ => Vec::new(),
    }
}

fn set(table: &mut toml::Table, path: &str, value: toml::Value) {
    match path.split_once('.') {
        Some((section, rest)) => {
            let section = table.entry(section).or_insert_with(|| toml::Table::new().into());
            set(section.as_table_mut().unwrap(), rest, value);
        }
        None => {
            table.insert(path.to_owned(), value);
        }
    }
}

/// The whole row that a key of a list, or of a table of tables, stands in when it is changed.
fn row_with(path: &str, dir: &Path) -> toml::Table {
    let file = dir.join("secret-file");
    let file = file.to_str().unwrap();
    let text = match path {
        "credentials.alias.*.token_file" | "caller[].token_file" => format!("token_file = {file:?}"),
        "credentials.alias.*.token_env" | "caller[].token_env" => "token_env = \"WALK_OTHER\"".to_owned(),
        "credentials.identity[].name" => format!("name = \"another\"\ntoken_sha256 = [{HASH:?}]"),
        "credentials.identity[].token_sha256" => format!("name = \"both\"\ntoken_sha256 = [{OTHER_HASH:?}]"),
        "caller[].name" => "name = \"another\"\ntoken_env = \"WALK_CALLER\"".to_owned(),
        "caller[].token_sha256" => format!("token_sha256 = {HASH:?}"),
        "caller[].credential" => "token_env = \"WALK_CALLER\"\ncredential = \"default\"".to_owned(),
        "route[].method" => "method = \"POST\"\npath = \"/bookings\"".to_owned(),
        "route[].path" => "method = \"GET\"\npath = \"/ports\"".to_owned(),
        "route[].timeout" => "timeout = \"7s\"".to_owned(),
        "route[].retry" => "retry = false".to_owned(),
        "route[].ttl" => "ttl = \"7s\"".to_owned(),
        "route[].max_stale" => "max_stale = \"7s\"".to_owned(),
        "route[].cache" => "cache = false".to_owned(),
        "route[].override_revalidation" => "override_revalidation = false".to_owned(),
        "route[].object_fallback" => "path = \"/shipments/:id\"\nobject_fallback = false".to_owned(),
        "route[].queue" => "method = \"POST\"\nqueue = \"never\"".to_owned(),
        "route[].queue_max_body" => "method = \"POST\"\nqueue_max_body = \"2MiB\"".to_owned(),
        "route[].trust_503" => "method = \"POST\"\ntrust_503 = true".to_owned(),
        "route[].on_unknown_head" => "method = \"POST\"\non_unknown_head = \"block\"".to_owned(),
        "route[].on_dead_head" => "method = \"POST\"\non_dead_head = \"block\"".to_owned(),
        other => panic!("{other}: tell this test of another good value"),
    };
    let mut row: toml::Table = toml::from_str(&text).unwrap();
    if path.starts_with("caller") && !row.contains_key("name") {
        row.insert("name".to_owned(), "walker".into());
    }
    if path.starts_with("route") {
        let is_write = row.get("method").is_some_and(|method| method.as_str() == Some("POST"));
        row.entry("method").or_insert_with(|| "GET".into());
        row.entry("path").or_insert_with(|| if is_write { "/bookings".into() } else { "/shipments".into() });
    }
    row
}

/// A running Seawall with nothing but a file.
struct Walk {
    app: App,
    dir: tempfile::TempDir,
    base: toml::Table,
}

impl Walk {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret-file"), SECRET).unwrap();
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(dir.path().join("cert.pem"), cert.pem()).unwrap();
        std::fs::write(dir.path().join("key.pem"), signing_key.serialize_pem()).unwrap();
        let base: toml::Table = toml::from_str(&format!(
            "data_dir = \"{}\"\n[server]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             [upstream]\nbase_url = \"http://127.0.0.1:9\"\n[telemetry]\nlog = \"warn\"\n\
             [credentials.alias.default]\ntoken_env = \"WALK_ALIAS\"\n\
             [[credentials.identity]]\nname = \"both\"\ntoken_sha256 = [{HASH:?}]\n\
             [[caller]]\nname = \"walker\"\ntoken_env = \"WALK_CALLER\"\n\
             [[route]]\nmethod = \"GET\"\npath = \"/shipments\"\n",
            dir.path().join("data").display()
        ))
        .unwrap();
        let file = dir.path().join("proxy.toml");
        std::fs::write(&file, toml::to_string(&base).unwrap()).unwrap();
        let env = [
            ("WALK_ALIAS", "token-of-the-alias-0001"),
            ("WALK_CALLER", "token-of-the-caller-0001"),
            ("WALK_OTHER", "another-secret:with-more-than-thirty-two-characters"),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let live =
            Live::load(LoadArgs::new(Some(file), Vec::new(), env)).unwrap_or_else(|bad| panic!("{bad}"));
        let app = App::start(live).await.unwrap_or_else(|error| panic!("{error}"));
        Self { app, dir, base }
    }

    async fn admin(&self, method: Method, path: &str) -> Answer {
        let url = format!("http://{}{path}", self.app.admin);
        let tokens = [SECRET, "another-secret:with-more-than-thirty-two-characters"];
        let mut answer = None;
        for token in tokens {
            let bearer = format!("Bearer {token}");
            let fields = [("authorization", bearer.as_str())];
            let given = send(&client(), method.clone(), &url, &fields, "", false).await;
            let is_known = given.status != StatusCode::UNAUTHORIZED;
            answer = Some(given);
            if is_known {
                break;
            }
        }
        answer.unwrap()
    }

    /// Writes this file and reloads; what waits for a restart, and every value in force by its key.
    async fn reload(&self, table: &toml::Table, why: &str) -> (Vec<String>, Vec<Value>) {
        std::fs::write(self.dir.path().join("proxy.toml"), toml::to_string(table).unwrap()).unwrap();
        let report = self.admin(Method::POST, "/api/v1/config/reload").await;
        assert_eq!(report.status, 200, "{why}: {report:?}");
        let named = report.json()["needs_restart"].as_array().unwrap().clone();
        let named = named.iter().map(|key| key.as_str().unwrap().to_owned()).collect();
        let config = self.admin(Method::GET, "/api/v1/config").await;
        assert_eq!(config.status, 200, "{why}: {config:?}");
        (named, config.json()["settings"].as_array().unwrap().clone())
    }
}

fn setting<'a>(settings: &'a [Value], key: &str) -> &'a Value {
    settings.iter().find(|setting| setting["key"] == key).unwrap_or_else(|| panic!("no {key}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_setting_takes_effect_at_a_reload_or_is_named_as_waiting_for_a_restart() {
    let walk = Walk::start().await;
    let base = walk.base.clone();
    let (named, before) = walk.reload(&base, "base").await;
    assert_eq!(named, Vec::<String>::new());
    let place = walk.dir.path().join("proxy.toml").display().to_string();
    let mut walked = 0;
    for leaf in leaves() {
        let path = leaf.path.as_str();
        let mut table = base.clone();
        // The key as it is shown, and its new value.
        let (key, value) = if let Some((list, name)) = path.split_once("[].") {
            let row = row_with(path, walk.dir.path());
            let value = row[name].clone();
            let (outer, list_name) = list.rsplit_once('.').unwrap_or(("", list));
            let holder = if outer.is_empty() { &mut table } else { table[outer].as_table_mut().unwrap() };
            holder.insert(list_name.to_owned(), toml::Value::Array(vec![row.into()]));
            (format!("{list}[0].{name}"), value)
        } else if let Some((outer, name)) = path.split_once(".*.") {
            let row = row_with(path, walk.dir.path());
            let value = row[name].clone();
            let (section, named) = outer.split_once('.').unwrap();
            let named = table[section].as_table_mut().unwrap()[named].as_table_mut().unwrap();
            named.insert("default".to_owned(), row.into());
            (format!("{outer}.default.{name}"), value)
        } else {
            let value = another(&leaf, walk.dir.path());
            for (path, value) in companions(path, walk.dir.path()) {
                set(&mut table, path, value);
            }
            set(&mut table, path, value.clone());
            (path.to_owned(), value)
        };
        let (named, settings) = walk.reload(&table, path).await;
        let now = setting(&settings, &key);
        if leaf.schema["x-seawall-restart"] == true {
            assert_eq!(named, [path], "{path} must be named");
            assert_eq!(now["value"], setting(&before, path)["value"], "{path} shows what is in force");
            assert_eq!(now["needs_restart"], true, "{path}");
        } else {
            assert_eq!(named, Vec::<String>::new(), "{path} is documented as live");
            let wanted = serde_json::to_value(&value).unwrap();
            let is_masked = path.ends_with("sha256");
            assert!(now["value"] == wanted || is_masked, "{path}: {now} is not {wanted}");
            let old = before.iter().find(|setting| setting["key"] == key);
            assert_ne!(old.map(|old| &old["value"]), Some(&now["value"]), "{path} has not changed");
            let origin = now["origin"].as_str().unwrap();
            assert!(origin.starts_with(&format!("{place}:")), "{path}: {origin}");
            assert_eq!(now["needs_restart"], false, "{path}");
        }
        walked += 1;
    }
    assert!(walked > 90, "only {walked} settings were found");
    let (named, after) = walk.reload(&base, "base").await;
    assert_eq!(named, Vec::<String>::new());
    let values = |settings: &[Value]| -> Vec<(Value, Value)> {
        settings.iter().map(|setting| (setting["key"].clone(), setting["value"].clone())).collect()
    };
    assert_eq!(values(&after), values(&before), "the way back is a reload, too");
    walk.app.stop().await;
}

/// What is read once, when the parts are made, cannot take effect later: it must be one of the settings that wait for a
/// restart, or be given on at a reload.
#[test]
fn what_is_read_when_the_parts_are_made_waits_for_a_restart() {
    /// Given on by `app::reload`, or read for a line of the log only.
    const GIVEN_ON: &[&str] = &["upstream.timeout"];
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap();
    let between = |text: &str, from: &str, to: &str| -> String {
        let (_, rest) = text.split_once(from).unwrap_or_else(|| panic!("no {from:?}"));
        rest.split_once(to).unwrap_or_else(|| panic!("no {to:?} after {from:?}")).0.to_owned()
    };
    let app = read("app.rs");
    let end = "\n    }\n";
    // A part's code, and what stands before the keys that it names.
    let parts = [
        (
            between(&app, "pub async fn start(", "/// Reads the configuration again, as on SIGHUP."),
            "settings.",
            "",
        ),
        (read("upstream/client.rs"), "settings.", "upstream."),
        (between(&read("cache/mod.rs"), "pub fn new(", end), "settings.", ""),
        (between(&read("server/listener.rs"), "pub fn new(server:", end), "server.", "server."),
    ];
    let schema = leaves();
    let mut seen = BTreeSet::new();
    for (code, before, section) in parts {
        let code: String = code.lines().map(|line| line.split("//").next().unwrap()).collect();
        for rest in code.split(before).skip(1) {
            let path: String =
                rest.chars().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.')).collect();
            let path = format!("{section}{path}");
            // The longest beginning that is a key: what follows is a method.
            let key = schema.iter().map(|leaf| &leaf.path).filter(|key| {
                path.strip_prefix(key.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            });
            seen.extend(key.max_by_key(|key| key.len()).cloned());
        }
    }
    assert!(seen.len() > 12, "only {seen:?} were found");
    for key in &seen {
        assert!(
            NEEDS_RESTART.contains(&key.as_str()) || GIVEN_ON.contains(&key.as_str()),
            "{key} is read once, and neither waits for a restart nor is given on at a reload"
        );
    }
}

fn sha256(text: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Writes the file and reloads.
async fn apply(proxy: &Proxy, text: &str) {
    std::fs::write(proxy.dir.path().join("proxy.toml"), text).unwrap();
    let report = proxy.admin(Method::POST, "/api/v1/config/reload", None).await;
    assert_eq!(report.status, 200, "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_follow_the_reloaded_settings() {
    let simulator = simulator().await;
    let proxy = Proxy::configured(&simulator.url(), &[], "# nothing set\n", |_| {}).await;
    let source = async |path: &str| {
        proxy.get(path).await;
        proxy.get(path).await.source().to_owned()
    };
    assert_eq!(source("/shipments").await, "upstream");
    apply(&proxy, "[[route]]\nmethod = \"GET\"\npath = \"/shipments\"\nttl = \"1h\"\n").await;
    assert_eq!(source("/shipments").await, "cache");
    apply(&proxy, "[[route]]\nmethod = \"GET\"\npath = \"/shipments\"\ncache = false\n").await;
    assert_eq!(source("/shipments").await, "upstream");
    apply(&proxy, "# nothing set").await;
    assert_eq!(source("/shipments?per=2").await, "upstream");

    let body = format!("{{\"name\":\"{}\"}}", "x".repeat(3000));
    assert_ne!(proxy.send(Method::POST, "/bookings", &[], &body).await.status, 413);
    apply(&proxy, "server.max_body = \"2KiB\"").await;
    assert_eq!(proxy.send(Method::POST, "/bookings", &[], &body).await.status, 413);

    // Tokens that are declared to be one share what is kept.
    let ports = "[[route]]\nmethod = \"GET\"\npath = \"/ports\"\nttl = \"1h\"\n";
    let of = async |token: &str| {
        proxy.send(Method::GET, "/ports", &[("authorization", token)], "").await.source().to_owned()
    };
    apply(&proxy, ports).await;
    assert_eq!((of("Bearer one").await, of("Bearer two").await), ("upstream".into(), "upstream".into()));
    let hashes = ["one", "two"].map(sha256);
    let identity = format!("[[credentials.identity]]\nname = \"both\"\ntoken_sha256 = {hashes:?}\n{ports}");
    apply(&proxy, &identity).await;
    assert_eq!((of("Bearer one").await, of("Bearer two").await), ("upstream".into(), "cache".into()));

    // How old a copy may be, in an outage.
    apply(&proxy, "").await;
    proxy.get("/events").await;
    simulator.set_faults(json!([{"kind": "status", "status": 503}])).unwrap();
    assert_eq!(proxy.get("/events").await.source(), "stale");
    apply(&proxy, "cache.max_stale = \"0s\"").await;
    assert_eq!(proxy.get("/events").await.status, 503);

    // When the breaker opens.
    apply(&proxy, "breaker.consecutive_failures = 100000\nbreaker.min_calls = 100000").await;
    for _ in 0..5 {
        proxy.get("/ports?per=1").await;
    }
    let scope = {
        let all = proxy.admin(Method::GET, "/api/v1/breakers", None).await.json();
        let all = all["breakers"].as_array().or(all.as_array()).unwrap().clone();
        assert!(all.iter().all(|breaker| breaker["state"] != "open"), "{all:?}");
        all.len()
    };
    assert!(scope > 2);
    apply(&proxy, "breaker.consecutive_failures = 1\nbreaker.consecutive_span = \"0s\"").await;
    let refused = async || {
        let answer = proxy.get("/ports?per=1").await;
        !answer.field("seawall-breaker").is_empty()
    };
    assert_eventually!(refused().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_callers_and_credentials_follow_the_reloaded_settings() {
    let simulator = simulator().await;
    let shared = "[credentials.alias.one]\ntoken_file = \"{dir}/one\"\n\
                  [credentials.alias.two]\ntoken_file = \"{dir}/two\"\n";
    let proxy = Proxy::configured(&simulator.url(), &[], "# nothing set\n", |dir| {
        for name in ["one", "two", "admin"] {
            std::fs::write(dir.join(name), format!("token-{name}-0123456789\n")).unwrap();
        }
    })
    .await;
    let dir = proxy.dir.path().display().to_string();
    let text = |text: &str| text.replace("{dir}", &dir);
    let sent = async |fields: &[(&str, &str)]| -> (u16, String) {
        let answer = proxy.bare(Method::GET, "/shipments?per=1", fields, "").await;
        let journal = simulator.journal();
        let last =
            journal.last().unwrap()["headers"]["authorization"].as_str().unwrap_or_default().to_owned();
        (answer.status.as_u16(), last)
    };

    assert_eq!(sent(&[("authorization", "Bearer mine")]).await, (200, "Bearer mine".to_owned()));
    let inject = format!("credentials.mode = \"inject\"\ncredentials.default = \"one\"\n{shared}");
    apply(&proxy, &text(&inject)).await;
    assert_eq!(sent(&[]).await, (200, "Bearer token-one-0123456789".to_owned()));
    apply(&proxy, &text(&inject.replace("default = \"one\"", "default = \"two\""))).await;
    assert_eq!(sent(&[]).await, (200, "Bearer token-two-0123456789".to_owned()));
    std::fs::write(proxy.dir.path().join("two"), "token-two-rotated-0123\n").unwrap();
    apply(&proxy, &text(&inject.replace("default = \"one\"", "default = \"two\""))).await;
    assert_eq!(sent(&[]).await, (200, "Bearer token-two-rotated-0123".to_owned()));

    // A caller comes, and goes.
    let hash = sha256("token-of-anna");
    let anna = [("seawall-token", "token-of-anna")];
    assert_eq!(sent(&anna).await.0, 401);
    let caller =
        format!("{inject}[[caller]]\nname = \"anna\"\ntoken_sha256 = \"{hash}\"\ncredential = \"two\"\n");
    apply(&proxy, &text(&caller)).await;
    assert_eq!(sent(&anna).await, (200, "Bearer token-two-rotated-0123".to_owned()));
    apply(&proxy, &text(&inject)).await;
    assert_eq!(sent(&anna).await.0, 401);

    // Writes in an outage.
    apply(&proxy, "").await;
    let write = async |id: u32| {
        let path = format!("/shipments/{id}");
        let body = format!("{{\"metadata\":{{\"n\":[\"{id}\"]}}}}");
        proxy.send(Method::PATCH, &path, &[], &body).await.status.as_u16()
    };
    simulator.set_faults(json!([{"kind": "refuse"}])).unwrap();
    assert_eq!(write(1).await, 202);
    apply(&proxy, "queue.max_records = 1").await;
    assert_eq!(write(2).await, 503);
    apply(&proxy, "queue.max_records = 10").await;
    assert_eq!(write(2).await, 202);
    apply(&proxy, "[[route]]\nmethod = \"PATCH\"\npath = \"/shipments/:id\"\nqueue = \"never\"\n").await;
    let refused = write(3).await;
    assert!(refused == 502 || refused == 503, "{refused}");

    // The admin API's own door, last: from here on it asks for the token.
    assert_eq!(proxy.admin(Method::GET, "/metrics", None).await.status, 200);
    apply(&proxy, &text("[admin]\ntoken_file = \"{dir}/admin\"\nopen_health = false\n")).await;
    for path in ["/metrics", "/api/v1/config"] {
        assert_eq!(proxy.admin(Method::GET, path, None).await.status, 401, "{path}");
        let url = format!("{}{path}", proxy.admin);
        let bearer = [("authorization", "Bearer token-admin-0123456789")];
        let known = send(&client(), Method::GET, &url, &bearer, "", false).await;
        assert_eq!(known.status, 200, "{path}");
        assert!(!String::from_utf8_lossy(&known.body).contains("0123"), "{path} shows a secret");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_file_keeps_the_old_configuration_and_says_why() {
    let simulator = simulator().await;
    let proxy = Proxy::configured(&simulator.url(), &[], "cache.max_stale = \"1h\"\n", |_| {}).await;
    let path = proxy.dir.path().join("proxy.toml");
    let value = async |key: &str| {
        let config = proxy.admin(Method::GET, "/api/v1/config", None).await.json();
        let settings = config["settings"].as_array().unwrap().clone();
        setting(&settings, key)["value"].clone()
    };
    let started = proxy.metric("seawall_config_reload_success_timestamp_seconds").await;
    assert!(started > 1.7e9, "{started}");
    let is_good = async || proxy.metric("seawall_config_reload_successful").await;
    assert!(is_good().await > 0.5);

    std::fs::write(&path, "cache.max_stale = \"2h\"\n[cache]\n\nlock_wiat = \"3s\"\n").unwrap();
    let refused = proxy.admin(Method::POST, "/api/v1/config/reload", None).await;
    assert_eq!(
        (refused.status, refused.field("content-type")),
        (StatusCode::UNPROCESSABLE_ENTITY, "application/problem+json")
    );
    let problem = refused.json();
    assert_eq!(problem["status"], 422);
    assert!(problem["detail"].as_str().unwrap().starts_with("the old configuration stays: "), "{problem}");
    let first = &problem["problems"][0];
    assert!(first["origin"].as_str().unwrap().starts_with(&format!("{}:", path.display())), "{problem}");
    assert_eq!(value("cache.max_stale").await, "1h");
    assert!(is_good().await < 0.5);
    let last = proxy.admin(Method::GET, "/api/v1/config", None).await.json()["last_reload"].clone();
    assert_eq!(last["is_successful"], false);
    assert_eq!(last["problems"], problem["problems"]);

    std::fs::write(&path, "[cache]\nmax_stale = \"2h\"\nlock_wiat = \"3s\"\n").unwrap();
    let refused = proxy.admin(Method::POST, "/api/v1/config/reload", None).await.json();
    assert_eq!(refused["problems"][0]["origin"], format!("{}:3:1", path.display()));
    assert_eq!(
        refused["problems"][0]["message"],
        "unknown key `cache.lock_wiat`; did you mean `cache.lock_wait`?"
    );

    // The mended file is read without being asked for.
    std::fs::write(&path, "[cache]\nmax_stale = \"2h\"\n[limiter]\nmax = 64\n").unwrap();
    assert_eventually!(value("cache.max_stale").await == "2h");
    assert_eventually!(is_good().await > 0.5);
    assert_eventually!(proxy.metric("seawall_config_needs_restart").await > 0.5);
    let config = proxy.admin(Method::GET, "/api/v1/config", None).await.json();
    assert_eq!(config["last_reload"]["needs_restart"], json!(["limiter.max"]));
    assert_eq!(config["last_reload"]["is_successful"], true);
    assert!(config["generation"].as_u64().unwrap() >= 2);
    assert!(proxy.metric("seawall_config_reload_success_timestamp_seconds").await >= started);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_whose_caller_leaves_is_done_to_its_end() {
    let simulator = simulator().await;
    let proxy = Proxy::start(&simulator.url(), &[]).await;
    let mut reload = Box::pin(proxy.app.as_ref().unwrap().reload());
    // Begins it, no more.
    std::future::poll_fn(|cx| {
        let _ = reload.as_mut().poll(cx);
        std::task::Poll::Ready(())
    })
    .await;
    drop(reload);
    let count = async || {
        let text = proxy.admin(Method::GET, "/metrics", None).await.body;
        let text = std::str::from_utf8(&text).unwrap().to_owned();
        text.contains("seawall_config_reloads_total{result=\"ok\"} 1\n")
    };
    assert_eventually!(count().await);
}

#[tokio::test]
async fn the_log_level_can_be_set_and_set_back() {
    let simulator = simulator().await;
    let proxy = Proxy::start(&simulator.url(), &[]).await;
    let put = async |body: Value| proxy.admin(Method::PUT, "/api/v1/log-level", Some(body)).await;
    let level = async || proxy.admin(Method::GET, "/api/v1/config", None).await.json()["log_level"].clone();
    assert_eq!(level().await, json!({"level": "warn", "is_overridden": false}));
    let set = put(json!({"level": "error,seawall::queue=warn", "reason": "a test"})).await;
    assert_eq!(set.status, 200, "{set:?}");
    assert_eq!(level().await, json!({"level": "error,seawall::queue=warn", "is_overridden": true}));
    for (body, word) in [
        (json!({"level": "wran"}), "did you mean \"warn\"?"),
        (json!({"level": ""}), "level: expected a level"),
        (json!({}), "level"),
        (json!({"level": "warn", "ttl": "1h"}), "ttl"),
        (json!([]), "JSON such as"),
    ] {
        let refused = put(body.clone()).await;
        assert_eq!(refused.status, 400, "{body}");
        let detail = refused.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(word), "{body}: {detail}");
    }
    assert_eq!(put(json!({"level": null})).await.json(), json!({"level": "warn", "is_overridden": false}));
    assert_eq!(level().await, json!({"level": "warn", "is_overridden": false}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_the_configuration_is_reloaded() {
    const RELOADS: usize = 50;
    let simulator = simulator().await;
    let proxy = Arc::new(Proxy::configured(&simulator.url(), &[], "# nothing set\n", |_| {}).await);
    let ids: Vec<String> = proxy.get("/shipments?per=4").await.json()["data"]["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|shipment| shipment["id"].to_string())
        .collect();
    let (is_over, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..4)
        .map(|number| {
            let (proxy, is_over, sent) = (proxy.clone(), is_over.clone(), sent.clone());
            let id = ids[number % ids.len()].clone();
            tokio::spawn(async move {
                let mut failed = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    let path = format!("/shipments/{id}");
                    let answers = [
                        proxy.get("/shipments?per=2").await,
                        proxy.get(&path).await,
                        proxy.send(Method::PATCH, &path, &[], "{\"metadata\":{\"load\":[\"x\"]}}").await,
                    ];
                    sent.fetch_add(answers.len(), Ordering::Relaxed);
                    failed.extend(answers.into_iter().filter(|answer| answer.status != 200));
                }
                failed
            })
        })
        .collect();
    for round in 0..RELOADS {
        let at_least = sent.load(Ordering::Relaxed) + 2;
        let hash = if round % 2 == 0 { HASH } else { OTHER_HASH };
        let (text, wanted) = match round % 5 {
            0 => (format!("[[caller]]\nname = \"a\"\ntoken_sha256 = \"{hash}\"\n"), 200),
            1 => (
                "[[route]]\nmethod = \"GET\"\npath = \"/shipments\"\nttl = \"1s\"\ntimeout = \"50s\"\n"
                    .to_owned(),
                200,
            ),
            2 => (format!("[breaker]\nwindow = \"{}s\"\n[limiter]\nmax = 64\n", 5 + round), 200),
            3 => ("[cache]\nmax_stale = \"soon\"\n[queue".to_owned(), 422),
            _ => ("[upstream]\ntimeout = \"29s\"\n[queue]\nmax_parallel = 0\n".to_owned(), 422),
        };
        std::fs::write(proxy.dir.path().join("proxy.toml"), text).unwrap();
        let report = proxy.admin(Method::POST, "/api/v1/config/reload", None).await;
        assert_eq!(report.status.as_u16(), wanted, "{round}: {report:?}");
        assert_eventually!(sent.load(Ordering::Relaxed) >= at_least);
    }
    is_over.store(true, Ordering::Relaxed);
    for caller in callers {
        let failed = caller.await.unwrap();
        assert!(failed.is_empty(), "{} failed, such as {:?}", failed.len(), failed[0]);
    }
    assert!(sent.load(Ordering::Relaxed) >= RELOADS);
}
