//! At the beginning of each lease: what lies on the bus is compared with the store, and repaired from the store.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tbmq_bus::{BatchRecord, Bus as _, Error, ReaderConfig, ReaderEvent, Record, Start, TopicPartition};
use tbmq_integration::{
    cleanup::Stage,
    wire::{self, Change, Downlink},
};
use tbmq_proto::{
    ids::{IntegrationId, ShardId},
    topic::REVISION_HEADER,
};

use super::{
    Replica,
    lead::{Lead, desired, downlink_record, subscription, subscription_record},
};
use crate::{
    env::{Env, note, short},
    settings::DOWNLINK_PARTITIONS,
};

#[derive(Default)]
struct Found {
    subscriptions: BTreeMap<IntegrationId, Held>,
    downlinks: BTreeMap<ShardId, Held>,
    /// Keys of requests that nobody waits for any more.
    requests: Vec<Bytes>,
    revision_max: u64,
}

struct Held {
    revision: u64,
    value: Bytes,
    /// Where it was found.
    partition: u32,
}

pub(super) fn reconcile(replica: &mut Replica, env: &mut Env, lead: &mut Lead) -> Result<(), Error> {
    if replica.host.is_away() {
        return Err(Error::Unavailable("away".to_owned()));
    }
    let found = read(replica, env)?;
    env.sql.raise_revision(found.revision_max);
    let topics = env.net.ask(replica.host.bus.admin().topics())?;
    let topics: BTreeSet<String> = topics.into_iter().map(|topic| topic.name).collect();
    let rows: Vec<_> = env.sql.rows().cloned().collect();
    for row in &rows {
        let Some(mut life) = env.sql.life(row.id).cloned() else { continue };
        let is_lost =
            life.life.stage == Stage::Live && !topics.contains(&env.net.messages(row.id, life.shards).name);
        if is_lost {
            life.life.lost();
            env.sql.save_life(&mut life);
        }
        let records = desired(env, row, &life);
        let shards = (0..life.shards).map(|index| ShardId { integration: row.id, index });
        let downlinks: Vec<_> = shards.map(|shard| found.downlinks.get(&shard)).collect();
        let subscribed = found.subscriptions.get(&row.id);
        let seen =
            downlinks.iter().chain([&subscribed]).filter_map(|held| Some(held.as_ref()?.revision)).max();
        let same = |held: Option<&Held>, record: &BatchRecord| match (held, &record.value) {
            (Some(held), Some(value)) => held.value == value && held.revision == row.revision,
            (None, None) => true,
            _ => false,
        };
        let is_same = same(subscribed, &subscription(env, row, &life))
            && downlinks.iter().zip(&records).all(|(held, record)| same(*held, record));
        if is_lost || !is_same {
            note!(env, "{} repairs {}", replica.host.service, short(row.id));
            env.sql.mark_again(row.id, if is_lost { u64::MAX } else { seen.unwrap_or(0) });
        }
    }
    repair_strangers(replica, env, lead, found)
}

/// Withdraws what lies on the bus without standing in the store.
fn repair_strangers(
    replica: &mut Replica,
    env: &mut Env,
    lead: &mut Lead,
    found: Found,
) -> Result<(), Error> {
    let mut batch = Vec::new();
    for (id, held) in &found.subscriptions {
        if env.sql.life(*id).is_none() {
            batch.push(subscription_record(env, *id, held.revision, None));
        }
    }
    for (shard, held) in &found.downlinks {
        let is_deleted = matches!(
            wire::decode_downlink(Some(&held.value), None),
            Ok(Downlink::Desired(desired)) if desired.change == Change::Deleted
        );
        if env.sql.life(shard.integration).is_none() && !is_deleted {
            let record = downlink_record(env, *shard, 1, held.revision, 0, Some(&Change::Deleted));
            batch.push(BatchRecord { partition: Some(held.partition), ..record });
        }
    }
    batch.extend(found.requests.into_iter().map(|key| BatchRecord {
        topic: env.net.catalogue.downlink(&env.net.kind).name.into(),
        partition: None,
        key: Some(key),
        value: None,
        headers: Vec::new(),
    }));
    if !batch.is_empty() {
        note!(env, "{} withdraws {} records", replica.host.service, batch.len());
        replica.write(env, lead, batch)?;
    }
    Ok(())
}

fn read(replica: &Replica, env: &Env) -> Result<Found, Error> {
    let mut reader = env.net.ask(replica.host.bus.reader(ReaderConfig::new("reconciler", None)))?;
    let subscriptions = TopicPartition::new(env.net.catalogue.integration_subscriptions().name, 0);
    let downlink = env.net.catalogue.downlink(&env.net.kind).name;
    let mut open: BTreeSet<TopicPartition> =
        (0..DOWNLINK_PARTITIONS).map(|index| TopicPartition::new(downlink.as_str(), index)).collect();
    open.insert(subscriptions.clone());
    for partition in &open {
        reader.add(partition, Start::Earliest);
    }
    let mut found = Found::default();
    while !open.is_empty() {
        match env.net.ask(reader.next()) {
            ReaderEvent::Batch { partition, records } => {
                for record in records {
                    if partition == subscriptions {
                        take_subscription(&mut found, partition.partition, &record);
                    } else {
                        take_downlink(&mut found, partition.partition, &record, env.wall_ms());
                    }
                }
            }
            ReaderEvent::End { partition, .. } | ReaderEvent::Gone { partition, .. } => {
                reader.remove(&partition);
                open.remove(&partition);
            }
            ReaderEvent::Gap { .. } => {}
        }
    }
    Ok(found)
}

fn held(record: &Record, partition: u32, found: &mut Found) -> Option<Held> {
    let revision = record.header(REVISION_HEADER).and_then(|text| text.parse().ok()).unwrap_or(0);
    found.revision_max = found.revision_max.max(revision);
    let value = record.value.clone().filter(|value| !value.is_empty())?;
    Some(Held { revision, value, partition })
}

fn key_text(record: &Record) -> Option<&str> {
    std::str::from_utf8(record.key.as_ref()?).ok()
}

fn take_subscription(found: &mut Found, partition: u32, record: &Record) {
    let Some(id) = key_text(record).and_then(|key| key.parse().ok()) else { return };
    match held(record, partition, found) {
        Some(held) => found.subscriptions.insert(id, held),
        None => found.subscriptions.remove(&id),
    };
}

fn take_downlink(found: &mut Found, partition: u32, record: &Record, wall_ms: i64) {
    let Some(key) = record.key.clone() else { return };
    let shard = key_text(record).and_then(ShardId::from_downlink_key);
    let Some(held) = held(record, partition, found) else {
        if let Some(shard) = shard {
            found.downlinks.remove(&shard);
        }
        found.requests.retain(|request| *request != key);
        return;
    };
    match wire::decode_downlink(Some(&held.value), None) {
        Ok(Downlink::Request(request)) => {
            if request.deadline_ms > 0 && request.deadline_ms < wall_ms {
                found.requests.push(key);
            }
        }
        _ => {
            if let Some(shard) = shard {
                found.downlinks.insert(shard, held);
            }
        }
    }
}
