//! `KafkaService`: brokers, topics, consumer groups and their lag, as far as an operator of TBMQ needs them.

mod fresh;
mod groups;
mod owners;
mod topics;

use std::{collections::BTreeSet, sync::Arc};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use percent_encoding::{percent_decode_str, utf8_percent_encode};
use serde::{Serialize, de::DeserializeOwned};
use tbmq_bus::GroupState;
use tbmq_integration::entity::Violation;
use tbmq_proto::control::{
    Broker, Cluster, ConsumerGroup, DeleteConsumerGroupRequest, DeleteOrphanTopicsRequest,
    DeleteOrphanTopicsResponse, GetClusterRequest, GetConsumerGroupRequest, GetTopicRequest, GroupLag,
    ListConsumerGroupsRequest, ListConsumerGroupsResponse, ListGroupLagsRequest, ListGroupLagsResponse,
    ListTopicsRequest, ListTopicsResponse, Topic, TopicOwner, kafka_service_server::KafkaService,
};
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};

use self::{
    fresh::Fresh,
    groups::{Groups, TopicLag},
};
use super::{
    backlog::{Backlogs, PEEK_PATIENCE},
    blocked::ENCODED,
    error,
    integration::{parse_name, timestamp},
    page,
};
use crate::{access::audit, plane::Plane};

const TOPICS: &str = "topics/";
const GROUPS: &str = "consumerGroups/";

/// Bytes of a row in a list, about: names of topics and groups, a few settings.
const ROW_BYTES: usize = 1 << 10;

/// Topics that are deleted at the same time.
const DELETIONS: usize = 4;

/// Topics that one call may name.
const NAMES_MAX: usize = 1_000;

#[derive(Debug)]
pub(super) struct KafkaApi {
    plane: Arc<Plane>,
    cluster: Fresh<Cluster>,
    topics: Fresh<Vec<Topic>>,
    groups: Fresh<Groups>,
    /// When records that wait were written.
    backlogs: Backlogs,
}

#[tonic::async_trait]
impl KafkaService for KafkaApi {
    async fn get_cluster(&self, _request: Request<GetClusterRequest>) -> Result<Response<Cluster>, Status> {
        let plane = self.plane.clone();
        let cluster = self.cluster.get(|| look_at_cluster(plane)).await?;
        Ok(Response::new((*cluster).clone()))
    }

    async fn get_topic(&self, request: Request<GetTopicRequest>) -> Result<Response<Topic>, Status> {
        let name = &request.get_ref().name;
        let topic = parse_topic("name", name)?;
        let topics = self.topics().await?;
        let found = topics.binary_search_by(|one| one.topic.as_str().cmp(topic));
        let at = found.map_err(|_| error::absent("tbmq.control.v1.Topic", name))?;
        Ok(Response::new(topics[at].clone()))
    }

    async fn list_topics(
        &self,
        request: Request<ListTopicsRequest>,
    ) -> Result<Response<ListTopicsResponse>, Status> {
        let request = request.into_inner();
        let owner = TopicOwner::try_from(request.owner)
            .map_err(|_| invalid("owner", format!("{} is not an owner", request.owner)))?;
        let integration = match request.integration.as_str() {
            "" => String::new(),
            name => format!("integrations/{}", parse_name("integration", name)?),
        };
        let search = Search::new(&request.text_search);
        let question = format!("topics {:?} {owner:?} {integration:?}", request.text_search);
        let topics = self.topics().await?;
        let is_wanted = |topic: &&Topic| {
            (owner == TopicOwner::Unspecified || topic.owner() == owner)
                && (integration.is_empty() || topic.integration == integration)
                && search.finds([&topic.topic, &topic.integration_display_name])
        };
        let wanted: Vec<&Topic> = topics.iter().filter(is_wanted).collect();
        let (total_size, total_size_bytes) =
            (wanted.len() as i64, wanted.iter().map(|topic| topic.size_bytes).sum());
        let asked = (request.page_size, request.page_token.as_str());
        let (page, next_page_token) = cut(&wanted, asked, &question, |topic| topic.topic.clone())?;
        let without_partitions = |topic: &&Topic| Topic { partitions: Vec::new(), ..(*topic).clone() };
        let topics = page.iter().map(without_partitions).collect();
        Ok(Response::new(ListTopicsResponse { topics, next_page_token, total_size, total_size_bytes }))
    }

