//! Sessions that outlive the process: it stops, or is killed, and another one goes on with them.
//!
//! The bus stays where it is; each process has a runtime of its own, with which all its tasks are gone when it is
//! killed.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tbmq_bus::{Bus as _, Error, TopicPartition};
use tbmq_data_plane::{Config, Durability, start};
use tbmq_harness::{Need, ready, redis::Redis};
use tbmq_mqtt::{
    codec::property::{Properties, PropertiesBuilder, PropertyId},
    packet::{
        Ack, Connect, Disconnect, Packet, ProtocolVersion, Publish, Qos, ReasonCode, RetainHandling,
        Subscription, Unsubscribe, Will,
    },
    session::NEVER_S,
};
use tbmq_proto::topic::Catalogue;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::{
    bus::{Mode, TestBus},
    client::{Client, connect_packet, publish, subscription, text, will},
    persistent::{acknowledge, acknowledge_all, connected, cut, lasting, published},
    plane::{Plane, config, context, until},
};

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Ending {
    Drain,
    Kill,
}

pub(crate) const ENDINGS: [Ending; 2] = [Ending::Drain, Ending::Kill];

/// Where processes keep things.
pub(crate) struct Site {
    pub(crate) bus: Arc<TestBus>,
    pub(crate) folder: Option<TempDir>,
    pub(crate) config: Config,
}

pub(crate) struct Process {
    plane: Plane,
    runtime: Tasks,
}

/// A runtime that may be dropped in a test.
struct Tasks(Option<Runtime>);

impl Drop for Tasks {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl std::ops::Deref for Process {
    type Target = Plane;

    fn deref(&self) -> &Plane {
        &self.plane
    }
}

impl Site {
    pub(crate) fn new() -> Self {
        Self { bus: TestBus::new(), folder: Some(tempfile::tempdir().unwrap()), config: config() }
    }

    pub(crate) async fn start(&self) -> Process {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let tasks = Tasks(Some(runtime.unwrap()));
        let runtime = tasks.0.as_ref().unwrap();
        let folder = self.folder.as_ref().map(|folder| (folder.path().join("sessions"), Durability::Process));
        loop {
            let mut context = context(&self.bus);
            context.sessions.clone_from(&folder);
            let (metrics, health) = (context.metrics.clone(), context.health.clone());
            match runtime.spawn(start(self.config.clone(), context)).await.unwrap() {
                Ok(running) => {
                    let address = running.addresses()[0].1;
                    let plane = Plane { bus: self.bus.clone(), address, running, metrics, health };
                    return Process { plane, runtime: tasks };
                }
                // The threads of one that was killed are on their way out.
                Err(error) if error.to_string().contains("another process has it open") => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => panic!("{error:#}"),
            }
        }
    }

    pub(crate) async fn restart(&self, process: Process, ending: Ending) -> Process {
        process.end(ending).await;
        self.start().await
    }

    /// Records of both topics of sessions.
    async fn records(&self) -> u64 {
        let catalogue = Catalogue::default();
        let topics = [catalogue.client_sessions(), catalogue.client_subscriptions()];
        let partitions = topics.map(|topic| TopicPartition::new(topic.name, 0));
        let bounds = self.bus.admin().bounds(&partitions).await.unwrap();
        bounds.iter().map(|bounds| bounds.end).sum()
    }
}

impl Process {
    pub(crate) async fn end(self, ending: Ending) {
        let Self { plane, runtime: mut tasks } = self;
        let runtime = tasks.0.take().unwrap();
        match ending {
            Ending::Drain => runtime.spawn(plane.running.drain()).await.unwrap(),
            Ending::Kill => drop(plane),
        }
        // All tasks are dropped where they stand.
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(20))).await.unwrap();
    }
}

fn after(delay_s: u32) -> Will {
    let properties = PropertiesBuilder::new().number(PropertyId::WillDelayInterval, delay_s).build();
    Will { properties, ..will("wills", "gone") }
}

/// A client of 3.1.1 that wants its session to be kept.
fn lasting_v3(client_id: &str) -> Connect {
    Connect { clean_start: false, ..connect_packet(ProtocolVersion::V311, client_id) }
}

pub(crate) async fn publisher(process: &Process) -> Client {
    Client::v5(process.address, "publisher").await
}

async fn refused(address: SocketAddr, connect: Connect) -> (ReasonCode, bool) {
    let mut client = Client::open(address, connect.version).await;
    client.send(Packet::Connect(Box::new(connect))).await;
    let answer = match client.next().await {
        Some(Packet::ConnAck(connack)) => (connack.reason, connack.session_present),
        other => panic!("{other:?}"),
    };
    assert_eq!(client.next().await, None);
    answer
}

