//! Requests of this control plane to the data planes whose sessions it holds.
//!
//! Invariant: a request that was sent ends exactly once: answered, late, or with its session. An answer that nobody
//! waits for is dropped.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tbmq_proto::node::{
    ControlMessage, NodeReply, NodeRequest, control_message, node_reply::Reply, node_request::Request,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tonic::Status;

use crate::metrics::Metrics;

/// Requests to one data plane that wait for an answer at once.
pub(crate) const REQUESTS_MAX: usize = 32;

/// A data plane that takes requests says so in its hello.
const CAPABILITY: &str = "commands";

/// What goes to a data plane.
pub(crate) type Outbox = mpsc::Sender<Result<ControlMessage, Status>>;

/// Why a data plane gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// Its session is elsewhere or nowhere. Nothing was sent.
    #[error("this control plane holds no session of data plane {node}")]
    NotHeld { node: String },
    /// An older release. Nothing was sent.
    #[error("data plane {node}, version {version}, takes no commands from control planes; upgrade it")]
    Unsupported { node: String, version: String },
    /// Nothing was sent.
    #[error("{REQUESTS_MAX} requests to data plane {node} wait for an answer already")]
    Busy { node: String },
    /// The request may have been carried out.
    #[error(
        "the session of data plane {node} ended before it answered; the request may have been carried out"
    )]
    Lost { node: String },
    /// The request may have been carried out.
    #[error("data plane {node} did not answer within {waited:?}; the request may have been carried out")]
    Late { node: String, waited: Duration },
    /// It says why it did not do it.
    #[error("data plane {node} refused: {text}")]
    Refused { node: String, text: String },
}

/// The sessions that this control plane holds.
#[derive(Debug)]
pub(crate) struct Commands {
    /// At most one a data plane; the service that takes sessions limits them.
    lines: Mutex<BTreeMap<String, Arc<Line>>>,
    metrics: Metrics,
}

/// Who is at the other end of a session.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    pub(crate) service_id: String,
    pub(crate) incarnation: String,
    pub(crate) version: String,
    pub(crate) capabilities: Vec<String>,
}

#[derive(Debug)]
struct Line {
    remote: Remote,
    outbox: Outbox,
    next: AtomicU64,
    waiting: Mutex<BTreeMap<u64, oneshot::Sender<Reply>>>,
}

/// A session that can be used until this is dropped.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    commands: &'a Commands,
    line: Arc<Line>,
}

impl Commands {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self { lines: Mutex::default(), metrics }
    }

    /// Takes a session, instead of the one that the data plane had here.
    pub(crate) fn hold(&self, remote: Remote, outbox: Outbox) -> Held<'_> {
        let service_id = remote.service_id.clone();
        let line = Arc::new(Line { remote, outbox, next: AtomicU64::new(1), waiting: Mutex::default() });
        self.lines.lock().insert(service_id, line.clone());
        Held { commands: self, line }
    }

    /// Asks this incarnation of a data plane, and waits for its answer. Dropping the future gives the question up.
    pub(crate) async fn ask(
        &self,
        node: &str,
        incarnation: &str,
        request: Request,
        until: Instant,
    ) -> Result<Reply, Failure> {
        let name = || node.to_owned();
        let line = self.lines.lock().get(node).cloned();
        let line = line
            .filter(|line| line.remote.incarnation == incarnation)
            .ok_or_else(|| Failure::NotHeld { node: name() })?;
        if !line.remote.capabilities.iter().any(|capability| capability == CAPABILITY) {
            return Err(Failure::Unsupported { node: name(), version: line.remote.version.clone() });
        }
        let began = Instant::now();
        let (answer, answered) = oneshot::channel();
        let id = line.next.fetch_add(1, Ordering::Relaxed);
        {
            let mut waiting = line.waiting.lock();
            if waiting.len() >= REQUESTS_MAX {
                self.metrics.node_requests_refused.inc();
                return Err(Failure::Busy { node: name() });
            }
            waiting.insert(id, answer);
        }
        let _forget = Forget { line: &line, id };
        let timeout_ms = until.saturating_duration_since(began).as_millis().try_into().unwrap_or(u32::MAX);
        let request = NodeRequest { id, timeout_ms, request: Some(request) };
        let message = ControlMessage { message: Some(control_message::Message::Request(request)) };
        self.metrics.node_requests.inc();
        line.outbox.try_send(Ok(message)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Failure::Busy { node: name() },
            mpsc::error::TrySendError::Closed(_) => Failure::Lost { node: name() },
        })?;
        match tokio::time::timeout_at(until, answered).await {
            Ok(Ok(Reply::Error(text))) => Err(Failure::Refused { node: name(), text }),
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(Failure::Lost { node: name() }),
            Err(_) => Err(Failure::Late { node: name(), waited: began.elapsed() }),
        }
    }
}

impl Held<'_> {
    /// Takes an answer of the data plane.
    pub(crate) fn answer(&self, answer: NodeReply) {
        let waits = self.line.waiting.lock().remove(&answer.id);
        match (waits, answer.reply) {
            // Whoever has asked may just have gone away.
            (Some(waits), reply) => {
                let unknown = || Reply::Error("it gave an answer that is not known here".to_owned());
                waits.send(reply.unwrap_or_else(unknown)).ok();
            }
            (None, _) => {
                self.commands.metrics.node_answers_dropped.inc();
                tracing::debug!(
                    node = self.line.remote.service_id,
                    id = answer.id,
                    "answer that nobody waits for"
                );
            }
        }
    }
}

