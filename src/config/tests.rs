//! The messages, word for word, and the shipped file.

mod told;

use super::load::gather_from;
use super::*;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const SHIPPED: &str = include_str!("../../proxy.toml");
const HASH: &str = "6ca13d52ca70c883e0f0bb101e425a89e8624de51db2d2392593af6a84118090";

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    fn args(&self, text: &str, env: &[(&str, &str)], sets: &[&str]) -> LoadArgs {
        let text = text.replace("DIR", self.0.path().to_str().unwrap());
        let config = self.write("proxy.toml", &text);
        LoadArgs::new(
            Some(config),
            sets.iter().map(|set| (*set).to_owned()).collect(),
            env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        )
    }

    /// Each line of what is wrong, with `DIR` for the folder.
    fn problems(&self, text: &str, env: &[(&str, &str)], sets: &[&str]) -> Vec<String> {
        match load(&self.args(text, env, sets)) {
            Ok(_) => Vec::new(),
            Err(diagnostics) => {
                let folder = self.0.path().to_str().unwrap();
                diagnostics.to_string().replace(folder, "DIR").lines().map(str::to_owned).collect()
            }
        }
    }
}

fn problems(text: &str) -> Vec<String> {
    Folder::new().problems(text, &[], &[])
}

fn reload(live: &Live, trigger: Trigger) -> Result<ReloadReport, Diagnostics> {
    live.reload(trigger, |_, _| {})
}

#[test]
fn the_shipped_file_equals_the_defaults_and_has_every_key() {
    let folder = Folder::new();
    let mut snapshot = load(&folder.args(SHIPPED, &[], &[])).unwrap();
    assert_eq!(snapshot.settings.data_dir, Path::new("./data"));
    snapshot.settings.data_dir = PathBuf::new();
    assert_eq!(snapshot.settings, Settings::default());
    assert_eq!(snapshot.warnings, Vec::<String>::new());
    let missing: Vec<_> = schema::paths()
        .into_iter()
        .filter(|path| matches!(schema::find(path.split('.')), Some(schema::Shape::Leaf(_))))
        .filter(|path| !snapshot.origins.contains_key(path))
        .collect();
    assert_eq!(missing, Vec::<String>::new(), "keys that the file does not have");
}

#[test]
fn the_examples_in_the_shipped_file_have_every_key_and_are_good() {
    // An example line has no space behind `#`.
    let lines = SHIPPED.lines().filter_map(|line| line.strip_prefix('#'));
    let examples: Vec<_> = lines.filter(|line| !line.is_empty() && !line.starts_with(' ')).collect();
    let text = examples.join("\n");
    let folder = Folder::new();
    folder.write("flexport-token", "flexport-token-of-a-test");
    folder.write("booking-service-token", "token-of-the-booking-service");
    let text = text.replace("/run/secrets", "DIR");
    assert_eq!(folder.problems(&text, &[], &[]), Vec::<String>::new());
    let origins = load(&folder.args(&text, &[], &[])).unwrap().origins;
    let found: BTreeSet<String> = origins.keys().map(|key| key.replace("[1]", "[0]")).collect();
    for (name, prefix) in [
        (vec!["caller"], "caller[0]"),
        (vec!["route"], "route[0]"),
        (vec!["breaker", "scope"], "breaker.scope[0]"),
        (vec!["credentials", "identity"], "credentials.identity[0]"),
        (vec!["credentials", "alias"], "credentials.alias.default"),
    ] {
        let Some(schema::Shape::Rows(fields) | schema::Shape::Named(fields)) = schema::find(name) else {
            panic!("{prefix} is a list or a table of tables");
        };
        for (field, _) in fields {
            let key = format!("{prefix}.{field}");
            assert!(found.contains(&key), "the file has no example of {key}");
        }
    }
}

#[test]
fn keys_marked_restart_are_those_of_the_table() {
    let folder = Folder::new();
    let origins = load(&folder.args(SHIPPED, &[], &[])).unwrap().origins;
    let lines: Vec<_> = SHIPPED.lines().collect();
    let mut marked = BTreeSet::new();
    for (key, origin) in origins.iter() {
        let Origin::File { line, .. } = origin else { continue };
        // The comment above, over keys that share it.
        let mut at = *line as usize - 1;
        while at > 0 && !lines[at - 1].is_empty() && !lines[at - 1].starts_with('[') {
            at -= 1;
            if lines[at].starts_with("# [restart]") {
                marked.insert(key.as_str());
            }
        }
    }
    assert_eq!(marked, NEEDS_RESTART.iter().copied().collect());
}

#[test]
fn an_unknown_key_is_told_with_its_place_and_a_suggestion() {
    assert_eq!(
        problems("[cache]\nmemory = \"4MiB\"\n  max_stal = \"1h\"\n"),
        ["DIR/proxy.toml:3:3: unknown key `cache.max_stal`; did you mean `cache.max_stale`?"]
    );
    assert_eq!(
        problems("[cach]\nmemory = \"1MiB\"\n"),
        ["DIR/proxy.toml:1:2: unknown key `cach`; did you mean `cache`?"]
    );
    assert_eq!(
        problems("public_url = \"http://x\"\n"),
        ["DIR/proxy.toml:1:1: unknown key `public_url`; did you mean `server.public_url`?"]
    );
    assert_eq!(
        problems(&format!("[[caller]]\nname = \"a\"\ntoken_sha265 = \"{HASH}\"\ntoken_env = \"A\"\n")),
        [
            "DIR/proxy.toml:3:1: unknown key `caller[0].token_sha265`; did you mean `caller[0].token_sha256`?",
            "DIR/proxy.toml:4:13: `caller[0].token_env`: the environment variable A is not set",
        ]
    );
    assert_eq!(problems("wibble = 1"), ["DIR/proxy.toml:1:1: unknown key `wibble`"]);
    let lines = problems("[upstream]\ntoken = \"sk-secret\"\n");
    assert_eq!(
        lines,
        [
            "DIR/proxy.toml:2:1: unknown key `upstream.token`; secrets are given by `token_file` or `token_env` only"
        ]
    );
}

