//! Logs: to stderr, as text or JSON, filtered as `RUST_LOG` does.

use std::io::IsTerminal;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, fmt, util::SubscriberInitExt};

use crate::config::{Error, Origin, Problem, Setting};

/// How to log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LogConfig {
    /// Text for people, JSON (one object a line) for machines.
    pub format: LogFormat,
    /// What is logged, such as `info` or `info,tbmq_executor=debug`.
    pub filter: String,
}

impl LogConfig {
    /// Environment names, for a [`LogConfig`] at key `log`.
    pub const SETTINGS: &'static [Setting] = &[
        Setting { env: "TBMQ_LOG", key: "log.filter" },
        Setting { env: "TBMQ_LOG_FORMAT", key: "log.format" },
    ];
}

impl Default for LogConfig {
    fn default() -> Self {
        // The embedded log and the migrations tell of each file and step that they look at.
        let filter = "info,fjall=warn,lsm_tree=warn,sea_orm_migration=warn,sqlx=warn".to_owned();
        Self { format: LogFormat::Text, filter }
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

/// Installs the process's logger. A logger that is installed already stays. Fails on a bad filter.
pub fn init(config: &LogConfig) -> Result<(), Error> {
    let filter = EnvFilter::try_new(&config.filter).map_err(|error| {
        Error::from(Problem::Invalid {
            key: "log.filter".to_owned(),
            value: config.filter.clone(),
            origin: Origin::Merged,
            reason: error.to_string(),
        })
    })?;
    let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let installed = match config.format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).finish().try_init(),
        LogFormat::Json => lines.json().flatten_event(true).finish().try_init(),
    };
    if let Err(error) = installed {
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
        let text = init(&config).unwrap_err().to_string();
        assert!(text.contains("log.filter") && text.contains("tbmq=loud"), "{text}");
    }
}
