//! `tbmqctl integration update`.

use std::{collections::HashMap, path::PathBuf};

use clap::Args;
use serde_json::{Value, json};
use tbmq_proto::control::{Integration, UpdateIntegrationRequest};
use uuid::Uuid;

use super::{get, label, object, print_one, settings::Settings};
use crate::{
    client::Target,
    document::Document,
    failure::Failure,
    progress,
    render::{Output, note},
};

#[derive(Debug, Args)]
pub(crate) struct UpdateArguments {
    /// Name or uid; not needed with a file that has a uid or the name
    integration: Option<String>,
    /// JSON or YAML document that replaces all of it; `-` is stdin
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["name", "filter", "client", "description", "label", "settings"])]
    file: Option<PathBuf>,
    /// New name
    #[arg(long)]
    name: Option<String>,
    /// New topic filters instead of all it has; may be repeated
    #[arg(long)]
    filter: Vec<String>,
    /// New clientConfiguration, as JSON
    #[arg(long, value_name = "JSON", conflicts_with = "settings")]
    client: Option<String>,
    /// New description
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// New labels instead of all it has; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// Change it only if nobody else did since this etag was read; a printed document has its own
    #[arg(long)]
    etag: Option<String>,
    /// Do everything but save
    #[arg(long)]
    validate_only: bool,
    #[command(flatten)]
    settings: Settings,
}

pub(super) async fn update(
    arguments: UpdateArguments,
    target: &Target,
    output: Output,
) -> Result<(), Failure> {
    let mut client = target.integrations().await?;
    let (mut integration, update_mask) = if let Some(file) = arguments.file {
        let document = Document::read(&file)?;
        let given = match (&arguments.integration, document.uid) {
            (Some(given), _) => given.clone(),
            (None, Some(uid)) => uid.to_string(),
            (None, None) => document.display_name.clone(),
        };
        let name = target.name_of(&mut client, &given).await?;
        let mut integration = document.into_integration();
        integration.name = name;
        (integration, None)
    } else {
        let Some(given) = &arguments.integration else {
            return Err(Failure::usage(
                "which integration is to be changed: give its name or uid, or a file (-f)",
            ));
        };
        let mut integration = get(target, &mut client, given).await?;
        let changes = Changes {
            name: arguments.name,
            filters: arguments.filter,
            settings: arguments.settings,
            client: arguments.client,
            description: arguments.description,
            labels: arguments.label.into_iter().collect(),
        };
        let paths = change(&mut integration, changes)?;
        (integration, Some(prost_types::FieldMask { paths }))
    };
    if let Some(etag) = arguments.etag {
        integration.etag = etag;
    }
    let request = UpdateIntegrationRequest {
        integration: Some(integration),
        update_mask,
        validate_only: arguments.validate_only,
        request_id: Uuid::now_v7().to_string(),
    };
    let call = client.update_integration(target.request(request));
    let updated = progress::during("an executor validates it", call).await?.into_inner();
    if arguments.validate_only {
        note("valid; nothing was saved");
        return Ok(());
    }
    print_one(&updated, output)
}

#[derive(Default)]
struct Changes {
    name: Option<String>,
    filters: Vec<String>,
    settings: Settings,
    client: Option<String>,
    description: Option<String>,
    labels: HashMap<String, String>,
}

/// Changes what was read, and names the fields that are to be written.
fn change(integration: &mut Integration, changes: Changes) -> Result<Vec<String>, Failure> {
    let mut paths = Vec::new();
    if let Some(name) = changes.name {
        integration.display_name = name;
        paths.push("display_name".to_owned());
    }
    if let Some(description) = changes.description {
        integration.description = description;
        paths.push("description".to_owned());
    }
    if !changes.labels.is_empty() {
        integration.labels = changes.labels;
        paths.push("labels".to_owned());
    }
    if !changes.filters.is_empty() || changes.settings.are_given() || changes.client.is_some() {
        let mut configuration = object(&integration.configuration_json, "the saved configuration")?;
        if !changes.filters.is_empty() {
            configuration["topicFilters"] = changes.filters.into();
        }
        if let Some(client) = changes.client {
            configuration["clientConfiguration"] = object(&client, "--client")?;
        } else if changes.settings.are_given() {
            let client = &mut configuration["clientConfiguration"];
            if !client.is_object() {
                *client = json!({});
            }
            if let Value::Object(client) = client {
                changes.settings.write(&integration.r#type, client)?;
            }
        }
        integration.configuration_json = configuration.to_string();
        paths.push("configuration_json".to_owned());
    }
    if paths.is_empty() {
        return Err(Failure::usage("nothing to change: give a file (-f) or a flag such as --filter"));
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::failure::ExitKind;

    #[derive(Debug, Parser)]
    struct Arguments {
        #[command(flatten)]
        settings: Settings,
    }

    fn saved() -> Integration {
        Integration {
            r#type: "HTTP".to_owned(),
            configuration_json:
                r#"{"topicFilters":["a"],"x":1,"clientConfiguration":{"restEndpointUrl":"http://a","y":2}}"#
                    .to_owned(),
            ..Integration::default()
        }
    }

    fn settings(flags: &[&str]) -> Changes {
        let settings = Arguments::try_parse_from(["x"].iter().chain(flags)).unwrap().settings;
        Changes { settings, ..Changes::default() }
    }

    #[test]
    fn a_change_writes_only_the_fields_that_it_names() {
        let mut integration = saved();
        let paths = change(&mut integration, settings(&["--url", "http://b"])).unwrap();
        assert_eq!(paths, ["configuration_json"]);
        assert_eq!(
            integration.configuration_json,
            r#"{"topicFilters":["a"],"x":1,"clientConfiguration":{"restEndpointUrl":"http://b","y":2}}"#
        );
        let name = Changes { name: Some("m".to_owned()), ..Changes::default() };
        assert_eq!(change(&mut integration, name).unwrap(), ["display_name"]);
        let nothing = change(&mut integration, Changes::default()).unwrap_err();
        assert_eq!(nothing.kind, ExitKind::Usage);
    }

    #[test]
    fn a_setting_can_be_taken_back() {
        let mut integration = saved();
        integration.configuration_json = r#"{"clientConfiguration":{"sendOnlyMsgPayload":true}}"#.to_owned();
        change(&mut integration, settings(&["--payload-only=false"])).unwrap();
        assert_eq!(integration.configuration_json, r#"{"clientConfiguration":{"sendOnlyMsgPayload":false}}"#);
    }

    #[test]
    fn a_new_user_name_keeps_the_password() {
        let mut integration = saved();
        integration.configuration_json =
            r#"{"clientConfiguration":{"credentials":{"type":"basic","username":"a","password":"***"}}}"#
                .to_owned();
        change(&mut integration, settings(&["--username", "b"])).unwrap();
        assert!(integration.configuration_json.contains(r#""username":"b","password":"***""#));
    }

    #[test]
    fn a_setting_of_another_type_changes_nothing() {
        let failure = change(&mut saved(), settings(&["--host", "h"])).unwrap_err();
        assert_eq!(failure.message, "--host is for MQTT, and this integration is of type HTTP");
    }
}
