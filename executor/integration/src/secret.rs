//! Where the secrets of a configuration document stand.
//!
//! Which fields are secret is told by the kind's JSON Schema (`"writeOnly": true`). Of a kind whose schema is not known
//! every field is taken for one. A secret is found as a span of the text, so that everything else stays byte for byte.

use std::{fmt, ops::Range};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

/// What is shown instead of a secret.
pub const MASK: &str = "********";

/// Where the kind's own object stands in a document.
pub const ROOT: &str = "clientConfiguration";

/// Depth of documents and schemas that is looked into; `serde_json` reads no deeper.
const DEPTH_MAX: usize = 128;

/// One secret that has a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its place for people, such as `clientConfiguration.credentials.password`.
    pub path: String,
    /// Its place as a JSON Pointer (RFC 6901), which no name of a field makes ambiguous.
    pub pointer: String,
    /// Where its JSON text stands in the document.
    pub span: Range<usize>,
}

/// All secrets that have a value, in the order of the text. A document that is no JSON object has none.
pub fn find(schema: Option<&Value>, document: &str) -> Vec<Found> {
    let everything = serde_json::json!({ "additionalProperties": { "writeOnly": true } });
    let Some(Object(root)) = read(document) else { return Vec::new() };
    let schema = schema.unwrap_or(&everything);
    let mut walk = Walk { schema, document, found: Vec::new() };
    for (_, client) in root.into_iter().filter(|(name, _)| name == ROOT) {
        walk.value(&[schema], client, &Place::root(), 0);
    }
    walk.found.sort_by_key(|found| found.span.start);
    walk.found.dedup();
    walk.found
}

/// The document with its secrets masked.
pub fn mask(schema: Option<&Value>, document: &str) -> String {
    masked(document, &find(schema, document))
}

/// The document with these of its places masked.
pub fn masked(document: &str, secrets: &[Found]) -> String {
    let mut masked = document.to_owned();
    for found in secrets.iter().rev() {
        masked.replace_range(found.span.clone(), &quoted_mask());
    }
    masked
}

/// The JSON text of a mask.
pub fn quoted_mask() -> String {
    format!("\"{MASK}\"")
}

/// Where the value that a JSON Pointer names stands in a document: of fields with the same name it is the last, which is
/// the one that counts.
pub fn locate(document: &str, pointer: &str) -> Option<Range<usize>> {
    let mut value: &RawValue = read(document)?;
    for step in pointer.strip_prefix('/')?.split('/') {
        let step = step.replace("~1", "/").replace("~0", "~");
        value = if value.get().starts_with('[') {
            let items: Vec<&RawValue> = read(value.get())?;
            items.get(step.parse::<usize>().ok()?).copied()?
        } else {
            let Object(fields) = read(value.get())?;
            fields.into_iter().rev().find(|(name, _)| *name == step)?.1
        };
    }
    Some(span_in(document, value))
}

fn read<'a, T: Deserialize<'a>>(text: &'a str) -> Option<T> {
    serde_json::from_str(text).ok()
}

/// `value` borrows from `document`, so its place follows from the addresses.
fn span_in(document: &str, value: &RawValue) -> Range<usize> {
    let text = value.get();
    let start = text.as_ptr() as usize - document.as_ptr() as usize;
    start..start + text.len()
}

/// An object with all its fields, those of the same name included: none of them is to be overlooked.
struct Object<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Object(fields))
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

/// A place in both notations.
struct Place {
    path: String,
    pointer: String,
}

impl Place {
    fn root() -> Self {
        Self { path: ROOT.to_owned(), pointer: format!("/{ROOT}") }
    }

    fn field(&self, name: &str) -> Self {
        let escaped = name.replace('~', "~0").replace('/', "~1");
        Self { path: format!("{}.{name}", self.path), pointer: format!("{}/{escaped}", self.pointer) }
    }

    fn item(&self, index: usize) -> Self {
        Self { path: format!("{}[{index}]", self.path), pointer: format!("{}/{index}", self.pointer) }
    }
}

struct Walk<'a> {
    schema: &'a Value,
    document: &'a str,
    found: Vec<Found>,
}

