//! Readers of what executors and nodes write. A record that can't be understood is logged with its place, counted and
//! skipped; a fault of the store is waited out, since offsets are committed after the store has taken the events.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use prost::Message as _;
use tbmq_bus::{
    Commit, MembershipConfig, MembershipEvent, Outgoing, Reader, ReaderConfig, ReaderEvent, Record, Start,
    TopicPartition, WriterConfig, write,
};
use tbmq_integration::{entity::SHARDS_MAX, wire};
use tbmq_proto::{
    ids::IntegrationId,
    integration::{NativeEvent, native_event::Body},
    topic::{Catalogue, Topic},
    wire::{KindAnnouncement, NodeApplied, Role},
};
use tbmq_service::{identity::Superseded, system::Meter};
use tokio::sync::watch;
use uuid::Uuid;

use crate::{
    auth::unauthorized,
    plane::Plane,
    relayer::only_partition,
    store::{self, EventBody, EventRow, KindRow},
};

/// How often a control plane says that it lives.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(5);

/// Times that the API can speak of: years 1970 to 9999.
pub(crate) const TIMES_MS: std::ops::RangeInclusive<i64> = 0..=253_402_300_799_999;

/// A newer process that has taken over tells of itself within this time.
const NEWER_PATIENCE: Duration = Duration::from_secs(7);

/// Follows `tbmq.node.applied`. `caught_up` becomes true at the end that was there at the start.
pub(crate) async fn follow_nodes(plane: Arc<Plane>, caught_up: watch::Sender<bool>) -> anyhow::Result<()> {
    let topic = plane.catalogue.node_applied();
    let followed = Followed { topic, client: "node-applied-consumer", take: take_node, vanished: |_| {} };
    follow(&plane, &followed, &caught_up).await
}

fn take_node(plane: &Plane, record: &Record, live: bool) -> Result<Taken, String> {
    let Some(value) = record.value.clone().filter(|value| !value.is_empty()) else {
        if let Some(id) = record.key.as_ref().and_then(|key| std::str::from_utf8(key).ok()) {
            plane.nodes.remove(id);
        }
        return Ok(Taken::Done);
    };
    let applied = NodeApplied::decode(value).map_err(|error| error.to_string())?;
    if applied.service_id.is_empty() {
        return Err("service_id is empty".to_owned());
    }
    let now_ms = tbmq_service::time::now_ms();
    // Live records are dated by our own clock; those from before our start only have the writer's.
    let age = if live { 0 } else { now_ms.saturating_sub(applied.time_ms).max(0) };
    let age = Duration::from_millis(age.cast_unsigned());
    // A predecessor whose clock was ahead of ours has left a greater incarnation, and is gone.
    if live
        && applied.service_id == plane.identity.service_id
        && applied.incarnation > plane.identity.incarnation
    {
        return Ok(Taken::Superseded(plane.identity.superseded_by(applied.incarnation)));
    }
    if !plane.nodes.record(applied, age, now_ms) {
        plane.metrics.nodes_dropped.inc();
    }
    Ok(Taken::Done)
}

/// Follows `tbmq.ie.kinds`.
pub(crate) async fn follow_kinds(plane: Arc<Plane>, caught_up: watch::Sender<bool>) -> anyhow::Result<()> {
    let topic = plane.catalogue.kinds();
    let followed = Followed { topic, client: "ie-kinds-consumer", take: take_kind, vanished: |_| {} };
    follow(&plane, &followed, &caught_up).await
}

/// Follows `tbmq.ie.owner`.
pub(crate) async fn follow_owners(plane: Arc<Plane>, caught_up: watch::Sender<bool>) -> anyhow::Result<()> {
    let followed = Followed {
        topic: plane.catalogue.owners(),
        client: "ie-owner-consumer",
        take: |plane, record, _live| plane.claims.take(record).map(|()| Taken::Done),
        // Epochs begin anew with it.
        vanished: |plane| plane.claims.clear(),
    };
    follow(&plane, &followed, &caught_up).await
}

