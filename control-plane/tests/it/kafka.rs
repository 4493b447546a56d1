//! Topics, consumer groups and lags: what is told, what may be deleted, and what is asked of the bus for it.

use std::{sync::atomic::Ordering, time::Duration};

use tbmq_bus::{
    Bus, CleanupPolicy, Commit, Membership, MembershipConfig, MembershipEvent, ReaderConfig, TopicPartition,
    TopicSpec,
};
use tbmq_integration::wire::{CommitMetadata, Totals};
use tbmq_proto::{
    control::{
        ConsumerGroup, DeleteConsumerGroupRequest, DeleteOrphanTopicsRequest, GetClusterRequest,
        GetConsumerGroupRequest, GetTopicRequest, GroupLag, ListConsumerGroupsRequest, ListGroupLagsRequest,
        ListTopicsRequest, Topic, TopicOwner, kafka_service_client::KafkaServiceClient,
    },
    ids::IntegrationId,
};
use tonic::{Code, Response, Status, transport::Channel};
use uuid::Uuid;

use crate::{
    stats::Watched,
    support::{Cluster, ControlPlane, Verdict, eventually, fields, id_of, reason},
};

struct Asking(KafkaServiceClient<Channel>);

impl Asking {
    fn of(plane: &ControlPlane) -> Self {
        Self(KafkaServiceClient::new(plane.channel.clone()))
    }

    async fn topics(&self, request: ListTopicsRequest) -> Vec<Topic> {
        let (mut topics, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListTopicsRequest { page_token, page_size: 3, ..request.clone() };
            let page = self.0.clone().list_topics(request).await.unwrap().into_inner();
            topics.extend(page.topics);
            if page.next_page_token.is_empty() {
                assert_eq!(topics.len() as i64, page.total_size);
                assert_eq!(
                    topics.iter().map(|topic| topic.size_bytes).sum::<Option<u64>>(),
                    page.total_size_bytes
                );
                return topics;
            }
            page_token = page.next_page_token;
        }
    }

    async fn names(&self, request: ListTopicsRequest) -> Vec<String> {
        self.topics(request).await.into_iter().map(|topic| topic.topic).collect()
    }

    async fn topic(&self, topic: &str) -> Result<Topic, Status> {
        let request = GetTopicRequest { name: format!("topics/{topic}") };
        self.0.clone().get_topic(request).await.map(Response::into_inner)
    }

    async fn delete_orphans(&self, topics: &[&str], validate_only: bool) -> Result<Vec<String>, Status> {
        let names = topics.iter().map(|topic| format!("topics/{topic}")).collect();
        let request = DeleteOrphanTopicsRequest { names, validate_only };
        let deleted = self.0.clone().delete_orphan_topics(request).await?.into_inner().topics;
        Ok(deleted.into_iter().map(|topic| topic.topic).collect())
    }

    async fn group(&self, id: &str) -> Result<ConsumerGroup, Status> {
        let request = GetConsumerGroupRequest { name: format!("consumerGroups/{id}") };
        self.0.clone().get_consumer_group(request).await.map(Response::into_inner)
    }

    async fn delete_group(&self, id: &str, validate_only: bool) -> Result<(), Status> {
        let request = DeleteConsumerGroupRequest { name: format!("consumerGroups/{id}"), validate_only };
        self.0.clone().delete_consumer_group(request).await.map(drop)
    }

    async fn lags(&self, request: ListGroupLagsRequest) -> Vec<GroupLag> {
        let (mut lags, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListGroupLagsRequest { page_token, page_size: 1, ..request.clone() };
            let page = self.0.clone().list_group_lags(request).await.unwrap().into_inner();
            lags.extend(page.group_lags);
            if page.next_page_token.is_empty() {
                assert_eq!(lags.len() as i64, page.total_size);
                assert_eq!(lags.iter().map(|lag| lag.lag_messages).sum::<u64>(), page.total_lag_messages);
                return lags;
            }
            page_token = page.next_page_token;
        }
    }

