//! The record of a publish on an integration's topic, encoded once into one buffer, without the copies that filling the
//! generated structs would need. A test holds it to what prost writes.

use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use tbmq_mqtt::{
    codec::property::{PropertyId, Value},
    session::Message,
};

/// Field number of the expiry deadline (architecture §4.1).
const EXPIRES_AT_MS: u32 = 1000;

/// Writes a `PublishIntegrationMsgProto` into `into`, which it clears first. `common_name` is of the publisher's
/// certificate.
pub(crate) fn encode(
    message: &Message,
    common_name: Option<&str>,
    node: &str,
    now_ms: i64,
    into: &mut Vec<u8>,
) {
    let properties = MqttProperties::of(message);
    let properties_length = properties.length();
    let publish_length = publish_length(message, properties_length)
        + common_name.map_or(0, |name| message_length(9, name.len()));
    into.clear();
    into.reserve(
        publish_length + node.len() + 48, // keys, lengths, timestamp and deadline
    );
    put_length(1, publish_length, into);
    put_bytes(1, message.publisher.as_bytes(), into);
    put_number(2, u64::from(message.packet_id), into);
    put_bytes(3, &message.payload, into);
    put_number(4, u64::from(message.retain), into);
    put_number(5, u64::from(message.qos.bits()), into);
    put_bytes(6, message.topic.bytes(), into);
    for (key, value) in message.properties.user_properties() {
        put_length(7, pair_length(&key, &value), into);
        put_bytes(1, key.bytes(), into);
        put_bytes(2, value.bytes(), into);
    }
    if properties_length > 0 {
        put_length(8, properties_length, into);
        properties.put(into);
    }
    if let Some(name) = common_name {
        put_length(9, name.len(), into);
        into.extend_from_slice(name.as_bytes());
    }
    put_bytes(2, node.as_bytes(), into);
    put_number(3, now_ms.cast_unsigned(), into);
    put_number(EXPIRES_AT_MS, message.expires_at_ms.unwrap_or(0).cast_unsigned(), into);
}

fn publish_length(message: &Message, properties_length: usize) -> usize {
    let pairs: usize = message
        .properties
        .user_properties()
        .map(|(key, value)| message_length(7, pair_length(&key, &value)))
        .sum();
    bytes_length(1, message.publisher.len())
        + number_length(2, u64::from(message.packet_id))
        + bytes_length(3, message.payload.len())
        + number_length(4, u64::from(message.retain))
        + number_length(5, u64::from(message.qos.bits()))
        + bytes_length(6, message.topic.len())
        + pairs
        + if properties_length > 0 { message_length(8, properties_length) } else { 0 }
}

/// The fields of `MqttPropertiesProto` that are there.
#[derive(Default)]
struct MqttProperties {
    fields: [Option<(u32, Value)>; 4],
}

impl MqttProperties {
    fn of(message: &Message) -> Self {
        let mut all = Self::default();
        if message.properties.is_empty() {
            return all;
        }
        for (id, value) in message.properties.iter() {
            let field = match id {
                PropertyId::PayloadFormatIndicator => 1,
                PropertyId::ContentType => 2,
                PropertyId::ResponseTopic => 3,
                PropertyId::CorrelationData => 4,
                _ => continue,
            };
            all.fields[field as usize - 1] = Some((field, value));
        }
        all
    }

    // Optional fields are written even when they are 0 or empty.
    fn length(&self) -> usize {
        let field_length = |(field, value): &(u32, Value)| match value {
            Value::Number(number) => key_len(*field) + encoded_len_varint(u64::from(*number)),
            Value::Text(text) => message_length(*field, text.len()),
            Value::Binary(bytes) => message_length(*field, bytes.len()),
            Value::Pair(..) => 0,
        };
        self.fields.iter().flatten().map(field_length).sum()
    }

    fn put(&self, into: &mut Vec<u8>) {
        for (field, value) in self.fields.iter().flatten() {
            let bytes = match value {
                Value::Number(number) => {
                    encode_key(*field, WireType::Varint, into);
                    encode_varint(u64::from(*number), into);
                    continue;
                }
                Value::Text(text) => text.bytes(),
                Value::Binary(bytes) => bytes,
                Value::Pair(..) => continue,
            };
            put_length(*field, bytes.len(), into);
            into.extend_from_slice(bytes);
        }
    }
}

