//! What a control plane has: all its integrations, and the types that it knows.

use std::collections::HashMap;

use serde_json::Value;
use tbmq_proto::control::{
    CreateIntegrationRequest, Integration, Kind, ListIntegrationsRequest, ListKindsRequest,
    UpdateIntegrationRequest, integration_service_client::IntegrationServiceClient,
};
use tonic::transport::Channel;
use uuid::Uuid;

use crate::{
    client::Target,
    compare::{CONFIGURATION, Difference},
    document::Document,
    failure::Failure,
    manifest::{Manifest, Manifests},
};

/// Integrations asked for in one call.
const PAGE_SIZE: i32 = 500;

/// The way to the service; clones share a connection.
pub(crate) type Client = IntegrationServiceClient<Channel>;

/// Integrations as they were when they were listed.
#[derive(Debug)]
pub(crate) struct Inventory {
    target: Target,
    client: Client,
    integrations: Vec<Integration>,
    by_uid: HashMap<String, usize>,
    by_name: HashMap<String, usize>,
    schemas: HashMap<String, Value>,
}

impl Inventory {
    /// Lists everything.
    pub(crate) async fn take(target: &Target) -> Result<Self, Failure> {
        let mut client = target.integrations().await?;
        let integrations = list(target, &mut client, "").await?;
        Self::of(target, client, integrations).await
    }

    /// With integrations that were got already.
    pub(crate) async fn of(
        target: &Target,
        mut client: Client,
        integrations: Vec<Integration>,
    ) -> Result<Self, Failure> {
        let schemas = schemas(target, &mut client).await?;
        let index = |key: fn(&Integration) -> &String| {
            integrations.iter().enumerate().map(|(at, one)| (key(one).clone(), at)).collect()
        };
        let (by_uid, by_name) = (index(|one| &one.uid), index(|one| &one.display_name));
        Ok(Self { target: target.clone(), client, integrations, by_uid, by_name, schemas })
    }

    pub(crate) fn all(&self) -> &[Integration] {
        &self.integrations
    }

    /// The JSON Schema of a type, if an executor has announced it.
    pub(crate) fn schema(&self, kind: &str) -> Option<&Value> {
        self.schemas.get(kind)
    }

    /// The same, announced by now: an executor that has just started may have come to it only since the listing.
    pub(crate) async fn schema_by_now(&self, kind: &str) -> Option<Value> {
        match self.schema(kind) {
            Some(schema) => Some(schema.clone()),
            None => schemas(&self.target, &mut self.client()).await.ok()?.remove(kind),
        }
    }

    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    pub(crate) fn of_uid(&self, uid: Uuid) -> Option<&Integration> {
        self.by_uid.get(&uid.to_string()).map(|at| &self.integrations[*at])
    }

    /// The integration that a document describes: that of its uid, else that of its name.
    pub(crate) fn find(&self, document: &Document) -> Option<&Integration> {
        document
            .uid
            .and_then(|uid| self.of_uid(uid))
            .or_else(|| self.by_name.get(document.display_name.trim()).map(|at| &self.integrations[*at]))
    }

    /// Sees that no two documents describe the same integration, one by its uid and one by its name.
    pub(crate) fn refuse_twins(&self, manifests: &Manifests) -> Result<(), Failure> {
        let mut places = HashMap::new();
        for Manifest { place, document } in &manifests.read {
            let Some(found) = self.find(document) else { continue };
            if let Some(other) = places.insert(&found.uid, place) {
                let name = &found.display_name;
                return Err(Failure::usage(format!(
                    "{other} and {place} describe the same integration, {name:?}"
                ))
                .hint("one has its uid and one its name; nothing was changed"));
            }
        }
        Ok(())
    }

    /// How a document differs from what is saved. The server is asked about secrets that only the document shows.
    pub(crate) async fn difference(
        &self,
        document: &Document,
        saved: &Integration,
    ) -> Result<Compared, Failure> {
        let mut difference = Difference::between(document, saved, self.schema(&saved.r#type));
        let mut secrets_differ = false;
        if let Some(configuration_json) = difference.probe(saved) {
            let integration = Integration {
                name: saved.name.clone(),
                etag: saved.etag.clone(),
                configuration_json,
                ..Integration::default()
            };
            // A preview has an etag only when nothing would change.
            let preview = self.update(integration, &[CONFIGURATION], true).await?;
            secrets_differ = preview.etag != saved.etag;
            if secrets_differ && !difference.fields.contains(&CONFIGURATION) {
                difference.fields.push(CONFIGURATION);
            }
        }
        Ok(Compared { difference, secrets_differ })
    }

    /// Creates what a document describes, or only asks whether that would be possible.
    pub(crate) async fn create(
        &self,
        document: &Document,
        validate_only: bool,
    ) -> Result<Integration, Failure> {
        let integration_id = document.uid.map(|uid| uid.to_string()).unwrap_or_default();
        let mut integration = document.clone().into_integration();
        // These say which one it was where the document was printed.
        integration.name.clear();
        integration.etag.clear();
        let request = CreateIntegrationRequest {
            integration: Some(integration),
            integration_id,
            validate_only,
            request_id: Uuid::now_v7().to_string(),
        };
        Ok(self.client().create_integration(self.target.request(request)).await?.into_inner())
    }

    /// Gives the fields of a saved integration the values of a document, if nobody has changed it since it was listed.
    pub(crate) async fn change(
        &self,
        document: &Document,
        saved: &Integration,
        fields: &[&str],
        validate_only: bool,
    ) -> Result<Integration, Failure> {
        let mut integration = document.clone().into_integration();
        integration.name.clone_from(&saved.name);
        integration.etag.clone_from(&saved.etag);
        self.update(integration, fields, validate_only).await
    }

    async fn update(
        &self,
        integration: Integration,
        fields: &[&str],
        validate_only: bool,
    ) -> Result<Integration, Failure> {
        let paths = fields.iter().map(|field| (*field).to_owned()).collect();
        let request = UpdateIntegrationRequest {
            integration: Some(integration),
            update_mask: Some(prost_types::FieldMask { paths }),
            validate_only,
            request_id: Uuid::now_v7().to_string(),
        };
        Ok(self.client().update_integration(self.target.request(request)).await?.into_inner())
    }
}

/// How a document differs, as far as the server can tell.
#[derive(Debug)]
pub(crate) struct Compared {
    pub(crate) difference: Difference,
    /// Of the secrets that the document shows, one is not the saved one.
    pub(crate) secrets_differ: bool,
}

/// All integrations that a filter in the syntax of AIP-160 selects, page by page; all for an empty one.
pub(crate) async fn list(
    target: &Target,
    client: &mut Client,
    filter: &str,
) -> Result<Vec<Integration>, Failure> {
    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListIntegrationsRequest {
            page_size: PAGE_SIZE,
            page_token,
            filter: filter.to_owned(),
            ..Default::default()
        };
        let page = client.list_integrations(target.request(request)).await?.into_inner();
        all.extend(page.integrations);
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        page_token = page.next_page_token;
    }
}

/// JSON Schemas of the types that executors have announced.
async fn schemas(target: &Target, client: &mut Client) -> Result<HashMap<String, Value>, Failure> {
    let kinds = client.list_kinds(target.request(ListKindsRequest {})).await?.into_inner().kinds;
    let schema = |kind: Kind| Some((kind.name, serde_json::from_str(&kind.json_schema).ok()?));
    Ok(kinds.into_iter().filter_map(schema).collect())
}
