//! The connection check (spec §6.5.3), in stages: resolve, connect, tls, authenticate, topic.
//!
//! A client of its own connects, with the integration's settings and another client id, so that what is tried is what
//! the sink would do. librdkafka tells each change of a connection's state to its log; the stages are made of that.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rdkafka::{
    ClientContext,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode as Code},
    metadata::Metadata,
    producer::{BaseProducer, DeliveryResult, Producer as _, ProducerContext},
};
use tokio::sync::oneshot;

use super::{
    Kafka,
    brokers::{self, Problem},
    config::Checked,
    listed,
    outcome::Class,
    producer::client_config,
    properties::{self, Hidden},
};
use crate::{
    sink::{ConnectError, ProbeReport},
    sinks::{
        credentials::Secret,
        egress::Egress,
        stages::{Stages, no_end},
    },
};

/// One wait for metadata; what ends the check earlier is noticed after it.
const METADATA_SLICE: Duration = Duration::from_millis(250);

/// How long the last words of librdkafka are waited for when all brokers are down.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Tries the brokers and the topic of a checked configuration.
pub(super) async fn run(kind: &Kafka, checked: Checked, deadline: Duration) -> ProbeReport {
    let mut stages = Stages::new(deadline);
    let end = stages.deadline.into_std();
    let resolve = async { Ok(((), kind.resolve(&checked).await?)) };
    if stages.run("resolve", resolve).await.is_err() {
        return stages.report;
    }
    let (report, reported) = oneshot::channel();
    let egress = kind.settings.egress.clone();
    // A thread of its own: taking down a client waits longer than the report should.
    let spawned = std::thread::Builder::new().name("kafka-sink-probe".to_owned()).spawn(move || {
        let client = connect(&checked, &egress, end, &mut stages);
        // Nobody waits for the report when the check was given up.
        drop(report.send(stages.report));
        drop(client);
    });
    let lost = |text: String| ConnectError::from(text).into();
    match spawned {
        Ok(_) => reported.await.unwrap_or_else(|_| lost("the check ended without a report".to_owned())),
        Err(error) => lost(format!("no thread for the check: {error}")),
    }
}

/// All stages but the first. Gives the client back, if there is one, to be taken down.
fn connect(
    checked: &Checked,
    egress: &Egress,
    end: Instant,
    stages: &mut Stages,
) -> Option<BaseProducer<Listener>> {
    let mut settings = checked.translated.settings.clone();
    let phases = phases(settings.get("security.protocol").map_or("plaintext", Secret::expose));
    settings.insert("bootstrap.servers", Secret::new(listed(&checked.servers)));
    let id = settings.get("client.id").map_or("", Secret::expose);
    settings.insert("client.id", Secret::new(format!("{id}-check")));
    settings.insert("allow.auto.create.topics", Secret::new("false"));
    settings.insert("debug", Secret::new("broker"));
    let trace = Arc::new(Mutex::new(Trace::new(phases.len())));
    let hidden = Hidden::of(&settings);
    let listener = Listener { trace: trace.clone(), hidden: hidden.clone() };
    let start = Instant::now();
    let made = client_config(&settings, RDKafkaLogLevel::Debug).create_with_context(listener);
    let client: BaseProducer<Listener> = match made {
        Ok(client) => client,
        Err(error) => {
            // Certificates and keys are read before anything is connected.
            let stage = if phases.contains(&"tls") { "tls" } else { "connect" };
            stages.add(stage, start.elapsed(), Err(hidden.hide(&properties::creation_text(&error))));
            return None;
        }
    };
    let topic = &checked.config.topic;
    let answer: Mutex<Option<Result<Metadata, KafkaError>>> = Mutex::new(None);
    let is_over = |now: Instant| now >= end || answer.lock().is_some() || trace.lock().has_failed();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over(Instant::now()) {
                let left = end.saturating_duration_since(Instant::now());
                match client.client().fetch_metadata(Some(topic), left.min(METADATA_SLICE)) {
                    Err(KafkaError::MetadataFetch(code)) if Class::of(code).is_suspicious() => {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    result => *answer.lock() = Some(result),
                }
            }
        });
        while !is_over(Instant::now()) {
            client.poll(Duration::from_millis(10));
        }
    });
    if answer.lock().is_none() {
        client.poll(LAST_WORDS);
    } else {
        client.poll(Duration::ZERO);
    }
    let now = Instant::now();
    let trace = trace.lock();
    if trace.stages(&phases, start, now.min(end), stages) {
        let since = trace.up.as_ref().map_or(start, |up| up.at);
        let elapsed = now.min(end).saturating_duration_since(since);
        let result = match answer.lock().take() {
            Some(Ok(metadata)) => found(&metadata, topic, egress),
            Some(Err(error)) => Err(error.to_string()),
            None => Err(trace.error().unwrap_or_else(|| no_end("topic", elapsed))),
        };
        let result = result.map(|text| with_ignored(text, &checked.translated.ignored));
        stages.add("topic", elapsed, result);
    }
    drop(trace);
    Some(client)
}

