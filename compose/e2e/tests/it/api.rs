//! The control plane's gRPC services, as a test wants to call them.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail};
use tbmq_proto::control::{
    CreateIntegrationRequest, DeleteIntegrationRequest, DisableIntegrationRequest, EnableIntegrationRequest,
    Event, EventType, GetIntegrationRequest, Integration, ListEventsRequest, ListNodesRequest, Node,
    UpdateIntegrationRequest, event_service_client::EventServiceClient,
    integration_service_client::IntegrationServiceClient, integration_status::Phase,
    node_service_client::NodeServiceClient,
};
use tonic::{Code, Request, Status, transport::Channel};

/// A client of one control plane.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) integrations: IntegrationServiceClient<Channel>,
    pub(crate) events: EventServiceClient<Channel>,
    pub(crate) nodes: NodeServiceClient<Channel>,
}

/// An HTTP integration that sends bare payloads and retries for ever.
pub(crate) fn http(name: &str, filters: &[&str], url: &str) -> Integration {
    http_with(name, filters, url, r#"{"ackStrategy":"RETRY_ALL","retries":0,"pauseBetweenRetriesSec":1}"#)
}

/// The same with a `delivery` object of its own.
pub(crate) fn http_with(name: &str, filters: &[&str], url: &str, delivery: &str) -> Integration {
    let filters = serde_json::to_string(filters).unwrap();
    Integration {
        display_name: name.to_owned(),
        r#type: "HTTP".to_owned(),
        enabled: true,
        configuration_json: format!(
            r#"{{"topicFilters":{filters},"metadata":{{}},"clientConfiguration":{{"restEndpointUrl":"{url}","requestMethod":"POST","sendOnlyMsgPayload":true,"payloadContentType":"BINARY","maxInMemoryBufferSizeInKb":256}},"delivery":{delivery}}}"#
        ),
        ..Integration::default()
    }
}

impl Api {
    pub(crate) fn connect(address: SocketAddr) -> Result<Self> {
        let channel = Channel::from_shared(format!("http://{address}"))?.connect_lazy();
        Ok(Self {
            integrations: IntegrationServiceClient::new(channel.clone()),
            events: EventServiceClient::new(channel.clone()),
            nodes: NodeServiceClient::new(channel),
        })
    }

    pub(crate) async fn create(&mut self, integration: Integration) -> Result<Integration, Status> {
        let request = CreateIntegrationRequest { integration: Some(integration), ..Default::default() };
        Ok(self.integrations.create_integration(request).await?.into_inner())
    }

    /// As `create`, with the caller's own deadline.
    pub(crate) async fn create_within(
        &mut self,
        integration: Integration,
        deadline: Duration,
    ) -> Result<Integration, Status> {
        let mut request =
            Request::new(CreateIntegrationRequest { integration: Some(integration), ..Default::default() });
        request.set_timeout(deadline);
        Ok(self.integrations.create_integration(request).await?.into_inner())
    }

    pub(crate) async fn get(&mut self, name: &str) -> Result<Integration, Status> {
        let request = GetIntegrationRequest { name: name.to_owned() };
        Ok(self.integrations.get_integration(request).await?.into_inner())
    }

    pub(crate) async fn update(&mut self, integration: Integration) -> Result<Integration, Status> {
        let request = UpdateIntegrationRequest { integration: Some(integration), ..Default::default() };
        Ok(self.integrations.update_integration(request).await?.into_inner())
    }

    pub(crate) async fn enable(&mut self, name: &str) -> Result<Integration, Status> {
        let request = EnableIntegrationRequest { name: name.to_owned(), ..Default::default() };
        Ok(self.integrations.enable_integration(request).await?.into_inner())
    }

    pub(crate) async fn disable(&mut self, name: &str) -> Result<Integration, Status> {
        let request = DisableIntegrationRequest { name: name.to_owned(), ..Default::default() };
        Ok(self.integrations.disable_integration(request).await?.into_inner())
    }

    pub(crate) async fn delete(&mut self, name: &str) -> Result<(), Status> {
        let request = DeleteIntegrationRequest { name: name.to_owned(), ..Default::default() };
        self.integrations.delete_integration(request).await.map(drop)
    }

    pub(crate) async fn lifecycle(&mut self, integration: &str) -> Result<Vec<Event>, Status> {
        let request = ListEventsRequest {
            integration: integration.to_owned(),
            r#type: EventType::Lifecycle.into(),
            page_size: 1000,
            ..Default::default()
        };
        Ok(self.events.list_events(request).await?.into_inner().events)
    }

    pub(crate) async fn list_nodes(&mut self) -> Result<Vec<Node>, Status> {
        Ok(self.nodes.list_nodes(ListNodesRequest {}).await?.into_inner().nodes)
    }

    /// Asks until the integration is in a phase, at most 60 s.
    pub(crate) async fn await_phase(&mut self, name: &str, phase: Phase) -> Result<Integration> {
        let mut last = None;
        let asking = async {
            loop {
                match self.get(name).await {
                    Ok(integration) => {
                        if integration.status.as_ref().is_some_and(|status| status.phase() == phase) {
                            return anyhow::Ok(integration);
                        }
                        last = Some(integration);
                    }
                    // A plane that is being started anew is no answer.
                    Err(status) if status.code() == Code::Unavailable => {}
                    Err(status) => return Err(status.into()),
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        match tokio::time::timeout(Duration::from_secs(60), asking).await {
            Ok(result) => result,
            Err(_) => bail!("{name} is not {phase:?} within 60 s: {last:?}"),
        }
    }

    /// Creates an integration, retrying while the planes are not up yet, and waits until it runs.
    pub(crate) async fn create_active(&mut self, integration: Integration) -> Result<Integration> {
        let created = self.create(integration).await.context("creating")?;
        let phase = if created.enabled { Phase::Active } else { Phase::Disabled };
        self.await_phase(&created.name, phase).await
    }
}
