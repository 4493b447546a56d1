//! What runs where, and how far it is: the status of an integration from its shards' last events and the claims on
//! their downlink partitions (architecture §4.4, §4.18).

use std::collections::BTreeMap;

use tbmq_proto::{
    control::{Holder, IntegrationStatus, integration_status::Phase},
    ids::ShardId,
    partition,
};

use super::integration::timestamp;
use crate::{
    claims::Claim,
    plane::Plane,
    store::{Projection, Row, StatusRow},
};

/// Reason of a status: the executor that has claimed a shard is not alive.
pub(super) const EXECUTOR_SILENT: &str = "EXECUTOR_SILENT";

/// What is known of one shard.
#[derive(Clone, Debug)]
struct Shard<'a> {
    index: u32,
    /// Its last event, if there was one.
    event: Option<&'a StatusRow>,
    /// The latest claim of its downlink partition.
    claim: Option<Claim>,
}

/// Reason of a status: the control plane that tells it can't open the secrets.
const SECRETS_UNREADABLE: &str = "SECRETS_UNREADABLE";

/// Reason of a status: it runs, but nothing gets through.
const STALLED: &str = "STALLED";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    /// It runs, but nothing gets through.
    Stalled,
    Failed,
    /// Its owner is alive and has not reported yet, or reported that it does not run.
    Waiting,
    /// Its owner is not alive.
    Silent,
}

/// The status of an integration with `count` shards, whose last events are these, by the claims that are known here.
pub(super) fn of_executors(
    plane: &Plane,
    row: &Row,
    events: &[StatusRow],
    count: u32,
    executors: &BTreeMap<String, String>,
    projection: Option<Projection>,
) -> IntegrationStatus {
    let partitions = plane.downlink_partitions(&row.kind);
    let shards = (0..count).map(|index| {
        let shard = ShardId { integration: row.id, index };
        let partition = partition::for_shard(&shard, count, partitions);
        Shard {
            index,
            event: events.iter().find(|event| event.shard == index),
            claim: plane.claims.of(&row.kind, partition),
        }
    });
    status_of(row, shards, executors, projection)
}

/// The status of an integration. `executors` are the live ones, each with its incarnation.
fn status_of<'a>(
    row: &Row,
    shards: impl Iterator<Item = Shard<'a>>,
    executors: &BTreeMap<String, String>,
    projection: Option<Projection>,
) -> IntegrationStatus {
    let shards: Vec<(State, Option<Holder>)> = shards.map(|shard| shard.held_by(executors)).collect();
    let any = |state| shards.iter().any(|(of, _)| *of == state);
    let (phase, reason) = if !row.enabled {
        (Phase::Disabled, "DISABLED")
    } else if row.unreadable.is_some() {
        (Phase::Failed, SECRETS_UNREADABLE)
    } else if any(State::Failed) {
        (Phase::Failed, "EXECUTOR_FAILED")
    } else if shards.iter().all(|(state, _)| matches!(state, State::Running | State::Stalled)) {
        (Phase::Active, if any(State::Stalled) { STALLED } else { "RUNNING" })
    } else if any(State::Silent) {
        (Phase::Pending, EXECUTOR_SILENT)
    } else if projection.is_none_or(|projection| projection.revision < row.revision) {
        (Phase::Pending, "WAITS_FOR_BUS")
    } else {
        (Phase::Pending, "WAITS_FOR_EXECUTOR")
    };
    let mut status = IntegrationStatus::default();
    status.set_phase(phase);
    reason.clone_into(&mut status.reason);
    let wrong = if reason == STALLED { State::Stalled } else { State::Failed };
    let failed = shards.iter().find(|(state, _)| *state == wrong);
    if let (true, Some((_, Some(holder)))) = (phase == Phase::Failed || reason == STALLED, failed) {
        status.error.clone_from(&holder.error);
    }
    if let Some(unreadable) = &row.unreadable {
        status.error = unreadable.to_string();
    }
    let latest = || {
        let time = |holder: &&Holder| holder.update_time.map_or((0, 0), |time| (time.seconds, time.nanos));
        shards.iter().filter_map(|(_, holder)| holder.as_ref()).max_by_key(time)
    };
    let speaker = failed.and_then(|(_, holder)| holder.as_ref()).or_else(latest);
    status.service_id = speaker.map(|holder| holder.service_id.clone()).unwrap_or_default();
    status.holders = shards.into_iter().filter_map(|(_, holder)| holder).collect();
    status
}

