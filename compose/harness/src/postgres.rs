//! A real PostgreSQL from the machine's own binaries, in a data folder of its own.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::{
    fs::{FlockOperation, flock},
    process::Signal,
};
use tempfile::TempDir;

use crate::guard::{Guard, signal};

/// Tells how to get the server when it is missing.
///
/// # Errors
/// What is missing, and the command that installs it.
pub fn availability() -> Result<(), String> {
    match binaries() {
        Some(_) => Ok(()),
        None => Err("PostgreSQL's server is missing: apt-get install -y postgresql".to_owned()),
    }
}

/// Name and major version, such as `PostgreSQL 15`.
pub fn version() -> Option<String> {
    let folder = binaries()?;
    Some(format!("PostgreSQL {}", folder.parent()?.file_name()?.to_str()?))
}

fn binaries() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut folders: Vec<PathBuf> = versions
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|folder| folder.join("initdb").exists())
        .collect();
    folders.sort();
    folders.pop()
}

/// A running server.
#[derive(Debug)]
pub struct Postgres {
    server: Mutex<Option<(Child, Guard)>>,
    data: PathBuf,
    port: u16,
    databases: AtomicU32,
    _folder: TempDir,
}

impl Postgres {
    /// Creates a data folder and starts a server on a free port. Blocks until it answers, at most 60 s.
    ///
    /// # Errors
    /// When a step fails, with the server's log.
    pub fn start() -> Result<Self> {
        let binaries = binaries().context("PostgreSQL is missing")?;
        let folder = tempfile::Builder::new().prefix("tbmq-postgres-").tempdir()?;
        let data = folder.path().join("data");
        fs::create_dir(&data)?;
        if rustix::process::geteuid().is_root() {
            // PostgreSQL refuses root: everything below the folder belongs to its own user.
            let status = Command::new("chown").arg("-R").arg("postgres").arg(folder.path()).status()?;
            ensure!(status.success(), "chown to postgres failed");
        }
        let output = unprivileged(&binaries.join("initdb"))
            .arg("-D")
            .arg(&data)
            .args(["-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync", "--locale=C.UTF-8"])
            .output()?;
        ensure!(output.status.success(), "initdb failed: {}", String::from_utf8_lossy(&output.stderr));
        let port = free_port()?;
        let postgres =
            Self { server: Mutex::default(), data, port, databases: AtomicU32::new(0), _folder: folder };
        postgres.launch()?;
        Ok(postgres)
    }

