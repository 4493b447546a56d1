//! What a session that outlives the process has elsewhere: its record on the bus, and its will and what is in flight in
//! the session store.
//!
//! | what | waits until it is kept |
//! |---|---|
//! | CONNACK | the record of the session, its will, and that what was kept of the one before is gone |
//! | SUBACK, UNSUBACK | the record of all filters |
//! | PUBLISH and PUBREL of QoS 2 | the note of their packet id: after a crash, the exchange goes on or has not begun |
//!
//! What can't be kept is refused, and nothing of it is done. Other sessions have nothing of this and wait for nothing.

use std::{collections::VecDeque, mem, sync::Arc};

use bytes::BytesMut;
use tbmq_mqtt::{
    codec::encode,
    packet::{Connect, Packet, ProtocolVersion, ReasonCode, Text, Will},
    session::{self, Limits, Now, Options},
};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{
    Connection,
    authentication::{Guest, username},
};
use crate::{
    link::{Link, Visitor},
    mailbox::{Assigned, Filters, Kept, Mailbox},
    plane::Plane,
    queues::Waiter,
    session_records::{RecordedFilter, SessionInfo, Wanted},
    session_store::{self, StoredWill, delivery},
    worker::Scratch,
};

/// What of a session is kept elsewhere, and what waits for that.
pub(super) struct Durable {
    /// As it is recorded; `None`: there is no such session.
    info: Option<SessionInfo>,
    will: KeptWill,
    pending: Pending,
    /// Who came while somebody waited.
    next: Option<Box<Visitor>>,
    /// Packets whose notes are not kept yet, in their order.
    held: VecDeque<Held>,
    held_bytes: usize,
    /// The notes of the last of them were not sent yet.
    is_open: bool,
    /// The client may have fewer filters since it has asked for those that are being recorded.
    is_narrowed: bool,
}

/// What is known of the will in the session store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeptWill {
    /// It may be any.
    Unknown,
    None,
    /// It is due once the connection ends.
    Connected,
    /// It is due at this time of the monotonic clock.
    Due(u64),
}

enum Pending {
    Nothing,
    /// The connection's own CONNECT.
    Opening(Answers),
    /// A connection that goes on with the session.
    Resuming(Box<Visitor>, Answers),
    /// SUBSCRIBE or UNSUBSCRIBE.
    Filters(Packet, Answers),
    /// Filters that the client is given.
    Assigned(Filters, oneshot::Sender<Assigned>, Answers),
}

#[derive(Clone, Copy)]
struct Answers {
    wait: u64,
    left: u32,
    is_refused: bool,
}

struct Held {
    wait: u64,
    bytes: BytesMut,
}

/// A session that is to begin.
pub(super) struct Beginning {
    /// Unless it does not outlive its connection.
    lasting: Option<Lasting>,
}

struct Lasting {
    info: SessionInfo,
    will: Option<StoredWill>,
}

/// A session that begins once it is kept.
pub(super) struct Opening {
    info: Option<SessionInfo>,
    will: KeptWill,
    answers: Answers,
}

impl Answers {
    fn new(wait: u64, left: u32) -> Self {
        Self { wait, left, is_refused: false }
    }

    /// Takes an answer; what came of all, if it is the last.
    fn take(&mut self, kept: Kept) -> Option<bool> {
        if kept.wait != self.wait {
            return None;
        }
        self.left = self.left.saturating_sub(1);
        self.is_refused |= !kept.is_kept;
        (self.left == 0).then_some(!self.is_refused)
    }
}

impl Durable {
    /// A session that was there before the process.
    pub(super) fn restored(info: SessionInfo, will: KeptWill) -> Self {
        Self { info: Some(info), will, ..Self::new(Pending::Nothing) }
    }

    fn new(pending: Pending) -> Self {
        Self {
            info: None,
            will: KeptWill::None,
            pending,
            next: None,
            held: VecDeque::new(),
            held_bytes: 0,
            is_open: false,
            is_narrowed: false,
        }
    }

