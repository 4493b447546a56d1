//! `tbmq-executor`: the executor alone, over Kafka.

use std::process::ExitCode;

use tbmq_bus::kafka::{KafkaBus, KafkaConfig};
use tbmq_executor::{ADMIN_PORT, Config, Context, Running, SETTINGS};
use tbmq_proto::topic::Catalogue;
use tbmq_service::{
    bus_config::KafkaSettings,
    shell::{self, Misconfigured, Program, Shell, ShellConfig},
};

/// Half of what a message costs is memory that lives for a millisecond: with the system's allocator an HTTP request takes
/// a third more CPU.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How Kafka is reached; told before a port is bound.
fn kafka(settings: &KafkaSettings) -> Result<KafkaConfig, Misconfigured> {
    KafkaConfig::parse(settings.required_servers()?, settings.properties())
        .map_err(|error| Misconfigured::new(format!("TB_KAFKA_DEFAULT_PRODUCER_CONSUMER_CONFIG: {error}")))
}

fn check(config: &Config, shell: &ShellConfig) -> Result<(), Misconfigured> {
    config.check().map_err(|error| Misconfigured::new(error.to_string()))?;
    kafka(&shell.queue.kafka).map(drop)
}

async fn start(config: Config, shell: Shell) -> anyhow::Result<Running> {
    let tracer = shell.traces.tracer("executor", &shell.identity.service_id)?;
    let context = Context {
        bus: KafkaBus::new(kafka(&shell.kafka)?)?,
        catalogue: Catalogue::new(shell.kafka.kafka_prefix.clone()),
        replication_factor: shell.kafka.replication_factor,
        identity: shell.identity,
        metrics: shell.metrics,
        health: shell.health,
        tracer,
    };
    tbmq_executor::start(config, context).await
}

fn main() -> ExitCode {
    let program = Program {
        name: "tbmq-executor",
        about: "Runs the integrations of TBMQ: consumes their messages and delivers them",
        role: "executor",
        admin_port: ADMIN_PORT,
        spare_cores: 1,
        settings: SETTINGS,
    };
    shell::main(&program, check, start)
}
