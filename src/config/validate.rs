//! Pure. What must hold across fields. Each check names the key, the reason and what to do.
//!
//! A key whose value was refused before is at its default here, so what touches such a key is not told a second
//! time. The secrets themselves are checked where they are read, in `resolve`.

use super::diagnose::{Origins, Problem, origin_of, suggestion};
use super::overlay::{as_variable, is_name};
use super::policy;
use super::raw::{Breaker, BreakerScope, CredentialMode, Profile, Route, Settings, Span, Upstream};
use crate::flexport::routes::built_in;
use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The longest body of a queued write: with its record it is one batch of the store.
const LONGEST_QUEUED: u64 = 16 * 1024 * 1024;

/// Collects what is wrong, with places.
pub(super) struct Checker<'a> {
    origins: &'a Origins,
    before: &'a [Problem],
    /// What was found.
    pub(super) problems: Vec<Problem>,
    /// What works but is hardly meant.
    pub(super) warnings: Vec<String>,
}

// === impl Checker ===

impl<'a> Checker<'a> {
    /// Finds places in `origins` and is silent about what touches a problem of `before`.
    pub(super) fn new(origins: &'a Origins, before: &'a [Problem]) -> Self {
        Self { origins, before, problems: Vec::new(), warnings: Vec::new() }
    }

    /// A problem with a key.
    pub(super) fn say(&mut self, key: &str, what: impl Display) {
        self.say_because(key, key, what);
    }

    /// A problem with a key that another one made: its place is shown when the key itself has none.
    pub(super) fn say_because(&mut self, key: &str, because: &str, what: impl Display) {
        if self.before.iter().any(|problem| problem.touches(key) || problem.touches(because)) {
            return;
        }
        let place = if self.origins.contains_key(key) { key } else { because };
        self.problems.push(Problem::of(origin_of(self.origins, place), key, what));
    }

    /// What works but is hardly meant.
    pub(super) fn warn(&mut self, key: &str, what: impl Display) {
        self.warnings.push(Problem::of(origin_of(self.origins, key), key, what).to_string());
    }

    fn at_least_one(&mut self, values: &[(&str, u32)]) {
        for (key, value) in values {
            if *value == 0 {
                self.say(key, "must be at least 1");
            }
        }
    }

    fn longer_than_zero(&mut self, values: &[(&str, Duration)]) {
        for (key, value) in values {
            if value.is_zero() {
                self.say(key, "must be longer than 0s");
            }
        }
    }

    fn not_longer(&mut self, short: (&str, Duration), long: (&str, Duration)) {
        if short.1 > long.1 {
            let what = format!("must not be longer than `{}`", long.0);
            self.say_because(short.0, long.0, what);
        }
    }

    fn share(&mut self, key: &str, value: f64) {
        if !(value > 0.0 && value <= 1.0) {
            self.say(key, format!("must be above 0 and at most 1, such as 0.5 for one half; found {value}"));
        }
    }

    fn size(&mut self, key: &str, value: u64, least: u64, least_text: &str) {
        if value < least {
            self.say(key, format!("must be at least \"{least_text}\""));
        }
    }

    /// Which of `*_file` and `*_env` are set; both are a problem.
    pub(super) fn one_source(&mut self, prefix: &str, name: &str, file: &Path, variable: &str) -> usize {
        let has_file = !file.as_os_str().is_empty();
        let has_variable = !variable.is_empty();
        if has_file && has_variable {
            let what = format!("`{prefix}.{name}_file` is set too; keep one of the two");
            self.say(&format!("{prefix}.{name}_env"), what);
        }
        usize::from(has_file) + usize::from(has_variable)
    }
}

/// All checks.
pub(super) fn check(settings: &Settings, checker: &mut Checker<'_>) {
    server(settings, checker);
    admin(settings, checker);
    upstream(settings, checker);
    credentials(settings, checker);
    callers(settings, checker);
    routes(settings, checker);
    breaker(settings, checker);
    capabilities(settings, checker);
    telemetry(settings, checker);
}