impl<'a> Walk<'a> {
    /// Looks at a value under all the schemas that may hold for it.
    fn value(&mut self, schemas: &[&'a Value], value: &'a RawValue, place: &Place, depth: usize) {
        let mut branches = Vec::new();
        for schema in schemas {
            self.branches(schema, &mut branches, 0);
        }
        let text = value.get();
        if branches.iter().any(|schema| schema.get("writeOnly") == Some(&Value::Bool(true))) {
            if text != "null" && text != "\"\"" {
                let Place { path, pointer } = place;
                let span = span_in(self.document, value);
                self.found.push(Found { path: path.clone(), pointer: pointer.clone(), span });
            }
            return;
        }
        if depth >= DEPTH_MAX {
            return;
        }
        if text.starts_with('{') {
            let Some(Object(fields)) = read::<Object<'a>>(text) else { return };
            for (name, field) in fields {
                let own = |schema: &&'a Value| {
                    let schema: &'a Value = schema;
                    let named = schema.get("properties").and_then(|properties| properties.get(&name));
                    named.or_else(|| schema.get("additionalProperties"))
                };
                let inner: Vec<&Value> = branches.iter().filter_map(own).collect();
                if !inner.is_empty() {
                    self.value(&inner, field, &place.field(&name), depth + 1);
                }
            }
        } else if text.starts_with('[') {
            let Some(items) = read::<Vec<&'a RawValue>>(text) else { return };
            let inner: Vec<&Value> = branches.iter().filter_map(|schema| schema.get("items")).collect();
            for (index, item) in items.into_iter().enumerate() {
                self.value(&inner, item, &place.item(index), depth + 1);
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

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    pub(crate) fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "restEndpointUrl": { "type": "string" },
                "credentials": { "$ref": "#/$defs/Credentials" },
                "headers": { "additionalProperties": { "type": "string" } },
                "keys": { "items": { "properties": { "k": { "writeOnly": true } } } },
                "other": { "additionalProperties": { "writeOnly": true } }
            },
            "$defs": {
                "Credentials": { "oneOf": [
                    { "properties": { "type": { "const": "anonymous" } } },
                    { "properties": { "type": { "const": "basic" }, "username": {}, "password": { "writeOnly": true } } }
                ] }
            }
        })
    }

    pub(crate) const DOCUMENT: &str = r#"{ "topicFilters": ["a"],  "clientConfiguration": {"restEndpointUrl":"http://h:1/p?x=1", "n": 1.50,
        "credentials": {"password" : "s\"3cret", "username":"u","type":"basic"}, "keys":[{"k":"1"},{"k":null}]} }"#;

    #[test]
    fn secrets_are_masked_and_every_other_byte_stays() {
        let masked = mask(Some(&schema()), DOCUMENT);
        assert_eq!(
            masked,
            DOCUMENT.replace(r#""s\"3cret""#, "\"********\"").replace(r#"{"k":"1"}"#, r#"{"k":"********"}"#)
        );
        assert_eq!(mask(Some(&schema()), "not json"), "not json");
    }

    #[test]
    fn every_field_of_a_kind_that_is_not_known_is_a_secret() {
        let document = r#"{"topicFilters":["a"],"clientConfiguration":{"a":"x","b":{"c":1}}}"#;
        assert_eq!(
            mask(None, document),
            r#"{"topicFilters":["a"],"clientConfiguration":{"a":"********","b":"********"}}"#
        );
    }

    #[test]
    fn a_secret_that_is_written_twice_is_masked_twice() {
        let document = r#"{"clientConfiguration":{"keys":[{"k":"1","k":"2"}]},"clientConfiguration":{"keys":[{"k":"3"}]}}"#;
        let masked = mask(Some(&schema()), document);
        assert_eq!(masked.matches(MASK).count(), 3, "{masked}");
    }

    #[test]
    fn a_pointer_leads_to_the_value_that_was_found() {
        let document =
            r#"{"clientConfiguration":{"other":{"a.b":"1","a/b~":"2","é\u0041":[3]},"keys":[{},{"k":"4"}]}}"#;
        let found = find(Some(&schema()), document);
        assert_eq!(found.len(), 4);
        for found in found {
            assert_eq!(locate(document, &found.pointer), Some(found.span), "{}", found.path);
        }
        assert_eq!(locate(document, "/clientConfiguration/nothing"), None);
        assert_eq!(locate(document, "/clientConfiguration/keys/2/k"), None);
        assert_eq!(locate("nothing", "/x"), None);
    }
}
