//! Reconciliation, at the beginning of each lease and whenever configuration was lost: what lies on the bus is compared
//! with the store, and repaired from the store outward, never the other way round (architecture §4.7).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use tbmq_bus::{BatchRecord, ReaderConfig, ReaderEvent, Record, Start, TopicPartition};
use tbmq_integration::{
    cleanup::{Stage, TOMBSTONE_AFTER},
    wire::{self, Change, Desired, Downlink},
};
use tbmq_proto::{
    ids::{IntegrationId, Kind, ShardId},
    topic::REVISION_HEADER,
};

use crate::{
    relayer::{Error, Relayer, only_partition},
    store::{Life, Row},
};

/// How long the bus may take to hand over all configuration.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Records repaired in one batch.
pub(crate) const BATCH_RECORDS: usize = 200;

/// What lies on the bus.
#[derive(Debug, Default)]
struct Found {
    subscriptions: BTreeMap<IntegrationId, Held>,
    downlinks: BTreeMap<(IntegrationId, Kind), Downlinks>,
    /// Keys of requests that nobody waits for any more, with kind and partition.
    requests: Vec<(Kind, u32, Bytes)>,
    revision_max: u64,
    /// End of the subscriptions.
    end: u64,
}

/// Downlink records of one integration, by shard and by the partition where they lie.
type Downlinks = BTreeMap<(u32, u32), Held>;

#[derive(Debug)]
struct Held {
    revision: u64,
    time_ms: i64,
    value: Bytes,
}

impl Held {
    fn desired(&self) -> Option<Desired> {
        match wire::decode_downlink(Some(&self.value), None) {
            Ok(Downlink::Desired(desired)) => Some(desired),
            _ => None,
        }
    }
}

/// Compares and repairs. May be called while the relayer relays: what it writes meanwhile is at worst written again.
pub(crate) async fn reconcile(relayer: &Relayer) -> Result<(), Error> {
    let plane = &relayer.plane;
    plane.forget_downlinks();
    plane.ensure(&plane.catalogue.integration_subscriptions()).await?;
    let kinds = plane.all_kinds();
    for kind in &kinds {
        plane.ensure_downlink(kind).await?;
    }
    let mut found = tokio::time::timeout(PATIENCE, read(relayer, &kinds)).await.map_err(|_| {
        tbmq_bus::Error::Unavailable(format!("the configuration topics were not read within {PATIENCE:?}"))
    })??;
    if found.revision_max > plane.store.revision().await? {
        plane.store.raise_revision(found.revision_max).await?;
    }
    let claims = plane.admin.bounds(&[only_partition(&plane.catalogue.owners().name)]).await;
    if let Ok([claims]) = claims.as_deref() {
        plane.store.reset_epochs(claims.end).await?;
    }
    repair_waits(relayer, found.end).await?;
    let mut after = None;
    loop {
        let rows = plane.store.scan(after).await?;
        let Some(last) = rows.last() else { break };
        after = Some(last.id);
        let ids: Vec<IntegrationId> = rows.iter().map(|row| row.id).collect();
        let lives = plane.store.lives(&ids).await?;
        let lives: BTreeMap<IntegrationId, Life> =
            lives.into_iter().map(|life| (life.integration, life)).collect();
        for row in rows {
            let subscription = found.subscriptions.remove(&row.id);
            let downlinks = found.downlinks.remove(&(row.id, row.kind.clone())).unwrap_or_default();
            if let Some(life) = lives.get(&row.id) {
                repair(relayer, &row, life, subscription, downlinks).await?;
            }
        }
    }
    repair_strangers(relayer, found).await?;
    crate::auth::reconcile::reconcile(relayer).await
}

/// Has a withdrawal written again whose place lies beyond the end: the topic was lost, and nodes would never get there.
async fn repair_waits(relayer: &Relayer, end: u64) -> Result<(), Error> {
    for mut life in relayer.plane.store.restless_lives().await? {
        if matches!(life.life.stage, Stage::AwaitNodes { position } if position > end) {
            life.life.withdraw_again();
            relayer.plane.store.save_life(&mut life).await?;
        }
    }
    Ok(())
}