    /// One server for all tests of a binary.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(|| Self::start().expect("PostgreSQL starts"))
    }

    /// Creates an empty database and returns its URL, `postgres://…`.
    ///
    /// # Errors
    /// When `psql` fails.
    pub fn create_database(&self) -> Result<String> {
        let name = format!("test_{}_{}", std::process::id(), self.databases.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"))?;
        Ok(format!("postgres://postgres@127.0.0.1:{}/{name}", self.port))
    }

    /// Runs a statement and returns what it prints, unaligned and without headers.
    ///
    /// # Errors
    /// When `psql` fails.
    pub fn sql(&self, database: &str, statement: &str) -> Result<String> {
        let binaries = binaries().context("PostgreSQL is missing")?;
        let output = Command::new(binaries.join("psql"))
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres", "-d", database])
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement])
            .output()?;
        ensure!(output.status.success(), "psql failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Where it keeps its data.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Pid of the server.
    ///
    /// # Panics
    /// When it was stopped.
    pub fn pid(&self) -> u32 {
        let server = self.server.lock().expect("no step panics");
        server.as_ref().map(|(child, _)| child.id()).expect("it runs")
    }

    /// Ends the server cleanly, cutting its connections (SIGINT, a "fast shutdown"), and waits.
    ///
    /// # Errors
    /// When it is not running.
    pub fn stop(&self) -> Result<()> {
        self.end(Signal::INT)
    }

    /// Kills the server's first process (SIGKILL) and waits; the others see that and end.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill(&self) -> Result<()> {
        self.end(Signal::KILL)
    }

    /// Starts a stopped or killed server again, with its data and on its port. Blocks until it answers, at most 60 s.
    ///
    /// # Errors
    /// When it runs, or does not come up.
    pub fn launch(&self) -> Result<()> {
        let binaries = binaries().context("PostgreSQL is missing")?;
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut server = self.server.lock().expect("no step panics");
        ensure!(server.is_none(), "PostgreSQL is running");
        loop {
            let mut child = spawn(&binaries, &self.data, self.port)?;
            let guard = Guard::of(child.id())?;
            match self.await_ready(&mut child, deadline) {
                Ok(()) => {
                    *server = Some((child, guard));
                    return Ok(());
                }
                // Processes of a killed server hold its shared memory for a moment more.
                Err(_) if child.try_wait()?.is_some() && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Ends the server at once (SIGQUIT, an "immediate shutdown") and starts it again on the same port and data.
    ///
    /// # Errors
    /// When it does not come back.
    pub fn restart(&self) -> Result<()> {
        self.end(Signal::QUIT)?;
        self.launch()
    }

    fn end(&self, how: Signal) -> Result<()> {
        let (mut child, guard) =
            self.server.lock().expect("no step panics").take().context("PostgreSQL is not running")?;
        signal(child.id(), how)?;
        child.wait()?;
        drop(guard);
        Ok(())
    }

    fn await_ready(&self, server: &mut Child, deadline: Instant) -> Result<()> {
        loop {
            match self.sql("postgres", "SELECT 1") {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => {}
            }
            if let Some(status) = server.try_wait()? {
                bail!("PostgreSQL ended with {status}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let running = self.server.lock().is_ok_and(|server| server.is_some());
        if running && let Err(error) = self.end(Signal::QUIT) {
            eprintln!("PostgreSQL could not be stopped: {error}");
        }
    }
}

fn spawn(binaries: &Path, data: &Path, port: u16) -> Result<Child> {
    unprivileged(&binaries.join("postgres"))
        .arg("-D")
        .arg(data)
        .args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"])
        .args(["-c", "fsync=off", "-c", "max_connections=200"])
        .arg("-c")
        .arg(format!("unix_socket_directories={}", data.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("PostgreSQL could not be started")
}

/// A command that runs as the user `postgres` when we are root. `setpriv` replaces itself: the pid is the server's.
fn unprivileged(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
    command.current_dir("/");
    command
}

/// A port that is free, and that neither another call, in whatever process that is still there, nor an outgoing
/// connection is given: it lies below the range from which the system takes ports by itself.
///
/// # Errors
/// When none is free.
pub fn free_port() -> Result<u16> {
    const RANGE: std::ops::Range<u32> = 10_000..32_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    /// A locked file for each port that was given.
    static GIVEN: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let folder = std::env::temp_dir().join(format!("tbmq-ports-{}", rustix::process::geteuid().as_raw()));
    fs::create_dir_all(&folder)?;
    let size = RANGE.end - RANGE.start;
    for _ in 0..size {
        // Processes begin at different places.
        let step = std::process::id().wrapping_mul(101).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(RANGE.start + step % size)?;
        let file =
            File::options().create(true).truncate(false).write(true).open(folder.join(port.to_string()))?;
        let is_ours = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
        if is_ours && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            GIVEN.lock().expect("nothing panics with it").push(file);
            return Ok(port);
        }
    }
    bail!("no port is free in {RANGE:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_keeps_its_port_and_data_over_a_stop_and_a_kill() {
        if !crate::ready("a_server_keeps_its_port_and_data_over_a_stop_and_a_kill", &[crate::Need::Postgres])
        {
            return;
        }
        let postgres = Postgres::start().unwrap();
        let url = postgres.create_database().unwrap();
        let database = url.rsplit('/').next().unwrap();
        postgres.sql(database, "CREATE TABLE t AS SELECT 7 AS n").unwrap();
        postgres.stop().unwrap();
        assert!(postgres.sql(database, "SELECT n FROM t").is_err());
        postgres.launch().unwrap();
        postgres.kill().unwrap();
        postgres.launch().unwrap();
        assert_eq!(postgres.sql(database, "SELECT n FROM t").unwrap(), "7");
    }
}
