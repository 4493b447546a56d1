//! Watches the topics while this control plane leads: a message topic that vanished comes back under the next generation,
//! and configuration that was lost is written again from the store.
//!
//! Topics are the bus's to keep, but operators delete them, and disks are lost. An executor notices for itself what
//! becomes of the topic it reads; here it is noticed for those that nobody reads, and repaired.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tbmq_bus::{TopicInfo, TopicPartition};
use tbmq_proto::ids::IntegrationId;

use crate::{
    auth::record,
    reconcile,
    relayer::{Error, Relayer},
    store::{AuthTopic, Life},
};

/// Time between two rounds at least, and after one that failed.
const PERIOD: Duration = Duration::from_secs(5);

/// Times what a round took: of thousands of topics there is much to ask, of Kafka and of the store.
const PERIOD_ROUNDS: u32 = 20;

/// Time between two rounds at most: what is lost meanwhile is missing for so long.
const PERIOD_MAX: Duration = Duration::from_secs(15);

/// What was seen.
#[derive(Debug, Default)]
pub(crate) struct Watchdog {
    /// The topics of configuration by name, when they last were in order; `None`: they never were.
    configuration: Option<BTreeMap<String, Seen>>,
    /// Generation and id of the message topics.
    messages: BTreeMap<IntegrationId, (u64, String)>,
}

/// A topic of configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    id: String,
    /// End of each partition.
    ends: Vec<u64>,
}

impl Seen {
    /// Whether something that was there before may be missing now, or lie in the wrong partition.
    fn has_lost(&self, now: Option<&Self>) -> bool {
        now.is_none_or(|now| {
            !is_same(&now.id, &self.id)
                || now.ends.len() != self.ends.len()
                || now.ends.iter().zip(&self.ends).any(|(now, before)| now < before)
        })
    }
}

impl Watchdog {
    /// Looks after the topics until the relayer is fenced. Faults of bus and store are waited out.
    pub(crate) async fn run(mut self, relayer: &Relayer) -> Error {
        let mut pause = PERIOD;
        loop {
            tokio::time::sleep(pause).await;
            let began = Instant::now();
            let round = self.round(relayer).await;
            pause = pause_after(round.is_ok(), began.elapsed());
            match round {
                Ok(()) => {}
                Err(error) if error.is_fenced() => return error,
                Err(error) => tracing::warn!(%error, "can't look after the topics"),
            }
        }
    }

    /// Looks once. The first round always reconciles.
    pub(crate) async fn round(&mut self, relayer: &Relayer) -> Result<(), Error> {
        // Before the topics: what is live by then has its topic.
        let lives = live(relayer).await?;
        let topics = relayer.plane.admin.topics().await?;
        let topics: BTreeMap<&str, &TopicInfo> =
            topics.iter().map(|topic| (topic.name.as_str(), topic)).collect();
        let configuration = look(relayer, &topics).await?;
        let has_lost = self.configuration.as_ref().is_none_or(|before| {
            let lost: Vec<&String> = before
                .iter()
                .filter(|(name, seen)| seen.has_lost(configuration.get(*name)))
                .map(|(name, _)| name)
                .collect();
            if !lost.is_empty() {
                tracing::warn!(topics = ?lost, "topics of configuration were lost or changed");
            }
            !lost.is_empty()
        });
        if has_lost {
            reconcile::reconcile(relayer).await?;
        }
        self.configuration = Some(configuration);
        let checked = self.check_messages(relayer, lives, &topics).await;
        if checked.is_err() {
            // A life may have been saved without its mark.
            self.configuration = None;
        }
        checked
    }

