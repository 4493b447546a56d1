//! What happened, line by line: a hash of all lines, and the lines themselves if they are wanted.

use std::fmt::{self, Write};

use tbmq_integration::Millis;

/// A trace. Two runs of one seed have equal traces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    hash: u64,
    length: u64,
    lines: Option<Vec<String>>,
    echo: String,
}

impl Trace {
    /// An empty trace, which keeps its lines if asked to.
    pub fn new(keeps_lines: bool) -> Self {
        Self { hash: FNV_OFFSET, length: 0, lines: keeps_lines.then(Vec::new), echo: String::new() }
    }

    /// Adds a line.
    pub(crate) fn line(&mut self, now: Millis, what: fmt::Arguments<'_>) {
        self.echo.clear();
        // Writing to a string can't fail.
        write!(self.echo, "{} {what}", now.0).ok();
        for byte in self.echo.bytes().chain([b'\n']) {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
        }
        self.length += 1;
        if let Some(lines) = &mut self.lines {
            lines.push(self.echo.clone());
        }
    }

    /// FNV-1a over all lines.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Number of lines.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The lines, if they were kept.
    pub fn lines(&self) -> &[String] {
        self.lines.as_deref().unwrap_or_default()
    }
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;
