//! What a client that has few rights may do.

use super::{
    tests::{
        START, after, connack, connect_packet, ended, give, goodbye, opened_with, puback, publish, pubrec,
        routed, subscription, written,
    },
    *,
};
use crate::packet::{SubAck, Subscribe, Subscription};

/// Allows topics that begin with `mine/`, at most at QoS 1, and retains nothing.
#[derive(Debug)]
struct Mine;

impl Access for Mine {
    fn may_publish(&mut self, topic: &str, qos: Qos, retain: bool) -> bool {
        topic.starts_with("mine/") && qos <= Qos::AtLeastOnce && !retain
    }

    fn grant(&mut self, filter: &str, qos: Qos) -> Option<Qos> {
        let plain = topic::parts(filter).1;
        plain.starts_with("mine/").then(|| qos.min(Qos::AtLeastOnce))
    }
}

fn mine() -> Option<Box<dyn Access>> {
    Some(Box::new(Mine))
}

fn proven() -> Proven {
    Proven { access: mine(), ..Proven::default() }
}

fn of(version: ProtocolVersion) -> Session {
    opened_with(&connect_packet(version), Limits::default(), proven()).0
}

fn lasting(will: Option<Will>) -> Connect {
    let properties = PropertiesBuilder::new().number(PropertyId::SessionExpiryInterval, 100).build();
    Connect { clean_start: false, properties, will, ..connect_packet(ProtocolVersion::V5) }
}

fn to(topic: &str, qos: Qos, packet_id: u16) -> Packet {
    Packet::Publish(Publish { topic: topic.into(), ..publish(qos, packet_id) })
}

fn will(topic: &str, delay_s: u32) -> Will {
    let properties = PropertiesBuilder::new().number(PropertyId::WillDelayInterval, delay_s).build();
    Will { qos: Qos::AtLeastOnce, retain: false, topic: topic.into(), payload: "gone".into(), properties }
}

fn regrant(session: &mut Session, access: Option<Box<dyn Access>>) -> Vec<Effect> {
    let mut out = Vec::new();
    session.regrant(access, &mut out);
    out
}

fn subscribe(session: &mut Session, filters: &[(&str, Qos)]) -> (Vec<ReasonCode>, Vec<String>) {
    let subscriptions = filters.iter().map(|(filter, qos)| Subscription::new(*filter, *qos)).collect();
    let mut out = give(session, Packet::Subscribe(Subscribe::new(9, subscriptions)));
    let Some(Effect::Send(Packet::SubAck(SubAck { reasons, .. }))) = out.pop() else { panic!("{out:?}") };
    let added = out.iter().map(|effect| match effect {
        Effect::Subscribe { filter, options, .. } => format!("{filter} {}", options.qos.bits()),
        other => panic!("{other:?}"),
    });
    (reasons, added.collect())
}

