//! What a control plane may ask of this node: which clients are here, who gets a topic, to end one, to send all away.
//!
//! Questions are answered one after the other, in slices that hold no lock for long: connections and messages never
//! wait for them.

use std::{sync::Arc, time::Duration};

use tbmq_mqtt::{
    packet::{RetainHandling, Text},
    session::{End, Options},
    topic,
};
use tbmq_proto::node::{
    ClientMatch, Disconnected, Draining, Heartbeat, ListSessions, Match, MatchList, NodeMessage, NodeReply,
    NodeRequest, SessionDetail, SessionInfo, SessionList, SubscriptionInfo, node_message, node_reply::Reply,
    node_request::Request,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use crate::{
    mailbox::{Client, Mailbox},
    plane::Plane,
    session_records::client_type_name,
};

/// Requests that wait for their turn; more are refused.
pub(crate) const WAITING_MAX: usize = 64;

/// Clients or matches of one answer.
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
        Some(Request::Disconnect(wanted)) => {
            let mailbox = plane.registry.take(&wanted.client_id);
            if let Some(mailbox) = &mailbox {
                mailbox.end(End::Administrative);
                tracing::info!(client_id = wanted.client_id, "disconnected by an operator");
            }
            Reply::Disconnected(Disconnected { found: mailbox.is_some() })
        }
        Some(Request::Drain(_)) => {
            plane.retiring.begin();
            Reply::Draining(Draining { connections: plane.connections() as u64 })
        }
        Some(Request::ListSessions(wanted)) => Reply::Sessions(list(plane, wanted).await),
        Some(Request::GetSession(wanted)) => match plane.registry.get(&wanted.client_id) {
            Some(mailbox) => detail(&mailbox).await,
            None => Reply::Session(SessionDetail::default()),
        },
        Some(Request::Match(wanted)) => match matches(plane, &wanted) {
            Ok(matches) => Reply::Matches(matches),
            Err(invalid) => Reply::Error(invalid.to_string()),
        },
        None => Reply::Error("this release does not know the request".to_owned()),
    }
}

async fn list(plane: &Plane, wanted: ListSessions) -> SessionList {
    let limit = wanted.limit.clamp(1, LIMIT_MAX) as usize;
    let part = wanted.text_search.to_lowercase();
    let mut after: Arc<str> = wanted.after.into();
    let mut sessions = Vec::new();
    let mut bytes = 0;
    loop {
        let slice = plane.registry.page(&after, SLICE);
        let Some(last) = slice.last().and_then(|mailbox| mailbox.client()) else {
            return SessionList { sessions, more: false };
        };
        after = last.id.clone();
        for client in slice.iter().filter_map(|mailbox| mailbox.client()) {
            if !part.is_empty() && !client.id.to_lowercase().contains(&part) {
                continue;
            }
            if sessions.len() >= limit || bytes >= ANSWER_BYTES_MAX {
                return SessionList { sessions, more: true };
            }
            bytes += client.id.len() + client.username.as_ref().map_or(0, Text::len) + client.details.len();
            sessions.push(info(&client));
        }
        tokio::task::yield_now().await;
    }
}

async fn detail(mailbox: &Mailbox) -> Reply {
    let none = Reply::Session(SessionDetail::default());
    let (answer, answered) = oneshot::channel();
    mailbox.ask_filters(answer);
    // A connection that has ended meanwhile drops the question.
    let (Some(client), Ok(mut filters)) = (mailbox.client(), answered.await) else { return none };
    let bytes: usize = filters.iter().map(|(filter, _)| filter.len()).sum();
    if bytes > ANSWER_BYTES_MAX {
        return Reply::Error(format!("its {} topic filters are too long to be told", filters.len()));
    }
    filters.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    Reply::Session(SessionDetail {
        session: Some(info(&client)),
        subscriptions: filters.iter().map(|(filter, options)| subscription(filter, *options)).collect(),
    })
}

fn matches(plane: &Plane, wanted: &Match) -> Result<MatchList, topic::Invalid> {
    topic::check_name(&wanted.topic, &plane.limits.rules)?;
    let limit = wanted.limit.clamp(1, LIMIT_MAX) as usize;
    let (found, more) = plane.router.subscribers(&wanted.topic, limit, ANSWER_BYTES_MAX);
    let to_match = |(mailbox, filter, options): (Arc<Mailbox>, String, Options)| {
        let client_id = mailbox.client()?.id.to_string();
        let (share_name, filter) = topic::parts(&filter);
        Some(ClientMatch {
            client_id,
            filter: filter.to_owned(),
            qos: u32::from(options.qos.bits()),
            share_name: share_name.unwrap_or_default().to_owned(),
        })
    };
    let mut matches: Vec<ClientMatch> = found.into_iter().filter_map(to_match).collect();
    matches
        .sort_unstable_by(|one, other| (&one.client_id, &one.filter).cmp(&(&other.client_id, &other.filter)));
    Ok(MatchList { matches, more })
}

fn info(client: &Client) -> SessionInfo {
    SessionInfo {
        client_id: client.id.to_string(),
        username: client.username.as_deref().unwrap_or_default().to_owned(),
        protocol_version: u32::from(client.version.level()),
        clean_start: client.clean_start,
        keep_alive_seconds: u32::from(client.keep_alive_s),
        peer_address: client.peer.map(|peer| peer.to_string()).unwrap_or_default(),
        connect_time: Some(prost_types::Timestamp {
            seconds: client.connected_ms.div_euclid(1000),
            nanos: client.connected_ms.rem_euclid(1000) as i32 * 1_000_000,
        }),
        subscription_count: client.filters() as u64,
        client_type: client_type_name(client.client_type).to_owned(),
        authentication: client.details.to_string(),
    }
}

fn subscription(filter: &str, options: Options) -> SubscriptionInfo {
    let (share_name, filter) = topic::parts(filter);
    SubscriptionInfo {
        filter: filter.to_owned(),
        qos: u32::from(options.qos.bits()),
        share_name: share_name.unwrap_or_default().to_owned(),
        no_local: options.no_local,
        retain_as_published: options.retain_as_published,
        retain_handling: match options.retain_handling {
            RetainHandling::Send => 0,
            RetainHandling::SendIfNew => 1,
            RetainHandling::DoNotSend => 2,
        },
    }
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