/// [MQTT-3.1.2-4] [MQTT-3.1.2-5] [MQTT-3.2.2-2] [MQTT-4.1.0-1] [MQTT-4.5.0-1]
/// [MQTT5-3.1.2-5] [MQTT5-3.1.2-23] [MQTT5-3.2.2-3] [MQTT5-4.5.0-1]
#[tokio::test]
async fn what_waits_for_a_client_comes_in_order_after_a_restart() {
    for ending in ENDINGS {
        let site = Site::new();
        let process = site.start().await;
        let mut sender = publisher(&process).await;
        let connects = [lasting("v5", 1000), lasting_v3("v3")];
        for connect in &connects {
            let mut client = connected(&process, connect.clone(), false).await;
            client.subscribed("t/#", Qos::ExactlyOnce).await;
            cut(&process, client).await;
        }
        // More than one page.
        const COUNT: u16 = 600;
        let qos = |id: u16| if id.is_multiple_of(5) { Qos::ExactlyOnce } else { Qos::AtLeastOnce };
        for id in 1..=COUNT / 2 {
            let packet = Publish { payload: id.to_string().into(), ..publish("t/1", qos(id), id, "") };
            sender.send(Packet::Publish(packet)).await;
        }
        for id in 1..=COUNT / 2 {
            let ack = Ack::new(id, ReasonCode::Success);
            match sender.next().await {
                Some(Packet::PubAck(got) | Packet::PubRec(got)) => assert_eq!(got, ack),
                other => panic!("{other:?}"),
            }
        }
        let process = site.restart(process, ending).await;
        assert_eq!(process.metric("tbmq_mqtt_sessions_parked"), 2);
        let mut sender = publisher(&process).await;
        for id in COUNT / 2 + 1..=COUNT {
            let packet = Publish { payload: id.to_string().into(), ..publish("t/2", qos(id), id, "") };
            sender.send(Packet::Publish(packet)).await;
        }
        for connect in connects {
            let mut client = connected(&process, connect, true).await;
            let mut messages = Vec::new();
            for id in 1..=COUNT {
                let message = client.message().await;
                assert_eq!((text(&message), message.qos, message.dup), (&*id.to_string(), qos(id), false));
                messages.push(message);
            }
            acknowledge_all(&mut client, &messages).await;
            client.hears_nothing().await;
        }
    }
}

/// [MQTT-2.3.1-4] [MQTT-3.3.1-1] [MQTT-4.3.2-1] [MQTT-4.3.3-1] [MQTT-4.4.0-1]
/// [MQTT5-3.3.1-1] [MQTT5-4.3.2-3] [MQTT5-4.3.3-3] [MQTT5-4.3.3-5] [MQTT5-4.3.3-6] [MQTT5-4.4.0-1]
#[tokio::test]
async fn what_was_sent_and_not_acknowledged_comes_again_with_its_packet_id_after_a_restart() {
    for ending in ENDINGS {
        let site = Site::new();
        let process = site.start().await;
        let mut sender = publisher(&process).await;
        let mut client = connected(&process, lasting("c", 1000), false).await;
        client.subscribed("t", Qos::ExactlyOnce).await;
        let all = [
            (1, Qos::AtLeastOnce, "1"),
            (2, Qos::ExactlyOnce, "2"),
            (3, Qos::ExactlyOnce, "3"),
            (4, Qos::AtLeastOnce, "4"),
            (5, Qos::ExactlyOnce, "5"),
        ];
        let mut ids = Vec::new();
        for (id, qos, payload) in all {
            published(&mut sender, "t", qos, id, payload).await;
            ids.push(client.message().await.packet_id.unwrap());
        }
        client.send(Packet::PubAck(Ack::new(ids[0], ReasonCode::Success))).await;
        client.send(Packet::PubRec(Ack::new(ids[1], ReasonCode::Success))).await;
        let rel = Packet::PubRel(Ack::new(ids[1], ReasonCode::Success));
        // It comes when all of before is kept.
        assert_eq!(client.next().await, Some(rel.clone()));
        let mut process = process;
        for _ in 0..2 {
            process = site.restart(process, ending).await;
            client = connected(&process, lasting("c", 1000), true).await;
            assert_eq!(client.next().await, Some(rel.clone()));
            for (index, (_, qos, payload)) in all.iter().enumerate().skip(2) {
                let message = client.message().await;
                assert_eq!(
                    (message.packet_id, message.qos, message.dup, text(&message)),
                    (Some(ids[index]), *qos, true, *payload),
                    "{ending:?}"
                );
            }
        }
        client.send(Packet::PubComp(Ack::new(ids[1], ReasonCode::Success))).await;
        // A new message gets an id that none of them has.
        let mut sender = publisher(&process).await;
        published(&mut sender, "t", Qos::AtLeastOnce, 9, "new").await;
        let new = client.message().await;
        assert!(!new.dup && !ids[1..].contains(&new.packet_id.unwrap()), "{new:?} {ids:?}");
        let open: Vec<_> = all[2..]
            .iter()
            .zip(&ids[2..])
            .map(|((_, qos, payload), id)| publish("t", *qos, *id, payload))
            .chain([new])
            .collect();
        acknowledge_all(&mut client, &open).await;
        client.hears_nothing().await;
        let process = site.restart(process, Ending::Drain).await;
        connected(&process, lasting("c", 1000), true).await.hears_nothing().await;
    }
}

