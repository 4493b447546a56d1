//! What the process uses, under Prometheus' standard names, from Linux's `/proc/self`. Elsewhere all are 0.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::{
    metrics::{
        counter::Counter,
        gauge::{ConstGauge, Gauge},
    },
    registry::Unit,
};

use super::Registry;
use crate::time;

/// The instruments.
#[derive(Debug, Default)]
pub(super) struct Usage {
    cpu_seconds: Counter<f64, AtomicU64>,
    resident_bytes: Gauge,
    virtual_bytes: Gauge,
    threads: Gauge,
    open_fds: Gauge,
    max_fds: Gauge,
}

impl Usage {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let usage = Self::default();
        let started = ConstGauge::new(time::now_ms() as f64 / 1e3);
        registry.register_with_unit(
            "process_start_time",
            "When the process started, since 1970",
            Unit::Seconds,
            started,
        );
        registry.register_with_unit(
            "process_cpu",
            "Time of processors that the process has used, in user and system mode",
            Unit::Seconds,
            usage.cpu_seconds.clone(),
        );
        registry.register_with_unit(
            "process_resident_memory",
            "Physical memory that the process has",
            Unit::Bytes,
            usage.resident_bytes.clone(),
        );
        registry.register_with_unit(
            "process_virtual_memory",
            "Addresses that the process has",
            Unit::Bytes,
            usage.virtual_bytes.clone(),
        );
        registry.register("process_threads", "Threads of the process", usage.threads.clone());
        registry.register("process_open_fds", "Open file descriptors", usage.open_fds.clone());
        registry.register(
            "process_max_fds",
            "File descriptors that may be open; 0 where there is no limit",
            usage.max_fds.clone(),
        );
        usage
    }

    /// Reads what the process uses now; a few short reads of `/proc`, which do not wait.
    pub(super) fn look(&self) {
        let stat = std::fs::read_to_string("/proc/self/stat").ok().and_then(|text| Stat::parse(&text));
        if let Some(stat) = stat {
            self.cpu_seconds.inner().store(stat.cpu_seconds(ticks_per_second()).to_bits(), Ordering::Relaxed);
            self.resident_bytes.set((stat.resident_pages * page_bytes()) as i64);
            self.virtual_bytes.set(stat.virtual_bytes as i64);
            self.threads.set(stat.threads as i64);
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            // One of them is this directory.
            self.open_fds.set(open.count().saturating_sub(1) as i64);
        }
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
        self.max_fds.set(open_files_max(&limits).unwrap_or_default() as i64);
    }
}

/// Of Linux's `/proc/self/stat` what is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    user_ticks: u64,
    system_ticks: u64,
    threads: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    /// The name of the program is in parentheses and may contain anything.
    fn parse(text: &str) -> Option<Self> {
        let (_, fields) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        // The first of them is the third of proc_pid_stat(5).
        let field = |number: usize| fields.get(number - 3)?.parse().ok();
        Some(Self {
            user_ticks: field(14)?,
            system_ticks: field(15)?,
            threads: field(20)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }

    fn cpu_seconds(self, ticks_per_second: u64) -> f64 {
        (self.user_ticks + self.system_ticks) as f64 / ticks_per_second as f64
    }
}

/// From Linux's `/proc/self/limits`; `None`: unlimited.
fn open_files_max(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(unix)]
fn ticks_per_second() -> u64 {
    rustix::param::clock_ticks_per_second()
}

#[cfg(unix)]
fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}

#[cfg(not(unix))]
fn ticks_per_second() -> u64 {
    100
}

#[cfg(not(unix))]
fn page_bytes() -> u64 {
    4096
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linuxs_tables_are_read() {
        let text =
            "42 (a b) c) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 7 0 12345 1048576 256 184 1 1 0";
        let stat = Stat::parse(text).unwrap();
        let expected = Stat {
            user_ticks: 250,
            system_ticks: 50,
            threads: 7,
            virtual_bytes: 1_048_576,
            resident_pages: 256,
        };
        assert_eq!(stat, expected);
        assert!((stat.cpu_seconds(100) - 3.0).abs() < 1e-9);
        assert_eq!(Stat::parse("42 (a) S"), None);
        let limits = "Limit    Soft Limit Hard Limit Units\nMax open files            1024   4096   files\n";
        assert_eq!(open_files_max(limits), Some(1024));
        assert_eq!(open_files_max("Max open files  unlimited unlimited files"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_uses_something() {
        let usage = Usage::default();
        usage.look();
        let used = [&usage.resident_bytes, &usage.virtual_bytes, &usage.threads, &usage.open_fds];
        assert!(used.iter().all(|gauge| gauge.get() > 0), "{usage:?}");
    }
}
