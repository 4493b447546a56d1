//! Masks of secrets that are written back: the stored secret is kept, unless the target has moved.

use std::collections::BTreeMap;

use serde_json::Value;
pub(crate) use tbmq_integration::secret::mask;
use tbmq_integration::{
    entity::Violation,
    secret::{ROOT, find, quoted_mask},
};

use crate::store::Row;

/// The document with its masks replaced by the secrets of the stored integration.
///
/// # Errors
/// For each mask that has no stored secret, or one that can't be read here, or whose target has changed: what was stored
/// for one host is not sent to another.
pub(crate) fn unmask(
    schema: Option<&Value>,
    document: &str,
    stored: Option<&Row>,
) -> Result<String, Vec<Violation>> {
    let Some(unreadable) = stored.and_then(|row| row.unreadable.as_ref()) else {
        return unmask_with(schema, document, stored.map(|row| row.configuration.as_str()));
    };
    let whole = unmask_with(schema, document, None).and_then(|whole| {
        // What was sealed may be more than what the schema calls secret today.
        let is_masked = whole.contains(&quoted_mask());
        if is_masked {
            Err(vec![Violation::new(ROOT, "has masks of secrets; write them")])
        } else {
            Ok(whole)
        }
    });
    whole.map_err(|mut violations| {
        let text = format!("; the stored secrets are out of reach: {unreadable}");
        for violation in &mut violations {
            violation.text.push_str(&text);
        }
        violations
    })
}

pub(crate) fn unmask_with(
    schema: Option<&Value>,
    document: &str,
    stored: Option<&str>,
) -> Result<String, Vec<Violation>> {
    let mut written = find(schema, document);
    written.retain(|found| document[found.span.clone()] == quoted_mask());
    if written.is_empty() {
        return Ok(document.to_owned());
    }
    let held: BTreeMap<String, &str> = stored
        .map(|stored| {
            find(schema, stored).into_iter().map(|found| (found.pointer, &stored[found.span])).collect()
        })
        .unwrap_or_default();
    let moved = stored.is_some_and(|stored| targets(document) != targets(stored));
    let mut violations = Vec::new();
    let mut whole = document.to_owned();
    for found in written.into_iter().rev() {
        match held.get(&found.pointer) {
            None => {
                violations
                    .push(Violation::new(found.path, "is the mask of a secret; write the secret itself"));
            }
            Some(_) if moved => violations.push(Violation::new(
                found.path,
                "the target's scheme or host has changed, so the stored secret is not kept; write it anew",
            )),
            Some(secret) => whole.replace_range(found.span, secret),
        }
    }
    violations.reverse();
    if violations.is_empty() { Ok(whole) } else { Err(violations) }
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
                "credentials": { "properties": { "password": { "writeOnly": true } } },
                "keys": { "items": { "properties": { "k": { "writeOnly": true } } } }
            }
        })
    }

    const DOCUMENT: &str = r#"{ "topicFilters": ["a"],  "clientConfiguration": {"restEndpointUrl":"http://h:1/p?x=1", "n": 1.50,
        "credentials": {"password" : "s\"3cret", "username":"u","type":"basic"}, "keys":[{"k":"1"},{"k":null}]} }"#;

    #[test]
    fn a_mask_written_back_keeps_the_stored_secret() {
        let masked = mask(Some(&schema()), DOCUMENT);
        assert_eq!(unmask_with(Some(&schema()), &masked, Some(DOCUMENT)).unwrap(), DOCUMENT);
        let changed = masked.replace("/p?x=1", "/other");
        let expected = DOCUMENT.replace("/p?x=1", "/other");
        assert_eq!(
            unmask_with(Some(&schema()), &changed, Some(DOCUMENT)).unwrap(),
            expected,
            "the path may change"
        );
    }

    #[test]
    fn a_mask_is_refused_when_the_target_moved_or_nothing_is_stored() {
        let masked = mask(Some(&schema()), DOCUMENT);
        let paths = |document: &str, stored: Option<&str>| -> Vec<String> {
            let violations = unmask_with(Some(&schema()), document, stored).unwrap_err();
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
