//! A real Apache Kafka: one node in KRaft mode, from jars of Maven Central.
//!
//! The jars are fetched once by Maven, in the versions of `kafka-pom.xml`, into `target/servers` (or
//! `TBMQ_SERVERS_DIR`), and checked against `kafka-jars.sha256` before they are used.

mod secured;

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

pub use self::secured::SecuredKafka;
use crate::{
    fetched,
    guard::{Guard, signal},
    hex,
    postgres::free_port,
};

const POM: &str = include_str!("../kafka-pom.xml");
const CHECKSUMS: &str = include_str!("../kafka-jars.sha256");

/// Tells how to get the server when it is missing; fetches its jars when Maven is there.
///
/// # Errors
/// What is missing, and the command that installs it.
pub fn availability() -> Result<(), String> {
    static JARS: OnceLock<Result<(), String>> = OnceLock::new();
    let missing = |program: &str| Command::new(program).arg("-version").output().is_err();
    if missing("java") {
        return Err("Kafka needs Java: apt-get install -y openjdk-17-jre-headless".to_owned());
    }
    JARS.get_or_init(|| {
        if verify(&jars()).is_ok() {
            return Ok(());
        }
        if missing("mvn") {
            return Err("Kafka's jars need Maven: apt-get install -y maven".to_owned());
        }
        fetch().map_err(|error| format!("Kafka's jars could not be fetched: {error:#}"))
    })
    .clone()
}

/// Where the jars lie.
fn jars() -> PathBuf {
    fetched("kafka-3.9.1")
}

/// Fetches into a folder of its own and moves it into place when it is complete: several tests may do so at once.
fn fetch() -> Result<()> {
    let target = jars();
    let parent = target.parent().context("a folder lies in a folder")?;
    fs::create_dir_all(parent)?;
    let folder = tempfile::Builder::new().prefix("fetching-").tempdir_in(parent)?;
    fs::write(folder.path().join("pom.xml"), POM)?;
    let output = Command::new("mvn")
        .args(["-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=lib", "-DincludeScope=runtime"])
        .current_dir(folder.path())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "mvn failed: {text}{}", String::from_utf8_lossy(&output.stderr));
    verify(&folder.path().join("lib"))?;
    if verify(&target).is_err() {
        if target.exists() {
            fs::remove_dir_all(&target)?;
        }
        fs::rename(folder.path().join("lib"), &target)?;
    }
    Ok(())
}

/// Every jar of the list is there with its checksum.
fn verify(folder: &Path) -> Result<()> {
    for line in CHECKSUMS.lines() {
        let (expected, name) = line.split_once("  ").context("a line without a name")?;
        let bytes = fs::read(folder.join(name)).with_context(|| format!("{name} is missing"))?;
        let found = hex(&Sha256::digest(&bytes));
        ensure!(found == expected, "{name} has the checksum {found} instead of {expected}");
    }
    Ok(())
}

/// The collector of a server beside the planes, on few cores and with a small heap. It stops the server for half as long as
/// G1, which the start script takes: `compose/bench/BUDGET.md`, "Latency".
const COLLECTOR: &str = "-XX:+UseParallelGC";

/// Its threads for connections and for requests, instead of 3 and 8: on few cores they wake each other less often.
const NETWORK_THREADS: &str = "1";
const IO_THREADS: &str = "2";

/// How a server is started.
#[derive(Clone, Debug, Default)]
pub struct KafkaOptions {
    /// Where it keeps its logs; a folder that goes with it when absent.
    pub data_dir: Option<PathBuf>,
    /// Its port; a free one when absent.
    pub port: Option<u16>,
    /// Further settings, which win over ours.
    pub properties: Vec<(String, String)>,
    /// Further options of its virtual machine, which win over ours: those are for a quick start.
    pub jvm: Vec<String>,
}

impl KafkaOptions {
    /// A server as `compose/docker/cluster.yaml` runs it, for measurements: its own defaults where the harness is quick to
    /// clean up, and the virtual machine as its start script sets it up, but for what suits few cores: the parallel collector
    /// and fewer threads. Takes more memory and longer to start.
    pub fn as_deployed() -> Self {
        let properties = [
            ("log.retention.check.interval.ms", "300000"),
            ("log.cleaner.backoff.ms", "15000"),
            ("log.initial.task.delay.ms", "30000"),
            ("file.delete.delay.ms", "60000"),
            ("num.network.threads", NETWORK_THREADS),
            ("num.io.threads", IO_THREADS),
        ];
        let jvm = ["-Xms1g", "-XX:TieredStopAtLevel=4", "-XX:-UseSerialGC", COLLECTOR];
        Self {
            properties: properties.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec(),
            jvm: jvm.map(str::to_owned).to_vec(),
            ..Self::default()
        }
    }
}

