//! Death between every two steps of Create, Update and Delete: what is stored afterwards is the state before the call
//! or the state after it, and everything else comes to agree with that. The call made again under its request id is
//! done once.
//!
//! A run without a death tells which places ([`Point`]) a call passes, one after the other: its road, up to the last
//! thing that follows from it. Then the call is made once for each place of its road, with a system of its own, and the
//! control plane dies there. No place may be left without a death, so that whoever adds one, and a call that comes to
//! it, has it tested.
//!
//! Why this is a death: the control plane has a runtime of one thread to itself, which looks after each single task
//! whether it is dead, and runs no other task then. The task at the place never goes on, and everything is dropped:
//! connections close, and what was not committed is rolled back by the database. What had been handed to the bus or to
//! the database before is carried out, as it would be by a server that outlives its client. What the same task does
//! besides (the relayer follows marks and lives in one) may take one more step; between things that are done at once
//! there is no order that a death would have to keep.
#![allow(clippy::print_stdout, reason = "where it died has to be known")]

use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use parking_lot::Mutex;
use tbmq_control_plane::{
    Config, Context,
    config::DatabaseUrl,
    fault::{Faults, Point},
    start_with,
    store::{self, EventBody, EventFilter, Options, Row, Store},
};
use tbmq_harness::{Need, ready};
use tbmq_integration::{
    Millis,
    cleanup::{Goal, Stage},
    wire::Change,
};
use tbmq_proto::{
    control::{
        CreateIntegrationRequest, DeleteIntegrationRequest, Integration, UpdateIntegrationRequest,
        integration_service_client::IntegrationServiceClient,
    },
    ids::IntegrationId,
};
use tbmq_service::{admin::Health, identity::Identity, metrics::Metrics, trace::Tracer};
use tokio::sync::{Notify, watch};
use tonic::{Code, Status, transport::Channel};
use uuid::Uuid;

mod auth;

use crate::support::{Cluster, DOCUMENT, Executor, Verdict, eventually, integration, phase};

/// What is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Create,
    Update,
    Delete,
}

/// Has a control plane die at a place.
#[derive(Default)]
struct Death {
    plan: Mutex<Plan>,
    has_come: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Plan {
    /// Places count from now on.
    is_on: bool,
    /// Where to die, and at which passing, from 0; nowhere while the road is looked for.
    at: Option<(Point, usize)>,
    road: Vec<Point>,
}

impl Death {
    fn at(at: Option<(Point, usize)>) -> Arc<Self> {
        Arc::new(Self {
            plan: Mutex::new(Plan { at, ..Plan::default() }),
            has_come: watch::Sender::new(false),
        })
    }

    /// Makes a call with all that follows from it, and dies on the way, or not. Returns the road, and whether it has
    /// died.
    async fn travel(&self, call: impl Future<Output = ()>) -> (Vec<Point>, bool) {
        self.plan.lock().is_on = true;
        tokio::select! {
            () = call => {}
            () = self.has_come() => {}
        }
        let mut plan = self.plan.lock();
        plan.is_on = false;
        (plan.road.clone(), *self.has_come.borrow())
    }

    async fn has_come(&self) {
        self.has_come.subscribe().wait_for(|has_come| *has_come).await.unwrap();
    }

    fn faults(self: &Arc<Self>) -> Faults {
        let death = Arc::clone(self);
        Faults::at(move |point| {
            let mut plan = death.plan.lock();
            if !plan.is_on {
                return false;
            }
            let passed = plan.road.iter().filter(|passed| **passed == point).count();
            plan.road.push(point);
            if plan.at != Some((point, passed)) {
                return false;
            }
            plan.is_on = false;
            death.has_come.send_replace(true);
            true
        })
    }
}

/// A control plane on a thread of its own.
struct Lone {
    channel: Channel,
    integrations: IntegrationServiceClient<Channel>,
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl Lone {
    fn start(system: &System, death: &Arc<Death>) -> Self {
        let mut config = Config::default();
        config.control.grpc.bind_address = [127, 0, 0, 1].into();
        config.control.grpc.bind_port = 0;
        config.database.url = Some(DatabaseUrl::new(system.options.url.clone()));
        let context = Context {
            bus: system.cluster.bus.clone(),
            catalogue: system.cluster.catalogue.clone(),
            replication_factor: 1,
            topic_deletion: true,
            identity: Identity::of("control-plane", Some("cp1")),
            metrics: Metrics::default(),
            health: Health::default(),
            tracer: Tracer::off(),
        };
        let (address, started) = mpsc::sync_channel(1);
        let stop = Arc::new(Notify::new());
        let (death, stopped) = (Arc::clone(death), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            // After each task it looks whether all of them are to end.
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().event_interval(1).build();
            runtime.unwrap().block_on(async {
                let running = Box::pin(start_with(config, context, death.faults())).await.unwrap();
                address.send(running.addresses()[0].1).unwrap();
                tokio::select! {
                    () = death.has_come() => {}
                    () = stopped.notified() => {}
                }
            });
        });
        let address = started.recv().unwrap();
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        Self {
            integrations: IntegrationServiceClient::new(channel.clone()),
            channel,
            stop,
            thread: Some(thread),
        }
    }

