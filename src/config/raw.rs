//! The settings and their defaults, as `proxy.toml` names them.
//!
//! `Settings::default()` is the shipped `proxy.toml`; a test compares the two. A section stands here only when
//! something acts on it. Values are plain; what must be checked across fields is checked in `validate`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// All settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// `flexport`, or `strict` for conformance suites.
    pub profile: Profile,
    /// Where queue, overrides and keys are kept. Empty: `$STATE_DIRECTORY`, else `./data`.
    pub data_dir: PathBuf,
    /// The data listener.
    pub server: Server,
    /// The admin listener.
    pub admin: Admin,
    /// Where Flexport is.
    pub upstream: Upstream,
    /// As whom requests go to Flexport.
    pub credentials: Credentials,
    /// Who may connect.
    #[serde(rename = "caller")]
    pub callers: Vec<Caller>,
    /// Changes to the built-in table of endpoints.
    #[serde(rename = "route")]
    pub routes: Vec<Route>,
    /// When traffic is stopped.
    pub breaker: Breaker,
    /// How much runs at once.
    pub limiter: Limiter,
    /// The rate of each credential.
    pub rate: Rate,
    /// Further attempts.
    pub retry: Retry,
    /// Active probes of groups that are not well.
    pub probe: Probe,
    /// Flexport's status page.
    pub status_page: StatusPage,
    /// Reads.
    pub cache: Cache,
    /// Writes.
    pub queue: Queue,
    /// The disk.
    pub store: Store,
    /// Logs.
    pub telemetry: Telemetry,
}

/// Which set of rules applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Made for Flexport.
    #[default]
    Flexport,
    /// Plain HTTP caching, for conformance suites.
    Strict,
}

/// `[server]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Address of the data listener.
    pub listen: SocketAddr,
    /// Base of our own URLs in rewritten links. Empty: the listen address, when that is loopback.
    pub public_url: String,
    /// Longest request body taken, in bytes.
    pub max_body: Size,
    /// Longest request head, in bytes.
    pub max_head: Size,
    /// From the accepted connection to its first byte.
    pub first_byte_timeout: Span,
    /// From the first byte to the end of the head.
    pub head_timeout: Span,
    /// Between two pieces of a request body.
    pub body_idle_timeout: Span,
    /// How long a client may take nothing of an answer.
    pub write_idle_timeout: Span,
    /// How long an unused connection is kept.
    pub idle_timeout: Span,
    /// Connections at once.
    pub max_connections: u32,
    /// HTTP/2 streams at once on a connection.
    pub h2_max_streams: u32,
    /// HTTP/2 streams that a peer may open and reset before the connection is ended.
    pub h2_max_resets: u32,
    /// The end.
    pub drain: Drain,
}

/// `[server.drain]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Drain {
    /// How long requests in flight may go on after SIGTERM.
    pub grace: Span,
}

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Address of the admin listener.
    pub listen: SocketAddr,
    /// File with the token that the API asks for.
    pub token_file: PathBuf,
    /// Environment variable with that token.
    pub token_env: String,
    /// Whether `/livez`, `/readyz`, `/healthz` and `/metrics` answer without the token.
    pub open_health: bool,
}

/// `[upstream]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Upstream {
    /// Flexport's base URL; a path in it is put before every request's path.
    pub base_url: String,
    /// Further bases whose links are rewritten.
    pub link_bases: Vec<String>,
    /// `h1` or `h2`.
    pub protocol: Protocol,
    /// One attempt, from the start to the head.
    pub timeout: Span,
    /// Name, TCP, tunnel, TLS and, with h2, the server's settings: all together.
    pub connect_timeout: Span,
    /// Between two pieces of an answer.
    pub body_idle_timeout: Span,
    /// How long an unused connection is kept.
    pub idle_timeout: Span,
    /// Unused connections that are kept.
    pub max_idle: u32,
    /// How old a connection may be and still take a request.
    pub connection_max_age: Span,
    /// Time until the first TCP keepalive probe, and between two of them.
    pub tcp_keepalive: Span,
    /// With h2: time between two PINGs.
    pub h2_ping_interval: Span,
    /// With h2: how long a PING may stay without its answer.
    pub h2_ping_timeout: Span,
    /// The egress proxy's URL. Empty: none.
    pub proxy: String,
    /// File with what the egress proxy is told in `Proxy-Authorization`; read again at each reload.
    pub proxy_authorization_file: PathBuf,
    /// Environment variable with the same.
    pub proxy_authorization_env: String,
    /// TLS towards the upstream.
    pub tls: UpstreamTls,
}

