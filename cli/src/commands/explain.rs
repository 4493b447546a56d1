//! `tbmqctl explain TOPIC`.

use clap::Args;
use serde::Serialize;
use tbmq_proto::control::{ExplainTopicRequest, ExplainTopicResponse};

use crate::{
    client::Target,
    failure::Failure,
    render::{Output, note, table},
};

#[derive(Debug, Args)]
#[command(after_help = "\
Nothing is published. Of integrations each gets a message once, however many of its filters match; of a shared \
subscription one member of the group gets it.

Example:
  tbmqctl explain sensors/kitchen/temperature")]
pub(crate) struct Arguments {
    /// Name of a topic, without wildcards
    topic: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    topic: String,
    integrations: Vec<Integration>,
    clients: Vec<Client>,
    silent_nodes: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Integration {
    name: String,
    display_name: String,
    enabled: bool,
    filters: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Client {
    client_id: String,
    service_id: String,
    filter: String,
    qos: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    share_name: String,
}

pub(crate) async fn run(arguments: Arguments, target: &Target, output: Output) -> Result<(), Failure> {
    let topic = arguments.topic;
    let mut client = target.integrations().await?;
    let request = ExplainTopicRequest { topic: topic.clone() };
    let answer = client.explain_topic(target.request(request)).await?.into_inner();
    output.print(|| text(&topic, &answer), || view(&topic, answer.clone()))?;
    if !answer.silent_nodes.is_empty() {
        note(&format!(
            "clients of these nodes are missing, since they did not answer in time: {}",
            answer.silent_nodes.join(", ")
        ));
    }
    Ok(())
}

fn view(topic: &str, answer: ExplainTopicResponse) -> View {
    View {
        topic: topic.to_owned(),
        integrations: answer
            .integrations
            .into_iter()
            .map(|one| Integration {
                name: one.name,
                display_name: one.display_name,
                enabled: one.enabled,
                filters: one.filters,
            })
            .collect(),
        clients: answer
            .clients
            .into_iter()
            .map(|one| Client {
                client_id: one.client_id,
                service_id: one.service_id,
                filter: one.filter,
                qos: one.qos,
                share_name: one.share_name,
            })
            .collect(),
        silent_nodes: answer.silent_nodes,
    }
}

fn text(topic: &str, answer: &ExplainTopicResponse) -> String {
    if answer.integrations.is_empty() && answer.clients.is_empty() {
        return format!("nobody gets a message that is published to {topic}\n");
    }
    let mut text = String::new();
    if !answer.integrations.is_empty() {
        let rows = answer.integrations.iter().map(|one| {
            let enabled = if one.enabled { "yes" } else { "no, messages are kept" };
            vec![one.display_name.clone(), enabled.to_owned(), one.filters.join(", ")]
        });
        text += &table::table(&["INTEGRATION", "ENABLED", "FILTERS"], rows);
    }
    if !answer.clients.is_empty() {
        if !text.is_empty() {
            text.push('\n');
        }
        let rows = answer.clients.iter().map(|one| {
            let share = if one.share_name.is_empty() { "-" } else { &one.share_name };
            vec![
                one.client_id.clone(),
                one.filter.clone(),
                one.qos.to_string(),
                share.to_owned(),
                one.service_id.clone(),
            ]
        });
        text += &table::table(&["CLIENT", "FILTER", "QOS", "SHARED IN", "NODE"], rows);
    }
    text
}
