//! A rebalance storm: executors are killed, added, drained and started again in turn while integrations are created.
//!
//! When it is over each integration has one owner: the one that its status names is the one whose claim of the downlink
//! partition is the latest, it lives, and it alone delivers. What was published to an integration as soon as it was
//! created has arrived, however often its owner changed since.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use prost::Message as _;
use tbmq_bus::Bus;
use tbmq_harness::{
    client::{Plan, publish_all},
    http_sink::{HttpSink, Received},
    kafka::Kafka,
    postgres::Postgres,
};
use tbmq_proto::{
    control::{
        CreateIntegrationRequest, Integration, ListIntegrationsRequest, ListKindsRequest,
        integration_status::Phase,
    },
    ids::Kind,
    partition::for_key,
    topic::{Catalogue, DOWNLINK_PARTITIONS},
    wire::OwnerClaim,
};
use tokio::task::{JoinSet, block_in_place};
use tonic::{Code, Status};

use crate::{
    api::{Api, holder, is_away},
    deployment::{Deployment, Layout, Plane},
    work::read_topic,
};

/// How long anything may take to come right after the storm.
const PATIENCE: Duration = Duration::from_mins(3);

/// An executor that is silent for so long loses what it has.
const SESSION_TIMEOUT: &str = "3s";

/// Publishers: of what is sent to an integration as soon as it is there, and of what is sent when all is over.
const EARLY: u32 = 0;
const PROBE: u32 = 1;

/// What a storm is like.
#[derive(Clone, Debug)]
pub struct Storm {
    /// HTTP integrations that are created.
    pub integrations: u32,
    /// Create calls in flight.
    pub callers: u32,
    /// Milliseconds between two turns of the storm.
    pub pause_ms: Range<u64>,
    /// Decides who is struck, and when.
    pub seed: u64,
}

/// What a storm did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Executors that were killed.
    pub killed: u32,
    /// New executors that were added.
    pub added: u32,
    /// Executors that were drained.
    pub drained: u32,
    /// Killed or drained executors that were started again.
    pub started_again: u32,
    /// Create calls that were made anew because they had no answer or were refused for the moment.
    pub repeated_calls: u32,
    /// Until all were created.
    pub created_in: Duration,
    /// From the end of the storm until each integration had one owner.
    pub settled_in: Duration,
    /// Deliveries beyond the first of what was published during the storm.
    pub duplicates: usize,
    /// Integrations by owner.
    pub owned: BTreeMap<String, usize>,
}

/// Starts three executors and one of each other plane, and lets the storm loose on them. Needs a runtime with several
/// threads.
///
/// # Errors
/// What does not hold when the storm is over.
pub async fn run(kafka: &Kafka, postgres: &Postgres, storm: &Storm) -> Result<Report> {
    let layout = Layout::of(1, 1, 3).setting("TBMQ_IE_SESSION_TIMEOUT", SESSION_TIMEOUT);
    let deployment = block_in_place(|| layout.start(kafka, postgres))?;
    let sink = HttpSink::start().await?;
    let (api, mqtt) = (deployment.api()?, deployment.mqtt());
    served(&api).await?;

    let is_over = Arc::new(AtomicBool::new(false));
    let storming = tokio::task::spawn_blocking({
        let (storm, is_over) = (storm.clone(), is_over.clone());
        move || rage(deployment, &storm, &is_over)
    });
    let began = Instant::now();
    let repeated = Arc::new(AtomicU32::new(0));
    let created = for_each(storm, {
        let (repeated, url) = (repeated.clone(), sink.url("in"));
        move |number| {
            let (api, url, repeated) = (api.clone(), url.clone(), repeated.clone());
            async move {
                create(api, number, &url, &repeated).await?;
                publish_all(Plan::new(mqtt, &topic(number), 1).by(EARLY).first(number.into())).await.map(drop)
            }
        }
    })
    .await;
    let created_in = began.elapsed();
    is_over.store(true, Ordering::Relaxed);
    let (mut deployment, mut report) = storming.await??;
    created.context("creating integrations in the storm")?;

    let over = Instant::now();
    let owners = settled(&mut deployment, storm).await?;
    report.settled_in = over.elapsed();
    report.created_in = created_in;
    report.repeated_calls = repeated.load(Ordering::Relaxed);
    for owner in owners.values() {
        *report.owned.entry(owner.clone()).or_default() += 1;
    }

    for_each(storm, move |number| async move {
        publish_all(Plan::new(mqtt, &topic(number), 1).by(PROBE).first(number.into())).await.map(drop)
    })
    .await?;
    let all = storm.integrations as usize;
    sink.wait_until(PATIENCE, |received| received.len() >= 2 * all).await.context("probes")?;
    sink.wait_until(PATIENCE, |received| Deliveries::of(received).is_complete(all)).await?;
    // That nothing comes twice only time can tell: longer than two commit intervals and a session.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let deliveries = Deliveries::of(&sink.received());
    report.duplicates = deliveries.early.values().map(|by| by.len() - 1).sum();
    for (number, by) in &deliveries.probes {
        let owner = owners.get(number).context("a probe of an unknown integration")?;
        ensure!(
            by == std::slice::from_ref(owner),
            "integration {number} belongs to {owner}; it was delivered by {by:?}"
        );
    }
    block_in_place(|| deployment.drain_all())?;
    Ok(report)
}

