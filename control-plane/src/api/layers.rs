//! What every call passes before it reaches a service.
//!
//! Outermost first: spans (`traced`); metrics, load shedding, deadline (`overload`); authentication, authorisation, audit (`access`),
//! which are one layer, since the audit log tells what the first two decided (control-api, "Transport").

use tower::{
    ServiceBuilder,
    layer::util::{Identity, Stack},
};

use super::{overload::OverloadLayer, traced::TraceLayer};
use crate::{access::guard::GuardLayer, plane::Plane};

type Layers = Stack<GuardLayer, Stack<OverloadLayer, Stack<TraceLayer, Identity>>>;

/// The layers; what is added first is outermost.
pub(super) fn stack(plane: &Plane) -> ServiceBuilder<Layers> {
    let limits = plane.config.control.calls.clone();
    ServiceBuilder::new()
        .layer(TraceLayer::new(plane.tracer.clone()))
        .layer(OverloadLayer::new(limits, plane.metrics.calls.clone()))
        .layer(GuardLayer::new(plane.access.clone()))
}
