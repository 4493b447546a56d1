//! The exchange by which a client proves who it is, before CONNACK and again later.

use proptest::prelude::*;

use super::{
    tests::{START, after, connect_packet, ended, give, give_at, goodbye, publish, subscription},
    *,
};
use crate::packet::{ConnAck, Disconnect, Subscribe};

const METHOD: &str = "SCRAM-SHA-256";

fn with_method(data: &[u8]) -> Connect {
    let properties = PropertiesBuilder::new()
        .text(PropertyId::AuthenticationMethod, METHOD)
        .binary(PropertyId::AuthenticationData, data)
        .build();
    Connect { properties, ..connect_packet(ProtocolVersion::V5) }
}

fn begun(connect: &Connect) -> Session {
    let mut session = Session::new(Arc::default(), START);
    let mut out = Vec::new();
    session.connect(START, connect, || "assigned".to_owned(), &mut out);
    assert_eq!(out, [Effect::Authenticate]);
    assert!(session.awaits_verdict() && !session.is_connected());
    session
}

fn challenged() -> Session {
    let mut session = begun(&with_method(b"first"));
    assert_eq!(
        challenge(&mut session, b"nonce"),
        [auth(ReasonCode::ContinueAuthentication, METHOD, b"nonce").into()]
    );
    assert!(!session.awaits_verdict());
    session
}

/// A client that came by the method.
fn connected() -> Session {
    let mut session = begun(&with_method(b"first"));
    authenticated(&mut session, Proven::default());
    opened(&mut session);
    assert!(session.is_connected());
    session
}

fn challenge(session: &mut Session, data: &[u8]) -> Vec<Effect> {
    let mut out = Vec::new();
    session.challenge(START, data, &mut out);
    out
}

fn authenticated(session: &mut Session, proven: Proven) -> Vec<Effect> {
    let mut out = Vec::new();
    session.authenticated(START, proven, &mut out);
    out
}

fn refused(session: &mut Session, reason: ReasonCode) -> Vec<Effect> {
    let mut out = Vec::new();
    session.not_authenticated(START, reason, &mut out);
    out
}

fn opened(session: &mut Session) -> Vec<Effect> {
    let mut out = Vec::new();
    session.open(START, &mut out);
    out
}

fn with_data(data: &'static [u8]) -> Proven {
    Proven { data: Some(Bytes::from_static(data)), ..Proven::default() }
}

fn auth(reason: ReasonCode, method: &str, data: &[u8]) -> Packet {
    let properties = PropertiesBuilder::new()
        .text(PropertyId::AuthenticationMethod, method)
        .binary(PropertyId::AuthenticationData, data)
        .build();
    Packet::Auth(Disconnect { reason, properties })
}

/// With the method, without data.
fn bare(reason: ReasonCode) -> Packet {
    let properties = PropertiesBuilder::new().text(PropertyId::AuthenticationMethod, METHOD).build();
    Packet::Auth(Disconnect { reason, properties })
}

impl From<Packet> for Effect {
    fn from(packet: Packet) -> Self {
        Self::Send(packet)
    }
}

fn connack(reason: ReasonCode) -> [Effect; 2] {
    let connack = ConnAck { session_present: false, reason, properties: Properties::NONE };
    [Effect::Send(Packet::ConnAck(connack)), Effect::Close(End::Refused)]
}

