//! What an executor tells about itself: that it lives and what it has applied, and the kinds it serves
//! (architecture §4.5, §4.9).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use prost::Message as _;
use sha2::{Digest, Sha256};
use tbmq_bus::{Outgoing, Reader, ReaderEvent, Start, TopicPartition, Writer};
use tbmq_proto::{
    ids::Kind,
    wire::{AppliedPosition, KindAnnouncement, NodeApplied, Role},
};
use tbmq_service::system::{Load, Meter};

use crate::executor::Shared;

/// Applied positions are written at most so often, and at least so often. Nobody waits for them, as calls do for those of
/// data planes, and every node reads them.
const APPLIED_EVERY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Executors that an announcement names, at most.
const EXECUTORS_MAX: usize = 1_024;

/// Writes for ever what was applied, on change and every 5 s.
pub(crate) async fn follow_applied(shared: Arc<Shared>, writer: Arc<dyn Writer>) {
    let (least, most) = APPLIED_EVERY;
    let mut meter = Meter::new();
    loop {
        if let Err(error) = write_applied(&shared, &*writer, false, Some(meter.load())).await {
            tracing::debug!(%error, "can't write what was applied");
        }
        tokio::time::sleep(least).await;
        tokio::select! {
            () = shared.applied.changed.notified() => {}
            () = tokio::time::sleep(most.saturating_sub(least)) => {}
        }
    }
}

/// Writes once what was applied.
pub(crate) async fn write_applied(
    shared: &Shared,
    writer: &dyn Writer,
    leaving: bool,
    load: Option<Load>,
) -> Result<(), tbmq_bus::Error> {
    let positions = shared.applied.all().into_iter();
    let value = NodeApplied {
        service_id: shared.identity.service_id.clone(),
        role: Role::Executor.into(),
        incarnation: shared.identity.incarnation.clone(),
        version: shared.identity.version.to_owned(),
        positions: positions
            .map(|((topic, partition), position)| AppliedPosition { topic, partition, position })
            .collect(),
        time_ms: tbmq_service::time::now_ms(),
        started_ms: shared.identity.started_ms,
        addresses: Vec::new(),
        kinds: shared.kinds.keys().map(ToString::to_string).collect(),
        leaving,
        system_info: load.map(Into::into),
        sessions: 0,
    };
    let topic = writer.topic(&shared.catalogue.node_applied().name);
    let value = value.encode_to_vec();
    let key = shared.service_id.as_str().as_bytes();
    let record = Outgoing { partition: None, key: Some(key), value: Some(&value), headers: &[] };
    tbmq_bus::write(writer, &topic, record).await.map(|_| ())
}

/// Announces the served kinds, and announces them again whenever another executor's announcement leaves us out.
pub(crate) async fn follow_kinds(shared: Arc<Shared>, writer: Arc<dyn Writer>, mut reader: Box<dyn Reader>) {
    let topic = shared.catalogue.kinds().name;
    let partition = TopicPartition::new(topic.clone(), 0);
    reader.add(&partition, Start::Earliest);
    let mut held: BTreeMap<Kind, KindAnnouncement> = BTreeMap::new();
    let mut is_caught_up = false;
    loop {
        match reader.next().await {
            ReaderEvent::Batch { records, .. } => {
                for record in records {
                    let key = record.key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
                    let Some(kind) = key.and_then(|key| key.parse::<Kind>().ok()) else { continue };
                    if !shared.kinds.contains_key(&kind) {
                        continue;
                    }
                    match KindAnnouncement::decode(record.value.unwrap_or_default()) {
                        Ok(announcement) => {
                            held.insert(kind, announcement);
                        }
                        Err(error) => {
                            shared.metrics.bad_record("kinds");
                            tracing::warn!(%partition, offset = record.offset, %error, "skipped a bad record");
                        }
                    }
                }
            }
            ReaderEvent::End { .. } => is_caught_up = true,
            ReaderEvent::Gap { .. } => {}
            ReaderEvent::Gone { .. } => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                held.clear();
                reader.add(&partition, Start::Earliest);
            }
        }
        if is_caught_up {
            announce(&shared, &*writer, &topic, &mut held).await;
        }
    }
}

async fn announce(
    shared: &Shared,
    writer: &dyn Writer,
    topic: &str,
    held: &mut BTreeMap<Kind, KindAnnouncement>,
) {
    let own = &shared.identity.service_id;
    for (kind, served) in &shared.kinds {
        let others = held.get(kind);
        if others.is_some_and(|announcement| announcement.service_ids.contains(own)) {
            continue;
        }
        let json_schema = served.schema.to_string();
        let schema_hash = format!("{:x}", Sha256::digest(json_schema.as_bytes()));
        let mut service_ids = others.map(|others| others.service_ids.clone()).unwrap_or_default();
        // The oldest give way: they are told again if they still live.
        let excess = (service_ids.len() + 1).saturating_sub(EXECUTORS_MAX);
        service_ids.drain(..excess);
        service_ids.push(own.clone());
        let announcement = KindAnnouncement { kind: kind.to_string(), json_schema, schema_hash, service_ids };
        let value = announcement.encode_to_vec();
        let topic = writer.topic(topic);
        let key = kind.as_str().as_bytes();
        let record = Outgoing { partition: None, key: Some(key), value: Some(&value), headers: &[] };
        match tbmq_bus::write(writer, &topic, record).await {
            Ok(_) => {
                held.insert(kind.clone(), announcement);
            }
            Err(error) => tracing::warn!(%kind, %error, "can't announce a kind; trying again"),
        }
    }
}
