//! Errors as status codes with details: one table for all services (control-api, "Validation and status codes").

use std::{collections::HashMap, fmt::Display, time::Duration};

use tbmq_integration::entity::Violation;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use crate::{commands::Failure, store};

/// Domain of every `ErrorInfo`.
pub(super) const DOMAIN: &str = "tbmq";

/// Details travel in a header, which clients limit to 16 KiB or less.
const VIOLATIONS_MAX: usize = 40;
const PART_BYTES_MAX: usize = 300;
const VIOLATIONS_BYTES_MAX: usize = 7_000;
/// Percent encoding makes three bytes of one.
const TEXT_BYTES_MAX: usize = 1_000;

/// Of a request for a data plane whose session is not here.
pub(super) const NOT_HELD: &str = "NOT_HELD";

/// Where the configuration document stands in requests.
pub(super) const DOCUMENT: &str = "integration.configuration_json";

pub(super) fn status(code: Code, reason: &str, text: impl Into<String>) -> Status {
    with_details(code, text, details(reason))
}

fn details(reason: &str) -> ErrorDetails {
    ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new())
}

fn with_details(code: Code, text: impl Into<String>, details: ErrorDetails) -> Status {
    Status::with_error_details(code, shorten(&text.into(), TEXT_BYTES_MAX), details)
}

fn shorten(text: &str, max: usize) -> String {
    let end = text.floor_char_boundary(max);
    if end < text.len() { format!("{}...", &text[..end]) } else { text.to_owned() }
}

/// Violations of a document as fields of a request.
pub(super) fn in_document(violations: Vec<Violation>) -> Vec<Violation> {
    let place = |path: &str| {
        if path.is_empty() { DOCUMENT.to_owned() } else { format!("{DOCUMENT}.{path}") }
    };
    violations
        .into_iter()
        .map(|violation| Violation { path: place(&violation.path), text: violation.text })
        .collect()
}

fn fields(violations: &[Violation]) -> Vec<FieldViolation> {
    let field = |violation: &Violation| {
        FieldViolation::new(
            shorten(&violation.path, PART_BYTES_MAX),
            shorten(&violation.text, PART_BYTES_MAX),
        )
    };
    let mut bytes = 0;
    let fits = |field: &FieldViolation| {
        bytes += field.field.len() + field.description.len();
        bytes <= VIOLATIONS_BYTES_MAX
    };
    violations.iter().take(VIOLATIONS_MAX).map(field).take_while(fits).collect()
}

/// A malformed request, with every problem at once.
pub(super) fn invalid(violations: Vec<Violation>) -> Status {
    invalid_because("INVALID_INTEGRATION", violations)
}

pub(super) fn invalid_because(reason: &str, violations: Vec<Violation>) -> Status {
    let text = violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let mut details = details(reason);
    details.set_bad_request(fields(&violations));
    with_details(Code::InvalidArgument, text, details)
}

/// One problem of a request.
pub(super) fn invalid_field(field: &str, text: impl Into<String>) -> Status {
    invalid(vec![Violation::new(field, text)])
}

/// The executor refused.
pub(super) fn rejected(text: &str, violations: Vec<Violation>) -> Status {
    let mut details = details("CONFIGURATION_REJECTED");
    if !violations.is_empty() {
        details.set_bad_request(fields(&in_document(violations)));
    }
    with_details(Code::FailedPrecondition, text, details)
}

pub(super) fn not_found(name: &str) -> Status {
    absent("tbmq.control.v1.Integration", name)
}

/// There is no such resource.
pub(super) fn absent(resource_type: &str, name: &str) -> Status {
    let mut details = details("NOT_FOUND");
    let name = shorten(name, PART_BYTES_MAX);
    let text = format!("{name} does not exist");
    details.set_resource_info(resource_type, name, "", &text);
    with_details(Code::NotFound, text, details)
}

/// A data plane, or the control plane that holds its session, can't be asked now.
pub(super) fn node_unreachable(text: impl Into<String>) -> Status {
    let mut details = details("NODE_UNREACHABLE");
    details.set_retry_info(Some(Duration::from_secs(2)));
    with_details(Code::Unavailable, text, details)
}

/// Something that the control plane needs is away; nothing was saved.
pub(super) fn unavailable(error: impl Display) -> Status {
    let mut details = details("DEPENDENCY_UNAVAILABLE");
    details.set_retry_info(Some(Duration::from_secs(2)));
    with_details(Code::Unavailable, error.to_string(), details)
}

pub(super) fn overloaded(error: impl Display) -> Status {
    let mut details = details("OVERLOADED");
    details.set_retry_info(Some(Duration::from_secs(1)));
    with_details(Code::ResourceExhausted, error.to_string(), details)
}

/// A message that is none of its type is the caller's fault; tonic calls that an internal error.
pub(super) fn readable(error: Status) -> Status {
    let says = |text| error.message().contains(text);
    let is_malformed = error.code() == Code::Internal
        && (says("decode Protobuf") || says("Missing request message") || says("compression flag"));
    if !is_malformed {
        return error;
    }
    let text = format!("the request is not a message of its type: {}", error.message());
    status(Code::InvalidArgument, "MALFORMED_REQUEST", text)
}

/// A limit of this replica; another one may have room.
pub(super) fn limit_reached(text: String) -> Status {
    let mut details = details("LIMIT_REACHED");
    details.set_retry_info(Some(Duration::from_secs(5)));
    with_details(Code::ResourceExhausted, text, details)
}

/// There are as many integrations as the operator allows.
fn integrations_full(max: u64) -> Status {
    let text =
        format!("there are {max} integrations already, as many as the setting TBMQ_INTEGRATIONS_MAX allows");
    let mut details = details("LIMIT_REACHED");
    // Only a deletion makes room.
    details.set_retry_info(Some(Duration::from_mins(1)));
    with_details(Code::ResourceExhausted, text, details)
}

