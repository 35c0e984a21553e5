//! The `seawall` binary.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    seawall::cli::run(seawall::cli::Cli::of_process())
}
