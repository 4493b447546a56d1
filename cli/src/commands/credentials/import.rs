//! `tbmqctl credentials import`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use futures_util::StreamExt as _;
use prost::Message as _;
use serde::Serialize;
use tbmq_proto::control::{Credentials, ImportCredentialsRequest, credentials::Proof};
use tokio::sync::mpsc;

use crate::{
    client::Target,
    credential::{
        Document,
        items::{self, Item},
        tbmq::{self, Entry},
    },
    failure::Failure,
    render::{Output, note},
};

/// Credentials of one call.
const BATCH: usize = 1000;

/// Of those that the server has to hash.
const BATCH_PASSWORDS: usize = 50;

/// Bytes of one call: with one more it is still below the 4 MiB that a server takes.
const BATCH_BYTES: usize = 2 << 20;

/// Bytes of a credential; a server takes less.
const CREDENTIAL_BYTES_MAX: usize = 1 << 20;

/// Calls at once.
const CALLS: usize = 4;

/// How often it is told how far it is.
const TOLD_EVERY: u64 = 100_000;

#[derive(Debug, Args)]
#[command(after_help = "\
Each credential is taken by itself: what can't be taken is told with its name and the reason, the rest is imported. A \
file may hold one, an array, one after another, or a page of TBMQ's REST API, and may have millions.

--from tbmq takes over what TBMQ keeps, with ids: password hashes, keys of SCRAM, patterns of certificates. Its regular \
expressions are Java's: what is written otherwise here is rewritten, and what can't be done in linear time (look-around, \
back-references, possessive quantifiers) is told by its pattern. The credential of TBMQ's own web page, by which anyone \
may connect, is left out.

Exit codes: 1 when one was refused (the others were imported), 4 when none was and some are here already, else as \
elsewhere.

Examples:
  tbmqctl credentials import --from tbmq credentials.json --dry-run
  psql -At thingsboard_mqtt_broker -c \"SELECT json_build_object('id', id, 'name', name, 'clientType', client_type,
    'credentialsType', credentials_type, 'credentialsValue', credentials_value) FROM mqtt_client_credentials\" |
    tbmqctl credentials import --from tbmq -")]
pub(crate) struct Arguments {
    /// Files; `-` is stdin
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Whose form they have
    #[arg(long, value_enum, default_value = "tbmqctl")]
    from: From,
    /// Replace those that are here already; they are refused otherwise
    #[arg(long)]
    replace: bool,
    /// Have everything validated, but save nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum From {
    /// What `tbmqctl credentials export` writes
    Tbmqctl,
    /// What TBMQ's REST API answers, or its database holds
    Tbmq,
}

/// What was done.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    imported: u64,
    /// Here already.
    existing: u64,
    left_out: u64,
    refused: u64,
    /// Of the imported ones, those that accept any password.
    any_password: u64,
    dry_run: bool,
}

/// One that was not imported.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    outcome: &'static str,
    display_name: String,
    place: String,
    reason: String,
}

/// A credential that is to be imported.
struct Ready {
    place: String,
    credentials: Credentials,
}

/// What goes into one call, and what can't go into any.
#[derive(Default)]
struct Batch {
    ready: Vec<Ready>,
    lines: Vec<Line>,
    bytes: usize,
    passwords: usize,
}

pub(super) async fn run(arguments: Arguments, target: &Target, output: Output) -> Result<(), Failure> {
    output.without_names()?;
    let client = target.credentials().await?;
    let Arguments { files, from, replace, dry_run } = arguments;
    let items = items::of_files(files);
    let batches = futures_util::stream::unfold(Some(items), async |items| {
        let mut items = items?;
        match Batch::fill(&mut items, from).await {
            Ok(batch) if batch.is_empty() => None,
            Ok(batch) => Some((Ok(batch), Some(items))),
            Err(failure) => Some((Err(failure), None)),
        }
    });
    let mut calls = std::pin::pin!(
        batches
            .map(async |batch: Result<Batch, Failure>| {
                batch?.send(client.clone(), target, replace, dry_run).await
            })
            .buffered(CALLS)
    );
    let mut summary = Summary { dry_run, ..Summary::default() };
    let mut told = TOLD_EVERY;
    while let Some(done) = calls.next().await {
        let (of_batch, lines) = match done {
            Ok(done) => done,
            Err(failure) => {
                note(&summary.text());
                return Err(failure);
            }
        };
        summary.add(&of_batch);
        for line in lines {
            output.print_item(
                || {
                    format!(
                        "{}  {}  ({}): {}\n",
                        line.outcome,
                        printable(&line.display_name),
                        line.place,
                        line.reason
                    )
                },
                || None,
                || Some(&line),
            )?;
        }
        if summary.imported >= told {
            note(&format!("{} so far", summary.imported));
            told += TOLD_EVERY;
        }
    }
    output.print_item(String::new, || None, || Some(&summary))?;
    note(&summary.text());
    summary.result()
}

