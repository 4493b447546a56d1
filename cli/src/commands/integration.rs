//! `tbmqctl integration`.

mod watch;

use std::{collections::HashMap, num::NonZeroUsize, path::PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use tbmq_proto::control::{
    CheckConnectionRequest, CreateIntegrationRequest, DeleteIntegrationRequest, DisableIntegrationRequest,
    EnableIntegrationRequest, GetIntegrationRequest, Integration, ListKindsRequest,
    RestartIntegrationRequest, UpdateIntegrationRequest,
    integration_service_client::IntegrationServiceClient,
};
use tonic::transport::Channel;
use uuid::Uuid;

use crate::{
    client::Target,
    document::Document,
    failure::Failure,
    render::{Output, json as view, note, table},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create an integration, from a file or from flags; an executor validates it first
    #[command(
        after_help = "Examples:\n  tbmqctl integration create -f http.json\n  tbmqctl integration create \
                            --name demo --filter 'sensors/#' --url http://127.0.0.1:8099/in"
    )]
    Create(CreateArguments),
    /// Show one integration
    Get(One),
    /// List integrations
    List(ListArguments),
    /// Change an integration: all of it from a file, or what flags name
    #[command(
        after_help = "Examples:\n  tbmqctl integration get demo -o json > demo.json   # edit it, then\n  \
                            tbmqctl integration update -f demo.json\n  tbmqctl integration update demo --filter 'a/#'"
    )]
    Update(UpdateArguments),
    /// Delete integrations with the messages that they have not delivered
    Delete(Many),
    /// Start to deliver, beginning with what was kept
    Enable(Many),
    /// Stop to deliver; matching messages are kept
    Disable(Many),
    /// Stop and start running integrations anew
    Restart(Many),
    /// Have an executor connect to the external system; nothing is saved
    Check(CheckArguments),
    /// Show changes of integrations and of their status as they happen
    #[command(
        after_help = "With -o json each change is one line; BOOKMARK lines say where --after-revision may go on."
    )]
    Watch(watch::Arguments),
    /// List the types of integrations, with their JSON Schemas in -o json
    Kinds,
}

#[derive(Debug, Args)]
pub(crate) struct One {
    /// Name or uid
    integration: String,
}

#[derive(Debug, Args)]
pub(crate) struct Many {
    /// Names or uids
    #[arg(required = true, value_name = "INTEGRATION")]
    integrations: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Only those whose name contains this text, in upper or lower case
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value = "1000")]
    limit: NonZeroUsize,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArguments {
    #[command(flatten)]
    source: Source,
    /// Uid of the new integration; chosen by the server when absent
    #[arg(long, value_name = "UUID")]
    id: Option<Uuid>,
    /// Do everything but save
    #[arg(long)]
    validate_only: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArguments {
    /// Name or uid of a saved integration
    #[arg(conflicts_with_all = ["file", "name", "filter", "url", "client"])]
    integration: Option<String>,
    #[command(flatten)]
    source: Source,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateArguments {
    /// Name or uid; not needed with a file that has a uid or the name
    integration: Option<String>,
    /// JSON or YAML document that replaces all of it; `-` is stdin
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["name", "filter", "url", "client", "description", "label"])]
    file: Option<PathBuf>,
    /// New name
    #[arg(long)]
    name: Option<String>,
    /// New topic filters instead of all it has; may be repeated
    #[arg(long)]
    filter: Vec<String>,
    /// New target of an HTTP integration
    #[arg(long)]
    url: Option<String>,
    /// New clientConfiguration, as JSON
    #[arg(long, value_name = "JSON", conflicts_with = "url")]
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
}

/// Where a whole integration comes from.
#[derive(Debug, Args)]
struct Source {
    /// JSON or YAML document, also as TBMQ exports it; `-` is stdin
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["name", "type", "filter", "url", "client", "method", "header",
        "payload", "payload_only", "disabled", "description", "label"])]
    file: Option<PathBuf>,
    /// Name, unique among integrations
    #[arg(long)]
    name: Option<String>,
    /// HTTP, MQTT, KAFKA or any type that an executor serves; HTTP is assumed with --url
    #[arg(long, value_name = "TYPE")]
    r#type: Option<String>,
    /// Topic filter of the messages to deliver; may be repeated
    #[arg(long)]
    filter: Vec<String>,
    /// Target of an HTTP integration
    #[arg(long)]
    url: Option<String>,
    /// Method of its requests
    #[arg(long, default_value = "POST")]
    method: String,
    /// Header of its requests; may be repeated
    #[arg(long, value_name = "NAME: VALUE", value_parser = header)]
    header: Vec<(String, String)>,
    /// How a message's payload appears in its requests
    #[arg(long, value_enum, default_value_t = Payload::Json)]
    payload: Payload,
    /// Send the payload alone, without topic, client id, time, ...
    #[arg(long)]
    payload_only: bool,
    /// Whole clientConfiguration of any type, as JSON
    #[arg(long, value_name = "JSON", conflicts_with = "url")]
    client: Option<String>,
    /// Keep messages but do not deliver them yet
    #[arg(long)]
    disabled: bool,
    /// Description
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Label; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Payload {
    /// As JSON; what is not JSON goes as base64
    Json,
    /// As text
    Text,
    /// As base64
    Binary,
}

