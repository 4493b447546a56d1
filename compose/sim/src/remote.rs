//! The other end of the integrations: it answers, late or not at all, or refuses.

use std::collections::{BTreeMap, VecDeque};

use rand::Rng as _;
use tbmq_integration::{
    Millis,
    pack::{Answer, Ticket},
};
use tbmq_proto::ids::IntegrationId;

use crate::{books::Place, env::Env};

/// How the remote end of one integration behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    #[default]
    Up,
    /// Every attempt fails for now.
    Down,
    /// Answers come after the attempt has timed out.
    Slow,
    /// Nothing is answered.
    Silent,
    /// Every message is refused for good.
    Refusing,
    /// It comes and goes, and takes the connection with it.
    Flapping,
}

/// How long a remote end that comes and goes stays as it is, ms.
const FLAP_MS: u64 = 1_500;

/// All remote ends.
#[derive(Debug, Default)]
pub(crate) struct Remote {
    pub(crate) modes: BTreeMap<IntegrationId, Mode>,
}

impl Remote {
    /// How it behaves at this moment.
    pub(crate) fn mode(&self, now: Millis, id: IntegrationId) -> Mode {
        match self.modes.get(&id).copied().unwrap_or_default() {
            Mode::Flapping if (now.0 / FLAP_MS).is_multiple_of(2) => Mode::Up,
            mode => mode,
        }
    }
}

/// The connection of one running shard.
#[derive(Debug, Default)]
pub(crate) struct Sink {
    under_way: VecDeque<Attempt>,
}

/// A message that was handed over.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) ticket: Ticket,
    pub(crate) place: Place,
    at: Millis,
}

impl Sink {
    pub(crate) fn submit(&mut self, now: Millis, ticket: Ticket, place: Place) {
        self.under_way.push_back(Attempt { ticket, place, at: now });
    }

    /// An answer, if there is one now; in any order.
    pub(crate) fn answer(&mut self, env: &mut Env, id: IntegrationId) -> Option<(Attempt, Answer)> {
        if self.under_way.is_empty() {
            return None;
        }
        let mode = env.remote.mode(env.now, id);
        let index = if env.is_calm { 0 } else { env.rng.random_range(0..self.under_way.len()) };
        let is_due = match mode {
            Mode::Up | Mode::Down | Mode::Refusing | Mode::Flapping => true,
            Mode::Slow => env.now.0 > self.under_way[index].at.0 + 2_500,
            Mode::Silent => false,
        };
        if !is_due {
            return None;
        }
        let attempt = self.under_way.remove(index).expect("an index within its length");
        let answer = match mode {
            Mode::Refusing => Answer::Rejected { class: "status", text: "no".to_owned() },
            Mode::Down | Mode::Flapping => {
                Answer::Retry { after: None, class: "connect", text: "down".to_owned() }
            }
            _ if env.mishap(20) => Answer::Retry { after: None, class: "status", text: "busy".to_owned() },
            _ if env.mishap(40) => Answer::Rejected { class: "payload", text: "bad".to_owned() },
            _ => Answer::Delivered,
        };
        Some((attempt, answer))
    }

    /// Messages that were handed over and not answered.
    pub(crate) fn len(&self) -> usize {
        self.under_way.len()
    }
}
