//! Retained messages.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Serialize;
use tbmq_proto::control;

use super::time;

/// Bytes are told as text where they are one, else in base64.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Retained {
    topic: String,
    qos: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
    payload_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    publish_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expire_time: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    publisher: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    properties: Option<Properties>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Properties {
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_format_indicator: Option<u32>,
    #[serde(skip_serializing_if = "String::is_empty")]
    content_type: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    response_topic: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    correlation_data_base64: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    user_properties: Vec<BTreeMap<&'static str, String>>,
}

impl From<&control::RetainedMessage> for Retained {
    fn from(from: &control::RetainedMessage) -> Self {
        let payload = text(&from.payload, from.payload_bytes);
        Self {
            topic: from.topic.clone(),
            qos: from.qos,
            payload_base64: payload.is_none().then(|| STANDARD.encode(&from.payload)),
            payload,
            payload_bytes: from.payload_bytes,
            publish_time: time(from.publish_time),
            expire_time: time(from.expire_time),
            publisher: from.publisher.clone(),
            properties: from.properties.as_ref().map(Properties::from),
        }
    }
}

/// The text that bytes are; where they were cut, without the character that was.
fn text(bytes: &[u8], whole: u64) -> Option<String> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Some(text.to_owned()),
        Err(error) if error.error_len().is_none() && whole > bytes.len() as u64 => {
            String::from_utf8(bytes[..error.valid_up_to()].to_vec()).ok()
        }
        Err(_) => None,
    }
}

impl From<&control::RetainedMessageProperties> for Properties {
    fn from(from: &control::RetainedMessageProperties) -> Self {
        let user = |one: &control::UserProperty| {
            BTreeMap::from([("key", one.key.clone()), ("value", one.value.clone())])
        };
        Self {
            payload_format_indicator: from.payload_format_indicator,
            content_type: from.content_type.clone(),
            response_topic: from.response_topic.clone(),
            correlation_data_base64: STANDARD.encode(&from.correlation_data),
            user_properties: from.user_properties.iter().map(user).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_was_cut_within_a_character_stays_a_text() {
        assert_eq!(text("ü".as_bytes(), 2), Some("ü".to_owned()));
        assert_eq!(text(b"a\xc3", 3), Some("a".to_owned()));
        assert_eq!(text(b"a\xc3", 2), None);
        assert_eq!(text(b"a\xffb", 9), None);
    }
}
