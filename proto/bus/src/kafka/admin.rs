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
    ffi::{self, Described, End},
    offsets, overview,
};
use crate::{
    Admin, Bounds, CleanupPolicy, ClusterInfo, Commit, Error, GroupDetails, TopicDetails, TopicInfo,
    TopicPartition, TopicSpec,
};

pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Time between two looks at a change that is under way.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Partitions whose positions are asked for at once: librdkafka compares each with each.
const ASKED_TOGETHER: usize = 500;

/// Records of topics that are created by one request: the controller refuses more than 10,000.
const CREATED_TOGETHER: usize = 5_000;

/// Groups whose committed offsets were asked for keep their client, so many at most.
const GROUPS: usize = 16;

/// The administrator.
pub(super) struct KafkaAdmin {
    pub(super) config: KafkaConfig,
    pub(super) client: AdminClient<DefaultClientContext>,
    /// Asks for metadata and bounds; belongs to no group.
    pub(super) observer: Arc<BaseConsumer>,
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

    /// Creates topics by one request; each once.
    async fn create(&self, specs: &[&TopicSpec], deadline: Instant) -> Vec<Result<bool, Error>> {
        let topics: Vec<NewTopic<'_>> = specs.iter().map(|spec| new_topic(spec)).collect();
        let results = match self.client.create_topics(&topics, &options(deadline)).await {
            Ok(results) => results,
            Err(failure) => return vec![Err(error("creating topics", &failure)); specs.len()],
        };
        let mut answers: HashMap<String, Result<bool, Error>> = results
            .into_iter()
            .map(|result| match result {
                Ok(name) => (name, Ok(true)),
                Err((name, RDKafkaErrorCode::TopicAlreadyExists)) => (name, Ok(false)),
                Err((name, code)) => {
                    let failure = by_code(code, format!("creating {name}: {code}"));
                    (name, Err(failure))
                }
            })
            .collect();
        let no_answer = || Err(Error::Unavailable("no answer to the creation of a topic".to_owned()));
        specs.iter().map(|spec| answers.remove(&spec.name).unwrap_or_else(no_answer)).collect()
    }

