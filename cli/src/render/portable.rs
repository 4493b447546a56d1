//! An integration as a document that can be applied again: without what the server adds.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;
use tbmq_proto::control::Integration;

use crate::failure::Failure;

/// What `export` writes and `apply` reads.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Portable {
    display_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    uid: String,
    r#type: String,
    enabled: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    configuration: Box<RawValue>,
}

impl From<&Integration> for Portable {
    fn from(from: &Integration) -> Self {
        Self {
            display_name: from.display_name.clone(),
            uid: from.uid.clone(),
            r#type: from.r#type.clone(),
            enabled: from.enabled,
            description: from.description.clone(),
            labels: from.labels.clone().into_iter().collect(),
            configuration: super::json::raw(&from.configuration_json),
        }
    }
}

impl Portable {
    /// As YAML, with the configuration taken apart.
    pub(crate) fn yaml(&self) -> Result<String, Failure> {
        // By way of a JSON value, which knows how to take a raw configuration apart.
        let value = serde_json::to_value(self).map_err(|error| Failure::bug(error.to_string()))?;
        serde_norway::to_string(&value).map_err(|error| Failure::bug(error.to_string()))
    }

    /// As JSON, with the configuration byte for byte.
    pub(crate) fn json(&self) -> Result<String, Failure> {
        let text = serde_json::to_string_pretty(self).map_err(|error| Failure::bug(error.to_string()))?;
        Ok(text + "\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    #[test]
    fn what_is_exported_loads_again_with_nothing_that_the_server_adds() {
        let from = Integration {
            name: "integrations/0e2ffa8e-52c9-4a3f-8d0f-1f2e3d4c5b6a".to_owned(),
            uid: "0e2ffa8e-52c9-4a3f-8d0f-1f2e3d4c5b6a".to_owned(),
            display_name: "sensors: \"no\"".to_owned(),
            r#type: "HTTP".to_owned(),
            configuration_json: r#"{ "topicFilters":["a/#"],  "n":1.0, "s":"on", "k":"01" }"#.to_owned(),
            labels: [("zone".to_owned(), "a".to_owned())].into(),
            description: "two\nlines".to_owned(),
            revision: 7,
            etag: "\"7\"".to_owned(),
            ..Integration::default()
        };
        let portable = Portable::from(&from);
        let json = Document::parse(&portable.json().unwrap()).unwrap();
        assert_eq!(json.configuration_json, from.configuration_json);
        let yaml = Document::parse(&portable.yaml().unwrap()).unwrap();
        assert_eq!(yaml.configuration_json, r#"{"topicFilters":["a/#"],"n":1.0,"s":"on","k":"01"}"#);
        for document in [json, yaml] {
            assert_eq!(document.etag, "");
            let again = document.into_integration();
            assert_eq!(
                (again.name, again.display_name, again.labels, again.description, again.enabled),
                (
                    from.name.clone(),
                    from.display_name.clone(),
                    from.labels.clone(),
                    from.description.clone(),
                    false
                )
            );
        }
    }
}