    async fn delete_orphan_topics(
        &self,
        request: Request<DeleteOrphanTopicsRequest>,
    ) -> Result<Response<DeleteOrphanTopicsResponse>, Status> {
        let request = request.into_inner();
        let named = request.names.iter().map(|name| parse_topic("names", name));
        let named: BTreeSet<&str> = named.collect::<Result<_, _>>()?;
        if named.len() > NAMES_MAX {
            return Err(invalid("names", format!("has more than {NAMES_MAX} topics")));
        }
        audit::note_resource(request.names.join(", "));
        if !self.plane.topic_deletion {
            let text = "topics may not be deleted: TB_KAFKA_ENABLE_TOPIC_DELETION is false";
            return Err(error::status(Code::FailedPrecondition, "TOPIC_DELETION_DISABLED", text));
        }
        // What is deleted for ever is not chosen by an answer of a second ago.
        let orphans = choose(topics::look(self.plane.clone()).await?, &named)?;
        if !request.validate_only {
            self.delete(&orphans).await?;
        }
        Ok(Response::new(DeleteOrphanTopicsResponse { topics: orphans }))
    }

    async fn get_consumer_group(
        &self,
        request: Request<GetConsumerGroupRequest>,
    ) -> Result<Response<ConsumerGroup>, Status> {
        let name = &request.get_ref().name;
        let id = parse_group(name)?;
        let seen = self.groups().await?;
        let found = seen.groups.iter().find(|group| group.group_id == id);
        let group = found.ok_or_else(|| error::absent("tbmq.control.v1.ConsumerGroup", name))?;
        Ok(Response::new(group.clone()))
    }

    async fn list_consumer_groups(
        &self,
        request: Request<ListConsumerGroupsRequest>,
    ) -> Result<Response<ListConsumerGroupsResponse>, Status> {
        let request = request.into_inner();
        let state = request.state.as_str();
        if !state.is_empty() && GroupState::ALL.iter().all(|known| known.name() != state) {
            let known = GroupState::ALL.map(GroupState::name).join(", ");
            return Err(invalid("state", format!("{state:?} is not a state; known are {known}")));
        }
        let search = Search::new(&request.text_search);
        let question = format!("groups {:?} {state:?} {}", request.text_search, request.system_only);
        let seen = self.groups().await?;
        let is_wanted = |group: &&ConsumerGroup| {
            (state.is_empty() || group.state == state)
                && (!request.system_only || group.system)
                && search.finds([&group.group_id])
        };
        let wanted: Vec<&ConsumerGroup> = seen.groups.iter().filter(is_wanted).collect();
        let total_size = wanted.len() as i64;
        let asked = (request.page_size, request.page_token.as_str());
        let (page, next_page_token) = cut(&wanted, asked, &question, |group| group.group_id.clone())?;
        let in_short = |group: &&ConsumerGroup| ConsumerGroup {
            members: Vec::new(),
            partitions: Vec::new(),
            ..(*group).clone()
        };
        let consumer_groups = page.iter().map(in_short).collect();
        Ok(Response::new(ListConsumerGroupsResponse { consumer_groups, next_page_token, total_size }))
    }

    async fn delete_consumer_group(
        &self,
        request: Request<DeleteConsumerGroupRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let id = parse_group(&request.name)?;
        audit::note_resource(&request.name);
        let absent = || error::absent("tbmq.control.v1.ConsumerGroup", &request.name);
        let in_use = |reason: &str| {
            let text = format!("group {id} can't be deleted: {reason}");
            error::status(Code::FailedPrecondition, "GROUP_IN_USE", text)
        };
        let groups = self.plane.admin.groups().await.map_err(bus_failure)?;
        let group = groups.iter().find(|group| group.name == id).ok_or_else(absent)?;
        let role = self.plane.catalogue.group_role_of(&id);
        let integrations = self.plane.store.names().await?.len();
        if let Some(reason) = groups::undeletable(&self.plane, group, role.as_ref(), integrations) {
            return Err(in_use(&reason));
        }
        if request.validate_only {
            return Ok(Response::new(()));
        }
        let deleted = self.plane.admin.delete_group(&id).await;
        self.groups.forget();
        match deleted {
            Ok(true) => {
                tracing::info!(group = id, "consumer group deleted");
                Ok(Response::new(()))
            }
            Ok(false) => Err(absent()),
            // Somebody has joined meanwhile.
            Err(tbmq_bus::Error::Refused(reason)) => Err(in_use(&reason)),
            Err(error) => Err(bus_failure(error)),
        }
    }

