//! What a control plane may ask of this node: sessions, subscriptions and retained messages, to change and to end them, to
//! send all clients away.
//!
//! Questions are answered one after the other, in slices that hold no lock for long: connections and messages never
//! wait for them.

use std::{sync::Arc, time::Duration};

use tbmq_mqtt::session::End;
use tbmq_proto::node::{
    Disconnect, Disconnected, Draining, Heartbeat, NodeMessage, NodeReply, NodeRequest, SessionReference,
    node_message, node_reply::Reply, node_request::Request, sessions_ended::Result as Ended,
};
use tokio::{sync::mpsc, time::Instant};

use crate::plane::Plane;

mod retained;
mod sessions;
mod subscriptions;

/// Requests that wait for their turn; more are refused.
pub(crate) const WAITING_MAX: usize = 64;

/// Rows of one answer.
const LIMIT_MAX: u32 = 1000;

/// Bytes of one answer, about: well below what gRPC takes as one message (4 MiB).
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Clients that are looked at in one go.
const SLICE: usize = 256;

/// How often a drain sends clients away.
const DRAIN_TICK: Duration = Duration::from_millis(100);

/// A request, and until when an answer is of use.
#[derive(Debug)]
pub(crate) struct Asked {
    request: NodeRequest,
    until: Instant,
}

impl Asked {
    pub(crate) fn new(request: NodeRequest) -> Self {
        let until = Instant::now() + Duration::from_millis(u64::from(request.timeout_ms));
        Self { request, until }
    }
}

/// Answers requests in their order, for ever. Those whose time is over before their turn are left alone.
pub(crate) async fn serve(
    plane: Arc<Plane>,
    mut requests: mpsc::Receiver<Asked>,
    answers: mpsc::Sender<NodeMessage>,
) {
    while let Some(Asked { request: NodeRequest { id, request, .. }, until }) = requests.recv().await {
        plane.metrics.node_requests.inc();
        let is_drain = matches!(request, Some(Request::Drain(_)));
        if Instant::now() >= until {
            continue;
        }
        let Ok(reply) = tokio::time::timeout_at(until, answer(&plane, request)).await else { continue };
        if answers.send(reply_message(id, reply)).await.is_err() {
            return;
        }
        // Others are to see it before the next heartbeat is due.
        if is_drain && answers.send(heartbeat(&plane)).await.is_err() {
            return;
        }
    }
}

/// An answer as a message of the session.
pub(crate) fn reply_message(id: u64, reply: Reply) -> NodeMessage {
    let reply = NodeReply { id, reply: Some(reply) };
    NodeMessage { message: Some(node_message::Message::Reply(reply)) }
}

/// How the node is, as a message of the session.
pub(crate) fn heartbeat(plane: &Plane) -> NodeMessage {
    let heartbeat = Heartbeat {
        time_ms: tbmq_service::time::now_ms(),
        connections: plane.connections() as u64,
        draining: plane.retiring.is_draining() || plane.is_draining(),
    };
    NodeMessage { message: Some(node_message::Message::Heartbeat(heartbeat)) }
}

async fn answer(plane: &Plane, request: Option<Request>) -> Reply {
    match request {
        Some(Request::Disconnect(Disconnect { client_id })) => {
            let session = SessionReference { client_id, session_id: String::new() };
            let found = sessions::disconnect(plane, &session) == Ended::Ended;
            Reply::Disconnected(Disconnected { found })
        }
        Some(Request::Drain(_)) => {
            plane.retiring.begin();
            Reply::Draining(Draining { connections: plane.connections() as u64 })
        }
        Some(Request::ListSessions(wanted)) => reply(sessions::list(plane, wanted).await, Reply::Sessions),
        Some(Request::QuerySessions(wanted)) => {
            reply(sessions::query(&plane.registry, wanted).await, Reply::SessionPage)
        }
        Some(Request::FindSessions(wanted)) => Reply::Sessions(sessions::find(plane, &wanted)),
        Some(Request::CountSessions(_)) => Reply::Tally(sessions::count(plane).await),
        Some(Request::GetSession(wanted)) => {
            reply(sessions::detail(plane, &wanted.client_id).await, Reply::Session)
        }
        Some(Request::EndSessions(wanted)) => Reply::Ended(sessions::end(plane, wanted).await),
        Some(Request::Match(wanted)) => reply(subscriptions::matches(plane, &wanted), Reply::Matches),
        Some(Request::QuerySubscriptions(wanted)) => {
            Reply::Subscriptions(subscriptions::query(plane, wanted).await)
        }
        Some(Request::SetSubscriptions(wanted)) => {
            reply(subscriptions::set(plane, wanted).await, Reply::Session)
        }
        Some(Request::QueryGroups(wanted)) => Reply::Groups(subscriptions::groups(plane, wanted).await),
        Some(Request::QueryRetained(wanted)) => reply(retained::query(plane, wanted).await, Reply::Retained),
        Some(Request::GetRetained(wanted)) => Reply::RetainedFound(retained::get(plane, &wanted)),
        Some(Request::ClearRetained(wanted)) => {
            reply(retained::clear(plane, wanted).await, Reply::RetainedCleared)
        }
        None => Reply::Error("this release does not know the request".to_owned()),
    }
}

fn reply<T>(answer: Result<T, impl std::fmt::Display>, found: impl FnOnce(T) -> Reply) -> Reply {
    answer.map_or_else(|error| Reply::Error(error.to_string()), found)
}

fn timestamp(ms: i64) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: ms.div_euclid(1000), nanos: ms.rem_euclid(1000) as i32 * 1_000_000 }
}

fn milliseconds(time: prost_types::Timestamp) -> i64 {
    time.seconds.saturating_mul(1000).saturating_add(i64::from(time.nanos / 1_000_000))
}

/// Sends the clients away: evenly over `spread`, at least one every 100 ms.
pub(crate) async fn retire(plane: &Plane, spread: Duration) {
    let clients = plane.registry.len();
    tracing::info!(clients, ?spread, "draining: clients are sent to other nodes and none are taken");
    let ticks = (spread.as_millis() / DRAIN_TICK.as_millis()).max(1) as usize;
    let share = clients.div_ceil(ticks).max(1);
    let mut pace = tokio::time::interval(DRAIN_TICK);
    let mut after: Arc<str> = "".into();
    loop {
        pace.tick().await;
        let page = plane.registry.page(&after, share);
        let Some(last) = page.last().and_then(|mailbox| mailbox.client()) else { break };
        after = last.id.clone();
        for mailbox in page {
            mailbox.end(End::Moved);
        }
    }
    // Those who were still connecting.
    for worker in &plane.workers {
        worker.end_all(End::Moved);
    }
}
