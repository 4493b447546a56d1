//! The header `Idempotency-Key`: the same for every attempt of a message, so that an endpoint can tell a repetition.

use std::{fmt::Write as _, sync::Arc};

use ::http::HeaderValue;
use sha2::{Digest as _, Sha256};
use tbmq_proto::ids::IntegrationId;

use crate::sink::{Message, SinkContext};

/// The header's name.
pub(super) const HEADER: &str = "idempotency-key";

/// Makes the keys of an integration's messages.
#[derive(Debug)]
pub(super) struct Keys {
    integration: IntegrationId,
    topic: Arc<str>,
}

impl Keys {
    pub(super) fn new(context: &SinkContext) -> Self {
        Self { integration: context.shard.integration, topic: context.topic.clone() }
    }

    /// The key of a message: integration id, topic, partition, offset, and the time when it was published: in a topic
    /// that was made anew offsets begin again.
    pub(super) fn text(&self, message: &Message) -> String {
        let Message { publish, partition, offset, .. } = message;
        format!("{}-{}-{partition}-{offset}-{}", self.integration, self.topic, publish.timestamp)
    }

    /// The header of a message.
    pub(super) fn of(&self, message: &Message) -> HeaderValue {
        header(self.text(message))
    }

    /// The header of a batch: that of its message, or one that only a batch of the same messages has.
    pub(super) fn of_all(&self, keys: &[&str]) -> HeaderValue {
        if let [key] = keys {
            return header((*key).to_owned());
        }
        let digest =
            keys.iter().fold(Sha256::new(), |digest, key| digest.chain_update(key).chain_update("\n"));
        let mut text = format!("{}-batch-", self.integration);
        for byte in &digest.finalize()[..16] {
            write!(text, "{byte:02x}").expect("a String takes everything");
        }
        header(text)
    }
}

fn header(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("ids and names of topics have no control characters")
}
