//! A thousand calls at once through two control planes, one of which is killed in the middle: afterwards SQL, the
//! subscriptions topic, the downlink topics, the message topics, and what runs agree exactly.
//!
//! A call that was cut has an unknown outcome. Half of them are made again under their request id, until they are
//! answered; of the others only the truth is read afterwards. What was answered has to be in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use prost::Message as _;
use tbmq_bus::{Bus, Record};
use tbmq_e2e::{
    api::{Api, http_with, is_away},
    deployment::{Deployment, Layout, Plane},
    instance::Instance,
    work,
};
use tbmq_harness::{Need, client::Client, http_sink::HttpSink, kafka::Kafka, postgres::Postgres, ready};
use tbmq_integration::wire::{Change, Downlink, decode_downlink};
use tbmq_mqtt::{
    codec::property::Properties,
    packet::{Packet, ProtocolVersion, Publish, Qos},
};
use tbmq_proto::{
    control::{
        CreateIntegrationRequest, DeleteIntegrationRequest, Integration, ListIntegrationsRequest,
        UpdateIntegrationRequest,
    },
    ids::ShardId,
    partition::for_shard,
    queue::ClientSubscriptionsProto,
    topic::REVISION_HEADER,
};
use tokio::{
    sync::Semaphore,
    task::{JoinSet, block_in_place},
};
use tonic::{Code, Status};
use uuid::Uuid;

/// Integrations that are there before.
const BEFORE: usize = 300;
/// Calls of each kind: 1,000 in all.
const CREATES: usize = 400;
const UPDATES: usize = 400;
const DELETES: usize = 200;
/// Versions of an integration; every third is disabled.
const VERSIONS: usize = 8;
/// Calls in flight.
const AT_ONCE: usize = 200;

const PATIENCE: Duration = Duration::from_mins(2);

/// A call to be made.
#[derive(Clone, Copy, Debug)]
enum Call {
    Create(usize),
    /// To the version of this number.
    Update(usize, usize),
    Delete(usize),
}

/// What became of a call.
#[derive(Clone, Debug)]
enum Outcome {
    /// Id and revision, if it is not deleted.
    Done(Option<(String, u64)>),
    /// Another call was first.
    Refused(Code),
    /// It was cut, or could not be served now.
    Unknown(Status),
}

/// An integration as all are to agree on it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entity {
    revision: u64,
    enabled: bool,
    configuration: String,
}

type Entities = BTreeMap<String, Entity>;

/// The two control planes.
fn controls() -> [Instance; 2] {
    [Plane::Control.nth(1), Plane::Control.nth(2)]
}

struct World {
    deployment: Deployment,
    sink: HttpSink,
    /// Ids by number.
    ids: Vec<String>,
}

/// A version of an integration.
fn version(sink: &HttpSink, number: usize, version: usize) -> Integration {
    let filter = format!("agree/{number}/{version}");
    Integration {
        enabled: version % 3 != 2,
        ..http_with(
            &format!("agree {number}"),
            &[&filter],
            &sink.url(&filter),
            r#"{"ackStrategy":"RETRY_ALL"}"#,
        )
    }
}

impl World {
    fn leads(&self, instance: Instance) -> bool {
        let metrics = block_in_place(|| self.deployment.metrics(instance)).unwrap_or_default();
        metrics.lines().any(|line| line == "tbmq_control_leading 1")
    }

    async fn leader(&self) -> Result<Instance> {
        let mut leader = None;
        until("a control plane leads", async || {
            leader = controls().into_iter().find(|instance| self.leads(*instance));
            leader.map(drop).context("none leads")
        })
        .await?;
        leader.context("it was just there")
    }

