//! The command line.
//!
//! Data goes to standard output, all else to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage, 78
//! configuration (`EX_CONFIG`). Operator commands speak to the admin API and hold no logic of their own.

mod args;
mod breaker;
mod cache;
mod check;
mod client;
mod config;
#[cfg(feature = "simulator")]
mod demo;
mod health;
mod man;
mod notify;
mod output;
mod queue;
mod serve;
#[cfg(feature = "simulator")]
mod simulate;
mod status;
mod store;
mod warm;

pub use args::{Cli, Command};
use std::process::ExitCode;

/// How a command ended.
#[derive(Debug)]
pub enum Exit {
    /// 0.
    Done,
    /// 1, with what to say.
    Failed(anyhow::Error),
    /// 2, with what to say.
    Usage(String),
    /// 78, with what to say.
    Config(String),
}

/// Runs what was asked for.
pub fn run(cli: Cli) -> ExitCode {
    let exit = match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::Check(args) => check::run(&args),
        #[cfg(feature = "simulator")]
        Command::Demo(args) => demo::run(&args),
        #[cfg(feature = "simulator")]
        Command::Simulate(args) => simulate::run(&args),
        Command::Status(args) => status::run(&cli.operator, &args),
        Command::Breaker(command) => breaker::run(&cli.operator, &command),
        Command::Cache(command) => cache::run(&cli.operator, &command),
        Command::Queue(command) => queue::run(&cli.operator, &command),
        Command::Store(command) => store::run(&cli.operator, &command),
        Command::Health(command) => health::run(&cli.operator, command),
        Command::Config(command) => config::run(&cli.operator, &command),
        Command::Completions(args) => args.print(),
        Command::Man(args) => man::run(&args),
    };
    match exit {
        Exit::Done => ExitCode::SUCCESS,
        Exit::Failed(error) => {
            output::complain(&format!("{error:#}"));
            ExitCode::from(1)
        }
        Exit::Usage(message) => {
            output::complain(&message);
            ExitCode::from(2)
        }
        Exit::Config(message) => {
            output::complain(&message);
            ExitCode::from(78)
        }
    }
}

impl From<anyhow::Result<()>> for Exit {
    fn from(result: anyhow::Result<()>) -> Self {
        match result {
            Ok(()) => Self::Done,
            Err(error) => Self::Failed(error),
        }
    }
}
