//! Linters of what deploys TBMQ, from PyPI, npm and Go's module proxy, each fetched once, in pinned versions, into the folder
//! where the servers lie. `cargo xtask deploy` runs them.

use std::{fs, path::PathBuf, process::Command, sync::OnceLock};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use crate::{
    fetched,
    libraries::npm_is_missing,
    toolbox::{fetch_packages, go_is_missing, pip_is_missing, put, run, run_go},
};

const REQUIREMENTS: &str = include_str!("../linters/requirements.txt");
const NODE: [(&str, &str); 4] = [
    ("package.json", include_str!("../linters/package.json")),
    ("package-lock.json", include_str!("../linters/package-lock.json")),
    ("dashboards.mjs", include_str!("../linters/dashboards.mjs")),
    ("custom-resources.mjs", include_str!("../linters/custom-resources.mjs")),
];
const KUSTOMIZE: &str = "sigs.k8s.io/kustomize/kustomize/v5@v5.7.1";

/// Tells what keeps the linters from running; fetches them when pip, npm and Go are there.
///
/// # Errors
/// What is missing, and the command that installs it, or why it could not be fetched.
pub fn availability() -> Result<(), String> {
    static FETCHED: OnceLock<Result<(), String>> = OnceLock::new();
    FETCHED
        .get_or_init(|| python_packages().and_then(|()| node_packages()).and_then(|()| kustomize_built()))
        .clone()
}

fn python_packages() -> Result<(), String> {
    if python_folder().exists() {
        return Ok(());
    }
    if pip_is_missing() {
        return Err("linters need pip: apt-get install -y python3-pip".to_owned());
    }
    fetch_packages(&python_folder(), REQUIREMENTS)
        .map_err(|error| format!("linters could not be fetched from PyPI: {error:#}"))
}

fn node_packages() -> Result<(), String> {
    if node_folder().exists() {
        return Ok(());
    }
    if npm_is_missing() {
        return Err("schemas need npm: apt-get install -y npm".to_owned());
    }
    let fetch = || {
        put(&node_folder(), |folder| {
            for (name, text) in NODE {
                fs::write(folder.join(name), text).with_context(|| format!("can't write {name}"))?;
            }
            let mut npm = Command::new("npm");
            run(npm.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]).current_dir(folder))
        })
    };
    fetch().map_err(|error| format!("schemas could not be fetched from npm: {error:#}"))
}

fn kustomize_built() -> Result<(), String> {
    if kustomize_program().exists() {
        return Ok(());
    }
    if go_is_missing() {
        return Err("kustomize needs Go: apt-get install -y golang-go".to_owned());
    }
    let build = || {
        put(&kustomize_folder(), |folder| {
            // Nobody debugs it: a third less to link.
            let arguments = ["install", "-ldflags=-s -w", KUSTOMIZE];
            run_go(Command::new("go").args(arguments).env("GOBIN", folder), folder)
        })
    };
    build().map_err(|error| format!("kustomize could not be fetched from Go's module proxy: {error:#}"))
}

/// A Python program of the packages, such as `yamllint`.
pub fn python(program: &str) -> Command {
    let folder = python_folder();
    let mut command = Command::new(folder.join("bin").join(program));
    command.env("PYTHONPATH", folder).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// A script of `linters/`, or the TypeScript compiler, among the schemas.
pub fn node(script: &str) -> Command {
    let mut command = Command::new("node");
    command.arg(node_folder().join(script));
    command
}

/// kustomize.
pub fn kustomize() -> Command {
    Command::new(kustomize_program())
}

/// Where the schemas lie: what is to find them must lie there as well.
pub fn node_folder() -> PathBuf {
    folder("schemas", &NODE.map(|(_, text)| text).concat())
}

fn python_folder() -> PathBuf {
    folder("linters", REQUIREMENTS)
}

fn kustomize_folder() -> PathBuf {
    fetched(&format!("kustomize-{}", KUSTOMIZE.rsplit('@').next().unwrap_or_default()))
}

fn kustomize_program() -> PathBuf {
    kustomize_folder().join("kustomize")
}

/// Another version is another folder.
fn folder(name: &str, content: &str) -> PathBuf {
    let digest: [u8; 32] = Sha256::digest(content).into();
    let number = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
    fetched(&format!("{name}-{number:08x}"))
}
