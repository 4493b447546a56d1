//! The MQTT sink against Mosquitto.

use std::{collections::BTreeMap, future::poll_fn, net::SocketAddr, sync::Arc, task::Poll, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::{Map, Value, json};
use tbmq_executor::{
    sink::{Message, Outcome, Sink, SinkContext, SinkKind, SinkState, Ticket},
    sinks::{SinkSettings, mqtt::Mqtt},
};
use tbmq_harness::{
    Need,
    client::Client,
    mosquitto::{Broker, BrokerOptions, BrokerTls},
    ready,
};
use tbmq_integration::wire::Target;
use tbmq_mqtt::{
    codec::property::Properties,
    packet::{Ack, Connect, Packet, ProtocolVersion, Qos, ReasonCode},
};
use tbmq_proto::{
    ids::{IntegrationId, ShardId},
    integration::PublishIntegrationMsgProto,
    queue::PublishMsgProto,
    topic::Catalogue,
};
use tokio::time::timeout;
use uuid::Uuid;

/// A bound for what should happen at once; only a failed test waits so long.
const SOON: Duration = Duration::from_secs(30);

fn context(window: usize) -> SinkContext {
    SinkContext {
        shard: ShardId { integration: IntegrationId(Uuid::from_u128(1)), index: 0 },
        topic: Catalogue::default().messages(IntegrationId(Uuid::from_u128(1)), 1).name.into(),
        target: Target { name: "under test".into(), enabled: true, configuration: "{}".into(), sealed: None },
        metadata: Arc::new(Map::new()),
        executor_id: "ie".into(),
        window,
    }
}

fn configuration(broker: SocketAddr, changes: Value) -> Map<String, Value> {
    let mut configuration = json!({
        "sendOnlyMsgPayload": true, "host": broker.ip().to_string(), "port": broker.port(), "useMsgTopicName": true,
        "clientId": "tbmq_sink", "connectTimeoutSec": 10, "reconnectPeriodSec": 1, "mqttVersion": 5, "useMsgQoS": true,
        "useMsgRetain": true, "keepAliveSec": 60,
    });
    for (field, value) in changes.as_object().unwrap() {
        configuration[field] = value.clone();
    }
    configuration.as_object().unwrap().clone()
}

async fn connect(broker: SocketAddr, changes: Value, window: usize) -> Result<Box<dyn Sink>, String> {
    let kind = Mqtt::new(SinkSettings::default());
    kind.connect(&configuration(broker, changes), context(window)).await.map_err(|error| error.text)
}

/// A message whose payload is its number.
fn message(number: u64, qos: i32) -> Message {
    let publish = PublishMsgProto {
        client_id: "client".into(),
        topic_name: "t/1".into(),
        payload: number.to_string().into(),
        qos,
        ..PublishMsgProto::default()
    };
    let publish = PublishIntegrationMsgProto {
        publish_msg_proto: Some(publish),
        ..PublishIntegrationMsgProto::default()
    };
    Message { publish: Arc::new(publish), partition: 0, offset: number, trace: None }
}

async fn answer(sink: &mut dyn Sink) -> (Ticket, Outcome) {
    timeout(SOON, poll_fn(|cx| sink.poll_outcome(cx))).await.expect("an answer comes")
}

/// A client whose session outlives its connection, so that the broker keeps messages for it.
async fn subscriber(broker: SocketAddr, credentials: Option<(&str, &str)>) -> Client {
    let connect = Connect {
        version: ProtocolVersion::V311,
        clean_start: false,
        keep_alive: 60,
        client_id: "subscriber".into(),
        will: None,
        username: credentials.map(|(name, _)| name.into()),
        password: credentials.map(|(_, password)| password.to_owned().into()),
        properties: Properties::NONE,
    };
    let (client, connack) = Client::connect_with(broker, connect).await.unwrap();
    assert_eq!(connack.reason, ReasonCode::Success);
    client
}

/// The next payload that a subscriber gets, as a number; `None`: the connection is over.
async fn received(client: &mut Client) -> Option<u64> {
    let packet = client.receive().await.ok()?;
    let Packet::Publish(publish) = packet else { panic!("{packet:?}") };
    if let Some(id) = publish.packet_id {
        assert_eq!(publish.qos, Qos::AtLeastOnce);
        client.send(&Packet::PubAck(Ack::new(id, ReasonCode::Success))).await.ok()?;
    }
    Some(std::str::from_utf8(&publish.payload).unwrap().parse().unwrap())
}

/// Delivers 300 messages of all qualities and sees them arrive.
async fn delivers(broker: SocketAddr, credentials: Option<(&str, &str)>, changes: Value) {
    const MESSAGES: u64 = 300;
    let mut subscriber = subscriber(broker, credentials).await;
    subscriber.subscribe("t/#", Qos::AtLeastOnce).await.unwrap();
    // Read all the time: for a slow subscriber Mosquitto drops messages of QoS 0.
    let seeing = tokio::spawn(async move {
        let mut seen = Vec::new();
        while (seen.len() as u64) < MESSAGES {
            match received(&mut subscriber).await {
                Some(number) => seen.push(number),
                None => panic!("only {} arrive: {seen:?}", seen.len()),
            }
        }
        seen
    });
    let mut sink = connect(broker, changes, 64).await.unwrap();
    let mut delivered = 0;
    let mut next = 0;
    while delivered < MESSAGES {
        while next < MESSAGES && sink.submit(message(next, (next % 3) as i32), next).is_ok() {
            next += 1;
        }
        assert_eq!(answer(&mut *sink).await.1, Outcome::Delivered);
        delivered += 1;
    }
    let mut seen = seeing.await.unwrap();
    seen.sort_unstable();
    // Once each: the connection was never lost on the way.
    assert!(seen.iter().copied().eq(0..MESSAGES), "{seen:?}");
    sink.close(SOON).await;
}

#[tokio::test]
async fn mosquitto_takes_messages_in_every_version_and_quality() {
    if !ready("mosquitto_takes_messages_in_every_version_and_quality", &[Need::MosquittoBroker]) {
        return;
    }
    for version in [3, 4, 5] {
        // Its default would drop messages for a subscriber that is slower than the sink.
        let lines = vec!["max_queued_messages 0".to_owned()];
        let broker = Broker::start(&BrokerOptions { lines, ..BrokerOptions::default() }).unwrap();
        delivers(broker.address(), None, json!({"mqttVersion": version})).await;
    }
}

#[tokio::test]
async fn mosquitto_wants_the_right_password() {
    if !ready("mosquitto_wants_the_right_password", &[Need::MosquittoBroker]) {
        return;
    }
    let user = Some(("user".to_owned(), "pass".to_owned()));
    let broker = Broker::start(&BrokerOptions { user, ..BrokerOptions::default() }).unwrap();
    let address = broker.address();
    let basic = |password: &str| json!({"type": "basic", "username": "user", "password": password});
    for version in [3, 4, 5] {
        delivers(
            address,
            Some(("user", "pass")),
            json!({"mqttVersion": version, "credentials": basic("pass")}),
        )
        .await;
        let name = if version == 5 { "NOT_AUTHORIZED_5" } else { "NOT_AUTHORIZED" };
        let text = format!(
            "Failed to connect to MQTT broker at {address}. Result code is: CONNECTION_REFUSED_{name}"
        );
        for credentials in [basic("wrong"), json!({"type": "anonymous"})] {
            let changes = json!({"mqttVersion": version, "credentials": credentials});
            assert_eq!(connect(address, changes.clone(), 1).await.unwrap_err(), text);
            let kind = Mqtt::new(SinkSettings::default());
            let report = kind.probe(&configuration(address, changes), &context(1), SOON).await;
            assert_eq!(report.error.as_ref(), Some(&text));
            let names: Vec<_> = report.stages.iter().map(|stage| (stage.name.as_str(), stage.ok)).collect();
            assert_eq!(names, [("resolve", true), ("connect", true), ("authenticate", false)]);
        }
    }
}

/// A certificate authority.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // OpenSSL takes a certificate for its own issuer when both have the same name.
        params.distinguished_name.push(DnType::CommonName, "authority");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Certificate and key, both PEM.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }
}

