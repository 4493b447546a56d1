//! One connection: one task that owns the socket and the session machine, and carries the machine's effects out.
//!
//! While nothing happens it holds no buffer: what it needs for a turn comes from the worker, and only the bytes of an
//! incomplete packet, or what the client does not take, stay with it. Each turn reads as much as is there, routes it,
//! and writes all answers at once.

use std::{
    collections::VecDeque,
    future::Future as _,
    io,
    net::Shutdown,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::{Buf as _, BytesMut};
use socket2::SockRef;
use tbmq_bus::{Outgoing, SubmitError};
use tbmq_mqtt::{
    codec::{self, decode, encode},
    packet::{Connect, Packet, ProtocolVersion, ReasonCode, Text},
    session::{Effect, End, Message, Now, Session},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWrite as _},
    net::TcpStream,
};

use crate::{
    mailbox::{Client, Mail, Mailbox, is_patient},
    metrics::{Drop as Dropped, DropLabel, EndLabel, Refusal},
    plane::Plane,
    record,
    route::{Route, Router},
    worker::{READ_BYTES, Scratch, Worker},
};

/// Reads of one turn, so that a busy client leaves time for the others.
const READS_PER_TURN: usize = 4;

/// Bytes that wait for the client at which nothing is added, except answers to what was read already.
const OUTPUT_HIGH_WATER: usize = 256 << 10;

/// Deliveries taken from the mailbox at once.
const DELIVERIES_PER_TURN: usize = 256;

/// How long the last packets may take to be written, and the client to close its side.
const CLOSE_MS: u64 = 2000;

pub(crate) struct Connection {
    plane: Arc<Plane>,
    worker: Arc<Worker>,
    mailbox: Arc<Mailbox>,
    stream: TcpStream,
    session: Session,
    /// Bytes of an incomplete packet, or packets that may not be handled yet.
    input: Option<BytesMut>,
    output: Option<BytesMut>,
    /// Records of ours on their way to the bus.
    in_flight: usize,
    in_flight_bytes: usize,
    /// Messages of which the bus took not all records: one publish, and the will after it.
    stalled: VecDeque<Stalled>,
    /// Not reading for a reason of the server.
    is_held: bool,
    armed_ms: Option<u64>,
    farewell: Option<Farewell>,
    ending: Option<Ending>,
}

struct Stalled {
    number: Option<u64>,
    message: Message,
    routes: Vec<Arc<Route>>,
    /// Records submitted so far.
    records: u32,
}

/// The end that waits for acknowledgements under way, and how long.
#[derive(Clone, Copy)]
struct Farewell {
    end: End,
    by_ms: u64,
}

struct Ending {
    by_ms: u64,
    /// Our side is shut, and what the client still sends is thrown away: closing at once would make the system reset
    /// the connection, and the client lose our last packet.
    is_lingering: bool,
    is_done: bool,
}

impl Connection {
    pub(crate) fn new(
        plane: Arc<Plane>,
        worker: Arc<Worker>,
        mailbox: Arc<Mailbox>,
        stream: TcpStream,
    ) -> Self {
        let session = Session::new(plane.limits.clone(), plane.clock.now());
        Self {
            plane,
            worker,
            mailbox,
            stream,
            session,
            input: None,
            output: None,
            in_flight: 0,
            in_flight_bytes: 0,
            stalled: VecDeque::new(),
            is_held: false,
            armed_ms: None,
            farewell: None,
            ending: None,
        }
    }

