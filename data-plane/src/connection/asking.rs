//! What others want of a session, beside messages.

use std::sync::Arc;

use tbmq_mqtt::session::Now;

use super::Connection;
use crate::{
    mailbox::{Assigned, Cleared, Filters, Question, Told, ToldWill},
    worker::Scratch,
};

impl Connection {
    /// Answers a question; one that can't be answered is dropped. `is_visited`: another connection of the client is there.
    pub(super) fn answer(&mut self, now: Now, question: Question, is_visited: bool, scratch: &mut Scratch) {
        let is_parked = self.session.is_parked();
        if !self.session.is_connected() && !is_parked {
            return;
        }
        let has_id = |id| self.mailbox.client().is_some_and(|client| client.is_session(id));
        // Who has asked may have gone away.
        match question {
            Question::Filters(answer) => drop(answer.send(self.filters())),
            Question::Tell(answer) => drop(answer.send(self.tell(now))),
            Question::Clear(id, answer) => {
                let cleared = if !is_parked || is_visited || self.has_visitor() {
                    Cleared::Connected
                } else if has_id(id) {
                    self.session.discard(now, &mut scratch.effects);
                    self.perform(now, scratch);
                    Cleared::Done
                } else {
                    Cleared::Replaced
                };
                answer.send(cleared).ok();
            }
            Question::Assign(id, filters, answer) => {
                if !has_id(id) {
                    answer.send(Assigned::Replaced).ok();
                } else if let Err(refused) = self.session.check_filters(&filters) {
                    answer.send(Assigned::Refused(refused.to_string())).ok();
                } else {
                    self.assign(filters, answer, scratch);
                }
            }
        }
    }

    fn filters(&self) -> Filters {
        self.session.filters().map(|(filter, options)| (filter.clone(), *options)).collect()
    }

    fn tell(&self, now: Now) -> Told {
        let will = self.session.will().map(|(will, due_ms)| ToldWill {
            topic: will.topic.clone(),
            qos: will.qos,
            retain: will.retain,
            payload_bytes: will.payload.len(),
            due_at_ms: due_ms.map(|due_ms| now.epoch_ms_of(due_ms)),
        });
        let link = self.link.as_ref();
        Told {
            filters: self.filters(),
            summary: self.session.summary(now),
            will,
            transport: link.map_or("", |link| link.stream.transport()),
            common_names: link.map_or_else(Arc::default, |link| link.peer.common_names.clone()),
            // Before anything that the session has done with its queue since.
            queue: self.mailbox.kept_as().map(|session| self.plane.queues.tell(&session)),
        }
    }
}