    async fn check_messages(
        &mut self,
        relayer: &Relayer,
        lives: Vec<Life>,
        topics: &BTreeMap<&str, &TopicInfo>,
    ) -> Result<(), Error> {
        let mut seen = BTreeMap::new();
        for mut life in lives {
            let (id, generation) = (life.integration, life.life.generation);
            let name = relayer.plane.catalogue.messages(id, life.shards).name;
            let before = self.messages.get(&id).filter(|(before, _)| *before == generation);
            if let Some(before) = before {
                seen.insert(id, before.clone());
            }
            match topics.get(name.as_str()) {
                Some(topic) if before.is_none_or(|(_, before)| is_same(before, &topic.id)) => {
                    seen.insert(id, (generation, topic.id.clone()));
                    continue;
                }
                Some(_) => {
                    tracing::warn!(integration = %id, "the message topic was replaced; it is read from its beginning");
                    life.life.replaced();
                }
                // One broker may know of a topic a little later than another.
                None if relayer.plane.admin.topic(&name).await?.is_some() => {}
                None => {
                    tracing::warn!(integration = %id, "the message topic is missing and is created anew");
                    life.life.lost();
                }
            }
            // When its life has gone on since, it is looked at again in the next round.
            if life.life.generation != generation && relayer.plane.store.save_life(&mut life).await? {
                relayer.plane.metrics.repairs.inc();
                relayer.plane.store.mark_anew(id, tbmq_service::time::now_ms()).await?;
                relayer.plane.dirty.notify_one();
            }
        }
        self.messages = seen;
        Ok(())
    }
}

/// The pause after a round that took so long. How long a failed one took tells nothing of how much there is to ask: the
/// bus has not answered, and what it lost is repaired only by a round that succeeds.
fn pause_after(has_succeeded: bool, took: Duration) -> Duration {
    if has_succeeded { (took * PERIOD_ROUNDS).clamp(PERIOD, PERIOD_MAX) } else { PERIOD }
}

/// Whether two ids may be of one topic; empty when the bus can't tell.
fn is_same(one: &str, other: &str) -> bool {
    one == other || one.is_empty() || other.is_empty()
}

/// All live lives.
async fn live(relayer: &Relayer) -> Result<Vec<Life>, Error> {
    let mut lives: Vec<Life> = Vec::new();
    loop {
        let page = relayer.plane.store.live_lives(lives.last().map(|life| life.integration)).await?;
        if page.is_empty() {
            return Ok(lives);
        }
        lives.extend(page);
    }
}

