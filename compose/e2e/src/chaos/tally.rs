//! What publishers and sinks have seen in one round.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tbmq_harness::{
    client::Observer,
    http_sink::Received,
    ledger::{Audit, Finding, Ledger, Mark},
};
use tbmq_mqtt::packet::ReasonCode;

/// A message: publisher and sequence.
pub type Id = (u32, u64);

/// Which publishers' messages an integration gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// All.
    All,
    /// Of publishers with even numbers.
    Even,
    /// Of publishers with odd numbers.
    Odd,
}

impl Share {
    /// Whether a publisher's messages are due.
    pub fn has(self, publisher: u32) -> bool {
        match self {
            Self::All => true,
            Self::Even => publisher.is_multiple_of(2),
            Self::Odd => !publisher.is_multiple_of(2),
        }
    }
}

/// Counts of one round, filled while it runs.
#[derive(Debug)]
pub struct Tally {
    publishers: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    is_stopped: bool,
    is_held_down: bool,
    acknowledged: Vec<Mark>,
    refused: u64,
    reconnects: u64,
    accounts: Vec<Account>,
    /// Messages sent after this moment tell that the system works again, ns of the marks' clock.
    since_ns: u64,
}

/// One integration's side.
#[derive(Debug)]
struct Account {
    name: String,
    share: Share,
    arrivals: Vec<Mark>,
    seen: HashSet<Id>,
    /// Acknowledged, not arrived; when it was acknowledged.
    outstanding: HashMap<Id, Instant>,
    excused: BTreeSet<Id>,
    /// When each publisher's newest message was sent that has arrived, ns.
    newest_ns: HashMap<u32, u64>,
    last_arrival: Instant,
    longest_pause: Duration,
    first_after: Option<Instant>,
    /// The first arrival since they are looked for, of whatever message.
    first_arrival: Option<Instant>,
    /// Number at the end of the path, and when it was first seen.
    paths: BTreeMap<u64, Instant>,
}

impl Tally {
    /// Nothing yet, for integrations by name, and publishers with numbers below `publishers`.
    pub fn new(publishers: u32, integrations: &[(&str, Share)]) -> Self {
        let account = |(name, share): &(&str, Share)| Account {
            name: (*name).to_owned(),
            share: *share,
            arrivals: Vec::new(),
            seen: HashSet::new(),
            outstanding: HashMap::new(),
            excused: BTreeSet::new(),
            newest_ns: HashMap::new(),
            last_arrival: Instant::now(),
            longest_pause: Duration::ZERO,
            first_after: None,
            first_arrival: None,
            paths: BTreeMap::new(),
        };
        let accounts = integrations.iter().map(account).collect();
        Self { publishers, state: Mutex::new(State { accounts, since_ns: u64::MAX, ..State::default() }) }
    }

    /// Publishers begin nothing new from now on.
    pub fn stop(&self) {
        self.state.lock().is_stopped = true;
    }

    /// A fault begins, which lasts as long as it takes: publishers wait for its end.
    pub fn hold_down(&self) {
        self.state.lock().is_held_down = true;
    }

    /// The fault is over.
    pub fn healed(&self) {
        self.state.lock().is_held_down = false;
    }

    /// A request has arrived at an integration's sink and was answered.
    pub fn arrived(&self, integration: usize, received: &Received) {
        if !received.status.is_success() {
            return;
        }
        let Some(mark) = Mark::parse(&received.body) else { return };
        self.delivered(integration, mark, received.at);
        let Some(number) = received.path.rsplit('/').next().and_then(|last| last.parse().ok()) else {
            return;
        };
        if let Some(account) = self.state.lock().accounts.get_mut(integration) {
            account.paths.entry(number).or_insert(received.at);
        }
    }

    /// A message has arrived where an integration delivers to.
    pub fn delivered(&self, integration: usize, mark: Mark, at: Instant) {
        let mut state = self.state.lock();
        let since_ns = state.since_ns;
        let Some(account) = state.accounts.get_mut(integration) else { return };
        let id = (mark.publisher, mark.sequence);
        account.longest_pause = account.longest_pause.max(at.saturating_duration_since(account.last_arrival));
        account.last_arrival = at;
        account.first_arrival.get_or_insert(at);
        if mark.sent_ns > since_ns {
            account.first_after.get_or_insert(at);
        }
        let newest = account.newest_ns.entry(mark.publisher).or_default();
        *newest = mark.sent_ns.max(*newest);
        account.seen.insert(id);
        account.outstanding.remove(&id);
        account.arrivals.push(mark);
    }

    /// From now on an integration's next arrival, of whatever message, is looked for.
    pub fn look_for_arrival(&self, integration: usize) {
        if let Some(account) = self.state.lock().accounts.get_mut(integration) {
            account.first_arrival = None;
        }
    }

    /// When that arrival came.
    pub fn first_arrival(&self, integration: usize) -> Option<Instant> {
        self.state.lock().accounts.get(integration)?.first_arrival
    }

