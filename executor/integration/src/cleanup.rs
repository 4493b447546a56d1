//! The life of an integration's message topic (architecture §4.10), as the control plane keeps it.
//!
//! | goal | road |
//! |---|---|
//! | keep | `Create` → `Live` |
//! | park (disabled past the time to live) | `Live` → `Withdraw` → `AwaitNodes` → `AwaitStop` → `Delete` → `Parked` |
//! | remove | (any) → `Withdraw` → `AwaitNodes` → `Dismiss` → `AwaitStop` → `Delete` → `AwaitTombstone` → `Gone` |
//!
//! A step may be repeated until its result is reported: the state is durable and its holder may die between the two.
//! A topic that was, or may have been, deleted comes back under a greater generation. So does one that others have
//! deleted, whether they have made it anew or not.

use std::time::Duration;

use crate::Millis;

/// How long an executor may take to report that it has stopped.
pub const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// How long a DELETED record stays on the downlink topic before its tombstone.
pub const TOMBSTONE_AFTER: Duration = Duration::from_hours(24);

/// The life of one topic. The fields are plain data so that a driver can keep them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicLife {
    /// Where it is to end.
    pub goal: Goal,
    /// Where it is.
    pub stage: Stage,
    /// How often the topic was created, from 1.
    pub generation: u64,
}

/// Where a life is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// The topic exists.
    Keep,
    /// The topic is deleted until the integration is enabled again.
    Park,
    /// The topic and all records of the integration are removed.
    Remove,
}

/// Where a life is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The topic is to be created.
    Create,
    /// The topic exists, nodes may write to it.
    Live,
    /// The subscription is to be withdrawn.
    Withdraw,
    /// Every live node is to apply the subscriptions up to this position.
    AwaitNodes {
        /// Next offset of the subscriptions topic.
        position: u64,
    },
    /// The downlink record DELETED is to be written.
    Dismiss,
    /// The owner is to report that it has stopped.
    AwaitStop {
        /// When it is not waited for any longer.
        deadline: Millis,
    },
    /// The topic is being deleted.
    Delete,
    /// The topic does not exist; the integration does.
    Parked,
    /// The downlink record is to be followed by a tombstone.
    AwaitTombstone {
        /// When.
        at: Millis,
    },
    /// Nothing is left.
    Gone,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Create the topic, then report [`TopicLife::created`].
    Create,
    /// Write a subscription tombstone, then report [`TopicLife::withdrawn`].
    Withdraw,
    /// Compare nodes with this position; report [`TopicLife::nodes_applied`] when all have passed it.
    AwaitNodes(u64),
    /// Write the downlink record DELETED, then report [`TopicLife::dismissed`].
    Dismiss,
    /// Look for the owner's STOPPED; report [`TopicLife::stopped`].
    AwaitStop,
    /// Delete the topic, then report [`TopicLife::deleted`].
    Delete,
    /// Write the downlink tombstone, then report [`TopicLife::forgotten`].
    Forget,
    /// Nothing until something changes.
    Rest,
}

impl TopicLife {
    /// The life of a new integration.
    pub fn new() -> Self {
        Self { goal: Goal::Keep, stage: Stage::Create, generation: 1 }
    }

    /// The integration was disabled for too long. Does nothing unless the topic is live and wanted.
    pub fn park(&mut self) {
        if self.goal == Goal::Keep && self.stage == Stage::Live {
            self.goal = Goal::Park;
            self.stage = Stage::Withdraw;
        }
    }

    /// The integration is wanted (again). Does nothing when it is being removed.
    pub fn keep(&mut self) {
        if self.goal != Goal::Park {
            return;
        }
        self.goal = Goal::Keep;
        match self.stage {
            // The topic may be gone already: the deletion is completed, then it is created anew.
            Stage::Delete => {}
            Stage::Parked => self.recreate(),
            _ => self.stage = Stage::Live,
        }
    }

    /// The topic of a live integration was found missing: the bus has lost it.
    pub fn lost(&mut self) {
        if self.stage == Stage::Live {
            self.recreate();
        }
    }

    /// Others have deleted the topic of a live integration and made another of the same name: it is there and may hold
    /// messages, and it is to be read from its beginning.
    pub fn replaced(&mut self) {
        if self.stage == Stage::Live {
            self.generation += 1;
        }
    }

    /// The integration was deleted.
    pub fn remove(&mut self) {
        if self.goal != Goal::Remove {
            self.goal = Goal::Remove;
            self.stage = Stage::Withdraw;
        }
    }

