//! What TBMQ's own tests assert of a broker (broker spec §10) and no other test here does.

use tbmq_mqtt::{
    codec::property::{Properties, PropertiesBuilder, PropertyId},
    packet::{Connect, Disconnect, Packet, ProtocolVersion, Publish, Qos, ReasonCode, Subscription},
};

use crate::{
    client::{Client, connect_packet, publish, subscription, text, will},
    credentials,
    persistent::{acknowledge, connected, cut, lasting, published},
    plane::{Plane, config, until},
};

fn everything() -> Properties {
    PropertiesBuilder::new()
        .number(PropertyId::PayloadFormatIndicator, 1)
        .text(PropertyId::ContentType, "text/plain")
        .text(PropertyId::ResponseTopic, "answers")
        .binary(PropertyId::CorrelationData, &[0, 0xff])
        .user("b", "1")
        .user("a", "2")
        .user("b", "3")
        .build()
}

/// [MQTT5-3.3.1-12] [MQTT5-3.3.1-13] [MQTT5-3.3.2-4] [MQTT5-3.3.2-15] [MQTT5-3.3.2-16] [MQTT5-3.3.2-17]
/// [MQTT5-3.3.2-18] [MQTT5-3.3.2-20]
#[tokio::test]
async fn a_message_for_a_client_that_is_away_keeps_its_properties_and_the_flag_that_was_asked_for() {
    let plane = Plane::start().await;
    let mut client = connected(&plane, lasting("c", 100), false).await;
    for (filter, retain_as_published) in [("kept", true), ("plain", false)] {
        let wanted = Subscription { retain_as_published, ..subscription(filter, Qos::ExactlyOnce) };
        client.subscribe(vec![wanted], Properties::NONE).await;
    }
    cut(&plane, client).await;
    let mut publisher = Client::v5(plane.address, "publisher").await;
    let all = [("kept", Properties::NONE), ("plain", everything()), ("kept", everything())];
    for (packet_id, (topic, properties)) in (1..).zip(all.clone()) {
        let packet = publish(topic, Qos::AtLeastOnce, packet_id, "x");
        publisher.send(Packet::Publish(Publish { retain: true, properties, ..packet })).await;
        assert!(!publisher.puback().await.reason.is_error());
    }
    let mut client = connected(&plane, lasting("c", 100), true).await;
    for (topic, properties) in all {
        let message = client.message().await;
        assert_eq!((&*message.topic, message.retain), (topic, topic == "kept"));
        assert_eq!(message.properties, properties);
        acknowledge(&mut client, &message).await;
    }
    client.hears_nothing().await;
}

/// [MQTT5-3.1.2-5] [MQTT5-4.9.0-2]
#[tokio::test]
async fn a_client_that_is_back_gets_no_more_than_its_window_and_the_rest_after_acknowledgements() {
    let plane = Plane::start().await;
    let mut connect = lasting("c", 100);
    connect.properties = PropertiesBuilder::new()
        .number(PropertyId::SessionExpiryInterval, 100)
        .number(PropertyId::ReceiveMaximum, 5)
        .build();
    let mut client = connected(&plane, connect.clone(), false).await;
    client.subscribed("t", Qos::AtLeastOnce).await;
    cut(&plane, client).await;
    let mut publisher = Client::v5(plane.address, "publisher").await;
    let payloads = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    for (packet_id, payload) in (1..).zip(payloads) {
        published(&mut publisher, "t", Qos::AtLeastOnce, packet_id, payload).await;
    }
    // Twice, as nothing is acknowledged the first time.
    let mut messages = Vec::new();
    for is_again in [false, true] {
        let mut client = connected(&plane, connect.clone(), true).await;
        messages.clear();
        for payload in &payloads[..5] {
            messages.push(client.message().await);
            let last = &messages[messages.len() - 1];
            assert_eq!((text(last), last.dup), (*payload, is_again));
        }
        client.hears_nothing().await;
        if is_again {
            for (message, payload) in messages.iter().zip(&payloads[5..]) {
                acknowledge(&mut client, message).await;
                let next = client.message().await;
                assert_eq!((text(&next), next.dup), (*payload, false));
            }
            client.hears_nothing().await;
        } else {
            cut(&plane, client).await;
        }
    }
}