/// [MQTT-4.3.3-2] [MQTT5-4.3.3-10] [MQTT5-4.3.3-11] [MQTT5-4.3.3-12]
#[tokio::test]
async fn a_qos_2_publish_that_is_repeated_after_a_restart_is_delivered_once() {
    for ending in ENDINGS {
        let site = Site::new();
        let process = site.start().await;
        let mut watcher = connected(&process, lasting("watcher", 1000), false).await;
        watcher.subscribed("t", Qos::AtLeastOnce).await;
        cut(&process, watcher).await;
        let mut client = connected(&process, lasting("c", 1000), false).await;
        for id in [7, 8] {
            client.publish("t", Qos::ExactlyOnce, id, "x").await;
            assert_eq!(client.pubrec().await, Ack::new(id, ReasonCode::Success));
        }
        client.send(Packet::PubRel(Ack::new(8, ReasonCode::Success))).await;
        assert_eq!(client.next().await, Some(Packet::PubComp(Ack::new(8, ReasonCode::Success))));
        let process = site.restart(process, ending).await;
        let mut client = connected(&process, lasting("c", 1000), true).await;
        let again = Publish { dup: true, ..publish("t", Qos::ExactlyOnce, 7, "x") };
        client.send(Packet::Publish(again)).await;
        assert_eq!(client.pubrec().await, Ack::new(7, ReasonCode::Success));
        client.send(Packet::PubRel(Ack::new(7, ReasonCode::Success))).await;
        assert_eq!(client.next().await, Some(Packet::PubComp(Ack::new(7, ReasonCode::Success))));
        for id in [7, 8] {
            published(&mut client, "t", Qos::ExactlyOnce, id, "another").await;
        }
        let mut watcher = connected(&process, lasting("watcher", 1000), true).await;
        for expected in ["x", "x", "another", "another"] {
            assert_eq!(text(&watcher.message().await), expected, "{ending:?}");
        }
        watcher.hears_nothing().await;
    }
}

/// [MQTT-4.1.0-1] [MQTT5-3.8.3-3] [MQTT5-3.3.4-3] [MQTT5-3.10.4-1] [MQTT5-3.10.4-2] [MQTT5-4.8.2-3]
#[tokio::test]
async fn subscriptions_are_there_with_their_options_after_a_restart() {
    for ending in ENDINGS {
        let site = Site::new();
        let process = site.start().await;
        let mut client = connected(&process, lasting("c", 1000), false).await;
        let wanted = Subscription {
            no_local: true,
            retain_as_published: true,
            retain_handling: RetainHandling::DoNotSend,
            ..subscription("own/+", Qos::AtLeastOnce)
        };
        let identifier = PropertiesBuilder::new().number(PropertyId::SubscriptionIdentifier, 7).build();
        client.subscribe(vec![wanted], identifier).await;
        let more =
            ["$share/g/shared", "gone", "changed"].map(|filter| subscription(filter, Qos::ExactlyOnce));
        client.subscribe(more.to_vec(), Properties::NONE).await;
        client.subscribed("changed", Qos::AtMostOnce).await;
        assert_eq!(
            client.unsubscribe(&["gone", "never"]).await,
            [ReasonCode::Success, ReasonCode::NoSubscriptionExisted]
        );
        let process = site.restart(process, ending).await;
        let mut sender = publisher(&process).await;
        let retained = Publish { retain: true, ..publish("own/1", Qos::AtLeastOnce, 1, "1") };
        sender.send(Packet::Publish(retained)).await;
        assert_eq!(sender.puback().await.reason, ReasonCode::Success);
        published(&mut sender, "shared", Qos::ExactlyOnce, 2, "2").await;
        sender.publish("gone", Qos::AtLeastOnce, 3, "3").await;
        assert_eq!(sender.puback().await.reason, ReasonCode::NoMatchingSubscribers);
        let mut client = connected(&process, lasting("c", 1000), true).await;
        let message = client.message().await;
        assert_eq!((text(&message), message.qos, message.retain), ("1", Qos::AtLeastOnce, true));
        assert_eq!(message.properties.number(PropertyId::SubscriptionIdentifier), Some(7));
        let shared = client.message().await;
        assert_eq!((text(&shared), shared.qos), ("2", Qos::ExactlyOnce));
        acknowledge_all(&mut client, &[message, shared]).await;
        published(&mut sender, "changed", Qos::AtLeastOnce, 4, "4").await;
        let message = client.message().await;
        assert_eq!((text(&message), message.qos), ("4", Qos::AtMostOnce));
        client.publish("own/1", Qos::AtMostOnce, 0, "own").await;
        client.hears_nothing().await;
    }
}

