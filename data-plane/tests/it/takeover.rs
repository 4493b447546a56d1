//! Whose client id it is, where users are kept from taking over each other's (`TBMQ_MQTT_TAKEOVER_BY_OTHER_USERS`).

use tbmq_mqtt::{
    codec::property::{PropertiesBuilder, PropertyId},
    packet::{Connect, Packet, ProtocolVersion, Qos, ReasonCode},
};

use crate::{
    client::{Client, VERSIONS, connect_packet, text, will},
    plane::until,
    restart::{ENDINGS, Process, Site, publisher},
};

fn of(user: Option<&str>, version: ProtocolVersion) -> Connect {
    let mut connect =
        Connect { username: user.map(Into::into), clean_start: false, ..connect_packet(version, "c") };
    if version == ProtocolVersion::V5 {
        connect.properties = PropertiesBuilder::new().number(PropertyId::SessionExpiryInterval, 1000).build();
    }
    connect
}

fn guarded() -> Site {
    let mut site = Site::new();
    site.config.mqtt.takeover_by_other_users = false;
    site
}

/// Asserts that nobody else gets the client id, in no version and however it asks.
async fn is_anothers(process: &Process) {
    for version in VERSIONS {
        for (user, clean_start) in [(Some("bob"), false), (Some("bob"), true), (None, false), (None, true)] {
            let connect = Connect { clean_start, ..of(user, version) };
            let mut client = Client::open(process.address, version).await;
            client.send(Packet::Connect(Box::new(connect))).await;
            match client.next().await {
                Some(Packet::ConnAck(connack)) => {
                    assert_eq!((connack.reason, connack.session_present), (ReasonCode::NotAuthorized, false));
                }
                other => panic!("no CONNACK: {other:?}"),
            }
            assert_eq!(client.next().await, None);
        }
    }
}

#[tokio::test]
async fn another_user_neither_takes_over_a_client_id_nor_its_session_nor_after_a_restart() {
    for ending in ENDINGS {
        let site = guarded();
        let process = site.start().await;
        let mut watcher = Client::v5(process.address, "watcher").await;
        watcher.subscribed("wills", Qos::AtMostOnce).await;
        let first = Connect { will: Some(will("wills", "gone")), ..of(Some("alice"), ProtocolVersion::V5) };
        let (mut client, _) = Client::with(process.address, first).await;
        client.subscribed("t", Qos::AtLeastOnce).await;
        is_anothers(&process).await;
        client.hears_nothing().await;
        watcher.hears_nothing().await;
        client.leave().await;
        until(|| process.metric("tbmq_mqtt_sessions_parked") == 1).await;
        is_anothers(&process).await;
        let process = site.restart(process, ending).await;
        is_anothers(&process).await;
        let mut sender = publisher(&process).await;
        sender.publish("t", Qos::AtLeastOnce, 1, "kept").await;
        assert_eq!(sender.puback().await.reason, ReasonCode::Success);
        let (mut client, connack) =
            Client::with(process.address, of(Some("alice"), ProtocolVersion::V311)).await;
        assert!(connack.session_present);
        assert_eq!(text(&client.message().await), "kept");
    }
}

/// [MQTT-3.1.4-2] [MQTT5-3.1.4-3]
#[tokio::test]
async fn the_same_user_takes_its_session_over_and_so_does_everyone_unless_that_is_set() {
    let process = guarded().start().await;
    let (mut first, _) = Client::with(process.address, of(Some("alice"), ProtocolVersion::V5)).await;
    let (_second, connack) = Client::with(process.address, of(Some("alice"), ProtocolVersion::V311)).await;
    assert!(connack.session_present);
    first.is_told(ReasonCode::SessionTakenOver).await;

    let process = Site::new().start().await;
    let (mut first, _) = Client::with(process.address, of(Some("alice"), ProtocolVersion::V5)).await;
    let (_second, connack) = Client::with(process.address, of(Some("bob"), ProtocolVersion::V311)).await;
    assert!(connack.session_present);
    first.is_told(ReasonCode::SessionTakenOver).await;
}
