//! The golden vectors of spec §2.5, and records of a real TBMQ.

use std::fmt::Write as _;

use bytes::Bytes;
use prost::Message;
use tbmq_proto::{ids::IntegrationId, integration as i, partition, queue as q};
use uuid::Uuid;

const U: Uuid = Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
const R: Uuid = Uuid::from_u128(0xffee_ddcc_bbaa_9988_7766_5544_3322_1100);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[track_caller]
fn check<M: Message + Default + PartialEq + std::fmt::Debug>(message: M, expected: &str) {
    assert_eq!(hex(&message.encode_to_vec()), expected);
    assert_eq!(M::decode(&*unhex(expected)).unwrap(), message);
}

fn integration_message(kind: &str, event: i::ComponentLifecycleEventProto) -> i::IntegrationMsgProto {
    let (msb, lsb) = IntegrationId(U).halves();
    i::IntegrationMsgProto {
        integration_id_msb: msb,
        integration_id_lsb: lsb,
        r#type: kind.to_owned(),
        event: event.into(),
        ..Default::default()
    }
}

fn downlink(message: i::IntegrationMsgProto) -> i::DownlinkIntegrationMsgProto {
    i::DownlinkIntegrationMsgProto { integration_msg: Some(message), validation_request_msg: None }
}

#[test]
fn configuration_records_are_tbmqs() {
    let created = i::IntegrationMsgProto {
        name: Some("n1".to_owned()),
        enabled: Some(true),
        configuration: Some(r#"{"a":1}"#.to_owned()),
        ..integration_message("HTTP", i::ComponentLifecycleEventProto::Created)
    };
    check(
        downlink(created.clone()),
        "0a2908f7ccd5a2b4c6c80810ffddf7e6bcd7eacc88011a044854545022026e31280132077b2261223a317d",
    );
    let disabled = i::IntegrationMsgProto {
        r#type: "MQTT".to_owned(),
        enabled: Some(false),
        event: i::ComponentLifecycleEventProto::Updated.into(),
        ..created
    };
    check(
        downlink(disabled),
        "0a2b08f7ccd5a2b4c6c80810ffddf7e6bcd7eacc88011a044d51545422026e31280032077b2261223a317d3801",
    );
    check(
        downlink(integration_message("KAFKA", i::ComponentLifecycleEventProto::Deleted)),
        "0a1d08f7ccd5a2b4c6c80810ffddf7e6bcd7eacc88011a054b41464b413802",
    );
}

#[test]
fn a_validation_request_is_tbmqs() {
    let (id_msb, id_lsb) = IntegrationId(R).halves();
    let (integration_id_msb, integration_id_lsb) = IntegrationId(U).halves();
    let request = i::IntegrationValidationRequestProto {
        id_msb,
        id_lsb,
        service_id: "tbmq1".to_owned(),
        configuration: Some(i::IntegrationProto {
            integration_id_msb,
            integration_id_lsb,
            created_time: 0,
            r#type: "KAFKA".to_owned(),
            name: "k".to_owned(),
            enabled: true,
            configuration: "{}".to_owned(),
            additional_info: None,
            sealed: None,
        }),
        r#type: "CHECK_CONNECTION".to_owned(),
        timestamp: 1_700_000_000_000,
        deadline: 1_700_000_020_000,
    };
    check(
        i::DownlinkIntegrationMsgProto { integration_msg: None, validation_request_msg: Some(request) },
        "12620888b3aaddcbb9b7f7ff011080a28899c3a895b3771a0574626d7131222408f7ccd5a2b4c6c80810ffddf7e6bcd7eacc880122054b41464b412a016b30013a027b7d2a10434845434b5f434f4e4e454354494f4e4080d095ffbc3148a0ec96ffbc31",
    );
}

#[test]
fn replies_are_tbmqs() {
    let (id_msb, id_lsb) = IntegrationId(R).halves();
    let reply = |error: Option<&'static [u8]>| i::UplinkIntegrationNotificationMsgProto {
        integration_validation_response_msg: Some(i::IntegrationValidationResponseProto {
            id_msb,
            id_lsb,
            error: error.map(Bytes::from_static),
            ..Default::default()
        }),
    };
    check(reply(None), "0a150888b3aaddcbb9b7f7ff011080a28899c3a895b377");
    check(
        reply(Some(b"\xac\xed\x00\x05\x74\x00\x04boom")),
        "0a220888b3aaddcbb9b7f7ff011080a28899c3a895b3771a0baced0005740004626f6f6d",
    );
}

