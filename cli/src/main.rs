//! The command line of TBMQ: speaks gRPC to a control plane, and MQTT and HTTP in `tbmqctl try`.
//!
//! Data goes to stdout, everything else to stderr. Exit codes are [`failure::ExitKind`].

mod client;
mod commands;
mod compare;
mod document;
mod failure;
mod inventory;
mod manifest;
mod render;
mod selector;
mod tbmq_import;

use std::{panic::AssertUnwindSafe, process::ExitCode, time::Duration};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::{
    commands::{apply, completion, diff, edit, event, explain, export, import, integration, node, try_it},
    failure::{ExitKind, Failure},
    render::{Format, Output},
};

/// The command line of TBMQ
#[derive(Debug, Parser)]
#[command(name = "tbmqctl", version, max_term_width = 100, propagate_version = true, after_help = AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 refused by the server, 2 wrong usage, 3 server not reachable, 4 a difference was found, \
70 bug in tbmqctl.";

#[derive(Debug, clap::Args)]
struct Global {
    /// Address of the control plane's gRPC endpoint
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "TBMQCTL_SERVER",
        hide_env_values = true,
        default_value = "http://127.0.0.1:9090"
    )]
    server: String,
    /// Form of the output
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Longest wait for the answer to one call, such as 500ms, 40s or 2m
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration, default_value = "40s")]
    timeout: Duration,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create, change, look at and check integrations
    #[command(subcommand)]
    Integration(integration::Command),
    /// Make integrations be what files say: create, change and, with --prune, delete them
    Apply(apply::Arguments),
    /// Show what apply would change
    Diff(diff::Arguments),
    /// Change one integration in an editor
    Edit(edit::Arguments),
    /// Tell who gets a message that is published to a topic, and by which filters
    Explain(explain::Arguments),
    /// Write integrations as documents that apply takes back
    Export(export::Arguments),
    /// Take over integrations from elsewhere
    #[command(subcommand)]
    Import(import::Command),
    /// What happened to integrations
    #[command(subcommand)]
    Event(event::Command),
    /// Control planes, data planes and executors
    #[command(subcommand)]
    Node(node::Command),
    /// Try TBMQ out without other tools: an HTTP server that shows requests, an MQTT client
    #[command(subcommand)]
    Try(try_it::Command),
    /// Print a script that completes tbmqctl's arguments in your shell
    Completion(completion::Arguments),
}

fn main() -> ExitCode {
    let Cli { global, command } =
        Cli::from_arg_matches(&Cli::command().get_matches()).unwrap_or_else(|error| error.exit());
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::bug(format!("can't start: {error}")).report(),
    };
    let work = AssertUnwindSafe(|| runtime.block_on(run(global, command)));
    match std::panic::catch_unwind(work) {
        Ok(Ok(())) => ExitKind::Done.into(),
        Ok(Err(failure)) => failure.report(),
        // The panic's own text is on stderr already.
        Err(_) => Failure::bug("tbmqctl stopped in the middle of its work").report(),
    }
}

async fn run(global: Global, command: Command) -> Result<(), Failure> {
    let output = Output::new(global.output);
    let target = client::Target { server: global.server, timeout: global.timeout };
    match command {
        Command::Integration(command) => integration::run(command, &target, output).await,
        Command::Apply(arguments) => apply::run(arguments, &target, output).await,
        Command::Diff(arguments) => diff::run(arguments, &target, output).await,
        Command::Edit(arguments) => edit::run(arguments, &target, output).await,
        Command::Explain(arguments) => explain::run(arguments, &target, output).await,
        Command::Export(arguments) => export::run(arguments, &target, output).await,
        Command::Import(command) => import::run(command, &target, output).await,
        Command::Event(command) => event::run(command, &target, output).await,
        Command::Node(command) => node::run(command, &target, output).await,
        Command::Try(command) => try_it::run(command, target.timeout, output).await,
        Command::Completion(arguments) => completion::run(arguments, &mut Cli::command()),
    }
}

/// Reads `500ms`, `40s`, `2m`, `6h`, `7d`.
fn duration(text: &str) -> Result<Duration, String> {
    let expected = || format!("{text:?} is not a duration such as 500ms, 40s, 2m, 6h or 7d");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(expected)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| expected())?;
    let ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(expected()),
    };
    number.checked_mul(ms).map(Duration::from_millis).ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use std::{fmt::Write, path::Path};

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_have_a_number_and_a_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        for text in ["", "5", "s", "1.5s", "-1s", "5 s", "99999999999999999999s", "18446744073709551615d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    fn section(command: &mut clap::Command, path: &str, into: &mut String) {
        let help = command.render_long_help().to_string();
        let help: Vec<_> = help.lines().map(str::trim_end).collect();
        write!(into, "\n## {path}\n\n```text\n{}\n```\n", help.join("\n").trim_end()).unwrap();
        let names: Vec<_> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
        for name in names.iter().filter(|name| *name != "help") {
            let sub = command.find_subcommand_mut(name).unwrap();
            section(sub, &format!("{path} {name}"), into);
        }
    }

    #[test]
    fn the_reference_shows_the_help_as_it_is() {
        let mut command = Cli::command().term_width(100);
        command.build();
        let mut reference = "# tbmqctl\n\nThe help of every command. Written by the tests of `cli/` when \
                             `UPDATE_REFERENCE=1` is set.\n"
            .to_owned();
        section(&mut command, "tbmqctl", &mut reference);
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("reference.md");
        if std::env::var_os("UPDATE_REFERENCE").is_some() {
            std::fs::write(&file, &reference).unwrap();
        }
        let golden = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(
            golden == reference,
            "cli/reference.md is old; UPDATE_REFERENCE=1 cargo test -p tbmqctl writes it anew"
        );
    }
}
