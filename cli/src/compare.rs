//! Whether a document says something else than what is saved.
//!
//! Compared is what is meant: the order of keys and of topic filters, `1` or `1.0`, and whether a field with its default
//! is written down make no difference. Of secrets the server shows a mask. The mask in a document keeps what is saved, so
//! it makes no difference either; whether a secret that a document shows is the saved one, only the server can tell.

use std::{collections::BTreeMap, ops::Range};

use serde_json::{Map, Value, json, value::RawValue};
use tbmq_proto::control::Integration;

use crate::document::Document;

/// What is shown instead of a secret.
pub(crate) const MASK: &str = "********";

/// Path of an update mask for the whole configuration.
pub(crate) const CONFIGURATION: &str = "configuration_json";

/// A way into a document.
type Path = Vec<Step>;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Field(String),
    Item(usize),
}

/// A secret that a document shows and the server does not.
#[derive(Clone, Debug, PartialEq)]
struct Hidden {
    path: Path,
    value: Value,
}

/// How a document differs from what is saved.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Difference {
    /// Paths of an update mask.
    pub(crate) fields: Vec<&'static str>,
    hidden: Vec<Hidden>,
}

impl Difference {
    /// Compares; `schema` is that of the type's `clientConfiguration`.
    pub(crate) fn between(document: &Document, saved: &Integration, schema: Option<&Value>) -> Self {
        let mut fields = Vec::new();
        // The server takes names without the space around them.
        if document.display_name.trim() != saved.display_name {
            fields.push("display_name");
        }
        if document.kind != saved.r#type {
            fields.push("type");
        }
        if document.enabled != saved.enabled {
            fields.push("enabled");
        }
        let mut comparison = Comparison { path: Vec::new(), hidden: Vec::new() };
        if !comparison.configurations(&document.configuration_json, &saved.configuration_json, schema) {
            fields.push(CONFIGURATION);
        }
        if document.labels != saved.labels {
            fields.push("labels");
        }
        if document.description != saved.description {
            fields.push("description");
        }
        Self { fields, hidden: comparison.hidden }
    }

    /// The saved configuration with the secrets that the document shows, if it shows any: the server can tell whether
    /// that is what is saved.
    pub(crate) fn probe(&self, saved: &Integration) -> Option<String> {
        if self.hidden.is_empty() {
            return None;
        }
        let text = &saved.configuration_json;
        let mut places: Vec<(Range<usize>, String)> = self
            .hidden
            .iter()
            .filter_map(|hidden| Some((span(text, &hidden.path)?, hidden.value.to_string())))
            .collect();
        places.sort_by_key(|(span, _)| std::cmp::Reverse(span.start));
        let mut text = text.clone();
        for (span, secret) in places {
            text.replace_range(span, &secret);
        }
        Some(text)
    }

    /// Writes a text where the secrets stand that the document shows.
    pub(crate) fn mark(&self, configuration: &mut Value, text: &str) {
        for hidden in &self.hidden {
            let place = hidden.path.iter().try_fold(&mut *configuration, |value, step| match step {
                Step::Field(name) => value.get_mut(name),
                Step::Item(index) => value.get_mut(index),
            });
            if let Some(place) = place {
                *place = text.into();
            }
        }
    }
}

struct Comparison {
    path: Path,
    hidden: Vec<Hidden>,
}

impl Comparison {
    fn configurations(&mut self, new: &str, saved: &str, schema: Option<&Value>) -> bool {
        if new == saved {
            return true;
        }
        let (Ok(mut new), Ok(mut saved)) =
            (serde_json::from_str::<Value>(new), serde_json::from_str::<Value>(saved))
        else {
            return false;
        };
        for document in [&mut new, &mut saved] {
            in_any_order(document);
        }
        self.same(Some(&common(schema)), Some(&new), Some(&saved))
    }

