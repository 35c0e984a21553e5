//! `seawall check`: validates the configuration, opens nothing.

use super::args::ConfigArgs;
use super::{Exit, output, serve};
use crate::config::load;

pub(super) fn run(args: &ConfigArgs) -> Exit {
    match load(&serve::load_args(args)) {
        Ok(snapshot) => {
            for warning in &snapshot.warnings {
                output::say(&format!("warning: {warning}"));
            }
            let source = snapshot
                .source
                .as_ref()
                .map_or_else(|| "no file: built-in defaults".to_owned(), |path| path.display().to_string());
            output::data(&format!("ok ({source})"));
            Exit::Done
        }
        Err(problems) => Exit::Config(problems.to_string()),
    }
}
