//! The configuration of all planes: their trees share one file.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use clap::Args;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tbmq_service::{
    config::{Loader, Setting},
    shell::{self, Misconfigured},
};

/// Arguments of `tbmq` beside the shell's own.
#[derive(Clone, Debug, Args)]
pub(crate) struct Arguments {
    /// Folder for everything that is kept: the embedded log, clients' sessions and the SQLite database
    #[arg(long, value_name = "DIRECTORY", env = "TBMQ_DATA_DIR", default_value = "./tbmq-data")]
    pub(crate) data_dir: PathBuf,
}

/// What the three planes and their composition are configured with.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) own: OwnConfig,
    pub(crate) control_plane: tbmq_control_plane::Config,
    pub(crate) data_plane: tbmq_data_plane::Config,
    pub(crate) executor: tbmq_executor::Config,
}

/// The composition's own part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct OwnConfig {
    /// The embedded log.
    pub(crate) bus: BusConfig,
}

/// The embedded log, and what is kept beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct BusConfig {
    /// What an acknowledged record, or what is kept of a client's session, survives.
    pub(crate) durability: Durability,
}

/// What an acknowledged record survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Durability {
    /// The end of the process, and the loss of power.
    #[default]
    Power,
    /// The end of the process alone; faster.
    Process,
}

/// Environment names of [`OwnConfig`].
pub(crate) const SETTINGS: &[Setting] = &[Setting { env: "TBMQ_BUS_DURABILITY", key: "bus.durability" }];

impl Config {
    /// Takes all parts from one file and one environment.
    pub(crate) fn load(loader: &mut Loader, _: &Arguments) -> Self {
        let defaults = Self::default();
        Self {
            own: loader.load(defaults.own, &[SETTINGS]),
            control_plane: loader.load(defaults.control_plane, &[tbmq_control_plane::SETTINGS]),
            data_plane: loader.load(defaults.data_plane, &[tbmq_data_plane::SETTINGS]),
            executor: loader.load(defaults.executor, &[tbmq_executor::SETTINGS]),
        }
    }

    /// For `--print-config`.
    pub(crate) fn trees(&self) -> Vec<serde_json::Value> {
        vec![
            shell::tree(&self.own),
            shell::tree(&self.control_plane),
            shell::tree(&self.data_plane),
            shell::tree(&self.executor),
        ]
    }
}

/// Which planes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Roles {
    All,
    /// Control and data plane.
    Broker,
    Executor,
}

impl Roles {
    /// From `TB_SERVICE_TYPE`.
    pub(crate) fn of(service_type: Option<&str>) -> Result<Self, Misconfigured> {
        // TBMQ reads it in upper or lower case, with `-` or `_` (spec §4.1).
        let normal = service_type.unwrap_or_default().trim().to_ascii_lowercase().replace('_', "-");
        match normal.as_str() {
            "" => Ok(Self::All),
            "tbmq" => Ok(Self::Broker),
            "tbmq-integration-executor" => Ok(Self::Executor),
            other => Err(Misconfigured::new(format!(
                "bad value {other:?} for service.type (TB_SERVICE_TYPE): expected tbmq, tbmq-integration-executor or \
                 nothing for all planes"
            ))),
        }
    }
}

impl Default for Config {
    /// The planes' own defaults, except that everything listens on loopback: what a newcomer starts is for this
    /// machine alone until told otherwise.
    fn default() -> Self {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut control_plane = tbmq_control_plane::Config::default();
        control_plane.control.grpc.bind_address = loopback;
        let mut data_plane = tbmq_data_plane::Config::default();
        for listener in [
            &mut data_plane.listener.tcp,
            &mut data_plane.listener.ssl,
            &mut data_plane.listener.ws,
            &mut data_plane.listener.wss,
        ] {
            listener.bind_address = loopback;
        }
        Self {
            own: OwnConfig::default(),
            control_plane,
            data_plane,
            executor: tbmq_executor::Config::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn leaves(path: &str, tree: &serde_json::Value, into: &mut BTreeMap<String, serde_json::Value>) {
        match tree {
            serde_json::Value::Object(object) => {
                for (key, value) in object {
                    leaves(&format!("{path}.{key}"), value, into);
                }
            }
            value => {
                into.insert(path.to_owned(), value.clone());
            }
        }
    }

    #[test]
    fn a_key_that_several_planes_read_means_the_same_to_all() {
        let mut seen = BTreeMap::new();
        for tree in Config::default().trees() {
            let mut all = BTreeMap::new();
            leaves("", &tree, &mut all);
            for (key, value) in all {
                let held = seen.entry(key.clone()).or_insert_with(|| value.clone());
                assert_eq!(*held, value, "{key}");
            }
        }
    }

    #[test]
    fn the_service_type_is_read_as_tbmq_does() {
        assert_eq!(Roles::of(None).unwrap(), Roles::All);
        assert_eq!(Roles::of(Some("")).unwrap(), Roles::All);
        assert_eq!(Roles::of(Some("TBMQ")).unwrap(), Roles::Broker);
        assert_eq!(Roles::of(Some("tbmq-integration-executor")).unwrap(), Roles::Executor);
        assert_eq!(Roles::of(Some("TBMQ_INTEGRATION_EXECUTOR")).unwrap(), Roles::Executor);
        assert!(Roles::of(Some("broker")).unwrap_err().to_string().contains("\"broker\""));
    }
}
