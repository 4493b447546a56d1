use std::time::Duration;

use tbmq_mqtt::{
    codec::property::{PropertiesBuilder, PropertyId},
    packet::{Disconnect, Packet, ProtocolVersion, Qos, ReasonCode},
};
use tokio::io::AsyncWriteExt as _;

use crate::{
    client::{Client, connect_packet, number, publish, text, will},
    plane::{Plane, config, until},
};

/// [MQTT-3.1.4-4] [MQTT5-3.1.4-5]
#[tokio::test]
async fn every_version_is_accepted_and_five_is_told_what_there_is() {
    let plane = Plane::start().await;
    for version in [ProtocolVersion::V31, ProtocolVersion::V311] {
        let (_client, connack) = Client::with(plane.address, connect_packet(version, "old")).await;
        assert!(!connack.session_present);
    }
    let mut connect = connect_packet(ProtocolVersion::V5, "");
    connect.clean_start = false;
    connect.keep_alive = 601;
    connect.properties = PropertiesBuilder::new().number(PropertyId::SessionExpiryInterval, 100).build();
    let (_client, connack) = Client::with(plane.address, connect).await;
    assert!(!connack.session_present);
    assert_eq!(connack.properties.text(PropertyId::AssignedClientIdentifier).unwrap().len(), 32);
    assert_eq!(number(&connack, PropertyId::ServerKeepAlive), Some(600));
    assert_eq!(number(&connack, PropertyId::SessionExpiryInterval), Some(100));
    assert_eq!(number(&connack, PropertyId::ReceiveMaximum), Some(1000));
    assert_eq!(number(&connack, PropertyId::SharedSubscriptionAvailable), Some(1));
    assert_eq!(number(&connack, PropertyId::RetainAvailable), Some(1));
}

/// [MQTT-3.1.3-2] [MQTT-3.1.4-2] [MQTT5-3.1.3-2] [MQTT5-3.1.4-3]
#[tokio::test]
async fn a_second_connection_takes_the_client_id_over() {
    let plane = Plane::start().await;
    let mut watcher = Client::v5(plane.address, "watcher").await;
    watcher.subscribed("wills", Qos::AtLeastOnce).await;
    let mut connect = connect_packet(ProtocolVersion::V5, "same");
    connect.will = Some(will("wills", "taken over"));
    let (mut first, _) = Client::with(plane.address, connect).await;
    first.subscribed("a", Qos::AtMostOnce).await;
    let mut second = Client::v5(plane.address, "same").await;
    first.is_told(ReasonCode::SessionTakenOver).await;
    assert_eq!(text(&watcher.message().await), "taken over");
    // A clean session: the subscription went with the first connection.
    watcher.publish("a", Qos::AtMostOnce, 0, "x").await;
    second.hears_nothing().await;
}

/// [MQTT5-3.1.2-8] [MQTT5-3.14.4-3]
#[tokio::test]
async fn a_will_is_published_unless_the_client_says_goodbye() {
    let plane = Plane::start().await;
    let id = plane.integration(1, &["wills"]).await;
    let mut watcher = Client::v5(plane.address, "watcher").await;
    watcher.subscribed("wills", Qos::AtMostOnce).await;
    for (goodbye, payload, is_published) in [
        (None, "broken", true),
        (Some(ReasonCode::Success), "normal", false),
        (Some(ReasonCode::DisconnectWithWill), "asked for", true),
    ] {
        let mut connect = connect_packet(ProtocolVersion::V5, "c");
        connect.will = Some(will("wills", payload));
        let (mut client, _) = Client::with(plane.address, connect).await;
        if let Some(reason) = goodbye {
            client.send(Packet::Disconnect(Disconnect::new(reason))).await;
            assert_eq!(client.next().await, None);
        }
        drop(client);
        if is_published {
            assert_eq!(text(&watcher.message().await), payload);
        } else {
            watcher.hears_nothing().await;
        }
    }
    let records = plane.records(id, 2).await;
    let payloads: Vec<_> =
        records.iter().map(|(_, record)| record.publish_msg_proto.clone().unwrap().payload).collect();
    assert_eq!(payloads, ["broken", "asked for"]);
}

/// [MQTT5-3.1.2-22]
#[tokio::test]
async fn a_silent_client_is_disconnected_after_one_and_a_half_keep_alives() {
    let plane = Plane::start().await;
    let mut connect = connect_packet(ProtocolVersion::V5, "silent");
    connect.keep_alive = 1;
    let (mut client, _) = Client::with(plane.address, connect).await;
    let begun = std::time::Instant::now();
    client.is_told(ReasonCode::KeepAliveTimeout).await;
    assert!(begun.elapsed() >= Duration::from_millis(1400), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_client_that_pings_stays() {
    let plane = Plane::start().await;
    let mut connect = connect_packet(ProtocolVersion::V311, "pinging");
    connect.keep_alive = 1;
    let (mut client, _) = Client::with(plane.address, connect).await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(600)).await;
        client.hears_nothing().await;
    }
}

