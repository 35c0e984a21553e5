//! Log lines: to standard error, for people or as JSON. The level can be changed while the process runs.

use crate::config::raw::{LogFormat, Telemetry};
use std::sync::OnceLock;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Sets the process's logger up; once per process. A bad filter is an error of the configuration.
pub fn init(settings: &Telemetry) -> Result<(), String> {
    let (filter, handle) = reload::Layer::new(parse(&settings.log)?);
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let lines = match settings.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(|error| format!("the log cannot be set up: {error}"))?;
    let _ = FILTER.set(handle);
    Ok(())
}

/// Changes what is logged. Does nothing where [`init`] was not called (in tests and the demo).
pub fn set_filter(log: &str) -> Result<(), String> {
    let filter = parse(log)?;
    match FILTER.get() {
        Some(handle) => handle.reload(filter).map_err(|error| error.to_string()),
        None => Ok(()),
    }
}

fn parse(log: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(log).map_err(|error| format!("telemetry.log: {error}"))
}
