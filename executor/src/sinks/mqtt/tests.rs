//! The MQTT sink against a broker of its own.

use std::{future::poll_fn, net::SocketAddr, sync::Arc, task::Poll, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::{Map, Value, json};
use tbmq_mqtt::{
    codec::property::{PropertiesBuilder, PropertyId},
    packet::{Packet, ProtocolVersion, Publish, Qos, ReasonCode},
};
use tbmq_proto::queue::PublishMsgProto;
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpListener,
    time::{Instant, timeout},
};

use super::{
    Mqtt,
    broker::{Broker, Reply},
    config,
    dial::Dialer,
};
use crate::{
    conformance::{Behaviour, Fixture, answer, context, message},
    sink::{Message, Outcome, Sink, SinkContext, SinkKind, SinkState},
    sinks::{SinkSettings, credentials, egress::Egress, stages::Stages},
};

mod real;

const SOON: Duration = Duration::from_secs(20);

/// The kind's remote end in one of the versions and qualities of service.
struct MqttFixture {
    broker: Broker,
    changes: Value,
}

async fn fixture(version: u32, qos: u32) -> MqttFixture {
    let changes = json!({"mqttVersion": version, "qos": qos, "useMsgQoS": false});
    MqttFixture { broker: Broker::start().await, changes }
}

macro_rules! suites {
    ($($name:ident: $version:literal, $qos:literal;)*) => {$(
        mod $name {
            async fn fixture() -> super::MqttFixture {
                super::fixture($version, $qos).await
            }
            crate::conformance::suite!(super::fixture);
        }
    )*};
}

suites! {
    v31_qos1: 3, 1;
    v311_qos1: 4, 1;
    v5_qos1: 5, 1;
    v5_qos2: 5, 2;
}

#[async_trait]
impl Fixture for MqttFixture {
    fn kind(&self) -> Arc<dyn SinkKind> {
        Arc::new(Mqtt::new(SinkSettings::default()))
    }

    fn client_configuration(&self) -> Map<String, Value> {
        configuration(&self.broker, &self.changes)
    }

    fn impatient_configuration(&self) -> Map<String, Value> {
        self.client_configuration()
    }

    fn impatient_kind(&self) -> Arc<dyn SinkKind> {
        Arc::new(Mqtt::new(impatient()))
    }

    fn configuration_at(&self, address: SocketAddr) -> Map<String, Value> {
        let mut configuration = self.client_configuration();
        configuration.insert("port".to_owned(), address.port().into());
        configuration.insert("connectTimeoutSec".to_owned(), 1.into());
        configuration
    }

    fn notices_absence(&self) -> bool {
        true
    }

    async fn behave(&mut self, behaviour: Behaviour) {
        if behaviour == Behaviour::Away {
            self.broker.stop().await;
        } else {
            self.broker.hold(behaviour == Behaviour::Hold);
            self.broker.listen().await;
        }
    }

    async fn held(&mut self, count: usize) {
        self.broker.held(count).await;
    }

    fn received(&self) -> Vec<Bytes> {
        self.broker.payloads()
    }
}

fn impatient() -> SinkSettings {
    SinkSettings { attempt_timeout: Duration::from_millis(500), ..SinkSettings::default() }
}

fn configuration(broker: &Broker, changes: &Value) -> Map<String, Value> {
    configuration_for(broker.address, changes)
}

/// A configuration that sends payloads as they are, with changes.
fn configuration_for(broker: SocketAddr, changes: &Value) -> Map<String, Value> {
    let mut configuration = json!({
        "sendOnlyMsgPayload": true, "host": broker.ip().to_string(), "port": broker.port(),
        "useMsgTopicName": true, "clientId": "tbmq_under_test", "connectTimeoutSec": 5, "reconnectPeriodSec": 1,
        "mqttVersion": 5, "useMsgQoS": true, "useMsgRetain": true, "keepAliveSec": 0,
    });
    for (field, value) in changes.as_object().unwrap() {
        configuration[field] = value.clone();
    }
    configuration.as_object().unwrap().clone()
}

