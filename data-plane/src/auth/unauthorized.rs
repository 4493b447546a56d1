//! Clients that were refused, for those who operate the broker: at most one record a second for each client id, a
//! bounded number of records a second, and a bounded number of clients in memory, however many knock.

use std::{collections::HashSet, mem, sync::Arc, time::Duration};

use futures_util::future;
use indexmap::IndexMap;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prost::Message as _;
use tbmq_bus::{Header, Outgoing, TopicHandle, Writer, write};
use tbmq_proto::{topic::SERVICE_ID_HEADER, wire::UnauthorizedRecord};

use super::Claim;

/// Between two records of a client.
const PERIOD: Duration = Duration::from_secs(1);

/// Records written at a time, and in a second.
const RECORDS_MAX: usize = 1000;

/// Clients whose record waits.
const WAITING_MAX: usize = 10_000;

/// Clients of which it is remembered that they were refused, at least.
const REMEMBERED_MAX: usize = 50_000;

/// Characters of each text that are kept: TBMQ's columns.
const TEXT_MAX: usize = 255;

/// Characters of a reason that are kept.
const REASON_MAX: usize = 1000;

/// Notes clients that are refused, and let in later.
#[derive(Debug)]
pub(crate) struct Unauthorized {
    is_enabled: bool,
    service_id: Arc<str>,
    notes: Mutex<Notes>,
    dropped: Counter,
}

#[derive(Debug, Default)]
struct Notes {
    /// By client id, in the order in which they came.
    waiting: IndexMap<Box<str>, UnauthorizedRecord>,
    /// Client ids that were written, the latest: two halves, of which the older one is forgotten as a whole.
    written: [HashSet<Box<str>>; 2],
}

impl Notes {
    fn remember(&mut self, client_id: Box<str>) {
        let [young, old] = &mut self.written;
        if young.len() >= REMEMBERED_MAX {
            *old = mem::take(young);
        }
        young.insert(client_id);
    }

    /// Whether it was written.
    fn forget(&mut self, client_id: &str) -> bool {
        let [young, old] = &mut self.written;
        // Both: it may be in each.
        young.remove(client_id) | old.remove(client_id)
    }

    fn take(&mut self) -> Vec<UnauthorizedRecord> {
        let count = self.waiting.len().min(RECORDS_MAX);
        let taken: Vec<_> = self.waiting.drain(..count).map(|(_, record)| record).collect();
        for record in taken.iter().filter(|record| record.count > 0) {
            self.remember(record.client_id.as_str().into());
        }
        taken
    }
}

/// The beginning of a text.
fn head(text: &str, max: usize) -> &str {
    text.char_indices().nth(max).map_or(text, |(at, _)| &text[..at])
}

impl Unauthorized {
    pub(crate) fn new(is_enabled: bool, service_id: Arc<str>, dropped: Counter) -> Self {
        Self { is_enabled, service_id, notes: Mutex::default(), dropped }
    }

    /// A client was refused.
    pub(crate) fn refused(&self, claim: &Claim, reason: &str, now_ms: i64) {
        if !self.is_enabled {
            return;
        }
        let client_id = head(&claim.client_id, TEXT_MAX);
        let mut notes = self.notes.lock();
        if notes.waiting.len() >= WAITING_MAX && !notes.waiting.contains_key(client_id) {
            self.dropped.inc();
            return;
        }
        let record = notes.waiting.entry(client_id.into()).or_default();
        *record = UnauthorizedRecord {
            client_id: client_id.to_owned(),
            address: claim.peer.ip().to_canonical().to_string(),
            user_name: head(claim.username.as_deref().unwrap_or_default(), TEXT_MAX).to_owned(),
            password_provided: claim.password.is_some(),
            tls_used: claim.is_tls,
            reason: head(reason, REASON_MAX).to_owned(),
            time_ms: now_ms,
            count: record.count + 1,
            service_id: self.service_id.to_string(),
        };
    }

    /// A client was let in: it is to be forgotten.
    pub(crate) fn admitted(&self, client_id: &str, now_ms: i64) {
        if !self.is_enabled {
            return;
        }
        let client_id = head(client_id, TEXT_MAX);
        let mut notes = self.notes.lock();
        let waited = notes.waiting.shift_remove(client_id).is_some();
        // Somebody may have read what was written by now, whether it waited again or not.
        if !notes.forget(client_id) {
            return;
        }
        if notes.waiting.len() >= WAITING_MAX && !waited {
            notes.remember(client_id.into());
            self.dropped.inc();
            return;
        }
        let record = UnauthorizedRecord {
            client_id: client_id.to_owned(),
            time_ms: now_ms,
            service_id: self.service_id.to_string(),
            ..UnauthorizedRecord::default()
        };
        notes.waiting.insert(client_id.into(), record);
    }