#[tokio::test]
async fn mosquitto_is_trusted_and_knows_the_sink_by_certificates() {
    if !ready("mosquitto_is_trusted_and_knows_the_sink_by_certificates", &[Need::MosquittoBroker]) {
        return;
    }
    let authority = Authority::new();
    let (certificate, key) = authority.issue("127.0.0.1");
    let tls = BrokerTls { certificate, key, client_authority: Some(authority.0.pem()) };
    let broker = Broker::start(&BrokerOptions { tls: Some(tls), ..BrokerOptions::default() }).unwrap();
    let (certificate, key) = authority.issue("sink");
    // `ssl` stays off, as TBMQ's form leaves it.
    let with = |ca: &str, certificate: &str, key: &str| {
        let credentials = json!({"type": "cert.PEM", "caCert": ca, "cert": certificate, "privateKey": key});
        json!({"credentials": credentials})
    };
    let mut sink = connect(broker.address(), with(&authority.0.pem(), &certificate, &key), 8).await.unwrap();
    for qos in 0..3 {
        sink.submit(message(1, qos), 1).unwrap();
        assert_eq!(answer(&mut *sink).await, (1, Outcome::Delivered));
    }
    sink.close(SOON).await;
    let stranger = Authority::new();
    let text = connect(broker.address(), with(&stranger.0.pem(), &certificate, &key), 8).await.unwrap_err();
    assert!(text.contains(": TLS failed: invalid peer certificate"), "{text}");
    // In TLS 1.3 a client learns only afterwards that its certificate is missing.
    let text = connect(broker.address(), with(&authority.0.pem(), "", ""), 8).await.unwrap_err();
    assert!(
        text.starts_with(&format!("Failed to connect to MQTT broker at {}: ", broker.address())),
        "{text}"
    );
    let text = connect(broker.address(), json!({}), 8).await.unwrap_err();
    assert!(
        text.starts_with(&format!("Failed to connect to MQTT broker at {}: ", broker.address())),
        "{text}"
    );
}

