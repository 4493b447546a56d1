//! Shards: each has its own partition of messages and its own record on the downlink topic.

use tbmq_bus::{Bus as _, Commit, ReaderConfig, TopicPartition};
use tbmq_integration::wire::{self, Change, CommitMetadata, Desired, Downlink};
use tbmq_proto::{
    control::Integration,
    ids::{IntegrationId, Kind, ShardId},
    integration::ComponentLifecycleEventProto as Event,
    partition,
};
use tonic::Code;

use crate::support::{
    Cluster, ControlPlane, DOCUMENT, Executor, Verdict, eventually, fields, id_of, integration, phase, reason,
};

fn sharded(name: &str, shards: u32) -> Integration {
    let document = DOCUMENT.replacen('{', &format!("{{\"shards\":{shards},"), 1);
    Integration { configuration_json: document, ..integration(name) }
}

fn all(id: IntegrationId, count: u32) -> Vec<ShardId> {
    (0..count).map(|index| ShardId { integration: id, index }).collect()
}

async fn running(plane: &ControlPlane, name: &str) {
    eventually("running", async || phase(&plane.get(name).await.unwrap()) == "PHASE_ACTIVE").await;
}

async fn deleted(executor: &Executor, shards: &[ShardId]) {
    eventually("dismissed", async || {
        let is_deleted = |held: Desired| held.change == Change::Deleted;
        shards.iter().all(|shard| executor.held_shard(*shard).is_some_and(is_deleted))
    })
    .await;
}

#[tokio::test]
async fn each_shard_has_a_partition_of_messages_and_a_record_of_its_own() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let executor = cluster.executor(Verdict::Accept).await;
    let created = plane.create_from(sharded("one", 4)).await.unwrap();
    let (id, kind): (_, Kind) = (id_of(&created), "HTTP".parse().unwrap());
    running(&plane, &created.name).await;
    let topic = cluster.catalogue.messages(id, 4).name;
    assert_eq!(cluster.bus.admin().topic(&topic).await.unwrap().unwrap().partitions, 4);
    let places = cluster.places(&cluster.catalogue.downlink(&kind).name).await;
    for shard in all(id, 4) {
        let (revision, value) = &places[&(shard.downlink_key(), partition::for_shard(&shard, 4, 48))];
        let Downlink::Desired(desired) = wire::decode_downlink(value.as_ref(), None).unwrap() else {
            panic!()
        };
        assert_eq!((desired.shard, desired.shard_count, desired.generation), (shard, 4, 1));
        assert_eq!(*revision, Some(created.revision));
    }
    let status = plane.get(&created.name).await.unwrap().status.unwrap();
    let holders: Vec<u32> = status.holders.iter().map(|holder| holder.shard).collect();
    assert_eq!(holders, [0, 1, 2, 3]);

    for (partition, messages) in [(0, 3), (1, 2), (3, 4)] {
        for _ in 0..messages {
            cluster.put_at(&topic, Some(partition), "t", Some(b"m")).await;
        }
    }
    // Two of partition 0 are settled; what is committed for partition 1 speaks of another generation.
    let info = cluster.bus.admin().topic(&topic).await.unwrap().unwrap();
    let commit = |partition, generation| Commit {
        partition: TopicPartition::new(topic.as_str(), partition),
        offset: 2,
        metadata: CommitMetadata { generation, epoch: 5, topic: info.id.clone(), ..Default::default() }
            .to_text(),
    };
    let group = cluster.catalogue.messages_group();
    let mut reader = cluster.bus.reader(ReaderConfig::new("ie1", Some(group))).await.unwrap();
    reader.commit(vec![commit(0, 1), commit(1, 0)]).await.unwrap();
    let lag = plane.get(&created.name).await.unwrap().status.unwrap().lag.unwrap();
    assert_eq!(lag.messages, 1 + 2 + 4);

    plane.delete(&created.name).await.unwrap();
    deleted(&executor, &all(id, 4)).await;
    eventually("the topic is gone", async || !cluster.exists(&topic).await).await;
}

