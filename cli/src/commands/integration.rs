//! `tbmqctl integration`.

mod check;
mod create;
mod settings;
mod stats;
mod update;
pub(crate) mod watch;

use std::num::NonZeroUsize;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;
use tbmq_proto::control::{
    DeleteIntegrationRequest, DisableIntegrationRequest, EnableIntegrationRequest, GetIntegrationRequest,
    Integration, IntegrationView, RestartIntegrationRequest,
    integration_service_client::IntegrationServiceClient,
};
use tonic::transport::Channel;
use uuid::Uuid;

use crate::{
    client::{Target, Wanted},
    commands::kind,
    failure::Failure,
    render::{Output, json as view, note, table},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create an integration, from a file or from flags; an executor validates it first
    #[command(
        after_help = "Examples:\n  tbmqctl integration create -f http.json\n  tbmqctl integration create \
                            --name web --filter 'sensors/#' --url http://127.0.0.1:8099/in\n  tbmqctl integration \
                            create --name bridge --filter '#' --host broker.example.org --tls\n  tbmqctl integration \
                            create --name lake --filter 'a/#' --bootstrap-servers kafka:9092 --topic sensors"
    )]
    Create(Box<create::CreateArguments>),
    /// Show one integration
    Get(One),
    /// List integrations
    #[command(
        after_help = "Examples:\n  tbmqctl integration list --filter 'type = \"HTTP\" AND labels.site:*'\n  \
                            tbmqctl integration list --filter 'status.phase = FAILED' --order-by 'update_time desc' -o name"
    )]
    List(ListArguments),
    /// Change an integration: all of it from a file, or what flags name
    #[command(
        after_help = "Examples:\n  tbmqctl integration get demo -o json > demo.json   # edit it, then\n  \
                            tbmqctl integration update -f demo.json\n  tbmqctl integration update demo --filter 'a/#'"
    )]
    Update(Box<update::UpdateArguments>),
    /// Delete integrations with the messages that they have not delivered
    Delete(Many),
    /// Start to deliver, beginning with what was kept
    Enable(Many),
    /// Stop to deliver; matching messages are kept
    Disable(Many),
    /// Stop and start running integrations anew
    Restart(Many),
    /// Have an executor connect to the external system; nothing is saved
    Check(Box<check::CheckArguments>),
    /// Show what was written, delivered and given up, the rates, and what waits
    Stats(One),
    /// Show changes of integrations and of their status as they happen
    #[command(
        after_help = "With -o json each change is one line; BOOKMARK lines say where --after-revision may go on."
    )]
    Watch(watch::Arguments),
    /// List the types of integrations, as `tbmqctl kind list`
    Kinds,
}

#[derive(Debug, Args)]
pub(crate) struct One {
    /// Name or uid
    integration: String,
}