/// Whether only this machine can reach it.
pub(super) fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

fn server(settings: &Settings, checker: &mut Checker<'_>) {
    let server = &settings.server;
    if server.public_url.is_empty() {
        if !is_loopback(server.listen) {
            checker.say_because(
                "server.public_url",
                "server.listen",
                format!(
                    "is required, because `server.listen` {} is not a loopback address: set the URL by which \
                     callers reach Seawall, such as {}=http://seawall.internal:{}",
                    server.listen,
                    as_variable("server.public_url"),
                    server.listen.port()
                ),
            );
        }
    } else {
        url("server.public_url", &server.public_url, checker);
    }
    checker.size("server.max_body", server.max_body.0, 1024, "1KiB");
    checker.size("server.max_head", server.max_head.0, 8 * 1024, "8KiB");
    if server.max_head.0 > 1024 * 1024 {
        checker.say("server.max_head", "must be at most \"1MiB\"");
    }
    checker.longer_than_zero(&[
        ("server.first_byte_timeout", *server.first_byte_timeout),
        ("server.head_timeout", *server.head_timeout),
        ("server.body_idle_timeout", *server.body_idle_timeout),
        ("server.write_idle_timeout", *server.write_idle_timeout),
        ("server.idle_timeout", *server.idle_timeout),
    ]);
    checker.at_least_one(&[
        ("server.max_connections", server.max_connections),
        ("server.h2_max_streams", server.h2_max_streams),
        ("server.h2_max_resets", server.h2_max_resets),
    ]);
}

fn admin(settings: &Settings, checker: &mut Checker<'_>) {
    let admin = &settings.admin;
    let sources = checker.one_source("admin", "token", &admin.token_file, &admin.token_env);
    if sources == 0 && !is_loopback(admin.listen) {
        checker.say_because(
            "admin.token_file",
            "admin.listen",
            format!(
                "is required, because `admin.listen` {} is not a loopback address: set `admin.token_file` \
                 ({}) or `admin.token_env`, or listen on 127.0.0.1",
                admin.listen,
                as_variable("admin.token_file")
            ),
        );
    }
    let (data, ours) = (settings.server.listen, admin.listen);
    let is_same_ip = data.ip() == ours.ip() || data.ip().is_unspecified() || ours.ip().is_unspecified();
    if data.port() == ours.port() && data.port() != 0 && is_same_ip {
        let what = format!("{ours} is taken by `server.listen` {data}; use another port");
        checker.say_because("admin.listen", "server.listen", what);
    }
}

fn upstream(settings: &Settings, checker: &mut Checker<'_>) {
    let upstream = &settings.upstream;
    let key = "upstream.base_url";
    if let Some(uri) = url(key, &upstream.base_url, checker) {
        let host = uri.host().unwrap_or_default();
        let ip: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
        let is_local = host == "localhost" || ip.is_some_and(|ip| ip.to_canonical().is_loopback());
        let is_https = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        let listen = settings.server.listen;
        let is_ours = is_local && (is_loopback(listen) || listen.ip().is_unspecified());
        if (is_ours || ip == Some(listen.ip())) && port == listen.port() {
            let what = format!("is Seawall itself (`server.listen` {listen}); requests would go in a circle");
            checker.say_because(key, "server.listen", what);
        } else if !is_https && !is_local {
            checker.warn(key, "`http` sends credentials and data in clear text; use `https`");
        }
    }
    for (index, base) in upstream.link_bases.iter().enumerate() {
        url_of("upstream.link_bases", &format!("entry {}: ", index + 1), base, checker);
    }
    checker.longer_than_zero(&[
        ("upstream.timeout", *upstream.timeout),
        ("upstream.connect_timeout", *upstream.connect_timeout),
        ("upstream.body_idle_timeout", *upstream.body_idle_timeout),
        ("upstream.idle_timeout", *upstream.idle_timeout),
        ("upstream.connection_max_age", *upstream.connection_max_age),
        ("upstream.tcp_keepalive", *upstream.tcp_keepalive),
        ("upstream.h2_ping_interval", *upstream.h2_ping_interval),
        ("upstream.h2_ping_timeout", *upstream.h2_ping_timeout),
    ]);
    checker.not_longer(
        ("upstream.connect_timeout", *upstream.connect_timeout),
        ("upstream.timeout", *upstream.timeout),
    );
    egress(upstream, checker);
    upstream_tls(upstream, checker);
}

