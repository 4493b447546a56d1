//! `cargo xtask chaos`: builds the planes and runs `tbmq-chaos`, which starts and breaks them.

use std::{path::Path, process::Command};

use anyhow::{Result, ensure};

const PACKAGES: [&str; 4] = ["tbmq-control-plane", "tbmq-data-plane", "tbmq-executor", "tbmq-e2e"];

pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let packages = PACKAGES.iter().flat_map(|package| ["-p", package]);
    let build = Command::new("cargo").arg("build").args(packages).arg("--bins").current_dir(root).status()?;
    ensure!(build.success(), "the build failed");
    let target = crate::target(root);
    let status = Command::new(target.join("debug/tbmq-chaos")).args(arguments).current_dir(root).status()?;
    ensure!(status.success(), "a round failed");
    Ok(())
}
