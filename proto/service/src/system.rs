//! The load of the machine that a process runs on: processors, memory, the root file system.

use std::time::{Duration, Instant};

use tbmq_proto::wire::SystemInfo;

/// Asked again within this time, a [`Meter`] repeats what it said.
const FRESH_FOR: Duration = Duration::from_secs(5);

/// What a system tells of its load; what it does not tell is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Busy share of all processors since the measurement before, in percent; at first since the system began.
    pub cpu_percent: Option<u32>,
    /// Processors that this process may use.
    pub cpu_count: Option<u32>,
    /// Memory in use, in bytes.
    pub memory: Option<Usage>,
    /// Space in use of the root file system, in bytes.
    pub disk: Option<Usage>,
}

impl From<Load> for SystemInfo {
    /// What is absent becomes 0.
    fn from(load: Load) -> Self {
        Self {
            cpu_percent: load.cpu_percent.unwrap_or_default(),
            cpu_count: load.cpu_count.unwrap_or_default(),
            memory_percent: load.memory.map(Usage::percent).unwrap_or_default(),
            total_memory_bytes: load.memory.map(|usage| usage.total).unwrap_or_default(),
            disk_percent: load.disk.map(Usage::percent).unwrap_or_default(),
            total_disk_bytes: load.disk.map(|usage| usage.total).unwrap_or_default(),
        }
    }
}

/// How much of something is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// All there is.
    pub total: u64,
    /// What is in use.
    pub used: u64,
}

impl Usage {
    /// The share in use, 0 to 100.
    pub fn percent(self) -> u32 {
        (u128::from(self.used.min(self.total)) * 100 / u128::from(self.total.max(1))) as u32
    }
}

/// Measures the load, at most every 5 s.
#[derive(Debug, Default)]
pub struct Meter {
    before: CpuTimes,
    last: Option<(Instant, Load)>,
}

impl Meter {
    /// A meter that has measured nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The load now, or as it was less than 5 s ago. Reads a few lines of `/proc`, which does not wait.
    pub fn load(&mut self) -> Load {
        if let Some((at, load)) = self.last
            && at.elapsed() < FRESH_FOR
        {
            return load;
        }
        let now = std::fs::read_to_string("/proc/stat").ok().and_then(|text| CpuTimes::parse(&text));
        let load = Load {
            cpu_percent: now.and_then(|now| now.busy_percent_since(&self.before)),
            cpu_count: std::thread::available_parallelism().ok().map(|count| count.get() as u32),
            memory: std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| memory(&text)),
            disk: disk(),
        };
        self.before = now.unwrap_or_default();
        self.last = Some((Instant::now(), load));
        load
    }
}

/// Ticks of all processors since the system began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct CpuTimes {
    idle: u64,
    total: u64,
}

impl CpuTimes {
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

    fn busy_percent_since(&self, before: &Self) -> Option<u32> {
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

#[cfg(unix)]
fn disk() -> Option<Usage> {
    let found = rustix::fs::statvfs("/").ok()?;
    let total = found.f_blocks.checked_mul(found.f_frsize)?;
    Some(Usage { total, used: total.saturating_sub(found.f_bavail.checked_mul(found.f_frsize)?) })
}

#[cfg(not(unix))]
fn disk() -> Option<Usage> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_read_from_linuxs_tables() {
        let before = CpuTimes::parse("cpu  100 0 50 800 50 0 0 0 9 9\ncpu0 1 2 3 4\n").unwrap();
        assert_eq!(before, CpuTimes { idle: 850, total: 1_000 });
        assert_eq!(before.busy_percent_since(&CpuTimes::default()), Some(15));
        let now = CpuTimes { idle: 925, total: 1_100 };
        assert_eq!(now.busy_percent_since(&before), Some(25));
        assert_eq!(before.busy_percent_since(&before), None);
        assert_eq!(CpuTimes::parse("intr 1"), None);
        let text = "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    400 kB\n";
        let usage = memory(text).unwrap();
        assert_eq!((usage, usage.percent()), (Usage { total: 1_024_000, used: 614_400 }, 60));
        assert_eq!(memory(""), None);
    }

    #[test]
    fn what_was_just_measured_is_not_measured_again() {
        let mut meter = Meter::new();
        let first = meter.load();
        meter.before = CpuTimes { idle: 0, total: 1 };
        assert_eq!(meter.load(), first);
        assert_eq!(meter.before, CpuTimes { idle: 0, total: 1 }, "no table was read");
    }
}