fn printable(name: &str) -> String {
    name.replace(char::is_control, " ")
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.lines.is_empty()
    }

    fn is_full(&self) -> bool {
        self.ready.len() >= BATCH
            || self.lines.len() >= BATCH
            || self.bytes >= BATCH_BYTES
            || self.passwords >= BATCH_PASSWORDS
    }

    /// Takes what goes into one call.
    async fn fill(items: &mut mpsc::Receiver<Result<Item, Failure>>, from: From) -> Result<Self, Failure> {
        let mut batch = Self::default();
        while !batch.is_full() {
            let Some(item) = items.recv().await else { break };
            batch.add(item?, from);
        }
        Ok(batch)
    }

    fn add(&mut self, Item { place, value }: Item, from: From) {
        let name_of =
            |key: &str| value.get(key).and_then(|name| name.as_str()).unwrap_or_default().to_owned();
        let (display_name, read) = match from {
            From::Tbmqctl if value.get("credentialsType").is_some() => {
                (name_of("name"), Err(("refused", "it is one of TBMQ's: --from tbmq reads it".to_owned())))
            }
            From::Tbmqctl => {
                let name = name_of("displayName");
                let read = Document::of_value(value)
                    .and_then(|document| document.brings_its_password().map(|()| document));
                (name, read.map_err(|reason| ("refused", reason)))
            }
            From::Tbmq => match tbmq::read(value) {
                Ok(Entry::Credential(document)) => (document.display_name.clone(), Ok(*document)),
                Ok(Entry::LeftOut { name, reason }) => (name, Err(("left out", reason.to_owned()))),
                Err(problem) => (problem.name, Err(("refused", problem.reason))),
            },
        };
        let read = read
            .and_then(|document| document.into_credentials().map_err(|reason| ("refused", reason)))
            .and_then(|credentials| match credentials.encoded_len() {
                0..=CREDENTIAL_BYTES_MAX => Ok(credentials),
                bytes => Err(("refused", format!("it has {bytes} bytes, more than {CREDENTIAL_BYTES_MAX}"))),
            });
        match read {
            Ok(credentials) => {
                self.bytes += credentials.encoded_len();
                self.passwords += usize::from(has_new_password(&credentials));
                self.ready.push(Ready { place, credentials });
            }
            Err((outcome, reason)) => self.lines.push(Line { outcome, display_name, place, reason }),
        }
    }

    /// Has them saved, and tells what became of each.
    async fn send(
        self,
        mut client: super::Client,
        target: &Target,
        replace: bool,
        validate_only: bool,
    ) -> Result<(Summary, Vec<Line>), Failure> {
        let Self { ready, mut lines, .. } = self;
        let mut summary = Summary {
            left_out: lines.iter().filter(|line| line.outcome == "left out").count() as u64,
            ..Summary::default()
        };
        summary.refused = lines.len() as u64 - summary.left_out;
        if ready.is_empty() {
            return Ok((summary, lines));
        }
        let credentials: Vec<_> = ready.iter().map(|one| one.credentials.clone()).collect();
        let request = ImportCredentialsRequest { credentials, replace, validate_only };
        let outcomes = client.import_credentials(target.request(request)).await?.into_inner().outcomes;
        if outcomes.len() != ready.len() {
            return Err(Failure::refused("the server did not say what became of each credential"));
        }
        for (Ready { place, credentials }, outcome) in ready.into_iter().zip(outcomes) {
            let is_there = outcome.code == "ALREADY_EXISTS";
            match outcome.code.as_str() {
                "OK" => {
                    summary.imported += 1;
                    summary.any_password += u64::from(accepts_any_password(&credentials));
                    continue;
                }
                "ALREADY_EXISTS" => summary.existing += 1,
                _ => summary.refused += 1,
            }
            let reason = if outcome.error.is_empty() { outcome.code } else { outcome.error };
            lines.push(Line {
                outcome: if is_there { "exists" } else { "refused" },
                display_name: credentials.display_name,
                place,
                reason,
            });
        }
        Ok((summary, lines))
    }
}

fn has_new_password(one: &Credentials) -> bool {
    match &one.proof {
        Some(Proof::Basic(basic)) => basic.password.is_some(),
        Some(Proof::Scram(scram)) => scram.password.is_some(),
        Some(Proof::X509(_)) | None => false,
    }
}

fn accepts_any_password(one: &Credentials) -> bool {
    matches!(&one.proof, Some(Proof::Basic(basic)) if basic.password.is_none() && basic.password_hash.is_none())
}

impl Summary {
    fn add(&mut self, other: &Self) {
        self.imported += other.imported;
        self.existing += other.existing;
        self.left_out += other.left_out;
        self.refused += other.refused;
        self.any_password += other.any_password;
    }

    fn text(&self) -> String {
        let counts = [
            (self.imported, "imported"),
            (self.existing, "here already"),
            (self.left_out, "left out"),
            (self.refused, "refused"),
        ];
        let counts: Vec<_> = counts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        let mut text =
            if counts.is_empty() { "there was nothing to import".to_owned() } else { counts.join(", ") };
        if self.dry_run {
            text.push_str("; dry run: nothing was saved");
        }
        if self.any_password > 0 {
            text = format!(
                "{text}
warning: {} of them accept any password",
                self.any_password
            );
        }
        text
    }

    fn result(&self) -> Result<(), Failure> {
        match (self.refused, self.existing) {
            (0, 0) => Ok(()),
            (0, existing) => {
                Err(Failure::drift(format!("{existing} are here already, and stay as they are"))
                    .hint("--replace overwrites them"))
            }
            (refused, _) => Err(Failure::refused(format!("{refused} were refused, as told above"))),
        }
    }
}
