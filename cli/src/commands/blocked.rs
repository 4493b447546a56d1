//! `tbmqctl blocked`.

use std::num::NonZeroUsize;

use clap::{Args, Subcommand, ValueEnum};
use prost_types::Timestamp;
use tbmq_proto::control::{
    BlockedClient, CreateBlockedClientRequest, DeleteBlockedClientRequest, GetBlockedClientRequest,
    ListBlockedClientsRequest, UpdateBlockedClientRequest,
    blocked_client::{RegexMatchTarget, Status, Type},
    blocked_client_service_client::BlockedClientServiceClient,
};
use tonic::transport::Channel;

use crate::{
    client::{Listed, Target, pages},
    commands::token::later,
    failure::Failure,
    render::{Output, json, note, table},
};

type Client = BlockedClientServiceClient<Channel>;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Block clients: by client id, user name, address or pattern; those that are connected are disconnected
    #[command(
        visible_alias = "add",
        after_help = "Examples:\n  \
        tbmqctl blocked create --client-id pump-7 --description 'stolen'\n  \
        tbmqctl blocked create --address 10.3.0.0/16 --expires 2h\n  \
        tbmqctl blocked create --pattern 'test-.*' --of client-id"
    )]
    Create(CreateArguments),
    /// List who is blocked
    List(ListArguments),
    /// Show one of them
    Get(One),
    /// Change until when, and the description
    Update(UpdateArguments),
    /// Let clients connect again
    #[command(visible_alias = "remove")]
    Delete(Many),
}

