//! The binary as operators meet it: bad input, exit codes, signals, and the commands that ask a running Seawall.

#![expect(clippy::unwrap_used, reason = "a failure of a test's own means ends the test")]

#[allow(dead_code, unreachable_pub, reason = "each suite uses its part of what they share")]
#[path = "it/support/mod.rs"]
mod support;

#[allow(dead_code, unreachable_pub, reason = "each suite uses its part of what they share")]
#[path = "process/mod.rs"]
mod process;

use bytes::Bytes;
use http::{Method, Response};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use process::{Ended, Server, Setup};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::{PATIENCE, arrivals, simulator, writes};

/// Nothing listens there.
const NOWHERE: &str = "http://127.0.0.1:9";

/// Runs `seawall` with these words and this environment.
fn seawall(words: &[&str], env: &[(&str, &str)]) -> Ended {
    let output = assert_cmd::Command::new(env!("CARGO_BIN_EXE_seawall"))
        .args(words)
        .env_clear()
        .envs(env.iter().copied())
        .timeout(PATIENCE)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

/// The same against a running Seawall.
fn operate(server: &Server, words: &[&str]) -> Ended {
    seawall(&[&["--admin", &server.admin], words].concat(), &[])
}

fn done(ended: Ended) -> String {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.stdout
}

impl Ended {
    /// It ended so, said each of these on standard error, and nothing on standard output.
    fn complains(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in {self:?}");
        }
        assert_eq!(self.stdout, "", "{self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        self
    }
}

/// `check` and `serve` say the same.
async fn refused(setup: &Setup, words: &[&str]) {
    for command in ["check", "serve"] {
        setup.run(command).await.complains(78, words);
    }
}

fn with_config(text: &str) -> (Setup, PathBuf) {
    let mut setup = Setup::new(NOWHERE, &[]);
    let path = setup.dir.path().join("seawall.toml");
    std::fs::write(&path, text).unwrap();
    setup.config = Some(path.clone());
    (setup, path)
}

// --- bad input ---

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_key_is_named_with_its_place_and_a_suggestion() {
    let (setup, path) = with_config("[upstream]\ntimout = \"5s\"\n");
    refused(&setup, &[&format!("{}:2:1", path.display()), "timout", "timeout"]).await;
    let setup = Setup::new(NOWHERE, &["upstream.timout=5s"]);
    refused(&setup, &["--set upstream.timout", "timeout"]).await;
    let mut setup = Setup::new(NOWHERE, &[]);
    setup.env.push(("SEAWALL__UPSTREAM__TIMOUT".to_owned(), "5s".to_owned()));
    refused(&setup, &["SEAWALL__UPSTREAM__TIMOUT", "TIMEOUT"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_of_the_wrong_type_is_named_with_its_place() {
    let (setup, path) = with_config("[server]\nmax_connections = \"many\"\n\n[cache]\nmax_stale = 7\n");
    let path = path.display();
    let words = [
        format!("{path}:2:19"),
        "server.max_connections".to_owned(),
        format!("{path}:5:13"),
        "cache.max_stale".to_owned(),
    ];
    refused(&setup, &words.each_ref().map(String::as_str)).await;
    let (setup, path) = with_config("[server\n");
    refused(&setup, &[&format!("{}:1:", path.display())]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_is_a_directory_is_named() {
    let mut setup = Setup::new(NOWHERE, &[]);
    setup.config = Some(setup.dir.path().to_owned());
    refused(&setup, &[&setup.dir.path().display().to_string(), "is a folder"]).await;

    let setup = Setup::new(NOWHERE, &[]);
    let folder = setup.dir.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    let setup = setup.set(format!("admin.token_file={}", folder.display()));
    refused(&setup, &["admin.token_file", &folder.display().to_string(), "is a folder"]).await;

    // And the other way round.
    let setup = Setup::new(NOWHERE, &[]);
    std::fs::write(setup.data(), "a file").unwrap();
    setup
        .run("serve")
        .await
        .complains(78, &["data_dir", &setup.data().display().to_string(), "not a folder"]);
    assert_eq!(std::fs::read_to_string(setup.data()).unwrap(), "a file");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for key in ["server.listen", "admin.listen"] {
        let setup = Setup::new(NOWHERE, &[]).set(format!("{key}={address}"));
        setup.run("serve").await.complains(1, &[key, &address, "another process"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_folder_of_another_process_is_left_alone() {
    let setup = Setup::new(NOWHERE, &[]);
    let server = setup.start().await;
    let second = setup.clone().set("store.lock_wait=300ms");
    let pid = server.pid().to_string();
    second.run("serve").await.complains(1, &[&setup.data().display().to_string(), &pid]);
    assert_eq!(seawall(&["health", "ready", "--admin", &server.admin], &[]).code, Some(0));
    server.stop().await;
    // And it is free again.
    setup.start().await.stop().await;
}

/// The epoch that `CURRENT` names.
fn epoch(queue: &Path) -> PathBuf {
    let folders: Vec<PathBuf> = std::fs::read_dir(queue)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("db").exists() && !path.display().to_string().contains("corrupt-"))
        .collect();
    assert_eq!(folders.len(), 1, "{folders:?}");
    folders.into_iter().next().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_store_is_set_aside_loudly_and_kept() {
    let simulator = simulator().await;
    let setup = Setup::new(&simulator.url(), &[]);
    let server = setup.start().await;
    simulator.set_faults(json!([{"kind": "refuse"}])).unwrap();
    let id = server.send(Method::POST, "/bookings", &[], r#"{"name":"kept"}"#).await.ticket();
    server.stop().await;
    let queue = setup.data().join("queue");

    // CURRENT is not needed as long as there is only one epoch.
    std::fs::write(queue.join("CURRENT"), b"\xff\x00garbage").unwrap();
    let server = setup.start().await;
    assert_eventually!(server.state(&id).await == "pending");
    assert!(server.log().contains("CURRENT"), "{}", server.log());
    server.stop().await;

    let path = epoch(&queue).join("db");
    let garbage = b"garbage".repeat(500_000);
    std::fs::write(&path, &garbage).unwrap();
    let server = setup.start().await;
    let kept: Vec<PathBuf> = std::fs::read_dir(&queue)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("corrupt-"))
        .collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    // sled clears what it cannot read, so the file is kept as it was before.
    assert!(std::fs::read(kept[0].join("db.as-found")).unwrap() == garbage, "not kept as it was");
    assert!(!epoch(&queue).join("db.as-found").exists(), "a copy of the database that counts");
    let log = server.log();
    assert!(log.contains(&kept[0].file_name().unwrap().to_string_lossy().into_owned()), "{log}");
    // It works on.
    let next = server.send(Method::POST, "/bookings", &[], r#"{"name":"next"}"#).await.ticket();
    server.kill();
    let server = setup.start().await;
    assert_eventually!(server.state(&next).await == "pending");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_of_a_newer_version_is_left_alone() {
    let simulator = simulator().await;
    let setup = Setup::new(&simulator.url(), &[]);
    let server = setup.start().await;
    simulator.set_faults(json!([{"kind": "refuse"}])).unwrap();
    let id = server.send(Method::POST, "/bookings", &[], r#"{"name":"kept"}"#).await.ticket();
    server.stop().await;
    let version = setup.data().join("queue/VERSION");
    let ours = std::fs::read(&version).unwrap();
    std::fs::write(&version, "99\n").unwrap();
    let ended = setup.run("serve").await.complains(1, &[&version.display().to_string(), "99"]);
    assert!(!ended.stderr.contains("Seawall is up"), "{ended:?}");
    assert_eq!(std::fs::read_to_string(&version).unwrap(), "99\n");
    std::fs::write(&version, ours).unwrap();
    let server = setup.start().await;
    assert_eventually!(server.state(&id).await == "pending");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_be_open_to_everyone_does_not_start() {
    let setup = Setup::new(NOWHERE, &["admin.listen=0.0.0.0:0"]);
    refused(&setup, &["admin.listen", "token"]).await;
    let setup = Setup::new(NOWHERE, &["server.listen=0.0.0.0:0"]);
    refused(&setup, &["server.public_url", "SEAWALL__SERVER__PUBLIC_URL"]).await;

    let mut setup = Setup::new(
        NOWHERE,
        &[
            "server.listen=0.0.0.0:0",
            "server.public_url=http://seawall.internal:8460",
            "credentials.mode=inject",
            "credentials.alias.default.token_env=FLEXPORT_TOKEN",
        ],
    );
    setup.env.push(("FLEXPORT_TOKEN".to_owned(), "shhh-injected-secret".to_owned()));
    refused(&setup, &["caller", "credentials.mode"]).await;
    let ended = setup.run("serve").await;
    assert!(!ended.stderr.contains("shhh-injected-secret"), "{ended:?}");
}

/// An HTTPS server with a certificate of its own authority; gives its address and the authority's certificate.
async fn https() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "a test's authority");
    let authority = params.self_signed(&key).unwrap();
    let pem = authority.pem();
    let issuer = rcgen::Issuer::new(params, key);
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key.serialize_der().try_into().unwrap())
            .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                    let _ = request.into_body().collect().await;
                    let body = Full::new(Bytes::from_static(b"{\"data\":\"over TLS\"}"));
                    Ok::<_, std::convert::Infallible>(
                        Response::builder().header("content-type", "application/json").body(body).unwrap(),
                    )
                });
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (url, pem)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_whose_certificate_is_not_trusted_gets_nothing_and_is_named() {
    let (url, pem) = https().await;
    let mut setup = Setup::new(&url, &[]);
    let server = setup.start().await;
    let answer = server.get("/shipments/1").await;
    assert_eq!(answer.status, 502, "{answer:?}");
    let error = &answer.json()["error"];
    assert_eq!(error["code"], "seawall_upstream_unreachable", "{error}");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("certificate") && message.contains("UnknownIssuer"), "{message}");
    assert!(message.contains("TLS"), "{message}");
    // What was not sent waits.
    let id = server.send(Method::PATCH, "/shipments/1", &[], "{}").await.ticket();
    server.stop().await;

    let bundle = setup.dir.path().join("ca.pem");
    std::fs::write(&bundle, pem).unwrap();
    setup.env.push(("SSL_CERT_FILE".to_owned(), bundle.display().to_string()));
    let server = setup.start().await;
    let answer = server.get("/shipments/1").await;
    assert_eq!((answer.status.as_u16(), &answer.json()["data"]), (200, &json!("over TLS")));
    assert_eventually!(server.state(&id).await == "done");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_above_the_cap_and_a_malformed_key_reach_nobody() {
    let simulator = simulator().await;
    let setup = Setup::new(&simulator.url(), &["server.max_body=1KiB"]);
    let server = setup.start().await;
    let long = format!(r#"{{"name":"{}"}}"#, "x".repeat(2000));
    let answer = server.send(Method::POST, "/bookings", &[], &long).await;
    assert_eq!(answer.status, 413, "{answer:?}");
    assert_eq!(answer.json()["error"]["code"], "seawall_body_too_large");
    assert!(answer.json()["error"]["message"].as_str().unwrap().contains("1024"), "{answer:?}");
    for key in ["", " ", "\"open", &"k".repeat(256)] {
        let fields = [("idempotency-key", key)];
        let answer = server.send(Method::POST, "/bookings", &fields, r#"{"name":"x"}"#).await;
        assert_eq!(answer.status, 400, "{key:?}: {answer:?}");
        let error = &answer.json()["error"];
        assert_eq!(error["code"], "seawall_bad_request", "{error}");
        assert!(error["message"].as_str().unwrap().contains("Idempotency-Key"), "{error}");
    }
    assert_eq!(writes(&simulator), Vec::<String>::new());
    assert_eq!(server.writes().await, Vec::<Value>::new());
    server.stop().await;
}

// --- commands ---

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_says_ok_and_opens_nothing() {
    let (setup, path) = with_config("[upstream]\ntimeout = \"5s\"\n");
    let ended = setup.run("check").await;
    assert_eq!(
        (ended.code, ended.stdout.trim()),
        (Some(0), &*format!("ok ({})", path.display())),
        "{ended:?}"
    );
    assert!(!setup.data().exists());
    let ended = seawall(&["check", "--config", "/nowhere/at/all.toml"], &[]);
    ended.complains(78, &["/nowhere/at/all.toml"]);
}

#[test]
fn wrong_usage_ends_with_2_and_says_so_on_standard_error() {
    for words in [
        &[] as &[&str],
        &["nonsense"],
        &["serve", "--nonsense"],
        &["breaker", "force-open", "shipments:read"],
        &["breaker", "force-open", "shipments:read", "--reason", " "],
        &["queue", "resolve", "x", "--as", "perhaps", "--reason", "y"],
        &["queue", "resolve", "x", "--as", "drop", "--result-id", "7", "--reason", "y"],
        &["queue", "list", "--limit", "many"],
        &["cache", "purge"],
        &["cache", "purge", "--all", "--tag", "bookings"],
        &["--output", "xml", "status"],
    ] {
        seawall(words, &[]).complains(2, &[]);
    }
}

#[test]
fn help_version_and_completions_go_to_standard_output() {
    assert!(done(seawall(&["--version"], &[])).starts_with("seawall "));
    assert!(
        done(seawall(&["--help"], &[])).contains("force")
            || done(seawall(&["--help"], &[])).contains("breaker")
    );
    let script = done(seawall(&["completions", "bash"], &[]));
    assert!(script.contains("_seawall()") && script.contains("force-open"), "{script}");
    seawall(&["completions", "tcsh"], &[]).complains(2, &["tcsh"]);
}

#[test]
fn manual_pages_are_printed_or_written() {
    let page = done(seawall(&["man"], &[]));
    assert!(page.contains(".TH seawall 1") && page.contains("seawall\\-breaker(1)"), "{page}");
    let page = done(seawall(&["man", "breaker", "force-open"], &[]));
    assert!(page.contains(".TH seawall-breaker-force-open 1") && page.contains("\\-\\-reason"), "{page}");
    seawall(&["man", "braeker"], &[]).complains(2, &["\"braeker\"", "breaker"]);
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man1");
    assert_eq!(done(seawall(&["man", "--dir", pages.to_str().unwrap()], &[])), "");
    assert!(pages.join("seawall.1").exists() && pages.join("seawall-queue-resolve.1").exists());
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    seawall(&["man", "--dir", file.to_str().unwrap()], &[]).complains(1, &["--dir", "cannot be written"]);
}

#[test]
fn what_is_configured_is_shown_with_its_origin_and_what_there_is_as_a_schema() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("proxy.toml");
    let token = dir.path().join("token");
    std::fs::write(&token, "secret-of-the-admin-api").unwrap();
    std::fs::write(&file, format!("[cache]\nmax_stale = \"1h\"\n[admin]\ntoken_file = {token:?}\n")).unwrap();
    let file = file.to_str().unwrap();
    let env = [("SEAWALL__LIMITER__MAX", "7")];
    let words = ["config", "show", "--config", file, "--set", "queue.max_age=2h"];
    let table = done(seawall(&words, &env));
    let line = |key: &str| {
        let found = table.lines().find(|line| line.split(' ').next() == Some(key));
        found
            .unwrap_or_else(|| panic!("no {key} in {table}"))
            .split_whitespace()
            .skip(1)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(line("cache.max_stale"), format!("\"1h\" {file}:2:13"));
    assert_eq!(line("limiter.max"), "7 environment variable SEAWALL__LIMITER__MAX");
    assert_eq!(line("queue.max_age"), "\"2h\" --set queue.max_age");
    assert_eq!(line("profile"), "\"flexport\" default");
    assert!(!table.contains("secret-of"), "{table}");
    let shown: Value =
        serde_json::from_str(&done(seawall(&[&words[..], &["--output", "json"]].concat(), &env))).unwrap();
    let max = shown["settings"].as_array().unwrap().iter().find(|one| one["key"] == "limiter.max").unwrap();
    let wanted = json!({"key": "limiter.max", "value": 7, "origin": "environment variable SEAWALL__LIMITER__MAX", "needs_restart": true});
    assert_eq!(max, &wanted);
    let schema: Value = serde_json::from_str(&done(seawall(&["config", "schema"], &[]))).unwrap();
    assert_eq!(schema["properties"]["cache"]["properties"]["max_stale"]["default"], "1d");

    std::fs::write(file, "[cache]\nmax_stal = \"1h\"\n").unwrap();
    seawall(&words, &[]).complains(78, &["proxy.toml:2:1", "did you mean `cache.max_stale`?"]);
    seawall(&["config", "show", "--running", "--config", file], &[]).complains(2, &["--config"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_was_found_is_not_replaced_by_the_defaults_when_it_is_gone() {
    let setup = Setup::new(NOWHERE, &[]);
    let file = setup.dir.path().join("proxy.toml");
    std::fs::write(&file, "limiter.max_wait = \"7s\"\n").unwrap();
    let server = setup.start().await;
    let shown = || done(operate(&server, &["config", "show", "--running"]));
    assert!(shown().contains("proxy.toml:1:20"));
    std::fs::remove_file(&file).unwrap();
    server.signal(Signal::HUP);
    assert_eventually!(
        server.log().contains("the old configuration stays: proxy.toml: the configuration file")
    );
    assert!(shown().contains("proxy.toml:1:20"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_seawall_shows_its_configuration_and_reloads_it() {
    let (setup, path) = with_config("[cache]\nmax_stale = \"1h\"\n");
    let server = setup.start().await;
    assert!(done(operate(&server, &["config", "show", "--running"])).contains("seawall.toml:2:13"));
    std::fs::write(&path, "[cache]\nmax_stale = \"2h\"\n[limiter]\nmax = 64\n").unwrap();
    let told = done(operate(&server, &["config", "reload"]));
    assert!(
        // That it was seen to change before is possible, too.
        told.contains("changed: ") && told.contains("needs a restart: limiter.max"),
        "{told}"
    );
    assert_eventually!(server.log().contains("settings keep their running values until a restart"));
    std::fs::write(&path, "[cache]\nmax_stale = 3\n").unwrap();
    operate(&server, &["config", "reload"]).complains(1, &["seawall.toml:2:13", "`cache.max_stale`"]);
    assert_eventually!(server.log().contains("seawall.toml:2:13"));
    server.stop().await;
}

#[test]
fn an_admin_api_that_is_not_there_is_named() {
    seawall(&["status", "--admin", NOWHERE], &[]).complains(1, &[NOWHERE, "is Seawall running"]);
    seawall(&["health", "live"], &[("SEAWALL_ADMIN", NOWHERE)]).complains(1, &[NOWHERE]);
    seawall(&["status", "--admin", "https://x"], &[]).complains(1, &["--admin", "http://"]);
    let words = ["status", "--admin", NOWHERE, "--token-file", "/nowhere/token"];
    seawall(&words, &[]).complains(1, &["--token-file /nowhere/token"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_status_of_one_and_of_several() {
    let (one, two) = (Setup::new(NOWHERE, &[]), Setup::new(NOWHERE, &[]));
    let (one, two) = (one.start().await, two.start().await);
    assert_eq!(done(operate(&one, &["health", "live"])), "ok\n");
    assert_eq!(done(operate(&one, &["health", "ready"])), "ready\n");
    assert!(done(operate(&one, &["status"])).contains("in front of"));
    // Before the subcommand or after it, repeated or with commas.
    let both = seawall(&["--output", "json", "status", "--admin", &one.admin, "--admin", &two.admin], &[]);
    let shown: Vec<Value> =
        serde_json::Deserializer::from_str(&done(both)).into_iter().collect::<Result<_, _>>().unwrap();
    assert_eq!(shown.len(), 2, "{shown:?}");
    assert!(shown.iter().all(|status| status["ready"] == true), "{shown:?}");
    let list = format!("{},{}", one.admin, two.admin);
    let both = seawall(&["health", "ready"], &[("SEAWALL_ADMIN", &list)]);
    assert!(both.stderr.contains(&one.admin) && both.stderr.contains(&two.admin), "{both:?}");
    assert_eq!(done(both), "ready\nready\n");
    // One that fails does not hide the other.
    let half = seawall(&["--admin", NOWHERE, "--admin", &two.admin, "health", "ready"], &[]);
    assert_eq!((half.code, half.stdout.as_str()), (Some(1), "ready\n"), "{half:?}");
    assert!(half.stderr.contains(NOWHERE), "{half:?}");
    assert_eq!(one.stdout(), "", "logs belong to standard error");
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn breakers_by_the_command_line() {
    let simulator = simulator().await;
    let server = Setup::new(&simulator.url(), &[]).start().await;
    let table = done(operate(&server, &["breaker", "list"]));
    assert!(table.starts_with("SCOPE") && table.contains("shipments:read"), "{table}");
    let json: Value =
        serde_json::from_str(&done(operate(&server, &["breaker", "list", "--output", "json"]))).unwrap();
    assert!(json["breakers"].as_array().unwrap().len() > 10, "{json}");

    let force = ["breaker", "force-open", "shipments:read", "--reason", "INC-1", "--ttl", "10m"];
    done(operate(&server, &[&force[..], &["--dry-run"]].concat()));
    assert!(server.breaker("shipments:read").await["override"].is_null(), "a dry run changes nothing");
    let shown = done(operate(&server, &force));
    assert!(shown.contains("forced_open") && shown.contains("INC-1"), "{shown}");
    assert_eq!(server.breaker("shipments:read").await["override"]["mode"], "forced_open");
    assert_eq!(server.get("/shipments/1").await.status, 503);
    assert_eq!(simulator.journal().len(), 0);
    done(operate(&server, &["breaker", "auto", "shipments:read"]));
    assert_eventually!(server.is_well("shipments:read").await);

    done(operate(&server, &["breaker", "force-closed", "all", "--reason", "x", "--ttl", "never"]));
    assert_eq!(server.breaker("global").await["override"]["mode"], "forced_closed");
    done(operate(&server, &["breaker", "observe", "global", "--reason", "x"]));
    assert_eq!(server.breaker("global").await["override"]["mode"], "observe");
    done(operate(&server, &["breaker", "auto", "all", "--reason", "over"]));
    assert!(server.breaker("bookings:write").await["override"].is_null());

    let unknown = ["breaker", "force-open", "shipment:read", "--reason", "x"];
    operate(&server, &unknown).complains(1, &["404", "shipment:read", "shipments:read"]);
    let bad = ["breaker", "force-open", "global", "--reason", "x", "--ttl", "soon"];
    operate(&server, &bad).complains(1, &["400", "ttl"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cache_by_the_command_line() {
    let simulator = simulator().await;
    let server = Setup::new(&simulator.url(), &[]).start().await;
    for path in ["/shipments", "/shipments?page=2", "/bookings"] {
        assert_eq!(server.get(path).await.status, 200);
    }
    assert_eventually!({
        let stats: Value =
            serde_json::from_str(&done(operate(&server, &["cache", "stats", "--output", "json"]))).unwrap();
        stats["disk"]["entries"] == 3
    });
    let stats = done(operate(&server, &["cache", "stats"]));
    assert!(stats.starts_with("WHAT") && stats.contains("disk.state"), "{stats}");
    let table = done(operate(&server, &["cache", "list", "--limit", "2"]));
    assert!(table.starts_with("KEY") && table.contains("memory and disk"), "{table}");
    let next = table.split("--after ").nth(1).expect("there is more").trim();
    let rest = done(operate(&server, &["cache", "list", "--after", next]));
    assert_eq!(rest.lines().count(), 2, "{rest}");
    operate(&server, &["cache", "list", "--after", "x"]).complains(1, &["400", "after"]);

    let shipments = ["cache", "purge", "--path", "/shipments", "--hard", "--yes"];
    let shown = done(operate(&server, &[&shipments[..], &["--dry-run"]].concat()));
    assert_eq!(shown.trim(), "2 in memory, 2 on disk would be purged");
    let shown = done(operate(&server, &["cache", "purge", "--tag", "bookings", "--reason", "x"]));
    assert_eq!(shown.trim(), "1 in memory, 1 on disk marked out of date");
    assert_eq!(done(operate(&server, &shipments)).trim(), "2 in memory, 2 on disk deleted");
    assert_eq!(done(operate(&server, &shipments)).trim(), "0 in memory, 0 on disk deleted");
    operate(&server, &["cache", "purge", "--partition", "me"])
        .complains(1, &["404", "partition", "me", "p-"]);
    operate(&server, &["cache", "purge", "--tag", "shipment"]).complains(1, &["404", "tag", "shipments"]);
    operate(&server, &["cache", "purge", "--key", "x"]).complains(1, &["400", "key"]);
    operate(&server, &["cache", "purge", "--prefix", "shipments"]).complains(1, &["400", "prefix"]);
    let bookings = &["cache", "list", "--tag", "bookings", "--freshness", "revalidate"];
    let listed = done(operate(&server, &[&bookings[..], &["--output", "json"]].concat()));
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let entry = &listed["entries"][0];
    assert_eq!((&entry["path"], &entry["hits"]), (&json!("/bookings"), &json!(0)), "{listed}");
    assert!(entry["ttl_seconds"].as_i64().unwrap() < 0, "{listed}");
    let partition = entry["partition"].as_str().unwrap();
    assert!(partition.starts_with("p-") && partition.len() == 12, "{partition}");
    let of_it = ["cache", "list", "--partition", partition, "--freshness", "revalidate"];
    assert!(done(operate(&server, &of_it)).contains("/bookings"));
    assert_eq!(
        done(operate(&server, &["cache", "list", "--partition", partition, "--freshness", "fresh"]))
            .lines()
            .count(),
        1
    );
    operate(&server, &["cache", "list", "--freshness", "old"])
        .complains(1, &["400", "freshness", "revalidate"]);
    operate(&server, &["cache", "list", "--partition", "me"]).complains(1, &["404", "partition", partition]);
    let gone = ["cache", "purge", "--partition", partition, "--hard", "--yes"];
    assert_eq!(done(operate(&server, &gone)).trim(), "1 in memory, 1 on disk deleted");
    assert!(server.log().contains("cache purged"), "{}", server.log());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warming_and_coverage_by_the_command_line() {
    let simulator = simulator().await;
    let setup = Setup::new(&simulator.url(), &[]);
    let server = setup.start().await;
    let warm = |words: &[&str], input: &str| {
        let output = assert_cmd::Command::new(env!("CARGO_BIN_EXE_seawall"))
            .args(["--admin", &server.admin, "cache", "warm"])
            .args(words)
            .env_clear()
            .env("SEAWALL_WARM_TOKEN", "test-api-key-0001")
            .write_stdin(input)
            .timeout(PATIENCE)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ended { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    };
    // Wrong usage, and orders that make no sense.
    for words in [
        &["cache", "warm"][..],
        &["cache", "warm", "--shipments", "/ports"],
        &["cache", "warm", "--status", "--cancel"],
    ] {
        operate(&server, words).complains(2, &["Usage"]);
    }
    let many = ["cache", "warm", "--concurrency", "many", "--shipments"];
    operate(&server, &many).complains(2, &["--concurrency"]);
    operate(&server, &["cache", "warm", "/ports"]).complains(1, &["422", "token", "passthrough"]);
    operate(&server, &["cache", "warm", "--cancel"]).complains(1, &["404", "nothing is being warmed"]);
    operate(&server, &["cache", "warm", "/ports", "--credential", "x"]).complains(1, &["400", "credential"]);
    operate(&server, &["cache", "warm", "--file", "/nowhere"]).complains(1, &["--file /nowhere"]);
    let folder = setup.dir.path().display().to_string();
    operate(&server, &["cache", "warm", "/ports", "--flexport-token-file", &folder])
        .complains(1, &["--flexport-token-file", &folder]);
    warm(&["--file", "-"], "/ports\n\nports\n").complains(1, &["400", "line 3", "ports"]);
    assert!(done(operate(&server, &["cache", "warm", "--status"])).contains("idle"));

    // A list from standard input, of which one cannot be had.
    let ended = warm(&["--file", "-", "--reason", "x"], "# two\n/ports\n/shipments/999999999\n");
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stdout.contains("failed: /shipments/999999999"), "{ended:?}");
    assert!(ended.stderr.contains("/2") && ended.stderr.contains("not everything was warmed"), "{ended:?}");
    // No terminal: lines, and no bar that is drawn over.
    assert!(!ended.stderr.contains('\r') && !ended.stdout.contains('\r'), "{ended:?}");
    let json = done(warm(&["/ports", "--output", "json"], ""));
    let told: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&told["state"], &told["total"], &told["done"]), (&json!("done"), &json!(1), &json!(1)));
    assert_eq!(told["is_lost_on_restart"], true);

    let table = done(warm(&["--shipments", "--concurrency", "8"], ""));
    assert!(table.contains("shipments_listed  12") && !table.contains("failed"), "{table}");
    let table = done(operate(&server, &["cache", "coverage"]));
    assert!(table.starts_with("12 of 12 shipments would be served"), "{table}");
    assert!(table.contains("GET /shipments/:id") && table.contains("proven"), "{table}");
    let json = done(operate(&server, &["cache", "coverage", "--output", "json"]));
    let told: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(told["shipments"]["served"], 12, "{told}");
    operate(&server, &["cache", "coverage", "--partition", "me"]).complains(1, &["404", "partition"]);

    // One that pauses, another, and its end.
    done(operate(&server, &["breaker", "force-open", "ports:read", "--reason", "a test"]));
    assert!(done(warm(&["/ports", "--detach"], "")).contains("running"));
    assert_eventually!(done(operate(&server, &["cache", "warm", "--status"])).contains("breaker-open"));
    warm(&["/ports"], "").complains(1, &["409", "cancel"]);
    done(operate(&server, &["cache", "warm", "--cancel", "--reason", "enough"]));
    assert_eventually!(done(operate(&server, &["cache", "warm", "--status"])).contains("cancelled"));
    let log = server.log();
    for told in ["cache warming begun", "cache warming cancelled", "enough"] {
        assert!(log.contains(told), "no {told:?} in {log}");
    }
    assert!(!log.contains("test-api-key"), "{log}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queued_writes_by_the_command_line() {
    let simulator = simulator().await;
    let times = ["upstream.timeout=2s", "upstream.connect_timeout=2s"];
    let server = Setup::new(&simulator.url(), &times).start().await;
    assert_eq!(done(operate(&server, &["queue", "list"])).lines().count(), 1);

    simulator.set_faults(json!([{"kind": "apply_then_hang", "match": {"method": "POST"}}])).unwrap();
    let mut unknown = Vec::new();
    for name in ["a", "b", "c"] {
        let answer = server.send(Method::POST, "/bookings", &[], &format!(r#"{{"name":"{name}"}}"#)).await;
        assert_eq!(answer.status, 504, "{answer:?}");
        unknown.push(answer.field("seawall-write-id").to_owned());
    }
    // What waits is not even tried.
    done(operate(&server, &["breaker", "force-open", "bookings:write", "--reason", "a test"]));
    let waiting = server.send(Method::POST, "/bookings", &[], r#"{"name":"d"}"#).await.ticket();

    let table = done(operate(&server, &["queue", "list"]));
    assert_eq!(table.lines().count(), 5, "{table}");
    assert!(table.starts_with("WRITE") && unknown.iter().all(|id| table.contains(id)), "{table}");
    let page = done(operate(&server, &["queue", "list", "--limit", "3"]));
    let (first, next) = page.split_once("more: --after ").expect("there is a fourth");
    let rest = done(operate(&server, &["queue", "list", "--after", next.trim()]));
    assert_eq!((first.lines().count(), rest.lines().count()), (4, 2), "{page}{rest}");
    assert!(rest.contains(&*waiting) && !rest.contains("more:"), "{rest}");
    let list = ["--output", "json", "queue", "list", "--state", "pending", "--route", "POST /bookings"];
    let json: Value = serde_json::from_str(&done(operate(&server, &list))).unwrap();
    assert_eq!(json["writes"].as_array().unwrap().len(), 1, "{json}");
    assert_eq!(json["writes"][0]["write_id"], *waiting);
    operate(&server, &["queue", "list", "--state", "perhaps"]).complains(1, &["400", "state", "perhaps"]);
    let shown: Value = serde_json::from_str(&done(operate(&server, &["queue", "show", &waiting]))).unwrap();
    assert_eq!((&shown["state"], &shown["path"]), (&json!("pending"), &json!("/bookings")));
    operate(&server, &["queue", "show", "7"]).complains(1, &["400", "UUID"]);
    let nobody = "00000000-0000-4000-8000-000000000000";
    operate(&server, &["queue", "show", nobody]).complains(1, &["404", nobody]);

    // Nothing without a yes.
    let cancel = ["queue", "cancel", &waiting, "--reason", "not needed"];
    operate(&server, &cancel).complains(1, &["--yes", "nothing was changed"]);
    assert_eq!(server.state(&waiting).await, "pending");
    done(operate(&server, &[&cancel[..], &["--yes"]].concat()));
    assert_eq!(server.state(&waiting).await, "cancelled");
    operate(&server, &[&cancel[..], &["--yes"]].concat()).complains(1, &["409"]);
    operate(&server, &["--yes", "queue", "cancel", &unknown[0], "--reason", "x"]).complains(1, &["409"]);

    simulator.clear_faults();
    done(operate(&server, &["breaker", "auto", "bookings:write"]));
    let resolve = |id: &str, words: &[&str]| {
        operate(&server, &[&["--yes", "queue", "resolve", id, "--reason", "looked"], words].concat())
    };
    done(resolve(&unknown[0], &["--as", "applied", "--result-id", "77"]));
    assert_eq!(server.state(&unknown[0]).await, "done");
    let history = server.ticket(&unknown[0]).await["history"].to_string();
    assert!(history.contains("looked") && history.contains("77"), "{history}");
    done(resolve(&unknown[1], &["--as", "drop"]));
    assert_eq!(server.state(&unknown[1]).await, "dead");
    assert_eq!(arrivals(&simulator, "POST", "/bookings"), 3);
    done(resolve(&unknown[2], &["--as", "not-applied"]));
    assert_eventually!(server.state(&unknown[2]).await == "done");
    assert_eq!(arrivals(&simulator, "POST", "/bookings"), 4);
    resolve(&unknown[2], &["--as", "applied"]).complains(1, &["409"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_token_is_asked_for_and_shown_nowhere() {
    let setup = Setup::new(NOWHERE, &[]);
    let file = setup.dir.path().join("token");
    std::fs::write(&file, "the-admin-secret-token\n").unwrap();
    let setup = setup.set(format!("admin.token_file={}", file.display()));
    let server = setup.start().await;
    operate(&server, &["status"]).complains(1, &["401", "token"]);
    assert_eq!(done(operate(&server, &["health", "ready"])), "ready\n");
    done(operate(&server, &["--token-file", file.to_str().unwrap(), "status"]));
    let env = [("SEAWALL_ADMIN_TOKEN", "the-admin-secret-token")];
    done(seawall(&["status", "--admin", &server.admin], &env));
    let wrong = [("SEAWALL_ADMIN_TOKEN", "another-secret-token")];
    let ended = seawall(&["status", "--admin", &server.admin], &wrong).complains(1, &["401"]);
    assert!(!ended.stderr.contains("another-secret-token"), "{ended:?}");
    assert!(!server.log().contains("secret-token"), "{}", server.log());
    server.stop().await;
}

// --- signals ---

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_term_ends_with_0_and_a_second_signal_at_once_with_1() {
    let simulator = simulator().await;
    let setup = Setup::new(
        &simulator.url(),
        &["server.drain.grace=1h", "upstream.timeout=1h", "telemetry.log=info,seawall=debug"],
    );
    for signal in [Signal::TERM, Signal::INT] {
        let mut server = setup.start().await;
        server.signal(signal);
        assert_eq!(server.exit().await, Some(0), "{}", server.log());
    }
    let mut server = setup.start().await;
    simulator.set_faults(json!([{"kind": "hang"}])).unwrap();
    let call = server.try_send(Method::GET, "/shipments/1", &[], "");
    let term = async {
        assert_eventually!(!simulator.journal().is_empty());
        server.signal(Signal::TERM);
        assert_eventually!(server.log().contains("shutting down"));
        let ready = operate(&server, &["health", "ready"]);
        assert_eq!(ready.code, Some(1), "{ready:?}");
        assert!(ready.stderr.contains("shutting down"), "{ready:?}");
        server.signal(Signal::TERM);
    };
    let (answer, ()) = tokio::join!(call, term);
    assert!(answer.is_err(), "{answer:?}");
    // Long before the grace ends, and the call with it.
    assert_eq!(server.exit().await, Some(1), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hangup_reads_a_credential_file_again_and_keeps_the_old_one_when_it_is_bad() {
    let simulator = simulator().await;
    let setup = Setup::new(&simulator.url(), &["credentials.mode=inject"]);
    let file = setup.dir.path().join("flexport-token");
    std::fs::write(&file, "first-injected-secret\n").unwrap();
    let setup = setup.set(format!("credentials.alias.default.token_file={}", file.display()));
    let server = setup.start().await;
    let sent = || {
        let journal = simulator.journal();
        journal.last().unwrap()["headers"]["authorization"].as_str().unwrap_or_default().to_owned()
    };
    server.get("/shipments?per=1").await;
    assert_eq!(sent(), "Bearer first-injected-secret");
    std::fs::write(&file, "second-injected-secret\n").unwrap();
    server.signal(Signal::HUP);
    assert_eventually!(server.log().contains("configuration reloaded"));
    server.get("/shipments?per=1").await;
    assert_eq!(sent(), "Bearer second-injected-secret");
    std::fs::remove_file(&file).unwrap();
    server.signal(Signal::HUP);
    assert_eventually!(server.log().contains("the old configuration stays"));
    assert!(server.log().contains(&file.display().to_string()), "{}", server.log());
    server.get("/shipments?per=1").await;
    assert_eq!(sent(), "Bearer second-injected-secret");
    assert!(!server.log().contains("injected-secret"), "{}", server.log());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_ever_logged_nor_on_the_disk_in_clear() {
    let simulator = simulator().await;
    let times = ["upstream.timeout=2s", "upstream.connect_timeout=2s", "telemetry.log=debug"];
    let setup = Setup::new(&simulator.url(), &times);
    let server = setup.start().await;
    let token = [("authorization", "Bearer very-secret-flexport-key")];
    let id = server.send(Method::GET, "/shipments?per=1", &token, "").await.json()["data"]["data"][0]["id"]
        .to_string();
    let path = format!("/shipments/{id}?f.secret=secret-in-a-query");
    server.send(Method::GET, &path, &token, "").await;
    simulator.set_faults(json!([{"kind": "apply_then_hang", "match": {"method": "POST"}}])).unwrap();
    let body = r#"{"name":"secret-in-a-body"}"#;
    assert_eq!(server.send(Method::POST, "/bookings", &token, body).await.status, 504);
    simulator.set_faults(json!([{"kind": "refuse"}])).unwrap();
    server
        .send(Method::PATCH, &format!("/shipments/{id}"), &token, r#"{"metadata":{"v":["secret-value"]}}"#)
        .await
        .ticket();
    let caller =
        [("authorization", "Basic dXNlcjpzZWNyZXQtcGFzc3dvcmQ="), ("seawall-token", "secret-caller-token")];
    server.send(Method::GET, "/shipments/1", &caller, "").await;
    for command in
        [&["queue", "list", "--output", "json"][..], &["status", "--output", "json"], &["breaker", "list"]]
    {
        let shown = done(operate(&server, command));
        assert!(!shown.contains("secret"), "{shown}");
    }
    let metrics = server.admin(Method::GET, "/metrics", None).await;
    assert!(!String::from_utf8_lossy(&metrics.body).contains("secret"));
    assert!(server.log().len() > 500, "nothing was logged");
    let log = server.log();
    // The data folder has a file of that name.
    let told: Vec<&str> = log
        .lines()
        .filter(|line| line.replace("data/secret", "").contains("secret") || line.contains("dXNlcj"))
        .collect();
    assert_eq!(told, Vec::<&str>::new());
    let queue = setup.data().join("queue");
    let cache = setup.data().join("cache");
    let segment = || {
        let files = std::fs::read_dir(&cache).unwrap().map(|file| file.unwrap().path());
        files.into_iter().find(|file| file.extension().is_some_and(|end| end == "log"))
    };
    assert_eventually!(segment().is_some_and(|file| file.metadata().unwrap().len() > 1000));
    let segment = segment().unwrap();
    server.kill();
    for path in [epoch(&queue).join("db"), segment, cache.join("ledger/log")] {
        let bytes = std::fs::read(path).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        for word in ["very-secret-flexport-key", "secret-in-a-", "secret-value", "/bookings", "/shipment"] {
            assert!(!text.contains(word), "{word} is on the disk in clear");
        }
    }
}
