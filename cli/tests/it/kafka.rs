//! Brokers, topics, groups and lags of a control plane in memory: what is asked, deleted, and shown again and again.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
    sync::Arc,
};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tbmq_proto::control::{
    Broker, Cluster, ConsumerGroup, DeleteConsumerGroupRequest, DeleteOrphanTopicsRequest,
    DeleteOrphanTopicsResponse, GetClusterRequest, GetConsumerGroupRequest, GetTopicRequest, GroupLag,
    ListConsumerGroupsRequest, ListConsumerGroupsResponse, ListGroupLagsRequest, ListGroupLagsResponse,
    ListTopicsRequest, ListTopicsResponse, Topic, TopicOwner, TopicPartition,
    consumer_group::{Assignment, Member, PartitionLag},
    kafka_service_server::KafkaService,
};
use tonic::{Code, Request, Response, Status};

use crate::{
    fake::{at, page, refusal, serve, stdout},
    stderr,
    terminal::{Terminal, command},
};

const ORPHAN: &str = "tbmq.msg.ie.0e2ffa8e-52c9-4a3f-8d0f-0000000000ff";
const GROUP: &str = "ie-msg-consumer-group";

/// Clones share what they hold.
#[derive(Clone, Default)]
pub(crate) struct KafkaFake {
    listed: Arc<Mutex<Vec<ListTopicsRequest>>>,
    lags: Arc<Mutex<Vec<ListGroupLagsRequest>>>,
    pub(crate) orphans: Arc<Mutex<Vec<DeleteOrphanTopicsRequest>>>,
    groups: Arc<Mutex<Vec<DeleteConsumerGroupRequest>>>,
    is_away: Arc<Mutex<bool>>,
}

