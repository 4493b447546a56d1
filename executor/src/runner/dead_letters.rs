//! Dead letters of one shard: written durably before the offsets of their messages are committed (architecture §4.6).
//!
//! A letter is kept until the bus has taken it. What waits here is bounded by what the pack machines hold.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use tbmq_bus::{
    Completion, CompletionQueue, Error, Header, Outgoing, Record, TopicHandle, TopicPartition, TopicSpec,
};
use tbmq_integration::{
    Millis, dead_letter,
    dead_letter::DeadLetter,
    pack::{self, Ticket},
};
use tbmq_proto::ids::ShardId;

use super::{running::Held, start::dead_letters_spec};
use crate::executor::Shared;

/// What all dead letters of a run have in common.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) generation: u64,
    pub(super) revision: u64,
    pub(super) epoch: u64,
}

/// Writes the dead letters of one shard.
pub(super) struct DeadLetters {
    shared: Arc<Shared>,
    shard: ShardId,
    origin: Origin,
    spec: TopicSpec,
    topic: TopicHandle,
    completions: Arc<CompletionQueue>,
    waiting: VecDeque<Letter>,
    /// Submitted, by ticket.
    writing: HashMap<Ticket, Letter>,
    pause: Duration,
    retry_at: Option<Millis>,
    making: Option<BoxFuture<'static, Result<bool, Error>>>,
}

#[derive(Debug)]
struct Letter {
    ticket: Ticket,
    record: Arc<Record>,
    headers: Vec<Header>,
}

/// What became of a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// It is durable.
    Yes,
    /// The bus will never take it.
    Never,
}

impl DeadLetters {
    /// `pause` lies between two attempts to write.
    pub(super) fn new(shared: &Arc<Shared>, shard: ShardId, origin: Origin, pause: Duration) -> Self {
        let spec = dead_letters_spec(shared, shard.integration);
        Self {
            topic: shared.writer.topic(&spec.name),
            shared: shared.clone(),
            shard,
            origin,
            spec,
            completions: CompletionQueue::new(),
            waiting: VecDeque::new(),
            writing: HashMap::new(),
            pause,
            retry_at: None,
            making: None,
        }
    }

    /// Takes a letter; it is written with the next [`DeadLetters::submit`].
    pub(super) fn put(&mut self, now: Millis, from: &TopicPartition, letter: pack::DeadLetter<Held>) {
        let Some(record) = letter.message.record else { return };
        let wall_ms = tbmq_service::time::now_ms();
        let at_ms = |at: Millis| wall_ms - now.since(at).as_millis() as i64;
        let said = DeadLetter {
            class: letter.class.to_owned(),
            text: letter.text,
            attempts: letter.attempts,
            source_topic: from.topic.to_string(),
            source_partition: from.partition,
            source_offset: letter.offset,
            generation: self.origin.generation,
            revision: self.origin.revision,
            epoch: self.origin.epoch,
            first_ms: at_ms(letter.first),
            last_ms: at_ms(letter.last),
        };
        // A message that was redriven with the headers of its last letter does not gather them.
        let own =
            record.headers.iter().filter(|header| !header.name.starts_with(dead_letter::PREFIX)).cloned();
        let headers = own.chain(said.headers().into_iter().map(|(name, text)| Header::text(&name, text)));
        self.waiting.push_back(Letter { ticket: letter.ticket, headers: headers.collect(), record });
    }

    /// Hands over what waits, unless it is not time yet.
    pub(super) fn submit(&mut self, now: Millis) {
        if self.making.is_some() || self.retry_at.is_some_and(|at| now < at) {
            return;
        }
        self.retry_at = None;
        while let Some(letter) = self.waiting.pop_front() {
            let Letter { ticket, record, headers } = &letter;
            let outgoing = Outgoing {
                partition: Some(0),
                key: record.key.as_deref(),
                value: record.value.as_deref(),
                headers,
            };
            let submitted = self.shared.writer.submit(&self.topic, outgoing, *ticket, &self.completions);
            if submitted.is_err() {
                self.waiting.push_front(letter);
                self.retry_at = Some(now + self.pause);
                return;
            }
            self.writing.insert(letter.ticket, letter);
        }
    }

    /// What became of letters. Ready, perhaps without one, whenever [`DeadLetters::next_deadline`] may have changed.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, now: Millis) -> Poll<Vec<(Ticket, Written)>> {
        if let Some(making) = &mut self.making
            && let Poll::Ready(result) = making.poll_unpin(cx)
        {
            self.making = None;
            self.retry_at = Some(now + self.pause);
            if let Err(error) = result {
                tracing::warn!(%error, topic = self.spec.name, "can't make the topic of dead letters");
            }
            return Poll::Ready(Vec::new());
        }
        let mut completions = Vec::new();
        let waited = std::pin::pin!(self.completions.wait(&mut completions)).poll_unpin(cx);
        waited.map(|()| {
            completions.into_iter().filter_map(|completion| self.completed(now, completion)).collect()
        })
    }

    fn completed(&mut self, now: Millis, completion: Completion) -> Option<(Ticket, Written)> {
        let letter = self.writing.remove(&completion.ticket)?;
        let metrics = &self.shared.metrics;
        match completion.result {
            Ok(_) => return Some((letter.ticket, Written::Yes)),
            Err(Error::Refused(reason)) => {
                metrics.dead_letters_refused.inc();
                tracing::error!(
                    shard = %self.shard, topic = self.spec.name, reason,
                    "the bus refused a dead letter; its message is skipped"
                );
                return Some((letter.ticket, Written::Never));
            }
            Err(Error::UnknownTopic(_)) if self.making.is_none() => {
                let (admin, spec) = (self.shared.admin.clone(), self.spec.clone());
                self.making = Some(async move { admin.create_topic(&spec).await }.boxed());
            }
            Err(error) => {
                tracing::warn!(shard = %self.shard, %error, "a dead letter was not written; trying again");
            }
        }
        metrics.dead_letters_repeated.inc();
        self.retry_at = Some(now + self.pause);
        self.waiting.push_back(letter);
        None
    }

    /// Letters that are not written yet.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.writing.len()
    }

    /// When [`DeadLetters::submit`] has something to do.
    pub(super) fn next_deadline(&self) -> Option<Millis> {
        self.retry_at.filter(|_| !self.waiting.is_empty())
    }
}
