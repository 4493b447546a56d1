//! Who gets a message: the subscription tree with clients, shared subscriptions and integrations, and the health of the
//! topics of the bus that messages are written to.

use std::{
    collections::{BTreeMap, HashMap},
    ops::{Bound, ControlFlow},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};
use tbmq_bus::{Error, TopicHandle, Writer};
use tbmq_mqtt::{
    packet::Qos,
    session::{Delivery, Message, Options},
    topic,
    tree::Tree,
};
use tbmq_proto::{ids::IntegrationId, topic::Catalogue};

use crate::{
    group::{Given, Group},
    group_queue::GroupQueue,
    limit::Limiter,
    mailbox::{Mailbox, Pushed},
    metrics::{Drop as Dropped, Metrics},
    queues::Keep,
};

/// Deadlines that a topic may miss in a row before it is only probed (architecture §4.14).
const MISSES_MAX: u32 = 3;

/// Time between two probes, ms.
const PROBE_PAUSE_MS: u64 = 1000;

/// What a record of a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// An integration gets the message.
    Integration(IntegrationId),
    /// The message is retained.
    Retain,
    /// The topic's retained message is removed.
    Forget,
}

/// A topic of the bus that records of messages go to.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) purpose: Purpose,
    topic: TopicHandle,
    misses: AtomicU32,
    is_probing: AtomicBool,
    probe_at_ms: AtomicU64,
}

impl Route {
    pub(crate) fn new(purpose: Purpose, topic: TopicHandle) -> Self {
        Self {
            purpose,
            topic,
            misses: AtomicU32::new(0),
            is_probing: AtomicBool::new(false),
            probe_at_ms: AtomicU64::new(0),
        }
    }

    /// Whether its records are those of retained messages.
    pub(crate) fn is_for_retained(&self) -> bool {
        matches!(self.purpose, Purpose::Retain | Purpose::Forget)
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
                    tracing::warn!(topic = %self.topic.name(), %reason, "topic is only probed from now on");
                }
            }
            // The bus answered, whatever it said.
            Ok(()) | Err(_) => {
                if self.misses.load(Ordering::Relaxed) > 0
                    && self.misses.swap(0, Ordering::AcqRel) >= MISSES_MAX
                {
                    metrics.sick_topics.dec();
                    tracing::info!(topic = %self.topic.name(), "topic is well again");
                }
            }
        }
        self.not_submitted();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Subscriber {
    Client(u64),
    Group(u64),
    Integration(IntegrationId),
}

#[derive(Debug)]
enum Target {
    Client(Arc<Mailbox>, Options),
    Group(Arc<Group>),
    Integration(Arc<Route>),
}

/// What one topic name matched.
#[derive(Debug, Default)]
pub(crate) struct Matches {
    clients: Vec<(Arc<Mailbox>, Options)>,
    groups: Vec<Arc<Group>>,
    /// Each once.
    pub(crate) routes: Vec<Arc<Route>>,
    /// Deliveries that belong into queues, after [`Router::deliver`].
    pub(crate) kept: Vec<Keep>,
}

impl Matches {
    /// Whether a connected client, or a shared subscription, is among them.
    pub(crate) fn has_clients(&self) -> bool {
        !self.clients.is_empty() || !self.groups.is_empty()
    }
}

#[derive(Debug)]
struct Integration {
    route: Arc<Route>,
    filters: Vec<String>,
}

/// The subscriptions of clients and integrations.
///
/// Locks are taken in the order of the fields.
#[derive(Debug)]
pub(crate) struct Router {
    /// Shared subscriptions with members, by their whole filters.
    groups: Mutex<BTreeMap<Arc<str>, Arc<Group>>>,
    tree: RwLock<Tree<Subscriber, Target>>,
    /// Subscriptions of clients, those of groups included.
    subscriptions: AtomicUsize,
    next_group: AtomicU64,
    integrations: Mutex<HashMap<IntegrationId, Integration>>,
    writer: Arc<dyn Writer>,
    catalogue: Catalogue,
}

