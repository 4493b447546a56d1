//! Files that describe integrations: many documents in a file, many files in a directory.
//!
//! A file holds JSON (one value after another) or YAML (documents apart by `---`); a value is an integration, an array of
//! them, or a page of TBMQ's REST API (`{"data": [...]}`). Of a directory all files named `*.json`, `*.yaml` and `*.yml`
//! are read, also those in directories below, in the order of their names; hidden ones are left out.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::Deserialize as _;
use serde_json::value::RawValue;

use crate::{document::Document, failure::Failure};

/// Bytes of one file.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Directories within directories.
const DEPTH_MAX: usize = 32;

/// A document and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Manifest {
    /// Path of the file, with the number of the document where it has several.
    pub(crate) place: String,
    pub(crate) document: Document,
}

/// What was read of files.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Manifests {
    /// In the order of the files.
    pub(crate) read: Vec<Manifest>,
    /// What does not describe an integration.
    pub(crate) unreadable: Vec<Failure>,
}

impl Manifests {
    /// Reads files, directories, and stdin for `-`.
    ///
    /// # Errors
    /// When a file can't be read, there is no document at all, or two describe the same integration.
    pub(crate) fn read(paths: &[PathBuf]) -> Result<Self, Failure> {
        let mut manifests = Self::default();
        for path in paths {
            if path.as_os_str() == "-" {
                manifests.add("-", &text_of(io::stdin().lock(), "stdin")?);
                continue;
            }
            let mut files = Vec::new();
            files_of(path, &mut files)?;
            for file in files {
                let name = file.display().to_string();
                let opened = File::open(&file).map_err(|error| unread(&name, &error))?;
                manifests.add(&name, &text_of(opened, &name)?);
            }
        }
        if manifests.read.is_empty() && manifests.unreadable.is_empty() {
            let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
            return Err(Failure::usage(format!("there is no document in {}", paths.join(", ")))
                .hint("in a directory, files named *.json, *.yaml and *.yml are read"));
        }
        manifests.refuse_twins()?;
        Ok(manifests)
    }

    fn add(&mut self, name: &str, text: &str) {
        let items = match items(text) {
            Ok(items) => items,
            Err(problem) => {
                self.unreadable.push(Failure::usage(format!("{name}: {problem}")));
                return;
            }
        };
        let several = items.len() > 1;
        for (index, item) in items.iter().enumerate() {
            let place = if several { format!("{name} [{}]", index + 1) } else { name.to_owned() };
            match Document::parse(item) {
                Ok(document) => self.read.push(Manifest { place, document }),
                Err(problems) => {
                    let mut failure =
                        Failure::usage(format!("{place} does not describe an integration")).hint(
                            "a document is {displayName, type, enabled, configuration, labels, description} or an \
                             integration exported by TBMQ",
                        );
                    failure.violations = problems;
                    self.unreadable.push(failure);
                }
            }
        }
    }

    fn refuse_twins(&self) -> Result<(), Failure> {
        let mut by_name = HashMap::new();
        let mut by_uid = HashMap::new();
        for Manifest { place, document } in &self.read {
            let name = document.display_name.trim();
            let other = by_name.insert(name, place).filter(|_| !name.is_empty());
            let twin = match document.uid {
                Some(uid) => other.or_else(|| by_uid.insert(uid, place)),
                None => other,
            };
            if let Some(other) = twin {
                return Err(Failure::usage(format!(
                    "{other} and {place} describe the same integration, {name:?}"
                ))
                .hint("names and uids are unique; nothing was changed"));
            }
        }
        Ok(())
    }
}

fn unread(name: &str, error: &io::Error) -> Failure {
    Failure::usage(format!("can't read {name}: {error}"))
}

