//! Benchmarks, started by `cargo xtask bench`. They print ratios and CPU time per message: rates alone say little on a
//! shared machine.
#![allow(clippy::print_stdout, reason = "a benchmark prints what it measured")]

mod auth;
mod bus;
mod control;
mod e2e;
mod far_end;
mod floor;
mod mqtt;
mod neighbour;
mod page;
mod peer;
mod scale;
mod sinks;
mod suite;
mod wire;

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
    /// The road of a message (`e2e`), the sinks, the broker, the control plane and the bus, one after the other.
    All(suite::Options),
    /// A data plane with a million credentials: its start, their memory, and how long clients wait for CONNACK.
    Auth(auth::Options),
    /// Produce and consume through the bus at several numbers of topics.
    Bus(bus::Options),
    /// A control plane with thousands of integrations: creating, listing, watching and changing them, and its start.
    Control(control::Options),
    /// MQTT QoS 1 → bus → executor → HTTP or Kafka, all processes on this machine.
    E2e(e2e::Options),
    /// The broker alone beside Mosquitto: messages at each quality of service, fan-in and fan-out, connections, matching.
    Mqtt(mqtt::Options),
    /// Thousands of integrations: creating them, restoring them after a restart, and what they cost at rest.
    Scale(scale::Options),
    /// From a filled message topic to each kind of sink, beside what the bare client library does.
    Sinks(sinks::Options),
    /// Many integrations over one executor, with and without one whose sink hangs.
    Neighbour(neighbour::Options),
    /// The far end of a benchmark as a process of its own.
    #[command(hide = true)]
    Peer {
        #[command(subcommand)]
        role: peer::Role,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    match Cli::parse().what {
        What::All(options) => suite::run(&options),
        What::Auth(options) => auth::run(options).await,
        What::Bus(options) => bus::run(options).await,
        What::Control(options) => control::run(options).await,
        What::E2e(options) => e2e::run(options).await,
        What::Mqtt(options) => mqtt::run(options).await,
        What::Scale(options) => scale::run(options).await,
        What::Sinks(options) => sinks::run(options).await,
        What::Neighbour(options) => neighbour::run(options).await,
        What::Peer { role } => peer::run(role).await,
    }
}