fn topic(number: u32) -> String {
    format!("storm/{number}")
}

/// Waits until an executor serves HTTP.
async fn served(api: &Api) -> Result<()> {
    let mut api = api.clone();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let kinds = api.integrations.list_kinds(ListKindsRequest {}).await;
        let serves = |kind: &tbmq_proto::control::Kind| kind.name == "HTTP" && kind.service_ids.len() == 3;
        if kinds.is_ok_and(|kinds| kinds.into_inner().kinds.iter().any(serves)) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "three executors do not serve HTTP");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Does something for each integration, so many at a time.
async fn for_each<F>(storm: &Storm, work: impl Fn(u32) -> F + Clone + Send + 'static) -> Result<()>
where
    F: Future<Output = Result<()>> + Send,
{
    let next = Arc::new(AtomicU32::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..storm.callers {
        let (next, work, count) = (next.clone(), work.clone(), storm.integrations);
        callers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return anyhow::Ok(());
                }
                work(number).await.with_context(|| format!("integration {number}"))?;
            }
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller??;
    }
    Ok(())
}

/// Creates an integration, as often as it takes: calls are idempotent by their request id.
async fn create(mut api: Api, number: u32, url: &str, repeated: &AtomicU32) -> Result<()> {
    let filter = topic(number);
    let integration = Integration {
        display_name: filter.clone(),
        r#type: "HTTP".to_owned(),
        enabled: true,
        configuration_json: format!(
            r#"{{"topicFilters":["{filter}"],"clientConfiguration":{{"restEndpointUrl":"{url}","requestMethod":"POST","payloadContentType":"TEXT","maxInMemoryBufferSizeInKb":256}},"delivery":{{"ackStrategy":"RETRY_ALL","retries":0}}}}"#
        ),
        ..Integration::default()
    };
    let request = CreateIntegrationRequest {
        integration: Some(integration),
        integration_id: uuid::Uuid::new_v4().to_string(),
        request_id: uuid::Uuid::new_v4().to_string(),
        ..Default::default()
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        match api.integrations.create_integration(request.clone()).await {
            Ok(_) => return Ok(()),
            Err(status) if is_passing(&status) && Instant::now() < deadline => {
                repeated.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(status) => return Err(status.into()),
        }
    }
}

fn is_passing(status: &Status) -> bool {
    is_away(status) || status.code() == Code::ResourceExhausted
}

/// Kills, adds, drains and starts again, in turn, until it is told that it is over, but each once at least.
fn rage(mut deployment: Deployment, storm: &Storm, is_over: &AtomicBool) -> Result<(Deployment, Report)> {
    let mut report = Report::default();
    let mut random = storm.seed;
    let mut down = Vec::new();
    loop {
        pause(storm, &mut random);
        let victim = draw_running(&mut deployment, &mut random)?;
        deployment.kill(victim)?;
        down.push(victim);
        report.killed += 1;

        pause(storm, &mut random);
        let added = deployment.add(Plane::Executor)?;
        deployment.start(added)?;
        report.added += 1;

        pause(storm, &mut random);
        let victim = draw_running(&mut deployment, &mut random)?;
        deployment.drain(victim)?;
        down.push(victim);
        report.drained += 1;

        pause(storm, &mut random);
        let back = down.remove(draw(&mut random, down.len() as u64) as usize);
        deployment.start(back)?;
        report.started_again += 1;
        if is_over.load(Ordering::Relaxed) {
            return Ok((deployment, report));
        }
    }
}

fn pause(storm: &Storm, random: &mut u64) {
    let Range { start, end } = storm.pause_ms;
    std::thread::sleep(Duration::from_millis(start + draw(random, (end - start).max(1))));
}

fn draw_running(deployment: &mut Deployment, random: &mut u64) -> Result<crate::instance::Instance> {
    let mut running = Vec::new();
    for instance in deployment.instances(Plane::Executor) {
        if deployment.is_running(instance)? {
            running.push(instance);
        }
    }
    ensure!(!running.is_empty(), "no executor is left");
    Ok(running[draw(random, running.len() as u64) as usize])
}

/// SplitMix64.
fn draw(random: &mut u64, below: u64) -> u64 {
    *random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *random;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) % below
}

