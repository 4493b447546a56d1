//! The body of a request (spec §6.3.4).

use std::borrow::Cow;

use ::http::HeaderValue;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::{Deserializer, Value, value::RawValue};
use tracing::trace;

use super::config::{BatchFormat, Config, PayloadContentType};
use crate::{
    sink::{Message, Outcome, payload},
    sinks::envelope::{Envelope, Payload},
};

const JSON: &str = "application/json";
const TEXT: &str = "text/plain;charset=UTF-8";
/// JSON values, one a line.
const LINES: &str = "application/x-ndjson";

/// Makes the bodies of an integration's requests.
#[derive(Debug)]
pub(super) struct Bodies {
    only_payload: bool,
    content: PayloadContentType,
    binary_on_failure: bool,
    envelope: Envelope,
    /// The text of the rejection when the configured Content-Type does not fit JSON.
    conflict: Option<String>,
    /// Whether a Content-Type is configured, so that none is to be added.
    is_typed: bool,
    batch: BatchFormat,
}

/// What a message is turned into, before it stands in a body.
enum Content {
    Json(Bytes),
    Text(Bytes),
    Binary(Bytes),
}

/// A body and the Content-Type to be added.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Body {
    pub bytes: Bytes,
    pub content_type: Option<HeaderValue>,
}

impl Bodies {
    /// `content_type` is the configured one.
    pub(super) fn new(config: &Config, content_type: Option<&HeaderValue>, envelope: Envelope) -> Self {
        let configured = content_type.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let conflict = configured.as_deref().filter(|text| !is_json(text)).map(|text| {
            format!(
                "Content type '{text}' not supported for bodyType=com.fasterxml.jackson.databind.node.ObjectNode"
            )
        });
        Self {
            only_payload: config.send_only_msg_payload,
            content: config.payload_content_type,
            binary_on_failure: config.send_binary_on_parse_failure,
            envelope,
            conflict,
            is_typed: configured.is_some(),
            batch: config.batch.format,
        }
    }

    /// The body of a message, or its rejection.
    pub(super) fn body(&self, message: &Message) -> Result<Body, Outcome> {
        match self.content(message)? {
            Content::Json(json) => {
                self.fits_json()?;
                Ok(self.typed(json, JSON))
            }
            Content::Text(text) => Ok(self.typed(text, TEXT)),
            Content::Binary(bytes) => Ok(Body { bytes, content_type: None }),
        }
    }

    /// A message as it stands in a batch, or its rejection.
    pub(super) fn part(&self, message: &Message) -> Result<Bytes, Outcome> {
        let content = self.content(message)?;
        if self.batch == BatchFormat::Lines {
            let (Content::Json(bytes) | Content::Text(bytes) | Content::Binary(bytes)) = content;
            return Ok(bytes);
        }
        self.fits_json()?;
        Ok(match content {
            Content::Json(json) => json,
            Content::Text(text) => {
                Value::String(String::from_utf8_lossy(&text).into_owned()).to_string().into()
            }
            // Base64 needs no escapes.
            Content::Binary(bytes) => format!("\"{}\"", STANDARD.encode(bytes)).into(),
        })
    }

