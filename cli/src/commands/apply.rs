//! `tbmqctl apply`: makes what is saved be what files say.

use std::{
    collections::HashSet,
    io::{self, BufRead as _, IsTerminal as _},
    num::NonZeroUsize,
    path::PathBuf,
};

use clap::Args;
use futures_util::StreamExt as _;
use serde::Serialize;
use tbmq_proto::control::{DeleteIntegrationRequest, Integration};
use uuid::Uuid;

use crate::{
    client::Target,
    failure::Failure,
    inventory::Inventory,
    manifest::{Manifest, Manifests},
    render::{Output, note},
    selector::Selector,
};

/// Calls at once at most: each may occupy an executor for the time of a validation.
const CONCURRENCY_MAX: i64 = 64;

#[derive(Debug, Args)]
#[command(after_help = "\
An integration is found by its uid, else by its name. What differs is changed, all else stays untouched: neither the form \
of a document nor fields that are left at their defaults are a difference. A secret that is written as ******** stays as \
it is. A document's etag, revision and status have no effect.

Exit codes: 1 when one of them failed (the others were done), else as elsewhere.

Examples:
  tbmqctl apply -f integrations/
  tbmqctl apply -f integrations/ --dry-run
  tbmqctl apply -f integrations/ --prune --selector team=core --yes
  tbmqctl export -o json | jq '.[] | .enabled = false' | tbmqctl apply -f -")]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(super) files: Files,
    /// Have everything validated, but save nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pruning: Pruning,
    /// Prune without asking
    #[arg(short, long)]
    yes: bool,
}

/// Where documents come from, shared with `diff`.
#[derive(Debug, Args)]
pub(super) struct Files {
    /// File with one or more documents in YAML or JSON, or directory of such files; `-` is stdin. May be repeated
    #[arg(short = 'f', long = "file", value_name = "FILE|DIR", required = true)]
    paths: Vec<PathBuf>,
    /// Integrations worked on at once
    #[arg(long, value_name = "N", default_value = "4", value_parser = concurrency)]
    pub(super) concurrency: NonZeroUsize,
}

impl Files {
    pub(super) fn read(&self) -> Result<Manifests, Failure> {
        Manifests::read(&self.paths)
    }

    fn has_stdin(&self) -> bool {
        self.paths.iter().any(|path| path.as_os_str() == "-")
    }
}

/// What is to go, shared with `diff`.
#[derive(Debug, Args)]
pub(super) struct Pruning {
    /// Delete integrations that are not in the files, of those that --selector or --all names
    #[arg(long, requires = "scope")]
    prune: bool,
    /// Prune only those with these labels, such as zone=a,team!=core,canary,!legacy
    #[arg(short = 'l', long, value_name = "LABELS", requires = "prune", group = "scope")]
    selector: Option<Selector>,
    /// Prune all integrations that are not in the files
    #[arg(long, requires = "prune", group = "scope")]
    all: bool,
}

impl Pruning {
    /// Those that are to go: in scope and not described.
    pub(super) fn of<'a>(&self, inventory: &'a Inventory, manifests: &Manifests) -> Vec<&'a Integration> {
        if !self.prune {
            return Vec::new();
        }
        let described: HashSet<&str> = manifests
            .read
            .iter()
            .filter_map(|manifest| inventory.find(&manifest.document))
            .map(|found| found.name.as_str())
            .collect();
        let in_scope = |one: &&Integration| {
            self.all || self.selector.as_ref().is_some_and(|selector| selector.selects(&one.labels))
        };
        let rest = inventory.all().iter().filter(|one| !described.contains(one.name.as_str()));
        rest.filter(in_scope).collect()
    }
}

/// Reads how many calls may be under way.
pub(super) fn concurrency(text: &str) -> Result<NonZeroUsize, String> {
    let number = text.parse().ok().filter(|number: &NonZeroUsize| number.get() as i64 <= CONCURRENCY_MAX);
    number.ok_or_else(|| format!("{text:?} is not a whole number from 1 to {CONCURRENCY_MAX}"))
}

/// What became of one integration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Action {
    Created,
    Configured,
    Unchanged,
    Pruned,
    Failed,
}

impl Action {
    const ALL: [Self; 5] = [Self::Created, Self::Configured, Self::Unchanged, Self::Pruned, Self::Failed];

    fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
            Self::Pruned => "pruned",
            Self::Failed => "failed",
        }
    }
}

/// One line of the summary.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    action: Action,
    display_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    uid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    file: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fields: Vec<&'static str>,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
}

impl Line {
    fn text(&self) -> String {
        let name = self.display_name.replace(char::is_control, " ");
        let fields =
            if self.fields.is_empty() { String::new() } else { format!(" ({})", self.fields.join(", ")) };
        let dry_run = if self.dry_run { " (dry run)" } else { "" };
        format!("{:<10}  {name}{fields}{dry_run}\n", self.action.word())
    }
}

/// Counts, and shows each line as it comes.
struct Summary {
    output: Output,
    dry_run: bool,
    counts: [usize; Action::ALL.len()],
}

impl Summary {
    fn add(&mut self, mut line: Line) -> Result<(), Failure> {
        line.dry_run = self.dry_run && line.action != Action::Failed;
        self.counts[line.action as usize] += 1;
        self.output.print_item(
            || line.text(),
            || (!line.uid.is_empty()).then(|| format!("integrations/{}", line.uid)),
            || Some(&line),
        )
    }

