//! Mosquitto: MQTT clients and a broker that we did not write.

use std::{
    fmt::Write as _,
    fs,
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::{
    guard::{Guard, signal},
    postgres::free_port,
};

/// Where the broker may be; Debian's lies outside the path of users.
const BROKERS: [&str; 2] = ["mosquitto", "/usr/sbin/mosquitto"];

/// Tells how to get the broker when it is missing.
///
/// # Errors
/// What is missing, and the command that installs it.
pub fn broker_availability() -> Result<(), String> {
    match broker_program() {
        Some(_) => Ok(()),
        None => Err("Mosquitto's broker is missing: apt-get install -y mosquitto".to_owned()),
    }
}

fn broker_program() -> Option<&'static str> {
    BROKERS.into_iter().find(|program| {
        let help = Command::new(program).arg("-h").stdout(Stdio::null()).stderr(Stdio::null()).status();
        help.is_ok()
    })
}

/// Version of the broker, as it tells it; `None` when it is missing.
pub fn broker_version() -> Option<String> {
    let help = Command::new(broker_program()?).arg("-h").output().ok()?;
    let text = String::from_utf8_lossy(&help.stdout);
    text.lines().next()?.strip_prefix("mosquitto version ").map(str::to_owned)
}

/// What a broker is told.
#[derive(Clone, Debug, Default)]
pub struct BrokerOptions {
    /// User name and password of the only one who may connect; `None`: everyone may.
    pub user: Option<(String, String)>,
    /// PEM texts: the broker's certificate, its key, and the authority whose clients it takes; then it speaks TLS only.
    pub tls: Option<BrokerTls>,
    /// Further lines of its configuration file.
    pub lines: Vec<String>,
}

/// What a broker needs for TLS, as PEM texts.
#[derive(Clone, Debug)]
pub struct BrokerTls {
    /// Its certificate.
    pub certificate: String,
    /// The certificate's key.
    pub key: String,
    /// The authority that clients must have a certificate of; `None`: they need none.
    pub client_authority: Option<String>,
}

/// A running broker on a free port of the loopback, with the sessions of its clients in a folder of its own.
#[derive(Debug)]
pub struct Broker {
    server: Mutex<Option<(Child, Guard)>>,
    port: u16,
    folder: TempDir,
}

