//! Recall: the first stage. Orders the turns of one conversation, answers a turn id that was answered before, and
//! finds out whether a turn can be understood without the ones before it.
//!
//! Contract: exchanged by conversation, so one worker sees all turns of it. Of each conversation at most one turn
//! is under way; the next one starts when its end has been told and it is [released](Release). Every turn that is given out, going
//! on or ending, comes back as exactly one release; a turn that is refused for want of room, or whose time is up while it
//! waits, does not, because it never started.
//!
//! The reads are point look-ups of a few microseconds, answered by filters and caches of the store.

use std::collections::{HashMap, VecDeque};

use turnflow_state::{
    Conversation, ConversationId, StateError, Store, TenantId, TurnError, TurnErrorKind, TurnKey, TurnRecord,
};

use crate::deadline::{Earliest, late, take_late};
use crate::message::{Ask, ConversationKey, Ending, Exchange, Outcome, Step};
use crate::shell::{Mailbox, Stage};
use crate::smalltalk::GREETINGS;

/// What recall reads.
pub trait Memory: 'static {
    /// What the turn was answered with before, if it was.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn answered(&self, key: &TurnKey) -> Result<Option<TurnRecord>, StateError>;

    /// What is known of the conversation.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn conversation(&self, tenant: &TenantId, id: &ConversationId) -> Result<Option<Conversation>, StateError>;

    /// The latest answered turns of the conversation, oldest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn history(&self, tenant: &TenantId, id: &ConversationId, turns_max: usize) -> Result<Vec<TurnRecord>, StateError>;
}

impl Memory for Store {
    fn answered(&self, key: &TurnKey) -> Result<Option<TurnRecord>, StateError> {
        self.turn(key)
    }

    fn conversation(&self, tenant: &TenantId, id: &ConversationId) -> Result<Option<Conversation>, StateError> {
        Self::conversation(self, tenant, id)
    }

    fn history(&self, tenant: &TenantId, id: &ConversationId, turns_max: usize) -> Result<Vec<TurnRecord>, StateError> {
        Self::history(self, tenant, id, turns_max)
    }
}

/// Says that the turn under way of a conversation has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release(pub ConversationKey);

/// The bounds of the stage.
#[derive(Clone, Copy, Debug)]
pub struct RecallLimits {
    /// Turns of one conversation that may be unanswered.
    pub turns_per_conversation_max: usize,
    /// Earlier turns that a turn may lean on.
    pub history_turns_max: usize,
}

/// The core.
#[derive(Debug)]
pub struct Recall<M> {
    memory: M,
    limits: RecallLimits,
    releases: Mailbox<Release>,
    /// Conversations with a turn under way, and the turns that wait behind it.
    busy: HashMap<ConversationKey, VecDeque<Box<Ask>>>,
    waiting: usize,
    earliest: Earliest,
}

impl<M: Memory> Recall<M> {
    /// A stage that knows of no turn.
    #[must_use]
    pub fn new(memory: M, limits: RecallLimits, releases: Mailbox<Release>) -> Self {
        assert!(limits.turns_per_conversation_max > 0, "a conversation needs room for a turn");
        Self { memory, limits, releases, busy: HashMap::new(), waiting: 0, earliest: Earliest::default() }
    }

    fn begin(&self, mut ask: Box<Ask>, now_us: u64) -> Step {
        ask.started = true;
        match self.remember(&mut ask) {
            Ok(repeated) => {
                ask.left(turnflow_state::Stage::Recall, now_us);
                match repeated {
                    Some(record) => Err(Outcome { ask, ending: Ending::Repeated(Box::new(record)) }),
                    None => Ok(ask),
                }
            }
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot recall a conversation");
                Err(Outcome::failed(ask, TurnError::new(TurnErrorKind::Internal, "the conversation cannot be read")))
            }
        }
    }

    fn remember(&self, ask: &mut Ask) -> Result<Option<TurnRecord>, StateError> {
        let turn = &ask.turn;
        let told = std::mem::take(&mut ask.history);
        let Some(conversation) = self.memory.conversation(&turn.tenant, &turn.conversation)? else {
            // What its client tells of it stands in for what is known here.
            ask.turns_before = told.len() as u64;
            ask.leans = ask.turns_before > 0 && leans(&turn.text);
            if ask.leans {
                let older = told.len().saturating_sub(self.limits.history_turns_max);
                ask.history = told.into_iter().skip(older).collect();
            }
            return Ok(None);
        };
        let repeated = self.memory.answered(&turn.key())?;
        if repeated.is_none() {
            (ask.turns_before, ask.size_before) = (conversation.turns_answered, conversation.size);
            ask.leans = ask.turns_before > 0 && leans(&turn.text);
            if ask.leans {
                let records = self.memory.history(&turn.tenant, &turn.conversation, self.limits.history_turns_max)?;
                ask.history = records.into_iter().map(exchange).collect();
            }
        }
        Ok(repeated)
    }

    /// Ends the turns that wait and whose time is up.
    fn expire(&mut self, now_us: u64, out: &mut Vec<Step>) {
        if self.earliest.has_passed(now_us) {
            let before = out.len();
            for queue in self.busy.values_mut() {
                out.extend(take_late(queue, now_us).map(|ask| Err(late(ask))));
            }
            self.waiting -= out.len() - before;
            self.earliest = Earliest::of(self.busy.values().flatten().map(Box::as_ref));
        }
    }

    fn release(&mut self, Release(conversation): &Release, now_us: u64, out: &mut Vec<Step>) {
        let next = self.busy.get_mut(conversation).and_then(VecDeque::pop_front);
        match next {
            Some(ask) => {
                self.waiting -= 1;
                let step = self.begin(ask, now_us);
                out.push(step);
            }
            None => {
                self.busy.remove(conversation);
            }
        }
    }
}