#[derive(Debug, Args)]
pub(crate) struct CreateArguments {
    #[command(flatten)]
    who: Who,
    /// What the pattern is about
    #[arg(long, value_enum, value_name = "WHAT", conflicts_with_all = ["client_id", "username", "address"])]
    of: Option<Of>,
    /// Until when: so long from now, such as 2h, or a time such as 2026-03-21T11:00:00Z; for ever when absent
    #[arg(long, value_name = "TIME", value_parser = later)]
    expires: Option<Timestamp>,
    /// Why
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    description: String,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Who {
    /// The client of this id
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
    /// Clients with this user name
    #[arg(long, value_name = "NAME")]
    username: Option<String>,
    /// Clients of this address, or of a network such as 10.3.0.0/16
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,
    /// Clients of which --of matches this regular expression as a whole
    #[arg(long, value_name = "REGEX", requires = "of")]
    pattern: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Of {
    ClientId,
    Username,
    Address,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    ClientId,
    Username,
    Address,
    Pattern,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum State {
    /// Not let in
    Active,
    /// Its time is over
    Expired,
    /// Its time is long over
    DeletingSoon,
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Only those whose value contains this text, in upper or lower case
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// Only those of this type
    #[arg(long, value_enum)]
    r#type: Option<Kind>,
    /// Only those in this state
    #[arg(long, value_enum)]
    status: Option<State>,
    /// At most so many
    #[arg(long, value_name = "N", default_value = "100")]
    limit: NonZeroUsize,
}

#[derive(Debug, Args)]
pub(crate) struct One {
    /// Value, or name as the list shows it
    #[arg(value_name = "BLOCKED")]
    blocked: String,
}

#[derive(Debug, Args)]
pub(crate) struct Many {
    /// Values, or names as the list shows them
    #[arg(required = true, value_name = "BLOCKED")]
    blocked: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateArguments {
    /// Value, or name as the list shows it
    #[arg(value_name = "BLOCKED")]
    blocked: String,
    /// Until when, as for create
    #[arg(long, value_name = "TIME", value_parser = later)]
    expires: Option<Timestamp>,
    /// For ever
    #[arg(long, conflicts_with = "expires")]
    forever: bool,
    /// Why
    #[arg(long, value_name = "TEXT", required_unless_present_any = ["expires", "forever"])]
    description: Option<String>,
}

impl CreateArguments {
    fn into_blocked(self) -> BlockedClient {
        let Who { client_id, username, address, pattern } = self.who;
        let (r#type, value) = if let Some(client_id) = client_id {
            (Type::ClientId, client_id)
        } else if let Some(username) = username {
            (Type::Username, username)
        } else if let Some(address) = address {
            (Type::IpAddress, address)
        } else {
            (Type::Regex, pattern.unwrap_or_default())
        };
        let target = match self.of {
            None => RegexMatchTarget::Unspecified,
            Some(Of::ClientId) => RegexMatchTarget::ByClientId,
            Some(Of::Username) => RegexMatchTarget::ByUsername,
            Some(Of::Address) => RegexMatchTarget::ByIpAddress,
        };
        BlockedClient {
            r#type: r#type.into(),
            value,
            regex_match_target: target.into(),
            expire_time: self.expires,
            description: self.description,
            ..BlockedClient::default()
        }
    }
}

pub(crate) async fn run(command: Command, target: &Target, output: Output) -> Result<(), Failure> {
    let mut client = target.blocked().await?;
    match command {
        Command::Create(arguments) => {
            let request = CreateBlockedClientRequest { blocked_client: Some(arguments.into_blocked()) };
            let created = client.create_blocked_client(target.request(request)).await?.into_inner();
            print_one(&created, output)
        }
        Command::List(arguments) => list(arguments, target, &mut client, output).await,
        Command::Get(One { blocked }) => print_one(&get(target, &mut client, &blocked).await?, output),
        Command::Update(arguments) => {
            let mut blocked = get(target, &mut client, &arguments.blocked).await?;
            if arguments.expires.is_some() || arguments.forever {
                blocked.expire_time = arguments.expires;
            }
            if let Some(description) = arguments.description {
                blocked.description = description;
            }
            let request = UpdateBlockedClientRequest { blocked_client: Some(blocked) };
            print_one(&client.update_blocked_client(target.request(request)).await?.into_inner(), output)
        }
        Command::Delete(Many { blocked }) => {
            for given in blocked {
                let name = name_of(target, &mut client, &given).await?;
                client.delete_blocked_client(target.request(DeleteBlockedClientRequest { name })).await?;
                note(&format!("{given} may connect again"));
            }
            Ok(())
        }
    }
}

async fn list(
    arguments: ListArguments,
    target: &Target,
    client: &mut Client,
    output: Output,
) -> Result<(), Failure> {
    let r#type = arguments.r#type.map_or(Type::Unspecified, |kind| match kind {
        Kind::ClientId => Type::ClientId,
        Kind::Username => Type::Username,
        Kind::Address => Type::IpAddress,
        Kind::Pattern => Type::Regex,
    });
    let status = arguments.status.map_or(Status::Unspecified, |state| match state {
        State::Active => Status::Active,
        State::Expired => Status::Expired,
        State::DeletingSoon => Status::DeletingSoon,
    });
    let search = arguments.search.unwrap_or_default();
    let listed = listed(target, client, &search, r#type, status, arguments.limit.get()).await?;
    let all = &listed.items;
    output.print_named(
        || table::blocked(all, output.look),
        || all.iter().map(|one| one.name.clone()).collect(),
        || all.iter().map(json::Blocked::from).collect::<Vec<_>>(),
    )?;
    listed.note_more();
    Ok(())
}

async fn listed(
    target: &Target,
    client: &mut Client,
    text_search: &str,
    r#type: Type,
    status: Status,
    limit: usize,
) -> Result<Listed<BlockedClient>, Failure> {
    pages(limit, async |page_size, page_token| {
        let request = ListBlockedClientsRequest {
            page_size,
            page_token,
            r#type: r#type.into(),
            text_search: text_search.to_owned(),
            status: status.into(),
        };
        let page = client.list_blocked_clients(target.request(request)).await?.into_inner();
        Ok((page.blocked_clients, page.next_page_token))
    })
    .await
}

async fn get(target: &Target, client: &mut Client, given: &str) -> Result<BlockedClient, Failure> {
    let name = name_of(target, client, given).await?;
    Ok(client.get_blocked_client(target.request(GetBlockedClientRequest { name })).await?.into_inner())
}

/// The resource name of what is given by it or by its value.
async fn name_of(target: &Target, client: &mut Client, given: &str) -> Result<String, Failure> {
    if given.starts_with("blockedClients/") {
        return Ok(given.to_owned());
    }
    let all = listed(target, client, given, Type::Unspecified, Status::Unspecified, usize::MAX).await?.items;
    let mut found = all.into_iter().filter(|one| one.value == given).map(|one| one.name);
    match (found.next(), found.next()) {
        (Some(name), None) => Ok(name),
        (Some(_), Some(_)) => Err(Failure::refused(format!("{given:?} is blocked as more than one thing"))
            .hint("`tbmqctl blocked list -o wide` shows their names")),
        (None, _) => {
            Err(Failure::refused(format!("{given:?} is not blocked"))
                .hint("`tbmqctl blocked list` shows who is"))
        }
    }
}

fn print_one(one: &BlockedClient, output: Output) -> Result<(), Failure> {
    output.print_named(
        || table::blocked(std::slice::from_ref(one), output.look),
        || vec![one.name.clone()],
        || json::Blocked::from(one),
    )
}
