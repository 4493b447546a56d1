//! The one signal to stop taking work and finish what was taken.

use tokio_util::sync::CancellationToken;

/// Says whether draining has begun. Clones share it; it never goes back.
#[derive(Clone, Debug, Default)]
pub struct Drain(CancellationToken);

impl Drain {
    /// Not draining.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins to drain; later calls do nothing. Does not wait.
    pub fn begin(&self) {
        self.0.cancel();
    }

    /// Whether draining has begun.
    pub fn is_draining(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until draining has begun. Cancel-safe.
    pub async fn begun(&self) {
        self.0.cancelled().await;
    }
}

/// Completes on SIGINT or, where it exists, SIGTERM. From the first poll on the process no longer dies of them.
pub async fn signalled() {
    let interrupted = async {
        if let Err(error) = tokio::signal::ctrl_c().await {
            tracing::warn!(%error, "can't listen for interrupts");
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut terminated) => tokio::select! { _ = terminated.recv() => {}, () = interrupted => {} },
            Err(error) => {
                tracing::warn!(%error, "can't listen for SIGTERM");
                interrupted.await;
            }
        }
    }
    #[cfg(not(unix))]
    interrupted.await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn clones_begin_together() {
        let drain = Drain::new();
        let other = drain.clone();
        assert!(!other.is_draining());
        drain.begin();
        other.begun().await;
        assert!(other.is_draining());
    }
}
