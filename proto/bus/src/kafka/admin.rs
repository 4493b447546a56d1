//! Creating, deleting and describing topics.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use parking_lot::Mutex;
use rdkafka::{
    Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    error::RDKafkaErrorCode,
};

use super::{
    KafkaConfig, blocking, by_code, error,
    ffi::{self, Described},
    reader,
};
use crate::{Admin, Bounds, CleanupPolicy, Commit, Error, TopicInfo, TopicPartition, TopicSpec};

const PATIENCE: Duration = Duration::from_secs(30);

/// Groups whose committed offsets were asked for keep their client, so many at most.
const GROUPS: usize = 16;

/// The administrator.
pub(super) struct KafkaAdmin {
    config: KafkaConfig,
    client: AdminClient<DefaultClientContext>,
    /// Asks for metadata and bounds; belongs to no group.
    observer: Arc<BaseConsumer>,
    groups: Mutex<HashMap<String, Arc<BaseConsumer>>>,
}

impl fmt::Debug for KafkaAdmin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaAdmin").field("config", &self.config).finish_non_exhaustive()
    }
}

impl KafkaAdmin {
    pub(super) fn new(config: KafkaConfig) -> Result<Self, Error> {
        let client = config.finish(config.client("tbmq-admin"));
        let client = client.create().map_err(|failure| error("admin client", &failure))?;
        let observer = Arc::new(consumer(&config, "tbmq-admin")?);
        Ok(Self { config, client, observer, groups: Mutex::default() })
    }

    fn group(&self, name: &str) -> Result<Arc<BaseConsumer>, Error> {
        let mut groups = self.groups.lock();
        if let Some(consumer) = groups.get(name) {
            return Ok(Arc::clone(consumer));
        }
        let consumer = Arc::new(consumer(&self.config, name)?);
        if groups.len() >= GROUPS {
            groups.clear();
        }
        groups.insert(name.to_owned(), Arc::clone(&consumer));
        Ok(consumer)
    }

    /// Waits until every partition has a leader and answers, or (not `wanted`) until the topic is gone.
    async fn await_topic(&self, name: &str, wanted: Option<u32>) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.topic(name).await?;
            let done = match (wanted, found) {
                (None, found) => found.is_none(),
                (Some(_), None) => false,
                (Some(partitions), Some(_)) => {
                    let last = TopicPartition::new(name, partitions - 1);
                    self.bounds(&[last]).await.is_ok()
                }
            };
            if done {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Error::Unavailable(format!("{name} is still changing after {PATIENCE:?}")));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn consumer(config: &KafkaConfig, group: &str) -> Result<BaseConsumer, Error> {
    let mut client = config.client("tbmq-admin");
    client.set("group.id", group).set("enable.auto.commit", "false").set("isolation.level", "read_committed");
    config.finish(client).create().map_err(|failure| error("observer", &failure))
}

/// Describes topics; the metadata that the wrapper offers lacks their ids.
fn describe(client: &BaseConsumer, names: &[String]) -> Result<Vec<Option<TopicInfo>>, Error> {
    let mut found = BTreeMap::new();
    let distinct: BTreeSet<&str> = names.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
    let described = ffi::describe_topics(client, distinct, PATIENCE)
        .map_err(|(code, text)| by_code(code, format!("describing topics: {text}")))?;
    for Described { name, partitions, id, error } in described {
        match error {
            // One without partitions is about to be deleted.
            None if partitions == 0 => {}
            None => drop(found.insert(name.clone(), TopicInfo { name, partitions, id })),
            // No topic can have an illegal name.
            Some(
                RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::InvalidTopic,
            ) => {}
            Some(code) => return Err(by_code(code, format!("{name}: {code}"))),
        }
    }
    Ok(names.iter().map(|name| found.get(name).cloned()).collect())
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE))
}

