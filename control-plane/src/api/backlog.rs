//! What was written to message topics and not settled yet: from the positions of the bus, and from what executors have
//! committed with theirs (architecture §5.10).
//!
//! Of each partition `end - start = settled + in flight + queued`. What is settled ends at the committed offset, and the
//! commit tells what became of it. What lies below the start of the topic and was not settled has expired. The oldest
//! unsettled message is the record at the committed offset; its time is taken from the commit when the executor held
//! the record, else from the record itself, which is read once and remembered.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use quick_cache::sync::Cache;
use tbmq_bus::{
    Admin, Bounds, Commit, Error, Reader, ReaderConfig, ReaderEvent, Start, TopicInfo, TopicPartition,
};
use tbmq_integration::{
    cleanup::Stage,
    wire::{CommitMetadata, Totals},
};
use tbmq_proto::{
    control::{Lag, integration_stats::Counters},
    ids::IntegrationId,
};
use tokio::{
    sync::{Mutex as AsyncMutex, Semaphore},
    time::Instant,
};

use super::{
    integration::timestamp,
    rates::{Rates, Samples},
};
use crate::{
    lag as metrics,
    plane::Plane,
    store::{Life, Row},
};

/// Looks at the bus at a time; each may hold a thread until the bus answers.
const LOOKS_MAX: usize = 8;

/// How often a look begins anew because a topic was deleted meanwhile.
const LOOKS_AGAIN: usize = 3;

/// Integrations whose rates are known.
const RATES_MAX: usize = 10_000;

/// Records whose time is remembered.
const TIMES_MAX: usize = 20_000;

/// Records that are read for one call; what is beyond has no age.
const PEEKS_MAX: usize = 1_000;

/// Part of the patience of a call that is left for the reading of records.
pub(super) const PEEK_PATIENCE: Duration = Duration::from_millis(500);

/// The longest time that a protobuf duration can be.
const DRAIN_MAX_SECONDS: f64 = 315_576_000_000.0;

/// The first millisecond that a protobuf timestamp can't be, since 1970.
const YEAR_10000_MS: i64 = 253_402_300_800_000;

/// A record: id of its topic, partition, offset. What was there once is there for ever.
pub(super) type RecordKey = (Arc<str>, u32, u64);

/// Looks at backlogs, and remembers what rates need.
pub(super) struct Backlogs {
    looks: Arc<Semaphore>,
    rates: Cache<IntegrationId, Arc<Mutex<Samples>>>,
    times: Cache<RecordKey, i64>,
    /// Opened when it is needed first; whoever reads has taken it out.
    reader: AsyncMutex<Option<Box<dyn Reader>>>,
    began: std::time::Instant,
}

impl std::fmt::Debug for Backlogs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backlogs").field("rates", &self.rates.len()).finish_non_exhaustive()
    }
}

/// The backlog of one integration.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Backlog {
    written: u64,
    totals: Totals,
    messages: u64,
    /// When the oldest message was written, epoch ms.
    oldest_ms: Option<i64>,
    /// By how much committed offsets and what became of the messages below them differ.
    unaccounted: u64,
    pub(super) rates: Option<Rates>,
}

/// What the bus knows of one partition.
#[derive(Clone, Debug)]
struct Part {
    at: TopicPartition,
    bounds: Bounds,
    /// Of this creation of the topic.
    commit: Option<(u64, CommitMetadata)>,
}

/// A topic with its partitions; none if it does not exist.
#[derive(Clone, Debug, Default)]
struct Topic {
    id: Arc<str>,
    generation: u64,
    parts: Vec<Part>,
}

impl Part {
    /// Everything below is settled or gone.
    fn front(&self) -> u64 {
        self.commit.as_ref().map_or(0, |(offset, _)| *offset).max(self.bounds.start)
    }

    fn messages(&self) -> u64 {
        self.bounds.end.saturating_sub(self.front())
    }

    /// What became of what lies below the front.
    fn totals(&self) -> Totals {
        let (committed, mut totals) = match &self.commit {
            Some((offset, metadata)) => (*offset, metadata.totals),
            None => (0, Totals::default()),
        };
        // The executor will find the gap and count the same.
        totals.expired = totals.expired.saturating_add(self.bounds.start.saturating_sub(committed));
        totals
    }

