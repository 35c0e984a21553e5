//! `seawall serve`: the proxy.

use super::Exit;
use super::args::ConfigArgs;
use super::notify::notify;
use crate::app::{App, LAST_FILES, StartError};
use crate::config::{Live, LoadArgs};
use crate::telemetry;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

pub(super) fn run(args: &ConfigArgs) -> Exit {
    let live = match Live::load(load_args(args)) {
        Ok(live) => live,
        Err(problems) => return Exit::Config(problems.to_string()),
    };
    if let Err(problem) = telemetry::init_logs(&live.current().settings.telemetry) {
        return Exit::Config(problem);
    }
    // A core dump would hold tokens and keys in clear.
    if let Err(error) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
    {
        tracing::warn!(%error, "core dumps could not be switched off");
    }
    match runtime() {
        Ok(runtime) => {
            let exit = runtime.block_on(serve(live));
            // A drop would wait for a disk or a name server that is stuck.
            runtime.shutdown_timeout(LAST_FILES);
            exit
        }
        Err(error) => Exit::Failed(error.into()),
    }
}

/// One worker for each processor we may use, or as many as `TOKIO_WORKER_THREADS` says. With one, there is nobody to
/// share work with, and the runtime that does not try is the faster one.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let wanted = std::env::var("TOKIO_WORKER_THREADS").ok().and_then(|text| text.parse::<usize>().ok());
    let workers = wanted.filter(|count| *count > 0);
    let workers = workers.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
    let mut builder = if workers == 1 {
        tokio::runtime::Builder::new_current_thread()
    } else {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(workers);
        builder
    };
    builder.enable_all().thread_name("seawall").build()
}

/// The configuration's sources, as the command line and the environment name them.
pub(super) fn load_args(args: &ConfigArgs) -> LoadArgs {
    LoadArgs::from_process(args.config.clone(), args.sets.clone())
}

async fn serve(live: Arc<Live>) -> Exit {
    let (mut hangup, stop) = match (signal(SignalKind::hangup()), signals()) {
        (Ok(hangup), Ok(stop)) => (hangup, stop),
        (Err(error), _) | (_, Err(error)) => return Exit::Failed(error.into()),
    };
    let mut stop = stop;
    let started = tokio::select! {
        started = App::start(live) => started,
        // Nothing was accepted yet, so there is nothing to finish.
        () = stop.next() => return Exit::Done,
    };
    let app = match started {
        Ok(app) => app,
        Err(StartError::Config(problem)) => return Exit::Config(problem),
        Err(StartError::Failed(problem)) => return Exit::Failed(anyhow::anyhow!(problem)),
    };
    notify("READY=1\n");
    loop {
        tokio::select! {
            () = stop.next() => break,
            _ = hangup.recv() => {
                // What went wrong is logged there; the old configuration stays.
                let _ = app.reload().await;
            }
        }
    }
    notify("STOPPING=1\n");
    let second = async move {
        stop.next().await;
    };
    tokio::select! {
        is_clean = app.stop() => {
            if !is_clean {
                tracing::warn!("some connections were cut at the end of the grace");
            }
            Exit::Done
        }
        () = second => Exit::Failed(anyhow::anyhow!("stopped at once by a second signal")),
    }
}

/// SIGTERM or SIGINT.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

fn signals() -> std::io::Result<Signals> {
    Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
}

impl Signals {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Waits for SIGTERM or SIGINT.
#[cfg(feature = "simulator")]
pub(super) async fn until_told_to_stop() {
    match signals() {
        Ok(mut signals) => signals.next().await,
        Err(error) => super::output::say(&format!("signals cannot be waited for: {error}")),
    }
}
