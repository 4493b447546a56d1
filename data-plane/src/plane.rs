//! What all connections of the process share.

use std::{
    collections::BTreeMap,
    future::Future,
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tbmq_bus::Writer;
use tbmq_mqtt::session::{End, Limits, Options};
use tbmq_service::{drain::Drain, trace::Tracer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::{
    auth::Auth,
    config::Config,
    connection::Connection,
    group_queue,
    limit::Limiter,
    link::{Link, Visitor},
    listen::Arrival,
    mailbox::{Mailbox, QueueLimits},
    metrics::Metrics,
    queues::Queues,
    recorder::Recorder,
    retained::Retained,
    route::Router,
    session_records::SessionRecords,
    session_store::SessionStore,
    worker::{Clock, Worker},
};

#[derive(Debug)]
pub(crate) struct Plane {
    pub(crate) limits: Arc<Limits>,
    pub(crate) limiter: Limiter,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    pub(crate) router: Arc<Router>,
    pub(crate) retained: Arc<Retained>,
    pub(crate) registry: Registry,
    pub(crate) auth: Arc<Auth>,
    pub(crate) queues: Queues,
    /// Unless sessions end with the process.
    pub(crate) recorder: Option<Recorder>,
    pub(crate) writer: Arc<dyn Writer>,
    pub(crate) tracer: Tracer,
    pub(crate) service_id: Arc<str>,
    /// Records of one connection on their way to the bus.
    pub(crate) in_flight_max: usize,
    pub(crate) in_flight_bytes_max: usize,
    pub(crate) drain_timeout: Duration,
    /// The process ends.
    pub(crate) drain: Drain,
    /// No client is taken any more, and those that are here are sent away; the process stays.
    pub(crate) retiring: Drain,
    pub(crate) workers: Vec<Arc<Worker>>,
    queue: QueueLimits,
    connections_max: usize,
    /// Places for connections, whatever listener they come by.
    places: Arc<Semaphore>,
    next_number: AtomicU64,
    tasks: TaskTracker,
}

impl Plane {
    pub(crate) fn new(
        config: &Config,
        service_id: Arc<str>,
        writer: Arc<dyn Writer>,
        known: Known,
        sessions: Sessions,
        metrics: Metrics,
        tracer: Tracer,
    ) -> Arc<Self> {
        let mqtt = &config.mqtt;
        let workers = match mqtt.workers {
            0 => tokio::runtime::Handle::current().metrics().num_workers(),
            workers => workers,
        };
        let clock = Clock::new();
        let Known { router, retained, auth } = known;
        let Sessions { store, records } = sessions;
        let queued = &mqtt.persistent_session.device.persisted_messages;
        let queues = Queues::new(store, clock, metrics.clone(), queued.in_flight_bytes_max.get());
        let connections_max = mqtt.connections_max.get().min(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            limits: Arc::new(config.limits()),
            limiter: Limiter::new(mqtt, metrics.clone()),
            clock,
            registry: Registry::new(mqtt.sessions_limit, mqtt.takeover_by_other_users, metrics.clone()),
            auth,
            queues,
            recorder: records.map(|records| Recorder::new(records, metrics.clone())),
            metrics,
            router,
            retained,
            writer,
            tracer,
            service_id,
            in_flight_max: usize::from(mqtt.max_in_flight_msgs.get()).max(1) * 4,
            in_flight_bytes_max: mqtt.in_flight_bytes_max.get(),
            drain_timeout: mqtt.drain_timeout,
            drain: Drain::new(),
            retiring: Drain::new(),
            workers: (0..workers).map(|_| Worker::new()).collect(),
            queue: QueueLimits {
                messages: mqtt.outbound_queue_messages_max.get(),
                bytes: mqtt.outbound_queue_bytes_max.get(),
            },
            connections_max,
            places: Arc::new(Semaphore::new(connections_max)),
            next_number: AtomicU64::new(1),
            tasks: TaskTracker::new(),
        })
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.drain.is_draining()
    }

    /// A place for one more connection, if there is one.
    pub(crate) fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.places.clone().try_acquire_owned().ok()
    }

    /// Runs a task that [`Plane::end_all`] waits for.
    pub(crate) fn track(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Serves a connection in a task of its own.
    pub(crate) fn serve(self: &Arc<Self>, arrival: Arrival) {
        let since = arrival.since;
        let link = Link::new(arrival, &self.metrics);
        self.spawn(|plane, worker, mailbox| Connection::new(plane, worker, mailbox, link, since));
    }

    /// Serves a connection whose CONNECT was accepted and that found no session any more.
    pub(crate) fn serve_visitor(self: &Arc<Self>, visitor: Box<Visitor>) {
        self.spawn(|plane, worker, mailbox| Connection::of_visitor(plane, worker, mailbox, visitor));
    }

    /// Goes on with a session that has no connection.
    pub(crate) fn go_on(self: &Arc<Self>, session: Connection) {
        self.tasks.spawn(session.run());
    }

    fn spawn(self: &Arc<Self>, connection: impl FnOnce(Arc<Self>, Arc<Worker>, Arc<Mailbox>) -> Connection) {
        let (worker, mailbox) = self.seat();
        self.tasks.spawn(connection(self.clone(), worker, mailbox).run());
    }

    /// Adds a subscription of a session. A group of which a session is that outlives its connections has a queue.
    pub(crate) fn subscribe(self: &Arc<Self>, mailbox: &Arc<Mailbox>, filter: &str, options: Options) {
        if let Some(group) = self.router.subscribe(mailbox, filter, options)
            && mailbox.is_kept()
        {
            group_queue::begin(self, &group);
        }
    }

    /// Removes a subscription of a session, and the queue of a group that has no members any more.
    pub(crate) fn unsubscribe(&self, mailbox: &Mailbox, filter: &str) {
        if let Some(queue) = self.router.unsubscribe(mailbox.number, filter) {
            queue.end(&self.queues);
        }
    }

    /// What a session needs to begin.
    pub(crate) fn seat(&self) -> (Arc<Worker>, Arc<Mailbox>) {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let worker = self.workers[number as usize % self.workers.len()].clone();
        (worker, Arc::new(Mailbox::new(number, self.queue)))
    }

    /// Connections that have a place.
    pub(crate) fn connections(&self) -> usize {
        self.connections_max - self.places.available_permits()
    }

    /// Tells every client goodbye and waits until all connections are closed and all sessions have ended; bounded by
    /// the connections' own times.
    pub(crate) async fn end_all(&self) {
        for worker in &self.workers {
            worker.end_all(End::ShuttingDown);
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Whether something of sessions is on its way to where it is kept.
    pub(crate) fn is_keeping(&self) -> bool {
        self.queues.is_busy() || self.recorder.as_ref().is_some_and(Recorder::is_busy)
    }

    /// Records on their way to the bus.
    pub(crate) fn in_flight(&self) -> usize {
        self.workers.iter().map(|worker| worker.in_flight()).sum()
    }
}

/// What topics are read into.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) router: Arc<Router>,
    pub(crate) retained: Arc<Retained>,
    pub(crate) auth: Arc<Auth>,
}

/// Where sessions are kept.
#[derive(Debug)]
pub(crate) struct Sessions {
    pub(crate) store: Arc<dyn SessionStore>,
    /// Unless they end with the process.
    pub(crate) records: Option<SessionRecords>,
}

/// Which session has which client id, in the order of ids.
#[derive(Debug)]
pub(crate) struct Registry {
    clients: Mutex<Clients>,
    /// Sessions at a time, those of other nodes included; 0: no limit.
    max: usize,
    /// Sessions of other nodes, as far as is known.
    others: AtomicU64,
    /// Whether a client may take over the session of another user.
    is_common: bool,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Clients {
    connected: BTreeMap<Arc<str>, Arc<Mailbox>>,
    parked: BTreeMap<Arc<str>, Arc<Mailbox>>,
}

/// What becomes of a connection whose CONNECT was accepted.
#[derive(Debug)]
pub(crate) enum Admission {
    /// It has the client id, and begins a session.
    Open,
    /// There is a session that it is to go to.
    Visit(Arc<Mailbox>),
    /// There are too many sessions.
    Full,
    /// Another user has a session under the client id, and that is to stay so.
    Foreign,
}

impl Registry {
    pub(crate) fn new(max: usize, is_common: bool, metrics: Metrics) -> Self {
        Self { clients: Mutex::default(), max, others: AtomicU64::new(0), is_common, metrics }
    }

    /// Gives the client id to this connection. The session that has it, with or without a connection, ends
    /// (MQTT-3.1.4-3), unless it is to go on and outlives its connections.
    ///
    /// `is_full` is asked about a client that has no session, whether there are too many others of its kind. `begin` is called
    /// once the connection has the id and before anybody else can get it, with whether something of
    /// the session that ends may be kept: to forget that is the connection's business now.
    pub(crate) fn admit(
        &self,
        client_id: &Arc<str>,
        mailbox: &Arc<Mailbox>,
        resume: bool,
        is_full: impl FnOnce() -> bool,
        begin: impl FnOnce(bool),
    ) -> Admission {
        let mut clients = self.clients.lock();
        let old = clients.connected.get(client_id).or_else(|| clients.parked.get(client_id)).cloned();
        let was_kept = old.as_ref().is_some_and(|old| old.is_kept());
        match old {
            Some(old) if old.number == mailbox.number => {}
            Some(old) if !self.is_common && !is_same_user(&old, mailbox) => return Admission::Foreign,
            Some(old) if resume && old.is_kept() => return Admission::Visit(old),
            Some(old) => old.end(End::TakenOver),
            None if self.is_full(&clients) => {
                self.metrics.sessions_limit_reached.inc();
                return Admission::Full;
            }
            None if is_full() => return Admission::Full,
            None => {}
        }
        if clients.parked.remove(client_id).is_some() {
            self.metrics.sessions_parked.dec();
        }
        clients.connected.insert(client_id.clone(), mailbox.clone());
        begin(was_kept);
        Admission::Open
    }

    fn is_full(&self, clients: &Clients) -> bool {
        let others = usize::try_from(self.others.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        self.max > 0 && others.saturating_add(clients.connected.len() + clients.parked.len()) >= self.max
    }

    /// All other nodes have so many sessions.
    pub(crate) fn note_others(&self, sessions: u64) {
        self.others.store(sessions, Ordering::Relaxed);
    }

    /// Sessions, with and without a connection.
    pub(crate) fn sessions(&self) -> usize {
        let clients = self.clients.lock();
        clients.connected.len() + clients.parked.len()
    }

    /// The session with this number has no connection any more.
    pub(crate) fn park(&self, client_id: &Arc<str>, number: u64) {
        let mut clients = self.clients.lock();
        if let Some(mailbox) = take_own(&mut clients.connected, client_id, number) {
            clients.parked.insert(client_id.clone(), mailbox);
            self.metrics.sessions_parked.inc();
        }
    }

    /// The session with this number has a connection again.
    pub(crate) fn resume(&self, client_id: &Arc<str>, number: u64) {
        let mut clients = self.clients.lock();
        if let Some(mailbox) = take_own(&mut clients.parked, client_id, number) {
            clients.connected.insert(client_id.clone(), mailbox);
            self.metrics.sessions_parked.dec();
            self.metrics.sessions_resumed.inc();
        }
    }

    /// The session was there before the process, and has no connection.
    pub(crate) fn restore(&self, client_id: &Arc<str>, mailbox: &Arc<Mailbox>) {
        self.clients.lock().parked.insert(client_id.clone(), mailbox.clone());
        self.metrics.sessions_parked.inc();
    }

    /// Does something, if the session with this number has the client id, before anybody else can get it.
    pub(crate) fn while_own(&self, client_id: &str, number: u64, act: impl FnOnce()) {
        let clients = self.clients.lock();
        let mut owners = clients.connected.get(client_id).into_iter().chain(clients.parked.get(client_id));
        if owners.any(|mailbox| mailbox.number == number) {
            act();
        }
    }

    /// Takes the client id away from the session with this number, if it still has it; `end` is called then before
    /// anybody else can get it.
    pub(crate) fn remove(&self, client_id: &str, number: u64, end: impl FnOnce()) {
        let mut clients = self.clients.lock();
        let was_connected = take_own(&mut clients.connected, client_id, number).is_some();
        let was_parked = take_own(&mut clients.parked, client_id, number).is_some();
        if was_parked {
            self.metrics.sessions_parked.dec();
        }
        if was_connected || was_parked {
            end();
        }
    }

    /// Whoever is connected with this client id and session id, if one is wanted, and takes the id away, unless the session
    /// outlives its connection.
    pub(crate) fn take(&self, client_id: &str, session_id: Option<Uuid>) -> Option<Arc<Mailbox>> {
        let mut clients = self.clients.lock();
        let mailbox = clients.connected.get(client_id).cloned()?;
        if !mailbox.client().is_some_and(|client| client.is_session(session_id)) {
            return None;
        }
        if !mailbox.is_kept() {
            clients.connected.remove(client_id);
        }
        Some(mailbox)
    }

    /// The session with this client id, with or without a connection.
    pub(crate) fn session(&self, client_id: &str) -> Option<Arc<Mailbox>> {
        let clients = self.clients.lock();
        clients.connected.get(client_id).or_else(|| clients.parked.get(client_id)).cloned()
    }

    /// At most `max` sessions, with or without a connection, whose client ids come after this one. Each was introduced.
    pub(crate) fn sessions_after(&self, after: &str, max: usize) -> Vec<Arc<Mailbox>> {
        let range = || (Bound::Excluded(after), Bound::Unbounded);
        let clients = self.clients.lock();
        let mut connected = clients.connected.range::<str, _>(range()).peekable();
        let mut parked = clients.parked.range::<str, _>(range()).peekable();
        let next = || match (connected.peek(), parked.peek()) {
            (Some((one, _)), Some((other, _))) if other < one => parked.next(),
            (Some(_), _) => connected.next(),
            (None, _) => parked.next(),
        };
        std::iter::from_fn(next).take(max).map(|(_, mailbox)| mailbox.clone()).collect()
    }

    /// At most `max` connections whose client ids come after this one. Each was introduced.
    pub(crate) fn page(&self, after: &str, max: usize) -> Vec<Arc<Mailbox>> {
        let range = (Bound::Excluded(after), Bound::Unbounded);
        let clients = self.clients.lock();
        clients.connected.range::<str, _>(range).take(max).map(|(_, mailbox)| mailbox.clone()).collect()
    }

    /// How many clients are connected.
    pub(crate) fn len(&self) -> usize {
        self.clients.lock().connected.len()
    }
}

fn is_same_user(one: &Mailbox, other: &Mailbox) -> bool {
    let user = |mailbox: &Mailbox| mailbox.client().and_then(|client| client.username.clone());
    user(one) == user(other)
}

fn take_own(
    clients: &mut BTreeMap<Arc<str>, Arc<Mailbox>>,
    client_id: &str,
    number: u64,
) -> Option<Arc<Mailbox>> {
    clients
        .get(client_id)
        .is_some_and(|mailbox| mailbox.number == number)
        .then(|| clients.remove(client_id))?
}
