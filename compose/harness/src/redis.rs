//! Redis: one server, or one that is a cluster by itself.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::{
    guard::{Guard, signal},
    postgres::free_port,
};

const PROGRAM: &str = "redis-server";

/// Does without the file that makes every change wait for the disk.
const FORGETFUL: &str = "appendonly no";

/// Tells how to get the server when it is missing.
///
/// # Errors
/// What is missing, and the command that installs it.
pub fn availability() -> Result<(), String> {
    match Command::new(PROGRAM).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(_) => Ok(()),
        Err(_) => Err("redis-server is missing: apt-get install -y redis-server".to_owned()),
    }
}

/// A running server on a free port of the loopback that writes down each change before it answers.
#[derive(Debug)]
pub struct Redis {
    server: Mutex<Option<(Child, Guard)>>,
    port: u16,
    folder: TempDir,
    lines: String,
}

impl Redis {
    /// Starts a server; `lines` are further lines of its configuration. Blocks until it answers, at most 30 s.
    ///
    /// # Errors
    /// When a step fails.
    pub fn start(lines: &[&str]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("tbmq-redis-").tempdir()?;
        let redis = Self { server: Mutex::default(), port: free_port()?, folder, lines: lines.join("\n") };
        redis.launch()?;
        Ok(redis)
    }

    /// Starts a server that holds all slots of a cluster, so that it refuses commands over several slots; `lines` as in
    /// [`Self::start`].
    ///
    /// # Errors
    /// When a step fails.
    pub fn start_cluster(lines: &[&str]) -> Result<Self> {
        let bus_port = format!("cluster-port {}", free_port()?);
        let cluster = ["cluster-enabled yes", "cluster-announce-ip 127.0.0.1", &bus_port];
        let redis = Self::start(&[&cluster[..], lines].concat())?;
        let answer = redis.ask("CLUSTER ADDSLOTSRANGE 0 16383")?;
        ensure!(answer == "+OK", "Redis takes no slots: {answer}");
        let deadline = Instant::now() + Duration::from_secs(30);
        while !redis.ask("CLUSTER INFO")?.contains("cluster_state:ok") {
            ensure!(Instant::now() < deadline, "Redis does not become a cluster");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(redis)
    }

    /// One server for all tests of a binary, which writes nothing down.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Redis> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&[FORGETFUL]).expect("Redis starts"))
    }

    /// One cluster for all tests of a binary, which writes nothing down.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn shared_cluster() -> &'static Self {
        static SHARED: OnceLock<Redis> = OnceLock::new();
        SHARED.get_or_init(|| Self::start_cluster(&[FORGETFUL]).expect("Redis starts"))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// Sends one command, words parted by blanks, and returns the answer: a line as it is, or a bulk string's text.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn ask(&self, command: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.address())?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        writeln!(stream, "{command}\r")?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end();
        let Some(length) = line.strip_prefix('$') else { return Ok(line.to_owned()) };
        let mut text = vec![0; length.parse()?];
        reader.read_exact(&mut text)?;
        Ok(String::from_utf8(text)?)
    }

    /// Kills it (SIGKILL).
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill(&self) -> Result<()> {
        let (mut child, guard) =
            self.server.lock().expect("no step panics").take().context("Redis is not running")?;
        signal(child.id(), Signal::KILL)?;
        child.wait()?;
        drop(guard);
        Ok(())
    }

    /// Starts it again on its port with what it has written down. Blocks until it answers, at most 30 s.
    ///
    /// # Errors
    /// When it runs, or does not come up.
    pub fn launch(&self) -> Result<()> {
        let mut server = self.server.lock().expect("no step panics");
        ensure!(server.is_none(), "Redis is running");
        let text = format!(
            "bind 127.0.0.1\nport {}\ndir {}\nsave \"\"\nappendonly yes\nappendfsync always\n{}\n",
            self.port,
            self.folder.path().display(),
            self.lines
        );
        fs::write(self.path("redis.conf"), text)?;
        let log = fs::File::create(self.path("log"))?;
        let mut child = Command::new(PROGRAM)
            .arg(self.path("redis.conf"))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(Stdio::null())
            .spawn()
            .context("Redis could not be started")?;
        let guard = Guard::of(child.id())?;
        let deadline = Instant::now() + Duration::from_secs(30);
        // It listens before it has read its file.
        while !self.ask("PING").is_ok_and(|answer| answer == "+PONG" || answer.starts_with("-NOAUTH")) {
            if let Some(status) = child.try_wait()? {
                bail!("Redis ended with {status}: {}", fs::read_to_string(self.path("log"))?);
            }
            ensure!(Instant::now() < deadline, "Redis does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        *server = Some((child, guard));
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let is_running = self.server.lock().is_ok_and(|server| server.is_some());
        if is_running && let Err(error) = self.kill() {
            eprintln!("Redis could not be stopped: {error}");
        }
    }
}
