//! `cargo xtask servers`: what the end-to-end tests need besides Rust.

use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use tbmq_harness::{
    kafka,
    libraries::{self, Library},
    linters, mosquitto, postgres, prometheus, redis, toolbox,
};

/// Tells whether something is missing.
type Test = fn() -> bool;

/// Debian packages: what tells that one is missing, and its name.
const PACKAGES: &[(Test, &str)] = &[
    (|| missing("java"), "openjdk-17-jre-headless"),
    (|| missing("mvn"), "maven"),
    (|| postgres::availability().is_err(), "postgresql"),
    (|| redis::availability().is_err(), "redis-server"),
    (|| mosquitto::availability().is_err(), "mosquitto-clients"),
    (|| mosquitto::broker_availability().is_err(), "mosquitto"),
    (|| missing("valgrind"), "valgrind"),
    (|| prometheus::availability().is_err(), "prometheus"),
    (|| missing("haproxy"), "haproxy"),
    (|| missing("systemd-analyze"), "systemd"),
    (toolbox::pip_is_missing, "python3-pip"),
    (toolbox::go_is_missing, "golang-go"),
    (libraries::npm_is_missing, "npm"),
];

fn missing(program: &str) -> bool {
    Command::new(program).arg("-version").output().is_err()
}

/// Installs with `install`, fetches Kafka, MQTT libraries and what the examples in `clients/` need, and prints a line for
/// each.
pub(crate) fn run(install: bool) -> Result<()> {
    if install {
        install_packages()?;
    }
    let mut all = true;
    let mut checks = vec![
        ("Apache Kafka", kafka::availability()),
        ("PostgreSQL", postgres::availability()),
        ("Redis", redis::availability()),
        ("Mosquitto clients", mosquitto::availability()),
        ("Mosquitto broker", mosquitto::broker_availability()),
        ("Prometheus", prometheus::availability()),
        ("Python's gRPC packages", toolbox::python_availability()),
        ("grpcurl", toolbox::grpcurl_availability()),
        ("Linters of the deployment", linters::availability()),
    ];
    checks.extend(Library::ALL.map(|library| (library.name(), library.availability())));
    for (name, state) in checks {
        match state {
            Ok(()) => println!("{name}: ready"),
            Err(missing) => {
                all = false;
                println!("{name}: {missing}");
            }
        }
    }
    if install && !all {
        bail!("not everything could be installed");
    }
    Ok(())
}

fn install_packages() -> Result<()> {
    let wanted: Vec<&str> =
        PACKAGES.iter().filter(|(is_missing, _)| is_missing()).map(|(_, name)| *name).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    println!("installing {}", wanted.join(" "));
    apt_get(&["update"])?;
    apt_get(&[&["install", "-y", "--no-install-recommends"], &wanted[..]].concat())
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let status = Command::new("apt-get")
        .arg("-qq")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .status()
        .context("apt-get could not be started")?;
    ensure!(status.success(), "apt-get {} failed", arguments.join(" "));
    Ok(())
}
