//! The ledger: an independent checker of what happened to every message.
//!
//! It knows nothing of how the planes work. A test tells it what publishers sent and had acknowledged, what lies on the
//! bus, what arrived at which sink, what was dead-lettered, and what the executors count; [`Ledger::audit`] says what
//! does not fit:
//!
//! * an acknowledged message that is not on the bus (unless retention removed it, or the bus is not looked at);
//! * a message on the bus that neither arrived nor was dead-lettered nor is counted as skipped, rejected or expired;
//! * a message at a sink that it was not meant for;
//! * the first appearances of a publisher's messages out of order, on the bus always, at a sink that promises order;
//! * a partition whose books do not balance (architecture §5.10).
//!
//! Duplicates are counted, not condemned: delivery is at least once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
};

/// One message: who published it, on which of the publisher's topics, and which one it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mark {
    /// The publisher.
    pub publisher: u32,
    /// Counts up from 0 for each publisher.
    pub sequence: u64,
    /// When it was sent, ns of whatever clock the test uses; 0 when that is not measured.
    pub sent_ns: u64,
}

impl Mark {
    /// A mark without a time.
    pub fn new(publisher: u32, sequence: u64) -> Self {
        Self { publisher, sequence, sent_ns: 0 }
    }

    /// The payload that carries it, filled up with blanks to `size` bytes (at least what the text needs).
    pub fn payload(&self, size: usize) -> Vec<u8> {
        let mut payload = format!("mark:{}:{}:{};", self.publisher, self.sequence, self.sent_ns).into_bytes();
        payload.resize(size.max(payload.len()), b' ');
        payload
    }

    /// Reads a payload; `None` when it carries no mark.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let text = payload.strip_prefix(b"mark:")?;
        let end = text.iter().position(|byte| *byte == b';')?;
        let mut parts = std::str::from_utf8(&text[..end]).ok()?.split(':');
        let mark = Self {
            publisher: parts.next()?.parse().ok()?,
            sequence: parts.next()?.parse().ok()?,
            sent_ns: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(mark)
    }

    fn id(self) -> Id {
        (self.publisher, self.sequence)
    }
}

type Id = (u32, u64);

/// What executors count for one message partition since it was created, and what the bus says of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Books {
    /// First offset ever.
    pub first: u64,
    /// End of the partition.
    pub end: u64,
    /// Committed offset.
    pub committed: u64,
    /// Delivered and confirmed.
    pub delivered: u64,
    /// Rejected for good.
    pub rejected: u64,
    /// Given up by the strategy.
    pub skipped: u64,
    /// Written to the dead letters.
    pub dead_lettered: u64,
    /// Removed by retention, or past their deadline, before they were delivered.
    pub expired: u64,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Ledger {
    acknowledged: BTreeSet<Id>,
    bus: BTreeMap<String, Vec<Id>>,
    sinks: BTreeMap<String, Vec<Id>>,
    expected_sinks: BTreeSet<String>,
    ordered_sinks: BTreeSet<String>,
    dead: BTreeSet<Id>,
    excused: u64,
    books: BTreeMap<String, Books>,
    bus_removed: u64,
}

impl Ledger {
    /// An empty ledger.
    pub fn new() -> Self {
        Self::default()
    }

    /// The broker acknowledged this message to its publisher.
    pub fn acknowledged(&mut self, mark: Mark) {
        self.acknowledged.insert(mark.id());
    }

    /// These lie on a partition of the bus, in the order of their offsets.
    pub fn on_bus(&mut self, partition: &str, marks: impl IntoIterator<Item = Mark>) {
        self.bus.entry(partition.to_owned()).or_default().extend(marks.into_iter().map(Mark::id));
    }

    /// Retention removed this many records of the bus before they could be looked at here.
    pub fn removed_from_bus(&mut self, count: u64) {
        self.bus_removed += count;
    }

    /// These arrived at a sink, in the order of their arrival. Messages may only arrive at sinks that
    /// [`Ledger::expect_sink`] names.
    pub fn arrived(&mut self, sink: &str, marks: impl IntoIterator<Item = Mark>) {
        self.sinks.entry(sink.to_owned()).or_default().extend(marks.into_iter().map(Mark::id));
    }

    /// Every message is meant for this sink; `ordered`: in the order of publishing.
    pub fn expect_sink(&mut self, sink: &str, ordered: bool) {
        self.expected_sinks.insert(sink.to_owned());
        if ordered {
            self.ordered_sinks.insert(sink.to_owned());
        }
    }

