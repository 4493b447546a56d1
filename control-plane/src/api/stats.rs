//! `GetIntegrationStats`: counters, backlog and rates of one integration, read from the bus at the call.

use std::time::Duration;

use tbmq_proto::control::{GetIntegrationStatsRequest, IntegrationStats};
use tonic::{Request, Status};

use super::{
    calls::shortened,
    error,
    integration::{Integrations, parse_name, timestamp},
};

/// How long the bus may take, unless the caller gives it less.
const PATIENCE: Duration = Duration::from_secs(5);

impl Integrations {
    pub(super) async fn stats(
        &self,
        request: Request<GetIntegrationStatsRequest>,
    ) -> Result<IntegrationStats, Status> {
        let patience = shortened(request.metadata(), PATIENCE);
        let id = parse_name("name", &request.into_inner().name)?;
        let name = format!("integrations/{id}");
        let row = self.plane.store.get(id).await?;
        // An integration that is deleted between the two.
        let life = self.plane.store.life(id).await?.ok_or_else(|| error::not_found(&name))?;
        let backlogs = self.backlogs.of(&self.plane, std::slice::from_ref(&life), patience).await;
        let backlog = backlogs.map_err(error::unavailable)?.remove(&id).unwrap_or_default();
        let now_ms = tbmq_service::time::now_ms();
        Ok(IntegrationStats {
            name,
            counters: Some(backlog.counters()),
            lag: Some(backlog.lag(&self.plane, &row, &life, now_ms)),
            written_per_second: backlog.rates.map(|rates| rates.written_per_second),
            settled_per_second: backlog.rates.map(|rates| rates.settled_per_second),
            time: Some(timestamp(now_ms)),
        })
    }
}
