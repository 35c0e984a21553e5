//! Holds deploy/ to the program: every word, variable, port, path and time that stands there is one that Seawall knows.
//! That systemd and Kubernetes know theirs is asked of their own tools: ci/deploy.sh.

use clap::Parser;
use regex::Regex;
use seawall::app::AFTER_GRACE;
use seawall::cli::Cli;
use seawall::config::{LoadArgs, Settings, Snapshot, load};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

const OVERLAYS: [(&str, &str); 3] =
    [("standalone", "statefulset.yaml"), ("sidecar", "app.yaml"), ("sidecar-ephemeral", "app.yaml")];

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = deploy().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What all matches of a pattern have in their first group.
fn all(pattern: &str, text: &str) -> Vec<String> {
    Regex::new(pattern).unwrap().captures_iter(text).map(|found| found[1].to_owned()).collect()
}

fn one(pattern: &str, text: &str) -> String {
    let found = all(pattern, text);
    assert_eq!(found.len(), 1, "{pattern}: {found:?}");
    found.into_iter().next().unwrap()
}

/// A manifest without its comments.
fn manifest(path: impl AsRef<Path>) -> String {
    let is_comment = |line: &&str| line.trim_start().starts_with('#');
    read(path).lines().filter(|line| !is_comment(line)).flat_map(|line| [line, "\n"]).collect()
}

/// The variables of Seawall's that a manifest sets, as the kubelet fills them in.
fn variables(manifest: &str) -> BTreeMap<String, String> {
    Regex::new(r"- name: (SEAWALL\w+)\s+value: (.+)")
        .unwrap()
        .captures_iter(manifest)
        .map(|found| {
            let value = found[2].trim_matches('"').replace("$(POD_NAME)", "seawall-0");
            (found[1].to_owned(), value.replace("$(POD_NAMESPACE)", "prod"))
        })
        .collect()
}

/// The overlay's configuration as its container has it, with secrets in the files that it names.
fn configuration(overlay: &str, manifest: &str) -> Snapshot {
    let dir = tempfile::tempdir().unwrap();
    for name in ["store-key", "admin-token"] {
        std::fs::write(dir.path().join(name), "0123456789abcdef0123456789abcdef").unwrap();
    }
    let text = read(format!("k8s/overlays/{overlay}/proxy.toml"));
    let text = text.replace("/run/secrets/seawall", dir.path().to_str().unwrap());
    let file = dir.path().join("proxy.toml");
    std::fs::write(&file, text).unwrap();
    load(&LoadArgs::new(Some(file), Vec::new(), variables(manifest)))
        .unwrap_or_else(|problems| panic!("{overlay}: {problems}"))
}