/// `upstream.protocol`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    H1,
    /// HTTP/2 and nothing else.
    H2,
}

/// `[upstream.tls]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpstreamTls {
    /// PEM file with certificates of authorities that are trusted.
    pub ca_file: PathBuf,
    /// Whether this machine's authorities are trusted too.
    pub platform_roots: bool,
    /// PEM file with our certificate, and behind it those of its issuers.
    pub cert_file: PathBuf,
    /// PEM file with that certificate's private key.
    pub key_file: PathBuf,
    /// The lowest version that is spoken.
    pub min_version: TlsVersion,
}

/// `upstream.tls.min_version`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum TlsVersion {
    /// TLS 1.2.
    #[default]
    #[serde(rename = "1.2")]
    V1_2,
    /// TLS 1.3.
    #[serde(rename = "1.3")]
    V1_3,
}

/// `[credentials]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Credentials {
    /// Whether the callers' own `Authorization` goes to Flexport, or one of ours.
    pub mode: CredentialMode,
    /// The alias of callers that name none, in `inject`.
    pub default: String,
    /// Secrets by alias.
    pub alias: BTreeMap<String, Alias>,
    /// Tokens that are one partition: declaring them says that they may see the same data.
    pub identity: Vec<IdentityOf>,
}

/// `credentials.mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CredentialMode {
    /// The caller's own.
    #[default]
    Passthrough,
    /// One of ours.
    Inject,
}

/// `[credentials.alias.<name>]`
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Alias {
    /// File with the secret; read again at each reload.
    pub token_file: PathBuf,
    /// Environment variable with the secret.
    pub token_env: String,
}

/// `[[credentials.identity]]`
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IdentityOf {
    /// A name for it.
    pub name: String,
    /// SHA-256 of each token, in hexadecimal.
    pub token_sha256: Vec<String>,
}

/// `[[caller]]`
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Caller {
    /// A name for logs and tickets.
    pub name: String,
    /// File with its token.
    pub token_file: PathBuf,
    /// Environment variable with its token.
    pub token_env: String,
    /// SHA-256 of its token, in hexadecimal.
    pub token_sha256: String,
    /// The alias it goes to Flexport as. Empty: `credentials.default`.
    pub credential: String,
}

/// `[[route]]`: changes one row of the built-in table; what is left out stays.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Route {
    /// Which row, such as `GET`.
    pub method: String,
    /// Which row, such as `/shipments/:id`.
    pub path: String,
    /// Time limit of the whole call.
    pub timeout: Option<Span>,
    /// Whether a failed attempt is followed by another.
    pub retry: Option<bool>,
    /// How long an answer without freshness of its own is fresh.
    pub ttl: Option<Span>,
    /// How old a copy may be in an outage.
    pub max_stale: Option<Span>,
    /// Whether answers are kept at all.
    pub cache: Option<bool>,
    /// Whether a copy is served in an outage against `must-revalidate` and the like.
    pub override_revalidation: Option<bool>,
    /// Whether an object without a copy is served out of a page of its collection in an outage.
    pub object_fallback: Option<bool>,
    /// `never`, or `default`.
    pub queue: Option<QueueChoice>,
    /// Longest body that is queued, in bytes.
    pub queue_max_body: Option<Size>,
    /// Whether 503 with `Retry-After` proves that nothing was done.
    pub trust_503: Option<bool>,
    /// `block` or `continue`.
    pub on_unknown_head: Option<HeadChoice>,
    /// `block` or `continue`.
    pub on_dead_head: Option<HeadChoice>,
}

/// `route.queue`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueChoice {
    /// Forwarded, and refused in an outage.
    Never,
    /// By the built-in class.
    Default,
}

/// `route.on_unknown_head`, `route.on_dead_head`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadChoice {
    /// Those behind wait for an operator.
    Block,
    /// Those behind go on.
    Continue,
}

