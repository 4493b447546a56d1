//! `tbmqctl node`.

use clap::Subcommand;
use tbmq_proto::control::ListNodesRequest;

use crate::{
    client::Target,
    failure::Failure,
    render::{Output, json, table},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List control planes, data planes and executors that were seen
    List,
}

pub(crate) async fn run(command: Command, target: &Target, output: Output) -> Result<(), Failure> {
    let Command::List = command;
    let mut client = target.nodes().await?;
    let nodes = client.list_nodes(target.request(ListNodesRequest {})).await?.into_inner().nodes;
    output.print(|| table::nodes(&nodes), || nodes.iter().map(json::Node::from).collect::<Vec<_>>())
}