    /// By how much the committed offset and what became of the messages below it differ: not at all (architecture §5.10).
    fn unaccounted(&self) -> u64 {
        self.commit.as_ref().map_or(0, |(offset, metadata)| offset.abs_diff(metadata.totals.settled()))
    }

    /// When the record at the front was written, if the commit says so.
    fn oldest_ms(&self) -> Option<i64> {
        let (offset, metadata) = self.commit.as_ref()?;
        metadata.oldest_ms.filter(|_| *offset == self.front())
    }
}

impl Topic {
    /// The records at the fronts that have one.
    fn fronts(&self) -> impl Iterator<Item = (RecordKey, &Part)> {
        let waiting = self.parts.iter().filter(|part| part.messages() > 0);
        waiting.map(|part| ((self.id.clone(), part.at.partition, part.front()), part))
    }

    fn backlog(&self, time_of: impl Fn(&RecordKey) -> Option<i64>) -> Backlog {
        let sum = |of: fn(&Part) -> u64| self.parts.iter().map(of).fold(0, u64::saturating_add);
        let totals = self.parts.iter().map(Part::totals).fold(Totals::default(), Totals::with);
        let oldest = self.fronts().filter_map(|(key, part)| part.oldest_ms().or_else(|| time_of(&key)));
        Backlog {
            written: sum(|part| part.bounds.end),
            messages: sum(Part::messages),
            unaccounted: sum(Part::unaccounted),
            totals,
            oldest_ms: oldest.min(),
            rates: None,
        }
    }
}

impl Backlog {
    pub(super) fn counters(&self) -> Counters {
        let Totals { delivered, rejected, skipped, dead_lettered, expired, retries } = self.totals;
        Counters { written: self.written, delivered, rejected, skipped, dead_lettered, expired, retries }
    }

    /// For the resource.
    pub(super) fn lag(&self, plane: &Plane, row: &Row, life: &Life, now_ms: i64) -> Lag {
        let oldest_ms = self.oldest_ms.filter(|_| self.messages > 0);
        let kept_until =
            oldest_ms.zip(retention_ms(plane, life)).and_then(|(at, kept)| dated(at.saturating_add(kept)));
        let ttl_sec = plane.config.integrations.cleanup.ttl;
        let removal_ms = removal_ms(ttl_sec, row.disconnected_ms, life.life.stage);
        Lag {
            messages: self.messages,
            seconds: oldest_ms.map_or(0.0, |at| now_ms.saturating_sub(at).max(0) as f64 / 1_000.0),
            time_to_drain: self.rates.and_then(|rates| time_to_drain(self.messages, rates)),
            kept_until: kept_until.map(timestamp),
            expired: self.totals.expired,
            topic_removal_time: removal_ms.map(timestamp),
        }
    }
}

/// Of a backlog, at this time (epoch ms).
impl From<(&Backlog, i64)> for metrics::Lag {
    fn from((backlog, now_ms): (&Backlog, i64)) -> Self {
        let Backlog { messages, oldest_ms, unaccounted, rates, .. } = *backlog;
        let oldest_ms = oldest_ms.filter(|_| messages > 0);
        Self {
            messages,
            seconds: oldest_ms.map_or(0.0, |at| now_ms.saturating_sub(at).max(0) as f64 / 1_000.0),
            seconds_to_drain: rates.and_then(|rates| seconds_to_drain(messages, rates)),
            unaccounted,
        }
    }
}

/// With which retention the control plane makes message topics; `None`: nothing is ever removed.
fn retention_ms(plane: &Plane, life: &Life) -> Option<i64> {
    let topic = plane.catalogue.messages(life.integration, life.shards);
    let (_, text) = topic.settings.into_iter().find(|(name, _)| *name == "retention.ms")?;
    text.parse().ok().filter(|ms| *ms >= 0)
}

/// When the topic of a disabled integration is to be removed; `None`: it is removed already, or never.
fn removal_ms(ttl_sec: i64, disconnected_ms: Option<i64>, stage: Stage) -> Option<i64> {
    let is_there = !matches!(stage, Stage::Parked | Stage::Gone);
    let since = disconnected_ms.filter(|_| is_there && ttl_sec > 0)?;
    dated(since.saturating_add(ttl_sec.saturating_mul(1_000)))
}

