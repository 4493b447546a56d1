//! Sessions on this machine's disk, for the all-in-one: the rows of the `model.rs` over fjall, an LSM tree
//! with a journal.
//!
//! One thread writes. It takes all calls that wait, makes each one batch of the journal, syncs once for all of them,
//! and answers then. Readers ask the tree beside it.

use std::{
    fmt,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use fjall::{
    Database, Guard, Keyspace, KeyspaceCreateOptions, PersistMode, Readable as _, Snapshot, UserValue,
};
use parking_lot::{Mutex, RwLock};
pub use tbmq_bus::embedded::Durability;
use tokio::sync::{mpsc, oneshot};

use super::{
    Change, Error, Limits, Outcome, Page, ReadLimit, Seq, Session, SessionStore, State,
    model::{self, Model, Row, Rows, Step, Writes},
};

/// Calls that wait for the writer; more wait for a place.
const WAITING_MAX: usize = 1024;

/// Calls that share a sync.
const GROUP_MAX: usize = 256;

/// Time between two attempts to open a failed table.
const REOPEN_AFTER: Duration = Duration::from_millis(500);

/// How long the lock of a table that was just given up may still be held by its threads.
const UNLOCK_WITHIN: Duration = Duration::from_secs(5);

/// Version of the format on disk.
const FORMAT: u8 = 1;

/// Sessions on this machine's disk.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    /// `None` once it is closed.
    calls: Mutex<Option<mpsc::Sender<Call>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl EmbeddedStore {
    /// Opens the sessions in a folder, which it creates. Blocks for as long as recovery takes.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when another process has the folder open, or it can't be read or written.
    pub fn open(path: impl Into<PathBuf>, durability: Durability, limits: Limits) -> Result<Self, Error> {
        let path = path.into();
        let persist = match durability {
            Durability::Power => PersistMode::SyncData,
            Durability::Process => PersistMode::Buffer,
        };
        std::fs::create_dir_all(&path).map_err(|error| Error::unavailable(at(&path, error)))?;
        let table = Table::open(&path).map_err(|error| match error {
            Problem::Engine(fjall::Error::Locked) => {
                Error::unavailable(at(&path, "another process has it open"))
            }
            other => Error::unavailable(at(&path, other)),
        })?;
        let model = Model::new(limits, &table).map_err(|problem| Error::unavailable(at(&path, problem)))?;
        let shared = Arc::new(Shared { path, persist, limits, table: RwLock::new(Some(table)) });
        let (calls, waiting) = mpsc::channel(WAITING_MAX);
        let writer = Writer { shared: shared.clone(), model, last_attempt: None };
        let writer = std::thread::Builder::new()
            .name("session-store".to_owned())
            .spawn(move || writer.run(waiting))
            .map_err(Error::unavailable)?;
        Ok(Self { shared, calls: Mutex::new(Some(calls)), writer: Mutex::new(Some(writer)) })
    }

    async fn call<T>(&self, make: impl FnOnce(Answer<T>) -> Call) -> Result<Vec<Result<T, Error>>, Error> {
        let calls = self.calls.lock().clone().ok_or_else(closed)?;
        let (answer, answered) = oneshot::channel();
        calls.send(make(answer)).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())
    }
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStore").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

fn closed() -> Error {
    Error::unavailable("it is closed")
}

fn at(path: &Path, problem: impl fmt::Display) -> String {
    format!("the sessions in {}: {problem}", path.display())
}

#[async_trait]
impl SessionStore for EmbeddedStore {
    async fn open(&self, sessions: &[Session]) -> Vec<Result<State, Error>> {
        let sessions = sessions.to_vec();
        let count = sessions.len();
        let answer = self.call(|answer| Call::Open { sessions, answer }).await;
        answer.unwrap_or_else(|error| vec![Err(error); count])
    }

    async fn apply(&self, now_ms: i64, changes: Vec<Change>) -> Vec<Result<Outcome, Error>> {
        let count = changes.len();
        let answer = self.call(|answer| Call::Apply { now_ms, changes, answer }).await;
        answer.unwrap_or_else(|error| vec![Err(error); count])
    }

    async fn read(
        &self,
        now_ms: i64,
        session: &Session,
        after: Seq,
        limit: ReadLimit,
    ) -> Result<Page, Error> {
        let (shared, session) = (self.shared.clone(), session.clone());
        let reading = tokio::task::spawn_blocking(move || {
            let table = shared.table.read();
            let table = table.as_ref().ok_or_else(|| Error::unavailable(at(&shared.path, "not open")))?;
            // A batch that is being written is seen as a whole or not at all.
            let rows = Frozen { snapshot: table.database.snapshot(), rows: &table.rows };
            model::read(&rows, now_ms, &session, after, limit)
                .map_err(|problem| Error::unavailable(at(&shared.path, problem)))?
        });
        reading.await.map_err(Error::unavailable)?
    }

    async fn close(&self) {
        self.calls.lock().take();
        let Some(writer) = self.writer.lock().take() else { return };
        let joined = tokio::task::spawn_blocking(move || writer.join());
        if !matches!(joined.await, Ok(Ok(()))) {
            tracing::error!("the writer of the session store has panicked");
        }
    }
}

type Answer<T> = oneshot::Sender<Vec<Result<T, Error>>>;

enum Call {
    Open { sessions: Vec<Session>, answer: Answer<State> },
    Apply { now_ms: i64, changes: Vec<Change>, answer: Answer<Outcome> },
}

/// What writer and readers share.
struct Shared {
    path: PathBuf,
    persist: PersistMode,
    limits: Limits,
    /// `None` after a failure until it is opened again, and once the store is closed.
    table: RwLock<Option<Table>>,
}

struct Writer {
    shared: Arc<Shared>,
    model: Model,
    last_attempt: Option<Instant>,
}

impl Writer {
    fn run(mut self, mut waiting: mpsc::Receiver<Call>) {
        let mut group = Vec::with_capacity(GROUP_MAX);
        while waiting.blocking_recv_many(&mut group, GROUP_MAX) > 0 {
            self.write(&mut group);
        }
        if let Some(table) = self.shared.table.write().take()
            && let Err(error) = table.database.persist(PersistMode::SyncAll)
        {
            tracing::error!(%error, "the last sync of the session store failed");
        }
    }

    /// Makes the calls' changes, syncs, and answers.
    fn write(&mut self, group: &mut Vec<Call>) {
        let mut answers: Vec<Answering> = Vec::with_capacity(group.len());
        let mut failure = self.recover().err();
        for call in group.drain(..) {
            match call {
                Call::Open { sessions, answer } => {
                    let count = sessions.len();
                    let results = self.step(&mut failure, |model, table| model.open(table, &sessions));
                    answers.push(answering(answer, count, results));
                }
                Call::Apply { now_ms, changes, answer } => {
                    let count = changes.len();
                    let results = self.step(&mut failure, |model, table| model.apply(table, now_ms, changes));
                    answers.push(answering(answer, count, results));
                }
            }
        }
        if failure.is_none() {
            failure = self.with_table(|table| Ok(table.database.persist(self.shared.persist)?)).err();
        }
        let failure = failure.map(|problem| {
            tracing::error!(error = problem, "the session store can't write");
            // What was written without a sync must not be seen: it is read anew.
            self.shared.table.write().take();
            Error::unavailable(problem)
        });
        for answer in answers {
            answer(failure.as_ref());
        }
    }

    /// Makes one call's changes, or none after a failure.
    fn step<T>(
        &mut self,
        failure: &mut Option<String>,
        plan: impl FnOnce(&Model, &Table) -> Result<Step<T>, String>,
    ) -> Vec<Result<T, Error>> {
        if failure.is_some() {
            return Vec::new();
        }
        let made = self.with_table(|table| {
            let mut step = plan(&self.model, table).map_err(Problem::Rows)?;
            table.write(std::mem::take(&mut step.writes))?;
            Ok(step)
        });
        match made {
            Ok(step) => {
                self.model.kept(&step);
                step.results
            }
            Err(problem) => {
                *failure = Some(problem);
                Vec::new()
            }
        }
    }

    fn with_table<T>(&self, act: impl FnOnce(&Table) -> Result<T, Problem>) -> Result<T, String> {
        let table = self.shared.table.read();
        let table = table.as_ref().ok_or_else(|| at(&self.shared.path, "not open"))?;
        act(table).map_err(|problem| at(&self.shared.path, problem))
    }

    /// Opens the table again after a failure, but not in a hurry.
    fn recover(&mut self) -> Result<(), String> {
        if self.shared.table.read().is_some() {
            return Ok(());
        }
        let now = Instant::now();
        if self.last_attempt.is_some_and(|last| now < last + REOPEN_AFTER) {
            return Err(at(&self.shared.path, "not open"));
        }
        self.last_attempt = Some(now);
        let path = &self.shared.path;
        let table = loop {
            match Table::open(path) {
                // The engine takes no writes after a failed one; its threads give the folder's lock back a little later.
                Err(Problem::Engine(fjall::Error::Locked)) if now.elapsed() < UNLOCK_WITHIN => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                other => break other.map_err(|problem| at(path, problem))?,
            }
        };
        self.model = Model::new(self.shared.limits, &table).map_err(|problem| at(path, problem))?;
        *self.shared.table.write() = Some(table);
        Ok(())
    }
}

/// To be called with what went wrong, when it is known whether the group is synced.
type Answering = Box<dyn FnOnce(Option<&Error>)>;

fn answering<T: 'static>(answer: Answer<T>, count: usize, results: Vec<Result<T, Error>>) -> Answering {
    Box::new(move |failure| {
        let results = match failure {
            None => results,
            Some(error) => (0..count).map(|_| Err(error.clone())).collect(),
        };
        // Whoever asked may be gone.
        answer.send(results).ok();
    })
}