    /// Compares to the end, so that all hidden secrets are found.
    fn same(&mut self, schema: Option<&Value>, new: Option<&Value>, saved: Option<&Value>) -> bool {
        let default = schema.and_then(|schema| schema.get("default"));
        let given = |value: Option<&Value>| value.filter(|value| !value.is_null()).cloned();
        let (new, saved) = (given(new), given(saved));
        match (&new, &saved) {
            (Some(new @ Value::String(text)), Some(Value::String(mask))) if mask == MASK => {
                if text == MASK {
                    return true;
                }
                if text.is_empty() {
                    return false;
                }
                self.hidden.push(Hidden { path: self.path.clone(), value: new.clone() });
                true
            }
            (Some(Value::Array(new)), Some(Value::Array(saved))) => {
                let items = schema.and_then(|schema| schema.get("items"));
                let mut same = new.len() == saved.len();
                for (index, (new, saved)) in new.iter().zip(saved).enumerate() {
                    same &= self.within(Step::Item(index), items, Some(new), Some(saved));
                }
                same
            }
            (Some(Value::Object(new)), Some(Value::Object(saved))) => self.objects(schema, new, saved),
            (Some(Value::Object(one)), None) | (None, Some(Value::Object(one))) => {
                let absent = default.and_then(Value::as_object).cloned().unwrap_or_default();
                default.is_some() && self.objects(schema, one, &absent)
            }
            (Some(Value::Number(new)), Some(Value::Number(saved))) => {
                new == saved || new.as_f64().is_some() && new.as_f64() == saved.as_f64()
            }
            (Some(one), None) | (None, Some(one)) => default == Some(one),
            (new, saved) => new == saved,
        }
    }

    fn objects(
        &mut self,
        schema: Option<&Value>,
        new: &Map<String, Value>,
        saved: &Map<String, Value>,
    ) -> bool {
        let mut same = true;
        let only_saved = saved.keys().filter(|name| !new.contains_key(*name));
        for name in new.keys().chain(only_saved) {
            let inner = schema.and_then(|schema| property(schema, name));
            same &= self.within(Step::Field(name.clone()), inner, new.get(name), saved.get(name));
        }
        same
    }

    fn within(
        &mut self,
        step: Step,
        schema: Option<&Value>,
        new: Option<&Value>,
        saved: Option<&Value>,
    ) -> bool {
        self.path.push(step);
        let same = self.same(schema, new, saved);
        self.path.pop();
        same
    }
}

/// The schema of a field, also when it stands in one of several forms.
fn property<'a>(schema: &'a Value, name: &str) -> Option<&'a Value> {
    let own = schema.get("properties").and_then(|properties| properties.get(name));
    own.or_else(|| {
        let forms = schema.get("oneOf").and_then(Value::as_array)?;
        forms.iter().find_map(|form| form.get("properties")?.get(name))
    })
}

/// The schema of a whole document.
fn common(client: Option<&Value>) -> Value {
    json!({ "properties": {
        "metadata": { "default": {} },
        "delivery": { "default": {}, "properties": { "deadLetter": { "default": false } } },
        "shards": { "default": 1 },
        "clientConfiguration": client,
    } })
}

/// Filters are a set.
fn in_any_order(document: &mut Value) {
    if let Some(filters) = document.get_mut("topicFilters").and_then(Value::as_array_mut) {
        filters.sort_by_key(ToString::to_string);
        filters.dedup();
    }
}

