//! Passwords: from a file, from stdin, or typed where nobody sees them. None is ever taken from the command line, which
//! other users of the machine can read.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    path::Path,
};

use crossterm::terminal::{disable_raw_mode, enable_raw_mode};

use crate::{failure::Failure, manifest};

/// Bytes that are typed.
const TYPED_BYTES_MAX: usize = 1024;

/// The first line of a file; `-` is stdin.
pub(crate) fn of_file(file: &Path) -> Result<String, Failure> {
    let text = manifest::text_at(file)?;
    let password = text.lines().next().unwrap_or_default();
    if password.is_empty() {
        return Err(Failure::usage(format!("there is no password in {}", file.display())));
    }
    Ok(password.to_owned())
}

/// One that is there: of a file, else typed once.
pub(crate) fn known(file: Option<&Path>, what: &str, flag: &str) -> Result<String, Failure> {
    match file {
        Some(file) => of_file(file),
        None => typed(what, flag),
    }
}

/// A new one: of a file, else typed twice.
pub(crate) fn new(file: Option<&Path>, what: &str, flag: &str) -> Result<String, Failure> {
    if let Some(file) = file {
        return of_file(file);
    }
    let password = typed(what, flag)?;
    if typed(&format!("{what} again"), flag)? != password {
        return Err(Failure::usage("these are two passwords; nothing was done"));
    }
    Ok(password)
}

fn typed(what: &str, flag: &str) -> Result<String, Failure> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::usage(format!("{what}: there is nobody to ask"))
            .hint(format!("{flag} FILE reads it from a file, {flag} - from stdin")));
    }
    let unread = |error: io::Error| Failure::usage(format!("can't read a password: {error}"));
    let quiet = Quiet::begin().map_err(unread)?;
    write!(io::stderr(), "{what}: ")?;
    let typed = line(io::stdin().lock()).map_err(unread);
    drop(quiet);
    writeln!(io::stderr())?;
    match typed? {
        Some(password) if !password.is_empty() => Ok(password),
        _ => Err(Failure::usage("no password was typed; nothing was done")),
    }
}

/// The terminal shows nothing of what is typed until this is dropped.
struct Quiet;

impl Quiet {
    fn begin() -> io::Result<Self> {
        enable_raw_mode().map(|()| Self)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // Of a terminal that is gone there is nothing to restore.
        disable_raw_mode().ok();
    }
}

/// What is typed up to the end of the line, key by key; `None` when it was given up.
fn line(keys: impl BufRead) -> io::Result<Option<String>> {
    let mut typed = Vec::new();
    for key in keys.bytes() {
        match key? {
            b'\r' | b'\n' => break,
            // Ctrl-C and Ctrl-D.
            3 | 4 => return Ok(None),
            // Backspace, which takes a whole character.
            8 | 127 => while typed.pop().is_some_and(|byte: u8| byte & 0xc0 == 0x80) {},
            _ if typed.len() >= TYPED_BYTES_MAX => return Err(io::Error::other("it is too long")),
            byte => typed.push(byte),
        }
    }
    String::from_utf8(typed).map(Some).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_typed_with_corrections() {
        let typed = |keys: &str| line(keys.as_bytes()).unwrap();
        assert_eq!(typed("abc\rrest").as_deref(), Some("abc"));
        assert_eq!(typed("a\u{7f}\u{7f}bß\u{7f}c\n").as_deref(), Some("bc"));
        assert_eq!(typed("ab\u{3}"), None);
        assert!(line("x".repeat(2000).as_bytes()).is_err());
    }

    #[test]
    fn a_file_has_it_in_its_first_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), " p w \nmore\n").unwrap();
        assert_eq!(of_file(file.path()).unwrap(), " p w ");
        std::fs::write(file.path(), "\n").unwrap();
        assert!(of_file(file.path()).unwrap_err().message.starts_with("there is no password in "));
    }
}