/// The egress proxy.
fn egress(upstream: &Upstream, checker: &mut Checker<'_>) {
    let key = "upstream.proxy";
    let sources = checker.one_source(
        "upstream",
        "proxy_authorization",
        &upstream.proxy_authorization_file,
        &upstream.proxy_authorization_env,
    );
    if upstream.proxy.is_empty() {
        if sources > 0 {
            checker.say(
                key,
                "is empty, but `upstream.proxy_authorization_file` or `_env` is set; name the proxy",
            );
        }
        return;
    }
    if upstream.proxy.contains('@') {
        let what = "the URL must not hold a user name or password; put `user:password` into the file that \
                    `upstream.proxy_authorization_file` names";
        checker.say(key, what);
        return;
    }
    let Some(uri) = url(key, &upstream.proxy, checker) else { return };
    if uri.scheme_str() != Some("http") {
        let what = "expected a URL that begins with http://: Seawall asks the proxy itself in clear text, and speaks TLS \
                    to the upstream through the tunnel";
        checker.say(key, what);
    } else if uri.port_u16().is_none() {
        checker.say(key, "the URL needs a port, such as \"http://proxy.internal:3128\"");
    } else if !matches!(uri.path(), "" | "/") {
        checker.say(key, "the URL must have no path");
    }
}

fn upstream_tls(upstream: &Upstream, checker: &mut Checker<'_>) {
    let tls = &upstream.tls;
    let is_empty = |path: &Path| path.as_os_str().is_empty();
    if !tls.platform_roots && is_empty(&tls.ca_file) {
        checker.say_because(
            "upstream.tls.ca_file",
            "upstream.tls.platform_roots",
            "is required when `upstream.tls.platform_roots` is false: nobody would be trusted",
        );
    }
    for (key, other, is_missing) in [
        (
            "upstream.tls.key_file",
            "upstream.tls.cert_file",
            is_empty(&tls.key_file) && !is_empty(&tls.cert_file),
        ),
        (
            "upstream.tls.cert_file",
            "upstream.tls.key_file",
            is_empty(&tls.cert_file) && !is_empty(&tls.key_file),
        ),
    ] {
        if is_missing {
            checker.say_because(key, other, format!("is required, because `{other}` is set"));
        }
    }
    let is_set = !is_empty(&tls.ca_file) || !is_empty(&tls.cert_file);
    if is_set && upstream.base_url.to_ascii_lowercase().starts_with("http:") {
        checker.warn("upstream.tls", "has no effect, since `upstream.base_url` begins with http://");
    }
}

fn url(key: &str, text: &str, checker: &mut Checker<'_>) -> Option<http::Uri> {
    url_of(key, "", text, checker)
}

/// An absolute URL. The text itself is not shown, since a password may stand in it.
fn url_of(key: &str, which: &str, text: &str, checker: &mut Checker<'_>) -> Option<http::Uri> {
    match read_url(text) {
        Ok(uri) => Some(uri),
        Err(what) => {
            checker.say(key, format!("{which}{what}"));
            None
        }
    }
}