    /// Tells what went wrong in full, and adds the line.
    fn add_failed(&mut self, name: &str, place: &str, failure: Failure) -> Result<(), Failure> {
        let error = failure.message.clone();
        within(place, failure).report();
        let (display_name, file) = (name.to_owned(), place.to_owned());
        let (uid, fields) = (String::new(), Vec::new());
        self.add(Line { action: Action::Failed, display_name, uid, file, fields, error, dry_run: false })
    }

    fn failed(&self) -> usize {
        self.counts[Action::Failed as usize]
    }

    fn text(&self) -> String {
        let counts = Action::ALL.iter().zip(self.counts).filter(|(_, count)| *count > 0);
        let counts: Vec<_> = counts.map(|(action, count)| format!("{count} {}", action.word())).collect();
        let rest = if self.dry_run { "; nothing was saved" } else { "" };
        format!("{}{rest}", counts.join(", "))
    }
}

/// A failure that says which document it is about.
pub(super) fn within(place: &str, mut failure: Failure) -> Failure {
    if !place.is_empty() {
        failure.message = format!("{place}: {}", failure.message);
    }
    failure
}

pub(crate) async fn run(arguments: Arguments, target: &Target, output: Output) -> Result<(), Failure> {
    let Arguments { files, dry_run, pruning, yes } = arguments;
    let asks = pruning.prune && !yes && !dry_run;
    if asks && (files.has_stdin() || !io::stdin().is_terminal()) {
        return Err(Failure::usage("nobody can be asked here whether to prune")
            .hint("--dry-run shows what would be deleted, --yes deletes it without asking"));
    }
    let manifests = files.read()?;
    let inventory = Inventory::take(target).await?;
    inventory.refuse_twins(&manifests)?;
    let mut summary = Summary { output, dry_run, counts: Default::default() };
    for failure in &manifests.unreadable {
        summary.add_failed(&failure.message, "", failure.clone())?;
    }
    let mut done = futures_util::stream::iter(&manifests.read)
        .map(async |manifest| (manifest, apply(&inventory, manifest, dry_run).await))
        .buffered(files.concurrency.get());
    while let Some((manifest, result)) = done.next().await {
        match result {
            Ok(line) => summary.add(line)?,
            Err(failure) => summary.add_failed(&manifest.document.display_name, &manifest.place, failure)?,
        }
    }
    let goes = pruning.of(&inventory, &manifests);
    if !goes.is_empty() && summary.failed() > 0 {
        // What was not understood may be one of them, and what replaces one of them may be what has failed.
        note(&format!("{} were not pruned, since something failed", goes.len()));
    } else if !goes.is_empty() && (!asks || confirm(&goes)?) {
        prune(&goes, &inventory, target, &files, &mut summary).await?;
    }
    note(&summary.text());
    match summary.failed() {
        0 => Ok(()),
        failed => Err(Failure::refused(format!("{failed} failed, as told above"))),
    }
}

async fn apply(inventory: &Inventory, manifest: &Manifest, dry_run: bool) -> Result<Line, Failure> {
    let Manifest { place, document } = manifest;
    let line = |action, integration: &Integration, fields| Line {
        action,
        display_name: document.display_name.trim().to_owned(),
        uid: integration.uid.clone(),
        file: place.clone(),
        fields,
        error: String::new(),
        dry_run: false,
    };
    let Some(saved) = inventory.find(document) else {
        let mut created = inventory.create(document, dry_run).await?;
        if dry_run && document.uid.is_none() {
            // Of a preview it means nothing.
            created.uid.clear();
        }
        return Ok(line(Action::Created, &created, Vec::new()));
    };
    let fields = inventory.difference(document, saved).await?.difference.fields;
    if fields.is_empty() {
        return Ok(line(Action::Unchanged, saved, fields));
    }
    let changed = inventory.change(document, saved, &fields, dry_run).await?;
    Ok(line(Action::Configured, &changed, fields))
}

async fn prune(
    goes: &[&Integration],
    inventory: &Inventory,
    target: &Target,
    files: &Files,
    summary: &mut Summary,
) -> Result<(), Failure> {
    let dry_run = summary.dry_run;
    let mut done = futures_util::stream::iter(goes)
        .map(async |one| {
            if dry_run {
                return (one, Ok(()));
            }
            let request = DeleteIntegrationRequest {
                name: one.name.clone(),
                // Only what was seen, not what somebody has made of it since.
                etag: one.etag.clone(),
                request_id: Uuid::now_v7().to_string(),
            };
            let answer = inventory.client().delete_integration(target.request(request)).await;
            (one, answer.map(|_| ()).map_err(Failure::from))
        })
        .buffered(files.concurrency.get());
    while let Some((one, result)) = done.next().await {
        match result {
            Ok(()) => summary.add(Line {
                action: Action::Pruned,
                display_name: one.display_name.clone(),
                uid: one.uid.clone(),
                file: String::new(),
                fields: Vec::new(),
                error: String::new(),
                dry_run: false,
            })?,
            Err(failure) => summary.add_failed(&one.display_name, &one.display_name, failure)?,
        }
    }
    Ok(())
}

/// Asks on the terminal; all but a yes is a no.
fn confirm(goes: &[&Integration]) -> Result<bool, Failure> {
    for one in goes {
        note(&format!("  {}", one.display_name.replace(char::is_control, " ")));
    }
    note(&format!(
        "Delete these {} integrations with the messages that they have not delivered? [y/N]",
        goes.len()
    ));
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|error| Failure::usage(format!("can't read the answer: {error}")))?;
    let is_yes = ["y", "yes"].contains(&answer.trim().to_lowercase().as_str());
    if !is_yes {
        note("nothing was pruned");
    }
    Ok(is_yes)
}
