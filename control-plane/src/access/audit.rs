//! Who did what: every call that changes something, and every call that was refused, as rows of the store.
//!
//! A call that changes something is let in only with a place in the queue, so what was done is told unless the process
//! dies within the moment between its end and its entry; the answer waits for the entry, within bounds. A refused call
//! is told when there is room, and counted when there is none.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tbmq_service::drain::Drain;
use tokio::sync::{mpsc, oneshot};
use tonic::{Code, Status};
use uuid::Uuid;

use super::{Caller, table::Method};
use crate::{
    metrics::Metrics,
    store::{self, AuditRow, Store},
};

/// Entries that wait for the store.
const QUEUE_MAX: usize = 4_096;

/// Entries of one transaction.
const BATCH_MAX: usize = 500;

/// How long an answer waits for its entry.
const PATIENCE: Duration = Duration::from_secs(1);

/// Pause before a failed batch is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// Refused calls that are written down per second: whoever knocks without end must not fill the database.
const REFUSALS_PER_SECOND: u32 = 100;

/// Characters kept of each text.
const TEXT_CHARS_MAX: usize = 1_000;
const SHORT_CHARS_MAX: usize = 255;
const ETAG_CHARS_MAX: usize = 64;

/// What a call has said of the resource that it changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trail {
    resource: String,
    etag_before: String,
    etag_after: String,
}

tokio::task_local! {
    /// Of the call in whose future this runs.
    static TRAIL: Arc<Mutex<Trail>>;
}

fn noting(note: impl FnOnce(&mut Trail)) {
    // Outside of an audited call nobody wants to know.
    TRAIL.try_with(|trail| note(&mut trail.lock())).ok();
}

/// Tells the audit log what the call is about to change.
pub(crate) fn note_before(resource: impl Into<String>, etag: impl Into<String>) {
    noting(|trail| (trail.resource, trail.etag_before) = (resource.into(), etag.into()));
}

/// Tells the audit log which resource the call names.
pub(crate) fn note_resource(resource: impl Into<String>) {
    noting(|trail| trail.resource = resource.into());
}

/// Tells the audit log what the call has made.
pub(crate) fn note_after(resource: impl Into<String>, etag: impl Into<String>) {
    noting(|trail| (trail.resource, trail.etag_after) = (resource.into(), etag.into()));
}

/// Runs a call so that what it notes can be read from `trail`.
pub(crate) async fn following<F: Future>(trail: Arc<Mutex<Trail>>, call: F) -> F::Output {
    TRAIL.scope(trail, call).await
}

/// Takes entries; they are written by [`Audit::run`].
#[derive(Debug)]
pub(crate) struct Audit {
    store: Store,
    service_id: String,
    metrics: Metrics,
    queue: mpsc::Sender<Job>,
    jobs: Mutex<Option<mpsc::Receiver<Job>>>,
    refusals: Mutex<Refusals>,
}

#[derive(Debug)]
struct Job {
    row: AuditRow,
    /// Told when the row is in the store.
    written: Option<oneshot::Sender<()>>,
}

/// Refused calls of the second that began last.
#[derive(Debug)]
struct Refusals {
    since: Instant,
    written: u32,
    dropped: u64,
}

/// A call that is let in and will be told of, also when its caller goes away.
#[derive(Debug)]
pub(crate) struct Entry {
    row: Option<AuditRow>,
    place: Option<mpsc::OwnedPermit<Job>>,
    trail: Arc<Mutex<Trail>>,
}

impl Audit {
    pub(crate) fn new(store: Store, service_id: String, metrics: Metrics) -> Self {
        let (queue, jobs) = mpsc::channel(QUEUE_MAX);
        let refusals = Refusals { since: Instant::now(), written: 0, dropped: 0 };
        Self {
            store,
            service_id,
            metrics,
            queue,
            jobs: Mutex::new(Some(jobs)),
            refusals: Mutex::new(refusals),
        }
    }

    /// A place for a call that changes something. Does not wait.
    ///
    /// # Errors
    /// When too many entries wait for the store: then nothing can be changed either.
    pub(crate) fn begin(
        &self,
        method: &Method,
        caller: &Caller,
        peer: &str,
        trail: Arc<Mutex<Trail>>,
    ) -> Result<Entry, Status> {
        match self.queue.clone().try_reserve_owned() {
            Ok(place) => {
                let row = self.row(method.name, Some(caller), peer);
                Ok(Entry { row: Some(row), place: Some(place), trail })
            }
            Err(_) => {
                self.metrics.audit_dropped.inc();
                Err(Status::unavailable(
                    "nothing is changed while the audit log can't be written: the database is away",
                ))
            }
        }
    }

