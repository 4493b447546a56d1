//! Who this process is: stable and distinct ids, one incarnation per start (architecture §4.27).

use uuid::Uuid;

use crate::{build_info, time};

/// One role of one running process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `TB_SERVICE_ID`, else `<hostname>-<role>`; the same after a restart.
    pub service_id: String,
    /// UUIDv7 in its canonical text, new at every start: a later one replaces the earlier.
    pub incarnation: String,
    /// Version of the program.
    pub version: &'static str,
    /// When it started, in milliseconds since 1970.
    pub started_ms: i64,
}

impl Identity {
    /// The identity of a process with one role, such as `data-plane`.
    ///
    /// A configured id is taken as it is; checking it is the caller's job.
    pub fn of(role: &str, configured: Option<&str>) -> Self {
        match given(configured) {
            Some(id) => Self::new(id.to_owned()),
            None => Self::new(format!("{}-{role}", host_name())),
        }
    }

    /// The identity of one role of several in a process: a configured id gets `-<role>` appended, so that the ids
    /// of the roles differ.
    pub fn of_shared(role: &str, configured: Option<&str>) -> Self {
        let stem = given(configured).map_or_else(host_name, ToOwned::to_owned);
        Self::new(format!("{stem}-{role}"))
    }

    /// That a newer incarnation of this service id has taken over.
    pub fn superseded_by(&self, incarnation: String) -> Superseded {
        Superseded { service_id: self.service_id.clone(), own: self.incarnation.clone(), incarnation }
    }

    fn new(service_id: String) -> Self {
        Self {
            service_id,
            incarnation: Uuid::now_v7().to_string(),
            version: build_info::VERSION,
            started_ms: time::now_ms(),
        }
    }
}

/// A newer incarnation of our service id has taken over: of two processes with one id the newer goes on (architecture
/// §4.27).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "incarnation {incarnation} of service id {service_id} has taken over from this one, {own}; if they are two \
     processes, give each a TB_SERVICE_ID of its own"
)]
pub struct Superseded {
    service_id: String,
    own: String,
    incarnation: String,
}

fn given(configured: Option<&str>) -> Option<&str> {
    configured.map(str::trim).filter(|id| !id.is_empty())
}

/// The machine's name, cut to what a service id may hold; `localhost` when there is none.
pub fn host_name() -> String {
    // Linux keeps it here; elsewhere the shell's variable is the only source without a system call.
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .or_else(|| std::env::var("COMPUTERNAME").ok())
        .unwrap_or_default();
    let name: String = name
        .trim()
        .chars()
        .take(64)
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' })
        .collect();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configured_id_is_taken_as_it_is() {
        assert_eq!(Identity::of("executor", Some(" ie1 ")).service_id, "ie1");
    }

    #[test]
    fn without_an_id_or_with_an_empty_one_the_host_and_the_role_make_it() {
        for configured in [None, Some(""), Some("  ")] {
            let id = Identity::of("executor", configured).service_id;
            assert!(id.ends_with("-executor") && id.len() > "-executor".len(), "{id}");
        }
    }

    #[test]
    fn roles_that_share_a_process_have_distinct_ids() {
        assert_eq!(Identity::of_shared("data-plane", Some("tbmq1")).service_id, "tbmq1-data-plane");
        assert_eq!(Identity::of_shared("executor", Some("tbmq1")).service_id, "tbmq1-executor");
    }

    #[test]
    fn incarnations_rise() {
        let (first, second) = (Identity::of("executor", None), Identity::of("executor", None));
        assert!(first.incarnation < second.incarnation);
    }
}