/// Compares the records of one integration with the store.
async fn repair(
    relayer: &Relayer,
    row: &Row,
    life: &Life,
    subscription: Option<Held>,
    mut downlinks: Downlinks,
) -> Result<(), Error> {
    let same = |held: Option<&Held>, record: &BatchRecord| match (held, &record.value) {
        (Some(held), Some(value)) => held.value == value && held.revision == row.revision,
        (None, None) => true,
        _ => false,
    };
    let held = subscription.iter().chain(downlinks.values());
    let seen = held.map(|held| held.revision).max().unwrap_or(0);
    let mut is_same = same(subscription.as_ref(), &relayer.subscription(row, life));
    let mut is_restart = false;
    for (shard, record) in (0..).zip(relayer.desired(row, life)) {
        let held = record.partition.and_then(|partition| downlinks.remove(&(shard, partition)));
        // A running shard takes another generation only under another revision.
        is_restart |=
            held.as_ref().and_then(Held::desired).is_some_and(|held| held.generation != life.life.generation);
        is_same &= same(held.as_ref(), &record);
    }
    let strange: Vec<BatchRecord> = downlinks
        .into_iter()
        .map(|((index, partition), held)| {
            let shard = ShardId { integration: row.id, index };
            tracing::warn!(%shard, partition, "a configuration at a strange place is withdrawn");
            relayer.downlink_record(&row.kind, partition, shard, held.revision, None)
        })
        .collect();
    if is_same && strange.is_empty() {
        return Ok(());
    }
    relayer.plane.metrics.repairs.inc();
    let now_ms = tbmq_service::time::now_ms();
    if strange.is_empty() && !is_restart {
        relayer.plane.store.mark_again(row.id, seen, now_ms).await?;
    } else {
        // Whoever ran a strange record may have stopped what is to run.
        for chunk in strange.chunks(BATCH_RECORDS) {
            relayer.write(chunk.to_vec()).await?;
        }
        relayer.plane.store.mark_anew(row.id, now_ms).await?;
    }
    Ok(())
}

/// Withdraws what lies on the bus without standing in the store. Message topics are left alone: a store that was
/// restored from an old backup must not cost messages.
async fn repair_strangers(relayer: &Relayer, found: Found) -> Result<(), Error> {
    let plane = &relayer.plane;
    // Nothing is projected meanwhile: an integration that is created under an old id comes after its withdrawal.
    let _order = relayer.order.lock().await;
    let mut batch = Vec::new();
    for (id, held) in &found.subscriptions {
        // A life that goes on withdraws by itself; a change since the scan has left its mark.
        if plane.store.life(*id).await?.is_none() {
            tracing::warn!(integration = %id, "a subscription without an integration is withdrawn");
            batch.push(relayer.subscription_record(*id, held.revision, None));
        }
    }
    let now_ms = tbmq_service::time::now_ms();
    for ((id, kind), downlinks) in &found.downlinks {
        if plane.store.life(*id).await?.is_some_and(|life| life.kind == *kind) {
            continue;
        }
        for ((index, partition), held) in downlinks {
            let shard = ShardId { integration: *id, index: *index };
            let desired = held.desired();
            let is_deleted = desired.as_ref().is_some_and(|desired| desired.change == Change::Deleted);
            let value = match desired {
                Some(desired) if !is_deleted => {
                    tracing::warn!(%shard, %kind, "a configuration without an integration is withdrawn");
                    Some(wire::encode_desired(&Desired { change: Change::Deleted, ..desired }))
                }
                Some(_) if held.time_ms + (TOMBSTONE_AFTER.as_millis() as i64) >= now_ms => continue,
                _ => None,
            };
            batch.push(relayer.downlink_record(kind, *partition, shard, held.revision, value));
        }
    }
    for (kind, partition, key) in found.requests {
        batch.push(BatchRecord {
            topic: plane.catalogue.downlink(&kind).name.into(),
            partition: Some(partition),
            key: Some(key),
            value: None,
            headers: Vec::new(),
        });
    }
    plane.metrics.repairs.inc_by(batch.len() as u64);
    for chunk in batch.chunks(BATCH_RECORDS) {
        relayer.write(chunk.to_vec()).await?;
    }
    Ok(())
}

