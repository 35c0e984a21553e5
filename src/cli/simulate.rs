//! `seawall simulate`

use super::Exit;
use super::args::Simulate;
use super::output;
use crate::sim::{Options, Simulator};
use anyhow::Context;

pub(super) fn run(args: &Simulate) -> Exit {
    let work = async {
        let options =
            Options { listen: args.listen, seed: args.seed, shipments: args.shipments, ..Options::default() };
        let simulator = Simulator::start(options)
            .await
            .with_context(|| format!("the simulator cannot listen on {}", args.listen))?;
        output::say(&format!("simulated Flexport API  {}", simulator.url()));
        output::say(&format!("fault API               {}/_sim", simulator.control_url()));
        super::serve::until_told_to_stop().await;
        simulator.shutdown().await;
        anyhow::Ok(())
    };
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(work).into(),
        Err(error) => Exit::Failed(error.into()),
    }
}