    /// Lag in messages of a topic by the group of all message topics; `None` when the topic is not told.
    async fn lag(&self, topic: &str) -> Option<GroupLag> {
        let request = ListGroupLagsRequest { text_search: topic.to_owned(), ..Default::default() };
        self.lags(request).await.into_iter().find(|lag| lag.topic == topic)
    }
}

async fn make(cluster: &Cluster, name: &str) {
    let spec = TopicSpec {
        name: name.to_owned(),
        partitions: 1,
        replication_factor: 1,
        policy: CleanupPolicy::Delete,
        settings: Vec::new(),
    };
    assert_eq!(cluster.bus.admin().create_topic(&spec).await, Ok(true));
}

async fn commit(cluster: &Cluster, group: &str, topic: &str, offset: u64, metadata: &str) {
    let mut reader = cluster.bus.reader(ReaderConfig::new("c", Some(group.to_owned()))).await.unwrap();
    let partition = TopicPartition::new(topic, 0);
    let commit = Commit { partition, offset, metadata: metadata.to_owned() };
    reader.commit(vec![commit]).await.unwrap();
}

async fn join(cluster: &Cluster, group: &str, topic: &str) -> Box<dyn Membership> {
    let config = MembershipConfig {
        group: group.to_owned(),
        client_id: "member".to_owned(),
        instance_id: None,
        topics: vec![topic.to_owned()],
        session_timeout: Duration::from_secs(60),
    };
    let mut membership = cluster.bus.membership(config).await.unwrap();
    assert!(matches!(membership.next().await, MembershipEvent::Assigned(_)));
    membership
}

#[tokio::test]
async fn topics_tell_whose_they_are_and_only_orphans_are_deleted() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let _executor = cluster.executor(Verdict::Accept).await;
    let integration = plane.create("pumps").await.unwrap();
    let (mine, id) = (cluster.catalogue.messages(id_of(&integration), 1).name, IntegrationId(Uuid::now_v7()));
    let (orphan, letters) = (cluster.catalogue.messages(id, 1).name, cluster.catalogue.dead_letters(id).name);
    // TBMQ's own message topics have no hyphens.
    let foreign =
        [format!("test.tbmq.msg.ie.{}", id.0.simple()), format!("tbmq.msg.ie.{id}"), "orders".to_owned()];
    for name in foreign.iter().chain([&orphan, &letters]) {
        make(&cluster, name).await;
    }
    cluster.put_at(&mine, Some(0), "t", Some(b"kept")).await;

    let asking = Asking::of(&plane);
    eventually("all topics", async || asking.topic(&orphan).await.is_ok()).await;
    let all = asking.topics(ListTopicsRequest::default()).await;
    assert!(all.is_sorted_by(|one, other| one.topic < other.topic));
    let owner = |name: &str| all.iter().find(|topic| topic.topic == name).unwrap().owner();
    assert_eq!(owner(&mine), TopicOwner::Integration);
    assert_eq!(owner(&cluster.catalogue.uplink().name), TopicOwner::System);
    assert_eq!([owner(&orphan), owner(&letters)], [TopicOwner::Orphan; 2]);
    assert!(foreign.iter().all(|name| owner(name) == TopicOwner::Foreign));

    let by_owner = ListTopicsRequest { owner: TopicOwner::Orphan.into(), ..Default::default() };
    assert_eq!(asking.names(by_owner.clone()).await, [letters.as_str(), &orphan]);
    let by_text = ListTopicsRequest { text_search: "PUMP".to_owned(), ..Default::default() };
    assert_eq!(asking.names(by_text).await, [mine.as_str()]);
    let by_integration = ListTopicsRequest { integration: integration.name.clone(), ..Default::default() };
    assert_eq!(asking.names(by_integration).await, [mine.as_str()]);
    let found = asking.topic(&mine).await.unwrap();
    assert_eq!(
        (found.integration.as_str(), found.integration_display_name.as_str()),
        (&*integration.name, "pumps")
    );
    assert_eq!((found.partition_count, found.replication_factor, found.partitions.len()), (1, 1, 1));
    assert_eq!((found.under_replicated_count, found.offline_count), (0, 0));
    assert_eq!(found.configs["retention.ms"], "604800000");
    assert!(found.size_bytes.unwrap() > 0 && found.size_bytes == found.partitions[0].size_bytes, "{found:?}");
    assert!(!found.purpose.is_empty() && !found.topic_id.is_empty(), "{found:?}");
    assert_eq!(asking.topic("none").await.unwrap_err().code(), Code::NotFound);

    // One that is no orphan saves the others, too.
    for taken in foreign.iter().chain([&mine, &cluster.catalogue.uplink().name]) {
        let refused = asking.delete_orphans(&[&orphan, taken], false).await.unwrap_err();
        assert_eq!(reason(&refused), (Code::FailedPrecondition, "TOPIC_IN_USE".to_owned()), "{taken}");
    }
    let missing = asking.delete_orphans(&[&orphan, "none"], false).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    assert_eq!(asking.delete_orphans(&[], true).await.unwrap(), [letters.as_str(), &orphan]);
    assert!(cluster.exists(&orphan).await, "it was only asked");
    assert_eq!(asking.delete_orphans(&[&letters], false).await.unwrap(), [letters.as_str()]);
    assert_eq!(asking.names(by_owner.clone()).await, [orphan.as_str()], "what is deleted is told at once");
    assert_eq!(asking.delete_orphans(&[], false).await.unwrap(), [orphan.as_str()]);
    assert_eq!(asking.delete_orphans(&[], false).await.unwrap(), [""; 0]);
    assert_eq!(asking.names(by_owner).await, [""; 0]);
    assert!(cluster.exists(&mine).await && cluster.exists(&foreign[0]).await);
    assert_eq!(cluster.bus.admin().bounds(&[TopicPartition::new(mine.as_str(), 0)]).await.unwrap()[0].end, 1);
}