    fn caller(&self) -> Result<Arc<Caller>> {
        let [first, second] = controls();
        Ok(Arc::new(Caller {
            planes: [self.deployment.api_of(first)?, self.deployment.api_of(second)?],
            down: [AtomicBool::new(false), AtomicBool::new(false)],
            versions: (0..self.ids.len())
                .map(|number| (0..VERSIONS).map(|to| version(&self.sink, number, to)).collect())
                .collect(),
            ids: self.ids.clone(),
            seats: Semaphore::new(AT_ONCE),
            ended: AtomicUsize::new(0),
            repeated: AtomicUsize::new(0),
        }))
    }
}

/// Makes calls.
struct Caller {
    planes: [Api; 2],
    down: [AtomicBool; 2],
    /// Versions by number.
    versions: Vec<Vec<Integration>>,
    ids: Vec<String>,
    seats: Semaphore,
    ended: AtomicUsize,
    repeated: AtomicUsize,
}

impl Caller {
    /// Makes a call through one of the replicas in turn, but not through one that is known to be down. One that is cut
    /// or can't be served now is made again, through the other, until it is answered, if `repeats` says so of its number.
    async fn call(&self, number: usize, call: Call, repeats: fn(usize) -> bool) -> Result<Outcome> {
        let _seat = self.seats.acquire().await?;
        let request_id = Uuid::new_v4().to_string();
        let deadline = Instant::now() + PATIENCE;
        for attempt in 0.. {
            let plane = (number + attempt) % 2;
            let is_down = self.down[plane].load(Ordering::Relaxed);
            let mut api = self.planes[if is_down { 1 - plane } else { plane }].clone();
            let answer = match call {
                Call::Create(of) => {
                    let request = CreateIntegrationRequest {
                        integration: Some(self.versions[of][0].clone()),
                        integration_id: self.ids[of].clone(),
                        request_id: request_id.clone(),
                        ..Default::default()
                    };
                    api.integrations.create_integration(request).await.map(|answer| Some(answer.into_inner()))
                }
                Call::Update(of, to) => {
                    let integration =
                        Integration { name: self.ids[of].clone(), ..self.versions[of][to].clone() };
                    let request = UpdateIntegrationRequest {
                        integration: Some(integration),
                        request_id: request_id.clone(),
                        ..Default::default()
                    };
                    api.integrations.update_integration(request).await.map(|answer| Some(answer.into_inner()))
                }
                Call::Delete(of) => {
                    let request = DeleteIntegrationRequest {
                        name: self.ids[of].clone(),
                        request_id: request_id.clone(),
                        ..Default::default()
                    };
                    api.integrations.delete_integration(request).await.map(|_| None)
                }
            };
            let outcome = match answer {
                Ok(done) => Outcome::Done(
                    done.map(|integration: Integration| (integration.uid, integration.revision)),
                ),
                Err(status) if is_passing(&status) && repeats(number) => {
                    ensure!(Instant::now() < deadline, "{call:?}: {status}");
                    println!("{call:?} again: {status}");
                    self.repeated.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
                Err(status) if is_passing(&status) => Outcome::Unknown(status),
                Err(status) if matches!(status.code(), Code::Aborted | Code::NotFound) => {
                    Outcome::Refused(status.code())
                }
                Err(status) => bail!("{call:?}: {status}"),
            };
            self.ended.fetch_add(1, Ordering::Relaxed);
            return Ok(outcome);
        }
        unreachable!("the loop has no end")
    }

    /// Makes all these calls at once.
    async fn all(
        self: &Arc<Self>,
        calls: &[Call],
        repeats: fn(usize) -> bool,
    ) -> Result<Vec<(Call, Outcome)>> {
        let mut tasks = JoinSet::new();
        for (number, call) in calls.iter().copied().enumerate() {
            let caller = Arc::clone(self);
            tasks.spawn(async move { anyhow::Ok((call, caller.call(number, call, repeats).await?)) });
        }
        let mut outcomes = Vec::new();
        while let Some(outcome) = tasks.join_next().await {
            outcomes.push(outcome??);
        }
        Ok(outcomes)
    }
}

fn is_passing(status: &Status) -> bool {
    is_away(status) || status.code() == Code::ResourceExhausted
}

/// Waits until something holds; tells what did not.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match holds().await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("not within {PATIENCE:?}: {what}")));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

/// The calls, mixed so that those of one integration meet each other.
fn calls() -> Vec<Call> {
    let creates = (0..CREATES).map(|of| Call::Create(BEFORE + of));
    // Two updates of each of the first 200, of which 100 are deleted as well.
    let updates = (0..UPDATES).map(|update| Call::Update(update % 200, 1 + update / 200 + update % 5));
    let deletes = (0..DELETES).map(|of| Call::Delete(100 + of));
    let mut calls: Vec<Call> = creates.chain(updates).chain(deletes).collect();
    let count = calls.len();
    // A stride that has no factor in common with their number puts each somewhere else.
    for place in 0..count {
        calls.swap(place, place * 383 % count);
    }
    calls
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_thousand_calls_and_a_kill_sql_topics_and_executors_agree() -> Result<()> {
    let test = "after_a_thousand_calls_and_a_kill_sql_topics_and_executors_agree";
    if !ready(test, &[Need::Kafka, Need::Postgres]) {
        return Ok(());
    }
    let began = Instant::now();
    let deployment = Layout::of(2, 1, 2).start(Kafka::shared(), Postgres::shared())?;
    let ids = (0..BEFORE + CREATES).map(|_| Uuid::new_v4().to_string()).collect();
    let mut world = World { deployment, sink: HttpSink::start().await?, ids };
    served(&world).await?;
    let leader = world.leader().await?;
    let caller = world.caller()?;
    let first: Vec<Call> = (0..BEFORE).map(Call::Create).collect();
    // A busy machine may refuse what waits too long for its turn, which is not what this is about.
    let mut outcomes = caller.all(&first, |_| true).await?;
    println!("{BEFORE} created {:.1?} after the beginning", began.elapsed());
    let is_done = |(_, outcome): &&(Call, Outcome)| matches!(outcome, Outcome::Done(_));
    let failed = outcomes.iter().find(|outcome| !is_done(outcome));
    ensure!(failed.is_none(), "nobody was killed yet: {failed:?}");

    let calls = calls();
    ensure!(calls.len() == 1_000, "{} calls", calls.len());
    let calling = tokio::spawn({
        let caller = caller.clone();
        async move { caller.all(&calls, |number| number / 2 % 2 == 1).await }
    });
    until("a third is done", async || {
        let ended = caller.ended.load(Ordering::Relaxed) - BEFORE;
        ensure!(ended >= 333, "{ended} are done");
        Ok(())
    })
    .await?;
    // The one that writes what is saved onto the bus; the other has to take that over.
    block_in_place(|| world.deployment.kill(leader))?;
    let down = controls().iter().position(|control| *control == leader).context("a stranger leads")?;
    caller.down[down].store(true, Ordering::Relaxed);
    let killed = Instant::now();
    let [one, other] = controls();
    let survivor = if leader == one { other } else { one };
    until("the survivor leads", async || {
        ensure!(world.leads(survivor), "it does not");
        Ok(())
    })
    .await?;
    println!("{survivor} leads {:.1?} after {leader} was killed", killed.elapsed());
    block_in_place(|| world.deployment.start(leader))?;
    caller.down[down].store(false, Ordering::Relaxed);
    outcomes.extend(calling.await??);
    println!("all calls have ended {:.1?} after the beginning", began.elapsed());

    let truth = agreed(&world).await?;
    println!("all agree {:.1?} after the beginning", began.elapsed());
    judge(&world, &caller, &truth, &outcomes)?;
    deliver(&world, &truth).await?;
    println!("delivered {:.1?} after the beginning", began.elapsed());
    block_in_place(|| world.deployment.drain_all())?;
    // What is there when nothing runs any more is the same.
    let bus = world.deployment.bus()?;
    ensure!(stored(&world)? == truth, "SQL has changed");
    topics_agree(&world, &bus, &truth).await
}

async fn served(world: &World) -> Result<()> {
    let mut api = world.deployment.api()?;
    until("two executors serve HTTP", async || {
        let kinds = api.integrations.list_kinds(tbmq_proto::control::ListKindsRequest {}).await?.into_inner();
        let http = kinds.kinds.iter().find(|kind| kind.name == "HTTP").context("no HTTP")?;
        ensure!(http.service_ids.len() == 2, "{:?}", http.service_ids);
        Ok(())
    })
    .await
}

/// What SQL holds.
fn stored(world: &World) -> Result<Entities> {
    let text = block_in_place(|| {
        world.deployment.sql(
            Postgres::shared(),
            "SELECT coalesce(json_object_agg(id, json_build_array(revision, enabled, configuration)), '{}') FROM integration",
        )
    })?;
    let rows: BTreeMap<String, (u64, bool, String)> = serde_json::from_str(&text)?;
    let entity = |(id, (revision, enabled, configuration))| (id, Entity { revision, enabled, configuration });
    Ok(rows.into_iter().map(entity).collect())
}

/// What a control plane lists.
async fn listed(api: &Api) -> Result<Vec<Integration>> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListIntegrationsRequest { page_size: 200, page_token, ..Default::default() };
        let page = api.integrations.clone().list_integrations(request).await?.into_inner();
        all.extend(page.integrations);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(all);
        }
    }
}

