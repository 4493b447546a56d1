//! A control plane in this process, over the bus in memory and SQLite, with executors and data planes played by the
//! tests.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod access;
mod api;
mod blocked;
mod crash;
mod credentials;
mod event_log;
mod events;
mod fuzz;
mod kafka;
mod nodes;
mod overload;
mod ownership;
mod postgres;
mod providers;
mod relay;
mod replicas;
mod sealed;
mod sessions;
mod shards;
mod stats;
mod store;
mod support;
mod tls;
mod topics;
mod tracing;
mod unauthorized;
mod uplink;
mod watch;
mod watch_cut;
