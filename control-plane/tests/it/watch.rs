//! Watches, on one replica, of what is done through another.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
    time::Duration,
};

use prost::Message as _;
use tbmq_control_plane::{
    Config,
    config::DatabaseUrl,
    store::{ChangeKind, ChangeRow, Error, EventBody, EventRow, New, Options, Saved, Store},
};
use tbmq_harness::{Need, ready};
use tbmq_integration::entity::Document;
use tbmq_proto::{
    control::{
        Integration, WatchIntegrationsRequest, WatchIntegrationsResponse,
        integration_service_client::IntegrationServiceClient, integration_status::Phase,
        watch_integrations_response::Type,
    },
    ids::IntegrationId,
    integration::ComponentLifecycleEventProto as Event,
    wire::{OwnerClaim, Role},
};
use tonic::{Code, Status, Streaming, transport::Channel};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::support::{Cluster, ControlPlane, DOCUMENT, Verdict, eventually, fields, id_of, phase, reason};

/// Where the replicas of a test keep their integrations.
pub(crate) struct Shared {
    pub(crate) cluster: Cluster,
    options: Options,
}

impl Shared {
    pub(crate) fn sqlite() -> Self {
        let cluster = Cluster::new();
        let options = Options::sqlite(&cluster.folder.path().join("control.db"));
        Self { cluster, options }
    }

    pub(crate) fn postgres() -> Self {
        Self { cluster: Cluster::new(), options: crate::postgres::options() }
    }

    pub(crate) async fn replica(&self, id: &str, configure: impl FnOnce(&mut Config)) -> ControlPlane {
        self.cluster
            .control_plane_with(id, |config| {
                config.database.url = Some(DatabaseUrl::new(self.options.url.clone()));
                config.control.watch_bookmarks = Duration::from_millis(100);
                configure(config);
            })
            .await
    }

    /// The same store beside the replicas.
    pub(crate) async fn store(&self) -> Store {
        Store::open(&self.options).await.unwrap()
    }
}

/// The messages of a watch.
struct Watch(Streaming<WatchIntegrationsResponse>);

impl Watch {
    async fn begin(plane: &ControlPlane, after_revision: Option<u64>, name: &str) -> Result<Self, Status> {
        let request = WatchIntegrationsRequest { after_revision, name: name.to_owned() };
        plane.integrations.clone().watch_integrations(request).await.map(|answer| Self(answer.into_inner()))
    }

    async fn next(&mut self) -> Result<WatchIntegrationsResponse, Status> {
        let message = tokio::time::timeout(Duration::from_secs(20), self.0.message()).await;
        message
            .expect("a message or the end")?
            .ok_or_else(|| Status::unknown("the watch ended without a word"))
    }

    /// The next change.
    async fn change(&mut self) -> Result<WatchIntegrationsResponse, Status> {
        loop {
            let message = self.next().await?;
            if message.r#type() != Type::Bookmark {
                return Ok(message);
            }
        }
    }

    /// The next change and what it is of.
    async fn told(&mut self) -> (Type, Integration, u64) {
        let message = tokio::time::timeout(Duration::from_secs(20), self.change()).await;
        let message = message.expect("another change").unwrap();
        (message.r#type(), message.integration.unwrap(), message.revision)
    }

    /// Reads changes, whose revisions rise, until one is as wanted.
    async fn until(&mut self, wanted: impl Fn(Type, &Integration) -> bool) -> (Integration, u64) {
        let mut last = 0;
        loop {
            let (what, integration, revision) = self.told().await;
            assert!(revision > last, "{revision} comes after {last}");
            last = revision;
            if wanted(what, &integration) {
                return (integration, revision);
            }
        }
    }

    async fn bookmark(&mut self) -> u64 {
        loop {
            let message = self.next().await.unwrap();
            if message.r#type() == Type::Bookmark {
                assert_eq!(message.integration, None);
                return message.revision;
            }
        }
    }
}

fn is_in(integration: &Integration, phase: Phase) -> bool {
    integration.status.as_ref().is_some_and(|status| status.phase() == phase)
}