#[tokio::test]
async fn the_topic_is_kept_until_every_shard_has_stopped() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let executor = cluster.executor(Verdict::Accept).await;
    let created = plane.create_from(sharded("one", 2)).await.unwrap();
    let shards = all(id_of(&created), 2);
    running(&plane, &created.name).await;
    // As if the other shard ran at an executor that takes its time.
    executor.ignore(shards[1]);
    plane.delete(&created.name).await.unwrap();
    deleted(&executor, &shards[..1]).await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let topic = cluster.catalogue.messages(id_of(&created), 2).name;
    assert!(cluster.exists(&topic).await);
    executor.events().report(shards[1], 5, created.revision, Event::Stopped, None).await;
    eventually("the topic is gone", async || !cluster.exists(&topic).await).await;
}

#[tokio::test]
async fn an_integration_is_active_only_when_every_shard_runs_and_fails_when_one_does() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let executor = cluster.executor(Verdict::Accept).await;
    let created = plane.create_from(sharded("one", 2)).await.unwrap();
    let shards = all(id_of(&created), 2);
    running(&plane, &created.name).await;
    let now = async || phase(&plane.get(&created.name).await.unwrap()).to_owned();
    executor.events().report(shards[1], 6, created.revision, Event::Stopped, None).await;
    eventually("pending", async || now().await == "PHASE_PENDING").await;
    executor.events().report(shards[1], 6, created.revision, Event::Failed, Some("no route")).await;
    eventually("failed", async || now().await == "PHASE_FAILED").await;
    executor.events().report(shards[1], 6, created.revision, Event::Started, None).await;
    eventually("active", async || now().await == "PHASE_ACTIVE").await;
}

#[tokio::test]
async fn shards_are_fixed_when_an_integration_is_created() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let _executor = cluster.executor(Verdict::Accept).await;
    let status = plane.create_from(sharded("none", 0)).await.unwrap_err();
    assert_eq!(fields(&status), ["integration.configuration_json.shards"]);
    assert!(status.message().contains("0 is not a whole number from 1 to 64"), "{status}");
    let created = plane.create_from(sharded("one", 4)).await.unwrap();
    for other in [sharded("one", 2), integration("one")] {
        let update = Integration { name: created.name.clone(), ..other };
        let status = plane.update(update, &["configuration_json"]).await.unwrap_err();
        assert_eq!(reason(&status), (Code::InvalidArgument, "INVALID_INTEGRATION".to_owned()));
        assert_eq!(fields(&status), ["integration.configuration_json.shards"]);
    }
    let same = Integration { name: created.name.clone(), ..sharded("two", 4) };
    assert_eq!(plane.update(same, &[]).await.unwrap().display_name, "two");
}

#[tokio::test]
async fn a_missing_or_strange_record_of_a_shard_is_repaired() {
    let cluster = Cluster::new();
    let plane = cluster.control_plane("cp1").await;
    let executor = cluster.executor(Verdict::Accept).await;
    let created = plane.create_from(sharded("one", 3)).await.unwrap();
    let shards = all(id_of(&created), 3);
    running(&plane, &created.name).await;
    plane.running.drain().await;
    drop(executor);
    let topic = cluster.catalogue.downlink(&"HTTP".parse().unwrap()).name;
    let home = |shard: &ShardId| partition::for_shard(shard, 3, 48);
    let places = cluster.places(&topic).await;
    let (_, record) = &places[&(shards[1].downlink_key(), home(&shards[1]))];
    let elsewhere = (home(&shards[1]) + 1) % 48;
    cluster.put_at(&topic, Some(elsewhere), &shards[1].downlink_key(), record.as_deref()).await;
    cluster.put_at(&topic, Some(home(&shards[2])), &shards[2].downlink_key(), None).await;
    let beyond = ShardId { index: 3, ..shards[0] };
    cluster.put_at(&topic, Some(7), &beyond.downlink_key(), record.as_deref()).await;

    let plane = cluster.control_plane("cp1").await;
    eventually("repaired", async || {
        let places = cluster.places(&topic).await;
        let revisions: Vec<Option<u64>> = shards
            .iter()
            .filter_map(|shard| {
                let (revision, value) = &places[&(shard.downlink_key(), home(shard))];
                value.as_ref().map(|_| *revision)
            })
            .collect();
        // Under a new revision: whoever ran the strange one may have stopped the right one.
        revisions.len() == 3 && revisions.iter().all(|revision| *revision > Some(created.revision))
    })
    .await;
    let places = cluster.places(&topic).await;
    assert!(places[&(shards[1].downlink_key(), elsewhere)].1.is_none());
    assert!(places[&(beyond.downlink_key(), 7)].1.is_none());
    drop(plane);
}
