//! `tbmqctl session`.

use std::{collections::BTreeSet, num::NonZeroUsize};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use tbmq_proto::control::{
    ClearSessionRequest, ClearSessionsRequest, ConnectionState, DisconnectSessionRequest,
    DisconnectSessionsRequest, GetSessionCountsRequest, GetSessionRequest, ListSessionsRequest,
    ListSubscriptionsRequest, SessionFilter, SubscriptionCount, subscription_count::Operator,
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
    /// List sessions of clients, connected or not
    #[command(
        after_help = "Examples:\n  tbmqctl session list --state disconnected --sort 'disconnect_time desc'\n  \
                            tbmqctl session list --type device --subscriptions '>=10' --address 10.3.0.0/16"
    )]
    List(ListArguments),
    /// Show all about the session of a client
    Get(Client),
    /// Count sessions
    Counts,
    /// Show what a client has subscribed to
    Subscriptions(Client),
    /// End connections of clients; they may come back
    #[command(after_help = "Examples:\n  tbmqctl session disconnect pump-7\n  \
                            tbmqctl session disconnect --address 10.3.0.0/16 --dry-run")]
    Disconnect(EndArguments),
    /// End sessions of clients that are not connected, with their subscriptions and queues
    #[command(after_help = "Examples:\n  tbmqctl session clear pump-7\n  \
                            tbmqctl session clear --until 30d --yes")]
    Clear(EndArguments),
}

/// Which sessions are meant.
#[derive(Clone, Debug, Args)]
pub(crate) struct Selection {
    /// Only those whose client id contains this text, in upper or lower case
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// Only those that this data plane holds
    #[arg(long, value_name = "SERVICE_ID")]
    node: Option<String>,
    /// Only those that are connected, or are not
    #[arg(long, value_enum)]
    state: Option<State>,
    /// Only those of clients of this type
    #[arg(long, value_enum)]
    r#type: Option<Kind>,
    /// Only those whose clients have asked for a clean start, or have not
    #[arg(long, value_name = "BOOL")]
    clean_start: Option<bool>,
    /// Only those with so many subscriptions: a number, or one after = != > < >= <=
    #[arg(long, value_name = "COUNT", value_parser = count)]
    subscriptions: Option<SubscriptionCount>,
    /// Only those of this address, or of a network such as 10.3.0.0/16
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,
    /// Only those whose user name contains this text, in upper or lower case
    #[arg(long, value_name = "TEXT")]
    username: Option<String>,
    /// When they were connected; of those that are not: disconnected
    #[command(flatten)]
    period: Period,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum State {
    Connected,
    Disconnected,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Device,
    Application,
}

impl Selection {
    fn is_everything(&self) -> bool {
        self.filter() == SessionFilter::default() && self.search.is_none() && self.node.is_none()
    }

    fn filter(&self) -> SessionFilter {
        let state = |state| match state {
            State::Connected => ConnectionState::Connected.into(),
            State::Disconnected => ConnectionState::Disconnected.into(),
        };
        let kind = |kind| match kind {
            Kind::Device => "DEVICE".to_owned(),
            Kind::Application => "APPLICATION".to_owned(),
        };
        SessionFilter {
            states: self.state.map(state).into_iter().collect(),
            client_types: self.r#type.map(kind).into_iter().collect(),
            clean_start: self.clean_start,
            subscription_count: self.subscriptions,
            address: self.address.clone().unwrap_or_default(),
            username: self.username.clone().unwrap_or_default(),
            start_time: self.period.since,
            end_time: self.period.until,
        }
    }

    fn text_search(&self) -> String {
        self.search.clone().unwrap_or_default()
    }

    fn service_id(&self) -> String {
        self.node.clone().unwrap_or_default()
    }
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    #[command(flatten)]
    selection: Selection,
    /// client_id, username, client_type, connect_time, disconnect_time or subscription_count, with an optional desc
    #[arg(long, value_name = "FIELD", default_value = "client_id")]
    sort: String,
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

#[derive(Debug, Args)]
pub(crate) struct EndArguments {
    /// Client ids; or those are meant that the options say
    #[arg(value_name = "CLIENT_ID")]
    client_ids: Vec<String>,
    /// Only if the client has this session id
    #[arg(long, value_name = "UUID", requires = "client_ids")]
    session_id: Option<String>,
    #[command(flatten)]
    selection: Selection,
    /// All there are
    #[arg(long)]
    all: bool,
    /// Only count them
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// Reads `>=5`.
fn count(text: &str) -> Result<SubscriptionCount, String> {
    let operators = [
        (">=", Operator::GreaterOrEqual),
        ("<=", Operator::LessOrEqual),
        ("!=", Operator::NotEqual),
        (">", Operator::Greater),
        ("<", Operator::Less),
        ("=", Operator::Equal),
        ("", Operator::Equal),
    ];
    let read = |(token, operator): (&str, Operator)| {
        let value = text.trim().strip_prefix(token)?.trim().parse().ok()?;
        Some(SubscriptionCount { operator: operator.into(), value })
    };
    operators
        .into_iter()
        .find_map(read)
        .ok_or_else(|| format!("{text:?} is no number after one of = != > < >= <="))
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
                || view::Session::from(&session),
            )
        }
        Command::Counts => {
            let counts =
                client.get_session_counts(target.request(GetSessionCountsRequest {})).await?.into_inner();
            output.print(|| table::session_counts(&counts), || view::SessionCounts::from(&counts))?;
            warn_of(counts.silent_nodes);
            Ok(())
        }
        Command::Subscriptions(Client { client_id }) => {
            let request = target.request(ListSubscriptionsRequest { client_id });
            let all = client.list_subscriptions(request).await?.into_inner().subscriptions;
            output.print_named(
                || table::subscriptions(&all, output.look),
                || all.iter().map(|one| one.filter.clone()).collect(),
                || all.iter().map(view::Subscription::from).collect::<Vec<_>>(),
            )
        }
        Command::Disconnect(arguments) => end(arguments, target, output, &End::Disconnect).await,
        Command::Clear(arguments) => end(arguments, target, output, &End::Clear).await,
    }
}

