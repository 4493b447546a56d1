//! Sessions in memory: for tests, and where nothing else is configured. They outlive a connection, not the process.

use std::{collections::BTreeMap, fmt, ops::RangeInclusive};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::{
    Change, Error, Limits, Outcome, Page, ReadLimit, Seq, Session, SessionStore, State,
    model::{self, Model, Row, Rows, Step},
};

/// Sessions in memory.
pub struct MemoryStore {
    /// `None` once it is closed.
    inner: Mutex<Option<Inner>>,
}

struct Inner {
    model: Model,
    table: Table,
}

#[derive(Debug, Default)]
struct Table(BTreeMap<Bytes, Bytes>);

impl MemoryStore {
    /// An empty store.
    pub fn new(limits: Limits) -> Self {
        let table = Table::default();
        let model = Model::new(limits, &table).expect("there is no row that could be unreadable");
        Self { inner: Mutex::new(Some(Inner { model, table })) }
    }

    /// Rows that are kept.
    #[cfg(test)]
    pub(super) fn rows(&self) -> usize {
        self.inner.lock().as_ref().map_or(0, |inner| inner.table.0.len())
    }

    fn change<T>(
        &self,
        count: usize,
        step: impl FnOnce(&Model, &Table) -> Result<Step<T>, String>,
    ) -> Vec<Result<T, Error>> {
        let mut inner = self.inner.lock();
        let Some(Inner { model, table }) = &mut *inner else {
            return (0..count).map(|_| Err(closed())).collect();
        };
        let step = step(model, table).expect("rows that the model has written can be read");
        model.kept(&step);
        for (key, value) in step.writes {
            match value {
                Some(value) => table.0.insert(key, value),
                None => table.0.remove(&key),
            };
        }
        step.results
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryStore")
    }
}

fn closed() -> Error {
    Error::unavailable("it is closed")
}

#[async_trait]
impl SessionStore for MemoryStore {
    async fn open(&self, sessions: &[Session]) -> Vec<Result<State, Error>> {
        self.change(sessions.len(), |model, table| model.open(table, sessions))
    }

    async fn apply(&self, now_ms: i64, changes: Vec<Change>) -> Vec<Result<Outcome, Error>> {
        self.change(changes.len(), |model, table| model.apply(table, now_ms, changes))
    }

    async fn read(
        &self,
        now_ms: i64,
        session: &Session,
        after: Seq,
        limit: ReadLimit,
    ) -> Result<Page, Error> {
        let inner = self.inner.lock();
        let Inner { table, .. } = inner.as_ref().ok_or_else(closed)?;
        model::read(table, now_ms, session, after, limit)
            .expect("rows that the model has written can be read")
    }

    async fn close(&self) {
        self.inner.lock().take();
    }
}

impl Rows for Table {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, String> {
        Ok(self.0.get(key).cloned())
    }

    fn range(&self, keys: RangeInclusive<Bytes>) -> Box<dyn Iterator<Item = Result<Row, String>> + '_> {
        Box::new(self.0.range(keys).map(|(key, value)| Ok((key.clone(), value.clone()))))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::session_store::contract::{Place, contract};

    /// Memory forgets with the process: what is opened again is the same.
    #[derive(Default)]
    struct Process(Option<Arc<MemoryStore>>);

    impl Place for Process {
        async fn new(_test: &str) -> Option<Self> {
            Some(Self::default())
        }

        async fn open(&mut self, limits: Limits) -> Arc<dyn SessionStore> {
            self.0.get_or_insert_with(|| Arc::new(MemoryStore::new(limits))).clone()
        }

        async fn leftovers(&mut self) -> usize {
            self.0.as_ref().map_or(0, |store| store.rows())
        }
    }

    contract!(Process);

    #[tokio::test]
    async fn all_sessions_together_hold_no_more_than_their_limit() {
        use crate::session_store::{Action, Record};
        let store = MemoryStore::new(Limits { total_bytes: 100, ..Limits::default() });
        let [a, b] = ["a", "b"].map(|id| Session::new(id, 1));
        store.open(&[a.clone(), b.clone()]).await;
        let append = |session: &Session, bytes: usize| Change {
            session: session.clone(),
            action: Action::Append(Record { value: vec![0; bytes].into(), expires_at_ms: None }),
        };
        let changes = vec![append(&a, 60), append(&b, 30), append(&b, 60), append(&b, 40), append(&a, 50)];
        let kept = |seq, dropped| Ok(Outcome::Appended { seq, dropped });
        assert_eq!(
            store.apply(0, changes).await,
            [kept(1, 0), kept(1, 0), Ok(Outcome::Full), kept(2, 1), kept(2, 1)],
            "a session's own records give way, others' don't"
        );
        let removed = Change { session: a, action: Action::Remove };
        let results = store.apply(0, vec![removed, append(&b, 60)]).await;
        assert_eq!(results, [Ok(Outcome::Done), kept(3, 0)]);
    }
}