#[test]
fn nothing_is_admitted_before_the_client_is_known() {
    for version in [ProtocolVersion::V31, ProtocolVersion::V311, ProtocolVersion::V5] {
        let mut session = begun(&connect_packet(version));
        assert_eq!(opened(&mut session), []);
        assert_eq!(give(&mut session, Packet::PingReq), []);
        assert_eq!(authenticated(&mut session, Proven::default()), [Effect::Admit { resume: false }]);
        assert_eq!(authenticated(&mut session, Proven::default()), []);
        match opened(&mut session).as_slice() {
            [Effect::Send(Packet::ConnAck(connack))] => {
                assert_eq!(connack.reason, ReasonCode::Success);
                assert_eq!(connack.properties.get(PropertyId::AuthenticationMethod), None);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// [MQTT-3.2.2-5] [MQTT5-3.2.2-7]
#[test]
fn who_is_not_known_is_told_by_the_code_that_its_version_has() {
    for (reason, code) in [
        (ReasonCode::NotAuthorized, 5),
        (ReasonCode::Banned, 5),
        (ReasonCode::BadUserNameOrPassword, 4),
        (ReasonCode::QuotaExceeded, 3),
        (ReasonCode::ServerUnavailable, 3),
    ] {
        for version in [ProtocolVersion::V31, ProtocolVersion::V311, ProtocolVersion::V5] {
            let mut session = begun(&connect_packet(version));
            let out = refused(&mut session, reason);
            assert_eq!(out, connack(reason));
            let Effect::Send(packet) = &out[0] else { panic!("{out:?}") };
            let mut bytes = BytesMut::new();
            encode(packet, version, &mut bytes);
            let expected = if version.is_v5() { reason.byte() } else { code };
            assert_eq!(bytes[3], expected, "{version:?} {reason:?}");
            assert!(session.is_closed() && !session.is_parked());
            assert_eq!(refused(&mut session, reason), []);
        }
    }
}

/// [MQTT5-4.12.0-2] [MQTT5-4.12.0-3] [MQTT5-4.12.0-5]
#[test]
fn a_client_is_challenged_as_often_as_it_takes_and_then_told_what_proves_the_server() {
    let mut session = challenged();
    for _ in 0..2 {
        let answer = give(&mut session, auth(ReasonCode::ContinueAuthentication, METHOD, b"proof"));
        assert_eq!(answer, [Effect::Prove { data: "proof".into(), is_again: false }]);
        assert!(session.awaits_verdict());
        // What comes meanwhile is the driver's mistake.
        assert_eq!(give(&mut session, auth(ReasonCode::ContinueAuthentication, METHOD, b"proof")), []);
        assert_eq!(challenge(&mut session, b"more").len(), 1);
    }
    give(&mut session, auth(ReasonCode::ContinueAuthentication, METHOD, b"proof"));
    assert_eq!(authenticated(&mut session, with_data(b"v=server")), [Effect::Admit { resume: false }]);
    match opened(&mut session).as_slice() {
        [Effect::Send(Packet::ConnAck(connack))] => {
            let properties = &connack.properties;
            assert_eq!(properties.text(PropertyId::AuthenticationMethod).as_deref(), Some(METHOD));
            assert_eq!(properties.binary(PropertyId::AuthenticationData).as_deref(), Some(&b"v=server"[..]));
        }
        other => panic!("{other:?}"),
    }
}

/// [MQTT5-3.1.2-30] [MQTT5-4.12.0-4]
#[test]
fn a_client_that_answers_a_challenge_with_anything_else_is_refused() {
    let mut unnamed = PropertiesBuilder::new();
    unnamed = unnamed.user("a", "b");
    let unnamed = Disconnect { reason: ReasonCode::ContinueAuthentication, properties: unnamed.build() };
    for (packet, reason) in [
        (
            auth(ReasonCode::ContinueAuthentication, "SCRAM-SHA-512", b"x"),
            ReasonCode::BadAuthenticationMethod,
        ),
        (auth(ReasonCode::ContinueAuthentication, METHOD, b""), ReasonCode::UnspecifiedError),
        (bare(ReasonCode::ContinueAuthentication), ReasonCode::UnspecifiedError),
        (auth(ReasonCode::ReAuthenticate, METHOD, b"x"), ReasonCode::UnspecifiedError),
        (auth(ReasonCode::Success, METHOD, b"x"), ReasonCode::UnspecifiedError),
        (Packet::Auth(unnamed), ReasonCode::ProtocolError),
        (Packet::PingReq, ReasonCode::ProtocolError),
        (Packet::Publish(publish(Qos::AtMostOnce, 0)), ReasonCode::ProtocolError),
        (Packet::Subscribe(Subscribe::new(1, vec![subscription("t")])), ReasonCode::ProtocolError),
        (Packet::Connect(Box::new(with_method(b"first"))), ReasonCode::ProtocolError),
    ] {
        let mut session = challenged();
        assert_eq!(give(&mut session, packet.clone()), connack(reason), "{packet:?}");
        assert!(session.is_closed());
    }
    let mut session = challenged();
    assert_eq!(
        give(&mut session, Packet::Disconnect(Disconnect::new(ReasonCode::Success))),
        [Effect::Close(End::Client)]
    );
}

/// [MQTT5-3.2.2-8]
#[test]
fn what_is_malformed_before_connack_is_told_by_a_code_that_connack_has() {
    for (reason, told) in [
        (ReasonCode::TopicAliasInvalid, ReasonCode::ProtocolError),
        (ReasonCode::MalformedPacket, ReasonCode::MalformedPacket),
        (ReasonCode::PacketTooLarge, ReasonCode::PacketTooLarge),
    ] {
        let mut session = challenged();
        let error = DecodeError { reason, text: "damaged", version: Some(ProtocolVersion::V5) };
        let mut out = Vec::new();
        session.malformed(START, error, &mut out);
        let ConnAck { reason, .. } = match &out[..] {
            [Effect::Send(Packet::ConnAck(connack)), Effect::Close(End::Protocol)] => connack,
            other => panic!("{other:?}"),
        };
        assert_eq!(*reason, told);
    }
}

#[test]
fn a_client_that_never_answers_is_gone_when_its_time_to_connect_is_over() {
    let mut session = challenged();
    assert_eq!(session.deadline_ms(), Some(after(10_000).monotonic_ms));
    let mut out = Vec::new();
    session.tick(after(9_999), &mut out);
    assert_eq!(out, []);
    session.tick(after(10_000), &mut out);
    assert_eq!(out, [Effect::Close(End::ConnectTimeout)]);
    assert_eq!(give(&mut session, auth(ReasonCode::ContinueAuthentication, METHOD, b"late")), []);
    let mut session = begun(&connect_packet(ProtocolVersion::V311));
    session.tick(after(10_000), &mut out);
    assert_eq!(authenticated(&mut session, Proven::default()), []);
    assert_eq!(refused(&mut session, ReasonCode::NotAuthorized), []);
}

/// [MQTT5-3.1.2-24]
#[test]
fn no_challenge_and_no_proof_is_longer_than_the_client_takes() {
    let small = |bytes: u32| {
        let properties = PropertiesBuilder::new()
            .text(PropertyId::AuthenticationMethod, METHOD)
            .number(PropertyId::MaximumPacketSize, bytes)
            .build();
        Connect { properties, ..connect_packet(ProtocolVersion::V5) }
    };
    let mut session = begun(&small(100));
    assert_eq!(challenge(&mut session, &[b'x'; 100]), connack(ReasonCode::PacketTooLarge));
    let mut session = begun(&small(60));
    let data: &[u8] = &[b'x'; 100];
    assert_eq!(authenticated(&mut session, with_data(data)), connack(ReasonCode::PacketTooLarge));
    // Other properties give way.
    let mut session = begun(&small(40));
    authenticated(&mut session, with_data(b"v=x"));
    match opened(&mut session).as_slice() {
        [Effect::Send(packet @ Packet::ConnAck(connack))] => {
            assert!(encoded_length(packet, ProtocolVersion::V5) <= 40);
            assert_eq!(connack.properties.number(PropertyId::TopicAliasMaximum), None);
            assert!(connack.properties.binary(PropertyId::AuthenticationData).is_some());
        }
        other => panic!("{other:?}"),
    }
    let again = auth(ReasonCode::ReAuthenticate, METHOD, b"first");
    give(&mut session, again);
    assert_eq!(
        authenticated(&mut session, with_data(data)),
        [goodbye(ReasonCode::PacketTooLarge), Effect::Close(End::Protocol)]
    );
}

/// [MQTT5-4.12.1-1]
#[test]
fn a_client_authenticates_again_while_it_goes_on_with_all_else() {
    let mut session = connected();
    for _ in 0..2 {
        let begins = give(&mut session, auth(ReasonCode::ReAuthenticate, METHOD, b"first"));
        assert_eq!(begins, [Effect::Prove { data: "first".into(), is_again: true }]);
        let expected = auth(ReasonCode::ContinueAuthentication, METHOD, b"nonce");
        assert_eq!(challenge(&mut session, b"nonce"), [Effect::Send(expected)]);
        assert_eq!(give(&mut session, Packet::PingReq), [Effect::Send(Packet::PingResp)]);
        let goes_on = give(&mut session, auth(ReasonCode::ContinueAuthentication, METHOD, b"proof"));
        assert_eq!(goes_on, [Effect::Prove { data: "proof".into(), is_again: false }]);
        let expected = auth(ReasonCode::Success, METHOD, b"v=server");
        assert_eq!(authenticated(&mut session, with_data(b"v=server")), [Effect::Send(expected)]);
    }
    assert!(session.is_connected());
}

/// [MQTT5-4.12.0-5] [MQTT5-4.12.0-6] [MQTT5-4.12.0-7] [MQTT5-4.12.1-2]
#[test]
fn a_client_that_fails_to_authenticate_again_or_does_it_wrongly_is_disconnected() {
    let (refused_end, wrong) =
        ((ReasonCode::NotAuthorized, End::NotAuthorized), (ReasonCode::ProtocolError, End::Protocol));
    for (packet, (reason, end)) in [
        (auth(ReasonCode::ReAuthenticate, "SCRAM-SHA-512", b"x"), refused_end),
        (auth(ReasonCode::ContinueAuthentication, "SCRAM-SHA-512", b"x"), refused_end),
        (auth(ReasonCode::ReAuthenticate, METHOD, b""), refused_end),
        (bare(ReasonCode::ReAuthenticate), refused_end),
        // Out of turn.
        (auth(ReasonCode::ContinueAuthentication, METHOD, b"x"), wrong),
        (auth(ReasonCode::Success, METHOD, b"x"), wrong),
        (Packet::Auth(Disconnect::new(ReasonCode::ReAuthenticate)), wrong),
    ] {
        let mut session = connected();
        let out = give(&mut session, packet.clone());
        assert_eq!(out, [goodbye(reason), Effect::Close(end)], "{packet:?}");
    }
    let mut session = connected();
    give(&mut session, auth(ReasonCode::ReAuthenticate, METHOD, b"first"));
    challenge(&mut session, b"nonce");
    assert_eq!(
        give(&mut session, auth(ReasonCode::ReAuthenticate, METHOD, b"first")),
        [goodbye(ReasonCode::ProtocolError), Effect::Close(End::Protocol)]
    );
    let mut session = connected();
    give(&mut session, auth(ReasonCode::ReAuthenticate, METHOD, b"first"));
    // Whatever the driver says, this is what it is.
    assert_eq!(
        refused(&mut session, ReasonCode::BadAuthenticationMethod),
        [goodbye(ReasonCode::NotAuthorized), Effect::Close(End::NotAuthorized)]
    );
}

#[test]
fn a_client_is_disconnected_when_its_login_is_over() {
    for version in [ProtocolVersion::V311, ProtocolVersion::V5] {
        let mut session = begun(&connect_packet(version));
        let until_ms = Some(START.epoch_ms + 5000);
        authenticated(&mut session, Proven { until_ms, ..Proven::default() });
        opened(&mut session);
        assert_eq!(session.deadline_ms(), Some(after(5000).monotonic_ms));
        let mut out = Vec::new();
        session.tick(after(4999), &mut out);
        assert_eq!(out, []);
        session.tick(after(5000), &mut out);
        let told = version.is_v5().then(|| goodbye(ReasonCode::NotAuthorized));
        assert_eq!(out, told.into_iter().chain([Effect::Close(End::NotAuthorized)]).collect::<Vec<_>>());
    }
    // What is over already is over at once, and whoever has a keep alive is watched for both.
    let mut session = begun(&Connect { keep_alive: 2, ..with_method(b"x") });
    authenticated(&mut session, Proven { until_ms: Some(1), ..Proven::default() });
    opened(&mut session);
    assert_eq!(session.deadline_ms(), Some(START.monotonic_ms));
    // Who authenticates again in time stays.
    give(&mut session, auth(ReasonCode::ReAuthenticate, METHOD, b"first"));
    authenticated(&mut session, Proven::default());
    assert_eq!(session.deadline_ms(), Some(after(3000).monotonic_ms));
}

#[test]
fn the_end_of_a_login_may_come_to_be_another() {
    for (before, later) in [(None, Some(7000)), (Some(9000), Some(7000)), (Some(5000), None)] {
        let at = |ms: Option<i64>| ms.map(|ms| START.epoch_ms + ms);
        let mut session = begun(&connect_packet(ProtocolVersion::V5));
        authenticated(&mut session, Proven { until_ms: at(before), ..Proven::default() });
        opened(&mut session);
        session.expire_login(START, at(later));
        let expected = later.map(|ms| after(ms.unsigned_abs()).monotonic_ms);
        assert_eq!(session.deadline_ms(), expected);
        let mut out = Vec::new();
        session.tick(after(7000), &mut out);
        assert_eq!(out.is_empty(), later.is_none(), "{out:?}");
    }
}

#[test]
fn an_exchange_ends_with_its_connection() {
    let connect = with_method(b"first");
    let mut properties = PropertiesBuilder::new().number(PropertyId::SessionExpiryInterval, NEVER_S);
    for (id, value) in connect.properties.iter() {
        properties = properties.copy(id, &value);
    }
    let connect = Connect { clean_start: false, properties: properties.build(), ..connect };
    let mut session = begun(&connect);
    authenticated(&mut session, Proven::default());
    opened(&mut session);
    give(&mut session, auth(ReasonCode::ReAuthenticate, METHOD, b"first"));
    ended(&mut session, End::Network);
    assert!(session.is_parked() && !session.awaits_verdict());
    assert_eq!(authenticated(&mut session, with_data(b"late")), []);
    let mut out = Vec::new();
    session.resume(START, Arc::default(), &connect, with_data(b"v=2"), &mut out);
    match out.as_slice() {
        [Effect::Send(Packet::ConnAck(connack))] => {
            assert!(connack.session_present);
            let data = connack.properties.binary(PropertyId::AuthenticationData);
            assert_eq!(data.as_deref(), Some(&b"v=2"[..]));
        }
        other => panic!("{other:?}"),
    }
    let out = give(&mut session, auth(ReasonCode::ContinueAuthentication, METHOD, b"proof"));
    assert_eq!(out[0], goodbye(ReasonCode::ProtocolError));
}

#[derive(Clone, Debug)]
enum Step {
    Client(Packet),
    Challenge,
    Authenticated,
    Refused,
    Open,
    Tick(u64),
    Cut,
}

fn step() -> impl Strategy<Value = Step> {
    let reason = prop::sample::select(vec![
        ReasonCode::Success,
        ReasonCode::ContinueAuthentication,
        ReasonCode::ContinueAuthentication,
        ReasonCode::ReAuthenticate,
        ReasonCode::ReAuthenticate,
    ]);
    let method = prop::sample::select(vec![METHOD, METHOD, METHOD, METHOD, "other"]);
    let data = prop::sample::select(vec![&b"x"[..], b"x", b"x", b""]);
    prop_oneof![
        6 => (reason, method, data).prop_map(|(reason, method, data)| Step::Client(auth(reason, method, data))),
        1 => Just(Step::Client(Packet::PingReq)),
        1 => Just(Step::Client(Packet::Publish(publish(Qos::AtMostOnce, 0)))),
        1 => Just(Step::Client(Packet::Disconnect(Disconnect::new(ReasonCode::Success)))),
        4 => Just(Step::Challenge),
        4 => Just(Step::Authenticated),
        1 => Just(Step::Refused),
        3 => Just(Step::Open),
        1 => (0..6000_u64).prop_map(Step::Tick),
        1 => Just(Step::Cut),
    ]
}

/// What the outside has seen of a session.
#[derive(Debug, Default)]
struct Seen {
    is_judged: bool,
    is_admitted: bool,
    is_told: bool,
    is_over: bool,
    asked: usize,
}

impl Seen {
    fn see(&mut self, session: &Session, effect: &Effect) {
        assert!(!self.is_over, "{effect:?} after the end");
        match effect {
            Effect::Authenticate | Effect::Prove { .. } => {
                assert!(session.awaits_verdict());
                self.asked += 1;
            }
            Effect::Admit { .. } => {
                assert!(self.is_judged && !self.is_admitted, "admitted without a verdict");
                self.is_admitted = true;
            }
            Effect::Send(Packet::ConnAck(connack)) => {
                assert!(!self.is_told, "told twice");
                assert!(self.is_admitted || connack.reason.is_error(), "welcome without admission");
                self.is_told = true;
            }
            Effect::Send(Packet::Auth(auth)) => {
                let is_success = auth.reason == ReasonCode::Success;
                assert!(self.is_told || !is_success, "AUTH 0x00 before CONNACK");
            }
            Effect::Send(_) | Effect::Publish { .. } => {
                assert!(self.is_admitted && self.is_told, "{effect:?} before CONNACK");
            }
            Effect::Close(_) => self.is_over = true,
            other => panic!("{other:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn in_whatever_order_things_come_nobody_is_served_who_was_not_let_in(
        by_method in any::<bool>(),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let connect = if by_method { with_method(b"first") } else { connect_packet(ProtocolVersion::V5) };
        let mut session = Session::new(Arc::default(), START);
        let (mut out, mut seen, mut now) = (Vec::new(), Seen::default(), START);
        session.connect(now, &connect, String::new, &mut out);
        for step in steps {
            let was_judging = session.awaits_verdict();
            for effect in out.drain(..) {
                seen.see(&session, &effect);
            }
            match step {
                // A driver reads nothing while it judges.
                Step::Client(_) if was_judging => {}
                Step::Client(packet) => out = give_at(&mut session, now, packet),
                Step::Challenge => session.challenge(now, b"nonce", &mut out),
                Step::Authenticated => {
                    seen.is_judged |= was_judging;
                    session.authenticated(now, with_data(b"v=server"), &mut out);
                }
                Step::Refused => session.not_authenticated(now, ReasonCode::NotAuthorized, &mut out),
                Step::Open => session.open(now, &mut out),
                Step::Tick(ms) => {
                    now.monotonic_ms += ms;
                    session.tick(now, &mut out);
                }
                Step::Cut => session.end(now, End::Network, &mut out),
            }
            let is_admitted = matches!(out.first(), Some(Effect::Admit { .. }));
            prop_assert!(was_judging || !is_admitted);
        }
        for effect in out.drain(..) {
            if !seen.is_over {
                seen.see(&session, &effect);
            }
        }
        prop_assert_eq!(seen.is_over, session.is_closed());
    }
}
