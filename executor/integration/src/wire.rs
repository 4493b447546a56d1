//! Records of the integration topics ⇄ our own types.
//!
//! Reading never panics and never guesses: a record that can't be understood is an [`Error`] for the driver to log
//! with topic, partition and offset, to count, and to skip.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use prost::Message as _;
use tbmq_proto::{
    ids::{IntegrationId, Kind, ShardId, halves},
    integration as proto,
    integration::ComponentLifecycleEventProto as Event,
};
use uuid::Uuid;

use crate::{
    entity::Violation,
    pack::Settled,
    seal::{Purpose, Sealed},
};

/// A record that can't be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes are not the message.
    #[error("not a {message}: {reason}")]
    Malformed {
        /// Name of the protobuf message.
        message: &'static str,
        /// What the decoder said.
        reason: String,
    },
    /// A field has no or a senseless value.
    #[error("{field} {problem}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

fn malformed(message: &'static str) -> impl Fn(prost::DecodeError) -> Error {
    move |error| Error::Malformed { message, reason: error.to_string() }
}

/// What a downlink record says.
#[derive(Clone, Debug, PartialEq)]
pub enum Downlink {
    /// The desired state of a shard.
    Desired(Desired),
    /// A request to validate or check; the record's key is the request id.
    Request(ValidationRequest),
    /// The key's record is withdrawn (a deleted integration after 24 h, or an ended request).
    Withdrawn,
}

/// The desired state of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The shard.
    pub shard: ShardId,
    /// Number of shards, at least 1.
    pub shard_count: u32,
    /// The kind.
    pub kind: Kind,
    /// Revision of the configuration; 0 when the record had no header (written by TBMQ).
    pub revision: u64,
    /// Generation of the message topic.
    pub generation: u64,
    /// What happened; [`Change::Deleted`] carries no target.
    pub change: Change,
}

/// What happened to an integration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Created, updated, or to be started anew: this is what is to run.
    Apply {
        /// CREATED, UPDATED or REINIT.
        cause: Cause,
        /// What is to run.
        target: Target,
    },
    /// Deleted.
    Deleted,
}

/// Why a configuration was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// CREATED.
    Created,
    /// UPDATED.
    Updated,
    /// REINIT: stop and start even if nothing has changed.
    Reinit,
}

/// What is to run.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// Name of the integration.
    pub name: Arc<str>,
    /// Whether it is to run at all.
    pub enabled: bool,
    /// The configuration document, JSON text; with masks in the places of what is sealed.
    pub configuration: Arc<str>,
    /// The secrets of the document, if they are encrypted.
    pub sealed: Option<Sealed>,
}

impl fmt::Debug for Target {
    // The configuration may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, enabled, sealed, .. } = self;
        f.debug_struct("Target")
            .field("name", name)
            .field("enabled", enabled)
            .field("sealed", sealed)
            .finish_non_exhaustive()
    }
}

/// What an executor is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestType {
    /// Check the configuration; connect to nothing.
    Validate,
    /// Connect to the external system.
    CheckConnection,
}

impl RequestType {
    fn as_str(self) -> &'static str {
        match self {
            Self::Validate => "VALIDATE",
            Self::CheckConnection => "CHECK_CONNECTION",
        }
    }
}

/// A request to an executor.
#[derive(Clone, PartialEq, Eq)]
pub struct ValidationRequest {
    /// Correlation id, and key of the record.
    pub id: Uuid,
    /// Service id of the control plane that waits.
    pub reply_to: String,
    /// What is asked.
    pub request_type: RequestType,
    /// The integration; a random id when it is not saved.
    pub integration: IntegrationId,
    /// The kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Whether it is to be enabled.
    pub enabled: bool,
    /// The configuration document, JSON text; with masks in the places of what is sealed.
    pub configuration: String,
    /// The secrets of the document, if they are encrypted.
    pub sealed: Option<Sealed>,
    /// Epoch ms of creation.
    pub created_ms: i64,
    /// Epoch ms after which no reply is expected; 0 or less: none.
    pub deadline_ms: i64,
}

impl fmt::Debug for ValidationRequest {
    // The configuration may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValidationRequest")
            .field("id", &self.id)
            .field("request_type", &self.request_type)
            .field("integration", &self.integration)
            .field("kind", &self.kind)
            .field("sealed", &self.sealed)
            .finish_non_exhaustive()
    }
}

