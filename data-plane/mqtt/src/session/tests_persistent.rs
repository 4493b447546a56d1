//! Sessions that outlive their connections.

use super::{
    tests::{
        START, after, connack, connect_packet, delivered, delivery, ended, give, give_at, goodbye, message,
        opened, publish, published, pubrec, routed, sent, subscribe, subscription, written,
    },
    *,
};
use crate::packet::Disconnect;

fn persistent(version: ProtocolVersion, expiry_s: u32) -> Connect {
    let properties = if version.is_v5() {
        PropertiesBuilder::new().number(PropertyId::SessionExpiryInterval, expiry_s).build()
    } else {
        Properties::NONE
    };
    Connect { clean_start: false, properties, ..connect_packet(version) }
}

fn v5(expiry_s: u32) -> Session {
    of(ProtocolVersion::V5, expiry_s)
}

fn of(version: ProtocolVersion, expiry_s: u32) -> Session {
    opened(&persistent(version, expiry_s), Limits::default()).0
}

fn resumed(session: &mut Session, now: Now, connect: &Connect) -> Vec<Effect> {
    let mut out = Vec::new();
    session.resume(now, session.limits.clone(), connect, Proven::default(), &mut out);
    out
}

/// Breaks the connection and makes another.
fn reconnected(session: &mut Session) -> Vec<Effect> {
    assert_eq!(ended(session, End::Network), [Effect::Close(End::Network)]);
    assert!(session.is_parked());
    let version = session.version.unwrap();
    resumed(session, START, &persistent(version, 100))
}

fn ticked(session: &mut Session, now: Now) -> Vec<Effect> {
    let mut out = Vec::new();
    session.tick(now, &mut out);
    out
}

fn queued(session: &mut Session, seq: u64, qos: Qos) -> Vec<Effect> {
    let mut out = Vec::new();
    session.deliver_queued(START, seq, delivery(qos), &mut out);
    out
}

fn ack(packet_id: u16) -> Ack {
    Ack::new(packet_id, ReasonCode::Success)
}

fn is_present(effect: &Effect) -> bool {
    matches!(effect, Effect::Send(Packet::ConnAck(connack)) if connack.session_present)
}

fn will_after(delay_s: u32) -> Will {
    let properties = PropertiesBuilder::new()
        .number(PropertyId::WillDelayInterval, delay_s)
        .number(PropertyId::PayloadFormatIndicator, 1)
        .text(PropertyId::ContentType, "text/plain")
        .user("b", "1")
        .user("a", "2")
        .build();
    Will { qos: Qos::AtLeastOnce, retain: true, topic: "w".into(), payload: "gone".into(), properties }
}

fn with_will(delay_s: u32, expiry_s: u32) -> Session {
    let connect = Connect { will: Some(will_after(delay_s)), ..persistent(ProtocolVersion::V5, expiry_s) };
    opened(&connect, Limits::default()).0
}

fn is_will(effect: &Effect) -> bool {
    matches!(effect, Effect::Publish { number: None, message } if &*message.topic == "w")
}

/// [MQTT-3.1.2-4] [MQTT-3.1.2-5] [MQTT-3.1.2-6] [MQTT5-3.1.2-5] [MQTT5-3.1.2-23]
#[test]
fn a_session_outlives_its_connection_as_long_as_the_client_has_asked_for() {
    let limits = Limits { session_expiry_v3_s: 7, session_expiry_max_s: 1000, ..Limits::default() };
    for (connect, expiry_s) in [
        (connect_packet(ProtocolVersion::V311), 0),
        (persistent(ProtocolVersion::V31, 0), 7),
        (persistent(ProtocolVersion::V311, 0), 7),
        (connect_packet(ProtocolVersion::V5), 0),
        // Clean start says what becomes of the session of before, not of this one.
        (Connect { clean_start: true, ..persistent(ProtocolVersion::V5, 5) }, 5),
        (persistent(ProtocolVersion::V5, 0), 0),
        (persistent(ProtocolVersion::V5, 5), 5),
        (persistent(ProtocolVersion::V5, 1001), 1000),
        (persistent(ProtocolVersion::V5, 1 << 31), 1000),
        (persistent(ProtocolVersion::V5, NEVER_S), 1000),
    ] {
        let (mut session, out) = opened(&connect, limits.clone());
        assert_eq!(session.expiry_s(), expiry_s, "{connect:?}");
        if connect.version.is_v5() {
            let told = connack(&out).properties.number(PropertyId::SessionExpiryInterval);
            assert_eq!(told, Some(expiry_s));
        }
        assert_eq!(ended(&mut session, End::Network), [Effect::Close(End::Network)]);
        assert_eq!((session.is_parked(), session.is_closed()), (expiry_s > 0, true));
        if expiry_s > 0 {
            let over = u64::from(expiry_s) * 1000;
            assert_eq!(session.deadline_ms(), Some(after(over).monotonic_ms));
            assert_eq!(ticked(&mut session, after(over - 1)), []);
            assert_eq!(ticked(&mut session, after(over)), [Effect::Over]);
        }
        assert_eq!((session.is_parked(), session.deadline_ms()), (false, None));
    }
}

