//! What every process of TBMQ has around its work.
//!
//! * [`shell`]: the whole of a plane's `main.rs`: arguments, configuration, telemetry, admin endpoint, signals,
//!   exit codes.
//! * [`config`]: defaults → YAML file → environment, with errors that name key, value and origin.
//! * [`bus_config`]: the settings of Kafka that all planes share, as plain data.
//! * [`secrets_config`]: where the keys of secrets are, for the planes that need them.
//! * [`identity`], [`build_info`], [`time`]: who is running, since when, in which version.
//! * [`telemetry`], [`metrics`], [`admin`]: logs on stderr, one metrics registry, `/livez` `/readyz` `/metrics`.
//! * [`otlp_metrics`]: the same metrics, pushed to an OpenTelemetry collector.
//! * [`drain`]: the one signal to stop taking work.
//! * [`tls`], [`file`](mod@file): certificates that are read again when their files change.
//! * [`system`]: the load of the machine.
//! * [`trace`]: OpenTelemetry traces: what travels, settings, spans and their export.
#![warn(missing_docs)]

pub mod admin;
pub mod build_info;
pub mod bus_config;
pub mod config;
pub mod drain;
pub mod file;
pub mod identity;
pub mod metrics;
pub mod otlp_metrics;
pub mod secrets_config;
pub mod shell;
pub mod system;
pub mod telemetry;
pub mod time;
pub mod tls;
pub mod trace;
