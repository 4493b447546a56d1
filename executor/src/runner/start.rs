//! From what is desired to something that can run: the document is checked, the message topic found, the sink connected.

use std::{sync::Arc, time::Duration};

use serde_json::{Map, Value};
use tbmq_bus::{Error, Start, TopicPartition, TopicSpec, spec_of};
use tbmq_integration::{
    entity::{Document, Violation},
    pack,
    wire::{Change, CommitMetadata, Desired, Target, Totals},
};
use tbmq_proto::ids::{IntegrationId, ShardId};

use super::{Restart, running::said};
use crate::{
    executor::Shared,
    lookup::Found,
    sink::{Sink, SinkContext, SinkKind},
};

/// The first pause between two looks for a topic; the longest is the poll interval.
const LOOKUP_PAUSE: Duration = Duration::from_millis(100);

/// What a start results in.
pub(super) struct Started {
    pub(super) sink: Box<dyn Sink>,
    pub(super) settings: pack::Settings,
    /// Where to begin in each, and what was counted up to there.
    pub(super) partitions: Vec<(TopicPartition, Start, Totals)>,
    pub(super) generation: u64,
    /// The bus's id of the message topic.
    pub(super) topic_id: String,
    pub(super) revision: u64,
    /// Between two attempts to reach the bus.
    pub(super) poll_interval: Duration,
}

/// Connects what is desired. Waits for its message topic, and for the remote end where the kind says so.
pub(super) async fn start(
    shared: Arc<Shared>,
    shard: ShardId,
    desired: Desired,
    restart: Restart,
) -> Result<Started, String> {
    let Change::Apply { target, .. } = &desired.change else { return Err("deleted".to_owned()) };
    let target = shared.open(shard.integration, target)?;
    let redactor = shared.redactor(&desired.kind, &target.configuration);
    let started = start_opened(shared, shard, &desired, target, restart).await;
    let mut started = started.map_err(|text| redactor.clean(text))?;
    started.sink = redactor.wrap(started.sink);
    Ok(started)
}

/// As [`start`], with the whole configuration; what it says may hold secrets.
async fn start_opened(
    shared: Arc<Shared>,
    shard: ShardId,
    desired: &Desired,
    target: Target,
    restart: Restart,
) -> Result<Started, String> {
    let kind = shared.kind(&desired.kind)?.clone();
    let document = read(&*kind, &target.configuration).map_err(|violations| listed(&violations))?;
    let settings = shared.config.pack(&document, &*kind);
    let poll_interval = shared.config.poll_interval(&document.delivery);
    let (found, partitions) = locate(&shared, shard, desired.shard_count, poll_interval).await?;
    if settings.dead_letters {
        make_dead_letters(&shared, shard.integration, poll_interval).await?;
    }
    let begin = |partition: TopicPartition| {
        let (start, totals) = begin_at(&found, &partition, desired.generation, restart);
        (partition, start, totals)
    };
    let partitions = partitions.into_iter().map(begin).collect();
    let context = SinkContext {
        shard,
        topic: found.info.name.as_str().into(),
        metadata: Arc::new(metadata(&target.name, &document)),
        target,
        executor_id: shared.executor_id.clone(),
        window: settings.window_messages,
    };
    if shared.connects.available_permits() == 0 {
        shared.metrics.limit_reached("connects");
    }
    // The semaphore is never closed.
    let _permit = shared.connects.acquire().await.ok();
    let sink = kind.connect(&document.client_configuration, context).await.map_err(|error| {
        if error.violations.is_empty() { said(error.text) } else { listed(&error.violations) }
    })?;
    Ok(Started {
        sink,
        settings,
        partitions,
        generation: desired.generation,
        topic_id: found.info.id,
        revision: desired.revision,
        poll_interval,
    })
}

/// Reads a document, or lists its problems, those of the kind included.
pub(crate) fn read(kind: &dyn SinkKind, configuration: &str) -> Result<Document, Vec<Violation>> {
    Document::parse_with(configuration, |client_configuration| kind.check(client_configuration))
}

