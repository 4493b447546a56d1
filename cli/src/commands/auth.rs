//! `tbmqctl auth`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;
use tbmq_proto::control::{
    AuthProvider, AuthSettings, GetAuthProviderRequest, GetAuthSettingsRequest, ListAuthProvidersRequest,
    UpdateAuthProviderRequest, UpdateAuthSettingsRequest,
    auth_provider_service_client::AuthProviderServiceClient,
};
use tonic::transport::Channel;

use crate::{
    client::Target,
    confirm::confirm,
    failure::Failure,
    manifest,
    render::{Output, json, note, table},
};

type Client = AuthProviderServiceClient<Channel>;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List how clients may prove who they are, and who is asked first
    List,
    /// Show a provider with its configuration
    Get(One),
    /// Change the configuration of a provider
    #[command(
        after_help = "Secrets are shown masked, and stay as they are where they are written so.\n\nExample:\n  \
                            tbmqctl auth get jwt -o json | jq .configuration > jwt.json   # edit it, then\n  \
                            tbmqctl auth update jwt -f jwt.json"
    )]
    Update(UpdateArguments),
    /// Have clients prove who they are by providers
    Enable(Many),
    /// Ask providers no more; without any, everyone may connect and do everything
    Disable(DisableArguments),
    /// Show or set which provider is asked first
    #[command(subcommand)]
    Order(Order),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Order {
    /// Show it
    Get,
    /// Set who comes first; the others stay behind them. SCRAM has no place: a client says by itself that it wants that
    #[command(after_help = "Example:\n  tbmqctl auth order set jwt basic")]
    Set(SetArguments),
}

#[derive(Debug, Args)]
pub(crate) struct One {
    /// Which
    #[arg(value_enum)]
    provider: Provider,
}

#[derive(Debug, Args)]
pub(crate) struct Many {
    /// Which
    #[arg(required = true, value_enum, value_name = "PROVIDER")]
    providers: Vec<Provider>,
}