#[tokio::test]
async fn a_restart_of_mosquitto_in_mid_flight_loses_nothing() {
    const MESSAGES: u64 = 3000;
    if !ready("a_restart_of_mosquitto_in_mid_flight_loses_nothing", &[Need::MosquittoBroker]) {
        return;
    }
    for version in [4, 5] {
        let lines = vec!["max_queued_messages 0".to_owned()];
        let broker = Broker::start(&BrokerOptions { lines, ..BrokerOptions::default() }).unwrap();
        let mut first = subscriber(broker.address(), None).await;
        first.subscribe("t/#", Qos::AtLeastOnce).await.unwrap();
        let mut sink = connect(broker.address(), json!({"mqttVersion": version}), 64).await.unwrap();
        let mut outcomes: BTreeMap<Ticket, Outcome> = BTreeMap::new();
        let (mut next, mut outages) = (0, 0);
        let deliver = async {
            while (outcomes.len() as u64) < MESSAGES {
                if sink.state() == SinkState::Ready {
                    while next < MESSAGES && sink.submit(message(next, 1), next).is_ok() {
                        next += 1;
                    }
                }
                if next >= 1000 * (outages + 1) && outages < 2 {
                    // One poll writes what was just submitted; its acknowledgements are not waited for.
                    let written = poll_fn(|cx| Poll::Ready(sink.poll_outcome(cx))).await;
                    if let Poll::Ready((ticket, outcome)) = written {
                        assert_eq!(outcomes.insert(ticket, outcome), None, "{ticket} is answered once");
                    }
                    broker.stop().unwrap();
                    let away = poll_fn(|cx| {
                        while let Poll::Ready((ticket, outcome)) = sink.poll_outcome(cx) {
                            assert_eq!(outcomes.insert(ticket, outcome), None);
                        }
                        if sink.state() == SinkState::Ready { Poll::Pending } else { Poll::Ready(()) }
                    });
                    away.await;
                    broker.launch().unwrap();
                    outages += 1;
                }
                let is_idle = outcomes.len() as u64 == next;
                // With nothing on its way there is only the connection to wait for.
                let progress = poll_fn(|cx| match sink.poll_outcome(cx) {
                    Poll::Ready(answer) => Poll::Ready(Some(answer)),
                    Poll::Pending if is_idle && sink.state() == SinkState::Ready => Poll::Ready(None),
                    Poll::Pending => Poll::Pending,
                });
                if let Some((ticket, outcome)) = progress.await {
                    assert_eq!(outcomes.insert(ticket, outcome), None, "{ticket} is answered once");
                }
            }
        };
        timeout(4 * SOON, deliver).await.expect("everything is answered");
        assert!(outcomes.values().all(|outcome| *outcome == Outcome::Delivered), "whatever happened");
        sink.close(SOON).await;
        // Mosquitto kept what the subscriber did not get before its connection was ended.
        let mut seen = vec![0_u32; MESSAGES as usize];
        while let Some(number) = received(&mut first).await {
            seen[number as usize] += 1;
        }
        let mut again = subscriber(broker.address(), None).await;
        while seen.contains(&0) {
            let number = received(&mut again).await.unwrap_or_else(|| {
                panic!("{} messages are missing", seen.iter().filter(|count| **count == 0).count())
            });
            seen[number as usize] += 1;
        }
    }
}

#[tokio::test]
async fn a_second_client_of_the_same_id_takes_over_and_the_sink_comes_back() {
    if !ready("a_second_client_of_the_same_id_takes_over_and_the_sink_comes_back", &[Need::MosquittoBroker]) {
        return;
    }
    let broker = Broker::start(&BrokerOptions::default()).unwrap();
    let mut sink = connect(broker.address(), json!({}), 8).await.unwrap();
    let kind = Mqtt::new(SinkSettings::default());
    // A check with an id of its own disturbs nothing.
    let report = kind.probe(&configuration(broker.address(), json!({})), &context(1), SOON).await;
    assert_eq!(report.error, None);
    sink.submit(message(1, 1), 1).unwrap();
    assert_eq!(answer(&mut *sink).await, (1, Outcome::Delivered));
    assert_eq!(sink.state(), SinkState::Ready);
    let changes = json!({"checkWithClientId": true});
    let report = kind.probe(&configuration(broker.address(), changes), &context(1), SOON).await;
    assert_eq!(report.error, None);
    let away = poll_fn(|cx| match (sink.poll_outcome(cx), sink.state()) {
        (Poll::Ready(answer), _) => panic!("{answer:?}"),
        (Poll::Pending, SinkState::Away { reason }) => Poll::Ready(reason),
        (Poll::Pending, _) => Poll::Pending,
    });
    let reason = timeout(SOON, away).await.unwrap();
    assert!(reason.starts_with("the broker "), "{reason}");
    let back = poll_fn(|cx| match (sink.poll_outcome(cx), sink.state()) {
        (Poll::Pending, SinkState::Ready) => Poll::Ready(()),
        _ => Poll::Pending,
    });
    timeout(SOON, back).await.unwrap();
}
