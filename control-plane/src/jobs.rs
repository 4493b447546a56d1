//! Periodic jobs of the relayer: parking of long-disabled integrations, retention of events and request ids, removal of
//! what nodes that are gone have left behind, and sealing of secrets with the first key.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use tbmq_bus::BatchRecord;
use tbmq_proto::{ids::ServiceId, wire::Role};
use tokio::time::{Instant, interval, interval_at};

use crate::{
    nodes::FORGET_AFTER,
    plane::Plane,
    relayer::{Error, Relayer},
    store::{Expired, PAGE_ROWS_MAX, Sealing},
};

/// How often old entries of the audit log are looked for.
const AUDIT_PERIOD: Duration = Duration::from_mins(10);

/// How often request ids are forgotten.
const REQUESTS_PERIOD: Duration = Duration::from_mins(1);

/// How often the leftovers of nodes are looked for.
const LEFTOVERS_PERIOD: Duration = Duration::from_hours(1);

/// When they are looked for at first: what lives has said so by then.
const LEFTOVERS_FIRST: Duration = Duration::from_mins(1);

/// How often secrets are looked for that are not sealed with the first key.
const SEALING_PERIOD: Duration = Duration::from_secs(10);

/// Pause between two batches of that: other changes go first.
const SEALING_PAUSE: Duration = Duration::from_millis(20);

/// Runs the jobs while the lease is held; never ends by itself.
pub(crate) async fn run(relayer: &Relayer) -> Error {
    let config = &relayer.plane.config;
    let cleanup = config.integrations.cleanup.clone();
    let events = config.sql.ttl.events.clone();
    let mut parking = interval(Duration::from_secs(cleanup.period.get()));
    let mut retention = interval(Duration::from_millis(events.execution_interval_ms.get()));
    let mut audit = interval(AUDIT_PERIOD);
    let mut requests = interval(REQUESTS_PERIOD);
    let mut leftovers = interval_at(Instant::now() + LEFTOVERS_FIRST, LEFTOVERS_PERIOD);
    let unauthorized = config.sql.ttl.unauthorized_client.clone();
    let mut refused = interval(Duration::from_millis(unauthorized.execution_interval_ms.get()));
    let mut blocked = interval(Duration::from_mins(config.mqtt.blocked_client.cleanup.period.get().into()));
    let mut sealing = interval(SEALING_PERIOD);
    let mut sealed = BTreeMap::new();
    loop {
        tokio::select! {
            _ = sealing.tick() => seal(relayer, &mut sealed).await,
            // A topic that may not be deleted goes on to hold what is published.
            _ = parking.tick() => if cleanup.ttl > 0 && relayer.plane.topic_deletion {
                park(relayer, cleanup.ttl).await;
            },
            // Boxed: it is a large future.
            _ = retention.tick() => Box::pin(keep_events(relayer)).await,
            _ = blocked.tick() => remove_blocks(relayer, tbmq_service::time::now_ms()).await,
            _ = refused.tick() => if unauthorized.enabled && unauthorized.ttl > 0 {
                forget_refused(relayer, unauthorized.ttl).await;
            },
            _ = audit.tick() => expire_audit(relayer, config.control.auth.audit_ttl).await,
            _ = requests.tick() => forget(relayer).await,
            _ = leftovers.tick() => match remove_leftovers(relayer, tbmq_service::time::now_ms()).await {
                Ok(()) => {}
                Err(error) if error.is_fenced() => return error,
                Err(error) => tracing::warn!(%error, "can't remove what nodes have left behind"),
            },
        }
    }
}

async fn park(relayer: &Relayer, ttl_sec: i64) {
    let before_ms = tbmq_service::time::now_ms().saturating_sub(ttl_sec.saturating_mul(1_000));
    loop {
        match relayer.plane.store.park_disabled(before_ms).await {
            Ok(0) => return,
            Ok(parked) => {
                tracing::info!(parked, "topics of long-disabled integrations are to be deleted");
                relayer.plane.restless.notify_one();
                if parked < PAGE_ROWS_MAX {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "can't look for long-disabled integrations");
                return;
            }
        }
    }
}

/// Removes what nodes that were not seen for a week have left behind (architecture §4.27): their record, and the topic
/// of replies to a control plane. Ids that never announced themselves are left alone.
async fn remove_leftovers(relayer: &Relayer, now_ms: i64) -> Result<(), Error> {
    let plane = &relayer.plane;
    plane.store.delete_sessions_before(now_ms - FORGET_AFTER.as_millis() as i64).await?;
    for node in plane.nodes.forgotten(now_ms) {
        let id = node.applied.service_id.clone();
        if id == plane.identity.service_id {
            continue;
        }
        // The record goes last: whoever finds it begins anew.
        if plane.topic_deletion
            && node.applied.role() == Role::ControlPlane
            && let Ok(id) = id.parse::<ServiceId>()
        {
            plane.admin.delete_topic(&plane.catalogue.uplink_notifications(&id).name).await?;
        }
        let tombstone = BatchRecord {
            topic: plane.catalogue.node_applied().name.into(),
            partition: Some(0),
            key: Some(Bytes::from(id.clone())),
            value: None,
            headers: Vec::new(),
        };
        relayer.write(vec![tombstone]).await?;
        tracing::info!(node = id, "what a node left behind was removed; it was not seen for a week");
    }
    Ok(())
}