impl Router {
    pub(crate) fn new(writer: Arc<dyn Writer>, catalogue: Catalogue) -> Self {
        Self {
            groups: Mutex::default(),
            tree: RwLock::default(),
            subscriptions: AtomicUsize::new(0),
            next_group: AtomicU64::new(0),
            integrations: Mutex::default(),
            writer,
            catalogue,
        }
    }

    /// Subscriptions of clients.
    pub(crate) fn subscriptions(&self) -> usize {
        self.subscriptions.load(Ordering::Relaxed)
    }

    /// Pairs of subscriber and filter.
    pub(crate) fn tree_size(&self) -> usize {
        self.tree.read().len()
    }

    /// Shared subscriptions that have members.
    pub(crate) fn groups(&self) -> usize {
        self.groups.lock().len()
    }

    /// At most `max` shared subscriptions whose whole filters come after this one.
    pub(crate) fn groups_after(&self, after: &str, max: usize) -> Vec<Arc<Group>> {
        let range = (Bound::Excluded(after), Bound::Unbounded);
        self.groups.lock().range::<str, _>(range).take(max).map(|(_, group)| group.clone()).collect()
    }

    /// Gives an integration these valid filters instead of those it had; none removes it. Returns how many
    /// integrations have filters.
    pub(crate) fn set_integration(&self, id: IntegrationId, filters: Vec<String>) -> usize {
        let mut integrations = self.integrations.lock();
        let held = integrations.remove(&id);
        let mut tree = self.tree.write();
        let Integration { route, filters: old } = held.unwrap_or_else(|| {
            let topic = self.writer.topic(&self.catalogue.messages(id, 1).name);
            Integration { route: Arc::new(Route::new(Purpose::Integration(id), topic)), filters: Vec::new() }
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

    /// Returns the group of a shared subscription.
    pub(crate) fn subscribe(
        &self,
        mailbox: &Arc<Mailbox>,
        filter: &str,
        options: Options,
    ) -> Option<Arc<Group>> {
        let mut joined = None;
        let is_new = if let Ok(Some((_, plain))) = topic::shared(filter) {
            let mut groups = self.groups.lock();
            let group = groups.get(filter).cloned().unwrap_or_else(|| {
                let group = Arc::new(Group::new(self.next_group.fetch_add(1, Ordering::Relaxed), filter));
                let target = Target::Group(group.clone());
                self.tree.write().insert(plain, Subscriber::Group(group.number), target);
                groups.insert(group.filter.clone(), group.clone());
                group
            });
            let is_new = group.join(mailbox, options);
            joined = Some(group);
            is_new
        } else {
            let target = Target::Client(mailbox.clone(), options);
            self.tree.write().insert(filter, Subscriber::Client(mailbox.number), target).is_none()
        };
        if is_new {
            self.subscriptions.fetch_add(1, Ordering::Relaxed);
        }
        joined
    }

    /// Returns the queue of a shared subscription that has no members any more.
    pub(crate) fn unsubscribe(&self, connection: u64, filter: &str) -> Option<Arc<GroupQueue>> {
        let mut left = None;
        let was_there = if let Ok(Some((_, plain))) = topic::shared(filter) {
            let mut groups = self.groups.lock();
            let group = groups.get(filter)?;
            let (was_member, has_others) = group.leave(connection);
            if !has_others {
                left = group.end_queue();
                self.tree.write().remove(plain, &Subscriber::Group(group.number));
                groups.remove(filter);
            }
            was_member
        } else {
            self.tree.write().remove(filter, &Subscriber::Client(connection)).is_some()
        };
        if was_there {
            self.subscriptions.fetch_sub(1, Ordering::Relaxed);
        }
        left
    }

    /// Gives what a member of a shared subscription, which is not there any more, has left undone to another member.
    pub(crate) fn deliver_again(&self, delivery: &Delivery) -> Given {
        let group = delivery.group.as_ref().and_then(|filter| self.groups.lock().get(filter).cloned());
        group.map_or(Given::Nobody, |group| group.deliver_again(&delivery.message))
    }

    /// Finds who gets a message on this topic from this client, instead of what `matches` held.
    pub(crate) fn matching(&self, topic: &str, publisher: &str, matches: &mut Matches) {
        let Matches { clients, groups, routes, .. } = matches;
        clients.clear();
        groups.clear();
        routes.clear();
        self.tree.read().matching(topic, |_, target| match target {
            Target::Client(mailbox, options) => {
                if !options.no_local || !mailbox.is_of(publisher) {
                    clients.push((mailbox.clone(), *options));
                }
            }
            Target::Group(group) => groups.push(group.clone()),
            Target::Integration(route) => routes.push(route.clone()),
        });
        if routes.len() > 1 {
            // Overlapping filters of one integration are one record.
            routes.sort_unstable_by_key(|route| route.purpose);
            routes.dedup_by_key(|route| route.purpose);
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
            let mut note = |filter: &str, mailbox: &Arc<Mailbox>, options: &Options| {
                has_more = found.len() >= max || bytes >= bytes_max;
                if !has_more {
                    bytes += filter.len() + mailbox.client().map_or(0, |client| client.id.len());
                    found.push((mailbox.clone(), filter.to_owned(), *options));
                }
                !has_more
            };
            let goes_on = match target {
                Target::Client(mailbox, options) => note(filter, mailbox, options),
                Target::Group(group) => {
                    group.members(|mailbox, options| note(&group.filter, mailbox, options))
                }
                Target::Integration(_) => true,
            };
            if goes_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        (found, has_more)
    }

    /// Leaves the message with the matched clients, or in [`Matches::kept`]: once for each, at the highest quality of its
    /// matching filters, with the identifiers of all of them (spec §1.13); and with one member of each matched shared
    /// subscription. What the limiter has no room for is dropped.
    pub(crate) fn deliver(
        message: &Arc<Message>,
        matches: &mut Matches,
        limiter: Option<(&Limiter, u64)>,
        metrics: &Metrics,
    ) {
        let Matches { clients, groups, kept, .. } = matches;
        let mut delivered = 0;
        if clients.len() > 1 {
            // Stable: identifiers stay in the order in which they were found.
            clients.sort_by_key(|(mailbox, _)| mailbox.number);
        }
        let is_same = |one: &(Arc<Mailbox>, _), other: &(Arc<Mailbox>, _)| one.0.number == other.0.number;
        let mut room = limiter.map_or(usize::MAX, |(limiter, now_ms)| {
            limiter.receivers(now_ms, || clients.chunk_by(is_same).count() + groups.len())
        });
        for filters in clients.chunk_by(is_same).take(room) {
            room -= 1;
            let qos = filters.iter().map(|(_, options)| options.qos).max().unwrap_or(Qos::AtMostOnce);
            let delivery = Delivery {
                message: message.clone(),
                qos: qos.min(message.qos),
                retain: message.retain && filters.iter().any(|(_, options)| options.retain_as_published),
                identifiers: filters.iter().filter_map(|(_, options)| options.identifier).collect(),
                group: None,
            };
            match filters[0].0.deliver(delivery) {
                Pushed::Queued => delivered += 1,
                Pushed::Dropped => metrics.dropped(Dropped::QueueFull),
                Pushed::Away => {}
                Pushed::Keep(session, delivery) => {
                    let mailbox = filters[0].0.clone();
                    kept.push(Keep { mailbox, session, delivery, coming: None });
                }
            }
        }
        clients.clear();
        for group in groups.drain(..).take(room) {
            match group.deliver(message) {
                Given::Taken => delivered += 1,
                Given::Keep(keep) => kept.push(keep),
                Given::Nobody => metrics.dropped(Dropped::NoMember),
            }
        }
        if let Some((limiter, now_ms)) = limiter {
            kept.truncate(limiter.queues(now_ms, kept.len()));
        }
        if delivered > 0 {
            metrics.delivered.inc_by(delivered);
        }
    }
}
