//! The version of what is on disk.
//!
//! A database carries one number, as decimal text, in its `meta` column. It is written when the database is new, and
//! another number, or anything that is no number, is refused. There is no migration: a change of any stored type
//! counts [`SCHEMA_VERSION`] up, but for a flag at its end that is not set where a value ends before it.

/// The version that this build reads and writes.
pub(crate) const SCHEMA_VERSION: u32 = 6;
/// Where the version is kept in the `meta` column.
pub(crate) const SCHEMA_KEY: &[u8] = b"schema-version";
/// A version that is longer than this is shown cut off, in bytes.
const SHOWN_BYTES_MAX: usize = 32;

/// Whether this build may open a database.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is new, or of this version.
    Readable,
    /// Something else wrote it.
    Unknown {
        /// What it says of itself, printable.
        found: String,
    },
}

/// The version as it is stored.
pub(crate) fn version_text() -> Vec<u8> {
    SCHEMA_VERSION.to_string().into_bytes()
}

/// Judges a database by the version it carries, and by whether it holds anything.
pub(crate) fn judge(version: Option<&[u8]>, is_empty: bool) -> Verdict {
    match version {
        None if is_empty => Verdict::Readable,
        None => Verdict::Unknown { found: "none".to_owned() },
        Some(version) if version == version_text() => Verdict::Readable,
        Some(version) => {
            let shown = &version[..version.len().min(SHOWN_BYTES_MAX)];
            Verdict::Unknown { found: shown.escape_ascii().to_string() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_and_known_databases_are_readable() {
        let check = |version: Option<&[u8]>, is_empty: bool, unknown: Option<&str>| {
            let expected = unknown.map_or(Verdict::Readable, |found| Verdict::Unknown { found: found.to_owned() });
            assert_eq!(judge(version, is_empty), expected, "{version:?}");
        };
        check(None, true, None);
        check(None, false, Some("none"));
        check(Some(b"6"), false, None);
        check(Some(b"06"), false, Some("06"));
        check(Some(b"4"), false, Some("4"));
        check(Some(b"7"), true, Some("7"));
        check(Some(b"\xff"), false, Some("\\xff"));
        check(Some(&[b'7'; 100]), false, Some(&"7".repeat(SHOWN_BYTES_MAX)));
    }
}
