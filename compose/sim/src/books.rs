//! What really happened, kept apart from what the processes believe, and what must never happen (architecture §5).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use prost::Message as _;
use tbmq_bus::{Bus as _, Reader, ReaderConfig, ReaderEvent, Record, Start, TopicPartition};
use tbmq_integration::{dead_letter::DeadLetter, wire::CommitMetadata};
use tbmq_proto::{
    ids::{IntegrationId, ShardId},
    integration::PublishIntegrationMsgProto,
    topic::REVISION_HEADER,
};
use uuid::Uuid;

use crate::{net::Net, settings::DOWNLINK_PARTITIONS};

/// What must never happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// A publish was acknowledged before all of its records were durable (§5.2).
    Acknowledged,
    /// An offset was committed above a message without an outcome (§5.4).
    CommitAboveOpen,
    /// Something was saved that no executor has accepted, or something else runs than what was saved (§5.5).
    Accepted,
    /// A validation ended more than once, or never (§5.6).
    ValidationEndsOnce,
    /// Something that the outside can fill has grown beyond its limit (§5.8).
    Bounds,
    /// The books of a message partition do not add up (§5.10).
    Books,
    /// A former owner handed messages over after its successor (§5.11).
    OneOwner,
    /// An offset went back within one generation and creation of a topic, without a freeze or a loss between check and
    /// commit.
    OffsetsRise,
    /// An older state of the configuration was written, applied or started after a newer one (§4.7, §4.9).
    RevisionsRise,
    /// A data plane served before it knew the filters (§4.22).
    KnownBeforeServed,
    /// Without faults everything settles: one owner, the newest revision, one fate for each message.
    Settles,
    /// A message had more attempts than its document says, or was given up on after fewer.
    Attempts,
    /// A shard was started with an older state than the one that its partition held when it was claimed (§4.19).
    Restored,
    /// A message left as a dead letter that was not written (§4.6).
    DeadLetters,
    /// Two runs of one seed are equal.
    Repeats,
    /// No machine panics.
    NoPanic,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// How an invariant was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// What was seen.
    pub text: String,
}

/// What a run has gone through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say what is counted")]
pub struct Counts {
    pub published: u64,
    pub acknowledged: u64,
    pub delivered: u64,
    pub duplicates: u64,
    pub given_up: u64,
    pub dead_lettered: u64,
    pub stalls: u64,
    pub removed: u64,
    pub commits: u64,
    pub commits_gone_back: u64,
    pub claims: u64,
    pub superseded: u64,
    pub fenced_writes: u64,
    pub crashes: u64,
    pub freezes: u64,
    pub twins: u64,
    pub twin_overlaps: u64,
    pub saved: u64,
    pub rejected: u64,
    pub topics_lost: u64,
    pub topics_deleted: u64,
}

impl Counts {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        let Self {
            published,
            acknowledged,
            delivered,
            duplicates,
            given_up,
            dead_lettered,
            stalls,
            removed,
            commits,
            commits_gone_back,
            claims,
            superseded,
            fenced_writes,
            crashes,
            freezes,
            twins,
            twin_overlaps,
            saved,
            rejected,
            topics_lost,
            topics_deleted,
        } = other;
        self.published += published;
        self.acknowledged += acknowledged;
        self.delivered += delivered;
        self.duplicates += duplicates;
        self.given_up += given_up;
        self.dead_lettered += dead_lettered;
        self.stalls += stalls;
        self.removed += removed;
        self.commits += commits;
        self.commits_gone_back += commits_gone_back;
        self.claims += claims;
        self.superseded += superseded;
        self.fenced_writes += fenced_writes;
        self.crashes += crashes;
        self.freezes += freezes;
        self.twins += twins;
        self.twin_overlaps += twin_overlaps;
        self.saved += saved;
        self.rejected += rejected;
        self.topics_lost += topics_lost;
        self.topics_deleted += topics_deleted;
    }
}

