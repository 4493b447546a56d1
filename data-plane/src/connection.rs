//! One session: one task that owns the session machine, and its socket while there is one, and carries the machine's
//! effects out.
//!
//! A session that outlives its connections stays in its task; another connection of the client comes to it there
//! ([`Visitor`]), so that nothing of its state is ever in two places.
//!
//! While nothing happens it holds no buffer: what it needs for a turn comes from the worker, and only the bytes of an
//! incomplete packet, or what the client does not take, stay with it. Each turn reads as much as is there, routes it,
//! and writes all answers at once.

use std::{
    collections::VecDeque,
    future::Future as _,
    io,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Instant,
};

use bytes::BytesMut;
use tbmq_auth::credentials::ClientType;
use tbmq_mqtt::{
    codec::{self, decode, encode},
    packet::{Connect, Packet, ProtocolVersion, Qos, ReasonCode, RetainHandling, Text},
    session::{Effect, End, Limits, Now, Options, Session, Stage},
    topic,
};
use tokio::io::AsyncReadExt as _;

use crate::{
    auth::{Bearer, Exchange},
    backlog::Next,
    limit::{Used, applications::ApplicationPlace},
    link::{Link, Visitor},
    mailbox::{Mail, Mailbox, Outcome, is_patient},
    metrics::{Drop as Dropped, DropLabel, EndLabel, Limit},
    plane::Plane,
    retained::replay::Replays,
    session_records::{SessionInfo, Wanted},
    session_store::{self, InFlight, Seq},
    worker::{READ_BYTES, Scratch, Worker},
};

mod admission;
mod asking;
mod authentication;
mod durable;
mod leaving;
mod limiting;
mod publishing;
mod waits;

pub(crate) use authentication::Guest;
use durable::Durable;
pub(crate) use durable::KeptWill;
use publishing::Stalled;
use waits::Waits;

/// Reads of one turn, so that a busy client leaves time for the others.
const READS_PER_TURN: usize = 4;

/// Bytes that wait for the client at which nothing is added, except answers to what was read already.
const OUTPUT_HIGH_WATER: usize = 256 << 10;

/// Deliveries taken from the mailbox at once.
const DELIVERIES_PER_TURN: usize = 256;

/// Portions of retained messages in one turn, most of them short where many topics do not match.
const REPLAYS_PER_TURN: usize = 8;

/// How long messages that the bus has no room for are kept when there is no connection any more.
const STALLED_MS: u64 = 2000;

pub(crate) struct Connection {
    plane: Arc<Plane>,
    worker: Arc<Worker>,
    mailbox: Arc<Mailbox>,
    /// `None`: the session is parked, or over.
    link: Option<Link>,
    /// Of the certificate that the client has shown last.
    common_names: Arc<[Box<str>]>,
    /// Those of the listener that it came by last.
    limits: Arc<Limits>,
    session: Session,
    /// The CONNECT that is to be admitted.
    connect: Option<Box<Connect>>,
    /// The conversation by which the client proves who it is.
    exchange: Option<Box<Exchange>>,
    /// The client that was let in, until it has its session.
    guest: Option<Box<Guest>>,
    /// By which credential the session's client has come last, if by any.
    bearer: Option<Arc<Bearer>>,
    /// The session that the connection is to go to.
    host: Option<Arc<Mailbox>>,
    /// Bytes of an incomplete packet, or packets that may not be handled yet.
    input: Option<BytesMut>,
    output: Option<BytesMut>,
    /// Records of ours on their way to the bus, and to the session store.
    in_flight: usize,
    in_flight_bytes: usize,
    /// Messages of which the bus took not all records: one publish, and the will after it.
    stalled: VecDeque<Stalled>,
    stalled_by_ms: Option<u64>,
    /// Of a session that outlives the process, or is to.
    durable: Option<Box<Durable>>,
    /// What the session store is to be told at the end of the turn.
    notes: Notes,
    /// Subscriptions that wait for retained messages.
    replays: Replays,
    /// Of what is limited.
    used: Option<Box<Used>>,
    /// Of a session that counts as one of an application.
    application: Option<ApplicationPlace>,
    /// Not reading for a reason of the server.
    is_held: bool,
    armed_ms: Option<u64>,
    farewell: Option<Farewell>,
    /// The process ends, or another session has the connection.
    is_over: bool,
    /// It counts as one with a will.
    has_will: bool,
    /// Publishes whose acknowledgement is timed.
    waits: Waits,
}