/// An executor's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidationReply {
    /// The request's id.
    pub id: Uuid,
    /// Why not; `None`: accepted.
    pub error: Option<String>,
    /// Every problem found.
    pub violations: Vec<Violation>,
    /// What a connection check went through.
    pub stages: Vec<Stage>,
    /// Service id of the executor.
    pub executor: String,
}

/// One stage of a connection check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// resolve, connect, tls, request, ...
    pub name: String,
    /// Whether it went well.
    pub ok: bool,
    /// How long it took, ms.
    pub elapsed_ms: u64,
    /// What was found.
    pub text: String,
}

/// Reads a downlink record. `value` is `None` or empty for a tombstone.
///
/// # Errors
/// When the record can't be understood; skip it.
pub fn decode_downlink(value: Option<&Bytes>, revision: Option<&str>) -> Result<Downlink, Error> {
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(Downlink::Withdrawn) };
    let message = proto::DownlinkIntegrationMsgProto::decode(value.clone())
        .map_err(malformed("DownlinkIntegrationMsgProto"))?;
    if let Some(message) = message.integration_msg {
        return decode_desired(message, revision).map(Downlink::Desired);
    }
    match message.validation_request_msg {
        Some(request) => decode_request(request).map(Downlink::Request),
        None => Err(Error::Field {
            field: "DownlinkIntegrationMsgProto",
            problem: "carries neither an integration nor a validation request".to_owned(),
        }),
    }
}