    /// Drops what was to be sent.
    fn release_none(&mut self) {
        self.held = VecDeque::new();
        self.held_bytes = 0;
        self.is_open = false;
    }
}

impl Beginning {
    /// Begins to keep the session; something of the one before may be kept, or not. Returns what has to be waited for,
    /// if anything.
    pub(super) fn keep(
        self,
        plane: &Plane,
        mailbox: &Arc<Mailbox>,
        client_id: &Arc<str>,
        was_kept: bool,
    ) -> Option<Opening> {
        let recorder = plane.recorder.as_ref()?;
        let wait = recorder.next_wait();
        let waiter = Waiter { mailbox: mailbox.clone(), wait };
        let Some(Lasting { info, will }) = self.lasting else {
            if !was_kept {
                return None;
            }
            recorder.save(client_id, Wanted::end(), Some(waiter));
            return Some(Opening { info: None, will: KeptWill::None, answers: Answers::new(wait, 1) });
        };
        // Another node may have left filters.
        let wanted = Wanted::session(&info).or(Wanted::filters(&[]));
        let kept_will = if will.is_some() { KeptWill::Connected } else { KeptWill::None };
        let name = session_store::Session::new(client_id.clone(), info.epoch);
        mailbox.keep(name.clone());
        plane.queues.begin(&name, will, waiter.clone());
        recorder.save(client_id, wanted, Some(waiter));
        Some(Opening { info: Some(info), will: kept_will, answers: Answers::new(wait, 2) })
    }
}

impl Connection {
    /// Whether the session outlives the process.
    pub(super) fn is_durable(&self) -> bool {
        self.durable.as_ref().is_some_and(|durable| durable.info.is_some())
    }

    /// Whether the client has to wait until something is kept.
    pub(super) fn awaits_keeping(&self) -> bool {
        let pending = self.durable.as_ref().map(|durable| &durable.pending);
        matches!(pending, Some(Pending::Opening(_) | Pending::Filters(..) | Pending::Assigned(..)))
    }

    /// Whether a connection waits to go on with the session.
    pub(super) fn has_visitor(&self) -> bool {
        self.durable.as_ref().is_some_and(|durable| matches!(durable.pending, Pending::Resuming(..)))
    }

    /// Bytes that wait until the notes of their packets are kept.
    pub(super) fn held_bytes(&self) -> usize {
        self.durable.as_ref().map_or(0, |durable| durable.held_bytes)
    }

    /// What the accepted CONNECT begins, where sessions are recorded.
    ///
    /// # Errors
    /// When no session can be recorded now.
    pub(super) fn beginning(&self, now: Now) -> Result<Option<Beginning>, ReasonCode> {
        let (Some(recorder), Some(connect)) = (&self.plane.recorder, &self.connect) else { return Ok(None) };
        if session::expiry_s(connect, &self.limits) == 0 {
            return Ok(Some(Beginning { lasting: None }));
        }
        if !recorder.has_room() {
            return Err(ReasonCode::ServerUnavailable);
        }
        let Some(link) = &self.link else { return Ok(None) };
        let epoch = self.plane.queues.epoch();
        let session_id = self.mailbox.client().map_or_else(Uuid::new_v4, |client| client.session_id);
        let guest = self.guest.as_deref();
        let info = SessionInfo { session_id, epoch, ..self.info(now, connect, guest, link, &self.limits) };
        let client_id = &info.client_id;
        let will = connect.will.as_ref().map(|will| stored(client_id, will, None));
        Ok(Some(Beginning { lasting: Some(Lasting { info, will }) }))
    }

    /// The id of the session that the client has with this connection.
    pub(super) fn session_id(&self) -> Uuid {
        let info = self.durable.as_ref().and_then(|durable| durable.info.as_ref());
        info.map_or_else(Uuid::new_v4, |info| info.session_id)
    }

