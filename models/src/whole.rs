//! Writes a file in one piece: whoever reads it finds what was there before, or all of what is there now.

use std::path::Path;

use crate::error::ModelError;

/// Writes beside the file and then takes its place.
///
/// # Errors
/// [`ModelError::Io`].
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A folder of its own, so that the file gets the rights that any other would.
    let staging = tempfile::Builder::new().prefix(".new-").tempdir_in(folder);
    let staging = staging.map_err(ModelError::io("create a folder in", folder))?;
    let written = staging.path().join("file");
    std::fs::write(&written, bytes).map_err(ModelError::io("write", &written))?;
    std::fs::rename(&written, path).map_err(ModelError::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_in_one_piece_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a.router");
        for bytes in [&b"one"[..], b"two"] {
            write_whole(&path, bytes).expect("written");
            assert_eq!(std::fs::read(&path).expect("there"), bytes);
        }
        // What is open goes on to be what it was.
        let before = std::fs::File::open(&path).expect("there");
        write_whole(&path, b"three").expect("written");
        assert_eq!(std::io::read_to_string(before).expect("read"), "two");
        std::fs::create_dir(dir.path().join("taken")).expect("a folder");
        write_whole(&dir.path().join("taken"), b"four").expect_err("a folder is in its place");
        write_whole(&dir.path().join("nowhere/file"), b"five").expect_err("there is no such folder");
        assert_eq!(std::fs::read_dir(dir.path()).expect("a list").count(), 2);
    }
}
