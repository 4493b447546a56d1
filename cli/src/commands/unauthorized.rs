//! `tbmqctl unauthorized`.

use std::num::NonZeroUsize;

use clap::{Args, Subcommand};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use tbmq_proto::control::{
    ClearUnauthorizedClientsRequest, DeleteUnauthorizedClientRequest, GetUnauthorizedClientRequest,
    ListUnauthorizedClientsRequest,
};

use super::session::{Client, Clients};
use crate::{
    client::{Target, pages},
    confirm::confirm,
    failure::Failure,
    render::{Output, json as view, note, table},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List clients that were refused and have not been let in since, the latest first
    #[command(after_help = "Examples:\n  tbmqctl unauthorized list --address 10.3.\n  \
                            tbmqctl unauthorized list --reason password -o wide")]
    List(ListArguments),
    /// Show why a client was refused last
    Get(Client),
    /// Forget clients
    Delete(Clients),
    /// Forget all of them
    Clear(ClearArguments),
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Only those whose client id contains this text, in upper or lower case
    #[arg(long, value_name = "TEXT")]
    client_id: Option<String>,
    /// Only those whose address contains this text
    #[arg(long, value_name = "TEXT")]
    address: Option<String>,
    /// Only those whose user name contains this text
    #[arg(long, value_name = "TEXT")]
    username: Option<String>,
    /// Only those whose reason contains this text
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value = "100")]
    limit: NonZeroUsize,
}

#[derive(Debug, Args)]
pub(crate) struct ClearArguments {
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// The resource name of a client's refusals.
fn name_of(client_id: &str) -> String {
    format!("unauthorizedClients/{}", utf8_percent_encode(client_id, NON_ALPHANUMERIC))
}

pub(crate) async fn run(command: Command, target: &Target, output: Output) -> Result<(), Failure> {
    let mut client = target.unauthorized().await?;
    match command {
        Command::List(arguments) => list(arguments, target, output).await,
        Command::Get(Client { client_id }) => {
            let request = GetUnauthorizedClientRequest { name: name_of(&client_id) };
            let found = client.get_unauthorized_client(target.request(request)).await?.into_inner();
            output.print_named(
                || table::unauthorized_one(&found),
                || vec![found.client_id.clone()],
                || view::Unauthorized::from(&found),
            )
        }
        Command::Delete(Clients { client_ids }) => {
            for client_id in client_ids {
                let request = DeleteUnauthorizedClientRequest { name: name_of(&client_id) };
                client.delete_unauthorized_client(target.request(request)).await?;
                note(&format!("forgot {client_id}"));
            }
            Ok(())
        }
        Command::Clear(ClearArguments { yes }) => {
            output.without_names()?;
            confirm("Forget all clients that were refused?", yes)?;
            let request = target.request(ClearUnauthorizedClientsRequest {});
            let removed = client.clear_unauthorized_clients(request).await?.into_inner().removed;
            output.print(|| format!("forgot {removed} clients"), || json!({ "removed": removed }))
        }
    }
}

async fn list(arguments: ListArguments, target: &Target, output: Output) -> Result<(), Failure> {
    let mut client = target.unauthorized().await?;
    let text = |given: &Option<String>| given.clone().unwrap_or_default();
    let listed = pages(arguments.limit.get(), async |page_size, page_token| {
        let request = ListUnauthorizedClientsRequest {
            page_size,
            page_token,
            client_id: text(&arguments.client_id),
            address: text(&arguments.address),
            user_name: text(&arguments.username),
            reason: text(&arguments.reason),
        };
        let page = client.list_unauthorized_clients(target.request(request)).await?.into_inner();
        Ok((page.unauthorized_clients, page.next_page_token))
    })
    .await?;
    let all = &listed.items;
    output.print_named(
        || table::unauthorized(all, output.look),
        || all.iter().map(|one| one.client_id.clone()).collect(),
        || all.iter().map(view::Unauthorized::from).collect::<Vec<_>>(),
    )?;
    listed.note_more();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_id_of_any_characters_is_one_part_of_a_name() {
        assert_eq!(name_of("a/b c+ü"), "unauthorizedClients/a%2Fb%20c%2B%C3%BC");
    }
}
