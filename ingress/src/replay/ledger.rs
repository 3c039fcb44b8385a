//! What a replay remembers of every turn: that it was seen, what its label wants, and what answering it consumed.
//!
//! Everything else about a turn is forgotten once it is written. A turn costs some 25 to 50 bytes here, so that a log of
//! ten million turns is replayed, checked for duplicates and scored in half a gigabyte.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU32;

use turnflow_state::{ConversationId, TurnKey};

use super::gold::{GoldKeys, Topic};

/// A turn's name in the ledger: a hash of conversation and turn number.
///
/// With 64 bits, two of ten million turns share a name with a probability of 1 in 370,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TurnName(u64);

impl TurnName {
    /// The name of a turn of the log.
    #[must_use]
    pub fn of(conversation: &ConversationId, turn: u64) -> Self {
        let mut hasher = DefaultHasher::new();
        (conversation.as_str(), turn).hash(&mut hasher);
        Self(hasher.finish())
    }

    /// The name of a turn of the pipeline; `None` for one that no log can contain.
    #[must_use]
    pub fn of_key(key: &TurnKey) -> Option<Self> {
        Some(Self::of(&key.conversation, key.turn.as_str().parse().ok()?))
    }
}

#[derive(Clone, Copy)]
struct Entry {
    content: Option<NonZeroU32>,
    article: Option<NonZeroU32>,
    topic: Option<Topic>,
    /// Tokens that a tier read and wrote for this turn, plus 1; `None` until it is answered.
    tokens: Option<NonZeroU32>,
}

/// Whether a hit was right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The same answer, with the same content, is right for both turns.
    pub content_right: bool,
    /// The same article is right for both turns.
    pub article_right: bool,
    /// The same article is right for both, but what it says has changed in between.
    pub stale: bool,
}

/// Everything remembered.
#[derive(Default)]
pub struct Ledger {
    entries: HashMap<TurnName, Entry>,
    tokens_spent: u64,
    tokens_saved: u64,
    /// Hits whose origin had not reported its tokens yet: rare, since an origin is answered before its hits are.
    unsettled: Vec<TurnName>,
}

impl Ledger {
    /// Notes that a turn is about to be asked; `false` when it was noted before.
    pub fn admit(&mut self, name: TurnName, keys: Option<GoldKeys>) -> bool {
        let entry = Entry {
            content: keys.map(|keys| keys.content),
            article: keys.map(|keys| keys.article),
            topic: keys.and_then(|keys| keys.topic),
            tokens: None,
        };
        let before = self.entries.len();
        self.entries.entry(name).or_insert(entry);
        self.entries.len() > before
    }

    /// Notes what a tier consumed for a turn, 0 for a turn that no tier was asked for.
    pub fn spend(&mut self, name: TurnName, tokens: u64) {
        self.tokens_spent += tokens;
        if let Some(entry) = self.entries.get_mut(&name) {
            entry.tokens = u32::try_from(tokens).unwrap_or(u32::MAX).checked_add(1).and_then(NonZeroU32::new);
        }
    }

    /// Notes that the answer of `origin` was served again.
    pub fn save(&mut self, origin: TurnName) {
        match self.entries.get(&origin) {
            Some(entry) if entry.tokens.is_none() => self.unsettled.push(origin),
            Some(entry) => self.tokens_saved += tokens_of(entry),
            None => {}
        }
    }

    /// Judges a hit; `None` when one of the two turns has no label.
    #[must_use]
    pub fn judge(&self, keys: GoldKeys, origin: TurnName) -> Option<Judgement> {
        let entry = self.entries.get(&origin)?;
        let (content, article) = (entry.content?, entry.article?);
        let (content_right, article_right) = (keys.content == content, keys.article == article);
        // Two turns that an article would answer if it existed differ by their words, not by a version.
        let has_version = [keys.topic, entry.topic].into_iter().flatten().any(Topic::is_answer);
        Some(Judgement { content_right, article_right, stale: article_right && !content_right && has_version })
    }

    /// The article that a turn's label names; `None` when it names none, or there is no label.
    #[must_use]
    pub fn topic(&self, name: TurnName) -> Option<Topic> {
        self.entries.get(&name)?.topic
    }

    /// Tokens that tiers read and wrote, and those that serving answers again saved, so far.
    pub fn tokens(&mut self) -> (u64, u64) {
        for origin in std::mem::take(&mut self.unsettled) {
            self.tokens_saved += self.entries.get(&origin).map_or(0, tokens_of);
        }
        (self.tokens_spent, self.tokens_saved)
    }
}

