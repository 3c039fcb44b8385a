//! Secrets: keys and tokens that are sent to servers and shown to nobody.
//!
//! Contract: a [`Secret`] does not print, not even its length, and errors about it name the place that it comes from, never
//! what it holds. It fits into an HTTP header. What a server says goes into an error or a log only after `Secret::redact`; an answer's text
//! goes through a [`Redactor`], which lets a secret pass that is so short that it may be there by chance.

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
        said.replace(&*self.0, REDACTED).replace(&self.quoted(), REDACTED)
    }

    /// The same for a text that was cut off: a part of the secret at its end goes too.
    pub(crate) fn redact_cut(&self, said: &str) -> String {
        let mut text = self.redact(said);
        text.truncate(text.len() - self.begun(&text));
        text
    }

    /// Length of the longest end of a text that the secret, as it is or within quotes, begins with, in bytes.
    fn begun(&self, text: &str) -> usize {
        let begins = |whole: &str| (1..whole.len()).rev().find(|&bytes| text.ends_with(&whole[..bytes]));
        begins(&self.0).max(begins(&self.quoted())).unwrap_or(0)
    }

    /// The secret as it stands within quotes, where these two have a backslash before them.
    fn quoted(&self) -> String {
        self.0.replace('\\', "\\\\").replace('"', "\\\"")
    }
}

/// Takes a secret out of a text that comes in pieces, wherever they end.
///
/// The pieces that it gives out, joined, do not hold the secret: what may be its beginning is held back until that is known.
#[derive(Default)]
pub(crate) struct Redactor<'a> {
    secret: Option<&'a Secret>,
    held: String,
}

impl<'a> Redactor<'a> {
    /// For a text that holds nothing yet. A secret that may stand in it by chance is let pass.
    pub(crate) fn new(secret: Option<&'a Secret>) -> Self {
        Self { secret: secret.filter(|secret| secret.0.len() >= TELLING_BYTES_MIN), held: String::new() }
    }

    /// What may be told after another piece.
    pub(crate) fn push(&mut self, piece: String) -> String {
        let Some(secret) = self.secret else { return piece };
        self.held.push_str(&piece);
        let mut told = secret.redact(&self.held);
        self.held = told.split_off(told.len() - secret.begun(&told));
        told
    }

    /// What was held when no piece follows: of the secret, no more than may be there by chance.
    pub(crate) fn finish(&mut self) -> String {
        let held = std::mem::take(&mut self.held);
        if held.len() < TELLING_BYTES_MIN { held } else { REDACTED.to_owned() }
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

    #[test]
    fn a_secret_in_pieces_is_taken_out_wherever_they_end() {
        for key in [KEY, "sk-sk-sk-0", r#"ab"cd\\ab"e"#] {
            let secret = Secret::parse(key, String::new).expect("a key");
            for said in
                [key.to_owned(), format!("It is {key}, sk-{key}s, {}!", secret.quoted()), "risks sk-0".to_owned()]
            {
                for bytes in 1..=said.len() {
                    let mut redactor = Redactor::new(Some(&secret));
                    let pieces = said.as_bytes().chunks(bytes).map(|piece| String::from_utf8_lossy(piece).into_owned());
                    let mut told: String = pieces.map(|piece| redactor.push(piece)).collect();
                    told.push_str(&redactor.finish());
                    assert_eq!(told, secret.redact(&said), "{said:?} in pieces of {bytes} bytes");
                }
            }
        }
    }

    #[test]
    fn an_end_that_may_be_half_a_secret_is_told_where_it_is_short() {
        let secret = Secret::parse(KEY, String::new).expect("a key");
        for (said, expected) in [("Ask", "Ask"), ("sk-0123", "sk-0123"), ("sk-01234", "[secret]")] {
            let mut redactor = Redactor::new(Some(&secret));
            let told = redactor.push(said.to_owned()) + &redactor.finish();
            assert_eq!(told, expected);
        }
    }
}
