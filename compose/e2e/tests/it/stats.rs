//! What is told of an integration's messages, from the publisher to the counters, while messages flow and processes die.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use http::StatusCode;
use tbmq_e2e::{
    api::{Api, http_with},
    deployment::{Deployment, Plane},
    work,
};
use tbmq_harness::{client::Plan, http_sink::HttpSink, http_sink::Mode};
use tbmq_proto::control::{GetIntegrationStatsRequest, IntegrationStats};

const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until it holds. Every answer must add up (architecture §5.10).
async fn until(
    api: &mut Api,
    name: &str,
    what: &str,
    holds: impl Fn(&IntegrationStats) -> bool,
) -> Result<IntegrationStats> {
    let began = Instant::now();
    loop {
        let request = GetIntegrationStatsRequest { name: name.to_owned() };
        let stats = api.integrations.get_integration_stats(request).await?.into_inner();
        let (counters, lag) = (stats.counters.unwrap_or_default(), stats.lag.unwrap_or_default());
        let settled = counters.delivered
            + counters.rejected
            + counters.skipped
            + counters.dead_lettered
            + counters.expired;
        assert_eq!(counters.written, settled + lag.messages, "{stats:?}");
        if holds(&stats) {
            return Ok(stats);
        }
        ensure!(began.elapsed() < PATIENCE, "in vain: {what}; {stats:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_message_is_counted_once_also_over_a_kill_and_what_waits_is_the_backlog() -> Result<()> {
    let mut deployment = Deployment::standalone()?;
    let mut api = deployment.api()?;
    let sink = HttpSink::start().await?;
    let requests = AtomicUsize::new(0);
    sink.script(move |_, _, _| {
        let nth = requests.fetch_add(1, Ordering::Relaxed);
        let refused = nth.is_multiple_of(4) && nth < 100;
        (if refused { StatusCode::BAD_REQUEST } else { StatusCode::OK }, Duration::ZERO)
    });
    let delivery = r#"{"ackStrategy":"RETRY_ALL","retries":0,"pauseBetweenRetriesSec":0}"#;
    let integration = http_with("counted", &["s/#"], &sink.url("in"), delivery);
    let integration = api.create_active(integration).await?;
    let name = integration.name.as_str();
    work::publish(Plan::new(deployment.mqtt(), "s/a", 100), 1).await?;
    let is_settled = |stats: &IntegrationStats| stats.lag.as_ref().is_some_and(|lag| lag.messages == 0);
    let stats = until(&mut api, name, "all are settled", |stats| {
        is_settled(stats) && stats.counters.is_some_and(|counters| counters.written == 100)
    })
    .await?;
    let counters = stats.counters.unwrap();
    assert_eq!((counters.delivered, counters.rejected, counters.retries), (75, 25, 0), "{counters:?}");

    sink.set_mode(Mode::Down).await?;
    let began = Instant::now();
    work::publish(Plan::new(deployment.mqtt(), "s/a", 50).first(100), 1).await?;
    let stats = until(&mut api, name, "they wait", |stats| {
        stats.lag.as_ref().is_some_and(|lag| lag.messages == 50 && lag.seconds >= 1.0)
    })
    .await?;
    let lag = stats.lag.unwrap();
    assert!(lag.seconds <= began.elapsed().as_secs_f64() + 1.0, "{lag:?}");
    assert!(lag.kept_until.is_some());

    deployment.kill(Plane::All)?;
    sink.set_mode(Mode::Serving).await?;
    deployment.start(Plane::All)?;
    let mut api = deployment.api()?;
    let stats = until(&mut api, name, "all are settled", |stats| {
        is_settled(stats) && stats.counters.is_some_and(|counters| counters.written == 150)
    })
    .await?;
    let counters = stats.counters.unwrap();
    assert_eq!((counters.delivered, counters.rejected), (125, 25), "{counters:?}");
    assert_eq!(counters.skipped + counters.dead_lettered + counters.expired, 0, "{counters:?}");
    deployment.drain_all()
}
