//! Waiting until data planes have applied what was saved of who may connect.

use std::collections::HashMap;

use tonic::{Response, Status};

use super::integration::SILENT_NODES;
use crate::{auth::record, fault::Point, plane::Plane, store::Item};

/// Waits, within bounds, until every live data plane that follows the item's topic has applied a saved change; names the
/// silent ones in the response. What is saved is saved: nothing makes this fail.
pub(super) async fn answer<T>(plane: &Plane, item: Item, revision: u64, resource: T) -> Response<T> {
    let deadline = tokio::time::Instant::now() + plane.config.control.apply_timeout;
    let topic = record::topic_name(&plane.catalogue, item.topic);
    let reached = plane.auth_projected.reached(item.clone(), revision);
    let silent = match tokio::time::timeout_at(deadline, reached).await {
        Ok(at) => plane.nodes.applied_by_followers(&topic, at.partition, at.position, deadline).await,
        Err(_) => plane.nodes.followers(&topic).into_iter().map(|node| node.applied.service_id).collect(),
    };
    plane.faults.pass(Point::Answering).await;
    let mut response = Response::new(resource);
    if !silent.is_empty() {
        tracing::warn!(%item, revision, ?silent, "data planes have not applied the change in time");
        if let Ok(text) = silent.join(",").parse() {
            response.metadata_mut().insert(SILENT_NODES, text);
        }
    }
    response
}

/// Of each item the revision that every live data plane has applied; without one, none is.
pub(super) async fn observed(plane: &Plane, items: &[Item]) -> Result<HashMap<Item, u64>, Status> {
    let projections = plane.store.auth_projections(items).await?;
    let mut followers = HashMap::new();
    let mut observed = HashMap::with_capacity(projections.len());
    for (item, at) in projections {
        let (topic, nodes) = followers.entry(item.topic).or_insert_with(|| {
            let topic = record::topic_name(&plane.catalogue, item.topic);
            let nodes = plane.nodes.followers(&topic);
            (topic, nodes)
        });
        let has_applied = |node: &crate::nodes::Node| node.position(topic, at.partition) >= at.position;
        if !nodes.is_empty() && nodes.iter().all(has_applied) {
            observed.insert(item, at.revision);
        }
    }
    Ok(observed)
}
