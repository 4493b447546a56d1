//! The dead letters of one running shard: kept until the bus has taken them.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use tbmq_bus::{CompletionQueue, Header, Outgoing, Writer};
use tbmq_integration::{dead_letter, pack, pack::Ticket};

use super::shard::Message;
use crate::{
    Bug,
    env::{Env, note},
};

/// What is to be written, and what is being written.
#[derive(Default)]
pub(super) struct Letters {
    completions: Arc<CompletionQueue>,
    waiting: VecDeque<Letter>,
    writing: BTreeMap<Ticket, Letter>,
}

struct Letter {
    letter: pack::DeadLetter<Message>,
    generation: u64,
    epoch: u64,
}

impl Letters {
    pub(super) fn put(&mut self, letter: pack::DeadLetter<Message>, generation: u64, epoch: u64) {
        self.waiting.push_back(Letter { letter, generation, epoch });
    }

    /// Hands over what waits; ticket and offset of those that are written.
    pub(super) fn work(&mut self, env: &mut Env, writer: &dyn Writer) -> Vec<(Ticket, u64)> {
        let mut done = Vec::new();
        while let Some(letter) = self.waiting.pop_front() {
            let ticket = letter.letter.ticket;
            letter.submit(env, writer, &self.completions);
            if env.has(Bug::BuryUnwritten) {
                done.push((ticket, letter.letter.offset));
            } else {
                self.writing.insert(ticket, letter);
            }
        }
        if self.writing.is_empty() {
            return done;
        }
        env.net.settle();
        let mut outcomes = Vec::new();
        self.completions.take(&mut outcomes);
        for outcome in outcomes {
            let Some(letter) = self.writing.remove(&outcome.ticket) else { continue };
            match outcome.result {
                Ok(_) => done.push((outcome.ticket, letter.letter.offset)),
                Err(error) => {
                    note!(env, "a dead letter of {} is not written: {error}", letter.letter.offset);
                    self.waiting.push_back(letter);
                }
            }
        }
        done
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.writing.len()
    }
}

impl Letter {
    fn submit(&self, env: &Env, writer: &dyn Writer, completions: &Arc<CompletionQueue>) {
        let Self { letter, generation, epoch } = self;
        let place = letter.message.place;
        let said = dead_letter::DeadLetter {
            class: letter.class.to_owned(),
            text: letter.text.clone(),
            attempts: letter.attempts,
            source_topic: env.net.messages(place.id, 1).name,
            source_partition: place.partition,
            source_offset: place.offset,
            generation: *generation,
            revision: 0,
            epoch: *epoch,
            first_ms: letter.first.0 as i64,
            last_ms: letter.last.0 as i64,
        };
        let headers: Vec<Header> =
            said.headers().into_iter().map(|(name, text)| Header::text(&name, text)).collect();
        let record = &letter.message.record;
        let outgoing = Outgoing {
            partition: Some(0),
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            headers: &headers,
        };
        let topic = writer.topic(&env.net.dead_letters(place.id).name);
        // The budgets are far larger than what a shard holds.
        writer.submit(&topic, outgoing, letter.ticket, completions).ok();
    }
}