/// `[breaker]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Breaker {
    /// How far back outcomes are counted.
    pub window: Span,
    /// Calls in the window below which no share is judged.
    pub min_calls: u32,
    /// Share of failures that opens, 0 to 1.
    pub failure_share: f64,
    /// Failures in a row that open, when they span `consecutive_span`.
    pub consecutive_failures: u32,
    /// How long such a row must last.
    pub consecutive_span: Span,
    /// Share of slow calls that opens, 0 to 1.
    pub slow_share: f64,
    /// From the start of an attempt to its head: longer is slow.
    pub slow: Span,
    /// First wait before probing.
    pub open_wait: Span,
    /// Longest wait before probing.
    pub open_wait_max: Span,
    /// Longest `Retry-After` that is honoured.
    pub retry_after_max: Span,
    /// Probes at once.
    pub half_open_probes: u32,
    /// Successes that close.
    pub half_open_successes: u32,
    /// Two successes without a failure between them close when they are this far apart.
    pub quiet_span: Span,
    /// Failures that open again.
    pub half_open_failures: u32,
    /// How long the ramp after a recovery lasts.
    pub ramp: Span,
    /// How long a caller with a stale copy waits while the group shows failures.
    pub stale_deadline: Span,
    /// Other thresholds for single breakers.
    #[serde(rename = "scope")]
    pub scopes: Vec<BreakerScope>,
}

/// The thresholds that one breaker may have for itself, each named once.
macro_rules! breaker_scope {
    ($($name:ident: $kind:ty,)*) => {
        /// `[[breaker.scope]]`: other thresholds for one breaker; what is left out is that of `[breaker]`.
        #[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct BreakerScope {
            /// Which one: `global`, `<group>:read` or `<group>:write`.
            pub name: String,
            $(
                #[doc = concat!("Instead of `breaker.", stringify!($name), "`.")]
                pub $name: Option<$kind>,
            )*
        }

        impl BreakerScope {
            /// The thresholds of this breaker.
            pub fn over(&self, all: &Breaker) -> Breaker {
                let scopes = Vec::new();
                let stale_deadline = all.stale_deadline;
                Breaker { $($name: self.$name.unwrap_or(all.$name),)* stale_deadline, scopes }
            }

            /// Whether it has this threshold for itself.
            pub(super) fn sets(&self, name: &str) -> bool {
                match name {
                    $(stringify!($name) => self.$name.is_some(),)*
                    _ => false,
                }
            }
        }
    };
}

breaker_scope! {
    window: Span,
    min_calls: u32,
    failure_share: f64,
    consecutive_failures: u32,
    consecutive_span: Span,
    slow_share: f64,
    slow: Span,
    open_wait: Span,
    open_wait_max: Span,
    retry_after_max: Span,
    half_open_probes: u32,
    half_open_successes: u32,
    quiet_span: Span,
    half_open_failures: u32,
    ramp: Span,
}

/// `[limiter]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limiter {
    /// Calls of the upstream at once, at most.
    pub max: u32,
    /// Calls at once in the beginning.
    pub start: u32,
    /// Calls at once, at least.
    pub min: u32,
    /// How long a call waits for its credential's rate gate and for a slot.
    pub max_wait: Span,
}

/// `[rate]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rate {
    /// Calls a second of each credential. 0: as many as come, until the upstream says otherwise.
    pub per_second: u32,
    /// How many of them may leave at once after a rest.
    pub burst: u32,
}

/// `[retry]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// Further attempts as a share of the first ones of the last ten seconds, 0 to 1.
    pub budget: f64,
    /// Further attempts a second that are there in any case.
    pub per_second: u32,
}

/// `[probe]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Probe {
    /// Whether groups without traffic are probed.
    pub enabled: bool,
    /// Shortest time between two probes of a group.
    pub interval: Span,
}

/// `[status_page]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StatusPage {
    /// Where its `status.json` or `summary.json` is. Empty: it is not looked at.
    pub url: String,
    /// From one look to the next.
    pub interval: Span,
}