    /// The body of a batch.
    pub(super) fn join<'a>(&self, parts: impl Iterator<Item = &'a Bytes> + Clone) -> Body {
        let size = parts.clone().map(|part| part.len() + 1).sum::<usize>() + 1;
        let mut joined = Vec::with_capacity(size);
        if self.batch == BatchFormat::Lines {
            for part in parts {
                joined.extend_from_slice(part);
                joined.push(b'\n');
            }
            return match self.content {
                PayloadContentType::Text if self.only_payload => self.typed(joined.into(), TEXT),
                PayloadContentType::Binary if self.only_payload => {
                    Body { bytes: joined.into(), content_type: None }
                }
                _ => self.typed(joined.into(), LINES),
            };
        }
        for part in parts {
            joined.push(if joined.is_empty() { b'[' } else { b',' });
            joined.extend_from_slice(part);
        }
        joined.push(b']');
        self.typed(joined.into(), JSON)
    }

    fn content(&self, message: &Message) -> Result<Content, Outcome> {
        let bytes = payload(message);
        if self.only_payload {
            return Ok(match self.content {
                PayloadContentType::Binary => Content::Binary(bytes),
                PayloadContentType::Text => Content::Text(text(&bytes)),
                PayloadContentType::Json => {
                    self.json(&bytes, message)?.map_or(Content::Binary(bytes), Content::Json)
                }
            });
        }
        let json;
        let payload = match self.content {
            PayloadContentType::Binary => Payload::Base64(&bytes),
            PayloadContentType::Text => Payload::Text(String::from_utf8_lossy(&bytes)),
            PayloadContentType::Json => {
                json = self.json(&bytes, message)?;
                json.as_deref().map_or(Payload::Base64(&bytes), Payload::Json)
            }
        };
        Ok(Content::Json(self.envelope.write(&message.publish, &payload).into()))
    }

    /// The payload as compact JSON; `None`: it is not JSON and to be sent as binary.
    fn json(&self, bytes: &Bytes, message: &Message) -> Result<Option<Bytes>, Outcome> {
        match compact(bytes) {
            Ok(json) => Ok(Some(json)),
            Err(error) if self.binary_on_failure => {
                trace!(%error, message.partition, message.offset, "payload is not json, sent as binary");
                Ok(None)
            }
            Err(error) => Err(Outcome::Rejected {
                class: "payload",
                text: format!("Failed to parse msg payload to JSON: {error}"),
            }),
        }
    }

    fn fits_json(&self) -> Result<(), Outcome> {
        match &self.conflict {
            Some(text) => Err(Outcome::Rejected { class: "content-type", text: text.clone() }),
            None => Ok(()),
        }
    }

    fn typed(&self, bytes: Bytes, content_type: &'static str) -> Body {
        Body { bytes, content_type: (!self.is_typed).then(|| HeaderValue::from_static(content_type)) }
    }
}

/// Whether a Content-Type stands for JSON: `application/json` or `application/*+json`, with any parameters.
fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.strip_prefix("application/").is_some_and(|subtype| {
        subtype == "json" || subtype.strip_suffix("+json").is_some_and(|name| !name.is_empty())
    })
}

/// The payload as UTF-8, with replacement characters for what is none.
fn text(bytes: &Bytes) -> Bytes {
    match String::from_utf8_lossy(bytes) {
        Cow::Borrowed(_) => bytes.clone(),
        Cow::Owned(text) => text.into(),
    }
}

