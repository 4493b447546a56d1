//! Counters, backlogs and rates; the limit on integrations; what restarts, etags and masks do.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tbmq_bus::{
    Admin, Bounds, Bus, ClusterInfo, Commit, Error, FencedWriter, GroupDetails, Membership, MembershipConfig,
    Reader, ReaderConfig, TopicDetails, TopicInfo, TopicPartition, TopicSpec, Writer, WriterConfig,
};
use tbmq_control_plane::config::DatabaseUrl;
use tbmq_harness::{Need, ready};
use tbmq_integration::wire::{CommitMetadata, Totals};
use tbmq_proto::{
    control::{
        CreateIntegrationRequest, GetIntegrationRequest, GetIntegrationStatsRequest, Integration,
        IntegrationStats, IntegrationView, Lag, ListIntegrationsRequest, RestartIntegrationRequest,
        integration_stats::Counters,
    },
    ids::IntegrationId,
};
use tonic::{Code, Response, Status};
use tonic_types::StatusExt as _;

use crate::support::{
    Cluster, ControlPlane, DOCUMENT, Verdict, eventually, fields, id_of, integration, phase, reason,
};

/// A bus whose administrator counts what it is asked for, and answers nothing while it is away.
#[derive(Debug)]
pub(crate) struct Watched {
    inner: Arc<dyn Bus>,
    pub(crate) admin: Arc<WatchedAdmin>,
}

#[derive(Debug)]
pub(crate) struct WatchedAdmin {
    inner: Arc<dyn Admin>,
    pub(crate) is_away: AtomicBool,
    /// Of the cluster, of topics as they lie there, and of groups.
    pub(crate) overviews: AtomicUsize,
    describes: AtomicUsize,
    bounds: AtomicUsize,
    commits: AtomicUsize,
}

impl Watched {
    pub(crate) fn new(inner: Arc<dyn Bus>) -> Arc<Self> {
        let admin = Arc::new(WatchedAdmin {
            inner: inner.admin(),
            is_away: AtomicBool::default(),
            overviews: AtomicUsize::default(),
            describes: AtomicUsize::default(),
            bounds: AtomicUsize::default(),
            commits: AtomicUsize::default(),
        });
        Arc::new(Self { inner, admin })
    }
}

impl WatchedAdmin {
    fn asked(&self, counter: &AtomicUsize) -> Result<(), Error> {
        counter.fetch_add(1, Ordering::Relaxed);
        let is_away = self.is_away.load(Ordering::Relaxed);
        if is_away { Err(Error::Unavailable("told to be".to_owned())) } else { Ok(()) }
    }

    /// How often bounds and commits were asked for.
    fn counts(&self) -> (usize, usize) {
        (self.bounds.load(Ordering::Relaxed), self.commits.load(Ordering::Relaxed))
    }
}

#[async_trait]
impl Bus for Watched {
    async fn writer(&self, config: WriterConfig) -> Result<Arc<dyn Writer>, Error> {
        self.inner.writer(config).await
    }

    async fn fenced_writer(&self, name: &str) -> Result<Box<dyn FencedWriter>, Error> {
        self.inner.fenced_writer(name).await
    }

    async fn reader(&self, config: ReaderConfig) -> Result<Box<dyn Reader>, Error> {
        self.inner.reader(config).await
    }

    async fn membership(&self, config: MembershipConfig) -> Result<Box<dyn Membership>, Error> {
        self.inner.membership(config).await
    }

    fn admin(&self) -> Arc<dyn Admin> {
        self.admin.clone()
    }
}

#[async_trait]
impl Admin for WatchedAdmin {
    async fn create_topics(&self, specs: &[TopicSpec]) -> Vec<Result<bool, Error>> {
        self.inner.create_topics(specs).await
    }

    async fn delete_topic(&self, name: &str) -> Result<bool, Error> {
        self.inner.delete_topic(name).await
    }

    async fn describe(&self, names: &[&str]) -> Result<Vec<Option<TopicInfo>>, Error> {
        self.asked(&self.describes)?;
        self.inner.describe(names).await
    }

    async fn topics(&self) -> Result<Vec<TopicInfo>, Error> {
        self.inner.topics().await
    }

    async fn bounds(&self, partitions: &[TopicPartition]) -> Result<Vec<Bounds>, Error> {
        self.asked(&self.bounds)?;
        self.inner.bounds(partitions).await
    }

