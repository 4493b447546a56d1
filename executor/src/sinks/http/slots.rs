//! How many requests of an integration may be on their way at once.
//!
//! Few at first, and twice as many each tenth of a second, up to its window, while all are used and the executor has
//! time: an endpoint that takes its time is asked for more at once. When the executor's own threads are the limit, more at
//! once gets nothing done sooner; it only needs more connections, more memory and, since all of them are touched by
//! turns, more CPU for each request. Then an integration gets what lets [`PER_MILLISECOND`] requests through at the
//! fastest answer of late, or more when something waits for [`LONG`]: answers may be slower than the fastest one.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::{runtime::Handle, time::Instant};

/// However fast the endpoint answers.
const LEAST: usize = 16;

/// An integration whose requests may not wait so long for their turn always has all.
const IMPATIENT: Duration = Duration::from_secs(1);

/// Requests for each millisecond of the fastest answer.
const PER_MILLISECOND: f64 = 4.0;

/// How often the number changes, at most.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long the fastest answer counts, at least; at most twice as long.
const LATELY: Duration = Duration::from_secs(5);

/// With so much of its threads' time in use the executor is the limit, and with so much it is not.
const CROWDED: f64 = 0.5;
const ROOMY: f64 = 0.35;

/// For how long a request may wait because of this.
const LONG: Duration = Duration::from_millis(100);

/// The share of time in which the threads of this process's runtime have something to do.
#[derive(Debug, Default)]
pub(super) struct Crowd(Mutex<Option<Sample>>);

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: std::time::Instant,
    busy: Duration,
    share: f64,
}

impl Crowd {
    /// From 0 to 1, over a tenth of a second or since the last call.
    pub(super) fn share(&self) -> f64 {
        let Ok(runtime) = Handle::try_current() else { return 0.0 };
        let at = std::time::Instant::now();
        let mut last = self.0.lock();
        if let Some(last) = *last
            && at.duration_since(last.at) < LOOK_EVERY
        {
            return last.share;
        }
        let metrics = runtime.metrics();
        let threads = metrics.num_workers();
        let busy = (0..threads).map(|thread| metrics.worker_total_busy_duration(thread)).sum();
        let share = last.map_or(0.0, |last| {
            let time = at.duration_since(last.at).as_secs_f64() * threads as f64;
            Duration::saturating_sub(busy, last.busy).as_secs_f64() / time
        });
        *last = Some(Sample { at, busy, share });
        share
    }

    /// Has it stay as it is told.
    #[cfg(test)]
    pub(super) fn hold(&self, share: f64) {
        let at = std::time::Instant::now() + Duration::from_secs(3600);
        *self.0.lock() = Some(Sample { at, busy: Duration::ZERO, share });
    }
}

/// The number for one integration.
#[derive(Debug)]
pub(super) struct Slots {
    least: usize,
    most: usize,
    now: usize,
    next_look: Instant,
    /// The fastest answers of this stretch of time and of the one before.
    fastest: [Option<Duration>; 2],
    next_stretch: Instant,
}

impl Slots {
    /// `patience`: how long a request may wait for its turn.
    pub(super) fn new(most: usize, patience: Duration, now: Instant) -> Self {
        let least = if patience < IMPATIENT { most } else { most.min(LEAST) };
        Self { least, most, now: least, next_look: now, fastest: [None; 2], next_stretch: now + LATELY }
    }

    /// A request was answered.
    pub(super) fn answered(&mut self, took: Duration) {
        let [fastest, _] = &mut self.fastest;
        *fastest = Some(fastest.map_or(took, |fastest| fastest.min(took)));
    }

    /// Requests that may be on their way, of which there are `running`. `first`: when the first that waits was submitted;
    /// `load` is asked only when it is time to look.
    pub(super) fn number(
        &mut self,
        now: Instant,
        running: usize,
        first: Instant,
        load: impl FnOnce() -> f64,
    ) -> usize {
        if now >= self.next_look {
            self.next_look = now + LOOK_EVERY;
            if now >= self.next_stretch {
                self.next_stretch = now + LATELY;
                self.fastest = [None, self.fastest[0]];
            }
            let load = load();
            if load <= ROOMY || now.duration_since(first) >= LONG {
                if running >= self.now {
                    self.now = (self.now * 2).min(self.most);
                }
            } else if load >= CROWDED {
                self.now = self.needed().map_or(self.now, |needed| needed.max(self.now / 2));
            }
        }
        self.now
    }

    /// When the number may become larger, if it may.
    pub(super) fn next_look(&self) -> Option<Instant> {
        (self.now < self.most).then_some(self.next_look)
    }

