//! How a control plane reaches the others.

use std::{collections::BTreeMap, time::Duration};

use parking_lot::Mutex;
use tbmq_proto::node::{ForwardRequest, NodeReply, node_forward_service_client::NodeForwardServiceClient};
use tbmq_service::trace::{self, Span, SpanKind, Tracer, bounded};
use tokio::time::Instant;
use tonic::{Request, Status, transport::Channel};

use crate::access;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Connections that are kept at most; beyond it all are made anew.
const CHANNELS_MAX: usize = 64;

/// Connections to other control planes, by their addresses.
#[derive(Debug)]
pub(crate) struct Peers {
    tracer: Tracer,
    channels: Mutex<BTreeMap<String, Channel>>,
}

impl Peers {
    pub(crate) fn new(tracer: Tracer) -> Self {
        Self { tracer, channels: Mutex::default() }
    }

    /// Has another control plane ask a data plane whose session it holds. Waits until then at most.
    pub(crate) async fn forward(
        &self,
        access: &access::peer::Peers,
        address: &str,
        message: ForwardRequest,
        until: Instant,
    ) -> Result<NodeReply, Status> {
        let channel = self.channel(access, address)?;
        let mut request = Request::new(message);
        access.sign(&mut request);
        let mut span = self.begin(&mut request);
        request.set_timeout(until.saturating_duration_since(Instant::now()));
        let mut client = NodeForwardServiceClient::new(channel);
        let response = tokio::time::timeout_at(until, client.forward(request))
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded(format!("{address} did not answer in time"))));
        if let (Some(span), Err(status)) = (&mut span, &response) {
            span.fail("status", bounded(status.message()).to_owned());
        }
        response?.into_inner().reply.ok_or_else(|| Status::unavailable(format!("{address} gave no answer")))
    }

    /// The span of a call for another one that is traced; the request carries its place.
    fn begin(&self, request: &mut Request<ForwardRequest>) -> Option<Span> {
        if !self.tracer.is_on() {
            return None;
        }
        let name = "tbmq.node.v1.NodeForwardService/Forward";
        let mut span = self.tracer.follow(name, SpanKind::Client, &trace::current()?)?;
        span.set("rpc.system", "grpc");
        span.set("rpc.service", "tbmq.node.v1.NodeForwardService");
        span.set("rpc.method", "Forward");
        for (name, text) in span.context().fields() {
            if let Ok(value) = text.parse() {
                request.metadata_mut().insert(name, value);
            }
        }
        Some(span)
    }

    fn channel(&self, access: &access::peer::Peers, address: &str) -> Result<Channel, Status> {
        let mut channels = self.channels.lock();
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let endpoint = access.endpoint(address).map_err(Status::unavailable)?;
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .connect_lazy();
        if channels.len() >= CHANNELS_MAX {
            channels.clear();
        }
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }
}
