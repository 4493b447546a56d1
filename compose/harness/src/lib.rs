//! Real servers and our own processes for tests, and the ledger that judges them.
//!
//! | module | what |
//! |---|---|
//! | [`kafka`], [`postgres`], [`redis`], [`mosquitto`], [`prometheus`] | real servers and clients, started natively on free ports, stopped by pid |
//! | [`process`] | our own binaries: start, addresses, kill -9, drain, CPU time and memory |
//! | [`client`] | an MQTT client over the workspace's codec that remembers what was acknowledged |
//! | [`http_sink`] | an HTTP server that records what arrives |
//! | [`collector`] | a collector of OpenTelemetry that keeps the spans it is sent |
//! | [`port`] | a TCP port that is closed and opened again |
//! | [`proxy`] | a TCP proxy that goes down, swallows, cuts and refuses |
//! | [`toolbox`] | Python's gRPC packages and grpcurl, for the examples in `clients/` |
//! | [`linters`] | linters and schemas of what deploys TBMQ |
//! | [`libraries`] | MQTT libraries of other languages, each in a program that takes commands |
//! | [`ledger`] | the independent checker: nothing acknowledged is missing, nothing is out of order, all is accounted for |
//!
//! Nothing here is part of the product. A server that is missing on the machine is reported with the command that
//! installs it; see [`availability`].
#![allow(clippy::print_stderr, reason = "test infrastructure speaks on stderr")]

pub mod client;
pub mod collector;
pub mod guard;
pub mod http_sink;
pub mod kafka;
pub mod ledger;
pub mod libraries;
pub mod linters;
pub mod mosquitto;
pub mod port;
pub mod postgres;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod redis;
pub mod toolbox;

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

/// What a test needs that the machine may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Apache Kafka, from Maven Central.
    Kafka,
    /// PostgreSQL's server binaries.
    Postgres,
    /// Redis's server.
    Redis,
    /// `mosquitto_pub` and `mosquitto_sub`.
    Mosquitto,
    /// Mosquitto's broker.
    MosquittoBroker,
    /// Prometheus's server and promtool.
    Prometheus,
    /// Python's gRPC packages, from PyPI.
    Python,
    /// grpcurl, from Go's module proxy.
    Grpcurl,
    /// An MQTT library and what runs it.
    Library(libraries::Library),
}

/// Tells what is missing of `needs`, each with the command that installs it.
pub fn availability(needs: &[Need]) -> Result<(), String> {
    let missing: Vec<String> = needs
        .iter()
        .filter_map(|need| {
            match need {
                Need::Kafka => kafka::availability(),
                Need::Postgres => postgres::availability(),
                Need::Redis => redis::availability(),
                Need::Mosquitto => mosquitto::availability(),
                Need::MosquittoBroker => mosquitto::broker_availability(),
                Need::Prometheus => prometheus::availability(),
                Need::Python => toolbox::python_availability(),
                Need::Grpcurl => toolbox::grpcurl_availability(),
                Need::Library(library) => library.availability(),
            }
            .err()
        })
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(missing.join("; ")) }
}

/// Tells whether a test that needs these may run. Under `CI=true` a missing server is a failure; elsewhere the test
/// is skipped with a line on stderr that `cargo xtask test` counts.
///
/// # Panics
/// Under `CI=true` when something is missing.
pub fn ready(test: &str, needs: &[Need]) -> bool {
    match availability(needs) {
        Ok(()) => true,
        Err(missing) if std::env::var_os("CI").is_some_and(|value| value == "true") => {
            panic!("{test} can't run: {missing}")
        }
        Err(missing) => {
            eprintln!("SKIPPED {test}: {missing}");
            false
        }
    }
}

/// Two digits for each byte, in lower case.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes what is written");
        text
    })
}

/// Where something lies that is fetched once: in `target/servers`, or `TBMQ_SERVERS_DIR`.
fn fetched(name: &str) -> PathBuf {
    let servers = std::env::var_os("TBMQ_SERVERS_DIR").map(PathBuf::from).unwrap_or_else(|| {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        here.ancestors().nth(2).unwrap_or(here).join("target/servers")
    });
    servers.join(name)
}