fn with_ignored(text: String, ignored: &[String]) -> String {
    if ignored.is_empty() { text } else { format!("{text}; ignored: {}", ignored.join(", ")) }
}

/// What the brokers say about the topic, if all of them may be connected to.
fn found(metadata: &Metadata, topic: &str, egress: &Egress) -> Result<String, String> {
    for broker in metadata.brokers() {
        let port = u16::try_from(broker.port()).unwrap_or_default();
        if let Err(Problem::Refused(text)) = brokers::look(egress, broker.host(), port) {
            return Err(text);
        }
    }
    let missing = || "Configured topic is missing on the external brokers!".to_owned();
    let found = metadata.topics().iter().find(|found| found.name() == topic).ok_or_else(missing)?;
    match found.error().map(Code::from) {
        None => {
            let (partitions, brokers) = (found.partitions().len(), metadata.brokers().len());
            Ok(format!("{topic} has {partitions} partitions on {brokers} brokers"))
        }
        Some(code) if Class::of(code) == Class::Topic => Err(missing()),
        Some(code) => Err(format!("{topic}: {code}")),
    }
}

/// The stages of a connection.
fn phases(protocol: &str) -> Vec<&'static str> {
    let mut phases = vec!["connect"];
    if protocol.ends_with("ssl") {
        phases.push("tls");
    }
    if protocol.starts_with("sasl") {
        phases.push("authenticate");
    }
    phases
}

/// How connections came along.
struct Trace {
    phases: usize,
    /// Attempts that go on, by broker.
    running: Vec<Attempt>,
    /// The first that reached its end.
    up: Option<Attempt>,
    /// The one that came furthest of those that failed.
    failed: Option<Attempt>,
    errors: Vec<(Code, String)>,
}

#[derive(Clone)]
struct Attempt {
    broker: String,
    /// When each stage began.
    entered: Vec<Instant>,
    /// When the last thing happened.
    at: Instant,
}

impl Trace {
    fn new(phases: usize) -> Self {
        Self { phases, running: Vec::new(), up: None, failed: None, errors: Vec::new() }
    }

    /// Takes a line of librdkafka's log about a connection's state.
    fn line(&mut self, now: Instant, line: &str) {
        let Some((before, change)) = line.split_once(": Broker changed state ") else { return };
        let Some((_, state)) = change.split_once(" -> ") else { return };
        let broker = before.rsplit(' ').next().unwrap_or(before);
        if state == "TRY_CONNECT" {
            self.running.retain(|attempt| attempt.broker != broker);
            self.running.push(Attempt { broker: broker.to_owned(), entered: vec![now], at: now });
            return;
        }
        let phases = self.phases;
        let Some(i) = self.running.iter().position(|attempt| attempt.broker == broker) else { return };
        let attempt = &mut self.running[i];
        attempt.at = now;
        // With TLS its stage lies between connecting and authenticating.
        let reached = match state {
            "SSL_HANDSHAKE" => 1,
            "AUTH_LEGACY" | "AUTH_HANDSHAKE" | "AUTH_REQ" => phases - 1,
            _ => 0,
        };
        while attempt.entered.len() <= reached {
            attempt.entered.push(now);
        }
        match state {
            "UP" => {
                let attempt = self.running.remove(i);
                self.up.get_or_insert(attempt);
            }
            "DOWN" | "INIT" => {
                let attempt = self.running.remove(i);
                let is_further =
                    self.failed.as_ref().is_none_or(|failed| failed.entered.len() <= attempt.entered.len());
                if is_further {
                    self.failed = Some(attempt);
                }
            }
            _ => {}
        }
    }

    /// Whether it makes no sense to wait any longer.
    fn has_failed(&self) -> bool {
        self.up.is_none()
            && self.failed.is_some()
            && self.errors.iter().any(|(code, _)| matches!(code, Code::AllBrokersDown | Code::Authentication))
    }

    /// The peer's words: about who we are before those about the connection.
    fn error(&self) -> Option<String> {
        let rank = |code: Code| match Class::of(code) {
            _ if code == Code::AllBrokersDown => 0,
            Class::Authentication => 2,
            _ => 1,
        };
        self.errors.iter().max_by_key(|(code, _)| rank(*code)).map(|(_, text)| text.clone())
    }

