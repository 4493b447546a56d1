//! `tbmqctl token` and `tbmqctl whoami`.

use std::{num::NonZeroUsize, time::SystemTime};

use clap::{Args, Subcommand, ValueEnum};
use prost_types::Timestamp;
use tbmq_proto::control::{
    AccessRole, CreateTokenRequest, GetCallerRequest, ListTokensRequest, RevokeTokenRequest, Token,
    token_service_client::TokenServiceClient,
};
use tonic::transport::Channel;

use crate::{
    client::{Target, pages},
    duration,
    failure::Failure,
    render::{Output, json, note, table},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a token; its secret is shown now and never again
    #[command(after_help = "Examples:\n  tbmqctl token create ci --role editor --expires 90d\n  \
                            tbmqctl token create ci --role editor -o json | jq -r .secret > ci.token")]
    Create(CreateArguments),
    /// List tokens, without their secrets
    List(ListArguments),
    /// End the use of tokens
    Revoke(Many),
}

#[derive(Debug, Args)]
pub(crate) struct CreateArguments {
    /// Name, which the audit log shows
    name: String,
    /// What its holder may do
    #[arg(long, value_enum)]
    role: Role,
    /// When it ends: after so long, such as 90d, or at a time such as 2026-03-21T11:00:00Z; never when absent
    #[arg(long, value_name = "TIME", value_parser = later)]
    expires: Option<Timestamp>,
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// At most so many
    #[arg(long, value_name = "N", default_value = "1000")]
    limit: NonZeroUsize,
}

#[derive(Debug, Args)]
pub(crate) struct Many {
    /// Names, as created or as `tokens/ID`
    #[arg(required = true, value_name = "TOKEN")]
    tokens: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Role {
    /// Sees everything but secrets, tokens and the audit log
    Viewer,
    /// Also enables, disables, restarts and checks integrations, disconnects clients and drains nodes
    Operator,
    /// Also creates, changes and deletes integrations, and clears events
    Editor,
    /// Also handles tokens and reads the audit log
    Admin,
    /// A data plane or another control plane; nothing for people
    Node,
}

impl From<Role> for AccessRole {
    fn from(from: Role) -> Self {
        match from {
            Role::Viewer => Self::Viewer,
            Role::Operator => Self::Operator,
            Role::Editor => Self::Editor,
            Role::Admin => Self::Admin,
            Role::Node => Self::Node,
        }
    }
}

pub(crate) async fn run(command: Command, target: &Target, output: Output) -> Result<(), Failure> {
    let mut client = target.tokens().await?;
    match command {
        Command::Create(CreateArguments { name, role, expires }) => {
            let token = Token {
                display_name: name,
                role: AccessRole::from(role).into(),
                expire_time: expires,
                ..Token::default()
            };
            let request = CreateTokenRequest { token: Some(token) };
            let created = client.create_token(target.request(request)).await?.into_inner();
            output.print_named(
                || table::created_token(&created),
                || created.token.iter().map(|token| token.name.clone()).collect(),
                || json::CreatedToken::from(&created),
            )?;
            note("keep the secret: it is not shown again");
            Ok(())
        }
        Command::List(arguments) => {
            let tokens = list(&mut client, target, arguments.limit.get()).await?;
            output.print_named(
                || table::tokens(&tokens),
                || tokens.iter().map(|token| token.name.clone()).collect(),
                || tokens.iter().map(json::Token::from).collect::<Vec<_>>(),
            )
        }
        Command::Revoke(Many { tokens }) => {
            for given in tokens {
                let name = name_of(&mut client, target, &given).await?;
                client.revoke_token(target.request(RevokeTokenRequest { name })).await?;
                note(&format!("revoked {given}"));
            }
            Ok(())
        }
    }
}

/// `tbmqctl whoami`.
pub(crate) async fn whoami(target: &Target, output: Output) -> Result<(), Failure> {
    let mut client = target.tokens().await?;
    let caller = client.get_caller(target.request(GetCallerRequest {})).await?.into_inner();
    output.print_named(
        || table::caller(&caller, &target.server),
        || vec![caller.principal.clone()],
        || json::Caller::new(&caller, &target.server),
    )
}

async fn list(
    client: &mut TokenServiceClient<Channel>,
    target: &Target,
    limit: usize,
) -> Result<Vec<Token>, Failure> {
    let listed = pages(limit, async |page_size, page_token| {
        let request = ListTokensRequest { page_size, page_token };
        let page = client.list_tokens(target.request(request)).await?.into_inner();
        Ok((page.tokens, page.next_page_token))
    });
    Ok(listed.await?.items)
}

/// The resource name of a token that is given by it or by its display name.
async fn name_of(
    client: &mut TokenServiceClient<Channel>,
    target: &Target,
    given: &str,
) -> Result<String, Failure> {
    if given.starts_with("tokens/") {
        return Ok(given.to_owned());
    }
    let all = list(client, target, usize::MAX).await?;
    let mut found = all.into_iter().filter(|token| token.display_name == given).map(|token| token.name);
    match (found.next(), found.next()) {
        (Some(name), None) => Ok(name),
        (Some(_), Some(_)) => Err(Failure::refused(format!("several tokens are named {given:?}"))
            .hint("`tbmqctl token list` shows their names as tokens/ID")),
        (None, _) => Err(Failure::refused(format!("there is no token named {given:?}"))
            .hint("`tbmqctl token list` shows what exists")),
    }
}

/// Reads a time in RFC 3339 or a duration from now.
pub(crate) fn later(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let after = duration(text).map_err(|_| {
        format!("{text:?} is neither a time such as 2026-03-21T11:00:00Z nor a duration such as 90d")
    })?;
    SystemTime::now()
        .checked_add(after)
        .map(Timestamp::from)
        .ok_or_else(|| format!("{text:?} is too far away"))
}
