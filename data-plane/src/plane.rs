//! What all connections of the process share.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tbmq_bus::Writer;
use tbmq_mqtt::session::{End, Limits};
use tbmq_service::drain::Drain;
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use crate::{
    config::Config,
    connection::Connection,
    mailbox::{Mailbox, QueueLimits},
    metrics::Metrics,
    route::Router,
    worker::{Clock, Worker},
};

#[derive(Debug)]
pub(crate) struct Plane {
    pub(crate) limits: Arc<Limits>,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    pub(crate) router: Arc<Router>,
    pub(crate) registry: Registry,
    pub(crate) writer: Arc<dyn Writer>,
    pub(crate) service_id: String,
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
    connections: AtomicUsize,
    next_number: AtomicU64,
    tasks: TaskTracker,
}

impl Plane {
    pub(crate) fn new(
        config: &Config,
        service_id: String,
        writer: Arc<dyn Writer>,
        router: Arc<Router>,
        metrics: Metrics,
        drain: Drain,
    ) -> Arc<Self> {
        let mqtt = &config.mqtt;
        let workers = match mqtt.workers {
            0 => std::thread::available_parallelism().map_or(1, Into::into),
            workers => workers,
        };
        Arc::new(Self {
            limits: Arc::new(config.limits()),
            clock: Clock::new(),
            metrics,
            router,
            registry: Registry::default(),
            writer,
            service_id,
            in_flight_max: usize::from(mqtt.max_in_flight_msgs.get()).max(1) * 4,
            in_flight_bytes_max: mqtt.in_flight_bytes_max.get(),
            drain_timeout: mqtt.drain_timeout,
            drain,
            retiring: Drain::new(),
            workers: (0..workers).map(|_| Worker::new()).collect(),
            queue: QueueLimits {
                messages: mqtt.outbound_queue_messages_max.get(),
                bytes: mqtt.outbound_queue_bytes_max.get(),
            },
            connections_max: mqtt.connections_max.get(),
            connections: AtomicUsize::new(0),
            next_number: AtomicU64::new(1),
            tasks: TaskTracker::new(),
        })
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.drain.is_draining()
    }

    /// Serves a connection in a task of its own, or closes it at once when there are too many.
    pub(crate) fn serve(self: &Arc<Self>, stream: TcpStream) {
        self.metrics.accepted.inc();
        if self.connections.fetch_add(1, Ordering::Relaxed) >= self.connections_max {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            self.metrics.connection_limit_reached.inc();
            return;
        }
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let worker = self.workers[number as usize % self.workers.len()].clone();
        let mailbox = Arc::new(Mailbox::new(number, self.queue));
        let connection = Connection::new(self.clone(), worker, mailbox, stream);
        let plane = self.clone();
        self.tasks.spawn(async move {
            connection.run().await;
            plane.connections.fetch_sub(1, Ordering::Relaxed);
        });
    }

    /// Connections that are served.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Tells every client goodbye and waits until all connections are closed; bounded by the connections' own times.
    pub(crate) async fn end_all(&self) {
        for worker in &self.workers {
            worker.end_all(End::ShuttingDown);
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Records on their way to the bus.
    pub(crate) fn in_flight(&self) -> usize {
        self.workers.iter().map(|worker| worker.in_flight()).sum()
    }
}

/// Which connection has which client id, in the order of ids.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    clients: Mutex<BTreeMap<Arc<str>, Arc<Mailbox>>>,
}

impl Registry {
    /// Gives the client id to this connection; the one that had it is taken over (MQTT-3.1.4-3).
    pub(crate) fn admit(&self, client_id: &Arc<str>, mailbox: &Arc<Mailbox>) {
        let old = self.clients.lock().insert(client_id.clone(), mailbox.clone());
        if let Some(old) = old {
            old.end(End::TakenOver);
        }
    }

    /// Takes the client id away from this connection, if it still has it.
    pub(crate) fn remove(&self, client_id: &str, number: u64) {
        let mut clients = self.clients.lock();
        if clients.get(client_id).is_some_and(|mailbox| mailbox.number == number) {
            clients.remove(client_id);
        }
    }

    /// Takes the client id away from whoever has it.
    pub(crate) fn take(&self, client_id: &str) -> Option<Arc<Mailbox>> {
        self.clients.lock().remove(client_id)
    }

    /// The connection with this client id.
    pub(crate) fn get(&self, client_id: &str) -> Option<Arc<Mailbox>> {
        self.clients.lock().get(client_id).cloned()
    }

    /// At most `max` connections whose client ids come after this one. Each was introduced.
    pub(crate) fn page(&self, after: &str, max: usize) -> Vec<Arc<Mailbox>> {
        let range = (Bound::Excluded(after), Bound::Unbounded);
        self.clients.lock().range::<str, _>(range).take(max).map(|(_, mailbox)| mailbox.clone()).collect()
    }

    /// How many clients are connected.
    pub(crate) fn len(&self) -> usize {
        self.clients.lock().len()
    }
}
