//! Who the client is, and what it may do: asks for it, and carries out what comes of it.

use std::sync::Arc;

use bytes::Bytes;
use tbmq_auth::credentials::ClientType;
use tbmq_mqtt::{
    codec::property::PropertyId,
    packet::{Connect, Text},
    session::{self, Effect, Now, Proven},
};

use super::Connection;
use crate::{
    auth::{Access, Bearer, Claim, Verdict},
    mailbox::Regrant,
    worker::Scratch,
};

/// A client that was let in, until it has its session.
#[derive(Debug)]
pub(crate) struct Guest {
    /// Unless the session has it.
    pub(super) proven: Proven,
    pub(super) client_type: ClientType,
    pub(super) details: Box<str>,
    bearer: Option<Arc<Bearer>>,
}

/// The user that a client has proved to be, or says it is: with SCRAM it is not CONNECT that says it.
pub(super) fn username(guest: Option<&Guest>, connect: &Connect) -> Option<Text> {
    match guest.and_then(|guest| guest.bearer.as_ref()) {
        Some(bearer) => bearer.username.clone(),
        None => connect.username.as_ref().map(Text::detached),
    }
}

impl Connection {
    /// Asks who the client is that has sent CONNECT, unless it comes from where it was let in already.
    pub(super) fn authenticate(&mut self, now: Now, scratch: &mut Scratch) {
        if let Some(guest) = &mut self.guest {
            let proven = std::mem::take(&mut guest.proven);
            return self.session.authenticated(now, proven, &mut scratch.effects);
        }
        let plane = self.plane.clone();
        let claim = self.connect.as_ref().and_then(|connect| self.claim(connect));
        if let Some(claim) = claim {
            let verdict = plane.auth.judge(claim, &self.mailbox, &mut self.exchange);
            self.judged(now, verdict, scratch);
        }
    }

    /// Goes on with the conversation by which the client proves who it is, or begins one anew.
    pub(super) fn prove(&mut self, now: Now, data: &Bytes, is_again: bool, scratch: &mut Scratch) {
        let plane = self.plane.clone();
        let Some(method) = self.session.authentication_method().cloned() else { return };
        let verdict = if is_again {
            let Some(mut claim) = self.claim_again() else { return };
            claim.method = Some((method, data.clone()));
            plane.auth.begin_again(claim, self.bearer.as_ref(), &self.mailbox, &mut self.exchange)
        } else {
            plane.auth.proceed(&mut self.exchange, &method, data, &self.mailbox)
        };
        self.judged(now, verdict, scratch);
    }

    /// Carries out what is to become of the client. The connection reads on when it was told.
    pub(super) fn judged(&mut self, now: Now, verdict: Verdict, scratch: &mut Scratch) {
        // It may have gone meanwhile.
        if !self.session.awaits_verdict() {
            return;
        }
        match verdict {
            Verdict::Accept(admission) => {
                self.exchange = None;
                let admission = *admission;
                let proven = Proven {
                    access: access(admission.access),
                    data: admission.server_final,
                    until_ms: admission.expires_at_ms,
                };
                let is_again = self.session.is_connected();
                if !is_again {
                    self.guest = Some(Box::new(Guest {
                        proven: Proven::default(),
                        client_type: admission.client_type,
                        details: admission.details,
                        bearer: admission.bearer,
                    }));
                    return self.session.authenticated(now, proven, &mut scratch.effects);
                }
                self.perform(now, scratch);
                self.session.authenticated(now, proven, &mut scratch.effects);
                self.narrow(now, scratch);
                self.bear(admission.bearer);
            }
            Verdict::Refuse(refusal) => {
                self.exchange = None;
                self.session.not_authenticated(now, refusal.reason, &mut scratch.effects);
            }
            Verdict::Challenge(data) => self.session.challenge(now, &data, &mut scratch.effects),
            Verdict::Later => {}
        }
    }

    /// The client may do something else from now on.
    pub(super) fn regrant(&mut self, now: Now, granted: Regrant, scratch: &mut Scratch) {
        let Regrant { bearer, access: granted, until_ms } = granted;
        // The session may have gone on with another login meanwhile, which was judged by what holds now.
        if self.bearer.as_ref().is_some_and(|own| Arc::ptr_eq(own, &bearer)) {
            self.perform(now, scratch);
            self.session.expire_login(now, until_ms);
            self.session.regrant(access(granted), &mut scratch.effects);
            self.narrow(now, scratch);
        }
    }

    /// Carries out effects, and records the filters that the client has if it may have had more.
    fn narrow(&mut self, now: Now, scratch: &mut Scratch) {
        let is_narrowed = scratch.effects.iter().any(is_narrowing);
        self.perform(now, scratch);
        if is_narrowed {
            self.record_narrowed();
        }
    }

    /// The client has its session.
    pub(super) fn settle_in(&mut self) {
        let bearer = self.guest.take().and_then(|guest| guest.bearer);
        self.bear(bearer);
    }

    /// The session's client has come by this.
    fn bear(&mut self, bearer: Option<Arc<Bearer>>) {
        let auth = &self.plane.auth;
        let before = std::mem::replace(&mut self.bearer, bearer);
        let ticket = self.bearer.as_ref().map(|bearer| bearer.ticket());
        if let Some(before) = before
            && Some(before.ticket()) != ticket
        {
            auth.left(&before, self.mailbox.number);
        }
        auth.admitted(self.bearer.as_ref(), &self.mailbox);
    }

    pub(super) fn claim(&self, connect: &Connect) -> Option<Claim> {
        let link = self.link.as_ref()?;
        let method = connect.properties.text(PropertyId::AuthenticationMethod);
        let data = connect.properties.binary(PropertyId::AuthenticationData);
        Some(Claim {
            client_id: self.session.client_id().clone(),
            username: connect.username.clone(),
            password: connect.password.clone(),
            common_names: link.peer.common_names.clone(),
            peer: link.peer.address,
            is_local: link.peer.is_local,
            is_tls: link.stream.is_tls(),
            method: method.map(|method| (method, data.unwrap_or_default())),
        })
    }

    /// Of a client that is connected: it has shown its password long ago.
    fn claim_again(&self) -> Option<Claim> {
        let (link, client) = (self.link.as_ref()?, self.mailbox.client()?);
        Some(Claim {
            client_id: client.id.clone(),
            username: client.username.clone(),
            password: None,
            common_names: link.peer.common_names.clone(),
            peer: link.peer.address,
            is_local: link.peer.is_local,
            is_tls: link.stream.is_tls(),
            method: None,
        })
    }
}

/// As the session wants it: who may do everything is not asked.
fn access(access: Access) -> Option<Box<dyn session::Access>> {
    match access {
        Access::Everything => None,
        rules @ Access::Rules(_) => Some(Box::new(rules)),
    }
}

/// Whether the client has less of a filter, or does not have it any more.
pub(super) fn is_narrowing(effect: &Effect) -> bool {
    matches!(effect, Effect::Unsubscribe { .. } | Effect::Restrict { .. })
}