async fn sink_of(settings: SinkSettings, broker: &Broker, changes: Value, window: usize) -> Box<dyn Sink> {
    Mqtt::new(settings).connect(&configuration(broker, &changes), context(window)).await.unwrap()
}

async fn sink(broker: &Broker, changes: Value) -> Box<dyn Sink> {
    sink_of(SinkSettings::default(), broker, changes, 50).await
}

/// The outcome of one message.
async fn outcome(sink: &mut dyn Sink, message: Message) -> Outcome {
    sink.submit(message, 1).unwrap();
    answer(sink).await.1
}

fn class_and_text(outcome: Outcome) -> (&'static str, &'static str, String) {
    match outcome {
        Outcome::Delivered => ("delivered", "", String::new()),
        Outcome::Retry { class, text, .. } => ("retry", class, text),
        Outcome::Rejected { class, text } => ("rejected", class, text),
    }
}

/// Polls the sink, which has no answer to give, until its state is one of the wanted.
async fn state(sink: &mut dyn Sink, is_wanted: impl Fn(&SinkState) -> bool) -> SinkState {
    let reached = poll_fn(|cx| {
        if let Poll::Ready(answer) = sink.poll_outcome(cx) {
            panic!("{answer:?}");
        }
        let state = sink.state();
        if is_wanted(&state) { Poll::Ready(state) } else { Poll::Pending }
    });
    timeout(SOON, reached).await.expect("the state is reached")
}

fn is_away(state: &SinkState) -> bool {
    matches!(state, SinkState::Away { .. })
}

fn changed(number: u64, change: impl FnOnce(&mut PublishMsgProto)) -> Message {
    let mut message = message(number);
    let publish = Arc::make_mut(&mut message.publish);
    change(publish.publish_msg_proto.as_mut().unwrap());
    message
}

#[tokio::test]
async fn topic_qos_and_retain_are_the_messages_own_or_the_configured() {
    let own = changed(7, |publish| {
        publish.topic_name = "own/topic".into();
        publish.qos = 2;
        publish.retain = true;
    });
    for (version, own_topic, own_qos, own_retain) in [3, 4, 5]
        .into_iter()
        .flat_map(|v| (0..8).map(move |bits| (v, bits & 1 > 0, bits & 2 > 0, bits & 4 > 0)))
    {
        let broker = Broker::start().await;
        let changes = json!({
            "mqttVersion": version, "useMsgTopicName": own_topic, "topicName": "fixed/topic", "useMsgQoS": own_qos,
            "qos": 1, "useMsgRetain": own_retain, "retained": false,
        });
        let mut sink = sink(&broker, changes).await;
        assert_eq!(outcome(&mut *sink, own.clone()).await, Outcome::Delivered);
        let received = broker.received();
        let [Publish { topic, qos, retain, dup, payload, properties, .. }] = &received[..] else {
            panic!("{received:?}");
        };
        assert_eq!(&**topic, if own_topic { "own/topic" } else { "fixed/topic" });
        assert_eq!(*qos, if own_qos { Qos::ExactlyOnce } else { Qos::AtLeastOnce });
        assert_eq!((*retain, *dup), (own_retain, false));
        assert_eq!((&payload[..], properties.is_empty()), (&b"7"[..], true));
        sink.close(SOON).await;
    }
}

#[tokio::test]
async fn the_connect_is_tbmqs() {
    let broker = Broker::start().await;
    for (number, version) in [(3, ProtocolVersion::V31), (4, ProtocolVersion::V311), (5, ProtocolVersion::V5)]
    {
        let credentials = json!({"type": "basic", "username": "user", "password": "s3cret"});
        let changes = json!({"mqttVersion": number, "keepAliveSec": 30, "credentials": credentials});
        let sink = sink(&broker, changes).await;
        assert!(!format!("{sink:?}").contains("s3cret"));
        let connect = broker.connects().pop().unwrap();
        assert_eq!((connect.version, connect.clean_start, connect.keep_alive), (version, true, 30));
        assert_eq!((&*connect.client_id, connect.username.as_deref()), ("tbmq_under_test", Some("user")));
        assert_eq!(connect.password.as_deref(), Some(&b"s3cret"[..]));
        assert!(connect.will.is_none() && connect.properties.is_empty());
    }
}

