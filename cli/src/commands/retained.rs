//! `tbmqctl retained`.

use std::num::NonZeroUsize;

use clap::{Args, Subcommand};
use serde_json::json;
use tbmq_proto::control::{
    ClearRetainedMessagesRequest, DeleteRetainedMessageRequest, GetRetainedMessageRequest,
    ListRetainedMessagesRequest, RetainedMessageFilter,
};

use crate::{
    client::{Target, pages},
    commands::event::Period,
    confirm::confirm,
    failure::Failure,
    render::{Output, json as view, note, table},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List retained messages, by topic
    #[command(after_help = "Examples:\n  tbmqctl retained list 'sensors/+/state' --payload offline\n  \
                            tbmqctl retained list '$SYS/#'")]
    List(ListArguments),
    /// Show one of them
    Get(Topic),
    /// Delete retained messages of topics
    Delete(Topics),
    /// Delete all retained messages that the options mean
    #[command(after_help = "Example:\n  tbmqctl retained clear 'tests/#' --dry-run")]
    Clear(ClearArguments),
}

/// Which messages are meant.
#[derive(Clone, Debug, Args)]
struct Selection {
    /// Topic filter, with the wildcards of MQTT
    #[arg(value_name = "TOPIC_FILTER", default_value = "#")]
    topic_filter: String,
    /// Only those whose topic contains this text, in upper or lower case
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// Only those whose payload contains this text
    #[arg(long, value_name = "TEXT")]
    payload: Option<String>,
    /// Only those of this quality of service
    #[arg(long, value_name = "QOS")]
    qos: Vec<u32>,
    /// When they were published
    #[command(flatten)]
    period: Period,
}

impl Selection {
    fn filter(&self) -> RetainedMessageFilter {
        RetainedMessageFilter {
            topic_filter: self.topic_filter.clone(),
            text_search: self.search.clone().unwrap_or_default(),
            payload: self.payload.clone().unwrap_or_default(),
            qos: self.qos.clone(),
            start_time: self.period.since,
            end_time: self.period.until,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    #[command(flatten)]
    selection: Selection,
    /// At most so many
    #[arg(long, value_name = "N", default_value = "100")]
    limit: NonZeroUsize,
}

#[derive(Debug, Args)]
pub(crate) struct Topic {
    /// Topic
    topic: String,
}

#[derive(Debug, Args)]
pub(crate) struct Topics {
    /// Topics
    #[arg(required = true, value_name = "TOPIC")]
    topics: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ClearArguments {
    #[command(flatten)]
    selection: Selection,
    /// Only count them
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

pub(crate) async fn run(command: Command, target: &Target, output: Output) -> Result<(), Failure> {
    let mut client = target.retained().await?;
    match command {
        Command::List(arguments) => list(arguments, target, output).await,
        Command::Get(Topic { topic }) => {
            let request = target.request(GetRetainedMessageRequest { topic });
            let found = client.get_retained_message(request).await?.into_inner();
            output.print_named(
                || table::retained_one(&found),
                || vec![found.topic.clone()],
                || view::Retained::from(&found),
            )
        }
        Command::Delete(Topics { topics }) => {
            for topic in topics {
                let request = DeleteRetainedMessageRequest { topic: topic.clone() };
                client.delete_retained_message(target.request(request)).await?;
                note(&format!("deleted the retained message of {topic}"));
            }
            Ok(())
        }
        Command::Clear(ClearArguments { selection, dry_run, yes }) => {
            output.without_names()?;
            let request = |validate_only| {
                let filter = Some(selection.filter());
                target.request(ClearRetainedMessagesRequest { filter, validate_only })
            };
            let found = client.clear_retained_messages(request(true)).await?.into_inner();
            if dry_run || found.count == 0 {
                let count = found.count;
                return output.print(
                    || format!("{count} retained messages would be deleted"),
                    || json!({ "count": count, "more": found.more }),
                );
            }
            confirm(&format!("Delete {} retained messages?", found.count), yes)?;
            let done = client.clear_retained_messages(request(false)).await?.into_inner();
            output.print(
                || format!("deleted {} retained messages", done.count),
                || json!({ "count": done.count, "more": done.more }),
            )?;
            if done.more {
                note("there may be more: the time was over; run it again");
            }
            Ok(())
        }
    }
}

async fn list(arguments: ListArguments, target: &Target, output: Output) -> Result<(), Failure> {
    let mut client = target.retained().await?;
    let listed = pages(arguments.limit.get(), async |page_size, page_token| {
        let request = ListRetainedMessagesRequest {
            page_size,
            page_token,
            filter: Some(arguments.selection.filter()),
            payload_bytes: None,
        };
        let page = client.list_retained_messages(target.request(request)).await?.into_inner();
        Ok((page.retained_messages, page.next_page_token))
    })
    .await?;
    let all = &listed.items;
    output.print_named(
        || table::retained(all, output.look),
        || all.iter().map(|one| one.topic.clone()).collect(),
        || all.iter().map(view::Retained::from).collect::<Vec<_>>(),
    )?;
    listed.note_more();
    Ok(())
}
