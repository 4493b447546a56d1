//! The bus over Apache Kafka, through librdkafka.

mod admin;
mod aside;
mod connection;
mod fenced;
mod ffi;
mod log_dirs;
mod membership;
mod offsets;
mod overview;
mod reader;
mod writer;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use rdkafka::{
    ClientConfig,
    error::{KafkaError, RDKafkaErrorCode},
};

use tbmq_proto::properties::{self, InvalidProperty};

use self::{
    admin::KafkaAdmin, fenced::KafkaFencedWriter, membership::KafkaMembership, reader::KafkaReader,
    writer::KafkaWriter,
};
pub use self::{aside::EndsAside, ffi::Bell};
use crate::{
    Admin, Bus, Error, FencedWriter, Membership, MembershipConfig, Reader, ReaderConfig, Writer, WriterConfig,
};

/// How Kafka is reached.
#[derive(Clone)]
pub struct KafkaConfig {
    /// `host:port,host:port`.
    pub servers: String,
    /// Further client properties under librdkafka's names (security, timeouts); they win over ours.
    pub properties: Vec<(String, String)>,
}

impl KafkaConfig {
    /// Plain text, no further properties.
    pub fn new(servers: impl Into<String>) -> Self {
        Self { servers: servers.into(), properties: Vec::new() }
    }

    /// With further properties as a property string (`TB_KAFKA_DEFAULT_PRODUCER_CONSUMER_CONFIG`).
    ///
    /// # Errors
    /// The pair that can't be read.
    pub fn parse(servers: &str, properties: &str) -> Result<Self, InvalidProperty> {
        Ok(Self { servers: servers.to_owned(), properties: properties::parse(properties)? })
    }

    /// For tests: with these properties, of a server that is never asked.
    #[cfg(test)]
    fn with(properties: &[(&str, &str)]) -> Self {
        let properties = properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Self { properties: properties.collect(), ..Self::new("localhost:9092") }
    }

    /// What is configured under one of librdkafka's names for it; the last wins.
    fn property(&self, names: &[&str]) -> Option<&str> {
        let found = self.properties.iter().rev().find(|(key, _)| names.contains(&key.as_str()));
        found.map(|(_, value)| value.as_str())
    }

    fn client(&self, client_id: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.servers)
            .set("client.id", client_id)
            // A broker that comes back is found again soon.
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "1000")
            // With sparse connections every question to an administrator or a reader that waits for a broker that is away
            // connects anew as soon as the last attempt has failed, without a pause: a core for each such client, of
            // which Kafka on the same machine has need to start.
            .set("enable.sparse.connections", "false")
            // A topic that was just created is found soon, and one that is missing is told within 2 s.
            .set("topic.metadata.refresh.fast.interval.ms", "100")
            .set("topic.metadata.propagation.max.ms", "2000")
            .set("log.connection.close", "false");
        config
    }

    fn finish(&self, mut config: ClientConfig) -> ClientConfig {
        for (key, value) in &self.properties {
            config.set(key, value);
        }
        config
    }
}

impl fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Passwords and keys are among the properties: only their names are shown.
        let names: Vec<&String> = self.properties.iter().map(|(name, _)| name).collect();
        f.debug_struct("KafkaConfig").field("servers", &self.servers).field("properties", &names).finish()
    }
}

/// The bus over Kafka.
#[derive(Debug)]
pub struct KafkaBus {
    config: KafkaConfig,
    admin: Arc<KafkaAdmin>,
}

impl KafkaBus {
    /// A bus over these servers. Does not wait for them to be reachable.
    ///
    /// # Errors
    /// [`Error::Refused`] when librdkafka does not understand a property.
    pub fn new(config: KafkaConfig) -> Result<Arc<Self>, Error> {
        let admin = KafkaAdmin::new(config.clone())?;
        Ok(Arc::new(Self { config, admin: Arc::new(admin) }))
    }
}

#[async_trait]
impl Bus for KafkaBus {
    async fn writer(&self, config: WriterConfig) -> Result<Arc<dyn Writer>, Error> {
        Ok(Arc::new(KafkaWriter::new(&self.config, config)?))
    }

    async fn fenced_writer(&self, name: &str) -> Result<Box<dyn FencedWriter>, Error> {
        Ok(Box::new(KafkaFencedWriter::open(&self.config, name).await?))
    }

    async fn reader(&self, config: ReaderConfig) -> Result<Box<dyn Reader>, Error> {
        Ok(Box::new(KafkaReader::new(&self.config, config)?))
    }

    async fn membership(&self, config: MembershipConfig) -> Result<Box<dyn Membership>, Error> {
        Ok(Box::new(KafkaMembership::join(&self.config, config)?))
    }

    fn admin(&self) -> Arc<dyn Admin> {
        Arc::clone(&self.admin) as Arc<dyn Admin>
    }
}

/// What the caller can do about an error of librdkafka.
fn error(what: &str, error: &KafkaError) -> Error {
    let text = format!("{what}: {error}");
    let code = match error {
        // The wrapper does not count these among the errors with a code.
        KafkaError::AdminOp(code) => Some(*code),
        other => other.rdkafka_error_code(),
    };
    match code {
        Some(code) => by_code(code, text),
        None => Error::Refused(text),
    }
}

fn by_code(code: RDKafkaErrorCode, text: String) -> Error {
    use RDKafkaErrorCode as Code;
    match code {
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => {
            Error::UnknownTopic(text)
        }
        Code::Fenced
        | Code::FencedInstanceId
        | Code::FencedLeaderEpoch
        | Code::InvalidProducerEpoch
        | Code::ProducerFenced
        | Code::IllegalGeneration
        | Code::UnknownMemberId
        | Code::AssignmentLost => Error::Fenced(text),
        Code::MessageSizeTooLarge
        | Code::InvalidMessage
        | Code::InvalidRecord
        | Code::InvalidTopic
        | Code::InvalidConfig
        | Code::InvalidPartitions
        | Code::InvalidReplicationFactor
        | Code::OffsetMetadataTooLarge
        | Code::OffsetOutOfRange
        | Code::PolicyViolation
        | Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed => Error::Refused(text),
        _ => Error::Unavailable(text),
    }
}

/// Runs something of librdkafka that waits, off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Unavailable(format!("a call to Kafka ended early: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_administrative_call_that_got_no_answer_may_be_tried_again() {
        for code in [RDKafkaErrorCode::OperationTimedOut, RDKafkaErrorCode::BrokerTransportFailure] {
            let found = error("creating a topic", &KafkaError::AdminOp(code));
            assert!(matches!(found, Error::Unavailable(_)), "{found:?}");
        }
        let found =
            error("deleting a topic", &KafkaError::AdminOp(RDKafkaErrorCode::TopicAuthorizationFailed));
        assert!(matches!(found, Error::Refused(_)), "{found:?}");
    }

    #[test]
    fn the_configuration_shows_no_secret() {
        let config = KafkaConfig::parse(
            "k:9092",
            "sasl.username:bus;sasl.password:hunter2;ssl.key.password:swordfish",
        );
        let shown = format!("{:?}", config.unwrap());
        assert!(shown.contains("sasl.password"), "{shown}");
        for secret in ["hunter2", "swordfish"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
}
