//! What the control plane shows of an integration, change by change.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::api::Api;

/// Pause between two questions: nothing tells of a change but asking.
const PAUSE: Duration = Duration::from_millis(50);

/// What a status says when nothing gets through.
const STALLED: &str = "STALLED";

/// What a status says when all is well.
const RUNNING: &str = "RUNNING";

/// A change.
#[derive(Clone, Debug)]
struct Seen {
    at: Instant,
    reason: String,
    error: String,
}

/// Asks again and again until dropped.
pub(super) struct Watch {
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Begins with the status of now.
    pub(super) async fn begin(mut api: Api, integration: String) -> Result<Self> {
        let status = api.get(&integration).await?.status.unwrap_or_default();
        let first = Seen { at: Instant::now(), reason: status.reason, error: status.error };
        let seen = Arc::new(Mutex::new(vec![first]));
        let task = tokio::spawn({
            let seen = Arc::clone(&seen);
            async move {
                loop {
                    tokio::time::sleep(PAUSE).await;
                    let Ok(answer) = api.get(&integration).await else { continue };
                    let status = answer.status.unwrap_or_default();
                    let mut seen = seen.lock();
                    if seen.last().is_none_or(|last| last.reason != status.reason) {
                        seen.push(Seen { at: Instant::now(), reason: status.reason, error: status.error });
                    }
                }
            }
        });
        Ok(Self { seen, task })
    }

    /// When it was first shown as stalled, and in which words.
    pub(super) fn stalled(&self) -> Option<(Instant, String)> {
        let seen = self.seen.lock();
        seen.iter().find(|one| one.reason == STALLED).map(|one| (one.at, one.error.clone()))
    }

    /// Whether it is shown as running, and since when.
    pub(super) fn running(&self) -> Option<Instant> {
        self.seen.lock().last().filter(|last| last.reason == RUNNING).map(|last| last.at)
    }

    /// All that was shown, in order.
    pub(super) fn reasons(&self) -> String {
        let seen = self.seen.lock();
        seen.iter().map(|one| one.reason.as_str()).collect::<Vec<_>>().join(" → ")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
