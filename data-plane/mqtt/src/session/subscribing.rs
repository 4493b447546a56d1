//! SUBSCRIBE and UNSUBSCRIBE: which filters a client has, and what it is told.
//!
//! Where the filters have to be kept elsewhere before the client is told so, the driver asks first what a packet would
//! make of them ([`Session::filters_after`]), and gives the packet to the session, or has it refused, then.

use super::{Access, Effect, End, Limits, Now, Options, Session, auth::access, explanation};
use crate::{
    codec::property::{Properties, PropertyId},
    packet::{Packet, ProtocolVersion, Qos, ReasonCode, SubAck, Subscribe, Text, Unsubscribe},
    small_map::SmallMap,
    topic,
};

/// What no client may ask for.
struct Forbidden;

impl Session {
    /// The filters that the client would have after this packet; `None` when it changes none.
    pub fn filters_after(&mut self, packet: &Packet) -> Option<Vec<(Text, Options)>> {
        let mut filters = self.filters.clone();
        let mut ignored = Vec::new();
        match packet {
            Packet::Subscribe(subscribe) => {
                let access = access(&mut self.login);
                if !self.outbound.takes_answer(subscribe.subscriptions.len())
                    || grant(&mut filters, subscribe, &self.limits, access, &mut ignored).is_err()
                {
                    return None;
                }
            }
            Packet::Unsubscribe(unsubscribe) => {
                if !self.outbound.takes_answer(unsubscribe.filters.len()) {
                    return None;
                }
                withdraw(&mut filters, unsubscribe, &mut ignored);
            }
            _ => return None,
        }
        let owned = |(filter, options): (&Text, &Options)| (filter.clone(), *options);
        (filters != self.filters).then(|| filters.iter().map(owned).collect())
    }

    /// Refuses a SUBSCRIBE or UNSUBSCRIBE, which changes nothing: the filters can't be kept now.
    pub fn refuse_filters(&mut self, now: Now, packet: &Packet, out: &mut Vec<Effect>) {
        if !self.is_connected() {
            return;
        }
        let (packet_id, count) = match packet {
            Packet::Subscribe(subscribe) => (subscribe.packet_id, subscribe.subscriptions.len()),
            Packet::Unsubscribe(unsubscribe) => (unsubscribe.packet_id, unsubscribe.filters.len()),
            _ => return,
        };
        let is_subscribe = matches!(packet, Packet::Subscribe(_));
        if !is_subscribe && self.version != Some(ProtocolVersion::V5) {
            // An UNSUBACK of 3.x says that it is done.
            return self.fail(now, ReasonCode::UnspecifiedError, End::PublishRefused, out);
        }
        let reasons = vec![ReasonCode::UnspecifiedError; count];
        let answer = SubAck { packet_id, reasons, properties: Properties::NONE };
        out.push(Effect::Send(if is_subscribe { Packet::SubAck(answer) } else { Packet::UnsubAck(answer) }));
    }

    pub(super) fn subscribe(&mut self, now: Now, subscribe: &Subscribe, out: &mut Vec<Effect>) {
        if !self.outbound.takes_answer(subscribe.subscriptions.len()) {
            return self.fail(now, ReasonCode::PacketTooLarge, End::Protocol, out);
        }
        let access = access(&mut self.login);
        let Ok(reasons) = grant(&mut self.filters, subscribe, &self.limits, access, out) else {
            return self.fail(now, ReasonCode::ProtocolError, End::Protocol, out);
        };
        let text = reasons.iter().find_map(|reason| explanation(*reason));
        let suback = SubAck { packet_id: subscribe.packet_id, reasons, properties: self.explained(text) };
        self.answer(Packet::SubAck(suback), out);
    }

    pub(super) fn unsubscribe(&mut self, now: Now, unsubscribe: &Unsubscribe, out: &mut Vec<Effect>) {
        if !self.outbound.takes_answer(unsubscribe.filters.len()) {
            return self.fail(now, ReasonCode::PacketTooLarge, End::Protocol, out);
        }
        let reasons = withdraw(&mut self.filters, unsubscribe, out);
        let unsuback = SubAck { packet_id: unsubscribe.packet_id, reasons, properties: Properties::NONE };
        self.answer(Packet::UnsubAck(unsuback), out);
    }