fn decode_desired(message: proto::IntegrationMsgProto, revision: Option<&str>) -> Result<Desired, Error> {
    let cause = match message.event() {
        Event::Created => Some(Cause::Created),
        Event::Updated => Some(Cause::Updated),
        Event::Reinit => Some(Cause::Reinit),
        Event::Deleted => None,
        other => {
            let problem = format!("is {}, which no control plane sends", other.as_str_name());
            return Err(Error::Field { field: "event", problem });
        }
    };
    let change = match cause {
        None => Change::Deleted,
        Some(cause) => Change::Apply {
            cause,
            target: Target {
                name: message.name.unwrap_or_default().into(),
                enabled: message.enabled.unwrap_or_default(),
                configuration: message
                    .configuration
                    .ok_or_else(|| Error::Field { field: "configuration", problem: "is missing".to_owned() })?
                    .into(),
                sealed: sealed(message.sealed, Purpose::Revision(message.revision))?,
            },
        },
    };
    let revision = match revision {
        None => 0,
        Some(text) => text.parse().map_err(|_| Error::Field {
            field: "header revision",
            problem: format!("{text:?} is not a decimal number"),
        })?,
    };
    let integration = IntegrationId::from_halves(message.integration_id_msb, message.integration_id_lsb);
    Ok(Desired {
        shard: ShardId { integration, index: message.shard },
        shard_count: message.shard_count.max(1),
        kind: kind(&message.r#type)?,
        revision,
        generation: message.generation,
        change,
    })
}

fn decode_request(request: proto::IntegrationValidationRequestProto) -> Result<ValidationRequest, Error> {
    let request_type = match request.r#type.as_str() {
        "VALIDATE" => RequestType::Validate,
        "CHECK_CONNECTION" => RequestType::CheckConnection,
        other => {
            let problem = format!("{other:?} is neither VALIDATE nor CHECK_CONNECTION");
            return Err(Error::Field { field: "type", problem });
        }
    };
    let entity = request
        .configuration
        .ok_or_else(|| Error::Field { field: "configuration", problem: "is missing".to_owned() })?;
    let id = uuid(request.id_msb, request.id_lsb);
    Ok(ValidationRequest {
        id,
        reply_to: request.service_id,
        request_type,
        integration: IntegrationId::from_halves(entity.integration_id_msb, entity.integration_id_lsb),
        kind: kind(&entity.r#type)?,
        name: entity.name,
        enabled: entity.enabled,
        configuration: entity.configuration,
        sealed: sealed(entity.sealed, Purpose::Request(id))?,
        created_ms: request.timestamp,
        deadline_ms: request.deadline,
    })
}

fn sealed(message: Option<proto::SealedProto>, purpose: Purpose) -> Result<Option<Sealed>, Error> {
    let Some(proto::SealedProto { key_id, nonce, ciphertext }) = message else { return Ok(None) };
    let nonce = nonce.as_ref().try_into().map_err(|_| Error::Field {
        field: "nonce",
        problem: format!("has {} bytes instead of 12", nonce.len()),
    })?;
    Ok(Some(Sealed { key_id, purpose, nonce, ciphertext }))
}

fn encode_sealed(sealed: &Sealed) -> proto::SealedProto {
    proto::SealedProto {
        key_id: sealed.key_id.clone(),
        nonce: Bytes::copy_from_slice(&sealed.nonce),
        ciphertext: sealed.ciphertext.clone(),
    }
}

fn kind(text: &str) -> Result<Kind, Error> {
    text.parse().map_err(|error: tbmq_proto::ids::InvalidKind| Error::Field {
        field: "type",
        problem: error.to_string(),
    })
}

fn uuid(msb: i64, lsb: i64) -> Uuid {
    Uuid::from_u64_pair(msb.cast_unsigned(), lsb.cast_unsigned())
}

/// Writes the value of a downlink record with a desired state. The key is [`ShardId::downlink_key`], the revision
/// goes into the header.
pub fn encode_desired(desired: &Desired) -> Bytes {
    let (msb, lsb) = desired.shard.integration.halves();
    let (event, target) = match &desired.change {
        Change::Deleted => (Event::Deleted, None),
        Change::Apply { cause: Cause::Created, target } => (Event::Created, Some(target)),
        Change::Apply { cause: Cause::Updated, target } => (Event::Updated, Some(target)),
        Change::Apply { cause: Cause::Reinit, target } => (Event::Reinit, Some(target)),
    };
    let sealed = target.and_then(|target| target.sealed.as_ref());
    let message = proto::IntegrationMsgProto {
        integration_id_msb: msb,
        integration_id_lsb: lsb,
        r#type: desired.kind.to_string(),
        name: target.map(|target| target.name.to_string()),
        enabled: target.map(|target| target.enabled),
        configuration: target.map(|target| target.configuration.to_string()),
        event: event.into(),
        generation: desired.generation,
        shard: desired.shard.index,
        // One shard is TBMQ's own form: the field stays away.
        shard_count: if desired.shard_count > 1 { desired.shard_count } else { 0 },
        sealed: sealed.map(encode_sealed),
        revision: match sealed.map(|sealed| sealed.purpose) {
            Some(Purpose::Revision(revision)) => revision,
            // Without secrets it is TBMQ's own form; the header tells the revision.
            Some(Purpose::Request(_)) | None => 0,
        },
    };
    let message =
        proto::DownlinkIntegrationMsgProto { integration_msg: Some(message), validation_request_msg: None };
    message.encode_to_vec().into()
}

/// Writes the value of a downlink record with a request. The key is the request id as text.
pub fn encode_request(request: &ValidationRequest) -> Bytes {
    let (id_msb, id_lsb) = halves(request.id);
    let (msb, lsb) = request.integration.halves();
    let message = proto::IntegrationValidationRequestProto {
        id_msb,
        id_lsb,
        service_id: request.reply_to.clone(),
        configuration: Some(proto::IntegrationProto {
            integration_id_msb: msb,
            integration_id_lsb: lsb,
            created_time: 0,
            r#type: request.kind.to_string(),
            name: request.name.clone(),
            enabled: request.enabled,
            configuration: request.configuration.clone(),
            additional_info: None,
            sealed: request.sealed.as_ref().map(encode_sealed),
        }),
        r#type: request.request_type.as_str().to_owned(),
        timestamp: request.created_ms,
        deadline: request.deadline_ms,
    };
    let message =
        proto::DownlinkIntegrationMsgProto { integration_msg: None, validation_request_msg: Some(message) };
    message.encode_to_vec().into()
}

/// Writes the value of a reply on the notifications topic. The key is the request id as text.
pub fn encode_reply(reply: &ValidationReply) -> Bytes {
    let (id_msb, id_lsb) = halves(reply.id);
    let response = proto::IntegrationValidationResponseProto {
        id_msb,
        id_lsb,
        error: None,
        error_text: reply.error.clone(),
        violations: reply
            .violations
            .iter()
            .map(|v| proto::ViolationProto { path: v.path.clone(), text: v.text.clone() })
            .collect(),
        stages: reply
            .stages
            .iter()
            .map(|stage| proto::CheckStageProto {
                name: stage.name.clone(),
                ok: stage.ok,
                elapsed_ms: stage.elapsed_ms,
                text: stage.text.clone(),
            })
            .collect(),
        executor_id: reply.executor.clone(),
    };
    proto::UplinkIntegrationNotificationMsgProto { integration_validation_response_msg: Some(response) }
        .encode_to_vec()
        .into()
}

/// Reads a reply.
///
/// # Errors
/// When the record can't be understood; skip it.
pub fn decode_reply(value: &Bytes) -> Result<ValidationReply, Error> {
    let response = proto::UplinkIntegrationNotificationMsgProto::decode(value.clone())
        .map_err(malformed("UplinkIntegrationNotificationMsgProto"))?
        .integration_validation_response_msg
        .ok_or_else(|| Error::Field {
            field: "integrationValidationResponseMsg",
            problem: "is missing".to_owned(),
        })?;
    let error = match (response.error_text, response.error) {
        (Some(text), _) => Some(text),
        // TBMQ's own executors answer with a Java-serialised text; reading it comes with `wire-format: tbmq`.
        (None, Some(_)) => Some("the executor refused the configuration".to_owned()),
        (None, None) => None,
    };
    Ok(ValidationReply {
        id: uuid(response.id_msb, response.id_lsb),
        error,
        violations: response
            .violations
            .into_iter()
            .map(|v| Violation { path: v.path, text: v.text })
            .collect(),
        stages: response
            .stages
            .into_iter()
            .map(|stage| Stage {
                name: stage.name,
                ok: stage.ok,
                elapsed_ms: stage.elapsed_ms,
                text: stage.text,
            })
            .collect(),
        executor: response.executor_id,
    })
}

/// Writes the value of an uplink record with an event. The key is the integration's id as text.
pub fn encode_event(integration: IntegrationId, event: proto::NativeEvent) -> Bytes {
    let (msb, lsb) = integration.halves();
    let event = proto::IntegrationEventProto {
        source: proto::TbEventSourceProto::Integration.into(),
        event_source_id_msb: msb,
        event_source_id_lsb: lsb,
        event: Bytes::new(),
        native_event: Some(event),
    };
    proto::UplinkIntegrationMsgProto { event_proto: Some(event), service_info_proto: None }
        .encode_to_vec()
        .into()
}

/// Reads an uplink record; `None` when it is no native event (a heartbeat, or an event of TBMQ's own executor).
///
/// # Errors
/// When the record can't be understood; skip it.
pub fn decode_event(value: &Bytes) -> Result<Option<(IntegrationId, proto::NativeEvent)>, Error> {
    let message = proto::UplinkIntegrationMsgProto::decode(value.clone())
        .map_err(malformed("UplinkIntegrationMsgProto"))?;
    let Some(event) = message.event_proto else { return Ok(None) };
    let integration = IntegrationId::from_halves(event.event_source_id_msb, event.event_source_id_lsb);
    let Some(native) = event.native_event else { return Ok(None) };
    if native.event_id.len() != 16 {
        let problem = format!("has {} bytes instead of 16", native.event_id.len());
        return Err(Error::Field { field: "event_id", problem });
    }
    if native.body.is_none() {
        return Err(Error::Field { field: "body", problem: "is missing".to_owned() });
    }
    Ok(Some((integration, native)))
}

/// What is kept with a committed offset of a message partition, as JSON text.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CommitMetadata {
    /// Generation of the message topic; a commit of another generation is void.
    pub generation: u64,
    /// Ownership epoch of the writer.
    pub epoch: u64,
    /// The bus's id of the topic; a commit for another topic of the same name is void. Empty: not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub topic: String,
    /// What became of the messages below the offset, counted on from owner to owner.
    #[serde(default, rename = "n", skip_serializing_if = "Totals::is_zero")]
    pub totals: Totals,
    /// When the record at the offset was written, epoch ms; absent when the owner did not hold it yet.
    #[serde(default, rename = "o", skip_serializing_if = "Option::is_none")]
    pub oldest_ms: Option<i64>,
}

