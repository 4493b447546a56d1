//! From `clientConfiguration` to a kind's `Config`, leniently as TBMQ's binder (spec §6.6), with all problems at once.
//!
//! The JSON Schema that is derived from `Config` drives it, so that a kind describes its fields once. What it reads of a
//! schema: `type`, `format` of integers, `enum` or `oneOf` of constants, `properties`, `required`,
//! `additionalProperties`, `oneOf` of objects told apart by a constant, `items`, `minimum`, `maximum`, `minLength`, and
//! [`ERROR_TEXT`], the text of the problem when a present value is outside its limits or a required one is missing.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value};
use tbmq_integration::entity::Violation;

use crate::sink::ConnectError;

/// Where the paths begin.
pub const ROOT: &str = "clientConfiguration";

/// Schema keyword for the text that TBMQ uses for a field.
pub const ERROR_TEXT: &str = "x-error-text";

/// A configuration as far as it could be read, and everything that is wrong with it.
#[derive(Debug)]
pub struct Bound<T> {
    /// What was read; fields with a problem have their default.
    pub config: T,
    /// The problems, in the order of the fields.
    pub violations: Vec<Violation>,
}

impl<T> Bound<T> {
    /// Adds a problem of a field, unless the field has one already.
    pub fn refuse(&mut self, field: &str, text: impl Into<String>) {
        let path = format!("{ROOT}.{field}");
        if !self.violations.iter().any(|violation| violation.path == path) {
            self.violations.push(Violation::new(path, text));
        }
    }
}

impl<T> Bound<Option<T>> {
    /// The configuration, if it can be used.
    ///
    /// # Errors
    /// All its problems.
    pub fn accepted(self) -> Result<T, ConnectError> {
        self.config.ok_or_else(|| self.violations.into())
    }
}

/// The JSON Schema of a `Config`, without references.
pub fn schema<T: JsonSchema>() -> Value {
    SchemaSettings::draft2020_12()
        .with(|settings| settings.inline_subschemas = true)
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value()
}

/// Reads `clientConfiguration`.
pub fn bind<T>(map: &Map<String, Value>) -> Bound<T>
where
    T: JsonSchema + DeserializeOwned + Default,
{
    let mut violations = Vec::new();
    let value = object(&schema::<T>(), map, ROOT, &mut violations);
    let config = match serde_json::from_value(Value::Object(value)) {
        Ok(config) => config,
        Err(error) => {
            // The schema says everything that the type wants; what is left is told as it comes.
            violations.push(Violation::new(ROOT, error.to_string()));
            T::default()
        }
    };
    Bound { config, violations }
}

/// The value as the schema wants it; `None`: leave the field out.
fn value(schema: &Value, value: &Value, path: &str, violations: &mut Vec<Violation>) -> Option<Value> {
    if let Some(choices) = choices(schema) {
        return choice(schema, &choices, value, path, violations);
    }
    if let Some(Value::Array(variants)) = schema.get("oneOf") {
        return tagged(variants, value, path, violations);
    }
    match type_of(schema) {
        Some("boolean") => boolean(value, path, violations),
        Some("integer") => integer(schema, value, path, violations),
        Some("number") => number(value, path, violations),
        Some("string") => string(schema, value, path, violations),
        Some("array") => array(schema, value, path, violations),
        Some("object") => match value {
            Value::Object(map) => Some(Value::Object(object(schema, map, path, violations))),
            other => refuse(violations, path, format!("{} is not an object", kind_of(other))),
        },
        _ => Some(value.clone()),
    }
}

fn refuse(violations: &mut Vec<Violation>, path: &str, text: String) -> Option<Value> {
    violations.push(Violation::new(path, text));
    None
}

fn error_text(schema: &Value) -> Option<String> {
    schema.get(ERROR_TEXT).and_then(Value::as_str).map(str::to_owned)
}

/// The type without `null`.
fn type_of(schema: &Value) -> Option<&str> {
    match schema.get("type")? {
        Value::String(name) => Some(name),
        Value::Array(names) => names.iter().filter_map(Value::as_str).find(|name| *name != "null"),
        _ => None,
    }
}

