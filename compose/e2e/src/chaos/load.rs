//! A steady load, round after round.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Result;
use tbmq_harness::client::{self, Plan};
use tokio::task::JoinSet;

use super::tally::{Share, Tally};

/// What a round's load is doing.
pub(crate) type Load = JoinSet<Result<(u32, u64)>>;

/// Publishers on the topics `load/even/<number>` and `load/odd/<number>`.
#[derive(Debug)]
pub(crate) struct Publishers {
    /// Next sequence of each.
    next: Vec<u64>,
    rate: u64,
    patience: Duration,
}

impl Publishers {
    /// So many, with `rate` messages per second in all. One that gets no acknowledgement for `patience` gives up.
    pub(crate) fn new(count: u32, rate: u64, patience: Duration) -> Self {
        Self { next: vec![0; count as usize], rate, patience }
    }

    /// How many they are.
    pub(crate) fn count(&self) -> u32 {
        self.next.len() as u32
    }

    /// First sequence of each in the next round.
    pub(crate) fn next(&self) -> Vec<u64> {
        self.next.clone()
    }

    /// Begins a round's load: each publisher has a broker where it begins, and goes on to the next after a failure.
    pub(crate) fn begin(&self, mut brokers: Vec<SocketAddr>, tally: &Arc<Tally>) -> Load {
        let mut load = Load::new();
        let rate = (self.rate / u64::from(self.count())).max(1);
        for (publisher, first) in (0..).zip(&self.next) {
            let half = if Share::Even.has(publisher) { "even" } else { "odd" };
            let plan = Plan::new(brokers[0], &format!("load/{half}/{publisher}"), u64::MAX / 2)
                .or(brokers[1..].iter().copied())
                .by(publisher)
                .first(*first)
                .rate(rate)
                .answer_within(Duration::from_secs(5))
                .patience(self.patience)
                .timed();
            let tally = Arc::clone(tally);
            load.spawn(async move { Ok((publisher, client::publish_observed(plan, &*tally).await?)) });
            if publisher % 2 == 1 {
                brokers.rotate_left(1);
            }
        }
        load
    }

    /// Ends a round's load: everything begun is acknowledged then.
    pub(crate) async fn end(&mut self, tally: &Tally, mut load: Load) -> Result<()> {
        tally.stop();
        while let Some(publisher) = load.join_next().await {
            let (publisher, next) = publisher??;
            self.next[publisher as usize] = next;
        }
        Ok(())
    }
}
