use super::*;
use crate::packet::{ConnAck, Disconnect, SubAck, Subscribe, Subscription};

pub(super) const START: Now = Now { monotonic_ms: 1_000_000, epoch_ms: 1_700_000_000_000 };

pub(super) fn after(ms: u64) -> Now {
    Now { monotonic_ms: START.monotonic_ms + ms, epoch_ms: START.epoch_ms + ms as i64 }
}

pub(super) fn connect_packet(version: ProtocolVersion) -> Connect {
    Connect::new(version, "c")
}

pub(super) fn opened(connect: &Connect, limits: Limits) -> (Session, Vec<Effect>) {
    opened_with(connect, limits, Proven::default())
}

/// A session whose client has proven this, unless it names a method: none is known here.
pub(super) fn opened_with(connect: &Connect, limits: Limits, proven: Proven) -> (Session, Vec<Effect>) {
    let mut session = Session::new(Arc::new(limits), START);
    let mut out = Vec::new();
    session.connect(START, connect, || "assigned".to_owned(), &mut out);
    if out == [Effect::Authenticate] {
        out.clear();
        if session.authentication_method().is_some() {
            session.not_authenticated(START, ReasonCode::BadAuthenticationMethod, &mut out);
        } else {
            session.authenticated(START, proven, &mut out);
            session.open(START, &mut out);
        }
    }
    (session, out)
}

pub(super) fn connected(version: ProtocolVersion) -> Session {
    let (session, out) = opened(&connect_packet(version), Limits::default());
    assert_eq!(out[0], Effect::Admit { resume: false });
    session
}

pub(super) fn refused_with(connect: &Connect) -> Option<ReasonCode> {
    match opened(connect, Limits::default()).1.as_slice() {
        [Effect::Send(Packet::ConnAck(connack)), Effect::Close(End::Refused)] => Some(connack.reason),
        _ => None,
    }
}

pub(super) fn connack(out: &[Effect]) -> &ConnAck {
    match &out[1] {
        Effect::Send(Packet::ConnAck(connack)) => connack,
        other => panic!("{other:?}"),
    }
}

pub(super) fn give(session: &mut Session, packet: Packet) -> Vec<Effect> {
    give_at(session, START, packet)
}

pub(super) fn give_at(session: &mut Session, now: Now, packet: Packet) -> Vec<Effect> {
    let mut out = Vec::new();
    session.packet(now, packet, &mut out);
    out
}

pub(super) fn publish(qos: Qos, packet_id: u16) -> Publish {
    Publish {
        dup: false,
        qos,
        retain: false,
        topic: "t".into(),
        packet_id: (qos != Qos::AtMostOnce).then_some(packet_id),
        properties: Properties::NONE,
        payload: Bytes::from_static(b"x"),
    }
}

/// Publishes, and returns the number under which the outcome is awaited.
pub(super) fn published(session: &mut Session, qos: Qos, packet_id: u16) -> u64 {
    match give(session, Packet::Publish(publish(qos, packet_id))).as_slice() {
        [Effect::Publish { number: Some(number), message }] => {
            assert_eq!(message.packet_id, packet_id);
            *number
        }
        other => panic!("{other:?}"),
    }
}

pub(super) fn routed(session: &mut Session, number: u64, records: u32) -> Vec<Effect> {
    let mut out = Vec::new();
    session.routed(START, number, records, true, &mut out);
    out
}

pub(super) fn written(session: &mut Session, number: u64, result: Result<(), ReasonCode>) -> Vec<Effect> {
    let mut out = Vec::new();
    session.written(START, number, result, &mut out);
    out
}

pub(super) fn ended(session: &mut Session, end: End) -> Vec<Effect> {
    let mut out = Vec::new();
    session.end(START, end, &mut out);
    out
}

pub(super) fn puback(packet_id: u16, reason: ReasonCode) -> Effect {
    Effect::Send(Packet::PubAck(explained(packet_id, reason)))
}

pub(super) fn pubrec(packet_id: u16, reason: ReasonCode) -> Effect {
    Effect::Send(Packet::PubRec(explained(packet_id, reason)))
}

pub(super) fn explained(packet_id: u16, reason: ReasonCode) -> Ack {
    let properties = explanation(reason).map_or(Properties::NONE, |text| {
        PropertiesBuilder::new().text(PropertyId::ReasonString, text).build()
    });
    Ack { packet_id, reason, properties }
}

pub(super) fn goodbye(reason: ReasonCode) -> Effect {
    Effect::Send(Packet::Disconnect(Disconnect::new(reason)))
}

