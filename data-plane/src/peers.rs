//! Other nodes, as `tbmq.node.applied` tells of them: live data planes, and a newer process with our own service id.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use prost::Message as _;
use tbmq_bus::Record;
use tbmq_proto::wire::{NodeApplied, Role};
use tbmq_service::identity::{Identity, Superseded};

/// A node that is silent for so long is not live.
const PEER_PATIENCE: Duration = Duration::from_secs(15);

/// Other data planes.
#[derive(Debug)]
pub(crate) struct Peers {
    own: Identity,
    last_seen: HashMap<String, Seen>,
    had_peers: bool,
    is_caught_up: bool,
}

/// What another data plane has said last.
#[derive(Debug)]
struct Seen {
    at: Instant,
    sessions: u64,
}

/// The other data planes that live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) count: usize,
    /// There were none before.
    pub(crate) is_new: bool,
    /// Sessions of all of them.
    pub(crate) sessions: u64,
}

impl Peers {
    pub(crate) fn new(own: &Identity) -> Self {
        Self { own: own.clone(), last_seen: HashMap::new(), had_peers: false, is_caught_up: false }
    }

    /// What was written before we began is read: later records are of processes that live now.
    pub(crate) fn caught_up(&mut self) {
        self.is_caught_up = true;
    }

    /// Takes note of a record; tells when it supersedes us.
    pub(crate) fn note(&mut self, record: &Record, now: Instant) -> Option<Superseded> {
        let Ok(node) = NodeApplied::decode(record.value.as_deref().unwrap_or_default()) else { return None };
        if node.service_id == self.own.service_id {
            // A predecessor whose clock was ahead of ours has left a greater incarnation, and is gone.
            let is_newer = self.is_caught_up && node.incarnation > self.own.incarnation;
            return is_newer.then(|| self.own.superseded_by(node.incarnation));
        }
        if node.role != Role::DataPlane as i32 {
            return None;
        }
        let is_old = tbmq_service::time::now_ms() - node.time_ms > PEER_PATIENCE.as_millis() as i64;
        if node.leaving || is_old {
            self.last_seen.remove(&node.service_id);
        } else {
            self.last_seen.insert(node.service_id, Seen { at: now, sessions: node.sessions });
        }
        None
    }

    /// Those that live, whether or not anything was heard of others since.
    pub(crate) fn live(&mut self, now: Instant) -> Live {
        self.last_seen.retain(|_, seen| now.duration_since(seen.at) < PEER_PATIENCE);
        let has_peers = !self.last_seen.is_empty();
        let is_new = has_peers && !self.had_peers;
        self.had_peers = has_peers;
        let sessions = self.last_seen.values().map(|seen| seen.sessions).fold(0, u64::saturating_add);
        Live { count: self.last_seen.len(), is_new, sessions }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(service_id: &str, role: Role, change: impl FnOnce(&mut NodeApplied)) -> Record {
        let mut node = NodeApplied {
            service_id: service_id.to_owned(),
            role: role as i32,
            time_ms: tbmq_service::time::now_ms(),
            ..NodeApplied::default()
        };
        change(&mut node);
        let value = Some(node.encode_to_vec().into());
        Record { offset: 0, timestamp_ms: 0, key: None, value, headers: Vec::new() }
    }

    fn own() -> Identity {
        Identity::of("data-plane", Some("own"))
    }

    #[test]
    fn other_live_data_planes_are_told_once() {
        let now = Instant::now();
        let mut peers = Peers::new(&own());
        peers.note(&record("own", Role::DataPlane, |_| {}), now);
        peers.note(&record("executor", Role::Executor, |_| {}), now);
        peers.note(&record("long gone", Role::DataPlane, |node| node.time_ms -= 60_000), now);
        let none = Live { count: 0, is_new: false, sessions: 0 };
        assert_eq!(peers.live(now), none);
        peers.note(&record("other", Role::DataPlane, |node| node.sessions = 3), now);
        assert_eq!(peers.live(now), Live { count: 1, is_new: true, sessions: 3 });
        assert_eq!(peers.live(now), Live { count: 1, is_new: false, sessions: 3 });
        peers.note(&record("third", Role::DataPlane, |node| node.sessions = u64::MAX), now);
        assert_eq!(peers.live(now), Live { count: 2, is_new: false, sessions: u64::MAX });
        assert_eq!(peers.live(now + PEER_PATIENCE), none);
        peers.note(&record("other", Role::DataPlane, |_| {}), now);
        peers.note(&record("other", Role::DataPlane, |node| node.leaving = true), now);
        assert_eq!(peers.live(now), none);
    }

    #[test]
    fn only_a_newer_process_that_lives_supersedes_us() {
        let (own, now) = (own(), Instant::now());
        let written = |incarnation: &str| {
            record("own", Role::DataPlane, |node| incarnation.clone_into(&mut node.incarnation))
        };
        let mut peers = Peers::new(&own);
        assert_eq!(peers.note(&written("f"), now), None, "it was there before us");
        peers.caught_up();
        assert_eq!(peers.note(&written(&own.incarnation), now), None);
        assert_eq!(peers.note(&written("0"), now), None, "an older one is to go itself");
        let superseded = peers.note(&written("f"), now).unwrap();
        assert_eq!(superseded, own.superseded_by("f".to_owned()));
        let text = superseded.to_string();
        for part in ["incarnation f ", "service id own ", &own.incarnation, "TB_SERVICE_ID"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