fn exchange(record: TurnRecord) -> Exchange {
    Exchange { question: record.turn.text, answer: record.completion.text }
}

impl<M: Memory> Stage for Recall<M> {
    type Input = Box<Ask>;
    type Output = Step;

    fn push(&mut self, mut ask: Box<Ask>, now_us: u64, out: &mut Vec<Step>) {
        ask.entered_us = now_us;
        let conversation = (ask.turn.tenant.clone(), ask.turn.conversation.clone());
        match self.busy.get_mut(&conversation) {
            None => {
                self.busy.insert(conversation, VecDeque::new());
                let step = self.begin(ask, now_us);
                out.push(step);
            }
            // The turn under way counts as well.
            Some(queue) if queue.len() + 1 < self.limits.turns_per_conversation_max => {
                self.earliest.add(&ask);
                queue.push_back(ask);
                self.waiting += 1;
            }
            Some(_) => {
                let message = format!(
                    "conversation {} has {} unanswered turns, more are not taken",
                    ask.turn.conversation, self.limits.turns_per_conversation_max
                );
                out.push(Err(Outcome::failed(ask, TurnError::new(TurnErrorKind::Overloaded, message))));
            }
        }
    }

    fn poll(&mut self, now_us: u64, out: &mut Vec<Step>) {
        while let Some(release) = self.releases.take() {
            self.release(&release, now_us, out);
        }
        self.expire(now_us, out);
    }

    fn held(&self) -> usize {
        self.waiting
    }

    fn due_us(&self) -> Option<u64> {
        self.earliest.due_us()
    }
}

/// Longest text, in words, that can lean on earlier turns by opening with a connective.
const CONNECTIVE_WORDS_MAX: usize = 12;
/// Longest text, in words, that can lean on earlier turns by a pronoun.
const PRONOUN_WORDS_MAX: usize = 8;
const CONNECTIVES: &[&str] = &[
    "and",
    "but",
    "also",
    "then",
    "so",
    "or",
    "what about",
    "how about",
    "yes",
    "yeah",
    "yep",
    "no",
    "nope",
    "ok",
    "okay",
    "sure",
    "right",
    "perfect",
    "great",
    "please do",
    "go ahead",
    "sounds good",
    "either",
    "neither",
    "both",
    "same",
    "the first",
    "the second",
    "the last",
];
const PRONOUNS: &[&str] = &["it", "its", "that", "this", "they", "them", "their", "those", "these", "one", "ones"];
/// Words that ask.
const ASKING: &[&str] =
    &["how", "what", "when", "where", "which", "who", "why", "can", "could", "do", "does", "is", "are", "will"];