pub(super) fn message(qos: Qos) -> Arc<Message> {
    Arc::new(Message {
        publisher: "p".into(),
        packet_id: 0,
        qos,
        retain: false,
        topic: "t".into(),
        payload: Bytes::from_static(b"x"),
        properties: Properties::NONE,
        expires_at_ms: None,
    })
}

pub(super) fn delivery(qos: Qos) -> Delivery {
    Delivery { message: message(qos), qos, retain: false, identifiers: Vec::new(), group: None }
}

pub(super) fn delivered(session: &mut Session, now: Now, delivery: Delivery) -> Vec<Effect> {
    let mut out = Vec::new();
    session.deliver(now, delivery, &mut out);
    out
}

pub(super) fn sent(effect: &Effect) -> &Publish {
    match effect {
        Effect::Send(Packet::Publish(publish)) => publish,
        other => panic!("{other:?}"),
    }
}

pub(super) fn subscription(filter: &str) -> Subscription {
    Subscription::new(filter, Qos::AtLeastOnce)
}

pub(super) fn subscribe(session: &mut Session, subscriptions: Vec<Subscription>) -> Vec<Effect> {
    let packet = Subscribe::new(9, subscriptions);
    give(session, Packet::Subscribe(packet))
}

/// [MQTT-3.1.3-6] [MQTT-3.1.3-7] [MQTT-3.1.3-8] [MQTT5-3.1.3-6] [MQTT5-3.1.3-7]
#[test]
fn an_empty_client_id_is_assigned_or_refused_as_the_version_says() {
    for (version, clean_start, expected) in [
        (ProtocolVersion::V311, true, None),
        (ProtocolVersion::V311, false, Some(ReasonCode::ClientIdentifierNotValid)),
        (ProtocolVersion::V5, true, None),
        (ProtocolVersion::V5, false, None),
    ] {
        let connect = Connect { client_id: "".into(), clean_start, ..connect_packet(version) };
        assert_eq!(refused_with(&connect), expected, "{version:?} {clean_start}");
        if expected.is_none() {
            let (session, out) = opened(&connect, Limits::default());
            assert_eq!(&**session.client_id(), "assigned");
            let told = connack(&out).properties.text(PropertyId::AssignedClientIdentifier);
            assert_eq!(told.as_deref(), version.is_v5().then_some("assigned"));
        }
    }
}

/// [MQTT-3.1.3-9] [MQTT5-3.1.3-8] [MQTT5-3.1.4-2] [MQTT5-4.12.0-1] [MQTT5-4.12.0-4]
#[test]
fn a_connect_that_asks_for_what_is_not_there_is_refused() {
    let with = |properties: PropertiesBuilder| Connect {
        properties: properties.build(),
        ..connect_packet(ProtocolVersion::V5)
    };
    let method = PropertiesBuilder::new().text(PropertyId::AuthenticationMethod, "SCRAM-SHA-256");
    assert_eq!(refused_with(&with(method)), Some(ReasonCode::BadAuthenticationMethod));
    let data = PropertiesBuilder::new().binary(PropertyId::AuthenticationData, b"x");
    assert_eq!(refused_with(&with(data)), Some(ReasonCode::ProtocolError));
    let long = Connect { client_id: Text::from(&*"x".repeat(1025)), ..connect_packet(ProtocolVersion::V31) };
    assert_eq!(refused_with(&long), Some(ReasonCode::ClientIdentifierNotValid));
    for topic in ["a/#", "$SYS/x", "$share/g/a", ""] {
        let will = Will {
            qos: Qos::AtMostOnce,
            retain: false,
            topic: topic.into(),
            payload: Bytes::new(),
            properties: Properties::NONE,
        };
        let connect = Connect { will: Some(will), ..connect_packet(ProtocolVersion::V5) };
        assert_eq!(refused_with(&connect), Some(ReasonCode::TopicNameInvalid), "{topic}");
    }
}

/// [MQTT5-3.14.4-1]
#[test]
fn nothing_is_done_before_connect_and_nothing_after_close() {
    let mut session = Session::new(Arc::default(), START);
    assert_eq!(give(&mut session, Packet::PingReq), []);
    let mut session = connected(ProtocolVersion::V5);
    let number = published(&mut session, Qos::AtLeastOnce, 1);
    assert_eq!(ended(&mut session, End::Network), [Effect::Close(End::Network)]);
    assert_eq!(give(&mut session, Packet::PingReq), []);
    assert_eq!(routed(&mut session, number, 0), []);
    assert_eq!(delivered(&mut session, START, delivery(Qos::AtMostOnce)), []);
    assert_eq!(ended(&mut session, End::ShuttingDown), []);
    assert_eq!(session.deadline_ms(), None);
}

