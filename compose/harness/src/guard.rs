//! Sees to it that a server does not outlive the test that started it, even when the test is killed.

use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};

/// While this lives, or until its process ends in whatever way, the guarded process may run; then it is killed.
#[derive(Debug)]
pub struct Guard {
    watcher: Child,
}

impl Guard {
    /// Guards a process by pid.
    ///
    /// # Errors
    /// When `sh` can't be started.
    pub fn of(pid: u32) -> Result<Self> {
        Self::at_end(&format!("kill -9 {pid} 2>/dev/null"))
    }

    /// Has a shell command run when our process ends without dropping this.
    ///
    /// # Errors
    /// When `sh` can't be started.
    pub fn at_end(command: &str) -> Result<Self> {
        // The pipe closes with our process, however it ends; `read` then returns and the shell kills.
        let watcher = Command::new("sh")
            .args(["-c", &format!("read -r _; {command}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("sh could not be started to guard a server")?;
        Ok(Self { watcher })
    }
}

impl Drop for Guard {
    /// Ends the guard without touching the process: the owner has stopped it, or is about to.
    fn drop(&mut self) {
        if let Err(error) = self.watcher.kill().and_then(|()| self.watcher.wait()) {
            eprintln!("a guard could not be ended: {error}");
        }
    }
}

/// Sends a signal to a process.
///
/// # Errors
/// When there is no such process.
pub fn signal(pid: u32, signal: rustix::process::Signal) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).context("not a pid")?;
    rustix::process::kill_process(pid, signal).with_context(|| format!("no process {pid:?} to signal"))
}
