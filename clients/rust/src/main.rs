//! Creates, gets, lists, changes, watches and deletes an integration, and reads what the server says of a mistake.
#![allow(clippy::print_stdout, reason = "an example tells what it does")]

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use prost_types::FieldMask;
use tbmq_proto::control::{
    CreateIntegrationRequest, DeleteIntegrationRequest, GetIntegrationRequest, Integration,
    ListIntegrationsRequest, UpdateIntegrationRequest, WatchIntegrationsRequest,
    integration_service_client::IntegrationServiceClient, watch_integrations_response::Type,
};
use tonic::{Status, transport::Channel};
use tonic_types::StatusExt as _;

const DOCUMENT: &str = r#"{
    "topicFilters": ["sensors/#"],
    "metadata": {"site": "north"},
    "clientConfiguration": {
        "restEndpointUrl": "http://127.0.0.1:9/",
        "requestMethod": "POST",
        "maxInMemoryBufferSizeInKb": 256
    }
}"#;

#[tokio::main]
async fn main() -> Result<()> {
    let server = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9090".to_owned());
    let channel = Channel::from_shared(format!("http://{server}"))?.connect().await?;
    let mut integrations = IntegrationServiceClient::new(channel);

    let integration = Integration {
        display_name: "rust-example".to_owned(),
        r#type: "HTTP".to_owned(),
        enabled: false,
        configuration_json: DOCUMENT.to_owned(),
        labels: HashMap::from([("example".to_owned(), "rust".to_owned())]),
        ..Integration::default()
    };
    let request = CreateIntegrationRequest { integration: Some(integration), ..Default::default() };
    let created = integrations.create_integration(request).await?.into_inner();
    let status = created.status.clone().unwrap_or_default();
    println!("created {} {}", created.display_name, status.phase().as_str_name());

    let named = GetIntegrationRequest { name: created.name.clone(), ..Default::default() };
    let got = integrations.get_integration(named.clone()).await?.into_inner();
    println!("got {}", got.display_name);

    let filter = r#"type = "HTTP" AND labels.example = "rust""#.to_owned();
    let request = ListIntegrationsRequest { filter, ..Default::default() };
    let page = integrations.list_integrations(request).await?.into_inner();
    let names: Vec<_> = page.integrations.iter().map(|listed| listed.display_name.as_str()).collect();
    println!("listed {}", names.join(" "));

    // The etag makes sure that nobody else has changed it since.
    let change = Integration { description: "changed".to_owned(), ..got };
    let update_mask = Some(FieldMask { paths: vec!["description".to_owned()] });
    let request = UpdateIntegrationRequest { integration: Some(change), update_mask, ..Default::default() };
    integrations.update_integration(request).await?;

    // From a revision on: what has happened since comes first.
    let request =
        WatchIntegrationsRequest { name: created.name.clone(), after_revision: Some(created.revision) };
    let mut watch = integrations.watch_integrations(request).await?.into_inner();
    loop {
        let change = watch.message().await?.context("the watch has ended")?;
        // A bookmark says only how far the watch has come.
        if change.r#type() != Type::Bookmark {
            let description = change.integration.clone().unwrap_or_default().description;
            println!("watched {} {description}", change.r#type().as_str_name());
            break;
        }
    }

    let wrong = Integration {
        r#type: "HTTP".to_owned(),
        configuration_json: r#"{"topicFilters": ["a/#/b"], "clientConfiguration": {}}"#.to_owned(),
        ..Integration::default()
    };
    let request = CreateIntegrationRequest { integration: Some(wrong), ..Default::default() };
    if let Err(status) = integrations.create_integration(request).await {
        explain(&status);
    }

    let request = DeleteIntegrationRequest { name: created.name, ..Default::default() };
    integrations.delete_integration(request).await?;
    println!("deleted {}", created.display_name);
    if let Err(status) = integrations.get_integration(named).await {
        explain(&status);
    }
    Ok(())
}

/// Prints the reason and the fields of an error.
fn explain(status: &Status) {
    let details = status.get_error_details();
    let reason = details.error_info().map_or("", |info| info.reason.as_str());
    println!("refused {:?} {reason}", status.code());
    for violation in details.bad_request().into_iter().flat_map(|request| &request.field_violations) {
        println!("  {}: {}", violation.field, violation.description);
    }
}
