//! `tbmqctl man`.

use std::path::PathBuf;

use clap::Args;

use crate::{failure::Failure, render::write};

#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  tbmqctl man | man -l -\n  tbmqctl man ~/.local/share/man/man1 && man tbmqctl-wait"
)]
pub(crate) struct Arguments {
    /// Folder for the pages of all commands; the main page goes to stdout when absent
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

pub(crate) fn run(arguments: Arguments, command: clap::Command) -> Result<(), Failure> {
    let Some(folder) = arguments.folder else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        return write(&String::from_utf8_lossy(&page));
    };
    std::fs::create_dir_all(&folder)
        .and_then(|()| clap_mangen::generate_to(command, &folder))
        .map_err(|error| Failure::usage(format!("can't write to {}: {error}", folder.display())))
}
