//! The notes of an article, which are its metadata, as lines that people edit: `name: value` for each.
//!
//! A line cannot say everything that metadata may be, such as a value of two lines. What does not come back from its lines as it was is not
//! edited here.

use std::collections::BTreeMap;

use crate::http::error::ApiError;

/// Why notes are not edited.
pub(super) const UNFIT: &str =
    "some do not fit into lines of the form name: value; PUT /v1/articles/{id} and turnflow kb import change them";

/// Notes as lines.
pub(super) fn written(notes: &BTreeMap<String, String>) -> String {
    let lines = notes.iter().map(|(name, value)| format!("{name}: {value}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Whether notes come back from their lines as they were.
pub(super) fn fit(notes: &BTreeMap<String, String>) -> bool {
    let lines = written(notes);
    // Browsers make a line feed of a carriage return.
    !lines.contains('\r') && read(&lines).is_ok_and(|read| read == *notes)
}

/// Notes from their lines.
pub(super) fn read(lines: &str) -> Result<BTreeMap<String, String>, ApiError> {
    let mut notes = BTreeMap::new();
    for line in lines.lines().filter(|line| !line.trim().is_empty()) {
        let (name, value) = line.split_once(':').ok_or_else(|| {
            ApiError::invalid("notes", format!("{line:?}: a line of the form name: value is expected"))
        })?;
        if notes.insert(name.trim().to_owned(), value.trim().to_owned()).is_some() {
            return Err(ApiError::invalid("notes", format!("{line:?}: there is a line of that name above it")));
        }
    }
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_fit_that_come_back_from_their_lines() {
        let check = |notes: &[(&str, &str)], expected: bool| {
            let notes = notes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            assert_eq!(fit(&notes), expected, "{notes:?}");
        };
        check(&[], true);
        check(&[("audience", "customers"), ("source", "https://shop.example: a page"), ("draft", "")], true);
        check(&[("dc:title", "Delivery")], false);
        check(&[("note", "two\nlines")], false);
        check(&[("note", "two: lines\nb: c")], false);
        check(&[("note", "two\rlines")], false);
        check(&[("note", " indented")], false);
        check(&[(" ", "")], false);
    }

    #[test]
    fn lines_that_are_no_notes_are_refused() {
        for lines in ["audience", "a: 1\na : 2"] {
            assert_eq!(read(lines).expect_err(lines).param.as_deref(), Some("notes"));
        }
    }
}