#[test]
fn a_wrong_type_or_value_is_told_with_what_is_expected() {
    for (text, expected) in [
        (
            "cache.max_stale = 30",
            "1:19: `cache.max_stale`: expected a duration such as \"30s\", found integer 30",
        ),
        (
            "cache.max_stale = \"30\"",
            "1:19: `cache.max_stale`: expected a duration such as \"30s\", found \"30\"; a unit is missing: a duration is \
             written like \"250ms\", \"30s\", \"1m 30s\", \"4h\" or \"2d\"",
        ),
        (
            "cache.memory = \"64MB\"",
            "1:16: `cache.memory`: expected a size such as \"64MiB\", found \"64MB\"; a size is written like \"512B\", \
             \"64KiB\", \"128MiB\" or \"1GiB\"",
        ),
        (
            "cache.honour_request_cc = \"yes\"",
            "1:27: `cache.honour_request_cc`: expected true or false, found \"yes\"",
        ),
        (
            "breaker.min_calls = -1",
            "1:21: `breaker.min_calls`: expected a whole number from 0 to 4294967295, found integer -1",
        ),
        (
            "breaker.min_calls = 99999999999999999999",
            "1:21: `breaker.min_calls`: expected a whole number from 0 to 4294967295, found a number that is too large",
        ),
        (
            "server.listen = \"localhost:80\"",
            "1:17: `server.listen`: expected an IP address and a port such as \"127.0.0.1:8460\", found \"localhost:80\"",
        ),
        (
            "profile = \"flexprot\"",
            "1:11: `profile`: expected \"flexport\" or \"strict\", found \"flexprot\"; did you mean \"flexport\"?",
        ),
        ("cache = 3", "1:9: `cache`: expected a section such as `[cache]`, found a number"),
        (
            "[caller]\nname = \"a\"",
            "1:1: `caller`: expected a list of tables: write `[[caller]]` with two brackets",
        ),
        (
            "upstream.link_bases = \"https://x\"",
            "1:23: `upstream.link_bases`: expected a list of strings such as [\"a\", \"b\"], found a string",
        ),
        ("data_dir = 12345678", "1:12: `data_dir`: expected a path as a string, found a number"),
    ] {
        assert_eq!(problems(text), [format!("DIR/proxy.toml:{expected}")], "{text}");
    }
}

#[test]
fn what_is_not_toml_is_told_with_its_place_and_without_the_line() {
    let lines = problems("[admin]\ntoken_env = sk-secret-token\n[server\n");
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("DIR/proxy.toml:2:13: this is not TOML: "), "{lines:?}");
    assert!(lines[1].starts_with("DIR/proxy.toml:3:"), "{lines:?}");
    assert!(!lines.join(" ").contains("sk-secret"), "{lines:?}");
}

#[test]
fn environment_and_command_line_lie_over_the_file() {
    let folder = Folder::new();
    let args = folder.args(
        "[cache]\nmax_stale = \"1h\"\nmax_stale_429 = \"2m\"\n[server.drain]\ngrace = \"1s\"\n",
        &[
            ("SEAWALL__CACHE__MAX_STALE", "2h"),
            ("SEAWALL__SERVER__DRAIN__GRACE", "7s"),
            ("SEAWALL__DATA_DIR", "/var/lib/seawall"),
            ("SEAWALL__UPSTREAM__LINK_BASES", "[\"https://a.example\", \"https://b.example\"]"),
            ("SEAWALL__PROBE__ENABLED", "false"),
            ("SEAWALL__BREAKER__FAILURE_SHARE", "1"),
            ("SEAWALL_PORT", "tcp://10.0.0.1:80"),
        ],
        &["cache.max_stale=3h", "limiter.max=7", "telemetry.log=\"debug\"", "server.public_url=https://x/?"],
    );
    let error = load(&args).unwrap_err().to_string();
    assert_eq!(
        error,
        "--set server.public_url: `server.public_url`: the URL must have no query and no fragment (`?`, `#`)"
    );
    let args = LoadArgs { sets: args.sets[..3].to_vec(), ..args };
    let snapshot = load(&args).unwrap();
    let settings = &snapshot.settings;
    assert_eq!(settings.cache.max_stale.to_string(), "3h");
    assert_eq!(settings.cache.max_stale_429.to_string(), "2m");
    assert_eq!(settings.server.drain.grace.to_string(), "7s");
    assert_eq!(settings.data_dir, Path::new("/var/lib/seawall"));
    assert_eq!(settings.upstream.link_bases, ["https://a.example", "https://b.example"]);
    assert!(!settings.probe.enabled);
    assert!((settings.breaker.failure_share - 1.0).abs() < f64::EPSILON);
    assert_eq!(settings.limiter.max, 7);
    assert_eq!(settings.telemetry.log, "debug");
    assert_eq!(snapshot.origin_of("cache.max_stale").to_string(), "--set cache.max_stale");
    assert_eq!(
        snapshot.origin_of("server.drain.grace").to_string(),
        "environment variable SEAWALL__SERVER__DRAIN__GRACE"
    );
    assert!(snapshot.origin_of("cache.max_stale_429").to_string().ends_with("proxy.toml:3:17"));
    assert_eq!(snapshot.origin_of("queue.max_age"), Origin::Default);
    let shipments = snapshot.routes.find(&http::Method::GET, "/shipments");
    assert_eq!(shipments.cache.as_ref().unwrap().max_stale, *settings.cache.max_stale);
}

#[test]
fn what_has_the_wrong_shape_in_the_file_is_told_when_a_layer_over_it_sets_something_there_too() {
    let problem = |text, env: &[(&str, &str)], sets: &[&str]| Folder::new().problems(text, env, sets);
    let list = "[[upstream]]\nbase_url = \"https://api.example\"\n";
    let expected = ["DIR/proxy.toml:1:1: `upstream`: expected a section such as `[upstream]`, found a list"];
    assert_eq!(problem(list, &[("SEAWALL__UPSTREAM__MAX_IDLE", "3")], &[]), expected);
    assert_eq!(problem(list, &[], &["upstream.tls.min_version=1.3"]), expected);
    let expected = ["DIR/proxy.toml:1:9: `queue`: expected a section such as `[queue]`, found true"];
    assert_eq!(problem("queue = true", &[("SEAWALL__QUEUE__ENABLED", "false")], &[]), expected);
}

