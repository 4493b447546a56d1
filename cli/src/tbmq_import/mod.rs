//! Integrations of a TBMQ installation: from its REST API, from a file with its JSON, or from its database.

pub(crate) mod database;
pub(crate) mod differences;
pub(crate) mod rest;

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};
use uuid::Uuid;

use crate::{document::Document, failure::Failure, manifest};

/// An integration as TBMQ holds it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    /// With TBMQ's id, and the configuration byte for byte.
    pub(crate) document: Document,
    /// What `additionalInfo` holds besides the description.
    pub(crate) other_info: Vec<String>,
}

/// TBMQ's JSON (spec §7.3); what it adds in later versions is left aside.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    id: Option<Uuid>,
    name: Option<String>,
    r#type: Option<String>,
    enabled: Option<bool>,
    configuration: Option<Box<RawValue>>,
    additional_info: Option<Box<RawValue>>,
}

impl Entry {
    /// Reads one integration of TBMQ's REST API.
    pub(crate) fn of_json(text: &str) -> Result<Self, String> {
        let wire: Wire =
            serde_json::from_str(text).map_err(|error| format!("is not an integration of TBMQ: {error}"))?;
        Self::of(
            wire.id,
            wire.name,
            wire.r#type,
            wire.enabled,
            wire.configuration.as_ref().map(|raw| raw.get().to_owned()),
            wire.additional_info.as_ref().map(|raw| raw.get()),
        )
    }

    /// Takes the parts of an integration; those that TBMQ can't do without must be there.
    pub(crate) fn of(
        id: Option<Uuid>,
        name: Option<String>,
        kind: Option<String>,
        enabled: Option<bool>,
        configuration: Option<String>,
        additional_info: Option<&str>,
    ) -> Result<Self, String> {
        let called = name.clone().unwrap_or_default();
        let missing = |what: &str| format!("{called:?} has no {what}");
        let (description, other_info) = additional_info.map_or_else(Default::default, info);
        let document = Document {
            uid: id,
            display_name: name.ok_or_else(|| missing("name"))?,
            kind: kind.ok_or_else(|| missing("type"))?,
            enabled: enabled.unwrap_or(false),
            configuration_json: configuration
                .filter(|text| text != "null")
                .ok_or_else(|| missing("configuration"))?,
            description,
            ..Document::default()
        };
        Ok(Self { document, other_info })
    }
}

/// The description, and the names of everything else.
fn info(text: &str) -> (String, Vec<String>) {
    let info: Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
    let description = info.get("description").and_then(Value::as_str).unwrap_or_default().to_owned();
    (description, info.into_iter().map(|(name, _)| name).filter(|name| name != "description").collect())
}

/// Reads a file with an integration, an array of them, or a page of TBMQ's REST API; `-` is stdin.
pub(crate) fn of_file(path: &Path) -> Result<Vec<Result<Entry, String>>, Failure> {
    let text = manifest::text_at(path)?;
    let items =
        manifest::items(&text).map_err(|problem| Failure::usage(format!("{}: {problem}", path.display())))?;
    Ok(items.iter().map(|item| Entry::of_json(item)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_integration_of_tbmq_keeps_its_id_and_its_bytes() {
        let text = r#"{"id":"0e2ffa8e-52c9-4a3f-8d0f-1f2e3d4c5b6a","createdTime":1,"name":"My HTTP","type":"HTTP",
            "enabled":true,"disconnectedTime":0,"configuration":{ "topicFilters" : ["a"], "n":1.50 },
            "additionalInfo":{"description":"to the warehouse","color":"red"},"status":null,"ofLater":1}"#;
        let entry = Entry::of_json(text).unwrap();
        assert_eq!(entry.document.uid.unwrap().to_string(), "0e2ffa8e-52c9-4a3f-8d0f-1f2e3d4c5b6a");
        assert_eq!(entry.document.configuration_json, r#"{ "topicFilters" : ["a"], "n":1.50 }"#);
        assert_eq!((entry.document.description.as_str(), entry.document.enabled), ("to the warehouse", true));
        assert_eq!(entry.other_info, ["color"]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let problem = |text: &str| Entry::of_json(text).unwrap_err();
        assert_eq!(problem(r#"{"name":"x","type":"HTTP"}"#), "\"x\" has no configuration");
        assert_eq!(
            problem(r#"{"name":"x","type":"HTTP","configuration":null}"#),
            "\"x\" has no configuration"
        );
        assert_eq!(problem(r#"{"type":"HTTP","configuration":{}}"#), "\"\" has no name");
        assert!(problem("[]").starts_with("is not an integration of TBMQ"));
        let entry =
            Entry::of_json(r#"{"name":"x","type":"HTTP","configuration":{},"additionalInfo":null}"#).unwrap();
        assert!(!entry.document.enabled, "as in TBMQ");
    }
}