async fn another_replica_sees_everything_in_order(shared: Shared) {
    let writing = shared.replica("cp1", |_| {}).await;
    let watching = shared.replica("cp2", |_| {}).await;
    let executor = shared.cluster.executor(Verdict::Accept).await;
    let kept = writing.create("kept").await.unwrap();
    eventually("running", async || phase(&writing.get(&kept.name).await.unwrap()) == "PHASE_ACTIVE").await;

    let mut watch = Watch::begin(&watching, None, "").await.unwrap();
    let (what, listed, place) = watch.told().await;
    assert_eq!((what, listed.display_name.as_str(), place), (Type::Added, "kept", 0));
    assert_eq!(listed.configuration_json, DOCUMENT.replace("s3cret", "********"));
    assert!(is_in(&listed, Phase::Active));
    let listed_through = watch.bookmark().await;
    assert!(listed_through > kept.revision, "the status took a number as well");

    let created = writing.create("one").await.unwrap();
    let (what, added, revision) = watch.told().await;
    assert_eq!((what, added.uid.as_str()), (Type::Added, created.uid.as_str()));
    assert!(revision >= created.revision);
    if !is_in(&added, Phase::Active) {
        watch.until(|what, one| what == Type::Modified && is_in(one, Phase::Active)).await;
    }
    let change = Integration { description: "d".to_owned(), ..writing.get(&created.name).await.unwrap() };
    let updated = writing.update(change, &["description"]).await.unwrap();
    let (seen, revision) = watch.until(|_, one| one.description == "d").await;
    assert_eq!((seen.revision, seen.etag), (updated.revision, updated.etag));
    assert!(revision >= updated.revision);
    // The executor says so of the update as well; after that the failure is its last word.
    eventually("held", async || {
        executor.held(id_of(&created)).is_some_and(|held| held.revision == updated.revision)
    })
    .await;
    executor.events().lifecycle(id_of(&created), updated.revision, Event::Failed, Some("no route")).await;
    let (failed, _) = watch.until(|_, one| is_in(one, Phase::Failed)).await;
    assert_eq!(failed.status.unwrap().error, "no route");
    writing.enable(&created.name, false).await.unwrap();
    watch.until(|what, one| what == Type::Modified && is_in(one, Phase::Disabled)).await;
    writing.delete(&created.name).await.unwrap();
    let (deleted, end) = watch.until(|what, _| what == Type::Deleted).await;
    let bare = Integration { name: created.name.clone(), uid: created.uid.clone(), ..Integration::default() };
    assert_eq!(deleted, bare);
    drop(watch);

    // Whoever resumes is told of the same, on the replica that wrote as on the other.
    for plane in [&writing, &watching] {
        let mut resumed = Watch::begin(plane, Some(listed_through), "").await.unwrap();
        let (gone, revision) =
            resumed.until(|what, one| what == Type::Deleted && one.uid == created.uid).await;
        assert_eq!((gone, revision), (bare.clone(), end));
    }
}

#[tokio::test]
async fn a_watch_on_another_replica_sees_everything_in_order() {
    another_replica_sees_everything_in_order(Shared::sqlite()).await;
}

#[tokio::test]
async fn a_watch_on_another_replica_sees_everything_in_order_on_postgres() {
    if ready("a_watch_on_another_replica_sees_everything_in_order_on_postgres", &[Need::Postgres]) {
        another_replica_sees_everything_in_order(Shared::postgres()).await;
    }
}

