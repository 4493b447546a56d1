//! `docs/settings.md`: every setting, from the types that are loaded, their documentation and their defaults.

use std::{fmt::Write as _, time::Duration};

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::Value;
use tbmq_service::{
    config::Setting,
    shell::{ShellConfig, tree},
};

use super::{allowed, check, description, shown, table};
use crate::config::{Config, OwnConfig, SETTINGS};

const HEAD: &str = "\
# Settings

Written by `cargo xtask gen` from the types that the programs load; do not edit.

Each program reads its settings in this order, the later one counts:

1. the default;
2. the YAML file of `--config FILE` (`TBMQ_CONFIG`), whose keys are the paths below: `mqtt.retain-msg.available: false` and a tree of
   `mqtt:`, `retain-msg:`, `available: false` mean the same;
3. the environment variable.

`--print-config` prints all that is in force, as such a file, without secrets. A bad value or an unknown key stops the process, by
name and with exit code 2, before a port is bound. An unknown variable that begins with `TB_`, `TBMQ_`, `MQTT_`, `INTEGRATIONS_` or
`LISTENER_` is warned about. Settings are read at the start; files of certificates and of tokens are read again where it says so.

Durations are texts: `500ms`, `30s`, `5m`, `2h`, `30days`; where TBMQ has a setting its unit is TBMQ's and stands in the description.
Lists are separated by commas in a variable. Secrets are never printed. A setting without a variable stands in the file only.

