//! Which events are meant (spec §7.4).

use clap::{Args, ValueEnum};
use tbmq_proto::control::{EventFilter, EventType};

use crate::failure::Failure;

/// Everything that is given must hold.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Filter {
    /// Only those of this type
    #[arg(long, value_enum)]
    r#type: Option<Type>,
    /// Only those of a process whose service id contains this, in upper or lower case
    #[arg(long, value_name = "TEXT")]
    service: Option<String>,
    /// Only lifecycle and error events whose error contains this, in upper or lower case
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
    /// Only lifecycle events of this word, such as STARTED
    #[arg(long, value_name = "WORD")]
    lifecycle: Option<String>,
    /// Only lifecycle events that tell of a success, or only those that do not
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    success: Option<bool>,
    /// Only error events whose method contains this, in upper or lower case
    #[arg(long, value_name = "TEXT")]
    method: Option<String>,
    /// Only statistics of at least so many processed messages
    #[arg(long, value_name = "N")]
    min_processed: Option<u64>,
    /// Only statistics of fewer processed messages
    #[arg(long, value_name = "N")]
    max_processed: Option<u64>,
    /// Only statistics of at least so many errors
    #[arg(long, value_name = "N")]
    min_errors: Option<u64>,
    /// Only statistics of fewer errors
    #[arg(long, value_name = "N")]
    max_errors: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Type {
    /// Created, updated, started, stopped, failed, ...
    Lifecycle,
    /// Messages processed in a period
    Statistics,
    /// What went wrong with messages
    Error,
}

impl Filter {
    pub(super) fn event_type(&self) -> EventType {
        match self.r#type {
            None => EventType::Unspecified,
            Some(Type::Lifecycle) => EventType::Lifecycle,
            Some(Type::Statistics) => EventType::Statistics,
            Some(Type::Error) => EventType::Error,
        }
    }

    /// What is asked of the server; `None` when only the type is, or nothing.
    ///
    /// # Errors
    /// When no event can be so.
    pub(super) fn message(&self) -> Result<Option<EventFilter>, Failure> {
        for (flag, min, max) in [
            ("processed", self.min_processed, self.max_processed),
            ("errors", self.min_errors, self.max_errors),
        ] {
            if let (Some(min), Some(max)) = (min, max)
                && min >= max
            {
                return Err(Failure::usage(format!(
                    "no event has at least {min} and fewer than {max}: --min-{flag}, --max-{flag}"
                )));
            }
        }
        let filter = EventFilter {
            service_id: self.service.clone().unwrap_or_default(),
            error: self.error.clone().unwrap_or_default(),
            lifecycle: self.lifecycle.as_ref().map(|word| word.to_ascii_uppercase()).unwrap_or_default(),
            success: self.success,
            method: self.method.clone().unwrap_or_default(),
            min_messages_processed: self.min_processed,
            max_messages_processed: self.max_processed,
            min_errors_occurred: self.min_errors,
            max_errors_occurred: self.max_errors,
        };
        Ok((filter != EventFilter::default()).then_some(filter))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Arguments {
        #[command(flatten)]
        filter: Filter,
    }

    fn filter(flags: &str) -> Filter {
        Arguments::try_parse_from(format!("x {flags}").split_whitespace()).unwrap().filter
    }

    #[test]
    fn flags_become_the_filter_that_is_asked() {
        let asked =
            filter("--type lifecycle --service ie --lifecycle started --success=false --max-errors 9");
        assert_eq!(asked.event_type(), EventType::Lifecycle);
        let expected = EventFilter {
            service_id: "ie".to_owned(),
            lifecycle: "STARTED".to_owned(),
            success: Some(false),
            max_errors_occurred: Some(9),
            ..EventFilter::default()
        };
        assert_eq!(asked.message().unwrap(), Some(expected));
        assert_eq!(filter("--success").message().unwrap().unwrap().success, Some(true));
        assert_eq!(filter("").message().unwrap(), None);
    }

    #[test]
    fn a_range_that_holds_nothing_is_wrong_usage() {
        let failure = filter("--min-processed 5 --max-processed 5").message().unwrap_err();
        assert!(failure.message.ends_with("--min-processed, --max-processed"), "{}", failure.message);
    }
}
