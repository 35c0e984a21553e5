//! What can be asked for on the command line.

use crate::config::Secret;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

/// A resilience proxy for the Flexport freight API.
#[derive(Debug, Parser)]
#[command(name = "seawall", version, max_term_width = 100, propagate_version = true)]
pub struct Cli {
    /// Of operator commands.
    #[command(flatten)]
    pub operator: Operator,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How operator commands reach the admin API and show what it says.
#[derive(Debug, Clone, Args)]
pub struct Operator {
    /// Admin API of a Seawall; several are asked in turn.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "SEAWALL_ADMIN",
        value_delimiter = ',',
        help_heading = "Operator options"
    )]
    pub admin: Vec<String>,
    /// File with the admin API's token (or the token itself in $SEAWALL_ADMIN_TOKEN).
    #[arg(long, global = true, value_name = "FILE", help_heading = "Operator options")]
    pub token_file: Option<PathBuf>,
    /// The token of the configuration at hand, where nothing else is said.
    #[arg(skip)]
    pub token: Option<Secret>,
    /// How answers are shown.
    #[arg(long, global = true, value_enum, default_value_t = Output::Table, help_heading = "Operator options")]
    pub output: Output,
    /// Do not ask before what cannot be taken back.
    #[arg(long, global = true, help_heading = "Operator options")]
    pub yes: bool,
}

/// How answers are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the proxy.
    Serve(ConfigArgs),
    /// Validate the configuration without starting anything.
    Check(ConfigArgs),
    /// Show what is configured and where it comes from, or what there is to configure.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Play an outage against a built-in Flexport simulator and show what Seawall does.
    #[cfg(feature = "simulator")]
    Demo(Demo),
    /// Run a simulator of the Flexport API with a fault API under /_sim.
    #[cfg(feature = "simulator")]
    Simulate(Simulate),
    /// Show breakers, queue, cache and store of a running Seawall.
    Status(StatusArgs),
    /// Look at the breakers, or override one.
    #[command(subcommand)]
    Breaker(BreakerCommand),
    /// Look at the cache, or take copies out of it.
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Look at queued writes, cancel one, or settle one whose outcome is unknown.
    #[command(subcommand)]
    Queue(QueueCommand),
    /// Check, back up or restore the folder of queued writes.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Ask whether a Seawall lives or can take traffic; for container health checks.
    #[command(subcommand)]
    Health(HealthCommand),
    /// Print a completion script for a shell.
    Completions(Completions),
    /// Print the manual page of Seawall or of one command.
    Man(Man),
}

/// Where the configuration comes from.
#[derive(Debug, Clone, Args)]
pub struct ConfigArgs {
    /// Configuration file [default: $SEAWALL_CONFIG, ./proxy.toml, /etc/seawall/proxy.toml, else built-in].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Override one setting, such as upstream.timeout=10s; may be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub sets: Vec<String>,
}

/// `seawall config …`
#[derive(Debug, Clone, Subcommand)]
pub enum ConfigCommand {
    /// Show each effective value with its origin, secrets masked.
    Show {
        /// The sources.
        #[command(flatten)]
        source: ConfigArgs,
        /// Ask a running Seawall for what is in force there, by its admin API.
        #[arg(long, conflicts_with_all = ["config", "sets"])]
        running: bool,
    },
    /// Print a JSON Schema (draft 2020-12) of the file.
    Schema,
    /// Have a running Seawall read its configuration again, all or nothing.
    Reload,
}

/// `seawall demo`
#[cfg(feature = "simulator")]
#[derive(Debug, Clone, Args)]
pub struct Demo {
    /// Leave simulator and proxy running at the end, and print their URLs.
    #[arg(long)]
    pub keep: bool,
    /// Play the read half of the story against this upstream instead of the simulator. SEAWALL_DEMO_TOKEN holds its
    /// API key.
    #[arg(long, value_name = "URL", conflicts_with = "keep")]
    pub upstream: Option<String>,
}

/// `seawall simulate`
#[cfg(feature = "simulator")]
#[derive(Debug, Clone, Args)]
pub struct Simulate {
    /// Address of the simulated API. The fault API is there too, and on the next port, where no fault reaches it.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8470")]
    pub listen: std::net::SocketAddr,
    /// Seed of the simulated world: the same seed gives the same world.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Number of shipments in the world.
    #[arg(long, value_name = "N", default_value_t = 120)]
    pub shipments: usize,
}