    async fn list_group_lags(
        &self,
        request: Request<ListGroupLagsRequest>,
    ) -> Result<Response<ListGroupLagsResponse>, Status> {
        let request = request.into_inner();
        let search = Search::new(&request.text_search);
        let question = format!("lags {:?} {}", request.text_search, request.messages_min);
        let seen = self.groups().await?;
        let is_wanted = |row: &&TopicLag| {
            let GroupLag { group_id, topic, integration_display_name, lag_messages, .. } = &row.lag;
            *lag_messages >= request.messages_min && search.finds([group_id, topic, integration_display_name])
        };
        let wanted: Vec<&TopicLag> = seen.lags.iter().filter(is_wanted).collect();
        let total_lag_messages = wanted.iter().map(|row| row.lag.lag_messages).fold(0, u64::saturating_add);
        let total_size = wanted.len() as i64;
        let place = |row: &TopicLag| (row.lag.group_id.clone(), row.lag.topic.clone());
        let asked = (request.page_size, request.page_token.as_str());
        let (page, next_page_token) = cut(&wanted, asked, &question, place)?;
        Ok(Response::new(ListGroupLagsResponse {
            group_lags: self.with_ages(&page, seen.at_ms).await,
            next_page_token,
            total_size,
            total_lag_messages,
            observe_time: Some(timestamp(seen.at_ms)),
        }))
    }
}

impl KafkaApi {
    pub(super) fn new(plane: Arc<Plane>) -> Self {
        Self {
            plane,
            cluster: Fresh::default(),
            topics: Fresh::default(),
            groups: Fresh::default(),
            backlogs: Backlogs::new(),
        }
    }

    async fn topics(&self) -> Result<Arc<Vec<Topic>>, Status> {
        let plane = self.plane.clone();
        self.topics.get(|| topics::look(plane)).await
    }

    async fn groups(&self) -> Result<Arc<Groups>, Status> {
        let plane = self.plane.clone();
        self.groups.get(|| groups::look(plane)).await
    }

    /// Deletes orphans. One whose integration has come meanwhile stays, and so do those after it.
    async fn delete(&self, orphans: &[Topic]) -> Result<(), Status> {
        let one = async |topic: &Topic| {
            let id = parse_name("names", &topic.integration)?;
            if self.plane.store.find(id).await?.is_some() {
                return Err(not_an_orphan(&topic.topic, TopicOwner::Integration));
            }
            self.plane.admin.delete_topic(&topic.topic).await.map_err(bus_failure)?;
            tracing::info!(topic = topic.topic, "orphan topic deleted");
            Ok(())
        };
        let deleted = stream::iter(orphans).map(one).buffer_unordered(DELETIONS).try_collect::<()>().await;
        self.topics.forget();
        self.groups.forget();
        deleted
    }

    /// Adds how long the oldest message of each row has waited, as far as it can be read in time.
    async fn with_ages(&self, rows: &[&TopicLag], now_ms: i64) -> Vec<GroupLag> {
        let fronts = rows.iter().flat_map(|row| &row.fronts).filter(|front| front.written_ms.is_none());
        let fronts = fronts.map(|front| (front.key.clone(), front.at.clone())).collect();
        let read = self.backlogs.peek(&self.plane, fronts, Instant::now() + PEEK_PATIENCE).await;
        let with_age = |row: &&TopicLag| {
            let times = row
                .fronts
                .iter()
                .filter_map(|front| front.written_ms.or_else(|| read.get(&front.key).copied()));
            let seconds = times.min().map(|at| now_ms.saturating_sub(at).max(0) as f64 / 1_000.0);
            GroupLag { lag_seconds: seconds, ..row.lag.clone() }
        };
        rows.iter().map(with_age).collect()
    }
}

async fn look_at_cluster(plane: Arc<Plane>) -> Result<Cluster, Status> {
    let cluster = plane.admin.cluster().await.map_err(bus_failure)?;
    let broker = |broker: tbmq_bus::BrokerInfo| Broker {
        id: broker.id,
        address: broker.address,
        rack: broker.rack,
        controller: broker.is_controller,
        size_bytes: broker.size_bytes,
    };
    Ok(Cluster {
        cluster_id: cluster.id,
        kind: cluster.kind.to_owned(),
        brokers: cluster.brokers.into_iter().map(broker).collect(),
        sizes_unknown_reason: cluster.sizes_unknown,
        topic_deletion_enabled: plane.topic_deletion,
    })
}