fn read_url(text: &str) -> Result<http::Uri, &'static str> {
    const EXPECTED: &str = "expected an absolute URL such as \"https://api.flexport.com\"";
    if text.contains(['?', '#']) {
        return Err("the URL must have no query and no fragment (`?`, `#`)");
    }
    // It is put into JSON strings and header fields as it is.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/[]@!$&'()*+,;=%".contains(&byte);
    if !text.bytes().all(is_plain) {
        return Err("the URL has characters that must not stand in one");
    }
    let uri: http::Uri = text.parse().map_err(|_| EXPECTED)?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err("expected an absolute URL that begins with http:// or https://");
    }
    let authority = uri.authority().ok_or(EXPECTED)?;
    if authority.as_str().contains('@') {
        return Err("the URL must not hold a user name or password");
    }
    if authority.host().is_empty() {
        return Err("the URL has no host");
    }
    if authority.as_str().len() > authority.host().len() && authority.port_u16().is_none_or(|port| port == 0)
    {
        return Err("the URL's port must be a number from 1 to 65535");
    }
    Ok(uri)
}

fn credentials(settings: &Settings, checker: &mut Checker<'_>) {
    let credentials = &settings.credentials;
    for (name, alias) in &credentials.alias {
        let prefix = format!("credentials.alias.{name}");
        if checker.one_source(&prefix, "token", &alias.token_file, &alias.token_env) == 0 {
            checker.say(&prefix, "has no secret: set `token_file` or `token_env`");
        }
    }
    let mut names = HashSet::new();
    let mut hashes = HashMap::new();
    for (index, identity) in credentials.identity.iter().enumerate() {
        let prefix = format!("credentials.identity[{index}]");
        name(&prefix, &identity.name, "identity", &mut names, checker);
        let key = format!("{prefix}.token_sha256");
        if identity.token_sha256.is_empty() {
            checker.say(&key, "must name at least one token");
        }
        for (entry, text) in identity.token_sha256.iter().enumerate() {
            match sha256(text) {
                Err(what) => checker.say(&key, format!("entry {}: {what}", entry + 1)),
                Ok(hash) => {
                    if let Some(first) = hashes.insert(hash, identity.name.as_str()) {
                        let what = format!("entry {}: the token is also of `{first}`", entry + 1);
                        checker.say(&key, what);
                    }
                }
            }
        }
    }
    if credentials.mode == CredentialMode::Passthrough {
        return;
    }
    let listen = settings.server.listen;
    if !is_loopback(listen) && settings.callers.is_empty() {
        checker.say_because(
            "caller",
            "server.listen",
            format!(
                "credentials are injected and `server.listen` {listen} is not a loopback address, so anyone who \
                 can connect could use them (an open relay): declare `[[caller]]`, or listen on 127.0.0.1, or set \
                 `credentials.mode = \"passthrough\"`"
            ),
        );
    }
    let is_default_used =
        is_loopback(listen) || settings.callers.iter().any(|caller| caller.credential.is_empty());
    if is_default_used && !credentials.alias.contains_key(&credentials.default) {
        let known = credentials.alias.keys().map(String::as_str);
        let what = match suggestion(&credentials.default, known) {
            Some(like) => format!("no such alias; did you mean `{like}`?"),
            None => "no such alias: add `[credentials.alias.<name>]` with `token_file` or `token_env`, and name it \
                     here"
                .to_owned(),
        };
        checker.say_because("credentials.default", "credentials.mode", what);
    }
}

/// A name must be well formed and used once.
fn name<'a>(prefix: &str, name: &'a str, what: &str, seen: &mut HashSet<&'a str>, checker: &mut Checker<'_>) {
    let key = format!("{prefix}.name");
    if name.is_empty() {
        checker.say(&key, format!("is required: give each {what} a name"));
    } else if !is_name(name) {
        checker.say(&key, "a name is made of letters, digits, `-` and `_`, at most 64");
    } else if !seen.insert(name) {
        checker.say(&key, format!("`{name}` is the name of another {what} already"));
    }
}

