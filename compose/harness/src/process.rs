//! Our own binaries as processes.

use std::{
    collections::{HashMap, VecDeque},
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{BufRead as _, BufReader, Read, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::guard::{Guard, signal};
pub use rustix::process::Signal;

/// Lines of output that are kept for error messages.
const KEPT_LINES: usize = 200;

/// Finds a binary of this workspace: beside the running test, or in `TBMQ_BIN_DIR`.
///
/// # Errors
/// When it was not built, with the command that builds it.
pub fn binary(name: &str) -> Result<PathBuf> {
    let folder = match std::env::var_os("TBMQ_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let test = std::env::current_exe()?;
            let folder = test.parent().context("a test lies in a folder")?;
            if folder.ends_with("deps") { folder.parent().context("deps lies in a folder")? } else { folder }
                .to_owned()
        }
    };
    let path = folder.join(name);
    ensure!(path.exists(), "{} is missing: run `cargo build --workspace --bins`", path.display());
    Ok(path)
}

/// What a process has printed, and where it listens.
#[derive(Debug, Default)]
struct Output {
    lines: VecDeque<String>,
    addresses: HashMap<String, SocketAddr>,
    ended: bool,
}

/// A running process of ours. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    output: Arc<(Mutex<Output>, Condvar)>,
    _guard: Guard,
}

/// Opens a log to be continued, in a folder that may have to be made.
fn open_log(path: &Path) -> std::io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

impl Process {
    /// Starts a binary with arguments and an environment of its own (`PATH` and `HOME` are kept), and blocks until it
    /// has printed a `listening <scheme>://<address>` line for each of `schemes`, at most 60 s.
    ///
    /// # Errors
    /// When it ends or stays silent, with what it printed.
    pub fn start(
        name: &str,
        arguments: &[&str],
        environment: &[(String, String)],
        schemes: &[&str],
    ) -> Result<Self> {
        Self::start_logged(name, arguments, environment, schemes, None)
    }

    /// As [`Process::start`]; what it prints is also appended to a file.
    ///
    /// # Errors
    /// As [`Process::start`], and when the file can't be written.
    pub fn start_logged(
        name: &str,
        arguments: &[&str],
        environment: &[(String, String)],
        schemes: &[&str],
        log: Option<&Path>,
    ) -> Result<Self> {
        let log = log.map(|path| open_log(path).with_context(|| format!("log {}", path.display())));
        let log = log.transpose()?.map(Arc::new);
        let path = binary(name)?;
        let kept = ["PATH", "HOME", "RUST_BACKTRACE"].map(|key| (key, std::env::var_os(key)));
        let kept = kept.into_iter().filter_map(|(key, value)| Some((OsString::from(key), value?)));
        let mut child = Command::new(&path)
            .args(arguments)
            .env_clear()
            .envs(kept)
            .envs(environment.iter().map(|(key, value)| (key.as_str(), value.as_str())))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} could not be started", path.display()))?;
        let guard = Guard::of(child.id())?;
        let output = Arc::new((Mutex::new(Output::default()), Condvar::new()));
        collect(child.stdout.take().context("stdout is piped")?, Arc::clone(&output), log.clone(), true);
        collect(child.stderr.take().context("stderr is piped")?, Arc::clone(&output), log, false);
        let process = Self { name: name.to_owned(), child, output, _guard: guard };
        process.await_addresses(schemes)?;
        Ok(process)
    }

    fn await_addresses(&self, schemes: &[&str]) -> Result<()> {
        let patience = Instant::now() + Duration::from_secs(60);
        let (output, changed) = &*self.output;
        let mut output = output.lock().map_err(|_| anyhow::anyhow!("a collector panicked"))?;
        loop {
            if schemes.iter().all(|scheme| output.addresses.contains_key(*scheme)) {
                return Ok(());
            }
            let left = patience.saturating_duration_since(Instant::now());
            if output.ended || left.is_zero() {
                let text = Vec::from(output.lines.clone()).join("\n");
                bail!("{} is not listening on {schemes:?}; it printed:\n{text}", self.name);
            }
            (output, _) =
                changed.wait_timeout(output, left).map_err(|_| anyhow::anyhow!("a collector panicked"))?;
        }
    }

    /// Where it listens for `mqtt`, `grpc` or `http` (the admin endpoint).
    ///
    /// # Panics
    /// When it printed no such line.
    pub fn address(&self, scheme: &str) -> SocketAddr {
        let output = self.output.0.lock().expect("collectors do not panic");
        *output.addresses.get(scheme).unwrap_or_else(|| panic!("{} has no {scheme} address", self.name))
    }

    /// The last lines that it printed.
    pub fn output(&self) -> String {
        let output = self.output.0.lock().expect("collectors do not panic");
        Vec::from(output.lines.clone()).join("\n")
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it at once (SIGKILL) and waits for its end.
    ///
    /// # Errors
    /// When it can't be signalled.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end (SIGTERM) and waits, at most `patience`, for a clean exit.
    ///
    /// # Errors
    /// When it does not end in time, or with another code than 0.
    pub fn drain(mut self, patience: Duration) -> Result<()> {
        signal(self.child.id(), Signal::TERM)?;
        let status = self.await_end(patience)?;
        ensure!(status.success(), "{} ended with {status}:\n{}", self.name, self.output());
        Ok(())
    }

    /// Blocks until it ends by itself.
    ///
    /// # Errors
    /// When it does not within `patience`, with what it printed.
    pub fn await_end(&mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(
                Instant::now() < deadline,
                "{} did not end in {patience:?}:\n{}",
                self.name,
                self.output()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether it has ended by itself.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// A page of its admin endpoint, such as `/metrics`: status code and body. Blocks, at most 10 s.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn admin(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.address("http"))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        Ok((status, body.to_owned()))
    }

    /// Sends it a signal (STOP, CONT, ...).
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, which: Signal) -> Result<()> {
        signal(self.child.id(), which)
    }

    /// CPU time that it has used.
    ///
    /// # Errors
    /// When it is gone.
    pub fn usage(&self) -> Result<Usage> {
        Usage::of(self.pid())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait()
            && let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(drop))
        {
            eprintln!("{} could not be killed: {error}", self.name);
        }
        if std::thread::panicking() {
            eprintln!("---- {} printed:\n{}\n----", self.name, self.output());
        }
    }
}

