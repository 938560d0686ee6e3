//! Columns of text, each as wide as its widest cell.

/// How a column is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A table with a line of headings.
pub(super) struct Table {
    sides: Vec<Side>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(columns: &[(&str, Side)]) -> Self {
        Self {
            sides: columns.iter().map(|&(_, side)| side).collect(),
            rows: vec![columns.iter().map(|&(heading, _)| heading.to_owned()).collect()],
        }
    }

    /// Adds a row, a cell for each column.
    pub(super) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.sides.len(), "a cell for each column");
        self.rows.push(cells);
    }

    /// The lines, indented, with a blank line before them; nothing if there is no row.
    pub(super) fn write(&self, out: &mut String) {
        if self.rows.len() < 2 {
            return;
        }
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..self.sides.len()).map(width).collect();
        out.push('\n');
        for row in &self.rows {
            let mut line = String::from(" ");
            for ((cell, &width), side) in row.iter().zip(&widths).zip(&self.sides) {
                match side {
                    Side::Left => line.push_str(&format!(" {cell:<width$} ")),
                    Side::Right => line.push_str(&format!(" {cell:>width$} ")),
                }
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_aligned_by_characters() {
        let mut table = Table::new(&[("NAME", Side::Left), ("BYTES", Side::Right)]);
        let mut out = String::new();
        table.write(&mut out);
        assert_eq!(out, "");
        table.row(vec!["grün".into(), "1".into()]);
        table.row(vec!["b".into(), "1000000".into()]);
        table.write(&mut out);
        assert_eq!(out, "\n  NAME    BYTES\n  grün        1\n  b     1000000\n");
    }
}
