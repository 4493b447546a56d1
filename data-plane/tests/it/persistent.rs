//! Sessions that outlive their connections.

use std::time::Duration;

use tbmq_mqtt::{
    codec::property::{PropertiesBuilder, PropertyId},
    packet::{Ack, Connect, Disconnect, Packet, ProtocolVersion, Publish, Qos, ReasonCode},
    session::NEVER_S,
};

use crate::{
    bus::{Mode, TestBus},
    client::{Client, VERSIONS, connect_packet, number, publish, subscription, text, will},
    plane::{Plane, config, until},
};

pub(crate) fn lasting(client_id: &str, expiry_s: u32) -> Connect {
    let properties = PropertiesBuilder::new().number(PropertyId::SessionExpiryInterval, expiry_s).build();
    Connect { clean_start: false, properties, ..connect_packet(ProtocolVersion::V5, client_id) }
}

/// A client whose session is there, or is not.
pub(crate) async fn connected(plane: &Plane, connect: Connect, is_present: bool) -> Client {
    let (client, connack) = Client::with(plane.address, connect).await;
    assert_eq!(connack.session_present, is_present);
    client
}

/// Breaks the connection and waits until the server has noticed.
pub(crate) async fn cut(plane: &Plane, client: Client) {
    let parked = plane.metric("tbmq_mqtt_sessions_parked");
    drop(client);
    until(|| plane.metric("tbmq_mqtt_sessions_parked") > parked).await;
}

pub(crate) async fn published(
    publisher: &mut Client,
    topic: &str,
    qos: Qos,
    packet_id: u16,
    payload: &'static str,
) {
    publisher.publish(topic, qos, packet_id, payload).await;
    match qos {
        Qos::AtMostOnce => {}
        Qos::AtLeastOnce => assert!(!publisher.puback().await.reason.is_error()),
        Qos::ExactlyOnce => {
            let ack = Ack::new(packet_id, ReasonCode::Success);
            assert!(matches!(publisher.next().await, Some(Packet::PubRec(rec)) if !rec.reason.is_error()));
            publisher.send(Packet::PubRel(ack.clone())).await;
            assert_eq!(publisher.next().await, Some(Packet::PubComp(ack)));
        }
    }
}

pub(crate) async fn acknowledge(client: &mut Client, message: &Publish) {
    acknowledge_all(client, std::slice::from_ref(message)).await;
}

pub(crate) async fn acknowledge_all(client: &mut Client, messages: &[Publish]) {
    for message in messages {
        let ack = Ack::new(message.packet_id.unwrap(), ReasonCode::Success);
        let is_once = message.qos == Qos::ExactlyOnce;
        client.send(if is_once { Packet::PubRec(ack) } else { Packet::PubAck(ack) }).await;
    }
    for message in messages.iter().filter(|message| message.qos == Qos::ExactlyOnce) {
        let ack = Ack::new(message.packet_id.unwrap(), ReasonCode::Success);
        assert_eq!(client.next().await, Some(Packet::PubRel(ack.clone())));
        client.send(Packet::PubComp(ack)).await;
    }
}

