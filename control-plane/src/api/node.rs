//! `NodeService`.

use std::{collections::BTreeMap, sync::Arc};

use tbmq_proto::{
    control::{self as proto, ListNodesRequest, ListNodesResponse, node_service_server::NodeService},
    wire::Role,
};
use tonic::{Request, Response, Status};

use super::integration::timestamp;
use crate::{
    nodes::{FORGET_AFTER, LIVE_FOR},
    plane::Plane,
};

#[derive(Debug)]
pub(super) struct NodesApi {
    plane: Arc<Plane>,
}

impl NodesApi {
    pub(super) fn new(plane: Arc<Plane>) -> Self {
        Self { plane }
    }
}

#[tonic::async_trait]
impl NodeService for NodesApi {
    async fn list_nodes(
        &self,
        _request: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        let now_ms = tbmq_service::time::now_ms();
        let since_ms = now_ms - LIVE_FOR.as_millis() as i64;
        let forgotten_ms = now_ms - FORGET_AFTER.as_millis() as i64;
        let sessions = self.plane.store.sessions(since_ms).await?;
        let mut nodes: BTreeMap<String, proto::Node> = BTreeMap::new();
        for node in self.plane.nodes.all() {
            let role = match node.applied.role() {
                Role::ControlPlane => "CONTROL_PLANE",
                Role::DataPlane => "DATA_PLANE",
                Role::Executor => "EXECUTOR",
                Role::Unspecified => "UNSPECIFIED",
            };
            let live = node.is_live();
            if !live && node.seen_ms < forgotten_ms {
                continue;
            }
            let applied = node.applied;
            let listed = proto::Node {
                service_id: applied.service_id.clone(),
                role: role.to_owned(),
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
                ..proto::Node::default()
            };
            nodes.insert(applied.service_id, listed);
        }
        for session in sessions {
            if let Some(node) = nodes.get_mut(&session.service_id) {
                node.session |= node.incarnation == session.incarnation;
                continue;
            }
            // It has said hello, and has not yet said what it has applied.
            let node = proto::Node {
                service_id: session.service_id.clone(),
                role: "DATA_PLANE".to_owned(),
                incarnation: session.incarnation,
                version: session.version,
                addresses: session.addresses,
                last_seen_time: Some(timestamp(session.seen_ms)),
                live: true,
                session: true,
                ..proto::Node::default()
            };
            nodes.insert(session.service_id, node);
        }
        Ok(Response::new(ListNodesResponse { nodes: nodes.into_values().collect() }))
    }

    async fn drain_node(
        &self,
        _request: Request<proto::DrainNodeRequest>,
    ) -> Result<Response<proto::Node>, Status> {
        Err(Status::unimplemented("not yet"))
    }
}