/// Seals what is not sealed with the first key, and counts by key. `known` is what was counted before.
pub(crate) async fn seal(relayer: &Relayer, known: &mut BTreeMap<String, u64>) {
    let plane = &relayer.plane;
    let (mut after, mut sealed, mut unreadable) = (None, 0, 0);
    loop {
        match plane.store.seal_batch(after, tbmq_service::time::now_ms()).await {
            Ok(done) => {
                sealed += done.sealed;
                unreadable += done.unreadable;
                if done.sealed > 0 {
                    plane.dirty.notify_one();
                }
                match done.last {
                    Some(last) => after = Some(last),
                    None => break,
                }
            }
            Err(error) => {
                tracing::warn!(%error, "can't seal secrets; trying again soon");
                break;
            }
        }
        tokio::time::sleep(SEALING_PAUSE).await;
    }
    let providers = seal_providers(plane).await;
    sealed += providers.sealed;
    unreadable += providers.unreadable;
    let counted = match plane.store.sealed_by_key().await {
        Ok(counted) => counted,
        Err(error) => return tracing::warn!(%error, "can't count the integrations of each key"),
    };
    let vault = plane.store.vault();
    if vault.first().is_none() {
        unreadable = counted.values().sum();
    }
    plane.metrics.unreadable.set(unreadable as i64);
    // A key that is configured and not used any more shows 0: it may be removed.
    let configured = vault.key_ids().map(|id| (id.to_owned(), 0));
    let counted: BTreeMap<String, u64> = configured.chain(counted).collect();
    if *known != counted {
        let used = |counts: &BTreeMap<String, u64>| -> Vec<String> {
            counts.iter().filter(|(_, count)| **count > 0).map(|(id, _)| id.clone()).collect()
        };
        if used(known) != used(&counted) {
            tracing::info!(integrations = ?counted, sealed, unreadable, "secrets are sealed with these keys");
        }
        plane.metrics.sealed.clear();
        for (id, count) in &counted {
            plane.metrics.sealed.get_or_create(&[("key", id.clone())]).set(*count as i64);
        }
        *known = counted;
    }
}

/// The same of the configurations of authentication providers.
async fn seal_providers(plane: &Plane) -> Sealing {
    let store = &plane.store;
    let done = store.seal_providers(tbmq_service::time::now_ms()).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "can't seal secrets of providers; trying again soon");
        Sealing::default()
    });
    if done.sealed > 0 {
        plane.auth_dirty.notify_one();
    }
    match store.sealed_providers_by_key().await {
        Ok(counted) => {
            let gauges = &plane.metrics.sealed_providers;
            let configured = store.vault().key_ids().map(|id| (id.to_owned(), 0));
            let counted: BTreeMap<String, u64> = configured.chain(counted).collect();
            gauges.clear();
            for (id, count) in counted {
                gauges.get_or_create(&[("key", id)]).set(count as i64);
            }
        }
        Err(error) => tracing::warn!(%error, "can't count the providers of each key"),
    }
    done
}

/// Makes partitions for the events to come, and removes those that are too old.
async fn keep_events(relayer: &Relayer) {
    let sql = &relayer.plane.config.sql;
    let store = &relayer.plane.store;
    let now_ms = tbmq_service::time::now_ms();
    let width = Duration::from_hours(sql.events.partition_size.get().into());
    // The next one, and twice as far as the next round, which may be late.
    let rounds = Duration::from_millis(sql.ttl.events.execution_interval_ms.get()).saturating_mul(2);
    let ahead = width + rounds.min(8 * width);
    match store.make_event_partitions(now_ms, width, ahead).await {
        Ok(0) => {}
        Ok(made) => tracing::info!(made, "partitions for events made"),
        // The default partition takes what has none.
        Err(error) => tracing::warn!(%error, "can't make partitions for events"),
    }
    let ttl = &sql.ttl.events;
    if !ttl.enabled || ttl.ttl_sec <= 0 {
        return;
    }
    match store.expire_events(now_ms.saturating_sub(ttl.ttl_sec.saturating_mul(1_000))).await {
        Ok(expired) if expired == Expired::default() => {}
        Ok(Expired { partitions, events }) => tracing::info!(partitions, events, "old events removed"),
        Err(error) => tracing::warn!(%error, "can't remove old events"),
    }
}

