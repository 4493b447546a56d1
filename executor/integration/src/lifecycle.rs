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
    /// It runs, but nothing gets through.
    Stalled {
        /// Why, as far as it is known, for people.
        text: String,
    },
    /// Something gets through again.
    Resumed,
}

/// When failed integrations are tried anew: after [`Reinit::first`], then after twice as long each time, at most after
/// [`Reinit::longest`]; each pause is shortened by up to a half, so that many that failed together do not come
/// together. A run that was longer than the pause before it begins the row anew, and so does a new desired state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reinit {
    /// The first pause.
    pub first: Duration,
    /// The longest pause.
    pub longest: Duration,
    /// Differs from integration to integration.
    pub seed: u64,
}

/// The row of pauses of one integration.
#[derive(Debug)]
struct Backoff {
    reinit: Reinit,
    random: u64,
    /// The last pause; zero: there was none.
    pause: Duration,
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let Reinit { first, longest, .. } = self.reinit;
        self.pause = (self.pause * 2).clamp(first.min(longest), longest);
        // Knuth's MMIX generator: its upper bits are random enough to spread a herd.
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let shortened = u64::try_from(self.pause.as_millis()).unwrap_or(u64::MAX) / 2;
        self.pause.saturating_sub(Duration::from_millis((self.random >> 33) % (shortened + 1)))
    }
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
    /// `None`: only an update or a restart tries a failed integration again.
    backoff: Option<Backoff>,
    /// When the latest run began.
    running_since: Millis,
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
    /// A shard of which nothing is known yet. Without `reinit` only an update or a restart tries a failed one again.
    pub fn new(reinit: Option<Reinit>) -> Self {
        let backoff = |reinit: Reinit| Backoff { reinit, random: reinit.seed, pause: Duration::ZERO };
        Self {
            backoff: reinit.map(backoff),
            running_since: Millis(0),
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
        self.forget_failures();
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
    pub fn started(&mut self, now: Millis) {
        if let Phase::Starting(number) = self.phase {
            self.phase = Phase::Started(number);
            self.running_since = now;
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
    pub fn broken(&mut self, now: Millis, text: String) {
        if let Phase::Started(number) = self.phase {
            if self.backoff.as_ref().is_some_and(|backoff| now.since(self.running_since) > backoff.pause) {
                self.forget_failures();
            }
            self.phase = Phase::Stopping { broke: Some(number) };
            self.tell(Event::Failed { text });
            self.outbox.push_back(Step::Stop);
        }
    }

    /// Nothing gets through what runs.
    pub fn stalled(&mut self, text: String) {
        if let Phase::Started(_) = self.phase {
            self.tell(Event::Stalled { text });
        }
    }

    /// Something gets through again.
    pub fn resumed(&mut self) {
        if let Phase::Started(_) = self.phase {
            self.tell(Event::Resumed);
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
        let retry_at = self.backoff.as_mut().map(|backoff| now + backoff.next());
        self.phase = Phase::Failed { number, retry_at };
    }

    fn forget_failures(&mut self) {
        if let Some(backoff) = &mut self.backoff {
            backoff.pause = Duration::ZERO;
        }
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

    const REINIT: Reinit =
        Reinit { first: Duration::from_secs(1), longest: Duration::from_secs(300), seed: 1 };

    /// The pauses after failures in a row.
    fn pauses(machine: &mut Lifecycle, count: usize) -> Vec<u64> {
        let mut now = Millis(0);
        let mut pauses = Vec::new();
        for _ in 0..count {
            machine.failed(now, "refused".to_owned());
            let at = machine.next_deadline().unwrap();
            pauses.push(at.0 - now.0);
            now = at;
            machine.tick(now);
        }
        drain(machine);
        pauses
    }

    fn state(revision: u64, change: Change) -> Desired {
        let shard = ShardId::first(IntegrationId(Uuid::from_u128(1)));
        Desired { shard, shard_count: 1, kind: "HTTP".parse().unwrap(), revision, generation: 1, change }
    }

    fn apply(revision: u64, enabled: bool) -> Desired {
        let target = Target { name: "n".into(), enabled, configuration: "{}".into(), sealed: None };
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
        machine.started(Millis(0));
        assert_eq!(drain(&mut machine), [Step::Start(apply(1, true)), tell(Event::Started)]);
        machine
    }

    #[test]
    fn an_update_stops_and_starts_with_the_latest_state() {
        let mut machine = running();
        machine.desire(apply(2, true));
        machine.desire(apply(3, true));
        machine.stopped(Millis(0));
        machine.started(Millis(0));
        assert_eq!(drain(&mut machine), [Step::Stop, Step::Start(apply(3, true)), tell(Event::Started)]);
    }

    #[test]
    fn a_start_that_is_overtaken_is_given_up() {
        let mut machine = machine();
        machine.desire(apply(1, true));
        machine.desire(apply(2, true));
        machine.started(Millis(0));
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
        machine.started(Millis(0));
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
        let deadline = machine.next_deadline().unwrap();
        assert!((505..=1005).contains(&deadline.0), "{deadline:?}");
        machine.tick(Millis(6));
        let failed = tell(Event::Failed { text: "refused".to_owned() });
        assert_eq!(drain(&mut machine), [Step::Start(apply(1, true)), failed]);
        machine.tick(deadline);
        machine.started(Millis(0));
        assert_eq!(
            drain(&mut machine),
            [tell(Event::Reinit), Step::Start(apply(1, true)), tell(Event::Started)]
        );
    }

    #[test]
    fn the_pauses_between_attempts_grow_to_the_period_and_differ_between_integrations() {
        let run = |seed| {
            let mut machine = Lifecycle::new(Some(Reinit { seed, ..REINIT }));
            machine.desire(apply(1, true));
            pauses(&mut machine, 14)
        };
        for seed in 0..50 {
            let pauses = run(seed);
            for (index, pause) in pauses.iter().enumerate() {
                let full = (1_000_u64 << index).min(300_000);
                assert!((full / 2..=full).contains(pause), "{seed}: {pauses:?}");
            }
        }
        assert_ne!(run(1), run(2));
        assert_eq!(run(1), run(1));
    }

    #[test]
    fn one_that_runs_for_a_while_or_is_changed_begins_with_the_shortest_pause_again() {
        let after = |ran_ms: u64, is_changed: bool| {
            let mut machine = machine();
            machine.desire(apply(1, true));
            let before = *pauses(&mut machine, 5).last().unwrap();
            assert!(before >= 8_000);
            machine.started(Millis(0));
            machine.broken(Millis(ran_ms), "gone".to_owned());
            machine.stopped(Millis(ran_ms));
            if is_changed {
                machine.desire(apply(2, true));
                machine.failed(Millis(ran_ms), "refused".to_owned());
            }
            machine.next_deadline().unwrap().0 - ran_ms
        };
        assert!(after(100, false) >= 16_000, "flapping must not make it try ever faster");
        assert!(after(20_000, false) <= 1_000);
        assert!(after(100, true) <= 1_000);
    }

    #[test]
    fn without_healing_a_failed_one_stays_failed_until_it_is_changed() {
        let mut machine = Lifecycle::new(None);
        machine.desire(apply(1, true));
        machine.failed(Millis(0), "refused".to_owned());
        assert_eq!((machine.state(), machine.next_deadline()), (State::Failed, None));
        machine.desire(apply(2, true));
        assert_eq!(machine.state(), State::Starting);
    }

    #[test]
    fn a_stall_is_told_of_what_runs_only() {
        let mut machine = running();
        machine.stalled("slow".to_owned());
        machine.resumed();
        let stalled = Event::Stalled { text: "slow".to_owned() };
        assert_eq!(drain(&mut machine), [tell(stalled), tell(Event::Resumed)]);
        machine.broken(Millis(0), "gone".to_owned());
        drain(&mut machine);
        machine.stalled("slow".to_owned());
        machine.resumed();
        assert_eq!(drain(&mut machine), []);
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
        machine.broken(Millis(0), "gone".to_owned());
        machine.stopped(Millis(10));
        assert_eq!(drain(&mut machine), [tell(Event::Failed { text: "gone".to_owned() }), Step::Stop]);
        assert_eq!(machine.state(), State::Failed);
        assert!(machine.next_deadline().is_some_and(|at| (510..=1010).contains(&at.0)));
        let mut machine = running();
        machine.broken(Millis(0), "gone".to_owned());
        machine.desire(apply(2, true));
        machine.stopped(Millis(10));
        assert_eq!(machine.state(), State::Starting, "a new state need not wait");
    }

    #[test]
    fn a_restart_stops_and_starts_without_a_word_of_stopping() {
        let mut machine = running();
        machine.restart();
        machine.stopped(Millis(0));
        machine.started(Millis(0));
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
