//! `tbmqctl subscription`.

use std::{collections::BTreeSet, num::NonZeroUsize, path::PathBuf};

use clap::{Args, Subcommand};
use tbmq_proto::control::{
    ListSharedSubscriptionsRequest, SearchSubscriptionsRequest, Subscription, SubscriptionFilter,
    UpdateSubscriptionsRequest,
};

use super::session::warn_of;
use crate::{
    client::{Target, pages},
    confirm::confirm,
    failure::Failure,
    render::{Output, json, note, table},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List subscriptions of all clients, by client id
    #[command(after_help = "Examples:\n  tbmqctl subscription list --filter sensors/ --qos 2\n  \
                            tbmqctl subscription list --client pump- --share workers")]
    List(ListArguments),
    /// Give a client subscriptions in place of those that it has; it is sent nothing
    #[command(
        after_help = "A file holds what `tbmqctl session subscriptions CLIENT_ID -o json` prints.\n\nExamples:\n  \
        tbmqctl subscription set pump-7 --filter 'pumps/7/#' --filter '$share/workers/jobs/+' --qos 1\n  \
        tbmqctl session subscriptions pump-7 -o json > s.json; tbmqctl subscription set pump-8 -f s.json"
    )]
    Set(SetArguments),
    /// List shared subscriptions with their members
    Groups(GroupsArguments),
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Only of clients whose id contains this text, in upper or lower case
    #[arg(long, value_name = "TEXT")]
    client: Option<String>,
    /// Only topic filters that contain this text
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Only those with this quality of service
    #[arg(long, value_name = "QOS")]
    qos: Vec<u32>,
    /// Only those of which the client does not get its own messages, or does
    #[arg(long, value_name = "BOOL")]
    no_local: Option<bool>,
    /// Only those with the retain flag as published, or without
    #[arg(long, value_name = "BOOL")]
    retain_as_published: Option<bool>,
    /// Only those with this retain handling
    #[arg(long, value_name = "0|1|2")]
    retain_handling: Vec<u32>,
    /// Only those with this subscription identifier
    #[arg(long, value_name = "N")]
    identifier: Option<u32>,
    /// Only shared ones whose share name contains this text
    #[arg(long, value_name = "TEXT")]
    share: Option<String>,
    /// Only those that this data plane holds
    #[arg(long, value_name = "SERVICE_ID")]
    node: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value = "100")]
    limit: NonZeroUsize,
}

#[derive(Debug, Args)]
pub(crate) struct SetArguments {
    /// Client id
    #[arg(value_name = "CLIENT_ID")]
    client_id: String,
    #[command(flatten)]
    what: What,
    /// Quality of service of all --filter
    #[arg(long, value_name = "QOS", default_value = "0", value_parser = clap::value_parser!(u32).range(0..=2))]
    qos: u32,
    /// Only if the client has this session id
    #[arg(long, value_name = "UUID")]
    session_id: Option<String>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct What {
    /// A topic filter, also as $share/NAME/FILTER; may be given several times
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// A JSON file with subscriptions
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// No subscriptions
    #[arg(long)]
    none: bool,
}

#[derive(Debug, Args)]
pub(crate) struct GroupsArguments {
    /// Only those whose share name contains this text
    #[arg(long, value_name = "TEXT")]
    share: Option<String>,
    /// Only those whose topic filter contains this text
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Only those with a member whose client id contains this text, in upper or lower case
    #[arg(long, value_name = "TEXT")]
    client: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value = "100")]
    limit: NonZeroUsize,
}

pub(crate) async fn run(command: Command, target: &Target, output: Output) -> Result<(), Failure> {
    match command {
        Command::List(arguments) => list(arguments, target, output).await,
        Command::Set(arguments) => set(arguments, target, output).await,
        Command::Groups(arguments) => groups(arguments, target, output).await,
    }
}