    /// What is enough when the executor is the limit; `None` without an answer of late.
    fn needed(&self) -> Option<usize> {
        let fastest = self.fastest.into_iter().flatten().min()?;
        let needed = (fastest.as_secs_f64() * 1e3 * PER_MILLISECOND).ceil() as usize;
        Some(needed.clamp(self.least, self.most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const PATIENCE: Duration = Duration::from_secs(30);

    /// The number after ten looks at the same load.
    fn settled(slots: &mut Slots, now: &mut Instant, load: f64) -> usize {
        for _ in 0..10 {
            *now += LOOK_EVERY;
            slots.number(*now, 128, *now, || load);
        }
        slots.number(*now, 128, *now, || unreachable!("it has looked just now"))
    }

    #[test]
    fn a_fast_endpoint_gets_few_while_the_executor_is_the_limit_and_all_again_afterwards() {
        let mut now = Instant::now();
        let mut slots = Slots::new(128, PATIENCE, now);
        slots.answered(MS / 2);
        assert_eq!(settled(&mut slots, &mut now, 0.3), 128);
        assert_eq!(slots.next_look(), None);
        assert_eq!(settled(&mut slots, &mut now, 0.9), 16);
        assert_eq!(slots.next_look(), Some(now + LOOK_EVERY));
        assert_eq!(settled(&mut slots, &mut now, 0.4), 16, "between the limits it stays");
        assert_eq!(settled(&mut slots, &mut now, 0.3), 128);
    }

    #[test]
    fn what_is_not_used_does_not_become_more() {
        let mut now = Instant::now();
        let mut slots = Slots::new(128, PATIENCE, now);
        for (running, number) in [(15, 16), (16, 32), (31, 32), (32, 64)] {
            assert_eq!(slots.number(now, running, now, || 0.0), number);
            now += LOOK_EVERY;
        }
    }

    #[test]
    fn nothing_waits_long_because_of_one_fast_answer() {
        let mut now = Instant::now();
        let mut slots = Slots::new(128, PATIENCE, now);
        slots.answered(MS);
        assert_eq!(settled(&mut slots, &mut now, 0.9), 16);
        for number in [32, 64, 128, 128] {
            now += LOOK_EVERY;
            assert_eq!(slots.number(now, 128, now.checked_sub(LONG).unwrap(), || 0.9), number);
        }
        assert_eq!(settled(&mut slots, &mut now, 0.9), 16);
    }

    #[test]
    fn an_endpoint_that_takes_its_time_gets_what_its_rate_needs() {
        for (fastest, number) in [(6 * MS, 24), (20 * MS, 80), (100 * MS, 128)] {
            let mut now = Instant::now();
            let mut slots = Slots::new(128, PATIENCE, now);
            settled(&mut slots, &mut now, 0.3);
            slots.answered(fastest);
            slots.answered(2 * fastest);
            assert_eq!(settled(&mut slots, &mut now, 0.9), number);
        }
    }

    #[test]
    fn a_fast_answer_is_forgotten_and_without_any_nothing_changes() {
        let mut now = Instant::now();
        let mut slots = Slots::new(128, PATIENCE, now);
        assert_eq!(settled(&mut slots, &mut now, 0.3), 128);
        assert_eq!(settled(&mut slots, &mut now, 0.9), 128, "nothing is known");
        slots.answered(8 * MS);
        assert_eq!(settled(&mut slots, &mut now, 0.9), 32);
        for known in [Some(32), None] {
            now += LATELY;
            slots.number(now, 128, now, || 0.9);
            assert_eq!(slots.needed(), known);
        }
        assert_eq!(settled(&mut slots, &mut now, 0.9), 32);
    }

    #[test]
    fn an_integration_whose_requests_may_not_wait_has_all() {
        let mut now = Instant::now();
        let mut slots = Slots::new(128, 50 * MS, now);
        slots.answered(MS);
        assert_eq!(settled(&mut slots, &mut now, 0.9), 128);
    }

    #[test]
    fn a_pool_that_is_smaller_than_the_least_stays_as_it_is() {
        let mut now = Instant::now();
        let mut slots = Slots::new(4, PATIENCE, now);
        slots.answered(MS);
        assert_eq!(settled(&mut slots, &mut now, 0.9), 4);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn the_load_is_that_of_the_runtime() {
        let on_a_worker = tokio::spawn(tokio::time::timeout(PATIENCE, async {
            let crowd = Crowd::default();
            // In turns of work: the runtime counts between some of them.
            while crowd.share() < CROWDED {
                let turn = std::time::Instant::now();
                while turn.elapsed() < MS {
                    std::hint::spin_loop();
                }
                tokio::task::yield_now().await;
            }
            while crowd.share() > ROOMY {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }));
        on_a_worker.await.unwrap().expect("it is told that there is much to do, and then that there is not");
    }
}
