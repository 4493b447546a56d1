//! `tbmqctl edit NAME`: one integration in an editor.

use clap::Args;
use tbmq_proto::control::{GetIntegrationRequest, Integration};

use crate::{
    client::Target,
    document::Document,
    editor::Editing,
    failure::Failure,
    inventory::{Compared, Inventory},
    render::{Output, json as view, portable::Portable, table},
};

const HEADER: &str = "# A secret that is shown as ******** stays as it is.\n";

#[derive(Debug, Args)]
#[command(after_help = "\
The document is opened in $VISUAL, else $EDITOR, else vi. If it is refused it is opened again, with the reason in its first \
lines. Nothing is saved if somebody else has changed the integration meanwhile. When it does not work out, the file is \
kept and named.

Example:
  EDITOR='code --wait' tbmqctl edit demo")]
pub(crate) struct Arguments {
    /// Name or uid
    integration: String,
}

pub(crate) async fn run(arguments: Arguments, target: &Target, output: Output) -> Result<(), Failure> {
    let mut client = target.integrations().await?;
    let name = target.name_of(&mut client, &arguments.integration).await?;
    let request = GetIntegrationRequest { name, ..Default::default() };
    let saved = client.get_integration(target.request(request)).await?.into_inner();
    let inventory = Inventory::of(target, client, vec![saved.clone()]).await?;
    let editing = Editing { header: HEADER, command: "tbmqctl apply" };
    let changed = editing
        .run(Portable::from(&saved).yaml()?, async |text| save(&inventory, &saved, text).await)
        .await?;
    let Some(changed) = changed else { return Ok(()) };
    output.print_named(
        || table::integrations(std::slice::from_ref(&changed), output.look),
        || vec![changed.name.clone()],
        || view::Integration::from(&changed),
    )
}

/// Saves what differs; nothing if nothing does.
async fn save(
    inventory: &Inventory,
    saved: &Integration,
    text: &str,
) -> Result<Option<Integration>, Failure> {
    let document = Document::parse(text).map_err(|problems| {
        let mut failure = Failure::usage("this does not describe an integration");
        failure.violations = problems;
        failure
    })?;
    if document.uid.is_some_and(|uid| uid.to_string() != saved.uid) {
        return Err(Failure::usage("the uid can't be changed"));
    }
    let Compared { difference, .. } = inventory.difference(&document, saved).await?;
    if difference.fields.is_empty() {
        return Ok(None);
    }
    inventory.change(&document, saved, &difference.fields, false).await.map(Some)
}