    async fn get(&self, name: &str) -> Result<Integration, Status> {
        let request =
            tbmq_proto::control::GetIntegrationRequest { name: name.to_owned(), ..Default::default() };
        self.integrations.clone().get_integration(request).await.map(tonic::Response::into_inner)
    }

    /// Waits until it has died.
    async fn dead(mut self) {
        let thread = self.thread.take().unwrap();
        tokio::task::spawn_blocking(move || thread.join()).await.unwrap().unwrap();
    }
}

impl Drop for Lone {
    fn drop(&mut self) {
        self.stop.notify_one();
    }
}

/// What outlives a control plane.
struct System {
    cluster: Cluster,
    options: Options,
    executor: Executor,
    store: Store,
    /// The integration that a call is of.
    id: IntegrationId,
    request_id: String,
}

impl System {
    async fn new(options: impl FnOnce(&Cluster) -> Options) -> Self {
        let cluster = Cluster::new();
        let options = options(&cluster);
        let topics =
            [cluster.catalogue.uplink(), cluster.catalogue.kinds(), cluster.catalogue.node_applied()];
        let downlink = cluster.catalogue.downlink(&"HTTP".parse().unwrap());
        for topic in topics.iter().chain([&downlink]) {
            tbmq_bus::Bus::admin(&*cluster.bus).create_topic(&tbmq_bus::spec_of(topic, 1)).await.unwrap();
        }
        let executor = cluster.executor(Verdict::Accept).await;
        let store = Store::open(&options).await.unwrap();
        let [id, request_id] = [Uuid::new_v4(), Uuid::new_v4()];
        Self { cluster, options, executor, store, id: IntegrationId(id), request_id: request_id.to_string() }
    }

    fn name(&self) -> String {
        format!("integrations/{}", self.id)
    }

    async fn call(&self, call: Call, plane: &Lone, request_id: &str) -> Result<(), Status> {
        let mut client = plane.integrations.clone();
        let request_id = request_id.to_owned();
        match call {
            Call::Create => {
                let request = CreateIntegrationRequest {
                    integration: Some(integration("one")),
                    integration_id: self.id.to_string(),
                    request_id,
                    ..Default::default()
                };
                client.create_integration(request).await.map(drop)
            }
            Call::Update => {
                let changed = Integration {
                    name: self.name(),
                    configuration_json: DOCUMENT.replace("a/#", "c/#").replace("http://h", "http://g"),
                    ..integration("one")
                };
                let request =
                    UpdateIntegrationRequest { integration: Some(changed), request_id, ..Default::default() };
                client.update_integration(request).await.map(drop)
            }
            Call::Delete => {
                let request =
                    DeleteIntegrationRequest { name: self.name(), request_id, ..Default::default() };
                client.delete_integration(request).await.map(drop)
            }
        }
    }

    /// The call, and everything that follows from it.
    async fn road(&self, call: Call, plane: &Lone) {
        self.call(call, plane, &self.request_id).await.ok();
        self.agreed(plane).await;
        if call != Call::Delete {
            return;
        }
        self.forgotten().await;
    }

    /// Has a day pass since the deletion, and waits until nothing is left.
    async fn forgotten(&self) {
        if let Some(mut life) = self.store.life(self.id).await.unwrap() {
            life.life.stage = Stage::AwaitTombstone { at: Millis(1) };
            self.store.save_life(&mut life).await.unwrap();
        }
        let shard = tbmq_proto::ids::ShardId::first(self.id).downlink_key();
        let downlink = self.cluster.catalogue.downlink(&"HTTP".parse().unwrap()).name;
        eventually("forgotten", async || {
            self.store.life(self.id).await.unwrap().is_none()
                && self.cluster.latest(&downlink).await.get(&shard).is_none_or(|(_, value)| value.is_none())
        })
        .await;
    }

