//! `tbmqctl audit`.

use std::num::NonZeroUsize;

use clap::{Args, Subcommand};
use tbmq_proto::control::ListAuditEntriesRequest;

use super::event::Period;
use crate::{
    client::{Target, pages},
    failure::Failure,
    render::{Output, json, table},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List calls that changed something or were refused, the newest first
    #[command(after_help = "Examples:\n  tbmqctl audit list --since 1d --result PERMISSION_DENIED\n  \
                            tbmqctl audit list --method UpdateIntegration --principal token:ci -o wide")]
    List(ListArguments),
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Only those of callers whose name contains this text, such as token:ci, in upper or lower case
    #[arg(long, value_name = "TEXT")]
    principal: Option<String>,
    /// Only those of methods whose name contains this text, in upper or lower case
    #[arg(long, value_name = "TEXT")]
    method: Option<String>,
    /// Only those of resources whose name contains this text, in upper or lower case
    #[arg(long, value_name = "TEXT")]
    resource: Option<String>,
    /// Only those that ended with this status code, such as OK or PERMISSION_DENIED
    #[arg(long, value_name = "CODE")]
    result: Option<String>,
    #[command(flatten)]
    period: Period,
    /// At most so many
    #[arg(long, value_name = "N", default_value = "50")]
    limit: NonZeroUsize,
}

pub(crate) async fn run(command: Command, target: &Target, output: Output) -> Result<(), Failure> {
    let Command::List(arguments) = command;
    let mut client = target.audit().await?;
    let entries = pages(arguments.limit.get(), async |page_size, page_token| {
        let request = ListAuditEntriesRequest {
            page_size,
            page_token,
            start_time: arguments.period.since,
            end_time: arguments.period.until,
            principal: arguments.principal.clone().unwrap_or_default(),
            method: arguments.method.clone().unwrap_or_default(),
            resource: arguments.resource.clone().unwrap_or_default(),
            result: arguments.result.as_ref().map(|code| code.to_ascii_uppercase()).unwrap_or_default(),
        };
        let page = client.list_audit_entries(target.request(request)).await?.into_inner();
        Ok((page.entries, page.next_page_token))
    })
    .await?
    .items;
    output.print_named(
        || table::audit(&entries, output.look),
        || entries.iter().map(|entry| entry.uid.clone()).collect(),
        || entries.iter().map(json::AuditEntry::from).collect::<Vec<_>>(),
    )
}
