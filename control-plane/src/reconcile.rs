//! Reconciliation, at the beginning of each lease: what lies on the bus is compared with the store, and repaired from
//! the store outward, never the other way round (architecture §4.7).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use tbmq_bus::{BatchRecord, ReaderConfig, ReaderEvent, Record, Start, TopicPartition};
use tbmq_integration::{
    cleanup::{Stage, TOMBSTONE_AFTER},
    wire::{self, Change, Downlink},
};
use tbmq_proto::{
    ids::{IntegrationId, Kind, ShardId},
    topic::REVISION_HEADER,
};

use crate::relayer::{Error, Relayer, only_partition};

/// How long the bus may take to hand over all configuration.
const PATIENCE: Duration = Duration::from_mins(1);

/// Records repaired in one batch.
const BATCH_RECORDS: usize = 200;

/// What lies on the bus.
#[derive(Debug, Default)]
struct Found {
    subscriptions: BTreeMap<IntegrationId, Held>,
    downlinks: BTreeMap<(Kind, IntegrationId), Held>,
    /// Keys of requests that nobody waits for any more.
    requests: Vec<(Kind, Bytes)>,
    revision_max: u64,
}

#[derive(Debug)]
struct Held {
    revision: u64,
    time_ms: i64,
    value: Bytes,
}

/// Compares and repairs.
pub(crate) async fn reconcile(relayer: &Relayer) -> Result<(), Error> {
    let plane = &relayer.plane;
    let subscriptions = plane.catalogue.integration_subscriptions();
    plane.ensure(&subscriptions).await?;
    let kinds = plane.all_kinds();
    for kind in &kinds {
        plane.ensure_downlink(kind).await?;
    }
    let found = tokio::time::timeout(PATIENCE, read(relayer, &kinds)).await.map_err(|_| {
        tbmq_bus::Error::Unavailable(format!("the configuration topics were not read within {PATIENCE:?}"))
    })??;
    let topics: BTreeSet<String> = plane.admin.topics().await?.into_iter().map(|topic| topic.name).collect();
    if found.revision_max > plane.store.revision().await? {
        plane.store.raise_revision(found.revision_max).await?;
    }
    let claims = plane.admin.bounds(&[only_partition(&plane.catalogue.owners().name)]).await;
    if let Ok([claims]) = claims.as_deref() {
        plane.store.reset_epochs(claims.end).await?;
    }

    let now_ms = tbmq_service::time::now_ms();
    let mut known = BTreeSet::new();
    let mut after = None;
    loop {
        let rows = plane.store.scan(after).await?;
        let Some(last) = rows.last() else { break };
        after = Some(last.id);
        for row in rows {
            known.insert(row.id);
            let Some(mut life) = plane.store.life(row.id).await? else { continue };
            let lost =
                life.life.stage == Stage::Live && !topics.contains(&plane.catalogue.messages(row.id, 1).name);
            if lost {
                tracing::warn!(integration = %row.id, "the message topic is missing and is created anew");
                life.life.lost();
                plane.store.save_life(&mut life).await?;
            }
            let subscription = found.subscriptions.get(&row.id);
            let downlink = found.downlinks.get(&(row.kind.clone(), row.id));
            let seen =
                subscription.map_or(0, |held| held.revision).max(downlink.map_or(0, |held| held.revision));
            let same = |held: Option<&Held>, record: &BatchRecord| match (held, &record.value) {
                (Some(held), Some(value)) => held.value == value && held.revision == row.revision,
                (None, None) => true,
                _ => false,
            };
            if lost
                || !same(subscription, &relayer.subscription(&row, &life))
                || !same(downlink, &relayer.desired(&row, &life))
            {
                plane.metrics.repairs.inc();
                plane.store.mark_again(row.id, seen, now_ms).await?;
            }
        }
    }
    repair_strangers(relayer, found, &known, now_ms).await
}

/// Withdraws what lies on the bus without standing in the store. Message topics are left alone: a store that was
/// restored from an old backup must not cost messages.
async fn repair_strangers(
    relayer: &Relayer,
    found: Found,
    known: &BTreeSet<IntegrationId>,
    now_ms: i64,
) -> Result<(), Error> {
    let plane = &relayer.plane;
    let mut batch = Vec::new();
    for (id, held) in &found.subscriptions {
        // A life that goes on withdraws by itself; a change since the scan has left its mark.
        if !known.contains(id) && plane.store.life(*id).await?.is_none() {
            tracing::warn!(integration = %id, "a subscription without an integration is withdrawn");
            batch.push(relayer.subscription_record(*id, held.revision, None));
        }
    }
    for ((kind, id), held) in &found.downlinks {
        if known.contains(id) || plane.store.life(*id).await?.is_some() {
            continue;
        }
        let is_deleted = matches!(
            wire::decode_downlink(Some(&held.value), None),
            Ok(Downlink::Desired(desired)) if desired.change == Change::Deleted
        );
        if !is_deleted {
            tracing::warn!(integration = %id, %kind, "a configuration without an integration is withdrawn");
            batch.push(relayer.downlink_record(*id, kind, held.revision, 0, Some(Change::Deleted)));
        } else if held.time_ms + (TOMBSTONE_AFTER.as_millis() as i64) < now_ms {
            batch.push(relayer.downlink_record(*id, kind, held.revision, 0, None));
        }
    }
    for (kind, key) in found.requests {
        batch.push(BatchRecord {
            topic: plane.catalogue.downlink(&kind).name.into(),
            partition: None,
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
                        Some(kind) => take_downlink(&mut found, kind, record, now_ms),
                    }
                }
            }
            ReaderEvent::End { partition, .. } => {
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

fn take_downlink(found: &mut Found, kind: &Kind, record: Record, now_ms: i64) {
    let Some(key) = record.key.clone() else { return };
    let shard = key_text(&record).and_then(ShardId::from_downlink_key);
    let Some(held) = held(&record, found) else {
        if let Some(shard) = shard {
            found.downlinks.remove(&(kind.clone(), shard.integration));
        }
        found.requests.retain(|(_, request)| *request != key);
        return;
    };
    match wire::decode_downlink(Some(&held.value), None) {
        Ok(Downlink::Request(request)) => {
            // Whoever asked has withdrawn it, or died before he could.
            if request.deadline_ms > 0 && request.deadline_ms < now_ms {
                found.requests.push((kind.clone(), key));
            }
        }
        _ => {
            if let Some(shard) = shard.filter(|shard| shard.index == 0) {
                found.downlinks.insert((kind.clone(), shard.integration), held);
            }
        }
    }
}
