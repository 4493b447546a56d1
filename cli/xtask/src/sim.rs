//! `cargo xtask sim`: builds and runs `tbmq-sim`.

use std::{path::Path, process::Command};

use anyhow::{Result, ensure};

pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let status = Command::new("cargo")
        .args(["run", "--quiet", "--package", "tbmq-sim", "--"])
        .args(arguments)
        .current_dir(root)
        .status()?;
    ensure!(status.success(), "the simulation has found something");
    Ok(())
}