#[tokio::test]
async fn the_envelope_is_sent_unless_only_the_payload_is_wanted() {
    let broker = Broker::start().await;
    let mut sink = sink(&broker, json!({"sendOnlyMsgPayload": false})).await;
    assert_eq!(outcome(&mut *sink, message(7)).await, Outcome::Delivered);
    let envelope: Value = serde_json::from_slice(&broker.payloads()[0]).unwrap();
    assert_eq!(envelope["payload"], "Nw==");
    assert_eq!(envelope["topicName"], "topic/1");
    assert_eq!(envelope["tbmqIeNode"], "ie");
    assert_eq!(envelope["metadata"]["integrationName"], "under test");
}

#[tokio::test]
async fn payloads_of_every_size_and_kind_arrive_as_they_are() {
    let broker = Broker::start().await;
    let mut sink = sink(&broker, json!({})).await;
    let payloads = [Bytes::new(), Bytes::from_static(&[0xff, 0, 0xfe]), Bytes::from(vec![b'x'; 1 << 20])];
    for (number, payload) in payloads.iter().enumerate() {
        let message = changed(number as u64, |publish| publish.payload = payload.clone());
        assert_eq!(outcome(&mut *sink, message).await, Outcome::Delivered);
    }
    assert_eq!(broker.payloads(), payloads);
}

#[tokio::test]
async fn shards_are_clients_of_their_own() {
    let broker = Broker::start().await;
    let kind = Mqtt::new(SinkSettings::default());
    for index in [0, 2] {
        let context = context(1);
        let context = SinkContext { shard: tbmq_proto::ids::ShardId { index, ..context.shard }, ..context };
        kind.connect(&configuration(&broker, &json!({})), context).await.unwrap();
    }
    let ids: Vec<_> = broker.connects().iter().map(|connect| connect.client_id.to_string()).collect();
    assert_eq!(ids, ["tbmq_under_test", "tbmq_under_test-2"]);
}

#[tokio::test]
async fn qos_0_is_delivered_when_it_is_written() {
    let broker = Broker::start().await;
    broker.reply(|_| Reply::Silence);
    let mut sink = sink(&broker, json!({"useMsgQoS": false, "qos": 0})).await;
    for number in 0..50 {
        sink.submit(message(number), number).unwrap();
    }
    for number in 0..50 {
        assert_eq!(answer(&mut *sink).await, (number, Outcome::Delivered));
    }
}

#[tokio::test]
async fn refusals_are_told_with_tbmqs_names_and_the_brokers_words() {
    let words = PropertiesBuilder::new().text(PropertyId::ReasonString, "go away").build();
    for (version, reason, name) in [
        (3, ReasonCode::BadUserNameOrPassword, "CONNECTION_REFUSED_BAD_USER_NAME_OR_PASSWORD"),
        (4, ReasonCode::NotAuthorized, "CONNECTION_REFUSED_NOT_AUTHORIZED"),
        (4, ReasonCode::ClientIdentifierNotValid, "CONNECTION_REFUSED_IDENTIFIER_REJECTED"),
        (5, ReasonCode::BadUserNameOrPassword, "CONNECTION_REFUSED_BAD_USERNAME_OR_PASSWORD (go away)"),
        (5, ReasonCode::Banned, "CONNECTION_REFUSED_BANNED (go away)"),
    ] {
        let broker = Broker::start().await;
        broker.answer_connect(reason, words.clone());
        let kind = Mqtt::new(SinkSettings::default());
        let configuration = configuration(&broker, &json!({"mqttVersion": version}));
        let error = kind.connect(&configuration, context(1)).await.unwrap_err();
        let address = broker.address;
        let text = format!("Failed to connect to MQTT broker at {address}. Result code is: {name}");
        assert_eq!(error.text, text);
        let report = kind.probe(&configuration, &context(1), SOON).await;
        assert_eq!(report.error, Some(text));
        let last = report.stages.last().unwrap();
        assert_eq!((last.name.as_str(), last.ok), ("authenticate", false));
        assert_eq!(last.text, format!("Result code is: {name}"));
    }
}

