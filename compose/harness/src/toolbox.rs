//! Tools of other languages, for the examples in `clients/`: Python's gRPC packages from PyPI and grpcurl from Go's module
//! proxy, each fetched once, in pinned versions, into the folder where the servers lie.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context as _, Result, ensure};

use crate::fetched;

/// What the Python example wants.
const REQUIREMENTS: &str = include_str!("../../../clients/python/requirements.txt");

/// What the README of the example says as well.
const GRPCURL: &str = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3";

/// Tells what keeps the Python example from running; fetches its packages when pip is there.
///
/// # Errors
/// What is missing, and the command that installs it, or why the packages could not be fetched.
pub fn python_availability() -> Result<(), String> {
    static PACKAGES: OnceLock<Result<(), String>> = OnceLock::new();
    PACKAGES
        .get_or_init(|| {
            if packages().exists() {
                return Ok(());
            }
            if pip_is_missing() {
                return Err("the Python example needs pip: apt-get install -y python3-pip".to_owned());
            }
            fetch_packages(&packages(), REQUIREMENTS)
                .map_err(|error| format!("Python's gRPC packages could not be fetched from PyPI: {error:#}"))
        })
        .clone()
}

/// Whether Python or its pip is missing.
pub fn pip_is_missing() -> bool {
    !Command::new("python3")
        .args(["-m", "pip", "--version"])
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Runs a Python script that finds the packages.
pub fn python(script: &Path) -> Command {
    let mut command = Command::new("python3");
    command.arg(script).env("PYTHONPATH", packages()).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// Where the packages of these requirements lie.
fn packages() -> PathBuf {
    let pins: Vec<&str> = REQUIREMENTS.lines().filter(|line| line.starts_with("grpcio==")).collect();
    fetched(&format!("python-{}", pins.join("-").replace("==", "-")))
}

/// Installs the packages that `requirements` pin, and nothing else, into a folder of their own.
pub(crate) fn fetch_packages(target: &Path, requirements: &str) -> Result<()> {
    put(target, |folder| {
        let file = folder.join("requirements.txt");
        fs::write(&file, requirements)?;
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]);
        run(pip.arg("--only-binary=:all:").arg("--target").arg(folder).arg("-r").arg(&file))
    })
}

/// Tells what keeps grpcurl from running; builds it when Go is there.
///
/// # Errors
/// What is missing, and the command that installs it, or why it could not be fetched.
pub fn grpcurl_availability() -> Result<(), String> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            if grpcurl().exists() {
                return Ok(());
            }
            if go_is_missing() {
                return Err("grpcurl needs Go: apt-get install -y golang-go".to_owned());
            }
            build_grpcurl()
                .map_err(|error| format!("grpcurl could not be fetched from Go's module proxy: {error:#}"))
        })
        .clone()
}

/// Whether Go is missing.
pub fn go_is_missing() -> bool {
    !Command::new("go").arg("version").output().is_ok_and(|output| output.status.success())
}

/// Where grpcurl lies.
pub fn grpcurl() -> PathBuf {
    let version = GRPCURL.rsplit('@').next().unwrap_or_default();
    fetched(&format!("grpcurl-{version}")).join("grpcurl")
}

fn build_grpcurl() -> Result<()> {
    let program = grpcurl();
    put(program.parent().context("a program lies in a folder")?, |folder| {
        run_go(Command::new("go").args(["install", GRPCURL]).env("GOBIN", folder), folder)
    })
}

/// Runs a command of Go that keeps modules and objects, half a gigabyte, nowhere.
pub(crate) fn run_go(command: &mut Command, folder: &Path) -> Result<()> {
    let work = tempfile::tempdir_in(folder)?;
    run(command
        .env("GOPATH", work.path().join("path"))
        .env("GOCACHE", work.path().join("cache"))
        .env("GOFLAGS", "-modcacherw")
        .env("GOTOOLCHAIN", "local"))
}

/// Fills a folder of its own and moves it into place when it is complete: several tests may do so at once.
pub(crate) fn put(target: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = target.parent().context("a folder lies in a folder")?;
    fs::create_dir_all(parent)?;
    let folder = tempfile::Builder::new().prefix("fetching-").tempdir_in(parent)?;
    let inside = folder.path().join("complete");
    fs::create_dir(&inside)?;
    fill(&inside)?;
    match fs::rename(&inside, target) {
        Err(_) if target.exists() => Ok(()),
        result => Ok(result?),
    }
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?} could not be started"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {text}", output.status);
    Ok(())
}