#[test]
fn bad_variables_and_sets_are_told() {
    for (name, value, expected) in [
        (
            "SEAWALL__CACHE__MAX_STAL",
            "1h",
            "environment variable SEAWALL__CACHE__MAX_STAL: unknown key `SEAWALL__CACHE__MAX_STAL`; did you mean \
             `SEAWALL__CACHE__MAX_STALE`?",
        ),
        (
            "SEAWALL__CACHE__MAX_STALE",
            "30",
            "environment variable SEAWALL__CACHE__MAX_STALE: `cache.max_stale`: expected a duration such as \"30s\", found \
             \"30\"; a unit is missing: a duration is written like \"250ms\", \"30s\", \"1m 30s\", \"4h\" or \"2d\"",
        ),
        (
            "SEAWALL__CALLER__0__NAME",
            "a",
            "environment variable SEAWALL__CALLER__0__NAME: `caller.0.name`: `[[caller]]` is a list of tables and can be \
             set in the file only",
        ),
        (
            "SEAWALL__SERVER",
            "a",
            "environment variable SEAWALL__SERVER: `server`: is a section and has no value of its own; name a key in it, \
             such as `SEAWALL__SERVER__LISTEN`",
        ),
        (
            "SEAWALL__LIMITER__MAX",
            "many",
            "environment variable SEAWALL__LIMITER__MAX: `limiter.max`: expected a whole number from 0 to 4294967295, \
             found \"many\"",
        ),
    ] {
        assert_eq!(Folder::new().problems("", &[(name, value)], &[]), [expected], "{name}");
    }
    for (set, expected) in [
        ("limiter.max", "--set limiter.max: a value is missing: write `--set section.key=value`"),
        ("limiter.mux=3", "--set limiter.mux: unknown key `limiter.mux`; did you mean `limiter.max`?"),
        (
            "server.listen=80",
            "--set server.listen: `server.listen`: expected an IP address and a port such as \"127.0.0.1:8460\", found \
             \"80\"",
        ),
        ("route=x", "--set route: `route`: `[[route]]` is a list of tables and can be set in the file only"),
    ] {
        assert_eq!(Folder::new().problems("", &[], &[set]), [expected], "{set}");
    }
}

#[test]
fn open_doors_are_refused() {
    for (text, expected) in [
        (
            "server.listen = \"0.0.0.0:8460\"",
            "DIR/proxy.toml:1:17: `server.public_url`: is required, because `server.listen` 0.0.0.0:8460 is not a \
             loopback address: set the URL by which callers reach Seawall, such as \
             SEAWALL__SERVER__PUBLIC_URL=http://seawall.internal:8460",
        ),
        (
            "server.listen = \"0.0.0.0:8460\"\nserver.public_url = \"http://seawall\"\ncredentials.mode = \"inject\"\n\
             [credentials.alias.default]\ntoken_env = \"TOKEN\"",
            "DIR/proxy.toml:1:17: `caller`: credentials are injected and `server.listen` 0.0.0.0:8460 is not a \
             loopback address, so anyone who can connect could use them (an open relay): declare `[[caller]]`, or \
             listen on 127.0.0.1, or set `credentials.mode = \"passthrough\"`",
        ),
        (
            "admin.listen = \"[::]:8461\"",
            "DIR/proxy.toml:1:16: `admin.token_file`: is required, because `admin.listen` [::]:8461 is not a loopback \
             address: set `admin.token_file` (SEAWALL__ADMIN__TOKEN_FILE) or `admin.token_env`, or listen on 127.0.0.1",
        ),
        (
            "credentials.mode = \"inject\"",
            "DIR/proxy.toml:1:20: `credentials.default`: no such alias: add `[credentials.alias.<name>]` with \
             `token_file` or `token_env`, and name it here",
        ),
        (
            "admin.listen = \"127.0.0.1:8460\"",
            "DIR/proxy.toml:1:16: `admin.listen`: 127.0.0.1:8460 is taken by `server.listen` 127.0.0.1:8460; use another \
             port",
        ),
        (
            "upstream.base_url = \"http://127.0.0.1:8460\"",
            "DIR/proxy.toml:1:21: `upstream.base_url`: is Seawall itself (`server.listen` 127.0.0.1:8460); requests would \
             go in a circle",
        ),
        (
            "upstream.base_url = \"https://me:sk-secret@api.flexport.com\"",
            "DIR/proxy.toml:1:21: `upstream.base_url`: the URL must not hold a user name or password",
        ),
    ] {
        let env = [("TOKEN", "a-token-that-is-long-enough")];
        assert_eq!(Folder::new().problems(text, &env, &[]), [expected], "{text}");
    }
}

#[test]
fn secrets_are_read_and_refused_without_being_shown() {
    let folder = Folder::new();
    folder.write("empty", " \n");
    folder.write("lines", "sk-secret-one\nsk-secret-two\n");
    folder.write("bearer", "Bearer sk-secret\n");
    std::fs::create_dir(folder.path("folder")).unwrap();
    for (line, expected) in [
        ("token_file = \"DIR/empty\"", "file`: the secret is empty"),
        ("token_file = \"DIR/lines\"", "file`: the secret must be one line of visible ASCII without spaces"),
        ("token_file = \"DIR/bearer\"", "file`: the secret begins with `Bearer `; give the token alone"),
        ("token_file = \"DIR/none\"", "file`: `DIR/none` does not exist"),
        (
            "token_file = \"DIR/folder\"",
            "file`: `DIR/folder` is a folder, a file is expected (container engines make a folder where a file to mount \
             is missing)",
        ),
        ("token_file = \"sk-secret\"", "file`: the file that is named does not exist"),
        ("token_env = \"NOT_SET\"", "env`: the environment variable NOT_SET is not set"),
        (
            "token_env = \"sk-secret\"",
            "env`: expected the name of an environment variable (capital letters, digits, `_`), not the secret itself",
        ),
    ] {
        let expected = format!("`admin.token_{expected}");
        let lines = folder.problems(&format!("[admin]\n{line}"), &[], &[]);
        assert_eq!(lines.len(), 1, "{line}: {lines:?}");
        assert!(lines[0].ends_with(&expected), "{line}: {lines:?}");
        assert!(!lines[0].contains("sk-secret"), "{lines:?}");
    }
    assert_eq!(
        folder.problems("[admin]\ntoken_file = \"DIR/none\"\ntoken_env = \"NOT_SET\"", &[], &[]),
        ["DIR/proxy.toml:3:13: `admin.token_env`: `admin.token_file` is set too; keep one of the two"]
    );
}