#[tokio::test]
async fn a_broker_that_does_not_know_mqtt_5_is_understood() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut broker = Broker::start().await;
    broker.address = listener.local_addr().unwrap();
    let answering = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&[0x20, 2, 0, 1]).await.unwrap();
        stream
    };
    let (kind, configuration) = (Mqtt::new(SinkSettings::default()), configuration(&broker, &json!({})));
    let (result, _stream) = tokio::join!(kind.connect(&configuration, context(1)), answering);
    let text = result.unwrap_err().text;
    assert!(text.ends_with("Result code is: CONNECTION_REFUSED_UNACCEPTABLE_PROTOCOL_VERSION"), "{text}");
}

#[tokio::test]
async fn a_connection_check_names_its_stages_and_disturbs_nobody() {
    let broker = Broker::start().await;
    let limits = PropertiesBuilder::new()
        .number(PropertyId::ReceiveMaximum, 20)
        .number(PropertyId::MaximumPacketSize, 1000)
        .number(PropertyId::MaximumQos, 1)
        .number(PropertyId::RetainAvailable, 0)
        .build();
    broker.answer_connect(ReasonCode::Success, limits);
    let kind = Mqtt::new(SinkSettings::default());
    for (version, own) in [(3, false), (4, false), (5, false), (5, true)] {
        let changes = json!({"mqttVersion": version, "checkWithClientId": own});
        let report = kind.probe(&configuration(&broker, &changes), &context(1), SOON).await;
        assert_eq!(report.error, None);
        let names: Vec<_> = report.stages.iter().map(|stage| stage.name.as_str()).collect();
        assert_eq!(names, ["resolve", "connect", "authenticate"]);
        assert_eq!(report.stages[0].text, "127.0.0.1");
        assert_eq!(report.stages[1].text, broker.address.to_string());
        if version == 5 {
            let limits =
                ", receive maximum 20, maximum packet size 1000, maximum QoS 1, no retained messages";
            assert_eq!(report.stages[2].text, format!("CONNECTION_ACCEPTED{limits}"));
        }
        let client_id = broker.connects().pop().unwrap().client_id.to_string();
        assert_eq!(client_id == "tbmq_under_test", own, "{client_id}");
        assert!(version > 3 || client_id.len() <= 23, "{client_id}");
        broker.saw(|packet| matches!(packet, Packet::Disconnect(_))).await;
    }
}

#[tokio::test]
async fn a_connection_check_tells_which_stage_failed() {
    let broker = Broker::start().await;
    let kind = Mqtt::new(SinkSettings::default());
    let failed = async |broker: &Broker, changes: Value, deadline| {
        let report = kind.probe(&configuration(broker, &changes), &context(1), deadline).await;
        let last = report.stages.last().unwrap().clone();
        assert!(!last.ok);
        (last.name, report.error.unwrap())
    };
    let (stage, text) = failed(&broker, json!({"host": "no-such-host.invalid"}), SOON).await;
    assert_eq!(stage, "resolve");
    assert!(text.contains("Unable to resolve provided hostname: no-such-host.invalid"), "{text}");
    let (stage, text) = failed(&broker, json!({"ssl": true}), Duration::from_secs(2)).await;
    assert_eq!(stage, "tls");
    assert!(text.starts_with("Failed to connect to MQTT broker at 127.0.0.1:"), "{text}");
    broker.hold(true);
    let (stage, text) = failed(&broker, json!({}), Duration::from_millis(200)).await;
    assert_eq!(stage, "authenticate");
    assert!(text.contains(": no end of authenticate after "), "{text}");
    let kind =
        Mqtt::new(SinkSettings { check_timeout: Duration::from_millis(200), ..SinkSettings::default() });
    let report = kind.probe(&configuration(&broker, &json!({})), &context(1), Duration::MAX).await;
    assert!(report.error.unwrap().contains(": no end of authenticate after "), "as the executor limits it");
    broker.stop().await;
    let (stage, text) = failed(&broker, json!({}), SOON).await;
    assert_eq!(stage, "connect");
    assert!(text.contains("Connection refused"), "{text}");
}

