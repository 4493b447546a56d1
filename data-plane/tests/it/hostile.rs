//! Clients that mean harm: each is bounded by what its row of `HOSTILE.md` says, and disturbs nobody.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use tbmq_data_plane::{Config, SETTINGS};
use tbmq_mqtt::{
    codec::{
        self,
        property::{Properties, PropertiesBuilder, PropertyId},
    },
    packet::{Packet, ProtocolVersion, Publish, Qos, ReasonCode, Subscribe},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    bus::{Mode, TestBus},
    bystanders::Bystanders,
    client::{Client, connect_packet, number, publish, subscription, text},
    plane::{Plane, until},
    tls::Files,
    web_socket,
};

const TABLE: &str = include_str!("../../HOSTILE.md");

/// Hostile clients of a kind at the same time.
const MANY: u64 = 20;

const HUNDRED: &str =
    "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789";

/// What the kernel may hold of one connection on its way: the greatest buffers of both sides, about.
const SOCKET_BYTES_MAX: u64 = 16 << 20;

/// A line of the table.
struct Row {
    /// Environment names of settings, and their defaults.
    settings: Vec<(&'static str, &'static str)>,
    metrics: Vec<&'static str>,
    /// `module::name`.
    test: &'static str,
}

/// What stands between backquotes.
fn quoted(text: &'static str) -> Vec<&'static str> {
    text.split('`').skip(1).step_by(2).collect()
}

fn rows() -> Vec<Row> {
    let lines = TABLE.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| client |"));
    let rows = lines.map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [_, _, settings, metrics, test] = cells[..] else { panic!("{line}") };
        let defaults = settings.split(['(', ')']).skip(1).step_by(2);
        Row {
            settings: quoted(settings).into_iter().zip(defaults).collect(),
            metrics: quoted(metrics),
            test: quoted(test)[0],
        }
    });
    rows.collect()
}

/// A plane with the settings of a row, and clients that use it all the time.
struct Case {
    plane: Arc<Plane>,
    metrics: Vec<&'static str>,
    others: Bystanders,
}

impl Case {
    /// The case of a test, with these values for the settings of its row.
    async fn start(test: &str, values: &[&str]) -> Self {
        Self::with(test, values, |_| ()).await
    }

    async fn with(test: &str, values: &[&str], change: impl FnOnce(&mut Config)) -> Self {
        let all = rows();
        let row =
            all.into_iter().find(|row| row.test == format!("hostile::{test}")).expect("a row of the table");
        assert_eq!(row.settings.len(), values.len(), "a value for each setting");
        let names = row.settings.iter().map(|(name, _)| *name);
        let base = [
            ("LISTENER_TCP_BIND_ADDRESS", "127.0.0.1"),
            ("LISTENER_TCP_BIND_PORT", "0"),
            ("LISTENER_WS_ENABLED", "false"),
        ];
        let environment = base.into_iter().chain(names.zip(values.iter().copied()));
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut config: Config = tbmq_service::config::load_from(&[SETTINGS], None, environment).unwrap();
        change(&mut config);
        let plane = Arc::new(Plane::with(TestBus::new(), config).await);
        let others = Bystanders::start(&plane).await;
        Self { plane, metrics: row.metrics, others }
    }

    /// The value of the row's metric at this index.
    fn seen(&self, index: usize) -> u64 {
        self.plane.metric(self.metrics[index])
    }

    /// Asserts that the others lose nothing, also now.
    async fn ends(self) {
        self.others.end().await;
    }
}

fn encoded(packets: impl IntoIterator<Item = Packet>, version: ProtocolVersion) -> BytesMut {
    let mut bytes = BytesMut::new();
    for packet in packets {
        codec::encode(&packet, version, &mut bytes);
    }
    bytes
}

/// Asserts that the server closes without a word.
async fn is_cut(mut stream: TcpStream) {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer));
    // Or resets, where bytes of ours were not read.
    read.await.expect("closed in time").ok();
    assert!(answer.is_empty(), "{answer:?}");
}

/// Publishes at QoS 1 until a condition holds, and returns how many there were. Each is acknowledged first.
async fn publishes_until(plane: &Plane, topic: &str, payload: Bytes, is_over: impl Fn() -> bool) -> u64 {
    let mut publisher = Client::v5(plane.address, "publisher").await;
    let mut count = 0;
    while !is_over() {
        let packet = Publish { payload: payload.clone(), ..publish(topic, Qos::AtLeastOnce, 1, "") };
        publisher.send(Packet::Publish(packet)).await;
        assert!(!publisher.puback().await.reason.is_error());
        count += 1;
        assert!(count < 100_000, "nothing bounds it");
    }
    count
}

