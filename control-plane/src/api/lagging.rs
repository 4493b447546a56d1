//! Keeps the metrics of what waits: lags of integrations, changes that are not on the bus yet.
//!
//! One control plane tells, the one that holds the lease: what each of them told would be the same.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tbmq_proto::ids::IntegrationId;

use super::backlog::{Backlog, Backlogs};
use crate::{lag::Lag, plane::Plane, store};

/// How often to look.
const PERIOD: Duration = Duration::from_secs(15);

/// How long the bus may take to tell the backlogs of a page of integrations.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks for ever.
pub(crate) async fn follow(plane: Arc<Plane>) {
    let backlogs = Backlogs::new();
    loop {
        if plane.metrics.leading.get() == 1 {
            if let Err(error) = look(&plane, &backlogs).await {
                tracing::debug!(%error, "can't look at what waits");
            }
        } else {
            plane.metrics.lags.tell([]);
            plane.metrics.relay_backlog.set(0);
            plane.metrics.relay_backlog_age.set(0.0);
        }
        tokio::time::sleep(PERIOD).await;
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Bus(#[from] tbmq_bus::Error),
}

async fn look(plane: &Arc<Plane>, backlogs: &Backlogs) -> Result<(), Error> {
    let now_ms = tbmq_service::time::now_ms();
    let waiting = plane.store.outbox().await?;
    plane.metrics.relay_backlog.set(waiting.count as i64);
    let age_ms = waiting.oldest_ms.map_or(0, |at| now_ms.saturating_sub(at).max(0));
    plane.metrics.relay_backlog_age.set(age_ms as f64 / 1_000.0);

    let mut found: HashMap<IntegrationId, Backlog> = HashMap::new();
    let mut after = None;
    loop {
        let lives = plane.store.live_lives(after).await?;
        let Some(last) = lives.last() else { break };
        after = Some(last.integration);
        found.extend(backlogs.of(plane, &lives, PATIENCE).await?);
    }
    let now_ms = tbmq_service::time::now_ms();
    let lag = |(id, backlog): (IntegrationId, Backlog)| (id, Lag::from((&backlog, now_ms)));
    plane.metrics.lags.tell(found.into_iter().map(lag));
    Ok(())
}
