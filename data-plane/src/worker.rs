//! What a group of connections shares: the completion queue and who waits for which ticket, deadlines, buffers.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use parking_lot::Mutex;
use slab::Slab;
use tbmq_bus::{Completion, CompletionQueue, Error, Outgoing, SubmitError, Writer};
use tbmq_mqtt::{
    packet::{ReasonCode, Text},
    session::{Delivery, Effect, End, Now},
};
use tokio_util::sync::CancellationToken;

use crate::{
    mailbox::{Mail, Mailbox, Outcome},
    metrics::{Drop as Dropped, Metrics, Refusal},
    retained::Retained,
    route::{Matches, Route},
    session_store::Seq,
    traced::Sending,
};

/// How exact deadlines are.
const TICK: Duration = Duration::from_millis(100);

/// Bytes that are read at once.
pub(crate) const READ_BYTES: usize = 32 << 10;

/// Buffers and scratch spaces kept for the next turn of some connection.
const POOLED_MAX: usize = 64;

/// The clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { origin: Instant::now() }
    }

    pub(crate) fn now(&self) -> Now {
        Now { monotonic_ms: self.origin.elapsed().as_millis() as u64, epoch_ms: tbmq_service::time::now_ms() }
    }
}

/// Space that a connection needs while it is worked on, and not when it is idle.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// When the turn began.
    pub(crate) turn: Option<Instant>,
    pub(crate) mail: Mail,
    pub(crate) effects: Vec<Effect>,
    pub(crate) working: Vec<Effect>,
    pub(crate) deliveries: Vec<Delivery>,
    pub(crate) queued: Vec<(Seq, Delivery)>,
    pub(crate) matches: Matches,
    pub(crate) record: Vec<u8>,
    /// Packets of this turn, to be counted at its end.
    pub(crate) packets_received: u64,
    pub(crate) packets_sent: u64,
}

/// A group of connections.
#[derive(Debug)]
pub(crate) struct Worker {
    completions: Arc<CompletionQueue>,
    /// Records in flight by ticket; bounded by the writer's budget.
    flights: Mutex<Slab<Flight>>,
    /// Connections that wait for room on the bus.
    stalled: Mutex<Vec<Arc<Mailbox>>>,
    /// By deadline (monotonic ms) and connection: at most one entry for each connection.
    deadlines: Mutex<BTreeMap<(u64, u64), Arc<Mailbox>>>,
    connections: Mutex<HashMap<u64, Arc<Mailbox>>>,
    buffers: Mutex<Vec<BytesMut>>,
    scratches: Mutex<Vec<Scratch>>,
}

#[derive(Debug)]
struct Flight {
    mailbox: Arc<Mailbox>,
    bytes: usize,
    route: Arc<Route>,
    of: Of,
}

/// What a record is of.
#[derive(Debug)]
pub(crate) struct Of {
    /// The publish.
    pub(crate) number: Option<u64>,
    /// The topic, when it is the record of a retained message.
    pub(crate) retained: Option<Text>,
    /// The record's span, if the publish is traced.
    pub(crate) trace: Option<Box<Sending>>,
}

