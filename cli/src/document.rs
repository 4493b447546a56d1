//! Documents that describe an integration: ours, and those that TBMQ exports.
//!
//! | | ours (also what `-o json` prints) | TBMQ's (spec §7.3) |
//! |---|---|---|
//! | name | `displayName` | `name` |
//! | id | `uid`, or `name` as `integrations/<uid>` | `id` |
//! | enabled, when absent | true | false |
//! | description | `description` | `additionalInfo.description` |
//! | also read | `labels`, `etag` | - |
//!
//! A document with `displayName` is ours. The configuration of a JSON file is passed on byte for byte; YAML has no such
//! text, so it is written as compact JSON with the order of keys kept.

use std::{
    collections::{BTreeMap, HashMap},
    io::Read,
    path::Path,
};

use serde_json::value::RawValue;
use tbmq_proto::control::Integration;
use uuid::Uuid;

use crate::failure::Failure;

/// Bytes that a document may have; the server takes less.
const DOCUMENT_BYTES_MAX: u64 = 16 << 20;

const OURS: &[&str] = &["displayName", "type", "enabled", "configuration", "labels", "description"];
/// What the server adds to ours. Accepted, so that printed documents load; `status` and the times have no effect.
const OURS_ADDED: &[&str] =
    &["name", "uid", "etag", "status", "revision", "createTime", "updateTime", "disconnectedTime"];
const TBMQS: &[&str] = &[
    "id",
    "createdTime",
    "name",
    "type",
    "enabled",
    "disconnectedTime",
    "configuration",
    "additionalInfo",
    "status",
];

/// An integration as a document describes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Document {
    /// The id that it had where it was exported.
    pub(crate) uid: Option<Uuid>,
    /// Set in what `-o json` printed.
    pub(crate) etag: String,
    pub(crate) display_name: String,
    pub(crate) kind: String,
    pub(crate) enabled: bool,
    pub(crate) configuration_json: String,
    pub(crate) labels: HashMap<String, String>,
    pub(crate) description: String,
}

impl Document {
    /// Reads a file, or stdin for `-`.
    pub(crate) fn read(file: &Path) -> Result<Self, Failure> {
        let name = file.display().to_string();
        let mut text = String::new();
        let read = if name == "-" {
            std::io::stdin().take(DOCUMENT_BYTES_MAX + 1).read_to_string(&mut text)
        } else {
            std::fs::File::open(file)
                .and_then(|file| file.take(DOCUMENT_BYTES_MAX + 1).read_to_string(&mut text))
        };
        match read {
            Err(error) => Err(Failure::usage(format!("can't read {name}: {error}"))),
            Ok(bytes) if bytes as u64 > DOCUMENT_BYTES_MAX => {
                Err(Failure::usage(format!("{name} has more than {DOCUMENT_BYTES_MAX} bytes")))
            }
            Ok(_) => Self::parse(&text).map_err(|problems| {
                let mut failure = Failure::usage(format!("{name} does not describe an integration"));
                failure.violations = problems;
                failure.hint(
                    "a document is {displayName, type, enabled, configuration, labels, description} or an \
                              integration exported by TBMQ",
                )
            }),
        }
    }

    /// Reads JSON or YAML; fails with all problems as (field, text).
    pub(crate) fn parse(text: &str) -> Result<Self, Vec<(String, String)>> {
        let one = |text: String| vec![(String::new(), text)];
        // RawValue keeps the text of a value as it stands in the file.
        let raw: BTreeMap<String, Box<RawValue>> = if text.trim_start().starts_with('{') {
            match serde_json::from_str(text) {
                Ok(raw) => raw,
                // A flow mapping may be YAML: { displayName: x }.
                Err(error) => from_yaml(text).map_err(|_| one(format!("it is not JSON: {error}")))?,
            }
        } else {
            from_yaml(text).map_err(one)?
        };
        let mut fields = Fields { raw, problems: Vec::new() };
        let document =
            if fields.raw.contains_key("displayName") { ours(&mut fields) } else { tbmqs(&mut fields) };
        if fields.problems.is_empty() { Ok(document) } else { Err(fields.problems) }
    }

    /// The resource to be written.
    pub(crate) fn into_integration(self) -> Integration {
        Integration {
            name: self.uid.map(|uid| format!("integrations/{uid}")).unwrap_or_default(),
            display_name: self.display_name,
            r#type: self.kind,
            enabled: self.enabled,
            configuration_json: self.configuration_json,
            labels: self.labels,
            description: self.description,
            etag: self.etag,
            ..Integration::default()
        }
    }
}

fn from_yaml(text: &str) -> Result<BTreeMap<String, Box<RawValue>>, String> {
    let tree: BTreeMap<String, serde_json::Value> =
        serde_norway::from_str(text).map_err(|error| format!("it is neither JSON nor YAML: {error}"))?;
    tree.into_iter()
        .map(|(key, value)| match serde_json::value::to_raw_value(&value) {
            Ok(raw) => Ok((key, raw)),
            Err(error) => Err(error.to_string()),
        })
        .collect()
}

fn ours(fields: &mut Fields) -> Document {
    let known: Vec<_> = OURS.iter().chain(OURS_ADDED).copied().collect();
    fields.refuse_others(&known);
    let name: Option<String> = fields.take("name");
    let uid: Option<String> = fields.take("uid");
    let uid = uid.or_else(|| name.map(|name| name.strip_prefix("integrations/").unwrap_or(&name).to_owned()));
    Document {
        uid: fields.uid("uid", uid),
        etag: fields.take("etag").unwrap_or_default(),
        display_name: fields.take("displayName").unwrap_or_default(),
        kind: fields.required("type"),
        enabled: fields.take("enabled").unwrap_or(true),
        configuration_json: fields.configuration(),
        labels: fields.take("labels").unwrap_or_default(),
        description: fields.take("description").unwrap_or_default(),
    }
}