/// Waits until everything agrees, and returns on what.
async fn agreed(world: &World) -> Result<Entities> {
    let bus = world.deployment.bus()?;
    let mut truth = Entities::new();
    until("everything agrees", async || {
        truth = stored(world)?;
        for control in controls() {
            let listed = listed(&world.deployment.api_of(control)?).await?;
            let known = listed.iter().map(|one| (one.uid.clone(), entity(one))).collect::<Entities>();
            ensure!(known == truth, "{control} lists something else than SQL holds");
            executors_agree(&listed)?;
        }
        let (started, enabled) = (started(world)?, truth.values().filter(|one| one.enabled).count());
        ensure!(started == enabled, "executors say that {started} are started, and {enabled} are enabled");
        topics_agree(world, &bus, &truth).await
    })
    .await?;
    Ok(truth)
}

fn entity(integration: &Integration) -> Entity {
    Entity {
        revision: integration.revision,
        enabled: integration.enabled,
        configuration: integration.configuration_json.clone(),
    }
}

/// Each has exactly one executor, which has said that it runs this revision, or that it runs none.
fn executors_agree(listed: &[Integration]) -> Result<()> {
    for integration in listed {
        let status = integration.status.as_ref().context("no status")?;
        let holders: Vec<_> = status.holders.iter().filter(|holder| holder.role == "EXECUTOR").collect();
        let agrees = match holders[..] {
            [holder] if integration.enabled => {
                holder.state == "STARTED" && holder.observed_revision == integration.revision
            }
            [holder] => holder.state != "STARTED",
            [] => !integration.enabled,
            _ => false,
        };
        ensure!(agrees, "{} of revision {}: {status:?}", integration.name, integration.revision);
    }
    Ok(())
}

