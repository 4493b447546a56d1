//! Enhanced authentication (MQTT 5.0 §4.12), and what a client may do once it is known who it is.
//!
//! The driver knows methods and passwords; this is the exchange around them. Before CONNACK:
//!
//! | what comes | answer |
//! |---|---|
//! | AUTH 0x18 with the method of CONNECT and data | the driver's |
//! | AUTH with another method | CONNACK 0x8C |
//! | AUTH without data, or not 0x18 | CONNACK 0x80 |
//! | AUTH without a method, any other packet | CONNACK 0x82 |
//! | DISCONNECT | none |
//!
//! and on a connection that has begun with a method:
//!
//! | what comes | answer |
//! |---|---|
//! | AUTH 0x19 with data; AUTH 0x18 with data after a challenge | the driver's: AUTH 0x18, AUTH 0x00, DISCONNECT 0x87 |
//! | AUTH with another method, or without data | DISCONNECT 0x87 |
//! | AUTH without a method, or out of turn | DISCONNECT 0x82 |

use bytes::Bytes;

use super::{Access, Effect, End, Now, Phase, Session};
use crate::{
    codec::property::{PropertiesBuilder, PropertyId},
    packet::{Disconnect, Packet, ReasonCode, Text},
};

/// Whose turn it is while the client proves who it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Exchange {
    /// Nobody's: there is none.
    #[default]
    None,
    /// The driver's.
    Judging,
    /// The client's.
    Challenged,
}

/// What is known of a client that is who it says.
#[derive(Debug, Default)]
pub struct Proven {
    /// What it may do; `None`: everything.
    pub access: Option<Box<dyn Access>>,
    /// Authentication Data that goes with CONNACK, or with AUTH 0x00, where there was a method.
    pub data: Option<Bytes>,
    /// When it is to be disconnected, ms since 1970.
    pub until_ms: Option<i64>,
}

/// What is known of the client of the connection that there is, or was last.
#[derive(Debug, Default)]
pub(super) struct Login {
    pub(super) method: Option<Text>,
    pub(super) access: Option<Box<dyn Access>>,
    /// Of the monotonic clock.
    pub(super) until_ms: Option<u64>,
}

impl Login {
    /// `None`: there is nothing to be known.
    pub(super) fn new(now: Now, method: Option<Text>, proven: Proven) -> Option<Box<Self>> {
        let Proven { access, data: _, until_ms } = proven;
        let until_ms = until_ms.map(|until_ms| monotonic_ms(now, until_ms));
        let is_empty = method.is_none() && access.is_none() && until_ms.is_none();
        (!is_empty).then(|| Box::new(Self { method, access, until_ms }))
    }
}

fn monotonic_ms(now: Now, epoch_ms: i64) -> u64 {
    now.monotonic_ms + u64::try_from(epoch_ms.saturating_sub(now.epoch_ms)).unwrap_or_default()
}

/// Who is asked what the client may do.
pub(super) fn access(login: &mut Option<Box<Login>>) -> Option<&mut dyn Access> {
    match &mut login.as_mut()?.access {
        Some(access) => Some(&mut **access),
        None => None,
    }
}

impl Session {
    /// Whether the driver is to judge: no packet is to be given to the session before it has.
    pub fn awaits_verdict(&self) -> bool {
        self.exchange == Exchange::Judging
    }

    /// The method by which the client authenticates, if it has named one in CONNECT.
    pub fn authentication_method(&self) -> Option<&Text> {
        let accepted = self.accepted.as_ref().and_then(|accepted| accepted.method.as_ref());
        accepted.or_else(|| self.login.as_ref()?.method.as_ref())
    }

    /// The client is who it says. Before CONNACK it is admitted ([`Effect::Admit`]), unless it may not publish its
    /// will; afterwards it is told (AUTH 0x00), and has these rights. Without effect unless the driver was asked.
    pub fn authenticated(&mut self, now: Now, proven: Proven, out: &mut Vec<Effect>) {
        if self.exchange != Exchange::Judging {
            return;
        }
        self.exchange = Exchange::None;
        if self.is_connected() {
            self.authenticated_again(now, proven, out);
        } else {
            self.accept(now, proven, out);
        }
    }

    fn authenticated_again(&mut self, now: Now, proven: Proven, out: &mut Vec<Effect>) {
        let success = self.auth_packet(ReasonCode::Success, proven.data.as_deref());
        if !self.fits(&success) {
            return self.fail(now, ReasonCode::PacketTooLarge, End::Protocol, out);
        }
        let method = self.authentication_method().cloned();
        self.login = Login::new(now, method, proven);
        self.judge_filters(out);
        out.push(Effect::Send(success));
    }

    /// The client is to prove more: it gets this Authentication Data (AUTH 0x18). Without effect unless the driver was
    /// asked.
    pub fn challenge(&mut self, now: Now, data: &[u8], out: &mut Vec<Effect>) {
        if self.exchange != Exchange::Judging {
            return;
        }
        let challenge = self.auth_packet(ReasonCode::ContinueAuthentication, Some(data));
        // MQTT5-3.1.2-24
        if !self.fits(&challenge) {
            return self.not_authenticated(now, ReasonCode::PacketTooLarge, out);
        }
        self.exchange = Exchange::Challenged;
        out.push(Effect::Send(challenge));
    }

