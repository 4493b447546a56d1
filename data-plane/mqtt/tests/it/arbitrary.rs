//! Any packet of a version, as that version can express it.

use bytes::Bytes;
use proptest::{collection::vec, option, prelude::*, sample::select};
use tbmq_mqtt::{
    codec::property::{Properties, PropertiesBuilder, PropertyId},
    packet::{
        Ack, ConnAck, Connect, Disconnect, Packet, ProtocolVersion, Publish, Qos, ReasonCode, RetainHandling,
        SubAck, Subscribe, Subscription, Text, Unsubscribe, Will,
    },
};

fn string() -> impl Strategy<Value = String> {
    "[^\\x00]{0,12}"
}

fn text() -> impl Strategy<Value = Text> {
    string().prop_map(|text| Text::from(text.as_str()))
}

fn binary() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

fn qos() -> impl Strategy<Value = Qos> {
    select(vec![Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce])
}

fn reasons(version: ProtocolVersion, bytes: &'static [u8]) -> BoxedStrategy<ReasonCode> {
    if version.is_v5() {
        select(bytes).prop_map(|byte| ReasonCode::from_byte(byte).unwrap()).boxed()
    } else {
        Just(ReasonCode::Success).boxed()
    }
}

/// Any of these properties, each at most once, then user properties.
fn properties(version: ProtocolVersion, ids: &'static [PropertyId]) -> BoxedStrategy<Properties> {
    if !version.is_v5() {
        return Just(Properties::NONE).boxed();
    }
    (vec(option::of((any::<u32>(), "[^\\x00#+]{1,9}", binary())), ids.len()), vec((string(), string()), 0..3))
        .prop_map(|(values, users)| {
            let mut builder = PropertiesBuilder::new();
            for (id, value) in ids.iter().zip(values) {
                let Some((number, text, binary)) = value else { continue };
                builder = put(builder, *id, number, &text, &binary);
            }
            users.iter().fold(builder, |builder, (name, value)| builder.user(name, value)).build()
        })
        .boxed()
}

fn put(
    builder: PropertiesBuilder,
    id: PropertyId,
    number: u32,
    text: &str,
    binary: &[u8],
) -> PropertiesBuilder {
    use PropertyId as Id;
    match id {
        Id::ContentType | Id::ResponseTopic | Id::AssignedClientIdentifier | Id::ResponseInformation => {
            builder.text(id, text)
        }
        Id::ServerReference | Id::ReasonString => builder.text(id, text),
        Id::CorrelationData => builder.binary(id, binary),
        // Its data may not stand without it.
        Id::AuthenticationMethod => builder.text(id, text).binary(Id::AuthenticationData, binary),
        Id::SubscriptionIdentifier => builder.number(id, number % 268_435_455 + 1),
        Id::ReceiveMaximum | Id::TopicAlias => builder.number(id, number % 65_535 + 1),
        Id::MaximumPacketSize => builder.number(id, number.max(1)),
        Id::TopicAliasMaximum | Id::ServerKeepAlive => builder.number(id, number & 0xffff),
        Id::MessageExpiryInterval | Id::SessionExpiryInterval | Id::WillDelayInterval => {
            builder.number(id, number)
        }
        _ => builder.number(id, number & 1),
    }
}

const CONNECT: &[PropertyId] = &[
    PropertyId::SessionExpiryInterval,
    PropertyId::AuthenticationMethod,
    PropertyId::RequestProblemInformation,
    PropertyId::RequestResponseInformation,
    PropertyId::ReceiveMaximum,
    PropertyId::TopicAliasMaximum,
    PropertyId::MaximumPacketSize,
];
const WILL: &[PropertyId] = &[
    PropertyId::WillDelayInterval,
    PropertyId::PayloadFormatIndicator,
    PropertyId::MessageExpiryInterval,
    PropertyId::ContentType,
    PropertyId::ResponseTopic,
    PropertyId::CorrelationData,
];
const CONNACK: &[PropertyId] = &[
    PropertyId::SessionExpiryInterval,
    PropertyId::AssignedClientIdentifier,
    PropertyId::ServerKeepAlive,
    PropertyId::AuthenticationMethod,
    PropertyId::ResponseInformation,
    PropertyId::ServerReference,
    PropertyId::ReasonString,
    PropertyId::ReceiveMaximum,
    PropertyId::TopicAliasMaximum,
    PropertyId::MaximumQos,
    PropertyId::RetainAvailable,
    PropertyId::MaximumPacketSize,
    PropertyId::WildcardSubscriptionAvailable,
    PropertyId::SubscriptionIdentifierAvailable,
    PropertyId::SharedSubscriptionAvailable,
];
const PUBLISH: &[PropertyId] = &[
    PropertyId::PayloadFormatIndicator,
    PropertyId::MessageExpiryInterval,
    PropertyId::ContentType,
    PropertyId::ResponseTopic,
    PropertyId::CorrelationData,
    PropertyId::SubscriptionIdentifier,
    PropertyId::SubscriptionIdentifier,
    PropertyId::TopicAlias,
];
const DISCONNECT: &[PropertyId] =
    &[PropertyId::SessionExpiryInterval, PropertyId::ServerReference, PropertyId::ReasonString];

