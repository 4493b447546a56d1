//! `tbmqctl event watch`.

use std::ops::ControlFlow;

use clap::Args;
use tbmq_proto::control::{WatchEventsRequest, WatchEventsResponse};
use tonic::Streaming;

use super::filter::Filter;
use crate::{
    client::Target,
    failure::Failure,
    following::{End, Follower, follow},
    render::{Output, json, note, table},
};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only those of this integration, by name or uid
    #[arg(long, value_name = "INTEGRATION")]
    integration: Option<String>,
    #[command(flatten)]
    filter: Filter,
    /// Begin after this place instead of now
    #[arg(long, value_name = "N")]
    after_sequence: Option<u64>,
}

pub(super) async fn run(arguments: Arguments, target: &Target, output: Output) -> Result<(), Failure> {
    let integration = match &arguments.integration {
        Some(given) => target.name_of(&mut target.integrations().await?, given).await?,
        None => String::new(),
    };
    let request = WatchEventsRequest {
        integration,
        r#type: arguments.filter.event_type().into(),
        filter: arguments.filter.message()?,
        after_sequence: arguments.after_sequence,
    };
    let mut watch = Watch { target, request, output, titled: false };
    tokio::select! {
        ended = follow(&mut watch, target.timeout) => ended,
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

struct Watch<'a> {
    target: &'a Target,
    /// With the place where to resume.
    request: WatchEventsRequest,
    output: Output,
    /// Whether the columns have their names.
    titled: bool,
}

impl Follower for Watch<'_> {
    type Message = WatchEventsResponse;

    async fn begin(&mut self) -> Result<Streaming<WatchEventsResponse>, End> {
        let mut client = self.target.events().await?;
        Ok(client.watch_events(self.target.endless_request(self.request.clone())).await?.into_inner())
    }

    fn take(&mut self, message: WatchEventsResponse) -> Result<ControlFlow<()>, Failure> {
        if !std::mem::replace(&mut self.titled, true) {
            self.output.print_item(table::event_header, || None, || None::<()>)?;
        }
        self.output.print_item(
            || message.event.as_ref().map(table::event_line).unwrap_or_default(),
            || message.event.as_ref().map(|event| event.uid.clone()),
            || message.event.as_ref().map(|event| json::SequencedEvent::new(event, message.sequence)),
        )?;
        self.request.after_sequence = Some(message.sequence);
        Ok(ControlFlow::Continue(()))
    }

    fn forget(&mut self) {
        note("some events since then are not kept any more; going on with what comes now");
        self.request.after_sequence = None;
    }
}
