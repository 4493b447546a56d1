//! Many watches at once: how long a change takes to each of them, and whether each ends with what is listed.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use hdrhistogram::Histogram;
use tbmq_e2e::api::Api;
use tbmq_proto::control::{
    Integration, UpdateIntegrationRequest, WatchIntegrationsRequest, watch_integrations_response::Type,
};
use tokio::{sync::watch, task::JoinSet};

use super::{Options, PATIENCE, System, create::integration, report};

/// What watches got.
pub(super) struct Watched {
    /// From the time that the change was stamped with, before it was saved, to its arrival; µs, to 1 ms.
    pub(super) delays: Histogram<u64>,
    pub(super) updates: u32,
    pub(super) elapsed: Duration,
}

/// What a watch knows of an integration: its revision and configuration.
type Known = BTreeMap<String, (u64, String)>;

pub(super) async fn run(system: &System, options: &Options) -> Result<Watched> {
    let all = system.all(options.integrations).await?;
    let begin: Known = all.iter().map(known).collect();
    let present = all.iter().map(|one| one.revision).max().context("there is none")?;
    let (end, ends) = watch::channel(None::<u64>);
    let mut watches = JoinSet::new();
    let address = system.deployment.grpc();
    for _ in 0..options.watchers {
        // A connection each.
        watches.spawn(follow(Api::connect(address)?, present, begin.clone(), ends.clone()));
    }
    let began = Instant::now();
    let mut updates = JoinSet::new();
    let pause = Duration::from_secs(1) / options.watched_rate.max(1);
    let mut ticks = tokio::time::interval(pause);
    for round in 0..options.watched_updates {
        ticks.tick().await;
        let number = (round * 104_729 + 1) % options.integrations;
        let change = Integration {
            name: all[number as usize].name.clone(),
            ..integration(number, 1_000_000 + round, &system.sink.url(""))
        };
        let mut api = system.api.clone();
        updates.spawn(async move {
            let request = UpdateIntegrationRequest { integration: Some(change), ..Default::default() };
            anyhow::Ok(api.integrations.update_integration(request).await?.into_inner().revision)
        });
    }
    let mut last = 0;
    while let Some(revision) = updates.join_next().await {
        last = last.max(revision??);
    }
    let elapsed = began.elapsed();
    end.send(Some(last))?;
    let listed: Known = system.all(options.integrations).await?.iter().map(known).collect();
    let mut delays = Histogram::new(3)?;
    while let Some(watched) = watches.join_next().await {
        let (rebuilt, of_one) = watched??;
        ensure!(rebuilt == listed, "a watch does not know what is listed");
        ensure!(of_one.len() >= u64::from(options.watched_updates), "a watch was told of {}", of_one.len());
        delays.add(of_one)?;
    }
    println!("  {} watches: {}", options.watchers, report::millis(&delays));
    Ok(Watched { delays, updates: options.watched_updates, elapsed })
}

fn known(integration: &Integration) -> (String, (u64, String)) {
    (integration.uid.clone(), (integration.revision, integration.configuration_json.clone()))
}

/// Watches until the revision that `ends` names at last was passed.
async fn follow(
    mut api: Api,
    after: u64,
    mut rebuilt: Known,
    mut ends: watch::Receiver<Option<u64>>,
) -> Result<(Known, Histogram<u64>)> {
    let request = WatchIntegrationsRequest { after_revision: Some(after), name: String::new() };
    let mut watch = api.integrations.watch_integrations(request).await?.into_inner();
    let mut delays = Histogram::new(3)?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut passed = after;
    loop {
        if ends.borrow_and_update().is_some_and(|end| passed >= end) {
            return Ok((rebuilt, delays));
        }
        let message = tokio::select! {
            message = watch.message() => message?.context("a watch has ended")?,
            changed = ends.changed() => { changed?; continue }
            () = tokio::time::sleep_until(deadline) => anyhow::bail!("a watch has come to {passed} only"),
        };
        passed = passed.max(message.revision);
        let what = message.r#type();
        let Some(integration) = message.integration else { continue };
        ensure!(matches!(what, Type::Added | Type::Modified), "{what:?}");
        let (uid, now) = known(&integration);
        let before = rebuilt.insert(uid, now);
        // Other messages tell of statuses.
        if before.is_none_or(|(revision, _)| revision < integration.revision) {
            let saved = integration.update_time.context("no time")?;
            let saved = Duration::new(saved.seconds.cast_unsigned(), saved.nanos.cast_unsigned());
            let delay = SystemTime::now().duration_since(UNIX_EPOCH)?.saturating_sub(saved);
            delays.record(delay.as_micros() as u64)?;
        }
    }
}
