//! A screen of our own on the terminal, drawn anew each time.

use std::io::{self, Write};

use crossterm::{
    cursor::{Hide, MoveTo, Show},
    execute, queue,
    style::Print,
    terminal::{
        Clear, ClearType, DisableLineWrap, EnableLineWrap, EnterAlternateScreen, LeaveAlternateScreen, size,
    },
};

use crate::failure::Failure;

/// What was on the terminal before comes back when it is dropped.
#[derive(Debug)]
pub(crate) struct Screen;

impl Screen {
    pub(crate) fn enter() -> Result<Self, Failure> {
        // Made first, so that an error half-way is undone as well.
        let screen = Self;
        execute!(io::stdout(), EnterAlternateScreen, Hide, DisableLineWrap)?;
        Ok(screen)
    }

    /// Shows as many lines as there is room for.
    #[expect(clippy::unused_self, reason = "there is nothing to draw on without the screen")]
    pub(crate) fn draw<'a>(
        &mut self,
        head: impl Iterator<Item = &'a str>,
        table: &'a str,
    ) -> Result<(), Failure> {
        let rows = size().map_or(0, |(_, rows)| usize::from(rows));
        // Some terminals do not know their size.
        let rows = if rows == 0 { 24 } else { rows };
        let mut stdout = io::stdout().lock();
        queue!(stdout, MoveTo(0, 0))?;
        let lines = head.chain([""]).chain(table.lines()).take(rows);
        for (index, line) in lines.enumerate() {
            queue!(stdout, MoveTo(0, index as u16), Print(line), Clear(ClearType::UntilNewLine))?;
        }
        queue!(stdout, Clear(ClearType::FromCursorDown))?;
        stdout.flush()?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        execute!(io::stdout(), EnableLineWrap, Show, LeaveAlternateScreen).ok();
    }
}