#[test]
fn no_connect_in_time_closes() {
    let mut session = Session::new(Arc::default(), START);
    assert_eq!(session.deadline_ms(), Some(START.monotonic_ms + 10_000));
    let mut out = Vec::new();
    session.tick(after(9_999), &mut out);
    assert_eq!(out, []);
    session.tick(after(10_000), &mut out);
    assert_eq!(out, [Effect::Close(End::ConnectTimeout)]);
}

/// [MQTT-4.3.2-2]
#[test]
fn an_acknowledgement_waits_for_every_record() {
    let mut session = connected(ProtocolVersion::V311);
    let number = published(&mut session, Qos::AtLeastOnce, 7);
    // An outcome may be ahead of the routing's end.
    assert_eq!(written(&mut session, number, Ok(())), []);
    assert_eq!(routed(&mut session, number, 3), []);
    assert_eq!(written(&mut session, number, Ok(())), []);
    assert!(session.has_unacknowledged());
    assert_eq!(written(&mut session, number, Ok(())), [puback(7, ReasonCode::Success)]);
    assert!(!session.has_unacknowledged());
}

/// [MQTT-4.6.0-2] [MQTT-4.6.0-3] [MQTT5-4.6.0-2] [MQTT5-4.6.0-3]
#[test]
fn acknowledgements_leave_in_the_order_of_the_publishes_whatever_the_order_of_the_outcomes() {
    // All orders of four outcomes.
    let mut orders = vec![vec![]];
    for _ in 0..4 {
        orders = orders
            .into_iter()
            .flat_map(|order: Vec<usize>| {
                (0..4)
                    .filter(|next| !order.contains(next))
                    .map(|next| [&order[..], &[next]].concat())
                    .collect::<Vec<_>>()
            })
            .collect();
    }
    assert_eq!(orders.len(), 24);
    for order in orders {
        let mut session = connected(ProtocolVersion::V5);
        let qos = [Qos::AtLeastOnce, Qos::ExactlyOnce, Qos::ExactlyOnce, Qos::AtLeastOnce];
        let numbers: Vec<_> = (0..4).map(|i| published(&mut session, qos[i], i as u16 + 1)).collect();
        for number in &numbers {
            assert_eq!(routed(&mut session, *number, 1), []);
        }
        let mut left = Vec::new();
        for (done, index) in order.iter().enumerate() {
            left.extend(written(&mut session, numbers[*index], Ok(())));
            let head = (0..4).take_while(|i| order[..=done].contains(i)).count();
            assert_eq!(left.len(), head, "{order:?}");
        }
        let ok = ReasonCode::Success;
        assert_eq!(left, [puback(1, ok), pubrec(2, ok), pubrec(3, ok), puback(4, ok)], "{order:?}");
    }
}

/// [MQTT-4.8.0-2] [MQTT5-4.3.3-9]
#[test]
fn a_record_that_was_not_written_is_told_or_closes_the_connection() {
    let failed = Err(ReasonCode::UnspecifiedError);
    for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
        let mut session = connected(ProtocolVersion::V5);
        let number = published(&mut session, qos, 7);
        routed(&mut session, number, 2);
        assert_eq!(written(&mut session, number, failed), []);
        let reason = ReasonCode::UnspecifiedError;
        let expected = if qos == Qos::AtLeastOnce { puback(7, reason) } else { pubrec(7, reason) };
        assert_eq!(written(&mut session, number, Ok(())), [expected]);
        // The packet id is free again.
        published(&mut session, qos, 7);

        let mut old = connected(ProtocolVersion::V311);
        let number = published(&mut old, qos, 7);
        routed(&mut old, number, 1);
        assert_eq!(written(&mut old, number, failed), [Effect::Close(End::PublishRefused)]);
    }
}

#[test]
fn a_version_3_client_gets_what_was_acknowledged_before_the_refusal_that_closes() {
    let mut session = connected(ProtocolVersion::V311);
    let first = published(&mut session, Qos::AtLeastOnce, 1);
    let second = published(&mut session, Qos::AtLeastOnce, 2);
    routed(&mut session, first, 1);
    session.refuse(second, ReasonCode::QuotaExceeded);
    assert_eq!(routed(&mut session, second, 0), []);
    assert_eq!(
        written(&mut session, first, Ok(())),
        [puback(1, ReasonCode::Success), Effect::Close(End::PublishRefused)]
    );
}