/// What can go wrong with an open table.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Engine(#[from] fjall::Error),
    #[error("{0}")]
    Rows(String),
    #[error("its format has version {0:?}, this program knows version {FORMAT}")]
    Format(Bytes),
}

struct Table {
    database: Database,
    rows: Keyspace,
}

impl Table {
    fn open(path: &Path) -> Result<Self, Problem> {
        let database = Database::builder(path)
            .worker_threads(1)
            .cache_size(16 << 20)
            .max_journaling_size(128 << 20)
            .manual_journal_persist(true)
            .open()?;
        let rows =
            database.keyspace("sessions", || KeyspaceCreateOptions::default().max_memtable_size(16 << 20))?;
        let table = Self { database, rows };
        match table.rows.get("v")?.as_deref() {
            None => {
                let mut batch = table.database.batch().durability(Some(PersistMode::SyncAll));
                batch.insert(&table.rows, "v", [FORMAT]);
                batch.commit()?;
            }
            Some([FORMAT]) => {}
            Some(other) => return Err(Problem::Format(Bytes::copy_from_slice(other))),
        }
        Ok(table)
    }

    /// All or nothing; lasting once the journal is persisted.
    fn write(&self, writes: Writes) -> Result<(), Problem> {
        let mut batch = self.database.batch();
        for (key, value) in writes {
            match value {
                Some(value) => batch.insert(&self.rows, &key[..], &value[..]),
                None => batch.remove(&self.rows, &key[..]),
            }
        }
        Ok(batch.commit()?)
    }
}

