//! What went wrong, as the user sees it, and the exit code that goes with it.

use std::{
    error::Error,
    fmt::Write as _,
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use crossterm::style::Stylize as _;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{client::root_cause, render::colours};

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
    /// What was waited for did not happen in time.
    TimedOut = 5,
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

    /// What was waited for did not happen in time.
    pub(crate) fn timed_out(message: impl Into<String>) -> Self {
        Self::new(ExitKind::TimedOut, message)
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

    /// Whether the same may go well a moment later: the server, or what it needs, is away or busy.
    pub(crate) fn may_pass(&self) -> bool {
        let reason = self.reason.as_deref();
        self.kind == ExitKind::Unreachable || matches!(reason, Some("DEPENDENCY_UNAVAILABLE" | "OVERLOADED"))
    }

    /// Prints it to stderr and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        let text = self.text();
        let text = if colours(&io::stderr()) { coloured(&text) } else { text };
        // With stderr closed there is nobody to tell.
        io::stderr().write_all(text.as_bytes()).ok();
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
        // What our server refuses carries a reason; without one the answer comes from the way to it, and with a cause it
        // was made on this side.
        let cause = status.source().filter(|_| reason.is_none()).map(root_cause);
        let is_late = matches!(status.code(), Code::DeadlineExceeded) || status.message() == TIMEOUT;
        let unreachable = reason.is_none()
            && (cause.is_some() || is_late || matches!(status.code(), Code::Unavailable | Code::Cancelled));
        let message = match (status.message(), status.code()) {
            (text, _) if unreachable && is_late => format!("the server did not answer in time ({text})"),
            (_, _) if let Some(cause) = &cause => format!("the connection broke: {cause}"),
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
            Some(reason) => hint(reason, retry),
            // One that expects TLS, or a certificate, closes without a word.
            None if cause.is_some() && !is_late => Some(BROKEN_HINT.to_owned()),
            None if unreachable => Some(UNREACHABLE_HINT.to_owned()),
            None => hint_of_code(status.code()).map(str::to_owned),
        };
        failure.reason = reason;
        failure
    }
}

