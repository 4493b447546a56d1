//! The fault tool, started by `cargo xtask chaos`.
#![allow(clippy::print_stdout, reason = "a command line speaks on stdout")]

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use clap::Parser;
use tbmq_e2e::chaos::{
    page,
    plan::{Family, Fault},
    report::Report,
    run::{self, Options},
};
use tbmq_harness::{Need, availability};

#[derive(Parser)]
#[command(name = "cargo xtask chaos", about = "Injects faults under load and has the ledger judge")]
struct Arguments {
    /// How many rounds.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Decides everything that is drawn.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Of these rounds only the ones with these numbers; several with commas.
    #[arg(long, value_delimiter = ',')]
    round: Vec<u32>,
    /// Only these faults, by the beginning of their names, such as `kill` or `freeze-executor`; several with commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Family>,
    /// Publishes per second in all.
    #[arg(long, default_value_t = 200)]
    rate: u64,
    /// Seconds within which everything must be as before.
    #[arg(long, default_value_t = 90)]
    patience: u64,
    /// Where logs go; kept only when something failed unless named here.
    #[arg(long)]
    logs: Option<PathBuf>,
    /// What the processes log, such as `info,tbmq_executor=debug`.
    #[arg(long)]
    log_level: Option<String>,
    /// Writes what was found into this page.
    #[arg(long, num_args = 0..=1, default_missing_value = "compose/bench/FAULTS.md")]
    write: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    availability(&[Need::Kafka, Need::Postgres]).map_err(anyhow::Error::msg)?;
    let folder = tempfile::Builder::new().prefix("tbmq-chaos-").tempdir()?;
    let logs = arguments.logs.clone().unwrap_or_else(|| folder.path().to_owned());
    let mut options = Options::new(arguments.seed, arguments.rounds, logs);
    if !arguments.only.is_empty() {
        options.faults = arguments.only.into_iter().flat_map(|family| family.0).collect::<Vec<Fault>>();
    }
    options.log_level = arguments.log_level;
    options.only = arguments.round;
    options.rate = arguments.rate;
    options.patience = Duration::from_secs(arguments.patience);
    println!(
        "seed {}, {} rounds, {} messages/s from {} publishers, session timeout {:?}",
        options.seed, options.rounds, options.rate, options.publishers, options.session_timeout
    );
    let report = run::run(&options, |outcome| println!("{outcome}")).await;
    let is_clean = report.as_ref().is_ok_and(Report::is_clean);
    if !is_clean && arguments.logs.is_none() {
        println!("logs are kept in {}", folder.keep().display());
    }
    let report = report?;
    println!("\n{}\n{}", report.table(), report.omissions());
    if let Some(path) = arguments.write {
        std::fs::write(&path, page::render(&report)?).with_context(|| path.display().to_string())?;
    }
    Ok(if is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
