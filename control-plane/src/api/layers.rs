//! What every call passes before it reaches a service.
//!
//! Outermost first: trace context, metrics, load shedding, concurrency limit, deadline, authentication, authorisation,
//! audit (control-api, "Transport"). Load shedding, the limit per connection and the deadline are the transport's own,
//! set where the server is built; the last three are one layer, since the audit log tells what the first two decided.

use tower::{
    ServiceBuilder,
    layer::util::{Identity, Stack},
};

use crate::{access::guard::GuardLayer, plane::Plane};

/// The layers within those of the transport; what is added first is outermost.
pub(super) fn stack(plane: &Plane) -> ServiceBuilder<Stack<GuardLayer, Identity>> {
    ServiceBuilder::new().layer(GuardLayer::new(plane.access.clone()))
}