fn connect(version: ProtocolVersion) -> impl Strategy<Value = Packet> {
    let will = (qos(), any::<bool>(), text(), binary(), properties(version, WILL)).prop_map(
        |(qos, retain, topic, payload, properties)| Will { qos, retain, topic, payload, properties },
    );
    (
        (any::<bool>(), any::<u16>(), text()),
        option::of(will),
        option::of(text()),
        option::of(binary()),
        properties(version, CONNECT),
    )
        .prop_map(move |((clean_start, keep_alive, client_id), will, username, password, properties)| {
            // MQTT 3.1.1, MQTT-3.1.2-22
            let password = password.filter(|_| version.is_v5() || username.is_some());
            Packet::Connect(Box::new(Connect {
                version,
                clean_start,
                keep_alive,
                client_id,
                will,
                username,
                password,
                properties,
            }))
        })
}

fn connack(version: ProtocolVersion) -> impl Strategy<Value = Packet> {
    let codes: &[u8] = if version.is_v5() {
        &[0, 0, 0x80, 0x84, 0x8a, 0x8c, 0x90, 0x95, 0x97, 0x99, 0x9d, 0x9f]
    } else {
        &[0, 0, 0x84, 0x85, 0x88, 0x86, 0x87]
    };
    (any::<bool>(), select(codes), properties(version, CONNACK)).prop_map(
        move |(present, code, properties)| {
            let session_present = present && code == 0 && version != ProtocolVersion::V31;
            Packet::ConnAck(ConnAck {
                session_present,
                reason: ReasonCode::from_byte(code).unwrap(),
                properties,
            })
        },
    )
}

fn publish_parts(version: ProtocolVersion) -> impl Strategy<Value = Publish> {
    let payload = prop_oneof![9 => vec(any::<u8>(), 0..300), 1 => Just(vec![7; 20_000])];
    (any::<(bool, bool)>(), qos(), text(), 1_u16.., properties(version, PUBLISH), payload).prop_map(
        |((dup, retain), qos, topic, id, properties, payload)| Publish {
            dup: dup && qos != Qos::AtMostOnce,
            qos,
            retain,
            topic,
            packet_id: (qos != Qos::AtMostOnce).then_some(id),
            properties,
            payload: Bytes::from(payload),
        },
    )
}

/// Any PUBLISH with its version.
pub(crate) fn publish() -> impl Strategy<Value = (ProtocolVersion, Publish)> {
    select(&crate::VERSIONS[..]).prop_flat_map(|version| (Just(version), publish_parts(version)))
}

fn ack(version: ProtocolVersion) -> impl Strategy<Value = Packet> {
    let first = reasons(version, &[0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99]);
    let second = reasons(version, &[0, 0x92]);
    (0..4_u8, 1_u16.., first, second, properties(version, &[PropertyId::ReasonString])).prop_map(
        |(kind, packet_id, first, second, properties)| match kind {
            0 => Packet::PubAck(Ack { packet_id, reason: first, properties }),
            1 => Packet::PubRec(Ack { packet_id, reason: first, properties }),
            2 => Packet::PubRel(Ack { packet_id, reason: second, properties }),
            _ => Packet::PubComp(Ack { packet_id, reason: second, properties }),
        },
    )
}