    /// This message is among the dead letters.
    pub fn dead_lettered(&mut self, mark: Mark) {
        self.dead.insert(mark.id());
    }

    /// Executors count this many messages as skipped, rejected or expired: so many may be missing at the sinks.
    pub fn excused(&mut self, count: u64) {
        self.excused += count;
    }

    /// The books of one partition, at rest.
    pub fn books(&mut self, partition: &str, books: Books) {
        self.books.insert(partition.to_owned(), books);
    }

    /// Compares everything with everything.
    pub fn audit(&self) -> Audit {
        let mut audit = Audit { acknowledged: self.acknowledged.len(), ..Audit::default() };
        let on_bus: BTreeSet<Id> = self.bus.values().flatten().copied().collect();
        audit.on_bus = self.bus.values().map(Vec::len).sum();
        audit.duplicates_on_bus = audit.on_bus - on_bus.len();
        if !self.bus.is_empty() {
            let missing: Vec<Id> = self.acknowledged.difference(&on_bus).copied().collect();
            if missing.len() as u64 > self.bus_removed {
                audit.findings.push(Finding::NotOnBus(missing));
            }
        }
        for (partition, ids) in &self.bus {
            if let Some((earlier, later)) = first_disorder(ids) {
                audit.findings.push(Finding::Disorder { place: partition.clone(), earlier, later });
            }
        }
        for sink in &self.expected_sinks {
            let arrivals = self.sinks.get(sink).map_or(&[][..], Vec::as_slice);
            let arrived: BTreeSet<Id> = arrivals.iter().copied().collect();
            audit.arrived += arrivals.len();
            audit.duplicates_at_sinks += arrivals.len() - arrived.len();
            let due = if self.bus.is_empty() { &self.acknowledged } else { &on_bus };
            let missing: Vec<Id> = due
                .union(&self.acknowledged)
                .filter(|id| !arrived.contains(id) && !self.dead.contains(id))
                .copied()
                .collect();
            if missing.len() as u64 > self.excused {
                audit.findings.push(Finding::NotArrived {
                    sink: sink.clone(),
                    missing,
                    excused: self.excused,
                });
            }
            if self.ordered_sinks.contains(sink)
                && let Some((earlier, later)) = first_disorder(arrivals)
            {
                audit.findings.push(Finding::Disorder { place: sink.clone(), earlier, later });
            }
        }
        for (sink, ids) in &self.sinks {
            if !self.expected_sinks.contains(sink) && !ids.is_empty() {
                audit.findings.push(Finding::Misrouted { sink: sink.clone(), ids: ids.clone() });
            }
        }
        for (partition, books) in &self.books {
            let settled = books.committed - books.first;
            let counted =
                books.delivered + books.rejected + books.skipped + books.dead_lettered + books.expired;
            if books.committed != books.end || settled != counted {
                audit.findings.push(Finding::Unbalanced { partition: partition.clone(), books: *books });
            }
        }
        audit
    }
}

/// The first pair whose first appearances are in the wrong order, per publisher.
fn first_disorder(ids: &[Id]) -> Option<(Id, Id)> {
    let mut seen: BTreeSet<Id> = BTreeSet::new();
    let mut highest: HashMap<u32, u64> = HashMap::new();
    for id @ (publisher, sequence) in ids.iter().copied() {
        if !seen.insert(id) {
            continue;
        }
        match highest.get(&publisher) {
            Some(top) if *top > sequence => return Some((id, (publisher, *top))),
            _ => {
                highest.insert(publisher, sequence);
            }
        }
    }
    None
}

/// What does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Acknowledged, but not on the bus.
    NotOnBus(Vec<Id>),
    /// Due at a sink, but neither there nor accounted for.
    NotArrived {
        /// The sink.
        sink: String,
        /// What is missing.
        missing: Vec<Id>,
        /// How many may be.
        excused: u64,
    },
    /// Arrived where nothing should.
    Misrouted {
        /// The sink.
        sink: String,
        /// What arrived.
        ids: Vec<Id>,
    },
    /// `earlier` first appeared after `later`.
    Disorder {
        /// Partition or sink.
        place: String,
        /// What should have come first.
        earlier: Id,
        /// What came first.
        later: Id,
    },
    /// The books do not balance, or the partition is not settled to its end.
    Unbalanced {
        /// The partition.
        partition: String,
        /// Its books.
        books: Books,
    },
}