    /// Of this node's epoch 0.
    fn info(
        &self,
        now: Now,
        connect: &Connect,
        guest: Option<&Guest>,
        link: &Link,
        limits: &Limits,
    ) -> SessionInfo {
        SessionInfo {
            client_id: self.session.client_id().clone(),
            session_id: Uuid::new_v4(),
            epoch: 0,
            service_id: self.plane.service_id.clone(),
            is_connected: true,
            client_type: guest.map(|guest| guest.client_type).unwrap_or_default(),
            username: username(guest, connect),
            address: Some(link.peer.address.ip()),
            protocol_level: connect.version.level(),
            clean_start: connect.clean_start,
            expiry_s: connect.version.is_v5().then(|| session::expiry_s(connect, limits)),
            keep_alive_s: connect.keep_alive,
            connected_at_ms: now.epoch_ms,
            disconnected_at_ms: 0,
        }
    }

    /// The connection waits until its session is kept.
    pub(super) fn await_opening(&mut self, opening: Opening) {
        let Opening { info, will, answers } = opening;
        let next = self.durable.take().and_then(|durable| durable.next);
        let durable = Durable { info, will, next, ..Durable::new(Pending::Opening(answers)) };
        self.durable = Some(Box::new(durable));
    }

    /// A connection comes that is to go on with the session. Where it has to be kept first that it does, it waits.
    pub(super) fn welcome(&mut self, now: Now, visitor: Box<Visitor>, scratch: &mut Scratch) {
        if let Some(durable) = &mut self.durable
            && matches!(durable.pending, Pending::Opening(_) | Pending::Resuming(..) | Pending::Assigned(..))
        {
            // One that waits already is closed: this one takes it over.
            durable.next = Some(visitor);
            return;
        }
        if self.is_durable() {
            self.take_over(now, scratch);
            if self.session.is_parked() {
                return self.await_resuming(now, visitor);
            }
        }
        self.attach(now, *visitor, scratch);
    }

    fn await_resuming(&mut self, now: Now, visitor: Box<Visitor>) {
        let plane = self.plane.clone();
        let Some(recorder) = &plane.recorder else { return };
        let Some(name) = self.mailbox.kept_as() else { return };
        let Visitor { link, connect, guest, .. } = &*visitor;
        let info =
            SessionInfo { epoch: name.epoch, ..self.info(now, connect, Some(&**guest), link, &link.limits) };
        let waiter = Waiter { mailbox: self.mailbox.clone(), wait: recorder.next_wait() };
        let will = connect.will.as_ref().map(|will| stored(&info.client_id, will, None));
        let kept_will = if will.is_some() { KeptWill::Connected } else { KeptWill::None };
        let mut answers = Answers::new(waiter.wait, 1);
        let Some(durable) = &mut self.durable else { return };
        if (durable.will, kept_will) != (KeptWill::None, KeptWill::None) {
            answers.left += 1;
            plane.queues.set_will(&name, will, Some(waiter.clone()));
        }
        let wanted = Wanted::session(&info);
        let client_id = info.client_id.clone();
        durable.info = Some(info);
        durable.will = kept_will;
        durable.pending = Pending::Resuming(visitor, answers);
        plane.registry.while_own(&client_id, self.mailbox.number, || {
            recorder.save(&client_id, wanted, Some(waiter));
        });
    }

    /// Whether a packet has to wait until the filters that the client is to have are recorded.
    pub(super) fn defers(&self, packet: &Packet) -> bool {
        self.is_durable()
            && self.session.is_connected()
            && matches!(packet, Packet::Subscribe(_) | Packet::Unsubscribe(_))
    }

