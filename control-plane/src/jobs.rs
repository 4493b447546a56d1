//! Periodic jobs of the relayer: parking of long-disabled integrations, retention of events and request ids.

use std::time::Duration;

use crate::relayer::{Error, Relayer};

/// How often request ids are forgotten.
const REQUESTS_PERIOD: Duration = Duration::from_mins(1);

/// Runs the jobs while the lease is held; never ends by itself.
pub(crate) async fn run(relayer: &Relayer) -> Error {
    let config = &relayer.plane.config;
    let cleanup = config.integrations.cleanup.clone();
    let events = config.sql.ttl.events.clone();
    let mut parking = tokio::time::interval(Duration::from_secs(cleanup.period.get()));
    let mut retention = tokio::time::interval(Duration::from_millis(events.execution_interval_ms.get()));
    let mut requests = tokio::time::interval(REQUESTS_PERIOD);
    loop {
        tokio::select! {
            _ = parking.tick() => if cleanup.ttl > 0 { park(relayer, cleanup.ttl).await },
            _ = retention.tick() => if events.enabled && events.ttl_sec > 0 { expire(relayer, events.ttl_sec).await },
            _ = requests.tick() => forget(relayer).await,
        }
    }
}

async fn park(relayer: &Relayer, ttl_sec: i64) {
    let before_ms = tbmq_service::time::now_ms().saturating_sub(ttl_sec.saturating_mul(1_000));
    match relayer.plane.store.park_disabled(before_ms).await {
        Ok(0) => {}
        Ok(parked) => {
            tracing::info!(parked, "topics of long-disabled integrations are to be deleted");
            relayer.plane.restless.notify_one();
        }
        Err(error) => tracing::warn!(%error, "can't look for long-disabled integrations"),
    }
}

async fn expire(relayer: &Relayer, ttl_sec: i64) {
    let before_ms = tbmq_service::time::now_ms().saturating_sub(ttl_sec.saturating_mul(1_000));
    match relayer.plane.store.delete_events_before(before_ms).await {
        Ok(0) => {}
        Ok(deleted) => tracing::info!(deleted, "old events deleted"),
        Err(error) => tracing::warn!(%error, "can't delete old events"),
    }
}

async fn forget(relayer: &Relayer) {
    crate::changes::compact(&relayer.plane).await;
    if let Err(error) = relayer.plane.store.forget_requests(tbmq_service::time::now_ms()).await {
        tracing::warn!(%error, "can't forget request ids");
    }
}
