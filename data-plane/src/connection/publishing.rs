//! What a client publishes: to retained messages, clients, queues and integrations, and what waits until the bus has room.

use std::sync::Arc;

use tbmq_bus::{Outgoing, SubmitError};
use tbmq_mqtt::{
    packet::{Qos, ReasonCode},
    session::{Delivery, Message, Now},
};
use tbmq_service::trace::Span;

use super::Connection;
use crate::{
    mailbox::weight,
    metrics::{Drop as Dropped, Refusal},
    queues::{Full, Keep, Ticket},
    record, retained,
    route::{Route, Router},
    traced::{self, Sending},
    worker::{Of, Scratch},
};

/// A message of which the bus took not all records.
pub(super) struct Stalled {
    pub(super) number: Option<u64>,
    pub(super) message: Message,
    pub(super) routes: Vec<Arc<Route>>,
    /// Records submitted so far.
    pub(super) records: u32,
    /// Of the publish, if it is traced.
    pub(super) trace: Option<Arc<Span>>,
}

impl Connection {
    pub(super) fn publish(&mut self, now: Now, number: Option<u64>, message: Message, scratch: &mut Scratch) {
        let plane = self.plane.clone();
        plane.metrics.published.inc();
        let trace = traced::publish(&plane.tracer, &message);
        if let (Some(number), Some(turn)) = (number, scratch.turn) {
            self.waits.begin(number, turn, trace.as_ref());
        }
        let mut shared = None;
        let mut retaining = None;
        if message.retain && plane.limits.retain_available {
            // Shown before it is routed: who subscribes meanwhile gets it in one way or the other.
            let shared = shared.get_or_insert_with(|| Arc::new(message.detached()));
            match (plane.retained.publish(shared, now.epoch_ms), number) {
                (Ok(route), _) => retaining = Some(route),
                (Err(retained::Full), Some(number)) => {
                    // It is not taken at all: the client is to know that it is not retained.
                    self.session.refuse(number, ReasonCode::QuotaExceeded);
                    return self.session.routed(now, number, 0, true, &mut scratch.effects);
                }
                // A client can't be told of a QoS 0 publish, or of its will: only delivered.
                (Err(retained::Full), None) => {}
            }
        }
        plane.router.matching(&message.topic, &message.publisher, &mut scratch.matches);
        scratch.matches.routes.extend(retaining);
        let has_clients = scratch.matches.has_clients();
        if has_clients {
            // Those who are connected do not wait for the bus (architecture §4.15).
            let shared = shared.unwrap_or_else(|| Arc::new(message.detached()));
            let limiter = Some((&plane.limiter, now.monotonic_ms));
            Router::deliver(&shared, &mut scratch.matches, limiter, &plane.metrics);
        }
        let records = self.keep(number, &message, scratch);
        if scratch.matches.routes.is_empty() {
            if !has_clients {
                plane.metrics.unmatched.inc();
            }
            if let Some(number) = number {
                self.session.routed(now, number, records, has_clients, &mut scratch.effects);
            }
            return;
        }
        let mut routes = std::mem::take(&mut scratch.matches.routes);
        if self.stalled.is_empty() {
            let stalled = Stalled { number, message, routes: Vec::new(), records, trace };
            if let Some(stalled) = self.submit(now, stalled, &mut routes, scratch) {
                self.stalled.push_back(stalled);
            }
        } else {
            let (message, routes) = (message.detached(), std::mem::take(&mut routes));
            self.stalled.push_back(Stalled { number, message, routes, records, trace });
        }
        routes.clear();
        scratch.matches.routes = routes;
    }

    /// Puts a message into the queues of those who get it from there, and notes a QoS 2 publish of a client that may
    /// come again on another connection. Returns for how many records the acknowledgement waits.
    fn keep(&mut self, number: Option<u64>, message: &Message, scratch: &mut Scratch) -> u32 {
        let mut records = 0;
        for keep in scratch.matches.kept.drain(..) {
            if self.append(keep, number).is_ok() {
                records += 1;
            } else {
                self.refuse(number, ReasonCode::QuotaExceeded, Refusal::StoreFull);
            }
        }
        if message.qos == Qos::ExactlyOnce
            && number.is_some()
            && let Some(session) = self.mailbox.kept_as()
        {
            let ticket = Ticket { mailbox: self.mailbox.clone(), number, bytes: 0 };
            self.plane.queues.taken(&session, message.packet_id, ticket);
            records += 1;
            self.in_flight += 1;
        }
        records
    }

    /// Puts a delivery into a queue; the outcome comes back under the publish's number.
    fn append(&mut self, keep: Keep, number: Option<u64>) -> Result<(), Full> {
        let bytes = weight(&keep.delivery);
        self.plane.queues.append(keep, Ticket { mailbox: self.mailbox.clone(), number, bytes })?;
        self.in_flight += 1;
        self.in_flight_bytes += bytes;
        Ok(())
    }

