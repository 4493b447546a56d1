//! Compacted topics in memory: read completely before anything is served, followed afterwards (architecture §5.22).

use std::{collections::BTreeSet, fmt, time::Duration};

use tbmq_bus::{Reader, ReaderConfig, ReaderEvent, Record, Start, TopicPartition, spec_of};
use tbmq_proto::{ids::ServiceId, topic::Topic};
use tbmq_service::admin::Component;

use crate::{
    Context,
    positions::{Changed, Positions},
};

/// Pause between two tries to reach the bus.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Takes records of one partition in their order.
pub(crate) type Apply = Box<dyn Fn(&TopicPartition, &[Record]) + Send + Sync>;

/// What is read, and by which name.
#[derive(Debug)]
pub(crate) struct About {
    /// As people call what the topics hold.
    pub(crate) what: &'static str,
    /// As in the catalogue's client ids.
    pub(crate) consumer: &'static str,
    pub(crate) topics: Vec<Topic>,
}

/// Reads topics into memory.
pub(crate) struct Feed {
    about: About,
    reader: Box<dyn Reader>,
    positions: Positions,
    apply: Apply,
    context: Context,
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed")
            .field("about", &self.about)
            .field("positions", &self.positions)
            .finish_non_exhaustive()
    }
}

impl Feed {
    /// Makes sure that the topics exist and reads all there is. Waits for the bus as long as it takes, telling
    /// `component` why.
    pub(crate) async fn open(
        context: &Context,
        service: &ServiceId,
        about: About,
        apply: Apply,
        changed: &Changed,
        component: &Component,
    ) -> anyhow::Result<Self> {
        let config = ReaderConfig::new(context.catalogue.client_id(about.consumer, service), None);
        let partitions = about.topics.iter().flat_map(|topic| {
            (0..topic.partitions).map(|partition| TopicPartition::new(&*topic.name, partition))
        });
        let mut feed = Self {
            reader: context.bus.reader(config).await?,
            positions: Positions::new(partitions, changed),
            about,
            apply,
            context: context.clone(),
        };
        let mut unread: BTreeSet<_> =
            feed.positions.partitions().into_iter().map(|at| (at.topic, at.partition)).collect();
        for topic in &feed.about.topics {
            prepare(context, topic, Some(component)).await;
        }
        for partition in feed.positions.partitions() {
            feed.reader.add(&partition, Start::Earliest);
        }
        component.down(format!("reading {}", feed.about.what));
        while !unread.is_empty() {
            if let Some(read) = feed.step().await {
                unread.remove(&(read.topic, read.partition));
            }
        }
        component.up();
        tracing::info!(what = feed.about.what, position = feed.positions.in_all(), "a topic is known");
        Ok(feed)
    }

    /// Below which everything is applied.
    pub(crate) fn positions(&self) -> Positions {
        self.positions.clone()
    }

    /// Follows the topics; does not return.
    pub(crate) async fn run(mut self) {
        loop {
            self.step().await;
        }
    }

    /// Handles one event; at the end of a partition says so.
    async fn step(&mut self) -> Option<TopicPartition> {
        match self.reader.next().await {
            ReaderEvent::Batch { partition, records } => {
                (self.apply)(&partition, &records);
                if let Some(last) = records.last() {
                    self.positions.advance(&partition, last.offset + 1);
                }
                // A long topic must not keep the runtime's thread.
                tokio::task::yield_now().await;
                None
            }
            ReaderEvent::End { partition, position } => {
                self.positions.advance(&partition, position);
                Some(partition)
            }
            ReaderEvent::Gap { partition, from, to } => {
                // Compaction leaves no gaps.
                tracing::warn!(what = self.about.what, %partition, from, to, "records are gone");
                None
            }
            ReaderEvent::Gone { partition, reason } => {
                // What is known stays known: nobody has asked for its removal.
                tracing::warn!(%partition, %reason, "topic was deleted; reading it anew");
                let topic = self.about.topics.iter().find(|topic| *topic.name == *partition.topic);
                if let Some(topic) = topic {
                    prepare(&self.context, topic, None).await;
                }
                self.reader.add(&partition, Start::Earliest);
                None
            }
        }
    }
}

/// Makes sure that a topic exists. Waits for the bus as long as it takes, telling `component` why.
pub(crate) async fn prepare(context: &Context, topic: &Topic, component: Option<&Component>) {
    let spec = spec_of(topic, context.replication_factor);
    while let Err(error) = context.bus.admin().create_topic(&spec).await {
        tracing::warn!(%error, topic = topic.name, "can't prepare a topic");
        if let Some(component) = component {
            component.down(format!("can't prepare topic {}: {error}", topic.name));
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}
