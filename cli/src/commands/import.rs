//! `tbmqctl import`.

use std::{collections::BTreeSet, fmt, num::NonZeroUsize, path::PathBuf};

use clap::{Args, Subcommand};
use futures_util::StreamExt as _;
use serde::Serialize;
use tbmq_proto::control::Integration;

use super::apply::concurrency;
use crate::{
    client::Target,
    failure::Failure,
    inventory::Inventory,
    manifest,
    render::{Output, note, table},
    tbmq_import::{self, Entry, database, differences, rest},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Take over the integrations of a TBMQ installation as they are, with their ids
    Tbmq(Arguments),
}

#[derive(Debug, Args)]
#[command(after_help = "\
One of --url, --database and -f says where they come from; nothing is written there. Ids, names, types and configurations \
stay as they are, byte for byte. What is here already and says the same is skipped, so that an import may be repeated; \
what is here and says something else is reported, and overwritten with --update.

The report ends with what the imported integrations do otherwise here.

Exit codes: 1 when one was refused (the others were imported), 4 when none was and one is here with another configuration, \
else as elsewhere.

Examples:
  tbmqctl import tbmq --url http://tbmq:8083 --username sysadmin@thingsboard.org --password-file pw --dry-run
  tbmqctl import tbmq --database postgres://postgres@db/thingsboard_mqtt_broker --disabled
  tbmqctl import tbmq -f integrations.json -o json")]
pub(crate) struct Arguments {
    #[command(flatten)]
    source: Source,
    /// Administrator of TBMQ
    #[arg(long, value_name = "NAME", requires = "url")]
    username: Option<String>,
    /// His password; better in a file or in the environment, where others do not see it
    #[arg(
        long,
        env = "TBMQCTL_TBMQ_PASSWORD",
        hide_env_values = true,
        requires = "url",
        conflicts_with = "password_file"
    )]
    password: Option<Hidden>,
    /// File with his password; `-` is stdin
    #[arg(long, value_name = "FILE", requires = "url")]
    password_file: Option<PathBuf>,
    /// File with certificates (PEM) to trust instead of the system's, for an https address of TBMQ
    #[arg(long, value_name = "FILE", requires = "url")]
    tbmq_ca_file: Option<PathBuf>,
    /// Have everything validated, but save nothing
    #[arg(long)]
    dry_run: bool,
    /// Overwrite what is here with another configuration
    #[arg(long)]
    update: bool,
    /// Import everything disabled
    #[arg(long)]
    disabled: bool,
    /// Integrations worked on at once
    #[arg(long, value_name = "N", default_value = "4", value_parser = concurrency)]
    concurrency: NonZeroUsize,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// Address of TBMQ's REST API, such as http://HOST:8083
    #[arg(long, value_name = "URL", requires = "username")]
    url: Option<String>,
    /// Address of TBMQ's PostgreSQL database, such as postgres://USER:PASSWORD@HOST/DATABASE
    #[arg(long, value_name = "URL", env = "TBMQCTL_TBMQ_DATABASE", hide_env_values = true)]
    database: Option<Hidden>,
    /// File with JSON of TBMQ's REST API: an integration, an array of them, or a page; `-` is stdin
    #[arg(short, long)]
    file: Option<PathBuf>,
}

/// An argument that is, or holds, a password.
#[derive(Clone)]
struct Hidden(String);