/// `seawall status`
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Show it again every second.
    #[arg(long)]
    pub watch: bool,
}

/// `seawall breaker …`
#[derive(Debug, Clone, Subcommand)]
pub enum BreakerCommand {
    /// List all breakers.
    List,
    /// Stop all traffic of a scope, probes included.
    ForceOpen(OverrideArgs),
    /// Let all traffic of a scope through, whatever happens.
    ForceClosed(OverrideArgs),
    /// Let all traffic through and only tell when the breaker would have opened.
    Observe(OverrideArgs),
    /// Take an override back; the breaker probes before it closes.
    Auto(AutoArgs),
}

/// Setting an override.
#[derive(Debug, Clone, Args)]
pub struct OverrideArgs {
    /// `global`, `<group>:read`, `<group>:write`, or `all`.
    pub scope: String,
    /// Why; kept with the override.
    #[arg(long)]
    pub reason: String,
    /// How long, such as 10m or 4h; `never` to keep it until it is taken back.
    #[arg(long, default_value = "4h")]
    pub ttl: String,
    /// Show what would change, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Taking an override back.
#[derive(Debug, Clone, Args)]
pub struct AutoArgs {
    /// `global`, `<group>:read`, `<group>:write`, or `all`.
    pub scope: String,
    /// Why.
    #[arg(long)]
    pub reason: Option<String>,
}

/// `seawall cache …`
#[derive(Debug, Clone, Subcommand)]
pub enum CacheCommand {
    /// What it did and what it holds, in memory and on disk.
    Stats,
    /// List the copies in memory and on disk: how old, how large, how often used, and whether they are fresh.
    List(ListArgs),
    /// Fetch what an outage is to find: URLs, or all active shipments with their lists. Shows how it goes.
    ///
    /// Copies are found by who asks in the same form: for the same credential, with the same Flexport-Version, Accept and
    /// Accept-Language. One job at a time; Ctrl-C ends the watching, not the job.
    Warm(WarmArgs),
    /// Tell what an outage would be served if it began now, how old that is, and what not and why.
    Coverage {
        /// Only for a partition, by its name or id.
        #[arg(long, value_name = "NAME")]
        partition: Option<String>,
    },
    /// Mark copies out of date: they are asked for anew, and still serve an outage. With --hard they are deleted.
    Purge(PurgeArgs),
}

/// Listing copies.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// Only those of a tag, such as shipments.
    #[arg(long)]
    pub tag: Option<String>,
    /// Only those whose path begins so.
    #[arg(long)]
    pub prefix: Option<String>,
    /// Only those of a path, with any query.
    #[arg(long)]
    pub path: Option<String>,
    /// Only those of a partition, by its name or id.
    #[arg(long, value_name = "NAME")]
    pub partition: Option<String>,
    /// Only those in this state: fresh, stale, or revalidate (not to be used before Flexport was asked).
    #[arg(long, value_name = "STATE")]
    pub freshness: Option<String>,
    /// At most so many.
    #[arg(long, default_value_t = 100)]
    pub limit: usize,
    /// Only what comes after this key: the last one of the page before.
    #[arg(long, value_name = "KEY")]
    pub after: Option<String>,
}

/// Warming the cache.
#[derive(Debug, Clone, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true))]
pub struct WarmArgs {
    /// Paths such as `/shipments?per=10`, or whole URLs.
    #[arg(group = "what", value_name = "URL", conflicts_with_all = ["shipments", "status", "cancel"])]
    pub urls: Vec<String>,
    /// A file with one URL a line, `-` for standard input; empty lines and those that begin with # are none.
    #[arg(long, group = "what", value_name = "FILE", conflicts_with_all = ["urls", "shipments", "status", "cancel"])]
    pub file: Option<PathBuf>,
    /// All active shipments: the pages of /shipments, each that is neither delivered in full nor archived, and the lists
    /// that it links to (legs, documents, containers and so on).
    #[arg(long, group = "what", conflicts_with_all = ["status", "cancel"])]
    pub shipments: bool,
    /// Show how it goes, or how the last job went, and begin nothing.
    #[arg(long, group = "what", conflicts_with = "cancel")]
    pub status: bool,
    /// Begin nothing more; what is on its way comes to its end.
    #[arg(long, group = "what")]
    pub cancel: bool,
    /// With credentials.mode = "inject": the alias whose partition is warmed [default: credentials.default].
    #[arg(long, value_name = "ALIAS")]
    pub credential: Option<String>,
    /// With credentials.mode = "passthrough": a file with the Flexport token of the service that is to find the copies
    /// (or the token itself in $SEAWALL_WARM_TOKEN).
    #[arg(long, value_name = "FILE")]
    pub flexport_token_file: Option<PathBuf>,
    /// Flexport-Version, as the services send it.
    #[arg(long, value_name = "VERSION")]
    pub flexport_version: Option<String>,
    /// Accept, as the services send it.
    #[arg(long, value_name = "VALUE")]
    pub accept: Option<String>,
    /// Accept-Language, as the services send it.
    #[arg(long, value_name = "VALUE")]
    pub accept_language: Option<String>,
    /// Requests at once, from 1 to 16.
    #[arg(long, value_name = "N")]
    pub concurrency: Option<usize>,
    /// Why; kept in the audit log.
    #[arg(long)]
    pub reason: Option<String>,
    /// Do not wait for the end.
    #[arg(long)]
    pub detach: bool,
}

