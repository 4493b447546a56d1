//! Holds back what one place in the program logs again and again, and sums it up.
//!
//! The first lines of an interval are logged, so that nothing is lost entirely; then one line of the same level says how
//! many more there were, and what the last of them said. (`tracing-throttle` tells lines apart by their values, which is
//! no limit to a flood about many integrations, and runs a task of its own to sum up.)

use std::{
    collections::HashMap,
    fmt::{self, Write as _},
    hash::Hash,
    num::NonZeroU64,
    sync::{Arc, LazyLock, OnceLock},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use tracing::{
    Event, Level, Metadata, Subscriber,
    callsite::Identifier,
    field::{Field, Visit},
};
use tracing_subscriber::layer::{Context, Layer};

use crate::{
    label_values,
    metrics::{Label, Registry},
};

/// The target of lines that are never held back: many of one place belong together, such as statistics.
pub const EVERY_LINE: &str = "tbmq_statistics";

/// The target of the lines that sum up.
const SUMS: &str = "tbmq_service::telemetry::repeats";

/// Events of the crate `log` share a place, whoever logs them.
const OF_LOG: &str = "log";

/// How often held lines are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Characters of a line that are repeated in its sum.
const SAID_MAX: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LevelLabel {
    level: HeldLevel,
}

label_values! {
    /// Levels that are held back.
    enum HeldLevel {
        Error,
        Warn,
        Info,
    }
}

impl HeldLevel {
    fn of(level: Level) -> Option<Self> {
        match level {
            Level::ERROR => Some(Self::Error),
            Level::WARN => Some(Self::Warn),
            Level::INFO => Some(Self::Info),
            _ => None,
        }
    }
}

/// A process has one logger, and counts before there is a registry.
static HELD: LazyLock<Family<LevelLabel, Counter>> = LazyLock::new(Family::default);

/// The process's one.
static INSTALLED: OnceLock<Arc<Shared>> = OnceLock::new();

/// Registers what is counted.
pub(crate) fn register(registry: &mut Registry) {
    registry.family(
        "tbmq_service_log_repeats",
        "Lines of the log that were held back because their place in the program had logged too many; they are summed up",
        vec![Label::closed("level", HeldLevel::NAMES)],
        HELD.clone(),
    );
}

/// Sums up what was held back, at the end of each interval. Does not return.
pub(crate) async fn sum_up() {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if let Some(shared) = INSTALLED.get() {
            shared.tell(shared.sites.lock().due(shared.began.elapsed()));
        }
    }
}

/// Sums up what was held back so far.
pub(crate) fn sum_up_last() {
    if let Some(shared) = INSTALLED.get() {
        shared.tell(shared.sites.lock().all());
    }
}

/// The layer that holds back.
#[derive(Debug)]
pub(super) struct Repeats(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    sites: Mutex<Sites<Identifier>>,
    places: Mutex<HashMap<Identifier, &'static Metadata<'static>>>,
    interval: Duration,
    began: Instant,
}

impl Repeats {
    pub(super) fn new(max: NonZeroU64, interval: Duration) -> Self {
        let sites = Mutex::new(Sites { max: max.get(), interval, sites: HashMap::new() });
        Self(Arc::new(Shared { sites, places: Mutex::default(), interval, began: Instant::now() }))
    }

    /// The process's one.
    pub(super) fn install(max: NonZeroU64, interval: Duration) -> Self {
        let repeats = Self::new(max, interval);
        INSTALLED.get_or_init(|| repeats.0.clone());
        repeats
    }
}

impl<S: Subscriber> Layer<S> for Repeats {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        let Some(level) = HeldLevel::of(*metadata.level()) else { return true };
        if [EVERY_LINE, SUMS, OF_LOG].contains(&metadata.target()) {
            return true;
        }
        let shared = &self.0;
        let (place, now) = (metadata.callsite(), shared.began.elapsed());
        let is_logged = shared.sites.lock().admit(place.clone(), now, || said(event));
        if !is_logged {
            shared.places.lock().entry(place).or_insert(metadata);
            HELD.get_or_create(&LevelLabel { level }).inc();
        }
        is_logged
    }
}

impl Shared {
    fn tell(&self, sums: Vec<(Identifier, Sum)>) {
        for (place, Sum { held, last }) in sums {
            let Some(metadata) = self.places.lock().get(&place).copied() else { continue };
            let of = format!("{}:{}", metadata.target(), metadata.line().unwrap_or_default());
            let text = format!("{held} more like this in the last {} s", self.interval.as_secs());
            match *metadata.level() {
                Level::ERROR => tracing::error!(target: SUMS, of, held, last, "{text}"),
                Level::WARN => tracing::warn!(target: SUMS, of, held, last, "{text}"),
                _ => tracing::info!(target: SUMS, of, held, last, "{text}"),
            }
        }
    }
}

/// What places have logged. There are no more of them than the program's text has.
#[derive(Debug)]
struct Sites<K> {
    max: u64,
    interval: Duration,
    sites: HashMap<K, Site>,
}

#[derive(Debug, Default)]
struct Site {
    /// When its interval began.
    since: Duration,
    logged: u64,
    /// When the first line was held back that is not summed up.
    held_since: Duration,
    held: u64,
    last: String,
}

/// What was held back of a place.
#[derive(Debug, PartialEq, Eq)]
struct Sum {
    held: u64,
    /// What the last one said.
    last: String,
}

