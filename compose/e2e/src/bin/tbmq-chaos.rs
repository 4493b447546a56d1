//! The fault tool, started by `cargo xtask chaos`.
#![allow(clippy::print_stdout, reason = "a command line speaks on stdout")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use tbmq_e2e::{
    chaos::{
        page,
        plan::{Family, Fault},
        report::Report,
        run::{self, Options},
    },
    sinks,
};
use tbmq_harness::{Need, availability};

#[derive(Parser)]
#[command(name = "cargo xtask chaos", about = "Injects faults under load and has the ledger judge")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    rounds: Rounds,
    /// Where logs go; kept only when something failed unless named here.
    #[arg(long, global = true)]
    logs: Option<PathBuf>,
    /// What the processes log, such as `info,tbmq_executor=debug`.
    #[arg(long, global = true)]
    log_level: Option<String>,
    /// Writes what was found into this page.
    #[arg(long, global = true, num_args = 0..=1, default_missing_value = "compose/bench/FAULTS.md")]
    write: Option<PathBuf>,
    /// Seconds within which everything must be as before.
    #[arg(long, global = true, default_value_t = 90)]
    patience: u64,
}

#[derive(Subcommand)]
enum Command {
    /// Faults of what integrations deliver to: an HTTP server, Mosquitto, a Kafka.
    Sinks(Sinks),
}

#[derive(Args)]
struct Rounds {
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
}

#[derive(Args)]
struct Sinks {
    /// Only these faults: `down`, `black-hole`, `refusing-half`, `reconnecting`; several with commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<sinks::Fault>,
    /// Only these kinds: `http`, `mqtt`, `kafka`; several with commas.
    #[arg(long, value_delimiter = ',')]
    kind: Vec<sinks::Kind>,
    /// Seconds from a fault to its healing.
    #[arg(long, default_value_t = 60)]
    lasting: u64,
    /// Publishes per second in all.
    #[arg(long, default_value_t = 100)]
    rate: u64,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let folder = tempfile::Builder::new().prefix("tbmq-chaos-").tempdir()?;
    let logs = arguments.logs.clone().unwrap_or_else(|| folder.path().to_owned());
    let result = match &arguments.command {
        None => rounds(&arguments, logs).await,
        Some(Command::Sinks(which)) => sinks(&arguments, which, logs).await,
    };
    let is_clean = result.as_ref().is_ok_and(|is_clean| *is_clean);
    if !is_clean && arguments.logs.is_none() {
        println!("logs are kept in {}", folder.keep().display());
    }
    result.map(|_| if is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Tells whether all was clean.
async fn rounds(arguments: &Arguments, logs: PathBuf) -> Result<bool> {
    availability(&[Need::Kafka, Need::Postgres]).map_err(anyhow::Error::msg)?;
    let rounds = &arguments.rounds;
    let mut options = Options::new(rounds.seed, rounds.rounds, logs);
    if !rounds.only.is_empty() {
        options.faults = rounds.only.iter().flat_map(|family| family.0.clone()).collect::<Vec<Fault>>();
    }
    options.log_level.clone_from(&arguments.log_level);
    options.only.clone_from(&rounds.round);
    options.rate = rounds.rate;
    options.patience = Duration::from_secs(arguments.patience);
    println!(
        "seed {}, {} rounds, {} messages/s from {} publishers, session timeout {:?}",
        options.seed, options.rounds, options.rate, options.publishers, options.session_timeout
    );
    let report: Report = run::run(&options, |outcome| println!("{outcome}")).await?;
    println!("\n{}\n{}", report.table(), report.omissions());
    if let Some(path) = &arguments.write {
        write(path, |page| Ok(page::with_rounds(page, &page::render(&report)?)))?;
    }
    Ok(report.is_clean())
}

/// Tells whether all was clean.
async fn sinks(arguments: &Arguments, which: &Sinks, logs: PathBuf) -> Result<bool> {
    let mut options = sinks::Options::new(logs);
    if !which.only.is_empty() {
        options.faults.clone_from(&which.only);
    }
    if !which.kind.is_empty() {
        options.kinds.clone_from(&which.kind);
    }
    availability(options.needs()).map_err(anyhow::Error::msg)?;
    options.log_level.clone_from(&arguments.log_level);
    options.lasting = Duration::from_secs(which.lasting);
    options.rate = which.rate;
    options.patience = Duration::from_secs(arguments.patience);
    println!("{} messages/s, each fault lasts {:?}", options.rate, options.lasting);
    let report = sinks::run::run(&options, |outcome| println!("{outcome}")).await?;
    println!("\n{}", report.table());
    if let Some(path) = &arguments.write {
        let text = format!("`cargo xtask chaos sinks --write`, {}.\n\n{}", page::facts()?, report.page());
        write(path, |page| Ok(page::with_sinks(page, &text)))?;
    }
    Ok(report.is_clean())
}

/// Replaces a part of a page.
fn write(path: &Path, part: impl Fn(&str) -> Result<String>) -> Result<()> {
    let context = || path.display().to_string();
    let page = if path.exists() { fs::read_to_string(path).with_context(context)? } else { String::new() };
    fs::write(path, part(&page)?).with_context(context)
}
