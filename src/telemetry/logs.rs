//! Log lines: to standard error, for people or as JSON.

use crate::config::raw::{LogFormat, Telemetry};
use tracing_subscriber::EnvFilter;

/// Sets the process's logger up; once per process. A bad filter is an error of the configuration.
pub fn init(settings: &Telemetry) -> Result<(), String> {
    let filter = EnvFilter::try_new(&settings.log).map_err(|error| format!("telemetry.log: {error}"))?;
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    let result = match settings.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    result.map_err(|error| format!("the log cannot be set up: {error}"))
}