/// The metadata that sinks write: the integration's name, overlaid by what the document says.
pub(crate) fn metadata(name: &str, document: &Document) -> Map<String, Value> {
    let name = ("integrationName".to_owned(), Value::from(name));
    let own = document.metadata.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str())));
    std::iter::once(name).chain(own).collect()
}

/// All problems in one text, never empty (UP-9).
pub(crate) fn listed(violations: &[Violation]) -> String {
    let texts: Vec<_> = violations.iter().map(ToString::to_string).collect();
    said(texts.join("; "))
}

/// The message partitions of a shard. Waits until the topic is there: the control plane makes it.
async fn locate(
    shared: &Shared,
    shard: ShardId,
    shard_count: u32,
    longest: Duration,
) -> Result<(Found, Vec<TopicPartition>), String> {
    let topic = shared.catalogue.messages(shard.integration, shard_count).name;
    let mut pause = LOOKUP_PAUSE;
    let found = loop {
        match shared.lookup.find(&topic).await {
            Ok(Some(found)) => break found,
            Ok(None) => tracing::debug!(topic, "the message topic is not there yet"),
            Err(error) => tracing::debug!(topic, %error, "can't look for the message topic"),
        }
        tokio::time::sleep(pause.min(longest)).await;
        pause = (pause * 2).min(longest);
    };
    let count = found.info.partitions;
    let topic: Arc<str> = topic.into();
    let own = (0..count).filter(|partition| partition % shard_count == shard.index);
    let partitions: Vec<_> = own.map(|partition| TopicPartition::new(topic.clone(), partition)).collect();
    match partitions.len() {
        0 => Err(format!(
            "topic {topic} has {count} partitions, none of them for shard {shard} of {shard_count}"
        )),
        1..=256 => Ok((found, partitions)),
        more => Err(format!("topic {topic} has {more} partitions for one shard; at most 256 can be read")),
    }
}

/// The topic of an integration's dead letters, as it is to be made.
pub(super) fn dead_letters_spec(shared: &Shared, integration: IntegrationId) -> TopicSpec {
    let mut spec = spec_of(&shared.catalogue.dead_letters(integration), shared.replication_factor);
    let config = &shared.config.queue.integration_dlq;
    let mut set = |name: &str, value: String| {
        spec.settings.retain(|(held, _)| held != name);
        spec.settings.push((name.to_owned(), value));
    };
    set("retention.ms", config.retention.as_millis().to_string());
    if let Some(bytes) = config.retention_bytes {
        set("retention.bytes", bytes.to_string());
    }
    spec
}

/// Makes the topic of dead letters before anything can need it. Waits for the bus; fails when it refuses.
async fn make_dead_letters(
    shared: &Shared,
    integration: IntegrationId,
    pause: Duration,
) -> Result<(), String> {
    let spec = dead_letters_spec(shared, integration);
    loop {
        match shared.admin.create_topic(&spec).await {
            Ok(_) => return Ok(()),
            Err(Error::Unavailable(error)) => {
                tracing::debug!(
                    topic = spec.name,
                    error,
                    "can't make the topic of dead letters; trying again"
                );
            }
            Err(error) => return Err(format!("can't make the topic of dead letters {}: {error}", spec.name)),
        }
        tokio::time::sleep(pause).await;
    }
}

/// Where to begin, and what was counted up to there: at what was committed for this generation and this creation of the
/// topic, else at its first record.
fn begin_at(found: &Found, partition: &TopicPartition, generation: u64, restart: Restart) -> (Start, Totals) {
    let committed = || {
        let commit = found.commits.iter().find(|commit| commit.partition == *partition)?;
        let metadata = CommitMetadata::from_text(&commit.metadata)?;
        metadata.is_of(generation, &found.info.id).then_some((commit.offset, metadata.totals))
    };
    // Not `Earliest`: what retention removed before the first start is a gap, and no gap is silent.
    let (offset, totals) = match restart {
        Restart::FromBegin => (0, Totals::default()),
        Restart::No => committed().unwrap_or_default(),
    };
    (Start::Offset(offset), totals)
}