    /// Writes what there is, once a second; does not return. What the bus does not take is lost: it is for people, who
    /// will see the next one.
    pub(crate) async fn run(&self, writer: &dyn Writer, topic: &TopicHandle) {
        let headers = [Header::text(SERVICE_ID_HEADER, &*self.service_id)];
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let records = self.notes.lock().take();
            let writes = records.iter().map(async |record| {
                let value = record.encode_to_vec();
                let key = Some(record.client_id.as_bytes());
                let outgoing = Outgoing { partition: Some(0), key, value: Some(&value), headers: &headers };
                write(writer, topic, outgoing).await
            });
            let failed = future::join_all(writes).await.into_iter().filter_map(Result::err);
            let (mut count, mut last) = (0, None);
            for error in failed {
                (count, last) = (count + 1, Some(error));
            }
            if let Some(error) = last {
                self.dropped.inc_by(count);
                tracing::warn!(%error, count, "can't tell of clients that were refused");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(client_id: &str) -> Claim {
        Claim {
            client_id: client_id.into(),
            username: Some("u".into()),
            password: Some(bytes::Bytes::from_static(b"secret")),
            common_names: [].into(),
            peer: "[::ffff:10.0.0.1]:4000".parse().unwrap(),
            is_local: false,
            is_tls: true,
            method: None,
        }
    }

    fn unauthorized() -> Unauthorized {
        Unauthorized::new(true, "node".into(), Counter::default())
    }

    fn taken(unauthorized: &Unauthorized) -> Vec<(String, u64)> {
        let records = unauthorized.notes.lock().take();
        records.into_iter().map(|record| (record.client_id, record.count)).collect()
    }

    #[test]
    fn refusals_of_a_client_are_one_record_with_the_latest_reason_and_their_count() {
        let unauthorized = unauthorized();
        unauthorized.refused(&claim("c"), "first", 1);
        unauthorized.refused(&claim("d"), "other", 2);
        unauthorized.refused(&claim("c"), "second", 3);
        let records = unauthorized.notes.lock().take();
        let expected = UnauthorizedRecord {
            client_id: "c".to_owned(),
            address: "10.0.0.1".to_owned(),
            user_name: "u".to_owned(),
            password_provided: true,
            tls_used: true,
            reason: "second".to_owned(),
            time_ms: 3,
            count: 2,
            service_id: "node".to_owned(),
        };
        assert_eq!(records[0], expected);
        assert_eq!((&*records[1].client_id, records.len()), ("d", 2));
        unauthorized.refused(&claim("c"), "third", 4);
        assert_eq!(taken(&unauthorized), [("c".to_owned(), 1)], "since the record before");
    }

    #[test]
    fn a_client_is_to_be_forgotten_when_it_is_let_in_after_it_was_told_of_and_only_then() {
        let unauthorized = unauthorized();
        unauthorized.refused(&claim("never told"), "no", 1);
        unauthorized.admitted("never told", 2);
        unauthorized.admitted("never refused", 2);
        assert_eq!(taken(&unauthorized), []);
        unauthorized.refused(&claim("c"), "no", 3);
        assert_eq!(taken(&unauthorized).len(), 1);
        unauthorized.refused(&claim("c"), "no", 4);
        unauthorized.admitted("c", 5);
        assert_eq!(taken(&unauthorized), [("c".to_owned(), 0)]);
        unauthorized.admitted("c", 6);
        assert_eq!(taken(&unauthorized), []);
    }

    #[test]
    fn a_flood_takes_bounded_memory_and_a_bounded_part_of_the_topic() {
        let unauthorized = unauthorized();
        let long = "é".repeat(30_000);
        for number in 0..WAITING_MAX + 100 {
            unauthorized.refused(&claim(&format!("{number}{long}")), &long, 1);
        }
        assert_eq!(unauthorized.dropped.get(), 100);
        let records = unauthorized.notes.lock().take();
        assert_eq!(records.len(), RECORDS_MAX);
        assert!(records.iter().all(|record| record.client_id.chars().count() == TEXT_MAX));
        assert!(records.iter().all(|record| record.reason.chars().count() == REASON_MAX));
        for number in 0..3 * REMEMBERED_MAX {
            unauthorized.notes.lock().remember(number.to_string().into());
        }
        let written = unauthorized.notes.lock().written.iter().map(HashSet::len).sum::<usize>();
        assert!(written <= 2 * REMEMBERED_MAX, "{written}");
    }

    #[test]
    fn nothing_is_noted_when_it_is_switched_off() {
        let unauthorized = Unauthorized::new(false, "node".into(), Counter::default());
        unauthorized.refused(&claim("c"), "no", 1);
        assert_eq!(taken(&unauthorized), []);
    }
}