/// A time that a protobuf timestamp can be; later is never.
fn dated(ms: i64) -> Option<i64> {
    (ms < YEAR_10000_MS).then_some(ms)
}

/// How long it takes at these rates, if it ever ends.
fn time_to_drain(messages: u64, rates: Rates) -> Option<prost_types::Duration> {
    Duration::try_from_secs_f64(seconds_to_drain(messages, rates)?).ok()?.try_into().ok()
}

fn seconds_to_drain(messages: u64, rates: Rates) -> Option<f64> {
    let shrinks = rates.settled_per_second - rates.written_per_second;
    (messages > 0 && shrinks > 0.0).then(|| (messages as f64 / shrinks).min(DRAIN_MAX_SECONDS))
}

impl Backlogs {
    pub(super) fn new() -> Self {
        Self {
            looks: Arc::new(Semaphore::new(LOOKS_MAX)),
            rates: Cache::new(RATES_MAX),
            times: Cache::new(TIMES_MAX),
            reader: AsyncMutex::new(None),
            began: std::time::Instant::now(),
        }
    }

    /// The backlogs of integrations by their lives: one question each for topics, bounds and commits, however many
    /// they are. Waits for the bus, at most `patience`.
    ///
    /// # Errors
    /// When the bus does not answer in time.
    pub(super) async fn of(
        &self,
        plane: &Arc<Plane>,
        lives: &[Life],
        patience: Duration,
    ) -> Result<HashMap<IntegrationId, Backlog>, Error> {
        let deadline = Instant::now() + patience;
        let late = || Error::Unavailable(format!("no answer within {patience:?}"));
        let looks = self.looks.clone();
        let asked = (plane.clone(), lives.to_vec());
        let look = async move {
            // Never closed. Held until the bus has answered, even when the caller has gone: what waits is bounded.
            let permit = looks.acquire_owned().await.ok();
            let (plane, lives) = asked;
            let looking = tokio::spawn(async move {
                let _permit = permit;
                look(&plane, &lives).await
            });
            looking.await.map_err(|error| Error::Unavailable(error.to_string()))?
        };
        let topics = tokio::time::timeout_at(deadline, look).await.map_err(|_| late())??;
        // Where the commit tells it, the record need not.
        let untold = topics
            .iter()
            .flat_map(|(_, topic)| topic.fronts())
            .filter(|(_, part)| part.oldest_ms().is_none());
        let fronts = untold.map(|(key, part)| (key, part.at.clone())).collect();
        let read = self.peek(plane, fronts, deadline.min(Instant::now() + PEEK_PATIENCE)).await;
        let now = self.began.elapsed();
        let backlog = |(id, topic): (IntegrationId, Topic)| {
            let mut backlog = topic.backlog(|key| read.get(key).copied());
            backlog.rates = self.rates_of(id, &topic, &backlog, now);
            (id, backlog)
        };
        Ok(topics.into_iter().map(backlog).collect())
    }

    fn rates_of(&self, id: IntegrationId, topic: &Topic, backlog: &Backlog, now: Duration) -> Option<Rates> {
        if topic.parts.is_empty() {
            self.rates.remove(&id);
            return None;
        }
        let fresh = || Ok::<_, std::convert::Infallible>(Arc::default());
        let Ok(samples): Result<Arc<Mutex<Samples>>, _> = self.rates.get_or_insert_with(&id, fresh);
        let settled = backlog.written.saturating_sub(backlog.messages);
        samples.lock().add((topic.id.clone(), topic.generation), now, backlog.written, settled)
    }

