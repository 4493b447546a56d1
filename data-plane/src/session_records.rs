//! Persistent sessions and their subscriptions on two compacted topics, so that a data plane that starts anew knows
//! them before it opens a listener (architecture §4.22).
//!
//! | topic | key | value |
//! |---|---|---|
//! | `tbmq.client.session` | client id | `ClientSessionInfoProto` |
//! | `tbmq.client.subscriptions` | client id | `ClientSubscriptionsProto` |
//!
//! A session that ends leaves tombstones. TBMQ writes an empty value instead; both mean deleted, here and in the bus.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use bytes::Bytes;
use prometheus_client::metrics::counter::Counter;
use prost::Message as _;
use tbmq_auth::credentials::ClientType;
use tbmq_bus::{
    Error, Header, Outgoing, Reader, ReaderConfig, ReaderEvent, Record, Start, TopicHandle, TopicPartition,
    Writer, WriterConfig, write,
};
use tbmq_mqtt::{
    packet::{Qos, RetainHandling, Text},
    session::Options,
    topic,
};
use tbmq_proto::{
    ids::ServiceId,
    queue::{
        self, ClientInfoProto, ClientSessionInfoProto, ClientSubscriptionsProto, ConnectionInfoProto,
        ServiceInfo, SessionInfoProto, SubscriptionOptionsProto, SubscriptionsSourceProto,
        TopicSubscriptionProto,
    },
};
use tbmq_service::admin::Component;
use uuid::Uuid;

use crate::{Context, feed::prepare};

/// Header with the id of the node that wrote a record, as TBMQ has it.
const SERVICE_ID_HEADER: &str = "serviceId";

/// What a client is treated as whose messages an application reads.
const APPLICATION: &str = "APPLICATION";

/// What is recorded of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// The client.
    pub client_id: Arc<str>,
    /// Of this connection, or the last one.
    pub session_id: Uuid,
    /// As in the session store.
    pub epoch: u64,
    /// The node that has, or had, the connection.
    pub service_id: Arc<str>,
    /// Whether the client is, or was when its node ended, connected.
    pub is_connected: bool,
    /// What the client is treated as.
    pub client_type: ClientType,
    /// The user that the client has proved to be, or says it is.
    pub username: Option<Text>,
    /// Where the client's connection came from.
    pub address: Option<IpAddr>,
    /// 3, 4 or 5, as in CONNECT; 0: not known.
    pub protocol_level: u8,
    /// As the client asked for.
    pub clean_start: bool,
    /// Session Expiry Interval in seconds, `u32::MAX`: never; `None` for 3.x clients.
    pub expiry_s: Option<u32>,
    /// Keep alive, seconds.
    pub keep_alive_s: u16,
    /// When it connected, epoch ms.
    pub connected_at_ms: i64,
    /// When it went, epoch ms; 0 while connected.
    pub disconnected_at_ms: i64,
}

/// A subscription of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedFilter {
    /// Without `$share/<name>/`.
    pub filter: String,
    /// The name, when the subscription is shared.
    pub share_name: Option<String>,
    /// What the client wants.
    pub options: Options,
}

impl RecordedFilter {
    /// Of a filter as the client has it.
    pub(crate) fn new(filter: &str, options: Options) -> Self {
        let (share_name, filter) = topic::parts(filter);
        Self { filter: filter.to_owned(), share_name: share_name.map(str::to_owned), options }
    }

    /// The filter as the client has it.
    pub(crate) fn whole(&self) -> String {
        let Self { filter, share_name, .. } = self;
        share_name.as_ref().map_or_else(|| filter.clone(), |name| format!("$share/{name}/{filter}"))
    }
}

/// A session as it was found at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The session.
    pub info: SessionInfo,
    /// Its subscriptions, in the order in which they were recorded.
    pub filters: Vec<RecordedFilter>,
}

/// What is to be recorded of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    session: Part,
    filters: Part,
}

/// What is to stand under a client's key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Part {
    /// What stands there.
    #[default]
    Unchanged,
    Nothing,
    Value(Vec<u8>),
}

impl Part {
    fn or(self, other: Self) -> Self {
        if self == Self::Unchanged { other } else { self }
    }
}

impl Wanted {
    /// This session.
    pub(crate) fn session(info: &SessionInfo) -> Self {
        Self { session: Part::Value(encode_session(info)), filters: Part::Unchanged }
    }