fn take_kind(plane: &Plane, record: &Record, _live: bool) -> Result<Taken, String> {
    // A withdrawn kind stays known: its secrets are masked as long as there may be integrations.
    let Some(value) = record.value.clone().filter(|value| !value.is_empty()) else { return Ok(Taken::Done) };
    let announced = KindAnnouncement::decode(value).map_err(|error| error.to_string())?;
    announced.kind.parse::<tbmq_proto::ids::Kind>().map_err(|error| error.to_string())?;
    let known = plane.kinds.get(&announced.kind);
    if known.is_some_and(|known| *known.json_schema == *announced.json_schema) {
        return Ok(Taken::Done);
    }
    let row = KindRow {
        name: announced.kind,
        json_schema: announced.json_schema,
        schema_hash: announced.schema_hash.chars().take(64).collect(),
    };
    if plane.kinds.put(&row) {
        Ok(Taken::Kind(row))
    } else {
        Err(format!("the schema of kind {} is no JSON, or there are too many kinds", row.name))
    }
}

/// Follows the replies to this control plane. Reading begins at `position`, taken before the first request.
pub(crate) async fn follow_replies(plane: Arc<Plane>, position: u64) -> anyhow::Result<()> {
    let topic = plane.catalogue.uplink_notifications(&plane.service_id);
    let client = plane.catalogue.client_id("ie-uplink-notifications-consumer", &plane.service_id);
    let mut reader = plane.bus.reader(ReaderConfig::new(client, None)).await?;
    reader.add(&only_partition(&topic.name), Start::Offset(position));
    loop {
        match reader.next().await {
            ReaderEvent::Batch { partition, records } => {
                for record in records {
                    let reply = match &record.value {
                        Some(value) => wire::decode_reply(value).map_err(|error| error.to_string()),
                        None => Err("no value".to_owned()),
                    };
                    match reply {
                        Ok(reply) => plane.validator.reply(reply),
                        Err(error) => skip(&plane, &partition, &record, &error),
                    }
                }
            }
            ReaderEvent::End { .. } | ReaderEvent::Gap { .. } => {}
            ReaderEvent::Gone { reason, .. } => again(&plane, reader.as_mut(), &topic, &reason).await,
        }
    }
}

/// A compacted topic of one partition that every control plane reads.
struct Followed {
    topic: Topic,
    client: &'static str,
    /// Takes a record, told whether it was written after our start.
    take: fn(&Plane, &Record, bool) -> Result<Taken, String>,
    /// The topic has vanished.
    vanished: fn(&Plane),
}

/// What a record brought.
enum Taken {
    /// Nothing that is left to be done.
    Done,
    /// A kind that is to be kept in the store.
    Kind(KindRow),
    /// Somebody has taken our place.
    Superseded(Superseded),
}

/// Follows a topic from its beginning. Ends only when somebody has taken our place.
async fn follow(
    plane: &Arc<Plane>,
    followed: &Followed,
    caught_up: &watch::Sender<bool>,
) -> anyhow::Result<()> {
    let client = plane.catalogue.client_id(followed.client, &plane.service_id);
    let mut reader = plane.bus.reader(ReaderConfig::new(client, None)).await?;
    reader.add(&only_partition(&followed.topic.name), Start::Earliest);
    let mut live = false;
    loop {
        match reader.next().await {
            ReaderEvent::Batch { partition, records } => {
                for record in records {
                    match (followed.take)(plane, &record, live) {
                        Ok(Taken::Done) => {}
                        Ok(Taken::Superseded(superseded)) => return Err(superseded.into()),
                        Ok(Taken::Kind(kind)) => {
                            let now_ms = tbmq_service::time::now_ms();
                            persist(|| plane.store.save_kind(&kind, now_ms)).await;
                        }
                        Err(error) => skip(plane, &partition, &record, &error),
                    }
                }
            }
            ReaderEvent::End { .. } => {
                live = true;
                caught_up.send_replace(true);
            }
            ReaderEvent::Gap { .. } => {}
            ReaderEvent::Gone { reason, .. } => {
                (followed.vanished)(plane);
                again(plane, reader.as_mut(), &followed.topic, &reason).await;
            }
        }
    }
}