/// A record of a message topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) id: IntegrationId,
    /// Which creation of the topic.
    pub(crate) creation: u64,
    pub(crate) partition: u32,
    pub(crate) offset: u64,
}

/// How a message left, the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Open,
    Delivered,
    Rejected,
    Skipped,
    DeadLettered,
    /// Removed by retention, and told.
    Removed,
}

#[derive(Debug, Default)]
struct Part {
    fates: Vec<Fate>,
    /// Everything below was found to have a fate.
    checked: u64,
}

/// What is committed.
#[derive(Clone, Copy, Debug)]
struct Committed {
    offset: u64,
    generation: u64,
    /// It was on its way when its process was frozen, or had lost the partition.
    is_window: bool,
}

/// Who has handed over last.
#[derive(Clone, Debug)]
struct Handed {
    epoch: u64,
    service: String,
    incarnation: String,
}

/// The books.
pub(crate) struct Books {
    pub(crate) violation: Option<Violation>,
    pub(crate) counts: Counts,
    reader: Box<dyn Reader>,
    /// Message topics that exist: which creation, and what the bus calls it.
    existing: BTreeMap<IntegrationId, (u64, String)>,
    /// What the bus calls the creations that there were.
    topics: BTreeMap<String, u64>,
    creations: u64,
    parts: BTreeMap<(IntegrationId, u64, u32), Part>,
    names: BTreeMap<Arc<str>, IntegrationId>,
    /// Publishes that were written to an integration's topic.
    written: BTreeMap<IntegrationId, BTreeSet<u64>>,
    handed: BTreeMap<ShardId, Handed>,
    accepted: BTreeMap<Uuid, String>,
    /// By topic, creation and partition.
    committed: BTreeMap<(IntegrationId, u64, u32), Committed>,
    /// Of each key of a configuration topic.
    revisions: BTreeMap<(Arc<str>, Vec<u8>), u64>,
    started: BTreeMap<(String, ShardId), u64>,
    /// What the configuration was when a process began to restore.
    began: BTreeMap<String, BTreeMap<Vec<u8>, u64>>,
    downlink: Arc<str>,
    /// Topics of dead letters, and what lies there: integration, generation, partition, offset.
    graves: BTreeMap<Arc<str>, IntegrationId>,
    buried: BTreeSet<(IntegrationId, u64, u32, u64)>,
}

impl Books {
    pub(crate) fn new(net: &Net) -> Self {
        let mut reader =
            net.ask(net.memory.reader(ReaderConfig::new("books", None))).expect("the memory bus has readers");
        let downlink = net.catalogue.downlink(&net.kind).name;
        let subscriptions = net.catalogue.integration_subscriptions().name;
        for partition in 0..DOWNLINK_PARTITIONS {
            reader.add(&TopicPartition::new(downlink.as_str(), partition), Start::Earliest);
        }
        reader.add(&TopicPartition::new(subscriptions, 0), Start::Earliest);
        Self {
            violation: None,
            counts: Counts::default(),
            reader,
            existing: BTreeMap::new(),
            topics: BTreeMap::new(),
            creations: 0,
            parts: BTreeMap::new(),
            names: BTreeMap::new(),
            written: BTreeMap::new(),
            handed: BTreeMap::new(),
            accepted: BTreeMap::new(),
            committed: BTreeMap::new(),
            revisions: BTreeMap::new(),
            started: BTreeMap::new(),
            began: BTreeMap::new(),
            downlink: downlink.into(),
            graves: BTreeMap::new(),
            buried: BTreeSet::new(),
        }
    }

    /// Notes the first thing that went wrong.
    pub(crate) fn violate(&mut self, invariant: Invariant, text: impl Into<String>) {
        self.violation.get_or_insert_with(|| Violation { invariant, text: text.into() });
    }

    // --- topics --------------------------------------------------------------------------------------------------