    /// Waits until every partition of these topics has a leader and answers; returns those of which none is known.
    async fn await_topics(&self, topics: Vec<(String, u32)>, deadline: Instant) -> Vec<(String, Error)> {
        let mut waiting = topics;
        loop {
            let (observer, topics) = (Arc::clone(&self.observer), waiting.clone());
            let found = blocking(move || still_changing(&observer, topics, deadline)).await;
            let failure = match found {
                Ok(found) if found.is_empty() => return Vec::new(),
                Ok(found) => {
                    waiting = found;
                    Error::Unavailable(format!("the topic is still changing after {PATIENCE:?}"))
                }
                Err(failure) => failure,
            };
            if Instant::now() >= deadline {
                return waiting.into_iter().map(|(name, _)| (name, failure.clone())).collect();
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until a topic is gone.
    async fn await_end(&self, name: &str, deadline: Instant) -> Result<(), Error> {
        while self.topic(name).await?.is_some() {
            if Instant::now() >= deadline {
                return Err(Error::Unavailable(format!("{name} is still there after {PATIENCE:?}")));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}

/// The topics of which not all partitions answer yet.
fn still_changing(
    observer: &BaseConsumer,
    topics: Vec<(String, u32)>,
    deadline: Instant,
) -> Result<Vec<(String, u32)>, Error> {
    let names = topics.iter().map(|(name, _)| name.as_str());
    let described = ffi::describe_topics(observer, names, left(deadline))
        .map_err(|(code, text)| by_code(code, format!("describing topics: {text}")))?;
    let led = described.into_iter().filter(|topic| topic.error.is_none() && topic.is_led);
    let led: HashMap<String, u32> = led.map(|topic| (topic.name, topic.partitions)).collect();
    let (led, mut waiting): (Vec<_>, Vec<_>) =
        topics.into_iter().partition(|(name, partitions)| led.get(name).is_some_and(|led| led >= partitions));
    let of_topic = |(name, partitions): &(String, u32)| {
        let name: Arc<str> = name.as_str().into();
        (0..*partitions).map(move |partition| TopicPartition::new(Arc::clone(&name), partition))
    };
    let partitions: Vec<TopicPartition> = led.iter().flat_map(of_topic).collect();
    // The leader may not have heard yet of what metadata tell.
    if bounds(observer, &partitions, deadline).is_err() {
        waiting.extend(led);
    }
    Ok(waiting)
}

fn new_topic(spec: &TopicSpec) -> NewTopic<'_> {
    let policy = match spec.policy {
        CleanupPolicy::Delete => "delete",
        CleanupPolicy::Compact => "compact",
    };
    let replication = TopicReplication::Fixed(i32::from(spec.replication_factor));
    let topic = NewTopic::new(&spec.name, spec.partitions as i32, replication).set("cleanup.policy", policy);
    spec.settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
}

/// Records that the controller writes for a topic: itself, its partitions and its settings.
fn records_of(spec: &TopicSpec) -> usize {
    2 + spec.partitions as usize + spec.settings.len()
}

/// Parts topics into requests that the controller takes, in order.
fn requests<'a, 'b>(mut specs: &'b [&'a TopicSpec]) -> impl Iterator<Item = &'b [&'a TopicSpec]> {
    std::iter::from_fn(move || {
        let mut records = 0;
        let fits = |spec: &&&TopicSpec| {
            records += records_of(spec);
            records <= CREATED_TOGETHER
        };
        let count = specs.iter().take_while(fits).count().max(1);
        let (request, rest) = specs.split_at_checked(count)?;
        specs = rest;
        Some(request)
    })
}

/// First and last positions, by two requests to each leader for up to [`ASKED_TOGETHER`] partitions.
fn bounds(
    observer: &BaseConsumer,
    partitions: &[TopicPartition],
    deadline: Instant,
) -> Result<Vec<Bounds>, Error> {
    let distinct: Vec<&TopicPartition> = partitions.iter().collect::<BTreeSet<_>>().into_iter().collect();
    let (mut first, mut next) = (HashMap::new(), HashMap::new());
    // One alone costs the same below.
    for some in distinct.chunks(ASKED_TOGETHER).filter(|some| some.len() > 1) {
        for (end, found) in [(End::First, &mut first), (End::Next, &mut next)] {
            match ffi::list_offsets(observer, some.iter().copied(), end, left(deadline)) {
                Ok(offsets) => {
                    found.extend(offsets.into_iter().filter_map(|(at, offset)| Some((at, offset.ok()?))));
                }
                // No partition has a leader.
                Err((RDKafkaErrorCode::NoEnt, _)) => {}
                Err((code, text)) => return Err(by_code(code, format!("positions: {text}"))),
            }
        }
    }
    let of_partition = |at: &TopicPartition| match (first.get(at), next.get(at)) {
        (Some(start), Some(end)) => Ok(Bounds { start: *start, end: *end }),
        // This looks for the leader again when it was another one, and tells what is wrong.
        _ => offsets::bounds(observer, at, left(deadline)),
    };
    partitions.iter().map(of_partition).collect()
}

/// What is left of a call's time, and enough for one more answer.
pub(super) fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1))
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
    for Described { name, partitions, id, error, .. } in described {
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

pub(super) fn options(deadline: Instant) -> AdminOptions {
    let timeout = Some(left(deadline));
    AdminOptions::new().operation_timeout(timeout).request_timeout(timeout)
}

#[async_trait]
impl Admin for KafkaAdmin {
    async fn create_topics(&self, specs: &[TopicSpec]) -> Vec<Result<bool, Error>> {
        let deadline = Instant::now() + PATIENCE;
        let mut names = BTreeSet::new();
        let distinct: Vec<&TopicSpec> =
            specs.iter().filter(|spec| spec.check().is_ok() && names.insert(&spec.name)).collect();
        let mut results: HashMap<&str, Result<bool, Error>> = HashMap::new();
        for request in requests(&distinct) {
            let created = self.create(request, deadline).await;
            results.extend(request.iter().map(|spec| spec.name.as_str()).zip(created));
        }
        let created = distinct.iter().filter(|spec| results[spec.name.as_str()] == Ok(true));
        let created: Vec<_> = created.map(|spec| (spec.name.clone(), spec.partitions)).collect();
        for (name, error) in self.await_topics(created, deadline).await {
            if let Some(result) = results.get_mut(name.as_str()) {
                *result = Err(error);
            }
        }
        let result_of = |spec: &TopicSpec| {
            spec.check()?;
            let result = results.get_mut(spec.name.as_str()).expect("it was asked for");
            // A second one of the name finds it created.
            if *result == Ok(true) { std::mem::replace(result, Ok(false)) } else { result.clone() }
        };
        specs.iter().map(result_of).collect()
    }

    async fn delete_topic(&self, name: &str) -> Result<bool, Error> {
        let deadline = Instant::now() + PATIENCE;
        let results = self.client.delete_topics(&[name], &options(deadline)).await;
        let results = results.map_err(|failure| error("deleting a topic", &failure))?;
        match results.into_iter().next() {
            Some(Ok(_)) => {}
            Some(Err((_, RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic))) => {
                return Ok(false);
            }
            Some(Err((name, code))) => return Err(by_code(code, format!("deleting {name}: {code}"))),
            None => return Err(Error::Unavailable("no answer to the deletion of a topic".to_owned())),
        }
        self.await_end(name, deadline).await?;
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
        blocking(move || bounds(&observer, &partitions, Instant::now() + PATIENCE)).await
    }

    async fn delete_records(&self, partition: &TopicPartition, before: u64) -> Result<(), Error> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(
            &partition.topic,
            partition.partition as i32,
            Offset::Offset(before as i64),
        )
        .map_err(|failure| error("deleting records", &failure))?;
        let result = self.client.delete_records(&list, &options(Instant::now() + PATIENCE)).await;
        let result = result.map_err(|failure| error("deleting records", &failure))?;
        for entry in result.elements() {
            entry.error().map_err(|failure| error(&format!("deleting records of {partition}"), &failure))?;
        }
        Ok(())
    }

    async fn committed(&self, group: &str, partitions: &[TopicPartition]) -> Result<Vec<Commit>, Error> {
        let (consumer, partitions) = (self.group(group)?, partitions.to_vec());
        blocking(move || offsets::committed(&consumer, &partitions)).await
    }

    async fn cluster(&self) -> Result<ClusterInfo, Error> {
        self.look_at_cluster().await.map(|(cluster, _)| cluster)
    }

    async fn topic_details(&self) -> Result<Vec<TopicDetails>, Error> {
        self.look_at_topics().await
    }

    async fn groups(&self) -> Result<Vec<GroupDetails>, Error> {
        let observer = Arc::clone(&self.observer);
        blocking(move || overview::groups(&observer)).await
    }

    async fn group_commits(&self, groups: &[&str]) -> Vec<Result<Vec<Commit>, Error>> {
        let observer = Arc::clone(&self.observer);
        let names: Vec<String> = groups.iter().map(|name| (*name).to_owned()).collect();
        let found = blocking(move || Ok(overview::group_commits(&observer, &names))).await;
        found.unwrap_or_else(|error| vec![Err(error); groups.len()])
    }

    async fn delete_group(&self, name: &str) -> Result<bool, Error> {
        overview::delete_group(&self.client, name).await
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