/// A SHA-256 in hexadecimal.
pub(super) fn sha256(text: &str) -> Result<[u8; 32], &'static str> {
    const OF_NOTHING: [u8; 4] = [0xe3, 0xb0, 0xc4, 0x42];
    const EXPECTED: &str =
        "expected 64 hexadecimal digits, such as `printf %s \"$TOKEN\" | sha256sum` writes";
    let digits = text.trim().as_bytes();
    if digits.len() != 64 {
        return Err(EXPECTED);
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16).ok_or(EXPECTED);
        *byte = (digit(0)? * 16 + digit(1)?) as u8;
    }
    if hash[..4] == OF_NOTHING {
        return Err("this is the SHA-256 of an empty text; was the variable empty?");
    }
    Ok(hash)
}

fn callers(settings: &Settings, checker: &mut Checker<'_>) {
    let mut names = HashSet::new();
    for (index, caller) in settings.callers.iter().enumerate() {
        let prefix = format!("caller[{index}]");
        name(&prefix, &caller.name, "caller", &mut names, checker);
        let sources = checker.one_source(&prefix, "token", &caller.token_file, &caller.token_env);
        match sources + usize::from(!caller.token_sha256.is_empty()) {
            0 => {
                checker.say(&prefix, "has no token: set one of `token_file`, `token_env` and `token_sha256`");
            }
            2 if sources == 1 => checker.say(
                &format!("{prefix}.token_sha256"),
                "the token is given twice; keep one of `token_file`, `token_env` and `token_sha256`",
            ),
            _ => {}
        }
        if !caller.token_sha256.is_empty()
            && let Err(what) = sha256(&caller.token_sha256)
        {
            checker.say(&format!("{prefix}.token_sha256"), what);
        }
        let key = format!("{prefix}.credential");
        if caller.credential.is_empty() {
            continue;
        }
        if !settings.credentials.alias.contains_key(&caller.credential) {
            let known = settings.credentials.alias.keys().map(String::as_str);
            match suggestion(&caller.credential, known) {
                Some(like) => checker.say(&key, format!("no such alias; did you mean `{like}`?")),
                None => checker.say(&key, "no such alias: add `[credentials.alias.<name>]` with this name"),
            }
        } else if settings.credentials.mode == CredentialMode::Passthrough {
            checker.warn(&key, "has no effect while `credentials.mode` is \"passthrough\"");
        }
    }
}

fn routes(settings: &Settings, checker: &mut Checker<'_>) {
    let rows = built_in();
    let labels: Vec<String> = rows.iter().map(crate::flexport::routes::RoutePolicy::label).collect();
    let mut largest_queued = 0;
    for (index, route) in settings.routes.iter().enumerate() {
        let prefix = format!("route[{index}]");
        if route.method.is_empty() || route.path.is_empty() {
            checker.say(&prefix, "`method` and `path` are required: they tell which row is changed");
            continue;
        }
        let Some(row) = rows.iter().find(|row| policy::is_of(route, row)) else {
            let label = format!("{} {}", route.method, route.path);
            let upper = label.replacen(&route.method, &route.method.to_ascii_uppercase(), 1);
            let what = match suggestion(&upper, labels.iter().map(String::as_str)) {
                Some(like) => format!("no endpoint `{label}`; did you mean `{like}`?"),
                None => format!(
                    "no endpoint `{label}`; write method and path as the built-in table does, such as `GET` and \
                     `/shipments/:id`"
                ),
            };
            checker.say_because(&format!("{prefix}.path"), &prefix, what);
            continue;
        };
        if settings.routes[..index].iter().any(|other| policy::is_of(other, row)) {
            checker.say(&prefix, format!("`{}` is changed by an earlier `[[route]]` already", row.label()));
        }
        no_effect(&prefix, route, row.cache.is_some(), row.queue.class.is_some(), &row.label(), checker);
        if route.object_fallback.is_some() && row.cache.is_some() && !row.template.ends_with("/:id") {
            let what =
                format!("`{}` is not of one object, such as `GET /shipments/:id`; remove it", row.label());
            checker.say(&format!("{prefix}.object_fallback"), what);
        }
        if route.timeout.is_some_and(|timeout| timeout.is_zero()) {
            checker.say(&format!("{prefix}.timeout"), "must be longer than 0s");
        }
        if let Some(size) = route.queue_max_body {
            let key = format!("{prefix}.queue_max_body");
            if size.0 > settings.server.max_body.0 {
                checker.say(&key, "must not be larger than `server.max_body`");
            } else if size.0 > LONGEST_QUEUED {
                checker
                    .say(&key, "must not be larger than \"16MiB\": a queued write is one batch of the store");
            }
        }
    }
    for row in policy::table(settings).rows() {
        if row.queue.class.is_some() {
            largest_queued = row.queue.max_body.max(largest_queued);
        }
    }
    if settings.queue.enabled && settings.queue.buffer_total.0 < largest_queued {
        let what = format!(
            "must hold the longest body that is queued, which is \"{}\"",
            super::raw::Size(largest_queued)
        );
        checker.say("queue.buffer_total", what);
    }
}