async fn read(relayer: &Relayer, kinds: &[Kind]) -> Result<Found, Error> {
    let plane = &relayer.plane;
    let client = plane.catalogue.client_id("integration-reconciler", &plane.service_id);
    let mut reader = plane.bus.reader(ReaderConfig::new(client, None)).await?;
    let subscriptions = plane.catalogue.integration_subscriptions();
    let mut kind_of: BTreeMap<String, Option<&Kind>> = BTreeMap::from([(subscriptions.name.clone(), None)]);
    let mut open: BTreeSet<TopicPartition> = BTreeSet::from([only_partition(&subscriptions.name)]);
    for kind in kinds {
        let topic = plane.catalogue.downlink(kind);
        // The topic may have been created by others, with another number of partitions.
        let partitions = plane.admin.topic(&topic.name).await?.map_or(0, |info| info.partitions);
        open.extend((0..partitions).map(|partition| TopicPartition::new(topic.name.as_str(), partition)));
        kind_of.insert(topic.name, Some(kind));
    }
    for partition in &open {
        reader.add(partition, Start::Earliest);
    }
    let mut found = Found::default();
    let now_ms = tbmq_service::time::now_ms();
    while !open.is_empty() {
        match reader.next().await {
            ReaderEvent::Batch { partition, records } => {
                let kind = kind_of.get(&*partition.topic).copied().flatten();
                for record in records {
                    match kind {
                        None => take_subscription(&mut found, record),
                        Some(kind) => take_downlink(&mut found, kind, partition.partition, record, now_ms),
                    }
                }
            }
            ReaderEvent::End { partition, position } => {
                if *partition.topic == subscriptions.name {
                    found.end = position;
                }
                reader.remove(&partition);
                open.remove(&partition);
            }
            ReaderEvent::Gap { .. } => {}
            ReaderEvent::Gone { partition, .. } => {
                open.remove(&partition);
            }
        }
    }
    Ok(found)
}

fn held(record: &Record, found: &mut Found) -> Option<Held> {
    let revision = record.header(REVISION_HEADER).and_then(|text| text.parse().ok()).unwrap_or(0);
    found.revision_max = found.revision_max.max(revision);
    let value = record.value.clone().filter(|value| !value.is_empty())?;
    Some(Held { revision, time_ms: record.timestamp_ms, value })
}

fn key_text(record: &Record) -> Option<&str> {
    std::str::from_utf8(record.key.as_ref()?).ok()
}

fn take_subscription(found: &mut Found, record: Record) {
    let Some(id) = key_text(&record).and_then(|key| key.parse().ok()) else { return };
    match held(&record, found) {
        Some(held) => found.subscriptions.insert(id, held),
        None => found.subscriptions.remove(&id),
    };
}

fn take_downlink(found: &mut Found, kind: &Kind, partition: u32, record: Record, now_ms: i64) {
    let Some(key) = record.key.clone() else { return };
    let shard = key_text(&record).and_then(ShardId::from_downlink_key);
    let Some(held) = held(&record, found) else {
        if let Some(shard) = shard
            && let Some(downlinks) = found.downlinks.get_mut(&(shard.integration, kind.clone()))
        {
            downlinks.remove(&(shard.index, partition));
        }
        found.requests.retain(|(_, at, request)| (*at, request) != (partition, &key));
        return;
    };
    match wire::decode_downlink(Some(&held.value), None) {
        Ok(Downlink::Request(request)) => {
            // Whoever asked has withdrawn it, or died before he could.
            if request.deadline_ms > 0 && request.deadline_ms < now_ms {
                found.requests.push((kind.clone(), partition, key));
            }
        }
        _ => {
            if let Some(shard) = shard {
                let downlinks = found.downlinks.entry((shard.integration, kind.clone())).or_default();
                downlinks.insert((shard.index, partition), held);
            }
        }
    }
}