#[tokio::test]
async fn a_watch_tells_what_follows_from_claims_and_from_the_death_of_executors() {
    let shared = Shared::sqlite();
    let cluster = &shared.cluster;
    let writing = shared.replica("cp1", |_| {}).await;
    let watching = shared.replica("cp2", |_| {}).await;
    let _executor = cluster.executor(Verdict::Accept).await;
    let created = writing.create("one").await.unwrap();
    eventually("running", async || phase(&watching.get(&created.name).await.unwrap()) == "PHASE_ACTIVE")
        .await;
    let mut watch = Watch::begin(&watching, None, "").await.unwrap();
    watch.bookmark().await;
    // Its next owner has claimed every partition, and is not known to live.
    let topic = cluster.catalogue.owners().name;
    let claim =
        OwnerClaim { service_id: "ie2".to_owned(), incarnation: "1".to_owned(), ..OwnerClaim::default() };
    // Epochs are offsets: later than that of the events.
    let partitions = cluster.catalogue.downlink(&"HTTP".parse().unwrap()).partitions;
    for partition in (0..partitions).chain(0..partitions) {
        cluster.put(&topic, &format!("HTTP/{partition}"), &claim.encode_to_vec()).await;
    }
    let reason = |reason: &'static str| {
        move |what: Type, one: &Integration| {
            let status = one.status.as_ref().unwrap();
            what == Type::Modified && status.reason == reason && status.service_id == "ie2"
        }
    };
    let (_, silent) = watch.until(reason("EXECUTOR_SILENT")).await;
    cluster.say_alive("ie2", Role::Executor, &["HTTP"], None).await;
    let (_, alive) = watch.until(reason("WAITS_FOR_EXECUTOR")).await;
    assert!(alive > silent);
    // Whoever resumes elsewhere is told as well.
    let mut resumed = Watch::begin(&writing, Some(silent), "").await.unwrap();
    resumed.until(reason("WAITS_FOR_EXECUTOR")).await;
}