/// What is set on a row that cannot do it.
fn no_effect(
    prefix: &str,
    route: &Route,
    is_cached: bool,
    is_queued: bool,
    label: &str,
    checker: &mut Checker<'_>,
) {
    let of_cache = [
        ("ttl", route.ttl.is_some()),
        ("max_stale", route.max_stale.is_some()),
        ("cache", route.cache == Some(true)),
        ("override_revalidation", route.override_revalidation.is_some()),
        ("object_fallback", route.object_fallback.is_some()),
    ];
    for (key, is_set) in of_cache {
        if is_set && !is_cached {
            checker
                .say(&format!("{prefix}.{key}"), format!("answers of `{label}` are never cached; remove it"));
        }
    }
    let of_queue = [
        ("queue_max_body", route.queue_max_body.is_some()),
        ("trust_503", route.trust_503.is_some()),
        ("on_unknown_head", route.on_unknown_head.is_some()),
        ("on_dead_head", route.on_dead_head.is_some()),
    ];
    for (key, is_set) in of_queue {
        if is_set && !is_queued {
            checker.say(&format!("{prefix}.{key}"), format!("`{label}` is never queued; remove it"));
        }
    }
}

fn breaker(settings: &Settings, checker: &mut Checker<'_>) {
    let breaker = &settings.breaker;
    thresholds(breaker, None, settings, checker);
    checker.longer_than_zero(&[("breaker.stale_deadline", *breaker.stale_deadline)]);
    let groups = policy::table(settings).groups();
    for (index, row) in breaker.scopes.iter().enumerate() {
        scope(index, row, &groups, settings, checker);
        thresholds(&row.over(breaker), Some((index, row)), settings, checker);
    }
}

/// Which breaker a row is for, and whether that one has a use for what it sets.
fn scope(
    index: usize,
    row: &BreakerScope,
    groups: &[Arc<str>],
    settings: &Settings,
    checker: &mut Checker<'_>,
) {
    let prefix = format!("breaker.scope[{index}]");
    let key = format!("{prefix}.name");
    let known = || {
        let of_group = groups.iter().flat_map(|group| [format!("{group}:read"), format!("{group}:write")]);
        std::iter::once("global".to_owned()).chain(of_group).collect::<Vec<_>>()
    };
    if row.name.is_empty() {
        checker.say(
            &key,
            "is required: it tells which breaker is changed, such as \"shipments:read\" or \"global\"",
        );
        return;
    }
    let known = known();
    if !known.contains(&row.name) {
        let like = match suggestion(&row.name, known.iter().map(String::as_str)) {
            Some(like) => format!("; did you mean `{like}`?"),
            None => ".".to_owned(),
        };
        let list = groups.join(", ");
        let what = format!(
            "no breaker {:?}{like} There are `global`, and `<group>:read` and `<group>:write` of {list}",
            row.name
        );
        checker.say(&key, what);
        return;
    }
    if settings.breaker.scopes[..index].iter().any(|other| other.name == row.name) {
        let what = format!("`{}` is changed by an earlier `[[breaker.scope]]` already", row.name);
        checker.say(&key, what);
    }
    let without_effect: &[(&str, &str)] = if row.name == "global" {
        const ITS_MATTER: &str = "`global` judges the way to Flexport, not its answers; remove it";
        &[("slow_share", ITS_MATTER), ("slow", ITS_MATTER), ("retry_after_max", ITS_MATTER)]
    } else if row.name.ends_with(":write") {
        &[("half_open_probes", "writes are tried one at a time; remove it")]
    } else {
        &[]
    };
    for (name, what) in without_effect.iter().filter(|(name, _)| row.sets(name)) {
        checker.say(&format!("{prefix}.{name}"), what);
    }
}