/// The constants of an `enum`, or of a `oneOf` of documented constants.
fn choices(schema: &Value) -> Option<Vec<&str>> {
    if let Some(Value::Array(choices)) = schema.get("enum") {
        return choices.iter().filter(|choice| !choice.is_null()).map(Value::as_str).collect();
    }
    let Some(Value::Array(variants)) = schema.get("oneOf") else { return None };
    let mut choices = Vec::new();
    for variant in variants {
        match (variant.get("const"), variant.get("enum")) {
            (Some(Value::String(choice)), _) => choices.push(choice.as_str()),
            (None, Some(Value::Array(some))) => {
                for choice in some {
                    choices.push(choice.as_str()?);
                }
            }
            _ => return None,
        }
    }
    Some(choices)
}

fn choice(
    schema: &Value,
    choices: &[&str],
    value: &Value,
    path: &str,
    violations: &mut Vec<Violation>,
) -> Option<Value> {
    match value {
        Value::String(text) if text.is_empty() => None,
        Value::String(text) if choices.contains(&text.as_str()) => Some(value.clone()),
        other => {
            let text =
                error_text(schema).unwrap_or_else(|| format!("{other} is not one of {}", choices.join(", ")));
            refuse(violations, path, text)
        }
    }
}

fn boolean(value: &Value, path: &str, violations: &mut Vec<Violation>) -> Option<Value> {
    let read = match value {
        Value::Bool(read) => Some(*read),
        Value::Number(number) => number.as_i64().map(|number| number != 0),
        Value::String(text) => match text.trim() {
            "true" | "True" | "TRUE" => Some(true),
            "" | "false" | "False" | "FALSE" => Some(false),
            _ => None,
        },
        _ => None,
    };
    match read {
        Some(read) => Some(Value::Bool(read)),
        None => refuse(violations, path, format!("{value} is neither true nor false")),
    }
}

fn integer(schema: &Value, value: &Value, path: &str, violations: &mut Vec<Violation>) -> Option<Value> {
    let read = match value {
        Value::Number(number) => {
            number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from)).or_else(
                // A fraction is cut off (spec §6.6); the cast saturates, so that what is too large stays too large.
                || number.as_f64().map(|fraction| fraction as i128),
            )
        }
        Value::String(text) => match text.trim() {
            "" => Some(0),
            text => text.parse::<i128>().ok(),
        },
        _ => None,
    };
    let (least, most) = match schema.get("format").and_then(Value::as_str) {
        Some("int32") => (i128::from(i32::MIN), i128::from(i32::MAX)),
        Some("uint16") => (0, i128::from(u16::MAX)),
        Some("uint32") => (0, i128::from(u32::MAX)),
        Some("uint64" | "uint") => (0, i128::from(u64::MAX)),
        _ => (i128::from(i64::MIN), i128::from(i64::MAX)),
    };
    let limit = |keyword: &str| schema.get(keyword).and_then(Value::as_f64).map(|limit| limit as i128);
    let (minimum, maximum) = (limit("minimum").unwrap_or(least), limit("maximum").unwrap_or(most));
    match read {
        Some(number) if number >= minimum && number <= maximum => {
            // Not lossy: both ends lie within the type that the schema was made from.
            Some(Value::Number(Number::from_i128(number)?))
        }
        Some(number) if (number < minimum && minimum >= least) || (number > maximum && maximum < most) => {
            let text = error_text(schema)
                .unwrap_or_else(|| format!("{value} is not a whole number from {minimum} to {maximum}"));
            refuse(violations, path, text)
        }
        _ => refuse(violations, path, format!("{value} is not a whole number from {minimum} to {maximum}")),
    }
}

fn number(value: &Value, path: &str, violations: &mut Vec<Violation>) -> Option<Value> {
    let read = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) if text.trim().is_empty() => Some(0.0),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    match read.and_then(Number::from_f64) {
        Some(number) => Some(Value::Number(number)),
        None => refuse(violations, path, format!("{value} is not a number")),
    }
}

fn string(schema: &Value, value: &Value, path: &str, violations: &mut Vec<Violation>) -> Option<Value> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(_) | Value::Bool(_) => value.to_string(),
        _ => return refuse(violations, path, format!("{} is not text", kind_of(value))),
    };
    let least = schema.get("minLength").and_then(Value::as_u64).unwrap_or(0);
    if (text.trim().chars().count() as u64) < least {
        let text = error_text(schema).unwrap_or_else(|| format!("needs at least {least} characters"));
        return refuse(violations, path, text);
    }
    Some(Value::String(text))
}

