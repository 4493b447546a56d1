//! The whole road, with real processes, real servers and the ledger.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod api;
mod clients;
mod command_line;
mod crash;
mod deployment;
mod planted;
mod scenarios;
mod work;