/// The rules for thresholds: those of all breakers, or those that one has by its row. What the row leaves out is judged
/// in `[breaker]` alone.
fn thresholds(
    of: &Breaker,
    row: Option<(usize, &BreakerScope)>,
    settings: &Settings,
    checker: &mut Checker<'_>,
) {
    let is_here = |name: &str| row.is_none_or(|(_, row)| row.sets(name));
    let key = |name: &str| match row {
        Some((index, row)) if row.sets(name) => format!("breaker.scope[{index}].{name}"),
        Some(_) | None => format!("breaker.{name}"),
    };
    for (name, value) in [("failure_share", of.failure_share), ("slow_share", of.slow_share)] {
        if is_here(name) {
            checker.share(&key(name), value);
        }
    }
    // The most is what the state word can count.
    for (name, value, most) in [
        ("min_calls", of.min_calls, u32::MAX),
        ("consecutive_failures", of.consecutive_failures, u32::MAX),
        ("half_open_probes", of.half_open_probes, 8),
        ("half_open_successes", of.half_open_successes, 31),
        ("half_open_failures", of.half_open_failures, 31),
    ] {
        if is_here(name) {
            checker.at_least_one(&[(&key(name), value)]);
            if value > most {
                checker.say(&key(name), format!("must be at most {most}"));
            }
        }
    }
    for (name, value) in [
        ("window", of.window),
        ("slow", of.slow),
        ("open_wait", of.open_wait),
        ("open_wait_max", of.open_wait_max),
        ("retry_after_max", of.retry_after_max),
    ] {
        if is_here(name) {
            checker.longer_than_zero(&[(&key(name), *value)]);
        }
    }
    // What the buckets and the state word can count.
    for (name, value, least, most) in [
        ("window", *of.window, Duration::from_secs(1), Duration::from_secs(600)),
        ("quiet_span", *of.quiet_span, Duration::ZERO, Duration::from_secs(12 * 3600)),
    ] {
        if is_here(name) && (!value.is_zero() && value < least || value > most) {
            let span = |span| Span(span).to_string();
            checker.say(&key(name), format!("must be from \"{}\" to \"{}\"", span(least), span(most)));
        }
    }
    let (first, most) = (key("open_wait"), key("open_wait_max"));
    if is_here("open_wait") {
        checker.not_longer((&first, *of.open_wait), (&most, *of.open_wait_max));
    } else if is_here("open_wait_max") && of.open_wait > of.open_wait_max {
        checker.say(&most, format!("must not be shorter than `{first}`; set `open_wait` here, too"));
    }
    if is_here("slow") && of.slow > settings.upstream.timeout {
        checker.warn(&key("slow"), "is longer than `upstream.timeout`, so no call is ever slow");
    }
}

