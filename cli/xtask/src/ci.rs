//! `cargo xtask test`: the whole gate, step by step, with a table of times and a closing line of test counts.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::{conformance, deploy, r#gen, instructions, servers, tidy};

/// What the tests that feed damaged packets get of the gate's time; `cargo xtask fuzz` gives them more.
const FUZZ: [(&str, &str); 2] = [("TBMQ_FUZZ_SECONDS", "30"), ("TBMQ_FUZZ_PACKETS", "1000000")];

/// Runs every step; a step that fails does not keep the later ones from telling what they find.
pub(crate) fn run(root: &Path) -> Result<()> {
    let is_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    let mut gate = Gate::default();
    // Everything, for every platform: cargo-deny looks at all of it without the net.
    gate.step("fetch", || cargo(root, &["fetch", "--locked", "--quiet"], &[]));
    // Mostly waits for the net, so that what compiles loses little by it.
    let servers = thread::spawn(move || timed(|| servers::run(is_ci)));
    gate.step("format", || cargo(root, &["fmt", "--all", "--check"], &[]));
    gate.step("generated code", || r#gen::run(root, true).and_then(|()| conformance::run(root, true)));
    gate.step("tidy", || tidy::run(root));
    gate.step("clippy", || {
        cargo(root, &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"], &[])
    });
    gate.joined("servers", servers);
    gate.step("deploy", || deploy::run(root, is_ci));
    gate.step("dependencies", || deny(root, is_ci));
    gate.step("build", || cargo(root, &["build", "--workspace", "--bins", "--quiet"], &[]));
    gate.step("instructions", || instructions::run(root, false));
    let mut counts = Counts::default();
    gate.step("tests", || {
        counts = test(root, &["test", "--workspace", "--no-fail-fast"], &FUZZ)?;
        ensure!(counts.failed == 0 && counts.passed > 0, "{} tests failed", counts.failed);
        Ok(())
    });
    gate.step("docs", || {
        cargo(root, &["doc", "--workspace", "--no-deps", "--quiet"], &[("RUSTDOCFLAGS", "-D warnings")])
    });
    gate.finish(counts)
}

/// Runs only the tests whose names contain one of `filter`.
pub(crate) fn filtered(root: &Path, filter: &[String]) -> Result<()> {
    cargo(root, &["build", "--workspace", "--bins", "--quiet"], &[])?;
    let mut arguments = vec!["test", "--workspace", "--no-fail-fast", "--"];
    arguments.extend(filter.iter().map(String::as_str));
    let counts = test(root, &arguments, &[])?;
    println!("{counts}");
    ensure!(counts.failed == 0, "{} tests failed", counts.failed);
    Ok(())
}

fn timed(action: impl FnOnce() -> Result<()>) -> (Duration, Result<()>) {
    let start = Instant::now();
    let result = action();
    (start.elapsed(), result)
}

#[derive(Default)]
struct Gate {
    steps: Vec<(&'static str, Duration, Result<()>)>,
}

impl Gate {
    fn step(&mut self, name: &'static str, action: impl FnOnce() -> Result<()>) {
        println!("=== {name}");
        let (time, result) = timed(action);
        self.ended(name, time, result);
    }

    /// A step that went on beside others until now.
    fn joined(&mut self, name: &'static str, thread: JoinHandle<(Duration, Result<()>)>) {
        println!("=== {name}, begun beside the others");
        let (time, result) =
            thread.join().unwrap_or_else(|_| (Duration::ZERO, Err(anyhow!("it panicked: see above"))));
        self.ended(name, time, result);
    }

    fn ended(&mut self, name: &'static str, time: Duration, result: Result<()>) {
        if let Err(error) = &result {
            println!("=== {name} failed: {error:#}");
        }
        self.steps.push((name, time, result));
    }

    fn finish(self, counts: Counts) -> Result<()> {
        println!();
        let mut failed = Vec::new();
        for (name, time, result) in &self.steps {
            let verdict = if result.is_ok() { "ok" } else { "FAILED" };
            println!("{name:<16} {:>7.1} s  {verdict}", time.as_secs_f64());
            // Once more: what was printed when it failed is far above.
            if let Err(error) = result {
                println!("{error:#}");
                failed.push(*name);
            }
        }
        println!("\n{counts}");
        if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
    }
}

#[derive(Clone, Copy, Default)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Runs cargo's tests, shows what they print, and counts.
fn test(root: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Counts> {
    let mut child = Command::new("cargo")
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir(root)
        .stdout(Stdio::piped())
        .spawn()
        .context("cargo could not be started")?;
    let mut counts = Counts::default();
    for line in BufReader::new(child.stdout.take().context("stdout is piped")?).lines() {
        let line = line?;
        println!("{line}");
        count(&line, &mut counts);
    }
    let status = child.wait()?;
    // A test binary that aborts has no closing line.
    if !status.success() && counts.failed == 0 {
        counts.failed = 1;
    }
    Ok(counts)
}

fn count(line: &str, counts: &mut Counts) {
    let Some(result) = line.strip_prefix("test result: ") else { return };
    let number = |what: &str| -> u64 {
        let words: Vec<&str> = result.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
        let at = words.iter().position(|word| *word == what);
        at.and_then(|at| words.get(at.checked_sub(1)?)?.parse().ok()).unwrap_or(0)
    };
    counts.passed += number("passed");
    counts.failed += number("failed");
    counts.skipped += number("ignored");
}

/// Bans, licences and sources of all dependencies. Advisories need the net and are left to those who have it.
fn deny(root: &Path, install: bool) -> Result<()> {
    let tools: PathBuf = root.join("target/tools");
    let ours = tools.join("bin/cargo-deny");
    let on_path = Command::new("cargo-deny").arg("--version").output().is_ok();
    if !on_path && !ours.exists() {
        if !install {
            println!("SKIPPED dependencies: cargo-deny is missing: cargo install cargo-deny --locked");
            return Ok(());
        }
        let tools = tools.to_string_lossy().into_owned();
        // It runs once, for seconds: a debug build of what is asked of it takes a quarter of the time to build.
        let what = [
            "install",
            "cargo-deny",
            "--locked",
            "--debug",
            "--no-default-features",
            "--quiet",
            "--root",
            &tools,
        ];
        cargo(root, &what, &[("CARGO_PROFILE_DEV_DEBUG", "0")])?;
    }
    let program = if on_path { PathBuf::from("cargo-deny") } else { ours };
    let status = Command::new(program)
        .args(["--offline", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"])
        .current_dir(root)
        .status()
        .context("cargo-deny could not be started")?;
    ensure!(status.success(), "cargo-deny found something");
    Ok(())
}

fn cargo(root: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let status = Command::new("cargo")
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir(root)
        .status()
        .context("cargo could not be started")?;
    ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_closing_lines_are_added_up() {
        let mut counts = Counts::default();
        count("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out", &mut counts);
        count("test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out", &mut counts);
        count("running 3 tests", &mut counts);
        assert_eq!((counts.passed, counts.failed, counts.skipped), (5, 4, 1));
    }
}