    async fn delete_records(&self, partition: &TopicPartition, before: u64) -> Result<(), Error> {
        self.inner.delete_records(partition, before).await
    }

    async fn committed(&self, group: &str, partitions: &[TopicPartition]) -> Result<Vec<Commit>, Error> {
        self.asked(&self.commits)?;
        self.inner.committed(group, partitions).await
    }

    async fn cluster(&self) -> Result<ClusterInfo, Error> {
        self.asked(&self.overviews)?;
        self.inner.cluster().await
    }

    async fn topic_details(&self) -> Result<Vec<TopicDetails>, Error> {
        self.asked(&self.overviews)?;
        self.inner.topic_details().await
    }

    async fn groups(&self) -> Result<Vec<GroupDetails>, Error> {
        self.asked(&self.overviews)?;
        self.inner.groups().await
    }

    async fn group_commits(&self, groups: &[&str]) -> Vec<Result<Vec<Commit>, Error>> {
        self.inner.group_commits(groups).await
    }

    async fn delete_group(&self, name: &str) -> Result<bool, Error> {
        self.asked(&self.overviews)?;
        self.inner.delete_group(name).await
    }

    async fn ping(&self) -> Result<(), Error> {
        self.inner.ping().await
    }
}

impl Cluster {
    fn messages(&self, id: IntegrationId, shards: u32, partition: u32) -> TopicPartition {
        TopicPartition::new(self.catalogue.messages(id, shards).name, partition)
    }

    async fn publish(&self, at: &TopicPartition, count: usize) {
        for _ in 0..count {
            self.put_at(&at.topic, Some(at.partition), "t", Some(b"m")).await;
        }
    }

    async fn commit(
        &self,
        at: &TopicPartition,
        offset: u64,
        generation: u64,
        totals: Totals,
        oldest_ms: Option<i64>,
    ) {
        let topic = self.bus.admin().topic(&at.topic).await.unwrap().unwrap().id;
        let metadata = CommitMetadata { generation, epoch: 5, topic, totals, oldest_ms }.to_text();
        let group = Some(self.catalogue.messages_group());
        let mut reader = self.bus.reader(ReaderConfig::new("ie1", group)).await.unwrap();
        reader.commit(vec![Commit { partition: at.clone(), offset, metadata }]).await.unwrap();
    }
}

async fn stats(plane: &ControlPlane, name: &str) -> Result<IntegrationStats, Status> {
    let request = GetIntegrationStatsRequest { name: name.to_owned() };
    plane.integrations.clone().get_integration_stats(request).await.map(Response::into_inner)
}

async fn page(plane: &ControlPlane, view: IntegrationView) -> Vec<Integration> {
    let request = ListIntegrationsRequest { view: view.into(), ..Default::default() };
    plane.integrations.clone().list_integrations(request).await.unwrap().into_inner().integrations
}

fn lag_of(integration: &Integration) -> Option<&Lag> {
    integration.status.as_ref().unwrap().lag.as_ref()
}

fn ms_of(time: Option<prost_types::Timestamp>) -> i64 {
    let time = time.expect("a time");
    time.seconds * 1_000 + i64::from(time.nanos) / 1_000_000
}