fn capabilities(settings: &Settings, checker: &mut Checker<'_>) {
    const MIB: u64 = 1024 * 1024;
    checker.at_least_one(&[
        ("limiter.max", settings.limiter.max),
        ("limiter.start", settings.limiter.start),
        ("limiter.min", settings.limiter.min),
        ("rate.burst", settings.rate.burst),
        ("queue.max_records", settings.queue.max_records),
        ("queue.max_per_key", settings.queue.max_per_key),
        ("queue.max_parallel", settings.queue.max_parallel),
        ("queue.max_attempts", settings.queue.max_attempts),
    ]);
    if settings.limiter.max > 0 && settings.limiter.min > settings.limiter.max {
        checker.say("limiter.min", "must not be above `limiter.max`".to_owned());
    }
    // No retry at all is a choice.
    if settings.retry.budget != 0.0 {
        checker.share("retry.budget", settings.retry.budget);
    }
    if settings.retry.per_second > 1000 {
        checker.say("retry.per_second", "must be at most 1000; 0 leaves the share alone".to_owned());
    }
    if settings.rate.per_second > 100_000 {
        checker.say("rate.per_second", "must be at most 100000; 0 is no limit".to_owned());
    }
    checker.longer_than_zero(&[
        ("probe.interval", *settings.probe.interval),
        ("queue.max_age", *settings.queue.max_age),
        ("queue.backoff", *settings.queue.backoff),
        ("queue.backoff_max", *settings.queue.backoff_max),
    ]);
    let page = &settings.status_page;
    if !page.url.is_empty() {
        url("status_page.url", &page.url, checker);
    }
    if *page.interval < Duration::from_secs(1) {
        checker.say("status_page.interval", "must be at least \"1s\": the page is somebody else's");
    }
    checker.not_longer(
        ("queue.backoff", *settings.queue.backoff),
        ("queue.backoff_max", *settings.queue.backoff_max),
    );
    checker.size("queue.max_bytes", settings.queue.max_bytes.0, MIB, "1MiB");
    checker.size("cache.memory", settings.cache.memory.0, MIB, "1MiB");
    checker.size("cache.disk_max", settings.cache.disk_max.0, 16 * MIB, "16MiB");
    checker.size("cache.max_object", settings.cache.max_object.0, 1024, "1KiB");
    if settings.cache.max_object > settings.cache.memory {
        checker.say_because("cache.max_object", "cache.memory", "must not be larger than `cache.memory`");
    }
    let store = &settings.store;
    checker.one_source("store", "key", &store.key_file, &store.key_env);
    checker.one_source("store", "previous_key", &store.previous_key_file, &store.previous_key_env);
    if settings.profile == Profile::Strict && !is_loopback(settings.server.listen) {
        checker.warn("profile", "\"strict\" is for conformance suites: nothing protects Flexport or writes");
    }
}

fn telemetry(settings: &Settings, checker: &mut Checker<'_>) {
    if let Err(what) = log_filter(&settings.telemetry.log) {
        checker.say("telemetry.log", what);
    }
}

/// Whether this says what is logged, as `telemetry.log` and `PUT /api/v1/log-level` take it; else what is wrong.
pub fn log_filter(log: &str) -> Result<(), String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    if log.trim().is_empty() {
        return Err("expected a level such as \"info\"; \"off\" for none".to_owned());
    }
    for directive in log.split(',').map(str::trim) {
        // `tracing` takes a word that is no level for a module, and would show all of it.
        let is_level = LEVELS.iter().any(|level| level.eq_ignore_ascii_case(directive));
        if !directive.contains(['=', ':', '[']) && !is_level {
            return Err(match suggestion(&directive.to_ascii_lowercase(), LEVELS) {
                Some(like) => format!("no level {directive:?}; did you mean \"{like}\"?"),
                None => format!("no level {directive:?}; expected one of {}", LEVELS.join(", ")),
            });
        }
    }
    if log.parse::<tracing_subscriber::EnvFilter>().is_err() {
        return Err("expected levels such as \"info\" or \"info,seawall::queue=debug\"".to_owned());
    }
    Ok(())
}