    /// Tells of a call that was refused. Does not wait.
    pub(crate) fn refused(&self, method: &'static str, caller: Option<&Caller>, peer: &str, status: &Status) {
        if !self.may_tell() {
            self.metrics.audit_dropped.inc();
            return;
        }
        let mut row = self.row(method, caller, peer);
        conclude(&mut row, &Trail::default(), Some(status));
        if self.queue.try_send(Job { row, written: None }).is_err() {
            self.metrics.audit_dropped.inc();
        }
    }

    fn may_tell(&self) -> bool {
        let mut refusals = self.refusals.lock();
        if refusals.since.elapsed() >= Duration::from_secs(1) {
            if refusals.dropped > 0 {
                let dropped = refusals.dropped;
                tracing::warn!(dropped, "refused calls that are not in the audit log: there were too many");
            }
            *refusals = Refusals { since: Instant::now(), written: 0, dropped: 0 };
        }
        let may = refusals.written < REFUSALS_PER_SECOND;
        if may {
            refusals.written += 1;
        } else {
            refusals.dropped += 1;
        }
        may
    }

    fn row(&self, method: &'static str, caller: Option<&Caller>, peer: &str) -> AuditRow {
        AuditRow {
            id: Uuid::now_v7(),
            principal: caller.map_or_else(|| super::ANONYMOUS.to_owned(), |caller| caller.principal.clone()),
            role: caller.map(|caller| caller.role.as_str()).unwrap_or_default().to_owned(),
            peer: shorten(peer, ETAG_CHARS_MAX),
            method: method.to_owned(),
            service_id: self.service_id.clone(),
            ..AuditRow::default()
        }
    }

    /// Writes entries until the drain has begun and none is left.
    pub(crate) async fn run(&self, drain: &Drain) {
        let Some(mut jobs) = self.jobs.lock().take() else { return };
        let mut batch = Vec::new();
        loop {
            let taken = tokio::select! {
                taken = jobs.recv_many(&mut batch, BATCH_MAX) => taken,
                () = drain.begun(), if !jobs.is_closed() => {
                    jobs.close();
                    continue;
                }
            };
            if taken == 0 {
                return;
            }
            self.write(&mut batch, drain).await;
        }
    }

    async fn write(&self, batch: &mut Vec<Job>, drain: &Drain) {
        let rows: Vec<AuditRow> = batch.iter().map(|job| job.row.clone()).collect();
        let mut told = false;
        loop {
            match self.store.add_audit(&rows).await {
                Ok(()) => break,
                Err(error @ store::Error::Unavailable(_)) if !drain.is_draining() => {
                    self.metrics.audit_failures.inc();
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%error, entries = rows.len(), "the audit log can't be written; trying again");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => {
                    self.metrics.audit_failures.inc();
                    self.metrics.audit_dropped.inc_by(rows.len() as u64);
                    tracing::error!(%error, ?rows, "entries of the audit log are lost");
                    break;
                }
            }
        }
        for job in batch.drain(..) {
            if let Some(written) = job.written {
                // Whoever has waited long enough is gone.
                written.send(()).ok();
            }
        }
    }
}

impl Entry {
    /// The call has ended. Waits until the store has the entry, at most a second.
    pub(crate) async fn end(mut self, status: Option<&Status>) {
        let (sender, written) = oneshot::channel();
        self.send(status, Some(sender));
        if tokio::time::timeout(PATIENCE, written).await.is_err() {
            tracing::debug!("a call is answered before its entry in the audit log is written");
        }
    }

