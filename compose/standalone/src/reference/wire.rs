//! `docs/wire-format.md`: the topics, from the catalogue, and the messages, from the compiled `.proto` files.

use std::{collections::BTreeMap, fmt::Write as _};

use prost::Message as _;
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};
use tbmq_proto::{
    DESCRIPTORS,
    ids::{IntegrationId, Kind, ServiceId},
    topic::{Catalogue, Policy, Topic},
};

use super::{check_part, read, table};

const PAGE: &str = "docs/wire-format.md";

/// Packages whose messages are TBMQ's, with the names and numbers that it gives them.
const TBMQS: [&str; 2] = ["integration", "queue"];

/// Packages of what lies on topics, and the files that declare them.
const PACKAGES: [(&str, &str); 3] =
    [("integration", "integration.proto"), ("queue", "queue.proto"), ("tbmq.wire.v1", "tbmq/wire/v1")];

fn descriptors() -> FileDescriptorSet {
    FileDescriptorSet::decode(DESCRIPTORS).expect("they were compiled")
}

/// Every topic of the catalogue, under the name that its table gives it.
fn topics() -> BTreeMap<String, Topic> {
    let catalogue = Catalogue::default();
    let kind: Kind = "KIND".parse().expect("a kind");
    let service: ServiceId = "SERVICE".parse().expect("a service id");
    let id: IntegrationId = "3e3abdb2-12f9-4850-a654-50a0c8dbbed6".parse().expect("an id");
    let all = [
        catalogue.downlink(&kind),
        catalogue.uplink(),
        catalogue.uplink_notifications(&service),
        catalogue.messages(id, 1),
        catalogue.dead_letters(id),
        catalogue.integration_subscriptions(),
        catalogue.node_applied(),
        catalogue.kinds(),
        catalogue.retained(),
        catalogue.owners(),
        catalogue.client_sessions(),
        catalogue.client_subscriptions(),
        catalogue.blocked_clients(),
        catalogue.credentials(),
        catalogue.auth_settings(),
        catalogue.unauthorized_clients(),
    ];
    let id = id.to_string();
    let shown = |name: &str| {
        let name = name.replace(".SERVICE", ".<service id>").replace(&id, "<integration id>");
        name.strip_suffix(".kind").map_or_else(|| name.clone(), |stem| format!("{stem}.<kind>"))
    };
    all.into_iter().map(|topic| (shown(&topic.name), topic)).collect()
}

/// Where a message is declared.
fn package(files: &FileDescriptorSet, message: &str) -> Option<String> {
    let declares = |file: &&prost_types::FileDescriptorProto| {
        file.message_type.iter().any(|declared| declared.name() == message)
    };
    files
        .file
        .iter()
        .filter(|file| !file.package().starts_with("google"))
        .find(declares)
        .map(|file| file.package().to_owned())
}

fn policy(topic: &Topic) -> String {
    let setting = |name: &str| topic.settings.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
    match (topic.policy, setting("retention.ms").and_then(|ms| ms.parse::<u64>().ok())) {
        (Policy::Compact, _) => "compact".to_owned(),
        (Policy::Delete, Some(ms)) => format!("delete after {} days", ms / 86_400_000),
        (Policy::Delete, None) => "delete".to_owned(),
    }
}

/// The table of topics.
fn topic_rows(files: &FileDescriptorSet) -> String {
    let mut topics = topics();
    let source = read("proto/src/topic.rs");
    let rows: Vec<_> = source.lines().filter_map(|line| line.strip_prefix("//! | `")).collect();
    let rows: Vec<_> = rows
        .into_iter()
        .map(|row| {
            let cells: Vec<&str> = row.trim_end_matches([' ', '|']).split(" | ").collect();
            let [name, key, value, written, read] = cells[..] else { panic!("five columns: {row}") };
            let name = name.split('`').next().unwrap_or_default();
            let topic = topics.remove(name).unwrap_or_else(|| panic!("{name} is not in the list of topics"));
            let origin = match package(files, value.trim_matches('`')) {
                Some(package) if TBMQS.contains(&package.as_str()) => "TBMQ's",
                Some(_) => "native",
                None => "as the message",
            };
            // Executors make it, and say how long it is kept.
            let kept =
                if name.contains(".dlq.") { "`TBMQ_IE_DLQ_RETENTION`".to_owned() } else { policy(&topic) };
            let cells = [format!("`{name}`"), kept, topic.partitions.to_string(), key.to_owned()];
            let [name, kept, partitions, key] = cells;
            [
                name,
                kept,
                partitions,
                key,
                value.to_owned(),
                origin.to_owned(),
                written.to_owned(),
                read.to_owned(),
            ]
        })
        .collect();
    assert!(topics.is_empty(), "not in the table of proto/src/topic.rs: {:?}", topics.keys());
    let head = ["topic", "kept", "partitions", "key", "value", "format", "written by", "read by"];
    table(head, rows)
}

/// `repeated string`, `map<string, string>`, `PublishMsgProto`.
fn type_of(field: &FieldDescriptorProto, message: &DescriptorProto) -> String {
    let name = field.type_name().rsplit('.').next().unwrap_or_default();
    let entry = message.nested_type.iter().find(|nested| nested.name() == name);
    if let Some(entry) = entry
        && entry.options.as_ref().is_some_and(prost_types::MessageOptions::map_entry)
    {
        let parts: Vec<String> = entry.field.iter().map(|field| type_of(field, entry)).collect();
        return format!("map<{}>", parts.join(", "));
    }
    let plain = match field.r#type() {
        Type::Message | Type::Enum | Type::Group => name.to_owned(),
        plain => plain.as_str_name().trim_start_matches("TYPE_").to_ascii_lowercase(),
    };
    match field.label() {
        Label::Repeated => format!("repeated {plain}"),
        _ if field.proto3_optional() => format!("optional {plain}"),
        _ => plain,
    }
}

fn message(message: &DescriptorProto, name: &str, into: &mut String) {
    let line = |field: &FieldDescriptorProto| {
        [field.number().to_string(), format!("`{}`", field.name()), type_of(field, message)]
    };
    write!(into, "\n#### {name}\n\n").unwrap();
    into.push_str(&table(["number", "field", "type"], message.field.iter().map(line)));
    for nested in &message.nested_type {
        if !nested.options.as_ref().is_some_and(prost_types::MessageOptions::map_entry) {
            self::message(nested, &format!("{name}.{}", nested.name()), into);
        }
    }
}

/// Every message that lies on a topic, with its numbers.
fn messages(files: &FileDescriptorSet) -> String {
    let mut text = String::new();
    for (package, source) in PACKAGES {
        write!(text, "\n### Package `{package}`\n\n[{source}](../proto/proto/{source})\n").unwrap();
        for file in files.file.iter().filter(|file| file.package() == package) {
            for declared in &file.enum_type {
                write!(text, "\n#### {}\n\n", declared.name()).unwrap();
                let line = |value: &prost_types::EnumValueDescriptorProto| {
                    [value.number().to_string(), format!("`{}`", value.name())]
                };
                text.push_str(&table(["number", "value"], declared.value.iter().map(line)));
            }
            for declared in &file.message_type {
                message(declared, declared.name(), &mut text);
            }
        }
    }
    text
}

#[test]
fn every_topic_and_every_message_with_its_numbers_is_on_the_page() {
    let files = descriptors();
    check_part(PAGE, "topics", &topic_rows(&files));
    check_part(PAGE, "messages", &messages(&files));
}
