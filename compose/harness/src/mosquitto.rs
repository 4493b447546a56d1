//! Mosquitto's command-line clients: MQTT clients that we did not write.

use std::{
    net::SocketAddr,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

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
    let output = Command::new("mosquitto_pub")
        .args(["-h", &broker.ip().to_string(), "-p", &broker.port().to_string(), "-V", version])
        .args(["-q", &qos.to_string(), "-t", topic, "-m", message])
        .output()
        .context("mosquitto_pub could not be started")?;
    ensure!(output.status.success(), "mosquitto_pub failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A subscriber that ends after `count` messages; [`Subscriber::messages`] waits for that.
#[derive(Debug)]
pub struct Subscriber(std::process::Child);

/// Starts a subscriber that prints `topic payload` lines. It is subscribed when this returns.
///
/// # Errors
/// When the client can't be started or the broker refuses.
pub fn subscribe(broker: SocketAddr, version: &str, qos: u8, filter: &str, count: u32) -> Result<Subscriber> {
    use std::io::{BufRead as _, BufReader};
    // Into a pipe it would print only when its buffer is full.
    let mut child = Command::new("stdbuf")
        .args(["-oL", "mosquitto_sub"])
        .args(["-h", &broker.ip().to_string(), "-p", &broker.port().to_string(), "-V", version, "-d"])
        .args(["-q", &qos.to_string(), "-t", filter, "-C", &count.to_string(), "-W", "30", "-F", "MSG %t %p"])
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("mosquitto_sub could not be started")?;
    let stdout = child.stdout.as_mut().context("no stdout")?;
    // Debug output announces the SUBACK; one byte at a time so that nothing is swallowed.
    let mut reader = BufReader::with_capacity(1, stdout);
    let mut line = String::new();
    loop {
        line.clear();
        ensure!(reader.read_line(&mut line)? > 0, "mosquitto_sub ended before it was subscribed");
        if line.contains("received SUBACK") {
            return Ok(Subscriber(child));
        }
    }
}

impl Subscriber {
    /// Waits for the end and returns `topic payload` of each message.
    ///
    /// # Errors
    /// When fewer messages than asked for came within 30 s.
    pub fn messages(self) -> Result<Vec<String>> {
        let output = self.0.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let messages = text.lines().filter_map(|line| line.strip_prefix("MSG ")).map(str::to_owned).collect();
        ensure!(output.status.success(), "mosquitto_sub failed after {messages:?}");
        Ok(messages)
    }
}