    /// Adds the stages of the connection; false when one failed.
    fn stages(&self, phases: &[&'static str], start: Instant, now: Instant, stages: &mut Stages) -> bool {
        let furthest = || self.running.iter().max_by_key(|attempt| attempt.entered.len());
        let Some(attempt) = self.up.as_ref().or(self.failed.as_ref()).or_else(furthest) else {
            let elapsed = now.saturating_duration_since(start);
            let text = self.error().unwrap_or_else(|| no_end("connect", elapsed));
            return stages.add("connect", elapsed, Err(text));
        };
        for (i, phase) in phases.iter().enumerate() {
            let began = attempt.entered.get(i).copied().unwrap_or(attempt.at);
            let text = || attempt.broker.clone();
            match attempt.entered.get(i + 1) {
                Some(next) => {
                    stages.add(phase, next.saturating_duration_since(began), Ok(text()));
                }
                None if self.up.is_some() => {
                    stages.add(phase, attempt.at.saturating_duration_since(began), Ok(text()));
                }
                None => {
                    let ended = if self.failed.is_some() { attempt.at } else { now };
                    let elapsed = ended.saturating_duration_since(began);
                    let text = self.error().unwrap_or_else(|| no_end(phase, elapsed));
                    return stages.add(phase, elapsed, Err(text));
                }
            }
        }
        true
    }
}

/// Gets everything that librdkafka tells.
struct Listener {
    trace: Arc<Mutex<Trace>>,
    hidden: Hidden,
}

impl ClientContext for Listener {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        if facility == "STATE" {
            self.trace.lock().line(Instant::now(), message);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
        self.trace.lock().errors.push((code, self.hidden.hide(reason)));
    }
}

impl ProducerContext for Listener {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(protocol: &str, lines: &[&str]) -> (Trace, Vec<&'static str>, Instant) {
        let phases = phases(protocol);
        let mut trace = Trace::new(phases.len());
        let start = Instant::now();
        for (i, line) in lines.iter().enumerate() {
            let line = format!("[thrd:main]: {protocol}://k:1/bootstrap: Broker changed state {line}");
            trace.line(start + Duration::from_millis(10 * i as u64), &line);
        }
        (trace, phases, start)
    }

    fn stages(trace: &Trace, phases: &[&'static str], start: Instant) -> Vec<(String, bool, u64)> {
        let mut stages = Stages::new(Duration::from_secs(1));
        trace.stages(phases, start, start + Duration::from_secs(1), &mut stages);
        stages.report.stages.into_iter().map(|stage| (stage.name, stage.ok, stage.elapsed_ms)).collect()
    }

    fn named(stages: &[(&str, bool, u64)]) -> Vec<(String, bool, u64)> {
        stages.iter().map(|(name, ok, elapsed)| ((*name).to_owned(), *ok, *elapsed)).collect()
    }

    #[test]
    fn a_connections_states_are_its_stages() {
        let (mut trace, phases, start) = trace(
            "sasl_ssl",
            &[
                "INIT -> TRY_CONNECT",
                "TRY_CONNECT -> CONNECT",
                "CONNECT -> SSL_HANDSHAKE",
                "SSL_HANDSHAKE -> APIVERSION_QUERY",
                "APIVERSION_QUERY -> AUTH_HANDSHAKE",
                "AUTH_HANDSHAKE -> AUTH_REQ",
            ],
        );
        let running = [("connect", true, 20), ("tls", true, 20), ("authenticate", false, 960)];
        assert_eq!(stages(&trace, &phases, start), named(&running));
        let mut ended = Trace { running: trace.running.clone(), ..Trace::new(3) };
        let line =
            |change: &str| format!("sasl_ssl://k:1/bootstrap: Broker changed state AUTH_REQ -> {change}");
        ended.line(start + Duration::from_millis(70), &line("UP"));
        let up = [("connect", true, 20), ("tls", true, 20), ("authenticate", true, 30)];
        assert_eq!(stages(&ended, &phases, start), named(&up));
        trace.line(start + Duration::from_millis(80), &line("DOWN"));
        trace.errors.push((Code::Authentication, "wrong password".to_owned()));
        trace.errors.push((Code::AllBrokersDown, "1/1 brokers are down".to_owned()));
        assert!(trace.has_failed());
        let down = [("connect", true, 20), ("tls", true, 20), ("authenticate", false, 40)];
        assert_eq!(stages(&trace, &phases, start), named(&down));
        assert_eq!(trace.error().as_deref(), Some("wrong password"));
    }

    #[test]
    fn a_refused_connection_fails_in_the_first_stage() {
        let (trace, phases, start) =
            trace("plaintext", &["INIT -> TRY_CONNECT", "TRY_CONNECT -> CONNECT", "CONNECT -> DOWN"]);
        assert_eq!(stages(&trace, &phases, start), named(&[("connect", false, 20)]));
    }
}