impl Source {
    fn document(self, needs_name: bool) -> Result<Document, Failure> {
        if let Some(file) = self.file {
            return Document::read(&file);
        }
        let mut missing = Vec::new();
        if self.name.is_none() && needs_name {
            missing.push("--name");
        }
        if self.filter.is_empty() && needs_name {
            missing.push("--filter");
        }
        if self.url.is_none() && self.client.is_none() {
            missing.push("--url (or --client)");
        }
        if self.client.is_some() && self.r#type.is_none() {
            missing.push("--type");
        }
        if !missing.is_empty() {
            return Err(Failure::usage(format!(
                "a file (-f) or these flags are missing: {}",
                missing.join(", ")
            )));
        }
        let kind = self.r#type.unwrap_or_else(|| "HTTP".to_owned()).to_ascii_uppercase();
        let client = match (&self.url, &self.client) {
            (Some(url), _) if kind == "HTTP" => {
                let mut headers = serde_json::Map::new();
                headers.insert("Content-Type".to_owned(), "application/json".into());
                for (name, value) in self.header {
                    headers.retain(|held, _| !held.eq_ignore_ascii_case(&name));
                    headers.insert(name, value.into());
                }
                let payload = match self.payload {
                    Payload::Json => "JSON",
                    Payload::Text => "TEXT",
                    Payload::Binary => "BINARY",
                };
                // TBMQ's own form fills in the same (spec §6.3.1).
                json!({
                    "restEndpointUrl": url,
                    "requestMethod": self.method,
                    "headers": headers,
                    "credentials": { "type": "anonymous" },
                    "sendOnlyMsgPayload": self.payload_only,
                    "payloadContentType": payload,
                    "sendBinaryOnParseFailure": true,
                    "readTimeoutMs": 0,
                    "maxParallelRequestsCount": 0,
                    "maxInMemoryBufferSizeInKb": 256,
                })
            }
            (Some(_), _) => {
                return Err(Failure::usage(format!("--url is for HTTP; give a {kind} integration --client")));
            }
            (None, Some(client)) => object(client, "--client")?,
            (None, None) => return Err(Failure::bug("neither --url nor --client")),
        };
        Ok(Document {
            uid: None,
            etag: String::new(),
            display_name: self.name.unwrap_or_default(),
            kind,
            enabled: !self.disabled,
            configuration_json: json!({ "topicFilters": self.filter, "clientConfiguration": client })
                .to_string(),
            labels: self.label.into_iter().collect(),
            description: self.description.unwrap_or_default(),
        })
    }
}

pub(crate) async fn run(command: Command, target: &Target, output: Output) -> Result<(), Failure> {
    match command {
        Command::Create(arguments) => create(arguments, target, output).await,
        Command::Get(One { integration }) => {
            let mut client = target.integrations().await?;
            let found = get(target, &mut client, &integration).await?;
            output.print(|| table::integration(&found), || view::Integration::from(&found))
        }
        Command::List(arguments) => {
            let mut client = target.integrations().await?;
            let search = arguments.search.unwrap_or_default();
            let all = target.list(&mut client, &search, arguments.limit.get()).await?;
            print_all(&all, output)
        }
        Command::Update(arguments) => update(arguments, target, output).await,
        Command::Delete(Many { integrations }) => {
            let mut client = target.integrations().await?;
            for given in integrations {
                let name = target.name_of(&mut client, &given).await?;
                let request = DeleteIntegrationRequest {
                    name,
                    request_id: Uuid::now_v7().to_string(),
                    ..Default::default()
                };
                client.delete_integration(target.request(request)).await?;
                note(&format!("deleted {given}"));
            }
            Ok(())
        }
        Command::Enable(many) => {
            each(many, target, output, async |client, name| {
                let request_id = Uuid::now_v7().to_string();
                let request = EnableIntegrationRequest { name, request_id, ..Default::default() };
                client.enable_integration(target.request(request)).await
            })
            .await
        }
        Command::Disable(many) => {
            each(many, target, output, async |client, name| {
                let request_id = Uuid::now_v7().to_string();
                let request = DisableIntegrationRequest { name, request_id, ..Default::default() };
                client.disable_integration(target.request(request)).await
            })
            .await
        }
        Command::Restart(many) => {
            each(many, target, output, async |client, name| {
                client
                    .restart_integration(
                        target.request(RestartIntegrationRequest { name, ..Default::default() }),
                    )
                    .await
            })
            .await
        }
        Command::Check(arguments) => check(arguments, target, output).await,
        Command::Watch(arguments) => watch::run(arguments, target, output).await,
        Command::Kinds => {
            let mut client = target.integrations().await?;
            let kinds = client.list_kinds(target.request(ListKindsRequest {})).await?.into_inner().kinds;
            output.print(|| table::kinds(&kinds), || kinds.iter().map(view::Kind::from).collect::<Vec<_>>())
        }
    }
}