#[tokio::test]
async fn a_deleted_integration_has_its_topic_removed_and_its_dead_letters_are_an_orphan() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let executor = cluster.executor(Verdict::Accept).await;
    let integration = plane.create("gone").await.unwrap();
    let id = id_of(&integration);
    let letters = cluster.catalogue.dead_letters(id).name;
    make(&cluster, &letters).await;
    let asking = Asking::of(&plane);
    eventually("its topics", async || asking.topic(&letters).await.is_ok()).await;
    assert_eq!(asking.topic(&letters).await.unwrap().owner(), TopicOwner::Integration);
    plane.delete(&integration.name).await.unwrap();
    eventually("an orphan", async || asking.topic(&letters).await.unwrap().owner() == TopicOwner::Orphan)
        .await;
    assert!(!cluster.exists(&cluster.catalogue.messages(id, 1).name).await, "it was removed first");
    assert_eq!(asking.delete_orphans(&[], false).await.unwrap(), [letters]);
    drop(executor);
}

#[tokio::test]
async fn no_topic_is_deleted_where_that_is_turned_off() {
    let mut cluster = Cluster::new();
    cluster.topic_deletion = false;
    let plane = cluster.control_plane("cp1").await;
    let _executor = cluster.executor(Verdict::Accept).await;
    let integration = plane.create("gone").await.unwrap();
    let topic = cluster.catalogue.messages(id_of(&integration), 1).name;
    plane.delete(&integration.name).await.unwrap();
    let asking = Asking::of(&plane);
    let owner = async || asking.topic(&topic).await.map(|topic| topic.owner());
    eventually("an orphan", async || matches!(owner().await, Ok(TopicOwner::Orphan))).await;
    for validate_only in [true, false] {
        let refused = asking.delete_orphans(&[&topic], validate_only).await.unwrap_err();
        assert_eq!(reason(&refused), (Code::FailedPrecondition, "TOPIC_DELETION_DISABLED".to_owned()));
    }
    assert!(cluster.exists(&topic).await);
    let told = asking.0.clone().get_cluster(GetClusterRequest {}).await.unwrap().into_inner();
    assert!(!told.topic_deletion_enabled && told.kind == "MEMORY" && told.brokers.len() == 1, "{told:?}");
}

