//! What waits in the queue of a shared subscription.

use std::time::Duration;

use tbmq_harness::{Need, ready, redis::Redis};
use tbmq_mqtt::{
    codec::property::{PropertiesBuilder, PropertyId},
    packet::{Ack, Connect, Packet, Publish, Qos, ReasonCode},
};

use crate::{
    bus::TestBus,
    client::{Client, connect_packet, publish, text},
    persistent::{acknowledge, acknowledge_all, connected, cut, lasting, published},
    plane::{Plane, config, until},
    restart::{ENDINGS, Ending, Site},
};

const SHARED: &str = "$share/g/t";

const TEN: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];

/// A lasting client that takes so many messages at a time.
fn taking(client_id: &str, receive_maximum: u32) -> Connect {
    let properties = PropertiesBuilder::new()
        .number(PropertyId::SessionExpiryInterval, 100)
        .number(PropertyId::ReceiveMaximum, receive_maximum)
        .build();
    Connect { properties, ..lasting(client_id, 100) }
}

/// Members that have subscribed, and are away.
async fn away(plane: &Plane, members: &[&str]) {
    for name in members {
        let mut member = connected(plane, lasting(name, 1000), false).await;
        member.subscribed(SHARED, Qos::ExactlyOnce).await;
        cut(plane, member).await;
    }
}

async fn publisher(plane: &Plane) -> Client {
    Client::v5(plane.address, "publisher").await
}