/// [MQTT-3.1.2-6] [MQTT-3.2.2-1] [MQTT5-3.1.2-4] [MQTT5-3.2.2-2]
#[tokio::test]
async fn a_clean_start_after_a_restart_takes_nothing_and_leaves_nothing() {
    for ending in ENDINGS {
        let site = Site::new();
        let process = site.start().await;
        let mut sender = publisher(&process).await;
        for client_id in ["clean", "new", "old"] {
            let mut client = connected(&process, lasting(client_id, 1000), false).await;
            client.subscribed("t", Qos::AtLeastOnce).await;
            cut(&process, client).await;
        }
        published(&mut sender, "t", Qos::AtLeastOnce, 1, "x").await;
        let process = site.restart(process, ending).await;
        // Without and with a session that is kept in its place.
        let mut clean = Client::v5(process.address, "clean").await;
        clean.hears_nothing().await;
        let new = Connect { clean_start: true, ..lasting("new", 1000) };
        connected(&process, new, false).await.hears_nothing().await;
        let process = site.restart(process, ending).await;
        let mut sender = publisher(&process).await;
        published(&mut sender, "t", Qos::AtLeastOnce, 1, "y").await;
        connected(&process, lasting("clean", 1000), false).await.hears_nothing().await;
        connected(&process, lasting("new", 1000), true).await.hears_nothing().await;
        let mut old = connected(&process, lasting("old", 1000), true).await;
        for expected in ["x", "y"] {
            assert_eq!(text(&old.message().await), expected);
        }
    }
}

/// [MQTT-3.1.2-8] [MQTT5-3.1.2-7] [MQTT5-3.1.2-8] [MQTT5-3.1.3-9]
#[tokio::test]
async fn wills_are_published_once_they_are_due_across_a_restart() {
    for ending in ENDINGS {
        let site = Site::new();
        let process = site.start().await;
        let mut watcher = connected(&process, lasting("watcher", 1000), false).await;
        watcher.subscribed("wills", Qos::AtLeastOnce).await;
        cut(&process, watcher).await;
        let with_will = |client_id: &str, will: Will, payload: &'static str| Connect {
            will: Some(Will { payload: payload.into(), ..will }),
            ..lasting(client_id, 1000)
        };
        let away = with_will("away", after(1), "after a second away");
        cut(&process, connected(&process, away, false).await).await;
        let cancelled = with_will("cancelled", after(1000), "never");
        cut(&process, connected(&process, cancelled, false).await).await;
        let mut clients = Vec::new();
        for connect in [
            with_will("now", will("wills", ""), "at once"),
            with_will("later", after(1), "after a second"),
            with_will("much-later", after(1000), "much later"),
        ] {
            clients.push(connected(&process, connect, false).await);
        }
        let well = with_will("well", will("wills", ""), "never");
        connected(&process, well, false).await.leave().await;
        let process = site.restart(process, ending).await;
        connected(&process, lasting("cancelled", 1000), true).await;
        let mut watcher = connected(&process, lasting("watcher", 1000), true).await;
        let mut payloads = Vec::new();
        for _ in 0..3 {
            let message = watcher.message().await;
            acknowledge(&mut watcher, &message).await;
            payloads.push(text(&message).to_owned());
        }
        assert_eq!(payloads[0], "at once", "{ending:?} {payloads:?}");
        watcher.hears_nothing().await;
        payloads[1..].sort_unstable();
        assert_eq!(payloads[1..], ["after a second", "after a second away"]);
        // Nothing is published twice.
        let process = site.restart(process, ending).await;
        let mut watcher = connected(&process, lasting("watcher", 1000), true).await;
        // Its session ends with this, and its will waits no longer.
        let clean = connect_packet(ProtocolVersion::V5, "much-later");
        Client::with(process.address, clean).await;
        loop {
            let message = watcher.message().await;
            if text(&message) == "much later" {
                break;
            }
            // Its acknowledgement was not kept before the kill.
            let is_known = payloads.iter().any(|payload| payload == text(&message));
            assert!(is_known && ending == Ending::Kill, "{message:?}");
        }
    }
}

