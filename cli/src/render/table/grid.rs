//! Columns apart by spaces.

use comfy_table::{Cell, Color, ContentArrangement, Table, presets};

/// Columns whose words have colours.
const STATES: &[&str] = &["PHASE", "STATE", "RESULT", "LIVE"];

/// One line per row under the header, if there is one.
pub(super) fn grid(header: &[&str], rows: impl Iterator<Item = Vec<String>>, coloured: bool) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    // Whoever prints it knows whether it goes to a terminal.
    if coloured {
        table.enforce_styling()
    } else {
        table.force_no_tty()
    };
    if !header.is_empty() {
        table.set_header(header);
    }
    for row in rows {
        // One line per thing, and nothing that moves the cursor.
        let cells = row.iter().map(|cell| cell.replace(|c: char| c.is_control(), " "));
        table.add_row(cells.enumerate().map(|(column, text)| {
            let is_state = header.get(column).is_some_and(|name| STATES.contains(name));
            let colour = if is_state && coloured { colour(&text) } else { None };
            let cell = Cell::new(text);
            match colour {
                Some(colour) => cell.fg(colour),
                None => cell,
            }
        }));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<_> = table.lines().map(|line| line.trim_end().to_owned() + "\n").collect();
    lines.concat()
}

/// Of a word that tells how something is.
pub(super) fn colour(word: &str) -> Option<Color> {
    match word {
        "ACTIVE" | "STARTED" | "APPLIED" | "OK" | "ok" | "yes" => Some(Color::Green),
        "PENDING" | "STALLED" => Some(Color::Yellow),
        "FAILED" | "failed" | "no" => Some(Color::Red),
        "DISABLED" | "UNKNOWN" => Some(Color::DarkGrey),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_on_states_only_and_keep_the_columns() {
        let rows = || [vec!["ACTIVE".to_owned(), "ACTIVE".to_owned()]].into_iter();
        let plain = grid(&["NAME", "PHASE"], rows(), false);
        assert_eq!(plain, "NAME    PHASE\nACTIVE  ACTIVE\n");
        let coloured = grid(&["NAME", "PHASE"], rows(), true);
        let line = coloured.lines().nth(1).unwrap();
        assert!(line.starts_with("ACTIVE  \u{1b}["), "{line:?}");
        assert_eq!(line.matches('\u{1b}').count(), 2, "{line:?}");
    }

    #[test]
    fn what_would_move_the_cursor_is_a_space() {
        assert_eq!(grid(&[], [vec!["a\u{1b}[2J\nb".to_owned()]].into_iter(), true), "a [2J b\n");
    }
}