#[tokio::test]
async fn what_was_written_is_settled_in_one_way_or_waits_over_all_shards() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let _executor = cluster.executor(Verdict::Accept).await;
    let document = DOCUMENT.replacen('{', "{\"shards\":3,", 1);
    let sharded = Integration { configuration_json: document, ..integration("one") };
    let created = plane.create_from(sharded).await.unwrap();
    let id = id_of(&created);
    let fresh = stats(&plane, &created.name).await.unwrap();
    assert_eq!((fresh.counters, fresh.lag), (Some(Counters::default()), Some(Lag::default())));
    assert_eq!((fresh.name.as_str(), fresh.written_per_second), (created.name.as_str(), None));

    let before_ms = tbmq_service::time::now_ms();
    let [first, second, third] = [0, 1, 2].map(|partition| cluster.messages(id, 3, partition));
    cluster.publish(&first, 9).await;
    cluster.publish(&second, 5).await;
    cluster.publish(&third, 2).await;
    let totals = Totals { delivered: 2, rejected: 1, skipped: 1, dead_lettered: 1, expired: 1, retries: 7 };
    cluster.commit(&first, 6, 1, totals, None).await;
    // Retention has overtaken what is committed for the second, and what for the third is of another generation.
    cluster.commit(&second, 1, 1, Totals { delivered: 1, ..Totals::default() }, Some(1)).await;
    cluster.bus.admin().delete_records(&second, 3).await.unwrap();
    cluster.commit(&third, 2, 7, Totals { delivered: 2, ..Totals::default() }, None).await;
    let told = stats(&plane, &created.name).await.unwrap();
    let counters = told.counters.unwrap();
    let expected = Counters {
        written: 16,
        delivered: 3,
        rejected: 1,
        skipped: 1,
        dead_lettered: 1,
        expired: 1 + 2,
        retries: 7,
    };
    let lag = told.lag.unwrap();
    assert_eq!((counters, lag.messages, lag.expired), (expected, 3 + 2 + 2, 3));
    let settled =
        expected.delivered + expected.rejected + expected.skipped + expected.dead_lettered + expected.expired;
    assert_eq!(counters.written, settled + lag.messages);
    // No commit told the time of what waits: it was read.
    let now_ms = ms_of(told.time);
    // The bus has a clock of its own.
    assert!(lag.seconds >= 0.0 && lag.seconds <= (now_ms - before_ms + 10) as f64 / 1_000.0, "{lag:?}");
    let oldest_ms = now_ms - (lag.seconds * 1_000.0).round() as i64;
    assert_eq!(ms_of(lag.kept_until), oldest_ms + 604_800_000, "a week later");
    assert_eq!((lag.topic_removal_time, lag.time_to_drain), (None, None));

    // What the commit tells comes first.
    cluster.commit(&first, 7, 1, Totals { delivered: 3, ..totals }, Some(now_ms - 60_000)).await;
    let lag = stats(&plane, &created.name).await.unwrap().lag.unwrap();
    assert!((60.0..120.0).contains(&lag.seconds), "{lag:?}");
    // Everywhere the same.
    let read = plane.get(&created.name).await.unwrap();
    assert_eq!(lag_of(&read).unwrap().messages, 6);
    let listed = page(&plane, IntegrationView::Full).await;
    assert_eq!(lag_of(&listed[0]).unwrap().kept_until, lag.kept_until);
    assert_eq!(lag_of(&page(&plane, IntegrationView::Basic).await[0]), None);
}

#[tokio::test]
async fn rates_and_the_time_to_drain_come_with_the_second_look() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let _executor = cluster.executor(Verdict::Accept).await;
    let created = plane.create("one").await.unwrap();
    let at = cluster.messages(id_of(&created), 1, 0);
    cluster.publish(&at, 20).await;
    assert_eq!(stats(&plane, &created.name).await.unwrap().settled_per_second, None);
    cluster.publish(&at, 1).await;
    cluster.commit(&at, 11, 1, Totals { delivered: 11, ..Totals::default() }, None).await;
    let told = std::sync::Mutex::new(None);
    eventually("rates", async || {
        let look = stats(&plane, &created.name).await.unwrap();
        let is_known = look.written_per_second.is_some();
        *told.lock().unwrap() = Some(look);
        is_known
    })
    .await;
    let told = told.into_inner().unwrap().unwrap();
    let (written, settled) = (told.written_per_second.unwrap(), told.settled_per_second.unwrap());
    assert!(written > 0.0 && written <= 1.0, "{written}");
    assert!((settled / written - 11.0).abs() < 1e-6, "{settled} {written}");
    let drain = told.lag.unwrap().time_to_drain.expect("it shrinks");
    let seconds = drain.seconds as f64 + f64::from(drain.nanos) / 1e9;
    assert!((seconds - 10.0 / (settled - written)).abs() < 1e-6, "{seconds}");
}

#[tokio::test]
async fn a_disabled_integration_tells_when_its_topic_goes_and_a_parked_one_has_no_backlog() {
    let cluster = Cluster::new();
    let plane = cluster
        .control_plane_with("cp1", |config| {
            config.integrations.cleanup.ttl = 3;
            config.integrations.cleanup.period = std::num::NonZeroU64::MIN;
        })
        .await;
    let _executor = cluster.executor(Verdict::Accept).await;
    let created = plane.create("one").await.unwrap();
    let at = cluster.messages(id_of(&created), 1, 0);
    cluster.publish(&at, 2).await;
    let disabled = plane.enable(&created.name, false).await.unwrap();
    let lag = stats(&plane, &created.name).await.unwrap().lag.unwrap();
    assert_eq!(ms_of(lag.topic_removal_time), ms_of(disabled.disconnected_time) + 3_000);
    assert_eq!(lag.messages, 2);
    eventually("the topic is gone", async || !cluster.exists(&at.topic).await).await;
    eventually("it is parked", async || {
        let lag = stats(&plane, &created.name).await.unwrap().lag.unwrap();
        lag == Lag::default()
    })
    .await;
    // A new generation counts from the beginning.
    plane.enable(&created.name, true).await.unwrap();
    eventually("the topic is back", async || cluster.exists(&at.topic).await).await;
    cluster.publish(&at, 1).await;
    eventually("one waits", async || {
        let told = stats(&plane, &created.name).await.unwrap();
        told.counters.unwrap().written == 1 && told.lag.unwrap().messages == 1
    })
    .await;
}

