//! From a message to the value and headers of a Kafka record (spec §6.5.2).

use std::fmt;

use bytes::Bytes;
use rdkafka::message::{Header, Headers as _, OwnedHeaders};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tbmq_service::trace::{TRACEPARENT, TRACESTATE, TraceContext};

use crate::{
    sink::{Message, payload},
    sinks::envelope::{Envelope, Payload},
};

/// How the values of headers are encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Charset {
    /// 7 bits; `?` for what it lacks.
    #[serde(rename = "US-ASCII")]
    UsAscii,
    /// Latin 1; `?` for what it lacks.
    #[serde(rename = "ISO-8859-1")]
    Latin1,
    /// Any text.
    #[default]
    #[serde(rename = "UTF-8")]
    Utf8,
    /// Any text, 16 bits each, the high byte first.
    #[serde(rename = "UTF-16BE")]
    Utf16Be,
    /// Any text, 16 bits each, the low byte first.
    #[serde(rename = "UTF-16LE")]
    Utf16Le,
    /// As UTF-16BE after a byte order mark.
    #[serde(rename = "UTF-16")]
    Utf16,
}

impl Charset {
    /// Encodes as Java's `String.getBytes` does.
    pub fn encode(self, text: &str) -> Vec<u8> {
        let narrow = |most: char| text.chars().map(|c| if c <= most { c as u8 } else { b'?' }).collect();
        match self {
            Self::UsAscii => narrow('\u{7f}'),
            Self::Latin1 => narrow('\u{ff}'),
            Self::Utf8 => text.as_bytes().to_vec(),
            Self::Utf16Be => text.encode_utf16().flat_map(u16::to_be_bytes).collect(),
            Self::Utf16Le => text.encode_utf16().flat_map(u16::to_le_bytes).collect(),
            // Nothing needs no mark.
            Self::Utf16 if text.is_empty() => Vec::new(),
            Self::Utf16 => {
                std::iter::once(0xfeff).chain(text.encode_utf16()).flat_map(u16::to_be_bytes).collect()
            }
        }
    }
}

/// What the records of an integration have in common.
pub(super) struct Records {
    key: Option<String>,
    headers: Option<OwnedHeaders>,
    /// `None`: the payload is sent alone.
    envelope: Option<Envelope>,
    /// Bytes of key and headers.
    fixed_bytes: usize,
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records").finish_non_exhaustive()
    }
}

/// Bytes that a record occupies besides its key, value and headers, about.
const OVERHEAD: usize = 128;