    /// From now on arrivals of messages sent after this moment are looked for.
    pub fn look_for_sent_after(&self, ns: u64) {
        let mut state = self.state.lock();
        state.since_ns = ns;
        state.accounts.iter_mut().for_each(|account| account.first_after = None);
    }

    /// When the first message sent after that moment had arrived at every integration.
    pub fn first_after(&self) -> Option<Instant> {
        let state = self.state.lock();
        state
            .accounts
            .iter()
            .map(|account| account.first_after)
            .collect::<Option<Vec<_>>>()?
            .into_iter()
            .max()
    }

    /// What was acknowledged until `until` and neither arrived nor is excused, by integration.
    pub fn missing(&self, until: Instant) -> BTreeMap<String, Vec<Id>> {
        let state = self.state.lock();
        let mut all = BTreeMap::new();
        for account in &state.accounts {
            let is_missing = |(id, at): &(&Id, &Instant)| **at <= until && !account.excused.contains(*id);
            let mut missing: Vec<Id> =
                account.outstanding.iter().filter(is_missing).map(|(id, _)| *id).collect();
            if !missing.is_empty() {
                missing.sort_unstable();
                all.insert(account.name.clone(), missing);
            }
        }
        all
    }

    /// Publishers of whom nothing sent after `ns` has arrived, by integration.
    pub fn silent_since(&self, ns: u64) -> BTreeMap<String, Vec<u32>> {
        let state = self.state.lock();
        let mut all = BTreeMap::new();
        for account in &state.accounts {
            let is_silent = |publisher: &u32| {
                account.share.has(*publisher)
                    && account.newest_ns.get(publisher).is_none_or(|newest| *newest <= ns)
            };
            let silent: Vec<u32> = (0..self.publishers).filter(is_silent).collect();
            if !silent.is_empty() {
                all.insert(account.name.clone(), silent);
            }
        }
        all
    }

    /// The topic of an integration is gone with what lay in it: what was acknowledged until then and has not arrived
    /// may stay away. Returns how many.
    pub fn excuse(&self, integration: usize, until: Instant) -> usize {
        let mut state = self.state.lock();
        let Some(account) = state.accounts.get_mut(integration) else { return 0 };
        let gone: Vec<Id> =
            account.outstanding.iter().filter(|(_, at)| **at <= until).map(|(id, _)| *id).collect();
        account.excused.extend(&gone);
        gone.len()
    }

    /// Whether something has arrived at this path of an integration's sink.
    pub fn has_path(&self, integration: usize, number: u64) -> bool {
        self.state.lock().accounts.get(integration).is_some_and(|account| account.paths.contains_key(&number))
    }

    /// Counts, and the verdict of the ledger. `first`: the first sequence of this round; what is older arrived again.
    pub fn close(&self, first: &[u64]) -> Counts {
        let state = self.state.lock();
        let mut counts = Counts {
            acknowledged: state.acknowledged.len(),
            refused: state.refused,
            reconnects: state.reconnects,
            ..Counts::default()
        };
        for account in &state.accounts {
            let is_old = |mark: &Mark| first.get(mark.publisher as usize).is_some_and(|f| mark.sequence < *f);
            let mut ledger = Ledger::new();
            ledger.expect_sink(&account.name, false);
            let due = state.acknowledged.iter().filter(|mark| account.share.has(mark.publisher));
            // What is excused and did not arrive was never due.
            let is_excused = |mark: &Mark| {
                let id = (mark.publisher, mark.sequence);
                account.excused.contains(&id) && !account.seen.contains(&id)
            };
            counts.excused += due.clone().filter(|mark| is_excused(mark)).count();
            due.filter(|mark| !is_excused(mark)).for_each(|mark| ledger.acknowledged(*mark));
            ledger.arrived(&account.name, account.arrivals.iter().copied().filter(|mark| !is_old(mark)));
            let late = account.arrivals.iter().filter(|mark| is_old(mark)).count();
            let audit = ledger.audit();
            counts.arrived += audit.arrived;
            let duplicates = audit.duplicates_at_sinks + late;
            counts.duplicates += duplicates;
            counts.duplicates_of.insert(account.name.clone(), duplicates);
            counts.pause = counts.pause.max(account.longest_pause);
            counts.pause_of.insert(account.name.clone(), account.longest_pause);
            counts.audits.insert(account.name.clone(), audit);
        }
        counts
    }
}

impl Observer for Tally {
    fn is_stopped(&self) -> bool {
        self.state.lock().is_stopped
    }

    fn is_held_down(&self) -> bool {
        self.state.lock().is_held_down
    }

    fn acknowledged(&self, mark: Mark) {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.acknowledged.push(mark);
        let id = (mark.publisher, mark.sequence);
        for account in &mut state.accounts {
            if account.share.has(mark.publisher) && !account.seen.contains(&id) {
                account.outstanding.insert(id, now);
            }
        }
    }

    fn refused(&self, _mark: Mark, _reason: ReasonCode) {
        self.state.lock().refused += 1;
    }

