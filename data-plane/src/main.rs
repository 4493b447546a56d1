//! `tbmq-data-plane`: the MQTT broker alone, over Kafka.

use std::process::ExitCode;

use tbmq_bus::kafka::{KafkaBus, KafkaConfig};
use tbmq_data_plane::{Config, Context, Running, SETTINGS};
use tbmq_proto::{properties, topic::Catalogue};
use tbmq_service::shell::{self, Misconfigured, Program, Shell};

async fn start(config: Config, shell: Shell) -> anyhow::Result<Running> {
    // Told before anything is touched.
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
    tbmq_data_plane::start(config, context).await
}

fn main() -> ExitCode {
    let program = Program {
        name: "tbmq-data-plane",
        about: "The MQTT broker of TBMQ: takes messages from clients and hands them to clients and integrations",
        role: "data-plane",
        admin_port: 8081,
        settings: SETTINGS,
    };
    shell::main(&program, start)
}