#[tokio::test]
async fn a_start_waits_no_longer_than_it_may() {
    let broker = Broker::start().await;
    broker.hold(true);
    let start = Instant::now();
    let kind = Mqtt::new(SinkSettings::default());
    let error = kind
        .connect(&configuration(&broker, &json!({"connectTimeoutSec": 1})), context(1))
        .await
        .unwrap_err();
    assert!(start.elapsed() >= Duration::from_secs(1) && start.elapsed() < SOON);
    assert!(error.text.starts_with(&format!("Failed to connect to MQTT broker at {}", broker.address)));
}

#[tokio::test]
async fn the_brokers_limits_are_kept() {
    let broker = Broker::start().await;
    let limits = PropertiesBuilder::new()
        .number(PropertyId::ReceiveMaximum, 3)
        .number(PropertyId::MaximumPacketSize, 40)
        .number(PropertyId::MaximumQos, 1)
        .number(PropertyId::RetainAvailable, 0)
        .build();
    broker.answer_connect(ReasonCode::Success, limits);
    let mut sink = sink(&broker, json!({})).await;
    let demanding = |number| {
        changed(number, |publish| {
            publish.qos = 2;
            publish.retain = true;
        })
    };
    broker.hold(true);
    for number in 0..3 {
        sink.submit(demanding(number), number).unwrap();
    }
    assert!(sink.submit(demanding(3), 3).is_err(), "what the broker would not take is the driver's");
    state(&mut *sink, |state| *state == SinkState::Ready).await;
    broker.held(3).await;
    broker.hold(false);
    for number in 0..3 {
        assert_eq!(answer(&mut *sink).await, (number, Outcome::Delivered));
    }
    assert!(broker.received().iter().all(|publish| publish.qos == Qos::AtLeastOnce && !publish.retain));
    let large = changed(4, |publish| publish.payload = Bytes::from_static(&[b'x'; 40]));
    let (what, class, text) = class_and_text(outcome(&mut *sink, large).await);
    assert_eq!((what, class), ("rejected", "size"));
    assert_eq!(text, "the message takes 54 bytes; the broker takes at most 40");
    assert_eq!(outcome(&mut *sink, message(5)).await, Outcome::Delivered);
    assert_eq!(broker.received().len(), 4);
}

#[tokio::test]
async fn refused_messages_are_rejected_or_tried_again_by_the_reason() {
    for (reason, what, class) in [
        (ReasonCode::NoMatchingSubscribers, "delivered", ""),
        (ReasonCode::UnspecifiedError, "retry", "refused"),
        (ReasonCode::ImplementationSpecificError, "retry", "refused"),
        (ReasonCode::NotAuthorized, "retry", "refused"),
        (ReasonCode::QuotaExceeded, "retry", "refused"),
        (ReasonCode::TopicNameInvalid, "rejected", "topic"),
        (ReasonCode::PayloadFormatInvalid, "rejected", "payload"),
    ] {
        for qos in [1, 2] {
            let broker = Broker::start().await;
            broker.reply(move |_| Reply::Acknowledge(reason));
            let mut sink = sink(&broker, json!({"useMsgQoS": false, "qos": qos})).await;
            let told = class_and_text(outcome(&mut *sink, message(1)).await);
            assert_eq!((told.0, told.1), (what, class), "{reason:?} at QoS {qos}");
            if reason.is_error() {
                let text = format!("the broker refused the message: {reason:?} 0x{:02X}", reason.byte());
                assert_eq!(told.2, text);
            }
            // The packet id is free again.
            broker.reply(|_| Reply::Acknowledge(ReasonCode::Success));
            assert_eq!(outcome(&mut *sink, message(2)).await, Outcome::Delivered);
        }
    }
}

#[tokio::test]
async fn a_message_without_a_topic_is_rejected() {
    let broker = Broker::start().await;
    let mut sink = sink(&broker, json!({})).await;
    for topic in ["", "a/#", "a\0b"] {
        let bad = changed(1, |publish| publish.topic_name = topic.into());
        let (what, class, _) = class_and_text(outcome(&mut *sink, bad).await);
        assert_eq!((what, class), ("rejected", "topic"), "{topic:?}");
    }
    assert_eq!(broker.received(), []);
}