#[test]
fn callers_and_identities_must_be_told_apart() {
    let text = format!(
        "[[caller]]\nname = \"a\"\ntoken_sha256 = \"{HASH}\"\n[[caller]]\nname = \"a\"\ntoken_sha256 = \"{HASH}\"\n\
         [[caller]]\nname = \"b c\"\n[[caller]]\ntoken_sha256 = \"12\"\n\
         [[credentials.identity]]\nname = \"x\"\ntoken_sha256 = []\n"
    );
    assert_eq!(
        problems(&text),
        [
            "DIR/proxy.toml:4:1: `caller[1]`: has the same token as caller `a`; give each its own",
            "DIR/proxy.toml:5:8: `caller[1].name`: `a` is the name of another caller already",
            "DIR/proxy.toml:7:1: `caller[2]`: has no token: set one of `token_file`, `token_env` and `token_sha256`",
            "DIR/proxy.toml:8:8: `caller[2].name`: a name is made of letters, digits, `-` and `_`, at most 64",
            "DIR/proxy.toml:9:1: `caller[3].name`: is required: give each caller a name",
            "DIR/proxy.toml:10:16: `caller[3].token_sha256`: expected 64 hexadecimal digits, such as `printf %s \
             \"$TOKEN\" | sha256sum` writes",
            "DIR/proxy.toml:13:16: `credentials.identity[0].token_sha256`: must name at least one token",
        ]
    );
}

#[test]
fn routes_change_rows_and_name_unknown_ones() {
    assert_eq!(
        problems("[[route]]\nmethod = \"GET\"\npath = \"/shipment/:id\"\n"),
        [
            "DIR/proxy.toml:3:8: `route[0].path`: no endpoint `GET /shipment/:id`; did you mean `GET /shipments/:id`?"
        ]
    );
    assert_eq!(
        problems("[[route]]\nmethod = \"get\"\npath = \"/ports\"\n"),
        ["DIR/proxy.toml:3:8: `route[0].path`: no endpoint `get /ports`; did you mean `GET /ports`?"]
    );
    assert_eq!(
        problems("[[route]]\nmethod = \"POST\"\npath = \"/bookings\"\nttl = \"5s\"\n"),
        ["DIR/proxy.toml:4:7: `route[0].ttl`: answers of `POST /bookings` are never cached; remove it"]
    );
    let folder = Folder::new();
    let text = "cache.max_stale = \"2h\"\n[[route]]\nmethod = \"GET\"\npath = \"/ports\"\nmax_stale = \"9d\"\nttl = \"1h\"\n\
                [[route]]\nmethod = \"POST\"\npath = \"/bookings\"\nqueue = \"never\"\ntimeout = \"9s\"\n\
                [[route]]\nmethod = \"GET\"\npath = \"/events\"\ncache = false\n";
    let snapshot = load(&folder.args(text, &[], &[])).unwrap();
    let find = |method: http::Method, path| snapshot.routes.find(&method, path);
    let ports = find(http::Method::GET, "/ports").cache.clone().unwrap();
    assert_eq!((ports.max_stale.as_secs(), ports.ttl.as_secs()), (9 * 86_400, 3600));
    assert_eq!(find(http::Method::GET, "/shipments").cache.as_ref().unwrap().max_stale.as_secs(), 7200);
    let bookings = find(http::Method::POST, "/bookings");
    assert_eq!((bookings.queue.class, bookings.timeout.as_secs()), (None, 9));
    assert_eq!(bookings.queue.invalidates, ["bookings"]);
    assert!(find(http::Method::GET, "/events").cache.is_none());
}

#[test]
fn numbers_have_ranges() {
    let text = "[breaker]\nfailure_share = 0.0\nslow_share = 80\nmin_calls = 0\nwindow = \"0s\"\nopen_wait = \"2m\"\n\
                [server]\nmax_body = \"1B\"\nmax_head = \"1KiB\"\n[cache]\nmax_object = \"1GiB\"\n\
                [queue]\nbuffer_total = \"1MiB\"\n[telemetry]\nlog = \"inof\"\n";
    assert_eq!(
        problems(text),
        [
            "DIR/proxy.toml:2:17: `breaker.failure_share`: must be above 0 and at most 1, such as 0.5 for one half; \
             found 0",
            "DIR/proxy.toml:3:14: `breaker.slow_share`: must be above 0 and at most 1, such as 0.5 for one half; found 80",
            "DIR/proxy.toml:4:13: `breaker.min_calls`: must be at least 1",
            "DIR/proxy.toml:5:10: `breaker.window`: must be longer than 0s",
            "DIR/proxy.toml:6:13: `breaker.open_wait`: must not be longer than `breaker.open_wait_max`",
            "DIR/proxy.toml:8:12: `server.max_body`: must be at least \"1KiB\"",
            "DIR/proxy.toml:9:12: `server.max_head`: must be at least \"8KiB\"",
            "DIR/proxy.toml:11:14: `cache.max_object`: must not be larger than `cache.memory`",
            "DIR/proxy.toml:13:16: `queue.buffer_total`: must hold the longest body that is queued, which is \"16MiB\"",
            "DIR/proxy.toml:15:7: `telemetry.log`: no level \"inof\"; did you mean \"info\"?",
        ]
    );
}

