//! The record of a retained message: TBMQ's `RetainedMsgProto` under the topic's name, with its headers (broker spec
//! §2.9, §2.12).

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use tbmq_bus::{Header, Outgoing, Record};
use tbmq_mqtt::{
    codec::property::{PropertiesBuilder, PropertyId, Value},
    packet::{Qos, Text},
    session::Message,
    topic::{self, Rules},
};
use tbmq_proto::{
    queue::{MqttPropertiesProto, RetainedMsgProto, UserPropertyProto},
    topic::MESSAGE_EXPIRY_HEADER,
};

/// A record that is to be written.
#[derive(Debug)]
pub(crate) struct Written {
    topic: Text,
    value: Option<Vec<u8>>,
    headers: Vec<Header>,
}

impl Written {
    pub(crate) fn outgoing(&self) -> Outgoing<'_> {
        Outgoing {
            partition: None,
            key: Some(self.topic.bytes()),
            value: self.value.as_deref(),
            headers: &self.headers,
        }
    }
}

/// What a record says of a topic.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) topic: Text,
    /// `None`: it was removed.
    pub(super) message: Option<Message>,
    /// When it was published, ms since 1970.
    pub(super) created_ms: i64,
}

/// The record of a message; a tombstone when it is not to be kept.
pub(super) fn write(message: &Message, is_kept: bool, service: &Header, now_ms: i64) -> Written {
    let mut headers = vec![service.clone()];
    let mut created_ms = now_ms;
    if let (true, Some(expires_at_ms)) = (is_kept, message.expires_at_ms) {
        let left_s =
            u32::try_from((expires_at_ms - now_ms).max(0).unsigned_abs().div_ceil(1000)).unwrap_or(u32::MAX);
        // So that both together are exactly when it expires.
        created_ms = expires_at_ms - i64::from(left_s) * 1000;
        let value = Bytes::copy_from_slice(&left_s.to_be_bytes());
        headers.push(Header { name: MESSAGE_EXPIRY_HEADER.into(), value });
    }
    let value = is_kept.then(|| encode(message, created_ms));
    Written { topic: message.topic.clone(), value, headers }
}

fn encode(message: &Message, created_ms: i64) -> Vec<u8> {
    let mut properties = MqttPropertiesProto::default();
    for (id, value) in message.properties.iter() {
        match (id, value) {
            (PropertyId::PayloadFormatIndicator, Value::Number(number)) => {
                properties.payload_format_indicator = Some(number.cast_signed());
            }
            (PropertyId::ContentType, Value::Text(text)) => properties.content_type = Some(text.to_string()),
            (PropertyId::ResponseTopic, Value::Text(text)) => {
                properties.response_topic = Some(text.to_string());
            }
            (PropertyId::CorrelationData, Value::Binary(bytes)) => properties.correlation_data = Some(bytes),
            _ => {}
        }
    }
    let user =
        |(key, value): (Text, Text)| UserPropertyProto { key: key.to_string(), value: value.to_string() };
    let proto = RetainedMsgProto {
        payload: message.payload.clone(),
        qos: i32::from(message.qos.bits()),
        topic: message.topic.to_string(),
        user_properties: message.properties.user_properties().map(user).collect(),
        created_time: created_ms,
        mqtt_properties: (properties != MqttPropertiesProto::default()).then_some(properties),
        publisher: message.publisher.to_string(),
    };
    proto.encode_to_vec()
}

/// What a record says; `None` when clients could not have published to it.
pub(super) fn read(record: &Record) -> Result<Option<Read>, String> {
    let key = record.key.as_deref().ok_or("no key")?;
    // Copied: a record's bytes may keep many other records alive.
    let name = Text::from_bytes(Bytes::copy_from_slice(key)).ok_or("the key is no MQTT text")?;
    topic::check_name(&name, &Rules::default()).map_err(|error| format!("topic {:?}: {error}", &*name))?;
    if name.starts_with("$SYS/") {
        return Ok(None);
    }
    let value = record.value.as_deref().unwrap_or_default();
    if value.is_empty() {
        return Ok(Some(Read { topic: name, message: None, created_ms: 0 }));
    }
    let proto = RetainedMsgProto::decode(value).map_err(|error| error.to_string())?;
    if proto.topic != *name {
        return Err(format!("the key is {:?}, but the topic {:?}", &*name, proto.topic));
    }
    let qos = u8::try_from(proto.qos).ok().and_then(Qos::from_bits);
    let message = Message {
        publisher: Arc::from(&*proto.publisher),
        packet_id: 0,
        qos: qos.ok_or_else(|| format!("quality of service {}", proto.qos))?,
        retain: true,
        topic: name.clone(),
        expires_at_ms: expires_at_ms(record, &proto)?,
        properties: properties(&proto)?.build(),
        payload: proto.payload,
    };
    let message = (!message.payload.is_empty()).then_some(message);
    Ok(Some(Read { topic: name, message, created_ms: proto.created_time }))
}

fn expires_at_ms(record: &Record, proto: &RetainedMsgProto) -> Result<Option<i64>, String> {
    let Some(header) = record.headers.iter().find(|header| &*header.name == MESSAGE_EXPIRY_HEADER) else {
        return Ok(None);
    };
    let left_s: [u8; 4] =
        (*header.value).try_into().map_err(|_| format!("{} bytes of expiry", header.value.len()))?;
    Ok(Some(proto.created_time.saturating_add(i64::from(u32::from_be_bytes(left_s)) * 1000)))
}

fn properties(proto: &RetainedMsgProto) -> Result<PropertiesBuilder, String> {
    let mut builder = PropertiesBuilder::new();
    if let Some(properties) = &proto.mqtt_properties {
        if let Some(indicator) = properties.payload_format_indicator {
            if !(0..=1).contains(&indicator) {
                return Err(format!("payload format {indicator}"));
            }
            builder = builder.number(PropertyId::PayloadFormatIndicator, indicator.unsigned_abs());
        }
        if let Some(text) = &properties.content_type {
            builder = builder.text(PropertyId::ContentType, text);
        }
        if let Some(text) = &properties.response_topic {
            topic::check_name(text, &Rules::default())
                .map_err(|error| format!("response topic {text:?}: {error}"))?;
            builder = builder.text(PropertyId::ResponseTopic, text);
        }
        if let Some(bytes) = &properties.correlation_data {
            builder = builder.binary(PropertyId::CorrelationData, bytes);
        }
    }
    let user = proto.user_properties.iter();
    Ok(user.fold(builder, |builder, property| builder.user(&property.key, &property.value)))
}