    /// Handles a packet once the filters that it leaves are recorded.
    pub(super) fn await_filters(&mut self, now: Now, packet: Packet, scratch: &mut Scratch) {
        let (plane, filters) = (self.plane.clone(), self.session.filters_after(&packet));
        let (Some(filters), Some(recorder), Some(durable)) = (filters, &plane.recorder, &mut self.durable)
        else {
            return self.session.packet(now, packet, &mut scratch.effects);
        };
        let waiter = Waiter { mailbox: self.mailbox.clone(), wait: recorder.next_wait() };
        durable.pending = Pending::Filters(packet, Answers::new(waiter.wait, 1));
        let wanted = wanted(filters.iter().map(|(filter, options)| (filter, options)));
        let client_id = self.session.client_id();
        plane.registry.while_own(client_id, self.mailbox.number, || {
            recorder.save(client_id, wanted, Some(waiter));
        });
    }

    /// Gives the client these filters, which were checked, once they are recorded where they have to be.
    pub(super) fn assign(
        &mut self,
        filters: Filters,
        answer: oneshot::Sender<Assigned>,
        scratch: &mut Scratch,
    ) {
        let plane = self.plane.clone();
        match (&plane.recorder, &mut self.durable) {
            (Some(recorder), Some(durable)) if durable.info.is_some() => {
                if !matches!(durable.pending, Pending::Nothing) {
                    answer.send(Assigned::Busy).ok();
                    return;
                }
                let waiter = Waiter { mailbox: self.mailbox.clone(), wait: recorder.next_wait() };
                let wanted = wanted(filters.iter().map(|(filter, options)| (filter, options)));
                durable.pending = Pending::Assigned(filters, answer, Answers::new(waiter.wait, 1));
                let client_id = self.session.client_id();
                plane.registry.while_own(client_id, self.mailbox.number, || {
                    recorder.save(client_id, wanted, Some(waiter));
                });
            }
            _ => self.have_assigned(filters, answer, scratch),
        }
    }

    fn have_assigned(&mut self, filters: Filters, answer: oneshot::Sender<Assigned>, scratch: &mut Scratch) {
        self.session.assign_filters(filters, &mut scratch.effects);
        // Only filters of the tree change: nothing of it needs the time.
        self.perform(self.plane.clock.now(), scratch);
        self.note_filters();
        answer.send(Assigned::Done).ok();
    }

    /// Something is kept, or can't be.
    pub(super) fn kept(&mut self, now: Now, kept: Kept, scratch: &mut Scratch) {
        let Some(durable) = &mut self.durable else { return };
        let (Pending::Opening(answers)
        | Pending::Resuming(_, answers)
        | Pending::Filters(_, answers)
        | Pending::Assigned(_, _, answers)) = &mut durable.pending
        else {
            return self.release(kept.wait);
        };
        if kept.wait != answers.wait {
            return self.release(kept.wait);
        }
        let Some(is_kept) = answers.take(kept) else { return };
        match mem::replace(&mut durable.pending, Pending::Nothing) {
            Pending::Nothing => {}
            Pending::Opening(_) if is_kept => {
                if durable.info.is_none() {
                    self.durable = None;
                }
                self.connect = None;
                self.session.open(now, &mut scratch.effects);
            }
            Pending::Opening(_) => {
                self.session.refuse_connect(now, ReasonCode::ServerUnavailable, &mut scratch.effects);
            }
            // When the session has expired meanwhile, the connection begins one.
            Pending::Resuming(visitor, _) if is_kept || !self.session.is_parked() => {
                self.attach(now, *visitor, scratch);
            }
            Pending::Resuming(visitor, _) => {
                self.turn_away(*visitor);
                self.record_away(now);
            }
            Pending::Filters(packet, _) if is_kept => {
                self.session.packet(now, packet, &mut scratch.effects);
            }
            Pending::Filters(packet, _) => {
                self.session.refuse_filters(now, &packet, &mut scratch.effects);
                // It may have been recorded all the same.
                self.record_filters();
            }
            Pending::Assigned(filters, answer, _) if is_kept => self.have_assigned(filters, answer, scratch),
            Pending::Assigned(_, answer, _) => {
                self.record_filters();
                let text = "they can't be recorded now, so nothing was changed; try again";
                answer.send(Assigned::Refused(text.to_owned())).ok();
            }
        }
        self.perform(now, scratch);
        if self.durable.as_mut().is_some_and(|durable| mem::take(&mut durable.is_narrowed)) {
            self.record_narrowed();
        }
        if let Some(durable) = &mut self.durable
            && !matches!(durable.pending, Pending::Resuming(..) | Pending::Opening(_))
            && let Some(next) = durable.next.take()
        {
            self.welcome(now, next, scratch);
        }
    }

