//! Whether what a group has assigned to us may still be acted upon (architecture §4.18).

use tbmq_integration::Millis;
use tokio::sync::watch;

use crate::runner::Clock;

/// A point in time that the driver of a kind moves on. Checked before each hand-over to a sink and each commit.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    until: watch::Receiver<Millis>,
    clock: Clock,
}

impl Lease {
    /// A lease that has not begun, and what moves it.
    pub(crate) fn new(clock: Clock) -> (watch::Sender<Millis>, Self) {
        let (sender, until) = watch::channel(Millis(0));
        (sender, Self { until, clock })
    }

    pub(crate) fn holds(&self) -> bool {
        self.clock.now() < *self.until.borrow()
    }

    /// Waits until it holds. Cancel-safe.
    pub(crate) async fn regained(&mut self) {
        while !self.holds() {
            if self.until.changed().await.is_err() {
                // The driver is gone, and with it the lease.
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_holds_until_its_time_and_again_when_it_is_moved_on() {
        let (driver, mut lease) = Lease::new(Clock::new());
        assert!(!lease.holds());
        driver.send_replace(Millis(100));
        lease.regained().await;
        tokio::time::advance(Duration::from_millis(100)).await;
        assert!(!lease.holds());
        let regained = tokio::spawn(async move { lease.regained().await });
        tokio::task::yield_now().await;
        assert!(!regained.is_finished());
        driver.send_replace(Millis(101));
        regained.await.unwrap();
    }
}