impl Broker {
    /// Starts a broker. Blocks until it listens, at most 30 s.
    ///
    /// # Errors
    /// When a step fails.
    pub fn start(options: &BrokerOptions) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("tbmq-mosquitto-").tempdir()?;
        let port = free_port()?;
        let broker = Self { server: Mutex::default(), port, folder };
        let mut text = format!("listener {port} 127.0.0.1\npersistence true\npersistence_location {}/\n", {
            broker.folder.path().display()
        });
        if rustix::process::geteuid().is_root() {
            // It would become a user that can't read the folder.
            text.push_str("user root\n");
        }
        match &options.user {
            None => text.push_str("allow_anonymous true\n"),
            Some((name, password)) => {
                let file = broker.path("passwords");
                let mut command = Command::new("mosquitto_passwd");
                let status = command.args(["-b", "-c"]).arg(&file).args([name, password]).status()?;
                ensure!(status.success(), "mosquitto_passwd failed");
                writeln!(text, "allow_anonymous false\npassword_file {}", file.display())?;
            }
        }
        if let Some(tls) = &options.tls {
            let mut file = |setting: &str, content: &str| -> Result<()> {
                let path = broker.path(setting);
                fs::write(&path, content)?;
                Ok(writeln!(text, "{setting} {}", path.display())?)
            };
            file("certfile", &tls.certificate)?;
            file("keyfile", &tls.key)?;
            if let Some(authority) = &tls.client_authority {
                file("cafile", authority)?;
                text.push_str("require_certificate true\n");
            }
        }
        for line in &options.lines {
            writeln!(text, "{line}")?;
        }
        fs::write(broker.path("mosquitto.conf"), text)?;
        broker.launch()?;
        Ok(broker)
    }

    /// Pid of the broker.
    ///
    /// # Panics
    /// When it was stopped.
    pub fn pid(&self) -> u32 {
        let server = self.server.lock().expect("no step panics");
        server.as_ref().map(|(child, _)| child.id()).expect("it runs")
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// Ends it cleanly (SIGTERM): it writes down what its clients have not got yet.
    ///
    /// # Errors
    /// When it is not running.
    pub fn stop(&self) -> Result<()> {
        let (mut child, guard) =
            self.server.lock().expect("no step panics").take().context("Mosquitto is not running")?;
        signal(child.id(), Signal::TERM)?;
        child.wait()?;
        drop(guard);
        Ok(())
    }

    /// Starts it again on its port. Blocks until it listens, at most 30 s.
    ///
    /// # Errors
    /// When it runs, or does not come up.
    pub fn launch(&self) -> Result<()> {
        let program = broker_program().context("Mosquitto is missing")?;
        let mut server = self.server.lock().expect("no step panics");
        ensure!(server.is_none(), "Mosquitto is running");
        let log = fs::File::create(self.path("log"))?;
        let mut child = Command::new(program)
            .arg("-c")
            .arg(self.path("mosquitto.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("Mosquitto could not be started")?;
        let guard = Guard::of(child.id())?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(self.address()).is_err() {
            if let Some(status) = child.try_wait()? {
                bail!("Mosquitto ended with {status}: {}", fs::read_to_string(self.path("log"))?);
            }
            ensure!(Instant::now() < deadline, "Mosquitto does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        *server = Some((child, guard));
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let is_running = self.server.lock().is_ok_and(|server| server.is_some());
        if is_running && let Err(error) = self.stop() {
            eprintln!("Mosquitto could not be stopped: {error}");
        }
    }
}

/// Tells how to get the clients when they are missing.
///
/// # Errors
/// What is missing, and the command that installs it.
pub fn availability() -> Result<(), String> {
    match Command::new("mosquitto_pub").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status()
    {
        Ok(_) => Ok(()),
        Err(_) => Err("mosquitto_pub is missing: apt-get install -y mosquitto-clients".to_owned()),
    }
}

/// Publishes one message and waits until the client is done with it.
///
/// `version` is what `-V` takes: `311` or `5`.
///
/// # Errors
/// When the client reports a failure.
pub fn publish(broker: SocketAddr, version: &str, qos: u8, topic: &str, message: &str) -> Result<()> {
    publish_with(broker, version, &["-q", &qos.to_string(), "-t", topic, "-m", message])
}

/// The same with any arguments of the client.
///
/// # Errors
/// When the client reports a failure.
pub fn publish_with(broker: SocketAddr, version: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new("mosquitto_pub")
        .args(["-h", &broker.ip().to_string(), "-p", &broker.port().to_string(), "-V", version])
        .args(arguments)
        .output()
        .context("mosquitto_pub could not be started")?;
    ensure!(output.status.success(), "mosquitto_pub failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A subscriber that ends after `count` messages; [`Subscriber::messages`] waits for that.
#[derive(Debug)]
pub struct Subscriber {
    child: Child,
    /// What came before the SUBACK.
    early: String,
}

/// Starts a subscriber that prints `topic payload` lines. It is subscribed when this returns.
///
/// # Errors
/// When the client can't be started or the broker refuses.
pub fn subscribe(broker: SocketAddr, version: &str, qos: u8, filter: &str, count: u32) -> Result<Subscriber> {
    subscribe_with(broker, version, &["-q", &qos.to_string(), "-t", filter], count, "%t %p")
}

/// The same with any arguments of the client, and the format of what it prints for a message (its option `-F`).
///
/// # Errors
/// When the client can't be started or the broker refuses.
pub fn subscribe_with(
    broker: SocketAddr,
    version: &str,
    arguments: &[&str],
    count: u32,
    format: &str,
) -> Result<Subscriber> {
    use std::io::{BufRead as _, BufReader};
    // Into a pipe it would print only when its buffer is full.
    let mut child = Command::new("stdbuf")
        .args(["-oL", "mosquitto_sub"])
        .args(["-h", &broker.ip().to_string(), "-p", &broker.port().to_string(), "-V", version, "-d"])
        .args(["-C", &count.to_string(), "-W", "30", "-F", &format!("MSG {format}")])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("mosquitto_sub could not be started")?;
    let stdout = child.stdout.as_mut().context("no stdout")?;
    // Debug output announces the SUBACK; one byte at a time so that nothing is swallowed.
    let mut reader = BufReader::with_capacity(1, stdout);
    let mut early = String::new();
    loop {
        let start = early.len();
        ensure!(reader.read_line(&mut early)? > 0, "mosquitto_sub ended before it was subscribed");
        if early[start..].contains("received SUBACK") {
            return Ok(Subscriber { child, early });
        }
    }
}

impl Subscriber {
    /// Waits for the end and returns what was printed of each message.
    ///
    /// # Errors
    /// When fewer messages than asked for came within 30 s.
    pub fn messages(self) -> Result<Vec<String>> {
        let output = self.child.wait_with_output()?;
        let text = self.early + &String::from_utf8_lossy(&output.stdout);
        let messages = text.lines().filter_map(|line| line.strip_prefix("MSG ")).map(str::to_owned).collect();
        ensure!(output.status.success(), "mosquitto_sub failed after {messages:?}");
        Ok(messages)
    }

    /// Kills it, so that it says no goodbye.
    ///
    /// # Errors
    /// When it has ended.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}