    /// Tells a client that it can't go on with its session now.
    fn turn_away(&mut self, visitor: Visitor) {
        if let Some(durable) = &mut self.durable {
            durable.will = KeptWill::Unknown;
        }
        let Visitor { link, connect, .. } = visitor;
        let mut output = BytesMut::new();
        if let Some(refusal) = session::refusal(&connect, ReasonCode::ServerUnavailable) {
            encode(&refusal, connect.version, &mut output);
        }
        self.plane.track(link.close(Some(output)));
    }

    /// Records that the session has no connection any more.
    pub(super) fn record_away(&mut self, now: Now) {
        let Some(durable) = &mut self.durable else { return };
        let Some(info) = &mut durable.info else { return };
        let is_unsure = matches!(durable.pending, Pending::Filters(..) | Pending::Assigned(..));
        if is_unsure {
            durable.pending = Pending::Nothing;
        }
        info.is_connected = false;
        info.disconnected_at_ms = now.epoch_ms;
        info.expiry_s = info.expiry_s.map(|_| self.session.expiry_s());
        let wanted = Wanted::session(info);
        durable.release_none();
        self.record(wanted);
        if is_unsure {
            self.record_filters();
        }
    }

    /// Records that the session was found without a connection.
    pub(crate) fn record_restored(&self) {
        if let Some(info) = self.durable.as_ref().and_then(|durable| durable.info.as_ref()) {
            self.record(Wanted::session(info));
        }
    }

    /// Records that filters were taken away from the client, or restricted: once those are recorded that it has asked
    /// for, so that what it is told is never recorded late.
    pub(super) fn record_narrowed(&mut self) {
        let Some(durable) = &mut self.durable else { return };
        if matches!(durable.pending, Pending::Filters(..) | Pending::Assigned(..)) {
            durable.is_narrowed = true;
        } else if durable.info.is_some() {
            self.record_filters();
        }
    }

    fn record_filters(&self) {
        self.record(wanted(self.session.filters()));
    }

    fn record(&self, wanted: Wanted) {
        let Some(recorder) = &self.plane.recorder else { return };
        let client_id = self.session.client_id();
        self.plane
            .registry
            .while_own(client_id, self.mailbox.number, || recorder.save(client_id, wanted, None));
    }

    /// The session is over; who waits to go on with it begins one.
    pub(super) fn forget_durable(&mut self) {
        let Some(durable) = &mut self.durable else { return };
        durable.info = None;
        durable.will = KeptWill::None;
        durable.release_none();
        if matches!(durable.pending, Pending::Opening(_) | Pending::Filters(..) | Pending::Assigned(..)) {
            durable.pending = Pending::Nothing;
            if let Some(next) = durable.next.take() {
                self.mailbox.visit(next).ok();
            }
        }
    }

    /// Closes the connections that wait to go on with the session.
    pub(super) fn drop_visitors(&mut self) {
        if let Some(durable) = &mut self.durable {
            durable.next = None;
            if matches!(durable.pending, Pending::Resuming(..)) {
                durable.pending = Pending::Nothing;
            }
        }
    }