    pub(crate) fn topic_created(&mut self, net: &Net, id: IntegrationId, partitions: u32) {
        self.observe(net);
        self.creations += 1;
        let name: Arc<str> = net.messages(id, 1).name.into();
        let found = net.ask(net.memory.admin().topic(&name)).expect("the memory bus answers");
        let found = found.expect("it was just created");
        self.topics.insert(found.id.clone(), self.creations);
        self.existing.insert(id, (self.creations, found.id));
        for partition in 0..partitions {
            self.parts.insert((id, self.creations, partition), Part::default());
            let at = TopicPartition::new(Arc::clone(&name), partition);
            self.reader.remove(&at);
            self.reader.add(&at, Start::Offset(0));
        }
        self.names.insert(name, id);
    }

    pub(crate) fn topic_deleted(&mut self, net: &Net, id: IntegrationId) {
        self.observe(net);
        self.existing.remove(&id);
        self.counts.topics_deleted += 1;
    }

    /// Which creation of its topic an integration has now.
    pub(crate) fn creation(&self, id: IntegrationId) -> Option<u64> {
        self.existing.get(&id).map(|(creation, _)| *creation)
    }

    /// The creation of a topic that the bus calls so.
    pub(crate) fn creation_of(&self, topic: &str) -> u64 {
        self.topics.get(topic).copied().unwrap_or(0)
    }

    pub(crate) fn end(&self, id: IntegrationId, creation: u64, partition: u32) -> u64 {
        self.parts.get(&(id, creation, partition)).map_or(0, |part| part.fates.len() as u64)
    }

    /// Reads what was written since.
    pub(crate) fn observe(&mut self, net: &Net) {
        while let Some(event) = net.poll(self.reader.next()) {
            let ReaderEvent::Batch { partition, records } = event else { continue };
            if let Some(id) = self.names.get(&partition.topic).copied() {
                let Some(creation) = self.creation(id) else { continue };
                for record in records {
                    self.message(
                        Place { id, creation, partition: partition.partition, offset: record.offset },
                        &record,
                    );
                }
            } else if let Some(id) = self.graves.get(&partition.topic).copied() {
                for record in records {
                    self.dead_letter(id, &record);
                }
            } else {
                for record in records {
                    self.configuration(&partition.topic, &record);
                }
            }
        }
    }

    fn message(&mut self, place: Place, record: &Record) {
        let part = self.parts.entry((place.id, place.creation, place.partition)).or_default();
        // What retention removed before it was seen here had no reader at all.
        part.fates.resize(place.offset as usize, Fate::Removed);
        part.fates.push(Fate::Open);
        if let Some(number) = publish_of(record) {
            self.written.entry(place.id).or_default().insert(number);
        }
    }

    fn dead_letter(&mut self, id: IntegrationId, record: &Record) {
        match DeadLetter::from_headers(|name| record.header(name)) {
            Ok(letter)
                if publish_of(record).is_some_and(|publish| {
                    self.written.get(&id).is_some_and(|written| written.contains(&publish))
                }) =>
            {
                let DeadLetter { generation, source_partition, source_offset, .. } = letter;
                self.buried.insert((id, generation, source_partition, source_offset));
            }
            Ok(letter) => {
                let text = format!("{letter:?} carries no message of {id}");
                self.violate(Invariant::DeadLetters, text);
            }
            Err(error) => self.violate(Invariant::DeadLetters, error.to_string()),
        }
    }

    fn configuration(&mut self, topic: &Arc<str>, record: &Record) {
        let Some(key) = &record.key else { return };
        let Some(revision) = record.header(REVISION_HEADER).and_then(|text| text.parse().ok()) else {
            return;
        };
        let held = self.revisions.entry((Arc::clone(topic), key.to_vec())).or_default();
        if revision < *held {
            let held = *held;
            let text = format!("{topic} got revision {revision} of a key after revision {held}");
            self.violate(Invariant::RevisionsRise, text);
        } else {
            *held = revision;
        }
    }