/// Creates a topic that has vanished, and reads it from its beginning.
async fn again(plane: &Plane, reader: &mut dyn Reader, topic: &Topic, reason: &str) {
    tracing::warn!(topic = topic.name, reason, "the topic has vanished and is created anew");
    while let Err(error) = plane.ensure(topic).await {
        tracing::warn!(%error, topic = topic.name, "can't create the topic");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    reader.add(&only_partition(&topic.name), Start::Earliest);
}

/// Shares `tbmq.ie.uplink` with the other control planes and stores its events.
pub(crate) async fn follow_uplink(plane: Arc<Plane>) -> anyhow::Result<()> {
    follow_shared(&plane, Shares::Uplink).await
}

/// Shares `tbmq.auth.unauthorized` with the other control planes and stores who was refused.
pub(crate) async fn follow_unauthorized(plane: Arc<Plane>) -> anyhow::Result<()> {
    follow_shared(&plane, Shares::Unauthorized).await
}

/// A topic of which each record is for one of the control planes.
#[derive(Clone, Copy, Debug)]
enum Shares {
    Uplink,
    Unauthorized,
}

impl Shares {
    fn topic(self, catalogue: &Catalogue) -> Topic {
        match self {
            Self::Uplink => catalogue.uplink(),
            Self::Unauthorized => catalogue.unauthorized_clients(),
        }
    }

    fn group(self, catalogue: &Catalogue) -> String {
        match self {
            Self::Uplink => catalogue.uplink_group(),
            Self::Unauthorized => catalogue.unauthorized_group(),
        }
    }

    fn client(self) -> &'static str {
        match self {
            Self::Uplink => "ie-uplink-consumer",
            Self::Unauthorized => "unauthorized-client-consumer",
        }
    }

    async fn store(self, plane: &Arc<Plane>, partition: &TopicPartition, records: &[Record]) {
        match self {
            Self::Uplink => store_events(plane, partition, records).await,
            Self::Unauthorized => unauthorized::store(plane, partition, records).await,
        }
    }
}

async fn follow_shared(plane: &Arc<Plane>, shares: Shares) -> anyhow::Result<()> {
    while let Shared::Fenced(reason) = share(plane, shares).await? {
        // Of a newer process with our service id, `tbmq.node.applied` tells meanwhile, which ends this one. Otherwise it
        // was a request of our own that Kafka took up late.
        tracing::warn!(reason, ?shares, "the group has another member with our service id");
        tokio::select! {
            () = plane.drain.begun() => return Ok(()),
            () = tokio::time::sleep(NEWER_PATIENCE) => {}
        }
        tracing::warn!(?shares, "of no newer process was heard; joining the group again");
    }
    Ok(())
}

/// How a membership of a group has ended.
enum Shared {
    /// This control plane is draining.
    Left,
    /// Another member has our service id.
    Fenced(String),
}

