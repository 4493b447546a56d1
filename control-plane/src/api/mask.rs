//! Which fields of an integration a caller wants to read (AIP-157).

use std::collections::BTreeSet;

use prost_types::FieldMask;
use tbmq_integration::entity::Violation;
use tbmq_proto::control::{Integration, IntegrationStatus};
use tonic::Status;

use super::error;

const STATUS: &str = "status";
pub(super) const LAG: &str = "status.lag";

/// Every path that a mask may name.
const PATHS: [&str; 21] = [
    "name",
    "uid",
    "display_name",
    "type",
    "enabled",
    "configuration_json",
    "labels",
    "description",
    STATUS,
    "status.phase",
    "status.reason",
    "status.error",
    "status.service_id",
    "status.holders",
    LAG,
    "revision",
    "etag",
    "create_time",
    "update_time",
    "disconnected_time",
    "*",
];

/// The paths that are wanted; `None`: all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ReadMask(Option<BTreeSet<&'static str>>);

impl ReadMask {
    /// Reads the field `read_mask` of a request; absent, empty and `*` mean everything.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` with every path that does not exist.
    pub(super) fn parse(mask: Option<FieldMask>) -> Result<Self, Status> {
        let paths = mask.map(|mask| mask.paths).unwrap_or_default();
        let mut wanted = BTreeSet::new();
        let mut violations = Vec::new();
        for path in &paths {
            match PATHS.iter().find(|known| *known == path) {
                Some(known) => drop(wanted.insert(*known)),
                None => violations.push(Violation::new("read_mask", unknown(path))),
            }
        }
        if !violations.is_empty() {
            return Err(error::invalid(violations));
        }
        let is_all = wanted.is_empty() || wanted.contains("*");
        Ok(Self((!is_all).then_some(wanted)))
    }

    /// Whether this or a part of it is wanted.
    pub(super) fn wants(&self, path: &str) -> bool {
        let Some(wanted) = &self.0 else { return true };
        let is_part = |held: &&str| held.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
        let parent = path.split_once('.').is_some_and(|(parent, _)| wanted.contains(parent));
        parent || wanted.contains(path) || wanted.iter().any(is_part)
    }

    /// Leaves only what is wanted.
    pub(super) fn apply(&self, whole: Integration) -> Integration {
        if self.0.is_none() {
            return whole;
        }
        fn keep<T: Default>(is_wanted: bool, value: T) -> T {
            if is_wanted { value } else { T::default() }
        }
        // Taken apart, so that a new field is not forgotten here.
        let Integration {
            name,
            uid,
            display_name,
            r#type,
            enabled,
            configuration_json,
            labels,
            description,
            status,
            revision,
            etag,
            create_time,
            update_time,
            disconnected_time,
        } = whole;
        Integration {
            name: keep(self.wants("name"), name),
            uid: keep(self.wants("uid"), uid),
            display_name: keep(self.wants("display_name"), display_name),
            r#type: keep(self.wants("type"), r#type),
            enabled: keep(self.wants("enabled"), enabled),
            configuration_json: keep(self.wants("configuration_json"), configuration_json),
            labels: keep(self.wants("labels"), labels),
            description: keep(self.wants("description"), description),
            status: keep(self.wants(STATUS), status.map(|status| self.apply_to_status(status))),
            revision: keep(self.wants("revision"), revision),
            etag: keep(self.wants("etag"), etag),
            create_time: keep(self.wants("create_time"), create_time),
            update_time: keep(self.wants("update_time"), update_time),
            disconnected_time: keep(self.wants("disconnected_time"), disconnected_time),
        }
    }

    fn apply_to_status(&self, mut status: IntegrationStatus) -> IntegrationStatus {
        let lag = status.lag.take().filter(|_| self.wants(LAG));
        let mut kept = IntegrationStatus { lag, ..IntegrationStatus::default() };
        if self.wants("status.phase") {
            kept.phase = status.phase;
        }
        if self.wants("status.reason") {
            kept.reason = status.reason;
        }
        if self.wants("status.error") {
            kept.error = status.error;
        }
        if self.wants("status.service_id") {
            kept.service_id = status.service_id;
        }
        if self.wants("status.holders") {
            kept.holders = status.holders;
        }
        kept
    }
}

fn unknown(path: &str) -> String {
    match path.split_once('.') {
        Some((parent @ ("labels" | "configuration_json"), _)) => {
            format!("{path:?}: {parent} can only be read as a whole")
        }
        _ => format!("{path:?} is not a field of an integration; known are {}", PATHS.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use tbmq_proto::control::Lag;

    use super::*;

    fn mask(paths: &[&str]) -> Result<ReadMask, Status> {
        ReadMask::parse(Some(FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() }))
    }

    fn whole() -> Integration {
        let lag = Some(Lag { messages: 3, ..Lag::default() });
        let status = IntegrationStatus { phase: 3, reason: "RUNNING".to_owned(), lag, ..Default::default() };
        Integration {
            name: "integrations/x".to_owned(),
            display_name: "x".to_owned(),
            revision: 7,
            status: Some(status),
            ..Integration::default()
        }
    }

    #[test]
    fn only_what_is_named_is_left() {
        let read = mask(&["display_name", "status.phase"]).unwrap().apply(whole());
        let status = IntegrationStatus { phase: 3, ..IntegrationStatus::default() };
        let expected =
            Integration { display_name: "x".to_owned(), status: Some(status), ..Integration::default() };
        assert_eq!(read, expected);
        assert_eq!(mask(&["status"]).unwrap().apply(whole()).status, whole().status);
        assert_eq!(mask(&["name"]).unwrap().apply(whole()).status, None);
        for all in [mask(&[]), mask(&["*", "name"]), ReadMask::parse(None)] {
            assert_eq!(all.unwrap().apply(whole()), whole());
        }
    }

    #[test]
    fn a_part_is_wanted_with_its_whole_and_the_whole_for_its_part() {
        let wants = |paths: &[&str], path: &str| mask(paths).unwrap().wants(path);
        assert!(wants(&["status"], LAG) && wants(&[LAG], "status") && wants(&[], LAG));
        assert!(!wants(&["status.phase"], LAG) && !wants(&["name"], "status"));
    }

    #[test]
    fn every_unknown_path_is_told_at_once() {
        let status = mask(&["name", "nmae", "labels.site", "status.lag.messages", ""]).unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        for part in ["\"nmae\" is not a field", "labels can only be read as a whole", "\"\" is not"] {
            assert!(status.message().contains(part), "{part}: {}", status.message());
        }
    }
}
