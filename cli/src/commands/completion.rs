//! `tbmqctl completion SHELL`.

use clap::Args;
use clap_complete::Shell;

use crate::failure::Failure;

#[derive(Clone, Copy, Debug, Args)]
#[command(after_help = "For bash: source <(tbmqctl completion bash)")]
pub(crate) struct Arguments {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(arguments: Arguments, command: &mut clap::Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, command, "tbmqctl", &mut script);
    std::io::Write::write_all(&mut std::io::stdout(), &script)?;
    Ok(())
}