    /// When records were written: as far as it is remembered or can be read in time.
    pub(super) async fn peek(
        &self,
        plane: &Plane,
        records: Vec<(RecordKey, TopicPartition)>,
        deadline: Instant,
    ) -> HashMap<RecordKey, i64> {
        let mut known = HashMap::new();
        let mut wanted: HashMap<TopicPartition, RecordKey> = HashMap::new();
        for (key, at) in records {
            if let Some(time) = self.times.get(&key) {
                known.insert(key, time);
            } else if wanted.len() < PEEKS_MAX {
                wanted.insert(at, key);
            }
        }
        if wanted.is_empty() {
            return known;
        }
        let Ok(mut place) = tokio::time::timeout_at(deadline, self.reader.lock()).await else { return known };
        let mut reader = match place.take() {
            Some(reader) => reader,
            None => match open(plane).await {
                Ok(reader) => reader,
                Err(error) => {
                    tracing::debug!(%error, "can't read the oldest messages");
                    return known;
                }
            },
        };
        for (at, key) in &wanted {
            reader.add(at, Start::Offset(key.2));
        }
        let mut open: HashSet<TopicPartition> = wanted.keys().cloned().collect();
        while !open.is_empty() {
            let Ok(event) = tokio::time::timeout_at(deadline, reader.next()).await else { break };
            let (at, time) = match event {
                ReaderEvent::Batch { partition, records } => {
                    (partition, records.first().map(|record| (record.offset, record.timestamp_ms)))
                }
                // It goes on with the first that is kept.
                ReaderEvent::Gap { .. } => continue,
                ReaderEvent::End { partition, .. } | ReaderEvent::Gone { partition, .. } => (partition, None),
            };
            if open.remove(&at)
                && let (Some((offset, time)), Some(key)) = (time, wanted.get(&at))
            {
                // After a gap it is a later one.
                if offset == key.2 {
                    self.times.insert(key.clone(), time);
                }
                known.insert(key.clone(), time);
            }
            reader.remove(&at);
        }
        for at in &open {
            reader.remove(at);
        }
        // Whoever is cancelled before this has dropped it with what it was reading.
        *place = Some(reader);
        known
    }
}

async fn open(plane: &Plane) -> Result<Box<dyn Reader>, Error> {
    let mut config = ReaderConfig::new(plane.catalogue.client_id("ie-msg-observer", &plane.service_id), None);
    config.partition_budget_bytes = 16 << 10;
    config.budget_bytes = 16 << 20;
    config.batch_records = 1;
    plane.bus.reader(config).await
}

/// What the bus knows of the topics of these integrations.
async fn look(plane: &Plane, lives: &[Life]) -> Result<Vec<(IntegrationId, Topic)>, Error> {
    let mut again = 0;
    loop {
        match look_once(plane, lives).await {
            // One of them was deleted meanwhile.
            Err(Error::UnknownTopic(_)) if again < LOOKS_AGAIN => again += 1,
            Err(Error::UnknownTopic(topic)) => {
                return Err(Error::Unavailable(format!("topic {topic} has just been deleted")));
            }
            other => return other,
        }
    }
}

async fn look_once(plane: &Plane, lives: &[Life]) -> Result<Vec<(IntegrationId, Topic)>, Error> {
    let admin: &dyn Admin = &*plane.admin;
    let names: Vec<String> =
        lives.iter().map(|life| plane.catalogue.messages(life.integration, life.shards).name).collect();
    let infos = admin.describe(&names.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    let of_topic = |info: &TopicInfo| {
        let name: Arc<str> = info.name.as_str().into();
        (0..info.partitions).map(move |partition| TopicPartition::new(name.clone(), partition))
    };
    let partitions: Vec<TopicPartition> = infos.iter().flatten().flat_map(of_topic).collect();
    let group = plane.catalogue.messages_group();
    let (bounds, commits) = match partitions.as_slice() {
        [] => (Vec::new(), Vec::new()),
        some => tokio::try_join!(admin.bounds(some), admin.committed(&group, some))?,
    };
    let mut commits: HashMap<TopicPartition, Commit> =
        commits.into_iter().map(|commit| (commit.partition.clone(), commit)).collect();
    let mut parts = partitions.into_iter().zip(bounds);
    let topic = |(life, info): (&Life, Option<TopicInfo>)| {
        let Some(info) = info else { return (life.integration, Topic::default()) };
        let generation = life.life.generation;
        let part = |(at, bounds): (TopicPartition, Bounds)| {
            let commit = commits.remove(&at).and_then(|commit| {
                let metadata = CommitMetadata::from_text(&commit.metadata)?;
                // One of another generation speaks of another topic.
                metadata.is_of(generation, &info.id).then_some((commit.offset, metadata))
            });
            Part { at, bounds, commit }
        };
        let parts = parts.by_ref().take(info.partitions as usize).map(part).collect();
        (life.integration, Topic { id: info.id.as_str().into(), generation, parts })
    };
    Ok(lives.iter().zip(infos).map(topic).collect())
}

#[cfg(test)]
mod tests;