/// The orphans that are named, or all; without their partitions.
fn choose(topics: Vec<Topic>, named: &BTreeSet<&str>) -> Result<Vec<Topic>, Status> {
    let mut missing = named.clone();
    let mut orphans = Vec::new();
    for topic in topics {
        let is_named = missing.remove(topic.topic.as_str());
        if topic.owner() == TopicOwner::Orphan && (is_named || named.is_empty()) {
            orphans.push(Topic { partitions: Vec::new(), ..topic });
        } else if is_named {
            return Err(not_an_orphan(&topic.topic, topic.owner()));
        }
    }
    match missing.first() {
        Some(name) => Err(error::absent("tbmq.control.v1.Topic", &topic_name(name))),
        None => Ok(orphans),
    }
}

fn not_an_orphan(topic: &str, owner: TopicOwner) -> Status {
    let owner = match owner {
        TopicOwner::Integration => "an integration",
        TopicOwner::System => "TBMQ itself",
        TopicOwner::Kafka => "Kafka",
        _ => "somebody else",
    };
    let text = format!("topic {topic} is no orphan: it belongs to {owner}");
    error::status(Code::FailedPrecondition, "TOPIC_IN_USE", text)
}

/// What the bus says of a question or an order that it did not follow.
fn bus_failure(error: tbmq_bus::Error) -> Status {
    match error {
        tbmq_bus::Error::Refused(text) => error::status(Code::FailedPrecondition, "KAFKA_REFUSED", text),
        other => error::unavailable(other),
    }
}

fn invalid(field: &str, text: String) -> Status {
    error::invalid_because("INVALID_KAFKA_REQUEST", vec![Violation::new(field, text)])
}

fn topic_name(topic: &str) -> String {
    format!("{TOPICS}{topic}")
}

fn group_name(group: &str) -> String {
    format!("{GROUPS}{}", utf8_percent_encode(group, ENCODED))
}

/// Reads `topics/{topic}`.
fn parse_topic<'a>(field: &str, name: &'a str) -> Result<&'a str, Status> {
    let topic = name.strip_prefix(TOPICS).filter(|topic| !topic.is_empty());
    topic.ok_or_else(|| invalid(field, format!("{:?} is not {TOPICS}{{topic}}", short(name))))
}

/// Reads `consumerGroups/{group}`.
fn parse_group(name: &str) -> Result<String, Status> {
    let group = name.strip_prefix(GROUPS).and_then(|group| percent_decode_str(group).decode_utf8().ok());
    let group = group.filter(|group| !group.is_empty() && !group.contains('\0'));
    let text = || format!("{:?} is not {GROUPS}{{group}}, percent-encoded", short(name));
    group.map(std::borrow::Cow::into_owned).ok_or_else(|| invalid("name", text()))
}

fn short(text: &str) -> String {
    text.chars().take(200).collect()
}

/// A text that is looked for in upper or lower case.
struct Search(String);

impl Search {
    fn new(text: &str) -> Self {
        Self(text.to_lowercase())
    }

    fn finds<const N: usize>(&self, texts: [&String; N]) -> bool {
        self.0.is_empty() || texts.iter().any(|text| text.to_lowercase().contains(&self.0))
    }
}

/// The page of rows that was asked for, and the token of the next one. Rows stand in the order of their places.
fn cut<'a, T, P: Ord + Serialize + DeserializeOwned>(
    rows: &[&'a T],
    (size, token): (i32, &str),
    question: &str,
    place: impl Fn(&T) -> P,
) -> Result<(Vec<&'a T>, String), Status> {
    let size = page::size(size)?;
    let after: Option<P> = page::place(token, question)?;
    let begin = after.map_or(0, |after| rows.partition_point(|row| place(row) <= after));
    let mut page: Vec<&T> = rows[begin..].iter().take(size as usize + 1).copied().collect();
    let more = page::cut(&mut page, size, |_| ROW_BYTES);
    let next = match page.last() {
        Some(last) if more => page::token(&place(last), question),
        _ => String::new(),
    };
    Ok((page, next))
}
