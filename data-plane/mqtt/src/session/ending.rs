//! How a connection ends, and what of the session outlives it: the will until it is due, and the rest until it
//! expires.

use super::{Dropped, Effect, End, Exchange, NEVER_S, Now, Phase, Session, access::Nothing, will};
use crate::{
    codec::property::{PropertiesBuilder, PropertyId},
    packet::{Disconnect, Packet, ProtocolVersion, ReasonCode},
};

impl Session {
    /// Ends the connection for a reason of the driver's, telling a 5.0 client why and publishing the will where one is
    /// due. [`End::NotAuthorized`]: the client has no rights any more, with a connection or without one, and the
    /// will is not published.
    pub fn end(&mut self, now: Now, end: End, out: &mut Vec<Effect>) {
        if end == End::NotAuthorized {
            self.set_access(Some(Box::new(Nothing)));
        }
        let reason = match end {
            _ if self.phase != Phase::Connected => return self.close(now, end, out),
            End::KeepAlive => Some(ReasonCode::KeepAliveTimeout),
            End::TakenOver => Some(ReasonCode::SessionTakenOver),
            // A reference goes with this reason only (MQTT 5.0 §4.11).
            End::ShuttingDown if self.limits.server_reference.is_empty() => {
                Some(ReasonCode::ServerShuttingDown)
            }
            End::ShuttingDown | End::Moved => Some(ReasonCode::UseAnotherServer),
            End::Administrative => Some(ReasonCode::AdministrativeAction),
            End::NotAuthorized => Some(ReasonCode::NotAuthorized),
            End::SlowConsumer => Some(ReasonCode::QuotaExceeded),
            End::Protocol => Some(ReasonCode::ProtocolError),
            End::PublishRefused | End::Refused | End::ConnectTimeout => Some(ReasonCode::UnspecifiedError),
            End::Client | End::Network => None,
        };
        match reason {
            Some(reason) => self.fail(now, reason, end, out),
            None => {
                self.publish_will(now, out);
                self.close(now, end, out);
            }
        }
    }

    pub(super) fn fail(&mut self, now: Now, reason: ReasonCode, end: End, out: &mut Vec<Effect>) {
        self.fail_with(now, reason, None, end, out);
    }

    pub(super) fn fail_with(
        &mut self,
        now: Now,
        reason: ReasonCode,
        text: Option<&str>,
        end: End,
        out: &mut Vec<Effect>,
    ) {
        if self.phase != Phase::Connected {
            return self.close(now, end, out);
        }
        // A 3.x client can only be told by closing.
        if self.version == Some(ProtocolVersion::V5) {
            let reference = &self.limits.server_reference;
            let mut properties = PropertiesBuilder::new();
            if reason == ReasonCode::UseAnotherServer && !reference.is_empty() {
                properties = properties.text(PropertyId::ServerReference, reference);
            }
            if let Some(text) = text {
                properties = properties.text(PropertyId::ReasonString, text);
            }
            let full = Packet::Disconnect(Disconnect { reason, properties: properties.build() });
            // MQTT5-3.14.2-3
            let fits = self.fits(&full);
            out.push(Effect::Send(if fits { full } else { Packet::Disconnect(Disconnect::new(reason)) }));
        }
        self.publish_will(now, out);
        self.close(now, end, out);
    }

    /// Publishes the will, unless it has to wait: it is due when its delay is over or the session is, whichever comes
    /// first (MQTT5-3.1.3-9, §3.1.2.5).
    fn publish_will(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.will_delay_s() == 0 {
            self.send_will(now, out);
        }
    }

    fn will_delay_s(&self) -> u32 {
        self.will.as_ref().map_or(0, |will| will::delay_s(will)).min(self.expiry_s)
    }

    pub(super) fn send_will(&mut self, now: Now, out: &mut Vec<Effect>) {
        if let Some(will) = self.will.take() {
            // What the client may do can have changed since CONNECT.
            if !self.access().is_none_or(|access| access.may_publish(&will.topic, will.qos, will.retain)) {
                return out.push(Effect::Dropped(Dropped::NotAuthorized));
            }
            let message = will::message(*will, self.client_id.clone(), now);
            out.push(Effect::Publish { number: None, message });
        }
    }

    pub(super) fn close(&mut self, now: Now, end: End, out: &mut Vec<Effect>) {
        let in_ms = |seconds: u32| now.monotonic_ms + u64::from(seconds) * 1000;
        match self.phase {
            Phase::Closed | Phase::Parked { .. } => return,
            Phase::Connected if self.expiry_s > 0 => {
                self.inbound.park();
                self.phase = Phase::Parked {
                    expires_ms: (self.expiry_s != NEVER_S).then(|| in_ms(self.expiry_s)),
                    will_due_ms: self.will.as_ref().map(|_| in_ms(self.will_delay_s())),
                };
            }
            Phase::Connected | Phase::Connecting { .. } => self.phase = Phase::Closed,
        }
        self.exchange = Exchange::None;
        out.push(Effect::Close(end));
    }

    /// Ends a parked session: its will, if there is one, is due (MQTT 5.0 §3.1.2.5).
    pub fn discard(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.is_parked() {
            self.phase = Phase::Closed;
            self.send_will(now, out);
            out.push(Effect::Over);
        }
    }

    pub(super) fn disconnected(&mut self, now: Now, disconnect: &Disconnect, out: &mut Vec<Effect>) {
        if let Some(expiry_s) = disconnect.properties.number(PropertyId::SessionExpiryInterval) {
            if expiry_s > 0 && !self.had_expiry {
                // MQTT 5.0 §3.14.2.2.2
                return self.fail(now, ReasonCode::ProtocolError, End::Protocol, out);
            }
            self.expiry_s = expiry_s.min(self.limits.session_expiry_max_s);
        }
        if disconnect.reason == ReasonCode::Success {
            // MQTT-3.14.4-3
            self.will = None;
        }
        self.end(now, End::Client, out);
    }
}