/// A server. Dropping it kills it.
#[derive(Debug)]
pub struct Kafka {
    state: Mutex<Running>,
    port: u16,
    folder: PathBuf,
    jvm: Vec<String>,
    _owned: Option<TempDir>,
}

#[derive(Debug)]
struct Running {
    server: Option<(Child, Guard)>,
}

impl Kafka {
    /// Formats a storage and starts a server. Blocks until it answers, at most 90 s.
    ///
    /// # Errors
    /// When a step fails, with the server's log.
    pub fn start(options: KafkaOptions) -> Result<Self> {
        availability().map_err(anyhow::Error::msg)?;
        let (folder, owned) = match options.data_dir {
            Some(folder) => (folder, None),
            None => {
                let owned = tempfile::Builder::new().prefix("tbmq-kafka-").tempdir()?;
                (owned.path().to_owned(), Some(owned))
            }
        };
        let port = options.port.map_or_else(free_port, Ok)?;
        let controller = free_port()?;
        let properties = folder.join("server.properties");
        fs::write(&properties, configuration(&folder, port, controller, &options.properties))?;
        fs::write(folder.join("log4j.properties"), LOGGING)?;
        if !folder.join("logs/meta.properties").exists() {
            let output = java(&folder)
                .args(["kafka.tools.StorageTool", "format", "-t", "tbmqTestClusterAAAAAAA"])
                .arg("-c")
                .arg(&properties)
                .output()?;
            let text = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "the storage could not be formatted: {text}");
        }
        let jvm = options.jvm;
        let kafka = Self { state: Mutex::new(Running { server: None }), port, folder, jvm, _owned: owned };
        kafka.launch()?;
        Ok(kafka)
    }

    /// One server for all tests of a binary.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Kafka> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(KafkaOptions::default()).expect("Kafka starts"))
    }

    /// `127.0.0.1:<port>`.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Pid of the server.
    ///
    /// # Panics
    /// When it was stopped.
    pub fn pid(&self) -> u32 {
        let state = self.state.lock().expect("no step panics");
        state.server.as_ref().map(|(child, _)| child.id()).expect("it runs")
    }

    /// Runs one of Kafka's command line tools, such as `kafka.admin.ConfigCommand`, and waits. It gets
    /// `--bootstrap-server` first.
    ///
    /// # Errors
    /// What the tool said when it failed.
    pub fn tool(&self, class: &str, arguments: &[&str]) -> Result<()> {
        let output = java(&self.folder)
            .args([class, "--bootstrap-server", &self.bootstrap()])
            .args(arguments)
            .output()?;
        let (said, failed) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{class} failed: {said}{failed}");
        Ok(())
    }

    /// Ends the server cleanly (SIGTERM) and waits.
    ///
    /// # Errors
    /// When it is not running.
    pub fn stop(&self) -> Result<()> {
        self.end(Signal::TERM)
    }

    /// Kills the server (SIGKILL) and waits.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill(&self) -> Result<()> {
        self.end(Signal::KILL)
    }

    /// Sends the server a signal (STOP, CONT).
    ///
    /// # Errors
    /// When it is not running.
    pub fn signal(&self, which: Signal) -> Result<()> {
        let state = self.state.lock().expect("no step panics");
        let (child, _) = state.server.as_ref().context("Kafka is not running")?;
        signal(child.id(), which)
    }

    /// Starts a stopped or killed server again, with its data and on its port.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn launch(&self) -> Result<()> {
        let log = fs::File::create(self.folder.join("server.log"))?;
        let child = java(&self.folder)
            .args(&self.jvm)
            .arg("kafka.Kafka")
            .arg(self.folder.join("server.properties"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let guard = Guard::of(child.id())?;
        self.state.lock().expect("no step panics").server = Some((child, guard));
        self.await_ready()
    }

    /// Stops it cleanly and starts it again.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart(&self) -> Result<()> {
        self.stop()?;
        self.launch()
    }

    /// Whether the server runs; it ends by itself when its disk is full.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn is_running(&self) -> Result<bool> {
        let mut state = self.state.lock().expect("no step panics");
        match state.server.as_mut() {
            Some((child, _)) => Ok(child.try_wait()?.is_none()),
            None => Ok(false),
        }
    }

    /// The id of the topic whose log the server keeps for a partition; `None` once that was deleted. Two ids tell that a
    /// topic was created anew.
    pub fn stored_topic_id(&self, topic: &str, partition: u32) -> Option<String> {
        let log = self.folder.join("logs").join(format!("{topic}-{partition}"));
        let text = fs::read_to_string(log.join("partition.metadata")).ok()?;
        Some(text.lines().find_map(|line| line.strip_prefix("topic_id: "))?.to_owned())
    }

    fn end(&self, how: Signal) -> Result<()> {
        let mut state = self.state.lock().expect("no step panics");
        let (mut child, guard) = state.server.take().context("Kafka is not running")?;
        if child.try_wait()?.is_none() {
            signal(child.id(), how)?;
        }
        child.wait()?;
        drop(guard);
        Ok(())
    }

    fn await_ready(&self) -> Result<()> {
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let deadline = Instant::now() + Duration::from_secs(90);
        let log = self.folder.join("server.log");
        loop {
            let text = fs::read_to_string(&log).unwrap_or_default();
            // The listener opens before the broker is registered; the log's last word is that it runs.
            if text.contains("Kafka Server started") && TcpStream::connect(address).is_ok() {
                return Ok(());
            }
            let mut state = self.state.lock().expect("no step panics");
            let ended = match state.server.as_mut() {
                Some((child, _)) => child.try_wait()?,
                None => bail!("Kafka was stopped while it was starting"),
            };
            drop(state);
            let tail = || text.lines().rev().take(30).collect::<Vec<_>>().join("\n");
            if let Some(status) = ended {
                bail!("Kafka ended with {status}:\n{}", tail());
            }
            ensure!(Instant::now() < deadline, "Kafka does not answer on {address}:\n{}", tail());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        let running = self.state.lock().is_ok_and(|state| state.server.is_some());
        if running && let Err(error) = self.kill() {
            eprintln!("Kafka could not be killed: {error}");
        }
    }
}

