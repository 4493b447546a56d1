//! Development tasks. `cargo xtask help` lists them.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line speaks on stdout")]

mod bench;
mod chaos;
mod ci;
mod conformance;
mod deploy;
mod fuzz;
mod r#gen;
mod instructions;
mod servers;
mod sim;
mod tidy;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Development tasks of TBMQ")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run the whole gate: format, generated code, tidy, clippy, dependencies, tests with real servers, docs.
    Test {
        /// Passed on to `cargo test`: part of the names of the tests to run; the other steps are left out.
        filter: Vec<String>,
    },
    /// The same as `test` without a filter.
    Ci,
    /// Check the rules that a machine keeps.
    Tidy,
    /// Check what deploys and watches TBMQ: containers, Kubernetes, systemd, alerts, dashboards; each by its own linter.
    Deploy,
    /// Generate Rust from the .proto files, the table of conformance from the tests, and the pages of `docs/` that are made from
    /// the code.
    Gen {
        /// Only tell whether the generated files are up to date.
        #[arg(long)]
        check: bool,
    },
    /// Tell which real servers the tests will find, and fetch what can be fetched.
    Servers {
        /// Also install missing Debian packages (needs root).
        #[arg(long)]
        install: bool,
    },
    /// Measure, in release mode: without arguments everything that `compose/bench/RESULTS.md` has sections of its own for;
    /// or one of `e2e`, `sinks`, `mqtt`, `control`, `bus`, `scale`, `auth`, `neighbour` with that benchmark's own options.
    Bench {
        /// The benchmark and its options.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, default_values = ["all", "--write", "compose/bench/RESULTS.md"])]
        arguments: Vec<String>,
    },
    /// Count the instructions of single steps of a message's road with callgrind, and compare them with
    /// `compose/bench/instructions.txt`.
    Instructions {
        /// Write what was counted instead.
        #[arg(long)]
        write: bool,
    },
    /// Simulate a deployment from seeds, with faults: `--seeds 5000 --from 0`, or `--seed N --trace`.
    Sim {
        /// The simulation's own options.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Feed damaged packets to the codec, the session machine and a running broker, longer than the gate does.
    Fuzz(fuzz::Options),
    /// Inject faults into a running system under load, and have the ledger judge; `chaos --help` lists the options.
    Chaos {
        /// `--rounds N --seed S`, `--only FAULT`, `--write`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        // Its words and causes; where it came from is no help, also when backtraces are asked for.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let root = root()?;
    match Cli::parse().task {
        Task::Test { filter } if filter.is_empty() => ci::run(&root),
        Task::Test { filter } => ci::filtered(&root, &filter),
        Task::Ci => ci::run(&root),
        Task::Tidy => tidy::run(&root),
        Task::Deploy => deploy::run(&root, false),
        Task::Gen { check } => {
            r#gen::run(&root, check)?;
            conformance::run(&root, check)?;
            // The tests of the all-in-one, which knows all planes, compare these pages with the code.
            if check { Ok(()) } else { r#gen::pages(&root) }
        }
        Task::Servers { install } => servers::run(install),
        Task::Bench { arguments } => bench::run(&root, &arguments),
        Task::Instructions { write } => instructions::run(&root, write),
        Task::Fuzz(options) => fuzz::run(&root, &options),
        Task::Chaos { arguments } => chaos::run(&root, &arguments),
        Task::Sim { arguments } => sim::run(&root, &arguments),
    }
}

/// Where cargo puts what it builds.
fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), Into::into)
}

fn root() -> Result<PathBuf> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).map(PathBuf::from).context("xtask lies two folders below the root")
}