/// What a value is, without showing it: it may stand where a secret belongs.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn array(schema: &Value, value: &Value, path: &str, violations: &mut Vec<Violation>) -> Option<Value> {
    let Value::Array(items) = value else {
        return refuse(violations, path, format!("{} is not an array", kind_of(value)));
    };
    let any = Value::Bool(true);
    let schema = schema.get("items").unwrap_or(&any);
    let read = items
        .iter()
        .enumerate()
        .filter_map(|(i, item)| self::value(schema, item, &format!("{path}[{i}]"), violations));
    Some(Value::Array(read.collect()))
}

fn object(
    schema: &Value,
    map: &Map<String, Value>,
    path: &str,
    violations: &mut Vec<Violation>,
) -> Map<String, Value> {
    let none = Map::new();
    let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
    let required = |field: &str| {
        let required = schema.get("required").and_then(Value::as_array);
        required.is_some_and(|fields| fields.iter().any(|required| required == field))
    };
    let mut read = Map::new();
    for (field, schema) in properties {
        let path = format!("{path}.{field}");
        match map.get(field) {
            None | Some(Value::Null) => {
                if required(field) {
                    let text = error_text(schema).unwrap_or_else(|| "is required".to_owned());
                    violations.push(Violation::new(path, text));
                }
            }
            Some(present) => {
                if let Some(present) = value(schema, present, &path, violations) {
                    read.insert(field.clone(), present);
                }
            }
        }
    }
    let others = schema.get("additionalProperties");
    for (field, present) in map.iter().filter(|(field, _)| !properties.contains_key(*field)) {
        let path = format!("{path}.{field}");
        match others {
            Some(Value::Bool(false)) => {
                let known: Vec<_> = properties.keys().map(String::as_str).collect();
                violations
                    .push(Violation::new(path, format!("unknown field; known are {}", known.join(", "))));
            }
            Some(schema @ Value::Object(_)) => {
                if let Some(present) = value(schema, present, &path, violations) {
                    read.insert(field.clone(), present);
                }
            }
            _ => {}
        }
    }
    read
}

