//! Keeps an integration's secrets out of what is told about it: whatever a sink says for people goes through here before
//! it reaches an event, a dead letter, an answer or the log.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value;
use tbmq_integration::{
    entity::Violation,
    secret::{self, MASK},
};

use crate::sink::{Busy, Message, Outcome, Sink, SinkState, Ticket};

/// Shorter ones are parts of ordinary words, and masking them would make texts unreadable.
const BYTES_MIN: usize = 4;

/// Knows the secrets of one integration. Clones share them.
#[derive(Clone)]
pub(crate) struct Redactor(Arc<[String]>);

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Redactor").field(&self.0.len()).finish()
    }
}

impl Redactor {
    /// Of a whole document; `schema` tells which fields are secret.
    pub(crate) fn new(schema: &Value, document: &str) -> Self {
        let mut texts = Vec::new();
        for found in secret::find(Some(schema), document) {
            let Ok(value) = serde_json::from_str(&document[found.span]) else { continue };
            // As RFC 7617 sends it: a remote end may show the headers that it got.
            let user = found.pointer.strip_suffix("/password").map(|parent| format!("{parent}/username"));
            if let (Some(user), Value::String(password)) = (user, &value)
                && let Some(span) = secret::locate(document, &user)
                && let Ok(user) = serde_json::from_str::<String>(&document[span])
            {
                texts.push(BASE64_STANDARD.encode(format!("{user}:{password}")));
            }
            collect(value, &mut texts);
        }
        texts.retain(|text| text.len() >= BYTES_MIN && text != MASK);
        // A secret may be a part of another.
        texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
        texts.dedup();
        Self(texts.into())
    }

    /// The text with masks instead of secrets.
    pub(crate) fn clean(&self, mut text: String) -> String {
        for secret in self.0.iter() {
            if text.contains(secret.as_str()) {
                text = text.replace(secret.as_str(), MASK);
            }
        }
        text
    }

    /// The same for problems of a document.
    pub(crate) fn clean_all(&self, violations: &mut [Violation]) {
        for violation in violations {
            violation.text = self.clean(std::mem::take(&mut violation.text));
        }
    }

    /// The sink, whose texts are clean from here on.
    pub(crate) fn wrap(&self, sink: Box<dyn Sink>) -> Box<dyn Sink> {
        if self.0.is_empty() { sink } else { Box::new(Clean { sink, redactor: self.clone() }) }
    }
}

/// The texts of a secret: it may be an object or a list.
fn collect(value: Value, into: &mut Vec<String>) {
    match value {
        Value::String(text) => {
            let escaped = Value::from(text.as_str()).to_string();
            // As it stands within JSON.
            into.push(escaped.trim_matches('"').to_owned());
            into.push(text);
        }
        Value::Array(items) => items.into_iter().for_each(|item| collect(item, into)),
        Value::Object(fields) => fields.into_iter().for_each(|(_, field)| collect(field, into)),
        Value::Number(number) => into.push(number.to_string()),
        Value::Null | Value::Bool(_) => {}
    }
}

#[derive(Debug)]
struct Clean {
    sink: Box<dyn Sink>,
    redactor: Redactor,
}

#[async_trait]
impl Sink for Clean {
    fn submit(&mut self, message: Message, ticket: Ticket) -> Result<(), Busy> {
        self.sink.submit(message, ticket)
    }

    fn poll_outcome(&mut self, cx: &mut Context<'_>) -> Poll<(Ticket, Outcome)> {
        let redactor = &self.redactor;
        self.sink.poll_outcome(cx).map(|(ticket, outcome)| {
            let outcome = match outcome {
                Outcome::Delivered => Outcome::Delivered,
                Outcome::Retry { after, class, text } => {
                    Outcome::Retry { after, class, text: redactor.clean(text) }
                }
                Outcome::Rejected { class, text } => Outcome::Rejected { class, text: redactor.clean(text) },
            };
            (ticket, outcome)
        })
    }

    fn state(&self) -> SinkState {
        match self.sink.state() {
            SinkState::Ready => SinkState::Ready,
            SinkState::Away { reason } => SinkState::Away { reason: self.redactor.clean(reason) },
            SinkState::Broken { reason } => SinkState::Broken { reason: self.redactor.clean(reason) },
        }
    }

    async fn close(self: Box<Self>, deadline: Duration) -> Vec<Ticket> {
        self.sink.close(deadline).await
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn redactor() -> Redactor {
        let schema = json!({ "properties": {
            "password": { "writeOnly": true }, "pin": { "writeOnly": true }, "keys": { "writeOnly": true },
        }});
        let document = json!({ "clientConfiguration": {
            "password": "pl\"anted", "pin": "12", "keys": { "a": ["first key", "key"], "b": 123_456 }, "url": "http://h",
        }});
        Redactor::new(&schema, &document.to_string())
    }

    #[test]
    fn secrets_are_masked_wherever_they_stand_and_short_ones_are_left() {
        let text = r#"no pl"anted at http://h: {"p":"pl\"anted"} first key, 123456, 12"#;
        assert_eq!(
            redactor().clean(text.to_owned()),
            r#"no ******** at http://h: {"p":"********"} ********, ********, 12"#
        );
    }

    #[test]
    fn basic_credentials_are_masked_as_they_are_sent() {
        let schema = json!({ "properties": { "password": { "writeOnly": true } } });
        let document = json!({ "clientConfiguration": { "username": "Aladdin", "password": "open sesame" } });
        let text = "got Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==".to_owned();
        let cleaned = Redactor::new(&schema, &document.to_string()).clean(text);
        assert_eq!(cleaned, "got Authorization: Basic ********");
    }

    #[derive(Debug)]
    struct Telling(Vec<Outcome>);

    #[async_trait]
    impl Sink for Telling {
        fn submit(&mut self, _: Message, _: Ticket) -> Result<(), Busy> {
            Ok(())
        }

        fn poll_outcome(&mut self, _: &mut Context<'_>) -> Poll<(Ticket, Outcome)> {
            self.0.pop().map_or(Poll::Pending, |outcome| Poll::Ready((1, outcome)))
        }

        fn state(&self) -> SinkState {
            SinkState::Away { reason: "first key".to_owned() }
        }

        async fn close(self: Box<Self>, _: Duration) -> Vec<Ticket> {
            vec![7]
        }
    }

    #[tokio::test]
    async fn a_sink_says_the_same_without_its_secrets() {
        let text = || "first key".to_owned();
        let retry = Outcome::Retry { after: None, class: "x", text: text() };
        let rejected = Outcome::Rejected { class: "y", text: text() };
        let mut sink = redactor().wrap(Box::new(Telling(vec![Outcome::Delivered, rejected, retry])));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mask = MASK.to_owned();
        for expected in [
            Outcome::Retry { after: None, class: "x", text: mask.clone() },
            Outcome::Rejected { class: "y", text: mask.clone() },
            Outcome::Delivered,
        ] {
            assert_eq!(sink.poll_outcome(&mut cx), Poll::Ready((1, expected)));
        }
        assert!(sink.poll_outcome(&mut cx).is_pending());
        assert_eq!(sink.state(), SinkState::Away { reason: mask });
        assert_eq!(sink.close(Duration::ZERO).await, [7]);
    }
}
