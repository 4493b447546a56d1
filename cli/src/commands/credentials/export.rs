//! `tbmqctl credentials export`.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::PathBuf,
};

use clap::Args;
use tbmq_proto::control::{Credentials, credentials::Proof};

use super::Filter;
use crate::{
    client::Target,
    credential::Document,
    failure::Failure,
    render::{Format, Output, note},
};

/// Credentials asked for in one call.
const PAGE_SIZE: i32 = 1000;

#[derive(Debug, Args)]
#[command(after_help = "\
One YAML document or, with -o json, one line of JSON per credential, as they come: there may be millions. Passwords, \
hashes and keys are not exported, as the server shows them to nobody; a password must be added before `import` takes a \
document of one that has a password.

Examples:
  tbmqctl credentials export > credentials.yaml
  tbmqctl credentials export --type x509 -o json -f x509.jsonl")]
pub(crate) struct Arguments {
    #[command(flatten)]
    filter: Filter,
    /// File to be written instead of stdout
    #[arg(short, long)]
    file: Option<PathBuf>,
}

pub(super) async fn run(arguments: Arguments, target: &Target, output: Output) -> Result<(), Failure> {
    output.without_names()?;
    let mut to: Box<dyn Write> = match &arguments.file {
        Some(file) => Box::new(File::create(file).map_err(|error| unwritten(&arguments, &error))?),
        None => Box::new(std::io::stdout()),
    };
    to = Box::new(BufWriter::new(to));
    let mut client = target.credentials().await?;
    let (mut count, mut without, mut page_token) = (0_u64, 0_u64, String::new());
    loop {
        let request = arguments.filter.request(PAGE_SIZE, page_token);
        let page = client.list_credentials(target.request(request)).await?.into_inner();
        for one in &page.credentials {
            let text = text(one, output.format)?;
            to.write_all(text.as_bytes()).map_err(|error| unwritten(&arguments, &error))?;
            count += 1;
            without += u64::from(has_secret(one));
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    to.flush().map_err(|error| unwritten(&arguments, &error))?;
    note(&format!("{count} credentials, {without} of them without the passwords or keys that they have"));
    Ok(())
}

fn text(one: &Credentials, format: Format) -> Result<String, Failure> {
    let document = Document::portable(one);
    if format == Format::Json {
        let line = serde_json::to_string(&document).map_err(|error| Failure::bug(error.to_string()))?;
        return Ok(line + "\n");
    }
    Ok(format!("---\n{}", document.yaml()?))
}

fn has_secret(one: &Credentials) -> bool {
    match &one.proof {
        Some(Proof::Basic(basic)) => basic.has_password,
        Some(Proof::Scram(_)) => true,
        Some(Proof::X509(_)) | None => false,
    }
}

fn unwritten(arguments: &Arguments, error: &std::io::Error) -> Failure {
    match &arguments.file {
        Some(file) => Failure::usage(format!("can't write to {}: {error}", file.display())),
        None => Failure::from(std::io::Error::from(error.kind())),
    }
}