fn put_length(field: u32, length: usize, into: &mut Vec<u8>) {
    encode_key(field, WireType::LengthDelimited, into);
    encode_varint(length as u64, into);
}

fn message_length(field: u32, length: usize) -> usize {
    key_len(field) + encoded_len_varint(length as u64) + length
}

// proto3 leaves out what is empty or 0.
fn put_bytes(field: u32, bytes: &[u8], into: &mut Vec<u8>) {
    if !bytes.is_empty() {
        put_length(field, bytes.len(), into);
        into.extend_from_slice(bytes);
    }
}

fn bytes_length(field: u32, length: usize) -> usize {
    if length == 0 { 0 } else { message_length(field, length) }
}

fn put_number(field: u32, number: u64, into: &mut Vec<u8>) {
    if number != 0 {
        encode_key(field, WireType::Varint, into);
        encode_varint(number, into);
    }
}

fn number_length(field: u32, number: u64) -> usize {
    if number == 0 { 0 } else { key_len(field) + encoded_len_varint(number) }
}

fn pair_length(key: &str, value: &str) -> usize {
    bytes_length(1, key.len()) + bytes_length(2, value.len())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message as _;
    use tbmq_mqtt::{
        codec::property::{Properties, PropertiesBuilder},
        packet::Qos,
    };
    use tbmq_proto::{
        integration::PublishIntegrationMsgProto,
        queue::{MqttPropertiesProto, PublishMsgProto, UserPropertyProto},
    };

    use super::*;

    fn message(properties: Properties) -> Message {
        Message {
            publisher: "device-1".into(),
            packet_id: 300,
            qos: Qos::ExactlyOnce,
            retain: true,
            topic: "tbmq/mqtt-integration".into(),
            payload: Bytes::from(vec![7; 300]),
            properties,
            expires_at_ms: Some(1_742_554_970_000),
        }
    }

    fn encoded(message: &Message, common_name: Option<&str>) -> Vec<u8> {
        let mut into = vec![1, 2, 3];
        encode(message, common_name, "tbmq_node", 1_742_554_969_254, &mut into);
        into
    }

    #[test]
    fn the_record_is_what_prost_writes() {
        let properties = PropertiesBuilder::new()
            .number(PropertyId::PayloadFormatIndicator, 0)
            .text(PropertyId::ContentType, "")
            .user("b", "2")
            .text(PropertyId::ResponseTopic, "answers/1")
            .binary(PropertyId::CorrelationData, &[0, 255])
            .user("a", "")
            .user("b", "1")
            .build();
        let pair = |key: &str, value: &str| UserPropertyProto { key: key.into(), value: value.into() };
        let expected = PublishIntegrationMsgProto {
            publish_msg_proto: Some(PublishMsgProto {
                client_id: "device-1".into(),
                packet_id: 300,
                payload: vec![7; 300].into(),
                retain: true,
                qos: 2,
                topic_name: "tbmq/mqtt-integration".into(),
                user_properties: vec![pair("b", "2"), pair("a", ""), pair("b", "1")],
                mqtt_properties: Some(MqttPropertiesProto {
                    payload_format_indicator: Some(0),
                    content_type: Some(String::new()),
                    response_topic: Some("answers/1".into()),
                    correlation_data: Some(vec![0, 255].into()),
                    subscription_ids: vec![],
                }),
                client_cert_cn: Some("meter-7".into()),
            }),
            tbmq_node: "tbmq_node".into(),
            timestamp: 1_742_554_969_254,
            expires_at_ms: 1_742_554_970_000,
        };
        assert_eq!(encoded(&message(properties), Some("meter-7")), expected.encode_to_vec());
    }

    #[test]
    fn defaults_are_left_out() {
        let plain = Message {
            packet_id: 0,
            qos: Qos::AtMostOnce,
            retain: false,
            payload: Bytes::new(),
            expires_at_ms: None,
            ..message(Properties::NONE)
        };
        let decoded = PublishIntegrationMsgProto::decode(&*encoded(&plain, None)).unwrap();
        assert_eq!(decoded.encode_to_vec(), encoded(&plain, None));
        let publish = decoded.publish_msg_proto.unwrap();
        assert_eq!((publish.mqtt_properties, publish.client_cert_cn), (None, None));
    }
}