/// [MQTT-3.1.2-4] [MQTT-3.1.2-5] [MQTT-4.1.0-1] [MQTT5-3.1.2-5] [MQTT5-4.1.0-1]
#[tokio::test]
async fn what_is_published_while_a_client_is_away_comes_when_it_is_back_in_order() {
    let plane = Plane::start().await;
    let mut publisher = Client::v5(plane.address, "publisher").await;
    for (number, version) in VERSIONS.into_iter().enumerate() {
        let topic = format!("t/{number}");
        let connect = Connect { version, ..lasting(&topic, 100) };
        let connect = if version.is_v5() {
            connect
        } else {
            Connect { properties: tbmq_mqtt::codec::property::Properties::NONE, ..connect }
        };
        let mut client = connected(&plane, connect.clone(), false).await;
        client.subscribed(&topic, Qos::ExactlyOnce).await;
        cut(&plane, client).await;
        for (id, qos, payload) in [
            (1, Qos::AtLeastOnce, "1"),
            (0, Qos::AtMostOnce, "nothing of QoS 0 is kept"),
            (2, Qos::ExactlyOnce, "2"),
            (3, Qos::AtLeastOnce, "3"),
        ] {
            published(&mut publisher, &topic, qos, id, payload).await;
        }
        let mut client = connected(&plane, connect, version != ProtocolVersion::V31).await;
        let mut messages = Vec::new();
        for (qos, payload) in [(Qos::AtLeastOnce, "1"), (Qos::ExactlyOnce, "2"), (Qos::AtLeastOnce, "3")] {
            let message = client.message().await;
            assert_eq!((text(&message), message.qos, message.dup), (payload, qos, false));
            messages.push(message);
        }
        acknowledge_all(&mut client, &messages).await;
        // The subscription is still there.
        published(&mut publisher, &topic, Qos::AtMostOnce, 0, "live").await;
        assert_eq!(text(&client.message().await), "live");
        client.leave().await;
    }
}

/// [MQTT5-4.4.0-1] [MQTT5-3.3.1-1] [MQTT5-4.3.3-5]
#[tokio::test]
async fn what_was_not_acknowledged_comes_again_with_its_packet_id() {
    let plane = Plane::start().await;
    let mut publisher = Client::v5(plane.address, "publisher").await;
    let mut client = connected(&plane, lasting("c", 100), false).await;
    client.subscribed("t", Qos::ExactlyOnce).await;
    for (id, qos) in
        [(1, Qos::AtLeastOnce), (2, Qos::ExactlyOnce), (3, Qos::ExactlyOnce), (4, Qos::AtLeastOnce)]
    {
        published(&mut publisher, "t", qos, id, "x").await;
    }
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(client.message().await.packet_id.unwrap());
    }
    client.send(Packet::PubAck(Ack::new(ids[0], ReasonCode::Success))).await;
    client.send(Packet::PubRec(Ack::new(ids[1], ReasonCode::Success))).await;
    let rel = Packet::PubRel(Ack::new(ids[1], ReasonCode::Success));
    assert_eq!(client.next().await, Some(rel.clone()));
    cut(&plane, client).await;
    let mut client = connected(&plane, lasting("c", 100), true).await;
    assert_eq!(client.next().await, Some(rel));
    client.send(Packet::PubComp(Ack::new(ids[1], ReasonCode::Success))).await;
    let mut messages = Vec::new();
    for id in &ids[2..] {
        let message = client.message().await;
        assert_eq!((message.packet_id, message.dup), (Some(*id), true));
        messages.push(message);
    }
    acknowledge_all(&mut client, &messages).await;
    client.hears_nothing().await;
    cut(&plane, client).await;
    let mut client = connected(&plane, lasting("c", 100), true).await;
    client.hears_nothing().await;
}

/// [MQTT5-4.3.3-10]
#[tokio::test]
async fn a_qos_2_publish_that_is_repeated_on_another_connection_is_delivered_once() {
    let plane = Plane::start().await;
    plane.integration(1, &["t"]).await;
    plane.bus.control.set(Mode::Keep);
    let mut watcher = Client::v5(plane.address, "watcher").await;
    watcher.subscribed("t", Qos::AtLeastOnce).await;
    let mut client = connected(&plane, lasting("c", 100), false).await;
    client.publish("t", Qos::ExactlyOnce, 7, "x").await;
    let message = watcher.message().await;
    acknowledge(&mut watcher, &message).await;
    cut(&plane, client).await;
    // Its record is written while the client is away, and again its answer is lost.
    let mut client = connected(&plane, lasting("c", 100), true).await;
    let again = Publish { dup: true, ..publish("t", Qos::ExactlyOnce, 7, "x") };
    client.send(Packet::Publish(again.clone())).await;
    client.hears_nothing().await;
    plane.bus.control.give(0, Ok(()));
    assert_eq!(client.next().await, Some(Packet::PubRec(Ack::new(7, ReasonCode::Success))));
    cut(&plane, client).await;
    let mut client = connected(&plane, lasting("c", 100), true).await;
    client.send(Packet::Publish(again)).await;
    assert_eq!(client.next().await, Some(Packet::PubRec(Ack::new(7, ReasonCode::Success))));
    client.send(Packet::PubRel(Ack::new(7, ReasonCode::Success))).await;
    assert_eq!(client.next().await, Some(Packet::PubComp(Ack::new(7, ReasonCode::Success))));
    watcher.hears_nothing().await;
    assert_eq!(plane.bus.control.kept(), 0, "no second record");
}