/// One of several objects, told apart by a constant. Fields of the other variants are passed over: TBMQ's forms leave
/// them behind when another type is chosen.
fn tagged(variants: &[Value], value: &Value, path: &str, violations: &mut Vec<Violation>) -> Option<Value> {
    let Value::Object(map) = value else {
        return refuse(violations, path, format!("{} is not an object", kind_of(value)));
    };
    let properties = |variant: &Value| variant.get("properties").and_then(Value::as_object).cloned();
    let tag = variants.iter().find_map(|variant| {
        let properties = properties(variant)?;
        properties.into_iter().find(|(_, schema)| schema.get("const").is_some()).map(|(tag, _)| tag)
    })?;
    let constant =
        |variant: &Value| variant.get("properties")?.get(&tag)?.get("const")?.as_str().map(str::to_owned);
    let given = map.get(&tag).and_then(Value::as_str);
    let Some(variant) =
        variants.iter().find(|variant| constant(variant).as_deref() == given && given.is_some())
    else {
        let known: Vec<_> = variants.iter().filter_map(constant).collect();
        let text = match map.get(&tag) {
            None | Some(Value::Null) => format!("is required; one of {}", known.join(", ")),
            Some(other) => format!("{other} is not one of {}", known.join(", ")),
        };
        return refuse(violations, &format!("{path}.{tag}"), text);
    };
    let own = properties(variant).unwrap_or_default();
    let foreign: Vec<_> = variants
        .iter()
        .filter_map(properties)
        .flat_map(|properties| properties.into_iter().map(|(field, _)| field))
        .filter(|field| !own.contains_key(field))
        .collect();
    let mut map = map.clone();
    map.retain(|field, _| !foreign.contains(field));
    Some(Value::Object(object(variant, &map, path, violations)))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize, JsonSchema)]
    #[serde(default, deny_unknown_fields, rename_all = "camelCase")]
    #[schemars(extend("required" = ["name"]))]
    struct Sample {
        /// Needed.
        #[schemars(length(min = 1), extend("x-error-text" = "Name is required"))]
        name: String,
        on: bool,
        #[schemars(range(min = 1), extend("x-error-text" = "Size must be greater than 0"))]
        size: u32,
        signed: i32,
        share: f64,
        colour: Colour,
        labels: std::collections::BTreeMap<String, String>,
        list: Vec<u16>,
        who: Who,
        note: Option<String>,
    }

    #[derive(Debug, Default, PartialEq, Deserialize, JsonSchema)]
    #[serde(rename_all = "UPPERCASE")]
    enum Colour {
        /// As the sky.
        #[default]
        Blue,
        /// As a rose.
        Red,
    }

    #[derive(Debug, Default, PartialEq, Deserialize, JsonSchema)]
    #[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
    enum Who {
        #[default]
        Nobody,
        Somebody {
            #[serde(default)]
            name: String,
        },
    }

    fn read(value: Value) -> Bound<Sample> {
        bind(value.as_object().unwrap())
    }

    fn accepted(value: Value) -> Sample {
        let bound = read(value);
        assert_eq!(bound.violations, []);
        bound.config
    }

    fn refused(value: Value) -> Vec<String> {
        read(value).violations.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn tbmqs_coercions_are_made() {
        let sample = accepted(json!({
            "name": 7, "on": "true", "size": "12", "signed": -3.9, "share": "0.5", "colour": "RED",
            "labels": {"a": 1, "b": true, "c": "x"}, "list": ["1", 2], "who": {"type": "somebody", "name": "me"},
            "note": null,
        }));
        assert_eq!(
            sample,
            Sample {
                name: "7".into(),
                on: true,
                size: 12,
                signed: -3,
                share: 0.5,
                colour: Colour::Red,
                labels: [("a", "1"), ("b", "true"), ("c", "x")].map(|(k, v)| (k.into(), v.into())).into(),
                list: vec![1, 2],
                who: Who::Somebody { name: "me".into() },
                note: None,
            }
        );
        let sample = accepted(json!({"name": "n", "on": 1, "signed": "", "colour": "", "who": null}));
        assert!(sample.on);
        assert_eq!((sample.signed, sample.colour, sample.who), (0, Colour::Blue, Who::Nobody));
    }

    #[test]
    fn null_for_a_primitive_is_zero_or_false() {
        let sample = accepted(json!({"name": "n", "on": null, "signed": null}));
        assert_eq!((sample.on, sample.signed), (false, 0));
    }

    #[test]
    fn every_problem_is_listed_with_its_path() {
        let texts = refused(json!({
            "name": " ", "on": "maybe", "size": 0, "signed": 3_000_000_000_i64, "share": "x", "colour": "red",
            "labels": {"a": null, "b": []}, "list": [70_000], "who": {"type": "all"}, "extra": 1, "note": {},
        }));
        assert_eq!(
            texts,
            [
                "clientConfiguration.name: Name is required",
                "clientConfiguration.on: \"maybe\" is neither true nor false",
                "clientConfiguration.size: Size must be greater than 0",
                "clientConfiguration.signed: 3000000000 is not a whole number from -2147483648 to 2147483647",
                "clientConfiguration.share: \"x\" is not a number",
                "clientConfiguration.colour: \"red\" is not one of BLUE, RED",
                "clientConfiguration.labels.a: null is not text",
                "clientConfiguration.labels.b: an array is not text",
                "clientConfiguration.list[0]: 70000 is not a whole number from 0 to 65535",
                "clientConfiguration.who.type: \"all\" is not one of nobody, somebody",
                "clientConfiguration.note: an object is not text",
                "clientConfiguration.extra: unknown field; known are name, on, size, signed, share, colour, labels, list, who, note",
            ]
        );
    }

    #[test]
    fn a_missing_required_field_has_its_own_text() {
        assert_eq!(refused(json!({})), ["clientConfiguration.name: Name is required"]);
        assert_eq!(
            refused(json!({"name": "n", "who": {}})),
            ["clientConfiguration.who.type: is required; one of nobody, somebody"]
        );
    }

    #[test]
    fn fields_of_another_variant_are_passed_over_but_unknown_ones_are_not() {
        assert_eq!(accepted(json!({"name": "n", "who": {"type": "nobody", "name": "x"}})).who, Who::Nobody);
        assert_eq!(
            refused(json!({"name": "n", "who": {"type": "somebody", "age": 1}})),
            ["clientConfiguration.who.age: unknown field; known are type, name"]
        );
    }
}