/// What the ledger found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Messages that were acknowledged.
    pub acknowledged: usize,
    /// Records on the bus.
    pub on_bus: usize,
    /// Records on the bus that were there before.
    pub duplicates_on_bus: usize,
    /// Arrivals at the expected sinks.
    pub arrived: usize,
    /// Arrivals that had arrived before.
    pub duplicates_at_sinks: usize,
    /// What does not fit; empty is clean.
    pub findings: Vec<Finding>,
}

impl Audit {
    /// Whether everything fits.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// Fails the test when something does not fit.
    ///
    /// # Panics
    /// With everything that does not fit.
    pub fn assert_clean(&self) {
        assert!(self.is_clean(), "{self}");
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "acknowledged {}, on the bus {} ({} duplicates), arrived {} ({} duplicates), findings {}",
            self.acknowledged,
            self.on_bus,
            self.duplicates_on_bus,
            self.arrived,
            self.duplicates_at_sinks,
            self.findings.len()
        )?;
        for finding in &self.findings {
            let text = format!("{finding:?}");
            let cut = text.char_indices().nth(1000).map_or(text.len(), |(i, _)| i);
            write!(f, "\n  {}", &text[..cut])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(range: std::ops::Range<u64>) -> impl Iterator<Item = Mark> {
        range.map(|sequence| Mark::new(1, sequence))
    }

    fn clean() -> Ledger {
        let mut ledger = Ledger::new();
        marks(0..10).for_each(|mark| ledger.acknowledged(mark));
        ledger.on_bus("m-0", marks(0..10));
        ledger.expect_sink("s", true);
        ledger.arrived("s", marks(0..10));
        ledger.books("m-0", Books { end: 10, committed: 10, delivered: 10, ..Books::default() });
        ledger
    }

    #[test]
    fn a_run_in_which_all_fits_is_clean() {
        let audit = clean().audit();
        audit.assert_clean();
        assert_eq!((audit.acknowledged, audit.on_bus, audit.arrived), (10, 10, 10));
    }

    #[test]
    fn duplicates_are_counted_and_do_not_disturb_the_order() {
        let mut ledger = clean();
        ledger.arrived("s", marks(3..7));
        let audit = ledger.audit();
        audit.assert_clean();
        assert_eq!(audit.duplicates_at_sinks, 4);
    }

    #[test]
    fn an_acknowledged_message_that_is_not_on_the_bus_is_found() {
        let mut ledger = clean();
        ledger.acknowledged(Mark::new(1, 10));
        ledger.arrived("s", [Mark::new(1, 10)]);
        assert_eq!(ledger.audit().findings, [Finding::NotOnBus(vec![(1, 10)])]);
    }

    #[test]
    fn a_message_that_vanished_between_bus_and_sink_is_found_unless_counted() {
        let mut ledger = clean();
        ledger.on_bus("m-0", marks(10..12));
        let missing = vec![(1, 10), (1, 11)];
        assert_eq!(
            ledger.audit().findings,
            [Finding::NotArrived { sink: "s".to_owned(), missing, excused: 0 }]
        );
        ledger.excused(2);
        ledger.audit().assert_clean();
    }

    #[test]
    fn disorder_is_found_on_the_bus_and_at_an_ordered_sink() {
        let mut ledger = clean();
        ledger.on_bus("m-1", [Mark::new(2, 1), Mark::new(2, 0)]);
        ledger.arrived("s", [Mark::new(2, 1), Mark::new(2, 0)]);
        let places: Vec<_> = ledger
            .audit()
            .findings
            .into_iter()
            .map(|finding| match finding {
                Finding::Disorder { place, .. } => place,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(places, ["m-1", "s"]);
    }

    #[test]
    fn an_arrival_at_a_foreign_sink_and_unbalanced_books_are_found() {
        let mut ledger = clean();
        ledger.arrived("old", marks(0..1));
        ledger.books("m-0", Books { end: 10, committed: 10, delivered: 9, ..Books::default() });
        assert_eq!(ledger.audit().findings.len(), 2);
    }

    #[test]
    fn a_mark_survives_its_payload() {
        let mark = Mark { publisher: 7, sequence: 123, sent_ns: 99 };
        let payload = mark.payload(256);
        assert_eq!(payload.len(), 256);
        assert_eq!(Mark::parse(&payload), Some(mark));
        assert_eq!(Mark::parse(b"hello"), None);
    }
}
