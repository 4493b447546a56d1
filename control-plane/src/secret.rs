//! Secrets inside a configuration document: masked when read, kept when the mask is written back.
//!
//! Which fields are secret is told by the kind's JSON Schema (`"writeOnly": true`). A document is changed by spans of
//! its text, so that everything else stays byte for byte.

use std::{collections::BTreeMap, ops::Range};

use serde_json::{Value, value::RawValue};
use tbmq_integration::entity::Violation;

/// What is shown instead of a secret.
pub(crate) const MASK: &str = "********";

/// Where the kind's own object stands in a document.
const ROOT: &str = "clientConfiguration";

/// Depth of documents and schemas that is looked into; `serde_json` reads no deeper.
const DEPTH_MAX: usize = 128;

/// The document with its secrets masked.
pub(crate) fn mask(schema: Option<&Value>, document: &str) -> String {
    let mut masked = document.to_owned();
    let mut secrets = secrets(schema, document);
    secrets.reverse();
    for (_, span) in secrets {
        masked.replace_range(span, &quoted_mask());
    }
    masked
}

/// The document with its masks replaced by the stored secrets.
///
/// # Errors
/// For each mask that has no stored secret, or whose target has changed: what was stored for one host is not sent to
/// another.
pub(crate) fn unmask(
    schema: Option<&Value>,
    document: &str,
    stored: Option<&str>,
) -> Result<String, Vec<Violation>> {
    let mut written = secrets(schema, document);
    written.retain(|(_, span)| document[span.clone()] == quoted_mask());
    if written.is_empty() {
        return Ok(document.to_owned());
    }
    let held: BTreeMap<String, &str> = stored
        .map(|stored| secrets(schema, stored).into_iter().map(|(path, span)| (path, &stored[span])).collect())
        .unwrap_or_default();
    let moved = stored.is_some_and(|stored| targets(document) != targets(stored));
    let mut violations = Vec::new();
    let mut whole = document.to_owned();
    for (path, span) in written.into_iter().rev() {
        match held.get(&path) {
            None => violations.push(Violation::new(path, "is the mask of a secret; write the secret itself")),
            Some(_) if moved => violations.push(Violation::new(
                path,
                "the target's scheme or host has changed, so the stored secret is not kept; write it anew",
            )),
            Some(secret) => whole.replace_range(span, secret),
        }
    }
    violations.reverse();
    if violations.is_empty() { Ok(whole) } else { Err(violations) }
}

fn quoted_mask() -> String {
    format!("\"{MASK}\"")
}

/// Paths and spans of all secrets that have a value, in the order of the text.
fn secrets(schema: Option<&Value>, document: &str) -> Vec<(String, Range<usize>)> {
    let Some(schema) = schema else { return Vec::new() };
    let Ok(root) = serde_json::from_str::<BTreeMap<String, &RawValue>>(document) else { return Vec::new() };
    let Some(client) = root.get(ROOT) else { return Vec::new() };
    let mut walk = Walk { schema, document, found: Vec::new() };
    walk.value(&[schema], client, ROOT.to_owned(), 0);
    walk.found.sort_by_key(|(_, span)| span.start);
    walk.found.dedup();
    walk.found
}

struct Walk<'a> {
    schema: &'a Value,
    document: &'a str,
    found: Vec<(String, Range<usize>)>,
}

