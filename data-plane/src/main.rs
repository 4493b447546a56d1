//! `tbmq-data-plane`: the MQTT broker alone, over Kafka.

use std::process::ExitCode;

use tbmq_bus::kafka::{KafkaBus, KafkaConfig};
use tbmq_data_plane::{ADMIN_PORT, Config, Context, Running, SETTINGS};
use tbmq_proto::topic::Catalogue;
use tbmq_service::{
    bus_config::KafkaSettings,
    shell::{self, Misconfigured, Program, Shell, ShellConfig},
};

/// As the executor's: a record and its outcome are some pieces of memory that live for milliseconds.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How Kafka is reached; told before a port is bound.
fn kafka(settings: &KafkaSettings) -> Result<KafkaConfig, Misconfigured> {
    KafkaConfig::parse(settings.required_servers()?, settings.properties())
        .map_err(|error| Misconfigured::new(format!("TB_KAFKA_DEFAULT_PRODUCER_CONSUMER_CONFIG: {error}")))
}

fn check(_: &Config, shell: &ShellConfig) -> Result<(), Misconfigured> {
    kafka(&shell.queue.kafka).map(drop)
}

async fn start(config: Config, shell: Shell) -> anyhow::Result<Running> {
    let tracer = shell.traces.tracer("data-plane", &shell.identity.service_id)?;
    let context = Context {
        bus: KafkaBus::new(kafka(&shell.kafka)?)?,
        catalogue: Catalogue::new(shell.kafka.kafka_prefix.clone()),
        replication_factor: shell.kafka.replication_factor,
        identity: shell.identity,
        metrics: shell.metrics,
        health: shell.health,
        tracer,
        sessions: None,
    };
    tbmq_data_plane::start(config, context).await
}

fn main() -> ExitCode {
    let program = Program {
        name: "tbmq-data-plane",
        about: "The MQTT broker of TBMQ: takes messages from clients and hands them to clients and integrations",
        role: "data-plane",
        admin_port: ADMIN_PORT,
        spare_cores: 1,
        settings: SETTINGS,
    };
    shell::main(&program, check, start)
}
