//! The control plane's gRPC services, as a test wants to call them.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use tbmq_proto::control::{
    CheckConnectionRequest, CheckConnectionResponse, CreateIntegrationRequest, DeleteIntegrationRequest,
    DisableIntegrationRequest, EnableIntegrationRequest, Event, EventType, GetIntegrationRequest, Holder,
    Integration, ListEventsRequest, ListNodesRequest, Node, UpdateIntegrationRequest,
    event_service_client::EventServiceClient, integration_service_client::IntegrationServiceClient,
    integration_status::Phase, node_service_client::NodeServiceClient,
};
use tonic::{Code, Request, Status, transport::Channel};

/// How long the waits of [`Api`] are patient.
const PATIENCE: Duration = Duration::from_secs(60);

/// Pause between two questions: nothing tells of a change but asking.
const PAUSE: Duration = Duration::from_millis(50);

/// A `delivery` object: everything is tried again, a second later, until it is delivered.
pub const RETRY_FOR_EVER: &str = r#"{"ackStrategy":"RETRY_ALL","retries":0,"pauseBetweenRetriesSec":1}"#;

/// A client of one control plane.
#[derive(Clone, Debug)]
pub struct Api {
    /// Integrations.
    pub integrations: IntegrationServiceClient<Channel>,
    /// Events.
    pub events: EventServiceClient<Channel>,
    /// Nodes.
    pub nodes: NodeServiceClient<Channel>,
}

/// An HTTP integration that sends bare payloads and retries for ever.
pub fn http(name: &str, filters: &[&str], url: &str) -> Integration {
    http_with(name, filters, url, RETRY_FOR_EVER)
}

/// The same with a `delivery` object of its own.
pub fn http_with(name: &str, filters: &[&str], url: &str, delivery: &str) -> Integration {
    let client = serde_json::json!({
        "restEndpointUrl": url, "requestMethod": "POST", "sendOnlyMsgPayload": true,
        "payloadContentType": "BINARY", "maxInMemoryBufferSizeInKb": 256,
    });
    integration("HTTP", name, filters, &client, delivery)
}

/// An integration of any kind, by its `clientConfiguration` and its `delivery` object.
pub fn integration(
    kind: &str,
    name: &str,
    filters: &[&str],
    client: &serde_json::Value,
    delivery: &str,
) -> Integration {
    let filters = serde_json::json!(filters);
    Integration {
        display_name: name.to_owned(),
        r#type: kind.to_owned(),
        enabled: true,
        configuration_json: format!(
            r#"{{"topicFilters":{filters},"metadata":{{}},"clientConfiguration":{client},"delivery":{delivery}}}"#
        ),
        ..Integration::default()
    }
}

impl Api {
    /// A client that connects with its first call, and again after a failure. A call without a deadline of its own
    /// ends after 60 s, with `Cancelled`.
    ///
    /// # Errors
    /// When the address makes no URI.
    pub fn connect(address: SocketAddr) -> Result<Self> {
        let endpoint = Channel::from_shared(format!("http://{address}"))?;
        let channel = endpoint.connect_timeout(Duration::from_secs(5)).timeout(PATIENCE).connect_lazy();
        Ok(Self {
            integrations: IntegrationServiceClient::new(channel.clone()),
            events: EventServiceClient::new(channel.clone()),
            nodes: NodeServiceClient::new(channel),
        })
    }

    /// Creates an integration; returns what was saved.
    ///
    /// # Errors
    /// What the control plane answers.
    pub async fn create(&mut self, integration: Integration) -> Result<Integration, Status> {
        let request = CreateIntegrationRequest { integration: Some(integration), ..Default::default() };
        Ok(self.integrations.create_integration(request).await?.into_inner())
    }

    /// As [`Api::create`], with the caller's own deadline.
    ///
    /// # Errors
    /// What the control plane answers.
    pub async fn create_within(
        &mut self,
        integration: Integration,
        deadline: Duration,
    ) -> Result<Integration, Status> {
        let mut request =
            Request::new(CreateIntegrationRequest { integration: Some(integration), ..Default::default() });
        request.set_timeout(deadline);
        Ok(self.integrations.create_integration(request).await?.into_inner())
    }

    /// One integration, by name (`integrations/{uuid}`).
    ///
    /// # Errors
    /// What the control plane answers.
    pub async fn get(&mut self, name: &str) -> Result<Integration, Status> {
        let request = GetIntegrationRequest { name: name.to_owned(), ..Default::default() };
        Ok(self.integrations.get_integration(request).await?.into_inner())
    }

    /// Replaces what an integration says.
    ///
    /// # Errors
    /// What the control plane answers.
    pub async fn update(&mut self, integration: Integration) -> Result<Integration, Status> {
        let request = UpdateIntegrationRequest { integration: Some(integration), ..Default::default() };
        Ok(self.integrations.update_integration(request).await?.into_inner())
    }

    /// Enables an integration.
    ///
    /// # Errors
    /// What the control plane answers.
    pub async fn enable(&mut self, name: &str) -> Result<Integration, Status> {
        let request = EnableIntegrationRequest { name: name.to_owned(), ..Default::default() };
        Ok(self.integrations.enable_integration(request).await?.into_inner())
    }

