//! Topic aliases of a client (MQTT 5.0 §3.3.2.3.4). The server uses none towards clients.

use crate::packet::{ReasonCode, Text};

/// What the client's aliases stand for, at most as many as were announced.
#[derive(Debug)]
pub(super) struct Aliases {
    max: u16,
    /// Index = alias - 1; empty until the first is used.
    topics: Vec<Option<Text>>,
}

impl Aliases {
    pub(super) fn new(max: u16) -> Self {
        Self { max, topics: Vec::new() }
    }

    /// The topic of a publish with this alias, which is remembered when the topic is there.
    pub(super) fn resolve(&mut self, alias: u16, topic: &Text) -> Result<Text, ReasonCode> {
        if alias == 0 || alias > self.max {
            // MQTT-3.3.2-9
            return Err(ReasonCode::TopicAliasInvalid);
        }
        let index = usize::from(alias) - 1;
        if topic.is_empty() {
            let known = self.topics.get(index).cloned().flatten();
            return known.ok_or(ReasonCode::ProtocolError);
        }
        if self.topics.is_empty() {
            self.topics.resize(usize::from(self.max), None);
        }
        self.topics[index] = Some(topic.detached());
        Ok(topic.clone())
    }
}
