//! The child processes: started on their core, waited for until they answer, killed when dropped.

use crate::caches::Product;
use crate::load;
use crate::measure::{self, Cores};
use anyhow::{Context as _, Result, bail, ensure};
use std::fmt;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::Instant;

/// How long a program may take to start.
const START: Duration = Duration::from_secs(30);

/// What answers, and where.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// One of the plain programs.
    Peer(SocketAddr),
    /// Seawall's data listener.
    Seawall(SocketAddr),
    /// Somebody else's cache.
    Cache(Product, SocketAddr),
}

/// A child process.
#[derive(Debug)]
pub(crate) struct Running {
    /// Where it answers.
    pub(crate) target: Target,
    child: Child,
    /// Who works, when that is not the child itself.
    worker: Option<u32>,
    /// Where Seawall's operators ask.
    admin: Option<SocketAddr>,
    /// Its configuration and data; removed with it.
    _folder: Option<TempDir>,
}

// === impl Target ===

impl Target {
    /// Where requests go.
    pub(crate) fn address(&self) -> SocketAddr {
        match self {
            Self::Peer(address) | Self::Seawall(address) | Self::Cache(_, address) => *address,
        }
    }

    /// The same as a base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(address) => write!(f, "the peer at {address}"),
            Self::Seawall(address) => write!(f, "seawall at {address}"),
            Self::Cache(product, address) => write!(f, "{} at {address}", product.name()),
        }
    }
}

// === impl Running ===

impl Running {
    /// This binary in another role, on `core`.
    pub(crate) async fn peer(role: &str, argument: &str, core: usize, cores: Cores) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["role", role, argument]).stdout(Stdio::piped());
        let child = spawn(command, core, cores)?;
        let target = Target::Peer((Ipv4Addr::LOCALHOST, 0).into());
        let mut running = Self { target, child, worker: None, admin: None, _folder: None };
        let out = running.child.stdout.take().context("stdout is piped")?;
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        let port = line.trim().strip_prefix("listening ").and_then(|port| port.parse::<u16>().ok());
        let port = port.with_context(|| format!("{role} did not start: it said {line:?}"))?;
        running.target = Target::Peer((Ipv4Addr::LOCALHOST, port).into());
        load::connect(running.target.address()).await?;
        Ok(running)
    }

    /// The real binary in front of `upstream`, on the measured core.
    pub(crate) async fn seawall(upstream: &Target, cores: Cores) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (data, admin) = two_free_addresses()?;
        let url = format!("http://{data}");
        // A file and not flags, so that nothing else is looked at, and types are plain to see.
        let config = folder.path().join("proxy.toml");
        std::fs::write(
            &config,
            format!(
                "data_dir = \"{data_dir}\"\n\
                 [server]\nlisten = \"{data}\"\npublic_url = \"{url}\"\n\
                 [admin]\nlisten = \"{admin}\"\n\
                 [upstream]\nbase_url = \"{upstream}\"\n\
                 [credentials]\nmode = \"passthrough\"\n\
                 [telemetry]\nlog = \"warn\"\naccess_log = false\n",
                data_dir = folder.path().join("data").display(),
                upstream = upstream.url(),
            ),
        )?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_seawall"));
        command.arg("serve").arg("--config").arg(&config).current_dir(folder.path());
        // The caller's own settings must not be measured.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("SEAWALL_") {
                command.env_remove(name);
            }
        }
        command.env("TOKIO_WORKER_THREADS", "1").stdout(Stdio::null());
        let child = spawn(command, cores.measured, cores)?;
        let mut running = Self {
            target: Target::Seawall(data),
            child,
            worker: None,
            admin: Some(admin),
            _folder: Some(folder),
        };
        running.wait_until_ready(admin).await?;
        Ok(running)
    }

    /// Somebody else's cache in front of `upstream`, on the measured core; nothing where it is not installed.
    pub(crate) async fn cache(product: Product, upstream: &Target, cores: Cores) -> Result<Option<Self>> {
        if !product.is_installed() {
            return Ok(None);
        }
        let folder = tempfile::tempdir()?;
        let (address, _) = two_free_addresses()?;
        let command = product.command(folder.path(), address, upstream.address())?;
        let child = spawn(command, cores.measured, cores)?;
        let target = Target::Cache(product, address);
        let mut running = Self { target, child, worker: None, admin: None, _folder: Some(folder) };
        let deadline = Instant::now() + START;
        while load::connect(address).await.is_err() {
            if let Some(status) = running.child.try_wait()? {
                bail!("{} ended before it answered: {status}", product.name());
            }
            ensure!(Instant::now() < deadline, "{} did not answer after {START:?}", product.name());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        running.worker = measure::first_child(running.child.id())?;
        Ok(Some(running))
    }

    /// Forces a breaker of Seawall open, by its own command.
    pub(crate) fn force_open(&self, scope: &str) -> Result<()> {
        let admin = self.admin.context("only Seawall has breakers")?;
        let done = Command::new(env!("CARGO_BIN_EXE_seawall"))
            .args(["breaker", "force-open", scope, "--reason", "bench", "--ttl", "never"])
            .args(["--admin", &format!("http://{admin}")])
            .env_remove("SEAWALL_ADMIN_TOKEN")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()?;
        ensure!(done.success(), "{scope} was not forced open: {done}");
        Ok(())
    }

    /// The process that does the work.
    pub(crate) fn pid(&self) -> u32 {
        self.worker.unwrap_or_else(|| self.child.id())
    }

    async fn wait_until_ready(&mut self, admin: SocketAddr) -> Result<()> {
        let deadline = Instant::now() + START;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("seawall ended before it was ready: {status}");
            }
            if is_ready(admin).await.unwrap_or(false) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "seawall was not ready after {START:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; there is nothing else to do about it here.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

async fn is_ready(admin: SocketAddr) -> Result<bool> {
    let mut connection = load::connect(admin).await?;
    Ok(load::ask(&mut connection, admin, "/readyz").await?.status().is_success())
}

/// A child inherits the core of the thread that starts it; taken before it has threads of its own.
fn spawn(mut command: Command, core: usize, cores: Cores) -> Result<Child> {
    Cores::pin(core)?;
    let child = command.stdin(Stdio::null()).spawn();
    Cores::pin(cores.load)?;
    child.with_context(|| format!("starting {}", command.get_program().display()))
}

/// Held together, so that they differ. Another program could take one in between: the start would fail, loudly.
fn two_free_addresses() -> Result<(SocketAddr, SocketAddr)> {
    let (one, two) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    Ok((one.local_addr()?, two.local_addr()?))
}