#[tokio::test]
async fn a_bus_that_is_away_makes_stats_unavailable_and_lags_absent() {
    let cluster = Cluster::new();
    let bus = Watched::new(cluster.bus.clone());
    let plane = cluster.control_plane_on(bus.clone(), "cp1", |_| {}).await;
    let _executor = cluster.executor(Verdict::Accept).await;
    let created = plane.create("one").await.unwrap();
    bus.admin.is_away.store(true, Ordering::Relaxed);
    let status = stats(&plane, &created.name).await.unwrap_err();
    assert_eq!(reason(&status), (Code::Unavailable, "DEPENDENCY_UNAVAILABLE".to_owned()));
    assert!(status.get_error_details().retry_info().is_some());
    assert_eq!(lag_of(&plane.get(&created.name).await.unwrap()), None);
    assert_eq!(lag_of(&page(&plane, IntegrationView::Full).await[0]), None);
    bus.admin.is_away.store(false, Ordering::Relaxed);
    assert!(stats(&plane, &created.name).await.is_ok());
    let missing = stats(&plane, "integrations/00000000-0000-0000-0000-000000000001").await.unwrap_err();
    assert_eq!(reason(&missing), (Code::NotFound, "NOT_FOUND".to_owned()));
    assert_eq!(stats(&plane, "x").await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_page_with_backlogs_asks_the_bus_once() {
    let cluster = Cluster::new();
    let bus = Watched::new(cluster.bus.clone());
    let plane = cluster.control_plane_on(bus.clone(), "cp1", |_| {}).await;
    let _executor = cluster.executor(Verdict::Accept).await;
    for i in 0..6 {
        let created = plane.create(&format!("n{i}")).await.unwrap();
        cluster.publish(&cluster.messages(id_of(&created), 1, 0), i).await;
    }
    let (bounds, commits) = bus.admin.counts();
    let listed = page(&plane, IntegrationView::Full).await;
    let messages: Vec<u64> = listed.iter().map(|one| lag_of(one).unwrap().messages).collect();
    assert_eq!(messages, [0, 1, 2, 3, 4, 5]);
    assert!(listed[1..].iter().all(|one| lag_of(one).unwrap().kept_until.is_some()));
    assert_eq!(bus.admin.counts(), (bounds + 1, commits + 1));
    page(&plane, IntegrationView::Basic).await;
    assert_eq!(bus.admin.counts(), (bounds + 1, commits + 1), "nobody asked for them");
}

#[tokio::test]
async fn a_restart_is_done_once_per_request_id_and_only_on_the_version_that_was_seen() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let _executor = cluster.executor(Verdict::Accept).await;
    let created = plane.create("one").await.unwrap();
    eventually("running", async || phase(&plane.get(&created.name).await.unwrap()) == "PHASE_ACTIVE").await;
    let restart = async |etag: &str, request_id: &str| {
        let request = RestartIntegrationRequest {
            name: created.name.clone(),
            etag: etag.to_owned(),
            request_id: request_id.to_owned(),
        };
        plane.integrations.clone().restart_integration(request).await.map(Response::into_inner)
    };
    let once = restart(&created.etag, "r1").await.unwrap();
    assert!(once.revision > created.revision);
    let again = restart(&created.etag, "r1").await.unwrap();
    assert_eq!(again.revision, once.revision, "it was not restarted again");
    let stale = (Code::Aborted, "ETAG_MISMATCH".to_owned());
    for etag in [created.etag.as_str(), "x", "\"\"", "\"-1\"", "W/\"1\"", "\"99999999999999999999\""] {
        assert_eq!(reason(&restart(etag, "").await.unwrap_err()), stale, "{etag}");
        let update = Integration { name: created.name.clone(), etag: etag.to_owned(), ..integration("two") };
        assert_eq!(reason(&plane.update(update, &["display_name"]).await.unwrap_err()), stale, "{etag}");
    }
    assert_eq!(fields(&restart(&once.etag, "r1").await.unwrap_err()), ["request_id"], "another request");
    assert!(restart(&once.etag, "r2").await.unwrap().revision > once.revision);
}

#[tokio::test]
async fn labels_are_replaced_as_a_whole_and_a_mask_of_a_part_says_so() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let _executor = cluster.executor(Verdict::Accept).await;
    let labels =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let created = plane
        .create_from(Integration { labels: labels(&[("a", "1"), ("b", "2")]), ..integration("one") })
        .await
        .unwrap();
    let update = Integration { labels: labels(&[("a", "3")]), ..created };
    let status = plane.update(update.clone(), &["labels.a", "nmae"]).await.unwrap_err();
    assert_eq!(fields(&status), ["update_mask", "update_mask"]);
    assert!(status.message().contains("labels are replaced as a whole"), "{status}");
    let updated = plane.update(update, &["labels"]).await.unwrap();
    assert_eq!(updated.labels, labels(&[("a", "3")]));

    let read_mask =
        Some(prost_types::FieldMask { paths: vec!["labels".to_owned(), "status.lag".to_owned()] });
    let request = GetIntegrationRequest { name: updated.name.clone(), read_mask };
    let read = plane.integrations.clone().get_integration(request).await.unwrap().into_inner();
    assert_eq!((read.name.as_str(), &read.labels), ("", &updated.labels));
    assert_eq!(lag_of(&read), Some(&Lag::default()));
    let read_mask = Some(prost_types::FieldMask { paths: vec!["labels.a".to_owned()] });
    let request = GetIntegrationRequest { name: updated.name, read_mask };
    let status = plane.integrations.clone().get_integration(request).await.unwrap_err();
    assert_eq!((status.code(), fields(&status)), (Code::InvalidArgument, vec!["read_mask".to_owned()]));
}

