//! `seawall man`: manual pages, made from the command line's own words.

use super::args::{Cli, Man};
use super::{Exit, output};
use anyhow::Context;
use clap::CommandFactory;
use std::path::Path;

pub(super) fn run(args: &Man) -> Exit {
    let mut root = Cli::command();
    root.build();
    if let Some(dir) = &args.dir {
        let written = std::fs::create_dir_all(dir)
            .and_then(|()| write_all(&root, dir))
            .with_context(|| format!("--dir {}: the pages cannot be written", dir.display()));
        return written.into();
    }
    let mut command = &root;
    for name in &args.command {
        let Some(inner) = command.find_subcommand(name) else {
            let known: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
            let whole = command.get_bin_name().unwrap_or("seawall");
            let known = if known.is_empty() { "it has none".to_owned() } else { known.join(", ") };
            return Exit::Usage(format!("`{whole}` has no command {name:?}; there are: {known}"));
        };
        command = inner;
    }
    let mut page = Vec::new();
    match clap_mangen::Man::new(command.clone()).render(&mut page) {
        Ok(()) => output::data(&String::from_utf8_lossy(&page)),
        Err(error) => return Exit::Failed(error.into()),
    }
    Exit::Done
}

/// A page for each command; `help` says what the pages say.
fn write_all(command: &clap::Command, dir: &Path) -> std::io::Result<()> {
    clap_mangen::Man::new(command.clone()).generate_to(dir)?;
    let inner = command.get_subcommands().filter(|inner| inner.get_name() != "help");
    for inner in inner {
        write_all(inner, dir)?;
    }
    Ok(())
}