    // --- messages ------------------------------------------------------------------------------------------------

    pub(crate) fn acknowledged(&mut self, net: &Net, publish: u64, integrations: &[IntegrationId]) {
        self.observe(net);
        self.counts.acknowledged += 1;
        for id in integrations {
            if !self.written.get(id).is_some_and(|written| written.contains(&publish)) {
                let text = format!("publish {publish} was acknowledged without a record for {id}");
                self.violate(Invariant::Acknowledged, text);
            }
        }
    }

    /// A message is handed to a sink.
    pub(crate) fn handed_over(&mut self, shard: ShardId, epoch: u64, service: &str, incarnation: &str) {
        let last = self.handed.get(&shard);
        if let Some(last) = last.filter(|last| last.epoch > epoch) {
            // Two processes with one id: the bus gives all to the newer one at once; the older one ends as soon as it
            // hears of it.
            if last.service == service && last.incarnation.as_str() > incarnation {
                self.counts.twin_overlaps += 1;
                return;
            }
            let text = format!(
                "{service} handed over a message of {shard} under epoch {epoch} after {} did under {}",
                last.service, last.epoch
            );
            self.violate(Invariant::OneOwner, text);
            return;
        }
        let handed = Handed { epoch, service: service.to_owned(), incarnation: incarnation.to_owned() };
        self.handed.insert(shard, handed);
    }

    /// A message has left an executor.
    pub(crate) fn settled(&mut self, place: Place, fate: Fate) {
        match fate {
            Fate::Delivered => self.counts.delivered += 1,
            Fate::Rejected | Fate::Skipped => self.counts.given_up += 1,
            Fate::DeadLettered => self.counts.dead_lettered += 1,
            Fate::Removed => self.counts.removed += 1,
            Fate::Open => {}
        }
        let Some(part) = self.parts.get_mut(&(place.id, place.creation, place.partition)) else { return };
        match part.fates.get_mut(place.offset as usize) {
            Some(held) if *held == Fate::Open => *held = fate,
            Some(_) => self.counts.duplicates += 1,
            None => {}
        }
    }

    /// Dead letters of an integration may be written from now on.
    pub(crate) fn grave_made(&mut self, net: &Net, id: IntegrationId) {
        let name: Arc<str> = net.dead_letters(id).name.into();
        if self.graves.insert(Arc::clone(&name), id).is_none() {
            self.reader.add(&TopicPartition::new(name, 0), Start::Offset(0));
        }
    }

    /// A message has left an executor for the dead letters.
    pub(crate) fn dead_lettered(&mut self, net: &Net, place: Place, generation: u64) {
        self.observe(net);
        if !self.buried.contains(&(place.id, generation, place.partition, place.offset)) {
            self.violate(Invariant::DeadLetters, format!("the dead letter of {place:?} is not written"));
        }
        self.settled(place, Fate::DeadLettered);
    }

    /// Retention removed what lies between.
    pub(crate) fn removed(&mut self, from: Place, to: u64) {
        for offset in from.offset..to {
            self.settled(Place { offset, ..from }, Fate::Removed);
        }
    }

