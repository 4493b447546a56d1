//! The files of statements and of behaviours: one a line, fields between ` | `.

use std::collections::BTreeSet;

use crate::tidy::{File, Violation};

/// A normative statement.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Statement {
    /// Its number after the standard's prefix.
    pub(super) identifier: String,
    /// Else it binds only clients.
    pub(super) binds_server: bool,
    pub(super) gist: String,
    /// Why no test proves it.
    pub(super) reason: Option<String>,
}

/// What TBMQ's own tests assert.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Behaviour {
    /// The test class that it is of.
    pub(super) of: String,
    pub(super) gist: String,
    /// Names of tests.
    pub(super) tests: Vec<String>,
    /// Why there are none.
    pub(super) reason: Option<String>,
}

fn lines<'a>(
    files: &'a [File],
    path: &str,
    violations: &mut Vec<Violation>,
) -> impl Iterator<Item = (usize, Vec<&'a str>)> + use<'a> {
    let file = files.iter().find(|file| file.path == path);
    if file.is_none() {
        violations.push(Violation::new("conformance", path, "is missing"));
    }
    let lines = file.map_or("", |file| &file.text).lines().enumerate();
    lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| (number + 1, line.split(" | ").map(str::trim).collect()))
}

/// Reads a standard's statements. Lines that are no statement, and statements that stand twice, are violations.
pub(super) fn read(
    files: &[File],
    path: &str,
    prefix: &str,
    violations: &mut Vec<Violation>,
) -> Vec<Statement> {
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for (line, fields) in lines(files, path, violations).collect::<Vec<_>>() {
        let mut fail =
            |text: String| violations.push(Violation::new("conformance", format!("{path}:{line}"), text));
        let (binds, reason) = match fields[..] {
            [_, binds, _] => (binds, None),
            [_, binds, _, reason] => (binds, Some(reason.to_owned())),
            _ => {
                fail("is not `number | server or client | gist | reason, if any`".to_owned());
                continue;
            }
        };
        if !matches!(binds, "server" | "client") {
            fail(format!("{binds} is neither server nor client"));
        }
        if !seen.insert(fields[0]) {
            fail(format!("{} is described twice", fields[0]));
            continue;
        }
        all.push(Statement {
            identifier: format!("{prefix}{}", fields[0]),
            binds_server: binds == "server",
            gist: fields[2].to_owned(),
            reason,
        });
    }
    all
}

/// Reads TBMQ's behaviours: `class | behaviour | tests, or - | reason for having none`.
pub(super) fn read_behaviours(files: &[File], path: &str, violations: &mut Vec<Violation>) -> Vec<Behaviour> {
    let mut all = Vec::new();
    for (line, fields) in lines(files, path, violations).collect::<Vec<_>>() {
        let (tests, reason) = match fields[..] {
            [_, _, "-", reason] => ("", Some(reason.to_owned())),
            [_, _, "-"] => ("", None),
            [_, _, tests] => (tests, None),
            _ => {
                let text = "is not `class | behaviour | tests` or `class | behaviour | - | reason`";
                violations.push(Violation::new("conformance", format!("{path}:{line}"), text));
                continue;
            }
        };
        let tests = tests.split(", ").filter(|name| !name.is_empty()).map(str::to_owned).collect();
        all.push(Behaviour { of: fields[0].to_owned(), gist: fields[1].to_owned(), tests, reason });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_that_stands_twice_or_is_no_statement_is_found() {
        let text = "1.0.0-1 | server | a\n1.0.0-1 | server | b\n1.0.0-2 | both | c\n1.0.0-3\n";
        let file = File { path: "s.txt".to_owned(), text: text.to_owned() };
        let mut violations = Vec::new();
        assert_eq!(read(&[file], "s.txt", "X-", &mut violations).len(), 2);
        let found: Vec<_> =
            violations.iter().map(|violation| (&*violation.place, &*violation.text)).collect();
        assert_eq!(
            found,
            [
                ("s.txt:2", "1.0.0-1 is described twice"),
                ("s.txt:3", "both is neither server nor client"),
                ("s.txt:4", "is not `number | server or client | gist | reason, if any`")
            ]
        );
    }

    #[test]
    fn a_file_that_is_missing_is_found() {
        let mut violations = Vec::new();
        assert_eq!(read(&[], "s.txt", "X-", &mut violations), []);
        assert_eq!(violations.len(), 1);
    }
}