/// [MQTT5-3.1.2-23]
#[test]
fn the_greatest_expiry_interval_never_ends() {
    for connect in [persistent(ProtocolVersion::V5, NEVER_S), persistent(ProtocolVersion::V311, 0)] {
        let (mut session, _) = opened(&connect, Limits::default());
        ended(&mut session, End::Network);
        assert_eq!(session.deadline_ms(), None);
        assert_eq!(ticked(&mut session, after(u64::from(u32::MAX) * 1000)), []);
        assert!(session.is_parked());
    }
    let mut finite = v5(NEVER_S - 1);
    ended(&mut finite, End::Network);
    assert_eq!(finite.deadline_ms(), Some(START.monotonic_ms + u64::from(NEVER_S - 1) * 1000));
}

/// [MQTT-3.2.2-1] [MQTT-3.2.2-2] [MQTT-3.2.2-3] [MQTT5-3.2.2-2] [MQTT5-3.2.2-3]
#[test]
fn session_present_is_said_when_a_session_goes_on() {
    for version in [ProtocolVersion::V31, ProtocolVersion::V311, ProtocolVersion::V5] {
        let connect = persistent(version, 100);
        let (mut session, out) = opened(&connect, Limits::default());
        assert_eq!(out[0], Effect::Admit { resume: true });
        assert!(!is_present(&out[1]));
        subscribe(&mut session, vec![subscription("a"), subscription("b/#")]);
        ended(&mut session, End::Network);
        let out = resumed(&mut session, after(50_000), &connect);
        // The flag is reserved in 3.1.
        assert_eq!(is_present(&out[0]), version != ProtocolVersion::V31);
        assert_eq!(session.filters().len(), 2);
        assert!(session.is_connected());
        // The interval counts from the next end.
        ended(&mut session, End::Network);
        if version.is_v5() {
            assert_eq!(session.deadline_ms(), Some(START.monotonic_ms + 100_000));
        }
    }
}

/// [MQTT5-3.1.2-4] [MQTT-3.1.2-6]
#[test]
fn a_clean_start_asks_for_a_new_session() {
    let (_, out) = opened(&connect_packet(ProtocolVersion::V311), Limits::default());
    assert_eq!(out[0], Effect::Admit { resume: false });
    let mut old = with_will(60, 100);
    ended(&mut old, End::TakenOver);
    let mut out = Vec::new();
    old.discard(START, &mut out);
    // The session has ended, and with it the will's delay.
    assert!(is_will(&out[0]));
    assert_eq!(out[1..], [Effect::Over]);
    assert_eq!(resumed(&mut old, START, &persistent(ProtocolVersion::V5, 1)), []);
}

#[test]
fn disconnect_may_change_how_long_the_session_lives_but_not_from_nothing() {
    let disconnect = |expiry_s: Option<u32>| {
        let properties = expiry_s.map_or(Properties::NONE, |expiry_s| {
            PropertiesBuilder::new().number(PropertyId::SessionExpiryInterval, expiry_s).build()
        });
        Packet::Disconnect(Disconnect { reason: ReasonCode::Success, properties })
    };
    for (connected, said, left) in [
        (100, None, 100),
        (100, Some(0), 0),
        (100, Some(5), 5),
        (100, Some(NEVER_S), 1000),
        (0, Some(0), 0),
        (0, None, 0),
    ] {
        let limits = Limits { session_expiry_max_s: 1000, ..Limits::default() };
        let (mut session, _) = opened(&persistent(ProtocolVersion::V5, connected), limits);
        assert_eq!(give(&mut session, disconnect(said)), [Effect::Close(End::Client)]);
        assert_eq!((session.expiry_s(), session.is_parked()), (left, left > 0), "{connected} {said:?}");
    }
    let mut session = v5(0);
    assert_eq!(
        give(&mut session, disconnect(Some(1))),
        [goodbye(ReasonCode::ProtocolError), Effect::Close(End::Protocol)]
    );
}