/// Waits until each integration has one owner, and returns the owners by number.
async fn settled(deployment: &mut Deployment, storm: &Storm) -> Result<BTreeMap<u32, String>> {
    let (mut api, bus, catalogue) = (deployment.api()?, deployment.bus()?, deployment.catalogue());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut live = BTreeSet::new();
        for instance in deployment.instances(Plane::Executor) {
            if deployment.is_running(instance)? {
                live.insert(instance.to_string());
            }
        }
        let claims = claims(&bus, &catalogue).await?;
        let integrations = list(&mut api).await?;
        ensure!(integrations.len() == storm.integrations as usize, "{} are there", integrations.len());
        let owners: Result<BTreeMap<u32, String>> =
            integrations.iter().map(|integration| owner(integration, &claims, &live)).collect();
        match owners {
            Ok(owners) => return Ok(owners),
            Err(error) => ensure!(Instant::now() < deadline, "not settled after {PATIENCE:?}: {error:#}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The number of an integration and its owner, if everybody agrees who that is.
fn owner(
    integration: &Integration,
    claims: &BTreeMap<u32, String>,
    live: &BTreeSet<String>,
) -> Result<(u32, String)> {
    let name = &integration.display_name;
    let number = name.strip_prefix("storm/").context("not of this storm")?.parse()?;
    let status = integration.status.as_ref().context("no status")?;
    ensure!(
        status.phase() == Phase::Active,
        "{name} is {:?}: {} {}",
        status.phase(),
        status.reason,
        status.error
    );
    let executors = status.holders.iter().filter(|holder| holder.role == "EXECUTOR").count();
    ensure!(executors == 1, "{name} has {executors} holders");
    let holder = holder(integration, 0).context("no holder")?;
    let claimant = claims.get(&for_key(integration.uid.as_bytes(), DOWNLINK_PARTITIONS));
    ensure!(
        claimant == Some(&holder.service_id),
        "{name} is held by {}, its partition was claimed last by {claimant:?}",
        holder.service_id
    );
    ensure!(live.contains(&holder.service_id), "{name} is held by {}, which is down", holder.service_id);
    Ok((number, holder.service_id.clone()))
}

/// Who claimed each downlink partition last.
async fn claims(bus: &Arc<dyn Bus>, catalogue: &Catalogue) -> Result<BTreeMap<u32, String>> {
    let kind: Kind = "HTTP".parse()?;
    let keys: BTreeMap<Vec<u8>, u32> = (0..DOWNLINK_PARTITIONS)
        .map(|partition| (Catalogue::owner_key(&kind, partition).into_bytes(), partition))
        .collect();
    let mut claims = BTreeMap::new();
    for record in read_topic(bus, &catalogue.owners().name).await?.into_values().flatten() {
        let partition = record.key.as_ref().and_then(|key| keys.get(&key[..]));
        if let (Some(partition), Some(value)) = (partition, record.value) {
            claims.insert(*partition, OwnerClaim::decode(value)?.service_id);
        }
    }
    Ok(claims)
}

async fn list(api: &mut Api) -> Result<Vec<Integration>> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListIntegrationsRequest { page_size: 500, page_token, ..Default::default() };
        let page = api.integrations.list_integrations(request).await?.into_inner();
        all.extend(page.integrations);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(all);
        }
    }
}

/// The executors that delivered, by the number of the integration, in the order of arrival.
#[derive(Debug, Default)]
struct Deliveries {
    early: BTreeMap<u32, Vec<String>>,
    probes: BTreeMap<u32, Vec<String>>,
}

impl Deliveries {
    fn of(received: &[Received]) -> Self {
        let mut all = Self::default();
        for one in received {
            if let Some((is_probe, number, executor)) = delivery(&one.body) {
                let which = if is_probe { &mut all.probes } else { &mut all.early };
                which.entry(number).or_default().push(executor);
            }
        }
        all
    }

    fn is_complete(&self, count: usize) -> bool {
        self.early.len() == count && self.probes.len() == count
    }
}

/// Reads the JSON body that an HTTP integration sends.
fn delivery(body: &[u8]) -> Option<(bool, u32, String)> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    let text = |key: &str| body.get(key)?.as_str();
    let number = text("topicName")?.strip_prefix("storm/")?.parse().ok()?;
    let is_probe = text("clientId")?.starts_with(&format!("publisher-{PROBE}-"));
    Some((is_probe, number, text("tbmqIeNode")?.to_owned()))
}
