//! `tbmqctl session`.

use std::{collections::BTreeSet, num::NonZeroUsize};

use clap::{Args, Subcommand};
use tbmq_proto::control::{
    DisconnectSessionRequest, GetSessionRequest, ListSessionsRequest, ListSubscriptionsRequest,
};

use crate::{
    client::{Target, pages},
    failure::Failure,
    render::{Output, json, note, table},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List connected clients, by client id
    List(ListArguments),
    /// Show one connected client
    Get(Client),
    /// Show what a connected client has subscribed to
    Subscriptions(Client),
    /// End connections of clients; they may come back
    Disconnect(Clients),
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Only those whose client id contains this text, in upper or lower case
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// Only those that this data plane holds
    #[arg(long, value_name = "SERVICE_ID")]
    node: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value = "100")]
    limit: NonZeroUsize,
}

#[derive(Debug, Args)]
pub(crate) struct Client {
    /// Client id
    #[arg(value_name = "CLIENT_ID")]
    pub(super) client_id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Clients {
    /// Client ids
    #[arg(required = true, value_name = "CLIENT_ID")]
    pub(super) client_ids: Vec<String>,
}

pub(crate) async fn run(command: Command, target: &Target, output: Output) -> Result<(), Failure> {
    let mut client = target.sessions().await?;
    match command {
        Command::List(arguments) => list(arguments, target, output).await,
        Command::Get(Client { client_id }) => {
            let session =
                client.get_session(target.request(GetSessionRequest { client_id })).await?.into_inner();
            output.print_named(
                || table::session(&session),
                || vec![session.client_id.clone()],
                || json::Session::from(&session),
            )
        }
        Command::Subscriptions(Client { client_id }) => {
            let request = target.request(ListSubscriptionsRequest { client_id });
            let all = client.list_subscriptions(request).await?.into_inner().subscriptions;
            output.print_named(
                || table::subscriptions(&all, output.look),
                || all.iter().map(|one| one.filter.clone()).collect(),
                || all.iter().map(json::Subscription::from).collect::<Vec<_>>(),
            )
        }
        Command::Disconnect(Clients { client_ids }) => {
            for client_id in client_ids {
                let request = DisconnectSessionRequest { client_id: client_id.clone() };
                client.disconnect_session(target.request(request)).await?;
                note(&format!("disconnected {client_id}"));
            }
            Ok(())
        }
    }
}

async fn list(arguments: ListArguments, target: &Target, output: Output) -> Result<(), Failure> {
    let mut client = target.sessions().await?;
    let mut silent = BTreeSet::new();
    let listed = pages(arguments.limit.get(), async |page_size, page_token| {
        let request = ListSessionsRequest {
            page_size,
            page_token,
            text_search: arguments.search.clone().unwrap_or_default(),
            service_id: arguments.node.clone().unwrap_or_default(),
        };
        let page = client.list_sessions(target.request(request)).await?.into_inner();
        silent.extend(page.silent_nodes);
        Ok((page.sessions, page.next_page_token))
    })
    .await?;
    let sessions = &listed.items;
    output.print_named(
        || table::sessions(sessions, output.look),
        || sessions.iter().map(|one| one.client_id.clone()).collect(),
        || sessions.iter().map(json::Session::from).collect::<Vec<_>>(),
    )?;
    listed.note_more();
    for node in silent {
        note(&format!("warning: {node} did not answer in time; its clients are missing"));
    }
    Ok(())
}