impl<'a> Walk<'a> {
    /// Looks at a value under all the schemas that may hold for it.
    fn value(&mut self, schemas: &[&'a Value], value: &'a RawValue, path: String, depth: usize) {
        let mut branches = Vec::new();
        for schema in schemas {
            self.branches(schema, &mut branches, 0);
        }
        let text = value.get();
        if branches.iter().any(|schema| schema.get("writeOnly") == Some(&Value::Bool(true))) {
            if text != "null" && text != "\"\"" {
                // `value` borrows from `document`, so its place follows from the addresses.
                let start = text.as_ptr() as usize - self.document.as_ptr() as usize;
                self.found.push((path, start..start + text.len()));
            }
            return;
        }
        if depth >= DEPTH_MAX {
            return;
        }
        if text.starts_with('{') {
            let Ok(fields) = serde_json::from_str::<BTreeMap<String, &'a RawValue>>(text) else { return };
            for (name, field) in fields {
                let inner: Vec<&Value> = branches
                    .iter()
                    .filter_map(|schema| {
                        schema.pointer_of("properties", &name).or_else(|| schema.get("additionalProperties"))
                    })
                    .collect();
                if !inner.is_empty() {
                    self.value(&inner, field, format!("{path}.{name}"), depth + 1);
                }
            }
        } else if text.starts_with('[') {
            let Ok(items) = serde_json::from_str::<Vec<&'a RawValue>>(text) else { return };
            let inner: Vec<&Value> = branches.iter().filter_map(|schema| schema.get("items")).collect();
            for (i, item) in items.into_iter().enumerate() {
                self.value(&inner, item, format!("{path}[{i}]"), depth + 1);
            }
        }
    }

    /// A schema with everything that it refers to or is composed of.
    fn branches(&self, schema: &'a Value, into: &mut Vec<&'a Value>, depth: usize) {
        if depth >= DEPTH_MAX {
            return;
        }
        into.push(schema);
        if let Some(pointer) =
            schema.get("$ref").and_then(Value::as_str).and_then(|text| text.strip_prefix('#'))
            && let Some(target) = self.schema.pointer(pointer)
        {
            self.branches(target, into, depth + 1);
        }
        for word in ["oneOf", "anyOf", "allOf"] {
            for branch in schema.get(word).and_then(Value::as_array).into_iter().flatten() {
                self.branches(branch, into, depth + 1);
            }
        }
        for word in ["if", "then", "else"] {
            if let Some(branch) = schema.get(word) {
                self.branches(branch, into, depth + 1);
            }
        }
    }
}

trait Lookup {
    fn pointer_of(&self, word: &str, name: &str) -> Option<&Value>;
}

impl Lookup for Value {
    fn pointer_of(&self, word: &str, name: &str) -> Option<&Value> {
        self.get(word)?.get(name)
    }
}

/// Everything in the document that says where it connects to: scheme, host and port of URLs, hosts, servers, TLS.
///
/// A kind's schema does not say which field that is, so every field whose name speaks of a target counts.
fn targets(document: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    if let Ok(value) = serde_json::from_str::<Value>(document) {
        collect_targets(&value[ROOT], ROOT, &mut found);
    }
    found.sort();
    found
}

fn collect_targets(value: &Value, path: &str, found: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let path = format!("{path}.{name}");
                let lower = name.to_ascii_lowercase();
                let speaks =
                    ["url", "uri", "host", "server", "broker", "endpoint", "port", "ssl", "tls", "address"]
                        .iter()
                        .any(|word| lower.contains(word));
                match field {
                    Value::String(text) if speaks || text.contains("://") => {
                        found.push((path, origin(text).to_ascii_lowercase()));
                    }
                    Value::Number(_) | Value::Bool(_) if speaks => found.push((path, field.to_string())),
                    other => collect_targets(other, &path, found),
                }
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                collect_targets(item, &format!("{path}[{i}]"), found);
            }
        }
        _ => {}
    }
}

/// Scheme, host and port of a URL; the whole text of anything else.
fn origin(text: &str) -> &str {
    match text.find("://") {
        Some(at) => {
            let rest = &text[at + 3..];
            &text[..at + 3 + rest.find(['/', '?', '#']).unwrap_or(rest.len())]
        }
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "restEndpointUrl": { "type": "string" },
                "credentials": { "$ref": "#/$defs/Credentials" },
                "headers": { "additionalProperties": { "type": "string" } },
                "keys": { "items": { "properties": { "k": { "writeOnly": true } } } }
            },
            "$defs": {
                "Credentials": { "oneOf": [
                    { "properties": { "type": { "const": "anonymous" } } },
                    { "properties": { "type": { "const": "basic" }, "username": {}, "password": { "writeOnly": true } } }
                ] }
            }
        })
    }

    const DOCUMENT: &str = r#"{ "topicFilters": ["a"],  "clientConfiguration": {"restEndpointUrl":"http://h:1/p?x=1", "n": 1.50,
        "credentials": {"password" : "s\"3cret", "username":"u","type":"basic"}, "keys":[{"k":"1"},{"k":null}]} }"#;

    #[test]
    fn secrets_are_masked_and_every_other_byte_stays() {
        let masked = mask(Some(&schema()), DOCUMENT);
        assert_eq!(
            masked,
            DOCUMENT.replace(r#""s\"3cret""#, "\"********\"").replace(r#"{"k":"1"}"#, r#"{"k":"********"}"#)
        );
        assert_eq!(mask(None, DOCUMENT), DOCUMENT);
        assert_eq!(mask(Some(&schema()), "not json"), "not json");
    }

    #[test]
    fn a_mask_written_back_keeps_the_stored_secret() {
        let masked = mask(Some(&schema()), DOCUMENT);
        assert_eq!(unmask(Some(&schema()), &masked, Some(DOCUMENT)).unwrap(), DOCUMENT);
        let changed = masked.replace("/p?x=1", "/other");
        let expected = DOCUMENT.replace("/p?x=1", "/other");
        assert_eq!(
            unmask(Some(&schema()), &changed, Some(DOCUMENT)).unwrap(),
            expected,
            "the path may change"
        );
    }

    #[test]
    fn a_mask_is_refused_when_the_target_moved_or_nothing_is_stored() {
        let masked = mask(Some(&schema()), DOCUMENT);
        let paths = |document: &str, stored: Option<&str>| -> Vec<String> {
            let violations = unmask(Some(&schema()), document, stored).unwrap_err();
            violations.into_iter().map(|violation| violation.path).collect()
        };
        let all = ["clientConfiguration.credentials.password", "clientConfiguration.keys[0].k"];
        for (from, to) in
            [("http://h", "https://h"), ("http://h:1", "http://evil:1"), ("http://h:1", "http://h:2")]
        {
            assert_eq!(paths(&masked.replace(from, to), Some(DOCUMENT)), all, "{to}");
        }
        assert_eq!(paths(&masked, None), all);
    }
}