async fn create(arguments: CreateArguments, target: &Target, output: Output) -> Result<(), Failure> {
    let document = arguments.source.document(true)?;
    let integration_id = arguments.id.or(document.uid).map(|uid| uid.to_string()).unwrap_or_default();
    let mut integration = document.into_integration();
    // These say which one it was where the document was printed.
    integration.name.clear();
    integration.etag.clear();
    let request = CreateIntegrationRequest {
        integration: Some(integration),
        integration_id,
        validate_only: arguments.validate_only,
        // So that a call that is sent twice creates one.
        request_id: Uuid::now_v7().to_string(),
    };
    let mut client = target.integrations().await?;
    let created = client.create_integration(target.request(request)).await?.into_inner();
    if arguments.validate_only {
        note("valid; nothing was saved");
        return Ok(());
    }
    print_one(&created, output)
}

async fn update(arguments: UpdateArguments, target: &Target, output: Output) -> Result<(), Failure> {
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
            url: arguments.url,
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
    let updated = client.update_integration(target.request(request)).await?.into_inner();
    if arguments.validate_only {
        note("valid; nothing was saved");
        return Ok(());
    }
    print_one(&updated, output)
}

struct Changes {
    name: Option<String>,
    filters: Vec<String>,
    url: Option<String>,
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
    if !changes.filters.is_empty() || changes.url.is_some() || changes.client.is_some() {
        let mut configuration = object(&integration.configuration_json, "the saved configuration")?;
        if !changes.filters.is_empty() {
            configuration["topicFilters"] = changes.filters.into();
        }
        if let Some(url) = changes.url {
            if integration.r#type != "HTTP" {
                return Err(Failure::usage(format!(
                    "--url is for HTTP; give a {} integration --client",
                    integration.r#type
                )));
            }
            if !configuration["clientConfiguration"].is_object() {
                configuration["clientConfiguration"] = json!({});
            }
            configuration["clientConfiguration"]["restEndpointUrl"] = url.into();
        }
        if let Some(client) = changes.client {
            configuration["clientConfiguration"] = object(&client, "--client")?;
        }
        integration.configuration_json = configuration.to_string();
        paths.push("configuration_json".to_owned());
    }
    if paths.is_empty() {
        return Err(Failure::usage("nothing to change: give a file (-f) or a flag such as --filter"));
    }
    Ok(paths)
}

async fn check(arguments: CheckArguments, target: &Target, output: Output) -> Result<(), Failure> {
    let mut client = target.integrations().await?;
    let request = if let Some(given) = arguments.integration {
        CheckConnectionRequest { name: target.name_of(&mut client, &given).await?, integration: None }
    } else {
        let integration = arguments.source.document(false)?.into_integration();
        CheckConnectionRequest { name: String::new(), integration: Some(integration) }
    };
    let answer = client.check_connection(target.request(request)).await?.into_inner();
    output.print(|| table::check(&answer), || view::Check::from(&answer))?;
    if answer.ok {
        return Ok(());
    }
    let mut failure =
        Failure::refused(if answer.error.is_empty() { "the check failed" } else { &answer.error });
    failure.violations = answer.violations.into_iter().map(|found| (found.path, found.text)).collect();
    Err(failure)
}

async fn get(
    target: &Target,
    client: &mut IntegrationServiceClient<Channel>,
    given: &str,
) -> Result<Integration, Failure> {
    let name = target.name_of(client, given).await?;
    Ok(client
        .get_integration(target.request(GetIntegrationRequest { name, ..Default::default() }))
        .await?
        .into_inner())
}

