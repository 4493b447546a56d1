//! One shard on the executor, from desired to running state (spec §4.3, UP-5, UP-6).
//!
//! The machine holds the latest desired state only and reconciles until the running state equals it. The driver
//! carries out one thing at a time: it answers [`Step::Start`] with [`Lifecycle::started`] or [`Lifecycle::failed`],
//! and [`Step::Stop`] with [`Lifecycle::stopped`]; a start that is stopped is given up and answered by `stopped`.

use std::{collections::VecDeque, time::Duration};

use crate::{
    Millis,
    wire::{Cause, Change, Desired},
};

/// What the driver is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Start what is desired.
    Start(Desired),
    /// Stop what runs or starts.
    Stop,
    /// Tell the control plane.
    Tell(Event),
    /// The shard has ended: forget it.
    End,
}

/// A lifecycle event of the executor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It runs.
    Started,
    /// It was stopped, or was told to stop while it did not run.
    Stopped,
    /// It could not be started, or broke.
    Failed {
        /// Why, for people.
        text: String,
    },
    /// A failed one is tried anew.
    Reinit,
}

/// Why a shard ends here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Deleted, or its record was withdrawn.
    Deleted,
    /// Its downlink partition goes to another executor, or the process stops.
    HandOver,
    /// Its downlink partition was taken away: another executor may run it already and reports on it.
    Lost,
}

/// What the shard is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing runs.
    Idle,
    /// Being started.
    Starting,
    /// Runs.
    Started,
    /// Failed; tried anew later.
    Failed,
    /// Being stopped.
    Stopping,
}

/// The machine of one shard.
#[derive(Debug)]
pub struct Lifecycle {
    /// Time between two attempts to start a failed integration; `None`: only an update or a restart tries again.
    reinit: Option<Duration>,
    desired: Option<Desired>,
    /// Number of the latest desired state: two states that are to be told apart have different ones.
    number: u64,
    end: Option<End>,
    is_ended: bool,
    phase: Phase,
    outbox: VecDeque<Step>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Starting(u64),
    Started(u64),
    Failed {
        number: u64,
        retry_at: Option<Millis>,
    },
    /// With the number of what broke: it is failed once it is stopped, if it is still what is wanted.
    Stopping {
        broke: Option<u64>,
    },
}

impl Lifecycle {
    /// A shard of which nothing is known yet. `reinit` is the time between two attempts to start a failed
    /// integration; without it only an update or a restart tries again.
    pub fn new(reinit: Option<Duration>) -> Self {
        Self {
            reinit,
            desired: None,
            number: 0,
            end: None,
            is_ended: false,
            phase: Phase::Idle,
            outbox: VecDeque::new(),
        }
    }

    /// What the shard is at.
    pub fn state(&self) -> State {
        match self.phase {
            Phase::Idle => State::Idle,
            Phase::Starting(_) => State::Starting,
            Phase::Started(_) => State::Started,
            Phase::Failed { .. } => State::Failed,
            Phase::Stopping { .. } => State::Stopping,
        }
    }

    /// The latest desired state.
    pub fn desired(&self) -> Option<&Desired> {
        self.desired.as_ref()
    }

    /// Takes a desired state. One with a lower revision than the one held is ignored; one with the same revision is
    /// a repetition and restarts nothing. States without a revision (0, as TBMQ writes them) are compared by value.
    pub fn desire(&mut self, desired: Desired) {
        if let Some(held) = &self.desired {
            let is_repetition = if desired.revision == 0 {
                let is_reinit = matches!(desired.change, Change::Apply { cause: Cause::Reinit, .. });
                !is_reinit && held.change == desired.change && held.generation == desired.generation
            } else {
                desired.revision == held.revision
            };
            if desired.revision < held.revision || is_repetition {
                return;
            }
        }
        let is_deleted = desired.change == Change::Deleted;
        self.desired = Some(desired);
        self.number += 1;
        match self.end {
            None if is_deleted => self.end = Some(End::Deleted),
            Some(End::Deleted) if !is_deleted => self.end = None,
            _ => {}
        }
        self.reconcile();
    }