/// [MQTT-4.4.0-1] [MQTT-3.3.1-1] [MQTT-4.6.0-1] [MQTT5-4.4.0-1] [MQTT5-3.3.1-1]
#[test]
fn what_was_in_flight_is_sent_again_with_its_packet_id_in_order_and_before_anything_new() {
    for version in [ProtocolVersion::V311, ProtocolVersion::V5] {
        let mut session = of(version, 100);
        for (seq, qos) in
            [(1, Qos::AtLeastOnce), (2, Qos::ExactlyOnce), (3, Qos::ExactlyOnce), (4, Qos::AtLeastOnce)]
        {
            let out = queued(&mut session, seq, qos);
            let packet_id = seq as u16;
            assert!(
                matches!(out[0], Effect::InFlight { seq: of, packet_id: id, .. } if of == seq && id == packet_id)
            );
            assert_eq!((sent(&out[1]).packet_id, sent(&out[1]).dup), (Some(packet_id), false));
        }
        give(&mut session, Packet::PubRec(ack(3)));
        assert_eq!(give(&mut session, Packet::PubAck(ack(1))), [Effect::Settled { seq: 1 }]);
        let out = reconnected(&mut session);
        assert_eq!(out[1], Effect::Send(Packet::PubRel(ack(3))));
        let again: Vec<_> =
            out[2..].iter().map(|effect| (sent(effect).packet_id, sent(effect).dup)).collect();
        assert_eq!(again, [(Some(2), true), (Some(4), true)]);
        let out = queued(&mut session, 5, Qos::AtLeastOnce);
        assert_eq!((sent(&out[1]).packet_id, sent(&out[1]).dup), (Some(5), false));
        // The exchanges go on where they were.
        assert_eq!(give(&mut session, Packet::PubComp(ack(3))), [Effect::Settled { seq: 3 }]);
        assert_eq!(
            give(&mut session, Packet::PubRec(ack(2))),
            [
                Effect::InFlight { seq: 2, packet_id: 2, stage: Stage::Pubcomp },
                Effect::Send(Packet::PubRel(ack(2)))
            ]
        );
        assert_eq!(give(&mut session, Packet::PubComp(ack(2))), [Effect::Settled { seq: 2 }]);
        assert_eq!(give(&mut session, Packet::PubAck(ack(4))), [Effect::Settled { seq: 4 }]);
    }
}

/// [MQTT-4.6.0-4]
#[test]
fn pubrel_is_sent_again_in_the_order_of_pubrec() {
    for version in [ProtocolVersion::V311, ProtocolVersion::V5] {
        let mut session = of(version, 100);
        for seq in 1..=3 {
            queued(&mut session, seq, Qos::ExactlyOnce);
        }
        for packet_id in [2, 1, 3] {
            give(&mut session, Packet::PubRec(ack(packet_id)));
        }
        let out = reconnected(&mut session);
        assert_eq!(out[1..], [2, 1, 3].map(|packet_id| Effect::Send(Packet::PubRel(ack(packet_id)))));
    }
}

/// [MQTT5-3.3.4-9]
#[test]
fn what_is_sent_again_stays_within_the_window_of_the_new_connection() {
    let mut session = v5(100);
    for seq in 1..=4 {
        queued(&mut session, seq, Qos::ExactlyOnce);
    }
    give(&mut session, Packet::PubRec(ack(1)));
    ended(&mut session, End::Network);
    let mut connect = persistent(ProtocolVersion::V5, 100);
    connect.properties = PropertiesBuilder::new()
        .number(PropertyId::SessionExpiryInterval, 100)
        .number(PropertyId::ReceiveMaximum, 1)
        .build();
    let out = resumed(&mut session, START, &connect);
    // A PUBREL takes no place in the window.
    assert_eq!(out[1], Effect::Send(Packet::PubRel(ack(1))));
    assert_eq!((sent(&out[2]).packet_id, out.len()), (Some(2), 3));
    assert_eq!(session.window_room(), 0);
    assert_eq!(give(&mut session, Packet::PubComp(ack(1))), [Effect::Settled { seq: 1 }]);
    // An answer from before that comes before the message is sent again.
    assert_eq!(
        give(&mut session, Packet::PubRec(ack(3))),
        [
            Effect::InFlight { seq: 3, packet_id: 3, stage: Stage::Pubcomp },
            Effect::Send(Packet::PubRel(ack(3)))
        ]
    );
    give(&mut session, Packet::PubRec(ack(2)));
    let out = give(&mut session, Packet::PubComp(ack(2)));
    assert_eq!((sent(&out[1]).packet_id, sent(&out[1]).dup), (Some(4), true));
    assert_eq!(session.window_room(), 0);
    give(&mut session, Packet::PubComp(ack(3)));
    assert_eq!(session.window_room(), 0, "it was not sent on this connection");
    give(&mut session, Packet::PubRec(ack(4)));
    give(&mut session, Packet::PubComp(ack(4)));
    assert_eq!(session.window_room(), 1);
}

