//! Asks a data plane, wherever its session is: here, or at another control plane, which is asked to pass it on.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use tbmq_proto::node::{ForwardRequest, NodeRequest, node_reply::Reply, node_request::Request};
use tokio::time::Instant;
use tonic::{Code, Status, metadata::MetadataMap};
use tonic_types::StatusExt as _;

use super::{calls::shortened, error};
use crate::{commands::Failure, nodes::LIVE_FOR, plane::Plane, store::SessionRow};

/// How long a data plane is waited for, unless the caller waits less long.
const PATIENCE: Duration = Duration::from_secs(5);

/// Data planes that are asked at the same time.
const AT_ONCE: usize = 32;

/// Until when a caller's data planes are waited for.
pub(super) fn deadline(metadata: &MetadataMap) -> Instant {
    Instant::now() + shortened(metadata, PATIENCE)
}

/// Until when one of several questions of a call waits.
pub(super) fn patience() -> Instant {
    Instant::now() + PATIENCE
}

/// What many data planes answered.
#[derive(Debug)]
pub(super) struct Answers {
    /// By service id.
    pub(super) replies: BTreeMap<String, Reply>,
    /// Live data planes that gave no answer, and why.
    pub(super) silent: BTreeMap<String, Status>,
}

impl Answers {
    pub(super) fn silent_nodes(&self) -> Vec<String> {
        self.silent.keys().cloned().collect()
    }
}

/// Asks one data plane.
pub(super) async fn ask(
    plane: &Plane,
    node: &str,
    request: Request,
    until: Instant,
) -> Result<Reply, Status> {
    let row = plane.store.session(node).await?;
    ask_at(plane, node, row, request, until).await
}

/// Asks every live data plane, or this one alone.
pub(super) async fn ask_all(
    plane: &Plane,
    only: Option<&str>,
    request: impl Fn() -> Request,
    until: Instant,
) -> Result<Answers, Status> {
    let (mut nodes, mut rows) = candidates(plane).await?;
    if let Some(only) = only {
        nodes.retain(|node| node == only);
    }
    let asked: Vec<_> = nodes
        .into_iter()
        .map(|node| {
            let (row, request) = (rows.remove(&node), request());
            async move {
                let answer = ask_at(plane, &node, row, request, until).await;
                (node, answer)
            }
        })
        .collect();
    let mut answers = Answers { replies: BTreeMap::new(), silent: BTreeMap::new() };
    let mut asked = stream::iter(asked).buffer_unordered(AT_ONCE);
    while let Some((node, answer)) = asked.next().await {
        match answer {
            Ok(reply) => drop(answers.replies.insert(node, reply)),
            Err(status) => {
                tracing::debug!(node, error = status.message(), "a data plane was asked in vain");
                answers.silent.insert(node, status);
            }
        }
    }
    Ok(answers)
}

/// Asks live data planes one after the other until one answers: what every one of them knows.
pub(super) async fn ask_any(
    plane: &Plane,
    request: impl Fn() -> Request,
    until: Instant,
) -> Result<Reply, Status> {
    let (nodes, mut rows) = candidates(plane).await?;
    let mut failure = error::node_unreachable("no data plane is known that could be asked");
    for (index, node) in nodes.iter().enumerate() {
        // One that is silent leaves time for the others.
        let left = (nodes.len() - index) as u32;
        let until = Instant::now() + until.saturating_duration_since(Instant::now()) / left;
        match ask_at(plane, node, rows.remove(node), request(), until).await {
            Ok(reply) => return Ok(reply),
            Err(status) => {
                tracing::debug!(node, error = status.message(), "a data plane was asked in vain");
                failure = status;
            }
        }
    }
    Err(failure)
}

