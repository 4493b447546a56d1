//! Which tests there are, and which statements they say they prove.

use crate::tidy::{File, Violation, has_ending};

/// A test function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) path: String,
    pub(super) name: String,
}

/// A statement that a test says it proves.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Annotation {
    pub(super) identifier: String,
    pub(super) test: Test,
    /// File and line of the comment.
    pub(super) place: String,
}

#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) tests: Vec<Test>,
    pub(super) annotations: Vec<Annotation>,
}

/// Reads all Rust files. Annotations that stand above no test, or twice above one, are violations.
pub(super) fn read(files: &[File], violations: &mut Vec<Violation>) -> Found {
    let mut found = Found::default();
    for file in files {
        if has_ending(&file.path, "rs") && !file.path.contains("/generated/") {
            read_file(file, &mut found, violations);
        }
    }
    found
}

fn read_file(file: &File, found: &mut Found, violations: &mut Vec<Violation>) {
    // Comments and attributes of the item that follows.
    let mut pending: Vec<(&str, String)> = Vec::new();
    let mut is_test = false;
    for (number, line) in file.text.lines().enumerate() {
        let line = line.trim_start();
        let place = || format!("{}:{}", file.path, number + 1);
        if let Some(comment) = line.strip_prefix("///") {
            for identifier in identifiers(comment) {
                if pending.iter().any(|(other, _)| *other == identifier) {
                    let text = format!("{identifier} stands twice above one test");
                    violations.push(Violation::new("conformance", place(), text));
                } else {
                    pending.push((identifier, place()));
                }
            }
            continue;
        }
        if line.starts_with("#[") {
            is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
            continue;
        }
        match name(line) {
            Some(name) if is_test => {
                let test = Test { path: file.path.clone(), name: name.to_owned() };
                found.annotations.extend(pending.drain(..).map(|(identifier, place)| Annotation {
                    identifier: identifier.to_owned(),
                    test: test.clone(),
                    place,
                }));
                found.tests.push(test);
            }
            _ => {
                for (identifier, place) in pending.drain(..) {
                    let text = format!("{identifier} stands above no test");
                    violations.push(Violation::new("conformance", place, text));
                }
            }
        }
        is_test = false;
    }
}

/// What stands in square brackets and begins as a statement's identifier does.
fn identifiers(comment: &str) -> impl Iterator<Item = &str> {
    let brackets = comment.split('[').skip(1).filter_map(|rest| rest.split_once(']'));
    brackets
        .map(|(inside, _)| inside)
        .filter(|inside| inside.starts_with("MQTT-") || inside.starts_with("MQTT5-"))
}

/// The name of a function that begins in this line.
fn name(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let is_function = before.split_whitespace().all(|word| matches!(word, "async" | "pub" | "pub(crate)"));
    let end = after.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    is_function.then_some(&after[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> (Vec<String>, Vec<String>) {
        let mut violations = Vec::new();
        let file = File { path: "a.rs".to_owned(), text: text.to_owned() };
        let found = read(&[file], &mut violations);
        let annotations = found.annotations.iter();
        let annotations =
            annotations.map(|one| format!("{} {} {}", one.place, one.identifier, one.test.name)).collect();
        (annotations, violations.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn annotations_belong_to_the_test_below_them() {
        let text = "/// [MQTT-1.0.0-1] [MQTT5-1.0.0-2]\n/// More, see [`Thing`].\n#[tokio::test(flavor = \"a\")]\n\
                    async fn first() {\n    fn inner() {}\n}\n\n#[test]\nfn second((a, b) in all()) {}\n";
        let (annotations, violations) = found(text);
        assert_eq!(annotations, ["a.rs:1 MQTT-1.0.0-1 first", "a.rs:1 MQTT5-1.0.0-2 first"]);
        assert_eq!(violations, [""; 0]);
    }

    #[test]
    fn annotations_above_no_test_and_twice_above_one_are_found() {
        let (annotations, violations) = found("/// [MQTT-1.0.0-1]\nfn helper() {}\n");
        assert_eq!(annotations, [""; 0]);
        assert_eq!(violations, ["conformance: a.rs:1: MQTT-1.0.0-1 stands above no test"]);
        let (_, violations) = found("/// [MQTT-1.0.0-1] [MQTT-1.0.0-1]\n#[test]\nfn a() {}\n");
        assert_eq!(violations, ["conformance: a.rs:1: MQTT-1.0.0-1 stands twice above one test"]);
    }
}
