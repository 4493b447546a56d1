//! How far topics are applied, and whether that is as far as they are written.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::metrics::gauge::Gauge;
use tbmq_bus::{Admin, TopicPartition};
use tbmq_proto::wire::AppliedPosition;
use tbmq_service::admin::Component;
use tokio::sync::watch;

/// How often the ends of the topics are asked for.
const CONFIRM_PERIOD: Duration = Duration::from_secs(5);

/// Without a confirmed position for so long, the plane is degraded.
const CONFIRM_PATIENCE: Duration = Duration::from_secs(30);

/// Tells that positions have changed, of whatever topics.
pub(crate) type Changed = watch::Sender<()>;

/// The positions below which everything of some partitions is applied. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Positions {
    partitions: Arc<[(TopicPartition, AtomicU64)]>,
    changed: Changed,
}

impl Positions {
    /// Of which nothing is applied yet.
    pub(crate) fn new(partitions: impl IntoIterator<Item = TopicPartition>, changed: &Changed) -> Self {
        let partitions = partitions.into_iter().map(|partition| (partition, AtomicU64::new(0)));
        Self { partitions: partitions.collect(), changed: changed.clone() }
    }

    pub(crate) fn partitions(&self) -> Vec<TopicPartition> {
        self.partitions.iter().map(|(partition, _)| partition.clone()).collect()
    }

    /// Everything below this position of a partition is applied.
    pub(crate) fn advance(&self, partition: &TopicPartition, position: u64) {
        if let Some((_, own)) = self.partitions.iter().find(|(known, _)| known == partition) {
            own.store(position, Ordering::Release);
            self.changed.send_replace(());
        }
    }

    /// As a node tells them to others.
    pub(crate) fn applied(&self) -> impl Iterator<Item = AppliedPosition> {
        self.partitions.iter().map(|(TopicPartition { topic, partition }, position)| AppliedPosition {
            topic: topic.to_string(),
            partition: *partition,
            position: position.load(Ordering::Acquire),
        })
    }

    /// Their sum: how many records have gone by at most.
    pub(crate) fn in_all(&self) -> u64 {
        self.load().iter().sum()
    }

    fn load(&self) -> Vec<u64> {
        self.partitions.iter().map(|(_, position)| position.load(Ordering::Acquire)).collect()
    }
}

/// Tells `component` and `degraded` when the positions were not confirmed for 30 s, and when they are again; does not
/// return. What is known is served all the while.
pub(crate) async fn confirm(
    admin: Arc<dyn Admin>,
    positions: Positions,
    component: Component,
    degraded: Gauge,
) {
    let partitions = positions.partitions();
    let topic = partitions.first().map(|partition| partition.topic.clone()).unwrap_or_default();
    let origin = tokio::time::Instant::now();
    let mut confirmed = Confirmed::default();
    loop {
        tokio::time::sleep(CONFIRM_PERIOD).await;
        if confirmed.wants_end(origin.elapsed(), &positions.load()) {
            match admin.bounds(&partitions).await {
                Ok(bounds) => {
                    confirmed.await_end(bounds.iter().map(|bounds| bounds.end).collect());
                    confirmed.wants_end(origin.elapsed(), &positions.load());
                }
                Err(error) => tracing::debug!(%error, %topic, "can't ask for the end"),
            }
        }
        match confirmed.change(origin.elapsed()) {
            Some(true) => {
                let position = positions.in_all();
                let text = format!("no confirmed position of {topic} for 30 s (position {position})");
                tracing::warn!(%topic, position, "position is not confirmed");
                component.down(text);
                degraded.set(1);
            }
            Some(false) => {
                tracing::info!(%topic, "position is confirmed again");
                component.up();
                degraded.set(0);
            }
            None => {}
        }
    }
}

/// When it was last known that everything written was applied. Times count from any origin.
#[derive(Debug, Default)]
struct Confirmed {
    at: Duration,
    /// Ends that were seen and not reached yet.
    wanted: Option<Vec<u64>>,
    is_late: bool,
}

