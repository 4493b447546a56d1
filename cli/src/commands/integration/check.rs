//! `tbmqctl integration check`.

use clap::Args;
use tbmq_proto::control::CheckConnectionRequest;

use super::create::Source;
use crate::{
    client::Target,
    failure::Failure,
    progress,
    render::{Output, json as view, table},
};

#[derive(Debug, Args)]
pub(crate) struct CheckArguments {
    /// Name or uid of a saved integration
    #[arg(conflicts_with_all = ["file", "name", "filter", "client", "settings"])]
    integration: Option<String>,
    #[command(flatten)]
    source: Source,
}

pub(super) async fn check(arguments: CheckArguments, target: &Target, output: Output) -> Result<(), Failure> {
    output.without_names()?;
    let mut client = target.integrations().await?;
    let request = if let Some(given) = arguments.integration {
        CheckConnectionRequest { name: target.name_of(&mut client, &given).await?, integration: None }
    } else {
        let integration = arguments.source.document(false)?.into_integration();
        CheckConnectionRequest { name: String::new(), integration: Some(integration) }
    };
    let call = client.check_connection(target.request(request));
    let answer = progress::during("an executor connects", call).await?.into_inner();
    output.print(|| table::check(&answer, output.look), || view::Check::from(&answer))?;
    if answer.ok {
        return Ok(());
    }
    let mut failure =
        Failure::refused(if answer.error.is_empty() { "the check failed" } else { &answer.error });
    failure.violations = answer.violations.into_iter().map(|found| (found.path, found.text)).collect();
    Err(failure)
}