#[test]
fn a_message_that_nobody_gets_is_acknowledged_as_such() {
    let mut session = connected(ProtocolVersion::V5);
    let number = published(&mut session, Qos::AtLeastOnce, 7);
    let mut out = Vec::new();
    session.routed(START, number, 0, false, &mut out);
    assert_eq!(out, [puback(7, ReasonCode::NoMatchingSubscribers)]);
}

/// [MQTT-4.3.3-2]
#[test]
fn a_repeated_qos_2_publish_is_taken_once() {
    let mut session = connected(ProtocolVersion::V311);
    let again = Packet::Publish(Publish { dup: true, ..publish(Qos::ExactlyOnce, 7) });
    let rel = Packet::PubRel(Ack::new(7, ReasonCode::Success));
    let number = published(&mut session, Qos::ExactlyOnce, 7);
    assert_eq!(give(&mut session, again.clone()), [], "PUBREC follows when it is written");
    routed(&mut session, number, 1);
    assert_eq!(written(&mut session, number, Ok(())), [pubrec(7, ReasonCode::Success)]);
    assert_eq!(give(&mut session, again), [pubrec(7, ReasonCode::Success)]);
    let comp = |reason| Effect::Send(Packet::PubComp(Ack::new(7, reason)));
    assert_eq!(give(&mut session, rel.clone()), [comp(ReasonCode::Success)]);
    assert_eq!(give(&mut session, rel), [comp(ReasonCode::PacketIdentifierNotFound)]);
    published(&mut session, Qos::ExactlyOnce, 7);
}

/// [MQTT5-3.3.4-7]
#[test]
fn more_publishes_than_announced_end_a_version_5_session_and_saturate_an_older_one() {
    let limits = Limits { receive_maximum: 2, ..Limits::default() };
    let (mut session, _) = opened(&connect_packet(ProtocolVersion::V5), limits.clone());
    let number = published(&mut session, Qos::ExactlyOnce, 1);
    // PUBREC frees nothing, PUBCOMP does.
    routed(&mut session, number, 0);
    published(&mut session, Qos::AtLeastOnce, 2);
    assert!(!session.is_saturated());
    let out = give(&mut session, Packet::Publish(publish(Qos::AtLeastOnce, 3)));
    assert_eq!(out, [goodbye(ReasonCode::ReceiveMaximumExceeded), Effect::Close(End::Protocol)]);

    let (mut old, _) = opened(&connect_packet(ProtocolVersion::V311), limits);
    let first = published(&mut old, Qos::AtLeastOnce, 1);
    assert!(!old.is_saturated());
    published(&mut old, Qos::AtLeastOnce, 2);
    assert!(old.is_saturated());
    routed(&mut old, first, 0);
    assert!(!old.is_saturated());
}

/// [MQTT-3.3.2-2] [MQTT-4.7.1-1] [MQTT5-3.3.2-2] [MQTT5-4.7.0-1]
#[test]
fn a_bad_topic_is_refused_in_order() {
    for topic in ["a/+", "$SYS/x", "$share/g/a"] {
        let mut session = connected(ProtocolVersion::V5);
        let first = published(&mut session, Qos::AtLeastOnce, 1);
        let bad = |qos, id| Packet::Publish(Publish { topic: topic.into(), ..publish(qos, id) });
        assert_eq!(give(&mut session, bad(Qos::ExactlyOnce, 2)), []);
        assert_eq!(give(&mut session, bad(Qos::AtMostOnce, 0)), [Effect::Dropped(Dropped::InvalidTopic)]);
        assert_eq!(
            routed(&mut session, first, 0),
            [puback(1, ReasonCode::Success), pubrec(2, ReasonCode::TopicNameInvalid)]
        );
        let mut old = connected(ProtocolVersion::V311);
        assert_eq!(give(&mut old, bad(Qos::AtMostOnce, 0)), [Effect::Close(End::Protocol)]);
    }
    let mut session = connected(ProtocolVersion::V5);
    let own = Packet::Publish(Publish { topic: "$aws/things".into(), ..publish(Qos::AtMostOnce, 0) });
    assert!(matches!(give(&mut session, own).as_slice(), [Effect::Publish { number: None, .. }]));
}

