//! `data-plane/CONFORMANCE.md`: which test proves which normative statement of MQTT, and which behaviour of TBMQ.
//!
//! Statements stand in `data-plane/mqtt/statements`, one a line, and tests say which they prove in doc comments
//! directly above their attribute: `/// [MQTT-3.1.4-3] [MQTT5-3.1.4-3]`.

mod annotations;
mod statements;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::Path,
};

use anyhow::{Result, bail, ensure};

use crate::tidy::{self, File, Violation};
use annotations::{Annotation, Test};
use statements::{Behaviour, Statement};

/// The file that is written.
const TABLE: &str = "data-plane/CONFORMANCE.md";

/// TBMQ's behaviours, and what proves them.
const BEHAVIOURS: &str = "data-plane/mqtt/statements/tbmq.txt";

/// The share of statements that bind a server and have a test, at least.
const TESTED_PERCENT_MIN: usize = 95;

const ENDLESS: &str = "a string takes all that is written";

/// A standard: its name, what its statements' identifiers begin with, and where they stand.
struct Standard {
    name: &'static str,
    prefix: &'static str,
    path: &'static str,
}

const STANDARDS: &[Standard] = &[
    Standard { name: "MQTT 3.1.1", prefix: "MQTT-", path: "data-plane/mqtt/statements/v311.txt" },
    Standard { name: "MQTT 5.0", prefix: "MQTT5-", path: "data-plane/mqtt/statements/v5.txt" },
];

/// Writes the table, or with `check` fails when it is not what it should be.
pub(crate) fn run(root: &Path, check: bool) -> Result<()> {
    let files = tidy::tracked_files(root)?;
    let (text, violations) = generate(&files);
    if check {
        ensure!(is_current(&files, &text), "{TABLE} is out of date; run `cargo xtask gen`");
        return Ok(());
    }
    for violation in &violations {
        println!("{violation}");
    }
    std::fs::write(root.join(TABLE), text)?;
    if violations.is_empty() { Ok(()) } else { bail!("{} broken annotations", violations.len()) }
}

/// Rule `conformance`: annotations name statements that there are, each statement is described once, and the table is
/// up to date.
pub(crate) fn check(files: &[File]) -> Vec<Violation> {
    let (text, mut violations) = generate(files);
    if violations.is_empty() && !is_current(files, &text) {
        violations.push(Violation::new("conformance", TABLE, "is out of date; run `cargo xtask gen`"));
    }
    violations
}

fn is_current(files: &[File], text: &str) -> bool {
    files.iter().any(|file| file.path == TABLE && file.text == text)
}

/// The table's text, and what is wrong with what it is made of.
fn generate(files: &[File]) -> (String, Vec<Violation>) {
    let mut violations = Vec::new();
    let found = annotations::read(files, &mut violations);
    let mut proofs: BTreeMap<&str, Vec<&Test>> = BTreeMap::new();
    for Annotation { identifier, test, .. } in &found.annotations {
        proofs.entry(identifier).or_default().push(test);
    }
    let mut known = BTreeSet::new();
    let (mut shares, mut tables) = (String::new(), String::new());
    for standard in STANDARDS {
        let all = statements::read(files, standard.path, standard.prefix, &mut violations);
        known.extend(all.iter().map(|statement| statement.identifier.clone()));
        judge(standard, &all, &proofs, &mut violations);
        shares.push_str(&share(standard.name, &all, &proofs));
        tables.push_str(&table(standard.name, &all, &proofs));
    }
    for Annotation { identifier, place, .. } in &found.annotations {
        if !known.contains(identifier) {
            let text = format!("{identifier} is no statement of data-plane/mqtt/statements");
            violations.push(Violation::new("conformance", place, text));
        }
    }
    let behaviours = statements::read_behaviours(files, BEHAVIOURS, &mut violations);
    let checklist = checklist(&behaviours, &found.tests, &mut violations);
    let text = format!("{HEAD}{shares}{}{TAIL}{tables}{checklist}", behaviours_share(&behaviours));
    (text, violations)
}

