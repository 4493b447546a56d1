//! Changes of status that go with no write: an executor dies or comes back, or another one claims what it held.
//!
//! What follows from the bus is known to each replica at its own time. So each replica leaves a change in the store
//! after its own view has changed: its watches then load the new view, whichever replica was faster, and those who
//! resume elsewhere are told as well. At rest this costs no query. How far data planes are and the lag are no changes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use tbmq_proto::{control::Holder, ids::IntegrationId};

use super::status;
use crate::{
    plane::Plane,
    store::{self, PAGE_ROWS_MAX, StatusRow},
};

/// How often to look whether executors and claims are the same as before.
const PERIOD: Duration = Duration::from_millis(500);

/// Integrations whose change is written in one transaction, which holds up other writers.
const BATCH: usize = 50;

/// What keeps a shard from being what its last event says: who, shard, epoch, and whether he is silent.
type Obstacle = (String, u32, u64, bool);

/// Obstacles of the integrations that have any.
type View = HashMap<IntegrationId, Vec<Obstacle>>;

/// Looks for ever. At the start everything is taken for undisturbed.
pub(crate) async fn follow(plane: Arc<Plane>) {
    let mut known = View::new();
    let mut basis: Option<(u64, BTreeMap<String, String>)> = None;
    loop {
        let now = (plane.claims.version(), plane.nodes.live_executors());
        if basis.as_ref() != Some(&now) {
            match update(&plane, &now.1, &mut known).await {
                Ok(()) => basis = Some(now),
                Err(error) => tracing::warn!(%error, "can't look for changes of status"),
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

async fn update(
    plane: &Plane,
    executors: &BTreeMap<String, String>,
    known: &mut View,
) -> Result<(), store::Error> {
    let seen = look(plane, executors).await?;
    let ids: BTreeSet<IntegrationId> = known.keys().chain(seen.keys()).copied().collect();
    let changed: Vec<IntegrationId> =
        ids.into_iter().filter(|id| is_news(known.get(id), seen.get(id))).collect();
    for batch in changed.chunks(BATCH) {
        plane.store.touch(batch, tbmq_service::time::now_ms()).await?;
        plane.changes.nudge();
    }
    *known = seen;
    Ok(())
}

/// A claimant's first event ends the wait for it, and is a change of its own. Who was silent may just speak again.
fn is_news(before: Option<&Vec<Obstacle>>, now: Option<&Vec<Obstacle>>) -> bool {
    let was_silent = before.is_some_and(|before| before.iter().any(|(.., is_silent)| *is_silent));
    before != now && (now.is_some() || was_silent)
}

async fn look(plane: &Plane, executors: &BTreeMap<String, String>) -> Result<View, store::Error> {
    let mut view = View::new();
    let mut after = None;
    loop {
        let rows = plane.store.page_by_id(after, PAGE_ROWS_MAX / 4).await?;
        let Some(last) = rows.last() else { return Ok(view) };
        after = Some(last.id);
        let ids: Vec<IntegrationId> = rows.iter().filter(|row| row.enabled).map(|row| row.id).collect();
        let mut events: HashMap<IntegrationId, Vec<StatusRow>> = HashMap::new();
        for event in plane.store.statuses(&ids).await? {
            events.entry(event.integration).or_default().push(event);
        }
        let shards: HashMap<IntegrationId, u32> =
            plane.store.lives(&ids).await?.into_iter().map(|life| (life.integration, life.shards)).collect();
        for row in rows.iter().filter(|row| row.enabled) {
            let events = events.remove(&row.id).unwrap_or_default();
            let count = shards.get(&row.id).copied().unwrap_or(1);
            let status = status::of_executors(plane, row, &events, count, executors, None);
            let obstacles: Vec<Obstacle> = status.holders.into_iter().filter_map(to_obstacle).collect();
            if !obstacles.is_empty() {
                view.insert(row.id, obstacles);
            }
        }
    }
}

fn to_obstacle(holder: Holder) -> Option<Obstacle> {
    let is_silent = match holder.state.as_str() {
        "SILENT" => true,
        "PENDING" => false,
        _ => return None,
    };
    Some((holder.service_id, holder.shard, holder.ownership_epoch, is_silent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_event_tells_is_news() {
        let silent = vec![("ie1".to_owned(), 0, 5, true)];
        let pending = vec![("ie2".to_owned(), 0, 6, false)];
        for (before, now, expected) in [
            (None, None, false),
            (None, Some(&silent), true),
            (Some(&silent), Some(&silent), false),
            (Some(&silent), None, true),
            (Some(&silent), Some(&pending), true),
            (None, Some(&pending), true),
            // Its first event was told.
            (Some(&pending), None, false),
        ] {
            assert_eq!(is_news(before, now), expected, "{before:?} {now:?}");
        }
    }
}