#[tokio::test]
async fn what_a_lost_connection_left_is_sent_anew_in_its_order() {
    for qos in [1, 2] {
        let broker = Broker::start().await;
        broker.hold(true);
        // The first attempt must not be held: CONNECT is, too.
        broker.hold(false);
        let mut sink = sink(&broker, json!({"useMsgQoS": false, "qos": qos})).await;
        broker.reply(|_| Reply::Silence);
        for number in 0..20 {
            sink.submit(message(number), number).unwrap();
        }
        tokio::select! {
            () = broker.held(20) => {}
            answer = answer(&mut *sink) => panic!("{answer:?}"),
        }
        broker.cut().await;
        let SinkState::Away { reason } = state(&mut *sink, is_away).await else { unreachable!() };
        assert!(reason.starts_with("the "), "{reason}");
        for number in 20..25 {
            sink.submit(message(number), number).unwrap();
        }
        broker.reply(|_| Reply::Acknowledge(ReasonCode::Success));
        for number in 0..25 {
            assert_eq!(answer(&mut *sink).await, (number, Outcome::Delivered));
        }
        let payloads: Vec<u64> = broker
            .payloads()
            .iter()
            .map(|payload| std::str::from_utf8(payload).unwrap().parse().unwrap())
            .collect();
        assert!(payloads.iter().copied().eq((0..20).chain(0..25)), "{payloads:?}");
        assert!(broker.received().iter().all(|publish| !publish.dup), "a new session knows no duplicates");
    }
}

#[tokio::test]
async fn a_message_that_ends_every_connection_is_answered_and_the_others_arrive() {
    let broker = Broker::start().await;
    broker.reply(|publish| match &publish.payload[..] {
        b"3" => Reply::Close,
        _ => Reply::Acknowledge(ReasonCode::Success),
    });
    let mut sink = sink(&broker, json!({})).await;
    for number in 0..8 {
        sink.submit(message(number), number).unwrap();
    }
    let mut outcomes = Vec::new();
    for _ in 0..8 {
        outcomes.push(answer(&mut *sink).await);
    }
    outcomes.sort_by_key(|(ticket, _)| *ticket);
    for (ticket, outcome) in outcomes {
        if ticket == 3 {
            let (what, class, text) = class_and_text(outcome);
            assert_eq!((what, class), ("retry", "disconnected"));
            assert!(text.starts_with("the connection was lost 3 times under this message: the "), "{text}");
        } else {
            assert_eq!(outcome, Outcome::Delivered, "{ticket}");
        }
    }
}

#[tokio::test]
async fn without_a_reconnect_period_a_lost_connection_breaks_the_sink() {
    let broker = Broker::start().await;
    let mut sink = sink(&broker, json!({"reconnectPeriodSec": 0})).await;
    broker.cut().await;
    let state = state(&mut *sink, |state| *state != SinkState::Ready).await;
    assert!(matches!(state, SinkState::Broken { .. }), "{state:?}");
    assert_eq!(broker.connects().len(), 1);
}

#[tokio::test]
async fn the_brokers_disconnect_is_told_with_its_reason() {
    let broker = Broker::start().await;
    broker.reply(|_| Reply::Disconnect(ReasonCode::AdministrativeAction));
    let mut sink = sink(&broker, json!({})).await;
    sink.submit(message(1), 1).unwrap();
    let state = state(&mut *sink, is_away).await;
    let reason = "the broker disconnected: AdministrativeAction 0x98".to_owned();
    assert_eq!(state, SinkState::Away { reason });
}

#[tokio::test]
async fn a_refused_reconnect_is_told_while_it_lasts() {
    let broker = Broker::start().await;
    let mut sink = sink(&broker, json!({})).await;
    broker.answer_connect(ReasonCode::ServerBusy, PropertiesBuilder::new().build());
    broker.cut().await;
    state(&mut *sink, |state| {
        matches!(state, SinkState::Away { reason } if reason.ends_with("CONNECTION_REFUSED_SERVER_BUSY"))
    })
    .await;
    broker.answer_connect(ReasonCode::Success, PropertiesBuilder::new().build());
    state(&mut *sink, |state| *state == SinkState::Ready).await;
}