/// What became of the messages of a partition since its topic was made: each is counted by exactly one of the first
/// five. Older owners counted nothing, so the sum may be less than the offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Totals {
    /// The remote end confirmed.
    #[serde(rename = "d", skip_serializing_if = "is_zero")]
    pub delivered: u64,
    /// No attempt could have succeeded.
    #[serde(rename = "j", skip_serializing_if = "is_zero")]
    pub rejected: u64,
    /// Given up as the strategy says, or not fit to be submitted.
    #[serde(rename = "s", skip_serializing_if = "is_zero")]
    pub skipped: u64,
    /// Given up, and written to the dead letters.
    #[serde(rename = "l", skip_serializing_if = "is_zero")]
    pub dead_lettered: u64,
    /// Too old, or removed by retention.
    #[serde(rename = "x", skip_serializing_if = "is_zero")]
    pub expired: u64,
    /// Attempts that were followed by another one, those above the offset included.
    #[serde(rename = "r", skip_serializing_if = "is_zero")]
    pub retries: u64,
}

impl Totals {
    /// Messages that have left.
    pub fn settled(&self) -> u64 {
        [self.delivered, self.rejected, self.skipped, self.dead_lettered, self.expired]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    /// These and what one owner has counted since it began where these end.
    #[must_use]
    pub fn and(self, settled: Settled, retries: u64) -> Self {
        Self {
            delivered: self.delivered.saturating_add(settled.delivered),
            rejected: self.rejected.saturating_add(settled.rejected),
            skipped: self.skipped.saturating_add(settled.skipped),
            dead_lettered: self.dead_lettered.saturating_add(settled.dead_lettered),
            expired: self.expired.saturating_add(settled.expired),
            retries: self.retries.saturating_add(retries),
        }
    }

    /// The sum of two partitions.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        let Self { delivered, rejected, skipped, dead_lettered, expired, retries } = other;
        self.and(Settled { delivered, rejected, skipped, dead_lettered, expired }, retries)
    }

    fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl CommitMetadata {
    /// As text, well below Kafka's limit of 4 KiB.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("numbers and a text are always JSON")
    }

    /// Whether this commit speaks of that topic, so that reading may begin at its offset.
    pub fn is_of(&self, generation: u64, topic: &str) -> bool {
        self.generation == generation && (self.topic == topic || self.topic.is_empty() || topic.is_empty())
    }

    /// From text; `None` when it was written by someone else.
    pub fn from_text(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desired(change: Change) -> Desired {
        Desired {
            shard: ShardId { integration: IntegrationId(Uuid::from_u128(7)), index: 1 },
            shard_count: 2,
            kind: "HTTP".parse().unwrap(),
            revision: 42,
            generation: 3,
            change,
        }
    }

    #[test]
    fn a_desired_state_survives_the_wire() {
        let target = Target { name: "n".into(), enabled: false, configuration: "{}".into(), sealed: None };
        let secrets = Target { sealed: Some(sealed_for(Purpose::Revision(41))), ..target.clone() };
        for change in [
            Change::Deleted,
            Change::Apply { cause: Cause::Reinit, target },
            Change::Apply { cause: Cause::Updated, target: secrets },
        ] {
            let before = desired(change);
            let bytes = encode_desired(&before);
            assert_eq!(decode_downlink(Some(&bytes), Some("42")), Ok(Downlink::Desired(before)));
        }
    }

    fn sealed_for(purpose: Purpose) -> Sealed {
        let ciphertext = Bytes::from_static(b"text and tag");
        Sealed { key_id: "k".to_owned(), purpose, nonce: [7; 12], ciphertext }
    }

    fn request(id: Uuid) -> ValidationRequest {
        ValidationRequest {
            id,
            reply_to: "cp1".to_owned(),
            request_type: RequestType::CheckConnection,
            integration: IntegrationId(Uuid::from_u128(7)),
            kind: "HTTP".parse().unwrap(),
            name: "n".to_owned(),
            enabled: true,
            configuration: "planted".to_owned(),
            sealed: Some(sealed_for(Purpose::Request(id))),
            created_ms: 1,
            deadline_ms: 2,
        }
    }

    #[test]
    fn a_request_survives_the_wire() {
        let before = request(Uuid::from_u128(9));
        let bytes = encode_request(&before);
        assert_eq!(decode_downlink(Some(&bytes), None), Ok(Downlink::Request(before)));
    }

    #[test]
    fn a_nonce_of_another_length_is_a_bad_record() {
        let mut message = proto::IntegrationMsgProto { r#type: "HTTP".to_owned(), ..Default::default() };
        message.configuration = Some("{}".to_owned());
        message.sealed = Some(proto::SealedProto { nonce: Bytes::from_static(b"1"), ..Default::default() });
        let error = decode_desired(message, None).unwrap_err();
        assert_eq!(error.to_string(), "nonce has 1 bytes instead of 12");
    }

    #[test]
    fn what_is_to_run_is_not_printed() {
        let target =
            Target { name: "n".into(), enabled: true, configuration: "planted".into(), sealed: None };
        let desired = desired(Change::Apply { cause: Cause::Created, target });
        let printed = format!("{desired:?} {:?}", request(Uuid::nil()));
        assert!(!printed.contains("planted"), "{printed}");
    }

    #[test]
    fn tombstones_of_both_shapes_withdraw() {
        assert_eq!(decode_downlink(None, None), Ok(Downlink::Withdrawn));
        assert_eq!(decode_downlink(Some(&Bytes::new()), None), Ok(Downlink::Withdrawn));
    }

    #[test]
    fn a_bad_record_is_an_error_that_names_the_field() {
        let bytes = encode_desired(&desired(Change::Deleted));
        let error = decode_downlink(Some(&bytes), Some("x")).unwrap_err();
        assert_eq!(error.to_string(), "header revision \"x\" is not a decimal number");
        assert!(decode_downlink(Some(&Bytes::from_static(b"\xff")), None).is_err());
    }

    #[test]
    fn a_reply_survives_the_wire() {
        let reply = ValidationReply {
            id: Uuid::from_u128(u128::MAX - 5),
            error: Some("größer".to_owned()),
            violations: vec![Violation::new("a.b", "c")],
            stages: vec![Stage { name: "connect".into(), ok: true, elapsed_ms: 3, text: String::new() }],
            executor: "ie1".to_owned(),
        };
        assert_eq!(decode_reply(&encode_reply(&reply)), Ok(reply));
    }

    #[test]
    fn commit_metadata_survives_and_foreign_text_is_none() {
        let totals = Totals { delivered: u64::MAX, retries: 3, ..Totals::default() };
        let topic = "t1".to_owned();
        let metadata = CommitMetadata { generation: 2, epoch: 9, topic, totals, oldest_ms: Some(-5) };
        assert_eq!(CommitMetadata::from_text(&metadata.to_text()), Some(metadata));
        assert_eq!(CommitMetadata::from_text(""), None);
    }

    #[test]
    fn commit_metadata_is_short_and_read_across_versions() {
        let all = u64::MAX;
        let totals = Totals {
            delivered: all,
            rejected: all,
            skipped: all,
            dead_lettered: all,
            expired: all,
            retries: all,
        };
        let topic = "a".repeat(36);
        let longest =
            CommitMetadata { generation: all, epoch: all, topic, totals, oldest_ms: Some(i64::MIN) }
                .to_text();
        assert!(longest.len() < 512, "{}", longest.len());
        // By this version with nothing counted, and by one before totals.
        let plain = CommitMetadata { generation: 1, epoch: 2, topic: "t".to_owned(), ..Default::default() };
        assert_eq!(plain.to_text(), r#"{"generation":1,"epoch":2,"topic":"t"}"#);
        assert_eq!(CommitMetadata::from_text(&plain.to_text()), Some(plain));
        // By one to come.
        let later = r#"{"generation":1,"epoch":2,"n":{"d":7,"z":{"q":1}},"z":[1]}"#;
        let read = CommitMetadata::from_text(later).unwrap();
        assert_eq!(read.totals, Totals { delivered: 7, ..Totals::default() });
    }

    #[test]
    fn a_commit_speaks_of_one_generation_and_one_creation_of_the_topic() {
        let metadata = CommitMetadata::from_text(r#"{"generation":2,"epoch":9,"topic":"t1"}"#).unwrap();
        assert!(metadata.is_of(2, "t1") && metadata.is_of(2, ""));
        assert!(!metadata.is_of(3, "t1") && !metadata.is_of(2, "t2"));
        let older = CommitMetadata::from_text(r#"{"generation":2,"epoch":9}"#).unwrap();
        assert!(older.is_of(2, "t2"), "nothing is known of its topic");
    }
}