    /// Judges the filters again that the client has: those that it may not have any more are taken away, and those
    /// that it may have less of are restricted.
    pub(super) fn judge_filters(&mut self, out: &mut Vec<Effect>) {
        let Some(access) = access(&mut self.login) else { return };
        let judged = self.filters.iter().filter_map(|(filter, options)| {
            let granted = access.grant(filter, options.qos);
            (granted != Some(options.qos)).then(|| (filter.clone(), *options, granted))
        });
        for (filter, options, granted) in judged.collect::<Vec<_>>() {
            if let Some(qos) = granted {
                let options = Options { qos, ..options };
                self.filters.insert(filter.detached(), options);
                out.push(Effect::Restrict { filter, options });
            } else {
                self.filters.remove(&filter);
                out.push(Effect::Unsubscribe { filter });
            }
        }
    }

    /// Sends an answer, without words where the client does not take them.
    fn answer(&self, mut packet: Packet, out: &mut Vec<Effect>) {
        if !self.fits(&packet)
            && let Packet::SubAck(suback) | Packet::UnsubAck(suback) = &mut packet
        {
            suback.properties = Properties::NONE;
        }
        out.push(Effect::Send(packet));
    }
}

/// Adds and replaces filters, as far as they are valid, the client may have them, and there is room. Stops at what is forbidden.
fn grant(
    filters: &mut SmallMap<Text, Options>,
    subscribe: &Subscribe,
    limits: &Limits,
    mut access: Option<&mut dyn Access>,
    out: &mut Vec<Effect>,
) -> Result<Vec<ReasonCode>, Forbidden> {
    let identifier = subscribe.properties.number(PropertyId::SubscriptionIdentifier);
    let mut reasons = Vec::with_capacity(subscribe.subscriptions.len());
    for wanted in &subscribe.subscriptions {
        let plain =
            topic::shared(&wanted.filter).map(|shared| shared.map_or(&*wanted.filter, |(_, filter)| filter));
        if wanted.no_local && wanted.filter.starts_with("$share/") {
            // MQTT-3.8.3-4
            return Err(Forbidden);
        }
        let is_valid = plain.is_ok_and(|plain| topic::check_filter(plain, &limits.rules).is_ok());
        if !is_valid {
            reasons.push(ReasonCode::TopicFilterInvalid);
            continue;
        }
        let granted = match &mut access {
            Some(access) => access.grant(&wanted.filter, wanted.qos),
            None => Some(wanted.qos),
        };
        let Some(qos) = granted else {
            reasons.push(ReasonCode::NotAuthorized);
            continue;
        };
        let is_new = !filters.contains_key(&wanted.filter);
        if is_new && filters.len() >= limits.subscriptions_max {
            reasons.push(ReasonCode::QuotaExceeded);
            continue;
        }
        let options = Options {
            qos,
            no_local: wanted.no_local,
            retain_as_published: wanted.retain_as_published,
            retain_handling: wanted.retain_handling,
            identifier,
        };
        // A copy that nobody shares: what is shared takes more.
        filters.insert(wanted.filter.detached(), options);
        out.push(Effect::Subscribe { filter: wanted.filter.detached(), options, is_new });
        reasons.push(match qos {
            Qos::AtMostOnce => ReasonCode::Success,
            Qos::AtLeastOnce => ReasonCode::GrantedQos1,
            Qos::ExactlyOnce => ReasonCode::GrantedQos2,
        });
    }
    Ok(reasons)
}

/// Takes filters away.
fn withdraw(
    filters: &mut SmallMap<Text, Options>,
    unsubscribe: &Unsubscribe,
    out: &mut Vec<Effect>,
) -> Vec<ReasonCode> {
    let take = |filter: &Text| {
        if filters.remove(filter).is_some() {
            out.push(Effect::Unsubscribe { filter: filter.detached() });
            ReasonCode::Success
        } else {
            ReasonCode::NoSubscriptionExisted
        }
    };
    unsubscribe.filters.iter().map(take).collect()
}
