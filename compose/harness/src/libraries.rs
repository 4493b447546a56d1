//! MQTT libraries of other languages, each fetched once, in a pinned version, into the folder where the servers lie. The
//! programs around them are in `compose/e2e/clients`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use crate::{
    fetched,
    toolbox::{fetch_packages, go_is_missing, pip_is_missing, put, run, run_go},
};

const PAHO_PYTHON: &str = include_str!("../../e2e/clients/paho_python/requirements.txt");
const MQTTJS: [(&str, &str); 2] = [
    ("package.json", include_str!("../../e2e/clients/mqttjs/package.json")),
    ("package-lock.json", include_str!("../../e2e/clients/mqttjs/package-lock.json")),
];
const AUTOPAHO: [(&str, &str); 3] = [
    ("agent.go", include_str!("../../e2e/clients/autopaho/agent.go")),
    ("go.mod", include_str!("../../e2e/clients/autopaho/go.mod")),
    ("go.sum", include_str!("../../e2e/clients/autopaho/go.sum")),
];

/// A library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// Eclipse Paho for Python, from PyPI.
    PahoPython,
    /// MQTT.js, from npm.
    MqttJs,
    /// Eclipse Paho for Go with its autopaho, from Go's module proxy.
    Autopaho,
}

impl Library {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::PahoPython, Self::MqttJs, Self::Autopaho];

    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::PahoPython => "paho-mqtt for Python",
            Self::MqttJs => "MQTT.js",
            Self::Autopaho => "autopaho for Go",
        }
    }

    /// Tells what keeps it from running; fetches it when what it takes is there.
    ///
    /// # Errors
    /// What is missing, and the command that installs it, or why it could not be fetched.
    pub fn availability(self) -> Result<(), String> {
        static FETCHED: [OnceLock<Result<(), String>>; 3] = [const { OnceLock::new() }; 3];
        let fetched = || {
            if self.folder().exists() {
                return Ok(());
            }
            let (is_missing, package): (fn() -> bool, _) = match self {
                Self::PahoPython => (pip_is_missing, "python3-pip"),
                Self::MqttJs => (npm_is_missing, "npm"),
                Self::Autopaho => (go_is_missing, "golang-go"),
            };
            if is_missing() {
                return Err(format!("{} needs {package}: apt-get install -y {package}", self.name()));
            }
            self.fetch().map_err(|error| format!("{} could not be fetched: {error:#}", self.name()))
        };
        FETCHED[self as usize].get_or_init(fetched).clone()
    }

    /// The program that takes commands for it, ready to be started.
    pub fn program(self) -> Command {
        let agents = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/clients");
        match self {
            Self::PahoPython => {
                let mut command = Command::new("python3");
                command.arg(agents.join("paho_python/agent.py"));
                command.env("PYTHONPATH", self.folder()).env("PYTHONDONTWRITEBYTECODE", "1");
                command
            }
            Self::MqttJs => {
                let mut command = Command::new("node");
                command.arg(agents.join("mqttjs/agent.cjs"));
                command.env("NODE_PATH", self.folder().join("node_modules"));
                command
            }
            Self::Autopaho => Command::new(self.folder().join("agent")),
        }
    }

    /// Where it lies: another version is another folder.
    fn folder(self) -> PathBuf {
        let (name, sources) = match self {
            Self::PahoPython => ("paho-python", vec![PAHO_PYTHON]),
            Self::MqttJs => ("mqttjs", MQTTJS.map(|(_, text)| text).to_vec()),
            Self::Autopaho => ("autopaho", AUTOPAHO.map(|(_, text)| text).to_vec()),
        };
        let digest = Sha256::digest(sources.concat());
        let digest: [u8; 32] = digest.into();
        let number = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
        fetched(&format!("{name}-{number:08x}"))
    }

    fn fetch(self) -> Result<()> {
        let target = self.folder();
        match self {
            Self::PahoPython => fetch_packages(&target, PAHO_PYTHON),
            Self::MqttJs => put(&target, |folder| {
                write_all(folder, &MQTTJS)?;
                let mut npm = Command::new("npm");
                run(npm.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]).current_dir(folder))
            }),
            Self::Autopaho => put(&target, |folder| {
                let sources = tempfile::tempdir_in(folder)?;
                write_all(sources.path(), &AUTOPAHO)?;
                let mut go = Command::new("go");
                go.args(["build", "-mod=readonly", "-o"]).arg(folder.join("agent")).arg(".");
                run_go(go.current_dir(sources.path()), folder)
            }),
        }
    }
}

/// Whether Node.js or its npm is missing.
pub fn npm_is_missing() -> bool {
    ["node", "npm"].into_iter().any(|program| {
        !Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
    })
}

fn write_all(folder: &Path, files: &[(&str, &str)]) -> Result<()> {
    for (name, text) in files {
        fs::write(folder.join(name), text).with_context(|| format!("can't write {name}"))?;
    }
    Ok(())
}