#[test]
fn uplink_records_are_tbmqs() {
    let (msb, lsb) = IntegrationId(U).halves();
    let event = i::IntegrationEventProto {
        source: i::TbEventSourceProto::Integration.into(),
        event_source_id_msb: msb,
        event_source_id_lsb: lsb,
        event: Bytes::from_static(b"\xac\xed"),
        native_event: None,
    };
    check(
        i::UplinkIntegrationMsgProto { event_proto: Some(event), service_info_proto: None },
        "0a1810f7ccd5a2b4c6c80818ffddf7e6bcd7eacc88012202aced",
    );
    let info = q::ServiceInfo {
        service_id: "ie1".to_owned(),
        service_type: Some("TBMQ_INTEGRATION_EXECUTOR".to_owned()),
        system_info: Some(q::SystemInfoProto {
            cpu_usage: Some(0),
            cpu_count: Some(8),
            memory_usage: Some(40),
            total_memory: Some(16),
            disk_usage: Some(50),
            total_disk_space: Some(100),
        }),
    };
    check(
        i::UplinkIntegrationMsgProto { event_proto: None, service_info_proto: Some(info) },
        "122e0a03696531121954424d515f494e544547524154494f4e5f4558454355544f521a0c080010081828201028323064",
    );
}

#[test]
fn a_message_is_tbmqs() {
    let publish = q::PublishMsgProto {
        client_id: "c1".to_owned(),
        packet_id: 1,
        payload: Bytes::from_static(br#"{"t":25}"#),
        retain: false,
        qos: 1,
        topic_name: "tbmq/x".to_owned(),
        user_properties: vec![q::UserPropertyProto { key: "k".to_owned(), value: "v".to_owned() }],
        mqtt_properties: Some(q::MqttPropertiesProto {
            payload_format_indicator: Some(1),
            content_type: Some("application/json".to_owned()),
            subscription_ids: vec![1, 2],
            ..Default::default()
        }),
        client_cert_cn: Some("cn".to_owned()),
    };
    let message = i::PublishIntegrationMsgProto {
        publish_msg_proto: Some(publish),
        tbmq_node: "tbmq1".to_owned(),
        timestamp: 1_742_554_969_254,
        expires_at_ms: 0,
    };
    check(
        message,
        "0a400a02633110011a087b2274223a32357d2801320674626d712f783a060a016b1201764218080112106170706c69636174696f6e2f6a736f6e2a0201024a02636e120574626d713118a6e9fac2db32",
    );
}

#[test]
fn subscription_records_are_tbmqs() {
    let subscription = q::TopicSubscriptionProto {
        topic: "tbmq/#".to_owned(),
        qos: 1,
        share_name: None,
        options: Some(q::SubscriptionOptionsProto::default()),
        subscription_id: None,
    };
    let record = q::ClientSubscriptionsProto {
        subscriptions: vec![subscription],
        source: Some(q::SubscriptionsSourceProto::Integration.into()),
    };
    check(record, "0a0c0a0674626d712f23100122001001");
    let cleared = q::ClientSubscriptionsProto {
        subscriptions: vec![],
        source: Some(q::SubscriptionsSourceProto::MqttClient.into()),
    };
    check(cleared, "1000");
}

#[test]
fn every_record_of_a_real_tbmq_is_read_and_written_back_unchanged() {
    let mut count = 0;
    for line in include_str!("../../golden/tbmq-2.3.1.jsonl").lines() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = |field: &str| record[field].as_str().unwrap().to_owned();
        let (topic, key, value) = (text("topic"), text("key"), unhex(&text("value")));
        let again = if topic.starts_with("tbmq.ie.downlink") {
            i::DownlinkIntegrationMsgProto::decode(&*value).unwrap().encode_to_vec()
        } else if topic.starts_with("tbmq.ie.uplink.notifications") {
            i::UplinkIntegrationNotificationMsgProto::decode(&*value).unwrap().encode_to_vec()
        } else if topic.starts_with("tbmq.ie.uplink") {
            i::UplinkIntegrationMsgProto::decode(&*value).unwrap().encode_to_vec()
        } else if topic.starts_with("tbmq.msg.ie") {
            i::PublishIntegrationMsgProto::decode(&*value).unwrap().encode_to_vec()
        } else {
            q::ClientSubscriptionsProto::decode(&*value).unwrap().encode_to_vec()
        };
        assert_eq!(hex(&again), hex(&value), "{line}");
        if topic.starts_with("tbmq.ie.downlink") || topic == "tbmq.ie.uplink" {
            assert_eq!(u64::from(partition::for_key(key.as_bytes(), 6)), record["partition"], "{line}");
        }
        count += 1;
    }
    assert!(count > 50, "only {count} golden records");
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        let readable = i::DownlinkIntegrationMsgProto::decode(&*bytes).is_ok();
        // Reading twice gives the same answer: decoding has no state.
        proptest::prop_assert_eq!(readable, i::DownlinkIntegrationMsgProto::decode(&*bytes).is_ok());
    }

    #[test]
    fn ids_survive_their_halves(value: u128) {
        let id = IntegrationId(Uuid::from_u128(value));
        let (msb, lsb) = id.halves();
        proptest::prop_assert_eq!(IntegrationId::from_halves(msb, lsb), id);
    }
}