/// Each statement that binds a server has a test or a reason for having none, and few have a reason.
fn judge(
    standard: &Standard,
    all: &[Statement],
    proofs: &BTreeMap<&str, Vec<&Test>>,
    violations: &mut Vec<Violation>,
) {
    let mut fail = |text: String| violations.push(Violation::new("conformance", standard.path, text));
    let bound: Vec<_> = all.iter().filter(|statement| statement.binds_server).collect();
    let is_tested = |statement: &Statement| proofs.contains_key(&*statement.identifier);
    for statement in all {
        match (&statement.reason, is_tested(statement)) {
            (Some(_), true) => {
                fail(format!("{} has a test, and a reason for having none", statement.identifier));
            }
            (None, false) if statement.binds_server => {
                fail(format!("{} has no test, and no reason for having none", statement.identifier));
            }
            _ => {}
        }
    }
    let tested = bound.iter().filter(|statement| is_tested(statement)).count();
    if tested * 100 < bound.len() * TESTED_PERCENT_MIN {
        let share = percent(tested, bound.len());
        fail(format!(
            "{share} of what {} asks of a server is tested, at least {TESTED_PERCENT_MIN} %",
            standard.name
        ));
    }
}

const HEAD: &str = "# Conformance

Written by `cargo xtask gen`; do not edit. The statements are the numbered ones of the standards (their appendices B),
in our own words, in [mqtt/statements](mqtt/statements); a test names those that it proves in a comment above it,
`/// [MQTT-3.1.4-3] [MQTT5-3.1.4-3]` (`MQTT-` is 3.1.1, `MQTT5-` is 5.0), and `cargo xtask tidy` checks both.

| | all | for a server | tested | share | not tested, with a reason | gaps |
|---|--:|--:|--:|--:|--:|--:|
";

const TAIL: &str = "
Statements that only a client can keep or break are listed apart; where a test is named there, it shows what the broker
does when a client breaks them.
";

fn share(name: &str, all: &[Statement], proofs: &BTreeMap<&str, Vec<&Test>>) -> String {
    let bound: Vec<_> = all.iter().filter(|statement| statement.binds_server).collect();
    let tested = bound.iter().filter(|statement| proofs.contains_key(&*statement.identifier)).count();
    let excused = bound.iter().filter(|statement| statement.reason.is_some()).count();
    let (share, gaps) = (percent(tested, bound.len()), bound.len().saturating_sub(tested + excused));
    format!("| {name} | {} | {} | {tested} | {share} | {excused} | {gaps} |\n", all.len(), bound.len())
}

/// A share with one digit, rounded down: 100 % is all of them.
fn percent(part: usize, all: usize) -> String {
    let thousandths = part * 1000 / all.max(1);
    format!("{}.{} %", thousandths / 10, thousandths % 10)
}

fn table(name: &str, all: &[Statement], proofs: &BTreeMap<&str, Vec<&Test>>) -> String {
    let mut text = String::new();
    for (title, binds_server) in [(format!("{name}, server"), true), (format!("{name}, clients only"), false)]
    {
        write!(text, "\n## {title}\n\n| statement | what it asks | tests |\n|---|---|---|\n").expect(ENDLESS);
        for statement in all.iter().filter(|statement| statement.binds_server == binds_server) {
            let tests = match (proofs.get(&*statement.identifier), &statement.reason) {
                (Some(tests), _) => links(tests),
                (None, Some(reason)) => format!("none: {reason}"),
                (None, None) if binds_server => "**gap**".to_owned(),
                (None, None) => String::new(),
            };
            writeln!(text, "| {} | {} | {tests} |", statement.identifier, statement.gist).expect(ENDLESS);
        }
    }
    text
}

fn links(tests: &[&Test]) -> String {
    let mut tests: Vec<String> = tests.iter().map(|test| link(test)).collect();
    tests.sort();
    tests.dedup();
    tests.join("<br>")
}

fn link(test: &Test) -> String {
    let path = match test.path.strip_prefix("data-plane/") {
        Some(path) => path.to_owned(),
        None => format!("../{}", test.path),
    };
    format!("[{}]({path})", test.name)
}

fn behaviours_share(all: &[Behaviour]) -> String {
    let tested = all.iter().filter(|behaviour| !behaviour.tests.is_empty()).count();
    let excused = all.iter().filter(|behaviour| behaviour.reason.is_some()).count();
    let (share, gaps) = (percent(tested, all.len()), all.len() - tested - excused);
    let count = all.len();
    format!("| TBMQ's behaviours | {count} | {count} | {tested} | {share} | {excused} | {gaps} |\n")
}

