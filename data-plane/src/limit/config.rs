//! Settings of limits: TBMQ's names and defaults where TBMQ has them (broker spec §5). All are read at the start, and off
//! unless they are set.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tbmq_auth::limits::RateLimit;

/// The slowest that a client's bytes may come: below it, what was read at once would keep the client unread for a minute
/// and more.
const BYTES_PER_SECOND_MIN: u64 = 1000;

/// How often something may happen: `count:seconds`, several with commas between them, all of which must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RateLimitsConfig {
    /// Messages that a client publishes: beyond the limit a publish is answered 0x97, at QoS 0 it is dropped, and the
    /// connection of a 3.x client is closed.
    pub incoming_publish: ClientRateLimitConfig,
    /// Messages that a client gets at QoS 0: more are dropped.
    pub outgoing_publish: ClientRateLimitConfig,
    /// Messages of all clients of all nodes: each that is published, and each delivery of one beyond its first. A node
    /// has an even share. Publishes are refused as with `incoming-publish`, deliveries dropped.
    pub total: RateLimitConfig,
    /// Messages put into queues of sessions, on all nodes. A node has an even share. The first receivers of a message get it.
    pub device_persisted_messages: RateLimitConfig,
    /// Bytes that a client sends, at least 1000 a second; when it is faster, its socket is not read for a while, and nothing is
    /// lost. `off`: no limit.
    #[serde(with = "text_or_off")]
    #[schemars(with = "String")]
    pub incoming_bytes: Option<RateLimit>,
    /// Connections that the node takes; more are closed at once. `off`: no limit.
    #[serde(with = "text_or_off")]
    #[schemars(with = "String")]
    pub connections: Option<RateLimit>,
    /// Connections that the node takes from one IPv4 address, or IPv6 network of 64 bits; more are closed
    /// at once, before TLS. `off`: no limit.
    #[serde(with = "text_or_off")]
    #[schemars(with = "String")]
    pub address_connections: Option<RateLimit>,
}

impl Default for RateLimitsConfig {
    fn default() -> Self {
        Self {
            incoming_publish: ClientRateLimitConfig::default(),
            outgoing_publish: ClientRateLimitConfig::default(),
            total: RateLimitConfig { enabled: false, config: of("1000:1,50000:60") },
            device_persisted_messages: RateLimitConfig { enabled: false, config: of("100:1,1000:60") },
            incoming_bytes: None,
            connections: None,
            address_connections: None,
        }
    }
}

impl RateLimitsConfig {
    /// Checks what types can't say.
    pub(crate) fn check(&self) -> Result<(), String> {
        match &self.incoming_bytes {
            Some(limit) if limit.per_second() < BYTES_PER_SECOND_MIN => Err(format!(
                "bad value \"{limit}\" for mqtt.rate-limits.incoming-bytes (TBMQ_MQTT_INCOMING_BYTES_RATE_LIMIT): at \
                 least {BYTES_PER_SECOND_MIN} bytes a second, or off"
            )),
            _ => Ok(()),
        }
    }
}

/// A limit of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RateLimitConfig {
    /// Whether the limit is on.
    pub enabled: bool,
    /// The limit of all nodes together, as `count:seconds[,count:seconds…]`.
    #[serde(with = "text")]
    #[schemars(with = "String")]
    pub config: RateLimit,
}

impl RateLimitConfig {
    pub(crate) fn limit(&self) -> Option<RateLimit> {
        self.enabled.then(|| self.config.clone())
    }
}

/// A limit of each client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ClientRateLimitConfig {
    /// Whether the limit is on.
    pub enabled: bool,
    /// The limit of each client, as `count:seconds[,count:seconds…]`.
    #[serde(with = "text")]
    #[schemars(with = "String")]
    pub client_config: RateLimit,
}

impl Default for ClientRateLimitConfig {
    fn default() -> Self {
        Self { enabled: false, client_config: of("10:1,300:60") }
    }
}

impl ClientRateLimitConfig {
    pub(crate) fn limit(&self) -> Option<RateLimit> {
        self.enabled.then(|| self.client_config.clone())
    }
}

fn of(text: &str) -> RateLimit {
    text.parse().expect("TBMQ's default is a rate limit")
}