/// `[cache]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cache {
    /// Memory for answers, in bytes.
    pub memory: Size,
    /// Longest answer kept, in bytes; a longer one streams through.
    pub max_object: Size,
    /// How long after it was last confirmed a copy may be served in an outage.
    pub max_stale: Span,
    /// The same when the outage is a 429.
    pub max_stale_429: Span,
    /// How long a request waits for another that fetches the same.
    pub lock_wait: Span,
    /// Whether a request's `Cache-Control` is honoured.
    pub honour_request_cc: bool,
    /// Whether copies are kept on disk too.
    pub disk: bool,
    /// The most that they take there, in bytes.
    pub disk_max: Size,
    /// How long after its own last success a token is served stale copies.
    pub stale_auth_window: Span,
    /// Whether an object without a copy is served out of a page of its collection in an outage.
    pub object_fallback: bool,
}

/// `[queue]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Queue {
    /// Whether writes are queued at all.
    pub enabled: bool,
    /// How long a write may wait.
    pub max_age: Span,
    /// Unsettled records.
    pub max_records: u32,
    /// Bytes of unsettled records.
    pub max_bytes: Size,
    /// Unsettled records of one order key.
    pub max_per_key: u32,
    /// Bodies of writes in memory at once, in bytes.
    pub buffer_total: Size,
    /// What an ambiguous live create answers: `error` (504) or `accept` (202).
    pub on_unknown: OnUnknown,
    /// What is done with writes whose credential was passed through.
    pub passthrough: PassthroughWrites,
    /// How long an equal create without a key is answered from one that was settled.
    pub duplicate_window: Span,
    /// How long answers are kept for repeats with the same key.
    pub answer_retention: Span,
    /// How long done tickets are kept.
    pub done_retention: Span,
    /// How long dead, expired and cancelled tickets are kept.
    pub dead_retention: Span,
    /// Replays at once.
    pub max_parallel: u32,
    /// First wait before a further attempt.
    pub backoff: Span,
    /// Longest wait before a further attempt.
    pub backoff_max: Span,
    /// Answered 5xx after which a record is dead.
    pub max_attempts: u32,
}

/// `queue.on_unknown`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUnknown {
    /// 504 with the ticket.
    #[default]
    Error,
    /// 202 with the ticket.
    Accept,
}

/// `queue.passthrough`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PassthroughWrites {
    /// The token is sealed for the record's life.
    #[default]
    Sealed,
    /// Not queued.
    Refuse,
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// File with the key that seals what is on disk.
    pub key_file: PathBuf,
    /// Environment variable with that key.
    pub key_env: String,
    /// File with the key before that one, while it is being changed.
    pub previous_key_file: PathBuf,
    /// Environment variable with that one.
    pub previous_key_env: String,
    /// Free space that is left to others, in bytes. Zero: a tenth of the volume, at most 2 GiB, at least 128 MiB.
    pub min_free: Size,
    /// How long a start waits for another process to leave the data folder.
    pub lock_wait: Span,
}

/// `[telemetry]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// Levels, as `tracing` writes them: `info`, or `info,seawall::queue=debug`.
    pub log: String,
    /// `text` or `json`.
    pub format: LogFormat,
    /// Whether each request is logged.
    pub access_log: bool,
}

/// `telemetry.format`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

/// A duration, written `"1m 30s"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A number of bytes, written `"64MiB"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

const fn secs(seconds: u64) -> Span {
    Span(Duration::from_secs(seconds))
}

// === defaults ===