#[test]
fn a_5_0_client_is_told_of_every_publish_that_it_may_not_send_and_stays() {
    let mut session = of(ProtocolVersion::V5);
    let refused = ReasonCode::NotAuthorized;
    assert_eq!(give(&mut session, to("t", Qos::AtLeastOnce, 1)), [puback(1, refused)]);
    assert_eq!(give(&mut session, to("mine/t", Qos::ExactlyOnce, 2)), [pubrec(2, refused)]);
    let dropped = [Effect::Dropped(Dropped::NotAuthorized)];
    assert_eq!(give(&mut session, to("t", Qos::AtMostOnce, 0)), dropped);
    let retained = Publish { retain: true, topic: "mine/t".into(), ..publish(Qos::AtMostOnce, 0) };
    assert_eq!(give(&mut session, Packet::Publish(retained)), dropped);
    // What nobody may publish to is said first.
    let reserved = puback(1, ReasonCode::TopicNameInvalid);
    assert_eq!(give(&mut session, to("$SYS/x", Qos::AtLeastOnce, 1)), [reserved]);
    // The packet ids are free: these are other messages.
    for (packet_id, qos) in [(1, Qos::AtLeastOnce), (2, Qos::AtLeastOnce)] {
        match give(&mut session, to("mine/t", qos, packet_id)).as_slice() {
            [Effect::Publish { message, .. }] => assert_eq!(&*message.topic, "mine/t"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_3_x_client_is_closed_for_a_publish_that_it_may_not_send() {
    for version in [ProtocolVersion::V31, ProtocolVersion::V311] {
        for qos in [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce] {
            let mut session = of(version);
            let out = give(&mut session, to("t", qos, 1));
            assert_eq!(out, [Effect::Close(End::NotAuthorized)], "{version:?} {qos:?}");
        }
    }
}

/// [MQTT-4.6.0-2] [MQTT5-4.6.0-2]
#[test]
fn a_refusal_waits_for_what_was_published_before_it() {
    for version in [ProtocolVersion::V311, ProtocolVersion::V5] {
        let mut session = of(version);
        let number = match give(&mut session, to("mine/t", Qos::AtLeastOnce, 1)).as_slice() {
            [Effect::Publish { number: Some(number), .. }] => *number,
            other => panic!("{other:?}"),
        };
        assert_eq!(give(&mut session, to("t", Qos::AtLeastOnce, 2)), []);
        assert_eq!(routed(&mut session, number, 1), []);
        let last = if version.is_v5() {
            puback(2, ReasonCode::NotAuthorized)
        } else {
            Effect::Close(End::NotAuthorized)
        };
        let out = written(&mut session, number, Ok(()));
        assert_eq!(out, [puback(1, ReasonCode::Success), last], "{version:?}");
    }
}

/// [MQTT5-3.3.2-12]
#[test]
fn the_alias_of_a_refused_publish_is_set_and_hides_no_topic() {
    let mut session = of(ProtocolVersion::V5);
    let aliased = |topic: &str| {
        let properties = PropertiesBuilder::new().number(PropertyId::TopicAlias, 1).build();
        let topic = Text::from(topic);
        Packet::Publish(Publish { topic, properties, ..publish(Qos::AtLeastOnce, 1) })
    };
    let refused = [puback(1, ReasonCode::NotAuthorized)];
    assert_eq!(give(&mut session, aliased("t")), refused);
    assert_eq!(give(&mut session, aliased("")), refused);
    assert!(matches!(give(&mut session, aliased("mine/t")).as_slice(), [Effect::Publish { .. }]));
    match give(&mut session, aliased("")).as_slice() {
        [Effect::Publish { message, .. }] => assert_eq!(&*message.topic, "mine/t"),
        other => panic!("{other:?}"),
    }
}

/// [MQTT-3.9.3-2] [MQTT5-3.9.3-1]
#[test]
fn a_filter_is_refused_or_granted_less_as_the_client_may_have_it() {
    let asked = [
        ("mine/a", Qos::AtMostOnce),
        ("mine/b", Qos::AtLeastOnce),
        ("mine/#", Qos::ExactlyOnce),
        ("$share/g/mine/#", Qos::AtLeastOnce),
        ("$share/g/#", Qos::AtLeastOnce),
        ("#", Qos::AtMostOnce),
        ("mine/#/x", Qos::AtMostOnce),
        ("#/x", Qos::AtMostOnce),
    ];
    for version in [ProtocolVersion::V311, ProtocolVersion::V5] {
        let mut session = of(version);
        let (reasons, added) = subscribe(&mut session, &asked);
        let (refused, invalid) = (ReasonCode::NotAuthorized, ReasonCode::TopicFilterInvalid);
        let (zero, one) = (ReasonCode::Success, ReasonCode::GrantedQos1);
        assert_eq!(reasons, [zero, one, one, one, refused, refused, invalid, invalid]);
        assert_eq!(added, ["mine/a 0", "mine/b 1", "mine/# 1", "$share/g/mine/# 1"]);
        let mut bytes = BytesMut::new();
        let suback = SubAck { packet_id: 1, reasons, properties: Properties::NONE };
        encode(&Packet::SubAck(suback), version, &mut bytes);
        let (refused, invalid) = if version.is_v5() { (0x87, 0x8f) } else { (0x80, 0x80) };
        assert_eq!(bytes[bytes.len() - 8..], [0, 1, 1, 1, refused, refused, invalid, invalid]);
    }
}

#[test]
fn a_filter_that_the_client_may_not_have_takes_no_place() {
    let limits = Limits { subscriptions_max: 1, ..Limits::default() };
    let (mut session, _) = opened_with(&connect_packet(ProtocolVersion::V5), limits, proven());
    let asked = ["t", "mine/a", "t", "mine/b"].map(|filter| (filter, Qos::AtMostOnce));
    let (reasons, _) = subscribe(&mut session, &asked);
    let (refused, full) = (ReasonCode::NotAuthorized, ReasonCode::QuotaExceeded);
    assert_eq!(reasons, [refused, ReasonCode::Success, refused, full]);
    // And is not what the driver is to record.
    let packet = Packet::Subscribe(Subscribe::new(1, vec![subscription("t"), subscription("mine/a")]));
    let filters = session.filters_after(&packet).unwrap();
    assert_eq!(filters.iter().map(|(filter, _)| &**filter).collect::<Vec<_>>(), ["mine/a"]);
    let packet = Packet::Subscribe(Subscribe::new(1, vec![subscription("t")]));
    assert_eq!(session.filters_after(&packet), None);
}

/// [MQTT-3.2.2-5]
#[test]
fn a_will_that_the_client_may_not_publish_is_refused_with_its_connect() {
    for (version, code) in
        [(ProtocolVersion::V31, 5), (ProtocolVersion::V311, 5), (ProtocolVersion::V5, 0x87)]
    {
        let connect = |topic: &str| {
            let will = Will { properties: Properties::NONE, ..will(topic, 0) };
            Connect { will: Some(will), ..connect_packet(version) }
        };
        let (session, out) = opened_with(&connect("t"), Limits::default(), proven());
        let [Effect::Send(packet), Effect::Close(End::Refused)] = out.as_slice() else { panic!("{out:?}") };
        let mut bytes = BytesMut::new();
        encode(packet, version, &mut bytes);
        assert_eq!(bytes[3], code);
        assert!(session.is_closed());
        let (_, out) = opened_with(&connect("mine/t"), Limits::default(), proven());
        assert_eq!(connack(&out).reason, ReasonCode::Success);
    }
}

#[test]
fn a_will_is_judged_again_when_it_is_published() {
    let is_will = |effect: &Effect| matches!(effect, Effect::Publish { number: None, .. });
    let dropped = Effect::Dropped(Dropped::NotAuthorized);
    for delay_s in [0, 50] {
        for access in [None, mine()] {
            let is_allowed = access.is_none();
            let connect = lasting(Some(will("t", delay_s)));
            let (mut session, _) = opened_with(&connect, Limits::default(), Proven::default());
            let mut out = regrant(&mut session, access);
            out.extend(ended(&mut session, End::Network));
            session.tick(after(50_000), &mut out);
            assert_eq!(out.iter().any(is_will), is_allowed, "{out:?}");
            assert_eq!(out.contains(&dropped), !is_allowed, "{out:?}");
        }
    }
}

#[test]
fn who_has_no_rights_any_more_is_disconnected_and_leaves_no_will() {
    let dropped = Effect::Dropped(Dropped::NotAuthorized);
    let (mut session, _) = opened_with(&lasting(Some(will("mine/t", 0))), Limits::default(), proven());
    let told = goodbye(ReasonCode::NotAuthorized);
    let out = ended(&mut session, End::NotAuthorized);
    assert_eq!(out, [told.clone(), dropped.clone(), Effect::Close(End::NotAuthorized)]);
    assert!(session.is_parked());
    // Nor does a client that is away.
    let (mut session, _) =
        opened_with(&lasting(Some(will("mine/t", 50))), Limits::default(), Proven::default());
    ended(&mut session, End::Network);
    assert_eq!(ended(&mut session, End::NotAuthorized), []);
    let mut out = Vec::new();
    session.tick(after(50_000), &mut out);
    assert_eq!(out, [dropped]);
    let mut session = of(ProtocolVersion::V311);
    assert_eq!(ended(&mut session, End::NotAuthorized), [Effect::Close(End::NotAuthorized)]);
}

#[test]
fn filters_that_are_not_allowed_any_more_are_taken_away_and_others_restricted() {
    let filters = ["t", "mine/a", "$share/g/t", "mine/b"];
    let asked: Vec<_> = filters.iter().map(|filter| (*filter, Qos::ExactlyOnce)).collect();
    for is_parked in [false, true] {
        let (mut session, _) = opened_with(&lasting(None), Limits::default(), Proven::default());
        subscribe(&mut session, &asked);
        if is_parked {
            ended(&mut session, End::Network);
        }
        let out = regrant(&mut session, mine());
        let mut changes: Vec<_> = out
            .iter()
            .map(|effect| match effect {
                Effect::Unsubscribe { filter } => format!("- {filter}"),
                Effect::Restrict { filter, options } => format!("{} {filter}", options.qos.bits()),
                other => panic!("{other:?}"),
            })
            .collect();
        changes.sort();
        assert_eq!(changes, ["- $share/g/t", "- t", "1 mine/a", "1 mine/b"]);
        let mut left: Vec<_> =
            session.filters().map(|(filter, options)| (filter.to_string(), options.qos.bits())).collect();
        left.sort();
        assert_eq!(left, [("mine/a".to_owned(), 1), ("mine/b".to_owned(), 1)]);
        // Nothing changes twice, and nothing comes back by itself.
        assert_eq!(regrant(&mut session, mine()), []);
        assert_eq!(regrant(&mut session, None), []);
        assert_eq!(session.filters().len(), 2);
    }
}

#[test]
fn what_is_granted_later_holds_for_the_next_packet() {
    let mut session = of(ProtocolVersion::V5);
    assert_eq!(give(&mut session, to("t", Qos::AtLeastOnce, 1)), [puback(1, ReasonCode::NotAuthorized)]);
    assert_eq!(regrant(&mut session, None), []);
    assert!(matches!(give(&mut session, to("t", Qos::AtLeastOnce, 1)).as_slice(), [Effect::Publish { .. }]));
    assert_eq!(subscribe(&mut session, &[("#", Qos::ExactlyOnce)]).0, [ReasonCode::GrantedQos2]);
}

#[test]
fn a_session_goes_on_with_the_filters_that_its_client_may_still_have() {
    let (mut session, _) = opened_with(&lasting(None), Limits::default(), Proven::default());
    subscribe(&mut session, &[("t", Qos::AtLeastOnce), ("mine/a", Qos::AtLeastOnce)]);
    ended(&mut session, End::Network);
    let mut out = Vec::new();
    session.resume(START, Arc::default(), &lasting(None), proven(), &mut out);
    match out.as_slice() {
        [Effect::Unsubscribe { filter }, Effect::Send(Packet::ConnAck(connack))] => {
            assert_eq!((&**filter, connack.session_present), ("t", true));
        }
        other => panic!("{other:?}"),
    }
    // Who may not have its will leaves the session as it is.
    ended(&mut session, End::Network);
    out.clear();
    let connect = lasting(Some(will("t", 0)));
    session.resume(START, Arc::default(), &connect, proven(), &mut out);
    match out.as_slice() {
        [Effect::Send(Packet::ConnAck(connack)), Effect::Close(End::Refused)] => {
            assert_eq!(connack.reason, ReasonCode::NotAuthorized);
        }
        other => panic!("{other:?}"),
    }
    assert!(session.is_parked() && session.filters().len() == 1);
}

#[test]
fn a_client_that_authenticates_again_has_its_new_rights_at_once() {
    let properties = PropertiesBuilder::new().text(PropertyId::AuthenticationMethod, "m").build();
    let connect = Connect { properties, ..connect_packet(ProtocolVersion::V5) };
    let mut session = Session::new(Arc::default(), START);
    let mut out = Vec::new();
    session.connect(START, &connect, String::new, &mut out);
    session.authenticated(START, Proven::default(), &mut out);
    session.open(START, &mut out);
    subscribe(&mut session, &[("t", Qos::AtLeastOnce), ("mine/a", Qos::AtLeastOnce)]);
    let properties = PropertiesBuilder::new()
        .text(PropertyId::AuthenticationMethod, "m")
        .binary(PropertyId::AuthenticationData, b"x")
        .build();
    let auth = crate::packet::Disconnect { reason: ReasonCode::ReAuthenticate, properties };
    give(&mut session, Packet::Auth(auth));
    out.clear();
    session.authenticated(START, proven(), &mut out);
    match out.as_slice() {
        [Effect::Unsubscribe { filter }, Effect::Send(Packet::Auth(auth))] => {
            assert_eq!((&**filter, auth.reason), ("t", ReasonCode::Success));
        }
        other => panic!("{other:?}"),
    }
}