/// A rate limit as text.
mod text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    use tbmq_auth::limits::RateLimit;

    pub(super) fn serialize<S: Serializer>(limit: &RateLimit, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(limit)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RateLimit, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// A rate limit as text, or that there is none.
mod text_or_off {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    use tbmq_auth::limits::RateLimit;

    const OFF: &str = "off";

    #[expect(clippy::ref_option, reason = "serde's own signature")]
    pub(super) fn serialize<S: Serializer>(
        limit: &Option<RateLimit>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match limit {
            Some(limit) => serializer.collect_str(limit),
            None => serializer.serialize_str(OFF),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<RateLimit>, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == OFF {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|error| D::Error::custom(format_args!("{error}, or off")))
    }
}

#[cfg(test)]
mod tests {
    use tbmq_service::config::load_from;

    use super::*;
    use crate::{Config, SETTINGS};

    fn load(name: &str, value: &str) -> Result<RateLimitsConfig, String> {
        let one = [(name.to_owned(), value.to_owned())];
        load_from(&[SETTINGS], None, one.into_iter())
            .map(|config: Config| config.mqtt.rate_limits)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_is_limited_unless_it_is_switched_on() {
        let config = RateLimitsConfig::default();
        assert_eq!(config.incoming_publish.limit(), None);
        assert_eq!(config.outgoing_publish.limit(), None);
        assert_eq!(config.total.limit(), None);
        assert_eq!(config.device_persisted_messages.limit(), None);
        assert_eq!(
            (config.incoming_bytes, config.connections, config.address_connections),
            (None, None, None)
        );
        let on = load("MQTT_TOTAL_RATE_LIMITS_ENABLED", "true").unwrap();
        assert_eq!(on.total.limit(), Some(of("1000:1,50000:60")));
        let on = load("MQTT_INCOMING_RATE_LIMITS_ENABLED", "true").unwrap();
        assert_eq!(on.incoming_publish.limit(), Some(of("10:1,300:60")));
    }

    #[test]
    fn one_part_or_several_are_read_from_the_environment() {
        for value in ["5:1", "5:1,100:60", "5:1,100:60,1000:3600"] {
            let config = load("MQTT_OUTGOING_RATE_LIMITS_CLIENT_CONFIG", value).unwrap();
            assert_eq!(config.outgoing_publish.client_config.to_string(), value);
            let config = load("TBMQ_MQTT_CONNECTION_RATE_LIMIT", value).unwrap();
            assert_eq!(config.connections.unwrap().to_string(), value);
        }
        assert_eq!(load("TBMQ_MQTT_CONNECTION_RATE_LIMIT", "off").unwrap().connections, None);
    }

    #[test]
    fn a_bad_limit_is_told_with_its_setting_the_part_that_is_wrong_and_the_way_out() {
        for (name, value, parts) in [
            (
                "MQTT_INCOMING_RATE_LIMITS_CLIENT_CONFIG",
                "10:1,300",
                [
                    "mqtt.rate-limits.incoming-publish.client-config",
                    "\"300\" is not count:seconds, as in 10:1,300:60",
                ],
            ),
            (
                "MQTT_TOTAL_RATE_LIMITS_CONFIG",
                "0:1",
                ["mqtt.rate-limits.total.config", "switch the limit off instead"],
            ),
            (
                "MQTT_DEVICE_PERSISTED_MSGS_RATE_LIMITS_CONFIG",
                "10",
                ["mqtt.rate-limits.device-persisted-messages.config", "\"10\" is not count:seconds"],
            ),
            (
                "TBMQ_MQTT_CONNECTION_RATE_LIMIT",
                "none",
                ["mqtt.rate-limits.connections", "\"none\" is not count:seconds, as in 10:1,300:60, or off"],
            ),
            (
                "TBMQ_MQTT_ADDRESS_CONNECTION_RATE_LIMIT",
                "",
                ["mqtt.rate-limits.address-connections", "or off"],
            ),
        ] {
            let error = load(name, value).unwrap_err();
            for part in [name, value].into_iter().chain(parts) {
                assert!(error.contains(part), "{error}: no {part}");
            }
        }
    }

    #[test]
    fn bytes_that_would_come_too_slowly_are_refused() {
        let check = |value| load("TBMQ_MQTT_INCOMING_BYTES_RATE_LIMIT", value).unwrap().check();
        assert_eq!(check("off"), Ok(()));
        assert_eq!(check("1000:1"), Ok(()));
        let error = check("1000:1,59999:60").unwrap_err();
        for part in
            ["TBMQ_MQTT_INCOMING_BYTES_RATE_LIMIT", "1000:1,59999:60", "at least 1000 bytes a second, or off"]
        {
            assert!(error.contains(part), "{error}: no {part}");
        }
    }
}
