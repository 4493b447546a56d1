//! The bus as a process of the simulation sees it: the memory bus behind the fault wrapper, asked without waiting.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use futures_util::FutureExt as _;
use tbmq_bus::{
    Bus as _, CleanupPolicy, Membership, MembershipConfig, MembershipEvent, TopicSpec,
    fault::{Fault, FaultBus},
    memory::MemoryBus,
};
use tbmq_integration::Millis;
use tbmq_proto::{
    ids::{Kind, ServiceId},
    topic::Catalogue,
};

use crate::settings::{DOWNLINK_PARTITIONS, EPOCH_MS, SESSION, UPLINK_PARTITIONS};

/// The bus, and the thread that everything runs on.
pub(crate) struct Net {
    runtime: tokio::runtime::Runtime,
    clock: Arc<AtomicI64>,
    pub(crate) memory: Arc<MemoryBus>,
    pub(crate) catalogue: Catalogue,
    pub(crate) kind: Kind,
}

impl Net {
    pub(crate) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.expect("a runtime of one thread needs nothing");
        let clock = Arc::new(AtomicI64::new(EPOCH_MS));
        let read = Arc::clone(&clock);
        let memory = {
            let _entered = runtime.enter();
            MemoryBus::with_clock(move || read.load(Ordering::Relaxed))
        };
        let net = Self {
            runtime,
            clock,
            memory,
            catalogue: Catalogue::new(""),
            kind: "HTTP".parse().expect("HTTP is a kind"),
        };
        let catalogue = &net.catalogue;
        let few = |mut topic: tbmq_proto::topic::Topic, partitions| {
            topic.partitions = partitions;
            topic
        };
        let topics = [
            few(catalogue.downlink(&net.kind), DOWNLINK_PARTITIONS),
            few(catalogue.uplink(), UPLINK_PARTITIONS),
            catalogue.integration_subscriptions(),
            catalogue.node_applied(),
            catalogue.owners(),
        ];
        for topic in &topics {
            net.ask(net.memory.admin().create_topic(&tbmq_bus::spec_of(topic, 1))).expect("a legal topic");
        }
        net
    }

    /// Sets the clock of the bus.
    pub(crate) fn set_time(&self, now: Millis) {
        self.clock.store(EPOCH_MS + now.0 as i64, Ordering::Relaxed);
    }

    /// What is ready now.
    pub(crate) fn poll<F: Future>(&self, future: F) -> Option<F::Output> {
        let _entered = self.runtime.enter();
        future.now_or_never()
    }

    /// What the memory bus answers at once.
    pub(crate) fn ask<F: Future>(&self, future: F) -> F::Output {
        self.poll(future).expect("the memory bus answers at once")
    }

    /// Lets the tasks of the fault wrapper hand on what has come.
    pub(crate) fn settle(&self) {
        self.runtime.block_on(async {
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
        });
    }

    /// Has the bus compact and expire everything it may.
    pub(crate) fn clean(&self) {
        self.ask(self.memory.clean_now()).expect("the memory bus cleans");
    }

    /// The topic of an integration's messages.
    pub(crate) fn messages(&self, id: tbmq_proto::ids::IntegrationId, shards: u32) -> TopicSpec {
        tbmq_bus::spec_of(&self.catalogue.messages(id, shards), 1)
    }

    /// The topic of an integration's dead letters.
    pub(crate) fn dead_letters(&self, id: tbmq_proto::ids::IntegrationId) -> TopicSpec {
        tbmq_bus::spec_of(&self.catalogue.dead_letters(id), 1)
    }

    /// The topic of replies to a control plane.
    pub(crate) fn replies(&self, service: &str) -> TopicSpec {
        let service: ServiceId = service.parse().expect("a service id of the simulation");
        let topic = self.catalogue.uplink_notifications(&service);
        TopicSpec { policy: CleanupPolicy::Delete, ..tbmq_bus::spec_of(&topic, 1) }
    }
}

/// How the bus looks to one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    Clear,
    /// Some writes fail, some of them although they were written.
    Flaky,
    /// The bus can't be reached.
    Away,
}