impl Default for Settings {
    fn default() -> Self {
        Self {
            profile: Profile::Flexport,
            data_dir: PathBuf::new(),
            server: Server::default(),
            admin: Admin::default(),
            upstream: Upstream::default(),
            credentials: Credentials::default(),
            callers: Vec::new(),
            routes: Vec::new(),
            breaker: Breaker::default(),
            limiter: Limiter::default(),
            rate: Rate::default(),
            retry: Retry::default(),
            probe: Probe::default(),
            status_page: StatusPage::default(),
            cache: Cache::default(),
            queue: Queue::default(),
            store: Store::default(),
            telemetry: Telemetry::default(),
        }
    }
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8460)),
            public_url: String::new(),
            max_body: Size(64 * MIB),
            max_head: Size(64 * KIB),
            first_byte_timeout: secs(10),
            head_timeout: secs(10),
            body_idle_timeout: secs(30),
            write_idle_timeout: secs(30),
            idle_timeout: secs(90),
            max_connections: 4096,
            h2_max_streams: 128,
            h2_max_resets: 64,
            drain: Drain::default(),
        }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self { grace: secs(25) }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8461)),
            token_file: PathBuf::new(),
            token_env: String::new(),
            open_health: true,
        }
    }
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            base_url: "https://api.flexport.com".to_owned(),
            link_bases: vec!["https://api.flexport.com".to_owned()],
            protocol: Protocol::H1,
            timeout: secs(30),
            connect_timeout: secs(3),
            body_idle_timeout: secs(30),
            idle_timeout: secs(30),
            max_idle: 64,
            connection_max_age: secs(300),
            tcp_keepalive: secs(15),
            h2_ping_interval: secs(10),
            h2_ping_timeout: secs(5),
            proxy: String::new(),
            proxy_authorization_file: PathBuf::new(),
            proxy_authorization_env: String::new(),
            tls: UpstreamTls::default(),
        }
    }
}

impl Default for UpstreamTls {
    fn default() -> Self {
        Self {
            ca_file: PathBuf::new(),
            platform_roots: true,
            cert_file: PathBuf::new(),
            key_file: PathBuf::new(),
            min_version: TlsVersion::V1_2,
        }
    }
}

impl Default for Credentials {
    fn default() -> Self {
        Self {
            mode: CredentialMode::Passthrough,
            default: "default".to_owned(),
            alias: BTreeMap::new(),
            identity: Vec::new(),
        }
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            window: secs(10),
            min_calls: 20,
            failure_share: 0.5,
            consecutive_failures: 8,
            consecutive_span: secs(2),
            slow_share: 0.8,
            slow: secs(10),
            open_wait: secs(5),
            open_wait_max: secs(60),
            retry_after_max: secs(300),
            half_open_probes: 3,
            half_open_successes: 5,
            quiet_span: secs(30),
            half_open_failures: 2,
            ramp: secs(30),
            stale_deadline: secs(2),
            scopes: Vec::new(),
        }
    }
}

impl Breaker {
    /// The row of one breaker, when it has one.
    pub fn row(&self, scope: &str) -> Option<&BreakerScope> {
        self.scopes.iter().find(|row| row.name == scope)
    }

    /// From the start of an attempt to its head, for reads of a group: longer is slow.
    pub fn slow_of_reads(&self, group: &str) -> Duration {
        let is_of = |row: &&BreakerScope| row.name.strip_suffix(":read") == Some(group);
        *self.scopes.iter().find(is_of).and_then(|row| row.slow).unwrap_or(self.slow)
    }
}

impl Default for Limiter {
    fn default() -> Self {
        Self { max: 128, start: 16, min: 2, max_wait: secs(2) }
    }
}

impl Default for Rate {
    fn default() -> Self {
        Self { per_second: 0, burst: 10 }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self { budget: 0.1, per_second: 1 }
    }
}

impl Default for Probe {
    fn default() -> Self {
        Self { enabled: true, interval: secs(5) }
    }
}

impl Default for StatusPage {
    fn default() -> Self {
        Self { url: String::new(), interval: secs(60) }
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            memory: Size(128 * MIB),
            max_object: Size(2 * MIB),
            max_stale: secs(24 * 3600),
            max_stale_429: secs(60),
            lock_wait: secs(5),
            honour_request_cc: true,
            disk: true,
            disk_max: Size(1024 * MIB),
            stale_auth_window: secs(24 * 3600),
            object_fallback: true,
        }
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            enabled: true,
            max_age: secs(72 * 3600),
            max_records: 100_000,
            max_bytes: Size(1024 * MIB),
            max_per_key: 1000,
            buffer_total: Size(256 * MIB),
            on_unknown: OnUnknown::Error,
            passthrough: PassthroughWrites::Sealed,
            duplicate_window: secs(60),
            answer_retention: secs(24 * 3600),
            done_retention: secs(7 * 24 * 3600),
            dead_retention: secs(30 * 24 * 3600),
            max_parallel: 4,
            backoff: secs(2),
            backoff_max: secs(15 * 60),
            max_attempts: 8,
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            key_file: PathBuf::new(),
            key_env: String::new(),
            previous_key_file: PathBuf::new(),
            previous_key_env: String::new(),
            min_free: Size(0),
            lock_wait: secs(30),
        }
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { log: "info".to_owned(), format: LogFormat::Text, access_log: true }
    }
}