fn tokens_of(entry: &Entry) -> u64 {
    entry.tokens.map_or(0, |tokens| u64::from(tokens.get()) - 1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use turnflow_state::{TenantId, TurnId};

    use super::super::gold::{ContentVersions, Gold};
    use super::*;

    fn name(conversation: &str, turn: u64) -> TurnName {
        TurnName::of(&ConversationId::new(conversation).expect("an id"), turn)
    }

    fn keys(content: u32, article: u32) -> GoldKeys {
        let key = |value| NonZeroU32::new(value).expect("not 0");
        GoldKeys { content: key(content), article: key(article), topic: None }
    }

    /// The keys of a turn about article `a` of a version, or that would be about it if it existed.
    fn about(text: &str, version: Option<u64>) -> GoldKeys {
        let kind = if version.is_some() { "kb" } else { "no_article" };
        let label = json!({"kind": kind, "kb_id": "a", "kb_version": version});
        Gold::read(label, text, Some(&ContentVersions::default())).expect("a label").keys
    }

    #[test]
    fn a_turn_is_admitted_once() {
        let mut ledger = Ledger::default();
        assert!(ledger.admit(name("a", 1), None));
        assert!(ledger.admit(name("a", 2), None));
        assert!(ledger.admit(name("b", 1), None));
        assert!(!ledger.admit(name("a", 1), None));
    }

    #[test]
    fn names_agree_with_the_pipelines_keys() {
        let key = |turn: &str| TurnKey {
            tenant: TenantId::new("t").expect("an id"),
            conversation: ConversationId::new("a").expect("an id"),
            turn: TurnId::new(turn).expect("an id"),
        };
        assert_eq!(TurnName::of_key(&key("17")), Some(name("a", 17)));
        assert_eq!(TurnName::of_key(&key("first")), None);
    }

    #[test]
    fn hits_are_judged_by_both_labels() {
        let mut ledger = Ledger::default();
        ledger.admit(name("a", 1), Some(keys(1, 10)));
        ledger.admit(name("a", 2), None);
        let judge = |keys, origin| ledger.judge(keys, origin).map(|j| (j.content_right, j.article_right));
        assert_eq!(judge(keys(1, 10), name("a", 1)), Some((true, true)));
        assert_eq!(judge(keys(2, 10), name("a", 1)), Some((false, true)));
        assert_eq!(judge(keys(2, 20), name("a", 1)), Some((false, false)));
        assert_eq!(judge(keys(1, 10), name("a", 2)), None);
        assert_eq!(judge(keys(1, 10), name("z", 9)), None);
    }

    #[test]
    fn a_hit_is_stale_when_only_the_version_is_wrong() {
        // (the origin's label, that of the hit, whether it is right, whether it is stale)
        let table = [
            (about("x", Some(1)), about("y", Some(1)), true, false),
            (about("x", Some(1)), about("x", Some(2)), false, true),
            (about("x", None), about("x", Some(1)), false, true),
            (about("x", Some(1)), about("x", None), false, true),
            (about("x", None), about("X!", None), true, false),
            (about("x", None), about("y", None), false, false),
            (keys(1, 10), keys(2, 20), false, false),
        ];
        for (place, (origin, hit, right, stale)) in table.into_iter().enumerate() {
            let mut ledger = Ledger::default();
            ledger.admit(name("a", 1), Some(origin));
            let judgement = ledger.judge(hit, name("a", 1)).expect("two labels");
            assert_eq!((judgement.content_right, judgement.stale), (right, stale), "row {place}");
            assert_eq!(ledger.topic(name("a", 1)), origin.topic);
        }
    }

    #[test]
    fn tokens_are_saved_whichever_answer_is_heard_of_first() {
        let mut ledger = Ledger::default();
        for turn in 1..=4 {
            ledger.admit(name("a", turn), None);
        }
        ledger.spend(name("a", 1), 100);
        ledger.save(name("a", 1));
        ledger.save(name("a", 2));
        ledger.save(name("z", 1));
        ledger.spend(name("a", 2), 30);
        ledger.spend(name("a", 3), 0);
        ledger.save(name("a", 3));
        assert_eq!(ledger.tokens(), (130, 130));
        assert_eq!(ledger.tokens(), (130, 130));
    }

    #[test]
    fn an_entry_is_small() {
        assert_eq!(size_of::<(TurnName, Entry)>(), 24);
    }
}