    fn disconnected(&self, _error: &anyhow::Error) {
        self.state.lock().reconnects += 1;
    }
}

/// What one round came to.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Messages acknowledged to publishers.
    pub acknowledged: usize,
    /// Requests that sinks answered with 2xx.
    pub arrived: usize,
    /// Of these, how many had arrived before.
    pub duplicates: usize,
    /// The same by integration.
    pub duplicates_of: BTreeMap<String, usize>,
    /// Lost by definition, with the topic that was deleted.
    pub excused: usize,
    /// Publishes that were refused (and sent again).
    pub refused: u64,
    /// Connections that publishers lost.
    pub reconnects: u64,
    /// The longest time without an arrival, of any integration.
    pub pause: Duration,
    /// The same by integration.
    pub pause_of: BTreeMap<String, Duration>,
    /// The ledger's verdict, by integration.
    pub audits: BTreeMap<String, Audit>,
}

impl Counts {
    /// What was acknowledged and neither arrived nor is excused, over all integrations.
    pub fn lost(&self) -> usize {
        self.audits.keys().map(|integration| self.lost_by(integration)).sum()
    }

    /// The same of one integration.
    pub fn lost_by(&self, integration: &str) -> usize {
        let missing = |finding: &Finding| match finding {
            Finding::NotArrived { missing, .. } => missing.len(),
            _ => 0,
        };
        self.audits.get(integration).map_or(0, |audit| audit.findings.iter().map(missing).sum())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderMap, Method, StatusCode};

    use super::*;

    fn received(mark: Mark, path: &str, status: u16) -> Received {
        Received {
            at: Instant::now(),
            method: Method::POST,
            path: path.to_owned(),
            headers: HeaderMap::new(),
            body: Bytes::from(mark.payload(64)),
            status: StatusCode::from_u16(status).unwrap(),
        }
    }

    fn mark(publisher: u32, sequence: u64, sent_ns: u64) -> Mark {
        Mark { publisher, sequence, sent_ns }
    }

    #[test]
    fn what_was_acknowledged_is_missing_until_it_arrives_where_it_is_due() {
        let tally = Tally::new(2, &[("all", Share::All), ("odd", Share::Odd)]);
        tally.acknowledged(mark(0, 0, 1));
        tally.acknowledged(mark(1, 0, 1));
        tally.arrived(0, &received(mark(0, 0, 1), "/0", 200));
        tally.arrived(0, &received(mark(1, 0, 1), "/0", 500));
        let expected = [("all".to_owned(), vec![(1, 0)]), ("odd".to_owned(), vec![(1, 0)])];
        assert_eq!(tally.missing(Instant::now()), BTreeMap::from(expected));
        let counts = tally.close(&[0, 0]);
        assert!(counts.audits.values().all(|audit| !audit.is_clean()));
        tally.arrived(0, &received(mark(1, 0, 1), "/0", 200));
        tally.arrived(1, &received(mark(1, 0, 1), "/0", 200));
        assert_eq!(tally.missing(Instant::now()), BTreeMap::new());
        assert!(tally.close(&[0, 0]).audits.values().all(Audit::is_clean));
    }

    #[test]
    fn only_what_was_acknowledged_before_its_topic_went_is_excused() {
        let tally = Tally::new(1, &[("all", Share::All)]);
        tally.acknowledged(mark(0, 0, 1));
        let deleted = Instant::now();
        std::thread::sleep(Duration::from_millis(2));
        tally.acknowledged(mark(0, 1, 1));
        assert_eq!(tally.excuse(0, deleted), 1);
        assert_eq!(tally.missing(Instant::now())["all"], [(0, 1)]);
        assert!(!tally.close(&[0]).audits["all"].is_clean());
        tally.arrived(0, &received(mark(0, 1, 1), "/0", 200));
        let counts = tally.close(&[0]);
        assert!(counts.audits["all"].is_clean());
        assert_eq!(counts.excused, 1);
    }

    #[test]
    fn what_arrives_twice_or_from_an_earlier_round_is_a_duplicate() {
        let tally = Tally::new(1, &[("all", Share::All)]);
        tally.acknowledged(mark(0, 5, 1));
        for sequence in [4, 5, 5] {
            tally.arrived(0, &received(mark(0, sequence, 1), "/0", 200));
        }
        let counts = tally.close(&[5]);
        assert_eq!((counts.arrived, counts.duplicates), (2, 2));
    }

    #[test]
    fn a_publisher_is_silent_until_something_newer_of_it_arrives() {
        let tally = Tally::new(2, &[("all", Share::All)]);
        tally.look_for_sent_after(10);
        tally.arrived(0, &received(mark(0, 0, 10), "/0", 200));
        assert_eq!((tally.first_after(), tally.silent_since(10)["all"].len()), (None, 2));
        tally.arrived(0, &received(mark(0, 1, 11), "/7", 200));
        assert!(tally.first_after().is_some() && tally.has_path(0, 7));
        assert_eq!(tally.silent_since(10)["all"], [1]);
    }
}