/// Tells of data planes that were asked in vain.
pub(super) fn warn_of(silent_nodes: impl IntoIterator<Item = String>) {
    for node in silent_nodes {
        note(&format!("warning: {node} did not answer in time; its clients are missing"));
    }
}

async fn list(arguments: ListArguments, target: &Target, output: Output) -> Result<(), Failure> {
    let mut client = target.sessions().await?;
    let mut silent = BTreeSet::new();
    let ListArguments { selection, sort, limit } = arguments;
    let listed = pages(limit.get(), async |page_size, page_token| {
        let request = ListSessionsRequest {
            page_size,
            page_token,
            text_search: selection.text_search(),
            service_id: selection.service_id(),
            filter: Some(selection.filter()),
            order_by: sort.clone(),
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
        || sessions.iter().map(view::Session::from).collect::<Vec<_>>(),
    )?;
    listed.note_more();
    warn_of(silent);
    Ok(())
}

/// What is ended.
enum End {
    /// Connections.
    Disconnect,
    /// Sessions without one.
    Clear,
}

impl End {
    async fn one(&self, target: &Target, client_id: &str, session_id: &str) -> Result<(), Failure> {
        let mut client = target.sessions().await?;
        let (client_id, session_id) = (client_id.to_owned(), session_id.to_owned());
        match self {
            Self::Disconnect => {
                let request = DisconnectSessionRequest { client_id, session_id };
                client.disconnect_session(target.request(request)).await?;
            }
            Self::Clear => {
                let request = ClearSessionRequest { client_id, session_id };
                client.clear_session(target.request(request)).await?;
            }
        }
        Ok(())
    }

    /// How many, and whether there are others.
    async fn many(
        &self,
        target: &Target,
        selection: &Selection,
        validate_only: bool,
    ) -> Result<(u64, bool), Failure> {
        let mut client = target.sessions().await?;
        let (filter, text_search, service_id) =
            (Some(selection.filter()), selection.text_search(), selection.service_id());
        let (count, more, silent) = match self {
            Self::Disconnect => {
                let request = DisconnectSessionsRequest { filter, text_search, service_id, validate_only };
                let done = client.disconnect_sessions(target.request(request)).await?.into_inner();
                (done.count, done.more, done.silent_nodes)
            }
            Self::Clear => {
                let request = ClearSessionsRequest { filter, text_search, service_id, validate_only };
                let done = client.clear_sessions(target.request(request)).await?.into_inner();
                (done.count, done.more, done.silent_nodes)
            }
        };
        warn_of(silent);
        Ok((count, more))
    }

    fn words(&self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Disconnect => ("Disconnect", "disconnected", "clients"),
            Self::Clear => ("Clear", "cleared", "sessions"),
        }
    }
}

async fn end(arguments: EndArguments, target: &Target, output: Output, end: &End) -> Result<(), Failure> {
    let EndArguments { client_ids, session_id, selection, all, dry_run, yes } = arguments;
    let (order, done, things) = end.words();
    if !client_ids.is_empty() {
        if !selection.is_everything() || all || dry_run {
            return Err(Failure::usage("either client ids are given, or options that say which are meant"));
        }
        if session_id.is_some() && client_ids.len() > 1 {
            return Err(Failure::usage("--session-id is of one client"));
        }
        for client_id in client_ids {
            end.one(target, &client_id, session_id.as_deref().unwrap_or_default()).await?;
            note(&format!("{done} {client_id}"));
        }
        return Ok(());
    }
    if selection.is_everything() && !all {
        return Err(Failure::usage(format!("which {things} are meant?"))
            .hint("client ids, options such as --search, or --all"));
    }
    output.without_names()?;
    let (count, more) = end.many(target, &selection, true).await?;
    if !dry_run && count > 0 {
        confirm(&format!("{order} {count} {things}?"), yes)?;
        let (count, more) = end.many(target, &selection, false).await?;
        output.print(|| format!("{done} {count} {things}"), || json!({ "count": count, "more": more }))?;
        if more {
            note(&format!("there may be more {things}: the time was over; run it again"));
        }
        return Ok(());
    }
    output.print(|| format!("{count} {things} would be {done}"), || json!({ "count": count, "more": more }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_a_number_with_an_operator() {
        let cases = [
            ("5", Operator::Equal),
            ("=5", Operator::Equal),
            ("!=5", Operator::NotEqual),
            ("> 5", Operator::Greater),
            ("<5", Operator::Less),
            (">=5", Operator::GreaterOrEqual),
            ("<=5", Operator::LessOrEqual),
        ];
        for (text, operator) in cases {
            assert_eq!(count(text), Ok(SubscriptionCount { operator: operator.into(), value: 5 }), "{text}");
        }
        for text in ["", ">", "=>5", "many", "-1"] {
            assert!(count(text).is_err(), "{text}");
        }
    }
}
