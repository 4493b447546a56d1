//! What a caller wants an integration to be: from a request, or from what is stored and an update mask.

use std::collections::BTreeMap;

use tbmq_integration::entity::Violation;
use tbmq_proto::control::Integration;
use tonic::Status;

use super::error;
use crate::store::Row;

const NAME_CHARS_MAX: usize = 255;
const DESCRIPTION_CHARS_MAX: usize = 4_096;
const LABELS_MAX: usize = 64;
const LABEL_CHARS_MAX: usize = 255;

/// What a caller wants an integration to be.
pub(super) struct Draft {
    pub(super) name: String,
    pub(super) enabled: bool,
    pub(super) configuration: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) description: String,
}

/// Checks what is plain text.
pub(super) fn check_texts(draft: &Draft, violations: &mut Vec<Violation>) {
    let mut refuse =
        |field: &str, text: &str| violations.push(Violation::new(format!("integration.{field}"), text));
    let name_chars = draft.name.chars().count();
    if draft.name.is_empty() {
        refuse("display_name", "Integration name should be specified!");
    } else if name_chars > NAME_CHARS_MAX {
        refuse("display_name", "name length must be equal or less than 255");
    } else if draft.name.chars().any(char::is_control) {
        refuse("display_name", "name is malformed");
    }
    if draft.description.chars().count() > DESCRIPTION_CHARS_MAX || draft.description.contains('\0') {
        refuse("description", "must have at most 4096 characters, without U+0000");
    }
    let label_ok = |text: &str| text.chars().count() <= LABEL_CHARS_MAX && !text.contains('\0');
    let labels_ok =
        draft.labels.iter().all(|(key, value)| !key.is_empty() && label_ok(key) && label_ok(value));
    if draft.labels.len() > LABELS_MAX || !labels_ok {
        refuse("labels", "must be at most 64, with keys and values of at most 255 characters");
    }
    if draft.configuration.contains('\0') {
        refuse("configuration_json", "must not contain U+0000");
    }
}

/// What is stored, with what the mask names replaced by what is given (AIP-134); an empty mask names everything.
pub(super) fn apply_mask(
    stored: &Row,
    given: Integration,
    mask: &[String],
    violations: &mut Vec<Violation>,
    type_given: bool,
) -> Result<Draft, Status> {
    let everything = mask.is_empty() || mask.iter().any(|path| path == "*");
    let wants = |field: &str| everything || mask.iter().any(|path| path == field);
    for path in mask {
        let known = [
            "*",
            "display_name",
            "type",
            "enabled",
            "configuration_json",
            "labels",
            "description",
            "name",
            "etag",
        ];
        if !known.contains(&path.as_str()) {
            let text = match path.split_once('.') {
                Some(("labels", _)) => format!("{path:?}: labels are replaced as a whole; write \"labels\""),
                _ => format!("{path:?} is not a writable field"),
            };
            violations.push(Violation::new("update_mask", text));
        }
    }
    if type_given && wants("type") && given.r#type != stored.kind.as_str() {
        return Err(error::invalid_because(
            "TYPE_IMMUTABLE",
            vec![Violation::new("integration.type", "Integration type can not be changed!")],
        ));
    }
    Ok(Draft {
        name: if wants("display_name") { given.display_name } else { stored.name.clone() },
        enabled: if wants("enabled") { given.enabled } else { stored.enabled },
        configuration: if wants("configuration_json") {
            given.configuration_json
        } else {
            stored.configuration.clone()
        },
        labels: if wants("labels") { given.labels.into_iter().collect() } else { stored.labels.clone() },
        description: if wants("description") { given.description } else { stored.description.clone() },
    })
}