    /// Ends the shard: stops what runs, then [`Step::End`]. `Lost` takes the place of every other end, and a deleted
    /// shard is not handed over.
    pub fn end(&mut self, end: End) {
        match (self.end, end) {
            (None, _) | (Some(_), End::Lost) | (Some(End::HandOver), End::Deleted) => self.end = Some(end),
            _ => {}
        }
        self.reconcile();
    }

    /// The start succeeded.
    pub fn started(&mut self) {
        if let Phase::Starting(number) = self.phase {
            self.phase = Phase::Started(number);
            self.tell(Event::Started);
            self.reconcile();
        }
    }

    /// The start failed: the connection, or the configuration itself (UP-6).
    pub fn failed(&mut self, now: Millis, text: String) {
        if let Phase::Starting(number) = self.phase {
            self.fail(now, number);
            self.tell(Event::Failed { text });
            self.reconcile();
        }
    }

    /// What runs can't go on: it is to be closed, and is tried anew later.
    pub fn broken(&mut self, text: String) {
        if let Phase::Started(number) = self.phase {
            self.phase = Phase::Stopping { broke: Some(number) };
            self.tell(Event::Failed { text });
            self.outbox.push_back(Step::Stop);
        }
    }

    /// What runs is to be started anew at once, although nothing has changed: what it reads was made anew.
    pub fn restart(&mut self) {
        if let Phase::Started(_) = self.phase {
            self.phase = Phase::Stopping { broke: None };
            self.outbox.push_back(Step::Stop);
        }
    }

    /// What was to be stopped is stopped.
    pub fn stopped(&mut self, now: Millis) {
        let Phase::Stopping { broke } = self.phase else { return };
        match (self.wanted(), broke) {
            (Some(wanted), Some(number)) if wanted == number => self.fail(now, number),
            (Some(_), _) => self.phase = Phase::Idle,
            (None, _) => self.rest(),
        }
        self.reconcile();
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Millis) {
        if let Phase::Failed { retry_at: Some(at), .. } = self.phase
            && at <= now
        {
            self.tell(Event::Reinit);
            self.phase = Phase::Idle;
            self.reconcile();
        }
    }

    /// When [`Lifecycle::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Millis> {
        match self.phase {
            Phase::Failed { retry_at, .. } => retry_at,
            _ => None,
        }
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Step> {
        self.outbox.pop_front()
    }

    /// Number of what is to run, if anything is.
    fn wanted(&self) -> Option<u64> {
        let is_wanted = self.end.is_none()
            && matches!(&self.desired, Some(Desired { change: Change::Apply { target, .. }, .. }) if target.enabled);
        is_wanted.then_some(self.number)
    }

    fn reconcile(&mut self) {
        if self.is_ended {
            return;
        }
        match (self.phase, self.wanted()) {
            (Phase::Idle | Phase::Failed { .. }, Some(number)) if !matches!(self.phase, Phase::Failed { number: failed, .. } if failed == number) =>
            {
                self.phase = Phase::Starting(number);
                let desired = self.desired.clone().expect("something is wanted");
                self.outbox.push_back(Step::Start(desired));
            }
            (Phase::Starting(running) | Phase::Started(running), wanted) if wanted != Some(running) => {
                self.phase = Phase::Stopping { broke: None };
                self.outbox.push_back(Step::Stop);
            }
            (Phase::Failed { .. }, None) => {
                self.rest();
                self.reconcile();
            }
            (Phase::Idle, None) => {
                if let Some(end) = self.end {
                    self.is_ended = true;
                    // STOPPED is what the control plane waits for before it deletes the message topic.
                    if end == End::Deleted && !self.has_rested() {
                        self.tell(Event::Stopped);
                    }
                    self.outbox.push_back(Step::End);
                }
            }
            _ => {}
        }
    }

