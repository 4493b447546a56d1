//! Limits of what clients do (broker spec §5), all read at the start.
//!
//! | limit | counted where | what is too much |
//! |---|---|---|
//! | published by a client | in its session's task | 5.0: 0x97, at QoS 0 dropped; 3.x: closed |
//! | delivered to a client at QoS 0 | in its session's task | dropped |
//! | messages of all clients | node | as what a client publishes; deliveries: dropped |
//! | messages put into queues | node | dropped, for those of a message's receivers that come last |
//! | bytes sent by a client | in its session's task | its socket is not read for a while |
//! | connections, and those of an address ([`entry`]) | node | closed at once |
//! | sessions of APPLICATION clients ([`applications`]) | node | CONNACK 0x97, of 3.x 0x03 |
//!
//! A limit of all nodes is shared evenly by the data planes that live, as they know from `tbmq.node.applied`: nobody is
//! asked per message and there is nothing to fail. TBMQ asks Redis for each batch of 50 ms. The price: a node that has
//! more than its share of the messages has less than they need, and when a node comes, all together may have too much
//! until it is heard of, within 5 s.
//!
//! What a client has used up is known as long as its session's task lives: who begins anew with a clean session, has all
//! of its limits again. How often it can is limited by those of connections.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;
use tbmq_auth::limits::{RateLimit, Taken};

use crate::{
    config::MqttConfig,
    metrics::{Drop as Dropped, Limit, Metrics},
};

pub(crate) mod applications;
pub(crate) mod config;
mod entry;

use applications::Applications;
pub(crate) use entry::AddressPlace;
use entry::Entry;

/// The limits of a node.
#[derive(Debug)]
pub(crate) struct Limiter {
    pub(crate) applications: Applications,
    entry: Entry,
    incoming: Option<RateLimit>,
    outgoing: Option<RateLimit>,
    bytes: Option<RateLimit>,
    total: Option<Shared>,
    persisted: Option<Shared>,
    /// Data planes that live, this one included.
    nodes: AtomicU64,
    metrics: Metrics,
}

/// A limit that all nodes share.
#[derive(Debug)]
struct Shared {
    limit: RateLimit,
    taken: Mutex<Taken>,
}

/// What a client has used up.
#[derive(Debug, Default)]
pub(crate) struct Used {
    incoming: Taken,
    outgoing: Taken,
    bytes: Taken,
    /// When the client is read again, on the monotonic clock.
    reads_at_ms: Option<u64>,
}

impl Limiter {
    pub(crate) fn new(config: &MqttConfig, metrics: Metrics) -> Self {
        let limits = &config.rate_limits;
        let shared = |limit: Option<RateLimit>| limit.map(|limit| Shared { limit, taken: Mutex::default() });
        Self {
            applications: Applications::new(config.application_clients_limit, metrics.clone()),
            entry: Entry::new(
                limits.connections.clone(),
                limits.address_connections.clone(),
                config.address_connections_max,
            ),
            incoming: limits.incoming_publish.limit(),
            outgoing: limits.outgoing_publish.limit(),
            bytes: limits.incoming_bytes.clone(),
            total: shared(limits.total.limit()),
            persisted: shared(limits.device_persisted_messages.limit()),
            nodes: AtomicU64::new(1),
            metrics,
        }
    }

    /// So many other data planes live.
    pub(crate) fn note_peers(&self, peers: usize) {
        self.nodes.store(peers as u64 + 1, Ordering::Relaxed);
    }

    /// For a session that begins; `None` when nothing is limited that needs it.
    pub(crate) fn used(&self) -> Option<Box<Used>> {
        let is_needed = self.incoming.is_some() || self.outgoing.is_some() || self.bytes.is_some();
        is_needed.then(Box::default)
    }

    /// Whether another connection may come.
    pub(crate) fn admits_connection(&self, now_ms: u64) -> bool {
        self.counted(self.entry.take(now_ms)).is_ok()
    }