impl From<String> for Hidden {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What became of one integration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
enum Outcome {
    Imported,
    Updated,
    /// Here already, and the same.
    Skipped,
    /// Here already, and another.
    Differs,
    Refused,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Imported => "imported",
            Self::Updated => "updated",
            Self::Skipped => "skipped",
            Self::Differs => "differs",
            Self::Refused => "refused",
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    outcome: Outcome,
    display_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    r#type: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    uid: String,
    /// Why it was refused, or how it differs.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    /// What it does otherwise here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    differences: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    dry_run: bool,
    integrations: Vec<Line>,
    /// What holds for all of them.
    differences: Vec<&'static str>,
}

pub(crate) async fn run(command: Command, target: &Target, output: Output) -> Result<(), Failure> {
    let Command::Tbmq(arguments) = command;
    let entries = read(&arguments, target).await?;
    let inventory = Inventory::take(target).await?;
    let mut done = futures_util::stream::iter(entries)
        .map(async |entry| match entry {
            Ok(entry) => take(&inventory, entry, &arguments).await,
            Err(problem) => Line {
                outcome: Outcome::Refused,
                display_name: String::new(),
                r#type: String::new(),
                uid: String::new(),
                reason: problem,
                differences: Vec::new(),
            },
        })
        .buffered(arguments.concurrency.get());
    let mut lines = Vec::new();
    while let Some(line) = done.next().await {
        lines.push(line);
    }
    let differences = general(&lines);
    let report = Report { dry_run: arguments.dry_run, integrations: lines, differences };
    output.print(|| text(&report), || &report)?;
    let count = |outcome| report.integrations.iter().filter(|line| line.outcome == outcome).count();
    match (count(Outcome::Refused), count(Outcome::Differs)) {
        (0, 0) => Ok(()),
        (0, differ) => Err(Failure::drift(format!("{differ} are here with another configuration"))
            .hint("--update overwrites them with what TBMQ has")),
        (refused, _) => Err(Failure::refused(format!("{refused} were refused, as told above"))),
    }
}

async fn read(arguments: &Arguments, target: &Target) -> Result<Vec<Result<Entry, String>>, Failure> {
    let Source { url, database, file } = &arguments.source;
    if let Some(file) = file {
        return tbmq_import::of_file(file);
    }
    if let Some(database) = database {
        return database::read(&database.0, target.timeout).await;
    }
    let (Some(url), Some(username)) = (url, &arguments.username) else {
        return Err(Failure::usage("where do they come from? give --url, --database or -f"));
    };
    let password = match (&arguments.password, &arguments.password_file) {
        (Some(password), _) => password.0.clone(),
        (None, Some(file)) => manifest::text_at(file)?.trim_end_matches(['\r', '\n']).to_owned(),
        (None, None) => {
            return Err(Failure::usage(
                "TBMQ wants a password: give --password-file, or TBMQCTL_TBMQ_PASSWORD",
            ));
        }
    };
    let source = rest::Source {
        url: url.clone(),
        username: username.clone(),
        password,
        ca_file: arguments.tbmq_ca_file.clone(),
        timeout: target.timeout,
    };
    source.read().await
}

/// Imports one, or finds out what it would come to.
async fn take(inventory: &Inventory, mut entry: Entry, arguments: &Arguments) -> Line {
    if arguments.disabled {
        entry.document.enabled = false;
    }
    let document = &entry.document;
    let (outcome, uid, reason) = match decide(inventory, &entry, arguments).await {
        Ok((outcome, one, fields)) => (outcome, one.uid, fields.join(", ")),
        Err(failure) => {
            let details = failure.violations.iter().map(|(path, text)| format!("{path}: {text}"));
            let mut reason: Vec<String> = details.filter(|text| *text != failure.message).collect();
            reason.insert(0, failure.message);
            (Outcome::Refused, String::new(), reason.join("; "))
        }
    };
    let schema = inventory.schema_by_now(&document.kind).await;
    let differences = differences::of_entry(&entry, schema.as_ref());
    Line {
        outcome,
        display_name: document.display_name.clone(),
        r#type: document.kind.clone(),
        uid: if uid.is_empty() { document.uid.map(|uid| uid.to_string()).unwrap_or_default() } else { uid },
        reason,
        differences,
    }
}

async fn decide(
    inventory: &Inventory,
    entry: &Entry,
    arguments: &Arguments,
) -> Result<(Outcome, Integration, Vec<&'static str>), Failure> {
    let document = &entry.document;
    // One that has its id is the same one. The name alone is not enough: what has another id is another integration.
    let held = match document.uid {
        Some(uid) => inventory.of_uid(uid),
        None => inventory.find(document),
    };
    let Some(saved) = held else {
        let created = inventory.create(document, arguments.dry_run).await?;
        return Ok((Outcome::Imported, created, Vec::new()));
    };
    let mut fields = inventory.difference(document, saved).await?.difference.fields;
    // TBMQ knows no labels; and who imports disabled ones will have enabled some since.
    fields.retain(|field| *field != "labels" && (*field != "enabled" || !arguments.disabled));
    if fields.is_empty() {
        return Ok((Outcome::Skipped, saved.clone(), fields));
    }
    if !arguments.update {
        return Ok((Outcome::Differs, saved.clone(), fields));
    }
    let changed = inventory.change(document, saved, &fields, arguments.dry_run).await?;
    Ok((Outcome::Updated, changed, fields))
}

/// What holds for all that is here now.
fn general(lines: &[Line]) -> Vec<&'static str> {
    let here = |line: &&Line| matches!(line.outcome, Outcome::Imported | Outcome::Updated | Outcome::Skipped);
    let kinds: BTreeSet<&str> = lines.iter().filter(here).map(|line| line.r#type.as_str()).collect();
    if kinds.is_empty() {
        return Vec::new();
    }
    let of_kinds = kinds.iter().flat_map(|kind| differences::of_kind(kind));
    differences::GENERAL.iter().chain(of_kinds).copied().collect()
}

fn text(report: &Report) -> String {
    let rows = report.integrations.iter().map(|line| {
        let cell = |text: &String| if text.is_empty() { "-".to_owned() } else { text.clone() };
        vec![
            line.outcome.word().to_owned(),
            cell(&line.display_name),
            cell(&line.r#type),
            cell(&line.uid),
            line.reason.clone(),
        ]
    });
    let mut text = table::table(&["RESULT", "NAME", "TYPE", "UID", "WHY"], rows);
    let of_one = report.integrations.iter().flat_map(|line| {
        let name = line.display_name.replace(char::is_control, " ");
        line.differences.iter().map(move |difference| format!("{name}: {difference}"))
    });
    section("These do something otherwise here than in TBMQ:", of_one, &mut text);
    section("Of all of them:", report.differences.iter().map(ToString::to_string), &mut text);
    let mut counts = Vec::new();
    for outcome in [Outcome::Imported, Outcome::Updated, Outcome::Skipped, Outcome::Differs, Outcome::Refused]
    {
        let count = report.integrations.iter().filter(|line| line.outcome == outcome).count();
        if count > 0 {
            counts.push(format!("{count} {}", outcome.word()));
        }
    }
    if counts.is_empty() {
        counts.push("TBMQ has no integrations".to_owned());
    }
    let rest = if report.dry_run { "; dry run: nothing was saved" } else { "" };
    note(&format!("{}{rest}", counts.join(", ")));
    text
}

/// Lines under a title, if there are any.
fn section(title: &str, lines: impl Iterator<Item = String>, text: &mut String) {
    let mut lines = lines.peekable();
    if lines.peek().is_some() {
        text.extend(["\n", title, "\n"]);
    }
    for line in lines {
        text.extend(["  ", &line, "\n"]);
    }
}