    /// The client is not who it says. Before CONNACK it is told for this reason, by the return code that comes closest
    /// for 3.x; afterwards it is told 0x87. Without effect unless the client is proving who it is.
    pub fn not_authenticated(&mut self, now: Now, reason: ReasonCode, out: &mut Vec<Effect>) {
        if self.exchange == Exchange::None {
            return;
        }
        self.exchange = Exchange::None;
        if self.is_connected() {
            self.fail(now, ReasonCode::NotAuthorized, End::NotAuthorized, out);
        } else {
            self.refuse_connect(now, reason, out);
        }
    }

    /// What the client may do has changed; `None`: everything. Its filters are judged again, whether there is a
    /// connection or not.
    pub fn regrant(&mut self, access: Option<Box<dyn Access>>, out: &mut Vec<Effect>) {
        if self.phase != Phase::Closed {
            self.set_access(access);
            self.judge_filters(out);
        }
    }

    /// When the client is to be disconnected, ms since 1970, has changed; `None`: never for that reason.
    pub fn expire_login(&mut self, now: Now, until_ms: Option<i64>) {
        match (&mut self.accepted, &mut self.login) {
            (Some(accepted), _) => accepted.proven.until_ms = until_ms,
            (None, Some(login)) => login.until_ms = until_ms.map(|until_ms| monotonic_ms(now, until_ms)),
            (None, None) => {
                self.login = Login::new(now, None, Proven { until_ms, ..Proven::default() });
            }
        }
    }

    /// What was proven of a client that is to be admitted; to be given to the session that it goes on with.
    pub fn take_proven(&mut self) -> Proven {
        self.accepted.as_mut().map(|accepted| std::mem::take(&mut accepted.proven)).unwrap_or_default()
    }

    /// Puts back what was taken: it goes on with no other session.
    pub fn put_proven(&mut self, proven: Proven) {
        if let Some(accepted) = &mut self.accepted {
            accepted.proven = proven;
        }
    }

    pub(super) fn set_access(&mut self, access: Option<Box<dyn Access>>) {
        match (&mut self.accepted, &mut self.login) {
            (Some(accepted), _) => accepted.proven.access = access,
            (None, Some(login)) => login.access = access,
            (None, None) if access.is_some() => {
                self.login = Some(Box::new(Login { access, ..Login::default() }));
            }
            (None, None) => {}
        }
    }

    pub(super) fn access(&mut self) -> Option<&mut dyn Access> {
        access(&mut self.login)
    }

    pub(super) fn login_until_ms(&self) -> Option<u64> {
        self.login.as_ref().and_then(|login| login.until_ms)
    }

    fn auth_packet(&self, reason: ReasonCode, data: Option<&[u8]>) -> Packet {
        let mut properties = PropertiesBuilder::new();
        // MQTT5-4.12.0-5
        if let Some(method) = self.authentication_method() {
            properties = properties.text(PropertyId::AuthenticationMethod, method);
        }
        if let Some(data) = data {
            properties = properties.binary(PropertyId::AuthenticationData, data);
        }
        Packet::Auth(Disconnect { reason, properties: properties.build() })
    }

    /// Handles a packet that comes before CONNACK: the answer to a challenge (MQTT5-3.1.2-30).
    pub(super) fn answered(&mut self, now: Now, packet: &Packet, out: &mut Vec<Effect>) {
        if self.exchange != Exchange::Challenged || !matches!(self.phase, Phase::Connecting { .. }) {
            return;
        }
        let refused = match packet {
            Packet::Auth(auth) => match self.auth_data(auth) {
                Ok(Some(data)) if auth.reason == ReasonCode::ContinueAuthentication => {
                    self.exchange = Exchange::Judging;
                    return out.push(Effect::Prove { data, is_again: false });
                }
                Ok(_) => ReasonCode::UnspecifiedError,
                Err(reason) => reason,
            },
            Packet::Disconnect(_) => return self.close(now, End::Client, out),
            _ => ReasonCode::ProtocolError,
        };
        self.not_authenticated(now, refused, out);
    }

    /// Handles AUTH on a connection.
    pub(super) fn auth(&mut self, now: Now, auth: &Disconnect, out: &mut Vec<Effect>) {
        let is_again = auth.reason == ReasonCode::ReAuthenticate;
        let is_in_turn = match self.exchange {
            Exchange::None => is_again,
            Exchange::Judging => false,
            Exchange::Challenged => auth.reason == ReasonCode::ContinueAuthentication,
        };
        let reason = match self.auth_data(auth) {
            // MQTT5-4.12.0-7, MQTT5-4.12.1-1
            Err(ReasonCode::ProtocolError) => ReasonCode::ProtocolError,
            Ok(_) if !is_in_turn => ReasonCode::ProtocolError,
            Ok(Some(data)) => {
                self.exchange = Exchange::Judging;
                return out.push(Effect::Prove { data, is_again });
            }
            // MQTT5-4.12.1-2
            Ok(None) | Err(_) => ReasonCode::NotAuthorized,
        };
        let end = if reason == ReasonCode::NotAuthorized { End::NotAuthorized } else { End::Protocol };
        self.fail(now, reason, end, out);
    }

    /// The data of an AUTH whose method is the one of CONNECT.
    fn auth_data(&self, auth: &Disconnect) -> Result<Option<Bytes>, ReasonCode> {
        let (Some(method), Some(named)) =
            (self.authentication_method(), auth.properties.text(PropertyId::AuthenticationMethod))
        else {
            return Err(ReasonCode::ProtocolError);
        };
        if *method != named {
            return Err(ReasonCode::BadAuthenticationMethod);
        }
        Ok(auth.properties.binary(PropertyId::AuthenticationData).filter(|data| !data.is_empty()))
    }
}
