//! A small file system that can be full.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use tbmq_harness::guard::Guard;
use tempfile::TempDir;

/// MiB while there is room.
const ROOMY_MIB: u32 = 2048;

/// A mounted tmpfs; unmounted when dropped, and when our process ends in whatever way.
#[derive(Debug)]
pub(super) struct Disk {
    folder: TempDir,
    _guard: Guard,
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("{program} could not be started"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), stderr.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Disk {
    /// Mounts it.
    ///
    /// # Errors
    /// When that is not permitted.
    pub(super) fn mount() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("tbmq-chaos-disk-").tempdir()?;
        let path = folder.path().display().to_string();
        run("mount", &["-t", "tmpfs", "-o", &format!("size={ROOMY_MIB}m"), "tmpfs", &path])?;
        let guard = Guard::at_end(&format!("umount -l '{path}'; rmdir '{path}'"))?;
        Ok(Self { folder, _guard: guard })
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Leaves some 64 KiB free, which the next records take.
    ///
    /// # Errors
    /// When the mount is gone.
    pub(super) fn fill(&self) -> Result<()> {
        let path = self.path().display().to_string();
        let used = run("df", &["--block-size=1", "--output=used", &path])?;
        let used: u64 = used.lines().nth(1).context("df printed no number")?.trim().parse()?;
        self.resize(&(used + (64 << 10)).to_string())
    }

    /// Has room again.
    ///
    /// # Errors
    /// When the mount is gone.
    pub(super) fn free(&self) -> Result<()> {
        self.resize(&format!("{ROOMY_MIB}m"))
    }

    fn resize(&self, size: &str) -> Result<()> {
        let path = self.path().display().to_string();
        run("mount", &["-o", &format!("remount,size={size}"), &path]).map(drop)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = run("umount", &["-l", &self.path().display().to_string()]) {
            eprintln!("{error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_refuses_what_it_takes_once_it_has_room_again() {
        let Ok(disk) = Disk::mount() else {
            // Only root may mount; the fault is then left out and the report says so.
            return;
        };
        std::fs::write(disk.path().join("before"), vec![1; 1 << 20]).unwrap();
        disk.fill().unwrap();
        std::fs::write(disk.path().join("more"), vec![1; 1 << 20]).unwrap_err();
        disk.free().unwrap();
        std::fs::write(disk.path().join("more"), vec![1; 1 << 20]).unwrap();
    }
}
