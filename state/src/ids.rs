//! Ids as types of their own, so that a conversation cannot be passed where a turn is meant.
//!
//! Text ids are chosen by clients: 1 to [`ID_BYTES_MAX`] bytes of UTF-8 without control characters, which lets
//! the stores use control characters as separators in their keys.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest id accepted, in bytes.
pub const ID_BYTES_MAX: usize = 128;

/// Why a text is not an id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text was empty.
    #[error("empty {kind}")]
    Empty {
        /// What the id names.
        kind: &'static str,
    },
    /// The text was longer than [`ID_BYTES_MAX`].
    #[error("{kind} of {bytes} bytes, at most {ID_BYTES_MAX} are allowed")]
    TooLong {
        /// What the id names.
        kind: &'static str,
        /// Length of the offending text.
        bytes: usize,
    },
    /// The text contained a control character.
    #[error("{kind} {id:?} contains a control character")]
    Control {
        /// What the id names.
        kind: &'static str,
        /// The offending text.
        id: String,
    },
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks a text and makes it an id.
            ///
            /// # Errors
            /// [`IdError`] when the text is empty, too long, or contains a control character.
            pub fn new(id: impl AsRef<str>) -> Result<Self, IdError> {
                let id = id.as_ref();
                if id.is_empty() {
                    Err(IdError::Empty { kind: $kind })
                } else if id.len() > ID_BYTES_MAX {
                    Err(IdError::TooLong { kind: $kind, bytes: id.len() })
                } else if id.chars().any(char::is_control) {
                    Err(IdError::Control { kind: $kind, id: id.to_owned() })
                } else {
                    Ok(Self(id.into()))
                }
            }

            /// The id as the client wrote it.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(id: String) -> Result<Self, IdError> {
                Self::new(id)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.as_ref().to_owned()
            }
        }
    };
}

text_id!(
    /// A customer of Turnflow: the hard wall around everything stored and cached.
    TenantId,
    "tenant id"
);
text_id!(
    /// One conversation of a tenant, named by the client.
    ConversationId,
    "conversation id"
);
text_id!(
    /// One turn of a conversation, named by the client: the same id again gets the same answer.
    TurnId,
    "turn id"
);
text_id!(
    /// An article of the knowledge base.
    ArticleId,
    "article id"
);

/// A turn's full name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TurnKey {
    /// Whose conversation.
    pub tenant: TenantId,
    /// Which conversation.
    pub conversation: ConversationId,
    /// Which turn of it.
    pub turn: TurnId,
}

/// A cached answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EntryId(pub u64);

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e{}", self.0)
    }
}

/// The hard partition of everything cached: two scopes share nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ScopeId([u8; 16]);

impl ScopeId {
    /// Derives the scope from everything that may change an answer besides the question.
    ///
    /// `settings` holds name and value of each: system prompt, language, generation parameters. The parts are
    /// length-prefixed before they are hashed, so no two different lists collide by concatenation.
    #[must_use]
    pub fn derive(tenant: &TenantId, settings: &[(&str, &str)]) -> Self {
        let mut hasher = blake3::Hasher::new();
        let mut part = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        part(tenant.as_str());
        for (name, value) in settings {
            part(name);
            part(value);
        }
        let mut id = [0; 16];
        id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(id)
    }

    /// The bytes, for keys in stores.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for ScopeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ScopeId({:032x})", u128::from_be_bytes(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_ids_are_checked() {
        let check = |text: &str, expected: Result<(), IdError>| {
            assert_eq!(TurnId::new(text).map(|_| ()), expected, "{text:?}");
        };
        let long = "x".repeat(ID_BYTES_MAX + 1);
        check("t-1", Ok(()));
        check("поворот", Ok(()));
        check("", Err(IdError::Empty { kind: "turn id" }));
        check(&long, Err(IdError::TooLong { kind: "turn id", bytes: 129 }));
        check("a\u{0}b", Err(IdError::Control { kind: "turn id", id: "a\u{0}b".into() }));
        check("a\nb", Err(IdError::Control { kind: "turn id", id: "a\nb".into() }));
    }

    #[test]
    fn scopes_do_not_collide_by_concatenation() {
        let scope = |tenant: &str, settings: &[(&str, &str)]| {
            ScopeId::derive(&TenantId::new(tenant).expect("valid id"), settings)
        };
        assert_eq!(scope("a", &[("language", "en")]), scope("a", &[("language", "en")]));
        assert_ne!(scope("a", &[("language", "en")]), scope("b", &[("language", "en")]));
        assert_ne!(scope("ab", &[("c", "d")]), scope("a", &[("bc", "d")]));
        assert_ne!(scope("a", &[("b", "cd")]), scope("a", &[("bc", "d")]));
    }
}
