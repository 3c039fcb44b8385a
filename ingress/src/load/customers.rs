//! Who asks next, and what: new conversations, and those that had an answer before, in a fixed mix.

use std::sync::Arc;

use jiff::Timestamp;
use turnflow_state::{CacheControl, Channel, ConversationId, TenantId, Turn, TurnId};

use super::sample::Class;
use super::texts::Texts;

/// What is asked is the same in every run, but for the names of conversations, which are new to a server.
pub struct Customers {
    texts: Arc<Texts>,
    tenant: TenantId,
    cache_control: CacheControl,
    /// Share of the turns that go on with a conversation of the pool.
    ongoing_share: f64,
    /// What the names of this run's conversations begin with.
    run: String,
    /// Conversations that were begun.
    begun: usize,
    /// Turns that were asked in the mix.
    mixed: u64,
    pool: Vec<Ongoing>,
    /// Whose turn it is in the pool.
    next: usize,
}

/// A conversation that had an answer.
struct Ongoing {
    conversation: ConversationId,
    /// Which of the log's conversations it follows.
    number: usize,
    /// Turns since its opening.
    times: usize,
}

/// The opening of a conversation that joins the pool when it is answered.
pub(super) struct Opening {
    pub(super) turn: Turn,
    number: usize,
}

impl Customers {
    /// Customers of a tenant who say what is in the log; `ongoing_share`, from 0 to 1, is the share of their turns that go
    /// on with a conversation that had an answer.
    #[must_use]
    pub fn new(texts: Arc<Texts>, tenant: TenantId, cache_control: CacheControl, ongoing_share: f64) -> Self {
        Self {
            texts,
            tenant,
            cache_control,
            ongoing_share,
            run: format!("load-{:x}", Timestamp::now().as_millisecond()),
            begun: 0,
            mixed: 0,
            pool: Vec::new(),
            next: 0,
        }
    }

    /// Share of the turns that go on with a conversation.
    pub(super) const fn ongoing_share(&self) -> f64 {
        self.ongoing_share
    }

    /// Conversations in the pool.
    pub(super) const fn pool_len(&self) -> usize {
        self.pool.len()
    }

    /// A conversation that may join the pool.
    pub(super) fn open(&mut self) -> anyhow::Result<Opening> {
        let number = self.begun;
        let text = self.texts.long_opening(number).to_owned();
        let conversation = self.begin()?;
        Ok(Opening { turn: self.turn(conversation, 0, text)?, number })
    }

    /// Takes an opening that was answered into the pool.
    pub(super) fn join(&mut self, opening: Opening) {
        self.pool.push(Ongoing { conversation: opening.turn.conversation, number: opening.number, times: 0 });
    }

    /// The next turn of the mix. Conversations of the pool take turns, so that the one that waited longest goes on.
    pub(super) fn ask(&mut self) -> anyhow::Result<(Class, Turn)> {
        // As even as can be: whenever the share has added up to another whole turn.
        let due = |turns: u64| (turns as f64 * self.ongoing_share).floor();
        let is_ongoing = due(self.mixed + 1) > due(self.mixed) && !self.pool.is_empty();
        self.mixed += 1;
        if !is_ongoing {
            let text = self.texts.opening(self.begun).to_owned();
            let conversation = self.begin()?;
            return Ok((Class::New, self.turn(conversation, 0, text)?));
        }
        let place = self.next % self.pool.len();
        self.next += 1;
        let ongoing = &mut self.pool[place];
        let text = self.texts.later(ongoing.number, ongoing.times).to_owned();
        ongoing.times += 1;
        let (conversation, turn) = (ongoing.conversation.clone(), ongoing.times);
        Ok((Class::Ongoing, self.turn(conversation, turn, text)?))
    }

    fn begin(&mut self) -> anyhow::Result<ConversationId> {
        let conversation = ConversationId::new(format!("{}-{}", self.run, self.begun))?;
        self.begun += 1;
        Ok(conversation)
    }

    fn turn(&self, conversation: ConversationId, turn: usize, text: String) -> anyhow::Result<Turn> {
        Ok(Turn {
            tenant: self.tenant.clone(),
            conversation,
            id: TurnId::new(turn.to_string())?,
            channel: Channel::Api,
            text,
            at_ms: u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default(),
            cache_control: self.cache_control,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use turnflow_pipeline::Config;

    use super::*;
    use crate::sample;

    fn customers(ongoing_share: f64, pool: usize) -> Customers {
        let texts = Texts::read(sample::log(&Config::defaults().limits)).expect("the sample");
        let tenant = TenantId::new("shop").expect("an id");
        let mut customers = Customers::new(Arc::new(texts), tenant, CacheControl::Bypass, ongoing_share);
        for _ in 0..pool {
            let opening = customers.open().expect("an opening");
            customers.join(opening);
        }
        customers
    }

    #[test]
    fn the_mix_is_even_and_every_turn_is_another() {
        for (share, pool, expected) in [(0.5, 3, 50), (0.25, 3, 25), (0.0, 3, 0), (1.0, 3, 100), (0.5, 0, 0)] {
            let mut customers = customers(share, pool);
            let asked: Vec<_> = (0..100).map(|_| customers.ask().expect("a turn")).collect();
            let ongoing = |turns: &[(Class, Turn)]| turns.iter().filter(|(class, _)| *class == Class::Ongoing).count();
            assert_eq!(ongoing(&asked), expected, "{share} of {pool}");
            assert!(ongoing(&asked[..20]).abs_diff(expected / 5) <= 1, "{share} of {pool}");
            let names: HashSet<_> = asked.iter().map(|(_, turn)| turn.key()).collect();
            assert_eq!(names.len(), 100, "{share} of {pool}");
        }
    }

    #[test]
    fn conversations_of_the_pool_take_turns_and_go_on_in_order() {
        let mut customers = customers(1.0, 2);
        let asked: Vec<_> = (0..4).map(|_| customers.ask().expect("a turn").1).collect();
        assert_eq!(asked[0].conversation, asked[2].conversation);
        assert_ne!(asked[0].conversation, asked[1].conversation);
        assert_eq!((asked[0].id.as_str(), asked[2].id.as_str()), ("1", "2"), "0 is the opening");
        assert_eq!(asked[2].text, customers.texts.later(0, 1));
    }
}