impl Shard<'_> {
    /// Who holds the shard, and in which state it is there.
    fn held_by(&self, executors: &BTreeMap<String, String>) -> (State, Option<Holder>) {
        let Some(claim) = self.claim.as_ref().filter(|claim| self.is_current(claim)) else {
            return (self.state(), self.event.map(to_holder));
        };
        let live = executors.get(&claim.service_id);
        // The event of a former owner, or of a former process of this one, says nothing any more.
        let is_over = self.event.is_none_or(|event| event.epoch < claim.epoch)
            || live.is_some_and(|incarnation| *incarnation > claim.incarnation);
        let mut holder = match self.event {
            Some(event) if !is_over => to_holder(event),
            _ => Holder {
                service_id: claim.service_id.clone(),
                role: "EXECUTOR".to_owned(),
                state: "PENDING".to_owned(),
                update_time: Some(timestamp(claim.time_ms)),
                shard: self.index,
                ownership_epoch: claim.epoch,
                ..Holder::default()
            },
        };
        if live.is_none() {
            "SILENT".clone_into(&mut holder.state);
            return (State::Silent, Some(holder));
        }
        (if is_over { State::Waiting } else { self.state() }, Some(holder))
    }

    /// Whether no event comes from a later owner; such a claim is about to be read.
    fn is_current(&self, claim: &Claim) -> bool {
        self.event.is_none_or(|event| event.epoch <= claim.epoch)
    }

    /// What the last event says. STARTED and FAILED say whether it runs, STALLED and RESUMED how; everything else leaves
    /// that open (spec §3.10).
    fn state(&self) -> State {
        match self.event {
            Some(event) if event.event == STALLED => State::Stalled,
            Some(event) if event.event == "RESUMED" => State::Running,
            Some(event) if matches!(event.event.as_str(), "STARTED" | "FAILED") => {
                if event.success {
                    State::Running
                } else {
                    State::Failed
                }
            }
            _ => State::Waiting,
        }
    }
}

fn to_holder(event: &StatusRow) -> Holder {
    Holder {
        service_id: event.service_id.clone(),
        role: "EXECUTOR".to_owned(),
        observed_revision: event.revision,
        state: if event.event.is_empty() { "PENDING".to_owned() } else { event.event.clone() },
        error: event.error.clone(),
        update_time: Some(timestamp(event.time_ms)),
        shard: event.shard,
        ownership_epoch: event.epoch,
    }
}

#[cfg(test)]
mod tests {
    use tbmq_integration::wire::Cause;
    use tbmq_proto::ids::IntegrationId;
    use uuid::Uuid;

    use super::*;

    const ID: IntegrationId = IntegrationId(Uuid::nil());

    fn row(enabled: bool) -> Row {
        Row {
            id: ID,
            name: "one".to_owned(),
            kind: "HTTP".parse().unwrap(),
            enabled,
            configuration: String::new(),
            parted: None,
            unreadable: None,
            labels: BTreeMap::new(),
            description: String::new(),
            revision: 7,
            cause: Cause::Created,
            created_ms: 0,
            updated_ms: 0,
            disconnected_ms: None,
        }
    }

    fn event(shard: u32, by: &str, epoch: u64, event: &str) -> StatusRow {
        StatusRow {
            integration: ID,
            shard,
            event: event.to_owned(),
            success: event != "FAILED",
            error: if event == "FAILED" { "no route".to_owned() } else { String::new() },
            service_id: by.to_owned(),
            revision: 7,
            epoch,
            time_ms: 1_000 + i64::from(shard),
        }
    }

    fn claim(by: &str, epoch: u64) -> Option<Claim> {
        Some(Claim { epoch, service_id: by.to_owned(), incarnation: "1".to_owned(), time_ms: 2_000 })
    }