const LOGGING: &str = "log4j.rootLogger=INFO, stdout
log4j.appender.stdout=org.apache.log4j.ConsoleAppender
log4j.appender.stdout.layout=org.apache.log4j.PatternLayout
log4j.appender.stdout.layout.ConversionPattern=%d %p %m (%c)%n
";

fn java(folder: &Path) -> Command {
    let mut command = Command::new("java");
    command
        .args([
            "-Xms128m",
            "-Xmx1g",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Djava.awt.headless=true",
        ])
        .arg(format!("-Dlog4j.configuration=file:{}", folder.join("log4j.properties").display()))
        .arg("-cp")
        .arg(jars().join("*"))
        .current_dir(folder);
    command
}

fn configuration(folder: &Path, port: u16, controller: u16, further: &[(String, String)]) -> String {
    let logs = folder.join("logs");
    let mut text = format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SSL:SSL,SASL_PLAINTEXT:SASL_PLAINTEXT
log.dirs={}
auto.create.topics.enable=false
num.partitions=1
offsets.topic.num.partitions=5
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=5
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
log.cleaner.backoff.ms=500
log.cleaner.threads=1
log.retention.check.interval.ms=1000
log.initial.task.delay.ms=1000
file.delete.delay.ms=1000
num.network.threads=2
num.io.threads=4
",
        logs.display()
    );
    for (key, value) in further {
        text.push_str(key);
        text.push('=');
        text.push_str(value);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_is_set_up_as_what_is_deployed() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker/cluster.yaml");
        let text = fs::read_to_string(file).unwrap();
        let of =
            |name: &str| text.lines().find_map(|line| line.trim().strip_prefix(name)).unwrap_or_default();
        assert!(of("KAFKA_JVM_PERFORMANCE_OPTS: ").contains(COLLECTOR));
        assert!(of("KAFKA_NUM_NETWORK_THREADS: ").ends_with(&format!(":-{NETWORK_THREADS}}}")));
        assert!(of("KAFKA_NUM_IO_THREADS: ").ends_with(&format!(":-{IO_THREADS}}}")));
        let KafkaOptions { jvm, properties, .. } = KafkaOptions::as_deployed();
        assert!(jvm.iter().any(|option| option == COLLECTOR));
        for (name, value) in [("num.network.threads", NETWORK_THREADS), ("num.io.threads", IO_THREADS)] {
            assert!(properties.contains(&(name.to_owned(), value.to_owned())), "{name}");
        }
    }

    #[test]
    fn a_server_answers_keeps_its_port_over_a_kill_and_ends() {
        if !crate::ready("a_server_answers_keeps_its_port_over_a_kill_and_ends", &[crate::Need::Kafka]) {
            return;
        }
        let kafka = Kafka::start(KafkaOptions::default()).unwrap();
        let (bootstrap, pid) = (kafka.bootstrap(), kafka.pid());
        kafka.kill().unwrap();
        kafka.launch().unwrap();
        assert_eq!(kafka.bootstrap(), bootstrap);
        assert_ne!(kafka.pid(), pid);
        kafka.stop().unwrap();
        assert!(TcpStream::connect(bootstrap).is_err());
    }
}
