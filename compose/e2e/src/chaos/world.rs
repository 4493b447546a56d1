//! The system under fire: two of each plane, Kafka and PostgreSQL of their own, and three integrations.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use tbmq_bus::{Bus, TopicPartition};
use tbmq_harness::{
    http_sink::HttpSink,
    kafka::{Kafka, KafkaOptions},
    postgres::Postgres,
    process::Process,
};
use tbmq_proto::{
    control::{Integration, integration_status::Phase},
    topic::Topic,
};
use tokio::task::block_in_place;

use super::{
    disk::Disk,
    load::{Load, Publishers},
    run::Options,
    tally::{Share, Tally},
};
use crate::{
    api::{Api, http},
    deployment::{Deployment, Layout},
    instance::{Instance, Plane},
    work,
};

/// Name, share of the load and shards of each integration.
pub(super) const INTEGRATIONS: [(&str, Share, u32); 3] =
    [("steady", Share::All, 1), ("moving", Share::Even, 1), ("sharded", Share::Odd, 4)];

/// The one whose configuration is changed all the time.
pub(super) const MOVING: usize = 1;

/// What sinks report to: one round's tally after the other.
type Current = Arc<Mutex<Arc<Tally>>>;

#[derive(Debug)]
pub(super) struct World {
    // Dropped in this order: processes before the servers, servers before the disk.
    pub(super) deployment: Deployment,
    pub(super) bus: Arc<dyn Bus>,
    pub(super) kafka: Kafka,
    pub(super) postgres: Postgres,
    pub(super) disk: Option<Disk>,
    pub(super) sinks: Vec<HttpSink>,
    pub(super) apis: Vec<Api>,
    pub(super) integrations: Vec<Integration>,
    pub(super) folder: PathBuf,
    current: Current,
    pub(super) publishers: Publishers,
}

fn tally(publishers: u32) -> Arc<Tally> {
    Arc::new(Tally::new(publishers, &INTEGRATIONS.map(|(name, share, _)| (name, share))))
}

impl World {
    /// Starts everything. `folder` takes the logs; with `disk`, Kafka's data lie on a file system of their own.
    pub(super) async fn start(options: &Options, folder: &Path, disk: bool) -> Result<Self> {
        let (disk, kafka, postgres, deployment) = block_in_place(|| {
            let disk = disk.then(Disk::mount).transpose()?;
            let data_dir = disk.as_ref().map(|disk| disk.path().to_owned());
            let kafka = Kafka::start(KafkaOptions { data_dir, ..KafkaOptions::default() })?;
            let postgres = Postgres::start()?;
            let session_timeout = format!("{}ms", options.session_timeout.as_millis());
            let mut layout = Layout::of(2, 2, 2).logs(folder);
            if let Some(level) = &options.log_level {
                layout = layout.setting("TBMQ_LOG", level);
            }
            for executor in [1, 2].map(|number| Plane::Executor.nth(number)) {
                layout = layout.own_setting(executor, "TBMQ_IE_SESSION_TIMEOUT", &session_timeout);
                layout = layout.own_setting(executor, "TB_IE_MSG_PACK_PROCESSING_TIMEOUT", 10_000);
            }
            let deployment = layout.start(&kafka, &postgres)?;
            anyhow::Ok((disk, kafka, postgres, deployment))
        })?;
        let current: Current = Arc::new(Mutex::new(tally(options.publishers)));
        let mut sinks = Vec::new();
        for index in 0..INTEGRATIONS.len() {
            let current = Arc::clone(&current);
            let observer = move |received| {
                let tally = Arc::clone(&current.lock());
                tally.arrived(index, &received);
            };
            sinks.push(HttpSink::observed(observer).await?);
        }
        let control_planes = deployment.instances(Plane::Control).into_iter();
        let apis = control_planes.map(|one| deployment.api_of(one)).collect::<Result<_>>()?;
        let mut world = Self {
            bus: deployment.bus()?,
            deployment,
            kafka,
            postgres,
            disk,
            sinks,
            apis,
            integrations: Vec::new(),
            folder: folder.to_owned(),
            current,
            publishers: Publishers::new(options.publishers, options.rate, options.patience),
        };
        for (index, (name, ..)) in INTEGRATIONS.iter().enumerate() {
            let integration = world.document(index, 0)?;
            let created = world.apis[index % 2].create_active(integration).await;
            world.integrations.push(created.with_context(|| format!("creating {name}"))?);
        }
        Ok(world)
    }

