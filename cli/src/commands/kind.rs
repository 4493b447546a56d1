//! `tbmqctl kind`.

use clap::{Args, Subcommand};
use serde_json::Value;
use tbmq_proto::control::{Kind, ListKindsRequest};

use crate::{
    client::Target,
    failure::Failure,
    render::{Format, Output, json, table},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the types of integrations and the executors that serve them
    List,
    /// Print the JSON Schema of a type's clientConfiguration
    Schema(SchemaArguments),
}

#[derive(Debug, Args)]
pub(crate) struct SchemaArguments {
    /// The type, such as HTTP
    #[arg(value_name = "TYPE")]
    kind: String,
}

pub(crate) async fn run(command: Command, target: &Target, output: Output) -> Result<(), Failure> {
    match command {
        Command::List => list(target, output).await,
        Command::Schema(SchemaArguments { kind }) => schema(&kind, target, output).await,
    }
}

pub(crate) async fn list(target: &Target, output: Output) -> Result<(), Failure> {
    let kinds = kinds(target).await?;
    output.print_named(
        || table::kinds(&kinds),
        || kinds.iter().map(|kind| kind.name.clone()).collect(),
        || kinds.iter().map(json::Kind::from).collect::<Vec<_>>(),
    )
}

async fn schema(given: &str, target: &Target, output: Output) -> Result<(), Failure> {
    output.without_names()?;
    let kinds = kinds(target).await?;
    let Some(kind) = kinds.iter().find(|kind| kind.name.eq_ignore_ascii_case(given)) else {
        let names: Vec<_> = kinds.iter().map(|kind| kind.name.as_str()).collect();
        return Err(Failure::refused(format!("no live executor serves the type {given:?}"))
            .hint(format!("types that are served: {}", names.join(", "))));
    };
    let schema: Value = serde_json::from_str(&kind.json_schema)
        .map_err(|error| Failure::refused(format!("the schema of {} is not JSON: {error}", kind.name)))?;
    // It has no form for people but this.
    let format = if output.format == Format::Yaml { Format::Yaml } else { Format::Json };
    Output { format, ..output }.print(String::new, || schema)
}

async fn kinds(target: &Target) -> Result<Vec<Kind>, Failure> {
    let mut client = target.integrations().await?;
    Ok(client.list_kinds(target.request(ListKindsRequest {})).await?.into_inner().kinds)
}
