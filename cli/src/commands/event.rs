//! `tbmqctl event`.

use std::{
    num::NonZeroUsize,
    time::{Duration, SystemTime},
};

use clap::{Args, Subcommand, ValueEnum};
use prost_types::Timestamp;
use tbmq_proto::control::{EventType, ListEventsRequest};

use crate::{
    client::Target,
    duration,
    failure::Failure,
    render::{Output, json, table},
};

/// Events asked for in one call.
const PAGE_SIZE: usize = 500;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List events, the newest first
    List(ListArguments),
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Only those of this integration, by name or uid; a deleted one by uid
    #[arg(long, value_name = "INTEGRATION")]
    integration: Option<String>,
    /// Only those of this type
    #[arg(long, value_enum)]
    r#type: Option<Type>,
    /// Only those since then: a time such as 2025-03-21T11:00:00Z, or so long ago, such as 15m
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,
    /// Only those before then, given as for --since
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
    /// At most so many
    #[arg(long, value_name = "N", default_value = "50")]
    limit: NonZeroUsize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Type {
    /// Created, updated, started, stopped, failed, ...
    Lifecycle,
    /// Messages processed in a period
    Statistics,
    /// What went wrong with messages
    Error,
}

impl From<Type> for EventType {
    fn from(from: Type) -> Self {
        match from {
            Type::Lifecycle => Self::Lifecycle,
            Type::Statistics => Self::Statistics,
            Type::Error => Self::Error,
        }
    }
}

pub(crate) async fn run(command: Command, target: &Target, output: Output) -> Result<(), Failure> {
    let Command::List(arguments) = command;
    let integration = match &arguments.integration {
        Some(given) => target.name_of(&mut target.integrations().await?, given).await?,
        None => String::new(),
    };
    let mut client = target.events().await?;
    let limit = arguments.limit.get();
    let mut events = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListEventsRequest {
            integration: integration.clone(),
            r#type: arguments.r#type.map_or(EventType::Unspecified, EventType::from).into(),
            start_time: arguments.since,
            end_time: arguments.until,
            page_size: PAGE_SIZE.min(limit - events.len()) as i32,
            page_token,
            filter: None,
        };
        let page = client.list_events(target.request(request)).await?.into_inner();
        events.extend(page.events);
        page_token = page.next_page_token;
        if page_token.is_empty() || events.len() >= limit {
            break;
        }
    }
    events.truncate(limit);
    output.print(|| table::events(&events), || events.iter().map(json::Event::from).collect::<Vec<_>>())
}

/// Reads a time in RFC 3339 or a duration before now.
fn time(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let ago: Duration = duration(text).map_err(|_| {
        format!("{text:?} is neither a time such as 2025-03-21T11:00:00Z nor a duration such as 15m")
    })?;
    SystemTime::now().checked_sub(ago).map(Timestamp::from).ok_or_else(|| format!("{text:?} is too long ago"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_absolute_or_ago() {
        assert_eq!(time("2025-03-21T11:02:49Z").unwrap().seconds, 1_742_554_969);
        let hour_ago = time("1h").unwrap().seconds;
        let now = Timestamp::from(SystemTime::now()).seconds;
        assert!((3590..=3610).contains(&(now - hour_ago)));
        assert!(time("yesterday").is_err());
    }
}