#[async_trait]
impl Admin for KafkaAdmin {
    async fn create_topic(&self, spec: &TopicSpec) -> Result<bool, Error> {
        if spec.partitions == 0 {
            return Err(Error::Refused(format!("topic {} with no partitions", spec.name)));
        }
        let policy = match spec.policy {
            CleanupPolicy::Delete => "delete",
            CleanupPolicy::Compact => "compact",
        };
        let replication = TopicReplication::Fixed(i32::from(spec.replication_factor));
        let mut topic =
            NewTopic::new(&spec.name, spec.partitions as i32, replication).set("cleanup.policy", policy);
        for (key, value) in &spec.settings {
            topic = topic.set(key, value);
        }
        let results = self.client.create_topics([&topic], &options()).await;
        let results = results.map_err(|failure| error("creating a topic", &failure))?;
        let created = match results.into_iter().next() {
            Some(Ok(_)) => true,
            Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => false,
            Some(Err((name, code))) => return Err(by_code(code, format!("creating {name}: {code}"))),
            None => return Err(Error::Unavailable("no answer to the creation of a topic".to_owned())),
        };
        if created {
            self.await_topic(&spec.name, Some(spec.partitions)).await?;
        }
        Ok(created)
    }

    async fn delete_topic(&self, name: &str) -> Result<bool, Error> {
        let results = self.client.delete_topics(&[name], &options()).await;
        let results = results.map_err(|failure| error("deleting a topic", &failure))?;
        match results.into_iter().next() {
            Some(Ok(_)) => {}
            Some(Err((_, RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic))) => {
                return Ok(false);
            }
            Some(Err((name, code))) => return Err(by_code(code, format!("deleting {name}: {code}"))),
            None => return Err(Error::Unavailable("no answer to the deletion of a topic".to_owned())),
        }
        self.await_topic(name, None).await?;
        Ok(true)
    }

    async fn describe(&self, names: &[&str]) -> Result<Vec<Option<TopicInfo>>, Error> {
        let observer = Arc::clone(&self.observer);
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        blocking(move || describe(&observer, &names)).await
    }

    async fn topics(&self) -> Result<Vec<TopicInfo>, Error> {
        let observer = Arc::clone(&self.observer);
        blocking(move || {
            let metadata =
                observer.fetch_metadata(None, PATIENCE).map_err(|failure| error("metadata", &failure))?;
            let names: Vec<String> = metadata.topics().iter().map(|topic| topic.name().to_owned()).collect();
            let mut topics: Vec<_> = describe(&observer, &names)?.into_iter().flatten().collect();
            topics.sort_by(|one, other| one.name.cmp(&other.name));
            Ok(topics)
        })
        .await
    }

    async fn bounds(&self, partitions: &[TopicPartition]) -> Result<Vec<Bounds>, Error> {
        let (observer, partitions) = (Arc::clone(&self.observer), partitions.to_vec());
        blocking(move || {
            partitions.iter().map(|partition| reader::bounds(&observer, partition, PATIENCE)).collect()
        })
        .await
    }

    async fn delete_records(&self, partition: &TopicPartition, before: u64) -> Result<(), Error> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(
            &partition.topic,
            partition.partition as i32,
            Offset::Offset(before as i64),
        )
        .map_err(|failure| error("deleting records", &failure))?;
        let result = self.client.delete_records(&list, &options()).await;
        let result = result.map_err(|failure| error("deleting records", &failure))?;
        for entry in result.elements() {
            entry.error().map_err(|failure| error(&format!("deleting records of {partition}"), &failure))?;
        }
        Ok(())
    }

    async fn committed(&self, group: &str, partitions: &[TopicPartition]) -> Result<Vec<Commit>, Error> {
        let (consumer, partitions) = (self.group(group)?, partitions.to_vec());
        blocking(move || reader::committed(&consumer, &partitions)).await
    }

    async fn ping(&self) -> Result<(), Error> {
        let observer = Arc::clone(&self.observer);
        blocking(move || {
            let topic = Some("__consumer_offsets");
            observer
                .fetch_metadata(topic, Duration::from_secs(5))
                .map(drop)
                .map_err(|failure| error("ping", &failure))
        })
        .await
    }
}
