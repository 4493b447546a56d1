//! `tbmq-sim`: runs seeds of the simulation, or prints the trace of one.
#![allow(clippy::print_stdout, reason = "a command line speaks on stdout")]

use std::{process::ExitCode, time::Instant};

use clap::Parser;
use tbmq_sim::{Bug, Counts, Options, run, run_twice};

/// Simulates two control planes, two executors and a data plane from a seed, with faults.
#[derive(Parser)]
#[command(name = "cargo xtask sim")]
struct Cli {
    /// How many seeds to run; each is run twice and must repeat itself.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Run only this seed.
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Print what happens, line by line.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Plant a bug, to see that it is found.
    #[arg(long)]
    bug: Option<Bug>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let options = Options { bug: cli.bug, keeps_lines: cli.trace };
    let (from, count) = cli.seed.map_or((cli.from, cli.seeds), |seed| (seed, 1));
    let began = Instant::now();
    let mut counts = Counts::default();
    let mut failed = 0_u64;
    for seed in from..from + count {
        let report = if cli.trace { run(seed, options) } else { run_twice(seed, options) };
        for line in report.trace.lines() {
            println!("{line}");
        }
        counts.add(&report.counts);
        if let Some(violation) = report.violation {
            failed += 1;
            let bug = cli.bug.map(|bug| format!(" --bug {bug}")).unwrap_or_default();
            println!("seed {seed}: {}: {}", violation.invariant, violation.text);
            println!("  again: cargo xtask sim --seed {seed} --trace{bug}");
        }
    }
    println!("{counts:?}");
    println!("{count} seeds, {failed} failed, {:.1} s", began.elapsed().as_secs_f64());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
