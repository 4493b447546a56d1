//! How many sessions of APPLICATION clients outlive their connections: each costs more than a device's, as integrations do,
//! which count with them (broker spec §5).

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::metrics::{Limit, Metrics};

/// Those of a node.
#[derive(Debug)]
pub(crate) struct Applications {
    /// 0: no limit.
    max: usize,
    sessions: Arc<AtomicUsize>,
    metrics: Metrics,
}

/// That a session is one of them, as long as it is there.
#[derive(Debug)]
pub(crate) struct ApplicationPlace(Arc<AtomicUsize>);

impl Drop for ApplicationPlace {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Applications {
    pub(super) fn new(max: usize, metrics: Metrics) -> Self {
        Self { max, sessions: Arc::default(), metrics }
    }

    /// Whether a client that has no session must be refused; counted if so.
    pub(crate) fn are_full(&self) -> bool {
        if self.max == 0 {
            return false;
        }
        let integrations = usize::try_from(self.metrics.integrations.get()).unwrap_or(0);
        let are_full = self.sessions.load(Ordering::Relaxed).saturating_add(integrations) >= self.max;
        if are_full {
            self.metrics.client_limit_reached(Limit::ApplicationClients);
        }
        are_full
    }

    /// Counts a session, whether there is room or not: it is there.
    pub(crate) fn place(&self) -> ApplicationPlace {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        ApplicationPlace(self.sessions.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::LimitLabel;

    #[test]
    fn sessions_and_integrations_share_the_limit_and_a_session_gives_its_place_back() {
        let metrics = Metrics::default();
        let applications = Applications::new(3, metrics.clone());
        metrics.integrations.set(1);
        let mut places = vec![applications.place()];
        assert!(!applications.are_full());
        places.push(applications.place());
        assert!(applications.are_full());
        places.pop();
        assert!(!applications.are_full());
        metrics.integrations.set(2);
        assert!(applications.are_full());
        let label = LimitLabel { limit: Limit::ApplicationClients };
        assert_eq!(metrics.client_limits_reached.get_or_create(&label).get(), 2);
    }

    #[test]
    fn without_a_limit_there_may_be_any_number() {
        let applications = Applications::new(0, Metrics::default());
        let _places: Vec<_> = (0..1000).map(|_| applications.place()).collect();
        assert!(!applications.are_full());
    }
}