/// [MQTT5-3.1.2-4] [MQTT5-3.1.2-6]
#[tokio::test]
async fn a_clean_start_takes_nothing_of_the_session_before() {
    let plane = Plane::start().await;
    let mut publisher = Client::v5(plane.address, "publisher").await;
    publisher.subscribed("wills", Qos::AtMostOnce).await;
    let mut delayed = will("wills", "gone");
    delayed.properties = PropertiesBuilder::new().number(PropertyId::WillDelayInterval, 1000).build();
    let connect = Connect { will: Some(delayed), ..lasting("c", 1000) };
    let mut client = connected(&plane, connect, false).await;
    client.subscribed("t", Qos::AtLeastOnce).await;
    cut(&plane, client).await;
    published(&mut publisher, "t", Qos::AtLeastOnce, 1, "kept").await;
    let clean = Connect { clean_start: true, ..lasting("c", 1000) };
    let mut client = connected(&plane, clean, false).await;
    // The session is over, and with it the will's delay (MQTT5-3.1.2-8).
    assert_eq!(text(&publisher.message().await), "gone");
    published(&mut publisher, "t", Qos::AtLeastOnce, 2, "new").await;
    client.hears_nothing().await;
    cut(&plane, client).await;
    let mut client = connected(&plane, lasting("c", 0), true).await;
    client.hears_nothing().await;
    client.leave().await;
    // Without an interval the session ends with the connection.
    connected(&plane, lasting("c", 0), false).await;
    until(|| plane.metric("tbmq_mqtt_sessions_parked") == 0).await;
}

/// [MQTT5-3.1.4-3] [MQTT5-3.1.3-9]
#[tokio::test]
async fn a_session_that_is_taken_over_goes_on_with_the_new_connection() {
    let plane = Plane::start().await;
    let mut publisher = Client::v5(plane.address, "publisher").await;
    publisher.subscribed("wills", Qos::AtMostOnce).await;
    let with_will = |delay_s| {
        let mut last = will("wills", "gone");
        last.properties = PropertiesBuilder::new().number(PropertyId::WillDelayInterval, delay_s).build();
        Connect { will: Some(last), ..lasting("c", 100) }
    };
    let mut first = connected(&plane, with_will(50), false).await;
    first.subscribed("t", Qos::AtLeastOnce).await;
    published(&mut publisher, "t", Qos::AtLeastOnce, 1, "x").await;
    let message = first.message().await;
    let mut second = connected(&plane, with_will(0), true).await;
    first.is_told(ReasonCode::SessionTakenOver).await;
    let again = second.message().await;
    assert_eq!((again.packet_id, again.dup), (message.packet_id, true));
    publisher.hears_nothing().await;
    // A will without a delay does not wait for anybody.
    let mut third = connected(&plane, lasting("c", 100), true).await;
    second.is_told(ReasonCode::SessionTakenOver).await;
    assert_eq!(text(&publisher.message().await), "gone");
    assert_eq!(third.message().await.packet_id, message.packet_id);
    // From a session that lasts to one that does not, and back.
    let mut clean = Client::v5(plane.address, "c").await;
    third.is_told(ReasonCode::SessionTakenOver).await;
    let mut lasting_again = connected(&plane, lasting("c", 100), false).await;
    clean.is_told(ReasonCode::SessionTakenOver).await;
    lasting_again.hears_nothing().await;
}