/// [MQTT5-2.2.1-4] Issue 207 of TBMQ.
#[test]
fn a_packet_id_that_is_in_flight_since_an_earlier_connection_is_not_given_again() {
    let mut session = v5(100);
    queued(&mut session, 1, Qos::AtLeastOnce);
    reconnected(&mut session);
    for seq in 2..=65_536 {
        let out = queued(&mut session, seq, Qos::AtLeastOnce);
        let packet_id = sent(&out[1]).packet_id.unwrap();
        assert_ne!(packet_id, 1);
        give(&mut session, Packet::PubAck(ack(packet_id)));
    }
    assert_eq!(give(&mut session, Packet::PubAck(ack(1))), [Effect::Settled { seq: 1 }]);
}

/// [MQTT5-3.1.2-25]
#[test]
fn what_the_new_connection_does_not_take_is_done_with() {
    let mut session = v5(100);
    queued(&mut session, 1, Qos::AtLeastOnce);
    ended(&mut session, End::Network);
    let mut connect = persistent(ProtocolVersion::V5, 100);
    connect.properties = PropertiesBuilder::new()
        .number(PropertyId::SessionExpiryInterval, 100)
        .number(PropertyId::MaximumPacketSize, 19)
        .build();
    let mut long = message(Qos::AtLeastOnce).as_ref().clone();
    long.payload = vec![0; 20].into();
    let out = resumed(&mut session, START, &connect);
    assert_eq!(sent(&out[1]).packet_id, Some(1), "it is small enough");
    let mut out = Vec::new();
    let long = Delivery { message: Arc::new(long), ..delivery(Qos::AtLeastOnce) };
    session.deliver_queued(START, 2, long, &mut out);
    assert_eq!(out, [Effect::Dropped(Dropped::TooLarge), Effect::Settled { seq: 2 }]);
}

/// [MQTT5-4.3.3-10] [MQTT5-4.3.3-12]
#[test]
fn a_qos_2_publish_is_taken_once_across_connections() {
    let again = || Packet::Publish(Publish { dup: true, ..publish(Qos::ExactlyOnce, 7) });
    let mut session = v5(100);
    // PUBREC was sent and perhaps never arrived.
    let number = published(&mut session, Qos::ExactlyOnce, 7);
    routed(&mut session, number, 1);
    assert_eq!(written(&mut session, number, Ok(())), [pubrec(7, ReasonCode::Success)]);
    assert_eq!(reconnected(&mut session).len(), 1, "PUBREC is not sent again by itself");
    assert_eq!(give(&mut session, again()), [pubrec(7, ReasonCode::Success)]);
    // The connection breaks while its record is being written.
    let number = published(&mut session, Qos::ExactlyOnce, 8);
    routed(&mut session, number, 1);
    reconnected(&mut session);
    let again = Packet::Publish(Publish { dup: true, ..publish(Qos::ExactlyOnce, 8) });
    assert_eq!(give(&mut session, again.clone()), []);
    assert_eq!(written(&mut session, number, Ok(())), [pubrec(8, ReasonCode::Success)]);
    // It is written while there is no connection.
    let number = published(&mut session, Qos::ExactlyOnce, 9);
    routed(&mut session, number, 1);
    ended(&mut session, End::Network);
    assert_eq!(written(&mut session, number, Ok(())), []);
    resumed(&mut session, START, &persistent(ProtocolVersion::V5, 100));
    let rel = |packet_id| Packet::PubRel(ack(packet_id));
    for packet_id in [7, 8, 9] {
        assert_eq!(
            give(&mut session, rel(packet_id)),
            [Effect::Released { packet_id }, Effect::Send(Packet::PubComp(ack(packet_id)))]
        );
    }
}

#[test]
fn a_qos_2_publish_that_could_not_be_kept_while_the_client_was_away_may_come_again() {
    let mut session = v5(100);
    let number = published(&mut session, Qos::ExactlyOnce, 7);
    routed(&mut session, number, 1);
    ended(&mut session, End::Network);
    assert_eq!(
        written(&mut session, number, Err(ReasonCode::UnspecifiedError)),
        [Effect::Released { packet_id: 7 }]
    );
    resumed(&mut session, START, &persistent(ProtocolVersion::V5, 100));
    let again = Packet::Publish(Publish { dup: true, ..publish(Qos::ExactlyOnce, 7) });
    assert!(matches!(give(&mut session, again).as_slice(), [Effect::Publish { number: Some(_), .. }]));
}

/// [MQTT-3.3.1-1] [MQTT5-3.3.1-1]
#[test]
fn a_publish_without_dup_on_a_new_connection_is_another_message() {
    let mut session = v5(100);
    let number = published(&mut session, Qos::ExactlyOnce, 7);
    routed(&mut session, number, 0);
    reconnected(&mut session);
    published(&mut session, Qos::ExactlyOnce, 7);
}

