//! Deliveries and wills as what a session store keeps: TBMQ's `PublishMsgProto` with what it lacks beside it.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use tbmq_mqtt::{
    codec::property::{Properties, PropertiesBuilder, PropertyId, Value},
    packet::{Qos, Text, Will},
    session::{Delivery, Message},
};
use tbmq_proto::queue::{
    MqttPropertiesProto, PublishMsgProto, StoredDeliveryProto, StoredWillProto, UserPropertyProto,
};

/// Stored bytes that are not a delivery or a will.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a stored message can't be read: {0}")]
pub struct Unreadable(String);

/// Writes a delivery down.
pub fn encode(delivery: &Delivery) -> Bytes {
    let message = &delivery.message;
    let (user_properties, mqtt_properties) = properties(&message.properties, &delivery.identifiers);
    let publish = PublishMsgProto {
        client_id: message.publisher.to_string(),
        packet_id: i32::from(message.packet_id),
        payload: message.payload.clone(),
        retain: delivery.retain,
        qos: i32::from(delivery.qos.bits()),
        topic_name: message.topic.to_string(),
        user_properties,
        mqtt_properties,
        client_cert_cn: None,
    };
    let stored = StoredDeliveryProto { publish: Some(publish), expires_at_ms: message.expires_at_ms };
    stored.encode_to_vec().into()
}

/// Reads a delivery. Its message has the delivery's QoS and retain flag: those of the publish are not kept.
///
/// # Errors
/// When the bytes are not a delivery.
pub fn decode(stored: Bytes) -> Result<Delivery, Unreadable> {
    let StoredDeliveryProto { publish, expires_at_ms } = StoredDeliveryProto::decode(stored).map_err(bad)?;
    let Parts { publish, qos, topic, properties, identifiers } = parts(publish, PropertiesBuilder::new())?;
    let message = Message {
        publisher: publish.client_id.into(),
        packet_id: u16::try_from(publish.packet_id).map_err(bad)?,
        qos,
        retain: publish.retain,
        topic,
        payload: publish.payload,
        properties,
        expires_at_ms,
    };
    Ok(Delivery { message: Arc::new(message), qos, retain: publish.retain, identifiers, group: None })
}

/// Writes a will down, with whose it is.
pub fn encode_will(client_id: &str, will: &Will) -> Bytes {
    let (user_properties, mqtt_properties) = properties(&will.properties, &[]);
    let publish = PublishMsgProto {
        client_id: client_id.to_owned(),
        packet_id: 0,
        payload: will.payload.clone(),
        retain: will.retain,
        qos: i32::from(will.qos.bits()),
        topic_name: will.topic.to_string(),
        user_properties,
        mqtt_properties,
        client_cert_cn: None,
    };
    let stored = StoredWillProto {
        publish: Some(publish),
        delay_s: will.properties.number(PropertyId::WillDelayInterval),
        expiry_s: will.properties.number(PropertyId::MessageExpiryInterval),
    };
    stored.encode_to_vec().into()
}

/// Reads a will.
///
/// # Errors
/// When the bytes are not a will.
pub fn decode_will(stored: Bytes) -> Result<Will, Unreadable> {
    let StoredWillProto { publish, delay_s, expiry_s } = StoredWillProto::decode(stored).map_err(bad)?;
    let times = [(PropertyId::WillDelayInterval, delay_s), (PropertyId::MessageExpiryInterval, expiry_s)];
    let times = times.into_iter().fold(PropertiesBuilder::new(), |builder, (id, time)| match time {
        Some(time) => builder.number(id, time),
        None => builder,
    });
    let Parts { publish, qos, topic, properties, .. } = parts(publish, times)?;
    Ok(Will { qos, retain: publish.retain, topic, payload: publish.payload, properties })
}

fn bad(error: impl ToString) -> Unreadable {
    Unreadable(error.to_string())
}

/// TBMQ's fields for properties that are forwarded.
fn properties(
    properties: &Properties,
    identifiers: &[u32],
) -> (Vec<UserPropertyProto>, Option<MqttPropertiesProto>) {
    let mut user = Vec::new();
    let mut fields = MqttPropertiesProto {
        subscription_ids: identifiers.iter().map(|identifier| identifier.cast_signed()).collect(),
        ..MqttPropertiesProto::default()
    };
    for (id, value) in properties.iter() {
        match (id, value) {
            (PropertyId::UserProperty, Value::Pair(key, value)) => {
                user.push(UserPropertyProto { key: key.to_string(), value: value.to_string() });
            }
            (PropertyId::PayloadFormatIndicator, Value::Number(number)) => {
                fields.payload_format_indicator = Some(number.cast_signed());
            }
            (PropertyId::ContentType, Value::Text(text)) => fields.content_type = Some(text.to_string()),
            (PropertyId::ResponseTopic, Value::Text(text)) => fields.response_topic = Some(text.to_string()),
            (PropertyId::CorrelationData, Value::Binary(bytes)) => fields.correlation_data = Some(bytes),
            _ => {}
        }
    }
    let has_fields = fields != MqttPropertiesProto::default();
    (user, has_fields.then_some(fields))
}

