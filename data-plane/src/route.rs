//! Who gets a message: the subscription tree with clients and integrations, and the health of message topics.

use std::{
    collections::HashMap,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};
use tbmq_bus::{Error, TopicHandle, Writer};
use tbmq_mqtt::{
    packet::Qos,
    session::{Delivery, Message, Options},
    tree::{self, Tree},
};
use tbmq_proto::{ids::IntegrationId, topic::Catalogue};

use crate::{
    mailbox::{Mailbox, Pushed},
    metrics::{Drop as Dropped, Metrics},
};

/// Deadlines that a topic may miss in a row before it is only probed (architecture §4.14).
const MISSES_MAX: u32 = 3;

/// Time between two probes, ms.
const PROBE_PAUSE_MS: u64 = 1000;

/// One integration's message topic.
#[derive(Debug)]
pub(crate) struct Route {
    integration: IntegrationId,
    topic: TopicHandle,
    misses: AtomicU32,
    is_probing: AtomicBool,
    probe_at_ms: AtomicU64,
}

impl Route {
    fn new(integration: IntegrationId, topic: TopicHandle) -> Self {
        Self {
            integration,
            topic,
            misses: AtomicU32::new(0),
            is_probing: AtomicBool::new(false),
            probe_at_ms: AtomicU64::new(0),
        }
    }

    pub(crate) fn topic(&self) -> &TopicHandle {
        &self.topic
    }

    /// Whether a record may be tried. A topic that missed three deadlines takes one at a time, once a second: the
    /// next message is the probe.
    pub(crate) fn admits(&self, now_ms: u64) -> bool {
        if self.misses.load(Ordering::Relaxed) < MISSES_MAX {
            return true;
        }
        now_ms >= self.probe_at_ms.load(Ordering::Relaxed) && !self.is_probing.swap(true, Ordering::AcqRel)
    }

    /// What was admitted did not get as far as the bus.
    pub(crate) fn not_submitted(&self) {
        self.is_probing.store(false, Ordering::Release);
    }

