//! `tbmq-control-plane`: the control plane alone, over Kafka and PostgreSQL.

use std::{net::SocketAddr, process::ExitCode};

use tbmq_bus::kafka::{KafkaBus, KafkaConfig};
use tbmq_control_plane::{ADMIN_PORT, Config, Context, SETTINGS};
use tbmq_proto::topic::Catalogue;
use tbmq_service::{
    bus_config::KafkaSettings,
    shell::{self, Misconfigured, Program, Shell, ShellConfig},
};

struct Plane(tbmq_control_plane::Running);

impl shell::Running for Plane {
    fn addresses(&self) -> Vec<(&'static str, SocketAddr)> {
        self.0.addresses()
    }

    async fn failed(&mut self) -> anyhow::Error {
        self.0.failed().await
    }

    async fn drain(self) {
        self.0.drain().await;
    }
}

/// How Kafka is reached; told before a port is bound.
fn kafka(settings: &KafkaSettings) -> Result<KafkaConfig, Misconfigured> {
    KafkaConfig::parse(settings.required_servers()?, settings.properties())
        .map_err(|error| Misconfigured::new(format!("TB_KAFKA_DEFAULT_PRODUCER_CONSUMER_CONFIG: {error}")))
}

fn check(config: &Config, shell: &ShellConfig) -> Result<(), Misconfigured> {
    config.store_options().map_err(|error| Misconfigured::new(error.to_string()))?;
    config.keys().map_err(|error| Misconfigured::new(error.to_string()))?;
    kafka(&shell.queue.kafka)?;
    config.check_access().map_err(|error| Misconfigured::new(error.to_string()))
}

async fn start(config: Config, shell: Shell) -> anyhow::Result<Plane> {
    let tracer = shell.traces.tracer("control-plane", &shell.identity.service_id)?;
    let context = Context {
        bus: KafkaBus::new(kafka(&shell.kafka)?)?,
        catalogue: Catalogue::new(shell.kafka.kafka_prefix.clone()),
        replication_factor: shell.kafka.replication_factor,
        topic_deletion: shell.kafka.enable_topic_deletion,
        identity: shell.identity,
        metrics: shell.metrics,
        health: shell.health,
        tracer,
    };
    tbmq_control_plane::start(config, context).await.map(Plane)
}

fn main() -> ExitCode {
    let program = Program {
        name: "tbmq-control-plane",
        about: "Owns the integrations of TBMQ: gRPC API, store, configuration of data planes and executors",
        role: "control-plane",
        admin_port: ADMIN_PORT,
        spare_cores: 1,
        settings: SETTINGS,
    };
    shell::main(&program, check, start)
}