/// What every process has.
pub(crate) struct Host {
    pub(crate) service: String,
    /// Greater for a later start.
    pub(crate) incarnation: String,
    pub(crate) bus: Arc<FaultBus>,
    pub(crate) weather: Weather,
    pub(crate) weather_until: Millis,
    /// What is planted for good.
    pub(crate) bugs: Vec<Fault>,
    pub(crate) frozen_until: Option<Millis>,
    /// How often it was frozen.
    pub(crate) freezes: u64,
    /// After a freeze it takes a while until the group's answer comes.
    pub(crate) deaf_until: Millis,
}

impl Host {
    pub(crate) fn new(net: &Net, service: &str, incarnation: u64, seed: u64) -> Self {
        Self {
            service: service.to_owned(),
            incarnation: format!("{incarnation:08}"),
            bus: FaultBus::new(Arc::clone(&net.memory) as Arc<dyn tbmq_bus::Bus>, seed),
            weather: Weather::Clear,
            weather_until: Millis(0),
            bugs: Vec::new(),
            frozen_until: None,
            freezes: 0,
            deaf_until: Millis(0),
        }
    }

    pub(crate) fn set_weather(&mut self, weather: Weather) {
        self.weather = weather;
        self.bus.clear();
        let faults: &[Fault] = match weather {
            Weather::Clear => &[],
            Weather::Flaky => &[Fault::FailWrites(200), Fault::UncertainWrites(200)],
            Weather::Away => &[Fault::FailWrites(1000), Fault::FailCommits, Fault::FailFencedWrites],
        };
        faults.iter().chain(&self.bugs).for_each(|fault| self.bus.plant(fault.clone()));
    }

    /// Names this process and what it owns under an epoch.
    pub(crate) fn process(&self, epoch: u64) -> String {
        format!("{} {} {epoch}", self.service, self.incarnation)
    }

    pub(crate) fn is_away(&self) -> bool {
        self.weather == Weather::Away
    }

    /// Wakes it when its time has come.
    pub(crate) fn thaw(&mut self, now: Millis) {
        self.frozen_until = self.frozen_until.filter(|until| *until > now);
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen_until.is_some()
    }
}

/// A membership, and when the bus has last heard of it.
pub(crate) struct Member {
    group: String,
    client: String,
    inner: Box<dyn Membership>,
    heard: Millis,
    is_expired: bool,
}

impl Member {
    pub(crate) fn join(net: &Net, host: &Host, now: Millis, group: String, topic: String) -> Self {
        // Told apart by incarnation, so that the session of a crashed process can be ended by name.
        let client = format!("{group}-{}-{}", host.service, host.incarnation);
        let config = MembershipConfig {
            group: group.clone(),
            client_id: client.clone(),
            instance_id: Some(host.service.clone()),
            topics: vec![topic],
            session_timeout: std::time::Duration::from_secs(3600),
        };
        let inner =
            net.ask(tbmq_bus::Bus::membership(&*host.bus, config)).expect("the memory bus has groups");
        Self { group, client, inner, heard: now, is_expired: false }
    }

    /// Keeps the membership alive, and tells what has changed.
    pub(crate) fn poll(&mut self, net: &Net, now: Millis) -> Option<MembershipEvent> {
        self.heard = now;
        self.is_expired = false;
        net.poll(self.inner.next())
    }

    pub(crate) fn commit(
        &mut self,
        net: &Net,
        now: Millis,
        commits: Vec<tbmq_bus::Commit>,
    ) -> Result<(), tbmq_bus::Error> {
        self.heard = now;
        net.ask(self.inner.commit(commits))
    }

    /// Who is to be expired when this process ends without a word.
    pub(crate) fn ghost(&self) -> Ghost {
        Ghost { group: self.group.clone(), client: self.client.clone(), heard: self.heard }
    }

    /// Has the bus end the session of a member that was silent for too long.
    pub(crate) fn expire_if_silent(&mut self, net: &Net, now: Millis) -> bool {
        if self.is_expired || now.since(self.heard) < SESSION {
            return false;
        }
        self.is_expired = true;
        net.memory.expire(&self.group, &self.client)
    }
}

/// What the bus still holds for a member whose process has died.
pub(crate) struct Ghost {
    group: String,
    client: String,
    heard: Millis,
}

impl Ghost {
    /// `true` when nothing is left to expire.
    pub(crate) fn expire_if_silent(&self, net: &Net, now: Millis) -> bool {
        if now.since(self.heard) < SESSION {
            return false;
        }
        net.memory.expire(&self.group, &self.client);
        true
    }
}
