//! ExplainTopic: who gets a message that is published to a topic, and by which filters. Nothing is published.

use tbmq_integration::entity::Document;
use tbmq_mqtt::topic::{self, Rules};
use tbmq_proto::{
    control::{
        ExplainTopicRequest, ExplainTopicResponse,
        explain_topic_response::{ClientMatch, IntegrationMatch},
    },
    node::{Match, node_reply::Reply, node_request},
};
use tonic::{Request, Status};

use super::{error, reach};
use crate::{plane::Plane, store::PAGE_ROWS_MAX};

/// Clients that one data plane names.
const CLIENTS_MAX: u32 = 1_000;

pub(super) async fn explain(
    plane: &Plane,
    request: Request<ExplainTopicRequest>,
) -> Result<ExplainTopicResponse, Status> {
    let until = reach::deadline(request.metadata());
    let topic = request.into_inner().topic;
    // How many levels a topic may have is the data planes' own setting.
    topic::check_name(&topic, &Rules::default())
        .map_err(|problem| error::invalid_field("topic", problem.to_string()))?;
    let wanted = || node_request::Request::Match(Match { topic: topic.clone(), limit: CLIENTS_MAX });
    let (integrations, answers) =
        tokio::try_join!(integrations(plane, &topic), reach::ask_all(plane, None, wanted, until))?;
    let silent_nodes = answers.silent_nodes();
    let mut clients = Vec::new();
    for (service_id, reply) in answers.replies {
        let Reply::Matches(list) = reply else { continue };
        clients.extend(list.matches.into_iter().map(|found| ClientMatch {
            service_id: service_id.clone(),
            client_id: found.client_id,
            filter: found.filter,
            qos: found.qos,
            share_name: found.share_name,
        }));
    }
    Ok(ExplainTopicResponse { integrations, clients, silent_nodes })
}

/// The integrations with a matching filter, by name.
async fn integrations(plane: &Plane, topic: &str) -> Result<Vec<IntegrationMatch>, Status> {
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let rows = plane.store.page_by_id(after, PAGE_ROWS_MAX / 4).await?;
        let Some(last) = rows.last() else { break };
        after = Some(last.id);
        for row in rows {
            let filters = Document::parse(&row.configuration)
                .map(|document| document.topic_filters)
                .unwrap_or_default();
            let filters: Vec<String> =
                filters.into_iter().filter(|filter| topic::matches(filter, topic)).collect();
            if !filters.is_empty() {
                found.push(IntegrationMatch {
                    name: format!("integrations/{}", row.id),
                    display_name: row.name,
                    enabled: row.enabled,
                    filters,
                });
            }
        }
    }
    found.sort_unstable_by(|one, other| one.display_name.cmp(&other.display_name));
    Ok(found)
}