    /// These filters in place of those that were.
    pub(crate) fn filters(filters: &[RecordedFilter]) -> Self {
        let filters = if filters.is_empty() { Part::Nothing } else { Part::Value(encode_filters(filters)) };
        Self { session: Part::Unchanged, filters }
    }

    /// That there is no session any more.
    pub(crate) fn end() -> Self {
        Self { session: Part::Nothing, filters: Part::Nothing }
    }

    /// Both; where they differ, the first.
    pub(crate) fn or(self, other: Self) -> Self {
        Self { session: self.session.or(other.session), filters: self.filters.or(other.filters) }
    }

    /// Whether all stays as it is.
    pub(crate) fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Writes sessions and subscriptions. Each call waits until the bus has confirmed it, at most the writer's deadline.
#[derive(Clone, Debug)]
pub struct SessionRecords {
    writer: Arc<dyn Writer>,
    sessions: TopicHandle,
    subscriptions: TopicHandle,
    headers: [Header; 1],
}

impl SessionRecords {
    /// Makes sure that the topics exist and reads all sessions there are, in no order. Waits for the bus as long as it
    /// takes, telling `component` why. A record that can't be read is counted and skipped; subscriptions without a session
    /// are forgotten.
    ///
    /// # Errors
    /// When the bus refuses.
    pub async fn open(
        context: &Context,
        service: &ServiceId,
        component: &Component,
        bad_records: &Counter,
    ) -> anyhow::Result<(Self, Vec<Restored>)> {
        let catalogue = &context.catalogue;
        let topics = [catalogue.client_sessions(), catalogue.client_subscriptions()];
        for topic in &topics {
            prepare(context, topic, Some(component)).await;
        }
        let config = WriterConfig::new(catalogue.client_id("client-session-producer", service));
        let writer = context.bus.writer(config).await?;
        let [sessions, subscriptions] = &topics;
        let records = Self {
            sessions: writer.topic(&sessions.name),
            subscriptions: writer.topic(&subscriptions.name),
            headers: [Header::text(SERVICE_ID_HEADER, service.as_str())],
            writer,
        };
        component.down("reading the sessions of clients");
        let config = ReaderConfig::new(catalogue.client_id("client-session-consumer", service), None);
        let reader = context.bus.reader(config).await?;
        let partitions = topics.map(|topic| TopicPartition::new(topic.name, 0));
        let Found { sessions, mut filters } = Found::read(reader, &partitions, bad_records).await;
        let restored: Vec<_> = sessions
            .into_values()
            .map(|info| Restored { filters: filters.remove(&info.client_id).unwrap_or_default(), info })
            .collect();
        for client_id in filters.into_keys() {
            tracing::info!(client = &*client_id, "subscriptions without a session are forgotten");
            if let Err(error) = records.put(&records.subscriptions, &client_id, &Part::Nothing).await {
                tracing::warn!(%error, client = &*client_id, "can't forget subscriptions");
            }
        }
        component.up();
        tracing::info!(sessions = restored.len(), "sessions of clients are known");
        Ok((records, restored))
    }

    /// Records what is wanted of a client.
    ///
    /// # Errors
    /// What the bus says; [`Error::Unavailable`]: it may have been recorded all the same.
    pub(crate) async fn write(&self, client_id: &str, wanted: &Wanted) -> Result<(), Error> {
        // In any order: what is left of one without the other is forgotten at the next start.
        let filters = self.put(&self.subscriptions, client_id, &wanted.filters);
        let session = self.put(&self.sessions, client_id, &wanted.session);
        let (filters, session) = futures_util::future::join(filters, session).await;
        filters.and(session)
    }

