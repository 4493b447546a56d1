//! Keep alive: a client that is silent for 1.5 times its interval is gone (MQTT-3.1.2-22).

/// When the client was heard last, and how long it may be silent.
#[derive(Debug)]
pub(super) struct KeepAlive {
    /// 1.5 times the interval; 0 = off.
    patience_ms: u64,
    heard_ms: u64,
    is_paused: bool,
}

impl KeepAlive {
    pub(super) fn off(now_ms: u64) -> Self {
        Self::new(0, now_ms)
    }

    pub(super) fn new(interval_s: u16, now_ms: u64) -> Self {
        Self { patience_ms: u64::from(interval_s) * 1500, heard_ms: now_ms, is_paused: false }
    }

    pub(super) fn interval_s(&self) -> u16 {
        (self.patience_ms / 1500) as u16
    }

    pub(super) fn heard(&mut self, now_ms: u64) {
        self.heard_ms = now_ms;
    }

    pub(super) fn pause(&mut self) {
        self.is_paused = true;
    }

    pub(super) fn resume(&mut self, now_ms: u64) {
        if self.is_paused {
            self.is_paused = false;
            self.heard_ms = now_ms;
        }
    }

    pub(super) fn deadline_ms(&self) -> Option<u64> {
        (self.patience_ms > 0 && !self.is_paused).then(|| self.heard_ms + self.patience_ms)
    }

    pub(super) fn is_over(&self, now_ms: u64) -> bool {
        self.deadline_ms().is_some_and(|deadline_ms| now_ms >= deadline_ms)
    }
}
