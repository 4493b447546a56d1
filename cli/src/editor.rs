//! One document in an editor, opened again until it is accepted or given up.

use std::{io::Write as _, process::Command};

use crate::{
    failure::{ExitKind, Failure},
    render::note,
};

const HEADER: &str = "\
# Save and leave to have this validated and saved; leave without a change, or with an empty file, to cancel.
# Lines that begin with '#' are ignored.
";

/// What is edited, and how.
#[derive(Debug)]
pub(crate) struct Editing<'a> {
    /// More lines for the head of the file, each beginning with `#`.
    pub(crate) header: &'a str,
    /// The command that takes the file with `-f` when it could not be saved.
    pub(crate) command: &'a str,
}

impl Editing<'_> {
    /// Opens the document in the editor; `save` gets what was made of it, and answers nothing when nothing differs.
    /// Says so on stderr when nothing was changed.
    pub(crate) async fn run<T>(
        &self,
        document: String,
        save: impl AsyncFn(&str) -> Result<Option<T>, Failure>,
    ) -> Result<Option<T>, Failure> {
        let mut draft = Draft::write(document)?;
        let mut problem = String::new();
        loop {
            let before = draft.show(self.header, &problem)?;
            if let Err(failure) = draft.open() {
                return Err(draft.keep(failure, self.command));
            }
            let text = match draft.read() {
                Ok(text) => text,
                Err(failure) => return Err(draft.keep(failure, self.command)),
            };
            let untouched = text == before || draft.body.trim().is_empty();
            if untouched && problem.is_empty() {
                note("cancelled; nothing was changed");
                return Ok(None);
            }
            if untouched {
                return Err(draft.keep(Failure::refused("cancelled; nothing was changed"), self.command));
            }
            match save(&draft.body).await {
                Ok(Some(changed)) => return Ok(Some(changed)),
                Ok(None) => {
                    note("nothing was changed");
                    return Ok(None);
                }
                // With the same document it would be refused again, whatever stands in it.
                Err(failure) if !is_for_the_editor(&failure) => return Err(draft.keep(failure, self.command)),
                Err(failure) => problem = failure.text(),
            }
        }
    }
}

/// Whether another document may be accepted.
fn is_for_the_editor(failure: &Failure) -> bool {
    let lasting = ["ETAG_MISMATCH", "NOT_FOUND", "DEPENDENCY_UNAVAILABLE", "OVERLOADED"];
    let is_lasting = failure.reason.as_deref().is_some_and(|reason| lasting.contains(&reason));
    !is_lasting && matches!(failure.kind, ExitKind::Refused | ExitKind::Usage)
}

/// The file in the editor. It is removed at the end unless it is kept.
struct Draft {
    file: tempfile::TempPath,
    /// The document without what we say about it.
    body: String,
}

impl Draft {
    fn write(body: String) -> Result<Self, Failure> {
        let file = tempfile::Builder::new()
            .prefix("tbmqctl-edit-")
            .suffix(".yaml")
            .tempfile()
            .map_err(|error| Failure::usage(format!("can't make a file to be edited: {error}")))?;
        Ok(Self { file: file.into_temp_path(), body })
    }

    /// Writes the document with what is to be said about it, and returns the whole text.
    fn show(&self, header: &str, problem: &str) -> Result<String, Failure> {
        let mut text = format!("{HEADER}{header}#\n");
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
    fn keep(self, mut failure: Failure, command: &str) -> Failure {
        let path = match self.file.keep() {
            Ok(path) => path,
            // It could not be kept under this name, and is not removed either.
            Err(error) => error.path.to_path_buf(),
        };
        let kept = format!("your document is kept in {0}: `{command} -f {0}` applies it", path.display());
        failure.hint = Some(match failure.hint {
            Some(hint) => format!("{hint}\nhint: {kept}"),
            None => kept,
        });
        failure
    }
}