    /// What is to be done now.
    pub fn step(&self, now: Millis) -> Step {
        match self.stage {
            Stage::Create => Step::Create,
            Stage::Withdraw => Step::Withdraw,
            Stage::AwaitNodes { position } => Step::AwaitNodes(position),
            Stage::Dismiss => Step::Dismiss,
            Stage::AwaitStop { deadline } if now < deadline => Step::AwaitStop,
            Stage::AwaitStop { .. } | Stage::Delete => Step::Delete,
            Stage::AwaitTombstone { at } if now >= at => Step::Forget,
            Stage::Live | Stage::Parked | Stage::Gone | Stage::AwaitTombstone { .. } => Step::Rest,
        }
    }

    /// Whether nodes are to hold the subscription.
    pub fn is_subscribed(&self) -> bool {
        self.stage == Stage::Live
    }

    /// When [`TopicLife::step`] changes by itself.
    pub fn next_deadline(&self) -> Option<Millis> {
        match self.stage {
            Stage::AwaitStop { deadline } => Some(deadline),
            Stage::AwaitTombstone { at } => Some(at),
            _ => None,
        }
    }

    /// The topic exists.
    pub fn created(&mut self) {
        if self.stage == Stage::Create {
            self.stage = Stage::Live;
        }
    }

    /// The subscription tombstone lies below `position`.
    pub fn withdrawn(&mut self, position: u64) {
        if self.stage == Stage::Withdraw {
            self.stage = Stage::AwaitNodes { position };
        }
    }

    /// The subscription tombstone was lost with its topic.
    pub fn withdraw_again(&mut self) {
        if let Stage::AwaitNodes { .. } = self.stage {
            self.stage = Stage::Withdraw;
        }
    }

    /// Every live node has applied the withdrawal.
    pub fn nodes_applied(&mut self, now: Millis) {
        if let Stage::AwaitNodes { .. } = self.stage {
            self.stage = match self.goal {
                Goal::Remove => Stage::Dismiss,
                // A parked integration stays on the downlink topic, as disabled.
                Goal::Park | Goal::Keep => Stage::AwaitStop { deadline: now + STOP_PATIENCE },
            };
        }
    }

    /// The downlink record DELETED is written.
    pub fn dismissed(&mut self, now: Millis) {
        if self.stage == Stage::Dismiss {
            self.stage = Stage::AwaitStop { deadline: now + STOP_PATIENCE };
        }
    }

    /// The owner has stopped, or there is none.
    pub fn stopped(&mut self) {
        if let Stage::AwaitStop { .. } = self.stage {
            self.stage = Stage::Delete;
        }
    }

    /// The deletion of the topic begins: from here on it may be gone.
    pub fn deleting(&mut self) {
        self.stopped();
    }

    /// The topic does not exist any more.
    pub fn deleted(&mut self, now: Millis) {
        if self.stage == Stage::Delete {
            match self.goal {
                Goal::Keep => self.recreate(),
                Goal::Park => self.stage = Stage::Parked,
                Goal::Remove => self.stage = Stage::AwaitTombstone { at: now + TOMBSTONE_AFTER },
            }
        }
    }

    /// The downlink tombstone is written.
    pub fn forgotten(&mut self) {
        if let Stage::AwaitTombstone { .. } = self.stage {
            self.stage = Stage::Gone;
        }
    }

    fn recreate(&mut self) {
        self.stage = Stage::Create;
        self.generation += 1;
    }
}

impl Default for TopicLife {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn live() -> TopicLife {
        let mut life = TopicLife::new();
        assert_eq!(life.step(Millis(0)), Step::Create);
        life.created();
        life
    }

    #[test]
    fn removal_takes_its_road_in_order() {
        let mut life = live();
        life.remove();
        assert_eq!(life.step(Millis(0)), Step::Withdraw);
        assert!(!life.is_subscribed());
        life.withdrawn(9);
        life.withdraw_again();
        assert_eq!(life.step(Millis(0)), Step::Withdraw, "the topic was lost meanwhile");
        life.withdrawn(7);
        assert_eq!(life.step(Millis(0)), Step::AwaitNodes(7));
        life.nodes_applied(Millis(0));
        assert_eq!(life.step(Millis(0)), Step::Dismiss);
        life.dismissed(Millis(10));
        assert_eq!(life.step(Millis(30_009)), Step::AwaitStop);
        assert_eq!(life.step(Millis(30_010)), Step::Delete, "30 s are enough");
        life.stopped();
        assert_eq!(life.step(Millis(10)), Step::Delete);
        life.deleted(Millis(20));
        let at = Millis(20) + TOMBSTONE_AFTER;
        assert_eq!(life.step(Millis(at.0 - 1)), Step::Rest);
        assert_eq!(life.step(at), Step::Forget);
        life.forgotten();
        assert_eq!(life.stage, Stage::Gone);
    }

