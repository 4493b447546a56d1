//! What the user sees on stdout: tables for people, JSON and YAML for programs, names for scripts.

pub(crate) mod json;
pub(crate) mod portable;
pub(crate) mod table;

use std::io::{self, IsTerminal, Write};

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// The form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// For people
    Table,
    /// For people with a wide screen
    Wide,
    /// For programs
    Json,
    /// For programs and editors
    Yaml,
    /// Only names, one a line, for scripts
    Name,
}

/// How tables look.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Look {
    /// With the columns that not everybody needs.
    pub(crate) wide: bool,
    /// States have colours.
    pub(crate) coloured: bool,
}

/// Prints to stdout in one form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) format: Format,
    pub(crate) look: Look,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        Self { format, look: Look { wide: format == Format::Wide, coloured: colours(&io::stdout()) } }
    }

    /// Refuses `-o name` for what has no names.
    pub(crate) fn without_names(self) -> Result<(), Failure> {
        match self.format {
            Format::Name => Err(Failure::usage("what this command prints has no names")
                .hint("-o name is for lists and for what is created")),
            _ => Ok(()),
        }
    }

    /// Prints a value that has no name: `table` makes the form for people, `view` what programs get.
    pub(crate) fn print<V: Serialize>(
        self,
        table: impl FnOnce() -> String,
        view: impl FnOnce() -> V,
    ) -> Result<(), Failure> {
        self.without_names()?;
        self.print_named(table, Vec::new, view)
    }

    /// Prints a value: `table` makes the form for people, `names` those for scripts, `view` what programs get.
    pub(crate) fn print_named<V: Serialize>(
        self,
        table: impl FnOnce() -> String,
        names: impl FnOnce() -> Vec<String>,
        view: impl FnOnce() -> V,
    ) -> Result<(), Failure> {
        let bug = |error: &dyn std::fmt::Display| Failure::bug(error.to_string());
        let mut text = match self.format {
            Format::Table | Format::Wide => table(),
            Format::Name => names().into_iter().map(|name| name + "\n").collect(),
            Format::Json => serde_json::to_string_pretty(&view()).map_err(|error| bug(&error))?,
            Format::Yaml => {
                // By way of a JSON value, which knows how to take a raw configuration apart.
                let value = serde_json::to_value(view()).map_err(|error| bug(&error))?;
                serde_norway::to_string(&value).map_err(|error| bug(&error))?
            }
        };
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        write(&text)
    }

    /// Prints one of many things as it comes: a line for people, its name, a line of JSON, or a YAML document. Nothing
    /// is printed of what has no form of this kind.
    pub(crate) fn print_item<V: Serialize>(
        self,
        line: impl FnOnce() -> String,
        name: impl FnOnce() -> Option<String>,
        view: impl FnOnce() -> Option<V>,
    ) -> Result<(), Failure> {
        let bug = |error: &dyn std::fmt::Display| Failure::bug(error.to_string());
        let text = match self.format {
            Format::Table | Format::Wide => line(),
            Format::Name => match name() {
                Some(name) => name + "\n",
                None => return Ok(()),
            },
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

/// Whether what goes there may have colours: to a terminal, unless the environment says no (no-color.org).
pub(crate) fn colours(stream: &impl IsTerminal) -> bool {
    let no = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
    stream.is_terminal() && !no && !dumb
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