#[test]
fn an_acknowledgement_of_an_earlier_connection_is_not_sent_on_the_next() {
    let mut session = v5(100);
    let number = published(&mut session, Qos::AtLeastOnce, 7);
    routed(&mut session, number, 1);
    reconnected(&mut session);
    let again = published(&mut session, Qos::AtLeastOnce, 7);
    routed(&mut session, again, 1);
    // A PUBACK for each would acknowledge what the client sends with this id next.
    assert_eq!(written(&mut session, number, Ok(())), []);
    assert_eq!(written(&mut session, again, Ok(())).len(), 1);
}

/// [MQTT5-4.9.0-1]
#[test]
fn the_clients_window_begins_anew_with_each_connection() {
    let limits = Limits { receive_maximum: 2, ..Limits::default() };
    let connect = persistent(ProtocolVersion::V5, 100);
    let (mut session, _) = opened(&connect, limits);
    for packet_id in [1, 2] {
        let number = published(&mut session, Qos::ExactlyOnce, packet_id);
        routed(&mut session, number, 0);
    }
    ended(&mut session, End::Network);
    resumed(&mut session, START, &connect);
    // It has seen PUBREC of both: they take no place.
    published(&mut session, Qos::AtLeastOnce, 3);
    let again = Packet::Publish(Publish { dup: true, ..publish(Qos::ExactlyOnce, 1) });
    assert_eq!(give(&mut session, again), [pubrec(1, ReasonCode::Success)]);
    let out = give(&mut session, Packet::Publish(publish(Qos::AtLeastOnce, 4)));
    assert_eq!(out, [goodbye(ReasonCode::ReceiveMaximumExceeded), Effect::Close(End::Protocol)]);
}

/// [MQTT5-3.1.2-10] [MQTT5-3.1.3-9] [MQTT5-3.1.2-8]
#[test]
fn a_will_waits_for_its_delay_or_the_end_of_the_session_whichever_comes_first() {
    for (delay_s, expiry_s, due_s) in [(60, 100, 60), (100, 60, 60), (60, NEVER_S, 60), (NEVER_S, 7, 7)] {
        let mut session = with_will(delay_s, expiry_s);
        assert_eq!(ended(&mut session, End::Network), [Effect::Close(End::Network)]);
        assert_eq!(session.deadline_ms(), Some(after(due_s * 1000).monotonic_ms));
        assert_eq!(ticked(&mut session, after(due_s * 1000 - 1)), []);
        let out = ticked(&mut session, after(due_s * 1000));
        assert!(is_will(&out[0]), "{delay_s} {expiry_s}");
        assert_eq!(out.get(1) == Some(&Effect::Over), due_s == u64::from(expiry_s));
        assert!(!ticked(&mut session, after(1_000_000)).iter().any(is_will), "only once");
    }
    for (delay_s, expiry_s) in [(0, 100), (60, 0)] {
        let out = ended(&mut with_will(delay_s, expiry_s), End::Network);
        assert!(is_will(&out[0]), "{delay_s} {expiry_s}");
    }
}

/// [MQTT5-3.1.3-9]
#[test]
fn a_will_is_cancelled_by_a_reconnect_before_it_is_due_and_by_nothing_else() {
    let mut session = with_will(60, 100);
    ended(&mut session, End::Network);
    resumed(&mut session, after(59_999), &persistent(ProtocolVersion::V5, 100));
    assert_eq!(ticked(&mut session, after(200_000)), []);
    // The new connection has none.
    assert_eq!(ended(&mut session, End::Network), [Effect::Close(End::Network)]);
    let mut late = with_will(60, 100);
    ended(&mut late, End::Network);
    assert!(is_will(&ticked(&mut late, after(60_000))[0]));
    assert!(is_present(&resumed(&mut late, after(60_000), &persistent(ProtocolVersion::V5, 100))[0]));
}

