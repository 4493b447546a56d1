//! The whole road, with real processes, real servers and the ledger.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::print_stdout, reason = "an audit is worth reading when its test passes, too")]

mod administered;
mod agree;
mod apply;
mod chaos;
mod clients;
mod command_line;
mod crash;
mod credentials;
mod dashboards;
mod examples;
mod fencing;
mod kafka;
mod kinds;
mod planted;
mod readme;
mod replicas;
mod rolling;
mod scenarios;
mod secrets;
mod sessions;
mod several;
mod sinks;
mod stats;
mod storm;
mod tracing;
mod twins;