fn tbmqs(fields: &mut Fields) -> Document {
    fields.refuse_others(TBMQS);
    let id: Option<String> = fields.take("id");
    let info: Option<serde_json::Map<String, serde_json::Value>> = fields.take("additionalInfo");
    let description = info.as_ref().and_then(|info| info.get("description")).and_then(|text| text.as_str());
    Document {
        uid: fields.uid("id", id),
        etag: String::new(),
        display_name: fields.required("name"),
        kind: fields.required("type"),
        enabled: fields.take("enabled").unwrap_or(false),
        configuration_json: fields.configuration(),
        labels: HashMap::new(),
        description: description.unwrap_or_default().to_owned(),
    }
}

struct Fields {
    raw: BTreeMap<String, Box<RawValue>>,
    problems: Vec<(String, String)>,
}

impl Fields {
    fn refuse_others(&mut self, known: &[&str]) {
        for key in self.raw.keys().filter(|key| !known.contains(&key.as_str())) {
            self.problems.push((key.clone(), format!("is not known; fields are {}", known.join(", "))));
        }
    }

    /// An absent field and `null` are the same.
    fn take<T: serde::de::DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        let raw = self.raw.get(key)?;
        match serde_json::from_str(raw.get()) {
            Ok(value) => value,
            Err(error) => {
                let text = error.to_string();
                let text = text.split(" at line ").next().unwrap_or_default();
                self.problems.push((key.to_owned(), text.to_owned()));
                None
            }
        }
    }

    fn required(&mut self, key: &str) -> String {
        let before = self.problems.len();
        let text: Option<String> = self.take(key);
        if text.is_none() && self.problems.len() == before {
            self.problems.push((key.to_owned(), "is missing".to_owned()));
        }
        text.unwrap_or_default()
    }

    fn uid(&mut self, key: &str, text: Option<String>) -> Option<Uuid> {
        let text = text?;
        let uid = Uuid::parse_str(&text);
        if uid.is_err() {
            self.problems.push((key.to_owned(), format!("{text:?} is not a UUID")));
        }
        uid.ok()
    }

    fn configuration(&mut self) -> String {
        match self.raw.get("configuration").map(|raw| raw.get()) {
            Some(text) if text.starts_with('{') => text.to_owned(),
            Some("null") | None => {
                self.problems.push(("configuration".to_owned(), "is missing".to_owned()));
                String::new()
            }
            Some(_) => {
                self.problems.push(("configuration".to_owned(), "is not an object".to_owned()));
                String::new()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0e2ffa8e-52c9-4a3f-8d0f-1f2e3d4c5b6a";

    #[test]
    fn an_integration_exported_by_tbmq_loads_unchanged() {
        let text = format!(
            r#"{{"id":"{UID}","createdTime":1742554969254,"name":"My HTTP","type":"HTTP","enabled":true,"disconnectedTime":0,
                "configuration":{{ "topicFilters" : ["tbmq/#"],"clientConfiguration":{{"readTimeoutMs":0, "x":1.0e2}} }},
                "additionalInfo":{{"description":"to the warehouse"}},"status":{{"success":true}}}}"#
        );
        let expected = Document {
            uid: Some(UID.parse().unwrap()),
            display_name: "My HTTP".to_owned(),
            kind: "HTTP".to_owned(),
            enabled: true,
            configuration_json:
                r#"{ "topicFilters" : ["tbmq/#"],"clientConfiguration":{"readTimeoutMs":0, "x":1.0e2} }"#
                    .to_owned(),
            description: "to the warehouse".to_owned(),
            ..Document::default()
        };
        assert_eq!(Document::parse(&text), Ok(expected));
    }

    #[test]
    fn tbmqs_absent_values_are_as_in_tbmq() {
        let text =
            r#"{"id":null,"name":"n","type":"HTTP","configuration":{},"additionalInfo":null,"status":null}"#;
        let document = Document::parse(text).unwrap();
        assert_eq!((document.uid, document.enabled, document.description.as_str()), (None, false, ""));
    }

    #[test]
    fn our_own_form_is_enabled_unless_it_says_otherwise() {
        let yaml = "displayName: sensors\ntype: HTTP\nlabels: { zone: a }\nconfiguration:\n  topicFilters: [b/#, a]\n  clientConfiguration:\n    restEndpointUrl: http://x\n    n: 7\n";
        let document = Document::parse(yaml).unwrap();
        assert!(document.enabled);
        assert_eq!(document.labels["zone"], "a");
        assert_eq!(
            document.configuration_json,
            r#"{"topicFilters":["b/#","a"],"clientConfiguration":{"restEndpointUrl":"http://x","n":7}}"#
        );
    }

    #[test]
    fn a_flow_mapping_is_yaml() {
        let document = Document::parse("{ displayName: x, type: HTTP, configuration: { a: 1 } }").unwrap();
        assert_eq!(document.configuration_json, r#"{"a":1}"#);
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let text = r#"{"displayName":"x","enabled":"yes","configuration":[1],"uid":"7","lables":{}}"#;
        let problems = Document::parse(text).unwrap_err();
        let fields: Vec<_> = problems.iter().map(|(field, _)| field.as_str()).collect();
        assert_eq!(fields, ["lables", "uid", "type", "enabled", "configuration"], "{problems:?}");
    }

    #[test]
    fn what_is_no_document_is_refused_with_a_reason() {
        for text in ["", "[]", "- a", "{", "just text", "{\"name\": 1"] {
            assert!(Document::parse(text).is_err(), "{text}");
        }
    }
}
