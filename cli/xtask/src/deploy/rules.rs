//! Rules about what deploys TBMQ that no linter knows.

use std::collections::BTreeSet;

use super::{File, Violation, has_ending};

/// Where environment variables are set: folders, and endings of files in them.
const PLACES: [(&str, &[&str]); 3] = [
    ("compose/docker/", &["yaml", "example"]),
    ("compose/kubernetes/", &["yaml"]),
    ("compose/systemd/", &["env", "service"]),
];

/// Prefixes of settings of TBMQ; OpenTelemetry's own are read by its library.
const OURS: [&str; 14] = [
    "TB_",
    "TBMQ_",
    "MQTT_",
    "LISTENER_",
    "CONTROL_",
    "HTTP_",
    "DATABASE_",
    "REDIS_",
    "SECURITY_",
    "SPRING_",
    "SQL_",
    "INTEGRATIONS_",
    "OTEL_",
    "CACHE_",
];

/// Variables of the OpenTelemetry specification, and of the Compose files themselves.
const OTHERS: [&str; 8] = [
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
    "MQTT_PUBLISH",
    "MQTT_WS_PUBLISH",
    "TBMQ_IMAGE",
    "REDISCLI_AUTH",
];

/// Programs whose sources read settings.
const SOURCES: [&str; 5] =
    ["compose/standalone/", "control-plane/src/", "data-plane/src/", "executor/src/", "proto/service/src/"];

pub(super) fn check(files: &[File]) -> Vec<Violation> {
    let mut violations = settings(files);
    violations.extend(alerts(files));
    violations.extend(versions(files));
    violations
}

fn text<'a>(files: &'a [File], path: &str) -> &'a str {
    files.iter().find(|file| file.path == path).map_or("", |file| file.text.as_str())
}

/// Rule `setting`: every environment variable that looks like ours is one that a program reads.
fn settings(files: &[File]) -> Vec<Violation> {
    let is_source = |file: &&File| {
        has_ending(&file.path, "rs") && SOURCES.iter().any(|source| file.path.starts_with(source))
    };
    let known: BTreeSet<&str> = files
        .iter()
        .filter(is_source)
        .flat_map(|file| file.text.split('"').filter(|word| is_name(word)))
        .chain(OTHERS)
        .collect();
    let mut violations = Vec::new();
    for file in files {
        let is_place = PLACES.iter().any(|(folder, endings)| {
            file.path.starts_with(folder) && endings.iter().any(|ending| has_ending(&file.path, ending))
        });
        if !is_place {
            continue;
        }
        for (number, line) in file.text.lines().enumerate() {
            let words = line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            let ours =
                words.filter(|word| is_name(word) && OURS.iter().any(|prefix| word.starts_with(prefix)));
            for unknown in ours.filter(|word| !known.contains(word)) {
                let place = format!("{}:{}", file.path, number + 1);
                violations.push(Violation::new("setting", place, format!("{unknown} is read by no program")));
            }
        }
    }
    violations
}

fn is_name(word: &str) -> bool {
    word.contains('_')
        && word.starts_with(|c: char| c.is_ascii_uppercase())
        && word.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
}

/// Rule `alert`: every alert has a runbook, a severity, and tests in which it fires and does not; every runbook an alert.
fn alerts(files: &[File]) -> Vec<Violation> {
    const ALERTS: &str = "compose/prometheus/alerts.yml";
    const RUNBOOKS: &str = "docs/runbooks.md";
    let runbooks = text(files, RUNBOOKS);
    let tests = text(files, "compose/prometheus/alerts.test.yml");
    let mut violations = Vec::new();
    let mut names = BTreeSet::new();
    for alert in text(files, ALERTS).split("- alert: ").skip(1) {
        let name = alert.lines().next().unwrap_or_default();
        names.insert(name);
        let mut wants = |is_there: bool, what: String| {
            if !is_there {
                violations.push(Violation::new("alert", format!("{ALERTS}: {name}"), what));
            }
        };
        let anchor = format!("runbook: {RUNBOOKS}#{}", name.to_lowercase());
        wants(alert.contains(&anchor), format!("has no `{anchor}`"));
        wants(runbooks.contains(&format!("\n### {name}\n")), format!("{RUNBOOKS} has no `### {name}`"));
        let is_graded =
            ["critical", "warning"].iter().any(|grade| alert.contains(&format!("severity: {grade}\n")));
        wants(is_graded, "severity is neither critical nor warning".to_owned());
        for needed in ["for: ", "summary: ", "description: "] {
            wants(alert.contains(needed), format!("has no `{needed}`"));
        }
        for outcome in ["fires", "does not fire"] {
            let test = format!("- name: {name} {outcome}\n");
            wants(tests.contains(&test), format!("no test is called `{name} {outcome}`"));
        }
    }
    for title in runbooks.lines().filter_map(|line| line.strip_prefix("### ")) {
        if !names.contains(title) {
            violations.push(Violation::new(
                "alert",
                format!("{RUNBOOKS}: {title}"),
                "there is no such alert",
            ));
        }
    }
    violations
}

