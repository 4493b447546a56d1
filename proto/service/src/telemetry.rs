//! Logs: to stderr, as text or JSON, filtered as `RUST_LOG` does, and without floods.
//!
//! A line of JSON says which service and plane it is of, and what it is traced as: fields of spans are fields of the line.

mod json;
mod repeats;

use std::{io::IsTerminal, num::NonZeroU64, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing_subscriber::{
    EnvFilter, Layer as _,
    fmt::{self, format::JsonFields},
    layer::SubscriberExt as _,
    util::SubscriberInitExt,
};

pub use self::repeats::EVERY_LINE;
pub(crate) use self::repeats::{register, sum_up, sum_up_last};
use self::{json::Json, repeats::Repeats};
use crate::config::{Error, Origin, Problem, Setting};

/// How to log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LogConfig {
    /// Text for people, JSON (one object a line) for machines.
    pub format: LogFormat,
    /// What is logged, such as `info` or `info,tbmq_executor=debug`.
    pub filter: String,
    /// Lines that one place in the program may log in an interval, from 0; what is more is held back and summed up in
    /// one line of the same level. Only `error`, `warn` and `info` are held back. 0: no limit.
    pub repeats_max: u64,
    /// The interval of `repeats-max`, s, from 1.
    pub repeats_interval: NonZeroU64,
}

impl LogConfig {
    /// Environment names, for a [`LogConfig`] at key `log`.
    pub const SETTINGS: &'static [Setting] = &[
        Setting { env: "TBMQ_LOG", key: "log.filter" },
        Setting { env: "TBMQ_LOG_FORMAT", key: "log.format" },
        Setting { env: "TBMQ_LOG_REPEATS_MAX", key: "log.repeats-max" },
        Setting { env: "TBMQ_LOG_REPEATS_INTERVAL", key: "log.repeats-interval" },
    ];
}

impl Default for LogConfig {
    fn default() -> Self {
        // The embedded log and the migrations tell of each file and step that they look at.
        let filter = "info,fjall=warn,lsm_tree=warn,sea_orm_migration=warn,sqlx=warn".to_owned();
        let repeats_interval = NonZeroU64::new(30).expect("not 0");
        Self { format: LogFormat::Text, filter, repeats_max: 100, repeats_interval }
    }
}

/// The form of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Installs the logger of the process with this service id and role, such as `data-plane`. A logger that is installed
/// already stays. Fails on a bad filter.
pub fn init(config: &LogConfig, service_id: &str, role: &'static str) -> Result<(), Error> {
    let filter = EnvFilter::try_new(&config.filter).map_err(|error| {
        Error::from(Problem::Invalid {
            key: "log.filter".to_owned(),
            value: config.filter.clone(),
            origin: Origin::Merged,
            reason: error.to_string(),
        })
    })?;
    let lines = match config.format {
        LogFormat::Text => {
            fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).boxed()
        }
        LogFormat::Json => fmt::layer()
            .with_writer(std::io::stderr)
            .fmt_fields(JsonFields::new())
            .event_format(Json::new(service_id, role))
            .boxed(),
    };
    let interval = Duration::from_secs(config.repeats_interval.get());
    let repeats = NonZeroU64::new(config.repeats_max).map(|max| Repeats::install(max, interval));
    let logger = tracing_subscriber::registry().with(lines).with(filter).with(repeats);
    if let Err(error) = logger.try_init() {
        tracing::debug!(%error, "a logger is installed already");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_is_an_error_that_names_it() {
        let config = LogConfig { filter: "tbmq=loud".to_owned(), ..LogConfig::default() };
        let text = init(&config, "node-1", "test").unwrap_err().to_string();
        assert!(text.contains("log.filter") && text.contains("tbmq=loud"), "{text}");
    }
}
