//! A library behind the commands of `compose/e2e/clients/README.md`.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, Stdio},
    sync::mpsc::{self, Receiver},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tbmq_harness::libraries::Library;

/// Longer than an agent waits for anything.
const PATIENCE: Duration = Duration::from_secs(45);

pub(crate) trait Agent: Send {
    /// Does what `command` says and returns the answer. Blocks.
    ///
    /// # Errors
    /// When the library reports a failure, or nothing.
    fn ask(&mut self, command: &Value) -> Result<Value>;
}

/// A library of another language, as a process. Dropping it kills it.
pub(crate) struct Program {
    child: Child,
    answers: Receiver<String>,
}

impl Program {
    pub(crate) fn start(library: Library) -> Result<Box<dyn Agent>> {
        let mut child = library
            .program()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} could not be started", library.name()))?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let (sender, answers) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Box::new(Self { child, answers }))
    }
}

impl Agent for Program {
    fn ask(&mut self, command: &Value) -> Result<Value> {
        let stdin = self.child.stdin.as_mut().context("stdin is piped")?;
        writeln!(stdin, "{command}").context("the program has ended")?;
        let answer = self.answers.recv_timeout(PATIENCE).context("the program does not answer")?;
        let answer: Value = serde_json::from_str(&answer)?;
        ensure!(answer.get("error").is_none(), "{answer}");
        Ok(answer)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            println!("a client could not be killed: {error}");
        }
    }
}
