//! `bench all`: the benchmarks one after the other, each in a process of its own, and what they ran on.

use std::{fmt::Write as _, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::page;

#[derive(Args)]
pub(crate) struct Options {
    /// Writes what was measured into this file, over the sections that are there: `compose/bench/RESULTS.md`.
    #[arg(long)]
    write: Option<PathBuf>,
}

/// Those that write a section.
const BENCHMARKS: [&str; 4] = ["e2e", "sinks", "mqtt", "control"];

const HEADING: &str = "## The machine";

pub(crate) fn run(options: &Options) -> Result<()> {
    let machine = machine()?;
    println!("{machine}");
    if let Some(file) = &options.write {
        page::write(file, HEADING, &machine)?;
    }
    for benchmark in BENCHMARKS {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(benchmark);
        if let Some(file) = &options.write {
            command.arg("--write").arg(file);
        }
        ensure!(command.status()?.success(), "bench {benchmark} failed");
    }
    Ok(())
}

/// What the figures depend on, as the programs themselves tell.
fn machine() -> Result<String> {
    let read = |file: &str| std::fs::read_to_string(file).with_context(|| format!("can't read {file}"));
    let line = |text: &str, name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        value.map(|value| value.trim_start_matches([' ', '\t', ':', '=']).trim_matches('"').to_owned())
    };
    let cpu = read("/proc/cpuinfo")?;
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let model = line(&cpu, "model name").unwrap_or_default();
    let memory = line(&read("/proc/meminfo")?, "MemTotal").unwrap_or_default();
    let kibibytes: f64 = memory.trim_end_matches(" kB").parse().unwrap_or_default();
    let system = line(&read("/etc/os-release")?, "PRETTY_NAME").unwrap_or_default();
    let load = read("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    let mut text = format!("{HEADING}\n\n| | |\n|---|---|\n");
    writeln!(text, "| processor | {cores} cores of {model} |")?;
    writeln!(text, "| memory | {:.0} GiB |", kibibytes / f64::from(1 << 20))?;
    writeln!(text, "| system | {system}, Linux {} |", read("/proc/sys/kernel/osrelease")?.trim())?;
    writeln!(text, "| load average before | {load} |")?;
    for (name, program, argument) in [
        ("Rust", "rustc", "--version"),
        ("Java, of Kafka 3.9.1", "java", "--version"),
        ("PostgreSQL", "psql", "--version"),
        ("Mosquitto", "mosquitto", "-h"),
    ] {
        let version = version(program, argument).unwrap_or_else(|| "not there".to_owned());
        writeln!(text, "| {name} | {version} |")?;
    }
    Ok(text)
}

/// The first line that a program says.
fn version(program: &str, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.lines().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_told_with_its_processor_memory_and_compiler() {
        let text = machine().unwrap();
        for row in ["| processor | ", " cores of ", "| memory | ", "| Rust | rustc "] {
            assert!(text.contains(row), "{row} is not in\n{text}");
        }
    }
}