impl Records {
    pub(super) fn new<'a>(
        key: Option<&str>,
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
        charset: Charset,
        envelope: Option<Envelope>,
    ) -> Self {
        let mut fixed_bytes = key.map_or(0, str::len);
        let mut made: Option<OwnedHeaders> = None;
        for (name, text) in headers {
            let value = charset.encode(text);
            fixed_bytes += name.len() + value.len();
            made = Some(made.unwrap_or_default().insert(Header { key: name, value: Some(&value) }));
        }
        Self { key: key.map(str::to_owned), headers: made, envelope, fixed_bytes }
    }

    pub(super) fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// The configured ones, and the place of the attempt in its trace unless they set one.
    pub(super) fn headers(&self, trace: Option<&TraceContext>) -> Option<OwnedHeaders> {
        let Some(trace) = trace else { return self.headers.clone() };
        let headers = self.headers.clone().unwrap_or_default();
        if headers.iter().any(|header| [TRACEPARENT, TRACESTATE].contains(&header.key)) {
            return Some(headers);
        }
        let traced = trace
            .fields()
            .fold(headers, |headers, (key, text)| headers.insert(Header { key, value: Some(&text) }));
        Some(traced)
    }

    pub(super) fn value(&self, message: &Message) -> Bytes {
        match &self.envelope {
            // As they came: TBMQ sends base64 text instead where they are not UTF-8.
            None => payload(message),
            Some(envelope) => {
                let payload = payload(message);
                envelope.write(&message.publish, &Payload::Base64(&payload)).into()
            }
        }
    }

    /// What a record with this value costs of an integration's buffer memory.
    pub(super) fn cost(&self, value: &Bytes) -> usize {
        value.len() + self.fixed_bytes + OVERHEAD
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use super::*;
    use crate::conformance::{message, traced, traceparent};

    /// What Java 17's `"aé€😀".getBytes(charset)` gives.
    #[test]
    fn texts_are_encoded_as_java_does() {
        let text = "aé€😀";
        for (charset, bytes) in [
            (Charset::UsAscii, vec![0x61, 0x3f, 0x3f, 0x3f]),
            (Charset::Latin1, vec![0x61, 0xe9, 0x3f, 0x3f]),
            (Charset::Utf8, vec![0x61, 0xc3, 0xa9, 0xe2, 0x82, 0xac, 0xf0, 0x9f, 0x98, 0x80]),
            (Charset::Utf16Be, vec![0, 0x61, 0, 0xe9, 0x20, 0xac, 0xd8, 0x3d, 0xde, 0]),
            (Charset::Utf16Le, vec![0x61, 0, 0xe9, 0, 0xac, 0x20, 0x3d, 0xd8, 0, 0xde]),
            (Charset::Utf16, vec![0xfe, 0xff, 0, 0x61, 0, 0xe9, 0x20, 0xac, 0xd8, 0x3d, 0xde, 0]),
        ] {
            assert_eq!(charset.encode(text), bytes, "{charset:?}");
            assert!(charset.encode("").is_empty(), "{charset:?}");
        }
    }

    #[test]
    fn headers_keep_their_order_and_may_be_empty() {
        let records = Records::new(None, [("z", "ü"), ("a", ""), ("z", "2")], Charset::Latin1, None);
        let headers = records.headers(None).unwrap();
        let found: Vec<_> = headers.iter().map(|header| (header.key, header.value.unwrap())).collect();
        assert_eq!(found, [("z", &b"\xfc"[..]), ("a", &b""[..]), ("z", &b"2"[..])]);
        assert!(Records::new(None, [], Charset::Utf8, None).headers(None).is_none());
    }

    #[test]
    fn a_traced_message_takes_its_place_along_unless_the_configured_headers_set_one() {
        let sent = |configured: Option<(&str, &str)>| {
            let records = Records::new(None, configured, Charset::Utf8, None);
            let headers = records.headers(traced(3).trace.as_deref()).unwrap();
            let text = |value: Option<&[u8]>| String::from_utf8(value.unwrap().to_vec()).unwrap();
            headers.iter().map(|header| format!("{}: {}", header.key, text(header.value))).collect::<Vec<_>>()
        };
        let place = format!("traceparent: {}", traceparent(3));
        assert_eq!(sent(None), [&*place, "tracestate: vendor=x"]);
        assert_eq!(sent(Some(("a", "1"))), ["a: 1", &*place, "tracestate: vendor=x"]);
        assert_eq!(sent(Some(("traceparent", "ours"))), ["traceparent: ours"]);
    }

    #[test]
    fn a_payload_alone_is_sent_as_it_came() {
        let mut message = message(1);
        let publish = std::sync::Arc::make_mut(&mut message.publish);
        publish.publish_msg_proto.as_mut().unwrap().payload = Bytes::from_static(&[0xff, 0, 0x80]);
        let alone = Records::new(Some("k"), [], Charset::Utf8, None);
        let value = alone.value(&message);
        assert_eq!(value, &[0xff, 0, 0x80][..]);
        assert_eq!(alone.cost(&value), 3 + 1 + OVERHEAD);
        let mut metadata = Map::new();
        metadata.insert("integrationName".to_owned(), Value::from("k"));
        let wrapped = Records::new(None, [], Charset::Utf8, Some(Envelope::new("ie", &metadata)));
        assert!(wrapped.value(&message).starts_with(br#"{"payload":"/wCA","topicName":"topic/1""#));
    }
}