    async fn put(&self, topic: &TopicHandle, client_id: &str, part: &Part) -> Result<(), Error> {
        let value = match part {
            Part::Unchanged => return Ok(()),
            Part::Nothing => None,
            Part::Value(value) => Some(&value[..]),
        };
        let record =
            Outgoing { partition: Some(0), key: Some(client_id.as_bytes()), value, headers: &self.headers };
        write(&*self.writer, topic, record).await.map(drop)
    }
}

/// What the topics hold.
#[derive(Debug, Default)]
struct Found {
    sessions: HashMap<Arc<str>, SessionInfo>,
    filters: HashMap<Arc<str>, Vec<RecordedFilter>>,
}

impl Found {
    /// Reads both topics to their ends.
    async fn read(
        mut reader: Box<dyn Reader>,
        [sessions, subscriptions]: &[TopicPartition; 2],
        bad_records: &Counter,
    ) -> Self {
        let mut found = Self::default();
        let mut unfinished = vec![sessions.clone(), subscriptions.clone()];
        for partition in &unfinished {
            reader.add(partition, Start::Earliest);
        }
        while !unfinished.is_empty() {
            match reader.next().await {
                ReaderEvent::Batch { partition, records } => {
                    for record in &records {
                        let noted = if partition == *sessions {
                            found.note_session(record)
                        } else {
                            found.note_filters(record)
                        };
                        if let Err(reason) = noted {
                            bad_records.inc();
                            tracing::warn!(%partition, offset = record.offset, reason, "bad record skipped");
                        }
                    }
                }
                ReaderEvent::End { partition, .. } => unfinished.retain(|other| *other != partition),
                ReaderEvent::Gap { partition, from, to } => {
                    // Compaction leaves no gaps.
                    tracing::warn!(%partition, from, to, "records of sessions are gone");
                }
                ReaderEvent::Gone { partition, reason } => {
                    tracing::warn!(%partition, %reason, "topic was deleted while it was read");
                    unfinished.retain(|other| *other != partition);
                }
            }
        }
        found
    }

    fn note_session(&mut self, record: &Record) -> Result<(), String> {
        let client_id = client_id(record)?;
        match value(record) {
            Some(value) => {
                let info = decode_session(&client_id, value)?;
                self.sessions.insert(client_id, info);
            }
            None => drop(self.sessions.remove(&client_id)),
        }
        Ok(())
    }

    fn note_filters(&mut self, record: &Record) -> Result<(), String> {
        let client_id = client_id(record)?;
        let filters = value(record).map(decode_filters).transpose()?.unwrap_or_default();
        if filters.is_empty() {
            self.filters.remove(&client_id);
        } else {
            self.filters.insert(client_id, filters);
        }
        Ok(())
    }
}

fn client_id(record: &Record) -> Result<Arc<str>, String> {
    let key = record.key.as_deref().ok_or("no key")?;
    std::str::from_utf8(key).map(Arc::from).map_err(|_| "the key is not UTF-8".to_owned())
}

/// The value, if it doesn't mean deleted.
fn value(record: &Record) -> Option<Bytes> {
    record.value.clone().filter(|value| !value.is_empty())
}

/// As TBMQ writes it.
pub(crate) fn client_type_name(client_type: ClientType) -> &'static str {
    match client_type {
        ClientType::Device => "DEVICE",
        ClientType::Application => APPLICATION,
    }
}

fn encode_session(info: &SessionInfo) -> Vec<u8> {
    let (session_id_msb, session_id_lsb) = info.session_id.as_u64_pair();
    let session = SessionInfoProto {
        service_info: Some(ServiceInfo {
            service_id: info.service_id.to_string(),
            service_type: Some("TBMQ".to_owned()),
            system_info: None,
        }),
        session_id_msb: session_id_msb.cast_signed(),
        session_id_lsb: session_id_lsb.cast_signed(),
        client_info: Some(ClientInfoProto {
            client_id: info.client_id.to_string(),
            client_type: client_type_name(info.client_type).to_owned(),
            client_ip_adr: match info.address {
                None => Bytes::new(),
                Some(IpAddr::V4(address)) => Bytes::copy_from_slice(&address.octets()),
                Some(IpAddr::V6(address)) => Bytes::copy_from_slice(&address.octets()),
            },
            user_name: info.username.as_deref().map(str::to_owned),
        }),
        clean_start: info.clean_start,
        connection_info: Some(ConnectionInfoProto {
            connected_at: info.connected_at_ms,
            disconnected_at: info.disconnected_at_ms,
            keep_alive: i32::from(info.keep_alive_s),
        }),
        session_expiry_interval: info.expiry_s.map(u32::cast_signed),
        epoch: info.epoch,
        protocol_level: u32::from(info.protocol_level),
    };
    ClientSessionInfoProto { connected: info.is_connected, session_info: Some(session) }.encode_to_vec()
}