#[test]
fn the_configuration_of_each_overlay_is_valid_and_fits_its_manifest() {
    for (overlay, file) in OVERLAYS {
        let text = manifest(format!("k8s/overlays/{overlay}/{file}"));
        let snapshot = configuration(overlay, &text);
        assert!(snapshot.warnings.is_empty(), "{overlay}: {:?}", snapshot.warnings);
        let settings = &snapshot.settings;

        let ports: BTreeSet<u16> =
            all(r"containerPort: (\d+)", &text).iter().map(|port| port.parse().unwrap()).collect();
        let mut expected = BTreeSet::from([settings.admin.listen.port()]);
        if !settings.server.listen.ip().is_loopback() {
            expected.insert(settings.server.listen.port());
        }
        assert_eq!(ports, expected, "{overlay}");
        let scraped = one(r#"prometheus.io/port: "(\d+)""#, &text);
        assert_eq!(scraped, settings.admin.listen.port().to_string(), "{overlay}");
        assert!(
            !settings.admin.listen.ip().is_loopback(),
            "{overlay}: the kubelet comes from outside the pod"
        );
        assert!(settings.admin.open_health, "{overlay}: the kubelet has no token");

        let grace: u64 = one(r"terminationGracePeriodSeconds: (\d+)", &text).parse().unwrap();
        assert!(Duration::from_secs(grace) > *settings.server.drain.grace + AFTER_GRACE, "{overlay}");

        let mounts = all(r"mountPath: (\S+)", &text);
        assert!(mounts.iter().any(|path| Path::new(path) == settings.data_dir), "{overlay}: {mounts:?}");
        let toml = read(format!("k8s/overlays/{overlay}/proxy.toml"));
        for file in all(r#"_file = "(.+)""#, &toml) {
            let (folder, key) = file.rsplit_once('/').unwrap();
            assert!(mounts.iter().any(|path| path == folder), "{overlay}: {file}");
            let how = read(format!("k8s/overlays/{overlay}/kustomization.yaml"));
            assert!(how.contains(&format!("--from-literal={key}=")), "{overlay}: who makes {key}?");
        }
        let volume = one(r"storage: (\d+)Gi", &text).parse::<u64>().unwrap() << 30;
        let queue = if settings.queue.enabled { 2 * settings.queue.max_bytes.0 } else { 0 };
        assert!(volume / 10 * 9 > queue + settings.cache.disk_max.0, "{overlay}: the volume is too small");
        arguments_are_known(overlay, &text, &mounts);
        probes_are_known(overlay, &text);
        is_hardened(overlay, &text);
    }
}

fn arguments_are_known(overlay: &str, text: &str, mounts: &[String]) {
    let words: Vec<String> = serde_json::from_str(&one(r"args: (\[.*\])", text)).unwrap();
    let words = [vec!["seawall".to_owned()], words].concat();
    Cli::try_parse_from(&words).unwrap_or_else(|error| panic!("{overlay}: {error}"));
    let config = words.iter().position(|word| word == "--config").unwrap() + 1;
    let (folder, name) = words[config].rsplit_once('/').unwrap();
    assert_eq!(name, "proxy.toml", "the name of the file in the ConfigMap");
    assert!(mounts.iter().any(|path| path == folder), "{overlay}: {mounts:?}");
}

fn probes_are_known(overlay: &str, text: &str) {
    let routes = include_str!("../../src/admin/mod.rs");
    for (probe, expected) in
        [("startupProbe", "/readyz"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")]
    {
        let path = one(&format!(r"{probe}:\s+httpGet:\s+path: (\S+)\s+port: \w*-?admin"), text);
        assert_eq!(path, expected, "{overlay}: {probe}");
        assert!(routes.contains(&format!("\"{path}\"")), "{overlay}: {path}");
    }
    assert_eq!(one(r"prometheus.io/path: (\S+)", text), "/metrics");
    assert!(routes.contains("\"/metrics\""));
}

fn is_hardened(overlay: &str, text: &str) {
    for line in [
        "runAsNonRoot: true",
        "readOnlyRootFilesystem: true",
        "allowPrivilegeEscalation: false",
        "drop: [\"ALL\"]",
        "type: RuntimeDefault",
        "automountServiceAccountToken: false",
    ] {
        assert!(text.contains(line), "{overlay}: {line}");
    }
    let user = one(r"runAsUser: (\d+)", text);
    assert!(include_str!("../../Dockerfile").contains(&format!("USER {user}:{user}")), "{overlay}: {user}");
    assert_eq!(one(r"fsGroup: (\d+)", text), user, "{overlay}: it must be able to write to its volume");
}

#[test]
fn what_queues_writes_has_a_volume_that_outlives_its_pod_and_the_rest_says_so() {
    for (overlay, file) in OVERLAYS {
        let text = manifest(format!("k8s/overlays/{overlay}/{file}"));
        let queues = configuration(overlay, &text).settings.queue.enabled;
        let is_lasting = text.contains("kind: StatefulSet") && text.contains("  volumeClaimTemplates:");
        assert_eq!(queues, is_lasting, "{overlay}");
        assert!(!text.contains("emptyDir"), "{overlay}");
        if overlay.starts_with("sidecar") {
            let whole = read(format!("k8s/overlays/{overlay}/{file}"));
            assert!(whole.starts_with("# !!! EPHEMERAL STORAGE LOSES WRITES !!!"), "{overlay}");
            assert!(text.contains("initContainers:") && text.contains("restartPolicy: Always"), "{overlay}");
            let base = one(r"name: FLEXPORT_BASE_URL\s+value: (\S+)", &text);
            assert_eq!(base, format!("http://{}", Settings::default().server.listen), "{overlay}");
        }
    }
    assert!(read("README.md").contains("EPHEMERAL STORAGE LOSES WRITES"));
}

#[test]
fn the_standalone_service_leads_to_the_pod() {
    let (pod, services) = (
        manifest("k8s/overlays/standalone/statefulset.yaml"),
        manifest("k8s/overlays/standalone/service.yaml"),
    );
    let governing = one(r"serviceName: (\S+)", &pod);
    assert!(services.contains(&format!("name: {governing}\n")));
    let snapshot = configuration("standalone", &pod);
    let port = snapshot.settings.server.listen.port();
    assert_eq!(&*snapshot.public_url, format!("http://seawall-0.{governing}.prod.svc:{port}"));
    for found in all(r"- name: http\s+port: (\d+)", &services) {
        assert_eq!(found, port.to_string(), "links lead to the same port as the service");
    }
    let label = "app.kubernetes.io/component: proxy";
    for file in ["statefulset.yaml", "service.yaml", "poddisruptionbudget.yaml", "networkpolicy.yaml"] {
        assert!(manifest(format!("k8s/overlays/standalone/{file}")).contains(label), "{file}");
    }
}

#[test]
fn every_variable_in_the_manifests_and_units_is_one_of_the_reference() {
    let reference = include_str!("../../docs/CONFIGURATION.md");
    let mut seen = 0;
    let mut folders = vec![deploy()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            for name in all(r"\b(SEAWALL__[A-Z0-9_]+[A-Z0-9])\b", &read(&path)) {
                let is_known = reference.contains(&format!("`{name}`")) || name == "SEAWALL__SECTION__KEY";
                assert!(is_known, "{}: {name}", path.display());
                seen += 1;
            }
        }
    }
    assert!(seen > 10, "only {seen} were found");
}

#[test]
fn the_unit_says_what_seawall_does() {
    let text = read("systemd/seawall.service");
    let value = |key: &str| one(&format!(r"(?m)^{key}=(.*)$"), &text);
    let settings = Settings::default();
    let command = value("ExecStart");
    let words: Vec<&str> = command.split(' ').collect();
    assert_eq!(words[0], "/usr/bin/seawall");
    Cli::try_parse_from(&words).unwrap_or_else(|error| panic!("{command}: {error}"));
    // Its exit code would not count for RestartPreventExitStatus.
    assert_eq!(all(r"(?m)^(ExecStartPre=.*)$", &text), [""; 0]);
    let seconds = |key: &str| Duration::from_secs(value(key).parse().unwrap());
    assert!(seconds("TimeoutStopSec") > *settings.server.drain.grace + AFTER_GRACE);
    assert!(seconds("TimeoutStartSec") > *settings.store.lock_wait);
    let files: u32 = value("LimitNOFILE").parse().unwrap();
    assert!(files > 2 * settings.server.max_connections);
    assert_eq!(value("RestartPreventExitStatus"), "78", "the exit code of a bad configuration");
    assert_eq!(value("Type"), "notify", "tests/crash/store.rs shows that it is told");
    assert!(value("ExecReload").contains("-HUP"));
    // `data_dir = ""` is $STATE_DIRECTORY, which this sets.
    assert_eq!(value("StateDirectory"), "seawall");
    let home = one(r"(?m)^u seawall .* (/var/lib/\S+)", &read("systemd/sysusers.conf"));
    assert_eq!(home, "/var/lib/seawall");
    let state = LoadArgs::new(None, Vec::new(), [("STATE_DIRECTORY".to_owned(), home.clone())]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("proxy.toml");
    std::fs::write(&file, include_str!("../../proxy.toml")).unwrap();
    let snapshot = load(&LoadArgs { config: Some(file), ..state }).unwrap();
    assert_eq!(snapshot.settings.data_dir, Path::new(&home), "the shipped proxy.toml, under systemd");
}

#[test]
fn each_credential_of_the_unit_is_loaded_and_used() {
    let text = read("systemd/seawall.service.d/credentials.conf");
    let loaded = all(r"(?m)^LoadCredential=(\S+):/etc/seawall/credentials/\S+$", &text);
    let used = all(r"(?m)^Environment=SEAWALL__\w+_FILE=%d/(\S+)$", &text);
    assert!(!loaded.is_empty());
    assert_eq!(loaded, used);
    for name in &loaded {
        assert!(text.contains(&format!("/dev/stdin /etc/seawall/credentials/{name}")), "who makes {name}?");
    }
    assert!(read("systemd/tmpfiles.conf").contains("d /etc/seawall/credentials 0700 root root"));
}

#[test]
fn the_end_is_over_before_kubernetes_loses_its_patience() {
    let grace = *Settings::default().server.drain.grace;
    assert!(grace + AFTER_GRACE < Duration::from_secs(30));
    assert!(AFTER_GRACE <= Duration::from_secs(5));
    assert!(read("README.md").contains(&format!("`server.drain.grace` ({} s) plus five", grace.as_secs())));
    assert!(
        include_str!("../../proxy.toml").contains("kills the process less five seconds (Kubernetes: 30 s)")
    );
}

#[test]
fn the_readme_names_every_way() {
    let readme = read("README.md");
    for (overlay, _) in OVERLAYS {
        assert!(readme.contains(&format!("k8s/overlays/{overlay}")), "{overlay}");
    }
    for file in ["seawall.service", "credentials.conf", "seawall.env", "sysusers.conf", "tmpfiles.conf"] {
        assert!(readme.contains(file), "{file}");
    }
}