/// Publishes at this quality with packet ids from 1.
fn publishes(topic: &str, qos: Qos, count: u16) -> impl Iterator<Item = Packet> {
    (1..=count).map(move |id| Packet::Publish(publish(topic, qos, id, "")))
}

#[test]
fn the_table_names_settings_with_their_defaults_and_tests_that_are_there() {
    let defaults = serde_json::to_value(Config::default()).unwrap();
    let modules = BTreeMap::from([
        ("fuzz", include_str!("fuzz.rs")),
        ("hostile", include_str!("hostile.rs")),
        ("limits", include_str!("limits.rs")),
        ("persistent", include_str!("persistent.rs")),
        ("proxy", include_str!("proxy.rs")),
        ("retained", include_str!("retained.rs")),
        ("web_socket", include_str!("web_socket.rs")),
    ]);
    let rows = rows();
    assert!(rows.len() >= 20, "{} rows", rows.len());
    for Row { settings, metrics, test } in rows {
        assert!(!settings.is_empty() && !metrics.is_empty(), "{test} has no limit with a name");
        for (name, default) in settings {
            let setting = SETTINGS.iter().find(|setting| setting.env == name).expect(name);
            let value = setting.key.split('.').fold(&defaults, |tree, key| &tree[key]);
            let value = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
            assert_eq!(value, default, "the default of {name}");
        }
        let (module, name) = test.split_once("::").unwrap();
        let source = modules[module];
        let begin = source.find(&format!("fn {name}(")).expect(test);
        let body = &source[begin..];
        let body = &body[..body.find("\n}").unwrap()];
        if module == "hostile" {
            assert!(body.contains(&format!("\"{name}\"")), "{test} does not read its row");
            for (index, metric) in metrics.iter().enumerate() {
                assert!(body.contains(&format!("seen({index})")), "{test} does not look at {metric}");
            }
        } else if module != "fuzz" {
            for metric in metrics {
                assert!(source.contains(&metric.replace('"', "\\\"")), "{test} does not look at {metric}");
            }
        }
    }
}

#[tokio::test]
async fn no_connect() {
    let case = Case::start("no_connect", &["300ms"]).await;
    let begun = Instant::now();
    let mut silent = Vec::new();
    for _ in 0..MANY {
        silent.push(TcpStream::connect(case.plane.address).await.unwrap());
    }
    for stream in silent {
        is_cut(stream).await;
    }
    assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
    assert_eq!(case.seen(0), MANY);
    case.ends().await;
}

#[tokio::test]
async fn half_a_connect() {
    let case = Case::start("half_a_connect", &["300ms"]).await;
    let mut halves = Vec::new();
    for _ in 0..MANY {
        let mut stream = TcpStream::connect(case.plane.address).await.unwrap();
        stream.write_all(b"\x10\x0c\x00\x04MQTT\x04").await.unwrap();
        halves.push(stream);
    }
    for stream in halves {
        is_cut(stream).await;
    }
    assert_eq!(case.seen(0), MANY);
    case.ends().await;
}

#[tokio::test]
async fn a_byte_now_and_then() {
    let case = Case::start("a_byte_now_and_then", &["400ms", "1", "100"]).await;
    // As slowly as 1 byte a minute is to 10 s, or 600 s: most of a packet is to come when the time is over.
    let connect = encoded(
        [Packet::Connect(Box::new(connect_packet(ProtocolVersion::V5, "drop by drop")))],
        ProtocolVersion::V5,
    );
    let begun = Instant::now();
    let stream = drip(TcpStream::connect(case.plane.address).await.unwrap(), &connect).await;
    assert!(begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());
    is_cut(stream).await;
    assert_eq!(case.seen(0), 1);
    let mut wanted = connect_packet(ProtocolVersion::V5, "drop by drop");
    wanted.keep_alive = u16::MAX;
    let (client, connack) = Client::with(case.plane.address, wanted).await;
    assert_eq!(number(&connack, PropertyId::ServerKeepAlive), Some(1));
    let begun = Instant::now();
    let packet = encoded([Packet::Publish(publish("a", Qos::AtMostOnce, 0, HUNDRED))], ProtocolVersion::V5);
    let mut client = Client::over(drip(client.stream, &packet).await, ProtocolVersion::V5);
    client.is_told(ReasonCode::KeepAliveTimeout).await;
    assert!(begun.elapsed() >= Duration::from_millis(1400), "{:?}", begun.elapsed());
    assert_eq!(case.seen(1), 1);
    case.ends().await;
}