pub(crate) fn text_of(from: impl Read, name: &str) -> Result<String, Failure> {
    let mut text = String::new();
    let bytes =
        from.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| unread(name, &error))?;
    if bytes as u64 > FILE_BYTES_MAX {
        return Err(Failure::usage(format!("{name} has more than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// The text of one file, or of stdin for `-`.
pub(crate) fn text_at(path: &Path) -> Result<String, Failure> {
    let name = path.display().to_string();
    if name == "-" {
        return text_of(io::stdin().lock(), "stdin");
    }
    text_of(File::open(path).map_err(|error| unread(&name, &error))?, &name)
}

/// The file itself, whatever its name, or those of a directory.
fn files_of(path: &Path, into: &mut Vec<PathBuf>) -> Result<(), Failure> {
    let about = std::fs::metadata(path).map_err(|error| unread(&path.display().to_string(), &error))?;
    if about.is_dir() {
        return directory(path, into, 0);
    }
    into.push(path.to_owned());
    Ok(())
}

fn directory(path: &Path, into: &mut Vec<PathBuf>, depth: usize) -> Result<(), Failure> {
    let name = path.display().to_string();
    if depth > DEPTH_MAX {
        return Err(Failure::usage(format!("{name} lies more than {DEPTH_MAX} directories deep")));
    }
    let entries = std::fs::read_dir(path).map_err(|error| unread(&name, &error))?;
    let mut entries: Vec<_> = entries.collect::<Result<_, _>>().map_err(|error| unread(&name, &error))?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        // A link to a directory may lead round in circles; a link to a file is how secrets and settings are mounted.
        let kind = entry.file_type().map_err(|error| unread(&path.display().to_string(), &error))?;
        let is_document =
            path.extension().is_some_and(|end| ["json", "yaml", "yml"].iter().any(|known| end == *known));
        if kind.is_dir() {
            directory(&path, into, depth + 1)?;
        } else if is_document && (kind.is_file() || path.is_file()) {
            into.push(path);
        }
    }
    Ok(())
}

/// The JSON text of every integration in a text; what was JSON stays byte for byte.
pub(crate) fn items(text: &str) -> Result<Vec<String>, String> {
    let mut items = Vec::new();
    let is_json = text.trim_start().starts_with(['{', '[']);
    let values: Result<Vec<Box<RawValue>>, _> =
        serde_json::Deserializer::from_str(text).into_iter().collect();
    match values {
        Ok(values) if is_json => {
            for value in values {
                flatten(&value, &mut items)?;
            }
        }
        // A flow mapping may be YAML: { displayName: x }.
        other => {
            for document in serde_norway::Deserializer::from_str(text) {
                let value = serde_json::Value::deserialize(document).map_err(|error| match &other {
                    Err(json) if is_json => format!("it is not JSON: {json}"),
                    _ => format!("it is neither JSON nor YAML: {error}"),
                })?;
                if !value.is_null() {
                    let raw = serde_json::value::to_raw_value(&value).map_err(|error| error.to_string())?;
                    flatten(&raw, &mut items)?;
                }
            }
        }
    }
    Ok(items)
}

/// A page of TBMQ's REST API.
#[derive(serde::Deserialize)]
struct Page {
    data: Vec<Box<RawValue>>,
}

fn flatten(value: &RawValue, into: &mut Vec<String>) -> Result<(), String> {
    let text = value.get();
    let within = if text.starts_with('[') {
        serde_json::from_str::<Vec<Box<RawValue>>>(text).map_err(|error| error.to_string())?
    } else if let Ok(page) = serde_json::from_str::<Page>(text) {
        page.data
    } else {
        into.push(text.to_owned());
        return Ok(());
    };
    into.extend(within.into_iter().map(|value| value.get().to_owned()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> String {
        format!(r#"{{"displayName":"{name}","type":"HTTP","configuration":{{ "n": 1.50 }}}}"#)
    }

    fn names(manifests: &Manifests) -> Vec<(&str, &str)> {
        manifests
            .read
            .iter()
            .map(|one| (one.place.rsplit('/').next().unwrap(), one.document.display_name.as_str()))
            .collect()
    }

    #[test]
    fn json_values_arrays_and_pages_of_tbmq_keep_their_bytes() {
        let (a, b) = (named("a"), named("b"));
        for text in [
            format!("{a}\n{b}"),
            format!("[{a}, {b}]"),
            format!(r#"{{"data":[{a},{b}],"totalPages":1,"totalElements":2,"hasNext":false}}"#),
        ] {
            assert_eq!(items(&text).unwrap(), [a.clone(), b.clone()], "{text}");
        }
    }

    #[test]
    fn yaml_documents_and_lists_are_taken_apart_and_empty_ones_left_out() {
        let text = "# only a remark\n---\ndisplayName: a\n---\n- displayName: b\n- displayName: c\n---\n";
        let expected = [r#"{"displayName":"a"}"#, r#"{"displayName":"b"}"#, r#"{"displayName":"c"}"#];
        assert_eq!(items(text).unwrap(), expected);
        assert_eq!(items("").unwrap(), [""; 0]);
        assert!(items("a: [").unwrap_err().starts_with("it is neither JSON nor YAML"));
        assert!(items("{\"a\": 1,").unwrap_err().starts_with("it is not JSON"));
    }

    #[test]
    fn a_directory_is_read_in_the_order_of_names_without_hidden_and_other_files() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("b.yaml", &format!("{}\n---\n{}\n", named("b1"), named("b2")));
        write("a/z.json", &named("z"));
        write("c.yml", &named("c"));
        write("c.txt", "no document");
        write(".hidden/x.json", "no document");
        std::os::unix::fs::symlink(folder.path(), folder.path().join("loop")).unwrap();
        let manifests = Manifests::read(&[folder.path().to_owned()]).unwrap();
        assert_eq!(
            names(&manifests),
            [("z.json", "z"), ("b.yaml [1]", "b1"), ("b.yaml [2]", "b2"), ("c.yml", "c")]
        );
    }

    #[test]
    fn one_bad_document_does_not_hide_the_others_and_nothing_at_all_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.json"), format!("{}{{\"displayName\":\"b\"}}", named("a")))
            .unwrap();
        std::fs::write(folder.path().join("b.yaml"), "a: [").unwrap();
        let manifests = Manifests::read(&[folder.path().to_owned()]).unwrap();
        assert_eq!(names(&manifests), [("a.json [1]", "a")]);
        assert_eq!(manifests.unreadable.len(), 2, "{:?}", manifests.unreadable);
        assert!(manifests.unreadable[0].message.ends_with("a.json [2] does not describe an integration"));
        let empty = tempfile::tempdir().unwrap();
        assert!(
            Manifests::read(&[empty.path().to_owned()])
                .unwrap_err()
                .message
                .starts_with("there is no document")
        );
        assert!(Manifests::read(&[empty.path().join("none")]).unwrap_err().message.starts_with("can't read"));
    }

    #[test]
    fn two_documents_of_one_integration_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let uid = "0e2ffa8e-52c9-4a3f-8d0f-1f2e3d4c5b6a";
        let with = |name: &str| {
            format!(r#"{{"uid":"{uid}","displayName":"{name}","type":"HTTP","configuration":{{}}}}"#)
        };
        for (a, b) in [(named("x"), named(" x")), (with("x"), with("y"))] {
            std::fs::write(folder.path().join("a.json"), a).unwrap();
            std::fs::write(folder.path().join("b.json"), b).unwrap();
            let failure = Manifests::read(&[folder.path().to_owned()]).unwrap_err();
            assert!(failure.message.contains("describe the same integration"), "{}", failure.message);
        }
    }
}
