//! A bus over a Kafka with logins and TLS.

use std::{fs, sync::Arc, time::Duration};

use pkcs8::pkcs5::pbes2::Parameters;
use tbmq_bus::{
    Admin, Bus, CleanupPolicy, Outgoing, TopicDetails, TopicSpec, WriterConfig,
    kafka::{KafkaBus, KafkaConfig},
    write,
};
use tbmq_harness::{Need, kafka::SecuredKafka, ready};

use crate::contract::within;

const PATIENCE: Duration = Duration::from_secs(60);

fn connect(address: &str, properties: &[(&str, &str)]) -> Arc<KafkaBus> {
    let properties = properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    KafkaBus::new(KafkaConfig { properties: properties.collect(), ..KafkaConfig::new(address) }).unwrap()
}

async fn sizes(admin: &dyn Admin, topic: &str) -> Vec<Option<u64>> {
    let all: Vec<TopicDetails> = within(PATIENCE, "topics", admin.topic_details()).await.unwrap();
    let found = all.into_iter().find(|one| one.name == topic).unwrap();
    found.partitions.iter().map(|one| one.size_bytes).collect()
}

/// A topic with a record of 2,000 bytes, written to over this bus.
async fn fill(bus: &dyn Bus, name: &str) {
    let spec = TopicSpec {
        name: name.to_owned(),
        partitions: 1,
        replication_factor: 1,
        policy: CleanupPolicy::Delete,
        settings: Vec::new(),
    };
    within(PATIENCE, "a topic", bus.admin().create_topic(&spec)).await.unwrap();
    let writer = bus.writer(WriterConfig::new("w")).await.unwrap();
    let value = [b'x'; 2_000];
    let record = Outgoing { partition: Some(0), key: None, value: Some(&value), headers: &[] };
    within(PATIENCE, "a record", write(&*writer, &writer.topic(name), record)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_are_known_over_every_way_to_the_brokers() {
    if !ready("sizes_are_known_over_every_way_to_the_brokers", &[Need::Kafka]) {
        return;
    }
    let server = tokio::task::spawn_blocking(SecuredKafka::shared).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let encrypted = {
        let (_, plain) = pkcs8::SecretDocument::from_pem(&server.key).unwrap();
        let parameters = Parameters::pbkdf2_sha256_aes256cbc(2_048, b"salt salt", &[7; 16]).unwrap();
        let key = pkcs8::PrivateKeyInfo::try_from(plain.as_bytes()).unwrap();
        let key = key.encrypt_with_params(parameters, "open sesame").unwrap();
        key.to_pem("ENCRYPTED PRIVATE KEY", pkcs8::LineEnding::LF).unwrap()
    };
    let [authority, certificate, key] = [
        file("authority.pem", &server.authority),
        // A key after what else is in its file.
        file("certificate.pem", &server.certificate),
        file("key.pem", &format!("{}{}", server.certificate, encrypted.as_str())),
    ];

    let user = [("sasl.username", SecuredKafka::USER), ("sasl.password", SecuredKafka::PASSWORD)];
    let mut ways = Vec::new();
    for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let login = [&user[..], &[("sasl.mechanisms", mechanism)]].concat();
        ways.push((&server.login, [&login[..], &[("security.protocol", "sasl_plaintext")]].concat()));
        let tls = [("security.protocol", "SASL_SSL"), ("ssl.ca.pem", server.authority.as_str())];
        ways.push((&server.login_tls, [&login[..], &tls].concat()));
    }
    let ssl = ("security.protocol", "ssl");
    let in_texts = vec![
        ssl,
        ("ssl.ca.pem", server.authority.as_str()),
        ("ssl.certificate.pem", server.certificate.as_str()),
        ("ssl.key.pem", server.key.as_str()),
    ];
    let in_files = vec![
        ssl,
        ("ssl.ca.location", authority.as_str()),
        ("ssl.certificate.location", certificate.as_str()),
        ("ssl.key.location", key.as_str()),
        ("ssl.key.password", "open sesame"),
    ];
    ways.extend([(&server.tls, in_texts), (&server.tls, in_files)]);

    for (number, (address, properties)) in ways.into_iter().enumerate() {
        let topic = format!("sizes-{number}");
        let bus = connect(address, &properties);
        fill(&*bus, &topic).await;
        let cluster = within(PATIENCE, "the cluster", bus.admin().cluster()).await.unwrap();
        assert_eq!(cluster.sizes_unknown, "", "{address} {number}");
        let found = sizes(&*bus.admin(), &topic).await;
        assert!(matches!(found[..], [Some(2_000..2_200)]), "{address} {number}: {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn why_sizes_are_not_known_is_told() {
    if !ready("why_sizes_are_not_known_is_told", &[Need::Kafka]) {
        return;
    }
    let server = tokio::task::spawn_blocking(SecuredKafka::shared).await.unwrap();
    let properties = [
        ("security.protocol", "SASL_SSL"),
        ("sasl.mechanisms", "PLAIN"),
        ("sasl.username", SecuredKafka::USER),
        ("sasl.password", SecuredKafka::PASSWORD),
        ("ssl.ca.pem", server.authority.as_str()),
        ("ssl.cipher.suites", "DEFAULT"),
    ];
    let bus = connect(&server.login_tls, &properties);
    fill(&*bus, "unknown").await;
    let cluster = within(PATIENCE, "the cluster", bus.admin().cluster()).await.unwrap();
    assert_eq!(cluster.sizes_unknown, "ssl.cipher.suites is for librdkafka alone");
    assert_eq!(cluster.brokers.iter().map(|broker| broker.size_bytes).collect::<Vec<_>>(), [None]);
    assert_eq!(sizes(&*bus.admin(), "unknown").await, [None]);
}
