//! The way to a control plane.

use std::time::Duration;

use tbmq_proto::control::{
    Integration, ListIntegrationsRequest, event_service_client::EventServiceClient,
    integration_service_client::IntegrationServiceClient, node_service_client::NodeServiceClient,
};
use tonic::{
    Request,
    transport::{Channel, Endpoint},
};
use uuid::Uuid;

use crate::failure::{Failure, UNREACHABLE_HINT};

/// Longest wait for a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// A page of integrations may hold large configurations.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Integrations asked for in one call.
const PAGE_SIZE: i32 = 100;

/// Which server, and how long to wait for it.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) server: String,
    pub(crate) timeout: Duration,
}

impl Target {
    /// A request with the deadline, which the server learns as well.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }

    pub(crate) async fn integrations(&self) -> Result<IntegrationServiceClient<Channel>, Failure> {
        Ok(IntegrationServiceClient::new(self.connect().await?).max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    pub(crate) async fn events(&self) -> Result<EventServiceClient<Channel>, Failure> {
        Ok(EventServiceClient::new(self.connect().await?).max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    pub(crate) async fn nodes(&self) -> Result<NodeServiceClient<Channel>, Failure> {
        Ok(NodeServiceClient::new(self.connect().await?).max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    async fn connect(&self) -> Result<Channel, Failure> {
        if !self.server.starts_with("http://") {
            return Err(Failure::usage(format!("{:?} is not an address of a server", self.server))
                .hint("an address is http://HOST:PORT"));
        }
        let endpoint = Endpoint::from_shared(self.server.clone())
            .map_err(|error| {
                Failure::usage(format!("{:?} is not an address of a server: {error}", self.server))
            })?
            .user_agent(concat!("tbmqctl/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| Failure::bug(error.to_string()))?
            .connect_timeout(CONNECT_MAX.min(self.timeout));
        endpoint.connect().await.map_err(|error| {
            Failure::unreachable(format!("can't reach {}: {}", self.server, root_cause(&error)))
                .hint(UNREACHABLE_HINT)
        })
    }

    /// The resource name of an integration that is given by uid, resource name or display name.
    pub(crate) async fn name_of(
        &self,
        client: &mut IntegrationServiceClient<Channel>,
        given: &str,
    ) -> Result<String, Failure> {
        if given.starts_with("integrations/") {
            return Ok(given.to_owned());
        }
        if let Ok(uid) = Uuid::parse_str(given) {
            return Ok(format!("integrations/{uid}"));
        }
        let found = self.list(client, given, usize::MAX).await?;
        found
            .into_iter()
            .find(|integration| integration.display_name == given)
            .map(|found| found.name)
            .ok_or_else(|| {
                Failure::refused(format!("there is no integration named {given:?}"))
                    .hint("`tbmqctl integration list` shows what exists")
            })
    }

    /// Integrations whose display name contains a text, page by page.
    pub(crate) async fn list(
        &self,
        client: &mut IntegrationServiceClient<Channel>,
        text_search: &str,
        limit: usize,
    ) -> Result<Vec<Integration>, Failure> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let page_size = PAGE_SIZE.min(i32::try_from(limit - all.len()).unwrap_or(PAGE_SIZE));
            let request = ListIntegrationsRequest {
                page_size,
                page_token,
                text_search: text_search.to_owned(),
                ..Default::default()
            };
            let page = client.list_integrations(self.request(request)).await?.into_inner();
            all.extend(page.integrations);
            if page.next_page_token.is_empty() || all.len() >= limit {
                all.truncate(limit);
                return Ok(all);
            }
            page_token = page.next_page_token;
        }
    }
}

/// The innermost cause, which says what happened ("connection refused") and not where.
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