/// What a process has used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// User and system time.
    pub cpu: Duration,
    /// Resident memory, bytes.
    pub resident_bytes: u64,
    /// The most that was resident since it was started, bytes.
    pub peak_bytes: u64,
    /// Threads.
    pub threads: u64,
}

impl Usage {
    /// Reads `/proc/<pid>`.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn of(pid: u32) -> Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The second field is the name in parentheses and may hold blanks.
        let fields: Vec<&str> =
            stat.rsplit_once(')').context("no name in stat")?.1.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let value =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map_or("0", str::trim);
        let bytes = |name: &str| {
            value(name).trim_end_matches(" kB").trim().parse::<u64>().map(|kibibytes| kibibytes * 1024)
        };
        let ticks_per_second = rustix::param::clock_ticks_per_second();
        Ok(Self {
            cpu: Duration::from_micros(ticks * 1_000_000 / ticks_per_second),
            resident_bytes: bytes("VmRSS:")?,
            peak_bytes: bytes("VmHWM:")?,
            threads: value("Threads:").parse()?,
        })
    }
}

fn collect(
    stream: impl Read + Send + 'static,
    into: Arc<(Mutex<Output>, Condvar)>,
    log: Option<Arc<File>>,
    is_stdout: bool,
) {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { break };
            if let Some(mut log) = log.as_deref()
                && let Err(error) = log.write_all(format!("{line}\n").as_bytes())
            {
                eprintln!("a log can't be written: {error}");
            }
            let Ok(mut output) = into.0.lock() else { break };
            if is_stdout && let Some((scheme, address)) = listening(&line) {
                output.addresses.insert(scheme, address);
            }
            if output.lines.len() == KEPT_LINES {
                output.lines.pop_front();
            }
            output.lines.push_back(line);
            into.1.notify_all();
        }
        if is_stdout {
            if let Ok(mut output) = into.0.lock() {
                output.ended = true;
            }
            into.1.notify_all();
        }
    });
}

/// Reads `listening mqtt://127.0.0.1:1883`.
fn listening(line: &str) -> Option<(String, SocketAddr)> {
    let (scheme, address) = line.strip_prefix("listening ")?.split_once("://")?;
    let address = address.split(['/', ' ']).next()?;
    Some((scheme.to_owned(), address.parse().ok()?))
}

/// A folder for one process's data that goes when the test ends.
///
/// # Errors
/// When the file system refuses.
pub fn data_dir() -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("tbmq-data-").tempdir()?)
}

/// Runs a binary of ours to its end.
///
/// # Errors
/// When it can't be started.
pub fn run(
    name: &str,
    arguments: &[&str],
    environment: &[(&str, &str)],
    folder: &Path,
) -> Result<std::process::Output> {
    Command::new(binary(name)?)
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{name} could not be run"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_line_is_read() {
        assert_eq!(
            listening("listening mqtt://127.0.0.1:1883"),
            Some(("mqtt".to_owned(), "127.0.0.1:1883".parse().unwrap()))
        );
        assert_eq!(listening("listening to nothing"), None);
    }
}