/// Where a value stands in a text.
fn span(text: &str, path: &[Step]) -> Option<Range<usize>> {
    let mut value: &RawValue = serde_json::from_str(text).ok()?;
    for step in path {
        value = match step {
            Step::Field(name) => {
                serde_json::from_str::<BTreeMap<String, &RawValue>>(value.get()).ok()?.get(name).copied()?
            }
            Step::Item(index) => {
                serde_json::from_str::<Vec<&RawValue>>(value.get()).ok()?.get(*index).copied()?
            }
        };
    }
    // `value` borrows from `text`, so its place follows from the addresses.
    let start = value.get().as_ptr() as usize - text.as_ptr() as usize;
    Some(start..start + value.get().len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Value {
        json!({ "properties": {
            "url": { "type": "string" },
            "timeout": { "default": 0 },
            "batch": { "default": { "max": 100 }, "properties": { "max": { "default": 100 } } },
            "credentials": { "default": { "type": "anonymous" }, "oneOf": [
                { "properties": { "type": { "const": "anonymous" } } },
                { "properties": { "password": { "writeOnly": true } } }
            ] }
        } })
    }

    const SAVED: &str = r#"{ "topicFilters": ["b", "a"], "clientConfiguration": {"url":"http://h", "n": 1.0,
        "credentials": {"type":"basic", "password" : "********"}} }"#;

    fn saved() -> Integration {
        Integration {
            display_name: "x".to_owned(),
            r#type: "HTTP".to_owned(),
            enabled: true,
            configuration_json: SAVED.to_owned(),
            ..Integration::default()
        }
    }

    fn difference(configuration: &str) -> Difference {
        let document = Document {
            display_name: " x".to_owned(),
            kind: "HTTP".to_owned(),
            enabled: true,
            configuration_json: configuration.to_owned(),
            ..Document::default()
        };
        Difference::between(&document, &saved(), Some(&schema()))
    }

    #[test]
    fn form_and_defaults_are_no_difference() {
        for same in [
            SAVED,
            r#"{"clientConfiguration":{"n":1,"credentials":{"password":"********","type":"basic"},"url":"http://h"},"topicFilters":["a","b","a"]}"#,
            r#"{"topicFilters":["a","b"],"metadata":{},"delivery":{"deadLetter":false},"shards":1,"clientConfiguration":{"n":1,"timeout":0,"batch":null,
                "credentials":{"password":"********","type":"basic"},"url":"http://h"}}"#,
            r#"{"topicFilters":["a","b"],"metadata":null,"clientConfiguration":{"n":1,"batch":{},"credentials":{"password":"********","type":"basic"},"url":"http://h"}}"#,
        ] {
            assert_eq!(difference(same), Difference::default(), "{same}");
        }
    }

    #[test]
    fn everything_that_means_something_else_is_a_difference() {
        for (from, to) in [
            ("\"a\"]", "\"c\"]"),
            ("http://h", "http://other"),
            ("1.0", "1.5"),
            ("\"n\": 1.0", "\"n\": \"1\""),
            ("\"url\"", "\"timeout\":5,\"url\""),
            ("\"url\"", "\"batch\":{\"max\":7},\"url\""),
            ("********", ""),
            (r#"{"type":"basic", "password" : "********"}"#, r#"{"type":"anonymous"}"#),
            (r#""password" : "********""#, r#""x":1"#),
        ] {
            assert!(SAVED.contains(from));
            assert_eq!(difference(&SAVED.replace(from, to)).fields, [CONFIGURATION], "{from} → {to}");
        }
        assert_eq!(difference("no json").fields, [CONFIGURATION]);
    }

    #[test]
    fn other_fields_are_named() {
        let document = Document {
            display_name: "y".to_owned(),
            kind: "MQTT".to_owned(),
            configuration_json: SAVED.to_owned(),
            labels: [("a".to_owned(), "b".to_owned())].into(),
            description: "d".to_owned(),
            ..Document::default()
        };
        let fields = Difference::between(&document, &saved(), None).fields;
        assert_eq!(fields, ["display_name", "type", "enabled", "labels", "description"]);
    }

    #[test]
    fn a_secret_in_a_document_is_put_to_the_server_in_the_saved_text() {
        let difference = difference(&SAVED.replace("********", "s\\\"3cret"));
        assert_eq!(difference.fields, [""; 0]);
        assert_eq!(difference.probe(&saved()), Some(SAVED.replace("********", "s\\\"3cret")));
        let mut value: Value = serde_json::from_str(SAVED).unwrap();
        difference.mark(&mut value, "changed");
        assert_eq!(value["clientConfiguration"]["credentials"]["password"], "changed");
        assert_eq!(self::difference(SAVED).probe(&saved()), None);
    }
}
