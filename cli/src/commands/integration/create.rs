//! `tbmqctl integration create`, and the flags that describe a whole integration.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use tbmq_proto::control::CreateIntegrationRequest;
use uuid::Uuid;

use super::{
    label, object, print_one,
    settings::{Settings, defaults},
};
use crate::{
    client::Target,
    document::Document,
    failure::Failure,
    progress,
    render::{Output, note},
};

#[derive(Debug, Args)]
pub(crate) struct CreateArguments {
    #[command(flatten)]
    source: Source,
    /// Uid of the new integration; chosen by the server when absent
    #[arg(long, value_name = "UUID", help_heading = None)]
    id: Option<Uuid>,
    /// Do everything but save
    #[arg(long, help_heading = None)]
    validate_only: bool,
}

/// Where a whole integration comes from.
#[derive(Debug, Args)]
pub(super) struct Source {
    /// JSON or YAML document, also as TBMQ exports it; `-` is stdin
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["name", "type", "filter", "client", "disabled", "description",
        "label", "settings"])]
    file: Option<PathBuf>,
    /// Name, unique among integrations
    #[arg(long)]
    name: Option<String>,
    /// HTTP, MQTT, KAFKA or any type that an executor serves; not needed with --url, --host or --bootstrap-servers
    #[arg(long, value_name = "TYPE")]
    r#type: Option<String>,
    /// Topic filter of the messages to deliver; may be repeated
    #[arg(long)]
    filter: Vec<String>,
    /// Whole clientConfiguration of any type, as JSON
    #[arg(long, value_name = "JSON", conflicts_with = "settings")]
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
    #[command(flatten)]
    settings: Settings,
}

impl Source {
    /// The integration that is described; without `needs_name`, one that is only tried out.
    pub(super) fn document(self, needs_name: bool) -> Result<Document, Failure> {
        if let Some(file) = self.file {
            return Document::read(&file);
        }
        let kind = self.r#type.as_ref().map(|kind| kind.to_ascii_uppercase());
        let kind = kind.or_else(|| self.settings.kind().map(str::to_owned));
        let mut missing = Vec::new();
        if self.name.is_none() && needs_name {
            missing.push("--name");
        }
        if self.filter.is_empty() && needs_name {
            missing.push("--filter");
        }
        match (&kind, &self.client) {
            (None, Some(_)) => missing.push("--type"),
            (None, None) => missing.push("--url, --host or --bootstrap-servers (or --type and --client)"),
            (Some(kind), None) => missing.extend(self.settings.missing(kind)),
            (Some(_), Some(_)) => {}
        }
        let (true, Some(kind)) = (missing.is_empty(), kind) else {
            return Err(Failure::usage(format!(
                "a file (-f) or these flags are missing: {}",
                missing.join(", ")
            )));
        };
        let client = if let Some(client) = &self.client {
            object(client, "--client")?
        } else {
            let mut client = defaults(&kind);
            self.settings.write(&kind, &mut client)?;
            Value::Object(client)
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

pub(super) async fn create(
    arguments: CreateArguments,
    target: &Target,
    output: Output,
) -> Result<(), Failure> {
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
    let call = client.create_integration(target.request(request));
    let created = progress::during("an executor validates it", call).await?.into_inner();
    if arguments.validate_only {
        note("valid; nothing was saved");
        return Ok(());
    }
    print_one(&created, output)
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

    fn document(arguments: &str) -> Result<Document, Failure> {
        let words: Vec<_> = arguments.split(' ').filter(|word| !word.is_empty()).collect();
        source(&words).document(true)
    }

    fn configuration(arguments: &str) -> (String, Value) {
        let document = document(arguments).unwrap();
        (document.kind, serde_json::from_str(&document.configuration_json).unwrap())
    }

    #[test]
    fn flags_make_an_http_integration_with_tbmqs_own_defaults() {
        let flags =
            "--name n --filter a/# --filter b --url http://h/x --header content-type:text/plain --label z=1";
        let document = document(flags).unwrap();
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
    fn flags_make_an_mqtt_integration() {
        let (kind, configuration) =
            configuration("--name n --filter a --host broker --tls --topic t --payload-only");
        let client = &configuration["clientConfiguration"];
        assert_eq!(
            (kind.as_str(), &client["host"], &client["port"]),
            ("MQTT", &"broker".into(), &1883.into())
        );
        assert_eq!((&client["topicName"], &client["useMsgTopicName"]), (&"t".into(), &false.into()));
        assert_eq!((&client["useMsgQoS"], &client["ssl"]), (&true.into(), &true.into()));
        assert_eq!(client["sendOnlyMsgPayload"], true);
        assert!(client["clientId"].as_str().unwrap().starts_with("tbmq_"), "{client}");
    }

    #[test]
    fn flags_make_a_kafka_integration() {
        let (kind, configuration) =
            configuration("--name n --filter a --bootstrap-servers k1:9092,k2:9092 --topic t --acks 1");
        let client = &configuration["clientConfiguration"];
        assert_eq!((kind.as_str(), &client["bootstrapServers"]), ("KAFKA", &"k1:9092,k2:9092".into()));
        assert_eq!(
            (&client["topic"], &client["acks"], &client["key"]),
            (&"t".into(), &"1".into(), &Value::Null)
        );
    }

    #[test]
    fn a_user_logs_in_with_the_password_of_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "p w\n").unwrap();
        let flags = format!(
            "--name n --filter a --url http://h --username u --password-file {}",
            file.path().display()
        );
        let (_, configuration) = configuration(&flags);
        let expected = json!({ "type": "basic", "username": "u", "password": "p w" });
        assert_eq!(configuration["clientConfiguration"]["credentials"], expected);
    }

    #[test]
    fn other_types_take_their_client_configuration_as_json() {
        let document = document(r#"--name n --type pulsar --filter a --client {"topic":"t"}"#).unwrap();
        assert_eq!(document.kind, "PULSAR");
        assert_eq!(
            document.configuration_json,
            r#"{"topicFilters":["a"],"clientConfiguration":{"topic":"t"}}"#
        );
    }

    #[test]
    fn missing_flags_are_named_together() {
        for (flags, missing) in [
            ("", "--name, --filter, --url, --host or --bootstrap-servers (or --type and --client)"),
            ("--name n --type kafka", "--filter, --bootstrap-servers, --topic"),
            ("--name n --filter a --type MQTT", "--host"),
            ("--name n --filter a --type PULSAR", "--client"),
            ("--name n --filter a --client {}", "--type"),
        ] {
            let failure = document(flags).unwrap_err();
            assert_eq!(failure.kind, ExitKind::Usage);
            assert!(failure.message.ends_with(&format!("missing: {missing}")), "{}", failure.message);
        }
    }

    #[test]
    fn flags_of_another_type_are_refused() {
        for (flags, problem) in [
            (
                "--type MQTT --host h --url http://x",
                "--url is for HTTP, and this integration is of type MQTT",
            ),
            (
                "--url http://x --topic t",
                "--topic is for MQTT and KAFKA, and this integration is of type HTTP",
            ),
            ("--type MQTT --client []", "--client is not a JSON object"),
        ] {
            let failure = document(&format!("--name n --filter a {flags}")).unwrap_err();
            assert_eq!((failure.kind, failure.message.as_str()), (ExitKind::Usage, problem));
        }
    }
}