    /// Nothing is to run any more, and nothing does.
    fn rest(&mut self) {
        self.phase = Phase::Idle;
        self.tell(Event::Stopped);
    }

    fn has_rested(&self) -> bool {
        self.outbox.back() == Some(&Step::Tell(Event::Stopped))
    }

    fn fail(&mut self, now: Millis, number: u64) {
        self.phase = Phase::Failed { number, retry_at: self.reinit.map(|after| now + after) };
    }

    fn tell(&mut self, event: Event) {
        // Another executor may report on a lost shard already.
        if self.end != Some(End::Lost) {
            self.outbox.push_back(Step::Tell(event));
        }
    }
}

#[cfg(test)]
mod tests {
    use tbmq_proto::ids::{IntegrationId, ShardId};
    use uuid::Uuid;

    use super::*;
    use crate::wire::Target;

    const REINIT: Duration = Duration::from_secs(300);

    fn state(revision: u64, change: Change) -> Desired {
        let shard = ShardId::first(IntegrationId(Uuid::from_u128(1)));
        Desired { shard, shard_count: 1, kind: "HTTP".parse().unwrap(), revision, generation: 1, change }
    }

    fn apply(revision: u64, enabled: bool) -> Desired {
        let target = Target { name: "n".into(), enabled, configuration: "{}".into() };
        state(revision, Change::Apply { cause: Cause::Updated, target })
    }

    fn machine() -> Lifecycle {
        Lifecycle::new(Some(REINIT))
    }

    fn drain(machine: &mut Lifecycle) -> Vec<Step> {
        std::iter::from_fn(|| machine.poll()).collect()
    }

    fn tell(event: Event) -> Step {
        Step::Tell(event)
    }

    fn running() -> Lifecycle {
        let mut machine = machine();
        machine.desire(apply(1, true));
        machine.started();
        assert_eq!(drain(&mut machine), [Step::Start(apply(1, true)), tell(Event::Started)]);
        machine
    }

    #[test]
    fn an_update_stops_and_starts_with_the_latest_state() {
        let mut machine = running();
        machine.desire(apply(2, true));
        machine.desire(apply(3, true));
        machine.stopped(Millis(0));
        machine.started();
        assert_eq!(drain(&mut machine), [Step::Stop, Step::Start(apply(3, true)), tell(Event::Started)]);
    }

    #[test]
    fn a_start_that_is_overtaken_is_given_up() {
        let mut machine = machine();
        machine.desire(apply(1, true));
        machine.desire(apply(2, true));
        machine.started();
        assert_eq!(machine.state(), State::Stopping, "a late answer changes nothing");
        machine.stopped(Millis(0));
        assert_eq!(
            drain(&mut machine),
            [Step::Start(apply(1, true)), Step::Stop, Step::Start(apply(2, true))]
        );
    }

    #[test]
    fn a_repetition_and_a_stale_state_restart_nothing() {
        let mut machine = running();
        machine.desire(apply(1, true));
        machine.desire(apply(0, true));
        assert_eq!(drain(&mut machine), []);
    }

    #[test]
    fn states_without_a_revision_are_told_apart_by_value() {
        let mut machine = machine();
        machine.desire(apply(0, true));
        machine.started();
        machine.desire(apply(0, true));
        assert_eq!(machine.state(), State::Started);
        let Change::Apply { target, .. } = apply(0, true).change else { unreachable!() };
        machine.desire(state(0, Change::Apply { cause: Cause::Reinit, target }));
        assert_eq!(machine.state(), State::Stopping);
    }

    #[test]
    fn disabling_stops_and_tells() {
        let mut machine = running();
        machine.desire(apply(2, false));
        assert_eq!(drain(&mut machine), [Step::Stop]);
        machine.stopped(Millis(0));
        assert_eq!(drain(&mut machine), [tell(Event::Stopped)]);
        machine.desire(apply(3, true));
        assert_eq!(drain(&mut machine), [Step::Start(apply(3, true))]);
    }