    /// What integration `index` says when its path ends with `number`.
    pub(super) fn document(&self, index: usize, number: u64) -> Result<Integration> {
        let (name, share, shards) = INTEGRATIONS[index];
        let filter = match share {
            Share::All => "load/#",
            Share::Even => "load/even/#",
            Share::Odd => "load/odd/#",
        };
        let mut integration = http(name, &[filter], &self.sinks[index].url(&format!("{name}/{number}")));
        let mut document: serde_json::Value = serde_json::from_str(&integration.configuration_json)?;
        document["clientConfiguration"]["readTimeoutMs"] = 3_000.into();
        if shards > 1 {
            document["shards"] = shards.into();
        }
        integration.configuration_json = document.to_string();
        if let Some(created) = self.integrations.get(index) {
            integration.name.clone_from(&created.name);
        }
        Ok(integration)
    }

    /// The n-th process of a plane, n taken modulo their number.
    pub(super) fn victim(&self, plane: Plane, n: u32) -> Instance {
        let all = self.deployment.instances(plane);
        all[n as usize % all.len()]
    }

    /// The message topic of an integration.
    pub(super) fn messages(&self, index: usize) -> Result<Topic> {
        let uid = self.integrations[index].uid.parse()?;
        Ok(self.deployment.catalogue().messages(uid, INTEGRATIONS[index].2))
    }

    /// Every message partition, with the integration it belongs to.
    pub(super) fn partitions(&self) -> Result<Vec<(usize, TopicPartition)>> {
        let mut all = Vec::new();
        for index in 0..INTEGRATIONS.len() {
            let topic = self.messages(index)?;
            let partition = |number| (index, TopicPartition::new(topic.name.as_str(), number));
            all.extend((0..topic.partitions).map(partition));
        }
        Ok(all)
    }

    /// Begins a round's load: each publisher has a data plane where it begins, and goes on to the next after a failure.
    pub(super) fn begin(&self) -> Result<(Arc<Tally>, Load)> {
        let tally = tally(self.publishers.count());
        *self.current.lock() = Arc::clone(&tally);
        let data_planes = self.deployment.instances(Plane::Data).into_iter();
        let brokers = data_planes.map(|one| self.deployment.address(one, "mqtt")).collect::<Result<_>>()?;
        let load = self.publishers.begin(brokers, &tally);
        Ok((tally, load))
    }

    /// Starts processes that have ended by themselves. Returns who, with the last lines.
    pub(super) fn supervise(&mut self) -> Result<Vec<String>> {
        let mut restarted = Vec::new();
        for plane in [Plane::Control, Plane::Executor, Plane::Data] {
            for instance in self.deployment.instances(plane) {
                if block_in_place(|| self.deployment.is_running(instance))? {
                    continue;
                }
                let output = self.deployment.process(instance).map(Process::output).unwrap_or_default();
                let from = output.lines().count().saturating_sub(3);
                let last: Vec<&str> = output.lines().skip(from).collect();
                restarted.push(format!("{instance} ended: {}", last.join(" / ")));
                if let Err(error) = block_in_place(|| self.deployment.start(instance)) {
                    restarted.push(format!("{instance} did not start: {error:#}"));
                }
            }
        }
        Ok(restarted)
    }

    /// Both control planes say that every integration runs.
    pub(super) async fn is_active(&mut self) -> Result<(), String> {
        for (number, api) in self.apis.iter_mut().enumerate() {
            for integration in &self.integrations {
                let asking = tokio::time::timeout(Duration::from_secs(5), api.get(&integration.name));
                let answer = match asking.await {
                    Ok(answer) => answer.map_err(|status| format!("{status:?}")),
                    Err(_) => Err("no answer within 5 s".to_owned()),
                };
                let status = answer.map(|one| one.status.unwrap_or_default());
                if !status.as_ref().is_ok_and(|status| status.phase() == Phase::Active) {
                    let name = &integration.display_name;
                    return Err(format!("control-{} shows {name} as {status:?}", number + 1));
                }
            }
        }
        Ok(())
    }

    /// Every message partition is committed to its end.
    pub(super) async fn is_settled(&self) -> Result<()> {
        let partitions: Vec<_> = self.partitions()?.into_iter().map(|(_, partition)| partition).collect();
        work::is_settled(&self.bus, &self.deployment.catalogue(), &partitions).await
    }
}