/// The rows as they were at one moment.
struct Frozen<'a> {
    snapshot: Snapshot,
    rows: &'a Keyspace,
}

impl Rows for Frozen<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, String> {
        copied(self.snapshot.get(self.rows, key))
    }

    fn range(&self, keys: RangeInclusive<Bytes>) -> Box<dyn Iterator<Item = Result<Row, String>> + '_> {
        Box::new(self.snapshot.range(self.rows, keys).map(row))
    }
}

/// The rows as they are; for the writer, who alone changes them.
impl Rows for Table {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, String> {
        copied(self.rows.get(key))
    }

    fn range(&self, keys: RangeInclusive<Bytes>) -> Box<dyn Iterator<Item = Result<Row, String>> + '_> {
        Box::new(self.rows.range(keys).map(row))
    }
}

fn copied(value: fjall::Result<Option<UserValue>>) -> Result<Option<Bytes>, String> {
    let value = value.map_err(|error| error.to_string())?;
    Ok(value.map(|value| Bytes::copy_from_slice(&value)))
}

fn row(entry: Guard) -> Result<Row, String> {
    let (key, value) = entry.into_inner().map_err(|error| error.to_string())?;
    Ok((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tempfile::TempDir;

    use super::*;
    use crate::session_store::{
        Action, Record,
        contract::{Place, contract},
    };

    struct Folder {
        folder: TempDir,
        store: Option<Arc<EmbeddedStore>>,
    }

    impl Place for Folder {
        async fn new(_test: &str) -> Option<Self> {
            Some(Self { folder: tempfile::tempdir().unwrap(), store: None })
        }

        async fn open(&mut self, limits: Limits) -> Arc<dyn SessionStore> {
            if let Some(store) = self.store.take() {
                store.close().await;
            }
            let store = open(self.folder.path(), limits).unwrap();
            self.store.insert(Arc::new(store)).clone()
        }

        async fn leftovers(&mut self) -> usize {
            let table = self.store.as_ref().unwrap().shared.table.read();
            table.as_ref().unwrap().rows.iter().count()
        }
    }

    contract!(Folder);

    fn open(folder: &Path, limits: Limits) -> Result<EmbeddedStore, Error> {
        EmbeddedStore::open(folder, Durability::Process, limits)
    }

    fn append(session: &Session, text: &str) -> Change {
        let record = Record { value: Bytes::from(text.to_owned()), expires_at_ms: None };
        Change { session: session.clone(), action: Action::Append(record) }
    }

    #[tokio::test]
    async fn a_folder_that_is_in_use_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), Limits::default()).unwrap();
        let error = open(folder.path(), Limits::default()).unwrap_err().to_string();
        assert!(error.contains("another process has it open"), "{error}");
        store.close().await;
        open(folder.path(), Limits::default()).unwrap();
    }

    /// The journal as it lies in the file system at some moment is what kill -9 leaves.
    #[tokio::test]
    async fn what_was_answered_is_there_without_a_clean_end() {
        let folder = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(folder.path(), Durability::Power, Limits::default()).unwrap();
        let session = Session::new("a", 1);
        store.open(std::slice::from_ref(&session)).await;
        for number in 1..=100 {
            let results = store.apply(0, vec![append(&session, &number.to_string())]).await;
            assert_eq!(results, [Ok(Outcome::Appended { seq: number, dropped: 0 })]);
        }
        let left = tempfile::tempdir().unwrap();
        copy(folder.path(), left.path());
        let store = open(left.path(), Limits::default()).unwrap();
        let limit = ReadLimit { records: 1000, bytes: usize::MAX };
        let page = store.read(0, &session, 0, limit).await.unwrap();
        assert!(page.records.iter().map(|stored| stored.seq).eq(1..=100));
    }

    fn copy(from: &Path, to: &Path) {
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                std::fs::create_dir(&target).unwrap();
                copy(&entry.path(), &target);
            } else {
                std::fs::copy(entry.path(), target).unwrap();
            }
        }
    }

    #[tokio::test]
    async fn calls_that_come_together_are_all_answered_in_their_senders_order() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(open(folder.path(), Limits::default()).unwrap());
        let sending = (0..50_u32).map(|number| {
            let store = store.clone();
            tokio::spawn(async move {
                let session = Session::new(format!("client-{number}"), 1);
                store.open(std::slice::from_ref(&session)).await;
                for seq in 1..=40 {
                    let results = store.apply(0, vec![append(&session, "m")]).await;
                    assert_eq!(results, [Ok(Outcome::Appended { seq, dropped: 0 })]);
                }
            })
        });
        for sender in sending.collect::<Vec<_>>() {
            sender.await.unwrap();
        }
    }
}