impl<K: Clone + Eq + Hash> Sites<K> {
    /// Whether a place may log one more line.
    fn admit(&mut self, place: K, now: Duration, said: impl FnOnce() -> String) -> bool {
        let site = self.sites.entry(place).or_insert_with(|| Site { since: now, ..Site::default() });
        if now.saturating_sub(site.since) >= self.interval {
            (site.since, site.logged) = (now, 0);
        }
        if site.logged < self.max {
            site.logged += 1;
            return true;
        }
        if site.held == 0 {
            site.held_since = now;
        }
        site.held += 1;
        site.last = said();
        false
    }

    /// What has been held back for a whole interval.
    fn due(&mut self, now: Duration) -> Vec<(K, Sum)> {
        let interval = self.interval;
        self.take(|site| now.saturating_sub(site.held_since) >= interval)
    }

    /// What is held back.
    fn all(&mut self) -> Vec<(K, Sum)> {
        self.take(|_| true)
    }

    fn take(&mut self, is_due: impl Fn(&Site) -> bool) -> Vec<(K, Sum)> {
        let due = self.sites.iter_mut().filter(|(_, site)| site.held > 0 && is_due(site));
        due.map(|(place, site)| {
            let (held, last) = (std::mem::take(&mut site.held), std::mem::take(&mut site.last));
            (place.clone(), Sum { held, last })
        })
        .collect()
    }
}

/// The message of an event and its fields, cut.
fn said(event: &Event<'_>) -> String {
    struct Said(String);
    impl Visit for Said {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            if self.0.len() >= SAID_MAX {
                return;
            }
            let written = match field.name() {
                "message" => write!(self.0, "{value:?} "),
                name => write!(self.0, "{name}={value:?} "),
            };
            written.expect("writing to a String does not fail");
        }
    }
    let mut said = Said(String::new());
    event.record(&mut said);
    let text = said.0.trim_end();
    text[..text.floor_char_boundary(SAID_MAX)].to_owned()
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn sites() -> Sites<&'static str> {
        Sites { max: 2, interval: at(30), sites: HashMap::new() }
    }

    #[test]
    fn more_than_so_many_in_an_interval_are_held_and_summed_up_once() {
        let mut sites = sites();
        let logged = |sites: &mut Sites<_>, place, second: u64| {
            sites.admit(place, at(second), || format!("at {second}"))
        };
        let first: Vec<bool> = (0..5).map(|second| logged(&mut sites, "a", second)).collect();
        assert_eq!(first, [true, true, false, false, false]);
        assert!(logged(&mut sites, "b", 5), "another place has lines of its own");
        assert_eq!(sites.due(at(31)), [], "the first was held at 2");
        assert_eq!(sites.due(at(32)), [("a", Sum { held: 3, last: "at 4".to_owned() })]);
        assert_eq!(sites.due(at(90)), []);
        // Another interval.
        assert!(logged(&mut sites, "a", 40) && logged(&mut sites, "a", 41) && !logged(&mut sites, "a", 42));
        assert_eq!(sites.all(), [("a", Sum { held: 1, last: "at 42".to_owned() })]);
    }

    #[test]
    fn a_flood_that_lasts_is_summed_up_each_interval_and_no_line_is_lost() {
        let mut sites = sites();
        let (mut logged, mut summed) = (0, 0);
        for second in 0..300 {
            logged += u64::from(sites.admit("a", at(second), String::new));
            let sums = sites.due(at(second));
            assert!(sums.len() <= 1);
            summed += sums.iter().map(|(_, sum)| sum.held).sum::<u64>();
        }
        summed += sites.all().iter().map(|(_, sum)| sum.held).sum::<u64>();
        assert_eq!((logged, logged + summed), (20, 300), "two in each of ten intervals");
    }

    /// Keeps what it sees.
    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<(Level, String)>>>);

    impl<S: Subscriber> Layer<S> for Seen {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.0.lock().push((*event.metadata().level(), said(event)));
        }
    }

    #[test]
    fn a_place_that_floods_the_log_ends_in_one_line_of_its_level() {
        let repeats = Repeats::new(NonZeroU64::new(3).unwrap(), at(30));
        let (shared, seen) = (repeats.0.clone(), Seen::default());
        let subscriber = tracing_subscriber::registry().with(seen.clone()).with(repeats);
        tracing::subscriber::with_default(subscriber, || {
            for number in 0..10 {
                tracing::error!(number, "can't write");
                tracing::debug!("who asks for these wants them all");
                tracing::info!(target: EVERY_LINE, "statistics");
            }
            shared.tell(shared.sites.lock().all());
        });
        let seen = seen.0.lock();
        let of = |level: Level| seen.iter().filter(move |(other, _)| *other == level).map(|(_, text)| text);
        assert_eq!((of(Level::DEBUG).count(), of(Level::INFO).count()), (10, 10));
        let errors: Vec<&String> = of(Level::ERROR).collect();
        assert_eq!(errors.len(), 4, "{errors:?}");
        assert_eq!(errors[2], "can't write number=2");
        let sum = errors[3];
        assert!(sum.starts_with("7 more like this in the last 30 s"), "{sum}");
        assert!(sum.contains("held=7") && sum.contains("can't write number=9"), "{sum}");
    }
}