#[derive(Debug, Args)]
pub(crate) struct Many {
    /// Names or uids
    #[arg(required = true, value_name = "INTEGRATION")]
    integrations: Vec<String>,
    /// Do it only if nobody has changed it since this etag was read; for one integration
    #[arg(long)]
    etag: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Only those whose name contains this text, in upper or lower case
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// Only those for which this holds: comparisons of display_name, type, enabled, description, labels, revision,
    /// create_time, update_time, topic_filters and status.phase, with AND, OR, NOT and `:` (has), as in AIP-160
    #[arg(long, value_name = "FILTER")]
    filter: Option<String>,
    /// Fields to sort by, separated by commas, each with an optional ` desc`: display_name, type, create_time, update_time,
    /// revision
    #[arg(long, value_name = "FIELDS")]
    order_by: Option<String>,
    /// What is shown of each: full has what waits to be delivered; full with -o wide, basic otherwise
    #[arg(long, value_enum)]
    view: Option<View>,
    /// At most so many
    #[arg(long, value_name = "N", default_value = "1000")]
    limit: NonZeroUsize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum View {
    /// Everything but the lag
    Basic,
    /// With the lag, which is read from the bus
    Full,
}

pub(crate) async fn run(command: Command, target: &Target, output: Output) -> Result<(), Failure> {
    match command {
        Command::Create(arguments) => create::create(*arguments, target, output).await,
        Command::Get(One { integration }) => {
            let mut client = target.integrations().await?;
            let found = get(target, &mut client, &integration).await?;
            output.print_named(
                || table::integration(&found, output.look),
                || vec![found.name.clone()],
                || view::Integration::from(&found),
            )
        }
        Command::List(arguments) => list(arguments, target, output).await,
        Command::Update(arguments) => update::update(*arguments, target, output).await,
        Command::Delete(many) => delete(many, target).await,
        Command::Enable(many) => {
            each(many, target, output, async |client, name, etag| {
                let request_id = Uuid::now_v7().to_string();
                let request = EnableIntegrationRequest { name, etag, request_id };
                client.enable_integration(target.request(request)).await
            })
            .await
        }
        Command::Disable(many) => {
            each(many, target, output, async |client, name, etag| {
                let request_id = Uuid::now_v7().to_string();
                let request = DisableIntegrationRequest { name, etag, request_id };
                client.disable_integration(target.request(request)).await
            })
            .await
        }
        Command::Restart(many) => {
            each(many, target, output, async |client, name, etag| {
                let request_id = Uuid::now_v7().to_string();
                let request = RestartIntegrationRequest { name, etag, request_id };
                client.restart_integration(target.request(request)).await
            })
            .await
        }
        Command::Check(arguments) => check::check(*arguments, target, output).await,
        Command::Stats(one) => stats::stats(one, target, output).await,
        Command::Watch(arguments) => watch::run(arguments, target, output).await,
        Command::Kinds => kind::list(target, output).await,
    }
}

async fn list(arguments: ListArguments, target: &Target, output: Output) -> Result<(), Failure> {
    let is_full = arguments.view.map_or(output.look.wide, |view| matches!(view, View::Full));
    let wanted = Wanted {
        text_search: arguments.search.unwrap_or_default(),
        filter: arguments.filter.unwrap_or_default(),
        order_by: arguments.order_by.unwrap_or_default(),
        view: if is_full { IntegrationView::Full } else { IntegrationView::Basic },
    };
    let mut client = target.integrations().await?;
    let listed = target.list_wanted(&mut client, &wanted, arguments.limit.get()).await?;
    print_all(&listed.items, output)?;
    listed.note_more();
    Ok(())
}

async fn delete(many: Many, target: &Target) -> Result<(), Failure> {
    let etag = many.one_etag()?;
    let mut client = target.integrations().await?;
    for given in many.integrations {
        let name = target.name_of(&mut client, &given).await?;
        let request =
            DeleteIntegrationRequest { name, etag: etag.clone(), request_id: Uuid::now_v7().to_string() };
        client.delete_integration(target.request(request)).await?;
        note(&format!("deleted {given}"));
    }
    Ok(())
}

async fn get(
    target: &Target,
    client: &mut IntegrationServiceClient<Channel>,
    given: &str,
) -> Result<Integration, Failure> {
    let name = target.name_of(client, given).await?;
    Ok(client
        .get_integration(target.request(GetIntegrationRequest { name, ..Default::default() }))
        .await?
        .into_inner())
}

impl Many {
    /// The etag to be sent, empty for none.
    fn one_etag(&self) -> Result<String, Failure> {
        match (&self.etag, self.integrations.as_slice()) {
            (Some(_), [_, _, ..]) => {
                Err(Failure::usage("--etag is for one integration: each has an etag of its own"))
            }
            (etag, _) => Ok(etag.clone().unwrap_or_default()),
        }
    }
}

async fn each(
    many: Many,
    target: &Target,
    output: Output,
    call: impl AsyncFn(
        &mut IntegrationServiceClient<Channel>,
        String,
        String,
    ) -> Result<tonic::Response<Integration>, tonic::Status>,
) -> Result<(), Failure> {
    let etag = many.one_etag()?;
    let mut client = target.integrations().await?;
    let mut done = Vec::new();
    let mut failed = None;
    for given in many.integrations {
        let answer = match target.name_of(&mut client, &given).await {
            Ok(name) => call(&mut client, name, etag.clone()).await.map_err(Failure::from),
            Err(failure) => Err(failure),
        };
        match answer {
            Ok(answer) => done.push(answer.into_inner()),
            Err(failure) => {
                failed = Some(failure);
                break;
            }
        }
    }
    // What was done is shown even when a later one failed.
    if !done.is_empty() {
        print_all(&done, output)?;
    }
    failed.map_or(Ok(()), Err)
}

fn print_one(one: &Integration, output: Output) -> Result<(), Failure> {
    output.print_named(
        || table::integrations(std::slice::from_ref(one), output.look),
        || vec![one.name.clone()],
        || view::Integration::from(one),
    )
}

fn print_all(all: &[Integration], output: Output) -> Result<(), Failure> {
    output.print_named(
        || table::integrations(all, output.look),
        || all.iter().map(|one| one.name.clone()).collect(),
        || all.iter().map(view::Integration::from).collect::<Vec<_>>(),
    )
}

fn object(text: &str, what: &str) -> Result<Value, Failure> {
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(Failure::usage(format!("{what} is not a JSON object"))),
        Err(error) => Err(Failure::usage(format!("{what} is not JSON: {error}"))),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not KEY=VALUE"))?;
    if key.is_empty() { Err("the key is empty".to_owned()) } else { Ok((key.to_owned(), value.to_owned())) }
}
