//! What others want of a session: to know how it is, and to give it other filters, without a packet.

use super::{Effect, Now, Options, Phase, Session, auth::access};
use crate::{packet::Text, small_map::SmallMap, topic};

/// How a session is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// How long it outlives its connection, in seconds, as [`Session::expiry_s`].
    pub expiry_s: u32,
    /// When it ends, ms since 1970, unless its client comes back; `None` while connected, and when it never does.
    pub expires_at_ms: Option<i64>,
    /// Deliveries that were sent and are not settled.
    pub in_flight: usize,
    /// QoS 2 publishes of the client that it has not released.
    pub received: usize,
    /// Unacknowledged deliveries that the client takes; 0 while it is not connected.
    pub receive_maximum: u16,
    /// Bytes of a packet that the client takes; 0: any.
    pub packet_bytes_max: u32,
    /// Topic aliases that are used towards the client.
    pub topic_aliases: u16,
}

/// Why a client can't have filters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAssigned {
    /// A filter is no valid one here.
    #[error("the topic filter {0:?} is not valid here")]
    Invalid(String),
    /// The client may not subscribe to it with this quality of service.
    #[error("the client has no right to the topic filter {0:?} with this quality of service")]
    NotAuthorized(String),
    /// There are too many.
    #[error("a client may have {0} subscriptions")]
    TooMany(usize),
}

impl Session {
    /// How it is.
    pub fn summary(&self, now: Now) -> Summary {
        let expires_ms = match self.phase {
            Phase::Parked { expires_ms, .. } => expires_ms,
            _ => None,
        };
        let reception = self.outbound.reception().filter(|_| self.is_connected());
        Summary {
            expiry_s: self.expiry_s,
            expires_at_ms: expires_ms.map(|ms| now.epoch_ms_of(ms)),
            in_flight: self.outbound.flights(),
            received: self.inbound.received().len(),
            receive_maximum: reception.map_or(0, |reception| reception.window),
            packet_bytes_max: reception.and_then(|reception| reception.packet_bytes_max).unwrap_or(0),
            topic_aliases: reception.map_or(0, |reception| reception.aliases_max),
        }
    }

    /// Whether the client may have these filters in place of those that it has.
    ///
    /// # Errors
    /// For the first that it may not have.
    pub fn check_filters(&mut self, filters: &[(Text, Options)]) -> Result<(), NotAssigned> {
        if filters.len() > self.limits.subscriptions_max {
            return Err(NotAssigned::TooMany(self.limits.subscriptions_max));
        }
        for (filter, options) in filters {
            let plain = topic::shared(filter).map(|shared| shared.map_or(&**filter, |(_, plain)| plain));
            if !plain.is_ok_and(|plain| topic::check_filter(plain, &self.limits.rules).is_ok()) {
                return Err(NotAssigned::Invalid(filter.to_string()));
            }
            let granted = access(&mut self.login).map(|access| access.grant(filter, options.qos));
            if granted.is_some_and(|granted| granted != Some(options.qos)) {
                return Err(NotAssigned::NotAuthorized(filter.to_string()));
            }
        }
        Ok(())
    }

    /// Gives the client these filters, which were checked, in place of those that it has. It is told nothing: what is new
    /// or has other options comes out as [`Effect::Restrict`], for which no retained messages are sent.
    pub fn assign_filters(&mut self, filters: Vec<(Text, Options)>, out: &mut Vec<Effect>) {
        let wanted: SmallMap<Text, Options> =
            filters.into_iter().map(|(filter, options)| (filter.detached(), options)).collect();
        for (filter, _) in self.filters.iter().filter(|(filter, _)| !wanted.contains_key(filter)) {
            out.push(Effect::Unsubscribe { filter: filter.detached() });
        }
        for (filter, options) in
            wanted.iter().filter(|(filter, options)| self.filters.get(filter) != Some(options))
        {
            out.push(Effect::Restrict { filter: filter.detached(), options: *options });
        }
        self.filters = wanted;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        packet::Qos,
        session::{Limits, State},
    };

    fn options(qos: Qos) -> Options {
        Options { qos, ..Options::default() }
    }

    fn parked(filters: &[(&str, Qos)]) -> Session {
        let state = State {
            client_id: "c".into(),
            filters: filters.iter().map(|(filter, qos)| (Text::from(*filter), options(*qos))).collect(),
            in_flight: Vec::new(),
            received: vec![7],
            will: None,
            expiry_s: 10,
            expires_at_ms: Some(12_000),
        };
        let limits = Limits { subscriptions_max: 2, ..Limits::default() };
        Session::restored(Arc::new(limits), Now { monotonic_ms: 1, epoch_ms: 2_000 }, state)
    }

    #[test]
    fn what_a_client_is_given_replaces_what_it_had_and_only_what_differs_is_told() {
        let mut session = parked(&[("a", Qos::AtMostOnce), ("b", Qos::AtMostOnce)]);
        let wanted = vec![("b".into(), options(Qos::AtLeastOnce)), ("c".into(), options(Qos::ExactlyOnce))];
        session.check_filters(&wanted).unwrap();
        let mut out = Vec::new();
        session.assign_filters(wanted.clone(), &mut out);
        let restrict = |(filter, options): &(Text, Options)| Effect::Restrict {
            filter: filter.clone(),
            options: *options,
        };
        assert_eq!(out[0], Effect::Unsubscribe { filter: "a".into() });
        assert_eq!(out.len(), 3);
        assert!(wanted.iter().map(restrict).all(|effect| out.contains(&effect)), "{out:?}");
        assert_eq!(session.filters().len(), 2);
        out.clear();
        session.assign_filters(wanted, &mut out);
        assert_eq!(out, []);
    }

    #[test]
    fn what_a_client_may_not_have_is_refused() {
        let mut session = parked(&[]);
        let one = |filter: &str| (Text::from(filter), Options::default());
        assert_eq!(session.check_filters(&[one("a/#/b")]), Err(NotAssigned::Invalid("a/#/b".to_owned())));
        assert_eq!(session.check_filters(&[one("a"), one("b"), one("c")]), Err(NotAssigned::TooMany(2)));
        assert_eq!(session.check_filters(&[one("$share/g/a/#"), one("+")]), Ok(()));
        session.set_access(Some(Box::new(super::super::access::Nothing)));
        assert_eq!(session.check_filters(&[one("a")]), Err(NotAssigned::NotAuthorized("a".to_owned())));
    }

    #[test]
    fn a_parked_session_tells_when_it_ends() {
        let summary = parked(&[]).summary(Now { monotonic_ms: 1, epoch_ms: 2_000 });
        assert_eq!((summary.expiry_s, summary.expires_at_ms, summary.received), (10, Some(12_000), 1));
        assert_eq!((summary.receive_maximum, summary.in_flight), (0, 0));
    }
}
