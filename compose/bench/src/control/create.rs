//! Creating them all: so many calls in flight, each validated by an executor and applied by every data plane before it
//! returns.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use tbmq_proto::control::{
    CreateIntegrationRequest, Integration, ListIntegrationsRequest, integration_status::Phase,
};
use tokio::task::JoinSet;

use super::{Options, PATIENCE, System, report};

/// Parts of the whole whose rates are told apart.
const PARTS: u32 = 10;

/// How creating went.
pub(super) struct Created {
    pub(super) elapsed: Duration,
    /// Calls a second in the slowest tenth.
    pub(super) slowest: f64,
    /// µs.
    pub(super) calls: Histogram<u64>,
    /// Calls that returned, after 5 s, before every data plane had applied what they saved.
    pub(super) silent: u32,
    /// CPU time of each kind of process for an integration, ms.
    pub(super) cpu_ms: Vec<(&'static str, f64)>,
    /// From the last answer until all were ACTIVE.
    pub(super) until_active: Duration,
}

impl Created {
    pub(super) fn rate(&self) -> f64 {
        self.calls.len() as f64 / self.elapsed.as_secs_f64()
    }
}

/// The integration of a number, in one of its versions.
pub(super) fn integration(number: u32, version: u32, url: &str) -> Integration {
    Integration {
        display_name: format!("control {number:06}"),
        r#type: "HTTP".to_owned(),
        enabled: true,
        configuration_json: format!(
            r#"{{"topicFilters":["control/{number}/{version}"],"metadata":{{}},"clientConfiguration":{{"restEndpointUrl":"{url}{number}/{version}","requestMethod":"POST","sendOnlyMsgPayload":true,"maxInMemoryBufferSizeInKb":256}}}}"#
        ),
        ..Integration::default()
    }
}

pub(super) async fn run(system: &System, options: &Options) -> Result<Created> {
    let (next, url) = (Arc::new(AtomicU32::new(0)), system.sink.url(""));
    let before = system.cpu()?;
    let began = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..options.callers {
        let (next, mut api, url, count) =
            (next.clone(), system.api.clone(), url.clone(), options.integrations);
        callers.spawn(async move {
            let mut calls = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return anyhow::Ok(calls);
                }
                let called = Instant::now();
                let request = CreateIntegrationRequest {
                    integration: Some(integration(number, 0, &url)),
                    ..Default::default()
                };
                let answer = api.integrations.create_integration(request).await?;
                let is_silent = answer.metadata().contains_key("tbmq-silent-nodes");
                calls.push((began.elapsed(), called.elapsed(), is_silent));
            }
        });
    }
    let (mut calls, mut ends, mut silent) = (Histogram::new(3)?, Vec::new(), 0);
    while let Some(caller) = callers.join_next().await {
        for (end, took, is_silent) in caller?? {
            silent += u32::from(is_silent);
            calls.record(took.as_micros() as u64)?;
            ends.push(end);
        }
    }
    let elapsed = began.elapsed();
    let after = system.cpu()?;
    let of_each = |((name, after), (_, before)): (&(&'static str, Duration), (&'static str, Duration))| {
        (*name, after.saturating_sub(before).as_secs_f64() * 1e3 / f64::from(options.integrations))
    };
    let cpu_ms: Vec<_> = after.iter().zip(before).map(of_each).collect();
    ends.sort();
    let rates = rates(&ends);
    println!(
        "  created in {elapsed:.1?}; by tenths {rates:.0?}/s; calls {}, {silent} without a data plane; CPU ms {cpu_ms:.1?}",
        report::millis(&calls)
    );
    let waiting = Instant::now();
    await_active(system, options.integrations).await?;
    let until_active = waiting.elapsed();
    println!("  all ACTIVE {until_active:.2?} after the last answer");
    let slowest = rates.into_iter().fold(f64::INFINITY, f64::min);
    Ok(Created { elapsed, slowest, calls, silent, cpu_ms, until_active })
}

/// Answers a second in each of [`PARTS`] parts, of which each has as many answers.
fn rates(ends: &[Duration]) -> Vec<f64> {
    let size = ends.len().div_ceil(PARTS as usize).max(1);
    let mut from = Duration::ZERO;
    let rate = |part: &[Duration]| {
        let to = part.last().copied().unwrap_or(from);
        let rate = part.len() as f64 / to.saturating_sub(from).as_secs_f64().max(1e-9);
        from = to;
        rate
    };
    ends.chunks(size).map(rate).collect()
}

async fn await_active(system: &System, count: u32) -> Result<()> {
    let mut api = system.api.clone();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (mut active, mut page_token) = (0, String::new());
        loop {
            let request = ListIntegrationsRequest { page_size: 1_000, page_token, ..Default::default() };
            let page = api.integrations.list_integrations(request).await?.into_inner();
            let is_active = |one: &&Integration| {
                one.status.as_ref().is_some_and(|status| status.phase() == Phase::Active)
            };
            active += page.integrations.iter().filter(is_active).count();
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        if active == count as usize {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{active} of {count} integrations are ACTIVE");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