| program | reads |
|---|---|
| `tbmq` | all sections |
| `tbmq-control-plane` | [Every program](#every-program), [Control plane](#control-plane) |
| `tbmq-data-plane` | [Every program](#every-program), [Data plane](#data-plane) |
| `tbmq-executor` | [Every program](#every-program), [Executor](#executor) |

`tbmq` also takes `--data-dir DIRECTORY` (`TBMQ_DATA_DIR`, `./tbmq-data`): everything that it keeps. The variables of `tbmqctl` are in
its [reference](../cli/reference.md).
";

/// One line of the page.
struct Row {
    key: String,
    default: Value,
    what: String,
    allowed: Option<String>,
}

impl Row {
    /// Of a setting that is one.
    fn duration(&self) -> Option<Duration> {
        let text = self.default.as_str().filter(|text| text.starts_with(|c: char| c.is_ascii_digit()))?;
        humantime_serde::re::humantime::parse_duration(text).ok()
    }
}

/// A duration in its greatest whole unit.
fn in_words(duration: Duration) -> String {
    let (seconds, ms) = (duration.as_secs(), duration.subsec_millis());
    let units = [(86_400, "days"), (3_600, "h"), (60, "m")];
    match units.iter().find(|(unit, _)| seconds > 0 && seconds.is_multiple_of(*unit)) {
        _ if ms > 0 => format!("`{}ms`", duration.as_millis()),
        Some((unit, name)) => format!("`{}{name}`", seconds / unit),
        None => format!("`{seconds}s`"),
    }
}

/// A program's, or several programs', part of the page.
struct Section {
    rows: Vec<Row>,
    groups: Vec<(String, String)>,
    settings: Vec<Setting>,
    /// Where a program has another default: its name, key and value.
    others: Vec<(&'static str, String, Value)>,
}

impl Section {
    fn of<T: JsonSchema>(default: Value, settings: &[&[Setting]]) -> Self {
        let schema = SchemaSettings::draft2020_12()
            .with(|settings| settings.inline_subschemas = true)
            .into_generator()
            .into_root_schema_for::<T>()
            .to_value();
        let mut section =
            Self { rows: Vec::new(), groups: Vec::new(), settings: settings.concat(), others: Vec::new() };
        section.collect(&schema, default, "");
        section
    }

    fn collect(&mut self, schema: &Value, default: Value, key: &str) {
        let fields = match default {
            Value::Object(fields) if !fields.is_empty() => fields,
            default => {
                let (what, allowed) = (description(schema), allowed(schema));
                self.rows.push(Row { key: key.to_owned(), default, what, allowed });
                return;
            }
        };
        if !key.is_empty() {
            self.groups.push((key.to_owned(), description(schema)));
        }
        // An optional part that is there by default.
        let variants = schema["anyOf"].as_array().into_iter().flatten();
        let schema =
            variants.chain([schema]).find(|schema| schema["properties"].is_object()).unwrap_or(schema);
        for (field, default) in fields {
            let key = if key.is_empty() { field.clone() } else { format!("{key}.{field}") };
            self.collect(&schema["properties"][&field], default, &key);
        }
    }

    /// Notes where a program begins with other values.
    fn differing(mut self, program: &'static str, default: &Value) -> Self {
        for row in &self.rows {
            let value = row.key.split('.').fold(default, |tree, field| &tree[field]);
            if *value != row.default {
                self.others.push((program, row.key.clone(), value.clone()));
            }
        }
        self
    }

    fn write(&self, title: &str, into: &mut String) {
        write!(into, "\n## {title}\n").unwrap();
        let mut groups: Vec<String> = self.rows.iter().map(|row| group(&row.key)).collect();
        groups.sort();
        groups.dedup();
        for name in groups {
            let about = self.groups.iter().find(|(key, _)| *key == name);
            let about = about.map(|(_, about)| format!("\n{about}\n")).unwrap_or_default();
            write!(into, "\n### {title}: {name}\n{about}\n").unwrap();
            let rows = self.rows.iter().filter(|row| group(&row.key) == name);
            into.push_str(&table(["setting", "default", "what"], rows.map(|row| self.line(row))));
        }
    }

    fn line(&self, row: &Row) -> [String; 3] {
        let variables = self.settings.iter().filter(|setting| setting.key == row.key);
        let variables: Vec<String> = variables.map(|setting| format!("`{}`", setting.env)).collect();
        let variables = if variables.is_empty() { "(file only)".to_owned() } else { variables.join(", ") };
        let mut default = row.duration().map_or_else(|| shown(&row.default), in_words);
        for (program, _, value) in self.others.iter().filter(|(_, key, _)| *key == row.key) {
            write!(default, "; {program}: {}", shown(value)).unwrap();
        }
        let mut what = row.what.clone();
        let allowed = if row.duration().is_some() { Some("duration") } else { row.allowed.as_deref() };
        if let Some(allowed) = allowed {
            write!(what, " *{allowed}*").unwrap();
        }
        [format!("{variables}<br>`{}`", row.key), default, what]
    }
}

/// Under which heading a key stands: up to two parts of its path.
fn group(key: &str) -> String {
    let parts: Vec<&str> = key.split('.').collect();
    parts[..parts.len().saturating_sub(1).clamp(1, 2)].join(".")
}

/// Defaults of what every program has, with the port of one.
fn shell(admin_port: u16) -> Value {
    let mut defaults = ShellConfig::default();
    defaults.server.port = admin_port;
    tree(&defaults)
}

fn sections() -> [(&'static str, Section); 5] {
    let standalone = Config::default();
    [
        (
            "Every program",
            Section::of::<ShellConfig>(shell(tbmq_control_plane::ADMIN_PORT), &ShellConfig::ALL_SETTINGS)
                .differing("`tbmq-data-plane`", &shell(tbmq_data_plane::ADMIN_PORT))
                .differing("`tbmq-executor`", &shell(tbmq_executor::ADMIN_PORT)),
        ),
        ("tbmq", Section::of::<OwnConfig>(tree(&standalone.own), &[SETTINGS])),
        (
            "Control plane",
            Section::of::<tbmq_control_plane::Config>(
                tree(&tbmq_control_plane::Config::default()),
                &[tbmq_control_plane::SETTINGS],
            )
            .differing("`tbmq`", &tree(&standalone.control_plane)),
        ),
        (
            "Data plane",
            Section::of::<tbmq_data_plane::Config>(
                tree(&tbmq_data_plane::Config::default()),
                &[tbmq_data_plane::SETTINGS],
            )
            .differing("`tbmq`", &tree(&standalone.data_plane)),
        ),
        (
            "Executor",
            Section::of::<tbmq_executor::Config>(
                tree(&tbmq_executor::Config::default()),
                &[tbmq_executor::SETTINGS],
            )
            .differing("`tbmq`", &tree(&standalone.executor)),
        ),
    ]
}

#[test]
fn every_setting_is_on_its_page_as_the_code_has_it() {
    let mut page = HEAD.to_owned();
    for (title, section) in sections() {
        section.write(title, &mut page);
    }
    check("docs/settings.md", &page);
}

#[test]
fn every_setting_is_described() {
    for (title, section) in sections() {
        for row in &section.rows {
            assert!(
                row.what.len() > 3 && !row.what.starts_with("See "),
                "{title}: {} is not described",
                row.key
            );
        }
    }
}

#[test]
fn every_variable_sets_one_setting_of_its_page() {
    for (title, section) in sections() {
        for setting in &section.settings {
            let rows = section.rows.iter().filter(|row| row.key == setting.key).count();
            assert_eq!(rows, 1, "{title}: {}", setting.env);
        }
    }
}
