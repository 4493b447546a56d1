//! The pages of `docs/` that are made from the code: each test compares one with what the code says now.
//!
//! `UPDATE_DOCS=1 cargo test -p tbmq reference`, or `cargo xtask gen`, writes them anew.

mod errors;
mod kinds;
mod reasons;
mod settings;
mod wire;

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

/// A file of the tree, by its path from the root.
fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file)
}

/// The text of a file of the tree; empty when there is none.
fn read(file: &str) -> String {
    fs::read_to_string(path(file)).unwrap_or_default()
}

/// Compares a page with what it should be, or writes it.
fn check(file: &str, fresh: &str) {
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(path(file), fresh).expect("the page is written");
    }
    assert!(read(file) == fresh, "{file} is old; `cargo xtask gen` writes it anew");
}

/// As [`check`], for the part of a hand-written page between `<!-- made: <name> -->` and `<!-- end -->`.
fn check_part(file: &str, name: &str, fresh: &str) {
    let page = read(file);
    let start = format!("<!-- made: {name} -->\n");
    let (before, rest) = page.split_once(&start).unwrap_or_else(|| panic!("{file} has no part {name}"));
    let (_, after) = rest.split_once("<!-- end -->").expect("a part ends");
    check(file, &format!("{before}{start}\n{}\n\n<!-- end -->{after}", fresh.trim()));
}

/// A Markdown table.
fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let line =
        |cells: [String; N]| format!("| {} |\n", cells.map(|cell| cell.replace('|', "\\|")).join(" | "));
    let mut text = line(head.map(str::to_owned)) + &line([(); N].map(|()| "---".to_owned()));
    text.extend(rows.into_iter().map(line));
    text
}

/// A schema's description in one line, without rustdoc's links.
fn description(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").replace("[`", "`").replace("`]", "`")
}

/// What a schema allows, in words; `None`: nothing that is worth a word.
fn allowed(schema: &Value) -> Option<String> {
    if let Some(choices) = choices(schema) {
        return Some(choices);
    }
    if let Some(variants) = schema["anyOf"].as_array() {
        return variants.iter().find_map(allowed);
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::Array(types) => {
            types.iter().filter_map(Value::as_str).filter(|name| *name != "null").collect()
        }
        one => one.as_str().into_iter().collect(),
    };
    match types[..] {
        // What is neither by default, is worth a word.
        ["boolean"] if schema["type"].is_array() => Some("`true`, `false`".to_owned()),
        ["integer"] => range(schema),
        ["array"] => match allowed(&schema["items"]) {
            Some(items) => Some(format!("list of {items}")),
            None => Some("list".to_owned()),
        },
        _ => None,
    }
}

/// The values of an enumeration, with what each means where that is said.
fn choices(schema: &Value) -> Option<String> {
    if let Some(values) = schema["enum"].as_array() {
        let values: Vec<String> =
            values.iter().filter_map(Value::as_str).map(|value| format!("`{value}`")).collect();
        return Some(values.join(", "));
    }
    let mut all = Vec::new();
    for variant in schema["oneOf"].as_array()? {
        let explained = description(variant);
        let explained = explained.trim_end_matches('.');
        match variant["const"].as_str() {
            Some(value) if explained.is_empty() || explained.eq_ignore_ascii_case(value) => {
                all.push(format!("`{value}`"));
            }
            Some(value) => all.push(format!("`{value}` ({})", lower(explained))),
            None => all.push(choices(variant)?),
        }
    }
    Some(all.join(", "))
}

/// With a small first letter, unless the first word is written in capitals.
fn lower(text: &str) -> String {
    let mut letters = text.chars();
    match (letters.next(), letters.clone().next()) {
        (Some(first), Some(second)) if !second.is_uppercase() => {
            first.to_lowercase().chain(letters).collect()
        }
        _ => text.to_owned(),
    }
}

/// The range of an integer, from its keywords, else from its format.
fn range(schema: &Value) -> Option<String> {
    let (least, most) = match schema["format"].as_str() {
        Some("uint8") => (Some(0), Some(255)),
        Some("uint16") => (Some(0), Some(65_535)),
        Some("uint" | "uint32" | "uint64") => (Some(0), None),
        _ => (None, None),
    };
    let least = schema["minimum"].as_i64().or(least);
    let most = schema["maximum"].as_u64().or(most);
    match (least, most) {
        (Some(least), Some(most)) => Some(format!("{least} to {most}")),
        (Some(least), None) => Some(format!("from {least}")),
        (None, Some(most)) => Some(format!("to {most}")),
        (None, None) => None,
    }
}

/// A default as a reader would write it.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) if text.is_empty() => "none".to_owned(),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Object(object) if object.is_empty() => "none".to_owned(),
        Value::String(text) => format!("`{text}`"),
        Value::Array(items) => items.iter().map(shown).collect::<Vec<_>>().join(", "),
        other => format!("`{other}`"),
    }
}