    /// Whether another connection may come from this address, and its place there, where such are counted.
    pub(crate) fn place_for(&self, now_ms: u64, address: IpAddr) -> Result<Option<AddressPlace>, Limit> {
        self.counted(self.entry.take_from(now_ms, address))
    }

    fn counted<T>(&self, result: Result<T, Limit>) -> Result<T, Limit> {
        result.inspect_err(|limit| self.metrics.client_limit_reached(*limit))
    }

    /// Whether the client may publish another message.
    pub(crate) fn admits_publish(&self, used: Option<&mut Used>, now_ms: u64) -> bool {
        if let (Some(limit), Some(used)) = (&self.incoming, used)
            && !limit.take(&mut used.incoming, now_ms)
        {
            self.metrics.client_limit_reached(Limit::IncomingRate);
            return false;
        }
        let is_admitted = self.total.as_ref().is_none_or(|total| self.take(total, now_ms, 1) == 1);
        if !is_admitted {
            self.metrics.client_limit_reached(Limit::TotalRate);
        }
        is_admitted
    }

    /// Whether another message may be sent to the client at QoS 0. What may not is counted as dropped.
    pub(crate) fn admits_delivery(&self, used: Option<&mut Used>, now_ms: u64) -> bool {
        let (Some(limit), Some(used)) = (&self.outgoing, used) else { return true };
        let is_admitted = limit.take(&mut used.outgoing, now_ms);
        if !is_admitted {
            self.drop(Limit::OutgoingRate, 1);
        }
        is_admitted
    }

    /// How many of a message's receivers get it. The surplus is counted as dropped.
    pub(crate) fn receivers(&self, now_ms: u64, wanted: impl FnOnce() -> usize) -> usize {
        let Some(total) = &self.total else { return usize::MAX };
        let wanted = wanted();
        // The first one was taken when the message came.
        let further = wanted.saturating_sub(1);
        let granted = self.take(total, now_ms, further);
        self.drop(Limit::TotalRate, further - granted);
        granted + 1
    }

    /// Into how many of so many queues a message goes. The surplus is counted as dropped.
    pub(crate) fn queues(&self, now_ms: u64, wanted: usize) -> usize {
        let Some(persisted) = &self.persisted else { return wanted };
        let granted = self.take(persisted, now_ms, wanted);
        self.drop(Limit::DevicePersistedRate, wanted - granted);
        granted
    }

    fn take(&self, shared: &Shared, now_ms: u64, wanted: usize) -> usize {
        if wanted == 0 {
            return 0;
        }
        let nodes = self.nodes.load(Ordering::Relaxed);
        shared.limit.take_share(&mut shared.taken.lock(), now_ms, wanted as u64, nodes) as usize
    }

    fn drop(&self, limit: Limit, count: usize) {
        if count > 0 {
            self.metrics.client_limit_reached_by(limit, count);
            self.metrics.dropped_by(Dropped::RateLimit, count);
        }
    }

    /// So many bytes of the client were read: decides when it is read again.
    pub(crate) fn read(&self, used: Option<&mut Used>, now_ms: u64, bytes: usize) {
        let (Some(limit), Some(used)) = (&self.bytes, used) else { return };
        let pause_ms = limit.take_anyway(&mut used.bytes, now_ms, bytes as u64);
        if pause_ms > 0 {
            used.reads_at_ms = Some(now_ms.saturating_add(pause_ms));
            self.metrics.client_limit_reached(Limit::IncomingBytes);
        }
    }
}

