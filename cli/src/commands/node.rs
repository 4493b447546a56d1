//! `tbmqctl node`.

use clap::{Args, Subcommand, ValueEnum};
use tbmq_proto::control::{DrainNodeRequest, ListNodesRequest, Node};

use crate::{
    client::Target,
    failure::Failure,
    progress,
    render::{Output, json, table},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List control planes, data planes and executors that were seen; -o wide with connections and load
    List(ListArguments),
    /// Have a data plane send its clients elsewhere and take no new ones, so that it can be stopped
    Drain(DrainArguments),
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Only those of this role
    #[arg(long, value_enum)]
    role: Option<Role>,
    /// Only those that are live
    #[arg(long)]
    live: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DrainArguments {
    /// Service id of the data plane
    #[arg(value_name = "SERVICE_ID")]
    service_id: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Role {
    /// Control planes
    ControlPlane,
    /// Data planes
    DataPlane,
    /// Executors
    Executor,
}

impl Role {
    fn word(self) -> &'static str {
        match self {
            Self::ControlPlane => "CONTROL_PLANE",
            Self::DataPlane => "DATA_PLANE",
            Self::Executor => "EXECUTOR",
        }
    }
}

pub(crate) async fn run(command: Command, target: &Target, output: Output) -> Result<(), Failure> {
    let mut client = target.nodes().await?;
    match command {
        Command::List(ListArguments { role, live }) => {
            let answer = client.list_nodes(target.request(ListNodesRequest {})).await?;
            let mut nodes = answer.into_inner().nodes;
            nodes.retain(|node| (node.live || !live) && role.is_none_or(|role| node.role == role.word()));
            print(&nodes, output)
        }
        Command::Drain(DrainArguments { service_id }) => {
            let call = client.drain_node(target.request(DrainNodeRequest { service_id }));
            let node = progress::during("its clients are sent elsewhere", call).await?.into_inner();
            print(&[node], output)
        }
    }
}

fn print(nodes: &[Node], output: Output) -> Result<(), Failure> {
    output.print_named(
        || table::nodes(nodes, output.look),
        || nodes.iter().map(|node| node.service_id.clone()).collect(),
        || nodes.iter().map(json::Node::from).collect::<Vec<_>>(),
    )
}
