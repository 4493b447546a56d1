//! What is known of nodes from `tbmq.node.applied`: who lives, and what each has applied.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tbmq_proto::{
    ids::Kind,
    wire::{NodeApplied, Role},
};
use tokio::sync::watch;

/// A node that was not seen for so long is not waited for (architecture §4.9).
pub(crate) const LIVE_FOR: Duration = Duration::from_secs(15);

/// What is left of a node that was not seen for so long is removed (architecture §4.27).
pub(crate) const FORGET_AFTER: Duration = Duration::from_hours(7 * 24);

/// Nodes that are remembered at most.
const NODES_MAX: usize = 10_000;

/// A node as it was last seen.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) applied: NodeApplied,
    /// By the clock of this process.
    pub(crate) seen_ms: i64,
    seen: Option<Instant>,
}

impl Node {
    pub(crate) fn is_live(&self) -> bool {
        !self.applied.leaving && self.seen.is_some_and(|seen| seen.elapsed() < LIVE_FOR)
    }

    /// The position that the node has applied up to; 0 when it has not read the topic.
    pub(crate) fn position(&self, topic: &str, partition: u32) -> u64 {
        let found = self.applied.positions.iter().find(|at| at.topic == topic && at.partition == partition);
        found.map_or(0, |at| at.position)
    }
}

/// All nodes.
#[derive(Debug)]
pub(crate) struct Nodes {
    nodes: Mutex<BTreeMap<String, Node>>,
    changed: watch::Sender<u64>,
}

impl Nodes {
    pub(crate) fn new() -> Self {
        Self { nodes: Mutex::default(), changed: watch::Sender::new(0) }
    }

    /// Takes a record; `age` is how long ago it was written. `false` when there are too many nodes.
    pub(crate) fn record(&self, applied: NodeApplied, age: Duration, now_ms: i64) -> bool {
        let mut nodes = self.nodes.lock();
        let known = nodes.get(&applied.service_id);
        let is_older = |known: &Node| known.is_live() && known.applied.incarnation > applied.incarnation;
        if known.is_some_and(is_older) {
            // A newer incarnation of an id replaces the older (architecture §4.27). One that is gone replaces nobody:
            // its clock may have been ahead.
            return true;
        }
        if known.is_none() && nodes.len() >= NODES_MAX {
            return false;
        }
        let seen = Instant::now().checked_sub(age);
        let seen_ms = now_ms - age.as_millis() as i64;
        nodes.insert(applied.service_id.clone(), Node { applied, seen_ms, seen });
        drop(nodes);
        self.changed.send_modify(|version| *version += 1);
        true
    }

    /// Forgets a node.
    pub(crate) fn remove(&self, service_id: &str) {
        self.nodes.lock().remove(service_id);
        self.changed.send_modify(|version| *version += 1);
    }

    /// Nodes that have not been seen for [`FORGET_AFTER`].
    pub(crate) fn forgotten(&self, now_ms: i64) -> Vec<Node> {
        let before_ms = now_ms - FORGET_AFTER.as_millis() as i64;
        let nodes = self.nodes.lock();
        // Live by another clock than the one of `now_ms`, which may have been set forward.
        nodes.values().filter(|node| node.seen_ms < before_ms && !node.is_live()).cloned().collect()
    }

