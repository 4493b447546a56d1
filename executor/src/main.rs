//! `tbmq-executor`: the executor alone, over Kafka.

use std::process::ExitCode;

use tbmq_bus::kafka::{KafkaBus, KafkaConfig};
use tbmq_executor::{Config, Context, Running, SETTINGS};
use tbmq_proto::{properties, topic::Catalogue};
use tbmq_service::shell::{self, Misconfigured, Program, Shell};

async fn start(config: Config, shell: Shell) -> anyhow::Result<Running> {
    // Told before anything is touched.
    config.check().map_err(|error| Misconfigured::new(error.to_string()))?;
    let properties = properties::parse(shell.kafka.properties())
        .map_err(|error| Misconfigured::new(format!("TB_KAFKA_DEFAULT_PRODUCER_CONSUMER_CONFIG: {error}")))?;
    let kafka = KafkaConfig { servers: shell.kafka.required_servers()?.to_owned(), properties };
    let context = Context {
        bus: KafkaBus::new(kafka)?,
        catalogue: Catalogue::new(shell.kafka.kafka_prefix.clone()),
        replication_factor: shell.kafka.replication_factor,
        identity: shell.identity,
        metrics: shell.metrics,
        health: shell.health,
    };
    tbmq_executor::start(config, context).await
}

fn main() -> ExitCode {
    let program = Program {
        name: "tbmq-executor",
        about: "Runs the integrations of TBMQ: consumes their messages and delivers them",
        role: "executor",
        admin_port: 8082,
        settings: SETTINGS,
    };
    shell::main(&program, start)
}
