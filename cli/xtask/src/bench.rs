//! `cargo xtask bench`: builds in release mode and runs `tbmq-bench`, which starts what it measures.

use std::{path::Path, process::Command};

use anyhow::{Result, ensure};

pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let build = Command::new("cargo")
        .args(["build", "--release", "--workspace", "--bins"])
        .current_dir(root)
        .status()?;
    ensure!(build.success(), "the build failed");
    let target = crate::target(root);
    let status =
        Command::new(target.join("release/tbmq-bench")).args(arguments).current_dir(root).status()?;
    ensure!(status.success(), "the benchmark failed");
    Ok(())
}