/// [MQTT-3.2.2-3] [MQTT5-3.1.2-8] [MQTT5-3.2.2-3] [MQTT5-4.1.0-2]
#[tokio::test]
async fn a_session_that_expires_while_the_process_is_away_is_over_and_its_will_published() {
    let site = Site::new();
    let process = site.start().await;
    let mut watcher = connected(&process, lasting("watcher", NEVER_S), false).await;
    watcher.subscribed("wills", Qos::AtLeastOnce).await;
    cut(&process, watcher).await;
    let connect = Connect { will: Some(after(1000)), ..lasting("short", 1) };
    let mut client = connected(&process, connect, false).await;
    client.subscribed("t", Qos::AtLeastOnce).await;
    cut(&process, client).await;
    let mut client = connected(&process, lasting("until-disconnect", 1000), false).await;
    let properties = PropertiesBuilder::new().number(PropertyId::SessionExpiryInterval, 1).build();
    let goodbye = Disconnect { reason: ReasonCode::Success, properties };
    client.send(Packet::Disconnect(goodbye)).await;
    assert_eq!(client.next().await, None);
    process.end(Ending::Drain).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let process = site.start().await;
    let mut watcher = connected(&process, lasting("watcher", NEVER_S), true).await;
    assert_eq!(text(&watcher.message().await), "gone");
    until(|| process.metric("tbmq_mqtt_sessions_expired_total") == 2).await;
    for client_id in ["short", "until-disconnect"] {
        connected(&process, lasting(client_id, 1), false).await.leave().await;
    }
    let mut sender = publisher(&process).await;
    sender.publish("t", Qos::AtLeastOnce, 1, "x").await;
    assert_eq!(sender.puback().await.reason, ReasonCode::NoMatchingSubscribers);
}

/// [MQTT5-3.1.2-23] [MQTT5-4.1.0-2]
#[tokio::test]
async fn the_expiry_of_a_client_that_was_connected_begins_when_its_killed_process_starts_again() {
    let site = Site::new();
    let process = site.start().await;
    let mut client = connected(&process, lasting("c", 2), false).await;
    client.subscribed("t", Qos::AtLeastOnce).await;
    process.end(Ending::Kill).await;
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let process = site.start().await;
    assert_eq!(process.metric("tbmq_mqtt_sessions_parked"), 1);
    // Another end does not begin it anew.
    process.end(Ending::Drain).await;
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let process = site.start().await;
    connected(&process, lasting("c", 2), false).await;
}