    /// Waits until the bus, the executor and the API agree with what is stored.
    async fn agreed(&self, plane: &Lone) {
        let topics = &self.cluster.catalogue;
        let (messages, subscriptions) =
            (topics.messages(self.id, 1).name, topics.integration_subscriptions().name);
        eventually("all agree", async || {
            let row = self.store.find(self.id).await.unwrap();
            let life = self.store.life(self.id).await.unwrap();
            let is_marked = !self.store.marks(10).await.unwrap().is_empty();
            let held = self.executor.held(self.id);
            let subscription = self.cluster.latest(&subscriptions).await.remove(&self.id.to_string());
            let found = plane.get(&self.name()).await;
            let exists = self.cluster.exists(&messages).await;
            let Some(row) = row else {
                let is_over = life.is_none_or(|life| {
                    life.life.goal == Goal::Remove && matches!(life.life.stage, Stage::AwaitTombstone { .. })
                });
                return !is_marked
                    && !exists
                    && is_over
                    && subscription.is_none_or(|(_, value)| value.is_none())
                    && held.is_none_or(|held| held.change == Change::Deleted)
                    && found.is_err_and(|status| status.code() == Code::NotFound);
            };
            let filter = if row.configuration.contains("c/#") { "c/#" } else { "a/#" };
            !is_marked
                && exists
                && life.is_some_and(|life| life.life.stage == Stage::Live)
                && subscription.is_some_and(|(revision, value)| {
                    revision == Some(row.revision)
                        && value.is_some_and(|value| value.windows(3).any(|part| part == filter.as_bytes()))
                })
                && held.is_some_and(|held| {
                    held.revision == row.revision
                        && matches!(held.change, Change::Apply { target, .. } if *target.configuration == *row.configuration)
                })
                && found.is_ok_and(|found| {
                    found.revision == row.revision && phase(&found) == "PHASE_ACTIVE"
                })
        })
        .await;
    }

    /// How often the events say that this was done.
    async fn told(&self, call: Call) -> usize {
        let wanted = match call {
            Call::Create => "CREATED",
            Call::Update => "UPDATED",
            Call::Delete => "DELETED",
        };
        let filter = EventFilter { integration: Some(self.id), ..EventFilter::default() };
        let events = self.store.events(&filter, None, 100).await.unwrap();
        let is_it = |body: &EventBody| matches!(body, EventBody::Lifecycle { event, .. } if event == wanted);
        // Executors do not say any of these.
        events.iter().filter(|event| event.service_id == "cp1" && is_it(&event.body)).count()
    }