#[tokio::test]
async fn an_idle_connection_is_kept_alive_and_a_dead_one_is_noticed() {
    let broker = Broker::start().await;
    let mut sink = sink(&broker, json!({"keepAliveSec": 1, "connectTimeoutSec": 1})).await;
    let pinged = async {
        tokio::select! {
            () = broker.saw(|packet| *packet == Packet::PingReq) => {}
            answer = answer(&mut *sink) => panic!("{answer:?}"),
        }
    };
    timeout(SOON, pinged).await.unwrap();
    assert_eq!(sink.state(), SinkState::Ready);
    broker.answer_pings(false);
    let state = state(&mut *sink, is_away).await;
    let reason = "the broker gave no answer to a PINGREQ within 1 s".to_owned();
    assert_eq!(state, SinkState::Away { reason });
}

#[tokio::test]
async fn close_waits_for_what_is_in_flight_and_says_goodbye() {
    let broker = Broker::start().await;
    let mut sink = sink(&broker, json!({})).await;
    broker.hold(true);
    for number in 0..5 {
        sink.submit(message(number), number).unwrap();
    }
    let closing = tokio::spawn(sink.close(SOON));
    broker.held(5).await;
    assert!(!closing.is_finished());
    broker.hold(false);
    timeout(SOON, closing).await.unwrap().unwrap();
    broker.saw(|packet| matches!(packet, Packet::Disconnect(_))).await;
    broker.held(0).await;
}

#[tokio::test]
async fn close_says_goodbye_without_waiting() {
    let broker = Broker::start().await;
    sink(&broker, json!({})).await.close(Duration::ZERO).await;
    broker.saw(|packet| matches!(packet, Packet::Disconnect(_))).await;
}

/// A certificate authority.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn server_config(&self) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let chain = vec![CertificateDer::from(certificate)];
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(credentials::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        Arc::new(config)
    }
}

#[tokio::test]
async fn certificates_mean_tls_and_only_the_configured_authority_is_trusted() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let broker = Broker::with_tls(Some(authority.server_config())).await;
    let trusting = |pem: String| json!({"ssl": false, "credentials": {"type": "cert.PEM", "caCert": pem}});
    for qos in [0, 1] {
        let mut changes = trusting(authority.0.pem());
        changes["useMsgQoS"] = json!(false);
        changes["qos"] = json!(qos);
        let mut sink = sink(&broker, changes).await;
        assert_eq!(outcome(&mut *sink, message(1)).await, Outcome::Delivered);
        sink.close(SOON).await;
    }
    let kind = Mqtt::new(SinkSettings::default());
    let configuration = configuration(&broker, &trusting(stranger.0.pem()));
    let text = kind.connect(&configuration, context(1)).await.unwrap_err().text;
    assert!(text.contains(": TLS failed: invalid peer certificate"), "{text}");
    let report = kind.probe(&configuration, &context(1), SOON).await;
    assert_eq!(report.stages.last().unwrap().name, "tls");
}

#[tokio::test]
async fn the_address_of_each_attempt_is_checked() {
    let broker = Broker::start().await;
    let configuration = configuration(&broker, &json!({"host": "localhost"}));
    // As if the name had meant another address when the configuration was checked.
    let checked = config::read(&configuration, &SinkSettings::default()).config.unwrap();
    let dialer = Dialer::new(checked, "id".to_owned(), Egress::new(false, Vec::new(), Vec::new())).unwrap();
    let mut stages = Stages::new(SOON);
    let text = dialer.dial(&mut stages).await.err().unwrap();
    assert!(text.contains("INTEGRATIONS_ALLOW_LOCAL_NETWORK_HOSTS"), "{text}");
    let stages = stages.report.stages;
    assert_eq!(stages.len(), 1);
    assert_eq!((stages[0].name.as_str(), stages[0].ok), ("resolve", false));
    assert_eq!(broker.connects().len(), 0);
}