/// Removes blocks that expired long ago.
async fn remove_blocks(relayer: &Relayer, now_ms: i64) {
    let before_ms = now_ms.saturating_sub(relayer.plane.config.blocked_ttl_ms());
    loop {
        match relayer.plane.store.remove_outdated_blocks(before_ms, now_ms).await {
            Ok(0) => return,
            Ok(removed) => {
                tracing::info!(removed, "blocks of clients that expired long ago are removed");
                relayer.plane.auth_committed();
            }
            Err(error) => {
                tracing::warn!(%error, "can't remove blocks that expired long ago");
                return;
            }
        }
    }
}

/// Forgets clients whose latest refusal is long ago.
async fn forget_refused(relayer: &Relayer, ttl_sec: i64) {
    let before_ms = tbmq_service::time::now_ms().saturating_sub(ttl_sec.saturating_mul(1_000));
    match relayer.plane.store.clear_unauthorized(Some(before_ms)).await {
        Ok(0) => {}
        Ok(removed) => tracing::info!(removed, "clients that were refused long ago are forgotten"),
        Err(error) => tracing::warn!(%error, "can't forget clients that were refused long ago"),
    }
}

/// Removes entries of the audit log that are older than `ttl`; zero keeps them all.
async fn expire_audit(relayer: &Relayer, ttl: Duration) {
    if ttl.is_zero() {
        return;
    }
    let ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
    let before_ms = tbmq_service::time::now_ms().saturating_sub(ttl_ms);
    loop {
        match relayer.plane.store.delete_audit_before(before_ms).await {
            Ok(PAGE_ROWS_MAX..) => {}
            Ok(0) => return,
            Ok(deleted) => {
                tracing::info!(deleted, "old entries of the audit log deleted");
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "can't delete old entries of the audit log");
                return;
            }
        }
    }
}

async fn forget(relayer: &Relayer) {
    crate::changes::compact(&relayer.plane).await;
    if let Err(error) = relayer.plane.store.forget_requests(tbmq_service::time::now_ms()).await {
        tracing::warn!(%error, "can't forget request ids");
    }
}

#[cfg(test)]
mod tests {
    use tbmq_bus::{Bus as _, ReaderConfig, ReaderEvent, Start, memory::MemoryBus};
    use tbmq_proto::wire::NodeApplied;

    use super::*;
    use crate::{
        relayer::only_partition,
        testing::{plane, relayer},
    };

    #[tokio::test]
    async fn what_a_node_left_behind_is_removed_after_a_week_and_nothing_else() {
        let (folder, bus) = (tempfile::tempdir().unwrap(), MemoryBus::new());
        let plane = plane(folder.path(), &bus, "cp1").await;
        let relayer = relayer(&plane).await;
        plane.ensure(&plane.catalogue.node_applied()).await.unwrap();
        let replies = |id: &str| plane.catalogue.uplink_notifications(&id.parse().unwrap());
        // The last one never said that it was there.
        for id in ["cp1", "cp-old", "cp-new", "cp-unknown"] {
            plane.ensure(&replies(id)).await.unwrap();
        }
        let now_ms = tbmq_service::time::now_ms();
        let seen = |id: &str, role: Role, age| {
            let applied = NodeApplied {
                service_id: id.to_owned(),
                role: role.into(),
                incarnation: "1".to_owned(),
                ..NodeApplied::default()
            };
            plane.nodes.record(applied, age, now_ms);
        };
        let long = FORGET_AFTER + Duration::from_mins(1);
        seen("cp1", Role::ControlPlane, long);
        seen("cp-old", Role::ControlPlane, long);
        seen("cp-new", Role::ControlPlane, FORGET_AFTER.checked_sub(Duration::from_mins(1)).unwrap());
        seen("dp-old", Role::DataPlane, long);
        remove_leftovers(&relayer, now_ms).await.unwrap();

        for (id, is_left) in [("cp1", true), ("cp-old", false), ("cp-new", true), ("cp-unknown", true)] {
            assert_eq!(plane.admin.topic(&replies(id).name).await.unwrap().is_some(), is_left, "{id}");
        }
        let mut reader = bus.reader(ReaderConfig::new("test", None)).await.unwrap();
        reader.add(&only_partition(&plane.catalogue.node_applied().name), Start::Earliest);
        let ReaderEvent::Batch { records, .. } = reader.next().await else { panic!("nothing was written") };
        let keys: Vec<_> = records.iter().map(|record| record.key.clone().unwrap()).collect();
        assert_eq!(keys, ["cp-old", "dp-old"]);
        assert!(records.iter().all(|record| record.value.is_none()));
    }
}