/// How many integrations the executors say are started.
fn started(world: &World) -> Result<usize> {
    let mut all = 0;
    for executor in world.deployment.instances(Plane::Executor) {
        let metrics = block_in_place(|| world.deployment.metrics(executor))?;
        let is_gauge =
            |line: &&str| line.starts_with("integration_stats_gauge{") && line.contains(r#"state="success""#);
        for line in metrics.lines().filter(is_gauge) {
            all += line.rsplit(' ').next().context("no value")?.parse::<usize>()?;
        }
    }
    Ok(all)
}

/// The last record of each key, as compaction leaves it, with its partition.
fn compacted(all: BTreeMap<u32, Vec<Record>>) -> Result<BTreeMap<(String, u32), Record>> {
    let mut latest = BTreeMap::new();
    for (partition, records) in all {
        for record in records {
            let key = std::str::from_utf8(record.key.as_deref().context("no key")?)?.to_owned();
            latest.insert((key, partition), record);
        }
    }
    latest.retain(|_, record| record.value.as_ref().is_some_and(|value| !value.is_empty()));
    Ok(latest)
}

fn revision_of(record: &Record) -> Result<u64> {
    Ok(record.header(REVISION_HEADER).context("no revision")?.parse()?)
}

/// The subscriptions topic, the downlink topic, and the message topics hold what this says, and nothing else.
async fn topics_agree(world: &World, bus: &Arc<dyn Bus>, truth: &Entities) -> Result<()> {
    let catalogue = world.deployment.catalogue();
    let subscriptions = compacted(work::read_topic(bus, &catalogue.integration_subscriptions().name).await?)?;
    let keys: BTreeSet<&String> = subscriptions.keys().map(|(key, _)| key).collect();
    ensure!(keys == truth.keys().collect(), "the subscriptions are not those of the integrations");
    for ((id, _), record) in &subscriptions {
        let held = &truth[id];
        ensure!(
            revision_of(record)? == held.revision,
            "{id} has another revision on the subscriptions topic"
        );
        let value = ClientSubscriptionsProto::decode(record.value.clone().unwrap_or_default())?;
        let filters: Vec<&str> = value.subscriptions.iter().map(|one| one.topic.as_str()).collect();
        let document: serde_json::Value = serde_json::from_str(&held.configuration)?;
        ensure!(
            serde_json::json!(filters) == document["topicFilters"],
            "{id} has other filters: {filters:?}"
        );
    }

    let downlink = catalogue.downlink(&"HTTP".parse()?);
    let mut desired = Entities::new();
    for ((key, partition), record) in compacted(work::read_topic(bus, &downlink.name).await?)? {
        let state = match decode_downlink(record.value.as_ref(), record.header(REVISION_HEADER))? {
            Downlink::Desired(state) => state,
            // Questions come and go.
            Downlink::Request(_) | Downlink::Withdrawn => continue,
        };
        ensure!(ShardId::from_downlink_key(&key) == Some(state.shard), "{key} holds {}", state.shard);
        ensure!(partition == for_shard(&state.shard, 1, downlink.partitions), "{key} lies elsewhere");
        match state.change {
            Change::Apply { target, .. } => {
                let entity = Entity {
                    revision: state.revision,
                    enabled: target.enabled,
                    configuration: target.configuration.to_string(),
                };
                desired.insert(state.shard.integration.to_string(), entity);
            }
            // Kept for a day, for executors that were away.
            Change::Deleted => {
                let id = state.shard.integration.to_string();
                ensure!(!truth.contains_key(&id), "{id} is deleted on the downlink topic");
            }
        }
    }
    ensure!(desired == *truth, "the downlink topic holds something else than SQL");

    let names: BTreeSet<String> = bus.admin().topics().await?.into_iter().map(|topic| topic.name).collect();
    let stem = catalogue.messages(Uuid::nil().to_string().parse()?, 1).name;
    let stem = stem.strip_suffix(&Uuid::nil().to_string()).context("a message topic ends with the id")?;
    let found: BTreeSet<&str> = names.iter().filter_map(|name| name.strip_prefix(stem)).collect();
    ensure!(found == truth.keys().map(String::as_str).collect(), "message topics are missing or left over");
    Ok(())
}

/// What was answered is in the truth, and nothing that nobody asked for.
fn judge(world: &World, caller: &Caller, truth: &Entities, outcomes: &[(Call, Outcome)]) -> Result<()> {
    let mut asked: BTreeMap<&String, BTreeSet<&String>> = BTreeMap::new();
    let (mut removed, mut perhaps_removed) = (BTreeSet::new(), BTreeSet::new());
    let (mut revisions, mut created) = (BTreeMap::new(), BTreeSet::new());
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for (call, outcome) in outcomes {
        let text = match outcome {
            Outcome::Done(_) => "done".to_owned(),
            Outcome::Refused(code) => format!("{code:?}"),
            Outcome::Unknown(status) => format!("unknown, {:?}", status.code()),
        };
        *counts.entry(text).or_default() += 1;
        match (call, outcome) {
            (Call::Create(of), outcome) => {
                asked.entry(&world.ids[*of]).or_default().insert(&caller.versions[*of][0].configuration_json);
                if let Outcome::Done(_) = outcome {
                    created.insert(&world.ids[*of]);
                }
            }
            (Call::Update(of, to), Outcome::Done(_) | Outcome::Unknown(_)) => {
                asked
                    .entry(&world.ids[*of])
                    .or_default()
                    .insert(&caller.versions[*of][*to].configuration_json);
            }
            (Call::Delete(of), Outcome::Done(_)) => drop(removed.insert(&world.ids[*of])),
            (Call::Delete(of), Outcome::Unknown(_)) => drop(perhaps_removed.insert(&world.ids[*of])),
            (_, Outcome::Refused(_)) => {}
        }
        if let Outcome::Done(Some((uid, revision))) = outcome {
            let before = revisions.insert(*revision, uid);
            ensure!(before.is_none_or(|before| before == uid), "a revision was given out twice");
        }
    }
    println!("{counts:?}; {} calls were made again", caller.repeated.load(Ordering::Relaxed));
    for (id, held) in truth {
        ensure!(!removed.contains(id), "{id} was deleted and is there");
        let wanted = asked.get(id).with_context(|| format!("nobody has created {id}"))?;
        ensure!(wanted.contains(&held.configuration), "nobody wanted {id} like this: {held:?}");
    }
    for id in created.difference(&removed).filter(|id| !perhaps_removed.contains(**id)) {
        ensure!(truth.contains_key(*id), "{id} was created and is not there");
    }
    for (revision, id) in &revisions {
        let newest = truth.get(*id).is_none_or(|held| held.revision >= *revision);
        ensure!(newest, "{id} has gone back behind revision {revision}");
    }
    Ok(())
}

/// A message for each version of each integration arrives if that is the one that runs, and nothing else does.
async fn deliver(world: &World, truth: &Entities) -> Result<()> {
    let (mut topics, mut wanted) = (Vec::new(), BTreeSet::new());
    for (number, id) in world.ids.iter().enumerate() {
        for to in 0..VERSIONS {
            let one = version(&world.sink, number, to);
            let runs = truth
                .get(id)
                .is_some_and(|held| held.enabled && held.configuration == one.configuration_json);
            if runs {
                wanted.insert(format!("/agree/{number}/{to}"));
            }
            topics.push(format!("agree/{number}/{to}"));
        }
    }
    let mut client = Client::connect(world.deployment.mqtt(), "agree", ProtocolVersion::V5).await?;
    for some in topics.chunks(64) {
        for (topic, packet_id) in some.iter().zip(1..) {
            let publish = Publish {
                dup: false,
                qos: Qos::AtLeastOnce,
                retain: false,
                topic: topic.as_str().into(),
                packet_id: Some(packet_id),
                properties: Properties::NONE,
                payload: "probe".into(),
            };
            client.send(&Packet::Publish(publish)).await?;
        }
        for _ in some {
            match client.receive().await? {
                Packet::PubAck(ack) if !ack.reason.is_error() => {}
                other => bail!("{other:?} instead of a PUBACK"),
            }
        }
    }
    client.disconnect().await?;
    let paths = |received: &[tbmq_harness::http_sink::Received]| {
        received.iter().map(|one| one.path.clone()).collect::<BTreeSet<_>>()
    };
    world.sink.wait_until(PATIENCE, |received| paths(received).len() >= wanted.len()).await?;
    ensure!(paths(&world.sink.received()) == wanted, "something else was delivered than what runs");
    Ok(())
}