    /// Refuses connections that wait to go on with the session: the process ends.
    pub(super) fn turn_away_visitors(&mut self, now: Now) {
        let Some(durable) = &mut self.durable else { return };
        let mut visitors: Vec<_> = durable.next.take().into_iter().collect();
        match mem::replace(&mut durable.pending, Pending::Nothing) {
            Pending::Resuming(visitor, _) => visitors.push(visitor),
            other => durable.pending = other,
        }
        if !visitors.is_empty() {
            for visitor in visitors {
                self.turn_away(*visitor);
            }
            self.record_away(now);
        }
    }

    /// The next packet waits until this turn's notes are kept.
    pub(super) fn hold_next(&mut self) {
        let Some(recorder) = &self.plane.recorder else { return };
        if let Some(durable) = &mut self.durable
            && durable.info.is_some()
            && !durable.is_open
        {
            durable.is_open = true;
            durable.held.push_back(Held { wait: recorder.next_wait(), bytes: BytesMut::new() });
        }
    }

    /// Writes a packet behind those that are held, if there are any. Others overtake them.
    pub(super) fn send_held(&mut self, packet: &Packet, version: ProtocolVersion) -> bool {
        let Some(durable) = &mut self.durable else { return false };
        let Some(held) = durable.held.back_mut() else { return false };
        let is_held = matches!(packet, Packet::Publish(_) | Packet::PubRel(_));
        if is_held {
            let before = held.bytes.len();
            encode(packet, version, &mut held.bytes);
            durable.held_bytes += held.bytes.len() - before;
        }
        is_held
    }

    /// Who is to be told when this turn's notes are kept.
    pub(super) fn noting(&mut self) -> Option<Waiter> {
        let durable = self.durable.as_mut()?;
        let held = durable.held.back().filter(|_| mem::take(&mut durable.is_open))?;
        Some(Waiter { mailbox: self.mailbox.clone(), wait: held.wait })
    }

    /// Lets packets go whose notes are kept. When they could not be, it is counted, and they go all the same: the store
    /// is away, and only a crash before it is back would let a client see a message of QoS 2 twice.
    fn release(&mut self, wait: u64) {
        let Some(durable) = &mut self.durable else { return };
        if !durable.held.iter().any(|held| held.wait == wait) {
            return;
        }
        while let Some(held) = durable.held.pop_front() {
            durable.held_bytes -= held.bytes.len();
            self.output.get_or_insert_with(|| self.worker.buffer()).extend_from_slice(&held.bytes);
            if held.wait == wait {
                return;
            }
        }
    }

    /// Tells the session store of the will, if it is another than before.
    pub(super) fn tell_will(&mut self, now: Now) {
        let Some(durable) = &mut self.durable else { return };
        if durable.info.is_none() || matches!(durable.pending, Pending::Opening(_) | Pending::Resuming(..)) {
            return;
        }
        let will = self.session.will();
        let wanted = match will {
            None => KeptWill::None,
            Some((_, None)) => KeptWill::Connected,
            Some((_, Some(due_ms))) => KeptWill::Due(due_ms),
        };
        if durable.will == wanted {
            return;
        }
        durable.will = wanted;
        if let Some(session) = self.mailbox.kept_as() {
            let will = will.map(|(will, due_ms)| {
                stored(&session.client_id, will, due_ms.map(|due_ms| now.epoch_ms_of(due_ms)))
            });
            self.plane.queues.set_will(&session, will, None);
        }
    }
}

fn stored(client_id: &str, will: &Will, due_at_ms: Option<i64>) -> StoredWill {
    StoredWill { value: delivery::encode_will(client_id, will), due_at_ms }
}

fn wanted<'a>(filters: impl Iterator<Item = (&'a Text, &'a Options)>) -> Wanted {
    let recorded = |(filter, options): (&Text, &Options)| RecordedFilter::new(filter, *options);
    Wanted::filters(&filters.map(recorded).collect::<Vec<_>>())
}