#[test]
fn one_breaker_has_thresholds_of_its_own_by_the_same_rules() {
    let text = "[[breaker.scope]]\nname = \"shipments:read\"\nmin_calls = 5\nopen_wait = \"1s\"\n\
                [[breaker.scope]]\nname = \"bookings:write\"\nhalf_open_successes = 3\n";
    let folder = Folder::new();
    let snapshot = load(&folder.args(text, &[], &["breaker.failure_share=0.7"])).unwrap();
    let all = &snapshot.settings.breaker;
    let one = all.row("shipments:read").unwrap().over(all);
    assert_eq!(
        (one.min_calls, *one.open_wait, one.failure_share),
        (5, std::time::Duration::from_secs(1), 0.7)
    );
    let rest = raw::Breaker { min_calls: 20, open_wait: all.open_wait, scopes: all.scopes.clone(), ..one };
    assert_eq!(rest, *all, "what is left out is that of all");
    let shown: Vec<_> = snapshot.shown().into_iter().filter(|shown| shown.key.contains("scope[")).collect();
    let keys: Vec<_> = shown.iter().map(|shown| shown.key.as_str()).collect();
    let [name, calls, wait, other, successes] = [
        "breaker.scope[0].name",
        "breaker.scope[0].min_calls",
        "breaker.scope[0].open_wait",
        "breaker.scope[1].name",
        "breaker.scope[1].half_open_successes",
    ];
    assert_eq!(keys, [name, calls, wait, other, successes]);
    assert!(shown[1].origin.ends_with("proxy.toml:3:13"), "{}", shown[1].origin);
}

#[test]
fn impossible_thresholds_of_one_breaker_are_told_at_their_row() {
    let row = |more: &str| problems(&format!("[[breaker.scope]]\nname = \"shipments:read\"\n{more}"));
    let at = |line: &str| format!("DIR/proxy.toml:{line}");
    for (more, expected) in [
        (
            "failure_share = 1.5",
            "3:17: `breaker.scope[0].failure_share`: must be above 0 and at most 1, such as 0.5 for one half; found 1.5",
        ),
        (
            "slow_share = 0",
            "3:14: `breaker.scope[0].slow_share`: must be above 0 and at most 1, such as 0.5 for one half; found 0",
        ),
        ("min_calls = 0", "3:13: `breaker.scope[0].min_calls`: must be at least 1"),
        ("half_open_probes = 9", "3:20: `breaker.scope[0].half_open_probes`: must be at most 8"),
        ("window = \"20m\"", "3:10: `breaker.scope[0].window`: must be from \"1s\" to \"10m\""),
        (
            "open_wait = \"2m\"",
            "3:13: `breaker.scope[0].open_wait`: must not be longer than `breaker.open_wait_max`",
        ),
        (
            "open_wait_max = \"2s\"",
            "3:17: `breaker.scope[0].open_wait_max`: must not be shorter than `breaker.open_wait`; set `open_wait` here, too",
        ),
        (
            "falure_share = 0.5",
            "3:1: unknown key `breaker.scope[0].falure_share`; did you mean `breaker.scope[0].failure_share`?",
        ),
    ] {
        assert_eq!(row(more), [at(expected)], "{more}");
    }
    assert_eq!(
        problems("[breaker]\nmin_calls = 0\n[[breaker.scope]]\nname = \"global\"\nramp = \"0s\"\n"),
        [at("2:13: `breaker.min_calls`: must be at least 1")],
        "what is wrong in `[breaker]` is told once"
    );
}

#[test]
fn a_row_of_thresholds_names_a_breaker_once_and_sets_what_it_can_use() {
    let row = |name: &str, more: &str| format!("[[breaker.scope]]\nname = \"{name}\"\n{more}\n");
    let told = |text: &str| {
        let problems = problems(text);
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems[0].clone()
    };
    let unknown = told(&row("shipment:read", ""));
    let head = "DIR/proxy.toml:2:8: `breaker.scope[0].name`: no breaker \"shipment:read\"; did you mean \
                `shipments:read`? There are `global`, and `<group>:read` and `<group>:write` of ";
    assert!(unknown.starts_with(head) && unknown.contains("bookings"), "{unknown}");
    let nothing_like = told(&row("everything", ""));
    assert!(nothing_like.contains("no breaker \"everything\". There are `global`, and"), "{nothing_like}");
    assert!(told("[[breaker.scope]]\nmin_calls = 3\n").contains("`breaker.scope[0].name`: is required"));
    assert_eq!(
        told(&(row("global", "") + &row("global", ""))),
        "DIR/proxy.toml:5:8: `breaker.scope[1].name`: `global` is changed by an earlier `[[breaker.scope]]` already"
    );
    assert!(told(&row("global", "slow = \"1s\"")).contains("not its answers; remove it"));
    assert!(
        told(&row("bookings:write", "half_open_probes = 2"))
            .contains("writes are tried one at a time; remove it")
    );
    assert!(
        told("[breaker.scope]\nname = \"global\"\n").contains("write `[[breaker.scope]]` with two brackets")
    );
}

#[test]
fn a_queued_body_fits_into_one_batch_of_the_store() {
    let text =
        |size| format!("[[route]]\nmethod = \"POST\"\npath = \"/bookings\"\nqueue_max_body = \"{size}\"\n");
    let found = problems(&text("17MiB"));
    assert!(found.len() == 1 && found[0].contains("must not be larger than \"16MiB\""), "{found:?}");
    assert!(problems(&text("16MiB")).is_empty());
}

