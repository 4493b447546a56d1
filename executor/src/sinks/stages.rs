//! The stages of a connection check, each with its time and what came of it.

use std::{future::Future, time::Duration};

use tbmq_integration::wire::Stage;
use tokio::time::{Instant, timeout_at};

use crate::sink::ProbeReport;

/// A check, as far as it has come.
#[derive(Debug)]
pub struct Stages {
    /// What was found so far.
    pub report: ProbeReport,
    /// When the check ends.
    pub deadline: Instant,
}

impl Stages {
    /// A check that begins now and takes at most so long.
    pub fn new(timeout: Duration) -> Self {
        Self { report: ProbeReport::default(), deadline: Instant::now() + timeout }
    }

    /// Runs a stage until the deadline at most, and notes what came of it: its text, or why it failed.
    ///
    /// # Errors
    /// The text of the failure, which is the report's error now.
    pub async fn run<T>(
        &mut self,
        name: &str,
        work: impl Future<Output = Result<(T, String), String>>,
    ) -> Result<T, String> {
        let start = Instant::now();
        let result = timeout_at(self.deadline, work).await;
        let elapsed = start.elapsed();
        match result.unwrap_or_else(|_| Err(no_end(name, elapsed))) {
            Ok((value, text)) => {
                self.add(name, elapsed, Ok(text));
                Ok(value)
            }
            Err(text) => {
                self.add(name, elapsed, Err(text.clone()));
                Err(text)
            }
        }
    }

    /// Notes what came of a stage; `false` when it failed.
    pub fn add(&mut self, name: &str, elapsed: Duration, result: Result<String, String>) -> bool {
        let ok = result.is_ok();
        let (Ok(text) | Err(text)) = result;
        if !ok {
            self.report.error = Some(text.clone());
        }
        let elapsed_ms = elapsed.as_millis() as u64;
        self.report.stages.push(Stage { name: name.to_owned(), ok, elapsed_ms, text });
        ok
    }
}

/// Why a stage without an answer failed.
pub fn no_end(stage: &str, elapsed: Duration) -> String {
    format!("no end of {stage} after {} ms", elapsed.as_millis())
}
