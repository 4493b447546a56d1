//! From an Update call until the change is applied everywhere: on every data plane, which the call itself waits for, and
//! on the executor that runs the integration, which a watch tells. One update after the other.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hdrhistogram::Histogram;
use tbmq_proto::control::{
    Integration, UpdateIntegrationRequest, WatchIntegrationsRequest, WatchIntegrationsResponse,
};
use tonic::Streaming;

use super::{Options, PATIENCE, System, create::integration, report};

/// How changes spread, µs.
pub(super) struct Propagated {
    /// Until the call returned: applied on every data plane.
    pub(super) calls: Histogram<u64>,
    /// Until the executor had said that it runs the change, and the call had returned.
    pub(super) everywhere: Histogram<u64>,
}

pub(super) async fn run(system: &System, options: &Options) -> Result<Propagated> {
    let all = system.all(options.integrations).await?;
    let mut api = system.api.clone();
    let present = all.iter().map(|one| one.revision).max().context("there is none")?;
    let request = WatchIntegrationsRequest { after_revision: Some(present), name: String::new() };
    let mut watch = api.integrations.watch_integrations(request).await?.into_inner();
    let (mut calls, mut everywhere) = (Histogram::new(3)?, Histogram::new(3)?);
    for round in 0..options.updates {
        // Spread over all, and so over the executors.
        let number = (round * 7_919) % options.integrations;
        let held = &all[number as usize];
        let change =
            Integration { name: held.name.clone(), ..integration(number, round + 1, &system.sink.url("")) };
        let request = UpdateIntegrationRequest { integration: Some(change), ..Default::default() };
        let began = Instant::now();
        let answer = api.integrations.update_integration(request).await?;
        let called = began.elapsed();
        ensure!(answer.metadata().get("tbmq-silent-nodes").is_none(), "a data plane was silent");
        let updated = answer.into_inner();
        // What the executor has said meanwhile waits in the stream, so the later of the two counts.
        let running = tokio::time::timeout(PATIENCE, runs(&mut watch, &updated));
        running.await.context("no executor runs the change")??;
        let took = began.elapsed();
        calls.record(called.as_micros() as u64)?;
        everywhere.record(took.as_micros() as u64)?;
        // Not in step with anything that is done at intervals.
        tokio::time::sleep(Duration::from_millis(u64::from(round * 37 % 50))).await;
    }
    println!(
        "  updates: applied by data planes {}; everywhere {}",
        report::millis(&calls),
        report::millis(&everywhere)
    );
    Ok(Propagated { calls, everywhere })
}

/// Waits until the watch tells that every holder runs this version.
async fn runs(watch: &mut Streaming<WatchIntegrationsResponse>, updated: &Integration) -> Result<()> {
    loop {
        let message = watch.message().await?.context("the watch has ended")?;
        let Some(integration) = message.integration.filter(|one| one.uid == updated.uid) else { continue };
        let status = integration.status.unwrap_or_default();
        let mut executors = status.holders.iter().filter(|holder| holder.role == "EXECUTOR").peekable();
        let is_there = executors.peek().is_some();
        if is_there
            && executors
                .all(|holder| holder.observed_revision >= updated.revision && holder.state == "STARTED")
        {
            return Ok(());
        }
    }
}