    /// Serves the client until the connection is closed.
    pub(crate) async fn run(mut self) {
        self.worker.enter(&self.mailbox);
        if self.plane.is_draining() {
            self.mailbox.end(End::ShuttingDown);
        } else if self.plane.retiring.is_draining() {
            self.mailbox.end(End::Moved);
        }
        self.plane.metrics.connections.inc();
        std::future::poll_fn(|cx| self.poll(cx)).await;
        self.plane.metrics.connections.dec();
        self.worker.leave(self.mailbox.number, self.armed_ms);
        self.plane.metrics.dropped_by(Dropped::Disconnected, self.mailbox.close());
        self.plane.metrics.dropped_by(Dropped::BusRefused, self.stalled.len());
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = self.plane.clock.now();
        let worker = self.worker.clone();
        let mut scratch = worker.scratch();
        self.mailbox.register(cx.waker());
        self.take_mail(now, &mut scratch);
        let has_more = self.take_deliveries(now, &mut scratch);
        let is_waiting = self.read(cx, now, &mut scratch);
        self.flush(cx, now, &mut scratch);
        self.drain(now, &mut scratch);
        self.linger(cx);
        worker.give_scratch(scratch);
        self.hold(now);
        self.arm(now);
        if self.is_done(now) {
            return Poll::Ready(());
        }
        // What became possible only now has no event of its own.
        if self.may_read() && !is_waiting || has_more && self.delivery_room() > 0 {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn take_mail(&mut self, now: Now, scratch: &mut Scratch) {
        let mut mail = std::mem::take(&mut scratch.mail);
        if self.mailbox.take(&mut mail) {
            for outcome in mail.outcomes.drain(..) {
                self.in_flight -= 1;
                self.in_flight_bytes -= outcome.bytes;
                if let Some(number) = outcome.number {
                    self.session.written(now, number, outcome.result, &mut scratch.effects);
                }
            }
            if mail.is_due {
                self.armed_ms = None;
                self.session.tick(now, &mut scratch.effects);
            }
            if mail.has_overflowed {
                self.session.end(now, End::SlowConsumer, &mut scratch.effects);
            }
            match mail.command {
                // Acknowledgements that are under way come first.
                Some(end) if is_patient(end) => {
                    let by_ms = now.monotonic_ms + self.plane.drain_timeout.as_millis() as u64;
                    self.farewell.get_or_insert(Farewell { end, by_ms });
                }
                Some(end) => self.session.end(now, end, &mut scratch.effects),
                None => {}
            }
            if let Some(question) = mail.question
                && self.session.is_connected()
            {
                let filters = self.session.filters();
                // Who has asked may have gone away.
                question.send(filters.map(|(filter, options)| (filter.clone(), *options)).collect()).ok();
            }
            let has_room = mail.has_room;
            scratch.mail = Mail { outcomes: mail.outcomes, ..Mail::default() };
            self.perform(now, scratch);
            if has_room {
                self.retry(now, scratch);
            }
        } else {
            scratch.mail = mail;
        }
    }

    /// Returns whether deliveries are left in the mailbox.
    fn take_deliveries(&mut self, now: Now, scratch: &mut Scratch) -> bool {
        let mut has_more = true;
        loop {
            let room = self.delivery_room().min(DELIVERIES_PER_TURN);
            if room == 0 || !has_more {
                return has_more;
            }
            let mut deliveries = std::mem::take(&mut scratch.deliveries);
            has_more = self.mailbox.take_deliveries(room, OUTPUT_HIGH_WATER, &mut deliveries);
            for delivery in deliveries.drain(..) {
                self.session.deliver(now, delivery, &mut scratch.effects);
            }
            scratch.deliveries = deliveries;
            self.perform(now, scratch);
        }
    }

    fn delivery_room(&self) -> usize {
        if self.output_bytes() < OUTPUT_HIGH_WATER { self.session.delivery_room() } else { 0 }
    }

    fn output_bytes(&self) -> usize {
        self.output.as_ref().map_or(0, BytesMut::len)
    }

    fn may_read(&self) -> bool {
        self.ending.is_none()
            && self.farewell.is_none()
            && !self.session.is_closed()
            && !self.must_hold()
            && self.output_bytes() < OUTPUT_HIGH_WATER
    }

    /// Whether the server is the reason for not reading.
    fn must_hold(&self) -> bool {
        !self.stalled.is_empty()
            || self.session.is_saturated()
            || self.in_flight >= self.plane.in_flight_max
            || self.in_flight_bytes >= self.plane.in_flight_bytes_max
    }

    fn hold(&mut self, now: Now) {
        let must_hold = self.must_hold();
        if must_hold && !self.is_held {
            // A full bus has a counter of its own.
            if self.stalled.is_empty() {
                self.plane.metrics.in_flight_limit_reached.inc();
            }
            self.session.pause_keep_alive();
        } else if !must_hold && self.is_held {
            self.session.resume_keep_alive(now);
        }
        self.is_held = must_hold;
    }

    /// Reads and handles packets. Returns whether the socket will wake us when it has more.
    fn read(&mut self, cx: &mut Context<'_>, now: Now, scratch: &mut Scratch) -> bool {
        if !self.may_read() {
            return false;
        }
        let mut buffer = self.input.take().unwrap_or_default();
        let mut reads = 0;
        let is_waiting = loop {
            self.handle(now, &mut buffer, scratch);
            if !self.may_read() || reads == READS_PER_TURN {
                break false;
            }
            if buffer.capacity() == 0 {
                buffer = self.worker.buffer();
            } else if buffer.capacity() - buffer.len() < READ_BYTES / 4 {
                buffer.reserve(READ_BYTES);
            }
            let polled = pin!(self.stream.read_buf(&mut buffer)).poll(cx);
            match polled {
                Poll::Ready(Ok(0)) => {
                    self.end(now, End::Network, scratch);
                    break false;
                }
                Poll::Ready(Ok(_)) => reads += 1,
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "can't read");
                    self.end(now, End::Network, scratch);
                    break false;
                }
                Poll::Pending => break true,
            }
        };
        if buffer.is_empty() {
            self.worker.give_buffer(buffer);
        } else {
            self.input = Some(buffer);
        }
        is_waiting
    }

