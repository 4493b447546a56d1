//! All three planes in one process: `tbmq`.
//!
//! Without any setting it needs no service: the bus is the embedded log and the store is SQLite, both in
//! `./tbmq-data`. `TB_KAFKA_SERVERS` and `DATABASE_URL` replace them one by one; `TB_SERVICE_TYPE` leaves planes out.

mod config;
mod data_dir;
mod planes;
#[cfg(test)]
mod reference;

use std::process::ExitCode;

use tbmq_service::shell::{self, Program};

/// As the executor's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // An executor apart has the executor's port, so that it can live beside a broker on one machine.
    let service_type = std::env::var("TB_SERVICE_TYPE").ok();
    let executor_only =
        config::Roles::of(service_type.as_deref()).is_ok_and(|roles| roles == config::Roles::Executor);
    let program = Program {
        name: "tbmq",
        about: "TBMQ: an MQTT broker, its control plane and its integration executor in one process",
        role: "tbmq",
        admin_port: if executor_only { tbmq_executor::ADMIN_PORT } else { tbmq_control_plane::ADMIN_PORT },
        spare_cores: 0,
        settings: &[],
    };
    shell::run(&program, config::Config::load, config::Config::trees, planes::check, planes::start)
}
