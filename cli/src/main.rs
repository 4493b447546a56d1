//! The command line of TBMQ: speaks gRPC to a control plane, and MQTT and HTTP in `tbmqctl try`.
//!
//! Data goes to stdout, everything else to stderr. Exit codes are [`failure::ExitKind`].

mod client;
mod commands;
mod compare;
mod confirm;
mod context;
mod credential;
mod document;
mod editor;
mod failure;
mod following;
mod inventory;
mod manifest;
mod password;
mod progress;
mod render;
mod screen;
mod selector;
mod tbmq_import;

use std::{
    panic::AssertUnwindSafe,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use prost_types::Timestamp;

use crate::{
    client::Target,
    commands::{
        apply, audit, auth, blocked, completion, context as contexts, credentials, diff, edit, event,
        explain, export, import, integration, kafka, kind, man, node, retained, session, subscription, token,
        top, try_it, unauthorized, wait,
    },
    context::{Config, Flags, Settings},
    failure::{ExitKind, Failure},
    render::{Output, note},
};

/// The command line of TBMQ
#[derive(Debug, Parser)]
#[command(name = "tbmqctl", version, max_term_width = 100, propagate_version = true, after_help = AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 refused by the server, 2 wrong usage, 3 server not reachable, 4 a difference was found (diff), \
5 not so in time (wait), 70 bug in tbmqctl.

Of several values the nearest is used: a flag, a context named by --context, the environment, the context in use \
(`tbmqctl context use`), the default. Contexts are kept in $TBMQCTL_CONFIG, else in tbmqctl/config.yaml in \
$XDG_CONFIG_HOME or ~/.config. NO_COLOR=1 turns colours off.";

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Call(Call),
    /// Servers kept under names
    #[command(subcommand)]
    Context(contexts::Command),
    /// Try TBMQ out without other tools: an HTTP server that shows requests, an MQTT client
    #[command(subcommand)]
    Try(try_it::Command),
    /// Print a script that completes tbmqctl's arguments in your shell
    Completion(completion::Arguments),
    /// Print the manual page, or write those of all commands
    Man(man::Arguments),
}

/// Commands that call a control plane.
#[derive(Debug, Subcommand)]
enum Call {
    /// Create, change, look at and check integrations
    #[command(subcommand)]
    Integration(integration::Command),
    /// The types of integrations
    #[command(subcommand)]
    Kind(kind::Command),
    /// What happened to integrations
    #[command(subcommand)]
    Event(event::Command),
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
    /// Show changes of integrations and of their status as they happen, as `integration watch`
    Watch(integration::watch::Arguments),
    /// Wait until integrations are in a phase, or deleted
    Wait(wait::Arguments),
    /// Show the rates and the lag of integrations, live
    Top(top::Arguments),
    /// Sessions of MQTT clients, connected or not
    #[command(subcommand)]
    Session(session::Command),
    /// What MQTT clients have subscribed to
    #[command(subcommand)]
    Subscription(subscription::Command),
    /// Retained messages
    #[command(subcommand)]
    Retained(retained::Command),
    /// Who may connect by what proof, and what they may do: passwords, certificates, access rules
    #[command(subcommand)]
    Credentials(credentials::Command),
    /// Clients that may not connect, whatever they prove
    #[command(subcommand)]
    Blocked(blocked::Command),
    /// Clients that were refused, and why
    #[command(subcommand)]
    Unauthorized(unauthorized::Command),
    /// How clients prove who they are: which providers are asked, and which first
    #[command(subcommand)]
    Auth(auth::Command),
    /// What lies in Kafka: brokers, topics, consumer groups, and what waits
    #[command(subcommand)]
    Kafka(kafka::Command),
    /// Control planes, data planes and executors
    #[command(subcommand)]
    Node(node::Command),
    /// Tokens: who may call, and as what
    #[command(subcommand)]
    Token(token::Command),
    /// Show who the server takes you for
    Whoami,
    /// Who did what
    #[command(subcommand)]
    Audit(audit::Command),
}

fn main() -> ExitCode {
    let Cli { flags, command } =
        Cli::from_arg_matches(&Cli::command().get_matches()).unwrap_or_else(|error| error.exit());
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::bug(format!("can't start: {error}")).report(),
    };
    let work = AssertUnwindSafe(|| runtime.block_on(run(flags, command)));
    match std::panic::catch_unwind(work) {
        Ok(Ok(())) => ExitKind::Done.into(),
        Ok(Err(failure)) => failure.report(),
        // The panic's own text is on stderr already.
        Err(_) => Failure::bug("tbmqctl stopped in the middle of its work").report(),
    }
}