    fn executors(live: &[&str]) -> BTreeMap<String, String> {
        live.iter().map(|id| ((*id).to_owned(), "1".to_owned())).collect()
    }

    const WRITTEN: Option<Projection> = Some(Projection { revision: 7, partition: 0, position: 1 });

    /// Phase and reason, and of each holder: who, state, shard, epoch.
    type Seen = (String, Vec<(String, String, u32, u64)>);

    fn seen(shards: &[(Option<StatusRow>, Option<Claim>)], live: &[&str]) -> Seen {
        let shards = (0..).zip(shards).map(|(index, (event, claim))| Shard {
            index,
            event: event.as_ref(),
            claim: claim.clone(),
        });
        describe(&status_of(&row(true), shards, &executors(live), WRITTEN))
    }

    fn describe(status: &IntegrationStatus) -> Seen {
        let holder = |holder: &Holder| {
            (holder.service_id.clone(), holder.state.clone(), holder.shard, holder.ownership_epoch)
        };
        let phase = format!("{} {}", status.phase().as_str_name(), status.reason);
        (phase, status.holders.iter().map(holder).collect())
    }

    fn expected(phase: &str, holders: &[(&str, &str, u32, u64)]) -> Seen {
        let holder = |(by, state, shard, epoch): &(&str, &str, u32, u64)| {
            ((*by).to_owned(), (*state).to_owned(), *shard, *epoch)
        };
        (phase.to_owned(), holders.iter().map(holder).collect())
    }

    #[test]
    fn the_event_of_the_owner_counts() {
        for claimed in [None, claim("ie1", 5), claim("ie0", 4)] {
            let started = [(Some(event(0, "ie1", 5, "STARTED")), claimed.clone())];
            let running = expected("PHASE_ACTIVE RUNNING", &[("ie1", "STARTED", 0, 5)]);
            assert_eq!(seen(&started, &["ie1"]), running, "{claimed:?}");
            let failed = [(Some(event(0, "ie1", 5, "FAILED")), claimed)];
            let failure = expected("PHASE_FAILED EXECUTOR_FAILED", &[("ie1", "FAILED", 0, 5)]);
            assert_eq!(seen(&failed, &["ie1"]), failure);
        }
        assert_eq!(seen(&[(None, None)], &[]), expected("PHASE_PENDING WAITS_FOR_EXECUTOR", &[]));
    }

    #[test]
    fn a_later_claim_takes_the_place_of_a_former_owner() {
        for last in ["STARTED", "FAILED", "STOPPED", ""] {
            let shards = [(Some(event(0, "ie1", 5, last)), claim("ie2", 6))];
            let waiting = expected("PHASE_PENDING WAITS_FOR_EXECUTOR", &[("ie2", "PENDING", 0, 6)]);
            assert_eq!(seen(&shards, &["ie1", "ie2"]), waiting, "{last}");
        }
        let new = [(None, claim("ie2", 6))];
        let waiting = expected("PHASE_PENDING WAITS_FOR_EXECUTOR", &[("ie2", "PENDING", 0, 6)]);
        assert_eq!(seen(&new, &["ie2"]), waiting);
    }

    #[test]
    fn an_owner_that_is_not_alive_is_silent() {
        let dead = [(Some(event(0, "ie1", 5, "STARTED")), claim("ie1", 5))];
        let silent = expected("PHASE_PENDING EXECUTOR_SILENT", &[("ie1", "SILENT", 0, 5)]);
        assert_eq!(seen(&dead, &["ie2"]), silent);
        let died_before_it_began = [(Some(event(0, "ie1", 5, "STARTED")), claim("ie2", 6))];
        let silent = expected("PHASE_PENDING EXECUTOR_SILENT", &[("ie2", "SILENT", 0, 6)]);
        assert_eq!(seen(&died_before_it_began, &["ie1"]), silent);
    }

