//! `cargo xtask fuzz`: the tests that feed damaged packets to the codec, the session machine and a running broker, for
//! longer than the gate has time for.

use std::{
    path::Path,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, ensure};
use clap::Args;

#[derive(Args)]
pub(crate) struct Options {
    /// How long the two tests of codec and session machine run, both at the same time.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// How many packets the running broker gets.
    #[arg(long, default_value_t = 1_000_000)]
    packets: u64,
    /// What the damage follows from; another one each time if left out.
    #[arg(long)]
    seed: Option<u64>,
}

pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let fresh = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs());
    let seed = options.seed.unwrap_or_else(fresh);
    println!("seed {seed}");
    // One after the other, so that the broker's memory is its own.
    for package in ["tbmq-mqtt", "tbmq-data-plane"] {
        let status = Command::new("cargo")
            .args(["test", "--quiet", "--package", package, "--test", "it", "fuzz::", "--", "--nocapture"])
            .env("TBMQ_FUZZ_SECONDS", (options.minutes * 60).to_string())
            .env("TBMQ_FUZZ_PACKETS", options.packets.to_string())
            .env("TBMQ_FUZZ_SEED", seed.to_string())
            .current_dir(root)
            .status()?;
        ensure!(status.success(), "{package} does not stand it; seed {seed}");
    }
    Ok(())
}