fn checklist(all: &[Behaviour], tests: &[Test], violations: &mut Vec<Violation>) -> String {
    let mut text =
        "\n## TBMQ's behaviours\n\nWhat TBMQ's own tests assert of a broker (broker spec §10).\n\n\
                    | of | behaviour | tests |\n|---|---|---|\n"
            .to_owned();
    for behaviour in all {
        let mut found = Vec::new();
        for name in &behaviour.tests {
            let of_name: Vec<_> = tests.iter().filter(|test| test.name == *name).collect();
            if of_name.is_empty() {
                violations.push(Violation::new("conformance", BEHAVIOURS, format!("{name} is no test")));
            }
            found.extend(of_name);
        }
        let proof = match &behaviour.reason {
            _ if !found.is_empty() => links(&found),
            Some(reason) => format!("none: {reason}"),
            None => {
                let text = format!("`{}` has no test, and no reason for having none", behaviour.gist);
                violations.push(Violation::new("conformance", BEHAVIOURS, text));
                "**gap**".to_owned()
            }
        };
        writeln!(text, "| {} | {} | {proof} |", behaviour.of, behaviour.gist).expect(ENDLESS);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    fn texts(violations: &[Violation]) -> Vec<&str> {
        violations.iter().map(|violation| &*violation.text).collect()
    }

    /// Files with these statements of 3.1.1 and this test file.
    fn tree(v311: &str, tests: &str) -> Vec<File> {
        vec![
            file("data-plane/mqtt/statements/v311.txt", v311),
            file("data-plane/mqtt/statements/v5.txt", ""),
            file(BEHAVIOURS, ""),
            file("data-plane/tests/it/a.rs", tests),
        ]
    }

    const TWO: &str =
        "# c\n1.0.0-1 | server | One.\n1.0.0-2 | server | Two. | Why.\n1.0.0-3 | client | Three.\n";

    const TOO_FEW: &str = "50.0 % of what MQTT 3.1.1 asks of a server is tested, at least 95 %";

    #[test]
    fn an_annotated_test_proves_its_statements_and_the_rest_is_excused() {
        let (text, violations) =
            generate(&tree(TWO, "/// [MQTT-1.0.0-1]\n#[tokio::test]\nasync fn it_does() {}\n"));
        assert_eq!(texts(&violations), [TOO_FEW]);
        assert!(text.contains("| MQTT 3.1.1 | 3 | 2 | 1 | 50.0 % | 1 | 0 |"), "{text}");
        assert!(text.contains("| MQTT-1.0.0-1 | One. | [it_does](tests/it/a.rs) |"), "{text}");
        assert!(text.contains("| MQTT-1.0.0-2 | Two. | none: Why. |"), "{text}");
    }

    #[test]
    fn a_statement_without_a_test_and_without_an_excuse_is_a_gap() {
        let (text, violations) = generate(&tree("1.0.0-1 | server | One.\n1.0.0-3 | client | Three.\n", ""));
        assert!(text.contains("| MQTT-1.0.0-1 | One. | **gap** |"), "{text}");
        let gap = "MQTT-1.0.0-1 has no test, and no reason for having none";
        let share = "0.0 % of what MQTT 3.1.1 asks of a server is tested, at least 95 %";
        assert_eq!(texts(&violations), [gap, share]);
        assert_eq!(generate(&tree("1.0.0-3 | client | Three.\n", "")).1, []);
    }

    #[test]
    fn an_unknown_statement_and_one_with_both_a_test_and_an_excuse_are_found() {
        let tests =
            "/// [MQTT-1.0.0-9] [MQTT-1.0.0-1]\n#[test]\nfn a() {}\n/// [MQTT-1.0.0-2]\n#[test]\nfn b() {}\n";
        let (_, violations) = generate(&tree(TWO, tests));
        assert_eq!(
            texts(&violations),
            [
                "MQTT-1.0.0-2 has a test, and a reason for having none",
                "MQTT-1.0.0-9 is no statement of data-plane/mqtt/statements"
            ]
        );
        assert_eq!(violations[1].place, "data-plane/tests/it/a.rs:1");
    }

    #[test]
    fn a_behaviour_without_a_test_or_an_excuse_is_found() {
        let mut files = tree("", "#[test]\nfn a() {}\n");
        files[2].text =
            "KeepAlive | Zero is off. | a, b\nAuth | Later. | - | With issue 8.\nMore | Not yet. | -\n"
                .to_owned();
        let (text, violations) = generate(&files);
        let gap = "`Not yet.` has no test, and no reason for having none";
        assert_eq!(texts(&violations), ["b is no test", gap]);
        assert!(text.contains("| KeepAlive | Zero is off. | [a](tests/it/a.rs) |"), "{text}");
        assert!(text.contains("| Auth | Later. | none: With issue 8. |"), "{text}");
    }

    #[test]
    fn a_table_that_is_old_is_found() {
        let mut files = tree("", "");
        assert_eq!(texts(&check(&files)), ["is out of date; run `cargo xtask gen`"]);
        files.push(file(TABLE, &generate(&files).0));
        assert_eq!(check(&files), []);
    }
}