async fn share(plane: &Arc<Plane>, shares: Shares) -> anyhow::Result<Shared> {
    let topic = shares.topic(&plane.catalogue);
    let client = plane.catalogue.client_id(shares.client(), &plane.service_id);
    let group = shares.group(&plane.catalogue);
    let mut membership = plane
        .bus
        .membership(MembershipConfig {
            group: group.clone(),
            client_id: client.clone(),
            instance_id: Some(plane.service_id.to_string()),
            topics: vec![topic.name.clone()],
            session_timeout: Duration::from_secs(10),
        })
        .await?;
    let mut reader = plane.bus.reader(ReaderConfig::new(client, Some(group))).await?;
    loop {
        tokio::select! {
            () = plane.drain.begun() => {
                membership.leave().await;
                return Ok(Shared::Left);
            }
            event = membership.next() => match event {
                MembershipEvent::Assigned(partitions) => assign(reader.as_mut(), &partitions).await,
                MembershipEvent::Revoked { partitions, release } => {
                    remove(reader.as_mut(), &partitions);
                    drop(release);
                }
                MembershipEvent::Lost(partitions) => remove(reader.as_mut(), &partitions),
                MembershipEvent::Fenced { reason } => return Ok(Shared::Fenced(reason)),
            },
            event = reader.next() => match event {
                ReaderEvent::Batch { partition, records } => {
                    let Some(last) = records.last() else { continue };
                    let commit = Commit { offset: last.offset + 1, partition: partition.clone(), metadata: String::new() };
                    shares.store(plane, &partition, &records).await;
                    // Not committed: they are read again; events are stored once all the same.
                    if let Err(error) = membership.commit(vec![commit]).await {
                        tracing::warn!(%error, %partition, "offset not committed");
                    }
                }
                ReaderEvent::End { .. } => {}
                ReaderEvent::Gap { partition, from, to } => {
                    tracing::warn!(%partition, from, to, "records were removed before they were read");
                }
                ReaderEvent::Gone { partition, reason } => {
                    tracing::warn!(%partition, reason, "the topic has vanished and is created anew");
                    while let Err(error) = plane.ensure(&topic).await {
                        tracing::warn!(%error, "can't create the topic");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    reader.add(&partition, Start::Earliest);
                }
            },
        }
    }
}

fn remove(reader: &mut dyn Reader, partitions: &[TopicPartition]) {
    for partition in partitions {
        reader.remove(partition);
    }
}

async fn assign(reader: &mut dyn Reader, partitions: &[TopicPartition]) {
    let committed = loop {
        match reader.committed(partitions).await {
            Ok(committed) => break committed,
            Err(error) => {
                tracing::warn!(%error, "can't read committed offsets");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    };
    let committed: BTreeMap<TopicPartition, u64> =
        committed.into_iter().map(|commit| (commit.partition, commit.offset)).collect();
    for partition in partitions {
        // From the beginning at first, or events sent before the group existed are lost (spec UP-25).
        reader.add(
            partition,
            committed.get(partition).map_or(Start::Earliest, |offset| Start::Offset(*offset)),
        );
    }
}

async fn store_events(plane: &Arc<Plane>, partition: &TopicPartition, records: &[Record]) {
    let mut events = Vec::with_capacity(records.len());
    for record in records {
        let decoded = match &record.value {
            Some(value) => wire::decode_event(value).map_err(|error| error.to_string()),
            None => Err("no value".to_owned()),
        };
        match decoded {
            Ok(Some((integration, event))) => {
                match to_row(integration, event, plane.config.sql.events.max_symbols) {
                    Ok(row) => events.push((record, row)),
                    Err(error) => skip(plane, partition, record, &error),
                }
            }
            Ok(None) => {}
            Err(error) => skip(plane, partition, record, &error),
        }
    }
    let rows: Vec<EventRow> = events.iter().map(|(_, row)| row.clone()).collect();
    if persist(|| plane.store.store_events(&rows)).await {
        plane.metrics.events.inc_by(rows.len() as u64);
    } else {
        // One of them is refused; the others must not suffer.
        for (record, row) in &events {
            if persist(|| plane.store.store_events(std::slice::from_ref(row))).await {
                plane.metrics.events.inc();
            } else {
                skip(plane, partition, record, "the store refused it");
            }
        }
    }
    plane.changes.events.nudge();
    if rows.iter().any(|row| matches!(row.body, EventBody::Lifecycle { .. })) {
        plane.restless.notify_one();
        plane.changes.integrations.nudge();
    }
}

/// Repeats until the store has answered; `false` when it refused.
pub(crate) async fn persist<F: Future<Output = Result<(), store::Error>>>(save: impl Fn() -> F) -> bool {
    let mut pause = Duration::from_millis(100);
    loop {
        match save().await {
            Ok(()) => return true,
            Err(store::Error::Unavailable(reason)) => {
                tracing::warn!(reason, "the store is away; what was read waits");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(5));
            }
            Err(error) => {
                tracing::warn!(%error, "the store refused");
                return false;
            }
        }
    }
}

pub(crate) fn skip(plane: &Plane, partition: &TopicPartition, record: &Record, error: &str) {
    tracing::warn!(place = %format_args!("{partition}-{}", record.offset), error, "bad record skipped");
    plane.metrics.bad_records.inc();
}

fn to_row(integration: IntegrationId, event: NativeEvent, max_symbols: i64) -> Result<EventRow, String> {
    let text = |text: String| truncate(&text, max_symbols);
    let body = match event.body.ok_or("body is missing")? {
        Body::Lifecycle(body) => EventBody::Lifecycle {
            event: body.event().as_str_name().to_owned(),
            success: body.success,
            error: body.error.map(text),
        },
        Body::Statistics(body) => EventBody::Statistics {
            messages_processed: body.messages_processed,
            errors_occurred: body.errors_occurred,
        },
        Body::Error(body) => EventBody::Error {
            method: body.method.chars().filter(|c| *c != '\0').take(255).collect(),
            error: text(body.error),
            count: body.count.max(1),
        },
    };
    let short = |field: &str, text: String, max: usize| {
        if text.len() <= max && !text.contains('\0') {
            Ok(text)
        } else {
            Err(format!("{field} can't be stored"))
        }
    };
    if !TIMES_MS.contains(&event.time_ms) {
        return Err(format!("time_ms {} is no time", event.time_ms));
    }
    if event.shard >= SHARDS_MAX {
        return Err(format!("shard {} is beyond {SHARDS_MAX}", event.shard));
    }
    Ok(EventRow {
        event_id: Uuid::from_slice(&event.event_id).map_err(|error| error.to_string())?,
        integration,
        time_ms: event.time_ms,
        service_id: short("service_id", event.service_id, 128)?,
        shard: event.shard,
        revision: event.revision,
        epoch: event.ownership_epoch,
        incarnation: short("incarnation", event.incarnation, 64)?,
        seq: event.seq,
        body,
    })
}

/// Keeps `max` symbols and says how many went (spec §3.10). PostgreSQL's texts have no U+0000.
fn truncate(text: &str, max: i64) -> String {
    let clean: String = text.chars().filter(|c| *c != '\0').collect();
    let Ok(max) = usize::try_from(max) else { return clean };
    let count = clean.chars().count();
    if max == 0 || count <= max {
        return clean;
    }
    let kept: String = clean.chars().take(max).collect();
    format!("{kept}...[truncated {} symbols]", count - max)
}

/// Says every 5 s on `tbmq.node.applied` that this control plane lives, and at the end that it leaves.
pub(crate) async fn announce(plane: Arc<Plane>, address: String) -> anyhow::Result<()> {
    let topic = plane.catalogue.node_applied();
    let client = plane.catalogue.client_id("node-applied-producer", &plane.service_id);
    let writer = plane.bus.writer(WriterConfig::new(client)).await?;
    let handle = writer.topic(&topic.name);
    let mut meter = Meter::new();
    loop {
        let leaving = plane.drain.is_draining();
        let applied = NodeApplied {
            service_id: plane.service_id.to_string(),
            role: Role::ControlPlane.into(),
            incarnation: plane.identity.incarnation.clone(),
            version: plane.identity.version.to_owned(),
            positions: Vec::new(),
            time_ms: tbmq_service::time::now_ms(),
            started_ms: plane.identity.started_ms,
            addresses: vec![address.clone()],
            kinds: Vec::new(),
            leaving,
            system_info: Some(meter.load().into()),
            sessions: 0,
        };
        let value = applied.encode_to_vec();
        let record = Outgoing {
            partition: Some(0),
            key: Some(plane.service_id.as_str().as_bytes()),
            value: Some(&value),
            headers: &[],
        };
        match write(&*writer, &handle, record).await {
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "can't say that this control plane lives"),
        }
        if leaving {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(ANNOUNCE_EVERY) => {}
            () = plane.drain.begun() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_errors_are_truncated_as_tbmq_does() {
        assert_eq!(truncate("äbcdef", 4), "äbcd...[truncated 2 symbols]");
        assert_eq!(truncate("abc", 3), "abc");
        assert_eq!(truncate("abc", 0), "abc");
        assert_eq!(truncate("a\0b", -1), "ab");
    }
}