    pub(crate) fn get(&self, service_id: &str) -> Option<Node> {
        self.nodes.lock().get(service_id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Node> {
        self.nodes.lock().values().cloned().collect()
    }

    /// Completes with each change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// How many control planes live, this one included once it has announced itself.
    pub(crate) fn live_control_planes(&self) -> usize {
        let nodes = self.nodes.lock();
        nodes.values().filter(|node| node.applied.role() == Role::ControlPlane && node.is_live()).count()
    }

    pub(crate) fn live_data_planes(&self) -> Vec<Node> {
        let nodes = self.nodes.lock();
        nodes
            .values()
            .filter(|node| node.applied.role() == Role::DataPlane && node.is_live())
            .cloned()
            .collect()
    }

    /// Ids of the live executors that serve a kind.
    pub(crate) fn executors_of(&self, kind: &Kind) -> Vec<String> {
        let serves = |node: &&Node| {
            node.applied.role() == Role::Executor
                && node.is_live()
                && node.applied.kinds.iter().any(|served| served == kind.as_str())
        };
        let nodes = self.nodes.lock();
        nodes.values().filter(serves).map(|node| node.applied.service_id.clone()).collect()
    }

    /// The live executors, each with its incarnation.
    pub(crate) fn live_executors(&self) -> BTreeMap<String, String> {
        let nodes = self.nodes.lock();
        let live = nodes.values().filter(|node| node.applied.role() == Role::Executor && node.is_live());
        live.map(|node| (node.applied.service_id.clone(), node.applied.incarnation.clone())).collect()
    }

    /// Live data planes that have not passed this position.
    pub(crate) fn behind(&self, topic: &str, partition: u32, position: u64) -> Vec<String> {
        let late = |node: &Node| node.position(topic, partition) < position;
        self.live_data_planes().into_iter().filter(late).map(|node| node.applied.service_id).collect()
    }

    /// Live data planes that follow a topic: one that announces no position of it, as older versions do not, does not.
    pub(crate) fn followers(&self, topic: &str) -> Vec<Node> {
        let mut nodes = self.live_data_planes();
        nodes.retain(|node| node.applied.positions.iter().any(|at| at.topic == topic));
        nodes
    }

    /// Waits until every live data plane has passed this position; returns those that have not at the deadline.
    /// Cancel-safe.
    pub(crate) async fn applied(
        &self,
        topic: &str,
        partition: u32,
        position: u64,
        deadline: tokio::time::Instant,
    ) -> Vec<String> {
        self.wait(deadline, || self.behind(topic, partition, position)).await
    }

    /// As [`Nodes::applied`], for those that follow the topic.
    pub(crate) async fn applied_by_followers(
        &self,
        topic: &str,
        partition: u32,
        position: u64,
        deadline: tokio::time::Instant,
    ) -> Vec<String> {
        let late = |node: &Node| node.position(topic, partition) < position;
        let behind =
            || self.followers(topic).into_iter().filter(late).map(|node| node.applied.service_id).collect();
        self.wait(deadline, behind).await
    }

    async fn wait(&self, deadline: tokio::time::Instant, behind: impl Fn() -> Vec<String>) -> Vec<String> {
        let mut changes = self.changes();
        loop {
            changes.borrow_and_update();
            let late = behind();
            if late.is_empty() || tokio::time::Instant::now() >= deadline {
                return late;
            }
            // A node may also fall silent for good, which is no change.
            let check = deadline.min(tokio::time::Instant::now() + Duration::from_secs(1));
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return late },
                () = tokio::time::sleep_until(check) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tbmq_proto::wire::AppliedPosition;

    use super::*;

    fn node(id: &str, incarnation: &str, position: u64) -> NodeApplied {
        NodeApplied {
            service_id: id.to_owned(),
            role: Role::DataPlane.into(),
            incarnation: incarnation.to_owned(),
            positions: vec![AppliedPosition { topic: "t".to_owned(), partition: 0, position }],
            ..NodeApplied::default()
        }
    }

    #[test]
    fn only_live_nodes_are_waited_for() {
        let nodes = Nodes::new();
        nodes.record(node("a", "1", 3), Duration::ZERO, 0);
        nodes.record(node("b", "1", 9), Duration::ZERO, 0);
        nodes.record(node("old", "1", 0), LIVE_FOR, 0);
        nodes.record(NodeApplied { leaving: true, ..node("leaving", "1", 0) }, Duration::ZERO, 0);
        assert_eq!(nodes.behind("t", 0, 4), ["a"]);
        assert_eq!(nodes.behind("t", 1, 1), ["a", "b"], "a node that has not read the partition is behind");
    }

    #[test]
    fn an_older_incarnation_changes_nothing() {
        let nodes = Nodes::new();
        nodes.record(node("a", "2", 5), Duration::ZERO, 0);
        nodes.record(node("a", "1", 0), Duration::ZERO, 0);
        assert!(nodes.behind("t", 0, 5).is_empty());
    }

    #[test]
    fn a_predecessor_whose_clock_was_ahead_replaces_nobody() {
        let nodes = Nodes::new();
        nodes.record(node("a", "2", 5), LIVE_FOR, 0);
        nodes.record(node("a", "1", 0), Duration::ZERO, 0);
        assert_eq!(nodes.behind("t", 0, 5), ["a"]);
    }

    #[test]
    fn a_node_is_forgotten_after_a_week_of_silence() {
        let nodes = Nodes::new();
        let week_ms = FORGET_AFTER.as_millis() as i64;
        nodes.record(node("old", "1", 0), FORGET_AFTER + Duration::from_millis(1), 0);
        nodes.record(node("silent", "1", 0), FORGET_AFTER, 0);
        nodes.record(node("live", "1", 0), Duration::ZERO, 0);
        let forgotten = |now_ms| -> Vec<String> {
            nodes.forgotten(now_ms).into_iter().map(|node| node.applied.service_id).collect()
        };
        assert_eq!(forgotten(0), ["old"]);
        assert_eq!(
            forgotten(2 * week_ms),
            ["old", "silent"],
            "a clock that was set forward forgets nobody alive"
        );
    }

    #[tokio::test]
    async fn waiting_ends_with_the_last_node_or_names_the_silent() {
        let nodes = std::sync::Arc::new(Nodes::new());
        nodes.record(node("a", "1", 0), Duration::ZERO, 0);
        let soon = tokio::time::Instant::now() + Duration::from_millis(20);
        assert_eq!(nodes.applied("t", 0, 1, soon).await, ["a"]);
        let waiting = tokio::spawn({
            let nodes = nodes.clone();
            let later = tokio::time::Instant::now() + Duration::from_mins(1);
            async move { nodes.applied("t", 0, 1, later).await }
        });
        tokio::task::yield_now().await;
        nodes.record(node("a", "1", 1), Duration::ZERO, 0);
        assert!(waiting.await.unwrap().is_empty());
    }
}