#[test]
fn several_problems_are_told_at_once_in_the_order_of_their_places() {
    let folder = Folder::new();
    let lines = folder.problems(
        "[cache]\nmax_stal = \"1h\"\nmemory = 3\n[server]\nlisten = \"0.0.0.0:8460\"\npublic_url = 7\n",
        &[("SEAWALL__QUEUE__MAX_AGE", "soon"), ("SEAWALL__X", "1")],
        &["nothing"],
    );
    let starts: Vec<_> = lines.iter().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(
        starts,
        [
            "DIR/proxy.toml:2:1",
            "DIR/proxy.toml:3:10",
            // Once: that it is missing as well would be a second word on the same.
            "DIR/proxy.toml:6:14",
            "environment variable SEAWALL__QUEUE__MAX_AGE",
            "environment variable SEAWALL__X",
            "--set nothing",
        ],
        "{lines:#?}"
    );
}

#[test]
fn the_file_is_found_or_its_absence_told() {
    let folder = Folder::new();
    let named = |path: PathBuf| load(&LoadArgs { config: Some(path), ..LoadArgs::default() });
    let missing = folder.path("none.toml");
    assert_eq!(
        named(missing.clone()).unwrap_err().to_string(),
        format!("{}: the configuration file does not exist", missing.display())
    );
    let error = named(folder.0.path().to_owned()).unwrap_err().to_string();
    assert!(error.contains("the configuration file is a folder, a file is expected"), "{error}");
    let by_variable =
        LoadArgs::new(None, Vec::new(), [("SEAWALL_CONFIG".to_owned(), missing.display().to_string())]);
    assert!(load(&by_variable).is_err());

    let (first, second) = (folder.path("first.toml"), folder.write("second.toml", "limiter.max = 3"));
    let raw = gather_from(&LoadArgs::default(), &[&first, &second]);
    assert_eq!((raw.settings.limiter.max, raw.source), (3, Some(second)));
    let raw = gather_from(&LoadArgs::default(), &[&first]);
    assert_eq!((raw.settings.limiter.max, raw.source), (128, None));

    let empty = load(&folder.args("", &[], &[])).unwrap();
    assert_eq!(empty.warnings.len(), 1);
    std::fs::write(folder.path("proxy.toml"), b"# \xc3\xa9\nx = \"\xff\"").unwrap();
    let error = named(folder.path("proxy.toml")).unwrap_err().to_string();
    assert!(
        error.ends_with("proxy.toml:2:6: the file is not UTF-8 from here on; save it as UTF-8"),
        "{error}"
    );
    std::fs::write(folder.path("proxy.toml"), "\u{feff}x = 1").unwrap();
    let error = named(folder.path("proxy.toml")).unwrap_err().to_string();
    assert!(error.ends_with("proxy.toml:1:1: unknown key `x`"), "{error}");
}

#[test]
fn the_data_folder_has_a_default() {
    let folder = Folder::new();
    let of = |env: &[(&str, &str)]| load(&folder.args("", env, &[])).unwrap().settings.data_dir;
    assert_eq!(of(&[]), Path::new("./data"));
    assert_eq!(of(&[("STATE_DIRECTORY", "/var/lib/seawall:/var/lib/other")]), Path::new("/var/lib/seawall"));
    assert_eq!(of(&[("STATE_DIRECTORY", "/x"), ("SEAWALL__DATA_DIR", "/y")]), Path::new("/y"));
}

#[test]
fn a_snapshot_holds_secrets_resolved_and_hidden() {
    let folder = Folder::new();
    folder.write("flexport", "flexport-token-of-a-test\n");
    let text = format!(
        "server.listen = \"0.0.0.0:8460\"\nserver.public_url = \"https://seawall.example/flexport/\"\n\
         [admin]\ntoken_env = \"ADMIN\"\n[credentials]\nmode = \"inject\"\ndefault = \"main\"\n\
         [credentials.alias.main]\ntoken_file = \"DIR/flexport\"\n\
         [[credentials.identity]]\nname = \"both\"\ntoken_sha256 = [\"{HASH}\"]\n\
         [[caller]]\nname = \"a\"\ntoken_env = \"CALLER\"\n"
    );
    let env = [("ADMIN", "admin-token-of-a-test"), ("CALLER", "test")];
    let args = folder.args(&text, &env, &[]);
    let snapshot = load(&args).unwrap();
    assert_eq!(&*snapshot.public_url, "https://seawall.example/flexport");
    let value = &snapshot.credentials["main"];
    assert_eq!(value, "Bearer flexport-token-of-a-test");
    assert!(value.is_sensitive());
    assert_eq!(snapshot.admin_token.as_ref().unwrap().expose(), "admin-token-of-a-test");
    let caller = &snapshot.callers[0];
    assert_eq!((&*caller.name, &*caller.credential), ("a", "main"));
    // SHA-256 of "test".
    assert_eq!(caller.token_sha256[..4], [0x9f, 0x86, 0xd0, 0x81]);
    assert_eq!(snapshot.identities.values().map(|name| &**name).collect::<Vec<_>>(), ["both"]);
    assert_eq!(snapshot.warnings.len(), 1, "{:?}", snapshot.warnings);
    assert_eq!(snapshot.files, [folder.path("proxy.toml"), folder.path("flexport")]);
    let shown = format!("{snapshot:?} {args:?}");
    assert!(!shown.contains("of-a-test"), "{shown}");
}

#[test]
fn settings_made_in_code_are_checked_too() {
    let snapshot = Snapshot::of(Settings::default()).unwrap();
    assert_eq!(&*snapshot.public_url, "http://127.0.0.1:8460");
    let mut settings = Settings::default();
    settings.limiter.max = 0;
    assert_eq!(
        Snapshot::of(settings).unwrap_err().to_string(),
        "defaults: `limiter.max`: must be at least 1"
    );
}

#[test]
fn strict_keeps_every_route_and_overrides_nothing() {
    let settings = Settings { profile: raw::Profile::Strict, ..Settings::default() };
    let snapshot = Snapshot::of(settings).unwrap();
    assert!(snapshot.routes.rows().all(|row| {
        row.queue.class.is_none() && row.cache.as_ref().is_some_and(|cache| !cache.overrides_revalidation)
    }));
}

