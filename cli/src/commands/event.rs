//! `tbmqctl event`.

mod clear;
mod filter;
mod watch;

use std::num::NonZeroUsize;

use clap::{Args, Subcommand};
use prost_types::Timestamp;
use tbmq_proto::control::ListEventsRequest;

use crate::{
    client::{Target, pages},
    failure::Failure,
    render::{Output, json, table},
    time,
};

use filter::Filter;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List events, the newest first
    #[command(after_help = "Examples:\n  tbmqctl event list --integration demo --type error --since 15m\n  \
                            tbmqctl event list --lifecycle STARTED --success false")]
    List(ListArguments),
    /// Show events as they are stored
    #[command(
        after_help = "With -o json each event is one line; its `sequence` says where --after-sequence may go on."
    )]
    Watch(watch::Arguments),
    /// Remove events of an integration for good
    #[command(after_help = "Examples:\n  tbmqctl event clear demo --type statistics --until 7d --yes\n  \
                            tbmqctl event clear --all-integrations --until 30d --yes")]
    Clear(clear::Arguments),
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Only those of this integration, by name or uid; a deleted one by uid
    #[arg(long, value_name = "INTEGRATION")]
    integration: Option<String>,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    period: Period,
    /// At most so many
    #[arg(long, value_name = "N", default_value = "50")]
    limit: NonZeroUsize,
}

/// When something happened.
#[derive(Clone, Debug, Args)]
pub(crate) struct Period {
    /// Only those since then: a time such as 2025-03-21T11:00:00Z, or so long ago, such as 15m
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) since: Option<Timestamp>,
    /// Only those before then, given as for --since
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) until: Option<Timestamp>,
}

pub(crate) async fn run(command: Command, target: &Target, output: Output) -> Result<(), Failure> {
    match command {
        Command::List(arguments) => list(arguments, target, output).await,
        Command::Watch(arguments) => watch::run(arguments, target, output).await,
        Command::Clear(arguments) => clear::run(arguments, target, output).await,
    }
}

async fn list(arguments: ListArguments, target: &Target, output: Output) -> Result<(), Failure> {
    let integration = match &arguments.integration {
        Some(given) => target.name_of(&mut target.integrations().await?, given).await?,
        None => String::new(),
    };
    let filter = arguments.filter.message()?;
    let mut client = target.events().await?;
    let events = pages(arguments.limit.get(), async |page_size, page_token| {
        let request = ListEventsRequest {
            integration: integration.clone(),
            r#type: arguments.filter.event_type().into(),
            start_time: arguments.period.since,
            end_time: arguments.period.until,
            page_size,
            page_token,
            filter: filter.clone(),
        };
        let page = client.list_events(target.request(request)).await?.into_inner();
        Ok((page.events, page.next_page_token))
    })
    .await?
    .items;
    output.print_named(
        || table::events(&events, output.look),
        || events.iter().map(|event| event.uid.clone()).collect(),
        || events.iter().map(json::Event::from).collect::<Vec<_>>(),
    )
}
