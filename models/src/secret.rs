//! Secrets: keys and tokens that are sent to servers and shown to nobody.
//!
//! Contract: a [`Secret`] does not print, not even its length, and errors about it name the place that it comes from, never
//! what it holds. It fits into an HTTP header. What a server says is shown only after `Secret::redact`.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use crate::error::ModelError;

/// What stands for a secret in a text that held it.
const REDACTED: &str = "[secret]";
const BYTES_MAX: u64 = 8 * 1024;

/// A key or a token.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// A secret from an environment variable.
    ///
    /// # Errors
    /// [`ModelError::Secret`] when the variable is not set or holds no secret.
    pub fn from_env(variable: &str) -> Result<Self, ModelError> {
        let place = || format!("the environment variable {variable}");
        match std::env::var(variable) {
            Ok(text) => Self::parse(&text, place),
            Err(std::env::VarError::NotPresent) => Err(refused(place(), "it is not set")),
            Err(std::env::VarError::NotUnicode(_)) => Err(refused(place(), "it is not UTF-8")),
        }
    }

    /// A secret from a file; space and line ends around it do not count.
    ///
    /// # Errors
    /// [`ModelError::MissingFile`], [`ModelError::Io`] when the file may not be read, or [`ModelError::Secret`] when it holds
    /// no secret.
    pub fn from_file(path: &Path) -> Result<Self, ModelError> {
        let failed = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => ModelError::MissingFile { path: path.to_owned() },
            _ => ModelError::io("read the key file", path)(error),
        };
        let mut bytes = Vec::new();
        File::open(path).map_err(failed)?.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
        let place = || path.display().to_string();
        if bytes.len() as u64 > BYTES_MAX {
            return Err(refused(place(), "it is longer than 8 KiB"));
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| refused(place(), "it is not UTF-8"))?;
        Self::parse(text, place)
    }

    fn parse(text: &str, place: impl FnOnce() -> String) -> Result<Self, ModelError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(refused(place(), "it is empty"));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(refused(place(), "it must be one word of printable ASCII"));
        }
        Ok(Self(text.into()))
    }

    /// The value of an `Authorization` header.
    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// What a server sent, without the secret.
    pub(crate) fn redact(&self, sent: Vec<u8>) -> Vec<u8> {
        if !sent.windows(self.0.len()).any(|window| window == self.0.as_bytes()) {
            return sent;
        }
        String::from_utf8_lossy(&sent).replace(&*self.0, REDACTED).into_bytes()
    }
}

fn refused(place: String, reason: &'static str) -> ModelError {
    ModelError::Secret { place, reason }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;

    const KEY: &str = "sk-0123456789";

    #[test]
    fn a_file_holds_one_word() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("key");
        let read = |content: &[u8]| {
            std::fs::write(&path, content).expect("written");
            Secret::from_file(&path).map_err(|error| chain(&error).replace(&path.display().to_string(), "FILE"))
        };
        for content in [KEY.to_owned(), format!("{KEY}\n"), format!(" {KEY}\r\n\n")] {
            assert_eq!(read(content.as_bytes()).map(|secret| secret.bearer()), Ok(format!("Bearer {KEY}")));
        }
        for (content, expected) in [
            (&b""[..], "no key in FILE: it is empty"),
            (b" \n", "no key in FILE: it is empty"),
            (b"sk-1\nsk-2", "no key in FILE: it must be one word of printable ASCII"),
            ("clé".as_bytes(), "no key in FILE: it must be one word of printable ASCII"),
            (b"\xff\xfe", "no key in FILE: it is not UTF-8"),
            (&[b'k'; 9000], "no key in FILE: it is longer than 8 KiB"),
        ] {
            assert_eq!(read(content).map(|_| ()), Err(expected.to_owned()));
        }
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(Secret::from_file(&path).expect_err("gone").to_string(), format!("missing file {}", path.display()));
        let folder = chain(&Secret::from_file(dir.path()).expect_err("a folder"));
        assert!(folder.starts_with("cannot read the key file "), "{folder}");
    }

    #[test]
    fn a_variable_that_is_not_set_is_told_by_name() {
        let told = Secret::from_env("TURNFLOW_NO_SUCH_KEY").expect_err("not set").to_string();
        assert_eq!(told, "no key in the environment variable TURNFLOW_NO_SUCH_KEY: it is not set");
    }

    #[test]
    fn it_does_not_print() {
        let secret = Secret::parse(KEY, String::new).expect("a key");
        assert_eq!(format!("{secret:?} {:#?}", Some(&secret)), "Secret(…) Some(\n    Secret(…),\n)");
        assert_eq!(secret.redact(format!("bad key {KEY}, {KEY}!").into()), b"bad key [secret], [secret]!");
    }
}