    /// Whether the call was done: everything about it is stored, or nothing.
    async fn is_done(&self, call: Call, before: Option<&Row>) -> bool {
        let row = self.store.find(self.id).await.unwrap();
        let life = self.store.life(self.id).await.unwrap();
        let is_done = row.as_ref() != before;
        let method = match call {
            Call::Create => "Create",
            Call::Update => "Update",
            Call::Delete => "Delete",
        };
        let request =
            store::Request { method, id: self.request_id.clone(), fingerprint: "another".to_owned() };
        let is_remembered = self.store.recall(&request, tbmq_service::time::now_ms()).await.is_err();
        let from = before.map_or(0, |row| row.revision);
        let changes = self.store.changes_after(from, Some(self.id), 100).await.unwrap();
        let last = row.as_ref().map(|row| row.revision);
        match call {
            Call::Create | Call::Update => {
                let changed = row.as_ref().is_some_and(|row| {
                    row.configuration.contains("c/#") == (call == Call::Update) && row.enabled
                });
                assert_eq!(is_done, changed && Some(from) < last, "{row:?}");
                let numbered = changes.iter().filter(|change| Some(change.seq) == last).count();
                assert_eq!(numbered, usize::from(is_done), "{changes:?}");
                assert_eq!(life.is_some(), row.is_some());
            }
            Call::Delete => {
                assert_eq!(is_done, row.is_none());
                let is_removed = life.is_none_or(|life| life.life.goal == Goal::Remove);
                assert_eq!(is_done, is_removed);
                let deleted =
                    changes.iter().filter(|change| change.kind == store::ChangeKind::Deleted).count();
                assert_eq!(deleted, usize::from(is_done), "{changes:?}");
            }
        }
        assert_eq!(self.told(call).await, usize::from(is_done));
        assert_eq!(is_remembered, is_done, "the request id goes with what was done");
        if let Some(row) = row.filter(|_| is_done) {
            let marks = self.store.marks(10).await.unwrap();
            let is_marked =
                marks.iter().any(|mark| mark.integration == self.id && mark.revision == row.revision);
            let projection = self.store.projection(self.id).await.unwrap();
            let is_written = projection.is_some_and(|projection| projection.revision == row.revision);
            assert!(is_marked || is_written, "nobody will write {row:?}");
        }
        is_done
    }
}

/// Makes a call and dies, or not. Returns the road, and whether it has died.
async fn run(
    call: Call,
    at: Option<(Point, usize)>,
    options: impl FnOnce(&Cluster) -> Options,
) -> (Vec<Point>, bool) {
    let system = System::new(options).await;
    let death = Death::at(at);
    let plane = Lone::start(&system, &death);
    if call == Call::Create {
        // Until something was written, it may be about to become the leader.
        eventually("it leads", async || {
            system.store.observe_lease("relayer").await.unwrap().holder.starts_with("cp1/")
        })
        .await;
    } else {
        system.call(Call::Create, &plane, "before").await.unwrap();
        system.agreed(&plane).await;
    }
    let before = system.store.find(system.id).await.unwrap();
    let (road, has_died) = death.travel(system.road(call, &plane)).await;
    if !has_died {
        return (road, false);
    }
    plane.dead().await;
    let was_done = system.is_done(call, before.as_ref()).await;
    let revision = async || system.store.find(system.id).await.unwrap().map(|row| row.revision);
    let left = revision().await;

    let again = Lone::start(&system, &Death::at(None));
    system.agreed(&again).await;
    assert_eq!(revision().await, left, "nothing is changed by coming back");
    system.call(call, &again, &system.request_id).await.unwrap();
    system.agreed(&again).await;
    if was_done {
        assert_eq!(revision().await, left, "it was done already");
    }
    assert!(system.is_done(call, before.as_ref()).await, "it is done now");
    if call == Call::Delete {
        system.forgotten().await;
    }
    (road, true)
}

/// Has it die at each place of the call's road; returns where it died. `run` makes the call once.
async fn die_everywhere(
    call: Call,
    run: impl AsyncFn(Option<(Point, usize)>) -> (Vec<Point>, bool),
) -> Vec<Point> {
    let (road, _) = run(None).await;
    println!("{call:?}: {road:?}");
    let mut died = Vec::new();
    for (index, point) in road.iter().copied().enumerate() {
        let passed = road[..index].iter().filter(|passed| **passed == point).count();
        let (_, has_died) = run(Some((point, passed))).await;
        // What is done beside the call is not passed by every run equally often.
        if has_died {
            died.push(point);
        } else {
            println!("{call:?}: {point:?} was not passed {} times", passed + 1);
        }
    }
    died
}

fn sqlite(cluster: &Cluster) -> Options {
    Options::sqlite(&cluster.folder.path().join("control.db"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_between_any_two_steps_leaves_one_of_two_states() {
    let mut died = Vec::new();
    for call in [Call::Create, Call::Update, Call::Delete] {
        died.extend(die_everywhere(call, async |at| run(call, at, sqlite).await).await);
    }
    let of_others = [Point::AuthMarked, Point::AuthWritten, Point::AuthNoted];
    for point in Point::ALL.iter().filter(|point| !of_others.contains(point)) {
        assert!(died.contains(point), "nobody has died at {point:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_around_the_commit_leaves_one_of_two_states_on_postgres() {
    if !ready("a_death_around_the_commit_leaves_one_of_two_states_on_postgres", &[Need::Postgres]) {
        return;
    }
    for call in [Call::Create, Call::Update, Call::Delete] {
        // The last two are not on the road of a deletion.
        for point in [Point::Saving, Point::Saved, Point::Written, Point::Noted] {
            let (road, has_died) = run(call, Some((point, 0)), |_| crate::postgres::options()).await;
            assert!(has_died || call == Call::Delete, "{call:?} has not come to {point:?}: {road:?}");
        }
    }
}