#[tokio::test]
async fn a_slow_watcher_is_cut_and_resumes_without_loss() {
    const COUNT: usize = 60;
    let shared = Shared::sqlite();
    let patience = |config: &mut Config| config.control.watch_patience = Duration::from_millis(200);
    let slow = shared.replica("cp1", patience).await;
    let other = shared.replica("cp2", |_| {}).await;
    let store = shared.store().await;
    let mut all = BTreeSet::new();
    for i in 0..COUNT {
        all.insert(store.create(new(&format!("n{i}"), 40_000), now()).await.unwrap().id.to_string());
    }
    // Windows that are soon full.
    let (_, address) = slow.running.addresses()[0];
    let channel = Channel::from_shared(format!("http://{address}")).unwrap();
    let channel =
        channel.initial_stream_window_size(65_535).initial_connection_window_size(65_535).connect_lazy();
    let mut client = IntegrationServiceClient::new(channel);
    let request = WatchIntegrationsRequest { after_revision: Some(0), name: String::new() };
    let mut watch = Watch(client.watch_integrations(request).await.unwrap().into_inner());
    eventually("cut", async || slow.metrics.encode().contains("tbmq_control_watchers_cut_total 1")).await;

    let mut seen = BTreeSet::new();
    let mut last = 0;
    let end = loop {
        match watch.change().await {
            Ok(message) => {
                assert_eq!(message.r#type(), Type::Added);
                last = message.revision;
                seen.insert(message.integration.unwrap().uid);
            }
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&end), (Code::ResourceExhausted, "SLOW_WATCHER".to_owned()));
    assert!(!seen.is_empty() && seen.len() < COUNT, "{}", seen.len());
    let resume = end.get_error_details().error_info().unwrap().metadata["resume_revision"].clone();
    assert_eq!(resume, last.to_string());

    let mut resumed = Watch::begin(&other, Some(last), "").await.unwrap();
    while seen.len() < COUNT {
        let (what, integration, _) = resumed.told().await;
        assert_eq!(what, Type::Added);
        assert!(seen.insert(integration.uid), "nothing comes twice");
    }
    assert_eq!(seen, all);
    drop(watch);
    eventually("the seat is free", async || slow.metrics.encode().contains("tbmq_control_watchers 0")).await;
}

#[tokio::test]
async fn a_place_that_is_not_kept_or_not_there_yet_is_refused() {
    let shared = Shared::sqlite();
    let plane = shared.replica("cp1", |_| {}).await;
    let store = shared.store().await;
    let first = store.create(new("first", 0), now()).await.unwrap();
    let second = store.create(new("second", 0), now()).await.unwrap();
    let present = store.revision().await.unwrap();
    let mut open = Watch::begin(&plane, Some(present), "").await.unwrap();
    assert_eq!(store.compact_changes(i64::MAX).await.unwrap(), 2);
    let status = Watch::begin(&plane, Some(first.revision), "").await.err().unwrap();
    assert_eq!(reason(&status), (Code::OutOfRange, "REVISION_COMPACTED".to_owned()));
    assert!(status.message().contains("watch without after_revision"), "{}", status.message());
    let status = Watch::begin(&plane, Some(present + 100), "").await.err().unwrap();
    assert_eq!((status.code(), fields(&status)), (Code::InvalidArgument, vec!["after_revision".to_owned()]));
    let status = Watch::begin(&plane, None, "integrations/x").await.err().unwrap();
    assert_eq!((status.code(), fields(&status)), (Code::InvalidArgument, vec!["name".to_owned()]));
    // Whoever has seen everything that was removed goes on.
    let mut resumed = Watch::begin(&plane, Some(second.revision), "").await.unwrap();
    store.delete(first.id, None, now()).await.unwrap();
    for watch in [&mut open, &mut resumed] {
        let (what, integration, _) = watch.told().await;
        assert_eq!((what, integration.uid), (Type::Deleted, first.id.to_string()));
    }
}

#[tokio::test]
async fn an_idle_watch_says_how_far_it_has_come() {
    let shared = Shared::sqlite();
    let plane = shared.replica("cp1", |_| {}).await;
    let store = shared.store().await;
    let mut watch = Watch::begin(&plane, None, "").await.unwrap();
    assert!(watch.bookmark().await < 100, "the list of nothing is complete");
    // Numbers without changes are passed.
    store.raise_revision(100).await.unwrap();
    while watch.bookmark().await < 100 {}
    let place = watch.bookmark().await;
    let row = store.create(new("one", 0), now()).await.unwrap();
    let mut resumed = Watch::begin(&plane, Some(place), "").await.unwrap();
    for watch in [&mut watch, &mut resumed] {
        let (what, _, revision) = watch.told().await;
        assert_eq!((what, revision), (Type::Added, row.revision));
    }
}

#[tokio::test]
async fn a_watch_of_one_integration_hears_of_no_other() {
    let shared = Shared::sqlite();
    let plane = shared.replica("cp1", |_| {}).await;
    let store = shared.store().await;
    let one = store.create(new("one", 0), now()).await.unwrap();
    let mut watch = Watch::begin(&plane, None, &format!("integrations/{}", one.id)).await.unwrap();
    assert_eq!(watch.told().await.1.uid, one.id.to_string());
    let two = store.create(new("two", 0), now()).await.unwrap();
    while watch.bookmark().await < two.revision {}
    let restarted = store.restart(one.id, None, now()).await.unwrap();
    let (what, integration, revision) = watch.told().await;
    assert_eq!((what, integration.uid), (Type::Modified, one.id.to_string()));
    assert_eq!(revision, restarted.revision);
}

#[tokio::test]
async fn watches_are_limited_and_a_place_that_was_given_back_is_taken_again() {
    let shared = Shared::sqlite();
    let plane = shared.replica("cp1", |config| config.control.watchers_max = NonZeroUsize::MIN).await;
    let mut first = Watch::begin(&plane, None, "").await.unwrap();
    first.bookmark().await;
    let status = Watch::begin(&plane, None, "").await.err().unwrap();
    assert_eq!(reason(&status), (Code::ResourceExhausted, "LIMIT_REACHED".to_owned()));
    assert!(status.get_error_details().retry_info().is_some());
    drop(first);
    eventually("there is room", async || Watch::begin(&plane, None, "").await.is_ok()).await;
}

#[tokio::test]
async fn a_replica_that_stops_ends_its_watches_at_once() {
    let shared = Shared::sqlite();
    let plane = shared.replica("cp1", |_| {}).await;
    let other = shared.replica("cp2", |_| {}).await;
    let mut watch = Watch::begin(&plane, None, "").await.unwrap();
    let place = watch.bookmark().await;
    let began = std::time::Instant::now();
    let draining = tokio::spawn(plane.running.drain());
    assert_eq!(watch.change().await.unwrap_err().code(), Code::Unavailable);
    drop(watch);
    draining.await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert!(Watch::begin(&other, Some(place), "").await.unwrap().bookmark().await >= place);
}

/// Not so long ago that the leader removes the change.
fn now() -> Saved<'static> {
    saved(tbmq_service::time::now_ms())
}

