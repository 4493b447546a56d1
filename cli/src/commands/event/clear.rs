//! `tbmqctl event clear`.

use clap::Args;
use serde_json::json;
use tbmq_proto::control::ClearEventsRequest;

use super::{Period, filter::Filter};
use crate::{client::Target, confirm::confirm, failure::Failure, progress, render::Output};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Name or uid; a deleted one by uid
    #[arg(required_unless_present = "all_integrations")]
    integration: Option<String>,
    /// Those of all integrations, deleted ones included
    #[arg(long, conflicts_with = "integration")]
    all_integrations: bool,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    period: Period,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

pub(super) async fn run(arguments: Arguments, target: &Target, output: Output) -> Result<(), Failure> {
    output.without_names()?;
    let filter = arguments.filter.message()?;
    let given = arguments.integration.as_deref().unwrap_or("all integrations");
    let is_all = filter.is_none()
        && arguments.filter.event_type() == tbmq_proto::control::EventType::Unspecified
        && arguments.period.since.is_none()
        && arguments.period.until.is_none();
    let what = if is_all { "all events" } else { "these events" };
    confirm(&format!("Remove {what} of {given} for good?"), arguments.yes)?;
    let request = ClearEventsRequest {
        integration: match &arguments.integration {
            Some(given) => target.name_of(&mut target.integrations().await?, given).await?,
            None => "integrations/-".to_owned(),
        },
        r#type: arguments.filter.event_type().into(),
        start_time: arguments.period.since,
        end_time: arguments.period.until,
        filter,
    };
    let mut client = target.events().await?;
    let call = client.clear_events(target.request(request));
    let removed = progress::during("events are removed", call).await?.into_inner().removed_count;
    output.print(|| format!("removed {removed} events of {given}"), || json!({ "removedCount": removed }))
}
