//! The configuration document of an integration: what is common to all kinds (spec §6.1, §6.6).
//!
//! The control plane checks what stands here; everything under `clientConfiguration` is the executor's to check.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde_json::{Map, Value};

use crate::pack::Ordering;

/// Shards that an integration has at most.
pub const SHARDS_MAX: u32 = 64;

/// One problem, by its place in the document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Path such as `topicFilters[1]` or `clientConfiguration.restEndpointUrl`; empty for the document itself.
    pub path: String,
    /// What is wrong and what would be right.
    pub text: String,
}

impl Violation {
    /// A problem at a path.
    pub fn new(path: impl Into<String>, text: impl Into<String>) -> Self {
        Self { path: path.into(), text: text.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.text) } else { write!(f, "{}: {}", self.path, self.text) }
    }
}

/// What an executor does with messages that fail or time out (seed 000, "Strategy Options").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckStrategy {
    /// One attempt; what fails is skipped after an error event.
    SkipAll,
    /// Up to `retries` further attempts (0 = without end), with a pause before each.
    RetryAll,
}

/// The optional `delivery` object: absent fields mean the executor's own settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    /// `ackStrategy`: `SKIP_ALL` or `RETRY_ALL`.
    pub ack_strategy: Option<AckStrategy>,
    /// `retries`: further attempts; 0 = without end.
    pub retries: Option<u32>,
    /// `pauseBetweenRetriesSec`.
    pub pause_between_retries: Option<Duration>,
    /// `packProcessingTimeoutMs`: for one attempt.
    pub pack_processing_timeout: Option<Duration>,
    /// `pollIntervalMs`: between two attempts to reach the bus.
    pub poll_interval: Option<Duration>,
    /// `ordering`: `key` or `none`; absent: as the kind says.
    pub ordering: Option<Ordering>,
    /// `deadLetter`: what is given up on is written to the integration's dead letters first.
    pub dead_letter: bool,
}

/// A configuration document that has the right shape.
#[derive(Clone, PartialEq)]
pub struct Document {
    /// `topicFilters`, without duplicates, in order. Their syntax is checked by the control plane.
    pub topic_filters: Vec<String>,
    /// `metadata`: values as text; nested ones are empty text, as in TBMQ.
    pub metadata: BTreeMap<String, String>,
    /// `clientConfiguration`: the kind's own object.
    pub client_configuration: Map<String, Value>,
    /// `delivery`.
    pub delivery: Delivery,
    /// `shards`: over how many executors the integration can be spread, from 1 (the default) to [`SHARDS_MAX`]. It is
    /// fixed when the integration is created.
    pub shards: u32,
}

impl fmt::Debug for Document {
    // `clientConfiguration` may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topic_filters, metadata, client_configuration: _, delivery, shards } = self;
        f.debug_struct("Document")
            .field("topic_filters", topic_filters)
            .field("metadata", metadata)
            .field("delivery", delivery)
            .field("shards", shards)
            .finish_non_exhaustive()
    }
}

impl Document {
    /// Reads a document, or lists all its problems.
    ///
    /// # Errors
    /// Every problem of the common part, in the order of the fields, with TBMQ's texts where it has one.
    pub fn parse(text: &str) -> Result<Self, Vec<Violation>> {
        Self::parse_with(text, |_| Vec::new())
    }

    /// As [`Document::parse`], with the kind's own check of `clientConfiguration`, so that the problems of both parts
    /// are listed at once.
    ///
    /// # Errors
    /// Every problem of the common part, then those of the kind.
    pub fn parse_with(
        text: &str,
        check: impl FnOnce(&Map<String, Value>) -> Vec<Violation>,
    ) -> Result<Self, Vec<Violation>> {
        let mut root = match serde_json::from_str(text) {
            Ok(Value::Object(root)) => root,
            Ok(_) => return Err(vec![Violation::new("", "the configuration should be a JSON object")]),
            Err(error) => {
                return Err(vec![Violation::new("", format!("the configuration is not JSON: {error}"))]);
            }
        };
        let mut violations = Vec::new();
        let topic_filters = topic_filters(root.remove("topicFilters"), &mut violations);
        let metadata = metadata(root.remove("metadata"), &mut violations);
        let mut of_kind = Vec::new();
        let client_configuration = match root.remove("clientConfiguration") {
            Some(Value::Object(map)) => {
                of_kind = check(&map);
                map
            }
            Some(Value::Null) | None => {
                violations
                    .push(Violation::new("clientConfiguration", "clientConfiguration field is missing!"));
                Map::new()
            }
            Some(_) => {
                violations.push(Violation::new("clientConfiguration", "should be an object"));
                Map::new()
            }
        };
        let delivery = delivery(root.remove("delivery"), &mut violations);
        let shards = shards(root.remove("shards"), &mut violations);
        for field in root.keys() {
            violations.push(Violation::new(
                field,
                "unknown field; known are topicFilters, metadata, clientConfiguration, delivery and shards",
            ));
        }
        violations.append(&mut of_kind);
        if violations.is_empty() {
            Ok(Self { topic_filters, metadata, client_configuration, delivery, shards })
        } else {
            Err(violations)
        }
    }
}