impl Used {
    /// When the client is read again, if it is not read now; it was now that somebody looked.
    pub(crate) fn reads_at_ms(&mut self, now_ms: u64) -> Option<u64> {
        self.reads_at_ms = self.reads_at_ms.filter(|at_ms| *at_ms > now_ms);
        self.reads_at_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::LimitLabel;

    fn limiter(change: impl FnOnce(&mut config::RateLimitsConfig)) -> Limiter {
        let mut config = MqttConfig::default();
        change(&mut config.rate_limits);
        Limiter::new(&config, Metrics::default())
    }

    fn reached(limiter: &Limiter, limit: Limit) -> u64 {
        limiter.metrics.client_limits_reached.get_or_create(&LimitLabel { limit }).get()
    }

    #[test]
    fn without_settings_nothing_is_limited_and_sessions_have_nothing_of_it() {
        let limiter = limiter(|_| ());
        assert!(limiter.used().is_none());
        for _ in 0..100_000 {
            assert!(limiter.admits_publish(None, 0) && limiter.admits_delivery(None, 0));
        }
        assert_eq!(limiter.receivers(0, || unreachable!("nobody counts them")), usize::MAX);
        assert_eq!(limiter.queues(0, 1_000_000), 1_000_000);
        assert!(limiter.admits_connection(0));
    }

    #[test]
    fn a_client_within_its_limit_loses_nothing_next_to_one_that_is_not() {
        let limiter = limiter(|limits| limits.incoming_publish.enabled = true);
        let (mut good, mut bad) = (limiter.used(), limiter.used());
        let mut admitted = 0;
        for now_ms in 0..10_000 {
            admitted += u64::from(limiter.admits_publish(bad.as_deref_mut(), now_ms));
            if now_ms % 250 == 0 {
                assert!(limiter.admits_publish(good.as_deref_mut(), now_ms));
            }
        }
        // 10 at once, and one each 100 ms.
        assert_eq!(admitted, 10 + 99);
        assert_eq!(reached(&limiter, Limit::IncomingRate), 10_000 - admitted);
    }

    #[test]
    fn of_a_messages_receivers_as_many_get_it_as_there_is_room_for_and_the_first_always() {
        let limiter = limiter(|limits| {
            limits.total.enabled = true;
            limits.total.config = "5:1".parse().unwrap();
        });
        assert!(limiter.admits_publish(None, 0));
        assert_eq!(limiter.receivers(0, || 3), 3);
        assert!(limiter.admits_publish(None, 0));
        assert_eq!(limiter.receivers(0, || 10), 2);
        assert_eq!(limiter.receivers(0, || 1), 1);
        assert!(!limiter.admits_publish(None, 0));
        assert_eq!(reached(&limiter, Limit::TotalRate), 8 + 1);
        assert!(limiter.admits_publish(None, 200));
    }

    #[test]
    fn a_limit_of_all_nodes_is_shared_by_those_that_live() {
        let limiter = limiter(|limits| {
            limits.device_persisted_messages.enabled = true;
            limits.device_persisted_messages.config = "12:1".parse().unwrap();
        });
        for (peers, now_ms, granted) in
            [(0, 0, 12), (1, 10_000, 6), (3, 20_000, 3), (100, 30_000, 1), (0, 40_000, 12)]
        {
            limiter.note_peers(peers);
            assert_eq!(limiter.queues(now_ms, 100), granted, "{peers} others");
        }
        assert_eq!(reached(&limiter, Limit::DevicePersistedRate), 500 - 34);
    }

    #[test]
    fn who_sends_bytes_too_fast_is_not_read_until_they_fit() {
        let limiter = limiter(|limits| limits.incoming_bytes = Some("1000:1".parse().unwrap()));
        let mut used = limiter.used().unwrap();
        limiter.read(Some(&mut used), 0, 1000);
        assert_eq!(used.reads_at_ms(0), None);
        limiter.read(Some(&mut used), 0, 250);
        assert_eq!(used.reads_at_ms(0), Some(250));
        assert_eq!(used.reads_at_ms(249), Some(250));
        assert_eq!(used.reads_at_ms(250), None);
        assert_eq!(reached(&limiter, Limit::IncomingBytes), 1);
    }
}
