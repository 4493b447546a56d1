//! Every RPC with random and with damaged messages (issue "The control plane, complete", bad input): it is done or
//! refused, never with INTERNAL; nobody panics; nothing is saved by halves.

use std::{collections::BTreeMap, time::Duration};

use bytes::{Buf, BufMut, Bytes};
use prost::Message as _;
use prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor,
    MethodDescriptor, Value,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tbmq_proto::control::{CreateIntegrationRequest, ListIntegrationsRequest};
use tonic::{
    Code, Request, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Channel,
};

use crate::support::{Cluster, DOCUMENT, Verdict, eventually, id_of, integration};

/// Calls of each method.
const CALLS: usize = 120;

/// Depth of random messages.
const DEPTH_MAX: usize = 4;

/// Messages as bytes, so that damaged ones can be sent.
#[derive(Clone, Copy, Debug, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let bytes = from.remaining();
        Ok(Some(from.copy_to_bytes(bytes)))
    }
}

/// Random messages of any type.
struct Random {
    rng: StdRng,
    /// Texts that mean something, besides random ones.
    texts: Vec<String>,
}

impl Random {
    fn message(&mut self, of: &MessageDescriptor, depth: usize) -> DynamicMessage {
        let mut message = DynamicMessage::new(of.clone());
        for field in of.fields() {
            if self.rng.random_bool(0.35) {
                continue;
            }
            if let Some(value) = self.field(&field, depth) {
                message.set_field(&field, value);
            }
        }
        message
    }

    fn field(&mut self, field: &FieldDescriptor, depth: usize) -> Option<Value> {
        if field.is_map() {
            let Kind::Message(entry) = field.kind() else { return None };
            let value = entry.map_entry_value_field();
            let mut map = std::collections::HashMap::new();
            for _ in 0..self.rng.random_range(0..4) {
                map.insert(MapKey::String(self.text()), self.value(&value, depth)?);
            }
            return Some(Value::Map(map));
        }
        if field.cardinality() == Cardinality::Repeated {
            let count = self.rng.random_range(0..4);
            return (0..count).map(|_| self.value(field, depth)).collect::<Option<Vec<_>>>().map(Value::List);
        }
        self.value(field, depth)
    }

    fn value(&mut self, field: &FieldDescriptor, depth: usize) -> Option<Value> {
        let number = *[0, 1, -1, 2, 50, 1_000, i64::MAX, i64::MIN].choose(&mut self.rng)?;
        Some(match field.kind() {
            Kind::Double => Value::F64(f64::NAN),
            Kind::Float => Value::F32(number as f32),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(number as i32),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(number),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(number as u32),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(number as u64),
            Kind::Bool => Value::Bool(self.rng.random()),
            Kind::String => Value::String(self.text()),
            Kind::Bytes => Value::Bytes(Bytes::from(self.text())),
            Kind::Message(_) if depth >= DEPTH_MAX => return None,
            Kind::Message(inner) => Value::Message(self.message(&inner, depth + 1)),
            Kind::Enum(_) => Value::EnumNumber(self.rng.random_range(-1..7)),
        })
    }

    fn text(&mut self) -> String {
        match self.rng.random_range(0..10) {
            0 => String::new(),
            1 => {
                let chars = self.rng.random_range(0..300);
                (0..chars).map(|_| self.rng.random::<char>()).collect()
            }
            2 => "x".repeat(self.rng.random_range(0..5_000)),
            _ => self.texts.choose(&mut self.rng).cloned().unwrap_or_default(),
        }
    }

    /// The message as bytes; one in three is damaged. Some are of the kind that is done.
    fn bytes(&mut self, of: &MessageDescriptor) -> Bytes {
        let mut bytes = match (self.rng.random_range(0..5), of.name()) {
            (0, "CreateIntegrationRequest") => {
                let integration = Some(integration(&format!("random {}", self.rng.random::<u32>())));
                CreateIntegrationRequest { integration, ..Default::default() }.encode_to_vec()
            }
            (0, _) => Vec::new(),
            _ => self.message(of, 0).encode_to_vec(),
        };
        if !bytes.is_empty() && self.rng.random_bool(0.33) {
            for _ in 0..self.rng.random_range(1..4) {
                let at = self.rng.random_range(0..bytes.len());
                match self.rng.random_range(0..3) {
                    0 => bytes[at] ^= 1 << self.rng.random_range(0..8),
                    1 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, self.rng.random()),
                }
            }
        }
        bytes.into()
    }
}

