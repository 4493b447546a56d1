//! Threads that hash passwords: a bounded number, with a bounded queue, so that whoever guesses passwords takes neither
//! the cores nor the memory of those who send messages.
//!
//! A hash takes tens of milliseconds of one core and 19 MiB (`password::Cost`).

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    num::NonZeroUsize,
    sync::Arc,
};

use parking_lot::{Condvar, Mutex};
use prometheus_client::metrics::gauge::Gauge;

/// Bits of an IPv6 address that one customer has.
const V6_SITE: u128 = !((1 << 64) - 1);

/// Work for a thread.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// Whose attempts are counted together: an IPv4 address, or the /64 of an IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Site(IpAddr);

impl From<IpAddr> for Site {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6((u128::from(address) & V6_SITE).into()),
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) threads: NonZeroUsize,
    /// Of all.
    pub(crate) waiting_max: usize,
    /// Of one site.
    pub(crate) site_max: usize,
}

/// Why a job is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// Too many wait.
    Queue,
    /// Too many of the site wait.
    Site,
}

/// The threads; they end when this is dropped, and what waits then is dropped, too.
#[derive(Debug)]
pub(crate) struct Hashing {
    shared: Arc<Shared>,
    limits: Limits,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    depth: Gauge,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(Site, Job)>,
    /// How many of each site wait, or are being done.
    of_site: HashMap<Site, usize>,
    is_closed: bool,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("jobs", &self.jobs.len()).finish_non_exhaustive()
    }
}

impl Hashing {
    /// Starts the threads; `depth` shows how much waits.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn start(limits: Limits, depth: Gauge) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::default(), wake: Condvar::new(), depth });
        let hashing = Self { shared, limits };
        for number in 0..limits.threads.get() {
            let shared = hashing.shared.clone();
            std::thread::Builder::new()
                .name(format!("hashing-{number}"))
                .spawn(move || while shared.run_next() {})?;
        }
        Ok(hashing)
    }

    /// Has a job done on one of the threads, in turn.
    pub(crate) fn submit(&self, site: Site, job: Job) -> Result<(), Full> {
        let mut queue = self.shared.queue.lock();
        if queue.jobs.len() >= self.limits.waiting_max {
            return Err(Full::Queue);
        }
        let of_site = queue.of_site.entry(site).or_default();
        if *of_site >= self.limits.site_max {
            return Err(Full::Site);
        }
        *of_site += 1;
        queue.jobs.push_back((site, job));
        self.shared.depth.set(queue.jobs.len() as i64);
        drop(queue);
        self.shared.wake.notify_one();
        Ok(())
    }
}

impl Drop for Hashing {
    fn drop(&mut self) {
        let mut queue = self.shared.queue.lock();
        queue.is_closed = true;
        // What a job holds may want the lock when it goes.
        let jobs = std::mem::take(&mut queue.jobs);
        drop(queue);
        drop(jobs);
        self.shared.wake.notify_all();
    }
}

impl Shared {
    /// Waits for a job and does it; `false` when there will be none.
    fn run_next(&self) -> bool {
        let mut queue = self.queue.lock();
        let (site, job) = loop {
            if queue.is_closed {
                return false;
            }
            match queue.jobs.pop_front() {
                Some(job) => break job,
                None => self.wake.wait(&mut queue),
            }
        };
        self.depth.set(queue.jobs.len() as i64);
        drop(queue);
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
            tracing::error!("hashing a password panicked");
        }
        let mut queue = self.queue.lock();
        if let Some(count) = queue.of_site.get_mut(&site) {
            *count -= 1;
            if *count == 0 {
                queue.of_site.remove(&site);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LIMITS: Limits = Limits { threads: NonZeroUsize::new(1).unwrap(), waiting_max: 4, site_max: 2 };

    fn site(text: &str) -> Site {
        text.parse::<IpAddr>().unwrap().into()
    }

    /// Threads of which the only one is busy until the sender is dropped.
    fn busy() -> (Hashing, Gauge, mpsc::SyncSender<()>) {
        let depth = Gauge::default();
        let hashing = Hashing::start(LIMITS, depth.clone()).unwrap();
        let (hold, held) = mpsc::sync_channel::<()>(1);
        let (begun, has_begun) = mpsc::sync_channel(1);
        let job = move || {
            begun.send(()).unwrap();
            held.recv().unwrap_err();
        };
        hashing.submit(site("10.0.0.9"), Box::new(job)).unwrap();
        has_begun.recv().unwrap();
        (hashing, depth, hold)
    }

    #[test]
    fn sites_are_addresses_of_ipv4_and_networks_of_64_bits_of_ipv6() {
        assert_eq!(site("10.0.0.1"), site("::ffff:10.0.0.1"));
        assert_ne!(site("10.0.0.1"), site("10.0.0.2"));
        assert_eq!(site("2001:db8::1"), site("2001:db8::ffff:1"));
        assert_ne!(site("2001:db8::1"), site("2001:db8:0:1::1"));
    }

    #[test]
    fn what_waits_is_bounded_in_all_and_for_each_site() {
        let (hashing, depth, hold) = busy();
        let submit = |address: &str| hashing.submit(site(address), Box::new(|| ()));
        assert_eq!([submit("10.0.0.1"), submit("10.0.0.1")], [Ok(()), Ok(())]);
        assert_eq!(submit("10.0.0.1"), Err(Full::Site));
        assert_eq!(submit("10.0.0.9"), Ok(()), "what is being done counts once");
        assert_eq!(submit("10.0.0.9"), Err(Full::Site));
        assert_eq!(submit("10.0.0.2"), Ok(()));
        assert_eq!(submit("10.0.0.3"), Err(Full::Queue));
        assert_eq!(depth.get(), 4);
        drop(hold);
        let (done, is_done) = mpsc::sync_channel(1);
        let retry = || {
            hashing.submit(
                site("10.0.0.3"),
                Box::new({
                    let done = done.clone();
                    move || done.send(()).unwrap()
                }),
            )
        };
        while retry().is_err() {
            std::thread::yield_now();
        }
        is_done.recv().unwrap();
        assert_eq!(depth.get(), 0);
        let queue = hashing.shared.queue.lock();
        assert!(queue.of_site.len() <= 1, "sites are forgotten: {:?}", queue.of_site);
    }

    #[test]
    fn a_job_that_panics_takes_neither_the_thread_nor_its_place() {
        let hashing = Hashing::start(LIMITS, Gauge::default()).unwrap();
        let (done, is_done) = mpsc::sync_channel(1);
        for _ in 0..LIMITS.site_max * 2 {
            while hashing.submit(site("10.0.0.1"), Box::new(|| panic!("as the test wants"))).is_err() {
                std::thread::yield_now();
            }
        }
        while hashing
            .submit(
                site("10.0.0.1"),
                Box::new({
                    let done = done.clone();
                    move || done.send(()).unwrap()
                }),
            )
            .is_err()
        {
            std::thread::yield_now();
        }
        is_done.recv().unwrap();
    }

    #[test]
    fn what_waits_is_dropped_with_the_threads() {
        let (hashing, _, hold) = busy();
        let (kept, is_dropped) = mpsc::sync_channel::<()>(1);
        hashing.submit(site("10.0.0.1"), Box::new(move || drop(kept))).unwrap();
        drop(hashing);
        is_dropped.recv().unwrap_err();
        drop(hold);
    }
}
