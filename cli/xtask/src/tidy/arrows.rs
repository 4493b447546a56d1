//! Dependencies point one way, and pure crates stay pure (architecture §2).

use std::{collections::BTreeMap, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use cargo_metadata::{DependencyKind, MetadataCommand};

use super::Violation;

/// What each crate of the workspace may depend on within it (tests excepted).
const ARROWS: &[(&str, &[&str])] = &[
    (
        "tbmq",
        &["tbmq-bus", "tbmq-control-plane", "tbmq-data-plane", "tbmq-executor", "tbmq-proto", "tbmq-service"],
    ),
    ("tbmq-auth", &["tbmq-mqtt"]),
    ("tbmq-bench", &["tbmq-auth", "tbmq-bus", "tbmq-e2e", "tbmq-harness", "tbmq-mqtt", "tbmq-proto"]),
    ("tbmq-bus", &["tbmq-proto"]),
    ("tbmq-client-example", &["tbmq-proto"]),
    (
        "tbmq-control-plane",
        &[
            "tbmq-auth",
            "tbmq-bus",
            "tbmq-integration",
            "tbmq-migrations",
            "tbmq-mqtt",
            "tbmq-proto",
            "tbmq-service",
        ],
    ),
    (
        "tbmq-data-plane",
        &["tbmq-auth", "tbmq-bus", "tbmq-integration", "tbmq-mqtt", "tbmq-proto", "tbmq-service"],
    ),
    ("tbmq-e2e", &["tbmq-bus", "tbmq-harness", "tbmq-mqtt", "tbmq-proto"]),
    ("tbmq-executor", &["tbmq-bus", "tbmq-integration", "tbmq-mqtt", "tbmq-proto", "tbmq-service"]),
    ("tbmq-harness", &["tbmq-mqtt"]),
    ("tbmq-integration", &["tbmq-proto"]),
    ("tbmq-migrations", &[]),
    ("tbmq-mqtt", &[]),
    ("tbmq-proto", &[]),
    ("tbmq-service", &["tbmq-proto"]),
    ("tbmq-sim", &["tbmq-bus", "tbmq-integration", "tbmq-mqtt", "tbmq-proto"]),
    ("tbmq-steps", &["tbmq-integration", "tbmq-mqtt", "tbmq-proto"]),
    ("tbmqctl", &["tbmq-mqtt", "tbmq-proto"]),
    ("xtask", &["tbmq-harness"]),
];

/// Crates without I/O, and what must not be in their trees.
const PURE: &[&str] = &["tbmq-auth", "tbmq-integration", "tbmq-mqtt", "tbmq-proto"];
const IMPURE: &[&str] = &["hyper", "rdkafka", "sea-orm", "socket2", "tokio"];

/// Crates that only some of ours may name (architecture §5.7).
const RESERVED: &[(&str, &[&str])] = &[
    // The executor for its Kafka sink, the benchmark for the floor of it.
    ("rdkafka", &["tbmq-bench", "tbmq-bus", "tbmq-executor"]),
    ("sea-orm", &["tbmq-control-plane"]),
    ("sea-orm-migration", &["tbmq-control-plane", "tbmq-migrations"]),
    // For TBMQ's database, which is only read.
    ("sqlx", &["tbmqctl"]),
];

/// The workspace as the rules see it.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    /// Crate → its direct dependencies, tests excepted.
    pub(super) dependencies: BTreeMap<String, Vec<String>>,
    /// Pure crate → everything in its tree.
    pub(super) trees: BTreeMap<String, Vec<String>>,
}

/// Asks cargo.
pub(super) fn read(root: &Path) -> Result<Workspace> {
    let metadata = MetadataCommand::new().manifest_path(root.join("Cargo.toml")).no_deps().exec()?;
    let mut workspace = Workspace::default();
    for package in &metadata.packages {
        let names =
            package.dependencies.iter().filter(|dependency| dependency.kind != DependencyKind::Development);
        let names = names.map(|dependency| dependency.name.clone()).collect();
        workspace.dependencies.insert(package.name.to_string(), names);
    }
    for name in PURE {
        let output = Command::new("cargo")
            .args(["tree", "--locked", "--package", name, "--edges", "normal", "--prefix", "none"])
            .args(["--format", "{p}"])
            .current_dir(root)
            .output()
            .context("cargo tree could not be started")?;
        ensure!(output.status.success(), "cargo tree failed: {}", String::from_utf8_lossy(&output.stderr));
        let tree = String::from_utf8(output.stdout)?;
        let names =
            tree.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
        workspace.trees.insert((*name).to_owned(), names);
    }
    Ok(workspace)
}

/// Rules `arrows`, `pure` and `reserved`.
pub(super) fn check(workspace: &Workspace) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (name, dependencies) in &workspace.dependencies {
        let Some((_, allowed)) = ARROWS.iter().find(|(crate_name, _)| crate_name == name) else {
            let text = "a new crate: add it to ARROWS in tidy/arrows.rs and to ARCHITECTURE.md";
            violations.push(Violation::new("arrows", name, text));
            continue;
        };
        for dependency in dependencies {
            let ours = workspace.dependencies.contains_key(dependency);
            if ours && !allowed.contains(&dependency.as_str()) {
                let text = format!("must not depend on {dependency}: dependencies point one way");
                violations.push(Violation::new("arrows", name, text));
            }
            let reserved = RESERVED.iter().find(|(reserved, _)| reserved == dependency);
            if let Some((_, owners)) = reserved.filter(|(_, owners)| !owners.contains(&name.as_str())) {
                let text = format!("must not depend on {dependency}: only {} may", owners.join(", "));
                violations.push(Violation::new("reserved", name, text));
            }
        }
    }
    for (name, tree) in &workspace.trees {
        for impure in IMPURE.iter().filter(|impure| tree.iter().any(|other| other == *impure)) {
            violations.push(Violation::new(
                "pure",
                name,
                format!("has {impure} in its tree: it does no I/O"),
            ));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(dependencies: &[(&str, &[&str])], trees: &[(&str, &[&str])]) -> Vec<&'static str> {
        let owned = |pairs: &[(&str, &[&str])]| {
            pairs
                .iter()
                .map(|(name, others)| ((*name).to_owned(), others.iter().map(|s| (*s).to_owned()).collect()))
                .collect()
        };
        let workspace = Workspace { dependencies: owned(dependencies), trees: owned(trees) };
        check(&workspace).into_iter().map(|violation| violation.rule).collect()
    }

    #[test]
    fn a_plane_that_depends_on_another_is_found() {
        let both: &[(&str, &[&str])] = &[("tbmq-executor", &["tbmq-data-plane"]), ("tbmq-data-plane", &[])];
        assert_eq!(rules(both, &[]), ["arrows"]);
        assert_eq!(rules(&[("tbmq-executor", &["tbmq-bus"]), ("tbmq-bus", &[])], &[]), [""; 0]);
    }

    #[test]
    fn a_crate_that_nobody_declared_is_found() {
        assert_eq!(rules(&[("tbmq-util", &[])], &[]), ["arrows"]);
    }

    #[test]
    fn io_in_a_pure_tree_is_found() {
        assert_eq!(rules(&[], &[("tbmq-mqtt", &["bytes", "tokio"])]), ["pure"]);
    }

    #[test]
    fn a_kafka_client_outside_the_bus_is_found() {
        assert_eq!(rules(&[("tbmq-data-plane", &["rdkafka"])], &[]), ["reserved"]);
    }
}
