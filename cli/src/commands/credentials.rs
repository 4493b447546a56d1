//! `tbmqctl credentials`.

mod create;
mod edit;
mod export;
mod import;
mod passwd;
mod update;

use std::num::NonZeroUsize;

use clap::{Args, Subcommand, ValueEnum};
use tbmq_proto::control::{
    ClientType, Credentials, CredentialsType, DeleteCredentialsRequest, GetCredentialsRequest,
    ListCredentialsRequest, credentials_service_client::CredentialsServiceClient,
};
use tonic::transport::Channel;
use uuid::Uuid;

use crate::{
    client::{Listed, Target, pages},
    confirm::confirm,
    credential::{Document, document::Type},
    failure::Failure,
    render::{Output, note, table},
};

/// The way to the service.
type Client = CredentialsServiceClient<Channel>;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Let clients in: by user name or client id, by certificate, or by SCRAM
    #[command(after_help = "Examples:\n  \
        tbmqctl credentials create basic pumps --username pumps --rule 'allow both pumps/${clientId}/#'\n  \
        tbmqctl credentials create x509 gateways --cn-pattern 'gw-[0-9]+' --rule 'allow publish gw/${cn}/#'\n  \
        tbmqctl credentials create scram ops --username ops --password-file pw --rule 'allow both #'\n  \
        tbmqctl credentials create -f pumps.yaml")]
    Create(create::Arguments),
    /// Show a credential with its rules
    Get(One),
    /// List credentials
    #[command(after_help = "Examples:\n  tbmqctl credentials list --username pumps\n  \
                            tbmqctl credentials list --type x509 -o wide")]
    List(ListArguments),
    /// Change a credential: all of it from a file, or what flags name
    #[command(
        after_help = "Clients that are connected by it get its new rules within a second.\n\nExamples:\n  \
        tbmqctl credentials update pumps --add-rule 'deny both pumps/+/secret'\n  \
        tbmqctl credentials update pumps --set-password"
    )]
    Update(update::Arguments),
    /// Change a credential in an editor
    Edit(edit::Arguments),
    /// Delete credentials; clients that are connected by them are disconnected
    Delete(DeleteArguments),
    /// Change a password that you know; `update --set-password` sets one that nobody knows any more
    Passwd(passwd::Arguments),
    /// Create many credentials from files: those of `export`, or those of TBMQ
    Import(import::Arguments),
    /// Write credentials as documents that import and create take back
    Export(export::Arguments),
}

