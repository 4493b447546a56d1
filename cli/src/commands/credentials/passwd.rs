//! `tbmqctl credentials passwd`.

use std::path::PathBuf;

use clap::Args;
use tbmq_proto::control::ChangePasswordRequest;

use super::name_of;
use crate::{client::Target, failure::Failure, password, render::note};

#[derive(Debug, Args)]
#[command(after_help = "Passwords are asked for, unless a flag says where they are.")]
pub(crate) struct Arguments {
    /// Name or uid
    credential: String,
    /// File with the password of now; `-` is stdin
    #[arg(long, value_name = "FILE")]
    current_password_file: Option<PathBuf>,
    /// File with the new password; `-` is stdin
    #[arg(long, value_name = "FILE")]
    new_password_file: Option<PathBuf>,
}

pub(super) async fn run(arguments: Arguments, target: &Target) -> Result<(), Failure> {
    let Arguments { credential, current_password_file, new_password_file } = arguments;
    let stdin = |file: &Option<PathBuf>| file.as_ref().is_some_and(|file| file.as_os_str() == "-");
    if stdin(&current_password_file) && stdin(&new_password_file) {
        return Err(Failure::usage("stdin can be one of the two passwords").hint("put one into a file"));
    }
    let current_password =
        password::known(current_password_file.as_deref(), "Current password", "--current-password-file")?;
    let new_password = password::new(new_password_file.as_deref(), "New password", "--new-password-file")?;
    let mut client = target.credentials().await?;
    let name = name_of(target, &mut client, &credential).await?;
    let request = ChangePasswordRequest { name, current_password, new_password };
    client.change_password(target.request(request)).await?;
    note(&format!("the password of {credential} was changed"));
    Ok(())
}
