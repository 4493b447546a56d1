//! A control plane in this process, over the bus in memory and SQLite, with executors and data planes played by the
//! tests.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod api;
mod ownership;
mod postgres;
mod relay;
mod replicas;
mod sealed;
mod shards;
mod store;
mod support;
mod topics;
mod watch;