/// What to do about a refusal.
fn hint(reason: &str, retry: Option<Duration>) -> Option<String> {
    let hint = match reason {
        "CONFIGURATION_REJECTED" => {
            "`tbmqctl kind schema TYPE` prints what a type's clientConfiguration may hold"
        }
        "VALIDATION_TIMEOUT" => "`tbmqctl node list` shows which executors are live and what they serve",
        "NAME_TAKEN" => "choose another name, or change the existing one with `tbmqctl integration update`",
        "ETAG_MISMATCH" => "it was changed meanwhile: get it again and repeat the change",
        "TYPE_IMMUTABLE" => "create a new one of the other type",
        "NOT_FOUND" => {
            "the command `list` of its kind, such as `tbmqctl integration list`, shows what exists"
        }
        "INTEGRATION_DISABLED" => "`tbmqctl integration enable` starts it",
        "UNAUTHENTICATED" => hint_of_code(Code::Unauthenticated)?,
        "PERMISSION_DENIED" => hint_of_code(Code::PermissionDenied)?,
        "LIMIT_REACHED" => match retry {
            Some(delay) => return Some(format!("try again in {delay:?}, or at another control plane")),
            None => "delete what is not needed, or have the limit raised in the control plane's settings",
        },
        "OVERLOADED" | "DEPENDENCY_UNAVAILABLE" => {
            return Some(match retry {
                Some(delay) => format!("nothing was changed; try again in {delay:?}"),
                None => "nothing was changed; try again later".to_owned(),
            });
        }
        "CREDENTIALS_TAKEN" => {
            "`tbmqctl credentials list --username` (or --client-id, --cn) finds the other one; `update` changes it"
        }
        "ALREADY_BLOCKED" => "`tbmqctl blocked update` changes until when, and why",
        "WRONG_PASSWORD" => "`tbmqctl credentials update --set-password` sets one that nobody knows any more",
        "TOPIC_IN_USE" => "`tbmqctl kafka topics --owner orphan` shows what can be deleted",
        "GROUP_IN_USE" => "`tbmqctl kafka groups GROUP` shows who is in it",
        "NOT_A_DATA_PLANE" => "`tbmqctl node list --role data-plane` shows the data planes",
        reason if reason.starts_with("NODE_") => {
            "`tbmqctl node list -o wide` shows which nodes are live and hold a session"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

fn hint_of_code(code: Code) -> Option<&'static str> {
    match code {
        Code::Unauthenticated => Some(
            "--token-file, TBMQCTL_TOKEN or a context says who calls; `tbmqctl context show` shows what is used",
        ),
        Code::PermissionDenied => {
            Some("`tbmqctl whoami` shows your role; an admin can give another with `tbmqctl token create`")
        }
        Code::Unimplemented => {
            Some("the server does not know this call: are its version and tbmqctl's the same?")
        }
        _ => None,
    }
}

/// With its first word in red.
fn coloured(text: &str) -> String {
    match text.strip_prefix("error:") {
        Some(rest) => format!("{}{rest}", "error:".red().bold()),
        None => text.to_owned(),
    }
}

/// How tonic says that a call's own time is over.
const TIMEOUT: &str = "Timeout expired";

/// What to do when a connection ends in the middle.
const BROKEN_HINT: &str = "was it stopped? else look at the address: with TLS it begins with https://, and a server may ask for a certificate (--cert-file)";

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
                        empty\nreason: CONFIGURATION_REJECTED\nhint: `tbmqctl kind schema TYPE` prints what a type's \
                        clientConfiguration may hold\n";
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
        details.set_retry_info(Some(Duration::from_secs(5)));
        let failure = Failure::from(Status::with_error_details(Code::Unavailable, "Kafka is away", details));
        assert_eq!(failure.kind, ExitKind::Refused);
        assert_eq!(failure.hint.as_deref(), Some("nothing was changed; try again in 5s"));
    }

    #[test]
    fn a_limit_that_passes_and_one_that_stays_have_different_advice() {
        let limit = |retry: Option<Duration>| {
            let mut details = ErrorDetails::new();
            details.set_error_info("LIMIT_REACHED", "tbmq", std::collections::HashMap::new());
            if retry.is_some() {
                details.set_retry_info(retry);
            }
            Failure::from(Status::with_error_details(Code::ResourceExhausted, "full", details)).hint.unwrap()
        };
        assert_eq!(limit(Some(Duration::from_secs(5))), "try again in 5s, or at another control plane");
        assert!(limit(None).starts_with("delete what is not needed"));
    }

    #[test]
    fn who_may_not_call_is_told_how_to_say_who_calls() {
        for (status, advice) in [
            (status(Code::Unauthenticated, "no token", "UNAUTHENTICATED", &[]), "--token-file"),
            (Status::unauthenticated("no token"), "--token-file"),
            (status(Code::PermissionDenied, "viewer", "PERMISSION_DENIED", &[]), "whoami"),
        ] {
            let failure = Failure::from(status);
            assert_eq!(failure.kind, ExitKind::Refused);
            assert!(failure.hint.as_ref().unwrap().contains(advice), "{failure:?}");
        }
    }

    #[test]
    fn colours_are_only_on_the_word_error() {
        let failure = Failure::refused("no");
        assert_eq!(failure.text(), "error: no\n");
        let coloured = coloured(&failure.text());
        assert!(coloured.starts_with("\u{1b}[") && coloured.ends_with(" no\n"), "{coloured:?}");
    }

    #[test]
    fn exit_codes_are_those_of_the_documentation() {
        use ExitKind::{Bug, Done, Drift, Refused, TimedOut, Unreachable, Usage};
        let all = [Done, Refused, Usage, Unreachable, Drift, TimedOut, Bug];
        assert_eq!(all.map(|kind| kind as u8), [0, 1, 2, 3, 4, 5, 70]);
    }
}