    /// Puts a delivery into the session's own queue, where it outlives the process.
    pub(super) fn enqueue(&mut self, delivery: Delivery) {
        let Some(session) = self.mailbox.kept_as() else { return };
        let keep = Keep { mailbox: self.mailbox.clone(), session, delivery, coming: None };
        if self.append(keep, None).is_err() {
            self.plane.metrics.dropped(Dropped::QueueFull);
        }
    }

    /// A record of a retained message is not written.
    pub(super) fn not_retained(&self, route: &Route, message: &Message) {
        if route.is_for_retained() {
            self.plane.retained.refused(&message.topic);
        }
    }

    /// Submits one record for each route. Returns what the bus has no room for, to be tried again later.
    fn submit(
        &mut self,
        now: Now,
        publish: Stalled,
        routes: &mut Vec<Arc<Route>>,
        scratch: &mut Scratch,
    ) -> Option<Stalled> {
        let plane = self.plane.clone();
        let Stalled { number, message, mut records, trace, .. } = publish;
        scratch.record.clear();
        for (index, route) in routes.iter().enumerate() {
            if !route.admits(now.monotonic_ms) {
                self.not_retained(route, &message);
                self.refuse(number, ReasonCode::UnspecifiedError, Refusal::Probing);
                continue;
            }
            match self.submit_one(now, number, &message, route, trace.as_ref(), &mut scratch.record) {
                Ok(bytes) => {
                    records += 1;
                    self.in_flight += 1;
                    self.in_flight_bytes += bytes;
                    plane.metrics.records_submitted.inc();
                }
                Err(SubmitError::TopicFull) => {
                    route.not_submitted();
                    self.not_retained(route, &message);
                    self.refuse(number, ReasonCode::QuotaExceeded, Refusal::TopicFull);
                }
                Err(SubmitError::BusFull) => {
                    route.not_submitted();
                    plane.metrics.bus_full.inc();
                    let routes = routes.split_off(index);
                    let message = message.detached();
                    self.worker.await_room(&self.mailbox);
                    return Some(Stalled { number, message, routes, records, trace });
                }
            }
        }
        if let Some(number) = number {
            self.session.routed(now, number, records, true, &mut scratch.effects);
        }
        None
    }

    /// Submits the record for one route; `record` holds the integrations' one, or nothing yet.
    fn submit_one(
        &self,
        now: Now,
        number: Option<u64>,
        message: &Message,
        route: &Arc<Route>,
        trace: Option<&Arc<Span>>,
        record: &mut Vec<u8>,
    ) -> Result<usize, SubmitError> {
        let plane = &self.plane;
        let sending = trace.map(|publish| Sending::begin(publish, route.topic().name()));
        if route.is_for_retained() {
            let written = plane.retained.record(message, route.purpose, now.epoch_ms);
            let topic = Some(message.topic.detached());
            return self.worker.submit(
                &*plane.writer,
                route,
                written.outgoing(),
                &self.mailbox,
                Of { number, retained: topic, trace: sending.map(Box::new) },
            );
        }
        if record.is_empty() {
            let common_name = self.common_names.first().map(|name| &**name);
            record::encode(message, common_name, &plane.service_id, now.epoch_ms, record);
        }
        let headers = sending.as_ref().map_or_else(Vec::new, Sending::headers);
        let outgoing = Outgoing {
            partition: None,
            key: Some(message.topic.bytes()),
            value: Some(record),
            headers: &headers,
        };
        let of = Of { number, retained: None, trace: sending.map(Box::new) };
        self.worker.submit(&*plane.writer, route, outgoing, &self.mailbox, of)
    }

    fn refuse(&mut self, number: Option<u64>, reason: ReasonCode, refusal: Refusal) {
        self.plane.metrics.refused(refusal);
        match number {
            Some(number) => self.session.refuse(number, reason),
            None => self.plane.metrics.dropped(Dropped::BusRefused),
        }
    }

    pub(super) fn retry(&mut self, now: Now, scratch: &mut Scratch) {
        while let Some(mut stalled) = self.stalled.pop_front() {
            let mut routes = std::mem::take(&mut stalled.routes);
            if let Some(still) = self.submit(now, stalled, &mut routes, scratch) {
                self.stalled.push_front(still);
                return;
            }
            self.perform(now, scratch);
        }
    }

    /// Drops what the bus has had no room for since the connection ended.
    pub(super) fn give_up(&mut self, now: Now, scratch: &mut Scratch) {
        if self.stalled_by_ms.is_none_or(|by_ms| now.monotonic_ms < by_ms) {
            return;
        }
        self.stalled_by_ms = None;
        for stalled in std::mem::take(&mut self.stalled) {
            for route in &stalled.routes {
                self.not_retained(route, &stalled.message);
            }
            self.refuse(stalled.number, ReasonCode::UnspecifiedError, Refusal::BusFull);
            if let Some(number) = stalled.number {
                self.session.routed(now, number, stalled.records, true, &mut scratch.effects);
            }
        }
        self.perform(now, scratch);
    }
}
