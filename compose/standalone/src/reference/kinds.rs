//! `docs/integrations/`: the fields of each kind's `clientConfiguration`, from its JSON Schema.

use serde_json::Value;
use tbmq_executor::sinks::{self, SinkSettings};

use super::{allowed, check_part, description, shown, table};

/// The fields of an object, those of its objects with their path.
fn fields(schema: &Value, prefix: &str, into: &mut Vec<[String; 3]>) {
    let required = schema["required"].as_array().into_iter().flatten();
    let required: Vec<&str> = required.filter_map(Value::as_str).collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{prefix}{name}");
        let variants = field["oneOf"].as_array().into_iter().flatten();
        let objects: Vec<&Value> = variants.filter(|variant| variant["properties"].is_object()).collect();
        let mut what = description(field);
        let default = if required.contains(&name.as_str()) {
            "required".to_owned()
        } else if field["properties"].is_object() || !objects.is_empty() {
            String::new()
        } else {
            shown(&field["default"])
        };
        if objects.is_empty()
            && let Some(allowed) = allowed(field)
        {
            what = format!("{what} *{allowed}*");
        }
        into.push([format!("`{path}`"), default, what.trim().to_owned()]);
        if field["properties"].is_object() {
            fields(field, &format!("{path}."), into);
        }
        for object in objects {
            let tag = object["properties"].as_object().into_iter().flatten();
            let tag =
                tag.filter_map(|(name, field)| Some(format!("`{name}`: `{}`", field["const"].as_str()?)));
            let tag = tag.collect::<Vec<_>>().join(", ");
            into.push([format!("`{path}` with {tag}"), String::new(), description(object)]);
            let mut of_it = Vec::new();
            fields(object, &format!("{path}."), &mut of_it);
            into.extend(of_it.into_iter().filter(|[name, ..]| !name.ends_with(".type`")));
        }
    }
}

#[test]
fn every_field_of_every_kind_is_on_its_page() {
    for kind in sinks::kinds(&SinkSettings::default()) {
        let mut rows = Vec::new();
        fields(&kind.schema(), "", &mut rows);
        for [name, _, what] in &rows {
            assert!(!what.is_empty(), "{}: {name} is not described", kind.name());
        }
        let page = format!("docs/integrations/{}.md", kind.name().to_ascii_lowercase());
        check_part(&page, "fields", &table(["field", "default", "what"], rows));
    }
}