impl Confirmed {
    /// Whether the ends are to be asked for: the last ones are reached. An end that was reached is confirmed, even if
    /// the topic has grown meanwhile.
    fn wants_end(&mut self, now: Duration, positions: &[u64]) -> bool {
        let is_reached = |ends: &Vec<u64>| positions.iter().zip(ends).all(|(position, end)| position >= end);
        if self.wanted.as_ref().is_some_and(is_reached) {
            self.wanted = None;
            self.at = now;
        }
        self.wanted.is_none()
    }

    fn await_end(&mut self, ends: Vec<u64>) {
        self.wanted = Some(ends);
    }

    /// Whether it is late, if that has changed.
    fn change(&mut self, now: Duration) -> Option<bool> {
        let is_late = now.saturating_sub(self.at) > CONFIRM_PATIENCE;
        let was_late = std::mem::replace(&mut self.is_late, is_late);
        (is_late != was_late).then_some(is_late)
    }
}

#[cfg(test)]
mod tests {
    use tbmq_bus::{Bus as _, Outgoing, WriterConfig, memory::MemoryBus, spec_of, write};
    use tbmq_proto::topic::Catalogue;
    use tbmq_service::admin::Health;

    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_position_is_late_after_30_s_behind_an_end_and_well_once_that_end_is_reached() {
        let mut confirmed = Confirmed::default();
        assert!(confirmed.wants_end(s(5), &[10, 3]));
        confirmed.await_end(vec![10, 3]);
        assert!(confirmed.wants_end(s(5), &[10, 3]), "confirmed at 5 s");
        confirmed.await_end(vec![12, 3]);
        assert!(!confirmed.wants_end(s(30), &[11, 4]));
        assert_eq!(confirmed.change(s(35)), None);
        assert_eq!(confirmed.change(s(36)), Some(true));
        assert_eq!(confirmed.change(s(40)), None);
        assert!(confirmed.wants_end(s(45), &[12, 4]));
        assert_eq!(confirmed.change(s(45)), Some(false));
    }

    #[tokio::test]
    async fn a_plane_is_degraded_after_30_s_without_a_confirmed_position_and_well_by_itself() {
        let bus = MemoryBus::new();
        let topic = Catalogue::default().integration_subscriptions();
        bus.admin().create_topic(&spec_of(&topic, 1)).await.unwrap();
        let writer = bus.writer(WriterConfig::new("test")).await.unwrap();
        let record = Outgoing { partition: Some(0), key: Some(b"k"), value: Some(b"v"), headers: &[] };
        write(&*writer, &writer.topic(&topic.name), record).await.unwrap();
        let (health, degraded) = (Health::default(), Gauge::<i64>::default());
        let component = health.component("integration-subscriptions");
        component.up();
        let partition = TopicPartition::new(topic.name, 0);
        let positions = Positions::new([partition.clone()], &Changed::new(()));
        tokio::time::pause();
        let confirming = tokio::spawn(confirm(bus.admin(), positions.clone(), component, degraded.clone()));
        tokio::time::sleep(s(29)).await;
        assert_eq!((health.is_up(), degraded.get()), (true, 0));
        tokio::time::sleep(s(7)).await;
        assert_eq!(degraded.get(), 1);
        let [(name, reason)] = &health.down()[..] else { panic!("{:?}", health.down()) };
        assert_eq!(name, "integration-subscriptions");
        assert!(reason.contains("for 30 s (position 0)"), "{reason}");
        positions.advance(&partition, 1);
        tokio::time::sleep(s(6)).await;
        assert_eq!((health.is_up(), degraded.get()), (true, 0));
        confirming.abort();
    }

    #[test]
    fn a_bus_that_does_not_say_where_the_end_is_makes_the_position_late() {
        let mut confirmed = Confirmed::default();
        for now in [5, 10, 30] {
            assert!(confirmed.wants_end(s(now), &[10]));
            assert_eq!(confirmed.change(s(now)), None);
        }
        assert_eq!(confirmed.change(s(31)), Some(true));
    }
}
