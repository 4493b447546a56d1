//! The JSON object around a payload that is not sent alone (spec §6.2), written straight into a buffer.

use std::{borrow::Cow, collections::HashSet, fmt, io::Write as _};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value};
use tbmq_proto::{
    integration::PublishIntegrationMsgProto,
    queue::{PublishMsgProto, UserPropertyProto},
};

/// How the payload stands in the envelope.
#[derive(Clone, Debug)]
pub enum Payload<'a> {
    /// As a base64 string.
    Base64(&'a [u8]),
    /// As the JSON value that it is; must be valid and compact.
    Json(&'a [u8]),
    /// As a string.
    Text(Cow<'a, str>),
}

/// The parts of an integration's envelopes that are always the same.
pub struct Envelope {
    /// `,"tbmqIeNode":"…"`
    executor: Vec<u8>,
    /// `,"metadata":{…}}`
    metadata: Vec<u8>,
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Envelope").finish_non_exhaustive()
    }
}

impl Envelope {
    /// Prepares the envelopes of an integration. `metadata` is written in its order.
    pub fn new(executor_id: &str, metadata: &Map<String, Value>) -> Self {
        let mut executor = b",\"tbmqIeNode\":".to_vec();
        write_string(&mut executor, executor_id);
        let mut tail = b",\"metadata\":{".to_vec();
        for (i, (key, value)) in metadata.iter().enumerate() {
            if i > 0 {
                tail.push(b',');
            }
            write_string(&mut tail, key);
            tail.push(b':');
            match value {
                Value::String(text) => write_string(&mut tail, text),
                other => write!(tail, "{other}").expect("writing to memory can't fail"),
            }
        }
        tail.extend_from_slice(b"}}");
        Self { executor, metadata: tail }
    }

    /// Writes the envelope of one message.
    pub fn write(&self, message: &PublishIntegrationMsgProto, payload: &Payload<'_>) -> Vec<u8> {
        let none = PublishMsgProto::default();
        let publish = message.publish_msg_proto.as_ref().unwrap_or(&none);
        let payload_size = match payload {
            Payload::Base64(bytes) => bytes.len() / 3 * 4 + 4,
            Payload::Json(bytes) => bytes.len(),
            Payload::Text(text) => text.len(),
        };
        let properties_size: usize = publish
            .user_properties
            .iter()
            .map(|property| property.key.len() + property.value.len() + 6)
            .sum();
        let mut buffer = Vec::with_capacity(
            200 + payload_size
                + properties_size
                + publish.topic_name.len()
                + publish.client_id.len()
                + message.tbmq_node.len()
                + self.executor.len()
                + self.metadata.len(),
        );
        buffer.extend_from_slice(b"{\"payload\":");
        match payload {
            Payload::Base64(bytes) => write_base64(&mut buffer, bytes),
            Payload::Json(bytes) => buffer.extend_from_slice(bytes),
            Payload::Text(text) => write_string(&mut buffer, text),
        }
        buffer.extend_from_slice(b",\"topicName\":");
        write_string(&mut buffer, &publish.topic_name);
        buffer.extend_from_slice(b",\"clientId\":");
        write_string(&mut buffer, &publish.client_id);
        buffer.extend_from_slice(b",\"eventType\":\"PUBLISH_MSG\",\"qos\":");
        write!(buffer, "{}", publish.qos).expect("writing to memory can't fail");
        buffer.extend_from_slice(if publish.retain { b",\"retain\":true" } else { b",\"retain\":false" });
        buffer.extend_from_slice(&self.executor);
        buffer.extend_from_slice(b",\"tbmqNode\":");
        write_string(&mut buffer, &message.tbmq_node);
        buffer.extend_from_slice(b",\"ts\":");
        write!(buffer, "{}", message.timestamp).expect("writing to memory can't fail");
        if let Some(name) = &publish.client_cert_cn {
            buffer.extend_from_slice(b",\"clientCertCn\":");
            write_string(&mut buffer, name);
        }
        buffer.extend_from_slice(b",\"props\":{");
        write_properties(&mut buffer, &publish.user_properties);
        buffer.push(b'}');
        buffer.extend_from_slice(&self.metadata);
        buffer
    }
}

/// Writes the members of `props`; of several with one key the last wins.
fn write_properties(buffer: &mut Vec<u8>, properties: &[UserPropertyProto]) {
    let mut first = true;
    let mut write = |property: &UserPropertyProto| {
        if !first {
            buffer.push(b',');
        }
        first = false;
        write_string(buffer, &property.key);
        buffer.push(b':');
        write_string(buffer, &property.value);
    };
    // Comparing all pairs is fastest for the few that are usual; a publisher may send thousands.
    if properties.len() <= 16 {
        for (i, property) in properties.iter().enumerate() {
            if properties[i + 1..].iter().all(|later| later.key != property.key) {
                write(property);
            }
        }
    } else {
        let mut seen = HashSet::with_capacity(properties.len());
        let mut last: Vec<_> =
            properties.iter().rev().filter(|property| seen.insert(&property.key)).collect();
        last.reverse();
        last.into_iter().for_each(write);
    }
}

fn write_base64(buffer: &mut Vec<u8>, bytes: &[u8]) {
    buffer.push(b'"');
    let start = buffer.len();
    buffer.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let written =
        STANDARD.encode_slice(bytes, &mut buffer[start..]).expect("room was made for the padded text");
    buffer.truncate(start + written);
    buffer.push(b'"');
}

/// Writes a JSON string with the escapes that TBMQ writes.
fn write_string(buffer: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    buffer.push(b'"');
    let bytes = text.as_bytes();
    let mut copied = 0;
    for (i, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        buffer.extend_from_slice(&bytes[copied..i]);
        copied = i + 1;
        match byte {
            b'"' => buffer.extend_from_slice(b"\\\""),
            b'\\' => buffer.extend_from_slice(b"\\\\"),
            b'\n' => buffer.extend_from_slice(b"\\n"),
            b'\r' => buffer.extend_from_slice(b"\\r"),
            b'\t' => buffer.extend_from_slice(b"\\t"),
            0x08 => buffer.extend_from_slice(b"\\b"),
            0x0c => buffer.extend_from_slice(b"\\f"),
            control => {
                buffer.extend_from_slice(b"\\u00");
                buffer.push(HEX[usize::from(control >> 4)]);
                buffer.push(HEX[usize::from(control & 15)]);
            }
        }
    }
    buffer.extend_from_slice(&bytes[copied..]);
    buffer.push(b'"');
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use serde_json::json;

    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
    }

    fn envelope() -> Envelope {
        let metadata = json!({"site": "A", "integrationName": "http one"});
        Envelope::new("tbmq-ie1", metadata.as_object().unwrap())
    }

    fn written(message: &PublishIntegrationMsgProto) -> String {
        let payload =
            message.publish_msg_proto.as_ref().map(|publish| publish.payload.clone()).unwrap_or_default();
        String::from_utf8(envelope().write(message, &Payload::Base64(&payload))).unwrap()
    }

    /// Records of `tbmq.msg.ie.<id>` and the bodies that TBMQ 2.3.1 made of them.
    #[test]
    fn recorded_messages_give_the_recorded_bodies() {
        for (record, body) in [
            (
                "0a2a0a0670756233313110ffffffffffffffffff011a0a706c61696e20716f7330320973656e736f72732f61120574626d713118f7b885e39f34",
                r#"{"payload":"cGxhaW4gcW9zMA==","topicName":"sensors/a","clientId":"pub311","eventType":"PUBLISH_MSG","qos":0,"retain":false,"tbmqIeNode":"tbmq-ie1","tbmqNode":"tbmq1","ts":1795235601527,"props":{},"metadata":{"site":"A","integrationName":"http one"}}"#,
            ),
            (
                "0a230a0670756233313110011a0a7b2274223a32312e357d2801320973656e736f72732f61120574626d71311884c585e39f34",
                r#"{"payload":"eyJ0IjoyMS41fQ==","topicName":"sensors/a","clientId":"pub311","eventType":"PUBLISH_MSG","qos":1,"retain":false,"tbmqIeNode":"tbmq-ie1","tbmqNode":"tbmq1","ts":1795235603076,"props":{},"metadata":{"site":"A","integrationName":"http one"}}"#,
            ),
            (
                "0a260a0670756233313110011a046b65707420012801321073656e736f72732f72657461696e6564120574626d713118c1dd85e39f34",
                r#"{"payload":"a2VwdA==","topicName":"sensors/retained","clientId":"pub311","eventType":"PUBLISH_MSG","qos":1,"retain":true,"tbmqIeNode":"tbmq-ie1","tbmqNode":"tbmq1","ts":1795235606209,"props":{},"metadata":{"site":"A","integrationName":"http one"}}"#,
            ),
        ] {
            assert_eq!(written(&PublishIntegrationMsgProto::decode(&hex(record)[..]).unwrap()), body);
        }
    }

    fn message(publish: PublishMsgProto) -> PublishIntegrationMsgProto {
        PublishIntegrationMsgProto {
            publish_msg_proto: Some(publish),
            tbmq_node: "n".into(),
            timestamp: 5,
            expires_at_ms: 0,
        }
    }

    fn property(key: &str, value: &str) -> UserPropertyProto {
        UserPropertyProto { key: key.into(), value: value.into() }
    }

    #[test]
    fn of_several_properties_with_one_key_the_last_wins() {
        let few = vec![property("k1", "v1"), property("k2", "x"), property("k1", "v2")];
        let many: Vec<_> = (0..40).map(|i| property(&format!("k{}", i % 20), &i.to_string())).collect();
        let text = written(&message(PublishMsgProto { user_properties: few, ..PublishMsgProto::default() }));
        assert!(text.contains(r#""props":{"k2":"x","k1":"v2"},"#), "{text}");
        let text = written(&message(PublishMsgProto { user_properties: many, ..PublishMsgProto::default() }));
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["props"].as_object().unwrap().len(), 20);
        assert_eq!(value["props"]["k3"], "23");
    }

    #[test]
    fn a_certificate_name_stands_between_time_and_properties() {
        let publish =
            PublishMsgProto { client_cert_cn: Some("dévice".into()), ..PublishMsgProto::default() };
        assert!(written(&message(publish)).contains(r#""ts":5,"clientCertCn":"dévice","props":{}"#));
    }

    #[test]
    fn every_text_survives_as_json() {
        let text: String = (0..0x100).filter_map(char::from_u32).chain("\u{2028}😀/".chars()).collect();
        let publish = PublishMsgProto {
            topic_name: text.clone(),
            client_id: text.clone(),
            user_properties: vec![property(&text, &text)],
            ..PublishMsgProto::default()
        };
        let message = message(publish);
        let metadata = json!({text.clone(): text.clone(), "n": 1});
        let envelope = Envelope::new(&text, metadata.as_object().unwrap());
        let bytes = envelope.write(&message, &Payload::Text(Cow::Borrowed(&text)));
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        for field in ["payload", "topicName", "clientId", "tbmqIeNode"] {
            assert_eq!(value[field], text, "{field}");
        }
        assert_eq!(value["props"][&text], text);
        assert_eq!(value["metadata"], metadata);
        assert!(String::from_utf8(bytes).unwrap().contains("\\u001F"), "hexadecimal digits are upper case");
    }

    #[test]
    fn a_json_payload_is_a_value_in_the_envelope() {
        let bytes = envelope().write(&message(PublishMsgProto::default()), &Payload::Json(b"{\"a\":1}"));
        assert!(bytes.starts_with(b"{\"payload\":{\"a\":1},\"topicName\":\"\""));
    }

    #[test]
    fn base64_of_every_length_is_padded() {
        for size in 0..20 {
            let payload: Vec<u8> = (0..size).collect();
            let bytes = envelope().write(&message(PublishMsgProto::default()), &Payload::Base64(&payload));
            let value: Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(STANDARD.decode(value["payload"].as_str().unwrap()).unwrap(), payload);
        }
    }
}