fn saved(now_ms: i64) -> Saved<'static> {
    Saved { service_id: "cp1", incarnation: "i", now_ms, request: None }
}

/// An integration with a document of so many bytes and some more.
pub(crate) fn new(name: &str, bytes: usize) -> New {
    let filler = "x".repeat(bytes);
    let configuration =
        format!(r#"{{"topicFilters":["a"],"metadata":{{"f":"{filler}"}},"clientConfiguration":{{}}}}"#);
    Document::parse(&configuration).unwrap();
    New {
        id: IntegrationId(Uuid::new_v4()),
        name: name.to_owned(),
        kind: "HTTP".parse().unwrap(),
        enabled: true,
        configuration,
        labels: BTreeMap::new(),
        description: String::new(),
        shards: 1,
    }
}

fn lifecycle(id: IntegrationId, seq: u64, event: &str) -> EventRow {
    EventRow {
        event_id: Uuid::now_v7(),
        integration: id,
        time_ms: seq as i64,
        service_id: "ie1".to_owned(),
        shard: 0,
        revision: 1,
        epoch: 1,
        incarnation: "i".to_owned(),
        seq,
        body: EventBody::Lifecycle { event: event.to_owned(), success: true, error: None },
    }
}

async fn changes(store: &Store, place: u64) -> Vec<ChangeRow> {
    store.changes_after(place, None, 1_000).await.unwrap()
}

/// What watches rely on, for every database.
async fn contract(options: Options) {
    let store = Store::open(&options).await.unwrap();
    every_write_leaves_its_change(&store).await;
    compaction_removes_a_beginning_and_knows_its_end(&store).await;
    compaction_keeps_what_is_written_meanwhile(&store).await;
    a_reader_misses_nothing_of_concurrent_writers(&store, &options).await;
}

async fn every_write_leaves_its_change(store: &Store) {
    let begin = store.revision().await.unwrap();
    let row = store.create(new("one", 0), saved(10)).await.unwrap();
    let disabled = store.set_enabled(row.id, None, false, saved(10)).await.unwrap();
    store.set_enabled(row.id, None, false, saved(10)).await.unwrap();
    let enabled = store.set_enabled(row.id, None, true, saved(10)).await.unwrap();
    let restarted = store.restart(row.id, None, saved(10)).await.unwrap();
    store.mark_again(row.id, 0, 10).await.unwrap();
    store.mark_again(row.id, restarted.revision + 1, 10).await.unwrap();
    let marked = store.get(row.id).await.unwrap();
    assert!(marked.revision > restarted.revision);
    let started = lifecycle(row.id, 1, "STARTED");
    store.store_events(&[started.clone(), started]).await.unwrap();
    let status = store.revision().await.unwrap();
    // Later and older ones that change nothing that is shown, and those of a stranger.
    store.store_events(&[lifecycle(row.id, 3, "STARTED"), lifecycle(row.id, 2, "STOPPED")]).await.unwrap();
    store.store_events(&[lifecycle(IntegrationId(Uuid::new_v4()), 1, "STARTED")]).await.unwrap();
    store.delete(row.id, None, saved(10)).await.unwrap();
    let rows = changes(store, begin).await;
    // Its executor stops it: it stays deleted.
    store.store_events(&[lifecycle(row.id, 4, "STOPPED")]).await.unwrap();
    assert_eq!(changes(store, begin).await, rows);
    let expected = [
        (row.revision, ChangeKind::Created),
        (disabled.revision, ChangeKind::Modified),
        (enabled.revision, ChangeKind::Modified),
        (restarted.revision, ChangeKind::Modified),
        (marked.revision, ChangeKind::Modified),
        (status, ChangeKind::Modified),
    ];
    let (last, others) = rows.split_last().unwrap();
    assert_eq!(others.iter().map(|row| (row.seq, row.kind)).collect::<Vec<_>>(), expected);
    assert_eq!((last.kind, last.integration), (ChangeKind::Deleted, row.id));
    assert!(rows.iter().all(|change| change.integration == row.id));
}

async fn compaction_removes_a_beginning_and_knows_its_end(store: &Store) {
    // Those of statuses have the time of day.
    store.compact_changes(i64::MAX).await.unwrap();
    let begin = store.revision().await.unwrap();
    let mut seqs = Vec::new();
    // The clock of the third writer is late.
    for (i, now_ms) in [100, 200, 50, 300].into_iter().enumerate() {
        seqs.push(store.create(new(&format!("c{i}"), 0), saved(now_ms)).await.unwrap().revision);
    }
    store.compact_changes(150).await.unwrap();
    let kept: Vec<u64> = changes(store, seqs[0]).await.iter().map(|row| row.seq).collect();
    assert_eq!(kept, seqs[1..]);
    let compacted = Err(Error::Compacted { floor: seqs[0] });
    assert_eq!(store.changes_after(begin, None, 10).await, compacted);
    assert_eq!(store.check_place(seqs[0] - 1).await, Err(Error::Compacted { floor: seqs[0] }));
    store.check_place(seqs[0]).await.unwrap();
    assert_eq!(store.compact_changes(150).await.unwrap(), 0);
    assert_eq!(store.compact_changes(i64::MAX).await.unwrap(), 3);
    store.check_place(seqs[3]).await.unwrap();
    assert_eq!(store.check_place(seqs[2]).await, Err(Error::Compacted { floor: seqs[3] }));
    assert!(changes(store, seqs[3]).await.is_empty());
}

async fn compaction_keeps_what_is_written_meanwhile(store: &Store) {
    for now_ms in 1_000..1_100 {
        // All that was there before is old.
        store.compact_changes(i64::MAX).await.unwrap();
        let document = new(&format!("d{now_ms}"), 0);
        let is_created = Cell::new(false);
        let creating = async {
            let created = store.create(document, saved(now_ms)).await.unwrap();
            is_created.set(true);
            created.revision
        };
        let compacting = async {
            while !is_created.get() {
                store.compact_changes(now_ms).await.unwrap();
            }
        };
        let (revision, ()) = tokio::join!(creating, compacting);
        let kept: Vec<u64> = changes(store, revision - 1).await.iter().map(|row| row.seq).collect();
        assert_eq!(kept, [revision]);
    }
}

async fn a_reader_misses_nothing_of_concurrent_writers(store: &Store, options: &Options) {
    let begin = store.revision().await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..6_u64 {
        // As many replicas.
        let store = Store::open(&Options { connections: 2, ..options.clone() }).await.unwrap();
        writers.spawn(async move {
            let row = store.create(new(&format!("w{writer}"), 0), saved(1)).await.unwrap();
            for i in 0..15 {
                let event = if i % 2 == 0 { "STARTED" } else { "STOPPED" };
                match (writer + i) % 3 {
                    0 => store.store_events(&[lifecycle(row.id, i + 1, event)]).await.unwrap(),
                    1 => drop(store.restart(row.id, None, saved(1)).await.unwrap()),
                    _ => drop(store.set_enabled(row.id, None, true, saved(1)).await.unwrap()),
                }
            }
            store.delete(row.id, None, saved(1)).await.unwrap();
            store.close().await;
        });
    }
    let mut seen = Vec::new();
    let mut place = begin;
    loop {
        let is_over = writers.is_empty();
        let head = store.revision().await.unwrap();
        while place < head {
            let rows = store.changes_after(place, None, 7).await.unwrap();
            let last = rows.last().map_or(place, |row| row.seq);
            place = if rows.len() == 7 { last } else { last.max(head) };
            seen.extend(rows);
        }
        if is_over {
            break;
        }
        while let Some(ended) = writers.try_join_next() {
            ended.unwrap();
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(seen, changes(store, begin).await, "nothing came below a place that was read already");
    assert!(seen.len() > 6 * 8, "{}", seen.len());
    assert!(seen.is_sorted_by(|one, next| one.seq < next.seq));
}

#[tokio::test]
async fn sqlite_keeps_changes_in_order() {
    let folder = tempfile::tempdir().unwrap();
    contract(Options::sqlite(&folder.path().join("store.db"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn postgres_keeps_changes_in_order() {
    if ready("postgres_keeps_changes_in_order", &[Need::Postgres]) {
        contract(crate::postgres::options()).await;
    }
}