/// Live data planes, and where sessions are.
async fn candidates(plane: &Plane) -> Result<(BTreeSet<String>, BTreeMap<String, SessionRow>), Status> {
    let since_ms = tbmq_service::time::now_ms() - LIVE_FOR.as_millis() as i64;
    let rows: BTreeMap<String, SessionRow> =
        plane.store.sessions(0).await?.into_iter().map(|row| (row.service_id.clone(), row)).collect();
    // The row of a live one is used whatever its time: that is another replica's clock.
    let live = plane.nodes.live_data_planes().into_iter().map(|node| node.applied.service_id);
    let recent = rows.values().filter(|row| row.seen_ms >= since_ms).map(|row| row.service_id.clone());
    let nodes = recent.chain(live).collect();
    Ok((nodes, rows))
}

async fn ask_at(
    plane: &Plane,
    node: &str,
    row: Option<SessionRow>,
    request: Request,
    until: Instant,
) -> Result<Reply, Status> {
    let Some(row) = row else { return Err(unreachable_node(node)) };
    let first = ask_holder(plane, &row, request.clone(), until).await;
    if !first.as_ref().is_err_and(is_not_held) {
        return first;
    }
    // The session has moved since the row was read, or the row is of a replica that died.
    match plane.store.session(node).await? {
        Some(now) if place(&now) != place(&row) => match ask_holder(plane, &now, request, until).await {
            Err(status) if is_not_held(&status) => Err(unreachable_node(node)),
            answer => answer,
        },
        _ => Err(unreachable_node(node)),
    }
}

fn place(row: &SessionRow) -> (&str, &str) {
    (&row.replica_incarnation, &row.incarnation)
}

async fn ask_holder(
    plane: &Plane,
    row: &SessionRow,
    request: Request,
    until: Instant,
) -> Result<Reply, Status> {
    let node = &row.service_id;
    if row.replica_incarnation == plane.identity.incarnation {
        return Ok(plane.commands.ask(node, &row.incarnation, request, until).await?);
    }
    if row.replica_address.is_empty() {
        return Err(error::node_unreachable(format!(
            "data plane {node} has its session at control plane {}, an older release that passes no requests on; \
             ask that one, or upgrade it",
            row.replica
        )));
    }
    plane.metrics.node_requests_forwarded.inc();
    // The other one's answer that there is none comes back in time.
    let left = until.saturating_duration_since(Instant::now());
    let margin = (left / 10).min(Duration::from_millis(100));
    let timeout_ms = left.saturating_sub(margin).as_millis().try_into().unwrap_or(u32::MAX);
    let message = ForwardRequest {
        service_id: node.clone(),
        incarnation: row.incarnation.clone(),
        request: Some(NodeRequest { id: 0, timeout_ms, request: Some(request) }),
    };
    match plane.peers.forward(&plane.access.peers, &row.replica_address, message, until).await {
        Ok(reply) => match reply.reply {
            Some(Reply::Error(text)) => Err(Failure::Refused { node: node.clone(), text }.into()),
            Some(reply) => Ok(reply),
            None => {
                Err(error::node_unreachable(format!("control plane {} passed on no answer", row.replica)))
            }
        },
        // What it says of the data plane is said to our caller.
        Err(status) if status.get_error_details().error_info().is_some() => {
            Err(Status::with_details(status.code(), status.message(), status.details().to_vec().into()))
        }
        Err(status) => Err(error::node_unreachable(format!(
            "control plane {} ({}), which holds the session of data plane {node}, can't be reached: {}; it tells \
             its address with CONTROL_GRPC_ADVERTISED_ADDRESS",
            row.replica,
            row.replica_address,
            status.message()
        ))),
    }
}

fn unreachable_node(node: &str) -> Status {
    error::node_unreachable(format!(
        "data plane {node} has no session to a control plane; its CONTROL_GRPC_ENDPOINTS names where it looks for one"
    ))
}

fn is_not_held(status: &Status) -> bool {
    status.code() == Code::FailedPrecondition
        && status.get_error_details().error_info().is_some_and(|info| info.reason == error::NOT_HELD)
}