async fn each(
    Many { integrations }: Many,
    target: &Target,
    output: Output,
    call: impl AsyncFn(
        &mut IntegrationServiceClient<Channel>,
        String,
    ) -> Result<tonic::Response<Integration>, tonic::Status>,
) -> Result<(), Failure> {
    let mut client = target.integrations().await?;
    let mut done = Vec::new();
    let mut failed = None;
    for given in integrations {
        let answer = match target.name_of(&mut client, &given).await {
            Ok(name) => call(&mut client, name).await.map_err(Failure::from),
            Err(failure) => Err(failure),
        };
        match answer {
            Ok(answer) => done.push(answer.into_inner()),
            Err(failure) => {
                failed = Some(failure);
                break;
            }
        }
    }
    // What was done is shown even when a later one failed.
    if !done.is_empty() {
        print_all(&done, output)?;
    }
    failed.map_or(Ok(()), Err)
}

fn print_one(one: &Integration, output: Output) -> Result<(), Failure> {
    output.print(|| table::integrations(std::slice::from_ref(one)), || view::Integration::from(one))
}

fn print_all(all: &[Integration], output: Output) -> Result<(), Failure> {
    output.print(|| table::integrations(all), || all.iter().map(view::Integration::from).collect::<Vec<_>>())
}

fn object(text: &str, what: &str) -> Result<Value, Failure> {
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(Failure::usage(format!("{what} is not a JSON object"))),
        Err(error) => Err(Failure::usage(format!("{what} is not JSON: {error}"))),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not KEY=VALUE"))?;
    if key.is_empty() { Err("the key is empty".to_owned()) } else { Ok((key.to_owned(), value.to_owned())) }
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or_else(|| format!("{text:?} is not \"NAME: VALUE\""))?;
    if name.trim().is_empty() {
        return Err("the name is empty".to_owned());
    }
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::failure::ExitKind;

    #[derive(Debug, Parser)]
    struct Arguments {
        #[command(flatten)]
        source: Source,
    }

    fn source(arguments: &[&str]) -> Source {
        Arguments::try_parse_from(["x"].iter().chain(arguments)).unwrap().source
    }

    #[test]
    fn flags_make_an_http_integration_with_tbmqs_own_defaults() {
        let flags = [
            "--name",
            "n",
            "--filter",
            "a/#",
            "--filter",
            "b",
            "--url",
            "http://h/x",
            "--header",
            "content-type: text/plain",
            "--label",
            "z=1",
        ];
        let document = source(&flags).document(true).unwrap();
        assert_eq!(
            (document.display_name.as_str(), document.kind.as_str(), document.enabled),
            ("n", "HTTP", true)
        );
        assert_eq!(document.labels["z"], "1");
        let configuration: Value = serde_json::from_str(&document.configuration_json).unwrap();
        assert_eq!(configuration["topicFilters"], json!(["a/#", "b"]));
        let client = &configuration["clientConfiguration"];
        assert_eq!(client["restEndpointUrl"], "http://h/x");
        assert_eq!(client["headers"], json!({ "content-type": "text/plain" }));
        assert_eq!(client["maxInMemoryBufferSizeInKb"], 256);
    }

    #[test]
    fn other_types_take_their_client_configuration_as_json() {
        let document =
            source(&["--name", "n", "--type", "kafka", "--filter", "a", "--client", r#"{"topic":"t"}"#])
                .document(true)
                .unwrap();
        assert_eq!(document.kind, "KAFKA");
        assert_eq!(
            document.configuration_json,
            r#"{"topicFilters":["a"],"clientConfiguration":{"topic":"t"}}"#
        );
    }

    #[test]
    fn missing_flags_are_named_together() {
        let failure = source(&[]).document(true).unwrap_err();
        assert_eq!(failure.kind, ExitKind::Usage);
        assert!(failure.message.ends_with("--name, --filter, --url (or --client)"), "{}", failure.message);
        for wrong in [
            &["--name", "n", "--type", "MQTT", "--filter", "a", "--url", "http://x"][..],
            &["--name", "n", "--type", "MQTT", "--filter", "a", "--client", "[]"],
        ] {
            assert_eq!(source(wrong).document(true).unwrap_err().kind, ExitKind::Usage);
        }
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

    fn nothing() -> Changes {
        Changes {
            name: None,
            filters: vec![],
            url: None,
            client: None,
            description: None,
            labels: HashMap::new(),
        }
    }

    #[test]
    fn a_change_writes_only_the_fields_that_it_names() {
        let mut integration = saved();
        let paths =
            change(&mut integration, Changes { url: Some("http://b".to_owned()), ..nothing() }).unwrap();
        assert_eq!(paths, ["configuration_json"]);
        assert_eq!(
            integration.configuration_json,
            r#"{"topicFilters":["a"],"x":1,"clientConfiguration":{"restEndpointUrl":"http://b","y":2}}"#
        );
        let paths = change(&mut integration, Changes { name: Some("m".to_owned()), ..nothing() }).unwrap();
        assert_eq!(paths, ["display_name"]);
        assert_eq!(change(&mut integration, nothing()).unwrap_err().kind, ExitKind::Usage);
    }
}
