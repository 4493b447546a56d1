//! Where message partitions are and what was committed for them: asked by one shard at a time, answered for many in
//! one call, since thousands of shards start together.

use std::{collections::BTreeMap, sync::Arc};

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
        let names: Vec<&str> = batch.iter().map(|(name, _)| name.as_str()).collect();
        let looked = look(&*admin, &group, &names).await;
        match looked {
            Ok(found) => {
                for ((_, answer), found) in batch.drain(..).zip(found) {
                    // A shard that was stopped meanwhile does not listen.
                    answer.send(Ok(found)).ok();
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

async fn look(admin: &dyn Admin, group: &str, names: &[&str]) -> Result<Vec<Option<Found>>, Error> {
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
    let found = infos.into_iter().map(|info| {
        let info = info?;
        let commits = commits.remove(info.name.as_str()).unwrap_or_default();
        Some(Found { info, commits })
    });
    Ok(found.collect())
}