/// Purging copies.
#[derive(Debug, Clone, Args)]
pub struct PurgeArgs {
    /// Which.
    #[command(flatten)]
    pub which: PurgeWhich,
    /// Delete them, on disk too: an outage cannot be served from them any more.
    #[arg(long)]
    pub hard: bool,
    /// Count what would be purged, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Why; kept in the audit log.
    #[arg(long)]
    pub reason: Option<String>,
}

/// Which copies, by one of these.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub struct PurgeWhich {
    /// One, by the key that `cache list` shows.
    #[arg(long)]
    pub key: Option<String>,
    /// Those of a path, with any query.
    #[arg(long)]
    pub path: Option<String>,
    /// Those whose path begins so.
    #[arg(long)]
    pub prefix: Option<String>,
    /// Those of a tag, such as shipments.
    #[arg(long)]
    pub tag: Option<String>,
    /// Those of a partition, by the name that `cache list` shows, or its id.
    #[arg(long, value_name = "NAME")]
    pub partition: Option<String>,
    /// All.
    #[arg(long)]
    pub all: bool,
}

/// `seawall queue …`
#[derive(Debug, Clone, Subcommand)]
pub enum QueueCommand {
    /// List writes, the oldest first.
    List {
        /// Only those in this state, such as pending, waiting, unknown, dead, done.
        #[arg(long)]
        state: Option<String>,
        /// Only those of this route, such as "POST /bookings".
        #[arg(long)]
        route: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// Those after this, as the page before says.
        #[arg(long)]
        after: Option<u64>,
    },
    /// Show one write.
    Show {
        /// Its ticket.
        id: String,
    },
    /// Cancel a write that has not been sent.
    Cancel {
        /// Its ticket.
        id: String,
        /// Why.
        #[arg(long)]
        reason: String,
    },
    /// Keep a write that waits from being sent.
    Hold {
        /// Its ticket.
        id: String,
        /// Why.
        #[arg(long)]
        reason: String,
    },
    /// Let a held write be sent, or those that wait behind a dead or unknown one.
    Release {
        /// Its ticket.
        id: String,
        /// Why.
        #[arg(long)]
        reason: String,
    },
    /// Send a dead or expired write after all.
    Retry {
        /// Its ticket.
        id: String,
        /// Why.
        #[arg(long)]
        reason: String,
    },
    /// Settle a write whose outcome is unknown, or that a restore holds back.
    Resolve {
        /// Its ticket.
        id: String,
        /// What Flexport shows.
        #[arg(long = "as", value_enum)]
        verdict: Verdict,
        /// The id of what was made, with `--as applied`.
        #[arg(long)]
        result_id: Option<String>,
        /// How this was found out.
        #[arg(long)]
        reason: String,
    },
}

