//! Retained messages on their way to new subscriptions of one client: taken as they are wanted, a few at a time, so that
//! a filter that matches a million of them holds no memory and no lock for them.

use std::{collections::VecDeque, ops::ControlFlow};

use tbmq_mqtt::{
    packet::Text,
    retained::Search,
    session::{Delivery, Options},
};

use super::Retained;

/// The subscriptions that wait for retained messages: at most one entry for each filter that the client has.
#[derive(Debug, Default)]
pub(crate) struct Replays {
    waiting: VecDeque<Replay>,
}

#[derive(Debug)]
struct Replay {
    filter: Text,
    options: Options,
    search: Search,
}

impl Replays {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Begins for a plain filter, or begins anew.
    pub(crate) fn begin(&mut self, filter: &Text, options: Options) {
        self.cancel(filter);
        self.waiting.push_back(Replay { filter: filter.clone(), options, search: Search::new(filter) });
    }

    /// What is left for this filter goes with other options from now on.
    pub(crate) fn change(&mut self, filter: &Text, options: Options) {
        if let Some(replay) = self.waiting.iter_mut().find(|replay| replay.filter == *filter) {
            replay.options = options;
        }
    }

    /// Nothing more is wanted for this filter.
    pub(crate) fn cancel(&mut self, filter: &Text) {
        self.waiting.retain(|replay| replay.filter != *filter);
        self.shrink();
    }

    /// Nothing more is wanted.
    pub(crate) fn clear(&mut self) {
        self.waiting = VecDeque::new();
    }

    /// Takes at most `max` deliveries, and no further one once their payloads have `bytes_max`; fewer where many names
    /// had to be looked at.
    pub(crate) fn take(
        &mut self,
        retained: &Retained,
        client_id: &str,
        now_ms: i64,
        max: usize,
        bytes_max: usize,
        into: &mut Vec<Delivery>,
    ) {
        let Some(Replay { options, search, .. }) = self.waiting.front_mut() else { return };
        let mut bytes = 0;
        retained.advance(search, now_ms, |message| {
            if options.no_local && &*message.publisher == client_id {
                return ControlFlow::Continue(());
            }
            bytes += message.payload.len();
            into.push(Delivery {
                message: message.clone(),
                qos: options.qos.min(message.qos),
                // MQTT-3.3.1-8: sent because of a subscription.
                retain: true,
                identifiers: options.identifier.into_iter().collect(),
                group: None,
            });
            if into.len() < max && bytes < bytes_max {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        if search.is_over() {
            self.waiting.pop_front();
            self.shrink();
        }
    }

    fn shrink(&mut self) {
        if self.waiting.is_empty() {
            self.waiting = VecDeque::new();
        }
    }
}