    #[test]
    fn a_parked_topic_comes_back_under_the_next_generation() {
        let mut life = live();
        life.park();
        life.withdrawn(1);
        life.nodes_applied(Millis(0));
        life.stopped();
        life.deleted(Millis(0));
        assert_eq!((life.stage, life.step(Millis(9))), (Stage::Parked, Step::Rest));
        life.keep();
        assert_eq!((life.stage, life.generation), (Stage::Create, 2));
        life.created();
        assert!(life.is_subscribed());
    }

    #[test]
    fn parking_that_is_called_off_in_time_keeps_topic_and_generation() {
        let mut life = live();
        life.park();
        life.withdrawn(1);
        life.keep();
        assert_eq!(life, TopicLife { goal: Goal::Keep, stage: Stage::Live, generation: 1 });
    }

    #[test]
    fn parking_that_is_called_off_too_late_completes_the_deletion_first() {
        let mut life = live();
        life.park();
        life.withdrawn(1);
        life.nodes_applied(Millis(0));
        life.deleting();
        life.keep();
        assert_eq!((life.step(Millis(0)), life.generation), (Step::Delete, 1));
        life.deleted(Millis(0));
        assert_eq!((life.step(Millis(0)), life.generation), (Step::Create, 2));
    }

    #[test]
    fn a_topic_that_was_replaced_stays_live_under_the_next_generation() {
        let mut life = live();
        life.replaced();
        assert_eq!(life, TopicLife { goal: Goal::Keep, stage: Stage::Live, generation: 2 });
        life.remove();
        life.replaced();
        assert_eq!((life.step(Millis(0)), life.generation), (Step::Withdraw, 2), "it goes anyway");
    }

    #[derive(Clone, Copy, Debug)]
    enum Input {
        Park,
        Keep,
        Remove,
        /// Others delete the topic, and it is noticed.
        Lose,
        /// Others delete the topic and make it anew, and it is noticed.
        Replace,
        Work,
        Pass,
    }

    proptest! {
        #[test]
        fn nodes_never_hold_a_subscription_without_a_topic_and_generations_tell_topics_apart(
            inputs in prop::collection::vec(
                prop_oneof![
                    Just(Input::Park), Just(Input::Keep), Just(Input::Remove),
                    Just(Input::Lose), Just(Input::Replace),
                    Just(Input::Work), Just(Input::Work), Just(Input::Pass),
                ],
                0..100,
            )
        ) {
            let mut life = TopicLife::new();
            let mut now = Millis(0);
            let mut topic: Option<u64> = None;
            let mut last_created = 0;
            let mut removing = false;
            for input in inputs.into_iter().chain([Input::Remove]).chain([Input::Work, Input::Pass].repeat(10)) {
                match input {
                    Input::Park => life.park(),
                    Input::Keep => life.keep(),
                    Input::Remove => { life.remove(); removing = true; }
                    Input::Lose if life.stage == Stage::Live => { topic = None; life.lost(); }
                    Input::Replace if life.stage == Stage::Live => {
                        life.replaced();
                        prop_assert!(life.generation > last_created);
                        last_created = life.generation;
                        topic = Some(life.generation);
                    }
                    Input::Lose => life.lost(),
                    Input::Replace => life.replaced(),
                    Input::Pass => now = now + TOMBSTONE_AFTER,
                    Input::Work => match life.step(now) {
                        Step::Create => {
                            prop_assert!(topic.is_none());
                            prop_assert!(life.generation > last_created);
                            last_created = life.generation;
                            topic = Some(life.generation);
                            life.created();
                        }
                        Step::Withdraw => life.withdrawn(1),
                        Step::AwaitNodes(_) => life.nodes_applied(now),
                        Step::Dismiss => life.dismissed(now),
                        Step::AwaitStop => life.stopped(),
                        Step::Delete => { life.deleting(); topic = None; life.deleted(now); }
                        Step::Forget => life.forgotten(),
                        Step::Rest => {}
                    },
                }
                prop_assert!(!life.is_subscribed() || topic == Some(life.generation));
                prop_assert!(!removing || life.goal == Goal::Remove);
            }
            prop_assert_eq!(life.stage, Stage::Gone);
            prop_assert!(topic.is_none());
        }
    }
}