    /// Disables an integration.
    ///
    /// # Errors
    /// What the control plane answers.
    pub async fn disable(&mut self, name: &str) -> Result<Integration, Status> {
        let request = DisableIntegrationRequest { name: name.to_owned(), ..Default::default() };
        Ok(self.integrations.disable_integration(request).await?.into_inner())
    }

    /// Deletes an integration.
    ///
    /// # Errors
    /// What the control plane answers.
    pub async fn delete(&mut self, name: &str) -> Result<(), Status> {
        let request = DeleteIntegrationRequest { name: name.to_owned(), ..Default::default() };
        self.integrations.delete_integration(request).await.map(drop)
    }

    /// Has an executor try the connection of an integration that need not be saved.
    ///
    /// # Errors
    /// What the control plane answers; that the connection fails is no error.
    pub async fn check(&mut self, integration: Integration) -> Result<CheckConnectionResponse, Status> {
        let request = CheckConnectionRequest { integration: Some(integration), ..Default::default() };
        Ok(self.integrations.check_connection(request).await?.into_inner())
    }

    /// The latest 1000 lifecycle events of an integration, newest first.
    ///
    /// # Errors
    /// What the control plane answers.
    pub async fn lifecycle(&mut self, integration: &str) -> Result<Vec<Event>, Status> {
        self.list(integration, EventType::Lifecycle).await
    }

    /// The latest 1000 error events of an integration, newest first.
    ///
    /// # Errors
    /// What the control plane answers.
    pub async fn errors(&mut self, integration: &str) -> Result<Vec<Event>, Status> {
        self.list(integration, EventType::Error).await
    }

    async fn list(&mut self, integration: &str, event_type: EventType) -> Result<Vec<Event>, Status> {
        let request = ListEventsRequest {
            integration: integration.to_owned(),
            r#type: event_type.into(),
            page_size: 1000,
            ..Default::default()
        };
        Ok(self.events.list_events(request).await?.into_inner().events)
    }

    /// All nodes.
    ///
    /// # Errors
    /// What the control plane answers.
    pub async fn list_nodes(&mut self) -> Result<Vec<Node>, Status> {
        Ok(self.nodes.list_nodes(ListNodesRequest {}).await?.into_inner().nodes)
    }

    /// Asks for an integration until `done` holds, at most `patience`. A plane that is away or stands still is asked
    /// again.
    ///
    /// # Errors
    /// When it does not hold in time, with the last answer; when the answer is a refusal.
    pub async fn await_integration(
        &mut self,
        name: &str,
        patience: Duration,
        done: impl Fn(&Integration) -> bool,
    ) -> Result<Integration> {
        let deadline = Instant::now() + patience;
        let mut last = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, self.get(name)).await {
                Ok(Ok(integration)) if done(&integration) => return Ok(integration),
                Ok(Ok(integration)) => last = Some(integration),
                Ok(Err(status)) if is_away(&status) => {}
                Ok(Err(status)) => return Err(status.into()),
                Err(_) => bail!("not within {patience:?}; {name} was last seen as {last:?}"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Asks until the integration is in a phase, at most 60 s.
    ///
    /// # Errors
    /// As [`Api::await_integration`].
    pub async fn await_phase(&mut self, name: &str, phase: Phase) -> Result<Integration> {
        let in_phase = |one: &Integration| one.status.as_ref().is_some_and(|status| status.phase() == phase);
        let waiting = self.await_integration(name, PATIENCE, in_phase);
        waiting.await.with_context(|| format!("waiting for {phase:?}"))
    }

    /// Asks until the executor that holds a shard satisfies `done`, at most 60 s.
    ///
    /// # Errors
    /// As [`Api::await_integration`].
    pub async fn await_holder(
        &mut self,
        name: &str,
        shard: u32,
        done: impl Fn(&Holder) -> bool,
    ) -> Result<Holder> {
        let held = |one: &Integration| holder(one, shard).is_some_and(&done);
        let integration = self.await_integration(name, PATIENCE, held).await?;
        Ok(holder(&integration, shard).context("it was just there")?.clone())
    }

    /// Asks for the nodes until `done` holds, at most 60 s.
    ///
    /// # Errors
    /// When it does not hold in time, with the last answer.
    pub async fn await_nodes(&mut self, done: impl Fn(&[Node]) -> bool) -> Result<Vec<Node>> {
        let deadline = Instant::now() + PATIENCE;
        let mut last = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, self.list_nodes()).await {
                Ok(Ok(nodes)) if done(&nodes) => return Ok(nodes),
                Ok(answer) => last = Some(answer),
                Err(_) => bail!("not within {PATIENCE:?}; the nodes were last seen as {last:?}"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Creates an integration and waits until it runs (or, created disabled, is shown so).
    ///
    /// # Errors
    /// When it is refused or does not start.
    pub async fn create_active(&mut self, integration: Integration) -> Result<Integration> {
        let created = self.create(integration).await.context("creating")?;
        let phase = if created.enabled { Phase::Active } else { Phase::Disabled };
        self.await_phase(&created.name, phase).await
    }
}

/// The executor that holds a shard, as the status names it.
pub fn holder(integration: &Integration, shard: u32) -> Option<&Holder> {
    let holders = integration.status.iter().flat_map(|status| &status.holders);
    holders.filter(|holder| holder.role == "EXECUTOR").find(|holder| holder.shard == shard)
}

/// Whether a call got no answer: the plane is being started anew, or stands still.
pub fn is_away(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Unknown)
}