#[tokio::test]
async fn a_connection_without_connect_is_closed() {
    let mut config = config();
    config.mqtt.connect_timeout = Duration::from_millis(200);
    let plane = Plane::with(crate::bus::TestBus::new(), config).await;
    let mut client = Client::open(plane.address, ProtocolVersion::V311).await;
    assert_eq!(client.next().await, None);
    assert_eq!(plane.metric("tbmq_mqtt_connections_ended_total{reason=\"ConnectTimeout\"}"), 1);
}

/// [MQTT-4.8.0-1] [MQTT5-3.1.0-2] [MQTT5-3.14.4-2] [MQTT5-4.13.1-1] [MQTT5-4.13.2-1]
#[tokio::test]
async fn malformed_input_closes_that_connection_only_with_its_reason() {
    let plane = Plane::start().await;
    let mut bystander = Client::v5(plane.address, "bystander").await;
    let cases: [(&[u8], ReasonCode); 5] = [
        (&[0x36, 0x02, 0x00, 0x00], ReasonCode::MalformedPacket), // QoS 3
        (&[0x30, 0xff, 0xff, 0xff, 0x7f], ReasonCode::PacketTooLarge),
        (&[0x10, 0x00], ReasonCode::ProtocolError), // a second CONNECT
        (&[0x20, 0x03, 0x00, 0x00, 0x00], ReasonCode::ProtocolError), // a server's packet
        (&[0x30, 0x04, 0x00, 0x01, 0xff, 0x00], ReasonCode::MalformedPacket), // not UTF-8
    ];
    for (bytes, reason) in cases {
        let mut client = Client::v5(plane.address, "bad").await;
        client.stream.write_all(bytes).await.unwrap();
        client.is_told(reason).await;
    }
    let mut old = Client::connected(plane.address, ProtocolVersion::V311, "bad").await;
    old.stream.write_all(&[0x36, 0x02, 0x00, 0x00]).await.unwrap();
    assert_eq!(old.next().await, None);
    let mut nonsense = Client::open(plane.address, ProtocolVersion::V311).await;
    nonsense.stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(nonsense.next().await, None);
    bystander.hears_nothing().await;
}

/// [MQTT-3.1.2-2] [MQTT5-3.1.2-2]
#[tokio::test]
async fn an_unknown_protocol_level_is_told_so() {
    let plane = Plane::start().await;
    let mut client = Client::open(plane.address, ProtocolVersion::V311).await;
    client.stream.write_all(b"\x10\x0c\x00\x04MQTT\x07\x02\x00\x00\x00\x00").await.unwrap();
    match client.next().await {
        Some(Packet::ConnAck(connack)) => assert_eq!(connack.reason, ReasonCode::UnsupportedProtocolVersion),
        other => panic!("{other:?}"),
    }
    assert_eq!(client.next().await, None);
}

#[tokio::test]
async fn more_connections_than_allowed_are_closed_at_once() {
    let mut config = config();
    config.mqtt.connections_max = 1.try_into().unwrap();
    let plane = Plane::with(crate::bus::TestBus::new(), config).await;
    let first = Client::v5(plane.address, "first").await;
    let mut second = Client::open(plane.address, ProtocolVersion::V5).await;
    assert_eq!(second.next().await, None);
    assert_eq!(plane.metric("tbmq_mqtt_connection_limit_reached_total"), 1);
    drop(first);
    until(|| plane.metric("tbmq_mqtt_connections") == 0).await;
    // The count falls just after the gauge.
    tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            let mut third = Client::open(plane.address, ProtocolVersion::V5).await;
            let connect = connect_packet(ProtocolVersion::V5, "third");
            third.send(Packet::Connect(Box::new(connect))).await;
            if third.next().await.is_some() {
                return;
            }
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_drain_waits_for_acknowledgements_says_goodbye_and_leaves() {
    let plane = Plane::start().await;
    plane.integration(1, &["a"]).await;
    plane.bus.control.set(crate::bus::Mode::Keep);
    let mut client = Client::v5(plane.address, "c").await;
    client.send(Packet::Publish(publish("a", Qos::AtLeastOnce, 7, "x"))).await;
    until(|| plane.bus.control.kept() == 1).await;
    let bus = plane.bus.clone();
    let address = plane.address;
    let drained = tokio::spawn(plane.running.drain());
    // The listener is closed first.
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bus.control.give(0, Ok(()));
    assert_eq!(client.puback().await.packet_id, 7);
    client.is_told(ReasonCode::ServerShuttingDown).await;
    drop(client);
    drained.await.unwrap();
    assert!(crate::gate::last_applied(&bus).await.leaving);
}
