//! What TBMQ's executors tell about themselves on the uplink: that they live, and the load of the machine (spec §4.7).

use std::{sync::Arc, time::Duration};

use tbmq_proto::queue::{ServiceInfo, SystemInfoProto};
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
    let mut before = CpuTimes::read();
    loop {
        let system_info = tokio::select! {
            _ = services.tick() => None,
            _ = systems.tick() => {
                let now = CpuTimes::read();
                Some(system_info(std::mem::replace(&mut before, now), now))
            }
        };
        shared.uplink.tell_service_info(ServiceInfo {
            service_id: shared.identity.service_id.clone(),
            service_type: Some(SERVICE_TYPE.to_owned()),
            system_info,
        });
    }
}

/// What this system does not tell stays away.
fn system_info(before: Option<CpuTimes>, now: Option<CpuTimes>) -> SystemInfoProto {
    let memory = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| memory(&text));
    let disk = disk();
    SystemInfoProto {
        cpu_usage: before.zip(now).and_then(|(before, now)| now.busy_percent_since(&before)),
        cpu_count: std::thread::available_parallelism().ok().map(|count| count.get() as i64),
        memory_usage: memory.map(Usage::percent),
        total_memory: memory.map(|usage| usage.total as i64),
        disk_usage: disk.map(Usage::percent),
        total_disk_space: disk.map(|usage| usage.total as i64),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Usage {
    total: u64,
    used: u64,
}

impl Usage {
    fn percent(self) -> i64 {
        (u128::from(self.used) * 100 / u128::from(self.total.max(1))) as i64
    }
}

/// Ticks of all processors since the system began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CpuTimes {
    idle: u64,
    total: u64,
}

impl CpuTimes {
    fn read() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    /// From the first line of Linux's `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal.
    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().next()?.strip_prefix("cpu ")?;
        let times: Vec<u64> =
            line.split_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
        Some(Self {
            idle: times.get(3)? + times.get(4).copied().unwrap_or_default(),
            total: times.iter().sum(),
        })
    }

    fn busy_percent_since(&self, before: &Self) -> Option<i64> {
        let total = self.total.checked_sub(before.total).filter(|total| *total > 0)?;
        let idle = self.idle.saturating_sub(before.idle).min(total);
        Some(Usage { total, used: total - idle }.percent())
    }
}

/// From Linux's `/proc/meminfo`.
fn memory(text: &str) -> Option<Usage> {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
    };
    let total = bytes("MemTotal")?;
    Some(Usage { total, used: total.saturating_sub(bytes("MemAvailable")?) })
}

/// Of the root file system.
fn disk() -> Option<Usage> {
    let found = rustix::fs::statvfs("/").ok()?;
    let total = found.f_blocks.checked_mul(found.f_frsize)?;
    Some(Usage { total, used: total.saturating_sub(found.f_bavail.checked_mul(found.f_frsize)?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_read_from_linuxs_tables() {
        let before = CpuTimes::parse("cpu  100 0 50 800 50 0 0 0 9 9\ncpu0 1 2 3 4\n").unwrap();
        assert_eq!(before, CpuTimes { idle: 850, total: 1_000 });
        let now = CpuTimes { idle: 925, total: 1_100 };
        assert_eq!(now.busy_percent_since(&before), Some(25));
        assert_eq!(before.busy_percent_since(&before), None);
        assert_eq!(CpuTimes::parse("intr 1"), None);
        let text = "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    400 kB\n";
        let usage = memory(text).unwrap();
        assert_eq!((usage, usage.percent()), (Usage { total: 1_024_000, used: 614_400 }, 60));
        assert_eq!(memory(""), None);
    }
}