impl Held<'_> {
    /// Whether no later session of the data plane has come here.
    pub(crate) fn is_latest(&self) -> bool {
        self.is_held(&self.commands.lines.lock())
    }

    fn is_held(&self, lines: &BTreeMap<String, Arc<Line>>) -> bool {
        lines.get(&self.line.remote.service_id).is_some_and(|line| Arc::ptr_eq(line, &self.line))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut lines = self.commands.lines.lock();
        if self.is_held(&lines) {
            lines.remove(&self.line.remote.service_id);
        }
        drop(lines);
        self.line.waiting.lock().clear();
    }
}

/// Ends the wait for an answer, however it ends.
struct Forget<'a> {
    line: &'a Line,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.line.waiting.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use tbmq_proto::node::{Disconnect, Disconnected};

    use super::*;

    fn remote(incarnation: &str, capabilities: &[&str]) -> Remote {
        Remote {
            service_id: "dp1".to_owned(),
            incarnation: incarnation.to_owned(),
            version: "1".to_owned(),
            capabilities: capabilities.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    fn outbox() -> (Outbox, mpsc::Receiver<Result<ControlMessage, Status>>) {
        mpsc::channel(REQUESTS_MAX + 8)
    }

    fn request() -> Request {
        Request::Disconnect(Disconnect { client_id: "c".to_owned() })
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(1)
    }

    async fn sent(receiver: &mut mpsc::Receiver<Result<ControlMessage, Status>>) -> NodeRequest {
        match receiver.recv().await.unwrap().unwrap().message {
            Some(control_message::Message::Request(request)) => request,
            other => panic!("{other:?}"),
        }
    }

    fn found(found: bool) -> Reply {
        Reply::Disconnected(Disconnected { found })
    }

    #[tokio::test(start_paused = true)]
    async fn each_answer_reaches_who_has_asked() {
        let commands = Commands::new(Metrics::default());
        let (outbox, mut sent_to) = outbox();
        let held = commands.hold(remote("1", &["commands"]), outbox);
        let answering = async {
            let (first, second) = (sent(&mut sent_to).await, sent(&mut sent_to).await);
            assert_eq!((first.timeout_ms, first.request), (1_000, Some(request())));
            held.answer(NodeReply { id: second.id, reply: Some(found(false)) });
            held.answer(NodeReply { id: first.id, reply: Some(found(true)) });
            held.answer(NodeReply { id: first.id, reply: Some(found(true)) });
        };
        let ask = || commands.ask("dp1", "1", request(), soon());
        let (first, second, ()) = tokio::join!(ask(), ask(), answering);
        assert_eq!((first, second), (Ok(found(true)), Ok(found(false))));
        assert_eq!(commands.metrics.node_answers_dropped.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_answer_is_dropped_and_leaves_its_place() {
        let commands = Commands::new(Metrics::default());
        let (outbox, mut sent_to) = outbox();
        let held = commands.hold(remote("1", &["commands"]), outbox);
        let late = commands.ask("dp1", "1", request(), soon()).await.unwrap_err();
        assert_eq!(late, Failure::Late { node: "dp1".to_owned(), waited: Duration::from_secs(1) });
        let id = sent(&mut sent_to).await.id;
        held.answer(NodeReply { id, reply: Some(found(true)) });
        assert_eq!(commands.metrics.node_answers_dropped.get(), 1);
        assert!(held.line.waiting.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_open_questions_is_bounded() {
        let commands = Commands::new(Metrics::default());
        let (outbox, _sent_to) = outbox();
        let _held = commands.hold(remote("1", &["commands"]), outbox);
        let open: Vec<_> =
            (0..REQUESTS_MAX).map(|_| Box::pin(commands.ask("dp1", "1", request(), soon()))).collect();
        let all = futures_util::future::join_all(open);
        tokio::pin!(all);
        assert!(futures_util::poll!(&mut all).is_pending());
        let busy = commands.ask("dp1", "1", request(), soon()).await;
        assert_eq!(busy, Err(Failure::Busy { node: "dp1".to_owned() }));
        assert!(all.await.iter().all(|answer| matches!(answer, Err(Failure::Late { .. }))));
        let after = commands.ask("dp1", "1", request(), soon()).await;
        assert!(matches!(after, Err(Failure::Late { .. })), "there is room again: {after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn questions_under_way_end_with_their_session_and_not_with_its_predecessor() {
        let commands = Commands::new(Metrics::default());
        let (first_outbox, _first) = outbox();
        let first = commands.hold(remote("1", &["commands"]), first_outbox);
        let (outbox, _second) = outbox();
        let second = commands.hold(remote("2", &["commands"]), outbox);
        let not_held = Failure::NotHeld { node: "dp1".to_owned() };
        assert_eq!(commands.ask("dp1", "1", request(), soon()).await, Err(not_held.clone()));
        let asking = commands.ask("dp1", "2", request(), soon());
        tokio::pin!(asking);
        assert!(futures_util::poll!(&mut asking).is_pending());
        assert_eq!((first.is_latest(), second.is_latest()), (false, true));
        drop(first);
        assert!(futures_util::poll!(&mut asking).is_pending(), "another session has ended");
        drop(second);
        assert_eq!(asking.await, Err(Failure::Lost { node: "dp1".to_owned() }));
        assert_eq!(commands.ask("dp1", "2", request(), soon()).await, Err(not_held));
    }

    #[tokio::test]
    async fn a_data_plane_of_an_older_release_is_not_asked() {
        let commands = Commands::new(Metrics::default());
        let (outbox, mut sent_to) = outbox();
        let _held = commands.hold(remote("1", &["something else"]), outbox);
        let failure = commands.ask("dp1", "1", request(), soon()).await.unwrap_err();
        assert!(failure.to_string().contains("version 1, takes no commands"), "{failure}");
        assert!(sent_to.try_recv().is_err());
    }
}