/// [MQTT-3.1.2-10] [MQTT-3.14.4-3] [MQTT5-3.14.4-3]
#[test]
fn a_normal_goodbye_leaves_no_will_and_one_with_the_will_leaves_it_with_its_delay() {
    let goodbye = |reason| Packet::Disconnect(Disconnect::new(reason));
    let mut session = with_will(60, 100);
    assert_eq!(give(&mut session, goodbye(ReasonCode::Success)), [Effect::Close(End::Client)]);
    assert_eq!(ticked(&mut session, after(60_000)), []);
    let mut session = with_will(60, 100);
    assert_eq!(give(&mut session, goodbye(ReasonCode::DisconnectWithWill)), [Effect::Close(End::Client)]);
    match ticked(&mut session, after(60_000)).as_slice() {
        [Effect::Publish { number: None, message }] => {
            assert_eq!(
                (message.qos, message.retain, &*message.payload),
                (Qos::AtLeastOnce, true, &b"gone"[..])
            );
            // [MQTT5-3.1.3-10]: in order, and the delay is the server's.
            let properties = PropertiesBuilder::new()
                .number(PropertyId::PayloadFormatIndicator, 1)
                .text(PropertyId::ContentType, "text/plain")
                .user("b", "1")
                .user("a", "2")
                .build();
            assert_eq!(message.properties, properties);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_parked_session_is_the_same_after_it_was_stored() {
    let mut session = with_will(60, 100);
    subscribe(&mut session, vec![subscription("a")]);
    for (seq, qos) in [(1, Qos::ExactlyOnce), (2, Qos::ExactlyOnce), (3, Qos::AtLeastOnce)] {
        queued(&mut session, seq, qos);
    }
    give(&mut session, Packet::PubRec(ack(1)));
    let number = published(&mut session, Qos::ExactlyOnce, 9);
    routed(&mut session, number, 0);
    assert_eq!(session.state(START), None, "it is connected");
    ended(&mut session, End::Network);
    let state = session.state(START).unwrap();
    assert_eq!(state.expires_at_ms, Some(START.epoch_ms + 100_000));
    assert_eq!(state.will, Some((will_after(60), START.epoch_ms + 60_000)));
    assert_eq!(state.received, [9]);
    // A process with another clock, ten seconds later.
    let now = Now { monotonic_ms: 5, epoch_ms: START.epoch_ms + 10_000 };
    let mut restored = Session::restored(Arc::default(), now, state.clone());
    assert_eq!(restored.state(now), Some(state));
    assert_eq!(restored.deadline_ms(), Some(50_005));
    let connect = persistent(ProtocolVersion::V5, 100);
    assert_eq!(resumed(&mut restored, now, &connect), resumed(&mut session, START, &connect));
    let again = Packet::Publish(Publish { dup: true, ..publish(Qos::ExactlyOnce, 9) });
    assert_eq!(give(&mut restored, again), [pubrec(9, ReasonCode::Success)]);
    assert_eq!(sent(&queued(&mut restored, 4, Qos::AtLeastOnce)[1]).packet_id, Some(4));
}

#[test]
fn nothing_of_qos_0_is_kept() {
    let mut session = v5(100);
    assert_eq!(delivered(&mut session, START, delivery(Qos::AtMostOnce)).len(), 1);
    assert_eq!(reconnected(&mut session).len(), 1);
    ended(&mut session, End::Network);
    assert_eq!(delivered(&mut session, START, delivery(Qos::AtMostOnce)), []);
}

/// [MQTT5-3.3.2-5] [MQTT5-3.3.2-6]
#[test]
fn a_queued_message_that_has_expired_is_done_with_and_one_in_flight_is_sent_again() {
    let mut expiring = message(Qos::AtLeastOnce).as_ref().clone();
    expiring.expires_at_ms = Some(START.epoch_ms + 2500);
    let expiring = Delivery { message: Arc::new(expiring), ..delivery(Qos::AtLeastOnce) };
    let mut session = v5(100);
    let mut out = Vec::new();
    session.deliver_queued(after(501), 1, expiring.clone(), &mut out);
    assert_eq!(sent(&out[1]).properties.number(PropertyId::MessageExpiryInterval), Some(2));
    out.clear();
    session.deliver_queued(after(2501), 2, expiring, &mut out);
    assert_eq!(out, [Effect::Dropped(Dropped::Expired), Effect::Settled { seq: 2 }]);
    ended(&mut session, End::Network);
    let out = resumed(&mut session, after(3000), &persistent(ProtocolVersion::V5, 100));
    // Its delivery has begun.
    assert_eq!((sent(&out[1]).packet_id, sent(&out[1]).dup), (Some(1), true));
}

fn taking_aliases(max: u32, alias_topic_bytes_min: usize) -> Session {
    let properties = PropertiesBuilder::new().number(PropertyId::TopicAliasMaximum, max).build();
    let connect = Connect { properties, ..connect_packet(ProtocolVersion::V5) };
    opened(&connect, Limits { alias_topic_bytes_min, topic_alias_max: 3, ..Limits::default() }).0
}

fn on(session: &mut Session, topic: &str) -> (String, Option<u32>) {
    let mut message = message(Qos::AtMostOnce).as_ref().clone();
    message.topic = topic.into();
    let delivery = Delivery { message: Arc::new(message), ..delivery(Qos::AtMostOnce) };
    let out = delivered(session, START, delivery);
    let publish = sent(&out[0]);
    (publish.topic.to_string(), publish.properties.number(PropertyId::TopicAlias))
}

/// [MQTT5-3.1.2-26] [MQTT5-3.1.2-27] [MQTT5-3.3.2-8]
#[test]
fn topics_get_aliases_as_far_as_both_sides_allow() {
    let mut session = taking_aliases(2, 3);
    let named = |topic: &str, alias| (topic.to_owned(), alias);
    assert_eq!(on(&mut session, "first"), named("first", Some(1)));
    assert_eq!(on(&mut session, "first"), named("", Some(1)));
    assert_eq!(on(&mut session, "ab"), named("ab", None), "it is too short");
    assert_eq!(on(&mut session, "second"), named("second", Some(2)));
    assert_eq!(on(&mut session, "third"), named("third", None));
    assert_eq!(on(&mut session, "second"), named("", Some(2)));
    let mut server = taking_aliases(100, 1);
    let given: Vec<_> = ["a", "b", "c", "d"].iter().map(|topic| on(&mut server, topic).1).collect();
    assert_eq!(given, [Some(1), Some(2), Some(3), None]);
    assert_eq!(on(&mut taking_aliases(0, 1), "a"), named("a", None));
}

/// [MQTT5-3.3.2-7]
#[test]
fn aliases_end_with_the_connection() {
    let mut connect = persistent(ProtocolVersion::V5, 100);
    connect.properties = PropertiesBuilder::new()
        .number(PropertyId::SessionExpiryInterval, 100)
        .number(PropertyId::TopicAliasMaximum, 5)
        .build();
    let (mut session, _) = opened(&connect, Limits { alias_topic_bytes_min: 1, ..Limits::default() });
    on(&mut session, "a");
    let mut packet = publish(Qos::AtMostOnce, 0);
    packet.properties = PropertiesBuilder::new().number(PropertyId::TopicAlias, 1).build();
    give(&mut session, Packet::Publish(packet.clone()));
    ended(&mut session, End::Network);
    resumed(&mut session, START, &connect);
    assert_eq!(on(&mut session, "a"), ("a".to_owned(), Some(1)));
    packet.topic = "".into();
    let out = give(&mut session, Packet::Publish(packet));
    assert_eq!(out, [goodbye(ReasonCode::ProtocolError), Effect::Close(End::Protocol)]);
}

#[test]
fn an_alias_that_would_make_a_message_too_large_is_not_given() {
    let properties = PropertiesBuilder::new()
        .number(PropertyId::TopicAliasMaximum, 5)
        .number(PropertyId::MaximumPacketSize, 21)
        .build();
    let connect = Connect { properties, ..connect_packet(ProtocolVersion::V5) };
    let (mut session, _) = opened(&connect, Limits { alias_topic_bytes_min: 1, ..Limits::default() });
    // 2 + 2 + 15 + 1 + 1 = 21
    assert_eq!(on(&mut session, "fifteen/letters"), ("fifteen/letters".to_owned(), None));
    assert_eq!(on(&mut session, "shorter"), ("shorter".to_owned(), Some(1)));
}

/// [MQTT5-3.1.2-29] [MQTT5-3.4.2-2] [MQTT5-3.2.2-19] [MQTT5-3.14.2-3]
#[test]
fn reason_strings_go_to_those_who_want_and_take_them() {
    let told = |properties: PropertiesBuilder| {
        let connect = Connect { properties: properties.build(), ..connect_packet(ProtocolVersion::V5) };
        let (mut session, _) = opened(&connect, Limits::default());
        let bad = Publish { topic: "$SYS/x".into(), ..publish(Qos::AtLeastOnce, 1) };
        let puback = match give(&mut session, Packet::Publish(bad)).remove(0) {
            Effect::Send(Packet::PubAck(ack)) => ack.properties.text(PropertyId::ReasonString).is_some(),
            other => panic!("{other:?}"),
        };
        let mut out = Vec::new();
        session.malformed(START, DecodeError::protocol("a property stands twice"), &mut out);
        let disconnect = match &out[0] {
            Effect::Send(Packet::Disconnect(bye)) => bye.properties.text(PropertyId::ReasonString),
            other => panic!("{other:?}"),
        };
        (puback, disconnect.is_some())
    };
    let number = |id, number| PropertiesBuilder::new().number(id, number);
    assert_eq!(told(PropertiesBuilder::new()), (true, true));
    assert_eq!(told(number(PropertyId::RequestProblemInformation, 1)), (true, true));
    // DISCONNECT may have one all the same.
    assert_eq!(told(number(PropertyId::RequestProblemInformation, 0)), (false, true));
    assert_eq!(told(number(PropertyId::MaximumPacketSize, 25)), (false, false));
}

/// [MQTT5-3.1.2-24]
#[test]
fn no_packet_is_larger_than_the_client_takes() {
    let limited = |max| {
        let properties = PropertiesBuilder::new().number(PropertyId::MaximumPacketSize, max).build();
        opened(&Connect { properties, ..connect_packet(ProtocolVersion::V5) }, Limits::default())
    };
    // It is told less, and not at all.
    let (mut session, out) = limited(20);
    assert!(encoded_length(&Packet::ConnAck(connack(&out).clone()), ProtocolVersion::V5) <= 20);
    assert_eq!(connack(&out).properties.number(PropertyId::MaximumPacketSize), Some(65_536));
    let too_large = Effect::Send(Packet::ConnAck(connect::refusal(ReasonCode::PacketTooLarge)));
    assert_eq!(limited(10).1, [too_large, Effect::Close(End::Refused)]);
    assert_eq!(limited(4).1, [Effect::Close(End::Refused)]);
    let wanted: Vec<_> = (0..20).map(|number| subscription(&format!("a/{number}"))).collect();
    let out = subscribe(&mut session, wanted);
    assert_eq!(out[out.len() - 2..], [goodbye(ReasonCode::PacketTooLarge), Effect::Close(End::Protocol)]);
}

/// MQTT 5.0 §3.2.2.3.2, §3.2.2.3.14
#[test]
fn what_differs_from_what_the_client_wants_is_told_however_little_it_takes() {
    let properties = PropertiesBuilder::new()
        .number(PropertyId::MaximumPacketSize, 30)
        .number(PropertyId::SessionExpiryInterval, 100)
        .build();
    let connect = Connect { properties, keep_alive: 601, ..connect_packet(ProtocolVersion::V5) };
    let (_, out) = opened(&connect, Limits { session_expiry_max_s: 5, ..Limits::default() });
    let told = &connack(&out).properties;
    assert_eq!(told.number(PropertyId::SessionExpiryInterval), Some(5));
    assert_eq!(told.number(PropertyId::ServerKeepAlive), Some(600));
}

/// MQTT 5.0 §4.11
#[test]
fn clients_are_sent_elsewhere_when_there_is_an_elsewhere() {
    let end_with = |server_reference: &str, end| {
        let limits = Limits { server_reference: server_reference.to_owned(), ..Limits::default() };
        let (mut session, _) = opened(&connect_packet(ProtocolVersion::V5), limits);
        match ended(&mut session, end).remove(0) {
            Effect::Send(Packet::Disconnect(bye)) => {
                (bye.reason, bye.properties.text(PropertyId::ServerReference).map(|text| text.to_string()))
            }
            other => panic!("{other:?}"),
        }
    };
    let other = Some("other:1883".to_owned());
    assert_eq!(end_with("", End::ShuttingDown), (ReasonCode::ServerShuttingDown, None));
    assert_eq!(end_with("", End::Moved), (ReasonCode::UseAnotherServer, None));
    assert_eq!(end_with("other:1883", End::ShuttingDown), (ReasonCode::UseAnotherServer, other.clone()));
    assert_eq!(end_with("other:1883", End::Moved), (ReasonCode::UseAnotherServer, other));
    assert_eq!(end_with("other:1883", End::TakenOver), (ReasonCode::SessionTakenOver, None));
}

/// [MQTT5-4.12.0-6] [MQTT5-4.12.0-7]
#[test]
fn auth_without_a_method_is_a_protocol_error() {
    let mut session = v5(0);
    let auth = Packet::Auth(Disconnect::new(ReasonCode::ReAuthenticate));
    assert_eq!(give(&mut session, auth), [goodbye(ReasonCode::ProtocolError), Effect::Close(End::Protocol)]);
}

#[test]
fn a_connection_that_is_not_admitted_in_time_is_closed() {
    let mut session = Session::new(Arc::default(), START);
    let mut out = Vec::new();
    session.connect(START, &persistent(ProtocolVersion::V5, 100), String::new, &mut out);
    session.authenticated(START, Proven::default(), &mut out);
    assert_eq!(out, [Effect::Authenticate, Effect::Admit { resume: true }]);
    assert_eq!(give_at(&mut session, START, Packet::PingReq), []);
    assert_eq!(ticked(&mut session, after(10_000)), [Effect::Close(End::ConnectTimeout)]);
    out.clear();
    session.open(after(10_000), &mut out);
    assert_eq!(out, []);
}

/// [MQTT5-3.2.2-6]
#[test]
fn a_connect_that_can_not_be_admitted_is_refused_with_its_reason() {
    let mut session = Session::new(Arc::default(), START);
    let mut out = Vec::new();
    session.connect(START, &persistent(ProtocolVersion::V5, 100), String::new, &mut out);
    session.authenticated(START, Proven::default(), &mut out);
    session.refuse_connect(START, ReasonCode::QuotaExceeded, &mut out);
    match &out[2..] {
        [Effect::Send(Packet::ConnAck(connack)), Effect::Close(End::Refused)] => {
            assert_eq!((connack.reason, connack.session_present), (ReasonCode::QuotaExceeded, false));
        }
        other => panic!("{other:?}"),
    }
    assert!(!session.is_parked());
}
