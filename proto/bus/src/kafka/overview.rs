//! What lies in the cluster: brokers, topics with their sizes, groups.

use std::{collections::HashMap, sync::Arc, time::Instant};

use rdkafka::{
    admin::{AdminClient, ConfigSource, OwnedResourceSpecifier, ResourceSpecifier},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    error::RDKafkaErrorCode,
    metadata::MetadataTopic,
};

use super::{
    admin::{KafkaAdmin, PATIENCE, left, options},
    blocking, by_code, error, ffi,
    log_dirs::{self, Sizes},
};
use crate::{ClusterInfo, Commit, Error, GroupDetails, TopicDetails};

/// Topics whose settings are asked for in one request.
const SETTINGS_TOGETHER: usize = 500;

fn failed(what: &str) -> impl FnOnce((RDKafkaErrorCode, String)) -> Error {
    let what = what.to_owned();
    move |(code, text)| by_code(code, format!("{what}: {text}"))
}

impl KafkaAdmin {
    /// The brokers, and what lies on their disks as far as they tell.
    pub(super) async fn look_at_cluster(&self) -> Result<(ClusterInfo, Option<Sizes>), Error> {
        let observer = Arc::clone(&self.observer);
        let mut cluster = blocking(move || {
            ffi::describe_cluster(&*observer, PATIENCE).map_err(failed("describing the cluster"))
        })
        .await?;
        let sizes = match log_dirs::sizes(&self.config, &cluster.brokers).await {
            Ok(sizes) => sizes,
            Err(reason) => {
                cluster.sizes_unknown = reason;
                return Ok((cluster, None));
            }
        };
        for broker in &mut cluster.brokers {
            broker.size_bytes = sizes.brokers.get(&broker.id).copied();
        }
        Ok((cluster, Some(sizes)))
    }

    /// All topics; where they lie, their settings and their sizes are asked for at the same time.
    pub(super) async fn look_at_topics(&self) -> Result<Vec<TopicDetails>, Error> {
        let deadline = Instant::now() + PATIENCE;
        let observer = Arc::clone(&self.observer);
        let describing = blocking(move || describe(&observer, deadline));
        let (described, sizes) = tokio::join!(describing, self.look_at_cluster());
        let mut topics = described?;
        let mut settings = self.settings(&topics, deadline).await?;
        let (_, sizes) = sizes?;
        for topic in &mut topics {
            topic.settings = settings.remove(&topic.name).unwrap_or_default();
            if let Some(sizes) = &sizes {
                for (index, partition) in topic.partitions.iter_mut().enumerate() {
                    partition.size_bytes = sizes.partitions.get(&(topic.name.clone(), index as u32)).copied();
                }
            }
        }
        Ok(topics)
    }

    /// The settings that topics have of their own, by topic. One that is gone has none.
    async fn settings(
        &self,
        topics: &[TopicDetails],
        deadline: Instant,
    ) -> Result<HashMap<String, Vec<(String, String)>>, Error> {
        let mut all = HashMap::new();
        for some in topics.chunks(SETTINGS_TOGETHER) {
            let asked: Vec<_> = some.iter().map(|topic| ResourceSpecifier::Topic(&topic.name)).collect();
            let found = self.client.describe_configs(&asked, &options(deadline)).await;
            let found = found.map_err(|failure| error("settings of topics", &failure))?;
            for resource in found {
                let resource = match resource {
                    Ok(resource) => resource,
                    Err(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                        continue;
                    }
                    Err(code) => return Err(by_code(code, format!("settings of topics: {code}"))),
                };
                let OwnedResourceSpecifier::Topic(name) = resource.specifier else { continue };
                let own =
                    resource.entries.into_iter().filter(|entry| entry.source == ConfigSource::DynamicTopic);
                let mut own: Vec<_> = own.filter_map(|entry| Some((entry.name, entry.value?))).collect();
                own.sort();
                all.insert(name, own);
            }
        }
        Ok(all)
    }
}

/// Where all topics lie.
fn describe(observer: &BaseConsumer, deadline: Instant) -> Result<Vec<TopicDetails>, Error> {
    let metadata =
        observer.fetch_metadata(None, left(deadline)).map_err(|failure| error("metadata", &failure))?;
    let names: Vec<&str> = metadata.topics().iter().map(MetadataTopic::name).collect();
    let described =
        ffi::describe_topics(observer, names, left(deadline)).map_err(failed("describing topics"))?;
    let mut topics = Vec::with_capacity(described.len());
    for topic in described {
        match topic.error {
            // One without partitions is about to be deleted.
            None if topic.partitions == 0 => {}
            None => topics.push(TopicDetails {
                name: topic.name,
                id: topic.id,
                is_internal: topic.is_internal,
                partitions: topic.places,
                settings: Vec::new(),
            }),
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {}
            Some(code) => return Err(by_code(code, format!("{}: {code}", topic.name))),
        }
    }
    topics.sort_by(|one: &TopicDetails, other| one.name.cmp(&other.name));
    Ok(topics)
}

/// All groups with their members. Blocks.
pub(super) fn groups(observer: &BaseConsumer) -> Result<Vec<GroupDetails>, Error> {
    let deadline = Instant::now() + PATIENCE;
    let names = ffi::list_groups(observer, left(deadline)).map_err(failed("listing groups"))?;
    let found =
        ffi::describe_groups(observer, &names, left(deadline)).map_err(failed("describing groups"))?;
    let mut groups: Vec<_> = found.into_iter().filter(|group| !group.name.is_empty()).collect();
    groups.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(groups)
}

/// What groups have committed. Blocks.
pub(super) fn group_commits(observer: &BaseConsumer, names: &[String]) -> Vec<Result<Vec<Commit>, Error>> {
    let found = ffi::group_commits(observer, names, PATIENCE);
    // Under no name is what was told of none of them.
    let silent = found.get("").and_then(|answer| answer.clone().err());
    let silent = silent.unwrap_or_else(|| (RDKafkaErrorCode::OperationTimedOut, "no answer".to_owned()));
    let of_group = |name: &String| {
        let answer = found.get(name).cloned().unwrap_or_else(|| Err(silent.clone()));
        answer.map_err(failed(&format!("commits of {name}")))
    };
    names.iter().map(of_group).collect()
}

pub(super) async fn delete_group(
    client: &AdminClient<DefaultClientContext>,
    name: &str,
) -> Result<bool, Error> {
    let results = client.delete_groups(&[name], &options(Instant::now() + PATIENCE)).await;
    let results = results.map_err(|failure| error("deleting a group", &failure))?;
    match results.into_iter().next() {
        Some(Ok(_)) => Ok(true),
        Some(Err((_, RDKafkaErrorCode::GroupIdNotFound))) => Ok(false),
        Some(Err((name, RDKafkaErrorCode::NonEmptyGroup))) => {
            Err(Error::Refused(format!("group {name} has members")))
        }
        Some(Err((name, code))) => Err(by_code(code, format!("deleting {name}: {code}"))),
        None => Err(Error::Unavailable("no answer to the deletion of a group".to_owned())),
    }
}
