//! A sign of life on a terminal while something takes long.

use std::{
    io::{self, IsTerminal, Write},
    pin::pin,
    time::Duration,
};

use crossterm::{
    cursor::MoveToColumn,
    queue,
    style::Print,
    terminal::{Clear, ClearType},
};
use tokio::time::{Instant, MissedTickBehavior};

/// What takes less long needs no sign.
const PATIENCE: Duration = Duration::from_millis(700);

const PERIOD: Duration = Duration::from_millis(100);

const FRAMES: [char; 10] = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];

/// Waits for `work`. If that takes long and stderr is a terminal, one line there says what is waited for and how long; it
/// is gone when the work is done.
pub(crate) async fn during<T>(what: &str, work: impl Future<Output = T>) -> T {
    if !io::stderr().is_terminal() {
        return work.await;
    }
    let mut work = pin!(work);
    let began = Instant::now();
    let mut ticks = tokio::time::interval_at(began + PATIENCE, PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut line = Line { is_shown: false };
    let mut frame = 0;
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            _ = ticks.tick() => {
                line.show(&format!("{} {what} ({} s)", FRAMES[frame], began.elapsed().as_secs()));
                frame = (frame + 1) % FRAMES.len();
            }
        }
    }
}

/// Is gone when dropped, also when the work was given up.
struct Line {
    is_shown: bool,
}

impl Line {
    fn show(&mut self, text: &str) {
        self.is_shown = true;
        let mut stderr = io::stderr();
        // A terminal that can't be written to shows nothing.
        queue!(stderr, MoveToColumn(0), Print(text), Clear(ClearType::UntilNewLine)).ok();
        stderr.flush().ok();
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.is_shown {
            let mut stderr = io::stderr();
            queue!(stderr, MoveToColumn(0), Clear(ClearType::CurrentLine)).ok();
            stderr.flush().ok();
        }
    }
}