/// A watch whose client takes nothing; `place` is the last number of that name that was handed over.
pub(super) fn slow_watcher(patience: Duration, name: &str, place: Option<u64>) -> Status {
    let (metadata, advice) = match place {
        Some(place) => {
            let metadata = HashMap::from([(format!("resume_{name}"), place.to_string())]);
            (metadata, format!("resume after {name} {place}"))
        }
        None => (HashMap::new(), "watch anew".to_owned()),
    };
    let text = format!("nothing was taken from the stream for {patience:?}; {advice}");
    let details = ErrorDetails::with_error_info("SLOW_WATCHER", DOMAIN, metadata);
    with_details(Code::ResourceExhausted, text, details)
}

pub(super) fn stale() -> Status {
    status(Code::Aborted, "ETAG_MISMATCH", "it has changed since it was read; read it again")
}

pub(super) fn name_taken(name: &str) -> Status {
    let text = format!("Integration with such name already exists! ({name})");
    status(Code::AlreadyExists, "NAME_TAKEN", text)
}

impl From<store::Error> for Status {
    fn from(error: store::Error) -> Self {
        match &error {
            store::Error::Unavailable(_) => unavailable(error),
            store::Error::NameTaken(name) => name_taken(name),
            store::Error::IdTaken(_) => status(Code::AlreadyExists, "ID_TAKEN", error.to_string()),
            store::Error::NotFound(id) => not_found(&format!("integrations/{id}")),
            store::Error::Stale { .. } => stale(),
            store::Error::Disabled => {
                status(Code::FailedPrecondition, "INTEGRATION_DISABLED", "Integration is disabled")
            }
            store::Error::Compacted { .. } => {
                let text = format!("{error}; list again: watch without after_revision");
                status(Code::OutOfRange, "REVISION_COMPACTED", text)
            }
            store::Error::LimitReached { max } => integrations_full(*max),
            store::Error::Expired { .. } => {
                let text = format!("{error}; watch without after_sequence, and list what is kept");
                status(Code::OutOfRange, "REVISION_COMPACTED", text)
            }
            store::Error::Absent { what, name } => absent(&format!("tbmq.control.v1.{what}"), name),
            store::Error::KeyTaken(_) => status(Code::AlreadyExists, "CREDENTIALS_TAKEN", error.to_string()),
            store::Error::UuidTaken(_) => status(Code::AlreadyExists, "ID_TAKEN", error.to_string()),
            store::Error::AlreadyBlocked(_) => {
                status(Code::AlreadyExists, "ALREADY_BLOCKED", error.to_string())
            }
            store::Error::Full { .. } => {
                let mut details = details("LIMIT_REACHED");
                details.set_retry_info(Some(Duration::from_mins(1)));
                with_details(Code::ResourceExhausted, error.to_string(), details)
            }
            store::Error::RequestReused(_) => invalid_field("request_id", error.to_string()),
            store::Error::Unreadable(..) => {
                status(Code::FailedPrecondition, "SECRETS_UNREADABLE", error.to_string())
            }
            store::Error::NotSealed(_) => unavailable(error),
            // Answered where it arises.
            store::Error::Replayed(_) => status(Code::Aborted, "REPLAYED", error.to_string()),
            store::Error::Corrupt(_) | store::Error::Refused(_) => {
                tracing::error!(%error, "the store failed");
                status(Code::Internal, "INTERNAL", "the store failed; see the control plane's log")
            }
        }
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let text = failure.to_string();
        match failure {
            Failure::NotHeld { .. } => status(Code::FailedPrecondition, NOT_HELD, text),
            Failure::Unsupported { .. } => status(Code::FailedPrecondition, "NODE_UNSUPPORTED", text),
            Failure::Refused { .. } => status(Code::FailedPrecondition, "NODE_REFUSED", text),
            Failure::Busy { .. } => overloaded(text),
            Failure::Lost { .. } => node_unreachable(text),
            Failure::Late { .. } => status(Code::DeadlineExceeded, "NODE_TIMEOUT", text),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    /// Reasons as they stand in the code: after one of these, perhaps on the next line.
    const BEFORE: [&str; 5] =
        ["details(", "with_error_info(", "invalid_because(", "NOT_HELD: &str =", "status("];

    fn reasons(code: &str, into: &mut BTreeSet<String>) {
        for before in BEFORE {
            for (at, _) in code.match_indices(before) {
                let rest = code[at + before.len()..].trim_start();
                // `status` takes the code first.
                let rest = match rest.strip_prefix("Code::") {
                    Some(rest) => rest.split_once(',').map_or("", |(_, rest)| rest).trim_start(),
                    None => rest,
                };
                let Some((reason, _)) = rest.strip_prefix('"').and_then(|rest| rest.split_once('"')) else {
                    continue;
                };
                if reason.chars().all(|c| c.is_ascii_uppercase() || c == '_') {
                    into.insert(reason.to_owned());
                }
            }
        }
    }

    fn read(folder: &Path, into: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read(&path, into);
            } else {
                reasons(&fs::read_to_string(&path).unwrap(), into);
            }
        }
    }

    #[test]
    fn each_reason_is_explained_and_none_that_is_not_given() {
        let (mut given, root) = (BTreeSet::new(), Path::new(env!("CARGO_MANIFEST_DIR")));
        read(&root.join("src"), &mut given);
        let page = fs::read_to_string(root.join("ERRORS.md")).unwrap();
        let explained: BTreeSet<String> = page
            .lines()
            .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
            .collect();
        assert_eq!(explained, given);
    }
}
