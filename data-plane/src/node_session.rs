//! The session to a control plane: registration, heartbeats, and what it asks for. Losing it changes nothing for MQTT
//! clients.

use std::{pin::pin, sync::Arc, time::Duration};

use anyhow::Context as _;
use tbmq_proto::node::{
    ControlMessage, Hello, NodeMessage, control_message, node_message, node_reply::Reply,
    node_session_service_client::NodeSessionServiceClient,
};
use tbmq_service::identity::{Identity, Superseded};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use crate::{
    commands::{self, Asked},
    config::ControlGrpcConfig,
    control_access::ControlAccess,
    plane::Plane,
};

/// What this release understands (`Hello.capabilities`).
const CAPABILITIES: [&str; 1] = ["commands"];

/// Heartbeats before the control plane says how often.
const HEARTBEAT: Duration = Duration::from_secs(5);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause before the first new try; doubled with each, up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(500);

const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// A session that lasted so long makes the next try a first one.
const STABLE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct NodeSession {
    plane: Arc<Plane>,
    identity: Identity,
    addresses: Vec<String>,
    endpoints: Vec<Endpoint>,
    access: ControlAccess,
}

impl NodeSession {
    /// Checks the endpoints.
    pub(crate) fn new(
        plane: Arc<Plane>,
        identity: Identity,
        addresses: Vec<String>,
        config: &ControlGrpcConfig,
    ) -> anyhow::Result<Self> {
        let access = ControlAccess::open(config)?;
        let endpoints = config
            .endpoints
            .iter()
            .map(|text| {
                let endpoint = Endpoint::from_shared(text.trim().to_owned()).with_context(|| {
                    format!("CONTROL_GRPC_ENDPOINTS: {text:?} is not a URL like http://host:9090")
                })?;
                Ok(endpoint
                    .connect_timeout(CONNECT_TIMEOUT)
                    .http2_keep_alive_interval(Duration::from_secs(10))
                    .keep_alive_while_idle(true))
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Self { plane, identity, addresses, endpoints, access })
    }

    /// Keeps a session open to one of the control planes; returns only when a newer incarnation took over.
    pub(crate) async fn run(self) -> Superseded {
        let mut pause = BACKOFF;
        for endpoint in self.endpoints.iter().cycle() {
            let begun = std::time::Instant::now();
            match self.hold(endpoint).await {
                Ok(superseded) => return superseded,
                Err(error) => {
                    self.plane.metrics.node_sessions_lost.inc();
                    tracing::warn!(error = format!("{error:#}"), endpoint = %endpoint.uri(), "no session to the control plane");
                }
            }
            if begun.elapsed() >= STABLE {
                pause = BACKOFF;
            }
            tokio::time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(BACKOFF_MAX);
        }
        // Without endpoints there is no session and nobody to be superseded by.
        std::future::pending().await
    }

    async fn hold(&self, endpoint: &Endpoint) -> anyhow::Result<Superseded> {
        let channel = self.access.endpoint(endpoint)?.connect().await?;
        let (sender, receiver) = mpsc::channel(16);
        let (ask, asked) = mpsc::channel(commands::WAITING_MAX);
        let hello = Hello {
            service_id: self.identity.service_id.clone(),
            incarnation: self.identity.incarnation.clone(),
            version: self.identity.version.to_owned(),
            addresses: self.addresses.clone(),
            capabilities: CAPABILITIES.map(ToOwned::to_owned).to_vec(),
        };
        sender.send(NodeMessage { message: Some(node_message::Message::Hello(hello)) }).await?;
        let mut client = NodeSessionServiceClient::new(channel);
        let mut answers =
            client.session(self.access.signed(ReceiverStream::new(receiver))?).await?.into_inner();
        let mut heartbeats = tokio::time::interval(HEARTBEAT);
        let mut serving = pin!(commands::serve(self.plane.clone(), asked, sender.clone()));
        loop {
            tokio::select! {
                () = &mut serving => anyhow::bail!("the session takes no answers any more"),
                answer = answers.message() => {
                    let ControlMessage { message } = answer?.context("the control plane ended the session")?;
                    match message {
                        Some(control_message::Message::Welcome(welcome)) => {
                            tracing::info!(control_plane = welcome.service_id, "registered");
                            let period = Duration::from_millis(u64::from(welcome.heartbeat_ms.max(100)));
                            heartbeats = tokio::time::interval(period);
                        }
                        Some(control_message::Message::Superseded(superseded)) => {
                            return Ok(self.identity.superseded_by(superseded.incarnation));
                        }
                        Some(control_message::Message::Request(request)) => {
                            let id = request.id;
                            if ask.try_send(Asked::new(request)).is_err() {
                                self.plane.metrics.node_requests_refused.inc();
                                let text = format!("{} requests wait already", commands::WAITING_MAX);
                                sender.send(commands::reply_message(id, Reply::Error(text))).await?;
                            }
                        }
                        // A newer control plane may say more.
                        None => {}
                    }
                }
                _ = heartbeats.tick() => {
                    sender.send(commands::heartbeat(&self.plane)).await?;
                }
            }
        }
    }
}

/// Between a half and the whole of `pause`, so that nodes which lost the same control plane do not come back at once.
fn jittered(pause: Duration) -> Duration {
    let random = uuid::Uuid::new_v4().as_u128() as u32;
    pause.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}