fn subscribe(version: ProtocolVersion) -> impl Strategy<Value = Packet> {
    let handling = select(vec![RetainHandling::Send, RetainHandling::SendIfNew, RetainHandling::DoNotSend]);
    let one =
        (text(), qos(), any::<(bool, bool)>(), handling).prop_map(move |(filter, qos, flags, handling)| {
            let v5 = version.is_v5();
            Subscription {
                filter,
                qos,
                no_local: v5 && flags.0,
                retain_as_published: v5 && flags.1,
                retain_handling: if v5 { handling } else { RetainHandling::Send },
            }
        });
    (1_u16.., vec(one, 1..5), properties(version, &[PropertyId::SubscriptionIdentifier])).prop_map(
        |(packet_id, subscriptions, properties)| {
            Packet::Subscribe(Subscribe { packet_id, subscriptions, properties })
        },
    )
}

fn unsubscribe(version: ProtocolVersion) -> impl Strategy<Value = Packet> {
    (1_u16.., vec(text(), 1..5), properties(version, &[])).prop_map(|(packet_id, filters, properties)| {
        Packet::Unsubscribe(Unsubscribe { packet_id, filters, properties })
    })
}

fn suback(version: ProtocolVersion) -> impl Strategy<Value = Packet> {
    let codes: &[u8] = if version.is_v5() {
        &[0, 1, 2, 0x80, 0x83, 0x87, 0x8f, 0x91, 0x97, 0x9e, 0xa1, 0xa2]
    } else {
        &[0, 1, 2, 0x80]
    };
    let codes = select(codes).prop_map(|byte| ReasonCode::from_byte(byte).unwrap());
    (1_u16.., vec(codes, 1..5), properties(version, &[PropertyId::ReasonString])).prop_map(
        |(packet_id, reasons, properties)| Packet::SubAck(SubAck { packet_id, reasons, properties }),
    )
}

fn unsuback(version: ProtocolVersion) -> impl Strategy<Value = Packet> {
    let codes = reasons(version, &[0, 0x11, 0x80, 0x83, 0x87, 0x8f, 0x91]);
    let count = if version.is_v5() { 1..5 } else { 0..1 };
    (1_u16.., vec(codes, count), properties(version, &[PropertyId::ReasonString])).prop_map(
        |(packet_id, reasons, properties)| Packet::UnsubAck(SubAck { packet_id, reasons, properties }),
    )
}

fn disconnect(version: ProtocolVersion) -> impl Strategy<Value = Packet> {
    (reasons(version, &[0, 4, 0x80, 0x87, 0x8e, 0x93, 0xa2]), properties(version, DISCONNECT))
        .prop_map(|(reason, properties)| Packet::Disconnect(Disconnect { reason, properties }))
}

fn auth() -> impl Strategy<Value = Packet> {
    const IDS: &[PropertyId] = &[PropertyId::AuthenticationMethod, PropertyId::ReasonString];
    (reasons(ProtocolVersion::V5, &[0, 0x18, 0x19]), properties(ProtocolVersion::V5, IDS))
        .prop_map(|(reason, properties)| Packet::Auth(Disconnect { reason, properties }))
}

/// Any packet of a version but CONNECT.
pub(crate) fn after_connect(version: ProtocolVersion) -> BoxedStrategy<Packet> {
    let all = prop_oneof![
        connack(version),
        publish_parts(version).prop_map(Packet::Publish),
        ack(version),
        subscribe(version),
        unsubscribe(version),
        suback(version),
        unsuback(version),
        disconnect(version),
        Just(Packet::PingReq),
        Just(Packet::PingResp),
    ];
    if version.is_v5() { prop_oneof![9 => all, 1 => auth()].boxed() } else { all.boxed() }
}

/// Any packet with its version.
pub(crate) fn packet() -> impl Strategy<Value = (ProtocolVersion, Packet)> {
    select(&crate::VERSIONS[..]).prop_flat_map(|version| {
        (Just(version), prop_oneof![1 => connect(version), 9 => after_connect(version)])
    })
}

/// What a client may write on a connection: CONNECT, then anything.
pub(crate) fn stream() -> impl Strategy<Value = (ProtocolVersion, Vec<Packet>)> {
    select(&crate::VERSIONS[..]).prop_flat_map(|version| {
        (connect(version), vec(after_connect(version), 0..6)).prop_map(move |(first, mut rest)| {
            rest.insert(0, first);
            (version, rest)
        })
    })
}
