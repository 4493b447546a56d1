//! `NodeService`.

use std::{collections::BTreeMap, sync::Arc};

use tbmq_proto::{
    control::{
        self as proto, DrainNodeRequest, ListNodesRequest, ListNodesResponse,
        node_service_server::NodeService,
    },
    node::{Drain, node_reply::Reply, node_request},
    wire::Role,
};
use tonic::{Code, Request, Response, Status};

use super::{error, integration::timestamp, reach};
use crate::{
    nodes::{self, FORGET_AFTER, LIVE_FOR},
    plane::Plane,
    store::SessionRow,
};

/// What the role of a data plane is called.
const DATA_PLANE: &str = "DATA_PLANE";

#[derive(Debug)]
pub(super) struct NodesApi {
    plane: Arc<Plane>,
}

impl NodesApi {
    pub(super) fn new(plane: Arc<Plane>) -> Self {
        Self { plane }
    }

    /// All nodes that are not forgotten, by service id.
    async fn nodes(&self) -> Result<BTreeMap<String, proto::Node>, Status> {
        let now_ms = tbmq_service::time::now_ms();
        let since_ms = now_ms - LIVE_FOR.as_millis() as i64;
        let forgotten_ms = now_ms - FORGET_AFTER.as_millis() as i64;
        let sessions = self.plane.store.sessions(since_ms).await?;
        let known = self.plane.nodes.all().into_iter();
        let known = known.filter(|node| node.is_live() || node.seen_ms >= forgotten_ms);
        let mut nodes: BTreeMap<String, proto::Node> =
            known.map(|node| (node.applied.service_id.clone(), to_node(node))).collect();
        for session in sessions {
            match nodes.get_mut(&session.service_id) {
                Some(node) if node.incarnation == session.incarnation => {
                    node.session = true;
                    node.draining = session.draining;
                    node.connections = session.connections;
                }
                Some(_) => {}
                // It has said hello, and has not yet said what it has applied.
                None => drop(nodes.insert(session.service_id.clone(), registered(session))),
            }
        }
        Ok(nodes)
    }
}

#[tonic::async_trait]
impl NodeService for NodesApi {
    async fn list_nodes(
        &self,
        _request: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        let nodes = self.nodes().await?;
        Ok(Response::new(ListNodesResponse { nodes: nodes.into_values().collect() }))
    }

    async fn drain_node(&self, request: Request<DrainNodeRequest>) -> Result<Response<proto::Node>, Status> {
        let until = reach::deadline(request.metadata());
        let service_id = request.into_inner().service_id;
        if service_id.is_empty() {
            return Err(error::invalid_field("service_id", "is missing"));
        }
        let Some(mut node) = self.nodes().await?.remove(&service_id) else {
            return Err(error::absent("tbmq.control.v1.Node", &service_id));
        };
        if node.role != DATA_PLANE {
            let text = format!(
                "{service_id} is {}, and only data planes are drained by a call; send its process SIGTERM, which \
                 finishes what is under way and stops it",
                node.role
            );
            return Err(error::status(Code::FailedPrecondition, "NOT_A_DATA_PLANE", text));
        }
        let reply =
            reach::ask(&self.plane, &service_id, node_request::Request::Drain(Drain {}), until).await?;
        let Reply::Draining(draining) = reply else {
            return Err(error::node_unreachable(format!("data plane {service_id} answered something else")));
        };
        node.session = true;
        node.draining = true;
        node.connections = draining.connections;
        Ok(Response::new(node))
    }
}

fn to_node(node: nodes::Node) -> proto::Node {
    let (live, role) = (node.is_live(), node.applied.role());
    let applied = node.applied;
    proto::Node {
        service_id: applied.service_id,
        role: role_name(role).to_owned(),
        incarnation: applied.incarnation,
        version: applied.version,
        addresses: applied.addresses,
        start_time: Some(timestamp(applied.started_ms)),
        last_seen_time: Some(timestamp(node.seen_ms)),
        live,
        kinds: applied.kinds,
        applied: applied
            .positions
            .into_iter()
            .map(|at| proto::node::Applied {
                topic: at.topic,
                partition: at.partition,
                position: at.position,
            })
            .collect(),
        session: false,
        system_info: applied.system_info.map(|system| proto::SystemInfo {
            cpu_percent: system.cpu_percent,
            cpu_count: system.cpu_count,
            memory_percent: system.memory_percent,
            total_memory_bytes: system.total_memory_bytes,
            disk_percent: system.disk_percent,
            total_disk_bytes: system.total_disk_bytes,
        }),
        draining: false,
        connections: 0,
    }
}

fn registered(session: SessionRow) -> proto::Node {
    proto::Node {
        service_id: session.service_id,
        role: DATA_PLANE.to_owned(),
        incarnation: session.incarnation,
        version: session.version,
        addresses: session.addresses,
        last_seen_time: Some(timestamp(session.seen_ms)),
        live: true,
        session: true,
        draining: session.draining,
        connections: session.connections,
        ..proto::Node::default()
    }
}

/// What a role is called in answers.
pub(super) fn role_name(role: Role) -> &'static str {
    match role {
        Role::ControlPlane => "CONTROL_PLANE",
        Role::DataPlane => DATA_PLANE,
        Role::Executor => "EXECUTOR",
        Role::Unspecified => "UNSPECIFIED",
    }
}