    #[test]
    fn one_created_disabled_does_nothing() {
        let mut machine = machine();
        machine.desire(apply(1, false));
        assert_eq!(drain(&mut machine), []);
    }

    #[test]
    fn a_failed_one_is_tried_anew_after_a_while() {
        let mut machine = machine();
        machine.desire(apply(1, true));
        machine.failed(Millis(5), "refused".to_owned());
        let deadline = Millis(5) + REINIT;
        assert_eq!(machine.next_deadline(), Some(deadline));
        machine.tick(Millis(6));
        let failed = tell(Event::Failed { text: "refused".to_owned() });
        assert_eq!(drain(&mut machine), [Step::Start(apply(1, true)), failed]);
        machine.tick(deadline);
        machine.started();
        assert_eq!(
            drain(&mut machine),
            [tell(Event::Reinit), Step::Start(apply(1, true)), tell(Event::Started)]
        );
    }

    #[test]
    fn a_failed_one_starts_at_once_with_a_new_state_and_rests_when_disabled() {
        let mut machine = machine();
        machine.desire(apply(1, true));
        machine.failed(Millis(0), "x".to_owned());
        drain(&mut machine);
        machine.desire(apply(2, true));
        assert_eq!(drain(&mut machine), [Step::Start(apply(2, true))]);
        machine.failed(Millis(0), "y".to_owned());
        drain(&mut machine);
        machine.desire(apply(3, false));
        assert_eq!((drain(&mut machine), machine.next_deadline()), (vec![tell(Event::Stopped)], None));
    }

    #[test]
    fn a_broken_one_is_closed_and_tried_anew() {
        let mut machine = running();
        machine.broken("gone".to_owned());
        machine.stopped(Millis(10));
        assert_eq!(drain(&mut machine), [tell(Event::Failed { text: "gone".to_owned() }), Step::Stop]);
        assert_eq!((machine.state(), machine.next_deadline()), (State::Failed, Some(Millis(10) + REINIT)));
        let mut machine = running();
        machine.broken("gone".to_owned());
        machine.desire(apply(2, true));
        machine.stopped(Millis(10));
        assert_eq!(machine.state(), State::Starting, "a new state need not wait");
    }

    #[test]
    fn a_restart_stops_and_starts_without_a_word_of_stopping() {
        let mut machine = running();
        machine.restart();
        machine.stopped(Millis(0));
        machine.started();
        assert_eq!(drain(&mut machine), [Step::Stop, Step::Start(apply(1, true)), tell(Event::Started)]);
    }

    #[test]
    fn a_deleted_one_stops_tells_and_ends() {
        let mut machine = running();
        machine.desire(state(2, Change::Deleted));
        machine.stopped(Millis(0));
        assert_eq!(drain(&mut machine), [Step::Stop, tell(Event::Stopped), Step::End]);
    }

    #[test]
    fn deleting_one_that_never_ran_tells_as_well() {
        let mut machine = machine();
        machine.desire(apply(1, false));
        machine.desire(state(2, Change::Deleted));
        assert_eq!(drain(&mut machine), [tell(Event::Stopped), Step::End]);
        machine.desire(apply(3, true));
        assert_eq!(drain(&mut machine), [], "an ended machine does nothing");
    }

    #[test]
    fn a_hand_over_tells_stopped_only_of_what_ran() {
        let mut machine = running();
        machine.end(End::HandOver);
        machine.stopped(Millis(0));
        assert_eq!(drain(&mut machine), [Step::Stop, tell(Event::Stopped), Step::End]);
        let mut idle = self::machine();
        idle.desire(apply(1, false));
        idle.end(End::HandOver);
        assert_eq!(drain(&mut idle), [Step::End]);
    }

    #[test]
    fn a_lost_one_ends_without_a_word() {
        let mut machine = running();
        machine.end(End::HandOver);
        machine.end(End::Lost);
        machine.stopped(Millis(0));
        assert_eq!(drain(&mut machine), [Step::Stop, Step::End]);
    }
}