    fn send(&mut self, status: Option<&Status>, written: Option<oneshot::Sender<()>>) {
        if let (Some(mut row), Some(place)) = (self.row.take(), self.place.take()) {
            conclude(&mut row, &self.trail.lock(), status);
            place.send(Job { row, written });
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.row.is_some() {
            let gone =
                Status::cancelled("the caller went away or its deadline was over; it may have been done");
            self.send(Some(&gone), None);
        }
    }
}

fn conclude(row: &mut AuditRow, trail: &Trail, status: Option<&Status>) {
    row.time_ms = tbmq_service::time::now_ms();
    row.principal = shorten(&row.principal, SHORT_CHARS_MAX);
    row.resource = shorten(&trail.resource, SHORT_CHARS_MAX);
    row.etag_before = shorten(&trail.etag_before, ETAG_CHARS_MAX);
    row.etag_after = shorten(&trail.etag_after, ETAG_CHARS_MAX);
    code_name(status.map_or(Code::Ok, Status::code)).clone_into(&mut row.result);
    row.error = shorten(status.map(Status::message).unwrap_or_default(), TEXT_CHARS_MAX);
}

/// The beginning of a text, without characters that a database may refuse.
fn shorten(text: &str, chars_max: usize) -> String {
    text.chars().take(chars_max).map(|c| if c == '\0' { ' ' } else { c }).collect()
}

/// The name of a status code as the specification of gRPC writes it.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        access::{role::Role, table},
        store::{AuditFilter, Options},
    };

    async fn audit(folder: &std::path::Path) -> Arc<Audit> {
        let store = Store::open(&Options::sqlite(&folder.join("a.db"))).await.unwrap();
        Arc::new(Audit::new(store, "cp1".to_owned(), Metrics::default()))
    }

    fn caller() -> Caller {
        Caller::new("token:ci".to_owned(), Role::Editor)
    }

    fn method() -> &'static Method {
        table::of("/tbmq.control.v1.IntegrationService/UpdateIntegration").unwrap()
    }

    async fn entries(audit: &Audit) -> Vec<AuditRow> {
        audit.store.audit(&AuditFilter { limit: 1_000, ..AuditFilter::default() }).await.unwrap()
    }

    #[tokio::test]
    async fn an_entry_says_who_changed_what_and_is_written_before_the_answer() {
        let folder = tempfile::tempdir().unwrap();
        let audit = audit(folder.path()).await;
        let (drain, trail) = (Drain::new(), Arc::<Mutex<Trail>>::default());
        let writer = tokio::spawn({
            let (audit, drain) = (audit.clone(), drain.clone());
            async move { audit.run(&drain).await }
        });
        let entry = audit.begin(method(), &caller(), "127.0.0.1:1", trail.clone()).unwrap();
        following(trail, async {
            note_before("integrations/a", "\"1\"");
            note_after("integrations/a", "\"2\"");
        })
        .await;
        entry.end(None).await;
        let found = entries(&audit).await;
        let [row] = &found[..] else { panic!("{found:?}") };
        let told = [&row.principal, &row.role, &row.resource, &row.etag_before, &row.etag_after, &row.result];
        assert_eq!(told, ["token:ci", "EDITOR", "integrations/a", "\"1\"", "\"2\"", "OK"]);
        assert_eq!((row.method.as_str(), row.peer.as_str()), (method().name, "127.0.0.1:1"));
        drain.begin();
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn a_call_whose_caller_goes_away_is_told_and_the_queue_is_emptied_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let audit = audit(folder.path()).await;
        let trail = Arc::<Mutex<Trail>>::default();
        drop(audit.begin(method(), &caller(), "p", trail).unwrap());
        audit.refused(method().name, None, "p", &Status::unauthenticated("no\0credentials"));
        let drain = Drain::new();
        drain.begin();
        audit.run(&drain).await;
        let found = entries(&audit).await;
        let results: Vec<_> = found.iter().map(|row| (row.result.as_str(), row.principal.as_str())).collect();
        assert_eq!(results.len(), 2, "{results:?}");
        assert!(results.contains(&("CANCELLED", "token:ci")), "{results:?}");
        assert!(results.contains(&("UNAUTHENTICATED", "anonymous")), "{results:?}");
        assert!(found.iter().any(|row| row.error == "no credentials"), "{found:?}");
    }

    #[tokio::test]
    async fn without_room_for_an_entry_nothing_is_changed_and_refusals_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let audit = audit(folder.path()).await;
        let places: Vec<_> =
            (0..QUEUE_MAX).map(|_| audit.begin(method(), &caller(), "p", Arc::default()).unwrap()).collect();
        let status = audit.begin(method(), &caller(), "p", Arc::default()).unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        audit.refused(method().name, None, "p", &Status::unauthenticated("x"));
        assert_eq!(audit.metrics.audit_dropped.get(), 2);
        drop(places);
    }

    #[tokio::test]
    async fn a_flood_of_refused_calls_does_not_fill_the_database() {
        let folder = tempfile::tempdir().unwrap();
        let audit = audit(folder.path()).await;
        let began = Instant::now();
        for _ in 0..1_000 {
            audit.refused(method().name, None, "p", &Status::unauthenticated("x"));
        }
        let seconds = began.elapsed().as_secs() + 1;
        let told = 1_000 - audit.metrics.audit_dropped.get();
        assert!(told <= u64::from(REFUSALS_PER_SECOND) * seconds, "{told} in {seconds} s");
        assert!(told >= u64::from(REFUSALS_PER_SECOND), "{told}");
    }
}