#[tokio::test]
async fn many_connections_with_one_client_id_at_once_end_with_one_that_has_the_session() {
    let plane = Plane::start().await;
    let mut first = connected(&plane, lasting("c", 100), false).await;
    first.subscribed("t", Qos::AtLeastOnce).await;
    let address = plane.address;
    for clean_starts in [false, true] {
        let rush: Vec<_> = (0..40)
            .map(|index| {
                tokio::spawn(async move {
                    let mut client = Client::open(address, ProtocolVersion::V5).await;
                    let clean_start = clean_starts && index % 3 == 0;
                    let connect = Connect { clean_start, ..lasting("c", 100) };
                    client.send(Packet::Connect(Box::new(connect))).await;
                    // Each is accepted or taken over before that.
                    while client.next().await.is_some() {}
                })
            })
            .collect();
        // All but the last of them are closed.
        until(|| rush.iter().filter(|one| one.is_finished()).count() == 39).await;
        let mut last = connected(&plane, lasting("c", 100), true).await;
        for one in rush {
            one.await.unwrap();
        }
        let expects = usize::from(!clean_starts);
        last.send(Packet::Publish(publish("t", Qos::AtLeastOnce, 1, "x"))).await;
        let mut got = 0;
        for _ in 0..=expects {
            match last.next().await {
                Some(Packet::Publish(message)) => {
                    got += 1;
                    acknowledge(&mut last, &message).await;
                }
                Some(Packet::PubAck(_)) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(got, expects);
        last.hears_nothing().await;
        cut(&plane, last).await;
    }
    until(|| plane.metric("tbmq_mqtt_connections") == 0).await;
    assert_eq!(plane.metric("tbmq_mqtt_sessions_parked"), 1);
}

/// [MQTT5-3.1.2-23] [MQTT5-3.1.2-8] [MQTT5-4.1.0-2]
#[tokio::test]
async fn a_session_expires_with_its_interval_and_its_will_is_published_then_at_the_latest() {
    let plane = Plane::start().await;
    let mut watcher = Client::v5(plane.address, "watcher").await;
    watcher.subscribed("wills", Qos::AtMostOnce).await;
    let mut last = will("wills", "gone");
    last.properties = PropertiesBuilder::new().number(PropertyId::WillDelayInterval, NEVER_S).build();
    let mut client = connected(&plane, Connect { will: Some(last), ..lasting("c", 1) }, false).await;
    client.subscribed("t", Qos::AtLeastOnce).await;
    cut(&plane, client).await;
    watcher.publish("t", Qos::AtLeastOnce, 1, "x").await;
    assert_eq!(watcher.puback().await.reason, ReasonCode::Success, "the session gets it");
    watcher.hears_nothing().await;
    assert_eq!(text(&watcher.message().await), "gone");
    until(|| plane.metric("tbmq_mqtt_sessions_parked") == 0).await;
    assert_eq!(plane.metric("tbmq_mqtt_sessions_expired_total"), 1);
    watcher.publish("t", Qos::AtLeastOnce, 2, "x").await;
    assert_eq!(watcher.puback().await.reason, ReasonCode::NoMatchingSubscribers);
    connected(&plane, lasting("c", 1), false).await;
}

/// [MQTT5-3.1.3-9]
#[tokio::test]
async fn a_will_is_published_after_its_delay_with_its_properties_unless_the_client_is_back() {
    let plane = Plane::start().await;
    let id = plane.integration(1, &["wills"]).await;
    let mut watcher = Client::v5(plane.address, "watcher").await;
    watcher.subscribed("wills", Qos::AtMostOnce).await;
    let mut last = will("wills", "gone");
    last.properties = PropertiesBuilder::new()
        .number(PropertyId::WillDelayInterval, 1)
        .user("b", "1")
        .number(PropertyId::MessageExpiryInterval, 60)
        .user("a", "2")
        .build();
    let connect = Connect { will: Some(last), ..lasting("c", 100) };
    let client = connected(&plane, connect.clone(), false).await;
    cut(&plane, client).await;
    let client = connected(&plane, connect, true).await;
    // Longer than the delay since the first cut.
    tokio::time::sleep(Duration::from_millis(1300)).await;
    watcher.hears_nothing().await;
    let begun = std::time::Instant::now();
    cut(&plane, client).await;
    let message = watcher.message().await;
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(text(&message), "gone");
    let pairs: Vec<_> =
        message.properties.user_properties().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(pairs, ["b=1", "a=2"]);
    assert_eq!(message.properties.number(PropertyId::MessageExpiryInterval), Some(60));
    assert_eq!(plane.records(id, 1).await[0].1.publish_msg_proto.as_ref().unwrap().client_id, "c");
    assert_eq!(plane.metric("tbmq_mqtt_sessions_parked"), 1);
}

#[tokio::test]
async fn disconnect_changes_how_long_the_session_lives() {
    let mut config = config();
    config.mqtt.client_session_expiry.max_expiry_interval = 500;
    let plane = Plane::with(TestBus::new(), config).await;
    let (mut client, connack) = Client::with(plane.address, lasting("c", NEVER_S)).await;
    assert_eq!(number(&connack, PropertyId::SessionExpiryInterval), Some(500));
    let properties = PropertiesBuilder::new().number(PropertyId::SessionExpiryInterval, 0).build();
    let goodbye = Disconnect { reason: ReasonCode::Success, properties };
    client.send(Packet::Disconnect(goodbye)).await;
    assert_eq!(client.next().await, None);
    connected(&plane, lasting("c", 100), false).await.leave().await;
    connected(&plane, lasting("c", 100), true).await;
}

#[tokio::test]
async fn a_queue_holds_its_limit_and_drops_the_oldest() {
    let mut config = config();
    config.mqtt.persistent_session.device.persisted_messages.limit = 3.try_into().unwrap();
    let plane = Plane::with(TestBus::new(), config).await;
    let mut publisher = Client::v5(plane.address, "publisher").await;
    let mut client = connected(&plane, lasting("c", 100), false).await;
    client.subscribed("t", Qos::AtLeastOnce).await;
    cut(&plane, client).await;
    for (id, payload) in [(1, "1"), (2, "2"), (3, "3"), (4, "4"), (5, "5")] {
        published(&mut publisher, "t", Qos::AtLeastOnce, id, payload).await;
    }
    assert_eq!(plane.metric("tbmq_mqtt_messages_dropped_total{reason=\"QueueFull\"}"), 2);
    let mut client = connected(&plane, lasting("c", 100), true).await;
    for payload in ["3", "4", "5"] {
        assert_eq!(text(&client.message().await), payload);
    }
    client.hears_nothing().await;
}

/// [MQTT5-3.3.2-5] [MQTT5-3.3.2-6]
#[tokio::test]
async fn a_queued_message_is_delivered_with_the_time_that_is_left_and_not_after_it() {
    let mut config = config();
    config.mqtt.persistent_session.device.persisted_messages.ttl = 2.try_into().unwrap();
    let plane = Plane::with(TestBus::new(), config).await;
    let mut publisher = Client::v5(plane.address, "publisher").await;
    let mut client = connected(&plane, lasting("c", 100), false).await;
    client.subscribed("t", Qos::AtLeastOnce).await;
    client.leave().await;
    let expiring = |packet_id, s: u32, payload| {
        let properties =
            PropertiesBuilder::new().number(PropertyId::MessageExpiryInterval, s).user("k", "v").build();
        Packet::Publish(Publish { properties, ..publish("t", Qos::AtLeastOnce, packet_id, payload) })
    };
    publisher.send(expiring(1, 1, "gone by then")).await;
    publisher.puback().await;
    publisher.send(expiring(2, 60, "in time")).await;
    publisher.puback().await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let mut client = connected(&plane, lasting("c", 100), true).await;
    let message = client.message().await;
    assert_eq!(text(&message), "in time");
    let left = message.properties.number(PropertyId::MessageExpiryInterval).unwrap();
    assert!((50..=59).contains(&left), "{left}");
    assert_eq!(message.properties.user_properties().count(), 1);
    acknowledge(&mut client, &message).await;
    client.hears_nothing().await;
    assert_eq!(plane.metric("tbmq_mqtt_messages_dropped_total{reason=\"Expired\"}"), 1);
    // What has no expiry of its own waits no longer than the queue's.
    client.leave().await;
    published(&mut publisher, "t", Qos::AtLeastOnce, 3, "too old").await;
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let mut client = connected(&plane, lasting("c", 100), true).await;
    client.hears_nothing().await;
}

#[tokio::test]
async fn a_client_with_a_lasting_session_that_does_not_read_is_not_cut_and_gets_all_in_order() {
    let mut config = config();
    config.mqtt.outbound_queue_messages_max = 4.try_into().unwrap();
    let plane = Plane::with(TestBus::new(), config).await;
    let mut connect = lasting("slow", 100);
    connect.properties = PropertiesBuilder::new()
        .number(PropertyId::SessionExpiryInterval, 100)
        .number(PropertyId::ReceiveMaximum, 5)
        .build();
    let mut slow = connected(&plane, connect.clone(), false).await;
    slow.subscribed("t", Qos::AtLeastOnce).await;
    let mut publisher = Client::v5(plane.address, "publisher").await;
    let number_of = |publish: &Publish| u16::from_be_bytes(publish.payload[..2].try_into().unwrap());
    // More than is kept at hand, in messages and bytes.
    const COUNT: u16 = 2000;
    for id in 1..=COUNT {
        let mut payload = id.to_be_bytes().to_vec();
        payload.resize(1500, 0);
        let packet = Publish { payload: payload.into(), ..publish("t", Qos::AtLeastOnce, id, "") };
        publisher.send(Packet::Publish(packet)).await;
        assert_eq!(publisher.puback().await.reason, ReasonCode::Success);
    }
    for expected in 1..=COUNT {
        let message = slow.message().await;
        assert_eq!(number_of(&message), expected);
        acknowledge(&mut slow, &message).await;
        if expected == COUNT / 2 {
            // What was sent and not read comes again.
            cut(&plane, slow).await;
            slow = connected(&plane, connect.clone(), true).await;
        }
    }
    slow.hears_nothing().await;
    assert_eq!(plane.metric("tbmq_mqtt_messages_dropped_total{reason=\"QueueFull\"}"), 0);
    assert_eq!(plane.metric("tbmq_mqtt_connections_ended_total{reason=\"SlowConsumer\"}"), 0);
}

/// [MQTT5-3.2.2-6] [MQTT-3.2.2-4]
#[tokio::test]
async fn more_sessions_than_allowed_are_refused_but_a_known_client_is_not() {
    let mut config = config();
    config.mqtt.sessions_limit = 1;
    let plane = Plane::with(TestBus::new(), config).await;
    let client = connected(&plane, lasting("known", 100), false).await;
    cut(&plane, client).await;
    for (version, reason) in [
        (ProtocolVersion::V5, ReasonCode::QuotaExceeded),
        (ProtocolVersion::V311, ReasonCode::ServerUnavailable),
    ] {
        let mut other = Client::open(plane.address, version).await;
        other.send(Packet::Connect(Box::new(connect_packet(version, "other")))).await;
        match other.next().await {
            Some(Packet::ConnAck(connack)) => {
                assert_eq!((connack.reason, connack.session_present), (reason, false));
            }
            refused => panic!("{refused:?}"),
        }
        assert_eq!(other.next().await, None);
    }
    assert_eq!(plane.metric("tbmq_mqtt_sessions_limit_reached_total"), 2);
    let known = connected(&plane, lasting("known", 0), true).await;
    known.leave().await;
    Client::v5(plane.address, "other").await;
}

#[tokio::test]
async fn what_comes_with_connect_is_handled_by_the_session_that_goes_on() {
    let plane = Plane::start().await;
    let mut client = connected(&plane, lasting("c", 100), false).await;
    client.subscribed("t", Qos::AtMostOnce).await;
    cut(&plane, client).await;
    let mut client = Client::open(plane.address, ProtocolVersion::V5).await;
    let mut bytes = bytes::BytesMut::new();
    for packet in [
        Packet::Connect(Box::new(lasting("c", 100))),
        Packet::Publish(publish("t", Qos::AtMostOnce, 0, "early")),
        Packet::PingReq,
    ] {
        tbmq_mqtt::codec::encode(&packet, ProtocolVersion::V5, &mut bytes);
    }
    tokio::io::AsyncWriteExt::write_all(&mut client.stream, &bytes).await.unwrap();
    assert!(matches!(client.next().await, Some(Packet::ConnAck(connack)) if connack.session_present));
    let mut rest = [client.next().await.unwrap(), client.next().await.unwrap()];
    rest.sort_by_key(|packet| matches!(packet, Packet::PingResp));
    assert!(matches!(&rest[0], Packet::Publish(publish) if text(publish) == "early"));
}

#[tokio::test]
async fn a_drain_sends_clients_elsewhere_and_publishes_delayed_wills() {
    let mut config = config();
    config.mqtt.server_reference = "other:1883".to_owned();
    let plane = Plane::with(TestBus::new(), config).await;
    let id = plane.integration(1, &["wills"]).await;
    let with_will = |client_id: &str| {
        let mut last = will("wills", "gone");
        last.properties = PropertiesBuilder::new().number(PropertyId::WillDelayInterval, 1000).build();
        Connect { will: Some(last), ..lasting(client_id, 1000) }
    };
    let away = connected(&plane, with_will("away"), false).await;
    cut(&plane, away).await;
    let mut here = connected(&plane, with_will("here"), false).await;
    let Plane { bus, running, metrics, health, address } = plane;
    running.drain().await;
    match here.next().await {
        Some(Packet::Disconnect(goodbye)) => {
            assert_eq!(goodbye.reason, ReasonCode::UseAnotherServer);
            assert_eq!(&*goodbye.properties.text(PropertyId::ServerReference).unwrap(), "other:1883");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(here.next().await, None);
    // Sessions in memory end with the process.
    let partition =
        tbmq_bus::TopicPartition::new(tbmq_proto::topic::Catalogue::default().messages(id, 1).name, 0);
    let bounds = tbmq_bus::Bus::admin(&*bus).bounds(&[partition]).await.unwrap();
    assert_eq!(bounds[0].end, 2);
    drop((metrics, health, address));
}

#[tokio::test]
async fn subscriptions_of_a_client_that_is_away_are_limited_and_listed_when_it_is_back() {
    let plane = Plane::start().await;
    let mut client = connected(&plane, lasting("c", 100), false).await;
    client
        .subscribe(
            vec![subscription("a", Qos::AtLeastOnce), subscription("b", Qos::AtLeastOnce)],
            tbmq_mqtt::codec::property::Properties::NONE,
        )
        .await;
    cut(&plane, client).await;
    let mut client = connected(&plane, lasting("c", 100), true).await;
    assert_eq!(
        client.unsubscribe(&["a", "x"]).await,
        [ReasonCode::Success, ReasonCode::NoSubscriptionExisted]
    );
    client.publish("a", Qos::AtMostOnce, 0, "x").await;
    client.hears_nothing().await;
}

/// [MQTT5-3.3.1-9]
#[tokio::test]
async fn a_retained_message_that_was_not_acknowledged_comes_again() {
    let plane = Plane::start().await;
    let mut publisher = Client::v5(plane.address, "publisher").await;
    let retained = Publish { retain: true, ..publish("t", Qos::AtLeastOnce, 1, "kept") };
    publisher.send(Packet::Publish(retained)).await;
    publisher.puback().await;
    let mut client = connected(&plane, lasting("c", 100), false).await;
    client.subscribed("t", Qos::AtLeastOnce).await;
    let message = client.message().await;
    assert_eq!((text(&message), message.retain), ("kept", true));
    cut(&plane, client).await;
    let mut client = connected(&plane, lasting("c", 100), true).await;
    let again = client.message().await;
    assert_eq!((again.packet_id, again.dup, again.retain), (message.packet_id, true, true));
    acknowledge(&mut client, &again).await;
    client.hears_nothing().await;
}
