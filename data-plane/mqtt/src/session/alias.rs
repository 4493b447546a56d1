//! Topic aliases (MQTT 5.0 §3.3.2.3.4): those that a client uses, and those that the server uses towards it. The two
//! have nothing in common, and both end with the connection (MQTT-3.3.2-7).

use std::collections::HashMap;

use bytes::Bytes;

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

/// The aliases that stand for topics of deliveries: whichever topics come first get them, for as long as the
/// connection lasts.
#[derive(Debug, Default)]
pub(super) struct Given {
    max: u16,
    aliases: HashMap<Bytes, u16>,
}

impl Given {
    pub(super) fn new(max: u16) -> Self {
        Self { max, aliases: HashMap::new() }
    }

    /// The alias that stands for this topic.
    pub(super) fn get(&self, topic: &Text) -> Option<u16> {
        self.aliases.get(topic.bytes()).copied()
    }

    /// The alias that the next topic would get.
    pub(super) fn next(&self) -> Option<u16> {
        let used = self.aliases.len() as u16;
        (used < self.max).then_some(used + 1)
    }

    /// Gives this topic the next alias.
    pub(super) fn give(&mut self, topic: &Text) {
        if let Some(alias) = self.next() {
            self.aliases.insert(topic.detached().bytes().clone(), alias);
        }
    }
}