fn topic_filters(value: Option<Value>, violations: &mut Vec<Violation>) -> Vec<String> {
    let items = match value {
        Some(Value::Array(items)) => items,
        Some(Value::Null) | None => {
            violations.push(Violation::new("topicFilters", "Topic filters should be specified!"));
            return Vec::new();
        }
        Some(_) => {
            violations.push(Violation::new("topicFilters", "Topic filters should be an array!"));
            return Vec::new();
        }
    };
    let mut filters: Vec<String> = Vec::with_capacity(items.len());
    for (i, item) in items.into_iter().enumerate() {
        match item {
            Value::String(filter) if filters.contains(&filter) => {}
            Value::String(filter) => filters.push(filter),
            _ => violations.push(Violation::new(format!("topicFilters[{i}]"), "should be a string")),
        }
    }
    filters
}

fn metadata(value: Option<Value>, violations: &mut Vec<Violation>) -> BTreeMap<String, String> {
    match value {
        None | Some(Value::Null) => BTreeMap::new(),
        Some(Value::Object(map)) => map
            .into_iter()
            .map(|(key, value)| {
                let text = match value {
                    Value::String(text) => text,
                    Value::Null => "null".to_owned(),
                    Value::Bool(_) | Value::Number(_) => value.to_string(),
                    // TBMQ writes nested values as empty text (spec §4.3).
                    Value::Array(_) | Value::Object(_) => String::new(),
                };
                (key, text)
            })
            .collect(),
        Some(_) => {
            violations.push(Violation::new("metadata", "should be an object"));
            BTreeMap::new()
        }
    }
}

fn delivery(value: Option<Value>, violations: &mut Vec<Violation>) -> Delivery {
    let mut map = match value {
        None | Some(Value::Null) => return Delivery::default(),
        Some(Value::Object(map)) => map,
        Some(_) => {
            violations.push(Violation::new("delivery", "should be an object"));
            return Delivery::default();
        }
    };
    let ack_strategy = match map.remove("ackStrategy") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) if text == "SKIP_ALL" => Some(AckStrategy::SkipAll),
        Some(Value::String(text)) if text == "RETRY_ALL" => Some(AckStrategy::RetryAll),
        Some(other) => {
            let text = format!("{other} is neither SKIP_ALL nor RETRY_ALL");
            violations.push(Violation::new("delivery.ackStrategy", text));
            None
        }
    };
    let mut number = |field: &str, min: u64, max: u64| match map.remove(field) {
        None | Some(Value::Null) => None,
        Some(value) => {
            let read = value.as_u64().or_else(|| value.as_str()?.trim().parse().ok());
            let inside = read.filter(|number| (min..=max).contains(number));
            if inside.is_none() {
                let text = format!("{value} is not a whole number from {min} to {max}");
                violations.push(Violation::new(format!("delivery.{field}"), text));
            }
            inside
        }
    };
    let retries = number("retries", 0, u64::from(u32::MAX)).map(|retries| retries as u32);
    let pause_between_retries = number("pauseBetweenRetriesSec", 0, 86_400).map(Duration::from_secs);
    let pack_processing_timeout = number("packProcessingTimeoutMs", 1, 86_400_000).map(Duration::from_millis);
    let poll_interval = number("pollIntervalMs", 1, 86_400_000).map(Duration::from_millis);
    let ordering = match map.remove("ordering") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) if text == "key" => Some(Ordering::Key),
        Some(Value::String(text)) if text == "none" => Some(Ordering::None),
        Some(other) => {
            violations.push(Violation::new("delivery.ordering", format!("{other} is neither key nor none")));
            None
        }
    };
    let dead_letter = match map.remove("deadLetter") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(is_wanted)) => is_wanted,
        Some(other) => {
            violations
                .push(Violation::new("delivery.deadLetter", format!("{other} is neither true nor false")));
            false
        }
    };
    for field in map.keys() {
        violations.push(Violation::new(
            format!("delivery.{field}"),
            "unknown field; known are ackStrategy, retries, pauseBetweenRetriesSec, packProcessingTimeoutMs, \
             pollIntervalMs, ordering and deadLetter",
        ));
    }
    Delivery {
        ack_strategy,
        retries,
        pause_between_retries,
        pack_processing_timeout,
        poll_interval,
        ordering,
        dead_letter,
    }
}

