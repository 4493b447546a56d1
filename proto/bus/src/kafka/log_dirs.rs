//! Sizes on the brokers' disks, which librdkafka can't ask for: `DescribeLogDirs`, on a connection of its own to each
//! broker.

use std::{collections::HashMap, time::Duration};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures_util::future::try_join_all;
use kafka_protocol::{
    messages::{ApiKey, DescribeLogDirsRequest, DescribeLogDirsResponse, RequestHeader, ResponseHeader},
    protocol::{Decodable as _, Encodable as _, HeaderVersion as _, StrBytes},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::KafkaConfig;
use crate::BrokerInfo;

/// Every Kafka since 2.0 has this version.
const VERSION: i16 = 1;

/// Bytes of an answer, at most: about a million partitions.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// How long a broker may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Bytes on disks.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    /// By broker id.
    pub(super) brokers: HashMap<i32, u64>,
    /// Of all replicas, by topic and partition.
    pub(super) partitions: HashMap<(String, u32), u64>,
}

/// Asks all brokers at the same time; what one of them does not tell would be missing in every sum, so all are needed.
///
/// # Errors
/// Why the sizes are not known, for people.
pub(super) async fn sizes(config: &KafkaConfig, brokers: &[BrokerInfo]) -> Result<Sizes, String> {
    let protocol = config.property("security.protocol").unwrap_or("plaintext");
    if !protocol.eq_ignore_ascii_case("plaintext") {
        return Err(format!("sizes are read over PLAINTEXT only, and security.protocol is {protocol}"));
    }
    let ask = async |broker: &BrokerInfo| {
        let answer = tokio::time::timeout(PATIENCE, describe(&broker.address)).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")));
        answer.map_err(|error| format!("broker {} at {}: {error}", broker.id, broker.address))
    };
    let answers = try_join_all(brokers.iter().map(ask)).await?;
    let mut sizes = Sizes::default();
    for (broker, answer) in brokers.iter().zip(answers) {
        let topics = answer.results.iter().flat_map(|folder| &folder.topics);
        for (topic, partition) in
            topics.flat_map(|topic| topic.partitions.iter().map(move |one| (topic, one)))
        {
            let bytes = u64::try_from(partition.partition_size).unwrap_or(0);
            *sizes.brokers.entry(broker.id).or_default() += bytes;
            let at = (topic.name.to_string(), partition.partition_index.max(0) as u32);
            *sizes.partitions.entry(at).or_default() += bytes;
        }
        sizes.brokers.entry(broker.id).or_default();
    }
    Ok(sizes)
}

async fn describe(address: &str) -> Result<DescribeLogDirsResponse, String> {
    let mut stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let request = request()?;
    stream.write_all(&request).await.map_err(|error| error.to_string())?;
    let length = stream.read_u32().await.map_err(|error| error.to_string())? as usize;
    if length > ANSWER_BYTES_MAX {
        return Err(format!("an answer of {length} bytes"));
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).await.map_err(|error| error.to_string())?;
    read(Bytes::from(answer))
}

/// The question for all topics, with its length before it.
fn request() -> Result<BytesMut, String> {
    let header = RequestHeader::default()
        .with_request_api_key(ApiKey::DescribeLogDirs as i16)
        .with_request_api_version(VERSION)
        .with_client_id(Some(StrBytes::from_static_str("tbmq-admin")));
    let mut body = BytesMut::new();
    header
        .encode(&mut body, DescribeLogDirsRequest::header_version(VERSION))
        .and_then(|()| DescribeLogDirsRequest::default().with_topics(None).encode(&mut body, VERSION))
        .map_err(|error| error.to_string())?;
    let mut request = BytesMut::with_capacity(body.len() + 4);
    request.put_u32(body.len() as u32);
    request.extend_from_slice(&body);
    Ok(request)
}

fn read(mut answer: Bytes) -> Result<DescribeLogDirsResponse, String> {
    let header = DescribeLogDirsResponse::header_version(VERSION);
    ResponseHeader::decode(&mut answer, header).map_err(|error| error.to_string())?;
    let found = DescribeLogDirsResponse::decode(&mut answer, VERSION).map_err(|error| error.to_string())?;
    if answer.has_remaining() {
        return Err("an answer that is longer than it should be".to_owned());
    }
    if let Some(folder) = found.results.iter().find(|folder| folder.error_code != 0) {
        return Err(format!("error {} of {}", folder.error_code, folder.log_dir));
    }
    // So this version tells those who may not describe the cluster.
    if found.results.is_empty() {
        return Err("it tells of no folder; the right to describe the cluster may be missing".to_owned());
    }
    Ok(found)
}
