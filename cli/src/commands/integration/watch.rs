//! `tbmqctl watch` and `tbmqctl integration watch`.

use std::{collections::HashMap, ops::ControlFlow};

use clap::Args;
use tbmq_proto::control::{
    WatchIntegrationsRequest, WatchIntegrationsResponse, watch_integrations_response::Type,
};
use tonic::Streaming;

use crate::{
    client::Target,
    failure::Failure,
    following::{End, Follower, follow},
    render::{Output, json as view, note, table},
};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Name or uid; all integrations when absent
    integration: Option<String>,
    /// Show what has changed after this revision instead of all that exists
    #[arg(long, value_name = "N")]
    after_revision: Option<u64>,
}

pub(crate) async fn run(arguments: Arguments, target: &Target, output: Output) -> Result<(), Failure> {
    let name = match &arguments.integration {
        Some(given) => target.name_of(&mut target.integrations().await?, given).await?,
        None => String::new(),
    };
    let mut watch =
        Watch { target, name, output, after: arguments.after_revision, titled: false, names: HashMap::new() };
    tokio::select! {
        ended = follow(&mut watch, target.timeout) => ended,
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

struct Watch<'a> {
    target: &'a Target,
    /// Empty: all.
    name: String,
    output: Output,
    /// Where to resume; `None`: with a list of what exists.
    after: Option<u64>,
    /// Whether the columns have their names.
    titled: bool,
    /// Display names by uid, for what is deleted.
    names: HashMap<String, String>,
}

impl Follower for Watch<'_> {
    type Message = WatchIntegrationsResponse;

    async fn begin(&mut self) -> Result<Streaming<WatchIntegrationsResponse>, End> {
        let request = WatchIntegrationsRequest { after_revision: self.after, name: self.name.clone() };
        let mut client = self.target.integrations().await?;
        Ok(client.watch_integrations(self.target.endless_request(request)).await?.into_inner())
    }

    fn take(&mut self, message: WatchIntegrationsResponse) -> Result<ControlFlow<()>, Failure> {
        self.show(&message)?;
        // A list that is not complete can't be resumed.
        if message.revision > 0 {
            self.after = Some(message.revision);
        }
        Ok(ControlFlow::Continue(()))
    }

    fn forget(&mut self) {
        note("the changes since then are not kept any more; listing what exists");
        self.after = None;
        self.names.clear();
    }
}

impl Watch<'_> {
    fn show(&mut self, message: &WatchIntegrationsResponse) -> Result<(), Failure> {
        if !std::mem::replace(&mut self.titled, true) {
            self.output.print_item(table::change_header, || None, || None::<()>)?;
        }
        let mut shown = message.clone();
        if let Some(one) = &mut shown.integration {
            if message.r#type() == Type::Deleted {
                one.display_name = self.names.remove(&one.uid).unwrap_or_default();
            } else {
                self.names.insert(one.uid.clone(), one.display_name.clone());
            }
        }
        let look = self.output.look;
        self.output.print_item(
            || table::change(&shown, look),
            || shown.integration.as_ref().map(|one| one.name.clone()),
            || Some(view::Change::from(message)),
        )
    }
}
