//! Names that others rely on.

use tbmq_proto::{
    ids::{IntegrationId, Kind, ServiceId, ShardId},
    topic::{Catalogue, Policy},
};

fn integration() -> IntegrationId {
    "3e3abdb2-12f9-4850-a654-50a0c8dbbed6".parse().unwrap()
}

#[test]
fn topics_have_the_names_that_the_seed_gives_them() {
    let catalogue = Catalogue::default();
    let kind: Kind = "HTTP".parse().unwrap();
    let service: ServiceId = "tbmq1".parse().unwrap();
    assert_eq!(catalogue.downlink(&kind).name, "tbmq.ie.downlink.http");
    assert_eq!(catalogue.uplink().name, "tbmq.ie.uplink");
    assert_eq!(catalogue.uplink_notifications(&service).name, "tbmq.ie.uplink.notifications.tbmq1");
    assert_eq!(catalogue.messages(integration(), 1).name, "tbmq.msg.ie.3e3abdb2-12f9-4850-a654-50a0c8dbbed6");
    assert_eq!(catalogue.downlink_group(&kind), "http-ie-downlink-consumer-group");
    assert_eq!(catalogue.messages_group(), "ie-msg-consumer-group");
}

#[test]
fn a_prefix_stands_before_every_name_and_is_taken_off_again() {
    let catalogue = Catalogue::new("test.");
    let topic = catalogue.messages(integration(), 2);
    assert_eq!(topic.name, "test.tbmq.msg.ie.3e3abdb2-12f9-4850-a654-50a0c8dbbed6");
    assert_eq!(topic.partitions, 2);
    assert_eq!(catalogue.integration_of_messages(&topic.name), Some(integration()));
    assert_eq!(Catalogue::default().integration_of_messages(&topic.name), None);
    assert_eq!(catalogue.integration_of_messages("test.tbmq.msg.ie.x"), None);
}

#[test]
fn configuration_is_compacted_within_a_day_and_messages_are_kept_for_a_week() {
    let catalogue = Catalogue::default();
    let downlink = catalogue.downlink(&"HTTP".parse().unwrap());
    assert_eq!((downlink.partitions, downlink.policy), (48, Policy::Compact));
    assert!(downlink.settings.contains(&("segment.ms", "3600000")));
    assert!(downlink.settings.contains(&("max.compaction.lag.ms", "86400000")));
    let messages = catalogue.messages(integration(), 1);
    assert_eq!(messages.policy, Policy::Delete);
    assert!(messages.settings.contains(&("retention.ms", "604800000")));
    assert!(!messages.settings.iter().any(|(key, _)| *key == "retention.bytes"));
}

#[test]
fn a_shards_downlink_key_is_the_id_and_from_the_second_on_an_index() {
    let first = ShardId::first(integration());
    let third = ShardId { integration: integration(), index: 2 };
    assert_eq!(first.downlink_key(), integration().to_string());
    assert_eq!(third.downlink_key(), format!("{}/2", integration()));
    for shard in [first, third] {
        assert_eq!(ShardId::from_downlink_key(&shard.downlink_key()), Some(shard));
    }
    for foreign in
        ["", "x", "3e3abdb2-12f9-4850-a654-50a0c8dbbed6/0", "3e3abdb2-12f9-4850-a654-50a0c8dbbed6/x"]
    {
        assert_eq!(ShardId::from_downlink_key(foreign), None, "{foreign}");
    }
}

#[test]
fn a_senseless_kind_or_service_id_is_refused_by_name() {
    for bad in ["", "http", "1X", "A-B"] {
        assert!(bad.parse::<Kind>().unwrap_err().to_string().contains(&format!("{bad:?}")));
    }
    for bad in ["", "a b", "ü"] {
        assert!(bad.parse::<ServiceId>().unwrap_err().to_string().contains(&format!("{bad:?}")));
    }
}
