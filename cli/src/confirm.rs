//! Questions before what can't be taken back.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::failure::Failure;

/// Asks on a terminal; where nobody can be asked, `--yes` must have been given.
///
/// # Errors
/// When the answer is not yes.
pub(crate) fn confirm(question: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(
            Failure::usage(format!("{question} There is nobody to ask")).hint("--yes answers in advance")
        );
    }
    write!(io::stderr(), "{question} [y/N] ")?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        Ok(())
    } else {
        Err(Failure::usage("nothing was done"))
    }
}