/// Writes a byte every 50 ms until the server has something to say.
async fn drip(mut stream: TcpStream, bytes: &[u8]) -> TcpStream {
    for byte in bytes {
        stream.write_all(&[*byte]).await.unwrap();
        if tokio::time::timeout(Duration::from_millis(50), stream.readable()).await.is_ok() {
            return stream;
        }
    }
    panic!("a whole packet was written");
}

#[tokio::test]
async fn a_packet_of_268_mb() {
    let case = Case::start("a_packet_of_268_mb", &["65536"]).await;
    let claim = |first: u8| [first, 0xff, 0xff, 0xff, 0x7f];
    let mut stream = TcpStream::connect(case.plane.address).await.unwrap();
    stream.write_all(&claim(0x10)).await.unwrap();
    is_cut(stream).await;
    let mut expected = 1;
    for first in [0x30_u8, 0x32, 0x82] {
        let mut old = Client::connected(case.plane.address, ProtocolVersion::V311, "old").await;
        old.stream.write_all(&claim(first)).await.unwrap();
        assert_eq!(old.next().await, None);
        let mut new = Client::v5(case.plane.address, "new").await;
        new.stream.write_all(&claim(first)).await.unwrap();
        new.is_told(ReasonCode::PacketTooLarge).await;
        expected += 2;
        assert_eq!(case.seen(0), expected);
    }
    // So is one that is just too large: what is announced allows for a header of 5 bytes, and this one has 4.
    let mut client = Client::v5(case.plane.address, "new").await;
    client.stream.write_all(&[0x30, 0x82, 0x80, 0x04]).await.unwrap();
    client.is_told(ReasonCode::PacketTooLarge).await;
    assert_eq!(case.seen(0), expected + 1);
    case.ends().await;
}