/// [MQTT5-3.3.2-17] [MQTT5-3.3.2-18]
#[test]
fn aliases_and_expiry_are_resolved_and_the_other_properties_are_forwarded_in_order() {
    let mut session = connected(ProtocolVersion::V5);
    let properties = PropertiesBuilder::new()
        .user("b", "1")
        .number(PropertyId::TopicAlias, 10)
        .user("a", "2")
        .number(PropertyId::MessageExpiryInterval, 5)
        .user("b", "3")
        .build();
    let forwarded = PropertiesBuilder::new().user("b", "1").user("a", "2").user("b", "3").build();
    for topic in ["long", ""] {
        let packet =
            Publish { topic: topic.into(), properties: properties.clone(), ..publish(Qos::AtMostOnce, 0) };
        match give(&mut session, Packet::Publish(packet)).as_slice() {
            [Effect::Publish { message, .. }] => {
                assert_eq!(&*message.topic, "long");
                assert_eq!(message.expires_at_ms, Some(START.epoch_ms + 5000));
                assert_eq!(message.properties, forwarded);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// [MQTT5-3.2.2-17] [MQTT5-3.3.2-9] [MQTT5-3.3.4-6]
#[test]
fn aliases_and_properties_that_a_client_must_not_send_end_the_session() {
    let number = |id, number| PropertiesBuilder::new().number(id, number).build();
    for (topic, properties, reason) in [
        ("t", number(PropertyId::TopicAlias, 11), ReasonCode::TopicAliasInvalid),
        ("", number(PropertyId::TopicAlias, 1), ReasonCode::ProtocolError),
        ("", Properties::NONE, ReasonCode::ProtocolError),
        ("t", number(PropertyId::SubscriptionIdentifier, 1), ReasonCode::ProtocolError),
    ] {
        let mut session = connected(ProtocolVersion::V5);
        let packet = Publish { topic: topic.into(), properties, ..publish(Qos::AtMostOnce, 0) };
        let out = give(&mut session, Packet::Publish(packet));
        assert_eq!(out, [goodbye(reason), Effect::Close(End::Protocol)]);
    }
}

/// [MQTT5-3.3.4-9] [MQTT5-4.9.0-1] [MQTT5-4.9.0-2]
#[test]
fn deliveries_stay_within_the_clients_window_and_each_acknowledgement_frees_a_place() {
    let properties = PropertiesBuilder::new().number(PropertyId::ReceiveMaximum, 2).build();
    let connect = Connect { properties, ..connect_packet(ProtocolVersion::V5) };
    let (mut session, _) = opened(&connect, Limits { delayed_max: 2, ..Limits::default() });
    let first = delivered(&mut session, START, delivery(Qos::AtLeastOnce));
    let second = delivered(&mut session, START, delivery(Qos::ExactlyOnce));
    assert_eq!((sent(&first[0]).packet_id, sent(&second[0]).packet_id), (Some(1), Some(2)));
    assert_eq!(delivered(&mut session, START, delivery(Qos::AtLeastOnce)), []);
    assert_eq!(session.delivery_room(), 1);
    // QoS 0 has no window.
    assert_eq!(delivered(&mut session, START, delivery(Qos::AtMostOnce)).len(), 1);
    let ok = ReasonCode::Success;
    assert_eq!(
        give(&mut session, Packet::PubRec(Ack::new(2, ok))),
        [Effect::Send(Packet::PubRel(Ack::new(2, ok)))]
    );
    // The second is done before the first: its place is free at once.
    let third = give(&mut session, Packet::PubComp(Ack::new(2, ok)));
    assert_eq!(sent(&third[0]).packet_id, Some(3));
    delivered(&mut session, START, delivery(Qos::AtLeastOnce));
    delivered(&mut session, START, delivery(Qos::AtLeastOnce));
    assert_eq!(session.delivery_room(), 0);
    assert_eq!(
        delivered(&mut session, START, delivery(Qos::AtLeastOnce)),
        [goodbye(ReasonCode::QuotaExceeded), Effect::Close(End::SlowConsumer)]
    );
}

/// [MQTT-2.3.1-4] [MQTT-4.3.2-1]
#[test]
fn packet_ids_in_use_are_not_given_again() {
    let mut session = connected(ProtocolVersion::V311);
    let ok = ReasonCode::Success;
    delivered(&mut session, START, delivery(Qos::AtLeastOnce));
    for _ in 0..65_534 {
        let out = delivered(&mut session, START, delivery(Qos::AtLeastOnce));
        let id = sent(&out[0]).packet_id.unwrap();
        assert_ne!(id, 1);
        give(&mut session, Packet::PubAck(Ack::new(id, ok)));
    }
    // Once around: 1 is still unacknowledged.
    let out = delivered(&mut session, START, delivery(Qos::AtLeastOnce));
    assert_eq!(sent(&out[0]).packet_id, Some(2));
}

/// [MQTT5-4.4.0-2]
#[test]
fn a_refused_qos_2_delivery_is_over_and_an_unknown_one_is_told() {
    let mut session = connected(ProtocolVersion::V5);
    delivered(&mut session, START, delivery(Qos::ExactlyOnce));
    assert_eq!(give(&mut session, Packet::PubRec(Ack::new(1, ReasonCode::QuotaExceeded))), []);
    let unknown = Ack::new(1, ReasonCode::PacketIdentifierNotFound);
    assert_eq!(
        give(&mut session, Packet::PubRec(Ack::new(1, ReasonCode::Success))),
        [Effect::Send(Packet::PubRel(unknown))]
    );
    assert_eq!(give(&mut session, Packet::PubAck(Ack::new(99, ReasonCode::Success))), []);
    delivered(&mut session, START, delivery(Qos::ExactlyOnce));
    let out = give(&mut session, Packet::PubAck(Ack::new(2, ReasonCode::Success)));
    assert_eq!(out, [goodbye(ReasonCode::ProtocolError), Effect::Close(End::Protocol)]);
}

/// [MQTT5-3.1.2-24] [MQTT5-3.1.2-25] [MQTT5-3.3.2-5] [MQTT5-3.3.2-6]
#[test]
fn what_is_too_large_expired_or_delayed_too_long_is_dropped_and_counted() {
    let properties = PropertiesBuilder::new()
        .number(PropertyId::MaximumPacketSize, 40)
        .number(PropertyId::ReceiveMaximum, 1)
        .build();
    let connect = Connect { properties, ..connect_packet(ProtocolVersion::V5) };
    let (mut session, _) = opened(&connect, Limits { delayed_ttl_ms: 100, ..Limits::default() });
    let large = Message { payload: vec![0; 40].into(), ..Message::clone(&message(Qos::AtLeastOnce)) };
    let large = Delivery { message: Arc::new(large), ..delivery(Qos::AtLeastOnce) };
    assert_eq!(delivered(&mut session, START, large), [Effect::Dropped(Dropped::TooLarge)]);
    let expiring =
        Message { expires_at_ms: Some(START.epoch_ms + 2500), ..Message::clone(&message(Qos::AtLeastOnce)) };
    let expiring = Delivery { message: Arc::new(expiring), ..delivery(Qos::AtLeastOnce) };
    assert_eq!(delivered(&mut session, after(2501), expiring.clone()), [Effect::Dropped(Dropped::Expired)]);
    // Neither has used the window or a packet id.
    let out = delivered(&mut session, after(501), expiring);
    assert_eq!(sent(&out[0]).packet_id, Some(1));
    assert_eq!(sent(&out[0]).properties.number(PropertyId::MessageExpiryInterval), Some(2));
    delivered(&mut session, after(501), delivery(Qos::AtLeastOnce));
    let ack = Packet::PubAck(Ack::new(1, ReasonCode::Success));
    assert_eq!(give_at(&mut session, after(601), ack), [Effect::Dropped(Dropped::Delayed)]);
}

/// [MQTT5-3.8.3-4] [MQTT5-3.9.3-1]
#[test]
fn filters_are_limited_and_checked() {
    let (mut session, _) =
        opened(&connect_packet(ProtocolVersion::V5), Limits { subscriptions_max: 1, ..Limits::default() });
    let wanted = ["a", "b", "a/#/b", "$share/g/a#", "$share/g", "$share/+/a", "a"].map(subscription);
    let out = subscribe(&mut session, wanted.to_vec());
    let taken: Vec<_> = out
        .iter()
        .filter_map(|effect| match effect {
            Effect::Subscribe { filter, is_new, .. } => Some((&**filter, *is_new)),
            _ => None,
        })
        .collect();
    assert_eq!(taken, [("a", true), ("a", false)]);
    match out.last() {
        Some(Effect::Send(Packet::SubAck(suback))) => assert_eq!(
            suback.reasons,
            [
                ReasonCode::GrantedQos1,
                ReasonCode::QuotaExceeded,
                ReasonCode::TopicFilterInvalid,
                ReasonCode::TopicFilterInvalid,
                ReasonCode::TopicFilterInvalid,
                ReasonCode::TopicFilterInvalid,
                ReasonCode::GrantedQos1
            ]
        ),
        other => panic!("{other:?}"),
    }
    assert_eq!(session.filters().map(|(filter, _)| &**filter).collect::<Vec<_>>(), ["a"]);
    let no_local = Subscription { no_local: true, ..subscription("$share/g/a") };
    let out = subscribe(&mut session, vec![no_local]);
    assert_eq!(out, [goodbye(ReasonCode::ProtocolError), Effect::Close(End::Protocol)]);
}

/// [MQTT5-4.8.2-1] [MQTT5-4.8.2-2]
#[test]
fn a_shared_filter_is_a_subscription_of_its_own_to_clients_of_all_versions() {
    let rules = topic::Rules { segments_max: 2, root_wildcard: false };
    for version in [ProtocolVersion::V31, ProtocolVersion::V311, ProtocolVersion::V5] {
        let (mut session, _) = opened(&connect_packet(version), Limits { rules, ..Limits::default() });
        // The levels of the plain filter count.
        let wanted = ["a", "$share/g/a/b", "$share/h/a/b", "$share/g/a/b/c", "$share/g/#"].map(subscription);
        let out = subscribe(&mut session, wanted.to_vec());
        let Some(Effect::Send(Packet::SubAck(suback))) = out.last() else { panic!("{out:?}") };
        let granted = ReasonCode::GrantedQos1;
        let invalid = ReasonCode::TopicFilterInvalid;
        assert_eq!(suback.reasons, [granted, granted, granted, invalid, invalid]);
        assert_eq!(session.filters().len(), 3);
    }
}

/// [MQTT5-4.8.2-5] [MQTT5-4.8.2-6]
#[test]
fn what_a_member_leaves_undone_is_handed_back_but_not_what_it_began_at_qos_2_or_refused() {
    let properties = PropertiesBuilder::new().number(PropertyId::ReceiveMaximum, 4).build();
    let connect = Connect { properties, ..connect_packet(ProtocolVersion::V5) };
    let (mut session, _) = opened(&connect, Limits::default());
    let shared = |name: &str, qos| {
        let message = Message { topic: name.into(), ..Message::clone(&message(qos)) };
        Delivery { message: Arc::new(message), group: Some("$share/g/#".into()), ..delivery(qos) }
    };
    for (name, qos) in [
        ("acknowledged", Qos::AtLeastOnce),
        ("refused", Qos::AtLeastOnce),
        ("begun at 2", Qos::ExactlyOnce),
        ("first", Qos::AtLeastOnce),
        ("second", Qos::AtLeastOnce),
        ("third", Qos::ExactlyOnce),
        ("fourth", Qos::AtLeastOnce),
        ("at 0", Qos::AtMostOnce),
    ] {
        delivered(&mut session, START, shared(name, qos));
    }
    delivered(&mut session, START, delivery(Qos::AtLeastOnce));
    give(&mut session, Packet::PubAck(Ack::new(1, ReasonCode::Success)));
    give(&mut session, Packet::PubAck(Ack::new(2, ReasonCode::UnspecifiedError)));
    let offered = |session: &mut Session, taken: &str| {
        let mut names = Vec::new();
        let mut out = Vec::new();
        let mut take = |delivery: &Delivery| {
            names.push(delivery.message.topic.to_string());
            *names.last().unwrap() == taken
        };
        session.hand_over_shared(&mut take, &mut out);
        assert_eq!(out, [], "they came from no queue");
        names
    };
    assert_eq!(
        offered(&mut session, "first"),
        ["first", "second", "fourth"],
        "the third was sent when two had left"
    );
    assert_eq!(offered(&mut session, "fourth"), ["second", "fourth"]);
    assert_eq!(offered(&mut session, ""), ["second"]);
}

/// [MQTT5-3.1.2-22]
#[test]
fn a_member_that_does_not_acknowledge_holds_no_more_bytes_than_it_may() {
    let limits = Limits { shared_bytes_max: 3000, delayed_max: 2, ..Limits::default() };
    let (mut session, _) = opened(&connect_packet(ProtocolVersion::V311), limits);
    let mut large = message(Qos::AtLeastOnce).as_ref().clone();
    large.payload = vec![0; 1000].into();
    let shared =
        Delivery { message: Arc::new(large), group: Some("$share/g/a".into()), ..delivery(Qos::AtLeastOnce) };
    let deliver = |session: &mut Session| {
        let mut out = Vec::new();
        session.deliver(START, shared.clone(), &mut out);
        out
    };
    for packet_id in 1..=3 {
        assert_eq!(sent(&deliver(&mut session)[0]).packet_id, Some(packet_id));
    }
    assert_eq!((session.window_room(), session.delivery_room()), (0, 2));
    assert_eq!(deliver(&mut session), []);
    assert_eq!(deliver(&mut session), []);
    assert_eq!(session.delivery_room(), 0);
    // Each acknowledgement makes room for one.
    for (packet_id, next) in [(1, 4), (2, 5)] {
        let out = give(&mut session, Packet::PubAck(Ack::new(packet_id, ReasonCode::Success)));
        assert_eq!(sent(&out[0]).packet_id, Some(next));
    }
    assert_eq!(session.window_room(), 0);
    for packet_id in 3..=5 {
        give(&mut session, Packet::PubAck(Ack::new(packet_id, ReasonCode::Success)));
    }
    assert_eq!(session.window_room(), 65_535);
}

#[test]
fn any_packet_keeps_a_client_alive_and_a_server_that_does_not_read_waits() {
    let connect = Connect { keep_alive: 10, ..connect_packet(ProtocolVersion::V5) };
    let (mut session, _) = opened(&connect, Limits::default());
    let mut out = Vec::new();
    assert_eq!(session.deadline_ms(), Some(START.monotonic_ms + 15_000));
    give_at(&mut session, after(14_000), Packet::PingReq);
    session.tick(after(15_000), &mut out);
    assert_eq!(out, []);
    session.pause_keep_alive();
    assert_eq!(session.deadline_ms(), None);
    session.tick(after(100_000), &mut out);
    assert_eq!(out, []);
    session.resume_keep_alive(after(100_000));
    session.tick(after(114_999), &mut out);
    assert_eq!(out, []);
    session.tick(after(115_000), &mut out);
    assert_eq!(out, [goodbye(ReasonCode::KeepAliveTimeout), Effect::Close(End::KeepAlive)]);
}

/// [MQTT5-3.1.2-7] [MQTT5-3.1.2-8] [MQTT5-3.14.4-3]
#[test]
fn a_will_is_published_at_every_end_but_a_normal_goodbye() {
    let properties = PropertiesBuilder::new()
        .number(PropertyId::WillDelayInterval, 60)
        .user("k", "v")
        .number(PropertyId::MessageExpiryInterval, 5)
        .build();
    let will = Will {
        qos: Qos::AtLeastOnce,
        retain: true,
        topic: "w".into(),
        payload: Bytes::from_static(b"gone"),
        properties,
    };
    let connect = Connect { will: Some(will), ..connect_packet(ProtocolVersion::V5) };
    let wills = |out: &[Effect]| {
        out.iter().filter(|effect| matches!(effect, Effect::Publish { number: None, .. })).count()
    };
    for end in [End::Network, End::TakenOver, End::KeepAlive, End::ShuttingDown, End::SlowConsumer] {
        let (mut session, _) = opened(&connect, Limits::default());
        let out = ended(&mut session, end);
        assert_eq!((wills(&out), out.last()), (1, Some(&Effect::Close(end))));
    }
    for (reason, expected) in [(ReasonCode::Success, 0), (ReasonCode::DisconnectWithWill, 1)] {
        let (mut session, _) = opened(&connect, Limits::default());
        let out = give(&mut session, Packet::Disconnect(Disconnect::new(reason)));
        assert_eq!(wills(&out), expected);
        if let Some(Effect::Publish { message, .. }) = out.first() {
            assert_eq!((&*message.topic, message.retain, message.packet_id), ("w", true, 0));
            assert_eq!(message.properties, PropertiesBuilder::new().user("k", "v").build());
            assert_eq!(message.expires_at_ms, Some(START.epoch_ms + 5000));
        }
    }
}

#[test]
fn a_session_expiry_that_appears_at_disconnect_is_a_protocol_error() {
    let mut session = connected(ProtocolVersion::V5);
    let properties = PropertiesBuilder::new().number(PropertyId::SessionExpiryInterval, 1).build();
    let disconnect = Disconnect { reason: ReasonCode::Success, properties };
    let out = give(&mut session, Packet::Disconnect(disconnect));
    assert_eq!(out, [goodbye(ReasonCode::ProtocolError), Effect::Close(End::Protocol)]);
}

/// [MQTT5-4.13.1-1]
#[test]
fn packets_of_servers_end_the_session() {
    let ack = SubAck { packet_id: 1, reasons: vec![], properties: Properties::NONE };
    for packet in [Packet::PingResp, Packet::SubAck(ack.clone()), Packet::UnsubAck(ack)] {
        let mut session = connected(ProtocolVersion::V5);
        let out = give(&mut session, packet);
        assert_eq!(out, [goodbye(ReasonCode::ProtocolError), Effect::Close(End::Protocol)]);
        assert!(session.is_closed());
    }
}
