//! Faults that are planted on the bus, so that the ledger shows that it would find real ones.
//!
//! The three planes run in this process over a bus whose faults a test switches on. Each fault has a control: the same
//! steps without it, and a clean audit.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use http::StatusCode;
use tbmq_bus::{
    Bus, TopicPartition,
    fault::{Fault, FaultBus},
    memory::MemoryBus,
};
use tbmq_harness::{
    client::Plan,
    http_sink::HttpSink,
    ledger::{Audit, Books, Finding, Ledger, Mark},
    process::data_dir,
};
use tbmq_proto::{
    control::{Integration, integration_status::Phase},
    ids::IntegrationId,
    topic::Catalogue,
};
use tbmq_service::{admin::Health, config, identity::Identity, metrics::Metrics, trace::Tracer};
use tempfile::TempDir;

use tbmq_e2e::{
    api::{Api, http, http_with},
    work,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// The three planes in this process.
struct World {
    bus: Arc<FaultBus>,
    catalogue: Catalogue,
    control_plane: tbmq_control_plane::Running,
    data_plane: tbmq_data_plane::Running,
    executor: Option<tbmq_executor::Running>,
    /// Of all executors that have run, one after the other.
    metrics: Vec<Metrics>,
    api: Api,
    _folder: TempDir,
}

fn environment() -> impl Iterator<Item = (String, String)> {
    [
        ("LISTENER_TCP_BIND_ADDRESS", "127.0.0.1"),
        ("LISTENER_TCP_BIND_PORT", "0"),
        ("LISTENER_WS_ENABLED", "false"),
        ("CONTROL_GRPC_BIND_ADDRESS", "127.0.0.1"),
        ("CONTROL_GRPC_BIND_PORT", "0"),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
}

macro_rules! context {
    ($plane:ident, $role:literal, $world_bus:expr, $metrics:expr $(, $field:ident: $value:expr)?) => {
        $plane::Context {
            $($field: $value,)?
            bus: Arc::clone($world_bus) as Arc<dyn Bus>,
            catalogue: Catalogue::default(),
            replication_factor: 1,
            identity: Identity::of($role, Some(concat!("test-", $role))),
            metrics: $metrics,
            health: Health::default(),
            tracer: Tracer::off(),
        }
    };
}

impl World {
    async fn start() -> Result<Self> {
        let bus = FaultBus::new(MemoryBus::new(), 1);
        let folder = data_dir()?;
        let mut control: tbmq_control_plane::Config =
            config::load_from(&[tbmq_control_plane::SETTINGS], None, environment())?;
        control.use_sqlite(&folder.path().join("control.db"));
        let context = context!(
            tbmq_control_plane, "control-plane", &bus, Metrics::default(), topic_deletion: true
        );
        let control_plane = tbmq_control_plane::start(control, context).await?;
        let data: tbmq_data_plane::Config =
            config::load_from(&[tbmq_data_plane::SETTINGS], None, environment())?;
        let context = context!(tbmq_data_plane, "data-plane", &bus, Metrics::default(), sessions: None);
        let data_plane = tbmq_data_plane::start(data, context).await?;
        let grpc = control_plane.addresses().first().context("no gRPC address")?.1;
        let mut world = Self {
            bus,
            catalogue: Catalogue::default(),
            control_plane,
            data_plane,
            executor: None,
            metrics: Vec::new(),
            api: Api::connect(grpc)?,
            _folder: folder,
        };
        world.start_executor().await?;
        Ok(world)
    }

    async fn start_executor(&mut self) -> Result<()> {
        let metrics = Metrics::default();
        self.metrics.push(metrics.clone());
        let context = context!(tbmq_executor, "executor", &self.bus, metrics);
        self.executor = Some(tbmq_executor::start(tbmq_executor::Config::default(), context).await?);
        Ok(())
    }

    async fn stop_executor(&mut self) -> Result<()> {
        self.executor.take().context("no executor runs")?.drain().await;
        Ok(())
    }

    fn mqtt(&self) -> std::net::SocketAddr {
        self.data_plane.addresses().first().expect("it listens").1
    }

    async fn publish(&self, first: u64, count: u64) -> Result<Vec<Mark>> {
        work::publish(Plan::new(self.mqtt(), "s/a", count).first(first), 1).await
    }

    fn partition(&self, integration: &Integration) -> TopicPartition {
        let id: IntegrationId = integration.uid.parse().expect("a uuid");
        TopicPartition::new(self.catalogue.messages(id, 1).name, 0)
    }

    /// A counter of all executors together, from what they export.
    fn counted(&self, line_starts: &str, label: &str) -> u64 {
        let texts = self.metrics.iter().map(Metrics::encode);
        let values = texts.map(|text| {
            let lines = text.lines().filter(|line| line.starts_with(line_starts) && line.contains(label));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
        });
        values.sum()
    }

    /// The books of an integration at rest: what executors counted, and what the bus says.
    async fn books(&self, integration: &Integration) -> Result<Books> {
        let partition = self.partition(integration);
        let admin = self.bus.admin();
        let bounds = admin.bounds(std::slice::from_ref(&partition)).await?[0];
        let group = self.catalogue.messages_group();
        let committed = admin.committed(&group, &[partition]).await?;
        let settled = |outcome: &str| {
            self.counted("tbmq_executor_settled_messages_total", &format!("outcome=\"{outcome}\""))
        };
        Ok(Books {
            first: 0,
            end: bounds.end,
            committed: committed.first().map_or(0, |commit| commit.offset),
            delivered: settled("delivered"),
            rejected: settled("rejected"),
            skipped: settled("skipped"),
            dead_lettered: 0,
            expired: settled("expired"),
        })
    }

    /// The ledger of one integration that delivers to `sink`, after the executor has come to rest.
    async fn ledger(
        &mut self,
        integration: &Integration,
        acknowledged: &[Mark],
        sink: (&str, &HttpSink),
    ) -> Result<Ledger> {
        self.stop_executor().await?;
        let bus = Arc::clone(&self.bus) as Arc<dyn Bus>;
        let id = integration.uid.parse()?;
        let mut ledger = work::ledger(&bus, &self.catalogue, id, acknowledged, sink).await?;
        let books = self.books(integration).await?;
        ledger.excused(books.rejected + books.skipped + books.expired);
        ledger.books("messages", books);
        Ok(ledger)
    }

    async fn end(self) {
        self.data_plane.drain().await;
        if let Some(executor) = self.executor {
            executor.drain().await;
        }
        self.control_plane.drain().await;
    }
}

fn kinds(audit: &Audit) -> Vec<&'static str> {
    let kind = |finding: &Finding| match finding {
        Finding::NotOnBus(_) => "not on the bus",
        Finding::NotArrived { .. } => "not arrived",
        Finding::Misrouted { .. } => "misrouted",
        Finding::Disorder { .. } => "disorder",
        Finding::Unbalanced { .. } => "unbalanced",
    };
    audit.findings.iter().map(kind).collect()
}

/// Publishes while the executor is away; what it committed last decides what it reads when it is back.
async fn committing(fault: Option<Fault>) -> Result<Vec<&'static str>> {
    let mut world = World::start().await?;
    let sink = HttpSink::start().await?;
    let integration = world.api.create_active(http("commits", &["s/#"], &sink.url("in"))).await?;
    if let Some(fault) = fault {
        world.bus.plant(fault);
    }
    let mut acknowledged = world.publish(0, 10).await?;
    work::await_different(&sink, 10, PATIENCE).await?;
    world.stop_executor().await?;
    world.bus.clear();
    acknowledged.extend(world.publish(10, 1).await?);
    world.start_executor().await?;
    acknowledged.extend(world.publish(11, 1).await?);
    let last = |received: &[tbmq_harness::http_sink::Received]| {
        work::delivered(received).iter().any(|mark| mark.sequence == 11)
    };
    sink.wait_until(PATIENCE, last).await?;
    let audit = world.ledger(&integration, &acknowledged, ("in", &sink)).await?.audit();
    world.end().await;
    Ok(kinds(&audit))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_one_too_far_is_found() -> Result<()> {
    assert_eq!(committing(None).await?, [""; 0]);
    assert_eq!(committing(Some(Fault::CommitAhead(1))).await?, ["not arrived", "unbalanced"]);
    Ok(())
}

async fn acknowledging(fault: Option<Fault>) -> Result<Vec<&'static str>> {
    let mut world = World::start().await?;
    let sink = HttpSink::start().await?;
    let integration = world.api.create_active(http("hasty", &["s/#"], &sink.url("in"))).await?;
    let mut acknowledged = world.publish(0, 10).await?;
    if let Some(fault) = fault {
        world.bus.plant(fault);
    }
    acknowledged.extend(world.publish(10, 5).await?);
    world.bus.clear();
    acknowledged.extend(world.publish(15, 5).await?);
    let last = |received: &[tbmq_harness::http_sink::Received]| {
        work::delivered(received).iter().any(|mark| mark.sequence == 19)
    };
    sink.wait_until(PATIENCE, last).await?;
    let audit = world.ledger(&integration, &acknowledged, ("in", &sink)).await?.audit();
    world.end().await;
    Ok(kinds(&audit))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_before_the_bus_has_the_message_is_found() -> Result<()> {
    assert_eq!(acknowledging(None).await?, [""; 0]);
    assert_eq!(
        acknowledging(Some(Fault::AcknowledgeUnwritten(1000))).await?,
        ["not on the bus", "not arrived"]
    );
    Ok(())
}

async fn updating(is_stale: bool) -> Result<Vec<&'static str>> {
    let mut world = World::start().await?;
    let (old, new) = (HttpSink::start().await?, HttpSink::start().await?);
    let downlink = world.catalogue.downlink(&"HTTP".parse()?).name;
    if is_stale {
        // The executor must not have read the configuration before.
        world.stop_executor().await?;
        world.bus.plant(Fault::StaleRecords(downlink));
        world.start_executor().await?;
    }
    let integration = world.api.create_active(http("moved", &["s/#"], &old.url("in"))).await?;
    let mut moved = integration.clone();
    moved.configuration_json = moved.configuration_json.replace(&old.url("in"), &new.url("in"));
    let mut updated = world.api.update(moved).await?;
    if !is_stale {
        // The executor reports that it runs the new revision.
        let started = async {
            loop {
                let events = world.api.lifecycle(&integration.name).await?;
                if events.iter().any(|event| {
                    event.revision == updated.revision
                        && matches!(&event.body, Some(tbmq_proto::control::event::Body::Lifecycle(l)) if l.event == "STARTED")
                }) {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, started).await??;
        updated = world.api.await_phase(&updated.name, Phase::Active).await?;
    }
    let acknowledged = world.publish(0, 10).await?;
    let arrived = async {
        while old.count() + new.count() < 10 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, arrived).await?;
    let mut ledger = world.ledger(&updated, &acknowledged, ("new", &new)).await?;
    ledger.arrived("old", work::delivered(&old.received()));
    let audit = ledger.audit();
    world.end().await;
    Ok(kinds(&audit))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_downlink_record_is_found() -> Result<()> {
    assert_eq!(updating(false).await?, [""; 0]);
    assert_eq!(updating(true).await?, ["not arrived", "misrouted"]);
    Ok(())
}

/// Retention removes messages of a disabled integration before it is enabled.
async fn expiring(fault: Option<Fault>) -> Result<Vec<&'static str>> {
    let mut world = World::start().await?;
    if let Some(fault) = fault {
        world.bus.plant(fault);
    }
    let sink = HttpSink::start().await?;
    let integration = world.api.create_active(http("late", &["s/#"], &sink.url("in"))).await?;
    let mut acknowledged = world.publish(0, 10).await?;
    work::await_different(&sink, 10, PATIENCE).await?;
    world.api.disable(&integration.name).await?;
    let stopped = async {
        loop {
            let events = world.api.lifecycle(&integration.name).await?;
            if events.iter().any(|event| {
                matches!(&event.body, Some(tbmq_proto::control::event::Body::Lifecycle(l)) if l.event == "STOPPED")
            }) {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, stopped).await??;
    acknowledged.extend(world.publish(10, 10).await?);
    let partition = world.partition(&integration);
    world.bus.admin().delete_records(&partition, 15).await?;
    world.api.enable(&integration.name).await?;
    work::await_different(&sink, 15, PATIENCE).await?;
    let mut ledger = world.ledger(&integration, &acknowledged, ("in", &sink)).await?;
    ledger.removed_from_bus(15);
    let audit = ledger.audit();
    world.end().await;
    Ok(kinds(&audit))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swallowed_gap_is_found() -> Result<()> {
    assert_eq!(expiring(None).await?, [""; 0]);
    assert_eq!(expiring(Some(Fault::SwallowGaps)).await?, ["not arrived", "unbalanced"]);
    Ok(())
}

// Architecture §5.10, to the unit.
#[tokio::test(flavor = "multi_thread")]
async fn the_books_balance_over_delivered_rejected_and_skipped_messages() -> Result<()> {
    let mut world = World::start().await?;
    let sink = HttpSink::start().await?;
    sink.script(|_, _, body| {
        let status = match Mark::parse(body).map(|mark| mark.sequence % 10) {
            Some(3) => StatusCode::BAD_REQUEST,
            Some(7) => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::OK,
        };
        (status, Duration::ZERO)
    });
    let skip = http_with("mixed", &["s/#"], &sink.url("in"), r#"{"ackStrategy":"SKIP_ALL"}"#);
    let integration = world.api.create_active(skip).await?;
    let acknowledged = world.publish(0, 200).await?;
    sink.wait_for(200, PATIENCE).await?;
    let ledger = world.ledger(&integration, &acknowledged, ("in", &sink)).await?;
    let books = world.books(&integration).await?;
    assert_eq!((books.end, books.committed, books.delivered), (200, 200, 160));
    assert_eq!((books.rejected, books.skipped), (20, 20), "400 is for good, 500 was given up");
    ledger.audit().assert_clean();
    world.end().await;
    Ok(())
}