#[derive(Debug, Args)]
pub(crate) struct DisableArguments {
    /// Which
    #[arg(required = true, value_enum, value_name = "PROVIDER")]
    providers: Vec<Provider>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateArguments {
    /// Which
    #[arg(value_enum)]
    provider: Provider,
    /// TBMQ's configuration of it as JSON or YAML; `-` is stdin
    #[arg(short, long)]
    file: PathBuf,
    /// Change it only if nobody else did since this etag was read
    #[arg(long)]
    etag: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SetArguments {
    /// The first one is asked first
    #[arg(required = true, value_enum, value_name = "PROVIDER")]
    providers: Vec<Provider>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Provider {
    /// User name, client id and password
    #[value(alias = "mqtt_basic", alias = "MQTT_BASIC")]
    Basic,
    /// Certificates
    #[value(alias = "x_509", alias = "X_509")]
    X509,
    /// Tokens in place of the password
    #[value(alias = "JWT")]
    Jwt,
    /// Enhanced authentication of MQTT 5.0
    #[value(alias = "SCRAM")]
    Scram,
    /// A service of yours is asked
    #[value(alias = "HTTP")]
    Http,
}

impl Provider {
    /// TBMQ's name.
    fn kind(self) -> &'static str {
        match self {
            Self::Basic => "MQTT_BASIC",
            Self::X509 => "X_509",
            Self::Jwt => "JWT",
            Self::Scram => "SCRAM",
            Self::Http => "HTTP",
        }
    }

    fn name(self) -> String {
        format!("authProviders/{}", self.kind())
    }
}

pub(crate) async fn run(command: Command, target: &Target, output: Output) -> Result<(), Failure> {
    let mut client = target.providers().await?;
    match command {
        Command::List => {
            let all = list(target, &mut client).await?;
            let settings =
                client.get_auth_settings(target.request(GetAuthSettingsRequest {})).await?.into_inner();
            output.print_named(
                || table::providers(&all, &settings, output.look),
                || all.iter().map(|one| one.name.clone()).collect(),
                || all.iter().map(json::Provider::from).collect::<Vec<_>>(),
            )
        }
        Command::Get(One { provider }) => {
            let found = get(target, &mut client, provider).await?;
            output.print_named(
                || table::provider(&found),
                || vec![found.name.clone()],
                || json::Provider::from(&found),
            )
        }
        Command::Update(arguments) => update(arguments, target, &mut client, output).await,
        Command::Enable(Many { providers }) => switch(target, &mut client, &providers, true, output).await,
        Command::Disable(DisableArguments { providers, yes }) => {
            let all = list(target, &mut client).await?;
            let goes = |one: &AuthProvider| providers.iter().any(|provider| provider.name() == one.name);
            let mut enabled = all.iter().filter(|one| one.enabled).peekable();
            if enabled.peek().is_some() && enabled.all(goes) {
                confirm("Without any other provider everyone may connect and do everything. Go on?", yes)?;
            }
            switch(target, &mut client, &providers, false, output).await
        }
        Command::Order(Order::Get) => {
            let settings =
                client.get_auth_settings(target.request(GetAuthSettingsRequest {})).await?.into_inner();
            print_order(&settings, output)
        }
        Command::Order(Order::Set(SetArguments { providers })) => {
            if providers.contains(&Provider::Scram) {
                return Err(Failure::usage("SCRAM has no place in the order")
                    .hint("a client that wants it says so, and then nobody else is asked"));
            }
            let mut priorities: Vec<_> =
                providers.iter().map(|provider| provider.kind().to_owned()).collect();
            let AuthSettings { priorities: saved, etag } =
                client.get_auth_settings(target.request(GetAuthSettingsRequest {})).await?.into_inner();
            let behind: Vec<_> = saved.into_iter().filter(|one| !priorities.contains(one)).collect();
            priorities.extend(behind);
            let request = UpdateAuthSettingsRequest { settings: Some(AuthSettings { priorities, etag }) };
            let settings = client.update_auth_settings(target.request(request)).await?.into_inner();
            print_order(&settings, output)
        }
    }
}

async fn list(target: &Target, client: &mut Client) -> Result<Vec<AuthProvider>, Failure> {
    let request = target.request(ListAuthProvidersRequest {});
    Ok(client.list_auth_providers(request).await?.into_inner().providers)
}

async fn get(target: &Target, client: &mut Client, provider: Provider) -> Result<AuthProvider, Failure> {
    let request = GetAuthProviderRequest { name: provider.name() };
    Ok(client.get_auth_provider(target.request(request)).await?.into_inner())
}

async fn update(
    arguments: UpdateArguments,
    target: &Target,
    client: &mut Client,
    output: Output,
) -> Result<(), Failure> {
    let UpdateArguments { provider, file, etag } = arguments;
    let text = manifest::text_at(&file)?;
    let configuration: Value = serde_norway::from_str(&text)
        .map_err(|error| Failure::usage(format!("{} is neither JSON nor YAML: {error}", file.display())))?;
    if !configuration.is_object() {
        return Err(Failure::usage(format!("{} is not a configuration", file.display()))
            .hint(format!("`tbmqctl auth get {}` shows what there is", provider.kind().to_lowercase())));
    }
    let saved = get(target, client, provider).await?;
    let changed = AuthProvider {
        configuration_json: configuration.to_string(),
        etag: etag.unwrap_or_else(|| saved.etag.clone()),
        ..saved
    };
    let request = UpdateAuthProviderRequest { provider: Some(changed) };
    let updated = client.update_auth_provider(target.request(request)).await?.into_inner();
    output.print_named(
        || table::provider(&updated),
        || vec![updated.name.clone()],
        || json::Provider::from(&updated),
    )
}

async fn switch(
    target: &Target,
    client: &mut Client,
    providers: &[Provider],
    enabled: bool,
    output: Output,
) -> Result<(), Failure> {
    let mut done = Vec::new();
    for provider in providers {
        let saved = get(target, client, *provider).await?;
        if saved.enabled == enabled {
            note(&format!("{} is {} already", provider.kind(), if enabled { "enabled" } else { "disabled" }));
            done.push(saved);
            continue;
        }
        let request = UpdateAuthProviderRequest { provider: Some(AuthProvider { enabled, ..saved }) };
        done.push(client.update_auth_provider(target.request(request)).await?.into_inner());
    }
    let settings = client.get_auth_settings(target.request(GetAuthSettingsRequest {})).await?.into_inner();
    output.print_named(
        || table::providers(&done, &settings, output.look),
        || done.iter().map(|one| one.name.clone()).collect(),
        || done.iter().map(json::Provider::from).collect::<Vec<_>>(),
    )
}

fn print_order(settings: &AuthSettings, output: Output) -> Result<(), Failure> {
    output.print_named(
        || settings.priorities.join(", "),
        || settings.priorities.clone(),
        || json::Order::from(settings),
    )
}