#[tokio::test]
async fn lags_are_what_was_written_and_not_committed_for_this_creation_of_the_topic() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let _executor = cluster.executor(Verdict::Accept).await;
    let integration = plane.create("pumps").await.unwrap();
    let topic = cluster.catalogue.messages(id_of(&integration), 1).name;
    let group = cluster.catalogue.messages_group();
    for _ in 0..5 {
        cluster.put_at(&topic, Some(0), "t", Some(b"m")).await;
    }
    let asking = Asking::of(&plane);
    let lag_of =
        async |messages: u64| asking.lag(&topic).await.is_some_and(|lag| lag.lag_messages == messages);
    eventually("nobody has read it", async || lag_of(5).await).await;
    let lag = asking.lag(&topic).await.unwrap();
    assert_eq!(
        (lag.group_id.as_str(), lag.integration.as_str()),
        (group.as_str(), integration.name.as_str())
    );
    assert_eq!(lag.integration_display_name, "pumps");
    assert!(lag.lag_seconds.is_some_and(|seconds| seconds < 60.0), "{lag:?}");

    let topic_id = cluster.bus.admin().topic(&topic).await.unwrap().unwrap().id;
    let metadata = |topic: &str, oldest_ms| {
        CommitMetadata {
            generation: 1,
            epoch: 1,
            topic: topic.to_owned(),
            totals: Totals::default(),
            oldest_ms,
        }
        .to_text()
    };
    let hour_ago = tbmq_service::time::now_ms() - 3_600_000;
    commit(&cluster, &group, &topic, 2, &metadata(&topic_id, Some(hour_ago))).await;
    eventually("three wait", async || lag_of(3).await).await;
    let lag = asking.lag(&topic).await.unwrap();
    assert!((3_599.0..3_700.0).contains(&lag.lag_seconds.unwrap()), "as the commit says: {lag:?}");
    let told = asking.group(&group).await.unwrap();
    assert_eq!((told.lag_messages, told.state.as_str(), told.system), (3, "EMPTY", true));
    let part = &told.partitions[0];
    assert_eq!((part.committed_offset, part.end_offset, part.lag_messages), (Some(2), 5, 3));

    commit(&cluster, &group, &topic, 4, &metadata("another", None)).await;
    eventually("of another creation", async || lag_of(5).await).await;
    assert_eq!(asking.group(&group).await.unwrap().partitions[0].committed_offset, None);
    commit(&cluster, &group, &topic, 5, &metadata(&topic_id, None)).await;
    eventually("none waits", async || lag_of(0).await).await;
    assert_eq!(asking.lag(&topic).await.unwrap().lag_seconds, None);
    let waiting = ListGroupLagsRequest { messages_min: 1, text_search: topic.clone(), ..Default::default() };
    assert_eq!(asking.lags(waiting).await, []);

    // As long as there are integrations it is the memory of what was delivered.
    let refused = asking.delete_group(&group, false).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::FailedPrecondition, "GROUP_IN_USE".to_owned()));
    assert!(!told.undeletable_reason.is_empty());
    plane.delete(&integration.name).await.unwrap();
    commit(&cluster, &group, &cluster.catalogue.uplink().name, 0, "").await;
    asking.delete_group(&group, false).await.unwrap();
}