    /// An offset was committed; `is_window` if a freeze or a loss came between its check and the commit.
    pub(crate) fn committed(
        &mut self,
        id: IntegrationId,
        partition: u32,
        offset: u64,
        metadata: &str,
        is_window: bool,
    ) {
        self.counts.commits += 1;
        let Some((creation, topic)) = self.existing.get(&id).cloned() else { return };
        let Some(metadata) = CommitMetadata::from_text(metadata) else { return };
        // It speaks of another creation, and nobody begins there.
        let is_void = !metadata.is_of(metadata.generation, &topic);
        let counts = if is_void { 0 } else { offset };
        let now = Committed { offset: counts, generation: metadata.generation, is_window };
        let before = self.committed.insert((id, creation, partition), now);
        if is_void {
            return;
        }
        if let Some(before) = before.filter(|held| held.generation == now.generation && held.offset > offset)
        {
            self.counts.commits_gone_back += 1;
            // One of the two was on its way too long: a repetition, never a loss.
            if !is_window && !before.is_window {
                let before = before.offset;
                let text = format!("{id}-{partition}: {offset} was committed after {before}");
                self.violate(Invariant::OffsetsRise, text);
            }
        }
        let Some(part) = self.parts.get_mut(&(id, creation, partition)) else { return };
        let end = part.fates.len() as u64;
        let open = (part.checked..offset.min(end)).find(|at| part.fates[*at as usize] == Fate::Open);
        if let Some(open) = open {
            let text = format!("{id}-{partition}: {offset} is committed, but {open} has no outcome");
            self.violate(Invariant::CommitAboveOpen, text);
        } else if offset > end {
            let text = format!("{id}-{partition}: {offset} is committed, beyond the end {end}");
            self.violate(Invariant::CommitAboveOpen, text);
        } else {
            part.checked = part.checked.max(offset);
            let counted = metadata.totals.settled();
            if counted != offset {
                let text = format!("{id}-{partition}: {offset} is committed, but {counted} are counted");
                self.violate(Invariant::Books, text);
            }
        }
    }

    /// The first message without a fate in what exists of an integration.
    pub(crate) fn first_open(&self, id: IntegrationId) -> Option<(u32, u64)> {
        let creation = self.creation(id)?;
        let parts = self.parts.range((id, creation, 0)..=(id, creation, u32::MAX));
        parts.into_iter().find_map(|((_, _, partition), part)| {
            let open = part.fates.iter().position(|fate| *fate == Fate::Open)?;
            Some((*partition, open as u64))
        })
    }

    // --- configuration -------------------------------------------------------------------------------------------

    /// An executor has answered a request without an error.
    pub(crate) fn accepted(&mut self, request: Uuid, configuration: &str) {
        self.accepted.insert(request, configuration.to_owned());
    }

    /// A document was saved on the strength of this request.
    pub(crate) fn saved(&mut self, request: Option<Uuid>, configuration: &str) {
        self.counts.saved += 1;
        let accepted = request.and_then(|request| self.accepted.get(&request));
        if accepted.is_none_or(|accepted| accepted != configuration) {
            self.violate(
                Invariant::Accepted,
                format!("{configuration} was saved, and nobody has accepted it"),
            );
        }
    }

    /// An executor's process begins to restore.
    pub(crate) fn began(&mut self, net: &Net, process: String) {
        self.observe(net);
        let configuration = self.revisions.iter().filter(|((topic, _), _)| *topic == self.downlink);
        let configuration = configuration.map(|((_, key), revision)| (key.clone(), *revision)).collect();
        self.began.insert(process, configuration);
    }

    /// An executor's process starts a shard.
    pub(crate) fn started(&mut self, process: String, shard: ShardId, revision: u64) {
        let key = shard.downlink_key().into_bytes();
        let least = self.began.get(&process).and_then(|held| held.get(&key)).copied().unwrap_or_default();
        if revision < least {
            let text = format!("{process} starts {shard} with revision {revision}, not {least}");
            self.violate(Invariant::Restored, text);
        }
        let held = self.started.entry((process, shard)).or_default();
        if revision < *held {
            let text = format!("{shard} is started with revision {revision} after revision {held}");
            self.violate(Invariant::RevisionsRise, text);
        } else {
            *held = revision;
        }
    }
}

/// The number of a publish.
pub(crate) fn publish_of(record: &Record) -> Option<u64> {
    let message = PublishIntegrationMsgProto::decode(record.value.clone()?).ok()?;
    let payload = message.publish_msg_proto?.payload;
    Some(u64::from_be_bytes(payload.as_ref().try_into().ok()?))
}