#[tokio::test]
async fn more_in_flight_than_announced() {
    let case = Case::start("more_in_flight_than_announced", &["50"]).await;
    case.plane.integration(1, &["kept"]).await;
    case.plane.bus.control.set(Mode::Keep);
    // What the bus keeps is not acknowledged; and of what is, at QoS 2, nothing is released.
    for (topic, qos, cut) in [("kept", Qos::AtLeastOnce, 1), ("free", Qos::ExactlyOnce, 2)] {
        let mut client = Client::v5(case.plane.address, "greedy").await;
        let bytes = encoded(publishes(topic, qos, u16::MAX), ProtocolVersion::V5);
        // The server may close before all is written.
        client.stream.write_all(&bytes).await.ok();
        let mut recorded = 0;
        let last = loop {
            match client.next().await {
                Some(Packet::PubRec(_)) => recorded += 1,
                other => break other,
            }
        };
        let reason = match last {
            Some(Packet::Disconnect(goodbye)) => goodbye.reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(reason, ReasonCode::ReceiveMaximumExceeded);
        assert_eq!(case.seen(0), cut);
        assert_eq!(recorded, if qos == Qos::ExactlyOnce { 50 } else { 0 });
        assert_eq!(case.plane.bus.control.kept(), 50, "of the first client");
    }
    case.ends().await;
}

#[tokio::test]
async fn everything_in_flight_at_once() {
    let case = Case::start("everything_in_flight_at_once", &["50"]).await;
    case.plane.integration(1, &["kept"]).await;
    case.plane.bus.control.set(Mode::Keep);
    let client = Client::connected(case.plane.address, ProtocolVersion::V311, "greedy").await;
    let (mut reading, mut writing) = client.stream.into_split();
    let bytes = encoded(publishes("kept", Qos::AtLeastOnce, u16::MAX), ProtocolVersion::V311);
    let written = tokio::spawn(async move { writing.write_all(&bytes).await.map(|()| writing) });
    until(|| case.seen(0) > 0).await;
    case.others.go_on().await;
    assert_eq!(case.plane.bus.control.kept(), 50);
    // Nothing is lost: all of it comes as the bus takes it.
    case.plane.bus.control.set(Mode::Pass);
    for _ in 0..50 {
        case.plane.bus.control.give(0, Ok(()));
    }
    let mut acknowledged = vec![0; 4 * usize::from(u16::MAX)];
    tokio::time::timeout(Duration::from_secs(60), reading.read_exact(&mut acknowledged))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(acknowledged[4 * 65_534..], [0x40, 2, 0xff, 0xff]);
    let _writing = written.await.unwrap().unwrap();
    // At QoS 2 the packet ids are all that there is.
    let mut client = Client::connected(case.plane.address, ProtocolVersion::V311, "never releasing").await;
    let (mut reading, mut writing) = client.stream.split();
    let bytes = encoded(publishes("free", Qos::ExactlyOnce, u16::MAX), ProtocolVersion::V311);
    let mut recorded = vec![0; 4 * usize::from(u16::MAX)];
    let both = async { tokio::join!(writing.write_all(&bytes), reading.read_exact(&mut recorded)) };
    let (written, read) = tokio::time::timeout(Duration::from_secs(60), both).await.unwrap();
    assert_eq!((written.is_ok(), read.is_ok()), (true, true));
    // The one after the last is the first again: told so, and not taken.
    client.publish("free", Qos::ExactlyOnce, 1, "").await;
    assert_eq!(client.pubrec().await.packet_id, 1);
    client.hears_nothing().await;
    case.ends().await;
}

#[tokio::test]
async fn never_acknowledging() {
    let case = Case::start("never_acknowledging", &["10", "20", "30"]).await;
    let mut client = Client::connected(case.plane.address, ProtocolVersion::V311, "silent").await;
    client.subscribed("t", Qos::AtLeastOnce).await;
    let published = publishes_until(&case.plane, "t", Bytes::new(), || case.seen(0) > 0).await;
    // 10 sent, 20 and 30 that wait, and the one too many; one more may come before it is cut.
    assert!(published <= 10 + 20 + 30 + 2, "{published}");
    let mut got = 0;
    while let Some(packet) = client.next().await {
        assert!(matches!(packet, Packet::Publish(_)), "{packet:?}");
        got += 1;
    }
    assert_eq!((got, case.seen(0)), (10, 1));
    case.ends().await;
}

#[tokio::test]
async fn never_acknowledging_with_a_lasting_session() {
    let case = Case::start("never_acknowledging_with_a_lasting_session", &["40", "1000000"]).await;
    // By the number of messages, and by their bytes.
    for (name, payload, room) in [("small", Bytes::new(), 40), ("large", Bytes::from(vec![0; 60_000]), 16)] {
        let mut connect = connect_packet(ProtocolVersion::V311, name);
        connect.clean_start = false;
        let (mut client, _) = Client::with(case.plane.address, connect.clone()).await;
        client.subscribed(name, Qos::AtLeastOnce).await;
        let before = case.seen(0);
        let published = publishes_until(&case.plane, name, payload, || case.seen(0) >= before + 60).await;
        let kept = published - (case.seen(0) - before);
        assert!(kept <= room, "{kept} of {published} messages {name}");
        drop(client);
        let (mut client, connack) = Client::with(case.plane.address, connect).await;
        assert!(connack.session_present);
        for _ in 0..kept {
            assert!(client.message().await.dup, "what is in flight does not give way");
        }
        client.hears_nothing().await;
    }
    case.ends().await;
}

#[tokio::test]
async fn never_acknowledging_in_a_group() {
    let case = Case::start("never_acknowledging_in_a_group", &["1048576", "20"]).await;
    let mut client = Client::connected(case.plane.address, ProtocolVersion::V311, "silent").await;
    client.subscribed("$share/g/t", Qos::AtLeastOnce).await;
    // It reads everything, so that only its acknowledgements are missing.
    let reading = tokio::spawn(async move {
        let mut got = 0;
        while let Some(Packet::Publish(_)) = client.next().await {
            got += 1;
            if got == 18 {
                break;
            }
        }
        client
    });
    let payload = Bytes::from(vec![0; 60_000]);
    let published = publishes_until(&case.plane, "t", payload, || case.seen(0) > 0).await;
    // 1 MiB is 18 of them: in flight, and again in front of its task; and 20 wait between.
    assert!(published <= 18 + 20 + 18 + 2, "{published}");
    let mut client = reading.await.unwrap();
    client.hears_nothing().await;
    // Another member gets what it has no room for.
    let mut other = Client::v5(case.plane.address, "other").await;
    other.subscribed("$share/g/t", Qos::AtLeastOnce).await;
    let mut publisher = Client::v5(case.plane.address, "publisher").await;
    let payload = Bytes::from(vec![1; 60_000]);
    publisher.send(Packet::Publish(Publish { payload, ..publish("t", Qos::AtLeastOnce, 1, "") })).await;
    assert_eq!(other.message().await.payload[0], 1);
    case.ends().await;
}

#[tokio::test]
async fn never_reading() {
    let case = Case::start("never_reading", &["1048576", "10000"]).await;
    let mut client = Client::v5(case.plane.address, "blind").await;
    client
        .subscribe(
            vec![subscription("0", Qos::AtMostOnce), subscription("1", Qos::AtLeastOnce)],
            Properties::NONE,
        )
        .await;
    let payload = Bytes::from(vec![0; 60_000]);
    let published = publishes_until(&case.plane, "0", payload.clone(), || case.seen(0) > 0).await;
    assert!(published * 60_000 < (1 << 20) + SOCKET_BYTES_MAX, "{published}");
    assert_eq!(case.seen(1), 0);
    case.others.go_on().await;
    let published = publishes_until(&case.plane, "1", payload, || case.seen(1) > 0).await;
    assert!(published * 60_000 < (1 << 20) + SOCKET_BYTES_MAX, "{published}");
    assert_eq!(case.seen(1), 1);
    case.ends().await;
}

#[tokio::test]
async fn asking_without_reading() {
    let case = Case::start("asking_without_reading", &["1"]).await;
    let mut publisher = Client::v5(case.plane.address, "publisher").await;
    for number in 0..10 {
        let mut large = publish(&format!("large/{number}"), Qos::AtLeastOnce, 1, "");
        (large.retain, large.payload) = (true, vec![0; 60_000].into());
        publisher.send(Packet::Publish(large)).await;
        publisher.puback().await;
    }
    let mut connect = connect_packet(ProtocolVersion::V5, "blind");
    connect.keep_alive = u16::MAX;
    let (client, _) = Client::with(case.plane.address, connect).await;
    let before = case.plane.metric("tbmq_mqtt_bytes_sent_total");
    let subscriptions = vec![subscription("large/+", Qos::AtMostOnce)];
    let ask = Packet::Subscribe(Subscribe::new(1, subscriptions));
    let bytes = encoded(std::iter::repeat_n(ask, 1000), ProtocolVersion::V5);
    let mut stream = client.stream;
    // It writes for as long as the server is there; 600 KB are the answer to 16 bytes.
    let asking = tokio::spawn(async move { while stream.write_all(&bytes).await.is_ok() {} });
    until(|| case.seen(0) > 0).await;
    assert!(case.plane.metric("tbmq_mqtt_bytes_sent_total") - before < SOCKET_BYTES_MAX);
    asking.await.unwrap();
    case.ends().await;
}

#[tokio::test]
async fn a_hundred_thousand_filters() {
    let case = Case::start("a_hundred_thousand_filters", &["1000"]).await;
    for (version, refusals) in [(ProtocolVersion::V311, 99), (ProtocolVersion::V5, 198)] {
        let mut client = Client::connected(case.plane.address, version, "collector").await;
        for hundredth in 0..100 {
            let filters = (0..1000).map(|one| subscription(&format!("{hundredth}/{one}"), Qos::AtMostOnce));
            let reasons = client.subscribe(filters.collect(), Properties::NONE).await;
            let refused = match version {
                ProtocolVersion::V5 => ReasonCode::QuotaExceeded,
                _ => ReasonCode::UnspecifiedError,
            };
            let expected = if hundredth == 0 { ReasonCode::Success } else { refused };
            assert!(reasons.iter().all(|reason| *reason == expected), "{hundredth}: {:?}", reasons[0]);
        }
        assert_eq!(case.seen(0), refusals);
        // What it has counts, what was refused does not, and it stays.
        client.publish("0/999", Qos::AtMostOnce, 0, "mine").await;
        assert_eq!(text(&client.message().await), "mine");
        client.publish("1/0", Qos::AtMostOnce, 0, "refused").await;
        client.hears_nothing().await;
    }
    case.ends().await;
}

#[tokio::test]
async fn ten_thousand_aliases() {
    let case = Case::start("ten_thousand_aliases", &["10"]).await;
    let mut watcher = Client::v5(case.plane.address, "watcher").await;
    watcher.subscribed("alias/+", Qos::AtMostOnce).await;
    let mut client = Client::v5(case.plane.address, "renamer").await;
    let packets = (1..=10_000).map(|alias| {
        let properties = PropertiesBuilder::new().number(PropertyId::TopicAlias, alias).build();
        Packet::Publish(Publish { properties, ..publish(&format!("alias/{alias}"), Qos::AtMostOnce, 0, "") })
    });
    let bytes = encoded(packets, ProtocolVersion::V5);
    // The server may close before all is written.
    client.stream.write_all(&bytes).await.ok();
    client.is_told(ReasonCode::TopicAliasInvalid).await;
    for alias in 1..=10 {
        assert_eq!(&*watcher.message().await.topic, format!("alias/{alias}"));
    }
    watcher.hears_nothing().await;
    assert_eq!(case.seen(0), 1);
    case.ends().await;
}

#[tokio::test]
async fn garbage_for_tls() {
    let files = Files::new();
    let case = Case::with("garbage_for_tls", &["1s"], |config| config.listener.ssl = files.listener()).await;
    let address = case.plane.at("mqtts");
    let mut halves = Vec::new();
    for _ in 0..MANY {
        let mut half = TcpStream::connect(address).await.unwrap();
        half.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00]).await.unwrap();
        halves.push(half);
    }
    for number in 0..MANY {
        let mut garbage = TcpStream::connect(address).await.unwrap();
        let bytes = vec![number as u8 ^ 0xff; 9000];
        garbage.write_all(&bytes).await.ok();
        let mut answer = Vec::new();
        garbage.read_to_end(&mut answer).await.ok();
        assert!(answer.len() < 16, "an alert at most: {answer:?}");
    }
    assert_eq!(case.seen(0), MANY);
    for half in halves {
        is_cut(half).await;
    }
    assert_eq!(case.seen(1), MANY);
    case.ends().await;
}