#[derive(Default)]
struct Notes {
    settled: Vec<Seq>,
    in_flight: Vec<(Seq, InFlight)>,
}

/// The end that waits for acknowledgements under way, and how long.
#[derive(Clone, Copy)]
struct Farewell {
    end: End,
    by_ms: u64,
}

impl Connection {
    /// A connection that was accepted at this time.
    pub(crate) fn new(
        plane: Arc<Plane>,
        worker: Arc<Worker>,
        mailbox: Arc<Mailbox>,
        link: Link,
        since: Now,
    ) -> Self {
        let mut connection = Self::empty(plane, worker, mailbox, link.limits.clone(), since);
        connection.link(link);
        connection
    }

    /// A connection whose CONNECT was accepted.
    pub(crate) fn of_visitor(
        plane: Arc<Plane>,
        worker: Arc<Worker>,
        mailbox: Arc<Mailbox>,
        visitor: Box<Visitor>,
    ) -> Self {
        let now = plane.clock.now();
        let connection = Self::empty(plane, worker, mailbox, visitor.link.limits.clone(), now);
        connection.mailbox.visit(visitor).expect("a mailbox that was just made is open");
        connection
    }

    /// A session that was there before the process, and has no connection. Its mailbox knows that it is kept.
    pub(crate) fn restored(
        plane: Arc<Plane>,
        worker: Arc<Worker>,
        mailbox: Arc<Mailbox>,
        session: Session,
        info: SessionInfo,
        will: KeptWill,
    ) -> Self {
        let (now, limits) = (plane.clock.now(), plane.limits.clone());
        let is_application = info.client_type == ClientType::Application;
        let application = is_application.then(|| plane.limiter.applications.place());
        let durable = Some(Box::new(Durable::restored(info, will)));
        Self { session, durable, application, ..Self::empty(plane, worker, mailbox, limits, now) }
    }

    fn empty(
        plane: Arc<Plane>,
        worker: Arc<Worker>,
        mailbox: Arc<Mailbox>,
        limits: Arc<Limits>,
        since: Now,
    ) -> Self {
        Self {
            used: plane.limiter.used(),
            application: None,
            plane,
            worker,
            mailbox,
            link: None,
            common_names: Arc::default(),
            session: Session::new(limits.clone(), since),
            limits,
            connect: None,
            exchange: None,
            guest: None,
            bearer: None,
            host: None,
            input: None,
            output: None,
            in_flight: 0,
            in_flight_bytes: 0,
            stalled: VecDeque::new(),
            stalled_by_ms: None,
            durable: None,
            notes: Notes::default(),
            replays: Replays::default(),
            is_held: false,
            armed_ms: None,
            farewell: None,
            is_over: false,
            has_will: false,
            waits: Waits::default(),
        }
    }

    fn link(&mut self, link: Link) {
        self.waits.clear();
        self.common_names.clone_from(&link.peer.common_names);
        self.limits = link.limits.clone();
        self.link = Some(link);
    }