/// [MQTT-4.3.2-2] [MQTT-4.3.3-2] [MQTT5-4.3.2-4] [MQTT5-4.3.3-8]
#[tokio::test]
async fn what_was_acknowledged_when_the_process_was_killed_arrives_and_qos_2_once() {
    let site = Site::new();
    let mut process = site.start().await;
    let mut away = connected(&process, lasting("away", 1000), false).await;
    away.subscribed("t/#", Qos::ExactlyOnce).await;
    cut(&process, away).await;
    let mut expected = Vec::new();
    let mut got = Vec::new();
    for round in 0..3_u16 {
        let mut here = connected(&process, lasting("here", 1000), round > 0).await;
        if round == 0 {
            here.subscribed("t/#", Qos::ExactlyOnce).await;
        }
        let mut sender = publisher(&process).await;
        let reading = tokio::spawn(async move {
            let mut got = Vec::new();
            while let Some(packet) = here.next().await {
                let answer = match packet {
                    Packet::Publish(message) => {
                        got.push((text(&message).to_owned(), message.dup));
                        Packet::PubRec(Ack::new(message.packet_id.unwrap(), ReasonCode::Success))
                    }
                    Packet::PubRel(ack) => Packet::PubComp(Ack::new(ack.packet_id, ReasonCode::Success)),
                    other => panic!("{other:?}"),
                };
                let mut bytes = bytes::BytesMut::new();
                tbmq_mqtt::codec::encode(&answer, ProtocolVersion::V5, &mut bytes);
                // The process may be gone.
                tokio::io::AsyncWriteExt::write_all(&mut here.stream, &bytes).await.ok();
            }
            got
        });
        for id in 1..=300 {
            let payload = format!("{round}/{id}");
            let packet =
                Publish { payload: payload.clone().into(), ..publish("t/1", Qos::ExactlyOnce, id, "") };
            sender.send(Packet::Publish(packet)).await;
            if id > 20 {
                let ack = sender.pubrec().await;
                assert_eq!(ack.reason, ReasonCode::Success);
                expected.push(format!("{round}/{}", ack.packet_id));
            }
        }
        process = site.restart(process, Ending::Kill).await;
        got.extend(reading.await.unwrap());
    }
    let mut here = connected(&process, lasting("here", 1000), true).await;
    loop {
        here.send(Packet::PingReq).await;
        match here.next().await.unwrap() {
            Packet::Publish(message) => {
                got.push((text(&message).to_owned(), message.dup));
                here.send(Packet::PubRec(Ack::new(message.packet_id.unwrap(), ReasonCode::Success))).await;
            }
            Packet::PubRel(ack) => {
                here.send(Packet::PubComp(Ack::new(ack.packet_id, ReasonCode::Success))).await;
            }
            Packet::PingResp
                if expected.iter().all(|payload| got.iter().any(|(found, _)| found == payload)) =>
            {
                break;
            }
            Packet::PingResp => {}
            other => panic!("{other:?}"),
        }
    }
    // What comes a second time says so: a receiver that keeps packet ids sees each message once.
    let mut seen = std::collections::HashSet::new();
    for (payload, dup) in &got {
        assert!(seen.insert(payload) || *dup, "{payload} comes twice without DUP");
    }
    let mut away = connected(&process, lasting("away", 1000), true).await;
    let mut kept = Vec::new();
    while kept.iter().filter(|payload| expected.contains(payload)).count() < expected.len() {
        kept.push(text(&away.message().await).to_owned());
    }
    let mut once = kept.clone();
    once.dedup();
    assert_eq!(once.len(), kept.len());
}

/// [MQTT-3.2.2-5] [MQTT-3.8.4-5] [MQTT5-3.2.2-6] [MQTT5-3.2.2-7] [MQTT5-3.8.4-7]
#[tokio::test]
async fn what_can_not_be_recorded_is_refused_and_nothing_of_it_is_done() {
    let site = Site::new();
    let process = site.start().await;
    let mut client = connected(&process, lasting("c", 1000), false).await;
    let mut old = connected(&process, lasting_v3("old"), false).await;
    old.subscribed("kept", Qos::AtLeastOnce).await;
    let mut parked = connected(&process, lasting("parked", 1000), false).await;
    parked.subscribed("t", Qos::AtLeastOnce).await;
    cut(&process, parked).await;
    site.bus.sessions.set(Mode::Fail(Error::Unavailable("test".to_owned())));
    for (connect, reason) in [
        (lasting("new", 1000), ReasonCode::ServerUnavailable),
        (lasting_v3("new"), ReasonCode::ServerUnavailable),
        (lasting("parked", 1000), ReasonCode::ServerUnavailable),
    ] {
        assert_eq!(refused(process.address, connect).await, (reason, false));
    }
    let reasons = client.subscribe(vec![subscription("t", Qos::AtLeastOnce)], Properties::NONE).await;
    assert_eq!(reasons, [ReasonCode::UnspecifiedError]);
    let reasons = old.subscribe(vec![subscription("t", Qos::AtLeastOnce)], Properties::NONE).await;
    assert_eq!(reasons, [ReasonCode::UnspecifiedError]);
    // Who has no such session does not notice.
    let mut sender = publisher(&process).await;
    sender.subscribed("u", Qos::AtLeastOnce).await;
    published(&mut sender, "t", Qos::AtLeastOnce, 1, "for the parked one").await;
    client.hears_nothing().await;
    old.hears_nothing().await;
    // UNSUBACK of 3.1.1 can't say no.
    let unsubscribe = |filter: &str| {
        let filters = vec![filter.into()];
        Packet::Unsubscribe(Unsubscribe { packet_id: 5, filters, properties: Properties::NONE })
    };
    old.send(unsubscribe("kept")).await;
    assert_eq!(old.next().await, None);
    site.bus.sessions.set(Mode::Pass);
    until(|| process.metric("tbmq_mqtt_sessions_parked") == 2).await;
    let process = site.restart(process, Ending::Drain).await;
    connected(&process, lasting("new", 1000), false).await;
    let mut parked = connected(&process, lasting("parked", 1000), true).await;
    assert_eq!(text(&parked.message().await), "for the parked one");
    let mut sender = publisher(&process).await;
    sender.publish("kept", Qos::AtLeastOnce, 1, "x").await;
    assert_eq!(sender.puback().await.reason, ReasonCode::Success);
    let mut client = connected(&process, lasting("c", 1000), true).await;
    client.hears_nothing().await;
    client.subscribed("t", Qos::AtLeastOnce).await;
}