fn decode_session(client_id: &Arc<str>, value: Bytes) -> Result<SessionInfo, String> {
    let ClientSessionInfoProto { connected, session_info } =
        ClientSessionInfoProto::decode(value).map_err(|error| error.to_string())?;
    let info = session_info.ok_or("no session info")?;
    let client = info.client_info.unwrap_or_default();
    if !client.client_id.is_empty() && *client.client_id != **client_id {
        return Err(format!("the key is {client_id:?}, the session is of {:?}", client.client_id));
    }
    let connection = info.connection_info.unwrap_or_default();
    let address = match &client.client_ip_adr[..] {
        [] => None,
        octets => match (<[u8; 4]>::try_from(octets), <[u8; 16]>::try_from(octets)) {
            (Ok(octets), _) => Some(IpAddr::from(octets)),
            (_, Ok(octets)) => Some(IpAddr::from(octets)),
            _ => return Err(format!("an address of {} bytes", octets.len())),
        },
    };
    let halves = (info.session_id_msb.cast_unsigned(), info.session_id_lsb.cast_unsigned());
    Ok(SessionInfo {
        client_id: client_id.clone(),
        session_id: Uuid::from_u64_pair(halves.0, halves.1),
        epoch: info.epoch,
        service_id: info.service_info.unwrap_or_default().service_id.into(),
        is_connected: connected,
        client_type: if client.client_type == APPLICATION {
            ClientType::Application
        } else {
            ClientType::Device
        },
        username: client.user_name.as_deref().map(Text::from),
        address,
        protocol_level: u8::try_from(info.protocol_level).map_err(|_| "bad protocol level")?,
        clean_start: info.clean_start,
        expiry_s: info.session_expiry_interval.map(i32::cast_unsigned),
        keep_alive_s: u16::try_from(connection.keep_alive).map_err(|_| "bad keep alive")?,
        connected_at_ms: connection.connected_at,
        disconnected_at_ms: connection.disconnected_at,
    })
}

fn encode_filters(filters: &[RecordedFilter]) -> Vec<u8> {
    let subscriptions = filters.iter().map(|RecordedFilter { filter, share_name, options }| {
        let retain_handling = match options.retain_handling {
            RetainHandling::Send => queue::RetainHandling::Send,
            RetainHandling::SendIfNew => queue::RetainHandling::SendIfNotExists,
            RetainHandling::DoNotSend => queue::RetainHandling::DontSend,
        };
        TopicSubscriptionProto {
            topic: filter.clone(),
            qos: i32::from(options.qos.bits()),
            share_name: share_name.clone(),
            options: Some(SubscriptionOptionsProto {
                no_local: options.no_local,
                retain_as_publish: options.retain_as_published,
                retain_handling: retain_handling.into(),
            }),
            subscription_id: options.identifier.map(u32::cast_signed),
        }
    });
    let source = Some(SubscriptionsSourceProto::MqttClient.into());
    ClientSubscriptionsProto { subscriptions: subscriptions.collect(), source }.encode_to_vec()
}

