//! The texts of keys, and the secret that they are hashed with. Neither is ever printed but for the one time when a key is made.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::KeysError;
use super::record::{ID_LENGTH, ID_LETTERS, KeyId};

/// Holds the secret that keys are hashed with, and goes before the file.
pub const PEPPER_ENV: &str = "TURNFLOW_PEPPER";
/// What every key begins with: says to people, and to programs that look for leaked secrets, what it is.
const PREFIX: &str = "tf_";
/// Random bytes of a key, and of a pepper that is made here.
const SECRET_BYTES: usize = 32;
/// Least length of a pepper.
const PEPPER_BYTES_LEAST: usize = 32;
/// Sets the use of a pepper apart from every other.
const PEPPER_CONTEXT: &str = "turnflow 2026-03 pepper of the callers' keys";

/// What is hashed under a pepper to name it; no key begins so.
const PEPPER_ID_TEXT: &[u8] = b"which pepper";
const PEPPER_ID_DIGITS: usize = 16;

/// The text of a key.
pub struct Key(String);

impl Key {
    /// A new one.
    ///
    /// # Errors
    /// [`KeysError::Random`].
    pub fn draw(id: &KeyId) -> Result<Self, KeysError> {
        Ok(Self(format!("{PREFIX}{id}_{}", secret()?)))
    }

    /// The text, to be shown once.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// The name in the text of a key, where it is one.
#[must_use]
pub fn key_id(text: &str) -> Option<KeyId> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_at_checked(ID_LENGTH)?;
    secret.strip_prefix('_')?;
    id.parse().ok()
}

/// The secret that keys are hashed with: without it, what the file holds cannot be compared with anything.
#[derive(Clone, PartialEq, Eq)]
pub struct Pepper([u8; 32]);

impl Pepper {
    /// Made from at least 32 bytes, white space around them left out; `place` is what errors call it.
    ///
    /// # Errors
    /// [`KeysError::PepperShort`].
    pub fn new(secret: impl AsRef<[u8]>, place: impl Into<String>) -> Result<Self, KeysError> {
        let secret = secret.as_ref().trim_ascii();
        if secret.len() < PEPPER_BYTES_LEAST {
            return Err(KeysError::PepperShort { place: place.into(), bytes_least: PEPPER_BYTES_LEAST });
        }
        Ok(Self(blake3::derive_key(PEPPER_CONTEXT, secret)))
    }

    /// Which it is.
    #[must_use]
    pub fn id(&self) -> PepperId {
        PepperId(blake3::keyed_hash(&self.0, PEPPER_ID_TEXT).to_hex()[..PEPPER_ID_DIGITS].to_owned())
    }

    /// The hash of a key's text. Hashes compare in constant time, whatever is equal in them: so does `blake3::Hash`.
    #[must_use]
    pub fn hash(&self, key: &str) -> blake3::Hash {
        blake3::keyed_hash(&self.0, key.as_bytes())
    }
}

/// Tells one pepper from another, and nothing of either.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PepperId(String);

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pepper(..)")
    }
}

/// 256 random bits as text.
pub(super) fn secret() -> Result<String, KeysError> {
    Ok(URL_SAFE_NO_PAD.encode(random::<SECRET_BYTES>()?))
}

/// A name for a new key.
pub(super) fn draw_id() -> Result<KeyId, KeysError> {
    let letters = random::<ID_LENGTH>()?.map(|byte| char::from(ID_LETTERS[usize::from(byte) % ID_LETTERS.len()]));
    String::from_iter(letters).parse().map_err(KeysError::Random)
}

fn random<const N: usize>() -> Result<[u8; N], KeysError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| KeysError::Random(error.to_string()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_itself_and_shows_its_secret_to_nobody() {
        let id = draw_id().expect("random bits");
        let key = Key::draw(&id).expect("random bits");
        assert_eq!(key_id(key.reveal()), Some(id.clone()));
        assert_eq!(key.reveal().len(), "tf_".len() + 8 + "_".len() + 43);
        assert_ne!(key.reveal(), Key::draw(&id).expect("random bits").reveal());
        assert_eq!(format!("{key:?}"), "Key(..)");
        for text in
            ["", "tf_", "none", "sk-abcdefgh_x", "tf_abcdefg_x", "tf_abcdefghx", "tf_ABCDEFGH_x", "tf_abcdefgé_x"]
        {
            assert_eq!(key_id(text), None, "{text}");
        }
        assert!(key_id("tf_abcdefgh_x").is_some());
    }

    #[test]
    fn hashes_depend_on_the_pepper_and_on_the_whole_key() {
        let pepper = |text: &str| Pepper::new(text, "a test").expect("long enough");
        let (ours, theirs) = (pepper(&"a".repeat(32)), pepper(&"b".repeat(32)));
        assert_eq!(ours.hash("tf_k"), pepper(&format!(" {}\n", "a".repeat(32))).hash("tf_k"));
        assert_ne!(ours.hash("tf_k"), theirs.hash("tf_k"));
        assert_ne!(ours.hash("tf_k"), ours.hash("tf_l"));
        assert!(ours.id() != theirs.id() && ours.id() == pepper(&"a".repeat(32)).id());
        assert_eq!(format!("{ours:?}"), "Pepper(..)");
        let error = Pepper::new("too short", "TURNFLOW_PEPPER").expect_err("too short").to_string();
        assert_eq!(error, "TURNFLOW_PEPPER: a secret of at least 32 bytes is expected");
    }
}
