//! How a control plane reaches the others.

use std::{collections::BTreeMap, time::Duration};

use parking_lot::Mutex;
use tbmq_proto::node::{ForwardRequest, NodeReply, node_forward_service_client::NodeForwardServiceClient};
use tokio::time::Instant;
use tonic::{Request, Status, transport::Channel};

use crate::access;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Connections that are kept at most; beyond it all are made anew.
const CHANNELS_MAX: usize = 64;

/// Connections to other control planes, by their addresses.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    channels: Mutex<BTreeMap<String, Channel>>,
}

impl Peers {
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
        request.set_timeout(until.saturating_duration_since(Instant::now()));
        let mut client = NodeForwardServiceClient::new(channel);
        let Ok(response) = tokio::time::timeout_at(until, client.forward(request)).await else {
            return Err(Status::deadline_exceeded(format!("{address} did not answer in time")));
        };
        response?.into_inner().reply.ok_or_else(|| Status::unavailable(format!("{address} gave no answer")))
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
