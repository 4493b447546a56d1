//! What the user sees on stdout: tables for people, JSON and YAML for programs.

pub(crate) mod json;
pub(crate) mod portable;
pub(crate) mod table;

use std::io::{self, Write};

use serde::Serialize;

use crate::failure::Failure;

/// The form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For programs and editors.
    Yaml,
}

/// Prints to stdout in one form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) format: Format,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        Self { format }
    }

    /// Prints a value: `table` makes the form for people, `view` what programs get.
    pub(crate) fn print<V: Serialize>(
        self,
        table: impl FnOnce() -> String,
        view: impl FnOnce() -> V,
    ) -> Result<(), Failure> {
        let mut text = match self.format {
            Format::Table => table(),
            Format::Json => {
                serde_json::to_string_pretty(&view()).map_err(|error| Failure::bug(error.to_string()))?
            }
            Format::Yaml => {
                // By way of a JSON value, which knows how to take a raw configuration apart.
                let value = serde_json::to_value(view()).map_err(|error| Failure::bug(error.to_string()))?;
                serde_norway::to_string(&value).map_err(|error| Failure::bug(error.to_string()))?
            }
        };
        if !text.ends_with('\n') {
            text.push('\n');
        }
        write(&text)
    }
}

impl Output {
    /// Prints one of many things as it comes: a line for people, a line of JSON, or a YAML document. Nothing is printed
    /// of what has no form of this kind.
    pub(crate) fn print_item<V: Serialize>(
        self,
        line: impl FnOnce() -> String,
        view: impl FnOnce() -> Option<V>,
    ) -> Result<(), Failure> {
        let bug = |error: &dyn std::fmt::Display| Failure::bug(error.to_string());
        let text = match self.format {
            Format::Table => line(),
            Format::Json => match view() {
                Some(view) => serde_json::to_string(&view).map_err(|error| bug(&error))? + "\n",
                None => return Ok(()),
            },
            Format::Yaml => match view() {
                Some(view) => {
                    let value = serde_json::to_value(view).map_err(|error| bug(&error))?;
                    format!("---\n{}", serde_norway::to_string(&value).map_err(|error| bug(&error))?)
                }
                None => return Ok(()),
            },
        };
        write(&text)
    }
}

/// Prints text to stdout as it is and sees that it leaves at once.
pub(crate) fn write(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// Tells the user something that is not data.
pub(crate) fn note(text: &str) {
    // With stderr closed there is nobody to tell.
    writeln!(io::stderr(), "{text}").ok();
}