/// [MQTT-4.4.0-1] [MQTT5-4.4.0-1]
#[tokio::test]
async fn retained_messages_that_were_not_acknowledged_come_again_after_a_restart() {
    for ending in ENDINGS {
        let site = Site::new();
        let process = site.start().await;
        let mut sender = publisher(&process).await;
        const COUNT: u16 = 700;
        for id in 1..=COUNT {
            let retained = publish(&format!("t/{id}"), Qos::ExactlyOnce, id, "kept");
            sender.send(Packet::Publish(Publish { retain: true, ..retained })).await;
            assert!(!sender.pubrec().await.reason.is_error());
        }
        let window = PropertiesBuilder::new()
            .number(PropertyId::SessionExpiryInterval, 1000)
            .number(PropertyId::ReceiveMaximum, 100);
        let connect = Connect { properties: window.build(), ..lasting("c", 1000) };
        let mut client = connected(&process, connect.clone(), false).await;
        client.subscribed("t/#", Qos::ExactlyOnce).await;
        let mut sent = Vec::new();
        for _ in 0..100 {
            let message = client.message().await;
            assert!(message.retain && !message.dup);
            sent.push((message.topic, message.packet_id));
        }
        let process = site.restart(process, ending).await;
        let mut client = connected(&process, connect, true).await;
        for (topic, packet_id) in sent {
            let message = client.message().await;
            assert_eq!((message.topic, message.packet_id), (topic, packet_id));
            assert!(message.retain && message.dup);
        }
    }
}

#[tokio::test]
async fn sessions_that_end_with_their_connections_are_not_recorded() {
    let site = Site::new();
    let process = site.start().await;
    for version in [ProtocolVersion::V311, ProtocolVersion::V5] {
        let mut client = Client::connected(process.address, version, "clean").await;
        client.subscribed("t", Qos::ExactlyOnce).await;
        client.hears_nothing().await;
        client.leave().await;
    }
    assert_eq!(site.records().await, 0);
    let lasting = connected(&process, lasting("lasting", 1000), false).await;
    assert_eq!(site.records().await, 2);
    drop(lasting);
    process.end(Ending::Drain).await;
    assert_eq!(site.records().await, 3);
}

#[tokio::test]
async fn many_connections_with_one_lasting_session_end_with_one_that_has_it_and_so_it_is_recorded() {
    for clean_starts in [false, true] {
        let site = Site::new();
        let process = site.start().await;
        let mut first = connected(&process, lasting("c", 1000), false).await;
        first.subscribed("t", Qos::AtLeastOnce).await;
        let address = process.address;
        let rush: Vec<_> = (0..30)
            .map(|index| {
                tokio::spawn(async move {
                    let mut client = Client::open(address, ProtocolVersion::V5).await;
                    let clean_start = clean_starts && index % 3 == 0;
                    let connect = if clean_starts && index % 5 == 0 {
                        connect_packet(ProtocolVersion::V5, "c")
                    } else {
                        Connect { clean_start, ..lasting("c", 1000) }
                    };
                    client.send(Packet::Connect(Box::new(connect))).await;
                    while client.next().await.is_some() {}
                })
            })
            .collect();
        until(|| rush.iter().filter(|one| one.is_finished()).count() == 29).await;
        // It may have a session, or none.
        let (mut last, _) = Client::with(process.address, lasting("c", 1000)).await;
        for one in rush {
            one.await.unwrap();
        }
        last.subscribed("last", Qos::AtLeastOnce).await;
        let process = site.restart(process, Ending::Kill).await;
        let mut last = connected(&process, lasting("c", 1000), true).await;
        let mut sender = publisher(&process).await;
        sender.publish("last", Qos::AtLeastOnce, 1, "1").await;
        assert_eq!(sender.puback().await.reason, ReasonCode::Success);
        assert_eq!(text(&last.message().await), "1");
        sender.publish("t", Qos::AtLeastOnce, 1, "2").await;
        let expected = if clean_starts { ReasonCode::NoMatchingSubscribers } else { ReasonCode::Success };
        assert_eq!(sender.puback().await.reason, expected);
    }
}

