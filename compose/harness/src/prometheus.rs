//! Prometheus: a server that scrapes our processes and answers queries.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::{
    guard::{Guard, signal},
    postgres::free_port,
};

const PROGRAM: &str = "prometheus";

/// Tells how to get the server and promtool when they are missing.
///
/// # Errors
/// What is missing, and the command that installs it.
pub fn availability() -> Result<(), String> {
    let is_there = |program| Command::new(program).arg("--version").output().is_ok();
    if is_there(PROGRAM) && is_there("promtool") {
        Ok(())
    } else {
        Err("prometheus is missing: apt-get install -y prometheus".to_owned())
    }
}

/// A running server on a free port of the loopback. Dropping it kills it.
#[derive(Debug)]
pub struct Prometheus {
    child: Child,
    _guard: Guard,
    address: SocketAddr,
    _folder: TempDir,
}

impl Prometheus {
    /// Starts a server that scrapes `targets` (address, `instance`, `plane`) under the job `tbmq` every second, and
    /// evaluates these files of rules. Blocks until it is ready, at most 60 s.
    ///
    /// # Errors
    /// When a step fails, with what the server printed.
    pub fn start(targets: &[(SocketAddr, &str, &str)], rules: &[&Path]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("tbmq-prometheus-").tempdir()?;
        let mut text =
            "global: { scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }\n".to_owned();
        let names: Vec<String> =
            rules.iter().map(|path| format!("{:?}", path.display().to_string())).collect();
        writeln!(text, "rule_files: [{}]", names.join(", "))?;
        text.push_str("scrape_configs:\n  - job_name: tbmq\n    static_configs:\n");
        for (address, instance, plane) in targets {
            writeln!(text, "      - targets: ['{address}']")?;
            writeln!(text, "        labels: {{ instance: '{instance}', plane: '{plane}' }}")?;
        }
        let file = folder.path().join("prometheus.yml");
        fs::write(&file, text)?;
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let log_path = folder.path().join("log");
        let log = fs::File::create(&log_path)?;
        let mut child = Command::new(PROGRAM)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("Prometheus could not be started")?;
        let guard = Guard::of(child.id())?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while !get(address, "/-/ready").is_ok_and(|(status, _)| status == 200) {
            let ended = child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                signal(child.id(), Signal::KILL).ok();
                bail!("Prometheus does not answer ({ended:?}): {}", fs::read_to_string(&log_path)?);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Self { child, _guard: guard, address, _folder: folder })
    }

    /// Asks for the present value of an expression and returns the answer's JSON. Blocks, at most 30 s.
    ///
    /// # Errors
    /// When the expression is wrong, with what Prometheus says about it, or when there is no answer.
    pub fn query(&self, expression: &str) -> Result<String> {
        let mut encoded = String::new();
        for byte in expression.bytes() {
            write!(encoded, "%{byte:02X}")?;
        }
        self.get(&format!("/api/v1/query?query={encoded}")).with_context(|| expression.to_owned())
    }

    /// Another page of its API, such as `/api/v1/rules`. Blocks, at most 30 s.
    ///
    /// # Errors
    /// When there is no answer, or one that is not 200, with what it says.
    pub fn get(&self, path: &str) -> Result<String> {
        let (status, body) = get(self.address, path)?;
        ensure!(status == 200, "{status}: {body}");
        Ok(body)
    }
}

fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
    Ok((head.split(' ').nth(1).context("no status")?.parse()?, body.to_owned()))
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(drop)) {
            eprintln!("Prometheus could not be killed: {error}");
        }
    }
}