async fn list(arguments: ListArguments, target: &Target, output: Output) -> Result<(), Failure> {
    let mut client = target.sessions().await?;
    let mut silent = BTreeSet::new();
    let filter = SubscriptionFilter {
        client_id: arguments.client.unwrap_or_default(),
        filter: arguments.filter.unwrap_or_default(),
        qos: arguments.qos,
        no_local: arguments.no_local,
        retain_as_published: arguments.retain_as_published,
        retain_handling: arguments.retain_handling,
        identifier: arguments.identifier,
        share_name: arguments.share.unwrap_or_default(),
    };
    let service_id = arguments.node.unwrap_or_default();
    let listed = pages(arguments.limit.get(), async |page_size, page_token| {
        let request = SearchSubscriptionsRequest {
            page_size,
            page_token,
            filter: Some(filter.clone()),
            service_id: service_id.clone(),
        };
        let page = client.search_subscriptions(target.request(request)).await?.into_inner();
        silent.extend(page.silent_nodes);
        Ok((page.subscriptions, page.next_page_token))
    })
    .await?;
    let all = &listed.items;
    output.print_named(
        || table::client_subscriptions(all, output.look),
        || all.iter().map(|one| one.client_id.clone()).collect::<BTreeSet<_>>().into_iter().collect(),
        || all.iter().map(json::ClientSubscription::from).collect::<Vec<_>>(),
    )?;
    listed.note_more();
    warn_of(silent);
    Ok(())
}

async fn set(arguments: SetArguments, target: &Target, output: Output) -> Result<(), Failure> {
    let SetArguments { client_id, what, qos, session_id, yes } = arguments;
    let subscriptions = match what {
        What { file: Some(file), .. } => read(&file)?,
        What { filter, .. } => filter.iter().map(|filter| subscription(filter, qos)).collect(),
    };
    let count = subscriptions.len();
    confirm(&format!("Replace all subscriptions of {client_id} by these {count}?"), yes)?;
    let mut client = target.sessions().await?;
    let session_id = session_id.unwrap_or_default();
    let request = UpdateSubscriptionsRequest { client_id, subscriptions, session_id };
    let all = client.update_subscriptions(target.request(request)).await?.into_inner().subscriptions;
    output.print_named(
        || table::subscriptions(&all, output.look),
        || all.iter().map(|one| one.filter.clone()).collect(),
        || all.iter().map(json::Subscription::from).collect::<Vec<_>>(),
    )
}

fn read(file: &PathBuf) -> Result<Vec<Subscription>, Failure> {
    let problem = |error: &dyn std::fmt::Display| {
        Failure::usage(format!("can't read {}: {error}", file.display()))
            .hint("it holds what `tbmqctl session subscriptions CLIENT_ID -o json` prints")
    };
    let text = std::fs::read_to_string(file).map_err(|error| problem(&error))?;
    let all: Vec<json::Subscription> = serde_json::from_str(&text).map_err(|error| problem(&error))?;
    Ok(all.into_iter().map(Subscription::from).collect())
}

/// A filter as a client would give it.
fn subscription(filter: &str, qos: u32) -> Subscription {
    let shared = filter.strip_prefix("$share/").and_then(|rest| rest.split_once('/'));
    let (share_name, filter) = shared.unwrap_or(("", filter));
    Subscription {
        filter: filter.to_owned(),
        share_name: share_name.to_owned(),
        qos,
        ..Subscription::default()
    }
}

async fn groups(arguments: GroupsArguments, target: &Target, output: Output) -> Result<(), Failure> {
    let mut client = target.sessions().await?;
    let mut silent = BTreeSet::new();
    let text = |given: &Option<String>| given.clone().unwrap_or_default();
    let listed = pages(arguments.limit.get(), async |page_size, page_token| {
        let request = ListSharedSubscriptionsRequest {
            page_size,
            page_token,
            share_name: text(&arguments.share),
            filter: text(&arguments.filter),
            client_id: text(&arguments.client),
        };
        let page = client.list_shared_subscriptions(target.request(request)).await?.into_inner();
        silent.extend(page.silent_nodes);
        Ok((page.shared_subscriptions, page.next_page_token))
    })
    .await?;
    let all = &listed.items;
    output.print_named(
        || table::shared_subscriptions(all, output.look),
        || all.iter().map(|one| format!("$share/{}/{}", one.share_name, one.filter)).collect(),
        || all.iter().map(json::SharedSubscription::from).collect::<Vec<_>>(),
    )?;
    listed.note_more();
    for node in silent {
        note(&format!("warning: {node} did not answer in time; its members are missing"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_of_a_group_is_taken_apart() {
        let parts = |filter: &str| {
            let one = subscription(filter, 1);
            (one.share_name, one.filter)
        };
        assert_eq!(parts("$share/g/a/+"), ("g".to_owned(), "a/+".to_owned()));
        assert_eq!(parts("a/+"), (String::new(), "a/+".to_owned()));
        // The server says what is wrong with it.
        assert_eq!(parts("$share/g"), (String::new(), "$share/g".to_owned()));
    }
}