#[derive(Debug, Args)]
pub(crate) struct One {
    /// Name or uid
    credential: String,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArguments {
    /// Names or uids
    #[arg(required = true, value_name = "CREDENTIAL")]
    credentials: Vec<String>,
    /// Do it only if nobody has changed it since this etag was read; for one credential
    #[arg(long)]
    etag: Option<String>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    #[command(flatten)]
    filter: Filter,
    /// At most so many
    #[arg(long, value_name = "N", default_value = "100")]
    limit: NonZeroUsize,
}

/// Which credentials.
#[derive(Debug, Default, Args)]
pub(crate) struct Filter {
    /// Only those whose name contains this text, in upper or lower case
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// Only those of this type
    #[arg(long, value_enum)]
    r#type: Option<Kind>,
    /// Only those for clients of this type
    #[arg(long, value_enum)]
    client_type: Option<Type>,
    /// Only those for client ids that contain this text
    #[arg(long, value_name = "TEXT")]
    client_id: Option<String>,
    /// Only those for user names that contain this text
    #[arg(long, value_name = "TEXT")]
    username: Option<String>,
    /// Only those for common names that contain this text
    #[arg(long, value_name = "TEXT")]
    cn: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// User name, client id and password
    Basic,
    /// Certificate
    X509,
    /// SCRAM of MQTT 5.0
    Scram,
}

impl From<Kind> for CredentialsType {
    fn from(from: Kind) -> Self {
        match from {
            Kind::Basic => Self::MqttBasic,
            Kind::X509 => Self::X509,
            Kind::Scram => Self::Scram,
        }
    }
}

pub(crate) async fn run(command: Command, target: &Target, output: Output) -> Result<(), Failure> {
    match command {
        Command::Create(arguments) => create::run(arguments, target, output).await,
        Command::Get(One { credential }) => {
            let mut client = target.credentials().await?;
            let found = get(target, &mut client, &credential).await?;
            output.print_named(
                || table::credential(&found),
                || vec![found.name.clone()],
                || Document::from(&found),
            )
        }
        Command::List(arguments) => list(arguments, target, output).await,
        Command::Update(arguments) => update::run(arguments, target, output).await,
        Command::Edit(arguments) => edit::run(arguments, target, output).await,
        Command::Delete(arguments) => delete(arguments, target).await,
        Command::Passwd(arguments) => passwd::run(arguments, target).await,
        Command::Import(arguments) => import::run(arguments, target, output).await,
        Command::Export(arguments) => export::run(arguments, target, output).await,
    }
}

async fn list(arguments: ListArguments, target: &Target, output: Output) -> Result<(), Failure> {
    let mut client = target.credentials().await?;
    let listed = listed(target, &mut client, &arguments.filter, arguments.limit.get()).await?;
    let all = &listed.items;
    output.print_named(
        || table::credentials(all, output.look),
        || all.iter().map(|one| one.name.clone()).collect(),
        || all.iter().map(Document::from).collect::<Vec<_>>(),
    )?;
    listed.note_more();
    Ok(())
}

async fn delete(arguments: DeleteArguments, target: &Target) -> Result<(), Failure> {
    let DeleteArguments { credentials, etag, yes } = arguments;
    if etag.is_some() && credentials.len() > 1 {
        return Err(Failure::usage("--etag is for one credential: each has an etag of its own"));
    }
    let all = credentials.join(", ");
    confirm(&format!("Delete {all}? Clients that are connected by it are disconnected."), yes)?;
    let mut client = target.credentials().await?;
    for given in credentials {
        let name = name_of(target, &mut client, &given).await?;
        let request = DeleteCredentialsRequest {
            name,
            etag: etag.clone().unwrap_or_default(),
            request_id: Uuid::now_v7().to_string(),
        };
        client.delete_credentials(target.request(request)).await?;
        note(&format!("deleted {given}"));
    }
    Ok(())
}

/// Credentials that are as they are wanted, page by page.
async fn listed(
    target: &Target,
    client: &mut Client,
    filter: &Filter,
    limit: usize,
) -> Result<Listed<Credentials>, Failure> {
    pages(limit, async |page_size, page_token| {
        let request = filter.request(page_size, page_token);
        let page = client.list_credentials(target.request(request)).await?.into_inner();
        Ok((page.credentials, page.next_page_token))
    })
    .await
}

impl Filter {
    fn request(&self, page_size: i32, page_token: String) -> ListCredentialsRequest {
        let text = |given: &Option<String>| given.clone().unwrap_or_default();
        ListCredentialsRequest {
            page_size,
            page_token,
            text_search: text(&self.search),
            r#type: self.r#type.map_or(CredentialsType::Unspecified, CredentialsType::from).into(),
            client_type: self.client_type.map_or(ClientType::Unspecified, ClientType::from).into(),
            client_id: text(&self.client_id),
            user_name: text(&self.username),
            common_name: text(&self.cn),
        }
    }
}

async fn get(target: &Target, client: &mut Client, given: &str) -> Result<Credentials, Failure> {
    let name = name_of(target, client, given).await?;
    Ok(client.get_credentials(target.request(GetCredentialsRequest { name })).await?.into_inner())
}

/// The resource name of a credential that is given by uid, resource name or display name.
async fn name_of(target: &Target, client: &mut Client, given: &str) -> Result<String, Failure> {
    if given.starts_with("credentials/") {
        return Ok(given.to_owned());
    }
    if let Ok(uid) = Uuid::parse_str(given) {
        return Ok(format!("credentials/{uid}"));
    }
    let filter = Filter { search: Some(given.to_owned()), ..Filter::default() };
    let all = listed(target, client, &filter, usize::MAX).await?.items;
    let mut found = all.into_iter().filter(|one| one.display_name == given).map(|one| one.name);
    match (found.next(), found.next()) {
        (Some(name), None) => Ok(name),
        (Some(_), Some(_)) => Err(Failure::refused(format!("several credentials are named {given:?}"))
            .hint("`tbmqctl credentials list` shows their uids")),
        (None, _) => Err(Failure::refused(format!("there is no credential named {given:?}"))
            .hint("`tbmqctl credentials list` shows what exists")),
    }
}

fn print_one(one: &Credentials, output: Output) -> Result<(), Failure> {
    output.print_named(
        || table::credentials(std::slice::from_ref(one), output.look),
        || vec![one.name.clone()],
        || Document::from(one),
    )
}