async fn no_more_integrations_than_may_be(database: Option<DatabaseUrl>) {
    let cluster = Cluster::new();
    let configured = |id| {
        let database = database.clone();
        cluster.control_plane_with(id, |config| {
            config.control.integrations_max = 4;
            if let Some(url) = database {
                config.database.url = Some(url);
            }
        })
    };
    let planes = [configured("cp1").await, configured("cp2").await];
    let executor = cluster.executor(Verdict::Accept).await;
    let creating: Vec<_> = (0..12)
        .map(|i| {
            let mut client = planes[i % 2].integrations.clone();
            let integration = Some(integration(&format!("n{i}")));
            let request = CreateIntegrationRequest { integration, ..Default::default() };
            tokio::spawn(async move { client.create_integration(request).await })
        })
        .collect();
    let (mut created, mut refused) = (Vec::new(), Vec::new());
    for result in creating {
        match result.await.unwrap() {
            Ok(response) => created.push(response.into_inner()),
            Err(status) => refused.push(status),
        }
    }
    assert_eq!((created.len(), refused.len()), (4, 8));
    for status in refused {
        assert_eq!(reason(&status), (Code::ResourceExhausted, "LIMIT_REACHED".to_owned()));
        assert!(status.message().contains("TBMQ_INTEGRATIONS_MAX"), "{status}");
        assert!(status.get_error_details().retry_info().is_some());
    }
    assert_eq!(planes[0].list().await.len(), 4);
    // An executor is not troubled, not even for a check.
    let asked = executor.requests.lock().len();
    let request = CreateIntegrationRequest {
        integration: Some(integration("more")),
        validate_only: true,
        ..Default::default()
    };
    let status = planes[0].integrations.clone().create_integration(request).await.unwrap_err();
    assert_eq!(reason(&status).1, "LIMIT_REACHED");
    assert_eq!(executor.requests.lock().len(), asked);
    planes[1].delete(&created[0].name).await.unwrap();
    planes[0].create("more").await.unwrap();
}

#[tokio::test]
async fn no_more_integrations_are_created_than_may_be() {
    no_more_integrations_than_may_be(None).await;
}

#[tokio::test]
async fn nor_on_postgres() {
    if ready("nor_on_postgres", &[Need::Postgres]) {
        let url = crate::postgres::options().url;
        tokio::time::timeout(
            Duration::from_secs(60),
            no_more_integrations_than_may_be(Some(DatabaseUrl::new(url))),
        )
        .await
        .expect("it ends");
    }
}