fn shards(value: Option<Value>, violations: &mut Vec<Violation>) -> u32 {
    match value {
        None | Some(Value::Null) => 1,
        Some(value) => match value.as_u64().filter(|shards| (1..=u64::from(SHARDS_MAX)).contains(shards)) {
            Some(shards) => shards as u32,
            None => {
                let text = format!("{value} is not a whole number from 1 to {SHARDS_MAX}");
                violations.push(Violation::new("shards", text));
                1
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(text: &str) -> Vec<String> {
        Document::parse(text).unwrap_err().into_iter().map(|violation| violation.path).collect()
    }

    #[test]
    fn a_tbmq_document_is_read() {
        let document = Document::parse(
            r#"{"topicFilters":["a/#","b","a/#"],"metadata":{"site":"A","n":1,"deep":{}},"clientConfiguration":{"x":1}}"#,
        )
        .unwrap();
        assert_eq!(document.topic_filters, ["a/#", "b"]);
        let metadata: Vec<_> = document.metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(metadata, [("deep", ""), ("n", "1"), ("site", "A")]);
        assert_eq!(document.delivery, Delivery::default());
        assert_eq!(document.shards, 1);
    }

    #[test]
    fn shards_are_a_whole_number_within_bounds() {
        let with =
            |shards: &str| format!(r#"{{"topicFilters":[],"clientConfiguration":{{}},"shards":{shards}}}"#);
        for (text, shards) in [("null", 1), ("1", 1), ("64", 64)] {
            assert_eq!(Document::parse(&with(text)).unwrap().shards, shards);
        }
        for text in ["0", "65", "-1", "1.5", "\"4\"", "[]"] {
            let violation = Violation::new("shards", format!("{text} is not a whole number from 1 to 64"));
            assert_eq!(Document::parse(&with(text)), Err(vec![violation]));
        }
    }

    #[test]
    fn all_problems_are_listed_at_once() {
        assert_eq!(
            paths(
                r#"{"topicFilters":"a","metadata":[],"delivery":{"ackStrategy":"X","retries":-1,"ordering":"any","deadLetter":1,"y":0},"extra":1}"#
            ),
            [
                "topicFilters",
                "metadata",
                "clientConfiguration",
                "delivery.ackStrategy",
                "delivery.retries",
                "delivery.ordering",
                "delivery.deadLetter",
                "delivery.y",
                "extra"
            ]
        );
        assert_eq!(paths("[]"), [""]);
        assert_eq!(paths("{"), [""]);
    }

    #[test]
    fn the_problems_of_both_parts_are_listed_together() {
        let bad = |map: &Map<String, Value>| {
            map.keys().map(|field| Violation::new(format!("clientConfiguration.{field}"), "is bad")).collect()
        };
        let text = r#"{"topicFilters":1,"clientConfiguration":{"url":"x"},"shards":0}"#;
        let paths: Vec<_> = Document::parse_with(text, bad)
            .unwrap_err()
            .into_iter()
            .map(|violation| violation.path)
            .collect();
        assert_eq!(paths, ["topicFilters", "shards", "clientConfiguration.url"]);
        let good = r#"{"topicFilters":[],"clientConfiguration":{}}"#;
        assert_eq!(Document::parse_with(good, bad), Document::parse(good));
    }

    #[test]
    fn delivery_is_read_with_its_units() {
        let text = r#"{"topicFilters":[],"clientConfiguration":{},"delivery":{"ackStrategy":"RETRY_ALL","retries":"0","pauseBetweenRetriesSec":2,"packProcessingTimeoutMs":500,"pollIntervalMs":50,"ordering":"none","deadLetter":true}}"#;
        assert_eq!(
            Document::parse(text).unwrap().delivery,
            Delivery {
                ack_strategy: Some(AckStrategy::RetryAll),
                retries: Some(0),
                pause_between_retries: Some(Duration::from_secs(2)),
                pack_processing_timeout: Some(Duration::from_millis(500)),
                poll_interval: Some(Duration::from_millis(50)),
                ordering: Some(Ordering::None),
                dead_letter: true,
            }
        );
    }
}
