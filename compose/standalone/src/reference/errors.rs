//! `docs/errors/`: a page for each reason of an error, whose head is made from the table in `control-plane/ERRORS.md`.

use std::{collections::BTreeSet, fmt::Write as _, fs};

use super::{check, path, read, table};

const FOLDER: &str = "docs/errors";

/// What a page says in its own words, below the part that is made.
const PARTS: [&str; 3] = ["## Cause", "## What to do", "## Example"];

/// A row of the table.
struct Reason {
    name: String,
    code: String,
    when: String,
    details: String,
    again: String,
}

fn reasons() -> Vec<Reason> {
    let page = read("control-plane/ERRORS.md");
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let reason = |line: &str| {
        let cells: Vec<String> =
            line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
        let [name, code, when, details, again] = <[String; 5]>::try_from(cells).expect("five columns");
        Reason { name: name.trim_matches('`').to_owned(), code, when, details, again }
    };
    rows.map(reason).collect()
}

impl Reason {
    fn file(&self) -> String {
        format!("{FOLDER}/{}.md", self.name)
    }

    /// What is made of a page.
    fn head(&self) -> String {
        let or = |text: &str, other: &str| if text.is_empty() { other.to_owned() } else { text.to_owned() };
        let rows = [
            ["status code".to_owned(), self.code.clone()],
            ["when".to_owned(), self.when.clone()],
            ["details beside `ErrorInfo`".to_owned(), or(&self.details, "none")],
            ["try again?".to_owned(), self.again.clone()],
        ];
        format!("# {}\n\n{}", self.name, table(["", ""], rows))
    }

    fn page(&self) -> String {
        let present = read(&self.file());
        let own = present.find(PARTS[0]).map_or_else(|| PARTS.join("\n\n\n"), |at| present[at..].to_owned());
        format!("{}\n{}\n", self.head(), own.trim_end())
    }
}

#[test]
fn every_reason_has_a_page_that_says_what_to_do_and_is_listed() {
    let mut unexplained = String::new();
    for reason in reasons() {
        check(&reason.file(), &reason.page());
        let page = read(&reason.file());
        for part in PARTS {
            let rest = page.split_once(&format!("{part}\n")).map_or("", |(_, rest)| rest);
            let text = rest.split("\n## ").next().unwrap_or_default().trim();
            if text.len() < 10 {
                writeln!(unexplained, "{}: nothing under {part:?}", reason.file()).unwrap();
            }
        }
    }
    assert!(unexplained.is_empty(), "{unexplained}");
    check_list(&reasons());
}

/// The page that lists all pages; there is no other in the folder.
fn check_list(reasons: &[Reason]) {
    let mut names: BTreeSet<String> = reasons.iter().map(|reason| format!("{}.md", reason.name)).collect();
    names.insert("README.md".to_owned());
    let mut page = "# Errors\n\nWhat a reason means, and what to do about it. A program looks at `ErrorInfo.reason`, whose domain is `tbmq`; \
                    `tbmqctl` prints it as `reason: …`. The rules are in [ERRORS.md](../../control-plane/ERRORS.md), what MQTT \
                    clients are answered in [MQTT reason codes](../mqtt-reason-codes.md).\n\n"
        .to_owned();
    let rows = reasons
        .iter()
        .map(|reason| [format!("[`{0}`]({0}.md)", reason.name), reason.code.clone(), reason.when.clone()]);
    page.push_str(&table(["reason", "code", "when"], rows));
    check(&format!("{FOLDER}/README.md"), &page);
    let files: BTreeSet<String> = fs::read_dir(path(FOLDER))
        .expect("the folder is there")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(files, names);
}