    fn handle(&mut self, now: Now, buffer: &mut BytesMut, scratch: &mut Scratch) {
        let limits = codec::Limits { packet_bytes: self.plane.limits.packet_bytes as usize };
        while self.may_read() && !buffer.is_empty() {
            match decode(buffer, self.session.version(), &limits) {
                Ok(Some(Packet::Connect(connect))) if self.session.version().is_none() => {
                    let assigned = || uuid::Uuid::new_v4().simple().to_string();
                    self.session.connect(now, &connect, assigned, &mut scratch.effects);
                    self.introduce(now, &connect);
                }
                Ok(Some(packet)) => self.session.packet(now, packet, &mut scratch.effects),
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(%error, client_id = &**self.session.client_id(), "malformed input");
                    self.session.malformed(now, error, &mut scratch.effects);
                }
            }
            self.perform(now, scratch);
        }
    }

    /// Notes who the client is, for those who ask.
    fn introduce(&self, now: Now, connect: &Connect) {
        if self.session.is_connected() {
            self.mailbox.introduce(Client {
                id: self.session.client_id().clone(),
                username: connect.username.as_ref().map(Text::detached),
                version: connect.version,
                clean_start: connect.clean_start,
                keep_alive_s: self.session.keep_alive_s(),
                peer: self.stream.peer_addr().ok(),
                connected_ms: now.epoch_ms,
                filters: AtomicUsize::new(0),
            });
        }
    }

    fn note_filters(&self) {
        if let Some(client) = self.mailbox.client() {
            client.filters.store(self.session.filters().len(), Ordering::Relaxed);
        }
    }

    fn end(&mut self, now: Now, end: End, scratch: &mut Scratch) {
        self.session.end(now, end, &mut scratch.effects);
        self.perform(now, scratch);
    }

    /// Carries out what the session wants, until it wants nothing more.
    fn perform(&mut self, now: Now, scratch: &mut Scratch) {
        while !scratch.effects.is_empty() {
            let mut working = std::mem::take(&mut scratch.working);
            std::mem::swap(&mut working, &mut scratch.effects);
            for effect in working.drain(..) {
                self.carry_out(now, effect, scratch);
            }
            scratch.working = working;
        }
    }

    fn carry_out(&mut self, now: Now, effect: Effect, scratch: &mut Scratch) {
        match effect {
            Effect::Send(packet) => {
                let version = self.session.version().unwrap_or(ProtocolVersion::V311);
                let output = self.output.get_or_insert_with(|| self.worker.buffer());
                encode(&packet, version, output);
            }
            Effect::Publish { number, message } => self.publish(now, number, message, scratch),
            Effect::Admit => {
                self.plane.registry.admit(self.session.client_id(), &self.mailbox);
            }
            Effect::Subscribe { filter, options } => {
                self.plane.router.subscribe(&self.mailbox, &filter, options);
                self.note_filters();
            }
            Effect::Unsubscribe { filter } => {
                self.plane.router.unsubscribe(self.mailbox.number, &filter);
                self.note_filters();
            }
            Effect::Dropped(dropped) => {
                self.plane.metrics.dropped.get_or_create(&DropLabel::from(dropped)).inc();
            }
            Effect::Close(end) => {
                self.plane.metrics.ended.get_or_create(&EndLabel::from(end)).inc();
                if end == End::Network {
                    self.output = None;
                }
                self.plane.registry.remove(self.session.client_id(), self.mailbox.number);
                for (filter, _) in self.session.filters() {
                    self.plane.router.unsubscribe(self.mailbox.number, filter);
                }
                self.ending = Some(Ending {
                    by_ms: now.monotonic_ms + CLOSE_MS,
                    is_lingering: false,
                    // Who has closed the other side waits for nothing.
                    is_done: end == End::Network,
                });
            }
        }
    }

    fn publish(&mut self, now: Now, number: Option<u64>, message: Message, scratch: &mut Scratch) {
        let plane = self.plane.clone();
        plane.metrics.published.inc();
        plane.router.matching(&message.topic, self.mailbox.number, &mut scratch.matches);
        let has_clients = scratch.matches.has_clients();
        if has_clients {
            // Those who are connected do not wait for the bus (architecture §4.15).
            let shared = Arc::new(message.detached());
            Router::deliver(&shared, &mut scratch.matches, &plane.metrics);
        }
        if scratch.matches.routes.is_empty() {
            if !has_clients {
                plane.metrics.unmatched.inc();
            }
            if let Some(number) = number {
                self.session.routed(now, number, 0, has_clients, &mut scratch.effects);
            }
            return;
        }
        let mut routes = std::mem::take(&mut scratch.matches.routes);
        if self.stalled.is_empty() {
            if let Some(stalled) = self.submit(now, number, message, &mut routes, 0, scratch) {
                self.stalled.push_back(stalled);
            }
        } else {
            let (message, routes) = (message.detached(), std::mem::take(&mut routes));
            self.stalled.push_back(Stalled { number, message, routes, records: 0 });
        }
        routes.clear();
        scratch.matches.routes = routes;
    }

    /// Submits one record for each route. Returns what the bus has no room for, to be tried again later.
    fn submit(
        &mut self,
        now: Now,
        number: Option<u64>,
        message: Message,
        routes: &mut Vec<Arc<Route>>,
        mut records: u32,
        scratch: &mut Scratch,
    ) -> Option<Stalled> {
        let plane = self.plane.clone();
        record::encode(&message, &plane.service_id, now.epoch_ms, &mut scratch.record);
        let outgoing = Outgoing {
            partition: None,
            key: Some(message.topic.bytes()),
            value: Some(&scratch.record),
            headers: &[],
        };
        for (index, route) in routes.iter().enumerate() {
            if !route.admits(now.monotonic_ms) {
                self.refuse(number, ReasonCode::UnspecifiedError, Refusal::Probing);
                continue;
            }
            match self.worker.submit(&*plane.writer, route, outgoing, &self.mailbox, number) {
                Ok(bytes) => {
                    records += 1;
                    self.in_flight += 1;
                    self.in_flight_bytes += bytes;
                    plane.metrics.records_submitted.inc();
                }
                Err(SubmitError::TopicFull) => {
                    route.not_submitted();
                    self.refuse(number, ReasonCode::QuotaExceeded, Refusal::TopicFull);
                }
                Err(SubmitError::BusFull) => {
                    route.not_submitted();
                    plane.metrics.bus_full.inc();
                    let routes = routes.split_off(index);
                    let message = message.detached();
                    self.worker.await_room(&self.mailbox);
                    return Some(Stalled { number, message, routes, records });
                }
            }
        }
        if let Some(number) = number {
            self.session.routed(now, number, records, true, &mut scratch.effects);
        }
        None
    }

    fn refuse(&mut self, number: Option<u64>, reason: ReasonCode, refusal: Refusal) {
        self.plane.metrics.refused(refusal);
        match number {
            Some(number) => self.session.refuse(number, reason),
            None => self.plane.metrics.dropped(Dropped::BusRefused),
        }
    }

    fn retry(&mut self, now: Now, scratch: &mut Scratch) {
        while let Some(stalled) = self.stalled.pop_front() {
            let Stalled { number, message, mut routes, records } = stalled;
            if let Some(still) = self.submit(now, number, message, &mut routes, records, scratch) {
                self.stalled.push_front(still);
                return;
            }
            self.perform(now, scratch);
        }
    }

    fn flush(&mut self, cx: &mut Context<'_>, now: Now, scratch: &mut Scratch) {
        let Some(mut output) = self.output.take() else { return };
        while !output.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &output) {
                Poll::Ready(Ok(written)) => output.advance(written),
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "can't write");
                    self.end(now, End::Network, scratch);
                    if let Some(ending) = &mut self.ending {
                        ending.is_done = true;
                    }
                    self.output = None;
                    return;
                }
                Poll::Pending => {
                    self.output = Some(output);
                    return;
                }
            }
        }
        self.worker.give_buffer(output);
    }

    /// Says goodbye once nothing is in flight any more, or the time for it is over.
    fn drain(&mut self, now: Now, scratch: &mut Scratch) {
        let Some(Farewell { end, by_ms }) = self.farewell else { return };
        let is_idle = self.in_flight == 0 && self.stalled.is_empty() && !self.session.has_unacknowledged();
        if self.ending.is_none() && (is_idle || now.monotonic_ms >= by_ms) {
            self.end(now, end, scratch);
            self.mailbox.room(); // another turn, which writes it
        }
    }

    /// Shuts our side when all is written, and throws away what comes until the client shuts its own.
    fn linger(&mut self, cx: &mut Context<'_>) {
        let Some(ending) = &mut self.ending else { return };
        if ending.is_done || self.output.is_some() {
            return;
        }
        if !ending.is_lingering {
            ending.is_lingering = true;
            self.input = None;
            if SockRef::from(&self.stream).shutdown(Shutdown::Write).is_err() {
                ending.is_done = true;
                return;
            }
        }
        let mut buffer = self.worker.buffer();
        for _ in 0..READS_PER_TURN {
            buffer.clear();
            match pin!(self.stream.read_buf(&mut buffer)).poll(cx) {
                Poll::Ready(Ok(0) | Err(_)) => {
                    ending.is_done = true;
                    return;
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => {
                    self.worker.give_buffer(buffer);
                    return;
                }
            }
        }
        cx.waker().wake_by_ref();
    }

    fn arm(&mut self, now: Now) {
        let deadlines = [
            self.session.deadline_ms(),
            self.farewell.map(|farewell| farewell.by_ms),
            self.ending.as_ref().map(|ending| ending.by_ms),
        ];
        let Some(wanted_ms) = deadlines.into_iter().flatten().min() else { return };
        // A later deadline leaves the earlier alarm where it is; what rings early asks again.
        if self.armed_ms.is_none_or(|armed_ms| wanted_ms < armed_ms) {
            let deadline_ms = wanted_ms.max(now.monotonic_ms + 1);
            self.worker.arm(&self.mailbox, self.armed_ms, deadline_ms);
            self.armed_ms = Some(deadline_ms);
        }
    }

    fn is_done(&self, now: Now) -> bool {
        match &self.ending {
            // A will that the bus has no room for yet is not given up before the time is over.
            Some(ending) => ending.is_done && self.stalled.is_empty() || now.monotonic_ms >= ending.by_ms,
            None => false,
        }
    }
}
