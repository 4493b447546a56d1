//! What programs get: camelCase, times in RFC 3339, absent values left out. An integration that was printed loads again
//! with `-f`.

mod access;
mod auth;
mod kafka;
mod retained;
mod session;
mod stats;

use std::collections::BTreeMap;

use prost_types::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use tbmq_proto::control::{self, CheckConnectionResponse, integration_status::Phase};

use self::stats::Lag;
pub(crate) use self::{
    access::{AuditEntry, Caller, CreatedToken, Token, role},
    auth::{
        Blocked, Order, Provider, Unauthorized, blocked_status, blocked_type, match_target, provider_type,
    },
    kafka::{Cluster, Group, GroupLag, Topic, owner},
    retained::Retained,
    session::{ClientSubscription, Session, SessionCounts, SharedSubscription, Subscription},
    stats::{Stats, Top, seconds},
};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Integration {
    name: String,
    uid: String,
    display_name: String,
    r#type: String,
    enabled: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    configuration: Box<RawValue>,
    status: Status,
    revision: u64,
    etag: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    create_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    update_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disconnected_time: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    phase: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    service_id: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    holders: Vec<Holder>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lag: Option<Lag>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Holder {
    service_id: String,
    role: String,
    /// Of an executor: which shard it holds, and since which claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    shard: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ownership_epoch: Option<u64>,
    observed_revision: u64,
    state: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    update_time: Option<String>,
}

impl From<&control::Integration> for Integration {
    fn from(from: &control::Integration) -> Self {
        let status = from.status.clone().unwrap_or_default();
        Self {
            name: from.name.clone(),
            uid: from.uid.clone(),
            display_name: from.display_name.clone(),
            r#type: from.r#type.clone(),
            enabled: from.enabled,
            description: from.description.clone(),
            labels: from.labels.clone().into_iter().collect(),
            configuration: raw(&from.configuration_json),
            status: Status {
                phase: phase(&status),
                reason: status.reason,
                error: status.error,
                service_id: status.service_id,
                holders: status.holders.into_iter().map(Holder::from).collect(),
                lag: status.lag.as_ref().map(Lag::from),
            },
            revision: from.revision,
            etag: from.etag.clone(),
            create_time: time(from.create_time),
            update_time: time(from.update_time),
            disconnected_time: time(from.disconnected_time),
        }
    }
}

impl From<control::Holder> for Holder {
    fn from(from: control::Holder) -> Self {
        let is_executor = from.role == "EXECUTOR";
        Self {
            service_id: from.service_id,
            role: from.role,
            shard: is_executor.then_some(from.shard),
            ownership_epoch: is_executor.then_some(from.ownership_epoch),
            observed_revision: from.observed_revision,
            state: from.state,
            error: from.error,
            update_time: time(from.update_time),
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Change {
    r#type: &'static str,
    revision: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    integration: Option<Changed>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Changed {
    Is(Box<Integration>),
    Was { name: String, uid: String },
}

impl From<&control::WatchIntegrationsResponse> for Change {
    fn from(from: &control::WatchIntegrationsResponse) -> Self {
        let is_deleted = from.r#type() == control::watch_integrations_response::Type::Deleted;
        let changed = |one: &control::Integration| {
            if is_deleted {
                Changed::Was { name: one.name.clone(), uid: one.uid.clone() }
            } else {
                Changed::Is(Box::new(Integration::from(one)))
            }
        };
        Self {
            r#type: change(from),
            revision: from.revision,
            integration: from.integration.as_ref().map(changed),
        }
    }
}

/// The type of a change without the enum's prefix.
pub(crate) fn change(from: &control::WatchIntegrationsResponse) -> &'static str {
    from.r#type().as_str_name().trim_start_matches("TYPE_")
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Event {
    uid: String,
    integration: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    service_id: String,
    shard: u32,
    revision: u64,
    #[serde(flatten)]
    body: Option<Body>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "type")]
enum Body {
    Lifecycle {
        event: String,
        success: bool,
        #[serde(skip_serializing_if = "String::is_empty")]
        error: String,
    },
    Statistics {
        messages_processed: u64,
        errors_occurred: u64,
    },
    Error {
        method: String,
        error: String,
        count: u64,
    },
}

impl From<&control::Event> for Event {
    fn from(from: &control::Event) -> Self {
        use control::event::Body as From;
        Self {
            uid: from.uid.clone(),
            integration: from.integration.clone(),
            time: time(from.time),
            service_id: from.service_id.clone(),
            shard: from.shard,
            revision: from.revision,
            body: from.body.clone().map(|body| match body {
                From::Lifecycle(body) => {
                    Body::Lifecycle { event: body.event, success: body.success, error: body.error }
                }
                From::Statistics(body) => Body::Statistics {
                    messages_processed: body.messages_processed,
                    errors_occurred: body.errors_occurred,
                },
                From::Error(body) => {
                    Body::Error { method: body.method, error: body.error, count: body.count }
                }
            }),
        }
    }
}

/// An event with the place after which a watch goes on.
#[derive(Debug, Serialize)]
pub(crate) struct SequencedEvent {
    sequence: u64,
    #[serde(flatten)]
    event: Event,
}

impl SequencedEvent {
    pub(crate) fn new(event: &control::Event, sequence: u64) -> Self {
        Self { sequence, event: event.into() }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Node {
    service_id: String,
    role: String,
    incarnation: String,
    version: String,
    live: bool,
    addresses: Vec<String>,
    kinds: Vec<String>,
    session: bool,
    draining: bool,
    /// Of a data plane.
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    system_info: Option<SystemInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seen_time: Option<String>,
    applied: Vec<Applied>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SystemInfo {
    cpu_percent: u32,
    cpu_count: u32,
    memory_percent: u32,
    total_memory_bytes: u64,
    disk_percent: u32,
    total_disk_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Applied {
    topic: String,
    partition: u32,
    position: u64,
}

impl From<&control::Node> for Node {
    fn from(from: &control::Node) -> Self {
        let from = from.clone();
        let is_data_plane = from.role == "DATA_PLANE";
        Self {
            service_id: from.service_id,
            role: from.role,
            incarnation: from.incarnation,
            version: from.version,
            live: from.live,
            addresses: from.addresses,
            kinds: from.kinds,
            session: from.session,
            draining: from.draining,
            connections: is_data_plane.then_some(from.connections),
            system_info: from.system_info.map(|info| SystemInfo {
                cpu_percent: info.cpu_percent,
                cpu_count: info.cpu_count,
                memory_percent: info.memory_percent,
                total_memory_bytes: info.total_memory_bytes,
                disk_percent: info.disk_percent,
                total_disk_bytes: info.total_disk_bytes,
            }),
            start_time: time(from.start_time),
            last_seen_time: time(from.last_seen_time),
            applied: from
                .applied
                .into_iter()
                .map(|at| Applied { topic: at.topic, partition: at.partition, position: at.position })
                .collect(),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Kind {
    name: String,
    service_ids: Vec<String>,
    json_schema: Box<RawValue>,
}

impl From<&control::Kind> for Kind {
    fn from(from: &control::Kind) -> Self {
        Self {
            name: from.name.clone(),
            service_ids: from.service_ids.clone(),
            json_schema: raw(&from.json_schema),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Check {
    ok: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
    executor_id: String,
    elapsed_ms: u64,
    stages: Vec<Stage>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    violations: Vec<Violation>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Stage {
    name: String,
    ok: bool,
    elapsed_ms: u64,
    text: String,
}

#[derive(Debug, Serialize)]
struct Violation {
    path: String,
    text: String,
}

impl From<&CheckConnectionResponse> for Check {
    fn from(from: &CheckConnectionResponse) -> Self {
        let from = from.clone();
        let stage = |stage: control::CheckStage| Stage {
            name: stage.name,
            ok: stage.ok,
            elapsed_ms: stage.elapsed_ms,
            text: stage.text,
        };
        let violation = |found: control::Violation| Violation { path: found.path, text: found.text };
        Self {
            ok: from.ok,
            error: from.error,
            executor_id: from.executor_id,
            elapsed_ms: from.elapsed_ms,
            stages: from.stages.into_iter().map(stage).collect(),
            violations: from.violations.into_iter().map(violation).collect(),
        }
    }
}

/// The phase without the enum's prefix.
pub(crate) fn phase(status: &control::IntegrationStatus) -> &'static str {
    match status.phase() {
        Phase::Unspecified => "UNKNOWN",
        Phase::Disabled => "DISABLED",
        Phase::Pending => "PENDING",
        Phase::Active => "ACTIVE",
        Phase::Failed => "FAILED",
    }
}

/// RFC 3339.
pub(crate) fn time(time: Option<Timestamp>) -> Option<String> {
    time.map(|time| time.to_string())
}

/// JSON text as it is; what is not JSON becomes a JSON string.
pub(crate) fn raw(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned())
        .or_else(|_| serde_json::value::to_raw_value(text))
        .expect("a text can be written as JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    pub(crate) fn integration() -> control::Integration {
        control::Integration {
            name: "integrations/0e2ffa8e-52c9-4a3f-8d0f-1f2e3d4c5b6a".to_owned(),
            uid: "0e2ffa8e-52c9-4a3f-8d0f-1f2e3d4c5b6a".to_owned(),
            display_name: "sensors".to_owned(),
            r#type: "HTTP".to_owned(),
            enabled: true,
            configuration_json: r#"{ "topicFilters":["a/#"],  "n":1.0 }"#.to_owned(),
            labels: [("zone".to_owned(), "a".to_owned())].into(),
            revision: 7,
            etag: "\"7\"".to_owned(),
            create_time: Some(Timestamp { seconds: 1_742_554_969, nanos: 254_000_000 }),
            ..control::Integration::default()
        }
    }

    #[test]
    fn a_printed_integration_loads_again_with_its_configuration_byte_for_byte() {
        let from = integration();
        let text = serde_json::to_string_pretty(&Integration::from(&from)).unwrap();
        let document = Document::parse(&text).unwrap();
        assert_eq!(document.configuration_json, from.configuration_json);
        let again = document.into_integration();
        assert_eq!((again.name, again.etag, again.labels), (from.name, from.etag, from.labels));
    }

    #[test]
    fn yaml_takes_the_configuration_apart() {
        let value = serde_json::to_value(Integration::from(&integration())).unwrap();
        let yaml = serde_norway::to_string(&value).unwrap();
        assert!(yaml.contains("configuration:\n  topicFilters:\n  - a/#\n"), "{yaml}");
        assert!(Document::parse(&yaml).is_ok());
    }

    #[test]
    fn times_are_rfc_3339() {
        let value = serde_json::to_value(Integration::from(&integration())).unwrap();
        assert_eq!(value["createTime"], "2025-03-21T11:02:49.254Z");
        assert!(value.get("updateTime").is_none());
    }

    #[test]
    fn an_event_names_its_type() {
        use control::event::{Body, Lifecycle};
        let body =
            Body::Lifecycle(Lifecycle { event: "STARTED".to_owned(), success: true, error: String::new() });
        let event = control::Event { uid: "u".to_owned(), body: Some(body), ..control::Event::default() };
        let value = serde_json::to_value(Event::from(&event)).unwrap();
        assert_eq!((&value["type"], &value["event"]), (&"lifecycle".into(), &"STARTED".into()));
    }
}
