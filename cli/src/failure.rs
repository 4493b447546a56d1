//! What went wrong, as the user sees it, and the exit code that goes with it.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    process::ExitCode,
};

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitKind {
    /// Everything was done.
    Done = 0,
    /// The server refused, or a check was negative.
    Refused = 1,
    /// The arguments or a file are wrong.
    Usage = 2,
    /// The server can't be reached or does not answer.
    Unreachable = 3,
    /// What was compared differs.
    Drift = 4,
    /// A bug of ours.
    Bug = 70,
}

impl From<ExitKind> for ExitCode {
    fn from(kind: ExitKind) -> Self {
        Self::from(kind as u8)
    }
}

/// Why a command did not do its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: ExitKind,
    pub(crate) message: String,
    /// Field path and problem.
    pub(crate) violations: Vec<(String, String)>,
    /// `ErrorInfo.reason`.
    pub(crate) reason: Option<String>,
    pub(crate) hint: Option<String>,
}

impl Failure {
    fn new(kind: ExitKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), violations: Vec::new(), reason: None, hint: None }
    }

    /// The user's arguments or files are wrong.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(ExitKind::Usage, message)
    }

    /// The server said no.
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self::new(ExitKind::Refused, message)
    }

    /// The server can't be reached.
    pub(crate) fn unreachable(message: impl Into<String>) -> Self {
        Self::new(ExitKind::Unreachable, message)
    }

    /// What was compared differs; that is an answer and no error.
    pub(crate) fn drift(message: impl Into<String>) -> Self {
        Self::new(ExitKind::Drift, message)
    }

    /// Something that can't be.
    pub(crate) fn bug(message: impl Into<String>) -> Self {
        Self::new(ExitKind::Bug, message).hint("please report this with the command that you ran")
    }

    /// With a line that says what to do.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Prints it to stderr and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        // With stderr closed there is nobody to tell.
        io::stderr().write_all(self.text().as_bytes()).ok();
        self.kind.into()
    }

    /// What is told on stderr.
    pub(crate) fn text(&self) -> String {
        let prefix = if self.kind == ExitKind::Drift { "" } else { "error: " };
        let mut text = format!("{prefix}{}\n", self.message);
        for (path, problem) in &self.violations {
            // A server with one problem says it in its message as well.
            if self.message == format!("{path}: {problem}") {
                continue;
            }
            if path.is_empty() {
                writeln!(text, "  {problem}").expect("writing to a String does not fail");
            } else {
                writeln!(text, "  {path}: {problem}").expect("writing to a String does not fail");
            }
        }
        if let Some(reason) = &self.reason {
            writeln!(text, "reason: {reason}").expect("writing to a String does not fail");
        }
        if let Some(hint) = &self.hint {
            writeln!(text, "hint: {hint}").expect("writing to a String does not fail");
        }
        text
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let reason = details.error_info().map(|info| info.reason.clone());
        // What our server refuses carries a reason; without one the answer comes from the way to it.
        let unreachable = reason.is_none()
            && matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled);
        let message = match (status.message(), status.code()) {
            (text, Code::DeadlineExceeded | Code::Cancelled) if unreachable => {
                format!("the server did not answer in time ({text})")
            }
            ("", code) => code.description().to_owned(),
            (text, _) => text.to_owned(),
        };
        let mut failure =
            Self::new(if unreachable { ExitKind::Unreachable } else { ExitKind::Refused }, message);
        failure.violations = details
            .bad_request()
            .into_iter()
            .flat_map(|bad| &bad.field_violations)
            .map(|violation| (violation.field.clone(), violation.description.clone()))
            .collect();
        let retry = details.retry_info().and_then(|info| info.retry_delay);
        failure.hint = match reason.as_deref() {
            Some("CONFIGURATION_REJECTED") => Some(
                "`tbmqctl integration kinds -o json` prints what each type's clientConfiguration may hold"
                    .into(),
            ),
            Some("VALIDATION_TIMEOUT") => {
                Some("`tbmqctl node list` shows which executors are live and what they serve".into())
            }
            Some("NAME_TAKEN") => Some(
                "choose another name, or change the existing one with `tbmqctl integration update`".into(),
            ),
            Some("ETAG_MISMATCH") => {
                Some("it was changed meanwhile: get it again and repeat the change".into())
            }
            Some("TYPE_IMMUTABLE") => Some("create a new integration of the other type".into()),
            Some("NOT_FOUND") => Some("`tbmqctl integration list` shows what exists".into()),
            Some("INTEGRATION_DISABLED") => Some("`tbmqctl integration enable` starts it".into()),
            Some("LIMIT_REACHED") => None,
            Some("OVERLOADED" | "DEPENDENCY_UNAVAILABLE") => Some(match retry {
                Some(delay) => format!("nothing was changed; try again in {delay:?}"),
                None => "nothing was changed; try again later".to_owned(),
            }),
            _ if unreachable => Some(UNREACHABLE_HINT.to_owned()),
            _ if status.code() == Code::Unimplemented => {
                Some("the server does not know this call: are its version and tbmqctl's the same?".into())
            }
            _ => None,
        };
        failure.reason = reason;
        failure
    }
}

