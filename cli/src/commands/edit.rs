//! `tbmqctl edit NAME`: one integration in an editor.

use std::{io::Write as _, process::Command};

use clap::Args;
use tbmq_proto::control::{GetIntegrationRequest, Integration};

use crate::{
    client::Target,
    document::Document,
    failure::{ExitKind, Failure},
    inventory::{Compared, Inventory},
    render::{Output, json as view, note, portable::Portable, table},
};

const HEADER: &str = "\
# Save and leave to have this validated and saved; leave without a change, or with an empty file, to cancel.
# Lines that begin with '#' are ignored. A secret that is shown as ******** stays as it is.
#
";

#[derive(Debug, Args)]
#[command(after_help = "\
The document is opened in $VISUAL, else $EDITOR, else vi. If it is refused it is opened again, with the reason in its first \
lines. Nothing is saved if somebody else has changed the integration meanwhile. When it does not work out, the file is \
kept and named.

Example:
  EDITOR='code --wait' tbmqctl edit demo")]
pub(crate) struct Arguments {
    /// Name or uid
    integration: String,
}

pub(crate) async fn run(arguments: Arguments, target: &Target, output: Output) -> Result<(), Failure> {
    let mut client = target.integrations().await?;
    let name = target.name_of(&mut client, &arguments.integration).await?;
    let request = GetIntegrationRequest { name, ..Default::default() };
    let saved = client.get_integration(target.request(request)).await?.into_inner();
    let inventory = Inventory::of(target, client, vec![saved.clone()]).await?;
    let mut draft = Draft::write(&saved)?;
    let mut problem = String::new();
    loop {
        let before = draft.show(&problem)?;
        if let Err(failure) = draft.open() {
            return Err(draft.keep(failure));
        }
        let text = match draft.read() {
            Ok(text) => text,
            Err(failure) => return Err(draft.keep(failure)),
        };
        let untouched = text == before || draft.body.trim().is_empty();
        if untouched && problem.is_empty() {
            note("cancelled; nothing was changed");
            return Ok(());
        }
        if untouched {
            return Err(draft.keep(Failure::refused("cancelled; nothing was changed")));
        }
        match save(&inventory, &saved, &draft.body).await {
            Ok(Some(changed)) => {
                let one = std::slice::from_ref(&changed);
                return output.print_named(
                    || table::integrations(one, output.look),
                    || vec![changed.name.clone()],
                    || view::Integration::from(&changed),
                );
            }
            Ok(None) => {
                note("nothing was changed");
                return Ok(());
            }
            // With the same document it would be refused again, whatever stands in it.
            Err(failure) if !is_for_the_editor(&failure) => return Err(draft.keep(failure)),
            Err(failure) => problem = failure.text(),
        }
    }
}

/// Whether another document may be accepted.
fn is_for_the_editor(failure: &Failure) -> bool {
    let lasting = ["ETAG_MISMATCH", "NOT_FOUND", "DEPENDENCY_UNAVAILABLE", "OVERLOADED"];
    let is_lasting = failure.reason.as_deref().is_some_and(|reason| lasting.contains(&reason));
    !is_lasting && matches!(failure.kind, ExitKind::Refused | ExitKind::Usage)
}

/// Saves what differs; nothing if nothing does.
async fn save(
    inventory: &Inventory,
    saved: &Integration,
    text: &str,
) -> Result<Option<Integration>, Failure> {
    let document = Document::parse(text).map_err(|problems| {
        let mut failure = Failure::usage("this does not describe an integration");
        failure.violations = problems;
        failure
    })?;
    if document.uid.is_some_and(|uid| uid.to_string() != saved.uid) {
        return Err(Failure::usage("the uid can't be changed"));
    }
    let Compared { difference, .. } = inventory.difference(&document, saved).await?;
    if difference.fields.is_empty() {
        return Ok(None);
    }
    inventory.change(&document, saved, &difference.fields, false).await.map(Some)
}

/// The file in the editor. It is removed at the end unless it is kept.
struct Draft {
    file: tempfile::TempPath,
    /// The document without what we say about it.
    body: String,
}

impl Draft {
    fn write(saved: &Integration) -> Result<Self, Failure> {
        let file = tempfile::Builder::new()
            .prefix("tbmqctl-edit-")
            .suffix(".yaml")
            .tempfile()
            .map_err(|error| Failure::usage(format!("can't make a file to be edited: {error}")))?;
        Ok(Self { file: file.into_temp_path(), body: Portable::from(saved).yaml()? })
    }

    /// Writes the document with what is to be said about it, and returns the whole text.
    fn show(&self, problem: &str) -> Result<String, Failure> {
        let mut text = HEADER.to_owned();
        if !problem.is_empty() {
            text += "# It was not saved:\n";
            text.extend(problem.lines().map(|line| format!("#   {}\n", line.replace(char::is_control, " "))));
            text += "#\n";
        }
        text += &self.body;
        let written = std::fs::File::create(&self.file).and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|error| Failure::usage(format!("can't write {}: {error}", self.file.display())))?;
        Ok(text)
    }

    fn open(&self) -> Result<(), Failure> {
        let editor = ["VISUAL", "EDITOR"]
            .into_iter()
            .filter_map(|name| std::env::var(name).ok())
            .find(|editor| !editor.trim().is_empty())
            .unwrap_or_else(|| "vi".to_owned());
        // By the shell, since it may carry arguments: EDITOR='code --wait'.
        let status = Command::new("sh")
            .arg("-c")
            .arg(format!("{editor} \"$1\""))
            .arg(&editor)
            .arg(&self.file)
            .status()
            .map_err(|error| Failure::usage(format!("the editor {editor:?} can't be started: {error}")))?;
        if status.success() {
            return Ok(());
        }
        Err(Failure::usage(format!("the editor {editor:?} ended with {status}"))
            .hint("VISUAL or EDITOR names the editor"))
    }

    /// Reads what the editor has left.
    fn read(&mut self) -> Result<String, Failure> {
        let text = std::fs::read_to_string(&self.file)
            .map_err(|error| Failure::usage(format!("can't read {}: {error}", self.file.display())))?;
        let rest = text.lines().skip_while(|line| line.starts_with('#'));
        self.body = rest.map(|line| line.to_owned() + "\n").collect();
        Ok(text)
    }

    /// Leaves the file where it is, and says where.
    fn keep(self, mut failure: Failure) -> Failure {
        let path = match self.file.keep() {
            Ok(path) => path,
            // It could not be kept under this name, and is not removed either.
            Err(error) => error.path.to_path_buf(),
        };
        let kept = format!("your document is kept in {0}: `tbmqctl apply -f {0}` applies it", path.display());
        failure.hint = Some(match failure.hint {
            Some(hint) => format!("{hint}\nhint: {kept}"),
            None => kept,
        });
        failure
    }
}
