//! The real binary as a child process: started, watched, signalled, killed, started again in the same folder.

use crate::support::{Answer, PATIENCE, client, settings, try_send};
use http::Method;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use rustix::process::{Pid, Signal, kill_process};
use seawall::http::Body;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::Instant;

/// How the binary is started; the folder outlives it.
#[derive(Clone)]
pub struct Setup {
    /// Holds `data` and whatever a test puts beside it.
    pub dir: Arc<TempDir>,
    /// `--set`.
    pub sets: Vec<String>,
    /// Added to an otherwise empty environment.
    pub env: Vec<(String, String)>,
    /// `--config`.
    pub config: Option<PathBuf>,
}

/// A running `seawall serve`. Killed when dropped.
pub struct Server {
    child: Child,
    /// Base URL of the data listener.
    pub url: String,
    /// Base URL of the admin listener.
    pub admin: String,
    stderr: watch::Receiver<String>,
    stdout: watch::Receiver<String>,
    http: Client<HttpConnector, Body>,
    /// Not removed while the process uses it.
    _dir: Arc<TempDir>,
}

/// What a command that ended has left.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

// === impl Setup ===

impl Setup {
    /// In front of `upstream`, with waits that suit a test; later settings win.
    pub fn new(upstream: &str, sets: &[&str]) -> Self {
        let dir = Arc::new(TempDir::new().unwrap());
        let sets = settings(upstream, dir.path(), "info,seawall=debug", sets);
        Self { dir, sets, env: Vec::new(), config: None }
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// With one more `--set`.
    pub fn set(mut self, set: impl Into<String>) -> Self {
        self.sets.push(set.into());
        self
    }

    fn command(&self, command: &str) -> Command {
        let mut process = Command::new(env!("CARGO_BIN_EXE_seawall"));
        process.arg(command).current_dir(self.dir.path()).env_clear().env("RUST_BACKTRACE", "1");
        process.envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some(config) = &self.config {
            process.arg("--config").arg(config);
        }
        // A later `--set` of the same key replaces the earlier one.
        let key = |set: &str| set.split('=').next().unwrap_or_default().to_owned();
        for (index, set) in self.sets.iter().enumerate() {
            if !self.sets[index + 1..].iter().any(|later| key(later) == key(set)) {
                process.arg("--set").arg(set);
            }
        }
        process.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        process
    }

    /// Starts it and waits until it is ready.
    pub async fn start(&self) -> Server {
        let mut child = self.command("serve").spawn().unwrap();
        let stderr = collect(child.stderr.take().unwrap());
        let stdout = collect(child.stdout.take().unwrap());
        // Owned from here on by what kills it when it is dropped.
        let (url, admin) = (String::new(), String::new());
        let mut server = Server { child, url, admin, stderr, stdout, http: client(), _dir: self.dir.clone() };
        let mut stderr = server.stderr.clone();
        let line = |log: &str| log.lines().find(|line| line.contains("Seawall is up")).map(str::to_owned);
        let up = tokio::time::timeout(PATIENCE, stderr.wait_for(|log| line(log).is_some())).await;
        let up = up.map(|up| up.map(|log| line(&log).unwrap()));
        let line = match up {
            Ok(Ok(line)) => line,
            Ok(Err(_)) => panic!("ended instead of starting: {:?}\n{}", server.exit().await, server.log()),
            Err(late) => panic!("did not start, {late}:\n{}", server.log()),
        };
        let field = |name: &str| {
            let at = line.find(name).unwrap_or_else(|| panic!("no {name} in {line}"));
            format!("http://{}", line[at + name.len()..].split_whitespace().next().unwrap())
        };
        (server.url, server.admin) = (field(" data="), field(" admin="));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ready = server.try_admin(Method::GET, "/readyz", None).await;
            if ready.as_ref().is_ok_and(|answer| answer.status == 200) {
                return server;
            }
            assert!(Instant::now() < deadline, "never ready: {ready:?}\n{}", server.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Runs a command with this configuration that must end by itself.
    pub async fn run(&self, command: &str) -> Ended {
        let mut child = self.command(command).spawn().unwrap();
        let stderr = collect(child.stderr.take().unwrap());
        let stdout = collect(child.stdout.take().unwrap());
        let has_ended = ended([&stderr, &stdout]).await;
        if !has_ended {
            let _ = child.kill();
        }
        let status = child.wait().unwrap();
        let ended =
            Ended { code: status.code(), stdout: stdout.borrow().clone(), stderr: stderr.borrow().clone() };
        assert!(has_ended, "`{command}` did not end: {ended:?}");
        ended
    }
}

// === impl Server ===

impl Server {
    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.stderr.borrow().clone()
    }

    /// What it wrote to standard output.
    pub fn stdout(&self) -> String {
        self.stdout.borrow().clone()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, at once.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Its exit code, once it has ended by itself; its whole log is there then.
    pub async fn exit(&mut self) -> Option<i32> {
        if !ended([&self.stderr, &self.stdout]).await {
            return None;
        }
        self.child.wait().unwrap().code()
    }

    /// SIGTERM, and a clean exit.
    pub async fn stop(mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.exit().await, Some(0), "{}", self.log());
    }

    /// `GET` with the usual token.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    /// A request with the usual token; it must be answered.
    pub async fn send(&self, method: Method, path: &str, fields: &[(&str, &str)], body: &str) -> Answer {
        self.try_send(method, path, fields, body)
            .await
            .unwrap_or_else(|error| panic!("{path}: {error}\n{}", self.log()))
    }

    /// The same, when the process may die meanwhile.
    pub async fn try_send(
        &self,
        method: Method,
        path: &str,
        fields: &[(&str, &str)],
        body: &str,
    ) -> Result<Answer, String> {
        try_send(&self.http, method, &format!("{}{path}", self.url), fields, body, true).await
    }

    /// A request to the admin API.
    pub async fn admin(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        self.try_admin(method, path, body).await.unwrap()
    }

    async fn try_admin(&self, method: Method, path: &str, body: Option<Value>) -> Result<Answer, String> {
        let body = body.map_or_else(String::new, |body| body.to_string());
        try_send(&self.http, method, &format!("{}{path}", self.admin), &[], &body, false).await
    }

    /// All writes that the queue knows, as the admin API lists them.
    pub async fn writes(&self) -> Vec<Value> {
        let mut all = Vec::new();
        let mut path = "/api/v1/writes?limit=1000".to_owned();
        loop {
            let page = self.admin(Method::GET, &path, None).await.json();
            all.extend(page["writes"].as_array().unwrap().iter().cloned());
            match page["next"].as_u64() {
                Some(next) => path = format!("/api/v1/writes?limit=1000&after={next}"),
                None => return all,
            }
        }
    }

    /// The ticket as the admin API shows it.
    pub async fn ticket(&self, id: &str) -> Value {
        self.admin(Method::GET, &format!("/api/v1/writes/{id}"), None).await.json()
    }

    /// The state of a ticket.
    pub async fn state(&self, id: &str) -> String {
        self.ticket(id).await["state"].as_str().unwrap_or("not there").to_owned()
    }

    /// Whether a breaker lets traffic through by itself: closed, or in its ramp after a recovery.
    pub async fn is_well(&self, scope: &str) -> bool {
        let state = self.breaker(scope).await["state"].clone();
        state == "closed" || state == "ramping"
    }

    /// A breaker's status.
    pub async fn breaker(&self, scope: &str) -> Value {
        self.admin(Method::GET, &format!("/api/v1/breakers/{scope}"), None).await.json()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Until both pipes have ended, which they do with the process; whether they did within [`PATIENCE`].
async fn ended(pipes: [&watch::Receiver<String>; 2]) -> bool {
    let over = async {
        for pipe in pipes {
            let mut pipe = pipe.clone();
            while pipe.changed().await.is_ok() {}
        }
    };
    tokio::time::timeout(PATIENCE, over).await.is_ok()
}

/// Reads a pipe to its end in a thread of its own, so that the child never waits for us. The channel ends with it.
fn collect(pipe: impl std::io::Read + Send + 'static) -> watch::Receiver<String> {
    let (text, read) = watch::channel(String::new());
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines() {
            let Ok(line) = line else { return };
            text.send_modify(|text| {
                text.push_str(&line);
                text.push('\n');
            });
        }
    });
    read
}