impl Worker {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            completions: CompletionQueue::new(),
            flights: Mutex::default(),
            stalled: Mutex::default(),
            deadlines: Mutex::default(),
            connections: Mutex::default(),
            buffers: Mutex::default(),
            scratches: Mutex::default(),
        })
    }

    /// Adds a connection.
    pub(crate) fn enter(&self, mailbox: &Arc<Mailbox>) {
        self.connections.lock().insert(mailbox.number, mailbox.clone());
    }

    /// Removes a connection with its deadline.
    pub(crate) fn leave(&self, number: u64, armed_ms: Option<u64>) {
        self.connections.lock().remove(&number);
        if let Some(armed_ms) = armed_ms {
            self.deadlines.lock().remove(&(armed_ms, number));
        }
    }

    /// Tells all connections to end.
    pub(crate) fn end_all(&self, end: End) {
        for mailbox in self.connections.lock().values() {
            mailbox.end(end);
        }
    }

    /// Sets a connection's deadline, replacing the one that it had.
    pub(crate) fn arm(&self, mailbox: &Arc<Mailbox>, old_ms: Option<u64>, deadline_ms: u64) {
        let mut deadlines = self.deadlines.lock();
        if let Some(old_ms) = old_ms {
            deadlines.remove(&(old_ms, mailbox.number));
        }
        deadlines.insert((deadline_ms, mailbox.number), mailbox.clone());
    }

    /// Wakes a connection when the bus may have room again.
    pub(crate) fn await_room(&self, mailbox: &Arc<Mailbox>) {
        self.stalled.lock().push(mailbox.clone());
    }

    /// Hands a record to the bus. Its outcome comes to the connection's mailbox.
    pub(crate) fn submit(
        &self,
        writer: &dyn Writer,
        route: &Arc<Route>,
        record: Outgoing<'_>,
        mailbox: &Arc<Mailbox>,
        of: Of,
    ) -> Result<usize, SubmitError> {
        let bytes = record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len);
        let mut flights = self.flights.lock();
        let entry = flights.vacant_entry();
        if let Err(error) = writer.submit(route.topic(), record, entry.key() as u64, &self.completions) {
            if let Some(sending) = of.trace {
                (*sending).refused(error);
            }
            return Err(error);
        }
        entry.insert(Flight { mailbox: mailbox.clone(), bytes, route: route.clone(), of });
        Ok(bytes)
    }

    /// Records in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.flights.lock().len()
    }

    /// An empty buffer with room for a read.
    pub(crate) fn buffer(&self) -> BytesMut {
        let mut buffer = self.buffers.lock().pop().unwrap_or_default();
        buffer.reserve(READ_BYTES);
        buffer
    }

    /// Takes a buffer back.
    pub(crate) fn give_buffer(&self, mut buffer: BytesMut) {
        // One that grew for a large packet is not kept.
        if buffer.capacity() <= 4 * READ_BYTES {
            buffer.clear();
            let mut buffers = self.buffers.lock();
            if buffers.len() < POOLED_MAX {
                buffers.push(buffer);
            }
        }
    }

    pub(crate) fn scratch(&self) -> Scratch {
        self.scratches.lock().pop().unwrap_or_default()
    }

    pub(crate) fn give_scratch(&self, scratch: Scratch) {
        let mut scratches = self.scratches.lock();
        if scratches.len() < POOLED_MAX {
            scratches.push(scratch);
        }
    }

    /// Hands outcomes and deadlines on until it is stopped.
    pub(crate) async fn run(
        &self,
        clock: Clock,
        metrics: &Metrics,
        retained: &Retained,
        stop: CancellationToken,
    ) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut batch = Vec::new();
        let mut flights = Vec::new();
        loop {
            tokio::select! {
                () = self.completions.wait(&mut batch) => {
                    self.settle(&mut batch, &mut flights, clock, metrics, retained);
                    self.wake_stalled();
                }
                _ = ticks.tick() => {
                    self.wake_due(clock.now().monotonic_ms);
                    // Another worker's outcomes make room as well, and nobody tells us.
                    self.wake_stalled();
                }
                () = stop.cancelled() => return,
            }
        }
    }

    fn settle(
        &self,
        batch: &mut Vec<Completion>,
        flights: &mut Vec<(Flight, Result<(), Error>)>,
        clock: Clock,
        metrics: &Metrics,
        retained: &Retained,
    ) {
        {
            let mut held = self.flights.lock();
            for completion in batch.drain(..) {
                match held.try_remove(completion.ticket as usize) {
                    Some(flight) => flights.push((flight, completion.result.map(|_| ()))),
                    None => tracing::error!(ticket = completion.ticket, "outcome of an unknown ticket"),
                }
            }
        }
        let now_ms = clock.now().monotonic_ms;
        let mut written = 0;
        for (flight, result) in flights.drain(..) {
            let Flight { mailbox, bytes, route, of } = flight;
            route.settled(&result, now_ms, metrics);
            if let Some(sending) = of.trace {
                (*sending).settled(&result);
            }
            let result = match result {
                Ok(()) => {
                    written += 1;
                    Ok(())
                }
                Err(error) => {
                    if let Some(topic) = &of.retained {
                        retained.refused(topic);
                    }
                    metrics.refused(match error {
                        Error::Unavailable(_) => Refusal::Unavailable,
                        Error::UnknownTopic(_) => Refusal::UnknownTopic,
                        Error::Fenced(_) | Error::Refused(_) => Refusal::Other,
                    });
                    if of.number.is_none() {
                        metrics.dropped(Dropped::BusRefused);
                    }
                    Err(ReasonCode::UnspecifiedError)
                }
            };
            mailbox.settle(Outcome::Record { number: of.number, bytes, result });
        }
        metrics.records_written.inc_by(written);
    }

    fn wake_stalled(&self) {
        let stalled = std::mem::take(&mut *self.stalled.lock());
        for mailbox in stalled {
            mailbox.room();
        }
    }

    fn wake_due(&self, now_ms: u64) {
        let due = {
            let mut deadlines = self.deadlines.lock();
            if deadlines.first_key_value().is_none_or(|((deadline_ms, _), _)| *deadline_ms > now_ms) {
                return;
            }
            let later = deadlines.split_off(&(now_ms + 1, 0));
            std::mem::replace(&mut *deadlines, later)
        };
        for mailbox in due.into_values() {
            mailbox.due();
        }
    }
}
