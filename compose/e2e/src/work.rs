//! Load with marks, and everything that the ledger wants to know about it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use prost::Message as _;
use tbmq_bus::{Bus, ReaderConfig, ReaderEvent, Record, Start, TopicPartition};
use tbmq_harness::{
    client::{Plan, publish_all},
    http_sink::{HttpSink, Received},
    ledger::{Ledger, Mark},
};
use tbmq_proto::{ids::IntegrationId, integration::PublishIntegrationMsgProto, topic::Catalogue};
use tokio::task::JoinSet;

/// Publishes `count` marks from each of `publishers` at QoS 1, reconnecting and sending again what was not
/// acknowledged, until all are. Returns what was acknowledged.
///
/// # Errors
/// When a publisher makes no progress for two minutes.
pub async fn publish(plan: Plan, publishers: u32) -> Result<Vec<Mark>> {
    let mut tasks = JoinSet::new();
    for publisher in 0..publishers {
        tasks.spawn(publish_all(plan.clone().by(publisher)));
    }
    let mut acknowledged = Vec::new();
    while let Some(result) = tasks.join_next().await {
        acknowledged.extend(result??);
    }
    Ok(acknowledged)
}

/// The marks among what a sink received and answered with 2xx, in the order of arrival.
pub fn delivered(received: &[Received]) -> Vec<Mark> {
    received.iter().filter(|one| one.status.is_success()).filter_map(|one| Mark::parse(&one.body)).collect()
}

/// How many different marks a sink has answered with 2xx.
pub fn different(received: &[Received]) -> usize {
    delivered(received)
        .into_iter()
        .map(|mark| (mark.publisher, mark.sequence))
        .collect::<std::collections::BTreeSet<_>>()
        .len()
}

/// Waits until a sink has so many different marks.
///
/// # Errors
/// When it has not within `patience`.
pub async fn await_different(sink: &HttpSink, count: usize, patience: Duration) -> Result<()> {
    let mut seen = 0;
    let mut marks = std::collections::BTreeSet::new();
    let deadline = tokio::time::Instant::now() + patience;
    // Only what is new since the last look is parsed.
    while marks.len() < count {
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        ensure!(!left.is_zero(), "{} of {count} different marks arrived within {patience:?}", marks.len());
        if sink.wait_for(seen + 1, left).await.is_err() {
            continue;
        }
        let received = sink.received();
        marks.extend(delivered(&received[seen..]).into_iter().map(|mark| (mark.publisher, mark.sequence)));
        seen = received.len();
    }
    Ok(())
}

/// All records of a topic, by partition, from the lowest offset to the end.
///
/// # Errors
/// When the topic is missing or the bus is silent.
pub async fn read_topic(bus: &Arc<dyn Bus>, topic: &str) -> Result<BTreeMap<u32, Vec<Record>>> {
    let info = bus.admin().topic(topic).await?.with_context(|| format!("{topic} does not exist"))?;
    let mut reader = bus.reader(ReaderConfig::new("ledger", None)).await?;
    let mut open = 0;
    for partition in 0..info.partitions {
        reader.add(&TopicPartition::new(topic, partition), Start::Earliest);
        open += 1;
    }
    let mut all: BTreeMap<u32, Vec<Record>> =
        (0..info.partitions).map(|partition| (partition, Vec::new())).collect();
    while open > 0 {
        let event = tokio::time::timeout(Duration::from_secs(60), reader.next())
            .await
            .context("the bus is silent")?;
        match event {
            ReaderEvent::Batch { partition, records } => {
                all.entry(partition.partition).or_default().extend(records);
            }
            ReaderEvent::End { partition, .. } => {
                reader.remove(&partition);
                open -= 1;
            }
            other => anyhow::bail!("{other:?}"),
        }
    }
    Ok(all)
}

/// Every one of these message partitions is committed to its end.
///
/// # Errors
/// The first that is not; when the bus does not answer.
pub async fn is_settled(
    bus: &Arc<dyn Bus>,
    catalogue: &Catalogue,
    partitions: &[TopicPartition],
) -> Result<()> {
    let admin = bus.admin();
    let ends = admin.bounds(partitions).await?;
    let commits = admin.committed(&catalogue.messages_group(), partitions).await?;
    for (partition, bounds) in partitions.iter().zip(ends) {
        let commit = commits.iter().find(|commit| commit.partition == *partition);
        let offset = commit.map_or(0, |commit| commit.offset);
        ensure!(offset == bounds.end, "{partition} ends at {} and is committed at {offset}", bounds.end);
    }
    Ok(())
}

/// The mark inside a record of a message topic.
pub fn mark_of(record: &Record) -> Option<Mark> {
    let message = PublishIntegrationMsgProto::decode(record.value.clone()?).ok()?;
    Mark::parse(&message.publish_msg_proto?.payload)
}

/// A ledger with what was acknowledged, what lies on the bus for an integration, and what a sink received.
///
/// # Errors
/// As [`read_topic`].
pub async fn ledger(
    bus: &Arc<dyn Bus>,
    catalogue: &Catalogue,
    integration: IntegrationId,
    acknowledged: &[Mark],
    sink: (&str, &HttpSink),
) -> Result<Ledger> {
    let mut ledger = Ledger::new();
    for mark in acknowledged {
        ledger.acknowledged(*mark);
    }
    let topic = catalogue.messages(integration, 1).name;
    for (partition, records) in read_topic(bus, &topic).await? {
        ledger.on_bus(&format!("{topic}-{partition}"), records.iter().filter_map(mark_of));
    }
    ledger.expect_sink(sink.0, false);
    ledger.arrived(sink.0, delivered(&sink.1.received()));
    Ok(ledger)
}