// === impl Span ===

impl std::ops::Deref for Span {
    type Target = Duration;

    fn deref(&self) -> &Duration {
        &self.0
    }
}

impl std::str::FromStr for Span {
    type Err = String;

    /// `"1m 30s"`, `"250ms"`, `"72h"`, `"1d"`: numbers with a unit, in any order, added up.
    fn from_str(text: &str) -> Result<Self, String> {
        const HELP: &str = "a duration is written like \"250ms\", \"30s\", \"1m 30s\", \"4h\" or \"2d\"";
        let mut total = Duration::ZERO;
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(HELP.to_owned());
        }
        while !rest.is_empty() {
            let digits = rest
                .find(|c: char| !c.is_ascii_digit())
                .ok_or_else(|| format!("a unit is missing: {HELP}"))?;
            let number: u64 = rest[..digits].parse().map_err(|_| HELP.to_owned())?;
            rest = rest[digits..].trim_start();
            let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            let unit_millis = match &rest[..letters] {
                "ms" => 1,
                "s" => 1000,
                "m" | "min" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                _ => return Err(HELP.to_owned()),
            };
            let millis =
                number.checked_mul(unit_millis).ok_or_else(|| "the duration is too long".to_owned())?;
            total = total
                .checked_add(Duration::from_millis(millis))
                .ok_or_else(|| "the duration is too long".to_owned())?;
            rest = rest[letters..].trim_start();
        }
        // A hundred years: what is meant as "for ever" must still be added to an instant.
        if total > Duration::from_secs(100 * 365 * 86_400) {
            return Err("the duration is longer than a hundred years".to_owned());
        }
        Ok(Self(total))
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut millis = self.0.as_millis();
        if millis == 0 {
            return f.write_str("0s");
        }
        let mut is_first = true;
        for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
            let count = millis / size;
            if count > 0 {
                write!(f, "{}{count}{unit}", if is_first { "" } else { " " })?;
                is_first = false;
                millis %= size;
            }
        }
        Ok(())
    }
}

// === impl Size ===

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const HELP: &str = "a size is written like \"512B\", \"64KiB\", \"128MiB\" or \"1GiB\"";
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u64 = text[..digits].parse().map_err(|_| HELP.to_owned())?;
        let unit = match text[digits..].trim() {
            "B" => 1,
            "KiB" => KIB,
            "MiB" => MIB,
            "GiB" => 1024 * MIB,
            _ => return Err(HELP.to_owned()),
        };
        number.checked_mul(unit).map(Self).ok_or_else(|| "the size is too large".to_owned())
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (unit, size) in [("GiB", 1024 * MIB), ("MiB", MIB), ("KiB", KIB)] {
            if self.0 >= size && self.0.is_multiple_of(size) {
                return write!(f, "{}{unit}", self.0 / size);
            }
        }
        write!(f, "{}B", self.0)
    }
}

macro_rules! as_text {
    ($name:ident) => {
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

as_text!(Span);
as_text!(Size);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_read_and_written() {
        for (text, millis) in
            [("250ms", 250), ("1m 30s", 90_000), ("72h", 259_200_000), ("0s", 0), ("1m30s", 90_000)]
        {
            assert_eq!(text.parse::<Span>().unwrap().0.as_millis(), millis, "{text}");
        }
        for text in ["", "30", "s", "1 fortnight", "-1s", "1.5s", "99999999999999999999s", "9999999d"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
        assert_eq!(Span(Duration::from_secs(90)).to_string(), "1m 30s");
        assert_eq!("64MiB".parse::<Size>().unwrap().0, 64 << 20);
        assert_eq!(Size(64 << 20).to_string(), "64MiB");
        for text in ["", "64", "64MB", "MiB", "99999999999GiB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
