//! Benchmarks, started by `cargo xtask bench`. They print ratios and CPU time per message: rates alone say little on a
//! shared machine.
#![allow(clippy::print_stdout, reason = "a benchmark prints what it measured")]

mod bus;
mod e2e;
mod scale;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask bench", about = "Benchmarks of TBMQ")]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Produce and consume through the bus at several numbers of topics.
    Bus(bus::Options),
    /// MQTT QoS 1 → bus → executor → HTTP, all processes on this machine.
    E2e(e2e::Options),
    /// Thousands of integrations: creating them, restoring them after a restart, and what they cost at rest.
    Scale(scale::Options),
    /// The sink of `e2e` as a process of its own; prints its address and, at the end of its input, what it saw.
    #[command(hide = true)]
    Sink,
}

#[tokio::main]
async fn main() -> Result<()> {
    match Cli::parse().what {
        What::Bus(options) => bus::run(options).await,
        What::E2e(options) => e2e::run(options).await,
        What::Scale(options) => scale::run(options).await,
        What::Sink => e2e::sink().await,
    }
}