async fn call(channel: &Channel, method: &MethodDescriptor, messages: Vec<Bytes>) -> Result<(), Status> {
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let path = path.parse().unwrap();
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let first = messages[0].clone();
    let mut answers = match (method.is_client_streaming(), method.is_server_streaming()) {
        (false, false) => {
            let mut request = Request::new(first);
            request.set_timeout(Duration::from_secs(5));
            return client.unary::<Bytes, Bytes, Raw>(request, path, Raw).await.map(|_| ());
        }
        (false, true) => client.server_streaming::<Bytes, Bytes, Raw>(Request::new(first), path, Raw).await?,
        _ => {
            let requests = Request::new(tokio_stream::iter(messages));
            client.streaming::<_, Bytes, Bytes, Raw>(requests, path, Raw).await?
        }
    }
    .into_inner();
    // A stream that has nothing to say is left.
    for _ in 0..3 {
        match tokio::time::timeout(Duration::from_millis(20), answers.message()).await {
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) | Err(_) => break,
            Ok(Err(status)) => return Err(status),
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_message_whatever_it_holds_makes_a_call_fail_inside_or_is_saved_by_halves() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let executor = cluster.executor(Verdict::Accept).await;
    cluster.say_alive("node", tbmq_proto::wire::Role::DataPlane, &[], Some(u64::MAX)).await;
    let held = plane.create("held").await.unwrap();

    let seed = rand::rng().random();
    println!("seed {seed}");
    let texts = [
        held.name.clone(),
        held.uid.clone(),
        held.etag.clone(),
        "integrations/00112233-4455-6677-8899-aabbccddeeff".to_owned(),
        "00112233-4455-6677-8899-aabbccddeeff".to_owned(),
        "HTTP".to_owned(),
        "held".to_owned(),
        "another".to_owned(),
        DOCUMENT.to_owned(),
        r##"{"topicFilters":["+/#","#"],"clientConfiguration":{"restEndpointUrl":1}}"##.to_owned(),
        r#"{"topicFilters":["a"#.to_owned(),
        "display_name".to_owned(),
        "configuration_json".to_owned(),
        "labels".to_owned(),
        "*".to_owned(),
        "type = \"HTTP\" AND (enabled = true OR labels.a:*)".to_owned(),
        "display_name desc, type".to_owned(),
        "NOT ((((((((".to_owned(),
        "a/b".to_owned(),
        "a/+/#".to_owned(),
        "node".to_owned(),
        "\u{0}".to_owned(),
        "tokens/1".to_owned(),
    ];
    let mut random = Random { rng: StdRng::seed_from_u64(seed), texts: texts.to_vec() };

    let pool = DescriptorPool::decode(tbmq_proto::DESCRIPTORS).unwrap();
    let mut codes: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    for service in pool.services() {
        for method in service.methods() {
            for _ in 0..CALLS {
                let messages: Vec<Bytes> = (0..3).map(|_| random.bytes(&method.input())).collect();
                let sent = messages[0].clone();
                let code = match call(&plane.channel, &method, messages).await {
                    Ok(()) => Code::Ok,
                    Err(status) => {
                        let refused = !matches!(
                            status.code(),
                            Code::Internal
                                | Code::Unknown
                                | Code::Unimplemented
                                | Code::DataLoss
                                | Code::Cancelled
                        );
                        let name = method.full_name();
                        assert!(refused, "seed {seed}: {name}: {status:?}\nfor {sent:?}");
                        status.code()
                    }
                };
                *codes
                    .entry(method.name().to_owned())
                    .or_default()
                    .entry(format!("{code:?}"))
                    .or_default() += 1;
            }
        }
    }
    println!("{codes:#?}");
    // It is of no use if nothing gets past the first check.
    for method in ["CreateIntegration", "ListIntegrations", "ListEvents", "ListNodes"] {
        assert!(codes[method].contains_key("Ok"), "{method} was never done: {:?}", codes[method]);
    }

    // What is in the store can be read, and is what is on the bus and in the executor, nothing more.
    let mut client = plane.integrations.clone();
    let request = ListIntegrationsRequest { page_size: 1_000, ..Default::default() };
    let listed = client.list_integrations(request).await.unwrap().into_inner().integrations;
    for integration in &listed {
        plane.get(&integration.name).await.unwrap();
    }
    let topic = cluster.catalogue.integration_subscriptions().name;
    eventually("the bus shows what the store holds", async || {
        let latest = cluster.latest(&topic).await;
        let live: BTreeMap<&String, u64> = latest
            .iter()
            .filter(|(_, (_, value))| value.as_ref().is_some_and(|value| !value.is_empty()))
            .map(|(key, (revision, _))| (key, revision.unwrap_or_default()))
            .collect();
        listed.len() == live.len()
            && listed.iter().all(|integration| live.contains_key(&integration.uid))
            && listed.iter().all(|integration| {
                executor.held(id_of(integration)).is_some_and(|held| held.revision >= integration.revision)
            })
    })
    .await;
}
