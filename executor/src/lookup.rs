//! Where message partitions are and what was committed for them: asked by one shard at a time, answered for many in
//! one call, since thousands of shards start together.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tbmq_bus::{Admin, Commit, Error, TopicInfo, TopicPartition};
use tokio::sync::{mpsc, oneshot};

/// Shards that are answered in one call.
const BATCH: usize = 512;

/// What is known of a message topic.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) info: TopicInfo,
    /// What executors have committed for its partitions.
    pub(crate) commits: Vec<Commit>,
}

type Answer = Result<Option<Found>, Error>;

/// Where shards ask. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Lookup {
    questions: mpsc::Sender<(String, oneshot::Sender<Answer>)>,
}

impl Lookup {
    /// The task is to be run by the caller.
    pub(crate) fn new(admin: Arc<dyn Admin>, group: String) -> (Self, impl Future<Output = ()> + Send) {
        let (questions, asked) = mpsc::channel(BATCH);
        (Self { questions }, run(admin, group, asked))
    }

    /// What is known of a topic; `None` when it does not exist. Waits for the bus.
    pub(crate) async fn find(&self, topic: &str) -> Answer {
        let gone = || Error::Unavailable("the lookup of topics has ended".to_owned());
        let (answer, answered) = oneshot::channel();
        self.questions.send((topic.to_owned(), answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

async fn run(
    admin: Arc<dyn Admin>,
    group: String,
    mut asked: mpsc::Receiver<(String, oneshot::Sender<Answer>)>,
) {
    let mut batch = Vec::new();
    while asked.recv_many(&mut batch, BATCH).await > 0 {
        // Shards of one integration ask for the same topic.
        let names: BTreeSet<&str> = batch.iter().map(|(name, _)| name.as_str()).collect();
        let looked = look(&*admin, &group, &Vec::from_iter(names)).await;
        match looked {
            Ok(found) => {
                for (name, answer) in batch.drain(..) {
                    // A shard that was stopped meanwhile does not listen.
                    answer.send(Ok(found.get(&name).cloned())).ok();
                }
            }
            Err(error) => {
                for (_, answer) in batch.drain(..) {
                    answer.send(Err(error.clone())).ok();
                }
            }
        }
    }
}

/// What is known of each topic that exists; each name must come once.
async fn look(admin: &dyn Admin, group: &str, names: &[&str]) -> Result<BTreeMap<String, Found>, Error> {
    let infos = admin.describe(names).await?;
    let partitions: Vec<TopicPartition> = infos
        .iter()
        .flatten()
        .flat_map(|info| {
            (0..info.partitions).map(|partition| TopicPartition::new(info.name.as_str(), partition))
        })
        .collect();
    let mut commits: BTreeMap<Arc<str>, Vec<Commit>> = BTreeMap::new();
    if !partitions.is_empty() {
        match admin.committed(group, &partitions).await {
            Ok(all) => {
                for commit in all {
                    commits.entry(commit.partition.topic.clone()).or_default().push(commit);
                }
            }
            // One of them was deleted meanwhile: all are looked for again.
            Err(Error::UnknownTopic(topic)) => {
                return Err(Error::Unavailable(format!("topic {topic} has just been deleted")));
            }
            Err(error) => return Err(error),
        }
    }
    let found = infos.into_iter().flatten().map(|info| {
        let commits = commits.remove(info.name.as_str()).unwrap_or_default();
        (info.name.clone(), Found { info, commits })
    });
    Ok(found.collect())
}

#[cfg(test)]
mod tests {
    use tbmq_bus::{Bus as _, ReaderConfig, memory::MemoryBus};
    use tbmq_proto::topic::Catalogue;

    use super::*;

    // Found by chaos: after a restart of Kafka all but one shard of an integration began at the first record.
    #[tokio::test]
    async fn every_shard_that_asks_for_the_same_topic_is_told_all_commits() {
        let bus = MemoryBus::new();
        let catalogue = Catalogue::default();
        let topic = catalogue.messages("0197e9ab-c9f1-7c54-9d1e-0242ac120002".parse().unwrap(), 4);
        bus.admin().create_topic(&tbmq_bus::spec_of(&topic, 1)).await.unwrap();
        let group = catalogue.messages_group();
        let mut reader = bus.reader(ReaderConfig::new("committer", Some(group.clone()))).await.unwrap();
        let commit = |number| Commit {
            partition: TopicPartition::new(topic.name.as_str(), number),
            offset: 0,
            metadata: number.to_string(),
        };
        let commits: Vec<_> = (0..4).map(commit).collect();
        reader.commit(commits.clone()).await.unwrap();

        let (lookup, run) = Lookup::new(bus.admin(), group);
        let task = tokio::spawn(run);
        let (a, b, c) =
            tokio::join!(lookup.find(&topic.name), lookup.find("missing"), lookup.find(&topic.name));
        for found in [a, c] {
            assert_eq!(found.unwrap().unwrap().commits, commits);
        }
        assert!(b.unwrap().is_none());
        task.abort();
    }
}