async fn run(flags: Flags, command: Command) -> Result<(), Failure> {
    let variable = |name: &str| std::env::var(name).ok();
    match command {
        Command::Call(call) => {
            let settings = settings(flags, variable)?;
            self::call(call, &Target::try_from(&settings)?, Output::new(settings.output)).await
        }
        Command::Context(command) => contexts::run(command, flags, variable),
        Command::Try(command) => {
            let settings = settings(flags, variable)?;
            try_it::run(command, settings.timeout, Output::new(settings.output)).await
        }
        Command::Completion(arguments) => completion::run(arguments, &mut Cli::command()),
        Command::Man(arguments) => man::run(arguments, Cli::command()),
    }
}

async fn call(call: Call, target: &Target, output: Output) -> Result<(), Failure> {
    match call {
        Call::Integration(command) => integration::run(command, target, output).await,
        Call::Kind(command) => kind::run(command, target, output).await,
        Call::Event(command) => event::run(command, target, output).await,
        Call::Apply(arguments) => apply::run(arguments, target, output).await,
        Call::Diff(arguments) => diff::run(arguments, target, output).await,
        Call::Edit(arguments) => edit::run(arguments, target, output).await,
        Call::Explain(arguments) => explain::run(arguments, target, output).await,
        Call::Export(arguments) => export::run(arguments, target, output).await,
        Call::Import(command) => import::run(command, target, output).await,
        Call::Watch(arguments) => integration::watch::run(arguments, target, output).await,
        Call::Wait(arguments) => wait::run(arguments, target).await,
        Call::Top(arguments) => top::run(arguments, target, output).await,
        Call::Session(command) => session::run(command, target, output).await,
        Call::Subscription(command) => subscription::run(command, target, output).await,
        Call::Retained(command) => retained::run(command, target, output).await,
        Call::Credentials(command) => credentials::run(command, target, output).await,
        Call::Blocked(command) => blocked::run(command, target, output).await,
        Call::Unauthorized(command) => unauthorized::run(command, target, output).await,
        Call::Auth(command) => auth::run(command, target, output).await,
        Call::Kafka(command) => kafka::run(command, target, output).await,
        Call::Node(command) => node::run(command, target, output).await,
        Call::Token(command) => token::run(command, target, output).await,
        Call::Whoami => token::whoami(target, output).await,
        Call::Audit(command) => audit::run(command, target, output).await,
    }
}

/// Which server is called and how, with what the file of contexts says.
fn settings(flags: Flags, variable: impl Fn(&str) -> Option<String>) -> Result<Settings, Failure> {
    let Some(file) = context::file(&variable) else {
        return Settings::decide(flags, variable, &Config::default());
    };
    let config = Config::load(&file)?;
    if config.holds_a_token() && context::is_readable_by_others(&file) {
        note(&format!("warning: others can read the tokens in {0}: chmod 600 {0}", file.display()));
    }
    Settings::decide(flags, variable, &config)
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

/// Reads a time in RFC 3339 or a duration before now.
fn time(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let ago = duration(text).map_err(|_| {
        format!("{text:?} is neither a time such as 2025-03-21T11:00:00Z nor a duration such as 15m")
    })?;
    SystemTime::now().checked_sub(ago).map(Timestamp::from).ok_or_else(|| format!("{text:?} is too long ago"))
}

#[cfg(test)]
mod tests {
    use std::{fmt::Write, path::Path};

    use clap::Args as _;

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

    #[test]
    fn a_time_is_absolute_or_ago() {
        assert_eq!(time("2025-03-21T11:02:49Z").unwrap().seconds, 1_742_554_969);
        let hour_ago = time("1h").unwrap().seconds;
        let now = Timestamp::from(SystemTime::now()).seconds;
        assert!((3590..=3610).contains(&(now - hour_ago)));
        assert!(time("yesterday").is_err());
    }

    /// Help of a command and of those below it. The flags that all have in common are shown by the first only.
    fn section(command: &mut clap::Command, path: &str, into: &mut String) {
        let help = command.render_long_help().to_string();
        let help: Vec<_> = help.lines().map(str::trim_end).collect();
        write!(into, "\n## {path}\n\n```text\n{}\n```\n", help.join("\n").trim_end()).unwrap();
        let names: Vec<_> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
        let common: Vec<_> = Flags::augment_args(clap::Command::new("x"))
            .get_arguments()
            .map(|argument| argument.get_id().clone())
            .collect();
        for name in names.iter().filter(|name| *name != "help") {
            let sub = command.find_subcommand_mut(name).unwrap();
            for id in &common {
                *sub = sub.clone().mut_arg(id, |argument| argument.hide(true));
            }
            section(sub, &format!("{path} {name}"), into);
        }
    }

    #[test]
    fn the_reference_shows_the_help_as_it_is() {
        let mut command = Cli::command().term_width(100);
        command.build();
        let mut reference = "# tbmqctl\n\nThe help of every command; the flags under \"Server and output\" are the same for all \
                             and shown once. Written by the tests of `cli/` when `UPDATE_REFERENCE=1` is set.\n"
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
