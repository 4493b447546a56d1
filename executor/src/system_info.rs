//! What TBMQ's executors tell about themselves on the uplink: that they live, and the load of the machine (spec §4.7).

use std::{sync::Arc, time::Duration};

use tbmq_proto::queue::{ServiceInfo, SystemInfoProto};
use tbmq_service::system::{Load, Meter, Usage};
use tokio::time::MissedTickBehavior;

use crate::executor::Shared;

/// How often the service is told of without its load.
const SERVICE_EVERY: Duration = Duration::from_secs(300);

/// TBMQ's name of this service.
const SERVICE_TYPE: &str = "TBMQ_INTEGRATION_EXECUTOR";

/// Tells for ever.
pub(crate) async fn follow(shared: Arc<Shared>) {
    let every = Duration::from_secs(shared.config.stats.system_info.persist_frequency);
    let mut services = tokio::time::interval(SERVICE_EVERY);
    let mut systems = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
    for ticks in [&mut services, &mut systems] {
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let mut meter = Meter::new();
    loop {
        let system_info = tokio::select! {
            _ = services.tick() => None,
            _ = systems.tick() => Some(to_proto(meter.load())),
        };
        shared.uplink.tell_service_info(ServiceInfo {
            service_id: shared.identity.service_id.clone(),
            service_type: Some(SERVICE_TYPE.to_owned()),
            system_info,
        });
    }
}

/// What this system does not tell stays away.
fn to_proto(load: Load) -> SystemInfoProto {
    let percent = |usage: Usage| i64::from(usage.percent());
    SystemInfoProto {
        cpu_usage: load.cpu_percent.map(i64::from),
        cpu_count: load.cpu_count.map(i64::from),
        memory_usage: load.memory.map(percent),
        total_memory: load.memory.map(|usage| usage.total as i64),
        disk_usage: load.disk.map(percent),
        total_disk_space: load.disk.map(|usage| usage.total as i64),
    }
}
