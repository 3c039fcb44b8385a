//! Secrets: keys and tokens that are sent to servers and shown to nobody.
//!
//! Contract: a [`Secret`] does not print, not even its length, and errors about it name the place that it comes from, never
//! what it holds. It fits into an HTTP header. What a server says goes into an error or a log only after `Secret::redact`; an answer's text
//! does too where the key is too long to be there by chance.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use crate::error::ModelError;

/// What stands for a secret in a text that held it.
const REDACTED: &str = "[secret]";
const BYTES_MAX: u64 = 8 * 1024;
/// A shorter one, such as `none` for a server that wants any, is a word that may stand in a text by chance.
const TELLING_BYTES_MIN: usize = 8;

/// A key or a token.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// A secret from an environment variable.
    ///
    /// # Errors
    /// [`ModelError::Secret`] when the variable is not set or holds no secret. What is no variable's name is not repeated: it may
    /// be the secret itself.
    pub fn from_env(variable: &str) -> Result<Self, ModelError> {
        if !is_variable(variable) {
            return Err(refused("the environment".to_owned(), "what should name a variable is no name"));
        }
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

    /// What a server said, without the secret.
    pub(crate) fn redact(&self, said: &str) -> String {
        // Within quotes these two stand with a backslash before them.
        let quoted = self.0.replace('\\', "\\\\").replace('"', "\\\"");
        said.replace(&*self.0, REDACTED).replace(&quoted, REDACTED)
    }

    /// The same for a text that was cut off: a part of the secret at its end goes too.
    pub(crate) fn redact_cut(&self, said: &str) -> String {
        let mut text = self.redact(said);
        let part = (1..self.0.len()).rev().find(|length| text.ends_with(&self.0[..*length]));
        text.truncate(text.len() - part.unwrap_or(0));
        text
    }

    /// Whether a text that holds it can only have it from here.
    pub(crate) fn is_telling(&self) -> bool {
        self.0.len() >= TELLING_BYTES_MIN
    }
}

/// Whether a word can name an environment variable.
pub(crate) fn is_variable(name: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    name.bytes().next().is_some_and(is_letter) && name.bytes().all(|byte| is_letter(byte) || byte.is_ascii_digit())
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
        assert!(is_variable("_K2") && is_variable("OPENAI_API_KEY"));
        for name in ["", KEY, "2K", "A B", "A=B", "Ä"] {
            let told = Secret::from_env(name).expect_err("no name").to_string();
            assert_eq!(told, "no key in the environment: what should name a variable is no name");
        }
    }

    #[test]
    fn it_does_not_print() {
        let secret = Secret::parse(KEY, String::new).expect("a key");
        assert_eq!(format!("{secret:?} {:#?}", Some(&secret)), "Secret(…) Some(\n    Secret(…),\n)");
        assert_eq!(secret.redact(&format!("bad key {KEY}, {KEY}!")), "bad key [secret], [secret]!");
        let odd = Secret::parse(r#"a"b\c"#, String::new).expect("a key");
        assert_eq!(odd.redact(r#"plain a"b\c, quoted "a\"b\\c""#), r#"plain [secret], quoted "[secret]""#);
    }

    #[test]
    fn half_a_secret_at_a_cut_is_taken_off() {
        let secret = Secret::parse(KEY, String::new).expect("a key");
        for (cut, expected) in [
            ("bad key sk-01234", "bad key "),
            ("bad key s", "bad key "),
            ("bad key sk-0123456789", "bad key [secret]"),
            ("bad keys", "bad key"),
            ("bad sk-01 key", "bad sk-01 key"),
            ("", ""),
        ] {
            assert_eq!(secret.redact_cut(cut), expected);
        }
    }
}