/// Rule `version`: images are built by the toolchain of the workspace and called by its version.
fn versions(files: &[File]) -> Vec<Violation> {
    let value = |path: &str, key: &str| {
        let line = text(files, path).lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_default().trim_matches([' ', '=', '"']).to_owned()
    };
    let toolchain = value("rust-toolchain.toml", "channel");
    let version = value("Cargo.toml", "version");
    let mut wanted = vec![("Dockerfile".to_owned(), format!("FROM rust:{toolchain}-"))];
    for file in ["one-node.yaml", "cluster.yaml"] {
        wanted.push((format!("compose/docker/{file}"), format!("image: ${{TBMQ_IMAGE:-tbmq:{version}}}\n")));
    }
    wanted.push(("compose/docker/.env.example".to_owned(), format!("TBMQ_IMAGE=tbmq:{version}\n")));
    for file in ["base", "overlays/one-node"] {
        wanted
            .push((format!("compose/kubernetes/{file}/kustomization.yaml"), format!("newTag: {version}\n")));
    }
    let missing = wanted.into_iter().filter(|(path, needed)| !text(files, path).contains(needed));
    missing
        .map(|(path, needed)| Violation::new("version", path, format!("has no `{}`", needed.trim_end())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    fn places(violations: &[Violation]) -> Vec<&str> {
        violations.iter().map(|violation| violation.place.as_str()).collect()
    }

    #[test]
    fn a_setting_that_no_program_reads_is_found_with_its_line() {
        let source = file("data-plane/src/config.rs", r#"Setting { env: "MQTT_SESSIONS_LIMIT", key: "x" }"#);
        let good = "  MQTT_SESSIONS_LIMIT: 5\n  POSTGRES_DB: x\n";
        assert_eq!(settings(&[source.clone(), file("compose/docker/a.yaml", good)]), []);
        let bad = file("compose/systemd/a.env", "\nMQTT_SESSION_LIMIT=5\n");
        assert_eq!(places(&settings(&[source, bad])), ["compose/systemd/a.env:2"]);
    }

    #[test]
    fn an_alert_without_a_runbook_or_a_test_is_found_and_a_runbook_without_an_alert() {
        let alert = "- alert: A\n for: 1m\n severity: critical\n summary: a\n description: a\n runbook: docs/runbooks.md#a\n";
        let tests = "- name: A fires\n- name: A does not fire\n";
        let all = |alerts: &str, tests: &str, runbooks: &str| {
            alerts_of([
                ("compose/prometheus/alerts.yml", alerts),
                ("compose/prometheus/alerts.test.yml", tests),
                ("docs/runbooks.md", runbooks),
            ])
        };
        assert_eq!(all(alert, tests, "\n### A\n"), 0);
        assert_eq!(all(alert, "- name: A fires\n", "\n### A\n"), 1);
        assert_eq!(all(alert, tests, "\n### B\n"), 2);
        assert_eq!(all(&alert.replace("critical", "page"), tests, "\n### A\n"), 1);
    }

    fn alerts_of(files: [(&str, &str); 3]) -> usize {
        alerts(&files.map(|(path, text)| file(path, text))).len()
    }

    #[test]
    fn an_image_of_another_version_is_found() {
        let files = [
            file("rust-toolchain.toml", "channel = \"1.95.0\"\n"),
            file("Cargo.toml", "version = \"0.1.0\"\n"),
            file("Dockerfile", "FROM rust:1.94.0-slim AS build\n"),
        ];
        assert_eq!(places(&versions(&files))[0], "Dockerfile");
    }
}