#[test]
fn a_reload_is_all_or_nothing() {
    let folder = Folder::new();
    folder.write("flexport", "flexport-token-of-a-test\n");
    let alias = "[credentials.alias.main]\ntoken_file = \"DIR/flexport\"\n";
    let live = Live::load(folder.args(&format!("cache.max_stale = \"1h\"\n{alias}"), &[], &[])).unwrap();
    assert!(!live.is_outdated());

    folder.args(&format!("cache.max_stale = \"2h\"\nlimiter.max = 0\n{alias}"), &[], &[]);
    assert!(!live.is_outdated(), "what may still be written is not read");
    assert!(live.is_outdated());
    let error = reload(&live, Trigger::Api).unwrap_err().to_string();
    assert!(error.ends_with("proxy.toml:2:15: `limiter.max`: must be at least 1"), "{error}");
    assert_eq!(live.current().settings.cache.max_stale.to_string(), "1h");
    assert_eq!(live.current().generation, 1);
    assert!(!live.is_outdated(), "a bad file is read once");

    folder.write("flexport", "another-token-of-a-test\n");
    folder.args(&format!("cache.max_stale = \"2h\"\nlimiter.max = 64\n{alias}"), &[], &[]);
    let before = live.current();
    let report = reload(&live, Trigger::Api).unwrap();
    assert_eq!(report.generation, 2);
    assert_eq!(report.needs_restart, ["limiter.max"]);
    assert_eq!(report.changed, ["cache.max_stale", "credentials.alias.main.token_file"]);
    let now = live.current();
    assert_eq!(now.settings.cache.max_stale.to_string(), "2h");
    assert_eq!(now.settings.limiter.max, 128, "what needs a restart shows what is in force");
    assert_eq!(now.origin_of("limiter.max"), Origin::Default);
    assert_eq!(now.credentials["main"], "Bearer another-token-of-a-test");
    assert_eq!((before.generation, now.generation), (1, 2));
    let shipments = now.routes.find(&http::Method::GET, "/shipments");
    assert_eq!(shipments.cache.as_ref().unwrap().max_stale.as_secs(), 7200);
}

#[test]
fn a_key_file_that_moves_needs_a_restart_and_hinders_no_reload_until_then() {
    let folder = Folder::new();
    for name in ["old", "new"] {
        folder.write(name, &format!("{name}-key-of-the-store-with-enough-characters"));
    }
    let live = Live::load(folder.args("store.key_file = \"DIR/old\"", &[], &[])).unwrap();
    let key = live.current().store_key.clone();
    folder.args("store.key_file = \"DIR/new\"\ncache.max_stale = \"2h\"", &[], &[]);
    std::fs::remove_file(folder.path("old")).unwrap();
    for _ in 0..2 {
        assert_eq!(reload(&live, Trigger::Api).unwrap().needs_restart, ["store.key_file"]);
    }
    let now = live.current();
    assert_eq!(now.settings.cache.max_stale.to_string(), "2h");
    assert_eq!(now.settings.store.key_file, folder.path("old"), "what is in force");
    assert!(now.store_key == key);

    // Another key at the same place.
    let live = Live::load(folder.args("store.key_file = \"DIR/new\"", &[], &[])).unwrap();
    let key = live.current().store_key.clone();
    folder.write("new", "another-key-of-the-store-with-enough-characters");
    assert_eq!(reload(&live, Trigger::Api).unwrap().needs_restart, ["store.key_file"]);
    folder.args("store.key_file = \"DIR/new\"\nlimiter.max = 64", &[], &[]);
    assert_eq!(reload(&live, Trigger::Api).unwrap().needs_restart, ["limiter.max", "store.key_file"]);
    assert!(live.current().store_key == key);
}

#[test]
fn a_reload_does_not_open_a_door_before_the_restart() {
    let folder = Folder::new();
    let text = "credentials.mode = \"inject\"\nserver.listen = \"0.0.0.0:8460\"\nserver.public_url = \"http://seawall\"\n\
                [credentials.alias.default]\ntoken_env = \"TOKEN\"\n[[caller]]\nname = \"a\"\ntoken_env = \"TOKEN\"\n";
    let env = [("TOKEN", "a-token-that-is-long-enough")];
    let live = Live::load(folder.args(text, &env, &[])).unwrap();
    // Good after a restart; until then it would be an open relay.
    folder.args(
        "credentials.mode = \"inject\"\n[credentials.alias.default]\ntoken_env = \"TOKEN\"\n",
        &env,
        &[],
    );
    let error = reload(&live, Trigger::Api).unwrap_err().to_string();
    assert!(error.contains("an open relay"), "{error}");
    assert!(
        error.contains("until a restart `server.listen`, `server.public_url` stay as they are"),
        "{error}"
    );
    assert_eq!(live.current().callers.len(), 1);
}

#[test]
fn the_bound_port_is_in_links_and_stays_there() {
    let folder = Folder::new();
    let live = Live::load(folder.args("server.listen = \"127.0.0.1:0\"", &[], &[])).unwrap();
    live.set_bound("127.0.0.1:4711".parse().unwrap());
    assert_eq!(&*live.current().public_url, "http://127.0.0.1:4711");
    assert_eq!(reload(&live, Trigger::Api).unwrap().needs_restart, Vec::<String>::new());
    assert_eq!(&*live.current().public_url, "http://127.0.0.1:4711");
}

#[test]
fn what_was_made_in_code_cannot_be_reloaded() {
    let live = Live::fixed(Snapshot::of(Settings::default()).unwrap());
    assert!(reload(&live, Trigger::Api).is_err());
    assert!(!live.is_outdated());
}

#[test]
fn every_key_that_needs_a_restart_exists() {
    for key in NEEDS_RESTART {
        assert!(matches!(schema::find(key.split('.')), Some(schema::Shape::Leaf(_))), "{key}");
    }
}

mod upstream {
    use super::*;

    /// An authority, a certificate of its signing, and that certificate's key, as PEM.
    fn pki() -> (String, String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap().pem();
        let issuer = rcgen::Issuer::new(params, key);
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["seawall".to_owned()]).unwrap();
        (ca, params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    }

