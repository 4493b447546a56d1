//! Sizes on the brokers' disks, which librdkafka can't ask for: `DescribeLogDirs`, on a connection of its own to each
//! broker.

use std::{collections::HashMap, time::Duration};

use futures_util::future::try_join_all;
use kafka_protocol::messages::{DescribeLogDirsRequest, DescribeLogDirsResponse};

use super::{KafkaConfig, connection::Security};
use crate::BrokerInfo;

/// Every Kafka since 2.0 has this version.
const VERSION: i16 = 1;

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
    let config = config.clone();
    let security = tokio::task::spawn_blocking(move || Security::new(&config)).await;
    let security = security.map_err(|error| error.to_string())??;
    let ask = async |broker: &BrokerInfo| {
        let answer = tokio::time::timeout(PATIENCE, describe(&security, &broker.address)).await;
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

async fn describe(security: &Security, address: &str) -> Result<DescribeLogDirsResponse, String> {
    let mut connection = security.connect(address).await?;
    // No topics: all of them.
    let answer = connection.ask(VERSION, &DescribeLogDirsRequest::default().with_topics(None)).await?;
    if let Some(folder) = answer.results.iter().find(|folder| folder.error_code != 0) {
        return Err(format!("error {} of {}", folder.error_code, folder.log_dir));
    }
    // So this version tells those who may not describe the cluster.
    if answer.results.is_empty() {
        return Err("it tells of no folder; the right to describe the cluster may be missing".to_owned());
    }
    Ok(answer)
}