#[tokio::test]
async fn text_over_a_web_socket() {
    use futures_util::{SinkExt as _, StreamExt as _};
    use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};
    let listener = web_socket::listener;
    let case =
        Case::with("text_over_a_web_socket", &["65536"], |config| config.listener.ws = listener()).await;
    let connect = encoded(
        [Packet::Connect(Box::new(connect_packet(ProtocolVersion::V5, "texter")))],
        ProtocolVersion::V5,
    );
    for number in 1..=MANY {
        let mut socket = web_socket::open(case.plane.at("ws"), &[]).await;
        if number % 2 == 0 {
            socket.send(Message::Binary(connect.clone().freeze())).await.unwrap();
        }
        // A frame of 268 MB is refused by its header: what is behind it is never read.
        let code = if number % 3 == 0 {
            let header = [0x82, 0xff, 0, 0, 0, 0, 0x0f, 0xff, 0xff, 0xff, 1, 2, 3, 4];
            socket.get_mut().write_all(&header).await.unwrap();
            CloseCode::Size
        } else {
            socket.send(Message::text("hello")).await.unwrap();
            CloseCode::Unsupported
        };
        let closed = loop {
            match tokio::time::timeout(Duration::from_secs(20), socket.next()).await.unwrap() {
                Some(Ok(Message::Binary(_))) => {}
                Some(Ok(Message::Close(Some(close)))) => break close.code,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(closed, code);
        until(|| case.seen(0) == number).await;
    }
    case.ends().await;
}

#[tokio::test]
async fn connections_without_end() {
    // Three are of the others, and two are free.
    let case = Case::with("connections_without_end", &["100", "5"], |_| ()).await;
    let mut streams = Vec::new();
    for _ in 0..2 {
        streams.push(Client::open(case.plane.address, ProtocolVersion::V5).await);
    }
    for _ in 0..MANY {
        is_cut(TcpStream::connect(case.plane.address).await.unwrap()).await;
    }
    assert_eq!(case.seen(0), MANY);
    for client in &mut streams {
        client.connect(connect_packet(ProtocolVersion::V5, "")).await;
    }
    case.ends().await;
}