/// Applications have no storage of their own yet.
#[tokio::test]
async fn what_waits_for_an_application_waits_as_for_a_device_until_it_starts_clean() {
    let bus = credentials::bus_with(&["MQTT_BASIC"]).await;
    credentials::application(&bus, "app").await;
    let plane = Plane::with(bus, config()).await;
    let properties = PropertiesBuilder::new()
        .number(PropertyId::SessionExpiryInterval, 100)
        .number(PropertyId::ReceiveMaximum, 2)
        .build();
    let connect = |client_id: &str, clean_start| Connect {
        client_id: client_id.into(),
        clean_start,
        properties: properties.clone(),
        ..credentials::of("app", ProtocolVersion::V5)
    };
    let mut client = connected(&plane, connect("c", false), false).await;
    for filter in ["changed", "kept"] {
        client.subscribed(filter, Qos::AtLeastOnce).await;
    }
    cut(&plane, client).await;
    let mut client = connected(&plane, connect("c", false), true).await;
    client.unsubscribe(&["changed"]).await;
    cut(&plane, client).await;
    let mut publisher = connected(&plane, connect("publisher", true), false).await;
    let payloads = ["0", "1", "2", "3"];
    for (packet_id, payload) in (1..).zip(payloads) {
        let packet = publish("kept", Qos::AtLeastOnce, packet_id, payload);
        publisher.send(Packet::Publish(Publish { properties: everything(), ..packet })).await;
        assert!(!publisher.puback().await.reason.is_error());
    }
    let mut client = connected(&plane, connect("c", false), true).await;
    let mut unacknowledged = Vec::new();
    for payload in &payloads[..2] {
        unacknowledged.push(client.message().await);
        assert_eq!(text(&unacknowledged[unacknowledged.len() - 1]), *payload);
    }
    client.hears_nothing().await;
    for (message, payload) in unacknowledged.iter().zip(&payloads[2..]) {
        acknowledge(&mut client, message).await;
        let next = client.message().await;
        assert_eq!((text(&next), &next.properties), (*payload, &everything()));
    }
    client.leave().await;
    let mut client = connected(&plane, connect("c", true), false).await;
    for topic in ["changed", "kept"] {
        publisher.publish(topic, Qos::AtLeastOnce, 1, "x").await;
        assert_eq!(publisher.puback().await.reason, ReasonCode::NoMatchingSubscribers);
    }
    client.hears_nothing().await;
}

/// [MQTT5-3.1.2-8]
#[tokio::test]
async fn a_will_is_published_when_the_session_expires_as_disconnect_has_said() {
    let plane = Plane::start().await;
    let mut watcher = Client::v5(plane.address, "watcher").await;
    watcher.subscribed("wills", Qos::AtMostOnce).await;
    let mut late = will("wills", "gone");
    late.properties = PropertiesBuilder::new().number(PropertyId::WillDelayInterval, 1000).build();
    let connect = Connect { will: Some(late), ..lasting("c", 1000) };
    let mut client = connected(&plane, connect, false).await;
    let properties = PropertiesBuilder::new().number(PropertyId::SessionExpiryInterval, 1).build();
    client.send(Packet::Disconnect(Disconnect { reason: ReasonCode::DisconnectWithWill, properties })).await;
    assert_eq!(client.next().await, None);
    watcher.hears_nothing().await;
    assert_eq!(text(&watcher.message().await), "gone");
    until(|| plane.metric("tbmq_mqtt_sessions_parked") == 0).await;
    connected(&plane, lasting("c", 0), false).await.leave().await;
}

#[tokio::test]
async fn each_subscriber_gets_a_message_by_the_way_of_its_kind() {
    let plane = Plane::start().await;
    let id = plane.integration(1, &["t"]).await;
    let mut plain = Client::connected(plane.address, ProtocolVersion::V311, "plain").await;
    plain.subscribed("t", Qos::AtLeastOnce).await;
    let mut away = connected(&plane, lasting("away", 100), false).await;
    away.subscribed("t", Qos::AtLeastOnce).await;
    cut(&plane, away).await;
    let mut members = Vec::new();
    for name in ["one", "two"] {
        let mut member = Client::v5(plane.address, name).await;
        member.subscribed("$share/g/t", Qos::AtMostOnce).await;
        members.push(member);
    }
    let mut publisher = Client::v5(plane.address, "publisher").await;
    for (packet_id, payload) in [(1, "first"), (2, "second")] {
        published(&mut publisher, "t", Qos::AtLeastOnce, packet_id, payload).await;
        // At once.
        let message = plain.message().await;
        assert_eq!(text(&message), payload);
        acknowledge(&mut plain, &message).await;
    }
    // Of its group.
    for (member, payload) in members.iter_mut().zip(["first", "second"]) {
        assert_eq!(text(&member.message().await), payload);
        member.hears_nothing().await;
    }
    // From its queue.
    let mut away = connected(&plane, lasting("away", 100), true).await;
    for payload in ["first", "second"] {
        assert_eq!(text(&away.message().await), payload);
    }
    // And as a record each.
    plane.records(id, 2).await;
    assert_eq!(plane.count(id).await, 2);
}

#[tokio::test]
async fn a_client_that_comes_with_another_version_gets_its_session() {
    let plane = Plane::start().await;
    let old = Connect { clean_start: false, ..connect_packet(ProtocolVersion::V311, "c") };
    let mut client = connected(&plane, old.clone(), false).await;
    client.subscribed("t", Qos::AtLeastOnce).await;
    cut(&plane, client).await;
    let mut publisher = Client::v5(plane.address, "publisher").await;
    let packet = publish("t", Qos::AtLeastOnce, 1, "x");
    publisher.send(Packet::Publish(Publish { properties: everything(), ..packet })).await;
    publisher.puback().await;
    let mut client = connected(&plane, lasting("c", 100), true).await;
    let message = client.message().await;
    assert_eq!((text(&message), &message.properties), ("x", &everything()));
    cut(&plane, client).await;
    let mut client = connected(&plane, old, true).await;
    let again = client.message().await;
    assert_eq!((text(&again), again.dup, &again.properties), ("x", true, &Properties::NONE));
}
