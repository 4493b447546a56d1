//! What a member of shared subscriptions leaves undone.

use std::cell::Cell;

use tbmq_mqtt::session::{Delivery, Effect};

use super::Connection;
use crate::{group::Given, metrics::Drop as Dropped, queues::Ticket, session_store::Seq};

impl Connection {
    /// Gives what the client leaves undone of shared subscriptions to their other members, or into their queues, in its
    /// order: what was sent and is not acknowledged, and `queued` of its own queue. What nobody takes stays with a
    /// session that outlives its connection.
    pub(super) fn hand_over(&mut self, queued: Vec<(Seq, Delivery)>) {
        let (plane, mailbox) = (self.plane.clone(), self.mailbox.clone());
        let is_parked = self.session.is_parked();
        let in_flight = Cell::new(0);
        let give = |delivery: &Delivery| match plane.router.deliver_again(delivery) {
            Given::Taken => true,
            Given::Keep(keep) => {
                let ticket = Ticket { mailbox: mailbox.clone(), number: None, bytes: 0 };
                let is_taken = plane.queues.append(keep, ticket).is_ok();
                in_flight.set(in_flight.get() + usize::from(is_taken));
                is_taken
            }
            Given::Nobody => false,
        };
        let mut effects = Vec::new();
        let mut take = |delivery: &Delivery| {
            if give(delivery) {
                plane.metrics.delivered_again.inc();
                return true;
            }
            if !is_parked {
                plane.metrics.dropped(Dropped::NoMember);
            }
            !is_parked
        };
        self.session.hand_over_shared(&mut take, &mut effects);
        for effect in effects {
            if let Effect::Settled { seq } = effect {
                self.notes.settled.push(seq);
            }
        }
        for (seq, delivery) in queued {
            if take(&delivery) {
                self.notes.settled.push(seq);
            }
        }
        let mut left = Vec::new();
        self.mailbox.take_deliveries(usize::MAX, usize::MAX, &mut left);
        for delivery in left {
            if delivery.group.is_none() {
                plane.metrics.dropped(Dropped::Disconnected);
            } else if give(&delivery) {
                plane.metrics.delivered_again.inc();
            } else {
                plane.metrics.dropped(Dropped::NoMember);
            }
        }
        self.in_flight += in_flight.get();
    }
}