/// `seawall store …`
#[derive(Debug, Clone, Subcommand)]
pub enum StoreCommand {
    /// Check that all that is stored can be read and holds together; exit code 1 when something is wrong.
    ///
    /// Changes nothing. While Seawall runs, it is asked by its admin API; else a copy of the database is looked at.
    Verify {
        /// A data folder or a backup [default: the data folder of the configuration].
        dir: Option<PathBuf>,
        /// Where the copy goes meanwhile [default: the system's folder for temporary files].
        #[arg(long, value_name = "DIR")]
        scratch: Option<PathBuf>,
        /// Names the data folder and the key.
        #[command(flatten)]
        source: ConfigArgs,
    },
    /// Write a consistent copy of all queued writes into a new folder.
    ///
    /// While Seawall runs, it makes the backup itself, and the path is one that it can write to.
    Backup {
        /// The folder to make; nothing may be there.
        dir: PathBuf,
        /// Copy the file of generated secrets too. Whoever has the backup can then read all of it.
        #[arg(long)]
        with_secret: bool,
        /// Where a copy of the database goes meanwhile, when Seawall does not run [default: the system's folder for
        /// temporary files].
        #[arg(long, value_name = "DIR")]
        scratch: Option<PathBuf>,
        /// Names the data folder and the key.
        #[command(flatten)]
        source: ConfigArgs,
    },
    /// Put a backup into the place of the queue, while Seawall is stopped.
    ///
    /// Nothing that was unsettled when the backup was made is sent before a person has decided, since it may have been
    /// sent after that: what could take effect twice becomes unknown, all else is held.
    Restore {
        /// The backup.
        dir: PathBuf,
        /// Keep the queue that is there, under another name.
        #[arg(long)]
        set_aside: bool,
        /// Restore although some of what is in the backup was damaged when it was made.
        #[arg(long)]
        despite_problems: bool,
        /// Restore although the secret for HMACs is not the one that was in use: callers will not be recognised as the
        /// owners of their tickets, nor their repeats as repeats.
        #[arg(long)]
        despite_other_secret: bool,
        /// Names the data folder and the key.
        #[command(flatten)]
        source: ConfigArgs,
    },
}

/// What became of a write whose outcome was unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Verdict {
    /// It took effect: the ticket is done.
    Applied,
    /// It did not: it is sent again.
    NotApplied,
    /// It is given up.
    Drop,
}

/// `seawall health …`
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum HealthCommand {
    /// Whether the process works.
    Live,
    /// Whether it can take traffic.
    Ready,
}

/// `seawall completions`
#[derive(Debug, Clone, Args)]
pub struct Completions {
    /// The shell.
    pub shell: clap_complete::Shell,
}

/// `seawall man`
#[derive(Debug, Clone, Args)]
pub struct Man {
    /// The command, such as `breaker force-open`; the whole program when left out.
    pub command: Vec<String>,
    /// Write the pages of all commands into this folder.
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    pub dir: Option<PathBuf>,
}

// === impl Cli ===

impl Cli {
    /// Reads this process's command line. Ends the process with a message when it cannot be understood.
    pub fn of_process() -> Self {
        Self::parse_from(admin_first(std::env::args_os().collect()))
    }
}

/// Puts each `--admin URL` before the command. clap keeps of a global option only what stands behind the subcommand
/// when it stands at both places, and here each counts.
fn admin_first(words: Vec<OsString>) -> Vec<OsString> {
    let mut first = Vec::new();
    let mut rest = Vec::with_capacity(words.len());
    let mut words = words.into_iter();
    rest.extend(words.next());
    while let Some(word) = words.next() {
        if word == "--" {
            rest.push(word);
            rest.extend(words);
            break;
        } else if word == "--admin" {
            let Some(url) = words.next() else {
                // Without a value, for clap to say so.
                rest.push(word);
                break;
            };
            first.extend([word, url]);
        } else if word.as_encoded_bytes().starts_with(b"--admin=") {
            first.push(word);
        } else {
            rest.push(word);
        }
    }
    let program = usize::from(!rest.is_empty());
    rest.splice(program..program, first);
    rest
}

// === impl Completions ===

impl Completions {
    pub(super) fn print(&self) -> super::Exit {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "seawall", &mut script);
        super::output::data(&String::from_utf8_lossy(&script));
        super::Exit::Done
    }
}

// === impl Verdict ===

impl Verdict {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::NotApplied => "not_applied",
            Self::Drop => "drop",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_admin_counts_wherever_it_stands() {
        let parse = |text: &str| {
            let words = text.split(' ').map(OsString::from).collect();
            Cli::try_parse_from(admin_first(words)).map(|cli| cli.operator.admin)
        };
        let both = ["http://a", "http://b"];
        assert_eq!(parse("seawall --admin http://a status --admin http://b").unwrap(), both);
        assert_eq!(parse("seawall status --admin=http://a --watch --admin http://b").unwrap(), both);
        assert_eq!(parse("seawall --admin http://a,http://b breaker list").unwrap(), both);
        assert!(parse("seawall status --admin").is_err());
        assert!(parse("seawall status --admin= ").is_err());
        assert_eq!(admin_first(Vec::new()), Vec::<OsString>::new());
    }
}