/// Longest question, in words, that says nothing of what it is about.
const BARE_QUESTION_WORDS_MAX: usize = 2;
/// What has somebody go on, or stands in place of what was asked for, when it is all that is said but for "please";
/// without apostrophes.
const REPLIES: &[&str] = &[
    "proceed",
    "you can proceed",
    "continue",
    "go on",
    "keep going",
    "next",
    "more details",
    "more info",
    "more information",
    "tell me more",
    "can you elaborate",
    "something else",
    "anything else",
    "try again",
    "can you try again",
    "are you sure",
    "of course",
    "not yet",
    "didnt work",
    "doesnt work",
    "still not working",
    "no idea",
    "i have no idea",
    "not sure",
    "im not sure",
    "dont know",
    "i dont know",
    "i dont remember",
    "i cant remember",
    "i forgot",
    "i do",
    "i dont",
    "i did",
    "i didnt",
    "i have",
    "i havent",
];
/// Words that say when or how many, beside those with a digit.
const VALUES: &str = "noon midnight today tomorrow yesterday tonight morning afternoon evening night monday tuesday wednesday \
    thursday friday saturday sunday january february march april may june july august september october november december \
    one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen \
    nineteen twenty thirty forty fifty sixty seventy eighty ninety dozen hundred thousand second minute minutes hour hours \
    day days week weeks weekend month months year years";
/// Words that stand beside them.
const BESIDE_VALUES: &str = "a about ago am and around at before by dollars during euros for from half in is it's last my next number \
    o'clock of on option or order past people person persons pm pounds quarter since the this to until";
/// How somebody gives their name, and its longest length in words. "I'm locked out" gives none.
const NAMINGS: [(&[&str], usize); 5] =
    [(&["my", "name", "is"], 2), (&["my", "name's"], 2), (&["i'm"], 1), (&["im"], 1), (&["i", "am"], 1)];
/// Words that close a conversation: what opens or refers beside them is politeness.
const CLOSINGS: &[&str] = &["thank", "thanks", "thx", "bye", "goodbye"];
/// Phrases whose pronoun refers to nothing.
const EXPLETIVES: &[&str] = &["is it possible", "would it be possible", "it possible to"];

/// The words of a text in normal form: letters and digits, with the apostrophes among them.
pub(crate) fn words_of(text: &str) -> Vec<&str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '\'').filter(|word| !word.is_empty()).collect()
}

/// Whether a text that is not the first of its conversation leans on what was said before, by a plain rule: it is
/// short, and opens with a connective, contains a pronoun that refers back, is little more than a question word, or is what
/// one says to a question: a word, a number, a time, one's name, or that one does not know.
#[must_use]
pub fn leans(text: &str) -> bool {
    let is_question = text.trim_end().ends_with('?');
    let text = turnflow_state::normalise(text);
    let words = words_of(&text);
    let asks = |word: &&str| ASKING.contains(word);
    // Thanks come before another question as well.
    let closes = words.iter().rposition(|word| CLOSINGS.contains(word));
    if let Some(closes) = closes {
        return words[closes..].iter().any(asks) && leans(&words[closes + 1..].join(" "));
    }
    if EXPLETIVES.iter().any(|phrase| text.contains(phrase)) {
        return false;
    }
    let spoken = words.join(" ");
    let opens_with =
        |phrase: &str| spoken.strip_prefix(phrase).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '));
    let connects = words.len() <= CONNECTIVE_WORDS_MAX && CONNECTIVES.iter().any(|phrase| opens_with(phrase));
    let refers = words.len() <= PRONOUN_WORDS_MAX && words.iter().any(|word| refers_back(word));
    let is_bare = words.len() <= BARE_QUESTION_WORDS_MAX && words.first().is_some_and(asks);
    connects || refers || is_bare || replies(&words, is_question)
}

/// Whether a text, which may be a question itself, is of a kind that answers one.
fn replies(words: &[&str], is_question: bool) -> bool {
    let spoken: Vec<&str> = words.iter().copied().filter(|word| *word != "please").collect();
    let is_among = |list: &str, word: &str| list.split(' ').any(|other| other == word);
    let is_value = |word: &str| word.contains(|c: char| c.is_ascii_digit()) || is_among(VALUES, word);
    // All first: it ends at the first word of nearly every text.
    let tells = spoken.iter().all(|word| is_value(word) || is_among(BESIDE_VALUES, word))
        && spoken.iter().any(|word| is_value(word));
    let names = |(introduction, words_max): (&[&str], usize)| {
        spoken.strip_prefix(introduction).is_some_and(|name| !name.is_empty() && name.len() <= words_max)
    };
    match spoken[..] {
        [] => !words.is_empty(),
        // "Refund?" asks for something by itself.
        [word] => tells || !is_question && !GREETINGS.contains(&word),
        _ => tells || REPLIES.contains(&spoken.join(" ").replace('\'', "").as_str()) || NAMINGS.into_iter().any(names),
    }
}

/// Whether a word is a pronoun that refers back, with a verb drawn into it or not: "it's", "they'll".
fn refers_back(word: &str) -> bool {
    PRONOUNS.contains(&word.split('\'').next().unwrap_or(word))
}