struct Parts {
    /// Without what is in the other fields.
    publish: PublishMsgProto,
    qos: Qos,
    topic: Text,
    properties: Properties,
    identifiers: Vec<u32>,
}

fn parts(publish: Option<PublishMsgProto>, mut builder: PropertiesBuilder) -> Result<Parts, Unreadable> {
    let mut publish = publish.ok_or_else(|| bad("no message"))?;
    let qos = u8::try_from(publish.qos).ok().and_then(Qos::from_bits).ok_or_else(|| bad("bad QoS"))?;
    let topic = std::mem::take(&mut publish.topic_name);
    let topic = Text::from_bytes(topic.into()).ok_or_else(|| bad("bad topic"))?;
    let fields = publish.mqtt_properties.take().unwrap_or_default();
    if let Some(indicator) = fields.payload_format_indicator {
        builder = builder.number(PropertyId::PayloadFormatIndicator, indicator.cast_unsigned());
    }
    if let Some(text) = &fields.content_type {
        builder = builder.text(PropertyId::ContentType, text);
    }
    if let Some(text) = &fields.response_topic {
        builder = builder.text(PropertyId::ResponseTopic, text);
    }
    if let Some(bytes) = &fields.correlation_data {
        builder = builder.binary(PropertyId::CorrelationData, bytes);
    }
    for pair in std::mem::take(&mut publish.user_properties) {
        builder = builder.user(&pair.key, &pair.value);
    }
    let identifiers = fields.subscription_ids.into_iter().map(i32::cast_unsigned).collect();
    Ok(Parts { publish, qos, topic, properties: builder.build(), identifiers })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_properties() -> PropertiesBuilder {
        PropertiesBuilder::new()
            .number(PropertyId::PayloadFormatIndicator, 0)
            .text(PropertyId::ContentType, "")
            .text(PropertyId::ResponseTopic, "answers/1")
            .binary(PropertyId::CorrelationData, &[0, 255])
            .user("b", "2")
            .user("a", "")
            .user("b", "1")
    }

    /// [MQTT5-3.3.2-17] [MQTT5-3.3.2-18]
    #[test]
    fn a_delivery_comes_back_as_it_was_but_for_the_publishers_qos_and_retain_flag() {
        for (properties, expires_at_ms, identifiers) in [
            (all_properties().build(), Some(1_742_554_970_000), vec![1, 268_435_455]),
            (Properties::NONE, None, vec![]),
            (Properties::NONE, Some(0), vec![7]),
        ] {
            let message = Message {
                publisher: "device-1".into(),
                packet_id: 65_535,
                qos: Qos::ExactlyOnce,
                retain: true,
                topic: "a/ü".into(),
                payload: Bytes::from_static(b"\0\xff"),
                properties,
                expires_at_ms,
            };
            let delivery = Delivery {
                message: Arc::new(message),
                qos: Qos::AtLeastOnce,
                retain: false,
                identifiers,
                group: None,
            };
            let read = decode(encode(&delivery)).unwrap();
            let as_delivered =
                Message { qos: Qos::AtLeastOnce, retain: false, ..(*delivery.message).clone() };
            assert_eq!(read, Delivery { message: Arc::new(as_delivered), ..delivery });
        }
    }

    #[test]
    fn a_will_comes_back_with_all_its_properties() {
        let with_times = PropertiesBuilder::new()
            .number(PropertyId::WillDelayInterval, u32::MAX)
            .number(PropertyId::MessageExpiryInterval, 0);
        let with_times =
            all_properties().build().iter().fold(with_times, |builder, (id, value)| builder.copy(id, &value));
        for properties in [with_times.build(), all_properties().build(), Properties::NONE] {
            let will = Will {
                qos: Qos::AtLeastOnce,
                retain: true,
                topic: "wills/1".into(),
                payload: Bytes::from_static(b"gone"),
                properties,
            };
            assert_eq!(decode_will(encode_will("device-1", &will)), Ok(will));
        }
    }

    #[test]
    fn bytes_that_are_neither_are_refused() {
        assert!(decode(Bytes::from_static(b"\xff")).is_err());
        assert_eq!(decode(Bytes::new()), Err(Unreadable("no message".to_owned())));
        assert_eq!(decode_will(Bytes::new()), Err(Unreadable("no message".to_owned())));
        let publish = Some(PublishMsgProto { qos: 3, ..PublishMsgProto::default() });
        let stored = StoredDeliveryProto { publish, expires_at_ms: None }.encode_to_vec();
        assert_eq!(decode(stored.into()), Err(Unreadable("bad QoS".to_owned())));
        let publish = Some(PublishMsgProto { topic_name: "\0".to_owned(), ..PublishMsgProto::default() });
        let stored = StoredDeliveryProto { publish, expires_at_ms: None }.encode_to_vec();
        assert_eq!(decode(stored.into()), Err(Unreadable("bad topic".to_owned())));
    }
}