    fn said(folder: &Folder, text: &str) -> Vec<String> {
        folder.problems(text, &[], &[])
    }

    #[test]
    fn certificates_and_keys_are_read_and_watched() {
        let folder = Folder::new();
        let (ca, cert, key) = pki();
        folder.write("ca.pem", &format!("{ca}{ca}"));
        folder.write("cert.pem", &cert);
        folder.write("key.pem", &key);
        let text = "[upstream.tls]\nca_file = \"DIR/ca.pem\"\nplatform_roots = false\ncert_file = \"DIR/cert.pem\"\n\
                    key_file = \"DIR/key.pem\"\nmin_version = \"1.3\"\n";
        let first = load(&folder.args(text, &[], &[])).unwrap();
        let tls = &first.upstream_tls;
        assert_eq!((tls.roots.len(), tls.trusts_platform, tls.identity.is_some()), (2, false, true));
        for name in ["ca.pem", "cert.pem", "key.pem"] {
            assert!(first.files.iter().any(|file| file.ends_with(name)), "a change of {name} is not seen");
        }
        let shown = format!("{first:?}");
        assert!(!shown.contains("PRIVATE") && shown.contains("has_identity: true"), "{shown}");
        // The same files are the same; others are not.
        assert_eq!(load(&folder.args(text, &[], &[])).unwrap().upstream_tls.digest, tls.digest);
        folder.write("ca.pem", &ca);
        assert_ne!(load(&folder.args(text, &[], &[])).unwrap().upstream_tls.digest, tls.digest);
    }

    #[test]
    fn what_is_wrong_with_them_names_key_and_file() {
        let folder = Folder::new();
        let (ca, cert, key) = pki();
        let (_, _, other_key) = pki();
        folder.write("ca.pem", &ca);
        folder.write("cert.pem", &cert);
        folder.write("key.pem", &key);
        folder.write("other.pem", &other_key);
        folder.write("text.pem", "no certificate at all");
        folder.write("cut.pem", &cert[..cert.len() / 2]);
        folder.write("not-x509.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        folder.write(
            "locked.pem",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
        );
        std::fs::create_dir(folder.path("folder")).unwrap();
        for (lines, key, what) in [
            ("ca_file = \"DIR/none.pem\"", "upstream.tls.ca_file", "none.pem` does not exist"),
            ("ca_file = \"DIR/folder\"", "upstream.tls.ca_file", "folder` is a folder, a file is expected"),
            ("ca_file = \"DIR/text.pem\"", "upstream.tls.ca_file", "holds no certificate"),
            ("ca_file = \"DIR/cut.pem\"", "upstream.tls.ca_file", "is not good PEM"),
            (
                "ca_file = \"DIR/not-x509.pem\"",
                "upstream.tls.ca_file",
                "certificate 1 of the file cannot be used",
            ),
            ("platform_roots = false", "upstream.tls.ca_file", "nobody would be trusted"),
            (
                "cert_file = \"DIR/cert.pem\"",
                "upstream.tls.key_file",
                "is required, because `upstream.tls.cert_file`",
            ),
            (
                "key_file = \"DIR/key.pem\"",
                "upstream.tls.cert_file",
                "is required, because `upstream.tls.key_file`",
            ),
            (
                "cert_file = \"DIR/cert.pem\"\nkey_file = \"DIR/other.pem\"",
                "upstream.tls.key_file",
                "is not the key of the first certificate",
            ),
            (
                "cert_file = \"DIR/cert.pem\"\nkey_file = \"DIR/cert.pem\"",
                "upstream.tls.key_file",
                "holds no private key",
            ),
            (
                "cert_file = \"DIR/cert.pem\"\nkey_file = \"DIR/locked.pem\"",
                "upstream.tls.key_file",
                "private key is encrypted",
            ),
            ("min_version = \"1.1\"", "upstream.tls.min_version", "1.2"),
        ] {
            let said = said(&folder, &format!("[upstream.tls]\n{lines}\n"));
            assert_eq!(said.len(), 1, "{lines}: {said:?}");
            assert!(said[0].contains(key) && said[0].contains(what), "{lines}: {said:?}");
        }
    }

    #[test]
    fn an_egress_proxy_is_a_bare_url_and_its_credentials_come_from_elsewhere() {
        let folder = Folder::new();
        folder.write("basic", "reader:s3cret pass\n");
        folder.write("whole", "Bearer abc.def");
        folder.write("bad", "onlyoneword");
        let value = |file: &str| {
            let text = format!(
                "[upstream]\nproxy = \"http://proxy.internal:3128\"\nproxy_authorization_file = \"DIR/{file}\"\n"
            );
            load(&folder.args(&text, &[], &[])).map(|snapshot| snapshot.proxy_authorization.unwrap())
        };
        let basic = value("basic").unwrap();
        assert_eq!(basic, "Basic cmVhZGVyOnMzY3JldCBwYXNz");
        assert!(basic.is_sensitive());
        assert_eq!(value("whole").unwrap(), "Bearer abc.def");
        let error = value("bad").unwrap_err().to_string();
        assert!(
            error.contains("upstream.proxy_authorization_file") && !error.contains("onlyoneword"),
            "{error}"
        );
        for (line, what) in [
            ("proxy = \"http://user:hunter2@proxy:3128\"", "must not hold a user name or password"),
            ("proxy = \"https://proxy:3128\"", "begins with http://"),
            ("proxy = \"http://proxy\"", "needs a port"),
            ("proxy = \"http://proxy:3128/path\"", "must have no path"),
            ("proxy = \"proxy:3128\"", "expected an absolute URL"),
            ("proxy_authorization_file = \"DIR/whole\"", "name the proxy"),
        ] {
            let said = said(&folder, &format!("[upstream]\n{line}\n"));
            assert_eq!(said.len(), 1, "{line}: {said:?}");
            assert!(said[0].contains("upstream.proxy") && said[0].contains(what), "{line}: {said:?}");
            assert!(!said[0].contains("hunter2"), "{said:?}");
        }
    }
}