    #[test]
    fn a_restarted_executor_has_to_claim_again() {
        let started = event(0, "ie1", 5, "STARTED");
        let shards = [Shard { index: 0, event: Some(&started), claim: claim("ie1", 5) }];
        let newer = BTreeMap::from([("ie1".to_owned(), "2".to_owned())]);
        let status = status_of(&row(true), shards.into_iter(), &newer, WRITTEN);
        let waiting = expected("PHASE_PENDING WAITS_FOR_EXECUTOR", &[("ie1", "PENDING", 0, 5)]);
        assert_eq!(describe(&status), waiting);
    }

    #[test]
    fn it_runs_only_when_all_shards_run_and_fails_when_one_does() {
        let started = |shard| (Some(event(shard, "ie1", 5, "STARTED")), claim("ie1", 5));
        let both = [("ie1", "STARTED", 0, 5), ("ie1", "STARTED", 1, 5)];
        assert_eq!(seen(&[started(0), started(1)], &["ie1"]), expected("PHASE_ACTIVE RUNNING", &both));
        let one = seen(&[started(0), (None, None)], &["ie1"]);
        assert_eq!(one, expected("PHASE_PENDING WAITS_FOR_EXECUTOR", &both[..1]));
        let failed = (Some(event(1, "ie2", 9, "FAILED")), claim("ie2", 9));
        let shards = [started(0), failed, (None, claim("ie3", 4))];
        let (phase, holders) = seen(&shards, &["ie1", "ie2", "ie3"]);
        assert_eq!((phase.as_str(), holders.len()), ("PHASE_FAILED EXECUTOR_FAILED", 3));
    }

    #[test]
    fn a_stalled_shard_shows_in_an_active_integration_until_it_resumes() {
        let shard = |index, word: &str| (Some(event(index, "ie1", 5, word)), claim("ie1", 5));
        let holders = [("ie1", "STARTED", 0, 5), ("ie1", "STALLED", 1, 5)];
        let stalled = seen(&[shard(0, "STARTED"), shard(1, "STALLED")], &["ie1"]);
        assert_eq!(stalled, expected("PHASE_ACTIVE STALLED", &holders));
        let holders = [("ie1", "STARTED", 0, 5), ("ie1", "RESUMED", 1, 5)];
        let resumed = seen(&[shard(0, "STARTED"), shard(1, "RESUMED")], &["ie1"]);
        assert_eq!(resumed, expected("PHASE_ACTIVE RUNNING", &holders));
        let failed = seen(&[shard(0, "FAILED"), shard(1, "STALLED")], &["ie1"]);
        assert_eq!(failed.0, "PHASE_FAILED EXECUTOR_FAILED");
        let dead = seen(&[shard(0, "STALLED")], &[]);
        assert_eq!(dead.0, "PHASE_PENDING EXECUTOR_SILENT");
        let mut slow = event(0, "ie1", 5, "STALLED");
        slow.error = "no message was confirmed for 5 s".to_owned();
        let shards = [Shard { index: 0, event: Some(&slow), claim: None }];
        let status = status_of(&row(true), shards.into_iter(), &executors(&["ie1"]), WRITTEN);
        assert_eq!((status.error.as_str(), status.service_id.as_str()), (slow.error.as_str(), "ie1"));
    }

    #[test]
    fn a_failure_names_its_executor_and_reason_and_a_disabled_one_is_disabled() {
        let failed = event(1, "ie2", 9, "FAILED");
        let started = event(0, "ie1", 9, "STARTED");
        let shards = |failed| {
            [(0, &started), (1, failed)].map(|(index, event)| Shard {
                index,
                event: Some(event),
                claim: None,
            })
        };
        let status = status_of(&row(true), shards(&failed).into_iter(), &executors(&[]), WRITTEN);
        assert_eq!((status.error.as_str(), status.service_id.as_str()), ("no route", "ie2"));
        let status = status_of(&row(false), shards(&failed).into_iter(), &executors(&[]), WRITTEN);
        assert_eq!((status.phase(), status.error.as_str()), (Phase::Disabled, ""));
        let status = status_of(
            &row(true),
            [].into_iter().chain(shards(&event(1, "ie2", 9, ""))),
            &executors(&[]),
            None,
        );
        assert_eq!(status.reason, "WAITS_FOR_BUS");
    }
}
