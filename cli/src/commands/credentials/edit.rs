//! `tbmqctl credentials edit`.

use clap::Args;
use tbmq_proto::control::{Credentials, UpdateCredentialsRequest};
use uuid::Uuid;

use super::{Client, get, print_one};
use crate::{client::Target, credential::Document, editor::Editing, failure::Failure, render::Output};

const HEADER: &str = "\
# Passwords are not shown; one that is written here (password: ...) replaces that which there is.
# A rule: allow|deny publish|subscribe|both [qos=0,1,2] [retain=yes|no] FILTER|regex:PATTERN
";

#[derive(Debug, Args)]
#[command(after_help = "\
The document is opened in $VISUAL, else $EDITOR, else vi. If it is refused it is opened again, with the reason in its first \
lines. Nothing is saved if somebody else has changed the credential meanwhile. When it does not work out, the file is \
kept and named.")]
pub(crate) struct Arguments {
    /// Name or uid
    credential: String,
}

pub(super) async fn run(arguments: Arguments, target: &Target, output: Output) -> Result<(), Failure> {
    let mut client = target.credentials().await?;
    let saved = get(target, &mut client, &arguments.credential).await?;
    let editing = Editing { header: HEADER, command: "tbmqctl credentials update" };
    let document = Document::portable(&saved).yaml()?;
    match editing.run(document, async |text| save(target, client.clone(), &saved, text).await).await? {
        Some(changed) => print_one(&changed, output),
        None => Ok(()),
    }
}

async fn save(
    target: &Target,
    mut client: Client,
    saved: &Credentials,
    text: &str,
) -> Result<Option<Credentials>, Failure> {
    let document = Document::parse(text)?;
    if document.uid.is_some_and(|uid| uid.to_string() != saved.uid) {
        return Err(Failure::usage("the uid can't be changed"));
    }
    if document == Document::portable(saved) {
        return Ok(None);
    }
    let mut credentials = document.into_credentials().map_err(Failure::usage)?;
    credentials.name.clone_from(&saved.name);
    credentials.etag.clone_from(&saved.etag);
    let request = UpdateCredentialsRequest {
        credentials: Some(credentials),
        request_id: Uuid::now_v7().to_string(),
        ..UpdateCredentialsRequest::default()
    };
    Ok(Some(client.update_credentials(target.request(request)).await?.into_inner()))
}
