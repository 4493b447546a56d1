//! `cargo xtask tidy`: rules that a machine keeps, so that no reviewer has to.
//!
//! Each rule is a function from what it looks at to a list of [`Violation`]s, and has a test that breaks it.

mod arrows;
mod docs;
mod text;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::conformance;

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    /// The rule's name.
    pub(crate) rule: &'static str,
    /// File and line, or crate.
    pub(crate) place: String,
    /// What is wrong, and what would be right.
    pub(crate) text: String,
}

impl Violation {
    pub(crate) fn new(rule: &'static str, place: impl Into<String>, text: impl Into<String>) -> Self {
        Self { rule, place: place.into(), text: text.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.rule, self.place, self.text)
    }
}

/// A file of the tree: its path from the root, with `/`, and its text.
#[derive(Clone, Debug)]
pub(crate) struct File {
    pub(crate) path: String,
    pub(crate) text: String,
}

/// Whether a path ends in `.ending`.
pub(crate) fn has_ending(path: &str, ending: &str) -> bool {
    Path::new(path).extension().is_some_and(|found| found == ending)
}

/// Checks every rule and prints what is broken.
pub(crate) fn run(root: &Path) -> Result<()> {
    let files = tracked_files(root)?;
    let mut violations = text::check(&files);
    violations.extend(docs::check(&files, |path| root.join(path).exists()));
    violations.extend(arrows::check(&arrows::read(root)?));
    violations.extend(conformance::check(&files));
    for violation in &violations {
        println!("{violation}");
    }
    match violations.len() {
        0 => Ok(()),
        count => bail!("{count} broken rules"),
    }
}

/// Text files that git tracks or would track.
pub(crate) fn tracked_files(root: &Path) -> Result<Vec<File>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("git could not be started")?;
    let mut files = Vec::new();
    for path in String::from_utf8(output.stdout)?.lines() {
        let full: PathBuf = root.join(path);
        // Deleted but still tracked, or not text.
        let Ok(text) = fs::read_to_string(&full) else { continue };
        files.push(File { path: path.to_owned(), text });
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_tree_is_tidy() {
        super::run(&crate::root().unwrap()).unwrap();
    }
}