/// The filters of a client; none when the record is TBMQ's for an integration, whose filters are read elsewhere
/// (architecture §4.8).
fn decode_filters(value: Bytes) -> Result<Vec<RecordedFilter>, String> {
    let record = ClientSubscriptionsProto::decode(value).map_err(|error| error.to_string())?;
    if record.source() == SubscriptionsSourceProto::Integration {
        return Ok(Vec::new());
    }
    let filter = |subscription: TopicSubscriptionProto| {
        let wanted = subscription.options.unwrap_or_default();
        let qos = u8::try_from(subscription.qos).ok().and_then(Qos::from_bits).ok_or("bad QoS")?;
        let options = Options {
            qos,
            no_local: wanted.no_local,
            retain_as_published: wanted.retain_as_publish,
            retain_handling: match wanted.retain_handling() {
                queue::RetainHandling::Send => RetainHandling::Send,
                queue::RetainHandling::SendIfNotExists => RetainHandling::SendIfNew,
                queue::RetainHandling::DontSend => RetainHandling::DoNotSend,
            },
            identifier: subscription.subscription_id.map(i32::cast_unsigned),
        };
        Ok(RecordedFilter { filter: subscription.topic, share_name: subscription.share_name, options })
    };
    record.subscriptions.into_iter().map(filter).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use tbmq_bus::{Bus as _, memory::MemoryBus, spec_of};
    use tbmq_proto::topic::{Catalogue, Topic};
    use tbmq_service::{admin::Health, identity::Identity, trace::Tracer};

    use super::*;

    fn context(bus: &Arc<MemoryBus>) -> Context {
        Context {
            bus: bus.clone(),
            catalogue: Catalogue::default(),
            replication_factor: 1,
            identity: Identity::of("data-plane", Some("node-1")),
            metrics: tbmq_service::metrics::Metrics::default(),
            health: Health::default(),
            tracer: Tracer::off(),
            sessions: None,
        }
    }

    /// What a node finds that starts now, by client id.
    pub(crate) async fn start(bus: &Arc<MemoryBus>) -> (SessionRecords, Vec<Restored>, u64) {
        let context = context(bus);
        let (component, bad_records) = (context.health.component("sessions"), Counter::default());
        let service = "node-1".parse().unwrap();
        let (records, mut restored) =
            SessionRecords::open(&context, &service, &component, &bad_records).await.unwrap();
        assert!(context.health.is_up());
        restored.sort_by(|a, b| a.info.client_id.cmp(&b.info.client_id));
        (records, restored, bad_records.get())
    }

    pub(crate) fn info(client_id: &str) -> SessionInfo {
        SessionInfo {
            client_id: client_id.into(),
            session_id: Uuid::from_u128(0xffee_ddcc_bbaa_9988_7766_5544_3322_1100),
            epoch: u64::MAX,
            service_id: "node-1".into(),
            is_connected: true,
            client_type: ClientType::Device,
            username: None,
            address: Some("192.0.2.7".parse().unwrap()),
            protocol_level: 5,
            clean_start: true,
            expiry_s: Some(u32::MAX),
            keep_alive_s: 65_535,
            connected_at_ms: 1_742_554_969_254,
            disconnected_at_ms: 0,
        }
    }

    fn filter(filter: &str, share_name: Option<&str>, options: Options) -> RecordedFilter {
        RecordedFilter { filter: filter.to_owned(), share_name: share_name.map(str::to_owned), options }
    }

    fn filters() -> Vec<RecordedFilter> {
        let options = Options {
            qos: Qos::ExactlyOnce,
            no_local: true,
            retain_as_published: true,
            retain_handling: RetainHandling::DoNotSend,
            identifier: Some(268_435_455),
        };
        let if_new = Options { retain_handling: RetainHandling::SendIfNew, ..Options::default() };
        vec![
            filter("a/+", None, options),
            filter("#", Some("g"), if_new),
            filter("#", None, Options::default()),
        ]
    }

    async fn raw(bus: &MemoryBus, topic: &Topic, key: &[u8], value: &[u8]) {
        bus.admin().create_topic(&spec_of(topic, 1)).await.unwrap();
        let writer = bus.writer(WriterConfig::new("test")).await.unwrap();
        let record = Outgoing { partition: Some(0), key: Some(key), value: Some(value), headers: &[] };
        write(&*writer, &writer.topic(&topic.name), record).await.unwrap();
    }

    /// [MQTT-4.1.0-1]
    #[tokio::test]
    async fn sessions_and_their_filters_are_there_when_a_node_starts_again() {
        let bus = MemoryBus::new();
        let (records, restored, _) = start(&bus).await;
        assert_eq!(restored, []);
        records.write("a", &Wanted::session(&info("a"))).await.unwrap();
        records.write("a", &Wanted::filters(&filters()[..1])).await.unwrap();
        records.write("a", &Wanted::filters(&filters())).await.unwrap();
        let gone = SessionInfo {
            is_connected: false,
            client_type: ClientType::Application,
            username: Some("u".into()),
            address: Some("2001:db8::1".parse().unwrap()),
            protocol_level: 4,
            clean_start: false,
            expiry_s: None,
            disconnected_at_ms: 1_742_554_969_999,
            ..info("b")
        };
        records.write("b", &Wanted::session(&info("b"))).await.unwrap();
        records.write("b", &Wanted::session(&gone)).await.unwrap();
        let (_, restored, bad_records) = start(&bus).await;
        let expected =
            [Restored { info: info("a"), filters: filters() }, Restored { info: gone, filters: Vec::new() }];
        assert_eq!((&restored[..], bad_records), (&expected[..], 0));
    }

    #[tokio::test]
    async fn a_session_that_ended_leaves_tombstones_and_an_empty_value_means_deleted_too() {
        let bus = MemoryBus::new();
        let catalogue = Catalogue::default();
        let (records, ..) = start(&bus).await;
        for client_id in ["a", "b", "c"] {
            records.write(client_id, &Wanted::session(&info(client_id))).await.unwrap();
            records.write(client_id, &Wanted::filters(&filters())).await.unwrap();
        }
        records.write("a", &Wanted::end()).await.unwrap();
        // As TBMQ deletes.
        raw(&bus, &catalogue.client_subscriptions(), b"b", b"").await;
        raw(&bus, &catalogue.client_sessions(), b"b", b"").await;
        records.write("c", &Wanted::filters(&[])).await.unwrap();
        let (_, restored, bad_records) = start(&bus).await;
        assert_eq!((restored, bad_records), (vec![Restored { info: info("c"), filters: Vec::new() }], 0));
        let partition = TopicPartition::new(catalogue.client_sessions().name, 0);
        let mut reader = bus.reader(ReaderConfig::new("test", None)).await.unwrap();
        reader.add(&partition, Start::Earliest);
        let ReaderEvent::Batch { records, .. } = reader.next().await else { panic!("no records") };
        let tombstones =
            records.iter().filter(|record| record.key.as_deref() == Some(b"a") && record.value.is_none());
        assert_eq!(tombstones.count(), 1);
        assert!(
            records
                .iter()
                .all(|record| record.headers.is_empty() || record.header("serviceId") == Some("node-1"))
        );
    }

    #[tokio::test]
    async fn filters_without_a_session_are_forgotten() {
        let bus = MemoryBus::new();
        let (records, ..) = start(&bus).await;
        records.write("a", &Wanted::filters(&filters())).await.unwrap();
        assert_eq!(start(&bus).await.1, []);
        records.write("a", &Wanted::session(&info("a"))).await.unwrap();
        assert_eq!(start(&bus).await.1, [Restored { info: info("a"), filters: Vec::new() }]);
    }

    #[tokio::test]
    async fn records_that_cannot_be_read_are_counted_and_those_of_integrations_passed_over() {
        let bus = MemoryBus::new();
        let catalogue = Catalogue::default();
        let (records, ..) = start(&bus).await;
        records.write("a", &Wanted::session(&info("a"))).await.unwrap();
        records.write("a", &Wanted::filters(&filters())).await.unwrap();
        let [sessions, subscriptions] = [catalogue.client_sessions(), catalogue.client_subscriptions()];
        raw(&bus, &sessions, b"a", b"\xff").await;
        raw(&bus, &sessions, b"other", &encode_session(&info("a"))).await;
        raw(&bus, &sessions, b"\xff", &encode_session(&info("a"))).await;
        raw(&bus, &subscriptions, b"a", b"\xff").await;
        let subscription = TopicSubscriptionProto { topic: "#".to_owned(), qos: 1, ..Default::default() };
        let of_integration = |source: Option<i32>| {
            ClientSubscriptionsProto { subscriptions: vec![subscription.clone()], source }.encode_to_vec()
        };
        raw(&bus, &subscriptions, b"an-integration", &of_integration(Some(1))).await;
        let (_, restored, bad_records) = start(&bus).await;
        assert_eq!((restored, bad_records), (vec![Restored { info: info("a"), filters: filters() }], 4));
        // A record of TBMQ says the least.
        raw(&bus, &subscriptions, b"a", &of_integration(None)).await;
        let expected = filter("#", None, Options { qos: Qos::AtLeastOnce, ..Options::default() });
        assert_eq!(start(&bus).await.1[0].filters, [expected]);
    }

    #[test]
    fn the_fields_of_a_session_have_tbmqs_numbers() {
        let short = SessionInfo {
            client_id: "c".into(),
            session_id: Uuid::from_u64_pair(1, 2),
            epoch: 0,
            service_id: "n".into(),
            is_connected: true,
            client_type: ClientType::Device,
            username: None,
            address: Some("1.2.3.4".parse().unwrap()),
            protocol_level: 0,
            clean_start: true,
            expiry_s: Some(3),
            keep_alive_s: 4,
            connected_at_ms: 5,
            disconnected_at_ms: 6,
        };
        let expected: &[u8] = &[
            0x08, 1, // connected
            0x12, 46, // sessionInfo
            0x0a, 9, 0x0a, 1, b'n', 0x12, 4, b'T', b'B', b'M', b'Q', // serviceInfo
            0x10, 1, 0x18, 2, // sessionId
            0x22, 17, 0x0a, 1, b'c', 0x12, 6, b'D', b'E', b'V', b'I', b'C', b'E', 0x1a, 4, 1, 2, 3,
            4, // clientInfo
            0x28, 1, // cleanStart
            0x32, 6, 0x08, 5, 0x10, 6, 0x18, 4, // connectionInfo
            0x38, 3, // sessionExpiryInterval
        ];
        assert_eq!(encode_session(&short), expected);
    }
}