    /// Serves the client until its session is over.
    #[expect(
        clippy::manual_async_fn,
        reason = "an async fn keeps its argument twice: 680 bytes a connection"
    )]
    pub(crate) fn run(mut self) -> impl Future<Output = ()> + Send {
        async move {
            self.worker.enter(&self.mailbox);
            if self.plane.is_draining() {
                self.mailbox.end(End::ShuttingDown);
            } else if self.plane.retiring.is_draining() {
                self.mailbox.end(End::Moved);
            }
            std::future::poll_fn(|cx| self.poll(cx)).await;
            self.worker.leave(self.mailbox.number, self.armed_ms);
            self.tell_whether_it_has_a_will(false);
            let is_durable = self.is_durable();
            let (dropped, visitor) = if is_durable { self.mailbox.abandon() } else { self.mailbox.close() };
            self.plane.metrics.dropped_by(Dropped::Disconnected, dropped);
            self.plane.metrics.dropped_by(Dropped::BusRefused, self.stalled.len());
            for stalled in &self.stalled {
                for route in &stalled.routes {
                    self.not_retained(route, &stalled.message);
                }
            }
            if let Some(visitor) = visitor {
                self.plane.serve_visitor(visitor);
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = self.plane.clock.now();
        let worker = self.worker.clone();
        let mut scratch = worker.scratch();
        scratch.turn = Some(Instant::now());
        self.mailbox.register(cx.waker());
        self.take_mail(now, &mut scratch);
        let has_more = self.take_deliveries(now, &mut scratch);
        self.take_queued(now, &mut scratch);
        let is_waiting = self.read(cx, now, &mut scratch);
        if !has_more {
            self.replay(now, &mut scratch);
        }
        self.flush(cx, now, &mut scratch);
        self.drain(now, &mut scratch);
        self.give_up(now, &mut scratch);
        self.tell_store();
        self.tell_will(now);
        self.count_packets(&mut scratch);
        self.measure();
        worker.give_scratch(scratch);
        self.hold(now);
        self.arm(now);
        if self.is_done() {
            return Poll::Ready(());
        }
        // What became possible only now has no event of its own.
        let can_deliver = if has_more {
            self.delivery_room() > 0
        } else {
            !self.replays.is_empty() && self.replay_room() > 0
        };
        let may_read = self.may_read();
        // Acknowledgements go out in the order of the publishes: while nothing else waits for room, only the oldest of
        // these is waited for.
        let awaited = (may_read && self.replays.is_empty()).then(|| self.session.acknowledged_below());
        if self.mailbox.await_outcome(awaited)
            || may_read && !is_waiting
            || can_deliver
            || self.queue_room() > 0 && self.mailbox.has_queued()
        {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn count_packets(&self, scratch: &mut Scratch) {
        let metrics = &self.plane.metrics;
        for (count, counter) in [
            (&mut scratch.packets_received, &metrics.packets_received),
            (&mut scratch.packets_sent, &metrics.packets_sent),
        ] {
            if *count > 0 {
                counter.inc_by(std::mem::take(count));
            }
        }
    }

    fn take_mail(&mut self, now: Now, scratch: &mut Scratch) {
        let mut mail = std::mem::take(&mut scratch.mail);
        if self.mailbox.take(&mut mail) {
            for outcome in mail.outcomes.drain(..) {
                match outcome {
                    Outcome::Record { number, bytes, result } => {
                        self.in_flight -= 1;
                        self.in_flight_bytes -= bytes;
                        if let Some(number) = number {
                            self.session.written(now, number, result, &mut scratch.effects);
                        }
                    }
                    Outcome::Kept(kept) => self.kept(now, kept, scratch),
                }
            }
            if mail.is_due {
                self.armed_ms = None;
                self.session.tick(now, &mut scratch.effects);
                if scratch.effects.contains(&Effect::Over) {
                    self.plane.metrics.sessions_expired.inc();
                }
            }
            if mail.has_overflowed {
                self.session.end(now, End::SlowConsumer, &mut scratch.effects);
            }
            self.perform(now, scratch);
            if let Some(verdict) = mail.verdict {
                self.judged(now, *verdict, scratch);
            }
            if let Some(access) = mail.access {
                self.regrant(now, *access, scratch);
            }
            let command = mail.command;
            match command {
                // Acknowledgements that are under way come first.
                Some(end) if is_patient(end) => {
                    let by_ms = now.monotonic_ms + self.plane.drain_timeout.as_millis() as u64;
                    self.farewell.get_or_insert(Farewell { end, by_ms });
                }
                Some(end) => self.session.end(now, end, &mut scratch.effects),
                None => {}
            }
            let mut visitor = mail.visitor;
            if let Some(question) = mail.question {
                self.answer(now, *question, visitor.is_some(), scratch);
            }
            let has_room = mail.has_room;
            scratch.mail = Mail { outcomes: mail.outcomes, ..Mail::default() };
            self.perform(now, scratch);
            if command == Some(End::TakenOver) {
                // Who has the client id now begins anew, and came after whoever wanted to go on.
                visitor = None;
                self.drop_visitors();
                self.session.discard(now, &mut scratch.effects);
                self.perform(now, scratch);
            }
            if let Some(visitor) = visitor {
                self.welcome(now, visitor, scratch);
            }
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
                if self.admits(now, &delivery) {
                    self.session.deliver(now, delivery, &mut scratch.effects);
                }
            }
            scratch.deliveries = deliveries;
            self.perform(now, scratch);
        }
    }

    /// Sends what the session's queue has, as far as the client's window takes it.
    fn take_queued(&mut self, now: Now, scratch: &mut Scratch) {
        loop {
            let room = self.queue_room().min(DELIVERIES_PER_TURN);
            if room == 0 {
                return;
            }
            let mut queued = std::mem::take(&mut scratch.queued);
            let next = self.mailbox.take_queued(room, OUTPUT_HIGH_WATER, &mut queued);
            for (seq, delivery) in queued.drain(..) {
                self.session.deliver_queued(now, seq, delivery, &mut scratch.effects);
            }
            scratch.queued = queued;
            self.perform(now, scratch);
            match next {
                Next::More => {}
                Next::Read(wanted) => return self.plane.queues.read(&self.mailbox, wanted),
                Next::Wait => return,
            }
        }
    }

    fn queue_room(&self) -> usize {
        let may_send = self.session.is_persistent() && self.output_bytes() < OUTPUT_HIGH_WATER;
        if may_send { self.session.window_room() } else { 0 }
    }

    /// Sends retained messages as far as the client takes them at once: they wait nowhere but where they are kept, and
    /// what is published meanwhile comes first.
    fn replay(&mut self, now: Now, scratch: &mut Scratch) {
        for _ in 0..REPLAYS_PER_TURN {
            let room = self.replay_room().min(DELIVERIES_PER_TURN);
            if room == 0 || self.replays.is_empty() {
                return;
            }
            let mut deliveries = std::mem::take(&mut scratch.deliveries);
            let client_id = self.session.client_id();
            self.replays.take(
                &self.plane.retained,
                client_id,
                now.epoch_ms,
                room,
                OUTPUT_HIGH_WATER,
                &mut deliveries,
            );
            self.plane.metrics.retained_sent.inc_by(deliveries.len() as u64);
            for delivery in deliveries.drain(..) {
                if self.is_durable() && delivery.qos != Qos::AtMostOnce {
                    self.enqueue(delivery);
                } else {
                    self.session.deliver(now, delivery, &mut scratch.effects);
                }
            }
            scratch.deliveries = deliveries;
            self.perform(now, scratch);
        }
    }

    fn replay_room(&self) -> usize {
        // What went into the queue for it comes first.
        let is_queued =
            self.is_durable() && (self.in_flight >= DELIVERIES_PER_TURN || self.mailbox.has_queued());
        if is_queued || self.output_bytes() >= OUTPUT_HIGH_WATER { 0 } else { self.session.window_room() }
    }

    fn delivery_room(&self) -> usize {
        if self.output_bytes() < OUTPUT_HIGH_WATER { self.session.delivery_room() } else { 0 }
    }

    fn output_bytes(&self) -> usize {
        self.output.as_ref().map_or(0, BytesMut::len) + self.held_bytes()
    }

    fn may_read(&self) -> bool {
        self.link.is_some()
            && self.host.is_none()
            && self.farewell.is_none()
            && !self.session.awaits_verdict()
            && !self.session.is_closed()
            && !self.must_hold()
            && self.output_bytes() < OUTPUT_HIGH_WATER
    }

    /// Whether the server is the reason for not reading.
    fn must_hold(&self) -> bool {
        !self.stalled.is_empty()
            || self.session.is_saturated()
            || self.awaits_keeping()
            || self.in_flight >= self.plane.in_flight_max
            || self.in_flight_bytes >= self.plane.in_flight_bytes_max
    }

    fn hold(&mut self, now: Now) {
        let is_too_fast = self.reads_at_ms(now).is_some();
        let must_hold = self.must_hold() || is_too_fast;
        if must_hold && !self.is_held {
            // A full bus has a counter of its own, and so has who sends too fast.
            if self.stalled.is_empty() && !self.awaits_keeping() && !is_too_fast {
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
            if self.reads_at_ms(now).is_some() {
                // The alarm for that will.
                break true;
            }
            if buffer.capacity() == 0 {
                buffer = self.worker.buffer();
            } else if buffer.capacity() - buffer.len() < READ_BYTES / 4 {
                buffer.reserve(READ_BYTES);
            }
            let Some(link) = &mut self.link else { break false };
            let polled = pin!(link.stream.read_buf(&mut buffer)).poll(cx);
            match polled {
                Poll::Ready(Ok(0)) => {
                    self.end(now, End::Network, scratch);
                    break false;
                }
                Poll::Ready(Ok(count)) => {
                    self.has_read(now, count);
                    reads += 1;
                }
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "can't read");
                    let is_theirs = error.kind() == io::ErrorKind::InvalidData;
                    self.end(now, if is_theirs { End::Protocol } else { End::Network }, scratch);
                    break false;
                }
                Poll::Pending => break true,
            }
        };
        if self.link.is_none() {
            buffer.clear();
        }
        if buffer.is_empty() {
            self.worker.give_buffer(buffer);
        } else {
            self.input = Some(buffer);
        }
        self.visit(now, scratch);
        is_waiting
    }

    fn handle(&mut self, now: Now, buffer: &mut BytesMut, scratch: &mut Scratch) {
        let limits = codec::Limits { packet_bytes: self.limits.packet_bytes as usize };
        while self.may_read() && !buffer.is_empty() {
            match decode(buffer, self.session.version(), &limits) {
                Ok(Some(Packet::Connect(connect))) if self.session.version().is_none() => {
                    self.connect(now, connect, scratch);
                }
                Ok(Some(Packet::Publish(publish))) if self.is_surplus(now) => {
                    self.session.exceed(now, publish, &mut scratch.effects);
                }
                Ok(Some(packet)) if self.defers(&packet) => self.await_filters(now, packet, scratch),
                Ok(Some(packet)) => self.session.packet(now, packet, &mut scratch.effects),
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(%error, client_id = &**self.session.client_id(), "malformed input");
                    if error.reason == ReasonCode::PacketTooLarge {
                        self.plane.metrics.client_limit_reached(Limit::PacketBytes);
                    }
                    self.session.malformed(now, error, &mut scratch.effects);
                }
            }
            scratch.packets_received += 1;
            self.perform(now, scratch);
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
                if let Some(limit) = Limit::told_by(&packet) {
                    self.plane.metrics.client_limit_reached(limit);
                }
                let version = self.session.version().unwrap_or(ProtocolVersion::V311);
                if !self.send_held(&packet, version) {
                    let output = self.output.get_or_insert_with(|| self.worker.buffer());
                    encode(&packet, version, output);
                }
                scratch.packets_sent += 1;
            }
            Effect::Publish { number, message } => self.publish(now, number, message, scratch),
            Effect::Authenticate => self.authenticate(now, scratch),
            Effect::Prove { data, is_again } => self.prove(now, &data, is_again, scratch),
            Effect::Admit { resume } => self.admit(now, resume, scratch),
            Effect::Subscribe { filter, options, is_new } => {
                self.plane.subscribe(&self.mailbox, &filter, options);
                self.note_filters();
                self.want_retained(&filter, options, is_new);
            }
            Effect::Restrict { filter, options } => {
                self.plane.subscribe(&self.mailbox, &filter, options);
                self.note_filters();
                self.replays.change(&filter, options);
            }
            Effect::Unsubscribe { filter } => {
                self.plane.unsubscribe(&self.mailbox, &filter);
                self.note_filters();
                self.replays.cancel(&filter);
            }
            Effect::Dropped(dropped) => {
                self.plane.metrics.dropped.get_or_create(&DropLabel::from(dropped)).inc();
            }
            Effect::InFlight { seq, packet_id, stage } => {
                if stage != Stage::Puback {
                    self.hold_next();
                }
                let stage = match stage {
                    Stage::Puback | Stage::Pubrec => session_store::Stage::Publish,
                    Stage::Pubcomp => session_store::Stage::Pubrel,
                };
                self.notes.in_flight.push((seq, InFlight { packet_id, stage }));
            }
            Effect::Settled { seq } => self.notes.settled.push(seq),
            Effect::Released { packet_id } => {
                if let Some(session) = self.mailbox.kept_as() {
                    self.plane.queues.released(&session, packet_id);
                }
            }
            Effect::Close(end) => self.close(now, end),
            Effect::Over => self.forget(),
        }
    }

    /// Leaves the connection, and the session if it does not outlive it.
    fn close(&mut self, now: Now, end: End) {
        let plane = self.plane.clone();
        plane.metrics.ended.get_or_create(&EndLabel::from(end)).inc();
        let output = self.output.take();
        if let Some(link) = self.link.take() {
            // Who has closed the other side waits for nothing.
            if end != End::Network {
                plane.track(link.close(output));
            }
        }
        self.input = None;
        self.exchange = None;
        self.guest = None;
        self.farewell = None;
        if !self.stalled.is_empty() {
            self.stalled_by_ms = Some(now.monotonic_ms + STALLED_MS);
        }
        let shared = self.mailbox.take_shared();
        if self.session.is_parked() {
            if let Some(client) = self.mailbox.client() {
                client.disconnected_ms.store(now.epoch_ms, Ordering::Relaxed);
            }
            plane.registry.park(self.session.client_id(), self.mailbox.number);
            self.mailbox.park();
            self.record_away(now);
        } else {
            self.forget();
        }
        self.hand_over(shared);
        self.replays.clear();
    }

    /// The session is over.
    fn forget(&mut self) {
        let plane = &self.plane;
        let (client_id, is_kept) = (self.session.client_id(), self.mailbox.is_kept());
        plane.registry.remove(client_id, self.mailbox.number, || {
            if is_kept && let Some(recorder) = &plane.recorder {
                recorder.save(client_id, Wanted::end(), None);
            }
        });
        for (filter, _) in self.session.filters() {
            plane.unsubscribe(&self.mailbox, filter);
        }
        if let Some(session) = self.mailbox.forget() {
            self.notes = Notes::default();
            plane.queues.remove(&session);
        }
        self.forget_durable();
        if let Some(bearer) = self.bearer.take() {
            self.plane.auth.left(&bearer, self.mailbox.number);
        }
    }

    /// Tells the session store what was sent and what is done with.
    fn tell_store(&mut self) {
        if self.notes.settled.is_empty() && self.notes.in_flight.is_empty() {
            return;
        }
        let Notes { settled, in_flight } = std::mem::take(&mut self.notes);
        let waiter = self.noting();
        if let Some(session) = self.mailbox.kept_as() {
            self.plane.queues.acknowledge(&session, settled, in_flight, waiter);
        }
    }

    /// Begins to send retained messages where a subscription is to get them (MQTT5-3.3.1-9 to 11).
    fn want_retained(&mut self, filter: &Text, options: Options, is_new: bool) {
        let is_wanted = match options.retain_handling {
            RetainHandling::Send => true,
            RetainHandling::SendIfNew => is_new,
            RetainHandling::DoNotSend => false,
        };
        if !is_wanted {
            self.replays.change(filter, options);
        } else if topic::shared(filter) == Ok(None) {
            // A shared subscription gets none (MQTT 5.0 §4.8.2).
            self.replays.begin(filter, options);
        }
    }

    fn flush(&mut self, cx: &mut Context<'_>, now: Now, scratch: &mut Scratch) {
        let Some(link) = &mut self.link else { return };
        let mut nothing = BytesMut::new();
        let output = self.output.as_mut().unwrap_or(&mut nothing);
        let before = output.len();
        let written = link.poll_write(cx, output);
        if before > output.len() {
            self.plane.metrics.bytes_sent.inc_by((before - output.len()) as u64);
        }
        if let Poll::Ready(Err(error)) = written {
            tracing::debug!(%error, "can't write");
            return self.end(now, End::Network, scratch);
        }
        if self.output.as_ref().is_some_and(BytesMut::is_empty)
            && let Some(output) = self.output.take()
        {
            self.worker.give_buffer(output);
        }
    }

    /// Says goodbye once nothing is in flight any more, or the time for it is over.
    fn drain(&mut self, now: Now, scratch: &mut Scratch) {
        let Some(Farewell { end, by_ms }) = self.farewell else { return };
        let is_idle = self.in_flight == 0 && self.stalled.is_empty() && !self.session.has_unacknowledged();
        if !is_idle && now.monotonic_ms < by_ms {
            return;
        }
        self.farewell = None;
        self.end(now, end, scratch);
        if end == End::ShuttingDown && self.is_durable() {
            // What is left of the session is elsewhere.
            self.turn_away_visitors(now);
            self.is_over = true;
        } else if end == End::ShuttingDown {
            // Sessions are kept in memory: with the process they end, and their wills are due.
            self.session.discard(now, &mut scratch.effects);
            self.perform(now, scratch);
        }
    }

    fn arm(&mut self, now: Now) {
        let deadlines = [
            self.session.deadline_ms(),
            self.farewell.map(|farewell| farewell.by_ms),
            self.stalled_by_ms,
            self.reads_at_ms(now),
        ];
        let Some(wanted_ms) = deadlines.into_iter().flatten().min() else { return };
        // A later deadline leaves the earlier alarm where it is; what rings early asks again.
        if self.armed_ms.is_none_or(|armed_ms| wanted_ms < armed_ms) {
            let deadline_ms = wanted_ms.max(now.monotonic_ms + 1);
            self.worker.arm(&self.mailbox, self.armed_ms, deadline_ms);
            self.armed_ms = Some(deadline_ms);
        }
    }

    fn is_done(&self) -> bool {
        // A will that the bus has no room for yet is not given up before the time is over.
        let is_over = self.session.is_closed() && !self.session.is_parked() && self.stalled.is_empty();
        (self.is_over && self.stalled.is_empty() || self.link.is_none() && is_over) && !self.has_visitor()
    }
}