/// Publishes to `t` at QoS 1, and waits until all is taken.
async fn publish_all(publisher: &mut Client, payloads: &[impl AsRef<str>]) {
    // As many as a client may have in flight.
    for chunk in payloads.chunks(500) {
        for (id, payload) in (1..).zip(chunk) {
            let payload = payload.as_ref().to_owned().into();
            let packet = Publish { payload, ..publish("t", Qos::AtLeastOnce, id, "") };
            publisher.send(Packet::Publish(packet)).await;
        }
        for id in (1..).take(chunk.len()) {
            assert_eq!(publisher.puback().await, Ack::new(id, ReasonCode::Success));
        }
    }
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

/// Gets these messages and acknowledges each.
async fn takes(member: &mut Client, payloads: &[impl AsRef<str>]) {
    for payload in payloads {
        let message = member.message().await;
        assert_eq!((text(&message), message.dup), (payload.as_ref(), false));
        acknowledge(member, &message).await;
    }
}

#[tokio::test]
async fn what_comes_while_all_members_are_away_goes_in_order_to_the_first_who_is_back() {
    let plane = Plane::start().await;
    away(&plane, &["one", "two"]).await;
    publish_all(&mut publisher(&plane).await, &TEN).await;
    let mut two = connected(&plane, lasting("two", 1000), true).await;
    takes(&mut two, &TEN).await;
    let mut one = connected(&plane, lasting("one", 1000), true).await;
    one.hears_nothing().await;
    // From now on they take turns again.
    publish_all(&mut publisher(&plane).await, &["a", "b"]).await;
    for member in [&mut one, &mut two] {
        let message = member.message().await;
        acknowledge(member, &message).await;
        member.hears_nothing().await;
    }
    assert_eq!(plane.metric("tbmq_mqtt_messages_dropped_total{reason=\"NoMember\"}"), 0);
}

#[tokio::test]
async fn what_comes_at_qos_0_waits_for_no_member() {
    let plane = Plane::start().await;
    away(&plane, &["one"]).await;
    let mut sender = publisher(&plane).await;
    published(&mut sender, "t", Qos::AtMostOnce, 0, "lost").await;
    published(&mut sender, "t", Qos::AtLeastOnce, 1, "kept").await;
    let mut one = connected(&plane, lasting("one", 1000), true).await;
    takes(&mut one, &["kept"]).await;
    one.hears_nothing().await;
    assert_eq!(plane.metric("tbmq_mqtt_messages_dropped_total{reason=\"NoMember\"}"), 1);
}

#[tokio::test]
async fn what_comes_while_a_long_queue_is_handed_over_comes_behind_it() {
    let plane = Plane::start().await;
    away(&plane, &["one"]).await;
    let mut sender = publisher(&plane).await;
    // More than is at hand of the group, and of the session.
    let all = numbers(3000);
    publish_all(&mut sender, &all[..1500]).await;
    let mut one = connected(&plane, taking("one", 20), true).await;
    for (index, chunk) in all.chunks(10).enumerate() {
        if let Some(more) = all[1500..].chunks(10).nth(index) {
            publish_all(&mut sender, more).await;
        }
        takes(&mut one, chunk).await;
    }
    one.hears_nothing().await;
    for reason in ["QueueFull", "NoMember"] {
        assert_eq!(plane.metric(&format!("tbmq_mqtt_messages_dropped_total{{reason=\"{reason}\"}}")), 0);
    }
    // Nothing waits any more: a message needs one queue only.
    let queued = plane.metric("tbmq_mqtt_messages_queued_total");
    publish_all(&mut sender, &["at once"]).await;
    takes(&mut one, &["at once"]).await;
    assert_eq!(plane.metric("tbmq_mqtt_messages_queued_total"), queued + 1);
}

#[tokio::test]
async fn when_the_first_who_is_back_leaves_without_acknowledging_the_second_gets_all() {
    let plane = Plane::start().await;
    away(&plane, &["one", "two"]).await;
    publish_all(&mut publisher(&plane).await, &TEN).await;
    let mut one = connected(&plane, taking("one", 2), true).await;
    for payload in &TEN[..2] {
        assert_eq!(text(&one.message().await), *payload);
    }
    // All have been handed to it.
    until(|| plane.metric("tbmq_mqtt_messages_queued_total") == 20).await;
    cut(&plane, one).await;
    let mut two = connected(&plane, lasting("two", 1000), true).await;
    takes(&mut two, &TEN).await;
    let mut one = connected(&plane, lasting("one", 1000), true).await;
    one.hears_nothing().await;
    two.hears_nothing().await;
    assert_eq!(plane.metric("tbmq_mqtt_messages_delivered_again_total"), 10);
}

#[tokio::test]
async fn nothing_is_lost_or_doubled_when_members_come_and_go_while_a_queue_is_handed_over() {
    let plane = Plane::start().await;
    away(&plane, &["one", "two"]).await;
    let all = numbers(1200);
    publish_all(&mut publisher(&plane).await, &all).await;
    let mut got = Vec::new();
    for round in 0..6 {
        let name = ["one", "two"][round % 2];
        let mut member = connected(&plane, taking(name, 10), true).await;
        for _ in 0..50 {
            let message = member.message().await;
            acknowledge(&mut member, &message).await;
            got.push(text(&message).to_owned());
        }
        // What was acknowledged is known to the server.
        loop {
            member.send(Packet::PingReq).await;
            let mut open = Vec::new();
            loop {
                match member.next().await.unwrap() {
                    Packet::Publish(message) => open.push(message),
                    Packet::PingResp => break,
                    other => panic!("{other:?}"),
                }
            }
            if open.len() == 10 || open.is_empty() {
                break;
            }
            acknowledge_all(&mut member, &open).await;
            got.extend(open.iter().map(|message| text(message).to_owned()));
        }
        cut(&plane, member).await;
    }
    let mut one = connected(&plane, lasting("one", 1000), true).await;
    let mut two = connected(&plane, lasting("two", 1000), true).await;
    while got.len() < all.len() {
        let (member, message) = tokio::select! {
            message = one.message() => (&mut one, message),
            message = two.message() => (&mut two, message),
        };
        acknowledge(member, &message).await;
        got.push(text(&message).to_owned());
    }
    one.hears_nothing().await;
    two.hears_nothing().await;
    got.sort_by_key(|text| text.parse::<usize>().unwrap());
    assert_eq!(got, all);
}

/// [MQTT5-4.8.2-4]
#[tokio::test]
async fn a_qos_2_message_that_was_sent_stays_with_its_member_and_the_others_do_not() {
    let plane = Plane::start().await;
    away(&plane, &["one", "two"]).await;
    let mut sender = publisher(&plane).await;
    published(&mut sender, "t", Qos::ExactlyOnce, 1, "begun").await;
    let mut one = connected(&plane, taking("one", 1), true).await;
    let begun = one.message().await;
    assert_eq!((text(&begun), begun.qos), ("begun", Qos::ExactlyOnce));
    published(&mut sender, "t", Qos::ExactlyOnce, 2, "waits").await;
    until(|| plane.metric("tbmq_mqtt_messages_queued_total") == 3).await;
    cut(&plane, one).await;
    let mut two = connected(&plane, lasting("two", 1000), true).await;
    takes(&mut two, &["waits"]).await;
    two.hears_nothing().await;
    let mut one = connected(&plane, lasting("one", 1000), true).await;
    let again = one.message().await;
    assert_eq!((text(&again), again.packet_id, again.dup), ("begun", begun.packet_id, true));
    acknowledge(&mut one, &again).await;
    one.hears_nothing().await;
}

/// [MQTT5-4.8.2-3]
#[tokio::test]
async fn a_member_without_a_lasting_session_gets_what_waits_at_its_quality() {
    let plane = Plane::start().await;
    let mut sender = publisher(&plane).await;
    away(&plane, &["one"]).await;
    for qos in [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce] {
        published(&mut sender, "t", Qos::AtLeastOnce, 1, "at 1").await;
        published(&mut sender, "t", Qos::ExactlyOnce, 2, "at 2").await;
        let mut clean = Client::v5(plane.address, "clean").await;
        clean.subscribed(SHARED, qos).await;
        for (payload, published_at) in [("at 1", Qos::AtLeastOnce), ("at 2", Qos::ExactlyOnce)] {
            let message = clean.message().await;
            assert_eq!((text(&message), message.qos), (payload, qos.min(published_at)));
            if message.qos != Qos::AtMostOnce {
                acknowledge(&mut clean, &message).await;
            }
        }
        clean.hears_nothing().await;
        clean.leave().await;
    }
    let mut one = connected(&plane, lasting("one", 1000), true).await;
    one.hears_nothing().await;
}

#[tokio::test]
async fn what_the_last_connected_member_did_not_acknowledge_waits_for_those_who_are_away() {
    let plane = Plane::start().await;
    away(&plane, &["one"]).await;
    let mut clean = Client::v5(plane.address, "clean").await;
    clean.subscribed(SHARED, Qos::AtLeastOnce).await;
    publish_all(&mut publisher(&plane).await, &TEN).await;
    for payload in &TEN[..4] {
        let message = clean.message().await;
        assert_eq!(text(&message), *payload);
        acknowledge(&mut clean, &message).await;
    }
    for payload in &TEN[4..] {
        assert_eq!(text(&clean.message().await), *payload);
    }
    clean.leave().await;
    let mut one = connected(&plane, lasting("one", 1000), true).await;
    takes(&mut one, &TEN[4..]).await;
    one.hears_nothing().await;
}

#[tokio::test]
async fn what_a_slow_member_has_no_room_for_waits_until_it_has() {
    let mut config = config();
    config.mqtt.outbound_queue_messages_max = 8.try_into().unwrap();
    config.mqtt.flow_control.delayed_queue_max_size = 1.try_into().unwrap();
    let plane = Plane::with(TestBus::new(), config).await;
    away(&plane, &["one"]).await;
    let mut connect = connect_packet(tbmq_mqtt::packet::ProtocolVersion::V5, "slow");
    connect.properties = PropertiesBuilder::new().number(PropertyId::ReceiveMaximum, 1).build();
    let (mut slow, _) = Client::with(plane.address, connect).await;
    slow.subscribed(SHARED, Qos::AtLeastOnce).await;
    let all = numbers(700);
    publish_all(&mut publisher(&plane).await, &all).await;
    takes(&mut slow, &all).await;
    slow.hears_nothing().await;
    assert_eq!(plane.metric("tbmq_mqtt_connections_ended_total{reason=\"SlowConsumer\"}"), 0);
    let mut one = connected(&plane, lasting("one", 1000), true).await;
    one.hears_nothing().await;
}

#[tokio::test]
async fn the_queue_of_a_group_holds_its_limit_and_drops_the_oldest() {
    let mut config = config();
    config.mqtt.persistent_session.device.persisted_messages.limit = 3.try_into().unwrap();
    let plane = Plane::with(TestBus::new(), config).await;
    away(&plane, &["one"]).await;
    publish_all(&mut publisher(&plane).await, &TEN).await;
    assert_eq!(plane.metric("tbmq_mqtt_messages_dropped_total{reason=\"QueueFull\"}"), 7);
    let mut one = connected(&plane, lasting("one", 1000), true).await;
    takes(&mut one, &TEN[7..]).await;
    one.hears_nothing().await;
}

/// [MQTT5-3.3.2-5] [MQTT5-3.3.2-6]
#[tokio::test]
async fn a_message_waits_for_a_member_no_longer_than_it_lives_or_the_queue_keeps_it() {
    let mut config = config();
    config.mqtt.persistent_session.device.persisted_messages.ttl = 2.try_into().unwrap();
    let plane = Plane::with(TestBus::new(), config).await;
    away(&plane, &["one"]).await;
    let mut sender = publisher(&plane).await;
    for (id, s, payload) in [(1, 1, "gone by then"), (2, 60, "in time")] {
        let properties = PropertiesBuilder::new().number(PropertyId::MessageExpiryInterval, s).build();
        let packet = Publish { properties, ..publish("t", Qos::AtLeastOnce, id, payload) };
        sender.send(Packet::Publish(packet)).await;
        sender.puback().await;
    }
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let mut one = connected(&plane, lasting("one", 1000), true).await;
    let message = one.message().await;
    assert_eq!(text(&message), "in time");
    let left = message.properties.number(PropertyId::MessageExpiryInterval).unwrap();
    assert!((50..=59).contains(&left), "{left}");
    acknowledge(&mut one, &message).await;
    one.hears_nothing().await;
    assert_eq!(plane.metric("tbmq_mqtt_messages_dropped_total{reason=\"Expired\"}"), 1);
    cut(&plane, one).await;
    publish_all(&mut sender, &["too old"]).await;
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let mut one = connected(&plane, lasting("one", 1000), true).await;
    until(|| plane.metric("tbmq_mqtt_messages_dropped_total{reason=\"Expired\"}") == 2).await;
    one.hears_nothing().await;
    publish_all(&mut sender, &["new"]).await;
    takes(&mut one, &["new"]).await;
}

#[tokio::test]
async fn a_queue_is_gone_when_the_session_of_the_last_member_ends() {
    let plane = Plane::start().await;
    away(&plane, &["one", "two"]).await;
    let mut sender = publisher(&plane).await;
    publish_all(&mut sender, &TEN).await;
    let dropped = || plane.metric("tbmq_mqtt_messages_dropped_total{reason=\"NoMember\"}");
    let anew = |name| Connect { clean_start: true, ..lasting(name, 1000) };
    let mut one = connected(&plane, anew("one"), false).await;
    until(|| plane.metric("tbmq_mqtt_sessions_parked") == 1).await;
    assert_eq!(dropped(), 0);
    connected(&plane, anew("two"), false).await;
    until(|| dropped() == 10).await;
    one.subscribed(SHARED, Qos::AtLeastOnce).await;
    one.hears_nothing().await;
    publish_all(&mut sender, &["new"]).await;
    takes(&mut one, &["new"]).await;
    one.hears_nothing().await;
    assert_eq!(dropped(), 10);
}

#[tokio::test]
async fn a_queue_is_gone_when_the_last_member_unsubscribes() {
    let plane = Plane::start().await;
    away(&plane, &["one"]).await;
    let mut sender = publisher(&plane).await;
    // More than is handed to a member that takes one at a time.
    const COUNT: usize = 1000;
    publish_all(&mut sender, &numbers(COUNT)).await;
    let mut one = connected(&plane, taking("one", 1), true).await;
    let mut message = one.message().await;
    assert_eq!(one.unsubscribe(&[SHARED]).await, [ReasonCode::Success]);
    let dropped = || plane.metric("tbmq_mqtt_messages_dropped_total{reason=\"NoMember\"}") as usize;
    until(|| dropped() > 0).await;
    let is_gone = dropped();
    one.subscribed(SHARED, Qos::AtLeastOnce).await;
    publish_all(&mut sender, &["new"]).await;
    // It still gets what was handed to it.
    let mut got = 0;
    while text(&message) != "new" {
        assert_eq!(text(&message), got.to_string());
        acknowledge(&mut one, &message).await;
        got += 1;
        message = one.message().await;
    }
    // What was just on its way counts twice.
    assert!(got + is_gone >= COUNT && got < COUNT && is_gone < COUNT, "{got} + {is_gone}");
}

async fn survives_a_restart(mut site: Site, ending: Ending) {
    site.config.mqtt.persistent_session.device.persisted_messages.ttl = 1000.try_into().unwrap();
    let process = site.start().await;
    away(&process, &["one", "two"]).await;
    let all = numbers(700);
    publish_all(&mut publisher(&process).await, &all[..600]).await;
    let process = site.restart(process, ending).await;
    publish_all(&mut publisher(&process).await, &all[600..]).await;
    let mut two = connected(&process, lasting("two", 1000), true).await;
    takes(&mut two, &all).await;
    let mut one = connected(&process, lasting("one", 1000), true).await;
    one.hears_nothing().await;
    two.hears_nothing().await;
    // And nothing is left for the next process.
    let process = site.restart(process, Ending::Drain).await;
    for name in ["one", "two"] {
        connected(&process, lasting(name, 1000), true).await.hears_nothing().await;
    }
}

#[tokio::test]
async fn what_waits_for_members_waits_through_a_restart() {
    for ending in ENDINGS {
        survives_a_restart(Site::new(), ending).await;
    }
}

#[tokio::test]
async fn what_waits_for_members_in_redis_waits_through_a_restart() {
    if !ready("what_waits_for_members_in_redis_waits_through_a_restart", &[Need::Redis]) {
        return;
    }
    let redis = Redis::shared().address();
    for ending in ENDINGS {
        let mut site = Site { folder: None, ..Site::new() };
        site.config.redis.host = redis.ip().to_string();
        site.config.redis.port = redis.port();
        site.config.redis.key_prefix = format!("group-{ending:?}-");
        survives_a_restart(site, ending).await;
    }
}