/// The first JSON value without insignificant white space; an empty payload is `null`. Numbers, the order of members
/// and duplicate members stay as they are.
fn compact(bytes: &Bytes) -> Result<Bytes, serde_json::Error> {
    let Some(value) = Deserializer::from_slice(bytes).into_iter::<&RawValue>().next() else {
        return Ok(Bytes::from_static(b"null"));
    };
    let raw = value?.get().as_bytes();
    if !raw.iter().any(u8::is_ascii_whitespace) {
        return Ok(bytes.slice_ref(raw));
    }
    let mut compacted = Vec::with_capacity(raw.len());
    let (mut in_string, mut escaped) = (false, false);
    for &byte in raw {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
        } else if byte.is_ascii_whitespace() {
            continue;
        } else {
            in_string = byte == b'"';
        }
        compacted.push(byte);
    }
    Ok(compacted.into())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Map, json};
    use tbmq_proto::{integration::PublishIntegrationMsgProto, queue::PublishMsgProto};

    use super::*;

    fn message(payload: &[u8]) -> Message {
        let publish = PublishMsgProto {
            payload: Bytes::copy_from_slice(payload),
            topic_name: "t".into(),
            ..Default::default()
        };
        let publish = PublishIntegrationMsgProto { publish_msg_proto: Some(publish), ..Default::default() };
        Message { publish: Arc::new(publish), partition: 0, offset: 0, trace: None }
    }

    fn body(
        only_payload: bool,
        content: PayloadContentType,
        binary_on_failure: bool,
        content_type: Option<&str>,
        payload: &[u8],
    ) -> Result<(String, Option<String>), Outcome> {
        let config = Config {
            send_only_msg_payload: only_payload,
            payload_content_type: content,
            send_binary_on_parse_failure: binary_on_failure,
            ..Config::default()
        };
        let value = content_type.map(|text| HeaderValue::from_str(text).unwrap());
        let metadata = json!({"integrationName": "i"});
        let metadata: &Map<_, _> = metadata.as_object().unwrap();
        let bodies = Bodies::new(&config, value.as_ref(), Envelope::new("ie", metadata));
        let body = bodies.body(&message(payload))?;
        let content_type = body.content_type.map(|value| value.to_str().unwrap().to_owned());
        Ok((String::from_utf8_lossy(&body.bytes).into_owned(), content_type))
    }

    fn enveloped(payload: &str) -> String {
        format!(
            r#"{{"payload":{payload},"topicName":"t","clientId":"","eventType":"PUBLISH_MSG","qos":0,"retain":false,"tbmqIeNode":"ie","tbmqNode":"","ts":0,"props":{{}},"metadata":{{"integrationName":"i"}}}}"#
        )
    }

    #[test]
    fn the_body_matrix_is_tbmqs() {
        use PayloadContentType::{Binary, Json, Text};
        let json = b" {\"a\" : [1, 2.0] , \"b c\":\"x \\\" y\"} trailing";
        let compacted = r#"{"a":[1,2.0],"b c":"x \" y"}"#;
        let json_type = Some("application/json".to_owned());
        let text_type = Some("text/plain;charset=UTF-8".to_owned());
        let base64 = "\"aGk=\"";
        for (only, content, payload, expected, content_type) in [
            (true, Json, &json[..], compacted.to_owned(), &json_type),
            (true, Text, b"hi\xff", "hi\u{fffd}".to_owned(), &text_type),
            (true, Binary, b"hi", "hi".to_owned(), &None),
            (false, Json, &json[..], enveloped(compacted), &json_type),
            (false, Text, b"hi \"you\"\xff", enveloped("\"hi \\\"you\\\"\u{fffd}\""), &json_type),
            (false, Binary, b"hi", enveloped(base64), &json_type),
            // Empty payloads.
            (true, Json, b"", "null".to_owned(), &json_type),
            (true, Json, b" \n", "null".to_owned(), &json_type),
            (false, Json, b"", enveloped("null"), &json_type),
            (true, Text, b"", String::new(), &text_type),
            (true, Binary, b"", String::new(), &None),
            (false, Binary, b"", enveloped("\"\""), &json_type),
            // Not JSON, sent as binary.
            (true, Json, b"{oops", "{oops".to_owned(), &None),
            (false, Json, b"hi", enveloped(base64), &json_type),
        ] {
            assert_eq!(
                body(only, content, true, None, payload),
                Ok((expected, content_type.clone())),
                "{only} {content:?}"
            );
        }
    }

    #[test]
    fn a_payload_that_is_not_json_is_rejected_when_binary_is_not_wanted() {
        for only in [true, false] {
            let outcome = body(only, PayloadContentType::Json, false, None, b"{oops").unwrap_err();
            let Outcome::Rejected { class: "payload", text } = outcome else { panic!("{outcome:?}") };
            assert!(text.starts_with("Failed to parse msg payload to JSON: "), "{text}");
        }
    }

    #[test]
    fn json_is_kept_to_the_digit() {
        let compact = |bytes: &'static [u8]| compact(&Bytes::from_static(bytes));
        for text in [
            "12345678901234567890123",
            "1.10",
            "1E400",
            "\"\\ud83d\\ude00\"",
            "[{},[]]",
            "true",
            "{\"a\":1,\"a\":2}",
        ] {
            assert_eq!(compact(text.as_bytes()).unwrap(), text.as_bytes());
        }
        assert_eq!(&*compact(b"1 2").unwrap(), b"1");
        assert_eq!(&*compact("\"a \\\\\" ".as_bytes()).unwrap(), b"\"a \\\\\"");
        for text in ["123abc", "nul", "NaN", "{'a':1}", "[1,]", "\"a\u{1}\""] {
            assert!(compact(text.as_bytes()).is_err(), "{text}");
        }
        assert!(compact(b"\"\xff\"").is_err());
    }

    #[test]
    fn a_content_type_other_than_json_is_rejected_for_json_bodies_only() {
        use PayloadContentType::{Binary, Json, Text};
        let conflict = |text: &str| {
            Err(Outcome::Rejected {
                class: "content-type",
                text: format!(
                    "Content type '{text}' not supported for bodyType=com.fasterxml.jackson.databind.node.ObjectNode"
                ),
            })
        };
        for content_type in ["text/plain", "application/xml", "application/+json", "json"] {
            for content in [Json, Text, Binary] {
                assert_eq!(body(false, content, true, Some(content_type), b"1"), conflict(content_type));
            }
            assert_eq!(body(true, Json, true, Some(content_type), b"1"), conflict(content_type));
            for content in [Text, Binary] {
                assert_eq!(body(true, content, true, Some(content_type), b"1"), Ok(("1".into(), None)));
            }
            // What could not be parsed is bytes.
            assert_eq!(body(true, Json, true, Some(content_type), b"x"), Ok(("x".into(), None)));
        }
        for content_type in
            ["application/json", "Application/JSON; charset=utf-8", "application/cloudevents+json"]
        {
            assert_eq!(body(true, Json, true, Some(content_type), b"1"), Ok(("1".into(), None)));
        }
    }
}