fn topic(name: &str, owner: TopicOwner) -> Topic {
    Topic {
        name: format!("topics/{name}"),
        topic: name.to_owned(),
        topic_id: "AAAA".to_owned(),
        partition_count: 1,
        replication_factor: 1,
        size_bytes: Some(123_456),
        configs: [("cleanup.policy", "delete"), ("retention.ms", "604800000")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        owner: owner.into(),
        ..Topic::default()
    }
}

fn topics() -> Vec<Topic> {
    let uplink = Topic {
        partition_count: 6,
        replication_factor: 3,
        under_replicated_count: 2,
        size_bytes: None,
        purpose: "events of executors".to_owned(),
        ..topic("tbmq.ie.uplink", TopicOwner::System)
    };
    let messages = Topic {
        purpose: "messages of an integration".to_owned(),
        integration: "integrations/0e2ffa8e-52c9-4a3f-8d0f-000000000001".to_owned(),
        integration_display_name: "sensors".to_owned(),
        partitions: vec![TopicPartition {
            partition: 0,
            leader: Some(1),
            replicas: vec![1, 2],
            in_sync_replicas: vec![1],
            size_bytes: Some(123_456),
        }],
        ..topic("tbmq.msg.ie.0e2ffa8e-52c9-4a3f-8d0f-000000000001", TopicOwner::Integration)
    };
    let integration = ORPHAN.replace("tbmq.msg.ie.", "integrations/");
    let orphan = Topic { integration, ..topic(ORPHAN, TopicOwner::Orphan) };
    vec![topic("orders", TopicOwner::Foreign), uplink, messages, orphan]
}

fn groups() -> Vec<ConsumerGroup> {
    let messages = ConsumerGroup {
        name: format!("consumerGroups/{GROUP}"),
        group_id: GROUP.to_owned(),
        state: "EMPTY".to_owned(),
        coordinator: Some(1),
        lag_messages: 12,
        system: true,
        purpose: "how far executors have delivered the messages of integrations".to_owned(),
        undeletable_reason: "it holds how far 1 integration was delivered".to_owned(),
        partitions: vec![PartitionLag {
            topic: topics()[2].topic.clone(),
            partition: 0,
            committed_offset: Some(30),
            start_offset: 0,
            end_offset: 42,
            lag_messages: 12,
            client_id: String::new(),
        }],
        ..ConsumerGroup::default()
    };
    let billing = ConsumerGroup {
        name: "consumerGroups/a%2Fb".to_owned(),
        group_id: "a/b".to_owned(),
        state: "STABLE".to_owned(),
        assignor: "range".to_owned(),
        member_count: 1,
        members: vec![Member {
            member_id: "m-1".to_owned(),
            client_id: "billing-1".to_owned(),
            host: "10.0.0.7".to_owned(),
            assignments: vec![Assignment { topic: "orders".to_owned(), partitions: vec![0, 1] }],
            ..Member::default()
        }],
        ..ConsumerGroup::default()
    };
    vec![billing, messages]
}

fn lags() -> Vec<GroupLag> {
    let lag = |topic: &str, lag_messages, lag_seconds, integration: &str| GroupLag {
        group_id: GROUP.to_owned(),
        topic: topic.to_owned(),
        lag_messages,
        lag_seconds,
        integration: if integration.is_empty() { String::new() } else { "integrations/1".to_owned() },
        integration_display_name: integration.to_owned(),
    };
    vec![
        lag("orders", 0, None, ""),
        lag("quiet", 3, None, ""),
        lag(&topics()[2].topic, 12, Some(1.5), "sensors"),
    ]
}

fn absent() -> Status {
    refusal(Code::NotFound, "no such thing", "NOT_FOUND", vec![])
}

#[tonic::async_trait]
impl KafkaService for KafkaFake {
    async fn get_cluster(&self, _request: Request<GetClusterRequest>) -> Result<Response<Cluster>, Status> {
        let broker = |id, size_bytes| Broker {
            id,
            address: format!("kafka-{id}:9092"),
            rack: "eu-1a".to_owned(),
            controller: id == 1,
            size_bytes,
        };
        Ok(Response::new(Cluster {
            cluster_id: "5L6g3nShT-eMCtK--X86sw".to_owned(),
            kind: "KAFKA".to_owned(),
            brokers: vec![broker(1, Some(5 << 30)), broker(2, None)],
            sizes_unknown_reason: "broker 2 is away".to_owned(),
            topic_deletion_enabled: true,
        }))
    }

    async fn get_topic(&self, request: Request<GetTopicRequest>) -> Result<Response<Topic>, Status> {
        let name = request.into_inner().name;
        topics().into_iter().find(|topic| topic.name == name).map(Response::new).ok_or_else(absent)
    }

    async fn list_topics(
        &self,
        request: Request<ListTopicsRequest>,
    ) -> Result<Response<ListTopicsResponse>, Status> {
        let request = request.into_inner();
        let mut found = topics();
        for topic in &mut found {
            topic.partitions.clear();
        }
        found.retain(|topic| {
            (request.owner() == TopicOwner::Unspecified || topic.owner() == request.owner())
                && topic.topic.contains(&request.text_search)
        });
        let total_size = found.len() as i64;
        let total_size_bytes = found.iter().map(|topic| topic.size_bytes).sum();
        let (topics, next_page_token) = page(found, &request.page_token);
        self.listed.lock().push(request);
        Ok(Response::new(ListTopicsResponse { topics, next_page_token, total_size, total_size_bytes }))
    }

    async fn delete_orphan_topics(
        &self,
        request: Request<DeleteOrphanTopicsRequest>,
    ) -> Result<Response<DeleteOrphanTopicsResponse>, Status> {
        let request = request.into_inner();
        let topics: Vec<Topic> =
            topics().into_iter().filter(|topic| topic.owner() == TopicOwner::Orphan).collect();
        if request.names.iter().any(|name| topics.iter().all(|topic| topic.name != *name)) {
            return Err(refusal(Code::FailedPrecondition, "it is no orphan", "TOPIC_IN_USE", vec![]));
        }
        self.orphans.lock().push(request);
        Ok(Response::new(DeleteOrphanTopicsResponse { topics }))
    }

    async fn get_consumer_group(
        &self,
        request: Request<GetConsumerGroupRequest>,
    ) -> Result<Response<ConsumerGroup>, Status> {
        let name = request.into_inner().name.replace("%2D", "-");
        groups().into_iter().find(|group| group.name == name).map(Response::new).ok_or_else(absent)
    }

    async fn list_consumer_groups(
        &self,
        request: Request<ListConsumerGroupsRequest>,
    ) -> Result<Response<ListConsumerGroupsResponse>, Status> {
        let request = request.into_inner();
        let mut found = groups();
        found.retain(|group| request.state.is_empty() || group.state == request.state);
        for group in &mut found {
            group.members.clear();
            group.partitions.clear();
        }
        let total_size = found.len() as i64;
        let (consumer_groups, next_page_token) = page(found, &request.page_token);
        Ok(Response::new(ListConsumerGroupsResponse { consumer_groups, next_page_token, total_size }))
    }

    async fn delete_consumer_group(
        &self,
        request: Request<DeleteConsumerGroupRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        if request.name.ends_with("group") {
            return Err(refusal(Code::FailedPrecondition, "it has 2 members", "GROUP_IN_USE", vec![]));
        }
        self.groups.lock().push(request);
        Ok(Response::new(()))
    }

    async fn list_group_lags(
        &self,
        request: Request<ListGroupLagsRequest>,
    ) -> Result<Response<ListGroupLagsResponse>, Status> {
        let request = request.into_inner();
        let mut found = lags();
        found.retain(|lag| lag.lag_messages >= request.messages_min);
        let total_size = found.len() as i64;
        let total_lag_messages = found.iter().map(|lag| lag.lag_messages).sum();
        let (group_lags, next_page_token) = page(found, &request.page_token);
        self.lags.lock().push(request);
        if *self.is_away.lock() {
            return Err(refusal(Code::Unavailable, "Kafka is away", "DEPENDENCY_UNAVAILABLE", vec![]));
        }
        let observe_time = at(0);
        Ok(Response::new(ListGroupLagsResponse {
            group_lags,
            next_page_token,
            total_size,
            total_lag_messages,
            observe_time,
        }))
    }
}

#[test]
fn lists_are_asked_for_as_told_and_the_greatest_lag_comes_first() {
    let served = serve();
    let output = served.run(&["kafka", "topics", "--owner", "orphan", "--search", "msg", "-o", "name"]);
    assert_eq!(stdout(&output), format!("{ORPHAN}\n"), "{}", stderr(&output));
    let asked = served.kafka.listed.lock().remove(0);
    assert_eq!((asked.owner(), asked.text_search.as_str()), (TopicOwner::Orphan, "msg"));
    let output = served.run(&["kafka", "lag", "-o", "name"]);
    assert_eq!(stdout(&output).lines().collect::<Vec<_>>(), [topics()[2].topic.as_str(), "quiet", "orders"]);
    assert_eq!(served.kafka.lags.lock().last().unwrap().messages_min, 0);
    let output = served.run(&["kafka", "lag", "--waiting", "--limit", "1", "-o", "name"]);
    assert_eq!(stdout(&output).lines().count(), 1);
    assert!(stderr(&output).contains("there are more than these 1"), "{}", stderr(&output));
    assert_eq!(served.kafka.lags.lock().last().unwrap().messages_min, 1);
}

#[test]
fn what_is_deleted_is_what_was_shown() {
    let served = serve();
    let nobody = served.run(&["kafka", "delete-orphans"]);
    assert_eq!(nobody.status.code(), Some(2), "{}", stderr(&nobody));
    assert!(served.kafka.orphans.lock().iter().all(|request| request.validate_only));
    let output = served.run(&["kafka", "delete-orphans", "--dry-run"]);
    assert!(stdout(&output).contains(ORPHAN), "{}", stderr(&output));
    assert!(served.kafka.orphans.lock().iter().all(|request| request.validate_only));
    let output = served.run(&["kafka", "delete-orphans", "--yes"]);
    assert!(stderr(&output).contains("deleted 1 topic"), "{}", stderr(&output));
    let last = served.kafka.orphans.lock().last().cloned().unwrap();
    assert!(!last.validate_only && last.names == [format!("topics/{ORPHAN}")], "{last:?}");
    let refused = served.run(&["kafka", "delete-orphans", "orders", "--yes"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("reason: TOPIC_IN_USE"), "{}", stderr(&refused));

    let output = served.run(&["kafka", "delete-group", "a/b c", "--yes"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let asked = std::mem::take(&mut *served.kafka.groups.lock());
    let asked: Vec<_> = asked.iter().map(|one| (one.name.as_str(), one.validate_only)).collect();
    assert_eq!(asked, [("consumerGroups/a%2Fb%20c", true), ("consumerGroups/a%2Fb%20c", false)]);
    let refused = served.run(&["kafka", "delete-group", "x", "my-group", "--yes"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(served.kafka.groups.lock().iter().all(|one| one.validate_only), "none was deleted");
}

#[test]
fn a_deletion_is_asked_for() {
    for (answer, code, deleted) in [("n\n", 2, 0), ("y\n", 0, 1)] {
        let served = serve();
        let mut terminal = Terminal::start(command(&served, &["kafka", "delete-orphans"]));
        terminal.wait_for("Delete this topic with all it holds? [y/N] ");
        terminal.type_in(answer);
        let (shown, status) = terminal.end();
        assert_eq!(status.code(), Some(code), "{answer:?}: {shown:?}");
        let orphans = served.kafka.orphans.lock();
        assert_eq!(orphans.iter().filter(|request| !request.validate_only).count(), deleted, "{answer:?}");
    }
}

#[test]
fn lags_are_watched_on_a_screen_and_block_after_block_elsewhere() {
    let served = serve();
    let watch = ["kafka", "lag", "--watch", "--interval", "200ms"];
    let mut terminal = Terminal::start(command(&served, &watch));
    terminal.wait_for("\u{1b}[?1049h");
    terminal.wait_for("15 messages wait in 3 topics");
    terminal.wait_for("sensors");
    *served.kafka.is_away.lock() = true;
    terminal.wait_for("Kafka is away");
    *served.kafka.is_away.lock() = false;
    let looks = served.kafka.lags.lock().len();
    while served.kafka.lags.lock().len() < looks + 6 {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let (shown, status) = terminal.interrupt();
    assert_eq!(status.code(), Some(0), "{shown:?}");
    assert!(shown.ends_with("\u{1b}[?1049l"), "{shown:?}");

    for (form, expected) in [("json", "[{\"groupId\""), ("table", "15 messages wait in 3 topics at ")] {
        let mut program = command(&served, &[&watch[..], &["-o", form]].concat());
        let mut child = program.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        for _ in 0..3 {
            assert!(lines.any(|line| line.starts_with(expected)), "{form}");
        }
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{form}");
    }
}