/// The topics of configuration that exist.
async fn look(
    relayer: &Relayer,
    topics: &BTreeMap<&str, &TopicInfo>,
) -> Result<BTreeMap<String, Seen>, Error> {
    let plane = &relayer.plane;
    let downlinks = plane.all_kinds().into_iter().map(|kind| plane.catalogue.downlink(&kind).name);
    // Claims too: their epochs begin anew with their topic.
    let names = [plane.catalogue.integration_subscriptions().name, plane.catalogue.owners().name];
    let auth = AuthTopic::ALL.map(|topic| record::topic_name(&plane.catalogue, topic));
    let mut seen = BTreeMap::new();
    for name in names.into_iter().chain(auth).chain(downlinks) {
        let Some(topic) = topics.get(name.as_str()) else { continue };
        let partitions: Vec<_> =
            (0..topic.partitions).map(|partition| TopicPartition::new(name.as_str(), partition)).collect();
        let bounds = plane.admin.bounds(&partitions).await?;
        let ends = bounds.into_iter().map(|bounds| bounds.end).collect();
        seen.insert(name, Seen { id: topic.id.clone(), ends });
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use tbmq_bus::{Admin, memory::MemoryBus, spec_of};
    use tbmq_integration::cleanup::{Goal, Stage, TopicLife};
    use tbmq_proto::topic::Topic;

    use super::*;
    use crate::{
        auth::relay::Kept,
        relayer::Integrations,
        testing::{new, plane, relayer},
    };

    async fn replace(admin: &dyn Admin, topic: &Topic) {
        assert!(admin.delete_topic(&topic.name).await.unwrap());
        assert!(admin.create_topic(&spec_of(topic, 1)).await.unwrap());
    }

    fn live(generation: u64) -> TopicLife {
        TopicLife { goal: Goal::Keep, stage: Stage::Live, generation }
    }

    #[test]
    fn topics_are_looked_after_again_soon_after_a_round_that_failed_however_long_it_took() {
        assert_eq!(pause_after(false, Duration::from_secs(30)), PERIOD);
        assert_eq!(pause_after(true, Duration::from_millis(1)), PERIOD);
        assert_eq!(pause_after(true, Duration::from_millis(400)), Duration::from_secs(8));
        assert_eq!(pause_after(true, Duration::from_secs(30)), PERIOD_MAX);
    }

    #[tokio::test]
    async fn a_message_topic_that_others_replaced_is_kept_under_the_next_generation() {
        let (folder, bus) = (tempfile::tempdir().unwrap(), MemoryBus::new());
        let plane = plane(folder.path(), &bus, "cp1").await;
        let relayer = relayer(&plane).await;
        let row = plane.store.create(new("one"), plane.saved(None)).await.unwrap();
        let mut deferred = BTreeMap::new();
        relayer.relay_round::<Integrations>(&mut deferred).await.unwrap();
        let mut watchdog = Watchdog::default();
        watchdog.round(&relayer).await.unwrap();
        relayer.relay_round::<Integrations>(&mut deferred).await.unwrap();
        assert_eq!(plane.store.life(row.id).await.unwrap().unwrap().life, live(1));

        let topic = plane.catalogue.messages(row.id, 1);
        replace(&*plane.admin, &topic).await;
        let id = plane.admin.topic(&topic.name).await.unwrap().unwrap().id;
        for _ in 0..2 {
            watchdog.round(&relayer).await.unwrap();
            relayer.relay_round::<Integrations>(&mut deferred).await.unwrap();
        }
        assert_eq!(plane.store.life(row.id).await.unwrap().unwrap().life, live(2), "once");
        assert_eq!(plane.admin.topic(&topic.name).await.unwrap().unwrap().id, id, "with what it holds");
        assert!(plane.store.get(row.id).await.unwrap().revision > row.revision);

        // What we delete and create ourselves is no surprise.
        let mut life = plane.store.life(row.id).await.unwrap().unwrap();
        life.life.lost();
        plane.store.save_life(&mut life).await.unwrap();
        replace(&*plane.admin, &topic).await;
        plane.store.mark_anew(row.id, 0).await.unwrap();
        relayer.relay_round::<Integrations>(&mut deferred).await.unwrap();
        watchdog.round(&relayer).await.unwrap();
        assert_eq!(plane.store.life(row.id).await.unwrap().unwrap().life, live(3));
    }

    #[tokio::test]
    async fn configuration_is_reconciled_at_first_and_again_only_when_something_was_lost() {
        let (folder, bus) = (tempfile::tempdir().unwrap(), MemoryBus::new());
        let plane = plane(folder.path(), &bus, "cp1").await;
        let relayer = relayer(&plane).await;
        plane.store.create(new("one"), plane.saved(None)).await.unwrap();
        let mut deferred = BTreeMap::new();
        let mut watchdog = Watchdog::default();
        let mut round = async || {
            let before = plane.metrics.repairs.get();
            watchdog.round(&relayer).await.unwrap();
            relayer.relay_round::<Integrations>(&mut deferred).await.unwrap();
            relayer.relay_round::<Kept>(&mut BTreeMap::new()).await.unwrap();
            plane.metrics.repairs.get() - before
        };
        assert_eq!(round().await, 1, "it was not there yet");
        assert_eq!(round().await, 0);
        let subscriptions = plane.catalogue.integration_subscriptions();
        replace(&*plane.admin, &subscriptions).await;
        assert_eq!(round().await, 1, "it is empty");
        assert_eq!(round().await, 0);
        plane.admin.delete_topic(&plane.catalogue.downlink(&"HTTP".parse().unwrap()).name).await.unwrap();
        assert_eq!(round().await, 1, "it is missing");
        assert_eq!(round().await, 0);
    }

    #[test]
    fn a_topic_has_lost_something_when_it_is_gone_replaced_shorter_or_parted_differently() {
        let seen = |id: &str, ends: &[u64]| Seen { id: id.to_owned(), ends: ends.to_vec() };
        let before = seen("a", &[3, 5]);
        assert!(!before.has_lost(Some(&seen("a", &[3, 7]))));
        assert!(before.has_lost(None));
        assert!(before.has_lost(Some(&seen("b", &[9, 9]))));
        assert!(before.has_lost(Some(&seen("a", &[4, 4]))));
        assert!(before.has_lost(Some(&seen("a", &[3, 5, 0]))));
    }
}
