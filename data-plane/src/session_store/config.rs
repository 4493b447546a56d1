//! Where sessions are kept; TBMQ's names where TBMQ has them.

use std::{path::PathBuf, sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tbmq_service::config::Secret;

use super::{
    Error, Limits, SessionStore,
    embedded::{Durability, EmbeddedStore},
    memory::MemoryStore,
    redis::RedisStore,
};

/// How Redis is reached. Without a host or nodes it is not used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RedisConfig {
    /// One server or a cluster.
    pub connection: RedisConnectionConfig,
    /// Host of the one server; empty: there is no Redis.
    pub host: String,
    /// Port of the one server.
    pub port: u16,
    /// Number of the database of the one server.
    pub db: u32,
    /// Nodes of a cluster, `host:port` each; some are enough.
    pub nodes: Vec<String>,
    /// User; empty: the default one.
    pub username: String,
    /// Password; empty: none.
    pub password: Secret,
    /// What all keys in Redis begin with.
    pub key_prefix: String,
    /// How long a call waits for Redis, connecting included; more than 0.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub timeout: Duration,
}

/// One server or a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RedisConnectionConfig {
    /// Whether `host` and `port`, or `nodes`, say where Redis is.
    #[serde(rename = "type")]
    pub kind: ConnectionType,
}

/// One server or a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ConnectionType {
    /// One server.
    #[default]
    Standalone,
    /// A cluster.
    Cluster,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            connection: RedisConnectionConfig::default(),
            host: String::new(),
            port: 6379,
            db: 0,
            nodes: Vec::new(),
            username: String::new(),
            password: Secret::default(),
            key_prefix: String::new(),
            timeout: Duration::from_secs(5),
        }
    }
}

impl RedisConfig {
    /// Whether Redis is to be used.
    pub fn is_used(&self) -> bool {
        match self.connection.kind {
            ConnectionType::Standalone => !self.host.is_empty(),
            ConnectionType::Cluster => true,
        }
    }

    /// Checks what types can't say: names the key, the variable and the value.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        if self.connection.kind == ConnectionType::Cluster && self.nodes.is_empty() {
            return Err(
                "redis.nodes (REDIS_NODES) is empty, redis.connection.type (REDIS_CONNECTION_TYPE) is \
                        cluster"
                    .to_owned(),
            );
        }
        if self.timeout.is_zero() {
            return Err("bad value 0s for redis.timeout (TBMQ_REDIS_TIMEOUT): more than 0".to_owned());
        }
        self.nodes().map(drop)
    }

    /// Hosts and ports of the nodes.
    pub(super) fn nodes(&self) -> Result<Vec<(&str, u16)>, String> {
        self.nodes
            .iter()
            .map(|text| {
                let bad = || format!("bad value {text:?} for redis.nodes (REDIS_NODES): host:port");
                let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
                let host = host.trim_matches(['[', ']']);
                let port = port.parse().map_err(|_| bad())?;
                if host.is_empty() { Err(bad()) } else { Ok((host, port)) }
            })
            .collect()
    }
}

/// Opens the store that is configured: Redis, if it is to be used, else the folder, if there is one, else memory.
/// Blocks for as long as a folder's recovery takes; does not wait for Redis.
///
/// # Errors
/// [`Error::Unavailable`] when the folder can't be used.
pub fn open(
    redis: &RedisConfig,
    limits: Limits,
    folder: Option<(PathBuf, Durability)>,
) -> Result<Arc<dyn SessionStore>, Error> {
    Ok(match folder {
        _ if redis.is_used() => Arc::new(RedisStore::new(redis, limits)?),
        Some((path, durability)) => Arc::new(EmbeddedStore::open(path, durability, limits)?),
        None => Arc::new(MemoryStore::new(limits)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(nodes: &[&str]) -> RedisConfig {
        let nodes = nodes.iter().map(|node| (*node).to_owned()).collect();
        let connection = RedisConnectionConfig { kind: ConnectionType::Cluster };
        RedisConfig { connection, nodes, ..RedisConfig::default() }
    }

    #[test]
    fn nodes_of_a_cluster_are_hosts_with_ports() {
        assert_eq!(cluster(&["a:1", "[::1]:2"]).nodes(), Ok(vec![("a", 1), ("::1", 2)]));
        for bad in ["a", ":1", "a:", "a:65536", ""] {
            let error = cluster(&["a:1", bad]).check().unwrap_err();
            assert!(error.contains("REDIS_NODES") && error.contains(&format!("{bad:?}")), "{error}");
        }
        assert!(cluster(&[]).check().unwrap_err().contains("REDIS_NODES"));
    }

    #[tokio::test]
    async fn redis_comes_before_a_folder_and_a_folder_before_memory() {
        let folder = tempfile::tempdir().unwrap();
        let folder = || Some((folder.path().to_owned(), Durability::Process));
        let host = RedisConfig { host: "127.0.0.1".to_owned(), ..RedisConfig::default() };
        for (redis, folder, expected) in [
            (&host, folder(), "RedisStore"),
            (&RedisConfig::default(), folder(), "EmbeddedStore"),
            (&RedisConfig::default(), None, "MemoryStore"),
        ] {
            let store = open(redis, Limits::default(), folder).unwrap();
            assert!(format!("{store:?}").starts_with(expected), "{store:?}");
        }
    }
}
