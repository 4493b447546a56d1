//! A parked session as one value: what a store keeps, so that the session outlives the process.

use std::{collections::HashMap, sync::Arc};

use super::{InFlight, Inbound, Limits, Now, Options, Outbound, Phase, Session};
use crate::packet::{Text, Will};

/// What a session without a connection consists of, its queue apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Whose it is.
    pub client_id: Arc<str>,
    /// The filters with their options.
    pub filters: HashMap<Text, Options>,
    /// What was sent and is not settled, in the order in which it came to its stage.
    pub in_flight: Vec<InFlight>,
    /// QoS 2 publishes of the client that it has not released, in ascending order.
    pub received: Vec<u16>,
    /// The will that is still to be published, and when, ms since 1970.
    pub will: Option<(Will, i64)>,
    /// How long the session outlives its connection, in seconds.
    pub expiry_s: u32,
    /// When it expires, ms since 1970; `None`: never.
    pub expires_at_ms: Option<i64>,
}

impl Session {
    /// What is to be kept of a parked session; `None` unless it is parked.
    pub fn state(&self, now: Now) -> Option<State> {
        let Phase::Parked { expires_ms, will_due_ms } = self.phase else { return None };
        let epoch_ms = |ms: u64| now.epoch_ms_of(ms);
        Some(State {
            client_id: self.client_id.clone(),
            filters: self.filters().map(|(filter, options)| (filter.clone(), *options)).collect(),
            in_flight: self.outbound.in_flight(),
            received: self.inbound.received(),
            will: self.will.as_deref().cloned().zip(will_due_ms.map(epoch_ms)),
            expiry_s: self.expiry_s,
            expires_at_ms: expires_ms.map(epoch_ms),
        })
    }

    /// A parked session as it was kept. What became due meanwhile is due now.
    pub fn restored(limits: Arc<Limits>, now: Now, state: State) -> Self {
        let monotonic_ms = |ms: i64| now.monotonic_ms + u64::try_from(ms - now.epoch_ms).unwrap_or_default();
        let (will, will_due_at_ms) = state.will.unzip();
        Self {
            phase: Phase::Parked {
                expires_ms: state.expires_at_ms.map(monotonic_ms),
                will_due_ms: will_due_at_ms.map(monotonic_ms),
            },
            client_id: state.client_id,
            expiry_s: state.expiry_s,
            is_persistent: true,
            will: will.map(Box::new),
            inbound: Inbound::restored(limits.receive_maximum, state.received),
            outbound: Outbound::restored(state.in_flight),
            filters: state.filters.into_iter().collect(),
            ..Self::new(limits, now)
        }
    }
}
