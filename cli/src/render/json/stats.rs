//! Statistics and the backlog.

use serde::Serialize;
use tbmq_proto::control::{self, integration_stats};

use super::time;
use crate::commands::top::Row;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Lag {
    messages: u64,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    time_to_drain_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept_until: Option<String>,
    expired: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic_removal_time: Option<String>,
}

impl From<&control::Lag> for Lag {
    fn from(from: &control::Lag) -> Self {
        Self {
            messages: from.messages,
            seconds: from.seconds,
            time_to_drain_seconds: from.time_to_drain.as_ref().map(seconds),
            kept_until: time(from.kept_until),
            expired: from.expired,
            topic_removal_time: time(from.topic_removal_time),
        }
    }
}

/// Of a duration.
pub(crate) fn seconds(duration: &prost_types::Duration) -> f64 {
    duration.seconds as f64 + f64::from(duration.nanos) / 1e9
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Counters {
    written: u64,
    delivered: u64,
    rejected: u64,
    skipped: u64,
    dead_lettered: u64,
    expired: u64,
    retries: u64,
}

impl From<&integration_stats::Counters> for Counters {
    fn from(from: &integration_stats::Counters) -> Self {
        Self {
            written: from.written,
            delivered: from.delivered,
            rejected: from.rejected,
            skipped: from.skipped,
            dead_lettered: from.dead_lettered,
            expired: from.expired,
            retries: from.retries,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Stats {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    counters: Counters,
    #[serde(skip_serializing_if = "Option::is_none")]
    lag: Option<Lag>,
    #[serde(skip_serializing_if = "Option::is_none")]
    written_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    settled_per_second: Option<f64>,
}

impl From<&control::IntegrationStats> for Stats {
    fn from(from: &control::IntegrationStats) -> Self {
        Self {
            name: from.name.clone(),
            time: time(from.time),
            counters: Counters::from(&from.counters.unwrap_or_default()),
            lag: from.lag.as_ref().map(Lag::from),
            written_per_second: from.written_per_second,
            settled_per_second: from.settled_per_second,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Top {
    name: String,
    display_name: String,
    r#type: String,
    phase: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    written_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delivered_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lag: Option<Lag>,
    counters: Counters,
}

impl From<&Row> for Top {
    fn from(from: &Row) -> Self {
        Self {
            name: from.name.clone(),
            display_name: from.display_name.clone(),
            r#type: from.kind.clone(),
            phase: super::phase(&from.status),
            written_per_second: from.written,
            delivered_per_second: from.delivered,
            failed_per_second: from.failed,
            lag: from.lag.as_ref().map(Lag::from),
            counters: Counters::from(&from.counters),
        }
    }
}
