//! How a connection finds its session: it begins one, or goes to the task that has it.

use std::sync::atomic::{AtomicI64, AtomicUsize};

use tbmq_mqtt::{
    packet::{Connect, ReasonCode},
    session::{End, Now, Session},
};

use super::{
    Connection,
    authentication::{is_narrowing, username},
};
use crate::{link::Visitor, mailbox::Client, plane::Admission, session_store, worker::Scratch};

impl Connection {
    pub(super) fn connect(&mut self, now: Now, connect: Box<Connect>, scratch: &mut Scratch) {
        let assigned = || uuid::Uuid::new_v4().simple().to_string();
        self.session.connect(now, &connect, assigned, &mut scratch.effects);
        self.connect = Some(connect);
    }

    /// Finds out what the connection goes on with.
    pub(super) fn admit(&mut self, now: Now, resume: bool, scratch: &mut Scratch) {
        let plane = self.plane.clone();
        if let Some(connect) = self.connect.take() {
            // Whoever finds it in the registry is to know who it is.
            self.introduce(now, &connect);
            self.connect = Some(connect);
        }
        let beginning = match self.beginning(now) {
            Ok(beginning) => beginning,
            Err(reason) => return self.session.refuse_connect(now, reason, &mut scratch.effects),
        };
        let client_id = self.session.client_id().clone();
        let mut opening = None;
        let is_application = self.connect.as_ref().is_some_and(|connect| self.is_application(connect));
        let is_full = || is_application && plane.limiter.applications.are_full();
        let admission = plane.registry.admit(&client_id, &self.mailbox, resume, is_full, |was_kept| {
            opening = beginning.and_then(|begin| begin.keep(&plane, &self.mailbox, &client_id, was_kept));
        });
        match admission {
            Admission::Open => {
                self.application = is_application.then(|| plane.limiter.applications.place());
                self.settle_in();
                if let Some(opening) = opening {
                    return self.await_opening(opening);
                }
                self.connect = None;
                self.session.open(now, &mut scratch.effects);
                if self.session.is_persistent() {
                    let name = session_store::Session::new(client_id, plane.queues.epoch());
                    plane.queues.open(&name);
                    self.mailbox.keep(name);
                }
            }
            Admission::Visit(host) => self.host = Some(host),
            Admission::Foreign => {
                let claim = self.connect.as_ref().and_then(|connect| self.claim(connect));
                if let Some(claim) = claim {
                    plane.auth.note_refused(&claim, "the client id is another user's");
                }
                self.session.refuse_connect(now, ReasonCode::NotAuthorized, &mut scratch.effects);
            }
            Admission::Full => {
                self.session.refuse_connect(now, ReasonCode::QuotaExceeded, &mut scratch.effects);
            }
        }
    }

    /// Gives the connection to the session that it belongs to. When that is over meanwhile, begins one.
    pub(super) fn visit(&mut self, now: Now, scratch: &mut Scratch) {
        while let Some(host) = self.host.take() {
            let (Some(link), Some(connect), Some(mut guest)) =
                (self.link.take(), self.connect.take(), self.guest.take())
            else {
                return;
            };
            guest.proven = self.session.take_proven();
            let visitor = Box::new(Visitor { link, connect, input: self.input.take(), guest });
            let Err(visitor) = host.visit(visitor) else {
                self.is_over = true;
                return;
            };
            let Visitor { link, connect, input, mut guest } = *visitor;
            let resume = !connect.clean_start;
            self.session.put_proven(std::mem::take(&mut guest.proven));
            (self.link, self.connect, self.input) = (Some(link), Some(connect), input);
            self.guest = Some(guest);
            self.admit(now, resume, scratch);
            self.perform(now, scratch);
        }
    }

    /// Goes on with another connection of the client.
    pub(super) fn attach(&mut self, now: Now, visitor: Visitor, scratch: &mut Scratch) {
        self.take_over(now, scratch);
        let Visitor { link, connect, input, mut guest } = visitor;
        self.link(link);
        self.input = input;
        self.stalled_by_ms = None;
        let mut is_narrowed = false;
        if self.session.is_parked() {
            let proven = std::mem::take(&mut guest.proven);
            self.guest = Some(guest);
            self.session.resume(now, self.limits.clone(), &connect, proven, &mut scratch.effects);
            let is_application = self.is_application(&connect);
            self.application = is_application.then(|| self.plane.limiter.applications.place());
            is_narrowed = scratch.effects.iter().any(is_narrowing);
            self.introduce(now, &connect);
            self.note_filters();
            self.plane.registry.resume(self.session.client_id(), self.mailbox.number);
            self.mailbox.resume();
            if self.session.is_connected() {
                self.settle_in();
            }
        } else {
            self.session = Session::new(self.limits.clone(), now);
            self.guest = Some(guest);
            self.connect(now, connect, scratch);
        }
        self.perform(now, scratch);
        if is_narrowed {
            self.record_narrowed();
        }
        self.visit(now, scratch);
    }

    /// Ends the connection that the session has, for another one.
    pub(super) fn take_over(&mut self, now: Now, scratch: &mut Scratch) {
        if self.session.is_connected() {
            let farewell = self.farewell;
            self.end(now, End::TakenOver, scratch);
            self.farewell = farewell;
        }
    }

    /// Notes who the client is, for those who ask.
    fn introduce(&self, now: Now, connect: &Connect) {
        if !self.session.is_closed() {
            self.mailbox.introduce(Client {
                id: self.session.client_id().clone(),
                username: username(self.guest.as_deref(), connect),
                version: connect.version,
                clean_start: connect.clean_start,
                keep_alive_s: self.session.keep_alive_s(),
                client_type: self.guest.as_ref().map(|guest| guest.client_type).unwrap_or_default(),
                details: self.guest.as_ref().map(|guest| guest.details.clone()).unwrap_or_default(),
                peer: self.link.as_ref().map(|link| link.peer.address),
                session_id: self.session_id(),
                connected_ms: now.epoch_ms,
                disconnected_ms: AtomicI64::new(0),
                filters: AtomicUsize::new(0),
            });
        }
    }
}