/// What to do when no control plane answers.
pub(crate) const UNREACHABLE_HINT: &str = "is a control plane running there? `tbmq` starts one at http://127.0.0.1:9090; --server or TBMQCTL_SERVER names another";

impl From<io::Error> for Failure {
    /// Of writing to stdout.
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            // The reader has seen enough, as with `| head`.
            std::process::exit(ExitKind::Done as i32);
        }
        Self::new(ExitKind::Usage, format!("can't write to stdout: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, FieldViolation};

    use super::*;

    fn status(code: Code, text: &str, reason: &str, violations: &[(&str, &str)]) -> Status {
        let mut details = ErrorDetails::new();
        details.set_error_info(reason, "tbmq", std::collections::HashMap::new());
        if !violations.is_empty() {
            let all: Vec<_> =
                violations.iter().map(|(path, text)| FieldViolation::new(*path, *text)).collect();
            details.set_bad_request(all);
        }
        Status::with_error_details(code, text, details)
    }

    #[test]
    fn a_refusal_shows_message_every_field_reason_and_hint() {
        let violations =
            [("configuration.topicFilters[0]", "'#' is only allowed at the end"), ("displayName", "empty")];
        let failure =
            Failure::from(status(Code::FailedPrecondition, "no", "CONFIGURATION_REJECTED", &violations));
        assert_eq!(failure.kind, ExitKind::Refused);
        let expected = "error: no\n  configuration.topicFilters[0]: '#' is only allowed at the end\n  displayName: \
                        empty\nreason: CONFIGURATION_REJECTED\nhint: `tbmqctl integration kinds -o json` prints what \
                        each type's clientConfiguration may hold\n";
        assert_eq!(failure.text(), expected);
    }

    #[test]
    fn the_only_problem_is_not_told_twice() {
        let failure = Failure::from(status(
            Code::InvalidArgument,
            "a: is empty",
            "INVALID_INTEGRATION",
            &[("a", "is empty")],
        ));
        assert_eq!(failure.text(), "error: a: is empty\nreason: INVALID_INTEGRATION\n");
    }

    #[test]
    fn a_deadline_of_the_server_is_a_refusal_and_one_of_the_way_is_not() {
        let by_server =
            Failure::from(status(Code::DeadlineExceeded, "no executor", "VALIDATION_TIMEOUT", &[]));
        assert_eq!((by_server.kind, by_server.message.as_str()), (ExitKind::Refused, "no executor"));
        let on_the_way = Failure::from(Status::cancelled("Timeout expired"));
        assert_eq!(on_the_way.kind, ExitKind::Unreachable);
        assert_eq!(Failure::from(Status::unavailable("connection refused")).kind, ExitKind::Unreachable);
    }

    #[test]
    fn a_dependency_that_is_away_is_told_with_the_time_to_wait() {
        let mut details = ErrorDetails::new();
        details.set_error_info("DEPENDENCY_UNAVAILABLE", "tbmq", std::collections::HashMap::new());
        details.set_retry_info(Some(std::time::Duration::from_secs(5)));
        let failure = Failure::from(Status::with_error_details(Code::Unavailable, "Kafka is away", details));
        assert_eq!(failure.kind, ExitKind::Refused);
        assert_eq!(failure.hint.as_deref(), Some("nothing was changed; try again in 5s"));
    }

    #[test]
    fn exit_codes_are_those_of_the_documentation() {
        use ExitKind::{Bug, Done, Drift, Refused, Unreachable, Usage};
        assert_eq!(
            [Done, Refused, Usage, Unreachable, Drift, Bug].map(|kind| kind as u8),
            [0, 1, 2, 3, 4, 70]
        );
    }
}