    /// Takes note of an outcome.
    pub(crate) fn settled(&self, result: &Result<(), Error>, now_ms: u64, metrics: &Metrics) {
        match result {
            Err(Error::Unavailable(reason)) => {
                self.probe_at_ms.store(now_ms + PROBE_PAUSE_MS, Ordering::Relaxed);
                if self.misses.fetch_add(1, Ordering::AcqRel) + 1 == MISSES_MAX {
                    metrics.sick_topics.inc();
                    tracing::warn!(integration = %self.integration, %reason, "topic is only probed from now on");
                }
            }
            // The bus answered, whatever it said.
            Ok(()) | Err(_) => {
                if self.misses.load(Ordering::Relaxed) > 0
                    && self.misses.swap(0, Ordering::AcqRel) >= MISSES_MAX
                {
                    metrics.sick_topics.dec();
                    tracing::info!(integration = %self.integration, "topic is well again");
                }
            }
        }
        self.not_submitted();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subscriber {
    Client(u64),
    Integration(IntegrationId),
}

#[derive(Debug)]
enum Target {
    Client(Arc<Mailbox>, Options),
    Integration(Arc<Route>),
}

/// What one topic name matched.
#[derive(Debug, Default)]
pub(crate) struct Matches {
    clients: Vec<(Arc<Mailbox>, Options)>,
    /// Each once.
    pub(crate) routes: Vec<Arc<Route>>,
    tree: tree::Scratch,
}

impl Matches {
    /// Whether a connected client is among them.
    pub(crate) fn has_clients(&self) -> bool {
        !self.clients.is_empty()
    }
}

#[derive(Debug)]
struct Integration {
    route: Arc<Route>,
    filters: Vec<String>,
}

/// The subscriptions of clients and integrations.
#[derive(Debug)]
pub(crate) struct Router {
    tree: RwLock<Tree<Subscriber, Target>>,
    integrations: Mutex<HashMap<IntegrationId, Integration>>,
    writer: Arc<dyn Writer>,
    catalogue: Catalogue,
}

impl Router {
    pub(crate) fn new(writer: Arc<dyn Writer>, catalogue: Catalogue) -> Self {
        Self { tree: RwLock::default(), integrations: Mutex::default(), writer, catalogue }
    }

    /// Gives an integration these valid filters instead of those it had; none removes it. Returns how many
    /// integrations have filters.
    pub(crate) fn set_integration(&self, id: IntegrationId, filters: Vec<String>) -> usize {
        let mut integrations = self.integrations.lock();
        let held = integrations.remove(&id);
        let mut tree = self.tree.write();
        let Integration { route, filters: old } = held.unwrap_or_else(|| {
            let topic = self.writer.topic(&self.catalogue.messages(id, 1).name);
            Integration { route: Arc::new(Route::new(id, topic)), filters: Vec::new() }
        });
        for filter in old.iter().filter(|filter| !filters.contains(filter)) {
            tree.remove(filter, &Subscriber::Integration(id));
        }
        for filter in &filters {
            tree.insert(filter, Subscriber::Integration(id), Target::Integration(route.clone()));
        }
        if !filters.is_empty() {
            integrations.insert(id, Integration { route, filters });
        }
        integrations.len()
    }

    pub(crate) fn subscribe(&self, mailbox: &Arc<Mailbox>, filter: &str, options: Options) {
        let target = Target::Client(mailbox.clone(), options);
        self.tree.write().insert(filter, Subscriber::Client(mailbox.number), target);
    }

    pub(crate) fn unsubscribe(&self, connection: u64, filter: &str) {
        self.tree.write().remove(filter, &Subscriber::Client(connection));
    }

    /// Finds who gets a message on this topic from this connection, instead of what `matches` held.
    pub(crate) fn matching(&self, topic: &str, from: u64, matches: &mut Matches) {
        let Matches { clients, routes, tree: scratch } = matches;
        clients.clear();
        routes.clear();
        self.tree.read().matching(topic, scratch, |_, target| match target {
            Target::Client(mailbox, options) => {
                if !options.no_local || mailbox.number != from {
                    clients.push((mailbox.clone(), *options));
                }
            }
            Target::Integration(route) => routes.push(route.clone()),
        });
        if routes.len() > 1 {
            // Overlapping filters of one integration are one record.
            routes.sort_unstable_by_key(|route| route.integration);
            routes.dedup_by_key(|route| route.integration);
        }
    }

    /// Which clients would get a message on this topic, and by which filter, as far as `max` of them and about
    /// `bytes_max` of filters; and whether there are more.
    pub(crate) fn subscribers(
        &self,
        topic: &str,
        max: usize,
        bytes_max: usize,
    ) -> (Vec<(Arc<Mailbox>, String, Options)>, bool) {
        let (mut found, mut bytes, mut has_more) = (Vec::new(), 0, false);
        self.tree.read().matching_filters(topic, |filter, _, target| {
            let Target::Client(mailbox, options) = target else { return ControlFlow::Continue(()) };
            if found.len() >= max || bytes >= bytes_max {
                has_more = true;
                return ControlFlow::Break(());
            }
            bytes += filter.len() + mailbox.client().map_or(0, |client| client.id.len());
            found.push((mailbox.clone(), filter.to_owned(), *options));
            ControlFlow::Continue(())
        });
        (found, has_more)
    }

    /// Leaves the message with the matched clients: once for each, at the highest quality of its matching filters,
    /// with the identifiers of all of them (spec §1.13).
    pub(crate) fn deliver(message: &Arc<Message>, matches: &mut Matches, metrics: &Metrics) {
        let clients = &mut matches.clients;
        if clients.len() > 1 {
            // Stable: identifiers stay in the order in which they were found.
            clients.sort_by_key(|(mailbox, _)| mailbox.number);
        }
        for filters in clients.chunk_by(|one, other| one.0.number == other.0.number) {
            let qos = filters.iter().map(|(_, options)| options.qos).max().unwrap_or(Qos::AtMostOnce);
            let delivery = Delivery {
                message: message.clone(),
                qos: qos.min(message.qos),
                retain: message.retain && filters.iter().any(|(_, options)| options.retain_as_published),
                identifiers: filters.iter().filter_map(|(_, options)| options.identifier).collect(),
            };
            match filters[0].0.deliver(delivery) {
                Pushed::Queued => {
                    metrics.delivered.inc();
                }
                Pushed::Dropped => metrics.dropped(Dropped::QueueFull),
            }
        }
        clients.clear();
    }
}
