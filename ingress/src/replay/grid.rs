//! A table of words, written as text for a terminal or as HTML.

use std::fmt::{self, Write as _};

/// A table: the first column names a row, the others are numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grid {
    /// What the columns are called.
    pub head: Vec<String>,
    /// The rows, as long as the head.
    pub rows: Vec<Vec<String>>,
}

impl fmt::Display for Grid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = || std::iter::once(&self.head).chain(&self.rows);
        let width = |column: usize| lines().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = (0..self.head.len()).map(|column| width(column).unwrap_or_default()).collect();
        for line in lines() {
            for (column, (cell, &width)) in line.iter().zip(&widths).enumerate() {
                if column == 0 { write!(f, "{cell:<width$}")? } else { write!(f, "  {cell:>width$}")? }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl Grid {
    /// Writes it as an HTML table.
    pub fn write_html(&self, html: &mut String) {
        html.push_str("<div class=\"wide\"><table><thead><tr>");
        for cell in &self.head {
            let _infallible = write!(html, "<th scope=\"col\">{}</th>", escape(cell));
        }
        html.push_str("</tr></thead><tbody>\n");
        for row in &self.rows {
            html.push_str("<tr>");
            for (column, cell) in row.iter().enumerate() {
                let (open, close) = if column == 0 { ("<th scope=\"row\">", "</th>") } else { ("<td>", "</td>") };
                let _infallible = write!(html, "{open}{}{close}", escape(cell));
            }
            html.push_str("</tr>\n");
        }
        html.push_str("</tbody></table></div>\n");
    }
}

/// A text as it may stand in HTML and XML, in an attribute too. Characters that neither allows are left out.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {}
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_cells_escaped() {
        let cells = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let grid = Grid { head: cells(["setting", "é"]), rows: vec![cells(["<0.9>", "12 %"])] };
        assert_eq!(grid.to_string(), "setting     é\n<0.9>    12 %\n");
        let mut html = String::new();
        grid.write_html(&mut html);
        assert!(html.contains("<th scope=\"row\">&lt;0.9&gt;</th><td>12 %</td>"), "{html}");
        assert_eq!(escape("a\u{0}\u{1b}\n&'\""), "a\n&amp;&#39;&quot;");
    }
}
