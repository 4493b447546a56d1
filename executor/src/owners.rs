//! Who has claimed which downlink partition: the topic of owners, read by every executor (architecture §4.18).

use std::{collections::BTreeMap, sync::Arc};

use prost::Message as _;
use tbmq_bus::{CompletionQueue, Outgoing, Reader, ReaderEvent, Record, Start, TopicPartition, Writer};
use tbmq_proto::{ids::Kind, topic::Catalogue, wire::OwnerClaim};
use tokio::sync::watch;

use crate::executor::Shared;

/// Partitions of one kind whose claims are remembered, at most.
const PARTITIONS_MAX: u32 = 10_000;

/// The latest claim of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// Its offset.
    pub(crate) epoch: u64,
    /// This very process wrote it.
    pub(crate) is_own: bool,
}

/// The latest claims of one kind, by partition.
pub(crate) type Claims = BTreeMap<u32, Claim>;

/// The latest claims of all served kinds.
#[derive(Debug)]
pub(crate) struct Owners {
    kinds: BTreeMap<Kind, watch::Sender<Claims>>,
}

impl Owners {
    pub(crate) fn new(kinds: impl Iterator<Item = Kind>) -> Self {
        Self { kinds: kinds.map(|kind| (kind, watch::Sender::default())).collect() }
    }

    /// The claims of a kind, as they change; `None` when the kind is not served.
    pub(crate) fn of(&self, kind: &Kind) -> Option<watch::Receiver<Claims>> {
        self.kinds.get(kind).map(watch::Sender::subscribe)
    }

    fn take(&self, record: &Record, incarnation: &str) -> Result<(), String> {
        let key = record.key.as_deref().and_then(|key| std::str::from_utf8(key).ok()).ok_or("no key")?;
        let (kind, partition) =
            key.rsplit_once('/').ok_or_else(|| format!("the key {key:?} names no partition"))?;
        let kind: Kind = kind.parse().map_err(|error: tbmq_proto::ids::InvalidKind| error.to_string())?;
        let partition: u32 = partition.parse().map_err(|_| format!("the key {key:?} names no partition"))?;
        let Some(claims) = self.kinds.get(&kind) else { return Ok(()) };
        if partition >= PARTITIONS_MAX {
            return Err(format!("partition {partition} is beyond {PARTITIONS_MAX}"));
        }
        let value = record.value.clone().filter(|value| !value.is_empty());
        let Some(value) = value else { return Ok(()) };
        let claim = OwnerClaim::decode(value).map_err(|error| error.to_string())?;
        let claim = Claim { epoch: record.offset, is_own: claim.incarnation == incarnation };
        claims.send_modify(|claims| {
            claims.insert(partition, claim);
        });
        Ok(())
    }
}

/// Follows the topic of owners for ever.
pub(crate) async fn follow(shared: Arc<Shared>, mut reader: Box<dyn Reader>) {
    let topic = shared.catalogue.owners();
    let partition = TopicPartition::new(topic.name.as_str(), 0);
    reader.add(&partition, Start::Earliest);
    loop {
        match reader.next().await {
            ReaderEvent::Batch { records, .. } => {
                for record in records {
                    if let Err(error) = shared.owners.take(&record, &shared.identity.incarnation) {
                        shared.metrics.bad_record("owner");
                        tracing::warn!(%partition, offset = record.offset, error, "skipped a bad record");
                    }
                }
            }
            ReaderEvent::End { .. } | ReaderEvent::Gap { .. } => {}
            ReaderEvent::Gone { reason, .. } => {
                // Epochs begin anew with it; who is assigned is still the group's word, and the lease's.
                tracing::warn!(%partition, reason, "the topic of owners is gone; making it anew");
                for claims in shared.owners.kinds.values() {
                    claims.send_replace(Claims::new());
                }
                shared.make_anew(&topic).await;
                reader.add(&partition, Start::Earliest);
            }
        }
    }
}

/// Writes a claim for each of these; the epochs are in the same order.
pub(crate) async fn claim(
    shared: &Shared,
    writer: &dyn Writer,
    kind: &Kind,
    partitions: &[TopicPartition],
) -> Result<Vec<u64>, tbmq_bus::Error> {
    let claim = OwnerClaim {
        service_id: shared.identity.service_id.clone(),
        incarnation: shared.identity.incarnation.clone(),
        time_ms: tbmq_service::time::now_ms(),
    };
    let value = claim.encode_to_vec();
    let topic = writer.topic(&shared.catalogue.owners().name);
    let completions = CompletionQueue::new();
    let mut epochs = vec![0; partitions.len()];
    let mut submitted = 0;
    let mut failure = None;
    for (ticket, partition) in partitions.iter().enumerate() {
        let key = Catalogue::owner_key(kind, partition.partition);
        let record =
            Outgoing { partition: None, key: Some(key.as_bytes()), value: Some(&value), headers: &[] };
        match writer.submit(&topic, record, ticket as u64, &completions) {
            Ok(()) => submitted += 1,
            Err(error) => failure = Some(tbmq_bus::Error::Unavailable(error.to_string())),
        }
    }
    let mut outcomes = Vec::new();
    while submitted > 0 {
        completions.wait(&mut outcomes).await;
        for outcome in outcomes.drain(..) {
            submitted -= 1;
            match outcome.result {
                Ok(written) => epochs[outcome.ticket as usize] = written.offset,
                Err(error) => failure = Some(error),
            }
        }
    }
    failure.map_or(Ok(epochs), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, offset: u64, incarnation: &str) -> Record {
        let claim = OwnerClaim { incarnation: incarnation.to_owned(), ..OwnerClaim::default() };
        Record {
            offset,
            timestamp_ms: 0,
            key: Some(key.to_owned().into()),
            value: Some(claim.encode_to_vec().into()),
            headers: Vec::new(),
        }
    }

    #[test]
    fn the_latest_claim_of_a_partition_is_known_and_a_bad_record_is_named() {
        let kind: Kind = "HTTP".parse().unwrap();
        let owners = Owners::new(std::iter::once(kind.clone()));
        owners.take(&record("HTTP/3", 7, "other"), "me").unwrap();
        owners.take(&record("HTTP/3", 9, "me"), "me").unwrap();
        owners.take(&record("MQTT/3", 10, "other"), "me").unwrap();
        let claims = owners.of(&kind).unwrap().borrow().clone();
        assert_eq!(claims, Claims::from([(3, Claim { epoch: 9, is_own: true })]));
        assert!(owners.take(&record("HTTP", 11, "me"), "me").unwrap_err().contains("names no partition"));
        assert!(owners.take(&record("HTTP/99999999", 11, "me"), "me").is_err());
    }
}