/// [MQTT-3.1.2-4] [MQTT5-3.1.2-5]
#[tokio::test]
async fn many_sessions_are_there_at_once_after_a_restart() {
    // More than are opened at a time. `TBMQ_TEST_SESSIONS` says how many instead, to see how long they take.
    let count: u32 = std::env::var("TBMQ_TEST_SESSIONS").map_or(1200, |text| text.parse().unwrap());
    let site = Site::new();
    let process = site.start().await;
    let address = process.address;
    for first in (0..count).step_by(100) {
        let clients: Vec<_> = (first..count.min(first + 100))
            .map(|number| {
                tokio::spawn(async move {
                    let connect = lasting(&format!("client-{number}"), 1000);
                    let (mut client, connack) = Client::with(address, connect).await;
                    assert!(!connack.session_present);
                    client.subscribed(&format!("to/{number}"), Qos::AtLeastOnce).await;
                    client.leave().await;
                })
            })
            .collect();
        for client in clients {
            client.await.unwrap();
        }
    }
    let mut process = process;
    for ending in ENDINGS {
        let begun = std::time::Instant::now();
        process = site.restart(process, ending).await;
        eprintln!("{count} sessions: {ending:?} and start took {:?}", begun.elapsed());
        assert_eq!(process.metric("tbmq_mqtt_sessions_parked"), u64::from(count));
    }
    let mut sender = publisher(&process).await;
    for number in [0, 511, 512, count - 1] {
        published(&mut sender, &format!("to/{number}"), Qos::AtLeastOnce, 1, "x").await;
        let mut client = connected(&process, lasting(&format!("client-{number}"), 1000), true).await;
        assert_eq!(text(&client.message().await), "x");
    }
}

/// [MQTT-4.1.0-1] [MQTT-4.4.0-1]
#[tokio::test]
async fn sessions_in_redis_survive_a_restart() {
    if !ready("sessions_in_redis_survive_a_restart", &[Need::Redis]) {
        return;
    }
    let redis = Redis::shared().address();
    for ending in ENDINGS {
        let mut site = Site { folder: None, ..Site::new() };
        site.config.redis.host = redis.ip().to_string();
        site.config.redis.port = redis.port();
        site.config.redis.key_prefix = format!("restart-{ending:?}-");
        let process = site.start().await;
        let mut sender = publisher(&process).await;
        let connect = Connect { will: Some(after(1)), ..lasting("c", 1000) };
        let mut client = connected(&process, connect, false).await;
        client.subscribed("#", Qos::ExactlyOnce).await;
        published(&mut sender, "t", Qos::ExactlyOnce, 1, "1").await;
        published(&mut sender, "t", Qos::ExactlyOnce, 2, "2").await;
        let (first, second) = (client.message().await, client.message().await);
        client.send(Packet::PubRec(Ack::new(first.packet_id.unwrap(), ReasonCode::Success))).await;
        let rel = Packet::PubRel(Ack::new(first.packet_id.unwrap(), ReasonCode::Success));
        assert_eq!(client.next().await, Some(rel.clone()));
        client.publish("u", Qos::ExactlyOnce, 7, "3").await;
        while !matches!(client.next().await, Some(Packet::PubRec(_))) {}
        let process = site.restart(process, ending).await;
        let mut sender = publisher(&process).await;
        published(&mut sender, "t", Qos::AtLeastOnce, 1, "4").await;
        // The will comes, too.
        until(|| process.metric("tbmq_mqtt_messages_queued_total") == 2).await;
        let mut client = connected(&process, lasting("c", 1000), true).await;
        assert_eq!(client.next().await, Some(rel));
        let again = client.message().await;
        assert_eq!((again.packet_id, again.dup), (second.packet_id, true));
        client.send(Packet::PubRel(Ack::new(7, ReasonCode::Success))).await;
        let mut payloads = Vec::new();
        let mut is_released = false;
        while payloads.len() < 3 || !is_released {
            match client.next().await.unwrap() {
                Packet::Publish(message) => payloads.push(text(&message).to_owned()),
                Packet::PubComp(ack) => is_released = ack == Ack::new(7, ReasonCode::Success),
                other => panic!("{other:?}"),
            }
        }
        payloads.sort_unstable();
        assert_eq!(payloads, ["3", "4", "gone"]);
    }
}
