//! `tbmqctl try`: what is needed to see a message cross the system, without other tools.

mod http_sink;
mod mqtt;
mod publish;
mod subscribe;

use std::time::Duration;

use clap::Subcommand;

use crate::{failure::Failure, render::Output};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run an HTTP server that prints each request
    HttpSink(http_sink::Arguments),
    /// Publish a message over MQTT
    Publish(publish::Arguments),
    /// Print messages that arrive over MQTT
    Subscribe(subscribe::Arguments),
}

pub(crate) async fn run(command: Command, patience: Duration, output: Output) -> Result<(), Failure> {
    output.without_names()?;
    match command {
        Command::HttpSink(arguments) => http_sink::run(arguments, output).await,
        Command::Publish(arguments) => publish::run(arguments, patience).await,
        Command::Subscribe(arguments) => subscribe::run(arguments, patience, output).await,
    }
}