#[tokio::test]
async fn a_group_is_deleted_when_nobody_uses_it() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let executor = cluster.executor(Verdict::Accept).await;
    let asking = Asking::of(&plane);
    make(&cluster, "orders").await;
    cluster.put("orders", "k", b"v").await;
    let odd = "a/b c";
    commit(&cluster, odd, "orders", 0, "").await;
    let member = join(&cluster, "billing", "orders").await;
    let downlink = cluster.catalogue.downlink_group(&"HTTP".parse().unwrap());
    commit(&cluster, &downlink, &cluster.catalogue.downlink(&"HTTP".parse().unwrap()).name, 0, "").await;

    eventually("the groups", async || asking.group("a%2Fb%20c").await.is_ok()).await;
    let told = asking.group("a%2Fb%20c").await.unwrap();
    assert_eq!((told.group_id.as_str(), told.lag_messages, told.undeletable_reason.as_str()), (odd, 1, ""));
    assert_eq!((told.state.as_str(), told.system, told.member_count), ("EMPTY", false, 0));
    let told = asking.group("billing").await.unwrap();
    assert_eq!((told.state.as_str(), told.member_count, told.members.len()), ("STABLE", 1, 1));
    assert_eq!(told.members[0].client_id, "member");
    assert_eq!(told.members[0].assignments[0].partitions, [0]);
    let list = |state: &str, system_only| {
        let request =
            ListConsumerGroupsRequest { state: state.to_owned(), system_only, ..Default::default() };
        let mut client = asking.0.clone();
        async move {
            let page = client.list_consumer_groups(request).await?.into_inner();
            assert!(page.consumer_groups.iter().all(|group| group.members.is_empty()));
            Ok::<_, Status>(page.consumer_groups.into_iter().map(|group| group.group_id).collect::<Vec<_>>())
        }
    };
    let system = list("", true).await.unwrap();
    assert!(system.contains(&downlink) && system.contains(&cluster.catalogue.uplink_group()), "{system:?}");
    assert!(!system.contains(&"billing".to_owned()));
    assert!(list("STABLE", false).await.unwrap().contains(&"billing".to_owned()));
    let wrong = list("BUSY", false).await.unwrap_err();
    assert_eq!((wrong.code(), fields(&wrong)), (Code::InvalidArgument, vec!["state".to_owned()]));

    for id in ["billing", &downlink, &cluster.catalogue.uplink_group()] {
        let refused = asking.delete_group(id, true).await.unwrap_err();
        assert_eq!(reason(&refused), (Code::FailedPrecondition, "GROUP_IN_USE".to_owned()), "{id}");
        assert_eq!(asking.delete_group(id, false).await.unwrap_err().code(), Code::FailedPrecondition);
    }
    member
        .commit(vec![Commit {
            partition: TopicPartition::new("orders", 0),
            offset: 1,
            metadata: String::new(),
        }])
        .await
        .unwrap();
    member.leave().await;
    asking.delete_group("billing", true).await.unwrap();
    asking.delete_group("billing", false).await.unwrap();
    assert_eq!(asking.group("billing").await.unwrap_err().code(), Code::NotFound, "told at once");
    assert_eq!(asking.delete_group("billing", false).await.unwrap_err().code(), Code::NotFound);
    drop(executor);
}

#[tokio::test]
async fn many_callers_ask_the_bus_once_and_are_told_when_it_is_away() {
    let cluster = Cluster::new();
    let bus = Watched::new(cluster.bus.clone());
    let plane = cluster.control_plane_on(bus.clone(), "cp1", |_| {}).await;
    let asking = Asking::of(&plane);
    let all = (0..50)
        .map(|_| asking.topics(ListTopicsRequest { text_search: "uplink".to_owned(), ..Default::default() }));
    for topics in futures_util::future::join_all(all).await {
        assert!(!topics.is_empty());
    }
    // Fifty callers of a page or more each; on a slow machine it may take more than a second.
    let asked = bus.admin.overviews.load(Ordering::Relaxed);
    assert!((1..10).contains(&asked), "{asked}");
    bus.admin.is_away.store(true, Ordering::Relaxed);
    let away = async || match asking.0.clone().list_topics(ListTopicsRequest::default()).await {
        Ok(_) => false,
        Err(status) => {
            assert_eq!(reason(&status), (Code::Unavailable, "DEPENDENCY_UNAVAILABLE".to_owned()));
            true
        }
    };
    eventually("the bus is away", away).await;
    for status in [
        asking.0.clone().get_cluster(GetClusterRequest {}).await.unwrap_err(),
        asking.0.clone().list_consumer_groups(ListConsumerGroupsRequest::default()).await.unwrap_err(),
        asking.delete_orphans(&[], false).await.unwrap_err(),
        asking.delete_group("g", false).await.unwrap_err(),
    ] {
        assert_eq!(reason(&status), (Code::Unavailable, "DEPENDENCY_UNAVAILABLE".to_owned()));
    }
}
