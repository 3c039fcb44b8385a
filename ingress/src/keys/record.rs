//! What is kept of a key.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use turnflow_state::TenantId;

use super::{KeyLimits, PepperId};

/// Letters of a key's name: digits and small letters, without those that look alike. 32, so that bytes draw them evenly.
pub(super) const ID_LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
/// Letters of one name.
pub(super) const ID_LENGTH: usize = 8;

/// The name of a key: no secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyId(String);

impl FromStr for KeyId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The text is not told: it may be a key.
        if text.len() == ID_LENGTH && text.bytes().all(|letter| ID_LETTERS.contains(&letter)) {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("the name of a key has {ID_LENGTH} letters and digits, as `turnflow keys list` tells it"))
        }
    }
}

impl TryFrom<String> for KeyId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> Self {
        id.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a key may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Conversations, and what belongs to them: models, embeddings, feedback.
    Chat,
    /// The knowledge base.
    Kb,
    /// Everything of the tenant: chat and kb, its cached answers, and the page.
    Admin,
    /// The server as a whole, of whichever tenant the key is: metrics, reloads, backups and its end.
    Operator,
}

impl Scope {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Kb => "kb",
            Self::Admin => "admin",
            Self::Operator => "operator",
        }
    }
}

/// Whether a key counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyState {
    /// It does.
    Valid,
    /// Its time is over.
    Expired,
    /// It was revoked.
    Revoked,
}

impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Valid => "valid",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        })
    }
}

/// A key without its secret, as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRecord {
    /// Its name.
    pub id: KeyId,
    /// Whose it is.
    pub tenant: TenantId,
    /// What it may be used for.
    pub scopes: BTreeSet<Scope>,
    /// What somebody calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it may do at most, where that is not as configured.
    #[serde(default, skip_serializing_if = "KeyLimits::is_empty")]
    pub limits: KeyLimits,
    /// When it was made.
    pub created: Timestamp,
    /// From when on it counts no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Timestamp>,
    /// The key in whose place it was made. Several may have been made in the place of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predecessor: Option<KeyId>,
    /// The last key that was made in its place: how files of before tell it. Read only, see [`link_old`].
    #[serde(default, skip_serializing)]
    pub(super) successor: Option<KeyId>,
    /// Which of the server's secrets its text is hashed under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pepper: Option<PepperId>,
    /// Of its text, under the server's secret.
    #[serde(serialize_with = "write_hash", deserialize_with = "read_hash")]
    pub hash: blake3::Hash,
}

impl KeyRecord {
    /// Whether it counts at this time.
    #[must_use]
    pub fn state(&self, now: Timestamp) -> KeyState {
        match self {
            Self { revoked: Some(_), .. } => KeyState::Revoked,
            Self { expires: Some(expires), .. } if *expires <= now => KeyState::Expired,
            _ => KeyState::Valid,
        }
    }

    /// Whether it may be used for this.
    #[must_use]
    pub fn allows(&self, scope: Scope) -> bool {
        // What is the whole server's is no tenant's.
        self.scopes.contains(&scope) || (scope != Scope::Operator && self.scopes.contains(&Scope::Admin))
    }
}

/// Turns the links of files of before, which named a key's successor, into those to its predecessor.
pub(super) fn link_old(records: &mut [KeyRecord]) {
    let take = |record: &mut KeyRecord| Some((record.successor.take()?, record.id.clone()));
    let predecessors: HashMap<KeyId, KeyId> = records.iter_mut().filter_map(take).collect();
    for record in records {
        record.predecessor = record.predecessor.take().or_else(|| predecessors.get(&record.id).cloned());
    }
}

fn write_hash<S: Serializer>(hash: &blake3::Hash, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hash.to_hex())
}

fn read_hash<'de, D: Deserializer<'de>>(deserializer: D) -> Result<blake3::Hash, D::Error> {
    let text = String::deserialize(deserializer)?;
    blake3::Hash::from_hex(text).map_err(|_| serde::de::Error::custom("hash: 64 hexadecimal digits are expected"))
}
